"""What was fetched, kept by content up to a number of bytes; and what is known of every name, kept for good.

objects/ab/<sha256>/<file name>   a file, read-only, under a name whose ending readers may go by
index/ab/<sha256 of name>.json    what is known of a name (an address, or a question in full), its object evicted or not
partial/<sha256 of name>          a download under way, which another process may go on with
pins/                             who reads which objects; a pin goes with its process, however that ends
locks/                            `cache`: who changes it just now, and how many bytes it holds; `claims`: a byte each

Processes and threads of one machine may share a cache, and those of several where its file system locks for all.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from time import time_ns
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from skycairn.archives.errors import FetchError
from skycairn.pile import disk
from skycairn.pile.files import (
    PendingFile,
    PileError,
    copy_out,
    file_sha256,
    make_folder,
    make_root,
    make_scratch,
    now_on_disk,
    pending_name,
    sealed,
    sweep,
    unseal,
)
from skycairn.pile.processes import boot

FORMAT = 1
FORGET_PARTIAL_S = 14 * 24 * 3600.0
"""A download that nobody went on with for so long is removed."""
SPARE_BYTES = 1 << 26
"""That are left free on the disk."""
SMALL = 1 << 20
"""Bytes of a file, up to which it is not flushed to disk: to read it again after a crash costs less."""

State = Literal["there", "missing", "damaged"]
"""It was fetched and found whole; the archive has none; what the archive sent was not what it should have been."""


class NoRoom(FetchError):
    """The cache's limit, or the disk, has no room for a file."""


@dataclass(frozen=True)
class Entry:
    """What is known of a name."""

    sha256: str | None = None
    "of the file; None where it never came"
    size: int | None = None
    etag: str | None = None
    last_modified: str | None = None
    digest: str | None = None
    "that the archive publishes of it"
    verified: bool = False
    "held against that digest"
    state: State = "there"
    file: str = ""
    "name that its object bears; by itself the last part of the name, where it is an address"
    first_seen: str = ""
    "when these bytes came for the first time, in UTC; by itself the time of `publish`"
    when: str = ""
    "when this was found; by itself the time at which it is written"
    boot: str = ""
    "start of the machine since which the file may be in its memory alone; empty: it is on the disk"


class Pin:
    """What one process, or thread, keeps in the cache."""

    def __init__(self, lock: Callable[[], AbstractContextManager[object]], file: disk.OpenFile) -> None:
        self._lock, self._file = lock, file

    def add(self, sha256s: Iterable[str]) -> None:
        """Keep these objects too: those of them that are there when this returns stay."""
        told = "".join(f"{sha256}\n" for sha256 in sorted(set(sha256s)))
        with self._lock():
            disk.write(self._file, memoryview(told.encode()))


class Cache:
    """A folder of files by content, and of what is known by name."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        if limit_bytes <= 0:
            raise ValueError(f"a cache of {limit_bytes} bytes was asked for; wanted more than 0")
        self.folder, self.limit_bytes = folder.absolute(), limit_bytes
        make_root(self.folder)
        for name in ("objects", "index", "partial", "pins", "locks", "tmp"):
            make_folder(self.folder / name)
        sweep(self.folder / "tmp")
        self._forget_partials()

    def look(self, name: str) -> Entry | None:
        """What is known of the name; None where nothing is, or what was written of it is damaged.

        A file that was not flushed when the machine last started is read first, and removed if it is not whole.
        """
        entry = self._read(name)
        if entry is not None and entry.boot not in ("", boot()):
            if self.whole(entry) and (path := self.path(entry)) is not None:
                _flush(path)
                for folder in path.parents[:2]:
                    disk.sync_folder(folder)
            if self._read(name) == entry:
                entry = self.note(name, replace(entry, boot=""))
        return entry

    def _read(self, name: str) -> Entry | None:
        try:
            told = unseal(self._index(name), "it is asked for again")
        except (FileNotFoundError, PileError):
            return None
        if told.get("format") != FORMAT or told.get("name") != name:
            return None
        return _entry(told.get("entry"))

    def path(self, entry: Entry) -> Path | None:
        """The file, which counts as used now; None where it was evicted. It stays there as long as it is pinned."""
        if entry.sha256 is None or entry.state != "there":
            return None
        path = self._object(entry.sha256, entry.file)
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(found.st_mode) or found.st_size != entry.size:
            return None
        with suppress(OSError):
            os.utime(path, ns=(time_ns(), found.st_mtime_ns))
        return path

    def whole(self, entry: Entry) -> bool:
        """Read the file, and see whether it is still what it was; one that is not is removed. False if evicted."""
        path = self.path(entry)
        if path is None:
            return False
        with suppress(FileNotFoundError):
            if file_sha256(path) == entry.sha256:
                return True
        with self._changing() as book:
            book.change()
            book.n_bytes -= _remove(path.parent)
        return False

    def note(self, name: str, entry: Entry) -> Entry:
        """Write down what was found of a name, no file with it; the entry as it was written."""
        entry = replace(entry, file=entry.file or file_name(name), when=entry.when or _now())
        _check(entry)
        path, told = self._index(name), sealed({"format": FORMAT, "name": name, "entry": vars(entry)})
        if entry.boot:
            # what a crash may damage is as if it were not there
            make_scratch(path.parent)
            pending = self.folder / "tmp" / pending_name()
            copy_out(told, pending)
            disk.replace(pending, path)
            return entry
        make_folder(path.parent)
        with PendingFile(self.folder / "tmp") as file:
            file.write(told)
            file.publish(path)
        return entry

    def publish(self, temporary: Path, name: str, entry: Entry) -> Entry:
        """Take in a file that was found whole, moved from `temporary` on the cache's own file system.

        The entry tells its SHA-256 and size; it is given back as it was written. What is `SMALL`, and the first of its
        name, is not flushed. NoRoom where the file is larger than the whole cache, or the disk lacks room.
        """
        if (sha256 := entry.sha256) is None or entry.state != "there":
            raise ValueError(f"{name}: an entry of state {entry.state} with SHA-256 {entry.sha256}; wanted a file's")
        found = temporary.stat()
        if (size := found.st_size) != entry.size:
            raise ValueError(f"{name}: {temporary} has {size:,} bytes, its entry says {entry.size}; fetch it again")
        before, now = self.look(name), _now()
        known = before.first_seen if before is not None and before.sha256 == sha256 else ""
        flushed = size > SMALL or before is not None or not boot()
        entry = replace(
            entry,
            file=safe_name(entry.file or file_name(name)),
            first_seen=entry.first_seen or known or now,
            when=entry.when or now,
            boot="" if flushed else boot(),
        )
        _check(entry)
        self._refuse_giant(size, name)
        final = self._object(sha256, entry.file)
        os.chmod(temporary, 0o444)
        if flushed:
            _flush(temporary)
        with self._changing() as book:
            there = _size(final)
            book.change()
            self._make_room(book, book.n_bytes + size - (there or 0) - self.limit_bytes, keep=sha256)
            if flushed:
                make_folder(final.parents[1])
                make_folder(final.parent)
            else:
                make_scratch(final.parents[1])
                try:
                    disk.mkdir(final.parent)
                except FileExistsError:
                    make_scratch(final.parent)
                    # another name may say of what is there that it is on the disk
                    _flush(temporary)
            disk.replace(temporary, final)
            if flushed:
                disk.sync_folder(final.parent)
            os.utime(final, ns=(time_ns(), found.st_mtime_ns))
            book.n_bytes += size - (there or 0)
        return self.note(name, entry)

    def reserve(self, n_bytes: int) -> int:
        """Evict what was not used for longest, and is not pinned, until so many bytes more have room.

        How many bytes above its limit the cache will then be, because of what is pinned; else 0. NoRoom where the limit
        is smaller than that in all, or the disk lacks room even so.
        """
        self._refuse_giant(n_bytes, "what is to come")
        with self._changing() as book:
            free = shutil.disk_usage(self.folder).free
            above = book.n_bytes + n_bytes - self.limit_bytes
            if (lacking := max(above, n_bytes + SPARE_BYTES - free)) > 0:
                self._make_room(book, lacking)
                free = shutil.disk_usage(self.folder).free
            over = max(book.n_bytes + n_bytes - self.limit_bytes, 0)
        if free < n_bytes:
            raise NoRoom(
                f"{self.folder}: its disk has {free:,} bytes free, {n_bytes:,} are to come, and nothing more can be "
                "evicted; free some, or put the cache on a larger disk"
            )
        return over

    def expect(self, n_bytes: int) -> None:
        """`reserve`, but for a small file for which the disk has room: `publish` makes room in the cache for that."""
        free = shutil.disk_usage(self.folder).free
        if n_bytes > min(SMALL, self.limit_bytes) or n_bytes + SPARE_BYTES > free:
            self.reserve(n_bytes)

    def n_bytes(self) -> int:
        """Bytes of all objects."""
        with self._changing() as book:
            return book.n_bytes

    @contextmanager
    def pin(self, sha256s: Iterable[str] = ()) -> Iterator[Pin]:
        """Keep these objects, and those that are added, if they are there, until the end of the `with`, or of the
        process."""
        path = self.folder / "pins" / pending_name()
        with self._lock("cache"):
            file = disk.create(path)
            fcntl.flock(file.fd, fcntl.LOCK_EX)
        try:
            pin = Pin(lambda: self._lock("cache"), file)
            pin.add(sha256s)
            yield pin
        finally:
            with suppress(OSError):
                disk.unlink(path)
            _let_go(file)

    def pinned(self) -> set[str]:
        """SHA-256 of all objects that some process, or thread, has pinned; pins of the dead are removed."""
        with self._lock("cache"):
            return self._pinned()

    @contextmanager
    def claim(self, name: str) -> Iterator[Path]:
        """Be the only one, of all processes and threads, to fetch this name; wait while another does.

        Gives where to fetch it to. Look again first: the other may have published it meanwhile.
        """
        told = _sha256(name)
        # by a byte of one file: to make and remove a file for each lock costs more than all else. macOS has no
        # such locks: there a file for each name stays.
        at = int(told[:15], 16) if hasattr(fcntl, "F_OFD_SETLKW") else None
        with self._lock("claims" if at is not None else told, at):
            yield self.folder / f"partial/{told}"

    def _pinned(self) -> set[str]:
        """Nobody else may change the cache meanwhile: a pin that is just being made would be taken for a dead one's."""
        found: set[str] = set()
        for path in self.folder.joinpath("pins").iterdir():
            with suppress(FileNotFoundError):
                file = disk.OpenFile(path, os.open(path, os.O_RDWR | os.O_CLOEXEC))
                try:
                    fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    disk.unlink(path)
                except BlockingIOError:
                    found.update(path.read_text().split())
                finally:
                    disk.close(file)
        return found

    def _object(self, sha256: str, file: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ValueError(f"{sha256[:80]!r} is no SHA-256 in lower-case hex")
        return self.folder / f"objects/{sha256[:2]}/{sha256}/{safe_name(file)}"

    def _index(self, name: str) -> Path:
        told = _sha256(name)
        return self.folder / f"index/{told[:2]}/{told}.json"

    def _refuse_giant(self, n_bytes: int, name: str) -> None:
        if n_bytes > self.limit_bytes:
            raise NoRoom(
                f"{name}: has {n_bytes:,} bytes, more than the {self.limit_bytes:,} that the cache {self.folder} may "
                "hold in all; give it a higher limit"
            )

    def _make_room(self, book: _Book, lacking: int, keep: str = "") -> None:
        """Evict so many bytes and a fiftieth of the limit, or all that may be evicted.

        The fiftieth, since to look for what was not used for longest takes a second where there are 20,000 files.
        """
        if lacking <= 0:
            return
        book.change()
        lacking += self.limit_bytes // 50
        staying = self._pinned() | {keep}
        used = [(max(s.st_atime_ns for s in files), folder) for folder, files in self._objects() if files]
        for _, folder in sorted(used):
            if lacking <= 0:
                return
            if folder.name not in staying:
                freed = _remove(folder)
                book.n_bytes -= freed
                lacking -= freed

    def _objects(self) -> Iterator[tuple[Path, list[os.stat_result]]]:
        """Each object's folder, and its files."""
        for shelf in sorted(self.folder.joinpath("objects").iterdir()):
            for folder in shelf.iterdir() if shelf.is_dir() else ():
                with os.scandir(folder) as files:
                    yield folder, [f.stat(follow_symlinks=False) for f in files]

    @contextmanager
    def _changing(self) -> Iterator[_Book]:
        """Be the only one that changes which objects there are; the book tells how many bytes they have."""
        with self._lock("cache") as file:
            told = os.pread(file.fd, 64, 0)
            counted = int(told) if re.fullmatch(rb"\d{1,18}\n", told) else None
            book = _Book(file, counted or 0)
            if counted is None:
                book.change()
                book.n_bytes = sum(s.st_size for _, files in self._objects() for s in files)
            yield book
            if book.changed:
                disk.write(file, memoryview(b"%d\n" % book.n_bytes))

    @contextmanager
    def _lock(self, name: str, at: int | None = None) -> Iterator[disk.OpenFile]:
        """Hold a file's lock, or that of one of its bytes, which goes with the process."""
        file = disk.open_or_create(self.folder / f"locks/{name}")
        try:
            _take(file, fcntl.LOCK_EX, at)
        except OSError as error:
            disk.close(file)
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS):
                raise ValueError(
                    f"{self.folder}: its file system knows no locks, which a cache wants; put it on another disk"
                ) from error
            raise
        try:
            yield file
        finally:
            _let_go(file, at)

    def _forget_partials(self) -> None:
        now = now_on_disk(self.folder / "tmp")
        for path in self.folder.joinpath("partial").iterdir():
            with suppress(OSError):
                if now - path.stat().st_mtime > FORGET_PARTIAL_S:
                    disk.unlink(path)


@dataclass
class _Book:
    file: disk.OpenFile
    n_bytes: int
    changed: bool = False

    def change(self) -> None:
        """Objects come or go from now on. Meanwhile the book is empty, so that who comes after a crash counts anew."""
        if not self.changed:
            self.changed = True
            disk.truncate(self.file)


def file_name(name: str) -> str:
    """Last part of an address's path, as an object may bear it."""
    return safe_name(PurePosixPath(unquote(urlsplit(name).path.replace("\0", ""))).name if "://" in name else name)


def safe_name(file: str) -> str:
    """The name itself, where it is an ordinary one; else its hash, and its ending."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.,+=-]{0,199}", file):
        return file
    ending = re.search(r"(?:\.[A-Za-z0-9]{1,8}){1,2}\Z", file)
    return _sha256(file)[:16] + (ending[0] if ending else "")


def _entry(told: Any) -> Entry | None:
    if not isinstance(told, dict):
        return None
    entry = Entry(**{f.name: told.get(f.name, f.default) for f in fields(Entry)})
    try:
        _check(entry)
    except ValueError:
        return None
    return entry


def _check(entry: Entry) -> None:
    if entry.state not in ("there", "missing", "damaged"):
        raise ValueError(f"an entry of state {entry.state!r}; wanted there, missing or damaged")
    if entry.sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
        raise ValueError(f"{entry.sha256[:80]!r} is no SHA-256 in lower-case hex")
    if entry.size is not None and (type(entry.size) is not int or entry.size < 0):
        raise ValueError(f"a size of {entry.size!r} bytes; wanted 0 or more")


def _remove(folder: Path) -> int:
    """Remove an object; how many bytes it had."""
    n_bytes = 0
    with os.scandir(folder) as files:
        for file in files:
            size = file.stat(follow_symlinks=False).st_size
            disk.unlink(Path(file.path))
            n_bytes += size
    with suppress(OSError):
        os.rmdir(folder)
    return n_bytes


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        disk.fsync(disk.OpenFile(path, fd))
    finally:
        os.close(fd)


def _take(file: disk.OpenFile, how: int, at: int | None) -> None:
    """Lock the file, for this open file alone; or one byte of it (`F_OFD_SETLKW` of fcntl(2), Linux)."""
    if at is None:
        fcntl.flock(file.fd, how)
    else:
        kind = fcntl.F_UNLCK if how == fcntl.LOCK_UN else fcntl.F_WRLCK
        fcntl.fcntl(file.fd, fcntl.F_OFD_SETLKW, struct.pack("hhqqi", kind, os.SEEK_SET, at, 1, 0))


def _let_go(file: disk.OpenFile, at: int | None = None) -> None:
    # closing alone would leave the lock with a child that was forked just now
    with suppress(OSError):
        _take(file, fcntl.LOCK_UN, at)
    disk.close(file)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
