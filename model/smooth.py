"""What a network starts from where objects are few: codecs smooth in value, slots by how often tokens stand there.

Thousands of independent rows cannot be learned from a few hundred objects.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

COSINES = 16
STRENGTHS = tuple(4.0**k for k in range(7))
"""A slot's own counts outweigh those of its whole modality from this many objects on; the best is taken."""


def cosines(vocabulary: int, counts: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
    """cos(pi k x), k = 0 .. 15, at the places x of the tokens in [0, 1], falling as 1 / (1 + k / 2).

    Half of the way from 0 to 1 is shared out evenly, half by how often tokens are seen, so that a grid (of redshifts,
    say) is told apart finely where the objects are.
    """
    k = np.arange(min(COSINES, vocabulary))
    x = (np.arange(vocabulary) + 0.5) / vocabulary
    if counts is not None and counts.sum():
        share = smoothed(counts)
        x = 0.5 * x + 0.5 * (np.cumsum(share) - share / 2)
    return (np.cos(np.pi * k * x[:, None]) * 2 / (1 + k / 2)).astype(np.float32)


def parts(levels: Sequence[int], vocabulary: int) -> NDArray[np.float32]:
    """Of tokens that are made of several numbers (`Codec.levels`): `cosines` of each number, side by side, and of the
    whole, as a token may be one number too (the amplitude of a spectrum). The whole has half of the weight.
    """
    steps, index = np.cumprod([1, *levels[:-1]]), np.minimum(np.arange(vocabulary), np.prod(levels) - 1)
    each = [cosines(n)[index // step % n] for step, n in zip(steps, levels, strict=True)]
    share = np.sqrt(0.5 / len(each))
    return np.concatenate([np.sqrt(0.5) * cosines(vocabulary), *(share * e for e in each)], axis=1).astype(np.float32)


def together(counts: Sequence[NDArray[np.int64]], twin: Sequence[int], m: int) -> NDArray[np.int64]:
    """How often each token is seen in all modalities of one codec, (vocabulary,)."""
    return np.sum([counts[k].sum(axis=0) for k in range(len(twin)) if twin[k] == twin[m]], axis=0)


def starting_logits(counts: NDArray[np.int64], ordered: bool, every: NDArray[np.int64]) -> NDArray[np.float32]:
    """Log of how often each token stands in each slot, (slot, vocabulary), from the training split's counts.

    Each slot leans on `every`, the counts of its whole codec, and an ordered codec's tokens on their neighbours; how
    far, is what foretells every training token best from all others (leave one out).
    """
    pooled = smoothed(every) if ordered else (every + 0.5) / (every.sum() + len(every) / 2)
    n = counts.sum(axis=1, keepdims=True)

    def left_out(strength: float) -> float:
        chance = (counts - 1 + strength * pooled) / np.maximum(n - 1 + strength, 1e-9)
        return float(np.sum(counts * np.log(np.where(counts > 0, chance, 1.0))))

    best = max(STRENGTHS, key=left_out)
    return np.log((counts + best * pooled) / (n + best)).astype(np.float32)


def smoothed(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of each token of an ordered codec, (vocabulary,): a Gaussian over neighbours, and a little everywhere.

    How wide, how little, and whether tokens that were never seen have a part in the former, is what foretells every
    one best from all others: a bin below all fluxes stays empty, a redshift between two that were seen does not.
    """
    size, total = len(counts), counts.sum()
    if total < 2:
        return np.full(size, 1 / size)
    best, chosen = -np.inf, np.full(size, 1 / size)
    for width in (0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0):
        near = np.exp(-0.5 * ((np.arange(size)[:, None] - np.arange(size)) / width) ** 2)
        near /= near.sum(axis=0)
        density, own = near @ counts, np.diag(near)
        for least in (0, 1):
            share = np.where(counts >= least, density, 0.0)
            left = np.where(counts > least, density - own, 0.0) / max(share.sum() - 1, 1e-9)
            for floor in (0.01, 0.03, 0.1, 0.3, 1.0):
                chance = (1 - floor) * left + floor / size
                score = float(np.sum(counts * np.log(np.maximum(chance, 1e-12))))
                if score > best:
                    best, chosen = score, (1 - floor) * share / share.sum() + floor / size
    return np.asarray(chosen / chosen.sum())
