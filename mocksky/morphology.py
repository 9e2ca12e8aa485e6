"""What galaxies look like: four components of one flux, their colours, and the type that a catalogue gives the whole.

A galaxy is a Sersic bulge, an exponential disk, spiral arms painted on that disk and a Gaussian bar. Their shares of
the flux differ from band to band (the bulge is redder, the arms are bluer) and add up to 1 in each.

Geometry. Radii are half-light radii along the major axis, arcsec. `axis_ratio` and `position_angle` (East of North) are
the disk's, or the whole galaxy's where bulge_fraction is 1; else the bulge's axis ratio is (1 + axis_ratio) / 2.
`bar_angle` is counted in the plane of the disk from its major axis. Arms follow theta = phase + ln(r / h) / tan(pitch)
there, with h the disk's scale length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Rows = Mapping[str, NDArray[Any]]

BANDS = ("g", "r", "i", "z")
COMPONENTS = ("bulge", "disk", "bar", "arms")
"""In the order of the truth masks' labels 1 to 4."""

ARM_SHARE = 0.5
"""Part of the disk's flux in its arms, in r, where arm_amplitude is 1."""
EXPONENTIAL_HALF_LIGHT = 1.6783469900166605
"""Half-light radius of an exponential disk in scale lengths."""
GAUSSIAN_HALF_LIGHT = 1.1774100225154747
LARGEST_ARCSEC = 6.0
"""No half-light radius is larger, so that a galaxy and its surroundings fit a mini-brick."""

# magnitudes by which a component is fainter than the disk in g, r, i, z, for equal flux in r
_COLOUR = np.array(
    [[0.35, 0.0, -0.12, -0.20], [0.0, 0.0, 0.0, 0.0], [0.18, 0.0, -0.06, -0.10], [-0.20, 0.0, 0.07, 0.12]]
)


def tidy(rows: dict[str, NDArray[Any]]) -> None:
    """Bring drawn morphology to what is painted: bulge_n to multiples of a half, radii to the largest allowed."""
    rows["bulge_n"] = np.where(rows["bulge_fraction"] > 0, np.clip(np.round(rows["bulge_n"] * 2) / 2, 0.5, 6.0), 0.0)
    for name in ("bulge_radius", "disk_radius", "bar_radius"):
        rows[name] = np.minimum(rows[name], LARGEST_ARCSEC)
    rows["arm_amplitude"] = np.where(rows["n_arms"] > 0, rows["arm_amplitude"], 0.0)
    for name in ("bulge_n", "bulge_radius", "disk_radius", "bar_radius", "arm_amplitude"):
        rows[name] = rows[name].astype(np.float32)


def shares(rows: Rows) -> F64:
    """Each component's part of the flux, shape (n, component, band); sums to 1 over the components."""
    bulge, bar = (np.asarray(rows[k], dtype=np.float64) for k in ("bulge_fraction", "bar_fraction"))
    disk = np.clip(1 - bulge - bar, 0.0, 1.0)
    arms = disk * ARM_SHARE * rows["arm_amplitude"]
    in_r = np.stack([bulge, disk - arms, bar, arms], axis=1)
    out = in_r[:, :, None] * 10 ** (-0.4 * _COLOUR)[None]
    return np.asarray(out / out.sum(axis=1, keepdims=True))


def half_light_radius(rows: Rows) -> F64:
    """Half-light radius of the whole, arcsec, to a few percent: the components' radii weighed by their flux in r."""
    share = shares(rows)[:, :, 1]
    radii = np.stack([rows["bulge_radius"], rows["disk_radius"], rows["bar_radius"], rows["disk_radius"]], axis=1)
    return np.asarray((share * radii).sum(axis=1))


def axis_ratio(rows: Rows) -> F64:
    """Axis ratio of the whole: that of disk and bulge weighed by flux."""
    q, bulge = np.asarray(rows["axis_ratio"], dtype=np.float64), rows["bulge_fraction"]
    return np.where(bulge >= 1, q, (1 - bulge) * q + bulge * (1 + q) / 2)


def ellipticity(q: F64, position_angle: F64) -> tuple[F64, F64]:
    """e1, e2 of the Tractor: |e| = (1 - q) / (1 + q), angle = atan2(e2, e1) / 2, East of North; degrees in."""
    e, angle = (1 - q) / (1 + q), np.radians(2 * np.asarray(position_angle, dtype=np.float64))
    return e * np.cos(angle), e * np.sin(angle)


def catalogue_type(rows: Rows, signal_to_noise: F64) -> NDArray[np.str_]:
    """PSF, REX, EXP, DEV or SER, as the Tractor would choose: the simplest model that the signal does not rule out."""
    galaxy, bulge, radius = rows["kind"] == "galaxy", rows["bulge_fraction"], half_light_radius(rows)
    out = np.where(bulge > 0.75, "DEV", np.where(bulge < 0.25, "EXP", "SER"))
    out = np.where((out == "SER") & (signal_to_noise < 60), np.where(bulge > 0.5, "DEV", "EXP"), out)
    out = np.where(signal_to_noise < 20, "REX", out)
    out = np.where(~galaxy | (radius * np.sqrt(signal_to_noise) < 0.8), "PSF", out)
    return np.asarray(out, dtype="U3")


def sersic_index(rows: Rows, types: NDArray[np.str_]) -> F64:
    """The catalogue's SERSIC: 0 of a PSF, 1 of REX and EXP, 4 of DEV, between for SER."""
    free = np.clip(1 + rows["bulge_fraction"] * (np.maximum(rows["bulge_n"], 1) - 1), 0.5, 6.0)
    return np.select([types == "PSF", types == "DEV", types == "SER"], [0.0, 4.0, free], 1.0)
