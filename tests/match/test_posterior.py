"""The posterior against closed forms, a full enumeration, and skies whose truth is known."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skycairn.match import posterior, sky
from skycairn.match.crossmatch import crossmatch
from skycairn.match.pairs import candidate_pairs
from skycairn.match.posterior import Prior

ARCSEC = 1 / 3600


def table(ra, dec, ra_error=0.1, dec_error=None) -> pa.Table:
    n = np.size(ra)
    errors = (
        np.broadcast_to(np.asarray(e, float), n) for e in (ra_error, ra_error if dec_error is None else dec_error)
    )
    columns = dict(zip(("ra_error", "dec_error"), (pa.array(e, from_pandas=True) for e in errors), strict=True))
    made = pa.table({"key": np.arange(n), "ra": np.ravel(ra), "dec": np.ravel(dec), **columns})
    fields = [f.with_metadata({"unit": "arcsec"}) if f.name.endswith("error") else f for f in made.schema]
    return made.cast(pa.schema(fields))


def test_one_candidate_by_hand() -> None:
    left, right = table(10.0, 0.0, 0.3), table(10.0, 0.5 * ARCSEC, 0.4)
    n, m, found = 1e-4, 3e-4, 0.8
    prior = Prior({c: n for c in range(49152)}, {c: m for c in range(49152)}, found, 0.1)
    pair = candidate_pairs(left, right, 1.0, prior).to_pylist()[0]
    assert pair["sigmas"] == pytest.approx(1.0, rel=1e-6)
    likelihood = 0.9 * np.exp(-0.5) / (2 * np.pi * 0.25) + 0.1 / np.pi
    odds = found / (1 - found) * likelihood / m
    assert pair["left_posterior"] == pytest.approx(odds / (1 + odds), rel=1e-6)
    share = found * n / m
    odds = share / (1 - share) * likelihood / n
    assert pair["right_posterior"] == pytest.approx(odds / (1 + odds), rel=1e-6)


def test_errors_of_two_axes() -> None:
    left = table(10.0, 60.0, 0.3, 0.1)
    east = table(10.0 + 0.5 * ARCSEC / np.cos(np.radians(60)), 60.0, 0.4, 0.1)
    north = table(10.0, 60.0 + 0.5 * ARCSEC, 0.4, 0.1)
    assert candidate_pairs(left, east, 1.0)["sigmas"][0].as_py() == pytest.approx(1.0, rel=1e-5)
    assert candidate_pairs(left, north, 1.0)["sigmas"][0].as_py() == pytest.approx(0.5 / np.hypot(0.1, 0.1), rel=1e-5)
    assert candidate_pairs(left, left, 1.0)["sigmas"][0].as_py() == 0


def test_a_star_counts_where_it_is_nearest() -> None:
    star = table(100.0, 0.0, 0.1, 0.3)
    for name, value in (("pmra", 1000.0), ("pmdec", 0.0), ("epoch", 2016.0)):
        star = star.append_column(name, pa.array([value]))
    then = table(100.0 - 10 * ARCSEC, 0.6 * ARCSEC, 0.1, 0.4)
    for name in ("epoch_min", "epoch_max"):
        then = then.append_column(name, pa.array([2006.0]))
    assert candidate_pairs(star, then, 1.0)["sigmas"][0].as_py() == pytest.approx(1.2, rel=1e-4)


def test_errors_that_are_not_known() -> None:
    left = table([10.0, 10.0], [0.0, 0.0], [0.1, np.nan])
    right = table([10.0, 10.0], [0.1 * ARCSEC, 0.2 * ARCSEC], [0.1, np.nan])
    prior = Prior.of(*(sky.healpix29(t["ra"].to_numpy(), t["dec"].to_numpy()) for t in (left, right)))
    pairs = candidate_pairs(left, right, 1.0, prior).to_pylist()
    assert len(pairs) == 4
    for pair in pairs:
        known = pair["left_row"] == pair["right_row"] == 0
        assert all((pair[name] is not None) == known for name in ("sigmas", "left_posterior", "right_posterior"))
    for bad in (0.0, -1.0):
        with pytest.raises(ValueError, match=r"right at row 1: ra_error is .* wanted above 0, or null"):
            candidate_pairs(left, table([1.0, 2.0], [1.0, 1.0], [0.1, bad]), 1.0)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.floats(0.05, 0.95))
def test_posteriors_are_those_of_all_hypotheses(seed: int, found: float) -> None:
    rng = np.random.default_rng(seed)
    left = table(10 + rng.uniform(0, 2, 8) * ARCSEC, rng.uniform(0, 2, 8) * ARCSEC, rng.uniform(0.1, 0.5, 8))
    right = table(10 + rng.uniform(0, 2, 9) * ARCSEC, rng.uniform(0, 2, 9) * ARCSEC, rng.uniform(0.1, 0.5, 9))
    n, m = 2e-4, 5e-4
    prior = Prior({c: n for c in range(49152)}, {c: m for c in range(49152)}, found, 0.1)
    pairs = candidate_pairs(left, right, 3.0, prior)
    assert pairs.num_rows == 72
    rows = pairs.to_pylist()
    sums = {}
    for p in rows:
        error = np.hypot(left["ra_error"][p["left_row"]].as_py(), right["ra_error"][p["right_row"]].as_py())
        density = 0.9 * np.exp(-((p["separation_uas"] / 1e6 / error) ** 2) / 2) / (2 * np.pi * error**2)
        density += 0.1 / (np.pi * 3**2)
        for side, share, other in (("left", found, m), ("right", found * n / m, n)):
            # none is the counterpart: all are of the background; or this one is, and the rest is
            sums.setdefault((side, p[f"{side}_row"]), {None: 1 - share})[id(p)] = share * density / other
    for p in rows:
        for side in ("left", "right"):
            weights = sums[side, p[f"{side}_row"]]
            assert p[f"{side}_posterior"] == pytest.approx(weights[id(p)] / sum(weights.values()), abs=1e-6)


def sky_of_two(rng: np.random.Generator, n: int, share: float, error: float) -> tuple[pa.Table, pa.Table]:
    """Four square degrees; `share` of n left sources are among 4n right ones, scattered by their errors; the truth is
    that both have the same `thing`."""
    low, high = np.sin(np.radians([-1.0, 1.0]))

    def anywhere(k: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.uniform(9, 11, k), np.degrees(np.arcsin(rng.uniform(low, high, k)))

    ra, dec = anywhere(n)
    both = int(share * n)
    errors = error * rng.uniform(0.5, 2, (2, 2, 4 * n))
    other = anywhere(4 * n)
    true = sky.propagate(ra[:both], dec[:both], *(1000 * rng.normal(0, errors[1, :, :both])), 1.0)
    other[0][:both], other[1][:both] = true
    ra, dec = sky.propagate(ra, dec, *(1000 * rng.normal(0, errors[0, :, :n])), 1.0)
    left, right = table(ra, dec, *errors[0, :, :n]), table(*other, *errors[1])
    things = np.arange(n), np.concatenate([np.arange(both), -1 - np.arange(4 * n - both)])
    return tuple(t.append_column("thing", pa.array(thing)) for t, thing in zip((left, right), things, strict=True))


def test_posteriors_are_calibrated_where_the_truth_is_known() -> None:
    left, right = sky_of_two(np.random.default_rng(4), 60000, 0.7, 0.7)
    area = np.radians(2) * 2 * np.sin(np.radians(1)) * (180 * 3600 / np.pi) ** 2
    cells = range(49152)
    prior = Prior(dict.fromkeys(cells, 60000 / area), dict.fromkeys(cells, 240000 / area), 0.7, 0.0)
    pairs = candidate_pairs(left, right, 6.0, prior)
    things = (t["thing"].to_numpy()[pairs[f"{s}_row"].to_numpy()] for t, s in ((left, "left"), (right, "right")))
    true = np.equal(*things)
    for side in ("left", "right"):
        said = pairs[f"{side}_posterior"].to_numpy()
        edges = np.array([0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.96, 1.0])
        which = np.digitize(said, edges[1:-1])
        for k in range(edges.size - 1):
            mine = which == k
            n, mean = mine.sum(), said[mine].mean()
            assert n > 50
            assert abs(true[mine].mean() - mean) < 4 * np.sqrt(mean * (1 - mean) / n), (side, k)


def likelihoods(pairs: pa.Table) -> tuple[list[np.ndarray], np.ndarray]:
    """Rows of both sides, and the likelihoods by their errors."""
    errors = (
        np.hypot(pairs[f"{e}_left"].to_numpy(), pairs[f"{e}_right"].to_numpy()) for e in ("ra_error", "dec_error")
    )
    rows = [pairs[name].to_numpy() for name in ("left_row", "right_row")]
    return rows, posterior.likelihoods(pairs["sigmas"].to_numpy(), *errors, 3.0, 0.0)


def test_the_share_of_outliers_is_estimated() -> None:
    rng = np.random.default_rng(9)
    for n, share, wanted in ((20000, 0.9, 0.05), (20000, 0.9, 0.0), (20000, 0.3, 0.1)):
        left, right = sky_of_two(rng, n, share, 0.1)
        thrown = np.flatnonzero((right["thing"].to_numpy() >= 0) & (rng.uniform(size=right.num_rows) < wanted))
        far, angle = 3.0 * np.sqrt(rng.uniform(size=thrown.size)), rng.uniform(0, 2 * np.pi, thrown.size)
        ra, dec = right["ra"].to_numpy().copy(), right["dec"].to_numpy().copy()
        ra[thrown] = left["ra"].to_numpy()[right["thing"].to_numpy()[thrown]] + far * np.cos(angle) * ARCSEC
        dec[thrown] = left["dec"].to_numpy()[right["thing"].to_numpy()[thrown]] + far * np.sin(angle) * ARCSEC
        at = right.column_names.index("ra")
        right = right.set_column(at, "ra", pa.array(ra)).set_column(at + 1, "dec", pa.array(dec))
        a, b = (sky.healpix29(t["ra"].to_numpy(), t["dec"].to_numpy()) for t in (left, right))
        for one, other, hp in ((left, right, (a, b)), (right, left, (b, a))):
            rows, by_errors = likelihoods(crossmatch(one, other, 3.0, keep="all"))
            found, outliers = posterior.estimate_shares(*rows, by_errors, 3.0, Prior.of(*hp, None, None), *hp)
            assert found == pytest.approx(share, abs=0.02)
            assert outliers == pytest.approx(wanted, abs=0.01)
        said = crossmatch(left, right, 3.0, keep="all", found=None, outliers=None)
        sums = sum(said[name].to_numpy().sum() for name in ("left_posterior", "right_posterior")) / 2
        true = (said["thing_left"].to_numpy() == said["thing_right"].to_numpy()).sum()
        assert sums == pytest.approx(true, rel=0.02)


def test_shares_without_pairs_are_the_usual_ones() -> None:
    left, right = table([10.0], [0.0]), table([10.0], [1.0])
    a, b = (sky.healpix29(t["ra"].to_numpy(), t["dec"].to_numpy()) for t in (left, right))
    none = np.zeros(0, np.int64)
    shares = posterior.estimate_shares(none, none, np.zeros(0), 1.0, Prior.of(a, b, None, None), a, b)
    assert shares == (posterior.FOUND, posterior.OUTLIERS)


def test_the_share_is_estimated() -> None:
    for share in (0.3, 0.9):
        left, right = sky_of_two(np.random.default_rng(6), 20000, share, 0.2)
        a, b = (sky.healpix29(t["ra"].to_numpy(), t["dec"].to_numpy()) for t in (left, right))
        pairs = crossmatch(left, right, 3.0, keep="all", found=None)
        rows, likelihood = likelihoods(pairs)
        found, outliers = posterior.estimate_shares(*rows, likelihood, 3.0, Prior.of(a, b, None, 0.0), a, b)
        assert found == pytest.approx(share, abs=0.02) and outliers == 0.0
    for bad in (0.0, 1.0, -0.5, float("nan")):
        with pytest.raises(ValueError, match="share with a counterpart"):
            Prior({}, {}, bad)


def test_where_the_posterior_is_the_policy_no_row_is_in_two_pairs() -> None:
    left, right = sky_of_two(np.random.default_rng(5), 20000, 0.7, 0.7)
    pairs = crossmatch(left, right, 5.0, keep="posterior")
    assert pairs.num_rows > 10000
    for name in ("left_row", "right_row"):
        assert len(set(pairs[name].to_pylist())) == pairs.num_rows
    true = np.asarray(pairs["thing_left"]) == np.asarray(pairs["thing_right"])
    by_distance = crossmatch(left, right, 5.0, keep="mutual")
    distance_true = np.asarray(by_distance["thing_left"]) == np.asarray(by_distance["thing_right"])
    assert true.mean() > distance_true.mean()


def test_a_counterpart_that_is_listed_twice_is_not_lost() -> None:
    left = table(10.0, 0.0, 0.1)
    right = table([10.0, 10.0 + 0.02 * ARCSEC], [0.01 * ARCSEC, 0.0], 0.1)
    pairs = crossmatch(left, right, 1.0, keep="all")
    assert max(pairs["left_posterior"].to_pylist()) < 0.51
    assert crossmatch(left, right, 1.0, keep="posterior")["right_row"].to_pylist() == [0]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31))
def test_believed_is_what_it_says_in_any_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    left_row, right_row = (x.ravel() for x in np.meshgrid(np.arange(4), np.arange(3)))
    of_left, of_right = (rng.choice([0.0, 0.2, 0.25, 0.4, 0.7, np.nan], 12) for _ in range(2))
    of_right[np.isnan(of_left)] = np.nan
    of_left[np.isnan(of_right)] = np.nan
    left_rank, right_rank = (rng.permutation(12) for _ in range(2))
    found = posterior.believed(left_row, right_row, of_left, of_right, left_rank, right_rank)
    for k in range(12):
        wanted = np.isfinite(of_left[k])
        for row, said, rank in ((left_row, of_left, left_rank), (right_row, of_right, right_rank)):
            mine = np.flatnonzero(row == row[k])
            best = min(mine, key=lambda i: (-np.nan_to_num(said[i]), rank[i]))
            wanted &= best == k and np.nansum(said[mine]) > 0.5 + 1e-12
        assert found[k] == wanted
    order = rng.permutation(12)
    again = posterior.believed(*(x[order] for x in (left_row, right_row, of_left, of_right, left_rank, right_rank)))
    assert np.array_equal(again, found[order])
    none = np.zeros(0, np.int64)
    assert not posterior.believed(none, none, np.zeros(0), np.zeros(0), none, none).size


def test_a_magnitude_prior_knows_counterparts_from_the_crowd() -> None:
    rng = np.random.default_rng(7)
    left, right = sky_of_two(rng, 20000, 0.7, 0.7)
    is_thing = right["thing"].to_numpy() >= 0
    magnitude = np.where(is_thing, rng.normal(20, 1, is_thing.size), rng.normal(24, 1, is_thing.size))
    magnitude[rng.uniform(size=magnitude.size) < 0.01] = np.nan
    right = right.append_column("mag", pa.array(magnitude, from_pandas=True))

    def right_share(**more) -> float:
        pairs = crossmatch(left, right, 5.0, keep="posterior", **more)
        return (np.asarray(pairs["thing_left"]) == np.asarray(pairs["thing_right"])).sum() / 14000

    assert right_share(right_magnitude="mag") > right_share() + 0.01
    with pytest.raises(ValueError, match="safe counterparts have a magnitude; wanted 200"):
        crossmatch(left.slice(0, 100), right, 5.0, right_magnitude="mag")


def test_densities_are_of_what_is_occupied() -> None:
    rng = np.random.default_rng(3)
    n = 40000
    ra, dec = rng.uniform(0, 20, n), rng.uniform(-10, 10, n)
    found = posterior.densities(sky.healpix29(ra, dec))
    per_square_arcsec = n / 400 / 3600**2
    assert np.median(list(found.values())) == pytest.approx(per_square_arcsec, rel=0.03)
    # a corner of a cell alone: a few sources, as dense there
    few = posterior.densities(sky.healpix29(ra[:5] * 0, dec[:5] * 0))
    assert list(few.values()) == [pytest.approx(5 / sky.cell_size_arcsec(8) ** 2)]
    assert posterior.densities(np.zeros(0, np.int64)) == {}


def test_densities_of_a_small_field() -> None:
    rng = np.random.default_rng(5)
    for arcmin in (10, 30, 60):
        n = int(0.05 * (arcmin * 60) ** 2)
        healpix29 = sky.healpix29(10 + rng.uniform(0, arcmin / 60, n), rng.uniform(0, arcmin / 60, n))
        told = posterior.densities(healpix29)
        cell = sky.cells(healpix29, posterior.DENSITY_ORDER)
        assert np.mean([told[c] for c in cell.tolist()]) == pytest.approx(0.05, rel=4 / arcmin)


def test_rows_whose_errors_are_not_known_do_not_count_for_the_share() -> None:
    left, right = sky_of_two(np.random.default_rng(8), 20000, 0.9, 0.1)
    null = pa.array(np.where(np.arange(20000) % 2, left["ra_error"].to_numpy(), np.nan), from_pandas=True)
    some = left.set_column(left.column_names.index("ra_error"), left.schema.field("ra_error"), null)
    least = [
        np.nanmedian(crossmatch(t, right, 2.0, keep="all", found=None)["left_posterior"].to_numpy())
        for t in (left, some)
    ]
    assert least[0] == pytest.approx(least[1], abs=1e-4)
