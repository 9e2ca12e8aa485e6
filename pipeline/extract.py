"""Pixels and spectra of the wanted sources, cut out of the survey's own files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from skycairn.pipeline.fetch import ChecksumMismatch, FetchError, verify
from skycairn.pipeline.task import Context, Outcome, Task, concat, file_as_json, file_from_json, int64

STATUS = {"file_absent": "file absent", "not_measured": "not measured"}
"""A survey's words for what it could not cut out, in the pile's words."""


class DamagedFiles(FetchError):
    """Payload files whose digests are not the published ones; `files`: reason by path."""

    def __init__(self, files: Mapping[str, str]) -> None:
        super().__init__("; ".join(files.values()))
        self.files = dict(files)


def want(ctx: Context, task: Task) -> Outcome:
    """The sources of one survey and cell that get tokens, and the payload files that hold their measurements.

    Wanted are the selected sources, and whatever a user's target needs: the members of its object, and a forced
    position (`owner` = targets) where its object has no source of this survey.
    """
    survey = ctx.survey(task.args["survey"])
    if task.args["wide"]:
        sources = ctx.pile.read_table(task.args["wide"])
        selection = ctx.pile.read_table(task.args["selection"])
        kept = pc.is_null(selection.column("failed_cut")).to_numpy()
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
        found = survey.payload_groups(table, modality.name, reference)
        found = sorted(found, key=lambda g: sorted(f.path for f in g.files.values()))
        for i, group in enumerate(found):
            number[group.rows] = i
        groups[modality.name] = [{r: file_as_json(f) for r, f in sorted(g.files.items())} for g in found]
        table = table.append_column(f"group.{modality.name}", pa.array(number))
    counts = {"wanted": table.num_rows, "forced": int((np.asarray(table.column("owner")) == "targets").sum())}
    return Outcome({"wanted": ctx.pile.put_table(table)}, counts, {"groups": groups})


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


def file_states(
    ctx: Context, survey: str, groups: Sequence[Mapping[str, Any]], damaged: Mapping[str, str]
) -> list[dict[str, list[Any]]]:
    """For each file of each group: path, state, digest. State: listed, unlisted, damaged, lost, unpublished.

    The archive's list is the truth: a file in it that is not there is *lost*; a file that is neither listed nor there
    was never published. `damaged` holds, as `survey/path`, those that this build found to be other than their digest.
    """
    archive = ctx.archive(survey)
    out = []
    for group in groups:
        states: dict[str, list[Any]] = {}
        for role, values in group.items():
            file = file_from_json(values)
            digest = archive.listed(file)
            there = archive.exists(file.path)
            if there and f"{survey}/{file.path}" in damaged:
                states[role] = [file.path, "damaged", digest]
            elif digest is not None:
                states[role] = [file.path, "listed" if there else "lost", digest]
            elif there:
                stat = archive.local(file.path).stat()
                states[role] = [file.path, "unlisted", f"{stat.st_size}:{stat.st_mtime_ns}"]
            else:
                no_list = file.checksum_list is not None and archive.names(file.checksum_list) is None
                states[role] = [file.path, "lost" if no_list else "unpublished", None]
        out.append(states)
    return out


def extract(ctx: Context, task: Task) -> Outcome:
    """The kept payload of one modality in one cell: owner, key, status, arrays."""
    counts: Counter[str] = Counter()
    chunks = payload_chunks(ctx, task, counts)
    first = next(chunks, None)
    if first is None:
        return Outcome({}, counts)
    with ctx.pile.table_writer(first.schema, row_group_rows=16) as writer:
        writer.write(first)
        for chunk in chunks:
            writer.write(chunk)
    return Outcome({"payload": writer.part}, counts)


def payload_chunks(ctx: Context, task: Task, counts: Counter[str]) -> Iterator[pa.Table]:
    """Payload of the wanted sources, a group of files at a time: owner, key, status, arrays.

    Where the task names a `keep` table, only its first sources, as many as its settings say, and those that a target
    needs. DamagedFiles, once all files were looked at, where any of them is not what its archive published: what is
    made without a file is made by another task, which knows of it, and is not taken for whole when the file is mended.
    """
    survey = ctx.survey(task.args["survey"])
    archive = ctx.archive(task.args["survey"])
    modality = task.settings["modality"]
    wanted = ctx.pile.read_table(task.args["wanted"])
    if task.args.get("keep"):
        keep = ctx.pile.read_table(task.args["keep"], columns=["key"]).column("key").combine_chunks()
        keep = keep.slice(0, task.settings["keep"])
        sampled = pc.and_(pc.is_in(wanted.column("key"), keep), pc.equal(wanted.column("owner"), survey.name))
        wanted = wanted.filter(pc.or_(sampled, wanted.column("targeted")))
    number = np.asarray(wanted.column(f"group.{modality}"))
    damaged: dict[str, str] = {}
    for i, states in enumerate(task.args["files"]):
        rows = wanted.filter(pa.array(number == i))
        if not rows.num_rows:
            continue
        files, lost = {}, set()
        for role, (path, state, digest) in states.items():
            if state in ("lost", "damaged"):
                lost.add(role)
                counts["files damaged"] += state == "damaged"
            elif state != "unpublished":
                try:
                    verify(archive.local(path), digest if state == "listed" else None)
                    files[role] = archive.local(path)
                except ChecksumMismatch as error:
                    damaged[path] = str(error)
        if damaged:
            continue
        counts["files"] += len(files)
        counts["files lost"] += len(lost)
        for a in range(0, rows.num_rows, 256):
            some = rows.slice(a, 256).combine_chunks()
            table = survey.extract(modality, some, files, frozenset(lost))
            if table.column("key").to_pylist() != some.column("key").to_pylist():
                raise ValueError(f"{survey.name}: extract gave other rows than it was asked for ({task.label})")
            counts["sources"] += table.num_rows
            status = table.column("status").combine_chunks()
            counts.update({STATUS.get(str(s), str(s)): n for s, n in Counter(status.to_pylist()).items() if s})
            yield table.add_column(0, "owner", some.column("owner"))
    if damaged:
        raise DamagedFiles(damaged)
