"""Batches from shards."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from skycairn.model import batch as batch_module
from skycairn.model.batch import batches
from skycairn.pile.shards import TokenColumn, shard_schema, shard_table
from skycairn.pile.store import Draft, Entry, Pile

COLUMN = TokenColumn("gaia.parallax", "0" * 64, 5000, 1, "scalar", (), True, "tok_parallax")


@pytest.fixture
def pile(tmp_path: Path) -> Pile:
    pile = Pile.create(tmp_path / "pile")
    entries = []
    for i, (split, n) in enumerate((("train", 25), ("train", 7), ("test", 4))):
        objects = pa.table({"object_id": [f"gaia:{100 * i + k}" for k in range(n)]})
        schema = shard_schema(objects.schema, [COLUMN], split, "gaia")
        value = 100 * i + np.arange(n)
        table = shard_table(
            objects, {"gaia.parallax": (value, np.ones(n, bool))}, {"gaia.parallax": ["present"] * n}, schema
        )
        with pile.table_writer(schema, row_group_rows=10) as writer:
            writer.write(table)
        entries.append(Entry({"cell": i, "split": split, "stratum": "gaia"}, writer.part))
    pile.commit(Draft(recipe={}, tables={"shards": entries}))
    return pile


def tokens(pile: Pile, split: str, seed: int) -> list[int]:
    found = [b["gaia.parallax"].values[:, 0] for b in batches(pile, pile.snapshot(), split, 4, seed=seed)]
    return [int(v) for f in found for v in f]


def test_every_object_of_the_split_comes_once(pile: Pile) -> None:
    assert sorted(tokens(pile, "train", 0)) == [*range(25), *range(100, 107)]
    assert sorted(tokens(pile, "test", 0)) == [200, 201, 202, 203]


def test_the_order_hangs_on_the_seed_alone(pile: Pile) -> None:
    assert tokens(pile, "train", 1) == tokens(pile, "train", 1)
    assert tokens(pile, "train", 1) != tokens(pile, "train", 2)
    assert tokens(pile, "train", 1) != sorted(tokens(pile, "train", 1))


def test_no_batch_is_larger_than_asked(pile: Pile) -> None:
    sizes = [len(b["gaia.parallax"].present) for b in batches(pile, pile.snapshot(), "train", 4)]
    assert sizes == [4] * 8
    sizes = [len(b["gaia.parallax"].present) for b in batches(pile, pile.snapshot(), "train", 9)]
    assert sizes == [9, 9, 9, 5], "the last one alone is smaller, though row groups have 10 objects or fewer"
    with pytest.raises(ValueError, match="0 objects at a time"):
        next(batches(pile, pile.snapshot(), "train", 0))


def test_small_pools_lose_nothing(pile: Pile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "POOL", 6)
    assert sorted(tokens(pile, "train", 0)) == [*range(25), *range(100, 107)]
    assert [len(b["gaia.parallax"].present) for b in batches(pile, pile.snapshot(), "train", 5)] == [5] * 6 + [2]
    alike = [tokens(pile, "train", 3) for _ in range(2)]
    assert alike[0] == alike[1]


def test_a_split_that_is_not_there_is_named(pile: Pile) -> None:
    with pytest.raises(ValueError, match="no split 'guard'; it has test, train"):
        next(batches(pile, pile.snapshot(), "guard", 4))
