"""What a person sees: bars while work goes on, tables when it is done."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from skycairn.pile.store import Pile
from skycairn.pile.verify import Verification
from skycairn.pipeline.hats import View
from skycairn.pipeline.plan import Plan
from skycairn.pipeline.run import Built


class Bars:
    """A bar a step; on anything but a terminal a line when a step is done."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description:16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.bars: dict[str, Any] = {}
        self.before: Counter[str] = Counter()
        self.last: Counter[str] = Counter()

    def __call__(self, step: str, done: int, total: int) -> None:
        """Told by the work: `done` of `total` of this round."""
        if done <= self.last[step]:
            self.before[step] += self.last[step]
        self.last[step] = done
        if not self.console.is_terminal:
            if done == total:
                self.console.print(f"{step}: {self.before[step] + done} done", highlight=False)
            return
        if step not in self.bars:
            self.bars[step] = self.progress.add_task(step, total=total)
        self.progress.update(self.bars[step], completed=self.before[step] + done, total=self.before[step] + total)

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.progress.stop()


def print_ids(by_stratum: Mapping[str, tuple[int, list[str]]]) -> None:
    """A few objects of each set of surveys."""
    table = Table("surveys", "objects", "the first ids", title="Objects")
    for stratum, (n, ids) in sorted(by_stratum.items()):
        table.add_row(stratum, f"{n:,}", "\n".join(ids))
    Console().print(table)


def print_plan(plan: Plan) -> None:
    """What is to do next, by step, with the reasons."""
    console = Console(soft_wrap=True)
    if plan.done and not plan.held_back:
        console.print("Nothing to do: every output is there under its key.")
    reasons = Counter((t.step, t.why) for t in plan.todo)
    if reasons:
        table = Table("step", "tasks", "why", title="To do next")
        for (step, why), n in sorted(reasons.items()):
            table.add_row(step, str(n), why)
        console.print(table)
        console.print("Later steps follow from what these leave.")
    _print_files(console, plan.held_back, plan.lost)


def print_report(built: Built) -> None:
    """The closing table; every line's sums were checked."""
    console = Console(width=max(118, Console().width))
    r = built.report
    table = Table(title="Sources", title_justify="left")
    rows = ("files", "verified", "rows", "dropped", "repeats", "valid", "selected", "in objects", "outside", "tokens")
    for name in ("survey", *rows):
        table.add_column(name, justify="left" if name == "survey" else "right", no_wrap=True)
    for name, counts in r.surveys.items():
        dropped = sum(n for k, n in counts.items() if k.startswith("dropped:"))
        tokens = sum(n for k, n in counts.items() if k.startswith("tokens:"))
        keys = ("repeats", "valid", "selected", "members", "anchored outside region")
        shown = [
            *(counts.get(k, 0) for k in ("files", "verified", "rows")),
            dropped,
            *(counts.get(k, 0) for k in keys),
            tokens,
        ]
        table.add_row(name, *(f"{n:,}" for n in shown))
    console.print(table)
    cuts = Table("survey", "why", "sources", title="Dropped, and not selected", title_justify="left")
    for name, counts in r.surveys.items():
        for key, n in sorted(counts.items(), key=lambda item: (not item[0].startswith("dropped:"), -item[1])):
            if n and key.startswith(("dropped:", "not selected:")):
                cuts.add_row(name, key.replace(":", ": ", 1), f"{n:,}")
    console.print(cuts)
    objects = Table("stratum", "objects", title="Objects by survey", title_justify="left")
    for name, n in sorted(r.strata.items()):
        objects.add_row(name, f"{n:,}")
    objects.add_row("all", f"{r.objects:,}", style="bold")
    console.print(objects)
    split = ", ".join(f"{name} {n:,}" for name, n in sorted(r.splits.items()))
    absent = {name: n["file absent"] for name, n in sorted(r.statuses.items()) if n.get("file absent")}
    if absent:
        told = ", ".join(f"{name} of {n:,}" for name, n in absent.items())
        console.print(f"objects whose files are not there: {told}", highlight=False, soft_wrap=True)
    console.print(f"{r.pairs:,} candidate pairs, {r.conflicts:,} conflicts; split: {split}", highlight=False)
    done = f"{built.n_tasks} tasks done" if built.n_tasks else "0 tasks: nothing had changed"
    console.print(
        f"{done}; snapshot {built.snapshot.number}, content {built.snapshot.content_id}",
        highlight=False,
        soft_wrap=True,
    )
    _print_files(console, built.held_back, built.lost)


def _print_files(console: Console, held_back: Mapping[str, str], lost: Mapping[str, str]) -> None:
    for kind, files in (("held back", held_back), ("lost", lost)):
        for path, why in sorted(files.items()):
            console.print(f"{kind}: {path}: {why}", highlight=False, soft_wrap=True)


def print_status(pile: Pile) -> None:
    """Snapshots, tables, objects, what is held back."""
    console = Console()
    head = pile.head()
    if head is None:
        console.print("No snapshot yet. Build again: it goes on where it was, or says what is wrong.")
        return
    console.print(
        f"snapshot {head.number} of {len(pile.snapshots())}, content {head.content_id}", highlight=False, soft_wrap=True
    )
    table = Table("table", "parts", "rows", "MB")
    for name in (*head.tables, *head.aside):
        parts = [e.part for e in head.entries(name)]
        size = sum(p.n_bytes for p in parts) / 1e6
        table.add_row(name, f"{len(parts):,}", f"{sum(p.n_rows for p in parts):,}", f"{size:,.1f}")
    console.print(table)
    splits = ", ".join(f"{k} {v:,}" for k, v in sorted(head.stats.get("splits", {}).items()))
    console.print(f"objects by split: {splits}", highlight=False)
    if head.held_back:
        console.print(f"held back: {len(head.held_back)} work cells: {list(head.held_back)[:10]}", highlight=False)
    journal = pile.root / "journal" / "files.json"
    if journal.is_file():
        files = json.loads(journal.read_text())
        _print_files(console, files["held back"], files["lost"])


def print_verification(found: Verification) -> bool:
    """Problems, or that there are none; whether there are none."""
    console = Console(soft_wrap=True)
    for problem in found.problems:
        console.print(f"{problem.where}: {problem.what}", highlight=False)
    said = f"{found.n_parts:,} parts, {found.n_bytes / 1e6:,.1f} MB read"
    console.print(
        f"{said}; {len(found.problems)} problems" if found.problems else f"{said}; all sound", highlight=False
    )
    return found.sound


def print_view(view: View) -> None:
    """The catalogues of a HATS view, and what they cost."""
    console = Console(soft_wrap=True)
    table = Table("catalogue", "rows", "in margins", "in objects")
    for name, n in view.rows.items():
        of_objects = f"{view.member_rows[name]:,}" if name in view.member_rows else ""
        table.add_row(name, f"{n:,}", f"{view.margin_rows[name]:,}", of_objects)
    console.print(table)
    if view.n_copies:
        console.print(
            f"{view.n_copies:,} of {view.n_links + view.n_copies:,} leaves are copies: the file system links none of "
            "the pile's files into this folder",
            highlight=False,
        )
    state = "written" if view.written else "was there already"
    console.print(
        f"{view.root}: snapshot {view.snapshot} {state}; {view.linked_bytes / 1e6:,.1f} MB are the pile's own files, "
        f"{view.new_bytes / 1e6:,.1f} MB new",
        highlight=False,
    )
