"""The Legacy Surveys: keys, epochs, errors, cuts at their boundaries, files by cell, and real files as published."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import healpy
import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from skycairn.catalogs.legacycolumns import AION_MASKBITS, Z_LIMIT, pack_key, unpack_key
from skycairn.catalogs.legacyfiles import LAYOUTS, sweep_box, sweep_name
from skycairn.catalogs.legacysurvey import LegacySurvey, epochs, errors
from skycairn.catalogs.survey import STANDARD_SCHEMA, MissingColumn, first_failed, link_columns

BANDS = ("g", "r", "i", "z")


class Folder:
    """An archive in a folder; its lists are given."""

    def __init__(self, lists: Mapping[str, Mapping[str, str]], root: Path = Path("/nowhere")) -> None:
        self.lists, self.root = lists, root

    def exists(self, path: str) -> bool:
        return (self.root / path).exists()

    def names(self, checksum_list: str) -> Mapping[str, str] | None:
        return self.lists.get(checksum_list)

    def local(self, path: str) -> Path:
        return self.root / path


# keys


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, (1 << 16) - 1), st.integers(0, (1 << 20) - 1), st.integers(0, (1 << 22) - 1)),
        max_size=20,
    )
)
def test_keys_are_packed_reversibly_and_in_order(rows: list[tuple[int, int, int]]) -> None:
    columns = np.array(rows, dtype=np.int32).reshape(-1, 3).T
    key = pack_key(*columns)
    assert key.dtype == np.int64 and (key >= 0).all()
    np.testing.assert_array_equal(unpack_key(key), columns)
    assert sorted(rows) == [rows[i] for i in np.argsort(key, kind="stable")]


def test_the_key_is_desis_targetid() -> None:
    assert [int(v[0]) for v in unpack_key(np.array([39627652591521181]))] == [9010, 298864, 3485]
    assert pack_key(np.array([9010], ">i2"), np.array([298864], ">i4"), np.array([3485], ">i4")).tolist() == [
        39627652591521181
    ]


@pytest.mark.parametrize(
    ("release", "brickid", "objid", "message"),
    [
        (1 << 16, 0, 0, "row 101: release 65536 does not fit 0 .. 65535"),
        (0, 1 << 20, 0, "row 101: brickid 1048576 does not fit 0 .. 1048575"),
        (0, 0, 1 << 22, "row 101: objid 4194304 does not fit 0 .. 4194303"),
        (-1, 0, 0, "row 101: release -1 does not fit"),
    ],
)
def test_a_number_too_large_for_its_field_is_refused(release: int, brickid: int, objid: int, message: str) -> None:
    columns = [np.array([1, v]) for v in (release, brickid, objid)]
    with pytest.raises(ValueError, match=re.escape(message)):
        pack_key(*columns, first_row=100)


def test_a_key_never_goes_through_float() -> None:
    with pytest.raises(ValueError, match="release is float64, wanted integers"):
        pack_key(np.array([9010.0]), np.array([1]), np.array([1]))


# epochs and errors


def test_epochs_as_the_survey_means_them() -> None:
    columns = {
        "ref_cat": np.array(["G2", "GE", "G3", "G2", "", "", "L3", "T2", "G2", "GE", "GE"]),
        "ref_epoch": np.array([2015.5, 2016, 2016, 2015.5, 0, 0, 0, 2000, 0, 2016, 2016]),
        "pmra": np.array([3.0, 0, 0, 0, 5, 0, 0, 9, 1, np.nan, 1]),
        "pmdec": np.array([-4.0, 7, 0, 0, 5, 0, 0, 9, 1, 1, np.nan]),
        "mjd_min": np.array([57000.0] * 4 + [51544.5, 0, 57000, 57000, 57000, 57000, 57000]),
        "mjd_max": np.array([58000.0] * 4 + [51544.5 + 365.25, 0, 56000, 57000, 58000, 58000, 58000]),
    }
    got = epochs(columns, 11, (2012.5, 2021.5), 2015.5)
    day = 2000 + (np.array([57000, 58000]) - 51544.5) / 365.25
    kinds = ["gaia", "gaia", "reference", "reference", "exposures", "interval", "interval", "exposures", "exposures"]
    assert got["epoch_kind"].tolist() == [*kinds, "reference", "reference"]
    nan = np.nan
    np.testing.assert_array_equal(got["pmra"], [3, 0] + [nan] * 9)
    np.testing.assert_array_equal(got["pmdec"], [-4, 7] + [nan] * 9)
    np.testing.assert_array_equal(got["epoch"], [2015.5, 2016] + [nan] * 9)
    low = [2015.5, 2016, 2016, 2015.5, 2000, 2012.5, 2012.5, day[0], day[0], 2016, 2016]
    high = [2015.5, 2016, 2016, 2015.5, 2001, 2021.5, 2021.5, day[0], day[1], 2016, 2016]
    np.testing.assert_allclose(got["epoch_min"], low, rtol=1e-14)
    np.testing.assert_allclose(got["epoch_max"], high, rtol=1e-14)


def test_without_a_reference_epoch_column_g2_has_the_setting() -> None:
    columns = {
        "ref_cat": np.array(["G2", "G2", "GE", ""]),
        "pmra": np.array([1.0, 0, 1, 1]),
        "pmdec": np.array([1.0, 0, 1, 1]),
    }
    got = epochs(columns, 4, (2013.0, 2019.0), 2015.25)
    assert got["epoch_kind"].tolist() == ["gaia", "reference", "interval", "interval"]
    assert got["epoch_min"].tolist() == [2015.25, 2015.25, 2013.0, 2013.0]
    assert epochs({}, 2, (2013.0, 2019.0), 2015.5)["epoch_max"].tolist() == [2019.0, 2019.0]


def test_errors_are_in_arcsec_and_ra_s_shrinks_with_the_cosine() -> None:
    ivar = np.array([1.0, 3600.0**2, 0, -1, np.nan, np.inf], dtype=np.float32)
    got = errors(ivar, ivar, np.array([60.0, 60, 60, 60, 60, 60]))
    np.testing.assert_allclose(got["dec_error"], [3600, 1, np.nan, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(got["ra_error"], [1800, 0.5, np.nan, np.nan, np.nan, np.nan])


# cuts


def row(**changed: Any) -> dict[str, Any]:
    """A row that passes every cut of every profile."""
    out: dict[str, Any] = {"key": 1, "ra": 10.0, "dec": 20.0, "type": "EXP", "brick_primary": True, "maskbits": 0}
    for b in BANDS:
        out |= {f"nobs_{b}": 1, f"flux_ivar_{b}": 1.0, f"fracflux_{b}": 0.1, f"fracmasked_{b}": 0.1, f"fracin_{b}": 0.9}
    return out | {"flux_z": 100.0, "mw_transmission_z": 0.9} | changed


def failed(profile: str, **changed: Any) -> str | None:
    columns = {c.name: c.type for c in LegacySurvey.columns} | {f.name: f.type for f in STANDARD_SCHEMA}
    values = row(**changed)
    table = pa.table({n: pa.array([v], columns[n]) for n, v in values.items()})
    cuts = LegacySurvey.valid if profile == "valid" else LegacySurvey.select[profile]
    result: str | None = first_failed(cuts, table)[0].as_py()
    return result


f4 = np.float32
BELOW_LIMIT, ABOVE_LIMIT = float(np.nextafter(f4(Z_LIMIT), f4(0))), float(np.nextafter(f4(Z_LIMIT), f4(9)))


@pytest.mark.parametrize(
    ("profile", "cut", "passes", "fails"),
    [
        ("valid", "position", {"ra": 0.0}, {"ra": -1e-9}),
        ("valid", "position", {"ra": np.nextafter(360, 0)}, {"ra": 360.0}),
        ("valid", "position", {"dec": 90.0}, {"dec": np.nextafter(90, 91)}),
        ("valid", "position", {"dec": -90.0}, {"dec": np.nextafter(-90, -91)}),
        ("valid", "position", {}, {"ra": np.nan}),
        ("valid", "position", {}, {"dec": np.inf}),
        ("valid", "key", {"key": 0}, {"key": None}),
        ("valid", "type", {"type": "PSF"}, {"type": "DUP"}),
        ("valid", "brick_primary", {"brick_primary": True}, {"brick_primary": False}),
        ("valid", "brick_primary", {"brick_primary": None}, {"brick_primary": False}),
        ("aion", "extended", {"type": "REX"}, {"type": "PSF"}),
        *(("aion", "full_colour", {f"nobs_{b}": 1}, {f"nobs_{b}": 0}) for b in BANDS),
        (
            "aion",
            "magnitude",
            {"flux_z": ABOVE_LIMIT, "mw_transmission_z": 1},
            {"flux_z": BELOW_LIMIT, "mw_transmission_z": 1},
        ),
        ("aion", "magnitude", {"flux_z": 2, "mw_transmission_z": 0.5}, {"flux_z": 1.99, "mw_transmission_z": 0.5}),
        ("aion", "magnitude", {}, {"flux_z": 0.0}),
        ("aion", "magnitude", {}, {"flux_z": -5.0}),
        *(("aion", "maskbits", {}, {"maskbits": 1 << b}) for b in (0, 1, 2, 3, 4, 5, 6, 7, 11, 14, 15)),
        ("aion", "maskbits", {"maskbits": ~AION_MASKBITS & 0x1FFFF}, {"maskbits": 0x1FFFF}),
        *(("strict", "flux_ivar", {f"flux_ivar_{b}": 1e-9}, {f"flux_ivar_{b}": 0}) for b in BANDS),
        *(("strict", "fracflux", {f"fracflux_{b}": 0.49}, {f"fracflux_{b}": 0.5}) for b in BANDS),
        *(("strict", "fracmasked", {f"fracmasked_{b}": 0.39}, {f"fracmasked_{b}": 0.401}) for b in BANDS),
        *(("strict", "fracin", {f"fracin_{b}": 0.301}, {f"fracin_{b}": 0.299}) for b in BANDS),
        ("grz", "full_colour", {"nobs_i": 0}, {"nobs_r": 0}),
    ],
)
def test_a_row_on_each_side_of_each_boundary(
    profile: str, cut: str, passes: dict[str, Any], fails: dict[str, Any]
) -> None:
    assert failed(profile, **passes) is None
    assert failed(profile, **fails) == cut


@pytest.mark.parametrize("profile", ["valid", "aion", "strict", "grz"])
def test_a_null_in_any_column_fails_its_cut(profile: str) -> None:
    cuts = LegacySurvey.valid if profile == "valid" else LegacySurvey.select[profile]
    for cut in cuts:
        for column in cut.columns:
            wanted = None if cut.null == "passes" else cut.name
            assert failed(profile, **{column: None}) == wanted, (cut.name, column)
            assert cut.reason


def test_profiles_and_the_order_of_their_cuts() -> None:
    aion = [c.name for c in LegacySurvey.select["aion"]]
    assert aion == ["extended", "full_colour", "magnitude", "maskbits"]
    assert [c.name for c in LegacySurvey.select["strict"]] == [*aion, "flux_ivar", "fracflux", "fracmasked", "fracin"]
    assert LegacySurvey.select["all"] == () and [c.name for c in LegacySurvey.select["grz"]] == aion
    assert Z_LIMIT == pytest.approx(3.981071705534972, rel=1e-15)
    assert AION_MASKBITS == sum(1 << b for b in (0, 1, 2, 3, 4, 5, 6, 7, 11, 14, 15))


# files


def test_names_of_files_are_the_archives() -> None:
    dr10, north = LAYOUTS["dr10"], LAYOUTS["dr9-north"]
    assert dr10.url == "https://portal.nersc.gov/cfs/cosmo/data/legacysurvey/dr10"
    assert dr10.sweep((0, 5, -5, 0)) == "south/sweep/10.1/sweep-000m005-005p000.fits"
    assert dr10.sweep_list == "south/sweep/10.1/legacysurvey_dr10_south_sweep_10.1.sha256sum"
    assert dr10.coadd("1126p222", "image", "g") == "south/coadd/112/1126p222/legacysurvey-1126p222-image-g.fits.fz"
    assert dr10.coadd("1126p222", "maskbits") == "south/coadd/112/1126p222/legacysurvey-1126p222-maskbits.fits.fz"
    assert (
        dr10.coadd_list("1126p222") == "south/coadd/112/1126p222/legacysurvey_dr10_south_coadd_112_1126p222.sha256sum"
    )
    assert dr10.covered == "south/survey-bricks-dr10-south.fits.gz" and dr10.bricks == "survey-bricks.fits.gz"
    assert north.tractor("1054p567") == "north/tractor/105/tractor-1054p567.fits"
    assert north.sweep((100, 110, 55, 60)) == "north/sweep/9.0/sweep-100p055-110p060.fits"


def test_a_sweeps_name_tells_its_box() -> None:
    for box in [(0, 5, -5, 0), (355, 360, 85, 90), (100, 110, -90, -85), (0, 10, 0, 5)]:
        assert sweep_box(sweep_name(box)) == box
    assert sweep_box("sweep-000m005-005p000-pz.fits") is None and sweep_box("sha256sum") is None


def test_sweeps_are_chosen_by_cell_from_the_checksum_list() -> None:
    survey = LegacySurvey("dr10")
    names = {sweep_name((r, r + 5, d, d + 5)): "0" * 64 for r in range(0, 360, 5) for d in range(-90, 40, 5)}
    gone = sweep_name((355, 360, 0, 5))
    del names[gone]
    archive = Folder({survey.layout.sweep_list: names | {"readme.txt": "0"}})
    zero = int(healpy.ang2pix(64, 0.0, 2.0, nest=True, lonlat=True))
    files = survey.catalog_files(archive, [zero, zero])
    assert [f.path for f in files] == ["south/sweep/10.1/sweep-000p000-005p005.fits"], "a box not listed is legal"
    assert files[0].checksum_list == survey.layout.sweep_list and files[0].algorithm == "sha256"
    north = int(healpy.ang2pix(64, 0.0, 60.0, nest=True, lonlat=True))
    assert survey.catalog_files(archive, [north]) == [] and survey.catalog_files(archive, []) == []
    everything = survey.catalog_files(archive, range(0, 49152, 7))
    assert [f.path for f in everything] == sorted(f.path for f in everything)


def test_without_the_checksum_list_it_says_what_to_do() -> None:
    with pytest.raises(
        ValueError, match=r"dr10: the archive has no south/sweep/10.1/legacysurvey_dr10.*fetch it from https"
    ):
        LegacySurvey("dr10").catalog_files(Folder({}), [0])
    survey = LegacySurvey("dr10")
    with pytest.raises(ValueError, match="lists no sweep"):
        survey.catalog_files(Folder({survey.layout.sweep_list: {"a.txt": "0"}}), [0])


@pytest.fixture
def bricks(tmp_path: Path) -> dict[str, Path]:
    """Four bricks about RA 0 and the equator, of which the region covers three, one of them without exposures."""
    names = ["0000p001", "0002p001", "3597p001", "3592p001"]
    limits = np.array([[0, 0.25], [0.25, 0.5], [359.75, 360], [359.25, 359.5]])
    cards = [
        fits.Column("BRICKNAME", "8A", array=names),
        fits.Column("RA1", "D", array=limits[:, 0]),
        fits.Column("RA2", "D", array=limits[:, 1]),
        fits.Column("DEC1", "D", array=np.zeros(4)),
        fits.Column("DEC2", "D", array=np.full(4, 0.25)),
    ]
    paths = {"bricks": tmp_path / "survey-bricks.fits.gz"}
    fits.BinTableHDU.from_columns(cards).writeto(paths["bricks"])
    exposures = {"g": [0, 3, 1], "r": [0, 0, 1], "i": [0, 0, 0], "z": [0, 0, 1]}
    cards = [fits.Column("brickname", "8A", array=names[:3])]
    cards += [fits.Column(f"nexp_{b}", "I", array=v) for b, v in exposures.items()]
    paths["covered"] = tmp_path / "south" / "survey-bricks-dr10-south.fits.gz"
    paths["covered"].parent.mkdir()
    fits.BinTableHDU.from_columns(cards).writeto(paths["covered"])
    return paths


def test_coverage_is_of_bricks_with_exposures(bricks: dict[str, Path]) -> None:
    boxes = LegacySurvey("dr10").coverage(bricks)
    assert boxes.tolist() == [[0.25, 0.5, 0.0, 0.25], [359.75, 360.0, 0.0, 0.25]]
    assert boxes.dtype == np.float64
    with pytest.raises(ValueError, match="the table of bricks \\('covered' of the reference files\\) is wanted"):
        LegacySurvey("dr10").coverage({"bricks": bricks["bricks"]})


def test_tractor_files_are_those_of_covered_bricks_that_are_listed(bricks: dict[str, Path], tmp_path: Path) -> None:
    survey = LegacySurvey("dr10", catalog="tractor")
    lists = {survey.layout.tractor_list(b): {f"tractor-{b}.fits": "0"} for b in ("0002p001", "3597p001")}
    zero = int(healpy.ang2pix(64, 0.0, 0.1, nest=True, lonlat=True))
    files = survey.catalog_files(Folder(lists, tmp_path), [zero])
    assert [f.path for f in files] == [
        "south/tractor/000/tractor-0002p001.fits",
        "south/tractor/359/tractor-3597p001.fits",
    ]
    lists[survey.layout.tractor_list("3597p001")] = {"tractor-3599p001.fits": "0"}
    listed = survey.catalog_files(Folder(lists, tmp_path), [zero])
    assert [f.path for f in listed] == [files[0].path], "a brick that is not listed was not published"
    with pytest.raises(ValueError, match="the archive has no south/tractor/000/"):
        survey.catalog_files(Folder({}, tmp_path), [zero])


def test_payload_is_of_the_owning_brick_and_forced_positions_are_looked_up(bricks: dict[str, Path]) -> None:
    sources = pa.table(
        {
            "key": pa.array([1, 2, 3, 4, 5, 6], pa.int64()),
            "ra": [0.3, 0.249, 0.3, 359.9, 0.1, 180.0],
            "dec": [0.1, 0.1, 0.25, 0.1, 0.1, 0.0],
            "brickname": pa.array(["0002p001", "0002p001", None, None, None, None]),
        }
    )
    groups = LegacySurvey("dr10").payload_groups(sources, "legacysurvey.image", bricks)
    assert [g.rows.tolist() for g in groups] == [[0, 1], [3]], "no exposures, beyond the top, no brick: in no group"
    files = groups[1].files
    assert set(files) == {f"{p}-{b}" for p in ("image", "invvar", "psfsize") for b in BANDS} | {"maskbits"}
    assert files["psfsize-i"].path == "south/coadd/359/3597p001/legacysurvey-3597p001-psfsize-i.fits.fz"
    assert (
        files["psfsize-i"].checksum_list
        == "south/coadd/359/3597p001/legacysurvey_dr10_south_coadd_359_3597p001.sha256sum"
    )
    assert {
        r for r in LegacySurvey("dr9-south").payload_groups(sources.slice(0, 1), "legacysurvey.image", {})[0].files
    } == {
        *(f"{p}-{b}" for p in ("image", "invvar", "psfsize") for b in "grz"),
        "maskbits",
    }
    with pytest.raises(ValueError, match="no payload modality"):
        LegacySurvey("dr10").payload_groups(sources, "legacysurvey.ebv", bricks)


# settings and modalities


def test_modalities_name_columns_that_exist_and_aions_tokens() -> None:
    survey = LegacySurvey("dr10", cutout_pixels=96)
    columns = {c.name for c in survey.columns}
    for m in survey.modalities:
        assert m.name.startswith("legacysurvey.") and m.token_key.startswith("tok_")
        assert m.payload or ({m.column, m.ivar} - {None}) <= columns
    assert survey.modality("legacysurvey.image").shape == (4, 96, 96)
    assert LegacySurvey("dr10").modality("legacysurvey.image").shape == (4, 160, 160)
    assert set(survey.bands.values()) <= columns and survey.rank == 0
    assert len({m.token_key for m in survey.modalities}) == len(survey.modalities) == 13


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"catalog": "tractor-i"}, "choose 'sweep' or 'tractor'"),
        ({"cutout_pixels": 0}, "wanted at least 1"),
        ({"epoch_range": (2020, 2010)}, "ends before it begins"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LegacySurvey("dr10", **options)


# reading


def small(path: Path, **changed: Any) -> Path:
    n = len(changed.get("RA", [1, 2, 3]))
    values: dict[str, tuple[str, Any]] = {
        "RELEASE": ("I", [10000] * n),
        "BRICKID": ("J", np.arange(n) + 330000),
        "BRICKNAME": ("8A", ["0001p000"] * n),
        "OBJID": ("J", np.arange(n)),
        "TYPE": ("3A", ["EXP"] * n),
        "RA": ("D", changed.pop("RA", np.arange(n) + 0.5)),
        "DEC": ("D", np.zeros(n)),
        "REF_ID": ("K", [0] * n),
    }
    for name, given_ in changed.items():
        values[name] = given_ if isinstance(given_, tuple) else (values[name][0], given_)
    fits.BinTableHDU.from_columns([fits.Column(k, f, array=v) for k, (f, v) in values.items()]).writeto(path)
    return path


def test_edges_of_the_sky_and_long_identifiers_are_read_as_they_are(tmp_path: Path) -> None:
    ids = [(1 << 62) + 1, 0, 6917529027641081857]
    path = small(tmp_path / "sweep.fits", RA=[360.0, np.nan, 359.99999999], REF_ID=ids)
    table = LegacySurvey("dr10").read(path)
    assert table.schema.names[: len(STANDARD_SCHEMA)] == STANDARD_SCHEMA.names
    assert table.schema.field("ra").metadata == STANDARD_SCHEMA.field("ra").metadata
    assert table.column("ra")[0].as_py() == 0.0 and np.isnan(table.column("ra")[1].as_py())
    assert table.column("ref_id").to_pylist() == [ids[0], None, ids[2]]
    assert first_failed(LegacySurvey.valid, table).to_pylist() == [None, "position", None]
    assert table.column("epoch_kind").to_pylist() == ["interval"] * 3
    assert LegacySurvey("dr10", epoch_range=(2001, 2002)).read(path).column("epoch_max").to_pylist() == [2002.0] * 3


def test_only_gaia_dr3s_identifiers_name_a_source_of_gaia(tmp_path: Path) -> None:
    largest = 2**63 - 1
    cats = ["GE", "G3", "G2", "T2", "L3", "", "GE", "GE", "ge"]
    ids = [largest, 5, 6, 7, 8, 9, 0, -1, 10]
    path = small(tmp_path / "sweep.fits", RA=np.arange(9) + 0.5, REF_ID=ids, REF_CAT=("2A", cats))
    survey = LegacySurvey("dr10")
    assert link_columns(survey, survey.read(path))["link.gaia"].to_pylist() == [largest, 5, *[None] * 7]
    without = small(tmp_path / "without.fits", REF_ID=[5, 6, 7])
    assert link_columns(survey, survey.read(without))["link.gaia"].to_pylist() == [None] * 3, "no REF_CAT to tell"


def test_a_key_tells_the_release_it_was_issued_in() -> None:
    numbers = np.array([8000, 8001, 9010, 9011, 9012, 10000, 10002, 9999])
    keys = pack_key(numbers, np.full(8, 1048575), np.full(8, 4194303))
    issued = {name: numbers[LegacySurvey(name).issued(keys)].tolist() for name in LegacySurvey.releases}
    assert issued == {
        "dr10": [10000, 10002],
        "dr9-north": [9011],
        "dr9-south": [9010, 9012],
        "dr8-north": [8001],
        "dr8-south": [8000],
    }


def test_a_slice_is_the_slice_of_the_whole(tmp_path: Path) -> None:
    survey = LegacySurvey("dr10")
    path = small(tmp_path / "sweep.fits", RA=np.arange(50) / 7)
    whole = survey.read(path)
    assert survey.n_rows(path) == 50
    for start, stop in [(0, 50), (0, 1), (13, 29), (49, 50), (20, 20)]:
        assert survey.read(path, (start, stop)).equals(whole.slice(start, stop - start))


def test_overflow_names_file_and_row(tmp_path: Path) -> None:
    path = small(tmp_path / "sweep.fits", BRICKID=[1, 2, 1 << 20])
    with pytest.raises(ValueError, match=r"legacysurvey dr10: sweep.fits, row 2: brickid 1048576 does not fit"):
        LegacySurvey("dr10").read(path, (1, 3))


def test_a_column_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sweep.fits: column 'MASKBITS' holds .*wanted int32"):
        LegacySurvey("dr10").read(small(tmp_path / "sweep.fits", MASKBITS=("E", [0.5, 1, 2])))


def test_a_targetid_that_is_not_its_bricks_is_refused(tmp_path: Path) -> None:
    path = small(tmp_path / "a.fits", TARGETID=("K", [39627652591521181] * 3))
    table = fits.getdata(path, 1)
    columns = [c for c in table.columns if c.name != "RELEASE"]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "b.fits")
    with pytest.raises(ValueError, match=r"b.fits, row 0: TARGETID 39627652591521181 is not of its BRICKID and OBJID"):
        LegacySurvey("dr10").read(tmp_path / "b.fits")


# real files: what of each is read

FULL, PART = "read fully", "read in part"
NULL_IN_DR8 = {
    "fitbits",
    "shape_r",
    "shape_e1",
    "sersic",
    "ref_epoch",
    "flux_i",
    "nobs_i",
    "psfsize_g",
    "brick_primary",
}
REAL = [
    ("sweeps-dr8/sweep-310m005-320p000.fits", "dr8-south", FULL, NULL_IN_DR8),
    ("sweeps-dr8/sweep-320m005-330p000.fits", "dr8-south", FULL, NULL_IN_DR8),
    ("sweeps-dr8/sweep-330m005-340p000.fits", "dr8-south", FULL, NULL_IN_DR8),
    ("sweeps-dr8/sweep-190m005-200p000.fits", "dr8-south", FULL, NULL_IN_DR8),
    ("tractor-dr8/tractor-3301m002.fits", "dr8-south", FULL, NULL_IN_DR8),
    ("tractor-dr8/tractor-3301m007.fits", "dr8-south", FULL, NULL_IN_DR8),
    ("tractor-dr8/tractor-3303p000.fits", "dr8-south", FULL, NULL_IN_DR8),
    ("tractor-dr9/north/tractor/105/tractor-1054p567.fits", "dr9-north", FULL, {"flux_i", "nobs_i", "psfsize_i"}),
    # DESI's targets: no RELEASE (taken from TARGETID), no TYPE, no errors: positions and fluxes in g, r, z
    (
        "hosts-dr8/selected_bgsbright_targets_dr8.fits",
        "dr8-south",
        PART,
        {"type", "ebv", "flux_w1", "nobs_g", "ref_cat"},
    ),
    # values under the wrong names (MASKBITS holds PMRA, REF_EPOCH holds PMDEC), and no RELEASE
    (
        "hosts-dr8/selected_hosts_dr8_north.fits",
        "dr8-north",
        r"has no column 'RELEASE': .*a subset of columns\?",
        set(),
    ),
    (
        "hosts-dr8/selected_hosts_dr8_south.fits",
        "dr8-south",
        r"has no column 'RELEASE': .*a subset of columns\?",
        set(),
    ),
    *(
        (f"viewer-cutouts/{n}", "dr9-south", "holds no binary table; is it a catalogue file", set())
        for n in (
            "astroclip_test_image_357.9087_-54.8817.fits",
            "gz-decals/example_c_DR3_0.0940_-0.9885.fits",
            "gz-decals/example_bad_pix_DR3_147.4567_1.0926.fits",
        )
    ),
    # a table of bricks is no catalogue of sources; a coadd is no table
    ("coadd-dr6/survey-bricks.fits.gz", "dr8-north", "has no column 'RELEASE'", set()),
    ("coadd-dr6/survey-bricks-dr6.fits.gz", "dr8-north", "has no column 'RELEASE'", set()),
    ("coadd-dr6/metrics/095/blobs-0959p805.fits.gz", "dr8-north", "holds no binary table", set()),
    *(
        (
            f"coadd-dr6/coadd/095/0959p805/legacysurvey-0959p805-{p}-{b}.fits.fz",
            "dr8-north",
            "holds no binary table",
            set(),
        )
        for p in ("image", "invvar", "nexp")
        for b in "gz"
    ),
]


@pytest.mark.parametrize(("name", "release", "fate", "null"), REAL, ids=[r[0].rsplit("/", 1)[1] for r in REAL])
def test_real_files(real_data: Path, name: str, release: str, fate: str, null: set[str]) -> None:
    path = real_data / "legacysurvey" / name
    survey = LegacySurvey(release)
    if fate not in (FULL, PART):
        with pytest.raises(ValueError, match=fate) as caught:
            survey.read(path)
        assert path.name in str(caught.value)
        return
    table = survey.read(path)
    raw = fits.getdata(path, 1)
    names = {n.lower(): n for n in raw.dtype.names}
    assert table.num_rows == survey.n_rows(path) == len(raw)
    release_of = raw["RELEASE"] if "release" in names else raw["TARGETID"] >> 42
    wanted = [
        (int(a) << 42) + (int(b) << 22) + int(c)
        for a, b, c in zip(release_of, raw["BRICKID"], raw["OBJID"], strict=True)
    ]
    assert table.column("key").to_pylist() == wanted and len(set(wanted)) == len(wanted)
    np.testing.assert_array_equal(table.column("ra").to_numpy(), raw["RA"])
    np.testing.assert_array_equal(table.column("dec").to_numpy(), raw["DEC"])
    for column in survey.columns:
        values = table.column(column.name).to_pylist()
        if column.name not in names:
            assert all(v is None for v in values) or column.name == "release"
            continue
        for got, there in zip(values, raw[names[column.name]], strict=True):
            if column.zero_is_null and there == 0:
                assert got is None
            else:
                assert got == (str(there).strip() if isinstance(there, str) else there), column.name
    assert null == {n for n in null if table.column(n).null_count == len(raw)}
    stars = (
        np.isin(np.char.strip(raw["REF_CAT"].astype(str)), ["G2", "GE", "G3"])
        if "ref_cat" in names
        else np.zeros(len(raw))
    )
    moving = np.array([k == "gaia" for k in table.column("epoch_kind").to_pylist()])
    np.testing.assert_array_equal(moving, stars.astype(bool) & (raw["PMRA"] != 0))
    assert table.column("pmra").null_count == (~moving).sum() == table.column("epoch").null_count
    if "mjd_min" in names:
        years = 2000 + (raw["MJD_MIN"] - 51544.5) / 365.25
        np.testing.assert_allclose(table.column("epoch_min").to_numpy(), years, rtol=1e-14)
    if "ra_ivar" in names:
        ok = raw["RA_IVAR"] > 0
        sigma = 3600 / np.sqrt(raw["RA_IVAR"][ok].astype(float)) * np.cos(np.radians(raw["DEC"][ok]))
        np.testing.assert_allclose(table.column("ra_error").to_numpy()[ok], sigma, rtol=1e-6)
    if fate == FULL:
        assert (
            first_failed(survey.valid, table).null_count > 0 and first_failed(survey.select["grz"], table) is not None
        )
    with pytest.raises(MissingColumn, match=r"has no column 'NOBS_I': .*no i band \(use the profile `grz` or `all`\)"):
        survey.read(path, needed=[c for cut in survey.select["aion"][1:2] for c in cut.columns if c.endswith("_i")])


def test_bricks_as_published_hold_the_position_of_their_own_centre(real_data: Path) -> None:
    """DR6's tables have no limits beside the exposures and count in g, r, z; the brick has none in g that count."""
    folder = real_data / "legacysurvey/coadd-dr6"
    reference = {"bricks": folder / "survey-bricks.fits.gz", "covered": folder / "survey-bricks-dr6.fits.gz"}
    survey = LegacySurvey("dr8-north")
    raw = fits.getdata(reference["covered"], 1)
    boxes = survey.coverage(reference)
    covered = any(raw[f"nexp_{b}"][0] > 0 for b in "grz")
    assert len(boxes) == int(covered)
    brick = fits.getdata(reference["bricks"], 1)[0]
    one = pa.table({"ra": [brick["RA"]], "dec": [brick["DEC"]], "brickname": pa.array([None], pa.string())})
    groups = survey.payload_groups(one, "legacysurvey.image", reference)
    assert len(groups) == int(covered)
    if covered:
        assert boxes[0].tolist() == [brick[c] for c in ("RA1", "RA2", "DEC1", "DEC2")]
        assert "north/coadd/095/0959p805" in groups[0].files["maskbits"].path
