"""The Legacy Surveys' viewer on loopback: cut-outs of a mock sky's coadds, resampled about the position asked for.

Of the viewer's real cubes (a 2021 reply lies among the real files that tests may read) it has the header and the
grid: TAN about the position, which is the middle of the image, and zeros where there is no data.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from skycairn.catalogs.fitsfile import first_image, opened, read_columns
from skycairn.catalogs.legacyfiles import LAYOUTS, Layout
from skycairn.catalogs.skybox import holding
from skycairn.mirror.server import Reply, Request

MOST_PIXELS = 512


class Viewer:
    """The service at `path` of its host, over a root of a release; it knows that release's layer alone."""

    def __init__(self, root: Path, release: str = "dr10", path: str = "/viewer/fits-cutout") -> None:
        self.root, self.layout, self.path = root, LAYOUTS[release], path
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Reply | None:
        """The cut-out; None where the path is not this service's."""
        if request.path != self.path:
            return None
        given = {k: v[-1] for k, v in request.query.items()}
        try:
            ra, dec, scale = (float(given[k]) for k in ("ra", "dec", "pixscale"))
            size, bands, layer = min(int(given["size"]), MOST_PIXELS), given["bands"], given["layer"]
        except (KeyError, ValueError) as error:
            return Reply(400, f"what was asked is no cut-out: {error}\n".encode(), {"Content-Type": "text/plain"})
        if layer != self.layout.viewer_layer or set(bands) - set(self.layout.bands):
            return Reply(400, f"no layer {layer!r} with bands {bands!r}\n".encode(), {"Content-Type": "text/plain"})
        with self._lock:
            content = cube(self.root, self.layout, ra, dec, scale, size, bands)
        return Reply(200, content, {"Content-Type": "application/fits"})


def cube(root: Path, layout: Layout, ra: float, dec: float, scale: float, size: int, bands: Sequence[str]) -> bytes:
    """A FITS file of the cut-out of `size` pixels of `scale` arcsec about a position in degrees."""
    header = grid(ra, dec, scale, size)
    header["SURVEY"], header["VERSION"], header["IMAGETYP"] = "LegacySurvey", layout.data_release.upper(), "IMAGE"
    header["BANDS"] = "".join(bands)
    for i, band in enumerate(bands):
        header[f"BAND{i}"] = band
    flux = np.zeros((len(bands), size, size), dtype=np.float32)
    names, limits = _bricks(root / layout.bricks)
    at = int(holding(limits, np.array([ra]), np.array([dec]))[0])
    if at >= 0:
        y, x = np.indices((size, size))
        lon, lat = WCS(header, naxis=2).all_pix2world(x.ravel(), y.ravel(), 0)
        for i, band in enumerate(bands):
            path = root / layout.coadd(names[at], "image", band)
            if path.is_file():
                image, wcs = _image(path)
                flux[i] = bilinear(image, *wcs.all_world2pix(lon, lat, 0)).reshape(size, size)
    out = io.BytesIO()
    fits.PrimaryHDU(flux, header).writeto(out)
    return out.getvalue()


def grid(ra: float, dec: float, scale: float, size: int) -> fits.Header:
    """The tangent plane about a position: north up, east left, the position in the middle of the image."""
    header = fits.Header()
    header.update({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": ra, "CRVAL2": dec})
    header["CRPIX1"] = header["CRPIX2"] = (size + 1) / 2
    header.update({"CD1_1": -scale / 3600, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": scale / 3600})
    header["IMAGEW"] = header["IMAGEH"] = float(size)
    return header


def bilinear(image: NDArray[Any], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float32]:
    """The image between its pixels; 0 where one of the four is beyond its edge, or 0 itself: without data."""
    ny, nx = image.shape
    left, low = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    inside = (left >= 0) & (left < nx - 1) & (low >= 0) & (low < ny - 1)
    left, low = np.where(inside, left, 0), np.where(inside, low, 0)
    a, b = np.where(inside, x - left, 0), np.where(inside, y - low, 0)
    total, whole = np.zeros(len(x)), inside.copy()
    for dy, wy in ((0, 1 - b), (1, b)):
        for dx, wx in ((0, 1 - a), (1, a)):
            value = image[low + dy, left + dx]
            whole &= value != 0
            total += wy * wx * value
    return np.where(whole, total, 0).astype(np.float32)


@lru_cache(maxsize=4)
def _bricks(path: Path) -> tuple[list[str], NDArray[np.float64]]:
    columns, _ = read_columns(path, None, "brickname")
    found = {name.lower(): fetch for name, fetch in columns.items()}
    names = np.char.strip(np.char.decode(found["brickname"](), "ascii"))
    limits = np.stack([found[c]() for c in ("ra1", "ra2", "dec1", "dec2")], axis=1)
    return names.tolist(), limits.astype(np.float64)


@lru_cache(maxsize=16)
def _image(path: Path) -> tuple[NDArray[np.float32], WCS]:
    with opened(path) as hdus:
        image = first_image(path, hdus)
        return np.asarray(image.data, dtype=np.float32), WCS(image.header, naxis=2)
