"""Whether HSC's cut-outs and SDSS's spectra in a pile are what their catalogues, and the Legacy Survey's, say.

    python benchmarks/photometry_pile.py PILE SKY        SKY: the mock sky that the pile was made of

Prints a Markdown table. Objects of one point source, seen by Gaia, with no other source of any survey within
`ALONE_ARCSEC`. The filters of HSC and of DECam differ: their ratio is divided by that of the true star's fluxes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import speclite.filters
from astropy import units as u
from scipy.spatial import cKDTree

from skycairn.catalogs.registry import SURVEYS
from skycairn.catalogs.survey import Modality
from skycairn.match.sky import unit_vectors
from skycairn.mocksky import hsc as mock_hsc
from skycairn.mocksky import sed
from skycairn.pile.store import Pile, Snapshot

ALONE_ARCSEC = 8.0
APERTURE_ARCSEC = 3.0
"""Radius; corrected for the light beyond it by a Moffat profile of beta 3 of the cut-out's psf_fwhm."""
COMMON = ("g", "r", "i", "z")


def whole(pile: Pile, head: Snapshot, name: str, columns: list[str] | None = None) -> pa.Table:
    """All parts of a table of the snapshot, one below the other."""
    parts = [pile.read_table(e.part, columns=columns) for e in head.entries(name)]
    return pa.concat_tables([p for p in parts if p.num_rows], promote_options="permissive").combine_chunks()


def stars_alone(pile: Pile, head: Snapshot, surveys: tuple[str, ...]) -> pa.Table:
    """Objects with a source of Gaia and of these surveys, and nothing else near."""
    objects = whole(pile, head, "objects")
    for name in ("gaia", *surveys):
        objects = objects.filter(objects[f"key.{name}"].is_valid())
    xyz, owner = [], []
    for name in ("legacysurvey", "hsc", "gaia"):
        slim = whole(pile, head, f"{name}.slim", ["key", "ra", "dec"])
        xyz.append(unit_vectors(slim["ra"].to_numpy(), slim["dec"].to_numpy()).T)
        owner += [(name, k) for k in slim["key"].to_pylist()]
    tree = cKDTree(np.concatenate(xyz))
    here = unit_vectors(objects["ra"].to_numpy(), objects["dec"].to_numpy()).T
    keep = []
    for i, near in enumerate(tree.query_ball_point(here, np.radians(ALONE_ARCSEC / 3600))):
        keep.append(all(objects[f"key.{owner[k][0]}"][i].as_py() == owner[k][1] for k in near))
    return objects.filter(pa.array(keep))


class Images(NamedTuple):
    """Cut-outs by key of the source."""

    row: dict[int, int]
    flux: np.ndarray
    ivar: np.ndarray
    mask: np.ndarray
    psf_fwhm: np.ndarray
    offset: np.ndarray
    "(n, 2): dx, dy"
    modality: Modality


def images(pile: Pile, head: Snapshot, name: str, keys: set[int]) -> Images:
    """Kept cut-outs of these sources of a survey."""
    modality: Modality = next(m for m in SURVEYS[name].modalities if m.codec == "image")
    wanted, pieces = pa.array(sorted(keys)), []
    for entry in head.entries(f"payload.{modality.name}"):
        part = pile.read_table(entry.part)
        pieces.append(part.filter(pc.and_(pc.is_in(part["key"], wanted), part["status"].is_null())))
    table = pa.concat_tables(pieces).combine_chunks()

    def pixels(column: str) -> np.ndarray:
        flat = pc.list_flatten(table[column]).to_numpy(zero_copy_only=False)
        return np.asarray(flat).reshape(table.num_rows, *modality.shape)

    psf = pc.list_flatten(table["psf_fwhm"]).to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)
    offset = np.stack([table[c].to_numpy() for c in ("dx", "dy")], axis=1)
    row = {k: i for i, k in enumerate(table["key"].to_pylist())}
    return Images(row, pixels("flux"), pixels("ivar"), pixels("mask"), psf, offset, modality)


def aperture(c: Images, i: int, b: int) -> tuple[float, float]:
    """Flux of a point source and its error, nanomaggies; NaN where a pixel of the aperture is bad."""
    scale, size = c.modality.pixel_arcsec, c.flux.shape[-1]
    x, y = size // 2 + c.offset[i]
    radius = APERTURE_ARCSEC / scale
    fine = (np.arange(5) - 2) / 5
    dx, dy = (np.add.outer(np.arange(size), fine) - v for v in (x, y))
    near_y, near_x = (np.abs(d[:, 2]) < radius + 1 for d in (dy, dx))
    inside = dy[near_y][:, None, :, None] ** 2 + dx[near_x][None, :, None, :] ** 2 < radius**2
    share, box = inside.mean(axis=(2, 3)), np.ix_(near_y, near_x)
    if (c.mask[i, b][box] & (share > 0)).any() or not np.isfinite(c.psf_fwhm[i, b]):
        return np.nan, np.nan
    alpha = c.psf_fwhm[i, b] / (2 * np.sqrt(2 ** (1 / 3) - 1))
    light = 1 - (1 + (APERTURE_ARCSEC / alpha) ** 2) ** -2
    ivar = c.ivar[i, b][box].astype(np.float64)
    error = np.sqrt(np.sum(share**2 / np.where(ivar > 0, ivar, np.inf)))
    return float(np.sum(share * c.flux[i, b][box]) / light), float(error / light)


def line(what: str, ratio: Any, unit: str = "") -> str:
    """A row of the table: number, median and its error, robust scatter."""
    r = np.asarray(ratio, dtype=np.float64)
    if not len(r):
        return f"| {what} | 0 | | |"
    spread = 1.4826 * np.median(np.abs(r - np.median(r)))
    return f"| {what} | {len(r)} | {np.median(r):.4f} ± {1.253 * spread / np.sqrt(len(r)):.4f}{unit} | {spread:.4f} |"


def catalogue(pile: Pile, head: Snapshot, name: str) -> dict[int, dict[str, Any]]:
    """Fluxes of a survey's sources in the common bands, by key."""
    bands = SURVEYS[name].bands
    table = whole(pile, head, f"{name}.wide", ["key", *dict.fromkeys(bands.values())])
    return {row["key"]: {b: row[c] for b, c in bands.items()} for row in table.to_pylist()}


def true_ratio(sky: Path, keys: list[int]) -> dict[int, dict[str, float]]:
    """HSC's flux over DECam's in each common band, of the true star behind each source of HSC."""
    rows = sed.rows_of(pq.read_table(sky / "truth" / "sources.parquet"))
    shown = pq.read_table(sky / "truth" / "hsc.parquet", columns=["key", "uid"])
    uid = dict(zip(shown["key"].to_pylist(), shown["uid"].to_pylist(), strict=True))
    at = np.searchsorted(rows["uid"], [uid[k] for k in keys])
    stars = {name: values[at] for name, values in rows.items()}
    flux = mock_hsc.seen_fluxes(stars)
    return {k: {b: float(flux[b][i] / stars[f"flux_{b}"][i]) for b in COMMON} for i, k in enumerate(keys)}


def ratios(pile: Pile, head: Snapshot, sky: Path) -> list[str]:
    """HSC's cut-outs against its catalogue and against the Legacy Survey's catalogue and cut-outs; centring."""
    stars = stars_alone(pile, head, ("hsc", "legacysurvey"))
    cut = {n: images(pile, head, n, set(stars[f"key.{n}"].to_pylist())) for n in ("hsc", "legacysurvey")}
    listed = {n: catalogue(pile, head, n) for n in cut}
    keys = {n: stars[f"key.{n}"].to_pylist() for n in cut}
    true = true_ratio(sky, keys["hsc"])
    out = []
    for band in SURVEYS["hsc"].bands:
        own, beside, both = [], [], []
        b = cut["hsc"].modality.bands.index(band)
        for i, key in enumerate(keys["hsc"]):
            wanted = listed["hsc"][key][band]
            legacy = listed["legacysurvey"][keys["legacysurvey"][i]].get(band)
            if legacy and wanted and legacy > 0 and wanted > 0 and min(legacy, wanted) > 5:
                both.append(wanted / legacy / true[key][band])
            if key not in cut["hsc"].row or not wanted or wanted <= 0:
                continue
            flux, error = aperture(cut["hsc"], cut["hsc"].row[key], b)
            if np.isfinite(flux) and error < 0.02 * wanted:
                own.append(flux / wanted)
                if legacy and legacy > 5:
                    beside.append(flux / legacy / true[key][band])
        out.append(line(f"HSC cut-out / HSC catalogue, {band}", own))
        if band in COMMON:
            out.append(line(f"HSC catalogue / Legacy catalogue / truth, {band}", both))
            out.append(line(f"HSC cut-out / Legacy catalogue / truth, {band}", beside))
    for name, c in cut.items():
        off = centroids(c)
        for axis, values in zip("xy", off.T, strict=True):
            out.append(line(f"{name}: centroid less d{axis}", values, " px"))
    return out


def centroids(c: Images) -> np.ndarray:
    """Windowed centroid of bright stars in r less where dx, dy put them, (n, 2) pixels."""
    b, out = c.modality.bands.index("r"), []
    ys, xs = np.mgrid[: c.flux.shape[-2], : c.flux.shape[-1]]
    for i in range(len(c.flux)):
        x0, y0 = c.flux.shape[-1] // 2 + c.offset[i]
        near = np.hypot(xs - x0, ys - y0) < 10
        signal = c.flux[i, b][near].sum() * np.sqrt(np.median(c.ivar[i, b][near])) / np.sqrt(near.sum())
        if c.mask[i, b][near].any() or signal < 100:
            continue
        sigma, x, y = c.psf_fwhm[i, b] / c.modality.pixel_arcsec / 2.3548, x0, y0
        for _ in range(20):
            weight = np.exp(-0.5 * ((xs - x) ** 2 + (ys - y) ** 2) / sigma**2) * near * c.flux[i, b]
            x, y = x + 2 * (weight * (xs - x)).sum() / weight.sum(), y + 2 * (weight * (ys - y)).sum() / weight.sum()
        out.append((x - x0, y - y0))
    return np.array(out).reshape(-1, 2)


def sdss(pile: Pile, head: Snapshot) -> list[str]:
    """Synthetic photometry of SDSS's spectra over SPECTROFLUX, both through the fibre, in g, r and i."""
    wide = whole(pile, head, "sdss.wide", ["key", "spectroflux", "spectroflux_ivar"])
    wanted = {r["key"]: (r["spectroflux"], r["spectroflux_ivar"]) for r in wide.to_pylist()}
    found: dict[str, list[float]] = {b: [] for b in "gri"}
    for entry in head.entries("payload.sdss.spectrum"):
        table = pile.read_table(entry.part)
        start, step = (float(table.schema.metadata[k.encode()]) for k in ("loglam_start", "loglam_step"))
        for row in table.filter(table["status"].is_null()).to_pylist():
            good = ~np.array(row["mask"])
            angstrom = 10 ** (start + step * np.arange(len(good)))
            for b, band in enumerate("ugriz"):
                flux, ivar = (v[b] if v else None for v in wanted[row["key"]])
                if band not in found or not flux or not ivar or flux * np.sqrt(ivar) < 30:
                    continue
                curve = speclite.filters.load_filter(f"sdss2010-{band}")
                share = np.interp(angstrom, curve.wavelength, curve.response, left=0, right=0)
                if share[~good].sum() > 0.03 * share.sum():
                    continue
                light = np.interp(angstrom, angstrom[good], np.array(row["flux"])[good])
                some = share > 0
                light = np.where(some, light, 0) * 1e-17 * u.Unit("erg / (s cm2 Angstrom)")
                light, at = curve.pad_spectrum(light, angstrom * u.AA, method="zero")
                found[band].append(10 ** (-0.4 * (float(curve.get_ab_magnitude(light, at)) - 22.5)) / flux)
    return [line(f"SDSS spectra / SPECTROFLUX, {b}", r) for b, r in found.items()]


def main() -> None:
    pile = Pile.open(Path(sys.argv[1]))
    head = pile.snapshot()
    print("| measured | n | median | scatter |\n|---|---|---|---|")
    print(*ratios(pile, head, Path(sys.argv[2])), *sdss(pile, head), sep="\n")


if __name__ == "__main__":
    main()
