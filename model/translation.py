"""What a translation is worth: draws of one survey's image or spectrum against what that survey measured.

Everything is told of the mean of an object's draws, of its spread by the coverage of the draws with the data's noise
added, and of simpler answers to the same question beside it. All arrays are of whole objects, first axis the object;
flux in the survey's own unit, ivar in its inverse square.
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
    "of which the answer has none within 3 pixels"
    shift_pixels: float
    "1.4826 times the median absolute error of the others' centres"
    velocity: float
    "the same of the whole spectrum's shift against the data, km/s; of those that have one"


def line_errors(answer: Floats, data: Measured, wavelength: F64, z: F64) -> Lines:
    """Emission lines where the redshift is known, and absorption lines of stars (|z| below 0.005)."""
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
        shifts += [line.shift_pixels for line in found]
        velocities.append(redshift_shift(wavelength, safe, flux, ivar, good))
    known, fast = (np.array([x for x in values if np.isfinite(x)]) for values in (shifts, velocities))
    return Lines(
        len(shifts),
        len(shifts) - len(known),
        1.4826 * float(np.median(np.abs(known))) if len(known) else np.nan,
        1.4826 * float(np.median(np.abs(fast))) if len(fast) else np.nan,
    )


def _continuum(flux: Floats, weight: F64) -> F64:
    box, seen = np.ones(CONTINUUM_PIXELS), (weight > 0).astype(np.float64)
    return np.asarray(np.convolve(flux * seen, box, "same") / np.maximum(np.convolve(seen, box, "same"), 1.0))


class Coverage(NamedTuple):
    """How often the data lie within the middle 68 % of the draws."""

    n: int
    share: float
    "0.68 where spreads are right"


def coverage(draws: Floats, data: Measured, seed: int = 0) -> Coverage:
    """Of apertures' light in each band (draws (object, sample, band, y, x)), or of means over pieces of spectra.

    Each draw gets noise of the data's own. Apertures and pieces with a bad pixel, or half of them bad, are left out.
    """
    n, samples = draws.shape[:2]
    rng = np.random.default_rng(seed)
    if draws.ndim == 5:
        seen = [aperture(data.flux, draws[:, s], data.ivar, data.good, APERTURE_PIXELS) for s in range(samples)]
        measured, sigma, there = seen[0].truth, seen[0].sigma, seen[0].whole & (seen[0].sigma > 0)
        drawn = np.stack([s.decoded for s in seen], axis=1)
    else:
        pieces = np.array_split(np.arange(data.flux.shape[1]), max(1, data.flux.shape[1] // BIN_PIXELS))
        weight = np.where(data.good, data.ivar, 0.0)
        measured, variance = (np.zeros((n, len(pieces))) for _ in range(2))
        there = np.zeros((n, len(pieces)), bool)
        drawn = np.zeros((n, samples, len(pieces)))
        for k, piece in enumerate(pieces):
            w = weight[:, piece]
            total = np.maximum(w.sum(axis=1), 1e-300)
            there[:, k] = (w > 0).mean(axis=1) > 0.5
            measured[:, k] = (w * np.where(w > 0, data.flux[:, piece], 0.0)).sum(axis=1) / total
            variance[:, k] = 1 / total
            drawn[:, :, k] = (w[:, None] * draws[:, :, piece]).sum(axis=2) / total[:, None]
        sigma = np.sqrt(variance)
    noisy = drawn + sigma[:, None] * rng.standard_normal(drawn.shape)
    low, high = np.quantile(noisy, INTERVAL, axis=1)
    inner = (measured >= low) & (measured <= high)
    return Coverage(int(there.sum()), float(inner[there].mean()) if there.any() else np.nan)
