"""HSC's coadds of the mock sky: `calexp` files of one patch and band, with IMAGE, MASK and VARIANCE in counts.

Counts have the zero point 27. Every second file says so by FLUXMAG0. The numbers of the mask planes differ between
files, as their MP_ keys say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from skycairn.catalogs.hscfiles import calexp_path
from skycairn.mocksky import hsc, morphology, render
from skycairn.mocksky.fitsfile import compressed, save
from skycairn.mocksky.hsc import BANDS, EPOCH, SEEING_ARCSEC, Dirt, bright_radius_arcsec, pixel_sigma, saturated_radius
from skycairn.mocksky.hscskymap import PIXEL_ARCSEC, Tract, tracts
from skycairn.mocksky.patches import PIXEL_ARCSEC as PAINTED_ARCSEC
from skycairn.mocksky.patches import Tier
from skycairn.mocksky.streams import stream
from skycairn.mocksky.truth import moved

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]

ZERO_POINT = 27.0
COUNTS = 10 ** (0.4 * (ZERO_POINT - 22.5))
"""Counts of a nanomaggy."""
PLANES = ("BAD", "SAT", "INTRP", "CR", "EDGE", "DETECTED", "DETECTED_NEGATIVE", "SUSPECT", "NO_DATA", "BRIGHT_OBJECT")
ANGULAR = ("bulge_radius", "disk_radius", "bar_radius")


class Task(NamedTuple):
    """All that one patch's files are made of."""

    root: Path
    tract: Tract
    column: int
    row: int
    rows: dict[str, NDArray[Any]]
    "the truth table's rows around the patch"
    flux: dict[str, F64]
    "nanomaggies of each, by band"
    dirt: Dirt
    seed: int
    noise: bool = True
    "False: the light alone, in steps of a 1024th of the noise"


def tasks(root: Path, tier: Tier, rows: Mapping[str, NDArray[Any]], seed: int, noise: bool = True) -> list[Task]:
    """One a patch."""
    out, all_tracts, flux = [], tracts(tier), hsc.seen_fluxes(rows)
    spoiled = hsc.dirt(all_tracts, tier.pixels)
    for t in all_tracts:
        mine = np.flatnonzero(rows["patch"] == t.sky_patch)
        x, y = t.wcs.wcs_world2pix(rows["ra"][mine], rows["dec"][mine], 0)
        for c in range(t.columns):
            for r in range(t.rows):
                x1, y1 = t.first_pixel(c, r)
                near = (np.abs(x - x1 - t.width / 2) < t.width / 2 + 200) & (
                    np.abs(y - y1 - t.width / 2) < t.width / 2 + 200
                )
                some = mine[near]
                light = {b: f[some] for b, f in flux.items()}
                out.append(Task(root, t, c, r, {n: v[some] for n, v in rows.items()}, light, spoiled, seed, noise))
    return out


def local_wcs(t: Tract, column: int, row: int) -> WCS:
    """WCS of a patch's images: the tract's, moved by whole pixels."""
    x1, y1 = t.first_pixel(column, row)
    wcs = t.wcs.deepcopy()
    wcs.wcs.crpix = [20001 - x1, 20001 - y1]
    wcs.wcs.set()
    return wcs


def paint(task: Task, wcs: WCS) -> F64:
    """Light without noise, (band, y, x), nanomaggies.

    `render` paints in pixels of 0.262 arcsec: all angles are stretched so that its pixel is HSC's.
    """
    rows, stretch = dict(task.rows), PAINTED_ARCSEC / PIXEL_ARCSEC
    for name in ANGULAR:
        rows[name] = rows[name] * stretch
    width = task.tract.width
    fwhm = np.array([SEEING_ARCSEC[b] * stretch for b in BANDS])
    share = morphology.shares(rows)
    share = np.concatenate([share, share[:, :, -1:]], axis=2)  # y as z
    flux = np.stack([task.flux[b] for b in BANDS], axis=1)
    image = np.zeros((len(BANDS), width, width))
    ra, dec = moved(rows["ra"], rows["dec"], rows["pmra"], rows["pmdec"], EPOCH - 2016.0)
    for i, place in enumerate(render.places(wcs, ra, dec)):
        row = {name: values[i] for name, values in rows.items()}
        size = render.stamp_size(row, float(flux[i].max()), float(fwhm.max()))
        if min(place.x, place.y) < -size or max(place.x, place.y) > width + size:
            continue
        drawn, x0, y0 = render.stamp(row, place, share[i], flux[i], fwhm, size)
        xa, xb, ya, yb = max(x0, 0), min(x0 + size, width), max(y0, 0), min(y0 + size, width)
        if xa < xb and ya < yb:
            image[:, ya:yb, xa:xb] += drawn[:, ya - y0 : yb - y0, xa - x0 : xb - x0]
    return image


class Layer(NamedTuple):
    """One band of a patch, in counts, each (y, x)."""

    image: F32
    variance: F32
    planes: dict[str, NDArray[np.bool_]]
    "pixels of each mask plane; those of `PLANES` that are not here have none"


def pixels(task: Task) -> Iterator[tuple[str, Layer]]:
    """The patch as the survey has it in each band that has a file, noise and holes included."""
    t, number = task.tract, task.tract.patch_number(task.column, task.row)
    wcs, where = local_wcs(t, task.column, task.row), (t.number, number)
    light = paint(task, wcs)
    rng = stream(task.seed, "hsc", t.number * 1000 + number, "noise")
    y, x = np.ogrid[: t.width, : t.width]
    hole = np.zeros((t.width, t.width), bool)
    if where in task.dirt.hole:
        hx, hy, radius = task.dirt.hole[where]
        hole = (x - hx) ** 2 + (y - hy) ** 2 < radius**2
    stars = np.flatnonzero(task.rows["kind"] != "galaxy")
    a, d, pmra, pmdec = (task.rows[c][stars] for c in ("ra", "dec", "pmra", "pmdec"))
    sx, sy = wcs.wcs_world2pix(*moved(a, d, pmra, pmdec, EPOCH - 2016.0), 0)
    for b, band in enumerate(BANDS):
        noise = rng.standard_normal((t.width, t.width), dtype=np.float32)
        if (band == "y" and where == task.dirt.no_y) or (band == "z" and where == task.dirt.absent):
            continue
        sigma = pixel_sigma(band) * COUNTS
        seen = light[b] * COUNTS + sigma * noise if task.noise else light[b] * COUNTS
        image = np.where(hole, 0, seen).astype(np.float32)
        variance = np.where(hole, 0, sigma**2).astype(np.float32)
        set_ = {"NO_DATA": hole, "DETECTED": light[b] > 3 * pixel_sigma(band)}
        set_["SAT"], set_["BRIGHT_OBJECT"] = np.zeros_like(hole), np.zeros_like(hole)
        for k, s in enumerate(stars.tolist()):
            _disk(set_["SAT"], sx[k], sy[k], float(saturated_radius(task.flux[band][s : s + 1], band)[0]))
            if task.rows["gaia_g"][s] < hsc.BRIGHT_G:
                reach = bright_radius_arcsec(float(task.rows["gaia_g"][s])) / PIXEL_ARCSEC
                _disk(set_["BRIGHT_OBJECT"], sx[k], sy[k], reach)
        yield band, Layer(image, variance, set_)


def _disk(plane: NDArray[np.bool_], x: float, y: float, radius: float) -> None:
    """Set the pixels nearer than this to a position."""
    if not radius > 0:
        return
    first = [max(int(np.floor(v - radius)), 0) for v in (x, y)]
    last = [max(int(np.ceil(v + radius)) + 1, 0) for v in (x, y)]
    part = plane[first[1] : last[1], first[0] : last[0]]
    rows, columns = np.ogrid[first[1] : first[1] + part.shape[0], first[0] : first[0] + part.shape[1]]
    part |= (columns - x) ** 2 + (rows - y) ** 2 < radius**2


def write_patch(task: Task) -> int:
    """Paint a patch and write its files; gives the bytes written."""
    t, number = task.tract, task.tract.patch_number(task.column, task.row)
    wcs, total = local_wcs(t, task.column, task.row), 0
    for band, layer in pixels(task):
        b = BANDS.index(band)
        sigma = pixel_sigma(band) * COUNTS
        hole = layer.planes["NO_DATA"]
        planes = PLANES if (t.number + b) % 3 else PLANES[::-1]
        mask = np.zeros(hole.shape, np.int32)
        for name, bad in layer.planes.items():
            mask |= np.where(bad, np.int32(1 << planes.index(name)), np.int32(0))
        cards = wcs_cards(wcs)
        whole = cards.copy()
        for k, name in enumerate(planes):
            # a long name needs its own kind of card; said so, astropy does not warn
            whole[f"{'HIERARCH ' if len(name) > 5 else ''}MP_{name}"] = k
        hdus: list[Any] = [fits.PrimaryHDU(header=_primary(band, t, number, b))]
        hdus.append(compressed(layer.image, _named(cards, "IMAGE"), sigma / (16 if task.noise else 1024), 1 + b))
        hdus.append(compressed(mask, _named(whole, "MASK")))
        if band == "y" and hole.any():
            # as some coadds have it: NaN where there is no data
            hdus.append(
                fits.ImageHDU(np.where(hole, np.nan, layer.variance).astype(np.float32), _named(cards, "VARIANCE"))
            )
        else:
            hdus.append(compressed(layer.variance, _named(cards, "VARIANCE"), sigma**2 / 16))
        path = task.root / calexp_path(band, t.number, number)
        save(path, hdus)
        total += path.stat().st_size
    return total


def _primary(band: str, t: Tract, number: int, b: int) -> fits.Header:
    cards = fits.Header()
    cards["FILTER"], cards["TRACT"], cards["PATCH"] = f"HSC-{band.upper()}", t.number, f"{number // 100},{number % 100}"
    if (t.number + b) % 2:
        cards["FLUXMAG0"] = 10 ** (0.4 * ZERO_POINT)
    return cards


def _named(cards: fits.Header, name: str) -> fits.Header:
    out = cards.copy()
    out["EXTNAME"] = name
    return out


def wcs_cards(wcs: WCS) -> fits.Header:
    """The cards of an image's place on the sky."""
    cards = fits.Header()
    cards["CTYPE1"], cards["CTYPE2"] = "RA---TAN", "DEC--TAN"
    cards["CRVAL1"], cards["CRVAL2"] = (float(v) for v in wcs.wcs.crval)
    cards["CRPIX1"], cards["CRPIX2"] = (float(v) for v in wcs.wcs.crpix)
    scale = PIXEL_ARCSEC / 3600
    cards["CD1_1"], cards["CD1_2"], cards["CD2_1"], cards["CD2_2"] = -scale, 0.0, 0.0, scale
    cards["CUNIT1"] = cards["CUNIT2"] = "deg"
    cards["RADESYS"] = "ICRS"
    return cards
