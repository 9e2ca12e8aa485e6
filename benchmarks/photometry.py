"""Whether what the survey readers cut out of the mock sky's files is what its catalogues say: fluxes, places, seeing.

    python benchmarks/photometry.py ROOT        ROOT: a mock sky, as `skycairn mock` writes it

Prints Markdown tables; docs/photometry.md holds those of the default mock. Truth is asked only which sources are alone.
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import speclite.filters
from astropy import units as u
from astropy.io import fits
from scipy.optimize import brentq
from scipy.spatial import cKDTree

from skycairn.archives.files import RootArchive
from skycairn.catalogs.desi import Desi
from skycairn.catalogs.desicoadd import wavelength
from skycairn.catalogs.gaia import Gaia
from skycairn.catalogs.legacyfiles import BANDS
from skycairn.catalogs.legacysurvey import LegacySurvey
from skycairn.catalogs.survey import WORK_ORDER, Survey
from skycairn.match.sky import propagate, unit_vectors

PIXEL_ARCSEC = 0.262
FLUX_DENSITY = u.Unit("erg / (s cm2 Angstrom)")
APERTURE = 12.0
"""Radius for stars, pixels; corrected by a Moffat profile of beta 3, as the mock's, of the cut-out's psf_fwhm."""


class Ratios(NamedTuple):
    """Measured over catalogued fluxes of one kind and band, with their expected errors."""

    ratio: np.ndarray
    error: np.ndarray

    @property
    def mean(self) -> float:
        """Mean weighted by the errors."""
        return float(np.sum(self.ratio / self.error**2) / np.sum(self.error**-2))

    @property
    def mean_error(self) -> float:
        return float(np.sum(self.error**-2) ** -0.5)

    @property
    def scatter(self) -> float:
        """Robust standard deviation of (ratio - mean) / error: 1 where the errors are right."""
        return float(1.4826 * np.median(np.abs((self.ratio - self.mean) / self.error)))


# --------------------------------------------------------------------------------------------------- Legacy Survey


class CutOuts(NamedTuple):
    """Legacy sources and their cut-outs, row for row, with where truth says that they and their neighbours are."""

    sources: pa.Table
    flux: np.ndarray
    ivar: np.ndarray
    mask: np.ndarray
    psf_fwhm: np.ndarray
    x: np.ndarray
    "pixel of the source in the cut-out, from dx"
    y: np.ndarray
    motion: np.ndarray
    "(n, 2): pixels by which it has moved on the image since its catalogued position, from PM and the image's date"
    alone_arcsec: np.ndarray
    "no other true source within this adds 0.2 % of its flux in any band"
    truth: pa.Table
    "its row of truth/sources.parquet"
    labels: list[str]


def all_files(survey: Survey, archive: RootArchive) -> Iterator[tuple[Path, dict[str, Path | None]]]:
    for file in survey.catalog_files(archive, range(12 * 4**WORK_ORDER)):
        if archive.exists(file.path):
            beside = {r: archive.local(c.path) if archive.exists(c.path) else None for r, c in file.companions}
            yield archive.local(file.path), beside


def cut_outs(root: Path, kinds: tuple[str, ...] = ("star", "quasar", "galaxy"), r_mag: float = 21.0) -> CutOuts:
    """Cut-outs of the catalogued sources of these true kinds, brighter than `r_mag`, that show one true thing."""
    survey, archive = LegacySurvey("dr10"), RootArchive(root / "legacysurvey")
    reference = {role: archive.local(f.path) for role, f in survey.reference_files().items()}
    table = pa.concat_tables([survey.read(path) for path, _ in all_files(survey, archive)]).combine_chunks()
    truth = pq.read_table(root / "truth" / "sources.parquet")
    shown = pq.read_table(root / "truth" / "legacysurvey.parquet").filter(pc.field("observed"))
    _, first, times = np.unique(shown["key"].to_numpy(), return_index=True, return_counts=True)
    shown = shown.take(pa.array(first[times == 1]))
    shown = shown.filter(pc.invert(pc.match_substring(shown["dirt"], "dup")))
    table = table.filter(pc.and_(pc.is_finite(table["ra"]), pc.greater(table["flux_r"], 10 ** (0.4 * (22.5 - r_mag)))))
    table = table.filter(pc.is_in(table["key"], shown["key"].combine_chunks()))
    at = pc.index_in(table["key"], shown["key"].combine_chunks())
    shown = shown.take(at)
    of = truth.take(pc.index_in(shown["uid"], truth["uid"].combine_chunks()))
    chosen = pc.is_in(of["kind"], pa.array(kinds))
    table, shown, of = table.filter(chosen), shown.filter(chosen), of.filter(chosen)
    order, cut, epoch = [], [], []
    for group in survey.payload_groups(table, "legacysurvey.image", reference):
        there = {r: archive.local(f.path) for r, f in group.files.items() if archive.exists(f.path)}
        lost = {r for r, f in group.files.items() if archive.listed(f) and r not in there}
        image = next(path for role, path in there.items() if role.startswith("image"))
        rows = table.take(pa.array(group.rows)).combine_chunks()
        cut.append(survey.extract("legacysurvey.image", rows, there, frozenset(lost)))
        order.append(group.rows)
        date = 2000 + (fits.getheader(image, 1)["MJD_MEAN"] - 51544.5) / 365.25
        epoch.append(np.full(len(group.rows), date))
    rows = np.concatenate(order)
    payload = pa.concat_tables(cut).combine_chunks()
    here = np.flatnonzero(payload["status"].is_null().to_numpy())
    payload, rows, epoch = payload.take(pa.array(here)), rows[here], np.concatenate(epoch)[here]
    table, shown, of = (t.take(pa.array(rows)).combine_chunks() for t in (table, shown, of))
    assert table["key"].to_pylist() == payload["key"].to_pylist()
    size = survey.size

    def pixels(name: str) -> np.ndarray:
        return pc.list_flatten(payload[name]).to_numpy(zero_copy_only=False).reshape(-1, len(BANDS), size, size)

    moving = [np.nan_to_num(table[c].to_numpy()) for c in ("pmra", "pmdec")]
    years = np.where(np.isfinite(table["epoch"].to_numpy()), epoch - np.nan_to_num(table["epoch"].to_numpy()), 0.0)
    motion = np.stack([-moving[0], moving[1]], axis=1) * years[:, None] / 1000 / PIXEL_ARCSEC
    psf = pc.list_flatten(payload["psf_fwhm"]).to_numpy(zero_copy_only=False).reshape(-1, len(BANDS))
    return CutOuts(
        table,
        pixels("flux").astype(np.float64),
        pixels("ivar").astype(np.float64),
        pixels("mask"),
        psf.astype(np.float64),
        size // 2 + payload["dx"].to_numpy().astype(np.float64),
        size // 2 + payload["dy"].to_numpy().astype(np.float64),
        motion,
        alone_within(of, truth),
        of,
        shown["dirt"].to_pylist(),
    )


def alone_within(some: pa.Table, truth: pa.Table) -> np.ndarray:
    """Arcsec from each source to the nearest true neighbour that matters: 0.2 % of its flux, or a star's halo."""

    def numbers(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        moved = propagate(*(table[c].to_numpy() for c in ("ra", "dec", "pmra", "pmdec")), 1.0)
        return unit_vectors(*moved).T, np.stack([table[f"flux_{b}"].to_numpy() for b in BANDS], axis=1)

    (xyz, flux), (every, light) = numbers(some), numbers(truth)
    tree, reach = cKDTree(every), 2 * np.sin(np.radians(60 / 3600) / 2)
    out = np.full(some.num_rows, 60.0)
    for i, near in enumerate(tree.query_ball_point(xyz, reach)):
        near = np.array([k for k in near if truth["uid"][k] != some["uid"][i]], dtype=int)
        if len(near):
            arcsec = 3600 * np.degrees(np.linalg.norm(every[near] - xyz[i], axis=1))
            matters = (light[near] > 0.002 * flux[i]).any(axis=1)
            # the wings of a bright star reach far: its light falls as r^-6
            arcsec = arcsec - np.where((light[near] > flux[i]).any(axis=1), 10.0, 0.0)
            out[i] = min(out[i], arcsec[matters].min(initial=60.0))
    return out


def moffat_inside(radius_pixels: np.ndarray | float, fwhm_arcsec: np.ndarray | float) -> np.ndarray:
    """Share of the light of a Moffat profile of beta 3 within a radius."""
    alpha = np.asarray(fwhm_arcsec) / PIXEL_ARCSEC / (2 * np.sqrt(2 ** (1 / 3) - 1))
    return 1 - (1 + (np.asarray(radius_pixels) / alpha) ** 2) ** -2


def aperture(c: CutOuts, i: int, b: int, radius: float) -> tuple[float, float, bool]:
    """Sum of the pixels whose middle lies within the radius, its error, and whether all of them are good.

    The pixels at the rim count by the share of them within, to a fifth of a pixel.
    """
    cx, cy = c.x[i] + c.motion[i, 0], c.y[i] + c.motion[i, 1]
    size = c.flux.shape[-1]
    fine = (np.arange(5) - 2) / 5
    dx = np.add.outer(np.arange(size), fine) - cx
    dy = np.add.outer(np.arange(size), fine) - cy
    near_y, near_x = (np.abs(d[:, 2]) < radius + 1 for d in (dy, dx))
    inside = dy[near_y][:, None, :, None] ** 2 + dx[near_x][None, :, None, :] ** 2 < radius**2
    share = inside.mean(axis=(2, 3))
    box = np.ix_(near_y, near_x)
    flux, ivar, mask = c.flux[i, b][box], c.ivar[i, b][box], c.mask[i, b][box]
    good = not (mask & (share > 0)).any()
    variance = np.sum(share**2 / np.where(ivar > 0, ivar, np.inf))
    return float(np.sum(share * flux)), float(np.sqrt(variance)), bool(good and radius < size / 2 - 1)


def legacy_ratios(c: CutOuts, kind: str, most_error: float = 0.03) -> dict[str, Ratios]:
    """Aperture flux of sources that are alone, over FLUX, by band.

    Stars and quasars: `APERTURE` pixels and the Moffat profile's correction. Galaxies: 5 SHAPE_R + 7 arcsec, no
    correction, where that fits the cut-out.
    """
    out: dict[str, tuple[list[float], list[float]]] = {b: ([], []) for b in BANDS}
    is_kind = np.array(c.truth["kind"].to_pylist()) == kind
    point = kind != "galaxy"
    size = c.sources["shape_r"].to_numpy()
    for i in np.flatnonzero(is_kind):
        radius = APERTURE if point else min((5 * size[i] + 7) / PIXEL_ARCSEC, 200.0)
        if c.alone_arcsec[i] < radius * PIXEL_ARCSEC + 3:
            continue
        for b, band in enumerate(BANDS):
            wanted, ivar = (c.sources[f"{n}_{band}"][i].as_py() for n in ("flux", "flux_ivar"))
            if not wanted or not ivar or wanted <= 0:
                continue
            flux, error, good = aperture(c, i, b, radius)
            share = float(moffat_inside(radius, c.psf_fwhm[i, b])) if point else 1.0
            error = np.hypot(error / share, ivar**-0.5) / wanted
            if good and error < most_error:
                out[band][0].append(flux / share / wanted)
                out[band][1].append(error)
    return {b: Ratios(np.array(r), np.array(e)) for b, (r, e) in out.items()}


def centroids(c: CutOuts, most_error: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Windowed centroid of point sources less where dx, dy (and their motion) put them, (n, 2) pixels, and errors.

    In the band with the most signal. The window is a Gaussian of the seeing's width, moved until it rests.
    """
    out, errors = [], []
    point = np.array(c.truth["kind"].to_pylist()) != "galaxy"
    ys, xs = np.mgrid[: c.flux.shape[-2], : c.flux.shape[-1]]
    for i in np.flatnonzero(point & (c.alone_arcsec > 6)):
        x0, y0 = c.x[i] + c.motion[i, 0], c.y[i] + c.motion[i, 1]
        near = np.hypot(xs - x0, ys - y0) < 12
        usable = [not c.mask[i, b][near].any() for b in range(len(BANDS))]
        if not any(usable):
            continue
        signal = [c.flux[i, b][near].sum() * np.sqrt(c.ivar[i, b][near].mean()) * usable[b] for b in range(len(BANDS))]
        b = int(np.argmax(signal))
        sigma = c.psf_fwhm[i, b] / PIXEL_ARCSEC / 2.3548
        x, y = x0, y0
        for _ in range(20):
            weight = np.exp(-0.5 * ((xs - x) ** 2 + (ys - y) ** 2) / sigma**2) * near
            light = (weight * c.flux[i, b]).sum()
            step = [2 * (weight * c.flux[i, b] * (g - p)).sum() / light for g, p in ((xs, x), (ys, y))]
            x, y = x + step[0], y + step[1]
        noise = 2 * np.sqrt((weight**2 * (xs - x) ** 2 / c.ivar[i, b].mean()).sum()) / light
        # and the catalogued position's own error
        own = np.hypot(noise, (c.sources["ra_error"][i].as_py() or 0) / PIXEL_ARCSEC)
        if 0 < own < most_error:
            out.append((x - x0, y - y0))
            errors.append(own)
    return np.array(out).reshape(-1, 2), np.array(errors)


def seeing(c: CutOuts) -> dict[str, np.ndarray]:
    """FWHM that the light of stars tells, over psf_fwhm, by band: light within 0.75 FWHM against that within 3."""
    out: dict[str, list[float]] = {b: [] for b in BANDS}
    point = np.array(c.truth["kind"].to_pylist()) != "galaxy"
    for i in np.flatnonzero(point & (c.alone_arcsec > 8)):
        for b, band in enumerate(BANDS):
            fwhm = c.psf_fwhm[i, b]
            if not np.isfinite(fwhm):
                continue
            r = np.array([0.75, 3.0]) * fwhm / PIXEL_ARCSEC
            (f1, _, _), (f2, e2, good) = (aperture(c, i, b, float(v)) for v in r)
            if not good or f2 < 100 * e2:
                continue

            def excess(width: float, r: np.ndarray = r, share: float = f1 / f2) -> float:
                return float(moffat_inside(r[0], width) / moffat_inside(r[1], width) - share)

            found = brentq(excess, 0.1, 20.0)
            # the pixel widens the light; a square of side 1 has variance 1/12
            out[band].append(found / fwhm / np.sqrt(1 + (2.3548 * PIXEL_ARCSEC / fwhm) ** 2 / 12))
    return {b: np.array(v) for b, v in out.items()}


def neighbours(c: CutOuts, truth: pa.Table) -> np.ndarray:
    """For bright neighbours 5 to 18 arcsec away: offset of their light's peak from where the sky puts them, pixels.

    Rows (dx, dy, east, north): the last two are the neighbour's sky offset in arcsec. North is up and east is left.
    """
    every = unit_vectors(truth["ra"].to_numpy(), truth["dec"].to_numpy()).T
    tree = cKDTree(every)
    ra, dec = (c.sources[k].to_numpy() for k in ("ra", "dec"))
    xyz = unit_vectors(ra, dec).T
    out = []
    ys, xs = np.mgrid[: c.flux.shape[-2], : c.flux.shape[-1]]
    for i, near in enumerate(tree.query_ball_point(xyz, 18 / 3600 * np.pi / 180)):
        if abs(dec[i]) > 80:
            continue  # there a cut-out turns against the brick's own North
        for k in near:
            if truth["flux_r"][k].as_py() < 20 or truth["kind"][k].as_py() == "galaxy":
                continue
            east = (truth["ra"][k].as_py() - ra[i] + 180) % 360 - 180
            east, north = east * np.cos(np.radians(dec[i])) * 3600, (truth["dec"][k].as_py() - dec[i]) * 3600
            if np.hypot(east, north) < 5 or np.hypot(truth["pmra"][k].as_py(), truth["pmdec"][k].as_py()) > 60:
                continue
            x, y = c.x[i] - east / PIXEL_ARCSEC, c.y[i] + north / PIXEL_ARCSEC
            close = (np.hypot(xs - x, ys - y) < 4) & ~c.mask[i, 1]
            if close.sum() < 40:
                continue
            weight = np.where(close, np.maximum(c.flux[i, 1], 0.0), 0.0)
            out.append(((weight * xs).sum() / weight.sum() - x, (weight * ys).sum() / weight.sum() - y, east, north))
    return np.array(out).reshape(-1, 4)


# ------------------------------------------------------------------------------------------------------------ DESI


class Spectra(NamedTuple):
    """DESI sources and their joined spectra, row for row."""

    sources: pa.Table
    flux: np.ndarray
    ivar: np.ndarray
    mask: np.ndarray


def spectra(root: Path) -> Spectra:
    """Spectra of DESI's valid sources with a redshift that holds."""
    survey, archive = Desi("dr1"), RootArchive(root / "desi")
    table = pa.concat_tables([survey.read(path) for path, _ in all_files(survey, archive)]).combine_chunks()
    table = table.filter(pc.and_(table["good_z"], pc.is_finite(table["ra"])))
    table = table.filter(pc.and_(pc.equal(table["objtype"], "TGT"), pc.equal(table["coadd_fiberstatus"], 0)))
    tables, payload = [], []
    for group in survey.payload_groups(table, "desi.spectrum", {}):
        file = group.files["coadd"]
        if archive.exists(file.path):
            rows = table.take(pa.array(group.rows)).combine_chunks()
            found = survey.extract("desi.spectrum", rows, {"coadd": archive.local(file.path)}, frozenset())
            there = found["status"].is_null()
            tables.append(rows.filter(there))
            payload.append(found.filter(there))
    joined = pa.concat_tables(payload).combine_chunks()
    flux, ivar, mask = (
        pc.list_flatten(joined[n]).to_numpy(zero_copy_only=False).reshape(joined.num_rows, -1)
        for n in ("flux", "ivar", "mask")
    )
    return Spectra(pa.concat_tables(tables).combine_chunks(), flux.astype(np.float64), ivar.astype(np.float64), mask)


def synthetic(flux: np.ndarray, angstrom: np.ndarray, name: str) -> np.ndarray:
    """Nanomaggies of spectra in erg/s/cm2/A through a filter of speclite; what is beyond their ends is guessed."""
    curve = speclite.filters.load_filter(name)
    padded, at = curve.pad_spectrum(flux * FLUX_DENSITY, angstrom * u.AA, method="edge")
    return np.asarray(10 ** (-0.4 * (np.asarray(curve.get_ab_magnitude(padded, at)) - 22.5)))


def desi_ratios(s: Spectra, most_error: float = 0.01) -> dict[str, Ratios]:
    """Synthetic photometry over the catalogue's FLUX in the bands that the spectrum holds whole, g and r.

    z reaches to 10,100 Angstrom, beyond the spectra's end: a fiftieth of its light is guessed. Bad pixels are bridged.
    """
    grid = wavelength()
    out = {}
    for band in "grz":
        curve = speclite.filters.load_filter(f"decam2014-{band}")
        share = np.interp(grid, curve.wavelength, curve.response, left=0, right=0) * grid
        ratio, error = [], []
        for i in range(len(s.flux)):
            wanted, ivar = (s.sources[f"{n}_{band}"][i].as_py() for n in ("flux", "flux_ivar"))
            good = ~s.mask[i]
            if not wanted or not ivar or wanted <= 0 or (share[~good].sum() > 0.02 * share.sum()):
                continue
            noise = np.sqrt(np.sum(share[good] ** 2 / s.ivar[i][good])) / np.sum(share[good] * s.flux[i][good])
            noise = np.hypot(noise, ivar**-0.5 / wanted)
            if 0 < noise < most_error:
                whole = np.interp(grid, grid[good], s.flux[i][good]) * 1e-17
                ratio.append(float(synthetic(whole, grid, f"decam2014-{band}")) / wanted)
                error.append(noise)
        out[band] = Ratios(np.array(ratio), np.array(error))
    return out


LINES = {"Hbeta": 4862.683, "[OIII] 5008": 5008.240, "Halpha": 6564.614}
"""Vacuum, Angstrom."""


def line_offsets(s: Spectra) -> dict[str, Ratios]:
    """Velocity in km/s of lines seen at 12 sigma or more from where the catalogue's redshift puts them."""
    grid = wavelength()
    out = {}
    for name, rest in LINES.items():
        speed, error = [], []
        for i in range(len(s.flux)):
            centre = rest * (1 + s.sources["z"][i].as_py())
            near, beside = (
                (np.abs(grid - centre) < 9) & ~s.mask[i],
                (np.abs(grid - centre) > 40) & (np.abs(grid - centre) < 90) & ~s.mask[i],
            )
            if near.sum() < 20 or beside.sum() < 60 or s.sources["spectype"][i].as_py() != "GALAXY":
                continue
            level = np.median(s.flux[i][beside])
            light, ivar = s.flux[i][near] - level, s.ivar[i][near]
            total, noise = light.sum(), np.sqrt((1 / ivar).sum())
            if total < 12 * noise:
                continue
            # centroid under a Gaussian window of 3 Angstrom, moved until it rests
            middle = centre
            for _ in range(20):
                weight = np.exp(-0.5 * ((grid[near] - middle) / 3.0) ** 2)
                middle += 2 * np.sum(weight * light * (grid[near] - middle)) / np.sum(weight * light)
            sigma = 2 * np.sqrt(np.sum((weight * (grid[near] - middle)) ** 2 / ivar)) / np.sum(weight * light)
            speed.append((middle / centre - 1) * 299792.458)
            sigma = np.hypot(sigma, rest * s.sources["zerr"][i].as_py())
            error.append(sigma / centre * 299792.458)
        out[name] = Ratios(np.array(speed), np.array(error))
    return out


# -------------------------------------------------------------------------------------------------------------- XP


def xp_ratios(root: Path) -> dict[str, Ratios]:
    """Synthetic G, BP and RP of XP coefficients calibrated by GaiaXPy, over the catalogue's mean fluxes."""
    survey, archive = Gaia("dr3"), RootArchive(root / "gaia")
    table = pa.concat_tables([survey.read(path, None, beside) for path, beside in all_files(survey, archive)])
    whole = pc.and_(table["bp_coefficients"].is_valid(), table["rp_coefficients"].is_valid())
    table = table.filter(pc.and_(whole, pc.less(table["phot_g_mean_mag"], 17.0))).combine_chunks()
    nm = np.arange(336.0, 1021.0, 2.0)
    flux = calibrated(table, nm)
    out = {}
    for band in ("g", "bp", "rp"):
        # AB magnitude of one electron a second: Gaia DR3 documentation, 5.4.1
        zero = {"g": 25.8010446445, "bp": 25.3539555559, "rp": 25.1039837393}[band]
        seen = synthetic(flux, 10 * nm, f"gaiadr3-{band.upper() if band != 'g' else 'G'}")
        electrons = 10 ** (0.4 * (zero - 22.5)) * seen
        wanted = table[f"phot_{band}_mean_flux"].to_numpy()
        error = table[f"phot_{band}_mean_flux_error"].to_numpy() / wanted
        out[band.upper()] = Ratios(electrons / wanted, np.hypot(error, 0.003))
    return out


def calibrated(table: pa.Table, nm: np.ndarray) -> np.ndarray:
    """Spectra of the coefficients by GaiaXPy, erg/s/cm2/A."""
    import pandas as pd

    frame = pd.DataFrame({"source_id": table["source_id"].to_numpy()})
    for band in ("bp", "rp"):
        for name in ("coefficients", "coefficient_errors"):
            column = table[f"{band}_{name}"].combine_chunks()
            frame[f"{band}_{name}"] = list(pc.list_flatten(column).to_numpy().reshape(-1, 55).astype(np.float64))
        frame[f"{band}_coefficient_correlations"] = list(np.zeros((table.num_rows, 1485)))
        frame[f"{band}_standard_deviation"] = 1.0
        frame[f"{band}_n_parameters"] = frame[f"{band}_n_relevant_bases"] = 55
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        # GaiaXPy parses arrays and splits frames in ways that newer numpy and pandas will not have
        warnings.simplefilter("ignore")
        import gaiaxpy

        found, _ = gaiaxpy.calibrate(frame, sampling=nm, save_file=False)
    assert found["source_id"].tolist() == table["source_id"].to_pylist()
    return np.stack(found["flux"].to_list()) * 100.0  # W/m2/nm


def rows(what: str, ratios: dict[str, Ratios], unit: str = "") -> Iterator[str]:
    for band, r in ratios.items():
        if len(r.ratio):
            spread = np.median(np.abs(r.ratio - np.median(r.ratio))) * 1.4826
            yield (
                f"| {what} | {band} | {len(r.ratio)} | {np.median(r.ratio):.4f} ± "
                f"{1.253 * spread / np.sqrt(len(r.ratio)):.4f}{unit} | {r.mean:.4f} ± {r.mean_error:.4f}{unit} | "
                f"{r.scatter:.2f} |"
            )


def main() -> None:
    root = Path(sys.argv[1])
    c = cut_outs(root)
    print("| measured / catalogued | band | n | median | weighted mean | scatter / expected |")
    print("|---|---|---|---|---|---|")
    for kind in ("star", "quasar", "galaxy"):
        print(*rows(f"cut-outs, {kind}", legacy_ratios(c, kind)), sep="\n")
    s = spectra(root)
    print(*rows("DESI spectra", desi_ratios(s)), sep="\n")
    print(*rows("Gaia XP", xp_ratios(root)), sep="\n")
    print(*rows("lines, km/s", line_offsets(s)), sep="\n")
    offset, error = centroids(c)
    good = error < 0.005
    middle, spread = np.median(offset[good], axis=0), 1.4826 * np.median(np.abs(offset[good]), axis=0)
    off = 1.253 * spread / np.sqrt(good.sum())
    print(
        f"\n{good.sum()} stars with an expected error below 0.005 pixels: centroid less dx, dy "
        f"{middle[0]:+.5f} ± {off[0]:.5f}, {middle[1]:+.5f} ± {off[1]:.5f}; scatter {spread[0]:.4f}, {spread[1]:.4f}"
    )
    for band, ratio in seeing(c).items():
        print(f"seeing {band}: {len(ratio)} stars, measured / psf_fwhm {np.median(ratio):.4f}")
    beside = neighbours(c, pq.read_table(root / "truth" / "sources.parquet"))
    off = np.median(beside[:, :2], axis=0)
    print(f"{len(beside)} neighbours: median offset {off[0]:+.3f}, {off[1]:+.3f} pixels from north up, east left")


if __name__ == "__main__":
    main()
