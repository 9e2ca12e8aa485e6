"""HSC's tracts and patches over the mock sky: tangent planes of their own, cut into patches that overlap.

A patch of the mock sky that HSC has seen is one tract of as many HSC patches as it has bricks; one of them is cut
between two tracts, each with a plane of its own, so that a strip of sky lies in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray

from skycairn.mocksky.patches import Patch, Tier

F64 = NDArray[np.float64]

PIXEL_ARCSEC = 0.168
OVERLAP_PIXELS = 20
"""How far a patch's images reach beyond its inner region; 100 in the real survey."""
FIRST_TRACT = Tier.first_tract
RIM_PIXELS = 75
"""How far inner regions reach beyond the bricks, all in all."""
FIRST_COLUMN, FIRST_ROW = 3, 4
"""Numbers of a tract's first patch; a real tract has 9 x 9, of which these are in the middle."""
CUT_IN_TWO = "cut between two tracts of HSC"
"""What the sky patch that two tracts share says of itself."""


@dataclass(frozen=True)
class Tract:
    """A tangent plane, and where its patches lie in it."""

    number: int
    sky_patch: int
    ra: float
    dec: float
    "of the tangent point"
    x0: int
    y0: int
    "tract pixel of the first pixel of the first patch's inner region; the tangent point is at pixel 20000, 20000"
    side: int
    "pixels along an inner region"
    columns: int
    rows: int

    @cached_property
    def wcs(self) -> WCS:
        """From sky to tract pixels, counted from 0."""
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.crval = [self.ra, self.dec]
        wcs.wcs.crpix = [20001, 20001]
        wcs.wcs.cd = np.array([[-1.0, 0.0], [0.0, 1.0]]) * PIXEL_ARCSEC / 3600
        wcs.wcs.set()
        return wcs

    @property
    def width(self) -> int:
        """Pixels along a patch's images."""
        return self.side + 2 * OVERLAP_PIXELS

    def first_pixel(self, column: int, row: int) -> tuple[int, int]:
        """Tract pixel of the first pixel of a patch's images."""
        return self.x0 + column * self.side - OVERLAP_PIXELS, self.y0 + row * self.side - OVERLAP_PIXELS

    def patch_number(self, column: int, row: int) -> int:
        """As the database packs it."""
        return (FIRST_COLUMN + column) * 100 + FIRST_ROW + row

    def place(self, ra: F64, dec: F64) -> tuple[NDArray[np.int64], NDArray[np.int64], F64, F64]:
        """Column and row of the patch whose inner region holds each position, -1 beside all, and tract pixels."""
        x, y = self.wcs.wcs_world2pix(ra, dec, 0)
        column = np.floor((x + 0.5 - self.x0) / self.side).astype(np.int64)
        row = np.floor((y + 0.5 - self.y0) / self.side).astype(np.int64)
        inside = (column >= 0) & (column < self.columns) & (row >= 0) & (row < self.rows)
        return np.where(inside, column, -1), np.where(inside, row, -1), x, y

    def corners(self, x: float, y: float, width: float, height: float) -> list[tuple[float, float]]:
        """RA, Dec of the four corners of a box of pixels."""
        at = [(x - 0.5, y - 0.5), (x + width - 0.5, y - 0.5), (x + width - 0.5, y + height - 0.5)]
        at.append((x - 0.5, y + height - 0.5))
        found = self.wcs.wcs_pix2world(np.array(at), 0)
        return [(float(a) % 360, float(d)) for a, d in found]


def tracts(tier: Tier) -> list[Tract]:
    """All tracts of a tier, in the order of its sky patches."""
    out: list[Tract] = []
    side = round(tier.brick_deg * 3600 / PIXEL_ARCSEC) + RIM_PIXELS
    for patch in tier.patches:
        if patch.hsc == "none":
            continue
        if CUT_IN_TWO in patch.about:
            # the tangent points lie half a degree to either side, so that the planes are turned against each other
            for east in (0.5, -0.5):
                out.append(_tract(patch, tier.first_tract + len(out), east, side, 1, patch.ny, 0.5 * np.sign(east)))
        else:
            out.append(_tract(patch, tier.first_tract + len(out), 0.013, side, patch.nx, patch.ny, 0.0))
    return out


def _tract(patch: Patch, number: int, east: float, side: int, columns: int, rows: int, shift: float) -> Tract:
    """A tract whose patches are centred `shift` brick widths east of the sky patch's centre."""
    ra = (patch.ra + east / np.cos(np.radians(patch.dec))) % 360
    blank = Tract(number, patch.number, ra, patch.dec, 0, 0, side, columns, rows)
    x, y = (float(v) for v in blank.wcs.wcs_world2pix(patch.ra, patch.dec, 0))
    # east is towards smaller x
    x -= shift * (side - RIM_PIXELS)
    first = round(x - columns * side / 2), round(y - rows * side / 2)
    return Tract(number, patch.number, ra, patch.dec, *first, side, columns, rows)


def patch_list(all_tracts: list[Tract]) -> str:
    """The list of tracts and patches, as the archive's text file has it."""
    lines = []
    for t in all_tracts:
        boxes = [("", t.x0, t.y0, t.columns * t.side, t.rows * t.side)]
        for c in range(t.columns):
            for r in range(t.rows):
                number = t.patch_number(c, r)
                name = f"Patch: {number // 100},{number % 100}\t"
                boxes.append((name, *t.first_pixel(c, r), t.width, t.width))
        for name, x, y, width, height in boxes:
            ra, dec = t.corners(x + width / 2, y + height / 2, 0, 0)[0]
            lines.append(f"Tract: {t.number}\t{name}Center (RA, Dec): ({ra:.8f} , {dec:.8f})")
            for k, (a, d) in enumerate(t.corners(x, y, width, height)):
                lines.append(f"Tract: {t.number}\t{name}Corner{k} (RA, Dec): ({a:.8f} , {d:.8f})")
    return "\n".join(lines) + "\n"
