"""Piles of a few small shards, for tests of what reads them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from skycairn.pile.shards import TokenArray, TokenColumn, shard_schema, shard_table
from skycairn.pile.store import Draft, Entry, Pile

COLUMNS = (
    TokenColumn("desi.spectrum", "d" * 64, 9, 5, "line", (5,), False, "tok_spectrum_desi"),
    TokenColumn("desi.z", "e" * 64, 50, 1, "scalar", (), True, "tok_z"),
    TokenColumn("gaia.parallax", "c" * 64, 60_000, 1, "scalar", (), True, "tok_parallax"),
    TokenColumn("legacysurvey.catalog", "f" * 64, 30, 7, "sequence", (7,), False, "catalog"),
    TokenColumn("legacysurvey.image", "a" * 64, 4000, 16, "grid", (4, 4), False, "tok_image"),
)


def write_pile(
    root: Path,
    strata: Mapping[str, Sequence[int]],
    group_rows: int = 10,
    columns: Sequence[TokenColumn] = COLUMNS,
    present: float = 0.7,
    split: str = "train",
    seed: int = 0,
) -> Pile:
    """Of each stratum shards of so many rows; the modalities of its surveys are present at random."""
    pile, entries, rng = Pile.create(root), [], np.random.default_rng(seed)
    for stratum, rows in strata.items():
        for cell, n in enumerate(rows):
            ids = pa.table({"object_id": [f"{stratum}:{cell}:{k}" for k in range(n)]})
            tokens, status = {}, {}
            for c in columns:
                there = (rng.random(n) < present) & (c.modality.split(".")[0] in stratum.split("+"))
                length = np.where(there, c.n_tokens, 0)
                if c.layout == "sequence":
                    length = np.where(there, rng.integers(0, c.n_tokens + 1, n), 0)
                values = rng.integers(0, c.vocabulary, (n, c.n_tokens)).astype(c.dtype)
                tokens[c.modality] = TokenArray(values, there, length)
                status[c.modality] = np.where(there, "present", "not observed").tolist()
            schema = shard_schema(ids.schema, columns, split, stratum)
            with pile.table_writer(schema, row_group_rows=group_rows) as writer:
                writer.write(shard_table(ids, tokens, status, schema))
            entries.append(Entry({"cell": cell, "split": split, "stratum": stratum}, writer.part))
    pile.commit(Draft(recipe={}, tables={"shards": entries}))
    return pile
