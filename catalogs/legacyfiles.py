"""Where the Legacy Surveys keep their files: names and folders of each release, as data.

DR10's names are those of the release's own pages (legacysurvey.org/dr10/files). Names of DR8 and DR9 follow the same
pattern; their checksum lists' names, and DR10's list of a tractor folder, are not verified against the archive.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ROOT = "https://portal.nersc.gov/cfs/cosmo/data/legacysurvey"
BANDS = ("g", "r", "i", "z")
"""Order of the bands in every cut-out, whatever bands a release has."""
SWEEP_NAME = re.compile(r"sweep-(\d{3})([pm])(\d{3})-(\d{3})([pm])(\d{3})\.fits")


@dataclass(frozen=True)
class Layout:
    """One release's folders."""

    data_release: str
    "dr8, dr9, dr10: the last part of the root"
    region: str
    "north (BASS, MzLS) or south (DECam)"
    sweep_version: str
    bands: tuple[str, ...]
    epoch_range: tuple[float, float]
    "Julian years within which the exposures were taken; not verified, a setting (`epoch_range`)"
    numbers: tuple[int, ...]
    "values of RELEASE (legacysurvey.org/release, and DR10's page of issues)"
    lacks: str
    "what this release does not have, for the error of who asks for it"

    @property
    def url(self) -> str:
        """Root on the public archive."""
        return f"{ROOT}/{self.data_release}"

    @property
    def viewer_layer(self) -> str:
        """What the viewer calls this region's images. (What `ls-dr10` alone holds of the north was not looked into.)"""
        return f"ls-{self.data_release}-{self.region}"

    @property
    def bricks(self) -> str:
        """Table of all bricks of the sky."""
        return "survey-bricks.fits.gz"

    @property
    def covered(self) -> str:
        """Table of the bricks that this region covers."""
        return f"{self.region}/survey-bricks-{self.data_release}-{self.region}.fits.gz"

    @property
    def sweep_folder(self) -> str:
        """Folder of the sweeps."""
        return f"{self.region}/sweep/{self.sweep_version}"

    @property
    def sweep_list(self) -> str:
        """Checksum list of the sweeps."""
        name = f"legacysurvey_{self.data_release}_{self.region}_sweep_{self.sweep_version}.sha256sum"
        return f"{self.sweep_folder}/{name}"

    def sweep(self, box: tuple[int, int, int, int]) -> str:
        """Path of the sweep of (ra_min, ra_max, dec_min, dec_max) in whole degrees."""
        return f"{self.sweep_folder}/{sweep_name(box)}"

    def tractor_list(self, brick: str) -> str:
        """Checksum list of the tractor folder of a brick."""
        name = f"legacysurvey_{self.data_release}_{self.region}_tractor_{brick[:3]}.sha256sum"
        return f"{self.region}/tractor/{brick[:3]}/{name}"

    def tractor(self, brick: str) -> str:
        """Path of a brick's tractor catalogue."""
        return f"{self.region}/tractor/{brick[:3]}/tractor-{brick}.fits"

    def coadd_list(self, brick: str) -> str:
        """Checksum list of a brick's coadds: also the list of what was published for it."""
        name = f"legacysurvey_{self.data_release}_{self.region}_coadd_{brick[:3]}_{brick}.sha256sum"
        return f"{self.region}/coadd/{brick[:3]}/{brick}/{name}"

    def coadd(self, brick: str, product: str, band: str | None = None) -> str:
        """Path of a brick's coadd: `image`, `invvar`, `psfsize` of a band, or `maskbits`."""
        role = f"{product}-{band}" if band else product
        return f"{self.region}/coadd/{brick[:3]}/{brick}/legacysurvey-{brick}-{role}.fits.fz"


def sweep_name(box: tuple[int, int, int, int]) -> str:
    """File name of a sweep: `sweep-000m005-005p000.fits` for (0, 5, -5, 0)."""
    corners = [f"{ra:03d}{'m' if dec < 0 else 'p'}{abs(dec):03d}" for ra, dec in (box[::2], box[1::2])]
    return f"sweep-{corners[0]}-{corners[1]}.fits"


def sweep_box(name: str) -> tuple[int, int, int, int] | None:
    """(ra_min, ra_max, dec_min, dec_max) in degrees of a sweep's file name, None where it is not a sweep's."""
    found = SWEEP_NAME.fullmatch(name)
    if found is None:
        return None
    ra1, s1, dec1, ra2, s2, dec2 = found.groups()
    return int(ra1), int(ra2), int(dec1) * (-1 if s1 == "m" else 1), int(dec2) * (-1 if s2 == "m" else 1)


_SUBSET = "is this a file of another release, or a subset of columns?"
_NO_I = "DR9 and DR8 have no i band (use the profile `grz` or `all`)"
_DR8 = "DR8 has no SHAPE_*, SERSIC (its fits are SHAPEDEV_*, SHAPEEXP_*), REF_EPOCH, FITBITS"
LAYOUTS = {
    "dr10": Layout("dr10", "south", "10.1", BANDS, (2012.6, 2021.3), (10000, 10002), _SUBSET),
    "dr9-north": Layout("dr9", "north", "9.0", ("g", "r", "z"), (2014.0, 2019.3), (9011,), f"{_NO_I}; {_SUBSET}"),
    "dr9-south": Layout("dr9", "south", "9.0", ("g", "r", "z"), (2012.6, 2019.3), (9010, 9012), f"{_NO_I}; {_SUBSET}"),
    "dr8-north": Layout(
        "dr8", "north", "8.0", ("g", "r", "z"), (2014.0, 2019.2), (8001,), f"{_NO_I}; {_DR8}; {_SUBSET}"
    ),
    "dr8-south": Layout(
        "dr8", "south", "8.0", ("g", "r", "z"), (2012.6, 2019.2), (8000,), f"{_NO_I}; {_DR8}; {_SUBSET}"
    ),
}
