"""DESI: spectra and redshifts of the Dark Energy Spectroscopic Instrument.

About this release
------------------
Source: https://data.desi.lbl.gov/doc (EDR: arXiv:2306.06308, specprod `fuji`; DR1: arXiv:2503.14745, `iron`), format
https://desidatamodel.readthedocs.io. Licence: CC BY 4.0, with the acknowledgement that the data pages ask for.

* A row is one (TARGETID, SURVEY, PROGRAM): the same target may have been observed by several; `repeats` names the best.
* TARGET_RA, TARGET_DEC hold at REF_EPOCH, not at MEAN_MJD; PMRA includes cos(dec). They are the imaging's positions
  (Legacy Surveys DR9, or Gaia); no error is given. Zeros in REF_EPOCH, PMRA, PMDEC mean `not known`. In sv1 targets
  without motion bear the night of observation (2020.96, say) as REF_EPOCH beside the imaging's own position: where
  there is no motion and REF_EPOCH is later than the imaging, the position is held to be of `epoch_range`.
* TARGETID packs (RELEASE, BRICKID, OBJID) of Legacy Surveys *DR9*; DR10 gives the same object another OBJID. So with
  DR9 a spectrum is joined to its source by id; of a source of another release TARGETID says nothing.
* Sky fibres have OBJTYPE SKY and bit 59 of TARGETID; stuck fibres have negative TARGETIDs that are not unique.
* `zall-pix` lists a few healpix files that are not on disk (`ABSENT_COADDS`, found by the Multimodal Universe).
* Text is padded with blanks. MASKBITS here are DR9's.

Valid or selected. *Valid* asks whether the row is light of a thing on the sky: a target (not sky, not a mock), a
position, a fibre that worked. FIBERSTATUS 8 (RESTRICTED) only says that the positioner was kept from part of its
patrol area; the spectrum is good. Whether the redshift holds is no question of the source's being there, so it is never
a valid cut: `z` is what redrock published, `z_good` the same with null where it failed (ZWARN not 0, or DELTACHI2 not
above 25). The modality `desi.z` takes `z_good` under every profile, so that a failed redshift has the status `not
measured` and none is ever learned from. (AION-1 took the published `z`, failed ones too.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import healpy
import numpy as np
import pyarrow as pa
from astropy.io import fits
from numpy.typing import NDArray

from skycairn.catalogs.columns import Fetch, own_columns
from skycairn.catalogs.desicatalog import healpix_of_file, redrock_columns, survey_and_program, table_columns
from skycairn.catalogs.desicoadd import N_PIXELS, WAVELENGTH_START, WAVELENGTH_STEP, opened, read_spectra
from skycairn.catalogs.desicolumns import COLUMNS
from skycairn.catalogs.desikey import MOCK, PROGRAM_CODES, RESERVED, SKY, SURVEY_CODES, legacy_keys, pack_key
from skycairn.catalogs.queryfile import LACKS, is_query, query_columns, query_rows, query_units
from skycairn.catalogs.survey import (
    STANDARD_SCHEMA,
    WORK_ORDER,
    Archive,
    Column,
    Cut,
    Link,
    MissingColumn,
    Modality,
    PayloadGroup,
    RemoteFile,
    Survey,
    first_failed,
    unknown_option,
)
from skycairn.catalogs.units import refuse_wrong_units, units_of

UNITS = {
    **dict.fromkeys(("target_ra", "target_dec"), "deg"),
    **dict.fromkeys(("pmra", "pmdec"), "mas/yr"),
}
"""Of the columns that become positions and motions."""
RESTRICTED = 8
"""Bit of FIBERSTATUS that leaves the spectrum good."""
DELTACHI2_GOOD = 25.0
IMAGING_EPOCHS = (2012.7, 2019.3)
"""When the exposures of Legacy Surveys DR9 were taken, for the rows that have no REF_EPOCH."""


@dataclass(frozen=True)
class Production:
    """One spectroscopic production: where its files are."""

    specprod: str
    url: str
    zcatalog: str
    zcatalog_sums: str
    surveys: tuple[str, ...]


PRODUCTIONS: Mapping[str, Production] = {
    "edr": Production(
        "fuji",
        "https://data.desi.lbl.gov/public/edr/spectro/redux/fuji",
        "zcatalog/zall-pix-fuji.fits",
        "zcatalog/redux_fuji_zcatalog.sha256sum",
        ("cmx", "sv1", "sv2", "sv3", "special"),
    ),
    "dr1": Production(
        "iron",
        "https://data.desi.lbl.gov/public/dr1/spectro/redux/iron",
        "zcatalog/v1/zall-pix-iron.fits",
        "zcatalog/v1/redux_iron_zcatalog_v1.sha256sum",
        SURVEY_CODES,
    ),
}

ABSENT_COADDS: Mapping[str, tuple[int, ...]] = {
    "bright": (9836, 4802, 4561, 4730),
    "dark": (26535, 15051, 10844, 9913),
    "backup": (10786, 10810),
}
"""Healpix files of DR1's main survey, by program, that are listed and not on disk."""


def healpix_file(release: str, kind: str, survey: str, program: str, healpix: int) -> RemoteFile:
    """The `coadd` or `redrock` file of one survey, program and healpix (nside 64, NESTED), with its checksum list."""
    specprod = PRODUCTIONS[release].specprod
    group = healpix // 100
    folder = f"healpix/{survey}/{program}/{group}/{healpix}"
    sums = f"{folder}/redux_{specprod}_healpix_{survey}_{program}_{group}_{healpix}.sha256sum"
    return RemoteFile(f"{folder}/{kind}-{survey}-{program}-{healpix}.fits", sums, "sha256")


FIBERSTATUS_ZERO = Cut(
    "fiberstatus_zero",
    ("coadd_fiberstatus",),
    lambda c: c["coadd_fiberstatus"] == 0,
    "no fibre remark at all, RESTRICTED included",
)


def _survey_is(name: str) -> Cut:
    return Cut("survey", ("survey",), lambda c: c["survey"] == name, f"spectra of the {name} survey alone")


def _primary(column: str) -> Cut:
    return Cut("primary", (column,), lambda c: c[column], "the best of a target's spectra in its survey")


def _on_disk(c: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    lacking = [(c["program"] == p) & np.isin(c["healpix"], pixels) for p, pixels in ABSENT_COADDS.items()]
    return ~np.any(lacking, axis=0)


AION: Mapping[str, tuple[Cut, ...]] = {
    "edr": (_survey_is("sv3"), _primary("sv_primary"), FIBERSTATUS_ZERO),
    "dr1": (
        _survey_is("main"),
        _primary("main_primary"),
        FIBERSTATUS_ZERO,
        Cut("on_disk", ("program", "healpix"), _on_disk, "the archive lists its coadd and does not have it"),
    ),
}
"""What AION-1 (EDR) and the Multimodal Universe (DR1) took; OBJTYPE TGT is a valid cut already."""


def target_keys(table: pa.Table) -> pa.Array:
    """The Legacy Surveys' source that each row's target was cut from, null where it was cut from none."""
    key, cut = legacy_keys(table.column("targetid").combine_chunks().fill_null(-1).to_numpy())
    return pa.array(key, mask=~cut)


class Desi(Survey):
    """DESI EDR and DR1; root: the folder of the production (`.../redux/iron`).

    Options: `catalog`, `zcatalog` (one file of all redshifts; the default) or `redrock` (the file of each healpix);
    `epoch_range`, Julian years within which positions without REF_EPOCH hold.
    """

    name: ClassVar[str] = "desi"
    rank: ClassVar[int] = 3
    releases: ClassVar[tuple[str, ...]] = tuple(PRODUCTIONS)
    columns: ClassVar[tuple[Column, ...]] = COLUMNS
    footprint = "occupied"
    bands: ClassVar[Mapping[str, str]] = {"g": "flux_g", "r": "flux_r", "z": "flux_z"}
    links = (Link("legacysurvey", (), target_keys, "the target was cut from this source of the imaging"),)
    valid: ClassVar[tuple[Cut, ...]] = (
        Cut(
            "targetid",
            ("targetid",),
            lambda c: (c["targetid"] >= 0) & (c["targetid"] & (MOCK | SKY | RESERVED) == 0),
            "a target: stuck fibres are negative, sky and mocks have bits of their own",
        ),
        Cut(
            "position",
            ("ra", "dec"),
            lambda c: (c["ra"] >= 0) & (c["ra"] < 360) & (np.abs(c["dec"]) <= 90),
            "a position on the sky",
        ),
        Cut("objtype", ("objtype",), lambda c: c["objtype"] == "TGT", "not a sky fibre, nor one without a target"),
        Cut(
            "fiberstatus",
            ("coadd_fiberstatus",),
            lambda c: c["coadd_fiberstatus"] & ~RESTRICTED == 0,
            "a fibre that was where it should be; 0 and 8 (RESTRICTED) are good",
        ),
    )
    select: ClassVar[Mapping[str, tuple[Cut, ...]]] = {
        "aion": AION["dr1"],
        "strict": (
            Cut(
                "primary",
                ("zcat_primary",),
                lambda c: c["zcat_primary"],
                "the best of a target's spectra; where the file does not say, `repeats` has chosen it",
                null="passes",
            ),
            FIBERSTATUS_ZERO,
            Cut("good_z", ("good_z",), lambda c: c["good_z"], "ZWARN 0 and DELTACHI2 above 25"),
        ),
        "all": (),
    }
    modalities: ClassVar[tuple[Modality, ...]] = (
        Modality(
            "desi.spectrum",
            "tok_spectrum_desi",
            "spectrum",
            unit="1e-17 erg/s/cm2/Angstrom",
            shape=(N_PIXELS,),
            about="three arms joined; 3600 to 9824 Angstrom in steps of 0.8, vacuum",
        ),
        Modality("desi.z", "tok_z", "grid", column="z_good", error="zerr", about="null where the redshift failed"),
    )

    def __init__(self, release: str, **options: Any) -> None:
        super().__init__(release, **options)
        if unknown := sorted(set(options) - {"catalog", "epoch_range"}):
            raise ValueError(f"desi: {unknown_option(unknown[0], ('catalog', 'epoch_range'))}")
        self.catalog: str = options.get("catalog", "zcatalog")
        if self.catalog not in ("zcatalog", "redrock"):
            raise ValueError(f"desi: catalog {self.catalog!r} is neither 'zcatalog' nor 'redrock'")
        start, stop = options.get("epoch_range", IMAGING_EPOCHS)
        if not 1900 < start <= stop < 2100:
            raise ValueError(f"desi: epoch_range {start}, {stop} is no range of Julian years")
        self.epoch_range = (float(start), float(stop))
        self.production = PRODUCTIONS[release]
        # which survey is `the` survey is the release's own affair
        self.select = {**type(self).select, "aion": AION[release]}  # type: ignore[misc]

    @property
    def url(self) -> str:
        """Root of the production on the public archive."""
        return self.production.url

    def catalog_files(self, archive: Archive, cells: Iterable[int]) -> list[RemoteFile]:
        """The one redshift catalogue, or the redrock files of these cells that the archive lists or has."""
        if self.catalog == "zcatalog":
            return [RemoteFile(self.production.zcatalog, self.production.zcatalog_sums, "sha256")]
        out = []
        for cell in sorted(set(cells)):
            for survey in self.production.surveys:
                for program in PROGRAM_CODES:
                    file = healpix_file(self.release, "redrock", survey, program, cell)
                    sums = archive.names(file.checksum_list or "")
                    if sums is not None and file.path.rsplit("/", 1)[1] in sums:
                        out.append(file)
                    elif archive.exists(file.path):
                        out.append(RemoteFile(file.path))
        return out

    def n_rows(self, path: Path) -> int | None:
        """Rows of the redshift catalogue or query table; None for a redrock file, which is small and read whole."""
        if is_query(path):
            return query_rows(path)
        with opened(path) as hdus:
            return int(hdus["ZCATALOG"].header["NAXIS2"]) if "ZCATALOG" in hdus else None

    def read(
        self,
        path: Path,
        rows: tuple[int, int] | None = None,
        companions: Mapping[str, Path | None] | None = None,
        needed: Iterable[str] = (),
    ) -> pa.Table:
        """Read a redshift catalogue (`zall-pix`, `zpix`), a redrock file by healpix or by tile, or a query table.

        A tile's survey and program are told by its headers, its name, or `tiles-<specprod>.csv` beside it. A query
        table (queryfile.py) has the columns of a redshift catalogue.
        """
        where = f"desi {self.release}: {path}"
        if is_query(path):
            found, n, start = query_columns(path, rows)
            by_name = {name.lower(): fetch for name, fetch in found.items()}
            return self._table(by_name, query_units(path), (start, n), None, needed, where, LACKS)
        reason = f"is this a file of another release than {self.release} ({self.production.specprod})?"
        with opened(path) as hdus:
            if "ZCATALOG" in hdus:
                available, n, start = table_columns(hdus["ZCATALOG"], rows, where)
            else:
                if rows is not None:
                    raise ValueError(f"{where}: a redrock file is read whole; rows {rows[0]}..{rows[1]} were asked")
                available, n = redrock_columns(hdus, path)
                start = 0
                reason = "redrock files do not tell it; read the redshift catalogue (catalog='zcatalog')"
            units = {c.name: c.unit for h in hdus if isinstance(h, fits.BinTableHDU) for c in h.columns if c.unit}
            by_name = {name.lower(): fetch for name, fetch in available.items()}
            if not {"survey", "program"} <= by_name.keys():
                survey, program = survey_and_program(hdus, path, self.production.specprod)
                by_name["survey"] = lambda: np.full(n, survey)
                by_name["program"] = lambda: np.full(n, program)
            pixel = healpix_of_file(hdus, path) if "healpix" not in by_name else None
            return self._table(by_name, units, (start, n), pixel, needed, where, reason)

    def _table(
        self,
        by_name: dict[str, Fetch],
        units: Mapping[str, str],
        rows: tuple[int, int],
        pixel: int | None,
        needed: Iterable[str],
        where: str,
        reason: str,
    ) -> pa.Table:
        """From columns by lower-case name; `rows`: the first one's number in the file, and how many there are."""
        start, n = rows
        refuse_wrong_units(units, {**units_of(self.columns), **UNITS}, where, reason)
        values: dict[str, NDArray[Any]] = {}
        for column in ("target_ra", "target_dec", "pmra", "pmdec", "ref_epoch", "z", "zwarn", "deltachi2"):
            if column not in by_name:
                raise MissingColumn(f"{where} has no column {column.upper()!r}: {reason}")
            values[column] = np.ma.filled(by_name[column](), -1).astype(np.float64 if column != "zwarn" else np.int64)
        values["target_ra"] = np.where(values["target_ra"] == 360, 0.0, values["target_ra"])
        good = (values["zwarn"] == 0) & (values["deltachi2"] > DELTACHI2_GOOD) & np.isfinite(values["z"])
        by_name["good_z"] = lambda: good
        by_name["z_good"] = lambda: np.where(good, values["z"], np.nan)
        if "healpix" not in by_name:
            by_name["healpix"] = lambda: (
                _healpix(values["target_ra"], values["target_dec"]) if pixel is None else np.full(n, pixel)
            )
        # `repeats` finds the primary without it, as it must where the file does not say
        demanded = set(needed) - {"zcat_primary"}
        own = own_columns(by_name, self.columns, n, demanded, where, reason)
        wide = pa.Table.from_arrays(own, schema=pa.schema([c.field() for c in self.columns]))
        return self._with_standard(wide, values, start, where)

    def _with_standard(self, wide: pa.Table, values: Mapping[str, NDArray[Any]], start: int, where: str) -> pa.Table:
        n = wide.num_rows
        survey, program = (wide.column(c).to_numpy() for c in ("survey", "program"))
        targetid = wide.column("targetid").fill_null(-1).to_numpy()
        key, packed, overflow = pack_key(targetid, survey, program)
        row = start + np.arange(n, dtype=np.int64)
        epoch = values["ref_epoch"]
        pmra, pmdec = values["pmra"], values["pmdec"]
        given = np.isfinite(epoch) & (epoch > 0)
        moving = given & np.isfinite(pmra) & np.isfinite(pmdec) & ((pmra != 0) | (pmdec != 0))
        # fibre assignment wrote the night into REF_EPOCH of targets that it could not move: no date of their position
        dated = moving | (given & (epoch <= max(self.epoch_range)))
        unknown = pa.nulls(n, pa.float32())
        standard = [
            pa.array(key, mask=~packed),
            pa.array(values["target_ra"], from_pandas=True),
            pa.array(values["target_dec"], from_pandas=True),
            unknown,
            unknown,
            pa.array(pmra, mask=~moving),
            pa.array(pmdec, mask=~moving),
            pa.array(epoch, mask=~moving),
            pa.array(np.where(dated, epoch, self.epoch_range[0])),
            pa.array(np.where(dated, epoch, self.epoch_range[1])),
            pa.array(np.where(dated, "reference", "interval"), pa.string()),
            pa.array(row),
        ]
        fields = [*STANDARD_SCHEMA, *wide.schema]
        table = pa.Table.from_arrays([*standard, *wide.columns], schema=pa.schema(fields))
        if overflow.any():
            passes = first_failed(self.valid, table).is_null().to_numpy(zero_copy_only=False)
            if (bad := np.flatnonzero(overflow & passes)).size:
                i = bad[0]
                raise ValueError(
                    f"{where} row {row[i]}: TARGETID {targetid[i]} (release {targetid[i] >> 42 & 0xFFFF}) of survey "
                    f"{survey[i]!r}, program {program[i]!r} does not fit the key; wanted a release below 16384, a "
                    f"survey of {', '.join(SURVEY_CODES)} and a program of {', '.join(PROGRAM_CODES)}"
                )
        return table

    def repeats(self, table: pa.Table) -> NDArray[np.int64]:
        """Row of the primary of each row's TARGETID.

        Best first: ZCAT_PRIMARY; ZWARN 0; the larger TSNR2_LRG; the larger DELTACHI2; the smaller key. A total order,
        so the answer does not hang on the order of rows.
        """
        n = table.num_rows
        if n == 0:
            return np.zeros(0, dtype=np.int64)

        def column(name: str, blank: Any) -> NDArray[Any]:
            return np.asarray(table.column(name).combine_chunks().fill_null(blank).to_numpy(zero_copy_only=False))

        targetid = column("targetid", -1)
        order = np.lexsort(
            (
                column("key", -1),
                -column("deltachi2", -np.inf),
                -column("tsnr2_lrg", -np.inf),
                column("zwarn", -1) != 0,
                ~column("zcat_primary", False),
                targetid,
            )
        )
        first = np.concatenate([[True], targetid[order][1:] != targetid[order][:-1]])
        primary = np.empty(n, dtype=np.int64)
        primary[order] = order[first][np.cumsum(first) - 1]
        return primary

    def payload_groups(self, sources: pa.Table, modality: str, reference: Mapping[str, Path]) -> list[PayloadGroup]:
        """The coadd file of each (survey, program, healpix); a source without them is outside the payload."""
        if not self.modality(modality).payload:
            return super().payload_groups(sources, modality, reference)
        rows: dict[tuple[str, str, int], list[int]] = {}
        handles = zip(*(sources.column(c).to_pylist() for c in ("survey", "program", "healpix")), strict=True)
        for i, (survey, program, healpix) in enumerate(handles):
            if survey is not None and program is not None and healpix is not None:
                rows.setdefault((survey, program, healpix), []).append(i)
        return [
            PayloadGroup(np.array(found, dtype=np.int64), {"coadd": healpix_file(self.release, "coadd", *handle)})
            for handle, found in sorted(rows.items())
        ]

    def extract(self, modality: str, sources: pa.Table, files: Mapping[str, Path], lost: frozenset[str]) -> pa.Table:
        """Joined spectra of one coadd file: key, status, flux, ivar, mask, lsf_sigma (docs/contracts.md section 8).

        A target that the file does not hold, or holds without one good pixel, is `not_measured`.
        """
        if not self.modality(modality).payload:
            return super().extract(modality, sources, files, lost)
        n = sources.num_rows
        absent = np.ones(n, dtype=bool)
        if "coadd" in files:
            spectra = read_spectra(files["coadd"], sources.column("targetid").to_numpy())
            absent = np.asarray(spectra["mask"].all(axis=1))
            flux, ivar = (_lists(spectra[c], absent, pa.float32()) for c in ("flux", "ivar"))
            mask = _lists(spectra["mask"], absent, pa.bool_())
            blurred = np.isnan(spectra["lsf_sigma"]).any(axis=1)
            sigma = _lists(spectra["lsf_sigma"], absent | blurred, pa.float32())
        else:
            flux, ivar, sigma = (pa.nulls(n, pa.list_(pa.float32())) for _ in range(3))
            mask = pa.nulls(n, pa.list_(pa.bool_()))
        why = "file_absent" if "coadd" in lost else "not_measured"
        status = pa.array(np.where(absent, why, ""), pa.string(), mask=~absent)
        metadata = {"wavelength_start": str(WAVELENGTH_START), "wavelength_step": str(WAVELENGTH_STEP)}
        table = pa.table(
            {
                "key": sources.column("key"),
                "status": status,
                "flux": flux,
                "ivar": ivar,
                "mask": mask,
                "lsf_sigma": sigma,
            }
        )
        return table.replace_schema_metadata(metadata)


def _lists(values: NDArray[Any], null: NDArray[np.bool_], kind: pa.DataType) -> pa.Array:
    lengths = np.where(null, 0, values.shape[1])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values[~null].reshape(-1), kind), mask=pa.array(null))


def _healpix(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cell of each position as DESI numbers its files, NaN where there is none."""
    on_sky = np.isfinite(ra) & (np.abs(dec) <= 90)
    out = np.full(len(ra), np.nan)
    out[on_sky] = healpy.ang2pix(1 << WORK_ORDER, ra[on_sky], dec[on_sky], nest=True, lonlat=True)
    return out
