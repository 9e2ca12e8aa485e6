"""Gaia by query: a table of sources a work cell from its TAP service, and their XP spectra from DataLink.

TAP has no spectra, and the bulk files hold ranges of ids that a small region touches only in part. So a cell is asked
for by a circle that covers it, through astroquery's TAP client, and cut to the cell at each row's own position: cells
neither share a row nor lose one. The spectra of the sources that have one are asked for by id, some thousand at a time.

DataLink leaves out what it does not have, and a server in trouble what it should have; the replies look alike. So what
does not come is asked for again beside a spectrum that did come, of this cell or of another, as long as that brings
more. Only a reply that holds that one and none of the others is believed: they are absent. A reply without it, or too
many sources that are absent (`absent_share`, `absent_few`), is a service that is busy.

`GaiaClass` itself is not used, though it asks the same of the same client: `astroquery.gaia` calls the public archive
as it is imported, and its `load_data` works in the current folder. Its connections know no time limit and tell nothing
of a reply but its text, so that the client is given ones that do.
"""

from __future__ import annotations

import http.client
import random
import re
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit
from xml.parsers.expat import ExpatError

import healpy
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from astropy.utils.xml.iterparser import get_xml_iterator
from numpy.typing import NDArray

from skycairn.archives.errors import (
    Busy,
    ChecksumMismatch,
    FetchError,
    NotPublished,
    Refused,
    TimedOut,
    Unsafe,
    never_connected,
)
from skycairn.archives.pace import PACE
from skycairn.archives.service import Have
from skycairn.catalogs.bounds import MOST_TABLE_BYTES, check_gzip
from skycairn.catalogs.ecsv import read_table
from skycairn.catalogs.gaia import SOURCE_COLUMNS, XP_COLUMNS, check_units, read_xp
from skycairn.catalogs.survey import WORK_ORDER, RemoteFile
from skycairn.pile.parquet import TableWriter

SOURCES = "query/gaia_source"
SPECTRA = "query/xp_continuous_mean_spectrum"
PATH = re.compile(rf"({SOURCES}|{SPECTRA})/{WORK_ORDER}-(\d+)\.parquet")
TABLES: Mapping[str, str] = {"dr3": "gaiadr3.gaia_source"}
DATA_RELEASES: Mapping[str, str] = {"dr3": "Gaia DR3"}
"""What the archive calls a release, in ADQL and in DataLink."""
HAIR_DEG = 0.001
"""By which a circle is wider than its cell."""
XP_SCHEMA = pa.schema(
    [pa.field("source_id", pa.int64())]
    + [pa.field(c.name, pa.list_(pa.float32()) if pa.types.is_nested(c.type) else c.type) for c in XP_COLUMNS]
)
WITNESSES = 200
"""Rows of the release's table that are looked through for a source whose spectrum comes."""
BUSY_STATUS = {408, 425, 429}
LONGEST_WAIT_S = 3600.0

T = TypeVar("T")


class Overflow(Exception):
    """The reply lacks rows: there are more than the archive gives at once."""


@dataclass(frozen=True)
class Settings:
    """Where the archive is, and how it is asked."""

    tap_url: str = "https://gea.esac.esa.int/tap-server/tap"
    data_url: str = "https://gea.esac.esa.int/data-server/data"
    batch: int = 2000
    "ids of one DataLink call; the archive takes at most 5000"
    data_structure: str = "RAW"
    "RAW: one table of all sources; INDIVIDUAL: one of each"
    data_format: str = "csv"
    tries: int = 4
    "of each call that finds the archive busy"
    wait_s: float = 5.0
    "before the second try; doubled before each further one, and drawn between half of it and all"
    absent_share: float = 0.01
    "of a cell's spectra may be absent"
    absent_few: int = 20
    "spectra of a cell may be absent, be it a larger share"
    pause_s: float = 0.5
    "from one query, or one call of DataLink, to the next, at least"
    poll_s: float = 1.0
    "between two looks at a job, at first; then longer, up to 15 times as long"
    timeout_s: float = 60.0
    "for a connection, and for any piece of a reply"
    reply_s: float = 1800.0
    "for a whole reply"
    job_s: float = 7200.0
    "for a job, from its start to its end"
    split_orders: int = 4
    "how many times a cell is divided into four when its rows are too many for one reply"

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= 5000:
            raise ValueError(f"batch is {self.batch}; the archive takes 1 to 5000 ids a call")
        if self.tries < 1:
            raise ValueError(f"tries is {self.tries}; wanted at least 1")
        for url in (self.tap_url, self.data_url):
            if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
                raise ValueError(f"{url!r} is no address of a service; wanted https://host/path")


@dataclass
class GaiaQuery:
    """`query/gaia_source/6-<cell>.parquet`, and the spectra of its sources beside it."""

    release: str = "dr3"
    settings: Settings = field(default_factory=Settings)
    sleep: Callable[[float], None] = time.sleep
    prefix: str = "query/"
    _witness: int | None = field(default=None, init=False, repr=False)
    "a source whose spectrum came"
    _answered: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.release not in TABLES:
            raise ValueError(
                f"gaia: there is no release {self.release!r} to ask for; choose one of {', '.join(TABLES)}"
            )

    def catalog_files(self, cells: Iterable[int]) -> list[RemoteFile] | None:
        """One table of sources a work cell, with its spectra as companion `xp`."""
        out = []
        for cell in sorted(set(cells)):
            _check_cell(cell)
            beside = (("xp", RemoteFile(f"{SPECTRA}/{WORK_ORDER}-{cell}.parquet")),)
            out.append(RemoteFile(f"{SOURCES}/{WORK_ORDER}-{cell}.parquet", companions=beside))
        return out

    def question(self, path: str) -> str:
        """The service's address and the query; of spectra, the release too, and how they are asked for."""
        folder, cell = _parse(path)
        text = f"{self.settings.tap_url} {self.query(WORK_ORDER, cell)}"
        if folder == SOURCES:
            return text
        how = f"RELEASE={DATA_RELEASES[self.release]} RETRIEVAL_TYPE=XP_CONTINUOUS"
        return f"{self.settings.data_url} {how} ID: has_xp_continuous of {text}"

    def query(self, order: int, cell: int) -> str:
        """The ADQL for a cell: the columns that `Gaia.read` wants, in a circle that covers it."""
        ra, dec, radius = circle(order, cell)
        return (
            f"SELECT {', '.join(SOURCE_COLUMNS)} FROM {TABLES[self.release]} WHERE 1 = CONTAINS("
            f"POINT('ICRS', ra, dec), CIRCLE('ICRS', {ra:.9f}, {dec:.9f}, {radius:.6f}))"
        )

    def fetch(self, path: str, into: Path, have: Have) -> None:
        """Ask, and write the reply to the new file `into`.

        The metadata of a table of spectra tell how many were `asked` for, and which ids were `absent`.
        """
        folder, cell = _parse(path)
        if folder == SOURCES:
            _write(self._sources(WORK_ORDER, cell, self.settings.split_orders), into)
        else:
            _write(self._spectra(have(f"{SOURCES}/{WORK_ORDER}-{cell}.parquet")), into)

    def _sources(self, order: int, cell: int, splits: int) -> pa.Table:
        """The cell's rows by source_id; asked for in four parts where they are too many for one reply."""
        try:
            table = self._again(lambda: self._ask(self.query(order, cell)))
        except Overflow:
            if splits == 0:
                raise FetchError(
                    f"{self.settings.tap_url}: HEALPix cell {cell} of order {order} has more rows than the archive "
                    "gives at once; raise split_orders, or take the bulk files"
                ) from None
            parts = [self._sources(order + 1, 4 * cell + i, splits - 1) for i in range(4)]
            table = pa.concat_tables(parts)
        ra, dec = (table[name].to_numpy() for name in ("ra", "dec"))
        if not ((ra >= 0) & (ra <= 360) & (np.abs(dec) <= 90)).all():
            raise ChecksumMismatch(f"{self.settings.tap_url}: the reply for {order}-{cell} has positions off the sky")
        inside = healpy.ang2pix(1 << order, ra, dec, nest=True, lonlat=True) == cell
        table = table.filter(pa.array(inside)).sort_by("source_id")
        ids = table["source_id"].to_numpy()
        if (twice := np.flatnonzero(np.diff(ids) == 0)).size:
            raise ChecksumMismatch(f"{self.settings.tap_url}: source_id {ids[twice[0]]} came in two rows; wanted one")
        return table

    def _ask(self, query: str) -> pa.Table:
        """All rows of a query, as `SOURCE_COLUMNS`. One job, which is removed whatever comes of it."""
        from astroquery.utils.tap.core import TapPlus

        url = self.settings.tap_url
        PACE.wait(url, self.settings.pause_s)
        line = _line(url, self.settings)
        with TemporaryDirectory() as folder, _network(url):
            reply = Path(folder) / "reply.vot.gz"
            job = TapPlus(connhandler=line).launch_job_async(
                query,
                output_file=str(reply),
                output_format="votable_gzip",
                background=True,
                format_with_results_compressed=("votable_gzip",),
            )
            try:
                self._wait(job)
                job.save_results()
            finally:
                with suppress(FetchError, OSError, http.client.HTTPException):
                    line.execute_tappost("deletejobs", f"JOB_IDS={job.jobid}")
            return _table(reply, url)

    def _wait(self, job: Any) -> None:
        """Return when the job is done; Busy where it fails, or takes too long."""
        url, pause = self.settings.tap_url, self.settings.poll_s
        end = time.monotonic() + self.settings.job_s
        while (phase := str(job.get_phase(update=True)).strip().upper()) != "COMPLETED":
            if phase in ("ERROR", "ABORTED"):
                said = ""
                with suppress(FetchError):
                    said = f": {job.get_error()}"
                raise Busy(f"{url}: job {job.jobid} ended as {phase}{said}; ask again")
            if phase not in ("PENDING", "QUEUED", "EXECUTING", "HELD", "SUSPENDED"):
                raise Busy(f"{url}: job {job.jobid} is {phase[:60]!r}, which is no phase; ask again")
            if time.monotonic() > end:
                raise TimedOut(f"{url}: job {job.jobid} is not done after {self.settings.job_s:.0f} s; ask again later")
            self.sleep(pause)
            pause = min(pause * 1.5, 15 * self.settings.poll_s)

    def _spectra(self, sources: Path) -> pa.Table:
        """Spectra of the sources that are said to have one, by source_id."""
        table = read_table(sources, {"source_id": pa.int64(), "has_xp_continuous": pa.bool_()})
        ids = np.sort(table["source_id"].filter(pc.fill_null(table["has_xp_continuous"], False)).to_numpy())
        wanted = np.array_split(ids, range(self.settings.batch, len(ids), self.settings.batch)) if len(ids) else []
        out = pa.concat_tables([XP_SCHEMA.empty_table(), *map(self._batch, wanted)])
        absent = np.setdiff1d(ids, out["source_id"].to_numpy())
        for _ in range(self.settings.tries):
            if not len(absent):
                break
            out = pa.concat_tables([out, found := self._beside_another(absent)])
            absent = np.setdiff1d(absent, found["source_id"].to_numpy())
            if not len(found):
                break
        else:
            if len(absent):
                raise self._partial(len(ids), absent, "each time that they are asked for some come")
        if len(absent) > max(self.settings.absent_few, self.settings.absent_share * len(ids)):
            raise self._partial(len(ids), absent, "so many cannot be absent")
        if len(out) + len(absent) != len(ids):
            raise ChecksumMismatch(
                f"{self.settings.data_url}: {len(ids)} spectra were asked for; {len(out)} came, {len(absent)} did not"
            )
        told = {"asked": str(len(ids)), "absent": ",".join(map(str, absent))}
        return out.sort_by("source_id").replace_schema_metadata(told)

    def _partial(self, n: int, absent: NDArray[np.int64], why: str) -> Busy:
        came = n - len(absent)
        return Busy(
            f"{self.settings.data_url}: {came:,} of {n:,} spectra came, {len(absent):,} did not, as that of "
            f"{absent[0]}: {why}; ask again later"
        )

    def _batch(self, ids: NDArray[np.int64]) -> pa.Table:
        found = self._again(lambda: self._load(ids))
        if len(found):
            self._witness = int(found["source_id"][0].as_py())
        return found

    def _beside_another(self, ids: NDArray[np.int64]) -> pa.Table:
        """Spectra of these sources, asked for beside one that came before; Busy where that does not come again."""
        witness = self._witness if self._witness is not None else self._find_witness(len(ids))
        size = max(1, self.settings.batch - 1)
        parts = [XP_SCHEMA.empty_table()]
        for start in range(0, len(ids), size):
            asked = np.append(ids[start : start + size], witness)
            parts.append(self._again(partial(self._load_whole, asked, witness)))
        return pa.concat_tables(parts)

    def _load_whole(self, ids: NDArray[np.int64], witness: int) -> pa.Table:
        found = self._load(ids)
        itself = pc.equal(found["source_id"], witness)
        if not pc.any(itself, min_count=0).as_py():
            raise Busy(
                f"{self.settings.data_url}: {len(found):,} of {len(ids):,} spectra came, and that of {witness} not, "
                "which came before; ask again later"
            )
        return found.filter(pc.invert(itself))

    def _find_witness(self, n: int) -> int:
        """Another source of the release whose spectrum comes."""
        query = f"SELECT TOP {WITNESSES} {', '.join(SOURCE_COLUMNS)} FROM {TABLES[self.release]}"
        try:
            rows = self._again(lambda: self._ask(query))
        except Overflow:
            raise Busy(f"{self.settings.tap_url}: does not give {WITNESSES} rows; ask again later") from None
        ids = rows["source_id"].filter(pc.fill_null(rows["has_xp_continuous"], False)).to_numpy()
        if len(ids):
            self._batch(ids[: self.settings.batch])
        if self._witness is None:
            raise Busy(
                f"{self.settings.data_url}: 0 of {n:,} spectra came, and of {len(ids):,} other sources' none either; "
                "ask again later"
            )
        return self._witness

    def _load(self, ids: NDArray[np.int64]) -> pa.Table:
        """Spectra of these sources; those without one are left out."""
        from astroquery.utils.tap.core import TapPlus

        url = self.settings.data_url
        given = {
            "VALID_DATA": "false",
            "ID": ",".join(map(str, ids.tolist())),
            "RELEASE": DATA_RELEASES[self.release],
            "DATA_STRUCTURE": self.settings.data_structure,
            "FORMAT": self.settings.data_format,
            "RETRIEVAL_TYPE": "XP_CONTINUOUS",
            "USE_ZIP_ALWAYS": "true",
        }
        with TemporaryDirectory() as folder, _network(url):
            products = Path(folder) / "products.zip"
            PACE.wait(url, self.settings.pause_s)
            TapPlus(connhandler=_line(url, self.settings)).load_data(params_dict=given, output_file=str(products))
            return spectra(products, ids, url)

    def _again(self, ask: Callable[[], T]) -> T:
        """What `ask` gives; asked again, after a while, where the archive is busy."""
        for attempt in range(1, self.settings.tries + 1):
            try:
                found = ask()
                self._answered = True
                return found
            except TimedOut:
                raise
            except Busy as error:
                # who cannot be reached at all is not waited for here: the caller tries once more
                if attempt == self.settings.tries or (not self._answered and never_connected(error)):
                    raise
                pause = self.settings.wait_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
                self.sleep(min(max(pause, getattr(error, "retry_after", 0.0)), LONGEST_WAIT_S))
        raise AssertionError("unreachable")


def circle(order: int, cell: int) -> tuple[float, float, float]:
    """Right ascension, declination and radius in degrees of a circle that covers a cell, rounded outwards."""
    ra, dec = (float(x) for x in healpy.pix2ang(1 << order, cell, nest=True, lonlat=True))
    ra, dec = round(ra, 9), round(dec, 9)
    edge = healpy.boundaries(1 << order, cell, step=32, nest=True).T
    chord = np.linalg.norm(edge - healpy.ang2vec(ra, dec, lonlat=True), axis=1).max()
    radius = np.degrees(2 * np.arcsin(min(chord / 2, 1.0))) + HAIR_DEG
    return ra, dec, float(np.ceil(radius * 1e6) / 1e6)


def spectra(products: Path, ids: NDArray[np.int64], url: str) -> pa.Table:
    """The XP spectra of these sources in a zip as DataLink gives it, whatever its structure and form of table."""
    parts = [XP_SCHEMA.empty_table()]
    try:
        with zipfile.ZipFile(products) as zipped, TemporaryDirectory() as folder:
            members = [m for m in zipped.infolist() if m.filename.rpartition("/")[2].startswith("XP_CONTINUOUS")]
            if (size := sum(m.file_size for m in members)) > MOST_TABLE_BYTES:
                raise ChecksumMismatch(f"{url}: a zip that unpacks to {size:,} bytes; ask for fewer ids at once")
            for i, member in enumerate(members):
                # under a name of our own: theirs may lead anywhere
                table = Path(folder) / f"{i}{Path(member.filename).suffix}"
                with zipped.open(member) as packed, table.open("wb") as file:
                    shutil.copyfileobj(packed, file)
                parts.append(read_xp(table).cast(XP_SCHEMA))
                table.unlink()
    except (zipfile.BadZipFile, EOFError, RuntimeError, zlib.error) as error:
        raise Busy(f"{url}: the reply is no whole zip ({error}); it starts with {_start(products)!r}") from error
    except ValueError as error:
        raise ChecksumMismatch(f"{url}: {error}") from error
    out = pa.concat_tables(parts)
    came = out["source_id"].to_numpy()
    if len(strange := np.setdiff1d(came, ids)):
        raise ChecksumMismatch(f"{url}: the spectrum of {strange[0]} came, which was not asked for")
    if len(np.unique(came)) != len(came):
        raise ChecksumMismatch(f"{url}: the spectrum of one source came twice; wanted one of each")
    return out


def _table(reply: Path, url: str) -> pa.Table:
    """A VOTable's rows as `SOURCE_COLUMNS`; Overflow where it says that there are more."""
    try:
        if _start(reply).startswith(b"\x1f\x8b"):
            check_gzip(reply)
        statuses = list(_statuses(reply))
        if "ERROR" in statuses or "OK" not in statuses:
            raise Busy(f"{url}: the reply's QUERY_STATUS is {statuses}, wanted OK; ask again")
        table = read_table(reply, {name: f.type for name, f in SOURCE_COLUMNS.items()})
    except (ValueError, EOFError, OSError, zlib.error, ExpatError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Busy(f"{url}: the reply is no whole VOTable ({error}); it starts with {_start(reply)!r}") from error
    if "OVERFLOW" in statuses:
        raise Overflow
    if absent := [name for name in SOURCE_COLUMNS if name not in table.column_names]:
        raise ChecksumMismatch(f"{url}: the reply has no column {absent[0]!r}; is the table of another release?")
    try:
        check_units(table, url)
    except ValueError as error:
        raise ChecksumMismatch(str(error)) from error
    if n := sum(table[name].null_count for name in ("source_id", "ra", "dec")):
        raise ChecksumMismatch(f"{url}: {n} values of source_id, ra, dec are missing; wanted all of them")
    return table.select(list(SOURCE_COLUMNS)).cast(pa.schema(list(SOURCE_COLUMNS.values())))


def _statuses(votable: Path) -> Iterator[str]:
    with get_xml_iterator(str(votable)) as elements:
        for start, tag, attributes, _ in elements:
            if start and tag.rpartition(":")[2] == "INFO" and attributes.get("name") == "QUERY_STATUS":
                yield attributes.get("value", "").upper()


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(40)


def _write(table: pa.Table, into: Path) -> None:
    with into.open("xb") as file:
        writer = TableWriter(file, table.schema)
        writer.write(table)
        writer.close()


def _parse(path: str) -> tuple[str, int]:
    found = PATH.fullmatch(path)
    if found is None:
        raise NotPublished(f"{path}: Gaia's query has no such file; it has {SOURCES}/{WORK_ORDER}-<cell>.parquet")
    cell = int(found[2])
    _check_cell(cell)
    return found[1], cell


def _check_cell(cell: int) -> None:
    if not 0 <= cell < 12 << 2 * WORK_ORDER:
        raise ValueError(f"{cell} is no HEALPix cell of order {WORK_ORDER}; there are {12 << 2 * WORK_ORDER}")


@contextmanager
def _network(url: str) -> Iterator[None]:
    """Errors of astroquery that passed by the line, as ours."""
    import requests

    try:
        yield
    except (requests.RequestException, SystemError) as error:
        raise Busy(f"{url}: {error}; ask again") from error


def _line(url: str, settings: Settings) -> Any:
    """A connection of astroquery's to the service at `url`, with a time limit, whose errors are ours.

    Whatever answers with an error status, or not at all, raises as soon as it is asked.
    """
    from astroquery.utils.tap.conn.tapconn import ConnectionHandler, TapConn

    service, parts = url, urlsplit(url)
    secure = parts.scheme == "https"
    host, port = str(parts.hostname), parts.port or (443 if secure else 80)
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection

    class OneReply(kind):  # type: ignore[misc, valid-type]
        """A connection for one reply, closed when that was read."""

        def request(self, *given: Any, **named: Any) -> None:
            with _closing_on_error(self):
                super().request(*given, **named)

        def getresponse(self) -> Any:
            with _closing_on_error(self):
                return _Body(super().getresponse(), self, service, settings.reply_s)

    class Handler(ConnectionHandler):
        def get_connection(self, *, ishttps: bool = False, cookie: Any = None, verbose: bool = False) -> Any:
            return OneReply(host, port, timeout=settings.timeout_s)

    class Line(TapConn):
        def execute_tapget(self, subcontext: str, *, verbose: bool = False) -> Any:
            with _broken(url):
                reply = super().execute_tapget(subcontext, verbose=verbose)
                for _ in range(5):
                    if reply.status not in (301, 302, 303, 307, 308):
                        return _good(reply, url)
                    reply.close()
                    reply = super().execute_tapget(_same_host(reply, url), verbose=verbose)
            raise Busy(f"{url}: it leads from one address to the next without end")

        def execute_tappost(self, *given: Any, **named: Any) -> Any:
            with _broken(url):
                reply = _good(super().execute_tappost(*given, **named), url)
                reply.close()  # its header says all
                return reply

        def execute_datapost(self, *given: Any, **named: Any) -> Any:
            with _broken(url):
                return _good(super().execute_datapost(*given, **named), url, 200)

    return Line(
        secure,
        host,
        port=port,
        sslport=port,
        server_context="/" + parts.path.strip("/"),
        connhandler=Handler(host, port, port),
    )


class _Body:
    """A reply whose end is known: one that is cut short, or drips, is no reply."""

    def __init__(self, reply: http.client.HTTPResponse, connection: Any, url: str, most_s: float) -> None:
        self._reply, self._connection, self._url, self._most_s = reply, connection, url, most_s
        self._end = time.monotonic() + most_s
        self.status, self.reason = reply.status, reply.reason

    def getheaders(self) -> list[tuple[str, str]]:
        return self._reply.getheaders()

    def close(self) -> None:
        self._reply.close()
        self._connection.close()

    def read(self, size: int | None = None) -> bytes:
        if size is None:
            return b"".join(iter(lambda: self.read(1 << 16), b""))
        with _closing_on_error(self), _broken(self._url):
            found = self._reply.read1(size)
            if not found and self._reply.length:
                raise Busy(f"{self._url}: the reply ends {self._reply.length:,} bytes too early; ask again")
            if time.monotonic() > self._end:
                raise TimedOut(f"{self._url}: the reply was not whole after {self._most_s:.0f} s; ask again later")
        if not found:
            self.close()
        return found


@contextmanager
def _closing_on_error(what: Any) -> Iterator[None]:
    try:
        yield
    except BaseException:
        what.close()
        raise


@contextmanager
def _broken(url: str) -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise Busy(f"{url}: {type(error).__name__} {error}; the archive cannot be reached, or broke off") from error


def _good(reply: Any, url: str, *wanted: int) -> Any:
    status = reply.status
    if status in wanted or (not wanted and status < 400):
        return reply
    said = _said(reply)
    reply.close()
    where = f"{url}: {status} {reply.reason}{said}"
    if status in (401, 403):
        raise Refused(f"{where}; this table or product wants an account, which is not used here")
    if status in (404, 410):
        raise NotPublished(where)
    if status in BUSY_STATUS or status >= 500:
        busy = Busy(f"{where}; ask again later")
        after = {k.lower(): v for k, v in reply.getheaders()}.get("retry-after", "")
        busy.retry_after = float(after) if re.fullmatch(r"\d{1,6}", after) else 0.0  # type: ignore[attr-defined]
        raise busy
    if 300 <= status < 400:
        raise Unsafe(f"{where}; it leads elsewhere, where no answer is expected from")
    raise FetchError(where)


def _said(reply: Any) -> str:
    """What a page or VOTable of an error says, in one line."""
    text = re.sub(r"<[^>]*>", " ", reply.read(1 << 14).decode("utf-8", "replace"))
    return f": {' '.join(text.split())[:300]}" if text.strip() else ""


def _same_host(reply: Any, url: str) -> str:
    to = {k.lower(): v for k, v in reply.getheaders()}.get("location", "")
    to = urljoin(url, to)
    there, here = urlsplit(to), urlsplit(url)
    if (there.scheme, there.netloc) != (here.scheme, here.netloc):
        raise Unsafe(f"{url}: it leads to {to[:200]!r}, another host; set the service's address to where it is now")
    return to
