"""Narrow emission lines of galaxies: where they lie, how strong they are, and how they are painted on a spectrum."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

F64 = NDArray[np.float64]

LIGHT_KM_S = 299792.458

LINES: dict[str, float] = {
    "OII_3727": 3727.092,
    "OII_3729": 3729.875,
    "NeIII_3869": 3869.86,
    "Hdelta": 4102.892,
    "Hgamma": 4341.684,
    "Hbeta": 4862.683,
    "OIII_4960": 4960.295,
    "OIII_5008": 5008.240,
    "HeI_5877": 5877.29,
    "OI_6302": 6302.046,
    "NII_6549": 6549.86,
    "Halpha": 6564.614,
    "NII_6585": 6585.27,
    "SII_6718": 6718.29,
    "SII_6732": 6732.67,
}
"""Rest wavelengths in vacuum, Angstrom (NIST)."""

WAVELENGTHS: F64 = np.array(list(LINES.values()))


def normals(seed: NDArray[np.int64], n: int) -> F64:
    """Standard normal numbers, shape (len(seed), n), that depend on each row's own seed alone (splitmix64)."""
    with np.errstate(over="ignore"):
        counter = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = np.asarray(seed).astype(np.int64).view(np.uint64)[:, None] + counter[None, :]
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    # 53 bits, never 0 or 1
    return np.asarray(ndtri(((x >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53), dtype=np.float64)


def line_fluxes(blue: F64, red: F64, log_mass: F64, seed: NDArray[np.int64]) -> F64:
    """Flux of each of `LINES`, shape (n, lines), in the unit of the continuum times Angstrom, at rest.

    `blue` and `red` are the continuum at 3500 and 6565 A: their ratio tells young from old and so sets the equivalent
    width of H alpha (0.3 to 300 A, 0.4 in ln of scatter). [N II] follows mass, [O III] falls with it, the Balmer
    decrement holds some dust; the doublets of [O III] and [N II] keep their fixed ratio 2.98 (Storey & Zeippen 2000).
    """
    g = normals(seed, 6)
    log_mass = np.clip(log_mass, 7.5, 12.0)
    width = np.clip(32.0 * (blue / red) ** 2.0 * np.exp(0.4 * g[:, 0]), 0.3, 300.0)
    alpha = width * red
    dust = 10.0 ** (-0.06 * np.clip(log_mass - 9.0, 0.0, 2.5) - 0.03 * np.abs(g[:, 1]))
    beta = alpha / 2.86 * dust
    nii = alpha * 10.0 ** np.clip(-0.55 + 0.35 * (log_mass - 10.0) + 0.15 * g[:, 2], -2.0, 0.2)
    oiii = beta * 10.0 ** (-0.1 - 0.35 * (log_mass - 10.0) + 0.25 * g[:, 3])
    oii = alpha * dust * 10.0 ** (-0.2 - 0.15 * (log_mass - 10.0) + 0.12 * g[:, 4])
    sii = alpha * 10.0 ** (-0.45 + 0.1 * g[:, 5])
    by_name = {
        "OII_3727": oii * 0.42,
        "OII_3729": oii * 0.58,
        "NeIII_3869": oiii * 0.07,
        "Hdelta": beta * 0.26,
        "Hgamma": beta * 0.47,
        "Hbeta": beta,
        "OIII_4960": oiii / 2.98,
        "OIII_5008": oiii,
        "HeI_5877": beta * 0.12,
        "OI_6302": alpha * 0.03,
        "NII_6549": nii / 2.98,
        "Halpha": alpha,
        "NII_6585": nii,
        "SII_6718": sii * 0.57,
        "SII_6732": sii * 0.43,
    }
    return np.stack([by_name[name] for name in LINES], axis=1)


def velocity_dispersion(log_mass: F64, seed: NDArray[np.int64]) -> F64:
    """Width of the lines, sigma in km/s: 40 to 250, growing with stellar mass."""
    scatter = normals(seed, 7)[:, 6]
    return np.asarray(np.clip(90.0 * 10.0 ** (0.22 * (log_mass - 10.0) + 0.06 * scatter), 40.0, 250.0))


def paint(flux: F64, wavelength: F64, centre: F64, strength: F64, sigma: F64) -> None:
    """Add Gaussian lines to spectra in place.

    `flux` (n, nw) on the increasing `wavelength` (nw,); `centre`, `strength` (integrated flux), `sigma` (n, lines), in
    Angstrom. Lines beyond the grid are left out.
    """
    start = np.searchsorted(wavelength, centre - 6.0 * sigma)
    stop = np.searchsorted(wavelength, centre + 6.0 * sigma)
    peak = strength / (np.sqrt(2.0 * np.pi) * sigma)
    for i, k in zip(*np.nonzero(stop > start), strict=True):
        a, b = start[i, k], stop[i, k]
        flux[i, a:b] += peak[i, k] * np.exp(-0.5 * ((wavelength[a:b] - centre[i, k]) / sigma[i, k]) ** 2)
