"""Read a survey's tables whole and write them again with other columns: FITS, or Gaia's csv.gz; mend checksum lists."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from astropy.io import fits
from numpy.typing import NDArray
from pyarrow import csv

from skycairn.mocksky import gaia, gaia_columns
from skycairn.mocksky.fitsfile import TableColumn, write_table
from skycairn.mocksky.tableedits import Form

I64 = NDArray[np.int64]
Rows = dict[str, NDArray[Any]]

FILE = "_file"
"""Column of the tables read: which of the files each row lies in."""
_LETTERS = {"I": "i2", "J": "i4", "K": "i8", "B": "u1", "E": "f4", "D": "f8", "L": "bool"}
_STRUCTURE = re.compile(
    r"XTENSION|BITPIX|NAXIS\d*|PCOUNT|GCOUNT|TFIELDS|T(TYPE|FORM|UNIT|DISP|NULL|DIM)\d+|CHECKSUM|DATASUM"
)
_COLUMN = re.compile(rb"^# - \{name: (\w+), datatype: (\w+)(?:, unit: ([^}]+))?\}$", re.M)
_ECSV = {"int64": "i8", "int16": "i2", "float64": "f8", "float32": "f4", "bool": "bool", "string": "str"}
_DIGESTS = {32: "md5", 40: "sha1", 64: "sha256"}


@dataclass
class Tables:
    """Tables of one kind, one below the other."""

    paths: list[Path]
    columns: list[TableColumn]
    rows: Rows
    cards: list[dict[str, Any]] = field(default_factory=list)
    "of each file's table, beside those of its structure"


def read_fits(paths: Sequence[Path]) -> Tables:
    """The binary table in HDU 1 of each file, of one form. ValueError for a type of column that no mock has."""
    parts: list[Rows] = []
    columns: list[TableColumn] = []
    cards = []
    for number, path in enumerate(paths):
        with fits.open(path) as hdus:
            table = hdus[1]
            found = [TableColumn(c.name, _type(c.format, path), c.unit or "") for c in table.columns]
            if number and found != columns:
                raise ValueError(f"{path} has other columns than {paths[0]}; wanted tables of one form")
            columns = found
            stored = table.data.view(np.ndarray)
            rows: Rows = {}
            for c in columns:
                value = stored[c.name]
                if c.type == "bool":
                    rows[c.name] = value == ord("T")
                elif value.dtype.kind == "S":
                    rows[c.name] = np.char.rstrip(value).astype(c.dtype)
                else:
                    rows[c.name] = value.astype(value.dtype.newbyteorder("="))
            rows[FILE] = np.full(len(stored), number)
            parts.append(rows)
            cards.append({k: v for k, v in table.header.items() if not _STRUCTURE.fullmatch(k)})
    return Tables(list(paths), columns, {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}, cards)


def _type(form: str, path: Path) -> str:
    count, letter = re.fullmatch(r"(\d*)([A-Z]).*", form).groups()  # type: ignore[union-attr]
    if letter == "A":
        return f"char[{count or 1}]"
    if letter not in _LETTERS:
        raise ValueError(f"{path}: has a column of format {form}; wanted one of {', '.join(_LETTERS)}, A")
    return _LETTERS[letter] + (f"[{count}]" if count not in ("", "1") else "")


def write_fits(tables: Tables) -> None:
    """Write every file anew."""
    for number, path in enumerate(tables.paths):
        at = tables.rows[FILE] == number
        values = {c.name: tables.rows[c.name][at] for c in tables.columns}
        write_table(path, tables.columns, values, int(at.sum()), tables.cards[number])


def read_gaia(paths: Sequence[Path]) -> Tables:
    """Bulk files of Gaia: numbers where a column has any, NaN for null; else the text itself, as bytes."""
    parts = []
    columns: list[TableColumn] = []
    for path in paths:
        lines = gzip.decompress(path.read_bytes())
        found = [
            TableColumn(name.decode(), _ECSV[kind.decode()], (unit or b"").decode())
            for name, kind, unit in _COLUMN.findall(lines)
        ]
        if columns and found != columns:
            raise ValueError(f"{path} has other columns than {paths[0]}; wanted tables of one form")
        columns = found
        body = lines[re.search(rb"^(?!#)", lines, re.M).start() :]  # type: ignore[union-attr]
        text = csv.ConvertOptions(column_types={c.name: pa.string() for c in columns})
        parts.append(csv.read_csv(io.BytesIO(body), convert_options=text))
    whole = pa.concat_tables(parts)
    rows: Rows = {c.name: _numbers(whole[c.name], c.type) for c in columns}
    rows[FILE] = np.repeat(np.arange(len(parts)), [p.num_rows for p in parts])
    return Tables(list(paths), columns, rows)


def _numbers(text: pa.ChunkedArray, kind: str) -> NDArray[Any]:
    null = pc.equal(text, "null")
    nulls = int(pc.sum(null).as_py() or 0)
    if kind in ("f4", "f8") and nulls < len(text):
        known = pc.if_else(null, pa.scalar(None, pa.string()), text)
        return np.array(pc.cast(known, pa.float64()).to_numpy(), dtype=np.float64)
    if kind in ("i2", "i8") and not nulls:
        return np.array(pc.cast(text, pa.int64()).to_numpy(), dtype=np.int64)
    if kind == "bool" and not nulls:
        return np.array(pc.equal(text, "True").to_numpy(zero_copy_only=False), dtype=bool)
    return np.asarray(text.to_numpy(zero_copy_only=False)).astype("S")


def write_gaia(tables: Tables) -> None:
    """Write every file anew."""
    described = " ".join(":".join(part for part in c if part) for c in tables.columns)
    names = [c.name for c in tables.columns]
    bare = csv.WriteOptions(include_header=False, quoting_style="none")
    for number, path in enumerate(tables.paths):
        at = tables.rows[FILE] == number
        arrays = []
        for c in tables.columns:
            value = tables.rows[c.name][at]
            arrays.append(pa.array(value.astype(str)) if value.dtype.kind == "S" else gaia.as_text(c.type, value))
        out = io.BytesIO()
        out.write(gaia_columns.ecsv_header(described).encode() + (",".join(names) + "\n").encode())
        csv.write_csv(pa.Table.from_arrays(arrays, names=names), out, bare)
        gaia.save(path, out.getvalue(), gaia.Options().compression)


@dataclass(frozen=True)
class Edition:
    """A survey's table in its second release."""

    form: Form
    files: str
    "below the survey's root"
    order: tuple[str, ...]
    "columns that the rows of a file are sorted by; () puts new rows at the end"
    renamed: Mapping[str, str]
    "one that readers know in another case, one that they do not read"
    widened: Mapping[str, str]
    new: str = "SINCE_RELEASE"
    "i2: 1 where release 1 has the same key, else 2"
    read: Callable[..., Tables] = read_fits
    write: Callable[[Tables], None] = write_fits
    file_of: Callable[[Rows, list[Path]], I64] | None = None
    "which file each row belongs to, -1: none; None: where it was, or where the row lies that it was copied from"


def revise(tables: Tables, renamed: Mapping[str, str], widened: Mapping[str, str], new: TableColumn) -> None:
    """Rename and widen columns, and put a new one behind them, whose values are in the rows."""
    columns = []
    for c in tables.columns:
        name = renamed.get(c.name, c.name)
        tables.rows[name] = tables.rows.pop(c.name)
        columns.append(TableColumn(name, widened.get(c.name, c.type), c.unit))
    tables.columns = [*columns, new]


def mend_lists(root: Path, changed: Iterable[Path]) -> None:
    """Put the digests of these files right in the checksum lists that name them, in their folder or above it."""
    for path in changed:
        for folder in path.parents:
            for listed in sorted({*folder.glob("*sha256sum*"), *folder.glob("*sha1sum*"), *folder.glob("*MD5SUM*")}):
                _mend(listed, path)
            if folder == root:
                break


def _mend(listed: Path, path: Path) -> None:
    lines = listed.read_text().splitlines()
    for i, line in enumerate(lines):
        digest, _, name = line.partition("  ")
        if listed.parent / name == path:
            lines[i] = f"{hashlib.new(_DIGESTS[len(digest)], path.read_bytes()).hexdigest()}  {name}"
    listed.write_text("".join(f"{line}\n" for line in lines))
