"""The Multimodal Universe (MMU), version 1: HDF5 files of five surveys, read as releases of these surveys.

About this release
------------------
Source: The Multimodal Universe Collaboration 2024 (arXiv:2412.02527), github.com/MultimodalUniverse, files at
users.flatironinstitute.org/~polymathic/data/MultimodalUniverse/v1. Its code is under the MIT licence; the data keep the
licences of the surveys they were taken from, and whoever publishes with them is asked to acknowledge MMU and each of
these surveys (see legacysurvey.py, hsc.py, desi.py, sdss.py, gaia.py).

A root is the folder of one survey, as `.../v1/sdss`: `<set>/healpix=<n>/001-of-001.hdf5`, n of nside 16, NESTED, of the
source's own position. There are no checksums, and nothing in a file says what it was made of.

MMU holds the sources that its cuts chose, and no others. So a thing that is not in it may well have been detected;
rivals and chance matches are counted on the chosen sources alone; and the profile `aion` finds little left to cut.

What is mended as files are read
* Identifiers are text wrapped in `b'...'`, or padded with blanks.
* Masks of images are True where a pixel is good, those of spectra where it is bad. Here True is bad, always.
* An inverse variance that is infinite, or the largest float, is of a pixel without variance: it is masked, its ivar 0.
* Cut-outs are off: a position counted from 1 was given to a function that counts from 0, and that function rounds up.
  So a source whose 0-based pixel coordinate in its coadd is x stands at 79 - (ceil(x) - x) of 160 on that axis, in
  (78, 79], where this project promises the pixel of index 80. Legacy Survey: the coadd's grid follows from BRICKID, so
  x is known and images are moved by one pixel or two, whichever brings the source into pixel 80; `dx`, `dy` are told.
  HSC: the patch's grid is not known, so all are moved by one pixel: the source lies in (79, 80], and `dx`, `dy` are
  null. The first rows and columns are masked; nothing is resampled.
* HSC's pixels are counts of AB zero point 27; they become nanomaggies (divided by 63.0957, ivar times its square).
* SDSS's spectra are padded to the longest of a file: with wavelength -1 (or 0), flux repeated. No padding is a pixel.
* SDSS: spectra of a plate that was observed in several nights were all read from one night's file, so some are another
  fibre's, and nothing tells which. Those of a plate with several MJD in one file are `not measured`.
* DESI's ZWARN, where it is a boolean, is True where the redshift is good, SDSS's ZWARNING where it is not.
* The width of DESI's line spread is one number, fitted to the mean of a whole file: it is not taken (null).
* Positions kept as float32 (Gaia's, by some tools) are off by up to 0.06 arcsec: errors grow by the numbers' step.
* Catalogues of neighbours (`catalog_*`) hold the faintest of the chosen sources: they are not read.

What cannot be mended: objects that were skipped without a note; XP coefficients that were joined to Gaia's sources by
their place in files, not by their identifier.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import healpy
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skycairn.catalogs import multimodalfile as hdf5
from skycairn.catalogs.columns import Fetch
from skycairn.catalogs.gaia import touched_pixels
from skycairn.catalogs.survey import WORK_ORDER, Archive, PayloadGroup, RemoteFile, Survey, unknown_option

ROOT = "https://users.flatironinstitute.org/~polymathic/data/MultimodalUniverse/v1"
FOLDER_ORDER = 4
"""Of the HEALPix numbers of folders (nside 16)."""
TOUCHED_ORDER = 8
MOST_OUTSIDE = 0.5
"""Share of a file's rows that may lie outside of its pixel: rounded positions do so at its edge."""


def pixel_of(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.int64]:
    """Folder number of each position; -1 where it is none."""
    out = np.full(len(ra), -1, dtype=np.int64)
    on_sky = np.isfinite(ra) & (np.abs(dec) <= 90)
    out[on_sky] = healpy.ang2pix(1 << FOLDER_ORDER, ra[on_sky], dec[on_sky], nest=True, lonlat=True)
    return out


class Imported(Survey):
    """What the surveys of MMU have in common; comes before the survey's own class among the bases."""

    original: ClassVar[str]
    "the release that MMU took it from"
    folder: ClassVar[str]
    "of the survey, below `v1`"
    sets: ClassVar[tuple[str, ...]]
    "folders below the root"
    position: ClassVar[tuple[str, str]] = ("ra", "dec")
    "the survey's own names of the columns that MMU calls ra and dec"
    settings: ClassVar[tuple[str, ...]]
    "options of the survey that have a meaning here"
    rounded: ClassVar[bool] = False
    "whether positions may have been rounded out of their pixel"
    given: ClassVar[Mapping[str, Any]] = {}
    "what MMU's cuts ensure of every row: columns that files may lack"

    def __init__(self, release: str, **options: Any) -> None:
        if release not in type(self).releases:
            raise ValueError(f"{self.name}: there is no release {release!r} here; choose {type(self).releases[0]!r}")
        if unknown := sorted(set(options) - set(self.settings)):
            raise ValueError(f"{self.name} {release}: {unknown_option(unknown[0], self.settings)}")
        # made as the release that it was taken from, then called by its own name
        self.releases = (self.original,)  # type: ignore[misc]
        super().__init__(self.original, **options)
        self.releases = type(self).releases  # type: ignore[misc]
        self.release = release

    @property
    def url(self) -> str:
        """Folder of the survey at MMU's host."""
        return f"{ROOT}/{self.folder}"

    def reference_files(self) -> Mapping[str, RemoteFile]:
        """None."""
        return {}

    def files_of(self, pixels: Iterable[int]) -> list[str]:
        """Paths of the files of these pixels, in all sets."""
        return [f"{s}/healpix={p}/001-of-001.hdf5" for s in self.sets for p in pixels]

    def catalog_files(self, archive: Archive, cells: Iterable[int]) -> list[RemoteFile]:
        """The files, of those that are there, of the pixels that hold these cells.

        Where positions may have been rounded, of those that touch the cells too.
        """
        held = np.unique(np.fromiter(cells, dtype=np.int64)) >> 2 * (WORK_ORDER - FOLDER_ORDER)
        if self.rounded:
            held = touched_pixels(cells) >> 2 * (TOUCHED_ORDER - FOLDER_ORDER)
        return [RemoteFile(p) for p in self.files_of(np.unique(held).tolist()) if archive.exists(p)]

    def n_rows(self, path: Path) -> int:
        """Rows of the file."""
        return hdf5.n_rows(path)

    def read(
        self,
        path: Path,
        rows: tuple[int, int] | None = None,
        companions: Mapping[str, Path | None] | None = None,
        needed: Iterable[str] = (),
    ) -> pa.Table:
        """Read a file's table; see `Survey.read`."""
        table = self.own_table(path, rows, needed)
        ra, dec = (table.column(c).combine_chunks().fill_null(np.nan).to_numpy() for c in ("ra", "dec"))
        self._check_pixel(path, ra, dec)
        return self._with_rounding(table, path, ra, dec)

    def own_table(self, path: Path, rows: tuple[int, int] | None, needed: Iterable[str]) -> pa.Table:
        """The table, as the survey's own reader makes it of the columns that `_stored` gives."""
        return super().read(path, rows, None, needed)  # type: ignore[safe-super]

    def _stored(self, path: Path, rows: tuple[int, int] | None) -> tuple[Mapping[str, Fetch], int, Mapping[str, str]]:
        """Columns by lower-case name as the survey's own reader wants them, how many rows; MMU writes no units."""
        found, n = hdf5.columns(path, rows)
        for own, other in zip(self.position, ("ra", "dec"), strict=True):
            if own not in found and other in found:
                found[own] = found[other]
        for name, value in self.given.items():
            if name not in found:
                found[name] = _filled(value, n)
        self.mend(found, n, f"{self.name} {self.release}: {path}")
        return found, n, {}

    def mend(self, found: dict[str, Fetch], n: int, where: str) -> None:
        """Put the survey's own columns right."""

    def _check_pixel(self, path: Path, ra: NDArray[np.float64], dec: NDArray[np.float64]) -> None:
        named = path.parent.name.removeprefix("healpix=")
        if named.isdigit() and len(ra):
            outside = (pixel_of(ra, dec) != int(named)).mean()
            if outside > MOST_OUTSIDE:
                raise ValueError(
                    f"{self.name} {self.release}: {path}: {outside:.0%} of its rows lie outside of pixel {named} of "
                    f"nside {1 << FOLDER_ORDER}, NESTED; is it of an older layout, whose pixels were others?"
                )

    def _with_rounding(
        self, table: pa.Table, path: Path, ra: NDArray[np.float64], dec: NDArray[np.float64]
    ) -> pa.Table:
        """Errors of positions kept as float32 grow by the numbers' step; what rounding does is half of that at most."""
        cosine = np.cos(np.radians(dec))
        for name, values, scale, own, other in (
            ("ra_error", ra, cosine, self.position[0], "ra"),
            ("dec_error", dec, np.ones(len(dec)), self.position[1], "dec"),
        ):
            if hdf5.type_of(path, (own.upper(), own, other)).itemsize > 4:
                continue
            place = np.where(np.isfinite(values), values, 0).astype(np.float32)
            step = np.abs(np.spacing(place)).astype(np.float64) * scale * 3600
            error = table.column(name).combine_chunks().cast(pa.float64()).fill_null(0.0).to_numpy()
            wide = pa.array(np.hypot(error, step).astype(np.float32), mask=~np.isfinite(step))
            table = table.set_column(table.column_names.index(name), table.schema.field(name), wide)
        return table

    # -- images and spectra

    def keys_of(self, found: Mapping[str, Fetch]) -> NDArray[np.int64]:
        """Key of each row; -1 where it has none."""
        raise NotImplementedError

    def payload_groups(self, sources: pa.Table, modality: str, reference: Mapping[str, Path]) -> list[PayloadGroup]:
        """The files of each pixel; a position that is no source of MMU's is outside: it has no pixels of it."""
        if not self.modality(modality).payload:
            return super().payload_groups(sources, modality, reference)
        own = next(c.name for c in self.columns if c.required)
        pixel = pixel_of(*(np.asarray(sources.column(c), dtype=np.float64) for c in ("ra", "dec")))
        pixel[np.asarray(pc.is_null(sources.column(own)))] = -1
        return [
            PayloadGroup(np.flatnonzero(pixel == p), {path: RemoteFile(path) for path in self.files_of([p])})
            for p in np.unique(pixel[pixel >= 0]).tolist()
        ]

    def rows_in(self, files: Mapping[str, Path], keys: NDArray[np.int64]) -> list[tuple[Path, NDArray[np.int64]]]:
        """Files, and the row of each source in it; -1 where it is not there, or was found in a file before."""
        out = []
        left = np.ones(len(keys), dtype=bool)
        for _, path in sorted(files.items()):
            found, _, _ = self._stored(path, None)
            row = hdf5.find(self.keys_of(found), keys)
            row = np.where(left, row, -1)
            left &= row < 0
            out.append((path, row))
        return out


def _filled(value: Any, n: int) -> Fetch:
    return lambda: np.full(n, value)
