"""Pairs of files, in many small tasks, held against `candidate_pairs` of the whole tables."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


from skycairn.match.outofcore import LEAST_MEMORY, crossmatch_files
from skycairn.match.pairs import candidate_pairs
from skycairn.pipeline import sky

PLACES = [(10.0, 20.0), (0.0, 0.0), (0.0, 90.0), (45.0, -90.0), (45.0, np.degrees(np.arcsin(2 / 3))), (90.0, 0.0)]
"""Amid a face, at RA 0, at the poles, and where three and four of the twelve faces meet."""
MOTION = {"pmra": "pmra", "pmdec": "pmdec", "epoch": "epoch", "epoch_min": "epoch_min", "epoch_max": "epoch_max"}
ERRORS = {"ra_error": "ra_error", "dec_error": "dec_error"}


def patch(rng: np.random.Generator, n: int, place: tuple[float, float], width_deg: float = 1.5) -> pa.Table:
    """Sources round a place, some twice as they are, some beside another, ids near 2^63."""
    angle, away = rng.uniform(0, 2 * np.pi, n), 3.6e6 * width_deg * np.sqrt(rng.uniform(0, 1, n))
    ra, dec = sky.propagate(*place, away * np.sin(angle), away * np.cos(angle), 1.0)
    key = (1 << 63) - 1 - rng.permutation(4 * n)[:n]
    moves = rng.uniform(size=n) < 0.5
    start = rng.uniform(1998, 2010, n)
    speed, direction = 1000 * 8.0 * rng.uniform(0, 1, n) ** 6, rng.uniform(0, 2 * np.pi, n)
    known = ~moves & (rng.uniform(size=n) < 0.9)
    told = {
        "pmra": (moves, speed * np.sin(direction)),
        "pmdec": (moves, speed * np.cos(direction)),
        "epoch": (moves, rng.uniform(2014, 2018, n)),
        "epoch_min": (known, start),
        "epoch_max": (known, start + rng.uniform(0, 8, n)),
        "ra_error": (rng.uniform(size=n) < 0.9, rng.uniform(0.05, 2, n)),
        "dec_error": (np.ones(n, bool), rng.uniform(0.05, 2, n)),
    }
    columns = {name: pa.array(value, mask=~which) for name, (which, value) in told.items()}
    table = pa.table({"note": [f"row {i}" for i in range(n)], "ra": ra, "dec": dec, **columns, "key": key})
    return table.take(pa.array(np.append(np.arange(n), rng.integers(0, max(n, 1), n // 20 if n else 0))))


def beside(rng: np.random.Generator, table: pa.Table, n: int, arcsec: float) -> pa.Table:
    """Rows of a table, moved a little, under other ids."""
    rows = table.take(pa.array(rng.integers(0, table.num_rows, n)))
    ra, dec = (rows.column(c).to_numpy() for c in ("ra", "dec"))
    ra, dec = sky.propagate(ra, dec, *rng.normal(0, 1000 * arcsec, (2, n)), 1.0)
    key = pa.array(rng.integers(0, 1 << 40, n))
    for name, value in (("ra", pa.array(ra)), ("dec", pa.array(dec)), ("key", key)):
        rows = rows.set_column(rows.column_names.index(name), name, value)
    return rows


def write(table: pa.Table, folder: Path, rng: np.random.Generator, n_files: int = 3) -> Path:
    """In files of unlike lengths, the rows in no order."""
    table = table.take(pa.array(rng.permutation(table.num_rows)))
    cuts = np.sort(rng.integers(0, table.num_rows + 1, n_files - 1))
    folder.mkdir(parents=True)
    for i, (start, stop) in enumerate(zip([0, *cuts], [*cuts, table.num_rows], strict=True)):
        pq.write_table(table.slice(start, stop - start), folder / f"{i}.parquet", row_group_size=200)
    return folder


def rows_of(pairs: pa.Table) -> list[tuple[Any, ...]]:
    columns = [pairs.column(n).to_pylist() for n in pairs.column_names]
    return sorted(zip(*columns, strict=True), key=repr)


def expected(left: pa.Table, right: pa.Table, radius: float, columns: Mapping[str, str]) -> list[tuple[Any, ...]]:
    keep = ["key", "ra", "dec", *columns.values()]
    pairs = candidate_pairs(left.select(keep), right.select(keep), radius)
    left_id, right_id = (t.column("key").take(pairs.column(c)) for t, c in ((left, "left_row"), (right, "right_row")))
    found = pa.table([left_id, right_id, *pairs.columns[2:]], names=["left_id", "right_id", *pairs.column_names[2:]])
    return rows_of(found)


def read(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(p) for p in sorted(out.glob("part-*.parquet"))])


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 2**31),
    st.sampled_from(PLACES),
    st.sampled_from([0.7, 20.0, 150.0]),
    st.sampled_from([{}, MOTION, ERRORS, MOTION | ERRORS]),
    st.sampled_from([0, 1, 900]),
    st.sampled_from([0, 1, 900]),
)
def test_pairs_are_those_of_the_whole_tables(
    tmp_path: Path, seed: int, place: tuple[float, float], radius: float, columns: dict[str, str], n: int, m: int
) -> None:
    rng = np.random.default_rng(seed)
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    left = patch(rng, n, place)
    right = patch(rng, m, place)
    if n and m:
        right = pa.concat_tables([right, beside(rng, left, m, radius / 2)])
    inputs = [write(t, folder / name, rng) for t, name in ((left, "left"), (right, "right"))]
    summary = crossmatch_files(*inputs, radius, folder / "out", columns, columns, LEAST_MEMORY)
    got = read(folder / "out")
    assert rows_of(got.drop_columns("healpix29")) == expected(left, right, radius, columns)
    assert summary.pairs == got.num_rows
    assert summary.parts > 3 or min(n, m) < 900
    assert got.num_rows == 0 or got.equals(got.sort_by([("healpix29", "ascending"), ("left_id", "ascending")]))
    assert sorted(p.name for p in folder.iterdir()) == ["left", "out", "right"]
