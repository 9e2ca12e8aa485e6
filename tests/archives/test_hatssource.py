"""The HATS service against catalogues written here, leaf by leaf, of the mock sky's Gaia rows and of made-up ones."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import healpy
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from skycairn.archives import hatssource
from skycairn.archives.celltable import cell_of
from skycairn.archives.errors import Busy, ChecksumMismatch, NotPublished
from skycairn.archives.files import RootArchive
from skycairn.archives.hatssource import HatsSource
from skycairn.catalogs.desi import Desi
from skycairn.catalogs.ecsv import read_table
from skycairn.catalogs.fitsfile import read_columns
from skycairn.catalogs.gaia import SOURCE_COLUMNS, Gaia
from skycairn.catalogs.sdss import Sdss
from skycairn.catalogs.survey import WORK_ORDER, MissingColumn, WrongUnit

pytestmark = pytest.mark.usefixtures("lsdb")

Leaf = tuple[int, int]


def cells_of(table: pa.Table, ra: str = "ra", dec: str = "dec", order: int = WORK_ORDER) -> Any:
    return healpy.ang2pix(1 << order, np.asarray(table[ra]), np.asarray(table[dec]), nest=True, lonlat=True)


def write_hats(
    folder: Path, table: pa.Table, leaves: Iterable[Leaf], suffix: str = ".parquet", group_rows: int = 50, **said: Any
) -> Path:
    """A catalogue with these leaves (order, pixel), which must hold every row once."""
    told = {
        "obs_collection": folder.name,
        "dataproduct_type": "object",
        "hats_col_ra": "ra",
        "hats_col_dec": "dec",
        "hats_nrows": table.num_rows,
        "hats_npix_suffix": suffix,
        "hats_builder": "by hand",
        **said,
    }
    fine = cells_of(table, told["hats_col_ra"], told["hats_col_dec"], order=29)
    table = table.append_column("_healpix_29", pa.array(fine)).take(pa.array(np.argsort(fine, kind="stable")))
    fine = np.sort(fine)
    count, kept = 0, []
    for order, pixel in leaves:
        rows = np.flatnonzero(fine >> 2 * (29 - order) == pixel)
        if not len(rows):
            continue
        where = folder / f"dataset/Norder={order}/Dir={pixel // 10_000 * 10_000}/Npix={pixel}"
        path = where / "part0.parquet" if suffix == "/" else where.with_name(f"{where.name}{suffix}")
        path.parent.mkdir(parents=True) if not path.parent.exists() else None
        pq.write_table(table.take(pa.array(rows)), path, row_group_size=group_rows, write_page_checksum=True)
        kept.append((order, pixel))
        count += len(rows)
    assert count == table.num_rows
    (folder / "dataset").mkdir(parents=True, exist_ok=True)
    pq.write_metadata(table.schema, folder / "dataset/_common_metadata")
    for name in ("properties", "hats.properties"):
        (folder / name).write_text("".join(f"{k}={v}\n" for k, v in told.items()))
    (folder / "partition_info.csv").write_text("Norder,Npix\n" + "".join(f"{o},{p}\n" for o, p in kept))
    return folder


def adaptive(table: pa.Table, most: int, ra: str = "ra", dec: str = "dec") -> list[Leaf]:
    """Leaves of at most so many rows, of whatever order that takes."""
    fine, out = cells_of(table, ra, dec, order=29), []
    waiting = [(1, p) for p in range(48)]
    while waiting:
        order, pixel = waiting.pop()
        n = int((fine >> 2 * (29 - order) == pixel).sum())
        if n <= most or order == 12:
            out += [(order, pixel)] if n else []
        else:
            waiting += [(order + 1, 4 * pixel + k) for k in range(4)]
    return sorted(out)


def mixed(table: pa.Table) -> list[Leaf]:
    """Leaves as fine as the work cells, and finer ones."""
    at = np.unique(cells_of(table), return_inverse=True)[1]
    order = np.array([6, 8, 10])[at % 3]
    fine = cells_of(table, order=10)
    return sorted({(int(o), int(p)) for o, p in zip(order, fine >> 2 * (10 - order), strict=True)})


def points(ra: Any, dec: Any, **columns: Any) -> pa.Table:
    n = len(ra)
    made = {"source_id": np.arange(n, dtype=np.int64)[::-1] + 2**62, "ra": np.asarray(ra, float), "dec": dec, **columns}
    return pa.table(made)


def asked(folder: Path, **settings: Any) -> HatsSource:
    plain = {"catalog": "here", "address": str(folder), "needed": ("source_id", "ra", "dec"), "key": ("source_id",)}
    return HatsSource(**{**plain, **settings})


def path(source: HatsSource, cell: int) -> str:
    return source.catalog_files([cell])[0].path


def fetched(source: HatsSource, cell: int, into: Path) -> pa.Table:
    source.fetch(path(source, cell), into, refused)
    return pq.read_table(into)


def refused(path: str) -> Path:
    raise AssertionError(f"{path} was asked for")


@pytest.fixture(scope="module")
def stars(tiny_sky: Path) -> pa.Table:
    """The mock's Gaia rows, all columns that the reader knows, as the files have them."""
    types = {name: f.type for name, f in SOURCE_COLUMNS.items()}
    files = sorted((tiny_sky / "gaia/gaia_source").glob("*.csv.gz"))
    return pa.concat_tables([read_table(f, types) for f in files]).replace_schema_metadata(None)


@pytest.fixture(scope="module")
def catalogue(stars: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    leaves = mixed(stars)
    assert {order for order, _ in leaves} == {6, 8, 10}
    return write_hats(tmp_path_factory.mktemp("hats") / "stars", stars, leaves, hats_creation_date="2025-01-01")


def test_tables_of_all_cells_hold_the_rows_of_the_mock(catalogue: Path, stars: pa.Table, tmp_path: Path) -> None:
    source = hatssource.gaia(str(catalogue))
    own, got = cells_of(stars), 0
    for file in source.catalog_files(own.tolist()):
        cell = cell_of(file.path, source.folder)
        source.fetch(file.path, tmp_path / str(cell), refused)
        table = pq.read_table(tmp_path / str(cell))
        wanted = stars.filter(pa.array(own == cell)).sort_by("source_id").select(table.column_names)
        assert table.replace_schema_metadata(None).cast(wanted.schema).equals(wanted)
        got += table.num_rows
    assert got == stars.num_rows
    assert table.schema.field("source_id").type == pa.int64()
    assert table.schema.field("ra_error").metadata == {b"unit": b"mas"}
    assert {"pmra", "pmdec", "ref_epoch", "parallax", "ruwe", "has_xp_continuous"} <= set(table.column_names)


def test_gaia_reads_the_tables_as_its_own_files(
    catalogue: Path, stars: pa.Table, tiny_sky: Path, tmp_path: Path
) -> None:
    source, survey, got = hatssource.gaia(str(catalogue)), Gaia("dr3"), []
    for cell in np.unique(cells_of(stars)).tolist():
        into = tmp_path / f"6-{cell}.parquet"
        fetched(source, cell, into)
        got.append(survey.read(into))
    own = pa.concat_tables([survey.read(f) for f in sorted((tiny_sky / "gaia/gaia_source").glob("*.csv.gz"))])
    assert_same(pa.concat_tables(got), own)


@pytest.mark.parametrize("name", ["desi", "sdss"])
def test_desi_and_sdss_read_the_tables_as_their_own_files(name: str, tiny_sky: Path, tmp_path: Path) -> None:
    survey = {"desi": Desi("dr1"), "sdss": Sdss("dr17")}[name]
    path = tiny_sky / name / survey.catalog_files(RootArchive(tiny_sky / name), [0])[0].path
    ra, dec = {"desi": ("TARGET_RA", "TARGET_DEC"), "sdss": ("PLUG_RA", "PLUG_DEC")}[name]
    columns = {}
    for column, fetch in read_columns(path)[0].items():
        values = fetch()
        values = np.char.decode(np.ma.getdata(values), "ascii") if values.dtype.kind == "S" else np.ma.filled(values, 0)
        columns[column] = pa.array(values.tolist())
    table = pa.table(columns)
    table = table.filter(pa.array(np.isfinite(np.asarray(table[ra]))))
    leaves = adaptive(table, 30, ra, dec)
    folder = write_hats(tmp_path / "c", table, leaves, hats_col_ra=ra, hats_col_dec=dec)
    source = {"desi": hatssource.desi, "sdss": hatssource.sdss}[name](str(folder))
    got = []
    for cell in np.unique(cells_of(table, ra, dec)).tolist():
        into = tmp_path / f"6-{cell}.parquet"
        fetched(source, cell, into)
        got.append(survey.read(into))
    assert_same(pa.concat_tables(got), survey.read(path))


def assert_same(got: pa.Table, own: pa.Table) -> None:
    """Rows with a key and a position, whatever their order and number in their file."""
    got, own = (
        t.filter(pc.and_(pc.is_valid(t["key"]), pc.is_valid(t["ra"]))).drop_columns(["row"]).sort_by("key")
        for t in (got, own)
    )
    assert got.num_rows == own.num_rows > 0
    for name in own.column_names:
        if not name.startswith(("bp_", "rp_", "xp_")):
            assert got[name].combine_chunks().equals(own[name].combine_chunks()), name


def test_paths_are_below_query_and_one_a_cell() -> None:
    files = hatssource.gaia("/nowhere").catalog_files([7, 5, 7])
    assert [f.path for f in files] == ["query/hats/gaia_dr3/6-5.parquet", "query/hats/gaia_dr3/6-7.parquet"]


def test_same_rows_give_same_bytes_however_the_catalogue_was_divided(stars: pa.Table, tmp_path: Path) -> None:
    cell = int(np.bincount(cells_of(stars)).argmax())
    digests = set()
    for n, (most, group) in enumerate([(40, 10), (100_000, 1000)]):
        leaves = adaptive(stars, most)
        folder = write_hats(tmp_path / f"c{n}", stars, leaves, group_rows=group, obs_collection="stars")
        source = hatssource.gaia(str(folder))
        source.fetch(path(source, cell), tmp_path / f"t{n}", refused)
        digests.add((tmp_path / f"t{n}").read_bytes())
    assert len(digests) == 1


def test_an_empty_cell_gives_an_empty_table_with_all_columns(catalogue: Path, stars: pa.Table, tmp_path: Path) -> None:
    source = hatssource.gaia(str(catalogue))
    empty = next(c for c in range(40_000) if c not in set(cells_of(stars).tolist()))
    source.fetch(path(source, empty), tmp_path / "empty", refused)
    full = source.table(int(cells_of(stars)[0]))
    assert pq.read_table(tmp_path / "empty").num_rows == 0
    assert pq.read_schema(tmp_path / "empty").names == full.column_names


def test_a_cell_finer_and_one_coarser_than_its_leaves(tmp_path: Path) -> None:
    ra, dec = np.meshgrid(np.linspace(10, 11.5, 40), np.linspace(-0.6, 0.6, 40))
    table = points(ra.ravel(), dec.ravel())
    for n, leaves in enumerate(
        ([(0, p) for p in range(12)], [(9, int(p)) for p in np.unique(cells_of(table, order=9))])
    ):
        source = asked(write_hats(tmp_path / f"c{n}", table, leaves))
        for cell in np.unique(cells_of(table)).tolist():
            wanted = np.sort(np.asarray(table["source_id"])[cells_of(table) == cell])
            assert np.array_equal(np.sort(np.asarray(source.table(cell)["source_id"])), wanted)


def test_across_ra_0(tmp_path: Path) -> None:
    ra = np.concatenate([np.linspace(359.5, 359.9999, 50), np.linspace(0, 0.5, 50), [360.0]])
    table = points(ra, np.full(101, 0.3))
    source = asked(write_hats(tmp_path / "c", table, [(0, p) for p in range(12)], group_rows=7))
    cells = np.unique(cells_of(table)).tolist()
    tables = [source.table(c) for c in cells]
    assert sum(t.num_rows for t in tables) == 101
    assert any(min(t["ra"].to_pylist()) < 1 and max(t["ra"].to_pylist()) > 359 for t in tables)


@pytest.mark.parametrize("pole", [90.0, -90.0])
def test_at_the_poles(pole: float, tmp_path: Path) -> None:
    ra = np.linspace(0, 359, 80)
    table = points(np.append(ra, 123.0), np.append(np.full(80, pole - np.sign(pole) * 0.2), pole))
    source = asked(write_hats(tmp_path / "c", table, adaptive(table, 10), group_rows=5))
    ids = [i for c in np.unique(cells_of(table)).tolist() for i in source.table(c)["source_id"].to_pylist()]
    assert sorted(ids) == sorted(table["source_id"].to_pylist())


def test_ids_near_2_to_63_stay_exact(tmp_path: Path) -> None:
    ids = np.array([2**63 - 1, 2**63 - 2, 2**53 + 1, 1], dtype=np.int64)
    table = points(np.full(4, 20.0), np.zeros(4)).set_column(0, "source_id", pa.array(ids))
    source = asked(write_hats(tmp_path / "c", table, [(0, p) for p in range(12)]))
    made = fetched(source, int(cells_of(table)[0]), tmp_path / "t")
    assert made["source_id"].to_pylist() == sorted(ids.tolist())
    floats = table.set_column(0, "source_id", pa.array(ids.astype(float)))
    with pytest.raises(ValueError, match="'source_id' is double; wanted whole numbers or text"):
        asked(write_hats(tmp_path / "f", floats, [(0, p) for p in range(12)])).table(0)


def test_nulls_stay_nulls(tmp_path: Path) -> None:
    table = points([20.0, 20.0], [0.0, 0.0], flag=pa.array([None, True]), count=pa.array([None, 2**53 + 1], pa.int64()))
    source = asked(write_hats(tmp_path / "c", table, [(0, p) for p in range(12)]), optional=("flag", "count", "other"))
    made = fetched(source, int(cells_of(table)[0]), tmp_path / "t")
    assert made.column_names == ["source_id", "ra", "dec", "flag", "count"]
    assert made["flag"].to_pylist() == [True, None]
    assert made["count"].to_pylist() == [2**53 + 1, None]


def test_rows_of_another_epoch_than_the_leaves_are_found_by_their_own_positions(tmp_path: Path) -> None:
    """Files were cut by `ra`; the reader wants `ra_2016`, where some of the stars are in the next cell."""
    edge = healpy.boundaries(1 << WORK_ORDER, 20_000, step=20, nest=True)
    ra, dec = (np.degrees(a) for a in (np.arctan2(edge[1], edge[0]) % (2 * np.pi), np.arcsin(edge[2])))
    table = points(ra, dec - 0.001, ra_2016=ra, dec_2016=dec + 0.001)
    folder = write_hats(tmp_path / "c", table, [(6, int(p)) for p in np.unique(cells_of(table))])
    source = asked(folder, needed=("source_id", "ra_2016", "dec_2016"), position=("ra_2016", "dec_2016"))
    own = cells_of(table, "ra_2016", "dec_2016")
    assert (own != cells_of(table)).any()
    for cell in np.unique(own).tolist():
        assert set(source.table(cell)["source_id"].to_pylist()) == set(
            np.asarray(table["source_id"])[own == cell].tolist()
        )


def test_a_missing_column_is_named_beside_what_there_is(tmp_path: Path) -> None:
    source = asked(
        write_hats(tmp_path / "c", points([20.0], [0.0]), [(0, p) for p in range(12)]),
        needed=("source_id", "ra", "dec", "pmra", "ruwe"),
    )
    with pytest.raises(MissingColumn, match=r"no column 'pmra', 'ruwe'; it has source_id, ra, dec, _healpix_29"):
        source.table(0)


def test_names_are_found_in_any_case_or_as_they_are_mapped(tmp_path: Path) -> None:
    table = points([20.0], [0.0]).rename_columns(["SOURCE_ID", "RA", "Dec_J2016"])
    folder = write_hats(tmp_path / "c", table, [(0, p) for p in range(12)], hats_col_ra="RA", hats_col_dec="Dec_J2016")
    source = asked(folder, names={"dec": "Dec_J2016"})
    assert source.table(int(cells_of(table, "RA", "Dec_J2016")[0])).column_names == ["source_id", "ra", "dec"]
    twice = table.append_column("Ra", table["RA"])
    folder = write_hats(tmp_path / "d", twice, [(0, p) for p in range(12)], hats_col_ra="RA", hats_col_dec="Dec_J2016")
    with pytest.raises(ValueError, match=r"'ra' may be any of \['RA', 'Ra'\]; say which in `names`"):
        asked(folder, names={"dec": "Dec_J2016"}).table(0)


def test_a_unit_of_the_catalogue_that_is_another_is_refused(tmp_path: Path) -> None:
    table = points([20.0], [0.0], pmra=np.zeros(1))
    schema = table.schema.set(3, pa.field("pmra", pa.float64(), metadata={"unit": "deg/yr"}))
    folder = write_hats(tmp_path / "c", table.cast(schema), [(0, p) for p in range(12)])
    source = asked(folder, needed=("source_id", "ra", "dec", "pmra"), units={"pmra": "mas/yr"})
    with pytest.raises(WrongUnit, match="'PMRA' is in 'deg/yr', wanted 'mas/yr'"):
        source.table(0)


def test_the_question_tells_addresses_columns_and_cells_apart_and_asks_nobody() -> None:
    # a port that nobody listens at, and a folder that is not there
    sources = [hatssource.gaia(a, **s) for a in ("http://127.0.0.1:9/x", "/nowhere") for s in ({}, {"optional": ()})]
    sources.append(hatssource.gaia("/nowhere", names={"dec": "Dec"}))
    assert len({s.question(path(s, c)) for s in sources for c in (3, 4)}) == 10
    assert json.loads(sources[0].question(path(sources[0], 3)))["address"] == "http://127.0.0.1:9/x"


def test_a_table_tells_which_catalogue_it_is_from(catalogue: Path, stars: pa.Table, tmp_path: Path) -> None:
    source = hatssource.gaia(str(catalogue))
    for cell in (int(cells_of(stars)[0]), 0):
        made = fetched(source, cell, tmp_path / str(cell))
        said = json.loads(made.schema.metadata[b"catalog"])
        assert (said["hats_nrows"], said["hats_creation_date"]) == (str(stars.num_rows), "2025-01-01")


def test_a_collection_and_leaves_that_are_folders(tmp_path: Path) -> None:
    table = points([20.0, 21.0], [0.0, 0.0])
    write_hats(tmp_path / "coll/main", table, [(0, p) for p in range(12)], suffix="/")
    (tmp_path / "coll/collection.properties").write_text("obs_collection=coll\nhats_primary_table_url=main\n")
    source = asked(tmp_path / "coll")
    assert sum(source.table(int(c)).num_rows for c in np.unique(cells_of(table))) == 2


def test_a_leaf_that_is_listed_and_not_there(tmp_path: Path) -> None:
    table = points([20.0], [0.0])
    folder = write_hats(tmp_path / "c", table, [(0, p) for p in range(12)])
    next(folder.rglob("Npix=*.parquet")).unlink()
    with pytest.raises(NotPublished, match="listed and could not be read: not found"):
        asked(folder).table(int(cells_of(table)[0]))


def test_a_damaged_leaf(tmp_path: Path) -> None:
    table = points(np.full(500, 20.0), np.zeros(500))
    folder = write_hats(tmp_path / "c", table, [(0, p) for p in range(12)], group_rows=500)
    leaf = next(folder.rglob("Npix=*.parquet"))
    whole = leaf.read_bytes()
    leaf.write_bytes(whole[:60] + bytes([whole[60] ^ 255]) + whole[61:])
    with pytest.raises(ChecksumMismatch, match="could not be read"):
        asked(folder).table(int(cells_of(table)[0]))
    leaf.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ChecksumMismatch, match="could not be read"):
        asked(folder).table(int(cells_of(table)[0]))


def test_without_its_list_of_leaves_a_catalogue_is_not_guessed_at(tmp_path: Path) -> None:
    folder = write_hats(tmp_path / "c", points([20.0], [0.0]), [(0, p) for p in range(12)])
    (folder / "partition_info.csv").unlink()
    with pytest.raises(NotPublished, match="could not be opened as a HATS catalogue"):
        asked(folder).table(0)


def test_no_catalogue_at_the_address(tmp_path: Path) -> None:
    with pytest.raises(NotPublished, match="could not be opened"):
        asked(tmp_path / "none").table(0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"catalog": "../up"}, "cannot be part of a path"),
        ({"key": ()}, "key .* must be among the needed columns"),
        ({"position": ("l", "b")}, "must be among the needed columns"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asked(Path("x"), **settings)


@pytest.mark.parametrize(("status", "kind"), [(404, NotPublished), (503, Busy), (429, Busy)])
def test_a_catalogue_on_the_web_that_cannot_be_opened(status: int, kind: type[Exception]) -> None:
    from skycairn.mirror.server import Mirror, Reply

    with Mirror({}, {"data.lsdb.io": [lambda request: Reply(status, b"no")]}) as mirror:
        source = asked(Path("x"), address=f"{mirror.url}/data.lsdb.io/hats/gaia")
        with pytest.raises(kind):
            source.table(0)


def test_rows_of_one_key_come_in_one_order(tmp_path: Path) -> None:
    table = points([20.0, 20.0, 20.0], [0.0, 0.0, 0.0], flux=np.array([3.0, 1.0, 2.0]))
    table = table.set_column(0, "source_id", pa.array([5, 5, 4], pa.int64()))
    folder = write_hats(tmp_path / "c", table, [(0, p) for p in range(12)])
    made = fetched(asked(folder, optional=("flux",)), int(cells_of(table)[0]), tmp_path / "t")
    assert made["flux"].to_pylist() == [2.0, 1.0, 3.0]
    assert pc.sum(made["flux"]).as_py() == 6
