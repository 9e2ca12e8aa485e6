"""HSC-SSP's database as files: one table a tract, asked of its SQL job service with an account.

A job is submitted, asked after until it is done, its table downloaded, and the job deleted, however that ends. Which
job was asked is noted beside the file, so that a run that died finds its job again instead of asking twice; a job
whose number was never learnt, since the reply to its submission was lost, is the one thing that can be left behind.

The science cuts are not in the SQL: they are made here, with counts. Of the tables only primary rows are asked for.

Known from public clients of this service: its verbs, what is posted, the states `error` and `done`, 401 for a wrong
account, 406 for SQL that it refuses, and a column `<name>_isnull` beside each column of a FITS table. Not verified,
and therefore settings: the release's name (`pdr3`, `pdr3-citus`, `pdr3-citus-columnar`), the client's version, how
many tables the photometry is split over, and which of them holds which column. A name is written as it is, which the
database takes where one table alone has it; those that public queries name with their table are written so
(`TABLE_OF`). Also taken on trust: that `isprimary` and `tract` are never null, and how the service words a quota or a
job that is gone.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
import os
import re
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from skycairn.archives.credentials import Credential, credential, how_to_set
from skycairn.archives.errors import Busy, ChecksumMismatch, FetchError, NotPublished, Refused, TimedOut, Unsafe
from skycairn.archives.service import Have
from skycairn.catalogs.fitsfile import check_whole, column_units, read_columns
from skycairn.catalogs.hsccolumns import PUBLISHED
from skycairn.catalogs.hscfiles import (
    ROOT,
    SQL_FOLDER,
    forced_path,
    read_patches,
    tract_of,
    tracts_touching,
)
from skycairn.catalogs.survey import RemoteFile

log = logging.getLogger(__name__)

Post = Callable[[str, dict[str, Any]], tuple[int, Mapping[str, str], bytes]]
"""Posts JSON to an address: status, headers and body of the reply, redirects not followed. Raises `FetchError`s where
there is none. It must not log what it posts."""
JobId = int | str

API = "datasearch/api/catalog_jobs"
RELEASE_VERSION = "pdr3"
CLIENT_VERSION = 20190514.1
SCHEMA = "pdr3_wide"
TABLES = ("forced", "forced2", "forced3")
COLUMNS = ("object_id", "ra", "dec", *(c.name for c in PUBLISHED if c.name != "object_id"))
"""What is asked for, in this order: all that the survey's reader and cuts know."""
ALWAYS = ("object_id", "ra", "dec", "tract", "patch", "isprimary")
TABLE_OF = {
    name: "forced"
    for name in COLUMNS
    if name in ("tract", "patch", "isprimary")
    or name.endswith(("_inputcount_value", "_cmodel_flag"))
    or "_pixelflags_" in name
}
"""Table with which a column's name is qualified; the names of the others are written without one."""
FAILED = frozenset({"error", "failed", "aborted", "cancelled", "canceled", "timeout", "killed"})
SUBMISSIONS = 3
"""Times that a question is submitted, should its job be gone before its table is here."""
HICCUPS = 5
"""Replies in a row that may fail while a job is waited for."""
DOWNLOADS = 3

_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_ACCOUNT = re.compile(
    r"(invalid|wrong|unknown|incorrect|expired|no such|bad)\s+(\w+\s+){0,3}(account|password|user|credential)s?\b(?!-)"
    r"|unauthori[sz]ed|authenticat",
    re.IGNORECASE,
)
_CROWDED = re.compile(r"too many|quota|job limit|limit of jobs|busy|try again|maintenance", re.IGNORECASE)
_GONE = re.compile(r"no such job|(unknown|expired|invalid) job|job\b.{0,40}(not found|not exist|expired|gone)", re.I)
_FORMATS = {"i2": "I", "i4": "J", "i8": "K", "u1": "B", "f4": "E", "f8": "D", "b1": "L"}


class _Gone(FetchError):
    """The service knows no such job."""


def plain_post(url: str, body: dict[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
    """`Post` by httpx, one try; `Busy` where no reply comes."""
    try:
        timeout = httpx.Timeout(60, connect=10)
        identity = {"Accept-Encoding": "identity"}
        reply = httpx.post(url, json=body, headers=identity, timeout=timeout, verify=_trusted())
    except httpx.HTTPError as error:
        trouble = f"{type(error).__name__}: {error}"
    else:
        return reply.status_code, reply.headers, reply.content
    # outside of the handler: httpx's error holds the request, and the request the password
    raise Busy(f"{url}: no reply ({trouble}); try later")


@functools.cache
def _trusted() -> ssl.SSLContext:
    return httpx.create_ssl_context()  # reads all certificates, each time


@dataclass(frozen=True)
class Jobs:
    """The job service, one method a verb; each raises the errors of `skycairn.archives.errors`."""

    api: str
    who: Credential
    post: Post
    release_version: str
    client_version: float

    def submit(self, sql: str) -> JobId:
        """Its number; the service calls nobody by mail."""
        job = {
            "sql": sql,
            "out_format": "fits",
            "include_metainfo_to_body": True,
            "release_version": self.release_version,
        }
        found = self._json("submit", {"catalog_job": job, "nomail": True, "skip_syntax_check": True})
        if (number := _job_id(found.get("id"))) is None:
            raise self._trouble("submit", 200, {}, json.dumps(found).encode())
        return number

    def status(self, job: JobId) -> tuple[str, str]:
        """State of the job in lower case, and what the database said of it."""
        found = self._json("status", {"id": job})
        if not isinstance(state := found.get("status"), str):
            raise self._trouble("status", 200, {}, json.dumps(found).encode())
        return state.lower(), self._hidden(str(found.get("error") or ""))

    def download(self, job: JobId) -> bytes:
        """The table of a job that is done, as it comes."""
        return self._call("download", {"id": job})

    def cancel(self, job: JobId) -> None:
        """Stop it."""
        self._call("cancel", {"id": job})

    def delete(self, job: JobId) -> None:
        """Forget it, and its table."""
        self._call("delete", {"id": job})

    def _json(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        reply = self._call(verb, body)
        try:
            found = json.loads(reply)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Busy(
                f"{self.api}/{verb}: wanted JSON, found {self.said(reply)!r}; it may be out of service: try later"
            )
        return found

    def _call(self, verb: str, body: dict[str, Any]) -> bytes:
        account = {"account_name": self.who.account, "password": self.who.password}
        sent = {"credential": account, **body, "clientVersion": self.client_version}
        status, headers, reply = self.post(f"{self.api}/{verb}", sent)
        if not 200 <= status < 300:
            raise self._trouble(verb, status, headers, reply)
        return reply

    def _trouble(self, verb: str, status: int, headers: Mapping[str, str], reply: bytes) -> FetchError:
        said = self.said(reply)
        what = f"{self.api}/{verb}: {f'HTTP {status}, ' if status >= 300 else ''}{said!r}"
        lower = {name.lower(): value for name, value in headers.items()}
        if 300 <= status < 400:
            to = self._hidden(lower.get("location", "").partition("?")[0])
            return Unsafe(f"{what}: leads on to {to!r}, where no password is sent; set the survey's root anew")
        if status in (401, 403) or (status < 500 and _ACCOUNT.search(said)):
            return Refused(
                f"{what}: the archive does not take this account or its password"
                f"{f', which are those of {self.who.place}' if self.who.place else ''}; {how_to_set(self.who.name)}"
            )
        if verb != "submit" and (status in (404, 410) or _GONE.search(said)):
            return _Gone(what)
        if status in (408, 425, 429) or status >= 500 or _CROWDED.search(said):
            wait = f"; it asks to wait {lower['retry-after'][:40]}" if "retry-after" in lower else ""
            return Busy(f"{what}: the archive has no room for this now{wait}; try later")
        return FetchError(f"{what}: wanted a job; check the service's address, its release and the client's version")

    def said(self, reply: bytes) -> str:
        """The words of a reply, without markup and password, for a message."""
        text = self._hidden(reply.decode("utf-8", "replace"))
        with suppress(ValueError, RecursionError):
            found = json.loads(text)
            if isinstance(found, dict):
                text = str(next((found[k] for k in ("error", "message", "detail") if found.get(k)), text))
        text = self._hidden(re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL | re.IGNORECASE))
        return " ".join(text.split())[:500] or "nothing"

    def _hidden(self, text: str) -> str:
        return self.who.hide(text)


@dataclass
class HscDatabase:
    """The tables of `sql/pdr3_wide`, a `Service`: one job a tract, or one a range of patches."""

    root: str = ROOT
    account: str = "hsc"
    "name of the account, as of `skycairn.archives.credentials`"
    post: Post = plain_post
    release_version: str = RELEASE_VERSION
    client_version: float = CLIENT_VERSION
    columns: Sequence[str] = COLUMNS
    "fewer, should the database not have them all"
    schema: str = SCHEMA
    tables: Sequence[str] = TABLES
    table_of: Mapping[str, str] = field(default_factory=lambda: dict(TABLE_OF))
    patch_bounds: Sequence[int] = ()
    "where a tract is split into several jobs, as (300, 600): patches are numbered p1 * 100 + p2"
    tract_list: Callable[[], Path] | None = None
    "gives the list of tracts and patches on this machine; without it `catalog_files` is left to the survey"
    notes: Path | None = None
    "folder for the numbers of jobs; None for that of the file"
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0
    deadline_s: float = 4 * 3600.0
    "for one job, from its submission to its table"
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    prefix: str = field(default=f"{SQL_FOLDER}/", init=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.root)
        if parts.username or parts.password:
            raise ValueError("hsc: the root holds an account; name it by `account`, and keep it out of addresses")
        loopback = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")
        if not (parts.scheme == "https" or loopback) or parts.query or parts.fragment:
            raise ValueError(f"hsc: root is {self.root!r}, wanted https://..., since a password is sent there")
        for name in (self.schema, *self.tables):
            if not _IDENTIFIER.fullmatch(name):
                raise ValueError(
                    f"hsc: {name!r} is no name of a schema or table; wanted one as {SCHEMA!r}, {TABLES[0]!r}"
                )
        if not self.tables:
            raise ValueError(f"hsc: no table is named; wanted some, as {', '.join(TABLES)}")
        if missing := [c for c in ALWAYS if c not in self.columns]:
            raise ValueError(f"hsc: columns lack {missing[0]!r}; wanted {', '.join(ALWAYS)}, and what else there is")
        if strange := [c for c in self.columns if c not in COLUMNS]:
            raise ValueError(f"hsc: columns name {strange[0]!r}; wanted those that the survey's reader knows")
        for name, table in self.table_of.items():
            if name not in COLUMNS or table not in self.tables:
                raise ValueError(f"hsc: table_of has {name!r} in {table!r}; wanted columns of {', '.join(self.tables)}")
        if list(self.patch_bounds) != sorted({int(b) for b in self.patch_bounds}):
            raise ValueError(f"hsc: patch_bounds are {self.patch_bounds}, wanted whole numbers that rise")

    @property
    def api(self) -> str:
        """Address of the job service."""
        return f"{self.root.rstrip('/')}/{API}"

    def catalog_files(self, cells: Iterable[int]) -> list[RemoteFile] | None:
        """Tables of all tracts of the release that touch the cells; a tract without sources is a table without rows."""
        if self.tract_list is None:
            return None
        return [RemoteFile(forced_path(t)) for t in tracts_touching(read_patches(self.tract_list()).boxes, cells)]

    def sql(self, tract: int) -> list[str]:
        """The questions of a tract, one a job; their rows together are its table."""
        if not 0 <= tract < 1 << 31:
            raise ValueError(f"hsc: there is no tract {tract}; wanted 0 or more, below 2^31")
        first, *others = self.tables
        lines = ["SELECT", ",\n".join(f"  {self._name(c)}" for c in self.columns), f"FROM {self.schema}.{first}"]
        lines += [f"LEFT JOIN {self.schema}.{t} USING (object_id)" for t in others]
        lines += [f"WHERE {self._name('isprimary')}", f"AND {self._name('tract')} = {tract:d}"]
        return ["\n".join([*lines, *part]) for part in self._patch_ranges()]

    def _name(self, column: str) -> str:
        return f"{self.table_of[column]}.{column}" if column in self.table_of else column

    def _patch_ranges(self) -> list[list[str]]:
        patch, bounds = self._name("patch"), [int(b) for b in self.patch_bounds]
        if not bounds:
            return [[]]
        # a row without a patch is in no range: the first takes it
        parts = [[f"AND ({patch} < {bounds[0]} OR {patch} IS NULL)"]]
        parts += [[f"AND {patch} >= {a} AND {patch} < {b}"] for a, b in itertools.pairwise(bounds)]
        return [*parts, [f"AND {patch} >= {bounds[-1]}"]]

    def question(self, path: str) -> str:
        """Address, release and SQL of the table at this path."""
        return "\n".join([f"POST {self.api}", f"release_version {self.release_version}", *self.sql(_tract(path))])

    def fetch(self, path: str, into: Path, have: Have) -> None:
        """Ask for the tract's table, and write it as `write_sorted` does.

        NotPublished for a path of no tract; `Refused` at once where there is no account, or the archive does not take
        it; FetchError with the database's own words and the SQL where it refuses that; `Busy` where it has no room.
        """
        tract = _tract(path)
        questions = self.sql(tract)
        jobs = Jobs(self.api, credential(self.account), self.post, self.release_version, self.client_version)
        replies = [into.with_name(f"{into.name}.reply-{k}") for k in range(len(questions))]
        try:
            for sql, reply in zip(questions, replies, strict=True):
                self._ask(jobs, sql, reply)
                _check_tract(reply, tract)
            write_sorted(replies, self.columns, into, f"{self.api}, tract {tract}")
        except ValueError as error:
            raise ChecksumMismatch(f"{self.api}: what came for tract {tract} is not its table: {error}") from error
        finally:
            for reply in replies:
                reply.unlink(missing_ok=True)

    def _ask(self, jobs: Jobs, sql: str, reply: Path) -> None:
        known = "\n".join((jobs.api, jobs.release_version, "".join(jobs.who.account), sql))
        digest = hashlib.sha256(known.encode()).hexdigest()
        note = (self.notes or reply.parent) / f"job-{digest[:32]}.json"
        end = self.clock() + self.deadline_s
        for _ in range(SUBMISSIONS):
            noted = _read_note(note)
            job = noted if noted is not None else jobs.submit(sql)
            if self._collect(jobs, job, noted is not None, sql, note, reply, end):
                return
        raise Busy(f"{jobs.api}: {SUBMISSIONS} jobs in turn were gone before their table was here; try later")

    def _collect(self, jobs: Jobs, job: JobId, reused: bool, sql: str, note: Path, reply: Path, end: float) -> bool:
        """Wait for the job and have its table; False where it is to be submitted anew. The job is deleted."""
        finished = False
        leave = False
        try:
            if not reused:
                _write_note(note, job)
            state, message = self._wait(jobs, job, end)
            finished = True
            if state in FAILED:
                if reused:
                    return False
                raise FetchError(
                    f"{jobs.api}: job {job} ended as {state!r}, the database said: {message or 'nothing'}; check the "
                    f"names of tables and columns, and what the account may read. The SQL was:\n{sql}"
                )
            self._download(jobs, job, reply)
            return True
        except _Gone:
            leave = True
            note.unlink(missing_ok=True)
            return False
        except Refused:
            # asking on with a refused password may lock the account
            leave = True
            raise
        finally:
            if not leave:
                _delete(jobs, job, note, finished)

    def _wait(self, jobs: Jobs, job: JobId, end: float) -> tuple[str, str]:
        """State in which the job ended, and what the database said; pauses grow."""
        pause, hiccups, state, message = self.first_pause_s, 0, "", ""
        while True:
            try:
                state, message = jobs.status(job)
                hiccups = 0
            except Busy:
                hiccups += 1
                if hiccups > HICCUPS:
                    raise
            if state == "done" or state in FAILED:
                return state, message
            if self.clock() + pause > end:
                raise TimedOut(
                    f"{jobs.api}: job {job} is {state or 'not heard of'!r} after {self.deadline_s:.0f} s; try later, "
                    "give it more time, or split the tract by patch_bounds"
                )
            self.sleep(pause)
            pause = min(1.5 * pause, self.longest_pause_s)

    def _download(self, jobs: Jobs, job: JobId, reply: Path) -> None:
        """The table, whole: the job has it as long as it is not deleted, so that a broken download is tried again."""
        trouble: FetchError = Busy(f"{jobs.api}/download: was not asked")
        for n in range(DOWNLOADS):
            if n:
                self.sleep(self.first_pause_s * 4**n)
            try:
                body = jobs.download(job)
                if body.lstrip()[:1] in (b"<", b"{"):
                    raise ChecksumMismatch(
                        f"{jobs.api}/download: wanted a FITS table, found the page {jobs.said(body)!r}; try later"
                    )
                reply.write_bytes(body)
                check_whole(reply)
                return
            except (Busy, ChecksumMismatch) as error:
                trouble = error
            except ValueError as error:
                trouble = ChecksumMismatch(f"{jobs.api}/download: the table of job {job} is broken: {error}")
        raise trouble


def _check_tract(reply: Path, tract: int) -> None:
    """ValueError for the table of another question, as a service that counts its jobs anew may give it."""
    found = {name.lower(): fetch for name, fetch in read_columns(reply, holding="object_id")[0].items()}
    if "tract" in found and (other := np.setdiff1d(found["tract"](), [tract])).size:
        raise ValueError(f"it holds rows of tract {other[0]}; ask again")


def write_sorted(replies: Sequence[Path], wanted: Sequence[str], into: Path, where: str) -> None:
    """One FITS table of the rows of all replies, sorted by object_id: the same rows give the same bytes.

    The wanted columns in their order, in the units and types of the reply. What `<name>_isnull` says is null becomes
    NaN; a whole number or flag that is null becomes 0, and keeps its `<name>_isnull`. FetchError for a column that is
    not there, ValueError for a file that is none.
    """
    tables = [read_columns(reply, holding="object_id")[0] for reply in replies]
    found = [{name.lower(): fetch for name, fetch in table.items()} for table in tables]
    units = {name.lower(): unit for name, unit in column_units(replies[0], "object_id").items()}
    columns: list[tuple[str, NDArray[Any], str | None]] = []
    for name in wanted:
        if any(name not in table for table in found):
            raise FetchError(f"{where}: the reply has no column {name!r}; check how the service names its columns")
        parts = [np.ma.asanyarray(table[name]()) for table in found]
        if len({p.dtype.kind for p in parts}) > 1 or (name == "object_id" and parts[0].dtype.kind != "i"):
            kinds = ", ".join(str(p.dtype) for p in parts)
            raise FetchError(f"{where}: column {name!r} came as {kinds}; wanted one kind, and whole numbers for a key")
        values = np.concatenate([np.ma.getdata(p) for p in parts])
        values = np.array(values, dtype=values.dtype.newbyteorder("="))
        null = np.concatenate([np.ma.getmaskarray(p) for p in parts])
        null |= np.concatenate(
            [
                t[f"{name}_isnull"]().astype(bool) if f"{name}_isnull" in t else np.zeros(len(p), bool)
                for t, p in zip(found, parts, strict=True)
            ]
        )
        if values.dtype.kind == "f":
            values[null | np.isnan(values)] = np.nan
        elif null.any():
            values[null] = 0
        columns.append((name, values, units.get(name)))
        if null.any() and values.dtype.kind != "f":
            columns.append((f"{name}_isnull", null, None))
    order = _order([values for _, values, _ in columns])
    made = []
    for name, values, unit in columns:
        if (form := _FORMATS.get(values.dtype.str[1:])) is None:
            raise FetchError(f"{where}: column {name!r} came as {values.dtype}, wanted numbers and flags")
        made.append(fits.Column(name=name, format=form, unit=unit, array=values[order]))
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(made)]).writeto(into)


def _order(columns: list[NDArray[Any]]) -> NDArray[np.int64]:
    """By the first column; rows that share it by all the others, so that the order of the reply does not show."""
    first = columns[0]
    order: NDArray[np.int64] = np.argsort(first, kind="stable")
    again = np.flatnonzero(first[order][1:] == first[order][:-1])
    if len(again):
        twice = np.isin(first, first[order][again])
        bits = [np.ascontiguousarray(c[twice]).view(f"u{c.dtype.itemsize}") for c in columns]
        rows = np.flatnonzero(twice)[np.lexsort([*bits[1:][::-1], first[twice]])]
        order[np.isin(first[order], first[twice])] = rows
    return order


def _tract(path: str) -> int:
    """Of the table at this path, which is spelt in one way alone."""
    tract = tract_of(PurePosixPath(path).name)
    if tract is None or path != forced_path(tract):
        raise NotPublished(f"{path}: the database gives tables of tracts alone, as {forced_path(9813)}")
    return tract


def _job_id(value: Any) -> JobId | None:
    """A job's number, where it is one; it goes into bodies, messages and notes."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return value if isinstance(value, str) and re.fullmatch(r"[\w-]{1,64}", value, re.ASCII) else None


def _read_note(note: Path) -> JobId | None:
    try:
        found = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return None
    return _job_id(found.get("job")) if isinstance(found, dict) else None


def _write_note(note: Path, job: JobId) -> None:
    aside = note.with_name(f"{note.name}.{os.getpid()}")
    aside.write_text(json.dumps({"job": job}) + "\n")
    os.replace(aside, note)


def _delete(jobs: Jobs, job: JobId, note: Path, finished: bool) -> None:
    """Stop and delete the job; where that fails the note stays, for the next run to find it."""
    if not finished:
        with suppress(Exception):
            jobs.cancel(job)
    try:
        jobs.delete(job)
    except _Gone:
        pass
    except Exception as error:
        # whatever it is, it must not hide how the job ended; words that are not ours may hold what was sent
        why = error if isinstance(error, FetchError) else type(error).__name__
        log.warning("job %s was left at the archive (%s); the next try takes it up, or delete it there", job, why)
        return
    note.unlink(missing_ok=True)
