from pathlib import Path

import numpy as np
import pytest
import torch
from aion.codecs.image import ImageCodec as Peer
from aion.modalities import HSCImage, LegacySurveyImage
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from scipy.integrate import quad

from skycairn.tokenizers.aion import read_published, write_published
from skycairn.tokenizers.codec import load
from skycairn.tokenizers.fsq import from_index
from skycairn.tokenizers.image import SIZES, SURVEYS, ImageCodec, Objective, deviance
from skycairn.tokenizers.magvit import Architecture, n_parameters

SMALL = Architecture(hidden=32, projection=10, consecutive=1)
LEGACY, HSC = SURVEYS["legacysurvey"], SURVEYS["hsc"]


def sky(n: int, bands: int = 4, side: int = 104, seed: int = 0, unit: float = 1.0) -> dict[str, np.ndarray]:
    """Noisy images of round galaxies, some with cores beyond AION-1's clip, in nanomaggies / `unit`."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    flux = rng.normal(size=(n, bands, side, side)) * 0.01
    for i in range(n):
        for _ in range(6):
            r = np.hypot(x - rng.uniform(0, side), y - rng.uniform(0, side))
            light = rng.lognormal(0, 2) * np.exp(-r / rng.uniform(1, 6))
            flux[i] += light * np.array([0.5, 1, 1.4, 1.8, 2.0])[:bands, None, None]
    shape = flux.shape
    return {
        "flux": (flux * unit).astype("f4"),
        "ivar": np.full(shape, 1e4 / unit**2, "f4"),
        "mask": np.zeros(shape, bool),
    }


def spread(proj: torch.nn.Conv2d, latent: torch.Tensor) -> None:
    """Rescale what is quantized to mean 0 and deviation 1.2, so that many codes occur."""
    axes = [i for i in range(latent.dim()) if i != 1]
    factor = 1.2 / latent.std(axes)
    with torch.no_grad():
        proj.weight.mul_(factor[:, None, None, None])
        proj.bias.copy_((proj.bias - latent.mean(axes)) * factor)


def randomised(module: torch.nn.Module, seed: int = 0) -> None:
    """All weights drawn anew, those that start at 0 or 1 too."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * (1.0 / max(p[0].numel(), 4) ** 0.5))


@pytest.fixture(scope="module")
def peer() -> Peer:
    peer = Peer([7, 5, 5, 5, 5], hidden_dims=32, multisurvey_projection_dims=10, num_consecutive=1).eval()
    randomised(peer)
    with torch.no_grad():
        peer.subsample_out.weight.mul_(0.1)  # keeps sinh within reason
        spread(peer.pre_quant_proj, peer._encode(legacy_image(sky(4)["flux"])))
    return peer


@pytest.fixture(scope="module")
def folder(peer, tmp_path_factory) -> Path:
    """The peer's weights as the Hub would hold them."""
    folder = tmp_path_factory.mktemp("hub")
    config = {
        "quantizer_levels": [7, 5, 5, 5, 5], "hidden_dims": 32, "multisurvey_projection_dims": 10,
        "n_compressions": 2, "num_consecutive": 1, "embedding_dim": 5, "range_compression_factor": 0.01,
        "mult_factor": 10.0,
    }  # fmt: skip
    write_published(folder, "image", config, {k: v.numpy() for k, v in peer.state_dict().items()})
    return folder


@pytest.fixture(scope="module")
def codec(folder) -> ImageCodec:
    return ImageCodec.from_aion(folder)


def legacy_image(flux: np.ndarray, bands: str = "griz") -> LegacySurveyImage:
    return LegacySurveyImage(flux=torch.from_numpy(flux.copy()), bands=[f"DES-{b.upper()}" for b in bands])


def clear_of_borders(codec: ImageCodec, m: dict[str, np.ndarray]) -> np.ndarray:
    """Which tokens lie more than 1e-5 from where another level would be rounded to."""
    with torch.no_grad():
        bounded = codec.network.quantizer.bounded(codec.latent(codec.tensors(m))).numpy()
    return (np.abs(bounded - np.floor(bounded) - 0.5) > 1e-5).all(-1).reshape(len(bounded), -1)


@pytest.mark.parametrize("bands", ["griz", "grz", "zg"])
@pytest.mark.parametrize("side", [96, 104, 111])
def test_legacy_tokens_and_images_are_the_peers(peer, folder, bands, side):
    m = sky(3, len(bands), side, seed=side)
    ours = ImageCodec.from_aion(folder, bands=tuple(bands), compat="aion")
    with torch.no_grad():
        theirs = peer.encode(legacy_image(m["flux"], bands)).numpy()
    before = m["flux"].copy()
    tokens = ours.encode(m)
    np.testing.assert_array_equal(m["flux"], before)
    clear = clear_of_borders(ours, m)
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(tokens[clear], theirs[clear])
    assert len(np.unique(tokens)) > 50
    with torch.no_grad():
        back = peer.decode(torch.from_numpy(theirs), bands=[f"DES-{b.upper()}" for b in bands]).flux.numpy()
    found = ours.decode(theirs)["flux"]
    assert found.shape == (3, len(bands), 96, 96) and found.dtype == np.float32
    np.testing.assert_allclose(found, back, rtol=1e-5, atol=1e-5 * np.abs(back).max())


def test_hsc_tokens_and_images_are_the_peers(peer, folder):
    m = sky(4, 5, seed=2, unit=63.0957)
    assert m["flux"].max() > 80  # some are clipped
    ours = ImageCodec.from_aion(folder, "hsc", compat="aion")
    names = [f"HSC-{b}" for b in "GRIZY"]
    with torch.no_grad():
        theirs = peer.encode(HSCImage(flux=torch.from_numpy(m["flux"].copy()), bands=names)).numpy()
    tokens, clear = ours.encode(m), clear_of_borders(ours, m)
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(tokens[clear], theirs[clear])
    assert len(np.unique(tokens)) > 50
    np.testing.assert_array_equal(ours.encode(m), tokens)  # the peer's second encode differs: it changes its input
    with torch.no_grad():  # the peer's decode raises; its network's own part does not
        z = peer.quantizer.decode(torch.from_numpy(theirs)).reshape(4, 5, 24, 24)
        raw = peer.subsample_out(peer.decoder(peer.post_quant_proj(z)), torch.ones(4, 9, dtype=torch.bool))
        back = (peer._reverse_range_compress(raw)[:, :5] * 10**1.8).numpy()
    np.testing.assert_allclose(ours.decode(theirs)["flux"], back, rtol=1e-5, atol=1e-5 * np.abs(back).max())


def test_without_bad_pixels_ours_are_the_peers_tokens_too(folder, codec):
    m = sky(3)
    compat = ImageCodec.from_aion(folder, compat="aion")
    np.testing.assert_array_equal(codec.encode(m), compat.encode(m))
    assert codec.content_id != compat.content_id
    m["mask"][:, :, 40:60] = True
    assert (codec.encode(m) != compat.encode(m)).any()
    np.testing.assert_array_equal(compat.encode({"flux": m["flux"]}), compat.encode(m))


def test_weights_go_both_ways_bit_for_bit(folder, codec, peer, tmp_path):
    place = codec.to_aion(tmp_path)
    first = folder / "codecs" / "image"
    for name in ("model.safetensors", "config.json"):
        assert (place / name).read_bytes() == (first / name).read_bytes()
    config, arrays = read_published(tmp_path, "image")
    built = Peer(**config)
    built.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()}, strict=True)
    for k, v in peer.state_dict().items():
        assert torch.equal(built.state_dict()[k], v)
    assert ImageCodec.from_aion(tmp_path).content_id == codec.content_id


def test_files_that_do_not_fit_are_refused(codec, tmp_path):
    place = codec.to_aion(tmp_path)
    arrays = load_file(place / "model.safetensors")
    save_file({k: v for k, v in arrays.items() if k != "subsample_in.bias"}, place / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 weights of the file do not fit .*subsample_in\.bias \(10,\)"):
        ImageCodec.from_aion(tmp_path)
    save_file({**arrays, "extra": np.zeros(1)}, place / "model.safetensors")
    with pytest.raises(ValueError, match=r"extra not here"):
        ImageCodec.from_aion(tmp_path)
    (place / "config.json").write_text('{"quantizer_levels": [7, 5, 5, 5]}')
    with pytest.raises(ValueError, match="5 numbers a token and levels"):
        ImageCodec.from_aion(tmp_path)
    (place / "config.json").write_text('{"hidden_dims": 32}')
    with pytest.raises(ValueError, match="lacks quantizer_levels"):
        ImageCodec.from_aion(tmp_path)
    with pytest.raises(ValueError, match="no survey 'sdss'"):
        ImageCodec.from_aion(tmp_path, "sdss")
    with pytest.raises(ValueError, match="stem 4"):
        ImageCodec.fresh("tiny").to_aion(tmp_path)
    form = Architecture(hidden=16, projection=4, compressions=1, consecutive=1, kernel_out=1)
    with pytest.raises(ValueError, match="kernel_out 1"):
        ImageCodec.fresh(form).to_aion(tmp_path)


def test_batches_and_their_order_do_not_matter(codec):
    m = sky(18, seed=5)
    m["mask"][3, 1] = True
    tokens = codec.encode(m)
    order = np.random.default_rng(0).permutation(18)
    np.testing.assert_array_equal(codec.encode({k: v[order] for k, v in m.items()}), tokens[order])
    for rows in (slice(3, 4), slice(2, 9)):
        np.testing.assert_array_equal(codec.encode({k: v[rows] for k, v in m.items()}), tokens[rows])
    np.testing.assert_array_equal(codec.decode(tokens[3:4])["flux"], codec.decode(tokens)["flux"][3:4])
    assert tokens.shape == (18, 576) and tokens.dtype == np.uint16


def test_no_images(codec):
    none = {k: v[:0] for k, v in sky(1).items()}
    assert codec.encode(none).shape == (0, 576)
    assert codec.sees(none).shape == (0,)
    assert codec.decode(np.zeros((0, 576), "u2"))["flux"].shape == (0, 4, 96, 96)
    loss = codec.loss(codec.tensors(none))
    assert float(loss.total.detach()) == 0 and loss.codes.shape == (0, 576)


@settings(deadline=None, max_examples=6)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.9), st.sampled_from([np.nan, np.inf, -np.inf, 1e38, -5.0]))
def test_what_lies_under_the_mask_never_matters(codec, seed, share, junk):
    rng = np.random.default_rng(seed)
    m = sky(2, seed=seed % 5)
    bad = rng.random(m["flux"].shape) < share
    m["mask"] = bad & (rng.random(bad.shape) < 0.5)
    m["ivar"][bad & ~m["mask"]] = 0
    tokens = codec.encode(m)
    spoilt = {k: v.copy() for k, v in m.items()}
    spoilt["flux"][bad] = junk
    spoilt["ivar"][m["mask"]] = rng.choice([np.nan, -1.0, np.inf, 0.0])
    kept = {k: v.copy() for k, v in spoilt.items()}
    np.testing.assert_array_equal(codec.encode(spoilt), tokens)
    for k, v in kept.items():
        np.testing.assert_array_equal(spoilt[k], v)
    # and not by being marked twice
    both = {**spoilt, "mask": bad}
    np.testing.assert_array_equal(codec.encode(both), tokens)
    a, b = codec.loss(codec.tensors(m)), codec.loss(codec.tensors(spoilt))
    assert torch.equal(a.total, b.total)


def test_a_band_without_a_good_pixel_is_an_absent_one(codec):
    m = sky(3)
    m["mask"][1, 2] = True
    m["flux"][1, 2] = np.nan
    tokens = codec.encode(m)
    without = codec.beside(("g", "r", "z"), np.array(LEGACY.slots)[[0, 1, 3]].tolist(), zero_point=22.5,
                           clip=np.array(LEGACY.clip)[[0, 1, 3]].tolist())  # fmt: skip
    three = without.encode({k: v[:, [0, 1, 3]] for k, v in m.items()})
    np.testing.assert_array_equal(tokens[1], three[1])
    assert (tokens[0] != three[0]).any()
    m["ivar"][2] = 0
    assert codec.sees(m).tolist() == [True, True, False]
    assert codec.encode(m).shape == (3, 576)
    assert codec.sees({"flux": m["flux"]}).all()


def test_pixel_n_half_is_the_middle_of_the_crop(folder):
    for side in (96, 97, 104, 111):
        flux = np.zeros((1, 4, side, side), "f4")
        flux[:, :, side // 2, side // 2] = 5
        codec = ImageCodec.from_aion(folder)
        assert np.argwhere(codec.tensors({"flux": flux})["flux"][0, 0].numpy()).tolist() == [[48, 48]]
        # as AION-1's crop of 96, which starts at (side - 96) // 2
        compat = ImageCodec.from_aion(folder, compat="aion")
        assert torch.equal(compat.tensors({"flux": flux})["flux"], codec.tensors({"flux": flux})["flux"])


def test_rows_and_columns_and_bands_are_not_swapped(codec):
    m = sky(1)
    m["flux"][:] = 0
    blank = codec.encode(m)[0]
    m["flux"][0, 1, 4 + 90, 4 + 2] = 5
    with torch.no_grad():
        z = codec.latent(codec.tensors(m))
        z0 = codec.latent(codec.tensors({**m, "flux": np.zeros_like(m["flux"])}))
    row, column = divmod(int((z - z0).abs().sum(1).argmax()), 24)
    assert row >= 20 and column <= 3
    assert (codec.encode(m)[0] != blank).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_good_pixel_that_is_no_number_is_refused(codec, value):
    m = sky(20)
    m["flux"][17, 2, 50, 60] = value
    with pytest.raises(ValueError, match=r"row 17, band i, pixel \(46, 56\) of the crop: flux is"):
        codec.encode(m)
    m["flux"][17, 2, 50, 60] = 1
    m["ivar"][19, 3, 4, 4] = value
    with pytest.raises(ValueError, match=r"row 19, band z, pixel \(0, 0\) of the crop: ivar is"):
        codec.encode(m)


def test_wrong_shapes_are_refused(codec):
    m = sky(2)
    with pytest.raises(ValueError, match="96 pixels or more a side"):
        codec.encode({k: v[..., :95] for k, v in m.items()})
    with pytest.raises(ValueError, match=r"wanted \(n, 4, y, x\) with bands g, r, i, z"):
        codec.encode({k: v[:, :3] for k, v in m.items()})
    with pytest.raises(ValueError, match="wanted 'flux'"):
        codec.encode({"value": m["flux"]})
    with pytest.raises(ValueError, match="mask is uint8"):
        codec.encode({**m, "mask": m["mask"].astype("u1")})
    with pytest.raises(ValueError, match="ivar is float32 of shape"):
        codec.encode({**m, "ivar": m["ivar"][:, :1]})
    with pytest.raises(ValueError, match="wanted real numbers"):
        codec.encode({"flux": m["flux"] * 1j})


def test_wrong_settings_are_refused(codec):
    with pytest.raises(ValueError, match="one of each a band"):
        ImageCodec(codec.network, ("g", "r"), LEGACY.slots)
    with pytest.raises(ValueError, match="one of each a band"):
        ImageCodec(codec.network, LEGACY.bands, LEGACY.slots, clip=(1.0,))
    with pytest.raises(ValueError, match="no whole number of tokens of 4"):
        ImageCodec(codec.network, LEGACY.bands, LEGACY.slots, crop=95)
    with pytest.raises(ValueError, match="compat 'peer'"):
        ImageCodec(codec.network, LEGACY.bands, LEGACY.slots, compat="peer")
    with pytest.raises(ValueError, match="slots SDSS-U"):
        ImageCodec(codec.network, ("u",), ("SDSS-U",))
    with pytest.raises(ValueError, match="numbers above 0"):
        ImageCodec(codec.network, ("g",), ("DES-G",), clip=(0.0,))
    with pytest.raises(ValueError, match="size 'huge'"):
        ImageCodec.fresh("huge")


def test_the_content_id_is_of_what_decides_tokens(codec, tmp_path):
    own = codec.content_id
    codec.save(tmp_path)
    again = load(tmp_path)
    assert isinstance(again, ImageCodec) and again.content_id == own
    m = sky(2)
    np.testing.assert_array_equal(again.encode(m), codec.encode(m))
    again.objective, again.precision = Objective(soft=0.1), "bf16"
    again.changed()
    assert again.content_id == own
    network = codec.network
    others = [
        ImageCodec(network, LEGACY.bands, LEGACY.slots),
        ImageCodec(network, LEGACY.bands, LEGACY.slots, clip=LEGACY.clip, crop=48),
        ImageCodec(network, LEGACY.bands, LEGACY.slots, clip=LEGACY.clip, zero_point=27.0),
        ImageCodec(network, LEGACY.bands, LEGACY.slots[::-1], clip=LEGACY.clip),
        ImageCodec(network, tuple("abcd"), LEGACY.slots, clip=LEGACY.clip),
    ]
    with torch.no_grad():
        again.network.subsample_in.bias[0] += 1e-3
    again.changed()
    assert len({own, again.content_id, *(o.content_id for o in others)}) == 7
    assert ImageCodec(network, LEGACY.bands, LEGACY.slots, clip=LEGACY.clip).content_id == own


def test_fresh_codecs_come_of_their_seed_alone():
    form = Architecture(hidden=8, projection=4, compressions=0, consecutive=1, stem=4, kernel=1)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = ImageCodec.fresh(form, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert ImageCodec.fresh(form, seed=1).content_id == one.content_id
    assert ImageCodec.fresh(form, seed=2).content_id != one.content_id
    assert ImageCodec.fresh(form, seed=1, gate_bias=-10.0).content_id != one.content_id


def test_sizes():
    counts = {k: n_parameters(ImageCodec.fresh(k).network) for k in ("tiny", "small")}
    assert 50_000 < counts["tiny"] < 300_000
    assert 4_000_000 < counts["small"] < 6_000_000
    for size in ("tiny", "small"):
        assert ImageCodec.fresh(size).layout.shape == (24, 24) and ImageCodec.fresh(size).vocabulary == 4375
    assert SIZES["aion"] == Architecture()


def test_surveys_share_a_network_and_learn(tmp_path):
    legacy = ImageCodec.fresh("tiny")
    legacy.objective = Objective(soft=0.04)
    hsc = legacy.beside(HSC.bands, HSC.slots, zero_point=27.0)
    assert hsc.objective == legacy.objective
    assert hsc.network is legacy.network and hsc.content_id != legacy.content_id
    images = [sky(4), sky(4, 5, unit=63.0957)]
    for m in images:
        m["flux"] *= np.float32(0.1)
    batches = [(c, c.tensors(m)) for c, m in zip((legacy, hsc), images, strict=True)]
    optimizer = torch.optim.Adam(legacy.network.parameters(), 3e-3, betas=(0.9, 0.99))
    legacy.network.train()
    losses: list[list[float]] = [[], []]
    for _ in range(20):
        for i, (codec, tensors) in enumerate(batches):
            loss = codec.loss(tensors)
            optimizer.zero_grad()
            loss.total.backward()
            torch.nn.utils.clip_grad_norm_(legacy.network.parameters(), 1.0)
            optimizer.step()
            losses[i].append(float(loss.total.detach()))
    assert all(min(each[-5:]) < 0.8 * each[0] for each in losses)
    assert {"chi2", "chi2_median", "flux_bias"} <= loss.parts.keys()
    assert not any(v.requires_grad for v in loss.parts.values())
    assert loss.codes.shape == (4, 576) and loss.codes.dtype == torch.int64
    for codec in (legacy, hsc):
        codec.changed()
        codec.save(tmp_path / codec.bands[-1])
        assert load(tmp_path / codec.bands[-1]).content_id == codec.content_id


def test_units_do_not_change_tokens_or_loss(codec):
    m, raw = sky(2), sky(2, unit=63.0957)
    plain = codec.beside(LEGACY.bands, LEGACY.slots, zero_point=22.5)
    zp27 = codec.beside(LEGACY.bands, LEGACY.slots, zero_point=27.0)
    a, b = plain.tensors(m), zp27.tensors(raw)
    torch.testing.assert_close(a["flux"], b["flux"], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(a["ivar"], b["ivar"], rtol=1e-5, atol=0)
    assert (plain.encode(m) == zp27.encode(raw)).mean() > 0.999
    tokens = plain.encode(m)
    np.testing.assert_allclose(zp27.decode(tokens)["flux"], plain.decode(tokens)["flux"] * 10**1.8, rtol=1e-5)


def test_the_loss_is_half_chi_square_of_good_pixels():
    codec = ImageCodec.fresh("tiny")
    codec.objective = Objective(soft=0.0)
    m = sky(3)
    m["mask"][0, :, 30:60] = True
    m["ivar"][1, 2] = 0
    tensors = codec.tensors(m)
    with torch.no_grad():
        loss = codec.loss(tensors)
        found = codec.measured(loss.codes)["flux"].numpy()
    cut = (..., slice(4, 100), slice(4, 100))
    good = ~m["mask"][cut] & (m["ivar"][cut] > 0)
    chi2 = (m["ivar"][cut] * (found - m["flux"][cut]) ** 2)[good]
    assert float(loss.total) == pytest.approx(chi2.mean() / 2, rel=1e-3)
    assert float(loss.parts["chi2"]) == pytest.approx(chi2.mean(), rel=1e-3)
    bias = (found - m["flux"][cut])[good].sum() / m["flux"][cut][good].sum()
    assert float(loss.parts["flux_bias"]) == pytest.approx(bias, rel=1e-3)
    with torch.no_grad():
        codec.objective = Objective(soft=1e-3)
        soft = codec.loss(tensors)
        assert float(soft.total) < float(loss.total)
        assert float(soft.parts["chi2"]) == pytest.approx(float(loss.parts["chi2"]))


@pytest.mark.parametrize("copy", [True, False])
def test_noise_that_training_adds_makes_a_copy_of_the_noise_worse(monkeypatch, copy):
    codec = ImageCodec.fresh("tiny")
    codec.objective = Objective(soft=0.0, recorrupt=0.5)
    noise = torch.randn(8, 4, 96, 96, generator=torch.Generator().manual_seed(0)) / 100
    tensors = {"flux": noise, "good": noise == noise, "ivar": torch.full_like(noise, 1e4)}
    tensors["ivar"][:, 0, :50] = 0
    shown = []

    def latent(tensors):
        shown.append(tensors["flux"])
        return torch.zeros(8, 5, 24, 24)

    monkeypatch.setattr(codec, "latent", latent)
    monkeypatch.setattr(codec, "_opened", lambda _: shown[-1] * copy)
    torch.manual_seed(1)
    # half of chi squared. As given, a copy is perfect; in training its noise, 1.25, comes on top of the target's, 5
    for training, wanted in ((False, 0.0 if copy else 0.5), (True, 3.125 if copy else 2.5)):
        codec.network.train(training)
        assert abs(float(codec.loss(tensors).total) - wanted) < 0.03
        assert torch.equal(shown[-1][:, 0, :50], noise[:, 0, :50]), "no noise where there is no information"
    assert torch.equal(tensors["flux"], noise)


def test_levels_are_those_of_a_code():
    codec = ImageCodec.fresh("tiny")
    codes = np.arange(codec.vocabulary)
    values = codec.network.quantizer.values(torch.from_numpy(codes)[:, None])[..., 0].numpy()
    middle = np.array(codec.levels) // 2
    np.testing.assert_allclose(from_index(codes, codec.levels), values * middle + middle)


def test_an_image_holds_flux_ivar_and_mask_alone(codec):
    with pytest.raises(ValueError, match="holds 'masks'; wanted flux, ivar and mask"):
        codec.encode({"flux": sky(1)["flux"], "masks": sky(1)["mask"]})


@settings(deadline=None, max_examples=50)
@given(st.floats(0.01, 0.3), st.floats(-50, 3000), st.floats(-100, 6000))
def test_the_softened_loss_is_its_integral(soft, flux, predicted):
    """Fluxes in sigmas."""
    t = torch.tensor([predicted], dtype=torch.float64, requires_grad=True)
    f, ivar = torch.tensor([flux], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    found = deviance(t, f, ivar, soft)
    found.sum().backward()
    integral, _ = quad(lambda x: 2 * (x - flux) / (1 + (soft * x) ** 2), flux, predicted, limit=500)
    assert float(found.detach()) == pytest.approx(integral, rel=1e-6, abs=1e-6)
    assert float(t.grad) == pytest.approx(2 * (predicted - flux) / (1 + (soft * predicted) ** 2), abs=1e-6)
    assert float(deviance(f, f, ivar, soft)) == 0 and float(found.detach()) >= -1e-9
    single = deviance(t.detach().float(), f.float(), ivar.float(), soft)
    assert float(single) == pytest.approx(float(found.detach()), rel=1e-2, abs=1e-2)
    assert float(deviance(t.detach(), f, ivar * 0, soft)) == 0


def test_the_mean_flux_is_best_under_the_softened_loss():
    flux = 20 + torch.randn(50_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tried = torch.linspace(19.8, 20.2, 41, dtype=torch.float64)
    losses = [float(deviance(p, flux, torch.ones_like(flux), 0.1).mean()) for p in tried]
    assert float(tried[int(np.argmin(losses))]) == pytest.approx(float(flux.mean()), abs=0.011)


def test_a_window_is_a_turned_piece_of_the_image():
    codec = ImageCodec.fresh("tiny", softening=(0.01, 0.02, 0.03, 0.04))
    m = sky(3)
    whole, pieces = codec.tensors(m), [codec.shown(m, 32, np.random.default_rng(i)) for i in range(20)]
    same = codec.shown(m, 0, np.random.default_rng(0))
    assert all(torch.equal(same[k], whole[k]) for k in whole)
    for piece in pieces:
        assert {k: v.shape for k, v in piece.items()} == dict.fromkeys(whole, (3, 4, 32, 32))
        band = int(piece["good"][1].flatten(1).any(-1).nonzero()[0])
        both = torch.stack([piece["flux"], piece["ivar"]], -1)
        brightest = int(piece["flux"][1, band].argmax())
        found = both[1, band].flatten(0, 1)[brightest]
        everywhere = torch.stack([whole["flux"][1, band], whole["ivar"][1, band]], -1).flatten(0, 1)
        assert (everywhere == found).all(dim=1).any()
    sums = {round(float(p["flux"].double().sum()), 6) for p in pieces}
    assert len(sums) > 10
    with torch.no_grad():
        assert codec.loss(pieces[0]).codes.shape == (3, 64)
    with pytest.raises(ValueError, match="window of 30 pixels"):
        codec.shown(m, 30, np.random.default_rng(0))


def test_training_hides_bands_as_if_they_were_not_observed():
    """Of a source that lacks bands already one of the others stays."""
    codec = ImageCodec.fresh("tiny")
    m = sky(8)
    m["mask"][4:, 1:3] = True
    hidden = []
    for i in range(80):
        shown = codec.shown(m, 48, np.random.default_rng(i))
        present = shown["good"].flatten(2).any(-1)
        assert present.any(dim=1).all() and not present[4:, 1:3].any()
        lost = ~present[:, :, None, None].expand_as(shown["flux"])
        assert not shown["flux"][lost].any() and not shown["ivar"][lost].any()
        hidden.append(~present[:4])
    share = torch.cat(hidden).any(dim=1).float().mean()
    assert 0.15 < float(share) < 0.3
    with torch.no_grad():
        assert torch.isfinite(codec.loss(shown).total)


def test_softening_is_a_bands_own():
    """Twice the light at twice the softening is the same to the network."""
    m = sky(2)
    soft = np.array([0.01, 0.02, 0.03, 0.04])
    one = ImageCodec.fresh("tiny", softening=soft)
    two = one.beside(one.bands, one.slots, zero_point=22.5, softening=2 * soft)
    tokens = one.encode(m)
    twice = {"flux": 2 * m["flux"], "ivar": m["ivar"] / 4, "mask": m["mask"]}
    np.testing.assert_array_equal(two.encode(twice), tokens)
    np.testing.assert_allclose(two.decode(tokens)["flux"], 2 * one.decode(tokens)["flux"], rtol=1e-5, atol=1e-7)
    assert one.content_id != two.content_id
    again = ImageCodec.restore(one.settings(), one.arrays())
    np.testing.assert_array_equal(again.encode(m), tokens)
    with pytest.raises(ValueError, match="softening"):
        ImageCodec.fresh("tiny", softening=(0.01, 0.02, 0.0, 0.04))
    with pytest.raises(ValueError, match="softening"):
        ImageCodec.fresh("tiny", softening=(0.01, np.nan, 0.02, 0.04))
    with pytest.raises(ValueError, match="softening"):
        one.to_aion(Path("nowhere"))


def test_a_fresh_tiny_codec_tells_how_bright_a_patch_is():
    """Before any training: the first number of a token grows with the light, of any colour."""
    codec = ImageCodec.fresh("tiny", softening=(0.02, 0.04, 0.06, 0.08))
    bright = np.geomspace(1e-4, 1, 24)[:, None, None]
    blue = np.geomspace(1, 10, 24)[None, :, None] ** np.array([1, 0.5, 0, -0.5])
    light = (bright * blue).transpose(2, 0, 1).repeat(4, 1).repeat(4, 2)[None].astype("f4")
    tokens = codec.encode({"flux": light, "ivar": np.full(light.shape, 1e4, "f4")}).reshape(24, 24).astype(int)
    first = tokens % 7
    assert (np.diff(first, axis=0) >= 0).all()
    assert (first[-1] - first[0] >= 2).all()


def test_images_without_ivar_are_weighed_by_their_scatter():
    codec = ImageCodec.fresh("tiny")
    rng = np.random.default_rng(0)
    flux = rng.normal(size=(2, 4, 96, 96)).astype("f4") * np.array([0.01, 0.02, 0.03, 0.04], "f4")[:, None, None]
    with torch.no_grad():
        codec.network.subsample_out.weight.zero_()
        codec.network.subsample_out.bias.zero_()
        loss = codec.loss(codec.tensors({"flux": flux}))
    assert float(loss.parts["chi2"]) == pytest.approx(1, rel=0.05)
    blank = codec.tensors({"flux": np.zeros_like(flux), "mask": np.ones(flux.shape, bool)})
    with torch.no_grad():
        assert float(codec.loss(blank).total) == 0


def test_a_prediction_that_runs_away_neither_overflows_nor_is_lost():
    codec = ImageCodec.fresh("tiny")
    tensors = codec.tensors(sky(2))
    with torch.no_grad():
        codec.network.subsample_out.bias.fill_(1e5)
    loss = codec.loss(tensors)
    loss.total.backward()
    assert torch.isfinite(loss.total.detach())
    gradient = codec.network.subsample_out.bias.grad[5:]
    assert (gradient > 0).all() and torch.isfinite(gradient).all()
    assert np.isfinite(codec.decode(np.zeros((1, 576), "u2"))["flux"]).all()


def test_bfloat16_is_safe():
    codec = ImageCodec.fresh("tiny")
    m = sky(2)
    tokens = codec.encode(m)
    with torch.autocast("cpu", torch.bfloat16):
        loss = codec.loss(codec.tensors(m))
    loss.total.backward()
    assert loss.total.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in codec.network.parameters() if p.grad is not None)
    low = codec.to("cpu", "bf16").encode(m)
    assert low.max() < 4375 and (low == tokens).mean() > 0.5
    assert codec.decode(tokens)["flux"].dtype == np.float32


@pytest.mark.gpu
def test_a_gpu_gives_the_same_tokens(codec):
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    m = sky(8)
    tokens = codec.encode(m)
    flips = (codec.to("cuda").encode(m) != tokens).mean()
    codec.to("cpu")
    assert flips < 1e-3
