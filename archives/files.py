"""Survey files from a root laid out as the archive is, each held against the archive's own checksum list."""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from skycairn.archives.errors import Changed, ChecksumMismatch, NotPublished
from skycairn.catalogs.survey import RemoteFile

DIGEST_LENGTH = {"md5": 32, "sha1": 40, "sha256": 64}


Stat = list[int]
"""Size in bytes, time of change in nanoseconds, inode: a file of which none has changed is taken to be the same."""


def stat_of(path: Path) -> Stat | None:
    """How a file is known again; None where there is no file."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ino] if stat.S_ISREG(found.st_mode) else None


@dataclass
class RootArchive:
    """An archive's tree on a local or mounted file system; it remembers how it found what it was asked for."""

    root: Path

    def __post_init__(self) -> None:
        self._lists: dict[str, dict[str, str] | None] = {}
        self.looked: dict[str, Stat | None] = {}
        "size, time of change and inode of each file that was asked for, by path; None where it was not there"
        if not self.root.is_dir():
            raise ValueError(f"{self.root}: no such folder; set the survey's root to where its archive's tree lies")

    def exists(self, path: str) -> bool:
        """Whether the file is there; as it was when first asked for."""
        return self.stat(path) is not None

    def look_again(self) -> None:
        """Forget how files were found."""
        self.looked.clear()
        self._lists.clear()

    def stat(self, path: str) -> Stat | None:
        """Size, time of change and inode of the file, None where it is not there; as it was when first asked for."""
        if path not in self.looked:
            self.looked[path] = stat_of(self._inside(path))
        return self.looked[path]

    def local(self, path: str) -> Path:
        """The file; NotPublished where there is none."""
        found = self._inside(path)
        if not self.exists(path):
            raise NotPublished(f"{found}: no such file; copy it from the archive")
        return found

    def names(self, checksum_list: str) -> Mapping[str, str] | None:
        """Digest by file name, or None where the list is absent."""
        if checksum_list not in self._lists:
            path = self._inside(checksum_list)
            there = self.exists(checksum_list)
            self._lists[checksum_list] = parse_checksums(path.read_text(), str(path)) if there else None
        return self._lists[checksum_list]

    def listed(self, file: RemoteFile) -> str | None:
        """The digest that the archive publishes of the file; None where it publishes none."""
        if file.checksum_list is None:
            return None
        names = self.names(file.checksum_list)
        if names is None:
            return None
        return names.get(PurePosixPath(file.path).name)

    def _inside(self, path: str) -> Path:
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or "\0" in path:
            raise ValueError(f"{path!r} leads out of the archive's root; a checksum list may hold only its own files")
        return self.root / pure


def parse_checksums(text: str, where: str) -> dict[str, str]:
    """Digest by file name from a list as md5sum, sha1sum and sha256sum write it, binary flag and CRLF included."""
    out: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        found = re.fullmatch(r"([0-9a-fA-F]{32,128})\s+\*?(?:\./)?(\S.*?)\s*", line)
        if found is None or len(found[1]) not in DIGEST_LENGTH.values():
            raise ValueError(f"{where}: line {number} is {line[:60]!r}; wanted `<digest>  <file name>`")
        digest, name = found[1].lower(), found[2]
        if out.setdefault(name, digest) != digest:
            raise ValueError(f"{where}: line {number} gives {name!r} a second, other digest")
    return out


def digests(path: Path, *algorithms: str) -> dict[str, str]:
    """Digests of a file, read once."""
    hashers = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            for hasher in hashers.values():
                hasher.update(block)
    return {name: hasher.hexdigest() for name, hasher in hashers.items()}


def verify(path: Path, listed: str | None) -> str:
    """SHA-256 of the file, which must have the listed digest where there is one."""
    published = next((name for name, n in DIGEST_LENGTH.items() if listed and n == len(listed)), "sha256")
    found = digests(path, "sha256", published)
    if listed is not None and found[published] != listed.lower():
        raise ChecksumMismatch(
            f"{path}: its {published} is {found[published][:12]}.., the archive's list says {listed[:12]}..; "
            "fetch the file again"
        )
    return found["sha256"]


def check_unchanged(path: Path, known: Sequence[Any]) -> None:
    """Changed unless the file is as it was fetched: `known` is its SHA-256, then its `stat_of`.

    One that was only touched is read again, and is the same.
    """
    sha256, *as_fetched = known
    if stat_of(path) != as_fetched and digests(path, "sha256")["sha256"] != sha256:
        raise Changed(f"{path}: the file was replaced while it was being read; build again")


@contextmanager
def unchanged_files(archive: RootArchive, known: Mapping[str, Sequence[Any]]) -> Iterator[None]:
    """Changed unless the files are as they were fetched, before what is done with them and after it."""
    for path, how in known.items():
        check_unchanged(archive.local(path), how)
    yield
    for path, how in known.items():
        check_unchanged(archive.local(path), how)
