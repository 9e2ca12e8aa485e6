"""Microbatches of masked tokens from shards: microbatch i is a function of (snapshots, seed, i), whoever asks for it.

    loader = Loader([Source(pile, pile.snapshot())], "train", Masking(), seed=0)
    print(as_text(loader.order.table(steps)))
    with loader.ahead(step, rank, world) as stream:
        for packed in stream: ...           # the rank's microbatches, in order, worked out by a thread

Every shard's SHA-256 is verified when the process first opens it, its pages whenever they are read. A row group is
decoded once for the lanes that draw from it one after another: those used last are kept, in `cache_bytes`. Objects
without a token of the vocabulary are never drawn. One whose only sequences have length 0 is left out of its microbatch,
which may then hold fewer objects than it draws.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from skycairn.model.order import LANES, POOL, Order, permutation, philox
from skycairn.model.packed import Packed
from skycairn.model.rules import Masker, Masking
from skycairn.model.strata import Source, Stratum, Weights, find, with_token
from skycairn.model.vocabulary import Vocabulary
from skycairn.pile.content import canonical_json
from skycairn.pile.files import Damaged
from skycairn.pile.hdf5shards import open_shard

AHEAD = 64
"""Microbatches that the thread may be ahead; one of 64 objects takes some 0.2 MB."""
CACHE_BYTES = 1 << 29


class Rows(NamedTuple):
    """Objects with all their tokens."""

    tokens: NDArray[Any]
    "(n, slot), uint16, or uint32 where a vocabulary needs it; 0 where there is none"
    length: NDArray[np.int32]
    "(n, modality): how many tokens of each are there"

    @property
    def n_bytes(self) -> int:
        """Memory."""
        return int(self.tokens.nbytes + self.length.nbytes)

    def take(self, some: NDArray[np.int64]) -> Rows:
        """Some of them."""
        return Rows(self.tokens[some], self.length[some])


class Loader:
    """Reads, shuffles and masks. `microbatch` may be called in any order, from any thread, one at a time."""

    def __init__(
        self,
        sources: Sequence[Source],
        split: str,
        masking: Masking,
        vocabulary: Vocabulary | None = None,
        weights: Weights | None = None,
        seed: int = 0,
        objects: int = 64,
        lanes: int = LANES,
        pool: int = POOL,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """`objects` of a microbatch, `lanes` microbatches of a step; the rest as in `strata.find` and `order.Order`.

        Memory: `pool` objects for each lane that is asked for, two bytes a slot of the vocabulary, and `cache_bytes`.
        """
        strata, self.vocabulary = find(sources, split, vocabulary)
        self.order = Order(strata, weights, objects, lanes, pool, seed)
        self.masker = Masker(self.vocabulary, masking)
        self.cache_bytes = cache_bytes
        self.decoded = 0
        "objects decoded so far; more than `drawn` where row groups are larger than pools and the cache is small"
        self.drawn = 0
        "objects handed out so far"
        self.empty = 0
        "of these, left out: all that they have is sequences of length 0"
        wide = any(c.dtype.itemsize > 2 for c in self.vocabulary.columns)
        self._dtype = np.dtype(np.uint32 if wide else np.uint16)
        self._pools: dict[tuple[int, int], tuple[int, Rows]] = {}
        self._groups: OrderedDict[tuple[str, int, int], Rows] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    @property
    def identity(self) -> dict[str, str]:
        """What microbatches hang on beside their number, for a checkpoint: two loaders that say the same give the same.

        numpy is named because its Beta, Gamma and hypergeometric draws may change with its version; the order of the
        objects hangs on none.
        """
        about = {"vocabulary": self.vocabulary.as_json(), "masking": self.masker.masking.as_json()}
        digests = {what: hashlib.sha256(canonical_json(value)).hexdigest() for what, value in about.items()}
        return {"order": self.order.identity, **digests, "numpy": np.__version__}

    def microbatch(self, i: int) -> Packed:
        """Microbatch i, which is number i % lanes of step i // lanes. `Damaged` names a shard that is."""
        with self._lock:
            rows = self._draw(i)
            rng = np.random.Generator(philox(self.order.seed, "mask", i))
            packed = self.masker.draw(rows.tokens, rows.length, rng)
            self.drawn += len(rows.length)
            self.empty += len(rows.length) - packed.n_objects
        return packed

    def rows(self, i: int) -> Rows:
        """The objects of microbatch i before they are masked, those without a token too."""
        with self._lock:
            return self._draw(i)

    def whole(self, most: int) -> Rows:
        """Objects of the split, each once: all of them, or `most`, of row groups in random order; held in memory."""
        strata = self.order.strata
        groups = [(s, g) for s in range(len(strata)) for g in range(len(strata[s].size))]
        found, n = [], 0
        with self._lock:
            for at in permutation(len(groups), self.order.seed, "whole").tolist():
                if n >= most:
                    break
                s, g = groups[at]
                found.append(self._group(strata[s], g))
                n += len(found[-1].length)
        tokens, length = (np.concatenate(parts)[:most] for parts in zip(*found, strict=True))
        return Rows(tokens, length)

    def ids(self, i: int) -> list[str]:
        """Their ids; read anew each time."""
        out = []
        for s, g, row in self.order.samples(i).tolist():
            stratum = self.order.strata[s]
            part = stratum.parts[int(stratum.part[g])]
            group = int(stratum.group[g])
            with open_shard(stratum.source.path(part), part.sha256) as shard:
                known = [m for m in shard.columns if m in self.vocabulary.names]
                at = np.flatnonzero(with_token(shard, group, known))[row]
                out.append(str(shard.objects(group, ["object_id"]).column(0)[int(at)]))
        return out

    def ahead(self, step: int = 0, rank: int = 0, world: int = 1, n: int = AHEAD) -> Ahead:
        """A rank's microbatches from a step on, without end; a thread keeps up to `n` of them ready. Close it."""
        return Ahead(self, step, rank, world, n)

    def _draw(self, i: int) -> Rows:
        lane, n = i % self.order.lanes, self.order.objects
        tokens = np.empty((n, self.vocabulary.n_slots), self._dtype)
        length = np.empty((n, len(self.vocabulary.columns)), np.int32)
        for stratum, place, first in self.order.draws(i):
            done = 0
            while done < len(place):
                number, offset = self.order.pool_at(stratum, lane, first + done)
                pool = self._pool(stratum, lane, number)
                some = slice(offset, offset + len(place) - done)
                found = pool.length[some]
                here = place[done : done + len(found)]
                tokens[here], length[here] = pool.tokens[some], found
                done += len(found)
        return Rows(tokens, length)

    def _pool(self, stratum: int, lane: int, number: int) -> Rows:
        held = self._pools.get((stratum, lane))
        if held is not None and held[0] == number:
            return held[1]
        groups, rows = self.order.pool_of(stratum, lane, number)
        if held is not None and len(held[1].length) == len(rows):
            pool = held[1]  # its memory, whose objects have been handed out
        else:
            pool = Rows(
                np.empty((len(rows), self.vocabulary.n_slots), self._dtype),
                np.empty((len(rows), len(self.vocabulary.columns)), np.int32),
            )
        # a failure half-way must not leave a pool of two
        self._pools.pop((stratum, lane), None)
        by_group = np.argsort(groups, kind="stable")
        ends = np.flatnonzero(np.diff(groups[by_group])) + 1
        for places in np.split(by_group, ends):
            read = self._group(self.order.strata[stratum], int(groups[places[0]]))
            pool.tokens[places], pool.length[places] = read.tokens[rows[places]], read.length[rows[places]]
        self._pools[stratum, lane] = number, pool
        return pool

    def _group(self, stratum: Stratum, g: int) -> Rows:
        part, group = stratum.parts[int(stratum.part[g])], int(stratum.group[g])
        key = (stratum.pile, int(stratum.part[g]), group)
        if (held := self._groups.get(key)) is not None:
            self._groups.move_to_end(key)
            return held
        names, first = self.vocabulary.names, self.vocabulary.first_slot
        with open_shard(stratum.source.path(part), part.sha256) as shard:
            n = shard.row_groups[group]
            tokens = np.zeros((n, self.vocabulary.n_slots), self._dtype)
            length = np.zeros((n, len(self.vocabulary.columns)), np.int32)
            there = np.zeros(n, bool)
            known = [m for m, name in enumerate(names) if name in shard.columns]
            into = {names[m]: tokens[:, first[m] : first[m + 1]] for m in known}
            for m, (_, present, count) in zip(known, shard.tokens(group, list(into), into).values(), strict=True):
                length[:, m] = count
                there |= present
            if int(there.sum()) != stratum.size[g]:
                raise Damaged(
                    f"{shard.path}: {int(there.sum())} objects of row group {group} have tokens, by their statuses "
                    f"{stratum.size[g]}; the shard was not written by skycairn, or is damaged: build it again"
                )
            if not there.all():
                tokens, length = tokens[there], length[there]
        read = Rows(tokens, length)
        self.decoded += n
        self._groups[key] = read
        self._held += read.n_bytes
        while self._held > self.cache_bytes and len(self._groups) > 1:
            self._held -= self._groups.popitem(last=False)[1].n_bytes
        return read


class Ahead:
    """A rank's microbatches in order, worked out ahead by a thread, which an error, Ctrl-C or `close` ends."""

    def __init__(self, loader: Loader, step: int, rank: int, world: int, n: int) -> None:
        if n < 1 or step < 0:
            raise ValueError(f"loader: {n} microbatches ahead from step {step}; wanted 1 or more, from step 0 on")
        loader.order.numbers(step, rank, world)  # refuses a world that does not divide the lanes
        self.waited = 0.0
        "seconds in which the caller waited for data"
        self._began: float | None = None
        self._ready: queue.Queue[Packed | BaseException] = queue.Queue(n)
        self._stop = threading.Event()
        # the thread holds what it needs and not this object, so that one that is forgotten is closed, at exit too
        self._thread = threading.Thread(
            target=_work, args=(loader, step, rank, world, self._ready, self._stop), name="skycairn loader", daemon=True
        )
        self._finish = weakref.finalize(self, _end, self._thread, self._ready, self._stop)
        self._thread.start()

    def __iter__(self) -> Iterator[Packed]:
        return self

    def __next__(self) -> Packed:
        if not self._finish.alive:
            raise ValueError("loader: this stream was closed; ask the loader for another (`ahead`)")
        began = time.perf_counter()
        found = self._next()
        now = time.perf_counter()
        if self._began is None:
            self._began = now  # the first one fills pools and opens files; a run tells of it apart
        else:
            self.waited += now - began
        if isinstance(found, BaseException):
            self.close()
            raise found
        return found

    def _next(self) -> Packed | BaseException:
        while True:
            try:
                return self._ready.get(timeout=0.5)
            except queue.Empty:
                if not self._finish.alive:
                    raise ValueError("loader: this stream was closed while it was asked for more") from None

    @property
    def waiting(self) -> float:
        """Share of the time since the first microbatch in which the caller waited for data; 0 before it."""
        return 0.0 if self._began is None else self.waited / max(time.perf_counter() - self._began, 1e-9)

    def close(self) -> None:
        """End the thread and drop what it has ready."""
        self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


Ready = queue.Queue[Packed | BaseException]


def _work(loader: Loader, step: int, rank: int, world: int, ready: Ready, stop: threading.Event) -> None:
    try:
        while not stop.is_set():
            for i in loader.order.numbers(step, rank, world):
                if not _offer(ready, loader.microbatch(i), stop):
                    return
            step += 1
    except BaseException as error:
        _offer(ready, error, stop)


def _offer(ready: Ready, what: Packed | BaseException, stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            ready.put(what, timeout=0.2)
            return True
        except queue.Full:
            continue
    return False


def _end(thread: threading.Thread, ready: Ready, stop: threading.Event) -> None:
    stop.set()
    while True:  # room for a thread that waits to put
        try:
            ready.get_nowait()
        except queue.Empty:
            break
    thread.join()


def slot_counts(rows: Rows, vocabulary: Vocabulary) -> list[NDArray[np.int64]]:
    """How often each token stands in each slot, (n_tokens, vocabulary) a modality."""
    out = []
    for m, column in enumerate(vocabulary.columns):
        table = np.zeros((column.n_tokens, column.vocabulary), np.int64)
        for k in range(column.n_tokens):
            there = rows.length[:, m] > k
            table[k] = np.bincount(rows.tokens[there, vocabulary.first_slot[m] + k], minlength=column.vocabulary)
        out.append(table)
    return out
