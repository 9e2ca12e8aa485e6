"""The pile as HATS catalogues, for lsdb: leaves are hard links to the pile's parts, and cost no bytes

view.json                                    whose view this is: snapshot, content id, margin
objects/ gaia/ ...                           a HATS collection each: a catalogue, and its margin
  collection.properties
  gaia/ gaia_10arcs/                         hats.properties (properties is its twin), partition_info.csv, skymap.fits
    dataset/_common_metadata
    dataset/Norder=6/Dir=30000/Npix=34808.parquet
objects_x_gaia/                              an association: which source is of which object
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import healpy
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.spatial import KDTree

from skycairn.catalogs.survey import WORK_ORDER
from skycairn.match.hatsfiles import SKYMAP_ORDER, leaf_path, properties_text, put, skymap, write_words
from skycairn.match.sky import angle, cell_size_arcsec, cells, neighbours, order_for, unit_vectors
from skycairn.pile.disk import sync_folder
from skycairn.pile.files import PendingFile, sealed, unseal
from skycairn.pile.parquet import TableWriter
from skycairn.pile.receipt import Part
from skycairn.pile.store import Pile, Snapshot
from skycairn.pipeline.task import concat, float64, int64

FORMAT = 1
WHAT = "skycairn view"
MARGIN_ARCSEC = 10.0
BORDER_STEPS = 1024
"""Points on each of a cell's four sides, 3 arcsec apart; between them a side is straight to a few micro-arcseconds."""
SLACK_ARCSEC = 1e-4
"""Added to the margin, so that no rounding leaves a row out."""

Leaves = Mapping[int, Part]
"""Parts by cell."""
Strays = Mapping[int, Mapping[int, NDArray[np.int64]]]
"""Keys of sources that are members of objects of another cell: by their own cell, then by the object's."""
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True)
class View:
    """The HATS catalogues of one snapshot."""

    root: Path
    snapshot: int
    content_id: str
    "of the snapshot"
    margin_arcsec: float
    rows: dict[str, int]
    "by catalogue: objects, gaia, ..."
    margin_rows: dict[str, int]
    "by the same; a row near a corner lies in the margin of several cells"
    member_rows: dict[str, int]
    "by survey: of its association with the objects"
    farthest_arcsec: dict[str, float]
    "by survey: the largest separation of a source from its object, as positions stand in the tables"
    n_links: int
    n_copies: int
    "leaves that could not be linked, and hold the parts' bytes once more"
    linked_bytes: int
    "that lie in the pile's parts alone"
    new_bytes: int
    "of all other files, less view.json itself"
    written: bool
    "False where the view was there already"


def write_view(pile: Pile, snapshot: Snapshot, out: Path | None = None, margin_arcsec: float = MARGIN_ARCSEC) -> View:
    """Write the snapshot's objects and each survey's wide table as HATS; by default into `hats`, in the pile's folder.

    A view of this snapshot with this margin is left as it is. Another is replaced whole: who reads meanwhile finds the
    old or the new one, or for an instant none. ValueError where the folder holds anything else, the margin is none that
    a cell and its neighbours hold, or a part is not of the cell that it is named for.
    """
    widest = cell_size_arcsec(WORK_ORDER) / 2
    if not 0 < margin_arcsec <= widest:
        raise ValueError(f"a margin of {margin_arcsec} arcsec; wanted more than 0, and at most {widest:.0f}")
    tables = {name: _leaves(snapshot, name) for name in snapshot.tables if name == "objects" or name.endswith(".wide")}
    tables = {name: leaves for name, leaves in tables.items() if leaves}
    if not tables:
        raise ValueError(f"snapshot {snapshot.number} holds no objects and no sources; there is nothing to view")
    root = Path(os.path.abspath(pile.root / "hats" if out is None else out))
    with _alone(root):
        if (found := _found(root)) is not None and _is_of(found, snapshot, margin_arcsec, tables):
            return found
        aside = _beside(root, "new")
        view = _write(pile, snapshot, tables, aside, float(margin_arcsec))
        _swap(aside, root)
        sync_folder(root.parent)
    return View(**{**vars(view), "root": root})


def _leaves(snapshot: Snapshot, table: str) -> dict[int, Part]:
    """The table's parts that have rows, by cell, ascending. ValueError where a part is not of one cell."""
    found = {}
    for entry in snapshot.entries(table):
        if list(entry.labels) != ["cell"] or type(entry.labels["cell"]) is not int:
            raise ValueError(f"table {table} has a part labelled {entry.labels}; wanted one part a cell")
        if entry.part.n_rows:
            found[entry.labels["cell"]] = entry.part
    return dict(sorted(found.items()))


# -- into place


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Nobody else writes this view meanwhile; what a writer left that was cut off is cleared away."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with root.with_name(f".{root.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        old = _beside(root, "old")
        if old.exists() and not root.exists():
            old.rename(root)
        for left in (old, _beside(root, "new")):
            if left.exists():
                shutil.rmtree(left)
        yield


def _beside(root: Path, what: str) -> Path:
    return root.with_name(f".{root.name}.{what}")


def _swap(aside: Path, root: Path) -> None:
    old = _beside(root, "old")
    if root.exists():
        root.rename(old)
    aside.rename(root)
    if old.exists():
        shutil.rmtree(old)


def _found(root: Path) -> View | None:
    """The view that is there. ValueError where the folder is another's."""
    if not root.exists():
        return None
    try:
        body = unseal(root / "view.json", "remove the folder, and write the view again")
    except (FileNotFoundError, NotADirectoryError) as error:
        if root.is_dir() and not any(root.iterdir()):
            return None
        raise ValueError(f"{root} is no view of a pile; name an empty folder, or one to be made") from error
    if body.pop("what", None) != WHAT:
        raise ValueError(f"{root} is no view of a pile; name an empty folder, or one to be made")
    if body.pop("format", None) != FORMAT:
        return None
    return View(root=root, written=False, **body)


def _is_of(view: View, snapshot: Snapshot, margin_arcsec: float, tables: Mapping[str, Leaves]) -> bool:
    said = (view.snapshot, view.content_id, view.margin_arcsec)
    if said != (snapshot.number, snapshot.content_id, margin_arcsec):
        return False
    for name, leaves in tables.items():
        for cell, part in leaves.items():
            leaf = _leaf(_main(view.root, name), cell)
            if not leaf.exists() or leaf.stat().st_size != part.n_bytes:
                return False
    return True


def _main(root: Path, table: str) -> Path:
    name = table.removesuffix(".wide")
    return root / name / name


def _leaf(catalogue: Path, cell: int) -> Path:
    return leaf_path(catalogue, (WORK_ORDER, cell))


# -- what is written


def _write(pile: Pile, snapshot: Snapshot, tables: Mapping[str, Leaves], root: Path, margin_arcsec: float) -> View:
    said = {"pile_snapshot": snapshot.number, "pile_content_id": snapshot.content_id}
    counts: Counter[str] = Counter()
    rows: dict[str, int] = {}
    margin_rows: dict[str, int] = {}
    member_rows: dict[str, int] = {}
    farthest: dict[str, float] = {}
    linked = "objects" in tables and "members" in snapshot.tables
    members = _leaves(snapshot, "members") if linked else {}
    strays = _strays(pile, members)
    for table, leaves in tables.items():
        main = _main(root, table)
        for cell, part in leaves.items():
            _link(pile.path(part), _leaf(main, cell), part, counts)
        rows[main.name] = sum(part.n_rows for part in leaves.values())
        margin_rows[main.name] = _write_collection(pile, leaves, main, margin_arcsec, strays.get(main.name, {}), said)
        if table != "objects":
            survey = main.name
            n_rows, reach = _write_association(pile, members, root / f"objects_x_{survey}", survey, said)
            if n_rows:
                member_rows[survey], farthest[survey] = n_rows, reach
    n_bytes = sum(p.stat().st_size for p in root.rglob("*") if p.is_file())
    view = View(
        root=root,
        snapshot=snapshot.number,
        content_id=snapshot.content_id,
        margin_arcsec=margin_arcsec,
        rows=rows,
        margin_rows=margin_rows,
        member_rows=member_rows,
        farthest_arcsec=farthest,
        n_links=counts["links"],
        n_copies=counts["copies"],
        linked_bytes=counts["bytes"],
        new_bytes=n_bytes - counts["bytes"],
        written=True,
    )
    body = {name: value for name, value in asdict(view).items() if name not in ("root", "written")}
    put(root / "view.json", sealed({"what": WHAT, "format": FORMAT, **body}))
    return view


def _link(source: Path, leaf: Path, part: Part, counts: Counter[str]) -> None:
    """The part under its name in the view: the same file, or a copy where the file system has no such links."""
    leaf.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, leaf)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copy(source, leaf)
        counts["copies"] += 1
    else:
        counts["links"] += 1
        counts["bytes"] += part.n_bytes


def _put_leaf(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with PendingFile(path.parent) as file:
        writer = TableWriter(file, table.schema)
        writer.write(table)
        writer.close()
        file.publish(path)


def _write_collection(
    pile: Pile, leaves: Leaves, main: Path, margin_arcsec: float, strays: Strays, said: Mapping[str, Any]
) -> int:
    """All of a collection but its linked leaves; rows of its margin."""
    name = main.name
    margin = main.with_name(f"{name}_{margin_arcsec:g}arcs")
    columns = {
        "hats_col_ra": "ra",
        "hats_col_dec": "dec",
        "hats_col_healpix": "healpix29",
        "hats_col_healpix_order": 29,
    }
    sky: Counter[int] = Counter()
    n_margin: Counter[int] = Counter()
    for cell, table in _margins(pile, leaves, margin_arcsec, strays, sky):
        _put_leaf(_leaf(margin, cell), table)
        n_margin[cell] = table.num_rows
    schema = pq.read_schema(pile.path(next(iter(leaves.values()))))
    n_rows = {cell: part.n_rows for cell, part in leaves.items()}
    put(main / "skymap.fits", skymap(sky))
    kind = {"dataproduct_type": "object", "hats_skymap_order": SKYMAP_ORDER}
    _write_catalogue(main, schema, n_rows, {**kind, **columns, **said})
    kind = {"dataproduct_type": "margin", "hats_primary_table_url": name, "hats_margin_threshold": margin_arcsec}
    _write_catalogue(margin, schema, n_margin, {**kind, **columns, **said})
    collection = {
        "obs_collection": name,
        "hats_primary_table_url": name,
        "all_margins": margin.name,
        "default_margin": margin.name,
        **said,
    }
    put(main.parent / "collection.properties", properties_text(collection))
    return sum(n_margin.values())


def _write_catalogue(folder: Path, schema: pa.Schema, n_rows: Mapping[int, int], properties: Mapping[str, Any]) -> None:
    """What says what the leaves, all of the work order, are."""
    # a catalogue without a row is of the work order too
    told = {**properties, "hats_order": WORK_ORDER} if not n_rows else properties
    write_words(folder, schema, {(WORK_ORDER, cell): n for cell, n in n_rows.items()}, told)


# -- margins


def _margins(
    pile: Pile, leaves: Leaves, margin_arcsec: float, strays: Strays, sky: Counter[int]
) -> Iterator[tuple[int, pa.Table]]:
    """Each cell, of those without rows too, with the rows that lie outside of it and within the margin.

    And with the members of its objects that have moved farther than that, so that a join finds them: a margin may hold
    more than it promises. `sky` is told the rows by cell of `SKYMAP_ORDER`. Held in memory are the margins of cells
    some of whose neighbours are still to come.
    """
    waiting: defaultdict[int, list[pa.Table]] = defaultdict(list)
    last: dict[int, int] = {}
    own = np.array(list(leaves), dtype=np.int64)
    for cell, part in leaves.items():
        mine = strays.get(cell, {})
        positions = pile.read_table(part, columns=["ra", "dec", "healpix29", *(["key"] if mine else [])])
        _check_cell(positions, cell, pile.path(part))
        where, count = np.unique(cells(int64(positions, "healpix29"), SKYMAP_ORDER), return_counts=True)
        sky.update(dict(zip(where.tolist(), count.tolist(), strict=True)))
        near = rows_near(positions, cell, margin_arcsec)
        for other, keys in mine.items():
            stray = np.flatnonzero(np.isin(int64(positions, "key"), keys))
            near[other] = np.union1d(near.get(other, stray), stray)
        if near:
            table = pile.read_table(part)
            for other, row in near.items():
                waiting[other].append(table.take(pa.array(row)))
                last.setdefault(other, int(np.intersect1d(neighbours(WORK_ORDER, [other]), own)[-1]))
        for other in sorted(c for c in waiting if last[c] <= cell):
            yield other, concat(waiting.pop(other)).sort_by("healpix29")


def _check_cell(positions: pa.Table, cell: int, path: Path) -> None:
    index = int64(positions, "healpix29")
    if (cells(index, WORK_ORDER) != cell).any() or (np.diff(index) < 0).any():
        raise ValueError(f"{path}: its rows are not those of cell {cell} sorted by healpix29; build the pile again")


def rows_near(positions: pa.Table, cell: int, margin_arcsec: float) -> dict[int, NDArray[np.int64]]:
    """Rows of one cell (ra, dec, healpix29) that lie within the margin of other cells, by those cells."""
    index = int64(positions, "healpix29")
    xyz = unit_vectors(float64(positions, "ra"), float64(positions, "dec")).T
    order = order_for(margin_arcsec + SLACK_ARCSEC)
    fine, inverse = np.unique(cells(index, order), return_inverse=True)
    around = healpy.get_all_neighbours(1 << order, fine, nest=True)
    home = np.where(around >= 0, around >> 2 * (order - WORK_ORDER), cell)
    found = {}
    for other in np.setdiff1d(home, [cell]).tolist():
        rows = np.flatnonzero((home == other).any(axis=0)[inverse])
        rows = rows[_distance_arcsec(xyz[rows], other) <= margin_arcsec + SLACK_ARCSEC]
        if len(rows):
            found[other] = rows
    return found


def _distance_arcsec(xyz: NDArray[np.float64], cell: int) -> NDArray[np.float64]:
    """Distance of points (n, 3) outside of a cell from its border."""
    border = healpy.boundaries(1 << WORK_ORDER, cell, step=BORDER_STEPS, nest=True).T
    _, at = KDTree(border).query(xyz)
    start = border[at]
    least = np.full(len(xyz), np.inf)
    for step in (-1, 1):
        along = border[(at + step) % len(border)] - start
        share = np.clip(((xyz - start) * along).sum(axis=1) / (along * along).sum(axis=1), 0, 1)
        chord = np.linalg.norm(xyz - start - share[:, None] * along, axis=1)
        least = np.minimum(least, 2 * np.arcsin(np.minimum(chord / 2, 1)))
    return np.degrees(least) * 3600


# -- associations


def _strays(pile: Pile, members: Leaves) -> dict[str, dict[int, dict[int, NDArray[np.int64]]]]:
    """By survey, the members that do not lie in the cell of their object."""
    found: defaultdict[str, defaultdict[int, dict[int, NDArray[np.int64]]]] = defaultdict(lambda: defaultdict(dict))
    for home, part in members.items():
        table = pile.read_table(part, columns=["survey", "key", "healpix29"])
        table = table.filter(pa.array(cells(int64(table, "healpix29"), WORK_ORDER) != home))
        own, key = cells(int64(table, "healpix29"), WORK_ORDER), int64(table, "key")
        survey = np.asarray(table.column("survey").cast(pa.string()))
        for name, cell in sorted(set(zip(survey.tolist(), own.tolist(), strict=True))):
            found[name][cell][home] = key[(survey == name) & (own == cell)]
    return {name: dict(by_cell) for name, by_cell in found.items()}


def _write_association(
    pile: Pile, members: Leaves, folder: Path, survey: str, said: Mapping[str, Any]
) -> tuple[int, float]:
    """Objects and their sources of one survey, by the object's cell; how many, and how far apart at most (arcsec)."""
    n_rows: Counter[int] = Counter()
    reach = 0.0
    schema = None
    for cell, part in members.items():
        table, farthest = _pairs(pile.read_table(part), survey)
        if table.num_rows:
            _put_leaf(_leaf(folder, cell), table)
            n_rows[cell], reach, schema = table.num_rows, max(reach, farthest), table.schema
    if schema is not None:
        properties = {
            "dataproduct_type": "association",
            "hats_primary_table_url": "objects",
            "hats_col_assn_primary": "object_id",
            "hats_col_assn_primary_assn": "object_id",
            "hats_assn_join_table_url": survey,
            "hats_col_assn_join": "key",
            "hats_col_assn_join_assn": "source_key",
            "hats_assn_max_separation": f"{reach + SLACK_ARCSEC:.4f}",
            "hats_assn_leaf_files": True,
            **said,
        }
        _write_catalogue(folder, schema, n_rows, properties)
    return sum(n_rows.values()), reach


def _pairs(members: pa.Table, survey: str) -> tuple[pa.Table, float]:
    """One survey's members of one cell's objects, in the order of the object table.

    `separation_arcsec` is the pile's, motion minded; the number beside the table the largest between positions as they
    stand, which is what a join by cells has to reach over.
    """
    anchors = members.filter(members.column("anchor"))
    of = members.filter(pc.equal(members.column("survey"), survey))
    at = np.asarray(pc.index_in(of.column("object_id"), anchors.column("object_id")), np.int64)
    apart = angle(_vectors(anchors)[:, at], _vectors(of))
    table = pa.table(
        {
            "object_id": of.column("object_id"),
            "source_key": of.column("key"),
            "separation_arcsec": int64(of, "separation_uas") * 1e-6,
        }
    )
    order = np.lexsort((np.arange(len(at)), int64(anchors, "healpix29")[at]))
    return table.take(pa.array(order)), float(np.degrees(apart.max(initial=0.0)) * 3600)


def _vectors(table: pa.Table) -> NDArray[np.float64]:
    return unit_vectors(float64(table, "ra"), float64(table, "dec"))
