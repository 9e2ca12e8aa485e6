"""DESI's keys: (TARGETID, SURVEY, PROGRAM) packed reversibly into 63 bits, and what the bits of TARGETID mean."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skycairn.catalogs.legacyfiles import LAYOUTS

SURVEY_CODES = ("cmx", "sv1", "sv2", "sv3", "main", "special")
PROGRAM_CODES = ("backup", "bright", "dark", "other")
"""Order of surveys and programs in the key: code = 4 x survey + program; 24 to 31 are free. Never changed."""

MOCK, SKY, RESERVED = 1 << 58, 1 << 59, 1 << 62
"""Bits of TARGETID (desitarget targetmask.yaml): rows that are no target of the sky."""
LEGACY_RELEASES = tuple(sorted({n for layout in LAYOUTS.values() for n in layout.numbers}))
"""Values of RELEASE in a TARGETID that was cut from the Legacy Surveys' catalogues."""


def pack_key(
    targetid: NDArray[np.int64], survey: NDArray[Any], program: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Keys (docs/contracts.md section 1), where they hold, and where TARGETID is a target but does not fit.

    High to low: survey-program code 5 bits, gaiadr 2, release 14, brickid 20, objid 22. A TARGETID that is negative,
    sky, mock or has a reserved bit has no key and is no overflow.
    """
    t = np.asarray(targetid, dtype=np.int64)
    target = (t >= 0) & (t & (MOCK | SKY | RESERVED) == 0)
    code = np.full(len(t), -1, dtype=np.int64)
    for i, s in enumerate(SURVEY_CODES):
        for j, p in enumerate(PROGRAM_CODES):
            code[(survey == s) & (program == p)] = len(PROGRAM_CODES) * i + j
    release = (t >> 42) & 0xFFFF
    fits_ = (release < 1 << 14) & (code >= 0)
    key = (code << 58) | (((t >> 60) & 3) << 56) | (release << 42) | (t & ((1 << 42) - 1))
    packed = target & fits_
    return np.where(packed, key, 0), packed, target & ~fits_


def legacy_keys(targetid: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Key of the Legacy Surveys' row that a target was cut from, and whether it was cut from one.

    None for a TARGETID with RELEASE of no release of theirs: a secondary target that no imaging has (below 1000), a
    tertiary one (8888), one of opportunity (9999), a Gaia source (its own bits), and for sky, mocks and stuck fibres.
    The layout is that of their own keys.
    """
    t = np.asarray(targetid, dtype=np.int64)
    cut = (t >= 0) & (t >> 58 == 0) & np.isin((t >> 42) & 0xFFFF, LEGACY_RELEASES)
    return np.where(cut, t, 0), cut


def unpack_key(key: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]:
    """TARGETID, SURVEY and PROGRAM of keys; ValueError where a key is none of DESI's."""
    k = np.asarray(key, dtype=np.int64)
    code = k >> 58
    if (bad := np.flatnonzero((code < 0) | (code >= len(SURVEY_CODES) * len(PROGRAM_CODES)))).size:
        raise ValueError(f"{k[bad[0]]} is no key of DESI: its survey-program code is {code[bad[0]]}")
    targetid = (((k >> 56) & 3) << 60) | (k & ((1 << 56) - 1))
    survey, program = np.divmod(code, len(PROGRAM_CODES))
    return targetid, np.array(SURVEY_CODES)[survey], np.array(PROGRAM_CODES)[program]
