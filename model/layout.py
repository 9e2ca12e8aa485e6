"""Where the tokens of a microbatch lie while a network works on them: their order, their segments, their heads.

Numpy alone: every count is known before anything is sent to a device, so that nothing there is waited for. Linear
layers, norms and heads see one axis of tokens and do not care for order; attention wants its *segments*, runs of tokens
that look at each other, and on a CPU wants segments of one length side by side.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from skycairn.model.packed import Packed
from skycairn.model.vocabulary import Vocabulary

Ints = NDArray[np.int64]


class Segments(NamedTuple):
    """Runs of one axis that ask, each another run (or itself) that is asked; both lie in this order, without gaps."""

    query: Ints
    "(s,): tokens of each that ask"
    key: Ints
    "(s,): tokens that are asked"
    causal: NDArray[np.bool_]
    "(s,): whether a token is asked only by itself and those after it"


@dataclass(frozen=True)
class Layout:
    """Order of a microbatch's tokens, and its segments."""

    shown: Ints
    "(shown,): the encoder's axis, as places in the microbatch's own"
    encoder_segments: Segments
    asked: Ints
    "(asked,): the decoder's axis, as places in the microbatch's own"
    decoder_segments: Segments
    crossing: Ints | None
    "(asked,): places of the decoder's axis in the order in which they ask the encoder; None where that is its own"
    cross_segments: Segments
    by_modality: Ints
    "(asked,): places of the decoder's axis, modality after modality"
    counts: Ints
    "(modality,): tokens asked for of each"


def lay_out(
    packed: Packed, vocabulary: Vocabulary, by_length: bool, sequences: Collection[int] = (), across: bool = False
) -> Layout:
    """The layout of a microbatch.

    `by_length` sorts objects and segments by length, for kernels that take segments of one length at a time; else the
    microbatch's own order stays, but that objects that show nothing come first. Modalities in `sequences` are read from
    left to right in the decoder. Where `across`, its segments are objects, else each object's modalities.
    ValueError where the microbatch breaks its contract, or is of another vocabulary.
    """
    checked(packed, vocabulary)
    n, m = np.diff(packed.input_start), np.diff(packed.target_start)
    order = np.lexsort((m, n)) if by_length else np.argsort(n > 0, kind="stable")
    shown, crossing_first = _reordered(packed.input_start, order), _reordered(packed.target_start, order)
    kind = vocabulary.modality_of_slot[packed.target_slot[crossing_first]]
    starts = np.cumsum(m[order]) - m[order]
    new = np.ones(len(kind), bool)
    new[1:] = (kind[1:] != kind[:-1]) & (not across)
    new[starts[m[order] > 0]] = True
    first = np.flatnonzero(new)
    length = np.diff(np.append(first, len(kind)))
    causal = np.isin(kind[first], list(sequences)) & (not across)
    crossing = None
    asked = crossing_first
    if by_length:
        segment = np.lexsort((length, causal))
        within = _reordered(np.append(first, len(kind)), segment)
        asked, length, causal = crossing_first[within], length[segment], causal[segment]
        crossing = np.empty_like(within)
        crossing[within] = np.arange(len(within))
    n, m = n[order], m[order]
    asking = m > 0  # a segment without a query would be work for nothing
    none = np.zeros(len(n), bool)
    kind = vocabulary.modality_of_slot[packed.target_slot[asked]]
    # keys of objects that ask for nothing stay on the axis, so such an object stays a segment where it shows something
    kept = asking | (n > 0)
    return Layout(
        shown,
        Segments(n[n > 0], n[n > 0], none[n > 0]),
        asked,
        Segments(length, length, causal),
        crossing,
        Segments(m[kept], n[kept], none[kept]),
        np.argsort(kind, kind="stable"),
        np.bincount(kind, minlength=len(vocabulary.columns)).astype(np.int64),
    )


def checked(packed: Packed, vocabulary: Vocabulary) -> None:
    """ValueError where a microbatch is not what `Packed` says, or holds slots or tokens that the vocabulary lacks."""
    parts = (
        ("input", packed.input_slot, packed.input_token, packed.input_start),
        ("target", packed.target_slot, packed.target_token, packed.target_start),
    )
    if len(packed.input_start) != len(packed.target_start) or len(packed.input_start) < 1:
        raise ValueError(
            f"microbatch: {len(packed.input_start)} starts of inputs and {len(packed.target_start)} of targets; wanted "
            "one more than there are objects of each"
        )
    size = np.array([c.vocabulary for c in vocabulary.columns])
    for name, slot, token, start in parts:
        if len(slot) != len(token) or start[0] != 0 or start[-1] != len(slot) or (np.diff(start) < 0).any():
            raise ValueError(
                f"microbatch: {len(slot)} {name} slots and {len(token)} {name} tokens, objects from {start[0]} to "
                f"{start[-1]}; wanted as many of each, and starts that rise from 0 to their number"
            )
        if not len(slot):
            continue
        if slot.min() < 0 or slot.max() >= vocabulary.n_slots:
            raise ValueError(
                f"microbatch: {name} slots {slot.min()} to {slot.max()}; the network has slots 0 to "
                f"{vocabulary.n_slots - 1}: was it masked with another vocabulary?"
            )
        kind = vocabulary.modality_of_slot[slot]
        if len(strange := np.flatnonzero((token < 0) | (token >= size[kind]))):
            at = int(strange[0])
            column = vocabulary.columns[kind[at]]
            raise ValueError(
                f"microbatch: {name} token {token[at]} of {column.modality}, whose vocabulary is 0 to "
                f"{column.vocabulary - 1}: was it encoded with another codec?"
            )
        rises = np.diff(slot) > 0
        rises[start[1:-1][(start[1:-1] > 0) & (start[1:-1] < len(slot))] - 1] = True
        if not rises.all():
            at = int(np.flatnonzero(~rises)[0])
            raise ValueError(
                f"microbatch: {name} slot {slot[at + 1]} follows {slot[at]} in one object; wanted slots that ascend "
                "within each object"
            )


def _reordered(start: Ints, order: Ints) -> Ints:
    """Places of the elements of runs that begin at `start`, when the runs are put into this order."""
    length = np.diff(start)[order]
    shift = start[:-1][order] - (np.cumsum(length) - length)
    return np.arange(int(length.sum()), dtype=np.int64) + np.repeat(shift, length)
