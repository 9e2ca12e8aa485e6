import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skycairn.tokenizers.coefficients import CoefficientCodec
from skycairn.tokenizers.scalar import QuantileCodec
from skycairn.tokenizers.sketch import QuantileSketch

few = settings(deadline=None, max_examples=40)
numbers = st.floats(-1e9, 1e9) | st.sampled_from([0.0, -0.0, 1.0, 1e-300])
samples = arrays(np.float64, st.integers(1, 300), elements=numbers)


def parts_of(x: np.ndarray, seed: int, n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return np.split(rng.permutation(x), np.sort(rng.integers(0, len(x) + 1, n)))


def rank_errors(x: np.ndarray, q: np.ndarray, found: np.ndarray) -> np.ndarray:
    """By how much the share of x that is not above, or below, is off."""
    x = np.sort(x)
    above, below = (np.searchsorted(x, found, side=s) / len(x) for s in ("right", "left"))
    return np.maximum(np.maximum(below - q, q - above), 0)


@few
@given(samples, st.integers(0, 9), st.integers(0, 12))
def test_the_same_bytes_however_the_numbers_were_divided(x, seed, n):
    whole = QuantileSketch.of(x)
    for order in (1, -1):
        merged = QuantileSketch.merged([QuantileSketch.of(p) for p in parts_of(x, seed, n)[::order]])
        assert merged.to_bytes() == whole.to_bytes()
    assert merged.is_exact and merged.rank_error == 0 and merged.n == len(x)
    again = QuantileSketch.from_bytes(whole.to_bytes())
    assert again.to_bytes() == whole.to_bytes()
    np.testing.assert_array_equal(again.sample(), np.sort(x + 0.0))


@few
@given(samples, arrays(np.float64, st.integers(1, 20), elements=st.floats(0, 1)))
def test_an_exact_quantile_is_numpys_inverted_distribution(x, q):
    found = QuantileSketch.of(x).quantiles(q)
    assert np.isin(found, x + 0.0).all()
    assert (rank_errors(x, q, found) < 1e-9).all()
    every = np.linspace(0, 1, len(x))
    np.testing.assert_array_equal(QuantileSketch.of(x).quantiles(every), np.sort(x + 0.0))


@few
@given(samples, st.sampled_from(["identity", "log", "asinh"]), st.integers(0, 9), st.integers(1, 8))
def test_a_codec_of_an_exact_sketch_is_the_codec_of_the_numbers(x, transform, seed, n):
    sketch = QuantileSketch.merged([QuantileSketch.of(p) for p in parts_of(x, seed, n)])
    assert QuantileCodec.from_sketch(sketch, transform).content_id == QuantileCodec.fit(x, transform).content_id
    own = QuantileCodec.from_sketch(sketch, transform, 7, uniform=0.3)
    assert own.content_id == QuantileCodec.fit(x, transform, 7, uniform=0.3).content_id
    columns = np.stack([x, x[::-1] * 2, np.zeros(len(x))], axis=1)
    made = CoefficientCodec.from_sketches([QuantileSketch.of(c) for c in columns.T])
    assert made.content_id == CoefficientCodec.fit(columns).content_id


@pytest.mark.parametrize("shape", ["normal", "long tail", "half zero", "sorted"])
@pytest.mark.parametrize("n_parts", [1, 7, 150])
def test_beyond_what_it_keeps_ranks_are_within_the_stated_error(shape, n_parts):
    rng = np.random.default_rng(0)
    x = rng.normal(size=300_000)
    x = {"long tail": np.sinh(5 * x), "half zero": np.where(x < 0, 0.0, x), "sorted": np.sort(x)}.get(shape, x)
    parts = np.array_split(x, n_parts) if shape == "sorted" else parts_of(x, 1, n_parts - 1)
    sketch = QuantileSketch.merged([QuantileSketch.of(p, exact=20_000, k=4096) for p in parts])
    assert not sketch.is_exact and sketch.n == len(x)
    assert 0 < sketch.rank_error < 1 / 1024
    q = np.linspace(0, 1, 1024)
    # 99 % for one rank; of 1024 that hang together the worst is held to twice it
    errors = rank_errors(x, q, sketch.quantiles(q))
    assert errors.max() < 2 * sketch.rank_error
    assert (errors <= sketch.rank_error).mean() > 0.97
    assert (sketch.quantiles(np.array([0.0, 1.0])) == [x.min(), x.max()]).all()
    again = QuantileSketch.from_bytes(sketch.to_bytes())
    np.testing.assert_array_equal(again.quantiles(q), sketch.quantiles(q))
    assert again.to_bytes() == sketch.to_bytes()


def test_the_default_states_an_error_well_below_a_token():
    sketch = QuantileSketch.of(np.random.default_rng(0).normal(size=100_001))
    assert not sketch.is_exact
    assert sketch.rank_error < 0.2 / 1024
    assert len(sketch.to_bytes()) < 400_000
    codec = QuantileCodec.from_sketch(sketch)
    assert codec.vocabulary == 1024 and codec.n_fit == 100_001


def test_at_equal_bytes_a_sample_by_hashes_is_far_worse():
    rng = np.random.default_rng(0)
    q = np.linspace(0, 1, 1024)
    worst = []
    for _ in range(5):
        x = rng.normal(size=400_000)
        sketch = QuantileSketch.of(x, exact=1000, k=2048)
        n = len(sketch.to_bytes()) // 8
        sample = QuantileSketch.of(x[:n])  # lowest hashes: any n of them
        worst.append([rank_errors(x, q, s.quantiles(q)).max() for s in (sketch, sample)])
    ours, samples_ = np.median(worst, axis=0)
    assert ours < samples_ / 8


def test_numbers_that_are_none_are_refused_and_nothing_is_taken_in():
    sketch = QuantileSketch.of(np.array([1.0, 2.0]))
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="row 1 is"):
            sketch.update(np.array([1.0, bad]))
    assert sketch.n == 2
    with pytest.raises(ValueError, match="make both alike"):
        sketch.merge(QuantileSketch(k=200))
    with pytest.raises(ValueError, match="shares from 0 to 1"):
        sketch.quantiles(np.array([1.1]))


def test_none_at_all():
    sketch = QuantileSketch.of(np.empty(0))
    assert sketch.n == 0 and sketch.is_exact
    assert QuantileSketch.from_bytes(sketch.to_bytes()).n == 0
    with pytest.raises(ValueError, match="no number"):
        sketch.quantiles(np.array([0.5]))
    with pytest.raises(ValueError, match="no value to fit"):
        QuantileCodec.from_sketch(sketch)
    with pytest.raises(ValueError, match="none to merge"):
        QuantileSketch.merged([])
    with pytest.raises(ValueError, match="1 or more"):
        CoefficientCodec.from_sketches([sketch])
    with pytest.raises(ValueError, match=r"\[1, 2\] rows"):
        CoefficientCodec.from_sketches([QuantileSketch.of(np.zeros(n)) for n in (1, 2)])


def test_merging_leaves_the_other_and_the_callers_arrays_as_they_are():
    x = np.random.default_rng(0).normal(size=50)
    before = x.copy()
    for exact in (1000, 60, 10):
        one, other = (QuantileSketch.of(x, exact=exact) for _ in range(2))
        told = other.to_bytes()
        one.merge(other)
        assert one.n == 100 and other.n == 50 and other.to_bytes() == told
    np.testing.assert_array_equal(x, before)
    own = QuantileSketch.of(x)
    own.sample()[:] = 0
    np.testing.assert_array_equal(own.sample(), np.sort(x))


def test_damaged_bytes_are_refused():
    for exact in (10, 1000):
        good = QuantileSketch.of(np.random.default_rng(0).normal(size=200), exact=exact).to_bytes()
        for bad in (b"", good[:10], good[:-9], good + b"12345678" if exact == 1000 else good[:60], b"x" + good[1:]):
            with pytest.raises(ValueError, match="sketch"):
                QuantileSketch.from_bytes(bad)
    swapped = bytearray(QuantileSketch.of(np.array([1.0, 2.0])).to_bytes())
    swapped[-16:-8], swapped[-8:] = swapped[-8:], swapped[-16:-8]
    with pytest.raises(ValueError, match="not finite and sorted"):
        QuantileSketch.from_bytes(bytes(swapped))


def test_settings_that_make_no_sense_are_refused():
    for exact, k in itertools.product((0, 1000), (1, 70_000)):
        with pytest.raises(ValueError, match="wanted exact from 1"):
            QuantileSketch(exact, k)
