import csv
import gzip
import io
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import healpy
import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits
from astropy.table import Table

from skycairn.catalogs.gaia import XP, Gaia, gaia_hpx, read_xp, touched_pixels
from skycairn.catalogs.survey import STANDARD_SCHEMA, MissingColumn, RemoteFile, first_failed

VECTOR = 5937083312263887616

GOOD: Mapping[str, str] = {
    "source_id": str(VECTOR),
    "ref_epoch": "2016.0",
    "ra": "251.51920772923995",
    "ra_error": "0.5",
    "dec": "-51.50535255488219",
    "dec_error": "0.25",
    "parallax": "2.5",
    "parallax_error": "0.1",
    "parallax_over_error": "25",
    "pmra": "-3.5",
    "pmdec": "4.5",
    "ruwe": "1.0",
    "astrometric_params_solved": "31",
    "duplicated_source": "False",
    "phot_g_mean_flux": "100.5",
    "phot_bp_mean_flux": "50.5",
    "phot_rp_mean_flux": "70.5",
    "has_xp_continuous": "True",
}
XP_GOOD: Mapping[str, str] = {
    "source_id": str(VECTOR),
    **{f"{b}_coefficients": f'"[{", ".join(str(i / 4) for i in range(55))}]"' for b in ("bp", "rp")},
    **{f"{b}_coefficient_errors": f'"[{", ".join(["0.5"] * 55)}]"' for b in ("bp", "rp")},
    "bp_n_relevant_bases": "12",
    "rp_n_relevant_bases": "13",
}


def write(path: Path, good: Mapping[str, str], changes: Iterable[Mapping[str, str]], drop: Iterable[str] = ()) -> Path:
    kept = [k for k in good if k not in set(drop)]
    lines = [",".join(kept), *(",".join({**good, **change}[k] for k in kept) for change in changes)]
    text = ("# %ECSV 1.0\n" + "\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def source(tmp_path: Path, *changes: Mapping[str, str], drop: Iterable[str] = ()) -> Path:
    return write(tmp_path / "GaiaSource_000000-003111.csv.gz", GOOD, changes, drop)


def spectra(tmp_path: Path, *changes: Mapping[str, str]) -> Path:
    return write(tmp_path / "XpContinuousMeanSpectrum_000000-003111.csv.gz", XP_GOOD, changes)


class TestRead:
    def test_standard_columns(self, tmp_path: Path) -> None:
        gaia = Gaia("dr3")
        table = gaia.read(source(tmp_path, {}, {"pmra": "null", "pmdec": "", "parallax": "NaN"}))
        assert table.column_names == [*STANDARD_SCHEMA.names, *(c.name for c in gaia.columns)]
        assert [f.type for f in table.schema] == [*STANDARD_SCHEMA.types, *(c.type for c in gaia.columns)]
        first, second = table.to_pylist()
        assert first["key"] == first["source_id"] == VECTOR
        assert (first["ra"], first["ra_deg"]) == (251.51920772923995, 251.51920772923995)
        # mas in the file, arcsec here
        assert (first["ra_error"], first["dec_error"]) == (pytest.approx(0.0005), pytest.approx(0.00025))
        assert (first["pmra"], first["pmdec"], first["epoch"]) == (-3.5, 4.5, 2016.0)
        assert (second["pmra"], second["pmdec"], second["epoch"], second["parallax"]) == (None, None, None, None)
        for row in (first, second):
            assert (row["epoch_min"], row["epoch_max"], row["epoch_kind"]) == (2016.0, 2016.0, "gaia")
        assert table["row"].to_pylist() == [0, 1]

    def test_half_a_motion_is_none(self, tmp_path: Path) -> None:
        row = Gaia("dr3").read(source(tmp_path, {"pmdec": "null"})).to_pylist()[0]
        assert (row["pmra"], row["pmdec"], row["epoch"]) == (None, None, None)

    def test_a_ratio_that_is_not_in_the_file_is_computed(self, tmp_path: Path) -> None:
        path = source(tmp_path, {}, {"parallax": ""}, {"parallax_error": "0"}, drop=["parallax_over_error"])
        table = Gaia("dr3").read(path, needed=["parallax_over_error"])
        assert table["parallax_over_error"].to_pylist() == [25, None, None]

    def test_another_releases_file(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"row 1: ref_epoch 2015.5, wanted 2016.0; is it of another release"):
            Gaia("dr3").read(source(tmp_path, {}, {"ref_epoch": "2015.5"}))

    @pytest.mark.parametrize("name", ["source_id", "ra", "pmra"])
    def test_a_column_without_which_no_row_can_be_placed(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(MissingColumn, match=f"GaiaSource_000000-003111.csv.gz has no column '{name}'"):
            Gaia("dr3").read(source(tmp_path, {}, drop=[name]))

    def test_a_column_that_a_cut_needs(self, tmp_path: Path) -> None:
        path = source(tmp_path, {}, drop=["ruwe"])
        assert Gaia("dr3").read(path)["ruwe"].null_count == 1
        with pytest.raises(MissingColumn, match="ruwe"):
            Gaia("dr3").read(path, needed=["ruwe"])

    def test_a_row_without_id(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="row 1: has no source_id"):
            Gaia("dr3").read(source(tmp_path, {}, {"source_id": "null"}))

    def test_no_rows(self, tmp_path: Path) -> None:
        table = Gaia("dr3").read(source(tmp_path), companions={"xp": spectra(tmp_path)})
        assert table.num_rows == 0 and table.schema.field("bp_coefficients").type == XP

    def test_read_whole(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="read whole"):
            Gaia("dr3").read(source(tmp_path, {}), (0, 1))


class TestSpectra:
    def test_join_is_by_source_id(self, tmp_path: Path) -> None:
        path = source(
            tmp_path, {"source_id": "1"}, {"source_id": "2", "has_xp_continuous": "False"}, {"source_id": "3"}
        )
        xp = spectra(
            tmp_path,
            {"source_id": "3", "rp_n_relevant_bases": "30"},
            {"source_id": "9"},
            {"source_id": "1", "bp_coefficients": "", "bp_coefficient_errors": "null", "bp_n_relevant_bases": ""},
        )
        table = Gaia("dr3").read(path, companions={"xp": xp})
        assert table["rp_n_relevant_bases"].to_pylist() == [13, None, 30]
        ramp = [i / 4 for i in range(55)]
        # a missing band is null, never 0; the other band of that source is there
        assert table["bp_coefficients"].to_pylist() == [None, None, ramp]
        assert table["rp_coefficients"].to_pylist() == [ramp, None, ramp]
        assert table["bp_coefficient_errors"].null_count == 2 and table["bp_n_relevant_bases"].null_count == 2
        assert table["xp_file_absent"].to_pylist() == [False, False, False]

    @pytest.mark.parametrize("companions", [{"xp": None}, None])
    def test_a_lost_file(self, tmp_path: Path, companions: Mapping[str, Path | None] | None) -> None:
        path = source(tmp_path, {}, {"has_xp_continuous": "False"}, {"has_xp_continuous": ""})
        table = Gaia("dr3").read(path, companions=companions)
        assert table["xp_file_absent"].to_pylist() == [True, False, False]
        assert table["bp_coefficients"].null_count == 3

    def test_a_file_that_lacks_a_source_which_has_a_spectrum(self, tmp_path: Path) -> None:
        table = Gaia("dr3").read(source(tmp_path, {}), companions={"xp": spectra(tmp_path, {"source_id": "9"})})
        assert table["xp_file_absent"].to_pylist() == [True]

    def test_other_bases_are_refused(self, tmp_path: Path) -> None:
        short = '"[' + ", ".join(["1"] * 51) + ']"'
        with pytest.raises(ValueError, match=r"bp_coefficients row 1 \(source_id 7\) has 51 numbers, wanted 55"):
            read_xp(spectra(tmp_path, {"source_id": "8"}, {"source_id": "7", "bp_coefficients": short}))

    def test_one_source_twice(self, tmp_path: Path) -> None:
        xp = spectra(tmp_path, {}, {})
        with pytest.raises(ValueError, match=f"source_id {VECTOR} stands in two rows"):
            Gaia("dr3").read(source(tmp_path, {}), companions={"xp": xp})

    def test_a_cut_file_is_refused(self, tmp_path: Path) -> None:
        xp = spectra(tmp_path, {})
        xp.write_bytes(xp.read_bytes()[:-20])
        with pytest.raises(
            ValueError, match=r"XpContinuousMeanSpectrum_000000-003111.csv.gz: cannot be read to its end"
        ):
            Gaia("dr3").read(source(tmp_path, {}), companions={"xp": xp})


VALID = [
    ({"source_id": "1"}, None),
    ({"source_id": "0"}, "source_id"),
    ({"source_id": "-5"}, "source_id"),
    ({"ra": "0.0"}, None),
    ({"ra": "359.9999999"}, None),
    ({"ra": "360.5"}, "position"),
    ({"ra": "-0.001"}, "position"),
    ({"ra": "null"}, "position"),
    ({"dec": "90"}, None),
    ({"dec": "-90.001"}, "position"),
    ({"dec": "NaN"}, "position"),
    ({"duplicated_source": "True"}, None),
    ({"parallax": "-3"}, None),
]
SELECT = [
    ({}, None, None),
    ({"parallax_over_error": "10"}, "parallax", "parallax"),
    ({"parallax_over_error": "10.00001"}, None, None),
    ({"parallax_over_error": "-25"}, "parallax", "parallax"),
    ({"parallax_over_error": "NaN"}, "parallax", "parallax"),
    ({"has_xp_continuous": "False"}, "xp", "xp"),
    ({"has_xp_continuous": ""}, "xp", "xp"),
    ({"phot_g_mean_flux": ""}, "flux_g", "flux_g"),
    ({"phot_bp_mean_flux": "null"}, "flux_bp", "flux_bp"),
    ({"phot_rp_mean_flux": "NaN"}, "flux_rp", "flux_rp"),
    ({"phot_bp_mean_flux": "-1"}, None, None),
    ({"ruwe": "1.4"}, None, "ruwe"),
    ({"ruwe": "1.3999"}, None, None),
    ({"ruwe": ""}, None, "ruwe"),
    ({"astrometric_params_solved": "95"}, None, None),
    ({"astrometric_params_solved": "3"}, None, "solution"),
    ({"astrometric_params_solved": ""}, None, "solution"),
    ({"duplicated_source": "True"}, None, "duplicated"),
    ({"duplicated_source": ""}, None, "duplicated"),
]


def test_valid_cuts_at_their_borders(tmp_path: Path) -> None:
    table = Gaia("dr3").read(source(tmp_path, *(change for change, _ in VALID)))
    assert first_failed(Gaia.valid, table).to_pylist() == [reason for _, reason in VALID]


def test_select_cuts_at_their_borders(tmp_path: Path) -> None:
    table = Gaia("dr3").read(source(tmp_path, *(change for change, _, _ in SELECT)))
    assert first_failed(Gaia.select["aion"], table).to_pylist() == [aion for _, aion, _ in SELECT]
    assert first_failed(Gaia.select["strict"], table).to_pylist() == [strict for _, _, strict in SELECT]
    assert first_failed(Gaia.select["all"], table).null_count == len(SELECT)


def test_modalities_name_columns_that_there_are() -> None:
    columns = {c.name: c for c in Gaia.columns}
    for m in Gaia.modalities:
        assert {c for c in (m.column, m.error, m.absent_flag) if c} <= columns.keys()
        assert m.unit == columns[m.column or ""].unit
    assert len({m.token_key for m in Gaia.modalities}) == len(Gaia.modalities) == 8


class TestSourceId:
    def test_published_vector(self) -> None:
        assert gaia_hpx(VECTOR, 8) == 674968
        assert healpy.ang2pix(256, 251.51920772923995, -51.50535255488219, nest=True, lonlat=True) == 674968

    @pytest.mark.parametrize("order", [0, 6, 12])
    def test_exact_near_the_largest(self, order: int) -> None:
        last = 12 * 4**order - 1
        low = last << (35 + 2 * (12 - order))
        assert gaia_hpx(np.array([low - 1, low, low + 2**35 - 1]), order).tolist() == [last - 1, last, last]

    def test_finer_than_the_id(self) -> None:
        with pytest.raises(ValueError, match="0 to 12, not 13"):
            gaia_hpx(1, 13)


class Files:
    def __init__(self, lists: Mapping[str, Mapping[str, str]], there: Iterable[str] = ()) -> None:
        self.lists, self.there = lists, set(there)

    def exists(self, path: str) -> bool:
        return path in self.there

    def names(self, checksum_list: str) -> Mapping[str, str] | None:
        return self.lists.get(checksum_list)

    def local(self, path: str) -> Path:
        raise FileNotFoundError(path)


class TestFiles:
    SUMS = "gaia_source/_MD5SUM.txt"
    XP_SUMS = "Spectroscopy/xp_continuous_mean_spectrum/_MD5SUM.txt"

    def archive(self, ranges: Iterable[tuple[int, int]], xp: Iterable[tuple[int, int]] = ()) -> Files:
        listed = {f"GaiaSource_{a:06d}-{b:06d}.csv.gz": "0" for a, b in ranges}
        spectra = {f"XpContinuousMeanSpectrum_{a:06d}-{b:06d}.csv.gz": "0" for a, b in xp}
        return Files({self.SUMS: {**listed, "_citation.txt": "0"}, self.XP_SUMS: spectra})

    def test_pixels_of_a_cell_and_around_it(self) -> None:
        pixels = touched_pixels([1000])
        assert set(range(16000, 16016)) <= set(pixels.tolist())
        assert len(pixels) == 16 + 20  # a ring of 4 x 4 pixels and its corners
        lon, lat = healpy.pix2ang(256, pixels, nest=True, lonlat=True)
        vectors = healpy.ang2vec(lon, lat, lonlat=True)
        inside = vectors[(pixels >= 16000) & (pixels < 16016)]
        nearest = np.degrees(np.arccos(np.clip(vectors @ inside.T, -1, 1))).min(axis=1)
        assert nearest.max() < 0.4
        assert touched_pixels([]).tolist() == []

    @pytest.mark.parametrize("cell", [0, 4095, 4096, 16384, 12 * 4096 - 1, 11 * 4096])
    def test_pixels_at_poles_and_where_faces_meet(self, cell: int) -> None:
        pixels = touched_pixels([cell])
        assert 16 + 18 <= len(pixels) <= 16 + 20 and pixels[0] >= 0
        # whatever lies a little way off the cell in any direction is in them
        corners = healpy.boundaries(64, cell, step=8, nest=True).T
        centre = np.array(healpy.pix2vec(64, cell, nest=True))
        outside = corners + 0.02 * (corners - centre)
        assert set(healpy.vec2pix(256, *outside.T, nest=True).tolist()) <= set(pixels.tolist())

    def test_files_are_the_ranges_that_touch(self) -> None:
        pixels = touched_pixels([1000])
        inside = pixels[(pixels >= 16000) & (pixels < 16016)]
        ranges = [(int(p), int(p)) for p in np.arange(15000, 17000)]
        got = Gaia("dr3").catalog_files(self.archive(ranges[::-1], ranges[:1010]), [1000, 1000])
        first = [int(f.path.split("_")[-1].split("-")[0]) for f in got]
        assert first == [p for p in pixels.tolist() if 15000 <= p < 17000] and set(inside.tolist()) <= set(first)
        by_first = dict(zip(first, got, strict=True))
        assert by_first[16000] == RemoteFile(
            "gaia_source/GaiaSource_016000-016000.csv.gz",
            self.SUMS,
            "md5",
            (
                (
                    "xp",
                    RemoteFile(
                        "Spectroscopy/xp_continuous_mean_spectrum/XpContinuousMeanSpectrum_016000-016000.csv.gz",
                        self.XP_SUMS,
                        "md5",
                    ),
                ),
            ),
        )
        assert by_first[16015].companions == ()  # no spectra are published for it

    @pytest.mark.parametrize(("span", "wanted"), [((0, 15999), True), ((16015, 20000), True), ((0, 786431), True)])
    def test_wide_ranges(self, span: tuple[int, int], wanted: bool) -> None:
        assert bool(Gaia("dr3").catalog_files(self.archive([span]), [1000])) is wanted

    def test_nothing_there(self) -> None:
        assert Gaia("dr3").catalog_files(self.archive([(500000, 500100)]), [1000]) == []
        assert Gaia("dr3").catalog_files(self.archive([(0, 786431)]), []) == []

    def test_without_the_list(self) -> None:
        with pytest.raises(ValueError, match=r"there is no gaia_source/_MD5SUM.txt, which names the files"):
            Gaia("dr3").catalog_files(Files({}), [1000])


def test_no_option_is_dropped_in_silence() -> None:
    with pytest.raises(ValueError, match="no option 'xp'"):
        Gaia("dr3", xp=True)
    with pytest.raises(ValueError, match="no release 'dr2'"):
        Gaia("dr2")


# What is done with each real file: as a table of sources, as a table of XP spectra.
FULLY, IN_PART = "read fully", "read in part"
DATALINK = "gaia_dr3_source_id_5937083312263887616_dl_products_{}.zip"
REAL = [
    ("archive-gaia_source/gdr3_sm.fits", FULLY, "has no column 'bp_coefficients'"),
    ("astroquery-datalink/1710099405832VAL-result.vot", FULLY, "has no column 'bp_coefficients'"),
    # the archive left every int16 column of this file blank
    ("astroquery-datalink/1712337806100O-result.ecsv", IN_PART, "has no column 'bp_coefficients'"),
    ("xp-continuous/XP_CONTINUOUS_RAW.csv", "has no column 'dec'", FULLY),
    ("xp-continuous/XP_CONTINUOUS_RAW.fits", "has no column 'dec'", FULLY),
    # BP is missing
    ("xp-continuous/XP_CONTINUOUS_RAW_missing_BP_dr3int6.csv", "has no column 'dec'", IN_PART),
    ("xp-sampled/SampledMeanSpectrum.csv", "has no column 'dec'", "has no column 'bp_coefficient"),
    ("xp-sampled/calibrator.csv", "has no column 'dec'", "has no column 'bp_coefficient"),
    ("xp-sampled/calibrator.fits", "has no column 'dec'", "has no column 'bp_coefficient"),
    ("xp-sampled/calibrator_sampling.csv", "has none of the", "has none of the"),
    *((f"astroquery-datalink/{DATALINK.format(k)}", "unpack it", "unpack it") for k in ("csv", "ecsv", "fits", "vot")),
    *((f"{DATALINK.format(k)}:XP_CONTINUOUS", "has no column 'dec'", FULLY) for k in ("csv", "ecsv", "fits", "vot")),
    *(
        (f"{DATALINK.format(k)}:MCMC_MSC", "has no column 'dec'", "has no column 'bp_coefficient")
        for k in ("csv", "ecsv", "fits", "vot")
    ),
    # rows are wavelengths of one source
    (f"{DATALINK.format('csv')}:XP_SAMPLED", "has no column 'pmdec'", "has no column 'bp_coefficient"),
    *((f"{DATALINK.format(k)}:XP_SAMPLED", "has none of the", "has none of the") for k in ("ecsv", "fits", "vot")),
]


def real_file(real_data: Path, tmp_path: Path, name: str) -> Path:
    archive, _, product = name.partition(":")
    if not product:
        return real_data / "gaia" / name
    with zipfile.ZipFile(real_data / "gaia/astroquery-datalink" / archive) as zipped:
        member = next(n for n in zipped.namelist() if n.startswith(product))
        return Path(zipped.extract(member, tmp_path))


@pytest.mark.parametrize(("name", "as_sources", "as_spectra"), REAL, ids=[r[0] for r in REAL])
def test_each_real_file(real_data: Path, tmp_path: Path, name: str, as_sources: str, as_spectra: str) -> None:
    path = real_file(real_data, tmp_path, name)
    if as_sources in (FULLY, IN_PART):
        table = Gaia("dr3").read(path)
        blank = {c for c in table.column_names if table[c].null_count == table.num_rows}
        unheld = {f"{b}_{c}" for b in ("bp", "rp") for c in ("coefficients", "coefficient_errors", "n_relevant_bases")}
        assert blank - unheld <= ({"astrometric_params_solved", *NO_RV} if as_sources == IN_PART else set())
        check_sources(path, table)
    else:
        with pytest.raises(ValueError, match=as_sources):
            Gaia("dr3").read(path)
    if as_spectra in (FULLY, IN_PART):
        table = read_xp(path)
        blank = {c for c in table.column_names if table[c].null_count}
        assert blank == ({c for c in table.column_names if c.startswith("bp_")} if as_spectra == IN_PART else set())
        check_spectra(path, table)
    else:
        with pytest.raises(ValueError, match=as_spectra):
            read_xp(path)


NO_RV = ("radial_velocity", "radial_velocity_error")


def independent(path: Path) -> dict[str, list[Any]]:
    """The file's values as text, or as astropy's own reader gives them."""
    if path.suffix in (".csv", ".ecsv"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        table = list(csv.DictReader(io.StringIO("\n".join(lines))))
        return {k: [row[k] for row in table] for k in table[0]}
    if path.suffix == ".fits":
        with fits.open(path) as hdus:
            return {n: list(hdus[1].data[n]) for n in hdus[1].data.names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = Table.read(path, format="votable")
    return {n.lower(): list(table[n]) for n in table.colnames}


def number(value: Any) -> float | None:
    if value is np.ma.masked or value in ("", "null", "NaN", "nan"):
        return None
    return None if np.isnan(float(value)) else float(value)


def check_sources(path: Path, table: pa.Table) -> None:
    theirs = independent(path)
    assert table["key"].to_pylist() == [int(v) for v in theirs["source_id"]]
    for name in ("ra", "dec", "pmra", "pmdec", "parallax", "phot_g_mean_flux", "phot_bp_mean_flux"):
        assert table[name].to_pylist() == [number(v) for v in theirs[name]], name
    for name in ("ruwe", "bp_rp", "radial_velocity", "parallax_over_error"):
        assert table[name].to_pylist() == [None if (x := number(v)) is None else np.float32(x) for v in theirs[name]]
    for name in ("has_xp_continuous", "duplicated_source"):
        assert table[name].to_pylist() == [str(v).lower() == "true" for v in theirs[name]]
    error = [number(v) for v in theirs["ra_error"]]
    np.testing.assert_allclose(table["ra_error"].to_numpy() * 1000, np.array(error, float), rtol=1e-6)
    assert first_failed(Gaia.valid, table).null_count == table.num_rows
    # the sky that the id was given in is the sky of the position, but for what has moved across a border
    pixel = healpy.ang2pix(4096, table["ra"].to_numpy(), table["dec"].to_numpy(), nest=True, lonlat=True)
    assert (gaia_hpx(table["key"].to_numpy(), 12) == pixel).mean() > 0.99


def check_spectra(path: Path, table: pa.Table) -> None:
    theirs = independent(path)
    assert table["source_id"].to_pylist() == [int(v) for v in theirs["source_id"]]
    for name in ("bp_coefficients", "rp_coefficients", "bp_coefficient_errors", "rp_coefficient_errors"):
        for ours, cell in zip(table[name].to_pylist(), theirs[name], strict=True):
            if isinstance(cell, str):
                cell = [float(x) for x in cell.strip("()[]").split(",")] if cell else None
            if cell is None:
                assert ours is None
            else:
                np.testing.assert_array_equal(np.float32(ours), np.asarray(cell, dtype=np.float32))
                assert len(ours) == 55


def test_real_cuts(real_data: Path) -> None:
    path = real_data / "gaia/archive-gaia_source/gdr3_sm.fits"
    table = Gaia("dr3").read(path)
    with fits.open(path) as hdus:
        t = hdus[1].data
        aion = (t["parallax_over_error"] > 10) & t["has_xp_continuous"]
        for band in ("g", "bp", "rp"):
            aion = aion & np.isfinite(t[f"phot_{band}_mean_flux"])
        strict = aion & (t["ruwe"] < 1.4) & (t["astrometric_params_solved"] != 3) & ~t["duplicated_source"]
    for profile, wanted in (("aion", aion), ("strict", strict)):
        kept = first_failed(Gaia.select[profile], table).is_null().to_numpy(zero_copy_only=False)
        assert 0 < kept.sum() < len(kept)
        np.testing.assert_array_equal(kept, wanted)
