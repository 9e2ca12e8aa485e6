"""The DESI Legacy Imaging Surveys: sources and coadded images of DR10, and of DR9 and DR8 by region.

About this release
------------------
Source: legacysurvey.org (pages dr10/files, catalogs, bitmasks, description, issues); files at portal.nersc.gov. Dey et
al. 2019, AJ 157, 168. The data are public; whoever publishes with them is asked to use the acknowledgement at
legacysurvey.org/acknowledgment, which names DECaLS, BASS, MzLS, DECam, NOIRLab and the Gaia and WISE missions.

Quirks
* DR10 is DECam's, the south, alone; the northern sky (Dec > 32.375) is DR9's, without i, through other filters.
* Sweeps hold primary sources alone; tractor files hold all, with BRICK_PRIMARY. Of DR10's sweeps 10.0 had wrong
  sub-blobs: 10.1 is read. DR10's sweeps are boxes of 5 x 5 degrees, older ones of 10 x 5; a box may not exist.
* RA_IVAR is of RA itself, without cos(Dec), per square degree. MASKBITS is int16 before DR10. DUP rows hold no flux.
* Negative fluxes are measurements. A source with FLUX_IVAR 0 was not measured: its flux is 0, or Gaia's prediction.
* Inside large galaxies and clusters (MASKBITS 12, 13) sources are forced to be point-like; `maskbits` keeps the bits.
* Sources of REF_CAT G2, GE, G3 stand where Gaia saw them at REF_EPOCH; others where they were in the mean of their
  exposures. REF_ID is a Gaia DR3 identifier only for GE and G3.
* Coadds are resampled (Lanczos-3), so that neighbouring pixels correlate; fpack has quantised them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skycairn.catalogs.columns import Fetch, own_columns
from skycairn.catalogs.fitsfile import column_units, read_columns, table_rows
from skycairn.catalogs.legacycolumns import COLUMNS, SELECT, VALID, WISE, pack_key, unpack_key
from skycairn.catalogs.legacyfiles import BANDS, LAYOUTS, sweep_box
from skycairn.catalogs.legacyimage import cut_brick, roles
from skycairn.catalogs.queryfile import LACKS, is_query
from skycairn.catalogs.skybox import Boxes, cell_boxes, holding, touching
from skycairn.catalogs.survey import (
    STANDARD_SCHEMA,
    WORK_ORDER,
    Archive,
    Link,
    MissingColumn,
    Modality,
    PayloadGroup,
    RemoteFile,
    Survey,
)
from skycairn.catalogs.units import refuse_wrong_units, units_of
from skycairn.catalogs.viewerimage import FLAG, MOST_PIXELS, PIXEL_ARCSEC, ROLE, Asked, cut_reply

HOLDING = "brickid"
"""A column that only the table of sources has."""
GAIA_CATALOGS = ("G2", "GE", "G3")
GAIA_DR3_CATALOGS = ("GE", "G3")
"""Of these REF_ID is an identifier of Gaia's EDR3, which DR3 kept; G2 (Gaia DR2), T2 and L3 number other things."""
UNITS = {
    **dict.fromkeys(("ra", "dec"), "deg"),
    **dict.fromkeys(("ra_ivar", "dec_ivar"), "1/deg^2"),
    **dict.fromkeys(("pmra", "pmdec"), "mas/yr"),
    **dict.fromkeys(("mjd_min", "mjd_max"), "d"),
}
"""Of the columns that become positions, motions and epochs."""


def epochs(
    columns: Mapping[str, NDArray[Any]], n_rows: int, interval: tuple[float, float], gaia_dr2_epoch: float
) -> dict[str, NDArray[Any]]:
    """Motion and epochs of sources by name of the standard column, NaN where not known; contract 3.

    `columns` has what there is of ref_cat (text), ref_epoch, pmra, pmdec (zeros mean `not known`), mjd_min, mjd_max.
    A source tied to Gaia stands at its reference epoch; where the file has no REF_EPOCH (DR8), G2's is
    `gaia_dr2_epoch`. Others hold between their first and last exposure, or in the release's `interval`.
    """
    nothing = np.full(n_rows, np.nan)
    of = {n: np.asarray(columns.get(n, nothing), dtype=np.float64) for n in ("pmra", "pmdec", "mjd_min", "mjd_max")}
    ref_cat = columns.get("ref_cat", np.full(n_rows, ""))
    if "ref_epoch" in columns:
        reference = np.asarray(columns["ref_epoch"], dtype=np.float64)
        reference = np.where(reference == 0, np.nan, reference)
    else:
        reference = np.where(ref_cat == "G2", gaia_dr2_epoch, np.nan)
    tied = np.isin(ref_cat, GAIA_CATALOGS) & np.isfinite(reference)
    moving = tied & np.isfinite(of["pmra"]) & np.isfinite(of["pmdec"]) & ((of["pmra"] != 0) | (of["pmdec"] != 0))
    dated = ~tied & (of["mjd_min"] > 0) & (of["mjd_max"] >= of["mjd_min"]) & np.isfinite(of["mjd_max"])
    year = {n: 2000 + (of[n] - 51544.5) / 365.25 for n in ("mjd_min", "mjd_max")}
    return {
        "pmra": np.where(moving, of["pmra"], np.nan),
        "pmdec": np.where(moving, of["pmdec"], np.nan),
        "epoch": np.where(moving, reference, np.nan),
        "epoch_min": np.where(tied, reference, np.where(dated, year["mjd_min"], interval[0])),
        "epoch_max": np.where(tied, reference, np.where(dated, year["mjd_max"], interval[1])),
        "epoch_kind": np.select([moving, tied, dated], ["gaia", "reference", "exposures"], "interval"),
    }


def errors(ra_ivar: NDArray[Any], dec_ivar: NDArray[Any], dec: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """One sigma in arcsec from inverse variances in 1/deg^2, RA's without cos(Dec); NaN where there is none."""

    def sigma(ivar: NDArray[Any]) -> NDArray[np.float64]:
        ivar = ivar.astype(np.float64)
        good = np.isfinite(ivar) & (ivar > 0)
        return np.where(good, 3600 / np.sqrt(np.where(good, ivar, 1)), np.nan)

    with np.errstate(invalid="ignore"):
        return {"ra_error": sigma(ra_ivar) * np.cos(np.radians(dec)), "dec_error": sigma(dec_ivar)}


def _text(values: NDArray[Any]) -> NDArray[np.str_]:
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    stripped: NDArray[np.str_] = np.char.strip(values.astype(str))
    return stripped


def _release_of_target(available: Mapping[str, Fetch], where: str) -> Fetch:
    """RELEASE of a table of DESI's targets, which keep TARGETID in its place."""

    def fetch() -> NDArray[np.int64]:
        target, brickid, objid = (available[n]().astype(np.int64) for n in ("targetid", "brickid", "objid"))
        release = (target >> 42) & 0xFFFF
        wrong = (target < 0) | (pack_key(release, brickid, objid) != target)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(f"{where}, row {row}: TARGETID {int(target[row])} is not of its BRICKID and OBJID")
        return release

    return fetch


def gaia_keys(table: pa.Table) -> pa.Array:
    """The Gaia DR3 source that each row was tied to, null where none."""
    tied = pc.is_in(table.column("ref_cat"), pa.array(GAIA_DR3_CATALOGS))
    named = pc.and_(tied, pc.greater(table.column("ref_id"), 0))
    return pc.if_else(pc.fill_null(named, False), table.column("ref_id"), pa.scalar(None, pa.int64())).combine_chunks()


VIEWER_IMAGE = Modality(
    "legacysurvey.viewer_image",
    "tok_legacysurvey_viewer_image",
    "image_uniform",
    unit="nanomaggy",
    shape=(len(BANDS), 160, 160),
    bands=BANDS,
    pixel_arcsec=PIXEL_ARCSEC,
    about="cut-outs of the viewer; the source in the middle of the image; not to be mixed with coadds' pixels",
    flag=FLAG,
)
"""In the place of `legacysurvey.image` where pixels are cut-outs of the viewer."""


class LegacySurvey(Survey):
    """DESI Legacy Imaging Surveys.

    Options: `catalog`, "sweep" (default) or "tractor"; `epoch_range`, the Julian years of the exposures, used where a
    file does not date a source; `gaia_dr2_epoch`, of G2 positions in files without REF_EPOCH; `cutout_pixels`;
    `pixels`, "coadd" (default) or "cutout": instead of `legacysurvey.image`, cut out of the bricks' coadds, the
    modality `legacysurvey.viewer_image`, whose pixels the viewer resampled, without ivar (viewerimage.py).
    """

    name = "legacysurvey"
    rank = 0
    releases = tuple(LAYOUTS)
    columns = COLUMNS
    valid = VALID
    select = SELECT
    footprint = "exact"
    bands = {b: f"flux_{b}" for b in BANDS}  # noqa: RUF012
    links = (Link("gaia", ("dr3", "mmu-dr3"), gaia_keys, "the fit held the source where this Gaia source is"),)
    modalities = (
        Modality(
            "legacysurvey.image",
            "tok_image",
            "image",
            unit="nanomaggy",
            shape=(len(BANDS), 160, 160),
            bands=BANDS,
            pixel_arcsec=0.262,
            about="0.262 arcsec a pixel, north up, east left; the source in pixel 80 of 160",
        ),
        *(
            Modality(
                f"legacysurvey.flux_{b}",
                f"tok_flux_{b}",
                "log",
                f"flux_{b}",
                "nanomaggy",
                ivar=f"flux_ivar_{b}",
                about="as observed, not dereddened; not measured where ivar is 0",
            )
            for b in BANDS + WISE
        ),
        Modality(
            "legacysurvey.shape_r",
            "tok_shape_r",
            "log",
            "shape_r",
            "arcsec",
            ivar="shape_r_ivar",
            about="half-light radius; 0 for PSF",
        ),
        Modality("legacysurvey.shape_e1", "tok_shape_e1", "quantile", "shape_e1", ivar="shape_e1_ivar"),
        Modality("legacysurvey.shape_e2", "tok_shape_e2", "quantile", "shape_e2", ivar="shape_e2_ivar"),
        Modality("legacysurvey.ebv", "tok_ebv", "quantile", "ebv", "mag", about="SFD98"),
    )

    def __init__(
        self,
        release: str,
        *,
        catalog: str = "sweep",
        epoch_range: tuple[float, float] | None = None,
        gaia_dr2_epoch: float = 2015.5,
        cutout_pixels: int = 160,
        pixels: str = "coadd",
    ) -> None:
        super().__init__(
            release,
            catalog=catalog,
            epoch_range=epoch_range,
            gaia_dr2_epoch=gaia_dr2_epoch,
            cutout_pixels=cutout_pixels,
            # keys of tasks hang on options: what was always so has no name among them
            **({} if pixels == "coadd" else {"pixels": pixels}),
        )
        if catalog not in ("sweep", "tractor"):
            raise ValueError(f"legacysurvey: catalog {catalog!r} was asked for; choose 'sweep' or 'tractor'")
        if cutout_pixels < 1:
            raise ValueError(f"legacysurvey: cut-outs of {cutout_pixels} pixels were asked for; wanted at least 1")
        if pixels not in ("coadd", "cutout"):
            raise ValueError(f"legacysurvey: pixels {pixels!r} were asked for; choose 'coadd' or 'cutout'")
        if pixels == "cutout" and cutout_pixels > MOST_PIXELS:
            raise ValueError(
                f"legacysurvey: cut-outs of {cutout_pixels} pixels were asked of the viewer, which makes {MOST_PIXELS} "
                "at most; take fewer (cutout_pixels), or pixels = 'coadd'"
            )
        self.layout = LAYOUTS[release]
        self.catalog = catalog
        self.epoch_range = (float(epoch_range[0]), float(epoch_range[1])) if epoch_range else self.layout.epoch_range
        if not self.epoch_range[0] <= self.epoch_range[1]:
            raise ValueError(f"legacysurvey: epoch_range {self.epoch_range} ends before it begins")
        self.gaia_dr2_epoch = gaia_dr2_epoch
        self.size = cutout_pixels
        self.cutouts = pixels == "cutout"
        image = replace(VIEWER_IMAGE if self.cutouts else self.modalities[0], shape=(len(BANDS), self.size, self.size))
        self.modalities = (image, *type(self).modalities[1:])  # type: ignore[misc]

    @property
    def url(self) -> str:
        """Root of the data release, north and south."""
        return self.layout.url

    def issued(self, keys: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the RELEASE in a key is one of this release and region."""
        return np.isin(unpack_key(keys)[0], self.layout.numbers)

    def reference_files(self) -> Mapping[str, RemoteFile]:
        """`bricks`: all bricks of the sky with their limits; `covered`: those of this region."""
        return {"bricks": RemoteFile(self.layout.bricks), "covered": RemoteFile(self.layout.covered)}

    def catalog_files(self, archive: Archive, cells: Iterable[int]) -> list[RemoteFile]:
        """Sweeps whose box, or tractor files whose brick, touches the cells, of those that the archive lists."""
        wanted = cell_boxes(cells, WORK_ORDER)
        if self.catalog == "sweep":
            names = self._listed(archive, self.layout.sweep_list)
            boxes = {n: box for n in sorted(names) if (box := sweep_box(n)) is not None}
            if not boxes:
                raise ValueError(f"{self.layout.sweep_list}: lists no sweep; is this the release's own checksum list?")
            touched = touching(np.array(list(boxes.values()), dtype=np.float64), wanted)
            return [
                RemoteFile(self.layout.sweep(box), self.layout.sweep_list, "sha256")
                for box, touches in zip(boxes.values(), touched, strict=True)
                if touches
            ]
        paths = {role: archive.local(file.path) for role, file in self.reference_files().items()}
        bricks, limits = _covered(paths, self.layout.bands)
        files = []
        for brick in sorted(bricks[touching(limits, wanted)].tolist()):
            path, checksums = self.layout.tractor(brick), self.layout.tractor_list(brick)
            if path.rsplit("/", 1)[1] in self._listed(archive, checksums):
                files.append(RemoteFile(path, checksums, "sha256"))
        return files

    def _listed(self, archive: Archive, checksum_list: str) -> Mapping[str, str]:
        names = archive.names(checksum_list)
        if names is None:
            raise ValueError(
                f"legacysurvey {self.release}: the archive has no {checksum_list}, which says what was published; "
                f"fetch it from {self.url}, or make it with sha256sum over a folder known to be whole"
            )
        return names

    def n_rows(self, path: Path) -> int:
        """Rows of the file's table, from its header."""
        return table_rows(path, HOLDING)

    def read(
        self,
        path: Path,
        rows: tuple[int, int] | None = None,
        companions: Mapping[str, Path | None] | None = None,
        needed: Iterable[str] = (),
    ) -> pa.Table:
        """Read a sweep, a tractor file, or a query table with their columns (queryfile.py); see `Survey.read`."""
        where = f"legacysurvey {self.release}: {path.name}"
        found, n, units = self._stored(path, rows)
        available = {name.lower(): fetch for name, fetch in found.items()}
        start = rows[0] if rows is not None else 0
        if "release" not in available and {"targetid", "brickid", "objid"} <= set(available):
            available["release"] = _release_of_target(available, where)
        refuse_wrong_units(units, {**units_of(self.columns), **UNITS}, where, "is it of another release?")
        own = dict(
            zip(
                (c.name for c in self.columns),
                own_columns(available, self.columns, n, needed, where, LACKS if is_query(path) else self.layout.lacks),
                strict=True,
            )
        )
        for name in ("ra", "dec"):
            if name not in available:
                raise MissingColumn(f"{where} has no column {name.upper()!r}: is this a catalogue of sources?")
        ra, dec = (available[c]().astype(np.float64) for c in ("ra", "dec"))
        parts = [own[c] for c in ("release", "brickid", "objid")]
        blank = np.any([c.is_null().to_numpy(zero_copy_only=False) for c in parts], axis=0)
        try:
            release, brickid, objid = (c.fill_null(0).to_numpy() for c in parts)
            key = pack_key(release, brickid, objid, start)
        except ValueError as error:
            raise ValueError(f"{where}, {error}") from error
        nothing = np.full(n, np.nan)
        dating = ("ref_epoch", "pmra", "pmdec", "mjd_min", "mjd_max")
        motion: dict[str, NDArray[Any]] = {c: available[c]() for c in dating if c in available}
        if "ref_cat" in available:
            motion["ref_cat"] = _text(available["ref_cat"]())
        ivar = [available[c]() if c in available else nothing for c in ("ra_ivar", "dec_ivar")]
        standard: dict[str, NDArray[Any]] = {
            "key": key,
            "ra": np.where(ra == 360, 0.0, ra),
            "dec": dec,
            **errors(ivar[0], ivar[1], dec),
            **epochs(motion, n, self.epoch_range, self.gaia_dr2_epoch),
            "row": np.arange(start, start + n),
        }
        arrays = []
        for field in STANDARD_SCHEMA:
            values = standard[field.name]
            null = np.isnan(values) if values.dtype.kind == "f" and field.name not in ("ra", "dec") else None
            null = blank if field.name == "key" else null
            arrays.append(pa.array(values, mask=null).cast(field.type))
        schema = pa.schema([*STANDARD_SCHEMA, *(c.field() for c in self.columns)])
        return pa.Table.from_arrays([*arrays, *own.values()], schema=schema)

    def _stored(self, path: Path, rows: tuple[int, int] | None) -> tuple[Mapping[str, Fetch], int, Mapping[str, str]]:
        """Columns of a catalogue file by name, how many rows they have, and their units."""
        return *read_columns(path, rows, HOLDING), column_units(path, HOLDING)

    def payload_groups(self, sources: pa.Table, modality: str, reference: Mapping[str, Path]) -> list[PayloadGroup]:
        """One group a brick, in the order of brick names; positions without a brick's name are looked up.

        Where pixels are cut-outs of the viewer: one group a position, which has one file.
        """
        if not self.modality(modality).payload:
            return super().payload_groups(sources, modality, reference)
        brick = self._bricks(sources, reference)
        if self.cutouts:
            return self._cutout_groups(sources, np.flatnonzero(brick != ""))
        groups = []
        for name in np.unique(brick[brick != ""]).tolist():
            checksums = self.layout.coadd_list(name)
            files = {
                f"{product}-{band}" if band else product: RemoteFile(
                    self.layout.coadd(name, product, band), checksums, "sha256"
                )
                for product, band in roles(self.layout.bands)
            }
            groups.append(PayloadGroup(np.flatnonzero(brick == name), files))
        return groups

    def _bricks(self, sources: pa.Table, reference: Mapping[str, Path]) -> NDArray[np.str_]:
        """Name of each source's brick; empty where there is none."""
        brick = np.array([n or "" for n in sources.column("brickname").to_pylist()], dtype=np.str_)
        forced = brick == ""
        if forced.any():
            names, limits = _covered(reference, self.layout.bands)
            ra, dec = (sources.column(c).to_numpy()[forced] for c in ("ra", "dec"))
            index = holding(limits, ra, dec)
            brick = brick.astype(object)
            brick[forced] = [names[i] if i >= 0 else "" for i in index]
            brick = brick.astype(np.str_)
        return brick

    def _cutout_groups(self, sources: pa.Table, rows: NDArray[np.int64]) -> list[PayloadGroup]:
        ra, dec = (sources.column(c).to_pylist() for c in ("ra", "dec"))
        by_path: dict[str, list[int]] = {}
        for i in rows.tolist():
            asked = Asked.about(self.layout.viewer_layer, "".join(self.layout.bands), self.size, ra[i], dec[i])
            by_path.setdefault(asked.path, []).append(i)
        return [PayloadGroup(np.array(own, np.int64), {ROLE: RemoteFile(p)}) for p, own in sorted(by_path.items())]

    def extract(self, modality: str, sources: pa.Table, files: Mapping[str, Path], lost: frozenset[str]) -> pa.Table:
        """Cut-outs of one brick's sources (legacyimage.py), or of one position by the viewer (viewerimage.py)."""
        if not self.modality(modality).payload:
            return super().extract(modality, sources, files, lost)
        if self.cutouts:
            return cut_reply(sources, files, self.layout.viewer_layer, self.layout.bands, self.size)
        return cut_brick(sources, files, lost, self.size)

    def coverage(self, reference: Mapping[str, Path]) -> Boxes:
        """Boxes of the bricks with exposures in any band."""
        return _covered(reference, self.layout.bands)[1]


def _covered(reference: Mapping[str, Path], bands: Iterable[str]) -> tuple[NDArray[np.str_], Boxes]:
    """Names and limits of the bricks that have exposures in any of the bands."""
    for role in ("bricks", "covered"):
        if role not in reference:
            raise ValueError(f"legacysurvey: the table of bricks ({role!r} of the reference files) is wanted here")
    table = _columns(reference["bricks"], ("brickname", "ra1", "ra2", "dec1", "dec2"))
    region = _columns(reference["covered"], ("brickname", *(f"nexp_{b}" for b in bands)))
    exposed = np.logical_or.reduce([region[f"nexp_{b}"] > 0 for b in bands])
    covered = _text(region["brickname"])[exposed]
    names = _text(table["brickname"])
    strange = np.setdiff1d(covered, names)
    if len(strange):
        raise ValueError(
            f"{reference['covered']}: brick {strange[0]!r} is not in {reference['bricks']}; mixed releases?"
        )
    inside = np.isin(names, covered)
    limits = np.stack([table[c][inside] for c in ("ra1", "ra2", "dec1", "dec2")], axis=1)
    return names[inside], limits.astype(np.float64)


def _columns(path: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    found = {name.lower(): fetch for name, fetch in read_columns(path, None, "brickname")[0].items()}
    missing = [n for n in names if n not in found]
    if missing:
        raise MissingColumn(f"{path} has no column {missing[0].upper()!r}; is it a table of bricks of this release?")
    return {n: found[n]() for n in names}
