"""How sure a pair is: the Bayesian posterior over the candidates of a source.

Of a source with candidates k, each at separation s_k with the combined errors of both positions, one at most is the
same thing. Against the hypothesis that none is, that it is k weighs

    w_k = c / (1 - c) * L_k / n * r_k,    L_k = exp(-sigmas_k^2 / 2) / (2 pi sigma_ra sigma_dec)

where c is the prior probability that the source has a counterpart in the other table, n the surface density of the
other table's sources, r_k the ratio of magnitude distributions (1 without a magnitude prior). Its posterior is
w_k / (1 + sum of w over the source's candidates) (Budavari & Szalay 2008, ApJ 679, 301; with c and r as in NWAY:
Salvato et al. 2018, MNRAS 473, 4937). A pair has two posteriors, one among the candidates of each side.

The two priors are one number: `found`, the share of the locally sparser table's sources that have a counterpart in the
other. With densities n and m, found * min(n, m) things a square arcsecond are in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skycairn.pipeline import sky

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

FOUND = 0.9
DENSITY_ORDER = 6
"""Densities are those of the left source's cell of this order, the work cell."""
OCCUPIED_ORDER = 8
"""A cell is as large as the cells of this order (13.7 arcmin) that hold any source of the table."""


def densities(healpix29: Ints) -> dict[int, float]:
    """Sources a square arcsecond of what is occupied, by order-6 cell."""
    cell, count = np.unique(sky.cells(healpix29, DENSITY_ORDER), return_counts=True)
    occupied = np.unique(sky.cells(healpix29, OCCUPIED_ORDER)) >> 2 * (OCCUPIED_ORDER - DENSITY_ORDER)
    _, n_occupied = np.unique(occupied, return_counts=True)
    area = n_occupied * sky.cell_size_arcsec(OCCUPIED_ORDER) ** 2
    return dict(zip(cell.tolist(), (count / area).tolist(), strict=True))


@dataclass(frozen=True)
class Prior:
    """What is known of two tables before any of their positions are compared."""

    left: Mapping[int, float]
    "sources of the left table a square arcsecond, by order-6 cell"
    right: Mapping[int, float]
    found: float = FOUND
    "share of the sparser table's sources that have a counterpart in the other"

    def __post_init__(self) -> None:
        if not 0 < self.found < 1:
            raise ValueError(f"the share with a counterpart is {self.found}; wanted above 0 and below 1")

    @classmethod
    def of(cls, left_healpix29: Ints, right_healpix29: Ints, found: float = FOUND) -> Prior:
        """With densities counted in the tables themselves."""
        return cls(densities(left_healpix29), densities(right_healpix29), found)

    def of_pairs(self, left_healpix29: Ints) -> tuple[Floats, Floats, Floats]:
        """Of each pair, by its left source: the densities left and right, and that of things that are in both.

        Where the right table has no density in the left source's cell, a border of the sky lies between them: one
        source an occupied cell is assumed.
        """
        cell, which = np.unique(sky.cells(left_healpix29, DENSITY_ORDER), return_inverse=True)
        least = sky.cell_size_arcsec(OCCUPIED_ORDER) ** -2
        left, right = (
            np.array([of.get(c, least) for c in cell.tolist()], np.float64)[which] for of in (self.left, self.right)
        )
        return left, right, self.found * np.minimum(left, right)


def posteriors(
    left_row: Ints,
    right_row: Ints,
    likelihood: Floats,
    left_density: Floats,
    right_density: Floats,
    common_density: Floats,
    ratio: Floats | None = None,
) -> tuple[Floats, Floats]:
    """Posterior of each pair among the left source's candidates, and among the right one's.

    `likelihood` is a square arcsecond's, NaN where an error is not known: such a pair has no posterior, and none of
    the others counts it. `ratio` is of the right source's magnitude: how much more often counterparts have it than
    sources at large.
    """
    known = np.isfinite(likelihood)
    value = np.where(known, likelihood, 0.0) * (1.0 if ratio is None else ratio)
    out = []
    for row, own, other in ((left_row, left_density, right_density), (right_row, right_density, left_density)):
        # with the densities of this pair's own place for all rivals, wherever they lie
        has = common_density / own
        weight = has / (1 - has) / other
        total = _sum_by(row, value)
        with np.errstate(over="ignore", invalid="ignore"):
            out.append(np.where(known, weight * value / (1 + weight * total), np.nan))
    return out[0], out[1]


def _sum_by(row: Ints, value: Floats) -> Floats:
    """Sum of the values of each row, added from the smallest up, so that it hangs on no order of pairs."""
    order = np.lexsort((value, row))
    first = np.append(True, row[order][1:] != row[order][:-1]) if row.size else np.zeros(0, bool)
    sums = np.add.reduceat(value[order], np.flatnonzero(first)) if row.size else value
    out = np.empty(row.size)
    out[order] = sums[np.cumsum(first) - 1]
    return out
