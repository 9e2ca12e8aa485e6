"""One builder at a time: a lock that dies with its process. Commits do not hang on it; wasted work does."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from skycairn.pile import disk
from skycairn.pile.content import canonical_json
from skycairn.pile.files import Locked, make_scratch, parse

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
_held: set[disk.OpenFile] = set()


@contextmanager
def builder_lock(root: Path, what: str = "build") -> Iterator[None]:
    """Hold the pile's builder's lock; `Locked` names who holds it. OSError where the folder cannot be written.

    It goes with the process, however that ends, and no child inherits it. On a file system that knows no locks there
    is none: two builders then waste work, and lose none, since a commit is refused where another came first.
    """
    make_scratch(root / "locks")
    file = disk.open_or_create(root / "locks" / "builder.lock")
    _held.add(file)
    try:
        try:
            fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Locked(_refusal(file.path)) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        since = datetime.now(UTC).isoformat(timespec="seconds")
        told = {"host": socket.gethostname(), "pid": os.getpid(), "since": since, "what": what}
        disk.truncate(file)
        disk.write(file, memoryview(canonical_json(told)))
        yield
    finally:
        # a child that was forked has let go of it already
        if file in _held:
            _held.discard(file)
            # closing alone would leave the lock with a child that was forked just now
            with suppress(OSError):
                fcntl.flock(file.fd, fcntl.LOCK_UN)
            disk.close(file)


def _refusal(path: Path) -> str:
    told = _holder(path)
    holder = f"process {told.get('pid')} on {told.get('host')} is at it since {told.get('since')} ({told.get('what')})"
    return (
        f"{path.parents[1]}: {holder if told else 'another process is at it'}; wait until it has ended, or end it: its "
        f"lock goes with it, and the next build goes on where it was"
    )


def _holder(path: Path) -> dict[str, Any]:
    """What the lock's holder says of itself, which it writes just after it has the lock."""
    for _ in range(20):
        try:
            told = parse(path.read_bytes())
        except (OSError, ValueError):
            told = None
        if isinstance(told, dict):
            return told
        time.sleep(0.05)
    return {}


def _let_go() -> None:
    """In a child that was forked: close the lock's file, which would hold the lock as long as the child lives."""
    while _held:
        os.close(_held.pop().fd)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
