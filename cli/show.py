"""What a person sees: bars while work goes on, tables when it is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from skycairn.catalogs.registry import survey as survey_of
from skycairn.pile.collect import Collection
from skycairn.pile.snapshot import RECORDS
from skycairn.pile.store import Pile, Snapshot
from skycairn.pile.verify import Verification
from skycairn.pipeline import lineage
from skycairn.pipeline.downloads import NOT_HAD
from skycairn.pipeline.drift import Drift
from skycairn.pipeline.hats import View
from skycairn.pipeline.journal import Journal
from skycairn.pipeline.parent import Parent
from skycairn.pipeline.plan import Plan
from skycairn.pipeline.repair import Repaired
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
        if done <= self.last[step] and step not in ("download", NOT_HAD):
            self.before[step] += self.last[step]
        self.last[step] = done
        if not self.console.is_terminal:
            if done == total:
                what = "held back" if step == NOT_HAD else "done"
                self.console.print(f"{step}: {self.before[step] + done} {what}", highlight=False)
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


def print_plan(plan: Plan, parent: Parent) -> None:
    """What is to do next, by step, with the reasons, and how much of what follows from it may be redone."""
    console = Console(soft_wrap=True)
    if plan.done and not plan.held_back:
        differing = parent.differing(plan.tables)
        if differing:
            console.print(
                "Every output is there already, but the head is made of others: a build would make a new snapshot, in "
                f"which {', '.join(differing)} differ. `skycairn diff` would then say how.",
                highlight=False,
            )
        else:
            console.print("Nothing to do: every output is there under its key, and the head is made of them.")
    for survey, files in plan.downloads.items():
        console.print(f"{survey}: {len(files):,} files to fetch first", highlight=False)
    reasons = Counter((t.step, t.why) for t in plan.todo)
    if reasons:
        table = Table("step", "tasks", "why", title="To do next")
        for (step, why), n in sorted(reasons.items()):
            table.add_row(step, str(n), why)
        console.print(table)
        ahead = parent.followers([t.label for t in plan.todo])
        told = ", ".join(f"{step} {n}" for step, n in ahead.items())
        if told:
            console.print(f"At most these follow, less all whose inputs turn out the same: {told}.", highlight=False)
        console.print("What was never done before follows from what these leave.")
    _print_files(console, plan.held_back, plan.lost)


def print_report(built: Built, drifts: Sequence[Drift] = ()) -> None:
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
    if r.links:
        told = ", ".join(f"{state} {n:,}" for state, n in sorted(r.links.items()))
        console.print(f"ids of other surveys' rows: {told}", highlight=False)
    done = f"{built.n_tasks} tasks done"
    if not built.n_tasks:
        new = built.snapshot.number != built.parent
        done = "0 tasks: all was made before, and is put together now" if new else "0 tasks: nothing had changed"
    console.print(
        f"{done}; snapshot {built.snapshot.number}, content {built.snapshot.content_id}",
        highlight=False,
        soft_wrap=True,
    )
    if built.asked:
        told = ", ".join(f"{what} {n:,}" for what, n in sorted(built.asked.items()))
        console.print(f"asked of archives: {told}", highlight=False, soft_wrap=True)
    if became := built.snapshot.stats.get("lineage"):
        told = ", ".join(f"{what} {n:,}" for what, n in sorted(became.items()))
        if built.n_tasks and built.parent != built.snapshot.number:
            console.print(f"objects since snapshot {built.parent}: {told}", highlight=False, soft_wrap=True)
    if unfit := [m for m, content_id in built.snapshot.stats.get("codecs", {}).items() if content_id is None]:
        console.print(
            f"no tokens of {len(unfit)} modalities ({', '.join(unfit[:2])}, ...): no source of the training sky "
            'to fit their codecs on; build more of the sky, set codecs.fit_on = "any", or give --codecs-from',
            highlight=False,
            soft_wrap=True,
        )
    _print_flags(console, built.snapshot)
    _print_drift(console, drifts)
    _print_files(console, built.held_back, built.lost)


def _print_flags(console: Console, snapshot: Snapshot) -> None:
    """Modalities that are not to be mixed with others."""
    for name, chosen in snapshot.recipe["surveys"].items():
        made = survey_of(name, **{k: v for k, v in chosen.items() if k != "profile"})
        for m in (m for m in made.modalities if m.flag):
            console.print(f"flagged: {m.name}: {m.flag}", highlight=False, soft_wrap=True)


def _print_drift(console: Console, drifts: Sequence[Drift]) -> None:
    if not drifts:
        return
    notable = [d for d in drifts if d.notable]
    console.print(
        f"drift of locked codecs: {len(notable)} of {len(drifts)} modalities with new tokens are spread otherwise than "
        "before" + ("; `skycairn refit` fits anew" if notable else ""),
        highlight=False,
        soft_wrap=True,
    )
    if not notable:
        return
    table = Table("modality", "new tokens", "in end codes", "codes in use", "moved", "by chance")
    for d in notable:
        ends = "" if d.ends_now is None or d.ends_before is None else f"{d.ends_before:.1%} to {d.ends_now:.1%}"
        used = f"{d.used_before:.0%} to {d.used_now:.0%}"
        table.add_row(d.modality, f"{d.n_new:,}", ends, used, f"{d.moved:.1%}", f"{d.by_chance:.1%}")
    console.print(table)


def _print_files(console: Console, held_back: Mapping[str, str], lost: Mapping[str, str]) -> None:
    for kind, files in (("held back", held_back), ("lost", lost)):
        for path, why in sorted(files.items()):
            console.print(f"{kind}: {path}: {why}", highlight=False, soft_wrap=True)


def print_status(pile: Pile) -> bool:
    """Snapshots, tables, objects, what is held back; whether nothing is."""
    console = Console()
    head = pile.head()
    if head is None:
        console.print("No snapshot yet. Build again: it goes on where it was, or says what is wrong.")
        files = Journal(pile).files()
        _print_files(console, files["held back"], files["lost"])
        return not files["held back"]
    console.print(
        f"snapshot {head.number}, content {head.content_id}; {len(pile.snapshots())} kept in all",
        highlight=False,
        soft_wrap=True,
    )
    table = Table("table", "parts", "rows", "MB")
    for name in (*head.tables, *head.aside):
        parts = [e.part for e in head.entries(name)]
        size = sum(p.n_bytes for p in parts) / 1e6
        table.add_row(name, f"{len(parts):,}", f"{sum(p.n_rows for p in parts):,}", f"{size:,.1f}")
    console.print(table)
    splits = ", ".join(f"{k} {v:,}" for k, v in sorted(head.stats.get("splits", {}).items()))
    console.print(f"objects by split: {splits}", highlight=False)
    _print_flags(console, head)
    if head.held_back:
        console.print(f"held back: {len(head.held_back)} work cells: {list(head.held_back)[:10]}", highlight=False)
    files = Journal(pile).files()
    _print_files(console, files["held back"], files["lost"])
    if head.held_back or files["held back"]:
        console.print("The next build tries again what is held back.")
        return False
    return True


def print_history(pile: Pile) -> None:
    """The snapshots, newest first; the time is that of the snapshot's file here."""
    table = Table("snapshot", "made", "objects", "against its parent", "tags", "held by", "content")
    readers = [lease for lease in pile.leases() if lease.alive]
    for version in pile.history():
        held = "\n".join(f"process {r.pid} on {r.host}" for r in readers if r.snapshot == version.number)
        number = str(version.number) if version.parent is None else f"{version.number} of {version.parent}"
        if version.damage:
            table.add_row(number, "", "", version.damage, ", ".join(version.tags), held, "")
            continue
        snapshot = pile.snapshot(version.number)
        made = datetime.fromtimestamp(pile.snapshot_path(version.number).stat().st_mtime)
        table.add_row(
            *(number, made.strftime("%Y-%m-%d %H:%M"), f"{sum(e.part.n_rows for e in snapshot.entries('objects')):,}"),
            *(_against_parent(pile, snapshot), ", ".join(version.tags), held, version.content_id[:12]),
        )
    Console(width=max(120, Console().width)).print(table)


def _against_parent(pile: Pile, snapshot: Snapshot) -> str:
    """What differs in the recipe, and what became of the objects."""
    surveys = ", ".join(f"{name} {chosen['release']}" for name, chosen in snapshot.recipe["surveys"].items())
    if snapshot.parent is None or snapshot.parent not in pile.snapshots():
        return surveys
    before = pile.snapshot(snapshot.parent)
    told = [f"{where}: {was} -> {now}" for where, was, now in _differences(before.recipe, snapshot.recipe)]
    told += [f"{what} {n:,}" for what, n in sorted(snapshot.stats.get("lineage", {}).items())]
    return "\n".join(told) or ("survey files changed" if before.content_id != snapshot.content_id else "the same")


def print_diff(pile: Pile, old: Snapshot, new: Snapshot, out: Path | None) -> None:
    """How two snapshots differ."""
    console = Console(soft_wrap=True)
    console.print(f"{old.number}: {old.content_id}\n{new.number}: {new.content_id}", highlight=False)
    if old.content_id == new.content_id:
        console.print("the same content")
    for where, was, now in _differences(old.recipe, new.recipe):
        console.print(f"recipe: {where}: {was} -> {now}", highlight=False)
    table = Table("table", "parts", "same", "rows before", "rows now")
    for name in sorted({*old.tables, *new.tables, *old.aside, *new.aside} - set(RECORDS)):
        a, b = ({e.name: e.part for e in (*s.tables.get(name, ()), *s.aside.get(name, ()))} for s in (old, new))
        same = sum(k in a and a[k].content_id == b[k].content_id for k in b)
        if same != len(b) or len(a) != len(b):
            rows = [sum(p.n_rows for p in x.values()) for x in (a, b)]
            table.add_row(name, f"{len(b):,}", f"{same:,}", f"{rows[0]:,}", f"{rows[1]:,}")
    if table.row_count:
        console.print(table)
    became: Counter[str] = Counter()
    found = []
    for some in lineage.compare(pile, old, new):
        became.update(some["what"].to_pylist())
        found.append(some)
    told = ", ".join(f"{what} {n:,}" for what, n in sorted(became.items())) or "none differs"
    console.print(f"objects: {told}", highlight=False)
    if out is not None:
        rows = pa.concat_tables(found) if found else lineage.SCHEMA.empty_table()
        pq.write_table(rows, out)
        console.print(f"{out}: {rows.num_rows:,} rows", highlight=False)


def _differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, str, str]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif old != new:
        was, now = (t if len(t) < 60 else t[:57] + "..." for t in map(str, (old, new)))
        yield where, was, now


def print_explanation(asked: str, found: Mapping[str, Any], every_file: bool = False) -> None:
    """Where an object comes from; of sound or unpublished neighbours of the file that it lies in only the number."""
    console = Console(width=max(140, Console().width))
    name = found["object_id"]
    console.print(
        f"{name}{'' if name == asked else f' (asked for as {asked})'}: ra {found['ra']:.6f}, dec {found['dec']:.6f}, "
        f"split {found['split']}, work cell {found['cell']}; snapshot {found['snapshot']}, {found['content_id']}",
        highlight=False,
        soft_wrap=True,
    )
    sources = Table("source", "release, cuts", "selected", "arcsec", "row", "file, SHA-256", title="Sources")
    for s in found["sources"]:
        chosen = "yes" if s["selected"] else f"no: {s['failed_cut']}"
        repeats = f"\n{len(s['repeats'])} repeats" if s["repeats"] else ""
        where = f"{s['file']}\n{s['sha256']}"
        away = "anchor" if s["anchor"] else f"{s['separation_arcsec']:.4f}"
        sources.add_row(s["uid"] + repeats, f"{s['release']}, {s['profile']}", chosen, away, str(s["row"]), where)
    console.print(sources)
    pairs = Table("pair", "arcsec", "ranks", "rivals", "chance", "taken", title="Candidate pairs")
    for p in found["pairs"]:
        taken = "yes" if p["accepted"] else "conflict" if p["conflict"] else "no"
        taken += ", by id" if p.get("link") else ""
        ranks, rivals = f"{p['rank_a']}, {p['rank_b']}", f"{p['rivals_a']}, {p['rivals_b']}"
        pair = f"{p['survey_a']}:{p['key_a']} - {p['survey_b']}:{p['key_b']}"
        pairs.add_row(pair, f"{p['separation_uas'] * 1e-6:.4f}", ranks, rivals, f"{p['chance']:.2g}", taken)
    console.print(pairs)
    if found["disagreements"]:
        unmet = Table("source", "names", "arcsec", "why not taken", title="Ids without a match")
        for d in found["disagreements"]:
            away = "" if d["separation_uas"] is None else f"{d['separation_uas'] * 1e-6:.4f}"
            unmet.add_row(f"{d['survey']}:{d['key']}", f"{d['other_survey']}:{d['other_key']}", away, d["why"])
        console.print(unmet)
    measured = Table("modality", "status", "tokens", "codec", "files, SHA-256", title="Measurements")
    for m in found["measurements"]:
        files = "\n".join(_file_lines(m.get("files", {}), every_file))
        measured.add_row(m["modality"], m["status"], str(m.get("n_tokens", "")), (m["codec"] or "")[:12], files)
    console.print(measured)
    tasks = Table("task", "key", title="Receipts")
    for label, key in found["tasks"].items():
        tasks.add_row(label, key)
    console.print(tasks)


def _file_lines(files: Mapping[str, Sequence[Any]], every_file: bool) -> list[str]:
    """Path and SHA-256, or state, of each file by role; a colon in the role marks a neighbour (see `hscimage.role`)."""
    folded = {
        role: state
        for role, (_, state, _) in files.items()
        if ":" in role and state in ("there", "unpublished") and not every_file
    }
    lines = [f"{r}: {f[0]} {f[2] or f[1]}" for r, f in sorted(files.items()) if r not in folded]
    for state, n in sorted(Counter(folded.values()).items()):
        lines.append(f"{n} {'file' if n == 1 else 'files'} of neighbouring patches: {state} (--all names them)")
    return lines


def print_collection(found: Collection) -> None:
    """What a cleaning took, or would take, and what stays and why."""
    console = Console(soft_wrap=True)
    gone = {
        "snapshots": found.snapshots,
        "receipts": found.receipts,
        "parts": found.parts,
        "half-written files": found.pending,
        "leases of dead readers": found.leases,
    }
    for (kind, names), n_bytes in zip(gone.items(), found.n_bytes.values(), strict=True):
        told = f" ({', '.join(map(str, names))})" if kind == "snapshots" and names else ""
        console.print(f"{len(names):,} {kind}{told}, {n_bytes / 1e6:,.1f} MB", highlight=False)
    for number, reasons in sorted(found.snapshots_kept.items()):
        console.print(f"snapshot {number} stays: {', '.join(reasons)}", highlight=False)
    for kind, kept in (("receipts", found.receipts_kept), ("parts", found.parts_kept)):
        for reason, n in kept.items():
            console.print(f"{n:,} {kind} stay: {reason}", highlight=False)
    console.print("Removed." if found.deleted else "Nothing was removed; --delete removes the first five.")


def print_repair(found: Repaired) -> bool:
    """What was mended and what was not; whether all was."""
    console = Console(soft_wrap=True)
    for path in found.set_aside:
        console.print(f"{path}: set aside in quarantine", highlight=False)
    console.print(f"{len(found.mended)} parts made anew", highlight=False)
    for sha256, reason in sorted(found.unrepairable.items()):
        console.print(f"unrepairable: {sha256}: {reason}", highlight=False)
    if found.unrepairable:
        console.print("Build again: a new snapshot is whole. The old one stays damaged.")
    return not found.unrepairable


def print_verification(found: Verification) -> bool:
    """Problems, or that there are none; whether there are none."""
    console = Console(soft_wrap=True)
    for problem in found.problems:
        console.print(f"{problem.where}: {problem.what}", highlight=False)
    said = f"{found.n_checked:,} parts, {found.n_checked_bytes / 1e6:,.1f} MB read"
    console.print(
        f"{said}; {len(found.problems)} problems" if found.problems else f"{said}; all sound", highlight=False
    )
    if found.problems:
        console.print("`skycairn verify --repair` sets them aside and makes them anew from their inputs.")
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
