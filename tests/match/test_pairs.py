import numpy as np
import pyarrow as pa
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from hypothesis import given, settings
from hypothesis import strategies as st

from skycairn.match import sky
from skycairn.match.pairs import PAIR_SCHEMA, candidate_pairs, separation_uas

MOTION = ("pmra", "pmdec", "epoch", "epoch_min", "epoch_max")


def table(ra, dec, key=None, **columns) -> pa.Table:
    ra = np.atleast_1d(np.asarray(ra, float))
    out = {"key": pa.array(np.arange(ra.size) if key is None else key, pa.int64()), "ra": ra}
    out["dec"] = np.atleast_1d(np.asarray(dec, float))
    for name in MOTION:
        out[name] = pa.array(np.broadcast_to(columns.get(name, np.nan), ra.shape).astype(float), from_pandas=True)
    return pa.table(out)


def moving_sky(rng, n, pole, speed) -> pa.Table:
    """A patch of a few arcminutes; some sources move, some epochs are null."""
    angle, away = rng.uniform(0, 2 * np.pi, n), 60000 * np.sqrt(rng.uniform(0, 1, n))
    ra, dec = sky.propagate(*pole, away * np.sin(angle), away * np.cos(angle), 1.0)
    moves = rng.uniform(size=n) < 0.5
    known = rng.uniform(size=n) < 0.9
    direction, mas = rng.uniform(0, 2 * np.pi, n), 1000 * speed * rng.uniform(0, 1, n) ** 3
    start = rng.uniform(1998, 2010, n)
    return table(
        ra,
        dec,
        key=rng.permutation(n) + (1 << 62),
        pmra=np.where(moves, mas * np.sin(direction), np.nan),
        pmdec=np.where(moves, mas * np.cos(direction), np.nan),
        epoch=np.where(moves, rng.uniform(2014, 2018, n), np.nan),
        epoch_min=np.where(moves | ~known, np.nan, start),
        epoch_max=np.where(moves | ~known, np.nan, start + rng.uniform(0, 8, n)),
    )


def position_at(row: dict, time: float) -> SkyCoord:
    here = SkyCoord(row["ra"] * u.deg, row["dec"] * u.deg)
    if row["pmra"] is None:
        return here
    years = time - row["epoch"]
    angle = np.arctan2(row["pmra"], row["pmdec"]) * u.rad
    return here.directional_offset_by(angle, np.hypot(row["pmra"], row["pmdec"]) * years * u.mas)


def sampled_separation(a: dict, b: dict) -> float:
    """The least separation, in arcsec, on a fine grid of times: nothing of ours in it."""
    movers = [r for r in (a, b) if r["pmra"] is not None]
    if len(movers) == 2:
        times = [a["epoch"], b["epoch"]]
    elif movers:
        other = b if movers[0] is a else a
        times = [other["epoch_min"], other["epoch_max"]] if other["epoch_min"] is not None else [movers[0]["epoch"]]
    else:
        times = [0.0]
    grid = np.linspace(min(times), max(times), 2001)
    return float(position_at(a, grid).separation(position_at(b, grid)).arcsec.min())


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**31), st.sampled_from([(10.0, 20.0), (0.0, 0.0), (0.0, 90.0), (45.0, -90.0), (90.0, 41.8)]))
def test_separation_is_the_closest_approach(seed: int, where: tuple[float, float]) -> None:
    rng = np.random.default_rng(seed)
    left, right = moving_sky(rng, 12, where, 10.0), moving_sky(rng, 12, where, 10.0)
    got = separation_uas(left, right)
    assert (got == separation_uas(right, left)).all()
    for a, b, uas in zip(left.to_pylist(), right.to_pylist(), got.tolist(), strict=True):
        # the sampled minimum is at most half a step of 0.01 yr from the true one; the linear t* errs to second order
        assert uas / 1e6 == pytest.approx(sampled_separation(a, b), abs=0.12)


def test_separation_of_static_sources_is_exact_at_all_angles() -> None:
    for degrees in (1e-9, 1e-4, 1.0, 90.0, 179.9999):
        got = separation_uas(table(30.0, 0.0), table(30.0 + degrees, 0.0))
        assert got.dtype == np.int64 and got[0] == pytest.approx(degrees * 3.6e9, abs=1)


def test_motion_meets_the_other_epoch() -> None:
    star = table(100.0, 0.0, pmra=1000.0, pmdec=0.0, epoch=2016.0)
    behind = 100.0 - 10 / 3600
    assert separation_uas(star, table(behind, 0.0, epoch_min=2006.0, epoch_max=2006.0))[0] == 0
    assert separation_uas(star, table(behind, 0.0, epoch_min=2000.0, epoch_max=2010.0))[0] == 0
    assert separation_uas(star, table(behind, 0.0, epoch_min=2009.0, epoch_max=2012.0))[0] == 3_000_000
    assert separation_uas(star, table(behind, 0.0))[0] == 10_000_000  # no epoch: the star stays at its own
    partner = table(behind, 0.0, pmra=0.0, pmdec=0.0, epoch=2010.0)
    assert separation_uas(star, partner)[0] == 4_000_000  # both move: from 2010 to 2016


def brute(left: pa.Table, right: pa.Table, radius: float) -> dict:
    """All pairs by the full matrix, ranks by sorting lists."""
    pairs = {}
    n = right.num_rows
    for i in range(left.num_rows):
        got = separation_uas(left.take([i] * n), right) if n else np.zeros(0, int)
        for j in np.flatnonzero(got <= radius * 1e6):
            pairs[i, int(j)] = int(got[j])
    lkey, rkey = left["key"].to_pylist(), right["key"].to_pylist()
    out = {}
    for (i, j), s in pairs.items():
        mine = sorted((t, rkey[q]) for (p, q), t in pairs.items() if p == i)
        theirs = sorted((t, lkey[p]) for (p, q), t in pairs.items() if q == j)
        ranks = mine.index((s, rkey[j])) + 1, theirs.index((s, lkey[i])) + 1
        out[i, j] = (s, *ranks, ranks == (1, 1), len(mine) - 1, len(theirs) - 1)
    return out


def as_dict(pairs: pa.Table) -> dict:
    names = ["separation_uas", "left_rank", "right_rank", "mutual", "left_rivals", "right_rivals"]
    return {(r["left_row"], r["right_row"]): tuple(r[n] for n in names) for r in pairs.to_pylist()}


@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, 2**31),
    st.sampled_from([(10.0, 20.0), (0.0, 0.0), (0.0, 90.0), (45.0, -90.0), (90.0, 41.8103149), (0.0, 41.8103149)]),
    st.sampled_from([0.1, 1.0, 5.0, 60.0]),
    st.sampled_from([0.0, 0.3, 10.0]),
)
def test_pairs_are_those_of_the_full_matrix(seed: int, where: tuple[float, float], radius: float, speed: float) -> None:
    rng = np.random.default_rng(seed)
    left, right = moving_sky(rng, 60, where, speed), moving_sky(rng, 40, where, speed)
    # companions, so that small radii find something too
    near = left.slice(0, 20)
    ra, dec = sky.propagate(
        near["ra"].to_numpy(), near["dec"].to_numpy(), *(rng.normal(0, 700 * radius, 20) for _ in "xy"), 1.0
    )
    near = near.set_column(1, "ra", pa.array(ra)).set_column(2, "dec", pa.array(dec))
    near = near.set_column(0, "key", pa.array(np.arange(20)))
    right = pa.concat_tables([right, near])
    assert as_dict(candidate_pairs(left, right, radius)) == brute(left, right, radius)


@pytest.mark.parametrize("radius", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("both", [False, True])
def test_whatever_a_star_passes_is_found(radius: float, both: bool) -> None:
    rng = np.random.default_rng(8)
    n = 3000
    ra, dec = rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    pmra, pmdec = rng.normal(0, 300, (2, n)) * 10 ** rng.uniform(-2, 1, n)
    when = rng.uniform(1998, 2016, n)
    there = sky.propagate(ra, dec, pmra, pmdec, when - 2016)
    way = rng.uniform(0, 2 * np.pi, n)
    there = sky.propagate(*there, 990 * radius * np.sin(way), 990 * radius * np.cos(way), 1.0)
    left = table(ra, dec, pmra=pmra, pmdec=pmdec, epoch=2016.0)
    if both:
        right = table(*there, pmra=rng.normal(0, 300, n), pmdec=rng.normal(0, 300, n), epoch=when)
    else:
        right = table(*there, epoch_min=when, epoch_max=when)
    pairs = candidate_pairs(left, right, radius)
    found = pairs.filter(np.asarray(pairs["left_row"]) == np.asarray(pairs["right_row"]))
    assert found["left_row"].to_pylist() == list(range(n))
    assert found["separation_uas"].to_numpy().max() <= 0.99001e6 * radius + 1


def test_order_of_rows_does_not_matter() -> None:
    rng = np.random.default_rng(5)
    left, right = moving_sky(rng, 200, (0.0, 0.0), 3.0), moving_sky(rng, 300, (0.0, 0.0), 3.0)

    def by_key(left: pa.Table, right: pa.Table) -> list:
        pairs = candidate_pairs(left, right, 4.0)
        left_key = left["key"].take(pairs["left_row"]).to_pylist()
        right_key = right["key"].take(pairs["right_row"]).to_pylist()
        rest = pairs.drop_columns(["left_row", "right_row"]).to_pylist()
        return sorted(zip(left_key, right_key, map(repr, rest), strict=True))

    pairs = by_key(left, right)
    assert len(pairs) > 50
    assert by_key(left.take(rng.permutation(200)), right.take(rng.permutation(300))) == pairs


def test_identical_positions_and_duplicates_rank_by_key() -> None:
    left, right = table([5.0, 5.0], [5.0, 5.0], key=[8, 7]), table([5.0] * 3, [5.0] * 3, key=[3, 1, 2])
    pairs = candidate_pairs(left, right, 0.1)
    assert pairs.num_rows == 6
    assert pairs.filter(pairs["mutual"]).select([0, 1]).to_pylist() == [{"left_row": 1, "right_row": 1}]
    assert pairs["left_rank"].to_pylist() == [1, 2, 3, 1, 2, 3]
    assert pairs["right_row"].to_pylist() == [1, 2, 0, 1, 2, 0]
    assert set(pairs["left_rivals"].to_pylist()) == {2} and set(pairs["right_rivals"].to_pylist()) == {1}


def test_keys_near_2_to_63_are_told_apart() -> None:
    top = 2**63 - 1
    pairs = candidate_pairs(table(5.0, 5.0), table([5.0] * 3, [5.0] * 3, key=[top, top - 1, top - 2]), 1.0)
    assert pairs["right_row"].to_pylist() == [2, 1, 0]


def test_empty_sides() -> None:
    none, some = table([], []), table(1.0, 1.0)
    for left, right in ((none, some), (some, none), (none, none), (some, table(2.0, 2.0))):
        pairs = candidate_pairs(left, right, 1.0)
        assert pairs.num_rows == 0 and pairs.schema == PAIR_SCHEMA


def test_columns_of_motion_may_be_absent() -> None:
    plain = pa.table({"key": [1], "ra": [360.0], "dec": [0.0]})
    assert candidate_pairs(plain, table(1e-5, 0.0), 1.0)["separation_uas"].to_pylist() == [36000]


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan"), 1e9])
def test_nonsense_radius_is_refused(radius: float) -> None:
    with pytest.raises(ValueError, match="wanted above 0"):
        candidate_pairs(table(1.0, 1.0), table(1.0, 1.0), radius)


def test_bad_rows_are_refused_by_row() -> None:
    good = table([1.0, 2.0], [1.0, 2.0])
    null = good.set_column(1, "ra", pa.array([1.0, None]))
    with pytest.raises(ValueError, match="right at row 1: ra nan"):
        candidate_pairs(good, null, 1.0)
    for key in (pa.array([1, None], pa.int64()), pa.array([1.0, 2.0]), pa.array(["1", "2"])):
        with pytest.raises(ValueError, match=r"right: key is .* wanted integers"):
            candidate_pairs(good, good.set_column(0, "key", key), 1.0)
    with pytest.raises(ValueError, match="left has no column 'dec'"):
        candidate_pairs(good.drop_columns("dec"), good, 1.0)
    with pytest.raises(ValueError, match=r"left at row 0 holds from epoch 2010.0 to 2000.0"):
        candidate_pairs(table(1.0, 1.0, epoch_min=2010.0, epoch_max=2000.0), good, 1.0)


@pytest.mark.parametrize("patch", [(0.0, 0.0), (200.0, 41.81), (0.0, 88.0)])
def test_nearest_is_astropys(patch: tuple[float, float]) -> None:
    rng = np.random.default_rng(3)
    n = 3000
    ra = (patch[0] + rng.uniform(-2, 2, n)) % 360 if patch[1] < 80 else rng.uniform(0, 360, n)
    dec = patch[1] + rng.uniform(-2, 2, n)
    ra2, dec2 = sky.propagate(ra, dec, rng.normal(0, 2000, n), rng.normal(0, 2000, n), 1.0)
    order = rng.permutation(n)
    left, right = table(ra, dec), table(ra2[order], dec2[order])
    index, separation, _ = SkyCoord(ra, dec, unit="deg").match_to_catalog_sky(
        SkyCoord(ra2[order], dec2[order], unit="deg")
    )
    near = separation.arcsec <= 3.0
    pairs = candidate_pairs(left, right, 3.0)
    best = pairs.filter(np.asarray(pairs["left_rank"]) == 1)
    assert best["left_row"].to_pylist() == np.flatnonzero(near).tolist()
    assert best["right_row"].to_pylist() == index[near].tolist()
    assert np.abs(best["separation_uas"].to_numpy() - separation.arcsec[near] * 1e6).max() < 1


def test_chance_is_the_rate_of_unrelated_neighbours() -> None:
    rng = np.random.default_rng(1)
    n = 40000  # in one square degree

    def field(n: int) -> pa.Table:
        return table(rng.uniform(0, 1, n), rng.uniform(-0.5, 0.5, n))

    pairs = candidate_pairs(field(4000), field(n), 3.0)
    inside = pairs.filter(np.asarray(pairs["left_rank"]) == 1)
    s = inside["separation_uas"].to_numpy() / 1e6
    chance = inside["chance"].to_numpy()
    # 130 sources in a cell of density; cells cut by the edge of the field say less
    expected = 1 - np.exp(-np.pi * s**2 * n / 3600**2)
    assert np.median(chance / expected) == pytest.approx(1, abs=0.05)
    assert (np.abs(chance / expected - 1) < 0.3).mean() > 0.8
    # of unrelated sources, the chance of the nearest is as often below p as p says
    assert (chance < 0.05).sum() / 4000 == pytest.approx(0.05, abs=0.012)
