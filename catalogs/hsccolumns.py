"""What HSC-SSP's forced photometry holds: columns, the units they must have, and the cuts, each with its reason.

Names are those of the database (MultimodalUniverse's scripts/hsc/pdr3_wide_21.sql); units are not written in its files.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skycairn.catalogs.hscfiles import BANDS
from skycairn.catalogs.survey import Column, Cut

NJY_ZERO_POINT = 31.4
"""AB magnitude of 1 nJy, rounded as the database rounds it."""
NJY_PER_NANOMAGGY = 3630.7805
"""10^(0.4 (31.4 - 22.5))."""
UNIT_TOLERANCE = 0.01
"""Magnitudes by which a flux and its magnitude may differ."""

F4, I4, I8, FLAG = pa.float32(), pa.int32(), pa.int64(), pa.bool_()
FLAGS = ("bright_objectcenter", "bright_object", "edge", "saturatedcenter", "crcenter", "interpolatedcenter", "bad")
MOMENTS = ("11", "22", "12")
DERIVED = (
    *(Column(f"flux_{b}", F4, "nanomaggy") for b in BANDS),
    *(Column(f"flux_ivar_{b}", F4, "1/nanomaggy^2") for b in BANDS),
)
"""Computed from the cmodel flux and its error; as observed, not dereddened."""
PUBLISHED = (
    Column("object_id", I8, required=True),
    Column("tract", I4, required=True),
    Column("patch", I4, required=True),
    Column("isprimary", FLAG),
    *(Column(f"a_{b}", F4, "mag") for b in BANDS),
    *(Column(f"{b}_inputcount_value", I4) for b in BANDS),
    *(Column(f"{b}_extendedness_value", F4) for b in BANDS),
    *(Column(f"{b}_variance_value", F4) for b in BANDS),
    *(Column(f"{b}_cmodel_mag", F4, "mag") for b in BANDS),
    *(Column(f"{b}_cmodel_magerr", F4, "mag") for b in BANDS),
    *(Column(f"{b}_cmodel_flux", F4, "nJy") for b in BANDS),
    *(Column(f"{b}_cmodel_fluxerr", F4, "nJy") for b in BANDS),
    *(Column(f"{b}_cmodel_flag", FLAG) for b in BANDS),
    *(Column(f"{b}_pixelflags_{flag}", FLAG) for flag in FLAGS for b in BANDS),
    *(Column(f"{b}_sdssshape_shape{m}", F4, "arcsec^2") for b in BANDS for m in MOMENTS),
    *(Column(f"{b}_sdssshape_psf_shape{m}", F4, "arcsec^2") for b in BANDS for m in MOMENTS),
)
COLUMNS = (*PUBLISHED, *DERIVED)

VALID = (
    Cut(
        "position",
        ("ra", "dec"),
        lambda v: (v["ra"] >= 0) & (v["ra"] < 360) & (abs(v["dec"]) <= 90),
        "a source lies somewhere on the sky",
    ),
    Cut("key", ("key",), lambda v: np.ones(len(v["key"]), dtype=bool), "a source has an identity"),
    Cut(
        "isprimary",
        ("isprimary",),
        lambda v: v["isprimary"],
        "tracts and patches overlap, and blends are kept beside their parts: one row alone is the source; a table "
        "that does not say which is not trusted",
    ),
)


def _no_flag(name: str, why: str) -> Cut:
    names = tuple(f"{b}_{name}" for b in BANDS)
    return Cut(name.removeprefix("pixelflags_"), names, lambda v: ~np.logical_or.reduce([v[n] for n in names]), why)


_VISITS = tuple(f"{b}_inputcount_value" for b in BANDS)
_MAGERR = tuple(f"{b}_cmodel_magerr" for b in BANDS)
_SHAPE = tuple(f"i_sdssshape_shape{m}" for m in MOMENTS)

EXTENDED = Cut(
    "extended", ("i_extendedness_value",), lambda v: v["i_extendedness_value"] > 0.5, "galaxies, judged in i alone"
)
FULL_COLOUR = Cut(
    "full_colour",
    _VISITS,
    lambda v: np.logical_and.reduce([v[n] >= 3 for n in _VISITS]),
    "at least 3 visits in every band of grizy",
)
MAGNITUDE = Cut(
    "magnitude",
    ("z_cmodel_mag", "a_z"),
    lambda v: v["z_cmodel_mag"].astype(np.float64) - v["a_z"].astype(np.float64) < 21,
    "dereddened z < 21",
)
I_LIMIT = Cut(
    "magnitude",
    ("i_cmodel_flux",),
    lambda v: v["i_cmodel_flux"] > 10 ** (0.4 * (NJY_ZERO_POINT - 22.5)),
    "i < 22.5 as observed, on the linear flux",
)
NO_FLAG = {
    "bright_objectcenter": _no_flag("pixelflags_bright_objectcenter", "no bright star's mask at the centre"),
    "bright_object": _no_flag("pixelflags_bright_object", "no bright star's mask in the footprint"),
    "edge": _no_flag("pixelflags_edge", "its footprint lies within the exposures"),
    "saturatedcenter": _no_flag("pixelflags_saturatedcenter", "no saturated pixel at the centre"),
    "crcenter": _no_flag("pixelflags_crcenter", "no cosmic ray at the centre"),
    "interpolatedcenter": _no_flag("pixelflags_interpolatedcenter", "no invented pixel at the centre"),
    "bad": _no_flag("pixelflags_bad", "no bad pixel in the footprint"),
    "cmodel_flag": _no_flag("cmodel_flag", "the fit of its light did not fail"),
}
AION = (EXTENDED, FULL_COLOUR, MAGNITUDE, *NO_FLAG.values())
MEASURED = Cut(
    "measured", _MAGERR, lambda v: np.logical_and.reduce([v[n] > 0 for n in _MAGERR]), "an error in every band"
)
ELLIPSE = Cut(
    "ellipse",
    _SHAPE,
    lambda v: (
        (v[_SHAPE[0]] > 0) & (v[_SHAPE[0]].astype(np.float64) * v[_SHAPE[1]] > v[_SHAPE[2]].astype(np.float64) ** 2)
    ),
    "its moments in i are those of an ellipse",
)
SELECT: dict[str, tuple[Cut, ...]] = {
    "aion": AION,
    "aion-paper": (
        I_LIMIT,
        FULL_COLOUR,
        *(cut for name, cut in NO_FLAG.items() if name not in ("crcenter", "interpolatedcenter")),
    ),
    "strict": (*AION, MEASURED, ELLIPSE),
    "all": (),
}
"""`aion`: MultimodalUniverse's pdr3_wide_21.sql, and the talk. `aion-paper`: i < 22.5 as the paper says, in the form of
pdr3_dud_22.5.sql, which leaves extendedness, cosmic rays and interpolation out."""


def refuse_other_units(columns: Mapping[str, pa.Array], where: str, first_row: int = 0) -> None:
    """ValueError at the first row whose cmodel flux is not in nJy: its magnitude says another flux.

    Compared where both are there.
    """
    for b in BANDS:
        flux, mag = (
            columns[f"{b}_cmodel_{c}"].to_numpy(zero_copy_only=False).astype(np.float64) for c in ("flux", "mag")
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            other = NJY_ZERO_POINT - 2.5 * np.log10(flux)
            wrong = np.isfinite(flux) & np.isfinite(mag) & ~(abs(other - mag) < UNIT_TOLERANCE)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(
                f"{where}, row {first_row + row}: {b}_cmodel_flux {flux[row]:.6g} is magnitude {other[row]:.4f} if it "
                f"is in nJy, {b}_cmodel_mag is {mag[row]:.4f}; wanted both to agree within {UNIT_TOLERANCE}: select "
                "both columns of `forced` as they are, without conversion"
            )


def derived(columns: Mapping[str, pa.Array]) -> dict[str, pa.Array]:
    """Fluxes in nanomaggies and their inverse variances from the cmodel fluxes in nJy; null where not known."""
    out = {}
    for b in BANDS:
        flux, error = (
            columns[f"{b}_cmodel_{c}"].to_numpy(zero_copy_only=False).astype(np.float64) / NJY_PER_NANOMAGGY
            for c in ("flux", "fluxerr")
        )
        known = np.isfinite(error) & (error > 0) & np.isfinite(flux)
        out[f"flux_{b}"] = _float32(flux)
        out[f"flux_ivar_{b}"] = _float32(np.where(known, 1 / np.where(known, error, 1) ** 2, np.nan))
    return out


def _float32(values: NDArray[np.float64]) -> pa.Array:
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    return pa.array(narrow, mask=~np.isfinite(narrow))
