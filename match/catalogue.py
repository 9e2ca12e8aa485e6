"""A sorted HATS catalogue out of Parquet files in any order, larger than memory.

    written = write_catalogue("download/", Path("gaia"), columns={"id": "source_id"})

Rows are read once, sorted by HEALPix cell into runs (match/runs.py), and each leaf is then gathered from the runs: no
leaf has more rows than asked for, since they are counted, not guessed. What lies on disk:

collection.properties inputs.json
NAME/ NAME_10arcs/                    hats.properties (properties is its twin), partition_info.csv, skymap.fits
  dataset/_common_metadata
  dataset/Norder=6/Dir=30000/Npix=34808.parquet

All columns are kept as they are (a dictionary becomes its values), after `_healpix_29`, by which the rows are sorted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from skycairn.match import sky
from skycairn.match.hatsfiles import SKYMAP_ORDER, Cell, leaf_path, properties_text, put, skymap, write_words
from skycairn.match.inputs import Columns, Table, batches, check_sky, columns_of, jobs, open_table
from skycairn.match.regions import Ints, Leaves, Ranges, around, groups, leaves, ranges
from skycairn.match.runs import CELL, MOST_BYTES, Runs, keys, order_of, taken, write_runs
from skycairn.match.work import Progress, aside, each, pool, publish, work_folder
from skycairn.pile.parquet import ROW_GROUP_ROWS, encodings, stored_schema

FORMAT = 1
LEAF_ROWS = 1_000_000
MARGIN_ARCSEC = 10.0
MEMORY_BYTES = 2 << 30
LEAST_MEMORY = 1 << 16
MARGIN_STEPS = 14
"""A margin is drawn in cells at most this many orders deeper than its leaf, be it ever so thin."""
DEEPEST = 20
"""Leaves are no smaller than cells of this order (0.2 arcsec)."""


@dataclass(frozen=True)
class Written:
    """A catalogue that was written."""

    out: Path
    rows: int
    leaves: int
    largest: int
    "rows of the largest leaf"
    deepest: int
    "order of the smallest leaf"
    margin_rows: int
    n_bytes: int
    "of all files"


class Wide:
    """Reads rows with all their columns, `CELL` first."""

    def __init__(self, schema: pa.Schema, named: Columns) -> None:
        plain = [f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in schema]
        kept = [f for f in plain if f.name != CELL]
        cell = pa.field(CELL, pa.int64(), nullable=False)
        self.schema = stored_schema(pa.schema([cell, *kept], metadata=schema.metadata))
        self._ra, self._dec, self._id = named.ra, named.dec, named.id

    @property
    def columns(self) -> list[str]:
        """All."""
        return self.schema.names[1:]

    def __call__(self, rows: pa.Table, path: str, first_row: int) -> pa.Table:
        """One chunk a column."""
        ra, dec = (np.asarray(rows.column(n).to_numpy()) for n in (self._ra, self._dec))
        check_sky(ra, dec, path, first_row)
        if self._id:
            keys(rows.column(self._id), path, self._id, first_row)
        cell = pa.chunked_array([pa.array(sky.healpix29(ra, dec))])
        columns = [c.cast(f.type) for c, f in zip(rows.columns, list(self.schema)[1:], strict=True)]
        return pa.table([cell, *columns], schema=self.schema)


@dataclass(frozen=True)
class Source:
    """The sorted rows, and where they come from."""

    folder: Path
    "of the runs, where they are on disk"
    held: Runs | None
    "where they are in memory"
    schema: pa.Schema
    id: str
    "column by which rows of one cell are sorted, or empty"

    def runs(self) -> Runs:
        """Opened anew each time, since a page once touched is memory until the runs are closed."""
        return self.held if self.held is not None else Runs.open(self.folder, self.schema)

    def ordered(self, rows: pa.Table) -> pa.Table:
        """Rows of some runs as one table, by (cell, id)."""
        cell = np.asarray(rows.column(CELL).to_numpy())
        ties = [keys(rows.column(self.id), "", self.id, 0)] if self.id else []
        order = order_of(cell, *ties)
        if (order[1:] > order[:-1]).all():
            return rows
        return taken(rows.combine_chunks(), order)


def write_catalogue(
    files: Iterable[Path | str] | Path | str,
    out: Path,
    columns: Mapping[str, str] | None = None,
    leaf_rows: int = LEAF_ROWS,
    margin_arcsec: float = MARGIN_ARCSEC,
    memory_bytes: int = MEMORY_BYTES,
    workers: int = 1,
    progress: Progress | None = None,
) -> Written:
    """Write the rows of these Parquet files (or of the folder that holds them) as a HATS collection into `out`.

    `columns` names ra, dec (float64 degrees) and, where there is one, id (integers), by default the usual names. A leaf
    has `leaf_rows` at most, fewer where their bytes would not fit the memory, more only at the deepest order. The
    margin holds what lies within `margin_arcsec` of a leaf, and some more; with 0 none is written. `memory_bytes` is
    what all workers together may take beside their code.

    A cut off run is taken up where it was by the same call. ValueError where files differ in their columns, a position
    is bad or an id null (file and row are named), rows do not add up, or `out` is there already.
    """
    if leaf_rows < 1 or not 0 <= margin_arcsec <= 3600:
        raise ValueError(
            f"leaves of {leaf_rows} rows with a margin of {margin_arcsec} arcsec; wanted at least 1, and 0 to 3600"
        )
    if memory_bytes < LEAST_MEMORY or workers < 1:
        raise ValueError(f"memory of {memory_bytes} bytes and {workers} workers; wanted at least {LEAST_MEMORY} and 1")
    out = out.absolute()
    if out.exists():
        raise ValueError(f"{out} is there already; name another folder, or remove it")
    tell = progress or (lambda *_: None)
    table = open_table(files, "catalogue")
    if not table.n_rows:
        raise ValueError(f"{table.files[0].path} and the other {len(table.files) - 1} files have no rows")
    named = columns_of(table, columns or {}, without_id=True)
    identity = {
        "format": FORMAT,
        "input": [table.identity(), asdict(named)],
        "arguments": [leaf_rows, margin_arcsec, memory_bytes, workers],
    }
    share = memory_bytes // workers
    with work_folder(out, identity) as folder, pool(workers) as executor:
        source, row_bytes = _sorted(table, Wide(table.schema, named), named, folder, share, executor, tell)
        most_rows = max(1, min(leaf_rows, int(share / 4 / row_bytes)))
        found = leaves(lambda *r: source.runs().count(*r)[None], lambda rows, _: rows[0] > most_rows, DEEPEST)
        result = folder / "result"
        main = result / out.name
        margin = result / f"{out.name}_{margin_arcsec:g}arcs" if margin_arcsec else None
        cut = groups(found.rows[0].astype(float), 4 * most_rows)
        todo = [(source, found.take(which), main, margin, margin_arcsec) for which in cut]
        each(executor, _write_leaves, todo, lambda n: tell("leaves", n, len(cut)))
        written = _finish(source, found, table, named, result, main, margin, margin_arcsec, out)
        publish(result, out)
    return written


def _sorted(
    table: Table, reader: Wide, named: Columns, folder: Path, share: int, executor: Executor | None, tell: Progress
) -> tuple[Source, float]:
    """The rows, sorted, and the bytes of one: in memory where they take a part of it, else as runs on disk."""
    row_bytes = _row_bytes(table, reader)
    source = Source(folder / "runs", None, reader.schema, named.id)
    if executor is None and table.n_rows * row_bytes * 2 <= share:
        job = [piece for some in jobs(table, table.n_rows) for piece in some]
        held = Runs.hold(job, reader, reader.schema)
        tell("sort", 1, 1)
        return replace(source, held=held), row_bytes
    source.folder.mkdir(exist_ok=True)
    most_bytes = min(share // 4, 4 * MOST_BYTES)
    cut = jobs(table, max(1, int(most_bytes / row_bytes)))
    todo = [(job, reader, most_bytes, source.folder / f"{i:06d}") for i, job in enumerate(cut)]
    todo = [call for call in todo if not call[3].exists()]
    before = len(cut) - len(todo)
    each(executor, write_runs, todo, lambda n: tell("sort", before + n, len(cut)))
    return source, row_bytes


def _row_bytes(table: Table, reader: Wide) -> float:
    """Memory of a row, by the first few of some files."""
    n_bytes = n_rows = 0
    some = [f for f in table.files if f.n_rows]
    for job in (jobs(Table(table.what, (f,), table.schema, {}), 1)[0] for f in some[:: max(1, len(some) // 8)]):
        _, rows = next(iter(batches(job[0], reader.columns, 4096)))
        n_bytes, n_rows = n_bytes + rows.nbytes, n_rows + rows.num_rows
    return n_bytes / n_rows + 8


def _write_leaves(source: Source, some: Leaves, main: Path, margin: Path | None, margin_arcsec: float) -> None:
    """Write those leaves that are not there yet, and their margins."""
    runs = source.runs()
    for order, cell, n_rows in zip(some.order.tolist(), some.cell.tolist(), some.rows[0].tolist(), strict=True):
        own = ranges(order, [cell])
        if n_rows and not leaf_path(main, (order, cell)).exists():
            rows = source.ordered(runs.rows(own))
            if rows.num_rows != n_rows:
                raise ValueError(f"Norder={order}, Npix={cell}: {n_rows} rows were counted, {rows.num_rows} are there")
            _write_leaf(leaf_path(main, (order, cell)), rows, source.schema)
        # a leaf without rows has a margin too: without it lsdb misses pairs across its border
        if margin is not None and not leaf_path(margin, (order, cell)).exists():
            where = _without(around(order, cell, margin_arcsec, steps=MARGIN_STEPS)[0], own)
            # of no row, most often: then it is not written, and asked for again after a cut
            if runs.count(*where).any():
                _write_leaf(leaf_path(margin, (order, cell)), source.ordered(runs.rows(where)), source.schema)


def _without(where: Ranges, own: Ranges) -> Ranges:
    """A set of ranges less one range."""
    low, high = where
    begin, end = int(own[0][0]), int(own[1][0])
    low, high = np.concatenate([low, np.maximum(low, end)]), np.concatenate([np.minimum(high, begin), high])
    some = high > low
    return low[some], high[some]


def _write_leaf(path: Path, rows: pa.Table, schema: pa.Schema) -> None:
    with aside(path) as pending:
        pq.write_table(rows.cast(schema), pending, row_group_size=ROW_GROUP_ROWS, **encodings(schema))


# -- the end


def _finish(
    source: Source,
    found: Leaves,
    table: Table,
    named: Columns,
    result: Path,
    main: Path,
    margin: Path | None,
    margin_arcsec: float,
    out: Path,
) -> Written:
    """Write what says what the leaves are, after their rows were counted once more."""
    n_rows = _footers(main, found)
    total = sum(n_rows.values())
    if total != table.n_rows:
        raise ValueError(
            f"{table.n_rows} rows in the files' footers, {total} in the leaves; a file changed meanwhile? run it again"
        )
    counts = source.runs().count(*ranges(SKYMAP_ORDER, np.arange(12 << 2 * SKYMAP_ORDER)))
    some: Ints = np.flatnonzero(counts)
    put(main / "skymap.fits", skymap(dict(zip(some.tolist(), counts[some].tolist(), strict=True))))
    said = {
        "hats_col_ra": named.ra,
        "hats_col_dec": named.dec,
        "hats_col_healpix": CELL,
        "hats_col_healpix_order": 29,
    }
    kind = {"dataproduct_type": "object", "hats_skymap_order": SKYMAP_ORDER}
    write_words(main, source.schema, n_rows, {**kind, **said})
    collection = {"obs_collection": out.name, "hats_primary_table_url": main.name}
    n_margin: dict[Cell, int] = {}
    if margin is not None:
        n_margin = _footers(margin, found)
        kind = {"dataproduct_type": "margin", "hats_primary_table_url": main.name}
        write_words(margin, source.schema, n_margin, {**kind, "hats_margin_threshold": margin_arcsec, **said})
        collection |= {"all_margins": margin.name, "default_margin": margin.name}
    inputs = {"what": "skycairn catalogue", "files": [[f.path, f.n_bytes, f.n_rows] for f in table.files]}
    put(result / "inputs.json", json.dumps(inputs, indent=1).encode())
    put(result / "collection.properties", properties_text(collection))
    return Written(
        out,
        total,
        len(n_rows),
        max(n_rows.values()),
        max(order for order, _ in n_rows),
        sum(n_margin.values()),
        sum(p.stat().st_size for p in result.rglob("[!.]*") if p.is_file()),
    )


def _footers(catalogue: Path, found: Leaves) -> dict[Cell, int]:
    """Rows by leaf, of those that are there."""
    out = {}
    for cell in zip(found.order.tolist(), found.cell.tolist(), strict=True):
        path = leaf_path(catalogue, cell)
        if path.exists():
            out[cell] = pq.read_metadata(path).num_rows
    return out
