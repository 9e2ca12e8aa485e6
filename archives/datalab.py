"""Legacy Survey and DESI catalogues by query: NOIRLab's Astro Data Lab (TAP), one query table a work cell.

`legacysurvey(release)` asks for the primary rows of the tractor catalogue, `desi(release)` for redshifts with their
targets' photometry. Images and spectra are no part of this: they stay files, found from these rows as from any others.

Not verified against the service by this project: names of tables and columns are settings, `tables` and `rename`. What
the service lacks is known from its own list of columns (tap_schema.columns): a column that the reader must have is an
error that says so, another is left out, and a cut that needs it says so when it is asked for.

Data Lab keeps DESI's zpix without what the targets' own table has (github.com/desihub/specprod-db): position, motion
and photometry come from `photometry` by TARGETID, where they are one row a target. It has no PHOTSYS; OBJTYPE is told
by the bits of TARGETID.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit
from xml.parsers.expat import ExpatError

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from skycairn.archives.celltable import box_of, cell_files, cell_of, circle_of, rows_of_cell, write_sorted
from skycairn.archives.errors import Busy, ChecksumMismatch, FetchError, NotPublished, Unsafe
from skycairn.archives.replies import refusal
from skycairn.archives.service import Have
from skycairn.catalogs import desicolumns, legacycolumns
from skycairn.catalogs.desikey import SKY
from skycairn.catalogs.survey import WORK_ORDER, Column, RemoteFile
from skycairn.catalogs.units import is_unit

URL = "https://datalab.noirlab.edu/tap"
HOSTS = ".noirlab.edu"
"""Where the service may lead to, beside its own host."""
MAX_ROWS = 1_000_000
TIMEOUT_S = 3600.0
"""Of a query, from its start to its end."""
READ_S = 60.0
"""Of the service's silence."""
WAITING = ("PENDING", "QUEUED", "EXECUTING", "UNKNOWN", "HELD", "SUSPENDED")
"""Phases in which a job may still come to an end (IVOA, UWS 1.1)."""
F4, F8, I4 = pa.float32(), pa.float64(), pa.int32()

Position = Literal["q3c", "box", "healpix"]
"""How a patch of sky is asked for: a circle by q3c_radial_query, for which the tables have an index; plain limits in
right ascension and declination; or, of a table that has the work cell as a column, that column."""


class Asked(NamedTuple):
    """One column of the query table."""

    name: str
    "what the survey's own files call it"
    sql: str
    "alias.column of the service"
    type: pa.DataType
    required: bool = False


Search = Callable[[str, str, int, float], pa.Table]
"""Rows of a query: address, ADQL, most rows, seconds. Units in the fields' metadata."""


def tap_search(url: str, adql: str, max_rows: int, timeout_s: float) -> pa.Table:
    """The reply of a TAP service to an asynchronous query; an error of `archives.errors` where there is none."""
    import requests
    from astropy.io.votable.exceptions import VOTableSpecError
    from pyvo.dal.exceptions import DALFormatError, DALQueryError, DALServiceError

    try:
        with requests.Session() as session, ExitStack() as replies:

            def see(reply: Any, **_: Any) -> None:
                replies.callback(reply.close)  # the client leaves them open
                _refuse_other_host(reply, url)

            session.hooks["response"].append(see)
            session.request = partial(session.request, timeout=READ_S)  # type: ignore[method-assign]
            return _job(url, adql, max_rows, timeout_s, session)
    except DALQueryError as error:
        raise FetchError(f"{url}: refused the query ({error}): {adql!r}") from error
    except (DALServiceError, requests.RequestException, OSError) as error:
        status = getattr(error, "code", None) or getattr(getattr(error, "response", None), "status_code", None)
        message = f"{url}: cannot be reached, or gave up ({error}): {adql!r}"
        raise (refusal(status, message) if isinstance(status, int) else Busy(message)) from error
    except (DALFormatError, VOTableSpecError, ExpatError, ValueError, IndexError) as error:
        raise ChecksumMismatch(f"{url}: its reply is no table that can be read ({error}): {adql!r}") from error


def _job(url: str, adql: str, max_rows: int, timeout_s: float, session: Any) -> pa.Table:
    from pyvo.dal import TAPService

    job = TAPService(url, session=session).submit_job(adql, maxrec=max_rows)
    try:
        job.run()
        end, pause = time.monotonic() + timeout_s, 0.1
        while (phase := job.phase) not in ("COMPLETED", "ERROR", "ABORTED"):
            if phase not in WAITING:
                raise Busy(f"{url}: the query is {phase!r}, which is no phase of a job; try later: {adql!r}")
            if time.monotonic() > end:
                raise Busy(f"{url}: the query is {phase} after {timeout_s:g} s: {adql!r}")
            time.sleep(pause)
            pause = min(10.0, 1.5 * pause)
        job.raise_if_error()
        if phase == "ABORTED":
            raise Busy(f"{url}: gave the query up: {adql!r}")
        reply = job.fetch_result()
        if reply.query_status == "OVERFLOW":
            raise Busy(f"{url}: cut its reply off at {len(reply):,} rows, though it had counted fewer; {adql!r}")
        return as_arrow(reply.resultstable)
    finally:
        # the service clears away by itself what is left
        with suppress(Exception):
            job.delete()


def _refuse_other_host(reply: Any, url: str) -> None:
    host = urlsplit(reply.headers.get("Location") or reply.url).hostname
    if host is not None and host != urlsplit(url).hostname and not host.endswith(HOSTS):
        raise Unsafe(f"{url}: led to {host}, which is not asked for data")


def as_arrow(table: Any) -> pa.Table:
    """A VOTable's rows; whole numbers stay whole, nulls and NaN are null."""
    arrays, fields = [], []
    for column in table.fields:
        values = table.array[column.ID]
        hidden, data = np.ma.getmaskarray(values), np.ma.getdata(values)
        if data.dtype.kind in "OSU":
            texts = [v.decode() if isinstance(v, bytes) else str(v) for v in data.tolist()]
            made = pa.array(texts, pa.string(), mask=hidden)
        else:
            native = data.astype(data.dtype.newbyteorder("="))
            made = pa.array(native, mask=hidden | (np.isnan(native) if native.dtype.kind == "f" else False))
        unit = str(column.unit) if column.unit is not None else ""
        fields.append(pa.field(column.name, made.type, metadata={"unit": unit} if unit else None))
        arrays.append(made)
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


@dataclass(frozen=True)
class DataLab:
    """A `Service`: one query table a work cell from a TAP service."""

    folder: str
    columns: tuple[Asked, ...]
    tables: Mapping[str, str]
    "by alias: the first as it stands, the others joined to it by `join`"
    keys: tuple[str, ...]
    "of the query table, which sort it"
    ra: str
    "of the query table, as `dec`: the position that decides the cell"
    dec: str
    where: str = ""
    join: str = ""
    "column that all tables share"
    position: Position = "q3c"
    healpix: str = ""
    "alias.column that holds the work cell"
    derive: Callable[[pa.Table], pa.Table] = field(default=lambda table: table)
    "columns that the service does not have, from those that it has"
    url: str = URL
    max_rows: int = MAX_ROWS
    timeout_s: float = TIMEOUT_S
    search: Search = tap_search

    @property
    def prefix(self) -> str:
        """Of the paths of its files."""
        return f"query/{self.folder}/"

    def catalog_files(self, cells: Iterable[int]) -> list[RemoteFile]:
        """One query table a work cell."""
        return cell_files(self.folder, cells)

    def question(self, path: str) -> str:
        """Address, the query for all wanted columns, and the rule by which a cell is divided."""
        cell = cell_of(path, self.folder)
        asked = {
            "service": self.url,
            "query": f"SELECT {self._items(self.columns)} {self._rest(WORK_ORDER, cell)}",
            "columns": [[c.name, str(c.type)] for c in self.columns],
            "max_rows": self.max_rows,
        }
        return json.dumps(asked, sort_keys=True)

    def fetch(self, path: str, into: Path, have: Have) -> None:
        """Ask for the rows of the cell and write them, sorted by key.

        NotPublished where the service has no such table, FetchError where it lacks a column that must be there or
        refuses the query, Busy where it gave up, ChecksumMismatch where its reply was no table.
        """
        rows = rows_of_cell(cell_of(path, self.folder), self._ask, self.ra, self.dec)
        write_sorted(self.derive(rows), self.keys, into)

    @cached_property
    def known(self) -> tuple[Asked, ...]:
        """The wanted columns that the service has."""
        held: dict[str, set[str]] = {}
        for alias, table in self.tables.items():
            asked = f"SELECT column_name FROM tap_schema.columns WHERE table_name = '{table}'"
            found = self.search(self.url, asked, 10_000, self.timeout_s)
            held[alias] = {str(n).strip().strip('"').lower() for n in found.column(0).to_pylist()}
            if not held[alias]:
                raise NotPublished(f"{self.url}: there is no table {table!r}; name another by the setting `tables`")
        out = tuple(c for c in self.columns if c.sql.partition(".")[2].lower() in held[c.sql.partition(".")[0]])
        if lacking := [c for c in self.columns if c.required and c not in out]:
            c = lacking[0]
            alias, _, name = c.sql.partition(".")
            raise FetchError(
                f"{self.url}: table {self.tables[alias]!r} has no column {name!r} (of {c.name.upper()}), without which "
                "its rows cannot be read; name another by the setting `rename`, or read the survey's own files"
            )
        return out

    def _items(self, columns: Iterable[Asked]) -> str:
        # `AS dec` would be a reserved word of ADQL, and so may others be
        return ", ".join(c.sql if c.sql.partition(".")[2] == c.name else f"{c.sql} AS {c.name}" for c in columns)

    def _rest(self, order: int, cell: int) -> str:
        (first, table), *others = self.tables.items()
        joined = "".join(f" JOIN {t} AS {a} ON {first}.{self.join} = {a}.{self.join}" for a, t in others)
        conditions = [self.where, self._patch(order, cell)]
        return f"FROM {table} AS {first}{joined} WHERE {' AND '.join(c for c in conditions if c)}"

    def _patch(self, order: int, cell: int) -> str:
        sql = {c.name: c.sql for c in self.columns}
        ra, dec = sql[self.ra], sql[self.dec]
        work_cell = f"{self.healpix} = {cell >> 2 * (order - WORK_ORDER)}" if self.position == "healpix" else ""
        if work_cell and order == WORK_ORDER:
            return work_cell
        if self.position == "q3c":
            ra0, dec0, radius = circle_of(order, cell)
            return f"'t' = q3c_radial_query({ra}, {dec}, {ra0:.6f}, {dec0:.6f}, {radius:.6f})"
        low, high, south, north = box_of(order, cell)
        across = (
            f"({ra} >= {low:.6f} OR {ra} <= {high:.6f})" if low > high else f"{ra} BETWEEN {low:.6f} AND {high:.6f}"
        )
        box = f"{across} AND {dec} BETWEEN {south:.6f} AND {north:.6f}"
        return f"{work_cell} AND {box}" if work_cell else box

    def _ask(self, order: int, cell: int) -> pa.Table | None:
        items, rest = self._items(self.known), self._rest(order, cell)
        counted = self.search(self.url, f"SELECT COUNT(*) AS n {rest}", 1, self.timeout_s)
        number = counted.column(0).to_pylist() if counted.num_columns == 1 else []
        if len(number) != 1 or not isinstance(number[0], int):
            raise ChecksumMismatch(f"{self.url}: {counted.to_pylist()} is no number of rows, for {rest!r}")
        if number[0] > self.max_rows:
            return None
        query = f"SELECT {items} {rest}"
        # one row more than there are, so that a full reply is never one that was cut off
        found = self.search(self.url, query, number[0] + 1, self.timeout_s)
        if found.num_rows != number[0]:
            raise Busy(
                f"{self.url}: gave {found.num_rows:,} of {number[0]:,} rows of HEALPix cell {cell} of order {order}: "
                "cut short, or at its limit; try again, with a smaller `max_rows` if it stays so"
            )
        return self._typed(found, query)

    def _typed(self, found: pa.Table, query: str) -> pa.Table:
        by_name = {name.lower(): i for i, name in enumerate(found.column_names)}
        if missing := [c.name for c in self.known if c.name not in by_name]:
            raise ChecksumMismatch(f"{self.url}: its reply has no column {missing[0]!r}, to {query!r}")
        arrays, fields = [], []
        for column in self.known:
            place = by_name[column.name]
            unit = (found.schema.field(place).metadata or {}).get(b"unit", b"").decode()
            # a spelling that nobody can compare says nothing
            metadata = {"unit": unit} if unit and is_unit(unit) else None
            try:
                arrays.append(typed(found.column(place).combine_chunks(), column.type))
            except (pa.ArrowException, ValueError) as error:
                raise ChecksumMismatch(
                    f"{self.url}: column {column.name!r} of its reply: {error}, to {query!r}"
                ) from error
            fields.append(pa.field(column.name, column.type, metadata=metadata))
        return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


TRUE, FALSE = ("t", "true", "1"), ("f", "false", "0")


def typed(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """The values as this type, NaN as null. ValueError, or Arrow's own, where it cannot hold them.

    Truth may come as numbers or as letters; text loses its padding; 64 bits never come from a float.
    """
    if pa.types.is_null(values.type):
        return pa.nulls(len(values), kind)
    if pa.types.is_string(kind):
        return pc.utf8_trim_whitespace(values.cast(kind))
    if pa.types.is_boolean(kind) and not pa.types.is_boolean(values.type):
        words = pc.utf8_lower(pc.utf8_trim_whitespace(values.cast(pa.string())))
        if strange := set(words.unique().to_pylist()) - {*TRUE, *FALSE, None}:
            raise ValueError(f"{min(map(str, strange))!r} is neither true nor false")
        return pc.if_else(words.is_null(), pa.scalar(None, kind), pc.is_in(words, pa.array(TRUE)))
    if pa.types.is_floating(values.type):
        if pa.types.is_int64(kind):
            raise ValueError("came as a float; a whole number of 63 bits never passes through one")
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    return values.cast(kind)


def _asked(
    columns: Iterable[Column], alias: Callable[[str], str | None], names: Mapping[str, str], required: Iterable[str]
) -> list[Asked]:
    needed = set(required)
    out = []
    for c in columns:
        if (table := alias(c.name)) is not None:
            out.append(Asked(c.name, f"{table}.{names.get(c.name, c.name)}", c.type, c.required or c.name in needed))
    return out


TRACTOR: Mapping[str, str] = {
    "dr10": "ls_dr10.tractor",
    "dr9-north": "ls_dr9.tractor_n",
    "dr9-south": "ls_dr9.tractor_s",
}
"""Data Lab's tables of tractor sources; those of DR9 are not verified."""


def legacysurvey(release: str = "dr10", *, rename: Mapping[str, str] | None = None, **settings: Any) -> DataLab:
    """The tractor catalogue's primary rows. `rename`: other names of the service's columns by the files' own."""
    if release not in TRACTOR:
        raise ValueError(
            f"legacysurvey: Data Lab is not asked for release {release!r}; choose one of {', '.join(TRACTOR)}, or read "
            "the survey's own files"
        )
    more = [
        *(Column(n, F8, required=True) for n in ("ra", "dec")),
        *(Column(n, F4) for n in ("ra_ivar", "dec_ivar", "pmra", "pmdec")),
        *(Column(n, F8) for n in ("mjd_min", "mjd_max")),
    ]
    # only primary rows are asked for, as sweeps hold them, which say nothing of it
    own = [c for c in legacycolumns.COLUMNS if c.name != "brick_primary"]
    values: dict[str, Any] = {
        "folder": "tractor",
        "columns": tuple(_asked([*own, *more], lambda _: "t", rename or {}, ("type", "brickname"))),
        "tables": {"t": TRACTOR[release]},
        "keys": ("release", "brickid", "objid"),
        "ra": "ra",
        "dec": "dec",
        "where": "t.brick_primary = 1",
    }
    return DataLab(**{**values, **settings})


REDSHIFTS = re.compile(
    r"targetid|survey|program|healpix|z|zerr|zwarn|chi2|deltachi2|spectype|subtype|coadd_.*|tsnr2_.*|.*_mjd|mean_fiber_.*"
    r"|.*_nspec|.*_primary"
)
"""Columns that Data Lab's zpix has; the rest are in its photometry."""
UNHELD = ("objtype", "photsys", *("good_z", "z_good"))


def desi(release: str = "dr1", *, rename: Mapping[str, str] | None = None, **settings: Any) -> DataLab:
    """The redshift catalogue with photometry. `rename`: other names of the service's columns by the files' own."""
    more = [
        *(Column(n, F8, required=True) for n in ("target_ra", "target_dec")),
        *(Column(n, F4, required=True) for n in ("pmra", "pmdec")),
    ]
    columns = [c for c in desicolumns.COLUMNS if c.name not in UNHELD]
    names = {"target_ra": "ra", "target_dec": "dec", **(rename or {})}

    def alias(name: str) -> str:
        return "z" if REDSHIFTS.fullmatch(name) else "p"

    values: dict[str, Any] = {
        "folder": "zpix",
        "columns": tuple(_asked([*columns, *more], alias, names, ("healpix", "ref_epoch"))),
        "tables": {"z": f"desi_{release}.zpix", "p": f"desi_{release}.photometry"},
        "join": "targetid",
        "keys": ("targetid", "survey", "program"),
        "ra": "target_ra",
        "dec": "target_dec",
        "position": "healpix",
        "healpix": "z.healpix",
        "derive": with_objtype,
    }
    return DataLab(**{**values, **settings})


def with_objtype(table: pa.Table) -> pa.Table:
    """With OBJTYPE: SKY where TARGETID has that bit, blank where it is negative (a stuck fibre), else TGT."""
    targetid = table.column("targetid").fill_null(-1).to_numpy()
    kind = np.where(targetid < 0, "", np.where(targetid & SKY != 0, "SKY", "TGT"))
    return table.append_column(pa.field("objtype", pa.string()), pa.array(kind, pa.string()))
