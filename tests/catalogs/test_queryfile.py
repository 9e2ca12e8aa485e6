"""Query tables: read as FITS tables of the same rows are, ids exact, damage refused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skycairn.catalogs.desi import Desi
from skycairn.catalogs.fitsfile import column_units, read_columns, table_rows
from skycairn.catalogs.legacysurvey import LegacySurvey
from skycairn.catalogs.sdss import Sdss
from skycairn.catalogs.survey import MissingColumn, Survey, WrongUnit

BIG = 2**63 - 1


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = pa.table(
        {
            "id": pa.array([BIG, None, BIG - 1, 0, -5], pa.int64()),
            "flag": pa.array([True, None, False, True, None]),
            "z": pa.array([0.5, None, float("nan"), 1.0, -1.0], pa.float32()),
            "name": pa.array(["a", None, "", "d ", "ü"]),
            "flux": pa.array([[1.0, 2.0], None, [3.0, None], [5.0, 6.0], [7.0, 8.0]], pa.list_(pa.float32(), 2)),
        }
    )
    schema = rows.schema.set(2, pa.field("z", pa.float32(), metadata={"unit": "km/s"}))
    path = tmp_path / "6-1.parquet"
    pq.write_table(rows.cast(schema), path, row_group_size=2, write_page_checksum=True)
    return path


def test_columns_are_as_fits_gives_them(table):
    found, n = read_columns(table)
    assert (n, table_rows(table), column_units(table)) == (5, 5, {"z": "km/s"})
    ids = found["id"]()
    assert ids.dtype == np.int64 and ids.tolist() == [BIG, None, BIG - 1, 0, -5]
    assert found["flag"]().tolist() == [True, None, False, True, None]
    z = found["z"]()
    assert z.dtype == np.float32 and not np.ma.isMaskedArray(z) and np.isnan(z[1:3]).all() and z[3] == 1
    assert found["name"]().tolist() == ["a", "", "", "d ", "ü"]
    flux = found["flux"]()
    assert flux.shape == (5, 2) and np.isnan(flux[1]).all() and np.isnan(flux[2, 1]) and flux[4].tolist() == [7, 8]


@pytest.mark.parametrize("rows", [(0, 5), (1, 4), (3, 5), (2, 2), (5, 5)])
def test_a_slice_is_that_of_the_whole(table, rows):
    whole, part = read_columns(table)[0], read_columns(table, rows)
    assert part[1] == rows[1] - rows[0]
    for name, fetch in part[0].items():
        expected = whole[name]()[slice(*rows)]
        assert str(fetch().tolist()) == str(expected.tolist()), name


def test_rows_beyond_the_table_are_refused(table):
    with pytest.raises(ValueError, match=r"rows 3\.\.6 were asked of a table of 5"):
        read_columns(table, (3, 6))


def test_a_damaged_file_is_refused(table):
    whole = table.read_bytes()
    table.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"6-1\.parquet: cannot be read as Parquet .* fetch it again"):
        table_rows(table)
    table.write_bytes(b"<html>come back later</html>")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        read_columns(table)
    # a flipped bit in the pages, which only the checksum of the page tells
    at = whole.index(np.float32(1.0).tobytes(), 4) if np.float32(1.0).tobytes() in whole else 40
    table.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        [fetch() for fetch in read_columns(table)[0].values()]


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "6-2.parquet"
    pq.write_table(pa.table({"RA": [1.0], "ra": [2.0]}), path)
    with pytest.raises(ValueError, match="one name, but for case"):
        read_columns(path)


@pytest.mark.parametrize(
    ("survey", "columns", "lacking"),
    [
        (LegacySurvey("dr10"), {"release": [10002], "brickid": [1], "objid": [2], "ra": [1.0], "dec": [2.0]}, "type"),
        (
            Desi("dr1"),
            {
                **{"targetid": [1], "survey": ["main"], "program": ["dark"], "target_ra": [1.0], "target_dec": [2.0]},
                **{"pmra": [0.0], "pmdec": [0.0], "ref_epoch": [0.0], "z": [1.0], "zwarn": [0], "deltachi2": [30.0]},
                **{"coadd_fiberstatus": [0], "objtype": ["TGT"]},
            },
            "main_primary",
        ),
        (
            Sdss("dr17"),
            {
                **{"run2d": ["26"], "plate": [266], "mjd": [51602], "fiberid": [1], "plug_ra": [1.0]},
                **{"plug_dec": [2.0], "z": [0.1], "zwarning": [0]},
            },
            "platequality",
        ),
    ],
    ids=lambda v: v.name if isinstance(v, Survey) else "",
)
def test_a_column_that_the_service_lacks_is_null_unless_a_cut_needs_it(tmp_path, survey, columns, lacking):
    path = tmp_path / "6-3.parquet"
    pq.write_table(pa.table(columns), path)
    read = survey.read(path)
    assert survey.n_rows(path) == 1
    assert read.column(lacking).null_count == 1 and read.column("key").null_count == 0
    assert (read.column("ra")[0].as_py(), read.column("dec")[0].as_py()) == (1.0, 2.0)
    with pytest.raises(MissingColumn, match=f"{lacking.upper()}.*the service that was asked has no such column"):
        survey.read(path, needed=[lacking])


def test_a_column_in_another_unit_is_refused(tmp_path):
    path = tmp_path / "6-4.parquet"
    values = pa.table({"release": [1], "brickid": [1], "objid": [2], "ra": [1.0], "dec": [2.0]})
    hours = values.schema.set(3, pa.field("ra", pa.float64(), metadata={"unit": "hourangle"}))
    pq.write_table(values.cast(hours), path)
    with pytest.raises(WrongUnit, match="'RA' is in 'hourangle', wanted 'deg'"):
        LegacySurvey("dr10").read(path)
