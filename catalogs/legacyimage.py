"""Cut-outs of the Legacy Surveys' coadds: flux, inverse variance, mask and seeing of one brick's sources.

The coadds of a brick share one grid (TAN, 0.262 arcsec a pixel, north up, east left). A pixel is masked in a band where
its inverse variance is not positive and finite, where its flux is not finite, where the brick's `maskbits` say that
the band is saturated (SATUR) or bad in every exposure (ALLMASK) or that the fit of the blob was given up (BAILOUT), or
where it lies beyond the image. There flux and inverse variance are 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from astropy.io import fits
from numpy.typing import NDArray

from skycairn.catalogs import cutout
from skycairn.catalogs.fitsfile import first_image, opened
from skycairn.catalogs.legacyfiles import BANDS

BAD_BITS = {"g": (2, 5, 10), "r": (3, 6, 10), "i": (14, 15, 10), "z": (4, 7, 10)}
"""SATUR, ALLMASK and BAILOUT of each band in `maskbits` (legacysurvey.org/dr10/bitmasks). DR8 and DR9, whose maskbits
are int16, have the same bits without those of i, a band that they do not publish."""


def roles(bands: tuple[str, ...]) -> list[tuple[str, str | None]]:
    """(product, band) of the files that hold a brick's cut-outs; a file's role is `product-band` or `product`."""
    return [(p, b) for b in bands for p in ("image", "invvar", "psfsize")] + [("maskbits", None)]


def schema(size: int) -> pa.Schema:
    """Columns of the cut-outs of `size` x `size` pixels."""
    n = len(BANDS) * size * size
    about = {"shape": f"{len(BANDS)},{size},{size}", "bands": ",".join(BANDS)}
    pixel = "pixels by which the source is off the middle of pixel size // 2"
    return pa.schema(
        [
            pa.field("key", pa.int64()),
            pa.field("status", pa.string()),
            pa.field("flux", pa.list_(pa.float32(), n), metadata={**about, "unit": "nanomaggy"}),
            pa.field("ivar", pa.list_(pa.float32(), n), metadata={**about, "unit": "1/nanomaggy^2"}),
            pa.field("mask", pa.list_(pa.bool_(), n), metadata={**about, "unit": "", "about": "True = bad"}),
            pa.field(
                "psf_fwhm", pa.list_(pa.float32(), len(BANDS)), metadata={"bands": about["bands"], "unit": "arcsec"}
            ),
            pa.field("dx", pa.float32(), metadata={"unit": "pixel", "about": pixel}),
            pa.field("dy", pa.float32(), metadata={"unit": "pixel", "about": pixel}),
        ]
    )


def cut_brick(sources: pa.Table, files: Mapping[str, Path], lost: frozenset[str], size: int) -> pa.Table:
    """Cut-outs of sources of one brick, row for row: `schema(size)`, band order g, r, i, z.

    `sources` has key, ra, dec. A band whose image was not published is masked throughout; a source without a single
    good pixel in any band is `not_measured`; where a published file was lost all are `file_absent`. ValueError where
    the files are not on one grid, or a band has an image without its inverse variance, or the reverse.
    """
    n = sources.num_rows
    keys = sources.column("key").combine_chunks()
    if lost or n == 0:
        absent = np.full(n, "file_absent", dtype=object)
        return _table(keys, absent, (np.zeros((n, 0)),) * 3, np.zeros((n, len(BANDS))), np.zeros((2, n)), size)
    with ExitStack() as stack:
        images = {r: first_image(p, stack.enter_context(opened(p))) for r, p in sorted(files.items())}
        return cut_images(sources, images, files, size)


def cut_images(sources: pa.Table, images: Mapping[str, Any], files: Mapping[str, Path], size: int) -> pa.Table:
    """`cut_brick` of images that are open, by role; errors name `files`, which have the same roles."""
    n = sources.num_rows
    keys = sources.column("key").combine_chunks()
    flux = np.zeros((n, len(BANDS), size, size), dtype=np.float32)
    ivar, mask = np.zeros_like(flux), np.ones(flux.shape, dtype=bool)
    seeing = np.full((n, len(BANDS)), np.nan, dtype=np.float32)
    offset = np.full((2, n), np.nan, dtype=np.float32)
    if images:
        header = _one_grid(images, files)
        ra, dec = (sources.column(c).to_numpy() for c in ("ra", "dec"))
        x, y = cutout.pixels(header, ra, dec)
        (x0, offset[0]), (y0, offset[1]) = cutout.place(x, size), cutout.place(y, size)
        bits = cutout.cut(images["maskbits"], x0, y0, size, 0) if "maskbits" in images else None
        for b, band in enumerate(BANDS):
            if _published(band, files):
                flux[:, b] = cutout.cut(images[f"image-{band}"], x0, y0, size, 0)
                ivar[:, b] = cutout.cut(images[f"invvar-{band}"], x0, y0, size, 0)
                mask[:, b] = bad(flux[:, b], ivar[:, b], bits, band)  # beyond the edge ivar is 0
            if f"psfsize-{band}" in images:
                middle = x0 + size // 2, y0 + size // 2
                seeing[:, b] = cutout.cut(images[f"psfsize-{band}"], *middle, 1, np.nan)[:, 0, 0]
    flux[mask] = 0
    ivar[mask] = 0
    status = np.where(mask.all(axis=(1, 2, 3)), "not_measured", "").astype(object)
    return _table(keys, status, (flux, ivar, mask), seeing, offset, size)


def bad(
    flux: NDArray[np.float32], ivar: NDArray[np.float32], bits: NDArray[Any] | None, band: str
) -> NDArray[np.bool_]:
    """Which pixels of a band are masked."""
    with np.errstate(invalid="ignore"):
        out: NDArray[np.bool_] = ~(np.isfinite(ivar) & (ivar > 0) & np.isfinite(flux))
    if bits is not None:
        out |= (bits.astype(np.int64) & sum(1 << b for b in BAD_BITS[band])) != 0
    return out


def _published(band: str, files: Mapping[str, Path]) -> bool:
    pair = [f"image-{band}", f"invvar-{band}"]
    there = [r for r in pair if r in files]
    if len(there) == 1:
        missing = next(r for r in pair if r not in files)
        raise ValueError(
            f"{files[there[0]]}: found {there[0]!r} without {missing!r}; the brick's checksum list is wrong"
        )
    return bool(there)


def _one_grid(images: Mapping[str, Any], files: Mapping[str, Path]) -> fits.Header:
    """The header that all images agree on."""
    first = next(iter(images))
    header: fits.Header = images[first].header
    for role, hdu in images.items():
        if hdu.header is not header and not cutout.same_grid(header, hdu.header):
            raise ValueError(
                f"{files[role]}: its pixel grid (shape, WCS) is not that of {files[first]}; "
                "wanted the coadds of one brick; fetch both again"
            )
    return header


def _table(
    keys: pa.Array,
    status: NDArray[Any],
    arrays: tuple[NDArray[Any], ...],
    seeing: NDArray[Any],
    offset: NDArray[Any],
    size: int,
) -> pa.Table:
    wanted = schema(size)
    gone = status != ""
    columns: list[pa.Array] = [keys, pa.array([s or None for s in status], pa.string())]
    for values, name in zip(arrays, ("flux", "ivar", "mask"), strict=True):
        kind = wanted.field(name).type
        if gone.all():
            columns.append(pa.nulls(len(gone), kind))
            continue
        flat = pa.array(np.asarray(values, dtype=kind.value_type.to_pandas_dtype()).reshape(-1))
        columns.append(pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array(gone)))
    known = np.isfinite(seeing) & (seeing > 0)
    flat = pa.array(seeing.astype(np.float32).reshape(-1), mask=~known.reshape(-1))
    kind = wanted.field("psf_fwhm").type
    columns.append(pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array(gone)))
    for values in offset.astype(np.float32):
        columns.append(pa.array(values, mask=gone | ~np.isfinite(values)))
    return pa.Table.from_arrays(columns, schema=wanted)
