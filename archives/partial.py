"""A download under way: `<into>.part`, and beside it, where there is much of it, `.part.json` that tells whose it is.

Both outlive the process, so that another goes on where one was killed. Nothing is at `into` before `publish`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from skycairn.archives.errors import Busy
from skycairn.pile import disk
from skycairn.pile.content import canonical_json
from skycairn.pile.files import parse

NOTED_FROM = 1 << 20
"""Bytes from which on it is written down whose they are; fewer are soon fetched anew, should the process be killed."""
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)


@dataclass(frozen=True)
class Version:
    """Which version of a file the bytes are of, as the archive tells it."""

    url: str
    etag: str | None = None
    last_modified: str | None = None
    length: int | None = None

    @property
    def validator(self) -> str | None:
        """What `If-Range` may say: a strong ETag, else the time of change; None where a part cannot be gone on with."""
        if self.etag and self.etag.startswith('"'):
            return self.etag
        return self.last_modified


class Partial:
    """The bytes of one file so far, and their digests. One process and thread holds it; Busy for others."""

    def __init__(self, into: Path, url: str, algorithms: frozenset[str]) -> None:
        self.into, self.path = into, into.with_name(f"{into.name}.part")
        self._told = into.with_name(f"{into.name}.part.json")
        self._algorithms = algorithms | {"sha256"}
        self._file = _locked(self.path)
        self.version: Version | None = None
        self.n_bytes = 0
        self._noted = False
        "whether `.part.json` may be there"
        try:
            self._go_on(url)
        except BaseException:
            disk.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file.fd < 0:
            return
        if self.n_bytes:
            self._note()
        else:
            for path in (self.path, self._told):
                with suppress(OSError):
                    disk.unlink(path)
        self._close()

    def _go_on(self, url: str) -> None:
        self._hashers = {name: hashlib.new(name, usedforsecurity=False) for name in self._algorithms}
        try:
            told = parse(self._told.read_bytes())
            self._noted = True
            version = Version(**told)
        except FileNotFoundError:
            version = Version("")
        except (OSError, ValueError, TypeError):
            self._noted = True
            version = Version("")
        if version.url != url or version.validator is None:
            if self._noted or os.fstat(self._file.fd).st_size:
                self._empty()
            return
        self.version = version
        with self.path.open("rb") as stream:
            while block := stream.read(1 << 20):
                self._digest(block)
        os.lseek(self._file.fd, self.n_bytes, os.SEEK_SET)

    def _digest(self, block: bytes) -> None:
        for hasher in self._hashers.values():
            hasher.update(block)
        self.n_bytes += len(block)

    def restart(self, version: Version | None) -> None:
        """Forget the bytes that are there; those that come are of this version."""
        if self.n_bytes or self._noted:
            self._empty()
        self.version = version

    def _empty(self) -> None:
        with suppress(FileNotFoundError):
            disk.unlink(self._told)
        self._noted = False
        disk.truncate(self._file)
        os.lseek(self._file.fd, 0, os.SEEK_SET)
        self._hashers = {name: hashlib.new(name, usedforsecurity=False) for name in self._algorithms}
        self.n_bytes = 0

    def _note(self) -> None:
        """Write down whose the bytes are, once."""
        if self._noted or self.version is None:
            return
        self._noted = True
        told = disk.open_or_create(self._told)
        try:
            disk.truncate(told)
            disk.write(told, memoryview(canonical_json(asdict(self.version))))
        finally:
            disk.close(told)

    def append(self, block: bytes) -> None:
        """The next bytes."""
        disk.write(self._file, memoryview(block))
        self._digest(block)
        if self.n_bytes >= NOTED_FROM:
            self._note()

    def digest(self, algorithm: str) -> str:
        """Of all bytes so far, in lower-case hex."""
        return self._hashers[algorithm].hexdigest()

    def publish(self) -> None:
        """Put the file into place, over one that may be there; who wants it to outlive a power cut flushes it."""
        if self._noted:
            with suppress(FileNotFoundError):
                disk.unlink(self._told)
        disk.replace(self.path, self.into)
        self._close()

    def _close(self) -> None:
        file, self._file = self._file, disk.OpenFile(self.path, -1)
        # closing alone would leave the lock with a child that was forked just now
        with suppress(OSError):
            fcntl.flock(file.fd, fcntl.LOCK_UN)
        disk.close(file)


def _locked(path: Path) -> disk.OpenFile:
    while True:
        file = disk.open_or_create(path)
        try:
            fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            disk.close(file)
            raise Busy(f"{path}: another process or thread fetches this file just now; ask again later") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                disk.close(file)
                raise
        # its holder may have published it since we opened it: what we hold would then be the finished file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fd), path.stat()):
                return file
        disk.close(file)
