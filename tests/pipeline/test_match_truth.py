"""The matching against the mock sky's truth and against brute force, on a sky of seconds.

`benchmarks/match_truth.py` does the same on a million sources; docs/match_truth.md holds its figures.
"""

import importlib
import itertools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from skycairn.match.sky import healpix29
from skycairn.pipeline.grouping import Groups, group

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RANKS = {"legacysurvey": 0, "hsc": 1, "gaia": 2, "desi": 3, "sdss": 4}
PAIRS = tuple(itertools.combinations(RANKS, 2))


@pytest.fixture(scope="module")
def bench() -> Any:
    """The benchmark as a module."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("match_truth")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def oracle(bench: Any) -> Any:
    return bench.match_oracle


@pytest.fixture(scope="module")
def tiny(bench: Any, tiny_pile: Path) -> Any:
    return bench.read_matched(tiny_pile)


@pytest.fixture(scope="module")
def truth(bench: Any, tiny: Any, tiny_sky: Path) -> Any:
    return bench.read_truth(tiny_sky, tiny.slim)


def crowd(seed: int, n_stars: int = 60) -> dict[str, pa.Table]:
    """Three surveys of one crowded arcminute across RA 0, stars of all speeds, motions and epochs known or not."""
    rng = np.random.default_rng(seed)
    ra, dec = rng.normal(0, 4 / 3600, n_stars) % 360, rng.normal(0.0, 4 / 3600, n_stars)
    speed = 10 ** rng.uniform(0, 4, n_stars)
    angle = rng.uniform(0, 2 * np.pi, n_stars)
    out: dict[str, pa.Table] = {}
    things = {}
    for name in RANKS:
        seen = rng.permutation(n_stars)[: int(0.8 * n_stars)]
        n = seen.size
        moving = rng.random(n) < 0.5
        low = rng.uniform(2010, 2020, n)
        high = low + rng.choice([0.0, 5.0], n)
        at = np.where(moving, low, rng.uniform(low, high))
        pm = speed[seen] * np.sin(angle[seen]), speed[seen] * np.cos(angle[seen])
        east, north = (p * (at - 2016) / 3.6e6 + rng.normal(0, 0.1 / 3600, n) for p in pm)
        out[name] = pa.table(
            {
                "key": rng.permutation(10 * n)[:n] + (1 << 62),
                "ra": (ra[seen] + east) % 360,
                "dec": dec[seen] + north,
                "pmra": pa.array(pm[0], mask=~moving),
                "pmdec": pa.array(pm[1], mask=~moving),
                "epoch": pa.array(low, mask=~moving),
                "epoch_min": low,
                "epoch_max": np.where(moving, low, high),
                "healpix29": healpix29((ra[seen] + east) % 360, dec[seen] + north),
            }
        )
        things[name] = dict(zip(seen.tolist(), out[name]["key"].to_pylist(), strict=True))
    for name, other in (("legacysurvey", "gaia"), ("desi", "legacysurvey")):
        # the own thing's row, or that of the next, or none
        names = [things[other].get(t + int(rng.random() < 0.3)) if rng.random() < 0.6 else None for t in things[name]]
        out[name] = out[name].append_column(f"link.{other}", pa.array(names, pa.int64()))
    return out


def test_isolated_sources_are_matched_without_a_miss(bench: Any, tiny: Any, truth: Any) -> None:
    for a, b in PAIRS:
        for links in (bench.edges_of(tiny.pairs, a, b), bench.links_of(tiny.members, a, b)):
            pure, complete = bench.score(truth, a, b, links)["isolated"]
            assert pure.n >= (10 if b == "gaia" else 1) and pure.k == pure.n, (a, b)
            assert complete.n == pure.n and complete.k == complete.n, (a, b)
    pure, complete = bench.whole_objects(truth, tiny.members)["isolated"]
    assert pure.k == pure.n > 10 and complete.k == complete.n > 10


@pytest.mark.slow
def test_a_sky_of_thousands_meets_the_mark(
    bench: Any, oracle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = bench.fast_tier()
    patches = tuple(replace(p, nx=2, ny=1) for p in tier.patches[:2])
    monkeypatch.setitem(
        bench.TIERS, "few", replace(tier, name="few", patches=patches, fast_stars=tier.fast_stars[:500])
    )
    bench.mock.build("few", tmp_path / "sky")
    m = bench.build(tmp_path / "sky", tmp_path / "pile")
    assert not bench.report_sky(tmp_path / "sky", m, ("isolated",)).missed
    truth = bench.read_truth(tmp_path / "sky", m.slim)
    for a, b in PAIRS:
        for s in bench.score(truth, a, b, bench.edges_of(m.pairs, a, b))[bench.KNOWN]:
            assert s.n > 50 and s.k == s.n
    for what, found in bench.compare(m):
        assert not any(found.values()), (what, found)


def test_fast_stars_are_matched(bench: Any, tiny: Any, truth: Any) -> None:
    pure, complete = bench.score(truth, "legacysurvey", "gaia", bench.edges_of(tiny.pairs, "legacysurvey", "gaia"))[
        "from 0.5 arcsec/yr"
    ]
    assert complete.n >= 1 and complete.k == complete.n and pure.k == pure.n


def test_all_rows_of_true_things_are_accounted_for(tiny: Any, truth: Any) -> None:
    for name, table in tiny.slim.items():
        assert set(truth.shown[name][1].tolist()) <= set(table["key"].to_pylist())
        assert truth.trueless[name] == table.num_rows - len(set(truth.shown[name][1].tolist()))
    assert {"dup_type", "nan_ra"} <= {label.split(",")[0] for label in truth.unshown["legacysurvey"]}


def test_the_pile_is_brute_forces(bench: Any, oracle: Any, tiny: Any) -> None:
    sources = oracle.sources(tiny.slim, tiny.ranks)
    found = bench.as_groups(tiny)
    differences = oracle.differences(
        sources, oracle.brute_force(sources, bench.all_radii(tiny.ranks)), found.members, found.pairs
    )
    assert not any(differences.values()), differences


def test_any_order_of_rows_surveys_and_cells_gives_the_same(bench: Any, tiny: Any) -> None:
    whole = group(tiny.slim, tiny.ranks)
    assert not any(bench.unlike(whole, bench.as_groups(tiny)).values())
    for seed in range(3):
        shuffled = bench.permuted(tiny.slim, seed)
        assert not any(bench.unlike(whole, group(shuffled, tiny.ranks)).values())
        assert not any(bench.unlike(whole, bench.by_cells(shuffled, tiny.ranks, seed)).values())


@pytest.mark.parametrize(
    "place",
    [(0.0, 90.0), (0.0, -90.0), (90.0, 41.810314895778596), (0.0, -41.810314895778596), (0.0, 0.0), (45.0, 0.0)],
    ids=["north pole", "south pole", "seven cells north", "seven cells south", "RA 0", "four base cells"],
)
def test_the_sky_turned_to_poles_and_corners(bench: Any, oracle: Any, tiny: Any, place: tuple[float, float]) -> None:
    for sky, least in ((tiny.slim, 20), (crowd(1), 100)):
        here = group(sky, RANKS)
        moved = bench.put(sky, *place)
        sources = oracle.sources(moved, RANKS)
        truth = oracle.brute_force(sources, bench.all_radii(RANKS))
        cells = bench.by_cells(moved, RANKS, 0)
        differences = oracle.differences(sources, truth, cells.members, cells.pairs)
        assert not any(differences.values()), differences
        assert not any(bench.unlike(group(moved, RANKS), cells).values())
        # turning the sky changes no pair and no object
        what = ["survey_a", "key_a", "survey_b", "key_b", "mutual", "accepted", "blend_survey", "blend_key"]
        rows = [sorted(tuple(r.values()) for r in g.pairs.select(what).to_pylist()) for g in (cells, here)]
        assert rows[0] == rows[1] and len(rows[0]) >= least


@pytest.mark.parametrize("seed", range(6))
def test_crowds_with_radii_of_their_own_are_brute_forces(bench: Any, oracle: Any, seed: int) -> None:
    sky = crowd(seed)
    radii = {pair: (0.7, 1.0, 1.3)[i % 3] for i, pair in enumerate(PAIRS)}
    sources = oracle.sources(sky, RANKS)
    expected = oracle.brute_force(sources, radii)
    assert np.unique(expected.anchor).size < np.unique(expected.blend).size + expected.a.size
    found = group(sky, RANKS, radii)
    assert not any(oracle.differences(sources, expected, found.members, found.pairs).values())
    other = group(bench.permuted(sky, seed), RANKS, radii)
    assert not any(bench.unlike(found, other).values())


def test_brute_force_notices_damage(oracle: Any) -> None:
    sky = crowd(0)
    radii = {pair: 1.0 for pair in PAIRS}
    sources = oracle.sources(sky, RANKS)
    expected = oracle.brute_force(sources, radii)
    good = group(sky, RANKS)
    assert expected.mutual.sum() > 10 and (expected.anchor != np.arange(expected.anchor.size)).sum() > 10

    def differences(bad: Groups) -> set[str]:
        return {k for k, v in oracle.differences(sources, expected, bad.members, bad.pairs).items() if v}

    assert differences(good) == set()
    assert differences(Groups(good.members, good.pairs.slice(1))) == {"pairs missing"}
    flipped = pa.array(~good.pairs["mutual"].to_numpy())
    at = good.pairs.column_names.index("mutual")
    assert differences(Groups(good.members, good.pairs.set_column(at, "mutual", flipped))) == {"edges off"}
    at = good.pairs.column_names.index("link")
    nothing = pa.array(np.zeros(good.pairs.num_rows, bool))
    assert differences(Groups(good.members, good.pairs.set_column(at, "link", nothing))) == {"ids off"}
    assert differences(Groups(good.members.slice(1), good.pairs)) == {"sources missing or twice"}
    at = good.members.column_names.index("anchor_key")
    own = good.members.set_column(at, "anchor_key", good.members["key"]).set_column(
        at - 1, "anchor_survey", good.members["survey"]
    )
    assert differences(Groups(own, good.pairs)) == {"anchors off"}


def test_scores_of_a_hand_made_truth(bench: Any) -> None:
    # thing 1 is in both surveys; 2 and 3 are one row of a and two of b; 4 is in b alone; row 19 of a shows nothing
    isolated, blend = np.array([0, 1, 0, 0, 1], bool), np.array([0, 0, 1, 1, 0], bool)
    truth = bench.Truth(
        {"all": np.array([0, 1, 1, 1, 1], bool), "isolated": isolated, "blends": blend},
        np.array([0.0, 1.0, 5.0, 2.0, 1.0]),
        blend.astype(np.int64),
        np.zeros(5),
        {"a": (np.array([1, 2, 3]), np.array([11, 12, 12])), "b": (np.array([1, 2, 3, 4]), np.array([21, 22, 23, 24]))},
        {},
        {"a": 1, "b": 0},
    )
    links = np.array([11, 12, 19]), np.array([21, 22, 24])
    scores = {k: [(s.k, s.n) for s in v] for k, v in bench.score(truth, "a", "b", links).items()}
    assert scores == {"all": [(2, 3), (2, 3)], "isolated": [(1, 2), (1, 1)], "blends": [(1, 1), (1, 2)]}
    members = pa.table(
        {
            "object_id": ["a:11", "a:11", "a:12", "a:12", "b:23", "a:19", "a:19"],
            "survey": ["a", "b", "a", "b", "b", "a", "b"],
            "key": [11, 21, 12, 22, 23, 19, 24],
            "blend_group": ["a:11", "a:11", "a:12", "a:12", "a:12", "a:19", "a:19"],
        }
    )
    whole = {k: [(s.k, s.n) for s in v] for k, v in bench.whole_objects(truth, members).items()}
    assert whole["isolated"] == [(1, 2), (1, 1)] and whole["blends"] == [(1, 1), (1, 2)]
    rows = bench.blends(truth, "a", "b", members)
    assert rows[2] == ["2", "1", "1", "1", "0", "0", "1", "1"]


def test_lower_bound_is_clopper_and_pearsons(bench: Any) -> None:
    assert bench.lower_bound(48, 48) == pytest.approx(0.05 ** (1 / 48), rel=1e-12)
    assert bench.lower_bound(0, 5) == 0
    # 8 of 9 or more must have a chance of 5 % at the bound
    p = bench.lower_bound(8, 9)
    assert p**9 + 9 * p**8 * (1 - p) == pytest.approx(0.05, rel=1e-9)
    assert bench.FEWEST == 2995
    assert bench.lower_bound(2995, 2995) > bench.WANTED > bench.lower_bound(2994, 2994)


def test_densities_are_thirds_of_the_isolated(bench: Any) -> None:
    # three clusters of 1, 3 and 8 things 10 arcsec apart or nearer, degrees from each other
    ra = np.repeat([10.0, 20.0, 30.0], [1, 3, 8]) + np.concatenate([np.arange(n) for n in (1, 3, 8)]) / 3600
    isolated = np.arange(12) < 10
    classes = bench.by_density(ra, np.zeros(12), isolated)
    assert sum(flags.astype(int) for flags in classes.values()).tolist() == isolated.astype(int).tolist()
    assert {name: int(flags.sum()) for name, flags in classes.items()} == {
        "isolated, neighbours 0 to 2": 4,
        "isolated, neighbours 3 to 7": 6,
        "isolated, neighbours from 8": 0,
    }
