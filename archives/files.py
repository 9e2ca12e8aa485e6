"""Survey files from a root laid out as the archive is, each held against the archive's own checksum list."""

from __future__ import annotations

import hashlib
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from skycairn.archives.errors import Changed, ChecksumMismatch, FetchError, NotPublished
from skycairn.catalogs.survey import RemoteFile, Survey

DIGEST_LENGTH = {"md5": 32, "sha1": 40, "sha256": 64}


State = list[Any]
"""How a file is known again. Below a root: size in bytes, time of change in nanoseconds, inode; a file of which none
has changed is taken to be the same. Of an archive far away: the file's own SHA-256 and size."""


def stat_of(path: Path) -> State | None:
    """How a local file is known again; None where there is no file."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ino] if stat.S_ISREG(found.st_mode) else None


class SurveyArchive(ABC):
    """One survey's files, wherever they lie; what was found of each stays as it was first found, for one build."""

    def __init__(self) -> None:
        self._lists: dict[str, dict[str, str] | None] = {}
        self.looked: dict[str, State | None] = {}
        "how each file that was asked for is known again, by path; None where it was not there"

    @abstractmethod
    def where(self, path: str) -> str:
        """The file's place, for people."""

    @abstractmethod
    def state(self, path: str) -> State | None:
        """How the file is known again; None where it is not there."""

    @abstractmethod
    def local(self, path: str) -> Path:
        """The file on this machine; NotPublished where there is none."""

    @abstractmethod
    def verify(self, path: str, listed: str | None) -> str:
        """SHA-256 of the file, read whole; ChecksumMismatch where it has not the listed digest."""

    @abstractmethod
    def check_unchanged(self, path: str, known: Sequence[Any]) -> None:
        """Changed unless the file is as it was fetched: `known` is its SHA-256, then its `state`."""

    def origin(self, path: str) -> dict[str, str]:
        """Where a file far away came from, when it was first seen, whether a published digest vouches for it."""
        return {}

    def decided(self, file: RemoteFile) -> bool:
        """Whether it is known, without asking an archive far away, if the file is there."""
        return True

    def failed(self, path: str) -> FetchError | None:
        """Why the file could not be had in this build, though another try may do; None where nothing went wrong."""
        return None

    @abstractmethod
    def as_noted(self, looked: Mapping[str, State | None]) -> bool:
        """Whether each file is still in the state that an earlier build found it in, as far as is known at once."""

    def of_service(self, path: str) -> bool:
        """Whether it is a service's reply, no file of the archive's."""
        return False

    def expect(self, checksum_lists: Iterable[str]) -> None:  # noqa: B027
        """These lists will be asked for: time to have them together."""

    def catalog_files(self, survey: Survey, cells: Iterable[int]) -> list[RemoteFile]:
        """Files that may hold sources of these work cells."""
        return survey.catalog_files(self, cells)

    def exists(self, path: str) -> bool:
        """Whether the file is there; as it was when first asked for."""
        return self.state(path) is not None

    def names(self, checksum_list: str) -> Mapping[str, str] | None:
        """Digest by file name, or None where the list is absent."""
        if checksum_list not in self._lists:
            there = self.exists(checksum_list)
            self._lists[checksum_list] = self._read_list(checksum_list) if there else None
        return self._lists[checksum_list]

    def _read_list(self, checksum_list: str) -> dict[str, str]:
        try:
            text = self.local(checksum_list).read_text()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.where(checksum_list)}: is no list of checksums: {error}") from error
        return parse_checksums(text, self.where(checksum_list))

    def listed(self, file: RemoteFile) -> str | None:
        """The digest that the archive publishes of the file; None where it publishes none."""
        if file.checksum_list is None:
            return None
        names = self.names(file.checksum_list)
        return None if names is None else names.get(PurePosixPath(file.path).name)

    def look_again(self) -> None:
        """Forget how files were found."""
        self.looked.clear()
        self._lists.clear()

    @contextmanager
    def unchanged(self, known: Mapping[str, Sequence[Any]]) -> Iterator[None]:
        """Changed unless the files are as they were fetched, before what is done with them and after it."""
        for path, how in known.items():
            self.check_unchanged(path, how)
        yield
        for path, how in known.items():
            self.check_unchanged(path, how)


class RootArchive(SurveyArchive):
    """An archive's tree on a local or mounted file system."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        if not root.is_dir():
            raise ValueError(f"{root}: no such folder; set the survey's root to where its archive's tree lies")

    def where(self, path: str) -> str:
        """The file's path."""
        return str(self.root / path)

    def state(self, path: str) -> State | None:
        """Size, time of change and inode of the file."""
        if path not in self.looked:
            self.looked[path] = stat_of(self._inside(path))
        return self.looked[path]

    def local(self, path: str) -> Path:
        """The file itself."""
        found = self._inside(path)
        if not self.exists(path):
            raise NotPublished(f"{found}: no such file; copy it from the archive")
        return found

    def verify(self, path: str, listed: str | None) -> str:
        """See `SurveyArchive.verify`."""
        return verify(self.local(path), listed)

    def check_unchanged(self, path: str, known: Sequence[Any]) -> None:
        """See `SurveyArchive.check_unchanged`; a file that was only touched is read again, and is the same."""
        found = self.local(path)
        sha256, *as_fetched = known
        if stat_of(found) != as_fetched and digests(found, "sha256")["sha256"] != sha256:
            raise Changed(f"{found}: the file was replaced while it was being read; build again")

    def as_noted(self, looked: Mapping[str, State | None]) -> bool:
        """See `SurveyArchive.as_noted`."""
        return all(stat_of(self._inside(path)) == state for path, state in looked.items())

    def _inside(self, path: str) -> Path:
        return self.root / inside(path)


@lru_cache(maxsize=1 << 12)
def inside(path: str) -> PurePosixPath:
    """A path relative to a survey's root; ValueError where it leads out of it."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\0" in path:
        raise ValueError(f"{path!r} leads out of the archive's root; a checksum list may hold only its own files")
    return pure


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
