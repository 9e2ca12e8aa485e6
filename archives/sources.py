"""Where a survey's files come from: a folder, its archive, its catalogue service, a HATS collection."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from skycairn.archives.cache import Cache
from skycairn.archives.client import Client
from skycairn.archives.files import RootArchive, SurveyArchive
from skycairn.archives.hosts import HOSTS
from skycairn.archives.hscjobs import HscJobs
from skycairn.archives.remote import RemoteArchive
from skycairn.archives.service import Service
from skycairn.catalogs.survey import Survey

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
        return RootArchive(Path(root))
    cache = Cache(Path(download.cache) if download.cache else default_cache(download.mirror), download.limit_bytes)
    return RemoteArchive(survey, url or survey.url, cache, services(survey, source, download), download.mirror)


def services(survey: Survey, source: str, download: Download) -> list[Service]:
    """Services that give what the archive does not hold as files."""
    if survey.name == "hsc":
        return [HscJobs(survey.url, mirror=download.mirror)]
    return []


def open_client(download: Download) -> Client:
    """The one client of a process that downloads."""
    return Client(HOSTS, contact=download.contact, loopback=download.mirror.startswith("http://127.0.0.1"))
