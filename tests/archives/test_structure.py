"""What a file is by its bytes, whatever its name says."""

import gzip
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from skycairn.archives.errors import ChecksumMismatch
from skycairn.archives.structure import check_structure, html_page, kind

PAGE = b"<?xml version='1.0'?>\n<!-- x -->\n<!DOCTYPE HTML PUBLIC><html><head><TITLE>\n 403\n Forbidden </TITLE>"
NUMBERS = np.random.default_rng(1).random(5000)


def written(folder: Path, name: str) -> Path:
    """A good file of the kind that its name says."""
    path = folder / name
    if name.endswith((".fits", ".fits.fz", ".fits.gz")):
        image = fits.CompImageHDU(NUMBERS.reshape(50, 100)) if name.endswith(".fz") else fits.ImageHDU(NUMBERS)
        table = fits.BinTableHDU.from_columns([fits.Column("z", "D", array=NUMBERS)])
        fits.HDUList([fits.PrimaryHDU(), image, table]).writeto(folder / "made.fits", checksum=True)
        data = (folder / "made.fits").read_bytes()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    elif name.endswith(".csv.gz"):
        path.write_bytes(gzip.compress(b"a,b\n1,2\n" * 999) + gzip.compress(bytes(range(256)) * 40))
    elif name.endswith(".h5"):
        with h5py.File(path, "w") as file:
            file["x"] = NUMBERS
    elif name.endswith(".parquet"):
        pq.write_table(pa.table({"x": NUMBERS}), path)
    elif name.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("x", NUMBERS.tobytes())
    else:
        path.write_bytes(b"a,b\n1,2\n")
    return path


BINARY = ["a.fits", "a.fits.fz", "a.fits.gz", "a.csv.gz", "a.h5", "a.parquet", "a.zip"]


@pytest.mark.parametrize("name", [*BINARY, "a.csv", "a.sha256sum", "_MD5SUM.txt", "A.FITS"])
def test_good_files_pass_and_pages_do_not(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name.lower())
    check_structure(path, name)
    for bad, found in ((PAGE, "an HTML page: '403 Forbidden'"), (b"", "an empty file")):
        path.write_bytes(bad)
        with pytest.raises(ChecksumMismatch, match=f"{name}: is {found}"):
            check_structure(path, name)


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("kept", [0.3, 0.999])
def test_files_cut_short_do_not(tmp_path: Path, name: str, kept: float) -> None:
    path = written(tmp_path, name)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ChecksumMismatch, match="cut short"):
        check_structure(path, name)


@pytest.mark.parametrize("name", BINARY)
def test_files_of_another_kind_do_not(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"a,b\n1,2\n" * 100)
    with pytest.raises(ChecksumMismatch, match=r"is b'a,b\\n1,2\\na'; wanted a"):
        check_structure(path, name)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.fits", "a.fits.fz"])
def test_a_flipped_bit_in_the_data_is_noticed(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name)
    data = bytearray(path.read_bytes())
    data[len(data) * 9 // 10] ^= 16
    path.write_bytes(data)
    with pytest.raises(ChecksumMismatch, match="damaged"):
        check_structure(path, name)
    if name != "a.csv.gz":
        check_structure(path, name, sums=False)


def test_the_sums_are_those_that_astropy_writes(tmp_path: Path) -> None:
    for i, data in enumerate((np.full(100_000, 2**32 - 1, "u4"), np.zeros(3, "i2"), NUMBERS)):
        fits.ImageHDU(data).writeto(tmp_path / f"{i}.fits", checksum=True)
        check_structure(tmp_path / f"{i}.fits", f"{i}.fits", least_hdus=2)


def test_a_page_or_a_gzip_inside_a_gzip_is_found(tmp_path: Path) -> None:
    for inside, found in ((PAGE, "HTML page: '403 Forbidden'"), (gzip.compress(b"x"), "a gzip inside")):
        (tmp_path / "f").write_bytes(gzip.compress(inside))
        with pytest.raises(ChecksumMismatch, match=found):
            check_structure(tmp_path / "f", "a.csv.gz")


def test_a_disk_that_fails_is_no_damaged_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        check_structure(tmp_path / "none", "a.fits")


def test_what_is_a_page() -> None:
    assert html_page(PAGE) == "an HTML page: '403 Forbidden'"
    assert html_page(b"<html><title>cut of") == "an HTML page: 'cut of'"
    assert html_page(b"<head></head>") == "an HTML page"
    for other in (b"", b"<?xml version='1.0'?><VOTABLE/>", b"<htmlish>", b"a < b", b"\x1f\x8b<html>", b"<!-- x"):
        assert html_page(other) is None
    assert kind(b"PAR1xx") == "a Parquet file" and kind(b"\0" * 20) == repr(b"\0" * 9)


def test_real_survey_files_are_what_they_say(real_data: Path) -> None:
    files = [p for p in real_data.rglob("*") if p.name.endswith((".fits", ".fits.fz")) and p.stat().st_size < 5e6]
    assert files
    for path in files:
        check_structure(path, path.name)
