"""Make damaged parts of a pile anew from the inputs that they were made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from skycairn.pile.lock import builder_lock
from skycairn.pile.receipt import Receipt
from skycairn.pile.store import Pile, Snapshot
from skycairn.pile.verify import Verification, quarantine
from skycairn.pipeline import lineage
from skycairn.pipeline.engine import Engine
from skycairn.pipeline.journal import Journal
from skycairn.pipeline.parent import Parent, tasks_table, why
from skycairn.pipeline.plan import Failure, Memory, Plan, plan
from skycairn.pipeline.run import Progress, rounds
from skycairn.pipeline.task import Context


@dataclass(frozen=True)
class Repaired:
    """What became of the damage."""

    mended: tuple[str, ...]
    "SHA-256 of the parts that are whole again"
    unrepairable: Mapping[str, str] = field(default_factory=dict)
    "the others, with what has changed since they were made"
    set_aside: tuple[str, ...] = ()
    "damaged files, moved to `quarantine`"


def repair(pile: Pile, found: Verification, engine: Engine, progress: Progress | None = None) -> Repaired:
    """Set damaged files aside and do the tasks again that made them; a part is named by its bytes, so it is the same.

    No snapshot is made. Of a part that cannot be made again it is said which of its inputs is another now.
    """
    with builder_lock(pile.root, "repair"):
        whose = _makers(pile)
        moved = tuple(str(x if isinstance(x, Path) else x.sha256) for x in quarantine(pile, found.problems))
        parts = {p.part.sha256: p.part for p in found.problems if p.part is not None}
        head = pile.head()
        recipe = Journal(pile).recipe(head)
        if recipe is None or any(not c.source for c in recipe.surveys):
            reason = "where the survey files lie is not known here; build once with --root, then repair"
            return Repaired((), dict.fromkeys(parts, reason), moved)
        ctx, parent, memory, failed = Context(pile, recipe), Parent(pile, head), Memory(), dict[str, Failure]()
        with engine.start(ctx) as run:
            p = rounds(ctx, run, parent, memory, failed, progress)
        _lineages(pile)
        if head is not None:
            _records(ctx, head)
        left = {sha256: part for sha256, part in parts.items() if not pile.has(part)}
        reasons = {sha256: _reason(whose.get(sha256), p) for sha256 in left}
        return Repaired(tuple(sorted(set(parts) - set(left))), reasons, moved)


def _makers(pile: Pile) -> dict[str, Receipt]:
    """The receipt behind each part."""
    return {part.sha256: receipt for receipt in _sound(pile) for part in receipt.outputs.values()}


def _sound(pile: Pile) -> list[Receipt]:
    out = []
    for path in sorted((pile.root / "receipts").glob("??/*.json")):
        try:
            out.append(pile.read_receipt(path))
        except ValueError:
            continue
    return out


def _lineages(pile: Pile) -> None:
    """Trace again what became of objects from one snapshot to the next, where that part is lost."""
    snapshots = {n: pile.snapshot(n) for n in pile.snapshots()}
    for snapshot in snapshots.values():
        for entry in snapshot.aside.get("lineage", ()):
            before = snapshots.get(int(entry.labels["since"]))
            if before is not None and snapshot.parent == before.number and not pile.has(entry.part):
                for table in lineage.compare(pile, before, snapshot, [int(entry.labels["cell"])]):
                    pile.put_table(table)


def _records(ctx: Context, head: Snapshot) -> None:
    """Write the head's list of tasks again, where it is lost: what the plan says, as it was when the head was built.

    Codecs that came with the head were fitted then, and are locked now.
    """
    numbers = ctx.pile.snapshots()
    before = Parent(ctx.pile, ctx.pile.snapshot(head.parent) if head.parent in numbers else None)
    known = before.snapshot.stats.get("codecs", {}) if before.snapshot else {}
    fitted = [m for m, content_id in head.stats.get("codecs", {}).items() if known.get(m) != content_id]
    lost = [e.part for e in head.aside.get("tasks", ()) if not ctx.pile.has(e.part)]
    for refit in ([], fitted) if lost else ():
        memory = Memory()
        p = plan(ctx, parent=before, memory=memory, refit=refit)
        if p.done and not lineage.todo(ctx, before, p, memory):
            lineage.entries(ctx, before, p, memory)
            ctx.pile.put_table(tasks_table(p.receipts))


def _reason(made: Receipt | None, p: Plan) -> str:
    if made is None:
        return "no receipt says what it was made of"
    now = p.receipts.get(made.label)
    if now is None:
        return f"{made.label}: this recipe no longer asks for it"
    if now.key == made.key:
        return f"{made.label}: made anew it has other bytes; another version of a library wrote it"
    settings = {k: v for k, v in now.settings.items() if k != "step version"}
    return f"{made.label}: {why(made.step, settings, now.inputs, made)} since it was made"
