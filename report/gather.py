"""All numbers of the page, gathered from one snapshot a work cell at a time"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from skycairn.catalogs.survey import WORK_ORDER
from skycairn.match import sky
from skycairn.match.pairs import Positions
from skycairn.pile.store import Pile, Snapshot
from skycairn.pipeline.journal import Journal
from skycairn.pipeline.task import float64, int64
from skycairn.report import chance as chances
from skycairn.report.blends import Blends
from skycairn.report.chance import Chance
from skycairn.report.cutflow import Step, cut_flows
from skycairn.report.offsets import CellOffset, by_cell, coarser, is_free, offsets_mas, track_mas
from skycairn.report.reading import Cells, Looked, codes, rows_of
from skycairn.report.scores import Scores, Truth
from skycairn.report.separations import Separations, errors_of, tied_rows
from skycairn.report.skycounts import SkyCounts, map_order

Pair = tuple[str, str]
PAIR_COLUMNS = (
    *("survey_a", "key_a", "survey_b", "key_b", "separation_uas", "mutual", "accepted", "conflict"),
    *("sigmas", "posterior_a", "posterior_b", "link"),
)
OBJECT_COLUMNS = ("object_id", "healpix29", "blend_group", "delta_mag")
OF_SURVEY = ("key", "status", "blend_n")


@dataclass
class Numbers:
    """What the page says; see the modules of each part."""

    snapshot: Snapshot
    surveys: tuple[str, ...]
    releases: dict[str, str]
    radii: dict[Pair, float]
    "arcsec, by pair; the survey of lower rank first"
    n_objects: int = 0
    strata: Mapping[str, int] = field(default_factory=dict)
    splits: Mapping[str, int] = field(default_factory=dict)
    separations: dict[Pair, Separations] = field(default_factory=dict)
    chance: dict[Pair, Chance] = field(default_factory=dict)
    no_chance: dict[Pair, str] = field(default_factory=dict)
    "why there is no chance rate"
    offsets: dict[Pair, list[CellOffset]] = field(default_factory=dict)
    offsets_free: Counter[Pair] = field(default_factory=Counter)
    "accepted pairs of two measured positions left out of `offsets`, since their closest approach is free on a track"
    offset_order: int = WORK_ORDER
    sky: SkyCounts = field(default_factory=lambda: SkyCounts((), WORK_ORDER))
    kinds: Mapping[str, str] = field(default_factory=dict)
    "of the surveys' footprints"
    cut_flows: dict[str, list[Step]] = field(default_factory=dict)
    held_cells: tuple[int, ...] = ()
    held_why: Mapping[str, str] = field(default_factory=dict)
    "by file or task; of the last build on this machine"
    lost: Mapping[str, str] = field(default_factory=dict)
    linked: dict[Pair, list[int]] = field(default_factory=dict)
    "candidates of which one names the other by its id, and how many of them are accepted; empty without such ids"
    id_faults: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    "ids that led to no match, by (survey, that it names, why)"
    blends: Blends = field(default_factory=lambda: Blends(()))
    scores: dict[Pair, Scores] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    "what could not be told, in words"
    n_cells: int = 0
    beyond: int = 0
    "pairs with a source that lies beyond the neighbouring cells of the other's"

    @property
    def members(self) -> dict[str, int]:
        """Sources in objects, by survey."""
        return {s: sum(self.sky.sources[s].values()) for s in self.sky.surveys}

    @property
    def pairs(self) -> list[Pair]:
        """All pairs of surveys, in the order of anchors."""
        return list(combinations(self.surveys, 2))


def gather(
    pile: Pile,
    snapshot: Snapshot,
    truth_root: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Numbers:
    """All numbers of a snapshot; with the folder of a mock sky its scores too. ValueError where that is of another."""
    cells = Cells(pile, snapshot)
    n = _frame(cells)
    told = Journal(pile).files()
    n.held_why, n.lost = dict(told["held back"]), dict(told["lost"])
    truth = Truth.read(truth_root, n.surveys) if truth_root is not None else None
    matched = cells.matched()
    n.n_cells = len(matched)
    looked = Looked.of(cells)
    n.kinds = looked.kinds
    if unknown := [s for s in n.surveys if s not in looked.footprints and cells.parts.get(f"{s}.slim")]:
        n.notes.append(f"No footprint is known of {', '.join(unknown)}: taken to have looked everywhere.")
    n.sky = SkyCounts(n.surveys, map_order(cells))
    n.offset_order = max(n.sky.order, WORK_ORDER)
    n.blends = Blends(n.surveys)
    n.separations = {p: Separations(1000 * r) for p, r in n.radii.items()}
    n.offsets = {p: [] for p in n.pairs}
    if truth is not None:
        n.scores = {(a, b): Scores(truth, a, b) for a, b in n.pairs if a in truth.shown and b in truth.shown}
        if unknown := [s for s in n.surveys if s not in truth.shown]:
            n.notes.append(f"The mock sky has no truth of {', '.join(unknown)}: no scores of its pairs.")
    for done, cell in enumerate(matched, 1):
        _cell(n, cells, cell)
        progress("cells", done, len(matched))
    if n.beyond:
        n.notes.append(f"{n.beyond:,} pairs of fast stars reach beyond the neighbouring cells: they are left out.")
    n.sky.cover(looked)
    for p in n.pairs:
        n.offsets[p] = coarser(n.offsets[p], n.offset_order - n.sky.order)
    n.offset_order = n.sky.order
    _check_truth(n, truth, truth_root)
    for done, (a, b) in enumerate(n.pairs, 1):
        try:
            n.chance[a, b] = chances.of_cells(cells, looked, a, b, n.radii[a, b])
        except ValueError as error:
            n.no_chance[a, b] = str(error)
        progress("chance", done, len(n.pairs))
    return n


def _frame(cells: Cells) -> Numbers:
    """What a snapshot says without a look at its tables."""
    snapshot = cells.snapshot
    chosen = snapshot.recipe.get("surveys", {})
    report: Mapping[str, Any] = snapshot.stats.get("report", {})
    n = Numbers(
        snapshot,
        cells.surveys,
        {s: str(chosen[s].get("release", "")) for s in cells.surveys},
        {(a, b): cells.match.radius(a, b) for a, b in combinations(cells.surveys, 2)},
        n_objects=sum(p.n_rows for p in cells.parts.get("objects", {}).values()),
        strata=report.get("strata", {}),
        splits=snapshot.stats.get("splits", {}),
        cut_flows=cut_flows(report, cells.match.on),
        held_cells=tuple(c for c in snapshot.held_back if type(c) is int),
    )
    if not report:
        n.notes.append("This snapshot keeps no counts of its build: there is no cut-flow.")
    for table in ("objects", "pairs", "coverage"):
        if table not in snapshot.tables:
            n.notes.append(f"This snapshot has no table {table!r}: what is told from it is left out.")
    return n


def _cell(n: Numbers, cells: Cells, cell: int) -> None:
    """Add one work cell to the numbers."""
    objects = cells.table("objects", cell, [*OBJECT_COLUMNS, *(f"{c}.{s}" for c in OF_SURVEY for s in n.surveys)])
    if objects is not None:
        n.sky.add(objects)
        n.blends.add(objects)
    for (a, b), score in n.scores.items():
        for side, name in enumerate((a, b)):
            if (table := cells.sources(name, cell)) is not None:
                score.give(side, int64(table, "key"))
    if (unmet := cells.table("disagreements", cell, ("survey", "other_survey", "why"))) is not None:
        n.id_faults.update(zip(*(unmet.column(c).to_pylist() for c in unmet.column_names), strict=True))
    pairs = cells.table("pairs", cell, PAIR_COLUMNS)
    if pairs is None or not pairs.num_rows:
        return
    of_a, of_b = codes(pairs.column("survey_a"), n.surveys), codes(pairs.column("survey_b"), n.surveys)
    for (i, a), (j, b) in combinations(enumerate(n.surveys), 2):
        some = pairs.filter(pa.array((of_a == i) & (of_b == j)))
        if some.num_rows:
            _pairs(n, cells, cell, a, b, some)


def _pairs(n: Numbers, cells: Cells, cell: int, a: str, b: str, pairs: pa.Table) -> None:
    """Add the pairs of two surveys whose source of the first lies in the cell."""
    if (a, b) in n.scores:
        n.scores[a, b].add(pairs)
    if "link" in pairs.column_names:
        link, both = (np.asarray(pairs.column(c).to_numpy(), bool) for c in ("link", "accepted"))
        before = n.linked.get((a, b), [0, 0])
        n.linked[a, b] = [before[0] + int(link.sum()), before[1] + int((link & both).sum())]
    around_a, around_b = cells.sources(a, cell), cells.around(b, cell)
    if around_a is None or around_b is None:
        raise ValueError(f"cell {cell} has pairs of {a} and {b}, and no sources of one of them; `skycairn verify` it")
    rows_a, rows_b = rows_of(around_a, int64(pairs, "key_a")), rows_of(around_b, int64(pairs, "key_b"))
    # a star that is fast may be paired from farther away than the neighbouring cells
    known = (rows_a >= 0) & (rows_b >= 0)
    left, right = around_a.take(pa.array(rows_a[known])), around_b.take(pa.array(rows_b[known]))
    some = pairs.filter(pa.array(known))
    if lost := int((~known).sum()):
        n.beyond += lost
    tied = tied_rows(a, b, left) | tied_rows(b, a, right)
    apart = offsets_mas(Positions.of(left), Positions.of(right))
    errors = np.concatenate([errors_of(left), errors_of(right)], axis=1)
    sigmas = float64(some, "sigmas") if "sigmas" in some.column_names else None
    track = track_mas(Positions.of(left), Positions.of(right))
    n.separations[a, b].add(some, tied, errors, apart, track, sigmas)
    chosen = np.asarray(some.column("accepted").to_numpy(), bool) & ~tied
    free = chosen & is_free(track, errors)
    n.offsets_free[a, b] += int(free.sum())
    chosen &= ~free
    at = sky.cells(int64(left, "healpix29"), n.offset_order)
    n.offsets[a, b] += by_cell(at[chosen], apart[chosen])


def _check_truth(n: Numbers, truth: Truth | None, root: Path | None) -> None:
    if truth is None or not n.scores or not n.n_objects:
        return
    if not any(s.given[side].any() for s in n.scores.values() for side in (0, 1)):
        raise ValueError(
            f"{root}: its truth knows none of the pile's sources; give --truth the mock sky that this pile was built of"
        )


def pair_table(numbers: Numbers) -> pa.Table:
    """The pairs of surveys as a table, a row each: what the page's overview shows, for programs."""
    rows = []
    for a, b in numbers.pairs:
        s, c = numbers.separations[a, b], numbers.chance.get((a, b))
        scale, scale_error = s.error_scale()
        rates = [c.rate(of_a)[0] if c else None for of_a in (True, False)]
        rows.append(
            {
                **{"survey_a": a, "survey_b": b, "radius_arcsec": numbers.radii[a, b]},
                **{"candidates": s.n_candidates, "mutual": s.n_mutual, "accepted": s.n_accepted},
                **{"conflicts": s.n_conflicts, "median_mas": s.median_mas()},
                **{"error_scale": scale, "error_scale_error": scale_error},
                **{"chance_a": rates[0], "chance_b": rates[1]},
            }
        )
    return pa.Table.from_pylist(rows) if rows else pa.table({})


def n_pairs(numbers: Numbers) -> int:
    """Accepted pairs of all pairs of surveys."""
    return sum(s.n_accepted for s in numbers.separations.values())
