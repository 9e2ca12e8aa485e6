import healpy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skycairn.match import kernel, sky


def corners(order: int, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Corners of cells of this order, where four of them meet, or three."""
    cell = rng.integers(0, 12 << 2 * order, n)
    vectors = np.concatenate([healpy.boundaries(1 << order, int(c), step=1, nest=True) for c in cell], axis=1)
    ra, dec = healpy.vec2ang(vectors.T, lonlat=True)
    return ra % 360, dec


PLACES = {
    "anywhere": lambda rng: (rng.uniform(0, 360, 5), np.degrees(np.arcsin(rng.uniform(-1, 1, 5)))),
    "RA 0 and 360": lambda rng: (np.array([0.0, 360.0, 359.9999999]), np.array([-30.0, 0.0, 70.0])),
    "poles": lambda rng: (np.array([0.0, 10.0, 200.0]), np.array([90.0, -90.0, 89.9999])),
    "corners of the twelve faces": lambda rng: corners(0, rng, 3),
    "corners of order 6": lambda rng: corners(6, rng, 3),
    "corners of order 12": lambda rng: corners(12, rng, 3),
    "corners of order 17": lambda rng: corners(17, rng, 3),
}


def cluster(rng: np.random.Generator, place: str, n: int, width_arcsec: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions round a few places, some of them twice."""
    ra, dec = PLACES[place](rng)
    at = rng.integers(0, ra.size, n)
    ra, dec = sky.propagate(ra[at], dec[at], *rng.normal(0, 1000 * width_arcsec, (2, n)), 1.0)
    twice = rng.integers(0, n, n // 5)
    ra[: n // 5], dec[: n // 5] = ra[twice], dec[twice]
    return np.minimum(ra, 360.0), dec


def in_order(ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    cell = sky.healpix29(ra, dec)
    order = np.argsort(cell, kind="stable")
    return cell[order], ra[order], dec[order]


def full_matrix(a: tuple, b: tuple) -> np.ndarray:
    """Separations in micro-arcseconds of all pairs, by the chord, in extended precision: nothing of ours in it."""

    def vectors(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
        lon, lat = (np.asarray(x, np.longdouble) * (np.arctan(np.longdouble(1)) / 45) for x in (ra, dec))
        return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])

    d = vectors(*a[1:])[:, :, None] - vectors(*b[1:])[:, None, :]
    half_chord = np.sqrt((d**2).sum(axis=0)) / 2
    return 2 * np.arcsin(half_chord) * (45 / np.arctan(np.longdouble(1))) * np.longdouble(3600e6)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**31),
    st.sampled_from(sorted(PLACES)),
    st.sampled_from([0.1, 1.0, 3.7, 60.0, 3600.0]),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_pairs_are_those_of_the_full_matrix(seed: int, place: str, radius: float, sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    a, b = (in_order(*cluster(rng, place, n, radius * 1.5)) for n in sizes)
    # half of b stands near a, whatever the place
    near = sky.propagate(a[1], a[2], *rng.normal(0, 700 * radius, (2, a[1].size)), 1.0)
    b = in_order(np.concatenate([b[1], near[0]]), np.concatenate([b[2], near[1]]))
    expected = full_matrix(a, b)
    i, j, apart = kernel.near(*a, *b, radius)
    found = {(p, q): s for p, q, s in zip(i.tolist(), j.tolist(), apart.tolist(), strict=True)}
    assert len(found) == i.size and sorted(found) == list(zip(i.tolist(), j.tolist(), strict=True))
    want = {(int(p), int(q)): int(np.rint(expected[p, q])) for p, q in np.argwhere(np.rint(expected) <= radius * 1e6)}
    # what lies half-way between two whole numbers may be rounded either way
    tie = np.abs(expected - np.floor(expected) - 0.5) < 1e-4
    assert {pair: s for pair, s in found.items() if not tie[pair]} == {p: s for p, s in want.items() if not tie[p]}
    assert all(abs(found[pair] - expected[pair]) < 0.5002 for pair in found)


def test_a_crowd_in_one_cell_fits() -> None:
    n = kernel.FIRST_CAPACITY // 100
    crowd = in_order(np.full(n, 10.0), np.full(n, 10.0))
    i, j, apart = kernel.near(*crowd, *crowd, 1.0)
    assert i.size == n * n and not apart.any()
    assert (i == np.repeat(np.arange(n), n)).all() and (j == np.tile(np.arange(n), n)).all()


def test_one_row_with_more_partners_than_there_is_room() -> None:
    n = kernel.FIRST_CAPACITY + 7
    crowd = in_order(np.full(n, 10.0), np.full(n, 10.0))
    i, j, _ = kernel.near(*in_order(np.array([10.0]), np.array([10.0])), *crowd, 1.0)
    assert not i.any() and (j == np.arange(n)).all()


@pytest.mark.parametrize("order", [0, 1, 3, 15])
def test_rows_on_borders_of_faces_have_all_cells_round_them(order: int) -> None:
    rng = np.random.default_rng(2)
    n = 12 << 2 * (order + 1)
    child = np.arange(n) if n < 10000 else rng.integers(0, n, 2000)
    edge = np.array([0, 1, 2, 3, 4 ** (order + 1) - 1, 4 ** (order + 1) - 2, 4 ** (order + 1) - 3])
    child = np.unique(np.concatenate([child, (edge + 4 ** (order + 1) * np.arange(12)[:, None]).ravel()]))
    child = child[(child >= 0) & (child < n)]
    cell = child << 2 * (29 - order - 1)
    outer, around = kernel._across_faces(cell, order)
    assert outer.size
    for row, cells in zip(outer.tolist(), around.tolist(), strict=True):
        round_it = sorted({p >> 2 for p in sky.rings(order + 1, [child[row]], 1).tolist()})
        assert [c for c in cells if c >= 0] == round_it and len(round_it) <= 4
