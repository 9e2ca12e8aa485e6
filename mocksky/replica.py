"""A tier once more, elsewhere: the same patches with the same surveys on them, of other stars and galaxies."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from skycairn.mocksky.hscskymap import tracts
from skycairn.mocksky.patches import Tier

FARTHEST_DEC = 60.0
"""Patches lie no nearer to a pole, where a brick would be wide in RA."""

MOST_PATCHES = 10_500
"""Of all replicas of one seed; the sky has 10,421 cells of order 5 within 58 degrees of the equator."""
SEEDS = 16
"""Seeds with numbers of their own: a brick's has 20 bits, in which no more have room."""


def seed_of(seed: int, number: int) -> int:
    """The root seed of a replica, 0 to 2^32 - 1."""
    return int(np.random.SeedSequence([seed, zlib.crc32(b"replica"), number]).generate_state(1)[0])


def replica(tier: Tier, number: int, centres: Sequence[tuple[float, float]], seed: int = 0) -> Tier:
    """The `number`-th replica, from 1, its patches near these centres (RA, Dec in degrees, to tenths of a degree).

    Its bricks, tracts and plates have numbers of their own, and so have Gaia's sources, so that no key is one of the
    tier's, of another replica's, or of one of another seed that is not `SEEDS` or a multiple of it away.
    """
    most = MOST_PATCHES // len(tier.patches)
    if not 1 <= number <= most:
        raise ValueError(f"tier {tier.name}: replica {number}; wanted 1 to {most}")
    if len(centres) != len(tier.patches):
        raise ValueError(
            f"tier {tier.name}: {len(centres)} centres for its {len(tier.patches)} patches; wanted as many"
        )
    if far := [c for c in centres if abs(c[1]) > FARTHEST_DEC]:
        raise ValueError(f"tier {tier.name}: a patch at Dec {far[0][1]:.1f}; wanted at most {FARTHEST_DEC:.0f} off 0")
    moved = tuple(
        replace(p, ra=round(ra, 1) % 360, dec=round(dec, 1)) for p, (ra, dec) in zip(tier.patches, centres, strict=True)
    )
    place = seed % SEEDS * most + number
    return replace(
        tier,
        patches=moved,
        loses_xp=False,
        first_brick=tier.first_brick + place * len(tier.bricks),
        first_tract=tier.first_tract + place * len(tracts(tier)),
        first_plate=tier.first_plate + place * len(tier.patches),
        # replicas of one seed share no pixel; those of two may lie in the same one
        first_source=(seed % SEEDS + 1) << 16,
    )
