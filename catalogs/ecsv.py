"""Gaia's tables as its archive gives them: CSV with or without an ECSV header, gzipped or not, FITS, VOTable; and
Parquet, as a reply of the archive's is kept.

Only the wanted columns are parsed, block by block, so that a file of many gigabytes needs little memory. The archive
spells a missing value as nothing, `null` or `NaN`, a boolean as `True`, `true` or `t`, an array as `"[a, b]"` (bulk
files) or `"(a, b)"` (DataLink). Ids never pass through a float.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from astropy.io import fits
from astropy.io.votable import parse_single_table
from astropy.utils.exceptions import AstropyUserWarning
from astropy.utils.xml.iterparser import get_xml_iterator

from skycairn.catalogs.bounds import MOST_LINE, Unpacked, refuse_large_table, refuse_many_columns
from skycairn.catalogs.fitsfile import check_whole_gzip

NULLS = ["", "null", "NULL", "NaN", "nan"]
TRUE = ["True", "true", "TRUE", "t", "T", "1"]
FALSE = ["False", "false", "FALSE", "f", "F", "0"]
MOST_COMMENTS = 20_000
BLOCK = 1 << 24
"""Bytes parsed at a time. A row of XP spectra with its correlations is about 43 kB."""

Types = Mapping[str, pa.DataType]


def read_table(path: Path, types: Types) -> pa.Table:
    """Those of the named columns that the file has (case ignored), as these types; lists as list<value type>.

    NaN is null, in numbers; in lists it is refused. A field's metadata holds the `unit` that the file gives. ValueError
    names the file: it is cut short, or not a table, or asks for more memory than a table of Gaia's (bounds.py).
    """
    suffixes = [s.lower() for s in path.suffixes[-2:]]
    kind = suffixes[-2] if len(suffixes) == 2 and suffixes[-1] == ".gz" else (suffixes or [""])[-1]
    if not path.is_file():
        raise FileNotFoundError(path)
    if kind in (".csv", ".ecsv"):
        blocks = list(_csv_blocks(path, types))
        return pa.concat_tables(blocks)
    if kind in (".fits", ".fit"):
        return _fits(path, types)
    if kind in (".vot", ".xml", ".votable"):
        return _votable(path, types)
    if kind == ".parquet":
        return _parquet(path, types)
    if kind == ".zip":
        raise ValueError(f"{path}: is a zip of several products; unpack it and give the table that is wanted")
    raise ValueError(f"{path}: is no table that is read here; wanted .csv, .ecsv, .fits (or .gz of them), .vot, .xml, .parquet")


def _csv_blocks(path: Path, types: Types) -> Iterator[pa.Table]:
    zipped = path.suffix.lower() == ".gz"
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            skip, names, units = _header(file, path)
        if not zipped:
            _check_ends(path)
        by_name = {name.lower(): name for name in reversed(names)}
        wanted = {by_name[name]: kind for name, kind in types.items() if name in by_name}
        if not wanted:
            raise _none_of(path, types)
        stored = {name: pa.string() if pa.types.is_list(kind) else kind for name, kind in wanted.items()}
        reader = pacsv.open_csv(
            Unpacked(pa.input_stream(path, compression="gzip"), path) if zipped else pa.input_stream(path),
            read_options=pacsv.ReadOptions(skip_rows=skip, block_size=BLOCK),
            convert_options=pacsv.ConvertOptions(
                include_columns=list(wanted),
                column_types=stored,
                null_values=NULLS,
                true_values=TRUE,
                false_values=FALSE,
                strings_can_be_null=True,
            ),
        )
        lower = {name.lower(): name for name in wanted}
        schema = pa.schema([_field(n, types[n], units.get(spelt)) for n, spelt in lower.items()])
        yield schema.empty_table()
        n_bytes = 0
        for batch in reader:
            n_bytes += batch.nbytes
            refuse_large_table(n_bytes, [1], str(path))
            columns = []
            for name, spelt in lower.items():
                column = batch.column(spelt)
                kind = types[name]
                columns.append(parse_lists(column, kind.value_type, str(path)) if pa.types.is_list(kind) else column)
            yield pa.Table.from_arrays(columns, schema=schema)
    except (OSError, EOFError, zlib.error, pa.ArrowInvalid) as error:
        what = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read to its end ({what[:300]}); fetch it again") from error


def _none_of(path: Path, types: Types) -> ValueError:
    named = ", ".join(list(types)[:4])
    return ValueError(f"{path}: has none of the {len(types)} wanted columns ({named}, ...); is it the right table?")


def _header(file: Any, path: Path) -> tuple[int, list[str], dict[str, str]]:
    """Number of comment lines, the column names, and the units that the comments give."""
    comments: list[bytes] = []
    while line := file.readline(MOST_LINE):
        if len(line) == MOST_LINE or len(comments) > MOST_COMMENTS:
            raise ValueError(f"{path}: its header has no end within {MOST_LINE:,} bytes; is it a table? Fetch it again")
        if not line.startswith(b"#"):
            names = [n.strip() for n in next(csv.reader([line.decode("utf-8", "replace")]), [])]
            return len(comments), names, _units(b"\n".join(c[1:] for c in comments).decode("utf-8", "replace"))
        comments.append(line.rstrip())
    raise ValueError(f"{path}: holds no line of column names; it is empty or cut short: fetch it again")


def _units(header: str) -> dict[str, str]:
    """Units by column name from an ECSV header, whose columns may be one a line, or several lines each."""
    out = {}
    for entry in re.split(r"(?:^|[{,\n])\s*(?:-\s*)?name:", header)[1:]:
        name = re.match(r"\s*[\"']?([^\"',}\n]+)", entry)
        unit = re.search(r"[,\n]\s*unit:\s*(\"[^\"\n]*\"|'(?:[^'\n]|'')*'(?!\w)|[^,}\n]+)", entry)
        if name and unit:
            out[name[1].strip()] = unit[1].strip()
    return out


def _field(name: str, kind: pa.DataType, unit: str | None) -> pa.Field:
    return pa.field(name, kind, metadata={"unit": unit} if unit else None)


def _check_ends(path: Path) -> None:
    """Refuse text whose last line has no end: it may have been cut inside its last number, which nothing else shows."""
    with path.open("rb") as file:
        file.seek(-1, io.SEEK_END)
        if file.read(1) != b"\n":
            raise ValueError(f"{path}: its last line has no end, so it may be cut short; fetch it again")


def parse_lists(text: pa.Array, value_type: pa.DataType, where: str) -> pa.Array:
    """`"[a, b]"` or `"(a, b)"` as list<value_type>; null and empty lists as null."""
    inside = pc.utf8_trim(text, "()[] ")
    empty = pc.equal(inside, "")
    inside = pc.if_else(empty, pa.scalar(None, pa.string()), inside)
    parts = pc.split_pattern(inside, ",")
    words = pc.utf8_trim_whitespace(parts.flatten())
    try:
        values = words.cast(value_type)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{where}: an array holds what is no number ({error})") from error
    if pa.types.is_floating(value_type) and not pc.all(pc.is_finite(values)).as_py() and len(values):
        raise ValueError(f"{where}: an array holds a value that is not finite; wanted numbers, or no array at all")
    lengths = pc.fill_null(pc.list_value_length(parts), 0).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    null = parts.is_null()
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=pa.list_(value_type), mask=null)


def _fits(path: Path, types: Types) -> pa.Table:
    try:
        if path.suffix.lower() == ".gz":
            check_whole_gzip(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "File may have been truncated", AstropyUserWarning)
            # opened by hand, since astropy leaves a file that it refuses open
            with path.open("rb") as file, fits.open(file, memmap=True, lazy_load_hdus=False) as hdus:
                refuse_many_columns((h.header for h in hdus), str(path))
                tables = [h for h in hdus if isinstance(h, fits.BinTableHDU)]
                if not tables:
                    raise ValueError(f"{path}: holds no binary table; is it the table that is wanted?")
                first = next(iter(types))
                table = next((h for h in tables if first in (n.lower() for n in h.columns.names)), tables[0])
                by_name = {c.name.lower(): c for c in reversed(list(table.columns))}
                wanted = [by_name[n].dtype.itemsize for n in types if n in by_name]
                refuse_large_table(int(table.header["NAXIS2"]), wanted, str(path))
                out, units = {}, {}
                for name, kind in types.items():
                    if name in by_name:
                        null = by_name[name].null
                        values = table.data[by_name[name].name]
                        mask = values == null if null not in (None, "") else None
                        out[name] = _array(values, mask, kind, f"{path}: column {name!r}")
                        units[name] = by_name[name].unit
                return _table(out, types, path, units)
    except (OSError, EOFError, zlib.error, fits.VerifyError, AstropyUserWarning) as error:
        raise ValueError(f"{path}: cannot be read as a whole FITS file ({error}); fetch it again") from error


def _parquet(path: Path, types: Types) -> pa.Table:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            by_name = {name.lower(): name for name in reversed(schema.names)}
            wanted = [by_name[name] for name in types if name in by_name]
            groups = [file.metadata.row_group(g) for g in range(file.num_row_groups)]
            leaves = [c for g in groups for c in map(g.column, range(g.num_columns))]
            held = [c.total_uncompressed_size for c in leaves if c.path_in_schema.split(".")[0] in wanted]
            refuse_large_table(1, held, str(path))
            table = file.read(columns=wanted)
    except (OSError, pa.ArrowException) as error:
        what = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read as a whole Parquet file ({what[:300]}); fetch it again") from error
    out, units = {}, {}
    for name, kind in types.items():
        if name in by_name:
            column = table[by_name[name]].combine_chunks()
            if pa.types.is_floating(column.type) and pa.types.is_integer(kind):
                raise ValueError(f"{path}: column {name!r} holds {column.type}; wanted whole numbers, never a float")
            try:
                column = column.cast(kind)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise ValueError(f"{path}: column {name!r}: {error}") from error
            out[name] = pc.if_else(pc.is_nan(column), None, column) if pa.types.is_floating(kind) else column
            metadata = schema.field(by_name[name]).metadata or {}
            units[name] = metadata.get(b"unit", b"").decode()
            if pa.types.is_list(kind) and not pc.all(pc.is_finite(column.flatten()), min_count=0).as_py():
                raise ValueError(f"{path}: column {name!r} holds an array with a value that is not finite")
    return _table(out, types, path, units)


def _votable(path: Path, types: Types) -> pa.Table:
    refuse_large_table(path.stat().st_size, [1], str(path))
    try:
        with get_xml_iterator(str(path)) as elements:
            for start, tag, attributes, _ in elements:
                if start and tag.rpartition(":")[2] == "STREAM" and "href" in attributes:
                    raise ValueError(f"its rows are elsewhere, in {attributes['href']!r}, which is not followed")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the archive's units are not the standard's; none is used here
            table = parse_single_table(str(path)).to_table(use_names_over_ids=True)
    except Exception as error:  # the parser lets through whatever expat and its own checks raise
        raise ValueError(f"{path}: cannot be read as a VOTable ({' '.join(str(error).split())[:300]})") from error
    by_name = {n.lower(): n for n in reversed(table.colnames)}
    out, units = {}, {}
    for name, kind in types.items():
        if name in by_name:
            column = table[by_name[name]]
            mask = getattr(column, "mask", None)
            simple = mask is not None and np.ndim(mask) == 1
            out[name] = _array(np.asarray(column), mask if simple else None, kind, f"{path}: column {name!r}")
            units[name] = str(column.unit or "")
    return _table(out, types, path, units)


def _table(columns: dict[str, pa.Array], types: Types, path: Path, units: Mapping[str, str | None]) -> pa.Table:
    if not columns:
        raise _none_of(path, types)
    return pa.table(columns, schema=pa.schema([_field(n, a.type, units[n]) for n, a in columns.items()]))


def _array(values: Any, mask: Any, kind: pa.DataType, where: str) -> pa.Array:
    if pa.types.is_list(kind):
        rows: list[Any] = []
        for i, row in enumerate(values):
            cell = np.ma.getdata(np.ma.asarray(row)).reshape(-1)
            if np.ma.getmaskarray(np.ma.asarray(row)).any() or len(cell) == 0:
                rows.append(None)
                continue
            if not np.isfinite(cell.astype(np.float64)).all():
                raise ValueError(f"{where} row {i}: an array holds a value that is not finite; wanted numbers")
            rows.append(cell.astype(kind.value_type.to_pandas_dtype()))
        return pa.array(rows, kind)
    values = np.asarray(values)
    if pa.types.is_boolean(kind) and values.dtype.kind in "SUO":
        raise ValueError(f"{where} holds text; wanted true or false")
    values = values.astype(values.dtype.newbyteorder("="))
    missing = np.zeros(len(values), dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    if values.dtype.kind == "f":
        missing = missing | np.isnan(values)
        if pa.types.is_integer(kind):
            raise ValueError(f"{where} holds {values.dtype}; wanted whole numbers, never passed through a float")
    try:
        return pa.array(np.where(missing, values.dtype.type(0), values), mask=missing).cast(kind)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{where}: {error}") from error
