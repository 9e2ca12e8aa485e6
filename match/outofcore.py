"""Cross-match of tables larger than memory: from unsorted Parquet files, or sorted catalogues, to pairs on disk.

    summary = crossmatch_files("left/", "right/", radius_arcsec=1.0, out=Path("pairs"))

Only the columns that matching needs are read. They are sorted by HEALPix cell into runs (match/runs.py), the sky is cut
into tasks of equally many rows, and each task reads its rows and those around it out of the runs: the right sources
near its own left ones, and the left ones near those, so that ranks and rivals are those of the whole. No pair is lost
where tasks meet, at RA 0, the poles or a cell's corner, since "around" is a set of cells and knows no coordinates.
A pair is given by the task of its left source. A killed run leaves a hidden folder beside the result, and goes on.

A star that is much faster than the rest would widen what every task reads; the fastest are kept apart, and each task
is given those whose tracks come near it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skycairn.match import sky
from skycairn.match.inputs import Columns, Table, columns_of, jobs, open_table
from skycairn.match.pairs import DENSITY_ORDER, PAIR_SCHEMA, Positions, beads, candidate_pairs, epoch_span
from skycairn.match.posterior import DENSITY_ORDER as PRIOR_ORDER
from skycairn.match.posterior import FOUND, FULL, OCCUPIED_ORDERS, Prior
from skycairn.match.regions import Ints, Leaves, around, groups, inside, leaves, ranges, union
from skycairn.match.runs import CELL, MOST_BYTES, Runs, Slim, column, ids, sorted_rows, write_runs
from skycairn.match.work import Progress, aside, each, pool, publish, work_folder
from skycairn.pile.parquet import encodings

FORMAT = 1
WHAT = "skycairn crossmatch"
MEMORY_BYTES = 2 << 30
LEAST_MEMORY = 1 << 16
"""So little gives very many tasks; tests want it."""
ROW_BYTES = 120
"""Memory that matching takes for each row of both tables (112 measured with 4 columns), and"""
COLUMN_BYTES = 20
"""for each of its columns, and"""
PAIR_BYTES = 400
"""for each pair."""
TASKS_EACH = 8
"""Tasks a worker, but none of fewer rows than the next for their sake."""
TASK_ROWS = 1_000_000
FEW_ROWS = 2_000_000
"""So many rows are sooner matched than a second process is there."""
FAST_MOST = 20_000
"""So many of the fastest sources of each table are kept apart."""
BEAD_ARCSEC = 8.0
BLOCK_ROWS = 1 << 20

Told = Mapping[str, str | float]


@dataclass(frozen=True)
class Summary:
    """What a cross-match of files gave."""

    out: Path
    radius_arcsec: float
    left_rows: int
    right_rows: int
    pairs: int
    mutual: int
    "pairs of which each is the other's nearest"
    parts: int


@dataclass(frozen=True)
class Side:
    """One table, sorted."""

    folder: Path
    "of the runs, where they are on disk"
    held: Runs | None
    "where they are in memory"
    schema: pa.Schema
    constants: Mapping[str, float]
    id_type: pa.DataType

    def runs(self, where: tuple[Ints, Ints] | None = None) -> Runs:
        """All, or those of some ranges. Opened anew each time: a page once touched is memory until they are closed."""
        return self.held if self.held is not None else Runs.open(self.folder, self.schema, where)

    @property
    def moves(self) -> bool:
        """Whether any motion is known."""
        return "pmra" in self.schema.names or "pmra" in self.constants

    @property
    def has_errors(self) -> bool:
        """Whether any error is known."""
        return {"ra_error", "dec_error"} <= {*self.schema.names, *self.constants}

    def positions(self, rows: pa.Table) -> pa.Table:
        """Rows as `candidate_pairs` wants them."""
        rows = rows.rename_columns(["healpix29" if n == CELL else n for n in rows.column_names])
        for name, value in self.constants.items():
            rows = rows.append_column(name, pa.array(np.full(rows.num_rows, value)))
        return rows


@dataclass(frozen=True)
class Fast:
    """Sources whose tracks are long, and the cells on their tracks."""

    rows: pa.Table
    bead_row: Ints
    bead_cell: Ints
    span: tuple[float, float]
    "of the other table's epochs"
    slow_arcsec: float
    "no other source moves farther in that time"

    def touching(self, where: tuple[Ints, Ints], own: tuple[Ints, Ints]) -> Ints:
        """Numbers of those whose tracks come into these ranges, or that stand in the task's own."""
        near = np.zeros(self.rows.num_rows, bool)
        near[self.bead_row[inside(where, self.bead_cell)]] = True
        return np.flatnonzero(near | inside(own, column(self.rows, CELL)))

    def tracks(self, which: Ints, order: int) -> Ints:
        """The cells of an order that the tracks of some of them touch."""
        return np.unique(sky.cells(self.bead_cell[np.isin(self.bead_row, which)], order))


@dataclass(frozen=True)
class Task:
    """One part of the sky: cells, each with left rows."""

    order: Ints
    cell: Ints
    whole: bool
    "there is no other task"


@dataclass(frozen=True)
class Sides:
    """What all tasks share."""

    left: Side
    right: Side
    left_fast: Fast | None
    right_fast: Fast | None
    radius_arcsec: float
    reach_arcsec: float
    "how far apart the catalogued positions of a pair may be, of two slow sources"
    prior: Prior | None
    "of the whole tables, where both have errors"


def crossmatch_files(
    left: Iterable[Path | str] | Path | str,
    right: Iterable[Path | str] | Path | str,
    radius_arcsec: float,
    out: Path,
    left_columns: Told | None = None,
    right_columns: Told | None = None,
    found: float = FOUND,
    memory_bytes: int = MEMORY_BYTES,
    workers: int = 1,
    progress: Progress | None = None,
) -> Summary:
    """All pairs within `radius_arcsec` of two tables in Parquet files, written as Parquet into the folder `out`.

    `left` and `right` are files, folders of them, or a HATS catalogue; `left_columns` says which column is what
    (`Columns`), by default the usual names. The pairs are those of `candidate_pairs` of the whole tables, with
    `left_id`, `right_id` for the row numbers and the left source's `healpix29`; sorted by it, left_id and left_rank,
    from one file to the next. `found` is the prior of the posteriors (`posterior.Prior`). `memory_bytes` is what all
    workers together may take beside their code (about 300 MB each); it holds as long as no cell of order 10 (3.4
    arcmin), or of the search, holds more than a worker's share.

    A cut off run is taken up where it was by the same call. ValueError for a bad radius, column or row (file and row
    are named), and where `out` is there already; BlockingIOError where another process writes it.
    """
    if not 0 < radius_arcsec <= 3600:
        raise ValueError(f"the radius is {radius_arcsec} arcsec; wanted above 0, at most 3600")
    if memory_bytes < LEAST_MEMORY or workers < 1:
        raise ValueError(f"memory of {memory_bytes} bytes and {workers} workers; wanted at least {LEAST_MEMORY} and 1")
    out = out.absolute()
    if out.exists():
        raise ValueError(f"{out} is there already; name another folder, or remove it")
    tell = progress or (lambda *_: None)
    tables = [open_table(left, "left"), open_table(right, "right")]
    columns = [columns_of(t, g or {}) for t, g in zip(tables, (left_columns, right_columns), strict=True)]
    identity = {
        "format": FORMAT,
        "radius_arcsec": radius_arcsec,
        "found": found,
        "memory": [memory_bytes, workers],
        "left": [tables[0].identity(), asdict(columns[0])],
        "right": [tables[1].identity(), asdict(columns[1])],
        "schema": str(PAIR_SCHEMA),
    }
    if sum(t.n_rows for t in tables) <= FEW_ROWS and memory_bytes >= MEMORY_BYTES:
        workers = 1
    share = memory_bytes // workers
    with work_folder(out, identity) as folder, pool(workers) as executor:
        sides = [_sorted(t, c, folder, share, workers, executor, tell) for t, c in zip(tables, columns, strict=True)]
        shared = _shared(sides[0], sides[1], radius_arcsec, found)
        tasks = _tasks(shared, share - sum(_held(s) for s in sides), workers)
        schema = _pair_schema(shared)
        parts = [folder / "result" / f"part-{i:06d}.parquet" for i in range(len(tasks))]
        todo = [(shared, t, schema, p) for t, p in zip(tasks, parts, strict=True) if not p.exists()]
        before = len(parts) - len(todo)
        each(executor, _match, todo, lambda n: tell("match", before + n, len(parts)))
        summary = _finish(folder / "result", parts, schema, shared, tables, columns, out)
        publish(folder / "result", out)
    return summary


# -- sorting


def _held(side: Side) -> int:
    return side.held.n_bytes if side.held is not None else 0


def _sorted(
    table: Table, columns: Columns, folder: Path, share: int, workers: int, executor: Executor | None, tell: Progress
) -> Side:
    """The table's slim rows, sorted: in memory where they take a small part of it, else as runs on disk."""
    reader = Slim(columns)
    id_type = table.schema.field(columns.id).type
    row_bytes = 8 * len(reader.names)
    runs = folder / table.what
    side = Side(runs, None, reader.schema, columns.constants(), id_type)
    if executor is None and table.n_rows * row_bytes <= share // 8:
        job = [piece for some in jobs(table, table.n_rows) for piece in some]
        held = Runs.hold(job, reader, reader.schema, full=True)
        tell(f"sort {table.what}", 1, 1)
        return replace(side, held=held)
    runs.mkdir(exist_ok=True)
    # a run is read, sorted and written: rows, their order and the sorted rows at once
    most_bytes = min(share // 6, MOST_BYTES)
    cut = jobs(table, max(1, min(most_bytes // row_bytes, max(TASK_ROWS, -(-table.n_rows // workers)))))
    todo = [(job, reader, most_bytes, runs / f"{i:06d}") for i, job in enumerate(cut)]
    todo = [call for call in todo if not call[3].exists()]
    before = len(cut) - len(todo)
    each(executor, write_runs, todo, lambda n: tell(f"sort {table.what}", before + n, len(cut)))
    opened = side.runs()
    if opened.n_rows != table.n_rows:
        raise ValueError(
            f"{table.what}: {table.n_rows} rows in the files' footers, {opened.n_rows} were sorted; "
            "a file changed meanwhile? run it again"
        )
    return side


# -- motion


def _shared(left: Side, right: Side, radius_arcsec: float, found: float) -> Sides:
    """Sets the fast sources of both sides apart, and says how far a task must look for the others."""
    prior = Prior(_densities(left), _densities(right), found) if left.has_errors and right.has_errors else None
    if not (left.moves or right.moves):
        return Sides(left, right, None, None, radius_arcsec, radius_arcsec, prior)
    left_span, right_span = _span(left), _span(right)
    left_fast, right_fast = _fast(left, right_span), _fast(right, left_span)
    # half a bead for each side that is looked up at beads
    n_sides = sum(f is not None and f.rows.num_rows > 0 for f in (left_fast, right_fast))
    reach = radius_arcsec + sum(f.slow_arcsec for f in (left_fast, right_fast) if f) + n_sides * BEAD_ARCSEC / 2
    return Sides(left, right, left_fast, right_fast, radius_arcsec, reach, prior)


def _densities(side: Side) -> dict[int, float]:
    """As `posterior.densities` of all rows, a block at a time."""
    finest = OCCUPIED_ORDERS[-1]
    occupied = np.zeros(12 << 2 * finest, bool)
    count = np.zeros(12 << 2 * PRIOR_ORDER, np.int64)
    for block in side.runs().blocks(BLOCK_ROWS):
        cell = np.asarray(column(block, CELL), np.int64)
        occupied[sky.cells(cell, finest)] = True
        count += np.bincount(sky.cells(cell, PRIOR_ORDER), minlength=count.size)
    some = np.flatnonzero(count)
    count = count[some]
    density = np.zeros(some.size)
    for order in OCCUPIED_ORDERS:
        cells = occupied.reshape(12 << 2 * order, -1).any(axis=1).reshape(12 << 2 * PRIOR_ORDER, -1)
        n_occupied = cells.sum(axis=1)[some]
        good = (count >= FULL * n_occupied) | (order == OCCUPIED_ORDERS[0])
        density[good] = (count / (n_occupied * sky.cell_size_arcsec(order) ** 2))[good]
    return dict(zip(some.tolist(), density.tolist(), strict=True))


def _span(side: Side) -> tuple[float, float]:
    """Of all epochs of the table; NaN where none is known."""
    each_ = [epoch_span(Positions.of(side.positions(b))) for b in side.runs().blocks(BLOCK_ROWS)]
    known = [s for s in each_ if np.isfinite(s[0])]
    return (min(s[0] for s in known), max(s[1] for s in known)) if known else (np.nan, np.nan)


def _reach(positions: Positions, span: tuple[float, float]) -> NDArray[np.float64]:
    """Arcsec that each source moves at most between its own epoch and the span."""
    years = np.fmax(np.fmax(positions.epoch - span[0], span[1] - positions.epoch), 0.0)
    speed = np.hypot(positions.pmra, positions.pmdec) / 1000
    return np.where(positions.moving, speed * years, 0.0)


def _fast(side: Side, span: tuple[float, float]) -> Fast | None:
    if not side.moves or not np.isfinite(span[0]):
        return None
    limits = np.append(0.0, 2.0 ** np.arange(-4, 16))
    beyond = np.zeros(limits.size, np.int64)
    for block in side.runs().blocks(BLOCK_ROWS):
        reach = np.sort(_reach(Positions.of(side.positions(block)), span))
        beyond += reach.size - np.searchsorted(reach, limits, side="right")
    slow = float(limits[np.argmax(beyond <= FAST_MOST)])
    found = []
    for block in side.runs().blocks(BLOCK_ROWS):
        reach = _reach(Positions.of(side.positions(block)), span)
        found.append(block.take(pa.array(np.flatnonzero(reach > slow))))
    rows = sorted_rows(pa.concat_tables(found)) if found else side.schema.empty_table()
    if not rows.num_rows:
        return Fast(rows, np.zeros(0, np.int64), np.zeros(0, np.int64), span, slow)
    on = beads(Positions.of(side.positions(rows)), column(rows, CELL), span, BEAD_ARCSEC)
    return Fast(rows, on.row, on.healpix29, span, slow)


# -- tasks


def _tasks(shared: Sides, task_bytes: int, workers: int) -> list[Task]:
    """The sky cut so that each task's rows and pairs fit the memory, whatever their density; ascending.

    Several tasks a worker, so that the last to end keeps the others waiting for a small part of the whole.
    """
    left, right = shared.left.runs(), shared.right.runs()
    row_bytes = [ROW_BYTES + COLUMN_BYTES * len(side.schema) for side in (shared.left, shared.right)]
    total = row_bytes[0] * left.n_rows + row_bytes[1] * right.n_rows
    task_bytes = min(task_bytes, max(total // (TASKS_EACH * workers), TASK_ROWS * max(row_bytes)))
    if shared.left.held is not None and shared.right.held is not None:
        # there is nothing to open, and few rows stay in the processor's cache
        task_bytes = min(task_bytes, TASK_ROWS * max(row_bytes))
    most = max(task_bytes, LEAST_MEMORY)

    def weight(rows: Ints, order: NDArray[np.int64] | int) -> NDArray[np.float64]:
        area = np.degrees(np.degrees(4 * np.pi / 12)) * 3600.0**2 / 4.0 ** np.asarray(order)
        pairs = rows[0].astype(float) * rows[1] * np.pi * shared.radius_arcsec**2 / area
        return np.asarray(row_bytes[0] * rows[0] + row_bytes[1] * rows[1] + PAIR_BYTES * pairs, np.float64)

    found: Leaves = leaves(
        lambda low, high: np.stack([left.count(low, high), right.count(low, high)]),
        lambda rows, order: weight(rows, order) > most,
        min(DENSITY_ORDER, sky.order_for(shared.reach_arcsec)),
    )
    found = found.take(np.flatnonzero(found.rows[0]))
    cut = groups(weight(found.rows, found.order), most)
    out = []
    for which in cut:
        own = found.take(which)
        out.append(Task(own.order, own.cell, len(cut) == 1))
    return out


def _match(shared: Sides, task: Task, schema: pa.Schema, part: Path) -> None:
    """Write the pairs of a task's left sources."""
    own = union([ranges(task.order, task.cell)])
    left, right = _rows(shared, task, own)
    pairs = candidate_pairs(
        shared.left.positions(left), shared.right.positions(right), shared.radius_arcsec, shared.prior
    )
    if not task.whole:
        mine = inside(own, column(left, CELL))[pairs.column("left_row").to_numpy()]
        pairs = pairs.filter(pa.array(mine))
    i, j = (pairs.column(n).to_numpy() for n in ("left_row", "right_row"))
    columns = [
        ids(column(left, "key")[i], shared.left.id_type),
        ids(column(right, "key")[j], shared.right.id_type),
        *(pairs.column(n) for n in pairs.column_names[2:]),
        pa.array(column(left, CELL)[i]),
    ]
    with aside(part) as path:
        pq.write_table(pa.table(columns, schema=schema), path, **encodings(schema))


def _pair_schema(shared: Sides) -> pa.Schema:
    first = [pa.field("left_id", shared.left.id_type), pa.field("right_id", shared.right.id_type)]
    last = pa.field("healpix29", pa.int64(), metadata={"about": "of the left source: NESTED, order 29"})
    return pa.schema([*first, *list(PAIR_SCHEMA)[2:], last])


def _rows(shared: Sides, task: Task, own: tuple[Ints, Ints]) -> tuple[pa.Table, pa.Table]:
    """All right rows that may match one of the task's left rows, and all left rows that may match one of those."""
    if task.whole:
        everything = ranges(0, np.arange(12))
        return _gather(shared.left, None, everything, None), _gather(shared.right, None, everything, None)
    rings = [around(k, c, shared.reach_arcsec, 2) for k, c in zip(task.order.tolist(), task.cell.tolist(), strict=True)]
    near, far = [own, *(r[0] for r in rings)], [own, *(r[1] for r in rings)]
    order = sky.order_for(shared.reach_arcsec)
    left_fast, right_fast = shared.left_fast, shared.right_fast
    if left_fast is not None:
        tracks = left_fast.tracks(np.flatnonzero(inside(own, column(left_fast.rows, CELL))), order)
        near.append(ranges(order, sky.rings(order, tracks, 1)))
        far.append(ranges(order, sky.rings(order, tracks, 2)))
    right_where = union(near)
    some = None
    if right_fast is not None:
        some = right_fast.touching(right_where, own)
        far.append(ranges(order, sky.rings(order, right_fast.tracks(some, order), 1)))
    right = _gather(shared.right, right_fast, right_where, some)
    left_where = union(far)
    some = left_fast.touching(left_where, own) if left_fast is not None else None
    return _gather(shared.left, left_fast, left_where, some), right


def _gather(side: Side, fast: Fast | None, where: tuple[Ints, Ints], some: Ints | None) -> pa.Table:
    rows = side.runs(where).rows(where)
    if fast is not None:
        slow = _reach(Positions.of(side.positions(rows)), fast.span) <= fast.slow_arcsec
        rows = pa.concat_tables([rows.filter(pa.array(slow)), fast.rows.take(pa.array(some))])
    elif side.held is not None and len(side.held.runs) <= 1:
        # whose rows were sorted in full
        return rows.combine_chunks()
    return sorted_rows(rows, full=True)


# -- the end


def _finish(
    result: Path,
    parts: list[Path],
    schema: pa.Schema,
    shared: Sides,
    tables: list[Table],
    columns: list[Columns],
    out: Path,
) -> Summary:
    """Count the pairs, drop empty parts, and say what this is."""
    n_pairs = n_mutual = n_parts = 0
    for path in parts:
        with pq.ParquetFile(path) as file:
            n_rows = file.metadata.num_rows
            if n_rows:
                n_mutual += pc.sum(file.read(["mutual"]).column(0).cast(pa.int64())).as_py() or 0
        n_pairs, n_parts = n_pairs + n_rows, n_parts + bool(n_rows)
        if not n_rows:
            path.unlink()
    if not n_parts:
        pq.write_table(schema.empty_table(), result / "part-000000.parquet")
    summary = Summary(out, shared.radius_arcsec, tables[0].n_rows, tables[1].n_rows, n_pairs, n_mutual, max(n_parts, 1))
    said = {
        "what": WHAT,
        "format": FORMAT,
        **{k: v for k, v in asdict(summary).items() if k != "out"},
        **{
            t.what: {"columns": asdict(c), "files": [[f.path, f.n_bytes, f.n_rows] for f in t.files]}
            for t, c in zip(tables, columns, strict=True)
        },
    }
    # a name that Arrow passes over: the folder is a dataset
    with aside(result / "_crossmatch.json") as path:
        path.write_text(json.dumps(said, indent=1))
    return summary
