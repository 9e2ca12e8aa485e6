"""How sure a pair is: the Bayesian posterior over the candidates of a source.

Of a source with candidates k, each at separation s_k with the combined errors of both positions, one at most is the
same thing. Against the hypothesis that none is, that it is k weighs

    w_k = c / (1 - c) * L_k / n * r_k
    L_k = (1 - e) exp(-sigmas_k^2 / 2) / (2 pi sigma_ra sigma_dec) + e / (pi R^2)

where e is the share of true pairs that lie farther apart than their errors say (blends, unknown motions), spread over
the search radius R; c is the prior probability that the source has a counterpart in the other table, n the surface
density of the other table's sources, r_k the ratio of magnitude distributions (1 without a magnitude prior). Its
posterior is w_k / (1 + sum of w over the source's candidates) (Budavari & Szalay 2008, ApJ 679, 301; with c and r as
in NWAY: Salvato et al. 2018, MNRAS 473, 4937). A pair has two posteriors, one among the candidates of each side.

The two priors are one number: `found`, the share of the locally sparser table's sources that have a counterpart in the
other. With densities n and m, found * min(n, m) things a square arcsecond are in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skycairn.match import sky

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

FOUND = 0.9
OUTLIERS = 0.02
MOST_STEPS = 300
DENSITY_ORDER = 6
"""Densities are those of the left source's cell of this order, the work cell."""
OCCUPIED_ORDERS = (8, 9, 10, 11)
"""A cell is as large as those of its cells of one of these orders (13.7 to 1.7 arcmin) that hold any source."""
FULL = 8
"""Of these, the deepest whose occupied cells hold so many sources each: few would be empty by chance."""


def densities(healpix29: Ints) -> dict[int, float]:
    """Sources a square arcsecond of what is occupied, by order-6 cell."""
    cell, count = np.unique(sky.cells(healpix29, DENSITY_ORDER), return_counts=True)
    out = np.zeros(cell.size)
    for order in OCCUPIED_ORDERS:
        occupied = np.unique(sky.cells(healpix29, order)) >> 2 * (order - DENSITY_ORDER)
        _, n_occupied = np.unique(occupied, return_counts=True)
        good = (count >= FULL * n_occupied) | (order == OCCUPIED_ORDERS[0])
        out[good] = (count / (n_occupied * sky.cell_size_arcsec(order) ** 2))[good]
    return dict(zip(cell.tolist(), out.tolist(), strict=True))


@dataclass(frozen=True)
class Prior:
    """What is known of two tables before any of their positions are compared."""

    left: Mapping[int, float]
    "sources of the left table a square arcsecond, by order-6 cell"
    right: Mapping[int, float]
    found: float | None = FOUND
    "share of the sparser table's sources that have a counterpart in the other; None = to be estimated"
    outliers: float | None = OUTLIERS
    "share of true pairs whose separation has nothing to do with their errors; None = to be estimated"

    def __post_init__(self) -> None:
        if self.found is not None and not 0 < self.found < 1:
            raise ValueError(f"the share with a counterpart is {self.found}; wanted above 0 and below 1")
        if self.outliers is not None and not 0 <= self.outliers < 1:
            raise ValueError(f"the share of outliers is {self.outliers}; wanted 0 or more, and below 1")

    @classmethod
    def of(
        cls,
        left_healpix29: Ints,
        right_healpix29: Ints,
        found: float | None = FOUND,
        outliers: float | None = OUTLIERS,
    ) -> Prior:
        """With densities counted in the tables themselves."""
        return cls(densities(left_healpix29), densities(right_healpix29), found, outliers)

    def of_pairs(self, left_healpix29: Ints) -> tuple[Floats, Floats, Floats]:
        """Of each pair, by its left source: the densities left and right, and the lower of the two.

        Where the right table has no density in the left source's cell, a border of the sky lies between them: one
        source an occupied cell is assumed.
        """
        cell, which = np.unique(sky.cells(left_healpix29, DENSITY_ORDER), return_inverse=True)
        least = sky.cell_size_arcsec(OCCUPIED_ORDERS[0]) ** -2
        left, right = (
            np.array([of.get(c, least) for c in cell.tolist()], np.float64)[which] for of in (self.left, self.right)
        )
        return left, right, np.minimum(left, right)


def likelihoods(sigmas: Floats, ra_error: Floats, dec_error: Floats, radius_arcsec: float, outliers: float) -> Floats:
    """Of true pairs' separations, a square arcsecond; errors are those of both sources together, arcsec."""
    by_errors = np.exp(-(sigmas**2) / 2) / (2 * np.pi * ra_error * dec_error)
    return np.asarray((1 - outliers) * by_errors + outliers / (np.pi * radius_arcsec**2))


def posteriors(
    left_row: Ints,
    right_row: Ints,
    likelihood: Floats,
    left_density: Floats,
    right_density: Floats,
    common_density: Floats,
    ratio: Floats | float = 1.0,
) -> tuple[Floats, Floats]:
    """Posterior of each pair among the left source's candidates, and among the right one's.

    `likelihood` is a square arcsecond's, NaN where an error is not known: such a pair has no posterior, and none of
    the others counts it. `common_density` is that of things that are in both tables, below both others. `ratio` is
    of the right source's magnitude: how much more often counterparts have it than sources at large.
    """
    known = np.isfinite(likelihood)
    value = np.where(known, likelihood, 0.0) * ratio
    out = []
    for row, own, other in ((left_row, left_density, right_density), (right_row, right_density, left_density)):
        # with the densities of this pair's own place for all rivals, wherever they lie
        has = common_density / own
        weight = has / (1 - has) / other
        total = _sum_by(row, value)
        with np.errstate(over="ignore", invalid="ignore"):
            out.append(np.where(known, weight * value / (1 + weight * total), np.nan))
    return out[0], out[1]


def believed(
    left_row: Ints, right_row: Ints, of_left: Floats, of_right: Floats, left_rank: Ints, right_rank: Ints
) -> NDArray[np.bool_]:
    """Which pairs to take: the likeliest candidates on both sides, of sources that have a counterpart rather than not.

    A source has one where the posteriors of its candidates add up to more than one half (p_any and p_i of NWAY). To ask
    for one half of a single pair would lose all of a source whose counterpart is listed twice. The nearer of two that
    are as likely; never a pair without a posterior.
    """
    out = np.isfinite(of_left) & np.isfinite(of_right)
    for row, said, rank in ((left_row, of_left, left_rank), (right_row, of_right, right_rank)):
        # in whole billionths, which add up to the same in any order
        said = np.rint(np.nan_to_num(said) * 1e9).astype(np.int64)
        order = np.lexsort((rank, -said, row))
        best = np.zeros(row.size, bool)
        best[order] = np.append(True, row[order][1:] != row[order][:-1])[: row.size]
        total = np.zeros(row.max(initial=-1) + 1, np.int64)
        np.add.at(total, row, said)
        out &= best & (total[row] > 500_000_000)
    return out


def estimate_shares(
    left_row: Ints,
    right_row: Ints,
    by_errors: Floats,
    radius_arcsec: float,
    prior: Prior,
    left_healpix29: Ints,
    right_healpix29: Ints,
    errors_known: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None,
) -> tuple[float, float]:
    """`found` and `outliers`: as given by the prior, those that are None estimated so that they agree with themselves.

    As many sources have a counterpart, and as many of these lie anywhere within the radius, as the posteriors add up
    to, by expectation and maximization. `by_errors` are `likelihoods` without outliers. The sky that both tables
    occupy (cells of order 8) alone counts, of it the rows whose errors are known, and the posteriors of the table with
    fewer sources there: most of its sources have a counterpart, so that few chance neighbours pass for outliers. What
    tells these two apart is the number of neighbours that the density lets expect: a density wrong by a tenth makes a
    tenth of the chance neighbours outliers, or hides as many. Kept within 0.001 and 0.999 (`found`), 0.0001 and 0.5
    (`outliers`): no table says that a share is exactly none or all.
    """
    found = FOUND if prior.found is None else prior.found
    outliers = OUTLIERS if prior.outliers is None else prior.outliers
    order = OCCUPIED_ORDERS[0]
    both = np.intersect1d(sky.cells(left_healpix29, order), sky.cells(right_healpix29, order))
    cell = np.unique(both >> 2 * (order - DENSITY_ORDER))
    counts = []
    for side, healpix29 in enumerate((left_healpix29, right_healpix29)):
        knows = True if errors_known is None else errors_known[side]
        inside = healpix29[knows & np.isin(sky.cells(healpix29, order), both)]
        counts.append(np.bincount(np.searchsorted(cell, sky.cells(inside, DENSITY_ORDER)), minlength=cell.size))
    n_sparser = np.minimum(*counts).sum()
    known = np.flatnonzero(np.isfinite(by_errors))
    if not n_sparser or not known.size:
        return found, outliers
    left, right, lower = prior.of_pairs(left_healpix29[left_row[known]])
    row, own, other = (left_row, left, right) if counts[0].sum() <= counts[1].sum() else (right_row, right, left)
    # in the order of likelihoods, which no share of outliers changes
    at = np.lexsort((by_errors[known], row[known]))
    row, own, other, lower, by_errors = row[known][at], own[at], other[at], lower[at], by_errors[known][at]
    start = np.flatnonzero(np.append(True, row[1:] != row[:-1]))
    size = np.diff(np.append(start, row.size))
    for _ in range(MOST_STEPS):
        before = found, outliers
        anywhere = outliers / (np.pi * radius_arcsec**2)
        likelihood = (1 - outliers) * by_errors + anywhere
        has = found * lower / own
        weight = has / (1 - has) / other
        of_row = weight * likelihood / (1 + weight * np.repeat(np.add.reduceat(likelihood, start), size))
        expected = of_row.sum()
        if prior.found is None:
            found = float(np.clip(expected / n_sparser, 0.001, 0.999))
        if prior.outliers is None and expected:
            outliers = float(np.clip((of_row * anywhere / likelihood).sum() / expected, 1e-4, 0.5))
        if max(abs(found - before[0]), abs(outliers - before[1])) < 1e-6:
            break
    return found, outliers


def magnitude_ratio(magnitude: Floats, is_counterpart: NDArray[np.bool_], n_bins: int = 20) -> Floats:
    """How much more often counterparts have each source's magnitude than sources at large do, learnt from safe ones.

    Bins hold as many counterparts each (NWAY's `auto` prior); one is added to each bin's count in both, so that no bin
    says never. 1 where the magnitude is not known. ValueError with fewer than ten counterparts a bin.
    """
    known = np.isfinite(magnitude)
    safe = magnitude[known & is_counterpart]
    if safe.size < 10 * n_bins:
        raise ValueError(
            f"{safe.size} safe counterparts have a magnitude; wanted {10 * n_bins} to learn a magnitude prior from: "
            "match without one, or more of the sky at once"
        )
    edges = np.unique(np.quantile(safe, np.linspace(0, 1, n_bins + 1)[1:-1]))
    bin_of = np.searchsorted(edges, magnitude, side="right")
    n = edges.size + 1
    of_safe = np.bincount(bin_of[known & is_counterpart], minlength=n) + 1.0
    of_all = np.bincount(bin_of[known], minlength=n) + 1.0
    ratio = (of_safe / of_safe.sum()) / (of_all / of_all.sum())
    return np.where(known, ratio[np.minimum(bin_of, n - 1)], 1.0)


def _sum_by(row: Ints, value: Floats) -> Floats:
    """Sum of the values of each row, added from the smallest up, so that it hangs on no order of pairs."""
    order = np.lexsort((value, row))
    first = np.append(True, row[order][1:] != row[order][:-1]) if row.size else np.zeros(0, bool)
    sums = np.add.reduceat(value[order], np.flatnonzero(first)) if row.size else value
    out = np.empty(row.size)
    out[order] = sums[np.cumsum(first) - 1]
    return out
