import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skycairn.tokenizers.codec import load
from skycairn.tokenizers.scalar import GridCodec, QuantileCodec, default_bins

few = settings(deadline=None, max_examples=40)
numbers = st.floats(-1e6, 1e6) | st.sampled_from([0.0, -0.0, 1.0, 1e-300, -5.0])
samples = arrays(np.float64, st.integers(1, 300), elements=numbers)
transforms = st.sampled_from(["identity", "log", "asinh"])


def fluxes(n: int = 40_000, seed: int = 0) -> np.ndarray:
    """Signed, long-tailed, as a faint band's."""
    rng = np.random.default_rng(seed)
    return 10 ** rng.normal(0, 1, n) + rng.normal(0, 1, n)


@few
@given(samples, transforms, st.integers(1, 64))
def test_a_value_decodes_within_its_bin_and_its_token_comes_back(x, transform, bins):
    codec = QuantileCodec.fit(x, transform, bins=bins)
    assert (np.diff(codec.bins.edges) > 0).all()
    tokens = codec.encode({"value": x})
    assert tokens.shape == (len(x), 1)
    value = codec.decode(tokens)["value"]
    ends = np.concatenate([[-np.inf], codec.bins.edges, [np.inf]])
    low, high = ends[tokens[:, 0].astype(int)], ends[tokens[:, 0].astype(int) + 1]
    for number in (x, value):
        assert ((low <= number) & (number < high)).all()
    every = np.arange(codec.vocabulary)[:, None]
    np.testing.assert_array_equal(codec.encode(codec.decode(every)), every)


@few
@given(samples, transforms)
def test_tokens_follow_the_order_of_the_values(x, transform):
    codec = QuantileCodec.fit(x, transform, bins=32)
    tokens = codec.encode({"value": np.sort(x)})[:, 0].astype(int)
    assert (np.diff(tokens) >= 0).all()


@few
@given(samples, transforms, st.randoms(use_true_random=False))
def test_the_id_does_not_hang_on_the_order_of_the_rows_and_survives_the_disk(tmp_path_factory, x, transform, random):
    codec = QuantileCodec.fit(x, transform)
    shuffled = list(x)
    random.shuffle(shuffled)
    assert QuantileCodec.fit(np.array(shuffled), transform).content_id == codec.content_id
    folder = tmp_path_factory.mktemp("codec")
    codec.save(folder)
    again = load(folder)
    assert again.content_id == codec.content_id
    np.testing.assert_array_equal(again.encode({"value": x}), codec.encode({"value": x}))


def test_any_setting_changes_the_id():
    x = fluxes(5000)
    fits = [
        {},
        {"bins": 20},
        {"transform": "log"},
        {"transform": "log", "floor": 0.1},
        {"transform": "asinh"},
        {"transform": "asinh", "scale": 3.0},
        {"transform": "asinh", "uniform": 0.1},
    ]
    assert len({QuantileCodec.fit(x, **s).content_id for s in fits}) == len(fits)
    grids = [{}, {"low": -0.02}, {"high": 7.0}, {"tokens": 512}, {"spacing": "linear"}]
    assert len({GridCodec.fit(**s).content_id for s in grids}) == len(grids)


@pytest.mark.parametrize(("n", "bins"), [(1, 2), (39, 2), (60, 3), (2000, 100), (20_480, 1024), (10**6, 1024)])
def test_no_more_bins_than_a_twentieth_of_the_rows(n, bins):
    assert default_bins(n) == bins
    if n <= 2000 and n > 1:
        assert QuantileCodec.fit(np.arange(n)).vocabulary == bins


def test_bins_hold_equal_counts():
    x = fluxes()
    held = np.bincount(QuantileCodec.fit(x).encode({"value": x})[:, 0])
    assert len(held) == 1024
    assert held.min() >= 39
    assert held.max() <= 40


def test_decoding_is_not_biased_to_an_edge():
    x = fluxes()
    codec = QuantileCodec.fit(x)
    new = fluxes(seed=1)
    inner = (new > np.quantile(x, 0.01)) & (new < np.quantile(x, 0.99))
    error = (codec.decode(codec.encode({"value": new}))["value"] - new)[inner]
    assert abs(error.mean()) < 0.05 * error.std()


def test_log_has_one_token_for_zero_and_negative_flux():
    x = fluxes()
    codec = QuantileCodec.fit(x, "log")
    floor = np.exp(-3)
    tokens = codec.encode({"value": np.array([-np.float64(1e9), -1.0, 0.0, floor, np.nextafter(floor, 1), 1e9])})[:, 0]
    assert list(tokens) == [0, 0, 0, 0, 1, 1023]
    back = codec.decode(np.array([[0]]))["value"][0]
    assert back == np.sort(x[x <= floor])[((x <= floor).sum() - 1) // 2]


def test_log_of_values_that_never_pass_the_floor():
    codec = QuantileCodec.fit(np.zeros(100), "log")
    assert codec.vocabulary == 2
    np.testing.assert_allclose(codec.decode(codec.encode({"value": np.array([0.0, 5.0])}))["value"], [0, np.exp(-3)])


def test_asinh_keeps_the_tail_that_counts_lose():
    x, new = fluxes(), fluxes(seed=1)
    bright = new > np.quantile(x, 0.9995)

    def error(transform):
        codec = QuantileCodec.fit(x, transform)
        return np.abs(codec.decode(codec.encode({"value": new}))["value"] / new - 1)[bright].mean()

    assert error("asinh") < 0.5 * error("identity")
    assert error("asinh") < 0.1


def test_a_constant_column_and_repeated_values():
    codec = QuantileCodec.fit(np.full(1000, 3.25))
    assert codec.vocabulary == 1
    assert codec.decode(codec.encode({"value": np.array([-9.0, 3.25])}))["value"].tolist() == [3.25, 3.25]
    x = np.repeat([0.0, 0.1, 7.0], 1000)
    codec = QuantileCodec.fit(x)
    assert codec.vocabulary == 3
    # a number that lost digits in a float32 file is still the same value
    assert codec.encode({"value": np.float32([0.0, 0.1, 7.0])})[:, 0].tolist() == [0, 1, 2]


def test_float32_and_float64_of_the_same_numbers_are_one():
    x = fluxes().astype(np.float32)
    codec = QuantileCodec.fit(x)
    assert codec.content_id == QuantileCodec.fit(x.astype(np.float64)).content_id
    np.testing.assert_array_equal(codec.encode({"value": x}), codec.encode({"value": x.astype(np.float64)}))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_refused_by_its_row(bad):
    x = np.arange(100.0)
    for codec in (QuantileCodec.fit(x), GridCodec.fit()):
        with pytest.raises(ValueError, match="row 3 is"):
            codec.encode({"value": np.array([1, 2, 3, bad, bad])})
    with pytest.raises(ValueError, match="row 1 is"):
        QuantileCodec.fit(np.array([1.0, bad]))


def test_nothing_to_encode_and_nothing_to_fit():
    codec = QuantileCodec.fit(np.arange(100.0))
    tokens = codec.encode({"value": np.zeros(0)})
    assert tokens.shape == (0, 1)
    assert tokens.dtype == np.uint16
    assert codec.decode(tokens)["value"].shape == (0,)
    with pytest.raises(ValueError, match="wanted 1 or more"):
        QuantileCodec.fit(np.zeros(0))


def test_what_is_not_a_column_of_numbers_is_refused():
    codec = QuantileCodec.fit(np.arange(100.0))
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        codec.encode({"value": np.zeros((2, 2))})
    with pytest.raises(ValueError, match="object"):
        codec.encode({"value": np.array([1, None])})
    with pytest.raises(ValueError, match="holds flux"):
        codec.encode({"flux": np.zeros(2)})


def test_tokens_out_of_the_vocabulary_are_refused():
    codec = QuantileCodec.fit(np.arange(100.0))
    with pytest.raises(ValueError, match="row 1 holds token 5 at position 0, wanted 0 to 4"):
        codec.decode(np.array([[4], [5]]))
    with pytest.raises(ValueError, match="row 0 holds token -1"):
        codec.decode(np.array([[-1]]))
    with pytest.raises(ValueError, match="float64"):
        codec.decode(np.array([[1.0]]))
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        codec.decode(np.array([1, 2]))


def test_many_bins_take_wider_tokens():
    codec = QuantileCodec.fit(np.arange(70_000), bins=70_000)
    assert codec.vocabulary == 70_000
    assert codec.encode({"value": np.array([69_999.0])}).dtype == np.uint32


@few
@given(arrays(np.float64, 50, elements=st.floats(-0.01, 6, exclude_max=True)))
def test_redshift_is_kept_to_290_km_s(z):
    codec = GridCodec.fit()
    tokens = codec.encode({"value": z})
    assert ((tokens > 0) & (tokens < 1023)).all()
    velocity = 299_792.458 * (codec.decode(tokens)["value"] - z) / (1 + z)
    assert np.abs(velocity).max() < 290


def test_redshifts_off_the_grid_have_tokens_of_their_own():
    codec = GridCodec.fit()
    assert codec.vocabulary == 1024
    z = np.array([-1.0, np.nextafter(-0.01, -1), -0.01, 0.0, np.nextafter(6, 0), 6.0, 7.5])
    tokens = codec.encode({"value": z})[:, 0].tolist()
    assert tokens[:3] == [0, 0, 1]
    assert 1 < tokens[3] < 10
    assert tokens[4:] == [1022, 1023, 1023]
    every = np.arange(1024)[:, None]
    np.testing.assert_array_equal(codec.encode(codec.decode(every)), every)


def test_a_grid_that_cannot_be_is_refused():
    for settings_ in ({"low": 1.0, "high": 0.0}, {"low": -1.0}, {"tokens": 2}, {"spacing": "sqrt"}, {"high": np.inf}):
        with pytest.raises(ValueError, match="grid codec"):
            GridCodec.fit(**settings_)
