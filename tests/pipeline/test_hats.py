"""The HATS view of a pile, held against hats and lsdb, and against brute force."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import astropy.units as u
import healpy
import numpy as np
import pyarrow as pa
import pytest
from astropy.coordinates import SkyCoord
from typer.testing import CliRunner

from skycairn.cli.main import app
from skycairn.match.sky import cells, healpix29, unit_vectors
from skycairn.pile.content import content_id
from skycairn.pile.files import PileError
from skycairn.pile.store import Draft, Entry, Pile, Snapshot
from skycairn.pipeline import hats
from skycairn.pipeline.hats import View, write_view

# lsdb 0.11 and nested-pandas 0.7 call pandas as pandas 4 will not have it
pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")

SURVEYS = ("desi", "gaia", "hsc", "legacysurvey", "sdss")
SUFFIXES = {"suffixes": ("_a", "_b"), "suffix_method": "overlapping_columns", "log_changes": False}


@pytest.fixture(autouse=True)
def one_task_after_the_other() -> Iterator[None]:
    import dask

    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture
def pile(tiny_pile: Path, tmp_path: Path) -> Pile:
    """A copy of the tiny pile."""
    shutil.copytree(tiny_pile, tmp_path / "pile")
    return Pile.open(tmp_path / "pile")


@pytest.fixture(scope="module")
def viewed(tiny_pile: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pile, View]:
    """A copy of the tiny pile, and its view. Not to be changed."""
    root = tmp_path_factory.mktemp("viewed") / "pile"
    shutil.copytree(tiny_pile, root)
    pile = Pile.open(root)
    return pile, write_view(pile, pile.snapshot())


def valid(*folders: Path) -> bool:
    from hats.io.validation import is_valid_catalog

    return all(is_valid_catalog(folder, strict=True) for folder in folders)


def whole(pile: Pile, snapshot: Snapshot, table: str) -> pa.Table:
    """All rows of a table, cell by cell."""
    entries = sorted(snapshot.entries(table), key=lambda e: int(e.labels["cell"]))
    return pa.concat_tables([pile.read_table(e.part) for e in entries])


def rows_of(catalogue: Any) -> pa.Table:
    """What lsdb reads, as a table again."""
    return pa.Table.from_pandas(catalogue.compute().reset_index(), preserve_index=False)


def pairs_of(frame: Any, a: str, b: str) -> list[tuple[Any, Any]]:
    return sorted(zip(frame[a].tolist(), frame[b].tolist(), strict=True))


def check_pairs(found: Any, a: pa.Table, b: pa.Table, radius_arcsec: float) -> list[tuple[int, int]]:
    """The pairs that lsdb found, which are those of astropy: of each row of `a`, the nearest row of `b` within.

    Of two that lie at the very same place, as the mock's imaging has them, either is the nearest.
    """
    places = [SkyCoord(t.column("ra").to_numpy() * u.deg, t.column("dec").to_numpy() * u.deg) for t in (a, b)]
    at, apart, _ = places[0].match_to_catalog_sky(places[1])
    keys = [t.column("key").to_pylist() for t in (a, b)]
    place = dict(zip(keys[1], zip(b.column("ra").to_pylist(), b.column("dec").to_pylist(), strict=True), strict=True))
    expected = sorted((keys[0][i], place[keys[1][at[i]]]) for i in np.flatnonzero(apart.arcsec <= radius_arcsec))
    pairs = pairs_of(found, "key_a", "key_b")
    assert [(i, place[j]) for i, j in pairs] == expected
    return pairs


def test_every_table_opens_and_says_what_the_pile_says(viewed: tuple[Pile, View], lsdb: ModuleType) -> None:
    pile, view = viewed
    snapshot = pile.snapshot()
    assert view.root == pile.root / "hats" and view.written and view.n_copies == 0
    assert valid(*(p for p in view.root.iterdir() if p.is_dir()))
    assert set(view.rows) == {"objects", *SURVEYS} and set(view.member_rows) == set(SURVEYS)
    for name, n_rows in view.rows.items():
        catalogue = lsdb.open_catalog(view.root / name)
        table = whole(pile, snapshot, name if name == "objects" else f"{name}.wide")
        assert len(catalogue) == n_rows == table.num_rows
        assert content_id(rows_of(catalogue)) == content_id(table)
        assert len(catalogue.margin) == view.margin_rows[name] == len(catalogue.margin.compute())
        said = catalogue.hc_structure.catalog_info
        assert (said.healpix_column, said.healpix_order, said.total_rows) == ("healpix29", 29, n_rows)
        assert said.extra_dict()["pile_snapshot"] == "1"
        assert said.extra_dict()["pile_content_id"] == snapshot.content_id


def test_the_sky_map_counts_every_row(viewed: tuple[Pile, View], lsdb: ModuleType) -> None:
    from hats.io.skymap import read_skymap

    pile, view = viewed
    snapshot = pile.snapshot()
    for name in view.rows:
        catalogue = lsdb.open_catalog(view.root / name).hc_structure
        index = whole(pile, snapshot, name if name == "objects" else f"{name}.wide").column("healpix29").to_numpy()
        for order in (6, 8):
            expected = np.bincount(cells(index, order), minlength=12 << 2 * order)
            assert (read_skymap(catalogue, order) == expected).all()


def test_two_surveys_are_cross_matched(viewed: tuple[Pile, View], lsdb: ModuleType) -> None:
    pile, view = viewed
    snapshot = pile.snapshot()
    for a, b in (("gaia", "hsc"), ("hsc", "legacysurvey"), ("desi", "sdss")):
        left, right = lsdb.open_catalog(view.root / a), lsdb.open_catalog(view.root / b)
        found = left.crossmatch(right, radius_arcsec=1, **SUFFIXES).compute()
        tables = [whole(pile, snapshot, f"{name}.wide") for name in (a, b)]
        assert check_pairs(found, *tables, 1.0) or (a, b) == ("desi", "sdss")


def test_a_cone_is_searched(viewed: tuple[Pile, View], lsdb: ModuleType) -> None:
    pile, view = viewed
    snapshot = pile.snapshot()
    table = whole(pile, snapshot, "objects")
    first = table.slice(0, 1).to_pylist()[0]
    centre = SkyCoord(first["ra"] * u.deg, first["dec"] * u.deg)
    apart = centre.separation(SkyCoord(table.column("ra").to_numpy() * u.deg, table.column("dec").to_numpy() * u.deg))
    radius = float(np.sort(apart.arcsec)[20:22].mean())
    cone = lsdb.ConeSearch(first["ra"], first["dec"], radius)
    found = lsdb.open_catalog(view.root / "objects", search_filter=cone, columns=["object_id", "key.gaia", "stratum"])
    inside = table.filter(pa.array(apart.arcsec <= radius))
    assert sorted(found.compute()["object_id"].tolist()) == sorted(inside.column("object_id").to_pylist())
    assert inside.num_rows == 21


@pytest.mark.parametrize("survey", SURVEYS)
def test_the_association_joins_the_members(survey: str, viewed: tuple[Pile, View], lsdb: ModuleType) -> None:
    pile, view = viewed
    snapshot = pile.snapshot()
    members = whole(pile, snapshot, "members")
    members = members.filter(pa.array(np.asarray(members.column("survey")) == survey))
    expected = sorted(zip(members.column("object_id").to_pylist(), members.column("key").to_pylist(), strict=True))
    link = lsdb.read_hats(view.root / f"objects_x_{survey}")
    assert pairs_of(link.compute(), "object_id", "source_key") == expected
    assert len(link) == view.member_rows[survey] == len(expected)
    assert view.farthest_arcsec[survey] <= link.max_separation < view.margin_arcsec
    objects, sources = lsdb.open_catalog(view.root / "objects"), lsdb.open_catalog(view.root / survey)
    joined = objects.join(sources, through=link, **SUFFIXES).compute()
    object_id = "object_id_a" if "object_id_a" in joined else "object_id"
    assert pairs_of(joined, object_id, "key") == expected


# -- bytes


def test_leaves_are_the_parts_themselves(viewed: tuple[Pile, View]) -> None:
    pile, view = viewed
    snapshot = pile.snapshot()
    n_leaves = 0
    for name in view.rows:
        for entry in snapshot.entries(name if name == "objects" else f"{name}.wide"):
            leaf = hats._leaf(view.root / name / name, int(entry.labels["cell"]))
            assert leaf.stat().st_ino == pile.path(entry.part).stat().st_ino
            n_leaves += 1
    assert view.n_links == n_leaves
    files = {p.stat().st_ino: p.stat().st_size for p in view.root.rglob("*") if p.is_file()}
    own = sum(files.values()) - view.linked_bytes
    assert own - 2000 < view.new_bytes < own, "but for view.json"
    # a leaf of a few rows is mostly footer, and so is its margin
    assert view.new_bytes < 0.06 * sum(part.n_bytes for part in snapshot.parts())
    assert pile.verify().sound


def scattered(n: int, ra: float, dec: float, radius_deg: float, seed: int = 0) -> tuple[Any, Any]:
    """Positions about a place, across RA 0 and the poles."""
    rng = np.random.default_rng(seed)
    about = SkyCoord(ra * u.deg, dec * u.deg)
    there = about.directional_offset_by(
        rng.uniform(0, 360, n) * u.deg, radius_deg * np.sqrt(rng.uniform(0, 1, n)) * u.deg
    )
    return there.ra.deg % 360.0, there.dec.deg


def table_of(ra: Any, dec: Any, **columns: Any) -> pa.Table:
    """Sources at these positions, sorted by HEALPix."""
    ra, dec = np.atleast_1d(np.asarray(ra, float)), np.atleast_1d(np.asarray(dec, float))
    table = pa.table({"key": np.arange(len(ra)), "ra": ra, "dec": dec, "healpix29": healpix29(ra, dec), **columns})
    return table.sort_by("healpix29")


def commit(pile: Pile, tables: Mapping[str, pa.Table]) -> Snapshot:
    """A snapshot of these tables, a part for each work cell."""
    listed = {}
    for name, table in tables.items():
        cell = cells(table.column("healpix29").to_numpy(), 6)
        parts = {int(c): pile.put_table(table.filter(pa.array(cell == c))) for c in np.unique(cell)}
        listed[name] = [Entry({"cell": c}, part) for c, part in parts.items()]
    return pile.commit(Draft(recipe={}, tables=listed))


def test_a_large_table_costs_next_to_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    ra, dec = scattered(200_000, 150.0, 2.0, 1.0)
    columns = {f"flux_{i}": rng.normal(size=len(ra)).astype(np.float32) for i in range(10)}
    pile = Pile.create(tmp_path / "pile")
    view = write_view(pile, commit(pile, {"gaia.wide": table_of(ra, dec, **columns)}))
    assert view.linked_bytes > 10e6
    assert view.new_bytes < 0.03 * view.linked_bytes


def test_leaves_are_copied_where_nothing_can_be_linked(pile: Pile, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    view = write_view(pile, pile.snapshot())
    assert view.n_links == 0 and view.linked_bytes == 0 and view.n_copies > 0
    assert valid(view.root / "gaia")
    part = pile.snapshot().entries("gaia.wide")[0]
    leaf = hats._leaf(view.root / "gaia" / "gaia", int(part.labels["cell"]))
    assert leaf.read_bytes() == pile.path(part.part).read_bytes()


# -- margins


def margins_by_brute_force(table: pa.Table, margin_arcsec: float) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """(cell, key) of every row outside of a cell that lies within the margin of it; and those too near to call.

    Every row against every point of a dense border of every cell near it.
    """
    xyz = unit_vectors(table.column("ra").to_numpy(), table.column("dec").to_numpy()).T
    own = cells(table.column("healpix29").to_numpy(), 6)
    all_cells = set(own.tolist())
    for cell in list(all_cells):
        all_cells |= {int(c) for c in healpy.get_all_neighbours(64, cell, nest=True) if c >= 0}
    within, unsure = set(), set()
    for cell in all_cells:
        border = healpy.boundaries(64, cell, step=2048, nest=True).T
        near = np.flatnonzero((own != cell) & (np.max(xyz @ border[::64].T, axis=1) > np.cos(np.radians(0.1))))
        for row in near.tolist():
            chord = np.sqrt(((border - xyz[row]) ** 2).sum(axis=1)).min()
            arcsec = np.degrees(2 * np.arcsin(chord / 2)) * 3600
            name = (cell, table.column("key")[row].as_py())
            # the border's points lie up to 2.5 arcsec apart: the nearest is up to 0.2 arcsec farther than the border
            (within if arcsec <= margin_arcsec else unsure if arcsec <= margin_arcsec + 0.2 else set()).add(name)
    return within, unsure


def margin_of(view: View, name: str) -> set[tuple[int, int]]:
    """(cell, key) of every row of a margin, as its files hold them."""
    import pyarrow.parquet as pq

    folder = view.root / name / f"{name}_{view.margin_arcsec:g}arcs"
    leaves = {int(p.stem.removeprefix("Npix=")): p for p in folder.rglob("Npix=*.parquet")}
    listed = (folder / "partition_info.csv").read_text().splitlines()[1:]
    assert sorted(leaves) == [int(line.split(",")[1]) for line in listed]
    found = {(c, k) for c, p in leaves.items() for k in pq.read_table(p, partitioning=None).column("key").to_pylist()}
    assert len(found) == view.margin_rows[name]
    return found


PLACES = {
    "RA 0 and the equator": (0.0, 0.0),
    "the north pole": (10.0, 90.0),
    "the south pole": (200.0, -90.0),
    "the corner of four faces": (45.0, 0.0),
    "where a cell has seven neighbours": (0.0, 41.8103149),
    "the border of the polar cap": (22.5, 41.81),
}


@pytest.mark.parametrize("place", PLACES)
def test_margins_hold_what_lies_near_a_cell(place: str, tmp_path: Path, lsdb: ModuleType) -> None:
    pile = Pile.create(tmp_path / "pile")
    a, b = table_of(*scattered(4000, *PLACES[place], 0.2)), table_of(*scattered(4000, *PLACES[place], 0.2, seed=1))
    view = write_view(pile, commit(pile, {"a.wide": a, "b.wide": b}), margin_arcsec=20.0)
    within, unsure = margins_by_brute_force(a, 20.0)
    assert within <= margin_of(view, "a") <= within | unsure
    assert len(within) > 30 and len(unsure) < 10
    assert valid(view.root / "a", view.root / "b")
    # pairs across borders are there because of the margins
    left, right = (lsdb.open_catalog(view.root / name) for name in "ab")
    found = check_pairs(left.crossmatch(right, radius_arcsec=15, **SUFFIXES).compute(), a, b, 15.0)
    index = [t.column("healpix29").to_numpy() for t in (a, b)]
    cell = [
        dict(zip(t.column("key").to_pylist(), cells(i, 6), strict=True)) for t, i in zip((a, b), index, strict=True)
    ]
    assert sum(cell[0][i] != cell[1][j] for i, j in found) > 5


def test_margins_of_the_tiny_pile(viewed: tuple[Pile, View]) -> None:
    pile, view = viewed
    snapshot = pile.snapshot()
    for name in SURVEYS:
        within, unsure = margins_by_brute_force(whole(pile, snapshot, f"{name}.wide"), 10.0)
        assert within <= margin_of(view, name) <= within | unsure


@pytest.mark.parametrize("margin_arcsec", [0.0, -1.0, float("nan"), 3600.0])
def test_a_margin_that_cannot_be(margin_arcsec: float, pile: Pile) -> None:
    with pytest.raises(ValueError, match="a margin of"):
        write_view(pile, pile.snapshot(), margin_arcsec=margin_arcsec)


# -- few rows, and none


def test_one_row(tmp_path: Path, lsdb: ModuleType) -> None:
    pile = Pile.create(tmp_path / "pile")
    one = table_of(0.0, 90.0)
    view = write_view(pile, commit(pile, {"a.wide": one, "b.wide": table_of([0.0, 180.0], [90.0, 89.9999])}))
    assert valid(view.root / "a", view.root / "b")
    a, b = lsdb.open_catalog(view.root / "a"), lsdb.open_catalog(view.root / "b")
    assert content_id(rows_of(a)) == content_id(one)
    assert pairs_of(a.crossmatch(b, radius_arcsec=1, **SUFFIXES).compute(), "key_a", "key_b") == [(0, 0)]
    assert pairs_of(b.crossmatch(a, radius_arcsec=1, **SUFFIXES).compute(), "key_a", "key_b") == [(0, 0), (1, 0)]


def across_a_border(apart: float = 0.5) -> tuple[tuple[float, float], tuple[float, float]]:
    """Two places about half an arcsecond apart, or what is asked for, in two work cells."""
    border = healpy.boundaries(64, 17404, step=4, nest=True).T[1]
    ra, dec = healpy.vec2ang(border, lonlat=True)
    for dra, ddec in ((0.5, 0.0), (0.0, 0.5), (0.4, 0.4), (0.4, -0.4)):
        by = apart / 3600
        two = [(float(ra[0] + s * dra * by) % 360, float(dec[0] + s * ddec * by)) for s in (1, -1)]
        if len({int(cells(healpix29(*place), 6)) for place in two}) == 2:
            return two[0], two[1]
    raise AssertionError


@pytest.mark.parametrize("apart", [0.5, 60.0], ids=["near", "moved far"])
def test_a_survey_without_rows_in_a_cell_is_met_in_its_margin(apart: float, tmp_path: Path, lsdb: ModuleType) -> None:
    """The object's cell holds no source of the survey; its member lies in the next one, be it beyond the margin."""
    mine, theirs = across_a_border(apart)
    one, other = table_of(*mine), table_of(*theirs)
    objects = one.drop_columns(["key"]).append_column("object_id", pa.array(["a:0"]))
    members = pa.concat_tables([one, other]).append_column("object_id", pa.array(["a:0", "a:0"]))
    members = members.append_column("survey", pa.array(["a", "b"])).append_column("anchor", pa.array([True, False]))
    members = members.append_column("separation_uas", pa.array([0, 500_000]))
    pile = Pile.create(tmp_path / "pile")
    snapshot = commit(pile, {"objects": objects, "a.wide": one, "b.wide": other})
    tables = dict(snapshot.tables)
    home = int(cells(healpix29(*mine), 6))
    tables["members"] = [Entry({"cell": home}, pile.put_table(members))]
    # and a part of no rows, which is no leaf
    tables["b.wide"] = [*tables["b.wide"], Entry({"cell": home}, pile.put_table(other.slice(0, 0)))]
    snapshot = pile.commit(Draft(recipe={}, tables=tables))
    view = write_view(pile, snapshot)
    assert valid(*(view.root / name for name in ("objects", "a", "b", "objects_x_a", "objects_x_b")))
    assert view.rows == {"a": 1, "b": 1, "objects": 1} and view.margin_rows["b"] == 1
    a, b, o = (lsdb.open_catalog(view.root / name) for name in ("a", "b", "objects"))
    assert len(b.get_healpix_pixels()) == 1
    near = apart < 1
    found = a.crossmatch(b, radius_arcsec=1, **SUFFIXES).compute()
    assert pairs_of(found, "key_a", "key_b") == ([(0, 0)] if near else [])
    with nullcontext() if near else pytest.warns(RuntimeWarning, match="smaller than association maximum separation"):
        joined = o.join(b, through=lsdb.read_hats(view.root / "objects_x_b"), **SUFFIXES).compute()
    assert pairs_of(joined, "object_id", "key") == [("a:0", 0)]
    assert joined["separation_arcsec"].tolist() == [0.5]
    assert 0.8 * apart < view.farthest_arcsec["b"] < 1.2 * apart


def test_objects_alone_and_a_survey_that_nobody_met(tmp_path: Path, lsdb: ModuleType) -> None:
    pile = Pile.create(tmp_path / "pile")
    objects = table_of(*scattered(50, 0.0, 0.0, 0.1))
    view = write_view(pile, commit(pile, {"objects": objects}))
    assert sorted(p.name for p in view.root.iterdir()) == ["objects", "view.json"]
    assert len(lsdb.open_catalog(view.root / "objects").compute()) == 50
    empty = [Entry({"cell": 17404}, pile.put_table(objects.slice(0, 0)))]
    tables = {"objects": pile.snapshot().entries("objects"), "gaia.wide": empty}
    view = write_view(pile, pile.commit(Draft(recipe={}, tables=tables)))
    assert sorted(p.name for p in view.root.iterdir()) == ["objects", "view.json"]


def test_nothing_to_view(tmp_path: Path) -> None:
    pile = Pile.create(tmp_path / "pile")
    with pytest.raises(ValueError, match="nothing to view"):
        write_view(pile, pile.commit(Draft(recipe={}, tables={})))


def test_a_part_of_another_cell_is_refused(tmp_path: Path) -> None:
    pile = Pile.create(tmp_path / "pile")
    entry = Entry({"cell": 5}, pile.put_table(table_of(10.0, 10.0)))
    with pytest.raises(ValueError, match="not those of cell 5"):
        write_view(pile, pile.commit(Draft(recipe={}, tables={"gaia.wide": [entry]})))
    assert not (pile.root / "hats").exists()


# -- into place


def test_a_view_is_written_once_a_snapshot_and_margin(pile: Pile, lsdb: ModuleType) -> None:
    first = pile.snapshot()
    view = write_view(pile, first)
    inode = (view.root / "view.json").stat().st_ino
    again = write_view(pile, first)
    assert not again.written and (view.root / "view.json").stat().st_ino == inode
    assert View(**{**vars(again), "written": True}) == view
    assert write_view(pile, first, margin_arcsec=5.0).written
    tables = {name: entries for name, entries in first.tables.items() if not name.startswith("sdss.")}
    second = pile.commit(Draft(recipe=first.recipe, tables=tables))
    new = write_view(pile, second)
    assert new.written and new.snapshot == 2
    assert not (new.root / "sdss").exists() and "sdss" not in new.rows
    assert lsdb.open_catalog(new.root / "gaia").hc_structure.catalog_info.extra_dict()["pile_snapshot"] == "2"
    # a leaf that went missing is a view that is not there
    next((new.root / "gaia" / "gaia").rglob("Npix=*")).unlink()
    assert write_view(pile, second).written


def test_cut_off_while_writing_leaves_the_old_view(pile: Pile, monkeypatch: pytest.MonkeyPatch) -> None:
    view = write_view(pile, pile.snapshot())
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(hats, "_write_association", _cut_off)
        write_view(pile, pile.snapshot(), margin_arcsec=5.0)
    assert (pile.root / ".hats.new").exists()
    assert not write_view(pile, pile.snapshot()).written
    assert valid(view.root / "gaia") and not (pile.root / ".hats.new").exists()


def test_cut_off_between_the_two_renames_finds_the_old_view_again(pile: Pile, monkeypatch: pytest.MonkeyPatch) -> None:
    view = write_view(pile, pile.snapshot())
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(hats, "_swap", lambda aside, root: (root.rename(root.with_name(".hats.old")), _cut_off()))
        write_view(pile, pile.snapshot(), margin_arcsec=5.0)
    assert not view.root.exists()
    assert not write_view(pile, pile.snapshot()).written
    left = sorted(p.name for p in pile.root.iterdir() if "hats" in p.name)
    assert left == [".hats.lock", "hats"]


def _cut_off(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_pile_moves(pile: Pile, tmp_path: Path, lsdb: ModuleType) -> None:
    write_view(pile, pile.snapshot())
    pile.root.rename(tmp_path / "moved")
    moved = Pile.open(tmp_path / "moved")
    assert not write_view(moved, moved.snapshot()).written
    assert len(lsdb.open_catalog(tmp_path / "moved" / "hats" / "gaia").compute()) == 41
    elsewhere = write_view(moved, moved.snapshot(), tmp_path / "view" / "mine")
    assert elsewhere.root == tmp_path / "view" / "mine" and elsewhere.n_copies == 0
    assert len(lsdb.open_catalog(elsewhere.root / "gaia").compute()) == 41


def test_a_folder_of_others_is_left_alone(pile: Pile, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="is no view of a pile"):
        write_view(pile, pile.snapshot(), tmp_path / "mine")
    (tmp_path / "mine" / "view.json").write_text("{}")
    with pytest.raises(PileError, match="remove the folder"):
        write_view(pile, pile.snapshot(), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()
    (tmp_path / "empty").mkdir()
    assert write_view(pile, pile.snapshot(), tmp_path / "empty").written


def test_the_command(pile: Pile, tmp_path: Path) -> None:
    def run(*args: object) -> Any:
        return CliRunner().invoke(app, ["hats", *map(str, args)], env={"COLUMNS": "200", "TERM": "dumb"})

    done = run(pile.root)
    assert done.exit_code == 0, done.output
    assert f"{pile.root / 'hats'}: snapshot 1 written" in done.output and "MB new" in done.output
    assert "objects" in done.output and "102" in done.output
    assert "was there already" in run(pile.root).output
    near = run(pile.root, "--margin", 1, "--out", tmp_path / "view")
    assert near.exit_code == 0, near.output
    assert (tmp_path / "view" / "hsc" / "hsc_1arcs").is_dir()
    assert run(pile.root, "--margin", 0).exit_code == 1
