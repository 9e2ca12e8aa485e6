"""SDSS DR17, read from tables made here and from real files.

| real file | what is said of it |
|---|---|
| spec/spec-*.fits (7) | SPECOBJ row read fully; spectrum read fully; spec-0907 fails `platequality` (marginal) |
| spPlate/spPlate-4055-55359-0020.fits | flux and grid alone; as a plate refused (1 HDU), as a table too |
"""

import numpy as np
import pyarrow as pa
import pytest
import speclite.filters
from astropy import units as u
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

from skycairn.catalogs.sdss import Sdss, good_redshift, spectrum_file
from skycairn.catalogs.sdsskey import unpack_key
from skycairn.catalogs.sdssspectra import N_PIXELS, read_spec, wavelength
from skycairn.catalogs.survey import MissingColumn, first_failed

ROW = {
    "SURVEY": "boss  ",
    "RUN2D": "v5_13_2",
    "PLATE": 9200,
    "MJD": 57_000,
    "FIBERID": 7,
    "PLATEQUALITY": "good    ",
    "TARGETTYPE": "SCIENCE ",
    "SPECPRIMARY": 1,
    "SPECOBJID": " 10358613418752270336",
    "PLUG_RA": 10.0,
    "PLUG_DEC": -5.0,
    "CLASS": "QSO   ",
    "Z": 2.5,
    "Z_ERR": 1e-4,
    "ZWARNING": 0,
    "SN_MEDIAN_ALL": 5.0,
    "SPECTROFLUX": [1.0, 2.0, -3.0, 4.0, np.nan],
}
FORMATS = {"PLATE": "J", "MJD": "J", "FIBERID": "J", "SPECPRIMARY": "B", "ZWARNING": "J", "SPECTROFLUX": "5E"}
SCIENCE = {"Z_ERR": "E", "SN_MEDIAN_ALL": "E", "Z_NOQSO": "E", "Z_ERR_NOQSO": "E", "ZWARNING_NOQSO": "J"}


def write(path, rows, drop=()):
    names = [n for n in {k: None for r in rows for k in r} if n not in drop]
    full = [{**ROW, **r} for r in rows]
    columns = []
    for name in names:
        values = [r[name] for r in full]
        kind = {**FORMATS, **SCIENCE}.get(name) or ("24A" if isinstance(values[0], str) else "D")
        columns.append(fits.Column(name, kind, array=values))
    fits.BinTableHDU.from_columns(columns).writeto(path)
    return path


def read(tmp_path, *rows, **options):
    return Sdss("dr17", **options).read(write(tmp_path / "specObj-dr17.fits", [{**ROW, **r} for r in rows]))


def failed(table, profile=None):
    survey = Sdss("dr17")
    return first_failed(survey.select[profile] if profile else survey.valid, table).to_pylist()


def test_a_row(tmp_path):
    row = read(tmp_path, {}).to_pylist()[0]
    assert [v.tolist() for v in unpack_key(np.array([row["key"]]))] == [["v5_13_2"], [9200], [57_000], [7]]
    assert (row["ra"], row["dec"], row["epoch"], row["pmra"]) == (10.0, -5.0, None, None)
    assert (row["epoch_min"], row["epoch_max"], row["epoch_kind"]) == (1998.0, 2010.0, "interval")
    assert (row["survey"], row["class"], row["specobjid"]) == ("boss", "QSO", "10358613418752270336")
    assert row["spectroflux"][:4] == [1.0, 2.0, -3.0, 4.0] and row["spectroflux"][4] is None
    assert row["z_good"] == 2.5 and row["specprimary"] is True


def test_ra_360_is_0(tmp_path):
    table = read(tmp_path, {"PLUG_RA": 360.0}, {"PLUG_RA": np.nan, "FIBERID": 8}, {"PLUG_DEC": 91.0, "FIBERID": 9})
    assert table["ra"][0].as_py() == 0.0
    assert failed(table) == [None, "position", "position"]


def test_fibres_on_no_thing_are_dropped(tmp_path):
    table = read(
        tmp_path,
        {"TARGETTYPE": "SKY     "},
        {"TARGETTYPE": "STANDARD", "FIBERID": 2},
        {"ZWARNING": 1 << 7, "FIBERID": 3},
        {"ZWARNING": 1 << 9, "FIBERID": 4},
        {"ZWARNING": 1, "FIBERID": 5},
        {"ZWARNING": 4, "FIBERID": 6},
    )
    fibre = "zwarning_fibre"
    assert failed(table) == ["targettype", None, fibre, fibre, fibre, None]


def test_cuts_at_their_borders(tmp_path):
    table = read(
        tmp_path,
        {},
        {"SPECPRIMARY": 0},
        {"TARGETTYPE": "STANDARD"},
        {"PLATEQUALITY": "marginal"},
        {"PLATEQUALITY": "        "},
        {"ZWARNING": 4},
        {"SN_MEDIAN_ALL": 1.0},
        {"SN_MEDIAN_ALL": np.nan},
    )
    assert failed(table, "aion") == [None, "specprimary", "science", "platequality", "platequality", None, None, None]
    assert failed(table, "strict")[5:] == ["good_z", "sn", "sn"]
    assert failed(table, "all") == [None] * 8


def test_a_run_without_a_code_is_an_error_with_its_row_and_dropped_where_no_thing_is(tmp_path):
    with pytest.raises(ValueError, match=r"specObj-dr17\.fits row 1: RUN2D 'master'"):
        read(tmp_path, {}, {"RUN2D": "master"})


def test_a_sky_fibre_without_a_key_is_only_dropped(tmp_path):
    assert failed(read(tmp_path, {"RUN2D": "master", "TARGETTYPE": "SKY"}))[0] in ("key", "targettype")


def test_a_file_that_is_no_catalogue(tmp_path):
    with pytest.raises(MissingColumn, match="'ZWARNING'"):
        Sdss("dr17").read(write(tmp_path / "x.fits", [ROW], drop=("ZWARNING",)))
    with pytest.raises(MissingColumn, match="'PLATEQUALITY'"):
        Sdss("dr17").read(write(tmp_path / "y.fits", [ROW], drop=("PLATEQUALITY",)), needed=["platequality"])


def test_rows_are_read_in_slices(tmp_path):
    path = write(tmp_path / "specObj-dr17.fits", [{**ROW, "FIBERID": i} for i in range(1, 6)])
    survey = Sdss("dr17")
    assert survey.n_rows(path) == 5
    some = survey.read(path, rows=(2, 4))
    assert some["fiberid"].to_pylist() == [3, 4] and some["row"].to_pylist() == [2, 3]


def test_the_redshift_of_a_boss_galaxy_is_of_the_fit_without_quasars():
    columns = {
        "z": np.array([0.5, 0.5, 3.0, np.nan, 0.5]),
        "z_err": np.array([1e-4, 1e-4, 1e-4, 1e-4, 1e-4]),
        "zwarning": np.array([4, 4, 0, 0, 0]),
        "class": np.array(["GALAXY", "GALAXY", "QSO", "STAR", "GALAXY"]),
        "z_noqso": np.array([0.6, 0.0, 0.1, 0.1, 0.7]),
        "z_err_noqso": np.array([2e-4, 0.0, 1e-4, 1e-4, -4.0]),
        "zwarning_noqso": np.array([0, 0, 0, 0, 4]),
    }
    z, error = good_redshift(columns, np.array(["boss", "boss", "eboss", "sdss", "boss"]))
    np.testing.assert_array_equal(z, [0.6, np.nan, 3.0, np.nan, np.nan])
    np.testing.assert_array_equal(error, [2e-4, np.nan, 1e-4, np.nan, np.nan])


def spectra_table(rows):
    kinds = {"key": pa.int64(), "ra": pa.float64(), "dec": pa.float64(), "specprimary": pa.bool_()}
    kinds |= {"zwarning": pa.int32(), "sn_median_all": pa.float32()}
    return pa.table({n: pa.array([r[n] for r in rows], k) for n, k in kinds.items()})


def spectrum(key, ra, dec=0.0, primary=False, zwarning=0, sn=1.0):
    named = {"key": key, "ra": ra, "dec": dec, "specprimary": primary, "zwarning": zwarning, "sn_median_all": sn}
    return named


def test_repeats_across_ra_0_and_at_a_pole():
    arcsec = 1 / 3600
    rows = [
        spectrum(1, 360 - 0.5 * arcsec),
        spectrum(2, 0.5 * arcsec, primary=True),
        spectrum(3, 3 * arcsec),
        spectrum(4, 0.0, 90 - 0.4 * arcsec, sn=3.0),
        spectrum(5, 180.0, 90 - 0.4 * arcsec, zwarning=4, sn=9.0),
        spectrum(6, 45.0, 45.0, sn=None),
    ]
    assert Sdss("dr17").repeats(spectra_table(rows)).tolist() == [1, 1, 2, 3, 3, 5]
    assert len(Sdss("dr17").repeats(spectra_table([]))) == 0


@given(
    st.permutations(range(8)),
    st.lists(st.floats(0, 4), min_size=8, max_size=8),
    st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_repeats_do_not_hang_on_the_order_of_rows(order, places, primary):
    rows = [spectrum(i, p / 3600, primary=b) for i, (p, b) in enumerate(zip(places, primary, strict=True))]
    one = Sdss("dr17").repeats(spectra_table(rows))
    two = Sdss("dr17").repeats(spectra_table([rows[i] for i in order]))
    assert {order[i]: order[p] for i, p in enumerate(two)} == dict(enumerate(one.tolist()))


def test_files_of_spectra(tmp_path):
    assert spectrum_file("spplate", "26", 266, 51_630) == "sdss/spectro/redux/26/0266/spPlate-0266-51630.fits"
    eboss = "eboss/spectro/redux/v5_13_2"
    assert spectrum_file("spplate", "v5_13_2", 10_211, 58_000) == f"{eboss}/10211/spPlate-10211-58000.fits"
    assert spectrum_file("lite", "v5_13_2", 9200, 57_000, 3).endswith("spectra/lite/9200/spec-9200-57000-0003.fits")
    assert spectrum_file("full", "103", 2640, 54_806, 3).endswith("103/spectra/2640/spec-2640-54806-0003.fits")
    nights = read(tmp_path, {}, {"MJD": 57_001}, {"FIBERID": 1000})
    groups = Sdss("dr17").payload_groups(nights, "sdss.spectrum", {})
    assert [(g.rows.tolist(), g.files["spectra"].path[-10:-5]) for g in groups] == [([0, 2], "57000"), ([1], "57001")]


def test_a_plate_that_is_not_there_is_absent(tmp_path):
    table = read(tmp_path, {}, {"FIBERID": 8})
    found = Sdss("dr17").extract("sdss.spectrum", table, {}, frozenset())
    assert found["status"].to_pylist() == ["file_absent"] * 2
    assert found["flux"].null_count == 2 and found["key"] == table["key"]


@pytest.mark.parametrize("options", [{"spectra": "plates"}, {"epoch_range": (2010.0, 1998.0)}])
def test_options_are_checked(options):
    with pytest.raises(ValueError, match="sdss"):
        Sdss("dr17", **options)


def real_spectra(real_data):
    return sorted((real_data / "sdss/spec").glob("spec-*.fits"))


def test_real_files_as_the_table_says(real_data):
    survey, cuts = Sdss("dr17", spectra="lite"), {}
    for path in real_spectra(real_data):
        table = survey.read(path)
        assert failed(table) == [None]
        plate, mjd, fiber = (int(n) for n in path.stem.split("-")[1:])
        assert [v[0] for v in unpack_key(table["key"].to_numpy())] == ["26", plate, mjd, fiber]
        cuts[path.stem] = failed(table, "aion")[0]
        found = survey.extract("sdss.spectrum", table, {"spectra": path}, frozenset())
        assert found["status"][0].as_py() is None and len(found["flux"][0]) == N_PIXELS
    assert len(cuts) == 7 and {k for k, v in cuts.items() if v} == {"spec-0907-52373-0419"}
    with pytest.raises(ValueError, match="no binary table"):
        survey.read(real_data / "sdss/spPlate/spPlate-4055-55359-0020.fits")


@pytest.mark.parametrize("band", "gri")
def test_real_spectra_have_the_flux_that_the_file_says_their_fibre_had(real_data, band):
    """SPECTROFLUX is synthetic photometry of the spectrum, calibrated to PSF magnitudes; in nanomaggies."""
    curve, ratios = speclite.filters.load_filter(f"sdss2010-{band}"), []
    for path in real_spectra(real_data):
        row = Sdss("dr17").read(path).to_pylist()[0]
        found = read_spec(path, row["plate"], row["mjd"], row["fiberid"])
        good = ~found.mask[0]
        flux = np.interp(wavelength(), wavelength()[good], found.flux[0, good])
        light = flux * 1e-17 * u.Unit("erg / (s cm2 Angstrom)")
        light, at = curve.pad_spectrum(light, wavelength() * u.AA, method="edge")
        wanted = row["spectroflux"]["ugriz".index(band)]
        ratios.append(10 ** (-0.4 * (float(curve.get_ab_magnitude(light, at)) - 22.5)) / wanted)
    assert np.median(ratios) == pytest.approx(1, abs=0.03)
    assert np.abs(np.array(ratios) - 1).max() < 0.06
