"""Faults that a store has to bear, by their numbers in the list of faults; `test_crash.py` has them at every call."""

import errno
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skycairn.pile import disk, files, leases
from skycairn.pile.collect import collect
from skycairn.pile.content import canonical_json
from skycairn.pile.files import Conflict, Damaged, Locked, NotAPile, PileError, sealed
from skycairn.pile.hdf5shards import open_shard, write_shard
from skycairn.pile.lock import builder_lock
from skycairn.pile.receipt import Part, Receipt, task_key
from skycairn.pile.shards import ShardReader, TokenArray, TokenColumn, shard_schema, shard_table
from skycairn.pile.store import Draft, Entry, Pile

KEY = task_key("step", 1, {}, {})
TABLE = pa.table({"a": np.arange(500), "b": np.random.default_rng(0).random(500)})


@pytest.fixture
def pile(tmp_path: Path) -> Pile:
    """A pile with one snapshot."""
    pile = Pile.create(tmp_path / "pile")
    pile.commit(Draft({}, {"t": [Entry({}, pile.put_table(pa.table({"a": [1]})))]}))
    return pile


def build(pile: Pile) -> None:
    part = pile.put_table(TABLE)
    pile.put_receipt(Receipt(KEY, "step", "", {}, {}, {"x": part}, {}))
    pile.commit(Draft({}, {"t": [Entry({}, part)]}))


def built(pile: Pile) -> None:
    """The next run ends where an undisturbed one does, and leaves nothing."""
    assert pile.verify().sound
    build(pile)
    pile = Pile.open(pile.root)
    found = pile.verify()
    assert found.sound and (found.n_orphans, found.n_strange) == (0, 0)
    assert pile.snapshots() == [1, 2] and pile.read_table(pile.snapshot().part("t")).equals(TABLE)
    assert list((pile.root / "tmp").iterdir()) == []


# -- killed


KILLED = """
import os, signal, sys
import numpy as np, pyarrow as pa
from skycairn.pile import disk
from skycairn.pile.receipt import Receipt, task_key
from skycairn.pile.store import Draft, Entry, Pile
call, folder, nth = sys.argv[2], sys.argv[3], int(sys.argv[4])
def kill(op):
    global nth
    if op.call == call and (op.target or op.path).is_relative_to(os.path.join(sys.argv[1], folder)):
        nth -= 1
        if nth == 0:
            if op.data is not None:
                os.write(op.fd, op.data[: len(op.data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
pile = Pile.open(sys.argv[1])
with disk.watch(kill):
    part = pile.put_table(pa.table({"a": np.arange(500), "b": np.random.default_rng(0).random(500)}))
    pile.put_receipt(Receipt(task_key("step", 1, {}, {}), "step", "", {}, {}, {"x": part}, {}))
    pile.commit(Draft({}, {"t": [Entry({}, part)]}))
"""


def kill(pile: Pile, call: str, folder: str, nth: int = 1) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(pile.root), call, folder, str(nth)], check=False, stderr=subprocess.PIPE
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def test_fault_02_killed_while_writing_a_part(pile: Pile) -> None:
    kill(pile, "write", "tmp", 3)
    assert pile.verify().n_orphans == 0 and len(list((pile.root / "tmp").iterdir())) == 1
    built(pile)


def test_fault_03_killed_between_flush_and_rename(pile: Pile) -> None:
    kill(pile, "replace", "parts")
    assert pile.verify().n_orphans == 0 and len(list((pile.root / "tmp").iterdir())) == 1
    assert pile.receipt(KEY) is None
    built(pile)


def test_fault_04_killed_between_part_and_commit(pile: Pile) -> None:
    kill(pile, "create", "tmp", 2)
    (orphan,) = (p for p in (pile.root / "parts").rglob("*.parquet") if p.name not in named(pile))
    inode = orphan.stat().st_ino
    assert pile.verify().n_orphans == 1 and pile.snapshots() == [1]
    built(pile)
    assert orphan.stat().st_ino == inode, "the part was made again"


def named(pile: Pile) -> set[str]:
    return {pile.path(part).name for part in pile.snapshot().parts()}


@pytest.mark.parametrize(("call", "folder", "nth", "number"), [("link", "snapshots", 1, 1), ("unlink", "tmp", 3, 2)])
def test_fault_05_killed_as_the_snapshot_gets_its_name(
    pile: Pile, call: str, folder: str, nth: int, number: int
) -> None:
    kill(pile, call, folder, nth)
    assert pile.snapshot().number == number and pile.verify().sound
    built(pile)


# -- the same work twice, and at once


def test_fault_12_the_same_part_and_receipt_written_twice_at_once(pile: Pile) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        parts = pool.map(twice, [str(pile.root)] * 6)
    assert len(set(parts)) == 1
    receipt = pile.receipt(KEY)
    assert receipt is not None and receipt.outputs["x"].sha256 == parts[0]
    found = pile.verify()
    assert found.sound and (found.n_orphans, found.n_strange) == (0, 0)
    with ThreadPoolExecutor(8) as pool8:
        assert set(pool8.map(twice, [str(pile.root)] * 16)) == set(parts)
    assert pile.receipt(KEY) == receipt and pile.verify().sound and list((pile.root / "tmp").iterdir()) == []


def twice(root: str) -> str:
    pile = Pile.open(root)
    for _ in range(3):
        part = pile.put_table(TABLE)
        pile.put_receipt(Receipt(KEY, "step", "", {}, {}, {"x": part}, {}))
    return part.sha256


HOLDS = """
import sys
from pathlib import Path
from skycairn.pile.lock import builder_lock
with builder_lock(Path(sys.argv[1]), "build tiny"):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(root: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    return process


def test_fault_13_a_second_builder_is_told_who_builds(pile: Pile) -> None:
    process = holder(pile.root)
    try:
        with pytest.raises(Locked, match=rf"process {process.pid} on .*\(build tiny\)"), builder_lock(pile.root):
            pass
        with pytest.raises(Locked, match=str(process.pid)):
            collect(pile)
    finally:
        process.communicate()


def test_fault_13_a_change_made_for_another_head_is_refused(pile: Pile) -> None:
    mine, other = (Draft({"who": w}, pile.snapshot().tables) for w in ("me", "other"))
    pile.commit(other, parent=1)
    with pytest.raises(Conflict, match="made for snapshot 1, the head is 2; make it again"):
        pile.commit(mine, parent=1)
    assert pile.snapshots() == [1, 2]
    # one who says nothing of a head replaces what is there
    assert pile.commit(mine).number == 3
    with pytest.raises(Conflict, match="made for snapshot None, the head is 3"):
        pile.commit(mine, parent=None)


def test_fault_13_a_rival_between_look_and_commit_is_a_conflict(pile: Pile) -> None:
    def rival(op: disk.Op) -> None:
        if op.call == "link" and pile.snapshots() == [1]:
            pile.snapshot_path(2).write_bytes(sealed({**pile.snapshot(1).to_json(), "number": 2, "parent": 1}))

    with disk.watch(rival), pytest.raises(Conflict, match="the head is 2"):
        pile.commit(Draft({"who": "me"}, pile.snapshot().tables), parent=1)


def test_fault_14_the_lock_of_one_who_died_is_taken_over(pile: Pile) -> None:
    process = holder(pile.root)
    process.kill()
    process.communicate()
    assert json.loads((pile.root / "locks" / "builder.lock").read_bytes())["pid"] == process.pid
    with builder_lock(pile.root):
        assert json.loads((pile.root / "locks" / "builder.lock").read_bytes())["pid"] == os.getpid()


# -- a disk that is full, fails, or may not be written


def failing(call: str, code: int, folder: str = "") -> tuple[Callable[[disk.Op], None], list[str]]:
    """An observer that fails each call of a kind; and how often it was made."""
    made: list[str] = []

    def fail(op: disk.Op) -> None:
        if op.call == call and folder in str(op.target or op.path):
            made.append(str(op.path))
            raise OSError(code, os.strerror(code))

    return fail, made


@pytest.mark.parametrize("call", ["create", "write", "fsync", "replace", "link", "sync_folder"])
def test_fault_15_a_full_disk(pile: Pile, call: str) -> None:
    fail, made = failing(call, errno.ENOSPC)
    with disk.watch(fail), pytest.raises(OSError, match="No space left on device: '/"):
        build(pile)
    assert made and pile.snapshots() == [1] and list((pile.root / "tmp").iterdir()) == []
    built(pile)


@pytest.mark.parametrize(
    ("call", "folder"),
    [("fsync", "/tmp/"), ("sync_folder", "/parts"), ("sync_folder", "/receipts"), ("sync_folder", "/snapshots")],
)
def test_fault_16_a_flush_that_failed_is_not_tried_again(pile: Pile, call: str, folder: str) -> None:
    fail, made = failing(call, errno.EIO, str(pile.root) + folder)
    with disk.watch(fail), pytest.raises(OSError, match="Input/output error"):
        build(pile)
    assert len(made) == 1
    # what was not flushed has no name, or was not promised
    if call == "fsync":
        assert pile.receipt(KEY) is None and pile.verify().n_orphans == 0
    if folder != "/snapshots":
        assert pile.snapshots() == [1]
    built(pile)


def test_fault_17_a_file_larger_than_is_allowed(pile: Pile) -> None:
    code = (
        "import resource, sys, pyarrow as pa; from skycairn.pile.store import Draft, Entry, Pile\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "pile = Pile.open(sys.argv[1])\n"
        "try:\n"
        "    part = pile.put_bytes(bytes(range(256)) * 100, '.bin')\n"
        "    pile.commit(Draft({}, {'t': [Entry({}, part)]}))\n"
        "except OSError as error:\n"
        "    print(error.errno, error.filename)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(pile.root)], capture_output=True, text=True, check=False)
    number, path = done.stdout.split()
    assert int(number) == errno.EFBIG and path.startswith(str(pile.root / "tmp")), done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096
    assert pile.snapshots() == [1] and pile.verify().n_orphans == 0 and list((pile.root / "tmp").iterdir()) == []
    built(pile)


def test_fault_17_a_folder_that_may_only_be_read(pile: Pile) -> None:
    if os.geteuid() == 0:
        # who may do all is refused nothing: the disk says so instead
        fail, _ = failing("create", errno.EACCES)
    else:
        (pile.root / "tmp").chmod(0o555)
        fail, _ = failing("nothing", 0)
    try:
        with disk.watch(fail), pytest.raises(PermissionError, match=str(pile.root / "tmp")):
            build(pile)
    finally:
        (pile.root / "tmp").chmod(0o755)
    assert pile.snapshots() == [1]
    built(pile)


# -- damage


COLUMN = TokenColumn("gaia.parallax", "5" * 64, 1024, 1, "scalar", (), True, "tok_parallax")
SHARD = shard_schema(pa.schema([pa.field("object_id", pa.string(), nullable=False)]), [COLUMN], "train", "gaia")


def shard() -> pa.Table:
    n = 200
    present = np.arange(n) % 3 > 0
    tokens = {COLUMN.modality: TokenArray((np.arange(n) % 1024)[:, None], present, present.astype(np.int64))}
    status = {COLUMN.modality: ["present" if p else "not detected" for p in present]}
    return shard_table(pa.table({"object_id": [f"gaia:{i}" for i in range(n)]}), tokens, status, SHARD)


@pytest.fixture
def readers(tmp_path: Path) -> tuple[Pile, dict[Part, Callable[[], Any]]]:
    """Parts of every kind, and what first opens each."""
    pile = Pile.create(tmp_path / "pile")
    table, codec = pile.put_table(TABLE, 100), pile.put_bytes(bytes(range(256)) * 4, ".safetensors")
    with pile.table_writer(SHARD, 64) as file:
        file.write(shard())
    twin = tmp_path / "shard.h5"
    with ShardReader(pile.path(file.part)) as reader, files.PendingFile(tmp_path) as pending:
        write_shard(reader, pending)
        pending.publish(twin)
    h5 = pile.put_file(twin, 200, file.part.content_id)
    parts = [table, codec, file.part, h5]
    pile.commit(Draft({}, {"t": [Entry({"i": i}, part) for i, part in enumerate(parts)]}))
    opened = {
        table: lambda: pile.read_table(table),
        codec: lambda: pile.read_bytes(codec),
        file.part: lambda: open_shard(pile.path(file.part), file.part.sha256).close(),
        h5: lambda: open_shard(pile.path(h5), h5.sha256).close(),
    }
    return pile, opened


def test_fault_22_every_flipped_bit_and_every_cut_is_found(
    readers: tuple[Pile, dict[Part, Callable[[], Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pile, opened = readers
    for read in opened.values():
        read()
    rng, parts = np.random.default_rng(7), list(opened)
    raws = {part: pile.path(part).read_bytes() for part in parts}
    for n in range(250):
        part = parts[n % len(parts)]
        raw, path = raws[part], pile.path(part)
        if n < 200:
            place, bit = int(rng.integers(len(raw))), int(rng.integers(8))
            broken = raw[:place] + bytes([raw[place] ^ (1 << bit)]) + raw[place + 1 :]
        else:
            broken = raw[: int(rng.integers(len(raw)))]
        path.chmod(0o644)
        path.write_bytes(broken)
        (problem,) = pile.verify().problems
        assert problem.part == part and problem.kind == "part" and not problem.missing
        # a process that opens it for the first time
        monkeypatch.setattr(files, "_verified", {})
        with pytest.raises(Damaged):
            opened[part]()
        path.write_bytes(raw)
    assert pile.verify().sound
    for read in opened.values():
        read()


# -- clocks


def test_fault_36_clocks_that_jump(pile: Pile, monkeypatch: pytest.MonkeyPatch) -> None:
    def ids() -> list[Any]:
        return [(pile.snapshot(n).content_id, files.file_sha256(pile.snapshot_path(n))) for n in pile.snapshots()]

    twin = Pile.create(pile.root.with_name("twin"))
    for n in range(3):
        for of, jump in ((pile, (-1) ** n * 86400.0), (twin, 0.0)):
            with monkeypatch.context() as patched:
                patched.setattr(time, "time", lambda jump=jump: 1.8e9 + jump)
                patched.setenv("TZ", ["UTC", "Pacific/Kiritimati", "America/Adak"][n] if jump else "UTC")
                time.tzset()
                of.commit(Draft({"n": n}, {"t": [Entry({}, of.put_table(pa.table({"n": [n]})))]}))
        # the newest snapshot looks the oldest, the oldest a day ahead
        os.utime(pile.snapshot_path(pile.snapshots()[-1]), (1e9 - n, 1e9 - n))
    time.tzset()
    os.utime(pile.snapshot_path(1), (time.time() + 86400,) * 2)
    assert pile.snapshots() == [1, 2, 3, 4] and pile.snapshot().recipe == {"n": 2}
    assert [pile.snapshot(n + 1).content_id for n in (1, 2, 3)] == [twin.snapshot(n).content_id for n in (1, 2, 3)]
    assert pile.put_table(TABLE) == twin.put_table(TABLE)
    # leases: a heartbeat in the future, and a disk whose clock has gone back, hold; no snapshot goes
    with pile.pin(1) as pinned:
        assert pinned.lease is not None
        lease = pinned.lease.rename(pinned.lease.with_name("0" * 12 + pinned.lease.name[12:]))
    true = leases.now_on_disk
    for jump in (-86400.0 * 3, -3600.0, 0.0, 82800.0):
        with monkeypatch.context() as patched:
            patched.setattr(leases, "now_on_disk", lambda folder, jump=jump: true(folder) + jump)
            assert pile.leases()[0].alive and 1 not in collect(pile, keep=1).snapshots
    before = ids()
    assert collect(pile, keep=2, delete=True).snapshots == (2,)
    lease.unlink()
    assert pile.snapshots() == [1, 3, 4] and ids() == [before[i] for i in (0, 2, 3)]


# -- malice


def places(pile: Pile) -> dict[str, Path]:
    return {
        "snapshot": pile.snapshot_path(1),
        "receipt": pile.receipt_path(KEY),
        "pile": pile.root / "pile.json",
        "tag": pile.root / "refs" / "tags" / "mine.json",
    }


def look(pile: Pile, kind: str) -> Any:
    if kind == "snapshot":
        return pile.snapshot(1)
    if kind == "receipt":
        return pile.receipt(KEY)
    return Pile.open(pile.root) if kind == "pile" else pile.tags()


@pytest.fixture
def rich(pile: Pile) -> Pile:
    """A pile with a file of each kind, all writable; and something beside it that is not to be touched."""
    pile.put_receipt(Receipt(KEY, "step", "", {"a": 1}, {}, {"x": pile.put_table(TABLE)}, {"rows": 1}))
    pile.tag("mine", 1)
    for path in places(pile).values():
        path.chmod(0o644)
    (pile.root.parent / "precious").write_text("precious")
    return pile


def outside(pile: Pile) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in pile.root.parent.rglob("*") if p.is_file() and pile.root not in p.parents}


def malice() -> dict[str, bytes]:
    nested = b"[" * 100_000 + b"]" * 100_000
    return {
        "a key twice": b'{"format":1,"format":1}',
        "a key twice, deep": b'{"format":1,"x":[{"a":{"b":1,"b":2}}]}',
        "NaN": b'{"format":NaN}',
        "Infinity": b'{"format":[1,-Infinity]}',
        "too large a number": b'{"format":1e999}',
        "deep": nested,
        "deep, in a value": b'{"format":1,"recipe":' + nested + b"}",
        "many digits": b'{"format":' + b"9" * 10_000 + b"}",
        "no text": b"\xff\xfe\x00",
        "half a pair": b'{"format":"\\ud800"}',
        "null": b"null",
        "a list": b"[]",
        "nothing": b"",
    }


@pytest.mark.parametrize("kind", ["snapshot", "receipt", "pile", "tag"])
@pytest.mark.parametrize("what", malice())
def test_fault_49_a_manifest_that_is_no_manifest(rich: Pile, kind: str, what: str) -> None:
    places(rich)[kind].write_bytes(malice()[what])
    with pytest.raises((Damaged, NotAPile), match=r"\.json"):
        look(rich, kind)
    if kind != "pile":
        assert not rich.verify().sound


def test_fault_49_two_values_of_one_key_under_a_right_seal(rich: Pile) -> None:
    path = places(rich)["receipt"]
    path.write_bytes(path.read_bytes().replace(b'"label":""', b'"label":"evil","label":""'))
    with pytest.raises(Damaged, match="the key 'label' comes twice"):
        rich.receipt(KEY)


def change(value: Any, at: list[Any], to: Any) -> Any:
    if not at:
        return to
    copy = value.copy()
    copy[at[0]] = change(value[at[0]], at[1:], to)
    return copy


EVIL = ["../../../etc/passwd", "/etc/passwd", "\\\\host\\share\\x", "a\0b", "..", "", " ", "x" * 5000, "C:\\x", "é/é"]
PART = ["tables", "t", 0, "part"]


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("at", [[*PART, "sha256"], [*PART, "suffix"], [*PART, "content_id"], ["content_id"]])
def test_fault_49_names_that_lead_out_of_the_pile(rich: Pile, evil: str, at: list[Any]) -> None:
    body = rich.snapshot(1).to_json()
    rich.snapshot_path(1).write_bytes(sealed(change(body, at, evil)))
    with pytest.raises(Damaged, match="restore it from a copy"):
        rich.snapshot(1)
    before = outside(rich)
    receipt = rich.receipt(KEY)
    assert receipt is not None
    if at[-1] != "content_id":
        told = change(receipt.to_json(), ["outputs", "x", at[-1]], evil)
        rich.receipt_path(KEY).write_bytes(sealed(told))
        with pytest.raises(Damaged, match="its task runs again"):
            rich.receipt(KEY)
    with pytest.raises(ValueError):
        rich.put_bytes(b"x", evil)
    with pytest.raises(ValueError):
        rich.receipt(evil)
    with pytest.raises(ValueError):
        rich.read_table(evil)
    with pytest.raises(ValueError):
        rich.tag(evil, 1)
    assert outside(rich) == before


@pytest.mark.parametrize(
    ("at", "to"),
    [
        (["number"], 1.0),
        (["number"], True),
        (["number"], -1),
        (["number"], 2),
        (["parent"], "1"),
        (["parent"], 1.5),
        (["recipe"], []),
        (["stats"], None),
        (["tables"], []),
        (["tables", "t"], {}),
        (["tables", "t", 0], []),
        (["tables", "t", 0, "labels"], []),
        (["tables", "t", 0, "labels"], {"cell": [1]}),
        ([*PART, "n_bytes"], -1),
        ([*PART, "n_rows"], True),
        ([*PART], {}),
        (["held_back"], 7),
        (["format"], 2),
    ],
)
def test_fault_49_a_snapshot_of_strange_values(rich: Pile, at: list[Any], to: Any) -> None:
    rich.snapshot_path(1).write_bytes(sealed(change(rich.snapshot(1).to_json(), at, to)))
    with pytest.raises(Damaged):
        rich.snapshot(1)


@pytest.mark.parametrize("kind", ["snapshot", "receipt", "pile", "tag"])
def test_fault_49_a_giant_is_refused_before_it_is_read(rich: Pile, kind: str) -> None:
    path = places(rich)[kind]
    with path.open("r+b") as file:
        file.truncate(files.MOST_BYTES + 1)
    with pytest.raises((Damaged, NotAPile), match=f"has {files.MOST_BYTES + 1} bytes, more than"):
        look(rich, kind)


def test_fault_49_a_snapshot_that_could_not_be_read_is_not_committed(
    pile: Pile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skycairn.pile.store.MOST_BYTES", 2000)
    with pytest.raises(ValueError, match="more than 2000; put tables into parts"):
        pile.commit(Draft({"x": "y" * 2000}, pile.snapshot().tables))
    assert pile.snapshots() == [1]


def test_fault_49_symbolic_links_are_not_followed(rich: Pile) -> None:
    precious = rich.root.parent / "precious"
    precious.write_bytes(b"secret")
    part = Part(hashlib.sha256(b"secret").hexdigest(), ".txt", 6, 0, hashlib.sha256(b"secret").hexdigest())
    path = rich.path(part)
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(precious)
    assert not rich.has(part)
    with pytest.raises(Damaged, match="symbolic link"):
        rich.read_bytes(part)
    # what is put there takes the link's place, not its target's
    rich.put_bytes(b"secret", ".txt")
    assert not path.is_symlink() and rich.read_bytes(part) == b"secret"
    table = rich.snapshot(1).part("t")
    copied = rich.root.parent / "copied"
    shutil.copy(rich.path(table), copied)
    rich.path(table).unlink()
    rich.path(table).symlink_to(copied)
    for read in (lambda: rich.read_table(table), lambda: rich.read_table(table.sha256)):
        with pytest.raises(Damaged, match="symbolic link"):
            read()
    assert [p.part for p in rich.verify().problems] == [table]
    for kind in ("snapshot", "receipt", "tag"):
        path = places(rich)[kind]
        moved = path.rename(rich.root.parent / kind)
        path.symlink_to(moved)
        with pytest.raises(Damaged, match="symbolic link"):
            look(rich, kind)
    assert precious.read_bytes() == b"secret"


@pytest.mark.parametrize("folder", ["parts", "receipts", "snapshots", "tmp", "refs", "leases", "locks", "quarantine"])
def test_fault_49_a_folder_that_is_a_link_is_not_written_into(rich: Pile, folder: str) -> None:
    place = rich.root.parent / "elsewhere"
    if (rich.root / folder).exists():
        (rich.root / folder).rename(place)
    else:
        place.mkdir()
    (rich.root / folder).symlink_to(place)
    before = outside(rich)
    fresh = pa.table({"fresh": [1]})
    with pytest.raises(Damaged, match="symbolic link"):
        part = rich.put_table(fresh)
        rich.put_receipt(Receipt(task_key("fresh", 1, {}, {}), "fresh", "", {}, {}, {"x": part}, {}))
        rich.commit(Draft({}, {"t": [Entry({}, part)]}))
        rich.tag("fresh", 2)
        rich.pin().close()
        rich.path(part).chmod(0o644)
        rich.path(part).write_bytes(b"")
        from skycairn.pile.verify import quarantine

        quarantine(rich, rich.verify().problems)
        with builder_lock(rich.root):
            pass
    assert outside(rich) == before


@pytest.mark.parametrize("name", ["a\\b.json", "a\nb.x y", ".json", "name.JSON", "noSuffix", "x." + "s" * 30])
def test_fault_49_odd_names_of_files_are_refused(pile: Pile, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "codec"
    folder.mkdir()
    (folder / name).write_bytes(b"x")
    before = {p.name for p in (pile.root / "parts").rglob("*")}
    with pytest.raises(ValueError, match=r"plain file name|suffix of a part"):
        pile.put_folder(folder)
    assert {p.name for p in (pile.root / "parts").rglob("*")} == before


@pytest.mark.parametrize("name", [n for n in EVIL if n != " "])
def test_fault_49_parts_are_not_restored_outside_their_folder(pile: Pile, tmp_path: Path, name: str) -> None:
    part = pile.put_bytes(b"x", ".txt")
    with pytest.raises(ValueError, match="not a plain file name"):
        pile.restore_folder({"good": part, name: part}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_fault_49_parts_are_not_restored_through_a_link(pile: Pile, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out" / "x").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic link"):
        pile.restore_folder({"x": pile.put_bytes(b"x", ".txt")}, tmp_path / "out")
    assert (tmp_path / "precious").read_text() == "precious"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fault_49_garbage_is_damage_and_nothing_else(rich: Pile, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["snapshot", "receipt", "pile", "tag"]))
    path = places(rich)[kind]
    raw = path.read_bytes()
    try:
        if data.draw(st.booleans()):
            path.write_bytes(data.draw(st.binary(max_size=200)))
        else:
            # a right seal on a body of which one value is another
            body = json.loads(raw)
            body.pop("sha256", None)
            name = data.draw(st.sampled_from(sorted(body)))
            body[name] = data.draw(JSON)
            try:
                path.write_bytes(sealed(body))
            except UnicodeEncodeError:
                return
        try:
            look(rich, kind)
        except PileError:
            pass
        rich.verify()
        rich.history()
    finally:
        path.write_bytes(raw)


def test_fault_49_many_entries(rich: Pile) -> None:
    """They are read, in reasonable time and memory: the cap is one of bytes."""
    part = rich.snapshot(1).part("t")
    entries = [Entry({"i": i}, part) for i in range(20_000)]
    found = rich.commit(Draft({}, {"t": entries}))
    assert len(rich.snapshot(2).entries("t")) == 20_000 and found.number == 2
    assert rich.snapshot_path(2).stat().st_size < 20_000 * 300 < files.MOST_BYTES / 50
    assert len(canonical_json(entries[0].part.to_json())) > 200


def external_storage(file: h5py.File, secret: Path) -> None:
    layout = {"shape": (4, 1), "dtype": np.uint16, "external": [(str(secret), 0, 8)]}
    file.create_group("gaia.parallax").create_dataset("tokens", **layout)
    the_rest(file)


def the_rest(file: h5py.File) -> None:
    file["gaia.parallax"].attrs["starts"] = np.array([0, 4])
    file["gaia.parallax"].create_dataset("present", data=np.ones(4, bool), chunks=(4,))


def external_link(file: h5py.File, secret: Path) -> None:
    file["gaia.parallax"] = h5py.ExternalLink(str(secret.with_name("other.h5")), "/x")


def soft_link(file: h5py.File, secret: Path) -> None:
    file["gaia.parallax"] = h5py.SoftLink("/elsewhere")


def virtual(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout(shape=(4, 1), dtype=np.uint16)
    layout[:] = h5py.VirtualSource(str(secret.with_name("other.h5")), "x", shape=(4, 1))
    file.create_virtual_dataset("gaia.parallax/tokens", layout)
    the_rest(file)


@pytest.mark.parametrize("make", [external_storage, external_link, soft_link, virtual])
def test_fault_52_hdf5_that_reads_other_files(tmp_path: Path, make: Callable[[h5py.File, Path], None]) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(range(8)))
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = np.frombuffer(b"password", np.uint16).reshape(4, 1) % 1024
    schema = SHARD.remove_metadata()
    path = tmp_path / "evil.h5"
    with h5py.File(path, "w") as file:
        for key, value in SHARD.metadata.items():
            file.attrs[key.decode()] = np.bytes_(value)
        file.attrs["row_groups"] = np.array([4])
        file.attrs["arrow_schema"] = np.frombuffer(schema.serialize(), np.uint8)
        make(file, secret)
    with pytest.raises(Damaged, match=r"refer to no other file|is a link"):
        with open_shard(path) as shard:
            shard.tokens(0)


class Evil:
    """Runs a command where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def test_fault_52_pickles_are_not_read(pile: Pile, tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.npy"
    np.save(path, np.array([Evil(marker)], dtype=object), allow_pickle=True)
    with pytest.raises(Damaged, match="neither Parquet's nor HDF5's"):
        open_shard(path)
    part = pile.put_file(path)
    with pytest.raises(ValueError, match=r"is a \.npy file, not a table"):
        pile.read_table(part)
    with pytest.raises(Damaged):
        open_shard(pile.path(part), part.sha256)
    pile.commit(Draft({}, {"t": [Entry({}, part)]}))
    assert pile.verify().sound and not marker.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.load(path, allow_pickle=True)
    assert marker.exists(), "it would have run"
