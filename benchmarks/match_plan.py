"""Gaia (1.8e9) x Legacy Survey (2.8e9) on 1 to 1000 workers, simulated: cells, bytes, wall time, the scheduler's load.

    python benchmarks/match_plan.py [--memory 2] [--disk 0.2] [--workers 1 10 100 1000] [--task-ms 1] [--shuffled]

A simulation, not a run. Of this machine are measured: seconds a row of sorting and of matching, of opening a run, and
of a task that does nothing under Dask (benchmarks only: the match itself needs no Dask). The tasks are cut by the code
that cuts a real match, over two models of the sky:
* Gaia: nine tenths in an exponential disc (scale length 2.6 kpc, height 0.3 kpc, the Sun at 8.2 kpc) seen out to 6 kpc,
  without dust or bulge, one tenth all over the sky.
* Legacy Survey: the same density everywhere, 20,000 square degrees at the highest Galactic latitudes.
Then tasks go to whichever worker is free, in order, as fast as one scheduler hands them out; all workers share a store
that each reads and writes at `--disk` GB/s. Files are taken to be in sky order, as both archives publish them, so that
a task finds its rows in few runs; with `--shuffled` in all.
"""

import argparse
import heapq
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filesky import GALACTIC, disc, write_sides

from skycairn.match import outofcore, sky
from skycairn.match.inputs import columns_of, jobs, open_table
from skycairn.match.outofcore import COLUMN_BYTES, ROW_BYTES, Side, Task, crossmatch_files
from skycairn.match.regions import groups, leaves
from skycairn.match.runs import Runs, Slim, write_runs

N_GAIA, N_LEGACY = 1.8e9, 2.8e9
LEGACY_DEG2 = 20_000
MODEL_ORDER = 8
RUN_BYTES = 32
"""Of a row in a run: cell, key, ra, dec."""
NEAR_RUNS = 4
"""Of each table, that hold a task's rows where files are in sky order."""


def gaia() -> np.ndarray:
    """Rows by cell of the model's order."""
    ra, dec = sky.centres(MODEL_ORDER, np.arange(12 << 2 * MODEL_ORDER))
    x, y, z = GALACTIC @ sky.unit_vectors(ra, dec)
    total = np.zeros(x.size)
    for distance in np.arange(0.05, 6.0, 0.1):
        radius = np.hypot(8.2 - distance * x, distance * y)
        total += distance**2 * np.exp(-radius / 2.6 - np.abs(distance * z) / 0.3)
    return N_GAIA * (0.9 * total / total.sum() + 0.1 / total.size)


def legacy() -> np.ndarray:
    """Rows by cell of the model's order."""
    ra, dec = sky.centres(MODEL_ORDER, np.arange(12 << 2 * MODEL_ORDER))
    high = np.abs((GALACTIC @ sky.unit_vectors(ra, dec))[2])
    inside = high >= np.sort(high)[-round(high.size * LEGACY_DEG2 / 41253)]
    return N_LEGACY * inside / inside.sum()


def counter(model: np.ndarray):
    """How many rows lie in ranges of order-29 cells."""
    upto = np.append(0.0, np.cumsum(model))
    cell = 1 << 2 * (sky.MAX_ORDER - MODEL_ORDER)

    def count(low, high):
        at = (np.interp(edge / cell, np.arange(upto.size), upto) for edge in (low, high))
        return -np.subtract(*at)

    return count


def calibrate(folder: Path) -> dict[str, float]:
    """Seconds on one core here of a row sorted, a row matched, a run opened; bytes a row of input, and a pair."""
    pa.set_cpu_count(1)
    left, right = write_sides(folder / "in", 2_000_000, 2_000_000, 4, disc, 5)
    # compiled beforehand
    crossmatch_files(left, right, 1.0, folder / "warm")
    shutil.rmtree(folder / "warm")
    table = open_table(left, "left")
    columns = columns_of(table, {})
    reader = Slim(columns)
    sides = []
    start = time.process_time()
    for name, place in (("left", left), ("right", right)):
        own = open_table(place, name)
        (folder / name).mkdir()
        write_runs(jobs(own, own.n_rows)[0], reader, 1 << 30, folder / name / "000000")
        sides.append(Side(folder / name, None, reader.schema, {}, pa.int64()))
    sorting = (time.process_time() - start) / 4e6
    shared = outofcore._shared(*sides, 1.0, 0.9)
    schema = outofcore._pair_schema(shared)
    cells = np.arange(12)
    start = time.process_time()
    outofcore._match(shared, Task(np.zeros(12, int), cells, False), schema, folder / "pairs.parquet")
    matching = (time.process_time() - start) / 4e6
    start = time.perf_counter()
    for _ in range(200):
        Runs.open(folder / "left", reader.schema)
    n_pairs = len(pq.read_table(folder / "pairs.parquet"))
    return {
        "sort": sorting,
        "match": matching,
        "open": (time.perf_counter() - start) / 200,
        "input": sum(f.n_bytes for f in table.files) / table.n_rows,
        "pair": (folder / "pairs.parquet").stat().st_size / n_pairs,
    }


def scheduler_seconds() -> float:
    """Of a task that does nothing."""
    from dask.distributed import Client

    with Client(n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        client.gather(client.map(abs, range(100)))
        start = time.perf_counter()
        client.gather(client.map(abs, range(1000, 3000)))
        return (time.perf_counter() - start) / 2000


def schedule(seconds: np.ndarray, workers: int, each: float) -> float:
    """When the last task ends: in order, to whoever is free, one every `each` seconds at most."""
    free = [0.0] * workers
    sent = 0.0
    for cost in seconds.tolist():
        start = max(heapq.heappop(free), sent)
        sent = start + each
        heapq.heappush(free, start + cost)
    return max(free)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--memory", type=float, default=2.0, help="GB a worker")
    options.add_argument("--disk", type=float, default=0.2, help="GB/s that each worker reads and writes")
    options.add_argument("--workers", type=int, nargs="+", default=[1, 10, 100, 300, 1000])
    options.add_argument("--task-ms", type=float, default=0, help="of the scheduler for a task; 0: as measured here")
    options.add_argument("--shuffled", action="store_true")
    told = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="match_plan"))
    try:
        cost = calibrate(folder)
    finally:
        shutil.rmtree(folder)
    cost["task"] = told.task_ms / 1e3 or scheduler_seconds()
    print("seconds each: " + ", ".join(f"{k} {v * 1e6:.3g} us" for k, v in cost.items() if k not in ("input", "pair")))
    print(f"input {cost['input']:.1f} bytes a row, pairs {cost['pair']:.1f} bytes each")
    models = gaia(), legacy()
    counts = [counter(m) for m in models]
    total = sum(m.sum() for m in models)
    row_bytes = ROW_BYTES + 4 * COLUMN_BYTES
    # every source of Gaia within the footprint is taken to have a counterpart
    n_pairs = models[0][models[1] > 0].sum()
    print(f"{models[0].sum():.3g} x {models[1].sum():.3g} rows, at most {n_pairs:.2g} pairs of Gaia's in the footprint")
    print(f"{'workers':>8} {'sorts':>7} {'matches':>8} {'rows a match':>13} {'GB moved':>9} {'wall':>9}", end=" ")
    print(f"{'work, core h':>13} {'efficiency':>10} {'scheduler':>10} {'largest match':>14} {'deepest':>8}")
    for workers in told.workers:
        share = told.memory * 1e9
        run_rows = min(share / 6 / RUN_BYTES, max(outofcore.TASK_ROWS, total / 2 / workers))
        n_runs = [int(np.ceil(m.sum() / run_rows)) for m in models]
        most = min(share, row_bytes * max(total / (outofcore.TASKS_EACH * workers), outofcore.TASK_ROWS))
        found = leaves(
            lambda low, high: np.stack([c(low, high) for c in counts]),
            lambda rows, _: row_bytes * rows.sum(axis=0) > most,  # noqa: B023
            10,
        )
        found = found.take(np.flatnonzero(found.rows[0]))
        cut = groups(row_bytes * found.rows.sum(axis=0), most)
        # a ring of cells seven orders deeper: 3 % more of the right rows, 6 % of the left ones
        read = np.array([found.rows[0, c].sum() * 1.063 + found.rows[1, c].sum() * 1.031 for c in cut])
        opened = sum(n_runs) if told.shuffled else 2 * NEAR_RUNS
        rate = told.disk * 1e9
        pairs = n_pairs / len(cut)
        matches = read * (cost["match"] + RUN_BYTES / rate) + opened * cost["open"] + pairs * cost["pair"] / rate
        sorts = np.full(sum(n_runs), run_rows * (cost["sort"] + (cost["input"] + RUN_BYTES) / rate))
        wall = schedule(sorts, workers, cost["task"]) + schedule(matches, workers, cost["task"])
        work = sorts.sum() + matches.sum()
        moved = total * (cost["input"] + RUN_BYTES) + read.sum() * RUN_BYTES + n_pairs * cost["pair"]
        tasks = sorts.size + matches.size
        said = f"{wall / 3600:7.2f} h" if wall > 3600 else f"{wall:7.0f} s"
        print(f"{workers:8} {sorts.size:7} {matches.size:8} {read.mean():13,.0f} {moved / 1e9:9.0f} {said:>9}", end=" ")
        print(f"{work / 3600:13.2f} {work / workers / wall:10.1%} {tasks * cost['task'] / wall:10.2%}", end=" ")
        print(f"{read.max() / read.mean():12.2f} x {found.order.max():8}", flush=True)


if __name__ == "__main__":
    main()
