"""How much a file may ask for: what a gzip unpacks to, the bytes of a table, the pixels of an image; no more is read"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MOST_RATIO = 100
"""Bytes out for a byte in, of gzip; survey tables give 2 to 10, a bomb 1,000."""
FREE_BYTES = 1 << 26
"""What any gzip may unpack to, whatever its ratio."""
MOST_TABLE_BYTES = 2 << 30
"""Of a table that is read whole, in memory. Gaia's largest take about a quarter of it."""
MOST_PIXELS = 1 << 28
"""Of an image, and of one of its tiles; a coadd of any survey here has less than a tenth of it."""
MOST_COLUMNS = 999
"""Of a FITS table (FITS standard 4.0, section 7.3.1)."""
MOST_LINE = 1 << 20
"""Bytes of a line of column names, or of a comment."""


class Unpacked(io.RawIOBase):
    """What a gzip unpacks to, as it is read; ValueError where that is more than the packed size lets expect."""

    def __init__(self, stream: Any, path: Path) -> None:
        self._stream, self._path, self._n = stream, path, 0
        self._size = path.stat().st_size

    def readable(self) -> bool:
        """It is there to be read."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes, or all of them."""
        if size < 0:
            return b"".join(iter(lambda: self.read(1 << 20), b""))
        found = self._stream.read(size)
        self._n += len(found)
        if self._n > max(FREE_BYTES, MOST_RATIO * self._size):
            raise ValueError(
                f"{self._path}: unpacks to more than {MOST_RATIO} times its {self._size:,} bytes, which no catalogue "
                "does; fetch it again, or unpack it by hand if you trust it"
            )
        return bytes(found)

    def close(self) -> None:
        """Close what lies below too."""
        self._stream.close()
        super().close()


def check_gzip(path: Path) -> None:
    """Read a gzip to its end, which shows a short member, and refuse a bomb; nothing is kept."""
    with Unpacked(gzip.open(path), path) as whole:
        while whole.read(1 << 22):
            pass


def refuse_large_table(n_rows: int, widths: Iterable[int], where: str, most: int = MOST_TABLE_BYTES) -> None:
    """ValueError where rows of these widths, in bytes, would take more memory than `most`."""
    needed = n_rows * sum(widths)
    if needed > most:
        raise ValueError(
            f"{where}: its {n_rows:,} rows would take {needed:,} bytes of memory, wanted at most "
            f"{most:,}; is it damaged? Else divide it into several files"
        )


def refuse_many_columns(headers: Iterable[Any], where: str) -> None:
    """ValueError where a header promises more columns than a FITS table can have; none is looked for."""
    for header in headers:
        n = header.get("TFIELDS", 0)
        if not isinstance(n, int) or not 0 <= n <= MOST_COLUMNS:
            raise ValueError(f"{where}: TFIELDS is {n!r}, wanted 0 to {MOST_COLUMNS}; fetch it again")


def refuse_large_image(hdu: Any, where: str) -> None:
    """ValueError where an image, or a tile that it is packed in, has more than `MOST_PIXELS`; nothing is read."""
    for shape in (hdu.shape, getattr(hdu, "tile_shape", None) or ()):
        pixels = 1
        for n in shape:
            pixels *= int(n)
        if pixels > MOST_PIXELS:
            raise ValueError(
                f"{where}: says that it is an image, or a tile of one, of {'x'.join(map(str, shape))} pixels; wanted "
                f"at most {MOST_PIXELS:,}; fetch it again"
            )
