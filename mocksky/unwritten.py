"""What the surveys would write of a mock sky, kept in memory: their columns, and the pixels and spectra of a patch.

The same measurements as `build` writes for the same tier and seed, but for what a file does to them: images are not
quantised (fpack keeps steps of a 16th of the noise), and numbers are not spelled out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from astropy.io import fits
from numpy.typing import NDArray

from skycairn.mocksky import (
    coadd,
    desi,
    desi_columns,
    dirt,
    gaia,
    gaia_columns,
    hsc,
    hscimage,
    legacysurvey,
    legacytables,
    sdss,
    sdss_columns,
    sed,
    truth,
)
from skycairn.mocksky.build import brick_of_everything, source_ids
from skycairn.mocksky.exposures import Exposures
from skycairn.mocksky.fitsfile import TableColumn
from skycairn.mocksky.hscskymap import OVERLAP_PIXELS, Tract, tracts
from skycairn.mocksky.patches import TIERS, Tier, in_desi, in_sdss
from skycairn.mocksky.replica import replica, seed_of

I64 = NDArray[np.int64]
Rows = Mapping[str, NDArray[Any]]
NOWHERE = Path()
BITS = {"SAT": 1, "NO_DATA": 2}
"""Mask planes of HSC's images here; those that are not named stay out."""


class Shown(NamedTuple):
    """Row `row[k]` of a survey shows the true thing `uid[k]`."""

    row: I64
    uid: I64


class Images(NamedTuple):
    """Images on one grid."""

    name: str
    "brick, or number of the tract"
    header: fits.Header
    layers: dict[str, NDArray[Any]]
    "by the role that the survey's reader gives them"
    lost: frozenset[Any]
    "roles whose file is listed and not there, or patches of a tract one of whose files is"


class Spectra(NamedTuple):
    """Spectra of one file."""

    row: I64
    "of the survey's columns"
    arrays: dict[str, Any]
    "as the file has them"
    lost: bool
    "the file is listed and not there"


@dataclass(frozen=True)
class Sky:
    """A tier observed. `columns`, by survey and by the archive's own name, typed as in its files."""

    tier: Tier
    seed: int
    rows: dict[str, NDArray[Any]]
    "the truth"
    kept: dict[str, NDArray[Any]]
    "the truth table, where single precision is kept"
    looks: list[Exposures]
    columns: dict[str, dict[str, NDArray[Any]]]
    shown: dict[str, Shown]
    patch: dict[str, NDArray[np.int32]]
    "number of the patch that each row lies in"
    targets: dict[str, NDArray[Any]]
    "DESI's fibres"
    plates: list[sdss.Plate]
    fibres: list[dict[str, NDArray[Any]]]
    "of each plate"


def observe(tier: Tier, seed: int) -> Sky:
    """Draw the truth of a tier with pixels and observe it: all catalogues, no image and no spectrum but Gaia's."""
    rows = truth.assemble(tier, seed)
    kept = sed.rows_of(truth.table(rows))
    held = gaia.observe(kept, gaia.Options(first_source=tier.first_source), seed)
    t, _ = desi.assign(
        kept, _desi(tier), seed, in_desi(tier, rows["ra"], rows["dec"], rows["patch"]), brick_of_everything(tier, rows)
    )
    plated = in_sdss(tier, rows["ra"], rows["dec"], rows["patch"])
    plates, fibres, _ = sdss.plug(kept, _sdss(tier), seed, plated, tier.first_plate)
    tables, found, _ = hsc.catalogue(tier, tracts(tier), rows, seed)
    rows["gaia_source_id"] = source_ids(rows["uid"], gaia.truth_table(held))
    looks = legacysurvey.exposures(tier, rows, seed)
    catalogue = legacysurvey.observe(tier, rows, looks, seed)
    v = catalogue.values
    brick_patch = {b.brickid: b.patch for b in tier.bricks}
    sky_patch = {t.number: t.sky_patch for t in tracts(tier)}
    columns = {
        "legacysurvey": stored(legacytables.SWEEP, v, len(catalogue.dirt)),
        "hsc": _stacked([stored(hsc.COLUMNS, x, len(x["object_id"])) for x in tables.values()], hsc.COLUMNS),
        "gaia": _gaia(held, seed, tier.loses_xp),
        "desi": _typed(desi_columns.ZCATALOG, t),
        "sdss": stored(sdss_columns.columns(sdss_columns.SPECOBJ), fibres, len(fibres["uid"]) if fibres else 0),
    }
    place = {int(k): i for i, k in enumerate(columns["hsc"]["object_id"])}
    shown = {
        "legacysurvey": Shown(catalogue.row, catalogue.uid),
        "hsc": Shown(np.array([place[k] for _, k, *_ in found], np.int64), np.array([u for u, *_ in found], np.int64)),
        "gaia": _own(held.source["uid"]),
        "desi": _own(t["uid"]),
        "sdss": _own(fibres["uid"] if fibres else np.zeros(0, np.int64)),
    }
    of_pixel = dict(zip(t["HEALPIX"].tolist(), rows["patch"][t["uid"] - 1].tolist(), strict=True))
    of_pixel |= {
        h: int(rows["patch"][u - 1]) for h, u in zip(t["HEALPIX"].tolist(), t["uid"].tolist(), strict=True) if u
    }
    patch = {
        "legacysurvey": _numbers(brick_patch[int(b)] for b in v["BRICKID"]),
        "hsc": _numbers(sky_patch[int(n)] for n in columns["hsc"]["tract"]),
        "gaia": rows["patch"][held.source["uid"] - 1],
        "desi": _numbers(of_pixel[h] for h in t["HEALPIX"].tolist()),
        "sdss": rows["patch"][fibres["row"]] if fibres else _numbers(()),
    }
    return Sky(tier, seed, rows, kept, looks, columns, shown, patch, t, plates, sdss.parts_of(plates, fibres))


def _desi(tier: Tier) -> desi.Options:
    return desi.Options(True, False, tier.desi_completeness)


def _sdss(tier: Tier) -> sdss.Options:
    return sdss.Options(stars=tier.sdss_stars)


def stored(columns: Iterable[TableColumn], values: Rows, n: int) -> dict[str, NDArray[Any]]:
    """Columns as a FITS table keeps them: each of its type, zeros or blanks where there are no values."""
    out = {}
    for column in columns:
        out[column.name] = np.zeros((n, *column.shape), column.dtype)
        if column.name in values:
            out[column.name][...] = values[column.name]
    return out


def _typed(columns: str, values: Rows) -> dict[str, NDArray[Any]]:
    dtype, n = desi_columns.dtype_of(columns), len(values["uid"])
    out = {}
    for name in dtype.names or ():
        kind = dtype[name]
        out[name] = np.zeros((n, *kind.shape), kind.base)
        if name in values:
            out[name][...] = values[name]
    return out


def _stacked(tables: list[dict[str, NDArray[Any]]], columns: Iterable[TableColumn]) -> dict[str, NDArray[Any]]:
    return {c.name: np.concatenate([np.zeros(0, c.dtype), *(t[c.name] for t in tables)]) for c in columns}


def _gaia(held: gaia.Held, seed: int, lose_file: bool) -> dict[str, NDArray[Any]]:
    """Columns of GaiaSource and of the XP files, and `held`: which sources have a row in one that is there."""
    n = len(held.dirt)
    out = dict(held.columns)
    kinds = {c.split(":")[0]: c.split(":")[1] for c in gaia_columns.GAIA_SOURCE.split()}
    # text holds every digit of a number of single precision, and no more
    out |= {k: v.astype(np.float32) for k, v in out.items() if kinds.get(k) == "f4"}
    out |= {"ref_epoch": np.full(n, 2016.0), "held": np.zeros(n, bool)}
    for band in ("bp", "rp"):
        out |= {f"{band}_coefficients": np.full((n, 55), np.nan), f"{band}_n_relevant_bases": np.full(n, np.nan)}
        out[f"{band}_coefficient_errors"] = np.full((n, 55), np.nan)
    for rows, bands in gaia.spectra(held, seed, lose_file):
        out["held"][rows] = True
        for band, x in bands.items():
            there = (held.dirt[rows] != "xp without bp") | (band == "rp")
            at = rows[there]
            out[f"{band}_coefficients"][at] = x.value[there]
            out[f"{band}_coefficient_errors"][at] = x.error[there]
            out[f"{band}_n_relevant_bases"][at] = x.relevant[there]
    return out


def _own(uid: NDArray[Any]) -> Shown:
    real = np.flatnonzero(uid > 0)
    return Shown(real, uid[real].astype(np.int64))


def _numbers(values: Iterable[int]) -> NDArray[np.int32]:
    return np.fromiter(values, np.int32)


@lru_cache(maxsize=1)
def replica_sky(tier: str, seed: int, number: int, centres: tuple[tuple[float, float], ...]) -> Sky:
    """A replica of a tier with its patches near these centres, observed; the last one is kept, for its next patch."""
    return observe(replica(TIERS[tier], number, centres, seed), seed_of(seed, number))


def look(tier: str, seed: int, number: int, centres: tuple[tuple[float, float], ...], patch: int) -> View:
    """One patch, by its place among the tier's, of a replica."""
    return View(replica_sky(tier, seed, number, centres), TIERS[tier].patches[patch].number)


# ---------------------------------------------------------------------------------------------------- a patch


@dataclass(frozen=True)
class View:
    """One patch of a sky, and what all surveys have of it."""

    sky: Sky
    number: int
    "of the patch"

    def rows_of(self, survey: str) -> I64:
        """Rows of the survey's columns that lie here."""
        return np.flatnonzero(self.sky.patch[survey] == self.number)

    def columns(self, survey: str) -> dict[str, NDArray[Any]]:
        """The survey's columns here."""
        rows = self.rows_of(survey)
        return {name: values[rows] for name, values in self.sky.columns[survey].items()}

    def shown(self, survey: str) -> Shown:
        """Which true things the rows of `columns` show."""
        rows, shown = self.rows_of(survey), self.sky.shown[survey]
        at = np.searchsorted(rows, shown.row)
        here = (at < len(rows)) & (rows[np.minimum(at, len(rows) - 1)] == shown.row) if len(rows) else shown.row < 0
        return Shown(at[here].astype(np.int64), shown.uid[here])

    def truth(self) -> pa.Table:
        """The truth table's rows here."""
        mine = np.flatnonzero(self.sky.rows["patch"] == self.number)
        return truth.table({name: self.sky.rows[name][mine] for name in truth.SCHEMA.names})

    def boxes(self) -> NDArray[np.float64]:
        """Boxes of the bricks: ra_min, ra_max, dec_min, dec_max."""
        bricks = [b for b in self.sky.tier.bricks if b.patch == self.number]
        return np.array([[b.ra1, b.ra2, b.dec1, b.dec2] for b in bricks], dtype=np.float64)

    def bricks(self) -> Iterator[Images]:
        """The Legacy Survey's images of each brick."""
        spoiled = dirt.files(self.sky.tier)
        for look in self.sky.looks:
            brick = look.brick
            if brick.patch != self.number:
                continue
            header = coadd.header(look, "image", "r")
            header["NAXIS1"] = header["NAXIS2"] = brick.width
            if brick.name == spoiled.absent_z:
                yield Images(brick.name, header, {}, frozenset({"image-z"}))
                continue
            around = coadd.around(self.sky.rows, look)
            painted = coadd.pixels(coadd.Task(NOWHERE, NOWHERE, look, around, self.sky.seed, False), whole=False)
            layers: dict[str, NDArray[Any]] = {"maskbits": painted.bits}
            for band, layer in painted.bands.items():
                layers |= {f"{product}-{band}": values for product, values in layer._asdict().items()}
            yield Images(brick.name, header, layers, frozenset())

    def planes(self) -> Iterator[Images]:
        """HSC's images of each tract, its patches joined: counts, variance, and bits as of `BITS`."""
        tier = self.sky.tier
        here = {t.number for t in tracts(tier) if t.sky_patch == self.number}
        every = hscimage.tasks(NOWHERE, tier, self.sky.rows, self.sky.seed)
        for number in sorted(here):
            mine = [task for task in every if task.tract.number == number]
            spoiled = mine[0].dirt.absent
            lost = {number_of(task) for task in mine if (number, number_of(task)) == spoiled}
            yield _joined(mine, frozenset(lost))

    def coadds(self) -> Iterator[Spectra]:
        """DESI's coadds: `flux`, `ivar`, `mask` by arm."""
        t, tier = self.sky.targets, self.sky.tier
        files = desi.group(t)
        absent = desi.lose_file(files, {"dirt": t["dirt"].copy()})
        sources, place = desi.sources_of(self.sky.kept), desi.place_of(self.sky.kept)
        for name, (at, _) in files.items():
            if self.sky.patch["desi"][at[0]] == self.number:
                fibres = {k: v[at] for k, v in t.items()}
                arms = desi.arms(name, fibres, sources, place, _desi(tier), self.sky.seed)
                arrays = {what: {arm: x[what] for arm, x in arms.items()} for what in ("flux", "ivar", "mask")}
                yield Spectra(at, arrays, name == absent)

    def plates(self) -> Iterator[Spectra]:
        """SDSS's plates: `flux`, `ivar`, `and_mask` and `loglam`."""
        start = 0
        for plate, fibres in zip(self.sky.plates, self.sky.fibres, strict=True):
            at = start + np.arange(len(fibres["uid"]))
            start += len(at)
            if self.sky.patch["sdss"][at[0]] == self.number:
                s = sdss.spectra(plate, fibres, self.sky.kept, _sdss(self.sky.tier), self.sky.seed)
                loglam = s.coeff0 + 1e-4 * np.arange(len(s.wavelength))
                arrays = {"flux": s.flux, "ivar": s.ivar, "and_mask": s.and_mask, "loglam": loglam}
                yield Spectra(at, arrays, plate.absent)


def number_of(task: hscimage.Task) -> int:
    """Number of the task's patch of its tract."""
    return task.tract.patch_number(task.column, task.row)


def _joined(tasks: list[hscimage.Task], lost: frozenset[int]) -> Images:
    t: Tract = tasks[0].tract
    shape = t.rows * t.side + 2 * OVERLAP_PIXELS, t.columns * t.side + 2 * OVERLAP_PIXELS
    layers: dict[str, NDArray[Any]] = {}
    painted = [(task, dict(hscimage.pixels(task))) for task in tasks]
    # rims first, so that every pixel is of the patch that owns it
    for cut, (task, bands) in product((0, OVERLAP_PIXELS), painted):
        own = slice(cut, t.width - cut), slice(cut, t.width - cut)
        top, left = task.row * t.side + cut, task.column * t.side + cut
        at = slice(top, top + t.width - 2 * cut), slice(left, left + t.width - 2 * cut)
        for band, layer in bands.items():
            bits = sum(np.where(layer.planes[p], np.int32(bit), np.int32(0)) for p, bit in BITS.items())
            for name, values in (("image", layer.image), ("variance", layer.variance), ("mask", bits)):
                kind = np.int32 if name == "mask" else np.float32
                full = layers.setdefault(f"{name}-{band}", np.zeros(shape, kind))
                full[at] = np.asarray(values)[own]
    header = hscimage.wcs_cards(hscimage.local_wcs(t, 0, 0))
    header["NAXIS1"], header["NAXIS2"] = shape[1], shape[0]
    return Images(str(t.number), header, layers, lost)
