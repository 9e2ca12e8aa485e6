"""Survey files from a root laid out as the archive is, each held against the archive's own checksum list.

FetchError
  ChecksumMismatch    the file's digest is not the one that the archive publishes
  NotPublished        the archive has no such file
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from skycairn.catalogs.survey import RemoteFile

DIGEST_LENGTH = {"md5": 32, "sha1": 40, "sha256": 64}


class FetchError(Exception):
    """A file of an archive could not be had."""


class ChecksumMismatch(FetchError):
    """The file's digest is not the one that the archive publishes."""


class NotPublished(FetchError):
    """The archive has no such file."""


@dataclass
class RootArchive:
    """An archive's tree on a local or mounted file system."""

    root: Path

    def __post_init__(self) -> None:
        self._lists: dict[str, dict[str, str] | None] = {}
        if not self.root.is_dir():
            raise ValueError(f"{self.root}: no such folder; set the survey's root to where its archive's tree lies")

    def exists(self, path: str) -> bool:
        """Whether the file is there."""
        return self._inside(path).is_file()

    def local(self, path: str) -> Path:
        """The file; NotPublished where there is none."""
        found = self._inside(path)
        if not found.is_file():
            raise NotPublished(f"{found}: no such file; copy it from the archive")
        return found

    def names(self, checksum_list: str) -> Mapping[str, str] | None:
        """Digest by file name, or None where the list is absent."""
        if checksum_list not in self._lists:
            path = self._inside(checksum_list)
            self._lists[checksum_list] = parse_checksums(path.read_text(), str(path)) if path.is_file() else None
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
