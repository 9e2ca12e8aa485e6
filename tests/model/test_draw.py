"""Draws against closed forms: frequencies, truncation, and numbers that any device has alike."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from skycairn.model.draw import drawn, fold, keys, truncated, uniforms, uniforms_of

pytestmark = pytest.mark.usefixtures("one_thread")
KEYS = keys(0, range(1), range(40_000))


def signed(key: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(key.view(np.int64))


def test_numbers_of_a_key_are_splitmix64s():
    # of its published C code, seeded with 1234567
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    found = uniforms(signed(np.array([1234567], np.uint64)), 5)[0]
    np.testing.assert_array_equal(found, [((k >> 12) + 0.5) / 2.0**52 for k in known])
    assert uniforms_of(np.array([1234567], np.uint64))[0] == found[0]


def test_keys_hang_on_seed_object_and_sample_alone():
    whole = keys(3, ["a", 7], range(4))
    np.testing.assert_array_equal(keys(3, [7], range(2, 4)), whole[6:])
    several = np.concatenate([whole, keys(4, ["a", 7], range(4)), fold(whole, 0), fold(whole, 1)])
    assert len(np.unique(several)) == len(several)


def test_numbers_are_even_and_keys_do_not_tell_of_each_other():
    u = uniforms_of(fold(KEYS[:, None], np.arange(8)))
    assert u.min() > 0 and u.max() < 1
    assert kstest(u.ravel(), "uniform").pvalue > 1e-3
    near = np.corrcoef(u.T)[~np.eye(8, dtype=bool)]
    assert abs(near).max() < 5 / math.sqrt(len(KEYS))
    assert kstest(uniforms(signed(KEYS[:2000]), 30)[:, 17].numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_are_of_the_softmax(temperature):
    logits = torch.tensor([0.3, -1.0, 2.0, -math.inf, 0.0])
    tokens, told = drawn(logits.expand(len(KEYS), -1), KEYS, temperature)
    expected = (logits.double() / temperature).softmax(0).numpy()
    counts = np.bincount(tokens, minlength=5)
    assert counts[3] == 0
    assert chisquare(counts[[0, 1, 2, 4]], expected[[0, 1, 2, 4]] * len(KEYS)).pvalue > 1e-3
    # how sure it is does not hang on the temperature
    np.testing.assert_allclose(told, logits.double().log_softmax(0).numpy()[tokens])


def test_truncated_draws_are_of_what_is_left_and_temperature_comes_after():
    p = torch.tensor([[0.4, 0.05, 0.3, 0.2, 0.05]]).double()
    kept = truncated(p.log(), None, 0.75)[0]
    assert kept.isfinite().tolist() == [True, False, True, True, False]
    tokens, _ = drawn(p.log().expand(len(KEYS), -1), KEYS, 2.0, None, 0.75)
    share = np.sqrt([0.4, 0.3, 0.2])
    assert chisquare(np.bincount(tokens, minlength=5)[[0, 2, 3]], share / share.sum() * len(KEYS)).pvalue > 1e-3


@given(
    st.lists(st.integers(-6, 6), min_size=1, max_size=9),
    st.integers(1, 10),
    st.floats(0.01, 1.0),
)
def test_truncation_is_exact(values, top_k, top_p):
    logits = torch.tensor([values], dtype=torch.float64)
    ordered = sorted(values, reverse=True)
    least = ordered[min(top_k, len(values)) - 1]
    kept = truncated(logits, top_k, 1.0)[0]
    assert kept.isfinite().tolist() == [v >= least for v in values], "of equal ones all"
    nucleus = truncated(logits, None, top_p)[0].isfinite()
    p = logits[0].softmax(0)
    n = int(nucleus.sum())
    best = p.sort(descending=True).values
    assert n >= 1 and float(p[nucleus].sum()) >= top_p - 1e-9
    torch.testing.assert_close(p[nucleus].sort(descending=True).values, best[:n])
    assert n == 1 or float(best[: n - 1].sum()) < top_p + 1e-9, "the smallest such set"
    both = truncated(logits, top_k, top_p)[0]
    torch.testing.assert_close(both, truncated(truncated(logits, top_k, 1.0), None, top_p)[0])


def test_temperature_0_is_the_greatest_and_draws_nothing():
    logits = torch.tensor([[1.0, 3.0, 3.0], [0.0, -1.0, -2.0]])
    for key in (KEYS[:2], KEYS[2:4]):
        assert drawn(logits, key, 0.0, 1, 0.1)[0].tolist() == [1, 0]


@settings(max_examples=20)
@given(st.permutations(range(6)))
def test_a_row_is_drawn_alike_wherever_it_is(order):
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 11)))
    whole, key = drawn(logits, KEYS[:6])[0], KEYS[:6][list(order)]
    np.testing.assert_array_equal(drawn(logits[list(order)], key)[0], whole[list(order)])


def test_pieces_do_not_matter(monkeypatch):
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 7)))
    whole = drawn(logits, KEYS[:50], top_k=3)
    monkeypatch.setattr("skycairn.model.draw.AT_ONCE", 15)
    for a, b in zip(whole, drawn(logits, KEYS[:50], top_k=3), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(drawn(logits[:0], KEYS[:0])[0]) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_refused(bad):
    logits = torch.zeros(3, 4)
    logits[1, 2] = bad
    with pytest.raises(ValueError, match=r"logits are no distribution .*row 1 is (nan|inf)"):
        drawn(logits, KEYS[:3])
    with pytest.raises(ValueError, match="row 0 is -inf"):
        drawn(torch.full((1, 4), -math.inf), KEYS[:1])
