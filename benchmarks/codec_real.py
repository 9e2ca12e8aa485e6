"""What codecs make of real survey files: encode, decode, and residuals against the data, which are all there is.

    python benchmarks/codec_real.py REAL_DATA LOCK [NAME=LOCK ...]

REAL_DATA holds the small real files of `SKYCAIRN_REAL_DATA`; LOCK is a codecs.lock, as in a pile. Read by the surveys'
own readers: DESI's spectra of tile 80613, SDSS's spec files, cut-outs of the Legacy Surveys' brick 0959p805 (DR6, g and
z alone) about its brightest things, and HSC's cut-out of a scene in COSMOS. A codec judged here was fitted to another
sky. The data hold noise: the truth itself would have 1, and a codec that copies noise has less. Pixels go by the
brightness of the data smoothed over 5 pixels a side, since the noise of a pixel must not choose its class.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from astropy.io import fits
from astropy.wcs import WCS
from scipy.ndimage import maximum_filter, uniform_filter

from skycairn.catalogs import desicoadd, sdssspectra
from skycairn.catalogs.hscimage import nanomaggies
from skycairn.catalogs.legacysurvey import LegacySurvey
from skycairn.cli.qualitytables import Table, number
from skycairn.tokenizers.codec import Codec
from skycairn.tokenizers.lock import read_lock
from skycairn.tokenizers.quality import class_names, errors_by_brightness, good_pixels

Arrays = dict[str, np.ndarray]
SIDE = 160
SMOOTH = 5


class Real(NamedTuple):
    """Real measurements of one modality."""

    modality: str
    whence: str
    arrays: Arrays


def read(folder: Path) -> Iterator[Real]:
    """All that is there; a modality whose files are not is left out."""
    for reader in (desi_spectra, sdss_spectra, legacy_images, hsc_images):
        try:
            yield reader(folder)
        except FileNotFoundError:
            continue


def desi_spectra(folder: Path) -> Real:
    """Every target of DESI's coadd of tile 80613 with a good pixel."""
    path = folder / "desi/coadd-redrock-iron/coadd-4-80613-thru20210324.fits"
    with fits.open(path) as hdus:
        ids = np.unique(np.asarray(hdus["FIBERMAP"].data["TARGETID"], dtype=np.int64))
    found = desicoadd.read_spectra(path, ids)
    some = ~found["mask"].all(axis=1)
    return Real("desi.spectrum", path.name, {k: found[k][some] for k in ("flux", "ivar", "mask")})


def sdss_spectra(folder: Path) -> Real:
    """SDSS's single spec files."""
    paths = sorted((folder / "sdss/spec").glob("spec-*.fits"))
    if not paths:
        raise FileNotFoundError(folder / "sdss/spec")
    rows = []
    for path in paths:
        plate, mjd, fiber = (int(n) for n in path.stem.split("-")[1:])
        rows.append(sdssspectra.read_spec(path, plate, mjd, fiber))
    arrays = {k: np.concatenate([getattr(r, k) for r in rows]) for k in ("flux", "ivar", "mask")}
    return Real("sdss.spectrum", f"{len(paths)} spec files", arrays)


def legacy_images(folder: Path, most: int = 24) -> Real:
    """Cut-outs about the brightest peaks of DR6's brick in g; r and i were not observed and are masked."""
    brick = folder / "legacysurvey/coadd-dr6/coadd/095/0959p805"
    files = {f"{p}-{b}": brick / f"legacysurvey-0959p805-{p}-{b}.fits.fz" for p in ("image", "invvar") for b in "gz"}
    image, header = fits.getdata(files["image-g"], 1), fits.getheader(files["image-g"], 1)
    ivar = fits.getdata(files["invvar-g"], 1)
    sn = np.where(ivar > 0, uniform_filter(np.where(ivar > 0, image, 0), 3) * 3 * np.sqrt(np.maximum(ivar, 0)), 0)
    peak = (sn == maximum_filter(sn, 41)) & (sn > 20)
    peak[:SIDE] = peak[-SIDE:] = peak[:, :SIDE] = peak[:, -SIDE:] = False
    y, x = np.nonzero(peak)
    order = np.argsort(sn[y, x])[np.unique(np.linspace(0, len(x) - 1, most).astype(int))]
    ra, dec = WCS(header, naxis=2).all_pix2world(x[order], y[order], 0)
    keys = pa.array(np.arange(len(order)), pa.int64())
    sources = pa.table({"key": keys, "ra": np.asarray(ra, float), "dec": np.asarray(dec, float)})
    made = LegacySurvey("dr9-north").extract("legacysurvey.image", sources, files, frozenset())
    shape = (made.num_rows, 4, SIDE, SIDE)
    flat = {k: made[k].combine_chunks().flatten().to_numpy(zero_copy_only=False) for k in ("flux", "ivar", "mask")}
    return Real("legacysurvey.image", "DR6 brick 0959p805, g and z", {k: v.reshape(shape) for k, v in flat.items()})


def hsc_images(folder: Path) -> Real:
    """The scene of `hsc_cosmos_35`, in the middle of what a cut-out holds; masked beyond it."""
    path = folder / "hsc/scarlet/hsc_cosmos_35.npz"
    with np.load(path, allow_pickle=False) as scene:
        counts, variance = (scene[k].astype(np.float64) for k in ("images", "variance"))
        names = [str(f) for f in scene["filters"]]
    if names != list("grizy"):
        raise ValueError(f"{path}: bands {names}, wanted g, r, i, z, y")
    flux, ivar, mask = nanomaggies(counts, variance, np.zeros(counts.shape, bool), 27.0)
    whole = {"flux": np.zeros((1, 5, SIDE, SIDE), "f4"), "ivar": np.zeros((1, 5, SIDE, SIDE), "f4")}
    whole["mask"] = np.ones((1, 5, SIDE, SIDE), bool)
    ny, nx = (min(n, SIDE) for n in flux.shape[1:])
    here = np.s_[0, :, SIDE // 2 - ny // 2 :, SIDE // 2 - nx // 2 :]
    for name, values in (("flux", flux), ("ivar", ivar), ("mask", mask)):
        whole[name][here][:, :ny, :nx] = values[:, :ny, :nx]
    return Real("hsc.image", path.name, whole)


def smoothed(real: Real, good: np.ndarray) -> np.ndarray:
    """Brightness in sigma a pixel: the mean over neighbours, of good pixels alone."""
    size = [1, 1, SMOOTH, SMOOTH] if good.ndim == 4 else [1, SMOOTH]
    sn = np.where(good, real.arrays["flux"] * np.sqrt(np.where(good, real.arrays["ivar"], 0)), 0.0).astype(float)
    return np.asarray(uniform_filter(sn, size) / np.maximum(uniform_filter(good.astype(float), size), 1e-9))


def residuals(real: Real, codecs: Mapping[str, Codec]) -> Table:
    """Decoded less measured in sigma by class of brightness, of codecs by name."""
    good = good_pixels(real.arrays["ivar"], real.arrays["mask"])
    bright = smoothed(real, good)
    columns: dict[str, Any] = {}
    for name, codec in codecs.items():
        tokens = codec.encode(real.arrays)
        decoded = np.asarray(codec.decode(tokens)["flux"], np.float64)
        inner: Any = np.s_[:]
        if decoded.ndim == 4:
            first = [a // 2 - b // 2 for a, b in zip(good.shape[-2:], decoded.shape[-2:], strict=True)]
            ends = [f + n for f, n in zip(first, decoded.shape[-2:], strict=True)]
            inner = np.s_[:, :, first[0] : ends[0], first[1] : ends[1]]
        arrays = (real.arrays["flux"][inner], real.arrays["ivar"][inner], good[inner], bright[inner])
        if "no light" not in columns:
            columns["no light"] = errors_by_brightness(np.zeros(decoded.shape), *arrays)
        columns[name] = errors_by_brightness(decoded, *arrays)
    head = ["data, sigma a pixel", "objects"]
    for name in columns:
        head += [f"{name}: median", "all pixels", *(["bias, sigma"] if name != "no light" else [])]
    rows = []
    for k, label in enumerate(class_names()):
        n = int(next(iter(columns.values())).objects()[k])
        row = [label, str(n)]
        for name, e in columns.items():
            row += [number(e.medians()[k]), number(e.pooled()[k])]
            row += [number(e.bias()[k], "+.2f")] if name != "no light" else []
        if n:
            rows.append(tuple(row))
    return Table(f"{real.modality}: {real.whence}, {len(good)} sources", "", tuple(head), rows)


def main() -> None:
    """Print a table a modality."""
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    given = [("pile", a) if "=" not in a else a.split("=", 1) for a in sys.argv[2:]]
    locks = {name: read_lock(Path(path)) for name, path in given}
    for real in read(Path(sys.argv[1])):
        codecs = {name: lock[real.modality] for name, lock in locks.items() if real.modality in lock}
        if codecs:
            print(residuals(real, codecs).markdown())


if __name__ == "__main__":
    main()
