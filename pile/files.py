"""Files that are there whole or not at all: written aside, flushed to disk, then put into place."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from skycairn.pile import disk
from skycairn.pile.content import canonical_json
from skycairn.pile.disk import sync_folder
from skycairn.pile.processes import alive, machine

MOST_BYTES = 1 << 29
"""Of a snapshot, receipt or other manifest; a larger one is refused before it is read. Two million parts fill half."""


class PileError(ValueError):
    """Something is wrong with what lies on disk, or another process is at it.

    PileError
      NotAPile     the folder is none, or a newer version wrote it
      Missing      a file that something refers to is not there
      Damaged      a file does not hold what it was written with
      Conflict     the head is not the one that a change was made for
      Locked       another builder is at work
    """


class NotAPile(PileError):
    """The folder is not a pile that this version reads."""


class Missing(PileError):
    """A part, receipt or snapshot is not there."""


class Damaged(PileError):
    """A file does not hold what it was written with."""


class Conflict(PileError):
    """The head is not the one that the change was made for."""


class Locked(PileError):
    """Another builder is at work."""


class PendingFile:
    """A file being written, under a name that tells whose it is; nobody reads it before `publish`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / pending_name()
        self._file: disk.OpenFile | None = disk.create(self.path)
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
        return self._file is None and not self._discarded

    def write(self, data: Any) -> int:
        """Append bytes."""
        view = memoryview(data).cast("B")
        if self._discarded:
            # a Parquet writer that is torn down writes its footer; nobody wants it any more
            return len(view)
        if self._file is None:
            raise ValueError(f"{self.path} is written and closed; nothing can be added")
        disk.write(self._file, view)
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
        if self._file is None:
            raise ValueError(f"{self.path} was published, or given up; write another")
        disk.fchmod(self._file, 0o444)
        disk.fsync(self._file)
        self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            disk.close(file)

    def publish(self, final: Path) -> None:
        """Put the file into place, over one that may be there; the folder is there. It outlives a power cut."""
        self._seal()
        disk.replace(self.path, final)
        sync_folder(final.parent)

    def publish_new(self, final: Path) -> None:
        """Put the file into place only if none is there: FileExistsError otherwise, from exactly all but one writer."""
        self._seal()
        try:
            disk.link(self.path, final)
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
            claimed = disk.create(claim)
        except FileExistsError:
            if final.exists():
                raise
            raise FileExistsError(
                errno.EEXIST, "another writer has claimed this name; if none is running, remove the claim", str(claim)
            ) from None
        try:
            disk.close(claimed)
            if final.exists():
                raise FileExistsError(errno.EEXIST, "there is one already", str(final))
            disk.replace(self.path, final)
        finally:
            disk.unlink(claim)

    def discard(self) -> None:
        """Remove what was not published."""
        self._discarded = True
        with suppress(OSError):
            self._close()
        with suppress(OSError):
            disk.unlink(self.path)


_PENDING = re.compile(r"(?P<machine>[0-9a-f]{12})-(?P<pid>[0-9]{1,10})-[0-9a-f]{32}")


def pending_name() -> str:
    """A name that no other file has, and that tells which process of which machine gave it."""
    return f"{machine()}-{os.getpid()}-{uuid.uuid4().hex}"


def writer_of(name: str) -> tuple[str, int] | None:
    """Machine and process of a `pending_name`; None for other names."""
    found = _PENDING.fullmatch(name)
    return (found["machine"], int(found["pid"])) if found else None


def left_behind(folder: Path) -> list[Path]:
    """Pending files whose process, on this very machine, is dead.

    Of those of other machines it cannot be known from here whether their writer lives.
    """
    found = []
    for path in sorted(folder.iterdir()):
        writer = writer_of(path.name)
        if writer is not None and writer[0] == machine() and not alive(writer[1]):
            found.append(path)
    return found


def sweep(folder: Path) -> int:
    """Remove what is `left_behind`; how many they were."""
    n_swept = 0
    for path in left_behind(folder):
        with suppress(OSError):
            disk.unlink(path)
            n_swept += 1
    return n_swept


def copy_out(data: bytes, path: Path) -> None:
    """Write a file outside of any pile, over one that may be there; it may not outlive a power cut."""
    file = disk.open_or_create(path)
    try:
        disk.truncate(file)
        disk.write(file, memoryview(data))
    finally:
        disk.close(file)


def now_on_disk(folder: Path) -> float:
    """The time, in seconds since 1970, by the clock that the folder's file system stamps files with."""
    with PendingFile(folder) as file:
        return file.path.stat().st_mtime


_flushed: set[tuple[str, int, int]] = set()
"""Folders whose entry in their parent this process knows to be on disk, by path, device and inode."""


def make_folder(folder: Path) -> None:
    """Make the folder, so that it is still there after a power cut; its parent is there.

    One that is there already may have been made by a process that died before it flushed the parent, and is flushed
    once. `Damaged` where the name is a symbolic link's, since what is written into a pile stays in it.
    """
    found = make_scratch(folder)
    known = (str(folder), found.st_dev, found.st_ino)
    if known not in _flushed:
        sync_folder(folder.parent)
        _flushed.add(known)


def make_scratch(folder: Path) -> os.stat_result:
    """Make a folder that a power cut may take: what is in it is then of no use. `Damaged` as with `make_folder`."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        with suppress(FileExistsError):
            disk.mkdir(folder)
        found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise Damaged(f"{folder} is a symbolic link or a file, wanted a folder; move what it holds here, and remove it")
    return found


def make_root(root: Path) -> None:
    """Make a folder and all above it that are not there, so that they are still there after a power cut.

    A folder that was there, and whose parent cannot be flushed from here, is taken to be on disk.
    """
    for folder in (*list(reversed(root.absolute().parents))[1:], root.absolute()):
        made = True
        try:
            disk.mkdir(folder)
        except OSError:
            # an automounter, or a disk that may only be read, has other words for what is there already
            if not folder.is_dir():
                raise
            made = False
        try:
            sync_folder(folder.parent)
        except OSError:
            if made:
                raise


def remove(path: Path) -> None:
    """Remove the file, where it is there, so that it stays away after a power cut."""
    try:
        disk.unlink(path)
    except FileNotFoundError:
        return
    sync_folder(path.parent)


def sealed(body: dict[str, Any]) -> bytes:
    """A JSON file that carries the SHA-256 of the rest of itself."""
    digest = hashlib.sha256(canonical_json(body)).hexdigest()
    return canonical_json({**body, "sha256": digest}) + b"\n"


def unseal(path: Path, what_to_do: str) -> dict[str, Any]:
    """The body of a sealed JSON file. FileNotFoundError if absent; `Damaged` says `what_to_do`."""
    try:
        body = parse(read_small(path))
        if not isinstance(body, dict):
            raise ValueError("not a JSON object")
        digest = body.pop("sha256", None)
        if hashlib.sha256(canonical_json(body)).hexdigest() != digest:
            raise ValueError("its contents do not have the SHA-256 that it carries")
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path}: {error}; {what_to_do}") from error
    return body


def read_small(path: Path) -> bytes:
    """All of a manifest. FileNotFoundError if absent; ValueError where it is a giant."""
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"it has {size} bytes, more than the {MOST_BYTES} that a manifest may have")
    return path.read_bytes()


def plain_size(path: Path) -> int:
    """Bytes of a plain file. FileNotFoundError if absent; `Damaged` for a symbolic link, which may lead outside."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise Damaged(f"{path} is a symbolic link, or no plain file; a pile holds plain files alone: remove it")
    return found.st_size


def parse(raw: bytes) -> Any:
    """The one value that a JSON text has. ValueError for a key that comes twice, NaN, Infinity and too deep a nesting.

    Readers differ in what they make of those: of two values of one key some take the first, some the last.
    """
    try:
        return json.loads(raw, object_pairs_hook=_once_each, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("its values lie too deep in one another") from error


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice[:80]!r} comes twice")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


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
        found = path.stat()
        known = (str(path), found.st_ino, found.st_size, found.st_mtime_ns)
        if (digest := _verified.get(known)) is None:
            digest = file_sha256(path)
    except FileNotFoundError as error:
        raise Missing(f"{path}: the file is not there; build it again, or restore it from a copy") from error
    if digest != sha256:
        raise Damaged(f"{path} has the SHA-256 {digest}, wanted {sha256}; remove it and build it again")
    _verified[known] = digest
