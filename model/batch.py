"""Batches of tokens from a pinned snapshot: what a training loop takes in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from skycairn.pile.export import Export
from skycairn.pile.hdf5shards import open_shard
from skycairn.pile.shards import TokenArray
from skycairn.pile.store import Pile, Snapshot

Batch = Mapping[str, TokenArray]
"""By modality: tokens (n, n_tokens), present (n,), length (n,)."""


def batches(
    pile: Pile | Export, snapshot: Snapshot, split: str, n_objects: int, modalities: Sequence[str] = (), seed: int = 0
) -> Iterator[Batch]:
    """One pass over a split, `n_objects` at a time, the last batch perhaps smaller.

    Shards and row groups come in an order that hangs on `seed` alone, objects shuffled within each row group; every
    object comes once. An export and its snapshot give the same batches as its pile does. `modalities` empty means all.
    ValueError where the split holds no shard.
    """
    entries = [e for e in snapshot.entries("shards") if e.labels["split"] == split]
    if not entries:
        known = sorted({str(e.labels["split"]) for e in snapshot.entries("shards")})
        raise ValueError(f"snapshot {snapshot.number} has no split {split!r}; it has {', '.join(known)}")
    groups: list[tuple[int, int]] = []
    for i, entry in enumerate(entries):
        with open_shard(pile.path(entry.part)) as shard:
            groups += [(i, g) for g in range(len(shard.row_groups))]
    generator = np.random.default_rng(seed)
    for at in generator.permutation(len(groups)):
        i, group = groups[at]
        with open_shard(pile.path(entries[i].part), sha256=entries[i].part.sha256) as shard:
            tokens = shard.tokens(group, list(modalities) or None)
            order = generator.permutation(shard.row_groups[group])
        for start in range(0, len(order), n_objects):
            rows = order[start : start + n_objects]
            yield {m: TokenArray(t.values[rows], t.present[rows], t.length[rows]) for m, t in tokens.items()}
