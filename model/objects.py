"""The tokens of a split, whole and in memory: an array of slots an object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import healpy
import numpy as np
from numpy.typing import NDArray

from skycairn.model.vocabulary import Vocabulary
from skycairn.pile.shards import ShardReader
from skycairn.pile.store import Part, Pile, Snapshot

MOST_BYTES = 8 << 30
CELL_ORDER = 13


class Objects(NamedTuple):
    """Objects of one split that have two tokens or more, in the order of their ids."""

    ids: NDArray[np.str_]
    tokens: NDArray[np.uint32]
    "(n, slot); within the modality's own vocabulary; 0 where there is none"
    length: NDArray[np.int32]
    "(n, modality): how many tokens of each are there"
    cell: NDArray[np.int64]
    "HEALPix cell of order 13 (26 arcsec), NESTED"

    def take(self, rows: NDArray[np.int64]) -> Objects:
        """Some of them."""
        return Objects(self.ids[rows], self.tokens[rows], self.length[rows], self.cell[rows])


def read_split(pile: Pile, snapshot: Snapshot, split: str, vocabulary: Vocabulary) -> Objects:
    """All objects of a split with two tokens or more (one to tell, one to ask for).

    ValueError where the split has none, or they would take more than 8 GiB, or are of other codecs than the vocabulary.
    """
    entries = [e for e in snapshot.entries("shards") if e.labels["split"] == split]
    if not entries:
        known = sorted({str(e.labels["split"]) for e in snapshot.entries("shards")})
        raise ValueError(f"snapshot {snapshot.number} has no split {split!r}; it has {', '.join(known)}")
    n = sum(e.part.n_rows for e in entries)
    if n * vocabulary.n_slots * 4 > MOST_BYTES:
        raise ValueError(f"split {split!r}: {n:,} objects are more than this trainer holds in memory")
    pieces = [piece for entry in entries for piece in _pieces(pile, entry.part, vocabulary)]
    ids, tokens, length, cell = (np.concatenate(p) for p in zip(*pieces, strict=True))
    order = np.argsort(ids, kind="stable")
    order = order[length[order].sum(axis=1) >= 2]
    if not len(order):
        raise ValueError(f"split {split!r} of snapshot {snapshot.number} has no object with two tokens")
    return Objects(ids[order], tokens[order], length[order], cell[order])


Piece = tuple[NDArray[np.str_], NDArray[np.uint32], NDArray[np.int32], NDArray[np.int64]]


def _pieces(pile: Pile, part: Part, vocabulary: Vocabulary) -> Iterator[Piece]:
    with ShardReader(pile.path(part), sha256=part.sha256) as shard:
        vocabulary.refuse_other_codecs(shard.columns.values(), f"{pile.root}, shard {part.sha256[:12]}")
        for group, n in enumerate(shard.row_groups):
            found = shard.tokens(group)
            about = shard.objects(group, ["object_id", "ra", "dec"])
            ids = np.array(about.column("object_id").to_pylist(), dtype=np.str_)
            place = (about.column(c).to_numpy() for c in ("ra", "dec"))
            cell = healpy.ang2pix(1 << CELL_ORDER, *place, nest=True, lonlat=True)
            tokens = np.zeros((n, vocabulary.n_slots), np.uint32)
            length = np.zeros((n, len(vocabulary.columns)), np.int32)
            for m, name in enumerate(vocabulary.names):
                if name in found:
                    tokens[:, vocabulary.first_slot[m] : vocabulary.first_slot[m + 1]] = found[name].values
                    length[:, m] = found[name].length
            yield ids, tokens, length, np.asarray(cell, np.int64)


def slot_counts(objects: Objects, vocabulary: Vocabulary) -> list[NDArray[np.int64]]:
    """How often each token stands in each slot, a table (n_tokens, vocabulary) a modality."""
    out = []
    for m, column in enumerate(vocabulary.columns):
        table = np.zeros((column.n_tokens, column.vocabulary), np.int64)
        for k in range(column.n_tokens):
            there = objects.length[:, m] > k
            table[k] = np.bincount(objects.tokens[there, vocabulary.first_slot[m] + k], minlength=column.vocabulary)
        out.append(table)
    return out
