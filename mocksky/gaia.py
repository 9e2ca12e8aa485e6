"""Gaia DR3 of the mock sky, laid out as the bulk download: GaiaSource and XP csv.gz files by level-8 range, MD5 lists.

Stars to G = 20.9, quasars, and galaxies that are small on the sky. A file holds the sources of a range of HEALPix
level-8 pixels; the ranges cover the whole sky, and only those that hold a source are written and listed, as if a part
of the archive had been fetched. One XP file is listed and not there.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import healpy
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv

from skycairn.mocksky import gaia_columns, sed

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Rows = dict[str, NDArray[Any]]

SOURCES = "gaia_source"
SPECTRA = "Spectroscopy/xp_continuous_mean_spectrum"
SOLUTION_ID = 1636148068921376768
G_LIMIT = 20.9
XP_LIMIT = 17.65

TRUTH = pa.schema(
    [
        ("uid", pa.int64()),
        ("key", pa.int64()),
        ("dirt", pa.string()),
        ("observed", pa.bool_()),
        ("why_not", pa.string()),
        ("has_xp", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Options:
    """What is written beside the sources."""

    spectra: bool = True
    compression: int = 1
    first_source: int = 0
    "before the running numbers within a pixel"


def file_ranges() -> list[tuple[int, int]]:
    """Inclusive ranges of level-8 pixels, contiguous, 0 to 786431: the first few and the last as in DR3."""
    starts = [0, 3112, 5264, 6602, 7953, 10235]
    rng = np.random.default_rng(3386)
    while starts[-1] < 786_097 - 460:
        starts.append(starts[-1] + int(rng.integers(60, 400)))
    starts.append(786_097)
    return [(a, b - 1) for a, b in zip(starts, [*starts[1:], 786_432], strict=True)]


def range_name(first: int, last: int) -> str:
    """`000000-003111`: the part of a file's name that says which pixels it holds."""
    return f"{first:06d}-{last:06d}"


def source_ids(ra: F64, dec: F64, first: int = 0) -> I64:
    """Gaia's source_id: level-12 NESTED pixel at bit 35, then a running number within it, after `first`, at bit 7."""
    pixel = healpy.ang2pix(4096, ra, dec, nest=True, lonlat=True).astype(np.int64)
    order = np.argsort(pixel, kind="stable")
    number = np.empty(len(pixel), dtype=np.int64)
    number[order] = np.arange(len(pixel)) - np.searchsorted(pixel[order], pixel[order])
    return np.asarray((pixel << 35) | ((first + number + 1) << 7), dtype=np.int64)


def _stream(seed: int, *words: int | str) -> np.random.Generator:
    numbers = [zlib.crc32(w.encode()) if isinstance(w, str) else int(w) for w in ("gaia", *words)]
    return np.random.default_rng(np.random.SeedSequence([seed, *numbers]))


def _some(rng: np.random.Generator, among: NDArray[np.bool_], share: float) -> NDArray[np.bool_]:
    """About this share of the rows among, and one at least of ten or more."""
    chance = np.where(among, rng.random(len(among)), 2.0)
    smallest = chance.min(initial=2.0)
    return np.asarray(among & (chance <= max(share, smallest if among.sum() >= 10 else 0.0)))


def write(
    root: Path,
    truth: pa.Table,
    options: Options = Options(),
    seed: int = 0,
    workers: int = 1,
) -> pa.Table:
    """Write the survey under `root`, the folder of the release (`gdr3`), and return its truth table (`TRUTH`).

    The same bytes for the same seed, whatever the number of workers.
    """
    held = observe(sed.rows_of(truth), options, seed)
    files = group(held.columns["source_id"])
    _write_sources(root / SOURCES, files, held.columns, options, workers)
    if options.spectra:
        _write_spectra(root / SPECTRA, files, held, options, seed, workers)
    return truth_table(held)


class Held(NamedTuple):
    """Gaia's sources, sorted by id."""

    columns: Rows
    "by column of GaiaSource, NaN where the file says null"
    source: Rows
    "their rows of the truth"
    dirt: NDArray[Any]
    missed: I64
    "uids of what Gaia does not hold"
    why: NDArray[Any]
    "of each of these"


def observe(rows: Rows, options: Options, seed: int) -> Held:
    """Which true things Gaia holds, and what it says of them."""
    n = len(rows["uid"])
    rng = _stream(seed, "sources")
    g = rows["gaia_g"]
    size = np.maximum(rows["disk_radius"], rows["bulge_radius"])
    faint = ~(g < G_LIMIT)
    extended = (rows["kind"] == "galaxy") & ((size > 0.45) | (g > 20.3))
    missed = rng.random(n) > 0.985
    why = np.select([faint, extended, missed], ["too faint", "extended", "not detected"], "")
    index = np.flatnonzero(why == "")
    s = {k: v[index] for k, v in rows.items()}
    columns, dirt = measure(s, options, rng)
    ids = columns["source_id"]
    order = np.argsort(ids, kind="stable")
    columns = {k: v[order] for k, v in columns.items()}
    s, dirt, ids = {k: v[order] for k, v in s.items()}, dirt[order], ids[order]
    absent = np.flatnonzero(why != "")
    return Held(columns, s, dirt, rows["uid"][absent].astype(np.int64), why[absent])


def truth_table(held: Held) -> pa.Table:
    """Which source shows which true thing; then what Gaia does not hold."""
    ids, absent = held.columns["source_id"], held.missed
    return pa.concat_tables(
        [
            pa.table(
                {
                    "uid": pa.array(held.source["uid"].astype(np.int64)),
                    "key": pa.array(ids),
                    "dirt": pa.array(held.dirt.tolist(), pa.string()),
                    "observed": pa.array(np.ones(len(ids), dtype=bool)),
                    "why_not": pa.array([""] * len(ids), pa.string()),
                    "has_xp": pa.array(held.columns["has_xp_continuous"]),
                },
                schema=TRUTH,
            ),
            pa.table(
                {
                    "uid": pa.array(absent),
                    "key": pa.nulls(len(absent), pa.int64()),
                    "dirt": pa.array([""] * len(absent), pa.string()),
                    "observed": pa.array(np.zeros(len(absent), dtype=bool)),
                    "why_not": pa.array(held.why.tolist(), pa.string()),
                    "has_xp": pa.array(np.zeros(len(absent), dtype=bool)),
                },
                schema=TRUTH,
            ),
        ]
    )


def parallax_error(g: F64) -> F64:
    """Typical standard error of the parallax, mas (after the formula of Gaia's science performance page, DR3)."""
    z = np.maximum(10 ** (0.4 * (13.0 - 15.0)), 10 ** (0.4 * (g - 15.0)))
    return np.asarray(1e-3 * np.sqrt(40.0 + 800.0 * z + 30.0 * z**2))


def measure(s: Rows, options: Options, rng: np.random.Generator) -> tuple[Rows, NDArray[Any]]:
    """The columns that are filled, NaN where the file says null, and the label of what was done to each row."""
    n = len(s["uid"])
    g = s["gaia_g"]
    sigma = parallax_error(g) * rng.lognormal(0.0, 0.12, n)
    dirt = np.full(n, "", dtype="U24")
    c: Rows = {"source_id": source_ids(s["ra"], s["dec"], options.first_source)}
    for name, scale in (("ra", 0.8), ("dec", 0.7), ("parallax", 1.0), ("pmra", 1.03), ("pmdec", 0.9)):
        c[f"{name}_error"] = sigma * scale
    c["dec"] = np.clip(s["dec"] + c["dec_error"] * rng.standard_normal(n) / 3.6e6, -90.0, 90.0)
    shift = c["ra_error"] * rng.standard_normal(n) / 3.6e6 / np.cos(np.radians(s["dec"]))
    c["ra"] = (s["ra"] + shift) % 360.0
    for name in ("parallax", "pmra", "pmdec"):
        c[name] = s[name] + c[f"{name}_error"] * rng.standard_normal(n)
    c["astrometric_params_solved"] = np.where(rng.random(n) < 0.4, 31, 95)
    c["ruwe"] = np.clip(rng.normal(1.02, 0.05, n), 0.8, 1.35)
    double = _some(rng, np.ones(n, dtype=bool), 0.03)
    c["ruwe"][double] = rng.uniform(1.5, 6.0, double.sum())
    dirt[double] = "high ruwe"
    two = _some(rng, (dirt == "") & (g > 14), 0.015) | (g > 20.7)
    dirt[two] = "2-parameter"
    c["astrometric_params_solved"][two] = 3
    c["ruwe"][two] = np.nan
    for name in ("parallax", "pmra", "pmdec"):
        c[name][two] = c[f"{name}_error"][two] = np.nan
    doubled = _some(rng, dirt == "", 0.01)
    dirt[doubled] = "duplicated_source"
    c["duplicated_source"] = doubled
    c["parallax_over_error"] = c["parallax"] / c["parallax_error"]
    c["pm"] = np.hypot(c["pmra"], c["pmdec"])
    no_colour = _some(rng, dirt == "", 0.01)
    dirt[no_colour] = "no bp, rp"
    floor = {"g": 2.5e-4, "bp": 8e-4, "rp": 8e-4}
    for band, zero in sed.GAIA_ZERO_POINT.items():
        short = band.removeprefix("gaia_")
        flux = 10.0 ** (0.4 * (zero - s[band]))
        error = np.hypot(floor[short] * flux, (0.05 if short == "g" else 0.25) * np.sqrt(flux) + 0.2)
        flux = np.maximum(flux + error * rng.standard_normal(n), 0.05 * error)
        if short != "g":
            flux[no_colour] = error[no_colour] = np.nan
        c[f"phot_{short}_mean_flux"], c[f"phot_{short}_mean_flux_error"] = flux, error
        c[f"phot_{short}_mean_flux_over_error"] = flux / error
        c[f"phot_{short}_mean_mag"] = zero - 2.5 * np.log10(flux)
        c[f"phot_{short}_n_obs"] = rng.integers(15, 300, n)
    mags = [c[f"phot_{b}_mean_mag"] for b in ("g", "bp", "rp")]
    c |= {"bp_rp": mags[1] - mags[2], "bp_g": mags[1] - mags[0], "g_rp": mags[0] - mags[2]}
    both = c["phot_bp_mean_flux"] + c["phot_rp_mean_flux"]
    c["phot_bp_rp_excess_factor"] = both / c["phot_g_mean_flux"]
    fast = (s["kind"] == "star") & (g < 14.0)
    c["radial_velocity_error"] = np.where(fast, 0.3 + 2.0 * 10 ** (0.4 * (g - 14.0)), np.nan)
    c["radial_velocity"] = 299792.458 * s["z"] + c["radial_velocity_error"] * rng.standard_normal(n)
    c["has_xp_continuous"] = (g < XP_LIMIT) & ~two & ~no_colour & options.spectra
    c["has_xp_sampled"] = c["has_xp_continuous"] & (g < 15.0)
    for name in ("has_rvs", "has_epoch_photometry", "has_epoch_rv", "has_mcmc_gspphot", "has_mcmc_msc"):
        c[name] = np.zeros(n, dtype=bool)
    c["in_andromeda_survey"] = np.zeros(n, dtype=bool)
    c["astrometric_primary_flag"] = (g < 19.0) & ~two & (c["ruwe"] < 1.4)
    for kind, name in (("quasar", "in_qso_candidates"), ("galaxy", "in_galaxy_candidates")):
        c[name] = s["kind"] == kind
        c[f"classprob_dsc_combmod_{kind}"] = np.where(s["kind"] == kind, 0.98, 0.001)
    c["classprob_dsc_combmod_star"] = np.where(s["kind"] == "star", 0.998, 0.01)
    star = (s["kind"] == "star") & (g < 19.0) & ~no_colour
    for name, column, scatter in (
        ("teff_gspphot", "teff", 80.0),
        ("logg_gspphot", "logg", 0.1),
        ("mh_gspphot", "feh", 0.2),
    ):
        c[name] = np.where(star, s[column] + scatter * rng.standard_normal(n), np.nan)
    c["random_index"] = rng.permutation(n) if n else np.zeros(0, np.int64)
    c["l"], c["b"] = healpy.Rotator(coord=("C", "G"))(c["ra"], c["dec"], lonlat=True) if n else (c["ra"], c["dec"])
    c["ecl_lon"], c["ecl_lat"] = (
        healpy.Rotator(coord=("C", "E"))(c["ra"], c["dec"], lonlat=True) if n else (c["ra"], c["dec"])
    )
    c["l"], c["ecl_lon"] = c["l"] % 360.0, c["ecl_lon"] % 360.0
    c["astrometric_excess_noise"] = np.where(double, rng.uniform(0.5, 3.0, n), rng.uniform(0.0, 0.1, n))
    c["visibility_periods_used"] = rng.integers(8, 30, n)
    return c, dirt


def group(ids: I64) -> dict[str, tuple[int, int]]:
    """First and last row (half-open) of each file, of sources sorted by id."""
    ranges = file_ranges()
    level8 = ids >> 43
    starts = np.searchsorted(level8, [a for a, _ in ranges])
    stops = np.searchsorted(level8, [b for _, b in ranges], side="right")
    held = np.flatnonzero(stops > starts)
    return {range_name(*ranges[k]): (int(starts[k]), int(stops[k])) for k in held}


_ARROW = {"i8": pa.int64(), "i2": pa.int16(), "f8": pa.float64(), "f4": pa.float32()}


def as_text(kind: str, values: NDArray[Any]) -> pa.Array:
    """One column as the text of the bulk files: `null` where there is no number, `True` and `False`."""
    if kind == "bool":
        return pc.if_else(pa.array(values), "True", "False")
    array = pa.array(values, from_pandas=values.dtype.kind == "f")
    array = array.cast(_ARROW[kind])
    return pc.fill_null(array.cast(pa.string()), "null") if array.null_count else array


def save(path: Path, text: bytes, level: int) -> str:
    """Write a gzip file that holds no time and no name; give its MD5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = gzip.compress(text, compresslevel=level, mtime=0)
    path.write_bytes(packed)
    return hashlib.md5(packed, usedforsecurity=False).hexdigest()


def _write_sources(
    folder: Path, files: dict[str, tuple[int, int]], columns: Rows, options: Options, workers: int
) -> None:
    header = gaia_columns.ecsv_header(gaia_columns.GAIA_SOURCE).encode()

    def one(name: str) -> str:
        start, stop = files[name]
        n = stop - start
        constant = {
            "solution_id": str(SOLUTION_ID),
            "ref_epoch": "2016.0",
            "phot_variable_flag": "NOT_AVAILABLE",
            "non_single_star": "0",
            "libname_gspphot": "null",
        }
        arrays, names = [], []
        for column in gaia_columns.GAIA_SOURCE.split():
            label, kind = column.split(":")[:2]
            names.append(label)
            if label == "designation":
                text = pa.array(columns["source_id"][start:stop]).cast(pa.string())
                arrays.append(pc.binary_join_element_wise("Gaia DR3", text, " "))
            elif label in columns:
                arrays.append(as_text(kind, columns[label][start:stop]))
            else:
                arrays.append(pa.repeat(constant.get(label, "null"), n))
        out = BytesIO()
        out.write(header)
        out.write((",".join(names) + "\n").encode())
        bare = csv.WriteOptions(include_header=False, quoting_style="none")
        csv.write_csv(pa.Table.from_arrays(arrays, names=names), out, bare)
        return save(folder / f"GaiaSource_{name}.csv.gz", out.getvalue(), options.compression)

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        sums = list(pool.map(one, files))
    _list(folder, {f"GaiaSource_{name}.csv.gz": s for name, s in zip(files, sums, strict=True)})


def _list(folder: Path, sums: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_MD5SUM.txt").write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))


def _write_spectra(
    folder: Path,
    files: dict[str, tuple[int, int]],
    held: Held,
    options: Options,
    seed: int,
    workers: int,
) -> None:
    from skycairn.mocksky import xp

    rows, absent = spoil_spectra(held, files, seed)
    header = gaia_columns.ecsv_header(gaia_columns.XP_CONTINUOUS).encode()
    names = ",".join(c.split(":")[0] for c in gaia_columns.XP_CONTINUOUS.split()).encode()
    for band in xp.BASIS_ID:
        xp.matrix(band)  # once, before the threads

    def one(name: str) -> str:
        part = {k: v[rows[name]] for k, v in held.source.items()}
        ids, labels = held.columns["source_id"][rows[name]], held.dirt[rows[name]]
        text = xp_text(measure_xp(part, _stream(seed, "xp", name)), ids, labels == "xp without bp")
        path = folder / f"XpContinuousMeanSpectrum_{name}.csv.gz"
        digest = save(path, header + names + b"\n" + text.encode(), options.compression)
        if name == absent:
            path.unlink()
        return digest

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        sums = list(pool.map(one, rows))
    _list(folder, {f"XpContinuousMeanSpectrum_{name}.csv.gz": d for name, d in zip(rows, sums, strict=True)})


def spoil_spectra(
    held: Held, files: dict[str, tuple[int, int]], seed: int, lose_file: bool = True
) -> tuple[dict[str, I64], str | None]:
    """The sources of each XP file, and the file that is listed and not there, if any; the labels of dirt are set."""
    has, dirt = held.columns["has_xp_continuous"], held.dirt
    rows = {name: np.arange(a, b)[has[a:b]] for name, (a, b) in files.items()}
    rows = {name: r for name, r in rows.items() if len(r)}
    dirt[_some(_stream(seed, "xp"), has & (dirt == ""), 0.01)] = "xp without bp"
    # the smallest
    absent = min(rows, key=lambda name: (len(rows[name]), name)) if lose_file and len(rows) > 1 else None
    if absent is not None:
        lost = rows[absent]
        dirt[lost] = np.where(dirt[lost] == "", "file absent", dirt[lost])
    return rows, absent


class Xp(NamedTuple):
    """One band's coefficients."""

    value: F64
    "(n, 55)"
    error: NDArray[np.float32]
    relevant: I64
    transits: I64
    chi2: F64


def spectra(held: Held, seed: int, lose_file: bool = True) -> Iterator[tuple[I64, dict[str, Xp]]]:
    """What `xp_text` writes into each XP file that is there, by band, and the rows of `held` that it is of."""
    rows, absent = spoil_spectra(held, group(held.columns["source_id"]), seed, lose_file)
    for name, some in rows.items():
        if name != absent:
            yield some, measure_xp({k: v[some] for k, v in held.source.items()}, _stream(seed, "xp", name))


def measure_xp(s: Rows, rng: np.random.Generator) -> dict[str, Xp]:
    """Coefficients with their noise, uncorrelated, the errors growing with magnitude."""
    from skycairn.mocksky import xp

    n = len(s["uid"])
    clean = xp.coefficients(s, s["ebv"])
    # relative to the first: 0.1 % at G = 13, photon noise fainter, a floor brighter; higher orders are known better
    relative = 1e-3 * np.sqrt(0.1 + 10 ** (0.4 * (s["gaia_g"] - 13.0)))
    decline = np.exp(-np.arange(xp.N_COEFFICIENTS) / 18.0)
    bands = {}
    for band, values in clean.items():
        error = (relative * np.abs(values[:, 0]))[:, None] * decline
        noisy = values + error * rng.standard_normal(values.shape)
        written = error.astype(np.float32)
        relevant = np.maximum((np.abs(noisy) > 2.0 * written).sum(axis=1), 4)
        transits = rng.integers(15, 60, n)
        chi2 = rng.normal(1.0, 0.03, n) * (transits * 60 - 55)
        bands[band] = Xp(noisy, written, relevant, transits, chi2)
    return bands


def xp_text(measured: dict[str, Xp], ids: I64, without_bp: NDArray[np.bool_]) -> str:
    """CSV rows of the 26 columns."""
    from skycairn.mocksky import xp

    n = len(ids)
    zeros = '"[' + ", ".join(["0.0"] * (xp.N_COEFFICIENTS * (xp.N_COEFFICIENTS - 1) // 2)) + ']"'
    bands = {}
    for band, x in measured.items():
        fields = []
        for k in range(n):
            m = int(x.transits[k]) * 60
            fields.append(
                f"{xp.BASIS_ID[band]},{m - 55},55,{m},0,1.0,{np.float32(x.chi2[k])!s},"
                f'"[{", ".join(map(repr, x.value[k].tolist()))}]",'
                f'"[{", ".join(map(str, x.error[k]))}]",{zeros},{x.relevant[k]},1.0'
            )
        bands[band] = fields
    empty = ",".join(["null"] * 12)
    return "".join(
        f"{ids[k]},{SOLUTION_ID},{empty if without_bp[k] else bands['bp'][k]},{bands['rp'][k]}\n" for k in range(n)
    )
