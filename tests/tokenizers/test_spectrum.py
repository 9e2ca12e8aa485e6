import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aion.codecs.spectrum import SpectrumCodec as Peer
from aion.modalities import Spectrum
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from skycairn.tokenizers.codec import load
from skycairn.tokenizers.fsq import from_index
from skycairn.tokenizers.registry import codec_class
from skycairn.tokenizers.spectralgrid import SpectralGrid, amplitude, bridged
from skycairn.tokenizers.spectrum import SIZES, Objective, SpectrumCodec, SpectrumNetwork

DESI = SpectralGrid("linear", 3600.0, 0.8, 7781)
SDSS = SpectralGrid("log10", 3.5800, 1e-4, 3900)
SHORT = SpectralGrid("linear", 3520.0, 0.8, 300)
"Of `short` codecs, whose latent grid has 320 pixels."
NARROW: dict[str, Any] = {
    "encoder_depths": (1, 0, 1, 1),
    "encoder_dims": (8, 8, 16, 16),
    "decoder_depths": (1, 1, 0, 1),
    "decoder_dims": (16, 8, 8, 2),
    "latent_channels": 16,
    "embedding_dim": 10,
}


def spectra(grid: SpectralGrid, n: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    """Faint, negative and bright ones with lines; noise that varies, some bad pixels."""
    rng = np.random.default_rng(seed)
    wave = grid.wavelength()
    level = np.array([0.0, -0.5, 1.0, 30.0, 500.0])[np.arange(n) % 5]
    truth = level[:, None] * (wave / wave.mean()) ** rng.uniform(-2, 2, (n, 1))
    centre = rng.uniform(wave[0], wave[-1], (n, 4, 1))
    truth = truth + (5 * np.exp(-0.5 * ((wave - centre) / 4) ** 2)).sum(axis=1)
    sigma = 0.4 * (1 + np.exp(-(wave - wave[0]) / 300)) * (1 + 0.02 * np.abs(level))[:, None]
    mask = rng.random(truth.shape) < 0.01
    ivar = np.where(rng.random(truth.shape) < 0.01, 0, sigma**-2)
    flux = truth + sigma * rng.normal(size=truth.shape)
    return {"flux": flux.astype("f4"), "ivar": ivar.astype("f4"), "mask": mask}


def on_wavelengths(measurement: dict[str, np.ndarray], grid: SpectralGrid) -> dict[str, np.ndarray]:
    wave = np.broadcast_to(grid.wavelength().astype("f4"), measurement["flux"].shape)
    return measurement | {"wavelength": wave.copy()}


def of_peer(measurement: dict[str, np.ndarray]) -> Spectrum:
    return Spectrum(**{k: torch.from_numpy(v.copy()) for k, v in measurement.items()})


def short(seed: int = 0, grid: SpectralGrid | None = SHORT, **changes: Any) -> SpectrumCodec:
    codec = SpectrumCodec.fresh("tiny", seed, grid, **(NARROW | {"num_pixels": 320} | changes))
    return perturbed(codec)


def perturbed(codec: SpectrumCodec) -> SpectrumCodec:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in codec.network.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    return codec


@pytest.fixture(scope="module")
def peer() -> Peer:
    """Small, no weight 0 or 1, and its channels around 0, so that many codes occur."""
    made = Peer(**NARROW, dim=10, codebook_size=1024).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
        made.quant_conv.weight.mul_(20)
        z, _ = made._encode(of_peer(on_wavelengths(spectra(DESI), DESI)))
        made.quant_conv.bias.sub_(z.mean(dim=(0, 2)))
    return made


@pytest.fixture(scope="module")
def published(peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    place = folder / "codecs" / "spectrum"
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(NARROW | {"dim": 10, "codebook_size": 1024, "clip_ivar": 100}))
    save_file(peer.state_dict(), place / "model.safetensors")
    return folder


# ------------------------------------------------------------------------------------------------- AION-1's


@pytest.mark.parametrize("grid", [DESI, SDSS])
@pytest.mark.parametrize("own_grid", [False, True])
def test_tokens_and_decodes_are_the_peers(peer: Peer, published: Path, grid: SpectralGrid, own_grid: bool) -> None:
    measurement = on_wavelengths(spectra(grid), grid)
    # what AION-1 does with what is no number
    measurement["flux"][0, 5], measurement["ivar"][1, 7], measurement["ivar"][2, 8] = np.nan, np.nan, np.inf
    codec = SpectrumCodec.from_aion(published, grid if own_grid else None)
    tokens = codec.encode(measurement)
    with torch.no_grad():
        z, _ = peer._encode(of_peer(measurement))
        wanted = peer.encode(of_peer(measurement)).numpy()
        at = of_peer(measurement).wavelength if own_grid else None
        light = peer.decode(torch.from_numpy(wanted), wavelength=at)
    assert len(np.unique(wanted[:, 1:])) > 50
    sure = np.concatenate([np.full((len(z), 1), True), (z.abs() > 1e-5).all(dim=1).numpy()], axis=1)
    assert sure.mean() > 0.99 and (tokens == wanted)[sure].all()
    found = codec.decode(wanted)
    assert found["flux"].shape == (5, grid.n_pixels if own_grid else 8704)
    assert np.abs(found["flux"] - light.flux.numpy()).max() < 1e-5 * np.abs(light.flux.numpy()).max()
    assert 0 < found["mask"].mean() < 1 and (found["mask"] == light.mask.numpy()).mean() > 0.9999
    assert codec.compat == "aion"


def test_upstreams_padding_is_theirs(peer: Peer, published: Path) -> None:
    measurement = on_wavelengths(spectra(DESI), DESI)
    fill = {"flux": 0, "ivar": 0, "mask": True, "wavelength": 99999}
    padded = {k: np.pad(v, ((0, 0), (0, 27)), constant_values=fill[k]) for k, v in measurement.items()}
    with torch.no_grad():
        wanted = peer.encode(of_peer(padded)).numpy()
    for grid in (None, DESI):
        codec = SpectrumCodec.from_aion(published, grid, "upstream")
        assert (codec.encode(measurement) == wanted).mean() > 0.999
        plain = SpectrumCodec.from_aion(published, grid)
        assert (plain.encode(measurement) != wanted).any()
        assert codec.content_id != plain.content_id


@pytest.mark.parametrize("padding", ["none", "upstream"])
def test_what_a_piles_grid_adds_is_beyond_the_ends(peer: Peer, published: Path, padding: Any) -> None:
    """A pile holds flux 0 under a mask beyond what was observed, and where a pixel was bad."""
    long = SpectralGrid("log10", 3.545, 1e-4, 4800)
    own = spectra(SDSS) | {"mask": np.zeros((5, 3900), bool)}
    kept = {k: np.zeros((5, 4800), v.dtype) for k, v in own.items()} | {"mask": np.ones((5, 4800), bool)}
    for name, value in own.items():
        kept[name][:, 350:4250] = value
    wave = {"wavelength": np.repeat(long.wavelength()[None, 350:4250].astype("f4"), 5, axis=0)}
    wanted = SpectrumCodec.from_aion(published, None, padding).encode(own | wave)
    codec = SpectrumCodec.from_aion(published, long, padding)
    before = {k: v.copy() for k, v in kept.items()}
    assert (codec.encode(kept) == wanted).mean() > 0.995
    assert all(np.array_equal(kept[k], v) for k, v in before.items())
    for name, value in (("flux", 0), ("ivar", 0), ("mask", True)):
        kept[name][0, 2000:2003], kept[name][1] = value, value
    tensors = codec.tensors(kept)
    latent = codec._latent(tensors, *codec._relative(tensors)[:2])[:2, :, 0]
    flux = tensors["flux"][0, 1999:2004].numpy()
    assert np.allclose(flux, np.linspace(flux[0], flux[-1], 5), atol=1e-5) and not latent[1].any()
    assert not latent[0, :40].any() and latent[0, 8000:].any() == (padding == "upstream")


def test_weights_go_both_ways_bit_for_bit(peer: Peer, published: Path, tmp_path: Path) -> None:
    codec = SpectrumCodec.from_aion(published, DESI)
    own, theirs = codec.network.state_dict(), peer.state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[k], theirs[k]) for k in own)
    codec.save(tmp_path / "codec")
    again = load(tmp_path / "codec")
    assert isinstance(again, SpectrumCodec) and again.content_id == codec.content_id
    place = again.to_aion(tmp_path)
    config = json.loads((place / "config.json").read_text())
    back = Peer(**config)
    back.load_state_dict(load_file(place / "model.safetensors"), strict=True)
    assert all(torch.equal(v, theirs[k]) for k, v in back.state_dict().items())
    assert back.clip_ivar == 100 and back.clip_flux is None
    assert SpectrumCodec.from_aion(tmp_path, DESI).content_id == codec.content_id


def test_refuses_weights_that_do_not_fit(published: Path, tmp_path: Path) -> None:
    arrays = load_file(published / "codecs" / "spectrum" / "model.safetensors")
    (tmp_path / "config.json").write_text((published / "codecs" / "spectrum" / "config.json").read_text())
    save_file({k: v for k, v in arrays.items() if k != "quant_conv.bias"}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 weights of the file do not fit.*quant_conv\.bias"):
        SpectrumCodec.from_aion(tmp_path)
    with pytest.raises(ValueError, match=r"preprocessing is 'skycairn'.*polymathic-aion does not know"):
        short().to_aion(tmp_path)


def test_names_and_number_of_weights_of_the_sizes() -> None:
    with torch.device("meta"):
        networks = {name: SpectrumNetwork(s) for name, s in SIZES.items()}
        peer = Peer(
            (3, 3, 27, 3), (64, 128, 256, 512), (3, 9, 3, 3), (256, 128, 64, 2), embedding_dim=10, latent_channels=512
        )
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    assert counts["aion"] == 24_751_734
    assert 2.5e6 < counts["small"] < 4e6 and 0.2e6 < counts["tiny"] < 0.4e6
    assert {k: v.shape for k, v in networks["aion"].state_dict().items()} == {
        k: v.shape for k, v in peer.state_dict().items()
    }


# ------------------------------------------------------------------------------------------------------ ours


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0]))
def test_what_bad_pixels_hold_never_matters(seed: int, share: float, value: float) -> None:
    codec = short()
    rng = np.random.default_rng(seed)
    measurement = spectra(SHORT, seed=seed)
    bad = rng.random(measurement["flux"].shape) < share
    by_ivar = bad & (rng.random(bad.shape) < 0.5)
    measurement["ivar"][by_ivar] = 0
    measurement["mask"] |= bad & ~by_ivar
    tokens = codec.encode(measurement)
    worst = {k: v.copy() for k, v in measurement.items()}
    worst["flux"][worst["mask"] | (worst["ivar"] == 0)] = value
    worst["ivar"][worst["mask"]] = value
    kept = {k: v.copy() for k, v in worst.items()}
    assert (codec.encode(worst) == tokens).all()
    assert all(np.array_equal(worst[k], kept[k], equal_nan=True) for k in kept)
    assert (codec.sees(worst) == ((measurement["ivar"] > 0) & ~measurement["mask"]).any(axis=1)).all()
    again = codec.loss(codec.tensors(worst)).total
    assert torch.isfinite(again) and torch.equal(again, codec.loss(codec.tensors(measurement)).total)


def test_masked_ends_are_as_if_not_observed() -> None:
    """So that surveys whose grids end elsewhere share a network."""
    codec = short()
    whole = spectra(SHORT)
    whole["mask"][:, :40] = True
    whole["ivar"][:, 250:] = 0
    part = {k: v[:, 40:250] for k, v in whole.items()}
    cut = SpectralGrid("linear", 3520.0 + 40 * 0.8, 0.8, 210)
    assert codec.on(cut).network is codec.network
    latent = []
    for c, m in ((codec, whole), (codec.on(cut), part)):
        tensors = c.tensors(m)
        flux, error, _ = c._relative(tensors)
        latent.append(c._latent(tensors, flux, error))
    # the blocks whose medians make the amplitude begin elsewhere, so that it may differ by a little
    assert torch.equal(latent[0] == 0, latent[1] == 0) and (latent[0] - latent[1]).abs().max() < 0.2


@pytest.mark.parametrize(
    "grid",
    [DESI, SpectralGrid("linear", 3600.0, 0.8, 7781 - 1000)],
)
def test_pixels_that_lie_on_latent_ones_are_taken_as_they_are(grid: SpectralGrid) -> None:
    codec = SpectrumCodec.fresh("tiny", 0, grid)
    tensors = codec.tensors(spectra(grid))
    found = codec._to_latent(tensors).take(tensors["error"])
    assert torch.equal(found[:, 125 : 125 + grid.n_pixels], tensors["error"])
    assert not found[:, :125].any() and not found[:, 125 + grid.n_pixels :].any()
    back = codec._to_observed(tensors).take(found)
    assert torch.equal(back, tensors["error"])


def test_a_grid_and_its_wavelengths_given_are_the_same() -> None:
    fixed, free = short(), short(grid=None)
    measurement = spectra(SHORT)
    tokens = fixed.encode(measurement)
    assert (free.encode(on_wavelengths(measurement, SHORT)) == tokens).mean() > 0.98
    latent, own = free.decode(tokens)["flux"], fixed.decode(tokens)["flux"]
    assert latent.shape == (5, 320) and np.allclose(latent[:, 25 : 25 + 295], own[:, :295], rtol=1e-4, atol=1e-3)
    assert fixed.content_id != free.content_id
    # the last pixels of the survey lie beyond the latent grid
    assert not own[:, 295:].any() and fixed.decode(tokens)["mask"][:, 295:].all()


def test_a_codec_of_a_grid_refuses_other_wavelengths_and_precisions() -> None:
    grid = SpectralGrid("linear", 3600.0, 0.8, 7781)
    codec, given = SpectrumCodec.fresh("tiny", 0, grid), spectra(grid, 1)
    assert (codec.encode({**given, "wavelength": grid.wavelength()[None]}) == codec.encode(given)).all()
    with pytest.raises(ValueError, match=r"run from 360\.0 to .*; wanted the codec's own 7781"):
        codec.encode({**given, "wavelength": grid.wavelength()[None] / 10})
    with pytest.raises(ValueError, match="precision is 'fp99'; wanted fp32 or bf16"):
        codec.to("cpu", "fp99")  # type: ignore[arg-type]


def test_amplitude_is_that_of_the_light_or_of_the_noise() -> None:
    rng = np.random.default_rng(0)
    flux, ivar = rng.normal(size=(4, 7781)) * 0.5, np.full((4, 7781), 4.0)
    flux[0] += 100
    flux[1] -= 100
    flux[3] += 0.001
    ivar[2] = 0
    assert np.allclose(amplitude(flux, ivar), [100, 100, 0, 0.5], rtol=0.01)
    flux[0, ::100] = 1e9  # cosmic rays in every second block would own a mean
    flux[0, ::200] = -1e9
    before = amplitude(flux[:, :64], ivar[:, :64])
    assert np.isfinite(before).all()
    line = flux[3].copy()
    line[3000:3010] += 1e4
    assert abs(amplitude(line[None], ivar[:1])[0] - 0.5) < 0.02


def test_amplitude_decodes_to_the_middle_of_its_step() -> None:
    codec = short()
    n = 10 ** np.random.default_rng(0).uniform(-3.9, 5.9, 20_000)
    ratio = codec._amplitude(codec._binned(n)) / n
    assert ratio.max() < 1.012 and ratio.min() > 0.988 and abs(np.log(ratio).mean()) < 1e-3
    tokens = codec._binned(np.array([0.0, 1e-9, 1e9]))
    assert tokens.tolist() == [0, 0, 1023]
    assert np.isfinite(codec.decode(np.repeat(tokens[:, None], 11, axis=1))["flux"]).all()


def test_bad_pixels_lie_between_their_good_neighbours() -> None:
    flux = np.array([[9.0, 1.0, 7.0, 7.0, 4.0, 9.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [9.0] * 6])
    good = np.array([[0, 1, 0, 0, 1, 0], [1] * 6, [0] * 6], bool)
    assert bridged(flux, good).tolist() == [[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 5, 6], [0] * 6]


def test_faint_negative_bright_and_empty_spectra() -> None:
    codec = short()
    measurement = spectra(SHORT)
    measurement["flux"][0] = 0
    measurement["ivar"][1] = 0
    measurement["flux"][4] *= np.float32(1e30)
    assert codec.sees(measurement).tolist() == [True, False, True, True, True]
    tokens = codec.encode(measurement)
    found = codec.decode(tokens)
    assert tokens.dtype == np.uint16 and tokens.shape == (5, 11)
    assert found["flux"].dtype == np.float32 and found["mask"].dtype == np.bool_
    assert np.isfinite(found["flux"]).all()
    loss = codec.loss(codec.tensors(measurement))
    assert torch.isfinite(loss.total)
    none = {k: v[:0] for k, v in measurement.items()}
    assert codec.encode(none).shape == (0, 11) and codec.sees(none).shape == (0,)
    assert codec.decode(tokens[:0])["flux"].shape == (0, 300)


def test_batch_size_and_order_do_not_matter() -> None:
    codec = short()
    measurement = spectra(SHORT, 37)
    tokens = codec.encode(measurement)
    order = np.random.default_rng(0).permutation(37)
    assert (codec.encode({k: v[order] for k, v in measurement.items()}) == tokens[order]).all()
    single = [codec.encode({k: v[i : i + 1] for k, v in measurement.items()}) for i in range(37)]
    assert (np.concatenate(single) == tokens).all()
    doubles = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in measurement.items()}
    assert (codec.encode(doubles) == tokens).all()


def test_the_amplitudes_token_follows_the_unit() -> None:
    codec = short()
    measurement = spectra(SHORT)
    step = 10 ** (10 / 1024)
    brighter = measurement | {"flux": measurement["flux"] * step, "ivar": measurement["ivar"] / step**2}
    tokens, after = codec.encode(measurement).astype(int), codec.encode(brighter).astype(int)
    assert np.abs(after[:, 0] - tokens[:, 0] - 1).max() <= 1
    assert (after[:, 1:] == tokens[:, 1:]).mean() > 0.9


def test_ids_change_with_what_decides_tokens_and_with_nothing_else() -> None:
    codec = short()
    assert codec.content_id == short().content_id
    codec.objective = Objective(floor=0.5)
    codec.to("cpu", "bf16")
    codec.network.train()
    assert codec.content_id == short().content_id
    assert codec.content_id != short(1).content_id
    assert codec.content_id != codec.on(SpectralGrid("linear", 3520.0, 0.8, 299)).content_id
    assert codec.content_id != short(preprocessing="aion").content_id
    with torch.no_grad():
        codec.network.quant_conv.bias[0] += 1
    codec.changed()
    assert codec.content_id != short().content_id
    beside, before = codec.on(DESI), codec.on(DESI).content_id
    assert beside.content_id == before
    codec.load_arrays(short().arrays())
    assert beside.content_id == codec.on(DESI).content_id != before, "the network is theirs too"


def test_saved_and_loaded_by_kind(tmp_path: Path) -> None:
    assert codec_class("spectrum_network") is SpectrumCodec
    codec = short()
    codec.save(tmp_path)
    again = load(tmp_path)
    measurement = spectra(SHORT)
    assert isinstance(again, SpectrumCodec) and again.grid == SHORT and again.compat is None
    assert (again.encode(measurement) == codec.encode(measurement)).all()
    assert again.settings() == codec.settings()


@pytest.mark.parametrize("preprocessing", ["skycairn", "aion"])
def test_learns_and_half_precision_is_near(preprocessing: str) -> None:
    codec = short(preprocessing=preprocessing)
    tensors = codec.tensors(spectra(SHORT, 16))
    codec.encode(spectra(SHORT, 3))  # what an encode keeps must not be in the way of a gradient
    optimizer = torch.optim.AdamW(codec.network.parameters(), 3e-3)
    found = []
    for _ in range(30):
        loss = codec.loss(tensors)
        optimizer.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(codec.network.parameters(), 1.0)
        optimizer.step()
        found.append(float(loss.parts["nll"]))
    codec.changed()
    assert found[-1] < 0.7 * found[0]
    assert loss.codes.shape == (16, 10) and not any(v.requires_grad for v in loss.parts.values())
    with torch.autocast("cpu", torch.bfloat16):
        lower = codec.loss(tensors)
        lower.total.backward()
    assert abs(lower.total - loss.total) < 0.1 * abs(loss.total) and lower.total.dtype == torch.float32
    tokens = codec.encode(spectra(SHORT, 16))
    assert (codec.to("cpu", "bf16").encode(spectra(SHORT, 16)) == tokens).mean() > 0.5


def test_the_loss_of_a_window_is_that_of_its_pixels() -> None:
    """What lies outside does not matter, and the loss is the mean over what lies inside."""
    codec = short()
    m = spectra(SHORT)
    whole = codec.tensors(m)
    shown = codec.shown(m, 96, np.random.default_rng(1))
    first, last = (int(v) for v in shown["window"])
    assert (last - first, first % 32) == (96, 0) and all(torch.equal(shown[k], whole[k]) for k in whole)
    wave = SHORT.wavelength()
    inside = (wave >= 3500 + 0.8 * first - 1e-6) & (wave <= 3500 + 0.8 * (last - 1) + 1e-6)
    with torch.no_grad():
        loss = codec.loss(shown)
        other = dict(shown)
        near = np.convolve(inside, [1, 1, 1], "same") > 0  # neighbours tell how bright a pixel is
        for name in ("flux", "error"):
            other[name] = shown[name].clone()
            other[name][:, ~near] = 0.5
        assert float(codec.loss(other).total) == float(loss.total)
        every = codec.loss(whole | {"window": torch.tensor([0, 320])})
        assert float(every.total) == float(codec.loss(whole).total)
    assert loss.codes.shape == (5, 3)
    places = {int(codec.shown(m, 96, np.random.default_rng(i))["window"][0]) for i in range(50)}
    assert places == set(range(0, 225, 32))
    starts = np.array([int(codec.shown(m, 96, np.random.default_rng(i))["window"][0]) for i in range(600)]) // 32
    seen = [((starts <= k) & (k < starts + 3)).mean() for k in range(10)]
    assert min(seen) > 0.8 * seen[5], "the ends are seen as often as the middle"
    with pytest.raises(ValueError, match="window of 100 latent pixels"):
        codec.shown(m, 100, np.random.default_rng(0))


def test_levels_are_the_bits_of_a_code() -> None:
    codec = short()
    codes = np.arange(codec.vocabulary)
    bits = codec.network.quantizer.channels(torch.from_numpy(codes)).numpy()[:, ::-1] > 0
    np.testing.assert_array_equal(from_index(codes, codec.levels), bits)


@pytest.mark.parametrize("copy", [True, False])
def test_noise_that_training_adds_makes_a_copy_of_the_noise_worse(monkeypatch: pytest.MonkeyPatch, copy: bool) -> None:
    codec = short()
    codec.objective = Objective(floor=0.0, recorrupt=0.5)
    noise = torch.randn(64, 300, generator=torch.Generator().manual_seed(0))
    tensors = {"flux": noise, "error": torch.ones(64, 300), "bad": torch.zeros(64, 300), "token": torch.zeros(64)}
    shown: list[torch.Tensor] = []

    def latent(tensors: Any, flux: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
        shown.append(flux)
        return torch.zeros(64, 320, 2)

    monkeypatch.setattr(codec, "_latent", latent)
    monkeypatch.setattr(codec, "_light", lambda *_: (shown[-1] * copy, None))
    torch.manual_seed(1)
    # half of chi squared. As given, a copy is perfect; in training its noise, 1.25, comes on top of the target's, 5
    for training, wanted in ((False, 0.0 if copy else 0.5), (True, 3.125 if copy else 2.5)):
        codec.network.train(training)
        assert abs(codec.loss(tensors).parts["nll"] - wanted) < 0.06


def test_training_asks_for_no_pixel_that_the_line_across_bad_ones_tells_of(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = short()
    codec.objective = Objective(floor=0.0, recorrupt=0.5)
    error, wrong = torch.ones(64, 300), torch.zeros(64, 300)
    error[:, 100:103] = 0
    wrong[:, [99, 103]] = 1000
    tensors = {"flux": torch.zeros(64, 300), "error": error, "bad": (error == 0).float(), "token": torch.zeros(64)}
    monkeypatch.setattr(codec, "_latent", lambda *_: torch.zeros(64, 320, 2))
    monkeypatch.setattr(codec, "_light", lambda *_: (wrong, None))
    torch.manual_seed(1)
    assert codec.loss(tensors).parts["nll"] > 1000, "as given all good pixels are asked for"
    codec.network.train(True)
    assert codec.loss(tensors).parts["nll"] < 3


def test_a_bright_spectrum_does_not_own_the_gradient() -> None:
    codec = short()
    tensors = codec.tensors(spectra(SHORT, 5))
    tensors["error"][4] = 1e5
    codec.objective = Objective(floor=0.03, share=0.0)
    assert codec.loss(tensors).parts["nll"] < 1e4
    codec.objective = Objective(floor=0.0, share=0.0)
    assert codec.loss(tensors).parts["nll"] > 1e6


def test_a_bright_line_does_not_own_the_gradient() -> None:
    codec = short()
    tensors = codec.tensors(spectra(SHORT, 5))
    tensors["flux"][4, 100:103] = 300.0
    tensors["error"][4] = 100.0
    codec.objective = Objective(floor=0.03, share=0.1)
    # three pixels of 300, each at most half of (1 / share) ** 2, beside all others
    assert codec.loss(tensors).parts["nll"] < 2 * 5 * (1 / 0.03) ** 2
    codec.objective = Objective(floor=0.03, share=0.0)
    assert codec.loss(tensors).parts["nll"] > 1e4


@pytest.mark.parametrize("sigma", [0.3, 0.1, 0.03])
def test_the_loss_is_least_at_the_light_itself(sigma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = short()
    codec.objective = Objective(share=0.1)
    n = 300
    noisy = {"flux": 1 + sigma * np.random.default_rng(0).normal(size=(200, n)), "ivar": np.full((200, n), sigma**-2)}
    tensors = codec.tensors(spectra(SHORT, 200) | noisy | {"mask": np.zeros((200, n), bool)})
    amplitude = codec._amplitude(tensors["token"].numpy().astype(int)).mean()
    tries = np.linspace(0.97, 1.03, 61)
    found = []
    for light in tries:
        same = torch.full((200, n), light / amplitude)
        monkeypatch.setattr(codec, "_light", lambda *_, same=same: (same, None))
        with torch.no_grad():
            found.append(float(codec.loss(tensors).parts["nll"]))
    # the scatter of so many pixels' mean, and half a step
    assert abs(tries[int(np.argmin(found))] - 1) < 4 * sigma / np.sqrt(200 * n) + 0.001


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"flux": None}, "lacks flux; wanted flux, ivar, mask"),
        ({"mask": np.zeros((5, 300), np.int8)}, "the mask is int8, wanted bool"),
        ({"flux": np.zeros((5, 299), "f4")}, r"shapes flux \(5, 299\)"),
        ({"flux": np.full((5, 300), "x")}, "flux is <U1, wanted numbers"),
        ({"flux": np.full((5, 300), np.nan)}, "row 0, pixel 0: flux is nan, wanted a finite number"),
        ({"ivar": np.full((5, 300), -1.0)}, "ivar is -1.0, wanted 0 or a positive number"),
    ],
)
def test_refuses_measurements(change: dict[str, Any], told: str) -> None:
    measurement = spectra(SHORT) | {"mask": np.zeros((5, 300), bool), "ivar": np.ones((5, 300), "f4")} | change
    with pytest.raises(ValueError, match=told):
        short().encode({k: v for k, v in measurement.items() if v is not None})


def test_refuses_pixels_and_names_the_row_in_all_that_was_given() -> None:
    measurement = spectra(SHORT, 40)
    measurement["mask"][:] = False
    measurement["ivar"][33, 17] = -1
    with pytest.raises(ValueError, match="row 33, pixel 17"):
        short().encode(measurement)
    with pytest.raises(ValueError, match="299 pixels, wanted 300"):
        short().encode({k: v[:, :299] for k, v in measurement.items()})


@pytest.mark.parametrize("preprocessing", ["skycairn", "aion"])
@pytest.mark.parametrize("value", [0.0, -1.0, 3000.0, np.nan])
def test_refuses_wavelengths_that_do_not_increase(preprocessing: str, value: float) -> None:
    measurement = on_wavelengths(spectra(SHORT, 20), SHORT)
    measurement["wavelength"][18, 299:] = value
    with pytest.raises(ValueError, match=r"row 18, pixel 299: wavelength .* strictly increasing"):
        short(grid=None, preprocessing=preprocessing).encode(measurement)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: SpectrumCodec.fresh("huge"), "no size 'huge'"),
        (lambda: short(preprocessing="other"), "preprocessing 'other'"),
        (lambda: SpectrumCodec(short().network, SHORT, padding="upstream"), "padding 'upstream' is AION-1's"),
        (lambda: short(num_pixels=330), "num_pixels a multiple of 32"),
        (lambda: short(latent_channels=8), "encoder_dims that end in latent_channels"),
        (lambda: short(codebook_size=512), r"codebook_size 2 \*\* dim"),
        (lambda: SpectralGrid("ln", 1.0, 1.0, 10), "wanted scale linear or log10"),
        (lambda: SpectralGrid("linear", 1.0, -1.0, 10), "a positive step"),
    ],
)
def test_refuses_settings(made: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        made()


def test_refuses_tokens_of_others() -> None:
    with pytest.raises(ValueError, match="row 1 holds token 1024 at position 3"):
        tokens = np.zeros((2, 11), np.uint16)
        tokens[1, 3] = 1024
        short().decode(tokens)
