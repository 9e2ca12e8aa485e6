"""SDSS spectra by SQL: SpecObjAll from SkyServer, one query table a work cell, asked by astroquery's own client.

SkyServer names columns otherwise than specObj does (github.com/sdss, SpectroTables.sql, where each column says what
the files call it); `COLUMNS` brings them back, so that `Sdss.read` finds what it knows. Plate quality is in PlateX. The
database has no nulls: -9999 and, for identifiers, 0 stand for them. Spectra are no part of this: they stay files.

Each patch is asked for twice, how many rows it has and then for the rows: a reply cut short, by the server's limit or
on its way, is known by its number. The client's query goes into the address, whose length the server limits to 2,048
bytes, so columns are asked for by their own names and renamed here. Its reader of tables is not used: it guesses the
type of a column from the rows that are there, so that RUN2D 26 becomes a number, and cannot tell a page from a table.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from skycairn.archives.celltable import box_of, cell_files, cell_of, rows_of_cell, write_sorted
from skycairn.archives.errors import Busy, ChecksumMismatch, FetchError, TimedOut, Unsafe
from skycairn.archives.pace import PACE
from skycairn.archives.replies import LATER, refusal, words
from skycairn.archives.service import Have
from skycairn.catalogs.survey import WORK_ORDER, RemoteFile

FOLDER = "specobj"
URL = "https://skyserver.sdss.org"
DATA_RELEASE = 17
MISSING = -9999.0
BANDS = "ugriz"

F4, F8, I4, TEXT = pa.float32(), pa.float64(), pa.int32(), pa.string()


class Asked(NamedTuple):
    """One column of the query table."""

    name: str
    "what specObj calls it"
    sql: tuple[str, ...]
    "what SkyServer calls it; five where it is an array over ugriz"
    type: pa.DataType
    unit: str = ""


def _bands(name: str, stem: str, unit: str) -> Asked:
    return Asked(name, tuple(f"s.{stem}_{b}" for b in BANDS), pa.list_(F4, len(BANDS)), unit)


IDENTIFIERS = ("specobjid", "bestobjid", "fluxobjid")
COLUMNS: tuple[Asked, ...] = (
    *(Asked(n, (f"s.{n}",), TEXT) for n in (*IDENTIFIERS, "run2d", "survey", "programname", "targettype")),
    *(Asked(n, (f"s.{n}",), TEXT) for n in ("class", "subclass")),
    *(Asked(n, (f"s.{n}",), I4) for n in ("plate", "mjd", "fiberid", "zwarning", "zwarning_noqso", "anyandmask")),
    Asked("specprimary", ("s.scienceprimary",), pa.int16()),
    Asked("plug_ra", ("s.ra",), F8, "deg"),
    Asked("plug_dec", ("s.dec",), F8, "deg"),
    Asked("z", ("s.z",), F4),
    Asked("z_err", ("s.zerr",), F4),
    Asked("z_noqso", ("s.z_noqso",), F4),
    Asked("z_err_noqso", ("s.zerr_noqso",), F4),
    Asked("vdisp", ("s.veldisp",), F4, "km/s"),
    Asked("sn_median_all", ("s.snmedian",), F4),
    _bands("spectroflux", "spectroflux", "nanomaggy"),
    _bands("spectroflux_ivar", "spectrofluxivar", "nanomaggy^-2"),
    Asked("platequality", ("p.platequality",), TEXT),
)
KEYS = ("run2d", "plate", "mjd", "fiberid")

_ONE_AT_A_TIME = threading.Lock()
"""The client's address is a setting of its module."""


@dataclass(frozen=True)
class SdssQuery:
    """A `Service`: SpecObjAll by work cell."""

    url: str = URL
    max_rows: int = 500_000
    "rows that a reply holds; a cell with more is asked for in parts"
    table: str = "SpecObjAll AS s LEFT JOIN PlateX AS p ON s.plateid=p.plateid"
    timeout_s: float = 600.0
    release: int = DATA_RELEASE
    pause_s: float = 1.0
    "from one query to the next, at least: SkyServer takes no more than 60 a minute from one user"

    prefix: ClassVar[str] = f"query/{FOLDER}/"

    def catalog_files(self, cells: Iterable[int]) -> list[RemoteFile]:
        """One query table a work cell."""
        return cell_files(FOLDER, cells)

    def question(self, path: str) -> str:
        """Address, release, queries and the rule by which a cell is divided."""
        cell = cell_of(path, FOLDER)
        asked = {
            "service": self.url,
            "release": self.release,
            "query": self._sql(WORK_ORDER, cell),
            "columns": [[c.name, str(c.type), c.unit] for c in COLUMNS],
            "max_rows": self.max_rows,
        }
        return json.dumps(asked, sort_keys=True)

    def fetch(self, path: str, into: Path, have: Have) -> None:
        """Ask for the rows of the cell and write them, sorted by RUN2D, PLATE, MJD, FIBERID.

        Busy where the server gave up or a reply was cut short; ChecksumMismatch where it was no table; FetchError with
        the server's own words where it refused the query.
        """
        rows = rows_of_cell(cell_of(path, FOLDER), self._ask, "plug_ra", "plug_dec")
        write_sorted(rows, KEYS, into)

    def _sql(self, order: int, cell: int) -> tuple[str, str]:
        """The query for the number of rows, and that for the rows."""
        low, high, south, north = box_of(order, cell)
        ra = f"(s.ra>={low:.6f} OR s.ra<={high:.6f})" if low > high else f"s.ra BETWEEN {low:.6f} AND {high:.6f}"
        rest = f"FROM {self.table} WHERE {ra} AND s.dec BETWEEN {south:.6f} AND {north:.6f}"
        names = ",".join(n for c in COLUMNS for n in c.sql)
        return f"SELECT COUNT(*) AS n {rest}", f"SELECT {names} {rest}"

    def _ask(self, order: int, cell: int) -> pa.Table | None:
        count, query = self._sql(order, cell)
        number = parse_csv(self._reply(count), ["n"], [pa.int64()], count).column(0).to_pylist()
        if len(number) != 1 or number[0] is None:
            raise ChecksumMismatch(f"{self.url}: {number} is no number of rows, for {count!r}")
        if number[0] > self.max_rows:
            return None
        if number[0] == 0:
            return as_specobj(pa.table({n: pa.array([], TEXT) for c in COLUMNS for n in c.sql}))
        names = [n for c in COLUMNS for n in c.sql]
        types = [c.type.value_type if len(c.sql) > 1 else c.type for c in COLUMNS for _ in c.sql]
        found = parse_csv(self._reply(query), [n.partition(".")[2] for n in names], types, query)
        if found.num_rows != number[0]:
            raise Busy(
                f"{self.url}: gave {found.num_rows:,} of {number[0]:,} rows of HEALPix cell {cell} of order {order}: "
                "cut short, or at its limit; try again, with a smaller `max_rows` if it stays so"
            )
        return as_specobj(found.rename_columns(names))

    def _reply(self, sql: str) -> str:
        """What SkyServer answers to a query, as text."""
        import requests
        from astroquery.exceptions import TimeoutError as QueryTimeout
        from astroquery.sdss import SDSSClass, conf

        try:
            with _ONE_AT_A_TIME, conf.set_temp("skyserver_baseurl", self.url):
                PACE.wait(self.url, self.pause_s)
                reply: Any = SDSSClass().query_sql_async(
                    sql, timeout=self.timeout_s, data_release=self.release, cache=False
                )
        except (requests.Timeout, QueryTimeout) as error:
            raise TimedOut(f"{self.url}: no answer in {self.timeout_s:g} s ({error})") from error
        except (requests.RequestException, OSError) as error:
            raise Busy(f"{self.url}: cannot be reached, or answers too slowly ({error})") from error
        if (host := urlsplit(reply.url).netloc) != urlsplit(self.url).netloc:
            raise Unsafe(f"{self.url}: led to {host}, which is not asked for data")
        text = reply.content.decode("utf-8", "replace")
        if reply.status_code != 200:
            raise refusal(reply.status_code, f"{self.url}: answered {reply.status_code} ({words(text)}) to {sql!r}")
        return text


def parse_csv(text: str, names: list[str], types: list[pa.DataType], sql: str) -> pa.Table:
    """The rows of SkyServer's reply: `#Table1`, names, rows. Errors of `archives.errors` where it is anything else."""
    body = text.removeprefix("\ufeff")
    if body.lstrip()[:1] in ("<", "{", "["):
        kind = Busy if LATER.search(body) else ChecksumMismatch
        raise kind(f"SkyServer answered with a page and no table: {words(body)!r}, to {sql!r}")
    if body.startswith("#"):
        body = body.partition("\n")[2]
    header, _, rows = body.partition("\n")
    found = [n.strip().strip('"').lower() for n in header.split(",")]
    if "error_message" in header.lower() or (found != names and LATER.search(body[:2000])):
        refused = Busy if LATER.search(body[:2000]) else FetchError
        raise refused(f"SkyServer refused the query: {words(rows or header)!r}, to {sql!r}")
    if found != names:
        raise ChecksumMismatch(f"SkyServer answered {words(header)!r}, wanted columns {','.join(names)}, to {sql!r}")
    if rows and not rows.endswith("\n"):
        raise Busy(f"SkyServer's reply ends in the middle of a line: it was cut short; try again ({sql!r})")
    numbered = [str(i) for i in range(len(names))]  # SkyServer gives columns of two tables one name
    try:
        table = pa.csv.read_csv(
            io.BytesIO(rows.encode() or b"\n"),
            read_options=pa.csv.ReadOptions(column_names=numbered, use_threads=False),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict(zip(numbered, types, strict=True)),
                null_values=["", "null", "NULL"],
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid as error:
        raise ChecksumMismatch(f"SkyServer's reply cannot be read as a table: {error} ({sql!r})") from error
    return table.rename_columns(names)


def as_specobj(found: pa.Table) -> pa.Table:
    """Rows under specObj's names, from columns in SkyServer's order; what stands for a null is one."""
    arrays, fields, at = [], [], 0
    for column in COLUMNS:
        kind = column.type.value_type if len(column.sql) > 1 else column.type
        parts = [found.column(at + i).combine_chunks().cast(kind) for i in range(len(column.sql))]
        at += len(parts)
        if pa.types.is_floating(kind):
            parts = [pc.if_else(pc.equal(p, pa.scalar(MISSING, kind)), pa.scalar(None, kind), p) for p in parts]
        if column.name in IDENTIFIERS:
            parts = [pc.if_else(pc.equal(p, "0"), pa.scalar(None, kind), p) for p in parts]
        if len(parts) > 1:
            values = np.stack([p.fill_null(np.nan).to_numpy(zero_copy_only=False) for p in parts], axis=1)
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), kind), len(parts)))
        else:
            arrays.append(parts[0])
        metadata = {"unit": column.unit} if column.unit else None
        fields.append(pa.field(column.name, column.type, metadata=metadata))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))
