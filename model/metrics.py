"""What a run tells of itself: a line of JSON at each look, which is the truth, and the same for TensorBoard."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from skycairn.model.peaks import used
from skycairn.model.processes import rank_and_world, summed

FILE = "metrics.jsonl"


class Learned(NamedTuple):
    """A step."""

    loss: float
    gradient: float
    "its norm before it was clipped"
    skipped: bool
    "whether the weights were left as they are"
    objects: int
    "of this process, as are tokens and work"
    tokens: int
    "shown and asked for"
    work: int
    "floating-point operations that the tokens need: no padding, and nothing worked out twice"


class Tally:
    """What was learned since the last look, or since the run went on."""

    def __init__(self, waited: float = 0.0) -> None:
        """`waited`: seconds for which the run has waited for data so far."""
        self.steps: list[Learned] = []
        self.waited, self.began = waited, time.monotonic()

    def metrics(self, waited: float, peak: float | None) -> dict[str, float | None]:
        """The means of the steps that were not skipped; all processes ask together.

        `objects_s` and `tokens_s` are of all processes; `useful_gflops_s`, `mfu` and `waiting`, the share of the time
        in which data were waited for, are means over processes, each with a device whose `peak`, FLOP/s, is given.
        """
        seconds = max(time.monotonic() - self.began, 1e-9)
        own = [(s.objects, s.tokens, s.work, 0.0) for s in self.steps]
        sums = np.array([*own, (0, 0, 0, waited - self.waited)], np.float64).sum(axis=0)
        objects, tokens, work, waiting = summed(sums).tolist()
        world = rank_and_world()[1]
        taken = [s for s in self.steps if not s.skipped]
        return {
            "loss": float(np.mean([s.loss for s in taken])) if taken else None,
            "gradient": float(np.mean([s.gradient for s in taken])) if taken else None,
            "skipped": len(self.steps) - len(taken),
            "objects_s": objects / seconds,
            "tokens_s": tokens / seconds,
            "useful_gflops_s": work / world / seconds / 1e9,
            "mfu": used(work / world, seconds, peak),
            "waiting": waiting / world / seconds,
        }

    def told(self) -> str:
        """The last step in words, and the pace as this process knows it."""
        pace = sum(s.objects for s in self.steps) * rank_and_world()[1] / max(time.monotonic() - self.began, 1e-9)
        loss = f"loss {self.steps[-1].loss:.4f}, " if self.steps else ""
        return f"{loss}{pace:.0f} objects/s"


def append(out: Path, line: Mapping[str, Any]) -> None:
    """Add a line to the metrics in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / FILE).open("a") as file:
        file.write(json.dumps(plain(line), allow_nan=False) + "\n")


def lines_of(out: Path) -> list[dict[str, Any]]:
    """The lines of the metrics in `out`; none where there are none."""
    path = out / FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def plain(value: Any) -> Any:
    """With null for what is not finite: JSON has no other word for it."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def scalars(line: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """Name and value of each number of a line, such as `validation/modalities/gaia.parallax`."""
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{above}{name}/")
        elif value is not None:
            yield above + name, float(value)


class Board:
    """Event files for TensorBoard in a folder. ValueError where TensorBoard is not installed."""

    def __init__(self, folder: Path, step: int) -> None:
        """Of a run that is at this step: what is there of later ones is not shown."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "settings: tensorboard is true, and there is no TensorBoard here; pip install 'skycairn[train]', or "
                f"leave the setting out: {FILE} says the same"
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, line: Mapping[str, Any]) -> None:
        """All numbers of a line of metrics."""
        for name, value in scalars(plain(line)):
            if name != "step":
                self._writer.add_scalar(name, value, int(line["step"]))
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
