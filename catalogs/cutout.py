"""Square cut-outs of images about positions: which pixels, and how much the position is off the middle one.

Pixels count from 0 and an integer is the middle of a pixel. The cut-out of N x N pixels about pixel coordinates (x, y)
starts at floor(x + 0.5) - N // 2, so that the position lies within the pixel of index N // 2 on both axes, for even
and odd N. What the position is off that pixel's middle, in [-0.5, 0.5), is given beside it as (dx, dy). Nothing is
resampled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def pixels(header: fits.Header, ra: Floats, dec: Floats) -> tuple[Floats, Floats]:
    """Pixel coordinates (x, y), counted from 0, of ICRS positions in degrees; NaN behind the tangent plane."""
    wcs = WCS(header, naxis=2)
    x, y = (np.asarray(v, dtype=np.float64) for v in wcs.all_world2pix(ra, dec, 0, quiet=True))
    ra0, dec0 = np.radians(wcs.wcs.crval)
    cosine = np.sin(dec0) * np.sin(np.radians(dec))
    cosine = cosine + np.cos(dec0) * np.cos(np.radians(dec)) * np.cos(np.radians(ra) - ra0)
    seen = cosine > 0
    return np.where(seen, x, np.nan), np.where(seen, y, np.nan)


def same_grid(one: fits.Header, other: fits.Header) -> bool:
    """Whether two images have the same shape and the same WCS."""
    shape = all(one[k] == other[k] for k in ("NAXIS1", "NAXIS2"))
    return shape and bool(WCS(one, naxis=2).wcs.compare(WCS(other, naxis=2).wcs, tolerance=1e-9))


def place(x: Floats, size: int) -> tuple[Ints, NDArray[np.float32]]:
    """First pixel of each cut-out along one axis, and the position less the middle of pixel `size // 2`.

    A NaN position is placed far outside every image.
    """
    seen = np.isfinite(x)
    nearest = np.floor(np.where(seen, x, -(2.0**31)) + 0.5)
    offset = np.where(seen, x - nearest, np.nan).astype(np.float32)
    return nearest.astype(np.int64) - size // 2, offset


def cut(hdu: Any, x0: Ints, y0: Ints, size: int, fill: float) -> NDArray[Any]:
    """Cut-outs, shape (n, size, size), of an image HDU, padded with `fill` beyond its edges.

    Reads single sections where they are few, and the whole image once where the tiles that the sections touch would
    come to as many pixels as it has.
    """
    ny, nx = (int(n) for n in hdu.shape)
    tile = [int(t) for t in getattr(hdu, "tile_shape", None) or (1, nx)]
    touched = len(x0) * min(size + tile[0], ny) * min(size + tile[1], nx)
    pixels_ = hdu.section[0:ny, 0:nx] if touched >= ny * nx else hdu.section  # `hdu.data` would stay in memory
    out: NDArray[Any] | None = None
    for i, (left, bottom) in enumerate(zip(x0.tolist(), y0.tolist(), strict=True)):
        x_lo, x_hi, y_lo, y_hi = max(left, 0), min(left + size, nx), max(bottom, 0), min(bottom + size, ny)
        if x_lo >= x_hi or y_lo >= y_hi:
            continue
        piece = np.asarray(pixels_[y_lo:y_hi, x_lo:x_hi])
        if out is None:
            out = np.full((len(x0), size, size), fill, dtype=piece.dtype.newbyteorder("="))
        out[i, y_lo - bottom : y_hi - bottom, x_lo - left : x_hi - left] = piece
    return out if out is not None else np.full((len(x0), size, size), fill, dtype=np.float32)
