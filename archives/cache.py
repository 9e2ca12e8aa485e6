"""What was fetched, kept by content up to a number of bytes; and what is known of every name, kept for good.

objects/ab/<sha256>/<file name>   a file, read-only, under a name whose ending readers may go by
index/ab/<sha256 of name>.json    what is known of a name (an address, or a question in full), its object evicted or not
partial/<sha256 of name>          a download under way, which another process may go on with
pins/                             who reads which objects; a pin goes with its process, however that ends
locks/                            `cache`: who changes it just now, and how many bytes it holds; the rest: `claim`s

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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from time import time_ns
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from skycairn.archives.errors import FetchError
from skycairn.pile import disk
from skycairn.pile.content import canonical_json
from skycairn.pile.files import (
    PendingFile,
    PileError,
    file_sha256,
    make_folder,
    make_root,
    now_on_disk,
    parse,
    pending_name,
    sealed,
    sweep,
    unseal,
)

FORMAT = 1
FORGET_PARTIAL_S = 14 * 24 * 3600.0
"""A download that nobody went on with for so long is removed."""
SPARE_BYTES = 1 << 26
"""That are left free on the disk."""

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
        """What is known of the name; None where nothing is, or what was written of it is damaged."""
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
            book.n_bytes -= _remove(path.parent)
        return False

    def note(self, name: str, entry: Entry) -> Entry:
        """Write down what was found of a name, no file with it; the entry as it was written."""
        entry = replace(entry, file=entry.file or file_name(name), when=entry.when or _now())
        _check(entry)
        path = self._index(name)
        make_folder(path.parent)
        with PendingFile(self.folder / "tmp") as file:
            file.write(sealed({"format": FORMAT, "name": name, "entry": asdict(entry)}))
            file.publish(path)
        return entry

    def publish(self, temporary: Path, name: str, entry: Entry) -> Path:
        """Take in a file that was found whole, moved from `temporary` on the cache's own file system; where it is now.

        The entry tells its SHA-256 and size. NoRoom where it is larger than the whole cache, or the disk lacks room.
        """
        if (sha256 := entry.sha256) is None or entry.state != "there":
            raise ValueError(f"{name}: an entry of state {entry.state} with SHA-256 {entry.sha256}; wanted a file's")
        size = temporary.stat().st_size
        if size != entry.size:
            raise ValueError(f"{name}: {temporary} has {size:,} bytes, its entry says {entry.size}; fetch it again")
        before = self.look(name)
        if not entry.first_seen:
            known = before.first_seen if before is not None and before.sha256 == entry.sha256 else ""
            entry = replace(entry, first_seen=known or _now())
        entry = replace(entry, file=safe_name(entry.file or file_name(name)))
        _check(entry)
        self._refuse_giant(size, name)
        final = self._object(sha256, entry.file)
        os.chmod(temporary, 0o444)
        _flush(temporary)
        with self._changing() as book:
            there = final.stat().st_size if final.exists() else 0
            self._make_room(book, book.n_bytes + size - there - self.limit_bytes, keep=sha256)
            make_folder(final.parents[1])
            make_folder(final.parent)
            disk.replace(temporary, final)
            disk.sync_folder(final.parent)
            os.utime(final, ns=(time_ns(), final.stat().st_mtime_ns))
            book.n_bytes += size - there
        self.note(name, entry)
        return final

    def reserve(self, n_bytes: int) -> int:
        """Evict what was not used for longest, and is not pinned, until so many bytes more have room.

        How many bytes above its limit the cache will then be, because of what is pinned; else 0. NoRoom where the limit
        is smaller than that in all, or the disk lacks room even so.
        """
        self._refuse_giant(n_bytes, "what is to come")
        with self._changing() as book:
            free = shutil.disk_usage(self.folder).free
            above = book.n_bytes + n_bytes - self.limit_bytes
            self._make_room(book, max(above, n_bytes + SPARE_BYTES - free))
            over = max(book.n_bytes + n_bytes - self.limit_bytes, 0)
        free = shutil.disk_usage(self.folder).free
        if free < n_bytes:
            raise NoRoom(
                f"{self.folder}: its disk has {free:,} bytes free, {n_bytes:,} are to come, and nothing more can be "
                "evicted; free some, or put the cache on a larger disk"
            )
        return over

    def n_bytes(self) -> int:
        """Bytes of all objects."""
        with self._changing() as book:
            return book.n_bytes

    @contextmanager
    def pin(self, sha256s: Iterable[str]) -> Iterator[None]:
        """Keep these objects, those that are there, until the end of the `with`, or of the process."""
        told = canonical_json(sorted(set(sha256s)))
        path = self.folder / "pins" / pending_name()
        with self._lock("cache"):
            file = disk.create(path)
            fcntl.flock(file.fd, fcntl.LOCK_EX)
            disk.write(file, memoryview(told))
        try:
            yield
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
        with self._lock(told, lasting=False):
            yield self.folder / "partial" / told

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
                    found.update(parse(path.read_bytes()))
                finally:
                    disk.close(file)
        return found

    def _object(self, sha256: str, file: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ValueError(f"{sha256[:80]!r} is no SHA-256 in lower-case hex")
        return self.folder / "objects" / sha256[:2] / sha256 / safe_name(file)

    def _index(self, name: str) -> Path:
        told = _sha256(name)
        return self.folder / "index" / told[:2] / f"{told}.json"

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
        """Be the only one that changes which objects there are; the book tells how many bytes they have.

        While they change the book is empty, so that who comes after a crash counts anew.
        """
        with self._lock("cache") as file:
            told = os.pread(file.fd, 64, 0)
            counted = int(told) if re.fullmatch(rb"\d{1,18}\n", told) else None
            if counted is None:
                counted = sum(s.st_size for _, files in self._objects() for s in files)
            disk.truncate(file)
            book = _Book(counted)
            yield book
            os.lseek(file.fd, 0, os.SEEK_SET)
            disk.write(file, memoryview(b"%d\n" % book.n_bytes))

    @contextmanager
    def _lock(self, name: str, lasting: bool = True) -> Iterator[disk.OpenFile]:
        """Hold a lock, which goes with the process; its file too, unless it is `lasting`."""
        path = self.folder / "locks" / name
        while True:
            file = disk.open_or_create(path)
            try:
                fcntl.flock(file.fd, fcntl.LOCK_EX)
            except OSError as error:
                disk.close(file)
                if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS):
                    raise ValueError(
                        f"{self.folder}: its file system knows no locks, which a cache wants; put it on another disk"
                    ) from error
                raise
            # its holder may have removed it while we waited: the lock that others ask for is then another file
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fd), path.stat()):
                    break
            disk.close(file)
        try:
            yield file
        finally:
            if not lasting:
                with suppress(OSError):
                    disk.unlink(path)
            _let_go(file)

    def _forget_partials(self) -> None:
        now = now_on_disk(self.folder / "tmp")
        for path in self.folder.joinpath("partial").iterdir():
            with suppress(OSError):
                if now - path.stat().st_mtime > FORGET_PARTIAL_S:
                    disk.unlink(path)


@dataclass
class _Book:
    n_bytes: int


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


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        disk.fsync(disk.OpenFile(path, fd))
    finally:
        os.close(fd)


def _let_go(file: disk.OpenFile) -> None:
    # closing alone would leave the lock with a child that was forked just now
    with suppress(OSError):
        fcntl.flock(file.fd, fcntl.LOCK_UN)
    disk.close(file)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
