"""A survey's catalogue out of a public HATS catalogue: one Parquet table a work cell, under the archive's own names.

HATS (IVOA note, 2025) keeps a catalogue as Parquet files of HEALPix pixels of several orders, NESTED as the work cells
are. Which rows are of a cell is decided by their own positions, whatever pixel their file is named for. What stands in
the table is what stands in the catalogue: no cut, no unit changed. A row without a position lies in no cell.

Addresses: https://data.lsdb.io/hats/gaia_dr3/gaia/ for Gaia DR3; s3://stpubdata/gaia/gaia_dr3/public/hats is the same
on Amazon; any folder of a catalogue or of a collection on this machine. Which columns the public catalogues of DESI and
SDSS have is not verified: what is asked for and not there is an error that lists what is.

Needs the extra `hats`: pip install skycairn[hats].
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import healpy
import httpx
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skycairn.archives.celltable import cell_files, cell_of, inside, write_sorted
from skycairn.archives.errors import Busy, ChecksumMismatch, FetchError, NotPublished, Refused
from skycairn.archives.service import Have
from skycairn.catalogs.bounds import refuse_large_table
from skycairn.catalogs.desi import UNITS as DESI_UNITS
from skycairn.catalogs.desi import Desi
from skycairn.catalogs.gaia import SOURCE_COLUMNS
from skycairn.catalogs.sdss import Sdss
from skycairn.catalogs.sdsscolumns import DERIVED
from skycairn.catalogs.skybox import cell_boxes, touching
from skycairn.catalogs.survey import WORK_ORDER, Column, MissingColumn, RemoteFile, WrongUnit
from skycairn.catalogs.units import refuse_wrong_units, units_of

IDENTITY = (
    "obs_collection",
    "dataproduct_type",
    "hats_nrows",
    "hats_builder",
    "hats_creation_date",
    "hats_release_date",
    "obs_release_date",
)
"""Properties of a catalogue that tell it from another, or from a later one at the same address."""
BORDER_ORDER = 10
"""Where the catalogue was cut into files by other positions than the rows' own, files within a pixel of this order
(3.4 arcmin) of a cell are searched too: far more than anything moves between two epochs."""
NUMBER = "number of the row"
MOST_BYTES = 8 << 30
"""Of the rows of one file that may have to be looked through, unpacked."""


@dataclass
class HatsSource:
    """The service that answers for one survey from one HATS catalogue."""

    catalog: str
    "name of the catalogue in paths: `query/hats/<catalog>/6-<cell>.parquet`"
    address: str
    "of the catalogue or the collection that holds it: https://, s3://, or a folder"
    needed: Sequence[str]
    "columns that must be there, by the names that the reader knows"
    optional: Sequence[str] = ()
    "columns that are taken where they are there"
    key: Sequence[str] = ()
    "columns that rows are sorted by, the first one foremost; whole numbers or text"
    position: tuple[str, str] = ("ra", "dec")
    "columns of right ascension and declination in degrees, ICRS"
    names: Mapping[str, str] = field(default_factory=dict)
    "what the catalogue calls a column where it is not what the reader calls it; others are found in any case"
    units: Mapping[str, str] = field(default_factory=dict)
    "by the reader's names: written beside the columns, and held against what the catalogue says itself"
    types: Mapping[str, pa.DataType] = field(default_factory=dict)
    "by the reader's names: of columns that it wants as another type than the catalogue has (lists of one length)"
    prefix: str = "query/"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.catalog) or self.catalog.startswith("."):
            raise ValueError(
                f"a catalogue named {self.catalog!r} cannot be part of a path; use letters, digits and _.-"
            )
        lacking = [c for c in (*self.key, *self.position) if c not in self.needed]
        if lacking or not self.key:
            raise ValueError(
                f"hats {self.catalog}: key {tuple(self.key)} and position must be among the needed columns"
            )
        self.address = str(self.address).rstrip("/") or "/"

    @property
    def remote(self) -> bool:
        """Whether the catalogue lies elsewhere."""
        return "://" in self.address

    @property
    def folder(self) -> str:
        """Folder of the tables, below `query/`."""
        return f"hats/{self.catalog}"

    def catalog_files(self, cells: Iterable[int]) -> list[RemoteFile]:
        """One table a cell, whether or not the catalogue has rows there."""
        return cell_files(self.folder, cells)

    def question(self, path: str) -> str:
        """Address, cell, columns; which catalogue it was that the address led to stands in the table."""
        asked = {
            "address": self.address,
            "needed": list(self.needed),
            "optional": list(self.optional),
            "names": dict(self.names),
            "types": {name: str(kind) for name, kind in self.types.items()},
            "position": list(self.position),
            "key": list(self.key),
            "order": WORK_ORDER,
            "cell": cell_of(path, self.folder),
            "units": dict(self.units),
        }
        return json.dumps(asked, sort_keys=True)

    def fetch(self, path: str, into: Path, have: Have) -> None:
        """Write the cell's rows, sorted by key; a table without rows where the catalogue has none.

        The metadata of the table tell which `catalog` it is from.
        """
        rows = self.table(cell_of(path, self.folder))
        told = {"catalog": json.dumps(self.identity, sort_keys=True)}
        write_sorted(rows.replace_schema_metadata(told), tuple(self.key), into)

    def table(self, cell: int) -> pa.Table:
        """The rows of a work cell, in no order.

        MissingColumn names what the catalogue lacks, and what it has; ValueError what cannot be a key.
        """
        pieces = [self._schema.empty_table()]
        for pixel in self._pixels_of(cell):
            for file in self._files(pixel):
                pieces.append(self._rows(file, cell))
        return pa.concat_tables(pieces).combine_chunks()

    # -- the catalogue

    @property
    def identity(self) -> dict[str, str]:
        """Which catalogue it is that the address leads to, in its own words; asks for them."""
        return {k: v for k, v in sorted(self._properties.items()) if k in IDENTITY}

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are taken, by the reader's names; asks the catalogue which it has."""
        return tuple(self._columns)

    @cached_property
    def _catalog(self) -> Any:
        try:
            hats = import_module("hats")
        except ImportError as error:
            raise ImportError(
                f"hats {self.catalog}: reading {self.address} needs the package hats; install skycairn[hats]"
            ) from error
        self._probe()
        with self._told(f"{self.address}: it could not be opened as a HATS catalogue"), warnings.catch_warnings():
            # without its list of partitions hats would take those whose files a server happens to show
            warnings.filterwarnings("error", message="Computing partitions")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            found = hats.read_hats(self.address, read_moc=False)
            return getattr(found, "main_catalog", found)

    def _probe(self) -> None:
        """Why a catalogue on the web cannot be opened: hats takes each failure for a missing file."""
        if not self.address.startswith(("http://", "https://")):
            return
        for name in ("collection.properties", "hats.properties", "properties"):
            try:
                status = httpx.get(f"{self.address}/{name}", timeout=30, follow_redirects=True).status_code
            except httpx.HTTPError as error:
                raise Busy(f"{self.address}/{name}: {error or type(error).__name__}; try again later") from error
            if status < 400:
                return
            if status not in (404, 410):
                raise _error(status)(f"{self.address}/{name}: the server answers {status}")
        raise NotPublished(f"{self.address}: holds no properties of a HATS catalogue or collection; is it the address?")

    @cached_property
    def _properties(self) -> dict[str, str]:
        said = self._catalog.catalog_info.model_dump(by_alias=True, exclude_none=True)
        return {str(k): str(getattr(v, "value", v)) for k, v in said.items()}

    @cached_property
    def _schema(self) -> pa.Schema:
        """Of the tables: the reader's names, the catalogue's types, units."""
        there = self._catalog.schema
        fields = [self._field(there.field(own), name) for name, own in self._columns.items()]
        return pa.schema(fields)

    def _field(self, found: pa.Field, name: str) -> pa.Field:
        said = {k.lower(): v.decode() for k, v in (found.metadata or {}).items()}.get(b"unit", "")
        unit = said or self.units.get(name, "")
        where = f"hats {self.catalog}: {self.address}"
        refuse_wrong_units({name: said}, {name.lower(): self.units.get(name, "")}, where, "set `units` if that is so")
        kind = self.types.get(name, found.type)
        if name in self.key:
            if pa.types.is_integer(kind):
                kind = pa.int64()
            elif not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise ValueError(
                    f"{where}: key column {found.name!r} is {kind}; wanted whole numbers or text: an identifier that "
                    "went through a float is another's"
                )
        if name in self.position and not pa.types.is_floating(kind):
            raise ValueError(f"{where}: position column {found.name!r} is {kind}; wanted degrees as floats")
        if pa.types.is_large_string(kind) or _is_string_view(kind) or pa.types.is_dictionary(kind):
            kind = pa.string()
        return pa.field(name, kind, metadata={"unit": unit} if unit else None)

    @cached_property
    def _columns(self) -> dict[str, str]:
        """The catalogue's name of each column that is taken, by the reader's."""
        schema = self._catalog.schema
        if schema is None:
            raise NotPublished(f"{self.address}: the catalogue has no dataset/_common_metadata, which says its columns")
        there = list(schema.names)
        by_case: dict[str, list[str]] = {}
        for name in there:
            by_case.setdefault(name.lower(), []).append(name)
        out, missing = {}, []
        for name in dict.fromkeys((*self.needed, *self.optional)):
            wanted = self.names.get(name, name)
            found = [wanted] if wanted in there else by_case.get(wanted.lower(), []) if name not in self.names else []
            if len(found) > 1:
                raise ValueError(f"hats {self.catalog}: {wanted!r} may be any of {found}; say which in `names`")
            if found:
                out[name] = found[0]
            elif name in self.needed:
                missing.append(wanted)
        if missing:
            raise MissingColumn(
                f"hats {self.catalog}: {self.address} has no column {', '.join(map(repr, missing))}; it has "
                f"{', '.join(there)}: map the reader's name to the catalogue's in `names`"
            )
        return out

    # -- its files

    def _pixels_of(self, cell: int) -> list[Any]:
        """Pixels of the catalogue that may hold rows of the cell."""
        cells = np.array([cell], dtype=np.int64)
        info = self._catalog.catalog_info
        own = {info.ra_column, info.dec_column} == {self._columns[c] for c in self.position}
        if not own:
            fine = (cell << 2 * (BORDER_ORDER - WORK_ORDER)) + np.arange(1 << 2 * (BORDER_ORDER - WORK_ORDER))
            around = healpy.get_all_neighbours(1 << BORDER_ORDER, fine, nest=True).ravel()
            cells = np.union1d(cells, around[around >= 0] >> 2 * (BORDER_ORDER - WORK_ORDER))
        return [p for p in self._catalog.get_healpix_pixels() if _overlaps(p, cells)]

    def _files(self, pixel: Any) -> Iterator[Any]:
        paths = import_module("hats.io.paths")
        suffix = self._catalog.catalog_info.npix_suffix
        base = self._catalog.catalog_base_dir
        with self._told(f"{self.address}: {pixel}"):
            if suffix == "/":
                folder = paths.pixel_catalog_file(base, pixel, npix_suffix="")
                files = sorted(folder.glob("*.parquet"), key=str)
                if not files:
                    raise FileNotFoundError(str(folder))
            else:
                files = [paths.pixel_catalog_file(base, pixel, npix_suffix=suffix)]
        yield from files

    def _rows(self, pointer: Any, cell: int) -> pa.Table:
        file_io = import_module("hats.io.file_io")
        with self._told(f"{pointer}: it is listed and could not be read"):
            file = file_io.read_parquet_file(pointer, page_checksum_verification=True)
            own = [self._columns[c] for c in self.position]
            groups = _near(file.metadata, own, cell)
            sizes = [file.metadata.row_group(g).total_byte_size for g in groups]
            refuse_large_table(1, sizes, str(pointer), MOST_BYTES)
            if lost := sorted(set(self._columns.values()) - set(file.schema_arrow.names)):
                raise MissingColumn(f"{pointer}: has no column {lost[0]!r}, which its catalogue's schema promises")
            pieces = [self._schema.empty_table()]
            for group in groups:
                place = file.read_row_group(group, columns=own)
                place = place.append_column(NUMBER, pa.array(np.arange(place.num_rows)))
                rows = inside(place, WORK_ORDER, cell, *own).column(NUMBER).combine_chunks()
                if len(rows):
                    piece = file.read_row_group(group, columns=list(self._columns.values())).take(rows)
                    pieces.append(self._cast(piece, str(pointer)))
        return pa.concat_tables(pieces)

    def _cast(self, table: pa.Table, where: str) -> pa.Table:
        table = pa.Table.from_arrays([table.column(own) for own in self._columns.values()], names=list(self._columns))
        try:
            return table.cast(self._schema)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"{where}: its rows are not of its catalogue's types ({error})") from error

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """What goes wrong with files as this project's errors: a remote file that is missing may only be busy."""
        try:
            yield
        except (FetchError, MissingColumn, WrongUnit):
            raise
        except PermissionError as error:
            raise Refused(f"{what}: {error}") from error
        except (FileNotFoundError, UserWarning) as error:
            kind: type[FetchError] = Busy if self.remote else NotPublished
            raise kind(f"{what}: not found ({error}){'; or its server is busy' if self.remote else ''}") from error
        except pa.ArrowInvalid as error:
            raise ChecksumMismatch(f"{what}: {error}") from error
        except OSError as error:
            # pyarrow says so of a page whose checksum is not its own, the system of a disk or a line that fails
            damaged = not self.remote or "checksum" in str(error).lower()
            raise (ChecksumMismatch if damaged else Busy)(f"{what}: {error}") from error
        except TimeoutError as error:
            raise Busy(f"{what}: {error or 'no answer in time'}") from error
        except Exception as error:
            if not self.remote or not type(error).__module__.startswith(("aiohttp", "botocore", "fsspec")):
                raise
            raise _error(getattr(error, "status", 503))(f"{what}: {error}") from error


def _error(status: int) -> type[FetchError]:
    return Refused if status in (401, 403) else NotPublished if status in (404, 410) else Busy


def _is_string_view(kind: pa.DataType) -> bool:
    check: Callable[[pa.DataType], bool] = getattr(pa.types, "is_string_view", lambda _: False)
    return check(kind)


def _overlaps(pixel: Any, cells: NDArray[np.int64]) -> bool:
    """Whether a pixel of any order shares sky with one of the work cells."""
    order, number = int(pixel.order), int(pixel.pixel)
    if order <= WORK_ORDER:
        return bool((cells >> 2 * (WORK_ORDER - order) == number).any())
    return bool((cells == number >> 2 * (order - WORK_ORDER)).any())


def _near(metadata: Any, position: Sequence[str], cell: int) -> list[int]:
    """Row groups whose least and largest coordinates do not rule the cell out."""
    box = cell_boxes([cell], WORK_ORDER)
    out = []
    for g in range(metadata.num_row_groups):
        group = metadata.row_group(g)
        known = {group.column(i).path_in_schema: group.column(i).statistics for i in range(group.num_columns)}
        stats = [known.get(name) for name in position]
        if all(s is not None and s.has_min_max for s in stats):
            (ra0, ra1), (dec0, dec1) = ((float(s.min), float(s.max)) for s in stats if s is not None)
            # coordinates beyond 0 to 360 are turned back one by one, so a range of them rules nothing out
            if 0 <= ra0 <= ra1 <= 360 and not touching(np.array([[ra0, ra1, dec0, dec1]]), box)[0]:
                continue
        out.append(g)
    return out


# -- what the readers want


def _wanted(columns: Iterable[Column], derived: Iterable[str]) -> tuple[list[str], list[str]]:
    kept = [c for c in columns if c.name not in set(derived)]
    return [c.name for c in kept if c.required], [c.name for c in kept if not c.required]


def gaia(address: str = "https://data.lsdb.io/hats/gaia_dr3/gaia", **settings: Any) -> HatsSource:
    """Gaia's source table, without XP spectra; `settings` are fields of `HatsSource`."""
    needed = ("source_id", "ra", "dec", "pmra", "pmdec")
    return HatsSource(
        **{
            "catalog": "gaia_dr3",
            "address": address,
            "needed": needed,
            "optional": [name for name in SOURCE_COLUMNS if name not in needed],
            "key": ("source_id",),
            "units": {name: f.metadata[b"unit"].decode() for name, f in SOURCE_COLUMNS.items() if f.metadata},
            **settings,
        }
    )


def desi(address: str, catalog: str = "desi_dr1", **settings: Any) -> HatsSource:
    """DESI's redshift catalogue (the columns of `zall-pix`); `settings` are fields of `HatsSource`."""
    needed, optional = _wanted(Desi.columns, ("good_z", "z_good"))
    place = ("target_ra", "target_dec", "pmra", "pmdec", "ref_epoch")
    return HatsSource(
        **{
            "catalog": catalog,
            "address": address,
            "needed": [*needed, *(n for n in place if n not in needed)],
            "optional": [n for n in optional if n not in place],
            "key": ("targetid", "survey", "program"),
            "position": ("target_ra", "target_dec"),
            "units": {**units_of(Desi.columns), **DESI_UNITS},
            **settings,
        }
    )


def sdss(address: str, catalog: str = "sdss_dr17", **settings: Any) -> HatsSource:
    """SDSS's table of spectra (the columns of `specObj`); `settings` are fields of `HatsSource`."""
    needed, optional = _wanted(Sdss.columns, DERIVED)
    place = ("plug_ra", "plug_dec", "z", "zwarning")
    return HatsSource(
        **{
            "catalog": catalog,
            "address": address,
            "needed": [*needed, *place],
            "optional": [n for n in optional if n not in place],
            "key": ("run2d", "plate", "mjd", "fiberid"),
            "position": ("plug_ra", "plug_dec"),
            "types": {c.name: c.type for c in Sdss.columns if pa.types.is_fixed_size_list(c.type)},
            "units": {**units_of(Sdss.columns), "plug_ra": "deg", "plug_dec": "deg"},
            **settings,
        }
    )
