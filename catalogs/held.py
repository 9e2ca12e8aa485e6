"""Survey rows and images that are held in memory and not in files: read and cut by the surveys' own rules.

`read` gives what a survey's reader would of a catalogue file with these columns; `Image` stands for an image HDU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from astropy.io import fits
from numpy.typing import NDArray

from skycairn.catalogs.columns import Fetch
from skycairn.catalogs.desi import Desi
from skycairn.catalogs.gaia import SOURCE_COLUMNS, XP_COLUMNS, Gaia
from skycairn.catalogs.hsc import Hsc
from skycairn.catalogs.legacysurvey import LegacySurvey
from skycairn.catalogs.sdss import Sdss
from skycairn.catalogs.survey import Survey

Columns = Mapping[str, NDArray[Any]]
"""By the archive's own names, typed as its files are."""
NOWHERE = Path("held in memory")
"""What errors name instead of a file."""
HELD = "held"
"""Among Gaia's columns: whether the source has a row in a file of XP spectra that is there."""


@dataclass(frozen=True)
class Image:
    """An image and its header, of which `cutout.cut` takes sections."""

    section: NDArray[Any]
    header: fits.Header

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""
        return self.section.shape


def read(survey: Survey, columns: Columns) -> pa.Table:
    """`Survey.read` of a file of these columns. ValueError for a survey that has no such reader."""
    for made in (_Legacy, _Hsc, _Sdss, _Desi, _Gaia):
        if survey.name == made.name:
            return made(survey.release, columns, **survey.options).read(NOWHERE)
    raise ValueError(f"{survey.name}: its rows are read from files alone")


class _Held:
    """Columns in the place of a file's."""

    columns_held: Columns

    def _stored(self, path: Path, rows: tuple[int, int] | None) -> tuple[Mapping[str, Fetch], int, Mapping[str, str]]:
        return _fetches(self.columns_held), _n(self.columns_held), {}


class _Legacy(_Held, LegacySurvey):
    def __init__(self, release: str, columns: Columns, **options: Any) -> None:
        super().__init__(release, **options)
        self.columns_held = columns


class _Hsc(_Held, Hsc):
    def __init__(self, release: str, columns: Columns, **options: Any) -> None:
        super().__init__(release, **options)
        self.columns_held = columns


class _Sdss(_Held, Sdss):
    def __init__(self, release: str, columns: Columns, **options: Any) -> None:
        super().__init__(release, **options)
        self.columns_held = columns


class _Desi(Desi):
    def __init__(self, release: str, columns: Columns, **options: Any) -> None:
        super().__init__(release, **options)
        self.columns_held = columns

    def read(self, path: Path, *_: Any, **__: Any) -> pa.Table:
        by_name = {name.lower(): fetch for name, fetch in _fetches(self.columns_held).items()}
        return self._table(by_name, {}, (0, _n(self.columns_held)), None, (), str(path), "it is not held")


class _Gaia(Gaia):
    """Columns of GaiaSource and of the XP spectra, NaN where they are null, and `HELD`."""

    def __init__(self, release: str, columns: Columns, **options: Any) -> None:
        super().__init__(release, **options)
        self.columns_held = columns

    def _source_table(self, path: Path) -> pa.Table:
        held = {n: f for n, f in SOURCE_COLUMNS.items() if n in self.columns_held}
        arrays = [pa.array(self.columns_held[n], from_pandas=True).cast(f.type) for n, f in held.items()]
        return pa.Table.from_arrays(arrays, schema=pa.schema(list(held.values())))

    def _spectra(self, path: Path, xp: Path | None, source_id: pa.Array) -> dict[str, pa.Array]:
        out: dict[str, pa.Array] = {"held": pa.array(self.columns_held[HELD])}
        for column in XP_COLUMNS:
            values = self.columns_held[column.name]
            if values.ndim == 2:
                gone = pa.array(np.isnan(values).any(axis=1))
                flat = pa.array(np.nan_to_num(values).astype(np.float32).ravel())
                out[column.name] = pa.FixedSizeListArray.from_arrays(flat, type=column.type, mask=gone)
            else:
                out[column.name] = pa.array(values, from_pandas=True).cast(column.type)
        return out


def _fetches(columns: Columns) -> dict[str, Fetch]:
    return {name: partial(np.asarray, values) for name, values in columns.items()}


def _n(columns: Columns) -> int:
    return len(next(iter(columns.values())))
