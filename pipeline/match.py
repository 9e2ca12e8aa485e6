"""The match of one work cell: its objects, the candidate pairs behind them, and the ids that they do not bear out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skycairn.catalogs.survey import WORK_ORDER
from skycairn.match import idlinks
from skycairn.match.posterior import densities
from skycairn.match.sky import FINE_ORDER, cells
from skycairn.pipeline.grouping import Groups, Policy, is_fast, match_cell, parts_of, radius_of
from skycairn.pipeline.task import Context, Outcome, Task, concat, float64, int64

MOST_ROWS = 1_000_000
"""Sources of all surveys that are matched at once."""


def match(ctx: Context, task: Task) -> Outcome:
    """Objects whose anchor lies in the cell and in the region, with their members; pairs of the cell's sources."""
    ranks = task.settings["ranks"]
    radii = {tuple(pair.split("-")): radius for pair, radius in task.settings["radii"].items()}
    seen, counts = _with_links(ctx, task, _sources(ctx, task))
    fast = {name: table.filter(pa.array(is_fast(table))) for name, table in seen.items()}
    slow = {name: table.filter(pa.array(~is_fast(table))) for name, table in seen.items()}
    fine = {name: cells(int64(table, "healpix29"), FINE_ORDER) for name, table in slow.items()}

    def load(wanted: NDArray[np.int64]) -> dict[str, pa.Table]:
        return {name: table.filter(pa.array(np.isin(fine[name], wanted))) for name, table in slow.items()}

    policy = Policy(
        task.settings["policy"],
        {(pair.split("-")[0], pair.split("-")[1]): share for pair, share in task.settings["found"].items()},
        task.settings["outliers"],
        {name: densities(int64(table, "healpix29")) for name, table in seen.items()},
    )
    found = _by_parts(
        task.args["cell"], load, fast, ranks, radii, policy, [int64(t, "healpix29") for t in seen.values()]
    )
    links = (seen, found.pairs, ranks, lambda a, b: radius_of(radii, a, b), task.args["cell"])
    unmet = idlinks.disagreements(*links, found.carried)
    if found.carried.num_rows:
        # few cells have any; what is far and of one object all the same is no disagreement, and is counted
        counts["links:carried by a mover"] = idlinks.disagreements(*links).num_rows - unmet.num_rows
    linked = found.pairs.filter(found.pairs.column("link"))
    counts["links:accepted"] = int(pc.sum(linked.column("accepted")).as_py() or 0)
    counts.update({f"links:{c['values']}": c["counts"] for c in unmet.column("why").value_counts().to_pylist()})
    members = _placed(found.members, seen)
    anchors = members.filter(members.column("anchor"))
    inside = ctx.recipe.region.contains(float64(anchors, "ra"), float64(anchors, "dec"))
    kept = anchors.filter(pa.array(inside)).column("object_id").combine_chunks()
    in_region = pc.is_in(members.column("object_id"), kept)
    counts.update({"objects": len(kept), "pairs": found.pairs.num_rows})
    counts["conflicts"] = int(pc.sum(found.pairs.column("conflict")).as_py() or 0)
    counts["edges"] = int(pc.sum(found.pairs.column("mutual")).as_py() or 0)
    counts["outside region"] = anchors.num_rows - len(kept)
    for kind, table in (("members", members.filter(in_region)), ("outside", members.filter(pc.invert(in_region)))):
        counts.update({f"{kind}:{c['values']}": c["counts"] for c in table.column("survey").value_counts().to_pylist()})
    put = ctx.pile.put_table
    outputs = {"members": put(members.filter(in_region)), "pairs": put(found.pairs), "disagreements": put(unmet)}
    return Outcome(outputs, counts)


def _by_parts(
    cell: int,
    load: Callable[[NDArray[np.int64]], dict[str, pa.Table]],
    fast: dict[str, pa.Table],
    ranks: dict[str, int],
    radii: dict[tuple[str, str], float],
    policy: Policy,
    healpix29: list[NDArray[np.int64]],
) -> Groups:
    """The whole cell's, a crowded one matched part by part; sorted as one that is not."""
    parts = parts_of(cell, healpix29, MOST_ROWS)
    found = [match_cell(cell, load, fast, ranks, radii, policy=policy, part=part) for part in parts]
    if len(found) == 1:
        return found[0]
    pairs = pa.concat_tables([one.pairs for one in found]).combine_chunks()
    columns: list[NDArray[Any]] = []
    for side in "ba":
        # dictionaries name the surveys by rank
        survey = pairs.column(f"survey_{side}").combine_chunks().indices
        columns += [int64(pairs, f"key_{side}"), survey.to_numpy()]
    pairs = pairs.take(pa.array(np.lexsort(columns)))
    carried = pa.concat_tables([one.carried for one in found])
    return Groups(pa.concat_tables([one.members for one in found]), pairs, carried=carried)


def _sources(ctx: Context, task: Task) -> dict[str, pa.Table]:
    """The slim tables of the cell and its neighbours, by survey; only selected sources where the recipe says so."""
    tables = defaultdict(list)
    for name, part in sorted(task.args["parts"].items()):
        survey, cell, *rest = name.split(" ")
        if rest:
            continue
        table = ctx.pile.read_table(part)
        if task.settings["on"] == "selected":
            selection = ctx.pile.read_table(task.args["parts"][f"{survey} {cell} selection"])
            table = table.filter(pc.is_null(selection.column("failed_cut")))
        tables[survey].append(table)
    return {
        survey: with_error(concat(found), task.settings["errors"].get(survey, 0.0)) for survey, found in tables.items()
    }


def with_error(table: pa.Table, arcsec: float) -> pa.Table:
    """The sources with this error added in quadrature to their own on both axes, or alone where they have none."""
    for name in ("ra_error", "dec_error") if arcsec else ():
        own = np.nan_to_num(float64(table, name))
        at = table.column_names.index(name)
        table = table.set_column(at, table.field(name), pa.array(np.hypot(own, arcsec).astype(np.float32)))
    return table


def _with_links(ctx: Context, task: Task, tables: dict[str, pa.Table]) -> tuple[dict[str, pa.Table], Counter[str]]:
    """The tables with the ids that mean something here; how many of the cell's name a row of another release."""
    out, counts = {}, Counter[str]()
    for name, table in tables.items():
        home = cells(int64(table, "healpix29"), WORK_ORDER) == task.args["cell"]
        for column in [c for c in table.column_names if c.startswith(idlinks.PREFIX)]:
            other = column.removeprefix(idlinks.PREFIX)
            key, names = idlinks.named(table, other)
            at = table.column_names.index(column)
            table = table.remove_column(at)
            if other in task.settings["links"].get(name, {}):
                issued = names & ctx.survey(other).issued(key)
                counts["links:another release"] += int((names & ~issued & home).sum())
                table = table.append_column(column, pa.array(key, mask=~issued))
        out[name] = table
    return out, counts


def _placed(members: pa.Table, seen: dict[str, pa.Table]) -> pa.Table:
    """Members with their object's id, their own position, and whether they are its anchor."""
    pieces = []
    survey = members.column("survey").cast(pa.string())
    for name, table in seen.items():
        of = members.filter(pc.equal(survey, name))
        order = np.argsort(int64(table, "key"))
        at = order[np.searchsorted(int64(table, "key"), int64(of, "key"), sorter=order)]
        own = table.select(["ra", "dec", "healpix29"]).take(pa.array(at))
        anchor_survey = of.column("anchor_survey").cast(pa.string())
        anchor_key = of.column("anchor_key")
        n_of_blend = [n for n in of.column_names if n.startswith("n_")]
        piece = {
            "object_id": pc.binary_join_element_wise(anchor_survey, anchor_key.cast(pa.string()), ":"),
            "survey": pa.array([name] * of.num_rows, pa.string()),
            "key": of.column("key"),
            "anchor": pc.and_(pc.equal(anchor_survey, name), pc.equal(anchor_key, of.column("key"))),
            "ra": own.column("ra"),
            "dec": own.column("dec"),
            "healpix29": own.column("healpix29"),
            "separation_uas": of.column("separation_uas"),
            "blend_group": pc.binary_join_element_wise(
                of.column("blend_survey").cast(pa.string()), of.column("blend_key").cast(pa.string()), ":"
            ),
        }
        piece |= {f"blend_n.{n.removeprefix('n_')}": of.column(n) for n in n_of_blend}
        pieces.append(pa.table(piece))
    return concat(pieces).sort_by([("object_id", "ascending"), ("survey", "ascending"), ("key", "ascending")])
