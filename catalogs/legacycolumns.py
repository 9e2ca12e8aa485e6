"""What the Legacy Surveys' catalogues hold: columns, the key of a source, and the cuts, each with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skycairn.catalogs.legacyfiles import BANDS
from skycairn.catalogs.survey import Column, Cut

WISE = ("w1", "w2", "w3", "w4")
KEY_BITS = (("release", 16), ("brickid", 20), ("objid", 22))
"""Fields of the key from high to low: the layout of DESI's TARGETID (desitarget's targetmask.yaml)."""
AION_MASKBITS = 51455
"""Bits 0-7, 11, 14, 15: MultimodalUniverse's scripts/legacysurvey/build_parent_sample.py."""
Z_LIMIT = 10 ** (0.4 * (22.5 - 21.0))
"""Flux in nanomaggy of magnitude 21, 3.981."""


def pack_key(
    release: NDArray[Any], brickid: NDArray[Any], objid: NDArray[Any], first_row: int = 0
) -> NDArray[np.int64]:
    """Keys of sources, int64. ValueError names the first row with a number that does not fit its field."""
    key = np.zeros(len(release), dtype=np.int64)
    for (name, bits), values in zip(KEY_BITS, (release, brickid, objid), strict=True):
        field = np.asarray(values)
        if field.dtype.kind not in "iu":
            raise ValueError(f"{name} is {field.dtype}, wanted integers: a key never goes through float")
        out = (field < 0) | (field >= 1 << bits)
        if out.any():
            row = int(np.argmax(out))
            raise ValueError(f"row {first_row + row}: {name} {int(field[row])} does not fit 0 .. {(1 << bits) - 1}")
        key = (key << bits) | field.astype(np.int64)
    return key


def unpack_key(key: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(release, brickid, objid) of keys."""
    return key >> 42, (key >> 22) & ((1 << 20) - 1), key & ((1 << 22) - 1)


def _per_band(stem: str, bands: Iterable[str], kind: pa.DataType, unit: str = "", zero: bool = False) -> list[Column]:
    return [Column(f"{stem}_{b}", kind, unit, zero_is_null=zero) for b in bands]


F4, F8, I2, I4, TEXT = pa.float32(), pa.float64(), pa.int16(), pa.int32(), pa.string()
COLUMNS = (
    Column("release", I4, required=True),
    Column("brickid", I4, required=True),
    Column("brickname", TEXT),
    Column("objid", I4, required=True),
    Column("type", TEXT),
    Column("ebv", F4, "mag"),
    *_per_band("flux", BANDS + WISE, F4, "nanomaggy"),
    *_per_band("flux_ivar", BANDS + WISE, F4, "1/nanomaggy^2"),
    *_per_band("mw_transmission", BANDS + WISE, F4),
    *_per_band("nobs", BANDS + WISE, I2),
    *_per_band("fracflux", BANDS, F4),
    *_per_band("fracmasked", BANDS, F4),
    *_per_band("fracin", BANDS, F4),
    *_per_band("psfsize", BANDS, F4, "arcsec", zero=True),
    Column("maskbits", I4),
    Column("fitbits", I4),
    Column("shape_r", F4, "arcsec"),
    Column("shape_r_ivar", F4, "1/arcsec^2"),
    Column("shape_e1", F4),
    Column("shape_e1_ivar", F4),
    Column("shape_e2", F4),
    Column("shape_e2_ivar", F4),
    Column("sersic", F4),
    Column("ref_cat", TEXT),
    Column("ref_id", pa.int64(), zero_is_null=True),
    Column("ref_epoch", F8, "yr", zero_is_null=True),
    Column("parallax", F4, "mas", zero_is_null=True),
    Column("parallax_ivar", F4, "1/mas^2", zero_is_null=True),
    Column("brick_primary", pa.bool_()),
)

VALID = (
    Cut(
        "position",
        ("ra", "dec"),
        lambda v: (v["ra"] >= 0) & (v["ra"] < 360) & (abs(v["dec"]) <= 90),
        "a source lies somewhere on the sky",
    ),
    Cut("key", ("key",), lambda v: np.ones(len(v["key"]), dtype=bool), "a source has an identity"),
    Cut("type", ("type",), lambda v: v["type"] != "DUP", "a DUP row repeats a source that another row measures"),
    Cut(
        "brick_primary",
        ("brick_primary",),
        lambda v: v["brick_primary"],
        "a brick's neighbour owns the sources of its overlap; sweeps hold primary sources alone",
        null="passes",
    ),
)


def _everywhere(stem: str, bands: Iterable[str], test: Callable[[NDArray[Any]], NDArray[np.bool_]], why: str) -> Cut:
    names = tuple(f"{stem}_{b}" for b in bands)
    return Cut(stem, names, lambda v: np.logical_and.reduce([test(v[n]) for n in names]), why)


def _colour(bands: Iterable[str]) -> Cut:
    cut = _everywhere("nobs", bands, lambda n: n > 0, f"exposures in every band of {''.join(bands)}")
    return replace(cut, name="full_colour")


EXTENDED = Cut("extended", ("type",), lambda v: v["type"] != "PSF", "galaxies: not fitted best by a point source")
MAGNITUDE = Cut(
    "magnitude",
    ("flux_z", "mw_transmission_z"),
    lambda v: v["flux_z"].astype(np.float64) > Z_LIMIT * v["mw_transmission_z"].astype(np.float64),
    "dereddened z < 21, on the linear flux",
)
MASKBITS = Cut(
    "maskbits",
    ("maskbits",),
    lambda v: (v["maskbits"] & AION_MASKBITS) == 0,
    "primary, and no bright or medium star, saturation or wholly masked pixel at the source",
)
AION = (EXTENDED, _colour(BANDS), MAGNITUDE, MASKBITS)
SELECT: dict[str, tuple[Cut, ...]] = {
    "aion": AION,
    "strict": (
        *AION,
        _everywhere("flux_ivar", BANDS, lambda x: x > 0, "measured in every band"),
        _everywhere("fracflux", BANDS, lambda x: x < 0.5, "its own light, not its neighbours'"),
        _everywhere("fracmasked", BANDS, lambda x: x < 0.4, "most of its profile is on good pixels"),
        _everywhere("fracin", BANDS, lambda x: x > 0.3, "its profile lies within the blob that was fitted"),
    ),
    "grz": (EXTENDED, _colour(("g", "r", "z")), MAGNITUDE, MASKBITS),
    "all": (),
}
