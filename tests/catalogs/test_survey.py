"""The form of a survey: cuts in order, nulls, releases and modalities by name."""

import numpy as np
import pyarrow as pa
import pytest

from skycairn.catalogs.survey import STANDARD_SCHEMA, Cut, first_failed
from skycairn.catalogs.targets import Targets

POSITIVE = Cut("positive", ("x",), lambda v: v["x"] > 0, "why")
NAMED = Cut("named", ("name",), lambda v: v["name"] != "bad", "why", null="passes")
FLAG = Cut("flag", ("flag",), lambda v: v["flag"], "why")


def test_the_first_cut_that_fails_is_named() -> None:
    table = pa.table({"x": [1.0, -1.0, -1.0, 2.0], "name": ["a", "bad", "a", "bad"]})
    assert first_failed((POSITIVE, NAMED), table).to_pylist() == [None, "positive", "positive", "named"]
    assert first_failed((NAMED, POSITIVE), table).to_pylist() == [None, "named", "positive", "named"]
    assert first_failed((), table).to_pylist() == [None] * 4


@pytest.mark.parametrize(
    ("cut", "column", "fails"),
    [
        (POSITIVE, pa.array([1.0, None, np.nan, 0.0]), [False, True, True, True]),
        (POSITIVE, pa.array([1, None, 0, 5], pa.int16()), [False, True, True, False]),
        (NAMED, pa.array(["a", None, "bad", ""]), [False, False, True, False]),
        (FLAG, pa.array([True, None, False, True]), [False, True, True, False]),
    ],
)
def test_a_null_fails_or_passes_as_the_cut_says(cut: Cut, column: pa.Array, fails: list[bool]) -> None:
    got = first_failed((cut,), pa.table({cut.columns[0]: column}))
    assert [g == cut.name for g in got.to_pylist()] == fails
    chunked = pa.table({cut.columns[0]: pa.chunked_array([column[:1], column[1:]])})
    assert first_failed((cut,), chunked).equals(got)


def test_large_integers_reach_a_cut_unrounded_beside_a_null() -> None:
    big = (1 << 53) + 1
    exact = Cut("exact", ("id",), lambda v: v["id"] == big, "why")
    table = pa.table({"id": pa.array([big, big - 1, None], pa.int64())})
    assert first_failed((exact,), table).to_pylist() == [None, "exact", "exact"]


def test_an_empty_table_has_no_failures() -> None:
    assert first_failed((POSITIVE,), pa.table({"x": pa.array([], pa.float64())})).to_pylist() == []


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="there is no release 'dr99' here; choose one of user"):
        Targets("dr99")
    with pytest.raises(ValueError, match="targets has no modality 'x'"):
        Targets().modality("x")


def test_the_standard_columns_keep_positions_in_double() -> None:
    assert STANDARD_SCHEMA.field("ra").type == STANDARD_SCHEMA.field("dec").type == pa.float64()
    assert STANDARD_SCHEMA.field("key").type == pa.int64()
