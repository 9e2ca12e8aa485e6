import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from skycairn.pile import files, leases, processes
from skycairn.pile.files import Missing
from skycairn.pile.store import Draft, Entry, Pile


@pytest.fixture
def pile(tmp_path: Path) -> Pile:
    pile = Pile.create(tmp_path / "pile")
    for i in range(2):
        pile.commit(Draft({}, {"t": [Entry({}, pile.put_table(pa.table({"a": [i]})))]}))
    return pile


def from_elsewhere(lease: Path) -> Path:
    """The lease as if another machine had written it."""
    return lease.rename(lease.with_name("0" * 12 + lease.name[12:]))


def soon(what: Callable[[], bool]) -> bool:
    """Whether it comes to be true within a minute."""
    for _ in range(6000):
        if what():
            return True
        time.sleep(0.01)
    return False


def aged(path: Path, hours: float) -> None:
    then = files.now_on_disk(path.parents[1] / "tmp") - hours * 3600
    os.utime(path, (then, then))


def test_a_reader_holds_its_snapshot_until_it_closes(pile: Pile) -> None:
    with pile.pin() as newest, pile.pin(1) as first:
        assert (newest.snapshot.number, first.snapshot.number) == (2, 1)
        held = pile.leases()
        assert sorted(lease.snapshot or 0 for lease in held) == [1, 2]
        assert all(lease.alive and lease.pid == os.getpid() and "runs" in lease.why for lease in held)
        assert newest.lease is not None and json.loads(newest.lease.read_bytes())["snapshot"] == 2
    assert pile.leases() == []
    newest.close()


def test_what_is_not_there_cannot_be_pinned(pile: Pile) -> None:
    with pytest.raises(Missing, match="has no snapshot 7"):
        pile.pin(7)
    assert pile.leases() == []
    with pytest.raises(Missing, match="no snapshot yet"):
        Pile.create(pile.root.with_name("other")).pin()


def test_a_newest_snapshot_that_goes_meanwhile_is_looked_for_again(pile: Pile, monkeypatch: pytest.MonkeyPatch) -> None:
    true, seen = leases._write, list[int]()

    def late(of: Pile, number: int, path: Path) -> Path:
        seen.append(number)
        if len(seen) == 1:
            pile.snapshot_path(2).unlink()
        return true(of, number, path)

    monkeypatch.setattr(leases, "_write", late)
    with pile.pin() as pinned:
        assert pinned.snapshot.number == 1 and seen == [2, 1]
    assert pile.leases() == []


HOLD = """
import sys
from skycairn.pile.store import Pile
pinned = Pile.open(sys.argv[1]).pin(1)
print("pinned", flush=True)
sys.stdin.read()
"""


def test_a_lease_ends_with_its_process(pile: Pile) -> None:
    reader = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(pile.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert reader.stdout is not None and reader.stdout.readline() == b"pinned\n"
    (lease,) = pile.leases()
    assert (lease.snapshot, lease.pid, lease.alive) == (1, reader.pid, True)
    # an old heartbeat says nothing of a process that can be asked
    aged(lease.path, 100)
    assert pile.leases()[0].alive
    reader.kill()
    # killed, and its parent has not asked yet
    assert soon(lambda: not pile.leases()[0].alive)
    reader.communicate()
    (lease,) = pile.leases()
    assert not lease.alive and "has ended" in lease.why


@pytest.mark.skipif(processes.started(os.getpid()) is None, reason="needs /proc to tell when a process was started")
def test_a_number_given_to_another_process_is_no_holder(pile: Pile) -> None:
    with pile.pin() as pinned:
        assert pinned.lease is not None
        body = files.unseal(pinned.lease, "")
        pile.publish_sealed({**body, "started": body["started"] - 1}, pinned.lease)
        assert [lease.alive for lease in pile.leases()] == [False]
        pile.publish_sealed({**body, "started": None}, pinned.lease)
        assert [lease.alive for lease in pile.leases()] == [True]


def test_another_machine_is_judged_by_its_heartbeat(pile: Pile) -> None:
    pinned = pile.pin()
    assert pinned.lease is not None
    lease = from_elsewhere(pinned.lease)
    pinned.close()
    for hours, alive in ((0, True), (23.9, True), (24.1, False), (-30, True)):
        aged(lease, hours)
        (found,) = pile.leases()
        assert found.alive is alive and "another machine" in found.why


def test_the_clock_is_the_disks(pile: Pile, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = pile.pin()
    assert pinned.lease is not None
    from_elsewhere(pinned.lease)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert pile.leases()[0].alive
    later = time.time_ns() / 1e9 + 25 * 3600
    monkeypatch.setattr(leases, "now_on_disk", lambda folder: later)
    assert not pile.leases()[0].alive


def test_the_heart_beats(pile: Pile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.01)
    with pile.pin(1) as pinned:
        assert pinned.lease is not None
        lease = pinned.lease
        aged(lease, 30)
        old = lease.stat().st_mtime
        assert soon(lambda: lease.stat().st_mtime != old)
        # thought dead and removed, it comes back
        lease.unlink()
        assert soon(lease.exists)
    assert pile.leases() == [] and list((pile.root / "tmp").iterdir()) == []


def test_a_lease_that_cannot_be_read_is_judged_by_its_name(pile: Pile) -> None:
    with pile.pin(1) as pinned:
        assert pinned.lease is not None
        pinned.lease.chmod(0o644)
        pinned.lease.write_bytes(b"{")
        (lease,) = pile.leases()
        assert (lease.snapshot, lease.alive, lease.pid) == (None, True, os.getpid())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_leaves_the_lease_of_its_parent(pile: Pile) -> None:
    with pile.pin(1) as pinned:
        with warnings.catch_warnings():
            # of threads in a process that forks, which is just what is tried here
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            pinned.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert len(pile.leases()) == 1


def test_a_pile_that_may_only_be_read_can_be_pinned(pile: Pile, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(pile.root / "tmp")

    def refuse(path: object) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("skycairn.pile.disk.mkdir", refuse)
    with Pile.open(pile.root).pin() as pinned:
        assert pinned.lease is None and pinned.snapshot.number == 2
    assert pile.leases() == []

    def full(path: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("skycairn.pile.disk.mkdir", full)
    with pytest.raises(OSError, match="No space left"):
        pile.pin()
