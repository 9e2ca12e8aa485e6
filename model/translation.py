"""What a translation is worth: draws of one survey's image or spectrum against what that survey measured.

Everything is told of the median and the mean of an object's draws, of their spread by how often the measurement's own
tokens lie among them, and of simpler answers to the same question beside it. All arrays are of whole objects, first
axis the object; flux in the survey's own unit, ivar in its inverse square.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from skycairn.tokenizers.quality import aperture, colour_bias
from skycairn.tokenizers.spectralquality import lines, redshift_shift

F64 = NDArray[np.float64]
Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
APERTURE_PIXELS = 12.0
INTERVAL = (0.16, 0.84)
BIN_PIXELS = 64
"""Of a spectrum: coverage is that of means over so many pixels, as that of single pixels is all noise."""
CONTINUUM_PIXELS = 151
LEAST_WIDTH = 0.3
"""Of the equivalent width in the data, that an answer's line has at least."""
ABSORPTION: Mapping[str, float] = {
    "H delta": 4102.89,
    "H gamma": 4341.68,
    "H beta": 4862.68,
    "Na D": 5894.6,
    "H alpha": 6564.61,
    "Ca II 8500": 8500.35,
    "Ca II 8544": 8544.44,
    "Ca II 8664": 8664.52,
}
"""Lines of stars (NIST, vacuum Angstrom)."""


class Measured(NamedTuple):
    """What the survey measured."""

    flux: F64
    ivar: F64
    good: Bools


class Residual(NamedTuple):
    """Of one answer, median over objects."""

    objects: int
    chi: float
    "root mean square of (answer - data) sqrt(ivar) over good pixels: 1 would be the noise alone"
    bias: float
    "mean of the same"


def residual(answer: Floats, data: Measured) -> Residual:
    """ValueError where shapes differ."""
    if answer.shape != data.flux.shape:
        raise ValueError(f"translation: an answer of shape {answer.shape}; wanted {data.flux.shape}")
    axes = tuple(range(1, answer.ndim))
    n = data.good.sum(axis=axes)
    # ivar of bad pixels may be anything
    off = np.where(data.good, answer - data.flux, 0.0) * np.sqrt(np.where(data.good, data.ivar, 0.0))
    some = n > 0
    if not some.any():
        return Residual(0, np.nan, np.nan)
    chi = np.sqrt((off**2).sum(axis=axes)[some] / n[some])
    return Residual(int(some.sum()), float(np.median(chi)), float(np.median(off.sum(axis=axes)[some] / n[some])))


class Light(NamedTuple):
    """Of images: light within `APERTURE_PIXELS` of the middle."""

    objects: int
    flux: float
    "median relative error, of objects whose measured S/N in the band is 10 or more, all bands together"
    flux_scatter: float
    "1.4826 times the median absolute deviation of it"
    colour: float
    "median error of neighbouring bands' colours, magnitudes"
    colour_scatter: float


def light(answer: Floats, data: Measured) -> Light:
    """Of images (object, band, y, x)."""
    seen = aperture(data.flux, answer, data.ivar, data.good, APERTURE_PIXELS)
    bright = seen.whole & (seen.truth > 10 * seen.sigma) & (seen.sigma > 0)
    ratio = (seen.decoded[bright] / seen.truth[bright] - 1) if bright.any() else np.array([np.nan])
    colours = [colour_bias(seen, b, b + 1, 10.0) for b in range(data.flux.shape[1] - 1)]
    told = [c for c in colours if c.n]
    middle = float(np.median(ratio))
    return Light(
        int(bright.any(axis=1).sum()),
        middle,
        1.4826 * float(np.median(np.abs(ratio - middle))),
        float(np.mean([c.median for c in told])) if told else np.nan,
        float(np.mean([c.scatter for c in told])) if told else np.nan,
    )


class Lines(NamedTuple):
    """Of spectra."""

    lines: int
    "seen in the data above 5 sigma"
    lost: int
    "of which the answer has less than 0.3 of the light, or none within 3 pixels"
    shift_pixels: float
    "1.4826 times the median absolute error of the others' centres"
    velocity: float
    "the same of the whole spectrum's shift against the data, km/s"
    unknown: int
    "spectra that have no such shift"


def line_errors(answer: Floats, data: Measured, wavelength: F64, z: F64) -> Lines:
    """Emission lines where the redshift `z` is finite, and absorption lines of stars (|z| below 0.005).

    The data are the template, noise and all: an answer that copies their noise looks better than the truth would.
    """
    shifts, velocities = [], []
    for flux, given, ivar, good, own in zip(answer, data.flux, data.ivar, data.good, z, strict=True):
        if not good.any():
            continue
        weight = np.where(good, ivar, 0.0)
        safe = np.where(good, given, 0.0)
        found = lines(wavelength, safe, flux, np.where(good, ivar, 1.0), good, own)
        if abs(own) < 0.005:
            true, other = (2 * _continuum(f, weight) - f for f in (safe, flux))
            found += lines(wavelength, true, other, np.where(good, ivar, 1.0), good, own, ABSORPTION)
        # a flat answer fits any profile somewhere
        shifts += [x.shift_pixels if x.width_decoded > LEAST_WIDTH * x.width_true else np.nan for x in found]
        velocities.append(redshift_shift(wavelength, safe, flux, ivar, good))
    known, fast = (np.array([x for x in values if np.isfinite(x)]) for values in (shifts, velocities))
    return Lines(
        len(shifts),
        len(shifts) - len(known),
        1.4826 * float(np.median(np.abs(known))) if len(known) else np.nan,
        1.4826 * float(np.median(np.abs(fast))) if len(fast) else np.nan,
        len(velocities) - len(fast),
    )


def _continuum(flux: Floats, weight: F64) -> F64:
    box, seen = np.ones(CONTINUUM_PIXELS), (weight > 0).astype(np.float64)
    return np.asarray(np.convolve(flux * seen, box, "same") / np.maximum(np.convolve(seen, box, "same"), 1.0))


class Coverage(NamedTuple):
    """How often the answer of an object's own tokens lies within the middle 68 % of its draws."""

    n: int
    share: float
    "0.68 where spreads are right"


def coverage(draws: Floats, own: Floats, good: Bools) -> Coverage:
    """Of apertures' light in each band (draws (object, sample, band, y, x)), or of means over pieces of spectra.

    `own`: what the object's own tokens decode to, which is one more draw where the model is right: the data themselves
    hold noise that no token keeps. Apertures with a bad pixel are left out, and pieces half of which are bad. Quantiles
    are those that few draws give without bias (k / (n + 1)); below 6 draws the outermost ones cover less.
    """
    if draws.ndim == 5:
        unit = np.ones(own.shape)
        seen = [aperture(own, draws[:, s], unit, good, APERTURE_PIXELS) for s in range(draws.shape[1])]
        measured, there = seen[0].truth, seen[0].whole
        drawn = np.stack([s.decoded for s in seen], axis=1)
    else:
        pieces = np.array_split(np.arange(own.shape[1]), max(1, own.shape[1] // BIN_PIXELS))
        there = np.stack([good[:, p].mean(axis=1) > 0.5 for p in pieces], axis=1)
        measured, drawn = (np.stack([a[..., p].mean(axis=-1) for p in pieces], axis=-1) for a in (own, draws))
    low, high = np.quantile(drawn, INTERVAL, axis=1, method="weibull")
    inner = (measured >= low) & (measured <= high)
    return Coverage(int(there.sum()), float(inner[there].mean()) if there.any() else np.nan)
