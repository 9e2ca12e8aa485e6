import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skycairn.catalogs.ecsv import parse_lists, read_table

TYPES = {
    "source_id": pa.int64(),
    "ra": pa.float64(),
    "flag": pa.bool_(),
    "n": pa.int16(),
    "a": pa.list_(pa.float32()),
}
HEADER = "# %ECSV 1.0\n# ---\n# datatype:\n# - {name: source_id, datatype: int64}\n"
BODY = """solution_id,SOURCE_ID,ra,flag,n,a
1,5937083312263887617,1.5,True,3,"[1.5, -2, 3e2]"
1,9223372036854775807,null,"true",,"(4.0, 5, 6)"
1,3,NaN,t,null,
1,4,"",False,"7","null"
1,5,0,f,-1,"[1,2]"
1,6,-0.25,,2,"[]"
"""
WANTED = {
    "source_id": [5937083312263887617, 9223372036854775807, 3, 4, 5, 6],
    "ra": [1.5, None, None, None, 0.0, -0.25],
    "flag": [True, True, True, False, False, None],
    "n": [3, None, None, 7, -1, 2],
    "a": [[1.5, -2, 300], [4, 5, 6], None, None, [1, 2], None],
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("header", ["", HEADER, HEADER * 400])
def test_every_spelling(tmp_path: Path, zipped: bool, header: str) -> None:
    path = tmp_path / ("t.csv.gz" if zipped else "t.csv")
    text = (header + BODY).encode()
    path.write_bytes(gzip.compress(text) if zipped else text)
    table = read_table(path, TYPES)
    assert table.to_pydict() == WANTED
    assert table.schema == pa.schema(TYPES)


def test_two_gzip_members_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"source_id\n1\n2\n") + gzip.compress(b"3\n"))
    assert read_table(path, TYPES)["source_id"].to_pylist() == [1, 2, 3]


def test_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "source_id,a\n")
    table = read_table(path, TYPES)
    assert table.num_rows == 0 and table.schema.field("a").type == TYPES["a"]


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_a_cut_gzip_is_refused(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "GaiaSource_1-2.csv.gz"
    rng = np.random.default_rng(1)
    whole = gzip.compress(("source_id\n" + "".join(f"{i}\n" for i in rng.integers(0, 2**62, 5000))).encode())
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(
        ValueError, match=r"GaiaSource_1-2.csv.gz: cannot be read to its end .*; fetch it again"
    ) as error:
        read_table(path, TYPES)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "source_id,ra\n1,2.0\n2,3", "last line has no end"),
        ("t.csv", "source_id,ra\n1,2.0\n2\n", "cannot be read to its end"),
        ("t.csv", "source_id,ra\n1.5,2.0\n", "cannot be read to its end"),
        ("t.csv", "source_id,n\n1,70000\n", "cannot be read to its end"),
        ("t.csv", 'source_id,a\n1,"[1, x]"\n', "an array holds what is no number"),
        ("t.csv", 'source_id,a\n1,"[1, NaN]"\n', "an array holds a value that is not finite"),
        ("t.csv", "# nothing\n", "no line of column names"),
        ("t.csv", "", "no line of column names"),
        ("t.csv", "<html>\n", "has none of the 5 wanted columns"),
        ("t.csv.gz", "source_id\n1\n", "cannot be read to its end"),
        ("t.zip", "PK", "unpack it"),
        ("t.dat", "1", "is no table that is read here"),
        ("t.fits", "source_id\n", "cannot be read as a whole FITS file"),
        ("t.vot", "<VOTABLE>", "cannot be read as a VOTable"),
    ],
)
def test_what_is_wrong_is_said_with_the_files_name(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_table(path, TYPES)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "t.csv", TYPES)


@given(
    st.lists(st.none() | st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=5)),
    st.sampled_from([("[", "]", ","), ("(", ")", ", "), ("[", "]", " , ")]),
)
@settings(deadline=None, max_examples=60)
def test_arrays_are_read_as_written(rows: list[list[float] | None], style: tuple[str, str, str]) -> None:
    left, right, comma = style
    text = [None if r is None else left + comma.join(map(repr, r)) + right for r in rows]
    assert parse_lists(pa.array(text, pa.string()), pa.float32(), "t").to_pylist() == rows


class TestParquet:
    TABLE = pa.table(
        {
            "Source_ID": pa.array([2**63 - 1, 2**63 - 2], pa.int64()),
            "ra": pa.array([1.5, float("nan")]),
            "n": pa.array([None, 3], pa.int16()),
            "flag": pa.array([None, True]),
            "a": pa.array([[0.1, 2.0], None], pa.list_(pa.float64())),
            "other": ["x", "y"],
        }
    )

    def write(self, path: Path, table: pa.Table) -> Path:
        pq.write_table(table, path, write_page_checksum=True, compression="none")
        return path

    def test_types_nulls_and_units(self, tmp_path: Path) -> None:
        unit = pa.field("ra", pa.float64(), metadata={"unit": "deg"})
        schema = self.TABLE.schema.set(1, unit)
        table = read_table(self.write(tmp_path / "t.parquet", self.TABLE.cast(schema)), TYPES)
        assert table.to_pydict() == {
            "source_id": [2**63 - 1, 2**63 - 2],
            "ra": [1.5, None],
            "flag": [None, True],
            "n": [None, 3],
            "a": [pytest.approx([0.1, 2.0]), None],
        }
        assert table.schema.equals(pa.schema(TYPES)) and table.schema.field("ra").metadata == {b"unit": b"deg"}

    @pytest.mark.parametrize(
        ("column", "values", "message"),
        [
            ("Source_ID", pa.array([1.0, 2.0]), "whole numbers, never a float"),
            ("n", pa.array([1, 2**40]), "'n': "),
            ("ra", pa.array(["1", "x"]), "'ra': "),
            ("a", pa.array([[1.0, float("inf")], None]), "not finite"),
        ],
    )
    def test_values_that_are_none(self, tmp_path: Path, column: str, values: pa.Array, message: str) -> None:
        table = self.TABLE.set_column(self.TABLE.schema.get_field_index(column), column, values)
        with pytest.raises(ValueError, match=message):
            read_table(self.write(tmp_path / "t.parquet", table), TYPES)

    @pytest.mark.parametrize("damage", ["cut", "flip", "html"])
    def test_damage(self, tmp_path: Path, damage: str) -> None:
        path = self.write(tmp_path / "t.parquet", self.TABLE)
        raw = bytearray(path.read_bytes())
        if damage == "flip":
            raw[raw.index((2**63 - 1).to_bytes(8, "little"))] ^= 1
        path.write_bytes({"cut": bytes(raw[:-9]), "flip": bytes(raw), "html": b"<html></html>"}[damage])
        with pytest.raises(ValueError, match=r"cannot be read as a whole Parquet file .*; fetch it again"):
            read_table(path, TYPES)

    def test_another_table(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="has none of the 5 wanted columns"):
            read_table(self.write(tmp_path / "t.parquet", pa.table({"x": [1]})), TYPES)
