"""Objects with their members and statuses, and the shards of their tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skycairn.catalogs.skybox import holding
from skycairn.catalogs.survey import WORK_ORDER, Survey
from skycairn.match.sky import (
    cells,
    coverage_of_boxes,
    coverage_of_cells,
    coverage_text,
    healpix29,
    rings,
    splits,
)
from skycairn.pile.shards import TokenArray, TokenColumn, shard_schema, shard_table
from skycairn.pile.store import TableFile
from skycairn.pipeline.encode import codec_of
from skycairn.pipeline.task import Context, Outcome, Task, close, concat, float64, int64

OCCUPIED_ORDER = 9
"""Order (6.9 arcmin) at which the footprint of a survey without a map is told from where its sources are."""

COVERAGE_ORDER = 12
BLOCK_ROWS = 65_536


def objects(ctx: Context, task: Task) -> Outcome:
    """One row an object: members, split, stratum, blends, and a status per survey and modality."""
    members = ctx.pile.read_table(task.args["members"])
    surveys = [ctx.survey(c.name) for c in ctx.recipe.surveys]
    anchors = members.filter(members.column("anchor")).sort_by([("healpix29", "ascending"), ("object_id", "ascending")])
    ids = np.asarray(anchors.column("object_id"))
    place = {object_id: i for i, object_id in enumerate(ids.tolist())}
    split = ctx.recipe.split
    columns: dict[str, Any] = {
        name: anchors.column(name) for name in ("object_id", "ra", "dec", "healpix29", "blend_group")
    }
    held: dict[str, NDArray[np.bool_]] = {}
    rows_of: dict[str, tuple[pa.Table, NDArray[np.int64]]] = {}
    for s in surveys:
        of = members.filter(pc.equal(members.column("survey"), s.name))
        rows = np.array([place[o] for o in of.column("object_id").to_pylist()], dtype=np.int64)
        held[s.name] = _scatter(np.ones(len(rows), bool), rows, len(ids), False)
        rows_of[s.name] = (of, rows)
    member_rows = np.array([place[o] for o in members.column("object_id").to_pylist()], dtype=np.int64)
    where = splits(
        int64(members, "healpix29"),
        member_rows,
        len(ids),
        split.salt,
        split.by_name(),
        reach_arcsec=task.settings["split"]["reach_arcsec"],
    )
    columns["split"] = pa.array(where.tolist(), pa.string()).dictionary_encode()
    columns["stratum"] = pa.array(_strata(held, len(ids))).dictionary_encode()
    for s in surveys:
        of, rows = rows_of[s.name]
        columns[f"key.{s.name}"] = _scatter_arrow(int64(of, "key"), rows, len(ids), pa.int64())
        columns[f"cell.{s.name}"] = _scatter_arrow(
            cells(int64(of, "healpix29"), WORK_ORDER), rows, len(ids), pa.int32()
        )
        separation = int64(of, "separation_uas") * 1e-6
        columns[f"separation_arcsec.{s.name}"] = _scatter_arrow(separation, rows, len(ids), pa.float64())
        columns[f"blend_n.{s.name}"] = anchors.column(f"blend_n.{s.name}")
    columns["delta_mag"] = _delta_mag(ctx, task, surveys, rows_of, len(ids))
    if "targets" in task.args["near"]:
        columns |= _labels(ctx, task, *rows_of["targets"], len(ids))
    counts = Counter({"objects": len(ids), "members": members.num_rows})
    counts.update({f"split:{k}": v for k, v in Counter(columns["split"].to_pylist()).items()})
    counts.update({f"stratum:{k}": v for k, v in Counter(columns["stratum"].to_pylist()).items()})
    for s in surveys:
        for name, status in _statuses(ctx, task, s, rows_of, anchors).items():
            columns[f"status.{name}"] = pa.array(status, pa.string()).dictionary_encode()
            counts.update({f"status:{name}:{k}": v for k, v in Counter(status.tolist()).items()})
            by_status = {k: v for k, v in counts.items() if k.startswith(f"status:{name}:")}
            close({"objects": len(ids), **by_status}, "objects", f"status:{name}:", where=task.label)
    return Outcome({"objects": ctx.pile.put_table(pa.table(columns))}, counts)


def _scatter(values: NDArray[Any], rows: NDArray[np.int64], n: int, fill: Any) -> NDArray[Any]:
    out = np.full(n, fill, dtype=values.dtype)
    out[rows] = values
    return out


def _scatter_arrow(values: NDArray[Any], rows: NDArray[np.int64], n: int, kind: pa.DataType) -> pa.Array:
    there = np.zeros(n, bool)
    there[rows] = True
    return pa.array(_scatter(values, rows, n, 0), mask=~there).cast(kind)


def _strata(held: Mapping[str, NDArray[np.bool_]], n: int) -> list[str]:
    """Names of the surveys that an object has, joined by `+`, in the order of anchors."""
    names = list(held)
    code = np.zeros(n, np.int64)
    for bit, name in enumerate(names):
        code |= held[name].astype(np.int64) << bit
    spelled = {int(c): "+".join(x for b, x in enumerate(names) if c >> b & 1) for c in np.unique(code)}
    return [spelled[c] for c in code.tolist()]


def _near(ctx: Context, task: Task, survey: str, table: str, columns: list[str] | None = None) -> pa.Table | None:
    """One table of a survey in this cell and its neighbours."""
    parts = [n[table] for n in task.args["near"].get(survey, {}).values() if table in n]
    return concat([ctx.pile.read_table(part, columns=columns) for part in parts]) if parts else None


def _lookup(table_keys: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row of each key in the table; -1 where it is not there."""
    order = np.argsort(table_keys, kind="stable")
    at = np.searchsorted(table_keys, keys, sorter=order)
    found = order[np.minimum(at, len(order) - 1)] if len(order) else np.full(len(keys), -1)
    return np.where(len(order) > 0, np.where(table_keys[found] == keys, found, -1), -1) if len(order) else found


def _delta_mag(
    ctx: Context,
    task: Task,
    surveys: list[Survey],
    rows_of: Mapping[str, tuple[pa.Table, NDArray[np.int64]]],
    n: int,
) -> pa.Array:
    """Largest difference in magnitude between members in a band that two surveys share; null without one."""
    flux: dict[str, list[NDArray[np.float64]]] = {}
    for s in surveys:
        wide = _near(ctx, task, s.name, "wide", ["key", *s.bands.values()]) if s.bands else None
        if wide is None:
            continue
        of, rows = rows_of[s.name]
        at = _lookup(int64(wide, "key"), int64(of, "key"))
        for band, column in s.bands.items():
            values = float64(wide, column)[at]
            values[at < 0] = np.nan
            flux.setdefault(band, []).append(_scatter(values, rows, n, np.nan))
    worst = np.full(n, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        for measured in flux.values():
            mags = np.array([np.where(f > 0, -2.5 * np.log10(np.where(f > 0, f, 1)), np.nan) for f in measured])
            several = np.isfinite(mags).sum(axis=0) > 1
            spread = np.where(several, np.fmax.reduce(mags) - np.fmin.reduce(mags), np.nan)
            worst = np.fmax(worst, spread)
    # rounded, since the last bit of a logarithm hangs on the processor
    return pa.array(np.round(worst, 6), mask=~np.isfinite(worst))


def _labels(ctx: Context, task: Task, of: pa.Table, rows: NDArray[np.int64], n: int) -> dict[str, pa.Array]:
    """The user's own id and labels of the targets."""
    wide = _near(ctx, task, "targets", "wide")
    out = {}
    for name in ("id", "labels"):
        values = np.full(n, None, dtype=object)
        if wide is not None and len(rows):
            at = _lookup(int64(wide, "key"), int64(of, "key"))
            values[rows] = np.array(wide.column(name).to_pylist(), dtype=object)[at]
        out[f"targets.{name}"] = pa.array(values, pa.string())
    return out


def _statuses(
    ctx: Context,
    task: Task,
    s: Survey,
    rows_of: Mapping[str, tuple[pa.Table, NDArray[np.int64]]],
    anchors: pa.Table,
) -> dict[str, NDArray[Any]]:
    """Status of every object in one survey, by modality, and under the survey's own name for the source itself."""
    of, rows = rows_of[s.name]
    keys = int64(of, "key")
    covered = _covered(ctx, task, s, float64(anchors, "ra"), float64(anchors, "dec"))
    absent = "not detected" if ctx.recipe.match.on == "valid" else "no selected source"
    default = np.where(covered, absent, "outside footprint").astype(object)
    selection = _near(ctx, task, s.name, "selection")
    cut = np.full(len(keys), None, dtype=object)
    if selection is not None and len(keys):
        cut = np.array(selection.column("failed_cut").to_pylist(), dtype=object)[_lookup(int64(selection, "key"), keys)]
    unselected = np.array([f"not selected: {c}" if c else "present" for c in cut], dtype=object)
    survey_status = default.copy()
    survey_status[rows] = unselected
    out = {s.name: survey_status}
    forced_of, forced_rows = rows_of.get("targets", (None, None))
    for m in s.modalities:
        status = survey_status.copy()
        tokens = [
            ctx.pile.read_table(near["tokens"][m.name], columns=["owner", "key", "status"])
            for near in task.args["near"][s.name].values()
            if m.name in near["tokens"]
        ]
        # a selected source without a row of tokens lies in no payload file
        status[rows] = np.where(unselected == "present", "not measured", unselected)
        if tokens:
            table = concat(tokens)
            told = np.array([x or "present" for x in table.column("status").to_pylist()], dtype=object)
            owner = np.asarray(table.column("owner"))
            for name, some_keys, some_rows in (
                (s.name, keys, rows),
                ("targets", None if forced_of is None else int64(forced_of, "key"), forced_rows),
            ):
                if some_keys is None or some_rows is None or (name == "targets" and s.name == "targets"):
                    continue
                mine = np.flatnonzero(owner == name)
                at = _lookup(int64(table, "key")[mine], some_keys)
                status[some_rows[at >= 0]] = told[mine[at[at >= 0]]]
        out[m.name] = status
    return out


def _covered(
    ctx: Context, task: Task, s: Survey, ra: NDArray[np.float64], dec: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Whether the survey looked at each position."""
    if s.footprint == "all-sky":
        return np.ones(len(ra), bool)
    if s.footprint == "exact":
        boxes = ctx.boxes(s, task.args["reference"][s.name], task.args["known"][s.name])
        return np.asarray(holding(boxes, ra, dec) >= 0)
    slim = _near(ctx, task, s.name, "slim", ["healpix29"])
    if slim is None:
        return np.zeros(len(ra), bool)
    occupied = np.unique(cells(int64(slim, "healpix29"), OCCUPIED_ORDER))
    return np.isin(cells(healpix29(ra, dec), OCCUPIED_ORDER), occupied)


def coverage(ctx: Context, task: Task) -> Outcome:
    """Where a survey looked, as the ASCII form of the IVOA's MOC, within the work cells of the pile."""
    s = ctx.survey(task.args["survey"])
    near = rings(WORK_ORDER, np.array(sorted(int(c) for c in task.args["slim"]), dtype=np.int64), 1)
    if s.footprint == "exact":
        boxes = ctx.boxes(s, task.args["reference"], task.args["known"])
        ra = np.where(boxes[:, 0] <= boxes[:, 1], boxes[:, :2].mean(axis=1), 0.0)
        centre = cells(healpix29(ra, boxes[:, 2:].mean(axis=1)), WORK_ORDER)
        moc = coverage_of_boxes(boxes[np.isin(centre, near)].tolist(), COVERAGE_ORDER)
    elif s.footprint == "all-sky":
        moc = coverage_of_cells(0, np.arange(12))
    else:
        slim = [ctx.pile.read_table(part, columns=["healpix29"]) for part in task.args["slim"].values()]
        moc = coverage_of_cells(OCCUPIED_ORDER, cells(int64(concat(slim), "healpix29"), OCCUPIED_ORDER))
    table = pa.table({"survey": [s.name], "footprint": [s.footprint], "moc": [coverage_text(moc)]})
    return Outcome({"coverage": ctx.pile.put_table(table)}, {"cells": len(task.args["slim"])})


def shard(ctx: Context, task: Task) -> Outcome:
    """The shards of one coarse cell, one for each split and stratum: objects, statuses, tokens."""
    columns = _token_columns(ctx, task)
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        writers: dict[str, TableFile] = {}
        schemas: dict[str, pa.Schema] = {}
        for table in _blocks(ctx, task.args["objects"]):
            status = {c.modality: table.column(c.status).cast(pa.string()) for c in columns}
            plain = table.drop_columns([n for n in table.column_names if n.startswith("status.") and "." in n[7:]])
            tokens = {c.modality: _tokens(ctx, task, table, c) for c in columns}
            counts["objects"] += table.num_rows
            counts.update({f"present:{m}": int(t.present.sum()) for m, t in tokens.items()})
            name_of = pc.binary_join_element_wise(
                table.column("split").cast(pa.string()), table.column("stratum").cast(pa.string()), "/"
            )
            for name in sorted(set(name_of.to_pylist())):
                split, stratum = name.split("/")
                if name not in writers:
                    schemas[name] = shard_schema(plain.schema, columns, split, stratum)
                    writers[name] = stack.enter_context(
                        ctx.pile.table_writer(schemas[name], task.settings["row_group_rows"])
                    )
                rows = np.flatnonzero(np.asarray(name_of) == name)
                some = shard_table(
                    plain.take(pa.array(rows)),
                    {m: TokenArray(t.values[rows], t.present[rows], t.length[rows]) for m, t in tokens.items()},
                    {m: s.take(pa.array(rows)).combine_chunks() for m, s in status.items()},
                    schemas[name],
                )
                writers[name].write(some)
                counts[f"objects:{name}"] += some.num_rows
    close(counts, "objects", "objects:", where=task.label)
    return Outcome({name: writer.part for name, writer in writers.items()}, counts)


def _blocks(ctx: Context, parts: list[str]) -> Iterator[pa.Table]:
    """Tables of objects in blocks whose tokens fit into memory."""
    for part in parts:
        table = ctx.pile.read_table(part)
        for start in range(0, table.num_rows, BLOCK_ROWS):
            yield table.slice(start, BLOCK_ROWS).combine_chunks()


def _token_columns(ctx: Context, task: Task) -> list[TokenColumn]:
    """What each modality's tokens are, from its codec; a modality that no codec could be fitted for is left out."""
    out = []
    for choice in ctx.recipe.surveys:
        for m in ctx.survey(choice.name).modalities:
            files = task.args["codecs"].get(m.name)
            if not files:
                continue
            codec = codec_of(ctx, files)
            layout = codec.layout
            out.append(
                TokenColumn(
                    modality=m.name,
                    codec_id=codec.content_id,
                    vocabulary=codec.vocabulary,
                    n_tokens=codec.n_tokens,
                    layout=layout.kind,
                    shape=tuple(layout.shape),
                    ordered=codec.ordered,
                    token_key=m.token_key,
                )
            )
    return out


def _tokens(ctx: Context, task: Task, table: pa.Table, column: TokenColumn) -> TokenArray:
    """Tokens of each object, from its own source of the survey, else from the forced position of its target."""
    found = task.args["tokens"].get(column.modality, {"survey": "", "cells": {}})
    n = table.num_rows
    values = np.zeros((n, column.n_tokens), column.dtype)
    present = np.zeros(n, bool)
    length = np.zeros(n, np.int64)
    survey = found["survey"]
    for name in ("targets", survey):
        if f"key.{name}" not in table.column_names:
            continue
        keys = table.column(f"key.{name}").combine_chunks()
        home = table.column(f"cell.{name}").combine_chunks()
        for cell in sorted(c for c in pc.unique(home).to_pylist() if c is not None):
            if str(cell) not in found["cells"]:
                continue
            tokens = ctx.pile.read_table(found["cells"][str(cell)])
            tokens = tokens.filter(
                pc.and_(pc.equal(tokens.column("owner"), name), pc.is_valid(tokens.column("tokens")))
            )
            rows = np.flatnonzero(np.asarray(pc.fill_null(pc.equal(home, cell), False)))
            at = _lookup(int64(tokens, "key"), np.asarray(keys.take(pa.array(rows))))
            lists = tokens.column("tokens").combine_chunks()
            flat, count = np.asarray(pc.list_flatten(lists)), np.asarray(pc.list_value_length(lists)).astype(np.int64)
            if column.layout == "sequence":
                ragged, flat = flat, np.zeros((len(count), column.n_tokens), column.dtype)
                flat[np.arange(column.n_tokens) < count[:, None]] = ragged
            rows, at = rows[at >= 0], at[at >= 0]
            values[rows] = flat.reshape(-1, column.n_tokens)[at]
            present[rows], length[rows] = True, count[at]
    return TokenArray(values, present, length)
