"""Parquet as the pile writes it: the same rows give the same bytes, and a flipped bit in a page is noticed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from skycairn.pile.content import ContentHasher, logical_types
from skycairn.pile.files import Damaged, Missing

ROW_GROUP_ROWS = 65_536
"""Rows of a row group, unless told otherwise. Tables of images want far fewer: a row group is held in memory."""


class TableWriter:
    """Writes a table that comes in pieces to a file object.

    The bytes hang on the rows, the schema and `row_group_rows` alone, not on the pieces: each row group is gathered,
    made contiguous, its dictionaries rebuilt, then written.
    """

    def __init__(self, sink: Any, schema: pa.Schema, row_group_rows: int = ROW_GROUP_ROWS) -> None:
        if row_group_rows < 1:
            raise ValueError(f"row_group_rows is {row_group_rows}; wanted at least 1")
        self.schema = stored_schema(schema)
        self._types = logical_types(schema)
        self._hasher = ContentHasher(schema)
        self._group_rows = row_group_rows
        self._waiting: list[pa.Table] = []
        self._n_waiting = 0
        with _callers_mistake():
            self._writer = pq.ParquetWriter(sink, self.schema, **encodings(self.schema))

    @property
    def n_rows(self) -> int:
        """Rows given so far."""
        return self._hasher.n_rows

    @property
    def content_id(self) -> str:
        """Content id of the rows given so far."""
        return self._hasher.content_id

    def write(self, table: pa.Table | pa.RecordBatch) -> None:
        """Add rows. Columns as in the schema, in its order; ValueError names what differs."""
        if isinstance(table, pa.RecordBatch):
            table = pa.Table.from_batches([table])
        if table.schema.names != self.schema.names:
            raise ValueError(f"the rows have columns {table.schema.names}, the file has {self.schema.names}")
        if not self.schema.names and table.num_rows:
            raise ValueError(f"{table.num_rows} rows without a column; Parquet cannot hold them")
        types = logical_types(table.schema)
        if wrong := [f"{n} is {types[n]}, wanted {self._types[n]}" for n in types if types[n] != self._types[n]]:
            raise ValueError(f"the rows do not have the file's types: {'; '.join(wrong)}")
        with _callers_mistake():
            table = table.cast(self.schema)
        self._hasher.update(table)
        self._waiting.append(table)
        self._n_waiting += table.num_rows
        if self._n_waiting >= self._group_rows:
            self._write_groups(whole=True)

    def _write_groups(self, whole: bool) -> None:
        waiting = pa.concat_tables(self._waiting)
        n_now = self._n_waiting - self._n_waiting % self._group_rows if whole else self._n_waiting
        for start in range(0, n_now, self._group_rows):
            group = _canonical_chunks(waiting.slice(start, min(self._group_rows, n_now - start)))
            with _callers_mistake():
                self._writer.write_table(group, row_group_size=self._group_rows)
        rest = waiting.slice(n_now)
        self._waiting, self._n_waiting = [rest] if rest.num_rows else [], rest.num_rows

    def close(self) -> None:
        """Write what waits, and the footer."""
        if self._n_waiting:
            self._write_groups(whole=False)
        self._writer.close()

    def abandon(self) -> None:
        """Let go of the writer; the file is of no use."""
        with suppress(OSError, pa.ArrowException):
            self._writer.close()


def encodings(schema: pa.Schema) -> dict[str, Any]:
    """Arguments of `ParquetWriter` for the schema.

    Byte-stream-split for floats and delta for 64-bit integers and times, which with zstd-3 make catalogues a third
    smaller than the defaults; dictionaries for strings and small integers. Booleans and nulls have one encoding.
    """
    by_leaf: dict[str, str] = {}
    dictionary: list[str] = []
    for path, kind in (leaf for field in schema for leaf in _leaves(field.name, field.type)):
        t = pa.types
        if t.is_floating(kind):
            by_leaf[path] = "BYTE_STREAM_SPLIT"
        elif t.is_int64(kind) or t.is_uint64(kind) or (t.is_temporal(kind) and kind.bit_width == 64):
            by_leaf[path] = "DELTA_BINARY_PACKED"
        elif not (t.is_boolean(kind) or t.is_null(kind)):
            dictionary.append(path)
    return {
        "version": "2.6",
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": dictionary or False,
        "column_encoding": by_leaf or None,
        "write_statistics": True,
        "write_page_checksum": True,
        "store_schema": True,
    }


def _leaves(path: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """Parquet's own paths of a column's leaves."""
    t = pa.types
    if t.is_dictionary(kind):
        yield path, kind.value_type
    elif t.is_struct(kind):
        for i in range(kind.num_fields):
            yield from _leaves(f"{path}.{kind.field(i).name}", kind.field(i).type)
    elif t.is_nested(kind):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    else:
        yield path, kind


def _canonical_chunks(table: pa.Table) -> pa.Table:
    for i, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            # entries in the order of the rows, none unused
            array = table.column(i).combine_chunks()
            if isinstance(array, pa.ChunkedArray):
                array = array.unify_dictionaries().combine_chunks()
            plain = array.dictionary_decode().dictionary_encode()
            indices = plain.indices.cast(field.type.index_type)
            again = pa.DictionaryArray.from_arrays(indices, plain.dictionary, ordered=field.type.ordered)
            table = table.set_column(i, field, again)
    return table.combine_chunks()


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """The schema that a file gets: less what pandas wrote into it, and dictionaries inside lists or structs decoded.

    pandas' words change from version to version; a nested dictionary cannot be read back by pyarrow where a row group
    has more than one.
    """
    metadata = {k: v for k, v in (schema.metadata or {}).items() if k != b"pandas"}
    return pa.schema([f.with_type(_stored_type(f.type)) for f in schema], metadata or None)


def _stored_type(kind: pa.DataType, nested: bool = False) -> pa.DataType:
    t = pa.types
    if t.is_dictionary(kind):
        return kind.value_type if nested else kind
    if t.is_struct(kind):
        return pa.struct([f.with_type(_stored_type(f.type, nested=True)) for f in kind.fields])
    if not (t.is_fixed_size_list(kind) or t.is_list(kind) or t.is_large_list(kind)):
        return kind
    if t.is_fixed_size_list(kind) and kind.list_size == 0:
        raise ValueError(f"Parquet gives {kind} back with another length; leave the column out")
    # Parquet's own name, so that rows that were read back give the same bytes as fresh ones
    item = kind.value_field.with_type(_stored_type(kind.value_type, nested=True)).with_name("element")
    if t.is_fixed_size_list(kind):
        return pa.list_(item, kind.list_size)
    return pa.large_list(item) if t.is_large_list(kind) else pa.list_(item)


def open_file(path: Path, n_rows: int | None = None) -> pq.ParquetFile:
    """The Parquet file, its pages verified as they are read. `Damaged` where it does not have `n_rows`."""
    with damage(path):
        file = pq.ParquetFile(path, page_checksum_verification=True)
    if n_rows is not None and file.metadata.num_rows != n_rows:
        file.close()
        raise Damaged(f"{path} has {file.metadata.num_rows} rows, not {n_rows}; remove it and build it again")
    return file


def read(
    path: Path,
    columns: Sequence[str] | None = None,
    rows: tuple[int, int] | None = None,
    filters: Any = None,
    n_rows: int | None = None,
) -> pa.Table:
    """Columns and the half-open range of rows of a Parquet file; only the row groups that hold them are read.

    `filters` is a `pyarrow.compute` expression or pyarrow's list of tuples; row groups whose statistics rule them out
    are not read. It does not go together with `rows`.
    """
    if rows is not None and filters is not None:
        raise ValueError("rows and filters were both given; give one of them")
    with open_file(path, n_rows) as file:
        names = file.schema_arrow.names
        if absent := [c for c in columns or () if c not in names]:
            raise ValueError(f"{path}: there is no column {', '.join(absent)}; the file has {', '.join(names)}")
        n_rows = file.metadata.num_rows
        start, stop = (0, n_rows) if rows is None else rows
        if not 0 <= start <= stop <= n_rows:
            raise ValueError(f"{path}: rows [{start}, {stop}) were asked for; the file has {n_rows}")
        wanted = list(names if columns is None else columns)
        with damage(path):
            if filters is not None:
                table = pq.read_table(
                    path, columns=wanted, filters=filters, page_checksum_verification=True, partitioning=None
                )
            else:
                table, skipped = _read_groups(file, wanted, start, stop)
                table = table.slice(start - skipped, stop - start)
            # Parquet's own column choice takes "a.b" for "a", too
            return table.select(wanted)


def _read_groups(file: pq.ParquetFile, columns: list[str], start: int, stop: int) -> tuple[pa.Table, int]:
    """The row groups that hold the rows, and the number of rows before them."""
    groups: list[int] = []
    skipped = first = 0
    for i in range(file.metadata.num_row_groups):
        last = first + file.metadata.row_group(i).num_rows
        if last <= start:
            skipped = last
        elif first < stop:
            groups.append(i)
        first = last
    return file.read_row_groups(groups, columns=columns), skipped


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Turn what pyarrow says of a damaged file into `Damaged`, and leave errors of the disk as they are."""
    try:
        yield
    except FileNotFoundError as error:
        raise Missing(f"{path}: the file is not there; build it again, or restore it from a copy") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Damaged(
            f"{path}: the file cannot be read ({text}); it is damaged or not a Parquet file: remove it and build it "
            f"again, or restore it from a copy"
        ) from error


@contextmanager
def _callers_mistake() -> Iterator[None]:
    """Turn what pyarrow says of a table that cannot be written into ValueError."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"the table cannot be written as Parquet: {error}") from error
