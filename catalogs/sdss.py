"""SDSS: optical spectra of SDSS-I/II, SEGUE, BOSS and eBOSS.

About this release
------------------
Source: https://data.sdss.org/sas/dr17 (DR17: Abdurro'uf et al. 2022, ApJS 259, 35), formats
https://data.sdss.org/datamodel. Public; whoever publishes with it is asked to use the acknowledgement at
sdss.org/collaboration/citing-sdss.

Quirks
* A spectrum is known by (RUN2D, PLATE, MJD, FIBERID): one plate was observed in several nights, with other things in
  its fibres. RUN2D is 26, 103 or 104 for SDSS-I/II and SEGUE, v5_13_2 for BOSS and eBOSS. Plates go beyond 9999.
* PLUG_RA, PLUG_DEC are positions of the imaging that the plate was drilled from, of no stated date: `epoch_range`.
* Text is padded with blanks; identifiers are text of up to 22 digits.
* Z is null or nonsense where ZWARNING is not 0. For galaxies of BOSS and eBOSS the fit without quasars (Z_NOQSO) holds.
* SPECTROFLUX is what the fibre (3 arcsec, BOSS 2) saw: no total flux, so no common band with the imaging surveys.
* Repeated spectra of a thing stay in the `repeats` table; SPECPRIMARY names the best.
* The archive publishes no checksum list that could be verified here: a file that specObj names and that is not there is
  `file absent`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from skycairn.catalogs.columns import Fetch, own_columns
from skycairn.catalogs.fitsfile import column_units, opened, read_columns, table_rows
from skycairn.catalogs.queryfile import LACKS, is_query
from skycairn.catalogs.sdsscolumns import COLUMNS, SELECT, VALID
from skycairn.catalogs.sdsskey import pack_key
from skycairn.catalogs.sdssspectra import LOGLAM_START, LOGLAM_STEP, N_PIXELS, Spectra, read_plate, read_spec
from skycairn.catalogs.survey import (
    STANDARD_SCHEMA,
    Archive,
    Column,
    Cut,
    MissingColumn,
    Modality,
    PayloadGroup,
    RemoteFile,
    Survey,
    first_failed,
)
from skycairn.catalogs.units import refuse_wrong_units, units_of

HOLDING = "plug_ra"
"""A column that only the table of spectra has."""
CATALOG = "sdss/spectro/redux/specObj-dr17.fits"
SAME_ARCSEC = 2.0
"""Two spectra nearer than this are of one thing; SPECPRIMARY was chosen so."""
PRODUCTS = ("spplate", "lite", "full")


def spectrum_file(product: str, run2d: str, plate: int, mjd: int, fiber: int = 0) -> str:
    """Path of a plate's spPlate file, or of a single `lite` or `full` spec file, below `.../sas/dr17`."""
    old = not run2d.startswith("v")
    top = f"{'sdss' if old else 'eboss'}/spectro/redux/{run2d}"
    if product == "spplate":
        return f"{top}/{plate:04d}/spPlate-{plate:04d}-{mjd}.fits"
    kind = "spectra/lite" if product == "lite" else "spectra" if old else "spectra/full"
    return f"{top}/{kind}/{plate:04d}/spec-{plate:04d}-{mjd}-{fiber:04d}.fits"


class Sdss(Survey):
    """SDSS DR17; root: `.../sas/dr17`.

    Options: `spectra`, `spplate` (default), `lite` or `full`: the files that spectra are read from; `epoch_range`,
    Julian years within which the positions hold.
    """

    name: ClassVar[str] = "sdss"
    rank: ClassVar[int] = 4
    releases: ClassVar[tuple[str, ...]] = ("dr17",)
    columns: ClassVar[tuple[Column, ...]] = COLUMNS
    valid: ClassVar[tuple[Cut, ...]] = VALID
    select: ClassVar[Mapping[str, tuple[Cut, ...]]] = SELECT
    footprint = "occupied"
    modalities: ClassVar[tuple[Modality, ...]] = (
        Modality(
            "sdss.spectrum",
            "tok_spectrum_sdss",
            "spectrum",
            unit="1e-17 erg/s/cm2/Angstrom",
            shape=(N_PIXELS,),
            wavelengths=("log10", LOGLAM_START, LOGLAM_STEP),
            about="native pixels, log10(wavelength) from 3.545 in steps of 1e-4, vacuum; masked where not observed",
        ),
        Modality(
            "sdss.z", "tok_z", "grid", column="z_good", error="z_good_err", about="null where the redshift failed"
        ),
    )

    def __init__(
        self, release: str, *, spectra: str = "spplate", epoch_range: tuple[float, float] = (1998.0, 2010.0)
    ) -> None:
        super().__init__(release, spectra=spectra, epoch_range=tuple(epoch_range))
        if spectra not in PRODUCTS:
            raise ValueError(f"sdss: spectra {spectra!r} were asked for; choose one of {', '.join(PRODUCTS)}")
        self.product = spectra
        self.epoch_range = (float(epoch_range[0]), float(epoch_range[1]))
        if not self.epoch_range[0] <= self.epoch_range[1]:
            raise ValueError(f"sdss: epoch_range {self.epoch_range} ends before it begins")

    @property
    def url(self) -> str:
        """Root of the release on the public archive."""
        return "https://data.sdss.org/sas/dr17"

    def catalog_files(self, archive: Archive, cells: Iterable[int]) -> list[RemoteFile]:
        """The one table of all spectra."""
        return [RemoteFile(CATALOG)]

    def n_rows(self, path: Path) -> int | None:
        """Rows of specObj; None for a spec file, which is read whole."""
        return table_rows(path, HOLDING) if not path.name.startswith("spec-") else None

    def read(
        self,
        path: Path,
        rows: tuple[int, int] | None = None,
        companions: Mapping[str, Path | None] | None = None,
        needed: Iterable[str] = (),
    ) -> pa.Table:
        """Read specObj, a query table (queryfile.py), or the SPECOBJ or SPALL row of a spec file; see `Survey.read`."""
        where = f"sdss {self.release}: {path.name}"
        single = path.name.startswith("spec-")
        found, n, written = (*_spec_row(path, rows), {}) if single else self._stored(path, rows)
        by_name = {name.lower(): fetch for name, fetch in found.items()}
        start = rows[0] if rows is not None else 0
        reason = LACKS if is_query(path) else "is it a table of SDSS spectra (specObj, SPECOBJ, SPALL)?"
        for name in ("plug_ra", "plug_dec", "z", "zwarning"):
            if name not in by_name:
                raise MissingColumn(f"{where} has no column {name.upper()!r}: {reason}")
        if not single:
            units = {**units_of(self.columns), "plug_ra": "deg", "plug_dec": "deg"}
            refuse_wrong_units(written, units, where, reason)
        ra, dec = (by_name[c]().astype(np.float64) for c in ("plug_ra", "plug_dec"))
        if "specprimary" in by_name:
            primary = by_name["specprimary"]
            by_name["specprimary"] = lambda: primary() > 0
        survey = _texts(by_name["survey"]()) if "survey" in by_name else np.full(n, "")
        good, error = good_redshift({c: f() for c, f in by_name.items() if c in REDSHIFT}, survey)
        by_name["z_good"], by_name["z_good_err"] = (lambda: good), (lambda: error)
        own = own_columns(by_name, self.columns, n, needed, where, reason)
        wide = pa.Table.from_arrays(own, schema=pa.schema([c.field() for c in self.columns]))
        numbers = [wide.column(c).fill_null(-1).to_numpy() for c in ("plate", "mjd", "fiberid")]
        key, packed = pack_key(wide.column("run2d").to_numpy(zero_copy_only=False), *numbers)
        standard: dict[str, Any] = {
            "key": pa.array(key, mask=~packed),
            "ra": pa.array(np.where(ra == 360, 0.0, ra), from_pandas=True),
            "dec": pa.array(dec, from_pandas=True),
            "epoch_min": pa.array(np.full(n, self.epoch_range[0])),
            "epoch_max": pa.array(np.full(n, self.epoch_range[1])),
            "epoch_kind": pa.array(np.full(n, "interval"), pa.string()),
            "row": pa.array(start + np.arange(n, dtype=np.int64)),
        }
        arrays = [standard.get(f.name, pa.nulls(n, f.type)) for f in STANDARD_SCHEMA]
        schema = pa.schema([*STANDARD_SCHEMA, *wide.schema])
        table = pa.Table.from_arrays([*arrays, *wide.columns], schema=schema)
        self._refuse_unpacked(table, packed, where)
        return table

    def _refuse_unpacked(self, table: pa.Table, packed: NDArray[np.bool_], where: str) -> None:
        """A row that is a spectrum of a thing and does not fit the key is an error; one that a cut drops is none."""
        known = np.all([table.column(c).is_valid().to_numpy() for c in ("run2d", "plate", "mjd", "fiberid")], axis=0)
        if (packed | ~known).all():
            return
        passes = first_failed([c for c in self.valid if c.name != "key"], table).is_null()
        if (bad := np.flatnonzero(~packed & known & passes.to_numpy(zero_copy_only=False))).size:
            i = int(bad[0])
            run2d, plate, mjd, fiber = (table.column(c)[i].as_py() for c in ("run2d", "plate", "mjd", "fiberid"))
            raise ValueError(
                f"{where} row {table.column('row')[i].as_py()}: RUN2D {run2d!r}, PLATE {plate}, MJD {mjd}, FIBERID "
                f"{fiber} do not fit the key; wanted a rerun below 16384 or vN_M_P, a plate below 131072, an MJD of "
                "50000 to 82767 and a fibre below 4096"
            )

    def repeats(self, table: pa.Table) -> NDArray[np.int64]:
        """Row of the primary of each row's thing: all spectra within `SAME_ARCSEC` of one another, chains included.

        Best first: SPECPRIMARY; ZWARNING 0; the larger SN_MEDIAN_ALL; the smaller key. A total order, so the answer
        does not hang on the order of rows.
        """
        n = table.num_rows
        if n == 0:
            return np.zeros(0, dtype=np.int64)
        ra, dec = (np.radians(table.column(c).to_numpy()) for c in ("ra", "dec"))
        xyz = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
        near = cKDTree(xyz).query_pairs(2 * np.sin(np.radians(SAME_ARCSEC / 3600) / 2), output_type="ndarray")
        links = coo_matrix((np.ones(len(near)), (near[:, 0], near[:, 1])), shape=(n, n))
        thing = connected_components(links, directed=False)[1]

        def column(name: str, blank: Any) -> NDArray[Any]:
            return np.asarray(table.column(name).combine_chunks().fill_null(blank).to_numpy(zero_copy_only=False))

        order = np.lexsort(
            (
                column("key", -1),
                -column("sn_median_all", -np.inf),
                column("zwarning", -1) != 0,
                ~column("specprimary", False),
                thing,
            )
        )
        first = np.concatenate([[True], thing[order][1:] != thing[order][:-1]])
        primary = np.empty(n, dtype=np.int64)
        primary[order] = order[first][np.cumsum(first) - 1]
        return primary

    def _stored(self, path: Path, rows: tuple[int, int] | None) -> tuple[Mapping[str, Fetch], int, Mapping[str, str]]:
        """Columns of a catalogue file by name, how many rows they have, and their units."""
        return *read_columns(path, rows, HOLDING), column_units(path, HOLDING)

    def payload_groups(self, sources: pa.Table, modality: str, reference: Mapping[str, Path]) -> list[PayloadGroup]:
        """The file of each (RUN2D, PLATE, MJD), or of each spectrum; a source without them is outside the payload."""
        if not self.modality(modality).payload:
            return super().payload_groups(sources, modality, reference)
        rows: dict[str, list[int]] = {}
        handles = zip(*(sources.column(c).to_pylist() for c in ("run2d", "plate", "mjd", "fiberid")), strict=True)
        for i, handle in enumerate(handles):
            if None not in handle:
                rows.setdefault(spectrum_file(self.product, *handle), []).append(i)
        return [
            PayloadGroup(np.array(found, dtype=np.int64), {"spectra": RemoteFile(path)})
            for path, found in sorted(rows.items())
        ]

    def extract(self, modality: str, sources: pa.Table, files: Mapping[str, Path], lost: frozenset[str]) -> pa.Table:
        """Spectra of one file: key, status, flux, ivar, mask, lsf_sigma (docs/contracts.md section 8).

        A file that is not there is lost, since specObj names it. A spectrum without one good pixel is `not_measured`.
        """
        if not self.modality(modality).payload:
            return super().extract(modality, sources, files, lost)
        n = sources.num_rows
        if "spectra" in files and n:
            plate, mjd = (int(sources.column(c)[0].as_py()) for c in ("plate", "mjd"))
            fibers = sources.column("fiberid").to_numpy().astype(np.int64)
            if self.product == "spplate":
                spectra = read_plate(files["spectra"], plate, mjd, fibers)
            else:
                spectra = read_spec(files["spectra"], plate, mjd, int(fibers[0]))
            gone = np.asarray(spectra.mask.all(axis=1))
            why = "not_measured"
        else:
            empty = np.zeros((n, N_PIXELS), np.float32)
            spectra = Spectra(empty, empty, empty == 0, np.full((n, N_PIXELS), np.nan, np.float32))
            gone, why = np.ones(n, bool), "file_absent"
        blurred = gone | np.isnan(spectra.lsf_sigma).any(axis=1)
        table = pa.table(
            {
                "key": sources.column("key").combine_chunks(),
                "status": pa.array(np.where(gone, why, ""), pa.string(), mask=~gone),
                "flux": _lists(spectra.flux, gone, pa.float32()),
                "ivar": _lists(spectra.ivar, gone, pa.float32()),
                "mask": _lists(spectra.mask, gone, pa.bool_()),
                "lsf_sigma": _lists(spectra.lsf_sigma, blurred, pa.float32()),
            }
        )
        return table.replace_schema_metadata({"loglam_start": str(LOGLAM_START), "loglam_step": str(LOGLAM_STEP)})


def _spec_row(path: Path, rows: tuple[int, int] | None) -> tuple[dict[str, Fetch], int]:
    """The row about its source that a spec file holds: SPECOBJ of SDSS-I/II, SPALL of BOSS."""
    if rows is not None:
        raise ValueError(f"{path}: a spec file is read whole; rows {rows[0]}..{rows[1]} were asked")
    with opened(path) as hdus:
        for name in ("SPECOBJ", "SPALL"):
            if name in hdus:
                data = hdus[name].data
                values = {n: np.array(data[n]) for n in data.columns.names}
                return {n: partial(np.asarray, v) for n, v in values.items()}, len(data)
        held = ", ".join(h.name for h in hdus[1:])
    raise ValueError(f"{path}: holds neither SPECOBJ nor SPALL (it holds {held or 'nothing'}); is it a spec file?")


REDSHIFT = ("z", "z_err", "zwarning", "z_noqso", "z_err_noqso", "zwarning_noqso", "class")


def good_redshift(
    columns: Mapping[str, NDArray[Any]], survey: NDArray[np.str_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Redshift and error, NaN where ZWARNING says that the fit failed.

    Galaxies of BOSS and eBOSS have the fit without quasars (Z_NOQSO, ZWARNING_NOQSO) where the file holds one: a `0.0`
    with error 0 there means that no such fit was made.
    """
    z, warning = columns["z"].astype(np.float64), np.ma.filled(columns["zwarning"], -1).astype(np.int64)
    error = columns.get("z_err", np.full(len(z), np.nan)).astype(np.float64)
    if {"z_noqso", "zwarning_noqso", "z_err_noqso", "class"} <= set(columns):
        other_error = columns["z_err_noqso"].astype(np.float64)
        boss = np.isin(survey, ("boss", "eboss")) & (_texts(columns["class"]) == "GALAXY") & (other_error != 0)
        z = np.where(boss, columns["z_noqso"].astype(np.float64), z)
        warning = np.where(boss, np.ma.filled(columns["zwarning_noqso"], -1).astype(np.int64), warning)
        error = np.where(boss, other_error, error)
    good = (warning == 0) & np.isfinite(z)
    return np.where(good, z, np.nan), np.where(good & (error > 0), error, np.nan)


def _texts(values: NDArray[Any]) -> NDArray[np.str_]:
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    stripped: NDArray[np.str_] = np.char.strip(values.astype(str))
    return stripped


def _lists(values: NDArray[Any], null: NDArray[np.bool_], kind: pa.DataType) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(np.where(null, 0, values.shape[1]))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values[~null].reshape(-1), kind), mask=pa.array(null))
