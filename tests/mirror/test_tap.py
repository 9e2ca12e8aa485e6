"""The TAP service, asked by the clients that people use: astroquery's for Gaia, and pyvo."""

import gc
import gzip
import http.client
import importlib
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import astropy.units as u
import numpy as np
import pyarrow as pa
import pytest
import pyvo
from astropy.coordinates import SkyCoord
from astropy.table import Table
from requests.exceptions import HTTPError

from skycairn.mirror.server import Mirror
from skycairn.mirror.tap import Tap, gaia_tables

GAIA = "gea.esac.esa.int"
BIG = 2**63 - 1
STARS = pa.table(
    [
        pa.array([BIG, BIG - 1, 3], pa.int64()),
        pa.array([0.1, 359.9, 10.0]),
        pa.array([0.0, 0.0, 5.0]),
        pa.array([None, 31, 95], pa.int16()),
        pa.array([1.5, None, 2.5], pa.float32()),
        pa.array([True, None, False]),
        pa.array(["a < b", None, "it's"]),
    ],
    schema=pa.schema(
        [
            pa.field("source_id", pa.int64()),
            pa.field("ra", pa.float64(), metadata={"unit": "deg"}),
            pa.field("dec", pa.float64(), metadata={"unit": "deg"}),
            pa.field("solved", pa.int16()),
            pa.field("pmra", pa.float32(), metadata={"unit": "mas.yr**-1"}),
            pa.field("flag", pa.bool_()),
            pa.field("name", pa.string()),
        ]
    ),
)
MANY = pa.table({"n": pa.array(range(2500), pa.int64())})


@pytest.fixture(autouse=True)
def sockets() -> Iterator[None]:
    """The clients leave theirs to the garbage collector."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def gaia_class() -> Any:
    """`GaiaClass` as it comes; its module asks the public archive for news as it is imported, which fails here."""
    with pytest.MonkeyPatch.context() as patch:

        def refuse(self: object) -> None:
            raise OSError("no network in tests")

        patch.setattr(http.client.HTTPSConnection, "connect", refuse)
        return importlib.import_module("astroquery.gaia").GaiaClass


@pytest.fixture
def tap() -> Tap:
    return Tap({"gaiadr3.gaia_source": lambda: STARS, "gaiadr3.many": lambda: MANY}, polls=0)


@pytest.fixture
def mirror(tap: Tap) -> Iterator[Mirror]:
    with Mirror({}, {GAIA: [tap]}) as running:
        yield running


@pytest.fixture
def gaia(mirror: Mirror, gaia_class: Any) -> Any:
    return client(gaia_class, mirror)


def client(gaia_class: Any, mirror: Mirror) -> Any:
    context = {"tap_server_context": f"{GAIA}/tap-server", "data_server_context": f"{GAIA}/data-server"}
    return gaia_class(gaia_tap_server=mirror.url, gaia_data_server=mirror.url, **context)


def check_stars(table: Table) -> None:
    assert table.colnames == STARS.column_names
    # nowhere through a float, on the way
    assert [int(x) for x in table["source_id"]] == [BIG, BIG - 1, 3]
    assert table["source_id"].dtype.kind == "i"
    assert np.ma.getmaskarray(table["solved"]).tolist() == [True, False, False]
    assert table["solved"][1:].tolist() == [31, 95]
    assert str(table["ra"].unit) == "deg"
    assert table["ra"].tolist() == [0.1, 359.9, 10.0]


class TestAstroquery:
    @pytest.mark.parametrize("form", ["votable_gzip", "votable", "votable_plain", "csv", "fits"])
    def test_a_job_at_once(self, gaia: Any, form: str) -> None:
        query = f"SELECT {', '.join(STARS.column_names)} FROM gaiadr3.gaia_source ORDER BY dec, source_id DESC"
        table = gaia.launch_job(query, output_format=form).get_results()
        if form == "csv":
            table["ra"].unit = "deg"
        check_stars(table)
        if form.startswith("votable"):
            pmra = table["pmra"].filled(np.nan)
            assert np.isnan(pmra[1]) and pmra[[0, 2]].tolist() == [1.5, 2.5]
            assert table["pmra"].unit == u.mas / u.yr and table["pmra"].dtype == np.float32
            assert table["flag"].tolist() == [True, None, False]
            assert [str(x) for x in table["name"]][::2] == ["a < b", "it's"]

    def test_a_job_that_takes_some_looks(self, gaia: Any, tap: Tap) -> None:
        tap.polls = 1
        job = gaia.launch_job_async("SELECT * FROM gaiadr3.gaia_source ORDER BY dec, source_id DESC", background=True)
        assert [job.get_phase(update=True) for _ in range(2)] == ["EXECUTING", "COMPLETED"]
        check_stars(job.get_results())
        assert [j.jobid for j in gaia.list_async_jobs()] == [job.jobid]
        gaia.remove_jobs([job.jobid])
        assert gaia.list_async_jobs() == [] and tap.jobs == {}

    def test_cone_search(self, gaia: Any) -> None:
        gaia.ROW_LIMIT = -1
        table = gaia.cone_search_async(SkyCoord(0, 0, unit="deg"), radius=1 * u.deg).get_results()
        assert set(table["source_id"].tolist()) == {BIG, BIG - 1}
        assert table["dist"].tolist() == pytest.approx([0.1, 0.1], abs=1e-4)

    def test_query_object(self, gaia: Any) -> None:
        gaia.ROW_LIMIT = 1
        found = gaia.query_object(SkyCoord(9.9, 5, unit="deg"), width=1 * u.deg, height=1 * u.deg)
        assert found["source_id"].tolist() == [3]

    def test_tables(self, gaia: Any) -> None:
        assert [t.get_qualified_name() for t in gaia.load_tables()] == ["gaiadr3.gaia_source", "gaiadr3.many"]
        columns = gaia.load_table("gaiadr3.gaia_source").columns
        assert [c.name for c in columns] == STARS.column_names and columns[1].unit == "deg"

    def test_a_query_that_cannot_be_answered(self, gaia: Any) -> None:
        with pytest.raises(HTTPError, match="Error 400: 1 unresolved identifiers: foo"):
            gaia.launch_job("SELECT foo FROM gaiadr3.gaia_source")
        job = gaia.launch_job_async("SELECT foo FROM gaiadr3.gaia_source", background=True)
        assert job.get_phase(update=True) == "ERROR"
        assert "unresolved identifiers: foo" in job.get_error()

    def test_a_job_that_is_stopped(self, gaia: Any) -> None:
        job = gaia.launch_job_async("SELECT ra FROM gaiadr3.gaia_source", autorun=False)
        job.abort()
        assert job.get_phase(update=True) == "ABORTED"


class TestPyvo:
    def test_what_the_service_says_of_itself(self, mirror: Mirror) -> None:
        service = pyvo.dal.TAPService(f"{mirror.url}/{GAIA}/tap-server/tap")
        assert service.hardlimit == 3_000_000
        assert [(t.name, len(t.columns)) for t in service.tables] == [("gaiadr3.gaia_source", 7), ("gaiadr3.many", 1)]
        with urlopen(f"{mirror.url}/{GAIA}/tap-server/tap/availability") as reply:
            assert b"<vosi:available>true<" in reply.read()

    def test_both_ways_of_asking(self, mirror: Mirror, tap: Tap) -> None:
        service = pyvo.dal.TAPService(f"{mirror.url}/{GAIA}/tap-server/tap")
        query = "SELECT * FROM gaiadr3.gaia_source ORDER BY dec, source_id DESC"
        check_stars(service.run_sync(query).to_table())
        check_stars(service.run_async(query).to_table())
        assert tap.jobs == {}

    def test_errors(self, mirror: Mirror) -> None:
        service = pyvo.dal.TAPService(f"{mirror.url}/{GAIA}/tap-server/tap")
        for ask in (service.run_sync, service.run_async):
            with pytest.raises(pyvo.dal.DALQueryError, match="unresolved identifiers: foo"):
                ask("SELECT foo FROM gaiadr3.gaia_source")


def overflows(mirror: Mirror, query: str, **given: str) -> tuple[int, bool]:
    body = "&".join(f"{k}={v.replace(' ', '+')}" for k, v in {"QUERY": query, **given}.items())
    with urlopen(f"{mirror.url}/{GAIA}/tap-server/tap/sync", body.encode()) as reply:
        text = reply.read()
    n = len(Table.read(BytesIO(text), format="votable"))
    return n, b'name="QUERY_STATUS" value="OVERFLOW"' in text


def test_more_rows_than_a_reply_has(mirror: Mirror) -> None:
    query = "SELECT n FROM gaiadr3.many"
    assert overflows(mirror, query) == (2000, True)
    assert overflows(mirror, query, MAXREC="10") == (10, True)
    # what the query itself limits has not overflowed
    assert overflows(mirror, "SELECT TOP 2000 n FROM gaiadr3.many") == (2000, False)
    assert overflows(mirror, "SELECT n FROM gaiadr3.many WHERE n < 0") == (0, False)


@pytest.mark.parametrize("form", ["json", "text/html"])
def test_a_form_that_is_not_served(gaia: Any, form: str) -> None:
    with pytest.raises(HTTPError, match="FORMAT is"):
        gaia.launch_job("SELECT ra FROM gaiadr3.gaia_source", output_format=form)


def test_the_bulk_files_as_a_table(tiny_sky: Path) -> None:
    table = gaia_tables(tiny_sky / "gaia")["gaiadr3.gaia_source"]()
    text = b"".join(gzip.decompress(p.read_bytes()) for p in sorted((tiny_sky / "gaia/gaia_source").glob("*.gz")))
    lines = [line for line in text.decode().splitlines() if line[:1].isdigit()]
    assert table.num_rows == len(lines) and table.num_columns == 152
    assert sorted(table["source_id"].to_pylist()) == sorted(int(line.split(",")[2]) for line in lines)
    kinds = {f.name: f.type for f in table.schema}
    assert kinds["source_id"] == pa.int64() and kinds["ruwe"] == pa.float32() and kinds["has_rvs"] == pa.bool_()
    assert table["pmra"].null_count == sum(line.split(",")[13] == "null" for line in lines) > 0
    assert table.schema.field("pmra").metadata == {b"unit": b"mas.yr**-1"}
