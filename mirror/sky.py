"""A mock sky as its archives would serve it, each under its own address."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from urllib.parse import urlsplit

from skycairn.catalogs.registry import survey
from skycairn.mirror import datalab
from skycairn.mirror.datalink import DataLink
from skycairn.mirror.hscjobs import HscJobs
from skycairn.mirror.server import Mirror, Service, Spoiler
from skycairn.mirror.skyserver import SkyServer, SpecFiles
from skycairn.mirror.tap import Tap, gaia_spectra, gaia_tables
from skycairn.mirror.viewer import Viewer

RELEASES = {"legacysurvey": "dr10", "hsc": "pdr3-wide", "gaia": "dr3", "desi": "dr1", "sdss": "dr17"}
"""What each folder of a mock sky is the root of."""
NOT_FILES = {"hsc": ("sql",)}
"""Folders of a root that the archive has not: what its database gave, which a service gives."""
HSC_ACCOUNT = ("mock", "mock")
"""User and password that the mirror's HSC wants for its files, unless it is told others."""


class SkyMirror(Mirror):
    """A mirror that knows the root of each survey."""

    def __init__(
        self,
        sky: Path,
        services: Mapping[str, Sequence[Service]] | None = None,
        faults: Spoiler | None = None,
        accounts: Mapping[str, tuple[str, str]] | None = None,
        port: int = 0,
    ) -> None:
        self.archives = {name: survey(name, release).url for name, release in RELEASES.items() if (sky / name).is_dir()}
        "address of the archive's own root, by survey"
        if not self.archives:
            raise ValueError(
                f"{sky}: holds no survey's folder ({', '.join(RELEASES)}); make a sky there with `skycairn mock`"
            )
        folders = {}
        for name, url in self.archives.items():
            parts = urlsplit(url)
            root, left_out = parts.netloc + parts.path, NOT_FILES.get(name, ())
            shown = {f"{root}/{p.name}": p for p in sorted((sky / name).iterdir()) if p.name not in left_out}
            folders.update(shown if left_out else {root: sky / name})
        if accounts is None and "hsc" in self.archives:
            accounts = {host(self.archives["hsc"]): HSC_ACCOUNT}
        super().__init__(folders, services, faults, accounts, port)

    def root(self, name: str) -> str:
        """The address that stands for the survey's root."""
        if name not in self.archives:
            raise ValueError(f"this mirror has no survey {name!r}; it has {', '.join(self.archives)}")
        return self.of(self.archives[name])


def host(url: str) -> str:
    """The archive's host, by which services and accounts are named."""
    return urlsplit(url).netloc


def mirror_of(
    sky: Path,
    faults: Spoiler | None = None,
    services: Mapping[str, Sequence[Service]] | None = None,
    accounts: Mapping[str, tuple[str, str]] | None = None,
    port: int = 0,
) -> SkyMirror:
    """The sky that `skycairn mock` wrote, as its archives would serve it.

    `services` and `accounts`: by host. Without `accounts`, HSC's files want `HSC_ACCOUNT`; with `{}`, none.
    ValueError where no survey's folder is there.
    """
    return SkyMirror(sky, services, faults, accounts, port)


def services_of(sky: Path) -> dict[str, list[Service]]:
    """The archives' services over this sky, by host: HSC's jobs, Gaia's TAP and DataLink, SkyServer, Data Lab, the
    Legacy Surveys' viewer.
    """
    out: dict[str, list[Service]] = {}
    if (sky / "hsc").is_dir():
        out["hsc-release.mtk.nao.ac.jp"] = [HscJobs(sky / "hsc", *HSC_ACCOUNT)]
    if (sky / "gaia").is_dir():
        spectra = cache(partial(gaia_spectra, sky / "gaia"))
        out["gea.esac.esa.int"] = [Tap(gaia_tables(sky / "gaia")), DataLink(spectra)]
    if (sky / "sdss").is_dir():
        out["skyserver.sdss.org"] = [SkyServer(sky / "sdss")]
        out["data.sdss.org"] = [SpecFiles(sky / "sdss")]
    if (sky / "legacysurvey").is_dir():
        out["www.legacysurvey.org"] = [Viewer(sky / "legacysurvey")]
    redshifts = sorted((sky / "desi").glob("zcatalog/*/zall-pix-*.fits"))
    databases = [datalab.tractor(sky / "legacysurvey")] if (sky / "legacysurvey").is_dir() else []
    databases += [datalab.zpix(redshifts[0])] if redshifts else []
    if databases:
        out["datalab.noirlab.edu"] = [datalab.service(databases)]
    return out


def serve(
    sky: Path,
    port: int = 0,
    faults: Spoiler | None = None,
    services: Mapping[str, Sequence[Service]] | None = None,
    accounts: Mapping[str, tuple[str, str]] | None = None,
    say: Callable[[str], None] = print,
    until: threading.Event | None = None,
) -> None:
    """Serve the sky until `until` is set, or Control-C; says where each survey's root is, and how it is used."""
    try:
        with mirror_of(sky, faults, services, accounts, port) as mirror:
            for name, url in mirror.archives.items():
                account = f"  (account of {mirror.accounts[host(url)][0]})" if host(url) in mirror.accounts else ""
                say(f"{name:13} {RELEASES[name]:10} {mirror.root(name)}{account}")
            say(f'build from it: with `mirror = "{mirror.url}"` in [download] of a recipe, --source archive or query')
            say(f"look at it: skycairn doctor --mirror {mirror.url}")
            if wanted := mirror.accounts.get(host(mirror.archives.get("hsc", ""))):
                say(f"its HSC takes this account alone: SSP_PDR_USR={wanted[0]} SSP_PDR_PWD={wanted[1]}")
            (until or threading.Event()).wait()
    except KeyboardInterrupt:
        pass
