"""Assemble the truth table: what is in the mock sky, where it is, how it moves and what it looks like.

See docs/truth.md for the columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from skycairn.mocksky import morphology, population, sed
from skycairn.mocksky.patches import Patch, Tier, extent
from skycairn.mocksky.streams import stream

F64 = NDArray[np.float64]
Rows = dict[str, NDArray[Any]]

EPOCH = 2016.0
BLEND_ARCSEC = 1.2
"""Galaxies nearer than this to each other are one detection of the Legacy Survey."""
PAIRED_FRACTION = 0.08
CLEAR_ARCSEC = 2.5
"""In the tiers with images nothing else is nearer than this to anything."""
BRIGHTEST = 12.0
"""Gaia G of the brightest stars."""
_SURVEY = "truth"

SCHEMA = pa.schema(
    [
        pa.field("uid", pa.int64()),
        pa.field("kind", pa.string()),
        pa.field("patch", pa.int32()),
        pa.field("ra", pa.float64(), metadata={"unit": "deg"}),
        pa.field("dec", pa.float64(), metadata={"unit": "deg"}),
        pa.field("pmra", pa.float64(), metadata={"unit": "mas/yr"}),
        pa.field("pmdec", pa.float64(), metadata={"unit": "mas/yr"}),
        pa.field("parallax", pa.float64(), metadata={"unit": "mas"}),
        pa.field("z", pa.float64()),
        pa.field("ebv", pa.float32(), metadata={"unit": "mag"}),
        pa.field("log_mass", pa.float32()),
        pa.field("coefficients", pa.list_(pa.float32(), 5)),
        pa.field("teff", pa.float32(), metadata={"unit": "K"}),
        pa.field("logg", pa.float32()),
        pa.field("feh", pa.float32()),
        pa.field("line_seed", pa.int64()),
        *[pa.field(f"flux_{b}", pa.float64(), metadata={"unit": "nanomaggy"}) for b in sed.EXTINCTION],
        *[pa.field(f"gaia_{b}", pa.float64(), metadata={"unit": "mag"}) for b in ("g", "bp", "rp")],
        *[pa.field(name, pa.float32()) for name in population.MORPHOLOGY],
        pa.field("blend_group", pa.int64()),
    ]
)


def assemble(tier: Tier, seed: int) -> Rows:
    """Every true thing of a tier, by column of `SCHEMA`, in the order of uid; the same for the same seed."""
    parts = []
    fast = iter(tier.fast_stars)
    for place, patch in enumerate(tier.patches):
        count = len(tier.fast_stars) // len(tier.patches) + (place < len(tier.fast_stars) % len(tier.patches))
        parts.append(_patch(tier, patch, seed, [next(fast) for _ in range(count)]))
    rows = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    n = len(rows["ra"])
    rows["uid"] = np.arange(1, n + 1, dtype=np.int64)
    rows["blend_group"] = _blend_groups(rows)
    rows |= sed.photometry(rows, rows["ebv"])
    return {name: rows[name] for name in SCHEMA.names}


def table(rows: Rows) -> pa.Table:
    """The rows as Arrow, NaN as null."""
    arrays = []
    for field in SCHEMA:
        values = rows[field.name]
        if pa.types.is_fixed_size_list(field.type):
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).ravel()), 5))
        else:
            arrays.append(pa.array(values, from_pandas=True).cast(field.type))
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def moved(ra: F64, dec: F64, pmra: F64, pmdec: F64, years: F64 | float) -> tuple[F64, F64]:
    """Positions (deg) after a straight flight of `years` at pmra (times cos Dec), pmdec mas/yr; exact at the poles."""
    a, d = np.radians(ra), np.radians(dec)
    east = np.stack([-np.sin(a), np.cos(a), np.zeros_like(a)], axis=-1)
    north = np.stack([-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a), np.cos(d)], axis=-1)
    flight = np.radians(np.stack([pmra, pmdec], axis=-1) / 3.6e6) * np.expand_dims(np.asarray(years), -1)
    v = unit(ra, dec) + flight[..., :1] * east + flight[..., 1:] * north
    return np.degrees(np.arctan2(v[..., 1], v[..., 0])) % 360, np.degrees(
        np.arctan2(v[..., 2], np.hypot(v[..., 0], v[..., 1]))
    )


def unit(ra: F64, dec: F64) -> F64:
    """Unit vectors, shape (n, 3), of positions in degrees."""
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)


def offset(ra: F64, dec: F64, east_arcsec: F64, north_arcsec: F64) -> tuple[F64, F64]:
    """Positions (deg) displaced on the sky."""
    return moved(ra, dec, east_arcsec * 1000, north_arcsec * 1000, 1.0)


def _patch(tier: Tier, patch: Patch, seed: int, fast: list[float]) -> Rows:
    ra1, ra2, dec1, dec2 = extent(tier, patch)
    area = (ra2 - ra1) * np.degrees(np.sin(np.radians(dec2)) - np.sin(np.radians(dec1))) / tier.brick_deg**2
    numbers = {
        "galaxy": round(tier.galaxies_per_brick * patch.galaxies * area),
        "star": round(tier.stars_per_brick * patch.stars * area),
        "quasar": max(1, round(tier.quasars_per_brick * area)),
    }
    limits: dict[str, dict[str, float]] = {
        "galaxy": {},
        "star": {"bright_fraction": tier.bright_fraction},
        "quasar": {},
    }
    parts = [
        population.draw(stream(seed, _SURVEY, patch.number, kind), kind, n, **limits[kind])
        for kind, n in numbers.items()
    ]
    rows: Rows = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    n = len(rows["kind"])
    morphology.tidy(rows)
    rows["patch"] = np.full(n, patch.number, dtype=np.int32)
    rng = stream(seed, _SURVEY, patch.number, "places")

    def somewhere(count: int) -> tuple[F64, F64]:
        low, high = np.sin(np.radians([dec1, dec2]))
        return rng.uniform(ra1, ra2, count) % 360, np.degrees(np.arcsin(rng.uniform(low, high, count)))

    ra, dec = somewhere(n)
    _dim(rows, rng)
    _hurry(rows, fast, rng)
    bricks = tier.bricks_of(patch)
    for i, star in enumerate(np.flatnonzero(rows["kind"] == "star")[: len(fast)]):
        brick = bricks[i % len(bricks)]
        east, north = rng.uniform(-0.1, 0.1, 2) * 3600 * tier.brick_deg
        ra[star : star + 1], dec[star : star + 1] = offset(np.array([brick.ra]), np.array([brick.dec]), east, north)
    for star in np.flatnonzero(rows["kind"] == "star")[len(fast) : len(fast) + 1]:
        # one star just east of the border between two bricks
        ra[star : star + 1], dec[star : star + 1] = offset(
            np.array([patch.ra]), np.array([bricks[0].dec]), rng.uniform(0.3, 0.9, 1), np.zeros(1)
        )
    galaxies = np.flatnonzero(rows["kind"] == "galaxy")
    pairs = rng.permutation(galaxies)[: 2 * round(len(galaxies) * PAIRED_FRACTION / 2)].reshape(-1, 2)
    paired = np.zeros(n, dtype=bool)
    paired[pairs[:, 1]] = True

    def accompany() -> None:
        ra[pairs[:, 1]], dec[pairs[:, 1]] = offset(ra[pairs[:, 0]], dec[pairs[:, 0]], *apart)

    angle, separation = rng.uniform(0, 2 * np.pi, len(pairs)), rng.uniform(0.3, 0.95 * BLEND_ARCSEC, len(pairs))
    apart = (separation * np.sin(angle), separation * np.cos(angle))
    accompany()
    if tier.pixels:
        fixed = paired.copy()
        fixed[np.flatnonzero(rows["kind"] == "star")[: len(fast) + 1]] = True
        partner = np.arange(n)
        partner[pairs[:, 1]] = pairs[:, 0]
        for _ in range(100):
            close = cKDTree(unit(ra, dec)).query_pairs(np.radians(CLEAR_ARCSEC / 3600), output_type="ndarray")
            close = close[partner[close[:, 0]] != partner[close[:, 1]]]
            again = np.unique(partner[close].ravel())
            again = again[~fixed[again]]
            if not len(again):
                break
            ra[again], dec[again] = somewhere(len(again))
            accompany()
    rows["ra"], rows["dec"] = ra, dec
    base, east, north = rng.uniform(0.01, 0.09), *rng.uniform(-0.1, 0.1, 2)
    away = ((ra - patch.ra + 180) % 360 - 180) * np.cos(np.radians(dec)), dec - patch.dec
    rows["ebv"] = np.clip(base + east * away[0] + north * away[1], 0.005, None).astype(np.float32)
    return rows


def _dim(rows: Rows, rng: np.random.Generator) -> None:
    """Move the few stars brighter than `BRIGHTEST` away from us, so that no star drowns a mini-brick."""
    seen = sed.photometry(rows, 0.0)["gaia_g"]
    bright = np.flatnonzero((rows["kind"] == "star") & (seen < BRIGHTEST))
    farther = 10 ** (0.2 * (seen[bright] - BRIGHTEST - rng.uniform(0, 3, len(bright))))
    for name in ("parallax", "pmra", "pmdec"):
        rows[name][bright] *= farther


def _hurry(rows: Rows, fast: list[float], rng: np.random.Generator) -> None:
    """Make the first stars near old white dwarfs that move by this many arcseconds a year."""
    for star, motion in zip(np.flatnonzero(rows["kind"] == "star"), fast, strict=False):
        angle = rng.uniform(0, 2 * np.pi)
        rows["teff"][star], rows["logg"][star], rows["feh"][star] = 5600.0, 8.0, -0.5
        rows["parallax"][star] = 60.0 * motion**0.6
        rows["pmra"][star], rows["pmdec"][star] = 1000 * motion * np.sin(angle), 1000 * motion * np.cos(angle)


def _blend_groups(rows: Rows) -> NDArray[np.int64]:
    """Friends of friends among galaxies: the smallest uid of each group of two or more, 0 for the lonely."""
    galaxies = np.flatnonzero(rows["kind"] == "galaxy")
    xyz = unit(rows["ra"][galaxies], rows["dec"][galaxies])
    pairs = cKDTree(xyz).query_pairs(np.radians(BLEND_ARCSEC / 3600), output_type="ndarray")
    n = len(galaxies)
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    count, group = connected_components(graph, directed=False)
    first = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(first, group, rows["uid"][galaxies])
    out = np.zeros(len(rows["uid"]), dtype=np.int64)
    out[galaxies] = np.where(np.bincount(group, minlength=count)[group] > 1, first[group], 0)
    return out
