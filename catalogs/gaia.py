"""Gaia: astrometry, photometry and mean BP/RP spectra.

About this release
------------------
Source: Gaia DR3, https://www.cosmos.esa.int/gaia (arXiv:2208.00211; XP spectra arXiv:2206.06143), data model
https://gea.esac.esa.int/archive/documentation/GDR3. Free to use with the acknowledgement that the archive asks for.

* A file holds the sources of a range of HEALPix level-8 (NESTED) pixels, named in it; the pixel is that of `source_id`,
  which refers to the position when the source was first listed, not at 2016.0. So the files of a cell are those of its
  pixels and of the pixels around it (13.7 arcmin, far more than any star has moved).
* `source_id` is this release's own: DR2's is another.
* ra, dec are ICRS at `ref_epoch` 2016.0; errors in mas, of ra times cos(dec); pmra includes cos(dec). A third of the
  fainter sources have two parameters only: no parallax, no motion (`astrometric_params_solved` 3, else 31 or 95).
* The parallax zero point (about -0.02 to -0.04 mas) is not applied.
* `duplicated_source` says that the source was found twice in the processing and that one of the two was kept: the row
  is a thing on the sky, so it stays *valid*; `strict` does not want it, since its data may be incomplete.
* XP spectra are 55 + 55 coefficients in an internal flux scale (`xp_continuous`), row for row in files of the same
  ranges. BP or RP may be missing: null here, never 0. `xp_file_absent` is True where Gaia has the spectrum and the file
  that was given does not hold it, or none was given.

Parallaxes of faint and far stars are often negative. AION-1 takes their logarithm with a floor, which puts every
parallax below 0.05 mas into one token; `gaia.parallax` asks for `asinh` instead, which keeps their order and their sign
and is as good as a logarithm above. Under the profiles `aion` and `strict` all parallaxes are positive. The modalities
`gaia.ra` and `gaia.dec` take the own columns `ra_deg` and `dec_deg`, the same numbers as the standard columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import healpy
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skycairn.catalogs.ecsv import read_table
from skycairn.catalogs.survey import (
    STANDARD_SCHEMA,
    WORK_ORDER,
    Archive,
    Column,
    Cut,
    MissingColumn,
    Modality,
    RemoteFile,
    Survey,
    unknown_option,
)
from skycairn.catalogs.units import refuse_wrong_units

URLS: Mapping[str, str] = {"dr3": "https://cdn.gea.esac.esa.int/Gaia/gdr3"}
REF_EPOCHS: Mapping[str, float] = {"dr3": 2016.0}
SOURCE_FOLDER = "gaia_source"
XP_FOLDER = "Spectroscopy/xp_continuous_mean_spectrum"
SOURCE_FILE = "GaiaSource_{range}.csv.gz"
XP_FILE = "XpContinuousMeanSpectrum_{range}.csv.gz"
CHECKSUMS = "_MD5SUM.txt"
FILE_ORDER = 8
"""HEALPix order of the ranges in the file names."""
N_COEFFICIENTS = 55
XP = pa.list_(pa.float32(), N_COEFFICIENTS)


def gaia_hpx(source_id: NDArray[np.int64] | int, order: int) -> NDArray[np.int64]:
    """HEALPix pixel (NESTED) that a source_id was given in, at this order of at most 12; whole numbers throughout."""
    if not 0 <= order <= 12:
        raise ValueError(f"a source_id tells HEALPix orders 0 to 12, not {order}")
    return np.asarray(source_id, dtype=np.int64) >> (35 + 2 * (12 - order))


def _columns() -> tuple[Column, ...]:
    f4, f8, flag = pa.float32(), pa.float64(), pa.bool_()
    out = [
        Column("source_id", pa.int64(), required=True),
        Column("ra_deg", f8, "deg", required=True, aliases=("ra",)),
        Column("dec_deg", f8, "deg", required=True, aliases=("dec",)),
        Column("parallax", f8, "mas"),
        Column("parallax_error", f4, "mas"),
        Column("parallax_over_error", f4),
        Column("pmra_error", f4, "mas/yr"),
        Column("pmdec_error", f4, "mas/yr"),
        Column("ruwe", f4),
        Column("astrometric_params_solved", pa.int16()),
        Column("duplicated_source", flag),
    ]
    for band in ("g", "bp", "rp"):
        out.append(Column(f"phot_{band}_mean_flux", f8, "electron/s"))
        out.append(Column(f"phot_{band}_mean_flux_error", f4, "electron/s"))
        out.append(Column(f"phot_{band}_mean_mag", f4, "mag"))
    out += [
        Column("phot_bp_rp_excess_factor", f4),
        Column("bp_rp", f4, "mag"),
        Column("radial_velocity", f4, "km/s"),
        Column("radial_velocity_error", f4, "km/s"),
        Column("in_qso_candidates", flag),
        Column("in_galaxy_candidates", flag),
        Column("has_xp_continuous", flag),
        Column("xp_file_absent", flag),
    ]
    for band in ("bp", "rp"):
        out.append(Column(f"{band}_coefficients", XP))
        out.append(Column(f"{band}_coefficient_errors", XP))
        out.append(Column(f"{band}_n_relevant_bases", pa.int16()))
    return tuple(out)


COLUMNS = _columns()
XP_COLUMNS = tuple(c for c in COLUMNS if c.name.startswith(("bp_c", "bp_n", "rp_c", "rp_n")))
ASTROMETRY: Mapping[str, pa.DataType] = {
    "ra": pa.float64(),
    "dec": pa.float64(),
    "ra_error": pa.float32(),
    "dec_error": pa.float32(),
    "pmra": pa.float64(),
    "pmdec": pa.float64(),
    "ref_epoch": pa.float64(),
}
UNITS: Mapping[str, str] = {
    **dict.fromkeys(("ra_error", "dec_error"), "mas"),
    **dict.fromkeys(("pmra", "pmdec"), "mas/yr"),
    "ref_epoch": "yr",
}
"""Of the columns that become errors, motions and epochs."""


FROM_XP = {c.name for c in XP_COLUMNS} | {"xp_file_absent"}


def _source_columns() -> dict[str, pa.Field]:
    own = {c.aliases[0] if c.aliases else c.name: c for c in COLUMNS if c.name not in FROM_XP}
    types = {**{name: c.type for name, c in own.items()}, **ASTROMETRY}
    units = {**{name: c.unit for name, c in own.items()}, **UNITS}
    return {n: pa.field(n, t, metadata={"unit": units[n]} if units.get(n) else None) for n, t in types.items()}


SOURCE_COLUMNS: Mapping[str, pa.Field] = _source_columns()
"""What `Gaia.read` wants of a gaia_source table, by the archive's own names, with units in the fields' metadata."""

_AION = (
    Cut(
        "parallax",
        ("parallax_over_error",),
        lambda c: c["parallax_over_error"] > 10,
        "a parallax of more than ten times its error; none fails",
    ),
    Cut("xp", ("has_xp_continuous",), lambda c: c["has_xp_continuous"], "has a mean BP/RP spectrum"),
    *(
        Cut(
            f"flux_{band}",
            (f"phot_{band}_mean_flux",),
            lambda c: np.ones(len(next(iter(c.values()))), dtype=bool),
            f"has photometry in {band.upper()}",
        )
        for band in ("g", "bp", "rp")
    ),
)


class Gaia(Survey):
    """Gaia DR3; root: the folder that holds `gaia_source/` and `Spectroscopy/`."""

    name: ClassVar[str] = "gaia"
    rank: ClassVar[int] = 2
    releases: ClassVar[tuple[str, ...]] = tuple(URLS)
    columns: ClassVar[tuple[Column, ...]] = COLUMNS
    footprint = "all-sky"
    valid: ClassVar[tuple[Cut, ...]] = (
        Cut("source_id", ("source_id",), lambda c: c["source_id"] > 0, "an id of Gaia's"),
        Cut(
            "position",
            ("ra", "dec"),
            lambda c: (c["ra"] >= 0) & (c["ra"] < 360) & (np.abs(c["dec"]) <= 90),
            "a position on the sky",
        ),
    )
    select: ClassVar[Mapping[str, tuple[Cut, ...]]] = {
        "aion": _AION,
        "strict": (
            *_AION,
            Cut("ruwe", ("ruwe",), lambda c: c["ruwe"] < 1.4, "one star fits the astrometry"),
            Cut(
                "solution",
                ("astrometric_params_solved",),
                lambda c: np.isin(c["astrometric_params_solved"], (31, 95)),
                "five or six parameters solved",
            ),
            Cut("duplicated", ("duplicated_source",), lambda c: ~c["duplicated_source"], "not found twice"),
        ),
        "all": (),
    }
    modalities: ClassVar[tuple[Modality, ...]] = (
        *(
            Modality(
                f"gaia.flux_{band}",
                f"tok_flux_{band}_gaia",
                "log",
                column=f"phot_{band}_mean_flux",
                unit="electron/s",
                error=f"phot_{band}_mean_flux_error",
            )
            for band in ("g", "bp", "rp")
        ),
        Modality("gaia.parallax", "tok_parallax", "asinh", column="parallax", unit="mas", error="parallax_error"),
        Modality("gaia.ra", "tok_ra", "quantile", column="ra_deg", unit="deg"),
        Modality("gaia.dec", "tok_dec", "quantile", column="dec_deg", unit="deg"),
        *(
            Modality(
                f"gaia.xp_{band}",
                f"tok_xp_{band}",
                "xp",
                column=f"{band}_coefficients",
                shape=(N_COEFFICIENTS,),
                error=f"{band}_coefficient_errors",
                absent_flag="xp_file_absent",
            )
            for band in ("bp", "rp")
        ),
    )

    def __init__(self, release: str, **options: Any) -> None:
        super().__init__(release, **options)
        if options:
            raise ValueError(f"gaia: {unknown_option(sorted(options)[0], ())}")
        self.ref_epoch = REF_EPOCHS[release]

    @property
    def url(self) -> str:
        """Root of the release on the public archive."""
        return URLS[self.release]

    def catalog_files(self, archive: Archive, cells: Iterable[int]) -> list[RemoteFile]:
        """Files whose ranges hold level-8 pixels of the cells, or pixels that touch them; XP files beside them."""
        sums, xp_sums = f"{SOURCE_FOLDER}/{CHECKSUMS}", f"{XP_FOLDER}/{CHECKSUMS}"
        listed = archive.names(sums)
        if listed is None:
            raise ValueError(
                f"gaia {self.release}: there is no {sums}, which names the files and the sky they cover; put the "
                "archive's own beside them (md5sum of each file, as `md5sum *.csv.gz` prints it)"
            )
        pixels = touched_pixels(cells)
        spectra = archive.names(xp_sums)
        ranges = sorted(r for r in map(_range, listed) if r is not None)
        out = []
        for first, last in ranges:
            if np.searchsorted(pixels, first) < np.searchsorted(pixels, last, "right"):
                span = f"{first:06d}-{last:06d}"
                xp = f"{XP_FOLDER}/{XP_FILE.format(range=span)}"
                beside: tuple[tuple[str, RemoteFile], ...] = ()
                if spectra is not None and XP_FILE.format(range=span) in spectra:
                    beside = (("xp", RemoteFile(xp, xp_sums, "md5")),)
                elif archive.exists(xp):
                    beside = (("xp", RemoteFile(xp)),)
                path = f"{SOURCE_FOLDER}/{SOURCE_FILE.format(range=span)}"
                out.append(RemoteFile(path, sums, "md5", beside))
        return out

    def read(
        self,
        path: Path,
        rows: tuple[int, int] | None = None,
        companions: Mapping[str, Path | None] | None = None,
        needed: Iterable[str] = (),
    ) -> pa.Table:
        """A gaia_source table (CSV, ECSV, FITS, VOTable, Parquet), and the XP table `companions["xp"]` beside it."""
        where = f"gaia {self.release}: {path}"
        if rows is not None:
            raise ValueError(f"{where}: a file of Gaia's is read whole; rows {rows[0]}..{rows[1]} were asked")
        table = self._source_table(path)
        n = table.num_rows
        check_units(table, where)
        # without the motion a row would be matched at the wrong place, so its absence is no detail
        wanted = {"source_id", "ra", "dec", "pmra", "pmdec", *(set(needed) - FROM_XP)}
        have = set(table.column_names)
        # DataLink and TAP users often leave the ratio out
        if "parallax_over_error" not in have and {"parallax", "parallax_error"} <= have:
            ratio = pc.divide(table["parallax"], pc.cast(table["parallax_error"], pa.float64()))
            table = table.append_column("parallax_over_error", pc.cast(ratio, pa.float32()))
        if missing := sorted(wanted & set(SOURCE_COLUMNS) - set(table.column_names)):
            raise MissingColumn(f"{where} has no column {missing[0]!r}: is it a whole gaia_source table?")
        if (empty := table["source_id"].null_count) > 0:
            row = int(np.flatnonzero(table["source_id"].is_null().to_numpy())[0])
            raise ValueError(f"{where} row {row}: has no source_id ({empty} such rows); wanted one in each row")

        def values(name: str, kind: pa.DataType) -> pa.Array:
            return table[name].combine_chunks() if name in table.column_names else pa.nulls(n, kind)

        source_id = values("source_id", pa.int64())
        spectra = self._spectra(path, (companions or {}).get("xp"), source_id)
        has_xp = pc.fill_null(values("has_xp_continuous", pa.bool_()), False)
        own = []
        for column in self.columns:
            if column.name == "xp_file_absent":
                own.append(pc.and_(has_xp, pc.invert(spectra["held"])))
            elif column.name in FROM_XP:
                own.append(spectra[column.name])
            else:
                own.append(_finite(values(column.aliases[0] if column.aliases else column.name, column.type)))
        fields = [*STANDARD_SCHEMA, *(c.field() for c in self.columns)]
        return pa.Table.from_arrays([*self._standard(values, n, where), *own], schema=pa.schema(fields))

    def _source_table(self, path: Path) -> pa.Table:
        """Those of `SOURCE_COLUMNS` that the file has."""
        return read_table(path, {name: f.type for name, f in SOURCE_COLUMNS.items()})

    def _spectra(self, path: Path, xp: Path | None, source_id: pa.Array) -> dict[str, pa.Array]:
        """XP columns of these sources, and `held`: whether there is a row for each; `xp` is the table beside `path`."""
        return _join_xp(xp, source_id)

    def _standard(self, values: Any, n: int, where: str) -> list[pa.Array]:
        reference = self.ref_epoch
        epoch = values("ref_epoch", pa.float64()).fill_null(reference).to_numpy(zero_copy_only=False)
        if (other := np.flatnonzero(epoch != reference)).size:
            raise ValueError(
                f"{where} row {other[0]}: ref_epoch {epoch[other[0]]}, wanted {reference}; is it of another release?"
            )
        pmra, pmdec = (_finite(values(c, pa.float64())) for c in ("pmra", "pmdec"))
        moving = pc.and_(pmra.is_valid(), pmdec.is_valid())
        at = pa.array(epoch)
        ra = _finite(values("ra", pa.float64()))
        nothing = pa.scalar(None, pa.float64())
        return [
            values("source_id", pa.int64()),
            pc.if_else(pc.equal(ra, 360.0), 0.0, ra),
            _finite(values("dec", pa.float64())),
            *(
                pc.divide(_finite(values(c, pa.float32())), pa.scalar(1000.0, pa.float32()))
                for c in ("ra_error", "dec_error")
            ),
            pc.if_else(moving, pmra, nothing),
            pc.if_else(moving, pmdec, nothing),
            pc.if_else(moving, at, nothing),
            at,
            at,
            pa.array(np.full(n, "gaia"), pa.string()),
            pa.array(np.arange(n, dtype=np.int64)),
        ]


def check_units(table: pa.Table, where: str) -> None:
    """WrongUnit where the table's fields say another unit than `SOURCE_COLUMNS`."""
    found = {f.name: f.metadata[b"unit"].decode() for f in table.schema if f.metadata}
    wanted = {name: f.metadata[b"unit"].decode() for name, f in SOURCE_COLUMNS.items() if f.metadata}
    refuse_wrong_units(found, wanted, where, "is it of another release, or converted?")


def touched_pixels(cells: Iterable[int]) -> NDArray[np.int64]:
    """Level-8 pixels (NESTED) of these work cells and those that touch them, sorted."""
    inside = np.unique(np.fromiter(cells, dtype=np.int64))
    children = 1 << 2 * (FILE_ORDER - WORK_ORDER)
    pixels = (inside[:, None] * children + np.arange(children)).reshape(-1)
    if not len(pixels):
        return pixels
    around = healpy.get_all_neighbours(1 << FILE_ORDER, pixels, nest=True).reshape(-1)
    return np.unique(np.concatenate([pixels, around[around >= 0]]))


def _range(name: str) -> tuple[int, int] | None:
    found = re.fullmatch(SOURCE_FILE.format(range=r"(\d+)-(\d+)").replace(".", r"\."), name)
    return (int(found[1]), int(found[2])) if found else None


def _finite(column: pa.Array) -> pa.Array:
    """NaN and infinities as null."""
    if not pa.types.is_floating(column.type):
        return column
    return pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))


def _join_xp(path: Path | None, source_id: pa.Array) -> dict[str, pa.Array]:
    """XP columns brought to these sources, and `held`: whether the file has a row for each."""
    n = len(source_id)
    if path is None:
        out = {c.name: pa.nulls(n, c.type) for c in XP_COLUMNS}
        return {**out, "held": pa.array(np.zeros(n, dtype=bool))}
    table = read_xp(path)
    held = table["source_id"].to_numpy()
    order = np.argsort(held, kind="stable")
    if (twice := np.flatnonzero(np.diff(held[order]) == 0)).size:
        raise ValueError(f"{path}: source_id {held[order[twice[0]]]} stands in two rows; wanted one")
    wanted = source_id.to_numpy()
    place = np.minimum(np.searchsorted(held[order], wanted), max(len(held) - 1, 0))
    found = held[order][place] == wanted if len(held) else np.zeros(n, dtype=bool)
    take = pa.array(order[place] if len(held) else np.zeros(n, dtype=np.int64), mask=~found)
    out = {c.name: table[c.name].combine_chunks().take(take) for c in XP_COLUMNS}
    return {**out, "held": pa.array(found)}


def read_xp(path: Path) -> pa.Table:
    """A table of XP continuous spectra: source_id and the XP columns; null where a source has no BP or no RP.

    ValueError where a band has other than 55 coefficients: another release's bases, which are not these tokens'.
    """
    types = {c.name: pa.list_(pa.float32()) if c.type == XP else c.type for c in XP_COLUMNS}
    table = read_table(path, {"source_id": pa.int64(), **types})
    out = {}
    for name in ("source_id", *types):
        if name not in table.column_names:
            raise MissingColumn(f"{path} has no column {name!r}: is it a table of XP continuous spectra?")
        column = table[name].combine_chunks()
        listed = pa.types.is_list(column.type)
        out[name] = _fixed(column, table["source_id"], f"{path}: {name}") if listed else column
    if out["source_id"].null_count:
        raise ValueError(f"{path}: {out['source_id'].null_count} rows have no source_id; wanted one in each")
    return pa.table(out)


def _fixed(lists: pa.Array, source_id: pa.ChunkedArray, where: str) -> pa.Array:
    known = lists.is_valid().to_numpy(zero_copy_only=False)
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    if (other := np.flatnonzero(known & (lengths != N_COEFFICIENTS))).size:
        i = int(other[0])
        raise ValueError(
            f"{where} row {i} (source_id {source_id[i]}) has {lengths[i]} numbers, wanted {N_COEFFICIENTS}; "
            "is it another release's?"
        )
    flat = np.zeros((len(lists), N_COEFFICIENTS), np.float32)
    flat[known] = lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, N_COEFFICIENTS)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), N_COEFFICIENTS, mask=pa.array(~known))
