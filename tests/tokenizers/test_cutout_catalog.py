import json

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from skycairn.tokenizers.codec import load
from skycairn.tokenizers.cutout_catalog import CENTRE, NAMES, CutoutCatalogCodec, cutout_objects
from skycairn.tokenizers.modalities import AION

few = settings(deadline=None, max_examples=30)


def objects(n: int, room: int = 10, seed: int = 0) -> dict[str, np.ndarray]:
    """Positions on whole pixels; point sources have shape 0, as Tractor's do."""
    rng = np.random.default_rng(seed)
    point = rng.random((n, room)) < 0.3
    return {
        "x": rng.integers(0, 96, (n, room)),
        "y": rng.integers(0, 96, (n, room)),
        **{e: np.where(point, 0, rng.normal(0, 0.3, (n, room)).clip(-1, 1)).astype(np.float32) for e in ("e1", "e2")},
        "r": np.where(point, 0, rng.lognormal(0, 0.7, (n, room))).astype(np.float32),
        "present": np.arange(room) < rng.integers(0, room + 1, (n, 1)),
    }


@pytest.fixture(scope="module")
def codec() -> CutoutCatalogCodec:
    return CutoutCatalogCodec.fit(objects(3000))


@pytest.fixture(scope="module")
def peer(codec, tmp_path_factory):
    torch = pytest.importorskip("torch")
    catalog, modalities = pytest.importorskip("aion.codecs.catalog"), pytest.importorskip("aion.modalities")
    place = codec.to_aion(tmp_path_factory.mktemp("ours"))
    theirs = catalog.CatalogCodec(**json.loads((place / "config.json").read_text()))
    found = load_file(place / "model.safetensors")
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in found.items()}, strict=True)
    return theirs, modalities.LegacySurveyCatalog, torch


def as_the_peer_takes_it(m: dict[str, np.ndarray], torch) -> dict:
    names = {"x": "X", "y": "Y", "e1": "SHAPE_E1", "e2": "SHAPE_E2", "r": "SHAPE_R"}
    out = {names[k]: m[k].astype(np.int64 if k in "xy" else np.float32).copy() for k in names}
    for v in out.values():
        v[~m["present"]] = 9999
    return {k: torch.from_numpy(v) for k, v in out.items()}


def test_tokens_and_what_they_decode_to_are_the_peers(codec, peer):
    theirs, modality, torch = peer
    own = CutoutCatalogCodec(codec.shapes, most=20, compat="aion")
    m = objects(400, room=20, seed=5)
    knots = codec.shapes[2].knots
    m["r"].ravel()[: len(knots)] = knots
    m["e1"].ravel()[:1024] = codec.shapes[0].knots
    m["r"][-1] = [1e9, -1.0] * 10
    m["present"] = np.random.default_rng(1).random((400, 20)) < 0.8  # objects anywhere in the row
    expected = theirs.encode(modality(**as_the_peer_takes_it(m, torch))).numpy()
    tokens = own.encode(m)
    np.testing.assert_array_equal(tokens, expected)
    back, other = own.decode(tokens), theirs.decode(torch.from_numpy(expected))
    for name, peers in zip(NAMES, ("X", "Y", "SHAPE_E1", "SHAPE_E2", "SHAPE_R"), strict=True):
        np.testing.assert_allclose(back[name], getattr(other, peers).numpy(), rtol=1e-6)
    np.testing.assert_array_equal(back["present"], m["present"])
    assert own.offsets.tolist() == [0, 96, 192, 1216, 2240]
    assert own.vocabulary == AION["catalog"].vocabulary == 3264
    with pytest.raises(ValueError, match="without compat for a pile"):
        own.lengths(tokens)
    with pytest.raises(ValueError, match="wanted 20"):
        own.encode(objects(3))


def test_files_go_to_the_peer_and_back_bit_for_bit(codec, peer, tmp_path):
    theirs, modality, _ = peer
    theirs.save_pretrained(tmp_path / "theirs", modality)
    read = CutoutCatalogCodec.from_aion(tmp_path / "theirs")
    assert read.content_id == codec.content_id
    written = load_file(read.to_aion(tmp_path / "again") / "model.safetensors")
    for name, array in theirs.state_dict().items():
        np.testing.assert_array_equal(written[name], array.numpy())
        assert written[name].dtype == array.numpy().dtype and written[name].shape == tuple(array.shape)
    assert written.keys() == theirs.state_dict().keys()


@pytest.mark.parametrize(
    ("change", "config", "match"),
    [
        (lambda a: {**a, "more": np.zeros(2, np.float32)}, {}, "more"),
        (lambda a: {k: v for k, v in a.items() if "SHAPE_R._res" not in k}, {}, "no _quantizer.quantizers.SHAPE_R"),
        (lambda a: {k: np.array(64) if "codebook" in k else v for k, v in a.items()}, {}, "96 pixels"),
        (None, {"mask_value": -1}, "wanted 9999"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(codec, tmp_path, change, config, match):
    place = codec.to_aion(tmp_path)
    if change:
        save_file(change(load_file(place / "model.safetensors")), place / "model.safetensors")
    (place / "config.json").write_text(json.dumps({"mask_value": 9999, **config}))
    with pytest.raises(ValueError, match=match):
        CutoutCatalogCodec.from_aion(tmp_path)
    small = CutoutCatalogCodec.fit(objects(50), n_knots=64)
    with pytest.raises(ValueError, match="64 knots"):
        small.to_aion(tmp_path)


@few
@given(st.integers(0, 30), st.integers(0, 14), st.integers(1, 12), st.integers(0, 99))
def test_the_nearest_objects_come_first_and_come_back(n, room, most, seed):
    codec = CutoutCatalogCodec.fit(objects(200, seed=1), most=most, n_knots=32, reservoir=500)
    m = objects(n, room, seed)
    before = {k: v.copy() for k, v in m.items()}
    tokens = codec.encode(m)
    assert tokens.shape == (n, 5 * most) and tokens.dtype == np.uint16
    lengths = codec.lengths(tokens)
    np.testing.assert_array_equal(lengths, 5 * np.minimum(m["present"].sum(axis=1), most))
    there = np.arange(5 * most) < lengths[:, None]
    assert (tokens[there] < 3264).all() and (tokens[~there] == codec.missing).all()
    back = codec.decode(tokens)
    np.testing.assert_array_equal(codec.encode(back), tokens)
    distance = np.hypot(back["x"] - CENTRE, back["y"] - CENTRE)
    assert not (np.diff(distance, axis=1) < 0).any()
    assert np.isnan(back["x"][~back["present"]]).all()
    for k, v in before.items():
        np.testing.assert_array_equal(m[k], v)
    for i in range(n):
        all_of_them = np.sort(np.hypot(m["x"] - CENTRE, m["y"] - CENTRE)[i][m["present"][i]])
        np.testing.assert_allclose(distance[i][back["present"][i]], all_of_them[:most])


def test_no_sources_and_no_objects(codec, tmp_path):
    assert codec.encode(objects(0)).shape == (0, 50)
    assert codec.decode(codec.encode(objects(0)))["present"].shape == (0, 10)
    none = {k: v[:, :0] for k, v in objects(3).items()}
    tokens = codec.encode(none)
    assert (tokens == 3264).all() and codec.lengths(tokens).tolist() == [0, 0, 0]
    assert codec.sees(none).tolist() == [False] * 3
    codec.save(tmp_path)
    assert load(tmp_path).content_id == codec.content_id
    with pytest.raises(ValueError, match="no value"):
        CutoutCatalogCodec.fit(none)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("x", 96.0, r"row 1, object 2: x is 96.0, wanted a pixel from 0 to 95"),
        ("y", -0.51, r"row 1, object 2: y is -0.51"),
        ("x", np.nan, "row 1, object 2: x is nan"),
        ("e1", np.nan, "row 1, object 2: e1 is nan"),
        ("r", np.inf, "row 1, object 2: r is inf"),
        ("r", 1e39, "beyond float32"),
    ],
)
def test_what_is_no_object_is_refused_by_row(codec, name, value, match):
    m = {k: v.astype(np.float64) if k != "present" else np.ones(v.shape, bool) for k, v in objects(3).items()}
    m[name][1, 2] = value
    with pytest.raises(ValueError, match=match):
        codec.encode(m)
    m["present"][1, 2] = False
    assert codec.lengths(codec.encode(m)).tolist() == [50, 45, 50]


def test_wrong_arrays_and_tokens_are_refused(codec):
    m = objects(3)
    for change, match in (
        ({"present": m["present"].astype(int)}, "wanted bool"),
        ({"r": m["r"][:, :3]}, r"r \(3, 3\)"),
        ({"e1": m["e1"].astype(str)}, "wanted numbers"),
    ):
        with pytest.raises(ValueError, match=match):
            codec.encode({**m, **change})
    with pytest.raises(ValueError, match="lacks present"):
        codec.encode({k: v for k, v in m.items() if k != "present"})
    tokens = codec.encode({**m, "present": np.ones((3, 10), bool)})
    for place, token, match in ((3, 5, "row 1 holds token 5 at position 3, wanted the e2"), (0, 3264, "position 1")):
        wrong = tokens.copy()
        wrong[1, place] = token
        with pytest.raises(ValueError, match=match):
            codec.decode(wrong)
    gap = tokens.copy()
    gap[1, :5] = 3264
    with pytest.raises(ValueError, match="in all that follow"):
        codec.decode(gap)
    with pytest.raises(ValueError, match="shape"):
        codec.decode(tokens[:, :45])


@pytest.mark.parametrize("centre", [(0.0001, -30.0), (180.0, 89.9), (75.0, 0.0)])
def test_objects_are_found_across_0h_and_at_the_pole_where_astropy_puts_them(centre):
    rng = np.random.default_rng(3)
    middle = SkyCoord(*centre, unit="deg")
    around = middle.directional_offset_by(
        rng.uniform(0, 360, 200) * middle.ra.unit, rng.uniform(0, 30, 200) / 3600 * middle.ra.unit
    )
    ra, dec = np.append(around.ra.deg, centre[0]), np.append(around.dec.deg, centre[1])
    shape = rng.normal(size=(3, 201))
    m = cutout_objects((np.array([centre[0]]), np.array([centre[1]])), (ra, dec), tuple(shape), most=300)
    offset = SkyCoord(ra, dec, unit="deg").transform_to(middle.skyoffset_frame()).spherical
    lon, lat = offset.lon.wrap_at("180d").rad, offset.lat.rad
    x = 48 - np.degrees(np.tan(lon)) * 3600 / 0.262
    y = 48 + np.degrees(np.tan(lat) / np.cos(lon)) * 3600 / 0.262
    inside = (x >= -0.5) & (x < 95.5) & (y >= -0.5) & (y < 95.5)
    order = np.argsort(np.hypot(x - 48, y - 48)[inside], kind="stable")
    n = inside.sum()
    assert m["present"].sum() == n and m["present"][0, :n].all()
    np.testing.assert_allclose(m["x"][0, :n], x[inside][order], atol=1e-5)
    np.testing.assert_allclose(m["y"][0, :n], y[inside][order], atol=1e-5)
    np.testing.assert_array_equal(m["r"][0, :n], shape[2][inside][order])
    assert (m["x"][0, 0], m["y"][0, 0]) == pytest.approx((48, 48), abs=1e-6)
    tokens = CutoutCatalogCodec.fit(m, most=10, n_knots=20).encode(m)
    assert tokens[0, :2].tolist() == [48, 96 + 48]


def test_a_catalogue_around_nothing_and_of_nothing():
    none, one = np.empty(0), np.array([10.0])
    assert cutout_objects((none, none), (one, one), (one, one, one))["x"].shape == (0, 10)
    m = cutout_objects((one, one), (none, none), (none, none, none))
    assert m["present"].sum() == 0 and np.isnan(m["x"]).all()
    with pytest.raises(ValueError, match=r"positions\[0\]: row 0 is nan"):
        cutout_objects((one, one), (one * np.nan, one), (one, one, one))
    with pytest.raises(ValueError, match="as many of each"):
        cutout_objects((one, one), (one, one), (one, one, none))
