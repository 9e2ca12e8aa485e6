import numpy as np
import pyarrow as pa

from skycairn.match.sky import healpix29
from skycairn.pipeline.truematch import Members, members


def sources(*keys: int) -> pa.Table:
    ra, dec = 10 + np.array(keys) * 1e-4, np.full(len(keys), 5.0)
    return pa.table({"key": pa.array(keys, pa.int64()), "ra": ra, "dec": dec, "healpix29": healpix29(ra, dec)})


def pairs(*found: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    key, uid = np.array(found, np.int64).reshape(-1, 2).T
    return key, uid


def groups(found: Members) -> set[frozenset[str]]:
    out: dict[str, set[str]] = {}
    for row in found.table.to_pylist():
        out.setdefault(row["object_id"], set()).add(f"{row['survey']}:{row['key']}")
    assert sum(row["anchor"] for row in found.table.to_pylist()) == len(out) == len(found.uid)
    return {frozenset(v) for v in out.values()}


LIGHT = {1: 5.0, 2: 1.0}
ONE_BLEND, NONE = {1: 1, 2: 1}, {1: 0, 2: 0}


def test_a_blend_is_one_object_of_its_brightest() -> None:
    slim = {"legacysurvey": sources(1), "hsc": sources(7), "desi": sources(9)}
    shown = {"legacysurvey": pairs((1, 2), (1, 1)), "hsc": pairs((7, 1), (7, 2)), "desi": pairs((9, 2))}
    found = members(slim, shown, LIGHT, ONE_BLEND)
    assert groups(found) == {frozenset({"legacysurvey:1", "hsc:7", "desi:9"})}
    assert found.uid == {"legacysurvey:1": 1}
    far = {r["survey"]: r["separation_uas"] for r in found.table.to_pylist()}
    assert far["legacysurvey"] == 0 and abs(far["hsc"] - 6e-4 * 3.6e9 * np.cos(np.radians(5))) < 100


def test_what_a_survey_tells_apart_is_two_objects() -> None:
    slim = {"legacysurvey": sources(1), "hsc": sources(7, 8), "desi": sources(9)}
    shown = {"legacysurvey": pairs((1, 1), (1, 2)), "hsc": pairs((7, 1), (8, 2)), "desi": pairs((9, 2))}
    found = members(slim, shown, LIGHT, ONE_BLEND)
    assert groups(found) == {
        frozenset({"legacysurvey:1", "hsc:7"}),
        frozenset({"hsc:8", "desi:9"}),
    }
    # as a build says it: both are of one blend group, named by its first object, in which HSC has two sources
    for row in found.table.to_pylist():
        assert row["blend_group"] == "legacysurvey:1"
        assert [row[f"blend_n.{s}"] for s in slim] == [1, 2, 1]
    apart = members(slim, shown, LIGHT, NONE).table
    assert apart["blend_group"].to_pylist() == apart["object_id"].to_pylist()


def test_a_second_source_of_a_thing_and_one_of_none_are_dropped_and_counted() -> None:
    slim = {"legacysurvey": sources(1, 2, 3), "hsc": sources(), "desi": sources()}
    found = members(slim, {"legacysurvey": pairs((1, 1), (2, 1)), "hsc": pairs(), "desi": pairs()}, LIGHT, NONE)
    assert groups(found) == {frozenset({"legacysurvey:1"})}
    assert found.table["blend_n.legacysurvey"].to_pylist() == [2]
    assert found.counts == {
        "sources": 3,
        "members": 1,
        "dropped:another source of the same thing": 1,
        "dropped:no true thing": 1,
    }


def test_separation_minds_motion() -> None:
    """A star goes 1 arcsec a year to the north; images of 2014 to 2015 show it where it was then."""
    gaia, legacy = sources(5), sources(1)
    gaia = gaia.append_column("epoch", pa.array([2016.0]))
    gaia = gaia.append_column("pmra", pa.array([0.0])).append_column("pmdec", pa.array([1000.0]))
    legacy = legacy.set_column(1, "ra", gaia["ra"]).set_column(2, "dec", pa.array([5.0 - 1.5 / 3600]))
    legacy = legacy.append_column("epoch_min", pa.array([2014.0])).append_column("epoch_max", pa.array([2015.0]))
    slim = {"legacysurvey": legacy, "gaia": gaia}
    table = members(slim, {"legacysurvey": pairs((1, 1)), "gaia": pairs((5, 1))}, LIGHT, NONE).table
    assert max(table["separation_uas"].to_pylist()) < 10
