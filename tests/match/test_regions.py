"""Cells, borders and ranges, held against what healpy counts cell by cell."""

import healpy
import numpy as np
import pytest

from skycairn.match import regions, sky


@pytest.mark.parametrize(("order", "cell"), [(0, 4), (2, 17), (3, 767), (5, 0), (5, 7000)])
def test_a_border_is_the_cells_with_a_neighbour_outside(order: int, cell: int) -> None:
    fine = order + 4
    mine = np.arange(cell << 8, (cell + 1) << 8)
    around = healpy.get_all_neighbours(1 << fine, mine, nest=True)
    outside = ((around >= 0) & (around >> 8 != cell)).any(axis=0)
    assert (regions.border(order, cell, fine) == mine[outside]).all()
    assert regions.border(order, cell, order).tolist() == [cell]


@pytest.mark.parametrize("place", [(0.0, 0.0), (45.0, 90.0), (45.0, 41.8103), (200.0, -70.0)])
@pytest.mark.parametrize("reach", [1.0, 300.0, 3600.0])
def test_what_is_near_a_cell_lies_around_it(place: tuple[float, float], reach: float) -> None:
    rng = np.random.default_rng(3)
    angle = rng.uniform(0, 2 * np.pi, 2000)
    ra, dec = sky.propagate(*place, *(3.6e6 * rng.uniform(0, 4, 2000) * np.stack([np.sin(angle), np.cos(angle)])), 1.0)
    index = sky.healpix29(ra, dec)
    moved = sky.healpix29(*sky.propagate(ra, dec, *(reach * 999 * np.stack([np.cos(angle), np.sin(angle)])), 1.0))
    for order in (2, 4, 7):
        for cell in np.unique(sky.cells(index, order))[:20].tolist():
            near, far = regions.around(order, cell, reach, times=2)
            own = regions.ranges(order, [cell])
            from_here = moved[sky.cells(index, order) == cell]
            assert regions.inside(regions.union([own, near]), from_here).all()
            # and twice as far
            there = index[sky.cells(moved, order) == cell]
            assert regions.inside(regions.union([own, far]), there).all()
            assert regions.inside(far, near[0]).all() and regions.inside(far, near[1] - 1).all()


def test_ranges_unite() -> None:
    def set_of(*pairs: tuple[int, int]) -> regions.Ranges:
        return tuple(np.array(x, np.int64) for x in zip(*pairs, strict=True))  # type: ignore[return-value]

    low, high = regions.union([set_of((5, 7), (20, 30)), set_of((7, 9), (22, 25)), set_of((1, 2))])
    assert (low.tolist(), high.tolist()) == ([1, 5, 20], [2, 9, 30])
    points = np.array([0, 1, 2, 5, 8, 9, 19, 20, 29, 30])
    assert points[regions.inside((low, high), points)].tolist() == [1, 5, 8, 20, 29]
    assert regions.union([])[0].size == 0 and not regions.inside(regions.union([]), points).any()


def test_leaves_hold_no_more_than_asked_and_cover_the_sphere() -> None:
    rng = np.random.default_rng(4)
    index = np.sort(sky.healpix29(rng.normal(0, 3, 5000) % 360, rng.normal(0, 3, 5000)))
    found = regions.leaves(
        lambda low, high: (np.searchsorted(index, high) - np.searchsorted(index, low))[None],
        lambda rows, _: rows[0] > 50,
        8,
    )
    low, high = regions.ranges(found.order, found.cell)
    assert low[0] == 0 and high[-1] == 12 << 58 and (low[1:] == high[:-1]).all()
    assert found.rows.sum() == 5000
    assert found.rows[0, found.order < 8].max() <= 50
    cut = regions.groups(found.rows[0].astype(float), 200)
    assert [i for c in cut for i in range(found.cell.size)[c]] == list(range(found.cell.size))
    assert max(found.rows[0, c].sum() for c in cut) <= 200
