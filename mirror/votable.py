"""Arrow tables as VOTable (version 1.4): BINARY2 with its null flags, or TABLEDATA with empty cells for nulls."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from itertools import chain
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

DATATYPES: dict[pa.DataType, tuple[str, str]] = {
    pa.bool_(): ("boolean", ""),
    pa.uint8(): ("unsignedByte", ">u1"),
    pa.int16(): ("short", ">i2"),
    pa.int32(): ("int", ">i4"),
    pa.int64(): ("long", ">i8"),
    pa.float32(): ("float", ">f4"),
    pa.float64(): ("double", ">f8"),
}
"""VOTable's name of a type, and numpy's of its bytes."""

HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">\n'
    '<RESOURCE type="results">\n'
)
FOOT = "</RESOURCE>\n</VOTABLE>\n"


def votable(table: pa.Table, overflow: bool = False, binary: bool = True) -> bytes:
    """The whole document; `overflow` says that rows were left out. Units come from the fields' metadata."""
    fields = "".join(_field(f) for f in table.schema)
    data = _binary2(table) if binary else _tabledata(table)
    status = '<INFO name="QUERY_STATUS" value="OVERFLOW"/>\n' if overflow else ""
    text = f'{HEAD}<INFO name="QUERY_STATUS" value="OK"/>\n<TABLE>\n{fields}<DATA>\n{data}</DATA>\n</TABLE>\n{status}{FOOT}'
    return text.encode()


def refusal(message: str) -> bytes:
    """The document that says what was wrong with a query."""
    return f'{HEAD}<INFO name="QUERY_STATUS" value="ERROR">{escape(message)}</INFO>\n{FOOT}'.encode()


def datatype(kind: pa.DataType) -> tuple[str, str | None]:
    """VOTable's `datatype` and `arraysize` of an Arrow type."""
    if pa.types.is_string(kind):
        return "char", "*"
    if pa.types.is_list(kind):
        return DATATYPES[kind.value_type][0], "*"
    return DATATYPES[kind][0], None


def unit_of(field: pa.Field) -> str:
    """The unit in a field's metadata, or nothing."""
    return (field.metadata or {}).get(b"unit", b"").decode()


def _field(field: pa.Field) -> str:
    kind, size = datatype(field.type)
    unit = unit_of(field)
    attributes = [f"name={quoteattr(field.name)}", f'datatype="{kind}"']
    attributes += [f'arraysize="{size}"'] if size else []
    attributes += [f"unit={quoteattr(unit)}"] if unit else []
    return f"<FIELD {' '.join(attributes)}/>\n"


def _binary2(table: pa.Table) -> str:
    columns = [column.combine_chunks() for column in table.columns]
    nulls = [column.is_null().to_numpy(zero_copy_only=False) for column in columns]
    flags = np.packbits(np.array(nulls, dtype=bool).reshape(len(columns), table.num_rows).T, axis=1)
    cells = [[row.tobytes() for row in flags], *map(_cells, columns)]
    stream = b"".join(chain.from_iterable(zip(*cells, strict=True)))
    return f'<BINARY2>\n<STREAM encoding="base64">\n{base64.encodebytes(stream).decode()}</STREAM>\n</BINARY2>\n'


def _cells(column: Any) -> Sequence[bytes]:
    kind = column.type
    if pa.types.is_string(kind):
        words = [(text or "").encode() for text in column.to_pylist()]
        return [len(word).to_bytes(4, "big") + word for word in words]
    if pa.types.is_list(kind):
        code = DATATYPES[kind.value_type][1]
        rows = [np.array(row or [], dtype=code).tobytes() for row in column.to_pylist()]
        width = np.dtype(code).itemsize
        return [(len(row) // width).to_bytes(4, "big") + row for row in rows]
    if pa.types.is_boolean(kind):
        return [{True: b"T", False: b"F", None: b"?"}[value] for value in column.to_pylist()]
    numpy = column.fill_null(0).to_numpy(zero_copy_only=False).astype(DATATYPES[kind][1])
    raw, width = numpy.tobytes(), numpy.dtype.itemsize
    return [raw[i : i + width] for i in range(0, len(raw), width)]


def _tabledata(table: pa.Table) -> str:
    columns = [text_of(column.combine_chunks(), " ").to_pylist() for column in table.columns]
    rows = ("".join(f"<TD>{escape(cell or '')}</TD>" for cell in row) for row in zip(*columns, strict=True))
    return "<TABLEDATA>\n" + "".join(f"<TR>{row}</TR>\n" for row in rows) + "</TABLEDATA>\n"


def text_of(column: Any, between: str) -> Any:
    """A column as text that reads back to the same numbers; lists with `between` their elements; nulls stay null."""
    if pa.types.is_list(column.type):
        words = pa.ListArray.from_arrays(column.offsets, text_of(column.values, between), mask=column.is_null())
        return pc.binary_join(words, between)
    return column.cast(pa.string())
