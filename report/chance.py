"""How often an unrelated source lies within the radius: one survey is shifted by more than that, and matched again

What is then found within the radius is chance alone, at the true densities and the true clustering on scales above the
shift. Only sources count whose shifted place both surveys looked at, and round which the pile read everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skycairn.catalogs.survey import WORK_ORDER
from skycairn.match import sky
from skycairn.match.pairs import candidate_pairs
from skycairn.pipeline.partition import MARGIN_ARCSEC
from skycairn.pipeline.task import int64
from skycairn.report.intervals import wilson
from skycairn.report.reading import Cells, Looked, positions
from skycairn.report.surrounded import inner_cells

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

DIRECTIONS = 8
SHIFT_ARCSEC = 30.0
RADII = 6.0
"""The shift is at least so many radii."""
MOST_CELLS = 64
MOST_TRIALS = 2_000_000
"""Shifted sources of one pair of surveys, after which no further work cell is tried."""


@dataclass(frozen=True)
class Chance:
    """What was found of two surveys, a and b, when one was shifted."""

    shift_arcsec: float
    n_a: int = 0
    "trials: sources of a times directions, at places that count"
    hits_a: int = 0
    "of them those with some source of b within the radius"
    n_b: int = 0
    hits_b: int = 0
    pairs: int = 0
    "candidate pairs in the trials of a"
    mutual: int = 0
    "of them nearest on both sides"
    n_cells: int = 0

    def __add__(self, other: Chance) -> Chance:
        counts = ("n_a", "hits_a", "n_b", "hits_b", "pairs", "mutual", "n_cells")
        return Chance(self.shift_arcsec, **{c: getattr(self, c) + getattr(other, c) for c in counts})

    def rate(self, of_a: bool) -> tuple[float, float, float]:
        """Share of sources of a (or b) with an unrelated one within the radius, with its 95 percent interval."""
        k, n = (self.hits_a, self.n_a) if of_a else (self.hits_b, self.n_b)
        return (k / n if n else float("nan"), *wilson(k, n))

    @property
    def pairs_per_source(self) -> float:
        """Chance pairs for each source of a; NaN without a trial."""
        return self.pairs / self.n_a if self.n_a else float("nan")


def shift_for(radius_arcsec: float) -> float:
    """By how much to shift, arcsec: farther than pairs and blends reach, and not beyond what the pile read.

    ValueError for a radius that leaves no room for it.
    """
    shift = max(SHIFT_ARCSEC, RADII * radius_arcsec)
    if shift + radius_arcsec > MARGIN_ARCSEC:
        raise ValueError(
            f"a radius of {radius_arcsec:g} arcsec wants a shift of {shift:g}, and the pile reads sources to "
            f"{MARGIN_ARCSEC:g} arcsec beyond its region only: no chance rate can be measured"
        )
    return shift


def shifted(table: pa.Table, arcsec: float, direction_deg: float) -> pa.Table:
    """The sources moved along great circles, by so much, in this direction (degrees east of north)."""
    ra, dec = positions(table)
    east, north = np.sin(np.radians(direction_deg)), np.cos(np.radians(direction_deg))
    n = ra.size
    to_ra, to_dec = sky.propagate(ra, dec, np.full(n, 1000 * arcsec * east), np.full(n, 1000 * arcsec * north), 1.0)
    rest = table.drop_columns([c for c in ("ra", "dec", "healpix29") if c in table.column_names])
    return rest.append_column("ra", pa.array(to_ra)).append_column("dec", pa.array(to_dec))


def sample(cells: list[int], most: int = MOST_CELLS) -> list[int]:
    """Work cells to try, at most so many, in an order without a pattern that hangs on their numbers alone."""
    return sorted(cells, key=lambda c: (c * 0x9E3779B97F4A7C15 % 2**64, c))[:most]


def of_tables(
    a: pa.Table,
    b: pa.Table,
    home_a: Bools,
    home_b: Bools,
    counts: Callable[[Floats, Floats], Bools],
    radius_arcsec: float,
    shift_arcsec: float,
) -> Chance:
    """Shift a in `DIRECTIONS` directions and match it with b. Only sources of `home_a` and `home_b` are trials.

    `counts` says of positions (ra, dec) whether a source that comes to stand there is one to count.
    """
    out = Chance(shift_arcsec)
    for direction in 360 / DIRECTIONS * np.arange(DIRECTIONS):
        moved = shifted(a, shift_arcsec, float(direction))
        ok_a = home_a.copy()
        ok_a[home_a] = counts(*positions(moved.filter(pa.array(home_a))))
        # to shift a against b is to shift b the other way against a
        ok_b = home_b.copy()
        ok_b[home_b] = counts(*positions(shifted(b.filter(pa.array(home_b)), shift_arcsec, float(direction) + 180)))
        pairs = candidate_pairs(moved, b, radius_arcsec)
        i, j = int64(pairs, "left_row"), int64(pairs, "right_row")
        mutual = np.asarray(pairs.column("mutual").to_numpy(), bool)
        out += Chance(
            shift_arcsec,
            int(ok_a.sum()),
            np.unique(i[ok_a[i]]).size,
            int(ok_b.sum()),
            np.unique(j[ok_b[j]]).size,
            int(ok_a[i].sum()),
            int((ok_a[i] & mutual).sum()),
        )
    return out


@dataclass(frozen=True)
class Near:
    """The sources of a survey in a work cell and so near to it that a shifted one can reach them."""

    table: pa.Table
    home: Bools
    "which of them lie in the work cell"
    inner: Ints
    "cells of FINE_ORDER that these sources surround"


def near(cells: Cells, survey: str, cell: int, reach_arcsec: float) -> tuple[Near | None, int]:
    """And its number of rows; None where there is no source."""
    table = cells.around(survey, cell)
    if table is None:
        return None, 0
    rings = int(np.ceil(reach_arcsec * sky.SAFE_RATIO / sky.cell_size_arcsec(sky.FINE_ORDER)))
    own = (np.int64(cell) << 2 * (sky.FINE_ORDER - WORK_ORDER)) + np.arange(1 << 2 * (sky.FINE_ORDER - WORK_ORDER))
    wanted = sky.rings(sky.FINE_ORDER, own, rings)
    at = int64(table, "healpix29")
    inner = inner_cells(wanted, at)
    table = table.filter(pa.array(np.isin(sky.cells(at, sky.FINE_ORDER), wanted)))
    home = sky.cells(int64(table, "healpix29"), WORK_ORDER) == cell
    return (Near(table, home, inner), table.num_rows) if table.num_rows else (None, 0)


def of_cells(cells: Cells, looked: Looked, a: str, b: str, radius_arcsec: float) -> Chance:
    """The chance of two surveys, from a sample of the work cells that were matched."""
    shift = shift_for(radius_arcsec)
    reach = shift + radius_arcsec
    out = Chance(shift)
    for cell in sample(cells.matched()):
        of_a, of_b = (cells.remembered(f"{s} near {reach}", cell, partial(near, cells, s, cell, reach)) for s in (a, b))
        if of_a is None or of_b is None:
            continue
        inner = np.intersect1d(of_a.inner, of_b.inner)
        if not inner.size:
            continue

        def counts(ra: Floats, dec: Floats, inner: Ints = inner) -> Bools:
            saw = np.isin(sky.cells(sky.healpix29(ra, dec), sky.FINE_ORDER), inner)
            saw &= looked.readable(ra, dec, radius_arcsec)
            return np.asarray(saw & looked.saw(a, ra, dec) & looked.saw(b, ra, dec))

        found = of_tables(of_a.table, of_b.table, of_a.home, of_b.home, counts, radius_arcsec, shift)
        out += replace(found, n_cells=1)
        if out.n_a + out.n_b > MOST_TRIALS:
            break
    return out


def poisson_sky(density_per_arcsec2: float, radius_arcsec: float) -> float:
    """Chance of one or more within the radius on a sky without clustering: 1 - exp(-pi r^2 n)."""
    return float(-np.expm1(-np.pi * radius_arcsec**2 * density_per_arcsec2))
