"""Sorting by cell, and runs on disk."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skycairn.match.inputs import columns_of, jobs, open_table
from skycairn.match.runs import CELL, Runs, Slim, keys, order_of, write_runs
from skycairn.match.work import each, pool


@pytest.mark.parametrize("most", [1, 40, 1 << 20, 12 << 58])
def test_rows_are_sorted_by_cell_then_ties(most: int) -> None:
    rng = np.random.default_rng(most % 97)
    cell = rng.integers(0, most, 3000)
    # neighbours that differ in the last bit alone, and some twice
    cell = np.concatenate([cell, cell[:500] ^ 1, cell[:300]])
    one, other = rng.integers(0, 3, cell.size), rng.permutation(cell.size)
    assert (order_of(cell, one, other) == np.lexsort((other, one, cell))).all()
    assert (cell[order_of(cell)] == np.sort(cell)).all()
    for few in (0, 1):
        assert order_of(cell[:few], one[:few]).tolist() == list(range(few))


def test_jobs_hold_each_row_once_whatever_their_size(tmp_path: Path) -> None:
    n_rows = [0, 5, 700, 1, 0, 250]
    for i, n in enumerate(n_rows):
        rows = pa.table({"id": np.arange(n) + 1000 * i, "ra": np.full(n, 5.0), "dec": np.full(n, float(i))})
        pq.write_table(rows, tmp_path / f"{i}.parquet", row_group_size=100)
    table = open_table(tmp_path, "left")
    reader = Slim(columns_of(table, {}))
    for most in (1, 90, 300, 10_000):
        cut = jobs(table, most)
        assert sum(p.n_rows for job in cut for p in job) == sum(n_rows)
        assert max(sum(p.n_rows for p in job) for job in cut) <= max(most, 100)
        folder = tmp_path / f"runs{most}"
        folder.mkdir()
        for i, job in enumerate(cut):
            write_runs(job, reader, 4000, folder / f"{i:06d}")
        runs = Runs.open(folder, reader.schema)
        assert runs.n_rows == sum(n_rows)
        whole = np.array([0]), np.array([12 << 58])
        got = runs.rows(whole)
        assert sorted(got["key"].to_pylist()) == [1000 * i + k for i, n in enumerate(n_rows) for k in range(n)]
        one = np.unique(got[CELL].to_numpy())[2:3]
        part = Runs.open(folder, reader.schema, (one, one + 1))
        assert part.rows((one, one + 1)).num_rows == runs.count(one, one + 1)[0] > 0
        assert len(part.runs) <= len(runs.runs)


def test_unsigned_ids_keep_their_order() -> None:
    ids = pa.chunked_array([pa.array([(1 << 64) - 1, 0, 1 << 63, 5], pa.uint64())])
    assert np.argsort(keys(ids, "", "id", 0)).tolist() == [1, 3, 2, 0]


def test_a_killed_worker_is_told_of_in_words() -> None:
    with pytest.raises(ChildProcessError, match="want of memory"), pool(2) as executor:
        each(executor, os._exit, [(9,)], lambda _: None)
