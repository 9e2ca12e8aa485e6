"""HSC-SSP's SQL job service on loopback: an account, jobs that take their time, and the tables of a mock sky.

It understands the one question that is asked here: columns of the forced tables, joined by object_id, of one tract.
Rows come in another order each time, since a database promises none, and headers tell the job and the time.
"""

from __future__ import annotations

import base64
import hmac
import io
import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from skycairn.catalogs.hsccolumns import PUBLISHED
from skycairn.catalogs.hscfiles import SQL_FOLDER, forced_path
from skycairn.mirror.server import Reply, Request

API = "/datasearch/api/catalog_jobs/"
SCHEMA = "pdr3_wide"
TABLES: Mapping[str, tuple[str, ...]] = {
    "forced": ("object_id", "ra", "dec", *(c.name for c in PUBLISHED if "sdssshape" not in c.name)),
    "forced2": ("object_id", *(c.name for c in PUBLISHED if "sdssshape" in c.name)),
    "forced3": ("object_id",),
}
"""Columns of each table. Public queries take moments from forced2; what is in forced3 is not known."""
TROUBLES = ("error", "expired", "html", "html table", "cut", "busy", "silent account")

_QUESTION = re.compile(
    rf"SELECT\s+(?P<columns>.+?)\s+FROM\s+(?P<tables>{SCHEMA}\.\w+(?:\s+LEFT\s+JOIN\s+\S+\s+USING\s*\(object_id\))*)"
    r"\s+WHERE\s+(?P<where>.+?)\s*;?\s*",
    re.IGNORECASE | re.DOTALL,
)
_CONDITION = re.compile(
    r"(?P<flag>[\w.]+)|(?P<name>[\w.]+)\s*(?P<how>=|>=|<)\s*(?P<number>\d+)"
    r"|\((?P<low>[\w.]+)\s*<\s*(?P<below>\d+)\s+OR\s+(?P=low)\s+IS\s+NULL\)",
    re.IGNORECASE,
)


class _Refused(Exception):
    """What Postgres says of a question that it does not take."""


@dataclass
class Job:
    """One question."""

    number: int
    sql: str
    release_version: str
    polls: int = 0
    "times that its status was asked"
    cancelled: bool = False


@dataclass
class HscJobs:
    """The job service over a folder with `sql/pdr3_wide/forced-<tract>.fits`; a `Service` of the mirror."""

    folder: Path
    account: str
    password: str
    most_jobs: int = 10
    "at once; more are refused"
    states: Sequence[str] = ("waiting", "running")
    "what the first polls are told; `done` after them"
    tables: Mapping[str, Sequence[str]] = field(default_factory=lambda: dict(TABLES))
    companions: bool = True
    "whether each column is followed by `<name>_isnull`, and null numbers come as 0"
    locked: Sequence[str] = ()
    "other paths, by how they begin, that ask for the account by HTTP Basic"
    trouble: str = ""
    "one of TROUBLES"

    def __post_init__(self) -> None:
        self.live: dict[int, Job] = {}
        "jobs that are not deleted, by number"
        self.asked: list[tuple[str, int | None]] = []
        "verb and job of each request, refused ones included"
        self._lock = threading.Lock()
        self._number = 0

    def __call__(self, request: Request) -> Reply | None:
        """The reply; None for paths of others."""
        if request.path.startswith(API):
            with self._lock:
                return self._verb(request, request.path.removeprefix(API))
        if any(request.path.startswith(path) for path in self.locked) and not self._basic(request):
            return Reply(401, b"Authorization Required\n", {"WWW-Authenticate": 'Basic realm="hsc-ssp"'})
        return None

    def count(self, verb: str) -> int:
        """Requests of this verb so far."""
        return sum(v == verb for v, _ in self.asked)

    def _basic(self, request: Request) -> bool:
        wanted = "Basic " + base64.b64encode(f"{self.account}:{self.password}".encode()).decode()
        return hmac.compare_digest(request.headers.get("authorization", "").encode(), wanted.encode())

    def _verb(self, request: Request, verb: str) -> Reply:
        try:
            body = json.loads(request.body)
            given = body["credential"]
            account, password = given["account_name"], given["password"]
        except (ValueError, KeyError, TypeError):
            return _text(400, "wanted JSON with a credential")
        number = body.get("id")
        self.asked.append((verb, number if isinstance(number, int) else None))
        if request.method != "POST":
            return _text(405, "wanted POST")
        if self.trouble == "html":
            return _page()
        if (account, password) != (self.account, self.password):
            if self.trouble == "silent account":
                return _json({"error": f"invalid id or password: {account} {password}"})
            return _text(401, f"invalid id or password. You sent {json.dumps(given)}")
        if not isinstance(body.get("clientVersion"), float):
            return _text(406, "this client is too old; wanted its clientVersion")
        if verb == "submit":
            return self._submit(body)
        job = self.live.get(number) if isinstance(number, int) else None
        if job is None:
            return _text(404, f"no such job: {number}")
        if verb == "status":
            return self._status(job)
        if verb == "download":
            return self._download(job)
        if verb == "cancel":
            job.cancelled = True
            return _json({})
        if verb == "delete":
            del self.live[job.number]
            return _json({})
        return _text(404, f"{verb} is not served here")

    def _submit(self, body: dict[str, Any]) -> Reply:
        job = body.get("catalog_job", {})
        if not str(job.get("release_version", "")).startswith("pdr3"):
            return _text(406, f"unknown release version {job.get('release_version')!r}")
        if job.get("out_format") != "fits":
            return _text(406, f"format {job.get('out_format')!r} is not served here")
        if self.trouble == "busy" or len(self.live) >= self.most_jobs:
            return _text(406, f"you have too many jobs ({len(self.live)}); delete some")
        self._number += 1
        self.live[self._number] = Job(self._number, str(job.get("sql")), str(job.get("release_version")))
        return _json(self._told(self.live[self._number]))

    def _status(self, job: Job) -> Reply:
        if self.trouble == "expired" and job.polls == 1:
            self.trouble = ""
            del self.live[job.number]
            return _text(404, f"no such job: {job.number}")
        told = self._told(job)
        job.polls += 1
        return _json(told)

    def _told(self, job: Job) -> dict[str, Any]:
        told: dict[str, Any] = {"id": job.number, "sql": job.sql, "release_version": job.release_version, "error": None}
        if job.cancelled:
            return told | {"status": "aborted"}
        if job.polls < len(self.states):
            return told | {"status": self.states[job.polls]}
        if self.trouble == "error":
            return told | {"status": "error", "error": "ERROR:  canceling statement due to statement timeout"}
        try:
            question = _Question(job.sql, self.tables)
        except _Refused as refusal:
            return told | {"status": "error", "error": f"ERROR:  {refusal}"}
        return told | {"status": "done", "tract": question.tract}

    def _download(self, job: Job) -> Reply:
        if self._told(job)["status"] != "done":
            return _text(406, f"job {job.number} is not done")
        if self.trouble == "html table":
            return _page()
        table = self._table(job)
        return Reply(200, table[: len(table) // 2] if self.trouble == "cut" else table, {"Content-Type": "image/fits"})

    def _table(self, job: Job) -> bytes:
        question = _Question(job.sql, self.tables)
        path, there = self.folder / forced_path(question.tract), True
        if not path.is_file():
            path, there = sorted((self.folder / SQL_FOLDER).glob("forced-*.fits"))[0], False
        with fits.open(path, memmap=False) as hdus:
            data, units = hdus[1].data, {c.name: c.unit for c in hdus[1].columns}
            rows = np.flatnonzero(question.keeps(data)) if there else np.zeros(0, np.int64)
            rows = np.random.default_rng(job.number).permutation(rows)
            made = []
            for name in question.columns:
                values = np.array(data[name])[rows]
                null = np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(rows), bool)
                if self.companions:
                    values = np.where(null, values.dtype.type(0), values)
                made.append(fits.Column(name, data.columns[name].format, unit=units[name], array=values))
                if self.companions:
                    made.append(fits.Column(f"{name}_isnull", "L", array=null))
        hdu = fits.BinTableHDU.from_columns(made)
        hdu.header["DATE"] = datetime.now(UTC).isoformat(timespec="microseconds")
        hdu.header["COMMENT"] = f"job {job.number}"
        hdu.header["COMMENT"] = job.sql.replace("\n", " ")
        out = io.BytesIO()
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(out)
        return out.getvalue()


class _Question:
    """A question that was understood; `_Refused` in Postgres's words for another one."""

    def __init__(self, sql: str, tables: Mapping[str, Sequence[str]]) -> None:
        found = _QUESTION.fullmatch(sql.strip())
        if found is None:
            raise _Refused(f'syntax error at or near "{sql.strip()[:20]}"')
        joined = re.findall(r"(?:^|JOIN)\s*([\w.]+)", found["tables"], re.IGNORECASE)
        for name in joined:
            schema, _, table = name.partition(".")
            if schema != SCHEMA or table not in tables:
                raise _Refused(f'relation "{name}" does not exist')
        self._tables = {name.partition(".")[2]: tables[name.partition(".")[2]] for name in joined}
        self.columns = [self._column(name.strip()) for name in found["columns"].split(",")]
        self._conditions: list[tuple[str, str, int]] = []
        for text in re.split(r"\s+AND\s+", found["where"], flags=re.IGNORECASE):
            part = _CONDITION.fullmatch(text)
            if part is None:
                raise _Refused(f'syntax error at or near "{text[:20]}"')
            if part["flag"]:
                self._conditions.append((self._column(part["flag"]), "is", 1))
            elif part["low"]:
                self._conditions.append((self._column(part["low"]), "<", int(part["below"])))
            else:
                self._conditions.append((self._column(part["name"]), part["how"], int(part["number"])))
        tracts = [n for name, how, n in self._conditions if (name, how) == ("tract", "=")]
        if len(tracts) != 1:
            raise _Refused("canceling statement due to statement timeout: it reads more than a tract")
        self.tract = tracts[0]

    def _column(self, name: str) -> str:
        table, _, column = name.rpartition(".")
        if table and table not in self._tables:
            raise _Refused(f'missing FROM-clause entry for table "{table}"')
        holding = [t for t, columns in self._tables.items() if column in columns and table in ("", t)]
        if not holding:
            raise _Refused(f'column "{name}" does not exist')
        if len(holding) > 1 and column != "object_id":
            raise _Refused(f'column reference "{column}" is ambiguous')
        return column

    def keeps(self, data: Any) -> NDArray[np.bool_]:
        """Which rows are asked for."""
        kept = np.ones(len(data), dtype=bool)
        for name, how, number in self._conditions:
            values = np.array(data[name])
            kept &= {
                "is": values.astype(bool),
                "=": values == number,
                ">=": values >= number,
                "<": values < number,
            }[how]
        return kept


def _json(what: dict[str, Any]) -> Reply:
    return Reply(200, json.dumps(what).encode(), {"Content-Type": "application/json"})


def _text(status: int, words: str) -> Reply:
    return Reply(status, f"{words}\n".encode(), {"Content-Type": "text/plain"})


def _page() -> Reply:
    page = b"<html><head><title>HSC-SSP</title></head><body><h1>Under maintenance until Monday</h1></body></html>"
    return Reply(200, page, {"Content-Type": "text/html"})
