"""What an archive has, asked without fetching it: its lists and small tables come, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from skycairn.archives.cache import Cache
from skycairn.archives.errors import FetchError
from skycairn.archives.files import RootArchive, inside
from skycairn.archives.remote import RemoteArchive, Services
from skycairn.catalogs.survey import RemoteFile, Survey

AT_ONCE = 8
"""Sizes that are asked for together; the client keeps to what each host allows."""


class TooMany(FetchError):
    """More would have to be asked than was allowed."""


class Inventory(RemoteArchive):
    """An archive, and a folder laid out as it is in which some of its files lie already."""

    def __init__(
        self,
        survey: Survey,
        url: str,
        cache: Cache,
        mirror: str,
        services: Services,
        root: Path | None = None,
        most_asked: int | None = None,
    ) -> None:
        """`root`: the folder, made or not. `most_asked`: lists and tables that may be fetched, TooMany above."""
        self.root = RootArchive(root) if root is not None and root.is_dir() else None
        self.most_asked = most_asked
        super().__init__(survey, url, cache, mirror, services)

    def here(self, path: str) -> Path | None:
        """The file below the root; None where it is not there."""
        found = None if self.root is None else self.root.root / inside(path)
        return found if found is not None and found.is_file() else None

    def exists(self, path: str) -> bool:
        """Whether the root or the archive has the file; asked of the archive without fetching it."""
        if self.here(path) is not None:
            return True
        if error := self.failed(path):
            raise error
        if path not in self.looked and not self.decided(RemoteFile(path)):
            self._count(path)
            return self.head(path) is not None
        return self.looked[path] is not None

    def local(self, path: str) -> Path:
        """The root's own, or fetched."""
        return self.here(path) or super().local(path)

    def names(self, checksum_list: str) -> Mapping[str, str] | None:
        """See `SurveyArchive.names`; the list is fetched."""
        if checksum_list not in self._lists and self.here(checksum_list) is None:
            self.bring(RemoteFile(checksum_list))
        return super().names(checksum_list)

    def knows(self, checksum_list: str) -> bool:
        """Whether the list can be read, or is known to be absent, without asking for it."""
        return self.here(checksum_list) is not None or self.decided(RemoteFile(checksum_list))

    def bring(self, file: RemoteFile) -> bool:
        """See `RemoteArchive.bring`."""
        if not self.decided(file):
            self._count(file.path)
        return super().bring(file)

    def expect(self, checksum_lists: Iterable[str]) -> None:
        """See `SurveyArchive.expect`."""
        super().expect([path for path in checksum_lists if self.here(path) is None])

    def sizes(self, paths: Iterable[str]) -> dict[str, int | None]:
        """Bytes of the files as the archive says, None where it does not; those that it has not are left out."""
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="sizes") as pool:
            wanted = list(paths)
            try:
                heads = list(pool.map(self.head, wanted))
            except BaseException:
                # else the pool would wait for what is under way
                if self.client is not None:
                    self.client.close()
                raise
        return {path: head.size for path, head in zip(wanted, heads, strict=True) if head is not None}

    def _count(self, path: str) -> None:
        if self.client is None:
            raise FetchError(f"{self.where(path)}: is not here, and the archive is not asked")
        if self.most_asked is not None:
            self.most_asked -= 1
            if self.most_asked < 0:
                raise TooMany(f"{self.survey.name}: its files are told by more lists than are fetched for a look ahead")
