"""Files that are there whole or not at all: written aside, flushed to disk, then put into place."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Self

from skycairn.pile.content import canonical_json


class PileError(ValueError):
    """Something is wrong with what lies on disk.

    PileError
      NotAPile     the folder is none, or a newer version wrote it
      Missing      a file that something refers to is not there
      Damaged      a file does not hold what it was written with
    """


class NotAPile(PileError):
    """The folder is not a pile that this version reads."""


class Missing(PileError):
    """A part, receipt or snapshot is not there."""


class Damaged(PileError):
    """A file does not hold what it was written with."""


class PendingFile:
    """A file being written, under a name that tells whose it is; nobody reads it before `publish`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{_machine()}-{os.getpid()}-{uuid.uuid4().hex}"
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._digest = hashlib.sha256()
        self._discarded = False
        self.n_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        return self._digest.hexdigest()

    # The next few make it a file object, as pyarrow wants one.
    @property
    def closed(self) -> bool:
        """Whether no more can be written."""
        return self._fd < 0 and not self._discarded

    def write(self, data: Any) -> int:
        """Append bytes."""
        view = memoryview(data).cast("B")
        if self._discarded:
            # a Parquet writer that is torn down writes its footer; nobody wants it any more
            return len(view)
        done = 0
        while done < len(view):
            done += os.write(self._fd, view[done:])
        self._digest.update(view)
        self.n_bytes += len(view)
        return len(view)

    def tell(self) -> int:
        """Bytes written so far."""
        return self.n_bytes

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Left to `publish` and `discard`: who closes the Parquet writer has not finished the file."""

    def _seal(self) -> None:
        os.fchmod(self._fd, 0o444)
        os.fsync(self._fd)
        fd, self._fd = self._fd, -1
        os.close(fd)

    def publish(self, final: Path) -> None:
        """Put the file into place, over one that may be there."""
        self._seal()
        make_folder(final.parent)
        os.replace(self.path, final)
        sync_folder(final.parent)

    def publish_new(self, final: Path) -> None:
        """Put the file into place only if none is there: FileExistsError otherwise, from exactly all but one writer."""
        self._seal()
        make_folder(final.parent)
        try:
            os.link(self.path, final)
        except FileExistsError:
            # over NFS a link that was made may be reported as refused
            if not os.path.samefile(self.path, final):
                raise
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            self._publish_new_without_links(final)
        sync_folder(final.parent)

    def _publish_new_without_links(self, final: Path) -> None:
        claim = final.with_name(f".{final.name}.claim")
        try:
            fd = os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            if final.exists():
                raise
            raise FileExistsError(
                errno.EEXIST, "another writer has claimed this name; if none is running, remove the claim", str(claim)
            ) from None
        try:
            os.close(fd)
            if final.exists():
                raise FileExistsError(errno.EEXIST, "there is one already", str(final))
            os.replace(self.path, final)
        finally:
            os.unlink(claim)

    def discard(self) -> None:
        """Remove what was not published."""
        self._discarded = True
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with suppress(OSError):
                os.close(fd)
        with suppress(OSError):
            os.unlink(self.path)


_PENDING = re.compile(r"(?P<machine>[0-9a-f]{12})-(?P<pid>[0-9]{1,10})-[0-9a-f]{32}")


@cache
def _machine() -> str:
    """Where process ids mean the same: this host, since it was started, in this process namespace."""
    told = [socket.gethostname()]
    with suppress(OSError):
        told.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with suppress(OSError):
        told.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]


def sweep(folder: Path) -> int:
    """Remove pending files whose process, on this very machine, is dead; how many they were.

    Those of other machines stay: whether their writer lives cannot be known from here.
    """
    n_swept = 0
    for path in folder.iterdir():
        found = _PENDING.fullmatch(path.name)
        if found is None or found["machine"] != _machine() or _alive(int(found["pid"])):
            continue
        with suppress(OSError):
            path.unlink()
            n_swept += 1
    return n_swept


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def make_folder(folder: Path) -> None:
    """Make the folder, so that it is still there after a power cut."""
    try:
        folder.mkdir()
    except FileExistsError:
        return
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    """Remove the file, where it is there, so that it stays away after a power cut."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    sync_folder(path.parent)


def sealed(body: dict[str, Any]) -> bytes:
    """A JSON file that carries the SHA-256 of the rest of itself."""
    digest = hashlib.sha256(canonical_json(body)).hexdigest()
    return canonical_json({**body, "sha256": digest}) + b"\n"


def unseal(path: Path, what_to_do: str) -> dict[str, Any]:
    """The body of a sealed JSON file. FileNotFoundError if absent; `Damaged` says `what_to_do`."""
    raw = path.read_bytes()
    try:
        body = json.loads(raw)
        if not isinstance(body, dict):
            raise ValueError("not a JSON object")
        digest = body.pop("sha256", None)
        if hashlib.sha256(canonical_json(body)).hexdigest() != digest:
            raise ValueError("its contents do not have the SHA-256 that it carries")
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path}: {error}; {what_to_do}") from error
    return body


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_verified: dict[tuple[str, int, int, int], str] = {}
"""SHA-256 of the files that this process has read whole, by path, inode, size and time of change."""


def check_sha256_once(path: Path, sha256: str) -> None:
    """`Damaged` unless the file has the SHA-256; a process that has read it whole once does not read it again.

    Page checksums do not cover a Parquet file's footer and page headers: of all bits of a small file, flipped one by
    one, some 2 in 1,000 gave another table without an error. This finds every one of them.
    """
    try:
        stat = path.stat()
        known = (str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if (digest := _verified.get(known)) is None:
            digest = file_sha256(path)
    except FileNotFoundError as error:
        raise Missing(f"{path}: the file is not there; build it again, or restore it from a copy") from error
    if digest != sha256:
        raise Damaged(f"{path} has the SHA-256 {digest}, wanted {sha256}; remove it and build it again")
    _verified[known] = digest
