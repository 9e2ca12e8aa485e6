"""Batches of tokens from a pinned snapshot: what a training loop takes in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from skycairn.pile.export import Export
from skycairn.pile.hdf5shards import open_shard
from skycairn.pile.shards import TokenArray, TokenColumn
from skycairn.pile.store import Pile, Snapshot

POOL = 8_192
"""Objects among which a batch is drawn, at least; dense tokens of AION-1's modalities take 32 MB."""

Batch = Mapping[str, TokenArray]
"""By modality: tokens (n, n_tokens), present (n,), length (n,)."""


def batches(
    pile: Pile | Export, snapshot: Snapshot, split: str, n_objects: int, modalities: Sequence[str] = (), seed: int = 0
) -> Iterator[Batch]:
    """One pass over a split, `n_objects` at a time, the last batch perhaps smaller.

    Every object comes once, in an order that hangs on `seed` alone: row groups are read in random order until they fill
    a pool of `POOL` objects, which is shuffled. An export and its snapshot give the same batches as its pile does.
    `modalities` empty means all. ValueError where the split holds no shard, or `n_objects` is below 1.
    """
    if n_objects < 1:
        raise ValueError(f"batches: {n_objects} objects at a time were asked for; wanted 1 or more")
    entries = [e for e in snapshot.entries("shards") if e.labels["split"] == split]
    if not entries:
        known = sorted({str(e.labels["split"]) for e in snapshot.entries("shards")})
        raise ValueError(f"snapshot {snapshot.number} has no split {split!r}; it has {', '.join(known)}")
    groups: list[tuple[int, int]] = []
    columns: dict[str, TokenColumn] = {}
    for i, entry in enumerate(entries):
        with open_shard(pile.path(entry.part)) as shard:
            groups += [(i, g) for g in range(len(shard.row_groups))]
            for name, column in shard.columns.items():
                if (first := columns.setdefault(name, column)) != column:
                    raise ValueError(
                        f"snapshot {snapshot.number}: shards hold {name} by the codecs {first.codec_id} and "
                        f"{column.codec_id}; wanted one; build the pile again with one codecs.lock"
                    )
    if unknown := [m for m in modalities if m not in columns]:
        raise ValueError(f"split {split!r} has no modality {', '.join(unknown)}; it has {', '.join(columns)}")
    wanted = {m: columns[m] for m in modalities or columns}
    generator = np.random.default_rng(seed)
    pool: list[dict[str, TokenArray]] = []
    waiting = 0
    for number, at in enumerate(generator.permutation(len(groups))):
        i, group = groups[at]
        with open_shard(pile.path(entries[i].part), sha256=entries[i].part.sha256) as shard:
            found = shard.tokens(group, [m for m in wanted if m in shard.columns])
            n = shard.row_groups[group]
        pool.append({m: found[m] if m in found else _missing(column, n) for m, column in wanted.items()})
        waiting += n
        last = number == len(groups) - 1
        if waiting < max(POOL, n_objects) and not last:
            continue
        whole = {m: TokenArray(*(np.concatenate(a) for a in zip(*(p[m] for p in pool), strict=True))) for m in wanted}
        order = generator.permutation(waiting)
        stop = waiting if last else waiting - waiting % n_objects
        for start in range(0, stop, n_objects):
            yield _rows(whole, order[start : min(start + n_objects, stop)])
        pool, waiting = [_rows(whole, order[stop:])], waiting - stop


def _rows(tokens: Batch, rows: NDArray[np.int64]) -> dict[str, TokenArray]:
    return {m: TokenArray(t.values[rows], t.present[rows], t.length[rows]) for m, t in tokens.items()}


def _missing(column: TokenColumn, n: int) -> TokenArray:
    return TokenArray(np.zeros((n, column.n_tokens), column.dtype), np.zeros(n, bool), np.zeros(n, np.int64))
