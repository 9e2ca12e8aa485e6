"""Pairs within 1 arcsec: ours, astropy's match_to_catalog_sky and a cKDTree on the same static rows, in one run.

    python benchmarks/crossmatch.py [rows of the larger table] [rows of the smaller]

Prints seconds, rows a second (both tables' rows), and ratios to ours. All start from ra, dec and an Arrow table in no
order; all must find as many nearest pairs.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from astropy.coordinates import SkyCoord
from scipy.spatial import cKDTree

from skycairn.match.pairs import candidate_pairs
from skycairn.pipeline import sky

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


def main() -> None:
    n_large = int(float(sys.argv[1])) if len(sys.argv) > 1 else 2_000_000
    n_small = int(float(sys.argv[2])) if len(sys.argv) > 2 else n_large // 5
    large, small = tables(n_large, n_small)
    ways: dict[str, Callable[[pa.Table, pa.Table], int]] = {"skycairn": ours, "astropy": astropys, "cKDTree": tree}
    best: dict[str, float] = dict.fromkeys(ways, np.inf)
    found = {}
    for _ in range(2):
        for name, way in ways.items():
            start = time.perf_counter()
            found[name] = way(large, small)
            best[name] = min(best[name], time.perf_counter() - start)
    print(f"{n_large:,} x {n_small:,} static rows, {RADIUS_ARCSEC} arcsec, best of two")
    for name, seconds in best.items():
        rate, ratio = (n_large + n_small) / seconds / 1e6, seconds / best["skycairn"]
        print(f"{name:10s} {seconds:6.2f} s {rate:6.2f} M rows/s {ratio:6.2f} x ours {found[name]:>10,} nearest pairs")
    if len(set(found.values())) > 1:
        raise SystemExit("the ways do not agree")


if __name__ == "__main__":
    main()
