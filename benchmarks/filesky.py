"""Synthetic tables in Parquet files, and what a command takes to work on them. Used by match_files and match_scale."""

import os
import resource
import subprocess
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from skycairn.match import sky

# north Galactic pole, Galactic centre and the axis across, ICRS (Hipparcos, vol. 1, 1.5.3), as rows
GALACTIC = np.array(
    [
        [-0.0548755604, -0.8734370902, -0.4838350155],
        [0.4941094279, -0.4448296300, 0.7469822445],
        [-0.8676661490, -0.1980763734, 0.4559837762],
    ]
)


def patch(rng, n):
    """Uniform over 2,000 square degrees."""
    return rng.uniform(150, 202.8, n), np.degrees(np.arcsin(rng.uniform(-0.087156, 0.573576, n)))


def disc(rng, n):
    """Half of them uniform over the sphere, half in a disc whose density falls with e^-|b|/5 degrees."""
    lon = rng.uniform(0, 2 * np.pi, n)
    z = rng.uniform(-1, 1, n)
    flat = rng.uniform(size=n) < 0.5
    z[flat] = np.sin(np.clip(np.radians(rng.laplace(0, 5, flat.sum())), -np.pi / 2, np.pi / 2))
    ring = np.sqrt(1 - z**2)
    x, y, z = GALACTIC.T @ np.stack([ring * np.cos(lon), ring * np.sin(lon), z])
    return np.degrees(np.arctan2(y, x)) % 360, np.degrees(np.arcsin(np.clip(z, -1, 1)))


def rows(rng, ra, dec, first, n_columns):
    """A table of an id, the position, and measurements up to so many columns."""
    n = ra.size
    columns = {"id": rng.permutation(n) + first, "ra": ra, "dec": dec}
    for i in range(n_columns - 3):
        if i % 7 == 6:
            columns[f"flag{i}"] = rng.integers(0, 64, n).astype(np.int32)
        elif i % 3 == 2:
            columns[f"value{i}"] = rng.normal(size=n)
        else:
            columns[f"mag{i}"] = rng.normal(20, 2, n).astype(np.float32)
    return pa.table(columns)


def write_sides(folder: Path, n_left: int, n_right: int, n_files: int, place=patch, n_columns=17) -> tuple[Path, Path]:
    """Left and right tables in files of their own, rows in no order; 70 % of the right ones are near a left one."""
    left, right = folder / "left", folder / "right"
    if (folder / "done").exists():
        return left, right
    for side in (left, right):
        side.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        calls = [
            pool.submit(write_files, folder, n_left, n_right, i, n_files, place, n_columns) for i in range(n_files)
        ]
        for call in calls:
            call.result()
    (folder / "done").touch()
    return left, right


def write_files(folder: Path, n_left: int, n_right: int, i: int, n_files: int, place, n_columns: int) -> None:
    """One file of each side."""
    rng = np.random.default_rng([7, i])
    first = n_left * i // n_files, n_right * i // n_files
    n, m = n_left * (i + 1) // n_files - first[0], n_right * (i + 1) // n_files - first[1]
    ra, dec = place(rng, n)
    true = rng.permutation(n)[: int(0.7 * m)]
    near = sky.propagate(ra[true], dec[true], *rng.normal(0, 200, (2, true.size)), 1.0)
    rest = place(rng, m - true.size)
    order = rng.permutation(m)
    sides = (ra, dec), [np.concatenate([near[k], rest[k]])[order] for k in (0, 1)]
    for name, (ra, dec), start in zip(("left", "right"), sides, first, strict=True):
        path = folder / name / f"{i:04d}.parquet"
        pq.write_table(rows(rng, ra, dec, start, n_columns), path, compression="zstd")


@dataclass
class Took:
    """What a command took."""

    wall: float
    cpu: float
    "seconds, of it and its children"
    rss: int
    "bytes, the largest sum over its tree of processes; pages that two share count twice"
    out: str


def took(command: list[str], cores: str = "0") -> Took:
    """Run a command on these cores alone, one thread a library."""
    threads = {n: "1" for n in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    process = subprocess.Popen(
        ["taskset", "-c", cores, *command], env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True
    )
    peak = [0]
    thread = threading.Thread(target=_watch, args=(process, peak))
    thread.start()
    out, _ = process.communicate()
    wall = time.perf_counter() - start
    thread.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Took(wall, cpu, peak[0], out)


def _watch(process, peak) -> None:
    while process.poll() is None:
        peak[0] = max(peak[0], _tree_rss(process.pid))
        time.sleep(0.1)


def _tree_rss(root: int) -> int:
    parents, rss = {}, {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[int(entry)], rss[int(entry)] = int(fields[1]), int(fields[21]) * resource.getpagesize()
    tree = {root}
    while grown := {p for p, parent in parents.items() if parent in tree} - tree:
        tree |= grown
    return sum(rss.get(p, 0) for p in tree)
