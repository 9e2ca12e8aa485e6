"""Cut-outs of the Legacy Surveys' viewer as files: one question a source, asked by the client of all other files.

The address and its parameters are those of legacysurvey.org/viewer; they were not verified against the service by this
project, nor that `ls-dr9-*` and `ls-dr8-*` are layers of it (`ls-dr10-south` is on its pages).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlencode

from skycairn.archives.client import Client
from skycairn.archives.errors import Changed, FetchError, NotPublished
from skycairn.archives.service import Have
from skycairn.archives.structure import check_structure
from skycairn.catalogs.survey import RemoteFile
from skycairn.catalogs.viewerimage import FOLDER, PIXEL_ARCSEC, Asked, read_reply

URL = "https://www.legacysurvey.org/viewer/fits-cutout"


class Viewer:
    """The service that cuts FITS cubes out of the coadds, resampled about a position."""

    prefix = FOLDER

    def __init__(self, url: str = URL, client: Client | None = None) -> None:
        self.url, self.client = url, client

    def catalog_files(self, cells: Iterable[int]) -> list[RemoteFile] | None:
        """None: it has no catalogue."""
        return None

    def question(self, path: str) -> str:
        """The whole address of a cut-out."""
        try:
            asked = Asked.of(path)
        except ValueError as error:
            raise NotPublished(str(error)) from None
        told = {"ra": asked.ra, "dec": asked.dec, "layer": asked.layer, "pixscale": str(PIXEL_ARCSEC)}
        return f"{self.url}?{urlencode({**told, 'bands': asked.bands, 'size': str(asked.size)})}"

    def fetch(self, path: str, into: Path, have: Have) -> None:
        """Ask, and keep the reply as it came; FetchError where it is another cut-out than was asked for."""
        url = self.question(path)
        if self.client is None:
            raise Changed(f"{path}: is not in the cache of this worker; do all see the same folder?")
        try:
            self.client.download(url, into, check=lambda file: check_structure(file, path))
        except FetchError as error:
            # the client's own words hold no query, so that they do not tell which source it was
            raise type(error)(f"{path}: {error}") from error
        try:
            read_reply(into, Asked.of(path))
        except ValueError as error:
            into.unlink()
            raise FetchError(f"{path}: {error}".replace(str(into), self.url)) from error
