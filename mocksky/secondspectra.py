"""How the second release edits the catalogues of spectra: DESI, SDSS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skycairn.mocksky import desi, sdss, tableedits
from skycairn.mocksky.patches import Tier
from skycairn.mocksky.releasetables import FILE, Edition
from skycairn.mocksky.tableedits import NEW, Added, Form, few, missed, take

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Rows = dict[str, NDArray[Any]]

FLIPPED = 0.2
"""Of the targets with several spectra: another is the primary."""
Z_SHIFT_SIGMA = (3.0, 10.0)
"""By how many of its errors a changed redshift goes up or down."""


def desi_targets(
    tier: Tier, root: Path, seed: int, truth: pa.Table, sources: Rows, bricks: tuple[I64, NDArray[Any]]
) -> Edition:
    """The redshift catalogue: other redshifts and primaries; new targets with coadds of their own."""

    def key(rows: Rows) -> I64:
        names = (rows[c].astype(str) for c in ("SURVEY", "PROGRAM"))
        return np.asarray(desi.pack_key(rows["TARGETID"], *names).fill_null(-1).to_numpy(), dtype=np.int64)

    def flip(rows: Rows, _: F64) -> NDArray[Any]:
        repeated = (rows["ZCAT_NSPEC"] > 1) & (key(rows) >= 0)
        return _flip(rows, rows["TARGETID"], repeated, ("ZCAT_PRIMARY", "MAIN_PRIMARY", "SV_PRIMARY"), "SURVEY", seed)

    def add(rows: Rows, n: int) -> Added:
        rng = np.random.default_rng([seed, NEW])
        pick = np.sort(rng.permutation(missed(truth, sources, "no fibre"))[:n])
        options = desi.Options(spectra=tier.pixels, resolution=tier.name != "tiny")
        t = desi.later_targets(root, sources, pick, bricks, options, seed + NEW)
        new = take(rows, np.zeros(len(pick), dtype=np.int64))
        for name in new:
            if name != FILE:
                blank = np.zeros_like(new[name])
                new[name] = t[name].astype(blank.dtype) if name in t else blank
        return Added(new, t["uid"], t["dirt"].tolist())

    form = Form(
        "desi",
        key,
        "TARGET_RA",
        "TARGET_DEC",
        lambda rows, fresh: None,
        kinds=("gone", "moved", "changed"),
        first=flip,
        steady=lambda rows: rows["REF_CAT"] != b"",
        change=_redshift("Z", "ZERR"),
        add=add,
        extras={"targetid": "TARGETID", "survey": "SURVEY", "program": "PROGRAM", "healpix": "HEALPIX"},
    )
    return Edition(
        form,
        "zcatalog/v1/zall-pix-*.fits",
        ("SURVEY", "PROGRAM", "HEALPIX"),
        {"CHI2": "chi2", "COADD_NUMTILE": "COADD_NTILE"},
        {"MASKBITS": "i4"},
    )


def _flip(
    rows: Rows, target: I64, repeated: NDArray[np.bool_], flags: tuple[str, ...], within: str, seed: int
) -> NDArray[Any]:
    """Leave the repeated spectra alone, but for those of some targets whose primary is another now (`changed`).

    `flags` change places; the first says which is the primary. Both spectra are of one and the same `within`.
    """
    what = np.where(repeated, "same", "").astype("U10")
    ids = np.unique(target[repeated])
    ranked = ids[np.argsort(tableedits.chance(seed, "target", ids))]
    for one in ranked[: few(len(ids), FLIPPED)].tolist():
        mine = np.flatnonzero((target == one) & repeated)
        primary = rows[flags[0]][mine].astype(bool)
        old, new = mine[primary], mine[~primary]
        new = new[np.isin(rows[within][new], rows[within][old])][:1]
        if len(old) == len(new) == 1:
            for name in flags:
                rows[name][new], rows[name][old] = rows[name][old], rows[name][new]
            what[[*old, *new]] = "changed"
    return what


def _redshift(z: str, error: str) -> Callable[[Rows, I64, np.random.Generator], None]:
    def change(rows: Rows, at: I64, rng: np.random.Generator) -> None:
        sign, far = rng.choice([-1, 1], len(at)), rng.uniform(*Z_SHIFT_SIGMA, len(at))
        rows[z][at] += sign * far * rows[error][at]

    return change


def sdss_fibres(
    tier: Tier, root: Path, seed: int, truth: pa.Table, sources: Rows, bricks: tuple[I64, NDArray[Any]]
) -> Edition:
    """specObj: other redshifts and primaries, rows gone; sky fibres stay."""

    def key(rows: Rows) -> I64:
        parts = (rows[c].tolist() for c in ("PLATE", "MJD", "FIBERID"))
        names = zip(rows["RUN2D"].astype(str).tolist(), *parts, strict=True)
        return np.array([sdss.pack_key(*name) for name in names], dtype=np.int64)

    def flip(rows: Rows, _: F64) -> NDArray[Any]:
        light = rows["TARGETTYPE"] != b"SKY"
        repeated = (rows["NSPECOBS"] > 1) & light
        target = np.unique(rows["BESTOBJID"], return_inverse=True)[1]
        what = _flip(rows, target, repeated, ("SPECPRIMARY",), "SURVEY", seed)
        # the old kind of primary that SDSS-I had follows
        rows["SPECLEGACY"][:] = (rows["SPECPRIMARY"] == 1) & (rows["SURVEY"] == b"sdss")
        return np.where((what == "") & ~(light & np.isfinite(rows["Z"])), "same", what)

    form = Form(
        "sdss",
        key,
        "PLUG_RA",
        "PLUG_DEC",
        lambda rows, fresh: None,
        kinds=("gone", "moved", "changed"),
        first=flip,
        change=_redshift("Z", "Z_ERR"),
        extras={"run2d": "RUN2D", "plate": "PLATE", "mjd": "MJD", "fiberid": "FIBERID"},
    )
    renamed = {"SN_MEDIAN_ALL": "sn_median_all", "PLATERUN": "PLATE_RUN"}
    return Edition(form, "sdss/spectro/redux/specObj-*.fits", (), renamed, {"Z": "f8"})
