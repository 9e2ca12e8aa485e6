import hashlib
import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skycairn.pile.content import ContentHasher, canonical_json, content_id, logical_type, merkle
from skycairn.pile.parquet import TableWriter

FEW = settings(max_examples=80, deadline=None)
LEAVES = {
    pa.int64(): st.integers(-2, 2) | st.sampled_from([2**63 - 1, -(2**63)]),
    pa.uint64(): st.sampled_from([0, 1, 2**63, 2**64 - 1]),
    pa.int8(): st.integers(-1, 1),
    pa.float64(): st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf")]),
    pa.float32(): st.sampled_from([0.0, -0.0, 1.5, float("nan")]),
    pa.float16(): st.sampled_from([0.0, 1.5, float("nan")]),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(alphabet="aé", max_size=2),
    pa.binary(): st.binary(max_size=2),
    pa.timestamp("us"): st.integers(0, 2),
    pa.decimal128(10, 2): st.sampled_from([0, 1, 100]),
    pa.null(): st.none(),
}


def nested(kinds: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.DataType]:
    return st.one_of(
        kinds.map(pa.list_),
        kinds.map(pa.large_list),
        kinds.map(lambda k: pa.list_(k, 2)),
        st.lists(kinds, min_size=1, max_size=2).map(lambda ks: pa.struct([(f"f{i}", k) for i, k in enumerate(ks)])),
    )


# the null type at the top only: pyarrow itself builds invalid arrays of it inside fixed-size lists
TYPES = st.just(pa.null()) | st.recursive(st.sampled_from([k for k in LEAVES if k != pa.null()]), nested, max_leaves=3)


def values(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if kind in LEAVES:
        some = LEAVES[kind]
    elif pa.types.is_struct(kind):
        some = st.fixed_dictionaries({f.name: values(f.type) for f in kind.fields})
    elif pa.types.is_fixed_size_list(kind):
        some = st.lists(values(kind.value_type), min_size=2, max_size=2)
    else:
        some = st.lists(values(kind.value_type), max_size=3)
    return st.none() | some


def columns(kind: pa.DataType) -> st.SearchStrategy[pa.Array]:
    return st.lists(values(kind), max_size=6).map(lambda v: pa.array(v, kind))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[pa.Array, pa.Array]:
    kind = draw(TYPES)
    return draw(columns(kind)), draw(columns(kind))


def one(array: pa.Array | pa.ChunkedArray, name: str = "x") -> str:
    return content_id(pa.table({name: array}))


@FEW
@given(pairs())
def test_equal_ids_mean_equal_values(pair: tuple[pa.Array, pa.Array]) -> None:
    # repr tells nan from null, -0.0 from 0.0, and where one list ends
    a, b = pair
    assert (one(a) == one(b)) == (repr(a.to_pylist()) == repr(b.to_pylist()))


@FEW
@given(st.data(), TYPES)
def test_chunks_and_slices_change_nothing(data: st.DataObject, kind: pa.DataType) -> None:
    array = data.draw(columns(kind))
    cut = data.draw(st.integers(0, len(array)))
    around = data.draw(columns(kind))
    inside = pa.concat_arrays([around, array, around]).slice(len(around), len(array))
    chunked = pa.chunked_array([inside.slice(0, cut), inside.slice(cut), inside.slice(0, 0)])
    assert one(inside) == one(chunked) == one(array)
    hasher = ContentHasher(pa.schema([("x", kind)]))
    hasher.update(pa.table({"x": inside.slice(0, cut)}))
    hasher.update(pa.record_batch({"x": inside.slice(cut)}))
    assert hasher.content_id == one(array)
    assert hasher.n_rows == len(array)


@FEW
@given(st.data(), TYPES)
def test_a_parquet_file_changes_nothing(data: st.DataObject, kind: pa.DataType) -> None:
    array = data.draw(columns(kind))
    table = pa.table({"x": array, "y": pa.array(range(len(array)), pa.int64())})
    sink = io.BytesIO()
    writer = TableWriter(sink, table.schema, 2)
    writer.write(table)
    writer.close()
    back = pq.read_table(sink)
    assert content_id(back) == writer.content_id == content_id(table)


@FEW
@given(st.lists(st.none() | st.text(alphabet="ab", max_size=2), max_size=8))
def test_how_strings_are_stored_changes_nothing(texts: list[str | None]) -> None:
    plain = pa.array(texts, pa.string())
    twins = [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
    assert {one(plain)} == {one(plain.cast(kind)) for kind in twins}
    assert one(pa.array([texts], pa.list_(pa.string()))) == one(pa.array([texts], pa.large_list(pa.large_string())))


def test_what_lies_under_a_null_changes_nothing() -> None:
    missing = np.array([False, True, False])
    under = [
        pa.Array.from_buffers(pa.int64(), 3, [pa.array(~missing).buffers()[1], pa.py_buffer(np.array(v))])
        for v in ([1, 7, 3], [1, 0, 3])
    ]
    assert under[0].null_count == 1
    assert one(under[0]) == one(under[1]) == one(pa.array([1, None, 3]))
    lists = [
        pa.FixedSizeListArray.from_arrays(pa.array(v), 2, mask=pa.array(missing))
        for v in ([1, 2, 8, 8, 3, 4], [1, 2, 9, 9, 3, 4])
    ]
    assert one(lists[0]) == one(lists[1])
    ragged = [
        pa.ListArray.from_arrays(pa.array(o, pa.int32()), pa.array([1, 2, 3]), mask=pa.array(missing))
        for o in ([0, 1, 2, 3], [0, 1, 1, 2])
    ]
    assert one(ragged[0]) != one(ragged[1])
    assert one(ragged[0]) == one(pa.array([[1], None, [3]]))
    null_entry = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(["a", None]))
    assert one(null_entry) == one(pa.array(["a", None, "a"]))


def test_every_nan_is_one_nan_but_zeros_are_two() -> None:
    nans = np.array([0x7FF8000000000000, 0xFFF8000000000001], np.uint64).view(np.float64)
    assert one(pa.array(nans[:1])) == one(pa.array(nans[1:]))
    assert one(pa.array([0.0])) != one(pa.array([-0.0]))
    assert one(pa.array([float("nan")])) != one(pa.array([None], pa.float64()))


def test_null_is_not_zero_nor_empty() -> None:
    assert one(pa.array([None], pa.int64())) != one(pa.array([0]))
    assert one(pa.array([None], pa.string())) != one(pa.array([""]))
    assert one(pa.array([None], pa.list_(pa.int64()))) != one(pa.array([[]], pa.list_(pa.int64())))
    assert one(pa.array([None, 1])) != one(pa.array([1, None]))


@FEW
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.data())
def test_where_one_value_ends_and_the_next_begins_counts(numbers: list[int], data: st.DataObject) -> None:
    cuts = [sorted(data.draw(st.lists(st.integers(0, len(numbers)), min_size=2, max_size=2))) for _ in range(2)]
    lists = [[numbers[:a], numbers[a:b], numbers[b:]] for a, b in cuts]
    texts = [["".join(map(str, piece)) for piece in pieces] for pieces in lists]
    kind = pa.list_(pa.uint16())
    assert (one(pa.array(lists[0], kind)) == one(pa.array(lists[1], kind))) == (cuts[0] == cuts[1])
    assert (one(pa.array(texts[0])) == one(pa.array(texts[1]))) == (cuts[0] == cuts[1])
    in_lists = [pa.array([pieces], pa.list_(pa.string())) for pieces in texts]
    assert (one(in_lists[0]) == one(in_lists[1])) == (cuts[0] == cuts[1])


@FEW
@given(st.data(), st.lists(st.none() | st.integers(-5, 5), min_size=1, max_size=8))
def test_any_one_change_is_seen(data: st.DataObject, numbers: list[int | None]) -> None:
    i = data.draw(st.integers(0, len(numbers) - 1))
    other = data.draw((st.none() | st.integers(-5, 5)).filter(lambda v: v != numbers[i]))
    changed = [*numbers[:i], other, *numbers[i + 1 :]]
    for kind in (pa.int32(), pa.float64(), pa.string(), pa.list_(pa.int64())):

        def column(values: list[int | None], kind: pa.DataType = kind) -> pa.Array:
            if pa.types.is_list(kind):
                return pa.array([values], kind)
            return pa.array(values, pa.int64()).cast(kind)

        assert one(column(numbers)) != one(column(changed))


def test_ids_near_two_to_the_63_stay_apart() -> None:
    big = [2**63 - 1, 2**63 - 2]
    assert one(pa.array(big[:1])) != one(pa.array(big[1:]))
    assert one(pa.array([2**63], pa.uint64())) != one(pa.array([2**63 + 1], pa.uint64()))


def test_names_types_and_order_of_rows_count_but_order_of_columns_does_not() -> None:
    table = pa.table({"a": [1, 2], "b": [3, 4]})
    assert content_id(table) == content_id(table.select(["b", "a"]))
    assert content_id(table) != content_id(table.rename_columns(["a", "c"]))
    assert content_id(table) != content_id(table.rename_columns(["b", "a"]))
    assert content_id(table) != content_id(table.take([1, 0]))
    assert one(pa.array([1], pa.int32())) != one(pa.array([1], pa.int64()))
    assert one(pa.array([1], pa.timestamp("us"))) != one(pa.array([1], pa.timestamp("ns")))
    assert one(pa.array([[1, 2]], pa.list_(pa.int64()))) != one(pa.array([[1, 2]], pa.list_(pa.int64(), 2)))


def test_metadata_and_nullability_say_nothing() -> None:
    plain = pa.schema([pa.field("x", pa.list_(pa.uint16()))])
    item = pa.field("element", pa.uint16(), nullable=False)
    other = pa.schema([pa.field("x", pa.list_(item), False, {"unit": "mag"})], {"a": "b"})
    assert content_id(plain.empty_table()) == content_id(other.empty_table())
    assert content_id(pa.table({"x": pa.array([[1]], plain.field(0).type)})) == content_id(
        pa.table({"x": pa.array([[1]], other.field(0).type)}, schema=other)
    )


def test_empty_tables_differ_by_their_columns() -> None:
    empty = {content_id(pa.schema(s).empty_table()) for s in ([], [("x", pa.int64())], [("x", pa.int32())])}
    assert len(empty) == 3


def test_golden_ids_hold() -> None:
    # every content id ever published hangs on these; they change with the format and never else
    table = pa.table(
        {
            "key": pa.array([2**63 - 1, None, 3], pa.int64()),
            "name": ["gaia:1", None, ""],
            "tokens": pa.array([[1, 2], None, []], pa.list_(pa.uint16())),
            "flux": pa.array([[1.0, -0.0], [float("nan"), 2.0], None], pa.list_(pa.float32(), 2)),
            "place": [{"ra": 359.9999, "cell": 1}, None, {"ra": 0.0001, "cell": None}],
            "bad": [True, None, False],
        }
    )
    assert content_id(table) == "24e2b0d4c3e7c63971a44dd30074f3ffd087976a98a8b709ac2ccb862132daae"
    assert merkle({"b": "2", "a": "1"}) == "54002273e043964f343748cba401ea990dfc1ca76b8bcb65714cb5525594586b"


def test_what_has_no_content_id_is_refused() -> None:
    with pytest.raises(ValueError, match="come twice"):
        ContentHasher(pa.schema([("a", pa.int64()), ("a", pa.int64())]))
    with pytest.raises(ValueError, match="no content id for the Arrow type map"):
        logical_type(pa.map_(pa.string(), pa.int64()))
    with pytest.raises(ValueError, match="two fields of one name"):
        logical_type(pa.struct([("a", pa.int64()), ("a", pa.int64())]))
    hasher = ContentHasher(pa.schema([("a", pa.int64())]))
    with pytest.raises(ValueError, match="the next rows have columns"):
        hasher.update(pa.table({"a": pa.array([1], pa.int32())}))


def test_merkle_tells_names_from_digests() -> None:
    assert merkle({"ab": "c"}) != merkle({"a": "bc"})
    assert merkle({"a": "1", "b": "2"}) == merkle({"b": "2", "a": "1"}) != merkle({"a": "2", "b": "1"})
    assert merkle({}) != hashlib.sha256().hexdigest()


def test_canonical_json_is_one_text_or_an_error() -> None:
    assert canonical_json({"b": 0.1, "a": [1, None, True, "é"]}) == '{"a":[1,null,true,"é"],"b":0.1}'.encode()
    for bad, where in (
        ({"a": [float("nan")]}, r"\$\.a\[0\] is nan"),
        ({"a": np.int64(1)}, r"\$\.a is .*numpy"),
        ({1: 2}, r"\$ has the key 1"),
        ({"a": {1, 2}}, r"\$\.a is"),
    ):
        with pytest.raises(ValueError, match=where):
            canonical_json(bad)
