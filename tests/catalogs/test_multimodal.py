"""Files as the Multimodal Universe writes them, with every known defect in them, read as releases of our surveys."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import healpy
import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.wcs import WCS

from skycairn.archives.files import RootArchive
from skycairn.catalogs import multimodalfile as hdf5
from skycairn.catalogs.desicoadd import N_PIXELS, wavelength
from skycairn.catalogs.legacycolumns import pack_key
from skycairn.catalogs.multimodalimages import brick_centres, brick_name
from skycairn.catalogs.registry import SURVEYS, survey
from skycairn.catalogs.sdssspectra import FIRST_PIXEL
from skycairn.catalogs.survey import MissingColumn, PayloadGroup, first_failed

IMPORTS = {
    "legacysurvey": "mmu-dr10-south-21",
    "hsc": "mmu-pdr3-dud-22.5",
    "desi": "mmu-edr-sv3",
    "sdss": "mmu",
    "gaia": "mmu-dr3",
}
COUNTS = 63.0957344480193
"""HSC's counts of one nanomaggy."""


def write(root: Path, folder: str, columns: Mapping[str, Any], ra: Any = None, dec: Any = None) -> Path:
    """A file below its pixel's folder; `healpix` added, text of fixed length as bytes."""
    ra = columns["ra"] if ra is None else ra
    dec = columns["dec"] if dec is None else dec
    pixel = int(healpy.ang2pix(16, float(ra[0]), float(dec[0]), nest=True, lonlat=True))
    path = root / folder / f"healpix={pixel}/001-of-001.hdf5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            array = np.asarray(values)
            file.create_dataset(name, data=np.char.encode(array, "utf-8") if array.dtype.kind == "U" else array)
        file.create_dataset("healpix", data=np.full(len(ra), pixel))
    return path


def group_of(made: Any, table: pa.Table) -> PayloadGroup:
    """The one group of files that holds the payload of all rows."""
    payload = next(m.name for m in made.modalities if m.payload)
    groups = made.payload_groups(table, payload, {})
    assert len(groups) == 1
    assert groups[0].rows.tolist() == list(range(table.num_rows))
    return groups[0]


def extracted(made: Any, root: Path, table: pa.Table, lost: frozenset[str] = frozenset()) -> pa.Table:
    payload = next(m.name for m in made.modalities if m.payload)
    files = {r: root / f.path for r, f in group_of(made, table).files.items() if (root / f.path).exists()}
    return made.extract(payload, table, files, lost)


def cube(table: pa.Table, name: str) -> Any:
    n_bands = len(table.schema.field("psf_fwhm").metadata[b"bands"].split(b","))
    values = table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values.reshape(table.num_rows, n_bands, 160, 160)


# -- the Legacy Survey

BRICKID, BRICKNAME = 330248, "3301m002"
PHASES = [(0.25, 0.75), (0.5, 0.0001), (0.9, 0.4), (0.6, 0.6)]
"""Of the sources' pixel coordinates, fractions of a pixel on both axes."""


def brick_header() -> fits.Header:
    ra, dec = (v[0] for v in brick_centres(np.array([BRICKID])))
    cards = {"NAXIS": 2, "NAXIS1": 3600, "NAXIS2": 3600, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"}
    cards |= {"CRVAL1": ra, "CRVAL2": dec, "CRPIX1": 1800.5, "CRPIX2": 1800.5}
    cards |= {"CD1_1": -0.262 / 3600, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 0.262 / 3600}
    return fits.Header(cards)


def legacy_columns() -> dict[str, Any]:
    """Four sources at known phases of a brick's pixels, cut out by MMU's recipe: from 1, of a function from 0."""
    wcs = WCS(brick_header())
    image = np.zeros((3600, 3600), np.float32)
    n = len(PHASES)
    x = np.array([400.0 + 300 * i + p for i, (p, _) in enumerate(PHASES)])
    y = np.array([900.0 + 200 * i + p for i, (_, p) in enumerate(PHASES)])
    image[np.floor(y + 0.5).astype(int), np.floor(x + 0.5).astype(int)] = np.arange(1, n + 1)
    ra, dec = wcs.all_pix2world(x, y, 0)
    stamps = [Cutout2D(image, wcs.all_world2pix(a, d, 1), (160, 160)).data for a, d in zip(ra, dec, strict=True)]
    flux = np.repeat(np.stack(stamps)[:, None], 4, axis=1)
    objid = np.arange(n) + 7
    ones = np.ones(n, np.float32)
    bands = ("G", "R", "I", "Z")
    return {
        "RELEASE": np.full(n, 10002, np.int16),
        "BRICKID": np.full(n, BRICKID, np.int32),
        "BRICKNAME": np.full(n, BRICKNAME),
        "OBJID": objid.astype(np.int32),
        "TYPE": np.array(["REX", "EXP", "SER", "DEV"]),
        "RA": ra.astype(">f8"),
        "DEC": dec,
        "RA_IVAR": ones * 3600**2 * 100,
        "DEC_IVAR": ones * 3600**2 * 100,
        "EBV": ones * 0.05,
        "MASKBITS": np.zeros(n, np.int32),
        **{f"FLUX_{b}": ones * 10 for b in bands},
        **{f"FLUX_IVAR_{b}": ones * 4 for b in bands},
        **{f"MW_TRANSMISSION_{b}": ones for b in bands},
        **{f"NOBS_{b}": np.full(n, 2, np.int16) for b in bands},
        "ra": ra,
        "dec": dec,
        "object_id": np.array([f"{BRICKNAME}-{i}" for i in objid]),
        "image_band": np.repeat([["des-g", "des-r", "des-i", "des-z"]], n, axis=0),
        "image_array": flux,
        "image_ivar": np.full(flux.shape, 4, np.float32),
        "image_mask": np.ones((n, 160, 160), bool),
        "image_psf_fwhm": np.tile(np.array([1.4, 1.2, 1.1, 1.0], np.float32), (n, 1)),
        "image_scale": np.full((n, 4), 0.262, np.float32),
        "catalog_RA": np.zeros((n, 20)),
        "catalog_FLUX_G": np.full((n, 20), 1e9),
    }


@pytest.fixture
def legacy() -> Any:
    return survey("legacysurvey", IMPORTS["legacysurvey"])


def legacy_file(root: Path, **changed: Any) -> Path:
    return write(root, "dr10_south_21", {**legacy_columns(), **changed})


def test_a_brick_is_where_survey_bricks_has_it() -> None:
    ra, dec = brick_centres(np.array([657438, 330248, 1, 662174, 0, 662175]))
    assert (ra[0], dec[0]) == pytest.approx((95.9504132231405, 80.5), abs=1e-10)
    assert brick_name(ra[1], dec[1]) == "3301m002"
    assert dec[2:4].tolist() == [-90, 90]
    assert np.isnan(ra[4:]).all()


def test_legacy_a_star_lands_in_pixel_80_of_160(legacy: Any, tmp_path: Path) -> None:
    table = legacy.read(legacy_file(tmp_path))
    made = extracted(legacy, tmp_path, table)
    assert made["status"].to_pylist() == [None] * 4
    flux = cube(made, "flux")
    for i, (px, py) in enumerate(PHASES):
        for b in range(4):
            assert np.unravel_index(flux[i, b].argmax(), (160, 160)) == (80, 80)
            assert flux[i, b, 80, 80] == i + 1
        for name, phase in (("dx", px), ("dy", py)):
            assert made[name][i].as_py() == pytest.approx(phase - np.floor(phase + 0.5), abs=1e-3)


def test_legacy_pixels_that_the_shift_brings_in_are_masked(legacy: Any, tmp_path: Path) -> None:
    made = extracted(legacy, tmp_path, legacy.read(legacy_file(tmp_path)))
    mask, ivar = cube(made, "mask"), cube(made, "ivar")
    # ceil(x) - floor(x + 0.5) + 1: two pixels below half a pixel, one above
    assert [(mask[i, 0, 100].argmin(), mask[i, 0, :, 100].argmin()) for i in range(4)] == [
        (2, 1),
        (1, 2),
        (1, 2),
        (1, 1),
    ]
    assert not mask[:, :, 2:, 2:].any()
    assert (ivar[mask] == 0).all()


def test_legacy_of_an_unknown_brick_is_moved_by_one_pixel_and_says_that_it_is_not_known(
    legacy: Any, tmp_path: Path
) -> None:
    names = np.full(4, "9999p999")
    identifiers = np.array([f"9999p999-{i}" for i in range(7, 11)])
    made = extracted(legacy, tmp_path, legacy.read(legacy_file(tmp_path, BRICKNAME=names, object_id=identifiers)))
    assert made["dx"].null_count == made["dy"].null_count == 4
    assert all(set(np.argwhere(f == f.max()).ravel().tolist()) <= {79, 80} for f in cube(made, "flux")[:, 0])
    assert cube(made, "mask")[0, 0, 0].all()


def test_legacy_mask_true_is_clean(legacy: Any, tmp_path: Path) -> None:
    clean = np.ones((4, 160, 160), bool)
    clean[3, 20, 30] = False
    for name in ("image_mask", "bit_mask"):
        columns = {k: v for k, v in legacy_columns().items() if k != "image_mask"}
        write(tmp_path, "dr10_south_21", {**columns, name: clean})
        path = legacy_file(tmp_path, image_mask=clean)
        bad = cube(extracted(legacy, tmp_path, legacy.read(path)), "mask")[3]
        assert np.argwhere(bad[:, 1:, 1:].all(axis=0)).tolist() == [[20, 30]]


def test_legacy_inverse_variances_of_infinity_are_no_measurements(legacy: Any, tmp_path: Path) -> None:
    ivar = np.full((4, 4, 160, 160), 4.0)
    ivar[3, 0, 10, 10], ivar[3, 1, 10, 10], ivar[3, 2, 10, 10], ivar[3, 3, 10, 10] = np.inf, 1.8e308 / 1.01, np.nan, -1
    made = extracted(legacy, tmp_path, legacy.read(legacy_file(tmp_path, image_ivar=ivar)))
    assert cube(made, "mask")[3, :, 11, 11].all()
    assert not cube(made, "ivar")[3, :, 11, 11].any()
    assert np.isfinite(cube(made, "ivar")).all()


def test_legacy_bands_in_another_order_are_put_right(legacy: Any, tmp_path: Path) -> None:
    columns = legacy_columns()
    flux = columns["image_array"] * np.array([1, 10, 100, 1000], np.float32)[:, None, None]
    backward = {"image_band": columns["image_band"][:, ::-1], "image_array": flux[:, ::-1]}
    backward["image_psf_fwhm"] = columns["image_psf_fwhm"][:, ::-1]
    made = extracted(legacy, tmp_path, legacy.read(legacy_file(tmp_path, **backward)))
    assert cube(made, "flux")[0, :, 80, 80].tolist() == [1, 10, 100, 1000]
    assert made["psf_fwhm"][0].as_py() == pytest.approx([1.4, 1.2, 1.1, 1.0])


def test_legacy_table_is_that_of_the_survey(legacy: Any, tmp_path: Path) -> None:
    table = legacy.read(legacy_file(tmp_path), needed=["maskbits"])
    assert table["key"].to_pylist() == pack_key(*(np.full(4, v) for v in (10002, BRICKID)), np.arange(7, 11)).tolist()
    assert table["ra_error"].to_pylist() == pytest.approx([0.1] * 4, rel=1e-2)
    assert table["type"].to_pylist() == ["REX", "EXP", "SER", "DEV"]
    assert table["sersic"].null_count == 4
    assert first_failed(legacy.valid, table).null_count == 4
    assert first_failed(legacy.select["aion"], table).null_count == 4
    assert table.equals(
        pa.concat_tables([legacy.read(path_of(tmp_path), r) for r in ((0, 3), (3, 4))]).combine_chunks()
    )


def path_of(root: Path) -> Path:
    return next(root.rglob("*.hdf5"))


def test_legacy_an_identifier_wrapped_in_b_is_unwrapped(legacy: Any, tmp_path: Path) -> None:
    wrapped = np.array([f"b' {BRICKNAME}-{i} '" for i in range(7, 11)])
    columns = {k: v for k, v in legacy_columns().items() if k not in ("OBJID", "BRICKNAME")}
    table = legacy.read(write(tmp_path, "dr10_south_21", {**columns, "object_id": wrapped}))
    assert table["objid"].to_pylist() == [7, 8, 9, 10]
    assert set(table["brickname"].to_pylist()) == {BRICKNAME}


def test_legacy_a_row_made_of_two_is_refused(legacy: Any, tmp_path: Path) -> None:
    path = legacy_file(tmp_path, OBJID=np.array([7, 8, 10, 9], np.int32))
    with pytest.raises(ValueError, match=r"row 2: object_id is '3301m002-9', OBJID 10; the row is made of two"):
        legacy.read(path)


def test_legacy_neighbours_are_not_read(legacy: Any, tmp_path: Path) -> None:
    found, _ = hdf5.columns(legacy_file(tmp_path))
    assert not [n for n in found if n.startswith(("catalog_", "image_"))]


def test_rows_written_twice_give_one_cutout_each(legacy: Any, tmp_path: Path) -> None:
    """A run that MMU repeated appended its rows once more; the pipeline keeps one of equal keys."""
    once = legacy_columns()
    path = write(tmp_path, "dr10_south_21", {k: np.concatenate([v, v]) for k, v in once.items()})
    table = legacy.read(path)
    assert table.num_rows == 8
    made = extracted(legacy, tmp_path, table.slice(4))
    assert cube(made, "flux")[2, 0, 80, 80] == 3


def test_a_file_that_is_lost_and_a_source_that_is_not_in_its_file(legacy: Any, tmp_path: Path) -> None:
    table = legacy.read(legacy_file(tmp_path))
    role = next(iter(group_of(legacy, table).files))
    gone = legacy.extract("legacysurvey.image", table, {}, frozenset([role]))
    assert gone["status"].to_pylist() == ["file_absent"] * 4
    assert gone["flux"].null_count == 4
    other = table.set_column(0, table.schema.field(0), pa.array([1, 2, 3, 4], pa.int64()))
    assert extracted(legacy, tmp_path, other)["status"].to_pylist() == ["not_measured"] * 4


def test_a_target_that_mmu_does_not_hold_is_outside(legacy: Any, tmp_path: Path) -> None:
    table = legacy.read(legacy_file(tmp_path))
    place = table.column_names.index("release")
    forced = table.set_column(place, table.schema.field(place), pa.nulls(4, pa.int32()))
    assert legacy.payload_groups(forced, "legacysurvey.image", {}) == []


# -- HSC

IDS = np.array([2**63 - 1, 2**63 - 9, 42], np.int64)


def hsc_columns(**changed: Any) -> dict[str, Any]:
    n, bands = len(IDS), "grizy"
    flux = np.zeros((n, 5, 160, 160), np.float32)
    flux[:, :, 79, 78] = COUNTS * np.array([1, 2, 3], np.float32)[:, None]
    nanomaggies = np.float32(100)
    return {
        "object_id": IDS,
        "tract": np.full(n, 9813, np.int32),
        "patch": np.full(n, 404, np.int32),
        "ra": np.array([150.1, 150.2, 150.3]),
        "dec": np.array([2.2, 2.25, 2.3]),
        **{f"a_{b}": np.full(n, 0.05, np.float32) for b in bands},
        **{f"{b}_extendedness_value": np.ones(n, np.float32) for b in bands},
        **{f"{b}_cmodel_flux": np.full(n, nanomaggies * 3630.7805, np.float32) for b in bands},
        **{f"{b}_cmodel_fluxerr": np.full(n, 3630.7805, np.float32) for b in bands},
        **{f"{b}_cmodel_mag": np.full(n, 17.5, np.float32) for b in bands},
        **{f"{b}_cmodel_magerr": np.full(n, 0.01, np.float32) for b in bands},
        **{
            f"{b}_sdssshape_{w}shape{m}": np.full(n, 0.1 * (m != "12"))
            for b in bands
            for w in ("", "psf_")
            for m in ("11", "22", "12")
        },
        "image_band": np.repeat([[f"hsc-{b}" for b in bands]], n, axis=0),
        "image_array": flux,
        "image_ivar": np.full(flux.shape, 0.25, np.float32),
        "image_mask": np.ones(flux.shape, bool),
        "image_scale": np.full((n, 5), 0.168, np.float32),
        **changed,
    }


@pytest.fixture
def hsc() -> Any:
    return survey("hsc", IMPORTS["hsc"])


def test_hsc_counts_become_nanomaggies(hsc: Any, tmp_path: Path) -> None:
    table = hsc.read(write(tmp_path, "pdr3_dud_22.5", hsc_columns()))
    made = extracted(hsc, tmp_path, table)
    assert cube(made, "flux").max(axis=(1, 2, 3)).tolist() == pytest.approx([1, 2, 3], rel=1e-6)
    assert cube(made, "ivar")[0, 0, 80, 80] == pytest.approx(0.25 * COUNTS**2, rel=1e-6)
    assert table["flux_i"].to_pylist() == pytest.approx([100] * 3, rel=1e-5)
    other = survey("hsc", IMPORTS["hsc"], zero_point=22.5)
    assert cube(extracted(other, tmp_path, table), "flux").max() == pytest.approx(3 * COUNTS, rel=1e-6)


def test_hsc_images_are_moved_by_one_pixel_and_the_rest_is_not_known(hsc: Any, tmp_path: Path) -> None:
    made = extracted(hsc, tmp_path, hsc.read(write(tmp_path, "pdr3_dud_22.5", hsc_columns())))
    assert np.argwhere(cube(made, "flux")[0, 0] > 0).tolist() == [[80, 79]]
    assert made["dx"].null_count == 3
    mask = cube(made, "mask")[0, 0]
    assert mask[0].all() and mask[:, 0].all() and not mask[1:, 1:].any()


def test_hsc_mask_true_is_clean_and_infinite_ivar_is_masked(hsc: Any, tmp_path: Path) -> None:
    columns = hsc_columns()
    columns["image_mask"][1, 2, 50, 60] = False
    columns["image_ivar"][1, 2, 51, 60] = np.inf
    columns["image_ivar"][1, 2, 52, 60] = np.finfo(np.float32).max
    made = extracted(hsc, tmp_path, hsc.read(write(tmp_path, "pdr3_dud_22.5", columns)))
    assert np.argwhere(cube(made, "mask")[1, 2, 1:, 1:]).tolist() == [[50, 60], [51, 60], [52, 60]]
    assert np.isfinite(cube(made, "ivar")).all()


def test_hsc_ids_near_2_to_63_stay_exact_as_numbers_and_as_text(hsc: Any, tmp_path: Path) -> None:
    for values in (IDS, np.array([f"b'  {i}'" for i in IDS])):
        path = write(tmp_path, "pdr3_dud_22.5", hsc_columns(object_id=values))
        table = hsc.read(path)
        assert table["key"].to_pylist() == IDS.tolist()
        assert extracted(hsc, tmp_path, table)["status"].to_pylist() == [None] * 3
    with pytest.raises(ValueError, match="never a float"):
        hsc.read(write(tmp_path, "pdr3_dud_22.5", hsc_columns(object_id=IDS.astype(float))))


def test_hsc_rows_are_primary_since_the_query_asked_for_it(hsc: Any, tmp_path: Path) -> None:
    needed = [c for cut in (*hsc.valid, *hsc.select["strict"]) for c in cut.columns]
    table = hsc.read(write(tmp_path, "pdr3_dud_22.5", hsc_columns()), needed=set(needed) - {"ra", "dec", "key"})
    assert first_failed(hsc.valid, table).null_count == 3
    assert {p: first_failed(cuts, table).null_count for p, cuts in hsc.select.items()} == dict.fromkeys(hsc.select, 3)


# -- DESI


def desi_columns(**changed: Any) -> dict[str, Any]:
    n = 3
    target = (np.int64(9010) << 42) | (np.int64(298864) << 22) | (np.arange(n) + 3485)
    flux = np.tile(np.arange(N_PIXELS, dtype=np.float32), (n, 1))
    return {
        "TARGETID": target,
        "SURVEY": np.full(n, "sv3"),
        "PROGRAM": np.array(["dark", "bright", "dark"]),
        "HEALPIX": np.full(n, 26000, np.int32),
        "TARGET_RA": np.array([180.1, 180.2, 180.3]),
        "TARGET_DEC": np.full(n, 1.0),
        "PMRA": np.zeros(n, np.float32),
        "PMDEC": np.zeros(n, np.float32),
        "REF_EPOCH": np.full(n, 2015.5, np.float32),
        "OBJTYPE": np.full(n, "TGT"),
        "COADD_FIBERSTATUS": np.zeros(n, np.int32),
        "SV_PRIMARY": np.ones(n, bool),
        "Z": np.array([0.1, 0.2, 0.3]),
        "ZERR": np.full(n, 1e-4),
        "ZWARN": np.array([0, 4, 0]),
        "DELTACHI2": np.full(n, 100.0),
        "ra": np.array([180.1, 180.2, 180.3]),
        "dec": np.full(n, 1.0),
        "object_id": target,
        "spectrum_lambda": np.tile(wavelength().astype(np.float32), (n, 1)),
        "spectrum_flux": flux,
        "spectrum_ivar": np.full(flux.shape, 2, np.float32),
        "spectrum_mask": np.zeros(flux.shape, bool),
        "spectrum_lsf_sigma": np.full(flux.shape, 1.1, np.float32),
        **changed,
    }


@pytest.fixture
def desi() -> Any:
    return survey("desi", IMPORTS["desi"])


def spectrum(table: pa.Table, name: str, row: int = 0) -> Any:
    return np.array(table.column(name)[row].as_py())


def test_desi_spectra_on_the_survey_s_grid(desi: Any, tmp_path: Path) -> None:
    table = desi.read(write(tmp_path, "edr_sv3", desi_columns()))
    made = extracted(desi, tmp_path, table)
    assert made["status"].to_pylist() == [None] * 3
    assert spectrum(made, "flux").tolist() == list(range(N_PIXELS))
    assert made.schema.metadata[b"wavelength_start"] == b"3600.0"
    assert first_failed(desi.select["aion"], table).null_count == 3


def test_desi_mask_true_is_bad_and_infinite_ivar_is_masked(desi: Any, tmp_path: Path) -> None:
    columns = desi_columns()
    columns["spectrum_mask"][0, 5] = True
    columns["spectrum_ivar"][0, 6:9] = np.inf, 0, np.nan
    made = extracted(desi, tmp_path, desi.read(write(tmp_path, "edr_sv3", columns)))
    assert np.flatnonzero(spectrum(made, "mask")).tolist() == [5, 6, 7, 8]
    assert spectrum(made, "ivar")[4:10].tolist() == [2, 0, 0, 0, 0, 2]
    assert spectrum(made, "flux")[4:10].tolist() == [4, 0, 0, 0, 0, 9]


def test_desi_zwarn_as_a_boolean_is_true_where_good(desi: Any, tmp_path: Path) -> None:
    for values in (np.array([0, 4, 0]), np.array([True, False, True])):
        table = desi.read(write(tmp_path, "edr_sv3", desi_columns(ZWARN=values)))
        assert table["good_z"].to_pylist() == [True, False, True]
        assert table["z_good"].to_pylist() == [0.1, None, 0.3]


def test_desi_healpix_is_the_survey_s_own_and_not_the_folder_s(desi: Any, tmp_path: Path) -> None:
    assert set(desi.read(write(tmp_path, "edr_sv3", desi_columns()))["healpix"].to_pylist()) == {26000}


def test_desi_one_width_for_all_spectra_is_not_taken_for_a_measurement(desi: Any, tmp_path: Path) -> None:
    made = extracted(desi, tmp_path, desi.read(write(tmp_path, "edr_sv3", desi_columns())))
    assert made["lsf_sigma"].null_count == 3


def test_desi_on_another_grid_is_refused(desi: Any, tmp_path: Path) -> None:
    columns = desi_columns()
    columns["spectrum_lambda"] += 0.4
    table = desi.read(write(tmp_path, "edr_sv3", columns))
    with pytest.raises(ValueError, match=r"7781 pixels, 3600\.40 to 9824\.40 Angstrom; wanted 7781, 3600"):
        extracted(desi, tmp_path, table)


def test_desi_what_mmu_s_cuts_ensure_need_not_be_in_the_file(desi: Any, tmp_path: Path) -> None:
    columns = {k: v for k, v in desi_columns().items() if k not in ("SURVEY", "OBJTYPE", "SV_PRIMARY", "TARGET_RA")}
    table = desi.read(write(tmp_path, "edr_sv3", columns), needed=["sv_primary"])
    assert first_failed((*desi.valid, *desi.select["aion"]), table).null_count == 3
    assert table["ra"].to_pylist() == [180.1, 180.2, 180.3]


# -- SDSS


def sdss_columns(**changed: Any) -> dict[str, Any]:
    """Three spectra of unlike length, padded as MMU pads: wavelength -1, flux repeated, mask True."""
    n, longest, lengths, starts = 3, 50, (50, 40, 30), (300, 320, 300)
    lam, flux = np.full((n, longest), -1, np.float32), np.zeros((n, longest), np.float32)
    ivar, mask = np.zeros_like(flux), np.ones(flux.shape, bool)
    for i, (m, start) in enumerate(zip(lengths, starts, strict=True)):
        lam[i, :m] = 10 ** (1e-4 * (FIRST_PIXEL + start + np.arange(m)))
        flux[i, :m], flux[i, m:] = np.arange(m) + 1, m
        ivar[i, :m], mask[i, :m] = 3, False
    lam[2, 30:] = 0
    plates, fibers = np.array([1234, 1235, 1236]), np.array([7, 8, 9])
    return {
        "SURVEY": np.array(["sdss  "] * n),
        "RUN2D": np.array(["26    "] * n),
        "PLATE": plates.astype(np.int32),
        "MJD": np.full(n, 52000, np.int32),
        "FIBERID": fibers.astype(np.int32),
        "SPECOBJID": np.array(["   482050393", "2048205039300000000000", "  1"]),
        "PLUG_RA": np.array([30.1, 30.2, 30.3]),
        "PLUG_DEC": np.full(n, 0.5),
        "PLATEQUALITY": np.full(n, "good    "),
        "TARGETTYPE": np.full(n, "SCIENCE "),
        "SPECPRIMARY": np.ones(n, np.uint8),
        "CLASS": np.full(n, "GALAXY"),
        "Z": np.array([0.1, 0.2, 0.3], np.float32),
        "Z_ERR": np.full(n, 1e-4, np.float32),
        "ZWARNING": np.array([0, 4, 0], np.int32),
        "SPECTROFLUX": np.ones((n, 5), np.float32),
        "ra": np.array([30.1, 30.2, 30.3]),
        "dec": np.full(n, 0.5),
        "object_id": np.array(["   482050393", "2048205039300000000000", "  1"]),
        "spectrum_lambda": lam,
        "spectrum_flux": flux,
        "spectrum_ivar": ivar,
        "spectrum_mask": mask,
        "spectrum_lsf_sigma": np.full(flux.shape, 0.9, np.float32),
        **changed,
    }


@pytest.fixture
def sdss() -> Any:
    return survey("sdss", IMPORTS["sdss"])


def test_sdss_padding_is_never_a_pixel(sdss: Any, tmp_path: Path) -> None:
    """Not even where the writer left the padding unmasked and with an inverse variance."""
    columns = sdss_columns()
    padding = columns["spectrum_lambda"] <= 0
    columns["spectrum_mask"][padding], columns["spectrum_ivar"][padding] = False, 3
    made = extracted(sdss, tmp_path, sdss.read(write(tmp_path, "sdss", columns)))
    for i, (m, start) in enumerate(((50, 300), (40, 320), (30, 300))):
        assert np.flatnonzero(~spectrum(made, "mask", i)).tolist() == list(range(start, start + m))
        assert spectrum(made, "flux", i)[start : start + m].tolist() == list(range(1, m + 1))
        assert spectrum(made, "ivar", i).sum() == 3 * m


def test_sdss_mask_true_is_bad_and_infinite_ivar_is_masked(sdss: Any, tmp_path: Path) -> None:
    columns = sdss_columns()
    columns["spectrum_mask"][0, 10], columns["spectrum_ivar"][0, 11] = True, np.inf
    made = extracted(sdss, tmp_path, sdss.read(write(tmp_path, "sdss", columns)))
    bad = set(range(300, 350)) & set(np.flatnonzero(spectrum(made, "mask")).tolist())
    assert bad == {310, 311}


def test_sdss_width_of_the_line_spread_in_angstrom(sdss: Any, tmp_path: Path) -> None:
    made = extracted(sdss, tmp_path, sdss.read(write(tmp_path, "sdss", sdss_columns())))
    lam = 10 ** (1e-4 * (FIRST_PIXEL + 310))
    assert spectrum(made, "lsf_sigma")[310] == pytest.approx(0.9 * 1e-4 * np.log(10) * lam, rel=1e-5)


def test_sdss_spectra_of_a_plate_of_two_nights_are_not_measured(sdss: Any, tmp_path: Path) -> None:
    path = write(tmp_path, "boss", sdss_columns(PLATE=np.array([7, 7, 8]), MJD=np.array([55000, 55001, 55000])))
    table = sdss.read(path)
    assert table.num_rows == 3
    assert extracted(sdss, tmp_path, table)["status"].to_pylist() == ["not_measured", "not_measured", None]


def test_sdss_a_source_is_found_in_whichever_set_holds_it(sdss: Any, tmp_path: Path) -> None:
    first, second = sdss_columns(), sdss_columns(PLATE=np.array([5001, 5002, 5003]), RUN2D=np.full(3, "v5_13_2"))
    second["spectrum_flux"] = second["spectrum_flux"] * 2
    tables = [sdss.read(write(tmp_path, s, c)) for s, c in (("sdss", first), ("eboss", second))]
    made = extracted(sdss, tmp_path, pa.concat_tables(tables).combine_chunks())
    assert made["status"].to_pylist() == [None] * 6
    assert [spectrum(made, "flux", i)[300 + (20 if i % 3 == 1 else 0)] for i in range(6)] == [1, 1, 1, 2, 2, 2]


def test_sdss_text_is_without_padding_and_long_ids_stay_text(sdss: Any, tmp_path: Path) -> None:
    table = sdss.read(write(tmp_path, "sdss", sdss_columns()))
    assert table["specobjid"].to_pylist() == ["482050393", "2048205039300000000000", "1"]
    assert table["platequality"].to_pylist() == ["good"] * 3
    assert table["key"].null_count == 0
    assert first_failed(sdss.select["aion"], table).null_count == 3


def test_sdss_zwarning_as_a_boolean_is_true_where_bad(sdss: Any, tmp_path: Path) -> None:
    for values in (np.array([0, 4, 0], np.int32), np.array([False, True, False])):
        table = sdss.read(write(tmp_path, "sdss", sdss_columns(ZWARNING=values)))
        assert table["z_good"].to_pylist() == pytest.approx([0.1, None, 0.3])
        assert first_failed(sdss.valid, table).null_count == 3


# -- Gaia


def gaia_columns(**changed: Any) -> dict[str, Any]:
    n = 3
    coeff = np.tile(np.arange(1, 111, dtype=np.float32), (n, 1))
    coeff[1, :55] = 0
    return {
        "source_id": np.array([2**62 + 1, 2**62 + 3, 0]),
        "ra": np.array([300.123456789, 300.2, 300.3]),
        "dec": np.array([-45.123456789, -45.2, -45.3]),
        "ra_error": np.full(n, 0.02, np.float32),
        "dec_error": np.full(n, 0.03, np.float32),
        "parallax": np.array([1.5, np.nan, 0.0]),
        "parallax_error": np.full(n, 0.1, np.float32),
        "pmra": np.array([3.0, np.nan, 0.0]),
        "pmdec": np.array([4.0, np.nan, 0.0]),
        "ref_epoch": np.array([2016.0, 2016.0, 0.0]),
        "phot_g_mean_flux": np.array([100.0, 200.0, 0.0]),
        "duplicated_source": np.array([0, 1, 0], np.int32),
        "astrometric_params_solved": np.array([31, 3, 0], np.int8),
        "coeff": coeff,
        "coeff_error": np.full((n, 110), 0.5, np.float32),
        **changed,
    }


@pytest.fixture
def gaia() -> Any:
    return survey("gaia", IMPORTS["gaia"])


def test_gaia_table_and_coefficients(gaia: Any, tmp_path: Path) -> None:
    table = gaia.read(write(tmp_path, "gaia", gaia_columns()))
    assert table["key"].to_pylist() == [2**62 + 1, 2**62 + 3, 0]
    assert table["ra"][0].as_py() == 300.123456789
    assert table["ra_error"][0].as_py() == pytest.approx(2e-5)
    assert table["bp_coefficients"][0].as_py() == list(range(1, 56))
    assert table["rp_coefficients"][1].as_py() == list(range(56, 111))
    assert table["bp_coefficients"][1].as_py() is None
    assert table["bp_n_relevant_bases"].null_count == 3
    assert table["duplicated_source"].to_pylist()[:2] == [False, True]
    assert table["pmra"].to_pylist()[:2] == [3.0, None]


def test_gaia_gaps_of_zeros_are_dropped_by_a_cut(gaia: Any, tmp_path: Path) -> None:
    table = gaia.read(write(tmp_path, "gaia", gaia_columns()))
    assert first_failed(gaia.valid, table).to_pylist() == [None, None, "source_id"]


def test_gaia_float32_positions_say_how_wrong_they_may_be(gaia: Any, tmp_path: Path) -> None:
    exact = gaia_columns()
    rounded = {k: exact[k].astype(np.float32) for k in ("ra", "dec")}
    table = gaia.read(write(tmp_path, "gaia", gaia_columns(**rounded)))
    step = np.array([2.0**-15 * np.cos(np.radians(45.123)), 2.0**-18]) * 3600
    assert [table[c][0].as_py() for c in ("ra_error", "dec_error")] == pytest.approx(step, rel=1e-3)
    off = np.abs(table["ra"][0].as_py() - exact["ra"][0]) * np.cos(np.radians(45.123)) * 3600
    assert 0 < off < table["ra_error"][0].as_py()


def test_gaia_files_of_neighbouring_pixels_are_read_since_positions_were_rounded(gaia: Any, tmp_path: Path) -> None:
    class Everything(RootArchive):
        def exists(self, path: str) -> bool:
            return True

    archive = Everything(tmp_path)
    edge = 100 << 4
    assert [f.path for f in gaia.catalog_files(archive, [edge + 3])] == ["gaia/healpix=100/001-of-001.hdf5"]
    assert len(gaia.catalog_files(archive, [edge])) > 1


def test_gaia_without_a_unique_column_it_needs(gaia: Any, tmp_path: Path) -> None:
    columns = {k: v for k, v in gaia_columns().items() if k != "pmra"}
    with pytest.raises(MissingColumn, match="'pmra'"):
        gaia.read(write(tmp_path, "gaia", columns))


# -- what holds for all


def test_releases_are_listed_and_found() -> None:
    for name, release in IMPORTS.items():
        assert release in SURVEYS[name].releases
        assert release not in SURVEYS[name].releases[:1]
        made = survey(name, release)
        assert (made.name, made.release) == (name, release)
        assert made.url.startswith("https://users.flatironinstitute.org/~polymathic/data/MultimodalUniverse/v1/")
        assert [c.name for c in made.columns] == [c.name for c in SURVEYS[name].columns]
        assert made.reference_files() == {}
        assert {"aion", "strict", "all"} <= set(made.select)
    with pytest.raises(ValueError, match=r"no release 'mmu-dr9' here; choose one of dr10, .*, mmu-dr10-south-21"):
        survey("legacysurvey", "mmu-dr9")
    with pytest.raises(
        ValueError, match="no option 'catalog'; there are release, profile, root, source, url, epoch_range"
    ):
        survey("legacysurvey", "mmu-dr10-south-21", catalog="tractor")


def test_files_of_a_cell_are_those_of_its_pixel_that_are_there(sdss: Any, tmp_path: Path) -> None:
    path = write(tmp_path, "boss", sdss_columns())
    cell = int(healpy.ang2pix(64, 30.1, 0.5, nest=True, lonlat=True))
    archive = RootArchive(tmp_path)
    assert [f.path for f in sdss.catalog_files(archive, [cell, cell])] == [str(path.relative_to(tmp_path))]
    assert sdss.catalog_files(archive, [0]) == []
    assert (sdss.n_rows(path), sdss.read(path, (1, 3))["row"].to_pylist()) == (3, [1, 2])


def test_across_ra_0_and_at_the_pole_files_are_those_of_the_position(sdss: Any, tmp_path: Path) -> None:
    for ra, dec in ((359.9999, 0.1), (0.0001, 0.1), (360.0, 0.1), (12.0, 89.9), (200.0, -89.9)):
        root = tmp_path / f"{ra}"
        place = {"ra": np.full(3, ra), "dec": np.full(3, dec)}
        path = write(root, "sdss", sdss_columns(PLUG_RA=place["ra"], PLUG_DEC=place["dec"], **place))
        cell = int(healpy.ang2pix(64, ra, dec, nest=True, lonlat=True))
        assert [root / f.path for f in sdss.catalog_files(RootArchive(root), [cell])] == [path]
        assert extracted(sdss, root, sdss.read(path))["status"].to_pylist() == [None] * 3


def test_a_file_whose_rows_are_of_another_pixel_is_refused(sdss: Any, tmp_path: Path) -> None:
    path = write(tmp_path, "sdss", sdss_columns())
    moved = path.parent.with_name("healpix=7")
    path.parent.rename(moved)
    with pytest.raises(ValueError, match="100% of its rows lie outside of pixel 7 of nside 16"):
        sdss.read(moved / path.name)


@pytest.mark.parametrize("what", ["soft", "external", "storage", "virtual"])
def test_a_file_that_leads_elsewhere_is_refused(sdss: Any, tmp_path: Path, what: str) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"secret! " * 10)
    path = write(tmp_path, "sdss", sdss_columns())
    with h5py.File(path, "a") as file:
        if what == "soft":
            file["NAME"] = h5py.SoftLink("/PLATE")
        elif what == "external":
            file["NAME"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "/x")
        elif what == "storage":
            file.create_dataset("NAME", (3,), "i8", external=[(str(secret), 0, 24)])
        else:
            layout = h5py.VirtualLayout((3,), "i4")
            layout[:] = h5py.VirtualSource(str(path), "PLATE", (3,))
            file.create_virtual_dataset("NAME", layout)
    with pytest.raises(ValueError, match=r"'NAME' (is a link to elsewhere|keeps its data in|is made of other)"):
        sdss.read(path)
    with pytest.raises(ValueError, match="'NAME'"):
        sdss.n_rows(path)


def test_columns_of_unlike_length_are_refused(sdss: Any, tmp_path: Path) -> None:
    path = write(tmp_path, "sdss", sdss_columns())
    with h5py.File(path, "a") as file:
        del file["CLASS"]
        file["CLASS"] = np.array([b"GALAXY"] * 2)
    with pytest.raises(ValueError, match=r"'CLASS' has 2 rows, .* 3; its writer was cut off"):
        sdss.read(path)


def test_a_file_cut_short_and_one_that_is_none(sdss: Any, tmp_path: Path) -> None:
    path = write(tmp_path, "sdss", sdss_columns())
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], b"<html>busy</html>"):
        path.write_bytes(part)
        with pytest.raises(ValueError, match="cannot be read as HDF5"):
            sdss.read(path)


def test_a_missing_column_is_named(sdss: Any, desi: Any, tmp_path: Path) -> None:
    path = write(tmp_path, "sdss", {k: v for k, v in sdss_columns().items() if k != "PLATE"})
    with pytest.raises(MissingColumn, match="has no column 'PLATE'"):
        sdss.read(path)
    path = write(tmp_path, "edr_sv3", {k: v for k, v in desi_columns().items() if k != "spectrum_flux"})
    with pytest.raises(MissingColumn, match="holds no 'spectrum_flux'"):
        extracted(desi, tmp_path, desi.read(path))


def test_an_empty_file_gives_an_empty_table(sdss: Any, tmp_path: Path) -> None:
    full = write(tmp_path, "sdss", sdss_columns())
    with h5py.File(full) as file:
        columns = {name: file[name][:0] for name in file if name != "healpix"}
    full.unlink()
    with h5py.File(full, "w") as file:
        for name, values in columns.items():
            file[name] = values
    assert sdss.read(full).num_rows == 0


def test_text() -> None:
    for given in (b"b'0421p022-7410'", "b'  0421p022-7410 '", " 0421p022-7410\0", 'b"0421p022-7410"'):
        assert hdf5.text(np.array([given])).tolist() == ["0421p022-7410"]
    assert hdf5.text(np.array(["b'", "bright", ""], object)).tolist() == ["b'", "bright", ""]
    with pytest.raises(ValueError, match="row 1: identifier '9223372036854775808' is no whole number of 63 bits"):
        hdf5.whole_numbers(np.array(["1", "9223372036854775808"]), "file")
    with pytest.raises(ValueError, match="beyond 63 bits"):
        hdf5.whole_numbers(np.array([2**63], np.uint64), "file")
