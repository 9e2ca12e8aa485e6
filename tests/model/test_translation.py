"""Numbers of translations against closed forms."""

import numpy as np
import pytest

from skycairn.model.translation import Measured, coverage, light, line_errors, residual

RNG = np.random.default_rng(0)
WAVELENGTH = np.arange(3600.0, 9800.0, 0.8)


def images(n: int = 40) -> Measured:
    """Of three bands, a bright core and sky, errors of 0.1."""
    y, x = np.indices((48, 48)) - 24
    flux = np.exp(-(x**2 + y**2) / 18.0)[None, None] * RNG.uniform(1, 3, (n, 3, 1, 1))
    return Measured(flux, np.full(flux.shape, 100.0), np.ones(flux.shape, bool))


def test_the_residual_is_in_sigma_of_the_good_pixels_alone() -> None:
    data = images()
    assert residual(data.flux, data)[1:] == (0, 0)
    off = data.flux + 0.3
    off[:, :, 0, 0] = np.nan
    data.good[:, :, 0, 0], data.ivar[:, :, 0, 0] = False, np.nan
    assert residual(off, data)[1:] == pytest.approx((3, 3))
    data.good[7] = False
    assert residual(off, data).objects == 39
    with pytest.raises(ValueError, match="shape"):
        residual(off[:, :2], data)


def test_light_and_colour_are_those_of_scaled_bands() -> None:
    data = images()
    found = light(data.flux * np.array([1.0, 1.1, 1.1])[:, None, None], data)
    assert found.objects == 40
    assert found.flux == pytest.approx(0.1)
    # g - r grows by what r is too bright, r - z stays: the mean of the two
    assert found.colour == pytest.approx(2.5 * np.log10(1.1) / 2, rel=1e-3)
    assert light(data.flux, data._replace(ivar=data.ivar * 1e-8)).objects == 0


@pytest.mark.parametrize("samples", [8, 64])
@pytest.mark.parametrize("width, wanted", [(1.0, 0.68), (0.2, 0.16), (5.0, 1.0)])
def test_draws_as_wide_as_the_truth_cover_what_they_claim(samples: int, width: float, wanted: float) -> None:
    """Of an object's brightness its draws know the spread, `width` times too wide, few draws as well as many."""
    n = 1500
    shape = np.exp(-np.hypot(*(np.indices((26, 26)) - 13)) / 3)[None, None]
    own, drawn = 5 + RNG.normal(size=(n, 1, 1, 1)), 5 + width * RNG.normal(size=(n, samples, 1, 1, 1))
    good = np.ones((n, 1, 26, 26), bool)
    good[0, 0, 13, 13] = False
    found = coverage(drawn * shape, own * shape, good)
    assert found.n == n - 1
    assert found.share == pytest.approx(wanted, abs=0.06)


def test_coverage_of_spectra_is_of_pieces_with_enough_good_pixels() -> None:
    n, samples, pixels = 200, 16, 640
    own, draws = (np.broadcast_to(RNG.normal(size=(n, *s, 1)), (n, *s, pixels)) for s in ((), (samples,)))
    good = np.ones((n, pixels), bool)
    good[:, :64] = False
    found = coverage(draws, own, good)
    assert found.n == n * 9
    assert found.share == pytest.approx(0.68, abs=0.1)


@pytest.mark.parametrize("z, sign, centre", [(0.1, 1.0, 5008.24), (0.0, -0.6, 8544.44)])
def test_a_line_that_is_moved_is_found_moved(z: float, sign: float, centre: float) -> None:
    """Emission of a galaxy, absorption of a star; a third of the answers has no line."""

    def spectrum(shift: float, strength: float) -> np.ndarray:
        at = centre * (1 + z) + 0.8 * shift
        return 10 * (1 + sign * strength * np.exp(-0.5 * ((WAVELENGTH - at) / 2.5) ** 2))

    flux = np.stack([spectrum(0.0, 1.0)] * 3)
    data = Measured(flux, np.full(flux.shape, 100.0), np.ones(flux.shape, bool))
    answer = np.stack([spectrum(0.7, 1.0), spectrum(0.7, 1.0), spectrum(0.0, 0.0)])
    found = line_errors(answer, data, WAVELENGTH, np.full(3, z))
    assert (found.lines, found.lost) == (3, 1), "a flat answer has no line"
    assert found.shift_pixels / 1.4826 == pytest.approx(0.7, abs=0.1)
