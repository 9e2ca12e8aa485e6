"""The user's targets: any table, identifiers to the last digit, errors with their row."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from astropy import units as u
from astropy.table import Column, MaskedColumn, Table

from skycairn.catalogs.survey import STANDARD_SCHEMA, MissingColumn, first_failed
from skycairn.catalogs.targets import Targets, text_key

BIG = (1 << 63) - 1


def write(path: Path, **columns: list) -> Path:
    """The same table as CSV, Parquet, FITS or ECSV by the path's ending; None is a null."""
    if path.suffix == ".csv":
        lines = [
            ",".join(columns),
            *(",".join("" if v is None else str(v) for v in r) for r in zip(*columns.values(), strict=True)),
        ]
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".parquet":
        pa.parquet.write_table(pa.table(columns), path)
    else:
        table = Table()
        for name, values in columns.items():
            mask = [v is None for v in values]
            filler = next((v for v in values if v is not None), 0)
            data = [filler if v is None else v for v in values]
            table[name] = MaskedColumn(data, mask=mask) if any(mask) else Column(data)
        table.write(path, format="ascii.ecsv" if path.suffix == ".ecsv" else "fits", overwrite=True)
    return path


FORMATS = ("csv", "parquet", "fits", "ecsv")


@pytest.mark.parametrize("ending", FORMATS)
def test_a_table_is_read_alike_in_every_format(tmp_path: Path, ending: str) -> None:
    path = write(
        tmp_path / f"mine.{ending}",
        Source_ID=[BIG, 3, -5],
        RA=[0.0, 359.9999, 360.0],
        Dec=[-90.0, 12.5, 90.0],
        Epoch=[2016.0, None, 2000.0],
        pmRA=[1.5, None, None],
        pmDEC=[-2.5, None, None],
        kind=["lens", "qso", "007"],
        other_id=[(1 << 62) + 1, 2, 3],
        z=[0.5, None, 1e-3],
    )
    table = Targets(files=[path.name], epoch_range=(1999.0, 2021.0)).read(path)
    assert table.schema.names == [*STANDARD_SCHEMA.names, "id", "labels"]
    assert table.column("key").to_pylist() == [BIG, 3, -5]
    assert table.column("id").to_pylist() == [str(BIG), "3", "-5"]
    assert table.column("ra").to_pylist() == [0.0, 359.9999, 0.0]
    assert table.column("dec").to_pylist() == [-90.0, 12.5, 90.0]
    for name, wanted in [("pmra", 1.5), ("pmdec", -2.5), ("epoch", 2016.0)]:
        assert table.column(name).to_pylist() == [wanted, None, None]
    assert table.column("epoch_min").to_pylist() == [2016.0, 1999.0, 2000.0]
    assert table.column("epoch_max").to_pylist() == [2016.0, 2021.0, 2000.0]
    assert table.column("epoch_kind").to_pylist() == ["user", "interval", "user"]
    assert table.column("row").to_pylist() == [0, 1, 2]
    labels = [json.loads(t) for t in table.column("labels").to_pylist()]
    assert labels[0] == {"kind": "lens", "other_id": (1 << 62) + 1, "z": 0.5}
    assert labels[1]["z"] is None and labels[2]["kind"] == "007"
    assert first_failed(Targets.valid, table).null_count == 3


@pytest.mark.parametrize("ending", FORMATS)
def test_text_identifiers_become_hashes(tmp_path: Path, ending: str) -> None:
    names = ["SDSS J0946+1006", "007", "7"]
    table = Targets().read(write(tmp_path / f"t.{ending}", id=names, ra=[1.0, 2, 3], dec=[1.0, 2, 3]))
    wanted = [int(hashlib.sha256(n.encode()).hexdigest()[:16], 16) >> 1 for n in names]
    assert table.column("key").to_pylist() == wanted and all(0 <= w < 1 << 63 for w in wanted)
    assert table.column("id").to_pylist() == names
    assert table.column("labels").null_count == 3, "no other column, no label"


def test_positions_that_are_none_are_cut_and_keep_their_row(tmp_path: Path) -> None:
    ra, dec = ["10", "nan", "", "360.1", "-1", "5", "inf"], ["10", "5", "5", "5", "5", "90.1", "5"]
    table = Targets().read(write(tmp_path / "t.csv", id=list("abcdefg"), ra=ra, dec=dec))
    assert first_failed(Targets.valid, table).to_pylist() == [None] + ["position"] * 6
    assert table.column("row").to_pylist() == list(range(7))


def test_a_slice_keeps_the_rows_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", id=[5, 6, 7], ra=[1, 2, 3], dec=[1, 2, 3])
    assert Targets().read(path, (1, 3)).equals(Targets().read(path).slice(1, 2))
    assert Targets().read(path, (1, 3)).column("row").to_pylist() == [1, 2]


def test_a_row_without_identifier_is_cut(tmp_path: Path) -> None:
    table = Targets().read(write(tmp_path / "t.csv", id=["a", None, "c"], ra=[1, 2, 3], dec=[1, 2, 3]))
    assert first_failed(Targets.valid, table).to_pylist() == [None, "key", None]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": [5, 6, 5]}, r"rows 0 and 2: id 5 is there twice"),
        ({"id": ["a", "b", "b"]}, r"rows 1 and 2: id 'b' is there twice"),
        ({"id": [1, 1 << 63, 3]}, r"row 1: id 9223372036854775808 is beyond int64"),
        ({"ra": [1, "12h30m", 3]}, r"row 1: ra is '12h30m', wanted a number"),
        ({"pmra": [None, 1, 1], "pmdec": [None, 2, None]}, r"row 2: has one of pmra and pmdec"),
        ({"pmra": [1, 1, 1], "pmdec": [1, 2, 3], "epoch": [2016, 2016, None]}, r"row 2: moves, and has no epoch"),
    ],
)
def test_faults_are_named_with_their_row(tmp_path: Path, columns: dict, message: str) -> None:
    path = write(tmp_path / "mine.csv", **{"id": [1, 2, 3], "ra": [1, 2, 3], "dec": [1, 2, 3]} | columns)
    with pytest.raises(ValueError, match=r"targets: mine.csv, " + message):
        Targets().read(path)


def test_two_texts_of_one_key_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skycairn.catalogs.targets.text_key", lambda text: text_key(text[0]))
    path = write(tmp_path / "mine.csv", id=["ab", "ba", "ac"], ra=[1, 2, 3], dec=[1, 2, 3])
    with pytest.raises(ValueError, match=r"rows 0 and 2: id 'ac' is there with the same key as 'ab'; rename one"):
        Targets().read(path)


def test_an_identifier_is_never_a_float(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.parquet", id=[1.0, 2.0], ra=[1.0, 2.0], dec=[1.0, 2.0])
    with pytest.raises(ValueError, match="the identifier is of type double, wanted integers or text"):
        Targets().read(path)
    huge = pa.table({"id": pa.array([1 << 63], pa.uint64()), "ra": [1.0], "dec": [1.0]})
    pa.parquet.write_table(huge, path)
    with pytest.raises(ValueError, match="row 0: id 9223372036854775808 is beyond int64"):
        Targets().read(path)


@pytest.mark.parametrize(("missing", "said"), [("id", "'id'"), ("ra", "'ra'"), ("dec", "'dec'")])
def test_a_missing_column_is_asked_for(tmp_path: Path, missing: str, said: str) -> None:
    columns = {n: [1, 2] for n in ("id", "ra", "dec", "z") if n != missing}
    with pytest.raises(MissingColumn, match=f"mine.csv has no column {said}.*rename one"):
        Targets().read(write(tmp_path / "mine.csv", **columns))


def test_hours_are_not_degrees(tmp_path: Path) -> None:
    table = Table({"id": [1], "ra": [1.0] * u.hourangle, "dec": [1.0] * u.deg})
    table.write(tmp_path / "t.ecsv")
    with pytest.raises(ValueError, match=r"column 'ra' is in (hourangle|h), wanted deg|is a Quantity"):
        Targets().read(tmp_path / "t.ecsv")


def test_empty_unknown_and_broken_files(tmp_path: Path) -> None:
    empty = Targets().read(write(tmp_path / "t.csv", id=[], ra=[], dec=[]))
    assert empty.num_rows == 0 and empty.schema.field("key").type == pa.int64()
    (tmp_path / "t.txt").write_text("x")
    with pytest.raises(ValueError, match=r"t.txt is of no known format; wanted one of .csv"):
        Targets().read(tmp_path / "t.txt")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(ValueError, match=r"t.parquet cannot be read"):
        Targets().read(tmp_path / "t.parquet")
    (tmp_path / "u.csv").write_text("id,ra,dec,ra\n1,2,3,4\n")
    with pytest.raises(ValueError, match="must name every column once"):
        Targets().read(tmp_path / "u.csv")


def test_the_files_are_those_that_the_user_named() -> None:
    assert [f.path for f in Targets(files=["a.csv", "b/c.fits"]).catalog_files(None, [1])] == ["a.csv", "b/c.fits"]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="set the option `files`"):
        Targets().catalog_files(None, [1])  # type: ignore[arg-type]


def test_dr8_targets_as_published_are_read_fully(real_data: Path) -> None:
    """DESI's own target table works as a user's: TARGETID to the last digit, the rest as labels."""
    from astropy.io import fits

    path = real_data / "legacysurvey/hosts-dr8/selected_bgsbright_targets_dr8.fits"
    table = Targets().read(path)
    raw = fits.getdata(path, 1)
    assert table.column("key").to_pylist() == raw["TARGETID"].tolist()
    np.testing.assert_array_equal(table.column("ra").to_numpy(), raw["RA"])
    assert json.loads(table.column("labels")[17].as_py())["BRICKNAME"] == raw["BRICKNAME"][17]


def test_zero_epochs_and_motions_of_survey_tables_are_not_known(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,ra,dec,epoch,pmra,pmdec\n1,1,1,0,0,0\n2,2,2,2015.5,3,4\n")
    table = Targets("user", files=["t.csv"]).read(tmp_path / "t.csv")
    assert table.column("pmra").to_pylist() == [None, 3.0]
    assert table.column("epoch").to_pylist() == [None, 2015.5]
    assert table.column("epoch_kind").to_pylist() == ["interval", "user"]


def test_an_epoch_out_of_range_is_refused_by_row(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,ra,dec,epoch\n1,1,1,2000\n2,2,2,1950\n")
    with pytest.raises(ValueError, match="row 1: epoch 1950"):
        Targets("user", files=["t.csv"]).read(tmp_path / "t.csv")
