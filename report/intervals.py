"""How far a counted share, or a count, may be from the true one: Wilson's and Garwood's intervals"""

from __future__ import annotations

from math import sqrt

from scipy.special import chdtri
from scipy.stats import norm

Z95 = 1.959963984540054
"""Standard normal deviate of a two-sided 95 percent interval."""


def wilson(k: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Interval of the share behind k successes in n trials (Wilson 1927); (0, 1) where there was no trial."""
    if not 0 <= k <= n:
        raise ValueError(f"{k} successes in {n} trials; wanted 0 <= successes <= trials")
    if not n:
        return 0.0, 1.0
    p, zz = k / n, z * z / n
    half = z * sqrt(p * (1 - p) / n + zz / (4 * n)) / (1 + zz)
    middle = (p + zz / 2) / (1 + zz)
    return (0.0 if k == 0 else max(0.0, middle - half)), (1.0 if k == n else min(1.0, middle + half))


def garwood(k: int, level: float = 0.6827) -> tuple[float, float]:
    """Interval of the mean of a Poisson count k (Garwood 1936); by default as sure as one sigma."""
    if k < 0:
        raise ValueError(f"a count of {k}; wanted 0 or more")
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else float(chdtri(2 * k, 1 - tail)) / 2
    return low, float(chdtri(2 * (k + 1), tail)) / 2


def sigmas_of(chi_square: float, trials: int = 1) -> float:
    """How many standard deviations of a normal an offset in two dimensions is worth, among so many that were looked at.

    `chi_square` has two degrees of freedom, whose tail is exp(-chi_square / 2); Bonferroni's correction for `trials`;
    two-sided. 0 where chance alone makes one as large.
    """
    tail = min(1.0, trials * 2.718281828459045 ** (-min(chi_square, 1400.0) / 2))
    return float(norm.isf(tail / 2)) if tail > 0 else float("inf")
