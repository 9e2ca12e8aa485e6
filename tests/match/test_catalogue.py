"""Catalogues that are written out of core, held against hats, lsdb and brute force."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skycairn.match import catalogue, sky
from skycairn.match.catalogue import LEAST_MEMORY, write_catalogue
from skycairn.match.outofcore import crossmatch_files
from skycairn.match.runs import CELL

# lsdb 0.11 and nested-pandas 0.7 call pandas as pandas 4 will not have it
pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")


@pytest.fixture(scope="module", autouse=True)
def one_after_the_other() -> Iterator[None]:
    """What lsdb computes is computed here."""
    import dask

    with dask.config.set(scheduler="synchronous"):
        yield


def crowd(rng: np.random.Generator, n: int, first: int = 0) -> pa.Table:
    """All over the sky, half of it in a crowd of 2 degrees on RA 0, with columns of many kinds."""
    ra, dec = rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    near = rng.uniform(size=n) < 0.5
    ra[near], dec[near] = rng.normal(0, 1, near.sum()) % 360, rng.normal(30, 1, near.sum())
    names = [f"star {i}" if i % 7 else None for i in range(n)]
    return pa.table(
        {
            "name": names,
            "objid": pa.array(rng.permutation(n) + first, pa.uint64()),
            "RA": ra,
            "flux": pa.array(rng.normal(size=n).astype(np.float32), mask=rng.uniform(size=n) < 0.1),
            "DEC": dec,
            "band": pa.array(np.array(["g", "r"])[rng.integers(0, 2, n)]).dictionary_encode(),
            "spectrum": pa.array([[float(i), 2.0] for i in range(n)], pa.list_(pa.float32())),
            "good": rng.uniform(size=n) < 0.5,
        }
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files, 3000 rows. Not to be changed."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(1)
    for i in range(3):
        pq.write_table(crowd(rng, 1000, 1000 * i), folder / f"{i}.parquet", row_group_size=300)
    return folder


def leaves_of(folder: Path) -> dict[tuple[int, int], pa.Table]:
    out = {}
    for path in folder.rglob("Npix=*.parquet"):
        order = int(path.parts[-3].removeprefix("Norder="))
        out[order, int(path.stem.removeprefix("Npix="))] = pq.ParquetFile(path).read()
    return out


def files_of(folder: Path) -> dict[Path, bytes]:
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.parquet")}


@pytest.mark.parametrize("memory", [LEAST_MEMORY, 1 << 30])
def test_all_rows_are_in_leaves_no_larger_than_asked(files: Path, tmp_path: Path, memory: int) -> None:
    written = write_catalogue(files, tmp_path / "sky", leaf_rows=100, memory_bytes=memory)
    found = leaves_of(tmp_path / "sky/sky")
    whole = pa.concat_tables([pq.read_table(p) for p in sorted(files.iterdir())]).unify_dictionaries()
    got = pa.concat_tables(list(found.values()))
    decoded = whole.set_column(5, "band", whole.column("band").cast(pa.string()))
    assert got.drop_columns(CELL).sort_by("objid").equals(decoded.sort_by("objid"))
    assert written.rows == 3000 and written.leaves == len(found)
    assert written.largest == max(t.num_rows for t in found.values()) <= 100
    for (order, cell), table in found.items():
        index = table.column(CELL).to_numpy()
        assert (np.diff(index) >= 0).all()
        assert (index == sky.healpix29(table.column("RA"), table.column("DEC"))).all()
        assert (sky.cells(index, order) == cell).all()
    if memory > LEAST_MEMORY:
        # no parent would have made a leaf
        index = got.column(CELL).to_numpy()
        assert all((sky.cells(index, order - 1) == cell >> 2).sum() > 100 for order, cell in found if order)
    assert [p.name for p in tmp_path.iterdir()] == ["sky"]


def test_leaves_do_not_hang_on_memory_workers_or_order_of_rows(files: Path, tmp_path: Path) -> None:
    whole = pa.concat_tables([pq.read_table(p) for p in sorted(files.iterdir())]).unify_dictionaries()
    (tmp_path / "other").mkdir()
    pq.write_table(whole.take(pa.array(np.random.default_rng(2).permutation(3000))), tmp_path / "other/all.parquet")
    write_catalogue(files, tmp_path / "a", leaf_rows=50)
    write_catalogue(tmp_path / "other", tmp_path / "b", leaf_rows=50, memory_bytes=1 << 19, workers=2)
    a, b = (
        {p.relative_to(r): p.read_bytes() for p in r.rglob("*.parquet")} for r in (tmp_path / "a/a", tmp_path / "b/b")
    )
    assert a == b


def test_margin_holds_what_lies_near(files: Path, tmp_path: Path) -> None:
    arcsec = 1000.0
    write_catalogue(files, tmp_path / "sky", leaf_rows=100, margin_arcsec=arcsec)
    main, margin = leaves_of(tmp_path / "sky/sky"), leaves_of(tmp_path / "sky/sky_1000arcs")
    whole = pa.concat_tables(list(main.values()))
    xyz = sky.unit_vectors(whole.column("RA").to_numpy(), whole.column("DEC").to_numpy())
    n_near = 0
    for (order, cell), table in main.items():
        own = table.column(CELL).to_numpy()
        has = set(margin[order, cell].column("objid").to_pylist()) if (order, cell) in margin else set()
        assert not (
            sky.cells(np.array([], int) if not has else margin[order, cell].column(CELL).to_numpy(), order) == cell
        ).any()
        # what is near a row of the leaf is near the leaf
        points = sky.unit_vectors(table.column("RA").to_numpy(), table.column("DEC").to_numpy())
        cosine = (points[:, :, None] * xyz[:, None, :]).sum(axis=0)
        near = (cosine >= np.cos(np.radians(arcsec / 3600))).any(axis=0)
        near &= ~np.isin(whole.column(CELL).to_numpy(), own)
        wanted = set(whole.filter(pa.array(near)).column("objid").to_pylist())
        assert wanted <= has
        n_near += len(wanted)
    assert n_near > 100


def test_a_thin_margin_of_a_wide_leaf_is_drawn_in_few_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finest = []
    rings = sky.rings
    monkeypatch.setattr(sky, "rings", lambda order, cells, n: finest.append(len(cells)) or rings(order, cells, n))
    # two sides of the border of two faces, 0.0004 arcsec apart
    rows = pa.table({"id": [1, 2], "ra": [90 - 5e-8, 90 + 5e-8], "dec": [60.0, 60.0]})
    pq.write_table(rows, tmp_path / "a.parquet")
    written = write_catalogue(tmp_path / "a.parquet", tmp_path / "out", margin_arcsec=0.001)
    assert written.leaves == written.margin_rows == 2
    assert 0 < max(finest) <= 4 << catalogue.MARGIN_STEPS


def test_hats_and_lsdb_read_it(files: Path, tmp_path: Path, lsdb: ModuleType) -> None:
    import hats
    from hats.io.validation import is_valid_catalog

    write_catalogue(files, tmp_path / "sky", leaf_rows=200)
    write_catalogue(files, tmp_path / "bare", margin_arcsec=0)
    for folder in ("sky/sky", "sky/sky_10arcs", "sky", "bare", "bare/bare"):
        assert is_valid_catalog(tmp_path / folder, strict=True), folder
    assert hats.read_hats(tmp_path / "sky").main_catalog.catalog_info.total_rows == 3000
    opened = lsdb.open_catalog(tmp_path / "sky", columns="all")
    frame = opened.compute()
    assert len(frame) == 3000 and set(frame["objid"]) == set(range(3000))
    cone = lsdb.open_catalog(tmp_path / "sky", search_filter=lsdb.ConeSearch(0.0, 30.0, 3600)).compute()
    whole = pa.concat_tables([pq.read_table(p, columns=["RA", "DEC"]) for p in sorted(files.iterdir())])
    xyz = sky.unit_vectors(whole.column("RA").to_numpy(), whole.column("DEC").to_numpy())
    centre = sky.unit_vectors(np.array([0.0]), np.array([30.0]))
    assert len(cone) == (sky.angle(xyz, centre) <= np.radians(1)).sum() > 50


def test_lsdb_finds_our_pairs_with_our_margins(tmp_path: Path, lsdb: ModuleType) -> None:
    rng = np.random.default_rng(6)
    n = 1500
    ra, dec = rng.uniform(-2, 2, n) % 360, rng.uniform(-2, 2, n)
    away = sky.propagate(ra, dec, *rng.normal(0, 4000, (2, n)), 1.0)
    for name, place in (("a", (ra, dec)), ("b", away)):
        pq.write_table(pa.table({"id": np.arange(n), "ra": place[0], "dec": place[1]}), tmp_path / f"{name}.parquet")
        write_catalogue(tmp_path / f"{name}.parquet", tmp_path / name, leaf_rows=40)
    left, right = (lsdb.open_catalog(tmp_path / name) for name in ("a", "b"))
    how = {"suffixes": ("_a", "_b"), "suffix_method": "overlapping_columns", "log_changes": False}
    found = left.crossmatch(right, n_neighbors=1, radius_arcsec=10.0, **how).compute()
    crossmatch_files(tmp_path / "a", tmp_path / "b", 10.0, tmp_path / "out")
    pairs = pa.concat_tables([pq.read_table(p) for p in (tmp_path / "out").glob("*.parquet")])
    nearest = pairs.filter(pa.array(pairs["left_rank"].to_numpy() == 1))
    ours = set(zip(nearest["left_id"].to_pylist(), nearest["right_id"].to_pylist(), strict=True))
    assert set(zip(found["id_a"], found["id_b"], strict=True)) == ours and len(ours) > 1000


def test_a_catalogue_is_written_again_out_of_another(files: Path, tmp_path: Path) -> None:
    write_catalogue(files, tmp_path / "a", leaf_rows=100)
    write_catalogue(tmp_path / "a", tmp_path / "b", leaf_rows=100, memory_bytes=LEAST_MEMORY * 8)
    write_catalogue(tmp_path / "a", tmp_path / "c", leaf_rows=100)
    b, c = (
        {p.relative_to(r): p.read_bytes() for p in r.rglob("*.parquet")} for r in (tmp_path / "b/b", tmp_path / "c/c")
    )
    assert b == c
    assert sum(t.num_rows for t in leaves_of(tmp_path / "c/c").values()) == 3000


def test_rows_at_one_place_go_into_one_leaf_of_the_deepest_order(tmp_path: Path) -> None:
    pq.write_table(pa.table({"ra": np.full(50, 10.0), "dec": np.full(50, 10.0)}), tmp_path / "a.parquet")
    written = write_catalogue(tmp_path / "a.parquet", tmp_path / "out", leaf_rows=10)
    assert (written.leaves, written.largest, written.deepest) == (1, 50, catalogue.DEEPEST)


@pytest.mark.parametrize("change", ["nan", "null", "far", "null id"])
def test_bad_rows_are_named_with_their_file(files: Path, tmp_path: Path, change: str) -> None:
    shutil.copytree(files, tmp_path / "in")
    table = pq.read_table(files / "1.parquet")
    bad = {"nan": np.nan, "null": None, "far": 361.0}.get(change)
    name = "objid" if change == "null id" else "RA"
    values = table.column(name).to_pylist()
    values[437] = bad
    table = table.set_column(table.column_names.index(name), name, pa.array(values, table.schema.field(name).type))
    pq.write_table(table, tmp_path / "in/1.parquet", row_group_size=300)
    with pytest.raises(ValueError, match=r"1\.parquet at row 437"):
        write_catalogue(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_of_other_columns_are_refused_by_name(files: Path, tmp_path: Path) -> None:
    table = pq.read_table(files / "0.parquet")
    other = tmp_path / "other.parquet"
    for changed, words in (
        (table.drop_columns("flux"), "no column 'flux'"),
        (table.append_column("more", table.column("good")), "a column 'more'"),
        (table.set_column(2, "RA", table.column("RA").cast(pa.float32())), "'RA' is float"),
    ):
        pq.write_table(changed, other)
        with pytest.raises(ValueError, match=words):
            write_catalogue([files / "0.parquet", other], tmp_path / "out")
    pq.write_table(table.set_column(2, "RA", table.column("RA").cast(pa.float32())), other)
    with pytest.raises(ValueError, match="wanted float64"):
        write_catalogue(other, tmp_path / "out")
    with pytest.raises(ValueError, match="named twice"):
        write_catalogue([files / "0.parquet", files / "../" / files.name / "0.parquet"], tmp_path / "out")
    with pytest.raises(ValueError, match="no column 'raj'"):
        write_catalogue(files, tmp_path / "out", {"ra": "raj"})
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="is there already"):
        write_catalogue(files, tmp_path / "out")


KILLED = """
import os, sys
from pathlib import Path
from skycairn.match import catalogue
catalogue._write_leaf_before = catalogue._write_leaf
left = int(sys.argv[3])
def write(*arguments):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), 9)
    catalogue._write_leaf_before(*arguments)
catalogue._write_leaf = write
catalogue.write_catalogue(sys.argv[1], Path(sys.argv[2]), leaf_rows=100, memory_bytes=1 << 16)
"""


def test_a_killed_run_leaves_nothing_that_looks_done_and_goes_on(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "sky"
    run = subprocess.run([sys.executable, "-c", KILLED, str(files), str(out), "20"], check=False, env=dict(os.environ))
    assert run.returncode == -signal.SIGKILL
    assert not out.exists()
    (work,) = tmp_path.glob(".sky.work-*")
    before = {p: p.stat().st_mtime_ns for p in work.rglob("[!.]*") if p.is_file()}
    assert len([p for p in before if p.suffix == ".parquet"]) == 20
    torn = next(p for p in before if p.suffix == ".parquet")
    torn.with_name(f".{torn.name}.99999").write_bytes(b"PAR1 torn")
    seen: list[tuple[str, int, int]] = []
    written = write_catalogue(files, out, leaf_rows=100, memory_bytes=1 << 16, progress=lambda *a: seen.append(a))
    assert "sort" not in {step for step, _, _ in seen}
    write_catalogue(files, tmp_path / "b/sky", leaf_rows=100, memory_bytes=1 << 16)
    assert files_of(out) == files_of(tmp_path / "b/sky")
    kept = [p for p in out.rglob("*.parquet") if p.stat().st_mtime_ns in before.values()]
    assert len(kept) == 20
    assert [p.name for p in tmp_path.rglob(".*")] == []
    assert written.n_bytes == sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    assert sum(t.num_rows for t in leaves_of(out / "sky").values()) == 3000
