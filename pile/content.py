"""What a table says, as one SHA-256: free of files, compression, chunks and dictionary encoding.

Two tables have the same content id when they hold the same columns (by name, in any order) of the same logical types
with the same rows in the same order. Rows are taken as given: callers sort by key.

What is one and what is two:

* a null is a null, whatever bytes lie under it, and never equals a value;
* every NaN is the same NaN; a NaN is not a null;
* 0.0 and -0.0 are two values, as they are two bit patterns: a build that turns one into the other has changed;
* string = large_string = string_view, list = large_list = list_view, dictionary<T> = T;
* int32 and int64 are two types, and so are list and fixed_size_list;
* field names inside a list, nullability and metadata say nothing; field names inside a struct do.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_FORMAT = b"skycairn content 1"


def content_id(table: pa.Table) -> str:
    """SHA-256 of the table's logical rows, as 64 hexadecimal digits; see the head of this file."""
    hasher = ContentHasher(table.schema)
    hasher.update(table)
    return hasher.content_id


def merkle(items: Mapping[str, str]) -> str:
    """SHA-256 over names and digests, in the order of the names."""
    digest = hashlib.sha256(b"skycairn merkle 1")
    for name in sorted(items):
        _add_text(digest, name)
        _add_text(digest, items[name])
    return digest.hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value of dicts, lists, strings, ints, finite floats, bools and None.

    Floats are written by their shortest exact repr. ValueError names the place of anything else, since another type
    (a NumPy number, a path, a dict with integer keys) would be written one way today and another way tomorrow.
    """
    _check_json(value, "$")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _check_json(value: Any, where: str) -> None:
    if type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise ValueError(f"{where} has the key {key!r}; keys must be strings")
            _check_json(item, f"{where}.{key}")
    elif type(value) in (list, tuple):
        for i, item in enumerate(value):
            _check_json(item, f"{where}[{i}]")
    elif type(value) is float:
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}; JSON has no such number: use null or a string")
    elif value is not None and type(value) not in (str, int, bool):
        raise ValueError(
            f"{where} is {value!r} ({type(value).__module__}.{type(value).__qualname__}); wanted a plain str, int, "
            f"float, bool, None, list or dict: convert it"
        )


class ContentHasher:
    """Content id of a table that comes in pieces; the same as that of the pieces joined."""

    def __init__(self, schema: pa.Schema) -> None:
        if len(set(schema.names)) != len(schema.names):
            twice = sorted({n for n in schema.names if schema.names.count(n) > 1})
            raise ValueError(f"columns {twice} come twice; a content id wants one column a name")
        self.n_rows = 0
        self._types = logical_types(schema)
        self._columns = {name: _Column(kind) for name, kind in self._types.items()}

    def update(self, table: pa.Table | pa.RecordBatch) -> None:
        """Add the next rows."""
        if (types := logical_types(table.schema)) != self._types:
            raise ValueError(f"the next rows have columns {types}, the first had {self._types}")
        for name, column in self._columns.items():
            values = table.column(name)
            for chunk in values.chunks if isinstance(values, pa.ChunkedArray) else [values]:
                column.update(chunk)
        self.n_rows += table.num_rows

    @property
    def content_id(self) -> str:
        """Of all rows so far."""
        digest = hashlib.sha256(_FORMAT)
        digest.update(self.n_rows.to_bytes(8, "little"))
        for name in sorted(self._columns):
            _add_text(digest, name)
            digest.update(self._columns[name].digest())
        return digest.hexdigest()


def logical_types(schema: pa.Schema) -> dict[str, str]:
    """Logical type of each column, as text."""
    return {field.name: logical_type(field.type) for field in schema}


def logical_type(kind: pa.DataType) -> str:
    """The type less what only says how it is stored. ValueError for one that has no content id."""
    t = pa.types
    if t.is_dictionary(kind):
        return logical_type(kind.value_type)
    if t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind):
        return "string"
    if t.is_binary(kind) or t.is_large_binary(kind) or t.is_binary_view(kind):
        return "binary"
    if t.is_fixed_size_list(kind):
        return f"list[{kind.list_size}]<{logical_type(kind.value_type)}>"
    if _is_list(kind):
        return f"list<{logical_type(kind.value_type)}>"
    if t.is_struct(kind):
        fields = {kind.field(i).name: logical_type(kind.field(i).type) for i in range(kind.num_fields)}
        if len(fields) != kind.num_fields:
            raise ValueError(f"{kind} has two fields of one name; rename one")
        return f"struct<{', '.join(f'{json.dumps(n)}: {fields[n]}' for n in sorted(fields))}>"
    if t.is_null(kind) or t.is_primitive(kind) or t.is_fixed_size_binary(kind) or t.is_decimal(kind):
        return str(kind)
    raise ValueError(f"there is no content id for the Arrow type {kind}; cast the column to a plain type")


def _is_list(kind: pa.DataType) -> bool:
    t = pa.types
    return bool(t.is_list(kind) or t.is_large_list(kind) or t.is_list_view(kind) or t.is_large_list_view(kind))


class _Column:
    """One column, or one level of a nested one: where its nulls are, and its other values, one after the other."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.n_values = 0
        # typed Any: hashlib's stubs take no NumPy array, hashlib does
        self.nulls: Any = hashlib.sha256()
        self.values: Any = hashlib.sha256()
        self.bytes: Any = hashlib.sha256()
        self.children: dict[str, _Column] = {}

    def update(self, array: pa.Array) -> None:
        kind = array.type
        if pa.types.is_dictionary(kind):
            return self.update(array.dictionary_decode())
        if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
            return self.update(array.cast(pa.large_string() if pa.types.is_string_view(kind) else pa.large_binary()))
        n_values = len(array)
        if array.null_count:
            null = array.is_null().to_numpy(zero_copy_only=False)
            self.nulls.update(_little(np.flatnonzero(null) + self.n_values))
            array = array.drop_null()
        self.n_values += n_values
        if len(array) == 0:
            if pa.types.is_nested(kind):
                self._declare(kind)
        elif pa.types.is_struct(kind):
            self._declare(kind)
            for name, child in self.children.items():
                child.update(array.field(name))
        elif pa.types.is_fixed_size_list(kind):
            self._declare(kind)
            self.children[""].update(array.flatten())
        elif _is_list(kind):
            self._declare(kind)
            self.values.update(_little(array.value_lengths().to_numpy()))
            self.children[""].update(array.flatten())
        elif self.kind in ("string", "binary"):
            self._strings(array)
        else:
            self.values.update(_fixed_width(array))

    def _declare(self, kind: pa.DataType) -> None:
        if self.children:
            return
        if pa.types.is_struct(kind):
            fields = [kind.field(i) for i in range(kind.num_fields)]
            self.children = {f.name: _Column(logical_type(f.type)) for f in sorted(fields, key=lambda f: f.name)}
        else:
            self.children = {"": _Column(logical_type(kind.value_type))}

    def _strings(self, array: pa.Array) -> None:
        wide = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
        _, offsets, data = array.buffers()
        ends = np.frombuffer(offsets, np.int64 if wide else np.int32)[array.offset : array.offset + len(array) + 1]
        self.values.update(_little(np.diff(ends.astype(np.int64))))
        if data is not None:
            self.bytes.update(memoryview(data)[int(ends[0]) : int(ends[-1])])

    def digest(self) -> bytes:
        whole = hashlib.sha256()
        _add_text(whole, self.kind)
        whole.update(self.n_values.to_bytes(8, "little"))
        for part in (self.nulls, self.values, self.bytes):
            whole.update(part.digest())
        for name in sorted(self.children):
            # a child that no value ever reached says no more than the type, which is in `kind`
            if self.children[name].n_values:
                _add_text(whole, name)
                whole.update(self.children[name].digest())
        return whole.digest()


def _fixed_width(array: pa.Array) -> NDArray[Any]:
    """Bytes of an array without nulls, one canonical NaN."""
    kind = array.type
    if pa.types.is_boolean(kind):
        return np.asarray(array.to_numpy(zero_copy_only=False)).view(np.uint8)
    width = kind.bit_width // 8
    raw = np.frombuffer(array.buffers()[1], np.uint8)[array.offset * width : (array.offset + len(array)) * width]
    if pa.types.is_floating(kind):
        values = raw.view(f"=f{width}")
        nan = np.isnan(values)
        if nan.any():
            return _little(np.where(nan, values.dtype.type(np.nan), values))
        return _little(values)
    return raw


def _little(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind in "iu":
        values = values.astype("<i8", copy=False)
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<"))


def _add_text(digest: Any, text: str) -> None:
    raw = text.encode()
    digest.update(len(raw).to_bytes(8, "little"))
    digest.update(raw)
