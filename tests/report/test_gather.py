"""The numbers of the page against closed forms: chance, Rayleigh's form, offsets, scores; and the tables of a pile."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from skycairn.match import sky
from skycairn.match.pairs import Positions, candidate_pairs
from skycairn.pile.store import Draft, Entry, Pile
from skycairn.report import chance, offsets, separations
from skycairn.report.cutflow import cut_flow
from skycairn.report.findings import warnings
from skycairn.report.gather import Numbers, gather, n_pairs
from skycairn.report.intervals import garwood, sigmas_of, wilson
from skycairn.report.rayleigh import (
    MEDIAN,
    background_counts,
    combined_sigma,
    expected_counts,
    log_edges,
    quantile_of,
)
from skycairn.report.reading import Cells, Looked
from skycairn.report.scores import class_names
from skycairn.report.surrounded import inner_cells, reach_arcsec

Floats = NDArray[np.float64]


def scattered(rng: np.random.Generator, n: int, size_deg: float, ra: float = 40.0, dec: float = -30.0) -> pa.Table:
    """A Poisson sky of n sources in a square."""
    half = size_deg / 2
    lon = ra + rng.uniform(-half, half, n) / np.cos(np.radians(dec))
    lat = dec + rng.uniform(-half, half, n)
    return pa.table({"key": np.arange(n), "ra": lon, "dec": lat})


def displaced(table: pa.Table, east_arcsec: Floats, north_arcsec: Floats) -> pa.Table:
    ra, dec = sky.propagate(table["ra"], table["dec"], 1000 * east_arcsec, 1000 * north_arcsec, 1.0)
    return pa.table({"key": table["key"], "ra": ra, "dec": dec})


# --- intervals


def test_intervals_are_those_of_their_papers() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    # Brown, Cai and DasGupta (2001): the limits solve (p - k/n)^2 = z^2 p (1 - p) / n
    for k, n in ((0, 20), (3, 20), (20, 20)):
        for p in wilson(k, n):
            assert (p - k / n) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / n, abs=1e-9)
    # Gehrels (1986), table 1 and 2: one sigma of 0, 3 and 10 events
    assert garwood(0) == pytest.approx((0.0, 1.841), abs=1e-3)
    assert garwood(3) == pytest.approx((1.367, 5.918), abs=2e-3)
    assert garwood(10) == pytest.approx((6.891, 14.267), abs=2e-3)
    with pytest.raises(ValueError, match="4 successes in 3 trials"):
        wilson(4, 3)


def test_sigmas_of_an_offset_count_the_trials() -> None:
    # the tail of two degrees of freedom is exp(-x / 2), the normal's two-sided tail at 3 sigma 0.0027
    assert sigmas_of(-2 * np.log(0.0026997960632601866)) == pytest.approx(3.0, abs=1e-6)
    assert sigmas_of(5.0, trials=1000) == 0.0
    assert sigmas_of(1e9) > 30


# --- Rayleigh


def test_gaussian_scatter_gives_the_form_that_its_errors_expect() -> None:
    rng = np.random.default_rng(1)
    n, radius = 60_000, 1000.0
    errors = rng.uniform(30, 400, (n, 4))
    shift = rng.normal(size=(n, 2)) * np.hypot(errors[:, :2], errors[:, 2:])
    circular = combined_sigma(*np.full((4, n), 100.0))
    assert np.allclose(circular, 100 * np.sqrt(2))
    # of equal axes the form is exact
    errors[:, 1], errors[:, 3] = errors[:, 0], errors[:, 2]
    sigma = combined_sigma(errors[:, 0], errors[:, 1], errors[:, 2], errors[:, 3])
    shift = rng.normal(size=(n, 2)) * sigma[:, None]
    apart = np.hypot(*shift.T)
    inside = apart <= radius
    edges = log_edges(radius, 1.0, 10)
    assert edges[-1] == radius and edges[0] >= 1.0
    found = np.histogram(apart[inside], edges)[0]
    expected = expected_counts(sigma[inside], edges, radius)
    assert expected.sum() == pytest.approx(inside.sum(), rel=1e-3)
    pulls = (found - expected) / np.sqrt(expected)
    assert np.abs(pulls[expected > 20]).max() < 4.5


def test_error_scale_is_one_where_errors_are_right_and_two_where_they_are_half() -> None:
    rng = np.random.default_rng(2)
    n = 20_000
    for factor in (1.0, 2.0):
        s = separations.Separations(1000.0)
        errors = np.stack([rng.uniform(0.005, 0.02, n) for _ in range(4)], axis=1)
        shift = 1000 * factor * rng.normal(size=(n, 2)) * np.hypot(errors[:, :2], errors[:, 2:])
        yes = np.ones(n, bool)
        pairs = pa.table(
            {
                "separation_uas": np.rint(1000 * np.hypot(*shift.T)).astype(np.int64),
                **{"mutual": yes, "accepted": yes, "conflict": ~yes},
            }
        )
        s.add(pairs, ~yes, errors, shift, np.zeros(n))
        scale, error = s.error_scale()
        assert scale == pytest.approx(factor, abs=4 * error) and 0.002 < error < 0.03
        assert s.n_measured == s.n_accepted == n
        assert s.expected.sum() == pytest.approx(n, rel=0.01)


def test_pairs_without_errors_or_of_one_position_are_counted_and_not_judged() -> None:
    s = separations.Separations(1000.0)
    yes = np.ones(3, bool)
    pairs = pa.table({"separation_uas": [0, 500, 1_000_000], "mutual": yes, "accepted": yes, "conflict": ~yes})
    errors = np.array([[0.1] * 4, [0.1, 0.1, np.nan, 0.1], [0.1] * 4])
    s.add(pairs, np.array([False, False, True]), errors, np.zeros((3, 2)), np.zeros(3))
    assert (s.n_accepted, s.n_measured, s.n_tied) == (3, 1, 1)
    # two are nearer than the first edge... one of them by rounding
    assert s.accepted.sum() == 2 and s.accepted[-1] == 1
    s.add(pairs, ~yes, np.full((3, 4), 0.1), np.zeros((3, 2)), np.array([0.0, 25.0, 35.0]))
    assert (s.n_accepted, s.n_measured, s.n_free) == (6, 3, 1)
    empty = separations.Separations(1000.0)
    assert np.isnan(empty.median_mas()) and np.isnan(empty.error_scale()[0])
    drawn = s.drawn()
    assert len(drawn["edges"]) == len(drawn["accepted"]) + 1 and drawn["edges"][-1] == pytest.approx(1000)


def test_a_pile_that_holds_sigmas_is_believed() -> None:
    s = separations.Separations(1000.0)
    yes = np.ones(100, bool)
    pairs = pa.table({"separation_uas": np.full(100, 5000), "mutual": yes, "accepted": yes, "conflict": ~yes})
    s.add(pairs, ~yes, np.full((100, 4), 0.1), np.zeros((100, 2)), np.zeros(100), np.full(100, MEDIAN))
    assert s.error_scale()[0] == pytest.approx(1.0, abs=0.01)


def test_quantiles_of_a_histogram() -> None:
    values = np.random.default_rng(3).uniform(0, 1, 10_000)
    edges = np.linspace(0, 1, 101)
    counts = np.histogram(values, edges)[0]
    for q in (0.1, 0.5, 0.9):
        assert quantile_of(counts, edges, 0, q) == pytest.approx(np.quantile(values, q), abs=0.002)
    assert np.isnan(quantile_of(counts, edges, 30_000, 0.5)) and np.isnan(quantile_of(counts * 0, edges, 0, 0.5))


# --- chance


def test_chance_of_a_poisson_sky_is_the_closed_form() -> None:
    rng = np.random.default_rng(4)
    size, radius = 0.4, 3.0
    a, b = scattered(rng, 3000, size), scattered(rng, 5000, size)
    inner = 0.5 * size - 40 / 3600

    def counts(ra: Floats, dec: Floats) -> NDArray[np.bool_]:
        near = np.abs((ra - 40.0) * np.cos(np.radians(-30.0))) < inner
        return near & (np.abs(dec + 30.0) < inner)

    everything = np.ones(3000, bool), np.ones(5000, bool)
    found = chance.of_tables(a, b, *everything, counts, radius, 30.0)
    # the square narrows to the north, by the cosine of its declination
    area = (size * 3600) ** 2 * np.mean(np.cos(np.radians(np.linspace(-30.2, -29.8, 99)))) / np.cos(np.radians(-30.0))
    for of_a, n_other in ((True, 5000), (False, 3000)):
        rate, low, high = found.rate(of_a)
        wanted = chance.poisson_sky(n_other / area, radius)
        assert low < rate < high
        # eight directions of the same sources: the densities of the two draws bound how well it can agree
        assert rate == pytest.approx(wanted, rel=4 / np.sqrt(3000 * wanted * 8) + 4 / np.sqrt(n_other) * 0.5)
    assert found.pairs_per_source == pytest.approx(np.pi * radius**2 * 5000 / area, rel=0.1)
    # and in the histogram of separations they grow with the square of the radius
    edges = np.array([0.0, 1.0, 2.0, 3.0])
    assert background_counts(1000, edges, 3.0, 0.9).tolist() == pytest.approx([100, 300, 500])


def test_true_pairs_are_no_chance_pairs() -> None:
    rng = np.random.default_rng(5)
    a = scattered(rng, 500, 0.5)
    b = displaced(a, rng.normal(0, 0.05, 500), rng.normal(0, 0.05, 500))
    assert candidate_pairs(a, b, 1.0).num_rows >= 500
    every = np.ones(500, bool)
    found = chance.of_tables(a, b, every, every, lambda ra, dec: np.ones(ra.size, bool), 1.0, 30.0)
    assert found.n_a == 500 * chance.DIRECTIONS
    assert found.rate(True)[0] < 0.005


def test_sources_shifted_to_where_nobody_looked_are_no_trials() -> None:
    a = scattered(np.random.default_rng(6), 100, 0.2)
    none = chance.of_tables(a, a, *(np.ones(100, bool),) * 2, lambda ra, dec: ra < 0, 1.0, 30.0)
    assert none.n_a == none.n_b == none.pairs == 0 and np.isnan(none.rate(True)[0])
    assert none.rate(True)[1:] == (0.0, 1.0)


def test_a_radius_too_wide_for_a_shift_is_refused() -> None:
    assert chance.shift_for(1.0) == 30.0 and chance.shift_for(20.0) == 120.0
    with pytest.raises(ValueError, match="no chance rate can be measured"):
        chance.shift_for(200.0)


def test_the_sample_of_cells_is_spread_and_always_the_same() -> None:
    cells = list(range(1000, 3000))
    some = chance.sample(cells)
    assert len(some) == chance.MOST_CELLS and some == chance.sample(cells[::-1])
    assert np.ptp(some) > 1500


# --- offsets


@pytest.mark.parametrize(("ra", "dec"), [(40.0, -30.0), (0.0, 0.0), (123.0, 89.9)])
def test_a_known_shift_is_the_offset(ra: float, dec: float) -> None:
    rng = np.random.default_rng(7)
    n = 400
    lat = np.clip(dec + rng.uniform(-0.05, 0.05, n), -90, 89.99)
    a = pa.table({"key": np.arange(n), "ra": (ra + rng.uniform(-0.1, 0.1, n)) % 360, "dec": lat})
    b = displaced(a, 0.025 + rng.normal(0, 0.01, n), -0.010 + rng.normal(0, 0.01, n))
    (found,) = offsets.by_cell(np.zeros(n, np.int64), offsets.offsets_mas(Positions.of(a), Positions.of(b)))
    assert found.n == n
    assert found.east == pytest.approx(25, abs=4 * found.east_error)
    assert found.north == pytest.approx(-10, abs=4 * found.north_error)
    assert found.east_error == pytest.approx(10 * np.sqrt(np.pi / 2) / np.sqrt(n), rel=0.2)
    ((cell, sigmas),) = offsets.notable([found])
    assert cell is found and sigmas > 10


def test_offset_of_a_mover_is_that_at_closest_approach() -> None:
    mover = pa.table({"key": [1], "ra": [10.0], "dec": [0.0], "pmra": [100.0], "pmdec": [0.0], "epoch": [2016.0]})
    at = sky.propagate(10.0, 0.0, 100.0, 0.0, 4.0)
    ra, dec = sky.propagate(at[0], at[1], 0.0, 30.0, 1.0)
    other = pa.table({"key": [2], "ra": ra, "dec": dec, "epoch_min": [2019.0], "epoch_max": [2021.0]})
    found = offsets.offsets_mas(Positions.of(mover), Positions.of(other))
    assert found[0].tolist() == pytest.approx([0.0, 30.0], abs=1e-3)
    track = offsets.track_mas(Positions.of(mover), Positions.of(other))
    assert track.tolist() == pytest.approx([200.0])
    assert offsets.track_mas(Positions.of(other), Positions.of(other)).tolist() == [0.0]


def test_stars_at_unknown_times_do_not_hide_an_offset() -> None:
    rng = np.random.default_rng(6)
    n, years, shift = 4000, 5.0, 20.0
    moves = np.arange(n) % 4 > 0
    pm = np.where(moves, rng.normal(0, 7, (2, n)), 0.0)
    star = {"key": np.arange(n), "ra": np.full(n, 40.0), "dec": np.full(n, 10.0), "epoch": np.full(n, 2016.0)}
    a = pa.table({**star, "pmra": pm[0], "pmdec": pm[1]})
    late = rng.uniform(2008, 2008 + years, n) - 2016
    east, north = pm * late + rng.normal(0, 20, (2, n))
    b = displaced(a, (east + shift) / 1000, north / 1000)
    b = b.append_column("epoch_min", pa.array(np.full(n, 2008.0))).append_column(
        "epoch_max", pa.array(np.full(n, 2008.0 + years))
    )
    both = Positions.of(a), Positions.of(b)
    apart, track = offsets.offsets_mas(*both), offsets.track_mas(*both)
    (hidden,) = offsets.by_cell(np.zeros(n, np.int64), apart)
    assert hidden.east < shift - 5 * hidden.east_error
    for error in (np.nan, 0.02, 0.0005):
        free = offsets.is_free(track, np.full((n, 4), error))
        limit = 0.2 * 1000 * error * np.sqrt(2) if error == 0.0005 else offsets.WORTH_MAS
        assert np.array_equal(free, track > limit)
        (found,) = offsets.by_cell(np.zeros((~free).sum(), np.int64), apart[~free])
        assert (found.east, found.north) == pytest.approx((shift, 0), abs=3 * found.east_error)


def test_few_pairs_or_small_offsets_raise_no_alarm() -> None:
    rng = np.random.default_rng(8)
    few = offsets.by_cell(np.zeros(10, np.int64), 50 + rng.normal(size=(10, 2)))
    small = offsets.by_cell(np.zeros(900, np.int64), 1 + 0.01 * rng.normal(size=(900, 2)))
    none = offsets.by_cell(np.arange(9000) // 100, rng.normal(0, 50, (9000, 2)))
    assert not [*offsets.notable(few), *offsets.notable(small), *offsets.notable(none)]
    assert len(offsets.coarser(none, 1)) == 23
    assert sum(x.n for x in offsets.coarser(none, 1)) == 9000


# --- the tables of a pile


@pytest.fixture(scope="module")
def numbers(tiny_pile: Path, tiny_sky: Path) -> Numbers:
    pile = Pile.open(tiny_pile)
    return gather(pile, pile.snapshot(), tiny_sky)


def whole(pile_root: Path, name: str) -> pa.Table:
    pile = Pile.open(pile_root)
    parts = [pile.read_table(e.part) for e in pile.snapshot().entries(name)]
    return pa.concat_tables(parts, promote_options="permissive")


def test_counts_are_those_of_the_tables(numbers: Numbers, tiny_pile: Path) -> None:
    pairs, members, objects = (whole(tiny_pile, n) for n in ("pairs", "members", "objects"))
    assert numbers.n_objects == objects.num_rows
    assert sum(numbers.members.values()) == members.num_rows
    for (a, b), s in numbers.separations.items():
        mine = pairs.filter(pc.and_(pc.equal(pairs["survey_a"], a), pc.equal(pairs["survey_b"], b)))
        assert s.n_candidates == mine.num_rows
        for n, column in ((s.n_mutual, "mutual"), (s.n_accepted, "accepted"), (s.n_conflicts, "conflict")):
            assert n == sum(mine[column].to_pylist())
        assert s.candidates.sum() + int(s.n_candidates - s.candidates.sum()) == s.n_candidates
    assert n_pairs(numbers) == sum(pairs["accepted"].to_pylist())
    assert sum(numbers.sky.objects.values()) == objects.num_rows


def test_pairs_left_out_of_offsets_are_counted(numbers: Numbers) -> None:
    for pair, s in numbers.separations.items():
        used = sum(x.n for x in numbers.offsets[pair])
        assert used + numbers.offsets_free[pair] <= s.n_accepted - s.n_tied
    assert sum(numbers.offsets_free.values()) > 0


def test_unmatched_are_those_whose_object_has_none(numbers: Numbers, tiny_pile: Path) -> None:
    objects = whole(tiny_pile, "objects").to_pylist()
    for (a, b), looked in numbers.sky.looked.items():
        of_a = [o for o in objects if o[f"key.{a}"] is not None]
        lone = [o for o in of_a if o[f"key.{b}"] is None and o[f"status.{b}"] != "outside footprint"]
        seen = [o for o in of_a if o[f"status.{b}"] != "outside footprint"]
        assert sum(looked.values()) == len(seen)
        assert sum(numbers.sky.unmatched[a, b].values()) == len(lone)


def test_cut_flow_closes_and_a_mismatch_is_told(numbers: Numbers) -> None:
    for steps in numbers.cut_flows.values():
        assert [s.missing for s in steps] == [0, 0, 0, 0]
        assert steps[0].into > 0
    (rows, *_) = cut_flow({"rows": 10, "kept": 7, "dropped:type": 2})
    assert rows.missing == 1 and rows.lost == {"type": 2}
    broken = Numbers(numbers.snapshot, ("gaia",), {}, {}, cut_flows={"gaia": [rows]})
    assert any("1 unaccounted for" in w for w in warnings(broken))


def test_scores_of_the_mock_sky(numbers: Numbers, tiny_pile: Path, tiny_sky: Path) -> None:
    """Held against a plain reckoning with Python's own sets."""
    pairs = [p for p in whole(tiny_pile, "pairs").to_pylist() if p["accepted"]]
    shown: dict[tuple[str, int], set[int]] = {}
    valid: set[tuple[str, int]] = set()
    for name in numbers.surveys:
        for r in pq.read_table(tiny_sky / "truth" / f"{name}.parquet").to_pylist():
            if r["uid"] > 0 and r["observed"] and r["key"] is not None:
                shown.setdefault((name, r["key"]), set()).add(r["uid"])
        valid |= {(name, k) for k in whole(tiny_pile, f"{name}.slim")["key"].to_pylist()}
    for (a, b), score in numbers.scores.items():
        mine = [p for p in pairs if (p["survey_a"], p["survey_b"]) == (a, b)]
        common = [shown.get((a, p["key_a"]), set()) & shown.get((b, p["key_b"]), set()) for p in mine]
        assert score.purity()[0] == (sum(map(bool, common)), len(mine))
        given = [{u for k in valid if k[0] == s for u in shown.get(k, ())} for s in (a, b)]
        both = given[0] & given[1]
        assert score.completeness()[0] == (len(set().union(*common) & both), len(both))
    assert class_names()[0] == "all"


def test_truth_of_another_sky_is_refused(tiny_pile: Path, tiny_sky: Path, tmp_path: Path) -> None:
    pile = Pile.open(tiny_pile)
    with pytest.raises(ValueError, match="--truth wants the folder"):
        gather(pile, pile.snapshot(), tmp_path)
    (tmp_path / "truth").mkdir()
    for path in (tiny_sky / "truth").glob("*.parquet"):
        table = pq.read_table(path)
        if "key" in table.column_names:
            table = table.set_column(
                table.column_names.index("key"), "key", pc.add(table["key"], pa.scalar(1 << 40, pa.int64()))
            )
        pq.write_table(table, tmp_path / "truth" / path.name)
    with pytest.raises(ValueError, match="knows none of the pile's sources"):
        gather(pile, pile.snapshot(), tmp_path)


def with_columns(root: Path, out: Path, **columns: Any) -> Pile:
    """A copy of the pile whose pairs have other columns."""
    import shutil

    shutil.copytree(root, out)
    pile = Pile.open(out)
    head = pile.snapshot()
    entries = []
    for e in head.entries("pairs"):
        table = pile.read_table(e.part)
        for name, make in columns.items():
            table = table.drop_columns([name] if name in table.column_names else [])
            table = table.append_column(name, pa.array(make(table), pa.float64()))
        entries.append(Entry(e.labels, pile.put_table(table)))
    tables = {**head.tables, "pairs": entries}
    pile.commit(Draft(head.recipe, tables, head.aside, head.held_back, head.stats))
    return pile


def test_posteriors_are_held_against_the_truth(tiny_pile: Path, tiny_sky: Path, tmp_path: Path) -> None:
    pile = with_columns(
        tiny_pile,
        tmp_path / "pile",
        posterior_a=lambda t: [0.95 if a else 0.05 for a in t["accepted"].to_pylist()],
        sigmas=lambda t: [None] * t.num_rows,
    )
    found = gather(pile, pile.snapshot(), tiny_sky)
    n = sum(s.n_posterior for s in found.scores.values())
    true = sum(s.n_true for s in found.scores.values())
    assert n.sum() == sum(s.n_candidates for s in found.separations.values())
    assert n[9] == n_pairs(found) and true[9] == sum(s.purity()[0][0] for s in found.scores.values())
    assert all(np.isnan(s.error_scale()[0]) for s in found.separations.values())


def test_a_place_is_inside_where_sources_lie_all_round_it() -> None:
    """The border of a square of sources is seen to about a fine cell, 51 arcsec, whichever way it lies."""
    table = scattered(np.random.default_rng(9), 4000, 0.2)
    at = sky.healpix29(table["ra"], table["dec"])
    grid = np.linspace(-0.2, 0.2, 81)
    x, y = (v.ravel() for v in np.meshgrid(grid, grid))
    place = sky.cells(sky.healpix29(40 + x / np.cos(np.radians(-30)), -30 + y), sky.FINE_ORDER)
    inside = np.isin(place, inner_cells(place, at))
    border = 3600 * (0.1 - np.maximum(np.abs(x), np.abs(y)))
    assert inside[border > 80].all() and not inside[border < -40].any()
    assert not inner_cells(place, at[:0]).size and not inner_cells(place[:0], at).size
    # few sources are asked for farther away
    assert reach_arcsec(at) == 206.0 < reach_arcsec(at[::200]) <= 900.0


def test_places_beside_what_was_read_or_held_back_do_not_count(tiny_pile: Path) -> None:
    pile = Pile.open(tiny_pile)
    looked = Looked.of(Cells(pile, pile.snapshot()))
    # the recipe's region is a cone of half a degree about (0, -1.2), read to 900 arcsec beyond it
    ra, dec = np.array([0.0, 0.0, 0.0]), np.array([-1.2, -1.2 + 0.745, -1.2 + 0.755])
    assert looked.readable(ra, dec, 0.0).tolist() == [True, True, False]
    assert looked.readable(ra, dec, 30.0).tolist() == [True, False, False]
    held = replace(looked, held=sky.cells(sky.healpix29(ra[:1], dec[:1]), 6))
    assert not held.readable(ra, dec, 0.0)[0]
    assert looked.saw("gaia", ra, dec).all() and looked.saw("no such survey", ra, dec).all()
    assert not looked.saw("legacysurvey", ra + 90, dec).any()
