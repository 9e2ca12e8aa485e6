"""One spectral energy distribution a source, seen by every survey: fluxes in bands, and the spectrum itself.

Both come from the same templates (`templates`) and lines (`lines`), so that the spectrum integrated through a filter is
the flux in that band. Filter curves are speclite's.

Galactic reddening. Fluxes in the DECam and WISE bands are dimmed by the Legacy Survey's coefficients A/E(B-V), so that
a catalogue's MW_TRANSMISSION undoes it exactly. Spectra, and the wide Gaia bands, are dimmed by the law of Fitzpatrick
(1999) for R = 3.1, times the 0.86 of Schlafly & Finkbeiner (2011) on which those coefficients rest, and times a gentle
correction (4 to 5 %) that makes it meet them at the bands' effective wavelengths. A source's colour moves a band's
effective wavelength: at E(B-V) = 0.1 the two differ by 0.8 % in the median for stars in g, 2 % at most, less in riz.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from skycairn.mocksky import lines, templates

F64 = NDArray[np.float64]
Rows = Mapping[str, NDArray[Any]]

FILTERS = {
    "g": "decam2014-g",
    "r": "decam2014-r",
    "i": "decam2014-i",
    "z": "decam2014-z",
    "w1": "wise2010-W1",
    "w2": "wise2010-W2",
    "gaia_g": "gaiadr3-G",
    "gaia_bp": "gaiadr3-BP",
    "gaia_rp": "gaiadr3-RP",
    "B": "bessell-B",
    "hsc_g": "hsc2017-g",
    "hsc_r": "hsc2017-r2",
    "hsc_i": "hsc2017-i2",
    "hsc_z": "hsc2017-z",
    "hsc_y": "hsc2017-y",
}
"""speclite's name of each band; `B` only scales the luminosity function."""

HSC_EXTINCTION = {"g": 3.24, "r": 2.276, "i": 1.633, "z": 1.263, "y": 1.075}
"""A / E(B-V) in HSC's filters, approximate."""

EXTINCTION = {
    **{"g": 3.214, "r": 2.165, "i": 1.592, "z": 1.211},
    **{"w1": 0.184, "w2": 0.113, "w3": 0.0241, "w4": 0.00910},
}
"""A / E(B-V) of SFD 1998, legacysurvey.org/dr10/catalogs."""

GAIA_ZERO_POINT = {"gaia_g": 25.6873668671, "gaia_bp": 25.3385422158, "gaia_rp": 24.7478955012}
GAIA_ZERO_POINT_AB = {"gaia_g": 25.8010446445, "gaia_bp": 25.3539555559, "gaia_rp": 25.1039837393}
"""Magnitude of one electron a second, Vega and AB (Gaia DR3 documentation, 5.4.1)."""

_LIGHT = 2.99792458e18  # Angstrom / s
_STEP = 0.002
_Z_EDGES = {"galaxy": 1.6, "quasar": 5.2}
_EBV_STEP = 0.1


def rows_of(table: pa.Table) -> dict[str, NDArray[Any]]:
    """The truth table's columns as arrays: `coefficients` (n, 5), `kind` as text, nulls of numbers as NaN."""
    out: dict[str, NDArray[Any]] = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            flat = column.values.slice(column.offset * column.type.list_size, len(column) * column.type.list_size)
            out[name] = flat.to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
        elif pa.types.is_string(column.type):
            out[name] = np.array(column.to_pylist(), dtype=str)
        else:
            out[name] = column.to_numpy(zero_copy_only=False)
    return out


# ---------------------------------------------------------------------------------------------------- reddening


def _fitzpatrick(wavelength: F64) -> F64:
    """A / E(B-V), Fitzpatrick (1999) for R = 3.1; Angstrom, 910 A to the far infrared."""
    r = 3.1
    x = 1e4 / np.atleast_1d(np.asarray(wavelength, dtype=np.float64))
    c2 = -0.824 + 4.717 / r
    c1 = 2.030 - 3.007 * c2

    def ultraviolet(x: F64) -> F64:
        drude = x**2 / ((x**2 - 4.596**2) ** 2 + (0.99 * x) ** 2)
        far = np.maximum(x - 5.9, 0.0)
        return np.asarray(c1 + c2 * x + 3.23 * drude + 0.41 * (0.5392 * far**2 + 0.05644 * far**3) + r)

    knots = 1e4 / np.array([np.inf, 26500.0, 12200.0, 6000.0, 5470.0, 4670.0, 4110.0, 2700.0, 2600.0])
    optical = [
        np.polyval([2.13572e-04, 1.00270, -4.22809e-01], r),
        np.polyval([-7.35778e-05, 1.00216, -5.13540e-02], r),
        np.polyval([-3.32598e-05, 1.00184, 7.00127e-01], r),
        np.polyval([-4.45636e-05, 7.97809e-04, -5.46959e-03, 1.01707, 1.19456], r),
    ]
    values = [0.0, 0.26469 * r / 3.1, 0.82925 * r / 3.1, *optical, *ultraviolet(knots[-2:])]
    spline = CubicSpline(knots, values, bc_type="natural")
    return np.where(x >= 1e4 / 2700.0, ultraviolet(x), spline(np.minimum(x, 1e4 / 2700.0)))


@cache
def _law_knots() -> tuple[F64, F64]:
    """ln wavelength, and what the scaled law must be multiplied by there to meet the catalogue's coefficients."""
    import speclite.filters

    bands = ("g", "r", "i", "z")
    centres = np.array([speclite.filters.load_filter(FILTERS[b]).effective_wavelength.value for b in bands])
    return np.log(centres), np.array([EXTINCTION[b] for b in bands]) / (0.86 * _fitzpatrick(centres))


def extinction(wavelength: F64) -> F64:
    """A(wavelength) / E(B-V) of spectra; Angstrom."""
    at, factor = _law_knots()
    return np.asarray(0.86 * _fitzpatrick(wavelength) * np.interp(np.log(wavelength), at, factor))


# ---------------------------------------------------------------------------------------------------- tables


class Bands(NamedTuple):
    """Weights that turn a spectrum on `wavelength` into maggies, `flux @ weight`; and those for one line."""

    names: tuple[str, ...]
    wavelength: F64
    weight: F64
    "(wavelength, band): response times wavelength times step over the AB norm"
    response: F64
    "(wavelength, band): the same without the step, for lines, whose flux is an integral already"


@cache
def bands() -> Bands:
    """The bands of `FILTERS`, then Gaia's three again behind E(B-V) = 0.1 of dust."""
    import speclite.filters

    wavelength = np.concatenate([np.arange(3000.0, 11_100.0, 3.0), np.arange(25_500.0, 56_000.0, 25.0)])
    step = np.gradient(wavelength)
    responses = []
    names = []
    for name, filter_name in FILTERS.items():
        curve = speclite.filters.load_filter(filter_name)
        response = np.interp(wavelength, curve.wavelength, curve.response, left=0.0, right=0.0)
        norm = np.sum(3631e-23 * _LIGHT / wavelength * response * step)
        responses.append(response * wavelength / norm)
        names.append(name)
    dust = 10.0 ** (-0.4 * _EBV_STEP * extinction(wavelength))
    for name in GAIA_ZERO_POINT:
        responses.append(responses[names.index(name)] * dust)
        names.append(name + "_dusty")
    response = np.stack(responses, axis=1)
    return Bands(tuple(names), wavelength, response * step[:, None], response)


class Table(NamedTuple):
    """Maggies of unit templates and unit lines against redshift."""

    continuum: F64
    "(redshift, template, band); nodes at ln(1+z) = 0.002 k"
    line: F64
    "(redshift, line, band)"
    dimming: F64
    "(redshift): (10 pc / luminosity distance)^2"


def _transmission(observed: F64, z: float) -> F64:
    """Mean of the Lyman alpha forest along the line of sight (Becker et al. 2013 in form), and the Lyman limit."""
    absorber = observed / 1215.67 - 1.0
    tau = np.where((absorber < z) & (absorber > 0), 0.0036 * (1.0 + np.maximum(absorber, 0.0)) ** 3.46, 0.0)
    tau = tau + np.where(observed < 911.75 * (1.0 + z), 1.5, 0.0)
    return np.asarray(np.exp(-tau))


@cache
def _table(kind: str) -> Table:
    basis = templates.galaxies() if kind == "galaxy" else templates.quasars()
    b = bands()
    growth = np.exp(_STEP * np.arange(int(np.ceil(np.log1p(_Z_EDGES[kind]) / _STEP)) + 2))
    continuum = np.empty((len(growth), len(basis.flux), len(b.names)))
    line = np.zeros((len(growth), len(lines.WAVELENGTHS), len(b.names)))
    for k, g in enumerate(growth):
        rest = b.wavelength / g
        flux = np.stack([np.interp(rest, basis.wavelength, t) for t in basis.flux]) / g
        if kind == "quasar":
            flux *= _transmission(b.wavelength, g - 1.0)
        continuum[k] = flux @ b.weight
        if kind == "galaxy":
            at = lines.WAVELENGTHS * g
            for j in range(len(b.names)):
                line[k, :, j] = np.interp(at, b.wavelength, b.response[:, j], left=0.0, right=0.0)
    return Table(continuum, line, dimming(growth - 1.0))


@cache
def _distance() -> tuple[F64, F64]:
    from astropy.cosmology import Planck18

    z = np.geomspace(1e-4, 6.0, 600)
    return np.log(z), np.log(np.asarray(Planck18.luminosity_distance(z).to_value("pc")))


def dimming(z: F64) -> F64:
    """(10 pc / luminosity distance)^2, Planck 2018."""
    at, distance = _distance()
    return np.asarray(np.exp(-2.0 * (np.interp(np.log(np.maximum(z, 1e-4)), at, distance) - np.log(10.0))))


def amplitude(kind: str, rows: Rows) -> F64:
    """What multiplies the mixed templates: 10^log_mass for galaxies, 1 for quasars, (R / distance)^2 for stars."""
    if kind == "galaxy":
        return np.asarray(10.0 ** np.asarray(rows["log_mass"], dtype=np.float64))
    if kind == "quasar":
        return np.ones(len(rows["z"]))
    radius = star_radius(np.asarray(rows["teff"], np.float64), np.asarray(rows["logg"], np.float64))
    # solar radius over parsec, times parallax in arcsec
    return np.asarray((radius * 2.25461e-8 * np.asarray(rows["parallax"], np.float64) * 1e-3) ** 2)


_MS_TEFF = np.array([2500, 2800, 3100, 3400, 3800, 4400, 5200, 5772, 6500, 7500, 9800, 15000, 30000, 40000], np.float64)
_MS_MASS = np.array([0.08, 0.11, 0.18, 0.36, 0.57, 0.70, 0.87, 1.0, 1.3, 1.65, 2.3, 4.2, 14.0, 25.0])


def star_mass(teff: F64, logg: F64) -> F64:
    """Solar masses: main sequence by temperature, giants 1.1, white dwarfs 0.6."""
    main = np.exp(np.interp(np.log(teff), np.log(_MS_TEFF), np.log(_MS_MASS)))
    return np.where(logg > 6.0, 0.6, np.where(logg < 3.8, 1.1, main))


def star_radius(teff: F64, logg: F64) -> F64:
    """Solar radii, from gravity and mass."""
    return np.asarray(np.sqrt(star_mass(teff, logg) * 10.0 ** (4.438 - logg)))


def _star_weights(rows: Rows) -> tuple[NDArray[np.int64], F64]:
    """Index of the eight surrounding nodes in `templates.stars()` and their weights, both (n, 8)."""
    axes = (
        (np.log(templates.TEFF), np.log(np.asarray(rows["teff"], np.float64))),
        (templates.FEH, np.asarray(rows["feh"], np.float64)),
        (templates.LOGG, np.asarray(rows["logg"], np.float64)),
    )
    index = np.zeros((len(axes[0][1]), 1), dtype=np.int64)
    weight = np.ones((len(axes[0][1]), 1))
    for nodes, value in axes:
        value = np.clip(value, nodes[0], nodes[-1])
        low = np.clip(np.searchsorted(nodes, value, side="right") - 1, 0, len(nodes) - 2)
        part = (value - nodes[low]) / (nodes[low + 1] - nodes[low])
        index = (index[:, :, None] * len(nodes) + np.stack([low, low + 1], 1)[:, None, :]).reshape(len(value), -1)
        weight = (weight[:, :, None] * np.stack([1.0 - part, part], 1)[:, None, :]).reshape(len(value), -1)
    return index, weight


@cache
def _star_table() -> F64:
    basis, b = templates.stars(), bands()
    return np.stack([np.interp(b.wavelength, basis.wavelength, row) for row in basis.flux]) @ b.weight


@cache
def _line_anchors() -> F64:
    basis = templates.galaxies()
    near = [np.abs(basis.wavelength - at) < 60.0 for at in (3500.0, 6565.0)]
    return np.stack([basis.flux[:, n].mean(axis=1) for n in near], axis=1)


def _galaxy_lines(rows: Rows) -> F64:
    """Strength of each line at rest per unit of amplitude, (n, lines)."""
    mix = np.asarray(rows["coefficients"], np.float64) @ _line_anchors()
    mass = np.asarray(rows["log_mass"], np.float64)
    return lines.line_fluxes(mix[:, 0], np.maximum(mix[:, 1], 1e-300), mass, rows["line_seed"])


def _maggies(kind: str, rows: Rows) -> F64:
    """Unreddened maggies, (n, len(bands().names))."""
    if kind == "star":
        index, weight = _star_weights(rows)
        return np.asarray(np.einsum("nk,nkb->nb", weight, _star_table()[index]) * amplitude(kind, rows)[:, None])
    table = _table(kind)
    z = np.asarray(rows["z"], np.float64)
    at = np.log1p(z) / _STEP
    low = np.floor(at).astype(np.int64)
    if len(z) and (low.min() < 0 or low.max() > len(table.continuum) - 2):
        raise ValueError(f"{kind}: redshifts {z.min():.4f} to {z.max():.4f} found, wanted 0 to {_Z_EDGES[kind]}")
    part = at - low
    coefficients = np.asarray(rows["coefficients"], np.float64)
    strength = _galaxy_lines(rows) if kind == "galaxy" else None
    out = np.zeros((len(z), len(bands().names)))
    for node, weight in ((low, 1.0 - part), (low + 1, part)):
        flux = np.einsum("nk,nkb->nb", coefficients, table.continuum[node])
        if strength is not None:
            flux += np.einsum("nk,nkb->nb", strength, table.line[node])
        out += weight[:, None] * flux
    return np.asarray(out * (amplitude(kind, rows) * dimming(z))[:, None])


def maggies(rows: Rows, chunk: int = 20_000) -> dict[str, F64]:
    """Unreddened AB maggies of rows of any kind, by band of `bands()`. Needs kind and the intrinsic columns."""
    names = bands().names
    kinds = np.asarray(rows["kind"])
    out = np.full((len(kinds), len(names)), np.nan)
    needed = ("z", "log_mass", "coefficients", "line_seed", "teff", "logg", "feh", "parallax")
    for kind in ("galaxy", "star", "quasar"):
        where = np.flatnonzero(kinds == kind)
        for start in range(0, len(where), chunk):
            part = where[start : start + chunk]
            out[part] = _maggies(kind, {name: np.asarray(rows[name])[part] for name in needed})
    return {name: out[:, k] for k, name in enumerate(names)}


_WISE_AB = {"w2": 3.339, "w3": 5.174, "w4": 6.620}
"""AB less Vega magnitudes (Jarrett et al. 2011)."""
_WIDTHS = np.log([0.3, 3.0, 20.0, 100.0])
_W2_W3 = np.array([0.6, 1.6, 3.3, 4.2])


def warm_dust(rows: Rows, w2: F64) -> dict[str, F64]:
    """`w3` and `w4` in the unit of `w2`, unreddened, by colours that no template here reaches.

    Vega colours W2 - W3 and W3 - W4 of the loci of Wright et al. (2010, figure 12), moved by no redshift: stars 0 and
    0; quasars 3.0 and 2.5; galaxies from 0.6 (no H alpha) to 4.2 (100 A of it) and 2.0. Scatter 0.3 and 0.25 mag, of
    each row's own.
    """
    kinds = np.asarray(rows["kind"])
    first, second = np.zeros(len(kinds)), np.zeros(len(kinds))
    scatter = lines.normals(np.asarray(rows["line_seed"]), 9)[:, 7:] * (0.3, 0.25)
    quasar, galaxy = kinds == "quasar", kinds == "galaxy"
    first[quasar], second[quasar] = 3.0, 2.5
    some = {name: np.asarray(rows[name])[galaxy] for name in ("coefficients", "log_mass", "line_seed")}
    red = np.maximum((np.asarray(some["coefficients"], np.float64) @ _line_anchors())[:, 1], 1e-300)
    width = _galaxy_lines(some)[:, list(lines.LINES).index("Halpha")] / red
    first[galaxy], second[galaxy] = np.interp(np.log(width), _WIDTHS, _W2_W3), 2.0
    dusty = (kinds != "star")[:, None]
    colour = np.stack([first, second], axis=1) + np.where(dusty, scatter, 0.0)
    ab2, ab3, ab4 = _WISE_AB.values()
    w3 = w2 * 10.0 ** (0.4 * (colour[:, 0] + ab2 - ab3))
    return {"w3": w3, "w4": w3 * 10.0 ** (0.4 * (colour[:, 1] + ab3 - ab4))}


def photometry(rows: Rows, ebv: NDArray[Any] | float) -> dict[str, F64]:
    """What the surveys see above the atmosphere, behind E(B-V) of Galactic dust.

    `flux_{g,r,i,z,w1,w2,w3,w4}`: AB nanomaggies, DECam and WISE; `gaia_{g,bp,rp}`: Vega magnitudes of Gaia DR3.
    """
    flux = maggies(rows)
    flux |= warm_dust(rows, flux["w2"])
    dust = np.broadcast_to(np.asarray(ebv, np.float64), flux["g"].shape)
    out = {f"flux_{b}": 1e9 * flux[b] * 10.0 ** (-0.4 * a * dust) for b, a in EXTINCTION.items()}
    for band, zero in GAIA_ZERO_POINT.items():
        seen = flux[band] * (flux[band + "_dusty"] / flux[band]) ** (dust / _EBV_STEP)
        out[band] = -2.5 * np.log10(seen) + zero - GAIA_ZERO_POINT_AB[band]
    return out


# ---------------------------------------------------------------------------------------------------- spectra


def spectrum(rows: Rows, wavelength: F64, ebv: NDArray[Any] | float, lsf_sigma: NDArray[Any] | float = 0.0) -> F64:
    """Flux density of each source, (n, len(wavelength)), erg/s/cm2/A; vacuum Angstrom, increasing.

    `lsf_sigma` (Angstrom, number or one a pixel) widens the narrow emission lines as a spectrograph does; the templates
    themselves are broader than one (300 km/s).
    """
    wavelength = np.asarray(wavelength, dtype=np.float64)
    kinds = np.asarray(rows["kind"])
    out = np.zeros((len(kinds), len(wavelength)))
    for kind in ("galaxy", "star", "quasar"):
        where = np.flatnonzero(kinds == kind)
        if len(where):
            needed = ("z", "log_mass", "coefficients", "line_seed", "teff", "logg", "feh", "parallax")
            part = {name: np.asarray(rows[name])[where] for name in needed}
            out[where] = _spectra(kind, part, wavelength, lsf_sigma)
    dust = np.broadcast_to(np.asarray(ebv, np.float64), kinds.shape)
    law = np.maximum(extinction(wavelength), 0.0)
    return np.asarray(out * np.exp(-0.4 * np.log(10.0) * dust[:, None] * law))


def _spectra(kind: str, rows: Rows, wavelength: F64, lsf_sigma: NDArray[Any] | float) -> F64:
    z = np.asarray(rows["z"], np.float64)
    if kind == "star":
        basis = templates.stars()
        index, weight = _star_weights(rows)
        mixed = np.stack([w @ basis.flux[i] for i, w in zip(index, weight, strict=True)])
        scale = amplitude(kind, rows)
    else:
        basis = templates.galaxies() if kind == "galaxy" else templates.quasars()
        mixed = np.asarray(rows["coefficients"], np.float64) @ basis.flux
        scale = amplitude(kind, rows) * dimming(z) / (1.0 + z)
    out = np.empty((len(z), len(wavelength)))
    for k in range(len(z)):
        out[k] = np.interp(wavelength / (1.0 + z[k]), basis.wavelength, mixed[k])
        if kind == "quasar":
            out[k] *= _transmission(wavelength, z[k])
    if kind == "galaxy":
        centre = lines.WAVELENGTHS[None, :] * (1.0 + z[:, None])
        speed = lines.velocity_dispersion(np.asarray(rows["log_mass"], np.float64), rows["line_seed"])
        blur = np.interp(centre, wavelength, np.broadcast_to(np.asarray(lsf_sigma, np.float64), wavelength.shape))
        sigma = np.hypot(centre * speed[:, None] / lines.LIGHT_KM_S, blur)
        lines.paint(out, wavelength, centre, _galaxy_lines(rows) * (1.0 + z[:, None]), sigma)
    return np.asarray(out * scale[:, None])
