"""What a network starts from."""

import numpy as np
import pytest

from skycairn.model.smooth import cosines, smoothed, starting_logits


def test_cosines_are_smooth_in_value():
    waves = cosines(1024)
    assert np.abs(np.diff(waves, axis=0)).max() < 0.02 and np.linalg.matrix_rank(waves) == 16


def test_a_slot_starts_from_its_own_counts_as_far_as_they_say_more_than_the_modalitys():
    unlike = np.array([[900, 100, 0], [0, 100, 900]])
    alike = np.array([[5, 4, 1], [4, 5, 1]])
    start = np.exp(starting_logits(unlike, False, unlike.sum(axis=0)))
    np.testing.assert_allclose(start.sum(axis=1), 1, rtol=1e-5)
    assert start[0, 0] > 0.85 and start[0, 2] < 0.02
    near = np.exp(starting_logits(alike, False, alike.sum(axis=0)))
    assert np.abs(near[0] - near[1]).max() < 0.01


def test_neighbours_lend_to_each_other_where_there_are_few_objects():
    rng = np.random.default_rng(0)
    counts = np.bincount(np.clip(rng.normal(500, 60, 100), 0, 1023).astype(int), minlength=1024)
    other = np.clip(rng.normal(500, 60, 4000), 0, 1023).astype(int)
    share = smoothed(counts)
    assert share.sum() == pytest.approx(1)
    marginal = (counts + 0.5) / (100 + 512)
    assert -np.log(share[other]).mean() < -np.log(marginal[other]).mean() - 0.5
    even = smoothed(np.full(16, 20) + rng.integers(-3, 4, 16))
    assert np.abs(even * 16 - 1).max() < 0.1
    assert smoothed(np.zeros(8, int)).tolist() == [1 / 8] * 8
    below = smoothed(np.array([0, *(20 + rng.integers(-3, 4, 15))]))
    assert below[0] < 0.002, "a bin that no one is in lends from no neighbour where the others are full"
