from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skycairn.tokenizers.codec import load
from skycairn.tokenizers.patches import PatchImageCodec, PatchSpectrumCodec, UniformImageCodec

BANDS = ("g", "r", "z")
SIGMA = np.array([0.003, 0.005, 0.01])


def galaxies(n: int, side: int = 160, seed: int = 0, bands: int = 3) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """True nanomaggies and noisy measurements of exponential galaxies, the brightest in the middle."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] - side // 2
    truth = np.zeros((n, bands, side, side))
    for i in range(n):
        for j in range(3):
            x0, y0 = (0, 0) if j == 0 else rng.uniform(-side / 2, side / 2, 2)
            angle, axis, radius = rng.uniform(0, np.pi), rng.uniform(0.3, 1), 10 ** rng.uniform(0.3, 1.2)
            u = (x - x0) * np.cos(angle) + (y - y0) * np.sin(angle)
            v = (-(x - x0) * np.sin(angle) + (y - y0) * np.cos(angle)) / axis
            light = np.exp(-np.sqrt(u**2 + v**2 + 1.5**2) / radius)
            colour = np.array([0.4, 0.8, 1.6])[:bands] * 10 ** (rng.normal(0, 0.15) * np.arange(bands))
            truth[i] += 10 ** rng.uniform(0, 2) * colour[:, None, None] * light / light.sum()
    sigma = SIGMA[:bands, None, None]
    flux = truth + rng.normal(size=truth.shape) * sigma
    ivar = np.broadcast_to(1 / sigma**2, truth.shape).copy()
    return truth, {"flux": flux.astype("f4"), "ivar": ivar.astype("f4"), "mask": np.zeros(truth.shape, bool)}


def spectra(n: int, n_pixels: int = 7781, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """True and noisy spectra: power laws, a 4000 A break, lines; S/N a pixel from 0.3 to 30; noise that varies."""
    rng = np.random.default_rng(seed)
    wave = 3600 + 0.8 * np.arange(n_pixels)
    truth = np.zeros((n, n_pixels))
    for i in range(n):
        z, width = rng.uniform(0, 0.6), rng.uniform(2, 10)
        truth[i] = (wave / 6500) ** rng.normal(0, 1) * (1 - 0.4 / (1 + np.exp((wave / (1 + z) - 4000) / 30)))
        for line, strength in ((3728, 0.6), (4862, 0.4), (5008, 1.2), (6564, 1.5), (3934, -0.3), (5175, -0.2)):
            truth[i] += strength * np.exp(-0.5 * ((wave / (1 + z) - line) / width) ** 2)
        truth[i] *= 10 ** rng.uniform(-0.5, 1.5)
    sigma = 1 + 3 * np.exp((3600 - wave) / 250) + 5 * ((wave > 7200) & (rng.random(n_pixels) < 0.08))
    flux = truth + rng.normal(size=truth.shape) * sigma
    ivar = np.broadcast_to(1 / sigma**2, truth.shape).copy()
    return truth, {"flux": flux.astype("f4"), "ivar": ivar.astype("f4"), "mask": np.zeros(truth.shape, bool)}


@pytest.fixture(scope="module")
def image_codec() -> PatchImageCodec:
    return PatchImageCodec.fit(galaxies(60)[1], BANDS)


@pytest.fixture(scope="module")
def spectrum_codec() -> PatchSpectrumCodec:
    return PatchSpectrumCodec.fit(spectra(100)[1])


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    return galaxies(24, seed=1)


def cropped(a: np.ndarray) -> np.ndarray:
    return a[..., 32:128, 32:128]


def test_images_come_back(image_codec, images):
    truth, measured = images
    tokens = image_codec.encode(measured)
    assert tokens.shape == (24, 576)
    assert tokens.dtype == np.uint16
    assert image_codec.vocabulary <= 4375
    flux = image_codec.decode(tokens)["flux"]
    assert flux.shape == (24, 3, 96, 96)
    data, light = cropped(measured["flux"]), cropped(truth)
    chi2 = (((flux - data) / SIGMA[:, None, None]) ** 2).mean(axis=(1, 2, 3))
    zero = ((data / SIGMA[:, None, None]) ** 2).mean(axis=(1, 2, 3))
    assert np.median(chi2) < 1.2
    assert (chi2 < 0.3 * zero + 1.2).all()
    # the cores keep their light
    assert ((flux - data) ** 2).sum() < 0.2 * (data**2).sum()
    # closer to the true sky than the measurement itself is, over most of the image
    assert (((flux - light) / SIGMA[:, None, None]) ** 2).mean(axis=(1, 2, 3)).min() < 0.4
    total = flux.sum(axis=(2, 3)) / light.sum(axis=(2, 3)) - 1
    assert (np.abs(np.median(total, axis=0)) < 0.08).all()
    # faint light is not drawn to zero
    faint = (light > 0.5 * SIGMA[:, None, None]) & (light < 2 * SIGMA[:, None, None])
    assert flux[faint].sum() / light[faint].sum() == pytest.approx(1, abs=0.06)


def test_image_tokens_come_back(image_codec, images):
    tokens = image_codec.encode(images[1])
    flux = image_codec.decode(tokens)["flux"]
    again = {"flux": flux, "ivar": np.ones_like(flux), "mask": np.zeros(flux.shape, bool)}
    np.testing.assert_array_equal(image_codec.encode(again), tokens)


def test_the_first_number_of_a_token_is_how_much_there_is_of_the_first_component(image_codec, spectrum_codec):
    for codec in (image_codec, spectrum_codec):
        first, rest = codec.levels[0], int(np.prod(codec.levels[1:]))
        assert first > 1 and first * rest <= codec.vocabulary
        codes = np.arange(first) + first * (rest // 2)
        patches = codec.basis.decode(codes)
        along = (patches - patches[0]) @ (patches[-1] - patches[0])
        assert (np.diff(along) > 0).all()


def test_pixel_n_half_of_the_input_is_pixel_48_of_the_crop(image_codec):
    for side in (96, 97, 160, 161):
        flux = np.zeros((1, 3, side, side))
        flux[:, :, side // 2, side // 2] = 5.0
        m = {"flux": flux, "ivar": np.full(flux.shape, 1e5), "mask": np.zeros(flux.shape, bool)}
        blank = dict(m, flux=np.zeros_like(flux))
        changed = np.flatnonzero((image_codec.encode(m) != image_codec.encode(blank))[0])
        expected = 48 // 4 * 24 + 48 // 4 if side % 2 == 0 else (side // 2 - (side - 96) // 2) // 4 * 25
        assert changed.tolist() == [expected]


@pytest.mark.parametrize(("side", "crop"), [(16, 8), (16, 7), (17, 8), (17, 7)])
def test_the_middle_pixel_stays_the_middle_for_every_parity(side, crop):
    flux = np.zeros((4, 1, side, side))
    flux[:, 0, side // 2, side // 2] = [1.0, 2.0, 3.0, 4.0]
    m = {"flux": flux, "ivar": np.full(flux.shape, 1e4), "mask": np.zeros(flux.shape, bool)}
    codec = PatchImageCodec.fit(m, bands=("r",), crop=crop, patch=1, codes=8)
    back = codec.decode(codec.encode(m))["flux"][:, 0]
    assert [np.unravel_index(np.argmax(b), b.shape) for b in back] == [(crop // 2, crop // 2)] * 4


def test_image_rows_and_columns_are_not_swapped(image_codec):
    flux = np.zeros((1, 3, 96, 96))
    flux[0, :, 2, 90] = 5.0
    m = {"flux": flux, "ivar": np.full(flux.shape, 1e5), "mask": np.zeros(flux.shape, bool)}
    back = image_codec.decode(image_codec.encode(m))["flux"][0, 1]
    y, x = np.unravel_index(np.argmax(back), back.shape)
    assert (y // 4, x // 4) == (0, 22)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.9), st.sampled_from([np.nan, np.inf, -1e30, 7.0]))
def test_what_lies_under_the_mask_never_matters(image_codec, images, seed, share, junk):
    rng = np.random.default_rng(seed)
    m = {k: v[:2].copy() for k, v in images[1].items()}
    m["mask"] = rng.random(m["flux"].shape) < share
    dead = rng.random(m["flux"].shape) < 0.1
    m["ivar"][dead] = 0
    tokens = image_codec.encode(m)
    other = {k: v.copy() for k, v in m.items()}
    other["flux"][m["mask"] | dead] = junk
    other["ivar"][m["mask"]] = junk
    np.testing.assert_array_equal(image_codec.encode(other), tokens)


def test_a_few_bad_pixels_cost_little(image_codec, images):
    truth, measured = images
    m = {k: v.copy() for k, v in measured.items()}
    m["mask"] = np.random.default_rng(3).random(m["flux"].shape) < 0.2
    m["flux"][m["mask"]] = 1e4
    light = cropped(truth)

    def error(measurement):
        flux = image_codec.decode(image_codec.encode(measurement))["flux"]
        return np.median((((flux - light) / SIGMA[:, None, None]) ** 2).mean(axis=(1, 2, 3)))

    assert error(m) < 1.3 * error(measured)


def test_a_missing_band_is_told_from_the_others(image_codec, images):
    truth, measured = images
    m = {k: v.copy() for k, v in measured.items()}
    m["mask"][:, 1], m["ivar"][:, 1], m["flux"][:, 1] = True, 0, np.nan
    flux = image_codec.decode(image_codec.encode(m))["flux"]
    light = cropped(truth)
    ratio = flux[:, 1].sum(axis=(1, 2)) / light[:, 1].sum(axis=(1, 2))
    assert np.median(ratio) == pytest.approx(1, abs=0.25)
    full = image_codec.decode(image_codec.encode(measured))["flux"]
    for band in (0, 2):
        kept = np.abs(flux[:, band].sum(axis=(1, 2)) / full[:, band].sum(axis=(1, 2)) - 1)
        assert np.median(kept) < 0.15


def test_an_image_of_bad_pixels_alone_and_no_image_at_all(image_codec, images):
    m = {k: v[:1].copy() for k, v in images[1].items()}
    m["mask"][:] = True
    flux = image_codec.decode(image_codec.encode(m))["flux"]
    assert np.abs(flux / SIGMA[:, None, None]).max() < 1
    tokens = image_codec.encode({k: v[:0] for k, v in m.items()})
    assert tokens.shape == (0, 576)
    assert image_codec.decode(tokens)["flux"].shape == (0, 3, 96, 96)


def test_a_sky_that_was_taken_off_too_much_stays_negative(image_codec):
    noise = np.random.default_rng(0).normal(size=(20, 3, 96, 96)) * SIGMA[:, None, None]
    ivar = np.broadcast_to(1 / SIGMA[:, None, None] ** 2, noise.shape)
    for level in (-0.3, 0.0, 0.3):
        m = {"flux": noise + level * SIGMA[:, None, None], "ivar": ivar, "mask": np.zeros(noise.shape, bool)}
        back = image_codec.decode(image_codec.encode(m))["flux"].mean(axis=(0, 2, 3))
        np.testing.assert_allclose(back / SIGMA, level, atol=0.1)


def test_a_source_has_the_same_tokens_alone_and_among_others(image_codec, images, spectrum_codec):
    for codec, m in ((image_codec, images[1]), (spectrum_codec, spectra(70, seed=2)[1])):
        tokens = codec.encode(m)
        for i in (0, 7, len(tokens) - 1):
            np.testing.assert_array_equal(codec.encode({k: v[i : i + 1] for k, v in m.items()})[0], tokens[i])


def test_the_callers_arrays_are_left_alone_and_float64_is_the_same(image_codec, images):
    m = {k: v[:3].copy() for k, v in images[1].items()}
    m["flux"][0, 0, 80, 80] = np.nan
    m["mask"][0, 0, 80, 80] = True
    before = {k: v.copy() for k, v in m.items()}
    tokens = image_codec.encode(m)
    for k in m:
        np.testing.assert_array_equal(m[k], before[k])
    wide = {k: v if k == "mask" else v.astype(np.float64) for k, v in m.items()}
    np.testing.assert_array_equal(image_codec.encode(wide), tokens)


def test_image_ids(tmp_path, images):
    m = {k: v[:5] for k, v in images[1].items()}
    codec = PatchImageCodec.fit(m, BANDS)
    order = np.random.default_rng(0).permutation(5)
    assert PatchImageCodec.fit({k: v[order] for k, v in m.items()}, BANDS).content_id == codec.content_id
    junk = {k: v.copy() for k, v in m.items()}
    junk["mask"][:, :, 60, 60] = True
    masked = PatchImageCodec.fit(junk, BANDS)
    junk["flux"][:, :, 60, 60] = np.nan
    assert PatchImageCodec.fit(junk, BANDS).content_id == masked.content_id
    others = [{"bands": ("g", "z", "r")}, {"crop": 64}, {"patch": 8}, {"codes": 1000}, {"softening": 3.0}]
    ids = {PatchImageCodec.fit(m, **{"bands": BANDS, **o}).content_id for o in others}
    assert len({*ids, codec.content_id, masked.content_id}) == 7
    codec.save(tmp_path)
    again = load(tmp_path)
    assert again.content_id == codec.content_id
    np.testing.assert_array_equal(again.encode(m), codec.encode(m))


@pytest.mark.parametrize("n", [1, 5, 20])
def test_few_images_give_a_valid_codec(images, n):
    m = {k: v[:n] for k, v in images[1].items()}
    codec = PatchImageCodec.fit(m, BANDS)
    assert codec.n_fit == n
    data = cropped(m["flux"]) / SIGMA[:, None, None]
    flux = codec.decode(codec.encode(m))["flux"] / SIGMA[:, None, None]
    assert ((flux - data) ** 2).mean() < 0.2 * (data**2).mean() + 1


def test_a_band_that_no_fitted_image_has():
    m = galaxies(3)[1]
    m["mask"][:, 2] = True
    codec = PatchImageCodec.fit(m, BANDS)
    flux = codec.decode(codec.encode(m))["flux"]
    assert np.isfinite(flux).all()
    assert (flux[:, 2] == 0).all()


def test_blank_images_give_a_codec_of_blank_sky():
    flux = np.zeros((2, 1, 96, 96))
    codec = PatchImageCodec.fit({"flux": flux, "ivar": flux + 1, "mask": flux > 1}, ["r"])
    assert codec.vocabulary == 1
    assert (codec.decode(np.zeros((1, 576), np.uint16))["flux"] == 0).all()


def test_images_that_cannot_be_are_refused(image_codec, images):
    m = {k: v[:2].copy() for k, v in images[1].items()}
    small = {k: v[..., :64, :] for k, v in m.items()}
    with pytest.raises(ValueError, match=r"\(2, 3, 64, 160\), wanted .* 96 pixels or more"):
        image_codec.encode(small)
    with pytest.raises(ValueError, match=r"wanted \(n, 3, y, x\) with bands g, r, z"):
        image_codec.encode({k: v[:, :2] for k, v in m.items()})
    with pytest.raises(ValueError, match="lacks ivar, mask"):
        image_codec.encode({"flux": m["flux"]})
    with pytest.raises(ValueError, match="wanted bool"):
        image_codec.encode({**m, "mask": m["mask"].astype(int)})
    for name, value in (("flux", np.nan), ("flux", np.inf), ("ivar", np.nan), ("ivar", -1.0)):
        bad = {k: v.copy() for k, v in m.items()}
        bad[name][1, 2, 70, 80] = value
        with pytest.raises(ValueError, match=rf"row 1, pixel \(2, 38, 48\): {name} is"):
            image_codec.encode(bad)
    with pytest.raises(ValueError, match="no good pixel"):
        PatchImageCodec.fit({**m, "ivar": 0 * m["ivar"]}, BANDS)
    with pytest.raises(ValueError, match="wanted 0 to"):
        image_codec.decode(np.full((1, 576), image_codec.vocabulary, np.uint16))


def test_spectra_come_back(spectrum_codec):
    truth, measured = spectra(60, seed=1)
    tokens = spectrum_codec.encode(measured)
    assert tokens.shape == (60, 273)
    assert tokens.dtype == np.uint16
    assert spectrum_codec.vocabulary == 1024
    flux = spectrum_codec.decode(tokens)["flux"]
    ivar = measured["ivar"]
    chi2 = ((flux - measured["flux"]) ** 2 * ivar).mean(axis=1)
    zero = (measured["flux"] ** 2 * ivar).mean(axis=1)
    assert np.median(chi2) < 1.15
    assert (chi2 < 0.05 * zero + 1.1).all()
    # the noise is not coded: nearer to the truth than the measurement is
    assert np.median(((flux - truth) ** 2 * ivar).mean(axis=1)) < 0.3
    bias = flux.mean(axis=1) / truth.mean(axis=1) - 1
    assert abs(np.median(bias)) < 0.005
    assert bias.std() < 0.04


def test_a_line_stays_where_it_is(spectrum_codec):
    wave = 3600 + 0.8 * np.arange(7781)
    for centre in (3601.0, 4000.0, 6564.6, 9823.0):
        flux = 1 + 3 * np.exp(-0.5 * ((wave - centre) / 4) ** 2)[None]
        m = {"flux": flux, "ivar": np.full(flux.shape, 100.0), "mask": np.zeros(flux.shape, bool)}
        back = spectrum_codec.decode(spectrum_codec.encode(m))["flux"][0]
        assert abs(wave[np.argmax(back)] - centre) < 8


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.95), st.sampled_from([np.nan, np.inf, -1e30, 7.0]))
def test_what_lies_under_a_spectrums_mask_never_matters(spectrum_codec, seed, share, junk):
    rng = np.random.default_rng(seed)
    m = spectra(2, seed=4)[1]
    m["mask"] = rng.random(m["flux"].shape) < share
    dead = rng.random(m["flux"].shape) < 0.1
    m["ivar"][dead] = 0
    tokens = spectrum_codec.encode(m)
    m["flux"][m["mask"] | dead] = junk
    m["ivar"][m["mask"]] = junk
    np.testing.assert_array_equal(spectrum_codec.encode(m), tokens)


def test_a_masked_stretch_is_bridged_and_the_rest_kept(spectrum_codec):
    truth, m = spectra(20, seed=1)
    bad = slice(3000, 3700)
    m["mask"][:, bad], m["flux"][:, bad], m["ivar"][:, bad] = True, np.nan, 0
    flux = spectrum_codec.decode(spectrum_codec.encode(m))["flux"]
    assert np.isfinite(flux).all()
    good = ~m["mask"]
    assert np.median(((flux - truth) ** 2 * m["ivar"])[good].reshape(20, -1).mean(axis=1)) < 0.3


def test_spectra_without_light_without_pixels_and_below_zero(spectrum_codec):
    shape = (3, 7781)
    flux = np.zeros(shape)
    flux[1] = -4.0
    m = {"flux": flux, "ivar": np.ones(shape), "mask": np.zeros(shape, bool)}
    m["ivar"][2] = 0
    tokens = spectrum_codec.encode(m)
    back = spectrum_codec.decode(tokens)["flux"]
    assert np.abs(back[0]).max() < 1
    assert back[1].mean() == pytest.approx(-4, rel=0.1)
    assert tokens[2, 0] == 0
    assert (back[2] == 0).all()
    assert spectrum_codec.encode({k: v[:0] for k, v in m.items()}).shape == (0, 273)


def test_amplitudes_over_eight_decades(spectrum_codec):
    truth = spectra(1, seed=6)[0]
    for factor in (1e-3, 1.0, 1e5):
        flux = truth * factor / truth.mean()
        m = {"flux": flux, "ivar": np.full(flux.shape, (30 / factor) ** 2), "mask": np.zeros(flux.shape, bool)}
        back = spectrum_codec.decode(spectrum_codec.encode(m))["flux"]
        assert back.mean() == pytest.approx(factor, rel=0.02)


def test_spectrum_ids(tmp_path):
    m = spectra(5)[1]
    codec = PatchSpectrumCodec.fit(m)
    assert PatchSpectrumCodec.fit({k: v[::-1] for k, v in m.items()}).content_id == codec.content_id
    others = [{"start": 3500.0}, {"step": 1.0}, {"n_patches": 100}, {"codes": 512}, {"amplitude_range": (1e-3, 1e6)}]
    assert len({codec.content_id, *(PatchSpectrumCodec.fit(m, **o).content_id for o in others)}) == 6
    codec.save(tmp_path)
    np.testing.assert_array_equal(load(tmp_path).encode(m), codec.encode(m))


@pytest.mark.parametrize("n", [1, 20])
def test_few_spectra_give_a_valid_codec(n):
    m = spectra(n, seed=8)[1]
    codec = PatchSpectrumCodec.fit(m)
    flux = codec.decode(codec.encode(m))["flux"]
    ivar = m["ivar"]
    assert ((flux - m["flux"]) ** 2 * ivar).mean() < 0.1 * (m["flux"] ** 2 * ivar).mean() + 1.1


def test_spectra_of_another_grid_are_refused(spectrum_codec):
    m = spectra(2, n_pixels=4000)[1]
    with pytest.raises(ValueError, match="have 4000 pixels, wanted 7781"):
        spectrum_codec.encode(m)
    short = PatchSpectrumCodec.fit(m, step=1.5)
    assert short.decode(short.encode(m))["flux"].shape == (2, 4000)


def test_a_real_image(real_data: Path):
    from astropy.io import fits

    with fits.open(real_data / "legacysurvey/viewer-cutouts/astroclip_test_image_357.9087_-54.8817.fits") as hdus:
        flux = hdus[0].data.astype(np.float64)[None]
    sigma = 1.4826 * np.median(np.abs(flux - np.median(flux, axis=(2, 3), keepdims=True)), axis=(2, 3), keepdims=True)
    m = {"flux": flux, "ivar": np.broadcast_to(1 / sigma**2, flux.shape), "mask": np.zeros(flux.shape, bool)}
    codec = PatchImageCodec.fit(m, BANDS)
    back = codec.decode(codec.encode(m))["flux"]
    data = flux[..., 80:176, 80:176]
    assert (((back - data) / sigma) ** 2).mean() < 0.2 * ((data / sigma) ** 2).mean()
    np.testing.assert_allclose(back.sum(axis=(2, 3)), data.sum(axis=(2, 3)), rtol=0.1)


def without_ivar(measurement: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"flux": measurement["flux"], "mask": measurement["mask"]}


@pytest.fixture(scope="module")
def uniform_codec() -> UniformImageCodec:
    return UniformImageCodec.fit(without_ivar(galaxies(60)[1]), BANDS)


def test_uniform_weights_are_those_of_equal_noise(uniform_codec: UniformImageCodec) -> None:
    """Where every pixel of a band has the same noise, and this is the scatter, ivar says no more than its absence."""
    _, m = galaxies(60)
    level = np.array(
        [1.4826 * np.median(np.abs(f - np.median(f))) for f in m["flux"][..., 32:128, 32:128].swapaxes(0, 1)]
    )
    ivar = np.broadcast_to((1 / level**2)[:, None, None], m["flux"].shape)
    known = PatchImageCodec.fit({**m, "ivar": ivar}, BANDS)
    np.testing.assert_allclose(uniform_codec.softening, known.softening, rtol=1e-6)
    np.testing.assert_allclose(uniform_codec.softening, 4 * level, rtol=1e-6)
    same = uniform_codec.encode(without_ivar(m)) == known.encode({**m, "ivar": ivar})
    assert same.mean() > 0.999
    assert uniform_codec.content_id != known.content_id


def test_an_image_without_ivar_is_one_measurement_and_one_with_it_another(uniform_codec: UniformImageCodec) -> None:
    _, m = galaxies(4, seed=9)
    for ask in (uniform_codec.encode, uniform_codec.sees, lambda given: UniformImageCodec.fit(given, BANDS)):
        with pytest.raises(ValueError, match="images with ivar came to a codec of those without"):
            ask(m)
    tokens = uniform_codec.encode(without_ivar(m))
    back = uniform_codec.decode(tokens)["flux"]
    np.testing.assert_array_equal(uniform_codec.encode({"flux": back, "mask": np.zeros(back.shape, bool)}), tokens)
    assert uniform_codec.settings()["weights"] == "uniform"
    with pytest.raises(ValueError, match="weights 'ivar', wanted 'uniform'"):
        UniformImageCodec.restore({**uniform_codec.settings(), "weights": "ivar"}, uniform_codec.arrays())


def test_masked_pixels_have_no_influence_without_ivar_either(uniform_codec: UniformImageCodec) -> None:
    m = without_ivar(galaxies(3, seed=5)[1])
    mask = np.random.default_rng(1).random(m["flux"].shape) < 0.1
    mask[0, 1] = True
    spoilt = np.where(mask, np.nan, m["flux"])
    tokens = uniform_codec.encode({"flux": spoilt, "mask": mask})
    np.testing.assert_array_equal(tokens, uniform_codec.encode({"flux": m["flux"], "mask": mask}))
    assert uniform_codec.sees({"flux": spoilt, "mask": mask}).all()
    assert not uniform_codec.sees({"flux": spoilt, "mask": np.ones(mask.shape, bool)}).any()


def test_a_band_without_pixels_takes_the_others_softening_and_blank_images_fit_nothing() -> None:
    m = without_ivar(galaxies(5)[1])
    m["mask"][:, 1] = True
    soft = UniformImageCodec.fit(m, BANDS).softening
    assert soft[1] == pytest.approx(np.median(soft[[0, 2]]), rel=1e-6) and (soft > 0).all()
    with pytest.raises(ValueError, match="are all alike"):
        UniformImageCodec.fit({"flux": np.ones((2, 3, 96, 96)), "mask": np.zeros((2, 3, 96, 96), bool)}, BANDS)


def test_wavelengths_that_are_not_the_codecs_are_refused(spectrum_codec):
    _, some = spectra(2)
    own = 3600 + 0.8 * np.arange(7781)
    tokens = spectrum_codec.encode(some)
    for fits in (own, np.stack([own, own])):
        assert (spectrum_codec.encode({**some, "wavelength": fits}) == tokens).all()
    for other in (own[::-1], own / 10, own[:-1], np.where(own > 5000, np.nan, own), "3600"):
        with pytest.raises(ValueError, match=r"wanted the codec's own 7781, 3600\.00 to 9824\.00 Angstrom"):
            spectrum_codec.encode({**some, "wavelength": other})


def test_real_spectra(real_data: Path):
    from astropy.io import fits

    with fits.open(real_data / "desi/coadd-nofibermap/test_coadd.fits") as hdus:
        total, weight = np.zeros((25, 7781)), np.zeros((25, 7781))
        for arm in "BRZ":
            pixels = np.round((hdus[f"{arm}_WAVELENGTH"].data - 3600) / 0.8).astype(int)
            total[:, pixels] += hdus[f"{arm}_FLUX"].data * hdus[f"{arm}_IVAR"].data
            weight[:, pixels] += hdus[f"{arm}_IVAR"].data
    seen = weight.sum(axis=1) > 0
    assert not seen.all()  # a spectrum without a good pixel is among them
    flux = np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)
    m = {"flux": flux, "ivar": weight, "mask": weight == 0}
    codec = PatchSpectrumCodec.fit({k: v[:12] for k, v in m.items()})
    tokens = codec.encode(m)
    assert (tokens[~seen, 0] == 0).all()
    back = codec.decode(tokens)["flux"]
    good = (weight > 0).sum(axis=1)[seen]
    chi2 = np.nansum((back - flux) ** 2 * weight, axis=1)[seen] / good
    zero = np.nansum(flux**2 * weight, axis=1)[seen] / good
    assert np.median(chi2[11:]) < 2
    assert (chi2 < 0.1 * zero + 2).all()


def test_an_image_without_a_good_pixel_in_the_crop_is_not_seen() -> None:
    rng = np.random.default_rng(0)
    flux = rng.normal(size=(3, 2, 32, 32)).astype(np.float32)
    ivar, mask = np.ones_like(flux), np.zeros(flux.shape, bool)
    mask[1, :, 8:24, 8:24] = True  # the centre masked, the rim good
    ivar[1][mask[1]] = 0
    mask[2, 0], ivar[2, 0] = True, 0  # one band missing altogether
    image = {"flux": np.where(mask, 0, flux), "ivar": ivar, "mask": mask}
    codec = PatchImageCodec.fit(image, bands=("g", "r"), crop=16)
    assert codec.sees(image).tolist() == [True, False, True]
