"""Counts by cell of the sky: sources of each survey, how much of it the survey saw, and those without a counterpart"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skycairn.catalogs.survey import WORK_ORDER
from skycairn.match import sky
from skycairn.pipeline.task import int64
from skycairn.report.reading import Cells, Looked

Ints = NDArray[np.int64]

DEEPEST, WIDEST = 10, 3
"""Orders between which the map's cells are chosen: 3.4 arcmin to 7.3 degrees."""
MOST_CELLS = 600
"""Cells drawn on one map."""
FEWEST_OBJECTS = 20
"""Objects that a cell of the map holds on average, or it is made wider."""
FINER = 2
"""Orders below the map's, at whose centres coverage is looked up."""


def map_order(cells: Cells) -> int:
    """The deepest order at which the pile's objects lie in few enough cells, and enough of them in each."""
    occupied: dict[int, int] = dict.fromkeys(range(WIDEST, DEEPEST + 1), 0)
    wide: dict[int, set[int]] = {order: set() for order in range(WIDEST, WORK_ORDER)}
    n_objects = 0
    for cell in cells.parts.get("objects", {}):
        table = cells.table("objects", cell, ["healpix29"])
        if table is None or not table.num_rows:
            continue
        at = int64(table, "healpix29")
        n_objects += at.size
        for order in range(WORK_ORDER, DEEPEST + 1):
            occupied[order] += np.unique(sky.cells(at, order)).size
        for order, seen in wide.items():
            seen.add(cell >> 2 * (WORK_ORDER - order))
    occupied |= {order: len(seen) for order, seen in wide.items()}
    fits = [o for o, n in occupied.items() if n <= MOST_CELLS and n * FEWEST_OBJECTS <= n_objects]
    return max(fits, default=WIDEST)


@dataclass
class SkyCounts:
    """Counts by cell of `order`; added to work cell by work cell."""

    surveys: tuple[str, ...]
    order: int
    objects: Counter[int] = field(default_factory=Counter)
    sources: dict[str, Counter[int]] = field(default_factory=dict)
    "of objects, by survey"
    looked: dict[tuple[str, str], Counter[int]] = field(default_factory=dict)
    "by (of, other): objects with a source of the one, at places that the other looked at"
    unmatched: dict[tuple[str, str], Counter[int]] = field(default_factory=dict)
    "of them those without a source of the other"
    coverage: dict[str, dict[int, float]] = field(default_factory=dict)
    "by survey: share of each cell with objects that it looked at"

    def __post_init__(self) -> None:
        self.sources = {s: Counter() for s in self.surveys}
        self.looked = {p: Counter() for p in permutations(self.surveys, 2)}
        self.unmatched = {p: Counter() for p in permutations(self.surveys, 2)}

    def add(self, objects: pa.Table) -> None:
        """Count the objects of one work cell, by where their anchors lie; absent columns are passed over."""
        at = sky.cells(int64(objects, "healpix29"), self.order)
        self.objects.update(_tally(at))
        has = {s: _valid(objects, f"key.{s}") for s in self.surveys}
        saw = {s: _looked(objects, f"status.{s}") for s in self.surveys}
        for name in self.surveys:
            self.sources[name].update(_tally(at[has[name]]))
        for name, other in permutations(self.surveys, 2):
            seen = has[name] & saw[other]
            self.looked[name, other].update(_tally(at[seen]))
            self.unmatched[name, other].update(_tally(at[seen & ~has[other]]))

    def cover(self, looked: Looked) -> None:
        """Fill in `coverage`, of the cells that hold objects."""
        cells = np.array(sorted(self.objects), np.int64)
        for name in self.surveys:
            fine = (cells[:, None] << 2 * FINER) + np.arange(1 << 2 * FINER)
            ra, dec = sky.centres(self.order + FINER, fine.ravel())
            share = looked.saw(name, ra, dec).reshape(fine.shape).mean(axis=1) if cells.size else np.zeros(0)
            self.coverage[name] = dict(zip(cells.tolist(), share.tolist(), strict=True))


def _valid(objects: pa.Table, column: str) -> NDArray[np.bool_]:
    there = column in objects.column_names
    return np.asarray(objects.column(column).is_valid() if there else np.zeros(objects.num_rows, bool), bool)


def _looked(objects: pa.Table, column: str) -> NDArray[np.bool_]:
    """Whether the survey looked where the object is; where its status is not kept, it is taken to have."""
    if column not in objects.column_names:
        return np.ones(objects.num_rows, bool)
    outside = pc.equal(objects.column(column).cast(pa.string()), "outside footprint")
    return ~np.asarray(pc.fill_null(outside, False), bool)


def _tally(cells: Ints) -> dict[int, int]:
    which, count = np.unique(cells, return_counts=True)
    return dict(zip(which.tolist(), count.tolist(), strict=True))
