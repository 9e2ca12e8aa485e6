"""From unsorted Parquet on disk to pairs on disk, and to a sorted catalogue: ours, LSDB, STILTS, hats-import; one core.

    python benchmarks/match_files.py [--left 1e6] [--right 5e6] [--work /tmp/match_files] [--peers python] [--repeats 2]

All are held to one core, one thread a library. `--peers` is a Python that has lsdb and hats-import (no part of
skycairn); stilts is found on the PATH. What is absent is skipped, in words. LSDB matches what was imported into HATS
before: its users' way from Parquet files to pairs is both imports (at zstd-3, with the margin that it needs) and the
match. Debian's STILTS reads no Parquet: it is given FITS files of id, ra, dec, written by astropy. Where a line lists
several steps, they are added up; lsdb and stilts alone leave out what comes before. The question is each left row's
nearest right row within 1 arcsec; the left table is the smaller. Ours writes all pairs, with ranks, rivals and chance.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filesky import Took, took, write_sides

OURS = """
import sys
from pathlib import Path
import pyarrow as pa
pa.set_cpu_count(1); pa.set_io_thread_count(1)
from skycairn.match.outofcore import crossmatch_files
print(crossmatch_files(sys.argv[1], sys.argv[2], 1.0, Path(sys.argv[3])).pairs)
"""
OUR_CATALOGUE = """
import sys
from pathlib import Path
import pyarrow as pa
pa.set_cpu_count(1); pa.set_io_thread_count(1)
from skycairn.match.catalogue import write_catalogue
print(write_catalogue(sys.argv[1], Path(sys.argv[2]), leaf_rows=200_000, margin_arcsec=float(sys.argv[3])))
"""
IMPORT = """
import sys
from pathlib import Path
import pyarrow as pa
pa.set_cpu_count(1); pa.set_io_thread_count(1)
from dask.distributed import Client
from hats_import.catalog.arguments import ImportArguments
from hats_import.margin_cache.margin_cache_arguments import MarginCacheArguments
from hats_import.pipeline import pipeline_with_client

def main():
    source, out, name, margin = sys.argv[1:5]
    kept = {"write_table_kwargs": {"compression": "zstd", "compression_level": 3}, "progress_bar": False}
    one = {"n_workers": 1, "threads_per_worker": 1, "memory_limit": 0, "dashboard_address": None}
    with Client(local_directory=out, **one) as client:
        pipeline_with_client(ImportArguments(
            input_file_list=sorted(Path(source).glob("*.parquet")), file_reader="parquet", output_path=out,
            output_artifact_name=name, pixel_threshold=200_000, mapping_healpix_order=10, **kept), client)
        if float(margin):
            pipeline_with_client(MarginCacheArguments(
                input_catalog_path=Path(out) / name, margin_threshold=float(margin), output_path=out,
                output_artifact_name=name + "_margin", **kept), client)

if __name__ == "__main__":
    main()
"""
LSDB = """
import sys
import pyarrow as pa
pa.set_cpu_count(1); pa.set_io_thread_count(1)
import dask
import lsdb
out = sys.argv[1]
with dask.config.set(scheduler="synchronous"):
    left = lsdb.open_catalog(out + "/left", columns=["id", "ra", "dec"])
    right = lsdb.open_catalog(out + "/right", margin_cache=out + "/right_margin", columns=["id", "ra", "dec"])
    found = left.crossmatch(right, n_neighbors=1, radius_arcsec=1.0, suffixes=("_left", "_right"),
                            suffix_method="all_columns")
    frame = found[["id_left", "id_right", "_dist_arcsec"]].compute()
frame.to_parquet(sys.argv[2])
print(len(frame))
"""
TO_FITS = """
import sys
from pathlib import Path
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.table import Table
pa.set_cpu_count(1); pa.set_io_thread_count(1)
for source, out in (sys.argv[1:3], sys.argv[3:5]):
    whole = pa.concat_tables([pq.read_table(p, columns=["id", "ra", "dec"]) for p in sorted(Path(source).iterdir())])
    Table({n: whole.column(n).to_numpy() for n in whole.column_names}).write(out, overwrite=True)
"""


class Bench:
    """The runs of one method, and the best of them."""

    def __init__(self, n_rows: int) -> None:
        self.n_rows = n_rows
        self.best: dict[str, Took] = {}

    def run(self, name: str, command: list[str]) -> None:
        now = took(command)
        if name not in self.best or now.cpu < self.best[name].cpu:
            self.best[name] = now

    def show(self, title: str, names: list[tuple[str, ...]], n_rows: int) -> None:
        ours = self.best[names[0][0]]
        print(f"\n{title}\n{'':34} {'wall s':>7} {'CPU s':>7} {'M rows/s':>9} {'RSS MB':>7} {'CPU, x ours':>12}")
        for parts in names:
            if any(p not in self.best for p in parts):
                continue
            some = [self.best[p] for p in parts]
            wall, cpu, rss = sum(s.wall for s in some), sum(s.cpu for s in some), max(s.rss for s in some)
            rate = n_rows / wall / 1e6
            print(f"{' + '.join(parts):34} {wall:7.1f} {cpu:7.1f} {rate:9.2f} {rss / 1e6:7.0f} {cpu / ours.cpu:12.2f}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--left", type=float, default=1e6)
    options.add_argument("--right", type=float, default=5e6)
    options.add_argument("--work", type=Path, default=Path("/tmp/match_files"))
    options.add_argument("--peers", default=sys.executable)
    options.add_argument("--repeats", type=int, default=2)
    told = options.parse_args()
    n_left, n_right = int(told.left), int(told.right)
    # the larger is made first: the smaller's rows lie near some of its
    large, small = write_sides(told.work / f"{n_right}x{n_left}", n_right, n_left, 20)
    left, right = small, large
    out = told.work / "out"
    scripts = {"fits": TO_FITS, "ours": OURS, "catalogue": OUR_CATALOGUE, "import": IMPORT, "lsdb": LSDB}
    for name, text in scripts.items():
        (told.work / f"run-{name}.py").write_text(text)
    python = {
        n: [told.peers if n in ("import", "lsdb") else sys.executable, str(told.work / f"run-{n}.py")] for n in scripts
    }
    asked = subprocess.run([told.peers, "-c", "import hats_import, lsdb"], check=False, capture_output=True)
    peers = asked.returncode == 0
    if not peers:
        print(f"{told.peers} has no lsdb and hats-import: LSDB and hats-import are skipped")
    stilts = shutil.which("stilts")
    tables = [told.work / f"{n_right}x{n_left}-{n}.fits" for n in ("left", "right")]
    if stilts is None:
        print("there is no stilts on the PATH: STILTS is skipped (Debian has it as the package stilts)")
    # compiled once for all, as after an installation
    took([*python["ours"], str(left), str(right), str(told.work / "warm")])
    shutil.rmtree(told.work / "warm")
    bench = Bench(n_left + n_right)
    found: dict[str, int] = {}
    sizes: dict[str, float] = {}
    for repeat in range(told.repeats):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        bench.run("skycairn", [*python["ours"], str(left), str(right), str(out / "pairs")])
        bench.run("catalogue", [*python["catalogue"], str(right), str(out / "catalogue"), "0"])
        bench.run("catalogue, margin", [*python["catalogue"], str(right), str(out / "with"), "10"])
        pairs = pa.concat_tables([pq.read_table(p) for p in (out / "pairs").glob("*.parquet")])
        found["skycairn"] = int((np.asarray(pairs["left_rank"]) == 1).sum())
        sizes["catalogue"] = _size(out / "catalogue")
        if peers and repeat < 2:
            hats = out / "hats"
            bench.run("hats-import right", [*python["import"], str(right), str(hats), "right", "10"])
            bench.run("hats-import left", [*python["import"], str(left), str(hats), "left", "0"])
            bench.run("lsdb", [*python["lsdb"], str(hats), str(out / "lsdb.parquet")])
            found["lsdb"] = int(bench.best["lsdb"].out.split()[-1])
            bench.run("hats-import", [*python["import"], str(right), str(out / "bare"), "right", "0"])
            sizes["hats-import"] = _size(out / "bare")
        if stilts is not None:
            matched = out / "stilts.fits"
            find = ["matcher=sky", "params=1.0", "values1=ra dec", "values2=ra dec", "join=1and2", "find=best1"]
            place = [f"in1={tables[0]}", f"in2={tables[1]}", "ifmt1=fits", "ifmt2=fits", f"out={matched}"]
            bench.run("to FITS", [*python["fits"], str(left), str(tables[0]), str(right), str(tables[1])])
            bench.run("stilts", [stilts, "tmatch2", *place, *find, "runner=sequential", "progress=none"])
            count = subprocess.run([stilts, "tpipe", f"in={matched}", "omode=count"], capture_output=True, text=True)
            found["stilts"] = int(count.stdout.split("rows:")[1])
    shutil.rmtree(out)
    print(f"\n{n_left:,} x {n_right:,} rows of 17 columns, 1 arcsec, one core; best of {told.repeats} by CPU")
    whole = ("hats-import left", "hats-import right", "lsdb")
    ways = [("skycairn",), whole, ("lsdb",), ("to FITS", "stilts"), ("stilts",)]
    bench.show("unsorted files to pairs on disk", ways, n_left + n_right)
    bench.show("unsorted files to a catalogue", [("catalogue",), ("hats-import",)], n_right)
    bench.show("with its margin", [("catalogue, margin",), ("hats-import right",)], n_right)
    print(f"\nnearest pairs: {json.dumps(found)}\ncatalogues, MB: {json.dumps(sizes)}")


def _size(folder: Path) -> float:
    return round(sum(p.stat().st_size for p in folder.rglob("*.parquet")) / 1e6, 1)


if __name__ == "__main__":
    main()
