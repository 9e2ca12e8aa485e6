"""Random numbers, a stream of their own for every (root seed, survey, patch, stage)."""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, survey: str, patch: int, stage: str) -> np.random.Generator:
    """The generator of one stage of one patch of one survey: any of them can be drawn alone, in any order."""
    words = [seed, zlib.crc32(survey.encode()), patch, zlib.crc32(stage.encode())]
    return np.random.default_rng(np.random.SeedSequence(words))
