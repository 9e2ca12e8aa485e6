"""What the weights that a spectrum network begins from say before a step of training."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from skycairn.tokenizers import spectrumstart
from skycairn.tokenizers.spectrum import SpectrumCodec

WAVELENGTH = 3500.0 + 0.8 * np.arange(8704)


def measured(flux: NDArray[np.float64], sigma: float = 0.01) -> dict[str, NDArray[np.generic]]:
    flux = np.atleast_2d(flux)
    return {
        "flux": flux,
        "ivar": np.full(flux.shape, sigma**-2),
        "mask": np.zeros(flux.shape, bool),
        "wavelength": np.broadcast_to(WAVELENGTH, flux.shape).copy(),
    }


@pytest.fixture(scope="module")
def codec() -> SpectrumCodec:
    return SpectrumCodec.fresh("tiny", seed=3)


def test_a_smooth_spectrum_is_told_to_its_levels(codec: SpectrumCodec) -> None:
    flux = 1.0 + 0.4 * np.sin(WAVELENGTH / 900)
    again = codec.decode(codec.encode(measured(flux)))["flux"][0]
    levels = np.array(spectrumstart.LEVELS[0])
    step = np.interp(flux, levels[1:], np.diff(levels))
    # half a step, a slope at the edge of its level, and some per cent that the norms take off what is bright
    assert np.all(np.abs(again - flux) < 0.5 * step + 0.05 * flux + 0.09)


def test_each_level_of_the_mean_has_its_code_and_decodes_to_itself(codec: SpectrumCodec) -> None:
    levels = np.array(spectrumstart.LEVELS[0])
    flux = np.ones((32, 8704))  # so that the amplitude is 1
    flux[:, 3200:4480] = levels[:, None]
    tokens = codec.encode(measured(flux))
    bits = codec.network.quantizer.channels(torch.from_numpy(tokens[:, 1:].astype(np.int64)))[:, 120]
    assert bits[:, :5].tolist() == [spectrumstart._gray(i, 5) for i in range(32)]
    again = codec.decode(tokens)["flux"][:, 3840:3872].mean(axis=1)
    np.testing.assert_allclose(again[:30], levels[:30], rtol=0.07, atol=0.03)
    np.testing.assert_allclose(again[30:], levels[30:], rtol=0.25)  # beside the brightest the norms' constants are few


def test_a_line_is_seen_on_its_own_side_of_a_token(codec: SpectrumCodec) -> None:
    flux = np.ones((2, 8704))
    for row, at in enumerate((3200 + 6, 3200 + 26)):
        flux[row] += 6 * np.exp(-0.5 * ((np.arange(8704) - at) / 2.0) ** 2)
    again = codec.decode(codec.encode(measured(flux)))["flux"][:, 3200:3232]
    assert again[0, :16].mean() > again[0, 16:].mean() + 0.2
    assert again[1, 16:].mean() > again[1, :16].mean() + 0.2


def test_weights_of_other_forms_stay_random() -> None:
    for size, preprocessing in (("small", "skycairn"), ("tiny", "aion")):
        codec = SpectrumCodec.fresh(size, seed=1, preprocessing=preprocessing)
        assert codec.network.quant_conv.weight.abs().min() > 0
    assert not spectrumstart.can_begin(SpectrumCodec.fresh("small").network)
    assert spectrumstart.can_begin(SpectrumCodec.fresh("tiny").network)


def test_the_decoder_learns_and_the_encoder_stays() -> None:
    codec = SpectrumCodec.fresh("tiny", seed=3)
    rng = np.random.default_rng(0)
    flux = 1.0 + 0.5 * np.sin(WAVELENGTH / 700) + 0.1 * rng.normal(size=(4, 8704))
    codec.network.train()
    codec.loss(codec.tensors(measured(flux, 0.1))).total.backward()  # type: ignore[no-untyped-call]
    for name, p in codec.network.named_parameters():
        made = name.startswith(("encoder.", "pre_quant_norm.", "quant_conv."))
        assert p.requires_grad is not made, name
        assert made or (p.grad is not None and bool(torch.isfinite(p.grad).all())), name


def test_bf16_turns_no_token_of_a_made_encoder(codec: SpectrumCodec) -> None:
    rng = np.random.default_rng(1)
    flux = 1.0 + 0.5 * np.sin(WAVELENGTH / 700) + 0.1 * rng.normal(size=(4, 8704))
    exact = codec.encode(measured(flux, 0.1))
    codec.precision = "bf16"
    try:
        assert np.array_equal(codec.encode(measured(flux, 0.1)), exact)
    finally:
        codec.precision = "fp32"
    again = SpectrumCodec.restore(codec.settings(), codec.arrays()).to("cpu", "bf16")
    assert np.array_equal(again.encode(measured(flux, 0.1)), exact), "nor where it was read from a file"


def test_flux_in_another_scale_is_not_begun_with() -> None:
    assert not spectrumstart.can_begin(SpectrumCodec.fresh("tiny", input_scaling=0.2).network)
