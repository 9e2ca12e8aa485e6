"""Write the mock Legacy Survey's tables: sweeps with their checksum list, and the two tables of bricks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skycairn.mocksky import legacytables
from skycairn.mocksky.exposures import Exposures
from skycairn.mocksky.fitsfile import TableColumn, write_checksums, write_table
from skycairn.mocksky.legacysurvey import Catalogue
from skycairn.mocksky.morphology import BANDS
from skycairn.mocksky.patches import Tier
from skycairn.mocksky.sed import EXTINCTION

TYPES = ("psf", "rex", "exp", "dev", "ser", "dup")
"""In lower case, as the table of bricks counts them."""


def write_sweeps(root: Path, catalogue: Catalogue) -> list[Path]:
    """Write `south/sweep/10.1/sweep-*.fits` and their checksum list."""
    folder = root / "south" / "sweep" / "10.1"
    boxes = np.array(catalogue.box)
    paths = []
    for box in sorted(set(catalogue.box)):
        at = np.flatnonzero(boxes == box)
        at = at[np.lexsort((catalogue.values["OBJID"][at], catalogue.values["BRICKID"][at]))]
        path = folder / f"sweep-{box}.fits"
        values = {c.name: catalogue.values[c.name][at] for c in legacytables.SWEEP if c.name in catalogue.values}
        write_table(path, legacytables.SWEEP, values, len(at))
        paths.append(path)
    write_checksums(folder / "legacysurvey_dr10_south_sweep_10.1.sha256sum", paths)
    return paths


def write_brick_tables(root: Path, tier: Tier, looks: list[Exposures], catalogue: Catalogue) -> None:
    """Write `survey-bricks.fits.gz` and `south/survey-bricks-dr10-south.fits.gz`."""
    bricks = tier.bricks
    whole: dict[str, list[Any]] = {
        "BRICKNAME": [b.name for b in bricks],
        "BRICKID": [b.brickid for b in bricks],
        "BRICKROW": [int((b.dec + 90) / tier.brick_deg) for b in bricks],
        "BRICKCOL": [int(b.ra1 / (b.ra2 - b.ra1)) for b in bricks],
        **{name.upper(): [getattr(b, name) for b in bricks] for name in ("ra", "dec", "ra1", "ra2", "dec1", "dec2")},
    }
    write_table(root / "survey-bricks.fits.gz", legacytables.BRICKS, _arrays(legacytables.BRICKS, whole), len(bricks))
    v = catalogue.values
    own = {b.brickid: np.flatnonzero(v["BRICKID"] == b.brickid) for b in bricks}
    south: dict[str, list[Any]] = {
        **{name: [getattr(b, name) for b in bricks] for name in ("ra", "dec", "ra1", "ra2", "dec1", "dec2", "brickid")},
        "brickname": whole["BRICKNAME"],
        "nobjs": [len(own[b.brickid]) for b in bricks],
        "survey_primary": [True] * len(bricks),
        "in_desi": [True] * len(bricks),
        "area": [(b.ra2 - b.ra1) * np.degrees(np.sin(np.radians(b.dec2)) - np.sin(np.radians(b.dec1))) for b in bricks],
        "ebv": [float(np.median(v["EBV"][own[b.brickid]])) if len(own[b.brickid]) else 0.0 for b in bricks],
    }
    for kind in TYPES:
        south[f"n{kind}"] = [int((v["TYPE"][own[b.brickid]] == kind.upper().encode()).sum()) for b in bricks]
    for band in BANDS:
        south[f"nexp_{band}"] = [look.number[band] for look in looks]
        south[f"nexphist_{band}"] = [_histogram(look, band) for look in looks]
        south[f"psfsize_{band}"] = [look.fwhm[band] for look in looks]
        depth = [float(look.depth(band, look.number[band])) if look.number[band] else 0.0 for look in looks]
        south[f"psfdepth_{band}"] = [22.5 - 2.5 * np.log10(5 / np.sqrt(d)) if d else 0.0 for d in depth]
        south[f"galdepth_{band}"] = [m - 0.3 if m else 0.0 for m in south[f"psfdepth_{band}"]]
        south[f"ext_{band}"] = [EXTINCTION[band] * e for e in south["ebv"]]
        south[f"trans_{band}"] = [10 ** (-0.4 * a) for a in south[f"ext_{band}"]]
    path = root / "south" / "survey-bricks-dr10-south.fits.gz"
    write_table(path, legacytables.SOUTH_BRICKS, _arrays(legacytables.SOUTH_BRICKS, south), len(bricks))


def _arrays(columns: tuple[TableColumn, ...], lists: Mapping[str, list[Any]]) -> dict[str, NDArray[Any]]:
    return {c.name: np.array(lists[c.name]).astype(c.dtype) for c in columns if c.name in lists}


def _histogram(look: Exposures, band: str) -> list[int]:
    """Pixels with 0, 1, ... 9, 10 or more exposures."""
    y, x = np.mgrid[: look.brick.width : 8, : look.brick.width : 8]
    counts = np.bincount(np.minimum(look.exposed(band, x, y).ravel(), 10), minlength=11)
    return [int(c) * 64 for c in counts]
