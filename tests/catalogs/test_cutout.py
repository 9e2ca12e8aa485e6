"""A cut-out holds the source in pixel N // 2, whatever N, wherever in the image."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from skycairn.catalogs import cutout

SHAPE = (230, 290)
SCALE = 0.262 / 3600


def tan_header(ra: float = 150.1, dec: float = 2.2, shape: tuple[int, int] = SHAPE) -> fits.Header:
    ny, nx = shape
    header = fits.Header()
    header.update({"NAXIS": 2, "NAXIS1": nx, "NAXIS2": ny, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"})
    header.update({"CRVAL1": ra, "CRVAL2": dec, "CRPIX1": nx / 2 + 0.5, "CRPIX2": ny / 2 + 0.5})
    header.update({"CD1_1": -SCALE, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": SCALE, "EQUINOX": 2000.0})
    return header


def sky(header: fits.Header, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of 0-based pixels: the gnomonic projection written out (Calabretta & Greisen 2002, section 5.1.3)."""
    xi = np.radians((np.asarray(x) + 1 - header["CRPIX1"]) * header["CD1_1"])
    eta = np.radians((np.asarray(y) + 1 - header["CRPIX2"]) * header["CD2_2"])
    ra0, dec0 = np.radians(header["CRVAL1"]), np.radians(header["CRVAL2"])
    down = np.cos(dec0) - eta * np.sin(dec0)
    ra = ra0 + np.arctan2(xi, down)
    dec = np.arctan2(np.sin(dec0) + eta * np.cos(dec0), np.hypot(xi, down))
    return np.degrees(ra) % 360, np.degrees(dec)


@pytest.mark.parametrize(
    ("ra", "dec"), [(150.1, 2.2), (0.0, -30.0), (359.99, 45.0), (95.95, 80.5), (10.0, 89.99), (0, -90)]
)
def test_pixels_are_the_gnomonic_projection_counted_from_zero(ra: float, dec: float) -> None:
    header = tan_header(ra, dec)
    x, y = np.array([0.0, 288.7, 144.5, 17.25]), np.array([0.0, 228.1, 114.5, 200.75])
    found = cutout.pixels(header, *sky(header, x, y))
    np.testing.assert_allclose(found, [x, y], atol=2e-7)


def test_the_tangent_point_is_the_reference_pixel_less_one() -> None:
    header = tan_header()
    x, y = cutout.pixels(header, np.array([150.1]), np.array([2.2]))
    np.testing.assert_allclose([x[0], y[0]], [header["CRPIX1"] - 1, header["CRPIX2"] - 1], atol=1e-9)


def test_behind_the_tangent_plane_there_is_no_pixel() -> None:
    x, y = cutout.pixels(tan_header(10, 20), np.array([190.0, 10.0]), np.array([-20.0, 20.0]))
    assert np.isnan(x[0]) and np.isnan(y[0]) and np.isfinite(x[1])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 31, 32, 96, 160])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_one_pixel_source_lies_in_the_middle_pixel(tmp_path: Path, size: int, compressed: bool) -> None:
    generator = np.random.default_rng(size)
    corners = np.array(
        [[0, 0], [SHAPE[1] - 1, 0], [0, SHAPE[0] - 1], [SHAPE[1] - 1, SHAPE[0] - 1], [100, 100], [101, 57]]
    )
    header = tan_header()
    for pixel_x, pixel_y in corners:
        image = np.zeros(SHAPE, dtype=np.float32)
        image[pixel_y, pixel_x] = 1
        off = generator.uniform(-0.49, 0.49, 2)
        ra, dec = sky(header, np.array([pixel_x + off[0]]), np.array([pixel_y + off[1]]))
        if compressed:
            hdu = fits.CompImageHDU(image, header, quantize_level=0, compression_type="GZIP_1", tile_shape=(50, 50))
        else:
            hdu = fits.ImageHDU(image, header)
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "image.fits", overwrite=True)
        with fits.open(tmp_path / "image.fits") as hdus:
            x, y = cutout.pixels(hdus[1].header, ra, dec)
            (x0, dx), (y0, dy) = cutout.place(x, size), cutout.place(y, size)
            out = cutout.cut(hdus[1], x0, y0, size, -9.0)
        assert out.shape == (1, size, size)
        assert np.argwhere(out[0] == 1).tolist() == [[size // 2, size // 2]]
        np.testing.assert_allclose([dx[0], dy[0]], off, atol=1e-5)
        x_on, y_on = x0[0] + np.arange(size), y0[0] + np.arange(size)
        on_image = ((y_on >= 0) & (y_on < SHAPE[0]))[:, None] & ((x_on >= 0) & (x_on < SHAPE[1]))
        assert (out[0][~on_image] == -9).all() and (out[0][on_image] >= 0).all()


def test_sections_and_the_whole_image_give_the_same_cut_outs(tmp_path: Path) -> None:
    image = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    x, y = np.array([5.0, 100.2, 288.9, -40.0, 1e6, np.nan]), np.array([2.0, 100.7, 229.3, 10.0, 5.0, 5.0])
    (x0, _), (y0, _) = cutout.place(x, 32), cutout.place(y, 32)
    header = tan_header()
    hdu = fits.CompImageHDU(image, header, quantize_level=0, compression_type="GZIP_1", tile_shape=(50, 50))
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "image.fits")
    with fits.open(tmp_path / "image.fits") as hdus:
        few = np.concatenate([cutout.cut(hdus[1], x0[i : i + 1], y0[i : i + 1], 32, 0) for i in range(len(x0))])
        many = cutout.cut(hdus[1], np.tile(x0, 50), np.tile(y0, 50), 32, 0)
    np.testing.assert_array_equal(np.tile(few, (50, 1, 1)), many)
    np.testing.assert_array_equal(few[1], image[101 - 16 : 101 + 16, 100 - 16 : 100 + 16])
    assert not few[3:].any(), "cut-outs wholly outside are padding"


@pytest.mark.parametrize("size", [32, 33])
def test_the_offset_is_the_sub_pixel_part_of_the_position(tmp_path: Path, size: int) -> None:
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for x, y in [(100.0, 120.0), (100.49, 120.5), (99.51, 119.5), (60.3, 77.8)]:
        image = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 2.0**2))
        (x0, dx), (y0, dy) = cutout.place(np.array([x]), size), cutout.place(np.array([y]), size)
        fits.writeto(tmp_path / "gauss.fits", image, overwrite=True)
        with fits.open(tmp_path / "gauss.fits") as hdus:
            out = cutout.cut(hdus[0], x0, y0, size, 0)[0]
        steps = np.arange(size) - size // 2
        centroid = (out * steps).sum() / out.sum(), (out * steps[:, None]).sum() / out.sum()
        assert abs(centroid[0] - dx[0]) < 0.01 and abs(centroid[1] - dy[0]) < 0.01
        assert -0.5 <= dx[0] < 0.5 and -0.5 <= dy[0] < 0.5


def test_grids_differ_by_shape_or_by_a_tenth_of_a_milliarcsecond() -> None:
    assert cutout.same_grid(tan_header(), tan_header())
    assert not cutout.same_grid(tan_header(), tan_header(shape=(SHAPE[0] - 1, SHAPE[1])))
    assert not cutout.same_grid(tan_header(), tan_header(ra=150.1 + 3e-8))
