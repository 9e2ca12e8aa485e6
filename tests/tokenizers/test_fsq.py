import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skycairn.tokenizers.fsq import Sample, fit_levels, from_index, to_index


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_index_and_levels_are_one_to_one(levels):
    every = np.arange(np.prod(levels))
    digits = from_index(every, levels)
    assert (digits < levels).all()
    assert len(np.unique(digits, axis=0)) == len(every)
    np.testing.assert_array_equal(to_index(digits, levels), every)


def test_the_first_level_runs_fastest_as_in_aion():
    assert to_index(np.array([1, 0, 0, 0, 0]), [7, 5, 5, 5, 5]) == 1
    assert to_index(np.array([0, 1, 0, 0, 0]), [7, 5, 5, 5, 5]) == 7
    assert to_index(np.array([6, 4, 4, 4, 4]), [7, 5, 5, 5, 5]) == 4374


def test_levels_of_a_normal_sample_reach_the_known_best():
    """Max (1960), table I: mean squared errors of the best 2, 4 and 8 levels of a unit normal."""
    x = np.random.default_rng(0).normal(size=100_000)
    for n, known in ((2, 0.3634), (4, 0.1175), (8, 0.03454)):
        levels, error = Sample(x, np.ones_like(x)).levels(n)
        assert len(levels) == n
        assert known * 0.97 < error < known * 1.1


def test_levels_go_to_the_column_that_varies():
    x = np.random.default_rng(0).normal(size=(20_000, 3)) * [10, 1, 0]
    counts = [len(b.centres) for b in fit_levels(x, np.ones(len(x)), 100)]
    assert counts[0] > 3 * counts[1] > 3
    assert counts[2] == 1
    assert 80 <= np.prod(counts) <= 100


def test_weights_move_the_bins_but_not_the_mean_of_what_they_decode_to():
    x = np.random.default_rng(0).normal(size=20_000)
    for weight in (np.ones(len(x)), np.maximum(x, 0.01)):
        (bins,) = fit_levels(x[:, None], weight, 6)
        assert np.mean(bins.centres[bins.index(x)]) == pytest.approx(x.mean(), abs=1e-6)
    assert bins.edges.mean() > 0.3
