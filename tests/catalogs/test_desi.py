import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import healpy
import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits
from astropy.table import Table

from skycairn.catalogs.desi import ABSENT_COADDS, IMAGING_EPOCHS, Desi
from skycairn.catalogs.desikey import MOCK, SKY, pack_key
from skycairn.catalogs.survey import STANDARD_SCHEMA, MissingColumn, RemoteFile, first_failed, link_columns

TARGET = 9010 << 42 | 298864 << 22 | 3485

GOOD: Mapping[str, Any] = {
    "TARGETID": np.int64(TARGET),
    "SURVEY": "main ",
    "PROGRAM": "dark",
    "HEALPIX": np.int32(706),
    "Z": 0.5,
    "ZERR": 1e-5,
    "ZWARN": np.int64(0),
    "CHI2": 8000.0,
    "DELTACHI2": 100.0,
    "SPECTYPE": "GALAXY",
    "COADD_FIBERSTATUS": np.int32(0),
    "TARGET_RA": 10.0,
    "TARGET_DEC": -5.0,
    "PMRA": np.float32(0),
    "PMDEC": np.float32(0),
    "REF_EPOCH": np.float32(2015.5),
    "OBJTYPE": "TGT",
    "FLUX_G": np.float32(3),
    "FLUX_IVAR_G": np.float32(4),
    "REF_ID": np.int64(0),
    "REF_CAT": "  ",
    "TSNR2_LRG": np.float32(50),
    "MAIN_PRIMARY": True,
    "SV_PRIMARY": False,
    "ZCAT_PRIMARY": True,
}


def rows(*changes: Mapping[str, Any], drop: Iterable[str] = ()) -> Table:
    """A redshift catalogue: one row a change to a good row."""
    kept = [k for k in GOOD if k not in set(drop)]
    return Table({k: [{**GOOD, **change}[k] for change in changes] for k in kept})


def zcatalog(path: Path, table: Table) -> Path:
    hdu = fits.table_to_hdu(table)
    hdu.name = "ZCATALOG"
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path, overwrite=True)
    return path


def read(tmp_path: Path, *changes: Mapping[str, Any], **options: Any) -> pa.Table:
    return Desi("dr1", **options).read(zcatalog(tmp_path / "zall-pix-iron.fits", rows(*changes)))


class Files:
    """An archive of nothing but names."""

    def __init__(self, lists: Mapping[str, Mapping[str, str]] | None = None, there: Iterable[str] = ()) -> None:
        self.lists, self.there = dict(lists or {}), set(there)

    def exists(self, path: str) -> bool:
        return path in self.there

    def names(self, checksum_list: str) -> Mapping[str, str] | None:
        return self.lists.get(checksum_list)

    def local(self, path: str) -> Path:
        raise FileNotFoundError(path)


class TestRead:
    def test_columns_and_types(self, tmp_path: Path) -> None:
        table = read(tmp_path, {}, {"Z": np.nan, "FLUX_G": np.float32(0)})
        desi = Desi("dr1")
        assert table.column_names == [*STANDARD_SCHEMA.names, *(c.name for c in desi.columns)]
        assert table.schema.field("flux_g").metadata == {b"unit": b"nanomaggy"}
        first = table.slice(0, 1).to_pylist()[0]
        texts = tuple(first[c] for c in ("survey", "program", "spectype", "ref_cat"))
        assert texts == (
            "main",
            "dark",
            "GALAXY",
            "",
        )
        assert (first["targetid"], first["ra"], first["dec"]) == (TARGET, 10.0, -5.0)
        assert first["ra_error"] is None and first["dec_error"] is None and first["ref_id"] is None
        assert first["mean_mjd"] is None  # a column that this file lacks
        assert table["z"].to_pylist() == [0.5, None] and table["flux_g"].to_pylist() == [3, None]
        assert first["key"] == pack_key(np.array([TARGET]), np.array(["main"]), np.array(["dark"]))[0][0]

    def test_slices_are_the_whole(self, tmp_path: Path) -> None:
        path = zcatalog(tmp_path / "z.fits", rows(*({"TARGETID": TARGET + i, "Z": 0.1 * i} for i in range(7))))
        desi = Desi("dr1")
        whole = desi.read(path)
        assert desi.n_rows(path) == whole.num_rows == 7
        assert pa.concat_tables([desi.read(path, (0, 3)), desi.read(path, (3, 7))]).equals(whole)
        assert desi.read(path, (5, 5)).num_rows == 0 and desi.read(path, (5, 5)).schema == whole.schema
        assert whole["row"].to_pylist() == list(range(7))
        with pytest.raises(ValueError, match=r"z.fits: rows 3..9 were asked of a table of 7"):
            desi.read(path, (3, 9))

    def test_what_is_missing_is_said(self, tmp_path: Path) -> None:
        path = zcatalog(tmp_path / "z.fits", rows({}, drop=["MAIN_PRIMARY"]))
        assert Desi("dr1").read(path)["main_primary"].null_count == 1
        with pytest.raises(MissingColumn, match=r"z.fits has no column 'MAIN_PRIMARY': is this a file of another"):
            Desi("dr1").read(path, needed=["main_primary"])
        for name in ("PMRA", "TARGET_RA", "DELTACHI2", "OBJTYPE"):
            with pytest.raises(MissingColumn, match=name):
                Desi("dr1").read(zcatalog(tmp_path / "z.fits", rows({}, drop=[name])))

    def test_survey_and_program_of_a_file_without_those_columns(self, tmp_path: Path) -> None:
        table = rows({}, drop=["SURVEY", "PROGRAM"])
        assert Desi("edr").read(zcatalog(tmp_path / "zpix-sv3-bright.fits", table))["survey"].to_pylist() == ["sv3"]
        with pytest.raises(ValueError, match="its survey and program are unknown"):
            Desi("edr").read(zcatalog(tmp_path / "mine.fits", table))

    def test_text_that_is_not_ascii_is_kept(self, tmp_path: Path) -> None:
        path = zcatalog(tmp_path / "z.fits", rows({}, {"SPECTYPE": "QSO"}))
        path.write_bytes(path.read_bytes().replace(b"GALAXY", "GALÄ ".encode()))
        assert Desi("dr1").read(path)["spectype"].to_pylist() == ["GALÄ", "QSO"]

    def test_not_a_catalogue(self, tmp_path: Path) -> None:
        path = tmp_path / "x.fits"
        fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.zeros(3), name="B_FLUX")]).writeto(path)
        with pytest.raises(ValueError, match=r"x.fits: holds no HDU 'REDSHIFTS' \(it holds B_FLUX\)"):
            Desi("dr1").read(path)
        path.write_text("<html>502 Bad Gateway</html>")
        with pytest.raises(ValueError, match=r"x.fits: cannot be read as a whole FITS file"):
            Desi("dr1").read(path)

    def test_cut_short(self, tmp_path: Path) -> None:
        path = zcatalog(tmp_path / "z.fits", rows(*({"TARGETID": TARGET + i} for i in range(200))))
        path.write_bytes(path.read_bytes()[:-2880])
        with pytest.raises(ValueError, match=r"z.fits: cannot be read as a whole"):
            Desi("dr1").read(path)


EPOCHS = [
    # PMRA, PMDEC, REF_EPOCH: motion known, epoch_min, epoch_max, kind
    ((3.0, -4.0, 2015.5), (True, 2015.5, 2015.5, "reference")),
    ((0.0, -4.0, 2015.5), (True, 2015.5, 2015.5, "reference")),
    ((0.0, 0.0, 2015.5), (False, 2015.5, 2015.5, "reference")),
    ((0.0, 0.0, 0.0), (False, *IMAGING_EPOCHS, "interval")),
    ((3.0, -4.0, 0.0), (False, *IMAGING_EPOCHS, "interval")),
    ((3.0, np.nan, 2015.5), (False, 2015.5, 2015.5, "reference")),
    # fibre assignment wrote the night: motion was applied, or there was none to apply
    ((3.0, -4.0, 2020.96), (True, 2020.96, 2020.96, "reference")),
    ((0.0, 0.0, 2020.96), (False, *IMAGING_EPOCHS, "interval")),
]


@pytest.mark.parametrize(("given", "wanted"), EPOCHS)
def test_epochs(tmp_path: Path, given: tuple[float, ...], wanted: tuple[Any, ...]) -> None:
    pmra, pmdec, epoch = map(np.float32, given)
    row = read(tmp_path, {"PMRA": pmra, "PMDEC": pmdec, "REF_EPOCH": epoch, "MEAN_MJD": 59000.0}).to_pylist()[0]
    known, first, last, kind = wanted
    assert (row["epoch_min"], row["epoch_max"], row["epoch_kind"]) == (
        pytest.approx(first, abs=1e-3),
        pytest.approx(last, abs=1e-3),
        kind,
    )
    motion = (row["pmra"], row["pmdec"], row["epoch"])
    assert motion == ((given[0], given[1], pytest.approx(epoch, abs=1e-3)) if known else (None, None, None))


def test_the_interval_is_a_setting(tmp_path: Path) -> None:
    row = read(tmp_path, {"REF_EPOCH": np.float32(0)}, epoch_range=(2014, 2015)).to_pylist()[0]
    assert (row["epoch_min"], row["epoch_max"]) == (2014, 2015)


@pytest.mark.parametrize("options", [{"catalog": "tile"}, {"catalogue": "zcatalog"}, {"epoch_range": (2019, 2012)}])
def test_wrong_settings(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="desi: "):
        Desi("dr1", **options)


VALID = [
    ({"TARGETID": 0}, None),
    ({"TARGETID": -1}, "targetid"),
    ({"TARGETID": np.int64(SKY | TARGET)}, "targetid"),
    ({"TARGETID": np.int64(MOCK | TARGET)}, "targetid"),
    ({"TARGET_RA": 0.0}, None),
    ({"TARGET_RA": 360.0}, None),
    ({"TARGET_RA": 360.1}, "position"),
    ({"TARGET_RA": -0.1}, "position"),
    ({"TARGET_RA": np.nan}, "position"),
    ({"TARGET_DEC": 90.0}, None),
    ({"TARGET_DEC": -90.1}, "position"),
    ({"TARGET_DEC": np.nan}, "position"),
    ({"OBJTYPE": "SKY"}, "objtype"),
    ({"OBJTYPE": ""}, "objtype"),
    ({"COADD_FIBERSTATUS": np.int32(8)}, None),
    ({"COADD_FIBERSTATUS": np.int32(1)}, "fiberstatus"),
    ({"COADD_FIBERSTATUS": np.int32(9)}, "fiberstatus"),
    ({"COADD_FIBERSTATUS": np.int32(1 << 30)}, "fiberstatus"),
    ({"ZWARN": np.int64(4), "Z": np.nan}, None),
    ({"TARGETID": -1, "TARGET_RA": np.nan, "OBJTYPE": "SKY"}, "targetid"),
]


def test_valid_cuts_at_their_borders(tmp_path: Path) -> None:
    table = read(tmp_path, *(change for change, _ in VALID))
    assert first_failed(Desi.valid, table).to_pylist() == [reason for _, reason in VALID]
    assert [k is None for k in table["key"].to_pylist()] == [reason == "targetid" for _, reason in VALID]


SELECT = [
    ("dr1", "aion", {}, None),
    ("dr1", "aion", {"SURVEY": "sv3"}, "survey"),
    ("dr1", "aion", {"MAIN_PRIMARY": False}, "primary"),
    ("dr1", "aion", {"COADD_FIBERSTATUS": np.int32(8)}, "fiberstatus_zero"),
    ("dr1", "aion", {"HEALPIX": np.int32(ABSENT_COADDS["dark"][0])}, "on_disk"),
    ("dr1", "aion", {"HEALPIX": np.int32(ABSENT_COADDS["bright"][0])}, None),
    ("dr1", "aion", {"ZWARN": np.int64(4)}, None),
    ("edr", "aion", {"SURVEY": "sv3", "SV_PRIMARY": True}, None),
    ("edr", "aion", {"SURVEY": "sv3"}, "primary"),
    ("edr", "aion", {"SV_PRIMARY": True}, "survey"),
    ("dr1", "strict", {"SURVEY": "sv1"}, None),
    ("dr1", "strict", {"ZCAT_PRIMARY": False}, "primary"),
    ("dr1", "strict", {"COADD_FIBERSTATUS": np.int32(8)}, "fiberstatus_zero"),
    ("dr1", "strict", {"ZWARN": np.int64(4)}, "good_z"),
    ("dr1", "strict", {"DELTACHI2": 25.0}, "good_z"),
    ("dr1", "strict", {"DELTACHI2": np.nextafter(25.0, 26)}, None),
    ("dr1", "strict", {"DELTACHI2": np.nan}, "good_z"),
    ("dr1", "strict", {"Z": np.nan}, "good_z"),
    ("dr1", "all", {"ZWARN": np.int64(4), "COADD_FIBERSTATUS": np.int32(8)}, None),
]


@pytest.mark.parametrize(("release", "profile", "change", "reason"), SELECT)
def test_select_cuts_at_their_borders(
    tmp_path: Path, release: str, profile: str, change: Mapping[str, Any], reason: str | None
) -> None:
    desi = Desi(release)
    table = desi.read(zcatalog(tmp_path / "z.fits", rows(change)))
    assert first_failed(desi.select[profile], table).to_pylist() == [reason]


def test_a_null_primary_fails_aion_and_leaves_strict_to_the_repeats(tmp_path: Path) -> None:
    desi = Desi("dr1")
    table = desi.read(zcatalog(tmp_path / "z.fits", rows({}, drop=["MAIN_PRIMARY", "ZCAT_PRIMARY"])))
    assert first_failed(desi.select["aion"], table).to_pylist() == ["primary"]
    assert first_failed(desi.select["strict"], table).to_pylist() == [None]


def test_releases_do_not_share_their_cuts() -> None:
    Desi("edr")
    assert Desi("dr1").select["aion"] is not Desi("edr").select["aion"]
    assert Desi.select["aion"] is Desi("dr1").select["aion"]


def test_a_failed_redshift_is_null_for_the_tokens_alone(tmp_path: Path) -> None:
    table = read(tmp_path, {}, {"ZWARN": np.int64(4)}, {"DELTACHI2": 25.0}, {"Z": -0.001})
    assert table["z"].to_pylist() == [0.5, 0.5, 0.5, -0.001]
    assert table[Desi("dr1").modality("desi.z").column].to_pylist() == [0.5, None, None, -0.001]


class TestKeys:
    def test_overflow_names_file_and_row(self, tmp_path: Path) -> None:
        big = np.int64(16384 << 42)
        path = zcatalog(tmp_path / "z.fits", rows({}, {}, {"TARGETID": big}))
        with pytest.raises(ValueError, match=rf"z.fits row 2: TARGETID {big} \(release 16384\)"):
            Desi("dr1").read(path)
        with pytest.raises(ValueError, match=r"z.fits row 2"):
            Desi("dr1").read(path, (1, 3))
        with pytest.raises(ValueError, match="survey 'sv9'"):
            read(tmp_path, {"SURVEY": "sv9"})

    def test_what_cannot_be_a_source_may_overflow(self, tmp_path: Path) -> None:
        table = read(tmp_path, {"TARGETID": np.int64(16384 << 42), "OBJTYPE": "BAD"})
        assert table["key"].to_pylist() == [None]


def test_a_row_names_the_source_that_its_target_was_cut_from(tmp_path: Path) -> None:
    imaging = 9011 << 42 | 330000 << 22 | 12
    table = read(tmp_path, {"TARGETID": np.int64(imaging)}, {"TARGETID": np.int64(imaging | 1 << 59)}, {"TARGETID": -7})
    found = link_columns(Desi("dr1"), table)
    assert list(found) == ["link.legacysurvey"] and found["link.legacysurvey"].type == pa.int64()
    assert found["link.legacysurvey"].to_pylist() == [imaging, None, None]


REPEATS = [
    # best last in each pair
    ({"ZCAT_PRIMARY": False, "TSNR2_LRG": np.float32(99)}, {"ZCAT_PRIMARY": True, "ZWARN": np.int64(4)}),
    ({"ZCAT_PRIMARY": False, "ZWARN": np.int64(4)}, {"ZCAT_PRIMARY": False, "TSNR2_LRG": np.float32(1)}),
    ({"TSNR2_LRG": np.float32(49)}, {"TSNR2_LRG": np.float32(50)}),
    ({"TSNR2_LRG": np.float32(np.nan)}, {"TSNR2_LRG": np.float32(0)}),
    ({"DELTACHI2": 99.0}, {"DELTACHI2": 100.0}),
    ({"PROGRAM": "dark"}, {"PROGRAM": "bright"}),
]


@pytest.mark.parametrize("swap", [False, True])
def test_the_primary_of_repeats(tmp_path: Path, swap: bool) -> None:
    changes, wanted = [], []
    for i, (worse, better) in enumerate(REPEATS):
        pair = [{"SURVEY": "sv3", **worse, "TARGETID": i}, {"SURVEY": "main", **better, "TARGETID": i}]
        if i == len(REPEATS) - 1:
            pair[0]["SURVEY"] = "main"
        changes += pair[::-1] if swap else pair
        wanted += [2 * i + (not swap)] * 2
    table = read(tmp_path, *changes, {"TARGETID": 999})
    assert Desi("dr1").repeats(table).tolist() == [*wanted, 2 * len(REPEATS)]
    assert Desi("dr1").repeats(table.slice(0, 0)).tolist() == []


def redrock(
    path: Path, redshifts: Table, fibermap: Table, header: Mapping[str, Any] | None = None, tsnr2: Table | None = None
) -> Path:
    parts = {"FIBERMAP": fibermap, "TSNR2": tsnr2, "REDSHIFTS": redshifts}
    hdus = [fits.PrimaryHDU(header=fits.Header(header or {}))]
    for name, table in parts.items():
        if table is not None:
            hdus.append(fits.table_to_hdu(table))
            hdus[-1].name = name
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return path


class TestRedrock:
    FIT = ("TARGETID", "Z", "ZERR", "ZWARN", "CHI2", "DELTACHI2", "SPECTYPE")

    def split(self, n: int = 3) -> tuple[Table, Table]:
        whole = rows(
            *({"TARGETID": TARGET + i, "Z": 0.1 * i, "TARGET_RA": 10.0 + i} for i in range(n)),
            drop=["SURVEY", "PROGRAM", "HEALPIX", "TSNR2_LRG", "MAIN_PRIMARY", "SV_PRIMARY", "ZCAT_PRIMARY"],
        )
        return whole[list(self.FIT)], whole[[c for c in whole.colnames if c not in self.FIT[1:]]]

    def test_join_is_by_targetid(self, tmp_path: Path) -> None:
        fit, fibers = self.split()
        tsnr2 = Table({"TARGETID": TARGET + np.array([1, 2, 0, 9]), "TSNR2_LRG": np.float32([11, 12, 10, 19])})
        path = redrock(tmp_path / "redrock-sv3-bright-9.fits", fit, fibers[::-1], tsnr2=tsnr2)
        table = Desi("edr", catalog="redrock").read(path)
        assert table["z"].to_pylist() == pytest.approx([0, 0.1, 0.2]) and table["ra"].to_pylist() == [10, 11, 12]
        assert table["tsnr2_lrg"].to_pylist() == [10, 11, 12]
        assert set(table["survey"].to_pylist()) == {"sv3"} and set(table["program"].to_pylist()) == {"bright"}
        assert table["healpix"].to_pylist() == [9, 9, 9]  # its name says so
        assert Desi("edr").n_rows(path) is None

    def test_header_before_name(self, tmp_path: Path) -> None:
        header = {"SURVEY": "main", "PROGRAM": "dark", "HPXPIXEL": 27, "HPXNSIDE": 64, "HPXNEST": True}
        table = Desi("dr1").read(redrock(tmp_path / "redrock-sv3-bright-9.fits", *self.split(), header))
        assert table["program"].to_pylist() == ["dark"] * 3 and table["healpix"].to_pylist() == [27] * 3
        path = redrock(tmp_path / "redrock-sv3-bright-9.fits", *self.split(), {**header, "HPXNSIDE": 32})
        with pytest.raises(ValueError, match="HPXNSIDE 32, HPXNEST True; wanted 64, NESTED"):
            Desi("dr1").read(path)

    def test_a_tiles_targets_have_the_healpix_of_their_positions(self, tmp_path: Path) -> None:
        (tmp_path / "tiles-iron.csv").write_text("TILEID,SURVEY,PROGRAM\n7,sv1,bright\n")
        fit, fibers = self.split()
        fibers["TARGET_RA"][2] = np.nan
        table = Desi("dr1").read(redrock(tmp_path / "redrock-4-7-thru1.fits", fit, fibers, {"TILEID": 7}))
        wanted = healpy.ang2pix(64, [10.0, 11.0], -5.0, nest=True, lonlat=True).tolist()
        assert table["healpix"].to_pylist() == [*wanted, None]

    def test_unknown_survey(self, tmp_path: Path) -> None:
        path = redrock(tmp_path / "redrock-4-80613-thru20210324.fits", *self.split(), {"TILEID": 80613})
        with pytest.raises(ValueError, match=r"tile 80613 not in tiles-iron.csv beside it"):
            Desi("dr1").read(path)
        (tmp_path / "tiles-iron.csv").write_text("TILEID,SURVEY,PROGRAM\n1,main,dark\n80613,sv1,bright\n")
        assert Desi("dr1").read(path)["survey"].to_pylist() == ["sv1"] * 3

    def test_a_redshift_without_a_fibre_is_an_error(self, tmp_path: Path) -> None:
        fit, fibers = self.split()
        path = redrock(tmp_path / "redrock-sv3-bright-9.fits", fit, fibers[:2])
        with pytest.raises(ValueError, match=rf"FIBERMAP lacks TARGETID {TARGET + 2}, which stands in REDSHIFTS row 2"):
            Desi("edr").read(path)

    def test_stuck_fibres_share_an_id(self, tmp_path: Path) -> None:
        fit, fibers = self.split()
        fit["TARGETID"][:2] = fibers["TARGETID"][:2] = -7
        table = Desi("edr").read(redrock(tmp_path / "redrock-sv3-bright-9.fits", fit, fibers))
        assert table["ra"].to_pylist() == [10, 11, 12]
        assert first_failed(Desi.valid, table).to_pylist() == ["targetid", "targetid", None]

    def test_aion_cannot_be_cut_from_redrock_files(self, tmp_path: Path) -> None:
        path = redrock(tmp_path / "redrock-main-dark-9.fits", *self.split())
        with pytest.raises(MissingColumn, match=r"MAIN_PRIMARY.*redrock files do not tell it; read the redshift cat"):
            Desi("dr1", catalog="redrock").read(path, needed=["main_primary"])
        # strict can: which spectrum is the primary is left to the repeats
        desi = Desi("dr1", catalog="redrock")
        needed = {c for cut in (*desi.valid, *desi.select["strict"]) for c in cut.columns}
        assert desi.read(path, needed=needed).num_rows == 3

    def test_rows_of_a_redrock_file_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="read whole"):
            Desi("dr1").read(redrock(tmp_path / "redrock-main-dark-9.fits", *self.split()), (0, 1))


class TestFiles:
    def test_one_catalogue(self) -> None:
        assert Desi("dr1").catalog_files(Files(), [1, 2]) == [
            RemoteFile("zcatalog/v1/zall-pix-iron.fits", "zcatalog/v1/redux_iron_zcatalog_v1.sha256sum", "sha256")
        ]
        edr = Desi("edr")
        assert [f.path for f in edr.catalog_files(Files(), [])] == ["zcatalog/zall-pix-fuji.fits"]
        assert edr.url == "https://data.desi.lbl.gov/public/edr/spectro/redux/fuji"

    def test_redrock_files_of_cells(self) -> None:
        folder = "healpix/main/dark/100/10016"
        sums = f"{folder}/redux_iron_healpix_main_dark_100_10016.sha256sum"
        unlisted = "healpix/sv1/other/0/27/redrock-sv1-other-27.fits"
        archive = Files({sums: {"redrock-main-dark-10016.fits": "ab", "coadd-main-dark-10016.fits": "cd"}}, [unlisted])
        got = Desi("dr1", catalog="redrock").catalog_files(archive, [10016, 27, 27, 5])
        # the listed file is named although the archive lacks it
        assert got == [
            RemoteFile(unlisted),
            RemoteFile(f"{folder}/redrock-main-dark-10016.fits", sums, "sha256"),
        ]
        # EDR has no main survey
        assert [f.path for f in Desi("edr", catalog="redrock").catalog_files(archive, [10016, 27])] == [unlisted]

    def test_payload_groups(self) -> None:
        sources = pa.table(
            {
                "key": [1, 2, 3, 4, 5],
                "survey": ["main", "sv3", "main", None, "main"],
                "program": ["dark", "bright", "dark", None, "bright"],
                "healpix": pa.array([706, 706, 706, None, 27], pa.int32()),
            }
        )
        groups = Desi("dr1").payload_groups(sources, "desi.spectrum", {})
        assert [(g.rows.tolist(), g.files["coadd"].path) for g in groups] == [
            ([4], "healpix/main/bright/0/27/coadd-main-bright-27.fits"),
            ([0, 2], "healpix/main/dark/7/706/coadd-main-dark-706.fits"),
            ([1], "healpix/sv3/bright/7/706/coadd-sv3-bright-706.fits"),
        ]
        sums = groups[1].files["coadd"].checksum_list
        assert sums == "healpix/main/dark/7/706/redux_iron_healpix_main_dark_7_706.sha256sum"
        with pytest.raises(ValueError, match=r"no payload modality 'desi.z'"):
            Desi("dr1").payload_groups(sources, "desi.z", {})


def test_modalities_name_columns_that_there_are() -> None:
    names = {c.name for c in Desi.columns}
    assert [m.token_key for m in Desi.modalities] == ["tok_spectrum_desi", "tok_z"]
    for m in Desi.modalities:
        assert {c for c in (m.column, m.error, m.ivar) if c} <= names
    assert set(Desi.bands.values()) <= names
    cuts = [*Desi.valid, *(c for r in Desi.releases for p in Desi(r).select.values() for c in p)]
    assert {n for c in cuts for n in c.columns} <= names | set(STANDARD_SCHEMA.names)


class TestRealFile:
    def row(self, real_data: Path) -> dict[str, Any]:
        desi = Desi("dr1", catalog="redrock")
        table = desi.read(real_data / "desi/coadd-redrock-iron/redrock-4-80613-thru20210324.fits")
        assert first_failed(desi.valid, table).to_pylist() == [None]
        assert first_failed(desi.select["strict"], table).to_pylist() == [None]
        return table.to_pylist()[0]

    def test_values(self, real_data: Path) -> None:
        row = self.row(real_data)
        assert (row["targetid"], row["survey"], row["program"]) == (39633345008634465, "sv1", "bright")
        assert (row["release"], row["brickid"], row["brick_objid"]) == (9011, 607466, 2657)
        assert row["z"] == row["z_good"] == 0.36874355163716493 and row["good_z"] is True
        assert row["healpix"] == healpy.ang2pix(64, row["ra"], row["dec"], nest=True, lonlat=True)
        assert row["pmra"] is None and row["epoch"] is None
        # REF_EPOCH 2020.96 is the night, not the date of the imaging's position
        assert (row["epoch_min"], row["epoch_max"], row["epoch_kind"]) == (*IMAGING_EPOCHS, "interval")

    def test_it_is_the_tractor_row_that_its_targetid_names(self, real_data: Path) -> None:
        row = self.row(real_data)
        path = real_data / "legacysurvey/tractor-dr9/north/tractor/105/tractor-1054p567.fits"
        with fits.open(path) as hdus:
            tractor = hdus[1].data
            there = np.flatnonzero(
                tractor["release"].astype(np.int64) << 42
                | tractor["brickid"].astype(np.int64) << 22
                | tractor["objid"].astype(np.int64)
                == row["targetid"]
            )
            assert len(there) == 1
            twin = tractor[there[0]]
            # by position too, to the last bit: TARGET_RA is the imaging's
            assert (row["ra"], row["dec"]) == (twin["ra"], twin["dec"])
            assert row["flux_g"] == pytest.approx(float(twin["flux_g"]), rel=1e-6)
            assert row["ebv"] == pytest.approx(float(twin["ebv"]), rel=1e-6)
            assert json.loads(json.dumps(row["key"])) & (1 << 42) - 1 == row["targetid"] & (1 << 42) - 1
