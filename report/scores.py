"""Completeness and purity of the match on a mock sky, whose truth is known (docs/truth.md); calibration of posteriors

*Pure*: both sources of an accepted pair show a common true thing. *Complete*: of a thing that both surveys were given,
some source of one is accepted with some source of the other. Sources show several things where they are blends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skycairn.pipeline.task import float64, int64

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MAGNITUDES = (0.0, 16.0, 18.0, 20.0, 21.0, 22.0, 23.0, 24.0, 99.0)
"""Edges of bins of true magnitude in r."""
POSTERIOR_EDGES = np.linspace(0.0, 1.0, 11)


def class_names() -> list[str]:
    """Classes of true things that scores are given of: all, by kind, by magnitude."""
    edges = pairwise(MAGNITUDES)
    mags = [
        f"r below {h:g}" if low == 0 else f"r from {low:g}" if h > 90 else f"r {low:g} to {h:g}" for low, h in edges
    ]
    return ["all", "galaxies", "stars", "quasars", *mags]


@dataclass(frozen=True)
class Truth:
    """The true things of a mock sky, and which of them each survey's rows show."""

    n: int
    "largest uid"
    classes: Bools
    "(class, uid): of `class_names`; uid 0 is no thing"
    shown: dict[str, tuple[Ints, Ints]]
    "by survey: keys, ascending, and uids of the things that their rows show"

    @classmethod
    def read(cls, root: Path, surveys: tuple[str, ...]) -> Truth:
        """From the folder of a mock sky. ValueError where it is none."""
        path = root / "truth" / "sources.parquet"
        if not path.is_file():
            raise ValueError(f"{path} is not there; --truth wants the folder that `skycairn mock` wrote")
        table = pq.read_table(path, columns=["uid", "kind", "flux_r"])
        uid = int64(table, "uid")
        n = int(uid.max(initial=0))
        kind = np.full(n + 1, "", dtype=object)
        kind[uid] = np.asarray(table.column("kind").to_pylist(), dtype=object)
        flux = np.zeros(n + 1)
        flux[uid] = np.nan_to_num(float64(table, "flux_r"))
        magnitude = 22.5 - 2.5 * np.log10(np.maximum(flux, 1e-9))
        masks = [np.ones(n + 1, bool), *(kind == k for k in ("galaxy", "star", "quasar"))]
        masks += [(magnitude >= a) & (magnitude < b) for a, b in pairwise(MAGNITUDES)]
        classes = np.array(masks, bool)
        classes[:, 0] = False
        shown = {}
        for name in surveys:
            path = root / "truth" / f"{name}.parquet"
            if not path.is_file():
                continue
            rows = pq.read_table(path, columns=["uid", "key", "observed"])
            rows = rows.filter(pc.and_(pc.is_valid(rows["key"]), pc.and_(rows["observed"], pc.greater(rows["uid"], 0))))
            key, of = int64(rows, "key"), int64(rows, "uid")
            order = np.lexsort((of, key))
            shown[name] = key[order], of[order]
        return cls(n, classes, shown)

    def things(self, survey: str, keys: Ints) -> tuple[Ints, Ints]:
        """Of sources by key: (place in `keys`, uid) of every true thing that each shows."""
        own, uid = self.shown[survey]
        low, high = np.searchsorted(own, keys, "left"), np.searchsorted(own, keys, "right")
        count = high - low
        which = np.repeat(np.arange(keys.size), count)
        first = np.cumsum(count) - count
        return which, uid[np.arange(which.size) - first[which] + low[which]]


@dataclass
class Scores:
    """Scores of one pair of surveys, by class; added to cell by cell."""

    truth: Truth
    a: str
    b: str
    n_accepted: Ints = field(init=False)
    "accepted pairs of which either source shows a thing of the class; `all` has those that show none too"
    n_pure: Ints = field(init=False)
    found: Bools = field(init=False)
    "by uid"
    given: tuple[Bools, Bools] = field(init=False)
    "by uid: whether a, whether b was given it"
    n_posterior: Ints = field(init=False)
    "candidates with a posterior, in bins of POSTERIOR_EDGES"
    n_true: Ints = field(init=False)
    sum_posterior: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        n = len(class_names())
        self.n_accepted, self.n_pure = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.found = np.zeros(self.truth.n + 1, bool)
        self.given = np.zeros(self.truth.n + 1, bool), np.zeros(self.truth.n + 1, bool)
        bins = len(POSTERIOR_EDGES) - 1
        self.n_posterior, self.n_true, self.sum_posterior = np.zeros(bins, int), np.zeros(bins, int), np.zeros(bins)

    def give(self, side: int, keys: Ints) -> None:
        """The sources of a (side 0) or b (1) in a work cell that was matched."""
        _, uid = self.truth.things((self.a, self.b)[side], keys)
        self.given[side][uid] = True

    def add(self, pairs: pa.Table) -> None:
        """Pairs of a and b: key_a, key_b, accepted, and posterior_a where there is one."""
        where_a, uid_a = self.truth.things(self.a, int64(pairs, "key_a"))
        where_b, uid_b = self.truth.things(self.b, int64(pairs, "key_b"))
        size = self.truth.n + 1
        common = np.intersect1d(where_a * size + uid_a, where_b * size + uid_b)
        pure = np.zeros(pairs.num_rows, bool)
        pure[common // size] = True
        accepted = np.asarray(pairs.column("accepted").to_numpy(), bool)
        self.found[(common % size)[accepted[common // size]]] = True
        for i, flags in enumerate(self.truth.classes):
            of = np.zeros(pairs.num_rows, bool)
            of[where_a[flags[uid_a]]] = of[where_b[flags[uid_b]]] = True
            if i == 0:
                of[:] = True
            self.n_accepted[i] += int((of & accepted).sum())
            self.n_pure[i] += int((of & accepted & pure).sum())
        if "posterior_a" in pairs.column_names:
            posterior = float64(pairs, "posterior_a")
            known = np.isfinite(posterior)
            at = np.clip(np.digitize(posterior[known], POSTERIOR_EDGES) - 1, 0, len(self.n_true) - 1)
            self.n_posterior += np.bincount(at, minlength=len(self.n_true))
            self.n_true += np.bincount(at[pure[known]], minlength=len(self.n_true))
            self.sum_posterior += np.bincount(at, posterior[known], minlength=len(self.n_true))

    def purity(self) -> list[tuple[int, int]]:
        """(pure, accepted) by class."""
        return list(zip(self.n_pure.tolist(), self.n_accepted.tolist(), strict=True))

    def completeness(self) -> list[tuple[int, int]]:
        """(found, given to both surveys) by class."""
        both = self.given[0] & self.given[1]
        return [(int((self.found & both & c).sum()), int((both & c).sum())) for c in self.truth.classes]
