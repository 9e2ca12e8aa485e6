"""Cut-outs that the Legacy Surveys' viewer makes: pixels resampled about each source, without inverse variance.

The viewer resamples the coadds onto a tangent plane (TAN) of the cut-out's own, north up, east left, whose middle is
the position that was asked for: between two pixels where the size is even. So these are other pixels than a coadd's,
whose cut-outs are moved by whole pixels (cutout.py), their noise correlates otherwise, and nothing is told of it, nor
of masks and seeing. They are a modality of their own, and never stand in for a coadd's.

A reply is a cube (band, y, x) with its bands in the header's BANDS. A pixel is masked where it is not finite or is
exactly 0, which is what the viewer writes where it has no data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from skycairn.catalogs import cutout
from skycairn.catalogs.bounds import refuse_large_image
from skycairn.catalogs.fitsfile import opened
from skycairn.catalogs.legacyfiles import BANDS

FOLDER = "viewer/"
"""Of the replies, among the paths of the survey's files."""
ROLE = "cutout"
FLAG = "resampled, no ivar"
PIXEL_ARCSEC = 0.262
MOST_PIXELS = 512
"""Side of the largest cut-out that the viewer makes."""
SCALE_TOLERANCE = 1e-3
"""Of the pixels' size and direction: 0.26 pixels from the middle of the largest cut-out to its edge."""
CENTRE_TOLERANCE = 0.51
"""Pixels by which a source may be off the middle: half of one, and what a position is rounded by."""
PATH = re.compile(rf"{FOLDER}([a-z0-9-]+)/([a-z]+)-(\d+)/cutout-(\d+\.\d{{7}})([+-]\d+\.\d{{7}})\.fits")


@dataclass(frozen=True)
class Asked:
    """One question to the viewer, which is all in the path of its reply."""

    layer: str
    bands: str
    size: int
    "pixels a side"
    ra: str
    dec: str
    "degrees, with seven decimals: 0.4 mas"

    @classmethod
    def about(cls, layer: str, bands: str, size: int, ra: float, dec: float) -> Self:
        """The cut-out about this position, in degrees."""
        text = f"{ra % 360:.7f}"
        return cls(layer, bands, size, "0.0000000" if text == "360.0000000" else text, f"{dec:+.7f}")

    @classmethod
    def of(cls, path: str) -> Self:
        """The question that this path tells of; ValueError where it is none."""
        found = PATH.fullmatch(path)
        if found is None:
            raise ValueError(f"{path}: is no path of a cut-out; wanted {FOLDER}LAYER/BANDS-SIZE/cutout-RA+DEC.fits")
        return cls(found[1], found[2], int(found[3]), found[4], found[5])

    @property
    def path(self) -> str:
        """Of the reply, relative to the survey's root."""
        return f"{FOLDER}{self.layer}/{self.bands}-{self.size}/cutout-{self.ra}{self.dec}.fits"


def schema(size: int) -> pa.Schema:
    """Columns of the cut-outs of `size` x `size` pixels; there is no `ivar` among them, nor the seeing."""
    n = len(BANDS) * size * size
    about = {"shape": f"{len(BANDS)},{size},{size}", "bands": ",".join(BANDS)}
    pixel = {"unit": "pixel", "about": "pixels by which the source is off the middle of pixel size // 2"}
    return pa.schema(
        [
            pa.field("key", pa.int64()),
            pa.field("status", pa.string()),
            pa.field("flux", pa.list_(pa.float32(), n), metadata={**about, "unit": "nanomaggy", "about": FLAG}),
            pa.field("mask", pa.list_(pa.bool_(), n), metadata={**about, "unit": "", "about": "True = no data"}),
            pa.field("dx", pa.float32(), metadata=pixel),
            pa.field("dy", pa.float32(), metadata=pixel),
        ]
    )


def read_reply(path: Path, asked: Asked) -> tuple[NDArray[np.float32], tuple[str, ...], fits.Header]:
    """Flux in nanomaggies (band, y, x), its bands, and its header.

    ValueError where the reply is not what was asked for: size, bands, pixel scale, orientation, or where its middle is.
    """
    with opened(path) as hdus:
        found = next((h for h in hdus if getattr(h, "is_image", False) and len(h.shape) in (2, 3)), None)
        if found is None:
            raise ValueError(f"{path}: holds no image; wanted a cube of {len(asked.bands)} bands; fetch it again")
        refuse_large_image(found, str(path))
        flux, header = np.asarray(found.data, dtype=np.float32), found.header.copy()
    flux = flux[None] if flux.ndim == 2 else flux
    wanted = (len(asked.bands), asked.size, asked.size)
    bands = str(header.get("BANDS", asked.bands)).strip()
    if flux.shape != wanted or sorted(bands) != sorted(asked.bands):
        raise ValueError(
            f"{path}: is of shape {flux.shape} with bands {bands!r}, wanted {wanted} with {asked.bands!r}; has the "
            f"viewer other bands of {asked.layer}?"
        )
    check_grid(path, header, asked)
    return flux, tuple(bands), header


def check_grid(path: Path, header: fits.Header, asked: Asked) -> None:
    """ValueError unless the header's grid is the tangent plane that was asked for, the position in its middle."""
    kinds = [str(header.get(f"CTYPE{i}", "")).strip() for i in (1, 2)]
    if kinds != ["RA---TAN", "DEC--TAN"]:
        raise ValueError(f"{path}: CTYPE1, CTYPE2 are {kinds}, wanted RA---TAN, DEC--TAN; is it a cut-out?")
    steps = WCS(header, naxis=2).pixel_scale_matrix * 3600
    if not np.abs(steps - np.diag([-PIXEL_ARCSEC, PIXEL_ARCSEC])).max() <= SCALE_TOLERANCE * PIXEL_ARCSEC:
        raise ValueError(
            f"{path}: a pixel is {np.array2string(steps.ravel(), precision=4)} arcsec (CD matrix), wanted "
            f"{PIXEL_ARCSEC}, north up, east left"
        )
    check_centre(path, *place(header, float(asked.ra), float(asked.dec)), asked.size)


def place(header: fits.Header, ra: float, dec: float) -> tuple[float, float]:
    """Pixel coordinates (x, y) of a position in degrees, counted from 0."""
    x, y = cutout.pixels(header, np.array([ra]), np.array([dec]))
    return float(x[0]), float(y[0])


def check_centre(path: Path, x: float, y: float, size: int) -> None:
    """ValueError where the position is more than half a pixel from the middle of the cut-out, on either axis."""
    off = x - (size - 1) / 2, y - (size - 1) / 2
    if not max(abs(off[0]), abs(off[1])) <= CENTRE_TOLERANCE:
        raise ValueError(
            f"{path}: the position lies {off[0]:+.2f}, {off[1]:+.2f} pixels off the middle, wanted half a pixel at "
            "most; is it the cut-out of another source?"
        )


def cut_reply(sources: pa.Table, files: Mapping[str, Path], layer: str, bands: tuple[str, ...], size: int) -> pa.Table:
    """The cut-out of sources at one position, row for row: `schema(size)`, band order g, r, i, z.

    `sources` has key, ra, dec. A band that is not among `bands` is masked throughout; a cut-out without a single pixel
    of data is `not_measured`; where there is no reply all are `file_absent`.
    """
    n = sources.num_rows
    flux = np.zeros((n, len(BANDS), size, size), dtype=np.float32)
    mask = np.ones(flux.shape, dtype=bool)
    offset = np.zeros((2, n), dtype=np.float32)
    for i, (ra, dec) in enumerate(zip(*(sources.column(c).to_pylist() for c in ("ra", "dec")), strict=True)):
        if ROLE not in files:
            continue
        cube, order, header = read_reply(files[ROLE], Asked.about(layer, "".join(bands), size, ra, dec))
        offset[:, i] = np.array(place(header, ra, dec)) - size // 2
        planes = [BANDS.index(b) for b in order]
        good = np.isfinite(cube) & (cube != 0)
        mask[i, planes], flux[i, planes] = ~good, np.where(good, cube, 0)
    why = "not_measured" if ROLE in files else "file_absent"
    status = np.where(mask.all(axis=(1, 2, 3)), why, "").astype(object)
    return _table(sources.column("key").combine_chunks(), status, flux, mask, offset, schema(size))


def _table(
    keys: pa.Array,
    status: NDArray[Any],
    flux: NDArray[np.float32],
    mask: NDArray[np.bool_],
    offset: NDArray[np.float32],
    wanted: pa.Schema,
) -> pa.Table:
    gone = pa.array(status != "")
    columns: list[pa.Array] = [keys, pa.array([s or None for s in status], pa.string())]
    for name, values in (("flux", flux), ("mask", mask)):
        flat = pa.array(values.reshape(-1))
        columns.append(pa.FixedSizeListArray.from_arrays(flat, type=wanted.field(name).type, mask=gone))
    columns += [pa.array(values, mask=status != "") for values in offset]
    return pa.Table.from_arrays(columns, schema=wanted)
