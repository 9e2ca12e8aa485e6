import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file, save_file

from skycairn.tokenizers.codec import load
from skycairn.tokenizers.distribution import Knots
from skycairn.tokenizers.knots import GridKnotsCodec, KnotsCodec, MultiKnotsCodec
from skycairn.tokenizers.modalities import AION
from skycairn.tokenizers.sketch import QuantileSketch

few = settings(deadline=None, max_examples=40)
singles = st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([0.0, -0.0, 1.0, -5.0, 2.0**-140])
samples = arrays(np.float32, st.integers(1, 200), elements=singles)
compressions = st.sampled_from(["identity", "log", "asinh_asinh"])
SCALARS = [m for m in AION.values() if m.codec in ("scalar", "log")]


def skewed(n: int = 30_000, seed: int = 0) -> np.ndarray:
    """Signed, long-tailed, as a faint band's."""
    rng = np.random.default_rng(seed)
    return (10 ** rng.normal(0, 1, n) + rng.normal(0, 1, n)).astype(np.float32)


def fitted(key: str, seed: int = 0, compat=None):
    """A codec of ours for this modality, small enough for a test."""
    codec, small = AION[key].codec, {"n_knots": 1024, "reservoir": 5000, "compat": compat}
    if codec == "grid":
        return GridKnotsCodec.fit(compat=compat)
    if codec == "multi":
        rng = np.random.default_rng(seed)
        return MultiKnotsCodec.fit(rng.normal(size=(4000, 55)) * 10 ** rng.uniform(-2, 3, 55), **small)
    return KnotsCodec.fit(skewed(seed=seed), "log" if codec == "log" else "identity", **small)


def peer(place: Path, key: str):
    """The peer's own codec, of the files in a folder."""
    torch = pytest.importorskip("torch")
    config = pytest.importorskip("aion.codecs.config")
    modalities = pytest.importorskip("aion.modalities")
    own = next(c for n in modalities.__all__ for c in [getattr(modalities, n)] if c.token_key == key)
    said = json.loads((place / "config.json").read_text())
    codec = config.MODALITY_CODEC_MAPPING[own](**said)
    found = load_file(place / "model.safetensors")
    codec.load_state_dict({k: torch.from_numpy(v) for k, v in found.items()}, strict=True)
    return codec, own, torch


def hard_values(codec, seed: int = 1) -> np.ndarray:
    """float32 all over the range, on every knot, beside it, beyond the ends, and some that are no number."""
    rng = np.random.default_rng(seed)
    columns = []
    for table in codec.tables:
        on = table.expand(table.knots)
        beside = [np.nextafter(on, np.float32(s)) for s in (-np.inf, np.inf)]
        ends = np.float32([0, -0.0, -1e-30, 1e-30, 1e30, -1e30, 3e38, np.nan, np.inf, -np.inf, -5, 1.5])
        spread = np.concatenate([rng.choice(on, 2000) * rng.normal(1, 0.3, 2000), rng.normal(size=500)])
        columns.append(np.concatenate([on, *beside, ends, spread.astype(np.float32)]).astype(np.float32))
    return np.stack(columns, axis=1) if codec.layout.shape else columns[0]


@pytest.mark.parametrize("key", ["tok_ebv", "tok_flux_w1", "tok_parallax", "tok_ra", "tok_z", "tok_xp_bp"])
def test_tokens_are_the_peers_on_every_knot_and_beyond_the_ends(tmp_path, key):
    own = fitted(key, compat="aion")
    codec, modality, torch = peer(own.to_aion(tmp_path, key), key)
    x = hard_values(own)
    theirs = codec.encode(modality(value=torch.from_numpy(x.copy()))).numpy().reshape(len(x), -1)
    tokens = own.encode({"value": x})
    np.testing.assert_array_equal(tokens, theirs)
    assert len(np.unique(tokens)) == 1024 or key in ("tok_flux_w1", "tok_parallax")
    every = np.repeat(np.arange(1024)[:, None], own.n_tokens, axis=1)
    given = torch.from_numpy(every if own.layout.shape else every[:, 0])
    np.testing.assert_allclose(own.decode(every)["value"], codec.decode(given).value.numpy(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("key", ["tok_mag_g", "tok_flux_g", "tok_flux_bp_gaia", "tok_z", "tok_xp_rp"])
def test_without_compat_tokens_differ_by_the_last_bit_of_a_logarithm_at_most(tmp_path, key):
    own = fitted(key)
    codec, modality, torch = peer(own.to_aion(tmp_path, key), key)
    x = hard_values(own)
    x = x[np.isfinite(x).all(axis=1) if x.ndim == 2 else np.isfinite(x)]
    x = x[(x > own.low) & (x <= 1)] if key == "tok_z" else x
    theirs = codec.encode(modality(value=torch.from_numpy(x.copy()))).numpy().reshape(len(x), -1)
    tokens = own.encode({"value": x}).astype(np.int64)
    for k, table in enumerate(own.tables):
        other = tokens[:, k] != theirs[:, k]
        if table.compression == "identity":
            assert not other.any()
        y = table.compress(x.reshape(len(x), -1)[:, k])
        lower = table.knots[np.minimum(tokens, theirs)[:, k]]
        assert (np.abs(y - lower) <= 4 * np.spacing(np.abs(lower)))[other].all()
    random = np.random.default_rng(2).choice(own.decode(tokens)["value"].ravel(), 20_000)
    if not own.layout.shape:
        theirs = codec.encode(modality(value=torch.from_numpy(random.astype(np.float32)))).numpy()
        np.testing.assert_array_equal(own.encode({"value": random})[:, 0], theirs)


@pytest.mark.parametrize("key", [m.token_key for m in AION.values() if m.codec in ("scalar", "log", "multi", "grid")])
def test_every_modality_goes_to_the_peer_and_back_bit_for_bit(tmp_path, key):
    own = fitted(key)
    place = own.to_aion(tmp_path, key)
    assert place == tmp_path / "codecs" / AION[key].name
    for source in (tmp_path, place):
        again = type(own).from_aion(source, key)
        assert again.content_id == own.content_id
    first = {f: (place / f).read_bytes() for f in ("config.json", "model.safetensors")}
    again.to_aion(tmp_path / "more", key)
    assert first == {f: (tmp_path / "more" / "codecs" / AION[key].name / f).read_bytes() for f in first}


@pytest.mark.parametrize("key", ["tok_ebv", "tok_flux_w1", "tok_z", "tok_xp_bp"])
def test_what_the_peer_fitted_and_wrote_is_read(tmp_path, key):
    pytest.importorskip("aion")
    codec, modality, torch = peer(fitted(key).to_aion(tmp_path / "ours", key), key)
    if key != "tok_z":
        rng = np.random.default_rng(4)
        sample = rng.normal(size=(3000, 55) if key == "tok_xp_bp" else 3000).astype(np.float32) * 5
        codec.quantizer._update_reservoirs(torch.from_numpy(sample))
    codec.save_pretrained(tmp_path / "theirs", modality)
    own = {"tok_z": GridKnotsCodec, "tok_xp_bp": MultiKnotsCodec}.get(key, KnotsCodec)
    read = own.from_aion(tmp_path / "theirs", key, compat="aion")
    x = hard_values(read)
    theirs = codec.encode(modality(value=torch.from_numpy(x.copy()))).numpy().reshape(len(x), -1)
    np.testing.assert_array_equal(read.encode({"value": x}), theirs)
    state = {k: v.numpy() for k, v in codec.state_dict().items()}
    written = load_file(read.to_aion(tmp_path / "again", key) / "model.safetensors")
    assert state.keys() == written.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(written[name], array)


def test_knots_are_fitted_as_the_peer_fits_them(tmp_path):
    quantizers = pytest.importorskip("aion.codecs.quantizers.scalar")
    torch = pytest.importorskip("torch")
    x = skewed(5000)
    for theirs, own in (
        (quantizers.ScalarReservoirQuantizer(1024, 5000), KnotsCodec.fit(x, reservoir=5000)),
        (quantizers.ScalarLogReservoirQuantizer(1024, 5000), KnotsCodec.fit(x, "log", reservoir=5000)),
    ):
        theirs._update_reservoirs(torch.from_numpy(x))
        np.testing.assert_allclose(own.tables[0].knots, theirs.codebook.numpy(), rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(np.sort(theirs._reservoir.numpy()), own.tables[0].reservoir, rtol=2e-7, atol=2e-7)


@few
@given(samples, compressions, st.integers(2, 60), st.integers(2, 300))
def test_a_token_that_encode_gives_comes_back(x, compression, n_knots, reservoir):
    codec = KnotsCodec.fit(x, compression, n_knots=n_knots, reservoir=reservoir)
    for values in (x, np.linspace(-3, 3, 50)):
        tokens = codec.encode({"value": values})
        assert (np.diff(codec.encode({"value": np.sort(values)})[:, 0].astype(int)) >= 0).all()
        value = codec.decode(tokens)["value"]
        np.testing.assert_array_equal(codec.encode({"value": value}), tokens)
        np.testing.assert_array_equal(codec.decode(codec.encode({"value": value}))["value"], value)


@few
@given(samples, compressions)
def test_a_token_is_the_first_knot_not_below_the_value(x, compression):
    codec = KnotsCodec.fit(x, compression, n_knots=20, reservoir=50)
    table = codec.tables[0]
    y = table.compress(x + np.float32(0))
    np.testing.assert_array_equal(codec.encode({"value": x})[:, 0], np.searchsorted(table.knots[:-1], y, side="left"))


def test_a_middle_takes_away_the_upper_ends_bias():
    x = skewed(200_000).astype(np.float64)
    own, theirs = (KnotsCodec.fit(x, compat=c) for c in (None, "aion"))
    np.testing.assert_array_equal(own.encode({"value": x}), theirs.encode({"value": x.astype(np.float32)}))
    inner = (x > np.quantile(x, 0.01)) & (x < np.quantile(x, 0.99))
    bias = [np.mean((c.decode(c.encode({"value": x}))["value"] - x)[inner]) for c in (own, theirs)]
    assert abs(bias[0]) < 0.05 * bias[1]
    assert own.content_id != theirs.content_id


def test_nan_and_infinity_are_refused_by_row_unless_the_peer_is_copied():
    codec = KnotsCodec.fit(skewed(), "log", reservoir=5000)
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match=f"row 1 is {bad}"):
            codec.encode({"value": np.array([1.0, bad])})
    with pytest.raises(ValueError, match=r"row 2 is 1e\+39, beyond float32"):
        codec.encode({"value": np.array([1.0, 2.0, 1e39])})
    copied = KnotsCodec(codec.tables[0], "aion")
    tokens = copied.encode({"value": np.array([np.nan, np.inf, -np.inf, -1.0])})
    assert tokens[:, 0].tolist() == [1023, 1023, 0, 0]
    multi = fitted("tok_xp_bp")
    x = np.zeros((3, 55))
    x[2, 7] = np.nan
    with pytest.raises(ValueError, match="row 2, number 7, is nan"):
        multi.encode({"value": x})


def test_negative_and_zero_flux_share_the_floors_token():
    codec = KnotsCodec.fit(skewed(), "log", reservoir=5000)
    low = np.array([-100.0, -1e-20, 0.0, 0.01, np.float32(np.exp(-3))])
    assert (codec.encode({"value": low}) == 0).all()
    assert codec.decode(np.array([[0]]))["value"][0] == np.float32(np.exp(-3))
    assert codec.encode({"value": np.array([0.06])})[0, 0] > 0


def test_repeated_knots_leave_tokens_that_nothing_is_given():
    x = np.concatenate([np.zeros(6000), np.random.default_rng(0).normal(3, 0.5, 4000)])
    codec = KnotsCodec.fit(x, reservoir=10_000)
    tokens = codec.encode({"value": x})
    assert (tokens[:6000] == 0).all()
    assert len(np.unique(tokens)) < 450
    np.testing.assert_array_equal(codec.encode(codec.decode(tokens)), tokens)
    assert (codec.decode(tokens)["value"][:6000] == 0).all()
    constant = KnotsCodec.fit(np.full(10, 7.25))
    assert constant.encode({"value": np.array([7.25, 7.0])}).tolist() == [[0], [0]]
    assert constant.encode({"value": np.array([7.5])}).tolist() == [[1023]]
    one = constant.encode(constant.decode(np.array([[1023]])))
    assert one.tolist() == [[1023]]


def test_the_grid_refuses_what_it_cannot_tell():
    codec = GridKnotsCodec.fit()
    for bad in (1.5, 1.0000002, -0.001, -1.0):
        with pytest.raises(ValueError, match=r"row 1 is .*'grid' codec.*compat='aion'"):
            codec.encode({"value": np.array([0.5, bad])})
    z = np.linspace(-0.0009, 1, 30_000)
    step = 1 / 1023
    value = codec.decode(codec.encode({"value": z}))["value"]
    assert np.abs(value - z).max() <= step / 2 + 1e-6
    assert abs(np.mean(value - z)) < 1e-6
    every = np.arange(1024)[:, None]
    np.testing.assert_array_equal(codec.encode(codec.decode(every)), every)
    copied = GridKnotsCodec.fit(compat="aion")
    assert copied.encode({"value": np.array([1.5, -1.0, np.nan, 0.0, 1.0])})[:, 0].tolist() == [1023, 0, 1023, 0, 1023]
    assert AION["tok_z"].head == 1025 and codec.vocabulary == 1024
    with pytest.raises(ValueError, match="rises"):
        GridKnotsCodec(np.zeros(5, np.float32))


@pytest.mark.parametrize("key", ["tok_ebv", "tok_flux_g", "tok_z", "tok_xp_rp"])
def test_no_source_has_no_tokens_and_the_disk_keeps_all(tmp_path, key):
    codec = fitted(key)
    shape = (0, 55) if key == "tok_xp_rp" else (0,)
    for held in (
        codec,
        type(codec)(codec.tables if codec.layout.shape else codec.tables[0].knots, "aion")
        if key in ("tok_z", "tok_xp_rp")
        else KnotsCodec(codec.tables[0], "aion"),
    ):
        tokens = held.encode({"value": np.zeros(shape)})
        assert tokens.shape == (0, codec.n_tokens) and tokens.dtype == np.uint16
        assert held.decode(tokens)["value"].shape == shape
    codec.save(tmp_path)
    again = load(tmp_path)
    assert type(again) is type(codec) and again.content_id == codec.content_id
    np.testing.assert_array_equal(again.arrays()["knots"], codec.arrays()["knots"])


def test_a_fit_from_a_sketch_is_the_fit_from_the_values():
    x = skewed(20_000).astype(np.float64)
    parts = [QuantileSketch.of(p) for p in np.split(np.random.default_rng(0).permutation(x), 10)]
    for compression in ("identity", "log", "asinh_asinh"):
        whole = KnotsCodec.fit(QuantileSketch.merged(parts), compression)
        assert whole.content_id == KnotsCodec.fit(x, compression).content_id
    coefficients = np.stack([x, -x], axis=1)
    sketches = [QuantileSketch.of(c) for c in coefficients.T]
    assert MultiKnotsCodec.fit(sketches).content_id == MultiKnotsCodec.fit(coefficients).content_id
    with pytest.raises(ValueError, match="no value"):
        KnotsCodec.fit(np.empty(0))


class TestStrict:
    @pytest.fixture
    def place(self, tmp_path):
        return fitted("tok_flux_g").to_aion(tmp_path, "tok_flux_g")

    def rewrite(self, place, change=None, config=None):
        arrays = load_file(place / "model.safetensors")
        if change:
            arrays = change(arrays)
        save_file(arrays, place / "model.safetensors")
        said = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps({**said, **(config or {})}))

    def test_older_files_names_are_taken_for_the_new(self, place):
        own = KnotsCodec.from_aion(place, "tok_flux_g")
        self.rewrite(place, lambda a: {k.removeprefix("_"): v for k, v in a.items()})
        assert set(load_file(place / "model.safetensors")) == {"quantizer._reservoir", "quantizer._index_to_val"}
        assert KnotsCodec.from_aion(place, "tok_flux_g").content_id == own.content_id

    @pytest.mark.parametrize(
        ("change", "config", "match"),
        [
            (lambda a: {**a, "more": np.zeros(2, np.float32)}, {}, "has more of shape"),
            (lambda a: {k: v for k, v in a.items() if "reservoir" not in k}, {}, "no _quantizer._reservoir"),
            (lambda a: {**a, "_quantizer._index_to_val": np.zeros(9, np.float32)}, {}, "wanted \\(1024,\\)"),
            (lambda a: {k: v.astype(np.float64) for k, v in a.items()}, {}, "float64"),
            (lambda a: {**a, "_quantizer._index_to_val": a["_quantizer._index_to_val"][::-1].copy()}, {}, "fall"),
            (lambda a: {k: v * np.float32(np.nan) for k, v in a.items()}, {}, "finite"),
            (None, {"modality": "FLUX_R"}, "holds the codec of 'FLUX_R'"),
            (None, {"eps": 1}, "eps that is not known"),
            (None, {"reservoir_size": 7}, "wanted \\(7,\\)"),
            (None, {"min_log_value": None}, "min_log"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, place, change, config, match):
        self.rewrite(place, change, config)
        with pytest.raises(ValueError, match=match):
            KnotsCodec.from_aion(place, "tok_flux_g")

    def test_a_codec_is_of_its_modalities_alone(self, place, tmp_path):
        with pytest.raises(ValueError, match="by its 'grid' codec, wanted scalar or log"):
            KnotsCodec.from_aion(place, "tok_z")
        with pytest.raises(ValueError, match="by its 'scalar' codec, this one compresses by 'log'"):
            fitted("tok_flux_g").to_aion(tmp_path, "tok_ebv")
        with pytest.raises(ValueError, match="3 tables"):
            MultiKnotsCodec.fit(np.zeros((4, 3))).to_aion(tmp_path, "tok_xp_bp")

    def test_other_compressions_of_coefficients_are_refused(self, tmp_path):
        place = fitted("tok_xp_bp").to_aion(tmp_path, "tok_xp_bp")
        self.rewrite(place, config={"compression_fns": ["log1p"], "decompression_fns": ["expm1"]})
        with pytest.raises(ValueError, match="log1p"):
            MultiKnotsCodec.from_aion(place, "tok_xp_bp")


def test_knots_without_a_sample_are_published_with_one_of_their_own(tmp_path):
    codec = KnotsCodec(Knots(fitted("tok_ebv").tables[0].knots))
    place = codec.to_aion(tmp_path, "tok_ebv")
    peer(place, "tok_ebv")
    assert json.loads((place / "config.json").read_text())["reservoir_size"] == 100_000
    again = KnotsCodec.from_aion(place, "tok_ebv")
    np.testing.assert_array_equal(again.tables[0].knots, codec.tables[0].knots)


def test_the_registry_knows_them_without_torch():
    code = (
        "import sys; from skycairn.tokenizers.registry import CODECS; "
        "assert {'knots', 'multi_knots', 'grid_knots'} <= set(CODECS); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
