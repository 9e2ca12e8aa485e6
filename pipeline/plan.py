"""What is still to do, and why: recipe and receipts in, tasks out.

Pure but for reading receipts, looking which survey files are there, and taking a locked codec's files in. A stage whose
inputs are not all made yet plans nothing; the plan is repeated until nothing is left, since the cells of a file are
unknown until it was read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from skycairn.archives.errors import ChecksumMismatch, FetchError
from skycairn.archives.remote import MOST_QUESTIONS
from skycairn.catalogs.survey import WORK_ORDER, Modality, RemoteFile, Survey
from skycairn.match.sky import rings
from skycairn.pile.content import canonical_json, merkle
from skycairn.pile.receipt import Receipt, task_key
from skycairn.pile.store import Part
from skycairn.pipeline.extract import NO_CODEC, file_states, payload_files
from skycairn.pipeline.parent import Parent, why
from skycairn.pipeline.partition import MARGIN_ARCSEC, needed_columns
from skycairn.pipeline.recipe import Recipe
from skycairn.pipeline.task import Context, Task, file_as_json, file_from_json
from skycairn.pipeline.versions import VERSIONS
from skycairn.tokenizers.lock import lock_ids

SLICE_ROWS = 1_000_000
LEAST_BYTES = 9 * 0.25
"""That a pixel of kept payload takes: flux, ivar and mask, compressed; 0.29 to 0.60 of 9 bytes on the mock sky."""
LOST = "listed by the archive, and not there; its values are null"
UNLISTED = "not there, nor is the list of what was published beside it; its values are null"


@dataclass(frozen=True)
class Failure:
    """A task that could not be done in this run."""

    reason: str
    cells: frozenset[int] = frozenset()
    "work cells in which no object can be made without it"
    kind: str = "file"
    "`defer` where another try may do: time, memory, a lost worker"


@dataclass
class Plan:
    """The state of a build: what is done, what can be done now, what is held back."""

    todo: list[Task] = field(default_factory=list)
    receipts: dict[str, Receipt] = field(default_factory=dict)
    "done, by task label"
    cut_off: bool = False
    "whether no archive could be reached, and nothing can be made"
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
    payload_bytes: int = 0
    "the least that the payload which is to be extracted will take on disk"
    codecs: dict[str, dict[str, Any]] = field(default_factory=dict)
    "modality to content id and the parts that hold the codec; content id None where nothing could be fitted"
    downloads: dict[str, dict[str, RemoteFile]] = field(default_factory=dict)
    "files of which it is not known yet what the archive says, by survey and path, the first to be had first"

    late: dict[str, Failure] = field(default_factory=dict)
    "by label: cells whose payload files could not be had in this run; to be planned again as failed"

    @property
    def done(self) -> bool:
        """Whether nothing is left."""
        return not self.todo and not self.downloads and not self.late


@dataclass
class Memory:
    """What one planning leaves to the next of the same build."""

    receipts: dict[str, Receipt] = field(default_factory=dict)
    "by key"
    files: dict[str, list[RemoteFile]] = field(default_factory=dict)
    "catalogue files by survey"
    payload_files: dict[str, list[list[Any]]] = field(default_factory=dict)
    "of one modality and cell, see `payload_files`"
    samples: dict[str, dict[int, str]] = field(default_factory=dict)
    "digest of a sample's sources by cell"
    codecs: dict[str, dict[str, Part]] = field(default_factory=dict)
    "files of locked codecs by content id"
    locked: dict[str, str] | None = None
    "content id by modality, as `codecs.lock` said when first asked"


@dataclass
class _Planner:
    ctx: Context
    failed: Mapping[str, Failure]
    parent: Parent
    memory: Memory
    rehash: bool = False
    refit: frozenset[str] = frozenset()
    known: dict[str, list[Any]] = field(default_factory=dict)
    "SHA-256 of each fetched file, then the `state` that it was in, by `survey/path`"
    asked: set[str] = field(default_factory=set)
    "keys of the tasks to do: two cells may ask for the same work"
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
        receipt = self.memory.receipts.get(key)
        if receipt is None and not (self.rehash and step in ("fetch", "fetch payload")):
            receipt = self.ctx.pile.receipt(key)
        if receipt is not None:
            self.memory.receipts[key] = receipt
            self.plan.receipts[label] = receipt
            return receipt
        if label in self.failed or key in self.asked:
            return None
        self.asked.add(key)
        reason = why(step, settings, inputs, self.parent.receipt(label)) if not self.rehash else "to be read anew"
        self.plan.todo.append(Task(step, label, settings, inputs, args or {}, key, reason))
        return None

    def arrived(self, s: Survey, file: RemoteFile) -> bool:
        """Whether it is known if the archive has this file; else it is to be downloaded."""
        if self.ctx.archive(s.name).decided(file):
            return True
        self.plan.downloads.setdefault(s.name, {})[file.path] = file
        return False

    def earlier(self, label: str, step: str, settings: Mapping[str, Any]) -> Receipt | None:
        """The receipt behind the parent of the same work on other sources; None where it was of another kind."""
        old = self.parent.receipt(f"{step} {label}")
        same = {**settings, "step version": VERSIONS[step]}
        return old if old is not None and _less_keep(old.settings) == _less_keep(same) else None


def _less_keep(settings: Mapping[str, Any]) -> bytes:
    """Settings as a receipt holds them, in which a tuple is a list; less how many sources were kept."""
    return canonical_json({k: v for k, v in settings.items() if k not in ("keep", "keep held")})


HELD_RINGS = {"gather": 1, "match": 0, "fetch payload": 1, "want": 1, "extract": 1, "encode": 1, "encode payload": 1}
"""Rings of cells about a task's own in which no object can be made without it."""


def cells_held_by(task: Task) -> frozenset[int] | None:
    """The cells in which no object can be made without this task; None where nothing can be made without it."""
    if task.step == "shard":
        return frozenset(int(c) for c in task.args["cells"])
    found = re.search(r" cell (\d+)", task.label)
    if found is None or task.step not in {**HELD_RINGS, "objects": 0}:
        return None
    ring = HELD_RINGS.get(task.step, 0)
    return frozenset(int(c) for c in rings(WORK_ORDER, np.array([int(found[1])], dtype=np.int64), ring))


def plan(
    ctx: Context,
    failed: Mapping[str, Failure] | None = None,
    parent: Parent | None = None,
    memory: Memory | None = None,
    rehash: bool = False,
    refit: Iterable[str] = (),
    catalogues_only: bool = False,
) -> Plan:
    """The plan of this recipe for this pile.

    `failed` names tasks (by label) that failed in this run; `parent` is the head, to tell why a task is to be done
    again and what of its earlier outcome stands; `memory` spares the next call to look again; `rehash` trusts no size
    and time of a survey's file; `refit` names modalities whose locked codecs are to be fitted anew; `catalogues_only`
    ends where it is known which payload files are wanted.
    """
    memory = memory or Memory()
    parent = parent or Parent(ctx.pile, None)
    p = _Planner(ctx, failed or {}, parent, memory, rehash, frozenset(refit))
    for label, failure in p.failed.items():
        if failure.cells:
            p.plan.held_cells |= failure.cells
            p.plan.held_back[label] = failure.reason
    surveys = [ctx.survey(c.name) for c in ctx.recipe.surveys]
    region_cells = ctx.recipe.region.work_cells(MARGIN_ARCSEC).tolist()
    reference = {s.name: _reference(p, s) for s in surveys}
    pieces = {s.name: _read(p, s, region_cells, reference[s.name]) for s in surveys}
    if not p.plan.done:
        return p.plan
    known = {name: found or {} for name, found in reference.items()}
    parts = {s.name: _gather(p, s, pieces[s.name]) for s in surveys}
    if p.plan.todo:
        return p.plan
    members = _match(p, parts)
    if p.plan.todo:
        return p.plan
    for s in surveys:
        _coverage(p, s, parts[s.name], known[s.name])
    wanted = {s.name: _want(p, s, parts, members, known[s.name]) for s in surveys}
    for s in surveys:
        _refuse_many_cutouts(p, s, wanted[s.name])
    if catalogues_only:
        return p.plan
    samples = _samples(p, surveys, parts, members)
    held = _held_samples(p, surveys, parts, members, wanted)
    if p.plan.todo:
        return p.plan
    files = {s.name: _payload_files(p, s, wanted[s.name]) for s in surveys}
    # while files are under way, what is there goes all the way to tokens, so that its room can be had for others
    if not p.plan.done and not p.plan.downloads:
        return p.plan
    payload = {s.name: _extract(p, s, wanted[s.name], files[s.name], samples, held) for s in surveys}
    if not p.plan.done and not p.plan.downloads:
        return p.plan
    for s in surveys:
        _fit(p, s, parts, members, samples, payload[s.name], whole=p.plan.done)
    if not p.plan.done and not p.plan.downloads:
        return p.plan
    tokens = {s.name: _encode(p, s, wanted[s.name], payload[s.name]) for s in surveys}
    if not p.plan.done:
        return p.plan
    objects = _objects(p, surveys, parts, members, tokens, known)
    if p.plan.todo:
        return p.plan
    _shards(p, objects, tokens)
    return p.plan


# --- stages -----------------------------------------------------------------------------------------------------------


def _identity(s: Survey) -> dict[str, Any]:
    return {"survey": s.name, "release": s.release, "options": dict(s.options)}


def _fetch(p: _Planner, s: Survey, file: RemoteFile, catalogue: bool = False) -> Receipt | None:
    """The receipt of a file that was held against its list; None while that is to do, or where it cannot be had."""
    archive = p.ctx.archive(s.name)
    label, name = f"{s.name} {file.path}", f"{s.name}/{file.path}"
    if not p.arrived(s, file):
        return None
    if trouble := _trouble(p, s, file):
        p.plan.held_back[name] = trouble.reason
        return None
    listed = archive.listed(file)
    state = archive.state(file.path)
    if state is None:
        p.plan.held_back[name] = "listed by the archive, and not there" if listed else "not there"
        return None
    settings = {"survey": s.name, "path": file.path, "listed": listed, "state": state}
    receipt = p.need("fetch", label, settings, {}, {"survey": s.name, "catalogue": catalogue})
    if receipt is not None:
        p.known[name] = [receipt.notes["sha256"], *state]
    return receipt


def _trouble(p: _Planner, s: Survey, file: RemoteFile) -> Failure | None:
    """Why a file could not be had in this run: wrong bytes are the archive's file, all else may be another time."""
    archive = p.ctx.archive(s.name)
    if error := archive.failed(file.path):
        wrong = isinstance(error, ChecksumMismatch) and not archive.of_service(file.path)
        return Failure(str(error), kind="file" if wrong else "defer")
    return p.failed.get(f"fetch {s.name} {file.path}")


def _reference(p: _Planner, s: Survey) -> dict[str, tuple[str, str]] | None:
    """Path and SHA-256 of the survey's reference files, by role; ValueError where one is not there.

    None where one could not be had yet, though it may be another time: then nothing of the survey can be said.
    """
    archive = p.ctx.archive(s.name)
    out = {}
    for role, file in s.reference_files().items():
        receipt = _fetch(p, s, file)
        if receipt is not None:
            out[role] = (file.path, str(receipt.notes["sha256"]))
            continue
        trouble = _trouble(p, s, file)
        if trouble and trouble.kind == "defer":
            return None
        if trouble:
            raise ValueError(f"{trouble.reason}; {s.name} tells by this file where it looked, and is nothing without")
        if f"{s.name}/{file.path}" in p.plan.held_back:
            raise ValueError(
                f"{s.name} {s.release}: {archive.where(file.path)} is not there, and tells where the survey looked; "
                f"fetch it from {s.url}/{file.path}"
            )
    return out


def _known(p: _Planner, s: Survey, reference: Mapping[str, tuple[str, str]]) -> dict[str, list[Any]]:
    """How the reference files were fetched, by path."""
    return {path: p.known[f"{s.name}/{path}"] for path, _ in reference.values()}


def _read(
    p: _Planner, s: Survey, region_cells: list[int], reference: Mapping[str, tuple[str, str]] | None
) -> dict[int, list[dict[str, Any]]]:
    """Where the sources of each work cell lie: pieces of the tables that `read` left."""
    if reference is None or len(reference) < len(s.reference_files()):
        if reference is None:
            _hold_all(p, region_cells)
        return {}
    archive = p.ctx.archive(s.name)
    choice = p.ctx.recipe.choice(s.name)
    needed = needed_columns(s, choice.profile)
    pieces: dict[int, list[dict[str, Any]]] = defaultdict(list)
    if s.name not in p.memory.files:
        try:
            p.memory.files[s.name] = archive.catalog_files(s, region_cells)
        except FetchError as error:
            p.plan.held_back[f"{s.name}: what files there are"] = str(error)
            _hold_all(p, region_cells)
            return {}
    for file in p.memory.files[s.name]:
        fetched = _fetch(p, s, file, catalogue=True)
        if fetched is None:
            if f"{s.name}/{file.path}" in p.plan.held_back:
                _hold(p, s, file, region_cells)
            continue
        companions: dict[str, str | None] = {}
        sha256 = str(fetched.notes["sha256"])
        inputs = {"file": sha256}
        for role, companion in file.companions:
            if not p.arrived(s, companion):
                inputs = {}
                break
            failure = _trouble(p, s, companion)
            there = failure is not None or archive.exists(companion.path)
            beside = _fetch(p, s, companion) if there else None
            digest = str(beside.notes["sha256"]) if beside else None
            failure = _trouble(p, s, companion)
            if digest is None and failure and failure.kind == "defer":
                # nobody knows yet what is in it: that is no null
                _hold(p, s, file, region_cells)
                inputs = {}
                break
            if there and digest is None and f"{s.name}/{companion.path}" not in p.plan.held_back:
                inputs = {}
                break
            sums = companion.checksum_list
            if not there and sums and archive.names(sums) is not None and archive.listed(companion) is None:
                continue
            companions[role] = companion.path if digest else None
            inputs[role] = digest or "lost"
            if digest is None and f"{s.name}/{companion.path}" not in p.plan.held_back:
                p.plan.lost.setdefault(f"{s.name}/{companion.path}", LOST)
        if not inputs:
            continue
        n = fetched.notes["rows"]
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
                if failure := p.failed.get(f"read {label}"):
                    p.plan.held_back[f"{s.name}/{file.path}"] = failure.reason
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


def _hold_all(p: _Planner, region_cells: list[int]) -> None:
    """Hold back everything: no one knows which cells a survey may have sources in."""
    p.plan.lost_cells |= set(region_cells)
    p.plan.held_cells |= set(region_cells)


def _touched(s: Survey, p: _Planner, file: RemoteFile, region_cells: list[int]) -> set[int]:
    """The cells that a file may hold sources of."""
    archive = p.ctx.archive(s.name)

    def own_of(some: list[int]) -> list[int]:
        if not any(f.path == file.path for f in archive.catalog_files(s, some)):
            return []
        half = len(some) // 2
        return some if len(some) == 1 else own_of(some[:half]) + own_of(some[half:])

    if len(p.memory.files[s.name]) == 1:
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
    args["known"] = _known(p, s, reference)
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
    settings |= {"policy": recipe.match.policy, "found": {pair: recipe.match.share(*pair.split("-")) for pair in radii}}
    settings |= {"errors": dict(recipe.match.errors), "outliers": recipe.match.outliers}
    settings["links"] = _links([p.ctx.survey(name) for name in ranks]) if recipe.match.ids else {}
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
            p.plan.tables["disagreements"].append({"cell": cell, "part": receipt.outputs["disagreements"]})
    return out


def _links(surveys: list[Survey]) -> dict[str, dict[str, str]]:
    """By survey: the others that its rows name rows of, with their release, which decides what the ids can mean."""
    release = {s.name: s.release for s in surveys}
    return {
        s.name: named
        for s in surveys
        if (
            named := {
                link.to: release[link.to]
                for link in s.links
                if link.to in release and (not link.releases or release[link.to] in link.releases)
            }
        )
    }


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
        args |= {"wide": "", "selection": "", "members": [], "targets_slim": "", "known": _known(p, s, reference)}
        if own:
            for table in ("wide", "selection"):
                inputs[table], args[table] = own[table].content_id, own[table].sha256
        if with_targets or s.cutouts:
            near = [members[c] for c in _around(cell) if c in members]
            inputs |= {f"members {i}": r.outputs["members"].content_id for i, r in enumerate(near)}
            args["members"] = [r.outputs["members"].sha256 for r in near]
            if with_targets and cell in parts["targets"]:
                slim = parts["targets"][cell]["slim"]
                inputs["targets"], args["targets_slim"] = slim.content_id, slim.sha256
        receipt = p.need("want", f"{s.name} cell {cell}", _identity(s), inputs, args)
        if receipt is not None:
            out[cell] = receipt
    return out


def _refuse_many_cutouts(p: _Planner, s: Survey, wanted: Mapping[int, Receipt]) -> None:
    """ValueError where a cut-out service would be asked for more sources than one may; what it is for are samples."""
    if not s.cutouts:
        return
    groups = [group for w in wanted.values() for of_one in w.notes["groups"].values() for group in of_one]
    n = len({v[0] for group in groups for v in group.values()})
    if n > MOST_QUESTIONS:
        raise ValueError(
            f"{s.name}: {n:,} cut-outs or more would be asked of its cut-out service, more than {MOST_QUESTIONS:,}; "
            f'take the coadds instead (surveys.{s.name}.pixels = "coadd"), or less of the sky, or a stricter profile'
        )


def _split(recipe: Recipe) -> dict[str, Any]:
    split = recipe.split
    return {"salt": split.salt, "fractions": list(split.fractions), "reach_arcsec": recipe.reach_arcsec()}


def _samples(
    p: _Planner, surveys: Iterable[Survey], parts: Mapping[str, Parts], members: Mapping[int, Receipt]
) -> dict[str, Receipt]:
    """The sample of each survey that has a codec to fit or payload to sample."""
    recipe = p.ctx.recipe
    locked = _locked(p)
    out = {}
    for s in surveys:
        unlocked = [m for m in s.modalities if m.name not in locked]
        if not parts[s.name] or not (unlocked or recipe.payload.keep in ("sample", "auto")):
            continue
        codecs = recipe.codecs
        rows = max(codecs.fit_rows, recipe.payload.sample)
        receipt = _sample(p, s, s.name, codecs.fit_on, rows, parts[s.name], members)
        if receipt is not None:
            out[s.name] = receipt
    return out


def _held_samples(
    p: _Planner,
    surveys: Iterable[Survey],
    parts: Mapping[str, Parts],
    members: Mapping[int, Receipt],
    wanted: Mapping[str, Mapping[int, Receipt]],
) -> dict[str, Receipt]:
    """What a sampled payload keeps of the validation sky, where the sample itself has none of it."""
    out: dict[str, Receipt] = {}
    if p.ctx.recipe.codecs.fit_on != "train":
        return out
    for s in surveys:
        if parts[s.name] and any(keeps(p, s, m, wanted[s.name]) == "sample" for m in s.modalities if m.payload):
            rows = p.ctx.recipe.payload.n_held()
            receipt = _sample(p, s, f"{s.name} held out", "validation", rows, parts[s.name], members)
            if receipt is not None:
                out[s.name] = receipt
    return out


def _sample(
    p: _Planner, s: Survey, label: str, of: str, rows: int, parts: Parts, members: Mapping[int, Receipt]
) -> Receipt | None:
    settings: dict[str, Any] = {"survey": s.name, "fit_on": of, "rows": rows, "split": _split(p.ctx.recipe)}
    inputs: dict[str, str] = {}
    args: dict[str, dict[str, Any]] = {}
    for cell, found in parts.items():
        of_cell, args[str(cell)] = _chosen_among(s, cell, found, members)
        inputs |= of_cell
    return p.need("sample", label, settings, inputs, {"survey": s.name, "cells": args})


def _chosen_among(
    s: Survey, cell: int, found: Mapping[str, Part], members: Mapping[int, Receipt]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Inputs and arguments that tell which sources of a cell codecs may be fitted on."""
    inputs = {f"{cell}": merkle({t: found[t].content_id for t in ("slim", "selection")})}
    args: dict[str, Any] = {"slim": found["slim"].sha256, "selection": found["selection"].sha256}
    if s.cutouts:
        near = [members[c].outputs["members"] for c in _around(cell) if c in members]
        inputs |= {f"{cell} members {i}": part.content_id for i, part in enumerate(near)}
        args["members"] = [part.sha256 for part in near]
    return inputs, args


def _sketches(p: _Planner, s: Survey, parts: Parts, members: Mapping[int, Receipt]) -> dict[int, Part] | None:
    """The sketches of a survey's columns by cell; None while some are to do."""
    locked = _locked(p)
    names = sorted(m.name for m in s.modalities if not m.payload and m.name not in locked)
    settings = {
        **_identity(s),
        "modalities": names,
        "fit_on": p.ctx.recipe.codecs.fit_on,
        "split": _split(p.ctx.recipe),
    }
    out: dict[int, Part] = {}
    for cell, found in parts.items() if names else ():
        inputs, args = _chosen_among(s, cell, found, members)
        inputs["wide"], args["wide"] = found["wide"].content_id, found["wide"].sha256
        receipt = p.need("sketch", f"{s.name} cell {cell}", settings, inputs, {"survey": s.name, **args})
        if receipt is not None:
            out[cell] = receipt.outputs["sketch"]
    return out if len(out) == len(parts) or not names else None


def _locked(p: _Planner) -> dict[str, str]:
    """Content id by modality of the codecs that this pile is locked to."""
    if p.memory.locked is None:
        path = p.ctx.pile.root / "codecs.lock"
        p.memory.locked = lock_ids(path) if path.is_file() else {}
    return {m: content_id for m, content_id in p.memory.locked.items() if m not in p.refit}


def keeps(p: _Planner, s: Survey, m: Modality, wanted: Mapping[int, Receipt]) -> str:
    """all | sample | none: what stays of this modality's payload."""
    policy = p.ctx.recipe.payload
    if policy.keep != "auto":
        return policy.keep
    n = sum(r.counts["wanted"] for r in wanted.values())
    return "all" if n * int(np.prod(m.shape)) * 9 <= policy.limit_bytes else "sample"


Files = dict[str, dict[int, tuple[list[dict[str, list[Any]]], dict[str, list[Any]]]]]
"""By modality and cell: the state of the files of each group, and how each file that is there is known."""


def _payload_files(p: _Planner, s: Survey, wanted: Mapping[int, Receipt]) -> Files:
    """The files that payload is cut out of, each held against its digest."""
    out: Files = {}
    archive = p.ctx.archive(s.name)
    lists = {v[1] for w in wanted.values() for g in w.notes["groups"].values() for group in g for v in group.values()}
    archive.expect(sorted(lists - {None}))
    for m in (m for m in s.modalities if m.payload):
        out[m.name] = {}
        for cell, w in wanted.items():
            groups = w.notes["groups"].get(m.name, [])
            if not groups:
                continue
            label = f"{m.name} cell {cell}"
            looked = f"{m.name} {w.outputs['wanted'].content_id}"
            of_groups = {v[0]: file_from_json(list(v)) for group in groups for v in group.values()}
            if f"fetch payload {label}" in p.failed:
                continue
            if looked not in p.memory.payload_files:
                # a list, so that all of them are asked for
                if not all([p.arrived(s, file) for file in of_groups.values()]):
                    continue
                late = [t for f in of_groups.values() if (t := _trouble(p, s, f)) and t.kind == "defer"]
                if late:
                    p.plan.late[f"fetch payload {label}"] = Failure(late[0].reason, frozenset(_around(cell)), "defer")
                    continue
                p.memory.payload_files[looked] = payload_files(p.ctx, s.name, groups)
            files = p.memory.payload_files[looked]
            settings = {"survey": s.name, "files": files}
            fetched = p.need("fetch payload", label, settings, {}, {"survey": s.name})
            if fetched is None:
                continue
            states = file_states(p.ctx, s.name, groups, fetched.notes)
            damaged = dict(fetched.notes["damaged"])
            damaged |= {path: str(error) for path in of_groups if (error := archive.failed(path))}
            for path, reason in damaged.items():
                p.plan.held_back[f"{s.name}/{path}"] = reason
            known = {
                path: [sha256, *state] for path, _, state in files if (sha256 := fetched.notes["sha256"].get(path))
            }
            out[m.name][cell] = states, known
    return out


Kept = dict[str, dict[int, dict[str, Any]]]


def _extract(
    p: _Planner,
    s: Survey,
    wanted: Mapping[int, Receipt],
    files: Files,
    samples: Mapping[str, Receipt],
    held: Mapping[str, Receipt],
) -> Kept:
    """By modality and cell: the files, the kept payload, and the payload that the codec is fitted on."""
    locked = _locked(p)
    out: Kept = {}
    for m in s.modalities:
        if not m.payload:
            continue
        out[m.name] = {}
        policy = keeps(p, s, m, wanted)
        sample = samples[s.name].outputs["sample"] if s.name in samples else None
        for cell, (states, known) in files[m.name].items():
            w = wanted[cell]
            settings = {**_identity(s), "modality": m.name}
            state = merkle({f"{i} {r}": f"{v[1]} {v[2]}" for i, g in enumerate(states) for r, v in g.items()})
            inputs = {"wanted": w.outputs["wanted"].content_id, "files": state}
            args = {"survey": s.name, "wanted": w.outputs["wanted"].sha256, "files": states, "known": known}
            made: dict[str, Any] = {"settings": settings, "inputs": inputs, "args": args, "payload": None, "fit": None}
            for g in states:
                for path, condition, _ in g.values():
                    if condition == "lost":
                        p.plan.lost[f"{s.name}/{path}"] = _lost(p, s, w, m, path)
            purposes = []
            if policy != "none":
                purposes.append(("payload", policy, p.ctx.recipe.payload.sample))
            if m.name not in locked and policy != "all":
                purposes.append(("fit", "sample", p.ctx.recipe.codecs.fit_payload_rows))
            old_wanted = p.earlier(f"{s.name} cell {cell}", "want", _identity(s))
            for purpose, which, most in purposes:
                chosen, more, where = dict(settings), dict(inputs), dict(args)
                if which == "sample" and sample is not None:
                    chosen["keep"], where["keep"] = most, sample.sha256
                    more["sample"] = _sampled_here(p, sample, most).get(cell, "none")
                    if purpose == "payload" and s.name in held:
                        aside, n = held[s.name].outputs["sample"], p.ctx.recipe.payload.n_held()
                        chosen["keep held"], where["keep held"] = n, aside.sha256
                        more["held out"] = _sampled_here(p, aside, n).get(cell, "none")
                label = f"{m.name} cell {cell}" + (" for fitting" if purpose == "fit" else "")
                old = p.earlier(label, "extract", chosen)
                if old is not None and old_wanted is not None and "payload" in old.outputs:
                    where["earlier"] = {
                        "wanted": old_wanted.outputs["wanted"].sha256,
                        "payload": old.outputs["payload"].sha256,
                        "files": old.notes["files"],
                    }
                r = p.need("extract", label, chosen, more, where)
                if r is None and which == "all":
                    p.plan.payload_bytes += int(w.counts["wanted"] * np.prod(m.shape) * LEAST_BYTES)
                if r is not None:
                    made[purpose] = r.outputs.get("payload")
                    made["whole"] = purpose == "payload" and which == "all"
            if policy == "all":
                made["fit"] = made["payload"]
            out[m.name][cell] = made
            if made["payload"]:
                p.plan.tables[f"payload.{m.name}"].append({"cell": cell, "part": made["payload"]})
    return out


def _lost(p: _Planner, s: Survey, wanted: Receipt, m: Modality, path: str) -> str:
    """Why a payload file counts as lost: the archive lists it, or no list is there to tell."""
    for group in wanted.notes["groups"][m.name]:
        for values in group.values():
            if values[0] == path:
                return LOST if p.ctx.archive(s.name).listed(file_from_json(values)) else UNLISTED
    return LOST


def _sampled_here(p: _Planner, sample: Part, most: int) -> dict[int, str]:
    """Digest of the first `most` sources of a sample, by cell."""
    name = f"{sample.sha256} {most}"
    if name not in p.memory.samples:
        table = p.ctx.pile.read_table(sample).slice(0, most)
        keys: dict[int, list[int]] = defaultdict(list)
        for cell, key in zip(table.column("cell").to_pylist(), table.column("key").to_pylist(), strict=True):
            keys[cell].append(key)
        p.memory.samples[name] = {c: merkle({str(k): "" for k in found}) for c, found in keys.items()}
    return p.memory.samples[name]


def _fit(
    p: _Planner,
    s: Survey,
    parts: Mapping[str, Parts],
    members: Mapping[int, Receipt],
    samples: Mapping[str, Receipt],
    payload: Kept,
    whole: bool,
) -> None:
    """`whole`: all the payload is there that codecs are fitted on."""
    locked = _locked(p)
    codecs = p.ctx.recipe.codecs
    sketches: dict[int, Part] | None = {}
    if codecs.scalars == "sketch" and s.name in samples:
        sketches = _sketches(p, s, parts[s.name], members)
    for m in s.modalities:
        if m.name in locked:
            p.plan.codecs[m.name] = {"content_id": locked[m.name], "parts": _locked_parts(p, locked[m.name])}
            continue
        if m.payload and not whole:
            continue
        if s.name not in samples:
            if m.name in p.refit:
                raise ValueError(f"no codec of {m.name} can be fitted: {s.name} has no source here; the old one stays")
            p.plan.codecs[m.name] = {"content_id": None, "parts": {}}
            continue
        sample = samples[s.name].outputs["sample"]
        settings = {**_identity(s), "modality": m.name, "codec": m.codec}
        inputs = {"sample": sample.content_id}
        args: dict[str, Any] = {"survey": s.name, "sample": sample.sha256, "cells": {}, "payload": {}}
        if codecs.scalars == "sketch" and not m.payload:
            if sketches is None:
                continue
            settings["scalars"] = "sketch"
            inputs = {f"{cell}": part.content_id for cell, part in sketches.items()}
            args = {"survey": s.name, "sketches": {str(cell): part.sha256 for cell, part in sketches.items()}}
        elif m.payload:
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
        if receipt is not None and m.name in p.refit and not receipt.notes.get("content_id"):
            raise ValueError(f"no codec of {m.name} can be fitted: {receipt.notes['unfit']}; the old one stays")
        if receipt is not None:
            p.plan.codecs[m.name] = {
                "content_id": receipt.notes.get("content_id"),
                "parts": dict(receipt.outputs),
            }


def _locked_parts(p: _Planner, content_id: str) -> dict[str, Part]:
    """The files of a locked codec as parts of this pile."""
    if content_id not in p.memory.codecs:
        p.memory.codecs[content_id] = p.ctx.pile.put_folder(p.ctx.pile.root / "codecs" / content_id)
    return p.memory.codecs[content_id]


Tokens = dict[str, dict[int, Part]]


def _encode(p: _Planner, s: Survey, wanted: Mapping[int, Receipt], payload: Kept) -> Tokens:
    out: Tokens = {m.name: {} for m in s.modalities}
    columns = [m for m in s.modalities if not m.payload]
    for cell, w in wanted.items():
        found: dict[str, Part] = {}
        fitted = all(m.name in p.plan.codecs for m in columns)
        if columns and fitted and w.counts["wanted"] > w.counts["forced"]:
            settings = {**_identity(s), "modalities": [m.name for m in columns]}
            ids = {m.name: p.plan.codecs[m.name]["content_id"] or NO_CODEC for m in columns}
            args: dict[str, Any] = {"survey": s.name, "wanted": w.outputs["wanted"].sha256}
            args["codecs"] = {m.name: p.plan.codecs[m.name]["parts"] for m in columns}
            args["earlier"] = _earlier_values(p, s, cell, settings, ids)
            inputs = {"wanted": w.outputs["wanted"].content_id, **ids}
            receipt = p.need("encode", f"{s.name} columns cell {cell}", settings, inputs, args)
            if receipt is not None:
                found |= receipt.outputs
        for m in s.modalities:
            if not m.payload or cell not in payload[m.name] or m.name not in p.plan.codecs:
                continue
            made = payload[m.name][cell]
            codec = p.plan.codecs[m.name]
            whole = made["payload"] if made.get("whole") else None
            inputs = {**made["inputs"], "codec": codec["content_id"] or NO_CODEC}
            if whole:
                inputs = {"payload": whole.content_id, "codec": codec["content_id"] or NO_CODEC}
            args = {**made["args"], "codec": codec["parts"], "payload": whole.sha256 if whole else ""}
            settings = made["settings"] if whole else {**made["settings"], "extract version": VERSIONS["extract"]}
            args["earlier tokens"] = _earlier_tokens(p, s, m, cell, settings, inputs["codec"])
            receipt = p.need("encode payload", f"{m.name} cell {cell}", settings, inputs, args)
            if receipt is not None:
                found |= receipt.outputs
        for name, part in found.items():
            out[name][cell] = part
            p.plan.tables[f"tokens.{name}"].append({"cell": cell, "part": part})
    return out


def _earlier_values(
    p: _Planner, s: Survey, cell: int, settings: Mapping[str, Any], ids: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """Tokens behind the parent, by modality, that were made with the same codec."""
    old_wanted = p.earlier(f"{s.name} cell {cell}", "want", _identity(s))
    old = p.parent.receipt(f"encode {s.name} columns cell {cell}")
    if old is None or old_wanted is None or old.settings["step version"] != VERSIONS["encode"]:
        return {}
    identity = _identity(s)
    if canonical_json({k: old.settings[k] for k in identity}) != canonical_json(identity):
        return {}
    wanted = old_wanted.outputs["wanted"].sha256
    return {m: {"wanted": wanted, "tokens": old.outputs[m].sha256} for m in ids if old.inputs.get(m) == ids[m]}


def _earlier_tokens(
    p: _Planner, s: Survey, m: Modality, cell: int, settings: Mapping[str, Any], codec: str
) -> dict[str, Any] | None:
    """The tokens of a payload modality behind the parent, with the sources and files that they were made of."""
    label = f"{m.name} cell {cell}"
    old_wanted = p.earlier(f"{s.name} cell {cell}", "want", _identity(s))
    old = p.earlier(label, "encode payload", settings)
    if old is None or old_wanted is None or old.inputs.get("codec") != codec or m.name not in old.outputs:
        return None
    # tokens that were made of a kept payload hang on no files themselves
    source = p.earlier(label, "extract", settings) if "payload" in old.inputs else old
    if source is None:
        return None
    wanted, tokens = old_wanted.outputs["wanted"].sha256, old.outputs[m.name].sha256
    return {"wanted": wanted, "tokens": tokens, "files": source.notes["files"]}


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
        args: dict[str, Any] = {"cell": cell, "members": matched.outputs["members"].sha256, "near": {}}
        args |= {"reference": {}, "known": {}}
        for s in surveys:
            if s.footprint == "exact":
                inputs |= {f"{s.name} {r}": sha for r, (_, sha) in reference[s.name].items()}
                args["reference"][s.name] = {r: path for r, (path, _) in reference[s.name].items()}
                args["known"][s.name] = _known(p, s, reference[s.name])
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
