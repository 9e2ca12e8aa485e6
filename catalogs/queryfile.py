"""Query tables: what a service replied, as a Parquet file, read as a FITS table of the same rows would be.

Its columns bear the archive's own names, their units in the field's metadata (`unit`). A null is NaN where the column
is of floats and blank where it is text, as FITS writes them, and masked where it is of whole numbers or booleans.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skycairn.catalogs.bounds import refuse_large_table

LACKS = (
    "the service that was asked has no such column; read the survey's own files, or choose a profile whose cuts do "
    "not need it"
)
"""Why a query table is likely to lack a column."""
TEXT_BYTES = 64
"""Taken for a text when memory is reckoned before reading."""


def is_query(path: Path) -> bool:
    """Whether the file is a query table, by its name."""
    return path.suffix == ".parquet"


def query_rows(path: Path) -> int:
    """Rows of a query table, from its footer."""
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def query_columns(
    path: Path, rows: tuple[int, int] | None = None
) -> tuple[dict[str, Callable[[], NDArray[Any]]], int, int]:
    """Columns by name, each read when it is called for; the number of rows; the first row.

    Of the half-open range `rows` alone where it is given. A column of lists of one length is an array (n, length).
    ValueError where the file is damaged, or no query table.
    """
    with _opened(path) as file:
        total, schema = int(file.metadata.num_rows), file.schema_arrow
        start, stop = rows if rows is not None else (0, total)
        if not 0 <= start <= stop <= total:
            raise ValueError(f"{path}: rows {start}..{stop} were asked of a table of {total}")
        ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]).tolist()
        refuse_large_table(stop - start, [_width(f.type) for f in schema], str(path))
    groups = [i for i, end in enumerate(ends) if end > start and (ends[i - 1] if i else 0) < stop]
    first = ends[groups[0] - 1] if groups and groups[0] else 0
    within = (start - first, stop - start)
    names = schema.names
    if len({n.lower() for n in names}) != len(names):
        raise ValueError(f"{path}: two of its columns have one name, but for case; ask the service again")
    return {name: partial(_read, path, name, groups, within) for name in names}, stop - start, start


def query_units(path: Path) -> dict[str, str]:
    """Units of the columns that have one, as the service spells them."""
    with _opened(path) as file:
        schema = file.schema_arrow
    units = {f.name: (f.metadata or {}).get(b"unit", b"").decode("utf-8", "replace") for f in schema}
    return {name: unit for name, unit in units.items() if unit}


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with path.open("rb") as stream, pq.ParquetFile(stream, page_checksum_verification=True) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path}: cannot be read as Parquet ({error}); fetch it again") from error


def _width(kind: pa.DataType) -> int:
    if pa.types.is_fixed_size_list(kind):
        return kind.list_size * _width(kind.value_type)
    try:
        return math.ceil(kind.bit_width / 8)
    except ValueError:
        return TEXT_BYTES


def _read(path: Path, name: str, groups: list[int], within: tuple[int, int]) -> NDArray[Any]:
    with _opened(path) as file:
        column = file.read_row_groups(groups, columns=[name]).column(name)
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    try:
        return _values(array.slice(*within))
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f"{path}: column {name!r} is {column.type}: {error}") from error


def _values(array: pa.Array) -> NDArray[Any]:
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array(array.fill_null("").to_pylist(), dtype=np.str_)
    if pa.types.is_fixed_size_list(kind):
        size = kind.list_size
        inner = _values(array.values.slice(array.offset * size, len(array) * size)).reshape(len(array), size)
        if array.null_count:
            if inner.dtype.kind != "f":
                raise ValueError("an array that may be null must be of floats")
            inner = np.where(array.is_null().to_numpy(zero_copy_only=False)[:, None], np.nan, inner)
        return inner
    null = array.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_floating(kind):
        return np.array(array.to_numpy(zero_copy_only=False), dtype=kind.to_pandas_dtype())
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        # filled before it leaves Arrow: a null would turn whole numbers into floats
        values = array.fill_null(False if pa.types.is_boolean(kind) else 0).to_numpy(zero_copy_only=False)
        return np.ma.MaskedArray(values, mask=null) if null.any() else np.array(values)
    raise ValueError("wanted text, numbers, booleans or arrays of one length")
