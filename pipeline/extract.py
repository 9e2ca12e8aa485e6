"""Pixels and spectra of the wanted sources, cut out of the survey's own files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skycairn.pipeline.reuse import unchanged
from skycairn.pipeline.task import Context, Outcome, Task, concat, file_as_json, file_from_json, int64

STATUS = {"file_absent": "file absent", "not_measured": "not measured"}
"""A survey's words for what it could not cut out, in the pile's words."""
NO_CODEC = "no codec"
"""Status of a value that is there, and has no tokens since no codec could be fitted; in task keys, where a codec's id
would stand."""


def want(ctx: Context, task: Task) -> Outcome:
    """The sources of one survey and cell that get tokens, and the payload files that hold their measurements.

    Wanted are the selected sources, and whatever a user's target needs: the members of its object, and a forced
    position (`owner` = targets) where its object has no source of this survey. Where each source costs a question
    (`Survey.cutouts`), no selected source is wanted that is in none of the region's objects.
    """
    survey = ctx.survey(task.args["survey"])
    if task.args["wide"]:
        sources = ctx.pile.read_table(task.args["wide"])
        selection = ctx.pile.read_table(task.args["selection"])
        kept = pc.is_null(selection.column("failed_cut")).to_numpy()
        if survey.cutouts:
            kept = kept & in_objects(ctx, survey.name, sources, task.args["members"])
        targeted = np.zeros(len(kept), bool)
        if task.args["members"]:
            members = concat([ctx.pile.read_table(m) for m in task.args["members"]])
            targeted = np.isin(int64(sources, "key"), _keys_beside_targets(members, survey.name))
        table = (
            sources.drop_columns("healpix29")
            .append_column("targeted", pa.array(targeted))
            .filter(pa.array(kept | targeted))
        )
        table = table.add_column(0, "owner", pa.array([survey.name] * table.num_rows, pa.string()))
    else:
        table = None
    payload = [m for m in survey.modalities if m.payload]
    if payload and task.args["members"]:
        forced = _forced(ctx, task, survey.name)
        table = forced if table is None else pa.concat_tables([table, forced], promote_options="permissive")
    if table is None:
        table = pa.table({"owner": pa.array([], pa.string()), "key": pa.array([], pa.int64())})
        payload = []
    table = table.combine_chunks()
    reference = {role: ctx.archive(survey.name).local(path) for role, path in task.args["reference"].items()}
    groups: dict[str, list[dict[str, Any]]] = {}
    for modality in payload:
        number = np.full(table.num_rows, -1, np.int32)
        with ctx.archive(survey.name).unchanged(task.args["known"]):
            found = survey.payload_groups(table, modality.name, reference)
        found = sorted(found, key=lambda g: sorted(f.path for f in g.files.values()))
        for i, group in enumerate(found):
            number[group.rows] = i
        groups[modality.name] = [{r: file_as_json(f) for r, f in sorted(g.files.items())} for g in found]
        table = table.append_column(f"group.{modality.name}", pa.array(number))
    counts = {"wanted": table.num_rows, "forced": int((np.asarray(table.column("owner")) == "targets").sum())}
    return Outcome({"wanted": ctx.pile.put_table(table)}, counts, {"groups": groups})


def in_objects(ctx: Context, survey: str, sources: pa.Table, members: Sequence[str]) -> NDArray[np.bool_]:
    """Which of a survey's sources (column `key`) are in an object, by the tables of members."""
    found = [ctx.pile.read_table(m, columns=["survey", "key"]) for m in members]
    keys = [int64(t.filter(pc.equal(t.column("survey"), survey)), "key") for t in found]
    return np.isin(int64(sources, "key"), np.concatenate([np.empty(0, np.int64), *keys]))


def _keys_beside_targets(members: pa.Table, survey: str) -> Any:
    """Keys of this survey in objects that hold a user's target."""
    targeted = members.filter(pc.equal(members.column("survey"), "targets")).column("object_id")
    beside = members.filter(
        pc.and_(pc.equal(members.column("survey"), survey), pc.is_in(members.column("object_id"), targeted))
    )
    return int64(beside, "key")


def _forced(ctx: Context, task: Task, survey: str) -> pa.Table:
    """Targets of this cell whose object has no source of this survey."""
    members = concat([ctx.pile.read_table(m) for m in task.args["members"]])
    held = members.filter(pc.equal(members.column("survey"), survey)).column("object_id")
    lonely = members.filter(
        pc.and_(pc.equal(members.column("survey"), "targets"), pc.invert(pc.is_in(members.column("object_id"), held)))
    )
    if not task.args["targets_slim"]:
        keys = pa.array([], pa.int64())
        return pa.table(
            {
                "owner": pa.array([], pa.string()),
                "key": keys,
                "ra": keys.cast(pa.float64()),
                "dec": keys.cast(pa.float64()),
            }
        )
    targets = ctx.pile.read_table(task.args["targets_slim"], columns=["key", "ra", "dec"])
    targets = targets.filter(pc.is_in(targets.column("key"), lonely.column("key").combine_chunks()))
    own = ctx.survey(survey).columns
    out = targets.add_column(0, "owner", pa.array(["targets"] * targets.num_rows, pa.string()))
    out = out.append_column("targeted", pa.array(np.ones(targets.num_rows, bool)))
    for column in own:
        if column.name not in out.column_names:
            out = out.append_column(column.name, pa.nulls(targets.num_rows, column.type))
    return out


Groups = Sequence[Mapping[str, Sequence[Any]]]
"""Of each group, by role: a file as `file_as_json` gives it."""


def payload_files(ctx: Context, survey: str, groups: Groups) -> list[list[Any]]:
    """Path, published digest (None: none) and state of each file of these groups that is there, by path."""
    archive = ctx.archive(survey)
    files = {v[0]: file_from_json(list(v)) for group in groups for v in group.values()}
    return [
        [path, archive.listed(file), state]
        for path, file in sorted(files.items())
        if archive.failed(path) is None and (state := archive.state(path)) is not None
    ]


def file_states(ctx: Context, survey: str, groups: Groups, fetched: Mapping[str, Any]) -> list[dict[str, list[Any]]]:
    """For each file of each group: path, state, SHA-256. State: there, damaged, lost, unpublished.

    The archive's list is the truth: a file in it that is not there is *lost*; a file that is neither listed nor there
    was never published. `fetched` are the notes of `fetch payload`.
    """
    archive = ctx.archive(survey)
    out = []
    for group in groups:
        states: dict[str, list[Any]] = {}
        for role, values in group.items():
            file = file_from_json(list(values))
            if file.path in fetched["sha256"]:
                states[role] = [file.path, "there", fetched["sha256"][file.path]]
            elif file.path in fetched["damaged"] or archive.failed(file.path) is not None:
                states[role] = [file.path, "damaged", None]
            else:
                listed = archive.listed(file) is not None
                no_list = file.checksum_list is not None and archive.names(file.checksum_list) is None
                states[role] = [file.path, "lost" if listed or no_list else "unpublished", None]
        out.append(states)
    return out


def extract(ctx: Context, task: Task) -> Outcome:
    """The kept payload of one modality in one cell: owner, key, status, arrays."""
    counts: Counter[str] = Counter()
    notes = {"files": task.args["files"]}
    chunks = payload_chunks(ctx, task, counts)
    first = next(chunks, None)
    if first is None:
        return Outcome({}, counts, notes)
    with ctx.pile.table_writer(first.schema, row_group_rows=16) as writer:
        writer.write(first)
        for chunk in chunks:
            writer.write(chunk)
    return Outcome({"payload": writer.part}, counts, notes)


def payload_chunks(
    ctx: Context, task: Task, counts: Counter[str], wanted: pa.Table | None = None
) -> Iterator[pa.Table]:
    """Payload of the wanted sources (the task's, unless given), a group of files at a time: owner, key, status, arrays.

    Where the task names a `keep` table, only its first sources, as many as its settings say, those of `keep held` too,
    and those that a target needs. Where it names an `earlier` payload, sources that are what they were are taken from
    there.
    """
    survey = ctx.survey(task.args["survey"])
    archive = ctx.archive(task.args["survey"])
    modality = task.settings["modality"]
    if wanted is None:
        wanted = ctx.pile.read_table(task.args["wanted"])
    if task.args.get("keep"):
        keep = pa.concat_arrays(
            [
                ctx.pile.read_table(task.args[name], columns=["key"])
                .column("key")
                .combine_chunks()[: task.settings[name]]
                for name in ("keep", "keep held")
                if name in task.args
            ]
        )
        sampled = pc.and_(pc.is_in(wanted.column("key"), keep), pc.equal(wanted.column("owner"), survey.name))
        wanted = wanted.filter(pc.or_(sampled, wanted.column("targeted"))).combine_chunks()
    column = f"group.{modality}"
    number = np.asarray(wanted.column(column))
    earlier = unchanged(ctx.pile, wanted, task.args.get("earlier"), "payload", (column, task.args["files"]))
    kept = earlier.chosen if earlier else np.full(wanted.num_rows, -1)
    for i, states in enumerate(task.args["files"]):
        rows = np.flatnonzero(number == i)
        if not len(rows):
            continue
        lost = frozenset(role for role, (_, state, _) in states.items() if state in ("lost", "damaged"))
        there = {role: path for role, (path, state, _) in states.items() if state == "there"}
        counts["files"] += len(there)
        counts["files lost"] += len(lost)
        counts["files damaged"] += sum(state == "damaged" for _, state, _ in states.values())
        needed = {path: task.args["known"][path] for path in there.values()} if (kept[rows] < 0).any() else {}
        files = {role: archive.local(path) for role, path in there.items()} if needed else {}
        for a in range(0, len(rows), 256):
            some = rows[a : a + 256]
            fresh, old = some[kept[some] < 0], some[kept[some] >= 0]
            pieces = []
            if len(fresh):
                asked = wanted.take(pa.array(fresh)).combine_chunks()
                with archive.unchanged(needed):
                    made = survey.extract(modality, asked, files, lost)
                if made.column("key").to_pylist() != asked.column("key").to_pylist():
                    raise ValueError(f"{survey.name}: extract gave other rows than it was asked for ({task.label})")
                pieces.append(made.add_column(0, "owner", asked.column("owner")))
            if len(old) and earlier:
                taken = earlier.take(kept[old])
                pieces.append(taken.cast(pieces[0].schema) if pieces else taken)
            order = np.argsort(np.concatenate([fresh, old]), kind="stable")
            table = concat(pieces).take(pa.array(order)).combine_chunks()
            counts["sources"] += table.num_rows
            counts["extracted"] += len(fresh)
            status = table.column("status").combine_chunks()
            counts.update({STATUS.get(str(s), str(s)): n for s, n in Counter(status.to_pylist()).items() if s})
            yield table
