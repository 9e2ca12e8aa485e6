"""The order: closed forms held against brute force."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skycairn.model.order import Order, permutation, philox, spread
from skycairn.model.strata import CYCLE, Stratum, Weights, as_text, shares, whole_shares


def stratum(name: str, sizes: list[int], pile: str = "p") -> Stratum:
    n = np.arange(len(sizes))
    return Stratum(pile, name, f"{pile}/{name}", (), None, np.zeros_like(n), n, np.array(sizes))  # type: ignore[arg-type]


STRATA = (stratum("gaia", [13, 1, 20, 7]), stratum("gaia+hsc", [5]), stratum("hsc", [9, 9, 9, 2, 30, 11]))


def whole(order: Order, steps: range, world: int = 1) -> list[tuple[int, ...]]:
    """Samples of the steps, microbatch by microbatch, as ranks of such a world draw them."""
    found = {}
    for step in steps:
        for rank in range(world):
            for i in order.numbers(step, rank, world):
                found[i] = [tuple(row) for row in order.samples(i).tolist()]
    return [row for i in sorted(found) for row in found[i]]


@pytest.mark.parametrize("pool", [1, 7, 100, 100_000])
@pytest.mark.parametrize("lanes", [1, 6])
def test_every_row_comes_once_an_epoch(pool: int, lanes: int) -> None:
    """A stratum's endless row, put together of its pools, is epoch after epoch a permutation of its objects."""
    order = Order(STRATA, objects=4, lanes=lanes, pool=pool, seed=3)
    for s, of in enumerate(order.strata):
        every = sorted((g, r) for g, n in enumerate(of.size.tolist()) for r in range(n))
        pieces, number, count = [], 0, 0
        while count < 4 * of.rows:
            groups, rows = order.pool_of(s, number % lanes, number // lanes)
            start, stop = order._bounds(s, number % lanes, number // lanes)
            assert start == count, "pools lie end to end"
            pieces += [(int(g), int(r)) for g, r in zip(groups, rows, strict=True)]
            count, number = stop, number + 1
        # a pool may hold rows of two epochs, in any order: count what lies before each epoch's end, pool by pool
        seen = Counter(pieces)
        assert set(seen) == set(every) and max(seen.values()) - min(seen.values()) <= 1
        if lanes == 1 and pool == 1:
            for e in range(4):
                assert sorted(pieces[e * of.rows : (e + 1) * of.rows]) == every


def test_an_epoch_ends_inside_a_pool() -> None:
    order = Order([stratum("a", [4, 3])], objects=1, lanes=1, pool=5, seed=0)
    pools = [order.pool_of(0, 0, n) for n in range(7)]
    assert [len(g) for g, _ in pools] == [5] * 7
    seen = Counter((int(g), int(r)) for groups, rows in pools for g, r in zip(groups, rows, strict=True))
    assert set(seen.values()) == {5} and len(seen) == 7, "35 samples, 5 of each of the 7 objects"
    second = set(zip(pools[1][0].tolist(), pools[1][1].tolist(), strict=True))
    first = set(zip(pools[0][0].tolist(), pools[0][1].tolist(), strict=True))
    assert len(second - first) >= 2, "what the first epoch had left is in the second pool"


def test_worlds_and_resumption_do_not_change_the_order() -> None:
    order = Order(STRATA, objects=5, lanes=48, pool=40, seed=11)
    wanted = whole(order, range(6))
    for world in (2, 3, 4, 16, 24, 48):
        again = Order(STRATA, objects=5, lanes=48, pool=40, seed=11)
        assert whole(again, range(6), world) == wanted
    fresh = Order(STRATA, objects=5, lanes=48, pool=40, seed=11)
    assert whole(fresh, range(4, 6)) == wanted[4 * 48 * 5 :], "a step is reached without those before it"
    assert whole(Order(STRATA, objects=5, lanes=48, pool=40, seed=12), range(6)) != wanted
    assert fresh.identity == order.identity != Order(STRATA, objects=5, lanes=48, pool=40, seed=12).identity


@pytest.mark.parametrize("seed", [0, -1, 1 << 200])
def test_seeds_of_any_size(seed: int) -> None:
    order = Order(STRATA, objects=8, lanes=3, pool=16, seed=seed)
    assert (order.samples(5) == order.samples(5)).all()
    far = order.samples(3 * 10**15)  # no number overflows
    assert far.shape == (8, 3) and (far >= 0).all()


def test_random_numbers_are_philox_with_a_hashed_key() -> None:
    assert philox(1, "rows", "a", 2).random_raw() == 1308200763810229402
    assert sorted(permutation(9, 5, "x").tolist()) == list(range(9))
    assert permutation(50, 1, "a").tolist() != permutation(50, 1, "b").tolist()


def test_lanes_read_pools_of_their_own_and_move_through_row_groups_together() -> None:
    order = Order([stratum("a", [100] * 40)], objects=10, lanes=8, pool=50, seed=0)
    used: dict[tuple[int, int], int] = {}
    opened: list[tuple[int, int]] = []
    for i in range(8 * 60):
        lane, k = i % 8, (i // 8) * 10
        for t in range(k, k + 10):
            n, _ = order.pool_at(0, lane, t)
            if (lane, n) not in used:
                opened.append(order._bounds(0, lane, n))
            used[lane, n] = used.get((lane, n), 0) + 1
    ends = sorted(opened)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ends))
    later = [o for o in opened if o[0] >= order._bounds(0, 0, 1)[0]]
    place = {o: k for k, o in enumerate(sorted(later))}
    assert max(abs(place[o] - k) for k, o in enumerate(later)) <= 2, "pools are opened in the order of the rows, nearly"
    # most lanes never reach for a new pool in the same step
    assert len({i for i in used.values()}) >= 8


STRATA_OF_SIZES = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4)


@given(STRATA_OF_SIZES, st.integers(1, 7), st.sampled_from([1, 2, 6]), st.integers(1, 30), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_the_table_tells_what_a_run_does(sizes, objects, lanes, pool, seed) -> None:
    strata = [stratum(f"s{i}", s) for i, s in enumerate(sizes)]
    order = Order(strata, Weights(power=0.5), objects, lanes, pool, seed)
    steps = 9
    seen = Counter()
    for i in range(steps * lanes):
        seen.update(order.samples(i)[:, 0].tolist())
    lines = order.table(steps)
    assert [line.presentations for line in lines] == [seen[s] for s in range(len(strata))]
    assert sum(line.presentations for line in lines) == steps * lanes * objects
    for line, of in zip(lines, strata, strict=True):
        assert line.per_object == line.presentations / of.rows and line.epochs == line.presentations // of.rows


def test_objects_of_a_stratum_are_presented_equally_often() -> None:
    order = Order(STRATA, Weights({"gaia+hsc": 20.0}), objects=6, lanes=12, pool=24, seed=2)
    seen = Counter(whole(order, range(120)))
    for s, of in enumerate(order.strata):
        counts = [n for (k, _, _), n in seen.items() if k == s]
        assert len(counts) == of.rows
        # a lane is at most a pool ahead of another
        assert max(counts) - min(counts) <= 1 + -(-2 * 12 * order.pool_rows[s] // of.rows)


def test_fewer_rows_than_lanes() -> None:
    order = Order([stratum("few", [2, 1])], objects=4, lanes=48, pool=100, seed=0)
    assert order.pool_rows == (1,)
    seen = Counter(whole(order, range(3)))
    assert len(seen) == 3 and set(seen.values()) == {3 * 48 * 4 // 3}


def test_a_cycle_is_spread_evenly() -> None:
    count = whole_shares(np.array([0.5, 0.3, 0.2 - 1e-6, 1e-6]))
    assert count.sum() == CYCLE and count[3] == 1
    cycle = spread(count)
    assert np.bincount(cycle).tolist() == count.tolist()
    for s in range(3):
        ahead = np.cumsum(cycle == s) - np.arange(1, CYCLE + 1) * count[s] / CYCLE
        assert np.abs(ahead).max() < 2, "at no place more than two away from its due"
    order = Order(STRATA, Weights(), objects=16, lanes=48, seed=0)
    for lane in (0, 47):
        for k in (0, 1, 70_000, 1_000_000):
            counts = [order.before(s, lane, k) for s in range(3)]
            assert sum(counts) == k
    kinds = np.concatenate([order.samples(i)[:, 0] for i in (48, 96)])
    assert [order.before(s, 0, 48) - order.before(s, 0, 16) for s in range(3)] == np.bincount(
        kinds, minlength=3
    ).tolist()


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300).filter(lambda w: sum(w) > 0))
def test_whole_shares_add_up_and_leave_no_one_out(weight) -> None:
    share = np.array(weight) / sum(weight)
    count = whole_shares(share)
    assert count.sum() == CYCLE and ((count > 0) == (share > 0)).all()
    if (share * CYCLE >= 1).all():
        assert np.abs(count - share * CYCLE).max() < 1


def test_too_many_strata_are_refused() -> None:
    with pytest.raises(ValueError, match="65537 strata have a weight; wanted 65536 or fewer"):
        whole_shares(np.full(CYCLE + 1, 1 / (CYCLE + 1)))
    assert whole_shares(np.full(CYCLE, 1 / CYCLE)).tolist() == [1] * CYCLE


def test_shares_are_closed_forms_of_the_weights() -> None:
    strata = [stratum("a", [30]), stratum("a+b", [10]), stratum("a", [60], "q")]
    given_ = shares(strata, Weights({"a": 2.0}, {"q": 0.5}, matched=3.0, power=1.0))
    assert np.allclose(given_, np.array([60, 30, 60]) / 150)
    assert np.allclose(shares(strata, Weights(power=0.0)), 1 / 3)
    order = Order(strata, Weights({"a+b": 0.0}), objects=2, lanes=2)
    assert [s.name for s in order.strata] == ["a", "a"]
    text = as_text(order.table(10))
    assert "| q | a | 60 | 66.6667% | 66.6672% | 27 | 0.45 | 0 |" in text and "| all | | 90 |" in text


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"strata": {"c": 1.0}}, "strata c are not there; there are a, a.b"),
        ({"piles": {"z": 1.0}}, "piles z are not there; there are p"),
        ({"strata": {"a": -1.0}}, "'a' weighs -1.0; wanted a number of 0 or more"),
        ({"strata": {"a": float("nan")}}, "weighs nan"),
        ({"matched": 0.0}, "matched is 0.0"),
        ({"power": 2.0}, "power 2.0"),
        ({"strata": {"a": 0.0, "a+b": 0.0}}, "add up to 0.0; wanted a finite number above 0"),
        ({"stratum": {}}, "stratum: wanted strata, piles, matched or power"),
    ],
)
def test_wrong_weights_are_named(weights, said) -> None:
    with pytest.raises(ValueError, match=said):
        shares([stratum("a", [3]), stratum("a+b", [3])], Weights.from_json(weights))


def test_weights_are_plain_values() -> None:
    weights = Weights({"a": 2.0}, {"p": 1.0}, 3.0, 0.5)
    assert Weights.from_json(weights.as_json()) == weights


@pytest.mark.parametrize("world", [0, 5, 32])
def test_a_world_that_does_not_divide_the_lanes_is_refused(world: int) -> None:
    with pytest.raises(ValueError, match="48 microbatches a step; wanted"):
        Order(STRATA).numbers(0, 0, world)


def test_wrong_sizes_are_refused() -> None:
    for wrong in ({"objects": 0}, {"lanes": 0}, {"pool": -1}):
        with pytest.raises(ValueError, match=f"loader: {next(iter(wrong))} is"):
            Order(STRATA, **wrong)
    with pytest.raises(ValueError, match="microbatch -1"):
        Order(STRATA).draws(-1)
