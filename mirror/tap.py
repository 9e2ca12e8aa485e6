"""A TAP service: tables that can be asked in ADQL, at once (`/sync`) or as jobs (`/async`), as the archives' own do it.

It speaks TAP 1.1 as pyvo wants it, and the few words more that astroquery's clients use of ESA's archives. The order of
the rows changes from query to query unless the query says it.
"""

from __future__ import annotations

import gzip
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qs
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
from astropy.table import MaskedColumn, Table

from skycairn.catalogs.gaia import SOURCE_FOLDER, XP_FOLDER
from skycairn.mirror.adql import QueryError, answer
from skycairn.mirror.server import Reply, Request
from skycairn.mirror.votable import datatype, refusal, text_of, unit_of, votable

Tables = Mapping[str, Callable[[], pa.Table]]
"""By name in lower case, `schema.table`; units in the fields' metadata."""

VOTABLE = {"Content-Type": "application/x-votable+xml"}
XML = {"Content-Type": "text/xml;charset=UTF-8"}
UWS = (
    'xmlns:uws="http://www.ivoa.net/xml/UWS/v1.0" xmlns:xlink="http://www.w3.org/1999/xlink" '
    'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" version="1.1"'
)
FORMATS = {
    "votable": "votable",
    "votable_gzip": "votable_gzip",
    "votable_plain": "votable_plain",
    "votable/td": "votable_plain",
    "application/x-votable+xml": "votable",
    "text/xml": "votable",
    "csv": "csv",
    "text/csv": "csv",
    "fits": "fits",
    "application/fits": "fits",
}
STARTED = "2026-01-01T00:00:00.000Z"


@dataclass
class Job:
    """A query that is, or was, at work."""

    id: str
    parameters: dict[str, str]
    phase: str = "PENDING"
    polls: int = 0
    "how often its phase was asked since it was started"
    reply: Reply | None = None
    error: bytes = b""


@dataclass
class Tap:
    """The service below `prefix` of its host.

    `sync_rows` and `async_rows` are the most rows that a reply has; one that would have more says OVERFLOW. A job is
    done when it was asked for its phase `polls` times.
    """

    tables: Tables
    prefix: str = "/tap-server/tap"
    sync_rows: int = 2000
    async_rows: int = 3_000_000
    polls: int = 1
    jobs: dict[str, Job] = field(default_factory=dict)
    queries: list[str] = field(default_factory=list)
    "all that were asked, in order"

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._n_jobs = 0

    def __call__(self, request: Request) -> Reply | None:
        """The reply; None where the path is not this service's."""
        if request.path != self.prefix and not request.path.startswith(self.prefix + "/"):
            return None
        path = request.path.removeprefix(self.prefix).strip("/").split("/")
        try:
            with self._lock:
                reply = self._reply(request, path, _parameters(request))
        except QueryError as error:
            reply = Reply(400, refusal(str(error)), VOTABLE)
        # astroquery leaves its connections open
        return replace(reply, headers={**reply.headers, "Connection": "close"})

    def _reply(self, request: Request, path: list[str], given: dict[str, str]) -> Reply:
        match path:
            case ["sync"]:
                return self._rows(given, self.sync_rows)
            case ["async"] if request.method == "POST":
                return self._submit(request, given)
            case ["async"]:
                return Reply(200, self._job_list().encode(), XML)
            case ["async", name, *rest]:
                return self._job(request, name, rest, given)
            case ["jobs", "async"]:
                jobs = "".join(_job_xml(job, "") for job in self.jobs.values())
                return Reply(200, f"<uws:jobs {UWS}>{jobs}</uws:jobs>".encode(), XML)
            case ["deletejobs"] if request.method == "POST":
                for name in given.get("JOB_IDS", "").split(","):
                    self.jobs.pop(name, None)
                return Reply(200)
            case ["tables"]:
                return Reply(200, self._tableset(given).encode(), XML)
            case ["capabilities"]:
                return Reply(200, self._capabilities(request.base + self.prefix).encode(), XML)
            case ["availability"]:
                return Reply(200, AVAILABILITY.encode(), XML)
            case ["notification"]:
                return Reply(200, b"")
        return Reply(404, b"not found\n")

    def _rows(self, given: Mapping[str, str], most: int) -> Reply:
        try:
            if given.get("LANG", "ADQL").partition("-")[0].upper() != "ADQL":
                raise QueryError(f"LANG is {given['LANG']!r}; this server speaks ADQL")
            if "UPLOAD" in given:
                raise QueryError("UPLOAD is not served here")
            if not given.get("QUERY", "").strip():
                raise QueryError("The parameter QUERY is missing")
            asked = given.get("RESPONSEFORMAT") or given.get("FORMAT") or "votable"
            form = FORMATS.get(asked.partition(";")[0].strip().lower())
            if form is None:
                raise QueryError(f"FORMAT is {asked!r}; there are {', '.join(FORMATS)}")
            if (limit := given.get("MAXREC")) is not None:
                if not limit.isdigit():
                    raise QueryError(f"MAXREC is {limit!r}; wanted a whole number")
                most = min(most, int(limit))
            self.queries.append(given["QUERY"])
            table = answer(given["QUERY"], self.tables, np.random.default_rng(len(self.queries)))
        except QueryError as error:
            return Reply(400, refusal(str(error)), VOTABLE)
        return _written(table.slice(0, most), form, table.num_rows > most)

    def _submit(self, request: Request, given: dict[str, str]) -> Reply:
        self._n_jobs += 1
        job = Job(f"{self._n_jobs}O", given)
        self.jobs[job.id] = job
        if given.get("PHASE", "").upper() == "RUN":
            self._start(job)
        return self._see(request, job)

    def _see(self, request: Request, job: Job) -> Reply:
        return Reply(303, b"", {"Location": f"{request.base}{self.prefix}/async/{job.id}"})

    def _start(self, job: Job) -> None:
        job.phase, job.polls = "QUEUED", 0
        reply = self._rows(job.parameters, self.async_rows)
        if reply.status == 200:
            job.reply = reply
        else:
            assert isinstance(reply.body, bytes)
            job.error = reply.body

    def _poll(self, job: Job) -> None:
        if job.phase in ("QUEUED", "EXECUTING"):
            done = "COMPLETED" if job.reply else "ERROR"
            job.phase = done if job.polls >= self.polls else "EXECUTING"
            job.polls += 1

    def _job(self, request: Request, name: str, rest: list[str], given: dict[str, str]) -> Reply:
        job = self.jobs.get(name)
        if job is None:
            return Reply(404, refusal(f"there is no job {name}"), VOTABLE)
        post = request.method == "POST"
        match rest:
            case [] if request.method == "DELETE" or (post and given.get("ACTION", "").upper() == "DELETE"):
                del self.jobs[name]
                return Reply(303, b"", {"Location": f"{request.base}{self.prefix}/async"})
            case [] if post:
                job.parameters |= given
                return Reply(200)
            case []:
                self._poll(job)
                return Reply(200, _job_xml(job, f"{request.base}{self.prefix}/async/{job.id}", root=True).encode(), XML)
            case ["phase"] if post:
                if given.get("PHASE", "").upper() == "ABORT":
                    job.phase = "ABORTED"
                    return Reply(200)
                if job.phase == "PENDING":
                    self._start(job)
                return self._see(request, job)
            case ["phase"]:
                self._poll(job)
                return Reply(200, job.phase.encode(), {"Content-Type": "text/plain"})
            case ["results", "result"] if job.phase == "COMPLETED" and job.reply:
                return job.reply
            case ["error"] | ["results", "result"] if job.error:
                return Reply(200 if rest == ["error"] else 400, job.error, VOTABLE)
            case ["parameters"]:
                return Reply(200, f"<uws:parameters {UWS}>{_parameter_xml(job)}</uws:parameters>".encode(), XML)
        return Reply(404, refusal(f"job {name}, {job.phase}, has no {'/'.join(rest)}"), VOTABLE)

    def _job_list(self) -> str:
        jobs = "".join(
            f'<uws:jobref id="{j.id}"><uws:phase>{j.phase}</uws:phase></uws:jobref>' for j in self.jobs.values()
        )
        return f"<uws:jobs {UWS}>{jobs}</uws:jobs>"

    def _tableset(self, given: Mapping[str, str]) -> str:
        wanted = given.get("TABLES")
        schemas: dict[str, list[str]] = {}
        for name in sorted(self.tables if wanted is None else {*wanted.lower().split(",")} & {*self.tables}):
            schemas.setdefault(name.rpartition(".")[0], []).append(name)
        out = []
        for schema, names in schemas.items():
            tables = []
            for name in names:
                brief = "true" in (given.get("ONLY_TABLES"), given.get("ONLYTABLES"))
                columns = "" if brief else "".join(_column_xml(f) for f in self.tables[name]().schema)
                tables.append(f'<table type="table"><name>{escape(name)}</name>{columns}</table>')
            out.append(f"<schema><name>{escape(schema)}</name>{''.join(tables)}</schema>")
        return f"<vosi:tableset {TABLESET}>{''.join(out)}</vosi:tableset>"

    def _capabilities(self, base: str) -> str:
        return CAPABILITIES.format(base=escape(base), rows=self.async_rows)


def _parameters(request: Request) -> dict[str, str]:
    """Of the address and of the form, names in upper case."""
    given = {k.upper(): v[0] for k, v in request.query.items()}
    kind = request.headers.get("content-type", "")
    if kind.startswith("multipart/"):
        raise QueryError("UPLOAD is not served here")
    if request.body:
        form = parse_qs(request.body.decode("utf-8", "replace"), keep_blank_values=True)
        given |= {k.upper(): v[0] for k, v in form.items()}
    return given


def _written(table: pa.Table, form: str, overflow: bool) -> Reply:
    """As ESA's archives do it: some forms are gzipped files, of which no header tells."""
    if form == "csv":
        lists = [i for i, f in enumerate(table.schema) if pa.types.is_list(f.type)]
        for i in lists:
            text = text_of(table.column(i).combine_chunks(), ", ")
            table = table.set_column(i, table.column_names[i], text)
        out = BytesIO()
        pacsv.write_csv(table, out, pacsv.WriteOptions(quoting_style="needed"))
        return Reply(200, out.getvalue(), {"Content-Type": "text/csv"})
    if form == "fits":
        out = BytesIO()
        _astropy(table).write(out, format="fits")
        return Reply(200, gzip.compress(out.getvalue(), 1, mtime=0), {"Content-Type": "application/fits"})
    text = votable(table, overflow, binary=form != "votable_plain")
    if form == "votable_gzip":
        return Reply(200, gzip.compress(text, 1, mtime=0), VOTABLE)
    return Reply(200, text, VOTABLE)


def _astropy(table: pa.Table) -> Table:
    columns = []
    for column_field, column in zip(table.schema, table.columns, strict=True):
        mask = column.is_null().to_numpy()
        numeric = not pa.types.is_string(column.type)
        values = column.combine_chunks().fill_null(0 if numeric and not pa.types.is_boolean(column.type) else
                                                   False if numeric else "")
        data = values.to_numpy(zero_copy_only=False)
        data = data if numeric else data.astype(str)
        columns.append(MaskedColumn(data, name=column_field.name, mask=mask, unit=unit_of(column_field) or None))
    return Table(columns)


def _column_xml(column: pa.Field) -> str:
    kind, size = datatype(column.type)
    unit = f"<unit>{escape(unit_of(column))}</unit>" if unit_of(column) else ""
    shape = f' arraysize="{size}"' if size else ""
    return (
        f'<column esatapplus:flags="0"><name>{escape(column.name)}</name>{unit}'
        f'<dataType xsi:type="vs:VOTableType"{shape}>{kind}</dataType></column>'
    )


def _parameter_xml(job: Job) -> str:
    return "".join(
        f"<uws:parameter id={quoteattr(k.lower())}>{escape(v)}</uws:parameter>" for k, v in job.parameters.items()
    )


def _job_xml(job: Job, address: str, root: bool = False) -> str:
    results = ""
    if job.phase == "COMPLETED" and address:
        results = f'<uws:result id="result" xlink:type="simple" xlink:href="{escape(address)}/results/result"/>'
    error = ""
    if job.phase == "ERROR":
        found = re.search(rb'value="ERROR">(.*?)</INFO>', job.error, re.DOTALL)
        message = found[1].decode() if found else ""
        error = f'<uws:errorSummary type="fatal" hasDetail="true"><uws:message>{message}</uws:message></uws:errorSummary>'
    return (
        f"<uws:job{' ' + UWS if root else ''}><uws:jobId>{job.id}</uws:jobId><uws:ownerId xsi:nil=\"true\"/>"
        f"<uws:phase>{job.phase}</uws:phase><uws:quote xsi:nil=\"true\"/>"
        f"<uws:creationTime>{STARTED}</uws:creationTime><uws:startTime xsi:nil=\"true\"/><uws:endTime xsi:nil=\"true\"/>"
        "<uws:executionDuration>7200</uws:executionDuration><uws:destruction xsi:nil=\"true\"/>"
        f"<uws:parameters>{_parameter_xml(job)}</uws:parameters><uws:results>{results}</uws:results>{error}</uws:job>"
    )


TABLESET = (
    'xmlns:vosi="http://www.ivoa.net/xml/VOSITables/v1.0" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
    'xmlns:vs="http://www.ivoa.net/xml/VODataService/v1.1" xmlns:esatapplus="http://esa.int/xml/EsaTapPlus"'
)
AVAILABILITY = (
    '<vosi:availability xmlns:vosi="http://www.ivoa.net/xml/VOSIAvailability/v1.0">'
    "<vosi:available>true</vosi:available></vosi:availability>"
)
CAPABILITIES = """<?xml version="1.0" encoding="UTF-8"?>
<vosi:capabilities xmlns:vosi="http://www.ivoa.net/xml/VOSICapabilities/v1.0"
 xmlns:tr="http://www.ivoa.net/xml/TAPRegExt/v1.0" xmlns:vr="http://www.ivoa.net/xml/VOResource/v1.0"
 xmlns:vs="http://www.ivoa.net/xml/VODataService/v1.1" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
<capability standardID="ivo://ivoa.net/std/TAP" xsi:type="tr:TableAccess">
<interface role="std" xsi:type="vs:ParamHTTP"><accessURL use="base">{base}</accessURL></interface>
<language><name>ADQL</name><version ivo-id="ivo://ivoa.net/std/ADQL#v2.0">2.0</version></language>
<outputFormat><mime>application/x-votable+xml</mime><alias>votable</alias></outputFormat>
<outputFormat><mime>text/csv</mime><alias>csv</alias></outputFormat>
<outputFormat><mime>application/fits</mime><alias>fits</alias></outputFormat>
<outputLimit><default unit="row">{rows}</default><hard unit="row">{rows}</hard></outputLimit>
</capability>
<capability standardID="ivo://ivoa.net/std/VOSI#capabilities">
<interface xsi:type="vs:ParamHTTP"><accessURL use="full">{base}/capabilities</accessURL></interface>
</capability>
<capability standardID="ivo://ivoa.net/std/VOSI#availability">
<interface xsi:type="vs:ParamHTTP"><accessURL use="full">{base}/availability</accessURL></interface>
</capability>
<capability standardID="ivo://ivoa.net/std/VOSI#tables">
<interface xsi:type="vs:ParamHTTP"><accessURL use="full">{base}/tables</accessURL></interface>
</capability>
</vosi:capabilities>
"""


def gaia_tables(root: Path) -> Tables:
    """`gaiadr3.gaia_source` from the bulk files below a release's root, read when it is first asked for."""
    return {"gaiadr3.gaia_source": cache(lambda: bulk_table(sorted((root / SOURCE_FOLDER).glob("GaiaSource_*.csv.gz"))))}


def gaia_spectra(root: Path) -> pa.Table:
    """All XP continuous spectra of the bulk files below a release's root."""
    return bulk_table(sorted((root / XP_FOLDER).glob("XpContinuousMeanSpectrum_*.csv.gz")))


def bulk_table(paths: list[Path]) -> pa.Table:
    """Bulk files of one kind, whole, with the types and units of their ECSV headers; arrays as lists."""
    return pa.concat_tables([_bulk_file(path) for path in paths]).combine_chunks()


HEADER_COLUMN = re.compile(
    r"#\s*-?\s*\{name: (?P<name>\w+), datatype: (?P<type>\w+)(?:, unit: (?P<unit>[^,}]+))?"
    r"(?:, subtype: '(?P<of>\w+)\[\w+\]')?"
)
ARROW = {
    "int16": pa.int16(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
}


def _bulk_file(path: Path) -> pa.Table:
    text = gzip.decompress(path.read_bytes())
    described = [m for line in text.split(b"\n", 2000) if (m := HEADER_COLUMN.match(line.decode("utf-8", "replace")))]
    types = {m["name"]: ARROW[m["type"]] for m in described}
    table = pacsv.read_csv(
        BytesIO(text),
        read_options=pacsv.ReadOptions(skip_rows=sum(line.startswith(b"#") for line in text.split(b"\n", 2000))),
        convert_options=pacsv.ConvertOptions(
            column_types=types, null_values=["null", ""], strings_can_be_null=True, include_columns=list(types)
        ),
    )
    fields, columns = [], []
    for found, column in zip(described, table.columns, strict=True):
        kind = types[found["name"]]
        if found["of"]:
            kind = pa.list_(ARROW[found["of"]])
            rows = [None if t is None else [float(x) for x in t.strip("[]").split(",")] for t in column.to_pylist()]
            column = pa.chunked_array([pa.array(rows, kind)])
        unit = (found["unit"] or "").strip().strip('"')
        fields.append(pa.field(found["name"], kind, metadata={"unit": unit} if unit else None))
        columns.append(column)
    return pa.table(columns, schema=pa.schema(fields))
