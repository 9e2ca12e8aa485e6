"""Build the mock sky: the truth, then every survey's own files.

OUT/mock.json                    tier, seed, version, counts, `noise` where it is free of it; `complete` is written last
OUT/truth/sources.parquet        see docs/truth.md
OUT/truth/<survey>.parquet
OUT/truth/lineage-<survey>.parquet   of a second release alone
OUT/truth/masks/<brick>.npz
OUT/legacysurvey/                root of DR10
OUT/hsc/                         root of the archive, and the tables that its database gave
OUT/desi/                        root of the production iron
OUT/gaia/                        root of gdr3
OUT/sdss/                        root of sas/dr17
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from skycairn.mocksky import (
    coadd,
    desi,
    dirt,
    gaia,
    hsc,
    hscimage,
    legacysurvey,
    legacywriter,
    sdss,
    secondrelease,
    sed,
    truth,
)
from skycairn.mocksky.patches import TIERS, Tier, in_desi, in_sdss

VERSION = 8
"""Raised whenever the same tier and seed give other files."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Summary:
    """What a mock holds; as in its mock.json."""

    tier: str
    seed: int
    version: int
    complete: bool
    counts: dict[str, int] = field(default_factory=dict)
    release: int = 1
    "2: the second release of the same sky, see secondrelease"
    noise: bool = True
    "False: images and spectra hold the expected flux"


def build(
    tier: str,
    out: Path,
    seed: int = 0,
    workers: int = 2,
    progress: Progress | None = None,
    release: int = 1,
    first: Path | None = None,
    noise: bool = True,
) -> Summary:
    """Write the mock of a tier under `out`; does nothing where it is there and complete.

    The same bytes for the same tier, seed, release and version, whatever the number of workers. ValueError for an
    unknown tier or release, or a folder that holds anything but this mock, whole or in part. `first` is where the first
    release of the same tier and seed lies, if it does: the second is then made from a copy of it, without painting.

    Without `noise` images and spectra hold what their mean over many skies would be: light through the point spread
    function and the resolution, in the same files, under the same inverse variances, masks and dirt. Catalogues, and
    Gaia's spectra, which are part of one, stay as they are, errors included. Of release 1 alone.
    """
    if tier not in TIERS:
        raise ValueError(f"there is no tier {tier!r} of the mock sky; choose one of {', '.join(TIERS)}")
    if not 0 <= seed < 1 << 32:
        raise ValueError(f"seed is {seed}, wanted 0 to 2^32 - 1")
    if release not in (1, 2):
        raise ValueError(f"there is no release {release} of the mock sky; choose 1 or 2")
    if first is not None and (release == 1 or out.resolve() == first.resolve()):
        raise ValueError(
            f"a first release was given ({first}) and release {release} wanted in {out}; wanted 2, elsewhere"
        )
    if release == 2 and not noise:
        raise ValueError(
            "there is no noise-free second release of the mock sky; wanted release 1, whose pixels are the same"
        )
    say = progress or (lambda _: None)
    there = _found(out, Summary(tier, seed, VERSION, False, release=release, noise=noise))
    if there is not None and there.complete:
        say("the mock is there and complete")
        return there
    for name in ("truth", "legacysurvey", "hsc", "desi", "gaia", "sdss"):
        shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out, Summary(tier, seed, VERSION, False, release=release, noise=noise))
    counts = (
        _write(TIERS[tier], out, seed, workers, say, noise) if first is None else _copy(tier, first, out, seed, say)
    )
    if release == 2:
        say("editing the tables of the second release")
        rows = sed.rows_of(pq.read_table(out / "truth" / "sources.parquet"))
        counts = secondrelease.write(TIERS[tier], out, seed, counts, brick_of_everything(TIERS[tier], rows))
    summary = Summary(tier, seed, VERSION, True, counts, release, noise)
    _write_json(out, summary)
    return summary


def _write(tier: Tier, out: Path, seed: int, workers: int, say: Progress, noise: bool) -> dict[str, int]:
    say("drawing the truth")
    rows = truth.assemble(tier, seed)
    sources = truth.table(rows)
    (out / "truth").mkdir()
    _write_parquet(sources, out / "truth" / "sources.parquet")
    counts = {"true": sources.num_rows}

    say("writing Gaia")
    in_gaia = gaia.write(out / "gaia", sources, gaia.Options(spectra=tier.pixels), seed, workers)
    _write_parquet(in_gaia, out / "truth" / "gaia.parquet")
    counts["gaia"] = _rows(in_gaia)

    say("writing DESI")
    bricks = brick_of_everything(tier, rows)
    looked = in_desi(tier, rows["ra"], rows["dec"], rows["patch"])
    options = desi.Options(tier.pixels, tier.name != "tiny", tier.desi_completeness, noise)
    in_spectra = desi.write(out / "desi", sources, options, seed, workers, looked, bricks)
    _write_parquet(in_spectra, out / "truth" / "desi.parquet")
    counts["desi"] = _rows(in_spectra)

    say("writing SDSS")
    plated = in_sdss(tier, rows["ra"], rows["dec"], rows["patch"])
    fibres = sdss.Options(spectra=tier.pixels, stars=tier.sdss_stars, noise=noise)
    in_plates = sdss.write(out / "sdss", sources, fibres, seed, workers, plated)
    _write_parquet(in_plates, out / "truth" / "sdss.parquet")
    counts["sdss"] = _rows(in_plates)

    say("writing HSC's tables")
    in_hsc = hsc.write(out / "hsc", tier, rows, seed)
    _write_parquet(in_hsc, out / "truth" / "hsc.parquet")
    counts["hsc"] = _rows(in_hsc)
    if tier.pixels:
        _paint(hscimage.write_patch, hscimage.tasks(out / "hsc", tier, rows, seed, noise), "HSC patch", workers, say)

    say("writing the Legacy Survey's tables")
    rows["gaia_source_id"] = source_ids(rows["uid"], in_gaia)
    looks = legacysurvey.exposures(tier, rows, seed)
    catalogue = legacysurvey.observe(tier, rows, looks, seed)
    root = out / "legacysurvey"
    legacywriter.write_sweeps(root, catalogue)
    legacywriter.write_brick_tables(root, tier, looks, catalogue)
    in_legacy = legacysurvey.truth_table(catalogue)
    _write_parquet(in_legacy, out / "truth" / "legacysurvey.parquet")
    counts["legacysurvey"] = len(catalogue.dirt)
    if tier.pixels:
        absent = dirt.files(tier).absent_z
        tasks = [
            coadd.Task(root, out / "truth" / "masks", k, coadd.around(rows, k), seed, k.brick.name == absent, noise)
            for k in looks
        ]
        counts["bricks"] = len(tasks)
        _paint(coadd.write_brick, tasks, "brick", workers, say)
    return counts


def _copy(tier: str, first: Path, out: Path, seed: int, say: Progress) -> dict[str, int]:
    """Copy a first release that is there and complete; gives its counts."""
    there = _found(first, Summary(tier, seed, VERSION, False))
    if there is None or not there.complete:
        raise ValueError(f"{first} holds no complete first release of the mock sky; build it, or leave it out")
    say(f"copying the first release from {first}")
    for folder in sorted(p for p in first.iterdir() if p.is_dir()):
        shutil.copytree(folder, out / folder.name)
    return dict(there.counts)


def _paint(write: Callable[[Any], int], tasks: Sequence[Any], what: str, workers: int, say: Progress) -> None:
    """Write all images, in processes where there are enough of them to pay for starting some."""
    if workers < 2 or len(tasks) < 8:
        for k, task in enumerate(tasks):
            say(f"painting {what} {k + 1} of {len(tasks)}")
            write(task)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for k, _ in enumerate(pool.map(write, tasks)):
            say(f"painted {what} {k + 1} of {len(tasks)}")


def _rows(table: pa.Table) -> int:
    return int(np.count_nonzero(table.column("observed").to_numpy(zero_copy_only=False)))


def source_ids(uid: NDArray[np.int64], in_gaia: pa.Table) -> NDArray[np.int64]:
    """Gaia's source_id of each true thing, 0 where Gaia does not hold it; of several the smallest."""
    known = in_gaia.filter(in_gaia.column("key").is_valid()).sort_by([("uid", "ascending"), ("key", "ascending")])
    held, first = np.unique(known.column("uid").to_numpy(), return_index=True)
    keys = known.column("key").to_numpy()[first]
    at = np.minimum(np.searchsorted(held, uid), max(len(held) - 1, 0))
    if not len(held):
        return np.zeros(len(uid), dtype=np.int64)
    return np.where(held[at] == uid, keys[at], 0)


def brick_of_everything(tier: Tier, rows: truth.Rows) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Number and name of the brick of each true thing, the nearest one where it lies beside all of them."""
    index = tier.brick_index(rows["ra"], rows["dec"], rows["patch"])
    centres = truth.unit(np.array([b.ra for b in tier.bricks]), np.array([b.dec for b in tier.bricks]))
    beside = index < 0
    index[beside] = cKDTree(centres).query(truth.unit(rows["ra"][beside], rows["dec"][beside]))[1]
    numbers = np.array([b.brickid for b in tier.bricks], dtype=np.int64)
    return numbers[index], np.array([b.name for b in tier.bricks], dtype="U8")[index]


def _write_parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd")


def _found(out: Path, wanted: Summary) -> Summary | None:
    """What lies in the folder: None where it is empty or absent."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    path = out / "mock.json"
    if not path.is_file():
        raise ValueError(f"{out} is not empty and holds no mock.json: choose an empty folder for the mock sky")
    try:
        there = Summary(**json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); remove {out} or choose another folder") from error
    if there.noise != wanted.noise:
        held, asked = ("with noise" if s.noise else "noise-free" for s in (there, wanted))
        raise ValueError(f"{out} holds the mock {held}; wanted it {asked}: choose another folder")
    if there.release != wanted.release:
        raise ValueError(
            f"{out} holds release {there.release} of the mock; wanted release {wanted.release}: choose another"
        )
    if (there.tier, there.seed, there.version) != (wanted.tier, wanted.seed, wanted.version):
        raise ValueError(
            f"{out} holds the mock of tier {there.tier}, seed {there.seed}, version {there.version}; wanted tier "
            f"{wanted.tier}, seed {wanted.seed}, version {wanted.version}: remove it or choose another folder"
        )
    return there


def _write_json(out: Path, summary: Summary) -> None:
    held = asdict(summary)
    if summary.noise:
        del held["noise"]
    (out / "mock.json").write_text(json.dumps(held, indent=1, sort_keys=True) + "\n")
