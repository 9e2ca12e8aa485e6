"""DESI's coadd and redrock files of the mock sky: three arms, their noise, their resolution, their masks."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skycairn.mocksky import desi_columns, sed

F64 = NDArray[np.float64]
Rows = dict[str, NDArray[Any]]

ARMS: dict[str, tuple[float, int]] = {"B": (3600.0, 2751), "R": (5760.0, 2326), "Z": (7520.0, 2881)}
"""First wavelength (vacuum, Angstrom) and pixels of each arm; 0.8 A a pixel."""
STEP = 0.8
LSF = {"B": (0.80, 0.62), "R": (0.66, 0.62), "Z": (0.70, 0.75)}
"""Gaussian sigma of the line spread function at the two ends of each arm, Angstrom."""
N_DIAGONALS = 11

NOISE = {"dark": (0.54, 0.34, 0.31), "bright": (1.9, 1.0, 0.9), "backup": (3.4, 1.9, 1.7)}
"""Sky and read noise of one pixel in B, R, Z, 1e-17 erg/s/cm2/A: 1000 s dark, 180 s bright, 60 s backup."""
EXPOSURE_S = {"dark": 1000.0, "bright": 180.0, "backup": 60.0}

COSMIC, BADFIBER = 1 << 2, 1 << 9
_SKY_LINES = ((5578.5, 0.8), (5891.0, 0.7), (6302.0, 0.8), *((float(w), 1.1) for w in range(7246, 9800, 61)))


class Arm(NamedTuple):
    """What one arm's spectra have in common."""

    wavelength: F64
    lsf: F64
    "sigma, Angstrom"
    noise: F64
    "relative to NOISE"
    resolution: NDArray[np.float32]
    "(11, wavelength)"


@cache
def arm(name: str) -> Arm:
    """Wavelengths, line spread, noise and resolution matrix of an arm."""
    start, n = ARMS[name]
    wavelength = np.round(start + STEP * np.arange(n), 1)
    lsf = np.linspace(*LSF[name], n)
    edge = (wavelength - wavelength[0]) / (wavelength[-1] - wavelength[0])
    noise = 1.0 + 2.5 * np.exp(-edge / 0.12) * (name == "B") + 0.6 * np.exp(-(1 - edge) / 0.05)
    for line, width in _SKY_LINES:
        noise = noise + (3.0 if line < 6500 else 1.6) * np.exp(-0.5 * ((wavelength - line) / width) ** 2)
    # R = dia_matrix((data, offsets)): data[k, j] is the response of pixel j - offsets[k] to light at pixel j
    offsets = N_DIAGONALS // 2 - np.arange(N_DIAGONALS)
    profile = np.exp(-0.5 * (offsets[:, None] * STEP / lsf[None, :]) ** 2)
    return Arm(wavelength, lsf, noise, (profile / profile.sum(axis=0)).astype(np.float32))


_TFORM = {"i2": "I", "i4": "J", "i8": "K", "u1": "B", "f4": "E", "f8": "D"}
_BITPIX = {"f4": -32, "f8": -64, "i4": 32}


def _hdu(cards: list[tuple[str, Any]], data: bytes) -> bytes:
    """Header and data as FITS blocks.

    Written by hand, since astropy takes 0.1 s to make each of the tables of 80 columns, many of which hold three rows.
    """
    lines = []
    for key, value in cards:
        text = {True: "T", False: "F"}[value] if isinstance(value, bool) else str(value)
        lines.append(f"{key:<8}= " + (f"'{value:<8}'" if isinstance(value, str) else f"{text:>20}"))
    header = "".join(f"{line:<80}" for line in [*lines, "END"]).encode("ascii")
    return header.ljust(-len(header) // 2880 * -2880, b" ") + data.ljust(-len(data) // 2880 * -2880, b"\0")


PRIMARY = _hdu([("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0), ("EXTEND", True)], b"")


def table_hdu(name: str, columns: str, values: Rows, n: int) -> bytes:
    """A binary table of these columns; what `values` lacks is 0, text is padded with blanks as DESI pads it."""
    dtype = desi_columns.dtype_of(columns)
    units = desi_columns.units_of(columns)
    stored: list[tuple[Any, ...]] = []
    cards: list[tuple[str, Any]] = []
    for k, column in enumerate(dtype.names or (), start=1):
        field = dtype[column]
        base, shape = field.base, field.shape
        text = base.kind == "S"
        stored.append((column, base if text else "S1" if base.kind == "b" else base.newbyteorder(">"), shape))
        form = f"{base.itemsize}A" if text else "L" if base.kind == "b" else _TFORM[base.str[1:]]
        cards += [(f"TTYPE{k}", column), (f"TFORM{k}", f"{shape[0]}{form}" if shape else form)]
        if column in units:
            cards.append((f"TUNIT{k}", units[column]))
    table = np.zeros(n, dtype=stored)
    for column in dtype.names or ():
        kind = dtype[column].base.kind
        if kind == "b":
            table[column] = np.where(values.get(column, np.zeros(n, dtype=bool)), b"T", b"F")
        elif column in values:
            table[column] = values[column]
        if kind == "S" and n:
            table[column] = np.char.ljust(table[column], dtype[column].itemsize)
    shape_cards = [("XTENSION", "BINTABLE"), ("BITPIX", 8), ("NAXIS", 2), ("NAXIS1", table.itemsize), ("NAXIS2", n)]
    shape_cards += [("PCOUNT", 0), ("GCOUNT", 1), ("TFIELDS", len(stored))]
    return _hdu([*shape_cards, *cards, ("EXTNAME", name)], table.tobytes())


def _image(name: str, data: NDArray[Any], unit: str = "") -> bytes:
    """An image; unsigned integers as FITS stores them, shifted by 2^31."""
    cards: list[tuple[str, Any]] = []
    if data.dtype == np.uint32:
        data = (data ^ np.uint32(1 << 31)).view(np.int32)
        cards = [("BSCALE", 1), ("BZERO", 1 << 31)]
    axes = [(f"NAXIS{k}", size) for k, size in enumerate(reversed(data.shape), start=1)]
    shape = [("XTENSION", "IMAGE"), ("BITPIX", _BITPIX[data.dtype.str[1:]]), ("NAXIS", data.ndim), *axes]
    shape += [("PCOUNT", 0), ("GCOUNT", 1)]
    if unit:
        cards.append(("BUNIT", unit))
    return _hdu([*shape, *cards, ("EXTNAME", name)], data.astype(data.dtype.newbyteorder(">")).tobytes())


def observe(
    source: Rows, fibers: Rows, program: str, rng: np.random.Generator, noise: bool = True
) -> dict[str, dict[str, NDArray[Any]]]:
    """Flux, ivar (1e-17 erg/s/cm2/A) and mask of each arm for the rows of one file.

    The flux is the *total* flux of the source, as if the fibre had caught all of it, so that it integrates to the
    catalogue's; `fibers["uid"]` 0 (sky, stuck) has none. Noise grows with the light of the source.
    Without `noise` the flux is what its mean would be; all else, and what is drawn from `rng`, stays.
    """
    out: dict[str, dict[str, NDArray[Any]]] = {}
    n = len(fibers["uid"])
    real = np.flatnonzero(fibers["uid"] > 0)
    depth = 1.0 / np.sqrt(fibers["COADD_NUMEXP"].astype(np.float64))
    for k, name in enumerate(ARMS):
        a = arm(name)
        truth = np.zeros((n, len(a.wavelength)))
        if len(real):
            truth[real] = 1e17 * sed.spectrum(source, a.wavelength, source["ebv"], a.lsf)
        floor = NOISE[program][k] * a.noise[None, :] * depth[:, None]
        sigma = np.sqrt(floor**2 + 0.04 * NOISE[program][k] * depth[:, None] * np.maximum(truth, 0.0))
        thrown = sigma * rng.standard_normal(truth.shape)
        flux = truth + thrown if noise else truth.copy()
        mask = np.zeros(truth.shape, dtype=np.uint32)
        # cosmic rays: a few pixels of every spectrum
        for i in range(n):
            for hit in rng.integers(0, truth.shape[1] - 3, rng.poisson(2.0)):
                mask[i, hit : hit + 3] |= COSMIC
            if fibers["dirt"][i] == "masked pixels":
                start = int(rng.integers(0, truth.shape[1] - 400))
                mask[i, start : start + 400] |= BADFIBER
        bad = mask > 0
        # DESI leaves the bad values in place; what marks them is ivar 0 and the mask
        flux[bad] += 30.0 * NOISE[program][k]
        out[name] = {
            "flux": flux.astype(np.float32),
            "ivar": np.where(bad, 0.0, 1.0 / sigma**2).astype(np.float32),
            "mask": mask,
        }
    return out


def coadd_hdus(
    fibers: Rows, exposures: Rows, spectra: dict[str, dict[str, NDArray[Any]]], resolution: bool
) -> list[bytes]:
    """The coadd file, HDUs and dtypes as DESI's; without RESOLUTION where it is not asked for."""
    n = len(fibers["TARGETID"])
    hdus = [
        PRIMARY,
        table_hdu("FIBERMAP", desi_columns.FIBERMAP, fibers, n),
        table_hdu("EXP_FIBERMAP", desi_columns.EXP_FIBERMAP, exposures, len(exposures["TARGETID"])),
    ]
    scores: Rows = {"TARGETID": fibers["TARGETID"]}
    for name, s in spectra.items():
        a = arm(name)
        hdus += [
            _image(f"{name}_WAVELENGTH", a.wavelength, "Angstrom"),
            _image(f"{name}_FLUX", s["flux"], "10**-17 erg/(s cm2 Angstrom)"),
            _image(f"{name}_IVAR", s["ivar"], "10**+34 (s2 cm4 Angstrom2) / erg2"),
            _image(f"{name}_MASK", s["mask"]),
        ]
        if resolution:
            hdus.append(_image(f"{name}_RESOLUTION", np.broadcast_to(a.resolution, (n, *a.resolution.shape)).copy()))
        good = s["ivar"] > 0
        scores[f"INTEG_COADD_FLUX_{name}"] = (s["flux"] * good).sum(axis=1)
        scores[f"MEDIAN_COADD_FLUX_{name}"] = np.median(s["flux"], axis=1)
        scores[f"MEDIAN_COADD_SNR_{name}"] = np.median(s["flux"] * np.sqrt(s["ivar"]), axis=1)
    return [*hdus, table_hdu("SCORES", desi_columns.SCORES, scores, n)]


def redrock_hdus(fibers: Rows, exposures: Rows) -> list[bytes]:
    """The redrock file: redshifts, row for row with the coadd."""
    n = len(fibers["TARGETID"])
    return [
        PRIMARY,
        table_hdu("REDSHIFTS", desi_columns.REDSHIFTS, fibers, n),
        table_hdu("FIBERMAP", desi_columns.FIBERMAP, fibers, n),
        table_hdu("EXP_FIBERMAP", desi_columns.EXP_FIBERMAP, exposures, len(exposures["TARGETID"])),
        table_hdu("TSNR2", desi_columns.TSNR2, fibers, n),
    ]


def save(hdus: list[bytes], path: Path) -> None:
    """Write the file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(hdus))
