"""What it is to check an archive: one question with a known answer, and what all such questions share.

A check holds what an archive says against what this code takes for granted. Its words name what was found; `Differs`
says that the archive is there and is otherwise, `Skip` that nothing was asked. Each asks for little: a head, the start
of a file, a row. Samples are names of files and places that are looked at, as the archives have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from skycairn.archives.cache import Cache
from skycairn.archives.client import Client, Head
from skycairn.archives.credentials import basic_auth, credential
from skycairn.archives.errors import FetchError, NotPublished
from skycairn.archives.remote import ACCOUNTS, RemoteArchive
from skycairn.catalogs.registry import survey
from skycairn.catalogs.survey import RemoteFile

Status = Literal["ok", "differs", "failed", "skipped"]
"""The archive is as assumed; is there and is otherwise; cannot be asked, or gives what is broken; was not asked."""

RELEASES: Mapping[str, str] = {
    "legacysurvey": "dr10",
    "hsc": "pdr3-wide",
    "gaia": "dr3",
    "desi": "dr1",
    "sdss": "dr17",
}
"""That are checked."""
MOST_BYTES = 64 << 20
"""Of a file that is fetched whole, unless `deep`."""
ROOM_BYTES = 8 << 30
"""For all files of one run."""


class Differs(Exception):
    """The archive is there, and not as it is taken to be; says what was found and what was assumed."""


class Skip(Exception):
    """Nothing was asked; says why, and what to do about it."""


@dataclass(frozen=True)
class Samples:
    """What is looked at. An empty text or a zero leaves its checks out.

    Those of the archives themselves: that a sample exists is taken from public pages and public code, not verified.
    """

    brick: str = "1126p222"
    "whose coadds are listed and of which the smallest is fetched"
    tractor_brick: str = "1126p222"
    n_sweeps: int = 1436
    "that the list of DR10's sweeps names"
    legacysurvey_cell: int = 6156
    "work cell (HEALPix order 6, NESTED) with sources"
    desi: str = "main/dark/10000"
    "survey, program and healpix of a folder of coadds"
    plates: str = "sdss/spectro/redux/plates-dr17.fits"
    spectra: str = "26/266/51602/1 103/2475/53845/1 104/2640/54806/1 v5_13_2/3586/55181/16"
    "RUN2D/PLATE/MJD/FIBERID, one of each place of spectra"
    sdss_cell: int = 17406
    n_gaia: int = 3386
    "files of each of Gaia's lists, which cover the whole sky without a gap"
    gaia_range: str = "674968-674984"
    gaia_cell: int = 17404
    hats: str = "https://data.lsdb.io/hats/gaia_dr3/gaia"
    patch: str = "9944/1,2"
    "tract and patch of HSC's wide layer with coadds"

    def changed(self, told: Mapping[str, str]) -> Self:
        """With other names of some samples, as texts; ValueError for what is no sample."""
        known = {f.name: type(f.default) for f in fields(self)}
        new: dict[str, str | int] = {}
        for name, text in told.items():
            if name not in known:
                raise ValueError(f"there is no sample {name!r}; there are {', '.join(known)}")
            if known[name] is int and not text.isdecimal():
                raise ValueError(f"sample {name} is {text!r}; wanted a whole number, 0 leaves its check out")
            new[name] = int(text) if known[name] is int else text
        return replace(self, **new)  # type: ignore[arg-type]


def sample(value: str | int, name: str) -> str:
    """The sample's text; Skip where there is none."""
    if not value:
        raise Skip(f"no sample is named; name one by --sample {name}=...")
    return str(value)


@dataclass
class Doctor:
    """What the checks ask with."""

    client: Client
    folder: Path
    "empty; for what is fetched, the caller takes it away"
    samples: Samples = field(default_factory=Samples)
    mirror: str = ""
    "address that serves every archive below its host's name"
    deep: bool = False
    "whether large files are fetched too"
    patience_s: float = 300.0
    "for a job at a service"

    @cached_property
    def archives(self) -> dict[str, RemoteArchive]:
        """The files of each survey, fetched as a build fetches them."""
        cache, out = Cache(self.folder / "cache", ROOM_BYTES), {}
        for name, release in RELEASES.items():
            of = survey(name, release)
            out[name] = RemoteArchive(of, of.url, cache, self.mirror)
            out[name].connect(self.client)
        return out

    def at(self, url: str) -> str:
        """The service's address, on the mirror if there is one."""
        return self.archives["gaia"].mirrored(url)

    def head(self, name: str, path: str) -> Head | None:
        """What the survey's archive says of a file; None where it has none."""
        return self.client.head(self.archives[name].address(path), auth=self._auth(name))

    def start(self, name: str, path: str, n_bytes: int, at: int = 0) -> bytes:
        """So many bytes of a file from there, or what there is of them; NotPublished, FetchError."""
        url = self.archives[name].address(path)
        asked = {"range": f"bytes={at}-{at + n_bytes - 1}"}
        answer = self.client.send("GET", url, headers=asked, most_bytes=n_bytes, auth=self._auth(name))
        said = answer.headers.get("content-range", "")
        if answer.status == 206 and said.startswith(f"bytes {at}-"):
            return answer.content
        if answer.status == 200 and at == 0:
            return answer.content
        raise FetchError(f"{url}: answered {answer.status} {said!r}; wanted the bytes from {at:,} on (206)")

    def listed(self, name: str, checksum_list: str) -> Mapping[str, str]:
        """Digest by file name; Differs where the archive has no such list, ValueError where it is none."""
        archive = self.archives[name]
        if (found := archive.names(checksum_list)) is None:
            raise Differs(f"{archive.where(checksum_list)}: there is no such list; this name was assumed")
        return found

    def whole(self, name: str, file: RemoteFile) -> Path:
        """The file on this machine, held against its published digest if it has one; Skip where it is large."""
        archive = self.archives[name]
        found = self.head(name, file.path)
        if found is None:
            raise NotPublished(f"{archive.where(file.path)}: the archive has no such file")
        if not self.deep and (found.size is None or found.size > MOST_BYTES):
            size = "an unknown size" if found.size is None else f"{found.size / 1e6:,.0f} MB"
            raise Skip(f"not verified: {file.path.rsplit('/', 1)[-1]} has {size}; --deep fetches it")
        archive.bring(file)
        if error := archive.failed(file.path):
            raise error
        return archive.local(file.path)

    def smallest(self, name: str, folder: str, names: list[str]) -> tuple[str, int]:
        """Path and size of the smallest of these files."""
        sizes = []
        for file in names:
            found = self.head(name, f"{folder}/{file}")
            if found is None:
                raise Differs(f"{self.archives[name].where(f'{folder}/{file}')}: is listed, and is not there")
            if found.size is not None:
                sizes.append((found.size, f"{folder}/{file}"))
        if not sizes:
            raise Differs(f"{folder}: the archive tells the size of none of {', '.join(names) or 'no file'}")
        size, path = min(sizes)
        return path, size

    def _auth(self, name: str) -> dict[str, str]:
        account = ACCOUNTS.get(urlsplit(self.archives[name].url).netloc)
        return {"Authorization": basic_auth(credential(account))} if account else {}


@dataclass(frozen=True)
class Check:
    """One question, and what its answer is held against."""

    name: str
    about: str
    "what is assumed"
    run: Callable[[Doctor], str]
    "what was found, where it is as assumed; else Differs, Skip, an error of `archives.errors`, or ValueError"
    host: str = ""
    "that is asked"
    first: bool = False
    "whether it tells if the host answers at all: where it does not, nothing more is asked of it"


def plural(n: int, what: str) -> str:
    """`1 row`, `1,436 rows`."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"
