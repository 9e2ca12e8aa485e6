"""Objects of a split that a question can be asked of: tokens of what is shown and asked for, row for row."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skycairn.model.vocabulary import Vocabulary
from skycairn.pile.hdf5shards import open_shard
from skycairn.pile.shards import TokenArray
from skycairn.pile.store import Pile, Snapshot


class Asked(NamedTuple):
    """Objects in random order, the same each time."""

    tokens: dict[str, TokenArray]
    "by modality; an object may lack some of what is shown"
    about: pa.Table
    "the columns that were asked for, row for row"

    def take(self, rows: NDArray[np.int64]) -> Asked:
        """Some of them."""
        tokens = {name: _rows(t, rows) for name, t in self.tokens.items()}
        return Asked(tokens, self.about.take(pa.array(rows)))


def objects_with(
    pile: Pile,
    snapshot: Snapshot,
    split: str,
    shown: Sequence[str],
    asked: Sequence[str],
    columns: Sequence[str] = ("object_id",),
    most: int = 0,
) -> Asked:
    """Objects that have one or more of `shown` and all of `asked`; at most `most`, 0 for all.

    Which ones, and their order, hangs on a hash of their ids alone. `columns` are columns of shards that hold no
    tokens. ValueError where the pile has no such modality, or no such object.
    """
    known = {c.modality: c for c in Vocabulary.of(pile, snapshot).columns}
    if unknown := [m for m in (*shown, *asked) if m not in known]:
        raise ValueError(f"{pile.root}: holds no tokens of {', '.join(unknown)}; it has {', '.join(known)}")
    names = list(dict.fromkeys([*shown, *asked]))
    parts: list[dict[str, TokenArray]] = []
    abouts: list[pa.Table] = []
    for entry in snapshot.entries("shards"):
        if entry.labels["split"] != split:
            continue
        with open_shard(pile.path(entry.part), entry.part.sha256) as shard:
            held = [m for m in names if m in shard.columns]
            if not any(m in held for m in shown) or not all(m in held for m in asked):
                continue
            for group, n in enumerate(shard.row_groups):
                found = shard.tokens(group, held)
                for m in names:
                    found.setdefault(m, _blank(known[m].n_tokens, known[m].dtype, n))
                there = np.logical_or.reduce([found[m].present for m in shown])
                for m in asked:
                    there = there & found[m].present
                rows = np.flatnonzero(there)
                if len(rows):
                    parts.append({m: _rows(found[m], rows) for m in names})
                    about = shard.objects(group, list(dict.fromkeys(["object_id", *columns])))
                    abouts.append(about.take(pa.array(rows)))
    if not parts:
        wanted = f"one of {', '.join(shown)}" + (f" and all of {', '.join(asked)}" if asked else "")
        raise ValueError(f"{pile.root}: no object of the split {split!r} has {wanted}; build a pile of more sky")
    about = pa.concat_tables(abouts)
    hashes = [zlib.crc32(i.encode()) for i in about.column("object_id").to_pylist()]
    order = np.argsort(hashes, kind="stable")[: most or None]
    tokens = {m: _rows(_joined([p[m] for p in parts]), order) for m in names}
    return Asked(tokens, about.take(pa.array(order)).select(list(columns)).combine_chunks())


def _blank(width: int, dtype: np.dtype[np.unsignedinteger], n: int) -> TokenArray:
    return TokenArray(np.zeros((n, width), dtype), np.zeros(n, bool), np.zeros(n, np.int64))


def _rows(tokens: TokenArray, rows: NDArray[np.int64]) -> TokenArray:
    return TokenArray(tokens.values[rows], tokens.present[rows], tokens.length[rows])


def _joined(parts: Sequence[TokenArray]) -> TokenArray:
    values, present, length = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return TokenArray(values, present, length)
