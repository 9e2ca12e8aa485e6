"""Find the wanted columns in whatever layout a file has, and give them as Arrow arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skycairn.catalogs.survey import Column, MissingColumn

Fetch = Callable[[], NDArray[Any]]


def own_columns(
    available: Mapping[str, Fetch],
    columns: Sequence[Column],
    n_rows: int,
    needed: Iterable[str],
    where: str,
    reason: str,
) -> list[pa.Array]:
    """The survey's own columns, in order, typed; null where the file lacks an optional one.

    `available` maps the file's column names, in any case, to their values. `where` names survey, release and file for
    the error, `reason` says why a column is likely to be missing.
    """
    by_name: dict[str, Fetch] = {}
    for name, fetch in available.items():
        by_name.setdefault(name.lower(), fetch)
    wanted = set(needed)
    out = []
    for column in columns:
        found = next((by_name[n] for n in (column.name, *column.aliases) if n in by_name), None)
        if found is None:
            if column.required or column.name in wanted:
                raise MissingColumn(f"{where} has no column {column.name.upper()!r}: {reason}")
            out.append(pa.nulls(n_rows, column.type))
            continue
        out.append(to_arrow(found(), column, where))
    return out


def to_arrow(values: NDArray[Any], column: Column, where: str) -> pa.Array:
    """One column's values as its declared type; NaN and what is masked become null, strings lose their padding.

    ValueError where the type cannot hold them: an overflow, a fraction, or an identifier that was a float.
    """
    hidden = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
    values = np.ma.getdata(values)
    try:
        if pa.types.is_string(column.type):
            if values.dtype.kind == "S":
                values = np.char.decode(values, "utf-8", "replace")
            return pa.array(np.char.strip(values.astype(str)), pa.string())
        native = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("="), copy=False)
        if pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type):
            flat = pa.array(native.reshape(-1), from_pandas=True).cast(column.type.value_type)
            if pa.types.is_fixed_size_list(column.type):
                if native.ndim != 2 or native.shape[1] != column.type.list_size:
                    raise ValueError(f"wanted {column.type.list_size} numbers a row")
                return pa.FixedSizeListArray.from_arrays(flat, column.type.list_size)
            offsets = np.arange(len(native) + 1, dtype=np.int32) * native.shape[1]
            return pa.ListArray.from_arrays(offsets, flat)
        mask = np.zeros(len(native), dtype=bool) if hidden is None else hidden
        if native.dtype.kind == "f":
            if pa.types.is_int64(column.type):
                raise ValueError("a whole number of 63 bits never passes through a float")
            mask = mask | ~np.isfinite(native)
        if column.zero_is_null:
            mask = mask | (native == 0)
        made = pa.array(native, mask=mask).cast(column.type)
        if pa.types.is_floating(made.type) and not pc.all(pc.is_finite(made)).as_py() and len(made) > made.null_count:
            raise ValueError(f"{native[~mask][np.argmax(np.abs(native[~mask]))]:g} is beyond it")
        return made
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise ValueError(
            f"{where}: column {column.name.upper()!r} holds {values.dtype} of shape {values.shape}, "
            f"wanted {column.type}: {error}"
        ) from error
