"""The user's own targets, as a survey: positions with an identifier, from a CSV, Parquet, FITS or ECSV table.

About this release
------------------
Source and licence are the user's. Columns, in any case: an identifier, `ra`, `dec` (ICRS, degrees), and if they are
there `pmra` (times cos Dec), `pmdec` (mas/yr) and `epoch` (Julian year of the position). All others are kept as labels.

Quirks
* An identifier is an integer of the int64 range, or a text; whole columns are one or the other. It is never a float.
* A position without an epoch is taken to hold within `epoch_range`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from astropy.io import fits
from astropy.table import Table
from numpy.typing import NDArray

from skycairn.catalogs.bounds import MOST_LINE, refuse_large_table
from skycairn.catalogs.fitsfile import opened
from skycairn.catalogs.survey import STANDARD_SCHEMA, Archive, Column, Cut, MissingColumn, RemoteFile, Survey

EPOCHS = (1990.0, 2035.0)
"""Julian years that the matching follows motions through."""
ALIASES = {
    "id": ("id", "target_id", "source_id", "object_id", "targetid", "objid", "name"),
    "ra": ("ra", "ra_deg", "raj2000", "ra_icrs", "target_ra"),
    "dec": ("dec", "dec_deg", "dej2000", "decj2000", "de_icrs", "dec_icrs", "target_dec"),
    "epoch": ("epoch", "ref_epoch"),
    "pmra": ("pmra", "pm_ra_cosdec"),
    "pmdec": ("pmdec", "pm_dec"),
}
UNITS = {"ra": ("deg",), "dec": ("deg",), "epoch": ("yr",), "pmra": ("mas / yr",), "pmdec": ("mas / yr",)}
FORMATS = (".csv", ".parquet", ".fits", ".fits.gz", ".fit", ".ecsv")
LARGEST = (1 << 63) - 1
MOST_ROWS = 5_000_000
"""Targets of one table; each becomes a row of Python's while it is read, and a circle on the sky."""
MOST_BYTES = 1 << 29
"""Of one table, as a file and in memory; Python's rows take several times as much."""
PLAIN_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
PLAIN_NUMBER = re.compile(r"nan|[-+]?(inf|(0|[1-9][0-9]*)(\.[0-9]*)?(e[-+]?[0-9]+)?|\.[0-9]+(e[-+]?[0-9]+)?)")
"""No leading zeros: `007` is a name."""


class Targets(Survey):
    """The user's own targets.

    Options: `files`, their paths below the root; `epoch_range`, the Julian years within which a position without an
    epoch holds.
    """

    name = "targets"
    rank = 100
    releases = ("user",)
    columns = (Column("id", pa.string(), required=True), Column("labels", pa.string()))
    valid = (
        Cut(
            "position",
            ("ra", "dec"),
            lambda v: (v["ra"] >= 0) & (v["ra"] < 360) & (abs(v["dec"]) <= 90),
            "a target lies somewhere on the sky",
        ),
        Cut("key", ("key",), lambda v: np.ones(len(v["key"]), dtype=bool), "a target has an identifier"),
    )
    select = {"aion": (), "strict": (), "all": ()}  # noqa: RUF012
    modalities = ()
    footprint = "occupied"

    def __init__(
        self, release: str = "user", *, files: Sequence[str] = (), epoch_range: tuple[float, float] = (2000.0, 2026.0)
    ) -> None:
        super().__init__(release, files=tuple(files), epoch_range=tuple(epoch_range))
        self.files = tuple(files)
        self.epoch_range = (float(epoch_range[0]), float(epoch_range[1]))

    @property
    def url(self) -> str:
        """None: the user's files lie where the root says."""
        return ""

    def catalog_files(self, archive: Archive, cells: Iterable[int]) -> list[RemoteFile]:
        """All of the user's files, whatever the cells."""
        if not self.files:
            raise ValueError("targets: no file is named; set the option `files` to the tables of your targets")
        return [RemoteFile(path) for path in self.files]

    def read(
        self,
        path: Path,
        rows: tuple[int, int] | None = None,
        companions: Mapping[str, Path | None] | None = None,
        needed: Iterable[str] = (),
    ) -> pa.Table:
        """Read a table of targets; see `Survey.read`.

        ValueError where an identifier is double, too large or a float, where two texts have one key, where a number
        cannot be read, or where a proper motion is halved or has no epoch; each with its row.
        """
        table, units = read_any(path)
        found = {role: _first(table.column_names, names) for role, names in ALIASES.items()}
        for role in ("id", "ra", "dec"):
            if found[role] is None:
                raise MissingColumn(
                    f"targets: {path.name} has no column {role!r} (nor {', '.join(ALIASES[role][1:])}); "
                    f"it has {', '.join(table.column_names)}; rename one"
                )
        for role, allowed in UNITS.items():
            unit = units.get(found[role] or "")
            if unit and unit not in allowed:
                raise ValueError(f"targets: {path.name}: column {found[role]!r} is in {unit}, wanted {allowed[0]}")
        ids, key = keys(table.column(found["id"]), path.name)
        number = {r: _numbers(table, found[r], path.name) for r in ("ra", "dec", "epoch", "pmra", "pmdec")}
        # survey tables write 0 for an epoch, and for motions, that are not known
        number["epoch"] = np.where(number["epoch"] == 0, np.nan, number["epoch"])
        unknown = np.isnan(number["epoch"]) & (number["pmra"] == 0) & (number["pmdec"] == 0)
        number |= {name: np.where(unknown, np.nan, number[name]) for name in ("pmra", "pmdec")}
        _check_motion(number, path.name)
        _check_epochs(number, path.name)
        moving = np.isfinite(number["pmra"])
        dated = np.isfinite(number["epoch"])
        ra = np.where(number["ra"] == 360, 0.0, number["ra"])
        nothing = np.full(table.num_rows, np.nan)
        standard: dict[str, Any] = {
            "key": key,
            "ra": pa.array(ra),
            "dec": pa.array(number["dec"]),
            "ra_error": _nullable(nothing),
            "dec_error": _nullable(nothing),
            "pmra": _nullable(number["pmra"]),
            "pmdec": _nullable(number["pmdec"]),
            "epoch": _nullable(np.where(moving, number["epoch"], np.nan)),
            "epoch_min": pa.array(np.where(dated, number["epoch"], self.epoch_range[0])),
            "epoch_max": pa.array(np.where(dated, number["epoch"], self.epoch_range[1])),
            "epoch_kind": pa.array(np.where(dated, "user", "interval")),
            "row": pa.array(np.arange(table.num_rows)),
        }
        arrays = [standard[f.name].cast(f.type) for f in STANDARD_SCHEMA]
        rest = table.select([n for n in table.column_names if n not in set(found.values())])
        schema = pa.schema([*STANDARD_SCHEMA, *(c.field() for c in self.columns)])
        out = pa.Table.from_arrays([*arrays, ids, labels(rest)], schema=schema)
        return out if rows is None else out.slice(rows[0], rows[1] - rows[0])


def read_any(path: Path) -> tuple[pa.Table, dict[str, str]]:
    """The table of a file by its ending, and the units of its columns as far as it tells them.

    A file is opened here and read as an open file, so that no reader makes anything of its name. ValueError where it is
    none, or has more than `MOST_ROWS` rows or `MOST_BYTES` bytes.
    """
    name = path.name.lower()
    if not name.endswith(FORMATS):
        raise ValueError(f"targets: {path.name} is of no known format; wanted one of {', '.join(FORMATS)}")
    where = f"targets: {path.name}"
    refuse_large_table(path.stat().st_size, [1], where, MOST_BYTES)
    try:
        if name.endswith(".csv"):
            return _read_csv(path), {}
        if name.endswith(".parquet"):
            return _read_parquet(path), {}
        if name.endswith(".ecsv"):
            # as lines, since the reader takes a text of one line for the name of a file
            return _from_astropy(_ecsv(path.read_text(encoding="utf-8").splitlines()), path)
        with opened(path) as hdus:
            table = next((h for h in hdus if isinstance(h, (fits.BinTableHDU, fits.TableHDU))), None)
            if table is None:
                raise ValueError("it holds no table")
            _few(int(table.header["NAXIS2"]), path)
            refuse_large_table(int(table.header["NAXIS2"]), [int(table.header["NAXIS1"])], where, MOST_BYTES)
            return _from_astropy(Table.read(table, format="fits"), path)
    except FileNotFoundError:
        raise
    except (OSError, EOFError, MemoryError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        if str(error).startswith("targets: "):
            raise
        what = " ".join(str(error).split())
        raise ValueError(f"targets: {path} cannot be read ({what[:300]}); is it what its ending says?") from error


def _ecsv(lines: list[str]) -> Table:
    try:
        return Table.read(lines, format="ascii.ecsv")
    except Exception as error:  # the reader lets through whatever its YAML raises
        raise ValueError(str(error)) from error


def _few(n_rows: int, path: Path) -> None:
    if n_rows > MOST_ROWS:
        raise ValueError(f"targets: {path.name} has {n_rows:,} rows, wanted at most {MOST_ROWS:,}; divide it")


def _read_parquet(path: Path) -> pa.Table:
    with path.open("rb") as stream, pa.parquet.ParquetFile(stream) as file:
        about, where = file.metadata, f"targets: {path.name}"
        _few(about.num_rows, path)
        groups = (about.row_group(g) for g in range(about.num_row_groups))
        refuse_large_table(sum(g.total_byte_size for g in groups), [1], where, MOST_BYTES)
        pieces, n_bytes = [], 0
        # a dictionary or a run is one value in the file and many here, so what is read is counted too
        for batch in file.iter_batches(1024):
            plain = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
            pieces.append(pa.Table.from_arrays(plain, names=batch.schema.names))
            n_bytes += pieces[-1].nbytes
            refuse_large_table(n_bytes, [1], where, MOST_BYTES)
        return pa.concat_tables(pieces) if pieces else file.schema_arrow.empty_table()


def _read_csv(path: Path) -> pa.Table:
    """All columns as text first, so that no identifier goes through float; then whole columns of numbers as such."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        header = next(csv.reader([file.readline(MOST_LINE)]), [])
    if len(set(header)) != len(header) or not header:
        raise ValueError(f"targets: {path.name}: the first line must name every column once; found {header}")
    options = pa.csv.ConvertOptions(
        column_types={h: pa.string() for h in header},
        strings_can_be_null=True,
        null_values=[""],
        quoted_strings_can_be_null=False,
    )
    with path.open("rb") as stream:
        table = pa.csv.read_csv(stream, convert_options=options)
    _few(table.num_rows, path)
    return pa.table({h: _typed(table.column(i), h.lower() not in ALIASES["id"]) for i, h in enumerate(header)})


def _typed(column: pa.ChunkedArray, numbers: bool) -> pa.Array:
    """A text column as int64 if every text is a plain integer, as float64 if every one is a number, else as it is."""
    texts = column.to_pylist()
    there = [t for t in texts if t is not None]
    if there and all(PLAIN_INTEGER.fullmatch(t) for t in there):
        whole = [None if t is None else int(t) for t in texts]
        if all(w is None or abs(w) <= LARGEST for w in whole):
            return pa.array(whole, pa.int64())
    if numbers and there and all(PLAIN_NUMBER.fullmatch(t.lower()) for t in there):
        return pa.array([None if t is None else float(t) for t in texts], pa.float64())
    return pa.array(texts, pa.string())


def _from_astropy(table: Table, path: Path) -> tuple[pa.Table, dict[str, str]]:
    columns, units = {}, {}
    for name in table.colnames:
        column = table[name]
        if not hasattr(column, "dtype"):
            raise ValueError(
                f"targets: {path.name}: column {name!r} is a {type(column).__name__}; give ra and dec in degrees"
            )
        if getattr(column, "unit", None):
            units[name] = column.unit.to_string()
        values = np.asarray(getattr(column, "value", column))
        mask = np.asarray(getattr(column, "mask", np.zeros(len(table), dtype=bool)))
        if values.dtype.kind == "S":
            values = np.char.decode(values, "utf-8", "replace")
        if values.ndim > 1 or values.dtype.kind == "O":
            columns[name] = pa.array(values.tolist())
        elif values.dtype.kind == "U":
            columns[name] = pa.array(np.char.strip(values), mask=mask)
        else:
            native = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("="))
            columns[name] = pa.array(native, mask=mask)
    return pa.table(columns), units


def _first(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    by_lower: dict[str, str] = {}
    for name in names:
        by_lower.setdefault(name.lower(), name)
    return next((by_lower[w] for w in wanted if w in by_lower), None)


def keys(column: pa.ChunkedArray, where: str) -> tuple[pa.Array, pa.Array]:
    """(id as text, key as int64) of identifiers: integers as they are, texts by `text_key`; null stays null."""
    if pa.types.is_integer(column.type):
        values = column.to_pylist()
        for row, value in enumerate(values):
            if value is not None and abs(value) > LARGEST:
                raise ValueError(f"targets: {where}, row {row}: id {value} is beyond int64; make the ids text")
        key = values
    elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        values = [v.strip() or None if v is not None else None for v in column.to_pylist()]
        there = [v for v in values if v is not None]
        if all(PLAIN_INTEGER.fullmatch(v) for v in there) and (big := [v for v in there if abs(int(v)) > LARGEST]):
            raise ValueError(
                f"targets: {where}, row {values.index(big[0])}: id {big[0]} is beyond int64; put a letter before all"
            )
        key = [None if v is None else text_key(v) for v in values]
    else:
        raise ValueError(f"targets: {where}: the identifier is of type {column.type}, wanted integers or text")
    first: dict[int, int] = {}
    for row, (value, k) in enumerate(zip(values, key, strict=True)):
        if k is None:
            continue
        if k in first:
            other = values[first[k]]
            why = "twice" if other == value else f"with the same key as {other!r}; rename one"
            raise ValueError(f"targets: {where}, rows {first[k]} and {row}: id {value!r} is there {why}")
        first[k] = row
    texts = [None if v is None else str(v) for v in values]
    return pa.array(texts, pa.string()), pa.array(key, pa.int64())


def text_key(text: str) -> int:
    """The first 63 bits of the SHA-256 of a text in UTF-8."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def labels(table: pa.Table) -> pa.Array:
    """Each row as a JSON object, columns in order; NaN and null as null, which JSON has no other word for."""
    rows = ({n: _plain(v) for n, v in row.items()} for row in table.to_pylist())
    if table.num_columns == 0:
        return pa.nulls(table.num_rows, pa.string())
    return pa.array([json.dumps(row, ensure_ascii=False, allow_nan=False, default=str) for row in rows], pa.string())


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value


def _numbers(table: pa.Table, name: str | None, where: str) -> NDArray[np.float64]:
    """A column as float64, NaN where it is absent or null; ValueError with the row where a text is no number."""
    if name is None:
        return np.full(table.num_rows, np.nan)
    column = table.column(name)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        out = np.full(table.num_rows, np.nan)
        for row, text in enumerate(column.to_pylist()):
            try:
                out[row] = np.nan if text is None else float(text)
            except ValueError:
                raise ValueError(f"targets: {where}, row {row}: {name} is {text!r}, wanted a number") from None
        return out
    try:
        return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"targets: {where}: column {name!r} is of type {column.type}, wanted numbers") from error


def _check_motion(number: Mapping[str, NDArray[np.float64]], where: str) -> None:
    one = np.isfinite(number["pmra"]) != np.isfinite(number["pmdec"])
    if one.any():
        raise ValueError(
            f"targets: {where}, row {int(np.argmax(one))}: has one of pmra and pmdec; give both or neither"
        )
    undated = np.isfinite(number["pmra"]) & ~np.isfinite(number["epoch"])
    if undated.any():
        row = int(np.argmax(undated))
        raise ValueError(f"targets: {where}, row {row}: moves, and has no epoch; give the Julian year of its position")


def _check_epochs(number: Mapping[str, NDArray[np.float64]], where: str) -> None:
    strange = np.isfinite(number["epoch"]) & ~((number["epoch"] >= EPOCHS[0]) & (number["epoch"] <= EPOCHS[1]))
    if strange.any():
        row = int(np.argmax(strange))
        raise ValueError(
            f"targets: {where}, row {row}: epoch {number['epoch'][row]:g}; wanted a Julian year from {EPOCHS[0]:g} to "
            f"{EPOCHS[1]:g}"
        )


def _nullable(values: NDArray[np.float64]) -> pa.Array:
    return pa.array(values, mask=~np.isfinite(values))
