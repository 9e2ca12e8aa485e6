"""What is wrong on purpose with the mock Legacy Survey: which brick, which pixels, which rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from skycairn.mocksky.exposures import ALLMASK, Blemish
from skycairn.mocksky.morphology import BANDS
from skycairn.mocksky.patches import Brick, Tier
from skycairn.mocksky.streams import stream


class Files(NamedTuple):
    """Bricks whose files are not as they should be, by name."""

    missing_i: str
    "no i band at all"
    absent_z: str
    "image-z is listed and not there"


def files(tier: Tier) -> Files:
    """The two bricks; none in a tier without pixels."""
    if not tier.pixels:
        return Files("", "")
    return Files(missing_i=tier.bricks[-2].name, absent_z=tier.bricks[len(tier.bricks) // 2 + 1].name)


def pixels(brick: Brick, seed: int) -> list[Blemish]:
    """Dead columns, a dead corner and cosmic rays of a brick."""
    rng = stream(seed, "legacysurvey", brick.brickid, "dirt")
    width = brick.width
    out = []
    for _ in range(2):
        band = BANDS[rng.integers(4)]
        out.append(Blemish(float(rng.integers(0, width)), width / 2, 1.5, width, ALLMASK[band], (band,)))
    every = int(sum(ALLMASK.values()))
    out.append(
        Blemish(rng.uniform(0, width), rng.uniform(0, width), rng.uniform(8, 25), rng.uniform(8, 25), every, BANDS)
    )
    for _ in range(4):
        band = BANDS[rng.integers(4)]
        long, short = rng.uniform(4, 12), rng.uniform(1.5, 4)
        shape = (long, short) if rng.random() < 0.5 else (short, long)
        x, y = rng.uniform(0, width, 2)
        out.append(Blemish(float(x), float(y), *shape, ALLMASK[band], (band,), round=True))
    return out


def few(n: int, one_in: int) -> int:
    """How many of n rows are spoiled in one way: one in so many, and at least one where there are any."""
    return min(n, max(1, int(np.round(n / one_in))))
