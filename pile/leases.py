"""Leases: who reads which snapshot, so that `collect` leaves it. A lease lives as long as its process does.

leases/<machine>-<pid>-<uuid>.json          written before the reader looks whether its snapshot is there

On the machine where it was made the process itself is asked. Elsewhere its heartbeat counts, the file's time of change,
against the clock of the file system that holds both: never the clocks of two machines.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from skycairn.pile import disk
from skycairn.pile.files import Missing, PileError, make_folder, now_on_disk, pending_name, unseal, writer_of
from skycairn.pile.processes import alive, machine, started
from skycairn.pile.snapshot import Snapshot

if TYPE_CHECKING:
    from skycairn.pile.store import Pile

FORMAT = 1
HEARTBEAT_S = 600.0
STALE_S = 24 * 3600.0
"""A lease of another machine is dead when its heartbeat is older."""


@dataclass(frozen=True)
class Lease:
    """One reader's claim on a snapshot."""

    path: Path
    snapshot: int | None
    "None where the file cannot be read"
    host: str
    pid: int
    alive: bool
    why: str
    "for people: what says that it lives, or does not"


class Pinned:
    """A snapshot that `collect` leaves, until `close`, the end of the `with`, or the end of the process."""

    def __init__(self, pile: Pile, snapshot: Snapshot, lease: Path | None) -> None:
        self.snapshot = snapshot
        self.lease = lease
        "the lease's file; None where none could be written: a disk or folder that this process may only read"
        self._pile = pile
        self._pid = os.getpid()
        self._closed = threading.Event()
        self._mine = threading.Lock()
        if lease is not None:
            threading.Thread(target=self._beat, args=(lease,), name="skycairn lease", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the snapshot free. A child that was forked leaves the lease of its parent."""
        if self._pid != os.getpid():
            return
        with self._mine:
            self._closed.set()
            if self.lease is not None:
                with suppress(OSError):
                    disk.unlink(self.lease)

    def _beat(self, lease: Path) -> None:
        while not self._closed.wait(HEARTBEAT_S):
            with self._mine, suppress(OSError):
                if not self._closed.is_set():
                    _touch(self._pile, self.snapshot.number, lease)


def _touch(pile: Pile, number: int, lease: Path) -> None:
    try:
        disk.touch(lease)
    except FileNotFoundError:
        # another machine took us for dead; what it has not removed yet it shall leave
        _write(pile, number, lease)


def pin(pile: Pile, number: int | None) -> Pinned:
    """See `Pile.pin`."""
    while True:
        wanted = pile.snapshot().number if number is None else number
        lease = None
        try:
            lease = _write(pile, wanted, pile.root / "leases" / f"{pending_name()}.json")
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
        try:
            return Pinned(pile, pile.snapshot(wanted), lease)
        except BaseException as error:
            if lease is not None:
                with suppress(OSError):
                    disk.unlink(lease)
            if isinstance(error, Missing) and number is None and pile.head() is not None:
                # it was collected between our look and our lease
                continue
            raise


def _write(pile: Pile, number: int, path: Path) -> Path:
    make_folder(path.parent)
    told = {"host": socket.gethostname(), "pid": os.getpid(), "started": started(os.getpid())}
    pile.publish_sealed({"format": FORMAT, "snapshot": number, **told}, path)
    return path


def leases(pile: Pile) -> list[Lease]:
    """All leases, and of each whether it lives; one that cannot be read is judged by its name and its heartbeat."""
    folder = pile.root / "leases"
    found = sorted(folder.glob("*.json")) if folder.is_dir() else []
    return [lease for path in found if (lease := _lease(pile, path)) is not None]


def _lease(pile: Pile, path: Path) -> Lease | None:
    writer = writer_of(path.stem)
    try:
        heartbeat = path.stat().st_mtime
        told: dict[str, Any] = unseal(path, "remove it, if its reader has ended")
    except FileNotFoundError:
        return None
    except PileError:
        told = {}
    number, pid, since = (_whole(told.get(name)) for name in ("snapshot", "pid", "started"))
    if writer is not None and writer[0] == machine():
        lives = alive(writer[1], since)
        why = f"process {writer[1]} of this machine {'runs' if lives else 'has ended'}"
    else:
        lives, why = _heard_of(pile, heartbeat)
    return Lease(path, number, str(told.get("host", "")), pid or (writer[1] if writer else 0), lives, why)


def _heard_of(pile: Pile, heartbeat: float) -> tuple[bool, str]:
    try:
        age_s = now_on_disk(pile.root / "tmp") - heartbeat
    except OSError:
        return True, "of another machine; the disk's clock cannot be read here, so it is taken to live"
    if age_s < 0:
        return True, "of another machine, its heartbeat in the future"
    return age_s < STALE_S, f"of another machine, its heartbeat {age_s / 3600:.1f} hours ago"


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None
