"""The Legacy Survey's images of one mini-brick, in DR10's own files; and the truth masks on the same grid.

An isolated source's pixels add up to its true flux: to better than 1 % within a radius of 5 half-light radii plus
7 arcsec, where no more than 0.3 % of a Moffat profile of beta = 3 is left out.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from skycairn.mocksky import render
from skycairn.mocksky.exposures import NPRIMARY, Exposures
from skycairn.mocksky.fitsfile import compressed, save, write_checksums
from skycairn.mocksky.morphology import BANDS
from skycairn.mocksky.streams import stream
from skycairn.mocksky.truth import moved

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
Rows = Mapping[str, NDArray[Any]]


class Task(NamedTuple):
    """All that one brick's files are made of; small enough to send to another process."""

    root: Path
    "the survey's root"
    masks: Path
    "folder of the truth masks"
    look: Exposures
    rows: dict[str, NDArray[Any]]
    "the truth table's rows around the brick"
    seed: int
    absent_z: bool
    "image-z is to be listed and not there"
    noise: bool = True
    "False: the light alone, in steps of a 1024th of the noise"


def around(rows: Rows, look: Exposures) -> dict[str, NDArray[Any]]:
    """The rows of the truth table that may show in a brick's images."""
    brick = look.brick
    mine = np.flatnonzero(rows["patch"] == brick.patch)
    x, y = brick.wcs.wcs_world2pix(rows["ra"][mine], rows["dec"][mine], 0)
    middle, reach = (brick.width - 1) / 2, brick.width / 2 + 260
    mine = mine[(np.abs(x - middle) < reach) & (np.abs(y - middle) < reach)]
    return {name: values[mine] for name, values in rows.items()}


class Layer(NamedTuple):
    """One band of a brick."""

    image: F32
    invvar: F32
    psfsize: F32


class Pixels(NamedTuple):
    """A brick's images, each (y, x)."""

    bands: dict[str, Layer]
    "those that were exposed"
    bits: NDArray[np.int32]
    "MASKBITS"
    scene: render.Scene


def pixels(task: Task, whole: bool = True) -> Pixels:
    """The brick as the survey has it, noise and defects included.

    Not `whole`: without the truth masks and NPRIMARY, which no cut-out looks at.
    """
    look, rows = task.look, task.rows
    brick = look.brick
    ra, dec = moved(rows["ra"], rows["dec"], rows["pmra"], rows["pmdec"], look.epoch - 2016.0)
    # a band that is missing is painted with some seeing and not written
    fwhm = np.array([look.fwhm[b] or 1.0 for b in BANDS])
    above = look.pixel_invvar("r") ** -0.5 / np.sqrt(5) if whole else np.inf
    scene = render.paint(rows, ra, dec, brick.wcs, brick.width, fwhm, above)
    y, x = np.ogrid[: brick.width, : brick.width]
    rng = stream(task.seed, "legacysurvey", brick.brickid, "noise")
    bands: dict[str, Layer] = {}
    for b, band in enumerate(BANDS):
        noise = rng.standard_normal((brick.width, brick.width), dtype=np.float32)
        if not look.number[band]:
            continue
        count = look.count(band, x, y)
        invvar = (count * look.pixel_invvar(band)).astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            seen = scene.image[b] + noise / np.sqrt(invvar) if task.noise else scene.image[b]
            image = np.where(count > 0, seen, 0).astype(np.float32)
        seeing = np.where(look.exposed(band, x, y) > 0, look.fwhm[band], 0).astype(np.float32)
        bands[band] = Layer(image, invvar, seeing)
    bits = look.maskbits(x, y)
    if whole:
        rows_of, columns_of = np.indices(bits.shape)
        lon, lat = brick.wcs.wcs_pix2world(columns_of.ravel(), rows_of.ravel(), 0)
        bits[~brick.holds(lon % 360, lat).reshape(bits.shape)] |= NPRIMARY
    return Pixels(bands, bits, scene)


def write_brick(task: Task) -> int:
    """Paint the brick and write its files and their checksum list; gives the bytes written."""
    look, brick = task.look, task.look.brick
    painted = pixels(task)
    bits, scene = painted.bits, painted.scene
    folder = task.root / "south" / "coadd" / brick.name[:3] / brick.name
    written = []
    for band, layer in painted.bands.items():
        b = BANDS.index(band)
        sigma = (look.number[band] * look.pixel_invvar(band)) ** -0.5
        # steps: a 16th of the noise; the others are whole numbers of steps, so that they are kept exactly
        products = (
            ("image", layer.image, sigma / (16 if task.noise else 1024), 1 + b),
            ("invvar", layer.invvar, look.pixel_invvar(band) / 16, None),
            ("psfsize", layer.psfsize, 0.001, None),
        )
        for product, array, step, dither_seed in products:
            path = folder / f"legacysurvey-{brick.name}-{product}-{band}.fits.fz"
            save(path, [fits.PrimaryHDU(), compressed(array, header(look, product, band), step, dither_seed)])
            written.append(path)
    none = np.zeros(bits.shape, dtype=np.uint8)
    path = folder / f"legacysurvey-{brick.name}-maskbits.fits.fz"
    maps = [compressed(a, header(look, "maskbits", "")) for a in (bits, none, none)]
    for hdu, name in zip(maps, ("MASKBITS", "WISEMASK_W1", "WISEMASK_W2"), strict=True):
        hdu.header["EXTNAME"] = name
    save(path, [fits.PrimaryHDU(), *maps])
    written.append(path)
    write_checksums(folder / f"legacysurvey_dr10_south_coadd_{brick.name[:3]}_{brick.name}.sha256sum", written)
    total = sum(p.stat().st_size for p in written)
    if task.absent_z:
        (folder / f"legacysurvey-{brick.name}-image-z.fits.fz").unlink()
    write_masks(task.masks / f"{brick.name}.npz", label=scene.label, owner=scene.owner.astype(np.int32))
    return total


def header(look: Exposures, product: str, band: str) -> fits.Header:
    """The cards of a coadd that readers use: brick, band, WCS, unit."""
    brick = look.brick
    cards = fits.Header()
    cards["SURVEY"], cards["DRVERSIO"] = "DECaLS", 10000
    cards["BRICKNAM"], cards["BRICKID"] = brick.name, brick.brickid
    cards["RAMIN"], cards["RAMAX"], cards["DECMIN"], cards["DECMAX"] = brick.ra1, brick.ra2, brick.dec1, brick.dec2
    cards["BRICKRA"], cards["BRICKDEC"] = brick.ra, brick.dec
    cards["BRICKBND"] = "".join(b for b in BANDS if look.number[b])
    if band:
        cards["FILTER"] = band
        cards["MJD_MEAN"] = (2000 - 1858.8761) * 365.25 + (look.epoch - 2000) * 365.25
    cards["CTYPE1"], cards["CTYPE2"] = "RA---TAN", "DEC--TAN"
    cards["CRVAL1"], cards["CRVAL2"] = brick.ra, brick.dec
    cards["CRPIX1"] = cards["CRPIX2"] = (brick.width + 1) / 2
    scale = 0.262 / 3600
    cards["CD1_1"], cards["CD1_2"], cards["CD2_1"], cards["CD2_2"] = -scale, 0.0, 0.0, scale
    cards["EQUINOX"], cards["IMTYPE"], cards["MAGZERO"] = 2000.0, product, 22.5
    units = {"image": "nanomaggy", "invvar": "1/nanomaggy^2", "psfsize": "arcsec"}
    if product in units:
        cards["BUNIT"] = units[product]
    return cards


def write_masks(path: Path, **arrays: NDArray[Any]) -> None:
    """An npz of these arrays, compressed, without a date."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as stream_:
                np.lib.format.write_array(stream_, array, allow_pickle=False)
