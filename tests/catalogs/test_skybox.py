"""Boxes on the sphere: cells touched are never missed, owners are found to the last bit."""

import healpy
import numpy as np
import pytest

from skycairn.catalogs.skybox import cell_boxes, holding, touching

ORDER = 6
SPECIAL = [0, 4095, 4096 * 3, 49151, 16384, 20479, 24576, 45056]


def sweep_grid(step: float) -> np.ndarray:
    ra, dec = np.meshgrid(np.arange(0, 360, step), np.arange(-90, 90, 5.0))
    return np.stack([ra.ravel(), ra.ravel() + step, dec.ravel(), dec.ravel() + 5], axis=1)


@pytest.mark.parametrize("step", [5.0, 10.0])
def test_every_position_of_a_cell_lies_in_a_box_that_touches_it(step: float) -> None:
    generator = np.random.default_rng(0)
    grid = sweep_grid(step)
    cells = np.unique([*SPECIAL, *generator.integers(0, 12 * 4**ORDER, 60)])
    for cell in cells:
        inside = (int(cell) << 12) + generator.integers(0, 4**6, 400)
        ra, dec = healpy.pix2ang(1 << (ORDER + 6), inside, nest=True, lonlat=True)
        owners = np.unique(holding(grid, ra, dec))
        assert (owners >= 0).all()
        touched = touching(grid, cell_boxes([int(cell)], ORDER))
        assert touched[owners].all(), cell
        if np.abs(dec).max() < 80:
            assert touched.sum() <= 6, "a cell of 0.92 degrees touches few boxes"


def test_boxes_across_ra_zero_touch_on_both_sides() -> None:
    boxes = np.array([[355, 360, 0, 5], [0, 5, 0, 5], [5, 10, 0, 5], [350, 2, 0, 5], [0, 360, 0, 5.0]])
    assert touching(boxes, np.array([[359.5, 0.5, 1, 2.0]])).tolist() == [True, True, False, True, True]
    assert touching(boxes, np.array([[6.0, 7.0, 1, 2]])).tolist() == [False, False, True, False, True]
    assert not touching(boxes, np.array([[359.5, 0.5, 5.1, 6]])).any()
    assert not touching(boxes, np.zeros((0, 4))).any()
    assert cell_boxes([], 6).shape == (0, 4)


def test_at_a_pole_all_right_ascensions_are_near() -> None:
    north = int(healpy.ang2pix(64, 45.0, 89.99, nest=True, lonlat=True))
    cap = np.array([[ra, ra + 5, 85, 90] for ra in range(0, 360, 5)], dtype=float)
    assert touching(cap, cell_boxes([north], ORDER)).all()


def test_an_owner_is_half_open_and_the_poles_have_one() -> None:
    boxes = np.array(
        [[0, 180, 0, 10], [180, 360, 0, 10], [0, 90, 10, 90], [90, 360, 10, 90], [0, 360, -90, 0]], dtype=float
    )
    below = np.nextafter(180.0, 0)
    ra = np.array([0, below, 180, np.nextafter(360.0, 0), 5, 90, 0, 7, 7, np.nan, 5])
    dec = np.array([0, 5, 5, 0, np.nextafter(10.0, 0), 10, 90, -90, np.nextafter(0.0, -1), 5, np.nan])
    assert holding(boxes, ra, dec).tolist() == [0, 0, 1, 1, 0, 3, 2, 4, 4, -1, -1]


def test_a_hole_belongs_to_nobody() -> None:
    boxes = np.array([[10, 20, 0, 1], [30, 40, 0, 1], [10, 20, 5, 6]], dtype=float)
    ra, dec = np.array([25.0, 15, 15, 5, 45, 20]), np.array([0.5, 3, 5.5, 0.5, 0.5, 0.5])
    assert holding(boxes, ra, dec).tolist() == [-1, -1, 2, -1, -1, -1]
    assert holding(np.zeros((0, 4)), ra, dec).tolist() == [-1] * 6


def test_boxes_that_end_and_begin_at_ra_0() -> None:
    boxes = np.array([[0, 0.25, 0, 1], [359.75, 0, 0, 1]], dtype=np.float64)
    ra, dec = np.array([0.0, 0.1, 359.9, 0.25]), np.full(4, 0.5)
    assert holding(boxes, ra, dec).tolist() == [0, 0, 1, -1]
    assert holding(boxes[::-1], ra, dec).tolist() == [1, 1, 0, -1]


def test_boxes_of_rows_anywhere_and_across_ra_0() -> None:
    """Rows of different limits in Dec, at different RA, and a box that crosses RA 0."""
    boxes = np.array([[10, 11, -1.2, -1.1], [200, 201, -1.15, -1.05], [359.5, 0.5, 2, 3]], dtype=np.float64)
    ra = np.array([10.5, 200.5, 359.9, 0.1, 0.5, 359.4, 10.5])
    dec = np.array([-1.11, -1.12, 2.5, 2.5, 2.5, 2.5, -1.06])
    assert holding(boxes, ra, dec).tolist() == [0, 1, 2, 2, -1, -1, -1]
