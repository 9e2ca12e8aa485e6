"""SDSS's spPlate and spec-lite files of the mock sky: log grid, resolution, noise and masks of a plate."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray
from scipy.special import gammainc

from skycairn.mocksky import sdss_columns, sed
from skycairn.mocksky.fitsfile import save, table_hdu

F64 = NDArray[np.float64]
Rows = dict[str, NDArray[Any]]

COEFF1 = 1e-4
FULLREJECT, BRIGHTSKY, NODATA, COMBINEREJ = 1 << 18, 1 << 23, 1 << 24, 1 << 25
BUNIT = "1E-17 erg/cm^2/s/Ang"
SEEING_ARCSEC = 1.4
_SKY_LINES = (5578.9, 5891.6, 6302.0, *(float(w) for w in range(7246, 10300, 61)))


class Instrument(NamedTuple):
    """What tells the two spectrographs apart."""

    fibre_arcsec: float
    "diameter"
    first: int
    "of the grid log10 wavelength = 3.5 + n 1e-4"
    pixels: int
    noise: float
    "of one pixel in mid-range, 1e-17 erg/s/cm2/A"


SDSS = Instrument(3.0, 785, 3840, 0.75)
BOSS = Instrument(2.0, 530, 4630, 0.4)


class Spectra(NamedTuple):
    """The images of one plate, (fibre, pixel); 1e-17 erg/s/cm2/A, vacuum, heliocentric."""

    coeff0: float
    wavelength: F64
    flux: NDArray[np.float32]
    ivar: NDArray[np.float32]
    and_mask: NDArray[np.int32]
    or_mask: NDArray[np.int32]
    wavedisp: NDArray[np.float32]
    "sigma, pixels"
    sky: NDArray[np.float32]
    model: NDArray[np.float32]


def caught(rows: Rows, fibre_arcsec: float) -> F64:
    """Share of a source's light in the fibre, relative to a point source's, whose loss the calibration undoes.

    Sersic curves of growth of bulge and disk, their half-light radii widened by the seeing's.
    """
    radius, seeing = fibre_arcsec / 2.0, SEEING_ARCSEC / 2.0
    galaxy = rows["kind"] == "galaxy"
    share = np.ones(len(galaxy))
    point = 1.0 - 2.0 ** -((radius / seeing) ** 2)
    shrink = np.sqrt(np.where(galaxy, rows["axis_ratio"], 1.0))
    total = np.zeros(len(galaxy))
    bulge = np.where(galaxy, rows["bulge_fraction"], 0.0)
    for part, size, n in ((bulge, rows["bulge_radius"], 4.0), (1.0 - bulge, rows["disk_radius"], 1.0)):
        wide = np.hypot(np.where(galaxy & np.isfinite(size), size, 0.0) * shrink, seeing)
        total += part * gammainc(2.0 * n, (2.0 * n - 1.0 / 3.0) * (radius / wide) ** (1.0 / n))
    share[galaxy] = np.minimum(total[galaxy] / point, 1.0)
    return share


def observe(
    source: Rows, fibers: Rows, instrument: Instrument, shift: int, rng: np.random.Generator, noise: bool = True
) -> Spectra:
    """Spectra of the fibres of a plate: the light of the source in the fibre; `fibers["uid"]` 0 has none.

    `shift` moves the grid's first pixel, which differs from plate to plate. `fibers["row"]` is the place in `source`.
    Without `noise` the flux is what its mean would be; all else, and what is drawn from `rng`, stays.
    """
    n, npix = len(fibers["uid"]), instrument.pixels
    coeff0 = round(3.5 + 1e-4 * (instrument.first + shift), 4)
    wavelength = np.asarray(10.0 ** (coeff0 + COEFF1 * np.arange(npix)), dtype=np.float64)
    u = np.linspace(0.0, 1.0, npix)
    wdisp = 1.06 - 0.35 * u + 0.3 * u**2  # R = 1740 at the blue end, 2200 in the red
    lsf = wdisp * COEFF1 * np.log(10.0) * wavelength
    truth = np.zeros((n, npix))
    real = np.flatnonzero(fibers["uid"] > 0)
    if len(real):
        part = {k: v[fibers["row"][real]] for k, v in source.items()}
        truth[real] = 1e17 * sed.spectrum(part, wavelength, part["ebv"], lsf) * fibers["caught"][real, None]
    bright = np.zeros(npix)
    for line in _SKY_LINES:
        bright += np.exp(-0.5 * ((wavelength - line) / (1.3 * lsf)) ** 2)
    level = instrument.noise * (1.0 + 1.5 * np.exp(-u / 0.06) + 0.8 * np.exp(-(1.0 - u) / 0.08))
    floor = level * (1.0 + 2.0 * bright)
    sigma = np.sqrt(floor**2 + 0.04 * level * np.maximum(truth, 0.0))
    thrown = sigma * rng.standard_normal(truth.shape)
    flux = truth + thrown if noise else truth.copy()
    and_mask = np.where(bright > 0.5, BRIGHTSKY, 0).astype(np.int32) * np.ones((n, 1), dtype=np.int32)
    bad = np.zeros(truth.shape, dtype=bool)
    for i in range(n):
        for hit in rng.integers(0, npix - 3, rng.poisson(3.0)):
            and_mask[i, hit : hit + 3] |= COMBINEREJ | FULLREJECT
            bad[i, hit : hit + 3] = True
        ends = np.r_[0 : rng.integers(3, 12), npix - rng.integers(3, 12) : npix]
        if fibers["dirt"][i] == "masked pixels":
            start = int(rng.integers(0, npix - 500))
            ends = np.r_[ends, start : start + 500]
        if fibers["dirt"][i] == "unplugged":
            ends = np.arange(npix)
        and_mask[i, ends] |= NODATA
        bad[i, ends] = True
    # values under ivar 0 stay as the extraction left them, but for pixels that were never there
    flux[bad] += 40.0 * instrument.noise
    flux[(and_mask & NODATA) != 0] = 0.0
    or_mask = and_mask | np.where(rng.random(truth.shape) < 0.02, 1 << 16, 0).astype(np.int32)
    sky = np.broadcast_to(3.0 * level * (1.0 + 8.0 * bright), truth.shape)
    return Spectra(
        coeff0,
        wavelength,
        flux.astype(np.float32),
        np.where(bad, 0.0, sigma**-2.0).astype(np.float32),
        and_mask,
        or_mask,
        np.broadcast_to(wdisp, truth.shape).astype(np.float32),
        sky.astype(np.float32),
        truth.astype(np.float32),
    )


def _header(fibers: Rows, s: Spectra) -> fits.Header:
    header = fits.Header()
    header["PLATEID"], header["MJD"] = int(fibers["PLATE"][0]), int(fibers["MJD"][0])
    header["RUN2D"] = fibers["RUN2D"][0].decode()
    header["EQUINOX"], header["RADECSYS"] = 2000.0, "FK5"
    header["VACUUM"], header["WFITTYPE"], header["DC-FLAG"] = True, "LOG-LINEAR", 1
    header["COEFF0"], header["COEFF1"] = s.coeff0, COEFF1
    header["CRVAL1"], header["CD1_1"], header["CRPIX1"], header["CTYPE1"] = s.coeff0, COEFF1, 1, "LINEAR"
    header["BUNIT"] = BUNIT
    return header


def write_plate(path: Path, fibers: Rows, s: Spectra) -> None:
    """Write spPlate, row = FIBERID - 1; as many rows as the plate has fibres in the mock, where real ones have 640."""
    n = len(fibers["uid"])
    plug: Rows = {"OBJTYPE": fibers["SOURCETYPE"], "RA": fibers["PLUG_RA"], "DEC": fibers["PLUG_DEC"]}
    plug |= {"FIBERID": fibers["FIBERID"], "SPECTROGRAPHID": np.ones(n, np.int32)}
    plug["MAG"] = 22.5 - 2.5 * np.log10(np.maximum(fibers["SPECTROFLUX"], 1e-3))
    images = {"IVAR": s.ivar, "ANDMASK": s.and_mask, "ORMASK": s.or_mask, "WAVEDISP": s.wavedisp}
    hdus: list[Any] = [fits.PrimaryHDU(s.flux, _header(fibers, s))]
    hdus += [fits.ImageHDU(data, name=name) for name, data in images.items()]
    hdus += [table_hdu(sdss_columns.columns(sdss_columns.PLUGMAP), plug, n, {"EXTNAME": "PLUGMAP"})]
    save(path, [*hdus, fits.ImageHDU(s.sky, name="SKY")])


def write_spec(path: Path, fibers: Rows, s: Spectra, i: int) -> None:
    """Write the spec-lite file of fibre i: COADD and SPECOBJ, without SPZLINE."""
    header = _header(fibers, s)
    header["FIBERID"] = int(fibers["FIBERID"][i])
    header["PLUG_RA"], header["PLUG_DEC"] = float(fibers["PLUG_RA"][i]), float(fibers["PLUG_DEC"][i])
    loglam = s.coeff0 + COEFF1 * np.arange(len(s.wavelength))
    coadd: Rows = {"flux": s.flux[i], "loglam": loglam, "ivar": s.ivar[i], "and_mask": s.and_mask[i]}
    coadd |= {"or_mask": s.or_mask[i], "wdisp": s.wavedisp[i], "sky": s.sky[i], "model": s.model[i]}
    row = {k: v[i : i + 1] for k, v in fibers.items()}
    first = table_hdu(sdss_columns.columns(sdss_columns.COADD), coadd, len(loglam), {"EXTNAME": "COADD"})
    second = table_hdu(sdss_columns.columns(sdss_columns.SPECOBJ), row, 1, {"EXTNAME": "SPECOBJ"})
    save(path, [fits.PrimaryHDU(header=header), first, second])
