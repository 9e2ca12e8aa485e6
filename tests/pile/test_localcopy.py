"""Local copies: verified, made once, whole or not at all, whoever else copies."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from skycairn.pile import localcopy
from skycairn.pile.files import Damaged, Missing
from skycairn.pile.localcopy import LocalCopy
from skycairn.pile.receipt import Part
from skycairn.pile.store import Pile


@pytest.fixture
def pile(tmp_path: Path) -> Pile:
    return Pile.create(tmp_path / "pile")


def put(pile: Pile, n: int) -> Part:
    return pile.put_table(pa.table({"x": list(range(n))}))


def test_a_part_is_copied_once(pile: Pile, tmp_path: Path) -> None:
    part = put(pile, 100)
    near = LocalCopy(pile, tmp_path / "near" / "deep")
    path = near.path(part)
    assert path.read_bytes() == pile.path(part).read_bytes() and path.is_relative_to(tmp_path / "near")
    before = path.stat()
    assert near.path(part) == path and LocalCopy(pile, tmp_path / "near" / "deep").path(part).stat() == before
    pile.path(part).unlink()
    assert near.path(part) == path, "the original is not asked for again"
    assert not list((tmp_path / "near" / "deep" / "tmp").iterdir())


def test_a_damaged_copy_is_made_again(pile: Pile, tmp_path: Path) -> None:
    part = put(pile, 100)
    near = LocalCopy(pile, tmp_path / "near")
    path = near.path(part)
    whole = path.read_bytes()
    for damaged in (whole[:50], whole[:50] + b"\0" + whole[51:]):
        path.chmod(0o644)
        path.write_bytes(damaged)
        assert near.path(part).read_bytes() == whole


def test_a_damaged_original_is_named_and_not_kept(pile: Pile, tmp_path: Path) -> None:
    part = put(pile, 100)
    origin = pile.path(part)
    origin.chmod(0o644)
    origin.write_bytes(origin.read_bytes()[:-1] + b"x")
    near = LocalCopy(pile, tmp_path / "near")
    with pytest.raises(Damaged, match=f"{origin.name} has the SHA-256"):
        near.path(part)
    assert not list((tmp_path / "near").rglob("*.parquet")) and not list((tmp_path / "near" / "tmp").iterdir())
    origin.unlink()
    with pytest.raises(Missing, match=origin.name):
        near.path(part)


def test_all_parts_are_fetched_if_there_is_room(pile: Pile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [put(pile, n) for n in (10, 20, 30)]
    near = LocalCopy(pile, tmp_path / "near")
    near.path(parts[0])
    assert near.fetch(parts) == 2 and near.fetch(parts) == 0
    monkeypatch.setattr(localcopy.shutil, "disk_usage", lambda _: type("Free", (), {"free": 10}))
    assert near.fetch(parts) == 0
    with pytest.raises(OSError, match=r"bytes are to be copied and 10 are free; make room"):
        near.fetch([put(pile, 40)])


CODE = """
import sys
from pathlib import Path
from skycairn.pile.localcopy import LocalCopy
from skycairn.pile.store import Pile
pile = Pile.open(Path(sys.argv[1]))
near = LocalCopy(pile, Path(sys.argv[2]))
copied = []
copy = near._copy
near._copy = lambda part, path: (copied.append(part), copy(part, path))
sys.stdin.readline()
for part in pile.snapshot().parts():
    assert near.path(part).read_bytes() == pile.path(part).read_bytes()
print(len(copied))
"""


def test_processes_that_ask_at_once_copy_each_part_once(pile: Pile, tmp_path: Path) -> None:
    from skycairn.pile.store import Draft, Entry

    parts = [put(pile, 50_000 + n) for n in range(6)]
    pile.commit(Draft(recipe={}, tables={"t": [Entry({"n": i}, p) for i, p in enumerate(parts)]}))
    near = tmp_path / "near"
    command = [sys.executable, "-c", CODE, str(pile.root), str(near)]
    pipe = subprocess.PIPE
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env) for _ in range(3)]
    said = [p.communicate("go\n", timeout=120) for p in processes]
    assert not [err for _, err in said if err]
    assert sum(int(out) for out, _ in said) == 6
