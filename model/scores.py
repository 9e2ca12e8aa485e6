"""How good a forecast of a number is: CRPS, and whether its spread can be trusted.

The continuous ranked probability score of a distribution F for an outcome y is the integral of (F(x) - [x >= y])^2 over
x, in the unit of x: E|X - y| - E|X - X'| / 2. Of a single number it is the absolute error. Less is better, and no other
distribution than the true one does better in the mean (Gneiting & Raftery 2007).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def crps_of_weights(points: F64, weights: F64, outcome: F64) -> F64:
    """Of distributions over the same points, (n,): `points` (v,) in any order, `weights` (n, v), `outcome` (n,).

    Exact for a distribution that sits on the points. ValueError where weights are negative or do not add up to 1, or
    something is not finite.
    """
    if weights.shape != (len(outcome), len(points)):
        raise ValueError(f"crps: weights of shape {weights.shape}; wanted {(len(outcome), len(points))}")
    if not (np.isfinite(points).all() and np.isfinite(outcome).all()):
        raise ValueError("crps: points and outcomes must be finite; leave out objects whose outcome is not known")
    if not (weights >= 0).all() or not np.allclose(weights.sum(axis=1), 1.0, atol=1e-6):
        raise ValueError("crps: weights must be 0 or more and add up to 1 for each object")
    order = np.argsort(points, kind="stable")
    x, w = points[order], weights[:, order]
    away = np.abs(x - outcome[:, None])
    below = np.cumsum(w, axis=1)[:, :-1]
    return np.asarray((w * away).sum(axis=1) - (below * (1 - below) * np.diff(x)).sum(axis=1))


def crps_of_samples(samples: F64, outcome: F64) -> F64:
    """Of the distributions that sit on samples (n, k) of equal weight, (n,); quantiles at (i + 1/2) / k serve too.

    ValueError where something is not finite.
    """
    if samples.ndim != 2 or len(samples) != len(outcome) or not samples.shape[1]:
        raise ValueError(f"crps: samples of shape {samples.shape}; wanted ({len(outcome)}, 1 or more)")
    if not (np.isfinite(samples).all() and np.isfinite(outcome).all()):
        raise ValueError("crps: samples and outcomes must be finite; leave out objects whose outcome is not known")
    k = samples.shape[1]
    x = np.sort(samples, axis=1)
    below = np.arange(1, k) / k
    away = np.abs(x - outcome[:, None]).mean(axis=1)
    return np.asarray(away - (below * (1 - below) * np.diff(x, axis=1)).sum(axis=1))


def ranks(samples: F64, outcome: F64, seed: int = 0) -> NDArray[np.int64]:
    """Place of each outcome among its samples, 0 to k, ties broken at random: even over all where spreads are right.

    `samples` (n, k). A histogram that bulges at its ends tells of distributions too narrow, in its middle too wide.
    """
    below = (samples < outcome[:, None]).sum(axis=1)
    ties = (samples == outcome[:, None]).sum(axis=1)
    return np.asarray(below + np.random.default_rng(seed).integers(0, ties + 1))


def unevenness(rank: NDArray[np.int64], k: int) -> float:
    """Chi-square of the histogram of ranks 0 to k per degree of freedom; 1 where it is even but for chance."""
    count = np.bincount(rank, minlength=k + 1)
    expected = len(rank) / (k + 1)
    return float(((count - expected) ** 2 / expected).sum() / k)
