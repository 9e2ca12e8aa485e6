import json

import pytest

from skycairn.pile.receipt import Part
from skycairn.pile.snapshot import Draft, Entry, Snapshot

A, B = (Part(c * 64, ".parquet", 10, 1, c * 64) for c in "ab")
OTHER_FILE = Part("c" * 64, ".parquet", 11, 1, "a" * 64)


def snapshot(**change: object) -> Snapshot:
    draft = {"recipe": {"radius": 1.0}, "tables": {"t": [Entry({"cell": 1}, A), Entry({"cell": 2}, B)]}, **change}
    return Snapshot.of(Draft(**draft), 1, None)  # type: ignore[arg-type]


def test_a_snapshot_comes_back_from_json() -> None:
    s = snapshot(aside={"p": [Entry({}, B)]}, held_back=[{"cell": 9, "reason": "file absent"}], stats={"n": 2})
    assert Snapshot.from_json(json.loads(json.dumps(s.to_json()))) == s


def test_content_id_hangs_on_content_alone() -> None:
    s = snapshot()
    same = [
        snapshot(recipe={"radius": 2.0}),
        snapshot(stats={"seconds": 3.5}),
        snapshot(aside={"provenance": [Entry({}, B)]}),
        snapshot(tables={"t": [Entry({"cell": 2}, B), Entry({"cell": 1}, A)]}),
        snapshot(tables={"t": [Entry({"cell": 1}, OTHER_FILE), Entry({"cell": 2}, B)]}),
    ]
    assert {x.content_id for x in same} == {s.content_id}
    different = [
        snapshot(tables={"u": [Entry({"cell": 1}, A), Entry({"cell": 2}, B)]}),
        snapshot(tables={"t": [Entry({"cell": 1}, B), Entry({"cell": 2}, A)]}),
        snapshot(tables={"t": [Entry({"cell": "1"}, A), Entry({"cell": 2}, B)]}),
        snapshot(tables={"t": [Entry({"cell": 1}, A)]}),
        snapshot(tables={"t": [Entry({"cell": 1}, A)], "u": [Entry({"cell": 2}, B)]}),
        snapshot(tables={}),
        snapshot(held_back=[{"cell": 9}]),
    ]
    assert len({x.content_id for x in [s, *different]}) == len(different) + 1


def test_held_back_is_a_set() -> None:
    a, b = snapshot(held_back=[{"cell": 1}, {"cell": 2}]), snapshot(held_back=[{"cell": 2}, {"cell": 1}])
    assert a == b


def test_what_a_snapshot_refuses() -> None:
    for change, said in (
        ({"recipe": {"root": {"gaia": "/data/gaia"}}}, r"recipe\.root\.gaia holds the place '/data/gaia'"),
        ({"stats": {"from": ["https://example.org/x"]}}, r"stats\.from\[0\] holds the place"),
        ({"tables": {"t": [Entry({"file": "/x"}, A)]}}, "labels of table 't'"),
        ({"tables": {"t": [Entry({"cell": 1}, A), Entry({"cell": 1}, B)]}}, "two parts with the labels"),
        ({"aside": {"t": [Entry({}, A)]}}, "t: named among the tables and beside them"),
        ({"recipe": {"radius": float("nan")}}, "is nan"),
        ({"tables": {"t": [Entry({"cell": 1.0}, A)]}}, "the label 1.0; wanted a plain str or int"),  # type: ignore[dict-item]
    ):
        with pytest.raises(ValueError, match=said):
            snapshot(**change)


def test_json_that_does_not_hold_together_is_refused() -> None:
    good = json.loads(json.dumps(snapshot().to_json()))
    for change, said in (
        ({"format": 2}, "its format is 2, this version reads 1"),
        ({"content_id": "0" * 64}, "it says 0000"),
        ({"tables": {"t": [{"labels": {}}]}}, "lacks a field"),
        ({"tables": None}, "lacks a field"),
    ):
        with pytest.raises(ValueError, match=said):
            Snapshot.from_json({**good, **change})


def test_entries_and_parts_are_found_by_label() -> None:
    s = snapshot()
    assert s.part("t", cell=2) == B
    assert [e.labels["cell"] for e in s.entries("t")] == [1, 2]
    assert list(s.parts()) == [A, B]
    with pytest.raises(ValueError, match=r"table 't' has no part \{'cell': 3\}"):
        s.part("t", cell=3)


def test_fifty_thousand_cells() -> None:
    entries = [Entry({"cell": i}, A) for i in range(50_000)]
    s = snapshot(tables={"t": entries})
    assert Snapshot.from_json(json.loads(json.dumps(s.to_json()))).content_id == s.content_id
