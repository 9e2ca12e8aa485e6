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


def test_a_smooth_spectrum_is_told_to_a_step_of_its_mean(codec: SpectrumCodec) -> None:
    flux = 1.0 + 0.6 * np.sin(WAVELENGTH / 900)
    again = codec.decode(codec.encode(measured(flux)))["flux"][0]
    step = 2 * spectrumstart.REACH / (1 << spectrumstart.MEAN_BITS)
    # half a step in asinh of the flux, and some per cent that the norms take off what is bright
    assert np.abs(np.arcsinh(again) - np.arcsinh(flux)).max() < 0.5 * step + 0.05


def test_all_levels_of_the_mean_are_in_use(codec: SpectrumCodec) -> None:
    flux = np.ones(8704)  # so that the amplitude is 1
    flux[:3200] = np.sinh(np.linspace(-0.5, 1.9, 100)).repeat(32)
    tokens = codec.encode(measured(flux))[0, 1:]
    means = np.unique(tokens[:100] >> (2 * spectrumstart.WAVES))
    assert len(means) == 1 << spectrumstart.MEAN_BITS


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


def test_every_weight_of_the_first_block_can_learn(codec: SpectrumCodec) -> None:
    rng = np.random.default_rng(0)
    flux = 1.0 + 0.5 * np.sin(WAVELENGTH / 700) + 0.1 * rng.normal(size=(4, 8704))
    codec.network.train()
    codec.network.zero_grad()
    codec.loss(codec.tensors(measured(flux, 0.1))).total.backward()  # type: ignore[no-untyped-call]
    still = [n for n, p in codec.network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not still
    for name in ("encoder.downsample_layers.0.0.weight", "encoder.stages.3.0.pwconv1.weight", "quant_conv.weight"):
        assert codec.network.get_parameter(name).grad.abs().max() > 0  # type: ignore[union-attr]
