"""Quality in closed forms: what is put in by hand is found again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skycairn.tokenizers import quality
from skycairn.tokenizers import spectralquality as spectral


def scene(n: int = 6, side: int = 64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Galaxies (n, 2, side, side) from faint to bright, their ivar, and where they are good."""
    y, x = np.mgrid[:side, :side] - side // 2
    light = np.exp(-np.hypot(x, y) / 3)
    truth = light * (10.0 ** np.linspace(0, 2, n))[:, None, None, None] * np.array([1.0, 2.0])[:, None, None]
    ivar = np.full(truth.shape, 4.0)
    return truth, ivar, np.ones(truth.shape, bool)


def errors(decoded: np.ndarray, reference: np.ndarray, ivar: np.ndarray, good: np.ndarray, truth: np.ndarray):
    return quality.errors_by_brightness(decoded, reference, ivar, good, truth * np.sqrt(ivar))


def test_the_truth_has_no_error_and_the_data_one_sigma():
    truth, ivar, good = scene()
    data = truth + np.random.default_rng(0).standard_normal(truth.shape) / np.sqrt(ivar)
    assert np.nanmax(errors(truth, truth, ivar, good, truth).medians()) == 0
    noise = errors(data, truth, ivar, good, truth)
    # some hundred pixels at least in a class
    np.testing.assert_allclose(noise.pooled(), 1, atol=0.1)
    np.testing.assert_allclose(noise.medians(), 1, atol=0.25)
    assert np.abs(noise.bias()).max() < 0.2
    np.testing.assert_allclose(errors(truth, data, ivar, good, truth).pooled(), noise.pooled())


def test_no_light_is_off_by_the_brightness():
    truth, ivar, good = scene()
    dark = errors(np.zeros_like(truth), truth, ivar, good, truth)
    low, high = (0, *quality.EDGES), (*quality.EDGES, 600)
    assert ((dark.pooled() > low) & (dark.pooled() < high)).all()
    np.testing.assert_allclose(dark.bias()[1:] < 0, True)
    assert dark.pixels.sum() == truth.size and len(quality.class_names()) == dark.pixels.shape[1]


def test_a_median_of_objects_is_not_owned_by_one():
    truth, ivar, good = scene(5)
    decoded = truth + 0.05
    decoded[4] += 50.0
    off = errors(decoded, truth, ivar, good, truth)
    assert off.medians()[0] == pytest.approx(0.1) and off.pooled()[0] > 10


def test_bad_pixels_say_nothing_and_inputs_stay():
    truth, ivar, good = scene(2)
    decoded = truth.copy()
    decoded[0, 0], decoded[1, 1, 3, 3] = np.nan, np.inf
    good[0, 0], good[1, 1, 3, 3] = False, False
    ivar[0, 0], truth[1, 1, 3, 3] = 0, np.nan
    before = [a.copy() for a in (decoded, truth, ivar, good)]
    found = errors(decoded, truth, ivar, good, truth)
    assert np.nanmax(found.pooled()) == 0 and found.pixels.sum() == good.sum()
    for a, b in zip(before, (decoded, truth, ivar, good), strict=True):
        np.testing.assert_array_equal(a, b)
    good[1, 1, 3, 3] = True
    with pytest.raises(ValueError, match="row 1: 1 good pixels decode to no finite"):
        errors(decoded, truth, ivar, good, truth)
    with pytest.raises(ValueError, match="wanted one: is the reconstruction cut alike"):
        errors(decoded[..., 1:], truth, ivar, good, truth)
    assert quality.good_pixels(np.array([1, 0, np.inf, 2]), np.array([0, 0, 0, 1], bool)).tolist() == [1, 0, 0, 0]


def test_nothing_at_all():
    empty = np.zeros((0, 1, 8, 8))
    found = errors(empty, empty, empty, empty > 0, empty)
    assert np.isnan(found.medians()).all() and np.isnan(found.pooled()).all() and not found.objects().any()
    assert quality.joined([found, found]).pixels.shape == (0, 6)
    seen = quality.aperture(empty, empty, empty, empty > 0, 3)
    assert quality.flux_bias(seen, 0, 10) == quality.NOTHING == quality.colour_bias(seen, 0, 0, 10)


def test_two_percent_of_flux_are_found_and_a_colour():
    truth, ivar, good = scene()
    decoded = truth * np.array([1.02, 0.99])[:, None, None]
    seen = quality.aperture(truth, decoded, ivar, good, 12)
    for band, expected in ((0, 0.02), (1, -0.01)):
        bias = quality.flux_bias(seen, band, 10)
        assert bias.n == 6 - (seen.truth[:, band] / seen.sigma[:, band] < 10).sum() >= 4
        assert (bias.median, bias.of_sum, bias.scatter) == pytest.approx((expected, expected, 0))
    colour = quality.colour_bias(seen, 0, 1, 10)
    assert colour.median == pytest.approx(-2.5 * np.log10(1.02 / 0.99)) and np.isnan(colour.of_sum)
    # light per pixel is 0.5 of noise in some 441 pixels
    assert seen.sigma[0, 0] == pytest.approx(0.5 * np.sqrt(np.pi) * 12, rel=0.02)
    good[0, 0, 32, 32] = False
    assert quality.aperture(truth, decoded, ivar, good, 12).whole[0].tolist() == [False, True]
    assert quality.flux_bias(seen, 0, 1e9).n == 0


@given(st.integers(2, 64), st.integers(1, 40))
def test_codes_evenly_used_are_all_worth_their_bits(vocabulary, repeats):
    tokens = np.tile(np.arange(vocabulary), repeats).reshape(repeats, vocabulary)
    found = quality.codes(tokens, vocabulary)
    assert (found.used, found.dead, found.share) == (vocabulary, 0, 1)
    assert found.perplexity == pytest.approx(vocabulary) and found.entropy_bits == pytest.approx(found.bits)


def test_codes_not_used_are_dead():
    found = quality.codes(np.array([[3, 3], [3, 3]]), 8)
    assert found == (2, 8, 1, 1, 6, 0) and found.dead == 7
    found = quality.codes(np.array([[0, 1], [0, 2]]), 4)
    assert found.perplexity == pytest.approx(2**1.5) and found.entropy_bits == pytest.approx(3)
    assert quality.codes(np.zeros((0, 5), np.uint16), 4).used == 0
    with pytest.raises(ValueError, match="run from 0 to 4, wanted 0 to 3"):
        quality.codes(np.array([[0, 4]]), 4)


# -- spectra


WAVE = 3600 + 0.8 * np.arange(7781)
Z = 0.12


def spectrum(pixels: float = 0.0, strength: float = 1.0, velocity: float = 0.0) -> np.ndarray:
    """A sloping continuum and lines 1.6 A wide, moved by so many pixels and km/s."""
    flux = 5 + 1e-4 * (WAVE - 3600)
    for k, rest in enumerate(spectral.EMISSION.values()):
        centre = rest * (1 + Z) * (1 + velocity / spectral.LIGHT_KM_S) + 0.8 * pixels
        flux = flux + strength * (2 + k % 3) * np.exp(-0.5 * ((WAVE - centre) / 1.6) ** 2)
    return flux


IVAR, GOOD = np.full(WAVE.shape, 25.0), np.ones(WAVE.shape, bool)


@pytest.mark.parametrize("pixels", [0.0, 0.3, -1.25])
def test_a_line_shifted_by_some_pixels_is_found_there(pixels):
    found = spectral.lines(WAVE, spectrum(), spectrum(pixels), IVAR, GOOD, Z)
    assert {f.name for f in found} >= {"[O II] 3728", "H beta", "[O III] 5008", "H alpha", "[S II] 6718"}
    np.testing.assert_allclose([f.shift_pixels for f in found], pixels, atol=0.03)
    alone = next(f for f in found if f.name == "H beta")
    assert alone.width_true == pytest.approx(2 * 1.6 * np.sqrt(2 * np.pi) / 5.18, rel=0.02)


def test_equivalent_width_follows_the_line_and_not_the_flux():
    found = spectral.lines(WAVE, spectrum(), spectrum(strength=0.8), IVAR, GOOD, Z)
    isolated = [f for f in found if f.name in ("[O II] 3728", "H beta", "[O III] 5008")]
    np.testing.assert_allclose([f.width_decoded / f.width_true for f in isolated], 0.8, atol=0.01)
    found = spectral.lines(WAVE, spectrum(), 1.3 * spectrum(), IVAR, GOOD, Z)
    np.testing.assert_allclose([f.width_decoded / f.width_true for f in found], 1, atol=1e-6)
    np.testing.assert_allclose([f.shift_pixels for f in found], 0, atol=1e-6)


def test_only_lines_that_are_there_and_seen():
    assert spectral.lines(WAVE, spectrum(), spectrum(), IVAR, GOOD, np.nan) == []
    assert spectral.lines(WAVE, spectrum(), spectrum(), IVAR * 1e-3, GOOD, Z) == []
    assert spectral.lines(WAVE, spectrum(strength=-0.5), spectrum(), IVAR, GOOD, Z) == []
    bad = GOOD & ~(np.abs(WAVE - 6564.61 * (1 + Z)) < 5)
    assert not {"H alpha"} & {f.name for f in spectral.lines(WAVE, spectrum(), spectrum(), IVAR, bad, Z)}
    gone = spectral.lines(WAVE, spectrum(), spectrum(strength=0), IVAR, GOOD, Z)
    assert gone and all(np.isnan(f.shift_pixels) for f in gone if f.name == "H beta")
    np.testing.assert_allclose([f.width_decoded for f in gone], 0, atol=0.02)
    dark = spectral.lines(WAVE, spectrum(), np.zeros_like(WAVE), IVAR, GOOD, Z)
    assert all(np.isnan(f.shift_pixels) and np.isnan(f.width_decoded) for f in dark)


@pytest.mark.parametrize("velocity", [0.0, 60.0, -430.0])
def test_a_redshift_is_found_where_it_was_moved_to(velocity):
    moved = spectrum(velocity=velocity)
    assert spectral.redshift_shift(WAVE, spectrum(), moved, IVAR, GOOD) == pytest.approx(velocity, abs=2)
    # on the logarithmic grid of SDSS too, with bad pixels that hold anything
    log = 10 ** (3.58 + 1e-4 * np.arange(3900))
    truth, other = (np.interp(log, WAVE, f) for f in (spectrum(), moved))
    good = np.random.default_rng(1).random(len(log)) > 0.05
    other[~good] = 1e6
    ivar = np.full(len(log), 4.0)
    assert spectral.redshift_shift(log, truth, other, ivar, good) == pytest.approx(velocity, abs=5)


def test_a_redshift_of_nothing_is_lost():
    assert np.isnan(spectral.redshift_shift(WAVE, spectrum(), np.zeros_like(WAVE), IVAR, GOOD))
    assert np.isnan(spectral.redshift_shift(WAVE, spectrum(), spectrum(), IVAR, ~GOOD))
