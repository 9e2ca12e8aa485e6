"""SDSS spectra by SQL: each cell's query table is the bulk file's rows; odd replies are refused."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import healpy
import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits

from skycairn.archives.errors import Busy, ChecksumMismatch, FetchError, NotPublished, Refused, TimedOut, Unsafe
from skycairn.archives.sdssquery import SdssQuery, parse_csv
from skycairn.catalogs.sdss import CATALOG, Sdss
from skycairn.catalogs.survey import first_failed
from skycairn.mirror.server import Mirror, Reply, Request
from skycairn.mirror.skyserver import SkyServer

SKYSERVER = "https://skyserver.sdss.org"
ODD = ((0.0, 0.3), (359.9999, 0.3), (1e-9, -0.2), (360 - 1e-9, 0.0), (123.0, 89.99), (300.0, 89.9), (45.0, -89.999))
"""Positions at RA 0 and near the poles."""


def nothing(path: str) -> Path:
    raise AssertionError(f"{path} was asked for")


def cell_of(table: pa.Table) -> np.ndarray:
    return healpy.ang2pix(64, table["ra"].to_numpy(), table["dec"].to_numpy(), nest=True, lonlat=True)


def ask(service: SdssQuery, cell: int, into: Path) -> pa.Table:
    service.fetch(f"query/specobj/6-{cell}.parquet", into, nothing)
    return Sdss("dr17").read(into)


@pytest.fixture(scope="module")
def root(tiny_sky: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny sky's specObj with some spectra moved to odd places, and rows in another order."""
    with fits.open(tiny_sky / "sdss" / CATALOG, memmap=False) as hdus:
        table = hdus[1].copy()
    places = np.array(ODD * 2)
    table.data["PLUG_RA"][: len(places)], table.data["PLUG_DEC"][: len(places)] = places.T
    big = int(np.argmax(table.data["PLATE"] >= 8192))
    table.data["PLUG_RA"][big], table.data["PLUG_DEC"][big] = ODD[0]
    path = tmp_path_factory.mktemp("sdss") / CATALOG
    path.parent.mkdir(parents=True)
    fits.BinTableHDU(table.data[::-1].copy(), table.header).writeto(path)
    return path.parents[3]


@pytest.fixture(scope="module")
def bulk(root: Path) -> pa.Table:
    return Sdss("dr17").read(root / CATALOG)


@pytest.fixture(scope="module")
def sky(root: Path) -> SkyServer:
    return SkyServer(root)


def test_each_cell_is_the_bulk_files_rows(sky, bulk, tmp_path):
    cells = cell_of(bulk)
    seen = 0
    with Mirror({}, {"skyserver.sdss.org": [sky]}) as mirror:
        service = SdssQuery(mirror.of(SKYSERVER))
        for file in service.catalog_files(np.unique(cells).tolist()):
            cell = int(file.path.split("-")[1].removesuffix(".parquet"))
            got = ask(service, cell, tmp_path / "x.parquet").sort_by("key")
            want = bulk.filter(pa.array(cells == cell)).sort_by("key")
            for name in want.column_names:
                if name in ("row", "specobjid"):  # the database numbers the spectrum whose text is a row of asterisks
                    continue
                assert got[name].combine_chunks().equals(want[name].combine_chunks()), (cell, name)
            both = zip(got["specobjid"].to_pylist(), want["specobjid"].to_pylist(), strict=True)
            assert all(a == b or not b.isdigit() for a, b in both)
            for survey in (Sdss("dr17"),):
                files = [
                    [
                        (dict(g.files), t["key"].take(pa.array(g.rows)).to_pylist())
                        for g in survey.payload_groups(t, "sdss.spectrum", {})
                    ]
                    for t in (got, want)
                ]
                assert files[0] == files[1]
            seen += got.num_rows
    assert seen == bulk.num_rows
    assert max(int(t) for t in bulk["specobjid"].to_pylist() if t.isdigit()) >= 2**63


@pytest.mark.parametrize("position", ODD)
def test_odd_places_are_asked_for(sky, position, tmp_path):
    cell = int(healpy.ang2pix(64, *position, nest=True, lonlat=True))
    with Mirror({}, {"skyserver.sdss.org": [sky]}) as mirror:
        found = ask(SdssQuery(mirror.of(SKYSERVER)), cell, tmp_path / "x.parquet")
    assert position in set(zip(found["ra"].to_pylist(), found["dec"].to_pylist(), strict=True))


def test_an_empty_cell_is_an_empty_table(sky, bulk, tmp_path):
    cell = next(c for c in range(49152) if c not in set(cell_of(bulk).tolist()))
    with Mirror({}, {"skyserver.sdss.org": [sky]}) as mirror:
        found = ask(SdssQuery(mirror.of(SKYSERVER)), cell, tmp_path / "x.parquet")
    assert found.num_rows == 0 and found.schema == Sdss("dr17").read(tmp_path / "x.parquet").schema
    assert first_failed(Sdss.select["strict"], found).to_pylist() == []


def test_the_same_rows_are_the_same_bytes_however_they_come(sky, root, bulk, tmp_path):
    cells, counts = np.unique(cell_of(bulk), return_counts=True)
    cell = int(cells[np.argmax(counts)])
    turned = SkyServer(root)
    turned.tables["SpecObjAll"] = {n: v[::-1] for n, v in turned.tables["SpecObjAll"].items()}
    paths = [tmp_path / n for n in ("a.parquet", "b.parquet", "c.parquet")]
    for service, path, most in zip((sky, turned, sky), paths, (500_000, 500_000, 7), strict=True):
        before = len(service.asked)
        with Mirror({}, {"skyserver.sdss.org": [service]}) as mirror:
            ask(SdssQuery(mirror.of(SKYSERVER), max_rows=most), cell, path)
        asked = len(service.asked) - before
        assert asked == 2 if most > 7 else asked > 8, "a cell of more rows than a reply holds is asked for in parts"
    assert paths[0].read_bytes() == paths[1].read_bytes() == paths[2].read_bytes()


def test_the_servers_silent_limit_is_noticed(root, bulk, tmp_path):
    cells, counts = np.unique(cell_of(bulk), return_counts=True)
    sky = SkyServer(root, max_rows=3)
    with Mirror({}, {"skyserver.sdss.org": [sky]}) as mirror, pytest.raises(Busy, match=r"gave 3 of \d+ rows"):
        ask(SdssQuery(mirror.of(SKYSERVER)), int(cells[np.argmax(counts)]), tmp_path / "x.parquet")
    assert not (tmp_path / "x.parquet").exists()


def test_spectra_that_cannot_be_parted_are_an_error(root, tmp_path):
    sky = SkyServer(root)
    spec = sky.tables["SpecObjAll"]
    spec["ra"][:4], spec["dec"][:4] = 200.0, 10.0
    cell = int(healpy.ang2pix(64, 200.0, 10.0, nest=True, lonlat=True))
    with Mirror({}, {"skyserver.sdss.org": [sky]}) as mirror, pytest.raises(FetchError, match="raise `max_rows`"):
        ask(SdssQuery(mirror.of(SKYSERVER), max_rows=3), cell, tmp_path / "x.parquet")


def test_the_query_fits_into_an_address():
    """SkyServer refuses addresses whose query is longer than 2,048 bytes."""
    for cell in (0, 4095, 20000, 49151):
        asked = json.loads(SdssQuery().question(f"query/specobj/6-{cell}.parquet"))
        assert len(urlencode({"cmd": asked["query"][1], "format": "csv", "searchtool": "SQL"})) < 1900
    assert asked["service"] == SKYSERVER and asked["release"] == 17


@pytest.mark.parametrize(
    "path", ["query/specobj/5-1.parquet", "query/specobj/6-49152.parquet", "query/zpix/6-1.parquet"]
)
def test_other_paths_are_refused(path):
    with pytest.raises(ValueError, match="wanted query/specobj/6-<work cell>"):
        SdssQuery().question(path)


HTML = b"<!doctype html><html><head><title>SQL Search</title><style>a {}</style></head><body>Hello</body></html>"


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (Reply(200, HTML), ChecksumMismatch, "a page and no table: 'SQL Search Hello'"),
        (Reply(200, b"<html>Maintenance: please try again later</html>"), Busy, "try again later"),
        (Reply(200, b'{"error_message": "no"}'), ChecksumMismatch, "a page and no table"),
        (Reply(200, b"#Table1\nerror_message\nIncorrect syntax near FROM\n"), FetchError, "refused.*Incorrect syntax"),
        (Reply(200, b"Maximum 60 queries allowed in 1 minute. Please try later.\n"), Busy, "Maximum 60 queries"),
        (Reply(200, b"#Table1\nra,dec\n1,2\n"), ChecksumMismatch, "'ra,dec', wanted columns n"),
        (Reply(200, b"#Table1\nn\nmany\n"), ChecksumMismatch, "cannot be read as a table"),
        (Reply(200, b"#Table1\nn\n"), ChecksumMismatch, "no number of rows"),
        (Reply(200, b"#Table1\nn\n1"), Busy, "in the middle of a line"),
        (Reply(200, b""), ChecksumMismatch, "wanted columns n"),
        (Reply(503, b"<p>overloaded</p>"), Busy, r"answered 503 \(overloaded\)"),
        (Reply(500, b"Invalid column name 'x'"), FetchError, "Invalid column"),
        (Reply(404, b""), NotPublished, "answered 404"),
        (Reply(403, b""), Refused, "answered 403"),
        (Reply(302, b"", {"Location": "http://localhost:9/x"}), (Busy, Unsafe), "localhost"),
    ],
)
def test_fault_29_replies_that_are_no_table_are_refused(reply, error, message, tmp_path):
    with (
        Mirror({}, {"skyserver.sdss.org": [lambda _: reply]}) as mirror,
        pytest.raises(error, match=message) as caught,
    ):
        ask(SdssQuery(mirror.of(SKYSERVER)), 1, tmp_path / "x.parquet")
    assert isinstance(error, tuple) or type(caught.value) is error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_table_cut_short_is_refused(sky, bulk, keep, tmp_path):
    cells, counts = np.unique(cell_of(bulk), return_counts=True)

    def cut(at_line: bool) -> Callable[[Request], Reply | None]:
        def service(request: Request) -> Reply | None:
            reply = sky(request)
            if reply is None or "COUNT" in request.query["cmd"][0]:
                return reply
            assert isinstance(reply.body, bytes)
            short = reply.body[: int(keep * len(reply.body))]
            return Reply(200, short[: short.rindex(b"\n") + 1] if at_line else short)

        return service

    for at_line in (False, True):
        with Mirror({}, {"skyserver.sdss.org": [cut(at_line)]}) as mirror, pytest.raises(Busy, match="cut short"):
            ask(SdssQuery(mirror.of(SKYSERVER)), int(cells[np.argmax(counts)]), tmp_path / "x.parquet")


def test_a_server_that_is_not_there_is_busy(tmp_path):
    with pytest.raises(Busy, match="cannot be reached"):
        ask(SdssQuery("http://127.0.0.1:9"), 1, tmp_path / "x.parquet")


def test_a_server_that_keeps_silent_too_long_is_given_up(tmp_path):
    held = threading.Event()
    with Mirror({}, {"skyserver.sdss.org": [lambda _: held.wait(20) and None]}) as mirror:
        with pytest.raises(TimedOut, match=r"no answer in 0\.2 s"):
            ask(SdssQuery(mirror.of(SKYSERVER), timeout_s=0.2), 1, tmp_path / "x.parquet")
        held.set()


def test_cells_are_typed_as_they_stand():
    text = '#Table1\nid,z,name\n18446744073709551615,0.1,"a, b"\nnull,null,\n'
    found = parse_csv(text, ["id", "z", "name"], [pa.uint64(), pa.float32(), pa.string()], "q")
    assert found.to_pydict() == {
        "id": [2**64 - 1, None],
        "z": [pytest.approx(0.1, abs=1e-8), None],
        "name": ["a, b", None],
    }
    with pytest.raises(ChecksumMismatch, match="Expected 3 columns, got 2"):
        parse_csv(text + "1,2\n", ["id", "z", "name"], [pa.uint64(), pa.float32(), pa.string()], "q")
