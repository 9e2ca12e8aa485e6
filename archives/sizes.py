"""How much there is to fetch, and how long it may take, told before anything is.

Sizes are typical ones, of the archives' own pages and of files that were looked at; rates are what others saw. All of
it is rough: it tells an hour from a month.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from skycairn.archives.hosts import HOSTS, HostLimits

TYPICAL: tuple[tuple[str, float], ...] = (
    (r"sweep-.*\.fits", 1.1e9),  # 1,436 files of 0.7 to 1.9 GB
    (r"tractor-.*\.fits", 18e6),  # 6.6 TB of 366,898 bricks
    (r"legacysurvey-.*-(image|invvar)-.*", 9e6),  # 60 TB of 366,898 bricks are 164 MB a brick, most of it in these
    (r"legacysurvey-.*", 0.5e6),
    (r"survey-bricks.*", 30e6),
    (r"cutout-.*", 0.41e6),  # 160 x 160 pixels in four bands
    (r"zall-.*", 20.8e9),
    (r"coadd-.*\.fits", 219e6),
    (r"redrock-.*", 20e6),
    (r"specObj-.*", 6.7e9),
    (r"spPlate-.*", 110e6),
    (r"spec-.*\.fits", 1.7e6),
    (r"GaiaSource_.*", 222e6),  # 753,025,661,884 bytes in 3,386 files
    (r"XpContinuousMeanSpectrum_.*", 1.0e9),  # 3.5 TB of them, as one who unpacked them tells
    (r"calexp-.*", 212e6),  # 4200 x 4200 pixels of image, mask and variance
    (r"forced-.*", 40e6),
    (r"(?i).*sum(\.txt)?", 6e3),  # a brick's list has 58 lines
    (r".*\.parquet", 10e6),
)
"""Bytes of a file by its name, the first that fits."""


@dataclass(frozen=True)
class Payload:
    """The pixels or spectra of a survey, where it looked."""

    files: float
    "a square degree"
    bytes: float
    "a square degree"
    square_degrees: float
    "where it looked, in all"


PAYLOAD = {
    # bricks of 0.25 degrees, 366,898 of them: image, invvar and psfsize in four bands, maskbits, the list of digests
    "legacysurvey": Payload(16 * 14, 16 * (8 * 9e6 + 5 * 0.5e6), 366_898 / 16),
    # patches of 0.187 degrees in five bands; full depth or not
    "hsc": Payload(5 / 0.187**2, 5 / 0.187**2 * 212e6, 1_470),
    # three programs in pixels of 0.84 square degrees, each with a list of digests; what they cover is not known here
    "desi": Payload(2 * 3 / 0.84, 3 / 0.84 * 219e6, 41_253),
    # some five thousand plates on a third of the sky
    "sdss": Payload(0.35, 0.35 * 110e6, 14_300),
}
RATES = {"portal.nersc.gov": (550.0, 15e9)}
"""Files and bytes an hour, by host: what was seen of NERSC's portal with two connections."""
USUAL_BYTES = 60e9
"""An hour, of a host that nobody timed: a guess."""
HOPELESS_DAYS = 30.0
GLOBUS = {
    "portal.nersc.gov": "9d6d994a-6d04-11e5-ba46-22000b92c6ec",
    "data.desi.lbl.gov": "6b4e1f6a-e600-11ed-9b9b-c9bb788c490e",
    "data.sdss.org": "f8362eaf-fc40-451c-8c44-50b71ec7f247",
}
"""Globus collections that hold an archive's files, by its host."""
ASK_FIRST = {"data.sdss.org": 1e12}
"""Bytes above which an archive wants to be written to first (sdss.org/dr17/data_access/bulk)."""

How = Literal["", "about ", "at most "]


@dataclass(frozen=True)
class Amount:
    """What is to be fetched."""

    files: int
    bytes: float
    hours: float
    "always a guess"
    how: How = "about "
    "how the bytes are meant: to the byte, as typical files have them, or as the upper limit of such"

    def __str__(self) -> str:
        time = f"{self.hours / 24:,.0f} days" if self.hours >= 48 else f"{self.hours:,.1f} hours"
        time = f"about {time}" if self.hours >= 0.1 else "minutes"
        number = f"{self.files:,} {'file' if self.files == 1 else 'files'}"
        return f"{'at most ' if self.how == 'at most ' else ''}{number}, {self.how}{bytes_in_words(self.bytes)}, {time}"


def together(amounts: Sequence[Amount]) -> str:
    """Files and bytes of all of them in words; hosts work side by side, so that hours do not add up."""
    files, size = sum(a.files for a in amounts), sum(a.bytes for a in amounts)
    hows = {a.how for a in amounts}
    most: How = "at most " if "at most " in hows else ""
    about: How = most or ("about " if "about " in hows else "")
    return f"{most}{files:,} {'file' if files == 1 else 'files'}, {about}{bytes_in_words(size)}"


def bytes_in_words(n: float) -> str:
    """Three digits and a unit."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n >= size:
            digits = max(0, 2 - len(f"{n / size:.0f}") + 1)
            return f"{n / size:,.{digits}f} {unit}"
    return f"{n:.0f} bytes"


def amount(host: str, paths: Iterable[str], known: int = 0) -> Amount:
    """What these files of typical sizes, and beside them `known` bytes of files that are counted already, will take."""
    sizes = [typical(path) for path in paths]
    return of(host, len(sizes), sum(sizes) + known)


def payload_amount(survey: str, host: str, square_degrees: float) -> Amount:
    """What the pixels and spectra of a piece of sky take at most, if the survey looked at all of it."""
    found = PAYLOAD.get(survey, Payload(0, 0, 0))
    area = min(square_degrees, found.square_degrees)
    return of(host, round(found.files * area), found.bytes * area, "at most ")


def typical(path: str) -> float:
    """Bytes of a file of this name."""
    name = path.rsplit("/", 1)[-1]
    return next((size for pattern, size in TYPICAL if re.fullmatch(pattern, name)), 1e6)


def of(host: str, files: int, size: float, how: How = "about ") -> Amount:
    """So many files and bytes of this host, and the hours that they may take."""
    polite = HOSTS.get(host, HostLimits()).requests_per_second * 3600
    files_an_hour, bytes_an_hour = RATES.get(host, (polite, USUAL_BYTES))
    return Amount(files, size, max(files / files_an_hour, size / bytes_an_hour), how)


def warnings(survey: str, host: str, told: Amount) -> list[str]:
    """What to do instead, where HTTPS is too slow for so much, or the archive wants to be asked first."""
    out = []
    if told.hours > HOPELESS_DAYS * 24:
        globus = f"its Globus collection {GLOBUS[host]}" if host in GLOBUS else "Globus, or another copy of it"
        out.append(
            f"{survey}: over HTTPS this is hopeless. Write a list of its files (`skycairn fetch --list`, --format "
            f"globus), have them from {globus}, and build from there (--root); or build less of the sky"
        )
    if told.bytes > ASK_FIRST.get(host, float("inf")):
        most = bytes_in_words(ASK_FIRST[host])
        out.append(f"{survey}: who takes more than {most} from {host} is asked to write to its help desk first")
    return out
