"""The Hyper Suprime-Cam Subaru Strategic Program: sources and coadded images of the wide layer of PDR3.

About this release
------------------
Source: hsc-release.mtk.nao.ac.jp (doc: database, faq). Aihara et al. 2022, PASJ 74, 247 (arXiv:2108.13045). Files need
a free account there, and its terms say what may be passed on: read them before publishing pixels. The catalogue is a
database: whoever made these tables asked it for one a tract (`sql/pdr3_wide/forced-<tract>.fits`, from pdr3_wide.forced
joined with forced2 and forced3), and wrote their checksums beside them (sha256sum.txt). The coadds have no checksums.

Quirks
* Coadds are in counts of AB zero point 27, the database's fluxes in nJy (31.4). Both become nanomaggies here (22.5). A
  table whose fluxes and magnitudes disagree is refused.
* A magnitude is null where the flux is not positive; the flux stays.
* Positions have no errors, no motion and no date: they hold somewhere in the survey's years (`epoch_range`, a setting,
  not verified).
* r2 and i2 replaced r and i during the survey; the coadds mix them.
* Moments (`sdssshape`) are taken to be in arcsec^2, as MultimodalUniverse takes them; the database does not say so.
* `patch` is packed as p1 * 100 + p2. One spot of the sky may lie in two patches and in two tracts: `isprimary` decides.
* Magnitudes are as observed: `a_*` is to be subtracted.
* Noise of a coadd is correlated: its true sigma is some 1.12 times that of the inverse variance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skycairn.catalogs.columns import Fetch, own_columns
from skycairn.catalogs.fitsfile import column_units, read_columns, table_rows
from skycairn.catalogs.hsccolumns import (
    COLUMNS,
    DERIVED,
    MOMENTS,
    PUBLISHED,
    SELECT,
    VALID,
    derived,
    refuse_other_units,
)
from skycairn.catalogs.hscfiles import (
    BANDS,
    NEIGHBOURS,
    ROOT,
    SQL_LIST,
    TRACT_PATCHES,
    calexp_path,
    forced_path,
    neighbour,
    read_patches,
    tract_of,
    tracts_touching,
)
from skycairn.catalogs.hscimage import KNOWN_PLANES, PLANES, ZERO_POINT, cut_patch, role
from skycairn.catalogs.survey import (
    STANDARD_SCHEMA,
    Archive,
    MissingColumn,
    Modality,
    PayloadGroup,
    RemoteFile,
    Survey,
)
from skycairn.catalogs.units import refuse_wrong_units, units_of

HOLDING = "object_id"
"""A column that only the table of sources has."""
EPOCH_RANGE = (2014.2, 2020.0)
"""Julian years of the observations; not verified, a setting."""
_PLANE = "0.168 arcsec a pixel, on the tract's tangent plane"
_PIPELINE = (
    "it has COORD_RA, as the pipeline's own catalogues do, which are in radians, pixels and counts; wanted the "
    "database's table of pdr3_wide.forced"
)
_SUBSET = "select it in the SQL (pdr3_wide.forced, forced2, forced3)"


class Hsc(Survey):
    """HSC-SSP, wide layer.

    Options: `cutout_pixels`; `zero_point`, of coadds without FLUXMAG0; `mask_planes` that make a pixel bad;
    `epoch_range`, the Julian years of the observations; `join_patches`: whether a patch's neighbours are named and
    read for cut-outs over its edge (no source of a release with 100 pixels of overlap needs them at 160 pixels).
    """

    name = "hsc"
    rank = 1
    releases = ("pdr3-wide",)
    columns = COLUMNS
    valid = VALID
    select = SELECT
    footprint = "occupied"
    bands = {b: f"flux_{b}" for b in BANDS}  # noqa: RUF012
    modalities = (
        Modality(
            "hsc.image",
            "tok_image_hsc",
            "image",
            unit="nanomaggy",
            shape=(len(BANDS), 160, 160),
            bands=BANDS,
            pixel_arcsec=0.168,
            about=f"{_PLANE}; the source in pixel 80 of 160",
        ),
        *(
            Modality(
                f"hsc.mag_{b}",
                f"tok_mag_{b}",
                "quantile",
                f"{b}_cmodel_mag",
                "mag",
                error=f"{b}_cmodel_magerr",
                about="AB, cmodel, as observed, not dereddened; null where the flux is not positive",
            )
            for b in BANDS
        ),
        *(Modality(f"hsc.a_{b}", f"tok_a_{b}", "quantile", f"a_{b}", "mag", about="extinction") for b in BANDS),
        *(
            Modality(
                f"hsc.shape{m}",
                f"tok_shape{m}",
                "quantile",
                f"i_sdssshape_shape{m}",
                "arcsec^2",
                about="second moment in i, PSF included; the unit is not verified (AION-1 may have had pixels^2)",
            )
            for m in MOMENTS
        ),
    )

    def __init__(
        self,
        release: str,
        *,
        cutout_pixels: int = 160,
        zero_point: float = ZERO_POINT,
        mask_planes: Iterable[str] = PLANES,
        epoch_range: tuple[float, float] = EPOCH_RANGE,
        join_patches: bool = True,
    ) -> None:
        if isinstance(mask_planes, str):
            raise ValueError(f"hsc: mask_planes is {mask_planes!r}, wanted a list of names, as ['BAD', 'SAT']")
        self.planes = tuple(p.upper().removeprefix("MP_") for p in mask_planes)
        if unknown := sorted(set(self.planes) - set(KNOWN_PLANES)):
            raise ValueError(f"hsc: there is no mask plane {unknown[0]}; choose of {', '.join(KNOWN_PLANES)}")
        self.epoch_range = (float(epoch_range[0]), float(epoch_range[1]))
        super().__init__(
            release,
            cutout_pixels=cutout_pixels,
            zero_point=zero_point,
            mask_planes=self.planes,
            epoch_range=self.epoch_range,
            join_patches=join_patches,
        )
        if cutout_pixels < 1:
            raise ValueError(f"hsc: cut-outs of {cutout_pixels} pixels were asked for; wanted at least 1")
        if not self.epoch_range[0] <= self.epoch_range[1]:
            raise ValueError(f"hsc: epoch_range {self.epoch_range} ends before it begins")
        if not np.isfinite(zero_point):
            raise ValueError(f"hsc: zero_point is {zero_point}, wanted the AB magnitude of one count")
        self.size, self.zero_point, self.join_patches = cutout_pixels, float(zero_point), join_patches
        image = replace(
            self.modalities[0],
            shape=(len(BANDS), self.size, self.size),
            about=f"{_PLANE}; the source in pixel {self.size // 2} of {self.size}",
        )
        self.modalities = (image, *type(self).modalities[1:])  # type: ignore[misc]

    @property
    def url(self) -> str:
        """Root of the public archive; it asks for an account."""
        return ROOT

    def reference_files(self) -> Mapping[str, RemoteFile]:
        """`tract_patches`: the list of tracts and patches with their corners."""
        return {"tract_patches": RemoteFile(TRACT_PATCHES)}

    def catalog_files(self, archive: Archive, cells: Iterable[int]) -> list[RemoteFile]:
        """Tables of the tracts that touch the cells, of those that the checksum list names, in the order of tracts."""
        names = archive.names(SQL_LIST)
        if names is None:
            raise ValueError(
                f"hsc {self.release}: the archive has no {SQL_LIST}, which says what the database gave; make it with "
                "sha256sum over the folder of tables when all of them are there"
            )
        there = sorted(t for n in names if (t := tract_of(n)) is not None)
        if not there:
            raise ValueError(f"{SQL_LIST}: lists no table forced-<tract>.fits; is it the list of the right folder?")
        where = archive.local(TRACT_PATCHES)
        boxes = read_patches(where).boxes
        strange = [t for t in there if t not in boxes]
        if strange:
            raise ValueError(
                f"{SQL_LIST}: names {forced_path(strange[0])}, but {where} has no tract {strange[0]}; "
                "is it the list of another layer?"
            )
        touched = tracts_touching({t: boxes[t] for t in there}, cells)
        return [RemoteFile(forced_path(t), SQL_LIST, "sha256") for t in touched]

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
        """Read a table of forced photometry; see `Survey.read`."""
        where = f"hsc {self.release}: {path.name}"
        found, n, written = self._stored(path, rows)
        available = {name.lower(): fetch for name, fetch in found.items()}
        start = rows[0] if rows is not None else 0
        asked = set(needed) - {c.name for c in DERIVED}
        if {c.name for c in DERIVED} & set(needed):
            asked |= {f"{b}_cmodel_{c}" for b in BANDS for c in ("flux", "fluxerr")}
        for name in ("ra", "dec"):
            if name not in available:
                own_form = any(c.startswith("coord_ra") for c in available)
                raise MissingColumn(f"{where} has no column {name.upper()!r}: {_PIPELINE if own_form else _SUBSET}")
        if "object_id" in available and (kind := available["object_id"]().dtype).kind not in "iu":
            raise ValueError(f"{where}: object_id is {kind}, wanted integers: a key never goes through float")
        units = {**units_of(PUBLISHED), "ra": "deg", "dec": "deg"}
        refuse_wrong_units(written, units, where, "select it in the SQL as the database has it")
        arrays = own_columns(available, PUBLISHED, n, asked, where, _SUBSET)
        own = {c.name: array for c, array in zip(PUBLISHED, arrays, strict=True)}
        for name in own:
            if f"{name}_isnull" in available:
                null = available[f"{name}_isnull"]().astype(bool)
                own[name] = pc.if_else(pa.array(null), pa.scalar(None, own[name].type), own[name])
        refuse_other_units(own, where, start)
        own |= derived(own)
        ra, dec = (available[c]().astype(np.float64) for c in ("ra", "dec"))
        for name, values in (("ra", ra), ("dec", dec)):
            if f"{name}_isnull" in available:
                values[available[f"{name}_isnull"]().astype(bool)] = np.nan
        # some writers put a negative number where the database has null
        identity = pc.if_else(pc.greater(own["object_id"], 0), own["object_id"], pa.scalar(None, pa.int64()))
        standard = {
            "key": identity,
            "ra": pa.array(np.where(ra == 360, 0.0, ra)),
            "dec": pa.array(dec),
            "epoch_min": pa.array(np.full(n, self.epoch_range[0])),
            "epoch_max": pa.array(np.full(n, self.epoch_range[1])),
            "epoch_kind": pa.array(["interval"] * n, pa.string()),
            "row": pa.array(np.arange(start, start + n, dtype=np.int64)),
        }
        arrays = [standard.get(f.name, pa.nulls(n, f.type)) for f in STANDARD_SCHEMA]
        arrays += [own[c.name] for c in self.columns]
        schema = pa.schema([*STANDARD_SCHEMA, *(c.field() for c in self.columns)])
        return pa.Table.from_arrays(arrays, schema=schema)

    def _stored(self, path: Path, rows: tuple[int, int] | None) -> tuple[Mapping[str, Fetch], int, Mapping[str, str]]:
        """Columns of a catalogue file by name, how many rows they have, and their units."""
        return *read_columns(path, rows, HOLDING), column_units(path, HOLDING)

    def payload_groups(self, sources: pa.Table, modality: str, reference: Mapping[str, Path]) -> list[PayloadGroup]:
        """One group a patch, in the order of tracts and patches; positions without a patch are looked up."""
        if not self.modality(modality).payload:
            return super().payload_groups(sources, modality, reference)
        tract, patch = (np.asarray(pc.fill_null(sources.column(c), -1), dtype=np.int64) for c in ("tract", "patch"))
        forced = (tract < 0) | (patch < 0)
        tract, patch = np.where(forced, -1, tract), np.where(forced, -1, patch)
        if forced.any():
            if "tract_patches" not in reference:
                raise ValueError("hsc: the list of tracts ('tract_patches' of the reference files) is wanted here")
            patches = read_patches(reference["tract_patches"])
            at = patches.holding(*(sources.column(c).to_numpy()[forced] for c in ("ra", "dec")))
            tract[forced] = np.where(at >= 0, patches.tract[at], -1)
            patch[forced] = np.where(at >= 0, patches.patch[at], -1)
        groups = []
        owned: NDArray[np.int64] = np.unique(np.stack([tract, patch], axis=1)[tract >= 0], axis=0)
        for t, p in owned.tolist():
            files = {role(b): RemoteFile(calexp_path(b, t, p)) for b in BANDS}
            for dx, dy in NEIGHBOURS if self.join_patches else ():
                if (beside := neighbour(p, dx, dy)) is not None:
                    files |= {role(b, dx, dy): RemoteFile(calexp_path(b, t, beside)) for b in BANDS}
            groups.append(PayloadGroup(np.flatnonzero((tract == t) & (patch == p)), files))
        return groups

    def extract(self, modality: str, sources: pa.Table, files: Mapping[str, Path], lost: frozenset[str]) -> pa.Table:
        """Cut-outs of the sources of one patch; see hscimage.py."""
        if not self.modality(modality).payload:
            return super().extract(modality, sources, files, lost)
        return cut_patch(sources, files, lost, self.size, self.zero_point, self.planes)
