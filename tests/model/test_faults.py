"""Fault 53: a checkpoint that is damaged, or of another pile's codecs, is refused, and says of which."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from skycairn.model.batch import batches
from skycairn.model.evaluate import evaluate
from skycairn.model.network import SIZES, Model, Size
from skycairn.model.train import Config, load, train
from skycairn.pile.shards import TokenColumn, shard_schema, shard_table
from skycairn.pile.store import Draft, Entry, Pile

COLUMNS = (
    TokenColumn("gaia.parallax", "b" * 64, 8, 1, "scalar", (), True, "tok_parallax"),
    TokenColumn("legacysurvey.flux_g", "a" * 64, 12, 1, "scalar", (), True, "tok_flux_g"),
)
OTHER = (replace(COLUMNS[0], codec_id="c" * 64, vocabulary=9), COLUMNS[1])
"""The same modalities, one of them by another codec."""


def write_pile(root: Path, *every: tuple[TokenColumn, ...]) -> Pile:
    """A shard of each split, and where more columns are given one more of each by them."""
    pile, entries = Pile.create(root), []
    for number, split in enumerate(("train", "validation")):
        for k, columns in enumerate(every):
            rng = np.random.default_rng(number)
            names = [f"gaia:{number}{k}{i:04}" for i in range(200)]
            ids = pa.table({"object_id": names, "ra": rng.random(200) * 2, "dec": rng.random(200) * 2})
            there = np.ones(200, bool)
            values = {c.modality: (rng.integers(0, 8, 200), there) for c in columns}
            schema = shard_schema(ids.schema, columns, split, f"stratum {k}")
            with pile.table_writer(schema, row_group_rows=100) as writer:
                writer.write(shard_table(ids, values, {c.modality: ["present"] * 200 for c in columns}, schema))
            entries.append(Entry({"cell": number, "split": split, "stratum": f"stratum {k}"}, writer.part))
    pile.commit(Draft(recipe={}, tables={"shards": entries}))
    return pile


def run(pile: Pile, out: Path, steps: int = 6) -> Model:
    SIZES["fault"] = Size(1, 16, 2)
    config = Config(size="fault", steps=steps, batch=8, warm_up=2, check_every=3)
    return train(pile, pile.snapshot(), out, config, "cpu", lambda _: None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pile, Path, Model]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("faults")
    pile = write_pile(folder / "pile", COLUMNS)
    model = run(pile, folder / "out")
    torch.set_num_threads(before)
    return pile, folder / "out", model


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 4  # of the last weight; the header stays whole
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def pickled(path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, path)


def edited(path: Path) -> None:
    about = json.loads(path.read_text())
    about["config"]["learning_rate"] = 1.0
    path.write_text(json.dumps(about))


def older(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1}))


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("model.safetensors", flip, r"model\.safetensors: its sha256 is [0-9a-f]{12}\.\., about\.json says"),
        ("model.safetensors", cut, r"model\.safetensors: its sha256 is"),
        ("model.safetensors", pickled, r"model\.safetensors: its sha256 is"),
        ("model.safetensors", Path.unlink, r"model\.safetensors is not there"),
        ("optimizer.safetensors", flip, r"optimizer\.safetensors: its sha256 is"),
        ("optimizer.safetensors", Path.unlink, r"optimizer\.safetensors is not there"),
        ("about.json", edited, r"about\.json: is not what was written"),
        ("about.json", older, r"about\.json: format 1; this version reads 2"),
        ("about.json", cut, r"about\.json: is no JSON"),
        ("about.json", pickled, r"about\.json: is no JSON"),
    ],
)
def test_fault_53_a_damaged_checkpoint_is_refused(
    trained: tuple[Pile, Path, Model], tmp_path: Path, file: str, damage: Callable[[Path], Any], says: str
) -> None:
    pile, out, _ = trained
    copy = Path(shutil.copytree(out, tmp_path / "out"))
    load(copy / "last")
    damage(copy / "last" / file)
    if file != "optimizer.safetensors":
        with pytest.raises(ValueError, match=says):
            load(copy / "last")
    kept = {p.name: p.read_bytes() for p in (copy / "last").iterdir()}
    with pytest.raises(ValueError, match=says):
        run(pile, copy)
    assert {p.name: p.read_bytes() for p in (copy / "last").iterdir()} == kept, "nothing is written over it"


def test_fault_53_a_run_on_a_pile_of_other_codecs_names_both(trained: tuple[Pile, Path, Model], tmp_path: Path) -> None:
    _, out, _ = trained
    other = write_pile(tmp_path / "pile", OTHER)
    with pytest.raises(
        ValueError, match=rf"gaia\.parallax is there by the codec {'b' * 64} \(8 .*, wanted {'c' * 64} \(9"
    ):
        run(other, Path(shutil.copytree(out, tmp_path / "out")))


def test_fault_53_a_model_is_not_asked_about_tokens_of_other_codecs(
    trained: tuple[Pile, Path, Model], tmp_path: Path
) -> None:
    """Whose numbers mean other values, however like they look."""
    _, out, _ = trained
    other = write_pile(tmp_path / "pile", (replace(COLUMNS[0], codec_id="c" * 64), COLUMNS[1]))
    with pytest.raises(ValueError, match=rf"gaia\.parallax is there by the codec {'c' * 64} .*, wanted {'b' * 64}"):
        evaluate(load(out / "model"), other, other.snapshot())


def test_fault_53_a_snapshot_of_two_codecs_gives_no_batch(tmp_path: Path) -> None:
    pile = write_pile(tmp_path / "pile", COLUMNS, OTHER)
    with pytest.raises(ValueError, match=rf"gaia\.parallax by the codecs {'b' * 64} and {'c' * 64}; wanted one"):
        next(batches(pile, pile.snapshot(), "train", 8))
    with pytest.raises(ValueError, match=rf"gaia\.parallax by the codecs {'b' * 64} and {'c' * 64}; wanted one"):
        run(pile, tmp_path / "out")
