"""How well each survey is foretold from each other one: which tokens are shown and asked for, and what they cost.

A *direction* is `gaia>desi`: of objects that have both, tokens of the first survey alone are shown and tokens of the
second alone are asked for, as many as the budgets allow, all alike. Which ones hangs on the seed and on the number of
the microbatch. A redshift is not shown where one is asked for: it would be copied, and nothing be foretold.

One pass foretells several directions at once: of S surveys the k-th pass, k = 1 .. S - 1, asks for each survey given
the one k after it, so that the modality of a token says which direction it is of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skycairn.model.loader import Rows
from skycairn.model.order import philox
from skycairn.model.packed import Packed
from skycairn.model.rules import I64, Masker, of_all_alike
from skycairn.model.vocabulary import Vocabulary

REDSHIFT = "z"
"""`desi.z`, `sdss.z`."""


class Pass(NamedTuple):
    """Objects of one microbatch, masked for the directions of one pass."""

    packed: Packed
    objects: I64
    "(survey,): how many are asked for each"


def surveys(vocabulary: Vocabulary) -> list[str]:
    """Their names, in the order of their numbers."""
    return sorted({name.partition(".")[0] for name in vocabulary.names})


def passes(masker: Masker, rows: Rows, seed: int, i: int) -> list[Pass]:
    """Those of microbatch i, each once: for S surveys S - 1."""
    n = len(surveys(masker.vocabulary))
    return [_pass(masker, rows, k, np.random.Generator(philox(seed, "direction", k, i))) for k in range(1, n)]


def _pass(masker: Masker, rows: Rows, k: int, rng: np.random.Generator) -> Pass:
    vocabulary, masking = masker.vocabulary, masker.masking
    n = len(surveys(vocabulary))
    length = rows.length.astype(np.int64)
    can_show, can_ask, row, of = [], [], [], []
    for asked in range(n):
        show, ask = may_show(vocabulary, (asked + k) % n, asked), vocabulary.survey == asked
        both = np.flatnonzero((length * show).any(axis=1) & (length * ask).any(axis=1))
        can_show.append(length[both] * show)
        can_ask.append(length[both] * ask)
        row.append(both)
        of.append(len(both))
    at = np.concatenate(row)
    shown, asked_for = (
        of_all_alike(room, np.minimum(room.sum(axis=1), most), rng) if len(room) else room
        for room, most in (
            (np.concatenate(can_show), masking.inputs),
            (np.concatenate(can_ask), masking.targets),
        )
    )
    return Pass(masker.packed(rows.tokens[at], length[at], shown, asked_for, rng), np.array(of, np.int64))


def may_show(vocabulary: Vocabulary, shown: int, asked: int) -> NDArray[np.bool_]:
    """Which modalities of a survey may be shown where another is asked for, (modality,)."""
    redshift = np.array([name.partition(".")[2] == REDSHIFT for name in vocabulary.names])
    asks = bool((redshift & (vocabulary.survey == asked)).any())
    return (vocabulary.survey == shown) & ~(redshift & asks)


class Directions:
    """Sums over passes, by direction; what several processes found adds up."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary, self.names = vocabulary, surveys(vocabulary)
        n = len(self.names)
        self.sums = np.zeros((3, n, n))
        "loss, tokens and objects of (shown, asked)"

    def add(self, k: int, losses: NDArray[Any], counts: NDArray[Any], objects: I64) -> None:
        """What the k-th pass cost, (modality,), and its objects, (survey,)."""
        n = len(self.names)
        for asked in range(n):
            own = self.vocabulary.survey == asked
            self.sums[:, (asked + k) % n, asked] += losses[own].sum(), counts[own].sum(), objects[asked]

    def told(self) -> Mapping[str, Mapping[str, float]]:
        """Cross-entropy of each direction, nats a token, and its objects; one that no object has is left out."""
        loss, tokens, objects = self.sums
        return {
            f"{self.names[a]}>{self.names[b]}": {
                "loss": float(loss[a, b] / tokens[a, b]),
                "objects": int(objects[a, b]),
            }
            for a, b in np.argwhere(objects > 0).tolist()
        }
