"""A snapshot read cell by cell: sources of a work cell and round it, pairs, members, and where the surveys looked"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skycairn.catalogs.registry import SURVEYS
from skycairn.catalogs.survey import WORK_ORDER
from skycairn.match import sky
from skycairn.pile.store import Part, Pile, Snapshot
from skycairn.pipeline.match import with_error
from skycairn.pipeline.partition import MARGIN_ARCSEC
from skycairn.pipeline.recipe import Match
from skycairn.pipeline.region import Region, from_settings
from skycairn.pipeline.task import concat, float64, int64

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

POSITION = ("key", "ra", "dec", "healpix29", "pmra", "pmdec", "epoch", "epoch_min", "epoch_max")
ERRORS = ("ra_error", "dec_error")
MOST_ROWS = 4_000_000
"""Rows of tables of single work cells that are kept in memory, beside those of the cell at hand: some 400 MB."""


class Cells:
    """The tables of one snapshot by work cell; each is read when it is first asked for, the latest are kept."""

    def __init__(self, pile: Pile, snapshot: Snapshot) -> None:
        """`Pile.open(root, check="pages")` spares reading parts whole for a few columns."""
        self.pile, self.snapshot = pile, snapshot
        chosen = snapshot.recipe.get("surveys", {})
        self.surveys = tuple(sorted((n for n in SURVEYS if n in chosen), key=lambda n: SURVEYS[n].rank))
        known = {f.name for f in fields(Match)}
        self.match = Match(**{k: v for k, v in snapshot.recipe.get("match", {}).items() if k in known})
        self.parts = {name: _by_cell(snapshot, name) for name in (*snapshot.tables, *snapshot.aside)}
        self._kept: OrderedDict[tuple[str, int], tuple[Any, int]] = OrderedDict()
        self._rows = 0

    def matched(self) -> list[int]:
        """The work cells that were matched, ascending."""
        return sorted({*self.parts.get("pairs", {}), *self.parts.get("objects", {})})

    def table(self, name: str, cell: int, columns: Sequence[str] | None = None) -> pa.Table | None:
        """The columns that there are of a table's part of this cell; None where there is none."""
        part = self.parts.get(name, {}).get(cell)
        if part is None:
            return None
        if columns is not None:
            with self.pile.open_parquet(part) as file:
                there = set(file.schema_arrow.names)
            columns = [c for c in columns if c in there]
        return self.pile.read_table(part, columns=columns)

    def remembered(self, name: str, cell: int, make: Callable[[], tuple[Any, int]]) -> Any:
        """What `make` gave for this name and cell beside its number of rows; made once as long as it is kept."""
        if (name, cell) in self._kept:
            self._kept.move_to_end((name, cell))
        else:
            made = make()
            self._rows += made[1] + 1
            while self._kept and self._rows > MOST_ROWS:
                self._rows -= self._kept.popitem(last=False)[1][1] + 1
            self._kept[name, cell] = made
        return self._kept[name, cell][0]

    def sources(self, survey: str, cell: int) -> pa.Table | None:
        """The slim table of what was matched: valid or selected sources, with the errors that the recipe adds."""
        return self.remembered(f"{survey}.slim", cell, lambda: self._sources(survey, cell))

    def _sources(self, survey: str, cell: int) -> tuple[pa.Table | None, int]:
        table = self.table(f"{survey}.slim", cell, (*POSITION, *ERRORS, "epoch_kind"))
        if table is not None and self.match.on == "selected":
            selection = self.table(f"{survey}.selection", cell)
            if selection is not None:
                table = table.filter(pc.is_null(selection.column("failed_cut")))
        if table is None:
            return None, 0
        return with_error(table, self.match.errors.get(survey, 0.0)), table.num_rows

    def around(self, survey: str, cell: int) -> pa.Table | None:
        """The sources of a work cell and its neighbours; None where there is none."""
        near = sky.rings(WORK_ORDER, [cell], 1).tolist()
        found = [t for c in near if (t := self.sources(survey, c)) is not None and t.num_rows]
        return concat(found) if found else None


def codes(column: pa.ChunkedArray, names: Sequence[str]) -> Ints:
    """Index in `names` of each value, -1 where it is none of them."""
    found = pc.index_in(column.cast(pa.string()), pa.array(names, pa.string()))
    return np.asarray(pc.fill_null(found, -1).to_numpy(), np.int64)


def rows_of(table: pa.Table, keys: Ints) -> Ints:
    """Row of each key in the table, -1 where it is not there."""
    own = int64(table, "key")
    if not own.size:
        return np.full(keys.size, -1)
    order = np.argsort(own, kind="stable")
    at = order[np.minimum(np.searchsorted(own, keys, sorter=order), own.size - 1)]
    return np.where(own[at] == keys, at, -1)


def _by_cell(snapshot: Snapshot, table: str) -> dict[int, Part]:
    found = {}
    for entry in snapshot.entries(table):
        if type(cell := entry.labels.get("cell")) is int and len(entry.labels) == 1:
            found[cell] = entry.part
    return found


@dataclass(frozen=True)
class Looked:
    """Where the surveys looked and the pile read them."""

    footprints: Mapping[str, Any]
    "`mocpy.MOC` by survey; a survey without a known footprint is taken to have looked everywhere"
    kinds: Mapping[str, str]
    "by survey: all-sky, exact, occupied (told from where its sources are)"
    region: Region
    held: Ints
    "work cells that are held back"

    @classmethod
    def of(cls, cells: Cells) -> Looked:
        """From the snapshot's table `coverage` and its recipe."""
        footprints, kinds = {}, {}
        for entry in cells.snapshot.tables.get("coverage", ()):
            for row in cells.pile.read_table(entry.part).to_pylist():
                footprints[row["survey"]] = sky.coverage_from_text(row["moc"])
                kinds[row["survey"]] = row["footprint"]
        held = np.array([c for c in cells.snapshot.held_back if type(c) is int], np.int64)
        return cls(footprints, kinds, from_settings(cells.snapshot.recipe["region"]), held)

    def saw(self, survey: str, ra: Floats, dec: Floats) -> Bools:
        """Whether the survey looked at each position."""
        if survey not in self.footprints or self.kinds[survey] == "all-sky":
            return np.ones(ra.size, bool)
        return sky.within_coverage(self.footprints[survey], ra, dec)

    def readable(self, ra: Floats, dec: Floats, reach_arcsec: float) -> Bools:
        """Whether all that lies within `reach_arcsec` of each position was read, unless it is held back."""
        inside = self.region.contains(ra, dec, margin_arcsec=max(0.0, MARGIN_ARCSEC - reach_arcsec))
        return np.asarray(inside & ~np.isin(sky.cells(sky.healpix29(ra, dec), WORK_ORDER), self.held))


def positions(table: pa.Table) -> tuple[Floats, Floats]:
    """Right ascension and declination, degrees."""
    return float64(table, "ra"), float64(table, "dec")
