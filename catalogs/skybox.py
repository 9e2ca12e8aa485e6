"""Boxes in RA and Dec: which of them touch which HEALPix cells, and which of them holds a position.

A box is a row (ra_min, ra_max, dec_min, dec_max) in degrees; where `ra_min` exceeds `ra_max` it crosses RA 0.
"""

from __future__ import annotations

from collections.abc import Iterable

import healpy
import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]

MARGIN = 0.02
"""Degrees by which a cell's box is widened: a cell's edge bulges between the points at which it is followed."""


def cell_boxes(cells: Iterable[int], order: int) -> Boxes:
    """Boxes, shape (n, 4), that hold these HEALPix cells (NESTED) and a little more."""
    pixels = np.asarray(sorted(set(cells)), dtype=np.int64)
    if len(pixels) == 0:
        return np.zeros((0, 4))
    edges = np.stack([healpy.boundaries(1 << order, int(p), step=8, nest=True) for p in pixels])
    dec = np.degrees(np.arcsin(np.clip(edges[:, 2], -1, 1)))
    ra = np.degrees(np.arctan2(edges[:, 1], edges[:, 0]))
    centre = healpy.pix2ang(1 << order, pixels, nest=True, lonlat=True)[0]
    off = (ra - centre[:, None] + 180) % 360 - 180
    low, high = dec.min(axis=1) - MARGIN, dec.max(axis=1) + MARGIN
    widen = MARGIN / np.cos(np.radians(np.minimum(np.maximum(abs(low), abs(high)), 89.9)))
    left, right = off.min(axis=1) - widen, off.max(axis=1) + widen
    # at a pole every right ascension is near
    whole = (np.maximum(abs(low), abs(high)) > 89.5) | (right - left >= 360)
    ra_min = np.where(whole, 0.0, (centre + left) % 360)
    ra_max = np.where(whole, 360.0, (centre + right) % 360)
    return np.stack([ra_min, ra_max, np.maximum(low, -90), np.minimum(high, 90)], axis=1)


def touching(boxes: Boxes, others: Boxes) -> NDArray[np.bool_]:
    """Which of `boxes`, shape (n, 4), touch any of `others`; True where they share a point, borders included."""
    out = np.zeros(len(boxes), dtype=bool)
    width = _width(boxes)
    for other, other_width in zip(others, _width(others), strict=True):
        near = (other[0] - boxes[:, 0]) % 360 <= width
        near |= (boxes[:, 0] - other[0]) % 360 <= other_width
        out |= near & (boxes[:, 2] <= other[3]) & (boxes[:, 3] >= other[2])
    return out


def _width(boxes: Boxes) -> NDArray[np.float64]:
    width = boxes[:, 1] - boxes[:, 0]
    return np.where(width < 0, width + 360, width)


def holding(boxes: Boxes, ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the box with ra_min <= ra < ra_max and dec_min <= dec < dec_max, -1 where there is none.

    A box with ra_min > ra_max crosses RA 0. Boxes of one row (equal limits in Dec) must not overlap, as the Legacy
    Surveys' bricks do not; rows may lie anywhere. The north pole belongs to the row that ends there.
    """
    out = np.full(len(ra), -1, dtype=np.int64)
    if len(boxes) == 0:
        return out
    wraps = boxes[:, 0] > boxes[:, 1]
    crosses = np.flatnonzero(wraps & (boxes[:, 1] > 0))
    east, west = boxes[crosses].copy(), boxes.copy()
    west[wraps, 1], east[:, 0] = 360.0, 0.0
    pieces, number = np.concatenate([west, east]), np.concatenate([np.arange(len(boxes)), crosses])
    rows, row_of = np.unique(pieces[:, 2:], axis=0, return_inverse=True)
    by_row = np.lexsort((pieces[:, 0], row_of.reshape(-1)))
    ends = np.cumsum(np.bincount(row_of.reshape(-1), minlength=len(rows)))
    for (bottom, top), start, end in zip(rows.tolist(), [0, *ends[:-1].tolist()], ends.tolist(), strict=True):
        asked = np.flatnonzero((out < 0) & (dec >= bottom) & ((dec < top) | ((top == 90) & (dec == 90))))
        if not len(asked):
            continue
        members = by_row[start:end]
        place = np.searchsorted(pieces[members, 0], ra[asked], side="right") - 1
        found = members[np.maximum(place, 0)]
        inside = (place >= 0) & (ra[asked] < pieces[found, 1])
        out[asked[inside]] = number[found[inside]]
    return out
