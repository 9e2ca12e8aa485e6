"""Draw the intrinsic properties of galaxies, stars and quasars, down to a magnitude limit.

Galaxies: luminosity functions and template weights of blue and red galaxies after Tortorelli et al. 2020, sizes after
Shen et al. 2003. Stars: main sequence, giants and white dwarfs in a thin disk, thick disk and halo at high latitude.
Quasars: number counts and redshifts like those of DESI's targets. Magnitude limits are before Galactic reddening.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skycairn.mocksky import sed, templates

F64 = NDArray[np.float64]
Rows = dict[str, NDArray[Any]]

MORPHOLOGY = (
    "bulge_fraction",
    "bulge_n",
    "bulge_radius",
    "disk_radius",
    "axis_ratio",
    "position_angle",
    "bar_fraction",
    "bar_radius",
    "bar_axis_ratio",
    "bar_angle",
    "arm_amplitude",
    "n_arms",
    "arm_pitch",
    "arm_phase",
)


def draw(rng: np.random.Generator, kind: str, n: int, **limits: float) -> Rows:
    """Intrinsic columns of the truth table for `n` sources of a kind, in random order.

    Limits: galaxy `z_mag_max` (21.8); star `gaia_g_max` (20.5), `bright_fraction` (0) of them drawn to
    `bright_gaia_g_max` (17.0) instead; quasar `r_mag_max` (22.0). Columns that a kind does not have are NaN (log_mass,
    teff, logg, feh) or 0.
    """
    makers: dict[str, Callable[..., Rows]] = {"galaxy": _galaxies, "star": _stars, "quasar": _quasars}
    if kind not in makers:
        raise ValueError(f"there is no kind {kind!r}; choose one of {', '.join(makers)}")
    rows = _blank(kind, n) | {"line_seed": rng.integers(0, 1 << 62, n)}
    return rows | makers[kind](rng, n, **limits) if n else rows


def _blank(kind: str, n: int) -> Rows:
    rows: Rows = {"kind": np.full(n, kind, dtype="U6")}
    rows |= {name: np.zeros(n) for name in ("z", "pmra", "pmdec", "parallax")}
    rows |= {name: np.full(n, np.nan, np.float32) for name in ("log_mass", "teff", "logg", "feh")}
    rows["coefficients"] = np.zeros((n, 5), np.float32)
    rows["line_seed"] = np.zeros(n, np.int64)
    rows |= {name: np.zeros(n, np.float32) for name in MORPHOLOGY}
    rows["axis_ratio"][:] = 1.0
    return rows


# ---------------------------------------------------------------------------------------------------- galaxies

# M*_B = a z + b, phi* = p exp(q z) per Mpc^3, alpha; then the Dirichlet concentrations at z = 0 and z = 1 and the
# templates' weights (Tortorelli et al. 2020 in the form of Herbel et al. 2017, as in skypy's own galaxy example)
_BLUE: dict[str, Any] = {
    "m_star": (-0.9408582, -20.40492365),
    "phi_star": (0.00370253, -0.10268436),
    "alpha": -1.3,
    "alpha0": (2.079, 3.524, 1.917, 1.992, 2.536),
    "alpha1": (2.265, 3.862, 1.921, 1.685, 2.480),
    "weight": (3.47e09, 3.31e06, 2.13e09, 1.64e10, 1.01e09),
}
_RED: dict[str, Any] = {
    "m_star": (-0.70798041, -20.37196157),
    "phi_star": (0.0035097, -0.70596888),
    "alpha": -0.5,
    "alpha0": (2.461, 2.358, 2.568, 2.268, 2.402),
    "alpha1": (2.410, 2.340, 2.200, 2.540, 2.464),
    "weight": (3.84e09, 1.57e06, 3.91e08, 4.66e10, 3.03e07),
}
_Z_MAX = 1.5


def _galaxies(rng: np.random.Generator, n: int, z_mag_max: float = 21.8) -> Rows:
    from astropy.cosmology import Planck18

    z_grid = np.linspace(0.004, _Z_MAX, 400)
    volume = np.asarray(Planck18.differential_comoving_volume(z_grid).value)
    modulus = -2.5 * np.log10(sed.dimming(z_grid))
    # faint enough that no colour makes a galaxy beyond this limit brighter than z_mag_max
    faintest = np.clip(z_mag_max - modulus + 2.2, -24.5, -12.5)
    steps = np.linspace(-25.5, -12.5, 1301)
    counts, tables = [], []
    for family in (_BLUE, _RED):
        m_star = family["m_star"][0] * z_grid + family["m_star"][1]
        x = 10.0 ** (-0.4 * (steps[None, :] - m_star[:, None]))
        phi = 0.4 * np.log(10) * family["phi_star"][0] * np.exp(family["phi_star"][1] * z_grid)[:, None]
        phi = phi * x ** (family["alpha"] + 1.0) * np.exp(-x)
        phi[steps[None, :] > faintest[:, None]] = 0.0
        cumulative = np.cumsum(phi, axis=1)
        tables.append(cumulative)
        counts.append(cumulative[:, -1] * volume)
    share = np.array([c.sum() for c in counts])
    kept: list[Rows] = []
    have, ask = 0, int(n * 2.5) + 200
    while have < n:
        red = rng.random(ask) < share[1] / share.sum()
        z, magnitude = np.empty(ask), np.empty(ask)  # absolute, B
        coefficients = np.empty((ask, 5))
        for which, family in enumerate((_BLUE, _RED)):
            at = np.flatnonzero(red == bool(which))
            run = np.cumsum(counts[which])
            node = np.searchsorted(run, rng.random(len(at)) * run[-1])
            z[at] = np.clip(z_grid[node] + (rng.random(len(at)) - 0.5) * (z_grid[1] - z_grid[0]), 0.003, _Z_MAX)
            table = tables[which]
            # one global search: each row of the table is lifted above the one before it
            lifted = (table / table[:, -1:] + np.arange(len(z_grid))[:, None]).ravel()
            m = np.searchsorted(lifted, node + rng.random(len(at)) * (1 - 1e-12)) - node * len(steps)
            magnitude[at] = steps[np.minimum(m, len(steps) - 1)] - rng.random(len(at)) * 0.01
            slope = np.clip(z[at], 0, 1.5)[:, None]
            alpha = np.asarray(family["alpha0"]) ** (1 - slope) * np.asarray(family["alpha1"]) ** slope
            gamma = rng.standard_gamma(alpha)
            coefficients[at] = gamma / gamma.sum(axis=1, keepdims=True) * np.asarray(family["weight"])
        rows = _blank("galaxy", ask) | {"line_seed": rng.integers(0, 1 << 62, ask)}
        mass = coefficients.sum(axis=1)
        rows["coefficients"] = (coefficients / mass[:, None]).astype(np.float32)
        rows["log_mass"] = np.full(ask, 10.0, np.float32)
        at_rest = rows | {"z": np.zeros(ask)}
        absolute = -2.5 * np.log10(sed.maggies(at_rest)["B"] / sed.dimming(np.zeros(ask)))
        rows["log_mass"] = (10.0 - 0.4 * (magnitude - absolute)).astype(np.float32)
        rows["z"] = z
        seen = sed.maggies(rows)["z"]
        keep = np.flatnonzero(seen > 10.0 ** (-0.4 * z_mag_max))
        chosen = {name: values[keep] for name, values in rows.items()}
        chosen |= _morphology(rng, chosen, red[keep])
        kept.append(chosen)
        have += len(keep)
    return {name: np.concatenate([k[name] for k in kept])[:n] for name in kept[0]}


def _morphology(rng: np.random.Generator, rows: Rows, red: NDArray[np.bool_]) -> Rows:
    from astropy.cosmology import Planck18

    n = len(red)
    mass, z = rows["log_mass"].astype(np.float64), rows["z"]
    grid = np.linspace(0.002, _Z_MAX + 0.1, 500)
    kpc_per_arcsec = np.interp(z, grid, np.asarray(Planck18.kpc_proper_per_arcmin(grid).value) / 60.0)
    # Shen et al. 2003: late types R ~ M^0.14 (1 + M/M0)^0.25, early types R ~ M^0.56
    late = 0.1 * 10 ** (0.14 * mass) * (1.0 + 10 ** (mass - 10.6)) ** 0.25
    early = 2.88e-6 * 10 ** (0.56 * mass)
    size_kpc = np.where(red, np.maximum(early, 0.6), late) * np.exp(0.35 * rng.standard_normal(n)) * (1 + z) ** -0.7
    size = np.clip(size_kpc / kpc_per_arcsec, 0.08, 30.0)
    bulge = np.where(red, rng.beta(5, 2, n), rng.beta(1.3, 5, n))
    pure = red & (rng.random(n) < 0.45)
    bulge[pure] = 1.0
    index = np.where(red, np.clip(rng.normal(3.6, 0.8, n), 1.5, 6.0), np.clip(rng.normal(2.2, 0.8, n), 0.7, 4.0))
    # how face-on: a thin disk seen at random; ellipticals are never thin
    cos_i = rng.random(n)
    disk_axis = np.sqrt(cos_i**2 * (1 - 0.18**2) + 0.18**2)
    axis = np.where(pure, np.clip(rng.normal(0.75, 0.15, n), 0.35, 1.0), disk_axis)
    spiral = ~red & (mass > 9.2) & (axis > 0.3)
    barred = (bulge < 0.8) & (axis > 0.35) & (mass > 9.5) & (rng.random(n) < 0.35)
    disk = np.where(pure, 0.0, size * np.where(red, 1.15, 1.05))
    bar_length = disk * rng.uniform(0.35, 0.9, n)
    return {
        name: np.asarray(values, dtype=np.float32)
        for name, values in {
            "bulge_fraction": bulge,
            "bulge_n": index,
            "bulge_radius": np.where(pure, size, size * rng.uniform(0.15, 0.45, n)),
            "disk_radius": disk,
            "axis_ratio": axis,
            "position_angle": rng.uniform(0.0, 180.0, n),
            "bar_fraction": np.where(barred, rng.uniform(0.05, 0.25, n), 0.0) * (1.0 - bulge),
            "bar_radius": np.where(barred, bar_length, 0.0),
            "bar_axis_ratio": np.where(barred, rng.uniform(0.2, 0.45, n), 1.0),
            "bar_angle": np.where(barred, rng.uniform(0.0, 180.0, n), 0.0),
            "arm_amplitude": np.where(spiral, rng.beta(2.0, 2.0, n) * 0.9, 0.0),
            "n_arms": np.where(spiral, rng.choice([2, 2, 2, 3, 4], n), 0),
            "arm_pitch": np.where(spiral, rng.uniform(10.0, 30.0, n), 0.0),
            "arm_phase": np.where(spiral, rng.uniform(0.0, 2 * np.pi, n), 0.0),
        }.items()
    }


# ---------------------------------------------------------------------------------------------------- stars

# scale (pc) of the density along a line of sight at 50 degrees of latitude, local share, velocity spread, lag, [Fe/H]
_POPULATIONS = (
    (390.0, 0.88, 32.0, 12.0, -0.1, 0.2),
    (1200.0, 0.117, 55.0, 45.0, -0.6, 0.3),
    (5000.0, 0.003, 130.0, 210.0, -1.5, 0.4),
)
_DISTANCE = np.geomspace(8.0, 60_000.0, 500)


def _stars(
    rng: np.random.Generator,
    n: int,
    gaia_g_max: float = 20.5,
    bright_fraction: float = 0.0,
    bright_gaia_g_max: float = 17.0,
) -> Rows:
    n_bright = round(n * bright_fraction)
    parts = [_stars_to(rng, n - n_bright, gaia_g_max), _stars_to(rng, n_bright, bright_gaia_g_max)]
    order = rng.permutation(n)
    return {name: np.concatenate([p[name] for p in parts])[order] for name in parts[0]}


def _stars_to(rng: np.random.Generator, n: int, limit: float) -> Rows:
    """Stars brighter than the limit: types are weighed by the number of stars in the volume where they can be seen."""
    pool = max(20_000, 2 * n)
    which = rng.choice(3, pool, p=[p[1] for p in _POPULATIONS])
    which[: pool // 3] = rng.integers(0, 3, pool // 3)  # enough of the rare ones; their share is in the weight
    share = np.array([p[1] for p in _POPULATIONS])
    weight = share[which] / (np.bincount(which, minlength=3) / pool)[which]
    feh = np.clip(
        np.array([p[4] for p in _POPULATIONS])[which]
        + np.array([p[5] for p in _POPULATIONS])[which] * rng.standard_normal(pool),
        -2.5,
        0.5,
    )
    # Kroupa (2001) masses; old populations have lost their heavy stars to the giant branch
    mass = np.exp(rng.uniform(np.log(0.08), np.log(3.0), pool))
    imf = np.where(mass < 0.5, mass**-0.3, 0.5 * mass**-1.3)
    turn_off = np.array([1.7, 0.95, 0.85])[which]
    weight = weight * np.where(mass < turn_off, imf, 0.02 * imf)
    main = np.exp(np.interp(np.log(mass), np.log(sed._MS_MASS), np.log(sed._MS_TEFF)))
    radius = np.interp(
        mass, [0.08, 0.18, 0.36, 0.57, 0.87, 1.0, 1.3, 2.3, 4.0], [0.11, 0.2, 0.36, 0.55, 0.82, 1, 1.4, 2, 3]
    )
    teff = main * np.exp(0.012 * rng.standard_normal(pool)) * 10 ** (-0.02 * feh)
    logg = 4.438 + np.log10(
        sed.star_mass(teff, np.full(pool, 4.4)) / (radius * np.exp(0.05 * rng.standard_normal(pool))) ** 2
    )
    logg = np.maximum(logg, 3.85)
    kind = rng.random(pool)
    giant, dwarf = kind < 0.10, kind > 0.94
    logg[giant] = rng.uniform(0.8, 3.5, giant.sum())
    teff[giant] = (4050.0 + 330.0 * logg[giant] - 180.0 * feh[giant]) * np.exp(0.02 * rng.standard_normal(giant.sum()))
    weight[giant] = 0.05 * share[which[giant]]
    logg[dwarf] = 8.0
    teff[dwarf] = np.exp(rng.uniform(np.log(5500.0), np.log(25_000.0), dwarf.sum()))
    weight[dwarf] = 0.08 * share[which[dwarf]] * (teff[dwarf] / 1e4) ** -2.5
    rows = _blank("star", pool) | {"teff": teff.astype(np.float32), "feh": feh.astype(np.float32)}
    rows["teff"] = np.clip(rows["teff"], templates.TEFF[0], templates.TEFF[-1])
    rows["logg"] = np.clip(logg, 0.8, 8.0).astype(np.float32)
    rows["parallax"] = np.full(pool, 100.0)  # 10 pc
    absolute = sed.photometry(rows, 0.0)["gaia_g"]
    reach = 10.0 ** (0.2 * (limit - absolute) + 1.0)
    # number of stars nearer than each distance: density exp(-d / scale), halo as a power law
    density = np.stack([np.exp(-_DISTANCE / p[0]) for p in _POPULATIONS[:2]] + [(1 + _DISTANCE / 5000.0) ** -2.9])
    within = np.cumsum(density * _DISTANCE**3, axis=1)  # d^2 dd on a logarithmic grid
    stop = np.clip(np.searchsorted(_DISTANCE, reach), 0, len(_DISTANCE)) - 1
    weight = weight * np.where(stop >= 0, within[which, np.maximum(stop, 0)], 0.0)
    pick = rng.choice(pool, n, p=weight / weight.sum())
    chosen = {name: values[pick] for name, values in rows.items() if name not in ("kind", "line_seed")}
    which, stop, reach = which[pick], stop[pick], reach[pick]
    lifted = (within / within[:, -1:] + np.arange(3)[:, None]).ravel()
    goal = which + rng.random(n) * within[which, stop] / within[which, -1]
    node = np.clip(np.searchsorted(lifted, goal) - which * len(_DISTANCE), 0, len(_DISTANCE) - 1)
    ratio = _DISTANCE[1] / _DISTANCE[0]
    distance = np.minimum(_DISTANCE[node] * ratio ** -rng.random(n), reach)
    spread, lag = (np.array([p[k] for p in _POPULATIONS])[which] for k in (2, 3))
    velocity = rng.standard_normal((3, n)) * spread
    velocity[0] -= 0.7 * lag
    velocity[1] -= 0.5 * lag
    chosen["parallax"] = 1000.0 / distance
    chosen["pmra"], chosen["pmdec"] = velocity[:2] / 4.740470 / distance * 1000.0
    chosen["z"] = (velocity[2] - 0.3 * lag) / 299792.458
    return chosen


# ---------------------------------------------------------------------------------------------------- quasars


def _quasars(rng: np.random.Generator, n: int, r_mag_max: float = 22.0) -> Rows:
    # counts rise as 10^(0.8 r) up to r = 19 and 10^(0.3 r) beyond
    r = np.linspace(15.5, r_mag_max, 600)
    counts = 1.0 / (10 ** (-0.8 * (r - 19.0)) + 10 ** (-0.3 * (r - 19.0)))
    magnitude = np.interp(rng.random(n), np.cumsum(counts) / counts.sum(), r)
    z_grid = np.linspace(0.15, 4.8, 900)
    density = z_grid**1.6 * np.exp(-((z_grid / 2.0) ** 1.9)) + 0.01 * np.exp(-(((z_grid - 3.5) / 0.8) ** 2))
    z = np.interp(rng.random(n), np.cumsum(density) / density.sum(), z_grid)
    red = np.clip(rng.beta(2.0, 3.0, n), 0.02, 0.98)
    mix = np.stack(
        [
            1.0 - red,
            red,
            np.exp(0.3 * rng.standard_normal(n)),
            np.exp(0.4 * rng.standard_normal(n)),
            np.exp(0.5 * rng.standard_normal(n)),
        ],
        axis=1,
    )
    rows = _blank("quasar", n) | {"z": z, "coefficients": mix}
    scale = 10.0 ** (-0.4 * magnitude) / sed.maggies(rows)["r"]
    return {"z": z, "coefficients": (mix * scale[:, None]).astype(np.float32)}
