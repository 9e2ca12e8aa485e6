"""SDSS's keys: (RUN2D, PLATE, MJD, FIBERID) packed reversibly into 59 bits.

SPECOBJID is not used: it gives a plate 14 bits, so that plates above 16383 do not fit, and files write it as text.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

PLATE_BITS, MJD_BITS, FIBER_BITS = 17, 15, 12
FIRST_MJD = 50_000
VERSION = re.compile(r"v(\d+)_(\d+)_(\d+)")
RERUN = re.compile(r"[1-9]\d*|0")
I64 = NDArray[np.int64]


def run2d_code(run2d: str) -> int:
    """15 bits of a RUN2D, -1 where it has none: reruns (26, 103, 104) as they are, v5_13_2 as a flag and 4 + 5 + 5."""
    name = run2d.strip()
    if RERUN.fullmatch(name):
        return int(name) if int(name) < 1 << 14 else -1
    if found := VERSION.fullmatch(name):
        major, minor, patch = (int(n) for n in found.groups())
        return (1 << 14) | (major << 10) | (minor << 5) | patch if major < 16 and minor < 32 and patch < 32 else -1
    return -1


def run2d_name(code: int) -> str:
    """The RUN2D of a code."""
    if code < 1 << 14:
        return str(code)
    return f"v{code >> 10 & 15}_{code >> 5 & 31}_{code & 31}"


def pack_key(run2d: NDArray[Any], plate: I64, mjd: I64, fiber: I64) -> tuple[I64, NDArray[np.bool_]]:
    """Keys (docs/contracts.md section 1) and where they hold: run2d 15 bits, plate 17, MJD - 50000 15, fibre 12."""
    names, place = np.unique(np.asarray(run2d, dtype=np.str_), return_inverse=True)
    code = np.array([run2d_code(n) for n in names.tolist()], dtype=np.int64)[place.reshape(-1)]
    packed = code >= 0
    key = np.where(packed, code, 0)
    days = np.asarray(mjd, dtype=np.int64) - FIRST_MJD
    for values, bits in ((plate, PLATE_BITS), (days, MJD_BITS), (fiber, FIBER_BITS)):
        field = np.asarray(values, dtype=np.int64)
        fits = (field >= 0) & (field < 1 << bits)
        packed &= fits
        key = (key << bits) | np.where(fits, field, 0)
    return np.where(packed, key, 0), packed


def unpack_key(key: I64) -> tuple[NDArray[np.str_], I64, I64, I64]:
    """RUN2D, PLATE, MJD and FIBERID of keys; ValueError where a number is no key of SDSS."""
    k = np.asarray(key, dtype=np.int64)
    code = k >> (PLATE_BITS + MJD_BITS + FIBER_BITS)
    if (bad := np.flatnonzero((k < 0) | (code >= 1 << 15))).size:
        raise ValueError(f"{k[bad[0]]} is no key of SDSS: its first field is {code[bad[0]]}, wanted 15 bits")
    plate = (k >> (MJD_BITS + FIBER_BITS)) & ((1 << PLATE_BITS) - 1)
    mjd = ((k >> FIBER_BITS) & ((1 << MJD_BITS) - 1)) + FIRST_MJD
    return np.array([run2d_name(c) for c in code.tolist()], dtype=np.str_), plate, mjd, k & ((1 << FIBER_BITS) - 1)
