"""Which tokens of an object are shown and which are asked for: exact budgets, whole batches, missing data minded.

The rule is AION-1's as its open port has it: a modality shows round(Beta(a, a) x its tokens); of what is left,
ceil(Beta(a, 10) x tokens) are asked for. But budgets are shared out fairly, not in random order: of a galaxy with two
images and a spectrum numbers would hardly ever be shown. A share of the objects is masked *across surveys* instead:
some surveys or modalities are shown and only others asked for, so that one is learned from the other. Nothing is both;
every object is asked for one token or more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from skycairn.model.objects import Objects
from skycairn.model.vocabulary import Vocabulary

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Rule:
    """How tokens are masked."""

    inputs: int = 48
    "most tokens shown"
    targets: int = 24
    "most tokens asked for"
    alpha: float = 1.0
    "of Beta(alpha, alpha), the share of a modality that is shown"
    target_beta: float = 10.0
    "of Beta(alpha, target_beta), the share of what is left that is asked for"
    across_surveys: float = 0.35
    "share of objects of which whole surveys are shown and others asked for"
    across_modalities: float = 0.35
    "share of objects of which whole modalities are shown and others asked for"

    def __post_init__(self) -> None:
        if self.inputs < 1 or self.targets < 1 or self.alpha <= 0 or self.target_beta <= 0:
            raise ValueError(f"masking: {self}: wanted budgets of 1 or more and positive Betas")
        shares = (self.across_surveys, self.across_modalities, 1 - self.across_surveys - self.across_modalities)
        if min(shares) < 0:
            raise ValueError(f"masking: {self}: wanted shares of 0 or more that add up to 1 at most")


class Batch(NamedTuple):
    """Tokens shown and asked for, (n, most of each); where `valid` is False the rest is 0."""

    input_slot: NDArray[np.int64]
    input_token: NDArray[np.int64]
    input_valid: NDArray[np.bool_]
    target_slot: NDArray[np.int64]
    target_token: NDArray[np.int64]
    target_valid: NDArray[np.bool_]

    def rows(self, some: slice | NDArray[np.int64]) -> Batch:
        """Some of its objects, no wider than they need."""
        shown, asked = (max(1, int(valid[some].sum(axis=1).max(initial=0))) for valid in (self[2], self[5]))
        front, back = (some, slice(shown)), (some, slice(asked))
        i, j, k, a, b, c = self
        return Batch(i[front], j[front], k[front], a[back], b[back], c[back])

    def halves(self) -> list[Batch]:
        """Objects of few tokens and objects of many, so that less of a batch is padding."""
        order = np.argsort(self.input_valid.sum(axis=1), kind="stable")
        return [self.rows(part) for part in np.array_split(order, 2) if len(part)]


def draw(objects: Objects, vocabulary: Vocabulary, rule: Rule, rng: np.random.Generator) -> Batch:
    """A batch of these objects, masked by the rule."""
    n, n_modalities = objects.length.shape
    there = np.asarray(objects.length > 0)
    shown, asked = there.copy(), there.copy()
    kind = rng.random(n)
    across: list[tuple[NDArray[np.bool_], Counts]] = [
        (np.asarray(kind < rule.across_surveys), vocabulary.survey),
        (np.asarray(kind >= 1 - rule.across_modalities), np.arange(n_modalities)),
    ]
    for share, group in across:
        # one group that the object has is shown, another asked for, and a coin is thrown over the rest
        n_groups = int(group.max()) + 1
        held = np.zeros((n, n_groups), bool)
        for g in range(n_groups):
            held[:, g] = np.logical_or.reduce(there[:, group == g], axis=1)
        rank = np.argsort(np.argsort(np.where(held, rng.random((n, n_groups)), 2.0), axis=1), axis=1)
        coin = np.where(rank < 2, rank == 0, rng.random((n, n_groups)) < rng.random((n, 1)))
        both = share & (held.sum(axis=1) > 1)
        front, back = coin[:, group], ~coin[:, group]
        shown = np.where(both[:, None], front & there, shown)
        asked = np.where(both[:, None], back & there, asked)
    apart: NDArray[np.bool_] = ~np.logical_or.reduce(shown & asked, axis=1)
    share_in = rng.beta(rule.alpha, rule.alpha, (n, n_modalities))
    # what is only shown is shown whole where the budget allows
    share_in = np.where(apart[:, None], 1.0, share_in)
    wanted = np.where(shown, np.rint(share_in * objects.length), 0).astype(np.int64)
    count_in = allocate(wanted, rule.inputs, rng)
    left = np.where(asked, objects.length - count_in, 0)
    wanted = np.ceil(rng.beta(rule.alpha, rule.target_beta, (n, n_modalities)) * left).astype(np.int64)
    count_out = allocate(wanted, rule.targets, rng)
    # all tokens shown: one of them is asked for instead
    for i in np.flatnonzero(count_out.sum(axis=1) == 0):
        m = rng.choice(np.flatnonzero(there[i]))
        count_in[i, m] = min(count_in[i, m], objects.length[i, m] - 1)
        count_out[i, m] = 1
    return chosen(objects, vocabulary, count_in, count_out, rng)


def allocate(wanted: Counts, budget: int, rng: np.random.Generator) -> Counts:
    """As many of the wanted tokens, (n, modality), as the budget allows, shared out fairly.

    No modality has more than one token above another that would take more: an image never starves the numbers. Who has
    the odd ones is random.
    """
    low, high = (np.full(len(wanted), v) for v in (0, int(wanted.max(initial=0))))
    while (low < high).any():  # the highest level that the budget allows
        level = (low + high + 1) // 2
        fits = np.minimum(wanted, level[:, None]).sum(axis=1) <= budget
        low, high = np.where(fits, level, low), np.where(fits, high, level - 1)
    out = np.minimum(wanted, low[:, None])
    left = budget - out.sum(axis=1, keepdims=True)
    order = np.argsort(np.where(wanted > out, rng.random(wanted.shape), 2.0), axis=1)
    rank = np.argsort(order, axis=1)
    return np.asarray(out + ((rank < left) & (wanted > out)))


def chosen(
    objects: Objects, vocabulary: Vocabulary, count_in: Counts, count_out: Counts, rng: np.random.Generator
) -> Batch:
    """Random tokens of each modality, as many as the counts (n, modality) say, shown or asked for."""
    n = len(objects.ids)
    is_in, is_out = (np.zeros((n, vocabulary.n_slots), bool) for _ in range(2))
    for m, column in enumerate(vocabulary.columns):
        part = slice(int(vocabulary.first_slot[m]), int(vocabulary.first_slot[m + 1]))
        key = rng.random((n, column.n_tokens))
        key[np.arange(column.n_tokens) >= objects.length[:, m, None]] = 2.0
        rank = np.argsort(np.argsort(key, axis=1), axis=1)
        is_in[:, part] = rank < count_in[:, m, None]
        is_out[:, part] = ~is_in[:, part] & (rank < (count_in + count_out)[:, m, None])
    return Batch(*_packed(objects, is_in), *_packed(objects, is_out))


def _packed(
    objects: Objects, chosen_: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    count = chosen_.sum(axis=1)
    width = max(1, int(count.max(initial=0)))
    slot = np.argsort(~chosen_, axis=1, kind="stable")[:, :width]
    valid = np.arange(width) < count[:, None]
    token = np.take_along_axis(objects.tokens, slot, axis=1).astype(np.int64)
    return np.where(valid, slot, 0), np.where(valid, token, 0), valid
