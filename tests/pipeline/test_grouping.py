"""Grouping against an independent one: every pair by its full matrix, greedy merging on Python's sets and fractions."""

from fractions import Fraction
from itertools import combinations

import healpy
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skycairn.match import sky
from skycairn.match.posterior import densities
from skycairn.pipeline.grouping import CellMatch, Groups, Policy, group, is_fast, match_cell, parts_of

RANKS = {"legacysurvey": 0, "gaia": 2, "desi": 3, "targets": 100}
RADII = {("legacysurvey", "gaia"): 1.0, ("gaia", "desi"): 1.5, ("desi", "legacysurvey"): 2.0}
MOTION = ("pmra", "pmdec", "epoch", "epoch_min", "epoch_max")

CORNER_OF_THREE = (90.0, float(np.degrees(np.arcsin(2 / 3))))
"""A point where only three cells meet, at every order."""
PLACES = {
    "corner of three cells": CORNER_OF_THREE,
    "corner of four cells at ra 0": (0.0, 0.0),
    "inside a cell at ra 0": (0.0, 0.5),
    "north pole": (0.0, 90.0),
    "south pole": (0.0, -90.0),
}


def source_table(ra, dec, key, pmra=None, pmdec=None, epoch=None, epoch_min=None, epoch_max=None) -> pa.Table:
    columns = {"key": pa.array(np.asarray(key), pa.int64()), "ra": np.asarray(ra, float), "dec": np.asarray(dec, float)}
    for name, values in zip(MOTION, (pmra, pmdec, epoch, epoch_min, epoch_max), strict=True):
        n = len(columns["key"])
        columns[name] = (
            pa.nulls(n, pa.float64()) if values is None else pa.array(values, pa.float64(), from_pandas=True)
        )
    return pa.table(columns)


def offset(place: tuple[float, float], east, north) -> tuple[np.ndarray, np.ndarray]:
    """Positions `east`, `north` arcsec from the place along great circles."""
    return sky.propagate(*place, np.asarray(east) * 1000.0, np.asarray(north) * 1000.0, 1.0)


LINKS = {"legacysurvey": "gaia", "desi": "legacysurvey"}
FIRST_KEYS = (-(2**63), 0, 1 << 61, 2**63 - 1000)


def crowd(
    rng: np.random.Generator, place: tuple[float, float], n: int, speed: float, links: float = 0.5
) -> dict[str, pa.Table]:
    """Some surveys of one crowded patch: chains, blends, doubles, movers; a share of `links` of the rows name one."""
    out = {}
    seen_by, keys = {}, {}
    patch = rng.choice([5.0, 15.0, 60.0])
    things = rng.normal(0, patch, (2, n))
    for name in RANKS:
        seen = rng.uniform(size=n) < 0.8
        m = int(seen.sum())
        here = things[:, seen] + rng.normal(0, rng.choice([0.0, 0.3, 0.8]), (2, m))
        moves = (rng.uniform(size=m) < 0.5) & (name != "targets")
        mas = 1000 * speed * rng.uniform(0, 1, m) ** 2 * moves
        way = rng.uniform(0, 2 * np.pi, m)
        pmra, pmdec = mas * np.sin(way), mas * np.cos(way)
        epoch = np.full(m, 2016.0)
        start = rng.uniform(1998, 2014, m)
        years = 2016.0 - rng.uniform(2000, 2016, m)
        ra, dec = offset(place, here[0] + pmra / 1000 * years, here[1] + pmdec / 1000 * years)
        null = np.where(moves, 0.0, np.nan)
        hold = np.where(moves | (rng.uniform(size=m) < 0.1), np.nan, 0.0)
        key = rng.choice(4 * n, m, replace=False) + np.int64(rng.choice(FIRST_KEYS))
        seen_by[name], keys[name] = np.flatnonzero(seen), key
        out[name] = source_table(
            ra, dec, key, pmra + null, pmdec + null, epoch + null, start + hold, start + hold + rng.uniform(0, 4, m)
        )
    for name, other in LINKS.items():
        # the same thing's row mostly, or any other, or one that is not there
        own = dict(zip(seen_by[other].tolist(), keys[other].tolist(), strict=True))
        wrong = [*keys[other].tolist(), -7, 2**63 - 1]
        claims = [
            None
            if rng.uniform() >= links
            else own.get(thing, wrong[0])
            if rng.uniform() < 0.7
            else wrong[rng.integers(len(wrong))]
            for thing in seen_by[name].tolist()
        ]
        out[name] = out[name].append_column(f"link.{other}", pa.array(claims, pa.int64()))
    return out


def radius(a: str, b: str) -> float:
    return RADII.get((a, b), RADII.get((b, a), 1.0))


def closest(a: dict, b: dict) -> int:
    """Micro-arcseconds, on the plane that touches the sky at a: least |d + v t| in the interval, in closed form."""
    lon, lat = np.radians(a["ra"]), np.radians(a["dec"])
    east = np.array([-np.sin(lon), np.cos(lon), 0.0])
    north = np.array([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)])

    def plane(row: dict) -> tuple[np.ndarray, np.ndarray]:
        x, y = np.radians(row["ra"]), np.radians(row["dec"])
        p = np.array([np.cos(y) * np.cos(x), np.cos(y) * np.sin(x), np.sin(y)])
        e = np.array([-np.sin(x), np.cos(x), 0.0])
        n = np.array([-np.sin(y) * np.cos(x), -np.sin(y) * np.sin(x), np.cos(y)])
        v = (row["pmra"] or 0) * e + (row["pmdec"] or 0) * n
        return np.array([p @ east, p @ north]) * 648000 / np.pi, np.array([v @ east, v @ north]) / 1000

    (pa_, va), (pb, vb) = plane(a), plane(b)
    moving = [r for r in (a, b) if r["pmra"] is not None]
    if len(moving) == 2:
        low, high = sorted([a["epoch"], b["epoch"]])
    elif moving:
        other = b if moving[0] is a else a
        low, high = other["epoch_min"], other["epoch_max"]
        if low is None:
            low = high = moving[0]["epoch"]
    else:
        low = high = 0.0
    d = pa_ - va * (a["epoch"] or 0) - pb + vb * (b["epoch"] or 0)
    v = va - vb
    t = low if not v @ v else min(max(-(d @ v) / (v @ v), low), high)
    return round(float(np.hypot(*(d + v * t))) * 1e6)


def brute(sources: dict[str, pa.Table], separation=closest) -> tuple[set, dict, set, set]:
    """Objects, separations of all candidates, conflicts, and candidates by id, from rows of Python."""
    every = [(RANKS[s], row["key"], s, row) for s, table in sources.items() for row in table.to_pylist()]
    near, linked = {}, set()
    for p, q in combinations(sorted(every, key=lambda x: x[:2]), 2):
        if p[0] == q[0] or np.cos(np.radians(p[3]["dec"] - q[3]["dec"])) < np.cos(np.radians(0.5)):
            continue
        s = separation(p[3], q[3])
        if s <= round(radius(p[2], q[2]) * 1e6):
            near[p[:2], q[:2]] = s
            if p[3].get(f"link.{q[2]}") == q[1] or q[3].get(f"link.{p[2]}") == p[1]:
                linked.add((p[:2], q[:2]))
    name = {RANKS[s]: s for s in sources}

    spoken_for = {(x, y[0]) for pair in linked for x, y in (pair, pair[::-1])}

    def turn(pair: tuple) -> int:
        p, q = pair
        return 0 if pair in linked else 2 if {(p, q[0]), (q, p[0])} & spoken_for else 1

    def first(own: tuple, other: tuple) -> bool:
        mine = [
            (turn(pair), s, x[1])
            for pair, s in near.items()
            if own in pair
            for x in pair
            if x != own and x[0] == other[0]
        ]
        return min(mine)[2] == other[1]

    edges = [(p, q) for p, q in near if first(p, q) and first(q, p)]
    edges.sort(
        key=lambda e: (e not in linked, Fraction(near[e], round(radius(name[e[0][0]], name[e[1][0]]) * 1e6)), *e)
    )
    moves = {x[:2]: x[3]["pmra"] is not None for x in every}

    def beside(x: tuple, y: tuple, both: frozenset) -> bool:
        """Near, or of two surveys that know no motion, carried within their radius by a member that does."""
        if (x, y) in near:
            return True
        if x[0] == y[0] or moves[x] or moves[y]:
            return False
        ways = [[near.get(tuple(sorted((m, z)))) for z in (x, y)] for m in both if moves[m]]
        return any(None not in way and sum(way) <= round(radius(name[x[0]], name[y[0]]) * 1e6) for way in ways)

    holder = {x[:2]: frozenset([x[:2]]) for x in every}
    for p, q in edges:
        both = holder[p] | holder[q]
        if all(beside(x, y, both) for x, y in combinations(sorted(both), 2)):
            for x in both:
                holder[x] = both
    conflicts = {e for e in edges if holder[e[0]] != holder[e[1]]}
    return set(holder.values()), near, conflicts, linked


def objects(groups: Groups) -> set:
    out: dict[tuple, set] = {}
    for r in groups.members.to_pylist():
        out.setdefault((RANKS[r["anchor_survey"]], r["anchor_key"]), set()).add((RANKS[r["survey"]], r["key"]))
    assert all(min(members) == anchor for anchor, members in out.items())
    return {frozenset(members) for members in out.values()}


def pair_of(r: dict) -> tuple:
    return (RANKS[r["survey_a"]], r["key_a"]), (RANKS[r["survey_b"]], r["key_b"])


places = st.sampled_from(sorted(PLACES))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), places, st.sampled_from([0.0, 0.4, 10.0]), st.integers(1, 14))
def test_group_is_that_of_brute_force(seed: int, place: str, speed: float, n: int) -> None:
    sources = crowd(np.random.default_rng(seed), PLACES[place], n, speed)
    groups = group(sources, RANKS, RADII)
    expected, near, conflicts, linked = brute(sources)
    rows = groups.pairs.to_pylist()
    found = {pair_of(r): r["separation_uas"] for r in rows}
    assert set(found) == set(near)
    # plane against sphere: second order in a few arcminutes
    assert all(abs(found[p] - near[p]) < 20 + 2e-6 * near[p] for p in near)
    assert objects(groups) == expected
    assert {pair_of(r) for r in rows if r["conflict"]} == conflicts
    assert {pair_of(r) for r in rows if r["link"]} == linked
    whole = {x: members for members in expected for x in members}
    moving = {(RANKS[s], r["key"]): r["pmra"] is not None for s, t in sources.items() for r in t.to_pylist()}
    assert all(r["accepted"] == (whole[pair_of(r)[0]] == whole[pair_of(r)[1]]) for r in rows)
    for r in groups.members.to_pylist():
        pair = (RANKS[r["anchor_survey"]], r["anchor_key"]), (RANKS[r["survey"]], r["key"])
        others = [tuple(sorted((m, pair[1]))) for m in whole[pair[1]] if moving[m]]
        lent = min((found[p] for p in others if p in found), default=0)
        assert r["separation_uas"] == (0 if pair[0] == pair[1] else found.get(pair, lent))
        blend = {pair[1]}
        while more := {x for p in near for x in p if blend & set(p)} - blend:
            blend |= more
        assert (RANKS[r["blend_survey"]], r["blend_key"]) == min(blend)
        for survey, rank in RANKS.items():
            assert r[f"n_{survey}"] == sum(x[0] == rank for x in blend)


def test_a_star_that_one_survey_saw_move_is_one_object_of_all() -> None:
    """0.1 arcsec/yr; HSC's and SDSS's places are 1.69 arcsec apart, of which neither says when it was there, quite."""

    def one(key: int, east: float, low: float, high: float, motion: float | None = None) -> pa.Table:
        known = np.nan if motion is None else motion
        ra, dec = offset((150.0, 2.0), np.array([east]), np.array([0.0]))
        epoch = np.nan if motion is None else 2016.0
        return source_table(ra, dec, [key], [known], [0.0 * known], [epoch], [low], [high])

    sdss, hsc = one(5, -1.6, 2000.0, 2000.0), one(7, 0.09, 2016.9, 2016.9)
    gaia, ranks = one(9, 0.0, np.nan, np.nan, 100.0), {"hsc": 1, "gaia": 2, "sdss": 4}
    apart = group({"hsc": hsc, "sdss": sdss}, ranks, 1.0)
    assert apart.members["anchor_key"].to_pylist() == [7, 5], "nothing says that they are one"
    whole = group({"hsc": hsc, "gaia": gaia, "sdss": sdss}, ranks, 1.0)
    assert whole.members["anchor_key"].to_pylist() == [7, 7, 7] and not any(whole.pairs["conflict"].to_pylist())
    separation = dict(zip(whole.members["key"].to_pylist(), whole.members["separation_uas"].to_pylist(), strict=True))
    assert separation[7] == 0 and separation[5] == pytest.approx(0, abs=2_000)
    off = one(5, -0.95, 2000.0, 2000.0)
    still = group({"hsc": hsc, "gaia": one(9, 0.0, np.nan, np.nan, 0.0), "sdss": off}, ranks, 1.0)
    assert len(set(still.members["anchor_key"].to_pylist())) == 2, "1.04 arcsec apart, and nothing has moved"


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**31), places)
def test_order_of_rows_and_surveys_does_not_matter(seed: int, place: str) -> None:
    rng = np.random.default_rng(seed)
    sources = crowd(rng, PLACES[place], 60, 1.0)
    one = group(sources, RANKS, RADII)
    names = rng.permutation(list(sources)).tolist()
    again = group({s: sources[s].take(rng.permutation(sources[s].num_rows)) for s in names}, dict(RANKS), RADII)
    assert one.members.equals(again.members) and one.pairs.equals(again.pairs)


class Sky:
    """All sources, as `match_cell` is given them."""

    def __init__(self, sources: dict[str, pa.Table]) -> None:
        self.fast = {s: t.filter(is_fast(t)) for s, t in sources.items()}
        self.slow = {s: t.filter(~is_fast(t)) for s, t in sources.items()}
        self.fine = {s: sky.cells(healpix29(t), 12) for s, t in self.slow.items()}
        self.cells = sorted({c for t in sources.values() for c in sky.cells(healpix29(t), 6).tolist()})
        self.asked: list[int] = []

    def load(self, fine: np.ndarray) -> dict[str, pa.Table]:
        assert (np.diff(fine) > 0).all() and not set(fine.tolist()) & set(self.asked)
        self.asked.extend(fine.tolist())
        return {s: t.filter(np.isin(self.fine[s], fine)) for s, t in self.slow.items()}

    def match(self, cell: int, **options) -> CellMatch:
        self.asked = []
        return match_cell(cell, self.load, self.fast, RANKS, RADII, **options)


def healpix29(table: pa.Table) -> np.ndarray:
    return sky.healpix29(table["ra"].to_numpy(), table["dec"].to_numpy())


def rows_of(tables: list[pa.Table]) -> list[str]:
    return sorted(repr(r) for t in tables for r in t.to_pylist())


def check_cells_against_whole(
    sources: dict[str, pa.Table], cells: list[int] | None = None, by: str = "nearest"
) -> list:
    policy = Policy(by, 0.7, densities={name: densities(healpix29(table)) for name, table in sources.items()})
    whole = group(sources, RANKS, RADII, policy)
    all_sky = Sky(sources)
    results = [all_sky.match(cell, policy=policy) for cell in cells or all_sky.cells]
    assert rows_of([r.members for r in results]) == rows_of([whole.members])
    anchors = [set(map(repr, r.members.select(["anchor_survey", "anchor_key"]).to_pylist())) for r in results]
    assert sum(map(len, anchors)) == len(set().union(*anchors)), "an object was torn between cells"
    assert rows_of([r.pairs for r in results]) == rows_of([whole.pairs])
    return results


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**31), places, st.sampled_from([0.0, 0.45, 10.0]), st.integers(1, 60))
def test_cells_sum_to_the_whole_sky(seed: int, place: str, speed: float, n: int) -> None:
    check_cells_against_whole(crowd(np.random.default_rng(seed), PLACES[place], n, speed))


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 2**31), places, st.sampled_from([0.45, 10.0]), st.integers(1, 40), st.sampled_from([5, 30]))
def test_parts_sum_to_the_cell(seed: int, place: str, speed: float, n: int, most: int) -> None:
    sources = crowd(np.random.default_rng(seed), PLACES[place], n, speed)
    all_sky = Sky(sources)
    for cell in all_sky.cells:
        whole = all_sky.match(cell)
        parts = parts_of(cell, map(healpix29, sources.values()), most)
        orders, indices = np.array(parts).T
        assert (np.diff(indices << 2 * (12 - orders)) > 0).all() and (0.25 ** (orders - 6)).sum() == 1
        found = [all_sky.match(cell, part=part) for part in parts]
        assert rows_of([r.members for r in found]) == rows_of([whole.members])
        assert rows_of([r.pairs for r in found]) == rows_of([whole.pairs])
    with pytest.raises(ValueError, match=r"part \(7, 0\) is no cell of order 6 to 10 within cell 1"):
        match_cell(1, lambda fine: {}, {}, RANKS, part=(7, 0))


def with_errors(rng: np.random.Generator, sources: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """Some rows of each survey know their errors."""
    out = {}
    for name, table in sources.items():
        known = np.where(rng.uniform(size=table.num_rows) < 0.9, 1.0, np.nan)
        for column in ("ra_error", "dec_error"):
            values = pa.array(known * rng.uniform(0.05, 0.5, table.num_rows), pa.float32(), from_pandas=True)
            table = table.append_column(column, values)
        out[name] = table
    return out


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**31), places, st.sampled_from([0.0, 0.45, 10.0]), st.integers(1, 60))
def test_cells_sum_to_the_whole_sky_by_posterior_too(seed: int, place: str, speed: float, n: int) -> None:
    rng = np.random.default_rng(seed)
    sources = with_errors(rng, crowd(rng, PLACES[place], n, speed))
    check_cells_against_whole(sources, by="posterior")
    groups = group(sources, RANKS, RADII, Policy("posterior", 0.7))
    sums: dict[tuple[str, str, str, int], float] = {}

    def of_side(pair: dict, side: str) -> tuple[str, str, str, int]:
        return side, pair["survey_a"], pair["survey_b"], pair["key_" + side]

    for pair in groups.pairs.to_pylist():
        for side in "ab":
            sums[of_side(pair, side)] = sums.get(of_side(pair, side), 0.0) + (pair["posterior_" + side] or 0.0)
    for pair in groups.pairs.to_pylist():
        if pair["posterior_a"] is not None and pair["mutual"]:
            likely = all(sums[of_side(pair, side)] > 0.5 for side in "ab")
            assert pair["link"] or likely or linked_near(groups, pair)
    names = ["survey", "anchor_survey", "anchor_key"]
    one = groups.members.select(names).to_pylist()
    assert len({tuple(r.values()) for r in one}) == len(one)


def linked_near(groups: Groups, pair: dict) -> bool:
    """Whether an id settles it for one of the two."""
    linked = [p for p in groups.pairs.to_pylist() if p["link"]]
    ends = {(pair["survey_a"], pair["key_a"]), (pair["survey_b"], pair["key_b"])}
    return any(ends & {(p["survey_a"], p["key_a"]), (p["survey_b"], p["key_b"])} for p in linked)


def test_what_is_less_likely_than_not_is_no_edge() -> None:
    """Two sources a radius apart of errors far smaller: nearest of each other, and nothing to do with each other."""
    sources = {
        name: source_table([10.0], [dec], [1]).append_column("ra_error", [[0.05]]).append_column("dec_error", [[0.05]])
        for name, dec in (("legacysurvey", 0.0), ("gaia", 0.8 / 3600))
    }
    by_distance = group(sources, RANKS, RADII)
    assert len(set(by_distance.members["anchor_survey"].to_pylist())) == 1
    likely = group(sources, RANKS, RADII, Policy("posterior", outliers=0.0))
    assert likely.pairs["mutual"].to_pylist() == [False] and likely.pairs["sigmas"].to_pylist()[0] > 10
    assert sorted(likely.members["anchor_survey"].to_pylist()) == ["gaia", "legacysurvey"]
    # where sources are so rare, one so near is more likely an outlier than another
    rare = group(sources, RANKS, RADII, Policy("posterior"))
    assert rare.pairs["mutual"].to_pylist() == [True]
    # without errors there is nothing to weigh, and the nearest is taken
    plain = {name: table.drop_columns(["ra_error", "dec_error"]) for name, table in sources.items()}
    assert group(plain, RANKS, RADII, Policy("posterior")).pairs["mutual"].to_pylist() == [True]


def chain(place: tuple[float, float], way: float, n: int) -> dict[str, pa.Table]:
    """Sources 0.5 to 1.9 arcsec apart on a line through the place, by turns of two surveys."""
    along = np.cumsum(np.random.default_rng(4).uniform(0.5, 1.9, n))
    along -= along[n // 2]
    ra, dec = offset(place, along * np.sin(way), along * np.cos(way))
    key = np.arange(n)
    return {
        "legacysurvey": source_table(ra[::2], dec[::2], key[::2]),
        "desi": source_table(ra[1::2], dec[1::2], key[1::2]),
    }


@pytest.mark.parametrize("place", sorted(PLACES))
@pytest.mark.parametrize("way", [0.0, 0.8, 2.0])
def test_chain_across_cells_is_followed_to_its_end(place: str, way: float) -> None:
    # 480 arcsec of one blend group, far beyond the first two rings of fine cells
    sources = chain(PLACES[place], way, 400)
    results = check_cells_against_whole(sources)
    blends = {(r["blend_survey"], r["blend_key"]) for result in results for r in result.members.to_pylist()}
    assert blends == {("legacysurvey", 0)}
    assert all(r["n_desi"] == 200 for result in results for r in result.members.to_pylist())
    if len(results) > 1:
        assert max(r.times_read for r in results) > 2


def test_three_cells_meet_at_the_corner() -> None:
    ra, dec = offset(CORNER_OF_THREE, 5 * np.sin(np.arange(60)), 5 * np.cos(np.arange(60)))
    assert np.unique(sky.cells(sky.healpix29(ra, dec), 6)).size == 3


@pytest.mark.parametrize("place", sorted(PLACES))
def test_fast_star_over_the_border_meets_its_old_counterparts(place: str) -> None:
    # 10 arcsec/yr; Gaia at 2016, exposures of 1996 and 2006 lie 200 and 100 arcsec behind
    for way in np.arange(6.0):
        where = PLACES[place]
        at = [offset(where, d * np.sin(way), d * np.cos(way)) for d in (-100.0, 0.0, 100.0)]
        star_ra, star_dec = at[2]
        # direction of the arc where the star is, by a small step on it
        on = offset(where, 100.01 * np.sin(way), 100.01 * np.cos(way))
        lon = np.radians(on[0] - star_ra)[0]
        east, north = np.sin(lon) * np.cos(np.radians(on[1][0])), np.radians(on[1] - star_dec)[0]
        if abs(star_dec[0]) > 80:  # the plane of ra, dec is bent here: take the tangent itself
            tangent = (sky.unit_vectors(*on) - sky.unit_vectors(star_ra, star_dec))[:, 0]
            x, y = np.radians(star_ra[0]), np.radians(star_dec[0])
            east = tangent @ np.array([-np.sin(x), np.cos(x), 0])
            north = tangent @ np.array([-np.sin(y) * np.cos(x), -np.sin(y) * np.sin(x), np.cos(y)])
        size = np.hypot(east, north)
        pm = 10000 * east / size, 10000 * north / size
        sources = {
            "gaia": source_table(star_ra, star_dec, [1], [pm[0]], [pm[1]], [2016.0]),
            "legacysurvey": source_table(*at[1], [2], epoch_min=[2006.0], epoch_max=[2006.0]),
            "targets": source_table(*at[0], [3], epoch_min=[1996.0], epoch_max=[1996.0]),
            "desi": source_table(*at[0], [4], epoch_min=[2010.0], epoch_max=[2012.0]),
        }
        results = check_cells_against_whole(sources)
        pairs = [r for result in results for r in result.pairs.to_pylist()]
        found = {(r["survey_a"], r["survey_b"]) for r in pairs}
        assert found == {("legacysurvey", "gaia"), ("gaia", "targets"), ("desi", "targets")}
        assert all(r["separation_uas"] < 20000 for r in pairs)


def test_slow_star_from_unread_cells_is_found_over_a_century() -> None:
    # 0.49 arcsec/yr: star 1 passed a source of the cell in 1900 and lies in the first ring in 2016, with a source of
    # old plates beside it, which star 2 passed in 1900; that one is now two rings farther out
    x, y, z = healpy.boundaries(64, 1234, step=2, nest=True)
    middle = tuple(v[0] for v in healpy.vec2ang(np.array([[x[1], y[1], z[1]]]), lonlat=True))
    inner = sky.unit_vectors(*sky.centres(6, np.array([1234])))[:, 0]
    lon, lat = np.radians(middle)
    way = np.arctan2(
        inner @ [np.sin(lon), -np.cos(lon), 0],
        -inner @ [-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)],
    )
    for away in np.arange(30.0, 56.0):
        at = {d: offset(middle, d * np.sin(way), d * np.cos(way)) for d in (-1.0, away, away + 56.84)}
        pm = [490 * np.sin(way)], [490 * np.cos(way)]
        per_year = (away + 1) / 116 * 1000
        sources = {
            "legacysurvey": source_table(
                *np.concatenate([at[-1.0], at[away]], axis=1),
                [1, 2],
                epoch_min=[1900.0] * 2,
                epoch_max=[1900.0, 2016.0],
            ),
            "gaia": source_table(
                *np.concatenate([at[away], at[away + 56.84]], axis=1),
                [3, 4],
                [per_year * np.sin(way), pm[0][0]],
                [per_year * np.cos(way), pm[1][0]],
                [2016.0] * 2,
            ),
        }
        whole = group(sources, RANKS, RADII)
        assert whole.members["n_gaia"].to_pylist() == [2] * 4
        all_sky = Sky(sources)
        results = [all_sky.match(cell, epochs=(1900.0, 2016.0)) for cell in all_sky.cells]
        assert rows_of([r.members for r in results]) == rows_of([whole.members])
        assert rows_of([r.pairs for r in results]) == rows_of([whole.pairs])


def test_match_cell_reads_little_where_nothing_reaches_out() -> None:
    ra, dec = sky.centres(6, np.array([1234]))
    sources = {"gaia": source_table(ra, dec, [1]), "desi": source_table(ra, dec, [2])}
    result = Sky(sources).match(1234)
    assert (result.times_read, result.fine_cells_read) == (1, 68 * 68)
    assert result.members.num_rows == 2 and result.pairs.num_rows == 1


def test_empty_input() -> None:
    none = group({}, RANKS, RADII)
    assert none.members.num_rows == none.pairs.num_rows == 0
    cell = match_cell(7, lambda fine: {}, {}, RANKS, RADII)
    assert cell.members.schema == none.members.schema and cell.pairs.schema == none.pairs.schema
    some = group({"gaia": source_table([1.0], [1.0], [1]), "desi": source_table([], [], [])}, RANKS, RADII)
    assert some.members.schema == none.members.schema and some.pairs.schema == none.pairs.schema
    assert some.members["anchor_key"].to_pylist() == [1]


def test_at_most_one_source_of_a_survey_and_the_refused_edge_is_kept() -> None:
    # gaia 1 - legacy 10 - desi 20 - gaia 2 in a row: both gaia sources have an edge into the pair, the nearer wins
    ra = np.array([0.0, 0.5, 0.9, 1.5]) / 3600
    sources = {
        "legacysurvey": source_table(ra[1:2], [0.0], [10]),
        "desi": source_table(ra[2:3], [0.0], [20]),
        "gaia": source_table(ra[[0, 3]], [0.0, 0.0], [1, 2]),
    }
    groups = group(sources, RANKS, 1.0)
    assert objects(groups) == {frozenset([(0, 10), (3, 20), (2, 1)]), frozenset([(2, 2)])}
    conflict = [pair_of(r) for r in groups.pairs.to_pylist() if r["conflict"]]
    assert conflict == [((2, 2), (3, 20))]


@pytest.mark.parametrize(
    ("sources", "ranks", "message"),
    [
        ({"gaia": source_table([1.0, 2.0], [1.0, 2.0], [5, 5])}, RANKS, "gaia: key 5 is there more than once"),
        ({"hsc": source_table([1.0], [1.0], [5])}, RANKS, "'hsc'"),
        ({}, {"gaia": 1, "desi": 1}, "a different one for each"),
        ({"gaia": pa.table({"key": pa.array([None], pa.int64()), "ra": [1.0], "dec": [1.0]})}, RANKS, "with 1 nulls"),
    ],
)
def test_nonsense_is_refused(sources: dict, ranks: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group(sources, ranks, 1.0)


def test_a_blend_group_beyond_the_neighbours_is_an_error_not_a_loss() -> None:
    ra = np.arange(0, 2.0, 1.5 / 3600)
    sources = {
        "legacysurvey": source_table(ra[::2], 0 * ra[::2], np.arange(ra[::2].size)),
        "desi": source_table(ra[1::2], 0 * ra[1::2], np.arange(ra[1::2].size)),
    }
    all_sky = Sky(sources)
    with pytest.raises(ValueError, match="reaches beyond the 8 neighbouring cells"):
        all_sky.match(all_sky.cells[0])


def test_match_cell_refuses_what_would_break_its_bounds() -> None:
    slow = source_table([1.0], [1.0], [1], [3.0], [0.0], [2016.0])
    quick = source_table([1.0], [1.0], [2], [3000.0], [0.0], [2016.0])
    old = source_table([1.0], [1.0], [3], epoch_min=[1950.0], epoch_max=[1951.0])
    with pytest.raises(ValueError, match="gaia: a slow source is among the fast"):
        match_cell(1, lambda fine: {}, {"gaia": slow}, RANKS)
    with pytest.raises(ValueError, match="gaia: a fast source is among the slow"):
        match_cell(1, lambda fine: {"gaia": quick}, {}, RANKS)
    with pytest.raises(ValueError, match=r"gaia: sources hold from 1950\.0 to 1951\.0"):
        match_cell(1, lambda fine: {"gaia": old}, {}, RANKS)
