from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from skycairn.pile import disk
from skycairn.pile.files import Damaged, PendingFile, check_sha256_once, sealed, unseal
from skycairn.pile.store import Draft, Entry, Pile


def test_bytes_reach_the_disk_before_the_name_does(tmp_path: Path) -> None:
    pile = Pile.create(tmp_path)
    pile.commit(Draft({}, {"t": [Entry({}, pile.put_bytes(b"a", ".txt"))]}))
    calls: list[str] = []

    def note(op: disk.Op) -> None:
        if op.call in ("fsync", "replace", "link", "sync_folder"):
            calls.append(f"{op.call} {(op.target or op.path).relative_to(tmp_path).parts[0]}")

    with disk.watch(note):
        part = pile.put_bytes(b"x", ".txt")
        assert calls == ["sync_folder parts", "fsync tmp", "replace parts", "sync_folder parts"]
        calls.clear()
        pile.commit(Draft({}, {"t": [Entry({}, part)]}))
        assert calls == ["fsync tmp", "link snapshots", "sync_folder snapshots"]


def test_an_existing_file_is_never_replaced_by_publish_new(tmp_path: Path) -> None:
    final = tmp_path / "snapshot"
    for data in (b"first", b"second"):
        with PendingFile(tmp_path) as file:
            file.write(data)
            if data == b"first":
                file.publish_new(final)
            else:
                with pytest.raises(FileExistsError):
                    file.publish_new(final)
    assert final.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [final]


def test_many_writers_of_the_same_bytes(tmp_path: Path) -> None:
    pile = Pile.create(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda i: pile.put_table(pa.table({"a": [i % 2] * 1000})), range(32)))
    assert len(set(parts)) == 2
    assert len([p for p in (tmp_path / "parts").rglob("*") if p.is_file()]) == 2
    assert [pile.read_table(p).column("a")[0].as_py() for p in parts[:2]] == [0, 1]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    with PendingFile(tmp_path) as file:
        file.write(b"abc")
        digest = file.sha256
        file.publish(tmp_path / "f")
    check_sha256_once(tmp_path / "f", digest)
    check_sha256_once(tmp_path / "f", digest)
    (tmp_path / "f").chmod(0o644)
    (tmp_path / "f").write_bytes(b"abd")
    with pytest.raises(Damaged, match="has the SHA-256"):
        check_sha256_once(tmp_path / "f", digest)


def test_a_sealed_file_carries_its_own_digest(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(sealed({"b": [1, 0.1], "a": "é"}))
    assert unseal(path, "do this") == {"a": "é", "b": [1, 0.1]}
    for text in (b'{"a": 1}', b'{"a": 1, "sha256": "00"}', b'{"a": NaN, "sha256": "00"}', b"\xff"):
        path.write_bytes(text)
        with pytest.raises(Damaged, match="do this"):
            unseal(path, "do this")
