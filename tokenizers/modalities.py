"""The 40 modalities of AION-1 as data: what each is called, what goes in, how many tokens come out.

After `polymathic-aion` 0.0.2 and the configurations published with its weights (https://huggingface.co/polymathic-ai),
which differ from the paper in places: of the images' codebook, the spectra's tokens, the redshift's grid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

Published = Literal["image", "spectrum", "catalog", "scalar_field", "scalar", "log", "multi", "grid"]
"""AION-1's kinds of codec: convolutional with finite scalar quantization (`image`, `scalar_field`), convolutional with
look-up-free quantization (`spectrum`), knots of a cumulative distribution (`scalar`; `log` of ln; `multi`, a table a
coefficient), even steps (`grid`), five of these for each object of a cut-out (`catalog`)."""

MIN_LOG = -3.0
"""Natural logarithm below which `log` codecs floor a value, in the value's own unit."""
BAND_MOST = {
    **{"HSC-G": 80.0, "HSC-R": 110.0, "HSC-I": 200.0, "HSC-Z": 330.0, "HSC-Y": 500.0},
    **{"DES-G": 6.0, "DES-R": 15.0, "DES-I": 20.0, "DES-Z": 25.0},
}
"""Bands of the image codec in the order of its channels, and the absolute flux a pixel at which each is clipped, in the
unit of its survey: HSC's before it is brought to nanomaggies."""
IMAGE = "0.1 asinh(100 x), x clipped and then in nanomaggies"
SPECTRUM = "log10(1 + mean) for the norm, asinh((x / mean - 1) / 5) for the form"


@dataclass(frozen=True)
class AionModality:
    """One kind of tokens of AION-1."""

    token_key: str
    "its name in AION-1's embeddings and heads"
    name: str
    "the folder of its codec below `codecs/`; unlike modalities may share one"
    survey: str
    what: str
    codec: Published
    vocabulary: int
    "tokens of the codec are 0 .. vocabulary - 1"
    tokens: int
    "of one source; for the catalogue the most that the transformer takes"
    unit: str = ""
    arrays: tuple[str, ...] = ("value",)
    "of the peer's input, each of `shape` after the axis of the batch"
    shape: tuple[int | None, ...] = ()
    "None: any length"
    bands: tuple[str, ...] = ()
    head: int = 0
    "outputs of the transformer's head, where they are not as many as the codec's tokens"
    min_log: float | None = None
    "of a `log` codec"
    compression: str = "x"
    "of the input x, before the network or the knots"
    ours: tuple[str, ...] = ()
    "the modalities of the catalogues whose tokens bear this key, the one that takes precedence first"

    @property
    def outputs(self) -> int:
        """Entries of its embedding and of its head in the transformer."""
        return self.head or self.vocabulary

    @property
    def number(self) -> int:
        """By which the transformer knows it: SHA-256 of the key, modulo 2^15; no two are alike."""
        return int(hashlib.sha256(self.token_key.encode()).hexdigest(), 16) % (1 << 15)


def _scalar(key: str, name: str, survey: str, what: str, unit: str, ours: str) -> AionModality:
    return AionModality(key, name, survey, what, "scalar", 1024, 1, unit, ours=(f"{survey}.{ours}",))


def _log(key: str, name: str, survey: str, what: str, unit: str, ours: str) -> AionModality:
    return replace(
        _scalar(key, name, survey, what, unit, ours), codec="log", min_log=MIN_LOG, compression="ln(max(x, e^-3))"
    )


def _image(key: str, survey: str, unit: str, prefix: str) -> AionModality:
    bands = tuple(b for b in BAND_MOST if b.startswith(prefix))
    what, shape, ours = "cut-out, of which the middle 96 x 96 pixels", (len(bands), None, None), (f"{survey}.image",)
    return AionModality(
        key, "image", survey, what, "image", 4375, 576, unit, ("flux",), shape, bands, ours=ours, compression=IMAGE
    )


def _spectrum(survey: str) -> AionModality:
    key, what, unit = (
        f"tok_spectrum_{survey}",
        "spectrum: its norm, then its form",
        "1e-17 erg/s/cm2/Angstrom; Angstrom",
    )
    arrays, ours = ("flux", "ivar", "mask", "wavelength"), (f"{survey}.spectrum",)
    return AionModality(
        key, "spectrum", survey, what, "spectrum", 1024, 273, unit, arrays, (None,), ours=ours, compression=SPECTRUM
    )


def _objects() -> AionModality:
    what, unit = "objects of the cut-out: place and shape of each", "pixel, pixel, 1, 1, arcsec"
    arrays = ("X", "Y", "SHAPE_E1", "SHAPE_E2", "SHAPE_R")
    return AionModality(
        "catalog", "catalog", "legacysurvey", what, "catalog", 3264, 50, unit, arrays, (None,), head=3468
    )


def _painted() -> AionModality:
    key, name, what = "tok_segmap", "segmentation_map", "objects of the cut-out, painted by kind"
    return AionModality(key, name, "legacysurvey", what, "scalar_field", 1000, 144, "0 to 1", ("field",), (None, None))


def _redshift() -> AionModality:
    what, ours = "redshift; 1 and all above alike", ("desi.z", "sdss.z")
    return AionModality("tok_z", "Z", "desi, sdss", what, "grid", 1024, 1, head=1025, ours=ours)


def _xp(band: str) -> AionModality:
    key, name, what = f"tok_xp_{band}", f"{band}_coefficients", f"coefficients of the mean {band.upper()} spectrum"
    return AionModality(
        key,
        name,
        "gaia",
        what,
        "multi",
        1024,
        55,
        shape=(55,),
        compression="asinh(asinh(x))",
        ours=(f"gaia.xp_{band}",),
    )


def _all() -> Iterator[AionModality]:
    yield _image("tok_image", "legacysurvey", "nanomaggy", "DES")
    yield _image("tok_image_hsc", "hsc", "counts of AB zero point 27", "HSC")
    yield _spectrum("desi")
    yield _spectrum("sdss")
    yield _objects()
    yield _painted()
    for b in ("g", "r", "i", "z", "w1", "w2", "w3", "w4"):
        what = f"flux in {b}, not dereddened"
        yield _log(f"tok_flux_{b}", f"FLUX_{b.upper()}", "legacysurvey", what, "nanomaggy", f"flux_{b}")
    yield _log("tok_shape_r", "SHAPE_R", "legacysurvey", "half-light radius", "arcsec", "shape_r")
    for e in ("e1", "e2"):
        what = f"component {e[1]} of the ellipticity"
        yield _scalar(f"tok_shape_{e}", f"SHAPE_{e.upper()}", "legacysurvey", what, "", f"shape_{e}")
    yield _scalar("tok_ebv", "EBV", "legacysurvey", "reddening E(B-V), SFD98", "mag", "ebv")
    yield _redshift()
    for b in "grizy":
        yield _scalar(f"tok_a_{b}", f"a_{b}", "hsc", f"extinction in {b}", "mag", f"a_{b}")
    for b in "grizy":
        yield _scalar(f"tok_mag_{b}", f"{b}_cmodel_mag", "hsc", f"cmodel magnitude in {b}, AB", "mag", f"mag_{b}")
    for m in ("11", "22", "12"):
        what = f"second moment {m} in i; the unit is not verified"
        yield _scalar(f"tok_shape{m}", f"i_sdssshape_shape{m}", "hsc", what, "arcsec^2", f"shape{m}")
    for b in ("g", "bp", "rp"):
        what = f"mean flux in {b.upper()}"
        yield _log(f"tok_flux_{b}_gaia", f"phot_{b}_mean_flux", "gaia", what, "electron/s", f"flux_{b}")
    yield _log("tok_parallax", "parallax", "gaia", "parallax; all below 0.0498 mas alike", "mas", "parallax")
    yield _scalar("tok_ra", "ra", "gaia", "right ascension, ICRS", "deg", "ra")
    yield _scalar("tok_dec", "dec", "gaia", "declination, ICRS", "deg", "dec")
    yield _xp("bp")
    yield _xp("rp")


AION: dict[str, AionModality] = {m.token_key: m for m in _all()}
"""By token key. Of the floors, those of Gaia's fluxes and parallax are inferred: their configurations say."""


def aion_modality(token_key: str) -> AionModality:
    """The modality of this key; ValueError where AION-1 has none."""
    if token_key not in AION:
        raise ValueError(f"AION-1 has no modality {token_key!r}; it has {', '.join(AION)}")
    return AION[token_key]
