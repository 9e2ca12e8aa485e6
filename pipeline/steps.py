"""The steps by name, and their versions: raise one when its outcome changes for the same inputs."""

from __future__ import annotations

from collections.abc import Callable

from skycairn.pile.receipt import Receipt
from skycairn.pipeline import assemble, encode, extract, lineage, match, partition
from skycairn.pipeline.task import Context, Outcome, Task
from skycairn.pipeline.versions import VERSIONS

STEPS: dict[str, Callable[[Context, Task], Outcome]] = {
    "fetch": partition.fetch,
    "fetch payload": partition.fetch_payload,
    "read": partition.read,
    "gather": partition.gather,
    "match": match.match,
    "coverage": assemble.coverage,
    "want": extract.want,
    "sample": encode.sample,
    "sketch": encode.sketch,
    "extract": extract.extract,
    "fit": encode.fit,
    "encode": encode.encode_columns,
    "encode payload": encode.encode_payload,
    "objects": assemble.objects,
    "shard": assemble.shard,
    "lineage": lineage.trace,
}


def work(ctx: Context, task: Task) -> Receipt:
    """Do a task and leave its receipt."""
    made = STEPS[task.step](ctx, task)
    receipt = Receipt(
        key=task.key,
        step=task.step,
        label=task.label,
        settings={**task.settings, "step version": VERSIONS[task.step]},
        inputs=dict(task.inputs),
        outputs=dict(made.outputs),
        counts={k: int(v) for k, v in made.counts.items()},
        notes=dict(made.notes),
    )
    ctx.pile.put_receipt(receipt)
    return receipt
