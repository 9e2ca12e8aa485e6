"""`loss.svg`: the loss of a run, in training and on the validation sky, step by step, from its metrics."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skycairn.model.metrics import lines_of

FILE = "loss.svg"
Points = list[tuple[int, float]]


def curves(lines: Sequence[Mapping[str, Any]]) -> tuple[Points, Points]:
    """Step and loss of training, the mean since the look before, and of the validation sky, where they are known."""
    training = [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]
    looks = [(line["step"], (line.get("validation") or {}).get("loss")) for line in lines]
    return training, [(step, loss) for step, loss in looks if loss is not None]


def write(out: Path) -> str:
    """Draw the metrics in `out`; gives a word on what became of it. Without matplotlib nothing is drawn."""
    training, validation = curves(lines_of(out))
    if not training and not validation:
        return f"no {FILE}: there are no losses yet"
    try:
        from matplotlib import rc_context, rcParamsDefault
        from matplotlib.figure import Figure
    except ImportError:
        return f"no {FILE}: there is no matplotlib here; pip install 'skycairn[plot]'"
    # another's settings must not show, nor the time and chance that matplotlib names things by
    with rc_context({**rcParamsDefault, "svg.hashsalt": "skycairn", "svg.fonttype": "none"}):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="loss, nats a token")
        for points, name, style in ((training, "training", "-"), (validation, "validation", "o-")):
            if points:
                axes.plot(*zip(*points, strict=True), style, markersize=3, label=name)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        aside = out / f"{FILE}.new"
        figure.savefig(aside, format="svg", metadata={"Date": None})
    os.replace(aside, out / FILE)
    return f"the loss is drawn in {out / FILE}"
