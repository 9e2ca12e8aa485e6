"""Pixels on the sky: how far east and north of its source an image lies, and its bands as one colour picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from astropy.visualization import make_lupton_rgb
from numpy.typing import NDArray

WAVELENGTH_ORDER = "ugrizy"
NANOMAGGY_PER = {"nanomaggy": 1.0, "nJy": 1 / 3631.0}
"""An AB magnitude of 22.5 is 1 nanomaggy, or 3631 nJy."""

STRETCH, SOFTENING = 0.8, 8.0
"""Nanomaggies per square arcsecond (22.7 mag/arcsec^2) up to which colours are linear; Lupton's Q. For all surveys."""

BALANCE = {"u": 3.0, "g": 1.8, "r": 1.1, "i": 0.85, "z": 0.7, "y": 0.65}
"""Weight of each band, so that a galaxy of common colours comes out neither red nor blue."""

Extent = tuple[float, float, float, float]


def extent(shape: Sequence[int], pixel_arcsec: float, offset: tuple[float, float]) -> Extent:
    """Edges (left, right, bottom, top) of an image in arcsec east and north of its source.

    `shape` ends in (y, x); the source lies `offset` (dx, dy) pixels off the middle of pixel N // 2. Rows grow to the
    north and columns to the west: the left edge is the eastern one, of positive sign.
    """
    ny, nx = shape[-2:]
    x, y = nx // 2 + offset[0], ny // 2 + offset[1]
    return (
        (0.5 + x) * pixel_arcsec,
        -(nx - 0.5 - x) * pixel_arcsec,
        -(0.5 + y) * pixel_arcsec,
        (ny - 0.5 - y) * pixel_arcsec,
    )


def surface_brightness(flux: NDArray[Any], unit: str, pixel_arcsec: float) -> NDArray[np.float64]:
    """Flux a pixel in nanomaggies per square arcsecond. ValueError for a unit that is not known."""
    if unit not in NANOMAGGY_PER:
        raise ValueError(f"an image in {unit!r}; its colours are known for {', '.join(NANOMAGGY_PER)}")
    return np.asarray(flux, np.float64) * (NANOMAGGY_PER[unit] / pixel_arcsec**2)


def seen_bands(bands: Sequence[str], mask: NDArray[np.bool_]) -> tuple[str, ...]:
    """The bands with a good pixel, from blue to red; `mask` (band, y, x), True = bad."""
    seen = [b for b, bad in zip(bands, mask, strict=True) if not bad.all()]
    return tuple(sorted(seen, key=lambda b: (WAVELENGTH_ORDER + b).index(b)))


def colour_bands(seen: Sequence[str]) -> tuple[str, ...]:
    """Which bands (of `seen`, blue to red) stand for red, green, blue: z or i, r, g where they are there.

    Three bands where there are three, else all that there are, red first.
    """
    for chosen in (("z", "r", "g"), ("i", "r", "g")):
        if set(chosen) <= set(seen):
            return chosen
    if len(seen) < 3:
        return tuple(reversed(seen))
    return seen[-1], seen[len(seen) // 2], seen[0]


def colours(
    flux: NDArray[Any], bands: Sequence[str], chosen: Sequence[str], unit: str, pixel_arcsec: float
) -> NDArray[np.uint8]:
    """Picture (y, x, 3) of an image (band, y, x): Lupton's asinh at a fixed stretch in surface brightness.

    `chosen` as of `colour_bands`: of two bands the middle colour is their mean; one alone is grey; none is black.
    """
    if not chosen:
        return np.zeros((*np.shape(flux)[-2:], 3), np.uint8)
    bright = surface_brightness(flux, unit, pixel_arcsec)
    layers = [bright[list(bands).index(b)] * BALANCE.get(b, 1.0) for b in chosen]
    if len(layers) == 2:
        layers.insert(1, (layers[0] + layers[1]) / 2)
    red, green, blue = layers if len(layers) == 3 else layers * 3
    with np.errstate(invalid="ignore", divide="ignore"):  # it divides by the light, also where there is none
        return np.asarray(make_lupton_rgb(red, green, blue, minimum=0, stretch=STRETCH, Q=SOFTENING))


def grey(flux: NDArray[Any], band: str, unit: str, pixel_arcsec: float) -> NDArray[np.float64]:
    """One band as 0 (no light) to 1, of the same stretch as the colours."""
    bright = surface_brightness(flux, unit, pixel_arcsec) * BALANCE.get(band, 1.0)
    return np.clip(0.15 + 0.85 * np.arcsinh(bright / STRETCH * SOFTENING) / np.arcsinh(4 * SOFTENING), 0, 1)
