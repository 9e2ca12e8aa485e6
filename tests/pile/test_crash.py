"""The work of a builder is cut off at every call that changes the disk: killed, failed, and by a loss of power.

After each of them a reader sees the old snapshot or the new one, whole, and all that the builder had been promised; and
the next run ends where an undisturbed one ends.
"""

import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from skycairn.pile import disk, files
from skycairn.pile.collect import collect
from skycairn.pile.lock import builder_lock
from skycairn.pile.receipt import Receipt, task_key
from skycairn.pile.store import Draft, Entry, Pile

_spec = spec_from_file_location("powerloss", Path(__file__).with_name("powerloss.py"))
assert _spec is not None and _spec.loader is not None
powerloss = module_from_spec(_spec)
sys.modules["powerloss"] = powerloss
_spec.loader.exec_module(powerloss)

OLD = pa.table({"a": np.arange(100)})
NEW = pa.table({"a": np.arange(100) * 2, "b": np.random.default_rng(0).random(100)})
PILE = "deep/er/pile"
LONG_AGO = time.time() - 1e6


@pytest.fixture(autouse=True)
def a_disk_of_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing would cost seconds and change nothing that is seen; whoever left a file behind has ended."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr("skycairn.pile.files.alive", lambda pid: False)
    monkeypatch.setattr("skycairn.pile.leases.alive", lambda pid, since: False)


def nobody(*_: Any) -> None:
    """Is told what the writer is promised."""


def add(pile: Pile, step: str, table: pa.Table, ack: Callable[..., None] = nobody) -> Draft:
    """What a builder does for one cell."""
    part = pile.put_table(table, 30)
    ack("part", step, part)
    codec = pile.put_bytes(step.encode(), ".json")
    ack("part", step, codec)
    key = task_key(step, 1, {}, {})
    pile.put_receipt(Receipt(key, step, "cell 1", {}, {}, {"slim": part}, {"rows": 100}))
    ack("receipt", key)
    tasks = pile.put_table(pa.table({"key": [key]}))
    ack("part", step, tasks)
    tables = {"slim": [Entry({"cell": 1}, part)], "codec": [Entry({}, codec)]}
    return Draft({"radius": 1.0}, tables, aside={"tasks": [Entry({}, tasks)]})


def work(base: Path, ack: Callable[..., None] = nobody) -> None:
    """All that a builder and a reader do; done twice, it is as if it had been done once."""
    pile = Pile.create(base / PILE)
    ack("pile")
    with builder_lock(pile.root):
        snapshot = pile.commit(add(pile, "new", NEW, ack))
        ack("snapshot", snapshot.number, snapshot.content_id)
    pile.tag("best", snapshot.number)
    ack("tag", "best", snapshot.number)
    if "old" in pile.tags():
        pile.untag("old")
    ack("no tag", "old")
    with pile.pin() as pinned:
        assert pinned.lease is not None
        ack("lease", pinned.lease.name)
        ack("end", "lease")
    collect(pile, keep=1, delete=True)


def started(base: Path) -> None:
    """A pile with an older snapshot, its receipt and its tags."""
    pile = Pile.create(base / PILE)
    number = pile.commit(add(pile, "old", OLD)).number
    pile.tag("old", number)
    pile.tag("best", number)
    for path in pile.root.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))


class Start:
    """Where the work begins: with nothing, or a pile. And where it ends when nothing disturbs it."""

    def __init__(self, tmp_path: Path, fresh: bool) -> None:
        self.base = tmp_path / "start"
        self.base.mkdir()
        self.heads: set[str | None] = {None}
        if not fresh:
            started(self.base)
            self.heads = {Pile.open(self.base / PILE).snapshot().content_id}
        self.state = powerloss.read_in(self.base)
        self.log = self.record(tmp_path / "whole")
        self.end = self.files(tmp_path / "whole")
        self.heads.add(Pile.open(tmp_path / "whole" / PILE).snapshot().content_id)

    def copy(self, to: Path) -> Path:
        return shutil.copytree(self.base, to)

    def record(self, base: Path) -> list[Any]:
        if not base.exists():
            self.copy(base)
        recorder = powerloss.Recorder(base)
        with disk.watch(recorder):
            work(base, recorder.ack)
        return recorder.log

    def files(self, base: Path) -> dict[str, bytes | None]:
        """What has to be the same in the end: all files but the lock's, which tells of its last holder."""
        found = powerloss.read_in(base)
        return {p: data for p, data in found.items() if data is not None and not p.endswith("builder.lock")}

    def check(self, base: Path, told: Iterable[tuple[Any, ...]] = ()) -> None:
        """A reader sees one of the two states whole, and all that was promised; the next run ends where it should."""
        root = base / PILE
        if (root / "pile.json").exists():
            pile = Pile.open(root)
            assert pile.verify().problems == ()
            head = pile.head()
            assert (head.content_id if head else None) in self.heads
            for kind, *what in told:
                keeps(pile, kind, what)
        else:
            assert not list(told), "the pile is gone"
        work(base)
        assert self.files(base) == self.end


def keeps(pile: Pile, kind: str, what: list[Any]) -> None:
    """Whether what was promised is there."""
    if kind == "part":
        assert pile.has(what[1]) and files.file_sha256(pile.path(what[1])) == what[1].sha256
    elif kind == "receipt":
        assert pile.receipt(what[0]) is not None
    elif kind == "snapshot":
        assert pile.snapshot(what[0]).content_id == what[1]
    elif kind == "tag":
        assert pile.tags()[what[0]] == what[1]
    elif kind == "no tag":
        assert what[0] not in pile.tags()
    elif kind == "lease":
        assert what[0] in [lease.path.name for lease in pile.leases() if lease.snapshot is not None]
    else:
        assert kind == "pile"


@pytest.fixture(params=[True, False], ids=["fresh", "started"])
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Start:
    return Start(tmp_path, request.param)


# -- calls that fail, and a process that is killed


class Fault:
    """At the n-th call: half of a write is made, then comes the fault; later calls work again."""

    def __init__(self, n: int, fault: Callable[[], None]) -> None:
        self.n, self.fault, self.calls = n, fault, 0

    def __call__(self, op: disk.Op) -> None:
        self.calls += 1
        if self.calls == self.n:
            if op.data is not None:
                os.write(op.fd, op.data[: len(op.data) // 2])
            if op.call == "close":
                os.close(op.fd)
            self.fault()


def raising(code: int) -> Callable[[], None]:
    def fault() -> None:
        raise OSError(code, os.strerror(code))

    return fault


def n_calls(start: Start, base: Path) -> int:
    counter = Fault(-1, lambda: None)
    with disk.watch(counter):
        work(start.copy(base))
    return counter.calls


def failing(start: Start, tmp_path: Path, code: int, points: Iterable[int]) -> int:
    n_runs = 0
    for i in points:
        base = start.copy(tmp_path / f"{code}-{i}")
        fault = Fault(i, raising(code))
        with disk.watch(fault):
            try:
                work(base)
            except OSError as error:
                assert error.errno == code and error.filename is not None
        assert fault.calls >= i
        start.check(base)
        n_runs += 1
    return n_runs


def test_a_disk_that_fails_at_any_call(start: Start, tmp_path: Path) -> None:
    n = n_calls(start, tmp_path / "counted")
    assert n > 80
    # the offsets differ, so that together they are at every third call
    failing(start, tmp_path, errno.ENOSPC, range(1, n + 1, 6))
    failing(start, tmp_path, errno.EIO, range(4, n + 1, 6))


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_every_call(start: Start, tmp_path: Path, code: int) -> None:
    n = n_calls(start, tmp_path / "counted")
    assert failing(start, tmp_path, code, range(1, n + 1)) == n
    print(f"{n} runs")


KILL = """
import os, shutil, signal, sys
os.fsync = lambda fd: None
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
spec = spec_from_file_location("crash", sys.argv[1])
crash = module_from_spec(spec)
spec.loader.exec_module(crash)
from skycairn.pile import disk
template, folder = Path(sys.argv[2]), Path(sys.argv[3])
for i in map(int, sys.argv[4:]):
    shutil.copytree(template, folder / str(i))
    if (child := os.fork()) == 0:
        with disk.watch(crash.Fault(i, lambda: os.kill(os.getpid(), signal.SIGKILL))):
            crash.work(folder / str(i))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def killed(start: Start, tmp_path: Path, points: Iterable[int]) -> int:
    folder = tmp_path / "killed"
    folder.mkdir()
    points = list(points)
    # children are forked from a process that has started no thread
    command = [sys.executable, "-c", KILL, __file__, str(start.base), str(folder), *map(str, points)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.stdout.split() == [str(-signal.SIGKILL)] * len(points), done.stderr
    for i in points:
        start.check(folder / str(i))
    return len(points)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@needs_fork
def test_a_builder_killed_at_any_call(start: Start, tmp_path: Path) -> None:
    n = n_calls(start, tmp_path / "counted")
    killed(start, tmp_path, range(2, n + 1, 5))


@needs_fork
@pytest.mark.slow
def test_a_builder_killed_at_every_call(start: Start, tmp_path: Path) -> None:
    n = n_calls(start, tmp_path / "counted")
    assert killed(start, tmp_path, range(1, n + 1)) == n
    print(f"{n} runs")


# -- power


def violation(start: Start, state: Any, told: Any, base: Path) -> Exception | None:
    """What is wrong after the power is back, if anything."""
    powerloss.lay_out(state, base, LONG_AGO)
    try:
        start.check(base, told)
    except (AssertionError, ValueError, OSError, KeyError) as error:
        return error
    finally:
        shutil.rmtree(base)
    return None


def all_sound(start: Start, losses: Iterable[Any], tmp_path: Path, stride: int = 1) -> int:
    """Hold every state of the disk, or every n-th, against what was promised; how many."""
    n_states = 0
    for n, state, told in itertools.islice(losses, 0, None, stride):
        broken = violation(start, state, told, tmp_path / "lost")
        assert broken is None, f"after call {n}: {broken!r}"
        n_states += 1
    return n_states


def test_a_loss_of_power_at_any_call(start: Start, tmp_path: Path) -> None:
    assert all_sound(start, powerloss.losses(powerloss.Disk(start.state), start.log), tmp_path, stride=9) > 20


@pytest.mark.slow
def test_a_loss_of_power_at_every_call(start: Start, tmp_path: Path) -> None:
    n = all_sound(start, powerloss.losses(powerloss.Disk(start.state), start.log), tmp_path)
    assert n > 200
    print(f"{n} states of the disk")


def reruns(start: Start, tmp_path: Path, stride: int) -> Iterator[tuple[Any, list[Any]]]:
    """A builder is killed before it flushes a folder, and another one does its work: the disk then, and the log."""
    model = powerloss.Disk(start.state)
    points = [n for n, event in enumerate(start.log) if event.call == "sync_folder"][::stride]
    for n, event in enumerate(start.log):
        if n in points:
            base = tmp_path / f"killed-{n}"
            powerloss.lay_out(model.whole(), base, LONG_AGO)
            yield model.copy(), start.record(base)
        model.apply(event)


def test_a_loss_of_power_after_a_builder_was_killed_and_another_went_on(start: Start, tmp_path: Path) -> None:
    for model, log in reruns(start, tmp_path, stride=5):
        assert all_sound(start, powerloss.least_losses(model, log), tmp_path, stride=2)


@pytest.mark.slow
def test_a_loss_of_power_after_any_kill(start: Start, tmp_path: Path) -> None:
    n = sum(all_sound(start, powerloss.least_losses(model, log), tmp_path) for model, log in reruns(start, tmp_path, 1))
    print(f"{n} states of the disk")


def is_needed(start: Start, losses: Iterable[Any], good: set[str], tmp_path: Path) -> bool:
    """Whether any of the states of the disk belies a promise; `good` are known to belie none."""
    return any(
        violation(start, state, told, tmp_path / "without") is not None
        for _, state, told in losses
        if powerloss.key_of(state, told) not in good
    )


def flushes(log: list[Any]) -> list[int]:
    return [n for n, event in enumerate(log) if event.call in powerloss.FLUSHES]


def keys(losses: Iterable[Any]) -> set[str]:
    return {powerloss.key_of(state, told) for _, state, told in losses}


def needed_flushes(start: Start, tmp_path: Path, done: dict[str, bool]) -> dict[str, bool]:
    """By the functions that make them, whether flushes are needed: one of each is left out until something is lost."""
    model = powerloss.Disk(start.state)
    good = keys(powerloss.losses(model, start.log))
    for n in flushes(start.log):
        if not done.get(site := start.log[n].site):
            done[site] = is_needed(start, powerloss.losses(model, start.log, n), good, tmp_path)
    return done


def test_no_flush_can_be_left_out(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    new.mkdir()
    old.mkdir()
    fresh = needed_flushes(Start(new, fresh=True), new, {})
    assert len(fresh) > 15 and [site for site, needed in fresh.items() if not needed] == []
    both = needed_flushes(Start(old, fresh=False), old, dict(fresh))
    # it flushes for one who died before, see below
    assert [site for site, needed in both.items() if not needed] == ["store.create"]


@pytest.mark.slow
def test_no_flush_of_a_new_pile_can_be_left_out(tmp_path: Path) -> None:
    start = Start(tmp_path, fresh=True)
    model = powerloss.Disk(start.state)
    good = keys(powerloss.losses(model, start.log))
    for n in flushes(start.log):
        assert is_needed(start, powerloss.losses(model, start.log, n), good, tmp_path), start.log[n]
    print(f"{len(flushes(start.log))} flushes")


@pytest.mark.slow
def test_no_flush_for_one_who_died_can_be_left_out(tmp_path: Path) -> None:
    start = Start(tmp_path, fresh=True)
    needed: dict[str, bool] = {}
    for model, log in reruns(start, tmp_path, 1):
        good = keys(powerloss.least_losses(model, log))
        for n in flushes(log):
            if not needed.get(site := log[n].site):
                needed[site] = is_needed(start, powerloss.least_losses(model, log, n), good, tmp_path)
    assert {"store.create", "store.commit", "store._publish < store.put_bytes"} <= set(needed)
    assert [site for site, it_is in needed.items() if not it_is] == []
    print(f"{len(needed)} kinds of flushes")
