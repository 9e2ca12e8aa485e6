"""Separations that position errors alone make of true pairs: Rayleigh's form, mixed over the pairs

With errors that are normal and alike in both axes, of s per axis, the separation of two sources of one thing has the
density r / s^2 exp(-r^2 / (2 s^2)), where s^2 is the sum of both sources' variances. Pairs are accepted within a
radius only, so each pair's form is cut there and holds one pair.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MEDIAN = float(np.sqrt(2 * np.log(2)))
"""Median of a Rayleigh distribution of scale 1."""
BLOCK = 1 << 16


def combined_sigma(ra_a: Floats, dec_a: Floats, ra_b: Floats, dec_b: Floats) -> Floats:
    """Per-axis sigma of the difference of two positions, the ellipse made a circle: root of the mean of both variances.

    One-sigma errors in any one unit, RA's times cos(Dec). NaN where one is not known.
    """
    return np.sqrt((ra_a**2 + ra_b**2 + dec_a**2 + dec_b**2) / 2)


def expected_counts(sigma: Floats, edges: Floats, radius: float) -> Floats:
    """Pairs expected in each bin, shape (edges - 1), of pairs of these sigmas, all of which lie within `radius`."""
    out = np.zeros(len(edges) - 1)
    for start in range(0, sigma.size, BLOCK):
        s = sigma[start : start + BLOCK, None]
        s = np.maximum(s, 1e-12)
        beyond = np.exp(-((edges / s) ** 2) / 2)
        within = -np.expm1(-((radius / s[:, 0]) ** 2) / 2)
        out += ((beyond[:, :-1] - beyond[:, 1:]) / within[:, None]).sum(axis=0)
    return out


def background_counts(n: float, edges: Floats, radius: float, per_source: float) -> Floats:
    """Chance pairs expected in each bin: `per_source` of them within `radius` of each of `n` sources, evenly spread."""
    return n * per_source * np.diff(edges**2) / radius**2


def log_edges(radius: float, least: float, per_decade: int) -> Floats:
    """Bin edges that end at `radius`, evenly spaced in the logarithm, down to `least` or just above."""
    steps = int(np.floor(per_decade * np.log10(radius / least) + 1e-9))
    return radius * 10.0 ** (-np.arange(steps, -1, -1) / per_decade)


def quantile_of(counts: Ints, edges: Floats, below: int, q: float) -> float:
    """Quantile of what a histogram counted, `below` of it under its first edge; NaN where it is empty or under it."""
    total = int(counts.sum()) + below
    wanted = q * total - below
    if not total or wanted < 0:
        return float("nan")
    upto = np.concatenate([[0], np.cumsum(counts)])
    at = min(int(np.searchsorted(upto, wanted, side="left")), len(counts))
    at = max(at, 1)
    share = (wanted - upto[at - 1]) / max(int(counts[at - 1]), 1)
    return float(edges[at - 1] + min(share, 1.0) * (edges[at] - edges[at - 1]))
