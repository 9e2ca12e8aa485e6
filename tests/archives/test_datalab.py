"""Legacy Survey and DESI by query: each cell's query table is the bulk file's rows; odd replies are refused."""

from collections.abc import Callable, Iterator
from pathlib import Path

import healpy
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from skycairn.archives.datalab import DataLab, desi, legacysurvey, typed
from skycairn.archives.errors import Busy, ChecksumMismatch, FetchError, NotPublished, Refused, TimedOut, Unsafe
from skycairn.catalogs.desi import PRODUCTIONS, Desi
from skycairn.catalogs.legacysurvey import LegacySurvey
from skycairn.catalogs.survey import MissingColumn, Survey, WrongUnit, first_failed
from skycairn.mirror.datalab import Database, service, tractor, zpix
from skycairn.mirror.server import Mirror, Reply, Request

TAP = "https://datalab.noirlab.edu/tap"
ODD = ((0.0, 0.3), (359.9999, 0.3), (1e-9, -0.2), (123.0, 89.99), (300.0, 89.9), (45.0, -89.999))
"""Positions at RA 0 and near the poles."""
FROM_PHOTOMETRY = ("ra", "dec", "flux_g", "flux_r", "flux_z", "flux_w1", "flux_w2")
"""What the mock's bulk file has anew for each row of a target, and the service once a target."""


def nothing(path: str) -> Path:
    raise AssertionError(f"{path} was asked for")


def asking(database: Database) -> Callable[[str, str, int, float], pa.Table]:
    """A search that never fails, and cuts off at the rows that were asked for."""
    return lambda url, adql, most, timeout_s: database.answer(adql).slice(0, most)


def cells_of(table: pa.Table) -> np.ndarray:
    ra, dec = (table[c].to_numpy() for c in ("ra", "dec"))
    on_sky = np.isfinite(ra) & (np.abs(dec) <= 90)
    out = np.full(len(ra), -1)
    out[on_sky] = healpy.ang2pix(64, ra[on_sky], dec[on_sky], nest=True, lonlat=True)
    return out


def ask(lab: DataLab, survey: Survey, cell: int, into: Path) -> pa.Table:
    lab.fetch(lab.catalog_files([cell])[0].path, into, nothing)
    return survey.read(into)


@pytest.fixture(scope="module")
def sweeps(tiny_sky: Path) -> tuple[pa.Table, Database]:
    root = tiny_sky / "legacysurvey"
    rows = [LegacySurvey("dr10").read(p) for p in sorted(root.glob("south/sweep/*/sweep-*.fits"))]
    return pa.concat_tables(rows), tractor(root)


@pytest.fixture(scope="module")
def redshifts(tiny_sky: Path) -> tuple[pa.Table, Database]:
    path = tiny_sky / "desi" / PRODUCTIONS["dr1"].zcatalog
    return Desi("dr1").read(path), zpix(path)


def compare(lab: DataLab, survey: Survey, bulk: pa.Table, into: Path, lacks: tuple[str, ...]) -> None:
    bulk = bulk.filter(bulk["key"].is_valid())
    cells = cells_of(bulk)
    for cell in np.unique(cells[cells >= 0]).tolist():
        got = ask(lab, survey, cell, into).sort_by("key")
        want = bulk.filter(pa.array(cells == cell)).sort_by("key")
        assert got["key"].to_pylist() == want["key"].to_pylist()
        twice = np.zeros(want.num_rows, dtype=bool)
        if "targetid" in want.column_names:
            ids, back, count = np.unique(want["targetid"].to_numpy(), return_inverse=True, return_counts=True)
            twice = count[back] > 1
            assert len(ids)
        for name in want.column_names:
            if name == "row":
                continue
            if name in lacks:
                assert got[name].null_count == got.num_rows
                continue
            keep = pa.array(~twice if name in FROM_PHOTOMETRY else np.ones(want.num_rows, dtype=bool))
            one, other = (t[name].combine_chunks().filter(keep) for t in (got, want))
            assert one.equals(other), (cell, name)
        modality = f"{survey.name}.{'image' if survey.name == 'legacysurvey' else 'spectrum'}"
        groups = [
            [
                (dict(g.files), t["key"].take(pa.array(g.rows)).to_pylist())
                for g in survey.payload_groups(t, modality, {})
            ]
            for t in (got, want)
        ]
        assert groups[0] == groups[1] and groups[0]


@pytest.mark.parametrize("position", ["q3c", "box"])
def test_the_legacy_surveys_cells_are_the_sweeps_rows(sweeps, tmp_path, position):
    bulk, database = sweeps
    lab = legacysurvey(position=position, search=asking(database))
    compare(lab, LegacySurvey("dr10"), bulk, tmp_path / "x.parquet", ())
    assert all("t.brick_primary = 1" in q for q in database.asked[-2:])


@pytest.mark.parametrize("position", ["healpix", "q3c", "box"])
def test_desis_cells_are_the_catalogues_rows(redshifts, tmp_path, position):
    bulk, database = redshifts
    lab = desi(position=position, search=asking(database))
    compare(lab, Desi("dr1"), bulk, tmp_path / "x.parquet", ("photsys",))


def test_rows_that_are_no_primary_ones_stay_away(sweeps, tmp_path):
    bulk, database = sweeps
    held = database.tables["ls_dr10.tractor"]
    table = {**held, "brick_primary": np.arange(len(held["ra"])).astype(np.int16) % 2}
    cell = int(cells_of(bulk)[0])
    lab = legacysurvey(search=asking(Database({"ls_dr10.tractor": table}, database.units)))
    found = ask(lab, LegacySurvey("dr10"), cell, tmp_path / "x.parquet")
    assert 0 < found.num_rows < (cells_of(bulk) == cell).sum()


@pytest.mark.parametrize("position", ["q3c", "box"])
def test_odd_places_ids_near_2_to_the_63_and_nulls(sweeps, tmp_path, position):
    held = {n: v[: len(ODD)].copy() for n, v in sweeps[1].tables["ls_dr10.tractor"].items()}
    held["ra"], held["dec"] = (np.array(v) for v in zip(*ODD, strict=True))
    held["ref_id"] = 2**63 - 1 - np.arange(len(ODD))
    held["flux_g"] = np.ma.MaskedArray(held["flux_g"], mask=np.arange(len(ODD)) == 0)
    held["nobs_g"] = np.ma.MaskedArray(held["nobs_g"], mask=np.arange(len(ODD)) == 0)
    lab = legacysurvey(position=position, search=asking(Database({"ls_dr10.tractor": held})))
    for i, place in enumerate(ODD):
        cell = int(healpy.ang2pix(64, *place, nest=True, lonlat=True))
        found = ask(lab, LegacySurvey("dr10"), cell, tmp_path / "x.parquet")
        mine = found.filter(pa.array(found["objid"].to_numpy() == held["objid"][i]))
        assert (mine["ra"][0].as_py(), mine["dec"][0].as_py()) == place
        assert mine["ref_id"][0].as_py() == 2**63 - 1 - i
        assert [mine[c].null_count for c in ("flux_g", "nobs_g")] == [i == 0, i == 0]


def test_desis_cells_are_found_at_a_pole_too(redshifts, tmp_path):
    """zpix has the cell as a column: no box, no circle, nothing to go wrong at RA 0."""
    tables = redshifts[1].tables
    z, p = ({n: v.copy() for n, v in tables[f"desi_dr1.{t}"].items()} for t in ("zpix", "photometry"))
    places = np.resize(np.array(ODD), (len(p["ra"]), 2))
    p["ra"], p["dec"] = places.T
    order = np.searchsorted(p["targetid"], z["targetid"])
    cells = healpy.ang2pix(64, *places.T, nest=True, lonlat=True)
    z["healpix"] = cells[order].astype(np.int32)
    lab = desi(search=asking(Database({"desi_dr1.zpix": z, "desi_dr1.photometry": p})), max_rows=20_000)
    for cell in np.unique(cells).tolist():
        found = ask(lab, Desi("dr1"), cell, tmp_path / "x.parquet")
        assert found.num_rows == (z["healpix"] == cell).sum()


EDGE = healpy.pix2ang(64, 20_000, nest=True, lonlat=True)
POSITIONS = ("healpix", "q3c", "box")


def around(cell: int) -> list[int]:
    return [int(c) for c in healpy.get_all_neighbours(64, cell, nest=True) if c >= 0]


def astray(redshifts: tuple[pa.Table, Database], healpix: list[int | None], without: set[int]) -> Database:
    """Targets 2, 3, .. in the middle of cell 20,000, of which HEALPIX says this; some have no row in photometry."""
    tables, n = redshifts[1].tables, len(healpix)
    z, p = ({c: v[:n].copy() for c, v in tables[f"desi_dr1.{t}"].items()} for t in ("zpix", "photometry"))
    z["targetid"] = p["targetid"] = np.arange(n, dtype=np.int64) + 2
    p["ra"], p["dec"] = (np.full(n, x) for x in EDGE)
    null = [h is None for h in healpix]
    z["healpix"] = np.ma.MaskedArray([h or 0 for h in healpix], mask=null, dtype=np.int32)
    kept = np.array([i + 2 not in without for i in range(n)])
    return Database({"desi_dr1.zpix": z, "desi_dr1.photometry": {c: v[kept] for c, v in p.items()}})


@pytest.mark.parametrize("max_rows", [100_000, 1])
def test_a_row_is_in_one_cells_table_whatever_its_healpix_says(redshifts, max_rows, tmp_path):
    beside, far = around(20_000)[0], 100
    database = astray(redshifts, [20_000, beside, far, None, beside, 20_000, None, None], {6, 7, 8, 9})
    lab = desi(search=asking(database), max_rows=max_rows)
    got = {}
    for cell in (20_000, far, *around(20_000), *around(far), *around(beside)):
        path = tmp_path / f"{cell}.parquet"
        got[cell] = sorted(ask(lab, Desi("dr1"), cell, path)["targetid"].to_pylist())
        assert pq.read_schema(path).metadata[b"nowhere"] == b"2", "targets 8 and 9"
    assert {c: ids for c, ids in got.items() if ids} == {20_000: [2, 3, 5, 7], beside: [6], far: [4]}


@pytest.mark.parametrize("position", POSITIONS)
def test_rows_without_photometry_are_there_for_the_reader_to_count(redshifts, position, tmp_path):
    database = astray(redshifts, [20_000, 20_000, 20_000, None], {3, 5})
    found = ask(desi(position=position, search=asking(database)), Desi("dr1"), 20_000, tmp_path / "x.parquet")
    assert pq.read_schema(tmp_path / "x.parquet").metadata[b"nowhere"] == b"1", "target 5"
    assert sorted(found["targetid"].to_pylist()) == [2, 3, 4]
    assert found.filter(pc.equal(found["targetid"], 3))["ra"].to_pylist() == [None]
    reasons = first_failed(Desi.valid, found).to_pylist()
    assert reasons.count("position") == 1


def test_negative_keys_are_in_one_part_too(redshifts, tmp_path):
    database = astray(redshifts, [20_000] * 6, set())
    for table in ("zpix", "photometry"):
        ids = [-5, -3, -1, 0, 4, 2**63 - 1]
        database.tables[f"desi_dr1.{table}"]["targetid"] = np.array(ids, dtype=np.int64)
    desi(search=asking(database), max_rows=2).fetch("query/zpix/6-20000.parquet", tmp_path / "x.parquet", nothing)
    assert pq.read_table(tmp_path / "x.parquet")["targetid"].to_pylist() == ids


def test_an_empty_cell_is_an_empty_table(sweeps, redshifts, tmp_path):
    for make, survey, (bulk, database) in (
        (legacysurvey, LegacySurvey("dr10"), sweeps),
        (desi, Desi("dr1"), redshifts),
    ):
        cell = next(c for c in range(49152) if c not in set(cells_of(bulk).tolist()))
        found = ask(make(search=asking(database)), survey, cell, tmp_path / "x.parquet")
        assert found.num_rows == 0


@pytest.mark.parametrize("make", [legacysurvey, desi])
def test_a_cell_of_too_many_rows_is_asked_for_in_parts(sweeps, redshifts, make, tmp_path):
    bulk, database = sweeps if make is legacysurvey else redshifts
    bulk = bulk.filter(bulk["key"].is_valid())
    cells, counts = np.unique(cells_of(bulk)[cells_of(bulk) >= 0], return_counts=True)
    path = f"query/{'tractor' if make is legacysurvey else 'zpix'}/6-{cells[np.argmax(counts)]}.parquet"
    whole, parts = tmp_path / "a.parquet", tmp_path / "b.parquet"
    make(search=asking(database)).fetch(path, whole, nothing)
    before = len(database.asked)
    make(search=asking(database), max_rows=int(counts.max()) // 3).fetch(path, parts, nothing)
    assert len(database.asked) - before > 6
    assert whole.read_bytes() == parts.read_bytes()


def test_the_same_rows_are_the_same_bytes_however_they_come(sweeps, tmp_path):
    bulk, database = sweeps
    cell = int(cells_of(bulk)[0])
    turned = {n: v[::-1] for n, v in database.tables["ls_dr10.tractor"].items()}
    for name, held in (("a", database), ("b", Database({"ls_dr10.tractor": turned}, database.units))):
        legacysurvey(search=asking(held)).fetch(f"query/tractor/6-{cell}.parquet", tmp_path / name, nothing)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_the_service_lacks_is_said(sweeps, redshifts, tmp_path):
    bulk, database = sweeps
    cell, into = int(cells_of(bulk)[0]), tmp_path / "x.parquet"
    held = database.tables["ls_dr10.tractor"]

    def without(*names: str) -> DataLab:
        tables = {"ls_dr10.tractor": {n: v for n, v in held.items() if n not in names}}
        return legacysurvey(search=asking(Database(tables, database.units)))

    found = ask(without("maskbits", "ebv"), LegacySurvey("dr10"), cell, into)
    assert found.num_rows and found["maskbits"].null_count == found.num_rows
    with pytest.raises(MissingColumn, match="'MASKBITS': the service that was asked has no such column"):
        LegacySurvey("dr10").read(into, needed=("maskbits",))
    with pytest.raises(FetchError, match=r"'ls_dr10.tractor' has no column 'objid' \(of OBJID\).*setting `rename`"):
        ask(without("objid"), LegacySurvey("dr10"), cell, into)
    with pytest.raises(NotPublished, match=r"no table 'ls_dr9.tractor_s'; name another by the setting `tables`"):
        ask(legacysurvey("dr9-south", search=asking(database)), LegacySurvey("dr9-south"), cell, into)
    renamed = Database({"ls_dr10.tractor": {{"objid": "brick_objid"}.get(n, n): v for n, v in held.items()}})
    lab = legacysurvey(rename={"objid": "brick_objid"}, search=asking(renamed))
    assert ask(lab, LegacySurvey("dr10"), cell, into)["objid"].null_count == 0
    with pytest.raises(ValueError, match="not asked for release 'dr8-south'"):
        legacysurvey("dr8-south")


def test_a_column_in_another_unit_is_refused(sweeps, tmp_path):
    bulk, database = sweeps
    cell, held = int(cells_of(bulk)[0]), database.tables["ls_dr10.tractor"]
    wrong = legacysurvey(search=asking(Database({"ls_dr10.tractor": held}, {"flux_r": "mJy"})))
    with pytest.raises(WrongUnit, match="'FLUX_R' is in 'mJy', wanted 'nanomaggy'"):
        ask(wrong, LegacySurvey("dr10"), cell, tmp_path / "x.parquet")
    strange = legacysurvey(search=asking(Database({"ls_dr10.tractor": held}, {"flux_r": "nanomaggies (AB)"})))
    assert ask(strange, LegacySurvey("dr10"), cell, tmp_path / "x.parquet").num_rows, "no unit that could be compared"


def test_the_question_is_all_that_decides_the_reply():
    path = "query/tractor/6-7.parquet"
    asked = {
        lab.question(path) for lab in (legacysurvey(), legacysurvey(position="box"), legacysurvey(url="http://x/tap"))
    }
    assert len(asked) == 3 and all("brick_primary" in q for q in asked)
    assert legacysurvey().question(path) == legacysurvey().question(path)
    assert "z.healpix = 7" in desi("edr").question("query/zpix/6-7.parquet")
    with pytest.raises(ValueError, match="wanted query/zpix/6-<work cell>"):
        desi().question(path)


@pytest.mark.parametrize(
    ("values", "kind", "found"),
    [
        (pa.array(["t", "F ", None, "true"]), pa.bool_(), [True, False, None, True]),
        (pa.array([1, 0, None], pa.int16()), pa.bool_(), [True, False, None]),
        (pa.array([1.5, float("nan"), None]), pa.float32(), [1.5, None, None]),
        (pa.array([" PSF", None]), pa.string(), ["PSF", None]),
        (pa.array([3.0, None]), pa.int32(), [3, None]),
        (pa.nulls(2), pa.int64(), [None, None]),
    ],
)
def test_values_are_typed(values, kind, found):
    assert typed(values, kind).to_pylist() == found


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (pa.array([1.0]), pa.int64(), "never passes through one"),
        (pa.array([1.5]), pa.int32(), "truncated"),
        (pa.array([70000]), pa.int16(), "not in range"),
        (pa.array(["maybe"]), pa.bool_(), "'maybe' is neither true nor false"),
    ],
)
def test_values_that_do_not_fit_are_refused(values, kind, message):
    with pytest.raises((ValueError, pa.ArrowException), match=message):
        typed(values, kind)


@pytest.fixture(scope="module")
def lab(sweeps, redshifts) -> Iterator[tuple[Mirror, object]]:
    tap = service([sweeps[1], redshifts[1]], polls=1)
    with Mirror({}, {"datalab.noirlab.edu": [tap]}) as mirror:
        yield mirror, tap


def test_a_tap_service_is_asked_by_jobs_that_are_cleared_away(lab, sweeps, redshifts, tmp_path):
    mirror, tap = lab
    for make, survey, (bulk, database) in (
        (legacysurvey, LegacySurvey("dr10"), sweeps),
        (desi, Desi("dr1"), redshifts),
    ):
        valid = bulk.filter(bulk["key"].is_valid())
        cell = int(cells_of(valid)[0])
        one = ask(make(url=mirror.of(TAP)), survey, cell, tmp_path / "a.parquet")
        ask(make(search=asking(database)), survey, cell, tmp_path / "b.parquet")
        assert one.num_rows == (cells_of(valid) == cell).sum() > 0
        assert survey.read(tmp_path / "a.parquet").equals(survey.read(tmp_path / "b.parquet"))
    assert tap.jobs == {} and len(tap.queries) > 4


def test_a_query_that_the_service_refuses(lab, tmp_path):
    wrong = legacysurvey(url=lab[0].of(TAP), where="t.nix = 1")
    with pytest.raises(FetchError, match=r"refused the query .*Invalid column name 'nix'") as caught:
        ask(wrong, LegacySurvey("dr10"), 1, tmp_path / "x.parquet")
    assert type(caught.value) is FetchError


def test_a_job_that_never_ends_is_given_up(sweeps, tmp_path):
    with Mirror({}, {"datalab.noirlab.edu": [service([sweeps[1]], polls=10**9)]}) as mirror:
        slow = legacysurvey(url=mirror.of(TAP), timeout_s=0.3)
        with pytest.raises(TimedOut, match=r"EXECUTING after 0\.3 s"):
            ask(slow, LegacySurvey("dr10"), 1, tmp_path / "x.parquet")


HTML = b"<!doctype html><html><body>Please log in</body></html>"


@pytest.mark.filterwarnings("ignore:Results truncated")  # the client says it too
@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (lambda body: Reply(200, HTML, {"Content-Type": "text/html"}), ChecksumMismatch),
        (lambda body: Reply(200, body[: len(body) // 2]), ChecksumMismatch),
        (lambda body: Reply(200, body.replace(b'name="column_name"', b'name="other"')[:-30]), ChecksumMismatch),
        (lambda body: Reply(503, b"later"), Busy),
        (lambda body: Reply(403, b"who are you"), Refused),
        (lambda body: Reply(404, b"what"), NotPublished),
        (lambda body: Reply(302, b"", {"Location": "http://169.254.169.254/secret"}), Unsafe),
        (
            lambda body: Reply(200, body.replace(b"</TABLE>", b'</TABLE><INFO name="QUERY_STATUS" value="OVERFLOW"/>')),
            Busy,
        ),
    ],
    ids=["html", "half", "short", "503", "403", "404", "elsewhere", "overflow"],
)
def test_fault_29_33_replies_that_are_no_table_are_refused(sweeps, reply, error, tmp_path):
    tap = service([sweeps[1]], polls=0)

    def spoilt(request: Request) -> Reply | None:
        found = tap(request)
        if found is not None and request.path.endswith("/results/result"):
            assert isinstance(found.body, bytes)
            return reply(found.body)
        return found

    with Mirror({}, {"datalab.noirlab.edu": [spoilt]}) as mirror, pytest.raises(error) as caught:
        ask(legacysurvey(url=mirror.of(TAP)), LegacySurvey("dr10"), 1, tmp_path / "x.parquet")
    assert type(caught.value) is error and not list(tmp_path.iterdir())


def test_a_service_that_is_not_there_is_busy(tmp_path):
    with pytest.raises(Busy, match="cannot be reached"):
        ask(legacysurvey(url="http://127.0.0.1:9/tap"), LegacySurvey("dr10"), 1, tmp_path / "x.parquet")


def test_rows_that_get_lost_on_the_way_are_noticed(sweeps, tmp_path):
    bulk, database = sweeps

    def lossy(url: str, adql: str, most: int, timeout_s: float) -> pa.Table:
        found = database.answer(adql)
        return found if "COUNT" in adql or "tap_schema" in adql else found.slice(0, found.num_rows - 1)

    with pytest.raises(Busy, match=r"gave \d+ of \d+ rows"):
        ask(legacysurvey(search=lossy), LegacySurvey("dr10"), int(cells_of(bulk)[0]), tmp_path / "x.parquet")
