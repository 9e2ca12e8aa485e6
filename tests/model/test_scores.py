"""Scores of forecasts against closed forms and numerical integrals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from skycairn.model.scores import crps_of_samples, crps_of_weights, ranks, unevenness

SEEDS = st.integers(0, 2**31)


def test_of_one_point_it_is_the_absolute_error() -> None:
    outcome = np.array([1.0, -2.0, 5.0])
    assert crps_of_samples(np.full((3, 1), 2.0), outcome) == pytest.approx([1, 4, 3])
    assert crps_of_weights(np.array([2.0]), np.ones((3, 1)), outcome) == pytest.approx([1, 4, 3])


@pytest.mark.parametrize("y", [-2.5, 0.0, 0.3, 4.0])
def test_of_a_normal_distribution_it_is_the_closed_form(y: float) -> None:
    """sigma (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)), Gneiting & Raftery 2007, equation 21; here sigma is 2."""
    z = y / 2
    wanted = 2 * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    quantiles = 2 * norm.ppf((np.arange(4000) + 0.5) / 4000)
    assert crps_of_samples(quantiles[None], np.array([y])) == pytest.approx([wanted], abs=1e-3)
    points = np.linspace(-14, 14, 20_001)
    weights = norm.pdf(points / 2)
    found = crps_of_weights(points, (weights / weights.sum())[None], np.array([y]))
    assert found == pytest.approx([wanted], abs=1e-5)


@given(SEEDS)
def test_weights_and_samples_agree_with_the_integral(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points, y = rng.normal(size=6), rng.normal(size=3)
    weights = rng.dirichlet(np.full(6, 0.5), 3)
    x = np.linspace(-8, 8, 200_001)
    for row in range(3):
        f = (weights[row] * (points <= x[:, None])).sum(axis=1)
        integral = float((((f - (x >= y[row])) ** 2)[:-1] * np.diff(x)).sum())
        assert crps_of_weights(points, weights, y)[row] == pytest.approx(integral, abs=1e-3)
    even = np.full((3, 6), 1 / 6)
    assert crps_of_samples(np.tile(points, (3, 1)), y) == pytest.approx(crps_of_weights(points, even, y))


def test_ranks_are_even_where_spreads_are_right_and_tell_where_they_are_not() -> None:
    rng = np.random.default_rng(0)
    centre = rng.normal(size=5000)
    outcome, samples = centre + rng.normal(size=5000), rng.normal(size=(5000, 9))
    right, narrow = centre[:, None] + samples, centre[:, None] + 0.5 * samples
    assert unevenness(ranks(right, outcome), 9) < 2.5
    found = ranks(narrow, outcome)
    assert unevenness(found, 9) > 20
    assert min(np.bincount(found, minlength=10)[[0, 9]]) > np.bincount(found, minlength=10)[1:9].max()
    # samples of a few values, as of bins: ties count on either side
    assert unevenness(ranks(np.round(right), np.round(outcome)), 9) < 2.5


def test_what_is_not_a_distribution_is_refused() -> None:
    points, y = np.array([0.0, 1.0]), np.array([0.5])
    for weights in ([[0.5, 0.6]], [[1.5, -0.5]], [[np.nan, 1.0]]):
        with pytest.raises(ValueError, match="add up to 1"):
            crps_of_weights(points, np.array(weights), y)
    with pytest.raises(ValueError, match="finite"):
        crps_of_weights(points, np.array([[0.5, 0.5]]), np.array([np.nan]))
    with pytest.raises(ValueError, match="finite"):
        crps_of_samples(np.array([[np.inf]]), y)
    with pytest.raises(ValueError, match="shape"):
        crps_of_samples(np.zeros((2, 3)), y)
