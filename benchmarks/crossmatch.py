"""Pairs within 1 arcsec of tables in memory, one core: ours, astropy's match_to_catalog_sky, a cKDTree, in one run.

    python benchmarks/crossmatch.py [rows of the larger table] [rows of the smaller]

The kernel starts from tables that are sorted by HEALPix, all others from ra and dec in no order; all must find as many
nearest pairs. Prints seconds, rows a second (both tables' rows), and ratios; what share of the kernel's time is
needed to read its columns once (the limit of memory bandwidth, measured in the same run); the memory that the kernel
allocates; how long it takes to be compiled, once a machine. LSDB, STILTS and hats-import: `match_files.py`.
"""

import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from astropy.coordinates import SkyCoord
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from skycairn.match import kernel, sky
from skycairn.match.pairs import candidate_pairs

RADIUS_ARCSEC = 1.0


def tables(n_large: int, n_small: int) -> tuple[pa.Table, pa.Table]:
    """Uniform over 2000 square degrees at 5 million rows; 70 % of the small one's are near one of the large one's."""
    rng = np.random.default_rng(7)
    width = 52.8 * n_large / 5e6
    ra, dec = rng.uniform(150, 150 + width, n_large), np.degrees(np.arcsin(rng.uniform(-0.087, 0.574, n_large)))
    true = rng.permutation(n_large)[: int(0.7 * n_small)]
    near = sky.propagate(ra[true], dec[true], *rng.normal(0, 200, (2, true.size)), 1.0)
    rest = n_small - true.size
    other = rng.uniform(150, 150 + width, rest), np.degrees(np.arcsin(rng.uniform(-0.087, 0.574, rest)))
    order = rng.permutation(n_small)
    ra2, dec2 = np.concatenate([near[0], other[0]])[order], np.concatenate([near[1], other[1]])[order]
    return (
        pa.table({"key": np.arange(n_large), "ra": ra, "dec": dec}),
        pa.table({"key": np.arange(n_small), "ra": ra2, "dec": dec2}),
    )


def in_order(table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    ra, dec = table["ra"].to_numpy(), table["dec"].to_numpy()
    cell = sky.healpix29(ra, dec)
    order = np.argsort(cell, kind="stable")
    return cell[order], ra[order], dec[order]


def ours(large: pa.Table, small: pa.Table) -> int:
    pairs = candidate_pairs(small, large, RADIUS_ARCSEC)
    return int((pairs["left_rank"].to_numpy() == 1).sum())


def astropys(large: pa.Table, small: pa.Table) -> int:
    a, b = (SkyCoord(t["ra"].to_numpy(), t["dec"].to_numpy(), unit="deg") for t in (small, large))
    return int((a.match_to_catalog_sky(b)[1].arcsec <= RADIUS_ARCSEC).sum())


def tree(large: pa.Table, small: pa.Table) -> int:
    a, b = (sky.unit_vectors(t["ra"].to_numpy(), t["dec"].to_numpy()).T for t in (small, large))
    chord = 2 * np.sin(np.radians(RADIUS_ARCSEC / 3600) / 2)
    distance, _ = cKDTree(b).query(a, distance_upper_bound=chord * (1 + 1e-12))
    return int(np.isfinite(distance).sum())


def seconds(way: Callable[[], object], times: int) -> list[float]:
    out = []
    for _ in range(times):
        start = time.perf_counter()
        way()
        out.append(time.perf_counter() - start)
    return out


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    n_large = int(float(sys.argv[1])) if len(sys.argv) > 1 else 5_000_000
    n_small = int(float(sys.argv[2])) if len(sys.argv) > 2 else n_large // 5
    rows = (n_large + n_small) / 1e6
    large, small = tables(n_large, n_small)
    a, b = in_order(small), in_order(large)
    first = seconds(lambda: kernel.near(*a, *b, RADIUS_ARCSEC), 1)[0]
    join = sorted(seconds(lambda: kernel.near(*a, *b, RADIUS_ARCSEC), 9))
    read = min(seconds(lambda: [column.view(np.int64).sum() for table in (a, b) for column in table], 9))
    peak = peak_bytes(lambda: kernel.near(*a, *b, RADIUS_ARCSEC))
    print(f"{n_large:,} x {n_small:,} rows at rest, {RADIUS_ARCSEC} arcsec, one core")
    for name, took in (("best", join[0]), ("median", join[len(join) // 2])):
        print(f"kernel, sorted tables, {name:6s} {took:7.3f} s {rows / took:7.1f} M rows/s")
    print(f"reading its columns once takes {read:.3f} s: {read / join[0]:.0%} of the kernel's best")
    held = sum(column.nbytes for table in (a, b) for column in table)
    print(f"it allocates {peak / 1e6:.0f} MB at most, beside {held / 1e6:.0f} MB of tables")
    print(f"compiling it takes {compilation():.1f} s, once a machine; the first call in this process {first:.2f} s")
    ways: dict[str, Callable[[pa.Table, pa.Table], int]] = {"skycairn": ours, "astropy": astropys, "cKDTree": tree}
    best: dict[str, float] = dict.fromkeys(ways, np.inf)
    found = {}
    for _ in range(2):
        for name, way in ways.items():
            start = time.perf_counter()
            found[name] = way(large, small)
            best[name] = min(best[name], time.perf_counter() - start)
    print("from tables in no order, all that `candidate_pairs` gives, best of two:")
    for name, took in best.items():
        ratio = took / best["skycairn"]
        print(
            f"{name:10s} {took:6.2f} s {rows / took:6.2f} M rows/s {ratio:6.2f} x ours {found[name]:>10,} nearest pairs"
        )
    if len(set(found.values())) > 1:
        raise SystemExit("the ways do not agree")


def compilation() -> float:
    """Seconds that the first call takes in a new process with an empty cache, beside those of the second."""
    code = (
        "import time, numpy as np; from skycairn.match import kernel\n"
        "one = np.zeros(1, np.int64), np.full(1, 45.0), np.zeros(1)\n"
        "times = [time.perf_counter()]\n"
        "for _ in 'ab': kernel.near(*one, *one, 1.0); times.append(time.perf_counter())\n"
        "print(times[1] - times[0] - (times[2] - times[1]))"
    )
    with tempfile.TemporaryDirectory() as cache:
        run = [sys.executable, "-c", code]
        return float(subprocess.check_output(run, env={**os.environ, "NUMBA_CACHE_DIR": cache}, text=True))


def peak_bytes(way: Callable[[], object]) -> int:
    """Of what numpy allocates."""
    tracemalloc.start()
    way()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


if __name__ == "__main__":
    main()
