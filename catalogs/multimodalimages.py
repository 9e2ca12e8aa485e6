"""The Multimodal Universe's Legacy Survey DR10 and HSC PDR3, images and catalogues; see multimodal.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skycairn.catalogs import hscfiles, hscimage, legacyfiles, legacyimage
from skycairn.catalogs import multimodalfile as hdf5
from skycairn.catalogs.columns import Fetch
from skycairn.catalogs.hsc import Hsc
from skycairn.catalogs.hsccolumns import ELLIPSE, EXTENDED, I_LIMIT, MAGNITUDE, MEASURED
from skycairn.catalogs.legacycolumns import pack_key
from skycairn.catalogs.legacysurvey import LegacySurvey
from skycairn.catalogs.multimodal import Imported
from skycairn.catalogs.survey import Cut

LEGACY_PIXEL_ARCSEC, HSC_PIXEL_ARCSEC = 0.262, 0.168
SCALE_TOLERANCE = 0.002
BRICK_PIXELS = 3600
MOST_IVAR = float(np.finfo(np.float32).max)
"""An inverse variance as large is what a division by zero became, here or on its way through float64."""
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


# -- the grid of a Legacy Survey brick


def brick_centres(brickid: I64) -> tuple[F64, F64]:
    """RA and Dec in degrees of bricks' centres, NaN where there is no such brick.

    Rows of 0.25 degrees about multiples of it, the poles' rows of a single brick; in a row an even number of bricks as
    wide as that at the edge nearer the equator: 662,174 in all, numbered from 1, as survey-bricks has them.
    """
    row = np.arange(721)
    nearer = np.maximum(np.abs(0.25 * row - 90) - 0.125, 0)
    number = np.ceil(360 * np.cos(np.radians(nearer)) / 0.25).astype(np.int64)
    number += number % 2
    number[[0, -1]] = 1
    ends = np.cumsum(number)
    there = (brickid >= 1) & (brickid <= ends[-1])
    index = np.where(there, brickid - 1, 0)
    at = np.searchsorted(ends, index, side="right")
    ra = 360 / number[at] * (index - (ends[at] - number[at]) + 0.5)
    return np.where(there, ra, np.nan), np.where(there, 0.25 * at - 90, np.nan)


def brick_name(ra: float, dec: float) -> str:
    """Name of the brick with this centre."""
    # 55.0 may have become 54.999..
    return f"{int(10 * ra + 1e-6):04d}{'m' if dec < 0 else 'p'}{int(10 * abs(dec) + 1e-6):03d}"


def brick_pixels(brickid: I64, names: list[str | None], ra: F64, dec: F64) -> tuple[F64, F64]:
    """0-based pixel coordinates (x, y) in the coadd of each source's brick; NaN where the brick is not known.

    A coadd is TAN about the brick's centre, 3600 x 3600 pixels of 0.262 arcsec, north up, east left.
    """
    ra0, dec0 = brick_centres(brickid)
    named = [n == brick_name(a, d) for n, a, d in zip(names, ra0.tolist(), dec0.tolist(), strict=True) if a == a]
    known = np.isfinite(ra0)
    known[known] = named
    a, d, d0 = (np.radians(np.where(known, v, 0.0)) for v in (ra - ra0, dec, dec0))
    cosine = np.sin(d0) * np.sin(d) + np.cos(d0) * np.cos(d) * np.cos(a)
    known &= cosine > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        east = np.cos(d) * np.sin(a) / cosine
        north = (np.cos(d0) * np.sin(d) - np.sin(d0) * np.cos(d) * np.cos(a)) / cosine
    scale = np.radians(LEGACY_PIXEL_ARCSEC / 3600)
    middle = (BRICK_PIXELS - 1) / 2
    return np.where(known, middle - east / scale, np.nan), np.where(known, middle + north / scale, np.nan)


# -- stamps, as they are stored


def stored_start(x: F64, stored: int, size: int) -> tuple[I64, NDArray[np.float32]]:
    """Pixel of the stored stamp that becomes the first of the cut-out, and the source less pixel `size // 2`'s middle.

    The stamp of `stored` pixels began at ceil(x + 1 - stored / 2). Where x is not known the source is held to be in
    the pixel next to the middle one, and how much it is off is NaN.
    """
    known = np.isfinite(x)
    place = np.where(known, x, 0.0)
    nearest = np.floor(place + 0.5)
    start = nearest - size // 2 - np.ceil(place + 1 - stored / 2)
    start = np.where(known, start, stored // 2 - 1 - size // 2)
    return start.astype(np.int64), np.where(known, place - nearest, np.nan).astype(np.float32)


def moved(stamps: NDArray[Any], x0: I64, y0: I64, size: int, fill: Any) -> NDArray[Any]:
    """Cut-outs (n, band, size, size) that begin at pixel (x0, y0) of stamps (n, band, y, x), padded with `fill`."""
    out = np.full((*stamps.shape[:2], size, size), fill, dtype=stamps.dtype.newbyteorder("="))
    ny, nx = stamps.shape[2:]
    for i, (left, bottom) in enumerate(zip(x0.tolist(), y0.tolist(), strict=True)):
        x_lo, x_hi, y_lo, y_hi = max(left, 0), min(left + size, nx), max(bottom, 0), min(bottom + size, ny)
        if x_lo < x_hi and y_lo < y_hi:
            out[i, :, y_lo - bottom : y_hi - bottom, x_lo - left : x_hi - left] = stamps[i, :, y_lo:y_hi, x_lo:x_hi]
    return out


@dataclass(frozen=True)
class Stamps:
    """Rows of a file's images, bands in the survey's order, before they are moved; mask: True = bad."""

    flux: NDArray[Any]
    ivar: NDArray[Any]
    mask: NDArray[np.bool_]
    psf_fwhm: F64
    "NaN where not known"


def read_stamps(path: Path, rows: I64, bands: tuple[str, ...], pixel_arcsec: float) -> Stamps:
    """Images of these rows. ValueError where bands, pixel scale or masks are other than the survey's."""
    flux = hdf5.payload(path, ("image_array",), rows)
    ivar = hdf5.payload(path, ("image_ivar",), rows)
    clean = hdf5.payload(path, ("image_mask", "bit_mask"), rows)
    if flux.ndim != 4 or flux.shape[1] != len(bands) or ivar.shape != flux.shape:
        raise ValueError(
            f"{path}: image_array has shape {flux.shape}, image_ivar {ivar.shape}; wanted (n, {len(bands)}, y, x) both"
        )
    if clean.ndim == 3:
        clean = np.repeat(clean[:, None], len(bands), axis=1)  # one plane for all bands
    if clean.shape != flux.shape:
        raise ValueError(f"{path}: image_mask has shape {clean.shape}, wanted {flux.shape}, or that without bands")
    if clean.dtype != np.bool_ and not np.isin(clean, (0, 1)).all():
        raise ValueError(f"{path}: image_mask holds {clean.max()}; wanted True and False: True where a pixel is good")
    order = _order(path, rows, bands)
    fwhm = np.full((len(rows), len(bands)), np.nan)
    if hdf5.has(path, "image_psf_fwhm"):
        fwhm = hdf5.payload(path, ("image_psf_fwhm",), rows).astype(np.float64)
    if hdf5.has(path, "image_scale"):
        scale = hdf5.payload(path, ("image_scale",), rows)
        if scale.size and np.abs(scale - pixel_arcsec).max() > SCALE_TOLERANCE:
            raise ValueError(f"{path}: image_scale is {scale.flat[0]:g} arcsec, wanted {pixel_arcsec}")
    return Stamps(flux[:, order], ivar[:, order], ~clean.astype(bool)[:, order], fwhm[:, order])


def _order(path: Path, rows: I64, bands: tuple[str, ...]) -> list[int]:
    """Places of the survey's bands in the file, by its own names (`des-g`, `hsc-g`)."""
    if not hdf5.has(path, "image_band") or not len(rows):
        return list(range(len(bands)))
    names = hdf5.text(hdf5.payload(path, ("image_band",), rows))
    if (names != names[0]).any():
        raise ValueError(f"{path}: image_band differs from row to row; wanted one order of bands")
    letters = [n.lower().rsplit("-", 1)[-1] for n in names[0].tolist()]
    if sorted(letters) != sorted(bands):
        raise ValueError(f"{path}: image_band is {', '.join(names[0].tolist())}; wanted {', '.join(bands)}")
    return [letters.index(b) for b in bands]


def masked(flux: NDArray[Any], ivar: NDArray[Any], bad: NDArray[np.bool_]) -> tuple[NDArray[Any], ...]:
    """Flux, inverse variance and mask as float32 and bool; where a pixel is bad flux and inverse variance are 0."""
    with np.errstate(all="ignore"):
        flux, wide = flux.astype(np.float32), ivar.astype(np.float64)
        mask = bad | ~(np.isfinite(flux) & np.isfinite(wide) & (wide > 0) & (wide < MOST_IVAR))
        narrow = np.where(mask, 0, wide).astype(np.float32)
    return np.where(mask, np.float32(0), flux), narrow, mask


def cutouts(schema: pa.Schema, keys: pa.Array, status: NDArray[Any], columns: Mapping[str, NDArray[Any]]) -> pa.Table:
    """Rows of the survey's own schema of cut-outs; null where `status` says why there is none, and where NaN."""
    gone = status != ""
    arrays = [keys, pa.array([s or None for s in status], pa.string())]
    for field in list(schema)[2:]:
        values = columns[field.name]
        if pa.types.is_fixed_size_list(field.type):
            unknown = ~np.isfinite(values) if field.name == "psf_fwhm" else None
            flat = pa.array(
                values.reshape(-1).astype(field.type.value_type.to_pandas_dtype()),
                mask=None if unknown is None else unknown.reshape(-1),
            )
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=field.type, mask=pa.array(gone)))
        else:
            arrays.append(pa.array(values, field.type, mask=gone | ~np.isfinite(values)))
    return pa.Table.from_arrays(arrays, schema=schema)


class ImportedImages(Imported):
    """What the two imaging surveys have in common."""

    file_bands: ClassVar[tuple[str, ...]]
    pixel_arcsec: ClassVar[float]
    size: int

    def pixels(self, sources: pa.Table) -> tuple[F64, F64]:
        """0-based pixel coordinates of the sources in their coadds, NaN where not known."""
        nothing = np.full(sources.num_rows, np.nan)
        return nothing, nothing

    def seeing(self, sources: pa.Table, stored: F64) -> F64:
        """FWHM in arcsec, (n, band)."""
        return stored

    def extract(self, modality: str, sources: pa.Table, files: Mapping[str, Path], lost: frozenset[str]) -> pa.Table:
        """Cut-outs as the survey's own, moved by whole pixels (multimodal.py); row for row with `sources`."""
        if not self.modality(modality).payload:
            return super().extract(modality, sources, files, lost)
        n, size, bands = sources.num_rows, self.size, self.file_bands
        keys = sources.column("key").combine_chunks()
        flux = np.zeros((n, len(bands), size, size), np.float32)
        ivar, mask = np.zeros_like(flux), np.ones(flux.shape, bool)
        fwhm = np.full((n, len(bands)), np.nan)
        offset = np.full((2, n), np.nan, np.float32)
        x, y = self.pixels(sources)
        for path, row in self.rows_in(files, keys.to_numpy(zero_copy_only=False)):
            at = np.flatnonzero(row >= 0)
            if not len(at):
                continue
            stamps = read_stamps(path, row[at], bands, self.pixel_arcsec)
            (x0, offset[0][at]), (y0, offset[1][at]) = (
                stored_start(v[at], stamps.flux.shape[k], size) for v, k in ((x, 3), (y, 2))
            )
            flux[at], ivar[at], mask[at] = self.calibrated(
                *(moved(v, x0, y0, size, fill) for v, fill in ((stamps.flux, 0), (stamps.ivar, 0), (stamps.mask, True)))
            )
            fwhm[at] = stamps.psf_fwhm
        why = "file_absent" if lost or not files else "not_measured"
        status = np.where(mask.all(axis=(1, 2, 3)), why, "").astype(object)
        fwhm = self.seeing(sources, fwhm)
        values = {"flux": flux, "ivar": ivar, "mask": mask, "psf_fwhm": np.where(fwhm > 0, fwhm, np.nan)}
        return cutouts(self.schema(), keys, status, {**values, "dx": offset[0], "dy": offset[1]})

    def schema(self) -> pa.Schema:
        """Of the cut-outs."""
        raise NotImplementedError

    def calibrated(self, flux: NDArray[Any], ivar: NDArray[Any], bad: NDArray[np.bool_]) -> tuple[NDArray[Any], ...]:
        """Flux in nanomaggies, inverse variance and mask."""
        return masked(flux, ivar, bad)


class MultimodalLegacySurvey(ImportedImages, LegacySurvey):
    """Legacy Survey DR10 south, z < 21 and not point-like, as MMU has it; root: the folder that holds `dr10_south_21`.

    Options: `epoch_range`, `gaia_dr2_epoch`, `cutout_pixels`, as of the survey's own releases.

    One plane of MASKBITS serves for all bands: a pixel is masked near bright and medium stars, and beyond the area that
    its brick owns, where the survey's own files are read as they are.
    """

    releases = ("mmu-dr10-south-21",)
    original, folder, sets = "dr10", "legacysurvey", ("dr10_south_21",)
    settings = ("epoch_range", "gaia_dr2_epoch", "cutout_pixels")
    footprint = "occupied"  # type: ignore[assignment]
    file_bands, pixel_arcsec = legacyfiles.BANDS, LEGACY_PIXEL_ARCSEC

    def mend(self, found: dict[str, Fetch], n: int, where: str) -> None:
        """BRICKNAME and OBJID out of the identifier (0421p022-7410) where they are not there, else held against it."""
        if "object_id" not in found:
            return
        said = hdf5.text(found["object_id"]())
        if not n:
            return
        brick, _, number = np.char.rpartition(said, "-").T
        for name, values in (("brickname", brick), ("objid", number)):
            if name not in found:
                found[name] = lambda v=values, name=name: (  # type: ignore[misc]
                    v if name == "brickname" else hdf5.whole_numbers(v, where)
                )
                continue
            own = found[name]()
            same = hdf5.text(own) == values if name == "brickname" else own.astype(str) == values
            if not same.all():
                i = int(np.argmin(same))
                raise ValueError(
                    f"{where} row {i}: object_id is {str(said[i])!r}, {name.upper()} {own[i]}; the row is made of two: "
                    "fetch the file again"
                )

    def keys_of(self, found: Mapping[str, Fetch]) -> I64:
        """Key of each row."""
        release, brickid, objid = (found[c]() for c in ("release", "brickid", "objid"))
        return pack_key(release, brickid, objid)

    def pixels(self, sources: pa.Table) -> tuple[F64, F64]:
        """By the grid of each source's brick."""
        brickid = sources.column("brickid").combine_chunks().fill_null(0).to_numpy().astype(np.int64)
        position = (np.asarray(sources.column(c), dtype=np.float64) for c in ("ra", "dec"))
        return brick_pixels(brickid, sources.column("brickname").to_pylist(), *position)

    def schema(self) -> pa.Schema:
        """As of the survey's own coadds."""
        return legacyimage.schema(self.size)


class MultimodalHsc(ImportedImages, Hsc):
    """HSC PDR3 Deep and UltraDeep, i < 22.5, as MMU has it; root: the folder that holds `pdr3_dud_22.5`.

    Options: `cutout_pixels`, `zero_point`, `epoch_range`, as of the survey's own release. MMU's query wanted primary
    sources with 3 visits in each band and without flags (but for cosmic rays and invented pixels at the centre): its
    table holds no column of these, so `aion` cannot ask again.
    """

    releases = ("mmu-pdr3-dud-22.5",)
    original, folder, sets = "pdr3-wide", "hsc", ("pdr3_dud_22.5",)
    settings = ("cutout_pixels", "zero_point", "epoch_range")
    given: ClassVar[Mapping[str, Any]] = {"isprimary": True}
    select: ClassVar[dict[str, tuple[Cut, ...]]] = {
        "aion": (EXTENDED, MAGNITUDE),
        "aion-paper": (I_LIMIT,),
        "strict": (EXTENDED, MAGNITUDE, MEASURED, ELLIPSE),
        "all": (),
    }
    file_bands, pixel_arcsec = hscfiles.BANDS, HSC_PIXEL_ARCSEC

    def mend(self, found: dict[str, Fetch], n: int, where: str) -> None:
        """Identifiers that became text."""
        if "object_id" in found:
            identifiers = found["object_id"]
            found["object_id"] = lambda: hdf5.whole_numbers(identifiers(), where)

    def keys_of(self, found: Mapping[str, Fetch]) -> I64:
        """Key of each row."""
        identity = found["object_id"]().astype(np.int64)
        return np.where(identity > 0, identity, -1)

    def seeing(self, sources: pa.Table, stored: F64) -> F64:
        """By the catalogue's moments of the PSF, as for the survey's own coadds."""
        return hscimage.seeing(sources)

    def schema(self) -> pa.Schema:
        """As of the survey's own coadds."""
        return hscimage.schema(self.size)

    def calibrated(self, flux: NDArray[Any], ivar: NDArray[Any], bad: NDArray[np.bool_]) -> tuple[NDArray[Any], ...]:
        """From counts of `zero_point`."""
        flux, ivar, mask = masked(flux, ivar, bad)
        with np.errstate(divide="ignore"):
            return hscimage.nanomaggies(flux, 1 / ivar.astype(np.float64), mask, self.zero_point)
