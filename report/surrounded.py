"""Whether a survey has sources all round a place: a test of its footprint that needs no map

A footprint that is told by wide cells, or by cells that touch it, reaches beyond where the survey looked. A place is
taken to be inside if fine cells with sources lie near it in all four quadrants, so that a border is seen to a cell.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from skycairn.match import sky

Ints = NDArray[np.int64]

NEAR_ARCSEC, FAR_ARCSEC = 206.0, 900.0
"""How near: at least, and at most."""
PER_QUADRANT = 5.0
"""Sources of mean density that a quadrant of that reach holds; none at all in one is then an accident of 0.7 %."""
BESIDE = 0.25
"""Cells that lie less than this part of a cell to a side count for neither side."""
DENSITY_ORDER = 9


def reach_arcsec(healpix29: Ints) -> float:
    """How near a survey of these sources must have some in each quadrant."""
    if not healpix29.size:
        return NEAR_ARCSEC
    area = np.unique(sky.cells(healpix29, DENSITY_ORDER)).size * sky.cell_size_arcsec(DENSITY_ORDER) ** 2
    return float(np.clip(np.sqrt(4 * PER_QUADRANT * area / (np.pi * healpix29.size)), NEAR_ARCSEC, FAR_ARCSEC))


def inner_cells(asked: Ints, healpix29: Ints) -> Ints:
    """Of the asked cells of FINE_ORDER those that the sources surround, ascending."""
    occupied = np.unique(sky.cells(healpix29, sky.FINE_ORDER))
    asked = np.unique(asked)
    if not occupied.size or not asked.size:
        return np.zeros(0, np.int64)
    ra, dec = sky.centres(sky.FINE_ORDER, asked)
    own = sky.unit_vectors(ra, dec)
    others = sky.unit_vectors(*sky.centres(sky.FINE_ORDER, occupied))
    reach = 2 * np.sin(np.radians(reach_arcsec(healpix29) / 3600) / 2)
    near = cKDTree(own.T).sparse_distance_matrix(cKDTree(others.T), reach, output_type="ndarray")
    i, j = near["i"], near["j"]
    lon, lat = np.radians(ra)[i], np.radians(dec)[i]
    east = -np.sin(lon) * others[0, j] + np.cos(lon) * others[1, j]
    north = -np.sin(lat) * (np.cos(lon) * others[0, j] + np.sin(lon) * others[1, j]) + np.cos(lat) * others[2, j]
    beside = BESIDE * np.radians(sky.cell_size_arcsec(sky.FINE_ORDER) / 3600)
    inside = np.ones(asked.size, bool)
    for x in (1, -1):
        for y in (1, -1):
            there = np.zeros(asked.size, bool)
            there[i[(x * east > beside) & (y * north > beside)]] = True
            inside &= there
    return np.asarray(asked[inside])
