"""FITS tables and images, opened with suspicion: a file that is cut short is refused, never read as far as it goes."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from skycairn.catalogs.bounds import check_gzip, refuse_large_image, refuse_many_columns
from skycairn.catalogs.queryfile import is_query, query_columns, query_rows, query_units

BLOCK = 2880
"""Every part of a FITS file is a whole number of these bytes (FITS standard 4.0, section 3.1)."""


def check_whole(path: Path) -> list[fits.Header]:
    """Headers of all HDUs of an uncompressed FITS file; ValueError where its size is not what they promise."""
    size = path.stat().st_size
    headers: list[fits.Header] = []
    end = 0
    with path.open("rb") as file:
        while end < size:
            file.seek(end)
            word = file.read(9)
            if word not in (b"SIMPLE  =", b"XTENSION="):
                what = "is not a FITS file" if not headers else f"holds no FITS header at byte {end:,} of {size:,}"
                raise ValueError(f"{path}: {what} (found {word!r}); fetch it again")
            file.seek(end)
            try:
                header = fits.Header.fromfile(file)
            except (OSError, EOFError, ValueError, fits.VerifyError) as error:
                raise ValueError(f"{path}: cut short inside header {len(headers)}; fetch it again ({error})") from error
            try:
                end = file.tell() + data_bytes(header)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}: header {len(headers)} does not tell its size ({error}); fetch it again"
                ) from error
            headers.append(header)
    refuse_many_columns(headers, str(path))
    if end != size or not headers:
        raise ValueError(f"{path}: is {size:,} bytes long where its headers promise {end:,}; fetch it again")
    return headers


def check_whole_gzip(path: Path) -> None:
    """ValueError where a gzip is no FITS file, cut short, or unpacks to far more than a table does."""
    check_gzip(path)
    with gzip.open(path) as file:
        if (word := file.read(9)) != b"SIMPLE  =":
            raise ValueError(f"{path}: is not a FITS file (found {word!r}); fetch it again")


def data_bytes(header: fits.Header) -> int:
    """Size of an HDU's data with its padding, from its header."""
    axes = [int(header[f"NAXIS{i}"]) for i in range(1, int(header["NAXIS"]) + 1)]
    if not axes:
        return 0
    groups, heap = int(header.get("GCOUNT", 1)), int(header.get("PCOUNT", 0))
    if min(*axes, groups, heap) < 0:
        raise ValueError(f"NAXISn {axes}, GCOUNT {groups}, PCOUNT {heap}: wanted 0 or more")
    size = abs(int(header["BITPIX"])) // 8 * groups * (heap + math.prod(axes))  # Python's integers do not overflow
    return -(-size // BLOCK) * BLOCK


@contextmanager
def opened(path: Path) -> Iterator[fits.HDUList]:
    """The file, found whole; what goes wrong in it is a ValueError that names it."""
    try:
        if path.suffix == ".gz":
            check_whole_gzip(path)
        else:
            check_whole(path)
        try:
            hdus = fits.open(path, memmap=True)
        except OSError as error:
            raise ValueError(f"{path}: is no FITS file ({error}); fetch it again") from error
        with hdus:
            refuse_many_columns((hdu.header for hdu in hdus), str(path))
            yield hdus
    except (EOFError, zlib.error, fits.VerifyError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: cannot be read as FITS ({error}); fetch it again") from error


def table_rows(path: Path, holding: str = "") -> int:
    """Rows of the table that `read_columns` reads, from its header alone."""
    if is_query(path):
        return query_rows(path)
    headers = check_whole(path)
    tables = [h for h in headers if h.get("XTENSION", "").strip() == "BINTABLE" and not h.get("ZIMAGE", False)]
    names = [{str(v).strip().lower() for v in h["TTYPE*"].values()} for h in tables]
    return int(_the_table(path, tables, names, holding)["NAXIS2"])


def read_columns(
    path: Path, rows: tuple[int, int] | None = None, holding: str = ""
) -> tuple[dict[str, Callable[[], NDArray[Any]]], int]:
    """A table's columns by name, each read when it is called for, and the number of rows.

    It is the first table with a column `holding` (in any case), else the first: what lies before it is not in the way.
    Of the half-open range `rows` alone where it is given. Values are as stored: big-endian, strings padded; masked
    where they are the column's TNULL. Of a query table (queryfile.py) they are native.
    """
    if is_query(path):
        return query_columns(path, rows)[:2]
    with opened(path) as hdus:
        table = _table_of(path, hdus, holding)
        n_rows = int(table.header["NAXIS2"])
        start, stop = rows if rows is not None else (0, n_rows)
        if not 0 <= start <= stop <= n_rows:
            raise ValueError(f"{path}: rows {start}..{stop} were asked of a table of {n_rows}")
        data = table.data
        raw = data.view(np.ndarray)[start:stop]  # slicing the record array itself would copy every column
        columns: dict[str, Callable[[], NDArray[Any]]] = {}
        for column in table.columns:
            fetch: Callable[[], NDArray[Any]]
            if column.bscale not in (None, "", 1) or column.bzero not in (None, "", 0):
                fetch = partial(_scaled, data, column.name, start, stop)
            else:
                fetch = partial(_stored, raw, column.name, column.format.endswith("L"))
            if (null := column.null) not in (None, ""):
                fetch = partial(without_null, fetch, raw, column.name, null)
            columns[column.name] = fetch
    return columns, stop - start


def column_units(path: Path, holding: str = "") -> dict[str, str]:
    """Units of the columns of the table that `read_columns` reads, of those that have one, as the file spells them."""
    if is_query(path):
        return query_units(path)
    with opened(path) as hdus:
        return {c.name: c.unit for c in _table_of(path, hdus, holding).columns if c.unit}


def _table_of(path: Path, hdus: fits.HDUList, holding: str) -> Any:
    tables = [h for h in hdus if isinstance(h, fits.BinTableHDU) and not isinstance(h, fits.CompImageHDU)]
    return _the_table(path, tables, [{n.lower() for n in h.columns.names} for h in tables], holding)


def _the_table(path: Path, tables: list[Any], names: list[set[str]], holding: str) -> Any:
    if not tables:
        raise ValueError(f"{path}: holds no binary table; is it a catalogue file?")
    return next((t for t, n in zip(tables, names, strict=True) if holding.lower() in n), tables[0])


def without_null(fetch: Callable[[], NDArray[Any]], raw: NDArray[Any], name: str, null: int) -> NDArray[Any]:
    """The values, masked where what is stored is the column's TNULL; as they are where it never is."""
    values, hidden = fetch(), raw[name] == null
    return np.ma.MaskedArray(values, mask=hidden) if hidden.any() else values


def _scaled(data: fits.FITS_rec, name: str, start: int, stop: int) -> NDArray[Any]:
    return np.asarray(data[name])[start:stop]


def _stored(raw: NDArray[Any], name: str, logical: bool) -> NDArray[Any]:
    return raw[name] == ord("T") if logical else raw[name]


def first_image(path: Path, hdus: fits.HDUList) -> Any:
    """The first HDU that holds a two-dimensional image, compressed or not."""
    for hdu in hdus:
        if getattr(hdu, "is_image", False) and len(hdu.shape) == 2:
            refuse_large_image(hdu, str(path))
            return hdu
    found = ", ".join(f"{type(h).__name__} of shape {getattr(h, 'shape', ())}" for h in hdus)
    raise ValueError(f"{path}: holds no two-dimensional image (found {found}); is it a coadd of one band?")
