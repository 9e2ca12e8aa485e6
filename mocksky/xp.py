"""Gaia's BP and RP coefficients of a spectrum: the way there, of which GaiaXPy's `calibrate` is the way back.

Everything is linear in the spectrum, so a band is one matrix of 55 x wavelengths. It is built from the response, the
dispersion and the bases that GaiaXPy carries: photons are counted, spread along the detector, and projected on the
basis functions; a ridge regression on GaiaXPy's own design matrix then adds what `calibrate` would otherwise miss, so
that it returns the spectrum itself.
"""

from __future__ import annotations

import csv
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import splev, splrep

from skycairn.mocksky import sed

F64 = NDArray[np.float64]

N_COEFFICIENTS = 55
BASIS_ID = {"bp": 56, "rp": 57}
MODEL = {"bp": "v375wi", "rp": "v142r"}
RANGE_NM = {"bp": (330.0, 690.0), "rp": (615.0, 1060.0)}
CLOSED_NM = {"bp": (334.0, 643.0), "rp": (635.0, 1020.0)}
"""What `calibrate` uses of each band; beyond it the response falls to nothing and decides nothing."""
_LSF_PIXELS = 1.3
_LINE_SIGMA = 8.0  # Angstrom: lines are widened so that the grid samples them; the instrument is far coarser still
_RIDGE = 1e-4
_PUPIL_M2 = 0.7278
_HC_NM = 6.62607004e-34 * 2.99792458e8 * 1e9  # J nm
_W_M2_NM = 1e-2  # one erg/s/cm2/A in W/m2/nm


@cache
def wavelengths(band: str) -> F64:
    """The wavelengths (nm) at which a band's matrix wants the spectrum."""
    low, high = RANGE_NM[band]
    return np.arange(low, high + 0.25, 0.5)


def _hermite(x: F64) -> F64:
    """Hermite functions 0 to 54, (55, len(x))."""
    out = np.zeros((N_COEFFICIENTS, len(x)))
    out[0] = np.pi**-0.25 * np.exp(-0.5 * x**2)
    out[1] = np.sqrt(2.0) * x * out[0]
    for n in range(2, N_COEFFICIENTS):
        out[n] = np.sqrt(2.0 / n) * x * out[n - 1] - np.sqrt((n - 1) / n) * out[n - 2]
    return out


def _instrument(band: str) -> tuple[F64, F64, dict[str, F64]]:
    """Detector position and response at `wavelengths(band)`, and the bases: GaiaXPy's files, read where they lie.

    Importing GaiaXPy takes three seconds, prints, and sets off warnings of pandas; its files are all that is wanted.
    """
    package = find_spec("gaiaxpy")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the mock sky wants the instrument model of GaiaXPy: pip install 'skycairn[mock]'")
    folder = Path(package.origin).parent / "config"
    at: list[F64] = []
    for kind in ("dispersion", "response"):
        nm, value = np.loadtxt(folder / f"{band}C03_{MODEL[band]}_{kind}.csv", delimiter=",")
        at.append(np.asarray(splev(wavelengths(band), splrep(nm, value, s=0)), dtype=np.float64))
    with (folder / f"{band}C03_{MODEL[band]}_bases.csv").open(newline="") as lines:
        csv.field_size_limit(10_000_000)
        row = next(csv.DictReader(lines))
    bases = {key: np.array(text.strip("()[]").split(","), dtype=np.float64) for key, text in row.items()}
    return at[0], np.maximum(at[1], 0.0), bases


@cache
def matrix(band: str) -> F64:
    """(55, wavelengths): from W/m2/nm at `wavelengths(band)` to the band's coefficients."""
    nm = wavelengths(band)
    position, response, bases = _instrument(band)
    low, high = bases["pwlRangeMin"], bases["pwlRangeMax"]
    scale = (bases["normRangeMax"] - bases["normRangeMin"]) / (high - low)
    transform = bases["transformationMatrix"].reshape(N_COEFFICIENTS, -1)
    inverse = bases["inverseBasesCoefficients"].reshape(N_COEFFICIENTS, -1)
    electrons = _PUPIL_M2 * response * nm / _HC_NM
    # the way back: what `calibrate` multiplies the coefficients by
    used = (nm >= CLOSED_NM[band][0]) & (nm <= CLOSED_NM[band][1])
    back = transform @ inverse @ _hermite(bases["normRangeMin"] + (position[used] - low) * scale) / electrons[used]

    # the way there: electrons, spread over the detector's pixels, projected on the orthonormal basis functions
    step = 0.1
    pixel = np.arange(-5.0, 65.0, step)
    functions = transform @ _hermite(bases["normRangeMin"] + (pixel - low) * scale)
    spread = np.exp(-0.5 * ((pixel[:, None] - position[None, :]) / _LSF_PIXELS) ** 2)
    spread /= spread.sum(axis=0) * step
    there = functions @ spread * (scale * step * np.gradient(nm)) * electrons

    unit = np.median(np.abs(back))
    d = back / unit
    ridge = _RIDGE * np.trace(d @ d.T) / len(d) * np.eye(len(d))
    missed = np.eye(len(nm))[used] - back.T @ there
    return np.asarray(there + np.linalg.solve(d @ d.T + ridge, d) @ missed / unit)


def coefficients(rows: sed.Rows, ebv: NDArray[Any] | float) -> dict[str, F64]:
    """Noise-free coefficients by band, (n, 55) each, of rows of the truth table."""
    return {
        band: sed.spectrum(rows, 10.0 * wavelengths(band), ebv, _LINE_SIGMA) * _W_M2_NM @ matrix(band).T
        for band in BASIS_ID
    }
