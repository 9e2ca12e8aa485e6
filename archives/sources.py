"""Where a survey's files come from: a folder, its archive, its catalogue service, a HATS collection."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from skycairn.archives import viewer
from skycairn.archives.cache import Cache
from skycairn.archives.client import Client
from skycairn.archives.errors import NotPublished, Refused
from skycairn.archives.files import RootArchive, SurveyArchive
from skycairn.archives.hosts import HOSTS
from skycairn.archives.hscjobs import HscDatabase, plain_post
from skycairn.archives.inventory import Inventory
from skycairn.archives.remote import RemoteArchive
from skycairn.archives.service import Service
from skycairn.catalogs.hscfiles import TRACT_PATCHES
from skycairn.catalogs.survey import Survey

MOST_TABLE_BYTES = 4 << 30
"""Of a table that a service sends."""
SOURCES = {
    "root": "files below `root`, laid out as the archive is",
    "archive": "the archive's own files, over HTTPS",
    "query": "the archive's catalogue service, a work cell at a time; pixels and spectra from its files",
    "hats": "a HATS collection for the catalogue; pixels and spectra from the archive's files",
}


@dataclass(frozen=True)
class Download:
    """How files of archives far away are had; no part of a pile's content."""

    cache: str = ""
    "folder that the workers see too; $SKYCAIRN_CACHE, else ~/.cache/skycairn"
    limit_bytes: int = 100_000_000_000
    "what the cache may hold; what was used longest ago goes first"
    contact: str = ""
    "an e-mail address that archives may write to, sent along with each request"
    mirror: str = ""
    "address that serves every archive below its host's name: http://127.0.0.1:8000 for .../cdn.gea.esac.esa.int/Gaia"


def default_cache(mirror: str = "") -> Path:
    """The folder of the cache where none is named; each mirror has one of its own."""
    folder = Path(os.environ.get("SKYCAIRN_CACHE") or Path.home() / ".cache" / "skycairn").expanduser().resolve()
    return folder / "mirrors" / quote(mirror, safe="") if mirror else folder


def open_archive(survey: Survey, source: str, root: str, url: str, download: Download) -> SurveyArchive:
    """The survey's files from this source; without a client, so that only what is in the cache can be read."""
    if source == "root":
        if survey.cutouts:
            raise ValueError(
                f'{survey.name}: pixels = "cutout" are asked of the archive\'s service, and no root holds them; set '
                f'surveys.{survey.name}.source to "archive" or "query" (--source), or pixels to "coadd"'
            )
        return RootArchive(Path(root))
    cache = Cache(Path(download.cache) if download.cache else default_cache(download.mirror), download.limit_bytes)
    collection, files = (url, "") if source == "hats" else ("", url)
    services = partial(_services, source=source, collection=collection)
    return RemoteArchive(survey, files or survey.url, cache, download.mirror, services)


def open_inventory(
    survey: Survey, source: str, root: str, url: str, download: Download, most_asked: int | None = None
) -> Inventory:
    """What the survey's archive has, and what of it lies below the root; see `Inventory`."""
    cache = Cache(Path(download.cache) if download.cache else default_cache(download.mirror), download.limit_bytes)
    collection, files = (url, "") if source == "hats" else ("", url)
    services = partial(_services, source="archive" if source in ("", "root") else source, collection=collection)
    folder = Path(root) if root else None
    return Inventory(survey, files or survey.url, cache, download.mirror, services, folder, most_asked)


def _services(archive: RemoteArchive, source: str, collection: str) -> list[Service]:
    """Services that give what the archive does not hold as files: its catalogue, its cut-outs."""
    cutouts: list[Service] = []
    if archive.survey.cutouts:
        cutouts = [viewer.Viewer(archive.mirrored(viewer.URL), archive.client)]
    return [*_catalogues(archive, source, collection), *cutouts]


def _catalogues(archive: RemoteArchive, source: str, collection: str) -> list[Service]:
    """Those that no query is asked of import nothing of their client libraries."""
    name, release = archive.survey.name, archive.survey.release
    if name == "hsc" and source in ("archive", "query"):
        post = plain_post if archive.client is None else partial(post_once, archive.client)
        tract_list = partial(archive.local, TRACT_PATCHES)
        return [HscDatabase(archive.mirrored(archive.survey.url), post=post, tract_list=tract_list)]
    if source == "query" and name == "gaia":
        from skycairn.archives import gaiaquery

        at = gaiaquery.Settings()
        tap, data = archive.mirrored(at.tap_url), archive.mirrored(at.data_url)
        return [gaiaquery.GaiaQuery(release, replace(at, tap_url=tap, data_url=data))]
    if source == "query" and name == "sdss":
        from skycairn.archives import sdssquery

        return [sdssquery.SdssQuery(archive.mirrored(sdssquery.URL))]
    if source == "query" and name in ("legacysurvey", "desi"):
        from skycairn.archives import datalab

        made = datalab.legacysurvey if name == "legacysurvey" else datalab.desi
        return [made(release, url=archive.mirrored(datalab.URL))]
    if source == "hats":
        return [_collection(name, collection)]
    if source == "archive":
        return []
    raise ValueError(f"{name} has no catalogue service; choose another source: archive, or root")


def _collection(name: str, address: str) -> Service:
    from skycairn.archives import hatssource

    if name == "gaia":
        return hatssource.gaia(address) if address else hatssource.gaia()
    if name not in ("desi", "sdss"):
        raise ValueError(f"{name} is not read from HATS collections; gaia, desi and sdss are")
    if not address:
        raise ValueError(f"surveys.{name}.url is not set; with source hats it names the collection")
    return hatssource.desi(address) if name == "desi" else hatssource.sdss(address)


def post_once(client: Client, url: str, body: dict[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
    """As the job service wants it; what was submitted twice would run twice."""
    try:
        answer = client.send("POST", url, json=body, again=not url.endswith("/submit"), most_bytes=MOST_TABLE_BYTES)
    except Refused:
        return 401, {}, b""
    except NotPublished:
        return 404, {}, b""
    return answer.status, answer.headers, answer.content


def open_client(download: Download) -> Client:
    """The one client of a process that downloads."""
    return Client(HOSTS, contact=download.contact, loopback=download.mirror.startswith("http://127.0.0.1"))
