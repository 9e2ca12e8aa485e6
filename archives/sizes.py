"""How much there is to fetch, and how long it may take, told before anything is.

Sizes are typical ones, of the archives' own pages and of files that were looked at; rates are what others saw. All of
it is rough: it tells an hour from a month.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

TYPICAL: tuple[tuple[str, float], ...] = (
    (r"sweep-.*\.fits", 1.1e9),  # 1,436 files of 0.7 to 1.9 GB
    (r"tractor-.*\.fits", 18e6),  # 6.6 TB of 366,898 bricks
    (r"legacysurvey-.*-(image|invvar)-.*", 9e6),  # 60 TB of 366,898 bricks are 164 MB a brick, most of it in these
    (r"legacysurvey-.*", 0.5e6),
    (r"survey-bricks.*", 30e6),
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
    (r".*\.parquet", 10e6),
)
"""Bytes of a file by its name, the first that fits."""

PER_SQUARE_DEGREE = {
    "legacysurvey": (13 * 16, 8 * 16 * 9e6),
    "hsc": (5 / 0.187**2, 5 / 0.187**2 * 212e6),
    "desi": (3 / 0.84, 3 / 0.84 * 219e6),
    "sdss": (0.35, 0.35 * 110e6),
}
"""Payload files and bytes where a survey looked: bricks of 0.25 degrees with 13 files, patches in five bands, coadds of
three programs in pixels of 0.84 square degrees, five thousand plates on a third of the sky."""

RATES = {
    "portal.nersc.gov": (550.0, 15e9),
    "": (4 * 3600.0, 60e9),
}
"""Files and bytes an hour, by host: what was seen of NERSC's portal with two connections, and a guess for others."""


@dataclass(frozen=True)
class Amount:
    """What is to be fetched."""

    files: int
    bytes: float
    hours: float

    def __str__(self) -> str:
        size = f"{self.bytes / 1e12:,.1f} TB" if self.bytes >= 1e12 else f"{self.bytes / 1e9:,.2g} GB"
        time = f"{self.hours / 24:,.0f} days" if self.hours >= 48 else f"{self.hours:,.1f} hours"
        return f"about {self.files:,} files, {size}, {time if self.hours >= 0.1 else 'minutes'}"


def amount(host: str, paths: Iterable[str]) -> Amount:
    """What these files will take from this host."""
    sizes = [typical(path) for path in paths]
    return _amount(host, len(sizes), sum(sizes))


def payload_amount(survey: str, host: str, square_degrees: float) -> Amount:
    """What the pixels and spectra of a piece of sky take at most, if the survey looked at all of it."""
    files, size = PER_SQUARE_DEGREE.get(survey, (0.0, 0.0))
    return _amount(host, round(files * square_degrees), size * square_degrees)


def typical(path: str) -> float:
    """Bytes of a file of this name."""
    name = path.rsplit("/", 1)[-1]
    return next((size for pattern, size in TYPICAL if re.fullmatch(pattern, name)), 1e6)


def _amount(host: str, files: int, size: float) -> Amount:
    files_an_hour, bytes_an_hour = RATES.get(host, RATES[""])
    return Amount(files, size, max(files / files_an_hour, size / bytes_an_hour))
