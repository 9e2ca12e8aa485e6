import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from skycairn.pile import lock
from skycairn.pile.files import Damaged, Locked
from skycairn.pile.lock import builder_lock


def test_a_second_builder_is_told_of_the_first(tmp_path: Path) -> None:
    with builder_lock(tmp_path, "build my-field"):
        with pytest.raises(Locked, match=rf"process {os.getpid()} on .* since 20.*\+00:00 \(build my-field\); wait"):
            with builder_lock(tmp_path):
                pass
    with builder_lock(tmp_path):
        pass


def test_a_lock_is_left_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), builder_lock(tmp_path):
        _ = 1 / 0
    with builder_lock(tmp_path):
        pass


FORKS = r"""
import os, sys
from pathlib import Path
from skycairn.pile.lock import builder_lock
with builder_lock(Path(sys.argv[1])):
    if os.fork() == 0:
        os.write(1, b"forked\n")
        sys.stdin.read()
        os._exit(0)
    if sys.argv[2] == "killed":
        sys.stdin.read()
os.write(1, b"left\n")
sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("how", ["killed", "left"])
def test_a_child_does_not_hold_the_lock_of_its_parent(tmp_path: Path, how: str) -> None:
    command = [sys.executable, "-c", FORKS, str(tmp_path), how]
    builder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert builder.stdin is not None and builder.stdout is not None
    said = {builder.stdout.readline()}
    if how == "left":
        said.add(builder.stdout.readline())
    else:
        builder.kill()
        builder.wait()
    try:
        # the child still lives
        with builder_lock(tmp_path):
            pass
        assert said == {b"forked\n", b"left\n"} - ({b"left\n"} if how == "killed" else set())
    finally:
        builder.stdin.close()
        builder.wait()
        builder.stdout.close()


def test_a_started_program_does_not_hold_the_lock(tmp_path: Path) -> None:
    with builder_lock(tmp_path):
        program = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    try:
        with builder_lock(tmp_path):
            pass
    finally:
        program.communicate(b"\n")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_built_on_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with builder_lock(tmp_path), builder_lock(tmp_path):
        pass
    monkeypatch.setattr(lock, "_NO_LOCKS", ())
    with pytest.raises(OSError, match=os.strerror(code)), builder_lock(tmp_path):
        pass


def test_a_lock_writes_into_its_own_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "pile").mkdir()
    (tmp_path / "pile" / "locks").symlink_to(tmp_path / "outside")
    with pytest.raises(Damaged, match="symbolic link"), builder_lock(tmp_path / "pile"):
        pass
    (tmp_path / "pile" / "locks").unlink()
    (tmp_path / "pile" / "locks").mkdir()
    (tmp_path / "precious").write_text("x")
    (tmp_path / "pile" / "locks" / "builder.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic link"), builder_lock(tmp_path / "pile"):
        pass
    assert (tmp_path / "precious").read_text() == "x" and list((tmp_path / "outside").iterdir()) == []
