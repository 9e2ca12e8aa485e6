"""Which object is the k-th of a lane: a pure function of strata, seed and numbers, with nothing to remember.

A step has `lanes` microbatches; number i = step x lanes + j is lane j's. A rank r of `world` ranks does the lanes with
j % world == r, so that the global batches are the same on any number of ranks that divides the lanes, and a run goes on
from `step` alone. Of each lane:

1. The strata of its samples repeat after `CYCLE` samples, spread evenly; each lane begins elsewhere in the cycle. How
   many samples of a stratum came before one is therefore known at once.
2. Each stratum is an endless row of objects: epoch after epoch, its row groups in a random order, the rows of each in
   a random order. It is cut into pools: first one for each lane, of growing size, so that lanes come to the ends of
   their pools one after another, as row groups are read; from then on equal ones. Lane j's n-th pool is number
   n x lanes + j. A pool is shuffled when it is drawn from.

So every object of a stratum comes once an epoch, and no lane reads another's pool. Random numbers are those of Philox
with a key hashed from the seed and from what they are for; only its raw output is used, which no version of numpy
changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from skycairn.model.strata import CYCLE, I64, Line, Stratum, Weights, shares, whole_shares

LANES = 48
"""Microbatches of a step: 1, 2, 3, 4, 6, 8, 12, 16, 24 and 48 divide it."""
POOL = 4_096
"""Objects that a lane draws from, over all strata; each stratum has its share of them."""


def philox(*what: object) -> np.random.Philox:
    """The random bits of this purpose; integers of any size and words without a slash tell one from another."""
    digest = hashlib.sha256("/".join(str(w) for w in what).encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little"))


def permutation(n: int, *what: object) -> I64:
    """A random order of 0 .. n - 1."""
    return np.argsort(philox(*what).random_raw(n), kind="stable") if n > 1 else np.zeros(n, np.int64)


class Draws(NamedTuple):
    """A microbatch's samples of one stratum."""

    stratum: int
    place: NDArray[np.intp]
    "(samples,): where in the microbatch"
    first: int
    "how many samples of this stratum the lane has had before"


class Order:
    """Which objects make up microbatch i."""

    def __init__(
        self,
        strata: Sequence[Stratum],
        weights: Weights | None = None,
        objects: int = 64,
        lanes: int = LANES,
        pool: int = POOL,
        seed: int = 0,
    ) -> None:
        """`objects` of a microbatch, `pool` objects to shuffle among in a lane. Strata of no weight are left out."""
        for name, value in (("objects", objects), ("lanes", lanes), ("pool", pool)):
            if not 1 <= value <= 1 << 40:
                raise ValueError(f"loader: {name} is {value}; wanted 1 or more")
        weight = shares(strata, weights or Weights())
        self.strata = tuple(s for s, w in zip(strata, weight, strict=True) if w > 0)
        self.weight = weight[weight > 0]
        self.objects, self.lanes, self.pool, self.seed = objects, lanes, pool, seed
        self.count = whole_shares(self.weight)
        "samples of each stratum in a cycle"
        self.cycle = spread(self.count)
        self._at = [np.flatnonzero(self.cycle == s) for s in range(len(self.strata))]
        wanted = np.maximum(1, np.rint(pool * self.count / CYCLE)).astype(np.int64)
        self.pool_rows = tuple(
            max(1, min(int(w), s.rows // lanes)) for w, s in zip(wanted.tolist(), self.strata, strict=True)
        )
        "rows of a pool of each stratum, from a lane's second on"
        self._first_ends = [np.cumsum(-(-r * np.arange(1, lanes + 1) // lanes)).tolist() for r in self.pool_rows]
        self._groups = lru_cache(maxsize=2 * len(self.strata) + 2)(self._groups_of_epoch)
        self._rows = lru_cache(maxsize=4 * len(self.strata) + 4)(self._rows_of_group)

    @property
    def identity(self) -> str:
        """SHA-256 of all that the order hangs on: two orders of one identity are the same."""
        digest = hashlib.sha256(repr((self.objects, self.lanes, self.pool, self.seed, CYCLE)).encode())
        for s, n in zip(self.strata, self.count.tolist(), strict=True):
            digest.update(f"{s.key} {n}\n".encode())
            digest.update(s.size.tobytes())
        return digest.hexdigest()

    def before(self, stratum: int, lane: int, k: int) -> int:
        """How many of a lane's first k samples are of the stratum."""
        start = lane * CYCLE // self.lanes

        def upto(n: int) -> int:
            whole, rest = divmod(n, CYCLE)
            return whole * int(self.count[stratum]) + int(np.searchsorted(self._at[stratum], rest))

        return upto(start + k) - upto(start)

    def draws(self, i: int) -> list[Draws]:
        """What microbatch i takes of each stratum."""
        if i < 0:
            raise ValueError(f"loader: microbatch {i} was asked for; they count from 0")
        step, lane = divmod(i, self.lanes)
        k = step * self.objects
        start = (lane * CYCLE // self.lanes + k) % CYCLE
        kind = self.cycle[(start + np.arange(self.objects)) % CYCLE]
        return [Draws(int(s), np.flatnonzero(kind == s), self.before(int(s), lane, k)) for s in np.unique(kind)]

    def pool_at(self, stratum: int, lane: int, t: int) -> tuple[int, int]:
        """In which of a lane's pools its t-th sample of a stratum is, and where in it."""
        first = self._bounds(stratum, lane, 0)
        n_first = first[1] - first[0]
        if t < n_first:
            return 0, t
        n, offset = divmod(t - n_first, self.pool_rows[stratum])
        return n + 1, offset

    def _bounds(self, stratum: int, lane: int, n: int) -> tuple[int, int]:
        """Where a lane's n-th pool begins and ends in the endless row of a stratum."""
        ends, rows = self._first_ends[stratum], self.pool_rows[stratum]
        if n == 0:
            return (ends[lane - 1] if lane else 0), ends[lane]
        start = ends[-1] + ((n - 1) * self.lanes + lane) * rows
        return start, start + rows

    def pool_of(self, stratum: int, lane: int, n: int) -> tuple[I64, I64]:
        """Row group and row in it of the objects of a lane's n-th pool, each (objects,), in the order of drawing."""
        start, stop = self._bounds(stratum, lane, n)
        s = self.strata[stratum]
        groups, rows = [], []
        for epoch in range(start // s.rows, (stop - 1) // s.rows + 1):
            low, high = max(start - epoch * s.rows, 0), min(stop - epoch * s.rows, s.rows)
            order, ends = self._groups(stratum, epoch)
            first, last = np.searchsorted(ends, [low, high - 1], side="right")
            for g in range(int(first), int(last) + 1):
                begin = int(ends[g] - s.size[order[g]])
                some = self._rows(stratum, epoch, int(order[g]))[max(low - begin, 0) : high - begin]
                rows.append(some)
                groups.append(np.full(len(some), order[g]))
        shuffled = permutation(stop - start, self.seed, "pool", s.key, n * self.lanes + lane)
        return np.concatenate(groups)[shuffled], np.concatenate(rows)[shuffled]

    def _groups_of_epoch(self, stratum: int, epoch: int) -> tuple[I64, I64]:
        s = self.strata[stratum]
        order = permutation(len(s.size), self.seed, "groups", s.key, epoch)
        return order, np.cumsum(s.size[order])

    def _rows_of_group(self, stratum: int, epoch: int, group: int) -> I64:
        s = self.strata[stratum]
        return permutation(int(s.size[group]), self.seed, "rows", s.key, epoch, group)

    def samples(self, i: int) -> I64:
        """Stratum, row group and row of each object of microbatch i, (objects, 3): what the loader reads."""
        out = np.zeros((self.objects, 3), np.int64)
        lane = i % self.lanes
        for stratum, place, first in self.draws(i):
            out[place, 0] = stratum
            done = 0
            while done < len(place):
                n, offset = self.pool_at(stratum, lane, first + done)
                group, row = (x[offset : offset + len(place) - done] for x in self.pool_of(stratum, lane, n))
                out[place[done : done + len(group)], 1], out[place[done : done + len(group)], 2] = group, row
                done += len(group)
        return out

    def numbers(self, step: int, rank: int = 0, world: int = 1) -> range:
        """Microbatches of a step that fall to a rank. ValueError where `world` does not divide the lanes."""
        if world < 1 or self.lanes % world or not 0 <= rank < world:
            raise ValueError(
                f"loader: rank {rank} of {world} with {self.lanes} microbatches a step; wanted ranks from 0 to "
                f"{world - 1}, as many as divide {self.lanes}"
            )
        return range(step * self.lanes + rank, (step + 1) * self.lanes, world)

    def table(self, steps: int) -> list[Line]:
        """What a run of this many steps will have made of each stratum, exactly."""
        k = steps * self.objects
        return [
            Line.of(
                stratum,
                float(self.weight[s]),
                int(self.count[s]) / CYCLE,
                sum(self.before(s, lane, k) for lane in range(self.lanes)),
            )
            for s, stratum in enumerate(self.strata)
        ]


def spread(count: I64) -> NDArray[np.int32]:
    """Each number as often as `count` says, spread evenly: the i-th of c comes at (i + 1/2) / c of the way."""
    kind = np.repeat(np.arange(len(count)), count)
    nth = np.arange(len(kind)) - np.repeat(np.cumsum(count) - count, count)
    when = (nth + 0.5) / np.repeat(np.maximum(count, 1), count)
    return kind[np.argsort(when, kind="stable")].astype(np.int32)
