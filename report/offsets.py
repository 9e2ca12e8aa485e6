"""Astrometric offsets of one survey against another: cell by cell, the median of accepted pairs at closest approach"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skycairn.match.pairs import Positions, closest_approach
from skycairn.report.intervals import sigmas_of
from skycairn.report.rayleigh import combined_sigma
from skycairn.report.separations import FREE_SIGMAS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MAS = 180 / np.pi * 3.6e6
"""Milliarcseconds in a radian."""
MEDIAN_ERROR = float(np.sqrt(np.pi / 2))
"""Standard error of a median over that of a mean, of many normal values."""
MAD_SIGMA = 1.4826022185056018
FEWEST = 20
"""Pairs without which a cell's offset is drawn, and not judged."""
LEAST = 5
"""Pairs without which a cell has no offset: their scatter says too little of its error."""
FLOOR_MAS = 0.1
"""Added in quadrature to the error of a median: positions that were copied have no scatter to tell it."""
WORTH_MAS = 2.0
WORTH_SIGMAS = 5.0
"""A warning is given of offsets larger than both."""


def offsets_mas(a: Positions, b: Positions) -> Floats:
    """From a to b of each row, at their closest approach: east (RA times cos(Dec)) and north, mas, shape (n, 2)."""
    at, other = closest_approach(a, b)
    lon, lat = np.arctan2(at[1], at[0]), np.arctan2(at[2], np.hypot(at[0], at[1]))
    east = np.stack([-np.sin(lon), np.cos(lon), np.zeros_like(lon)])
    north = np.stack([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)])
    d = other - at
    return np.stack([(d * east).sum(axis=0), (d * north).sum(axis=0)], axis=1) * MAS


def track_mas(a: Positions, b: Positions) -> Floats:
    """How far the two of each row move against each other in the time in which their closest approach is sought, mas.

    As far as this a separation along the motion is not seen, since the approach may be at any of these times.
    """
    moving = [np.where(s.moving, [s.pmra, s.pmdec], 0.0) for s in (a, b)]
    (a_low, a_high), (b_low, b_high) = a.interval(), b.interval()
    both = a.moving & b.moving
    low = np.where(both, np.minimum(a_low, b_low), np.where(a.moving, b_low, a_low))
    high = np.where(both, np.maximum(a_high, b_high), np.where(a.moving, b_high, a_high))
    years = np.where(a.moving | b.moving, high - low, 0.0)
    return np.nan_to_num(np.hypot(*(moving[0] - moving[1])) * years)


def is_free(track: Floats, errors: Floats) -> Bools:
    """Pairs whose closest approach is so free along their track (`track_mas`) that it would hide an offset.

    `errors` (n, 4) as for `Separations.add`, arcsec. Tracks may be as long as FREE_SIGMAS of them, and WORTH_MAS at
    most: where an error is not known, that alone. Of an offset along a track half of it is hidden on average.
    """
    known = (errors > 0).all(axis=1)
    limit = np.minimum(WORTH_MAS, FREE_SIGMAS * 1000 * combined_sigma(*errors.T))
    return np.asarray(track > np.where(known, limit, WORTH_MAS))


@dataclass(frozen=True)
class CellOffset:
    """The offset of two surveys in one cell: medians and their standard errors, mas."""

    cell: int
    n: int
    east: float
    north: float
    east_error: float
    north_error: float

    @property
    def size(self) -> float:
        """Length of the offset, mas."""
        return float(np.hypot(self.east, self.north))

    @property
    def chi_square(self) -> float:
        """Against no offset; two degrees of freedom."""
        return (self.east / self.east_error) ** 2 + (self.north / self.north_error) ** 2

    def sigmas(self, trials: int = 1) -> float:
        """How significant, among so many cells that were looked at."""
        return sigmas_of(self.chi_square, trials)


def by_cell(cells: Ints, offsets: Floats) -> list[CellOffset]:
    """Median offset of the pairs of each cell that has LEAST of them; errors from median absolute deviations."""
    if not cells.size:
        return []
    order = np.argsort(cells, kind="stable")
    numbers, start = np.unique(cells[order], return_index=True)
    out = []
    for cell, some in zip(numbers.tolist(), np.split(offsets[order], start[1:]), strict=True):
        if len(some) < LEAST:
            continue
        middle = np.median(some, axis=0)
        scatter = MAD_SIGMA * np.median(np.abs(some - middle), axis=0)
        error = np.hypot(MEDIAN_ERROR * scatter / np.sqrt(len(some)), FLOOR_MAS)
        out.append(CellOffset(cell, len(some), *middle.tolist(), *error.tolist()))
    return out


def coarser(found: Iterable[CellOffset], doublings: int) -> list[CellOffset]:
    """The same in cells so many orders coarser: means weighted by the number of pairs."""
    if not doublings:
        return list(found)
    groups: dict[int, list[CellOffset]] = {}
    for x in found:
        groups.setdefault(x.cell >> 2 * doublings, []).append(x)
    out = []
    for cell, some in sorted(groups.items()):
        out.append(mean_of(some, cell))
    return out


def mean_of(some: Sequence[CellOffset], cell: int = 0) -> CellOffset:
    """The mean of several cells, weighted by their pairs: errors of cells with few are too uncertain for weights."""
    n = np.array([x.n for x in some])[:, None] / sum(x.n for x in some)
    mean = (n * [[x.east, x.north] for x in some]).sum(axis=0)
    error = np.sqrt(((n * [[x.east_error, x.north_error] for x in some]) ** 2).sum(axis=0))
    return CellOffset(cell, sum(x.n for x in some), *mean.tolist(), *error.tolist())


def notable(found: Iterable[CellOffset]) -> list[tuple[CellOffset, float]]:
    """Cells whose offset is worth a warning, with how many sigmas it is among the cells judged; largest first."""
    judged = [x for x in found if x.n >= FEWEST]
    told = [(x, x.sigmas(len(judged))) for x in judged if x.size > WORTH_MAS]
    return sorted((t for t in told if t[1] > WORTH_SIGMAS), key=lambda t: -t[0].size)
