"""Parts of the sky to work on at once: cells of few rows, groups of them, and what lies around them.

A *range* is half-open, of order-29 NESTED cells; a set of ranges is two arrays (low, high), ascending and disjoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skycairn.match import sky

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Ranges = tuple[Ints, Ints]

BORDER_STEPS = 7
"""A border is drawn in cells this many orders deeper than what it goes round: 2^7 of them a side."""


@dataclass(frozen=True)
class Leaves:
    """Cells of any order that together cover the sphere, ascending; shape (n,)."""

    order: Ints
    cell: Ints
    rows: Ints
    "shape (tables, n)"

    def take(self, which: Ints | slice) -> Leaves:
        """Some of them."""
        return Leaves(self.order[which], self.cell[which], self.rows[:, which])


def ranges(order: Ints | int, cell: Ints | Sequence[int]) -> Ranges:
    """The order-29 cells of each of these."""
    shift = 2 * (sky.MAX_ORDER - np.asarray(order, np.int64))
    low = np.asarray(cell, np.int64)
    return low << shift, (low + 1) << shift


def leaves(
    count: Callable[[Ints, Ints], Ints], too_many: Callable[[Ints, int], Bools], deepest: int, start: int = 0
) -> Leaves:
    """Split the sphere's cells of order `start` into four, again and again, where `too_many` says so.

    `count(low, high)` gives the rows of each range, shape (tables, n); `too_many(rows, order)` which cells of an order
    hold too many. Cells of order `deepest` stay as they are. So do empty ones, and are given too.
    """
    kept: list[tuple[Ints, Ints, Ints]] = []
    cell = np.arange(12 << 2 * start, dtype=np.int64)
    for order in range(start, deepest + 1):
        rows = count(*ranges(order, cell))
        split = too_many(rows, order) if order < deepest else np.zeros(cell.size, bool)
        kept.append((np.full(int((~split).sum()), order), cell[~split], rows[:, ~split]))
        cell = (4 * cell[split][:, None] + np.arange(4)).ravel()
        if not cell.size:
            break
    order_, cell = (np.concatenate([k[i] for k in kept]) for i in (0, 1))
    rows = np.concatenate([k[2] for k in kept], axis=1)
    ascending = np.argsort(ranges(order_, cell)[0])
    return Leaves(order_, cell, rows).take(ascending)


def groups(weight: NDArray[np.float64], most: float) -> list[slice]:
    """Neighbouring leaves together, as long as their weight is at most `most`; a heavier leaf stands alone."""
    out: list[slice] = []
    first, total = 0, 0.0
    for i, w in enumerate(weight.tolist()):
        if i > first and total + w > most:
            out.append(slice(first, i))
            first, total = i, 0.0
        total += w
    if weight.size:
        out.append(slice(first, weight.size))
    return out


def border(order: int, cell: int, fine: int) -> Ints:
    """The cells of order `fine` along the inner border of a cell, or the one that holds it where `fine` is wider."""
    if fine <= order:
        return np.array([cell >> 2 * (order - fine)], np.int64)
    side = 1 << (fine - order)
    along = np.arange(side, dtype=np.int64)
    x = _spread(np.concatenate([along, along, np.zeros(side, np.int64), np.full(side, side - 1)]))
    y = _spread(np.concatenate([np.zeros(side, np.int64), np.full(side, side - 1), along, along]))
    return np.unique((cell << 2 * (fine - order)) | x | (y << 1))


def _spread(value: Ints) -> Ints:
    """Each bit of a number below 2^29 to twice its place."""
    out = value.copy()
    for shift, mask in (
        (16, 0x0000FFFF0000FFFF),
        (8, 0x00FF00FF00FF00FF),
        (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333),
        (1, 0x5555555555555555),
    ):
        out = (out | (out << shift)) & mask
    return out


def around(order: int, cell: int, reach_arcsec: float, times: int = 1, steps: int = BORDER_STEPS) -> list[Ranges]:
    """Ranges that, with the cell, hold all within `reach_arcsec` of it, of that again, ...: `times` sets of them.

    The border is followed in cells a little wider than the reach, or `steps` orders below the cell, if that is wider.
    """
    fine = min(sky.order_for(reach_arcsec), order + steps)
    grown = border(order, cell, fine)
    out = []
    for _ in range(times):
        grown = sky.rings(fine, grown, 1)
        out.append(union([ranges(fine, grown)]))
    return out


def union(sets: Sequence[Ranges]) -> Ranges:
    """All ranges of these sets as one set: ascending, disjoint, none that touch."""
    if not sets:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    low, high = (np.concatenate([s[i] for s in sets]) for i in (0, 1))
    by_low = np.argsort(low, kind="stable")
    low, high = low[by_low], np.maximum.accumulate(high[by_low])
    new = np.flatnonzero(np.append(True, low[1:] > high[:-1]))[: low.size]
    return low[new], high[np.append(new[1:] - 1, high.size - 1)[: new.size]]


def inside(where: Ranges, cells: Ints) -> Bools:
    """Whether each order-29 cell lies in one of the ranges."""
    low, high = where
    if not low.size:
        return np.zeros(cells.size, bool)
    at = np.searchsorted(low, cells, side="right") - 1
    return np.asarray((at >= 0) & (cells < high[at]))
