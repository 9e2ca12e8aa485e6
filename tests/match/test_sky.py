import hashlib

import healpy
import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.time import Time
from hypothesis import given, settings
from hypothesis import strategies as st

from skycairn.match import sky

FRACTIONS = {"train": 0.6, "validation": 0.2, "test": 0.2}


def test_cell_of_position_is_healpys() -> None:
    ra, dec = np.array([0.0, 360.0, 180.0, 12.3, 0.0]), np.array([90.0, 0.0, -90.0, 45.6, 0.0])
    cell = sky.healpix29(ra, dec)
    assert cell.dtype == np.int64
    for order in (0, 6, 12, 29):
        assert (sky.cells(cell, order) == healpy.ang2pix(1 << order, ra, dec, nest=True, lonlat=True)).all()
    assert cell[1] == cell[4]


@pytest.mark.parametrize(
    ("ra", "dec"), [(np.nan, 0.0), (0.0, np.nan), (np.inf, 0.0), (-0.1, 0.0), (360.1, 0.0), (0.0, 90.1), (0.0, -91.0)]
)
def test_bad_position_is_refused_by_row(ra: float, dec: float) -> None:
    with pytest.raises(ValueError, match=r"gaia at row 1: ra .* wanted finite degrees"):
        sky.healpix29([1.0, ra], [1.0, dec], "gaia")


def test_neighbours_and_rings() -> None:
    corner = next(c for c in range(12 * 16) if (healpy.get_all_neighbours(4, c, nest=True) < 0).any())
    around = sky.neighbours(2, [corner])
    assert around.size == 7 and corner not in around
    assert sky.rings(2, [corner], 0).tolist() == [corner]
    assert sky.rings(2, [corner], 1).tolist() == sorted([corner, *around.tolist()])
    assert set(sky.rings(2, [corner], 1)) < set(sky.rings(2, [corner], 2))
    assert sky.rings(3, [], 2).size == 0


def test_order_for_reach() -> None:
    assert [sky.order_for(r) for r in (1.0, 2.0, 4.0)] == [17, 16, 15]
    with pytest.raises(ValueError, match="wider than the widest cells"):
        sky.order_for(1e6)


@settings(deadline=None, max_examples=60)
@given(st.floats(0, 360), st.floats(-90, 90), st.integers(0, 2**31))
def test_own_cell_and_neighbours_hold_all_within_reach(ra: float, dec: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    reach = 10 ** rng.uniform(-1, 2)
    order = sky.order_for(reach)
    angle = rng.uniform(0, 2 * np.pi, 500)
    away = reach * rng.uniform(0.9, 1, 500) * 1000
    ra2, dec2 = sky.propagate(ra, dec, away * np.sin(angle), away * np.cos(angle), 1.0)
    own = sky.cells(sky.healpix29([ra], [dec]), order)
    assert np.isin(sky.cells(sky.healpix29(ra2, dec2), order), sky.rings(order, own, 1)).all()


@settings(deadline=None, max_examples=60)
@given(
    st.floats(0, 360),
    st.one_of(st.floats(-90, 90), st.sampled_from([90.0, -90.0, 89.9999, -89.9999, 0.0])),
    st.floats(-10000, 10000),
    st.floats(-10000, 10000),
    st.floats(-30, 30),
)
def test_motion_follows_the_great_circle_as_astropys(
    ra: float, dec: float, pmra: float, pmdec: float, dt: float
) -> None:
    start = SkyCoord(
        ra * u.deg,
        dec * u.deg,
        pm_ra_cosdec=pmra * u.mas / u.yr,
        pm_dec=pmdec * u.mas / u.yr,
        distance=1 * u.pc,
        radial_velocity=0 * u.km / u.s,
        obstime=Time(2016.0, format="jyear", scale="tdb"),
    )
    new_ra, new_dec = sky.propagate(ra, dec, pmra, pmdec, dt)
    there = SkyCoord(new_ra[0] * u.deg, new_dec[0] * u.deg)
    moved = np.hypot(pmra, pmdec) * dt / 1000
    assert there.separation(SkyCoord(ra * u.deg, dec * u.deg)).arcsec == pytest.approx(abs(moved), abs=1e-6)
    with np.errstate(all="ignore"):
        theirs = start.apply_space_motion(dt=dt * u.yr)
    # a straight line in space falls behind the arc by theta^3/3: 0.001 arcsec at the 424 arcsec drawn here at most
    assert there.separation(SkyCoord(theirs.ra, theirs.dec)).arcsec < 2e-3


def test_motion_over_the_pole_and_ra_0() -> None:
    ra, dec = sky.propagate([10.0, 359.9999, 77.0], [89.9999, 0.0, 5.0], [0.0, 1000.0, np.nan], [1000.0, 0.0, 3.0], 1.0)
    assert ra == pytest.approx([190.0, 359.9999 + 1 / 3600 - 360, 77.0])
    assert dec == pytest.approx([180 - 89.9999 - 1 / 3600, 0.0, 5.0], abs=1e-12)


def test_split_of_cell_is_a_salted_hash() -> None:
    every = np.arange(12 * 4**5)
    names = sky.split_of_cell(every, "a", FRACTIONS)
    share = {name: float((names == name).mean()) for name in FRACTIONS}
    assert share == pytest.approx(FRACTIONS, abs=0.02)
    assert (sky.split_of_cell(every[::-1], "a", FRACTIONS)[::-1] == names).all()
    assert (sky.split_of_cell(every, "b", FRACTIONS) != names).any()
    # the format: a change here moves every object of every pile
    for cell in (0, 1, 12287):
        part = int(hashlib.sha256(f"a/5/{cell}".encode()).hexdigest()[:16], 16) / 2**64
        assert names[cell] == ("train" if part < 0.6 else "validation" if part < 0.8 else "test")
    with pytest.raises(ValueError, match="sum to 1"):
        sky.split_of_cell(every, "a", {"train": 0.6, "test": 0.3})


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 12 * 4**5 - 1), st.integers(0, 2**31))
def test_no_sky_near_a_source_is_of_another_split(cell: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # round the cell's border: its corners and edges
    step = 8
    edge = healpy.boundaries(32, cell, step=step, nest=True)
    where = rng.integers(0, 4 * step, 40)
    ra, dec = healpy.vec2ang(edge.T[where], lonlat=True)
    away = rng.uniform(0, 200, 40) * 1000
    ra, dec = sky.propagate(ra % 360, dec, away * rng.uniform(-1, 1, 40), away * rng.uniform(-1, 1, 40), 1.0)
    split = sky.splits(sky.healpix29(ra, dec), np.arange(40), 40, "salt", FRACTIONS)
    for i in np.flatnonzero(split != sky.GUARD):
        angle = rng.uniform(0, 2 * np.pi, 50)
        ra2, dec2 = sky.propagate(ra[i], dec[i], 30600 * np.sin(angle), 30600 * np.cos(angle), 1.0)
        near = sky.split_of_cell(sky.cells(sky.healpix29(ra2, dec2), 5), "salt", FRACTIONS)
        assert set(near.tolist()) == {split[i]}


def test_object_is_guard_if_any_member_is_near_another_split() -> None:
    names = sky.split_of_cell(np.arange(12 * 4**5), "salt", FRACTIONS)
    cell = next(c for c in range(12 * 4**5) if set(names[sky.rings(5, [c], 1)]) == {"train"})
    other = int(np.flatnonzero(names == "test")[0])
    ra, dec = sky.centres(5, np.array([cell, cell, cell, other, other]))
    got = sky.splits(sky.healpix29(ra, dec), np.array([0, 1, 1, 2, 1]), 3, "salt", FRACTIONS)
    assert got.tolist() == ["train", "guard", "test"]
    with pytest.raises(ValueError, match="object 1 has no member"):
        sky.splits(sky.healpix29(ra[:1], dec[:1]), np.array([0]), 2, "salt", FRACTIONS)


def test_coverage() -> None:
    moc = sky.coverage_of_cells(6, [5, 6, 7])
    ra, dec = sky.centres(6, np.array([5, 6, 7, 8]))
    assert sky.within_coverage(moc, ra, dec).tolist() == [True, True, True, False]
    again = sky.coverage_from_text(sky.coverage_text(moc))
    assert again == moc
    assert not sky.within_coverage(sky.coverage_of_cells(6, []), ra, dec).any()


def test_coverage_of_boxes_over_ra_0() -> None:
    moc = sky.coverage_of_boxes([(359.5, 0.5, -1.0, 1.0), (10.0, 11.0, 80.0, 81.0)], 11)
    ra = [359.6, 0.0, 0.4, 0.7, 359.3, 10.5, 180.0]
    dec = [0.5, 0.0, -0.9, 0.0, 0.0, 80.5, 0.0]
    assert sky.within_coverage(moc, ra, dec).tolist() == [True, True, True, False, False, True, False]


def test_the_guard_is_as_wide_as_the_reach_asks() -> None:
    """Every point within reach of an object that is not guard is of its split; a wider reach guards more."""
    rng = np.random.default_rng(3)
    n = 60_000
    ra, dec = rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    fractions = {"train": 0.6, "validation": 0.2, "test": 0.2}
    guarded = []
    for reach in (32.0, 48.4, 300.0):
        where = sky.splits(sky.healpix29(ra, dec), np.arange(n), n, "salt", fractions, reach_arcsec=reach)
        free = where != "guard"
        guarded.append(int((~free).sum()))
        for angle in np.linspace(0, 2 * np.pi, 8, endpoint=False):
            d = dec[free] + reach / 3600 * np.sin(angle)
            r = (ra[free] + reach / 3600 * np.cos(angle) / np.cos(np.radians(d))) % 360
            good = np.abs(d) < 89.9
            cells = sky.cells(sky.healpix29(r[good], d[good]), 5)
            assert (sky.split_of_cell(cells, "salt", fractions) == where[free][good]).all()
    assert guarded[0] < guarded[1] < guarded[2]


def test_a_reach_wider_than_the_splits_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="wider than the cells of the split"):
        sky.splits(np.zeros(1, np.int64), np.zeros(1, np.int64), 1, "s", {"train": 1.0}, reach_arcsec=9000.0)
