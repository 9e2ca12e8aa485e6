"""All pairs of positions within a radius, of two tables that are sorted by HEALPix cell: a compiled merge join.

The order is chosen so that a circle of the radius reaches no farther than a child cell's own and 8 neighbours, which
lie in four cells at most. The larger table gets an index of buckets, as many as it has rows; each row of the smaller
looks up its four cells there. Only what lies in them and in the circle's box of right ascension and declination costs
any trigonometry.
"""

from __future__ import annotations

import math

import healpy
import numpy as np
from numba import njit
from numpy.typing import NDArray

from skycairn.match import sky

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

UAS = 3600e6
"""Micro-arcseconds in a degree."""
FIRST_CAPACITY = 1 << 16


def near(
    a_cell: Ints, a_ra: Floats, a_dec: Floats, b_cell: Ints, b_ra: Floats, b_dec: Floats, radius_arcsec: float
) -> tuple[Ints, Ints, Ints]:
    """Rows of a, rows of b, and their separation in integer micro-arcseconds, sorted by (row of a, row of b).

    `*_cell` are order-29 NESTED cells of the positions, ascending; positions are degrees in float64, right ascension
    from 0 to 360. The input is trusted: rows out of order, or cells of other positions, lose pairs.
    """
    none = np.zeros(0, np.int64)
    if not a_cell.size or not b_cell.size:
        return none, none, none
    swap = a_cell.size > b_cell.size
    few, many = (a_cell, a_ra, a_dec), (b_cell, b_ra, b_dec)
    if swap:
        few, many = many, few
    order = max(sky.order_for(radius_arcsec), 1) - 1
    outer, around = _across_faces(few[0], order)
    shift, starts = _buckets(many[0])
    parts = []
    row, capacity = 0, FIRST_CAPACITY
    while row < few[0].size:
        i, j, apart = (np.empty(capacity, np.int64) for _ in range(3))
        n, at = _join(*few, *many, shift, starts, order, radius_arcsec / 3600, outer, around, row, i, j, apart)
        parts.append((i[:n], j[:n], apart[:n]))
        # a row that alone has more partners than there is room
        capacity = capacity * 2 if at == row else max(capacity, min(few[0].size, 1 << 22))
        row = at
    i, j, apart = (np.concatenate(part) for part in zip(*parts, strict=True))
    if swap:
        i, j = j, i
        in_order = np.argsort(i, kind="stable")
        i, j, apart = i[in_order], j[in_order], apart[in_order]
    return i, j, apart


def separations(a_ra: Floats, a_dec: Floats, b_ra: Floats, b_dec: Floats) -> Ints:
    """Great-circle distance of positions in degrees, row by row, in integer micro-arcseconds."""
    out = np.empty(a_ra.size, np.int64)
    _separations(a_ra, a_dec, b_ra, b_dec, out)
    return out


def _across_faces(cell: Ints, order: int) -> tuple[Ints, Ints]:
    """Rows whose four cells lie on more than one of the twelve faces, and these cells, ascending, -1 for none."""
    outer = np.flatnonzero(_on_border(cell, order))
    child = sky.cells(cell[outer], order + 1)
    around = healpy.get_all_neighbours(1 << (order + 1), child, nest=True).T.reshape(-1, 8)
    cells = np.sort(np.where(around >= 0, around, child[:, None]) >> 2, axis=1)
    # eight are enough: three neighbours of a child lie in its own parent, so that some cells are there twice
    cells[:, 1:][cells[:, 1:] == cells[:, :-1]] = -1
    return outer, np.sort(cells, axis=1)


@njit(cache=True, nogil=True)
def _on_border(cell: Ints, order: int) -> NDArray[np.bool_]:
    shift = 2 * (29 - order - 1)
    bits = (1 << 2 * order) - 1
    x_bits, y_bits = 0x5555555555555555 & bits, 0x2AAAAAAAAAAAAAAA & bits
    out = np.empty(cell.size, np.bool_)
    for row in range(cell.size):
        child = cell[row] >> shift
        parent = child >> 2
        x, y = parent & x_bits, parent & y_bits
        out[row] = (x == x_bits if child & 1 else x == 0) or (y == y_bits if child & 2 else y == 0)
    return out


def _buckets(cell: Ints) -> tuple[int, Ints]:
    """How far to shift a cell, less the first, for its bucket; and where each bucket's rows start."""
    span = int(cell[-1]) - int(cell[0])
    shift = max(0, span.bit_length() - max(4, cell.size.bit_length()))
    starts = np.empty((span >> shift) + 2, np.int64)
    _fill_buckets(cell, shift, starts)
    return shift, starts


@njit(cache=True, nogil=True)
def _fill_buckets(cell: Ints, shift: int, starts: Ints) -> None:
    bucket = 0
    first = cell[0]
    for row in range(cell.size):
        own = (cell[row] - first) >> shift
        while bucket <= own:
            starts[bucket] = row
            bucket += 1
    while bucket < starts.size:
        starts[bucket] = cell.size
        bucket += 1


@njit(cache=True, nogil=True)
def _angle_uas(ra: float, dec: float, ra2: float, dec2: float) -> float:
    """By the sine and the cosine of half the angle, exact to rounding at all angles; symmetric in the two."""
    lat, lat2, turn = math.radians(dec), math.radians(dec2), math.radians(ra - ra2) / 2
    product = math.cos(lat) * math.cos(lat2)
    sine = math.sin(math.radians(dec - dec2) / 2) ** 2 + product * math.sin(turn) ** 2
    cosine = math.sin((lat + lat2) / 2) ** 2 + product * math.cos(turn) ** 2
    return math.degrees(2 * math.atan2(math.sqrt(sine), math.sqrt(cosine))) * UAS


@njit(cache=True, nogil=True)
def _separations(a_ra: Floats, a_dec: Floats, b_ra: Floats, b_dec: Floats, out: Ints) -> None:
    for row in range(out.size):
        out[row] = round(_angle_uas(a_ra[row], a_dec[row], b_ra[row], b_dec[row]))


@njit(cache=True, nogil=True)
def _join(
    few_cell: Ints,
    few_ra: Floats,
    few_dec: Floats,
    many_cell: Ints,
    many_ra: Floats,
    many_dec: Floats,
    shift: int,
    starts: Ints,
    order: int,
    radius: float,
    outer: Ints,
    around: Ints,
    begin: int,
    out_i: Ints,
    out_j: Ints,
    out_apart: Ints,
) -> tuple[int, int]:
    """Fill the three outputs from row `begin` on; how much was filled, and the first row that did not fit."""
    to_child = 2 * (29 - order - 1)
    to_cell = to_child + 2
    bits = (1 << 2 * order) - 1
    x_bits, y_bits = 0x5555555555555555 & bits, 0x2AAAAAAAAAAAAAAA & bits
    limit = round(radius * UAS)
    # a little wider, so that what rounds into the radius is not left out
    reach = radius + 1e-9
    first, last = many_cell[0], many_cell[-1]
    wanted = np.empty(8, np.int64)
    next_outer = np.searchsorted(outer, begin)
    n = 0
    for row in range(begin, few_cell.size):
        before = n
        if next_outer < outer.size and outer[next_outer] == row:
            n_wanted = 8
            for k in range(8):
                wanted[k] = around[next_outer, k]
            next_outer += 1
        else:
            child = few_cell[row] >> to_child
            parent = child >> 2
            face, x, y = parent & ~bits, parent & x_bits, parent & y_bits
            x_next = ((x | y_bits) + 1 if child & 1 else x - 1) & x_bits
            y_next = ((y | x_bits) + 1 if child & 2 else y - 2) & y_bits
            n_wanted = 4
            wanted[0], wanted[1] = parent, face | x_next | y
            wanted[2], wanted[3] = face | x | y_next, face | x_next | y_next
            # ascending, so that the partners ascend
            for k in range(1, 4):
                cell, m = wanted[k], k - 1
                while m >= 0 and wanted[m] > cell:
                    wanted[m + 1] = wanted[m]
                    m -= 1
                wanted[m + 1] = cell
        ra, dec = few_ra[row], few_dec[row]
        widest = -1.0
        for k in range(n_wanted):
            low = wanted[k] << to_cell
            high = low + (1 << to_cell)
            if wanted[k] < 0 or high <= first or low > last:
                continue
            bucket = (max(low, first) - first) >> shift
            at, end = starts[bucket], starts[bucket + 1]
            # the first row of the cell: few rows are walked, many are halved
            while end - at > 16:
                middle = (at + end) >> 1
                if many_cell[middle] < low:
                    at = middle + 1
                else:
                    end = middle
            while at < many_cell.size and many_cell[at] < low:
                at += 1
            while at < many_cell.size and many_cell[at] < high:
                if abs(many_dec[at] - dec) <= reach:
                    if widest < 0:
                        # how far a circle of the radius reaches in right ascension
                        widest = 360.0
                        if abs(dec) + reach < 89.9:
                            sine = math.sin(math.radians(reach)) / math.cos(math.radians(dec))
                            widest = math.degrees(math.asin(sine)) * (1 + 1e-9)
                    turn = abs(many_ra[at] - ra)
                    if min(turn, 360.0 - turn) <= widest:
                        apart = round(_angle_uas(ra, dec, many_ra[at], many_dec[at]))
                        if apart <= limit:
                            if n == out_i.size:
                                return before, row
                            out_i[n], out_j[n], out_apart[n] = row, at, apart
                            n += 1
                at += 1
    return n, few_cell.size
