"""Where the mock sky is: its patches, their bricks, and which survey has seen what.

A patch is a few *mini-bricks* side by side. They are bricks as the Legacy Survey has them, named, numbered and
overlapping alike, only smaller. A patch's centre is a multiple of 0.1 degrees in RA and Dec, so that its bricks, on
either side of the centre, have different names.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Footprint = Literal["all", "west half", "none"]

PIXEL_ARCSEC = 0.262
OVERLAP_PIXELS = 82
"""How far a brick's images reach beyond the brick, on each side; (943.2 - 900) / 2 / 0.262 in the real survey."""
SURROUND_DEG = 0.008
"""How far beyond its bricks a patch has sources, so that images are full to their edges; in Dec, and in RA cos(Dec)."""


def tangent(ra: float, dec: float, width: int) -> WCS:
    """TAN, 0.262 arcsec a pixel, North up and East left, centred on ra, dec: the WCS of every coadd."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [(width + 1) / 2, (width + 1) / 2]
    wcs.wcs.cd = np.array([[-1.0, 0.0], [0.0, 1.0]]) * PIXEL_ARCSEC / 3600
    wcs.wcs.set()
    return wcs


@dataclass(frozen=True)
class Brick:
    """One mini-brick: a box of the sky whose sources are its own."""

    patch: int
    name: str
    brickid: int
    row: int
    col: int
    ra: float
    dec: float
    ra1: float
    ra2: float
    "360 and not 0 where the box ends there"
    dec1: float
    dec2: float

    @cached_property
    def width(self) -> int:
        """Pixels along each side of the images: the box as the plane shows it, and the overlap around it."""
        ra = np.array([self.ra1, self.ra, self.ra2, self.ra1, self.ra, self.ra2])
        xy = tangent(self.ra, self.dec, 1).wcs_world2pix(ra, np.repeat([self.dec1, self.dec2], 3), 0)
        return 2 * (int(np.ceil(np.abs(xy).max())) + OVERLAP_PIXELS)

    @cached_property
    def wcs(self) -> WCS:
        """The WCS of the brick's images."""
        return tangent(self.ra, self.dec, self.width)

    def holds(self, ra: F64, dec: F64) -> NDArray[np.bool_]:
        """Which positions are in the box; its western and southern edges belong to it. RA in [0, 360)."""
        return (ra >= self.ra1) & (ra < self.ra2) & (dec >= self.dec1) & (dec < self.dec2)


@dataclass(frozen=True)
class Patch:
    """A few bricks side by side, and how they are observed."""

    number: int
    about: str
    ra: float
    dec: float
    nx: int = 2
    ny: int = 1
    desi: Footprint = "all"
    sdss: Footprint = "none"
    hsc: Literal["all", "none"] = "none"
    galaxies: float = 1.0
    "density, in units of the tier's"
    stars: float = 1.0


@dataclass(frozen=True)
class Tier:
    """How large a mock is."""

    name: str
    patches: tuple[Patch, ...]
    brick_deg: float
    galaxies_per_brick: float
    stars_per_brick: float
    quasars_per_brick: float
    bright_fraction: float
    "part of the stars that is drawn bright, for Gaia's spectra"
    fast_stars: tuple[float, ...]
    "proper motions, arcsec/yr, of stars that are put in by hand; the first into the first patch and so on"
    desi_completeness: float
    "part of the possible targets that has a fibre"
    sdss_stars: float = 0.15
    "part of the possible stars that has a fibre of SDSS"
    pixels: bool = True
    "images and spectra too; else catalogues only"
    loses_xp: bool = True
    "the smallest of Gaia's XP files is listed and not there; patches of a replica have one each, too much to lose"
    first_brick: int = 330_001
    first_tract: int = 9_000
    first_plate: int = 0
    first_source: int = 0
    "before Gaia's running numbers; of a replica these four are others, so that no key of two skies is the same"

    @cached_property
    def bricks(self) -> tuple[Brick, ...]:
        """All bricks, numbered from `first_brick` by patch, Dec and RA."""
        out: list[Brick] = []
        for patch in self.patches:
            half_dec = self.brick_deg * patch.ny / 2
            for row in range(patch.ny):
                dec1 = patch.dec - half_dec + row * self.brick_deg
                dec2 = dec1 + self.brick_deg
                # no wider than the brick is high, at the edge that is nearer the equator
                width = self.brick_deg / np.cos(np.radians(min(abs(dec1), abs(dec2))))
                for col in range(patch.nx):
                    ra1 = round(float(patch.ra + (col - patch.nx / 2) * width) % 360, 9)
                    ra2 = round(float(patch.ra + (col + 1 - patch.nx / 2) * width) % 360, 9) or 360.0
                    ra, dec = (ra1 + ra2) / 2, round((dec1 + dec2) / 2, 9)
                    out.append(
                        Brick(
                            patch=patch.number,
                            name=brick_name(ra, dec),
                            brickid=self.first_brick + len(out),
                            row=row,
                            col=col,
                            ra=ra,
                            dec=dec,
                            ra1=ra1,
                            ra2=ra2,
                            dec1=round(dec1, 9),
                            dec2=round(dec2, 9),
                        )
                    )
        names = [b.name for b in out]
        if len(set(names)) < len(names):
            twice = sorted({n for n in names if names.count(n) > 1})
            raise ValueError(
                f"tier {self.name}: bricks {twice} share a name; centre patches on multiples of 0.1 degrees"
            )
        return tuple(out)

    def bricks_of(self, patch: Patch) -> tuple[Brick, ...]:
        """The patch's bricks, by row and column."""
        return tuple(b for b in self.bricks if b.patch == patch.number)

    def brick_index(self, ra: F64, dec: F64, patch: NDArray[np.int32]) -> NDArray[np.int64]:
        """Place in `bricks` of the brick that owns each position, -1 where none does."""
        out = np.full(len(ra), -1, dtype=np.int64)
        order = np.argsort(patch, kind="stable")
        first = np.searchsorted(patch[order], [b.patch for b in self.bricks], "left")
        last = np.searchsorted(patch[order], [b.patch for b in self.bricks], "right")
        for i, brick in enumerate(self.bricks):
            rows = order[first[i] : last[i]]
            out[rows[brick.holds(ra[rows] % 360, dec[rows])]] = i
        return out


def brick_name(ra: float, dec: float) -> str:
    """`<AAAa><p|m><BBB>`: tenths of degrees of the brick's centre, as the Legacy Survey names them."""
    return f"{int(10 * ra):04d}{'m' if dec < 0 else 'p'}{int(10 * abs(dec)):03d}"


def in_desi(tier: Tier, ra: F64, dec: F64, patch: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which positions DESI has observed: all of a patch, the half west of its centre, or nothing."""
    return _within(tier, {p.number: p.desi for p in tier.patches}, ra, dec, patch)


def in_sdss(tier: Tier, ra: F64, dec: F64, patch: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which positions SDSS has plates on."""
    return _within(tier, {p.number: p.sdss for p in tier.patches}, ra, dec, patch)


def _within(tier: Tier, seen: dict[int, Footprint], ra: F64, dec: F64, patch: NDArray[np.int32]) -> NDArray[np.bool_]:
    out = np.zeros(len(ra), dtype=bool)
    for p in tier.patches:
        mine = patch == p.number
        if seen[p.number] == "all":
            out |= mine
        elif seen[p.number] == "west half":
            out |= mine & ((ra - p.ra + 180) % 360 - 180 < 0)
    return out


def extent(tier: Tier, patch: Patch) -> tuple[float, float, float, float]:
    """The box in which a patch has sources: ra1, ra2 (may be below 0 or above 360), dec1, dec2."""
    bricks = tier.bricks_of(patch)
    dec1, dec2 = min(b.dec1 for b in bricks), max(b.dec2 for b in bricks)
    half_ra = max(b.ra2 - b.ra1 for b in bricks) * patch.nx / 2
    surround_ra = SURROUND_DEG / np.cos(np.radians(min(abs(dec1), abs(dec2))))
    return patch.ra - half_ra - surround_ra, patch.ra + half_ra + surround_ra, dec1 - SURROUND_DEG, dec2 + SURROUND_DEG


_DEFAULT = (
    Patch(0, "crosses RA 0", 0.0, -1.2, sdss="all", hsc="all"),
    Patch(1, "near the south celestial pole", 65.0, -89.5, desi="none"),
    Patch(2, "corner of four HEALPix cells of order 5", 156.1, -10.8, nx=2, ny=2, hsc="all"),
    Patch(3, "cut between two tracts of HSC", 30.2, -5.0, sdss="all", hsc="all"),
    Patch(4, "plain", 150.1, 2.2, sdss="all", hsc="all"),
    Patch(5, "half seen by DESI", 200.3, 31.5, desi="west half", sdss="all"),
    Patch(6, "not seen by DESI", 36.4, -30.1, desi="none", sdss="all", hsc="all"),
    Patch(7, "not seen by DESI", 52.8, -27.7, desi="none", hsc="all"),
    Patch(8, "plain", 185.0, 12.6, sdss="all", hsc="all"),
    Patch(9, "plain", 215.7, -0.5, sdss="all", hsc="all"),
    Patch(10, "dense in stars", 240.5, 8.3, stars=1.5, sdss="all"),
    Patch(11, "plain", 320.9, -10.4),
    Patch(12, "plain", 340.6, 20.1, hsc="all"),
    Patch(13, "not seen by DESI", 10.7, -44.0, desi="none"),
    Patch(14, "plain", 130.4, 18.7, sdss="all"),
    # seen by all, and in every split of the `mock` recipe: 7 train, 3 validation, 3 test
    Patch(15, "plain", 46.4, -11.9, sdss="all", hsc="all"),
    Patch(16, "plain", 4.2, 4.9, sdss="all", hsc="all"),
    Patch(17, "plain", 170.3, -22.0, sdss="all", hsc="all"),
    Patch(18, "plain", 203.9, -19.6, sdss="all", hsc="all"),
    Patch(19, "plain", 327.8, -14.5, sdss="all", hsc="all"),
    Patch(20, "plain", 136.4, 19.6, sdss="all", hsc="all"),
    Patch(21, "plain", 147.8, -2.4, sdss="all", hsc="all"),
    Patch(22, "plain", 19.7, 23.2, sdss="all", hsc="all"),
    Patch(23, "plain", 163.1, -6.1, sdss="all", hsc="all"),
    Patch(24, "plain", 336.1, -9.7, sdss="all", hsc="all"),
    Patch(25, "plain", 218.0, -19.6, sdss="all", hsc="all"),
    Patch(26, "plain", 206.6, 0.0, sdss="all", hsc="all"),
    Patch(27, "plain", 23.9, -2.5, sdss="all", hsc="all"),
)

TIERS: dict[str, Tier] = {
    "tiny": Tier(
        name="tiny",
        patches=(Patch(0, "crosses RA 0", 0.0, -1.2, ny=2, sdss="all", hsc="all"),),
        brick_deg=0.02,
        galaxies_per_brick=10,
        stars_per_brick=5,
        quasars_per_brick=0.5,
        bright_fraction=0.4,
        fast_stars=(3.0, 0.8),
        desi_completeness=0.15,
    ),
    "default": Tier(
        name="default",
        patches=_DEFAULT,
        brick_deg=0.05,
        galaxies_per_brick=90,
        stars_per_brick=36,
        quasars_per_brick=4,
        bright_fraction=0.5,
        fast_stars=(1.2, 0.5, 10.0, 5.0, 0.7, 2.5, 0.9, 1.6),
        desi_completeness=0.5,
    ),
    "catalogue": Tier(
        name="catalogue",
        patches=(
            Patch(0, "crosses RA 0", 0.0, -1.5, nx=6, ny=4, sdss="all", hsc="all"),
            Patch(1, "near the south celestial pole", 65.0, -88.5, nx=4, ny=4, desi="none"),
            Patch(2, "corner of four HEALPix cells of order 5", 156.1, -10.8, nx=6, ny=4, hsc="all"),
            Patch(3, "as dense in stars as the bulge's edge", 270.5, -28.6, nx=4, ny=4, desi="none", stars=6.0),
            Patch(4, "half seen by DESI", 200.3, 28.5, nx=6, ny=4, desi="west half", sdss="all", hsc="all"),
            Patch(5, "plain", 36.4, -5.1, nx=6, ny=4, sdss="all", hsc="all"),
        ),
        brick_deg=0.25,
        galaxies_per_brick=1400,
        stars_per_brick=1800,
        quasars_per_brick=20,
        bright_fraction=0.1,
        fast_stars=(1.2, 0.5, 10.0, 5.0, 0.7, 2.5, 0.9, 1.6) * 6,
        desi_completeness=0.85,
        sdss_stars=0.03,
        pixels=False,
    ),
}
