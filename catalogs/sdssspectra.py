"""SDSS's spectra: rows of spPlate files, or single spec files, placed pixel by pixel on the grid that all share.

Every SDSS and BOSS pixel lies at log10(wavelength / Angstrom) = n x 1e-4, vacuum, heliocentric; so spectra of unlike
length are put on one grid by counting, and nothing is resampled. Flux in 1e-17 erg/s/cm2/Angstrom. A pixel is masked
where its inverse variance is not positive and finite, where its flux is not finite, where `and_mask` says NODATA, or
beyond what was observed; BRIGHTSKY alone leaves it good, since its ivar tells. There flux and ivar are 0.
Formats: data.sdss.org/datamodel (spPlate, spec).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from skycairn.catalogs.fitsfile import opened

LOGLAM_STEP = 1e-4
FIRST_PIXEL = 35_450
"""n of the first pixel: 3507.5 Angstrom, bluer than BOSS's 3560."""
N_PIXELS = 4_800
"""Up to 10,590 Angstrom, redder than BOSS's 10,400."""
LOGLAM_START = FIRST_PIXEL * LOGLAM_STEP
TOLERANCE_PIXELS = 0.1
NODATA = 1 << 24
"""Bit of and_mask and or_mask (www.sdss4.org/dr17/algorithms/bitmasks, SPPIXMASK)."""
F64 = NDArray[np.float64]


class Spectra(NamedTuple):
    """On the shared grid, (n, 4800)."""

    flux: NDArray[np.float32]
    ivar: NDArray[np.float32]
    mask: NDArray[np.bool_]
    lsf_sigma: NDArray[np.float32]
    "Angstrom; NaN in a row whose file does not say"


def wavelength() -> F64:
    """The shared grid, shape (4800,), Angstrom in vacuum."""
    return np.asarray(10 ** (LOGLAM_STEP * (FIRST_PIXEL + np.arange(N_PIXELS))), dtype=np.float64)


def on_grid(flux: Any, ivar: Any, and_mask: Any, wdisp: Any | None, loglam: F64, where: str) -> Spectra:
    """Arrays (n, pixel) of one wavelength scale `loglam` (pixel,) on the shared grid.

    ValueError where the scale is off the grid by more than a tenth of a pixel, or a good pixel lies beyond its ends.
    """
    position = np.asarray(loglam, dtype=np.float64) / LOGLAM_STEP
    number = np.round(position).astype(np.int64)
    if len(number) and (np.abs(position - number).max() > TOLERANCE_PIXELS or (np.diff(number) != 1).any()):
        raise ValueError(
            f"{where}: {len(loglam)} pixels run from log10(wavelength) {loglam[0]:.6f} to {loglam[-1]:.6f}; "
            f"wanted whole multiples of {LOGLAM_STEP}, one after the other; is it a spectrum of SDSS or BOSS?"
        )
    flux, ivar = np.atleast_2d(flux).astype(np.float64), np.atleast_2d(ivar).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        flux, ivar = flux.astype(np.float32).astype(np.float64), ivar.astype(np.float32).astype(np.float64)
        good = np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0)
    good &= (np.atleast_2d(and_mask).astype(np.int64) & NODATA) == 0
    place = number - FIRST_PIXEL
    inside = (place >= 0) & (place < N_PIXELS)
    if good[:, ~inside].any():
        raise ValueError(
            f"{where}: holds good pixels from {10 ** loglam[0]:.1f} to {10 ** loglam[-1]:.1f} Angstrom; the grid ends "
            f"at {10**LOGLAM_START:.1f} and {wavelength()[-1]:.1f}"
        )
    n = len(flux)
    out = Spectra(
        np.zeros((n, N_PIXELS), np.float32),
        np.zeros((n, N_PIXELS), np.float32),
        np.ones((n, N_PIXELS), bool),
        np.full((n, N_PIXELS), np.nan, np.float32),
    )
    at = place[inside]
    out.flux[:, at] = np.where(good, flux, 0)[:, inside]
    out.ivar[:, at] = np.where(good, ivar, 0)[:, inside]
    out.mask[:, at] = ~good[:, inside]
    if wdisp is not None:
        out.lsf_sigma[:] = _lsf(np.atleast_2d(wdisp).astype(np.float64)[:, inside], at)
    return out


def _lsf(wdisp: F64, at: NDArray[np.int64]) -> F64:
    """Angstrom from widths in pixels; pixels that say nothing are bridged, ends carried on."""
    out = np.full((len(wdisp), N_PIXELS), np.nan)
    grid = np.arange(N_PIXELS)
    for row, width in zip(out, wdisp, strict=True):
        known = np.isfinite(width) & (width > 0)
        if known.any():
            row[:] = np.interp(grid, at[known], width[known])
    out *= LOGLAM_STEP * np.log(10) * wavelength()
    return out


def read_plate(path: Path, plate: int, mjd: int, fibers: NDArray[np.int64]) -> Spectra:
    """Spectra of these fibres of an spPlate file: row FIBERID - 1 of each image."""
    with opened(path) as hdus:
        header = hdus[0].header
        _same(path, "PLATEID", header.get("PLATEID"), plate)
        _same(path, "MJD", header.get("MJD"), mjd)
        if len(hdus) < 5:
            raise ValueError(f"{path}: holds {len(hdus)} HDUs; wanted FLUX, IVAR, ANDMASK, ORMASK and WAVEDISP first")
        n_fibers, n_pixels = hdus[0].shape
        if (out := (fibers < 1) | (fibers > n_fibers)).any():
            raise ValueError(f"{path}: has {n_fibers} fibres; fibre {fibers[out][0]} was asked for")
        rows = fibers - 1
        if len(hdus) > 5 and "FIBERID" in (hdus[5].columns.names if hdus[5].is_image is False else ()):
            held = np.asarray(hdus[5].data["FIBERID"])[rows]
            if (held != fibers).any():
                i = int(np.argmax(held != fibers))
                raise ValueError(f"{path}: PLUGMAP row {rows[i]} is of fibre {held[i]}; wanted {fibers[i]}")
        arrays = []
        for i in (0, 1, 2, 4):
            if tuple(hdus[i].shape) != (n_fibers, n_pixels):
                raise ValueError(f"{path}: HDU {i} has shape {tuple(hdus[i].shape)}; wanted {(n_fibers, n_pixels)}")
            arrays.append(np.asarray(hdus[i].data[rows]))
        loglam = _scale(header, n_pixels, path)
    flux, ivar, and_mask, wdisp = arrays
    return on_grid(flux, ivar, and_mask, wdisp, loglam, str(path))


def _scale(header: fits.Header, n_pixels: int, path: Path) -> F64:
    for name in ("COEFF0", "COEFF1"):
        if name not in header:
            raise ValueError(f"{path}: its header has no {name}; wanted log10(wavelength) = COEFF0 + COEFF1 i")
    start, step = float(header["COEFF0"]), float(header["COEFF1"])
    if "CRVAL1" in header:
        other = float(header.get("CD1_1", step))
        first = float(header["CRVAL1"]) + other * (1 - float(header.get("CRPIX1", 1)))
        last = start + step * (n_pixels - 1), first + other * (n_pixels - 1)
        if max(abs(first - start), abs(last[1] - last[0])) > TOLERANCE_PIXELS * LOGLAM_STEP:
            raise ValueError(
                f"{path}: COEFF0, COEFF1 put its pixels at {start} to {last[0]}, "
                f"CRVAL1, CD1_1 at {first} to {last[1]}; which holds?"
            )
    return np.asarray(start + step * np.arange(n_pixels), dtype=np.float64)


def read_spec(path: Path, plate: int, mjd: int, fiber: int) -> Spectra:
    """The one spectrum of a `spec` or `spec-lite` file."""
    with opened(path) as hdus:
        header = hdus[0].header
        own = hdus[2].data if len(hdus) > 2 and isinstance(hdus[2], fits.BinTableHDU) and len(hdus[2].data) else None
        for card, column, wanted in (("PLATEID", "PLATE", plate), ("MJD", "MJD", mjd), ("FIBERID", "FIBERID", fiber)):
            said = header.get(card)
            if said is None and own is not None and column in (n.upper() for n in own.columns.names):
                said = own[column][0]  # SPECOBJ or SPALL
            _same(path, card, said, wanted)
        table = hdus["COADD"] if "COADD" in hdus else hdus[1] if len(hdus) > 1 else None
        by_name = {n.lower(): n for n in table.columns.names} if isinstance(table, fits.BinTableHDU) else {}
        missing = [n for n in ("flux", "loglam", "ivar", "and_mask") if n not in by_name]
        if missing or table is None:
            raise ValueError(f"{path}: holds no COADD table with {', '.join(missing)}; is it a spec file of SDSS?")
        data = {n: np.array(table.data[by_name[n]]) for n in ("flux", "loglam", "ivar", "and_mask")}
        wdisp = np.array(table.data[by_name["wdisp"]]) if "wdisp" in by_name else None
    loglam = data["loglam"].astype(np.float64)
    return on_grid(data["flux"], data["ivar"], data["and_mask"], wdisp, loglam, str(path))


def _same(path: Path, name: str, found: Any, wanted: int) -> None:
    if found is None:
        raise ValueError(f"{path}: nothing in it says its {name}; wanted {wanted}; is it a file of SDSS?")
    if int(found) != int(wanted):
        raise ValueError(f"{path}: its {name} is {found}; wanted {wanted}: the file is another's under this name")
