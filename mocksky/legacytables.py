"""Columns of the Legacy Survey's tables, in the order of DR10's data model (legacysurvey.org/dr10/files)."""

from __future__ import annotations

from skycairn.mocksky.fitsfile import TableColumn

_OPTICAL = ("G", "R", "I", "Z")
_WISE = ("W1", "W2", "W3", "W4")


def _each(prefix: str, type: str, unit: str = "", bands: tuple[str, ...] = _OPTICAL) -> list[TableColumn]:
    return [TableColumn(f"{prefix}_{b}", type, unit) for b in bands]


def _columns(*entries: tuple[str, str] | tuple[str, str, str]) -> list[TableColumn]:
    return [TableColumn(*e) for e in entries]


SWEEP: tuple[TableColumn, ...] = (
    *_columns(
        ("RELEASE", "i2"),
        ("BRICKID", "i4"),
        ("BRICKNAME", "char[8]"),
        ("OBJID", "i4"),
        ("TYPE", "char[3]"),
        ("RA", "f8", "deg"),
        ("DEC", "f8", "deg"),
        ("RA_IVAR", "f4", "1/deg^2"),
        ("DEC_IVAR", "f4", "1/deg^2"),
        ("DCHISQ", "f4[5]"),
        ("EBV", "f4", "mag"),
    ),
    *_each("FLUX", "f4", "nanomaggy", _OPTICAL + _WISE),
    *_each("FLUX_IVAR", "f4", "1/nanomaggy^2", _OPTICAL + _WISE),
    *_each("MW_TRANSMISSION", "f4", "", _OPTICAL + _WISE),
    *_each("NOBS", "i2", "", _OPTICAL + _WISE),
    *_each("RCHISQ", "f4", "", _OPTICAL + _WISE),
    *_each("FRACFLUX", "f4", "", _OPTICAL + _WISE),
    *_each("FRACMASKED", "f4"),
    *_each("FRACIN", "f4"),
    *_each("ANYMASK", "i2"),
    *_each("ALLMASK", "i2"),
    *_each("WISEMASK", "u1", "", ("W1", "W2")),
    *_each("PSFSIZE", "f4", "arcsec"),
    *_each("PSFDEPTH", "f4", "1/nanomaggy^2"),
    *_each("GALDEPTH", "f4", "1/nanomaggy^2"),
    *_each("PSFDEPTH", "f4", "1/nanomaggy^2", ("W1", "W2")),
    *_columns(
        ("WISE_COADD_ID", "char[8]"),
        ("SHAPE_R", "f4", "arcsec"),
        ("SHAPE_R_IVAR", "f4", "1/arcsec^2"),
        ("SHAPE_E1", "f4"),
        ("SHAPE_E1_IVAR", "f4"),
        ("SHAPE_E2", "f4"),
        ("SHAPE_E2_IVAR", "f4"),
    ),
    *_each("FIBERFLUX", "f4", "nanomaggy"),
    *_each("FIBERTOTFLUX", "f4", "nanomaggy"),
    *_columns(
        ("REF_CAT", "char[2]"),
        ("REF_ID", "i8"),
        ("REF_EPOCH", "f4", "yr"),
        ("GAIA_PHOT_G_MEAN_MAG", "f4", "mag"),
        ("GAIA_PHOT_G_MEAN_FLUX_OVER_ERROR", "f4"),
        ("GAIA_PHOT_BP_MEAN_MAG", "f4", "mag"),
        ("GAIA_PHOT_BP_MEAN_FLUX_OVER_ERROR", "f4"),
        ("GAIA_PHOT_RP_MEAN_MAG", "f4", "mag"),
        ("GAIA_PHOT_RP_MEAN_FLUX_OVER_ERROR", "f4"),
        ("GAIA_ASTROMETRIC_EXCESS_NOISE", "f4"),
        ("GAIA_DUPLICATED_SOURCE", "bool"),
        ("GAIA_PHOT_BP_RP_EXCESS_FACTOR", "f4"),
        ("GAIA_ASTROMETRIC_SIGMA5D_MAX", "f4", "mas"),
        ("GAIA_ASTROMETRIC_PARAMS_SOLVED", "u1"),
        ("PARALLAX", "f4", "mas"),
        ("PARALLAX_IVAR", "f4", "1/mas^2"),
        ("PMRA", "f4", "mas/yr"),
        ("PMRA_IVAR", "f4", "1/(mas/yr)^2"),
        ("PMDEC", "f4", "mas/yr"),
        ("PMDEC_IVAR", "f4", "1/(mas/yr)^2"),
        ("MASKBITS", "i4"),
        ("FITBITS", "i2"),
        ("SERSIC", "f4"),
        ("SERSIC_IVAR", "f4"),
    ),
)

BRICKS: tuple[TableColumn, ...] = tuple(
    _columns(
        ("BRICKNAME", "char[8]"),
        ("BRICKID", "i4"),
        ("BRICKQ", "i2"),
        ("BRICKROW", "i4"),
        ("BRICKCOL", "i4"),
        ("RA", "f8"),
        ("DEC", "f8"),
        ("RA1", "f8"),
        ("RA2", "f8"),
        ("DEC1", "f8"),
        ("DEC2", "f8"),
    )
)

_LOWER = tuple(b.lower() for b in _OPTICAL)

SOUTH_BRICKS: tuple[TableColumn, ...] = (
    *_columns(("brickname", "char[8]"), ("ra", "f8"), ("dec", "f8")),
    *_each("nexp", "i2", "", _LOWER),
    *_each("nexphist", "i4[11]", "", _LOWER),
    *_columns(*[(f"n{t}", "i4") for t in ("objs", "psf", "simp", "rex", "exp", "dev", "comp", "ser", "dup")]),
    *_each("psfsize", "f4", "", _LOWER),
    *_each("psfdepth", "f4", "", _LOWER),
    *_each("galdepth", "f4", "", _LOWER),
    *_columns(("ebv", "f4")),
    *_each("trans", "f4", "", _LOWER),
    *_each("cosky", "f4", "", _LOWER),
    *_each("ext", "f4", "", _LOWER),
    *_columns(("wise_nobs", "i2[4]"), ("trans_wise", "f4[4]")),
    *_each("ext", "f4", "", ("w1", "w2", "w3", "w4")),
    *_columns(("brickid", "i4")),
    *_columns(*[(f, "f8") for f in ("ra1", "ra2", "dec1", "dec2", "area")]),
    *_columns(("survey_primary", "bool"), ("in_desi", "bool")),
)
