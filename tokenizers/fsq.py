"""Finite scalar quantization: a few numbers to one code, each to a level of its own, mixed radix, first fastest.

The order of the index is AION-1's (Mentzer et al. 2023, arXiv:2309.15505); the levels and their places are fitted
here, by minimum squared error, where a network would learn to fill a fixed grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from skycairn.tokenizers.scalar import Bins, Floats

MOST_LEVELS = 256


def to_index(digits: NDArray[np.int64], levels: Sequence[int]) -> NDArray[np.int64]:
    """Level numbers, shape (..., k), as one index 0 .. prod(levels) - 1, shape (...)."""
    basis = np.cumprod([1, *levels[:-1]])
    return digits @ basis


def from_index(index: NDArray[np.int64], levels: Sequence[int]) -> NDArray[np.int64]:
    """The inverse of `to_index`."""
    basis = np.cumprod([1, *levels[:-1]])
    return index[..., None] // basis % np.asarray(levels)


def rounded(x: Floats) -> Floats:
    """Each number as the nearest float32, and 0 for -0."""
    return x.astype(np.float32).astype(np.float64) + 0.0


class Sample:
    """Numbers, with their weights, whose best levels are sought."""

    def __init__(self, x: Floats, weight: Floats) -> None:
        order = np.lexsort((weight, x))
        self.x, self.weight = x[order], weight[order]
        self.mass = np.concatenate([[0.0], np.cumsum(self.weight)])
        self.sums = np.concatenate([[0.0], np.cumsum(self.weight * self.x)])
        self.square = float(np.sum(self.weight * self.x**2))
        counts, self.borders = np.histogram(self.x, bins=4096, weights=self.weight)
        self.grown = np.concatenate([[0.0], np.cumsum(np.cbrt(counts))])

    def bins(self, levels: Floats) -> Bins:
        """Bins of the numbers nearest to each level; they decode to their plain, unweighted mean.

        A weighted mean would be brighter than what falls into the bin, and blank sky would glow. All numbers are
        rounded to float32, whose steps are far wider than what the number of threads moves.
        """
        edges = np.unique(rounded((levels[1:] + levels[:-1]) / 2))
        ends = np.concatenate([[0], np.searchsorted(self.x, edges), [len(self.x)]])
        held = np.flatnonzero(np.diff(ends))
        low = np.concatenate([[-np.inf], edges])[held]
        high = np.concatenate([low[1:], [np.inf]])
        plain = np.concatenate([[0.0], np.cumsum(self.x)])
        centres = rounded((plain[ends[held + 1]] - plain[ends[held]]) / (ends[held + 1] - ends[held]))
        return Bins(low[1:], np.clip(centres, low, np.nextafter(high, -np.inf)))

    def levels(self, n: int, rounds: int = 12) -> tuple[Floats, float]:
        """At most n levels of small mean squared error, and that error.

        Starts from the density of levels that is best in the limit of many (the cube root of the sample's), then
        Lloyd's iteration (1982). Levels that no number takes are dropped.
        """
        if self.x[-1] == self.x[0]:
            return self.x[:1], 0.0
        centres = np.interp((np.arange(n) + 0.5) / n * self.grown[-1], self.grown, self.borders)
        explained = 0.0
        for _ in range(rounds):
            ends = np.concatenate([[0], np.searchsorted(self.x, (centres[1:] + centres[:-1]) / 2), [len(self.x)]])
            held, total = np.diff(self.mass[ends]), np.diff(self.sums[ends])
            taken = held > 0
            centres = np.unique(total[taken] / held[taken])
            explained = float(np.sum(total[taken] ** 2 / held[taken]))
        return centres, max(self.square - explained, 0.0) / float(self.mass[-1])


def fit_levels(x: Floats, weight: Floats, codes: int) -> list[Bins]:
    """Levels of each column of x, shape (n, k), rows weighted, so that their counts multiply to at most `codes`.

    Greedy: the next levels go where they lower the squared error most for the bits that they cost. A column that is
    not worth a bit keeps one level, its mean. Depends on the sample alone, not on the order of its rows.
    """
    sizes = [
        n for n in (*range(1, 17), *range(18, 33, 2), *range(36, 65, 4), *range(72, 129, 8), 160, 192, MOST_LEVELS)
    ]
    samples = [Sample(x[:, k], weight) for k in range(x.shape[1])]
    tables: list[dict[int, tuple[Floats, float]]] = [{} for _ in samples]

    def table(k: int, n: int) -> tuple[Floats, float]:
        if n not in tables[k]:
            tables[k][n] = samples[k].levels(n)
        return tables[k][n]

    place = [0] * len(samples)
    while True:
        product = int(np.prod([sizes[p] for p in place]))
        best, gain = -1, 0.0
        step = 0
        for k, p in enumerate(place):
            here = table(k, sizes[p])[1]
            # a single step can hide the worth of the next (two levels of a peaked, symmetric column): look ahead
            for q in range(p + 1, min(p + 4, len(sizes))):
                if product // sizes[p] * sizes[q] > codes:
                    break
                worth = (here - table(k, sizes[q])[1]) / np.log2(sizes[q] / sizes[p])
                if worth > gain:
                    best, gain, step = k, worth, q
        if best < 0:
            return [samples[k].bins(table(k, sizes[p])[0]) for k, p in enumerate(place)]
        place[best] = step
