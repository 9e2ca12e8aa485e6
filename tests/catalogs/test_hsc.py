"""HSC-SSP: columns and units, cuts at their boundaries, files by cell, patches, and real files as published.

Of the real files under `hsc/` (no table of the release's database is among them):

| file | what comes of it |
|---|---|
| scarlet/Cut_HSC.fits, scarlet/hsc_ra=150.24071_dec=2.06514.fits | in part: planes of pixels and WCS, put in the form |
|  | of a calexp (test_hscimage.py); refused as a catalogue (no binary table) and as a calexp (one cube of 5 bands) |
| scarlet/hsc_cosmos_35.npz | in part: images, mask and variance, put in the form of a calexp (test_hscimage.py) |
| scarlet/*.npz | refused: not a FITS file |
| scarlet/Cut_HST.fits, PSF_HSC.fits, PSF_HST.fits | refused: no binary table |
| lsst-afw-catalogs/src_*.fits, matchedCatalog*.fits.gz | refused: the pipeline's own catalogues, no column RA, |
|  | positions in radians, moments in pixel^2, counts; in part: the PSF's moments once they are in arcsec^2 |
| lsst-afw-catalogs/tract9813_patches55to72_gri_filtered.fits.gz | refused likewise; in part: its object ids, and |
|  | its positions once they are named in degrees |
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import healpy
import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits
from astropy.table import Table

from skycairn.catalogs.hsc import Hsc
from skycairn.catalogs.hsccolumns import COLUMNS, FLAGS, NJY_PER_NANOMAGGY
from skycairn.catalogs.hscfiles import SQL_LIST, TRACT_PATCHES, calexp_path, neighbour, read_patches
from skycairn.catalogs.hscimage import seeing
from skycairn.catalogs.survey import STANDARD_SCHEMA, MissingColumn, first_failed

BANDS = "grizy"
ID = 43158193622220917


def flux(mag: float) -> float:
    """In nJy."""
    return 10 ** (0.4 * (31.4 - mag))


def good() -> dict[str, Any]:
    """A row that passes every cut of every profile."""
    row: dict[str, Any] = {
        "object_id": np.int64(ID),
        "ra": 150.25,
        "dec": 2.25,
        "tract": np.int32(9813),
        "patch": np.int32(405),
        "isprimary": True,
    }
    for i, b in enumerate(BANDS):
        mag = 21.2 - 0.2 * i
        row |= {
            f"a_{b}": np.float32(0.1),
            f"{b}_inputcount_value": np.int16(4),
            f"{b}_extendedness_value": np.float32(1),
            f"{b}_variance_value": np.float32(0.01),
            f"{b}_cmodel_mag": np.float32(mag),
            f"{b}_cmodel_magerr": np.float32(0.02),
            f"{b}_cmodel_flux": np.float32(flux(mag)),
            f"{b}_cmodel_fluxerr": np.float32(flux(mag) * 0.02 / 1.0857),
            f"{b}_cmodel_flag": False,
        }
        row |= {f"{b}_pixelflags_{f}": False for f in FLAGS}
        row |= {f"{b}_sdssshape_shape{m}": np.float32(v) for m, v in (("11", 0.3), ("22", 0.2), ("12", -0.05))}
        row |= {f"{b}_sdssshape_psf_shape{m}": np.float32(v) for m, v in (("11", 0.09), ("22", 0.09), ("12", 0))}
    return row


def table(*changes: Mapping[str, Any], drop: Iterable[str] = ()) -> Table:
    rows = [{**good(), **change} for change in changes]
    names = [n for n in dict.fromkeys(k for r in rows for k in r) if n not in set(drop)]
    return Table({n: [r[n] for r in rows] for n in names})


def write(path: Path, what: Table) -> Path:
    fits.HDUList([fits.PrimaryHDU(), fits.table_to_hdu(what)]).writeto(path, overwrite=True)
    return path


def read(tmp_path: Path, *changes: Mapping[str, Any], **options: Any) -> pa.Table:
    return Hsc("pdr3-wide", **options).read(write(tmp_path / "forced-9813.fits", table(*changes)))


def no(value: float) -> Any:
    return np.float32(value)


class TestRead:
    def test_columns_and_types(self, tmp_path: Path) -> None:
        got = read(tmp_path, {}, {"object_id": np.int64(2**63 - 1), "ra": 360.0})
        assert got.column_names == [*STANDARD_SCHEMA.names, *(c.name for c in COLUMNS)]
        assert got.schema.field("flux_g").metadata == {b"unit": b"nanomaggy"}
        assert got.schema.field("g_cmodel_flux").metadata == {b"unit": b"nJy"}
        assert got["key"].to_pylist() == [ID, 2**63 - 1] and got["ra"].to_pylist() == [150.25, 0.0]
        first = got.to_pylist()[0]
        assert (first["tract"], first["patch"], first["isprimary"], first["i_inputcount_value"]) == (9813, 405, True, 4)
        assert all(first[c] is None for c in ("ra_error", "dec_error", "pmra", "pmdec", "epoch"))
        assert (first["epoch_min"], first["epoch_max"], first["epoch_kind"]) == (2014.2, 2020.0, "interval")
        later = read(tmp_path, {}, epoch_range=[2015, 2016])
        assert later["epoch_min"].to_pylist() == [2015] and later["epoch_max"].to_pylist() == [2016]

    def test_fluxes_in_nanomaggies(self, tmp_path: Path) -> None:
        """AB 22.5 is one nanomaggy; an error of 10 per cent is an inverse variance of 100."""
        row = {"g_cmodel_mag": no(22.5), "g_cmodel_flux": no(flux(22.5)), "g_cmodel_fluxerr": no(flux(22.5) / 10)}
        got = read(tmp_path, row).to_pylist()[0]
        assert got["flux_g"] == pytest.approx(1, rel=1e-6) and got["flux_ivar_g"] == pytest.approx(100, rel=1e-6)
        assert NJY_PER_NANOMAGGY == pytest.approx(10 ** (0.4 * 8.9), rel=1e-7)
        assert 22.5 - 2.5 * np.log10(got["flux_r"]) == pytest.approx(got["r_cmodel_mag"], abs=1e-5)

    def test_negative_and_zero_flux_stay_and_have_no_magnitude(self, tmp_path: Path) -> None:
        changes = [{"g_cmodel_flux": no(f), "g_cmodel_mag": no(np.nan)} for f in (-36.307805, 0.0, np.nan)]
        got = read(tmp_path, *changes)
        assert got["flux_g"].to_pylist() == [pytest.approx(-0.01), 0.0, None]
        assert got["g_cmodel_mag"].null_count == 3
        assert [v is None for v in got["flux_ivar_g"].to_pylist()] == [False, False, True]

    @pytest.mark.parametrize("error", [0.0, -1.0, np.nan, np.inf])
    def test_no_error_no_inverse_variance(self, tmp_path: Path, error: float) -> None:
        assert read(tmp_path, {"g_cmodel_fluxerr": no(error)})["flux_ivar_g"].to_pylist() == [None]

    @pytest.mark.parametrize("factor", [1 / 3630.7805, 1 / 57.543994, 1.02, -1.0])
    def test_fluxes_in_other_units_are_refused(self, tmp_path: Path, factor: float) -> None:
        rows = table({}, {}, {"z_cmodel_flux": no(flux(20.6) * factor)})
        path = write(tmp_path / "forced-9813.fits", rows)
        with pytest.raises(
            ValueError, match=r"forced-9813.fits, row 2: z_cmodel_flux .* in nJy, z_cmodel_mag is 20.6000; .* select"
        ):
            Hsc("pdr3-wide").read(path)
        with pytest.raises(ValueError, match="row 2: z_cmodel_flux"):
            Hsc("pdr3-wide").read(path, (1, 3))
        assert Hsc("pdr3-wide").read(path, (0, 2)).num_rows == 2

    def test_rounding_is_no_other_unit(self, tmp_path: Path) -> None:
        assert read(tmp_path, {"z_cmodel_flux": no(flux(20.6) * 1.008)}).num_rows == 1

    def test_companions_that_say_null(self, tmp_path: Path) -> None:
        row = {
            "a_g_isnull": True,
            "g_cmodel_flux": no(0),
            "g_cmodel_flux_isnull": True,
            "r_cmodel_flag_isnull": True,
            "i_inputcount_value_isnull": True,
            "tract_isnull": False,
        }
        nothing = {n: False for n in row if n.endswith("isnull")}
        got = read(tmp_path, row, {**nothing, "object_id": np.int64(0)}, {**nothing, "object_id": np.int64(-(2**63))})
        one, two, three = got.to_pylist()
        assert all(one[n] is None for n in ("a_g", "g_cmodel_flux", "flux_g", "r_cmodel_flag", "i_inputcount_value"))
        assert one["tract"] == 9813 and two["flux_g"] is not None and two["r_cmodel_flag"] is False
        assert two["key"] is None and three["key"] is None, "the database's ids are positive"
        gone = {"object_id_isnull": True, "ra_isnull": True}
        got = read(tmp_path, gone)
        assert got["key"].to_pylist() == [None] and np.isnan(got["ra"].to_numpy()).all()

    def test_slices_are_the_whole(self, tmp_path: Path) -> None:
        path = write(tmp_path / "f.fits", table(*({"object_id": np.int64(ID + i)} for i in range(7))))
        hsc = Hsc("pdr3-wide")
        whole = hsc.read(path)
        assert hsc.n_rows(path) == whole.num_rows == 7 and whole["row"].to_pylist() == list(range(7))
        assert pa.concat_tables([hsc.read(path, (0, 3)), hsc.read(path, (3, 7))]).equals(whole)
        assert hsc.read(path, (5, 5)).num_rows == 0 and hsc.read(path, (5, 5)).schema == whole.schema
        with pytest.raises(ValueError, match=r"f.fits: rows 3..9 were asked of a table of 7"):
            hsc.read(path, (3, 9))

    def test_what_is_missing_is_said(self, tmp_path: Path) -> None:
        hsc = Hsc("pdr3-wide")
        for name in ("object_id", "ra", "dec", "tract", "patch"):
            with pytest.raises(MissingColumn, match=f"f.fits has no column '{name.upper()}': select it in the SQL"):
                hsc.read(write(tmp_path / "f.fits", table({}, drop=[name])))
        path = write(tmp_path / "f.fits", table({}, drop=["isprimary", "y_cmodel_flux"]))
        assert hsc.read(path)["isprimary"].null_count == hsc.read(path)["flux_y"].null_count == 1
        for name, missing in (("isprimary", "ISPRIMARY"), ("flux_g", "Y_CMODEL_FLUX")):
            with pytest.raises(MissingColumn, match=missing):
                hsc.read(path, needed=[name])

    def test_an_id_that_went_through_float_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="object_id is >f8, wanted integers"):
            read(tmp_path, {"object_id": float(ID)})

    def test_options(self) -> None:
        with pytest.raises(ValueError, match="there is no release 'pdr2' here"):
            Hsc("pdr2")
        for options, message in (
            ({"cutout_pixels": 0}, "cut-outs of 0 pixels"),
            ({"epoch_range": (2020, 2014)}, "ends before it begins"),
            ({"mask_planes": "BAD"}, "wanted a list of names"),
            ({"mask_planes": ["BAD", "SATURATED"]}, "there is no mask plane SATURATED"),
            ({"zero_point": np.nan}, "zero_point is nan"),
        ):
            with pytest.raises(ValueError, match=message):
                Hsc("pdr3-wide", **options)
        small = Hsc("pdr3-wide", cutout_pixels=96, mask_planes=["mp_bad", "CR"])
        assert small.modality("hsc.image").shape == (5, 96, 96) and small.planes == ("BAD", "CR")
        assert Hsc.modalities[0].shape == (5, 160, 160)


def test_modalities_are_of_the_own_columns() -> None:
    names = {c.name: c for c in COLUMNS}
    keys = {m.name: m.token_key for m in Hsc.modalities}
    assert keys["hsc.image"] == "tok_image_hsc" and len(keys) == 1 + 5 + 5 + 3
    assert (keys["hsc.mag_y"], keys["hsc.a_g"], keys["hsc.shape12"]) == ("tok_mag_y", "tok_a_g", "tok_shape12")
    for m in Hsc.modalities:
        if m.column:
            assert names[m.column].unit == m.unit and (m.error is None or names[m.error].unit == m.unit)
    assert all(names[c].unit == "nanomaggy" for c in Hsc.bands.values()) and list(Hsc.bands) == list(BANDS)


def failed(tmp_path: Path, profile: str, *changes: Mapping[str, Any]) -> list[str | None]:
    return list(first_failed(Hsc.select[profile], read(tmp_path, *changes)).to_pylist())


class TestCuts:
    def test_a_good_row_passes_all(self, tmp_path: Path) -> None:
        got = read(tmp_path, {})
        assert first_failed(Hsc.valid, got).to_pylist() == [None]
        assert all(failed(tmp_path, p, {}) == [None] for p in Hsc.select)

    def test_every_cut_has_a_reason_and_a_name_of_its_own(self) -> None:
        own = {c.name for c in COLUMNS}
        for cuts in Hsc.select.values():
            assert len({c.name for c in cuts}) == len(cuts)
            assert all(c.reason and set(c.columns) <= own and c.null == "fails" for c in cuts)

    def test_valid(self, tmp_path: Path) -> None:
        got = read(
            tmp_path,
            {"ra": np.nan},
            {"ra": -1e-9},
            {"ra": 360.0},
            {"dec": 90.0},
            {"dec": -90.1},
            {"object_id": np.int64(-5)},
            {"isprimary": False},
        )
        want = ["position", "position", None, None, "position", "key", "isprimary"]
        assert first_failed(Hsc.valid, got).to_pylist() == want
        path = write(tmp_path / "f.fits", table({"isprimary_isnull": True}))
        assert first_failed(Hsc.valid, Hsc("pdr3-wide").read(path)).to_pylist() == ["isprimary"]

    def test_extended_and_colour(self, tmp_path: Path) -> None:
        assert failed(
            tmp_path,
            "aion",
            {"i_extendedness_value": no(0.5)},
            {"i_extendedness_value": no(0.51)},
            {"i_extendedness_value": no(np.nan)},
            {"g_extendedness_value": no(0)},
        ) == ["extended", None, "extended", None]
        visits = [{f"{b}_inputcount_value": np.int16(n)} for b in BANDS for n in (2, 3)]
        assert failed(tmp_path, "aion", *visits) == ["full_colour", None] * 5
        null = {"y_inputcount_value_isnull": True}
        assert failed(tmp_path, "aion", null) == failed(tmp_path, "aion-paper", null) == ["full_colour"]

    def test_magnitude_is_dereddened(self, tmp_path: Path) -> None:
        def z(mag: float, a: float) -> dict[str, Any]:
            return {"z_cmodel_mag": no(mag), "z_cmodel_flux": no(flux(mag)), "a_z": no(a)}

        rows = [z(20.999, 0), z(21.0, 0), z(21.25, 0.25), z(21.25, 0.5), z(20.5, np.nan)]
        rows.append({"z_cmodel_mag": no(np.nan)})
        want = [None, "magnitude", "magnitude", None, "magnitude", "magnitude"]
        assert failed(tmp_path, "aion", *rows) == want

    def test_the_papers_limit_is_on_the_flux_as_observed(self, tmp_path: Path) -> None:
        rows = [{"i_cmodel_mag": no(m), "i_cmodel_flux": no(flux(m)), "a_i": no(1)} for m in (22.499, 22.501)]
        rows += [{"i_cmodel_mag": no(np.nan), "i_cmodel_flux": no(f)} for f in (3630.0, 3631.0, -4000.0, np.nan)]
        want = [None, "magnitude", "magnitude", None, "magnitude", "magnitude"]
        assert failed(tmp_path, "aion-paper", *rows) == want
        assert failed(tmp_path, "aion-paper", {"i_extendedness_value": no(0)}) == [None]

    @pytest.mark.parametrize("flag", [*(f"pixelflags_{f}" for f in FLAGS), "cmodel_flag"])
    def test_flags_in_any_band(self, tmp_path: Path, flag: str) -> None:
        name = flag.removeprefix("pixelflags_")
        rows = [{f"{b}_{flag}": True} for b in BANDS]
        assert failed(tmp_path, "aion", *rows) == failed(tmp_path, "strict", *rows) == [name] * 5
        paper = None if name in ("crcenter", "interpolatedcenter") else name
        assert failed(tmp_path, "aion-paper", *rows) == [paper] * 5
        assert failed(tmp_path, "all", *rows) == [None] * 5
        assert failed(tmp_path, "aion", {f"r_{flag}_isnull": True}) == [name]

    def test_strict(self, tmp_path: Path) -> None:
        rows = [{"y_cmodel_magerr": no(e)} for e in (0, -1, np.nan, np.inf)]
        assert failed(tmp_path, "strict", *rows) == ["measured"] * 4
        rows = [{"i_sdssshape_shape11": no(v)} for v in (np.nan, 0, -0.3)]
        rows += [{"i_sdssshape_shape12": no(np.sqrt(0.3 * 0.2) + e)} for e in (1e-3, -1e-3)]
        assert failed(tmp_path, "strict", *rows) == ["ellipse"] * 4 + [None]
        assert failed(tmp_path, "aion", *rows) == [None] * 5


class Folder:
    """An archive in a folder; its lists are given."""

    def __init__(self, root: Path, lists: Mapping[str, Mapping[str, str]]) -> None:
        self.root, self.lists = root, lists

    def exists(self, path: str) -> bool:
        return (self.root / path).is_file()

    def names(self, checksum_list: str) -> Mapping[str, str] | None:
        return self.lists.get(checksum_list)

    def local(self, path: str) -> Path:
        return self.root / path


def patches(root: Path, *patches: tuple[int, str, float, float], extra: str = "") -> Path:
    """The list, of square patches (tract, name, RA and Dec of the centre) of 0.2 degrees."""
    lines = []
    for tract, name, ra, dec in patches:
        half = 0.1 / np.cos(np.radians(dec))
        for i, (x, y) in enumerate(((-1, -1), (1, -1), (1, 1), (-1, 1))):
            corner = f"({(ra + x * half) % 360:.6f} , {dec + y * 0.1:.6f})"
            lines.append(f"Tract: {tract}\tPatch: {name}\tCorner{i} (RA, Dec): {corner}")
        lines.append(f"Tract: {tract}\tPatch: {name}\tCenter (RA, Dec): ({ra:.6f} , {dec:.6f})")
    path = root / TRACT_PATCHES
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("# tracts\n******\n\n" + "\n".join(lines) + "\n" + extra)
    return path


class TestFiles:
    def test_paths(self) -> None:
        assert calexp_path("i", 9813, 405) == (
            "archive/filetree/pdr3_wide/deepCoadd-results/HSC-I/9813/4,5/calexp-HSC-I-9813-4,5.fits"
        )
        assert calexp_path("g", 9813, 8).endswith("HSC-G/9813/0,8/calexp-HSC-G-9813-0,8.fits")
        assert calexp_path("g", 9813, 1012).endswith("10,12/calexp-HSC-G-9813-10,12.fits"), "packed by 100, not by 10"
        assert (neighbour(405, 1, 0), neighbour(405, 0, -1), neighbour(8, -1, 0)) == (505, 404, None)
        assert neighbour(400, 0, -1) is None

    def test_the_list_of_patches(self, tmp_path: Path) -> None:
        extra = "Tract: 7\tCorner0 (RA, Dec): (0.5 , 1.5) Corner2 (RA, Dec): (1.5e0,2)\n"
        got = read_patches(patches(tmp_path, (7, "0,1", 359.95, 0.0), (7, "3,12", 0.15, 0.0), extra=extra))
        assert got.tract.tolist() == [7, 7] and got.patch.tolist() == [1, 312]
        np.testing.assert_allclose(got.boxes[7], (359.85, 1.5, -0.1, 2.0), atol=1e-9)
        at = got.holding(np.array([0.04, 0.06, 0.15, 0.4, np.nan, 180.0]), np.array([0.0, 0, 0.09, 0, 0, 0]))
        assert at.tolist() == [0, 1, 1, -1, -1, -1]

    @pytest.mark.parametrize(
        ("line", "what"),
        [
            ("Tract: 7\tPatch: 0,0\tCorner0 (RA, Dec): (400 , 2)", "line 9"),
            ("Tract: 7\tPatch: 0,0\tCorner0 (RA, Dec): (40 , 92)", "line 9"),
            ("Tract: 7\tPatch: 0\tCorner0 (RA, Dec): (40 , 2)", "line 9"),
            ("Patch: 0,0\tCorner0 (RA, Dec): (40 , 2)", "line 9"),
            ("Tract: 7\tPatch: 0,0", "line 9"),
            ("Tract: 7\tPatch: 0,0\tCorner0 (RA, Dec): (nan , 2)", "line 9"),
            ("<html>404</html>", "line 9"),
            ("Tract: 7\tPatch: 2,2\tCenter (RA, Dec): (40 , 2)", "patch 2,2 of tract 7 has no corners"),
        ],
    )
    def test_a_line_that_cannot_be_read_is_named(self, tmp_path: Path, line: str, what: str) -> None:
        path = patches(tmp_path, (7, "0,1", 10.0, 0.0), extra=line + "\n")
        with pytest.raises(ValueError, match=rf"tracts_patches_W.txt: {what}"):
            read_patches(path)
        path.write_text("\n")
        with pytest.raises(ValueError, match="lists no patch"):
            read_patches(path)

    def test_tables_of_the_tracts_that_touch_the_cells(self, tmp_path: Path) -> None:
        where = {9812: 149.0, 9813: 150.5, 10: 359.95, 11: 180.0}
        patches(tmp_path, *((t, "4,4", ra, 2.0) for t, ra in where.items()))
        names = {f"forced-{t}.fits": "0" * 64 for t in (9813, 9812, 10)} | {"readme.txt": "0" * 64}
        archive = Folder(tmp_path, {SQL_LIST: names})
        hsc = Hsc("pdr3-wide")

        def cell(ra: float) -> int:
            return int(healpy.ang2pix(64, ra, 2.0, nest=True, lonlat=True))

        got = hsc.catalog_files(archive, [cell(150.5), cell(149.0)])
        assert [f.path for f in got] == ["sql/pdr3_wide/forced-9812.fits", "sql/pdr3_wide/forced-9813.fits"]
        assert {(f.checksum_list, f.algorithm) for f in got} == {(SQL_LIST, "sha256")}
        assert [f.path[-7:] for f in hsc.catalog_files(archive, [cell(0.02)])] == ["10.fits"], "across RA 0"
        assert hsc.catalog_files(archive, [cell(180.0), cell(90.0)]) == [], "a tract that was not asked for"
        assert hsc.catalog_files(archive, []) == []

    def test_lists_that_do_not_fit(self, tmp_path: Path) -> None:
        patches(tmp_path, (9813, "4,4", 150.0, 2.0))
        hsc = Hsc("pdr3-wide")
        for lists, message in (
            ({}, "the archive has no sql/pdr3_wide/sha256sum.txt, which says what the database gave; make it"),
            ({SQL_LIST: {"readme": "0"}}, "lists no table forced-<tract>.fits"),
            ({SQL_LIST: {"forced-5.fits": "0"}}, "names sql/pdr3_wide/forced-5.fits, but .* has no tract 5"),
        ):
            with pytest.raises(ValueError, match=message):
                hsc.catalog_files(Folder(tmp_path, lists), [0])

    def test_groups_of_patches_and_of_forced_positions(self, tmp_path: Path) -> None:
        where = patches(tmp_path, (9813, "4,5", 150.1, 2.0), (9813, "5,5", 150.3, 2.0), (9814, "0,5", 150.45, 2.0))
        sources = pa.table(
            {
                "key": pa.array(range(7), pa.int64()),
                "ra": [150.1, 150.1, 150.29, 150.39, 150.44, 150.1, 10.0],
                "dec": [2.0] * 7,
                "tract": pa.array([9813, 9813, None, None, None, 9814, None], pa.int32()),
                "patch": pa.array([405, 405, None, None, None, 5, None], pa.int32()),
            }
        )
        reference = {"tract_patches": where}
        groups = Hsc("pdr3-wide").payload_groups(sources, "hsc.image", reference)
        assert [g.rows.tolist() for g in groups] == [[0, 1], [2], [3, 4, 5]], "10.0 lies in no patch"
        files = groups[0].files
        assert len(files) == 5 * 9 and all(f.checksum_list is None for f in files.values())
        assert files["HSC-G"].path == calexp_path("g", 9813, 405)
        assert files["HSC-Y:1,0"].path == calexp_path("y", 9813, 505)
        assert files["HSC-Y:-1,1"].path == calexp_path("y", 9813, 306)
        assert len(groups[2].files) == 5 * 6, "there is no patch before 0"
        alone = Hsc("pdr3-wide", join_patches=False).payload_groups(sources, "hsc.image", reference)
        assert all(sorted(g.files) == ["HSC-G", "HSC-I", "HSC-R", "HSC-Y", "HSC-Z"] for g in alone)
        with pytest.raises(ValueError, match="the list of tracts"):
            Hsc("pdr3-wide").payload_groups(sources, "hsc.image", {})
        with pytest.raises(ValueError, match="no payload modality"):
            Hsc("pdr3-wide").payload_groups(sources, "hsc.mag_g", reference)

    def test_a_read_table_goes_through_groups_and_extract(self, tmp_path: Path) -> None:
        hsc = Hsc("pdr3-wide", cutout_pixels=8)
        sources = read(tmp_path, {}, {"object_id": np.int64(ID + 1), "patch": np.int32(406)})
        groups = hsc.payload_groups(sources, "hsc.image", {})
        assert [g.rows.tolist() for g in groups] == [[0], [1]]
        out = hsc.extract("hsc.image", sources.take(groups[0].rows), {}, frozenset())
        assert out["status"].to_pylist() == ["file_absent"], "the catalogue counts 4 visits"
        assert out["key"].to_pylist() == [ID]


class TestReal:
    PIPELINE = (
        "src_HSC_i_HSC-I_903986_0_31_HSC_runs_ci_hsc_20210407T021858Z.fits",
        "tract9813_patches55to72_gri_filtered.fits.gz",
        "matchedCatalogMulti_0_70.fits.gz",
        *(f"matchedCatalogTract_0_{b}.fits.gz" for b in "ri"),
        *(f"matchedCatalog_0_{n}_{b}.fits.gz" for n in (68, 70, 85) for b in "ri"),
    )

    @pytest.mark.parametrize("name", PIPELINE)
    def test_catalogues_of_the_pipeline_are_refused(self, real_data: Path, name: str) -> None:
        with pytest.raises(
            MissingColumn, match=r"has no column 'RA': it has COORD_RA, .* in radians, pixels and counts"
        ):
            Hsc("pdr3-wide").read(real_data / "hsc/lsst-afw-catalogs" / name)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("Cut_HSC.fits", "holds no binary table"),
            ("hsc_ra=150.24071_dec=2.06514.fits", "holds no binary table"),
            ("Cut_HST.fits", "holds no binary table"),
            ("PSF_HSC.fits", "holds no binary table"),
            ("PSF_HST.fits", "holds no binary table"),
            ("hsc_cosmos.npz", "is not a FITS file"),
            ("hsc_cosmos_35.npz", "is not a FITS file"),
        ],
    )
    def test_images_and_scenes_are_no_catalogues(self, real_data: Path, name: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Hsc("pdr3-wide").read(real_data / "hsc/scarlet" / name)

    def test_real_ids_and_positions(self, real_data: Path, tmp_path: Path) -> None:
        """Ids of tract 9813, which no float64 holds; they carry the tract in their high bits."""
        real = Table.read(real_data / "hsc/lsst-afw-catalogs/tract9813_patches55to72_gri_filtered.fits.gz")
        ids = np.asarray(real["id"], dtype=np.int64)
        assert (ids >> 42 == 9813).all() and (ids.astype(np.float64).astype(np.int64) != ids).any()
        ra, dec = (np.degrees(np.asarray(real[c])) for c in ("coord_ra_r", "coord_dec_r"))
        made = Table({"object_id": ids, "ra": ra, "dec": dec})
        made["tract"], made["patch"] = np.int32(9813), np.int32(505)
        got = Hsc("pdr3-wide").read(write(tmp_path / "forced-9813.fits", made))
        assert got["key"].to_pylist() == ids.tolist() and len(set(ids.tolist())) == 209
        assert first_failed(Hsc.valid[:2], got).null_count == 209
        assert 149.4 < min(got["ra"].to_pylist()) and max(got["ra"].to_pylist()) < 151, "a tract is 1.7 degrees wide"

    @pytest.mark.parametrize("name", ["src_HSC_i_HSC-I_903986_0_31_HSC_runs_ci_hsc_20210407T021858Z.fits"])
    def test_real_moments_give_a_real_seeing(self, real_data: Path, name: str) -> None:
        """Of one exposure in i: 1.20 to 1.24 arcsec, from moments in pixels of 0.168 arcsec."""
        real = Table.read(real_data / "hsc/lsst-afw-catalogs" / name, hdu=1)
        moments = {
            f"i_sdssshape_psf_shape{m}": np.asarray(real[f"base_SdssShape_psf_{n}"], dtype=float) * 0.168**2
            for m, n in (("11", "xx"), ("22", "yy"), ("12", "xy"))
        }
        got = seeing(pa.table(moments))[:, 2]
        assert 1.20 < np.nanmin(got) and np.nanmax(got) < 1.24
