"""Cut-outs of a brick written for the purpose, in the archive's form: what is masked, and what is missing."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits

from skycairn.catalogs.legacyimage import BAD_BITS, bad, cut_brick, schema
from skycairn.catalogs.legacysurvey import LegacySurvey

SHAPE, SCALE, SIZE = (120, 140), 0.262 / 3600, 16
BANDS = "griz"
Write = Callable[..., dict[str, Path]]


def header(ra: float = 33.3, dec: float = -5.5) -> fits.Header:
    h = fits.Header()
    h.update({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": ra, "CRVAL2": dec})
    h.update({"CRPIX1": SHAPE[1] / 2 + 0.5, "CRPIX2": SHAPE[0] / 2 + 0.5, "CD1_1": -SCALE, "CD2_2": SCALE})
    return h


def at(x: float, y: float) -> tuple[float, float]:
    """Position of a 0-based pixel, to first order about the reference point and then exactly enough (1e-5 pixel)."""
    h = header()
    dec = h["CRVAL2"] + (y + 1 - h["CRPIX2"]) * SCALE
    ra = h["CRVAL1"] - (x + 1 - h["CRPIX1"]) * SCALE / np.cos(np.radians(dec))
    return ra, dec


def sources(*pixels: tuple[float, float]) -> pa.Table:
    ra, dec = zip(*(at(*p) for p in pixels), strict=True)
    return pa.table({"key": pa.array(range(7, 7 + len(pixels)), pa.int64()), "ra": ra, "dec": dec})


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(bands: str = BANDS, maskbits: np.ndarray | None = None, **changed: Any) -> dict[str, Path]:
        rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
        files = {}
        for b, band in enumerate(bands):
            images = {
                "image": (1000 * b + columns + rows / 1000).astype(np.float32),
                "invvar": np.full(SHAPE, 4.0 + b, np.float32),
                "psfsize": np.full(SHAPE, 1.0 + b / 10, np.float32),
            }
            for product, image in images.items():
                role = f"{product}-{band}"
                image = changed.get(role.replace("-", "_"), image)
                hdu = fits.CompImageHDU(image, header(), quantize_level=0, compression_type="GZIP_1")
                files[role] = tmp_path / f"legacysurvey-0332m055-{role}.fits.fz"
                fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(files[role], overwrite=True)
        if maskbits is None:
            maskbits = np.zeros(SHAPE, np.int32)
        files["maskbits"] = tmp_path / "legacysurvey-0332m055-maskbits.fits.fz"
        wise = [fits.CompImageHDU(np.full(SHAPE, 255, np.uint8), header(), compression_type="GZIP_1")] * 2
        optical = fits.CompImageHDU(maskbits, header(), compression_type="RICE_1")
        fits.HDUList([fits.PrimaryHDU(), optical, *wise]).writeto(files["maskbits"], overwrite=True)
        return files

    return write


def arrays(table: pa.Table, size: int = SIZE) -> dict[str, np.ndarray]:
    return {
        n: np.array(table.column(n).to_pylist(), dtype=bool if n == "mask" else float).reshape(-1, 4, size, size)
        for n in ("flux", "ivar", "mask")
    }


def test_each_band_shows_its_own_pixels_about_the_source(write: Write) -> None:
    out = cut_brick(sources((60.3, 50.0), (70.0, 33.4)), write(), frozenset(), SIZE)
    assert out.schema.equals(schema(SIZE), check_metadata=True)
    assert out.column("key").to_pylist() == [7, 8] and out.column("status").null_count == 2
    got = arrays(out)
    for row, (x, y) in enumerate([(60, 50), (70, 33)]):
        rows, columns = np.mgrid[y - 8 : y + 8, x - 8 : x + 8]
        for b in range(4):
            np.testing.assert_allclose(got["flux"][row, b], 1000 * b + columns + rows / 1000, rtol=1e-6)
            assert (got["ivar"][row, b] == 4 + b).all()
    assert not got["mask"].any()
    np.testing.assert_allclose(out.column("dx").to_pylist(), [0.3, 0.0], atol=1e-4)
    np.testing.assert_allclose(out.column("dy").to_pylist(), [0.0, 0.4], atol=1e-4)
    np.testing.assert_allclose(out.column("psf_fwhm").to_pylist(), [[1.0, 1.1, 1.2, 1.3]] * 2, rtol=1e-6)


def test_beyond_the_edge_is_masked(write: Write) -> None:
    got = arrays(cut_brick(sources((0, 0), (139, 119)), write(), frozenset(), SIZE))
    assert (got["mask"][0, :, :8, :] & got["mask"][0, :, :, :8].swapaxes(1, 2)).all()
    assert not got["mask"][0, :, 8:, 8:].any() and not got["mask"][1, :, :9, :9].any()
    assert got["mask"][1, :, 9:, :].all() and got["mask"][1, :, :, 9:].all()
    assert (got["flux"][got["mask"]] == 0).all() and (got["ivar"][got["mask"]] == 0).all()


@pytest.mark.parametrize(
    ("bit", "bands"),
    list(enumerate(["", "", "g", "r", "z", "g", "r", "z", "", "", "griz", "", "", "", "i", "i", ""])),
)
@pytest.mark.parametrize("kind", [np.int16, np.int32])
def test_bits_mask_their_bands(bit: int, bands: str, kind: type) -> None:
    if bit > 15:
        kind = np.int32
    bits = np.array([[1 << bit, 0]]).astype(kind)  # bit 15 is the sign of an int16
    for band in BANDS:
        got = bad(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), bits, band)
        assert got.tolist() == [[band in bands, False]], band
    assert all(10 in b for b in BAD_BITS.values())


@pytest.mark.parametrize(("flux", "ivar"), [(1, 0), (1, -1), (1, np.nan), (1, np.inf), (np.nan, 1), (np.inf, 1)])
def test_no_variance_or_no_flux_is_masked(flux: float, ivar: float) -> None:
    assert bad(np.array([flux, 1], "f4"), np.array([ivar, 1], "f4"), None, "g").tolist() == [True, False]


def test_masked_pixels_hold_zeros_and_never_nan(write: Write) -> None:
    image = np.full(SHAPE, np.nan, np.float32)
    image[:, 60:] = -2.5
    bits = np.zeros(SHAPE, np.int32)
    bits[50, 61] = 1 << 14
    got = arrays(cut_brick(sources((60, 50)), write(image_i=image, maskbits=bits), frozenset(), SIZE))
    assert np.isfinite(got["flux"]).all() and np.isfinite(got["ivar"]).all()
    assert got["mask"][0, 2, :, :8].all() and got["mask"][0, 2, 8, 9] and got["mask"][0, 2].sum() == 8 * 16 + 1
    assert got["mask"].sum() == got["mask"][0, 2].sum(), "WISE's own mask (the other HDUs) plays no part"
    assert (got["flux"][0, 2, :, 8] == -2.5).all()
    assert not got["ivar"][got["mask"]].any() and not got["flux"][got["mask"]].any()
    assert (got["ivar"][~got["mask"]] > 0).all()


def test_seeing_is_that_of_the_sources_own_pixel_and_null_where_there_is_none(write: Write) -> None:
    seeing = np.zeros(SHAPE, np.float32)
    seeing[50, 60], seeing[50, 61] = 1.75, np.nan
    files = write(psfsize_r=seeing)
    out = cut_brick(sources((60.4, 49.6), (61, 50), (62, 50), (-3, 50)), files, frozenset(), SIZE)
    assert [row[1] for row in out.column("psf_fwhm").to_pylist()] == [1.75, None, None, None]
    assert [row[0] for row in out.column("psf_fwhm").to_pylist()] == [1.0, 1.0, 1.0, None]
    assert out.column("status").null_count == 4, "a source just off the image has pixels on it"


def test_a_band_without_exposures_is_masked_and_the_rest_stands(write: Write) -> None:
    files = write("grz")
    out = cut_brick(sources((60, 50)), files, frozenset(), SIZE)
    got = arrays(out)
    assert got["mask"][0].all(axis=(1, 2)).tolist() == [False, False, True, False]
    assert got["flux"][0, 3, 8, 8] == pytest.approx(2060.05)
    assert out.column("psf_fwhm").to_pylist()[0][2] is None and out.column("status").to_pylist() == [None]


def test_a_lost_file_is_not_a_missing_band(write: Write) -> None:
    files = write()
    del files["image-i"]
    out = cut_brick(sources((60, 50), (1, 1)), files, frozenset({"image-i"}), SIZE)
    assert out.column("status").to_pylist() == ["file_absent"] * 2
    assert all(out.column(n).null_count == 2 for n in ("flux", "ivar", "mask", "psf_fwhm", "dx", "dy"))


def test_a_source_without_a_good_pixel_was_not_measured(write: Write) -> None:
    bits = np.zeros(SHAPE, np.int32)
    bits[:60] = 1 << 10
    out = cut_brick(sources((60, 30), (60, 90), (-300, 50)), write(maskbits=bits), frozenset(), SIZE)
    assert out.column("status").to_pylist() == ["not_measured", None, "not_measured"]
    assert out.column("flux").null_count == 2 and out.column("flux").to_pylist()[1] is not None
    nothing = cut_brick(sources((60, 30)), {}, frozenset(), SIZE)
    assert nothing.column("status").to_pylist() == ["not_measured"]
    none = cut_brick(sources((1, 1)).slice(0, 0), write(), frozenset(), SIZE)
    assert none.num_rows == 0 and none.schema == schema(SIZE)


def test_files_of_two_grids_are_refused_by_name(write: Write, tmp_path: Path) -> None:
    files = write()
    moved = fits.CompImageHDU(np.ones(SHAPE, np.float32), header(ra=33.4), compression_type="GZIP_1", quantize_level=0)
    fits.HDUList([fits.PrimaryHDU(), moved]).writeto(files["invvar-r"], overwrite=True)
    with pytest.raises(ValueError, match=r"invvar-r\.fits\.fz: its pixel grid .* is not that of .*image-g\.fits\.fz"):
        cut_brick(sources((60, 50)), files, frozenset(), SIZE)


def test_half_a_band_and_half_a_file_are_refused_by_name(write: Write) -> None:
    files = write()
    del files["invvar-z"]
    with pytest.raises(ValueError, match=r"image-z\.fits\.fz: found 'image-z' without 'invvar-z'"):
        cut_brick(sources((60, 50)), files, frozenset(), SIZE)
    files = write()
    files["psfsize-g"].write_bytes(files["psfsize-g"].read_bytes()[:-2880])
    with pytest.raises(ValueError, match=r"psfsize-g\.fits\.fz: .* bytes long where its headers promise"):
        cut_brick(sources((60, 50)), files, frozenset(), SIZE)


def test_dr6_as_published_a_source_is_where_its_light_is(real_data: Path) -> None:
    """The brightest pixel of DR6's brick 0959p805, found by reading the file by itself, is the cut-out's middle."""
    folder = real_data / "legacysurvey/coadd-dr6/coadd/095/0959p805"
    files = {f"{p}-{b}": folder / f"legacysurvey-0959p805-{p}-{b}.fits.fz" for p in ("image", "invvar") for b in "gz"}
    whole = {role: fits.getdata(path, 1) for role, path in files.items()}
    image = np.where(whole["invvar-g"] > 0, whole["image-g"], -np.inf)
    y, x = np.unravel_index(np.argmax(image), image.shape)
    h = fits.getheader(files["image-g"], 1)
    xi, eta = np.radians((x + 1 - h["CRPIX1"]) * h["CD1_1"]), np.radians((y + 1 - h["CRPIX2"]) * h["CD2_2"])
    down = np.cos(np.radians(h["CRVAL2"])) - eta * np.sin(np.radians(h["CRVAL2"]))
    ra = h["CRVAL1"] + np.degrees(np.arctan2(xi, down))
    up = np.sin(np.radians(h["CRVAL2"])) + eta * np.cos(np.radians(h["CRVAL2"]))
    dec = np.degrees(np.arctan2(up, np.hypot(xi, down)))
    survey = LegacySurvey("dr9-north")
    one = pa.table({"key": pa.array([1], pa.int64()), "ra": [ra], "dec": [dec]})
    out = survey.extract("legacysurvey.image", one, files, frozenset())
    got = arrays(out, 160)
    assert abs(out.column("dx")[0].as_py()) < 1e-6 and abs(out.column("dy")[0].as_py()) < 1e-6
    y_cut, x_cut = np.unravel_index(np.argmax(np.where(got["mask"][0, 0], -np.inf, got["flux"][0, 0])), (160, 160))
    assert (y_cut, x_cut) == (80, 80) and got["flux"][0, 0, 80, 80] == image[y, x]
    window = np.zeros((160, 160))
    lo_y, lo_x = max(y - 80, 0), max(x - 80, 0)
    part = whole["invvar-g"][lo_y : y + 80, lo_x : x + 80]
    window[lo_y - y + 80 :, lo_x - x + 80 :][: part.shape[0], : part.shape[1]] = part
    good = ~got["mask"][0, 0]
    np.testing.assert_array_equal(good, window > 0)
    np.testing.assert_array_equal(got["ivar"][0, 0], window.astype(np.float32))
    assert got["mask"][0, [1, 2]].all() and out.column("psf_fwhm").to_pylist() == [[None] * 4]


@pytest.mark.parametrize(
    "name",
    [
        "astroclip_test_image_357.9087_-54.8817.fits",
        "gz-decals/example_c_DR3_0.0940_-0.9885.fits",
        "gz-decals/example_bad_pix_DR3_147.4567_1.0926.fits",
    ],
)
def test_the_viewers_cubes_are_refused(real_data: Path, name: str) -> None:
    path = real_data / "legacysurvey/viewer-cutouts" / name
    cube = fits.getheader(path)
    found = re.escape(f"(3, {cube['NAXIS2']}, {cube['NAXIS1']})")
    with pytest.raises(
        ValueError, match=rf"two-dimensional image \(found PrimaryHDU of shape {found}\); is it a coadd"
    ):
        cut_brick(sources((1, 1)), {"image-g": path, "invvar-g": path}, frozenset(), 160)
