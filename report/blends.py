"""Blend groups: sources that are candidates of each other by chains, so that which belongs to which is not plain"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skycairn.pipeline.task import float64, int64
from skycairn.report.rayleigh import quantile_of

MAG_EDGES = np.linspace(0.0, 5.0, 101)
MOST_SIZE = 5
"""Sources of one survey in one group; more are counted with these."""


@dataclass
class Blends:
    """Counts over objects; added to cell by cell."""

    surveys: tuple[str, ...]
    n_groups: int = 0
    "groups, single objects included, whose first source is the anchor of an object of the region"
    n_blended: int = 0
    "of them those in which some survey has more than one source"
    sizes: dict[str, Counter[int]] = field(default_factory=dict)
    "by survey: groups by how many of its sources they hold, 1 to MOST_SIZE"
    mags: dict[bool, NDArray[np.int64]] = field(default_factory=dict)
    "objects by largest magnitude difference of two surveys in one band, in bins of MAG_EDGES; True: in a blend"
    faint: dict[bool, int] = field(default_factory=dict)
    "of them those beyond the last bin"

    def __post_init__(self) -> None:
        self.sizes = {s: Counter() for s in self.surveys}
        self.mags = {b: np.zeros(len(MAG_EDGES) - 1, np.int64) for b in (False, True)}
        self.faint = {False: 0, True: 0}

    def add(self, objects: pa.Table) -> None:
        """Count the objects of one cell; columns that are not there are passed over."""
        there = [s for s in self.surveys if f"blend_n.{s}" in objects.column_names]
        if not there or "blend_group" not in objects.column_names:
            return
        n = np.stack([int64(objects, f"blend_n.{s}") for s in there])
        blended = (n > 1).any(axis=0)
        # a group's first source is the anchor of its own object, so each group is met once
        first = np.asarray(pc.equal(objects.column("object_id"), objects.column("blend_group")).to_numpy(), bool)
        self.n_groups += int(first.sum())
        self.n_blended += int((first & blended).sum())
        for name, of in zip(there, n, strict=True):
            of = np.minimum(of[first & (of > 0)], MOST_SIZE)
            self.sizes[name].update({k: int((of == k).sum()) for k in np.unique(of).tolist()})
        if "delta_mag" in objects.column_names:
            delta = float64(objects, "delta_mag")
            for which in (False, True):
                some = delta[np.isfinite(delta) & (blended == which)]
                self.mags[which] += np.histogram(some, MAG_EDGES)[0]
                self.faint[which] += int((some > MAG_EDGES[-1]).sum())

    def n_mags(self, blended: bool) -> int:
        """Objects with fluxes of two surveys in one band."""
        return int(self.mags[blended].sum()) + self.faint[blended]

    def mag_quantile(self, blended: bool, q: float) -> float:
        """Quantile of the magnitude difference; NaN where there is none, infinite beyond the last bin."""
        n = self.n_mags(blended)
        if not n:
            return float("nan")
        if q * n > self.mags[blended].sum():
            return float("inf")
        counts = np.append(self.mags[blended], self.faint[blended])
        return quantile_of(counts, np.append(MAG_EDGES, MAG_EDGES[-1]), 0, q)
