"""Builds a pile: does what the plan says until nothing is left, then commits a snapshot of it."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from skycairn.archives.cache import NoRoom
from skycairn.catalogs.survey import WORK_ORDER
from skycairn.match.sky import split_of_cell
from skycairn.pile.files import Conflict
from skycairn.pile.lock import builder_lock
from skycairn.pile.receipt import Part, Receipt
from skycairn.pile.store import Draft, Entry, Pile, Snapshot
from skycairn.pipeline import lineage
from skycairn.pipeline.downloads import Downloads
from skycairn.pipeline.engine import Engine, Run, stoppable
from skycairn.pipeline.journal import Journal
from skycairn.pipeline.loaded import codec_of_parts
from skycairn.pipeline.parent import Parent, tasks_table
from skycairn.pipeline.plan import Failure, Memory, Plan, cells_held_by, plan
from skycairn.pipeline.recipe import Recipe, canonical
from skycairn.pipeline.report import Report, report
from skycairn.pipeline.takeover import take_over
from skycairn.pipeline.task import Context, Task
from skycairn.tokenizers.lock import lock_ids, read_lock, write_lock

LOSABLE = ("fetch", "read")
"""Steps whose failure holds back what their file can touch."""
OF_FILES = ("fetch payload", "extract", "encode payload")
"""Steps that read payload files: what is wrong with one of them holds back the cell."""

SPLIT_ORDER = 5
"""HEALPix order of the cells that the sky is divided by, see `split_of_cell`."""
SPLIT_REMEDY = "build more of the sky, choose another split.salt, or set split.least = 0 (--allow-small-splits)"

Progress = Callable[[str, int, int], None]
"""Told (step, done, total) as work goes on."""


class BuildError(Exception):
    """The build cannot go on."""


@dataclass(frozen=True)
class Built:
    """How a build ended."""

    snapshot: Snapshot
    report: Report
    n_tasks: int
    held_back: Mapping[str, str] = field(default_factory=dict)
    "files and tasks that could not be had as they should be, with the reason: mend them and build again"
    lost: Mapping[str, str] = field(default_factory=dict)
    "payload files that the archive lists and does not have: their measurements are `file absent`"
    partial: bool = False
    "whether anything was held back"
    parent: int | None = None
    "number of the snapshot that was the head before"
    done: Mapping[str, int] = field(default_factory=dict)
    "tasks by step"
    asked: Mapping[str, int] = field(default_factory=dict)
    "requests to archives far away"


def build(
    recipe: Recipe,
    pile_root: Path,
    workers: int = 0,
    scheduler: str = "",
    progress: Progress | None = None,
    *,
    engine: Engine | None = None,
    rehash: bool = False,
    refit: Iterable[str] = (),
    codecs_from: Path | None = None,
    new_split: bool = False,
    small_splits: bool = False,
    reuse: Path | None = None,
) -> Built:
    """Build the recipe's pile, or bring it up to date; what is done already is not done again.

    `workers` 0 does the work in this process; `scheduler` is the address of a running Dask scheduler, whose workers
    must see the pile and the survey files under the same paths; `engine` says both and more. `rehash` reads every
    survey file again; `refit` names modalities whose codecs are fitted anew, `codecs_from` a pile or lock whose codecs
    take the place of this pile's; `new_split` lets the division of the sky be another than the head's, `small_splits`
    lets validation and test be as small as they are; `reuse` is another pile whose finished work is taken over, see
    takeover.py. BuildError where it cannot go on.
    """
    engine = engine or Engine(workers, scheduler)
    pile = Pile.create(pile_root)
    with builder_lock(pile.root):
        journal, head = Journal(pile), pile.head()
        _restore_lock(pile, head)
        if codecs_from is not None:
            _exchange_codecs(pile, codecs_from)
        adopt_lock(pile, recipe)
        if reuse is not None:
            take_over(pile, reuse)
        if head is not None and not (rehash or refit) and journal.nothing_changed(recipe, head):
            return Built(head, Report(**head.stats["report"]), 0, lost=journal.files()["lost"], parent=head.number)
        _check_same_split(recipe, head, new_split)
        ctx = Context(pile, recipe)
        if not small_splits:
            _check_split_possible(ctx)
        parent, memory = Parent(pile, head), Memory()
        failed: dict[str, Failure] = {}
        n_tasks: Counter[str] = Counter()
        asked: Counter[str] = Counter()
        with engine.start(ctx) as run:
            p = rounds(ctx, run, parent, memory, failed, progress, n_tasks, rehash, refit, asked)
            if head is None and p.held_back and not p.tables.get("objects"):
                journal.write_held_back(p)
            _check_whole(recipe, p)
            done = report(ctx, p)
            if not small_splits:
                _check_split(recipe, done)
            while todo := lineage.todo(ctx, parent, p, memory):
                _round(pile, run, todo, memory, failed, progress, n_tasks)
        partial = bool(p.held_cells or p.held_back)
        if partial and refit:
            first = next(iter(p.held_back.items()))
            raise BuildError(f"codecs are not fitted anew while something is held back: {first[0]}: {first[1]}")
        if not partial:
            # codecs fitted while something is held back would bind the pile to them after it is mended
            _write_lock(ctx, p)
        snapshot = _commit(pile, _draft(ctx, parent, p, done, memory), head)
        journal.write(ctx, snapshot, p, partial)
        number = None if head is None else head.number
        return Built(
            snapshot, done, sum(n_tasks.values()), p.held_back, p.lost, partial, number, dict(n_tasks), dict(asked)
        )


def dry_run(recipe: Recipe, pile_root: Path, rehash: bool = False, refit: Iterable[str] = ()) -> tuple[Plan, Parent]:
    """What `build` would begin with, and why, and the head that it would begin from.

    Only the pile is made, and lists and small tables of archives far away are fetched.
    """
    pile = Pile.create(pile_root)
    adopt_lock(pile, recipe, write=False)
    parent = Parent(pile, pile.head())
    ctx = Context(pile, recipe)
    # lists of files are asked for where they are not here
    with Downloads(ctx):
        return plan(ctx, parent=parent, rehash=rehash, refit=refit), parent


def rounds(
    ctx: Context,
    run: Run,
    parent: Parent,
    memory: Memory,
    failed: dict[str, Failure],
    progress: Progress | None = None,
    n_tasks: Counter[str] | None = None,
    rehash: bool = False,
    refit: Iterable[str] = (),
    asked: Counter[str] | None = None,
    catalogues_only: bool = False,
) -> Plan:
    """Plan and do, until nothing is left but what failed; the plan of that.

    `n_tasks` counts by step what was done, `asked` what was asked of archives far away; `catalogues_only` as of `plan`.
    """
    counts: Counter[str] = Counter() if n_tasks is None else n_tasks
    try:
        with Downloads(ctx, progress, rehash) as downloads:
            while True:
                # what an archive is asked while files are planned may take long
                with stoppable():
                    p = plan(ctx, failed, parent, memory, rehash, refit, catalogues_only)
                if p.done:
                    p.cut_off = downloads.cut_off() and not p.tables.get("objects")
                    break
                failed.update(p.late)
                _check_space(ctx, p)
                todo, given_up = downloads.ready(p)
                for task in p.todo:
                    if task.label in given_up:
                        _note_failure(ctx.pile, task, given_up[task.label], "defer", failed)
                _round(ctx.pile, run, todo, memory, failed, progress, counts)
                if not todo and not given_up and not p.late:
                    downloads.wait()
            if asked is not None:
                asked.update(downloads.counts())
    except NoRoom as error:
        raise BuildError(str(error)) from error
    return p


def _cut_off(p: Plan) -> str:
    told = dict.fromkeys(why.removesuffix("; build again") for why in p.held_back.values())
    return f"no archive's name resolves, or nobody answers there: is this machine on a network? {'; '.join(told)}"


def _check_space(ctx: Context, p: Plan) -> None:
    free = shutil.disk_usage(ctx.pile.root).free
    if p.payload_bytes > free:
        raise BuildError(
            f"{ctx.pile.root}: pixels and spectra will take at least {p.payload_bytes / 1e9:,.1f} GB, "
            f"{free / 1e9:,.1f} GB are free; "
            'free some, or keep fewer: payload.keep = "sample" or "none" in the recipe'
        )


def _round(
    pile: Pile,
    run: Run,
    todo: Sequence[Task],
    memory: Memory,
    failed: dict[str, Failure],
    progress: Progress | None,
    n_tasks: Counter[str],
) -> None:
    total = Counter(t.step for t in todo)
    done: Counter[str] = Counter()
    for task, result in run(todo):
        done[task.step] += 1
        n_tasks[task.step] += 1
        if progress:
            progress(task.step, done[task.step], total[task.step])
        if "receipt" in result:
            memory.receipts[task.key] = Receipt.from_json(result["receipt"])
            continue
        _note_failure(pile, task, result["error"], result["kind"], failed)


def _note_failure(pile: Pile, task: Task, error: str, kind: str, failed: dict[str, Failure]) -> None:
    """Hold back what a task that failed can touch; BuildError where that is everything."""
    cells = cells_held_by(task)
    if task.step in LOSABLE and kind != "fatal":
        failed[task.label] = Failure(error, kind=kind)
        if task.step == "fetch":
            # an earlier receipt of the same size and time tells of other bytes
            pile.drop_receipt(task.key)
    elif cells is not None and (kind == "defer" or (kind == "file" and task.step in OF_FILES)):
        failed[task.label] = Failure(error, cells, kind)
    else:
        raise BuildError(f"{task.label}: {error}")


# --- the end of a build -----------------------------------------------------------------------------------------------


def _check_whole(recipe: Recipe, p: Plan) -> None:
    if p.tables.get("objects"):
        return
    if p.cut_off:
        raise BuildError(_cut_off(p))
    if p.held_back:
        raise BuildError(_all_held_back(recipe, p.held_back))
    raise BuildError(
        f"recipe {recipe.name}: no survey has a valid source in the region {canonical(recipe.region.settings())}; "
        "check the region and the surveys' roots"
    )


def _all_held_back(recipe: Recipe, held_back: Mapping[str, str]) -> str:
    """The first reason of each survey, beside what the survey is of and how to do without it."""
    told: dict[str, str] = {}
    for label, why in held_back.items():
        name = next((c.name for c in recipe.surveys if re.search(rf"\b{c.name}\b", label)), label)
        told.setdefault(name, f"{label}: {why}")
    for choice in recipe.surveys:
        if choice.name not in told:
            continue
        releases = choice.survey().releases
        place = f"root {choice.root}" if choice.root else f"source {choice.source}"
        known = f"; releases that can be read are {', '.join(releases)}" if len(releases) > 1 else ""
        told[choice.name] += f" (release {choice.release}, {place}{known})"
    without = [n for n in told if n in {c.name for c in recipe.surveys}]
    if without and len(without) < len(recipe.surveys):
        told[""] = f"mend it, or leave out {', '.join(without)} ({' '.join(f'--without {n}' for n in without)})"
    return f"everything is held back: {'; '.join(told.values())}"


def _check_split_possible(ctx: Context) -> None:
    """Before any work, whether a split that must hold something has a cell in the region."""
    recipe = ctx.recipe
    for choice in recipe.surveys:
        if choice.source in ("", "root"):
            # a root that is not there is the first thing to be told
            ctx.archive(choice.name)
    coarse = np.unique(recipe.region.work_cells() >> 2 * (WORK_ORDER - SPLIT_ORDER))
    there = set(split_of_cell(coarse, recipe.split.salt, recipe.split.by_name(), SPLIT_ORDER).tolist())
    for name, fraction in recipe.split.by_name().items():
        if name != "train" and fraction > 0 and recipe.split.least > 0 and name not in there:
            raise BuildError(
                f"split {name} can hold none of the objects, wanted at least {recipe.split.least:.0%}: it has none of "
                f"the {len(coarse)} cells of order {SPLIT_ORDER} that the region touches; {SPLIT_REMEDY}"
            )


def _check_split(recipe: Recipe, done: Report) -> None:
    total = sum(n for name, n in done.splits.items() if name != "guard")
    for name, fraction in zip(("train", "validation", "test"), recipe.split.fractions, strict=True):
        share = done.splits.get(name, 0) / total if total else 0.0
        if name != "train" and fraction > 0 and share < recipe.split.least:
            raise BuildError(
                f"split {name} holds {done.splits.get(name, 0)} of {total} objects ({share:.1%}), wanted at least "
                f"{recipe.split.least:.0%}; {SPLIT_REMEDY}"
            )


def _check_same_split(recipe: Recipe, head: Snapshot | None, new_split: bool) -> None:
    if head is None or new_split:
        return
    for key in ("salt", "fractions"):
        before, now = head.recipe["split"][key], recipe.settings()["split"][key]
        if before != now:
            raise BuildError(
                f"split.{key} is {now!r}, the pile's is {before!r}: objects that a model trained on would move into "
                "validation and test; keep it, build into another pile, or give --new-split and train anew"
            )


def _commit(pile: Pile, draft: Draft, head: Snapshot | None) -> Snapshot:
    """Make the draft the head, unless another build has made another one of the head meanwhile."""
    number = None if head is None else head.number
    try:
        return pile.commit(draft, parent=number)
    except Conflict as error:
        other = pile.snapshot()
        if Snapshot.of(draft, other.number, other.parent).says_the_same(other):
            return other
        raise BuildError(
            f"{pile.root}: another build made snapshot {other.number} meanwhile, of another recipe; build again: what "
            "was done is kept, and goes on from there"
        ) from error


def _draft(ctx: Context, parent: Parent, p: Plan, done: Report, memory: Memory) -> Draft:
    def entries(found: Iterable[Mapping[str, Any]]) -> list[Entry]:
        return [Entry({k: v for k, v in e.items() if k != "part"}, e["part"]) for e in found]

    # the content of shards is that of objects, tokens and codecs, however they are laid out
    aside_names = [n for n in p.tables if n.endswith(".provenance") or n.startswith("payload.") or n == "shards"]
    codecs = [
        Entry({"modality": m, "file": name}, part)
        for m, c in sorted(p.codecs.items())
        for name, part in c["parts"].items()
    ]
    aside = {n: entries(p.tables[n]) for n in aside_names}
    aside["tasks"] = [Entry({}, ctx.pile.put_table(tasks_table(p.receipts)))]
    if known := lineage.entries(ctx, parent, p, memory):
        aside["lineage"] = known
    return Draft(
        recipe=ctx.recipe.rootless(),
        tables={"codecs": codecs, **{n: entries(t) for n, t in p.tables.items() if n not in aside_names}},
        aside=aside,
        held_back=sorted(p.held_cells),
        stats={
            "splits": dict(done.splits),
            "codecs": {m: c["content_id"] for m, c in sorted(p.codecs.items())},
            "report": asdict(done),
            "lineage": lineage.became(parent, p),
            "locked": (ctx.pile.root / "codecs.lock").is_file(),
        },
    )


def adopt_lock(pile: Pile, recipe: Recipe, write: bool = True) -> None:
    """Take over the codecs that the recipe names; ValueError where the pile is locked to another of one of them."""
    if not recipe.codecs.lock:
        return
    source = Path(recipe.codecs.lock)
    source = source / "codecs.lock" if source.is_dir() else source
    if not source.is_file():
        raise ValueError(f"codecs.lock: {source} is not there; name a codecs.lock, or a pile that holds one")
    mine = pile.root / "codecs.lock"
    own_ids = lock_ids(mine) if mine.is_file() else {}
    their_ids = lock_ids(source)
    if all(own_ids.get(m) == content_id for m, content_id in their_ids.items()):
        return
    theirs = read_lock(source)
    own = read_lock(mine) if mine.is_file() else {}
    other = sorted(m for m in own.keys() & theirs.keys() if own[m].content_id != theirs[m].content_id)
    if other:
        raise ValueError(
            f"{pile.root} is locked to another codec of {other[0]} than {source}; `skycairn refit --codecs-from` "
            "exchanges them, or build into another pile"
        )
    if write:
        write_lock(mine, {**theirs, **own})


def _restore_lock(pile: Pile, head: Snapshot | None) -> None:
    """Write the lock again from the codecs that the head holds, where it is gone: a pile never changes them unasked."""
    path = pile.root / "codecs.lock"
    if path.is_file() or head is None or not head.stats.get("locked"):
        return
    files: dict[str, dict[str, Part]] = {}
    for entry in head.entries("codecs"):
        files.setdefault(str(entry.labels["modality"]), {})[str(entry.labels["file"])] = entry.part
    write_lock(path, {m: codec_of_parts(pile, parts) for m, parts in files.items()})


def _exchange_codecs(pile: Pile, source: Path) -> None:
    """Lock the pile to another's codecs where they differ; the build encodes their modalities anew."""
    source = source / "codecs.lock" if source.is_dir() else source
    if not source.is_file():
        raise ValueError(f"{source} is not there; name a codecs.lock, or a pile that holds one")
    mine = pile.root / "codecs.lock"
    own, theirs = read_lock(mine) if mine.is_file() else {}, read_lock(source)
    if any(m not in own or own[m].content_id != theirs[m].content_id for m in theirs):
        write_lock(mine, {**own, **theirs})


def _write_lock(ctx: Context, p: Plan) -> None:
    path = ctx.pile.root / "codecs.lock"
    ids = lock_ids(path) if path.is_file() else {}
    fresh = {m: c["content_id"] for m, c in p.codecs.items() if c["content_id"]}
    if {**ids, **fresh} == ids:
        return
    codecs = read_lock(path) if path.is_file() else {}
    codecs |= {m: codec_of_parts(ctx.pile, p.codecs[m]["parts"]) for m in fresh if ids.get(m) != fresh[m]}
    write_lock(path, codecs)
