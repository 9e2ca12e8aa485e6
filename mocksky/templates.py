"""Rest-frame spectra that the mock sky's sources are mixed from: galaxies, quasars and stars.

Galaxies: the five kcorrect templates (Blanton & Roweis 2007) that skypy carries, without emission lines. Quasars: five
components written here after Vanden Berk et al. 2001. Stars: an analytic spectrum on a grid of temperature,
metallicity and gravity; between the nodes a star's spectrum *is* the linear mix of its neighbours, so photometry can be
mixed alike.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray
from scipy.special import expit

F64 = NDArray[np.float64]

_HC_K = 1.438776877e8  # h c / k in Angstrom K
_SIGMA = 5.670374e-5  # Stefan-Boltzmann, erg/s/cm2/K^4


class Basis(NamedTuple):
    """Template spectra on one increasing grid of vacuum wavelengths (Angstrom)."""

    wavelength: F64
    flux: F64
    "(template, wavelength), erg/s/cm2/A"


@cache
def galaxies() -> Basis:
    """Five templates: flux at 10 pc of one solar mass formed. 600 A to 12 micron, 300 km/s resolution."""
    # the file is read where it lies: importing skypy sets off a warning of its own about astropy
    package = find_spec("skypy")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the mock sky wants skypy's galaxy templates: pip install 'skycairn[mock]'")
    with fits.open(Path(package.origin).parent / "data" / "kcorrect" / "k_nmf_derived.default.fits") as table:
        wavelength = table[11].data.astype(np.float64)
        # with dust, without the emission lines, which `lines` paints at the resolution of a spectrograph
        flux = np.maximum(table[5].data.astype(np.float64), 0.0)
    near = wavelength < 120_000.0
    return Basis(wavelength[near], flux[:, near])


def _planck(wavelength: F64, kelvin: F64 | float) -> F64:
    """Pi times the Planck function, erg/s/cm2/A, at the surface."""
    lam_cm = wavelength * 1e-8
    hc2 = 2 * np.pi * 6.62607015e-27 * 2.99792458e10**2
    exponent = np.minimum(_HC_K / (wavelength * kelvin), 600.0)
    return np.asarray(hc2 / lam_cm**5 / np.expm1(exponent) * 1e-8)


_BROAD = (  # rest wavelength, equivalent width, sigma in km/s
    (1033.8, 9.0, 2500.0),
    (1215.67, 75.0, 2800.0),
    (1240.14, 15.0, 3000.0),
    (1305.42, 2.0, 2000.0),
    (1398.33, 8.0, 2700.0),
    (1549.06, 24.0, 2600.0),
    (1640.42, 3.0, 2500.0),
    (1857.4, 3.0, 2500.0),
    (1908.73, 21.0, 3000.0),
    (2798.75, 32.0, 2000.0),
    (4102.89, 5.0, 2000.0),
    (4341.68, 12.0, 2000.0),
    (4862.68, 46.0, 1900.0),
    (4960.30, 3.5, 350.0),
    (5008.24, 13.0, 350.0),
    (3728.5, 1.6, 350.0),
    (3869.86, 1.4, 400.0),
    (5877.3, 5.0, 2200.0),
    (6564.61, 190.0, 1800.0),
)


@cache
def quasars() -> Basis:
    """Five components: a blue and a red power law, broad lines, iron with the Balmer continuum, hot dust and host.

    The power laws and the sum of lines are scaled to a continuum of 1 at 3000 A.
    """
    optical = np.exp(np.arange(np.log(900.0), np.log(10_000.0), 3e-4))
    wavelength = np.concatenate([np.arange(400.0, 900.0, 2.0), optical, np.geomspace(10_010.0, 120_000.0, 1500)])
    x = wavelength / 3000.0
    blue = np.where(wavelength > 1100.0, x**-1.75, (1100 / 3000) ** -1.75 * (wavelength / 1100.0) ** -0.4)
    red = np.where(wavelength > 1100.0, x**-1.15, (1100 / 3000) ** -1.15 * (wavelength / 1100.0) ** 0.2)
    lines = np.zeros_like(wavelength)
    for centre, width, sigma_km_s in _BROAD:
        sigma = centre * sigma_km_s / 299792.458
        gauss = np.exp(-0.5 * ((wavelength - centre) / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma)
        lines += width * (centre / 3000.0) ** -1.5 * gauss
    iron = sum(
        h * np.exp(-0.5 * ((wavelength - c) / s) ** 2)
        for c, s, h in ((2500.0, 110.0, 0.28), (2380.0, 60.0, 0.12), (4570.0, 80.0, 0.05), (5250.0, 90.0, 0.035))
    )
    balmer = 0.22 * np.exp(-0.5 * ((wavelength - 3150.0) / 380.0) ** 2)
    dust = _planck(wavelength, 1250.0)
    host = _planck(wavelength, 4300.0) * (1.0 - 0.5 * _step(wavelength, 4000.0, 40.0))
    dust, host = dust / dust.max(), host / host.max()
    return Basis(wavelength, np.stack([blue, red, lines, iron + balmer, 0.25 * dust + 0.08 * host]))


TEFF: F64 = np.geomspace(2500.0, 40_000.0, 64)
FEH: F64 = np.array([-2.5, -1.0, 0.5])
LOGG: F64 = np.array([1.0, 4.5, 8.0])
"""Nodes of the grid of stars."""

_METALS = (  # wavelength in vacuum, sigma A, depth at solar metallicity and 5000 K, grows in dwarfs
    (3934.78, 7.0, 0.75, 0.0),
    (3969.59, 6.5, 0.65, 0.0),
    (4227.9, 3.0, 0.35, 0.4),
    (4305.6, 9.0, 0.35, 0.0),
    (4384.8, 4.0, 0.2, 0.0),
    (5176.6, 12.0, 0.35, 0.5),
    (5271.0, 6.0, 0.18, 0.0),
    (5891.58, 1.6, 0.45, 0.5),
    (5897.56, 1.5, 0.4, 0.5),
    (8500.4, 2.2, 0.35, -0.3),
    (8544.4, 2.6, 0.5, -0.3),
    (8664.5, 2.4, 0.45, -0.3),
)
_BALMER = (3798.98, 3836.47, 3890.15, 3971.20, 4102.89, 4341.68, 4862.68, 6564.61)
_TIO = (
    (4761.0, 90.0),
    (4954.0, 110.0),
    (5448.0, 120.0),
    (5847.0, 130.0),
    (6158.0, 130.0),
    (6681.0, 160.0),
    (7053.0, 190.0),
    (7589.0, 200.0),
    (8206.0, 150.0),
    (8432.0, 150.0),
    (8859.0, 180.0),
    (9209.0, 150.0),
)


@cache
def stars() -> Basis:
    """Flux at the surface of a star on the nodes of `TEFF` x `FEH` x `LOGG` (in C order), 1000 A to 7 micron.

    Planck with line blanketing, Balmer jump and lines, metal lines and TiO bands; each holds sigma Teff^4.
    """
    wavelength = np.concatenate(
        [
            np.arange(1000.0, 3000.0, 5.0),
            np.exp(np.arange(np.log(3000.0), np.log(11_000.0), 1.2e-4)),
            np.geomspace(11_005.0, 70_000.0, 800),
        ]
    )
    shapes = _Shapes.on(wavelength)
    rows = [_star(wavelength, shapes, t, f, g) for t in TEFF for f in FEH for g in LOGG]
    return Basis(wavelength, np.stack(rows))


def _step(w: F64, edge: float, width: float) -> F64:
    """1 well below the edge, 0 well above it."""
    return np.asarray(expit((edge - w) / width))


class _Shapes(NamedTuple):
    """What all stars share: the shapes of lines, bands and edges, on the stars' wavelengths."""

    blue: F64
    bluer: F64
    edge: F64
    "of the Balmer jump"
    balmer: dict[float, list[F64]]
    "by gravity"
    metals: list[F64]
    tio: list[F64]
    infrared: NDArray[np.bool_]

    @classmethod
    def on(cls, w: F64) -> _Shapes:
        """On these wavelengths."""
        return cls(
            _step(w, 4550.0, 220.0),
            1.0 + 1.2 * _step(w, 3900.0, 60.0),
            _step(w, 3690.0, 18.0),
            {g: [1.0 + ((w - c) / width) ** 2 for c in _BALMER] for g, width in ((1.0, 5.0), (4.5, 11.0), (8.0, 38.0))},
            [np.exp(-0.5 * ((w - centre) / sigma) ** 2) for centre, sigma, _, _ in _METALS],
            [
                np.where(w >= head, np.exp(-(w - head) / length), np.exp(-0.5 * ((w - head) / 5.0) ** 2))
                for head, length in _TIO
            ],
            (w > 11_000) * (w < 25_000),
        )


def _star(w: F64, shapes: _Shapes, teff: float, feh: float, logg: float) -> F64:
    metal = 10.0 ** (0.45 * feh)
    # the slope of an A star's Paschen continuum is that of a hotter black body
    colour = teff * (1.0 + 0.45 * np.clip((teff - 7000.0) / 2500.0, 0.0, 1.0))
    colour *= 1.0 + 0.08 * np.exp(-0.5 * ((teff - 6400.0) / 900.0) ** 2)
    # and the light of an M star comes from below its molecules
    colour *= 1.0 - 0.14 * np.clip((4000.0 - teff) / 1000.0, 0.0, 1.0)
    flux = _planck(w, colour)
    cool = np.clip((8500.0 - teff) / 3500.0, 0.0, 1.6)
    blanket = 0.18 * cool**2 * metal
    flux = flux * np.exp(-blanket * shapes.blue * shapes.bluer)
    hydrogen = np.exp(-0.5 * (np.log(teff / 9300.0) / 0.28) ** 2)
    jump = 0.85 * hydrogen * (0.5 if logg > 6 else 1.0)
    flux = flux * np.exp(-jump * shapes.edge)
    depth = 0.65 * hydrogen
    for k, profile in enumerate(shapes.balmer[float(logg)]):
        flux = flux * (1.0 - depth * (0.6 + 0.05 * k) / profile)
    if logg < 6:  # a white dwarf shows hydrogen alone
        for (_, _, at_solar, dwarf), profile in zip(_METALS, shapes.metals, strict=True):
            strength = at_solar * metal * np.clip((7800.0 - teff) / 2800.0, 0.03, 1.0)
            strength *= 1.0 + dwarf * (0.5 if logg > 3 else -0.3)
            flux = flux * (1.0 - min(strength, 0.9) * profile)
        tio = np.clip((4150.0 - teff) / 900.0, 0.0, 1.5) * (0.7 + 0.3 * metal)
        for band in shapes.tio:
            flux = flux * (1.0 - 0.42 * tio / (1 + 0.5 * tio) * band)
        if teff < 4200:  # water and molecules in the near infrared carry the light away from the red
            flux = flux * (1.0 + 0.25 * tio * shapes.infrared)
    return np.asarray(flux * (_SIGMA * teff**4 / np.trapezoid(flux, w)))
