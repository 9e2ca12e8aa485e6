"""SkyServer on loopback, asked by astroquery's own SDSS client, unmodified."""

from collections.abc import Iterator
from pathlib import Path

import astroquery.sdss
import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astroquery.exceptions import RemoteServiceError
from astroquery.sdss import SDSSClass

from skycairn.catalogs.sdss import CATALOG, spectrum_file
from skycairn.catalogs.sdssspectra import read_plate, read_spec
from skycairn.mirror.server import Mirror
from skycairn.mirror.skyserver import SkyServer, SpecFiles
from skycairn.mirror.sqlselect import SqlError, select

T = {"t": {"a": np.array([1, 2, 3, 4]), "name": np.array(["x", "Y", "z", "it's"]), "f": np.array([0.5, 1, 1.5, 2])}}
T["u"] = {"a": np.array([2, 2, 5]), "w": np.array([10, 20, 30])}


def run(sql: str) -> dict[str, list]:
    return {name: v.tolist() for name, v in select(sql, lambda name, _: T[name]).items()}


@pytest.fixture(scope="module")
def root(tiny_sky: Path) -> Path:
    return tiny_sky / "sdss"


@pytest.fixture(scope="module")
def spec(root: Path) -> fits.FITS_rec:
    with fits.open(root / CATALOG, memmap=False) as hdus:
        return hdus[1].data.copy()


@pytest.fixture(scope="module")
def client(root: Path) -> Iterator[SDSSClass]:
    services = {"skyserver.sdss.org": [SkyServer(root)], "data.sdss.org": [SpecFiles(root)]}
    conf = astroquery.sdss.conf
    with (
        Mirror({"data.sdss.org/sas/dr17": root}, services) as mirror,
        conf.set_temp("skyserver_baseurl", mirror.of("https://skyserver.sdss.org")),
        conf.set_temp("sas_baseurl", mirror.of("https://data.sdss.org/sas")),
    ):
        yield SDSSClass()


def test_a_query_gives_the_files_rows(client, spec):
    found = client.query_sql(
        "select s.plate, s.mjd, s.fiberID, s.ra, s.z, s.sciencePrimary, p.plateQuality -- a remark\n"
        "from SpecObjAll s join PlateX p on s.plateID = p.plateID where s.survey = 'SDSS' and s.plate < 8192",
        cache=False,
    )
    want = spec[(np.char.strip(spec["SURVEY"]) == "sdss") & (spec["PLATE"] < 8192)]
    keys = ["PLATE", "MJD", "FIBERID"]
    assert len(want) and sorted(zip(*(found[k] for k in ("plate", "mjd", "fiberID")), strict=True)) == sorted(
        zip(*(want[k].tolist() for k in keys), strict=True)
    )
    found.sort(["plate", "mjd", "fiberID"])
    want = want[np.lexsort([want[k] for k in reversed(keys)])]
    assert found["ra"].tolist() == want["PLUG_RA"].tolist()
    assert found["plateQuality"].tolist() == np.char.strip(want["PLATEQUALITY"]).tolist()
    assert set(found["plateQuality"]) == {"good", "bad"}
    z = np.where(np.isnan(want["Z"]), -9999, want["Z"])
    assert np.array_equal(np.float32(found["z"]), np.float32(z)), "the database has -9999 where the file has NaN"


def test_ids_beyond_2_to_the_63(client, spec):
    big = spec[spec["PLATE"] >= 8192]
    ids = [int(t) for t in np.char.strip(big["SPECOBJID"]).tolist() if t.isdigit()]
    assert min(ids) >= 2**63
    with pytest.warns(match="OverflowError converting to IntType"):  # the client's own, before it gets them right
        found = client.query_sql("SELECT specObjID FROM SpecObjAll WHERE plate >= 8192", cache=False)
    assert set(ids) <= set(found["specObjID"].tolist())


@pytest.mark.parametrize("how", [{"radius": 1 * u.arcmin}, {"width": 2 * u.arcmin}])
def test_a_region_holds_what_lies_in_it(client, spec, how):
    i = int(np.flatnonzero((spec["SPECPRIMARY"] == 1) & (spec["PLATE"] < 8192))[0])
    centre = SkyCoord(spec["PLUG_RA"][i], spec["PLUG_DEC"][i], unit="deg")
    found = client.query_region(centre, spectro=True, fields=["plate", "mjd", "fiberID", "run2d"], cache=False, **how)
    every = SkyCoord(spec["PLUG_RA"], spec["PLUG_DEC"], unit="deg")
    near = every.separation(centre) < 1 * u.arcmin
    if "width" in how:
        east, north = (x.deg for x in centre.spherical_offsets_to(every))
        near = (abs(east) / np.cos(centre.dec.rad) < 1 / 60) & (abs(north) < 1 / 60)
    near &= np.char.strip(spec["BESTOBJID"]) != ""
    want = {
        (int(p), int(m), int(f)) for p, m, f in zip(*(spec[k][near] for k in ("PLATE", "MJD", "FIBERID")), strict=True)
    }
    assert {(int(r["plate"]), int(r["mjd"]), int(r["fiberID"])) for r in found} == want


def test_the_nearest_object_of_each_position(client, spec):
    rows = np.flatnonzero(
        (spec["SPECPRIMARY"] == 1) & (spec["PLATE"] < 8192) & (np.char.strip(spec["BESTOBJID"]) != "")
    )[:3]
    found = client.query_crossid(
        SkyCoord(spec["PLUG_RA"][rows], spec["PLUG_DEC"][rows], unit="deg"),
        photoobj_fields=["objID", "ra"],
        cache=False,
    )
    assert found["objID"].tolist() == [int(t) for t in spec["BESTOBJID"][rows]]


def test_a_plate_by_its_number(client, spec):
    plate = int(spec["PLATE"][0])
    found = client.query_specobj(plate=plate, fields=["plate", "mjd", "fiberID"], cache=False)
    assert len(found) == ((spec["PLATE"] == plate) & (np.char.strip(spec["BESTOBJID"]) != "")).sum()


@pytest.mark.parametrize("boss", [False, True])
def test_spectra_of_matches_are_the_plates(client, spec, root, boss, tmp_path):
    runs = np.char.strip(spec["RUN2D"])
    plates = [
        root / spectrum_file("spplate", r, int(p), int(m))
        for r, p, m in zip(runs, spec["PLATE"], spec["MJD"], strict=True)
    ]
    there = np.array([p.exists() for p in plates]) & (np.char.startswith(runs, "v") == boss)
    i = int(np.flatnonzero(there)[-1])
    plate, mjd, fiber = (int(spec[k][i]) for k in ("PLATE", "MJD", "FIBERID"))
    matches = client.query_sql(
        f"SELECT run2d, plate, mjd, fiberID FROM SpecObjAll WHERE plate={plate} AND mjd={mjd} AND fiberID={fiber}",
        cache=False,
    )
    (hdus,) = client.get_spectra(matches=matches, cache=False, show_progress=False)
    path = tmp_path / "spec.fits"
    with hdus:
        assert hdus["COADD"].columns.names == "flux loglam ivar and_mask or_mask wdisp sky model".split()
        assert hdus["SPECOBJ"].data["PLUG_RA"][0] == spec["PLUG_RA"][i]
        fits.HDUList([hdu.copy() for hdu in hdus]).writeto(path)
    one, many = read_spec(path, plate, mjd, fiber), read_plate(plates[i], plate, mjd, np.array([fiber]))
    for name in one._fields:
        assert np.array_equal(getattr(one, name), getattr(many, name), equal_nan=True), name


def test_what_the_database_lacks_is_said(client):
    with pytest.raises(RemoteServiceError, match="Invalid column name 'nix'"):
        client.query_sql("SELECT nix FROM SpecObjAll", cache=False)
    with pytest.raises(RemoteServiceError, match="Invalid object name 'Galaxies'"):
        client.query_sql("SELECT ra FROM Galaxies", cache=False)


def test_a_reply_ends_at_the_servers_limit(root):
    sky = SkyServer(root, max_rows=5)
    with Mirror({}, {"skyserver.sdss.org": [sky]}) as mirror:
        conf = astroquery.sdss.conf
        with conf.set_temp("skyserver_baseurl", mirror.of("https://skyserver.sdss.org")):
            assert len(SDSSClass().query_sql("SELECT ra FROM SpecObjAll", cache=False)) == 5


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("SELECT a FROM t WHERE f BETWEEN 1 AND 1.5", {"a": [2, 3]}),
        ("SELECT a FROM t WHERE NOT (f >= 1 AND f < 2) ORDER BY a DESC", {"a": [4, 1]}),
        ("SELECT a AS b, f*2+1 c FROM t WHERE name='y'", {"b": [2], "c": [3.0]}),
        ("SELECT a FROM t WHERE name = 'it''s' OR a IN (1, 2) AND f < 1", {"a": [1, 4]}),
        ("SELECT a FROM t WHERE name NOT LIKE '%t%' AND a & 1 = 1", {"a": [1, 3]}),
        ("SELECT TOP 1 t.a, u.w FROM t INNER JOIN u ON t.a = u.a ORDER BY w DESC", {"a": [2], "w": [20]}),
        ("SELECT x.a, y.w FROM t AS x LEFT JOIN u y ON x.a = y.a WHERE x.a < 3", {"a": [1, 2, 2], "w": [None, 10, 20]}),
        ("SELECT x.a FROM t AS x LEFT JOIN u y ON x.a = y.a WHERE y.w IS NULL", {"a": [1, 3, 4]}),
        ("SELECT COUNT(*) FROM t WHERE a > 9", {"Column1": [0]}),
        ("SELECT DISTINCT a FROM u ORDER BY a", {"a": [2, 5]}),
        ("SELECT a FROM t WHERE 't' = q3c_radial_query(a, f, 1, 0.5, 0.1)", {"a": [1]}),
    ],
)
def test_sql(sql, found):
    assert run(sql) == found


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT a FROM t, u", "joined by JOIN"),
        ("SELECT a FROM t JOIN u ON t.a = u.a", "Ambiguous column name 'a'"),
        ("DROP TABLE t", "wanted SELECT"),
        ("SELECT a FROM t WHERE name > 3", "a text is compared with a number"),
        ("SELECT a FROM t WHERE a", "wanted a comparison"),
        ("SELECT __import__('os') FROM t", "not a recognized function"),
        ("SELECT a FROM t; DROP TABLE t", "Incorrect syntax near 'DROP'"),
        ("SELECT a FROM t WHERE " + "(" * 90 + "a=1" + ")" * 90, "nested too deeply"),
    ],
)
def test_sql_that_is_not_understood(sql, message):
    with pytest.raises(SqlError, match=message):
        run(sql)
