"""Every call that changes the disk, one function each, so that a test can see, fail or stop a writer at any of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class OpenFile(NamedTuple):
    """A file that is open for writing."""

    path: Path
    fd: int


@dataclass(frozen=True)
class Op:
    """One call that is about to be made."""

    call: str
    "create, open, truncate, write, fchmod, fsync, close, replace, link, unlink, mkdir, touch, sync_folder"
    path: Path
    target: Path | None = None
    "of replace and link"
    data: memoryview | None = None
    "of write"
    fd: int = -1


Observer = Callable[[Op], None]
_observer: Observer | None = None


@contextmanager
def watch(observer: Observer) -> Iterator[None]:
    """Tell the observer of each call before it is made; what it raises stands for the call's own error."""
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before


class _call:  # used as `contextmanager` would make it, at a third of its cost
    """Tell of the call; its error names the file, which calls on a file descriptor leave out."""

    __slots__ = ("_path",)

    def __init__(
        self, call: str, path: Path, target: Path | None = None, data: memoryview | None = None, fd: int = -1
    ) -> None:
        self._path = path
        if _observer is not None:
            with self:
                _observer(Op(call, path, target, data, fd))

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(self._path)) from error


def create(path: Path) -> OpenFile:
    """Make a file that is not there yet, for its owner alone. FileExistsError where it is."""
    with _call("create", path):
        return OpenFile(path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def open_or_create(path: Path) -> OpenFile:
    """Open a file to be written from its start, made if it is not there; a symbolic link is refused."""
    with _call("open", path):
        return OpenFile(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644))


def truncate(file: OpenFile) -> None:
    """Empty the file."""
    with _call("truncate", file.path, fd=file.fd):
        os.ftruncate(file.fd, 0)


def write(file: OpenFile, data: memoryview) -> None:
    """Write bytes where the last write ended."""
    done = 0
    while done < len(data):
        with _call("write", file.path, data=data[done:], fd=file.fd):
            done += os.write(file.fd, data[done:])


def fchmod(file: OpenFile, mode: int) -> None:
    """Set the file's mode."""
    with _call("fchmod", file.path, fd=file.fd):
        os.fchmod(file.fd, mode)


def fsync(file: OpenFile) -> None:
    """Flush what was written to disk. What failed once is not to be tried again: the kernel forgets what it lost."""
    with _call("fsync", file.path, fd=file.fd):
        os.fsync(file.fd)


def close(file: OpenFile) -> None:
    """Close the file."""
    with _call("close", file.path, fd=file.fd):
        os.close(file.fd)


def replace(source: Path, target: Path) -> None:
    """Give the file another name, over a file that has it."""
    with _call("replace", source, target):
        os.replace(source, target)


def link(source: Path, target: Path) -> None:
    """Give the file a second name. FileExistsError where one has it."""
    with _call("link", source, target):
        os.link(source, target)


def unlink(path: Path) -> None:
    """Take a name away."""
    with _call("unlink", path):
        os.unlink(path)


def mkdir(path: Path) -> None:
    """Make a folder. FileExistsError where the name is taken."""
    with _call("mkdir", path):
        os.mkdir(path)


def touch(path: Path) -> None:
    """Set the file's time of change to now."""
    with _call("touch", path):
        os.utime(path)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    with _call("sync_folder", folder):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
