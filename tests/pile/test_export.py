"""An export is whole, or says that it is not; what is read of it is the pile's."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from skycairn.model.loader import Loader
from skycairn.model.rules import Masking
from skycairn.model.strata import Source
from skycairn.pile import export as exports
from skycairn.pile.export import Export, export_hdf5
from skycairn.pile.files import Damaged, NotAPile, PendingFile, file_sha256
from skycairn.pile.hdf5shards import Hdf5ShardReader, write_shard
from skycairn.pile.shards import ShardReader
from skycairn.pile.snapshot import Draft, Entry
from skycairn.pile.store import Pile


@pytest.fixture(scope="module")
def pile(tiny_pile: Path) -> Pile:
    return Pile.open(tiny_pile)


@pytest.fixture(scope="module")
def exported(pile: Pile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "h5"
    _, n_written = export_hdf5(pile, pile.snapshot(), out)
    assert n_written == len(pile.snapshot().entries("shards"))
    return out


def test_the_manifest_tells_of_every_file(pile: Pile, exported: Path) -> None:
    told = json.loads((exported / "manifest.json").read_bytes())
    there = {p.relative_to(exported).as_posix() for p in exported.rglob("*") if p.is_file()}
    assert there == {f["path"] for f in told["files"]} | {"manifest.json"}
    assert told["content_id"] == pile.snapshot().content_id
    for entry, file in zip(pile.snapshot().entries("shards"), told["files"], strict=True):
        path = exported / file["path"]
        assert (path.stat().st_size, file_sha256(path)) == (file["bytes"], file["sha256"])
        assert (entry.labels, entry.part.n_rows) == (file["labels"], file["rows"])
        assert path.parent.name == entry.labels["split"]
        assert path.name.rsplit("-", 1)[0] == entry.labels["stratum"]
        with Hdf5ShardReader(path, file["sha256"]) as reader:
            assert {n: c.codec_id for n, c in reader.columns.items()} == told["codec_ids"]
        with h5py.File(path) as h5:
            assert (
                h5.attrs["content_id"] == told["content_id"].encode() and h5.attrs["snapshot"] == told["snapshot"] == 1
            )


def test_microbatches_are_those_of_the_pile(pile: Pile, exported: Path) -> None:
    export = Export.open(exported)
    for split in sorted({str(e.labels["split"]) for e in export.entries}):
        mine, theirs = (
            Loader([Source(p, p.snapshot(), "tiny")], split, Masking(), objects=7, seed=5) for p in (export, pile)
        )
        assert mine.identity == theirs.identity
        for i in (0, 3):
            assert all(np.array_equal(a, b) for a, b in zip(mine.rows(i), theirs.rows(i), strict=True))


def test_a_second_run_does_nothing(pile: Pile, exported: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in exported.rglob("*")}
    export, n_written = export_hdf5(pile, pile.snapshot(), exported)
    assert n_written == 0 and export.n_rows == sum(e.part.n_rows for e in pile.snapshot().entries("shards"))
    assert {p: p.stat().st_mtime_ns for p in exported.rglob("*")} == before


def test_an_interrupted_run_goes_on(pile: Pile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Path] = []

    def dies(shard: ShardReader, file: PendingFile, **of: Any) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        write_shard(shard, file, **of)
        done.append(shard.path)

    out = tmp_path / "h5"
    with monkeypatch.context() as patched:
        patched.setattr(exports, "write_shard", dies)
        with pytest.raises(KeyboardInterrupt):
            export_hdf5(pile, pile.snapshot(), out)
    with pytest.raises(NotAPile, match="is not finished; export again and it goes on"):
        Export.open(out)
    files = sorted(out.rglob("*.h5"))
    assert len(files) == 2
    # one of the two is damaged meanwhile
    files[0].chmod(0o644)
    files[0].write_bytes(files[0].read_bytes()[:-1])
    export, n_written = export_hdf5(pile, pile.snapshot(), out)
    assert n_written == len(export.entries) - 1
    assert not (out / "unfinished.json").exists()
    for entry in export.entries:
        with Hdf5ShardReader(export.path(entry.part), entry.part.sha256) as reader:
            assert len(list(reader)) == len(reader.row_groups)


def test_another_export_is_refused(pile: Pile, exported: Path, tmp_path: Path) -> None:
    split = str(pile.snapshot().entries("shards")[0].labels["split"])
    with pytest.raises(NotAPile, match="another export: its split is ''"):
        export_hdf5(pile, pile.snapshot(), exported, split)
    other = Pile.create(tmp_path / "other")
    part = pile.snapshot().entries("shards")[0].part
    other.put_file(pile.path(part), part.n_rows, part.content_id)
    other.commit(Draft(recipe={}, tables={"shards": pile.snapshot().entries("shards")[:1]}))
    with pytest.raises(NotAPile, match="another export: its content_id is"):
        export_hdf5(other, other.snapshot(), exported)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(NotAPile, match=r"holds thesis\.tex and is no export"):
        export_hdf5(pile, pile.snapshot(), tmp_path / "full")
    with pytest.raises(ValueError, match="has no split 'dusk'; it has"):
        export_hdf5(pile, pile.snapshot(), tmp_path / "new", "dusk")
    assert not (tmp_path / "new").exists()


def test_other_row_groups_are_another_export(pile: Pile, tmp_path: Path) -> None:
    entry = next(e for e in pile.snapshot().entries("shards") if e.part.n_rows > 1)
    table = pq.read_table(pile.path(entry.part))
    made = []
    for name, rows in (("one", table.num_rows), ("two", 1)):
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=rows)
        made.append(Pile.create(tmp_path / name))
        part = made[-1].put_file(tmp_path / f"{name}.parquet", entry.part.n_rows, entry.part.content_id)
        made[-1].commit(Draft(recipe={}, tables={"shards": (Entry(entry.labels, part),)}))
    one, two = made
    assert one.snapshot().content_id == two.snapshot().content_id
    export_hdf5(one, one.snapshot(), tmp_path / "h5")
    with pytest.raises(NotAPile, match="another export: its parts is"):
        export_hdf5(two, two.snapshot(), tmp_path / "h5")


def test_a_broken_manifest_is_damage(pile: Pile, tmp_path: Path) -> None:
    split = str(pile.snapshot().entries("shards")[0].labels["split"])
    export, _ = export_hdf5(pile, pile.snapshot(), tmp_path / "h5", split)
    assert {e.labels["split"] for e in export.entries} == {split}
    manifest = tmp_path / "h5" / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_bytes(manifest.read_bytes().replace(b'"rows":', b'"rows":1', 1))
    with pytest.raises(Damaged, match=r"manifest\.json"):
        Export.open(tmp_path / "h5")
