"""How the second release edits the catalogues of images: Legacy Survey, Gaia, HSC."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import healpy
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skycairn.mocksky import gaia, legacysurvey, sed, tableedits
from skycairn.mocksky.patches import Tier
from skycairn.mocksky.releasetables import FILE, Edition, read_fits, read_gaia, write_gaia
from skycairn.mocksky.tableedits import NEW, Added, Form, few, missed, nearest, take
from skycairn.mocksky.truth import offset

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Rows = dict[str, NDArray[Any]]

RENUMBERED = 0.1
"""Of the Legacy Survey's bricks: their RELEASE goes from 10000 to 10002."""
SPURIOUS_ARCSEC = 6.0
"""How far from a source the row of no true thing lies that is added where nothing true is left to add."""
NJY_PER_NANOMAGGY = 10 ** (0.4 * (31.4 - 22.5))
_HSC_FILES = "sql/pdr3_wide/forced-*.fits"


def legacy(
    tier: Tier, root: Path, seed: int, truth: pa.Table, sources: Rows, bricks: tuple[I64, NDArray[Any]]
) -> Edition:
    """Sweeps: bricks get another RELEASE, blends fall apart, what was too faint is found; Gaia's stars stay."""
    shown = tuple(b.upper() for b in sed.EXTINCTION)
    light = tuple(f"{stem}_{b}" for stem in ("FIBERFLUX", "FIBERTOTFLUX") for b in "GRIZ")

    def key(rows: Rows) -> I64:
        return legacysurvey.key(rows["RELEASE"], rows["BRICKID"], rows["OBJID"])

    def renumber(rows: Rows, _: F64) -> NDArray[Any]:
        old = np.unique(rows["BRICKID"][rows["RELEASE"] == legacysurvey.RELEASE])
        ranked = old[np.argsort(tableedits.chance(seed, "brick", old))]
        chosen = np.isin(rows["BRICKID"], ranked[: min(few(len(old), RENUMBERED), len(old) - 1)])
        rows["RELEASE"][chosen] = legacysurvey.FIXED_RELEASE
        return np.where(chosen, "renumbered", "")

    def add(rows: Rows, n: int) -> Added:
        rng = np.random.default_rng([seed, NEW])
        usable = (rows["TYPE"] != b"DUP") & (rows["REF_CAT"] == b"") & np.isfinite(rows["RA"])
        for b in shown:
            usable &= np.isfinite(rows[f"FLUX_{b}"])
        good = np.flatnonzero(usable)
        lost = missed(truth, sources, "too faint")
        owner = tier.brick_index(sources["ra"], sources["dec"], sources["patch"])
        numbers = np.array([b.brickid for b in tier.bricks])
        still = lost[(owner[lost] >= 0) & (sources["kind"][lost] != "star")]
        still = still[np.isin(numbers[owner[still]], rows["BRICKID"][good])]
        pick = np.sort(rng.permutation(still)[:n])
        if not len(pick):
            return _spurious(rows, good[:1], "RA", "DEC")
        like = np.empty(len(pick), dtype=np.int64)
        for brick in np.unique(owner[pick]):
            mine = owner[pick] == brick
            there = good[rows["BRICKID"][good] == numbers[brick]]
            like[mine] = nearest(rows, form, there, sources["ra"][pick[mine]], sources["dec"][pick[mine]])
        new = take(rows, like)
        new["RA"], new["DEC"] = sources["ra"][pick].copy(), sources["dec"][pick].copy()
        new["TYPE"] = np.where(sources["kind"][pick] == "galaxy", b"REX", b"PSF").astype("S3")
        for name in new:
            if name.startswith(("SHAPE_", "SERSIC", "FIBER")):
                new[name][:] = 0
        new["SHAPE_R"][:] = np.where(new["TYPE"] == b"REX", 0.4, 0.0)
        new["SHAPE_R_IVAR"][:] = np.where(new["TYPE"] == b"REX", 25.0, 0.0)
        for b in shown:
            ivar = new[f"FLUX_IVAR_{b}"].astype(np.float64)
            true = sources.get(f"flux_{b.lower()}", np.zeros(len(sources["ra"])))[pick]
            noise = rng.standard_normal(len(pick)) / np.sqrt(np.where(ivar > 0, ivar, np.inf))
            new[f"FLUX_{b}"][:] = np.where(ivar > 0, true + noise, 0.0)
        for stem, b in (c.split("_") for c in light):
            new[f"{stem}_{b}"][:] = 0.7 * new[f"FLUX_{b}"]
        return Added(new, sources["uid"][pick].astype(np.int64), [""] * len(pick))

    def number(rows: Rows, fresh: Rows) -> None:
        _next(fresh, "OBJID", fresh["BRICKID"], _tops(rows["BRICKID"], rows["OBJID"]))

    def file_of(rows: Rows, paths: list[Path]) -> I64:
        names = [p.name for p in paths]
        boxes = [f"sweep-{legacysurvey.sweep_box(a, d)}.fits" for a, d in zip(rows["RA"], rows["DEC"], strict=True)]
        return np.array([names.index(b) if b in names else f for b, f in zip(boxes, rows[FILE], strict=True)])

    form = Form(
        "legacysurvey",
        key,
        "RA",
        "DEC",
        number,
        flux=(*(f"FLUX_{b}" for b in shown), *light),
        ivar=tuple(f"FLUX_IVAR_{b}" for b in shown),
        band="flux_r",
        first=renumber,
        steady=lambda rows: (rows["REF_CAT"] != b"") | (rows["TYPE"] == b"DUP"),
        add=add,
    )
    return Edition(
        form,
        "south/sweep/*/sweep-*.fits",
        ("BRICKID", "OBJID"),
        {"SERSIC": "sersic", "WISE_COADD_ID": "UNWISE_COADD_ID"},
        {"FITBITS": "i4"},
        file_of=file_of,
    )


def _spurious(rows: Rows, at: I64, ra: str, dec: str) -> Added:
    """A row of no true thing beside another."""
    new = take(rows, at)
    east = np.full(len(at), SPURIOUS_ARCSEC)
    new[ra], new[dec] = offset(new[ra], new[dec], east, 0 * east)
    return Added(new, np.zeros(len(at), dtype=np.int64), ["spurious"] * len(at))


def _tops(group: NDArray[Any], number: NDArray[Any]) -> dict[int, int]:
    """The largest number within each group."""
    order = np.lexsort((number, group))
    return dict(zip(group[order].tolist(), number[order].tolist(), strict=True))


def _next(fresh: Rows, name: str, group: NDArray[Any], tops: dict[int, int]) -> None:
    """Number the new rows on from the largest of their group."""
    for i, g in enumerate(group.tolist()):
        tops[g] = fresh[name][i] = tops.get(g, 0) + 1


def gaia_sources(
    tier: Tier, root: Path, seed: int, truth: pa.Table, sources: Rows, bricks: tuple[I64, NDArray[Any]]
) -> Edition:
    """GaiaSource files: moves within the errors; a split source's parts have ids of their own and no spectrum."""
    bands = ("g", "bp", "rp")

    def settle(rows: Rows, at: I64) -> None:
        for to, lon, lat in (("G", "l", "b"), ("E", "ecl_lon", "ecl_lat")):
            if len(at):
                a, d = healpy.Rotator(coord=("C", to))(rows["ra"][at], rows["dec"][at], lonlat=True)
                rows[lon][at], rows[lat][at] = a % 360.0, d

    def parts(fresh: Rows) -> None:
        fresh["has_xp_continuous"][:] = fresh["has_xp_sampled"][:] = False
        settle(fresh, np.arange(len(fresh["ra"])))

    def add(rows: Rows, n: int) -> Added:
        rng = np.random.default_rng([seed, NEW])
        level8 = healpy.ang2pix(256, sources["ra"], sources["dec"], nest=True, lonlat=True)
        there = _file_of_pixels(level8, sorted(root.glob("gaia_source/GaiaSource_*.csv.gz"))) >= 0
        lost = np.concatenate([missed(truth, sources, why) for why in ("not detected", "extended")])
        pick = np.sort(rng.permutation(lost[there[lost]])[:n])
        measured, dirt = gaia.measure({k: v[pick] for k, v in sources.items()}, gaia.Options(spectra=False), rng)
        new = take(rows, np.zeros(len(pick), dtype=np.int64))
        for name, value in measured.items():
            if new[name].dtype.kind != "S":
                new[name] = np.atleast_1d(value).astype(new[name].dtype)  # healpy makes a number of one
        return Added(new, sources["uid"][pick].astype(np.int64), dirt.tolist())

    def number(rows: Rows, fresh: Rows) -> None:
        # level-12 pixel, then a running number of 28 bits, then 7 bits of the component
        held, pixel = rows["source_id"] >> 35, fresh["source_id"] >> 35
        running = {"n": np.zeros(len(pixel), dtype=np.int64)}
        _next(running, "n", pixel, _tops(held, (rows["source_id"] >> 7) & ((1 << 28) - 1)))
        fresh["source_id"][:] = (pixel << 35) | (running["n"] << 7)
        fresh["designation"][:] = [f"Gaia DR3 {k}".encode() for k in fresh["source_id"].tolist()]

    form = Form(
        "gaia",
        lambda rows: rows["source_id"],
        "ra",
        "dec",
        number,
        flux=tuple(f"phot_{b}_mean_flux{e}" for b in bands for e in ("", "_error")),
        mag=tuple(f"phot_{b}_mean_mag" for b in bands),
        shift=lambda rows, at: np.minimum(rows["ra_error"], rows["dec_error"])[at] / 1000,
        settle=settle,
        parts=parts,
        stays=False,
        add=add,
        extras={"has_xp": "has_xp_continuous"},
    )
    return Edition(
        form,
        "gaia_source/GaiaSource_*.csv.gz",
        ("source_id",),
        {"bp_rp": "BP_RP", "random_index": "random_order"},
        {"ruwe": "f8"},
        "since_release",
        read_gaia,
        write_gaia,
        lambda rows, paths: _file_of_pixels(rows["source_id"] >> 43, paths),
    )


def _file_of_pixels(level8: I64, paths: list[Path]) -> I64:
    """Which file holds each level-8 pixel, -1 where none does."""
    out = np.full(len(level8), -1)
    for k, path in enumerate(paths):
        first, last = (int(p) for p in path.name.removesuffix(".csv.gz").split("_")[1].split("-"))
        out[(level8 >= first) & (level8 <= last)] = k
    return out


def hsc(tier: Tier, root: Path, seed: int, truth: pa.Table, sources: Rows, bricks: tuple[I64, NDArray[Any]]) -> Edition:
    """The database's tables of forced photometry; rows that are not primary neither move nor split."""
    names = [c.name for c in read_fits(sorted(root.glob(_HSC_FILES))[:1]).columns]

    def of(kind: str) -> tuple[str, ...]:
        return tuple(n for n in names if re.fullmatch(rf"[grizy]_\w*{kind}", n))

    def add(rows: Rows, n: int) -> Added:
        rng = np.random.default_rng([seed, NEW])
        flux = rows["r_cmodel_flux"]
        good = np.flatnonzero(rows["isprimary"] & np.isfinite(rows["ra"]) & np.isfinite(flux) & (flux > 0))
        lost = missed(truth, sources, "too faint")
        pick = np.sort(rng.permutation(lost[sources["kind"][lost] != "star"])[:n])
        if not len(pick) or not len(good):
            return _spurious(rows, good[:1], "ra", "dec")
        ra, dec = sources["ra"][pick], sources["dec"][pick]
        new = take(rows, nearest(rows, form, good, ra, dec))
        new["ra"], new["dec"] = ra.copy(), dec.copy()
        wanted = sources["flux_r"][pick] * NJY_PER_NANOMAGGY
        tableedits.scale(new, form, np.arange(len(pick)), wanted / new["r_cmodel_flux"])
        return Added(new, sources["uid"][pick].astype(np.int64), [""] * len(pick))

    form = Form(
        "hsc",
        lambda rows: np.where(rows["object_id"] > 0, rows["object_id"], -1),
        "ra",
        "dec",
        lambda rows, fresh: _in_gap(rows["object_id"], fresh["object_id"]),
        flux=of("flux"),
        error=of("fluxerr"),
        mag=of("mag"),
        band="flux_r",
        steady=lambda rows: ~rows["isprimary"],
        add=add,
    )
    return Edition(form, _HSC_FILES, (), {"a_r": "A_R"}, {"a_g": "f8"}, "since_release")


def _in_gap(held: I64, fresh: I64) -> None:
    """Number new rows on from the largest number held; in the widest gap where int64 ends before."""
    top = np.iinfo(np.int64).max
    ends = np.unique(np.concatenate([[0], held[held > 0]]))
    low = ends[-1] if top - ends[-1] >= len(fresh) else ends[np.argmax(np.diff(ends))]
    fresh[:] = low + 1 + np.arange(len(fresh))
