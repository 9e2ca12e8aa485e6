"""Joins by id: what goes first, what the position does not bear out, and what is said of it."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skycairn.match import sky
from skycairn.match.idlinks import DISAGREEMENTS, FARTHEST_ARCSEC, disagreements, named
from skycairn.match.pairs import separation_uas
from skycairn.pipeline.grouping import Groups, group, is_fast, match_cell

RANKS = {"legacysurvey": 0, "gaia": 2, "desi": 3}
RADII = {("legacysurvey", "gaia"): 1.0, ("gaia", "desi"): 1.5, ("legacysurvey", "desi"): 2.0}
EDGE = 2**63 - 1
PLACES = {
    "corner of three cells": (90.0, float(np.degrees(np.arcsin(2 / 3)))),
    "corner of four cells at ra 0": (0.0, 0.0),
    "north pole": (0.0, 90.0),
}


def radius(a: str, b: str) -> float:
    return RADII.get((a, b), RADII.get((b, a), 0.0))


def line(key: list[int], east: list[float], links: dict[str, list[int | None]] | None = None) -> pa.Table:
    """Sources on the equator, `east` arcsec from RA 10."""
    columns = {"key": pa.array(key, pa.int64()), "ra": 10 + np.asarray(east, float) / 3600, "dec": np.zeros(len(key))}
    columns |= {f"link.{other}": pa.array(keys, pa.int64()) for other, keys in (links or {}).items()}
    return pa.table(columns)


def objects(groups: Groups) -> set[frozenset[tuple[str, int]]]:
    out: dict[tuple[str, int], set[tuple[str, int]]] = {}
    for r in groups.members.to_pylist():
        out.setdefault((r["anchor_survey"], r["anchor_key"]), set()).add((r["survey"], r["key"]))
    return {frozenset(m) for m in out.values()}


def told(sources: dict[str, pa.Table], groups: Groups | None = None) -> list[tuple]:
    groups = groups or group(sources, RANKS, RADII)
    found = disagreements(sources, groups.pairs, RANKS, radius, carried=groups.carried)
    assert found.schema == DISAGREEMENTS
    return [tuple(r.values()) for r in found.to_pylist()]


def test_a_named_row_goes_before_a_nearer_one() -> None:
    sources = {
        "legacysurvey": line([1], [0.0], {"gaia": [8]}),
        "gaia": line([7, 8], [0.1, 0.6]),
    }
    groups = group(sources, RANKS, RADII)
    assert objects(groups) == {
        frozenset([("legacysurvey", 1), ("gaia", 8)]),
        frozenset([("gaia", 7)]),
    }
    by_key = {r["key_b"]: r for r in groups.pairs.to_pylist()}
    assert (by_key[8]["link"], by_key[8]["rank_a"], by_key[8]["mutual"], by_key[8]["accepted"]) == (True, 1, True, True)
    assert (by_key[7]["link"], by_key[7]["rank_a"], by_key[7]["mutual"], by_key[7]["conflict"]) == (
        False,
        2,
        False,
        False,
    )
    assert not told(sources)
    nearest = group({name: t.select(["key", "ra", "dec"]) for name, t in sources.items()}, RANKS, RADII)
    assert frozenset([("legacysurvey", 1), ("gaia", 7)]) in objects(nearest), "as it was without the id"


def test_what_an_id_passes_over_is_free_for_another() -> None:
    # gaia 7 is nearest to legacy 1, which is 8's; so legacy 2, its next, has it
    sources = {
        "legacysurvey": line([1, 2], [0.0, -0.5], {"gaia": [8, None]}),
        "gaia": line([7, 8], [-0.1, 0.6]),
    }
    groups = group(sources, RANKS, RADII)
    assert objects(groups) == {
        frozenset([("legacysurvey", 1), ("gaia", 8)]),
        frozenset([("legacysurvey", 2), ("gaia", 7)]),
    }


def test_an_id_goes_before_all_positions_whatever_the_survey() -> None:
    # by position alone desi 5 and gaia 7, 0.1 arcsec apart, go first, and then no legacy row may stand beside both
    by_id = {
        "legacysurvey": line([1], [0.0]),
        "gaia": line([7], [1.4]),
        "desi": line([5], [1.3], {"legacysurvey": [1]}),
    }
    by_position = {**by_id, "desi": by_id["desi"].select(["key", "ra", "dec"])}
    alone = frozenset([("legacysurvey", 1)])
    assert alone in objects(group(by_position, RANKS, RADII))
    assert frozenset([("legacysurvey", 1), ("desi", 5)]) in objects(group(by_id, RANKS, RADII))


def test_a_named_row_beyond_the_radius_is_a_disagreement_and_position_decides() -> None:
    sources = {
        "legacysurvey": line([1], [0.0], {"gaia": [8]}),
        "gaia": line([7, 8], [0.3, 2.0]),
    }
    groups = group(sources, RANKS, RADII)
    assert frozenset([("legacysurvey", 1), ("gaia", 7)]) in objects(groups)
    assert not any(groups.pairs["link"].to_pylist())
    assert told(sources, groups) == [("legacysurvey", 1, "gaia", 8, "far", 2_000_000)]


def test_exactly_the_radius_is_within_it() -> None:
    sources = {"legacysurvey": line([1], [0.0], {"gaia": [8]}), "gaia": line([8], [1.0])}
    assert not told(sources)
    sources["gaia"] = line([8], [1.000001])
    assert told(sources) == [("legacysurvey", 1, "gaia", 8, "far", 1_000_001)]


def test_a_named_row_that_is_not_there_is_absent() -> None:
    sources = {
        "legacysurvey": line([1, 2, 3], [0.0, 10.0, 20.0], {"gaia": [99, 8, 7]}),
        "gaia": line([7, 8], [20.0 + FARTHEST_ARCSEC, 10.5 + FARTHEST_ARCSEC]),
    }
    assert told(sources) == [
        ("legacysurvey", 1, "gaia", 99, "absent", None),
        ("legacysurvey", 2, "gaia", 8, "absent", None),
        ("legacysurvey", 3, "gaia", 7, "far", 600_000_000),
    ]
    assert [t[4] for t in told({"legacysurvey": sources["legacysurvey"]})] == ["absent"] * 3, "no Gaia here at all"


@pytest.mark.parametrize(("near", "wins"), [(0.2, 1), (0.3, 1), (0.4, 2)])
def test_of_two_rows_that_name_one_the_nearer_has_it_then_the_smaller_key(near: float, wins: int) -> None:
    sources = {
        "legacysurvey": line([1, 2], [-near, 0.3], {"gaia": [8, 8]}),
        "gaia": line([8, 9], [0.0, 0.35]),
    }
    groups = group(sources, RANKS, RADII)
    assert frozenset([("legacysurvey", wins), ("gaia", 8)]) in objects(groups)
    loser = 3 - wins
    assert [t[:5] for t in told(sources, groups)] == [("legacysurvey", loser, "gaia", 8, "shared")]
    assert frozenset([("legacysurvey", loser)]) in objects(groups), "it says that it is 8, so it is not 9"


def test_an_id_whose_rows_may_not_stand_in_one_object_is_refused() -> None:
    sources = {
        "legacysurvey": line([1], [0.0], {"gaia": [7]}),
        "gaia": line([7], [-0.5]),
        "desi": line([5], [1.8], {"legacysurvey": [1]}),
    }
    groups = group(sources, RANKS, RADII)
    assert objects(groups) == {frozenset([("legacysurvey", 1), ("gaia", 7)]), frozenset([("desi", 5)])}
    assert [r["key_b"] for r in groups.pairs.to_pylist() if r["conflict"]] == [5]
    assert told(sources, groups) == [("desi", 5, "legacysurvey", 1, "refused", 1_800_000)]


@pytest.mark.parametrize("other", [EDGE, EDGE - 1, -(2**63), -(2**63) + 1, -1, 0])
def test_ids_at_the_edges_of_int64_stay_what_they_are(other: int) -> None:
    # one more or less is another row, which a float would not tell
    beside = other - 1 if other > 0 else other + 1
    sources = {
        "legacysurvey": line([EDGE, EDGE - 1], [0.0, 30.0], {"gaia": [other, None]}),
        "gaia": line(sorted([other, beside]), [0.5, -0.1] if other < beside else [-0.1, 0.5]),
    }
    groups = group(sources, RANKS, RADII)
    assert frozenset([("legacysurvey", EDGE), ("gaia", other)]) in objects(groups)
    assert not told(sources, groups)


def test_a_null_names_nothing() -> None:
    nothing = line([1], [0.0], {"gaia": [None]})
    assert named(nothing, "gaia")[1].tolist() == [False] and named(nothing, "hsc")[1].tolist() == [False]
    sources = {"legacysurvey": nothing, "gaia": line([0], [0.2])}
    groups = group(sources, RANKS, RADII)
    assert groups.pairs["link"].to_pylist() == [False] and groups.pairs["accepted"].to_pylist() == [True]
    assert not told(sources, groups)
    untyped = nothing.set_column(3, "link.gaia", pa.nulls(1))
    assert not named(untyped, "gaia")[1].any()


@pytest.mark.parametrize("kind", [pa.float64(), pa.string()])
def test_ids_that_are_no_integers_are_refused(kind: pa.DataType) -> None:
    table = line([1], [0.0]).append_column("link.gaia", pa.array([5]).cast(kind))
    with pytest.raises(ValueError, match=r"link\.gaia is (double|string); wanted int64 keys of gaia"):
        group({"legacysurvey": table, "gaia": line([5], [0.0])}, RANKS, RADII)


def test_a_motion_brings_named_rows_together() -> None:
    star = line([8], [20.0]).append_column("pmra", pa.array([1000.0])).append_column("pmdec", pa.array([0.0]))
    star = star.append_column("epoch", pa.array([2016.0]))
    image = line([1], [0.0], {"gaia": [8]}).append_column("epoch_min", pa.array([1996.0]))
    assert not told({"legacysurvey": image, "gaia": star})
    assert objects(group({"legacysurvey": image, "gaia": star}, RANKS, RADII)) == {
        frozenset([("legacysurvey", 1), ("gaia", 8)])
    }


@pytest.mark.parametrize("ra", [10.0, 0.0])
def test_a_far_link_that_a_mover_carries_into_one_object_is_no_disagreement(ra: float) -> None:
    """At RA 0 the image and the star lie in two work cells, so that no candidate of the image's own cell is of DESI."""
    still = {"pmra": pa.nulls(1, pa.float64()), "pmdec": pa.nulls(1, pa.float64()), "epoch": pa.nulls(1, pa.float64())}

    def row(south: float, **columns: object) -> pa.Table:
        dec = np.array([0.3 - south]) / 3600
        place = {
            "key": pa.array([1]),
            "ra": np.array([ra]),
            "dec": dec,
            "healpix29": sky.healpix29(np.array([ra]), dec),
        }
        return pa.table({**place, **still, **columns})

    image = {"epoch_min": [2016.0], "epoch_max": [2016.0]}
    old = {"epoch_min": [1993.0], "epoch_max": [1993.0]}
    sources = {
        "legacysurvey": row(0.0, **image),
        "gaia": row(2.3, pmra=[0.0], pmdec=[100.0], epoch=[1993.0]),
        "desi": row(2.3, **old).append_column("link.legacysurvey", pa.array([1])),
    }
    groups = group(sources, RANKS, RADII)
    assert [list(r.values()) for r in groups.carried.to_pylist()] == [["legacysurvey", 1, "desi", 1]]
    assert len(objects(groups)) == 1 and groups.pairs.num_rows == 2
    assert not told(sources, groups)
    without = {name: sources[name] for name in ("legacysurvey", "desi")}
    assert told(without) == [("desi", 1, "legacysurvey", 1, "far", 2_300_000)]

    fine = {s: sky.cells(t["healpix29"].to_numpy(), sky.FINE_ORDER) for s, t in sources.items()}
    work = {int(sky.cells(t["healpix29"].to_numpy(), 6)[0]) for t in sources.values()}
    assert ra or len(work) == 2
    for cell in work:
        found = match_cell(
            cell,
            lambda wanted: {s: t.filter(np.isin(fine[s], wanted)) for s, t in sources.items()},
            {},
            RANKS,
            RADII,
        )
        assert not disagreements(sources, found.pairs, RANKS, radius, cell, found.carried).num_rows


def scattered(rng: np.random.Generator, place: tuple[float, float], n: int, speed: float) -> dict[str, pa.Table]:
    """Sources up to a quarter of a degree from the place, most of which name a row that is near, far, or nowhere."""
    east, north = rng.uniform(-500, 500, (2, n))
    # several rows of the Legacy Survey may be of one thing
    thing = {"legacysurvey": rng.integers(0, n, n), "gaia": np.arange(n), "desi": np.arange(n)}
    out = {}
    keys = {name: rng.permutation(2 * n)[:n] for name in RANKS}
    for name in RANKS:
        off = rng.normal(0, rng.choice([0.1, 0.4, 0.8, 30.0, 400.0], n), (2, n))
        ra, dec = sky.propagate(*place, (east[thing[name]] + off[0]) * 1000, (north[thing[name]] + off[1]) * 1000, 1.0)
        moving = rng.uniform(size=n) < 0.3
        pm = rng.uniform(-1, 1, (2, n)) * 1000 * speed
        out[name] = pa.table(
            {
                "key": keys[name],
                "ra": ra,
                "dec": dec,
                "pmra": pa.array(pm[0], mask=~moving),
                "pmdec": pa.array(pm[1], mask=~moving),
                "epoch": pa.array(np.full(n, 2016.0), mask=~moving),
                "epoch_min": np.full(n, 2000.0),
                "epoch_max": np.full(n, 2010.0),
                "healpix29": sky.healpix29(ra, dec),
            }
        )
    for name, other in (("legacysurvey", "gaia"), ("desi", "legacysurvey")):
        of_thing = dict(zip(thing[other].tolist(), keys[other].tolist(), strict=True))
        claim = [of_thing.get(x, -1) if rng.uniform() < 0.8 else int(rng.integers(2 * n)) for x in thing[name].tolist()]
        claims = pa.array(np.array(claim), mask=rng.uniform(size=n) < 0.1)
        out[name] = out[name].append_column(f"link.{other}", claims)
    return out


def one_by_one(sources: dict[str, pa.Table], groups: Groups) -> list[tuple]:
    """What becomes of each id, by loops."""
    whose = {(r["survey"], r["key"]): (r["anchor_survey"], r["anchor_key"]) for r in groups.members.to_pylist()}
    pairs = {(r["survey_a"], r["key_a"], r["survey_b"], r["key_b"]): r for r in groups.pairs.to_pylist() if r["link"]}
    out = []
    for name, other in (("desi", "legacysurvey"), ("legacysurvey", "gaia")):
        row = {k: i for i, k in enumerate(sources[other]["key"].to_pylist())}
        for i, (key, names) in enumerate(
            zip(sources[name]["key"].to_pylist(), sources[name][f"link.{other}"].to_pylist(), strict=True)
        ):
            if names is None:
                continue
            ends = [(name, sources[name].slice(i, 1)), (other, sources[other].slice(row.get(names, 0), 1))]
            ends.sort(key=lambda end: RANKS[end[0]])
            apart = int(separation_uas(ends[0][1], ends[1][1])[0])
            if names not in row or apart > 600e6:
                out.append((name, key, other, names, "absent", None))
            elif apart > radius(name, other) * 1e6:
                if whose[name, key] != whose[other, names]:
                    out.append((name, key, other, names, "far", apart))
            else:
                pair = pairs[tuple(x for end in ends for x in (end[0], end[1]["key"][0].as_py()))]
                if not pair["accepted"]:
                    out.append((name, key, other, names, "refused" if pair["mutual"] else "shared", apart))
    return sorted(out)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from(sorted(PLACES)), st.sampled_from([0.4, 10.0]), st.integers(1, 40))
def test_what_is_said_hangs_on_the_set_of_sources_alone(seed: int, place: str, speed: float, n: int) -> None:
    rng = np.random.default_rng(seed)
    sources = scattered(rng, PLACES[place], n, speed)
    whole = group(sources, RANKS, RADII)
    expected = told(sources, whole)
    assert expected == one_by_one(sources, whole)
    names = rng.permutation(sorted(sources)).tolist()
    assert told({s: sources[s].take(rng.permutation(n)) for s in names}) == expected

    work = {s: sky.cells(t["healpix29"].to_numpy(), 6) for s, t in sources.items()}
    by_cell: list[tuple] = []
    for cell in np.unique(np.concatenate(list(work.values()))).tolist():
        around = sky.rings(6, np.array([cell]), 1)
        seen = {s: t.filter(np.isin(work[s], around)) for s, t in sources.items()}
        fast = {s: t.filter(is_fast(t)) for s, t in seen.items()}
        slow = {s: t.filter(~is_fast(t)) for s, t in seen.items()}
        fine = {s: sky.cells(t["healpix29"].to_numpy(), sky.FINE_ORDER) for s, t in slow.items()}

        def load(wanted: np.ndarray, slow: dict = slow, fine: dict = fine) -> dict[str, pa.Table]:
            return {s: t.filter(np.isin(fine[s], wanted)) for s, t in slow.items()}

        found = match_cell(cell, load, fast, RANKS, RADII)
        by_cell += [
            tuple(r.values()) for r in disagreements(seen, found.pairs, RANKS, radius, cell, found.carried).to_pylist()
        ]
    assert sorted(by_cell, key=lambda t: t[:3]) == expected
