"""Paint galaxies and stars: every profile through the point spread function, into pixels, at an exact place.

All is done in Fourier space, where the profiles of bulge, disk and bar are known: a component's transform times the
point spread function's, times the pixel's, times the phase of the position. Only the spiral arms are drawn in real
space first. A stamp's pixels sum to the source's flux; what would lie beyond the stamp (under 0.5 % for disks) is
folded back.

Profiles: Sersic, cut at 8 half-light radii (as the Tractor's de Vaucouleurs) and normalised to what is left;
exponential; Gaussian. Point spread function: Moffat, beta = 3; its transform is in Trujillo
et al. 2001.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray
from scipy import fft
from scipy.special import gamma, gammaincinv, j0, kn

from skycairn.mocksky import morphology
from skycairn.mocksky.morphology import EXPONENTIAL_HALF_LIGHT, GAUSSIAN_HALF_LIGHT
from skycairn.mocksky.patches import PIXEL_ARCSEC

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]

SERSIC_CUT = 8.0
MOFFAT_BETA = 3.0
_SIZES = np.array([48, 64, 96, 128, 192, 256, 384])


class Place(NamedTuple):
    """Where a source lies in an image, in pixels counted from 0, and the unit vectors of its North and East there."""

    x: float
    y: float
    north: tuple[float, float]
    east: tuple[float, float]


def places(wcs: WCS, ra: F64, dec: F64) -> list[Place]:
    """Places of ICRS positions (deg) in an image."""
    x, y = wcs.wcs_world2pix(ra, dec, 0)
    xn, yn = wcs.wcs_world2pix(ra, dec + 1 / 3600, 0)
    length = np.hypot(xn - x, yn - y)
    nx, ny = (xn - x) / length, (yn - y) / length
    return [
        Place(float(a), float(b), (float(c), float(d)), (-float(d), float(c)))
        for a, b, c, d in zip(x, y, nx, ny, strict=True)
    ]


# ---------------------------------------------------------------------------------------------------- transforms


@lru_cache(maxsize=16)
def _wave_numbers(size: int) -> tuple[F64, F64]:
    """kx, ky in radians a pixel, in the layout of rfft2."""
    ky, kx = np.meshgrid(2 * np.pi * np.fft.fftfreq(size), 2 * np.pi * np.fft.rfftfreq(size), indexing="ij")
    return kx, ky


@lru_cache(maxsize=256)
def _point_spread(size: int, fwhm_arcsec: float) -> F64:
    """Transform of the Moffat profile times that of the pixel."""
    kx, ky = _wave_numbers(size)
    alpha = fwhm_arcsec / PIXEL_ARCSEC / (2 * np.sqrt(2 ** (1 / MOFFAT_BETA) - 1))
    x = np.maximum(np.hypot(kx, ky) * alpha, 1e-9)
    return np.asarray(x**2 / 2 * kn(2, x) * np.sinc(kx / (2 * np.pi)) * np.sinc(ky / (2 * np.pi)))


@lru_cache(maxsize=16)
def _sersic_table(n: float) -> tuple[F64, F64]:
    """ln(k Re) and the Hankel transform of the cut Sersic profile there, 1 at k = 0."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    panels = 75
    u = ((np.arange(panels)[:, None] + (nodes + 1) / 2) / panels).ravel()
    w = np.tile(weights / 2 / panels, panels)
    r = SERSIC_CUT * u**3
    light = np.exp(-gammaincinv(2 * n, 0.5) * r ** (1 / n)) * r * 3 * SERSIC_CUT * u**2 * w
    light /= light.sum()
    k = np.geomspace(1e-3, 300, 400)
    return np.log(k), np.asarray(j0(k[:, None] * r) @ light)


def sersic_transform(n: float, k_radius: F64) -> F64:
    """Transform of a Sersic profile of index n, of flux 1, at k times the half-light radius."""
    at, value = _sersic_table(n)
    return np.interp(np.log(np.maximum(k_radius, 1e-3)), at, value)


def _axes(place: Place, position_angle: float) -> tuple[F64, F64]:
    """Unit vectors of the major and minor axis in pixels."""
    c, s = np.cos(np.radians(position_angle)), np.sin(np.radians(position_angle))
    major = c * np.array(place.north) + s * np.array(place.east)
    return major, np.array([-major[1], major[0]])


class Shape(NamedTuple):
    """One galaxy's components as linear maps, in pixels: columns are the images of the unit circle's axes."""

    bulge: F64
    disk: F64
    bar: F64


def shape_of(row: Mapping[str, Any], place: Place) -> Shape:
    """Maps from a component's own unit of length (half-light radius, scale length, sigma) to pixels."""
    major, minor = _axes(place, float(row["position_angle"]))
    q, fraction = float(row["axis_ratio"]), float(row["bulge_fraction"])
    q_bulge = q if fraction >= 1 else (1 + q) / 2
    plane = np.stack([major, q * minor], axis=1) / PIXEL_ARCSEC
    angle = np.radians(float(row["bar_angle"]))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    sigma = float(row["bar_radius"]) / GAUSSIAN_HALF_LIGHT
    return Shape(
        bulge=np.stack([major, q_bulge * minor], axis=1) * float(row["bulge_radius"]) / PIXEL_ARCSEC,
        disk=plane * float(row["disk_radius"]) / EXPONENTIAL_HALF_LIGHT,
        bar=plane @ turn @ np.diag([sigma, sigma * float(row["bar_axis_ratio"])]),
    )


def _length(kx: F64, ky: F64, matrix: F64) -> F64:
    return np.hypot(matrix[0, 0] * kx + matrix[1, 0] * ky, matrix[0, 1] * kx + matrix[1, 1] * ky)


def arms(row: Mapping[str, Any], disk: F64, x: F64, y: F64) -> F64:
    """Surface brightness of the spiral arms at pixel offsets x, y from the centre; not normalised."""
    inverse = np.linalg.inv(disk)
    u, v = inverse[0, 0] * x + inverse[0, 1] * y, inverse[1, 0] * x + inverse[1, 1] * y
    r = np.hypot(u, v)
    wind = np.log(np.maximum(r, 1e-3)) / np.tan(np.radians(float(row["arm_pitch"])))
    crest = np.cos(float(row["n_arms"]) * (np.arctan2(v, u) - wind - float(row["arm_phase"])))
    return np.asarray(np.exp(-r) * -np.expm1(-(r**2)) * np.maximum(crest, 0.0) ** 2)


# ---------------------------------------------------------------------------------------------------- painting


def stamp_size(row: Mapping[str, Any], flux: float, fwhm_arcsec: float) -> int:
    """Pixels along a stamp's side that hold the source down to a tenth of the noise."""
    alpha = fwhm_arcsec
    reach = max(8.0, alpha * max(flux, 1.0) ** (1 / 6) * 2.0)
    if row["kind"] == "galaxy":
        wing = SERSIC_CUT * float(row["bulge_radius"]) if row["bulge_fraction"] > 0 else 0.0
        reach = max(reach, 3.0 + max(wing, 5.0 * float(row["disk_radius"]), 3.0 * float(row["bar_radius"])))
    wanted = 2 * reach / PIXEL_ARCSEC
    return int(_SIZES[min(np.searchsorted(_SIZES, wanted), len(_SIZES) - 1)])


def stamp(row: Mapping[str, Any], place: Place, share: F64, flux: F64, fwhm: F64, size: int) -> tuple[F64, int, int]:
    """One source's pixels in each band, shape (band, size, size), and the column and row of their first pixel.

    `share` (component, band) as of `morphology.shares`; `flux` and `fwhm` (arcsec) one a band.
    """
    x0, y0 = int(np.floor(place.x + 0.5)) - size // 2, int(np.floor(place.y + 0.5)) - size // 2
    kx, ky = _wave_numbers(size)
    phase = np.exp(-1j * (kx * (place.x - x0) + ky * (place.y - y0)))
    parts: list[tuple[F64, F64 | NDArray[np.complex128]]] = []
    if row["kind"] == "galaxy":
        shape = shape_of(row, place)
        if share[0].any():
            parts.append((share[0], sersic_transform(float(row["bulge_n"]), _length(kx, ky, shape.bulge))))
        if share[1].any():
            parts.append((share[1], (1 + _length(kx, ky, shape.disk) ** 2) ** -1.5))
        if share[2].any():
            parts.append((share[2], np.exp(-0.5 * _length(kx, ky, shape.bar) ** 2)))
        if share[3].any():
            half = size // 2
            y, x = np.mgrid[:size, :size] - half
            drawn = arms(row, shape.disk, x, y)
            drawn = np.roll(drawn / drawn.sum(), (-half, -half), axis=(0, 1))
            parts.append((share[3], fft.rfft2(drawn)))
    out = np.empty((len(flux), size, size))
    for b in range(len(flux)):
        profile = sum((s[b] * f for s, f in parts), start=np.zeros_like(kx)) if parts else 1.0
        out[b] = fft.irfft2(flux[b] * profile * _point_spread(size, float(fwhm[b])) * phase, (size, size))
    return out, x0, y0


def _overlap(x0: int, y0: int, size: int, width: int) -> tuple[slice, slice, slice, slice] | None:
    """Rows and columns of the image, then of the stamp, where both are; None where they do not meet."""
    xa, xb, ya, yb = max(x0, 0), min(x0 + size, width), max(y0, 0), min(y0 + size, width)
    if xa >= xb or ya >= yb:
        return None
    return slice(ya, yb), slice(xa, xb), slice(ya - y0, yb - y0), slice(xa - x0, xb - x0)


class Scene(NamedTuple):
    """A brick without noise, and the truth masks of its galaxies."""

    image: F32
    "(band, y, x), nanomaggies a pixel"
    label: NDArray[np.uint8]
    "(y, x): 0 sky, then 1 + place in morphology.COMPONENTS"
    owner: NDArray[np.int64]
    "(y, x): uid of the galaxy that the label is of, 0 for the sky"


def paint(
    rows: Mapping[str, NDArray[Any]], ra: F64, dec: F64, wcs: WCS, width: int, fwhm: F64, mask_above: float
) -> Scene:
    """Paint the truth table's sources at these positions into an image.

    A pixel is labelled where a galaxy's own light (before the point spread function) is above `mask_above` nanomaggies
    a pixel in r, with the component that is strongest there, arms where the crest stands above the disk between them.
    Where that is infinite no pixel is looked at.
    """
    image = np.zeros((len(fwhm), width, width), dtype=np.float64)
    label, owner = np.zeros((width, width), np.uint8), np.zeros((width, width), np.int64)
    brightest = np.full((width, width), mask_above)
    share = morphology.shares(rows)
    flux = np.stack([rows[f"flux_{b}"] for b in morphology.BANDS], axis=1)
    for i, place in enumerate(places(wcs, ra, dec)):
        row = {name: values[i] for name, values in rows.items()}
        size = stamp_size(row, float(flux[i].max()), float(fwhm.max()))
        near = _overlap(int(place.x) - size // 2, int(place.y) - size // 2, size, width)
        if near is None:
            continue
        pixels, x0, y0 = stamp(row, place, share[i], flux[i], fwhm, size)
        both = _overlap(x0, y0, size, width)
        if both is None:
            continue
        image[:, both[0], both[1]] += pixels[:, both[2], both[3]]
        if row["kind"] == "galaxy" and flux[i, 1] > 1 and np.isfinite(mask_above):
            y, x = np.mgrid[both[0], both[1]]
            kind, light = _labels(row, place, share[i, :, 1] * flux[i, 1], x - place.x, y - place.y)
            here = light > brightest[both[0], both[1]]
            label[both[0], both[1]][here] = kind[here]
            owner[both[0], both[1]][here] = row["uid"]
            brightest[both[0], both[1]][here] = light[here]
    return Scene(image.astype(np.float32), label, owner)


def _labels(row: Mapping[str, Any], place: Place, flux: F64, x: F64, y: F64) -> tuple[NDArray[np.uint8], F64]:
    """Strongest component and light of all of them at pixel offsets from the centre; flux one a component."""
    shape = shape_of(row, place)
    light = np.zeros((4, *x.shape))
    area = {name: abs(np.linalg.det(m)) for name, m in shape._asdict().items()}

    def radius(matrix: F64) -> F64:
        inverse = np.linalg.inv(matrix)
        return np.hypot(inverse[0, 0] * x + inverse[0, 1] * y, inverse[1, 0] * x + inverse[1, 1] * y)

    if flux[0] > 0:
        n = float(row["bulge_n"])
        b = gammaincinv(2 * n, 0.5)
        # no brighter than the mean of a pixel's worth at the cusp
        r = np.maximum(radius(shape.bulge), 0.3 / np.sqrt(area["bulge"]))
        light[0] = flux[0] * np.exp(-b * r ** (1 / n)) * b ** (2 * n) / (2 * np.pi * n * gamma(2 * n) * area["bulge"])
    if flux[1] > 0:
        light[1] = flux[1] * np.exp(-radius(shape.disk)) / (2 * np.pi * area["disk"])
    if flux[2] > 0:
        light[2] = flux[2] * np.exp(-0.5 * radius(shape.bar) ** 2) / (2 * np.pi * area["bar"])
    if flux[3] > 0:
        crest = arms(row, shape.disk, x, y)
        total = arms_flux(int(row["n_arms"]), float(row["arm_pitch"])) * area["disk"]
        light[3] = flux[3] * crest / total
    strongest = np.argmax(light, axis=0)
    if flux[3] > 0:
        # arms lie on the disk: they show where their crest is at least half its height
        ridge = light[3] > 0.5 * flux[3] * np.exp(-radius(shape.disk)) * 0.8 / total
        strongest = np.where(ridge & (strongest == 1), 3, np.where(~ridge & (strongest == 3), 1, strongest))
    return (strongest + 1).astype(np.uint8), light.sum(axis=0)


@lru_cache(maxsize=64)
def arms_flux(n_arms: int, pitch: float) -> float:
    """Integral of `arms` over the plane in units of the disk's scale length squared.

    The mean of max(cos, 0)^2 over a turn is 1/4, whatever the number of arms and their pitch.
    """
    # integral of exp(-r) (1 - exp(-r^2)) r dr
    r = np.linspace(0, 40, 20001)
    return float(np.trapezoid(np.exp(-r) * -np.expm1(-(r**2)) * r, r) * 2 * np.pi / 4)
