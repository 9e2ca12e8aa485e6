"""How many steps of a schedule a machine takes in a given time, so that its course can end within it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from skycairn.tokenizers.network import NetworkCodec
from skycairn.tokenizers.schedule import Schedule
from skycairn.tokenizers.training import Examples

TRIALS = 5
SHARE = 0.8
"""Of the time that is spent on steps and looks at the held-out sky; machines slow down."""


def within(
    schedule: Schedule, codecs: Mapping[str, NetworkCodec], examples: Examples, seconds: float, device: str
) -> Schedule:
    """The schedule, with fewer steps where it would take longer, in the same course; what was learned here is lost.

    A look at the held-out sky is had at the end of each quarter then, and once where even that is too much.
    """
    network = next(iter(codecs.values())).to(device).network
    before = {k: v.detach().clone() for k, v in network.state_dict().items()}
    try:
        # the first of each warms up
        learning = [[_learning(codecs[m], m, examples, schedule, k) for k in range(1 + TRIALS)][1:] for m in codecs]
        looking = sum(_looking(codecs[m], m, examples) for m in codecs)
    finally:
        network.load_state_dict(before)
        network.zero_grad(set_to_none=True)
        network.eval()
    a_step = float(np.mean(np.min(learning, axis=1)))
    looks = 4 if 4 * looking < 0.3 * seconds else 1
    steps = int((SHARE * seconds - looks * looking) / a_step)
    if steps >= schedule.steps:
        return schedule
    return replace(schedule.of_steps(max(steps, 1)), check_every=max(1, -(-max(steps, 1) // looks)))


def _learning(codec: NetworkCodec, modality: str, examples: Examples, schedule: Schedule, trial: int) -> float:
    """Seconds of a step, as training.py takes one."""
    began = time.monotonic()
    rng = np.random.default_rng(trial)
    tensors = codec.shown(examples.draw(modality, schedule.batch, rng), schedule.window, rng)
    tensors = {k: v.to(codec.device) for k, v in tensors.items()}
    codec.network.train()
    with torch.autocast(codec.device.type, torch.bfloat16, enabled=schedule.precision == "bf16"):
        loss = codec.loss(tensors).total
    loss.backward()  # type: ignore[no-untyped-call]
    float(loss.detach())
    return time.monotonic() - began


def _looking(codec: NetworkCodec, modality: str, examples: Examples) -> float:
    """Seconds of a look at the held-out sky, by its first piece."""
    codec.network.eval()
    pieces = examples.held(modality)
    first = next(pieces, None)
    if first is None:
        return 0.0
    began = time.monotonic()
    with torch.no_grad():
        float(codec.loss({k: v.to(codec.device) for k, v in codec.tensors(first).items()}).total)
    took = time.monotonic() - began
    return took * (1 + sum(1 for _ in pieces))
