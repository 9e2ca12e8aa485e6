"""How time and memory of a cross-match of files grow with the rows: 1e5 to 2e8, unsorted Parquet to pairs on disk.

    python benchmarks/match_scale.py [--largest 2e8] [--memory 6] [--workers 2] [--work /tmp/match_scale]

The right table has a quarter of the left one's rows, 70 % of them within 0.6 arcsec or so of a left one. Half of each
lies in a disc that thins by e every 5 degrees, as the Galaxy's. Peak memory is the sum of the resident memory of the
tree of processes, sampled ten times a second; it counts shared pages twice. The files are removed at the end.
"""

import argparse
import math
import shutil
import sys
from pathlib import Path

from filesky import disc, took, write_sides

MATCH = """
import sys
from pathlib import Path
from skycairn.match.outofcore import crossmatch_files

if __name__ == "__main__":
    left, right, out, memory, workers = sys.argv[1:]
    print(crossmatch_files(left, right, 1.0, Path(out), memory_bytes=int(memory), workers=int(workers)).pairs)
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--smallest", type=float, default=1e5)
    options.add_argument("--largest", type=float, default=2e8)
    options.add_argument("--memory", type=float, default=6.0, help="GB of all workers together")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--work", type=Path, default=Path("/tmp/match_scale"))
    told = options.parse_args()
    sizes = []
    while told.smallest * 10 ** len(sizes) < told.largest:
        sizes.append(told.smallest * 10 ** len(sizes))
    told.work.mkdir(parents=True, exist_ok=True)
    script = told.work / "run-match.py"
    script.write_text(MATCH)
    print(f"1 arcsec, {told.workers} workers on as many cores, a budget of {told.memory:g} GB")
    print(f"{'left rows':>12} {'right rows':>12} {'pairs':>12} {'wall s':>8} {'CPU s':>8} {'M rows/s':>9}", end=" ")
    print(f"{'CPU us/row':>11} {'/ log2 N':>9} {'RSS GB':>7}")
    for size in [*sizes, told.largest]:
        n_left, n_right = int(size), int(size) // 4
        folder, out = told.work / str(n_left), told.work / "out"
        shutil.rmtree(out, ignore_errors=True)
        left, right = write_sides(folder, n_left, n_right, max(1, n_left // 2_000_000), disc, 5)
        memory = [str(round(told.memory * 1e9)), str(told.workers)]
        cores = f"0-{told.workers - 1}"
        took_ = took([sys.executable, str(script), str(left), str(right), str(out), *memory], cores)
        n = n_left + n_right
        each = took_.cpu / n * 1e6
        print(f"{n_left:12,} {n_right:12,} {int(took_.out):12,} {took_.wall:8.1f} {took_.cpu:8.1f}", end=" ")
        print(f"{n / took_.wall / 1e6:9.2f} {each:11.2f} {each / math.log2(n):9.3f} {took_.rss / 1e9:7.2f}", flush=True)
        shutil.rmtree(folder)
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
