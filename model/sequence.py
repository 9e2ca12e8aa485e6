"""Modalities that are read from left to right, as AION-1 reads its catalogue of objects: a token foretells the next."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from skycairn.model.layout import Ints
from skycairn.model.packed import Packed
from skycairn.model.vocabulary import Vocabulary


def sequenced(packed: Packed, vocabulary: Vocabulary, sequences: Collection[int]) -> tuple[Packed, NDArray[np.int32]]:
    """The microbatch with these modalities as sequences, and the token before each asked one, (asked,), else -1.

    A sequence's tokens stand at the first slots of their modality, one after another, whichever they had. Of k that are
    asked for, k - 1 remain: the first is told, and each foretells the next.
    """
    which = list(sequences)
    input_slot, _, _ = _ranked(packed.input_slot, packed.input_start, vocabulary, which)
    slot, is_sequence, last = _ranked(packed.target_slot, packed.target_start, vocabulary, which)
    following = np.append(packed.target_token[1:], np.zeros(1, packed.target_token.dtype))[: len(slot)]
    token = np.where(is_sequence, following, packed.target_token)
    before = np.where(is_sequence, packed.target_token, -1).astype(np.int32)
    kept = ~(is_sequence & last)
    start = np.append(0, np.cumsum(kept))[packed.target_start]
    whole = packed._replace(
        input_slot=input_slot,
        target_slot=slot[kept],
        target_token=token[kept].astype(packed.target_token.dtype),
        target_start=start.astype(np.int64),
    )
    return whole, before[kept]


def _ranked(
    slot: NDArray[np.int32], start: Ints, vocabulary: Vocabulary, which: list[int]
) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Slots with sequences moved to the front; whether a token is of one; whether it is the last of its run."""
    kind = vocabulary.modality_of_slot[slot]
    is_sequence = np.isin(kind, which)
    new = np.ones(len(slot) + 1, bool)
    new[1:-1] = kind[1:] != kind[:-1]
    new[start] = True
    first = np.flatnonzero(new[:-1])
    rank = np.arange(len(slot)) - np.repeat(first, np.diff(np.append(first, len(slot))))
    out = np.where(is_sequence, vocabulary.first_slot[kind] + rank, slot).astype(slot.dtype)
    return out, is_sequence, new[1:]
