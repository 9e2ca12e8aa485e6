"""A download under way: `<into>.part`, and `<into>.part.json` beside it that tells whose bytes they are.

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
        if not self.n_bytes:
            for path in (self.path, self._told):
                with suppress(OSError):
                    disk.unlink(path)
        self._close()

    def _go_on(self, url: str) -> None:
        self._hashers = {name: hashlib.new(name, usedforsecurity=False) for name in self._algorithms}
        try:
            told = parse(self._told.read_bytes())
            version = Version(**told)
        except (OSError, ValueError, TypeError):
            version = Version("")
        if version.url != url or version.validator is None:
            self.restart(None)
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
        with suppress(FileNotFoundError):
            disk.unlink(self._told)
        disk.truncate(self._file)
        os.lseek(self._file.fd, 0, os.SEEK_SET)
        self._hashers = {name: hashlib.new(name, usedforsecurity=False) for name in self._algorithms}
        self.n_bytes, self.version = 0, version
        if version is not None:
            told = disk.open_or_create(self._told)
            try:
                disk.truncate(told)
                disk.write(told, memoryview(canonical_json(asdict(version))))
            finally:
                disk.close(told)

    def append(self, block: bytes) -> None:
        """The next bytes."""
        disk.write(self._file, memoryview(block))
        self._digest(block)

    def digest(self, algorithm: str) -> str:
        """Of all bytes so far, in lower-case hex."""
        return self._hashers[algorithm].hexdigest()

    def publish(self) -> None:
        """Put the file into place, over one that may be there, so that it outlives a power cut."""
        disk.fsync(self._file)
        disk.replace(self.path, self.into)
        with suppress(FileNotFoundError):
            disk.unlink(self._told)
        disk.sync_folder(self.into.parent)
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
