"""FITS files and checksum lists whose bytes depend on their content alone: no dates, no random dither, no gzip time."""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

_FORMATS = {"i2": "I", "i4": "J", "i8": "K", "u1": "B", "f4": "E", "f8": "D", "bool": "L"}


class TableColumn(NamedTuple):
    """A column of a binary table as a data model names it."""

    name: str
    type: str
    "i2, i4, i8, u1, f4, f8, bool, f4[5], char[8]"
    unit: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row's value; () for a number or a text."""
        if "[" not in self.type or self.type.startswith("char"):
            return ()
        return (int(self.type[self.type.index("[") + 1 : -1]),)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of one element."""
        if self.type.startswith("char"):
            return np.dtype(f"S{self.type[5:-1]}")
        return np.dtype(self.type.split("[")[0])


def write_table(
    path: Path,
    columns: Sequence[TableColumn],
    values: Mapping[str, NDArray[Any]],
    n: int,
    cards: Mapping[str, Any] = {},
) -> None:
    """Write a binary table into HDU 1 (`table_hdu`). A path that ends in .gz is compressed."""
    save(path, [fits.PrimaryHDU(), table_hdu(columns, values, n, cards)])


def table_hdu(
    columns: Sequence[TableColumn], values: Mapping[str, NDArray[Any]], n: int, cards: Mapping[str, Any] = {}
) -> fits.BinTableHDU:
    """A binary table, all columns in order; those without values are zeros or blanks.

    Text is padded with blanks, as the archives do.
    """
    out = []
    for column in columns:
        array = np.zeros((n, *column.shape), dtype=column.dtype)
        if column.name in values:
            array[...] = values[column.name]
        if column.dtype.kind == "S":
            array = np.char.ljust(array, column.dtype.itemsize)
            form = f"{column.dtype.itemsize}A"
        else:
            form = (str(column.shape[0]) if column.shape else "") + _FORMATS[column.type.split("[")[0]]
        out.append(fits.Column(name=column.name, format=form, unit=column.unit or None, array=array))
    table = fits.BinTableHDU.from_columns(out)
    table.header.update(cards)
    return table


def compressed(
    array: NDArray[Any], header: fits.Header, step: float | None = None, dither_seed: int | None = None
) -> fits.CompImageHDU:
    """An image as fpack makes it: RICE in tiles of 100 x 100.

    Floats are kept in steps of this size, with subtractive dither (which keeps zeros) where there is a seed for it. The
    step is given and not left to the noise of each tile: a tile without noise would be gzipped instead, with the time.
    """
    if step is None:
        return fits.CompImageHDU(array, header, compression_type="RICE_1", tile_shape=(100, 100))
    return fits.CompImageHDU(
        array,
        header,
        compression_type="RICE_1",
        tile_shape=(100, 100),
        quantize_level=-step,
        quantize_method=-1 if dither_seed is None else 2,
        dither_seed=0 if dither_seed is None else dither_seed,
    )


def save(path: Path, hdus: Iterable[Any]) -> None:
    """Write the HDUs, making the folder; .gz without a name or a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(buffer)
    content = buffer.getvalue()
    if path.suffix == ".gz":
        packed = io.BytesIO()
        with gzip.GzipFile(filename="", fileobj=packed, mode="wb", mtime=0, compresslevel=6) as stream:
            stream.write(content)
        content = packed.getvalue()
    path.write_bytes(content)


def write_checksums(path: Path, files: Iterable[Path]) -> None:
    """Write the list `<sha256>  <name>` of files of the list's own folder, by name."""
    lines = [f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in sorted(files)]
    path.write_text("".join(lines))
