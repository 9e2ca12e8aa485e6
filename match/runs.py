"""Rows sorted by cell, in as many sorted pieces ("runs") as memory asks for: an external sort that is never finished.

A piece of the input is read, sorted and written; any range of the sky is then one slice of each run. So rows are
written once, counts are exact at any order, and no file is open for writing but one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skycairn.match import sky
from skycairn.match.crossmatch import UNITS, values_of
from skycairn.match.inputs import Columns, Piece, batches, check_sky
from skycairn.match.regions import Ints, Ranges, union

CELL = "_healpix_29"
"""Name of the column that runs are sorted by, as HATS has it."""
HELD_BYTES = 32 << 20
"""Of a run in memory: few enough to be sorted in the processor's cache."""
MOST_BYTES = 128 << 20
"""Of a run on disk."""
EPOCHS = 1800.0, 2200.0
"""Julian years in which a source may be seen."""
SLICES = 64
"""Up to so many ranges are cut out of a run one by one; of more, the rows are taken by number."""


class Reader(Protocol):
    """How rows of the input become rows of a run."""

    @property
    def columns(self) -> list[str]:
        """That are read."""

    def __call__(self, rows: pa.Table, path: str, first_row: int) -> pa.Table:
        """Rows of a run, not sorted: `CELL` and others, no column in chunks."""


class Slim:
    """Reads what matching needs: key, ra, dec, and motion, epochs, errors where they are named; NaN for null.

    Columns whose field metadata tell a `unit` are converted to `UNITS`, as `crossmatch` does.
    """

    def __init__(self, columns: Columns) -> None:
        self._columns = columns

    @property
    def columns(self) -> list[str]:
        """Each once."""
        return list(dict.fromkeys(self._columns.named().values()))

    @property
    def names(self) -> list[str]:
        """Of the columns that come out."""
        named = [n for n in self._columns.named() if n != "id"]
        return [CELL, "key", *named]

    @property
    def schema(self) -> pa.Schema:
        """Of what comes out."""
        whole = (CELL, "key")
        return pa.schema([(n, pa.int64() if n in whole else pa.float64()) for n in self.names])

    def __call__(self, rows: pa.Table, path: str, first_row: int) -> pa.Table:
        """One chunk a column."""
        named = self._columns.named()
        out: dict[str, NDArray[Any]] = {"key": keys(rows.column(named["id"]), path, named["id"], first_row)}
        for name in self.names[2:]:
            out[name] = values_of(rows, named[name], UNITS[name], path)
        check_sky(out["ra"], out["dec"], path, first_row)
        known: dict[str, NDArray[np.float64] | float] = {**self._columns.constants(), **out}
        _check_errors(known, path, first_row, rows.num_rows)
        _check_epochs(known, path, first_row, rows.num_rows)
        # a catalogue's own cells are not believed: one that is wrong would lose pairs
        return pa.table({CELL: sky.healpix29(out["ra"], out["dec"]), **out})


def _check_errors(values: Mapping[str, NDArray[np.float64] | float], path: str, first_row: int, n_rows: int) -> None:
    for name in ("ra_error", "dec_error"):
        if name not in values:
            continue
        error = np.broadcast_to(values[name], n_rows)
        bad = error <= 0
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(
                f"{path} at row {first_row + row}: {name} is {error[row]} arcsec; wanted above 0, or null where it is "
                "not known"
            )


def _check_epochs(values: Mapping[str, NDArray[np.float64] | float], path: str, first_row: int, n_rows: int) -> None:
    for name in ("epoch", "epoch_min", "epoch_max"):
        if name not in values:
            continue
        epoch = np.broadcast_to(values[name], n_rows)
        bad = (epoch < EPOCHS[0]) | (epoch > EPOCHS[1])
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(
                f"{path} at row {first_row + row}: {name} is {epoch[row]}; is it MJD? wanted Julian years from "
                f"{EPOCHS[0]:g} to {EPOCHS[1]:g}, or null where it is not known"
            )
    if "epoch_min" in values and "epoch_max" in values:
        low, high = (np.broadcast_to(values[n], n_rows) for n in ("epoch_min", "epoch_max"))
        bad = low > high
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(
                f"{path} at row {first_row + row} holds from epoch {low[row]} to {high[row]}; "
                "wanted epoch_min <= epoch_max"
            )


def keys(column: pa.ChunkedArray, path: str, name: str, first_row: int) -> Ints:
    """Integers as int64 in the same order, never through float; an unsigned one less 2^63."""
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy()))
        raise ValueError(f"{path} at row {first_row + row}: {name} is null; wanted an id in every row")
    if column.type == pa.uint64():
        return np.asarray(column.to_numpy() ^ np.uint64(1 << 63)).view(np.int64)
    return np.asarray(column.cast(pa.int64()).to_numpy())


def ids(key: Ints, id_type: pa.DataType) -> pa.Array:
    """The inverse of `keys`."""
    if id_type == pa.uint64():
        return pa.array(key.view(np.uint64) ^ np.uint64(1 << 63))
    return pa.array(key).cast(id_type)


# -- sorting


def order_of(cell: Ints, *ties: NDArray[Any]) -> Ints:
    """Rows in ascending order of cell, then of `ties` one after the other: the same for the same set of rows."""
    order = _argsort(cell)
    sorted_cell = cell[order]
    same = sorted_cell[1:] == sorted_cell[:-1]
    if ties and same.any():
        _settle(order, same, *ties, sorted_cell)
    return order


def _argsort(cell: Ints) -> Ints:
    """As `np.argsort`: cell and row number packed into one number, which sorts several times faster.

    The cell's last bits may have to go for it; rows that are equal without them are settled afterwards.
    """
    if cell.size < 2:
        return np.arange(cell.size)
    low, high = int(cell.min()), int(cell.max())
    row_bits = (cell.size - 1).bit_length()
    lost = max(0, (high - low).bit_length() + row_bits - 63)
    packed = (((cell - low) >> lost) << row_bits) | np.arange(cell.size)
    packed.sort()
    order = packed & ((1 << row_bits) - 1)
    if lost:
        packed >>= row_bits
        same = packed[1:] == packed[:-1]
        if same.sum() > cell.size // 4:
            return np.asarray(np.argsort(cell), np.int64)
        if same.any():
            _settle(order, same, cell, packed)
    return np.asarray(order, np.int64)


def _settle(order: Ints, same: NDArray[np.bool_], *by: NDArray[Any]) -> None:
    """Sort, in place, runs of rows that are the same as the one before, by all but the last of `by`, rows' values.

    The last of them is in the order of `order` already, and tells one run from another.
    """
    at = np.flatnonzero(np.append(same, False) | np.append(False, same))
    rows = order[at]
    order[at] = rows[np.lexsort([*(values[rows] for values in reversed(by[:-1])), by[-1][at]])]


def sorted_rows(rows: pa.Table, full: bool = False) -> pa.Table:
    """The rows by ascending cell, one chunk a column; `full`: ties by all other columns, from the left."""
    if not rows.num_rows:
        return rows
    rows = rows.combine_chunks()
    cell = column(rows, CELL)
    if not full and (cell[1:] >= cell[:-1]).all():
        return rows
    ties = [column(rows, n) for n in rows.column_names if n != CELL] if full else []
    return taken(rows, order_of(cell, *ties))


def taken(rows: pa.Table, at: Ints) -> pa.Table:
    """Rows by number, one chunk a column; numbers without null go the short way, through numpy."""
    out = []
    for field in rows.schema:
        values = rows.column(field.name)
        if values.num_chunks == 1 and _plain(field.type) and not values.null_count:
            out.append(pa.array(values.chunk(0).to_numpy()[at], field.type))
        else:
            out.append(values.take(pa.array(at)))
    return pa.table(out, schema=rows.schema).combine_chunks()


def _plain(kind: pa.DataType) -> bool:
    t = pa.types
    return bool((t.is_integer(kind) or t.is_floating(kind)) and kind != pa.float16())


def column(rows: pa.Table, name: str) -> NDArray[Any]:
    """A column of numbers without null; no copy where it is one chunk."""
    chunked = rows.column(name)
    return np.asarray(chunked.chunk(0).to_numpy() if chunked.num_chunks == 1 else chunked.to_numpy())


def chunks(job: Sequence[Piece], reader: Reader, most_bytes: int) -> Iterator[pa.Table]:
    """The job's rows, not sorted, in tables of about `most_bytes`."""
    waiting: list[pa.Table] = []
    n_bytes = 0
    for piece in job:
        for first, rows in batches(piece, reader.columns):
            table = reader(rows, piece.path, first)
            # what is to come may be as large
            if waiting and n_bytes + table.nbytes > most_bytes:
                yield pa.concat_tables(waiting)
                waiting, n_bytes = [], 0
            waiting.append(table)
            n_bytes += table.nbytes
    if waiting:
        yield pa.concat_tables(waiting)


# -- runs


def write_runs(job: Sequence[Piece], reader: Reader, most_bytes: int, folder: Path) -> None:
    """Write the job's runs into a folder, which is there once all of them are; a name tells first and last cell."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    n_rows = 0
    for i, rows in enumerate(chunks(job, reader, most_bytes)):
        table = sorted_rows(rows)
        del rows
        cell = column(table, CELL)
        path = aside / f"{i}-{cell[0]}-{cell[-1]}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        n_rows += table.num_rows
    wanted = sum(p.n_rows for p in job)
    if n_rows != wanted:
        raise ValueError(f"{job[0].path}: {wanted} rows were to be read and {n_rows} were written; try again")
    aside.rename(folder)


@dataclass(frozen=True)
class Run:
    """Rows of a table, sorted by cell."""

    cell: Ints
    rows: pa.Table


class Runs:
    """Sorted runs; reading a range of the sky touches only the rows in it."""

    def __init__(self, runs: Sequence[Run], schema: pa.Schema) -> None:
        self.runs = [r for r in runs if r.cell.size]
        self.schema = schema

    @classmethod
    def hold(cls, job: Sequence[Piece], reader: Reader, schema: pa.Schema, full: bool = False) -> Runs:
        """Of a job's rows, in memory; `full` as in `sorted_rows`."""
        tables = [sorted_rows(rows, full) for rows in chunks(job, reader, HELD_BYTES)]
        return cls([Run(column(t, CELL), t) for t in tables], schema)

    @classmethod
    def open(cls, folder: Path, schema: pa.Schema, where: Ranges | None = None) -> Runs:
        """All that `write_runs` put below the folder, or those that may have rows in these ranges; mapped, not read."""
        found = []
        for path in sorted(folder.glob("[0-9]*/*.arrow")):
            first, last = map(int, path.stem.split("-")[1:])
            if where is None or _overlap(where, first, last):
                table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
                found.append(Run(column(table, CELL), table))
        return cls(found, schema)

    @property
    def n_rows(self) -> int:
        """Of all runs."""
        return sum(r.cell.size for r in self.runs)

    @property
    def n_bytes(self) -> int:
        """Of all runs."""
        return sum(r.rows.nbytes for r in self.runs)

    def count(self, low: Ints, high: Ints) -> Ints:
        """Rows in each range."""
        total = np.zeros(low.size, np.int64)
        for run in self.runs:
            total += np.searchsorted(run.cell, high) - np.searchsorted(run.cell, low)
        return total

    def rows(self, where: Ranges) -> pa.Table:
        """The rows in these ranges, sorted within each run only, maybe in several chunks."""
        low, high = union([where])
        out: list[pa.Table] = []
        for run in self.runs:
            start, stop = np.searchsorted(run.cell, low), np.searchsorted(run.cell, high)
            some = stop > start
            start, stop = start[some], stop[some]
            if start.size > SLICES:
                count = stop - start
                first = np.cumsum(count) - count
                at = np.arange(int(count.sum())) + np.repeat(start - first, count)
                out.append(taken(run.rows, at))
            else:
                out += [run.rows.slice(i, j - i) for i, j in zip(start.tolist(), stop.tolist(), strict=True)]
        return pa.concat_tables(out) if out else self.schema.empty_table()

    def blocks(self, most_rows: int) -> Iterator[pa.Table]:
        """All rows, few at a time."""
        for run in self.runs:
            for start in range(0, run.cell.size, most_rows):
                yield run.rows.slice(start, most_rows)


def _overlap(where: Ranges, first: int, last: int) -> bool:
    """Whether any of the ranges, ascending, has a cell of first .. last."""
    low, high = where
    at = int(np.searchsorted(high, first, side="right"))
    return at < low.size and int(low[at]) <= last
