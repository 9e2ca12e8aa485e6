"""Files that no archive holds as files: what a service says when it is asked, one table a work cell."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from skycairn.catalogs.survey import RemoteFile

Have = Callable[[str], Path]
"""Another file of the same archive, by its path: on this machine, fetched first where it has to be."""


class Service(Protocol):
    """A service of one survey. Its files have paths below `prefix`, relative to the survey's root like any other's."""

    @property
    def prefix(self) -> str:
        """What its paths begin with: `query/..` unless the survey's layout has a place for replies, as HSC's has."""

    def catalog_files(self, cells: Iterable[int]) -> list[RemoteFile] | None:
        """The catalogue files of these work cells; None where the survey's own `catalog_files` names them."""

    def question(self, path: str) -> str:
        """All that decides the reply: the service's address and the query, in full, and never a secret.

        It asks nobody and reads nothing: the cache looks files up by it, on workers too, which have no network.
        """

    def fetch(self, path: str, into: Path, have: Have) -> None:
        """Ask, and write the reply to the new file `into`: rows sorted by key, the same bytes for the same rows.

        Raises the errors of `skycairn.archives.errors`.
        """
