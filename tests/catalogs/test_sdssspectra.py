import numpy as np
import pytest
from astropy.io import fits

from skycairn.catalogs.sdssspectra import (
    FIRST_PIXEL,
    LOGLAM_STEP,
    N_PIXELS,
    NODATA,
    on_grid,
    read_plate,
    read_spec,
    wavelength,
)

BRIGHTSKY = 1 << 23
FIRST = 35_800


def scale(n, first=FIRST):
    return LOGLAM_STEP * (first + np.arange(n))


def write_plate(path, n_fibers=5, n_pixels=50, plate=9200, mjd=57_000, fiber_ids=None, coeff0=LOGLAM_STEP * FIRST):
    flux = np.arange(n_fibers)[:, None] * 100.0 + np.arange(n_pixels)
    images = [flux, np.full_like(flux, 4.0), np.zeros(flux.shape, np.int32), np.zeros(flux.shape, np.int32)]
    images.append(np.full_like(flux, 1.1))
    hdus = [fits.PrimaryHDU(images[0].astype(np.float32))]
    hdus += [fits.ImageHDU(i.astype(np.float32) if i.dtype.kind == "f" else i) for i in images[1:]]
    ids = np.arange(1, n_fibers + 1) if fiber_ids is None else fiber_ids
    hdus.append(fits.BinTableHDU.from_columns([fits.Column("FIBERID", "J", array=ids)]))
    header = hdus[0].header
    header["PLATEID"], header["MJD"], header["COEFF0"], header["COEFF1"] = plate, mjd, coeff0, LOGLAM_STEP
    fits.HDUList(hdus).writeto(path)
    return flux


def test_pixels_are_counted_onto_the_grid_and_not_resampled():
    flux = np.array([[1.0, -2.0, 0.0, 4.0]])
    found = on_grid(flux, np.full((1, 4), 2.0), np.zeros((1, 4)), np.full((1, 4), 1.2), scale(4), "x")
    at = FIRST - FIRST_PIXEL
    assert found.flux[0, at : at + 4].tolist() == [1.0, -2.0, 0.0, 4.0]
    assert np.flatnonzero(~found.mask[0]).tolist() == [at, at + 1, at + 2, at + 3]
    assert not found.flux[found.mask].any() and not found.ivar[found.mask].any()
    assert wavelength()[at] == pytest.approx(10**3.58)
    assert found.lsf_sigma[0, at] == pytest.approx(1.2 * 1e-4 * np.log(10) * 10**3.58, rel=1e-5)


def test_stored_as_float32_is_on_the_grid():
    loglam = scale(4000).astype(np.float32).astype(np.float64)
    found = on_grid(np.ones((1, 4000)), np.ones((1, 4000)), np.zeros((1, 4000)), None, loglam, "x")
    assert (~found.mask).sum() == 4000 and np.isnan(found.lsf_sigma).all()


def test_bad_pixels():
    flux = np.array([[np.nan, 1, 1, 1, 1, np.inf, 1]])
    ivar = np.array([[1, 0, -1, np.nan, 1, 1, 1]], dtype=float)
    bits = np.array([[0, 0, 0, 0, NODATA, 0, BRIGHTSKY]])
    found = on_grid(flux, ivar, bits, None, scale(7), "x")
    at = FIRST - FIRST_PIXEL
    assert found.mask[0, at : at + 7].tolist() == [True] * 6 + [False]
    assert np.isfinite(found.flux).all() and np.isfinite(found.ivar).all()


@pytest.mark.parametrize("loglam", [scale(5) + 2e-5, scale(5)[::-1], scale(10)[::2]])
def test_another_grid_is_refused(loglam):
    ones = np.ones((1, 5))
    with pytest.raises(ValueError, match=r"plate\.fits.*whole multiples"):
        on_grid(ones, ones, ones * 0, None, loglam, "plate.fits")


def test_good_pixels_beyond_the_grid_are_refused_and_bad_ones_dropped():
    loglam = scale(3, FIRST_PIXEL + N_PIXELS - 1)
    ones = np.ones((1, 3))
    with pytest.raises(ValueError, match="the grid ends"):
        on_grid(ones, ones, ones * 0, None, loglam, "x")
    found = on_grid(ones, np.array([[1.0, 0, 0]]), ones * 0, None, loglam, "x")
    assert (~found.mask).sum() == 1


def test_the_row_of_a_plate_is_the_fibre_less_one(tmp_path):
    flux = write_plate(tmp_path / "p.fits")
    found = read_plate(tmp_path / "p.fits", 9200, 57_000, np.array([5, 1]))
    at = FIRST - FIRST_PIXEL
    assert np.array_equal(found.flux[:, at : at + 50], flux[[4, 0]].astype(np.float32))


@pytest.mark.parametrize(
    ("asked", "made", "message"),
    [
        ((9201, 57_000, [1]), {}, "PLATEID is 9200; wanted 9201"),
        ((9200, 57_001, [1]), {}, "MJD is 57000; wanted 57001"),
        ((9200, 57_000, [6]), {}, "has 5 fibres; fibre 6"),
        ((9200, 57_000, [0]), {}, "has 5 fibres; fibre 0"),
        ((9200, 57_000, [2]), {"fiber_ids": np.array([1, 3, 2, 4, 5])}, "row 1 is of fibre 3; wanted 2"),
        ((9200, 57_000, [1]), {"coeff0": 3.58005}, "whole multiples"),
    ],
)
def test_a_plate_that_is_not_the_one_asked_for(tmp_path, asked, made, message):
    write_plate(tmp_path / "p.fits", **made)
    plate, mjd, fibers = asked
    with pytest.raises(ValueError, match=rf"p\.fits.*{message}"):
        read_plate(tmp_path / "p.fits", plate, mjd, np.array(fibers))


def test_a_plate_cut_short_is_refused(tmp_path):
    write_plate(tmp_path / "p.fits")
    whole = (tmp_path / "p.fits").read_bytes()
    (tmp_path / "p.fits").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"p\.fits"):
        read_plate(tmp_path / "p.fits", 9200, 57_000, np.array([1]))


def test_a_real_plate_of_which_only_the_flux_is_left(real_data):
    path = real_data / "sdss/spPlate/spPlate-4055-55359-0020.fits"
    with pytest.raises(ValueError, match="holds 1 HDUs; wanted FLUX, IVAR"):
        read_plate(path, 4055, 55_359, np.array([1]))
    with fits.open(path) as hdus:
        header, flux = hdus[0].header, hdus[0].data
        loglam = header["COEFF0"] + header["COEFF1"] * np.arange(flux.shape[1])
        found = on_grid(flux, np.ones_like(flux), np.zeros(flux.shape), None, loglam, str(path))
    # the whole of BOSS's range lies on the grid: 3572 to 10,387 Angstrom
    assert (~found.mask).sum(axis=1).tolist() == [4637] * 20
    assert wavelength()[~found.mask[0]][[0, -1]] == pytest.approx([10**3.5529, 10**4.0165])


# Z of the file, and lines that the survey's own SPZLINE found in it
@pytest.mark.parametrize(
    "name", ["spec-0854-52373-0369", "spec-1372-53062-0072", "spec-1737-53055-0369", "spec-2580-54092-0470"]
)
def test_real_lines_lie_at_vacuum_wavelengths(real_data, name):
    path = real_data / f"sdss/spec/{name}.fits"
    plate, mjd, fiber = (int(n) for n in name.split("-")[1:])
    found = read_spec(path, plate, mjd, fiber)
    with fits.open(path) as hdus:
        z = float(hdus[2].data["Z"][0])
        lines = hdus[3].data
    grid, seen = wavelength(), 0
    for rest in (5008.24, 6564.61):
        row = lines[np.argmin(np.abs(lines["LINEWAVE"] - rest))]
        if row["LINEAREA"] < 15 * row["LINEAREA_ERR"] or row["LINEAREA_ERR"] <= 0:
            continue
        centre = rest * (1 + z)
        near = (np.abs(grid / centre - 1) < 4e-4) & ~found.mask[0]
        beside = (np.abs(grid / centre - 1) < 5e-3) & ~near & ~found.mask[0]
        light = found.flux[0, near] - np.median(found.flux[0, beside])
        middle = np.sum(light * grid[near]) / light.sum()
        assert (middle / centre - 1) * 299_792 == pytest.approx(0, abs=60), f"{name} {rest}"  # a pixel is 69 km/s
        seen += 1
    assert seen
    assert np.isfinite(found.lsf_sigma).all()


def test_a_spec_file_under_another_name_is_refused(real_data):
    with pytest.raises(ValueError, match="FIBERID is 369; wanted 370"):
        read_spec(real_data / "sdss/spec/spec-0854-52373-0369.fits", 854, 52_373, 370)


@pytest.mark.parametrize(("second", "upper"), [("SPECOBJ", True), ("SPALL", True), ("SPALL", False)])
def test_a_spec_file_of_any_age(tmp_path, second, upper):
    """The second table is SPECOBJ or SPALL, and columns are in either case."""

    def name(text):
        return text.upper() if upper else text.lower()

    n = 40
    values = {"flux": np.arange(n, dtype=np.float32), "loglam": scale(n).astype(np.float32), "ivar": np.ones(n)}
    coadd = [fits.Column(name(k), "E", array=v) for k, v in values.items()]
    coadd += [fits.Column(name(k), "J", array=np.zeros(n, np.int32)) for k in ("and_mask", "or_mask")]
    about = [fits.Column(name(k), "J", array=[v]) for k, v in (("PLATE", 9200), ("MJD", 57_000), ("FIBERID", 7))]
    hdus = [
        fits.PrimaryHDU(),
        fits.BinTableHDU.from_columns(coadd, name="COADD"),
        fits.BinTableHDU.from_columns(about, name=second),
    ]
    fits.HDUList(hdus).writeto(tmp_path / "spec.fits")
    found = read_spec(tmp_path / "spec.fits", 9200, 57_000, 7)
    at = slice(FIRST - FIRST_PIXEL, FIRST - FIRST_PIXEL + n)
    assert found.flux[0, at].tolist() == list(range(n)) and not found.mask[0, at].any()
    assert found.mask[0].sum() == found.mask.shape[1] - n and np.isnan(found.lsf_sigma).all()
    with pytest.raises(ValueError, match="FIBERID is 7; wanted 8"):
        read_spec(tmp_path / "spec.fits", 9200, 57_000, 8)


@pytest.mark.parametrize("cards", [{"CRVAL1": 3.5801}, {"CD1_1": 1.01e-4}])
def test_two_wavelength_scales_in_one_header_are_refused(tmp_path, cards):
    write_plate(tmp_path / "plate.fits")
    with fits.open(tmp_path / "plate.fits", mode="update") as hdus:
        hdus[0].header.update({"CRVAL1": LOGLAM_STEP * FIRST, "CD1_1": LOGLAM_STEP, "CRPIX1": 1})
    read_plate(tmp_path / "plate.fits", 9200, 57_000, np.array([1]))
    with fits.open(tmp_path / "plate.fits", mode="update") as hdus:
        hdus[0].header.update(cards)
    with pytest.raises(ValueError, match="which holds"):
        read_plate(tmp_path / "plate.fits", 9200, 57_000, np.array([1]))
