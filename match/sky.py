"""The sphere: HEALPix cells, unit vectors, proper motion, the split of the sky, coverage.

All cells are NESTED; `order`, never `nside`. Angles are ICRS degrees unless the name says otherwise.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import astropy.units as u
import healpy
import numpy as np
from astropy.coordinates import SkyCoord
from numpy.typing import ArrayLike, NDArray

Cells = NDArray[np.int64]

MAX_ORDER = 29
FINE_ORDER = 12
"""Order of the fine cells (51.5 arcsec) in which margins and guards are counted."""
SAFE_RATIO = 1.6
"""A cell and its 8 neighbours hold every point within (mean cell size) / 1.6; measured safe from 1.5 on."""
SPLIT_REACH_ARCSEC = 32.0
GUARD = "guard"


def check_positions(ra: NDArray[np.float64], dec: NDArray[np.float64], what: str = "position") -> None:
    """Raise ValueError that names the first row whose ra is outside [0, 360], dec outside [-90, 90], or not finite."""
    if ra.shape != dec.shape:
        raise ValueError(f"{what}: ra has shape {ra.shape}, dec {dec.shape}; wanted one dec for each ra")
    bad = ~((ra >= 0) & (ra <= 360) & (dec >= -90) & (dec <= 90))
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(
            f"{what} at row {row}: ra {ra.flat[row]}, dec {dec.flat[row]} ({int(bad.sum())} such rows); "
            "wanted finite degrees, 0 <= ra <= 360, -90 <= dec <= 90; drop or mend these rows first"
        )


def healpix29(ra: ArrayLike, dec: ArrayLike, what: str = "position") -> Cells:
    """The order-29 cell of each position. A bad position is an error: healpy itself gives NaN a valid cell."""
    ra, dec = np.asarray(ra, np.float64), np.asarray(dec, np.float64)
    check_positions(ra, dec, what)
    return np.asarray(healpy.ang2pix(1 << MAX_ORDER, ra, dec, nest=True, lonlat=True), np.int64)


def cells(healpix29: Cells, order: int) -> Cells:
    """The cell of this order that holds each order-29 cell."""
    return healpix29 >> (2 * (MAX_ORDER - order))


def centres(order: int, cells: Cells) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Right ascension and declination of the cells' centres."""
    ra, dec = healpy.pix2ang(1 << order, np.asarray(cells, np.int64), nest=True, lonlat=True)
    return np.asarray(ra, np.float64), np.asarray(dec, np.float64)


def cell_size_arcsec(order: int) -> float:
    """Square root of a cell's area."""
    return float(np.degrees(np.sqrt(np.pi / 3)) * 3600 / 2**order)


def order_for(reach_arcsec: float) -> int:
    """The deepest order at which a cell and its 8 neighbours hold every point within `reach_arcsec`."""
    for order in range(MAX_ORDER, -1, -1):
        if cell_size_arcsec(order) >= SAFE_RATIO * reach_arcsec:
            return order
    raise ValueError(f"a reach of {reach_arcsec} arcsec is wider than the widest cells allow; wanted below 36 degrees")


def neighbours(order: int, cells: ArrayLike) -> Cells:
    """The sorted set of cells that touch any of these, without these. At 24 corners a cell has 7 neighbours."""
    own = np.unique(np.asarray(cells, np.int64))
    return np.setdiff1d(rings(order, own, 1), own, assume_unique=True)


def rings(order: int, cells: ArrayLike, n: int) -> Cells:
    """The sorted set of these cells and all within `n` rings of neighbours round them."""
    out = np.unique(np.asarray(cells, np.int64))
    for _ in range(n if out.size else 0):
        around = healpy.get_all_neighbours(1 << order, out, nest=True).ravel()
        out = np.union1d(out, around[around >= 0])
    return out


def unit_vectors(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shape (3, n)."""
    ra, dec = np.radians(ra), np.radians(dec)
    cos = np.cos(dec)
    return np.stack([cos * np.cos(ra), cos * np.sin(ra), np.sin(dec)])


def angle(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Radians between unit vectors of shape (3, n), exact to rounding at all angles (Kahan's formula)."""
    d, s = a - b, a + b
    return 2 * np.arctan2(np.sqrt(d[0] ** 2 + d[1] ** 2 + d[2] ** 2), np.sqrt(s[0] ** 2 + s[1] ** 2 + s[2] ** 2))


def moved(
    ra: NDArray[np.float64],
    dec: NDArray[np.float64],
    pmra: NDArray[np.float64],
    pmdec: NDArray[np.float64],
    dt_years: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors, and velocities in radians per year, after `dt_years` along the great circle of the motion."""
    p = unit_vectors(ra, dec)
    lon, lat = np.radians(ra), np.radians(dec)
    zero = np.zeros_like(lon)
    east = np.stack([-np.sin(lon), np.cos(lon), zero])
    north = np.stack([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)])
    to_radians = np.pi / 180 / 3.6e6
    velocity = (pmra * east + pmdec * north) * to_radians
    speed = np.sqrt(pmra**2 + pmdec**2) * to_radians
    theta = speed * dt_years
    along = velocity / np.where(speed > 0, speed, 1.0)
    return p * np.cos(theta) + along * np.sin(theta), speed * (along * np.cos(theta) - p * np.sin(theta))


def propagate(
    ra: ArrayLike, dec: ArrayLike, pmra: ArrayLike, pmdec: ArrayLike, dt_years: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions after `dt_years` of proper motion (mas/yr, pmra times cos(dec)) along its great circle.

    Exact at the poles too. Parallax and perspective are left out. A motion of NaN stands still.
    """
    ra, dec, pmra, pmdec, dt = np.broadcast_arrays(
        *(np.atleast_1d(np.asarray(v, np.float64)) for v in (ra, dec, pmra, pmdec, dt_years))
    )
    still = ~(np.isfinite(pmra) & np.isfinite(pmdec)) | ((pmra == 0) & (pmdec == 0))
    p, _ = moved(ra, dec, np.where(still, 0.0, pmra), np.where(still, 0.0, pmdec), dt)
    new_ra = np.degrees(np.arctan2(p[1], p[0])) % 360.0
    new_dec = np.degrees(np.arctan2(p[2], np.hypot(p[0], p[1])))
    return np.where(still, ra, new_ra), np.where(still, dec, new_dec)


def split_of_cell(cells: ArrayLike, salt: str, fractions: Mapping[str, float], order: int = 5) -> NDArray[np.str_]:
    """The split of each cell: the first 64 bits of SHA-256("salt/order/cell") against the cumulative fractions.

    `fractions` are by name, in order, and sum to 1; the name `guard` is taken.
    """
    total = sum(Fraction(str(f)) for f in fractions.values())
    if not fractions or total != 1 or min(fractions.values()) < 0 or GUARD in fractions:
        raise ValueError(f"split fractions are {dict(fractions)}; wanted names other than 'guard' that sum to 1")
    names = np.array(list(fractions))
    edges, upper = [], Fraction(0)
    for fraction in fractions.values():
        upper += Fraction(str(fraction))
        edges.append(int(upper * 2**64))
    each, inverse = np.unique(np.asarray(cells, np.int64), return_inverse=True)
    index = np.empty(each.size, np.int64)
    for i, cell in enumerate(each.tolist()):
        digest = hashlib.sha256(f"{salt}/{order}/{cell}".encode()).digest()
        value = int.from_bytes(digest[:8], "big")
        index[i] = next(k for k, edge in enumerate(edges) if value < edge)
    return names[index][inverse.reshape(np.shape(cells))]


def splits(
    healpix29: Cells,
    object_of: NDArray[np.int64],
    n_objects: int,
    salt: str,
    fractions: Mapping[str, float],
    order: int = 5,
    reach_arcsec: float = SPLIT_REACH_ARCSEC,
) -> NDArray[np.str_]:
    """The split of each object, or `guard`.

    `healpix29` are the members' cells, `object_of` the object (0 .. n_objects - 1) of each member. An object is
    `guard` if any member's fine cell, or a neighbour of it, lies in a cell of another split. So every point within
    `reach_arcsec` of a member of an object that is not `guard` lies in a cell of that object's split. Fine cells are of
    order 12 up to a reach of 32 arcsec, one order coarser for each doubling.
    """
    doublings = math.ceil(max(0.0, math.log2(reach_arcsec / SPLIT_REACH_ARCSEC)))
    if FINE_ORDER - doublings < order:
        raise ValueError(
            f"a reach of {reach_arcsec:.0f} arcsec is wider than the cells of the split; build smaller cut-outs"
        )
    near = FINE_ORDER - doublings
    fine, inverse = np.unique(cells(np.asarray(healpix29, np.int64), near), return_inverse=True)
    shift = 2 * (near - order)
    around = np.concatenate([fine[None], healpy.get_all_neighbours(1 << near, fine, nest=True)])
    coarse, where = np.unique(np.where(around >= 0, around, fine) >> shift, return_inverse=True)
    names, code_of_cell = np.unique(split_of_cell(coarse, salt, fractions, order), return_inverse=True)
    code = code_of_cell[where].reshape(around.shape)
    low, high = np.full(n_objects, names.size), np.full(n_objects, -1)
    np.minimum.at(low, object_of, code.min(axis=0)[inverse])
    np.maximum.at(high, object_of, code.max(axis=0)[inverse])
    if (high < 0).any():
        raise ValueError(f"object {int(np.argmax(high < 0))} has no member; wanted at least one for each object")
    return np.where(low == high, np.append(names, GUARD)[low], GUARD)


def _moc() -> Any:
    # draws matplotlib in, and few who need the sphere need a coverage
    import mocpy

    return mocpy.MOC


def coverage_of_cells(order: int, cells: ArrayLike) -> Any:
    """The `mocpy.MOC` of these cells."""
    ipix = np.unique(np.asarray(cells, np.int64)).astype(np.uint64)
    if not ipix.size:
        return _moc().new_empty(order)
    return _moc().from_healpix_cells(ipix, np.full(ipix.size, order, np.uint8), order)


def coverage_of_boxes(boxes: Iterable[Iterable[float]], order: int = FINE_ORDER) -> Any:
    """The `mocpy.MOC`, of cells of this order and wider, that touch boxes (ra_min, ra_max, dec_min, dec_max).

    A box with ra_min > ra_max crosses RA 0.
    """
    parts = [_moc().new_empty(order)]
    for ra_min, ra_max, dec_min, dec_max in boxes:
        pieces = [(ra_min, ra_max)] if ra_min < ra_max else [(ra_min, 360.0), (0.0, ra_max)]
        for low, high in pieces:
            corners = SkyCoord([low, high] * u.deg, [dec_min, dec_max] * u.deg)
            parts.append(_moc().from_zone(corners, max_depth=order))
    return parts[0].union(*parts[1:]) if len(parts) > 1 else parts[0]


def coverage_text(moc: Any) -> str:
    """A coverage as the ASCII of the IVOA MOC standard."""
    return str(moc.serialize("str"))


def coverage_from_text(text: str) -> Any:
    """The inverse of `coverage_text`."""
    return _moc().from_str(text)


def moc_cells(text: str) -> list[tuple[int, tuple[int, ...]]]:
    """Cells of a MOC's ASCII form by order, widest first; ValueError where it is none."""
    try:
        told = _moc().from_str(text).serialize("json")
    except Exception as error:
        raise ValueError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    return [(int(order), tuple(cells)) for order, cells in sorted(told.items(), key=lambda x: int(x[0])) if cells]


def moc_text(path: Path) -> str:
    """The ASCII form of a MOC in a file: FITS, JSON or ASCII; ValueError where it is none."""
    suffix = path.suffix.lower()
    try:
        found = _moc().load(path, {".fits": "fits", ".json": "json"}.get(suffix, "ascii"))
    except Exception as error:
        raise ValueError(f"{path}: is no MOC ({error}); wanted one in FITS, JSON or ASCII form") from error
    return " ".join(coverage_text(found).split())


def within_coverage(moc: Any, ra: ArrayLike, dec: ArrayLike) -> NDArray[np.bool_]:
    """Whether each position lies in the coverage."""
    lon, lat = np.atleast_1d(np.asarray(ra, np.float64)), np.atleast_1d(np.asarray(dec, np.float64))
    check_positions(lon, lat)
    return np.asarray(moc.contains_lonlat(lon * u.deg, lat * u.deg), bool)
