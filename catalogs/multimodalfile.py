"""One HDF5 file of the Multimodal Universe, opened with suspicion: its columns, and rows of its images and spectra.

A file is flat: a dataset a column, a row a source. What would lead out of the file (a link to another, data kept in
another, a virtual dataset) is refused, and so is a filter that HDF5 would load a plugin for.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from skycairn.catalogs.bounds import refuse_large_table
from skycairn.catalogs.columns import Fetch
from skycairn.catalogs.survey import MissingColumn

PAYLOAD = ("image_", "spectrum_", "catalog_", "bit_mask", "object_mask", "blobmodel", "rgb", "coeff")
"""How the names begin of what is no column of the table. `catalog_` is of neighbours, and unusable (multimodal.py)."""
FILTERS = frozenset({1, 2, 3, 4, 5, 6, 32000})
"""HDF5's own (deflate, shuffle, fletcher32, szip, nbit, scaleoffset), and lzf, which h5py brings."""
TEXT_BYTES = 64
"""Taken for a text of variable length when memory is reckoned before reading."""


class Datasets(Mapping[str, h5py.Dataset]):
    """The datasets of an open file, each looked at before it is given; ValueError where it leads elsewhere."""

    def __init__(self, file: h5py.File, path: Path) -> None:
        self._file, self._path = file, path

    def __iter__(self) -> Iterator[str]:
        for name in self._file:
            if self._is_dataset(name):
                yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in self._file and self._is_dataset(str(name))

    def __getitem__(self, name: str) -> h5py.Dataset:
        if name not in self:
            raise KeyError(name)
        found = self._file[name]
        if found.external:
            where = found.external[0][0]
            raise ValueError(f"{self._path}: {name!r} keeps its data in {where!r}; only what is in the file is read")
        if found.is_virtual:
            raise ValueError(f"{self._path}: {name!r} is made of other datasets (virtual); it is not read")
        plist = found.id.get_create_plist()
        filters = {plist.get_filter(i)[0] for i in range(plist.get_nfilters())}
        if unknown := sorted(filters - FILTERS):
            raise ValueError(f"{self._path}: {name!r} is packed by filter {unknown[0]}; wanted HDF5's own, or lzf")
        return found

    def _is_dataset(self, name: str) -> bool:
        link = self._file.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            kind = type(link).__name__
            raise ValueError(f"{self._path}: {name!r} is a link to elsewhere ({kind}); it is not followed")
        return self._file.get(name, getclass=True) is h5py.Dataset


@contextmanager
def opened(path: Path) -> Iterator[Datasets]:
    """The file's datasets by name; ValueError names the file that is damaged, or that leads elsewhere."""
    try:
        with h5py.File(path, "r") as file:
            yield Datasets(file, path)
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"{path}: cannot be read as HDF5 ({error}); fetch it again") from error


def rows_of(datasets: Mapping[str, h5py.Dataset], path: Path) -> int:
    """Rows of the file. ValueError where columns have unlike many: a writer that was cut off leaves that behind."""
    lengths = {name: d.shape[0] for name, d in datasets.items() if d.shape}
    if not lengths:
        raise ValueError(f"{path}: holds no column; is it a file of the Multimodal Universe?")
    short, long = min(lengths, key=lambda n: lengths[n]), max(lengths, key=lambda n: lengths[n])
    if lengths[short] != lengths[long]:
        raise ValueError(
            f"{path}: {short!r} has {lengths[short]} rows, {long!r} {lengths[long]}; its writer was cut off, and no "
            "row can be trusted: fetch it again"
        )
    return lengths[long]


def n_rows(path: Path) -> int:
    """Rows of the file, from its headers."""
    with opened(path) as datasets:
        return rows_of(datasets, path)


def columns(path: Path, rows: tuple[int, int] | None = None) -> tuple[dict[str, Fetch], int]:
    """Columns by lower-case name, each read when it is called for, and how many rows they have.

    Of two that differ by case alone (`ra` and `RA`) the survey's own, in upper case, is taken. Text is without padding.
    `healpix` is left out: it is of the file, and DESI's HEALPIX is of the source.
    """
    with opened(path) as datasets:
        total = rows_of(datasets, path)
        start, stop = rows if rows is not None else (0, total)
        if not 0 <= start <= stop <= total:
            raise ValueError(f"{path}: rows {start}..{stop} were asked of a table of {total}")
        table = {n: d for n, d in datasets.items() if n != "healpix" and not n.lower().startswith(PAYLOAD)}
        widths = [_width(d) for d in table.values()]
    refuse_large_table(stop - start, widths, str(path))
    by_name = {name.lower(): name for name in sorted(table, key=lambda n: n.isupper())}
    return {low: partial(_column, path, name, start, stop) for low, name in by_name.items()}, stop - start


def _width(dataset: h5py.Dataset) -> int:
    size = TEXT_BYTES if dataset.dtype.kind == "O" else dataset.dtype.itemsize
    return int(size * np.prod(dataset.shape[1:], dtype=np.int64))


def _column(path: Path, name: str, start: int, stop: int) -> NDArray[Any]:
    with opened(path) as datasets:
        dataset = datasets[name]
        if dataset.dtype.kind == "O" and h5py.check_string_dtype(dataset.dtype) is None:
            raise ValueError(f"{path}: column {name!r} is {dataset.dtype}; wanted numbers or text")
        values = np.asarray(dataset[start:stop])
    return text(values) if values.dtype.kind in "SUO" else values


def text(values: NDArray[Any]) -> NDArray[np.str_]:
    """Text without blanks around it, and without the `b'...'` that a careless conversion to text leaves."""
    plain = [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values.ravel().tolist()]
    return np.array([_unwrapped(v.strip(" \0")) for v in plain], dtype=np.str_).reshape(values.shape)


def _unwrapped(value: str) -> str:
    if value[:2] in ("b'", 'b"') and value[-1:] == value[1] and len(value) > 2:
        try:
            return str(ast.literal_eval(value).decode("utf-8", "replace")).strip(" \0")
        except (ValueError, SyntaxError):
            return value
    return value


def whole_numbers(values: NDArray[Any], where: str) -> NDArray[np.int64]:
    """Identifiers as int64, exact, from whole numbers or from text of digits. ValueError where one is neither."""
    if values.dtype.kind in "iu":
        if values.dtype.kind == "u" and len(values) and values.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{where}: identifier {values.max()} is beyond 63 bits")
        return values.astype(np.int64)
    if values.dtype.kind not in "SUO":
        raise ValueError(f"{where}: identifiers are {values.dtype}, wanted whole numbers or text: never a float")
    out = np.empty(len(values), dtype=np.int64)
    for i, word in enumerate(text(values).tolist()):
        try:
            out[i] = int(word)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{where} row {i}: identifier {word!r} is no whole number of 63 bits") from error
    return out


def payload(path: Path, names: tuple[str, ...], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Rows of the first of these datasets that is there, in the order asked; MissingColumn where none is."""
    with opened(path) as datasets:
        found = next((datasets[n] for n in names if n in datasets), None)
        if found is None:
            raise MissingColumn(
                f"{path}: holds no {names[0]!r}; it holds {', '.join(sorted(datasets))}; is it of this survey?"
            )
        refuse_large_table(len(rows), [_width(found)], str(path))
        if len(rows) and not (0 <= rows.min() and rows.max() < len(found)):
            raise ValueError(f"{path}: row {rows.max()} was asked of a table of {len(found)}")
        order, place = np.unique(rows, return_inverse=True)
        if not len(order):
            return np.zeros((0, *found.shape[1:]), found.dtype)
        return np.asarray(np.asarray(found[order])[place.reshape(-1)])


def has(path: Path, name: str) -> bool:
    """Whether the file holds this dataset."""
    with opened(path) as datasets:
        return name in datasets


def type_of(path: Path, names: tuple[str, ...]) -> np.dtype[Any]:
    """Of the first of these columns that is there."""
    with opened(path) as datasets:
        for name in names:
            if name in datasets:
                return np.dtype(datasets[name].dtype)
    raise MissingColumn(f"{path}: has no column {names[0]!r}")


def find(held: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row of each wanted key among those held, the first where a repeated run left several; -1 where none is."""
    if not len(held):
        return np.full(len(wanted), -1, dtype=np.int64)
    order = np.argsort(held, kind="stable")
    at = np.minimum(np.searchsorted(held[order], wanted), len(held) - 1)
    return np.where(held[order][at] == wanted, order[at], -1)
