"""Users' tables on disk: Parquet files in any order, or a HATS catalogue; checked before they are read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skycairn.pile.files import Missing
from skycairn.pile.parquet import damage

RA_NAMES = ("ra", "RA", "ra_deg", "RAJ2000", "target_ra", "TARGET_RA", "coord_ra")
DEC_NAMES = ("dec", "DEC", "dec_deg", "DEJ2000", "target_dec", "TARGET_DEC", "coord_dec")
ID_NAMES = ("id", "ID", "key", "source_id", "object_id", "objid", "objID", "objectId", "TARGETID")
BATCH_ROWS = 1 << 17


@dataclass(frozen=True)
class File:
    """One Parquet file as it is now."""

    path: str
    n_bytes: int
    mtime_ns: int
    group_rows: tuple[int, ...]
    "rows of each row group"
    group_bytes: tuple[int, ...]
    "of each row group, not compressed"

    @property
    def n_rows(self) -> int:
        """Of the file."""
        return sum(self.group_rows)


@dataclass(frozen=True)
class Piece:
    """Some neighbouring row groups of a file."""

    path: str
    groups: tuple[int, ...]
    group_rows: tuple[int, ...]
    first_row: int
    "of the file"

    @property
    def n_rows(self) -> int:
        """Of these row groups."""
        return sum(self.group_rows)


@dataclass(frozen=True)
class Columns:
    """Which columns of a table say what. A number stands for a column that has it in every row; None: not known."""

    id: str
    ra: str
    dec: str
    ra_error: str | float | None = None
    "arcsec, of RA times cos(dec)"
    dec_error: str | float | None = None
    "arcsec"
    pmra: str | float | None = None
    "mas/yr, times cos(dec)"
    pmdec: str | float | None = None
    epoch: str | float | None = None
    "Julian years, as the two below"
    epoch_min: str | float | None = None
    epoch_max: str | float | None = None

    def named(self) -> dict[str, str]:
        """Columns of the file by what they say."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, str)}

    def constants(self) -> dict[str, float]:
        """What is the same in every row."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {n: float(v) for n, v in values.items() if v is not None and not isinstance(v, str)}


@dataclass(frozen=True)
class Table:
    """A user's table: files of one schema."""

    what: str
    "left, right, catalogue: how errors call it"
    files: tuple[File, ...]
    schema: pa.Schema
    hints: Mapping[str, str]
    "ra, dec by the words of a HATS catalogue; empty for plain files"

    @property
    def n_rows(self) -> int:
        """Of all files."""
        return sum(f.n_rows for f in self.files)

    def identity(self) -> list[list[str | int]]:
        """What tells this table from another, or from itself after a change."""
        return [[f.path, f.n_bytes, f.mtime_ns, f.n_rows] for f in self.files]


def open_table(places: Iterable[Path | str] | Path | str, what: str) -> Table:
    """The table in these files and folders; a folder stands for all `*.parquet` below it, or is a HATS catalogue.

    ValueError where there is none, a file is named twice, or files differ in their columns; `Damaged` or `Missing`
    where one cannot be read.
    """
    listed = [Path(p) for p in ([places] if isinstance(places, Path | str) else places)]
    paths: list[Path] = []
    hints: dict[str, str] = {}
    for place in listed:
        if place.is_dir():
            catalogue = _catalogue(place)
            if catalogue is not None:
                if len(listed) > 1:
                    raise ValueError(f"{what}: {place} is a HATS catalogue; name it alone, without other files")
                hints = _hints(catalogue)
                place = catalogue / "dataset"
            paths += _below(place, what)
        else:
            paths.append(place)
    if not paths:
        raise ValueError(f"{what}: no file was named; wanted at least one Parquet file, or a folder of them")
    seen: dict[str, Path] = {}
    for path in paths:
        if (real := os.path.realpath(path)) in seen:
            raise ValueError(f"{what}: {path} is named twice (as {seen[real]}); its rows would be counted twice")
        seen[real] = path
    files: list[File] = []
    schema: pa.Schema | None = None
    for path in paths:
        file, own = _look(path)
        schema = own if schema is None else _same(schema, own, str(paths[0]), str(path))
        files.append(file)
    assert schema is not None
    return Table(what, tuple(files), schema, hints)


def _below(folder: Path, what: str) -> list[Path]:
    found = sorted(p for p in folder.rglob("*.parquet") if not p.name.startswith((".", "_")))
    if not found:
        raise ValueError(f"{what}: there is no *.parquet below {folder}; name the files, or their folder")
    return found


def _look(path: Path) -> tuple[File, pa.Schema]:
    if not path.exists():
        raise Missing(f"{path} is not there; wanted a Parquet file, a folder of them or a HATS catalogue")
    with path.open("rb") as begin:
        if begin.read(4) != b"PAR1":
            raise ValueError(
                f"{path} is not a Parquet file. Tables of other forms are matched in memory (`skycairn.match."
                "crossmatch`), or written as Parquet first: pandas.read_csv(...).to_parquet(...), "
                "astropy.table.Table.read(...).write('....parquet')"
            )
    with damage(path):
        stat = path.stat()
        with pq.ParquetFile(path) as file:
            meta, schema = file.metadata, file.schema_arrow
            groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
    sizes = tuple(g.num_rows for g in groups), tuple(g.total_byte_size for g in groups)
    return File(os.path.abspath(path), stat.st_size, stat.st_mtime_ns, *sizes), schema


def _same(first: pa.Schema, other: pa.Schema, first_path: str, path: str) -> pa.Schema:
    """The schema of both. ValueError names the column in which they differ."""
    if first.equals(other):
        return first
    for name in first.names:
        if name not in other.names:
            raise ValueError(
                f"{path} has no column {name!r}, which {first_path} has; all files of a table need the same columns"
            )
    for name in other.names:
        if name not in first.names:
            raise ValueError(
                f"{path} has a column {name!r}, which {first_path} lacks; all files of a table need the same columns"
            )
        if first.field(name).type != other.field(name).type:
            raise ValueError(
                f"{path}: column {name!r} is {other.field(name).type}, in {first_path} it is "
                f"{first.field(name).type}; cast it, all files of a table need the same types"
            )
    if first.names != other.names:
        raise ValueError(f"{path}: its columns come in another order than those of {first_path}; write it again")
    return first


# -- HATS


def _catalogue(folder: Path) -> Path | None:
    """The folder of the catalogue itself, where this one is a HATS catalogue or a collection with one."""
    collection = folder / "collection.properties"
    if collection.exists():
        name = read_properties(collection).get("hats_primary_table_url", "")
        if not name or not (folder / name).is_dir():
            raise ValueError(
                f"{collection} names the catalogue {name!r}, which is not there; the collection is damaged"
            )
        folder = folder / name
    return folder if any((folder / n).exists() for n in ("hats.properties", "properties")) else None


def _hints(catalogue: Path) -> dict[str, str]:
    name = "hats.properties" if (catalogue / "hats.properties").exists() else "properties"
    said = read_properties(catalogue / name)
    if (kind := said.get("dataproduct_type")) not in ("object", "source"):
        raise ValueError(f"{catalogue} is a HATS {kind}; wanted a catalogue of objects or sources")
    return {"ra": said.get("hats_col_ra", "ra"), "dec": said.get("hats_col_dec", "dec")}


def read_properties(path: Path) -> dict[str, str]:
    """Names and values of a HATS properties file."""
    lines = [line for line in path.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return {name.strip(): value.strip() for name, value in (line.split("=", 1) for line in lines)}


# -- columns


def columns_of(table: Table, given: Mapping[str, str | float], without_id: bool = False) -> Columns:
    """What is given, and the rest by the names in common use. ValueError names a column that is absent or of no use.

    `without_id`: a table need not have one, and `id` may be empty.
    """
    known = [f.name for f in fields(Columns)]
    if odd := sorted(set(given) - set(known)):
        raise ValueError(
            f"{table.what}: there is no meaning {odd[0]!r} of a column; the meanings are {', '.join(known)}"
        )
    found: dict[str, str | float] = dict(given)
    names = table.schema.names
    for meaning, usual in (("id", ID_NAMES), ("ra", RA_NAMES), ("dec", DEC_NAMES)):
        if meaning in found:
            continue
        hint = table.hints.get(meaning)
        guess = [hint] if hint else [n for n in usual if n in names]
        if not guess and meaning == "id" and without_id:
            found["id"] = ""
            continue
        if not guess:
            raise ValueError(
                f"{table.what}: {table.files[0].path} has none of {', '.join(usual)}; say which column is {meaning}; "
                f"it has {', '.join(names)}"
            )
        found[meaning] = guess[0]
    for meaning, name in found.items():
        if name == "" and meaning == "id" and without_id:
            continue
        _check_column(table, meaning, name)
    motion = [m for m in ("pmra", "pmdec", "epoch") if m in found]
    if "pmra" in found or "pmdec" in found:
        if len(motion) < 3:
            lacking = ", ".join(sorted({"pmra", "pmdec", "epoch"} - set(motion)))
            raise ValueError(
                f"{table.what}: of the motion {', '.join(motion)} is named and {lacking} is not; name all three"
            )
    elif "epoch" in found:
        raise ValueError(
            f"{table.what}: an epoch without pmra and pmdec says nothing of where a source is when; "
            "name the motion, or epoch_min and epoch_max"
        )
    return Columns(**found)  # type: ignore[arg-type]


def _check_column(table: Table, meaning: str, name: str | float) -> None:
    if not isinstance(name, str):
        if meaning in ("id", "ra", "dec"):
            raise ValueError(f"{table.what}: {meaning} is the number {name}; wanted the name of a column")
        return
    where = table.files[0].path
    if name not in table.schema.names:
        raise ValueError(
            f"{table.what}: {where} has no column {name!r} for {meaning}; it has {', '.join(table.schema.names)}"
        )
    kind = table.schema.field(name).type
    if meaning == "id":
        if not pa.types.is_integer(kind):
            raise ValueError(f"{table.what}: {where}: column {name!r} for {meaning} is {kind}; wanted integers")
    elif meaning in ("ra", "dec"):
        if kind != pa.float64():
            raise ValueError(
                f"{table.what}: {where}: column {name!r} for {meaning} is {kind}; wanted float64 degrees "
                "(float32 is off by up to 0.05 arcsec)"
            )
    elif not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise ValueError(f"{table.what}: {where}: column {name!r} for {meaning} is {kind}; wanted numbers")


# -- rows


def jobs(table: Table, most_rows: int) -> list[tuple[Piece, ...]]:
    """All row groups, in order, cut into jobs of about `most_rows`; a larger row group is a job of its own."""
    out: list[tuple[Piece, ...]] = []
    now: list[Piece] = []
    total = 0
    for file in table.files:
        first, begin, taken = 0, 0, 0
        for i, n in enumerate(file.group_rows):
            if total and total + n > most_rows:
                if i > begin:
                    now.append(Piece(file.path, tuple(range(begin, i)), file.group_rows[begin:i], first))
                out.append(tuple(now))
                now, total = [], 0
                first, begin, taken = first + taken, i, 0
            total += n
            taken += n
        if taken:
            now.append(Piece(file.path, tuple(range(begin, len(file.group_rows))), file.group_rows[begin:], first))
    if now:
        out.append(tuple(now))
    return out


def batches(piece: Piece, columns: Sequence[str], batch_rows: int = BATCH_ROWS) -> Iterator[tuple[int, pa.Table]]:
    """The piece's rows, few at a time: (row of the file of the first, table). A row group of twice as many is one."""
    first = piece.first_row
    path = Path(piece.path)
    for group, n_rows in zip(piece.groups, piece.group_rows, strict=True):
        # a file opened anew each time costs little, and holds no buffers
        with damage(path):
            file = pq.ParquetFile(path, pre_buffer=False)
        with file:
            start = first
            if n_rows <= 2 * batch_rows:
                with damage(path):
                    rows = file.read_row_group(group, columns=list(columns), use_threads=True)
                yield first, rows.select(list(columns))
                first += rows.num_rows
            else:
                reader = file.iter_batches(batch_rows, [group], columns=list(columns))
                while True:
                    with damage(path):
                        batch = next(reader, None)
                    if batch is None:
                        break
                    yield first, pa.Table.from_batches([batch]).select(list(columns))
                    first += batch.num_rows
        if first - start != n_rows:
            raise ValueError(f"{path}: row group {group} gave {first - start} rows where its footer says {n_rows}")


def check_sky(ra: NDArray[np.float64], dec: NDArray[np.float64], path: str, first_row: int) -> None:
    """ValueError that names file and row where a position is not on the sky, or not a number."""
    good = (ra >= 0) & (ra <= 360) & (dec >= -90) & (dec <= 90)
    if not good.all():
        bad = np.flatnonzero(~good)
        row = int(bad[0])
        raise ValueError(
            f"{path} at row {first_row + row}: ra {ra[row]}, dec {dec[row]} ({bad.size} such rows among the "
            f"{ra.size} read with it); wanted finite degrees, 0 <= ra <= 360, -90 <= dec <= 90; drop or mend these rows"
        )
