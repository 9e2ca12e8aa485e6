"""SDSS DR17 of the mock sky: who gets a fibre, the plates, specObj, spPlate and a few spec-lite files.

Under the root, the archive's `sas/dr17`. Galaxies to r = 19.5 (SDSS-I; the real 17.8 would leave a handful), to 20.5
and quasars to r = 22 (BOSS, eBOSS), stars of G = 14 to 19 (SEGUE). A plate lies on one patch; it has as many fibres,
and spPlate as many rows, as the mock uses of its 640 or 1000: row = FIBERID - 1 holds.

The first patch has what is hard: a plate with two MJDs and another plugging in each, a bad plate, one without a file.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from skycairn.mocksky import sdss_columns, sed
from skycairn.mocksky.fitsfile import write_table
from skycairn.mocksky.sdss_spectra import BOSS, SDSS, Instrument, Spectra, caught, observe, write_plate, write_spec
from skycairn.mocksky.streams import stream
from skycairn.mocksky.truth import moved, offset, unit

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Rows = dict[str, NDArray[Any]]

ZWARNING = {"sky": 1 << 0, "zwarn": 1 << 2, "unplugged": (1 << 7) | (1 << 9)}
SCATTER_ARCSEC = 0.06
"""Of the targets' positions, in each coordinate."""
PATCHES_A_TURN = 6_000
"""Patches whose plates have numbers of their own, 20 for each."""
N_LITE = 3
"""Fibres of each survey that have a spec-lite file too."""

TRUTH = pa.schema(
    [
        *[("uid", pa.int64()), ("key", pa.int64()), ("dirt", pa.string()), ("observed", pa.bool_())],
        *[("why_not", pa.string()), ("run2d", pa.string()), ("plate", pa.int32()), ("mjd", pa.int32())],
        *[("fiberid", pa.int32()), ("epoch", pa.float64())],
    ]
)


@dataclass(frozen=True)
class Options:
    """How much is written."""

    spectra: bool = True
    completeness: float = 0.85
    stars: float = 0.2
    "part of the possible stars that has a fibre"
    noise: bool = True
    "False: spectra of the expected flux"


@dataclass(frozen=True)
class Plate:
    """One plugging of one plate: its name, its fibres' places in the truth (-1: sky) and how it went."""

    survey: str
    run2d: str
    plate: int
    mjd: int
    fibres: I64
    standard: NDArray[np.bool_]
    epoch: float
    quality: str = "good"
    absent: bool = False

    @property
    def instrument(self) -> Instrument:
        """The spectrograph."""
        return BOSS if self.run2d.startswith("v") else SDSS


def run2d_number(run2d: str) -> int:
    """RUN2D in 14 bits: the number, or (N - 5) 10000 + 100 M + P of vN_M_P."""
    if not run2d.startswith("v"):
        return int(run2d)
    n, m, p = (int(k) for k in run2d[1:].split("_"))
    return (n - 5) * 10000 + 100 * m + p


def specobjid(run2d: str, plate: int, mjd: int, fiber: int) -> int:
    """SPECOBJID: plate 14 bits, fibre 12, MJD - 50000 14, RUN2D 14, 10 free; 2^63 and more from plate 8192 on."""
    return (plate << 50) | (fiber << 38) | ((mjd - 50000) << 24) | (run2d_number(run2d) << 10)


def pack_key(run2d: str, plate: int, mjd: int, fiber: int) -> int:
    """Key of docs/contracts.md: run2d 15 bits, plate 17, MJD - 50000 15, fibre 12."""
    if run2d.startswith("v"):
        major, minor, patch = (int(n) for n in run2d[1:].split("_"))
        code = (1 << 14) | (major << 10) | (minor << 5) | patch
    else:
        code = int(run2d)
    return (code << 44) | (plate << 27) | ((mjd - 50000) << 12) | fiber


def plate_path(root: Path, run2d: str, plate: int, mjd: int) -> Path:
    """Where spPlate lies."""
    top = "eboss" if run2d.startswith("v") else "sdss"
    return root / top / "spectro" / "redux" / run2d / f"{plate:04d}" / f"spPlate-{plate:04d}-{mjd}.fits"


def write(
    root: Path,
    truth: pa.Table,
    options: Options = Options(),
    seed: int = 0,
    workers: int = 1,
    footprint: NDArray[np.bool_] | None = None,
) -> pa.Table:
    """Write the survey under `root` and return its truth table (`TRUTH`); `footprint`: one a row of `truth`.

    The same bytes for the same seed, whatever the number of workers.
    """
    rows = sed.rows_of(truth)
    plates, t, why = plug(rows, options, seed, footprint)
    if not plates:
        return _truth(rows, t, why)
    parts = parts_of(plates, t)
    lite = {s: next((i for i, p in enumerate(plates) if p.survey == s and not p.absent), -1) for s in ("sdss", "eboss")}
    lite["two"] = 1

    def one(k: int) -> None:
        p, fibers = plates[k], parts[k]
        s = spectra(p, fibers, rows, options, seed)
        _measure(fibers, s)
        path = plate_path(root, p.run2d, p.plate, p.mjd)
        if not p.absent:
            write_plate(path, fibers, s)
        if k in lite.values() and not p.absent:
            folder = path.parent.parent / "spectra" / "lite" / path.parent.name
            for i in range(min(N_LITE, len(p.fibres))):
                write_spec(folder / f"spec-{p.plate:04d}-{p.mjd}-{i + 1:04d}.fits", fibers, s, i)

    if options.spectra:
        with ThreadPoolExecutor(max(workers, 1)) as pool:
            list(pool.map(one, range(len(plates))))
    path = root / "sdss" / "spectro" / "redux" / "specObj-dr17.fits"
    write_table(path, sdss_columns.columns(sdss_columns.SPECOBJ), t, len(t["uid"]))
    return _truth(rows, t, why)


def plug(
    rows: Rows, options: Options, seed: int, footprint: NDArray[np.bool_] | None = None, first: int = 0
) -> tuple[list[Plate], Rows, NDArray[Any]]:
    """The plates, specObj's rows of all of them in their order (with `uid` and `dirt`), and why a thing has none.

    `first`: the number of the first patch that is looked at, of which the plates' numbers come.
    """
    seen = footprint if footprint is not None else np.ones(len(rows["uid"]), dtype=bool)
    wanted, why = _targets(rows, seen, options, seed)
    plates = [
        p
        for k, patch in enumerate(np.unique(rows["patch"][seen]))
        for p in _plates(rows, wanted, patch, k, seed, first + k)
    ]
    tables = [_fibres(p, rows, seed) for p in plates]
    t = {k: np.concatenate([f[k] for f in tables]) for k in tables[0]} if tables else {}
    if not tables:
        return plates, t, why
    _spoil(t, seed)
    _primaries(t)
    t["SPECLEGACY"] = ((t["SPECPRIMARY"] == 1) & (t["SURVEY"] == b"sdss")).astype(np.uint8)
    return plates, t, why


def parts_of(plates: list[Plate], t: Rows) -> list[Rows]:
    """The rows of each plate, as views."""
    ends = np.cumsum([len(p.fibres) for p in plates])
    return [{k: v[e - len(p.fibres) : e] for k, v in t.items()} for p, e in zip(plates, ends, strict=True)]


def spectra(p: Plate, fibers: Rows, rows: Rows, options: Options, seed: int) -> Spectra:
    """The spectra of a plate's fibres."""
    rng = stream(seed, "sdss", p.plate, f"spectra {p.mjd}")
    return observe(rows, fibers, p.instrument, (7 * p.plate + p.mjd) % 11, rng, options.noise)


def _targets(rows: Rows, seen: NDArray[np.bool_], options: Options, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The kind of plate that observes each source ('' none does), and why none does."""
    n = len(rows["uid"])
    rng = stream(seed, "sdss", 0, "targets")
    with np.errstate(divide="ignore", invalid="ignore"):
        r = 22.5 - 2.5 * np.log10(rows["flux_r"])
    kind, g = rows["kind"], rows["gaia_g"]
    want = np.full(n, "", dtype="U6")
    want[(kind == "galaxy") & (r < 20.5)] = "boss"
    want[(kind == "galaxy") & (r < 19.5)] = "legacy"
    want[(kind == "quasar") & (r < 22.0)] = "boss"
    want[(kind == "star") & (g > 14.0) & (g < 19.0)] = "segue"
    target = want != ""
    fibre = rng.random(n) < np.where(kind == "star", options.stars, options.completeness)
    why = np.select([~seen, ~target, ~fibre], ["outside footprint", "not a target", "no fibre"], "").astype("U24")
    chosen = np.flatnonzero(why == "")
    # the fainter of two within 2 arcsec gets no fibre
    places = cKDTree(unit(rows["ra"][chosen], rows["dec"][chosen]).reshape(-1, 3))
    for a, b in sorted(places.query_pairs(np.radians(2 / 3600))):
        why[chosen[a if r[chosen[a]] > r[chosen[b]] else b]] = "near another target"
    want[why != ""] = ""
    return want, why


def _plates(rows: Rows, want: NDArray[Any], patch: int, k: int, seed: int, number_of_patch: int) -> list[Plate]:
    """The plates of one patch, the k-th that SDSS looks at; their numbers are of the `number_of_patch`-th."""
    rng = stream(seed, "sdss", int(patch), "plates")
    epoch = round(float(rng.uniform(1999.5, 2008.5)), 3)
    boss = (("eboss", 10200), ("boss", 3600), ("eboss", 9200))[k % 3]
    segue = ("segue1", "103", 2040, 53800) if k % 2 else ("segue2", "104", 2957, 54807)
    kinds = {
        "legacy": ("sdss", "26", 266, 51602),
        "segue": segue,
        "boss": (boss[0], "v5_13_2", boss[1], 55400 if boss[0] == "boss" else 57500),
    }
    out: list[Plate] = []
    for kind, (survey, run2d, first, mjd) in kinds.items():
        mine = rng.permutation(np.flatnonzero((rows["patch"] == patch) & (want == kind)))
        stars = np.flatnonzero((rows["patch"] == patch) & (want == "segue"))[:2] if kind != "segue" else mine[:0]
        # a few stars make the first patch's plate full enough, however few galaxies there are
        spare = np.flatnonzero((rows["patch"] == patch) & (want == "segue"))[2:4]
        mine = np.concatenate([spare, mine]) if kind == "legacy" else mine
        lost = mine[-1:] if k == 0 and kind == "legacy" and len(mine) > 1 else mine[:0]
        mine = mine[: len(mine) - len(lost)]
        room = 990 if kind == "boss" else 630
        for c in range(0, len(mine), room):
            some = np.concatenate([mine[c : c + room], stars, [-1, -1]]).astype(np.int64)
            standard = np.zeros(len(some), dtype=bool)
            standard[len(some) - 2 - len(stars) : len(some) - 2] = True

            def plug(number: int, day: int, pick: I64, quality: str = "good", absent: bool = False) -> None:
                order = rng.permutation(pick)
                out.append(
                    Plate(survey, run2d, number, day, some[order], standard[order], epoch, quality, absent)  # noqa: B023
                )

            # plates have 17 bits and days 15: numbers begin anew, on later days. All days are 11 apart, which the first
            # ones of BOSS's plates are not, so that they never meet, and more than the second plugging's 28 days where
            # the numbers are the same
            turn, place = divmod(number_of_patch, PATCHES_A_TURN)
            number, day = first + 20 * place + c // room, mjd + 11 * (number_of_patch % 28 + 30 * turn)
            every = np.arange(len(some))
            plug(number, day, every)
            if k == 0 and c == 0 and kind == "legacy":
                plug(number, day + 28, every)
                plug(number + 10, day + 3, every[: min(4, len(every))], "bad")
                some, standard = np.append(lost, -1).astype(np.int64), np.zeros(len(lost) + 1, dtype=bool)
                plug(number + 11, day + 5, np.arange(len(some)), absent=True)
    return out


@cache
def _filters() -> tuple[F64, F64]:
    """Wavelengths every 8 A, and weights that turn f_lambda into nanomaggies in ugriz of SDSS, (wavelength, 5)."""
    import speclite.filters

    wavelength = np.arange(2900.0, 11300.0, 8.0)
    weights = []
    for band in "ugriz":
        curve = speclite.filters.load_filter(f"sdss2010-{band}")
        w = np.interp(wavelength, curve.wavelength, curve.response, left=0.0, right=0.0) * wavelength
        weights.append(1e9 * w / np.sum(w * 3631e-23 * 2.99792458e18 / wavelength**2))
    return wavelength, np.stack(weights, axis=1)


def _fibres(p: Plate, rows: Rows, seed: int) -> Rows:
    """specObj's rows of one plate, in the order of FIBERID; lower case: `uid`, `dirt`, `row`, `caught`, `epoch`."""
    rng = stream(seed, "sdss", p.plate, f"fibres {p.mjd}")
    n = len(p.fibres)
    sky = p.fibres < 0
    row = np.where(sky, p.fibres[~sky][0] if (~sky).any() else 0, p.fibres)
    s = {k: v[row] for k, v in rows.items()}
    # the target list's positions are those of the imaging: the same on every plate
    throw = stream(seed, "sdss", int(s["patch"][0]), "positions").standard_normal((int(row.max()) + 1, 2))[row].T
    ra, dec = moved(s["ra"], s["dec"], s["pmra"], s["pmdec"], p.epoch - 2016.0)
    throw = np.where(sky, rng.uniform(-20.0, 20.0, (2, n)), SCATTER_ARCSEC * throw)
    ra, dec = offset(ra, dec, throw[0], throw[1])
    share = caught(s, p.instrument.fibre_arcsec)
    wavelength, weight = _filters()
    flux = sed.spectrum(s, wavelength, s["ebv"], 12.0) @ weight * share[:, None]
    flux[sky] = 0.0
    error = np.hypot(0.02 * flux, np.array([1.2, 0.4, 0.4, 0.6, 1.5]) * p.instrument.noise)
    t: Rows = {"uid": np.where(sky, 0, s["uid"]).astype(np.int64), "row": row, "caught": share}
    t |= {"epoch": np.where(sky, np.nan, p.epoch)}
    dirt = np.where(sky, "sky", np.where(p.standard, "standard", "")).astype("U24")
    for label, is_so in (("bad plate", p.quality == "bad"), ("file absent", p.absent)):
        if is_so:
            dirt[dirt == ""] = label
    t["dirt"] = dirt
    fiber = np.arange(1, n + 1)
    ids = [str(specobjid(p.run2d, p.plate, p.mjd, int(f))) for f in fiber]
    t |= {"SPECOBJID": np.array([f"{i:>22}" for i in ids], dtype="S22"), "FIBERID": fiber.astype(np.int32)}
    photo = 1237648720000000000 + s["uid"]
    for name in ("FLUXOBJID", "BESTOBJID", "TARGETOBJID"):
        t[name] = np.where(sky, "", photo.astype(str)).astype("S19")
    for name, text in (("SURVEY", p.survey), ("RUN2D", p.run2d), ("RUN1D", p.run2d), ("PLATEQUALITY", p.quality)):
        t[name] = np.full(n, text.encode(), dtype="S8")
    t["INSTRUMENT"] = np.full(n, b"BOSS" if p.instrument is BOSS else b"SDSS")
    program = {"sdss": b"legacy", "segue1": b"segue", "segue2": b"segue2"}.get(p.survey, p.survey.encode())
    t["PROGRAMNAME"] = np.full(n, program, dtype="S23")
    t["TARGETTYPE"] = np.where(sky, b"SKY", np.where(p.standard, b"STANDARD", b"SCIENCE")).astype("S8")
    named = {"galaxy": b"GALAXY", "quasar": b"QSO", "star": b"STAR"}
    t["CLASS"] = np.array([named[k] for k in s["kind"]], dtype="S6")
    t["SOURCETYPE"] = np.where(sky, b"SKY", t["CLASS"]).astype("S19")
    t |= {"PLATE": np.full(n, p.plate, np.int32), "MJD": np.full(n, p.mjd, np.int32)}
    t |= {"PLUG_RA": ra % 360.0, "PLUG_DEC": dec, "SPECTROFLUX_IVAR": error**-2.0}
    t["SPECTROFLUX"] = flux + error * rng.standard_normal(flux.shape)
    t |= {"SPECTROSYNFLUX": t["SPECTROFLUX"], "SPECTROSYNFLUX_IVAR": error**-2.0}
    depth = np.array([2.5, 1.2, 0.9, 0.9, 1.3]) * p.instrument.noise
    snr = flux * np.array([2.2, 1.35, 0.75, 0.5, 0.35]) / depth / np.sqrt(1.0 + 0.05 * flux)
    t |= {"SN_MEDIAN": snr, "SN_MEDIAN_ALL": snr[:, 2]}
    z_error = (1.0 + s["z"]) * np.where(s["kind"] == "quasar", 4e-4, 3e-5) * (1.0 + 4.0 / (1.0 + snr[:, 2]))
    z = s["z"] + z_error * rng.standard_normal(n)
    wrong = (rng.random(n) < 0.3 * np.exp(-snr[:, 2] / 2.0) + 0.01) & (t["dirt"] == "") | sky
    z[wrong] = rng.uniform(0.0, 1.2, wrong.sum())
    t["dirt"][wrong & ~sky] = "zwarn"
    flag = np.where(sky, ZWARNING["sky"], np.where(wrong, ZWARNING["zwarn"], 0)).astype(np.int32)
    t |= {"Z": z, "Z_ERR": z_error, "ZWARNING": flag, "RCHI2": rng.normal(1.05, 0.08, n)}
    t |= {"RCHI2DIFF": np.where(wrong, 0.002, 0.5), "PLATESN2": np.full(n, 3.0 if p.quality == "bad" else 18.0)}
    w = 10.0 ** (3.5 + 1e-4 * (p.instrument.first + np.array([0, p.instrument.pixels])))
    t |= {"WAVEMIN": np.full(n, w[0]), "WAVEMAX": np.full(n, w[1])}
    for name, is_so in (("SPECSEGUE", p.survey.startswith("segue")), ("SPECBOSS", p.instrument is BOSS)):
        t[name] = np.full(n, is_so, dtype=np.uint8)
    return t


def _spoil(t: Rows, seed: int) -> None:
    """One or two rows in a hundred, and one at least, of every other kind of dirt."""
    rng = stream(seed, "sdss", 0, "dirt")
    for label in ("nan z", "bad string", "masked pixels", "unplugged"):
        clean = np.flatnonzero((t["dirt"] == "") & (t["uid"] > 0))
        share = 1 if label in ("bad string", "nan z") else 1 + len(clean) // 80
        t["dirt"][rng.permutation(clean)[:share]] = label
    t["Z"][t["dirt"] == "nan z"] = np.nan
    t["SPECOBJID"][t["dirt"] == "bad string"] = b"*" * 22
    t["ZWARNING"][t["dirt"] == "unplugged"] = ZWARNING["unplugged"]
    t |= {"Z_NOQSO": t["Z"], "Z_ERR_NOQSO": t["Z_ERR"], "ZWARNING_NOQSO": t["ZWARNING"]}


def _measure(fibers: Rows, s: Any) -> None:
    fibers["ANYANDMASK"][:] = np.bitwise_or.reduce(s.and_mask, axis=1)
    fibers["ANYORMASK"][:] = np.bitwise_or.reduce(s.or_mask, axis=1)


def _primaries(t: Rows) -> None:
    """SPECPRIMARY and NSPECOBS: of a source's spectra the best one, of a good plate and without a warning if any."""
    n = len(t["uid"])
    t |= {"ANYANDMASK": np.zeros(n, np.int32), "ANYORMASK": np.zeros(n, np.int32)}
    bad = 2 * (t["PLATEQUALITY"] == b"bad") + (t["ZWARNING"] != 0)
    order = np.lexsort((np.arange(n), -t["SN_MEDIAN_ALL"], bad, t["TARGETTYPE"] != b"SCIENCE", t["uid"]))
    _, first, count = np.unique(t["uid"][order], return_index=True, return_counts=True)
    primary = np.zeros(n, dtype=np.uint8)
    primary[order[first]] = 1
    primary[t["uid"] == 0] = 0
    number = np.ones(n, dtype=np.int16)
    number[order] = np.repeat(count, count)
    t |= {"SPECPRIMARY": primary, "NSPECOBS": np.where(t["uid"] == 0, 1, number)}
    again = (primary == 0) & (t["dirt"] == "")
    t["dirt"][again] = "repeat"


def _truth(rows: Rows, t: Rows, why: NDArray[Any]) -> pa.Table:
    parts = []
    if t:
        names = list(zip(t["RUN2D"].astype(str), *(t[k].tolist() for k in ("PLATE", "MJD", "FIBERID")), strict=True))
        found: dict[str, Any] = {
            "uid": t["uid"].tolist(),
            "key": [pack_key(*k) for k in names],
            "dirt": t["dirt"].tolist(),
        }
        found |= {"observed": [True] * len(names), "why_not": [""] * len(names)}
        found |= {"epoch": pa.array(t["epoch"], from_pandas=True)}
        found |= {k: [x[i] for x in names] for i, k in enumerate(("run2d", "plate", "mjd", "fiberid"))}
        parts.append(pa.table({k: found[k] for k in TRUTH.names}, schema=TRUTH))
    missed = np.flatnonzero(why != "")
    if t:  # a standard star has a spectrum, though it was no target
        missed = missed[~np.isin(rows["uid"][missed], t["uid"])]
    none = {"uid": rows["uid"][missed].tolist(), "dirt": [""] * len(missed), "observed": [False] * len(missed)}
    none |= {"why_not": why[missed].tolist()}
    parts.append(pa.table({k: none.get(k, [None] * len(missed)) for k in TRUTH.names}, schema=TRUTH))
    return pa.concat_tables(parts)
