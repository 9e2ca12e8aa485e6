"""Does what the plan says: in this process, on a local Dask cluster, or on any scheduler. Alone in knowing Dask."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from skycairn.catalogs.survey import MissingColumn
from skycairn.pile.files import PileError
from skycairn.pile.receipt import Receipt
from skycairn.pile.store import Draft, Entry, Pile, Snapshot
from skycairn.pipeline import task as tasks
from skycairn.pipeline.encode import codec_of
from skycairn.pipeline.extract import DamagedFiles
from skycairn.pipeline.fetch import ChecksumMismatch
from skycairn.pipeline.plan import Memory, Plan, plan
from skycairn.pipeline.recipe import Recipe, canonical
from skycairn.pipeline.report import Report, report
from skycairn.pipeline.steps import work
from skycairn.pipeline.task import Context, Task
from skycairn.pipeline.versions import VERSIONS
from skycairn.tokenizers.lock import read_lock, write_lock

LOSABLE = ("fetch", "read")
"""Steps whose failure may hold back what their file can touch; a failure of any other step stops the build."""

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
    "files that could not be had as they should be, with the reason: mend them and build again"
    lost: Mapping[str, str] = field(default_factory=dict)
    "payload files that the archive lists and does not have: their measurements are `file absent`"
    partial: bool = False
    "whether anything was held back"


def build(
    recipe: Recipe,
    pile_root: Path,
    workers: int = 0,
    scheduler: str = "",
    progress: Progress | None = None,
) -> Built:
    """Build the recipe's pile, or bring it up to date; what is done already is not done again.

    `workers` 0 does the work in this process; `scheduler` is the address of a running Dask scheduler, whose workers
    must see the pile and the survey files under the same paths. BuildError where it cannot go on.
    """
    if workers < 0:
        raise ValueError(f"{workers} workers were asked for; wanted 1 or more, or 0 to work in this process")
    pile = Pile.create(pile_root)
    ctx = Context(pile, recipe)
    _adopt_lock(pile, recipe)
    before = tasks_behind(pile)
    memory = Memory()
    failed: dict[str, str] = {}
    n_tasks = 0
    with _engine(ctx, workers, scheduler) as engine:
        while not (p := plan(ctx, failed, before, memory)).done:
            n_tasks += _round(engine, p.todo, memory, failed, progress)
    _check_whole(recipe, p)
    done = report(ctx, p)
    _check_split(recipe, done)
    partial = bool(p.held_cells or p.held_back)
    if not partial:
        # codecs fitted while something is held back would bind the pile to them after it is mended
        _write_lock(ctx, p)
    snapshot = pile.commit(_draft(recipe, p, done))
    write_journal(pile, p)
    return Built(snapshot, done, n_tasks, p.held_back, p.lost, partial)


def dry_run(recipe: Recipe, pile_root: Path) -> Plan:
    """What `build` would begin with, and why; the pile is made, and nothing else."""
    pile = Pile.create(pile_root)
    _adopt_lock(pile, recipe, write=False)
    return plan(Context(pile, recipe), before=tasks_behind(pile))


def _round(
    engine: Callable[[Sequence[Task]], Iterator[tuple[Task, dict[str, Any]]]],
    todo: Sequence[Task],
    memory: Memory,
    failed: dict[str, str],
    progress: Progress | None,
) -> int:
    total = Counter(t.step for t in todo)
    done: Counter[str] = Counter()
    fatal = ""
    for task, result in engine(todo):
        if "damaged" in result:
            survey = task.args["survey"]
            memory.damaged |= {f"{survey}/{path}": reason for path, reason in result["damaged"].items()}
        elif "error" in result:
            failed[task.label] = result["error"]
            if task.step not in LOSABLE or not result["of the file"]:
                fatal = fatal or f"{task.label}: {result['error']}"
        else:
            memory.receipts[task.key] = Receipt.from_json(result["receipt"])
        done[task.step] += 1
        if progress:
            progress(task.step, done[task.step], total[task.step])
    if fatal:
        raise BuildError(fatal)
    return len(todo)


# --- engines ----------------------------------------------------------------------------------------------------------


def run_one(pile: str, recipe: str, task: Task) -> dict[str, Any]:
    """Do one task; its receipt, or its error in words, so that no exception has to travel."""
    with threadpool_limits(1):
        try:
            ctx = tasks.context(pile, recipe)
            if "survey" in task.args:
                ctx.archive(task.args["survey"])
        except Exception as error:
            # a worker without the pile or without a survey's root is no fault of the survey's files
            return {"error": f"{type(error).__name__}: {error}", "of the file": False}
        try:
            return {"receipt": work(ctx, task).to_json()}
        except DamagedFiles as error:
            return {"damaged": error.files}
        except (ChecksumMismatch, ValueError) as error:
            return {"error": str(error), "of the file": not isinstance(error, MissingColumn | PileError)}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}", "of the file": False}


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _engine(
    ctx: Context, workers: int, scheduler: str
) -> Iterator[Callable[[Sequence[Task]], Iterator[tuple[Task, dict[str, Any]]]]]:
    where = str(ctx.pile.root.resolve()), canonical(ctx.recipe.settings())
    with ExitStack() as stack:
        if workers == 0 and not scheduler:
            yield lambda todo: ((task, run_one(*where, task)) for task in todo)
            return
        from distributed import Client, LocalCluster, as_completed

        if scheduler:
            try:
                client = stack.enter_context(Client(scheduler, timeout="15s"))
            except OSError as error:
                raise BuildError(f"no Dask scheduler answers at {scheduler} ({error})") from error
            if not client.scheduler_info()["workers"]:
                raise ValueError(f"the scheduler at {scheduler} has no worker; start one, dask worker {scheduler}, say")
        else:
            os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "65536")
            cluster = stack.enter_context(
                LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=40)
            )
            client = stack.enter_context(Client(cluster))
            # Ctrl-C is for this process, which then stops the workers in order
            client.run(_ignore_interrupts)

        def run(todo: Sequence[Task]) -> Iterator[tuple[Task, dict[str, Any]]]:
            futures = {
                client.submit(run_one, *where, task, key=f"{task.label} {task.key}", pure=False): task for task in todo
            }
            try:
                for future in as_completed(futures):
                    if future.status == "finished":
                        yield futures[future], future.result()
                    else:
                        why = "cancelled" if future.status == "cancelled" else repr(future.exception())
                        yield futures[future], {"error": f"its worker was lost: {why}", "of the file": False}
                    future.release()
            except (KeyboardInterrupt, GeneratorExit):
                client.cancel(list(futures))
                raise

        yield run


# --- the end of a build -----------------------------------------------------------------------------------------------


def _check_whole(recipe: Recipe, p: Plan) -> None:
    if p.tables.get("objects"):
        return
    if p.held_back:
        first = next(iter(p.held_back.items()))
        raise BuildError(f"everything is held back; the first reason: {first[0]}: {first[1]}")
    raise BuildError(
        f"recipe {recipe.name}: no survey has a valid source in the region {canonical(recipe.region.settings())}; "
        "check the region and the surveys' roots"
    )


def _check_split(recipe: Recipe, done: Report) -> None:
    total = sum(n for name, n in done.splits.items() if name != "guard")
    for name, fraction in zip(("train", "validation", "test"), recipe.split.fractions, strict=True):
        share = done.splits.get(name, 0) / total if total else 0.0
        if name != "train" and fraction > 0 and share < recipe.split.least:
            raise BuildError(
                f"split {name} holds {done.splits.get(name, 0)} of {total} objects ({share:.1%}), wanted at least "
                f"{recipe.split.least:.0%}; build more of the sky, choose another split.salt, or set split.least = 0"
            )


def _draft(recipe: Recipe, p: Plan, done: Report) -> Draft:
    def entries(found: Sequence[Mapping[str, Any]]) -> list[Entry]:
        return [Entry({k: v for k, v in e.items() if k != "part"}, e["part"]) for e in found]

    # the content of shards is that of objects, tokens and codecs, however they are laid out
    aside_names = [n for n in p.tables if n.endswith(".provenance") or n.startswith("payload.") or n == "shards"]
    codecs = [
        Entry({"modality": m, "file": name}, part)
        for m, c in sorted(p.codecs.items())
        for name, part in c["parts"].items()
    ]
    settings = recipe.settings()
    for chosen in settings["surveys"].values():
        chosen.pop("root")
    settings["codecs"].pop("lock")
    return Draft(
        recipe=settings,
        tables={"codecs": codecs, **{n: entries(t) for n, t in p.tables.items() if n not in aside_names}},
        aside={n: entries(p.tables[n]) for n in aside_names},
        held_back=sorted(p.held_cells),
        stats={"splits": dict(done.splits), "codecs": {m: c["content_id"] for m, c in sorted(p.codecs.items())}},
    )


def tasks_behind(pile: Pile) -> dict[str, dict[str, Any]]:
    """Settings and inputs of the tasks of the last build, by label."""
    path = pile.root / "journal" / "tasks.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def write_journal(pile: Pile, p: Plan) -> None:
    """Leave the tasks behind this build, so that the next can say why it does one again."""
    behind = {
        label: {"settings": r.settings, "inputs": r.inputs, "version": VERSIONS[r.step]}
        for label, r in sorted(p.receipts.items())
    }
    folder = pile.root / "journal"
    folder.mkdir(exist_ok=True)
    for name, what in (("tasks", behind), ("files", {"held back": p.held_back, "lost": p.lost})):
        fresh = folder / f"{name}.{os.getpid()}.tmp"
        fresh.write_text(json.dumps(what))
        fresh.replace(folder / f"{name}.json")


def _adopt_lock(pile: Pile, recipe: Recipe, write: bool = True) -> None:
    """Take over the codecs that the recipe names; ValueError where the pile is locked to another of one of them."""
    if not recipe.codecs.lock:
        return
    source = Path(recipe.codecs.lock)
    source = source / "codecs.lock" if source.is_dir() else source
    if not source.is_file():
        raise ValueError(f"codecs.lock: {source} is not there; name a codecs.lock, or a pile that holds one")
    mine = pile.root / "codecs.lock"
    theirs = read_lock(source)
    own = read_lock(mine) if mine.is_file() else {}
    other = sorted(m for m in own.keys() & theirs.keys() if own[m].content_id != theirs[m].content_id)
    if other:
        raise ValueError(f"{pile.root} is locked to another codec of {other[0]} than {source}; build into another pile")
    if write and theirs.keys() - own.keys():
        write_lock(mine, {**theirs, **own})


def _write_lock(ctx: Context, p: Plan) -> None:
    path = ctx.pile.root / "codecs.lock"
    codecs = read_lock(path) if path.is_file() else {}
    codecs |= {m: codec_of(ctx, c["parts"]) for m, c in p.codecs.items() if c["content_id"]}
    write_lock(path, codecs)
