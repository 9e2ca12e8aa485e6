"""HSC PDR3 wide of the mock sky: what its database says of every source, by tract, and who is in it.

Fluxes are the true ones in HSC's own filters plus noise of the variance that the errors say; nJy. Positions are of the
coadds' mean epoch. HSC sees sharper than the Legacy Survey: members of a blend that lie more than 0.6 arcsec apart are
two sources. A source in the overlap of two patches or tracts is listed by both, primary in one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from skycairn.catalogs.hscfiles import SQL_LIST, TRACT_PATCHES, forced_path
from skycairn.mocksky import morphology, sed
from skycairn.mocksky.fitsfile import TableColumn, write_checksums, write_table
from skycairn.mocksky.hscskymap import CUT_IN_TWO, FIRST_TRACT, PIXEL_ARCSEC, Tract, patch_list, tracts
from skycairn.mocksky.legacysurvey import TRUTH
from skycairn.mocksky.patches import Tier
from skycairn.mocksky.streams import stream
from skycairn.mocksky.truth import moved, offset, unit

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Rows = Mapping[str, NDArray[Any]]

BANDS = ("g", "r", "i", "z", "y")
NJY = 3630.7805
"""nJy of a nanomaggy."""
SEEING_ARCSEC = {"g": 0.79, "r": 0.75, "i": 0.61, "z": 0.68, "y": 0.68}
DEPTH_MAG = {"g": 26.5, "r": 26.1, "i": 25.9, "z": 25.1, "y": 24.4}
"""5 sigma for a point source."""
EPOCH = 2016.9
RESOLVED_ARCSEC = 0.6
SATURATED_NANOMAGGY_PER_PIXEL = 8.0
BRIGHT_G = 15.0
"""Gaia G of the stars around which BRIGHT_OBJECT is set."""
FLAGS = ("bright_objectcenter", "bright_object", "edge", "saturatedcenter", "crcenter", "interpolatedcenter", "bad")
LARGEST_ID = 9_223_372_036_854_775_806


def _columns() -> tuple[TableColumn, ...]:
    per_band = (
        [("a_{}", "f4", "mag"), ("{}_extendedness_value", "f4", ""), ("{}_variance_value", "f4", "")],
        [("{}_cmodel_mag", "f4", "mag"), ("{}_cmodel_magerr", "f4", "mag")],
        [("{}_cmodel_flux", "f4", "nJy"), ("{}_cmodel_fluxerr", "f4", "nJy"), ("{}_cmodel_flag", "bool", "")],
        [("{}_inputcount_value", "i4", ""), *[(f"{{}}_pixelflags_{f}", "bool", "") for f in FLAGS]],
        [(f"{{}}_sdssshape_{p}shape{k}", "f4", "arcsec^2") for p in ("psf_", "") for k in ("11", "22", "12")],
    )
    out = [TableColumn("object_id", "i8"), TableColumn("ra", "f8", "deg"), TableColumn("dec", "f8", "deg")]
    out += [TableColumn("tract", "i4"), TableColumn("patch", "i4"), TableColumn("isprimary", "bool")]
    out += [TableColumn(n.format(b), t, u) for group in per_band for b in BANDS for n, t, u in group]
    return tuple(out)


COLUMNS = _columns()


def pixel_sigma(band: str) -> float:
    """Noise of a pixel, nanomaggies."""
    alpha = SEEING_ARCSEC[band] / PIXEL_ARCSEC / (2 * np.sqrt(2 ** (1 / 3) - 1))
    return float(flux_sigma(band) / np.sqrt(np.pi * alpha**2 * 5 / 4))


def flux_sigma(band: str) -> float:
    """Noise of a point source's flux, nanomaggies."""
    return float(10 ** ((22.5 - DEPTH_MAG[band]) / 2.5) / 5)


class Dirt(NamedTuple):
    """What is wrong with files and holes: by tract number and patch."""

    no_y: tuple[int, int]
    "has no y band: no file, no visits"
    absent: tuple[int, int]
    "its z image is lost, though visits are counted"
    hole: dict[tuple[int, int], tuple[float, float, float]]
    "a disk without data in all bands: x, y in pixels of the patch, radius"


def dirt(all_tracts: list[Tract], pixels: bool) -> Dirt:
    """The same for the same tier; nowhere where there are no images."""
    every = [(t.number, t.patch_number(c, r)) for t in all_tracts for c in range(t.columns) for r in range(t.rows)]
    if not pixels or len(every) < 4:
        return Dirt((-1, -1), (-1, -1), {every[-1]: (60.0, 60.0, 12.0)} if pixels else {})
    return Dirt(every[1], every[-2], {k: (0.3 * 1000, 0.4 * 1000, 25.0) for k in every[2::3]})


def seen_fluxes(rows: Rows) -> dict[str, F64]:
    """Nanomaggies above the atmosphere in HSC's bands, (n,) a band."""
    true = sed.maggies(rows)
    dust = np.asarray(rows["ebv"], np.float64)
    return {b: 1e9 * true[f"hsc_{b}"] * 10 ** (-0.4 * sed.HSC_EXTINCTION[b] * dust) for b in BANDS}


def write(root: Path, tier: Tier, rows: Rows, seed: int) -> pa.Table:
    """Write the tables and the list of patches under `root`; gives the survey's truth table."""
    all_tracts = tracts(tier)
    tables, found, missed = catalogue(tier, all_tracts, rows, seed)
    paths = []
    for number, table in tables.items():
        path = root / forced_path(number)
        write_table(path, COLUMNS, table, len(table["object_id"]))
        paths.append(path)
    write_checksums(root / SQL_LIST, paths)
    (root / TRACT_PATCHES).parent.mkdir(parents=True, exist_ok=True)
    (root / TRACT_PATCHES).write_text(patch_list(all_tracts))
    absent = [(u, None, "", False, why) for u, why in sorted(missed.items())]
    columns = list(zip(*found, *absent, strict=True)) or [()] * len(TRUTH)
    truth = pa.table({n: pa.array(v, t) for n, v, t in zip(TRUTH.names, columns, TRUTH.types, strict=True)})
    return truth.cast(TRUTH).sort_by([("uid", "ascending"), ("key", "ascending")])


Found = list[tuple[int, int, str, bool, str]]


def catalogue(
    tier: Tier, all_tracts: list[Tract], rows: Rows, seed: int
) -> tuple[dict[int, dict[str, NDArray[Any]]], Found, dict[int, str]]:
    """The database's rows by tract; the truth of each, a row a true thing in it; and why HSC has not the others."""
    flux = seen_fluxes(rows)
    spoiled = dirt(all_tracts, tier.pixels)
    found: Found = []
    tables: dict[int, dict[str, NDArray[Any]]] = {}
    missed: dict[int, str] = {int(u): "outside footprint" for u in rows["uid"]}
    middle = {p.number: p.ra for p in tier.patches if CUT_IN_TWO in p.about}
    for t in all_tracts:
        mine = np.flatnonzero(rows["patch"] == t.sky_patch)
        lead, members = _resolved(rows, mine)
        table, who = _tract(t, rows, flux, lead, members, spoiled, middle.get(t.sky_patch), seed, missed)
        if t.number == FIRST_TRACT and len(table["object_id"]):
            table["object_id"][0] = LARGEST_ID
        tables[t.number] = table
        labels = table.pop("_dirt")
        for k, uids in enumerate(who):
            for u in uids:
                missed.pop(int(u), None)
                found.append((int(u), int(table["object_id"][k]), str(labels[k]), True, ""))
    return tables, found, missed


def _resolved(rows: Rows, mine: I64) -> tuple[I64, list[I64]]:
    """The things that HSC tells apart: the brightest of each, and all members."""
    xyz = unit(rows["ra"][mine], rows["dec"][mine])
    group = np.arange(len(mine))
    galaxy = rows["kind"][mine] == "galaxy"
    for a, b in sorted(cKDTree(xyz).query_pairs(np.radians(RESOLVED_ARCSEC / 3600))):
        if galaxy[a] and galaxy[b]:
            group[group == group[b]] = group[a]
    order = np.lexsort((-rows["flux_r"][mine], group))
    first = np.unique(group[order], return_index=True)[1]
    ends = [*first[1:].tolist(), len(order)]
    members = [mine[order[s:e]] for s, e in zip(first.tolist(), ends, strict=True)]
    return mine[order[first]], members


def _tract(
    t: Tract,
    rows: Rows,
    flux: Mapping[str, F64],
    lead: I64,
    members: list[I64],
    spoiled: Dirt,
    middle: float | None,
    seed: int,
    missed: dict[int, str],
) -> tuple[dict[str, NDArray[Any]], list[I64]]:
    """Columns and members of one tract's rows; `_dirt` beside them. Two tracts meet at RA `middle`."""
    rng = stream(seed, "hsc", t.number, "catalogue")
    here = _take(rows, lead)
    ra, dec = moved(here["ra"], here["dec"], here["pmra"], here["pmdec"], EPOCH - 2016.0)
    total = {b: np.array([flux[b][m].sum() for m in members]) for b in BANDS}
    radius = np.where(rows["kind"][lead] == "galaxy", morphology.half_light_radius(_take(rows, lead)), 0.0)
    error = {b: flux_sigma(b) * np.sqrt(1 + (radius / (0.6 * SEEING_ARCSEC[b])) ** 2) for b in BANDS}
    measured = {b: total[b] + error[b] * rng.standard_normal(len(lead)) for b in BANDS}
    signal = total["i"] / error["i"]
    sigma = 0.02 + 0.3 * np.hypot(0.3, radius) / np.maximum(signal, 1)
    ra, dec = offset(ra, dec, *(sigma * rng.standard_normal((2, len(lead)))))
    column, row, x, y = t.place(ra, dec)
    primary = column >= 0
    if middle is not None:
        east = (ra - middle + 180) % 360 - 180 >= 0
        primary &= east if (t.ra - middle + 180) % 360 - 180 > 0 else ~east
    for i in np.flatnonzero((column >= 0) & (signal < 5)):
        missed.update((int(u), "too faint") for u in rows["uid"][members[i]])
    listed: list[tuple[int, int, int, bool]] = []
    for i in np.flatnonzero(signal >= 5):
        for c in range(t.columns):
            for r in range(t.rows):
                x1, y1 = t.first_pixel(c, r)
                inside = 0 <= x[i] - x1 < t.width - 1 and 0 <= y[i] - y1 < t.width - 1
                if inside:
                    listed.append((int(i), c, r, bool(primary[i] and column[i] == c and row[i] == r)))
    at = np.array([v[0] for v in listed], dtype=np.int64)
    patch = np.array([t.patch_number(c, r) for _, c, r, _ in listed], dtype=np.int64)
    n = len(listed)
    v: dict[str, NDArray[Any]] = {"ra": ra[at], "dec": dec[at], "tract": np.full(n, t.number), "patch": patch}
    v["isprimary"] = np.array([p for *_, p in listed], dtype=bool)
    v["object_id"] = (np.int64(t.number) << 42) | (patch << 32) | (np.arange(n) + 1)
    labels: list[set[str]] = [set() if p else {"not primary"} for *_, p in listed]
    local = np.array([(x[i] - t.first_pixel(c, r)[0], y[i] - t.first_pixel(c, r)[1]) for i, c, r, _ in listed])
    local = local.reshape(n, 2)
    _photometry(v, rows, lead[at], measured, error, at, rng)
    _shapes(v, rows, lead[at], radius[at], signal[at], rng)
    _spoil(v, rows, lead, at, local, t, spoiled, ra, dec, total, labels, rng)
    v["_dirt"] = np.array([",".join(sorted(s)) for s in labels], dtype=object)
    return v, [rows["uid"][members[i]] for i in at]


def _take(rows: Rows, some: I64) -> dict[str, NDArray[Any]]:
    return {name: values[some] for name, values in rows.items()}


def _photometry(
    v: dict[str, NDArray[Any]],
    rows: Rows,
    lead: I64,
    measured: Mapping[str, F64],
    error: Mapping[str, F64],
    at: I64,
    rng: np.random.Generator,
) -> None:
    n = len(at)
    ebv = np.asarray(rows["ebv"][lead], np.float64)
    for b in BANDS:
        f, e = measured[b][at] * NJY, error[b][at] * NJY
        with np.errstate(invalid="ignore", divide="ignore"):
            v[f"{b}_cmodel_mag"] = np.where(f > 0, 31.4 - 2.5 * np.log10(f), np.nan)
            v[f"{b}_cmodel_magerr"] = np.where(f > 0, 2.5 / np.log(10) * e / f, np.nan)
        v[f"{b}_cmodel_flux"], v[f"{b}_cmodel_fluxerr"] = f, e
        v[f"a_{b}"] = sed.HSC_EXTINCTION[b] * ebv
        v[f"{b}_inputcount_value"] = rng.integers(3, 7, n)
        v[f"{b}_variance_value"] = np.full(n, (pixel_sigma(b) * 10**1.8) ** 2)
        v[f"{b}_cmodel_flag"] = np.zeros(n, bool)
        for flag in FLAGS:
            v[f"{b}_pixelflags_{flag}"] = np.zeros(n, bool)


def _shapes(
    v: dict[str, NDArray[Any]], rows: Rows, lead: I64, radius: F64, signal: F64, rng: np.random.Generator
) -> None:
    """Second moments: the seeing's and the galaxy's, whose major axis is at its position angle; x runs west."""
    n = len(lead)
    galaxy = rows["kind"][lead] == "galaxy"
    q = np.where(galaxy, morphology.axis_ratio(_take(rows, lead)), 1.0)
    angle = np.radians(np.asarray(rows["position_angle"][lead], np.float64))
    major = (radius / 1.18) ** 2
    minor = major * q**2
    moments = {
        "11": major * np.sin(angle) ** 2 + minor * np.cos(angle) ** 2,
        "22": major * np.cos(angle) ** 2 + minor * np.sin(angle) ** 2,
        "12": -(major - minor) * np.sin(angle) * np.cos(angle),
    }
    confused = rng.random(n) < np.clip(0.02 + 0.3 * (60 - signal) / 60, 0.005, 0.5)
    extended = (galaxy & (radius > 0.12)) ^ confused
    for b in BANDS:
        width = (SEEING_ARCSEC[b] / 2.355) ** 2
        for k, m in moments.items():
            seeing = width if k != "12" else 0.0
            v[f"{b}_sdssshape_psf_shape{k}"] = np.full(n, seeing)
            scatter = (width + major) / np.maximum(signal, 5) * rng.standard_normal(n)
            v[f"{b}_sdssshape_shape{k}"] = m + seeing + scatter
        v[f"{b}_extendedness_value"] = extended.astype(np.float32)


def _spoil(
    v: dict[str, NDArray[Any]],
    rows: Rows,
    lead: I64,
    at: I64,
    local: F64,
    t: Tract,
    spoiled: Dirt,
    ra: F64,
    dec: F64,
    total: Mapping[str, F64],
    labels: list[set[str]],
    rng: np.random.Generator,
) -> None:
    """Flags of bright stars and of holes, bands that are missing, rows of NaN, shapes of null."""
    n = len(at)
    star = np.flatnonzero((rows["kind"][lead] != "galaxy") & (rows["gaia_g"][lead] < BRIGHT_G))
    xyz = unit(ra, dec)
    for s in star:
        reach = bright_radius_arcsec(float(rows["gaia_g"][lead[s]]))
        near = np.linalg.norm(xyz[at] - xyz[s], axis=1) < np.radians(reach / 3600)
        for b in BANDS:
            v[f"{b}_pixelflags_bright_object"] |= near
            v[f"{b}_pixelflags_bright_objectcenter"] |= near
        for k in np.flatnonzero(near):
            labels[k].add("bright object")
    point = rows["kind"][lead[at]] != "galaxy"
    for b in BANDS:
        core = point & (saturated_radius(total[b][at], b) > 0)
        v[f"{b}_pixelflags_saturatedcenter"] |= core
        for k in np.flatnonzero(core):
            labels[k].add("saturated")
    for i in range(n):
        where = (t.number, int(v["patch"][i]))
        if where == spoiled.no_y:
            labels[i].add("no y")
            v["y_inputcount_value"][i] = 0
            for name in ("y_cmodel_flux", "y_cmodel_fluxerr", "y_cmodel_mag", "y_cmodel_magerr"):
                v[name][i] = np.nan
        if where == spoiled.absent:
            labels[i].add("file absent")
        if where in spoiled.hole:
            x, y, radius = spoiled.hole[where]
            if np.hypot(local[i, 0] - x, local[i, 1] - y) < radius:
                labels[i].add("no data")
                for b in BANDS:
                    v[f"{b}_pixelflags_edge"][i] = True
    clean = [k for k in rng.permutation(n).tolist() if not labels[k]]
    for k in clean[: n // 400 + 1]:
        labels[k].add("nan flux")
        for name in ("flux", "fluxerr", "mag", "magerr"):
            v[f"r_cmodel_{name}"][k] = np.nan
    for k in clean[n // 400 + 1 : n // 100 + 3]:
        labels[k].add("null shape")
        for p in ("11", "22", "12"):
            v[f"i_sdssshape_shape{p}"][k] = np.nan


def bright_radius_arcsec(gaia_g: float) -> float:
    """Around a star this bright BRIGHT_OBJECT is set."""
    return float(3.0 * 10 ** (0.15 * (BRIGHT_G - gaia_g)))


def saturated_radius(flux: F64, band: str) -> F64:
    """Pixels within which a point source of this flux saturates, 0 where it does not."""
    alpha = SEEING_ARCSEC[band] / PIXEL_ARCSEC / (2 * np.sqrt(2 ** (1 / 3) - 1))
    peak = np.asarray(flux) * 2 / (np.pi * alpha**2)
    inside = np.maximum((peak / SATURATED_NANOMAGGY_PER_PIXEL) ** (1 / 3) - 1, 0.0)
    return np.where(peak > SATURATED_NANOMAGGY_PER_PIXEL, 1 + alpha * np.sqrt(inside), 0.0)
