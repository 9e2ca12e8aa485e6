"""What a reconstruction does to a spectrum's lines and redshift, measured against the truth.

A line is compared as a fitter would see it. A straight continuum, fitted beside the line in the truth and in the
reconstruction alike, is taken off. Where the reconstruction's line lies is then the shift at which the true profile
fits it best, so that blends and lines wider than a pixel need no model. Rest wavelengths in vacuum, Angstrom.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]

LIGHT_KM_S = 299792.458
EMISSION: Mapping[str, float] = {
    "[O II] 3728": 3728.48,
    "[Ne III] 3870": 3869.86,
    "H gamma": 4341.68,
    "H beta": 4862.68,
    "[O III] 4960": 4960.30,
    "[O III] 5008": 5008.24,
    "[N II] 6550": 6549.86,
    "H alpha": 6564.61,
    "[N II] 6585": 6585.27,
    "[S II] 6718": 6718.29,
    "[S II] 6733": 6732.67,
}
"""Narrow lines of galaxies (NIST); the doublet of [O II] as one."""
LINE_KM_S = 400.0
"""Half the width of what counts as the line."""
BESIDE_KM_S = 2500.0
"""How far the continuum beside it reaches."""
MOST_SHIFT_PIXELS = 3.0
REDSHIFT_KM_S = 1000.0
"""How far a template is moved either way."""
CONTINUUM_PIXELS = 151
FAILED_KM_S = 300.0
"""A redshift that far off is lost."""


class Line(NamedTuple):
    """One emission line of one spectrum."""

    name: str
    sn: float
    "true flux of the line over the error of its sum in the data"
    shift_pixels: float
    "reconstruction less truth; NaN where the reconstruction has no line there"
    width_true: float
    "equivalent width, Angstrom, observed, emission positive"
    width_decoded: float


def lines(
    wavelength: F64,
    truth: F64,
    decoded: F64,
    ivar: F64,
    good: Bools,
    z: float,
    rest: Mapping[str, float] = EMISSION,
    least_sn: float = 5.0,
) -> list[Line]:
    """Lines above `least_sn` in the truth of one spectrum, arrays (pixel,), z its redshift.

    A line counts where its window and the continuum on both sides have mostly good pixels, and the true continuum is
    positive. Equivalent widths are sums of flux over continuum, less one, times the pixels' widths.
    """
    if not np.isfinite(z):
        return []
    found = []
    pixel = np.gradient(wavelength)
    speed = {n: LIGHT_KM_S * (wavelength / (w * (1 + z)) - 1) for n, w in rest.items()}
    for name, v in speed.items():
        near = np.abs(v) <= LINE_KM_S
        if near.sum() < 5 or near[[0, -1]].any() or np.mean(good[near]) < 0.9:
            continue
        other = np.any([np.abs(w) <= LINE_KM_S for n, w in speed.items() if n != name], axis=0)
        beside = good & ~near & ~other & (np.abs(v) <= BESIDE_KM_S)
        if min((beside & (v < 0)).sum(), (beside & (v > 0)).sum()) < 5:
            continue
        inner = near & good
        flux = truth[inner] * pixel[inner]
        floor = _straight(v, truth, beside)
        strength = float((flux - floor[inner] * pixel[inner]).sum())
        sn = strength / float(np.sqrt((pixel[inner] ** 2 / ivar[inner]).sum()))
        if sn < least_sn or floor[inner].min() <= 0:
            continue
        other_floor = _straight(v, decoded, beside)
        profile, light = _bridged(truth - floor, good), decoded - other_floor
        shift = _shift(profile, light, np.flatnonzero(near), ivar * good)
        width = float(((truth / floor - 1) * pixel)[inner].sum())
        # an equivalent width over no continuum is none
        sound = other_floor[inner].min() > 0
        shown = float((light[inner] / other_floor[inner] * pixel[inner]).sum()) if sound else np.nan
        found.append(Line(name, sn, shift, width, shown))
    return found


def _bridged(flux: F64, good: Bools) -> F64:
    """Flux whose bad pixels are bridged from their neighbours, so that it can be moved; 0 where none is good."""
    at = np.flatnonzero(good)
    return np.interp(np.arange(len(flux)), at, flux[at]) if len(at) else np.zeros(len(flux))


def _straight(v: F64, flux: F64, beside: Bools) -> F64:
    """The straight line through the pixels beside a line, at all pixels."""
    slope, level = np.polyfit(v[beside] / BESIDE_KM_S, flux[beside], 1)
    return np.asarray(level + slope * v / BESIDE_KM_S)


def _shift(profile: F64, light: F64, near: NDArray[np.int64], weight: F64) -> float:
    """Pixels by which `light` lies redward of `profile` within these pixels, by least squares of a and s in a p(x - s).

    The scan is of a tenth of a pixel, then a parabola. NaN where the best fit is at the end of the scan, or dark.
    """
    reach = int(np.ceil(MOST_SHIFT_PIXELS)) + 3
    first, last = max(near[0] - reach, 0), min(near[-1] + reach + 1, len(profile))
    x = np.arange(first, last, dtype=np.float64)
    spline = CubicSpline(x, profile[first:last])
    shifts = np.arange(-10 * MOST_SHIFT_PIXELS, 10 * MOST_SHIFT_PIXELS + 1) / 10
    moved = spline(np.clip(near - shifts[:, None], x[0], x[-1]))
    return _best(shifts, moved, light[near], weight[near])


def _best(shifts: F64, moved: F64, light: F64, weight: F64) -> float:
    """The shift at which a moved template times a free factor fits the light best."""
    power = (weight * moved**2).sum(axis=1)
    common = (weight * moved * light).sum(axis=1)
    gain = np.where(common > 0, common**2 / np.where(power > 0, power, np.inf), 0.0)
    k = int(np.argmax(gain))
    if not 0 < k < len(shifts) - 1 or gain[k] <= 0:
        return np.nan
    left, middle, right = gain[k - 1 : k + 2]
    bend = left - 2 * middle + right
    return float(shifts[k] + (0.5 * (left - right) / bend if bend < 0 else 0.0) * (shifts[1] - shifts[0]))


def without_continuum(flux: F64, weight: F64) -> F64:
    """Flux (pixel,) less its running mean over `CONTINUUM_PIXELS`, of the pixels with weight; 0 at the others."""
    box = np.ones(CONTINUUM_PIXELS)
    seen = (weight > 0).astype(np.float64)
    mean = np.convolve(flux * seen, box, "same") / np.maximum(np.convolve(seen, box, "same"), 1.0)
    return np.asarray((flux - mean) * seen)


def redshift_shift(wavelength: F64, truth: F64, decoded: F64, ivar: F64, good: Bools) -> float:
    """c dz / (1 + z), km/s, of a template fit on the reconstruction whose template is the true spectrum itself.

    Both less their running continuum; the template is moved over +- `REDSHIFT_KM_S`, times a free factor, weighted by
    ivar. NaN where the best fit lies at an end: lost.
    """
    weight = np.where(good, ivar, 0.0)
    template = _bridged(without_continuum(truth, weight), weight > 0)
    light = without_continuum(decoded, weight)
    velocity = np.arange(-REDSHIFT_KM_S, REDSHIFT_KM_S + 1, 25.0)
    spline = CubicSpline(np.log(wavelength), template)
    moved = spline(np.log(wavelength)[None, :] - velocity[:, None] / LIGHT_KM_S)
    # what comes from beyond the ends says nothing
    edge = np.searchsorted(np.log(wavelength), np.log(wavelength[[0, -1]]) + np.array([1, -1]) * 0.004)
    weight[: edge[0]] = weight[edge[1] :] = 0.0
    return _best(velocity, moved, light, weight)
