"""DESI's coadded spectra: the wanted rows of a coadd file, its three arms joined on one wavelength grid.

Format: https://desidatamodel.readthedocs.io (coadd-SURVEY-PROGRAM-HEALPIX.fits). Wavelengths are vacuum, barycentric,
in Angstrom; fluxes 1e-17 erg/s/cm2/Angstrom; ivar their inverse square. HDUs go by EXTNAME, since their order is not
promised, and rows by TARGETID, never by their order.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning
from numpy.typing import NDArray

from skycairn.catalogs.fitsfile import check_whole

WAVELENGTH_START = 3600.0
WAVELENGTH_STEP = 0.8
N_PIXELS = 7781
ARMS: Mapping[str, tuple[int, int]] = {"B": (0, 2751), "R": (2700, 2326), "Z": (4900, 2881)}
"""First pixel of each arm on the joined grid, and its number of pixels: 3600-5800, 5760-7620, 7520-9824 Angstrom."""
WAVELENGTH_TOLERANCE = 1e-3
AT_ONCE = 128
"""Spectra joined together: their resolution matrices, 0.35 MB each, bound the memory."""

Arms = Mapping[str, NDArray[Any]]


def wavelength() -> NDArray[np.float64]:
    """The joined grid, shape (7781,), Angstrom in vacuum."""
    return WAVELENGTH_START + WAVELENGTH_STEP * np.arange(N_PIXELS, dtype=np.float64)


def join_arms(flux: Arms, ivar: Arms, mask: Arms) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Flux, ivar and mask (True = bad) on the joined grid, each (n, 7781), from arrays (n, pixel) by arm.

    Where arms overlap: flux = sum(flux ivar) / sum(ivar), ivar = sum(ivar), as desispec.coaddition.coadd_cameras does.
    A pixel that any arm masks (bits of SPECMASK, all of them bad), or that is not finite, adds nothing. A pixel
    without ivar is masked, and its flux is 0.
    """
    n = len(next(iter(flux.values())))
    weighted, total = np.zeros((n, N_PIXELS)), np.zeros((n, N_PIXELS))
    for arm, (first, width) in ARMS.items():
        weight = _weight(flux[arm], ivar[arm], mask[arm])
        value = np.where(weight > 0, flux[arm], 0.0)
        weighted[:, first : first + width] += weight * value
        total[:, first : first + width] += weight
    good = (total > 0) & (total <= np.finfo(np.float32).max)
    joined = np.divide(weighted, total, out=np.zeros_like(weighted), where=good)
    return joined.astype(np.float32), np.where(good, total, 0.0).astype(np.float32), ~good


def _weight(flux: NDArray[Any], ivar: NDArray[Any], mask: NDArray[Any]) -> NDArray[np.float64]:
    good = (np.asarray(mask) == 0) & np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0)
    return np.where(good, ivar, 0.0).astype(np.float64)


def lsf_sigma(resolution: NDArray[Any]) -> NDArray[np.float64]:
    """Width of the line spread function, Angstrom, (n, pixel), from RESOLUTION, (n, diagonal, pixel).

    Second moment of each column of the resolution matrix: `resolution[:, k, j]` is the response at pixel
    j + k - n_diagonals // 2 to light that falls on pixel j. NaN where the column says nothing.
    """
    data = np.asarray(resolution, dtype=np.float64)
    step = (np.arange(data.shape[1]) - data.shape[1] // 2)[None, :, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        light = data.sum(axis=1)
        mean = (data * step).sum(axis=1) / light
        variance = (data * step**2).sum(axis=1) / light - mean**2
        return np.where((light > 0) & (variance > 0), np.sqrt(variance), np.nan) * WAVELENGTH_STEP


def join_lsf(sigma: Arms, weight: Arms) -> NDArray[np.float64]:
    """LSF width on the joined grid, (n, 7781), Angstrom; a row is NaN throughout where no arm knows it.

    Second moments add like the light itself does, weighted by ivar; where no arm has ivar they are averaged; columns
    that say nothing are bridged from their neighbours.
    """
    n = len(next(iter(sigma.values())))
    moment, total = np.zeros((n, N_PIXELS)), np.zeros((n, N_PIXELS))
    for arm, (first, width) in ARMS.items():
        known = np.isfinite(sigma[arm])
        # a floor far below any real ivar: it decides only where there is no ivar at all
        share = np.where(known, np.maximum(weight[arm], 1e-30), 0.0)
        moment[:, first : first + width] += share * np.where(known, sigma[arm], 0.0) ** 2
        total[:, first : first + width] += share
    out = np.sqrt(np.divide(moment, total, out=np.full_like(moment, np.nan), where=total > 0))
    pixel = np.arange(N_PIXELS)
    for row in out:
        known = np.isfinite(row)
        if known.any() and not known.all():
            row[~known] = np.interp(pixel[~known], pixel[known], row[known])
    return out


@contextmanager
def opened(path: Path) -> Iterator[fits.HDUList]:
    """The FITS file, mapped, images as stored; a file that is cut short is a ValueError that names it."""
    try:
        if path.suffix != ".gz":
            check_whole(path)
    except ValueError as error:
        what = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: cannot be read as a whole FITS file ({what})") from error
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "File may have been truncated", AstropyUserWarning)
            warnings.filterwarnings("error", "Error validating header", AstropyUserWarning)
            warnings.filterwarnings("error", "non-ASCII characters", AstropyUserWarning)
            # opened by hand, since astropy leaves a file that it refuses open
            with (
                path.open("rb") as file,
                fits.open(file, memmap=True, do_not_scale_image_data=True, lazy_load_hdus=False) as hdus,
            ):
                yield hdus
    except FileNotFoundError:
        raise
    except (OSError, EOFError, AstropyUserWarning, fits.VerifyError) as error:
        raise ValueError(f"{path}: cannot be read as a whole FITS file ({error}); fetch it again") from error


def hdu_named(hdus: fits.HDUList, name: str, path: Path, advice: str) -> Any:
    """The HDU of this EXTNAME; ValueError says which ones the file holds."""
    if name not in hdus:
        held = ", ".join(h.name for h in hdus if h.name != "PRIMARY") or "none"
        raise ValueError(f"{path}: holds no HDU {name!r} (it holds {held}); {advice}")
    return hdus[name]


def match_targetids(wanted: NDArray[np.int64], held: NDArray[np.int64], where: str) -> NDArray[np.int64]:
    """Row in `held` of each wanted TARGETID, -1 where it is not there; an id held twice is refused."""
    if not len(held):
        return np.full(len(wanted), -1, dtype=np.int64)
    order = np.argsort(held, kind="stable")
    in_order = held[order]
    left, right = np.searchsorted(in_order, wanted, "left"), np.searchsorted(in_order, wanted, "right")
    if (twice := np.flatnonzero(right - left > 1)).size:
        i = twice[0]
        rows = order[left[i] : right[i]]
        raise ValueError(
            f"{where}: TARGETID {wanted[i]} stands in rows {', '.join(map(str, rows))}; wanted one row a target"
        )
    return np.where(right > left, order[np.minimum(left, len(held) - 1)], -1)


def read_spectra(path: Path, targetids: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Joined spectra of these targets, in this order.

    `found` (n,) bool; `flux`, `ivar` float32 and `mask` bool (n, 7781); `lsf_sigma` float32 (n, 7781), Angstrom, NaN
    in a row whose file holds no RESOLUTION. Rows not found are masked throughout.
    """
    with opened(path) as hdus:
        advice = "without it no row can be told to belong to a target; is it a coadd of another pipeline?"
        fibermap = hdu_named(hdus, "FIBERMAP", path, advice)
        held = np.asarray(fibermap.data["TARGETID"]).astype(np.int64)
        match = match_targetids(targetids, held, str(path))
        found = match >= 0
        for arm in ARMS:
            _check_wavelength(hdus, arm, path)
        n = len(targetids)
        out: dict[str, NDArray[Any]] = {
            "found": found,
            "flux": np.zeros((n, N_PIXELS), np.float32),
            "ivar": np.zeros((n, N_PIXELS), np.float32),
            "mask": np.ones((n, N_PIXELS), bool),
            "lsf_sigma": np.full((n, N_PIXELS), np.nan, np.float32),
        }
        wanted = np.flatnonzero(found)
        for start in range(0, len(wanted), AT_ONCE):
            place = wanted[start : start + AT_ONCE]
            rows = match[place]
            flux, ivar, mask = (
                {arm: _rows(hdus, f"{arm}_{what}", rows, (len(held), ARMS[arm][1]), path) for arm in ARMS}
                for what in ("FLUX", "IVAR", "MASK")
            )
            out["flux"][place], out["ivar"][place], out["mask"][place] = join_arms(flux, ivar, mask)
            weight = {arm: _weight(flux[arm], ivar[arm], mask[arm]) for arm in ARMS}
            sigma = {arm: _sigma(hdus, arm, rows, len(held), path) for arm in ARMS}
            out["lsf_sigma"][place] = join_lsf(sigma, weight)
    return out


def _sigma(hdus: fits.HDUList, arm: str, rows: NDArray[np.int64], held: int, path: Path) -> NDArray[np.float64]:
    name = f"{arm}_RESOLUTION"
    if name not in hdus:
        return np.full((len(rows), ARMS[arm][1]), np.nan)
    return lsf_sigma(_rows(hdus, name, rows, (held, hdus[name].shape[1], ARMS[arm][1]), path))


def _check_wavelength(hdus: fits.HDUList, arm: str, path: Path) -> None:
    first, width = ARMS[arm]
    held = np.asarray(hdu_named(hdus, f"{arm}_WAVELENGTH", path, "is it a DESI coadd file?").data, dtype=np.float64)
    wanted = WAVELENGTH_START + WAVELENGTH_STEP * (first + np.arange(width))
    if held.shape != wanted.shape or np.abs(held - wanted).max() > WAVELENGTH_TOLERANCE:
        raise ValueError(
            f"{path}: {arm}_WAVELENGTH holds {held.size} pixels, {held.flat[0]:.4f} to {held.flat[-1]:.4f} Angstrom; "
            f"wanted {width}, {wanted[0]} to {wanted[-1]:.1f} in steps of {WAVELENGTH_STEP}"
        )


def _rows(hdus: fits.HDUList, name: str, rows: NDArray[np.int64], shape: Sequence[int], path: Path) -> NDArray[Any]:
    hdu = hdu_named(hdus, name, path, "is it a DESI coadd file?")
    if tuple(hdu.shape) != tuple(shape):
        raise ValueError(f"{path}: {name} has shape {tuple(hdu.shape)}; wanted {tuple(shape)}, a row for each target")
    values = np.asarray(hdu.data[rows])  # of a mapped file: only these rows are read
    values = values.astype(values.dtype.newbyteorder("="))
    zero, scale = hdu.header.get("BZERO", 0), hdu.header.get("BSCALE", 1)
    if scale != 1:
        raise ValueError(f"{path}: {name} is stored with BSCALE {scale}; DESI's coadds are not")
    return values.astype(np.int64) + int(zero) if zero else values
