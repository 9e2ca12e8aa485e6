"""Learned codecs in a build: only what hangs on them is done, and they are loaded once."""

import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from skycairn.pile.store import Pile
from skycairn.pipeline import loaded as held
from skycairn.pipeline import recipe as recipes
from skycairn.pipeline.encode import _gathered
from skycairn.pipeline.run import build
from skycairn.pipeline.takeover import take_over
from skycairn.tokenizers.lock import lock_ids, read_lock, write_lock

sys.path.insert(0, str(Path(__file__).parents[1] / "tokenizers"))
from linearcodec import LinearCodec

IMAGE = "legacysurvey.image"


def tokens_of(pile: Pile, modality: str):
    tables = [pile.read_table(e.part) for e in pile.snapshot().entries(f"tokens.{modality}")]
    return pa.concat_tables(tables)


def n_tasks(pile: Pile, step: str, name: str) -> int:
    tasks = pa.concat_tables([pile.read_table(e.part) for e in pile.snapshot().entries("tasks")])
    return sum(label.startswith(f"{step} {name} ") for label in tasks["label"].to_pylist())


@pytest.fixture(scope="module")
def learned(tmp_path_factory, tiny_pile, tiny_recipe):
    """A pile that starts from the tiny one, with another codec of one modality."""
    folder = tmp_path_factory.mktemp("learned")
    write_lock(folder / "codecs.lock", {IMAGE: LinearCodec(seed=1, gain=100.0)})
    recipe = replace(tiny_recipe, codecs=replace(tiny_recipe.codecs, lock=str(folder / "codecs.lock")))
    built = build(recipe, folder / "pile", reuse=tiny_pile)
    return Pile.open(folder / "pile"), built, recipe


def test_only_what_hangs_on_the_codec_is_done(learned, tiny_pile):
    pile, built, _ = learned
    tiny = Pile.open(tiny_pile)
    steps = {s: n for s, n in built.done.items() if n}
    assert steps == {"encode payload": n_tasks(tiny, "encode payload", IMAGE), "objects": 4, "shard": 1}
    mine, theirs = lock_ids(pile.root / "codecs.lock"), lock_ids(tiny_pile / "codecs.lock")
    assert mine.keys() == theirs.keys()
    assert {m for m in mine if mine[m] != theirs[m]} == {IMAGE}
    for name, entries in tiny.snapshot().tables.items():
        same = [e.part for e in entries] == [e.part for e in pile.snapshot().entries(name)]
        assert same == (name not in ("codecs", "objects", f"tokens.{IMAGE}")) or name == "objects", name
    part = tiny.snapshot().entries("members")[0].part
    assert pile.path(part).samefile(tiny.path(part)), "parts are shared"


def test_the_tokens_are_the_codecs(learned):
    pile, _, _ = learned
    codec = read_lock(pile.root / "codecs.lock")[IMAGE]
    found = tokens_of(pile, IMAGE)
    present = found.filter(found["tokens"].is_valid())
    assert present.num_rows > 5 and set(found.filter(found["tokens"].is_null())["status"].to_pylist()) <= {
        "file absent",
        "not measured",
    }
    payload = pa.concat_tables([pile.read_table(e.part) for e in pile.snapshot().entries(f"payload.{IMAGE}")])
    row = dict(zip(zip(payload["owner"].to_pylist(), payload["key"].to_pylist(), strict=True), range(10**6)))  # noqa: B905
    at = [row[o, k] for o, k in zip(present["owner"].to_pylist(), present["key"].to_pylist(), strict=True)]
    payload = payload.take(at)
    flux, mask = (np.array(payload[c].to_pylist(), t) for c, t in (("flux", np.float32), ("mask", bool)))
    wanted = codec.encode({"flux": flux, "mask": mask})
    assert np.array_equal(np.array(present["tokens"].to_pylist()), wanted) and len(np.unique(wanted)) > 3


def test_another_codec_is_refused_then_exchanged(learned, tmp_path):
    pile, built, recipe = learned
    write_lock(tmp_path / "codecs.lock", {IMAGE: LinearCodec(seed=2, gain=100.0)})
    other = replace(recipe, codecs=replace(recipe.codecs, lock=str(tmp_path / "codecs.lock")))
    with pytest.raises(ValueError, match=r"another codec of legacysurvey\.image .* `skycairn refit --codecs-from`"):
        build(other, pile.root)
    plain = replace(recipe, codecs=replace(recipe.codecs, lock=""))
    again = build(plain, pile.root, codecs_from=tmp_path / "codecs.lock")
    assert dict(again.done) == {k: v for k, v in built.done.items() if v} | {
        k: v for k, v in again.done.items() if k == "lineage"
    }
    back = build(plain, pile.root, codecs_from=Path(recipe.codecs.lock))
    assert back.snapshot.content_id == built.snapshot.content_id
    assert not {"encode payload", "encode", "extract", "fit", "read"} & {s for s, n in back.done.items() if n}


def test_a_network_is_loaded_once_and_runs_on_one_thread(learned, monkeypatch):
    pile, _, _ = learned
    files: dict[str, dict] = {}
    for e in pile.snapshot().entries("codecs"):
        files.setdefault(e.labels["modality"], {})[e.labels["file"]] = e.part
    loads = Counter()
    monkeypatch.setattr(held, "_networks", type(held._networks)())

    def slow(folder, own=held.load):
        loads.update(["load"])
        time.sleep(0.02)
        return own(folder)

    monkeypatch.setattr(held, "load", slow)
    with ThreadPoolExecutor(3) as threads:
        first, second, third = threads.map(lambda _: held.codec_of_parts(pile, files[IMAGE]), range(3))
    assert first is second is third
    assert held.codec_of_parts(pile, files[IMAGE]) is first and loads["load"] == 1 and held.is_network(first)
    fitted = held.codec_of_parts(pile, files["hsc.image"])
    assert not held.is_network(fitted) and len(held._networks) == 1
    monkeypatch.setattr(held, "MOST_NETWORKS", 0)
    held._networks.clear()
    held.codec_of_parts(pile, files[IMAGE])
    assert not held._networks, "no more than so many are kept"
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    if not torch.cuda.is_available():
        with held.ready(first):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        one, other = held.ready(first), held.ready(first)
        one.__enter__()
        other.__enter__()
        one.__exit__(None, None, None)
        assert torch.get_num_threads() == 1, "until the last has left"
        other.__exit__(None, None, None)
        assert torch.get_num_threads() == 2
    with held.ready(fitted), held.ready(None):
        assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_pieces_are_gathered_in_their_order():
    tables = [pa.table({"key": np.arange(i, i + n)}) for i, n in ((0, 50), (50, 20), (70, 0), (70, 200), (270, 3))]
    found = list(_gathered(iter(tables)))
    assert [t.num_rows for t in found] == [70, 200, 3]
    assert pa.concat_tables(found)["key"].to_pylist() == list(range(273))
    assert list(_gathered(iter([]))) == []


def test_what_is_taken_over_is_whole_or_told(tmp_path, tiny_pile, monkeypatch):
    pile = Pile.create(tmp_path / "pile")
    with pytest.raises(ValueError, match="no finished work"):
        take_over(pile, tmp_path / "nothing")
    with pytest.raises(ValueError, match="no finished work"):
        take_over(pile, pile.root)

    def refuses(*_):
        raise OSError("no links here")

    monkeypatch.setattr("skycairn.pile.disk.os.link", refuses)
    n = take_over(pile, tiny_pile)
    assert n > 100 and take_over(pile, tiny_pile) == 0
    for receipt in pile.receipts():
        for part in receipt.outputs.values():
            assert pile.has(part) and pile.path(part).stat().st_nlink == 1


def test_the_recipe_names_the_lock_of_make_codecs():
    recipe = recipes.load("mock-learned")
    assert recipe.codecs.lock == str(Path("work/codecs/codecs.lock").resolve())
    mock = recipes.load("mock").rootless()
    assert {**recipe.rootless(), "name": "mock"} == mock
