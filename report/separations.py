"""Separations of the pairs of two surveys, counted: candidates, mutual, accepted, and what position errors expect"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skycairn.pipeline.task import float64, int64
from skycairn.report.rayleigh import MEDIAN, combined_sigma, expected_counts, log_edges, quantile_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

LEAST_MAS = 0.1
PER_DECADE = 40
DRAWN_PER_DECADE = 10
SIGMA_EDGES = np.linspace(0.0, 10.0, 1001)
"""Of the normalised separation; more than the last is counted apart."""
FREE_SIGMAS = 0.2
"""A track as long as this leaves the closest approach so free that separations say little of the errors."""
TIED = {"legacysurvey": ("gaia", "reference")}
"""By survey: kinds of epoch of those rows whose position is not measured but Gaia's own."""


@dataclass
class Separations:
    """Counts of one pair of surveys, a and b; added to cell by cell. Separations in mas."""

    radius_mas: float
    edges: Floats = field(init=False)
    candidates: Ints = field(init=False)
    mutual: Ints = field(init=False)
    accepted: Ints = field(init=False)
    measured: Ints = field(init=False)
    "accepted pairs of two measured positions (neither `tied` nor `free`) whose errors are known"
    expected: Floats = field(init=False)
    "what those errors expect of `measured`"
    normalised: Ints = field(init=False)
    "of `measured`, in bins of SIGMA_EDGES"
    n_candidates: int = 0
    n_mutual: int = 0
    n_accepted: int = 0
    n_conflicts: int = 0
    n_tied: int = 0
    "accepted pairs of which one position is the other survey's own"
    n_free: int = 0
    "accepted pairs, errors known, whose closest approach may be anywhere on a track that is long beside the errors"
    n_measured: int = 0
    beyond: int = 0
    "of `measured`: farther than the last of SIGMA_EDGES"

    def __post_init__(self) -> None:
        self.edges = log_edges(self.radius_mas, LEAST_MAS, PER_DECADE)
        n = len(self.edges) - 1
        self.candidates, self.mutual, self.accepted, self.measured = (np.zeros(n, np.int64) for _ in range(4))
        self.expected = np.zeros(n)
        self.normalised = np.zeros(len(SIGMA_EDGES) - 1, np.int64)

    def add(
        self,
        pairs: pa.Table,
        tied: Bools,
        errors: Floats,
        offsets_mas: Floats,
        track_mas: Floats,
        sigmas: Floats | None = None,
    ) -> None:
        """Count pairs: a table with separation_uas, mutual, accepted, conflict, and a row each of

        `tied`; `errors` (n, 4): one-sigma ra_error, dec_error of a, then of b, arcsec, NaN where not known;
        `offsets_mas` (n, 2): east and north, from a to b; `track_mas`: see `offsets.track_mas`; `sigmas`: normalised
        separations that the pile holds, if any.
        """
        separation = int64(pairs, "separation_uas") / 1000
        mutual, accepted, conflict = (_bools(pairs, c) for c in ("mutual", "accepted", "conflict"))
        for into, chosen in ((self.candidates, np.ones_like(mutual)), (self.mutual, mutual), (self.accepted, accepted)):
            into += self._binned(separation[chosen])
        self.n_candidates += pairs.num_rows
        self.n_mutual += int(mutual.sum())
        self.n_accepted += int(accepted.sum())
        self.n_conflicts += int(conflict.sum())
        self.n_tied += int((accepted & tied).sum())
        measured = accepted & ~tied & np.isfinite(errors).all(axis=1) & (errors > 0).all(axis=1)
        free = measured & (track_mas > FREE_SIGMAS * 1000 * combined_sigma(*errors.T))
        self.n_free += int(free.sum())
        measured &= ~free
        errors, of = errors[measured] * 1000, separation[measured]
        self.n_measured += int(measured.sum())
        self.measured += self._binned(of)
        self.expected += expected_counts(combined_sigma(*errors.T), self.edges, self.radius_mas)
        if sigmas is None:
            east, north = offsets_mas[measured].T
            variance = errors[:, :2] ** 2 + errors[:, 2:] ** 2
            sigmas = np.sqrt(east**2 / variance[:, 0] + north**2 / variance[:, 1])
        else:
            sigmas = sigmas[measured]
            sigmas = sigmas[np.isfinite(sigmas)]
        self.normalised += np.histogram(sigmas, SIGMA_EDGES)[0]
        self.beyond += int((sigmas > SIGMA_EDGES[-1]).sum())

    def _binned(self, separation: Floats) -> Ints:
        # rounding may put a pair a hair beyond the radius
        return np.histogram(np.minimum(separation, self.radius_mas), self.edges)[0]

    def median_mas(self) -> float:
        """Of accepted pairs; NaN where it is below LEAST_MAS, or there is none."""
        return quantile_of(self.accepted, self.edges, self.n_accepted - int(self.accepted.sum()), 0.5)

    def error_scale(self) -> tuple[float, float]:
        """By how much the errors are too small: median normalised separation over Rayleigh's, and its standard error.

        The error is 1 / (2 f(m) sqrt(n)) with Rayleigh's density f at its median; NaN where no pair has errors.
        """
        n = int(self.normalised.sum()) + self.beyond
        if not n or self.beyond * 2 > n:
            return float("nan"), float("nan")
        scale = quantile_of(self.normalised, SIGMA_EDGES, 0, 0.5) / MEDIAN
        return scale, scale / (MEDIAN**2 * np.sqrt(n))

    def drawn(self) -> dict[str, Floats]:
        """`edges` and counts in the wider bins of a chart, which end at the radius; the innermost may be narrower."""
        step = PER_DECADE // DRAWN_PER_DECADE
        last = len(self.edges) - 1
        at = np.unique(np.append(np.arange(last, -1, -step), 0))
        out = {"edges": self.edges[at]}
        for name in ("candidates", "mutual", "accepted", "measured", "expected"):
            out[name] = np.add.reduceat(getattr(self, name), at[:-1]).astype(np.float64)
        return out


def tied_rows(survey: str, other: str, table: pa.Table) -> Bools:
    """Rows of `survey` whose position is not its own measurement but that of `other`."""
    if other != "gaia" or survey not in TIED or "epoch_kind" not in table.column_names:
        return np.zeros(table.num_rows, bool)
    kinds = np.asarray(table.column("epoch_kind").to_pylist(), dtype=object)
    return np.isin(kinds.astype(str), TIED[survey])


def errors_of(table: pa.Table) -> Floats:
    """Position errors, shape (n, 2): RA's times cos(Dec), Dec's; arcsec, NaN where not known."""
    return np.stack(
        [
            float64(table, c) if c in table.column_names else np.full(table.num_rows, np.nan)
            for c in ("ra_error", "dec_error")
        ],
        axis=1,
    )


def _bools(table: pa.Table, name: str) -> Bools:
    return np.asarray(table.column(name).to_numpy(), bool)
