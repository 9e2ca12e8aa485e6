"""DESI DR1 of the mock sky, laid out as the production `iron`: redshift catalogue, coadds, redrock files, checksums.

Who gets a fibre: galaxies to r = 19.5 (bright), to z = 20.8 and quasars to r = 22 (dark), stars of G = 16 to 19
(bright) and 12 to 16 (backup), r and z corrected for Galactic dust; 85 of 100. A twelfth of them are of survey `sv3`.
Spectra hold the total flux (see `desi_spectra.observe`), so that they integrate to the catalogue's FLUX_{G,R,Z}.
"""

from __future__ import annotations

import hashlib
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import healpy
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skycairn.mocksky import desi_columns, sed
from skycairn.mocksky.desi_spectra import EXPOSURE_S, PRIMARY, coadd_hdus, observe, redrock_hdus, save, table_hdu

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Rows = dict[str, NDArray[Any]]

SPECPROD = "iron"
RELEASE = 9010
"""Of the Legacy Survey DR9 south, in whose numbers DESI's targets are."""
SURVEYS = ("cmx", "sv1", "sv2", "sv3", "main", "special")
PROGRAMS = ("backup", "bright", "dark", "other")
SKY_BIT = 1 << 59

ZWARN_SKY, ZWARN_SMALL_DELTA_CHI2, ZWARN_NODATA = 1 << 0, 1 << 2, 1 << 9
BADFIBER = 1 << 16
RESTRICTED = 1 << 3

TRUTH = pa.schema(
    [
        ("uid", pa.int64()),
        ("key", pa.int64()),
        ("dirt", pa.string()),
        ("observed", pa.bool_()),
        ("why_not", pa.string()),
        ("targetid", pa.int64()),
        ("survey", pa.string()),
        ("program", pa.string()),
        ("healpix", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Options:
    """What is written beside the redshift catalogue."""

    spectra: bool = True
    resolution: bool = True
    "the 11 diagonals, 350 kB a spectrum"
    completeness: float = 0.85
    noise: bool = True
    "False: spectra of the expected flux"


def targetid(release: I64, brickid: I64, objid: I64, gaiadr: I64 | int = 0) -> I64:
    """DESI's TARGETID (desitarget, targetmask.yaml): objid 22 bits, brickid 20, release 16, then gaiadr at bit 60."""
    return np.asarray((np.int64(gaiadr) << 60) | (release << 42) | (brickid << 22) | objid, dtype=np.int64)


def pack_key(ids: I64, survey: NDArray[Any], program: NDArray[Any]) -> pa.Array:
    """Key of docs/contracts.md: survey-program code 5 bits, gaiadr 2, release 14, brickid 20, objid 22; or null."""
    code = np.array([4 * SURVEYS.index(s) + PROGRAMS.index(p) for s, p in zip(survey, program, strict=True)], np.int64)
    key = (code << 58) | (((ids >> 60) & 3) << 56) | (ids & ((1 << 56) - 1))
    return pa.array(key, mask=(ids < 0) | ((ids & SKY_BIT) != 0), type=pa.int64())


def _stream(seed: int, *words: int | str) -> np.random.Generator:
    numbers = [zlib.crc32(w.encode()) if isinstance(w, str) else int(w) for w in ("desi", *words)]
    return np.random.default_rng(np.random.SeedSequence([seed, *numbers]))


def move(ra: F64, dec: F64, pmra: F64, pmdec: F64, years: F64 | float) -> tuple[F64, F64]:
    """Positions `years` later along the great circle of their proper motion (mas/yr), degrees; sound at the poles."""
    a, d = np.radians(ra), np.radians(dec)
    east = np.stack([-np.sin(a), np.cos(a), np.zeros_like(a)])
    north = np.stack([-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a), np.cos(d)])
    here = np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])
    way = (east * pmra + north * pmdec) * (years * np.radians(1.0 / 3.6e6))
    angle = np.linalg.norm(way, axis=0)
    x, y, z = here * np.cos(angle) + way * np.sinc(angle / np.pi)
    return np.degrees(np.arctan2(y, x)) % 360.0, np.degrees(np.arctan2(z, np.hypot(x, y)))


def _programs(rows: Rows) -> NDArray[Any]:
    """The program that wants each source, '' where none does."""
    clear = {b: 10.0 ** (0.4 * sed.EXTINCTION[b] * rows["ebv"].astype(np.float64)) * rows[f"flux_{b}"] for b in "rz"}
    with np.errstate(divide="ignore", invalid="ignore"):
        r, z = (22.5 - 2.5 * np.log10(clear[b]) for b in "rz")
    g = rows["gaia_g"]
    kind = rows["kind"]
    program = np.full(len(kind), "", dtype="U6")
    program[(kind == "galaxy") & (z < 20.8)] = "dark"
    program[(kind == "galaxy") & (r < 19.5)] = "bright"
    program[(kind == "quasar") & (r < 22.0)] = "dark"
    program[(kind == "star") & (g > 16.0) & (g < 19.0)] = "bright"
    program[(kind == "star") & (g > 12.0) & (g <= 16.0)] = "backup"
    return program


def _brick(ra: F64, dec: F64) -> tuple[I64, NDArray[Any]]:
    """A number and a name for the sky around each position, where the caller has no bricks: HEALPix order 8."""
    number = healpy.ang2pix(256, ra, dec, nest=True, lonlat=True).astype(np.int64) + 1
    lon, lat = healpy.pix2ang(256, number - 1, nest=True, lonlat=True)
    names = [f"{int(10 * a):04d}{'m' if d < 0 else 'p'}{int(10 * abs(d)):03d}" for a, d in zip(lon, lat, strict=True)]
    return number, np.array(names, dtype="U8")


def write(
    root: Path,
    truth: pa.Table,
    options: Options = Options(),
    seed: int = 0,
    workers: int = 1,
    footprint: NDArray[np.bool_] | None = None,
    brick: tuple[I64, NDArray[Any]] | None = None,
) -> pa.Table:
    """Write the survey under `root`, the folder of the production, and return its truth table (`TRUTH`).

    `footprint` (one a row of `truth`) says where DESI has looked, `brick` gives number and name of each row's brick.
    The same bytes for the same seed, whatever the number of workers.
    """
    rows = sed.rows_of(truth)
    t, why = assign(rows, options, seed, footprint, brick)
    files = group(t)
    if options.spectra:
        _write_files(root, files, t, sources_of(rows), place_of(rows), options, seed, workers)
    catalog = root / "zcatalog" / "v1" / f"zall-pix-{SPECPROD}.fits"
    by_name = np.lexsort((np.arange(len(t["uid"])), t["HEALPIX"], t["PROGRAM"], t["SURVEY"]))
    table = table_hdu("ZCATALOG", desi_columns.ZCATALOG, {k: v[by_name] for k, v in t.items()}, len(by_name))
    save([PRIMARY, table], catalog)
    _checksums(catalog.parent, [catalog])
    return _truth(rows, t, why)


def sources_of(rows: Rows) -> Rows:
    """What spectra are made of: the truth without its fluxes."""
    return {k: v for k, v in rows.items() if not k.startswith(("flux_", "gaia_"))}


def place_of(rows: Rows) -> dict[int, int]:
    """Row of each uid."""
    return {int(u): i for i, u in enumerate(rows["uid"])}


def assign(
    rows: Rows,
    options: Options,
    seed: int,
    footprint: NDArray[np.bool_] | None = None,
    brick: tuple[I64, NDArray[Any]] | None = None,
) -> tuple[Rows, NDArray[Any]]:
    """Who gets a fibre: rows of the redshift catalogue, with `uid` and `dirt`; and why each true thing has none."""
    n = len(rows["uid"])
    seen = np.ones(n, dtype=bool) if footprint is None else footprint
    rng = _stream(seed, "assign")
    program = _programs(rows)
    fibre = rng.random(n) < options.completeness
    sv = rng.random(n) < 1 / 12
    take = np.flatnonzero(seen & (program != "") & fibre)
    why = np.select([~seen, program == "", ~fibre], ["outside footprint", "not a target", "no fibre"], "")
    brickid, brickname = brick if brick is not None else _brick(rows["ra"], rows["dec"])
    objid = number_within(brickid)
    release = np.where(program == "backup", 0, RELEASE).astype(np.int64)
    ids = targetid(release, brickid.astype(np.int64), objid, np.where(program == "backup", 2, 0))

    # a bright galaxy now and then is a dark target too: one TARGETID, two coadds
    twice = take[(program[take] == "bright") & (rows["kind"][take] == "galaxy")]
    again = twice[_some(rng, len(twice), 0.08)]
    index = np.concatenate([take, again])
    survey = np.where(sv[index], "sv3", "main")
    programs = np.concatenate([program[take], np.full(len(again), "dark", dtype="U6")])
    t = _targets(rows, index, ids, brickid, brickname, objid, release, survey, programs, seed)
    t = _junk_fibres(t, seed)
    _primaries(t)
    return t, why


def number_within(brickid: I64) -> I64:
    """A number of each source of the sky within its brick, from 1."""
    order = np.argsort(brickid, kind="stable")
    objid = np.empty(len(brickid), dtype=np.int64)
    objid[order] = np.arange(len(brickid)) - np.searchsorted(brickid[order], brickid[order]) + 1
    return objid


def _targets(
    rows: Rows,
    index: I64,
    ids: I64,
    brickid: I64,
    brickname: NDArray[Any],
    objid: I64,
    release: I64,
    survey: NDArray[Any],
    program: NDArray[Any],
    seed: int,
) -> Rows:
    """The catalogue's columns, upper case, of the observed sources; lower case `uid`, `dirt`."""
    rng = _stream(seed, "targets")
    n = len(index)
    s = {k: v[index] for k, v in rows.items()}
    star = s["kind"] == "star"
    ra, dec = move(s["ra"], s["dec"], s["pmra"], s["pmdec"], np.where(star, -0.5, 0.0))
    seen_before = np.ones(n, dtype=bool)
    seen_before[np.unique(index, return_index=True)[1]] = False
    # stars are targeted where Gaia has them, the others where the images did
    scatter = np.where(star, 0.0, 0.03 / 3600.0) * rng.standard_normal((2, n))
    ra, dec = (ra + scatter[0] / np.cos(np.radians(dec))) % 360.0, np.clip(dec + scatter[1], -90.0, 90.0)
    t: Rows = {"uid": s["uid"].astype(np.int64), "dirt": np.where(seen_before, "repeat", "").astype("U24")}
    t |= {"TARGETID": ids[index], "SURVEY": survey.astype("S7"), "PROGRAM": program.astype("S6")}
    t |= {"TARGET_RA": ra, "TARGET_DEC": dec, "MEAN_FIBER_RA": ra.copy(), "MEAN_FIBER_DEC": dec.copy()}
    t |= {"PLATE_RA": ra.copy(), "PLATE_DEC": dec.copy()}
    t["HEALPIX"] = healpy.ang2pix(64, ra, dec, nest=True, lonlat=True).astype(np.int32)
    t["SPGRPVAL"] = t["HEALPIX"].copy()
    t["REF_EPOCH"] = np.where(star, 2015.5, 0.0).astype(np.float32)
    for name in ("pmra", "pmdec", "parallax"):
        t[name.upper()] = np.where(star, s[name], 0.0).astype(np.float32)
    t |= {"RELEASE": release[index].astype(np.int16), "BRICKID": brickid[index].astype(np.int32)}
    t |= {"BRICK_OBJID": objid[index].astype(np.int32), "BRICKNAME": brickname[index].astype("S8")}
    pure = s["bulge_fraction"] >= 1
    morph = np.where(
        s["kind"] != "galaxy", "PSF", np.where(pure, "DEV", np.where(s["bulge_fraction"] > 0.4, "SER", "EXP"))
    )
    t |= {"MORPHTYPE": morph.astype("S4"), "OBJTYPE": np.full(n, b"TGT", dtype="S3"), "EBV": s["ebv"]}
    radius = np.where(pure, s["bulge_radius"], s["disk_radius"])
    caught = 0.75 / (1.0 + (radius / 1.2) ** 1.3)
    for band, depth in zip("grz", (0.012, 0.018, 0.04), strict=True):
        error = np.sqrt(depth**2 + (0.002 * s[f"flux_{band}"]) ** 2)
        flux = s[f"flux_{band}"] + error * rng.standard_normal(n)
        name = band.upper()
        t |= {f"FLUX_{name}": flux, f"FLUX_IVAR_{name}": 1.0 / error**2}
        t |= {f"FIBERFLUX_{name}": flux * caught, f"FIBERTOTFLUX_{name}": flux * caught}
    for band, depth in (("w1", 0.3), ("w2", 0.9)):
        t[f"FLUX_{band.upper()}"] = s[f"flux_{band}"] + depth * rng.standard_normal(n)
        t[f"FLUX_IVAR_{band.upper()}"] = np.full(n, depth**-2.0)
    t |= {"SHAPE_R": radius, "SERSIC": np.where(pure, 4.0, np.where(morph == "PSF", 0.0, 1.0))}
    for name in ("g", "bp", "rp"):
        t[f"GAIA_PHOT_{name.upper()}_MEAN_MAG"] = np.where(star, s[f"gaia_{name}"], 0.0)
    t |= {"PHOTSYS": np.full(n, b"S", dtype="S1"), "REF_CAT": np.where(star, b"G2", b"").astype("S2")}
    t |= {"FA_TYPE": np.ones(n, np.uint8), "SUBPRIORITY": rng.random(n), "OBSCONDITIONS": np.ones(n, np.int32)}
    t |= {"COADD_NUMEXP": rng.integers(1, 4, n).astype(np.int16)}
    _observing(t, program, rng)
    _redshifts(t, s, program, rng)
    broken = _some(rng, n, 0.015) & (t["dirt"] == "")
    t["dirt"][broken] = "bad fiberstatus"
    t["COADD_FIBERSTATUS"] = np.where(broken, BADFIBER, np.where(rng.random(n) < 0.03, RESTRICTED, 0)).astype(np.int32)
    t["dirt"][_some(rng, n, 0.02) & (t["dirt"] == "")] = "masked pixels"
    lost = _some(rng, n, 0.006) & (t["dirt"] == "")
    t["dirt"][lost] = "nan position"
    t["TARGET_RA"][lost] = t["TARGET_DEC"][lost] = np.nan
    return t


def _observing(t: Rows, program: NDArray[Any], rng: np.random.Generator) -> None:
    n = len(program)
    t["COADD_EXPTIME"] = np.array([EXPOSURE_S[p] for p in program], dtype=np.float64) * t["COADD_NUMEXP"]
    t["COADD_NUMNIGHT"] = np.ones(n, np.int16)
    t["COADD_NUMTILE"] = np.ones(n, np.int16)
    t["MEAN_MJD"] = 59230.0 + np.round(rng.uniform(0.0, 510.0, n)) + 0.3
    t["MIN_MJD"], t["MAX_MJD"] = t["MEAN_MJD"] - 0.01, t["MEAN_MJD"] + 0.01
    t["TSNR2_LRG"] = 90.0 * t["COADD_NUMEXP"]
    t["TSNR2_BGS"] = 1000.0 * t["COADD_NUMEXP"]


def _redshifts(t: Rows, s: Rows, program: NDArray[Any], rng: np.random.Generator) -> None:
    """What redrock finds: the truth to 10 to 60 km/s; a wrong one, flagged, the likelier the fainter the source."""
    n = len(program)
    depth = np.array([{"dark": 0.28, "bright": 0.9, "backup": 1.7}[p] for p in program])
    snr = s["flux_r"] * 0.72 / (depth / np.sqrt(t["COADD_NUMEXP"]))  # of a pixel in the R arm, 1 nmgy = 0.7e-17 there
    error = (1.0 + s["z"]) * np.where(s["kind"] == "quasar", 3e-4, 3e-5) * (1.0 + 3.0 / (1.0 + snr))
    z = s["z"] + error * rng.standard_normal(n)
    failed = _some(rng, n, np.clip(0.35 * np.exp(-snr / 2.0) + 0.005, 0.0, 0.5)) & (t["dirt"] == "")
    z[failed] = rng.uniform(0.0, 1.6, failed.sum())
    t["dirt"][failed] = "zwarn"
    delta = np.where(failed, rng.uniform(0.1, 9.0, n), 25.0 + 30.0 * snr**1.5 * rng.lognormal(0.0, 0.3, n))
    t |= {"Z": z, "ZERR": error, "ZWARN": np.where(failed, ZWARN_SMALL_DELTA_CHI2, 0).astype(np.int64)}
    t |= {"DELTACHI2": delta, "CHI2": 7781.0 * rng.normal(1.0, 0.02, n), "NPIXELS": np.full(n, 7781)}
    kind = {"galaxy": "GALAXY", "star": "STAR", "quasar": "QSO"}
    t["SPECTYPE"] = np.array([kind[k] for k in s["kind"]], dtype="S6")
    hot = np.where(s["teff"] > 7500, "A", np.where(s["teff"] > 6000, "F", np.where(s["teff"] > 5200, "G", "K")))
    t["SUBTYPE"] = np.where(s["kind"] == "star", np.where(s["teff"] < 3900, "M", hot), "").astype("S20")
    t |= {"NCOEFF": np.full(n, 10), "COEFF": rng.standard_normal((n, 10))}


def later_targets(
    root: Path, rows: Rows, index: I64, brick: tuple[I64, NDArray[Any]], options: Options, seed: int
) -> Rows:
    """Targets that had no fibre (rows `index` of the truth), observed at last in the survey `special`.

    Writes their coadd and redrock files, which are new ones, and gives their rows of the redshift catalogue, and `uid`,
    `dirt`.
    """
    program = _programs(rows)
    backup = program == "backup"
    release = np.where(backup, 0, RELEASE).astype(np.int64)
    objid = number_within(brick[0])
    ids = targetid(release, brick[0].astype(np.int64), objid, np.where(backup, 2, 0))
    survey = np.full(len(index), "special")
    t = _targets(rows, index, ids, brick[0], brick[1], objid, release, survey, program[index], seed)
    _primaries(t)
    if options.spectra:
        sources, place = sources_of(rows), place_of(rows)
        for name, (at, _) in group(t).items():
            write_file(root, name, {k: v[at] for k, v in t.items()}, sources, place, options, seed)
    return t


def _junk_fibres(t: Rows, seed: int) -> Rows:
    """Sky fibres and stuck fibres, two and one a file; they are no thing on the sky."""
    rng = _stream(seed, "junk")
    rows = []
    for a, b in group(t).values():
        template = np.array([a[0], a[-1], a[0]])
        junk = {k: v[template].copy() for k, v in t.items()}
        junk["uid"][:] = 0
        junk["dirt"] = np.array(["sky", "sky", "stuck"], dtype="U24")
        for name in junk:
            if name.startswith(("FLUX", "FIBER", "GAIA", "SHAPE", "SERSIC", "PM", "PARALLAX", "REF_")):
                junk[name] = np.zeros_like(junk[name])
        # beside the target, still in the file's own pixel; a stuck positioner points where it happens to
        ra, dec = healpy.pix2ang(64, b, nest=True, lonlat=True)
        junk["TARGET_RA"] = (ra + rng.uniform(-0.05, 0.05, 3) / np.cos(np.radians(dec))) % 360.0
        junk["TARGET_DEC"] = np.clip(dec + rng.uniform(-0.05, 0.05, 3), -90.0, 90.0)
        junk["OBJTYPE"] = np.array([b"SKY", b"SKY", b""], dtype="S3")
        junk["MORPHTYPE"][:] = b""
        sky = SKY_BIT | targetid(junk["RELEASE"].astype(np.int64), junk["BRICKID"].astype(np.int64), np.arange(1, 4))
        # the same few negative numbers all over the sky
        junk["TARGETID"] = np.where(junk["dirt"] == "stuck", -(1 + np.int64(b) % 7), sky)
        junk["COADD_FIBERSTATUS"] = np.array([0, 0, 1 << 1], np.int32)
        junk["ZWARN"] = np.array([ZWARN_SKY, ZWARN_SKY, ZWARN_NODATA], np.int64)
        junk["DELTACHI2"] = np.array([0.4, 1.1, 0.0])
        junk["SPECTYPE"][:] = b"GALAXY"
        junk["SUBTYPE"][:] = b""
        rows.append(junk)
    return {k: np.concatenate([t[k], *(r[k] for r in rows)]) for k in t}


def _some(rng: np.random.Generator, n: int, share: F64 | float) -> NDArray[np.bool_]:
    """About this share of rows, and one at least of ten or more, so that even the smallest sky has its dirt."""
    chance = rng.random(n) / share
    return np.asarray(chance < max(1.0, np.nextafter(chance.min(), 9e99) if n >= 10 else 1.0))


def _primaries(t: Rows) -> None:
    """ZCAT_, MAIN_ and SV_ NSPEC and PRIMARY: the best spectrum of a TARGETID, good and long ones first."""
    for prefix, members in (
        ("ZCAT", np.ones(len(t["uid"]), dtype=bool)),
        ("MAIN", t["SURVEY"] == b"main"),
        ("SV", t["SURVEY"] == b"sv3"),
    ):
        where = np.flatnonzero(members)
        order = where[np.lexsort((where, -t["COADD_EXPTIME"][where], t["ZWARN"][where] != 0, t["TARGETID"][where]))]
        _, first, counts = np.unique(t["TARGETID"][order], return_index=True, return_counts=True)
        primary = np.zeros(len(members), dtype=bool)
        primary[order[first]] = True
        number = np.zeros(len(members), dtype=np.int16)
        number[order] = np.repeat(counts, counts)
        t |= {f"{prefix}_PRIMARY": primary, f"{prefix}_NSPEC": number}


def group(t: Rows) -> dict[tuple[str, str, int], tuple[I64, int]]:
    """Row numbers and pixel of each file."""
    names = list(zip(t["SURVEY"].astype(str), t["PROGRAM"].astype(str), t["HEALPIX"].tolist(), strict=True))
    out: dict[tuple[str, str, int], list[int]] = {}
    for i, name in enumerate(names):
        out.setdefault(name, []).append(i)
    return {name: (np.array(out[name], dtype=np.int64), name[2]) for name in sorted(out)}


def _checksums(folder: Path, files: list[Path]) -> None:
    """The folder's list, named as the archive names it: redux_<specprod>_<path with _ for />.sha256sum."""
    root = folder
    while root.name not in ("healpix", "zcatalog"):
        root = root.parent
    name = "_".join(folder.relative_to(root.parent).parts)
    lines = [f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in sorted(files)]
    (folder / f"redux_{SPECPROD}_{name}.sha256sum").write_text("".join(lines))


def _write_files(
    root: Path,
    files: dict[tuple[str, str, int], tuple[I64, int]],
    t: Rows,
    sources: Rows,
    place: dict[int, int],
    options: Options,
    seed: int,
    workers: int,
) -> None:
    absent = lose_file(files, t)

    def one(name: tuple[str, str, int]) -> None:
        fibers = {k: v[files[name][0]] for k, v in t.items()}
        coadd = write_file(root, name, fibers, sources, place, options, seed)
        if name == absent:
            coadd.unlink()

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        list(pool.map(one, files))


def lose_file(files: dict[tuple[str, str, int], tuple[I64, int]], t: Rows) -> tuple[str, str, int] | None:
    """The coadd that is listed and not there, the smallest: what the archive itself has done; its dirt is labelled."""
    absent = min(files, key=lambda f: (len(files[f][0]), f)) if len(files) > 1 else None
    if absent is not None:
        lost = files[absent][0]
        t["dirt"][lost] = np.where(t["dirt"][lost] == "", "file absent", t["dirt"][lost])
    return absent


def write_file(
    root: Path,
    name: tuple[str, str, int],
    fibers: Rows,
    sources: Rows,
    place: dict[int, int],
    options: Options,
    seed: int,
) -> Path:
    """Write coadd, redrock and checksum list of one survey, program and healpix; gives the coadd's path.

    `place` is the row of each uid in `sources`, the truth without its fluxes.
    """
    survey, program, pixel = name
    spectra = arms(name, fibers, sources, place, options, seed)
    folder = root / "healpix" / survey / program / str(pixel // 100) / str(pixel)
    coadd, redrock = (folder / f"{kind}-{survey}-{program}-{pixel}.fits" for kind in ("coadd", "redrock"))
    exposures = _exposures(fibers)
    save(coadd_hdus(fibers, exposures, spectra, options.resolution), coadd)
    save(redrock_hdus(fibers, exposures), redrock)
    _checksums(folder, [coadd, redrock])
    return coadd


def arms(
    name: tuple[str, str, int], fibers: Rows, sources: Rows, place: dict[int, int], options: Options, seed: int
) -> dict[str, dict[str, NDArray[Any]]]:
    """Flux, ivar and mask of each arm of one file's fibres (`desi_spectra.observe`)."""
    real = [place[int(u)] for u in fibers["uid"] if u > 0]
    source = {k: v[real] for k, v in sources.items()}
    return observe(source, fibers, name[1], _stream(seed, *name), options.noise)


def _exposures(fibers: Rows) -> Rows:
    repeat = np.repeat(np.arange(len(fibers["TARGETID"])), fibers["COADD_NUMEXP"])
    out: Rows = {"TARGETID": fibers["TARGETID"][repeat], "MJD": fibers["MEAN_MJD"][repeat]}
    out["EXPTIME"] = (fibers["COADD_EXPTIME"] / fibers["COADD_NUMEXP"])[repeat]
    out |= {"FIBERSTATUS": fibers["COADD_FIBERSTATUS"][repeat], "FIBER": (repeat % 5000).astype(np.int32)}
    out |= {"FIBER_RA": fibers["MEAN_FIBER_RA"][repeat], "FIBER_DEC": fibers["MEAN_FIBER_DEC"][repeat]}
    return out


def _truth(rows: Rows, t: Rows, why: NDArray[Any]) -> pa.Table:
    survey, program = t["SURVEY"].astype(str), t["PROGRAM"].astype(str)
    found = pa.table(
        [
            pa.array(t["uid"]),
            pack_key(t["TARGETID"], survey, program),
            pa.array(t["dirt"].tolist(), pa.string()),
            pa.array(np.ones(len(survey), dtype=bool)),
            pa.array([""] * len(survey), pa.string()),
            pa.array(t["TARGETID"]),
            pa.array(survey.tolist(), pa.string()),
            pa.array(program.tolist(), pa.string()),
            pa.array(t["HEALPIX"], pa.int32()),
        ],
        schema=TRUTH,
    )
    missed = np.flatnonzero(why != "")
    absent = pa.table(
        {
            "uid": pa.array(rows["uid"][missed].astype(np.int64)),
            "key": pa.nulls(len(missed), pa.int64()),
            "dirt": pa.array([""] * len(missed), pa.string()),
            "observed": pa.array(np.zeros(len(missed), dtype=bool)),
            "why_not": pa.array(why[missed].tolist(), pa.string()),
            "targetid": pa.nulls(len(missed), pa.int64()),
            "survey": pa.nulls(len(missed), pa.string()),
            "program": pa.nulls(len(missed), pa.string()),
            "healpix": pa.nulls(len(missed), pa.int32()),
        },
        schema=TRUTH,
    )
    return pa.concat_tables([found, absent])
