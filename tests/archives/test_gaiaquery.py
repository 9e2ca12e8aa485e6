"""Gaia by query, from a TAP service and DataLink on loopback."""

import gc
import hashlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import healpy
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from skycairn.archives.errors import Busy, ChecksumMismatch, FetchError, NotPublished, Refused, TimedOut, Unsafe
from skycairn.archives.gaiaquery import GaiaQuery, Settings, circle, spectra
from skycairn.archives.service import Service
from skycairn.catalogs.gaia import Gaia
from skycairn.mirror.datalink import DataLink
from skycairn.mirror.server import Mirror, Reply, Request
from skycairn.mirror.tap import Tap, gaia_spectra, gaia_tables
from skycairn.mirror.votable import votable

GAIA = "gea.esac.esa.int"
BIG = 2**63 - 1
Fault = Callable[[Request], Reply | None]


class Place:
    """A mirror, a client of it, and a folder for what it fetches."""

    def __init__(
        self, folder: Path, sources: pa.Table, xp: pa.Table | Callable[[], pa.Table], fault: list[Fault]
    ) -> None:
        self.folder, self.n = folder, 0
        self.tap = Tap({"gaiadr3.gaia_source": lambda: sources}, polls=1)
        self.datalink = DataLink(xp if callable(xp) else lambda: xp)
        self.fault = fault
        self.slept: list[float] = []
        self.mirror = Mirror({}, {GAIA: [self._faulty, self.tap, self.datalink]})
        self.client = GaiaQuery(settings=Settings(), sleep=self.slept.append)
        assert isinstance(self.client, GaiaQuery)

    def _faulty(self, request: Request) -> Reply | None:
        return self.fault[0](request) if self.fault else None

    def set(self, **settings: Any) -> None:
        url = f"{self.mirror.url}/{GAIA}"
        addresses = {"tap_url": f"{url}/tap-server/tap", "data_url": f"{url}/data-server/data"}
        given = {**addresses, "wait_s": 0.0, "poll_s": 0.0, "timeout_s": 20.0, **settings}
        self.client = replace(self.client, settings=Settings(**given))

    def have(self, path: str) -> Path:
        found = self.folder / path.replace("/", "_")
        if not found.exists():
            self.client.fetch(path, found, self.have)
        return found

    def fetch(self, path: str) -> Path:
        self.n += 1
        into = self.folder / f"{self.n}.parquet"
        self.client.fetch(path, into, self.have)
        return into

    def read(self, cell: int) -> pa.Table:
        (file,) = self.client.catalog_files([cell]) or []
        ((role, beside),) = file.companions
        return Gaia("dr3").read(self.have(file.path), companions={role: self.have(beside.path)})


@pytest.fixture
def fault() -> list[Fault]:
    """The first of it answers before the services do, where it gives a reply."""
    return []


def place(folder: Path, sources: pa.Table, xp: Any, fault: list[Fault]) -> Iterator[Place]:
    made = Place(folder, sources, xp, fault)
    with made.mirror:
        made.set()
        yield made
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def bulk(tiny_sky: Path) -> tuple[pa.Table, pa.Table]:
    return gaia_tables(tiny_sky / "gaia")["gaiadr3.gaia_source"](), gaia_spectra(tiny_sky / "gaia")


@pytest.fixture
def tiny(tmp_path: Path, bulk: tuple[pa.Table, pa.Table], fault: list[Fault]) -> Iterator[Place]:
    """The tiny sky's."""
    yield from place(tmp_path, *bulk, fault)


def rows(ra: Any, dec: Any, ids: Any) -> pa.Table:
    """Sources of nothing but a position: all else null, but the flags and the epoch."""
    template: dict[str, Any] = {"source_id": pa.array(ids, pa.int64()), "ra": pa.array(ra), "dec": pa.array(dec)}
    out = {}
    for name, column in columns().items():
        if name in template:
            array = template[name]
        elif column.type == pa.bool_():
            array = pa.array([name == "has_xp_continuous"] * len(ids))
        else:
            array = pa.array([2016.0] * len(ids)) if name == "ref_epoch" else pa.nulls(len(ids), column.type)
        out[name] = array
    return pa.table(out, schema=pa.schema(list(columns().values())))


@cache
def columns() -> dict[str, pa.Field]:
    from skycairn.catalogs.gaia import SOURCE_COLUMNS

    return dict(SOURCE_COLUMNS)


def xp_rows(ids: list[int], without_bp: frozenset[int] = frozenset()) -> pa.Table:
    values = [[i % 1000 + k / 8 for k in range(55)] for i in ids]
    bp = [None if i in without_bp else v for i, v in zip(ids, values, strict=True)]
    f8, f4, i2 = pa.list_(pa.float64()), pa.list_(pa.float32()), pa.int16()
    out = {"source_id": pa.array(ids, pa.int64())}
    for band, given in (("bp", bp), ("rp", values)):
        out[f"{band}_coefficients"] = pa.array(given, f8)
        out[f"{band}_coefficient_errors"] = pa.array(given, f4)
        out[f"{band}_n_relevant_bases"] = pa.array([None if v is None else 7 for v in given], i2)
    return pa.table(out)


# A grid over the whole sky, denser at RA 0, the poles and where HEALPix faces meet; ids from the largest int64 down.
EDGES = [
    *((ra, dec) for ra in (0.0, 1e-9, 0.3, 359.7, 359.99999999, 360 - 2**-44) for dec in (-1.2, 0.0, 0.4, 41.8)),
    *((ra, dec) for ra in np.arange(0.0, 360, 45) for dec in (89.999, 89.4, 90.0, -89.999, -89.4, -90.0)),
    *((45.0 + 90 * k + d, e) for k in range(4) for d in (-1e-3, 0.0, 1e-3) for e in (-1e-3, 0.0, 1e-3, 41.81)),
]
IDS = [BIG - i for i in range(len(EDGES))]


@pytest.fixture
def edges(tmp_path: Path, fault: list[Fault]) -> Iterator[Place]:
    ra, dec = np.array(EDGES).T
    xp = xp_rows([i for i in IDS if i % 5], frozenset(i for i in IDS if i % 7 == 0))
    yield from place(tmp_path, rows(ra, dec, IDS), xp, fault)


def cells_of(table: pa.Table) -> np.ndarray:
    return np.asarray(healpy.ang2pix(64, table["ra"].to_numpy(), table["dec"].to_numpy(), nest=True, lonlat=True))


def test_the_same_rows_as_the_bulk_files(tiny: Place, bulk: tuple[pa.Table, pa.Table], tiny_sky: Path) -> None:
    folder, survey = tiny_sky / "gaia", Gaia("dr3")
    by_range = {p.name.split("_")[-1]: p for p in folder.glob("Spectroscopy/*/Xp*.csv.gz")}
    parts = []
    for path in sorted(folder.glob("gaia_source/*.csv.gz")):
        parts.append(survey.read(path, companions={"xp": by_range.get(path.name.split("_")[-1])}))
    wanted = pa.concat_tables(parts)
    where = cells_of(wanted)
    cells = [int(c) for c in np.unique(where)]
    # the tiny sky lies on both sides of RA 0
    assert len(cells) > 1 and wanted["ra"].to_numpy().min() < 1 and wanted["ra"].to_numpy().max() > 359
    for cell in cells:
        got, expected = tiny.read(cell), wanted.filter(pa.array(where == cell)).sort_by("key")
        got, expected = got.drop_columns("row"), expected.drop_columns("row")
        assert got.equals(expected), cell
    assert pc.sum(wanted["bp_coefficients"].is_valid()).as_py() > 10
    assert tiny.tap.jobs == {}


def test_units_types_and_nulls_are_in_the_file(tiny: Place) -> None:
    cell = int(cells_of(tiny.tap.tables["gaiadr3.gaia_source"]())[0])
    table = pq.read_table(tiny.fetch(f"query/gaia_source/6-{cell}.parquet"))
    assert table.schema.equals(pa.schema(list(columns().values())), check_metadata=True)
    assert table["source_id"].to_pylist() == sorted(table["source_id"].to_pylist())
    assert table["radial_velocity"].null_count > 0 and not pc.any(pc.is_nan(table["radial_velocity"])).as_py()


def test_cells_neither_share_nor_lose_a_row(edges: Place) -> None:
    ra, dec = np.array(EDGES).T
    where = healpy.ang2pix(64, ra, dec, nest=True, lonlat=True)
    cells = np.unique(where).tolist()
    got = {cell: edges.read(cell) for cell in cells}
    for cell, table in got.items():
        assert set(table["key"].to_pylist()) == {i for i, c in zip(IDS, where, strict=True) if c == cell}
    found = [row for table in got.values() for row in table.to_pylist()]
    assert sorted(r["key"] for r in found) == sorted(IDS)
    for row in found:
        assert row["xp_file_absent"] == (row["key"] % 5 == 0)
        has_bp = row["key"] % 5 and row["key"] % 7
        assert (row["bp_coefficients"] is not None) == bool(has_bp)
        assert (row["rp_coefficients"] is not None) == bool(row["key"] % 5)
        if has_bp:
            assert row["bp_coefficients"] == [row["key"] % 1000 + k / 8 for k in range(55)]


def test_an_empty_cell(edges: Place) -> None:
    table = edges.read(20_000)
    assert table.num_rows == 0 and edges.datalink.batches == []


@pytest.mark.parametrize("cell", [0, 4095, 4096, 12 * 4096 - 1, 8192 + 2730, 20_000, 33_333])
def test_the_circle_covers_the_cell(cell: int) -> None:
    ra, dec, radius = circle(6, cell)
    rng = np.random.default_rng(cell)
    inner = healpy.pix2vec(1 << 14, (cell << 16) + rng.integers(0, 1 << 16, 4000), nest=True)
    edge = healpy.boundaries(64, cell, step=500, nest=True)
    centre = healpy.ang2vec(ra, dec, lonlat=True)
    for points in (np.array(inner), edge):
        assert np.degrees(np.arccos(np.clip(centre @ points, -1, 1))).max() < radius
    assert radius < 1.2


def test_the_same_bytes_whatever_the_order_of_the_reply(tiny: Place) -> None:
    cell = int(cells_of(tiny.tap.tables["gaiadr3.gaia_source"]())[0])
    for folder in ("gaia_source", "xp_continuous_mean_spectrum"):
        path = f"query/{folder}/6-{cell}.parquet"
        digests = set()
        for batch, form, structure in ((7, "csv", "RAW"), (5000, "ecsv", "INDIVIDUAL"), (100, "votable", "RAW")):
            tiny.set(batch=batch, data_format=form, data_structure=structure)
            digests.add(hashlib.sha256(tiny.fetch(path).read_bytes()).hexdigest())
        assert len(digests) == 1, folder


class TestBatches:
    @pytest.mark.parametrize(("n", "calls"), [(1, [1]), (4, [4]), (5, [4, 1]), (8, [4, 4]), (9, [4, 4, 1])])
    def test_at_their_borders(self, tmp_path: Path, fault: list[Fault], n: int, calls: list[int]) -> None:
        ids = list(range(1, n + 1))
        for at in place(tmp_path, rows([10.0] * n, [20.0] * n, ids), xp_rows(ids), fault):
            at.set(batch=4)
            table = at.read(int(healpy.ang2pix(64, 10.0, 20.0, nest=True, lonlat=True)))
            assert table["rp_coefficients"].null_count == 0 and table.num_rows == n
            assert at.datalink.batches == calls

    CELL = int(healpy.ang2pix(64, 10.0, 20.0, nest=True, lonlat=True))
    XP = f"query/xp_continuous_mean_spectrum/6-{CELL}.parquet"

    @staticmethod
    def of(folder: Path, fault: list[Fault], ids: list[int], *held: list[int]) -> Iterator[Place]:
        """Sources of one cell; DataLink has these spectra, one list a call, the last for good."""
        left = [xp_rows(h) for h in held]
        n = len(ids)
        yield from place(folder, rows([10.0] * n, [20.0] * n, ids), lambda: left.pop(0) if left[1:] else left[0], fault)

    def test_what_a_call_left_out_is_asked_for_again_till_no_more_comes(
        self, tmp_path: Path, fault: list[Fault]
    ) -> None:
        ids = list(range(1, 11))
        for at in self.of(tmp_path, fault, ids, [1, 2, 3], [1, 2, 3, 7, 8]):
            table = at.read(self.CELL)
            assert [r["key"] for r in table.to_pylist() if not r["xp_file_absent"]] == [1, 2, 3, 7, 8]
            metadata = pq.read_schema(at.have(self.XP)).metadata
            assert (metadata[b"asked"], metadata[b"absent"]) == (b"10", b"4,5,6,9,10")
            # each time beside one that came before
            assert at.datalink.batches == [10, 8, 6]

    def test_a_server_that_leaves_some_out_each_time_is_busy(self, tmp_path: Path, fault: list[Fault]) -> None:
        ids = list(range(1, 11))
        for at in self.of(tmp_path, fault, ids, *(list(range(1, k)) for k in range(3, 10))):
            with pytest.raises(Busy, match=r"6 of 10 spectra came, 4 did not, as that of 7: each time"):
                at.fetch(self.XP)
            assert not (tmp_path / "1.parquet").exists()

    def test_a_reply_without_what_came_before_says_nothing(self, tmp_path: Path, fault: list[Fault]) -> None:
        for at in self.of(tmp_path, fault, [1, 2, 3, 4], [1, 2], []):
            at.set(tries=2)
            with pytest.raises(Busy, match=r"0 of 3 spectra came, and that of [12] not, which came before"):
                at.fetch(self.XP)
        other = tmp_path / "other"
        other.mkdir()
        for at in self.of(other, fault, [1, 2, 3, 4], [1, 2], [], [1, 2, 3]):
            assert pq.read_table(at.fetch(self.XP))["source_id"].to_pylist() == [1, 2, 3], "it is asked again"

    def test_of_a_cell_that_has_none_another_cells_spectrum_vouches(self, tmp_path: Path, fault: list[Fault]) -> None:
        table = rows([10.0, 10.0, 200.0], [20.0, 20.0, 20.0], [1, 2, 3])
        for at in place(tmp_path, table, xp_rows([3]), fault):
            assert pq.read_schema(at.fetch(self.XP)).metadata[b"absent"] == b"1,2"
            assert at.datalink.batches == [2, 3, 3]

    def test_a_service_that_gives_nothing_at_all_is_busy(self, tmp_path: Path, fault: list[Fault]) -> None:
        for at in self.of(tmp_path, fault, [1, 2], []):
            with pytest.raises(Busy, match="0 of 2 spectra came, and of 2 other sources' none either"):
                at.fetch(self.XP)

    def test_more_than_a_few_absent_are_not_believed(self, tmp_path: Path, fault: list[Fault]) -> None:
        for at in self.of(tmp_path, fault, list(range(1, 10)), [1, 2, 3, 4, 5, 6]):
            at.set(absent_few=2, absent_share=0.3)
            with pytest.raises(Busy, match=r"6 of 9 spectra came, 3 did not, as that of 7: so many cannot be absent"):
                at.fetch(self.XP)
            at.set(absent_few=2, absent_share=0.34)
            assert pq.read_schema(at.fetch(self.XP)).metadata[b"absent"] == b"7,8,9"

    @pytest.mark.parametrize("batch", [0, 5001])
    def test_more_than_the_archive_takes(self, batch: int) -> None:
        with pytest.raises(ValueError, match="1 to 5000"):
            Settings(batch=batch)


class TestOverflow:
    def test_a_cell_is_asked_for_in_parts(self, tmp_path: Path, fault: list[Fault]) -> None:
        cell, rng = 4095, np.random.default_rng(0)
        inner = (cell << 16) + rng.integers(0, 1 << 16, 300)
        ra, dec = healpy.pix2ang(1 << 14, inner, nest=True, lonlat=True)
        for at in place(tmp_path, rows(ra, dec, np.arange(1, 301)), xp_rows([]), fault):
            path = f"query/gaia_source/6-{cell}.parquet"
            whole = at.fetch(path).read_bytes()
            assert pq.read_metadata(tmp_path / "1.parquet").num_rows == 300
            at.tap.async_rows = 150
            assert at.fetch(path).read_bytes() == whole
            # of the whole, twice, and of its four parts
            assert len(at.tap.queries) == 2 + 4

    def test_it_has_an_end(self, tiny: Place) -> None:
        tiny.tap.async_rows = 1
        tiny.set(split_orders=1)
        cell = int(cells_of(tiny.tap.tables["gaiadr3.gaia_source"]())[0])
        with pytest.raises(FetchError, match=r"of order 7 has more rows than the archive gives at once; raise split"):
            tiny.fetch(f"query/gaia_source/6-{cell}.parquet")


def test_questions(tiny: Place) -> None:
    files = tiny.client.catalog_files([7, 5, 7]) or []
    assert [f.path for f in files] == ["query/gaia_source/6-5.parquet", "query/gaia_source/6-7.parquet"]
    assert all(f.path.startswith(tiny.client.prefix) for f in files)
    first, second = (tiny.client.question(f.path) for f in files)
    assert first.startswith(f"{tiny.client.settings.tap_url} SELECT source_id, ra, dec, ") and first != second
    xp = tiny.client.question(files[0].companions[0][1].path)
    assert first in xp and "RELEASE=Gaia DR3 RETRIEVAL_TYPE=XP_CONTINUOUS" in xp
    tiny.fetch(files[0].path)
    assert tiny.tap.queries[-1] in first
    service: Service = tiny.client
    assert service.prefix == "query/"


@pytest.mark.parametrize("path", ["query/gaia_source/7-5.parquet", "query/../6-5.parquet", "gaia_source/6-5.parquet"])
def test_a_path_that_is_none_of_its_own(path: str) -> None:
    with pytest.raises(NotPublished, match="Gaia's query has no such file"):
        GaiaQuery().question(path)
    with pytest.raises(ValueError, match="49152 is no HEALPix cell of order 6"):
        GaiaQuery().catalog_files([49152])


def at_path(end: str, *replies: Reply) -> Fault:
    """Answers requests whose path ends so, each with the next reply, then no more."""
    left = list(replies)
    return lambda request: left.pop(0) if left and request.path.endswith(end) else None


HTML = Reply(200, b"<html><body>The archive is down for maintenance</body></html>", {"Content-Type": "text/html"})
VOTABLE = votable(rows([10.0, 10.0], [20.0, 20.0], [1, 2]))
CUT = Reply(200, VOTABLE[: len(VOTABLE) // 2])
SLOW = Reply(503, b"", {"Retry-After": "17"})
NO_STATUS = Reply(200, VOTABLE.replace(b"QUERY_STATUS", b"STATUS"))
LEADS_AWAY = Reply(303, b"", {"Location": "http://169.254.169.254/latest"})
ONE_OTHER = votable(rows([10.0], [20.0], [1]).rename_columns([f"{n}_" if n == "ruwe" else n for n in columns()]))
IN_KPC = Reply(
    200,
    VOTABLE.replace(b'name="parallax" datatype="double" unit="mas"', b'name="parallax" datatype="double" unit="deg"'),
)
TWICE = Reply(200, votable(rows([10.0, 10.0], [20.0, 20.0], [1, 1])))
LOST_ID = Reply(200, votable(rows([10.0, 10.0], [20.0, 20.0], [1, None])))
ERRORS = [
    ("/async", Reply(404), NotPublished, "404"),
    ("/async", Reply(401), Refused, "wants an account"),
    ("/phase", Reply(403), Refused, "wants an account"),
    ("/async", Reply(400, b"<li><b>Message: </b>Table unknown</li>"), FetchError, "400 .*Message: Table unknown"),
    ("/result", LEADS_AWAY, Unsafe, "169.254.169.254"),
    ("/result", Reply(200, ONE_OTHER), ChecksumMismatch, "no column 'ruwe'"),
    ("/result", IN_KPC, ChecksumMismatch, "'PARALLAX' is in 'deg', wanted 'mas'"),
    ("/result", TWICE, ChecksumMismatch, "source_id 1 came in two rows"),
    ("/result", LOST_ID, ChecksumMismatch, "1 values of source_id, ra, dec are missing"),
    ("/data", Reply(400, b"<li><b>Message: </b>Too many</li>"), FetchError, "400 .*Too many"),
    ("/data", Reply(403), Refused, "wants an account"),
]
TROUBLE = [
    ("/async", SLOW, "503"),
    ("/async", Reply(429), "429"),
    ("/phase", Reply(500), "500"),
    ("/phase", Reply(200, b"<html>"), "is '<HTML>', which is no phase"),
    ("/phase", Reply(200, b"ABORTED"), "ended as ABORTED"),
    ("/result", HTML, r"QUERY_STATUS is \[\]"),
    ("/result", CUT, "no whole VOTable"),
    ("/result", Reply(200, b""), "no whole VOTable"),
    ("/result", NO_STATUS, "QUERY_STATUS is "),
    ("/data", HTML, "no whole zip"),
    ("/data", Reply(200, b""), "no whole zip"),
    ("/data", SLOW, "503"),
]


class TestTrouble:
    @pytest.fixture
    def one(self, tmp_path: Path, fault: list[Fault]) -> Iterator[Place]:
        yield from place(tmp_path, rows([10.0, 10.0], [20.0, 20.0], [1, 2]), xp_rows([1, 2]), fault)

    CELL = int(healpy.ang2pix(64, 10.0, 20.0, nest=True, lonlat=True))

    @pytest.mark.parametrize(("end", "reply", "error", "message"), ERRORS)
    def test_what_no_second_try_mends(
        self, one: Place, fault: list[Fault], end: str, reply: Reply, error: type[Exception], message: str
    ) -> None:
        fault.append(at_path(end, reply))
        with pytest.raises(error, match=message) as raised:
            one.read(self.CELL)
        assert raised.type is error and one.slept.count(0.0) < 3
        assert one.tap.jobs == {}
        assert [p for p in one.folder.iterdir() if p.name.startswith(("temp", "async", "sync"))] == []

    @pytest.mark.parametrize(("end", "reply", "message"), TROUBLE)
    def test_what_a_second_try_mends(
        self, one: Place, fault: list[Fault], end: str, reply: Reply, message: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        fault.append(at_path(end, *[reply] * 2))
        assert one.read(self.CELL)["rp_coefficients"].null_count == 0
        fault[0] = at_path(end, *[reply] * 9)
        one.set(tries=3)
        for path in one.folder.iterdir():
            path.unlink()
        with pytest.raises(Busy, match=message):
            one.read(self.CELL)
        assert one.tap.jobs == {}
        assert capfd.readouterr() == ("", "")

    def test_the_archive_says_when_to_come_again(self, one: Place, fault: list[Fault]) -> None:
        fault.append(at_path("/async", SLOW))
        one.read(self.CELL)
        assert 17.0 in one.slept

    def test_nobody_is_there(self, one: Place) -> None:
        one.set(tap_url="http://127.0.0.1:9/tap", tries=2)
        with pytest.raises(Busy, match="ConnectionRefused"):
            one.read(self.CELL)
        assert not one.slept

    def test_a_job_without_end(self, one: Place) -> None:
        one.tap.polls = 10**9
        one.set(job_s=0.0)
        with pytest.raises(TimedOut, match="is not done after 0 s"):
            one.read(self.CELL)
        assert one.tap.jobs == {}

    def test_a_reply_that_drips(self, one: Place) -> None:
        one.set(reply_s=-1.0)
        with pytest.raises(TimedOut, match="was not whole after"):
            one.read(self.CELL)

    def test_a_result_behind_another_address(self, one: Place, fault: list[Fault]) -> None:
        def moved(request: Request) -> Reply | None:
            if request.path.endswith("/results/result") and "again" not in request.query:
                return Reply(303, b"", {"Location": f"{request.base}{request.path}?again=1"})
            return None

        fault.append(moved)
        assert one.read(self.CELL).num_rows == 2

    def test_a_spectrum_that_was_not_asked_for(self, one: Place, fault: list[Fault]) -> None:
        other = DataLink(lambda: xp_rows([1, 2, 3]))

        def more(request: Request) -> Reply | None:
            if not request.path.endswith("/data"):
                return None
            return other(replace(request, body=request.body.replace(b"ID=1%2C2", b"ID=1%2C2%2C3")))

        fault.append(more)
        with pytest.raises(ChecksumMismatch, match="spectrum of 3 came, which was not asked for"):
            one.read(self.CELL)

    def test_bases_of_another_release(self, one: Place, fault: list[Fault]) -> None:
        short = xp_rows([1, 2])
        cut = pa.array([v[:51] for v in short["bp_coefficients"].to_pylist()], pa.list_(pa.float64()))
        other = DataLink(lambda: short.set_column(1, "bp_coefficients", cut))
        fault.append(lambda request: other(request))
        with pytest.raises(ChecksumMismatch, match="51 numbers, wanted 55"):
            one.read(self.CELL)


@pytest.mark.parametrize("kind", ["csv", "ecsv", "fits", "vot"])
def test_real_products(real_data: Path, kind: str) -> None:
    name = f"gaia/astroquery-datalink/gaia_dr3_source_id_5937083312263887616_dl_products_{kind}.zip"
    table = spectra(real_data / name, np.array([5937083312263887616]), "real")
    (row,) = table.to_pylist()
    assert row["bp_coefficients"][:2] == [np.float32(3325.743093963916), np.float32(-392.20328365493384)]
    assert len(row["rp_coefficient_errors"]) == 55 and row["bp_n_relevant_bases"] > 0
