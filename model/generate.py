"""Tokens that a network makes of those that it is shown: samples, and distributions.

    shown = shown_of(network.vocabulary, {"desi.spectrum": TokenArray(...)}, n)
    tokens = generate(network, shown, ["legacysurvey.image", "desi.z"], n_samples=16, seed=0)

Sample s of an object hangs on (seed, the object's id, s) alone, not on which objects it is worked on with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skycairn.model.attention import to_device
from skycairn.model.draw import checked as distributed
from skycairn.model.draw import drawn, fold, keys, uniforms_of
from skycairn.model.layout import Ints, checked
from skycairn.model.packed import Packed
from skycairn.model.schemes import Autoregressive, MaskGit, Roar, Step, Target, number_of, schedule
from skycairn.model.vocabulary import Vocabulary
from skycairn.pile.shards import TokenArray

Mask = NDArray[np.bool_]
DRAW, SURENESS, ORDER = range(3)
"""What a random number is for."""
MOST_LOGITS = 1 << 25
"""Of one pass, unless the caller says how many samples it may hold."""
MOST_ROWS = 256


class Network(Protocol):
    """What generation asks of a network; `transformer.Network` is one."""

    vocabulary: Vocabulary

    def logits(self, packed: Packed) -> dict[str, Tensor]:
        """Logits of what is asked for, (asked, vocabulary) a modality, in the order of the microbatch."""


class Shown(NamedTuple):
    """Tokens that n objects show, as `Packed` has them; an object may show none."""

    slot: NDArray[np.int32]
    token: NDArray[np.int32]
    start: NDArray[np.int64]

    @classmethod
    def of(cls, packed: Packed) -> Shown:
        """What a microbatch shows."""
        return cls(packed.input_slot, packed.input_token, packed.input_start)

    @property
    def n_objects(self) -> int:
        """How many objects."""
        return len(self.start) - 1


def shown_of(vocabulary: Vocabulary, tokens: Mapping[str, TokenArray], n: int) -> Shown:
    """What n objects show that have these tokens by modality; of a sequence its first slots.

    ValueError for an unknown modality, or arrays of other objects or another number of tokens.
    """
    known = np.full((n, vocabulary.n_slots), -1, np.int64)
    for name, (values, present, length) in tokens.items():
        m = number_of(vocabulary, name)
        width = vocabulary.columns[m].n_tokens
        if values.shape != (n, width) or present.shape != (n,) or length.shape != (n,):
            raise ValueError(
                f"{name}: tokens of shape {values.shape}, present {present.shape}, length {length.shape}; wanted "
                f"({n}, {width}), ({n},) and ({n},)"
            )
        there = present[:, None] & (np.arange(width) < length[:, None])
        # wide enough for -1, which a token's own type is not
        known[:, vocabulary.first_slot[m] : vocabulary.first_slot[m + 1]] = np.where(there, values.astype(np.int64), -1)
    return Shown.of(_packed(known, np.zeros(known.shape, bool)))


def generate(
    network: Network,
    shown: Shown,
    targets: Sequence[str | Target],
    n_samples: int = 1,
    seed: int = 0,
    ids: Sequence[int | str] | None = None,
    batch: int | None = None,
) -> dict[str, NDArray[np.int64]]:
    """Tokens of each target, (object, sample, n_tokens): what the object showed of it stays, the rest is generated.

    Targets are generated one after another, each shown the results of those before. `ids` are what the objects are
    known by to the random numbers, their place unless given; `batch`, samples of a pass, changes nothing but time and
    memory (to rounding of the network: a token turns where two are as likely to some 1e-6).
    ValueError where a request cannot be met, or the network's logits are no numbers.
    """
    vocabulary = network.vocabulary
    steps = schedule(vocabulary, targets)
    if isinstance(n_samples, bool) or not isinstance(n_samples, int) or n_samples < 1:
        raise ValueError(f"generate: n_samples is {n_samples!r}; wanted a whole number of 1 or more")
    known = _known(shown, vocabulary)
    names: Sequence[int | str] = range(len(known)) if ids is None else ids
    if len(names) != len(known) or len(set(map(str, names))) != len(known):
        raise ValueError(
            f"generate: {len(set(map(str, names)))} unlike ids of {len(known)} objects; wanted one of each"
        )
    spans = {name: _asked_of(network, name) for name in dict.fromkeys(s.target.modality for s in steps)}
    each = _rows(vocabulary, list(spans.values()), batch)
    key = keys(seed, names, range(n_samples))
    first = vocabulary.first_slot
    out = {name: np.empty((len(key), first[m + 1] - first[m]), np.int64) for name, m in spans.items()}
    with _still(network):
        for i in range(0, len(key), each):
            # a copy, as indices are an array
            rows = known[np.arange(i, min(i + each, len(key))) // n_samples]
            _fill(network, rows, key[i : i + each], steps)
            for name, m in spans.items():
                out[name][i : i + each] = rows[:, first[m] : first[m + 1]]
    return {name: tokens.reshape(len(known), n_samples, tokens.shape[1]) for name, tokens in out.items()}


def distribution(network: Network, shown: Shown, modality: str, batch: int | None = None) -> NDArray[np.float64]:
    """Probability of each token of a modality of one token, (object, vocabulary): exact, in one pass, nothing drawn.

    ValueError for a modality of more tokens, whose distribution is of them together, or one that an object shows.
    """
    vocabulary = network.vocabulary
    m = _asked_of(network, modality)
    column = vocabulary.columns[m]
    if column.n_tokens != 1:
        raise ValueError(
            f"generate: {modality} is {column.n_tokens} tokens, which have a distribution together alone; draw samples "
            "(`generate`), or ask how probable given ones are (`log_probability`)"
        )
    known = _known(shown, vocabulary)
    asked = np.zeros(known.shape, bool)
    asked[:, vocabulary.first_slot[m]] = True
    _refuse_shown(known, asked, modality)
    out = np.empty((len(known), column.vocabulary))
    each = _rows(vocabulary, [m], batch)
    with _still(network):
        for i in range(0, len(known), each):
            logits = _logits(network, known[i : i + each], asked[i : i + each], modality)
            out[i : i + each] = distributed(logits).double().softmax(dim=1).cpu().numpy()
    return out


def log_probability(
    network: Network, shown: Shown, modality: str, tokens: NDArray[np.integer], batch: int | None = None
) -> NDArray[np.float64]:
    """Natural logarithm of the probability of whole modalities (object, n_tokens), (object,).

    By the chain of conditionals in the order of slots, as `Autoregressive` draws them: a pass of one object a token.
    """
    vocabulary = network.vocabulary
    m = _asked_of(network, modality)
    first, last = vocabulary.first_slot[m : m + 2].tolist()
    known = _known(shown, vocabulary)
    if tokens.shape != (len(known), last - first):
        raise ValueError(f"generate: {modality} tokens of shape {tokens.shape}; wanted {(len(known), last - first)}")
    asked = np.zeros(known.shape, bool)
    asked[:, first:last] = True
    _refuse_shown(known, asked, modality)
    whole = known.copy()
    whole[:, first:last] = tokens
    out = np.zeros(len(known))
    each = _rows(vocabulary, [m], batch)
    pairs = np.stack(np.divmod(np.arange(len(known) * (last - first)), last - first), axis=1)
    with _still(network):
        for i in range(0, len(pairs), each):
            row, place = pairs[i : i + each].T
            slot = np.arange(vocabulary.n_slots)
            later = (slot >= first + place[:, None]) & (slot < last)
            logits = _logits(network, np.where(later, -1, whole[row]), slot == first + place[:, None], modality)
            said = distributed(logits).double().log_softmax(dim=1).cpu().numpy()
            np.add.at(out, row, said[np.arange(len(row)), tokens[row, place]])
    return out


def _fill(network: Network, known: Ints, key: NDArray[np.uint64], steps: Sequence[Step]) -> None:
    """Put generated tokens into the rows, (row, slot), -1 where there is none."""
    vocabulary, given = network.vocabulary, known >= 0
    lacking = np.zeros(len(known), np.int64)
    for step in steps:
        target, scheme = step.target, step.target.scheme
        m = number_of(vocabulary, target.modality)
        span = slice(int(vocabulary.first_slot[m]), int(vocabulary.first_slot[m + 1]))
        free = known[:, span] < 0
        if step.number == 0:
            lacking = free.sum(axis=1)
        left = np.array([step.left(n) for n in lacking.tolist()], np.int64)
        count = free.sum(axis=1) - left
        rows = np.flatnonzero(count > 0)
        if not len(rows):
            continue
        free, count, own = free[rows], count[rows], key[rows, None]
        slot = np.arange(span.start, span.stop)
        asked = free
        if isinstance(scheme, Roar):
            asked = _greatest(uniforms_of(fold(fold(own, ORDER), slot)), free, count)
        elif isinstance(scheme, Autoregressive):
            asked = _greatest(np.broadcast_to(-slot, free.shape), free, count)
        logits = _guided(network, known[rows], given[rows], asked, span, target)
        now = fold(fold(fold(own, DRAW), step.number), slot)
        tokens = np.full(free.shape, -1, np.int64)
        sure = np.zeros(free.shape)
        tokens[asked], sure[asked] = drawn(logits, now[asked], target.temperature, target.top_k, target.top_p)
        if isinstance(scheme, MaskGit):
            if scheme.noise:
                noise = uniforms_of(fold(fold(fold(own, SURENESS), step.number), slot))
                sure = sure - scheme.noise * scheme.share(step.number) * np.log(-np.log(noise))
            asked = _greatest(sure, free, count)
        # rows is an array, so that what it picks is a copy: written back whole
        known[rows, span] = np.where(asked, tokens, known[rows, span])


def _greatest(score: NDArray[np.floating] | Ints, free: Mask, count: Ints) -> Mask:
    """Of what is free in each row, as many of the greatest as `count` says; of equal ones the first."""
    order = np.argsort(np.where(free, -score, np.inf), axis=1, kind="stable")
    out = np.zeros(free.shape, bool)
    np.put_along_axis(out, order, np.arange(free.shape[1]) < count[:, None], axis=1)
    return out


def _guided(network: Network, known: Ints, given: Mask, asked: Mask, span: slice, target: Target) -> Tensor:
    """Logits of what is asked for, (asked, vocabulary), guided as the target says; one pass either way."""
    whole = np.zeros(known.shape, bool)
    whole[:, span] = asked
    if target.guidance == 1:
        return _logits(network, known, whole, target.modality)
    bare = np.where(given, -1, known)
    both = np.concatenate([known, bare]), np.concatenate([whole, whole])
    shown, unshown = distributed(_logits(network, *both, target.modality)).double().chunk(2)
    return unshown + target.guidance * (shown - unshown)


def _logits(network: Network, known: Ints, asked: Mask, modality: str) -> Tensor:
    """Logits of what is asked for, row after row; rows that show and ask the same are worked out once."""
    places: dict[bytes, int] = {}
    both = np.concatenate([known, asked], axis=1)
    which = np.array([places.setdefault(row.tobytes(), len(places)) for row in both])
    distinct = np.unique(which, return_index=True)[1]
    known, asked = known[distinct], asked[distinct]
    logits = network.logits(_packed(known, asked))[modality]
    length = asked.sum(axis=1)
    begin = np.cumsum(length) - length
    each = length[which]
    place = np.repeat(begin[which] - (np.cumsum(each) - each), each) + np.arange(int(each.sum()))
    return logits.index_select(0, to_device(place, logits.device))


def _packed(known: Ints, asked: Mask) -> Packed:
    """A microbatch of what each row shows, (row, slot), and asks for."""

    def start(there: Mask) -> Ints:
        return np.append(0, np.cumsum(there.sum(axis=1))).astype(np.int64)

    there = known >= 0
    slots = [np.nonzero(part)[1].astype(np.int32) for part in (there, asked)]
    return Packed(
        slots[0], known[there].astype(np.int32), start(there), slots[1], np.zeros(len(slots[1]), np.int32), start(asked)
    )


def _known(shown: Shown, vocabulary: Vocabulary) -> Ints:
    """Tokens by slot, (object, slot), -1 where there is none."""
    nothing = np.zeros(0, np.int32)
    checked(Packed(*shown, nothing, nothing, np.zeros(len(shown.start), np.int64)), vocabulary)
    out = np.full((shown.n_objects, vocabulary.n_slots), -1, np.int64)
    out[np.repeat(np.arange(shown.n_objects), np.diff(shown.start)), shown.slot] = shown.token
    return out


def _asked_of(network: Network, modality: str) -> int:
    """Number of a modality; ValueError where it cannot be asked for, slot by slot."""
    schedule(network.vocabulary, [modality])
    m = number_of(network.vocabulary, modality)
    if m in getattr(network, "sequences", ()):
        raise ValueError(
            f"generate: the network reads {modality} from left to right, as AION-1 its catalogue; show it, ask for "
            "other modalities"
        )
    return m


def _refuse_shown(known: Ints, asked: Mask, modality: str) -> None:
    if (both := (known >= 0) & asked).any():
        row = int(np.argwhere(both)[0, 0])
        raise ValueError(
            f"generate: object {row} shows {modality}, of which it is asked; leave it out of what is shown"
        )


def _rows(vocabulary: Vocabulary, modalities: Sequence[int], batch: int | None) -> int:
    if batch is None:
        most = max(vocabulary.columns[m].n_tokens * vocabulary.columns[m].vocabulary for m in modalities)
        return max(1, min(MOST_ROWS, MOST_LOGITS // most))
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"generate: batch is {batch!r}; wanted a whole number of 1 or more")
    return batch


@contextmanager
def _still(network: Network) -> Iterator[None]:
    """Within, nothing is dropped out and no gradient kept."""
    training = isinstance(network, nn.Module) and network.training
    if isinstance(network, nn.Module):
        network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if training and isinstance(network, nn.Module):
            network.train()
