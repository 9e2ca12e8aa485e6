"""Cut-outs of HSC-SSP's coadds: flux, inverse variance and mask of one patch's sources, in all bands.

A coadd (`calexp`) holds counts, their mask and their variance on a tangent plane of 0.168 arcsec a pixel. All patches
of a tract lie on one plane, shifted by whole pixels: where a cut-out runs over the edge of the patch that owns the
source, its neighbours of the same tract give the pixels beyond. Other tracts are other planes: there it is padded.

A pixel is masked where its variance is not positive and finite, where its flux is not finite, where it has one of the
wanted mask planes, or where no patch has it. There flux and inverse variance are 0. The planes' bits are those of each
file's own `MP_` keys. The wanted planes are by default BAD, SAT and NO_DATA, as MultimodalUniverse has it: pixels of
cosmic rays (CR) and interpolated ones (INTRP) are mended by the coadd's other visits, and stars (BRIGHT_OBJECT) are a
matter of the catalogue's flags. Noise of a coadd is correlated.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from skycairn.catalogs import cutout
from skycairn.catalogs.bounds import refuse_large_image
from skycairn.catalogs.fitsfile import opened
from skycairn.catalogs.hsccolumns import NJY_ZERO_POINT
from skycairn.catalogs.hscfiles import BANDS, NEIGHBOURS

PLANES = ("BAD", "SAT", "NO_DATA")
KNOWN_PLANES = (
    *PLANES,
    *("INTRP", "CR", "EDGE", "DETECTED", "DETECTED_NEGATIVE", "SUSPECT", "BRIGHT_OBJECT", "CROSSTALK"),
    *("NOT_DEBLENDED", "UNMASKEDNAN", "REJECTED", "CLIPPED", "SENSOR_EDGE", "INEXACT_PSF", "FAKE", "VIGNETTED"),
)
"""Of the pipeline that made PDR3, as far as known: the list is not verified, and a file may lack some."""
ZERO_POINT = 27.0
"""AB magnitude of one count where a file does not say it by FLUXMAG0."""
SHIFT_TOLERANCE = 1e-3
"""Pixels by which the shift between two patches may differ from a whole number."""
Ints = NDArray[np.int64]


def role(band: str, dx: int = 0, dy: int = 0) -> str:
    """Role of a band's file: `HSC-G` of the patch itself, `HSC-G:1,0` of its neighbour to the right."""
    return f"HSC-{band.upper()}" + (f":{dx},{dy}" if (dx, dy) != (0, 0) else "")


def schema(size: int) -> pa.Schema:
    """Columns of the cut-outs of `size` x `size` pixels."""
    n = len(BANDS) * size * size
    bands = {"bands": ",".join(BANDS)}
    about = {"shape": f"{len(BANDS)},{size},{size}", **bands}
    pixel = {"unit": "pixel", "about": "pixels by which the source is off the middle of pixel size // 2"}
    return pa.schema(
        [
            pa.field("key", pa.int64()),
            pa.field("status", pa.string()),
            pa.field("flux", pa.list_(pa.float32(), n), metadata={**about, "unit": "nanomaggy"}),
            pa.field("ivar", pa.list_(pa.float32(), n), metadata={**about, "unit": "1/nanomaggy^2"}),
            pa.field("mask", pa.list_(pa.bool_(), n), metadata={**about, "unit": "", "about": "True = bad"}),
            pa.field("psf_fwhm", pa.list_(pa.float32(), len(BANDS)), metadata={**bands, "unit": "arcsec"}),
            pa.field("dx", pa.float32(), metadata=pixel),
            pa.field("dy", pa.float32(), metadata=pixel),
        ]
    )


def nanomaggies(
    counts: NDArray[Any], variance: NDArray[Any], bad: NDArray[np.bool_], zero_point: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Flux in nanomaggies, its inverse variance and the mask, from counts of this AB zero point and their variance.

    `bad` are pixels that are masked besides. Flux scales with f = 10^(0.4 (22.5 - zero_point)), the inverse variance
    with 1 / f^2.
    """
    scale = 10 ** (0.4 * (22.5 - zero_point))
    with np.errstate(all="ignore"):
        flux = (counts.astype(np.float64) * scale).astype(np.float32)
        ivar = (1 / (variance.astype(np.float64) * scale**2)).astype(np.float32)
        mask = bad | ~(np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0) & (variance > 0))
    flux[mask] = 0
    ivar[mask] = 0
    return flux, ivar, mask


@dataclass(frozen=True)
class Calexp:
    """One patch's coadd in one band, open."""

    path: Path
    image: Any
    mask: Any
    variance: Any
    zero_point: float
    bad_bits: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.image.shape[0]), int(self.image.shape[1])

    def cut(self, x0: Ints, y0: Ints, size: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
        """Flux, inverse variance and mask, each (n, size, size)."""
        counts, variance = (cutout.cut(h, x0, y0, size, np.nan) for h in (self.image, self.variance))
        bits = cutout.cut(self.mask, x0, y0, size, 0)
        return nanomaggies(counts, variance, (bits.astype(np.int64) & self.bad_bits) != 0, self.zero_point)


def calexp(path: Path, hdus: fits.HDUList, zero_point: float = ZERO_POINT, planes: tuple[str, ...] = PLANES) -> Calexp:
    """The coadd in this open file. ValueError names the file where its parts, planes or zero point cannot be told."""
    names = ("IMAGE", "MASK", "VARIANCE")
    by_name = {h.name.upper(): h for h in hdus[1:]}
    named: list[Any] = [by_name.get(n) for n in names]
    parts: list[Any] = named if any(h is not None for h in named) else list(hdus[1:4])
    shapes = [tuple(getattr(h, "shape", ())) if getattr(h, "is_image", False) else () for h in parts]
    if len(parts) < 3 or len(set(shapes)) != 1 or len(shapes[0]) != 2:
        found = ", ".join(f"{h.name or type(h).__name__} of shape {getattr(h, 'shape', ())}" for h in hdus)
        raise ValueError(f"{path}: wanted IMAGE, MASK and VARIANCE of one shape, found {found}; is it a calexp?")
    image, mask, variance = parts
    for part in parts:
        refuse_large_image(part, str(path))
    if int(mask.header["BITPIX"]) < 0:
        raise ValueError(f"{path}: its mask holds floats, wanted integers of bits; is it a calexp?")
    headers = [hdus[0].header, image.header]
    return Calexp(path, image, mask, variance, _zero_point(path, headers, zero_point), _bits(path, mask.header, planes))


def _zero_point(path: Path, headers: list[fits.Header], otherwise: float) -> float:
    for header in headers:
        if "FLUXMAG0" in header:
            value = float(header["FLUXMAG0"])
            if not (np.isfinite(value) and value > 0):
                raise ValueError(f"{path}: FLUXMAG0 is {value}, wanted the counts of magnitude 0; fetch it again")
            return float(2.5 * np.log10(value))
    return NJY_ZERO_POINT if any(str(h.get("BUNIT", "")).strip().lower() == "njy" for h in headers) else otherwise


def _bits(path: Path, header: fits.Header, planes: tuple[str, ...]) -> int:
    known = {k.upper()[3:]: v for k, v in header.items() if k.upper().startswith("MP_")}
    if not known:
        raise ValueError(f"{path}: the header of its mask names no plane (MP_...), so that no bit can be read")
    bits = 0
    for plane in planes:
        bit = known.get(plane, None)
        if bit is None:
            continue  # no pixel of this file can carry it
        if isinstance(bit, bool) or not isinstance(bit, int) or not 0 <= bit < 32:
            raise ValueError(f"{path}: MP_{plane} is {bit!r}, wanted the number of a bit, 0 .. 31")
        bits |= 1 << bit
    return bits


def shift(own: Calexp, other: Calexp, dx: int, dy: int) -> tuple[int, int]:
    """What to add to a pixel of `own` for the same pixel of `other`, its neighbour in direction (dx, dy).

    ValueError where they do not lie on one grid of pixels.
    """
    one, two = (WCS(c.image.header, naxis=2) for c in (own, other))
    scale = float(np.abs(one.pixel_scale_matrix).max())
    plane = list(one.wcs.ctype) == list(two.wcs.ctype)
    plane &= bool((abs(one.wcs.crval - two.wcs.crval) < 1e-4 * scale).all())
    plane &= bool((abs(one.pixel_scale_matrix - two.pixel_scale_matrix) < 1e-8 * scale).all())
    apart = two.wcs.crpix - one.wcs.crpix
    whole = np.rint(apart).astype(np.int64)
    if not plane or (abs(apart - whole) > SHIFT_TOLERANCE).any():
        raise ValueError(
            f"{other.path}: it is not on the grid of {own.path} (CRVAL {two.wcs.crval.tolist()} and "
            f"{one.wcs.crval.tolist()}, CRPIX apart by {apart.tolist()} pixels); wanted one plane and a shift of whole "
            "pixels: are both of one tract and one release?"
        )
    if any(d * s > 0 for d, s in zip((dx, dy), whole.tolist(), strict=True)):
        raise ValueError(
            f"{other.path}: its pixels lie {(-whole).tolist()} from those of {own.path}, wanted in direction "
            f"({dx}, {dy}); is it the patch that its name says?"
        )
    return int(whole[0]), int(whole[1])


def cut_patch(
    sources: pa.Table,
    files: Mapping[str, Path],
    lost: frozenset[str],
    size: int,
    zero_point: float = ZERO_POINT,
    planes: tuple[str, ...] = PLANES,
) -> pa.Table:
    """Cut-outs of sources of one patch, row for row: `schema(size)`, band order g, r, i, z, y.

    `sources` has key, ra, dec, and what there is of the own columns. A source is `file_absent` where a file of its
    patch, or of a neighbour that it needs, was lost, and where its patch has no file in a band, unless the catalogue
    counts no visit of it there (a target has no count). A band without file and without visits is masked throughout. A
    source without a single good pixel is `not_measured`. What is made of a source hangs on its own row alone.
    """
    n = sources.num_rows
    flux = np.zeros((n, len(BANDS), size, size), dtype=np.float32)
    ivar, mask = np.zeros_like(flux), np.ones(flux.shape, dtype=bool)
    offset = np.full((2, n), np.nan, dtype=np.float32)
    absent = np.full(n, any(role(b) in lost for b in BANDS))
    for b in BANDS:
        if role(b) not in files:
            visits = _number(sources, f"{b}_inputcount_value")
            # a target has no count of its own, and what its neighbours have must not decide what is made of it
            absent |= ~(np.isfinite(visits) & (visits == 0))
    own_roles = [role(b) for b in BANDS if role(b) in files]
    if own_roles and not absent.all():
        with ExitStack() as stack:
            own = {r: calexp(files[r], stack.enter_context(opened(files[r])), zero_point, planes) for r in own_roles}
            first = next(iter(own.values()))
            for other in own.values():
                if not cutout.same_grid(first.image.header, other.image.header):
                    raise ValueError(
                        f"{other.path}: its pixel grid (shape, WCS) is not that of {first.path}; wanted the coadds of "
                        "one patch; fetch both again"
                    )
            ra, dec = (sources.column(c).to_numpy() for c in ("ra", "dec"))
            x, y = cutout.pixels(first.image.header, ra, dec)
            (x0, offset[0]), (y0, offset[1]) = cutout.place(x, size), cutout.place(y, size)
            over = _overruns(x0, y0, size, first.shape)
            for (dx, dy), rows in over.items():
                if any(role(b, dx, dy) in lost for b in BANDS):
                    absent[rows] = True
            for i, b in enumerate(BANDS):
                got = flux[:, i], ivar[:, i], mask[:, i]
                if role(b) in own:
                    for into, values in zip(got, own[role(b)].cut(x0, y0, size), strict=True):
                        into[...] = values
                filled = _inside(x0, y0, size, first.shape)
                for (dx, dy), rows in over.items():
                    path = files.get(role(b, dx, dy))
                    if path is None or not len(rows):
                        continue
                    with opened(path) as hdus:
                        beside = calexp(path, hdus, zero_point, planes)
                        by_x, by_y = shift(first, beside, dx, dy)
                        at = x0[rows] + by_x, y0[rows] + by_y
                        new = _inside(*at, size, beside.shape) & ~filled[rows]
                        for into, values in zip(got, beside.cut(*at, size), strict=True):
                            into[rows] = np.where(new, values, into[rows])
                        filled[rows] |= new
    status = np.where(absent, "file_absent", np.where(mask.all(axis=(1, 2, 3)), "not_measured", "")).astype(object)
    return _table(sources, status, (flux, ivar, mask), seeing(sources), offset, size)


def cut_plane(sources: pa.Table, plane: Mapping[str, Calexp], absent: NDArray[np.bool_], size: int) -> pa.Table:
    """`cut_patch` from coadds of the whole plane, by role, where no neighbour is wanted; `absent` lost a file."""
    n = sources.num_rows
    flux = np.zeros((n, len(BANDS), size, size), dtype=np.float32)
    ivar, mask = np.zeros_like(flux), np.ones(flux.shape, dtype=bool)
    ra, dec = (sources.column(c).to_numpy() for c in ("ra", "dec"))
    x, y = cutout.pixels(next(iter(plane.values())).image.header, ra, dec)
    (x0, dx), (y0, dy) = cutout.place(x, size), cutout.place(y, size)
    for i, b in enumerate(BANDS):
        if role(b) in plane:
            flux[:, i], ivar[:, i], mask[:, i] = plane[role(b)].cut(x0, y0, size)
    status = np.where(absent, "file_absent", np.where(mask.all(axis=(1, 2, 3)), "not_measured", "")).astype(object)
    return _table(sources, status, (flux, ivar, mask), seeing(sources), np.stack([dx, dy]), size)


def seeing(sources: pa.Table) -> NDArray[np.float64]:
    """FWHM in arcsec, shape (n, 5), of a Gaussian with the catalogue's moments of the PSF; NaN where not known."""
    out = np.full((sources.num_rows, len(BANDS)), np.nan)
    for i, b in enumerate(BANDS):
        s11, s22, s12 = (_number(sources, f"{b}_sdssshape_psf_shape{m}") for m in ("11", "22", "12"))
        determinant = s11 * s22 - s12**2
        good = (s11 > 0) & (determinant > 0)
        out[good, i] = 2.355 * determinant[good] ** 0.25
    return out


def _number(sources: pa.Table, name: str) -> NDArray[np.float64]:
    """A column as floats, NaN where it is null or not there."""
    if name not in sources.column_names:
        return np.full(sources.num_rows, np.nan)
    values = sources.column(name).combine_chunks().cast(pa.float64())
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)


def _overruns(x0: Ints, y0: Ints, size: int, shape: tuple[int, int]) -> dict[tuple[int, int], Ints]:
    """Rows whose cut-out runs over the patch's edge, by the direction of the neighbour that they need.

    A cut-out that shares no pixel with the patch is not of it, and needs nothing.
    """
    low = {-1: (x0 < 0, y0 < 0), 0: (np.ones(len(x0), bool),) * 2, 1: (x0 + size > shape[1], y0 + size > shape[0])}
    near = (x0 < shape[1]) & (x0 + size > 0) & (y0 < shape[0]) & (y0 + size > 0)
    return {(dx, dy): np.flatnonzero(near & low[dx][0] & low[dy][1]) for dx, dy in NEIGHBOURS}


def _inside(x0: Ints, y0: Ints, size: int, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Which pixels of the cut-outs an image of this shape has, (n, size, size)."""
    step = np.arange(size)
    x, y = x0[:, None] + step, y0[:, None] + step
    out: NDArray[np.bool_] = ((y >= 0) & (y < shape[0]))[:, :, None] & ((x >= 0) & (x < shape[1]))[:, None, :]
    return out


def _table(
    sources: pa.Table,
    status: NDArray[Any],
    arrays: tuple[NDArray[Any], ...],
    fwhm: NDArray[np.float64],
    offset: NDArray[np.float32],
    size: int,
) -> pa.Table:
    wanted = schema(size)
    gone = status != ""
    columns: list[pa.Array] = [
        sources.column("key").combine_chunks(),
        pa.array([s or None for s in status], pa.string()),
    ]
    flat = [pa.array(a.reshape(-1)) for a in arrays]
    flat.append(pa.array(fwhm.astype(np.float32).reshape(-1), mask=~np.isfinite(fwhm).reshape(-1)))
    for values, name in zip(flat, ("flux", "ivar", "mask", "psf_fwhm"), strict=True):
        columns.append(pa.FixedSizeListArray.from_arrays(values, type=wanted.field(name).type, mask=pa.array(gone)))
    columns += [pa.array(values, mask=gone | ~np.isfinite(values)) for values in offset]
    return pa.Table.from_arrays(columns, schema=wanted)
