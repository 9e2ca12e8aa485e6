"""What is still to do, and why: recipe and receipts in, tasks out.

Pure but for reading receipts, looking which survey files are there, and taking a locked codec's files in. A stage whose
inputs are not all made yet plans nothing; the plan is repeated until nothing is left, since the cells of a file are
unknown until it was read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from skycairn.catalogs.survey import WORK_ORDER, Modality, RemoteFile, Survey
from skycairn.pile.content import merkle
from skycairn.pile.receipt import Receipt, task_key
from skycairn.pile.store import Part
from skycairn.pipeline.extract import file_states
from skycairn.pipeline.partition import MARGIN_ARCSEC, needed_columns
from skycairn.pipeline.recipe import Recipe
from skycairn.pipeline.sky import rings
from skycairn.pipeline.task import Context, Task, file_as_json
from skycairn.pipeline.versions import VERSIONS
from skycairn.tokenizers.lock import lock_ids

SLICE_ROWS = 1_000_000
LOST = "listed by the archive, and not there; its values are null"
UNLISTED = "not there, nor is the list of what was published beside it; its values are null"


@dataclass
class Plan:
    """The state of a build: what is done, what can be done now, what is held back."""

    todo: list[Task] = field(default_factory=list)
    receipts: dict[str, Receipt] = field(default_factory=dict)
    "done, by task label"
    held_back: dict[str, str] = field(default_factory=dict)
    "files that could not be had, by path, with the reason"
    lost_cells: set[int] = field(default_factory=set)
    "work cells that a lost catalogue file may hold sources of: nothing is made of them"
    lost: dict[str, str] = field(default_factory=dict)
    "payload files that the archive lists and does not have, by path: a null with its status, and nothing held back"
    held_cells: set[int] = field(default_factory=set)
    "these and their neighbours, whose margins are not whole: no object is emitted there"
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    "parts of the finished pile, by table; complete when nothing is left to do"
    codecs: dict[str, dict[str, Any]] = field(default_factory=dict)
    "modality to content id and the parts that hold the codec; content id None where nothing could be fitted"

    @property
    def done(self) -> bool:
        """Whether nothing is left."""
        return not self.todo


@dataclass
class Memory:
    """What one planning leaves to the next of the same build."""

    receipts: dict[str, Receipt] = field(default_factory=dict)
    "by key"
    files: dict[str, list[RemoteFile]] = field(default_factory=dict)
    "catalogue files by survey"
    damaged: dict[str, str] = field(default_factory=dict)
    "payload files, as `survey/path`, that are not what their archive published, with the reason"
    states: dict[str, list[dict[str, list[Any]]]] = field(default_factory=dict)
    "of the payload files of one modality and cell, see `file_states`"


@dataclass
class _Planner:
    ctx: Context
    failed: Mapping[str, str]
    before: Mapping[str, Mapping[str, Any]]
    memory: Memory
    known: dict[str, list[Any]] = field(default_factory=dict)
    "SHA-256 of each fetched file, with the size and time of change that it had, by `survey/path`"
    plan: Plan = field(default_factory=Plan)

    def need(
        self,
        step: str,
        label: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        args: Mapping[str, Any] | None = None,
    ) -> Receipt | None:
        """The receipt of this work; None, and a task, where it is still to do."""
        label = f"{step} {label}"
        key = task_key(step, VERSIONS[step], dict(settings), dict(inputs))
        receipt = self.memory.receipts.get(key) or self.ctx.pile.receipt(key)
        if receipt is not None:
            self.memory.receipts[key] = receipt
            self.plan.receipts[label] = receipt
            return receipt
        if label in self.failed:
            return None
        why = self._why(step, label, settings, inputs)
        self.plan.todo.append(Task(step, label, settings, inputs, args or {}, key, why))
        return None

    def _why(self, step: str, label: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
        old = self.before.get(label)
        if old is None:
            return "never done"
        if old.get("version") != VERSIONS[step]:
            return f"step {step} is of version {VERSIONS[step]}, was {old.get('version')}"
        changed = [k for k in settings if settings[k] != old["settings"].get(k)]
        if changed:
            return f"setting {', '.join(changed)} changed"
        names = sorted({*inputs, *old["inputs"]})
        changed = [n for n in names if inputs.get(n) != old["inputs"].get(n)]
        if changed:
            return f"input {', '.join(changed[:3])}{' and others' if len(changed) > 3 else ''} changed"
        return "its output is gone"


def plan(
    ctx: Context,
    failed: Mapping[str, str] | None = None,
    before: Mapping[str, Mapping[str, Any]] | None = None,
    memory: Memory | None = None,
) -> Plan:
    """The plan of this recipe for this pile.

    `failed` names tasks (by label) that failed in this run, with the reason; `before` the tasks behind the head
    snapshot, by label, to tell why one is to be done again; `memory` spares the next call to look again.
    """
    memory = memory or Memory()
    p = _Planner(ctx, failed or {}, before or {}, memory)
    surveys = [ctx.survey(c.name) for c in ctx.recipe.surveys]
    region_cells = ctx.recipe.region.work_cells(MARGIN_ARCSEC).tolist()
    reference = {s.name: _reference(p, s) for s in surveys}
    pieces = {s.name: _read(p, s, region_cells) for s in surveys}
    if p.plan.todo:
        return p.plan
    parts = {s.name: _gather(p, s, pieces[s.name]) for s in surveys}
    if p.plan.todo:
        return p.plan
    members = _match(p, parts)
    if p.plan.todo:
        return p.plan
    for s in surveys:
        _coverage(p, s, parts[s.name], reference[s.name])
    wanted = {s.name: _want(p, s, parts, members, reference[s.name]) for s in surveys}
    samples = _samples(p, surveys, parts)
    if p.plan.todo:
        return p.plan
    payload = {s.name: _extract(p, s, wanted[s.name], samples) for s in surveys}
    if p.plan.todo:
        return p.plan
    for s in surveys:
        _fit(p, s, parts, wanted[s.name], samples, payload[s.name])
    if p.plan.todo:
        return p.plan
    tokens = {s.name: _encode(p, s, wanted[s.name], payload[s.name]) for s in surveys}
    if p.plan.todo:
        return p.plan
    objects = _objects(p, surveys, parts, members, tokens, reference)
    if p.plan.todo:
        return p.plan
    _shards(p, objects, tokens)
    return p.plan


# --- stages -----------------------------------------------------------------------------------------------------------


def _identity(s: Survey) -> dict[str, Any]:
    return {"survey": s.name, "release": s.release, "options": dict(s.options)}


def _fetch(p: _Planner, s: Survey, file: RemoteFile) -> str | None:
    """SHA-256 of a file once it was held against its list; None while that is to do, or where it is lost."""
    archive = p.ctx.archive(s.name)
    listed = archive.listed(file)
    label = f"{s.name} {file.path}"
    if not archive.exists(file.path):
        p.plan.held_back[f"{s.name}/{file.path}"] = "listed by the archive, and not there" if listed else "not there"
        return None
    settings: dict[str, Any] = {"survey": s.name, "path": file.path, "listed": listed}
    if listed is None:
        stat = archive.local(file.path).stat()
        settings["stat"] = [stat.st_size, stat.st_mtime_ns]
    receipt = p.need("fetch", label, settings, {}, {"survey": s.name})
    if receipt is None:
        reason = p.failed.get(f"fetch {label}")
        if reason:
            p.plan.held_back[f"{s.name}/{file.path}"] = reason
        return None
    p.known[f"{s.name}/{file.path}"] = [receipt.notes["sha256"], *receipt.notes["stat"]]
    return str(receipt.notes["sha256"])


def _reference(p: _Planner, s: Survey) -> dict[str, tuple[str, str]]:
    """Path and SHA-256 of the survey's reference files, by role; ValueError where one is not there."""
    out = {}
    for role, file in s.reference_files().items():
        if p.ctx.archive(s.name).exists(file.path):
            sha256 = _fetch(p, s, file)
            if sha256:
                out[role] = (file.path, sha256)
        else:
            raise ValueError(
                f"{s.name} {s.release}: {p.ctx.archive(s.name).root / file.path} is not there, and tells where the "
                f"survey looked; fetch it from {s.url}/{file.path}"
            )
    return out


def _read(p: _Planner, s: Survey, region_cells: list[int]) -> dict[int, list[dict[str, Any]]]:
    """Where the sources of each work cell lie: pieces of the tables that `read` left."""
    archive = p.ctx.archive(s.name)
    choice = p.ctx.recipe.choice(s.name)
    needed = needed_columns(s, choice.profile)
    pieces: dict[int, list[dict[str, Any]]] = defaultdict(list)
    if s.name not in p.memory.files:
        p.memory.files[s.name] = s.catalog_files(archive, region_cells)
    for file in p.memory.files[s.name]:
        sha256 = _fetch(p, s, file)
        if sha256 is None:
            if f"{s.name}/{file.path}" in p.plan.held_back:
                _hold(p, s, file, region_cells)
            continue
        companions: dict[str, str | None] = {}
        inputs = {"file": sha256}
        for role, companion in file.companions:
            there = archive.exists(companion.path)
            digest = _fetch(p, s, companion) if there else None
            if there and digest is None and f"{s.name}/{companion.path}" not in p.plan.held_back:
                inputs = {}
                break
            if (
                not there
                and archive.listed(companion) is None
                and archive.names(companion.checksum_list or "") is not None
            ):
                continue
            companions[role] = companion.path if digest else None
            inputs[role] = digest or "lost"
            if digest is None and f"{s.name}/{companion.path}" not in p.plan.held_back:
                p.plan.lost.setdefault(f"{s.name}/{companion.path}", LOST)
        if not inputs:
            continue
        try:
            n = s.n_rows(archive.local(file.path))
        except (ValueError, OSError) as error:
            p.plan.held_back[f"{s.name}/{file.path}"] = str(error)
            _hold(p, s, file, region_cells)
            continue
        slices: list[list[int] | None] = [None]
        if n is not None and n > SLICE_ROWS:
            slices = [[a, min(a + SLICE_ROWS, n)] for a in range(0, n, SLICE_ROWS)]
        for rows in slices:
            settings = {
                **_identity(s),
                "rows": rows,
                "columns that the cuts need": needed,
                "region": p.ctx.recipe.region.settings(),
            }
            label = f"{s.name} {file.path}" + (f" rows {rows[0]}-{rows[1]}" if rows else "")
            args: dict[str, Any] = {"survey": s.name, "file": file_as_json(file), "companions": companions}
            paths = [file.path, *(path for path in companions.values() if path)]
            args["known"] = {path: p.known[f"{s.name}/{path}"] for path in paths}
            receipt = p.need("read", label, settings, inputs, args)
            if receipt is None:
                reason = p.failed.get(f"read {label}")
                if reason:
                    p.plan.held_back[f"{s.name}/{file.path}"] = reason
                    _hold(p, s, file, region_cells)
                continue
            for cell, (start, stop, content) in receipt.notes["cells"].items():
                piece = {"sha256": receipt.outputs["rows"].sha256, "start": start, "stop": stop, "content": content}
                pieces[int(cell)].append({**piece, "path": file.path, "file_sha256": sha256})
    return pieces


def _hold(p: _Planner, s: Survey, file: RemoteFile, region_cells: list[int]) -> None:
    """Hold back the cells that a lost file may hold sources of, and their neighbours."""
    lost = _touched(s, p, file, region_cells)
    p.plan.lost_cells |= lost
    if lost:
        p.plan.held_cells |= {int(c) for c in rings(WORK_ORDER, np.array(sorted(lost), dtype=np.int64), 1)}


def _touched(s: Survey, p: _Planner, file: RemoteFile, region_cells: list[int]) -> set[int]:
    """The cells that a file may hold sources of."""
    archive = p.ctx.archive(s.name)

    def own_of(some: list[int]) -> list[int]:
        if not any(f.path == file.path for f in s.catalog_files(archive, some)):
            return []
        half = len(some) // 2
        return some if len(some) == 1 else own_of(some[:half]) + own_of(some[half:])

    if len(s.catalog_files(archive, region_cells)) == 1:
        return set(region_cells)
    return set(own_of(region_cells))


Parts = dict[int, dict[str, Part]]


def _gather(p: _Planner, s: Survey, pieces: Mapping[int, list[dict[str, Any]]]) -> Parts:
    out: Parts = {}
    profile = p.ctx.recipe.choice(s.name).profile
    cuts = [[c.name, list(c.columns), c.reason] for c in s.select[profile]]
    for cell, found in sorted(pieces.items()):
        if cell in p.plan.lost_cells:
            continue
        found = sorted(found, key=lambda x: (x["path"], x["content"], x["start"]))
        settings = {**_identity(s), "profile": profile, "cuts": cuts}
        inputs = {f"{i:06d}": f"{x['content']} {x['file_sha256']} {x['path']}" for i, x in enumerate(found)}
        receipt = p.need("gather", f"{s.name} cell {cell}", settings, inputs, {"survey": s.name, "pieces": found})
        if receipt is not None and receipt.counts["valid"]:
            out[cell] = dict(receipt.outputs)
            for table in ("slim", "wide", "selection", "repeats", "provenance"):
                p.plan.tables[f"{s.name}.{table}"].append({"cell": cell, "part": receipt.outputs[table]})
    return out


def _coverage(p: _Planner, s: Survey, parts: Parts, reference: Mapping[str, tuple[str, str]]) -> None:
    if not parts:
        return
    inputs = {f"reference {r}": sha for r, (_, sha) in reference.items()}
    inputs |= {f"cell {c}": found["slim"].content_id for c, found in parts.items()}
    args = {"survey": s.name, "slim": {c: found["slim"].sha256 for c, found in parts.items()}}
    args["reference"] = {r: path for r, (path, _) in reference.items()}
    receipt = p.need("coverage", s.name, {**_identity(s), "footprint": s.footprint}, inputs, args)
    if receipt is not None:
        p.plan.tables["coverage"].append({"survey": s.name, "part": receipt.outputs["coverage"]})


def _around(cell: int) -> list[int]:
    return [int(c) for c in rings(WORK_ORDER, np.array([cell], dtype=np.int64), 1)]


def _match(p: _Planner, parts: Mapping[str, Parts]) -> dict[int, Receipt]:
    recipe = p.ctx.recipe
    ranks = {c.name: p.ctx.survey(c.name).rank for c in recipe.surveys}
    radii = {f"{a}-{b}": recipe.match.radius(a, b) for a in ranks for b in ranks if ranks[a] < ranks[b]}
    settings = {"ranks": ranks, "radii": radii, "on": recipe.match.on, "region": recipe.region.settings()}
    out = {}
    for cell in sorted({c for found in parts.values() for c in found} - p.plan.held_cells):
        inputs, args = {}, {}
        for name, found in sorted(parts.items()):
            for c in _around(cell):
                if c in found:
                    inputs[f"{name} {c}"] = found[c]["slim"].content_id
                    args[f"{name} {c}"] = found[c]["slim"].sha256
                    if recipe.match.on == "selected":
                        inputs[f"{name} {c} selection"] = found[c]["selection"].content_id
                        args[f"{name} {c} selection"] = found[c]["selection"].sha256
        receipt = p.need("match", f"cell {cell}", {**settings, "cell": cell}, inputs, {"cell": cell, "parts": args})
        if receipt is not None:
            out[cell] = receipt
            p.plan.tables["members"].append({"cell": cell, "part": receipt.outputs["members"]})
            p.plan.tables["pairs"].append({"cell": cell, "part": receipt.outputs["pairs"]})
    return out


def _want(
    p: _Planner,
    s: Survey,
    parts: Mapping[str, Parts],
    members: Mapping[int, Receipt],
    reference: Mapping[str, tuple[str, str]],
) -> dict[int, Receipt]:
    with_targets = "targets" in parts
    payload = any(m.payload for m in s.modalities)
    cells = set(parts[s.name]) | (set(parts["targets"]) if with_targets and payload else set())
    out = {}
    for cell in sorted(cells):
        own = parts[s.name].get(cell)
        inputs: dict[str, str] = {f"reference {r}": sha for r, (_, sha) in reference.items()}
        args: dict[str, Any] = {"survey": s.name, "reference": {r: path for r, (path, _) in reference.items()}}
        args |= {"wide": "", "selection": "", "members": [], "targets_slim": ""}
        if own:
            for table in ("wide", "selection"):
                inputs[table], args[table] = own[table].content_id, own[table].sha256
        if with_targets:
            near = [members[c] for c in _around(cell) if c in members]
            inputs |= {f"members {i}": r.outputs["members"].content_id for i, r in enumerate(near)}
            args["members"] = [r.outputs["members"].sha256 for r in near]
            if cell in parts["targets"]:
                slim = parts["targets"][cell]["slim"]
                inputs["targets"], args["targets_slim"] = slim.content_id, slim.sha256
        receipt = p.need("want", f"{s.name} cell {cell}", _identity(s), inputs, args)
        if receipt is not None:
            out[cell] = receipt
    return out


def _split(recipe: Recipe) -> dict[str, Any]:
    split = recipe.split
    return {"salt": split.salt, "fractions": list(split.fractions), "reach_arcsec": recipe.reach_arcsec()}


def _samples(p: _Planner, surveys: Iterable[Survey], parts: Mapping[str, Parts]) -> dict[str, Receipt]:
    """The sample of each survey that has a codec to fit or payload to sample."""
    recipe = p.ctx.recipe
    locked = _locked(p)
    out = {}
    for s in surveys:
        unlocked = [m for m in s.modalities if m.name not in locked]
        if not parts[s.name] or not (unlocked or recipe.payload.keep in ("sample", "auto")):
            continue
        codecs = recipe.codecs
        settings = {"survey": s.name, "fit_on": codecs.fit_on, "rows": max(codecs.fit_rows, recipe.payload.sample)}
        settings |= {"split": _split(recipe)}
        inputs, args = {}, {}
        for cell, found in parts[s.name].items():
            inputs[f"{cell}"] = merkle({t: found[t].content_id for t in ("slim", "selection")})
            args[str(cell)] = {"slim": found["slim"].sha256, "selection": found["selection"].sha256}
        receipt = p.need("sample", s.name, settings, inputs, {"survey": s.name, "cells": args})
        if receipt is not None:
            out[s.name] = receipt
    return out


def _locked(p: _Planner) -> dict[str, str]:
    """Content id by modality of the codecs that this pile is locked to."""
    path = p.ctx.pile.root / "codecs.lock"
    return lock_ids(path) if path.is_file() else {}


def keeps(p: _Planner, s: Survey, m: Modality, wanted: Mapping[int, Receipt]) -> str:
    """all | sample | none: what stays of this modality's payload."""
    policy = p.ctx.recipe.payload
    if policy.keep != "auto":
        return policy.keep
    n = sum(r.counts["wanted"] for r in wanted.values())
    return "all" if n * int(np.prod(m.shape)) * 9 <= policy.limit_bytes else "sample"


Kept = dict[str, dict[int, dict[str, Any]]]


def _extract(p: _Planner, s: Survey, wanted: Mapping[int, Receipt], samples: Mapping[str, Receipt]) -> Kept:
    """By modality and cell: the files, the kept payload, and the payload that the codec is fitted on."""
    locked = _locked(p)
    out: Kept = {}
    for m in s.modalities:
        if not m.payload:
            continue
        out[m.name] = {}
        policy = keeps(p, s, m, wanted)
        sample = samples[s.name].outputs["sample"] if s.name in samples else None
        for cell, w in wanted.items():
            groups = w.notes["groups"].get(m.name, [])
            if not groups:
                continue
            looked = f"{m.name} {w.outputs['wanted'].content_id} {len(p.memory.damaged)}"
            if looked not in p.memory.states:
                p.memory.states[looked] = file_states(p.ctx, s.name, groups, p.memory.damaged)
            files = p.memory.states[looked]
            settings = {**_identity(s), "modality": m.name}
            state = merkle({f"{i} {r}": f"{v[1]} {v[2]}" for i, g in enumerate(files) for r, v in g.items()})
            inputs = {"wanted": w.outputs["wanted"].content_id, "files": state}
            args = {"survey": s.name, "wanted": w.outputs["wanted"].sha256, "files": files}
            made: dict[str, Any] = {"settings": settings, "inputs": inputs, "args": args, "payload": None, "fit": None}
            for g in files:
                for path, condition, digest in g.values():
                    if condition == "lost":
                        p.plan.lost[f"{s.name}/{path}"] = LOST if digest else UNLISTED
                    elif condition == "damaged":
                        p.plan.held_back[f"{s.name}/{path}"] = p.memory.damaged[f"{s.name}/{path}"]
            purposes = []
            if policy != "none":
                purposes.append(("payload", policy, p.ctx.recipe.payload.sample))
            if m.name not in locked and policy != "all":
                purposes.append(("fit", "sample", p.ctx.recipe.codecs.fit_payload_rows))
            for purpose, which, most in purposes:
                chosen, more, where = dict(settings), dict(inputs), dict(args)
                if which == "sample" and sample is not None:
                    chosen["keep"], more["sample"], where["keep"] = most, sample.content_id, sample.sha256
                label = f"{m.name} cell {cell}" + (" for fitting" if purpose == "fit" else "")
                r = p.need("extract", label, chosen, more, where)
                if r is not None:
                    made[purpose] = r.outputs.get("payload")
                    made["whole"] = purpose == "payload" and which == "all"
            if policy == "all":
                made["fit"] = made["payload"]
            out[m.name][cell] = made
            if made["payload"]:
                p.plan.tables[f"payload.{m.name}"].append({"cell": cell, "part": made["payload"]})
    return out


def _fit(
    p: _Planner,
    s: Survey,
    parts: Mapping[str, Parts],
    wanted: Mapping[int, Receipt],
    samples: Mapping[str, Receipt],
    payload: Kept,
) -> None:
    locked = _locked(p)
    codecs = p.ctx.recipe.codecs
    for m in s.modalities:
        if m.name in locked:
            p.plan.codecs[m.name] = {"content_id": locked[m.name], "parts": _locked_parts(p, locked[m.name])}
            continue
        if s.name not in samples:
            p.plan.codecs[m.name] = {"content_id": None, "parts": {}}
            continue
        sample = samples[s.name].outputs["sample"]
        settings = {**_identity(s), "modality": m.name, "codec": m.codec}
        inputs = {"sample": sample.content_id}
        args: dict[str, Any] = {"survey": s.name, "sample": sample.sha256, "cells": {}, "payload": {}}
        if m.payload:
            settings["rows"] = codecs.fit_payload_rows
            for cell, made in payload[m.name].items():
                if made["fit"]:
                    inputs[f"{cell}"] = made["fit"].content_id
                    args["payload"][str(cell)] = made["fit"].sha256
        else:
            settings["rows"] = codecs.fit_rows
            for cell, found in parts[s.name].items():
                inputs[f"{cell}"] = found["wide"].content_id
                args["cells"][str(cell)] = {"wide": found["wide"].sha256}
        receipt = p.need("fit", m.name, settings, inputs, args)
        if receipt is not None:
            p.plan.codecs[m.name] = {
                "content_id": receipt.notes.get("content_id"),
                "parts": dict(receipt.outputs),
            }


def _locked_parts(p: _Planner, content_id: str) -> dict[str, Part]:
    """The files of a locked codec as parts of this pile."""
    return p.ctx.pile.put_folder(p.ctx.pile.root / "codecs" / content_id)


Tokens = dict[str, dict[int, Part]]


def _encode(p: _Planner, s: Survey, wanted: Mapping[int, Receipt], payload: Kept) -> Tokens:
    out: Tokens = {m.name: {} for m in s.modalities}
    columns = [m for m in s.modalities if not m.payload]
    for cell, w in wanted.items():
        found: dict[str, Part] = {}
        if columns and w.counts["wanted"] > w.counts["forced"]:
            settings = {**_identity(s), "modalities": [m.name for m in columns]}
            ids = {m.name: p.plan.codecs[m.name]["content_id"] or "none" for m in columns}
            args: dict[str, Any] = {"survey": s.name, "wanted": w.outputs["wanted"].sha256}
            args["codecs"] = {m.name: p.plan.codecs[m.name]["parts"] for m in columns}
            inputs = {"wanted": w.outputs["wanted"].content_id, **ids}
            receipt = p.need("encode", f"{s.name} columns cell {cell}", settings, inputs, args)
            if receipt is not None:
                found |= receipt.outputs
        for m in s.modalities:
            if not m.payload or cell not in payload[m.name]:
                continue
            made = payload[m.name][cell]
            codec = p.plan.codecs[m.name]
            whole = made["payload"] if made.get("whole") else None
            inputs = {**made["inputs"], "codec": codec["content_id"] or "none"}
            if whole:
                inputs = {"payload": whole.content_id, "codec": codec["content_id"] or "none"}
            args = {**made["args"], "codec": codec["parts"], "payload": whole.sha256 if whole else ""}
            receipt = p.need("encode payload", f"{m.name} cell {cell}", made["settings"], inputs, args)
            if receipt is not None:
                found |= receipt.outputs
        for name, part in found.items():
            out[name][cell] = part
            p.plan.tables[f"tokens.{name}"].append({"cell": cell, "part": part})
    return out


def _objects(
    p: _Planner,
    surveys: Iterable[Survey],
    parts: Mapping[str, Parts],
    members: Mapping[int, Receipt],
    tokens: Mapping[str, Tokens],
    reference: Mapping[str, Mapping[str, tuple[str, str]]],
) -> dict[int, Receipt]:
    recipe = p.ctx.recipe
    surveys = list(surveys)
    settings = {
        "surveys": {s.name: [s.rank, s.footprint, [m.name for m in s.modalities]] for s in surveys},
        "split": _split(recipe),
        "on": recipe.match.on,
    }
    out = {}
    for cell, matched in members.items():
        if not matched.counts["objects"]:
            continue
        inputs = {"members": matched.outputs["members"].content_id}
        args: dict[str, Any] = {"cell": cell, "members": matched.outputs["members"].sha256, "near": {}, "reference": {}}
        for s in surveys:
            if s.footprint == "exact":
                inputs |= {f"{s.name} {r}": sha for r, (_, sha) in reference[s.name].items()}
                args["reference"][s.name] = {r: path for r, (path, _) in reference[s.name].items()}
            near: dict[str, dict[str, Any]] = {}
            for c in _around(cell):
                found = parts[s.name].get(c, {})
                near[str(c)] = {t: found[t].sha256 for t in ("slim", "wide", "selection") if t in found}
                inputs |= {
                    f"{s.name} {c} {t}": found[t].content_id for t in ("slim", "wide", "selection") if t in found
                }
                near[str(c)]["tokens"] = {}
                for name, by_cell in tokens[s.name].items():
                    if c in by_cell:
                        near[str(c)]["tokens"][name] = by_cell[c].sha256
                        inputs[f"{name} {c}"] = by_cell[c].content_id
            args["near"][s.name] = near
        receipt = p.need("objects", f"cell {cell}", {**settings, "cell": cell}, inputs, args)
        if receipt is not None:
            out[cell] = receipt
            p.plan.tables["objects"].append({"cell": cell, "part": receipt.outputs["objects"]})
    return out


def _shards(p: _Planner, objects: Mapping[int, Receipt], tokens: Mapping[str, Tokens]) -> None:
    recipe = p.ctx.recipe
    order = recipe.shards.order
    coarse: dict[int, list[int]] = defaultdict(list)
    for cell in sorted(objects):
        coarse[cell >> (2 * (WORK_ORDER - order))].append(cell)
    ids = {name: codec["content_id"] for name, codec in p.plan.codecs.items()}
    settings = {"row_group_rows": recipe.shards.row_group_rows, "order": order, "codecs": ids}
    for number, cells in sorted(coarse.items()):
        inputs = {f"objects {c}": objects[c].outputs["objects"].content_id for c in cells}
        near = sorted({n for c in cells for n in _around(c)})
        args: dict[str, Any] = {"objects": [objects[c].outputs["objects"].sha256 for c in cells], "tokens": {}}
        args["cells"] = cells
        args["codecs"] = {name: codec["parts"] for name, codec in p.plan.codecs.items()}
        for s, modalities in tokens.items():
            for name, by_cell in modalities.items():
                args["tokens"][name] = {"survey": s, "cells": {str(c): by_cell[c].sha256 for c in near if c in by_cell}}
                inputs |= {f"{name} {c}": by_cell[c].content_id for c in near if c in by_cell}
        receipt = p.need("shard", f"order {order} cell {number}", settings, inputs, args)
        if receipt is not None:
            for name, part in sorted(receipt.outputs.items()):
                split, stratum = name.split("/")
                labels = {"cell": number, "split": split, "stratum": stratum}
                p.plan.tables["shards"].append({**labels, "part": part})
