"""A second release of the mock sky: the first one's tables edited as DR10.1 edits DR10, and what became of each row.

Images and spectra stay as they were. Legacy Survey: whole bricks get another RELEASE, and with it other keys. DESI:
redshifts change and another spectrum becomes the primary; new targets come with files of their own (survey `special`).
SDSS: redshifts and primaries change likewise, nothing is added. Gaia: a source that splits loses its source_id, its two
parts get new ones and have no spectrum. See docs/truth.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import healpy
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skycairn.mocksky import desi, gaia, legacysurvey, legacytables, sdss, sed, tableedits
from skycairn.mocksky.fitsfile import TableColumn, write_table
from skycairn.mocksky.legacywriter import TYPES
from skycairn.mocksky.patches import Tier
from skycairn.mocksky.releasetables import (
    FILE,
    Tables,
    mend_lists,
    read_fits,
    read_gaia,
    revise,
    write_fits,
    write_gaia,
)
from skycairn.mocksky.tableedits import Added, Form, few, nearest, take
from skycairn.mocksky.truth import offset

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Rows = dict[str, NDArray[Any]]

RENUMBERED = 0.1
"""Of the Legacy Survey's bricks: their RELEASE goes from 10000 to 10002."""
FLIPPED = 0.2
"""Of DESI's targets with several spectra: another is the primary."""
Z_SHIFT_SIGMA = (3.0, 10.0)
"""By how many of its errors a changed redshift goes up or down."""
SPURIOUS_ARCSEC = 6.0
"""How far from a source the row of no true thing lies that is added where nothing true is left to add."""
NJY_PER_NANOMAGGY = 10 ** (0.4 * (31.4 - 22.5))
_HSC_FILES = "sql/pdr3_wide/forced-*.fits"
_NEW = 1 << 32
"""Added to the seed for the streams of random numbers of release 2."""


@dataclass(frozen=True)
class Edition:
    """A survey's table in its second release."""

    form: Form
    files: str
    "below the survey's root"
    order: tuple[str, ...]
    "columns that the rows of a file are sorted by; () puts new rows at the end"
    renamed: Mapping[str, str]
    "one that readers know in another case, one that they do not read"
    widened: Mapping[str, str]
    new: str = "SINCE_RELEASE"
    "i2: 1 where release 1 has the same key, else 2"
    read: Callable[..., Tables] = read_fits
    write: Callable[[Tables], None] = write_fits
    file_of: Callable[[Rows, list[Path]], I64] | None = None
    "which file each row belongs to, -1: none; None: where it was, or where the row lies that it was copied from"


def write(
    tier: Tier, out: Path, seed: int, counts: Mapping[str, int], bricks: tuple[I64, NDArray[Any]]
) -> dict[str, int]:
    """Turn the first release under `out` into the second, in place; gives the counts of its mock.json.

    `bricks` is number and name of the brick of each true thing.
    """
    sources = sed.rows_of(pq.read_table(out / "truth" / "sources.parquet"))
    new = dict(counts)
    for survey, make in EDITIONS.items():
        if not (out / survey).is_dir():
            continue
        truth = pq.read_table(out / "truth" / f"{survey}.parquet")
        edition = make(tier, out / survey, seed, truth, sources, bricks)
        grown, lineage, truth = rewrite(edition, out / survey, seed, truth, sources)
        pq.write_table(truth, out / "truth" / f"{survey}.parquet", compression="zstd")
        pq.write_table(lineage, out / "truth" / f"lineage-{survey}.parquet", compression="zstd")
        new[survey] = counts[survey] + grown
    _count_bricks(out / "legacysurvey")
    return new


def rewrite(edition: Edition, root: Path, seed: int, truth: pa.Table, sources: Rows) -> tuple[int, pa.Table, pa.Table]:
    """Rewrite one survey's tables; gives how many rows there are more, the lineage, and the truth of release 2."""
    paths = sorted(root.glob(edition.files))
    if not paths:
        raise ValueError(
            f"{root} has no {edition.files}: wanted the tables of a first release of {edition.form.survey}"
        )
    tables = edition.read(paths)
    form = edition.form
    before = form.key(tables.rows)
    rows, lineage, truth = tableedits.edit(tables.rows, form, seed, truth, sources)
    keys = form.key(rows)
    if edition.file_of is not None:
        at = np.isin(keys, lineage.filter(_touched(lineage)).column("key_2").drop_null().to_numpy())
        rows[FILE][at] = edition.file_of(take(rows, at), paths)
    rows[edition.new] = np.where((keys < 0) | np.isin(keys, before), 1, 2)
    if edition.order:
        order = np.lexsort([rows[name] for name in reversed(edition.order)])
        rows = take(rows, order)
    tables.rows = rows
    revise(tables, edition.renamed, edition.widened, TableColumn(edition.new, "i2"))
    edition.write(tables)
    mend_lists(root, paths)
    return len(keys) - len(before), lineage, truth


def _touched(lineage: pa.Table) -> pa.Array:
    what = np.array(lineage.column("what").to_pylist())
    return pa.array(np.isin(what, ("moved", "split", "added")))


# ---------------------------------------------------------------------------------------------------- Legacy Survey


def _legacy(
    tier: Tier, root: Path, seed: int, truth: pa.Table, sources: Rows, bricks: tuple[I64, NDArray[Any]]
) -> Edition:
    shown = tuple(b.upper() for b in legacysurvey.EXTINCTION)
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
        rng = np.random.default_rng([seed, _NEW])
        usable = (rows["TYPE"] != b"DUP") & (rows["REF_CAT"] == b"") & np.isfinite(rows["RA"])
        for b in shown:
            usable &= np.isfinite(rows[f"FLUX_{b}"])
        good = np.flatnonzero(usable)
        missed = _missed(truth, sources, "too faint")
        owner = tier.brick_index(sources["ra"], sources["dec"], sources["patch"])
        numbers = np.array([b.brickid for b in tier.bricks])
        still = missed[(owner[missed] >= 0) & (sources["kind"][missed] != "star")]
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


def _missed(truth: pa.Table, sources: Rows, why: str) -> I64:
    """Rows of `sources` that the survey does not hold for this reason."""
    uid = truth.filter(pa.array(np.array(truth.column("why_not").to_pylist()) == why)).column("uid").to_numpy()
    return np.flatnonzero(np.isin(sources["uid"], uid))


def _tops(group: NDArray[Any], number: NDArray[Any]) -> dict[int, int]:
    """The largest number within each group."""
    order = np.lexsort((number, group))
    return dict(zip(group[order].tolist(), number[order].tolist(), strict=True))


def _next(fresh: Rows, name: str, group: NDArray[Any], tops: dict[int, int]) -> None:
    """Number the new rows on from the largest of their group."""
    for i, g in enumerate(group.tolist()):
        tops[g] = fresh[name][i] = tops.get(g, 0) + 1


def _count_bricks(root: Path) -> None:
    """Count the rows of each brick anew in the table of the region's bricks."""
    sweeps = read_fits(sorted(root.glob("south/sweep/*/sweep-*.fits"))).rows
    path = root / "south" / "survey-bricks-dr10-south.fits.gz"
    table = read_fits([path]).rows
    for name, mine in (
        ("nobjs", sweeps["BRICKID"] >= 0),
        *((f"n{t}", sweeps["TYPE"] == t.upper().encode()) for t in TYPES),
    ):
        number, count = np.unique(sweeps["BRICKID"][mine], return_counts=True)
        of = dict(zip(number.tolist(), count.tolist(), strict=True))
        table[name] = np.array([of.get(b, 0) for b in table["brickid"].tolist()])
    write_table(path, legacytables.SOUTH_BRICKS, table, len(table["brickid"]))


# ------------------------------------------------------------------------------------------------------------ Gaia


def _gaia(
    tier: Tier, root: Path, seed: int, truth: pa.Table, sources: Rows, bricks: tuple[I64, NDArray[Any]]
) -> Edition:
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
        rng = np.random.default_rng([seed, _NEW])
        level8 = healpy.ang2pix(256, sources["ra"], sources["dec"], nest=True, lonlat=True)
        there = _file_of_pixels(level8, sorted(root.glob("gaia_source/GaiaSource_*.csv.gz"))) >= 0
        missed = np.concatenate([_missed(truth, sources, why) for why in ("not detected", "extended")])
        pick = np.sort(rng.permutation(missed[there[missed]])[:n])
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


# ------------------------------------------------------------------------------------------------------------ DESI


def _desi(
    tier: Tier, root: Path, seed: int, truth: pa.Table, sources: Rows, bricks: tuple[I64, NDArray[Any]]
) -> Edition:
    def key(rows: Rows) -> I64:
        names = (rows[c].astype(str) for c in ("SURVEY", "PROGRAM"))
        return np.asarray(desi.pack_key(rows["TARGETID"], *names).fill_null(-1).to_numpy(), dtype=np.int64)

    def flip(rows: Rows, _: F64) -> NDArray[Any]:
        repeated = (rows["ZCAT_NSPEC"] > 1) & (key(rows) >= 0)
        return _flip(rows, rows["TARGETID"], repeated, ("ZCAT_PRIMARY", "MAIN_PRIMARY", "SV_PRIMARY"), "SURVEY", seed)

    def add(rows: Rows, n: int) -> Added:
        rng = np.random.default_rng([seed, _NEW])
        pick = np.sort(rng.permutation(_missed(truth, sources, "no fibre"))[:n])
        options = desi.Options(spectra=tier.pixels, resolution=tier.name != "tiny")
        t = desi.later_targets(root, sources, pick, bricks, options, seed + _NEW)
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


# ------------------------------------------------------------------------------------------------------------ SDSS


def _sdss(
    tier: Tier, root: Path, seed: int, truth: pa.Table, sources: Rows, bricks: tuple[I64, NDArray[Any]]
) -> Edition:
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


# ------------------------------------------------------------------------------------------------------------- HSC


def _hsc(
    tier: Tier, root: Path, seed: int, truth: pa.Table, sources: Rows, bricks: tuple[I64, NDArray[Any]]
) -> Edition:
    names = [c.name for c in read_fits(sorted(root.glob(_HSC_FILES))[:1]).columns]

    def of(kind: str) -> tuple[str, ...]:
        return tuple(n for n in names if re.fullmatch(rf"[grizy]_\w*{kind}", n))

    def add(rows: Rows, n: int) -> Added:
        rng = np.random.default_rng([seed, _NEW])
        flux = rows["r_cmodel_flux"]
        good = np.flatnonzero(rows["isprimary"] & np.isfinite(rows["ra"]) & np.isfinite(flux) & (flux > 0))
        missed = _missed(truth, sources, "too faint")
        pick = np.sort(rng.permutation(missed[sources["kind"][missed] != "star"])[:n])
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


EDITIONS = {"legacysurvey": _legacy, "gaia": _gaia, "desi": _desi, "sdss": _sdss, "hsc": _hsc}
