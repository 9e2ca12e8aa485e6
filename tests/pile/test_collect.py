import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from skycairn.pile import collect as collecting
from skycairn.pile import files
from skycairn.pile.collect import collect
from skycairn.pile.files import Damaged, Locked, Missing, PendingFile
from skycairn.pile.lock import builder_lock
from skycairn.pile.receipt import Part, Receipt, task_key
from skycairn.pile.store import Draft, Entry, Pile


@pytest.fixture
def pile(tmp_path: Path) -> Pile:
    return Pile.create(tmp_path / "pile")


def task(pile: Pile, name: str) -> tuple[str, Part]:
    part = pile.put_table(pa.table({"name": [name]}))
    key = task_key(name, 1, {}, {})
    pile.put_receipt(Receipt(key, name, "", {}, {}, {"x": part}, {}))
    return key, part


def snapshot(pile: Pile, *names: str, tasks: bool = True) -> int:
    made = [task(pile, name) for name in names]
    entries = [Entry({"name": name}, part) for name, (_, part) in zip(names, made, strict=True)]
    behind = [Entry({}, pile.put_table(pa.table({"key": [key for key, _ in made]})))] if tasks else []
    return pile.commit(Draft({}, {"t": entries}, aside={"tasks": behind} if tasks else {})).number


def aged(pile: Pile, hours: float = 25) -> None:
    then = files.now_on_disk(pile.root / "tmp") - 3600 * hours
    for path in pile.root.rglob("*"):
        os.utime(path, (then, then))


def there(pile: Pile) -> set[str]:
    return {p.relative_to(pile.root).as_posix() for p in pile.root.rglob("*") if p.is_file()}


def steps(pile: Pile) -> set[str]:
    return {receipt.step for receipt in pile.receipts()}


def test_the_newest_the_named_and_the_read_stay(pile: Pile) -> None:
    for i in range(7):
        assert snapshot(pile, "shared", f"own-{i}") == i + 1
    pile.tag("paper", 1)
    with pile.pin(3):
        before = there(pile)
        dry = collect(pile, keep=2)
        assert there(pile) - {"locks/builder.lock"} == before
        done = collect(pile, keep=2, delete=True)
    assert not dry.deleted and done.deleted and dry.n_bytes == done.n_bytes
    assert dry.snapshots == done.snapshots == (2, 4, 5) and pile.snapshots() == [1, 3, 6, 7]
    assert (dry.receipts, dry.parts) == (done.receipts, done.parts)
    assert steps(pile) == {"shared", "own-0", "own-2", "own-5", "own-6"}
    # the own part of each, and its table of tasks
    assert len(done.receipts) == 3 and len(done.parts) == 6
    assert done.snapshots_kept[1] == ("tag paper",) and done.snapshots_kept[7] == ("one of the newest",)
    assert "reads it" in done.snapshots_kept[3][0]
    assert done.receipts_kept == {"behind a kept snapshot": 5}
    assert pile.verify().sound and pile.verify().n_orphans == 0
    assert done.n_bytes["parts"] > 0 and done.n_bytes["snapshots"] > 0 and done.n_bytes["leases"] == 0
    assert collect(pile, keep=1, delete=True).snapshots == (3, 6)
    assert collect(pile, keep=1, delete=True).snapshots == ()


def test_work_that_was_cut_off_stays_unless_told(pile: Pile) -> None:
    snapshot(pile, "a")
    snapshot(pile, "b")
    _, part = task(pile, "half")
    found = collect(pile, keep=1, delete=True)
    assert steps(pile) == {"b", "half"} and pile.has(part)
    assert found.receipts_kept["of work that no snapshot holds yet"] == 1
    assert len(collect(pile, keep=1, delete=True, uncommitted=True).receipts) == 1
    assert steps(pile) == {"b"} and not pile.has(part)


def test_without_a_table_of_tasks_all_receipts_stay(pile: Pile) -> None:
    snapshot(pile, "a")
    snapshot(pile, "b", tasks=False)
    found = collect(pile, keep=1, delete=True, uncommitted=True)
    assert found.snapshots == (1,) and found.receipts == () and steps(pile) == {"a", "b"}
    assert found.receipts_kept == {"snapshot 2 does not say which are behind it": 2}
    assert all(pile.has(part) for receipt in pile.receipts() for part in receipt.outputs.values())


def test_orphans_go_when_they_are_a_day_old_by_the_disks_clock(pile: Pile, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot(pile, "a")
    orphan = pile.put_bytes(b"nobody's", ".txt")
    (pile.root / "parts" / "notes.txt").write_text("mine")
    (pile.root / "parts" / orphan.sha256[:2] / "more notes.txt").write_text("mine")
    for hours in (0, 23.9, -48):
        aged(pile, hours)
        assert collect(pile, delete=True).parts_kept["named by nothing, and young"] == 1
    # whatever this machine's clock says
    true = collecting.now_on_disk
    monkeypatch.setattr(collecting, "now_on_disk", lambda folder: true(folder) - 1e6)
    aged(pile)
    assert collect(pile, delete=True).parts == ()
    monkeypatch.setattr(collecting, "now_on_disk", true)
    assert collect(pile, delete=True).parts == (pile.path(orphan).name,)
    assert pile.verify().sound and pile.verify().n_strange == 2


def test_what_dead_writers_and_readers_left_goes(pile: Pile) -> None:
    snapshot(pile, "a")
    living = PendingFile(pile.root / "tmp")
    foreign = [pile.root / "tmp" / f"{'0' * 12}-1-{c * 32}" for c in "ab"]
    for path in foreign:
        path.write_bytes(b"half")
    os.utime(foreign[0], (0, 0))
    dead = pile.root / "leases" / f"{'0' * 12}-1-{'0' * 32}.json"
    with pile.pin() as pinned:
        assert pinned.lease is not None
        dead.write_bytes(pinned.lease.read_bytes())
        os.utime(dead, (0, 0))
        found = collect(pile, delete=True)
        assert found.leases == (dead.name,) and found.pending == (foreign[0].name,)
        assert len(pile.leases()) == 1 and living.path.exists() and foreign[1].exists()
    living.discard()


def test_a_lease_that_cannot_be_read_holds_all(pile: Pile) -> None:
    for name in "abc":
        snapshot(pile, name)
    with pile.pin() as pinned:
        assert pinned.lease is not None
        pinned.lease.chmod(0o644)
        pinned.lease.write_bytes(b"")
        assert collect(pile, keep=1, delete=True).snapshots == ()
    assert collect(pile, keep=1, delete=True).snapshots == (1, 2)


def test_nothing_is_removed_while_it_cannot_be_known_what_is_needed(pile: Pile) -> None:
    for name in "abc":
        snapshot(pile, name)
    broken = [pile.snapshot_path(3), pile.snapshot_path(1), pile.receipt_path(task_key("c", 1, {}, {}))]
    pile.tag("x", 3)
    broken += [pile.root / "refs" / "tags" / "x.json", pile.path(next(iter(pile.snapshot(3).aside["tasks"])).part)]
    for path in broken:
        before, raw = there(pile), path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(raw[:-9])
        with pytest.raises(Damaged):
            collect(pile, keep=1, delete=False)
        with pytest.raises(Damaged):
            collect(pile, keep=1, delete=True)
        assert there(pile) == before | {"locks/builder.lock"}
        path.write_bytes(raw)
    assert pile.verify().problems == ()
    collect(pile, keep=1, delete=True)
    assert pile.snapshots() == [3] and pile.verify().sound


def test_a_head_there_is(pile: Pile) -> None:
    with pytest.raises(ValueError, match="wanted at least 1"):
        collect(pile, keep=0)
    assert collect(pile, delete=True).snapshots == ()


def test_a_builder_at_work_is_not_disturbed(pile: Pile) -> None:
    with builder_lock(pile.root), pytest.raises(Locked):
        collect(pile)


def test_a_snapshot_pinned_or_tagged_as_it_goes_is_put_back(pile: Pile, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcd":
        snapshot(pile, name)
    true, pinned = collecting._all_set_aside, []

    def meanwhile(of: Pile) -> dict[int, Path]:
        # what `pin` and `tag` write, whose look at the snapshot came just before
        if not pinned and collecting._dropped(pile, 1).exists():
            for number in (1, 2, 3):
                collecting._dropped(pile, number).rename(pile.snapshot_path(number))
            pinned.append(pile.pin(1))
            pile.tag("kept", 2)
            for number in (1, 2, 3):
                pile.snapshot_path(number).rename(collecting._dropped(pile, number))
        return true(of)

    monkeypatch.setattr(collecting, "_all_set_aside", meanwhile)
    found = collect(pile, keep=1, delete=True)
    assert found.snapshots == (3,) and pile.snapshots() == [1, 2, 4]
    assert pile.verify().sound and steps(pile) == {"a", "b", "d"}
    pinned[0].close()


def test_a_snapshot_committed_as_others_go_stays_whole(pile: Pile, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot(pile, "a", "b")
    snapshot(pile, "c")
    aged(pile)
    true, done = collecting._set_aside, []

    def meanwhile(of: Pile, numbers: list[int]) -> None:
        true(of, numbers)
        # one who builds without the lock takes up old parts
        done.append(snapshot(pile, "a", "b", "new"))

    monkeypatch.setattr(collecting, "_set_aside", meanwhile)
    found = collect(pile, keep=1, delete=True)
    assert found.snapshots == (1,) and pile.snapshots() == [2, 3]
    assert found.snapshots_kept == {
        2: ("it was among the newest, or claimed, as this began",),
        3: ("one of the newest",),
    }
    assert pile.verify().sound and steps(pile) == {"a", "b", "c", "new"}


def test_what_was_begun_is_finished(pile: Pile) -> None:
    for name in "abc":
        snapshot(pile, name)
    # one died when it had set snapshots aside, and removed a part of the first
    for number in (1, 2):
        pile.snapshot_path(number).rename(collecting._dropped(pile, number))
    body = pile.read_snapshot(collecting._dropped(pile, 1), 1)
    pile.path(body.part("t", name="a")).unlink()
    with pytest.raises(Missing):
        pile.pin(2)
    tags = pile.root / "refs" / "tags"
    tags.mkdir(parents=True)
    for number in (1, 2):
        told = {"format": 1, "name": f"t{number}", "snapshot": number, "content_id": body.content_id}
        pile.publish_sealed(told, tags / f"t{number}.json")
    # named meanwhile, the one that is whole comes back
    shutil.copytree(pile.root, pile.root.with_name("twin"))
    twin = Pile.open(pile.root.with_name("twin"))
    assert collect(twin, keep=3, delete=True).snapshots == (1,) and twin.snapshots() == [2, 3]
    assert steps(twin) == {"b", "c"} and {p.kind for p in twin.verify().problems} == {"tag"}
    shutil.rmtree(tags)
    assert collect(pile, keep=3).snapshots == (1, 2)
    assert collect(pile, keep=3, delete=True).snapshots == (1, 2)
    assert steps(pile) == {"c"} and pile.verify().n_orphans == 0
    assert [p for p in there(pile) if p.startswith("snapshots")] == [f"snapshots/{3:020d}.json"]


READ = """
import sys
from skycairn.pile.store import Pile
pile = Pile.open(sys.argv[1])
for i in range(int(sys.argv[2])):
    with pile.pin() as pinned:
        for part in pinned.snapshot.parts():
            pile.read_table(part)
        if i == 0:
            print("reading", flush=True)
print("done", flush=True)
"""


def test_readers_that_pin_meanwhile_miss_nothing(pile: Pile) -> None:
    snapshot(pile, "a-0", "b-0")
    command = [sys.executable, "-c", READ, str(pile.root), "60"]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    assert all(r.stdout is not None and r.stdout.readline() == b"reading\n" for r in readers)
    n = 0
    while any(r.poll() is None for r in readers):
        n += 1
        snapshot(pile, f"a-{n}", f"b-{n}")
        collect(pile, keep=1, delete=True)
    for reader in readers:
        out, err = reader.communicate()
        assert reader.returncode == 0 and out == b"done\n", err.decode()
    assert n > 3
    collect(pile, keep=1, delete=True)
    assert len(pile.snapshots()) == 1 and pile.verify().sound and pile.leases() == []
