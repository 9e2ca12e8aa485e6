"""What became of each object from one snapshot to the next: new, changed, merged, split, gone.

Two objects are one thing seen twice where they share a source, or where a source of one is gone and a new one of the
same survey stands within `SAME_ARCSEC` of its place (a release that numbers its sources anew), each the nearest of one
or the other. An object is *changed* when it has other members, or when a member's row or payload tokens differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from skycairn.catalogs.survey import WORK_ORDER
from skycairn.match.sky import rings, unit_vectors
from skycairn.pile.receipt import Part, task_key
from skycairn.pile.store import Entry, Pile, Snapshot
from skycairn.pipeline.parent import Parent, why
from skycairn.pipeline.plan import Memory, Plan
from skycairn.pipeline.reuse import row_of, same_rows
from skycairn.pipeline.task import Context, Outcome, Task, concat, float64, int64
from skycairn.pipeline.versions import VERSIONS

SAME_ARCSEC = 1.0
SCHEMA = pa.schema([("old_id", pa.string()), ("new_id", pa.string()), ("what", pa.string())])
"""`what`: new, changed (a new name included), merged, split, gone; held back, returned: the cell, not the object."""

Tables = Mapping[str, Mapping[int, Part]]
"""Parts by table and cell."""


# --- planning ---------------------------------------------------------------------------------------------------------


def _watched(names: Iterable[str], same_codec: Iterable[str]) -> list[str]:
    tokens = {f"tokens.{m}" for m in same_codec}
    return sorted(n for n in names if n == "members" or n.endswith((".slim", ".wide", ".selection")) or n in tokens)


def tables_of(snapshot: Snapshot) -> dict[str, dict[int, Part]]:
    """The parts of a snapshot's tables that have a cell."""
    tables = {**snapshot.tables, **snapshot.aside}
    return {
        name: {int(e.labels["cell"]): e.part for e in entries}
        for name, entries in tables.items()
        if all(set(e.labels) == {"cell"} for e in entries)
    }


def touched(old: Tables, new: Tables) -> list[int]:
    """Cells about which anything differs, so that an object there may be another."""
    differing: set[int] = set()
    for name in {*old, *new}:
        a, b = old.get(name, {}), new.get(name, {})
        differing |= {c for c in {*a, *b} if c not in a or c not in b or a[c].content_id != b[c].content_id}
    if not differing:
        return []
    near = set(rings(WORK_ORDER, np.array(sorted(differing), dtype=np.int64), 1).tolist())
    return sorted(({*old.get("members", {}), *new.get("members", {})} | differing) & near)


def _about(old: Tables, new: Tables, cell: int) -> dict[str, Part]:
    """The parts of a cell and its neighbours on both sides, as `old members 17404`."""
    near = rings(WORK_ORDER, np.array([cell], dtype=np.int64), 1).tolist()
    return {
        f"{side} {name} {c}": parts[c]
        for side, tables in (("old", old), ("new", new))
        for name, parts in tables.items()
        for c in near
        if c in parts
    }


def _sides(parent: Parent, p: Plan) -> tuple[Tables, Tables]:
    assert parent.snapshot is not None
    old = tables_of(parent.snapshot)
    new = {n: {int(e["cell"]): e["part"] for e in t} for n, t in p.tables.items() if all("cell" in e for e in t)}
    ids = parent.snapshot.stats.get("codecs", {})
    payload = [n.removeprefix("payload.") for n in {*old, *new} if n.startswith("payload.")]
    same = [m for m in payload if ids.get(m) == p.codecs.get(m, {}).get("content_id")]
    both = _watched({*old} & {*new} | {"members"}, same)
    return {n: old.get(n, {}) for n in both}, {n: new.get(n, {}) for n in both}


def _tasks(parent: Parent, p: Plan) -> Iterator[Task]:
    if parent.snapshot is None:
        return
    old, new = _sides(parent, p)
    before = set(parent.snapshot.held_back)
    for cell in touched(old, new):
        near = _about(old, new, cell)
        inputs = {label: part.content_id for label, part in near.items()}
        args = {label: part.sha256 for label, part in near.items()}
        settings = {"cell": cell, "held back": cell in p.held_cells, "was held back": cell in before}
        key = task_key("lineage", VERSIONS["lineage"], settings, inputs)
        label = f"lineage cell {cell}"
        yield Task("lineage", label, settings, inputs, {"parts": args}, key, why("lineage", settings, inputs, None))


def todo(ctx: Context, parent: Parent, p: Plan, memory: Memory) -> list[Task]:
    """The cells whose lineage is still to be traced."""
    out = []
    for task in _tasks(parent, p):
        receipt = memory.receipts.get(task.key) or ctx.pile.receipt(task.key)
        if receipt is None:
            out.append(task)
        else:
            memory.receipts[task.key] = receipt
    return out


def entries(ctx: Context, parent: Parent, p: Plan, memory: Memory) -> list[Entry]:
    """The parts of the table `lineage`: what the parent knew, and what became of its objects now."""
    if parent.snapshot is None:
        return []
    known = list(parent.snapshot.aside.get("lineage", ()))
    for task in _tasks(parent, p):
        receipt = memory.receipts[task.key]
        p.receipts[task.label] = receipt
        if receipt.counts["rows"]:
            since = parent.snapshot.number
            known.append(Entry({"cell": task.settings["cell"], "since": since}, receipt.outputs["lineage"]))
    return known


def became(parent: Parent, p: Plan) -> dict[str, int]:
    """How many rows of each kind the lineage since the parent has."""
    out: Counter[str] = Counter()
    for task in _tasks(parent, p):
        out.update({k: n for k, n in p.receipts[task.label].counts.items() if k != "rows"})
    return dict(out)


# --- tracing ----------------------------------------------------------------------------------------------------------


def trace(ctx: Context, task: Task) -> Outcome:
    """What became of the objects of one cell."""
    table = _traced(ctx.pile, dict(task.settings), task.args["parts"], task.inputs)
    counts = Counter({"rows": table.num_rows, **{str(k): v for k, v in Counter(table["what"].to_pylist()).items()}})
    return Outcome({"lineage": ctx.pile.put_table(table)}, counts)


def compare(pile: Pile, old: Snapshot, new: Snapshot, only: Iterable[int] | None = None) -> Iterator[pa.Table]:
    """What became of the old snapshot's objects in the new one, a cell at a time: all of them, or these cells'."""
    a, b = tables_of(old), tables_of(new)
    ids = [s.stats.get("codecs", {}) for s in (old, new)]
    payload = [n.removeprefix("payload.") for n in {*a, *b} if n.startswith("payload.")]
    names = _watched({*a} & {*b} | {"members"}, [m for m in payload if ids[0].get(m) == ids[1].get(m)])
    a, b = {n: a.get(n, {}) for n in names}, {n: b.get(n, {}) for n in names}
    for cell in touched(a, b) if only is None else only:
        near = _about(a, b, cell)
        inputs = {label: part.content_id for label, part in near.items()}
        parts = {label: part.sha256 for label, part in near.items()}
        settings = {"cell": cell, "held back": cell in new.held_back, "was held back": cell in old.held_back}
        yield _traced(pile, settings, parts, inputs)


class _Side:
    """The members about a cell in one of the two snapshots."""

    def __init__(self, tables: list[tuple[int, pa.Table]], cell: int) -> None:
        columns = ["object_id", "survey", "key", "ra", "dec"]
        pieces = [t.select(columns).append_column("home", pa.array(np.full(len(t), c == cell))) for c, t in tables]
        empty = {n: pa.string() for n in columns[:2]} | {"key": pa.int64(), "ra": pa.float64(), "dec": pa.float64()}
        empty_table = pa.table({**{n: pa.array([], k) for n, k in empty.items()}, "home": pa.array([], pa.bool_())})
        table = concat([_plain_strings(t) for t in pieces]) if pieces else empty_table
        self.survey = np.asarray(table.column("survey")).astype(object)
        self.key = int64(table, "key")
        self.place = unit_vectors(float64(table, "ra"), float64(table, "dec"))
        ids = np.asarray(table.column("object_id")).astype(object)
        self.ids, self.object = np.unique(ids.astype(str), return_inverse=True)
        self.home = np.zeros(len(self.ids), bool)
        self.home[self.object] = np.asarray(table.column("home"))
        self.n_members = np.bincount(self.object, minlength=len(self.ids))


def _plain_strings(table: pa.Table) -> pa.Table:
    for i, name in enumerate(table.column_names):
        if name in ("object_id", "survey"):
            table = table.set_column(i, name, table.column(name).cast(pa.string()))
    return table


def _traced(pile: Pile, settings: Mapping[str, Any], parts: Mapping[str, str], inputs: Mapping[str, str]) -> pa.Table:
    cell = settings["cell"]
    of: dict[tuple[str, str], dict[int, str]] = {}
    for label, sha256 in parts.items():
        side, name, c = label.split(" ")
        of.setdefault((side, name), {})[int(c)] = sha256
    old, new = (
        _Side([(c, pile.read_table(x)) for c, x in sorted(of.get((side, "members"), {}).items())], cell)
        for side in ("old", "new")
    )
    at = row_of(new.survey, new.key, old.survey, old.key)
    shared = np.flatnonzero(at >= 0)
    links = np.stack([old.object[at[shared]], new.object[shared]], axis=1)
    n_shared = Counter(map(tuple, links.tolist()))
    gone = np.ones(len(old.key), bool)
    gone[at[shared]] = False
    links = np.unique(
        np.concatenate([links, _by_place(old, new, np.flatnonzero(gone), np.flatnonzero(at < 0))]), axis=0
    )
    of_old = np.bincount(links[:, 0], minlength=len(old.ids))
    of_new = np.bincount(links[:, 1], minlength=len(new.ids))
    changed = np.zeros(len(new.ids), bool)
    changed[new.object[_changed_sources(pile, of, inputs, new)]] = True
    rows: list[tuple[str | None, str | None, str]] = []
    for o, n in links.tolist():
        if not old.home[o]:
            continue
        if of_old[o] > 1 or of_new[n] > 1:
            rows.append((old.ids[o], new.ids[n], "split" if of_old[o] > 1 else "merged"))
        else:
            whole = n_shared[o, n] == old.n_members[o] == new.n_members[n]
            if changed[n] or not whole or old.ids[o] != new.ids[n]:
                rows.append((old.ids[o], new.ids[n], "changed"))
    lost = "held back" if settings["held back"] else "gone"
    rows += [(old.ids[o], None, lost) for o in np.flatnonzero((of_old == 0) & old.home).tolist()]
    came = "returned" if settings["was held back"] else "new"
    rows += [(None, new.ids[n], came) for n in np.flatnonzero((of_new == 0) & new.home).tolist()]
    rows.sort(key=lambda r: (r[0] or "", r[1] or ""))
    return pa.table(
        {
            n: pa.array([None if r[i] is None else str(r[i]) for r in rows], pa.string())
            for i, n in enumerate(SCHEMA.names)
        }
    )


def _by_place(old: _Side, new: _Side, gone: NDArray[np.int64], fresh: NDArray[np.int64]) -> NDArray[np.int64]:
    """Links between objects a source of which is gone and those that have a new one at its place."""
    links: list[NDArray[np.int64]] = []
    reach = 2 * np.sin(np.radians(SAME_ARCSEC / 3600) / 2)
    for survey in np.unique(old.survey[gone].astype(str)).tolist():
        a = gone[old.survey[gone] == survey]
        b = fresh[new.survey[fresh] == survey]
        if not len(b):
            continue
        for one, other, swap in ((a, b, False), (b, a, True)):
            mine, theirs = (new, old) if swap else (old, new)
            distance, at = cKDTree(theirs.place.T[other]).query(mine.place.T[one])
            near = distance <= reach
            pair = np.stack([mine.object[one[near]], theirs.object[other[at[near]]]], axis=1)
            links.append(pair[:, ::-1] if swap else pair)
    return np.concatenate(links) if links else np.zeros((0, 2), np.int64)


def _changed_sources(
    pile: Pile, of: Mapping[tuple[str, str], Mapping[int, str]], inputs: Mapping[str, str], new: _Side
) -> NDArray[np.int64]:
    """Members of new objects whose row, or payload tokens, differ from what they were."""
    out = np.zeros(len(new.key), bool)
    for name in sorted({n for _, n in of if n != "members"}):
        a, b = of.get(("old", name), {}), of.get(("new", name), {})
        differing = {c for c in {*a, *b} if inputs.get(f"old {name} {c}") != inputs.get(f"new {name} {c}")}
        before, now = ([_owned(pile.read_table(x[c]), name) for c in sorted(differing) if c in x] for x in (a, b))
        if not before or not now:
            rows = [_names(t) for t in (*before, *now)]
        else:
            rows = _differing(concat(before), concat(now))
        for owner, key in rows:
            out |= row_of(new.survey, new.key, owner, key) >= 0
    return np.flatnonzero(out)


Names = tuple[NDArray[Any], NDArray[np.int64]]


def _differing(before: pa.Table, now: pa.Table) -> list[Names]:
    """Sources whose row is another, has come, or has gone."""
    if before.schema.names != now.schema.names:
        now, before = (t.select([n for n in now.column_names if n in before.column_names]) for t in (now, before))
    at = row_of(*_names(now), *_names(before))
    left = row_of(*_names(before), *_names(now)) < 0
    return [_names(now.filter(pa.array(~same_rows(now, before, at)))), _names(before.filter(pa.array(left)))]


def _names(table: pa.Table) -> Names:
    return np.asarray(table.column("owner")).astype(object), int64(table, "key")


def _owned(table: pa.Table, name: str) -> pa.Table:
    if "owner" in table.column_names:
        return table
    return table.append_column("owner", pa.array([name.split(".")[0]] * table.num_rows, pa.string()))


# --- asking -----------------------------------------------------------------------------------------------------------


class Gone(ValueError):
    """The object is no longer in the pile."""


def successors(pile: Pile, snapshot: Snapshot, object_id: str) -> list[str]:
    """The objects of the snapshot that an id of an earlier one stands for now: itself, where it is an object still.

    Gone where the object has left the pile, or was never in it.
    """
    tables = [(int(e.labels["since"]), e.part) for e in snapshot.aside.get("lineage", ())]
    by_old: dict[str, dict[int, list[tuple[str | None, str]]]] = {}

    def rows_of(name: str) -> dict[int, list[tuple[str | None, str]]]:
        if name not in by_old:
            steps: dict[int, list[tuple[str | None, str]]] = {}
            for since, part in tables:
                table = pile.read_table(part, filters=pc.field("old_id") == name)
                for new_id, what in zip(table["new_id"].to_pylist(), table["what"].to_pylist(), strict=True):
                    steps.setdefault(since, []).append((new_id, what))
            by_old[name] = steps
        return by_old[name]

    ahead, ends, left = [(0, object_id)], set[str](), ""
    while ahead:
        since, name = ahead.pop()
        later = {n: found for n, found in rows_of(name).items() if n >= since}
        if not later:
            ends.add(name)
            continue
        number = min(later)
        for new_id, what in later[number]:
            if new_id is None:
                left = left or f"{name} is {what} since the snapshot after {number}"
                # but what is gone, or held back, may have come again
                ends.add(name)
            else:
                ahead.append((number + 1, new_id))
    if out := sorted({holder for name in ends if (holder := holder_of(pile, snapshot, name))}):
        return out
    raise Gone(f"{object_id}: {left or 'no snapshot that is known here had an object of this id'}")


def holder_of(pile: Pile, snapshot: Snapshot, uid: str) -> str | None:
    """The object that holds a source now; None where none does."""
    survey, _, key = uid.partition(":")
    if not key.lstrip("-").isdigit():
        return None
    is_it = (pc.field("survey") == survey) & (pc.field("key") == int(key))
    for entry in snapshot.entries("members"):
        table = pile.read_table(entry.part, columns=["object_id"], filters=is_it)
        if table.num_rows:
            return str(table["object_id"][0].as_py())
    return None
