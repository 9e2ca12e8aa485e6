"""The write of a part, a receipt and a snapshot is cut off at every single step; see `FaultyDisk`."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from skycairn.pile.receipt import Receipt, task_key
from skycairn.pile.store import Draft, Entry, Pile

CALLS = ("open", "write", "fchmod", "fsync", "replace", "link", "unlink", "mkdir", "close")
OLD = pa.table({"a": np.arange(100)})
NEW = pa.table({"a": np.arange(100) * 2, "b": np.random.default_rng(0).random(100)})


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies here, not the machine: flushing would cost seconds and change nothing that is seen."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


class FaultyDisk:
    """Fails at the n-th call that changes the disk: a half write, then `fault`; later calls work again."""

    def __init__(self, n: int, fault: Callable[[], None]) -> None:
        self.n, self.fault, self.calls = n, fault, 0
        self.true = {name: getattr(os, name) for name in CALLS}

    def __enter__(self) -> "FaultyDisk":
        for name in CALLS:
            setattr(os, name, self.wrapped(name))
        return self

    def __exit__(self, *_: object) -> None:
        for name, call in self.true.items():
            setattr(os, name, call)

    def wrapped(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return self.true[name](*args, **kwargs)
            self.calls += 1
            if self.calls == self.n:
                if name == "write":
                    self.true[name](args[0], args[1][: len(args[1]) // 2])
                if name == "close":
                    self.true[name](*args)
                self.fault()
            return self.true[name](*args, **kwargs)

        return call


def raising(code: int) -> Callable[[], None]:
    def fault() -> None:
        raise OSError(code, os.strerror(code))

    return fault


def work(root: Path) -> None:
    """What a builder does for one cell."""
    pile = Pile.create(root)
    part = pile.put_table(NEW, 30)
    codec = pile.put_bytes(b"bins", ".json")
    key = task_key("step", 1, {}, {})
    pile.put_receipt(Receipt(key, "step", "cell 1", {}, {}, {"slim": part}, {"rows": 100}))
    pile.commit(Draft({"radius": 1.0}, {"slim": [Entry({"cell": 1}, part)], "codec": [Entry({}, codec)]}))


def started(root: Path) -> Path:
    pile = Pile.create(root)
    pile.commit(Draft({"radius": 1.0}, {"slim": [Entry({"cell": 1}, pile.put_table(OLD))]}))
    return root


def n_calls(root: Path) -> int:
    with FaultyDisk(-1, lambda: None) as disk:
        work(root)
    return disk.calls


def check(root: Path, before: str | None, after: str) -> None:
    """A reader sees the old state or the new one, whole; the next run makes it the new one and leaves no litter."""
    if (root / "pile.json").exists():
        pile = Pile.open(root)
        assert pile.verify().problems == ()
        head = pile.head()
        assert (head.content_id if head else None) in (before, after)
        key = task_key("step", 1, {}, {})
        if (receipt := pile.receipt(key)) is not None:
            assert pile.read_table(receipt.outputs["slim"]).equals(NEW)
    work(root)
    pile = Pile.open(root)
    found = pile.verify()
    assert found.problems == () and found.n_strange == 0 and found.n_orphans == 0
    assert pile.snapshot().content_id == after
    assert list((root / "tmp").iterdir()) == []
    assert pile.snapshots() == ([1] if before is None else [1, 2])


def states(tmp_path: Path, fresh: bool) -> tuple[Path, str | None, str, int]:
    template = tmp_path / "template"
    if fresh:
        template.mkdir()
        before = None
    else:
        before = Pile.open(started(template)).snapshot().content_id
    shutil.copytree(template, tmp_path / "whole")
    n = n_calls(tmp_path / "whole")
    return template, before, Pile.open(tmp_path / "whole").snapshot().content_id, n


@pytest.mark.parametrize(("code", "fresh"), [(errno.ENOSPC, True), (errno.ENOSPC, False), (errno.EIO, False)])
def test_a_disk_that_fails_at_any_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, fresh: bool) -> None:
    template, before, after, n = states(tmp_path, fresh)
    # where the unlink of a pending file failed, the file stays until its process has ended: say that it has
    monkeypatch.setattr("skycairn.pile.files._alive", lambda pid: False)
    assert n > 30
    for i in range(1, n + 1):
        root = tmp_path / str(i)
        shutil.copytree(template, root)
        with FaultyDisk(i, raising(code)) as disk:
            try:
                work(root)
            except OSError as error:
                assert error.errno == code
        assert disk.calls >= i
        check(root, before, after)


KILL = """
import os, shutil, signal, sys
os.fsync = lambda fd: None
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
spec = spec_from_file_location("crash", sys.argv[1])
crash = module_from_spec(spec)
spec.loader.exec_module(crash)
template, folder = Path(sys.argv[2]), Path(sys.argv[3])
for i in map(int, sys.argv[4:]):
    shutil.copytree(template, folder / str(i))
    if (child := os.fork()) == 0:
        with crash.FaultyDisk(i, lambda: os.kill(os.getpid(), signal.SIGKILL)):
            crash.work(folder / str(i))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("fresh", "step"), [(True, 4), (False, 1)])
def test_a_builder_killed_at_any_call(tmp_path: Path, fresh: bool, step: int) -> None:
    template, before, after, n = states(tmp_path, fresh)
    points = range(1, n + 1, step)
    folder = tmp_path / "killed"
    folder.mkdir()
    # children are forked from a process that has started no thread
    command = [sys.executable, "-c", KILL, __file__, str(template), str(folder), *map(str, points)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == [str(-signal.SIGKILL)] * len(points), done.stderr
    for i in points:
        check(folder / str(i), before, after)
