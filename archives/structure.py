"""Whether a file is what its name says, and whole: looked for in its bytes, before anybody reads it."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable
from gzip import BadGzipFile
from gzip import open as open_gzip
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits

from skycairn.archives.errors import ChecksumMismatch
from skycairn.catalogs.bounds import check_gzip
from skycairn.catalogs.fitsfile import check_whole, check_whole_gzip, data_bytes

MAGIC = {
    "a FITS file": b"SIMPLE  =",
    "a gzip": b"\x1f\x8b",
    "a zip": b"PK\x03\x04",
    "an HDF5 file": b"\x89HDF\r\n\x1a\n",
    "a Parquet file": b"PAR1",
}
SNIFF = 1024
"""Bytes of a file's start by which it is known."""


def html_page(start: bytes) -> str | None:
    """What a file that starts so is, where it is a page for people: `an HTML page: 'its title'`."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    text = re.sub(rb"\A(?:<\?xml[^>]*>\s*|<!--.*?-->\s*)+", b"", text, flags=re.S)
    if not re.match(rb"<(?:!doctype\s+html|html|head|title|body)\b", text, flags=re.I):
        return None
    title = re.search(rb"<title[^>]*>(.*?)(?:</title|\Z)", text, flags=re.I | re.S)
    words = " ".join(title[1].decode("utf-8", "replace").split())[:80] if title else ""
    return f"an HTML page: {words!r}" if words else "an HTML page"


def kind(start: bytes) -> str:
    """What a file that starts so is."""
    if not start:
        return "an empty file"
    if page := html_page(start):
        return page
    return next((name for name, magic in MAGIC.items() if start.startswith(magic)), f"{start[:9]!r}")


def check_structure(path: Path, name: str, *, least_hdus: int = 1, sums: bool = True) -> None:
    """ChecksumMismatch, which says what was found, unless the file is whole and what the ending of `name` says.

    FITS: every HDU is as long as its header promises, of which there are `least_hdus` (a file that is cut between two
    of them is whole in all else), and has its DATASUM where it states one and `sums` is True. gzip: read to its end,
    all members. What is of no known ending may be anything but empty or a page for people.
    """
    with path.open("rb", buffering=0) as file:
        start = file.read(SNIFF)
    wanted, check = _by_ending(name.lower(), least_hdus, sums)
    found = kind(start)
    if (wanted and found != wanted) or found.startswith(("an HTML page", "an empty file")):
        raise ChecksumMismatch(f"{name}: is {found}; wanted {wanted or 'a file with something in it'}")
    try:
        check(path)
    except ChecksumMismatch:
        raise
    except (ValueError, OSError, EOFError, zlib.error, zipfile.BadZipFile, BadGzipFile, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            # of the disk, not of the file
            raise
        raise ChecksumMismatch(f"{name}: starts as {found}, but is damaged or cut short ({error})") from error


def tells_its_end(name: str) -> bool:
    """Whether a file of this name shows by itself that nothing was cut off; a list of lines does not."""
    return bool(_by_ending(name, 1, True)[0])


def _by_ending(name: str, least_hdus: int, sums: bool) -> tuple[str, Callable[[Path], None]]:
    """What a file of this name must start as, empty where that is open, and what checks the rest of it."""
    if name.endswith((".fits.gz", ".fit.gz")):
        return "a gzip", check_whole_gzip
    if name.endswith(".gz"):
        return "a gzip", _check_text_gzip
    if name.endswith((".fits", ".fits.fz", ".fit")):
        return "a FITS file", lambda path: _check_fits(path, least_hdus, sums)
    if name.endswith((".h5", ".hdf5")):
        return "an HDF5 file", _check_hdf5
    if name.endswith((".parquet", ".parq")):
        return "a Parquet file", _check_parquet
    if name.endswith(".zip"):
        return "a zip", _check_zip
    return "", lambda path: None


def _check_fits(path: Path, least_hdus: int, sums: bool) -> None:
    headers = check_whole(path)
    if len(headers) < least_hdus:
        raise ValueError(f"it has {len(headers)} HDUs, wanted {least_hdus}")
    if sums and any("DATASUM" in h for h in headers):
        _check_datasums(path, len(headers))


def _check_datasums(path: Path, n_hdus: int) -> None:
    """DATASUM alone: CHECKSUM is of the header too, and stale in files whose headers were edited."""
    end = 0
    with path.open("rb") as file:
        for number in range(n_hdus):
            file.seek(end)
            header = fits.Header.fromfile(file)
            left = data_bytes(header)
            end = file.tell() + left
            said = str(header.get("DATASUM", "")).strip()
            if not said.isdigit():
                continue
            total = 0
            while left > 0 and (block := file.read(min(left, 1 << 22))):
                total += int(np.frombuffer(block, ">u4").sum(dtype=np.uint64))
                left -= len(block)
            while total >> 32:
                # ones' complement (FITS standard 4.0, appendix J): what is carried over comes in again below
                total = (total & 0xFFFFFFFF) + (total >> 32)
            if total != int(said):
                raise ValueError(f"the data of HDU {number} have the sum {total}, its DATASUM says {said}")


def _check_text_gzip(path: Path) -> None:
    check_gzip(path)
    with open_gzip(path) as file:
        found = kind(file.read(SNIFF))
    if found.startswith(("an HTML page", "a gzip")):
        raise ValueError(f"it is {found} inside: packed once too often, or no data")


def _check_hdf5(path: Path) -> None:
    with h5py.File(path, "r"):
        pass


def _check_parquet(path: Path) -> None:
    with pq.ParquetFile(path) as file:
        if file.metadata.num_columns < 1:
            raise ValueError("it has no columns")


def _check_zip(path: Path) -> None:
    with zipfile.ZipFile(path) as file:
        if (bad := file.testzip()) is not None:
            raise ValueError(f"its member {bad!r} has another CRC")
