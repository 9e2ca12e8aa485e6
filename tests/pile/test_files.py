from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from skycairn.pile import disk
from skycairn.pile.files import Damaged, PendingFile, check_sha256_once, make_folder, parse, sealed, unseal
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


@pytest.mark.parametrize("text", [b"NaN", b"[-Infinity]", b'{"a": 1, "a": 1}', b"[" * 100_000, b"", b"9" * 5000])
def test_json_that_readers_differ_in_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        parse(text)
    assert parse(b'{"a": [1, {"b": 1, "a": 2}]}') == {"a": [1, {"b": 1, "a": 2}]}


def test_a_folder_made_by_one_who_died_is_flushed_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    calls: list[tuple[str, str]] = []
    with disk.watch(lambda op: calls.append((op.call, op.path.name))):
        for _ in range(3):
            make_folder(tmp_path / "a")
        assert calls == [("sync_folder", tmp_path.name)]
        # another folder of the same name
        (tmp_path / "a").rename(tmp_path / "was a")
        make_folder(tmp_path / "a")
    assert calls[1:] == [("mkdir", "a"), ("sync_folder", tmp_path.name)]


def test_a_new_pile_is_flushed_up_to_what_was_there(tmp_path: Path) -> None:
    flushed: list[Path] = []
    with disk.watch(lambda op: flushed.append(op.path) if op.call == "sync_folder" else None):
        Pile.create(tmp_path / "a" / "b" / "c")
    for folder in (tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"):
        assert folder in flushed
