"""How the Legacy Survey has looked at a brick: seeing, depth, dates, and the defects of its pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skycairn.mocksky.morphology import BANDS
from skycairn.mocksky.patches import PIXEL_ARCSEC, Brick
from skycairn.mocksky.streams import stream

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

# MASKBITS of DR10, legacysurvey.org/dr10/bitmasks
NPRIMARY, BRIGHT, MEDIUM = 1 << 0, 1 << 1, 1 << 11
SATUR = {"g": 1 << 2, "r": 1 << 3, "z": 1 << 4, "i": 1 << 14}
ALLMASK = {"g": 1 << 5, "r": 1 << 6, "z": 1 << 7, "i": 1 << 15}

SEEING_ARCSEC = {"g": 1.30, "r": 1.20, "i": 1.15, "z": 1.10}
DEPTH_MAG = {"g": 24.7, "r": 23.9, "i": 23.6, "z": 23.0}
"""5 sigma for a point source in five exposures."""
USUAL_EXPOSURES = 5
SATURATED_NANOMAGGY_PER_PIXEL = 60.0
BRIGHT_G, MEDIUM_G = 13.0, 16.0
"""Gaia G of the stars that set BRIGHT and MEDIUM around them."""


@dataclass(frozen=True)
class Blemish:
    """A rectangle or a disk of pixels that are bad."""

    x: float
    y: float
    half_width: float
    half_height: float
    bits: int
    dead: tuple[str, ...] = ()
    "bands without data (invvar 0) there"
    round: bool = False
    "an ellipse and not a rectangle"

    def holds(self, x: F64 | I64, y: F64 | I64) -> NDArray[np.bool_]:
        """Which pixel positions (0-based) it covers."""
        u, v = (x - self.x) / self.half_width, (y - self.y) / self.half_height
        return u**2 + v**2 <= 1 if self.round else (np.abs(u) <= 1) & (np.abs(v) <= 1)


@dataclass(frozen=True)
class Exposures:
    """What is known of one brick's images before a source is drawn."""

    brick: Brick
    epoch: float
    "mean Julian year of the exposures"
    fwhm: Mapping[str, float]
    number: Mapping[str, int]
    "exposures away from the gaps; 0 = the band is missing"
    gap: Mapping[str, tuple[float, float]]
    "first and last row of a stripe that one exposure missed"
    blemishes: tuple[Blemish, ...] = field(default=())

    def exposed(self, band: str, x: F64 | I64, y: F64 | I64) -> NDArray[np.int16]:
        """Exposures at pixel positions, defects aside."""
        low, high = self.gap[band]
        inside = (y >= low) & (y < high) & np.isfinite(x)
        return np.maximum(self.number[band] - inside.astype(np.int16), 0).astype(np.int16)

    def count(self, band: str, x: F64 | I64, y: F64 | I64) -> NDArray[np.int16]:
        """Exposures at pixel positions, 0 where there is no data."""
        out = self.exposed(band, x, y)
        for blemish in self.blemishes:
            if band in blemish.dead:
                out = np.where(blemish.holds(x, y), 0, out)
        return out.astype(np.int16)

    def maskbits(self, x: F64 | I64, y: F64 | I64) -> NDArray[np.int32]:
        """MASKBITS at pixel positions, but for NPRIMARY."""
        out = np.zeros(np.broadcast_shapes(np.shape(x), np.shape(y)), dtype=np.int32)
        for blemish in self.blemishes:
            out |= np.where(blemish.holds(x, y), np.int32(blemish.bits), np.int32(0))
        return out

    def pixel_invvar(self, band: str) -> float:
        """Inverse variance of a pixel of one exposure, 1/nanomaggy^2."""
        sigma = 10 ** ((22.5 - DEPTH_MAG[band]) / 2.5) / 5
        return noise_pixels(SEEING_ARCSEC[band]) / sigma**2 / USUAL_EXPOSURES

    def depth(self, band: str, count: NDArray[Any] | int, radius_arcsec: F64 | float = 0.0) -> F64:
        """Inverse variance of the flux of a source of this half-light radius, 1/nanomaggy^2; 0 without exposures."""
        if not self.number[band]:
            return np.zeros(np.broadcast_shapes(np.shape(count), np.shape(radius_arcsec)))
        area = noise_pixels(self.fwhm[band]) * (1 + (np.asarray(radius_arcsec) / (0.6 * self.fwhm[band])) ** 2)
        return np.asarray(count * self.pixel_invvar(band) / area, dtype=np.float64)


def noise_pixels(fwhm_arcsec: float) -> float:
    """Pixels of noise in the best estimate of a star's flux: 1 / sum(psf^2) of a Moffat profile, beta = 3."""
    alpha = fwhm_arcsec / PIXEL_ARCSEC / (2 * np.sqrt(2 ** (1 / 3) - 1))
    return float(np.pi * alpha**2 * 5 / 4)


def expose(brick: Brick, seed: int, missing: tuple[str, ...] = ()) -> Exposures:
    """Draw a brick's seeing, dates and gaps; the bands in `missing` were never exposed."""
    rng = stream(seed, "legacysurvey", brick.brickid, "exposures")
    number, gap, fwhm = {}, {}, {}
    for band in BANDS:
        number[band] = 0 if band in missing else int(rng.integers(3, 8))
        start = rng.uniform(0, brick.width)
        gap[band] = (start, start + rng.uniform(20, 80))
        fwhm[band] = round(SEEING_ARCSEC[band] * float(np.exp(0.08 * rng.standard_normal())), 3)
        if band in missing:
            gap[band], fwhm[band] = (0.0, 0.0), 0.0
    return Exposures(brick, float(rng.uniform(2014.6, 2018.9)), fwhm, number, gap)


def star_blemishes(x: F64, y: F64, gaia_g: F64, flux: Mapping[str, F64], fwhm: Mapping[str, float]) -> list[Blemish]:
    """Masks of stars at pixel positions: BRIGHT and MEDIUM disks, and saturated cores without data."""
    out = []
    for k in np.flatnonzero(gaia_g < MEDIUM_G):
        radius = 2.0 * 10 ** (0.15 * (MEDIUM_G - gaia_g[k])) / PIXEL_ARCSEC
        bits = MEDIUM | (BRIGHT if gaia_g[k] < BRIGHT_G else 0)
        out.append(Blemish(float(x[k]), float(y[k]), radius, radius, bits, round=True))
        for band in BANDS:
            if not fwhm[band]:
                continue
            alpha = fwhm[band] / PIXEL_ARCSEC / (2 * np.sqrt(2 ** (1 / 3) - 1))
            peak = flux[band][k] * 2 / (np.pi * alpha**2)
            if peak > SATURATED_NANOMAGGY_PER_PIXEL:
                # where the Moffat profile falls to the limit
                core = 1 + alpha * np.sqrt((peak / SATURATED_NANOMAGGY_PER_PIXEL) ** (1 / 3) - 1)
                bits = SATUR[band] | ALLMASK[band]
                out.append(Blemish(float(x[k]), float(y[k]), core, core, bits, (band,), round=True))
    return out
