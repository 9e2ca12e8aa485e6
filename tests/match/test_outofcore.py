"""Pairs of files, in many small tasks, held against `candidate_pairs` of the whole tables."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from skycairn.match import outofcore, sky
from skycairn.match.catalogue import write_catalogue
from skycairn.match.crossmatch import crossmatch
from skycairn.match.outofcore import LEAST_MEMORY, crossmatch_files
from skycairn.match.pairs import candidate_pairs
from skycairn.match.posterior import Prior

CORNER = float(np.degrees(np.arcsin(2 / 3)))
PLACES = [(10.0, 20.0), (0.0, 0.0), (0.0, 90.0), (45.0, -90.0), (45.0, CORNER), (90.0, 0.0), (200.0, -83.0)]
"""Amid a face, at RA 0, at the poles, where three and four of the twelve faces meet, and where cells are oblong."""
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
    prior = Prior.of(*(sky.healpix29(t["ra"].to_numpy(), t["dec"].to_numpy()) for t in (left, right)))
    pairs = candidate_pairs(left.select(keep), right.select(keep), radius, prior)
    left_id, right_id = (t.column("key").take(pairs.column(c)) for t, c in ((left, "left_row"), (right, "right_row")))
    found = pa.table([left_id, right_id, *pairs.columns[2:]], names=["left_id", "right_id", *pairs.column_names[2:]])
    return rows_of(found)


def read(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(p) for p in sorted(out.glob("part-*.parquet"))])


# not shrunk: an example takes a second
@settings(
    deadline=None,
    max_examples=15,
    phases=[Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.integers(0, 2**31),
    st.sampled_from(PLACES),
    st.sampled_from([0.7, 20.0, 150.0]),
    st.sampled_from([{}, MOTION, ERRORS, MOTION | ERRORS]),
    st.sampled_from([(900, 900), (900, 900), (1, 900), (900, 1), (0, 900), (900, 0), (0, 0)]),
    st.sampled_from([3, 20_000]),
)
def test_pairs_are_those_of_the_whole_tables(
    tmp_path: Path,
    seed: int,
    place: tuple[float, float],
    radius: float,
    columns: dict[str, str],
    size: tuple[int, int],
    fast: int,
) -> None:
    (n, m), outofcore.FAST_MOST = size, fast
    rng = np.random.default_rng(seed)
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    left = patch(rng, n, place)
    right = patch(rng, m, place)
    if n and m:
        right = pa.concat_tables([right, beside(rng, left, m, radius / 2)])
    inputs = [write(t, folder / name, rng) for t, name in ((left, "left"), (right, "right"))]
    summary = crossmatch_files(*inputs, radius, folder / "out", columns, columns, memory_bytes=LEAST_MEMORY)
    got = read(folder / "out")
    assert rows_of(got.drop_columns("healpix29")) == expected(left, right, radius, columns)
    assert summary.pairs == got.num_rows
    assert summary.parts > 3 or min(n, m) < 900
    assert got.num_rows == 0 or got.equals(got.sort_by([("healpix29", "ascending"), ("left_id", "ascending")]))
    assert sorted(p.name for p in folder.iterdir()) == ["left", "out", "right"]


def test_two_fast_stars_that_meet_midway_between_beads_are_a_pair(tmp_path: Path) -> None:
    n, radius, far, dec = 9000, 4.05, 7.99, 80.0
    rng = np.random.default_rng(7)
    at = rng.uniform(0, 0.8, n) / np.cos(np.radians(dec)) + 10.0, rng.uniform(0, 0.8, n) + dec
    angle = rng.uniform(0, 2 * np.pi, n)
    columns = {name: MOTION[name] for name in ("pmra", "pmdec", "epoch")}
    tables = []
    # both come to the meeting point, in ten years, from opposite sides
    for name, away, sign, epoch in (("left", -far, 1, 2000.0), ("right", radius - 0.01, -1, 2010.0)):
        ra, dec_ = sky.propagate(*at, 1000 * away * np.sin(angle), 1000 * away * np.cos(angle), 1.0)
        pmra, pmdec = sign * 100 * far * np.sin(angle), sign * 100 * far * np.cos(angle)
        epochs = np.full(n, epoch)
        table = pa.table({"key": np.arange(n), "ra": ra, "dec": dec_, "pmra": pmra, "pmdec": pmdec, "epoch": epochs})
        pq.write_table(table, tmp_path / f"{name}.parquet")
        tables.append(table)
    inputs = tmp_path / "left.parquet", tmp_path / "right.parquet"
    crossmatch_files(*inputs, radius, tmp_path / "out", columns, columns, memory_bytes=LEAST_MEMORY)
    whole = candidate_pairs(*tables, radius)
    wanted = set(zip(whole["left_row"].to_pylist(), whole["right_row"].to_pylist(), strict=True))
    got = read(tmp_path / "out")
    assert set(zip(got["left_id"].to_pylist(), got["right_id"].to_pylist(), strict=True)) == wanted
    assert len(wanted) >= n


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders of files, round RA 0. Not to be changed."""
    folder, rng = tmp_path_factory.mktemp("sides"), np.random.default_rng(5)
    left = patch(rng, 1500, (0.0, 0.0))
    right = pa.concat_tables([patch(rng, 500, (0.0, 0.0)), beside(rng, left, 1000, 5.0)])
    return write(left, folder / "left", rng), write(right, folder / "right", rng)


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.glob("*.parquet")}


def test_pairs_do_not_hang_on_memory_workers_or_how_rows_lie(sides: tuple[Path, Path], tmp_path: Path) -> None:
    known = MOTION | ERRORS
    crossmatch_files(*sides, 15.0, tmp_path / "whole", known, known, memory_bytes=1 << 30)
    whole = read(tmp_path / "whole")
    assert len(list((tmp_path / "whole").glob("*.parquet"))) == 1
    crossmatch_files(*sides, 15.0, tmp_path / "tasks", known, known, memory_bytes=2 * LEAST_MEMORY, workers=2)
    assert read(tmp_path / "tasks").equals(whole) and whole.num_rows > 1000
    for name, side in zip(("left", "right"), sides, strict=True):
        write_catalogue(side, tmp_path / name, leaf_rows=100)
    sorted_sides = tmp_path / "left", tmp_path / "right"
    crossmatch_files(*sorted_sides, 15.0, tmp_path / "sorted", known, known, memory_bytes=LEAST_MEMORY)
    assert read(tmp_path / "sorted").equals(whole)
    assert pq.read_table(tmp_path / "tasks").equals(whole)
    said = json.loads((tmp_path / "sorted/_crossmatch.json").read_text())
    assert said["pairs"] == whole.num_rows and said["left_rows"] == 1575


def test_ids_keep_their_type_and_value(tmp_path: Path) -> None:
    top = (1 << 64) - 1
    rows = pa.table({"name": pa.array([top, 0, 1 << 63], pa.uint64()), "x": [0.0, 360.0, 10.0], "y": [0.0, 0.0, 5.0]})
    pq.write_table(rows, tmp_path / "a.parquet")
    small = pa.table({"id": pa.array([-7, 3], pa.int16()), "ra": [0.0001, 10.0], "dec": [0.0, 5.0]})
    pq.write_table(small, tmp_path / "b.parquet")
    columns = {"id": "name", "ra": "x", "dec": "y", "ra_error": 0.1, "dec_error": 0.1}
    crossmatch_files(
        tmp_path / "a.parquet",
        tmp_path / "b.parquet",
        1.0,
        tmp_path / "out",
        columns,
        {"ra_error": 0.3, "dec_error": 0.3},
    )
    got = read(tmp_path / "out")
    assert got.schema.field("left_id").type == pa.uint64() and got.schema.field("right_id").type == pa.int16()
    found = set(
        zip(got["left_id"].to_pylist(), got["right_id"].to_pylist(), got["right_rank"].to_pylist(), strict=True)
    )
    # two at one place: the smaller id is the nearer
    assert found == {(0, -7, 1), (top, -7, 2), (1 << 63, 3, 1)}
    assert got["sigmas"].null_count == 0


def test_wrong_cells_of_a_catalogue_lose_no_pair(sides: tuple[Path, Path], tmp_path: Path) -> None:
    write_catalogue(sides[1], tmp_path / "right", leaf_rows=10_000)
    for path in (tmp_path / "right/right").rglob("Npix=*.parquet"):
        table = pq.ParquetFile(path).read()
        cell = table.column(0).to_numpy().copy()
        cell[7::200] = 0
        pq.write_table(table.set_column(0, table.schema.field(0), pa.array(cell)), path)
    for name, right in (("plain", sides[1]), ("sorted", tmp_path / "right")):
        crossmatch_files(sides[0], right, 15.0, tmp_path / name, memory_bytes=2 * LEAST_MEMORY)
    assert read(tmp_path / "sorted").equals(read(tmp_path / "plain"))


def with_units(table: pa.Table, **units: str) -> pa.Table:
    told = [f.with_metadata({"unit": units[f.name]}) if f.name in units else f for f in table.schema]
    return table.cast(pa.schema(told))


def test_units_of_field_metadata_are_those_of_the_library(tmp_path: Path) -> None:
    rows = pa.table(
        {"key": [1, 2], "ra": [10.0, 11.0], "dec": [0.0, 0.0], "ra_error": [0.3, 0.3], "dec_error": [0.3, 0.3]}
    )
    mas = rows.set_column(3, "ra_error", pa.array([300.0, 300.0])).set_column(4, "dec_error", pa.array([300.0, 300.0]))
    mas = with_units(mas, ra_error="mas", dec_error="mas")
    away = rows.set_column(2, "dec", pa.array([1 / 3600, 1 / 3600]))
    (tmp_path / "left").mkdir()
    # one file in another unit than the other
    pq.write_table(rows.slice(0, 1), tmp_path / "left/0.parquet")
    pq.write_table(mas.slice(1, 1), tmp_path / "left/1.parquet")
    pq.write_table(away, tmp_path / "right.parquet")
    crossmatch_files(tmp_path / "left", tmp_path / "right.parquet", 2.0, tmp_path / "out", ERRORS, ERRORS)
    named = {name: name for name in ("ra_error", "dec_error")}
    library = crossmatch(mas, away, 2.0, columns="pairs", right_names=named)
    assert read(tmp_path / "out")["sigmas"].to_pylist() == library["sigmas"].to_pylist()
    assert library["sigmas"].to_pylist() == pytest.approx([2.357] * 2, abs=1e-3)
    pq.write_table(with_units(mas, ra_error="yr"), tmp_path / "left/1.parquet")
    with pytest.raises(ValueError, match=r"1\.parquet: ra_error is in 'yr'; wanted what converts to 'arcsec'"):
        crossmatch_files(tmp_path / "left", tmp_path / "right.parquet", 2.0, tmp_path / "no", ERRORS, ERRORS)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"id": "note"}, "'note' for id is string; wanted integers"),
        ({"id": "no"}, "no column 'no' for id"),
        ({"pmra": "pmra"}, "name all three"),
        ({"epoch": 2016.0}, "says nothing"),
        ({"ra": 5.0}, "wanted the name of a column"),
        ({"mass": "key"}, "no meaning 'mass'"),
        ({"epoch_min": 2030.0, "epoch_max": "epoch_max"}, r"parquet at row \d+ holds from epoch 2030.0 to"),
        ({"ra_error": 0.0, "dec_error": 1.0}, r"parquet at row \d+: ra_error is 0.0 arcsec; wanted above 0"),
        ({"epoch_min": 57388.0, "epoch_max": 57389.0}, r"parquet at row \d+: epoch_min is 57388.0; is it MJD"),
        ({"epoch_min": 2030.0, "epoch_max": 2020.0}, "holds from epoch 2030.0 to 2020.0"),
    ],
)
def test_columns_are_refused_in_words(
    sides: tuple[Path, Path], tmp_path: Path, columns: dict[str, str | float], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        crossmatch_files(*sides, 1.0, tmp_path / "out", columns)
    assert not (tmp_path / "out").exists()


def test_bad_rows_are_named_with_their_file(sides: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(sides[0], tmp_path / "left")
    table = pq.read_table(tmp_path / "left/1.parquet")
    row = table.num_rows - 2
    for name, value, words in (
        ("dec", float("nan"), "dec nan"),
        ("ra", -0.1, "ra -0.1"),
        ("key", None, "key is null"),
        ("epoch_max", 1900.0, "to 1900.0"),
        ("ra_error", 0.0, "ra_error is 0.0 arcsec; wanted above 0"),
        ("dec_error", -1.0, "dec_error is -1.0 arcsec; wanted above 0"),
        ("epoch", 57388.0, "epoch is 57388.0; is it MJD"),
        ("epoch_min", 0.0, "epoch_min is 0.0; is it MJD"),
    ):
        values = table.column(name).to_pylist()
        values[row] = value
        extra = {"epoch_min": pa.array(np.full(table.num_rows, 1901.0))} if name == "epoch_max" else {}
        if name == "epoch_max":
            values = [1999.0] * table.num_rows
            values[row] = value
        changed = table
        for column, new in {name: pa.array(values, table.schema.field(name).type), **extra}.items():
            changed = changed.set_column(changed.column_names.index(column), column, new)
        pq.write_table(changed, tmp_path / "left/1.parquet", row_group_size=100)
        with pytest.raises(ValueError, match=rf"1\.parquet at row {row}.*{words}"):
            crossmatch_files(tmp_path / "left", sides[1], 1.0, tmp_path / "out", MOTION | ERRORS)
        assert not (tmp_path / "out").exists()


def test_a_damaged_or_absent_file_is_named(sides: tuple[Path, Path], tmp_path: Path) -> None:
    whole = (sides[0] / "0.parquet").read_bytes()
    (tmp_path / "half.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "table.csv").write_text("id,ra,dec\n1,2.0,3.0\n")
    for left, words in (
        (tmp_path / "half.parquet", "half.parquet: the file cannot be read"),
        (tmp_path / "none.parquet", "none.parquet is not there"),
        (tmp_path / "table.csv", r"table.csv is not a Parquet file. Tables of other forms are matched in memory"),
        (tmp_path, "half.parquet: the file cannot be read"),
        ([], "no file was named"),
    ):
        with pytest.raises(ValueError, match=words):
            crossmatch_files(left, sides[1], 1.0, tmp_path / "out")
    (tmp_path / "half.parquet").unlink()
    with pytest.raises(ValueError, match=r"no \*\.parquet below"):
        crossmatch_files(tmp_path, sides[1], 1.0, tmp_path / "out")
    for radius in (0.0, float("nan"), 4000.0):
        with pytest.raises(ValueError, match="the radius is"):
            crossmatch_files(*sides, radius, tmp_path / "out")


KILLED = """
import os, sys
from pathlib import Path
from skycairn.match import outofcore
before, left = outofcore._match, int(sys.argv[4])
def match(*arguments):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), 9)
    before(*arguments)
outofcore._match = match
outofcore.crossmatch_files(sys.argv[1], sys.argv[2], 15.0, Path(sys.argv[3]), memory_bytes=1 << 17)
"""


def test_a_killed_run_leaves_nothing_that_looks_done_and_goes_on(sides: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "pairs"
    arguments = [sys.executable, "-c", KILLED, *map(str, sides), str(out), "3"]
    run = subprocess.run(arguments, check=False, env=dict(os.environ))
    assert run.returncode == -signal.SIGKILL
    assert not out.exists()
    (work,) = tmp_path.glob(".pairs.work-*")
    times = {p.stat().st_mtime_ns for p in work.rglob("part-*.parquet")}
    assert len(times) == 3
    (work / "result/.part-000003.parquet.99999").write_bytes(b"PAR1 torn")
    seen: list[tuple[str, int, int]] = []
    crossmatch_files(*sides, 15.0, out, memory_bytes=1 << 17, progress=lambda *a: seen.append(a))
    assert {step for step, _, _ in seen} == {"match"} and seen[0][1] == 4
    crossmatch_files(*sides, 15.0, tmp_path / "again", memory_bytes=1 << 17)
    assert files_of(out) == files_of(tmp_path / "again")
    assert times <= {p.stat().st_mtime_ns for p in out.iterdir()}
    assert [p.name for p in out.iterdir() if p.name.startswith(".")] == []
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_changed_input_is_not_matched_with_what_was_left(sides: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(sides[0], tmp_path / "in/left")
    out = tmp_path / "pairs"
    arguments = [sys.executable, "-c", KILLED, str(tmp_path / "in/left"), str(sides[1]), str(out), "3"]
    subprocess.run(arguments, check=False, env=dict(os.environ))
    (tmp_path / "in/left/1.parquet").unlink()
    summary = crossmatch_files(tmp_path / "in/left", sides[1], 15.0, out, memory_bytes=1 << 17)
    left = pa.concat_tables([pq.read_table(p) for p in sorted((tmp_path / "in/left").iterdir())])
    right = pa.concat_tables([pq.read_table(p) for p in sorted(sides[1].iterdir())])
    assert rows_of(read(out).drop_columns("healpix29")) == expected(left, right, 15.0, {})
    assert summary.left_rows == left.num_rows
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "pairs"]
