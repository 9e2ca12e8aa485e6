"""A training step on one GPU, by size: useful MFU and objects/s of ours and of the 4M code in polymathic-aion.

    python benchmarks/gpu.py [--sizes small,base] [--objects 256] [--steps 20] [--dtype bf16] [--kinds full,mix]

Objects and weights as in `benchmarks/train_step.py`: AION-1's 40 modalities, 256 tokens shown and 128 asked for of an
object at most. A step is forward, backward, the norm of the gradient and AdamW, as the trainer takes it, on a
microbatch that lies in memory: the loader is measured by `benchmarks/loader.py`. Ours is laid out while the clock runs,
in turns: with blocks as they are, and compiled. The peer's inputs are made before, and its products are in half
precision by autocast. Useful FLOP are what the tokens need, without padding (`model/forms.py`), and MFU is their share
of what the device can do by its data sheet (`model/peaks.py`); of a device that is not there it is not told.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skycairn.model.aion import aion_objective, read_aion
from skycairn.model.blocks import readied
from skycairn.model.forms import FORMS, flops
from skycairn.model.packed import Packed
from skycairn.model.peaks import peak_of, used
from skycairn.model.transformer import Network

COLUMNS = ("size", "objects", "who", "ms a step", "useful objects/s", "useful TFLOP/s", "useful MFU", "of the peer")
HEAD = "| " + " | ".join(COLUMNS) + " |\n" + "|---|---|---" + "|--:" * (len(COLUMNS) - 3) + "|"


@dataclass(frozen=True)
class Line:
    """What one of them did."""

    size: str
    kind: str
    who: str
    seconds: float
    "of a step"
    objects: int
    work: int
    "FLOP that the tokens of a step need"
    peak: float | None
    "FLOP/s of the device"
    peer: float | None
    "seconds of the peer's step"

    def __str__(self) -> str:
        mfu = used(self.work, self.seconds, self.peak)
        cells = [self.size, self.kind, self.who, f"{self.seconds * 1e3:,.1f}", f"{self.objects / self.seconds:,.0f}"]
        cells += [f"{self.work / self.seconds / 1e12:,.1f}", "" if mfu is None else f"{mfu:.1%}"]
        return "| " + " | ".join([*cells, "" if self.peer is None else f"{self.peer / self.seconds:.2f}"]) + " |"


def step_of(network: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """A step of the trainer's optimizer on a loss."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        loss().backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        float(norm)  # the trainer looks whether it is finite
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def ours(network: Network, packed: Packed) -> Callable[[], None]:
    n = len(network.vocabulary.columns)
    return step_of(network, lambda: aion_objective(network(packed), network.vocabulary, "mod", n))


def peers(model: Any, batch: dict[str, dict[str, torch.Tensor]], half: bool) -> Callable[[], None]:
    from train_step import peer_loss

    def loss() -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            return peer_loss(model, batch)

    return step_of(model, loss)


def measured(size: str, args: argparse.Namespace) -> list[Line]:
    """All lines of a size."""
    from train_step import objects, peer_batch, peer_model, times

    half, device, lines = args.dtype == "bf16", torch.device("cuda"), []
    peer = peer_model(FORMS[size])
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        plain, compiled = (read_aion(Path(folder)).network for _ in range(2))
    peer.to(device)
    for network in (plain, compiled):
        network.to(device).compute_in(torch.bfloat16 if half else torch.float32)
    readied(compiled, checkpointed=False, compiled=True, dealt_out=False)
    peak = peak_of(device, args.dtype)
    for kind, packed in objects(plain.vocabulary, args.objects, np.random.default_rng(0)).items():
        if kind in args.kinds.split(","):
            theirs = {
                k: {a: t.to(device) for a, t in d.items()} for k, d in peer_batch(packed, plain.vocabulary).items()
            }
            steps = [peers(peer, theirs, half), ours(plain, packed), ours(compiled, packed)]
            took = times(steps, args.steps, "cuda", time.perf_counter)
            work = flops(plain.form, plain.vocabulary, plain.prepared(packed).layout).training
            for who, seconds in zip(("peer", "ours", "ours, compiled"), took, strict=True):
                against = None if who == "peer" else took[0]
                lines.append(Line(size, kind, who, seconds, args.objects, work, peak, against))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", default="tiny,small,base")
    parser.add_argument("--objects", type=int, default=256, help="of a step")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dtype", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--kinds", default="full,mix")
    args = parser.parse_args()
    if unknown := sorted(set(args.sizes.split(",")) - set(FORMS)):
        sys.exit(f"--sizes {', '.join(unknown)}: wanted some of {', '.join(FORMS)}")
    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU here, and this measures one; benchmarks/train_step.py measures a CPU")
    name = torch.cuda.get_device_name()
    peak = peak_of(torch.device("cuda"), args.dtype)
    told = "of unknown peak" if peak is None else f"{peak / 1e12:,.0f} TFLOP/s"
    print(f"torch {torch.__version__}, {name} ({told}), {args.dtype}, {args.objects} objects a step\n\n{HEAD}")
    for size in args.sizes.split(","):
        for line in measured(size, args):
            print(line, flush=True)


if __name__ == "__main__":
    main()
