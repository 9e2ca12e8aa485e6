"""Which process wrote a file, and whether it still runs: what a lock, a lease and a half-written file hang on."""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path


@cache
def boot() -> str:
    """What tells this start of the machine from its others; empty where nothing does."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@cache
def machine() -> str:
    """Where process ids mean the same: this host, since it was started, in this process namespace; 12 hex digits."""
    told = [socket.gethostname()]
    if boot():
        told.append(f"{boot()}\n")
    with suppress(OSError):
        told.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]


def started(pid: int) -> int | None:
    """When the process of this machine was started, in clock ticks since the machine was; None where it is not told."""
    told = _told(pid)
    return int(told[19]) if told else None


def alive(pid: int, since: int | None = None) -> bool:
    """Whether the process of this machine runs; `since` is its `started`, by which a number given anew is told."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    told = _told(pid)
    if not told:
        return True
    # one that has ended, and whose parent has not asked how, still has its number
    return told[0] not in (b"Z", b"X") and since in (None, int(told[19]))


def _told(pid: int) -> list[bytes]:
    """What /proc tells of the process, from its state on; empty where there is no such folder."""
    try:
        # the name of the program, which comes before, may hold spaces and parentheses
        told = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []
    return told if len(told) > 19 and told[19].isdigit() else []
