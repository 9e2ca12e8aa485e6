import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skycairn.match import sky
from skycairn.pipeline import recipe as recipes
from skycairn.pipeline.region import Box, CellList, Cone, Moc, Polygon, Region, Targets, from_settings

REGIONS = [
    Cone(0.0, 0.0, 0.2),
    Cone(120.0, 89.95, 0.3),
    Cone(10.0, -90.0, 2.0),
    Cone(200.0, 41.81, 30.0),
    Box(359.5, 0.5, -0.5, 0.5),
    Box(350.0, 360.0, 10.0, 12.0),
    Box(0.0, 360.0, 88.0, 90.0),
    Box(0.0, 240.0, -5.0, 60.0),
    Box(10.0, 10.1, 80.0, 80.01),
    CellList(6, (0, 4095, 20000)),
    CellList(9, (1000000,)),
    CellList(2, (100, 191)),
    Polygon(((359.0, -1.0), (2.0, -0.5), (0.5, 1.5))),
    Polygon(((10.0, 60.0), (130.0, 70.0), (250.0, 65.0), (300.0, 80.0))),
    Polygon(((50.0, 0.0), (54.0, 0.0), (54.0, 4.0), (52.0, 1.0), (50.0, 4.0))),
    Moc("5/3 6/20000-20003 9/1000000"),
    Targets((0.001, 359.999, 77.0), (0.0, 0.0, -89.999), 30.0),
]


def points(rng: np.random.Generator, region: Region, n: int) -> tuple[np.ndarray, np.ndarray]:
    """All over the sky, and crowded round the region's landmarks."""
    marks = {
        "cone": lambda r: [(r.ra, r.dec)],
        "box": lambda r: [(r.ra_min, r.dec_min), (r.ra_max, r.dec_max), (r.ra_min, r.dec_max), (r.ra_max, r.dec_min)],
        "cells": lambda r: list(zip(*sky.centres(r.order, np.array(r.cells)), strict=True)),
        "polygon": lambda r: r.corners,
        "moc": lambda r: [
            p for part in r._parts for p in zip(*sky.centres(part.order, np.array(part.cells)), strict=True)
        ],
        "targets": lambda r: list(zip(r.ra, r.dec, strict=True)),
    }[region.kind](region)
    at = np.array(marks)[rng.integers(0, len(marks), n)]
    scale = 10 ** rng.uniform(0, 6, n) * 1000
    angle = rng.uniform(0, 2 * np.pi, n)
    ra, dec = sky.propagate(at[:, 0], at[:, 1], scale * np.sin(angle), scale * np.cos(angle), 1.0)
    everywhere = rng.uniform(size=n) < 0.3
    ra[everywhere] = rng.uniform(0, 360, everywhere.sum())
    dec[everywhere] = np.degrees(np.arcsin(rng.uniform(-1, 1, everywhere.sum())))
    return ra, dec


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(REGIONS), st.sampled_from([0.0, 1.0, 60.0, 3000.0]), st.integers(0, 2**31))
def test_every_contained_point_is_in_a_work_cell(region: Region, margin: float, seed: int) -> None:
    ra, dec = points(np.random.default_rng(seed), region, 4000)
    inside = region.contains(ra, dec, margin)
    listed = region.work_cells(margin)
    assert (np.diff(listed) > 0).all() and listed.size
    assert np.isin(sky.cells(sky.healpix29(ra[inside], dec[inside]), 6), listed).all()


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(REGIONS), st.sampled_from([1.0, 60.0, 3000.0]), st.integers(0, 2**31))
def test_margin_holds_what_is_near_the_region(region: Region, margin: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ra, dec = points(rng, region, 2000)
    inside = region.contains(ra, dec)
    assert not (inside & ~region.contains(ra, dec, margin)).any()
    angle, away = rng.uniform(0, 2 * np.pi, 2000), 999.99 * margin * rng.uniform(0, 1, 2000)
    near = sky.propagate(ra, dec, away * np.sin(angle), away * np.cos(angle), 1.0)
    assert region.contains(near[0][inside], near[1][inside], margin).all()


def test_box_margin_reaches_no_farther() -> None:
    rng = np.random.default_rng(0)
    box = Box(359.0, 1.0, 60.0, 62.0)
    grid = np.array(np.meshgrid(np.linspace(-1, 1, 401) % 360, np.linspace(60, 62, 401))).reshape(2, -1)
    ra, dec = rng.uniform(-4, 4, 400) % 360, rng.uniform(58.5, 63.5, 400)
    p = sky.unit_vectors(*grid)
    nearest = np.array([np.degrees(sky.angle(p, q[:, None]).min()) for q in sky.unit_vectors(ra, dec).T])
    got = box.contains(ra, dec, 1800)
    sure = np.abs(nearest - 0.5) > 0.01
    assert (got == (nearest <= 0.5))[sure].all() and 20 < got.sum() < 300


def test_borders_belong_to_the_region() -> None:
    assert Box(0.0, 360.0, 88.0, 90.0).contains([0, 180, 360], [88, 90, 89]).all()
    assert Box(350.0, 360.0, 0.0, 1.0).contains([350, 359, 360, 0], [0, 1, 0, 1]).all()
    assert Box(350.0, 10.0, 0.0, 1.0).contains([350, 10, 0, 180, 11], [0] * 5).tolist() == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert Cone(0.0, 0.0, 1.0).contains([359.0001, 1.001], [0, 0]).tolist() == [True, False]


def test_a_small_region_lists_few_cells() -> None:
    ra, dec = sky.centres(6, np.array([1234]))
    assert Cone(ra[0], dec[0], 0.1).work_cells().tolist() == [1234]
    assert CellList(6, (5,)).work_cells().tolist() == [5]
    assert CellList(5, (5,)).work_cells().tolist() == [20, 21, 22, 23]
    assert CellList(6, (5,)).work_cells(20.0).size <= 9
    assert Cone(0.0, 0.0, 180.0).work_cells().size == 12 * 4**6


@pytest.mark.parametrize("region", REGIONS)
def test_settings_go_through_json(region: Region) -> None:
    assert from_settings(json.loads(json.dumps(region.settings()))) == region


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "cone", "ra": 1, "dec": 2, "radius_deg": 0},
        {"kind": "cone", "ra": 1, "dec": 91, "radius_deg": 1},
        {"kind": "cone", "ra": float("nan"), "dec": 2, "radius_deg": 1},
        {"kind": "cone", "ra": "x", "dec": 2, "radius_deg": 1},
        {"kind": "cone", "ra": 1, "dec": 2},
        {"kind": "cone", "ra": 1, "dec": 2, "radius_deg": 1, "radius": 1},
        {"kind": "box", "ra_min": 1, "ra_max": 1, "dec_min": 0, "dec_max": 1},
        {"kind": "box", "ra_min": 1, "ra_max": 2, "dec_min": 1, "dec_max": 1},
        {"kind": "box", "ra_min": -1, "ra_max": 2, "dec_min": 1, "dec_max": 2},
        {"kind": "cells", "order": 6, "cells": []},
        {"kind": "cells", "order": 6, "cells": [49152]},
        {"kind": "cells", "order": 30, "cells": [1]},
        {"kind": "cells", "order": 6, "cells": [1.5]},
        {"kind": "targets", "ra": [], "dec": [], "radius_arcsec": 1},
        {"kind": "targets", "ra": [1, 2], "dec": [1], "radius_arcsec": 1},
        {"kind": "targets", "ra": [1], "dec": [-90.5], "radius_arcsec": 1},
        {"kind": "targets", "ra": [1], "dec": [1], "radius_arcsec": -1},
        {"kind": "circle"},
        {},
    ],
)
def test_nonsense_is_one_line(wrong: dict) -> None:
    with pytest.raises(ValueError, match="wanted") as caught:
        from_settings(wrong)
    assert "\n" not in str(caught.value)


def test_a_polygon_is_what_great_circles_enclose() -> None:
    """A small one against the plane, a wide one against the sides' own half spheres, both senses."""
    small = ((10.0, 0.0), (10.2, 0.0), (10.2, 0.1), (10.0, 0.1))
    ra, dec = np.array([10.1, 10.1, 10.25, 9.999, 190.1]), np.array([0.05, 0.101, 0.05, 0.05, -0.05])
    for corners in (small, small[::-1]):
        assert Polygon(corners).contains(ra, dec).tolist() == [True, False, False, False, False]
    corners = np.array([(0.0, -20.0), (60.0, 10.0), (20.0, 40.0)])
    rng = np.random.default_rng(3)
    ra, dec = rng.uniform(0, 360, 20000), np.degrees(np.arcsin(rng.uniform(-1, 1, 20000)))
    p, v = sky.unit_vectors(ra, dec), sky.unit_vectors(*corners.T)
    sides = [np.cross(v[:, i], v[:, (i + 1) % 3]) @ p for i in range(3)]
    brute = np.all(np.array(sides) > 0, axis=0)
    assert 100 < brute.sum() and (Polygon(tuple(map(tuple, corners))).contains(ra, dec) == brute).all()


def test_a_polygon_over_the_pole_and_across_ra_0() -> None:
    pole = Polygon(((0.0, 80.0), (120.0, 80.0), (240.0, 80.0)))
    # the middle of a side lies atan(tan(10 deg) cos(60 deg)) = 5.04 degrees from the pole
    assert pole.contains([0.0, 77.0, 60.0, 180.0], [90.0, 89.0, 84.94, 84.98]).tolist() == [True, True, False, True]
    zero = Polygon(((359.9, -0.1), (0.1, -0.1), (0.1, 0.1), (359.9, 0.1)))
    assert zero.contains([0.0, 360.0, 359.95, 0.2], [0.0, 0.0, 0.05, 0.0]).tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kind": "polygon", "corners": [[0, 0], [1, 1]]}, "three or more"),
        ({"kind": "polygon", "corners": [[0, 0], [2, 2], [2, 0], [0, 2]]}, "cross"),
        ({"kind": "polygon", "corners": [[0, 0], [120, 0], [240, 0]]}, "80 degrees"),
        ({"kind": "polygon", "corners": [[0, 0], [1, 91], [1, 0]]}, "not on the sky"),
        ({"kind": "moc", "moc": ""}, "empty"),
        ({"kind": "moc", "moc": "5/nonsense"}, "no MOC"),
    ],
)
def test_polygons_and_mocs_that_are_none(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        from_settings(settings)


def test_a_moc_is_its_cells() -> None:
    assert Moc("5/3 6/20000-20001").work_cells().tolist() == [12, 13, 14, 15, 20000, 20001]
    ra, dec = sky.centres(9, np.array([3 * 256 + 7, 1000000]))
    assert Moc("5/3").contains(ra, dec).tolist() == [True, False]
    assert from_settings(Moc("5/3").settings()) == Moc("5/3")


def test_a_recipe_reads_a_moc_from_its_file(tmp_path: Path) -> None:
    from mocpy import MOC

    MOC.from_str("5/3 6/20000-20003").save(tmp_path / "my.fits", "fits")
    told = {"region": {"kind": "moc", "file": "my.fits"}, "surveys": {"gaia": {"release": "dr3", "root": "x"}}}
    made = recipes.parse(told, "test", tmp_path)
    assert made.region.work_cells().tolist() == [12, 13, 14, 15, 20000, 20001, 20002, 20003]
    assert recipes.parse(made.settings(), "again") == made
