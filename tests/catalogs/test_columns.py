"""Columns from whatever layout a file has: case, aliases, padding, byte order, what is missing."""

import numpy as np
import pyarrow as pa
import pytest

from skycairn.catalogs.columns import own_columns, to_arrow
from skycairn.catalogs.survey import Column, MissingColumn

BIG = (1 << 62) + 12345
WANTED = (Column("id", pa.int64(), required=True, aliases=("source_id",)), Column("z", pa.float32()))


def test_names_are_found_in_any_case_and_by_alias() -> None:
    available = {"SOURCE_ID": lambda: np.array([BIG]), "Z": lambda: np.array([0.5])}
    ids, z = own_columns(available, WANTED, 1, (), "here", "why")
    assert ids.to_pylist() == [BIG] and z.to_pylist() == [0.5] and z.type == pa.float32()


def test_a_missing_column_is_null_unless_it_is_needed() -> None:
    available = {"id": lambda: np.array([1, 2])}
    assert own_columns(available, WANTED, 2, (), "here", "why")[1].to_pylist() == [None, None]
    with pytest.raises(MissingColumn, match=r"gaia dr3: x.fits has no column 'Z': is it another release"):
        own_columns(available, WANTED, 2, ("z",), "gaia dr3: x.fits", "is it another release")
    with pytest.raises(MissingColumn, match="has no column 'ID'"):
        own_columns({}, WANTED, 2, (), "here", "why")


def test_only_wanted_columns_are_fetched() -> None:
    def never() -> np.ndarray:
        raise AssertionError("fetched")

    own_columns({"id": lambda: np.array([1]), "other": never}, WANTED, 1, (), "here", "why")


@pytest.mark.parametrize("order", ["<", ">"])
def test_bytes_of_either_order_and_nan(order: str) -> None:
    values = np.array([1.5, np.nan, np.inf, -2], dtype=f"{order}f4")
    assert to_arrow(values, Column("x", pa.float32()), "here").to_pylist() == [1.5, None, None, -2.0]
    ids = np.array([BIG, 0, -BIG], dtype=f"{order}i8")
    assert to_arrow(ids, Column("x", pa.int64()), "here").to_pylist() == [BIG, 0, -BIG]
    assert to_arrow(ids, Column("x", pa.int64(), zero_is_null=True), "here").to_pylist() == [BIG, None, -BIG]


def test_text_loses_its_padding_and_survives_bad_bytes() -> None:
    values = np.array([b"PSF ", b" REX", b"", b"\xff"], dtype="S4")
    assert to_arrow(values, Column("x", pa.string()), "here").to_pylist() == ["PSF", "REX", "", "�"]


def test_lists_keep_their_rows() -> None:
    values = np.array([[1, np.nan], [3, 4]], dtype=">f8")
    for kind in (pa.list_(pa.float64(), 2), pa.list_(pa.float64())):
        assert to_arrow(values, Column("x", kind), "here").to_pylist() == [[1.0, None], [3.0, 4.0]]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.array([0.5]), pa.int32()),
        (np.array([70000]), pa.int16()),
        (np.array([[1, 2]]), pa.int32()),
        (np.array([b"abc"]), pa.float64()),
    ],
)
def test_what_does_not_fit_is_refused_by_name(values: np.ndarray, kind: pa.DataType) -> None:
    with pytest.raises(ValueError, match=r"here: column 'X' holds .*wanted"):
        to_arrow(values, Column("x", kind), "here")
