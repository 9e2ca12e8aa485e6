"""All that decides a training run beside what it learns from: plain values, as TOML and JSON hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from skycairn.model.forms import FORMS
from skycairn.model.rules import Masking
from skycairn.model.strata import Weights

PRECISIONS = ("fp32", "bf16")
WEIGHINGS = ("modality", "token")
NON_FINITE = ("stop", "skip")
FREE = ("compile", "checkpoint_activations", "keep", "keep_every", "tensorboard")
"""How a run is done and what is kept of it, not what is learned: another run may go on with these changed."""


@dataclass(frozen=True)
class Settings:
    """A run. Two runs of equal settings on equal snapshots see the same tokens in the same order on any number of
    processes."""

    size: str = "nano"
    "nano and micro (for a CPU), tiny, small, base, large, xlarge, as of forms.FORMS"
    steps: int = 1000
    "of training"
    objects: int = 64
    "of a microbatch"
    microbatches: int = 4
    "of a step; any number of processes that divides it may share them"
    learning_rate: float = 2e-3
    "the highest"
    warm_up: int = 60
    "steps over which the rate rises from 0"
    least_rate: float = 0.05
    "share of the learning rate that a cosine falls to at the last step"
    weight_decay: float = 0.05
    "of matrices alone"
    betas: tuple[float, float] = (0.9, 0.95)
    "of AdamW"
    clip: float = 1.0
    "most that the norm of the gradient may be"
    precision: str = "fp32"
    "of products: fp32 or bf16; weights and losses are fp32"
    weighing: str = "modality"
    "modality: all of which something is asked count alike; token: all tokens do"
    smooth: bool = False
    "tables of tokens start smooth in value, or in each number that a token is made of, for piles of few objects"
    counted: int = 0
    "logits start from how often tokens stand in their slots among so many objects or all there are; 0: not so"
    pairs: bool = False
    "what one number says of another has a short way of its own, for piles of few objects"
    dropout: float = 0.0
    "share of what each branch adds that is dropped in training"
    seed: int = 0
    "of weights, order, masks and dropout: same seed, same run"
    pool: int = 4096
    "objects that are shuffled among each other"
    check_every: int = 100
    "steps between looks at the validation sky, each with a checkpoint"
    checked: int = 8
    "microbatches of the validation sky that are looked at, the same each time"
    directions_every: int = 1
    "looks between those that also ask for each survey given each other one; 0: none does"
    compile: bool = False
    "torch.compile of each block; for a GPU: on a CPU the shapes of attention change with every microbatch"
    checkpoint_activations: bool = False
    "keep what enters each block alone and work the rest out again for the gradient: less memory, a third more work"
    keep: int = 1
    "checkpoints at most: `last`, and the newest of those of each `keep_every` steps"
    keep_every: int = 0
    "steps between checkpoints that stay when `last` goes on; 0: none stays"
    tensorboard: bool = False
    "metrics as event files for TensorBoard too"
    non_finite: str = "stop"
    "what a step whose loss or gradient is not finite does: stop the run, or skip: leave the weights as they are"
    most_skipped: int = 10
    "steps skipped one after another, beyond which the run stops"
    masking: Masking = field(default_factory=lambda: Masking(inputs=64, targets=32, across_surveys=0.35))
    weights: Weights = field(default_factory=Weights)

    def __post_init__(self) -> None:
        for name, known in (
            ("size", tuple(FORMS)),
            ("precision", PRECISIONS),
            ("weighing", WEIGHINGS),
            ("non_finite", NON_FINITE),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"settings: {name} is {getattr(self, name)!r}; choose one of {', '.join(known)}")
        for name in ("steps", "objects", "microbatches", "pool", "check_every", "checked", "keep"):
            if not _whole(getattr(self, name)) or getattr(self, name) < 1:
                raise ValueError(f"settings: {name} is {getattr(self, name)!r}; wanted a whole number of 1 or more")
        for name in ("warm_up", "seed", "counted", "directions_every", "keep_every", "most_skipped"):
            if not _whole(getattr(self, name)) or getattr(self, name) < 0:
                raise ValueError(f"settings: {name} is {getattr(self, name)!r}; wanted a whole number of 0 or more")
        for name in ("smooth", "pairs", "compile", "checkpoint_activations", "tensorboard"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"settings: {name} is {getattr(self, name)!r}; wanted true or false")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"settings: dropout is {self.dropout!r}; wanted 0 or more, below 1")
        for name in ("learning_rate", "clip"):
            if not (_number(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"settings: {name} is {getattr(self, name)!r}; wanted a number above 0")
        betas = self.betas if isinstance(self.betas, list | tuple) else ()
        if len(betas) != 2 or not all(_number(b) and 0 <= b < 1 for b in betas):
            raise ValueError(f"settings: betas is {self.betas!r}; wanted two numbers of 0 to below 1")
        if not (_number(self.least_rate) and 0 <= self.least_rate <= 1):
            raise ValueError(f"settings: least_rate is {self.least_rate!r}; wanted a number of 0 to 1")
        if not (_number(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"settings: weight_decay is {self.weight_decay!r}; wanted a number of 0 or more")
        if (self.keep > 1) != (self.keep_every > 0):
            raise ValueError(
                f"settings: keep is {self.keep} and keep_every {self.keep_every}; wanted both, such as keep = 3 and "
                "keep_every = 500, or neither (1 and 0), which keeps the last checkpoint alone"
            )
        object.__setattr__(self, "betas", tuple(float(b) for b in betas))

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        way = min(1.0, (step - self.warm_up) / max(1, self.steps - self.warm_up))
        return self.learning_rate * (self.least_rate + (1 - self.least_rate) * 0.5 * (1 + math.cos(math.pi * way)))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Settings:
        """From plain values, as TOML and JSON hold them; ValueError names a key that it does not know."""
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(value) - set(known)):
            raise ValueError(f"settings: {', '.join(unknown)}: wanted some of {', '.join(known)}")
        parts: dict[str, Any] = {"masking": Masking.from_json, "weights": Weights.from_json}
        given: dict[str, Any] = {k: parts[k](v) if k in parts else v for k, v in value.items()}
        return cls(**given)

    def as_json(self) -> dict[str, Any]:
        """Plain values, as `from_json` takes them."""
        plain = {k: v for k, v in asdict(self).items() if k not in ("masking", "weights")}
        return {
            **plain,
            "betas": list(self.betas),
            "masking": self.masking.as_json(),
            "weights": self.weights.as_json(),
        }


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
