import numpy as np
import pytest
import torch
from aion.codecs.scalar_field import ScalarFieldCodec as Peer
from aion.modalities import LegacySurveySegmentationMap
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from skycairn.tokenizers.aion import read_published, write_published
from skycairn.tokenizers.codec import load
from skycairn.tokenizers.segmap import SIZES, Architecture, SegmentationCodec, painted

SMALL = Architecture(hidden=24, decoder=16, residual=8)
TYPES = ("PSF", "REX", "EXP", "DEV", "SER")


def randomised(module: torch.nn.Module, scale: float = 1.5) -> torch.nn.Module:
    """All weights and statistics drawn anew, those that start at 0 or 1 too."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, a in module.state_dict().items():
            if name.endswith("running_var"):
                a.copy_(torch.rand(a.shape, generator=draw) + 0.5)
            elif a.dtype == torch.float32:
                a.copy_(torch.randn(a.shape, generator=draw) * (scale / max(a[0].numel(), 4) ** 0.5))
    return module.eval()


def spread(proj: torch.nn.Conv2d, latent: torch.Tensor) -> None:
    """Rescale what is quantized to mean 0 and deviation 1.2, so that many codes occur."""
    axes = [i for i in range(latent.dim()) if i != 1]
    factor = 1.2 / latent.std(axes)
    with torch.no_grad():
        proj.weight.mul_(factor[:, None, None, None])
        proj.bias.copy_((proj.bias - latent.mean(axes)) * factor)


def sky(n: int, side: int = 100, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    maps = []
    for _ in range(n):
        k = 12
        e = rng.uniform(-0.4, 0.4, (2, k))
        r = rng.lognormal(0.5, 0.6, k)
        maps.append(painted(*rng.uniform(0, side, (2, k)), *e, r, rng.choice(TYPES, k), side))
    return {"value": np.array(maps).reshape(n, side, side)}


def peer_of(form: Architecture, **config) -> Peer:
    return Peer(
        encoder_output_dim=form.hidden,
        decoder_input_dim=form.decoder,
        embedding_dim=len(form.levels),
        res_hidden_dims=form.residual,
        levels=list(form.levels),
        output_activation_extension=form.extension,
        **config,
    )


@pytest.fixture(scope="module")
def codec() -> SegmentationCodec:
    codec = SegmentationCodec.fresh(SMALL)
    randomised(codec.network)
    with torch.no_grad():
        spread(codec.network.encode_proj, codec.latent(codec.tensors(sky(20))))
    return codec


@pytest.mark.parametrize("extension", [None, 0.1])
def test_tokens_and_maps_are_the_peers(tmp_path, extension):
    form = Architecture(hidden=24, decoder=16, residual=8, extension=extension)
    peer = randomised(peer_of(form))
    m = sky(20)
    field = LegacySurveySegmentationMap(field=torch.from_numpy(m["value"]))
    with torch.no_grad():
        spread(peer.encode_proj, peer._encode(field))
    config = SegmentationCodec.fresh(form).to_aion(tmp_path / "config") / "config.json"
    write_published(tmp_path, "segmentation_map", {}, {k: v.numpy() for k, v in peer.state_dict().items()})
    (tmp_path / "codecs" / "segmentation_map" / "config.json").write_bytes(config.read_bytes())
    ours = SegmentationCodec.from_aion(tmp_path)
    with torch.no_grad():
        theirs = peer.encode(field).numpy()
        bounded = ours.network.quantizer.bounded(ours.latent(ours.tensors(m))).numpy()
    clear = (np.abs(bounded - np.floor(bounded) - 0.5) > 1e-5).all(-1).reshape(len(theirs), -1)
    tokens = ours.encode(m)
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(tokens[clear], theirs[clear])
    assert len(np.unique(tokens)) > 50
    with torch.no_grad():
        back = peer.decode(torch.from_numpy(theirs)).field.numpy()
    np.testing.assert_allclose(ours.decode(theirs)["value"], back, rtol=1e-5, atol=1e-6)


def test_weights_go_both_ways_bit_for_bit(tmp_path, codec):
    place = codec.to_aion(tmp_path)
    again = SegmentationCodec.from_aion(tmp_path)
    assert again.content_id == codec.content_id
    config, arrays = read_published(tmp_path, "segmentation_map")
    peer = Peer(**config)
    peer.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()}, strict=True)
    for name, tensor in peer.state_dict().items():
        assert np.asarray(tensor).tobytes() == codec.arrays()[name].tobytes()
    again.to_aion(tmp_path / "again")
    assert (tmp_path / "again/codecs/segmentation_map/model.safetensors").read_bytes() == (
        place / "model.safetensors"
    ).read_bytes()


def test_averaged_weights_are_kept_and_decide_nothing(tmp_path, codec):
    peer = peer_of(SMALL, ema_model_weights=True)
    randomised(peer)
    randomised(peer.ema.module, scale=1.0)
    peer.load_state_dict({**peer.state_dict(), **codec.network.state_dict()})
    given_arrays = {k: v.numpy() for k, v in peer.state_dict().items()}
    config = {
        "encoder_output_dim": 24, "decoder_input_dim": 16, "embedding_dim": 4, "res_hidden_dims": 8,
        "ema_model_weights": True, "lr": 1e-4,
    }  # fmt: skip
    write_published(tmp_path, "segmentation_map", config, given_arrays)
    last, mean = SegmentationCodec.from_aion(tmp_path), SegmentationCodec.from_aion(tmp_path, "average")
    m = sky(3)
    np.testing.assert_array_equal(last.encode(m), codec.encode(m))
    assert (mean.encode(m) != last.encode(m)).any()
    assert not mean.average
    last.to_aion(tmp_path / "out")
    last.save(tmp_path / "saved")
    for kept in (read_published(tmp_path / "out", "segmentation_map")[1], load(tmp_path / "saved").arrays()):
        assert kept.keys() == given_arrays.keys()
        assert all(kept[k].tobytes() == v.tobytes() for k, v in given_arrays.items())
    Peer(**read_published(tmp_path / "out", "segmentation_map")[0]).load_state_dict(peer.state_dict(), strict=True)
    last.changed()
    assert last.content_id == codec.content_id
    with pytest.raises(ValueError, match="no averaged weights"):
        SegmentationCodec.from_aion(codec.to_aion(tmp_path / "plain"), "average")
    (tmp_path / "codecs/segmentation_map/config.json").write_text('{"encoder_output_dim": 24, "embedding_dim": 4}')
    with pytest.raises(ValueError, match="do not fit"):
        SegmentationCodec.from_aion(tmp_path)


def test_files_that_do_not_fit_are_refused(tmp_path, codec):
    place = codec.to_aion(tmp_path)
    arrays = load_file(place / "model.safetensors")
    missing = {k: v for k, v in arrays.items() if k != "decoder.net.3.weight"}
    save_file(missing, place / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 weights of the file do not fit .*decoder\.net\.3\.weight"):
        SegmentationCodec.from_aion(tmp_path)
    half = {"ema.module.encode_proj.bias": arrays["encode_proj.bias"]}
    save_file({**arrays, **half}, place / "model.safetensors")
    with pytest.raises(ValueError, match="do not fit"):
        SegmentationCodec.from_aion(tmp_path)
    (place / "config.json").write_text('{"encoder_output_dim": 24, "colour": "red"}')
    with pytest.raises(ValueError, match="has colour that is not known"):
        SegmentationCodec.from_aion(tmp_path)
    (place / "config.json").write_text('{"encoder_output_dim": 24, "variational": true}')
    with pytest.raises(ValueError, match="variational"):
        SegmentationCodec.from_aion(tmp_path)
    with pytest.raises(ValueError, match="crop 48"):
        SegmentationCodec(codec.network, crop=48).to_aion(tmp_path)


def test_batches_and_their_order_do_not_matter(codec):
    m = sky(21, seed=3)
    tokens = codec.encode(m)
    order = np.random.default_rng(0).permutation(21)
    np.testing.assert_array_equal(codec.encode({"value": m["value"][order]}), tokens[order])
    for rows in (slice(0, 1), slice(5, 12)):
        np.testing.assert_array_equal(codec.encode({"value": m["value"][rows]}), tokens[rows])
    assert codec.encode({"value": m["value"][:0]}).shape == (0, 144)
    assert codec.decode(tokens[:0])["value"].shape == (0, 96, 96)
    assert codec.vocabulary == 1000 and codec.layout.shape == (12, 12)


def test_saved_and_loaded(tmp_path, codec):
    codec.save(tmp_path)
    again = load(tmp_path)
    assert again.content_id == codec.content_id
    m = sky(2)
    np.testing.assert_array_equal(again.encode(m), codec.encode(m))
    assert SegmentationCodec.fresh(SMALL).content_id == SegmentationCodec.fresh(SMALL).content_id
    assert SegmentationCodec.fresh(SMALL, seed=1).content_id != SegmentationCodec.fresh(SMALL).content_id
    assert SegmentationCodec(codec.network, crop=48).content_id != codec.content_id


def test_bad_maps_are_refused(codec):
    m = sky(2)["value"]
    for wrong in (np.nan, -0.1, 1.1, np.inf):
        bad = m.copy()
        bad[1, 50, 50] = wrong
        with pytest.raises(ValueError, match=r"row 1, pixel \(48, 48\) of the crop is"):
            codec.encode({"value": bad})
        assert np.array_equal(bad[0], m[0])
    bad = m.copy()
    bad[:, 0] = np.nan  # outside of the crop
    np.testing.assert_array_equal(codec.encode({"value": bad}), codec.encode({"value": m}))
    with pytest.raises(ValueError, match="96 pixels or more"):
        codec.encode({"value": m[:, :95]})
    with pytest.raises(ValueError, match="wanted 'value'"):
        codec.encode({"flux": m})
    with pytest.raises(ValueError, match="size 'huge'"):
        SegmentationCodec.fresh("huge")
    with pytest.raises(ValueError, match="crop of 50 pixels"):
        SegmentationCodec(codec.network, crop=50)


def test_it_learns():
    torch.manual_seed(0)
    codec = SegmentationCodec.fresh(Architecture(hidden=32, decoder=32, residual=16))
    tensors = codec.tensors(sky(8))
    optimizer = torch.optim.Adam(codec.network.parameters(), 3e-3)
    codec.network.train()
    losses = []
    for _ in range(40):
        loss = codec.loss(tensors)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(float(loss.total.detach()))
    assert losses[-1] < 0.6 * losses[0]
    assert loss.codes.shape == (8, 144) and loss.codes.dtype == torch.int64
    assert float(loss.parts["mse"]) == losses[-1]
    codec.changed()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(codec.loss(tensors).total)


def test_sizes():
    assert sum(p.numel() for p in SegmentationCodec.fresh("tiny").network.parameters()) < 200_000
    assert SIZES["aion"] == Architecture()


def test_a_circle_has_its_area_and_place():
    r = 5.0
    found = painted([40.0], [60.0], [0.0], [0.0], [r], ["REX"])
    assert found.dtype == np.float32 and set(np.unique(found)) == {np.float32(0), np.float32(0.4)}
    y, x = np.nonzero(found)
    assert (y.mean(), x.mean()) == (60, 40)
    assert len(y) == pytest.approx(np.pi * (r / 0.262) ** 2, rel=0.01)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.05, 0.7), st.floats(0, 179))
def test_ellipses_have_their_axes_and_position_angle(e, degrees):
    phi = np.deg2rad(degrees)
    found = painted([48.0], [48.0], [e * np.cos(2 * phi)], [e * np.sin(2 * phi)], [9.0], ["SER"])
    y, x = np.nonzero(found)
    # north is up, east to the left
    north, east = (y - 48) * 0.262, -(x - 48) * 0.262
    q = (1 - e) / (1 + e)
    assert len(y) * 0.262**2 == pytest.approx(np.pi * 81 * q, rel=0.05)
    along = north * np.cos(phi) + east * np.sin(phi)
    across = east * np.cos(phi) - north * np.sin(phi)
    assert np.abs(along).max() == pytest.approx(9, abs=0.4)
    assert np.abs(across).max() == pytest.approx(9 * q, abs=0.4)


def test_overlaps_do_not_hang_on_order_and_edges_are_cut():
    rng = np.random.default_rng(0)
    a = [*rng.uniform(-5, 100, (2, 30)), *rng.uniform(-0.5, 0.5, (2, 30)), rng.lognormal(1, 0.5, 30)]
    types = rng.choice(TYPES, 30)
    order = rng.permutation(30)
    found = painted(*a, types)
    np.testing.assert_array_equal(painted(*[v[order] for v in a], types[order]), found)
    np.testing.assert_array_equal(painted(*a, types.astype("S4")), found)
    assert not painted(*np.zeros((5, 0)), []).any()
    assert not painted([5.0], [5.0], [0], [0], [3.0], ["DUP"]).any()
    # a point has no shape: whatever stands there is not looked at
    point = painted([5.0], [5.0], [np.nan], [0.0], [0.0], ["PSF"])
    assert point.max() == np.float32(0.2) and point[5, 5] > 0


def test_sources_that_are_none_are_refused():
    for at, wrong in ((0, np.nan), (2, 0.9), (4, -1.0), (4, np.nan)):
        a = [[5.0, 6.0], [5.0, 6.0], [0.0, 0.5], [0.0, 0.5], [1.0, 1.0]]
        a[at][1] = wrong
        with pytest.raises(ValueError, match="source 1 has type 'EXP'"):
            painted(*a, ["REX", "EXP"])
    with pytest.raises(ValueError, match="source 0 has type 'STAR'"):
        painted([1], [1], [0], [0], [1], ["STAR"])
    with pytest.raises(ValueError, match="one of each a source"):
        painted([1], [1], [0], [0], [1], [])
