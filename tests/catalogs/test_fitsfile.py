"""A file cut short, or of another kind, is refused in one line that names it."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from skycairn.catalogs.fitsfile import check_whole, first_image, opened, read_columns, table_rows


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.fits"
    columns = [
        fits.Column("A", "J", array=np.arange(1000)),
        fits.Column("B", "5A", array=[f"n{i}" for i in range(1000)]),
        fits.Column("C", "L", array=np.arange(1000) % 3 == 0),
        fits.Column("D", "J", bzero=1 << 31, array=np.arange(1000, dtype=np.uint32) + (1 << 31)),
    ]
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns)]).writeto(path)
    return path


@pytest.mark.parametrize("rows", [None, (0, 1000), (0, 0), (17, 23), (999, 1000)])
def test_a_slice_holds_its_rows(table: Path, rows: tuple[int, int] | None) -> None:
    columns, n = read_columns(table, rows)
    start, stop = rows or (0, 1000)
    assert n == stop - start and table_rows(table) == 1000
    assert columns["A"]().tolist() == list(range(start, stop))
    assert columns["B"]().tolist() == [f"n{i}".encode() for i in range(start, stop)]
    assert columns["C"]().tolist() == [i % 3 == 0 for i in range(start, stop)]
    assert columns["D"]().tolist() == [i + (1 << 31) for i in range(start, stop)]


def test_rows_beyond_the_table_are_refused(table: Path) -> None:
    with pytest.raises(ValueError, match=r"table.fits: rows 990..1001 were asked of a table of 1000"):
        read_columns(table, (990, 1001))


@pytest.mark.parametrize("left", [0, 1, 100, 2879, 2880, 3000, 5760, 8640, -1, -2880])
def test_a_file_cut_short_anywhere_is_refused(table: Path, left: int) -> None:
    whole = table.read_bytes()
    table.write_bytes(whole[:left])
    for read in (read_columns, table_rows):
        with pytest.raises(ValueError, match=r"table\.fits: .*(fetch it again|holds no binary table)") as caught:
            read(table)
        assert "\n" not in str(caught.value)


def test_bytes_after_the_end_are_refused(table: Path) -> None:
    table.write_bytes(table.read_bytes() + b"\0" * 2880)
    with pytest.raises(ValueError, match="holds no FITS header at byte"):
        check_whole(table)


def test_a_web_page_is_not_fits(tmp_path: Path) -> None:
    path = tmp_path / "sweep.fits"
    path.write_text("<html><body>404 Not Found</body></html>")
    with pytest.raises(ValueError, match=r"sweep.fits: is not a FITS file \(found b'<html><bo'\); fetch it again"):
        read_columns(path)


@pytest.mark.parametrize("left", [-1, -20, 400, 12])
def test_a_zipped_file_cut_short_is_refused(table: Path, left: int) -> None:
    packed = gzip.compress(table.read_bytes())
    path = table.with_name("table.fits.gz")
    path.write_bytes(packed)
    assert read_columns(path)[1] == 1000
    path.write_bytes(packed[:left])
    with pytest.raises(ValueError, match=r"table.fits.gz: cannot be read as FITS"):
        read_columns(path)


def test_an_image_is_not_a_table_nor_a_cube_an_image(tmp_path: Path) -> None:
    path = tmp_path / "cube.fits"
    fits.writeto(path, np.zeros((3, 8, 8), np.float32))
    with pytest.raises(ValueError, match=r"cube.fits: holds no binary table"):
        read_columns(path)
    with opened(path) as hdus, pytest.raises(ValueError, match=r"no two-dimensional image \(found PrimaryHDU of shape"):
        first_image(path, hdus)
