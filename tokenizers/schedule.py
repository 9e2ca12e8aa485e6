"""How a codec is trained: steps, rate, batch; the published schedules, and short ones for a CPU."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Schedule:
    """All that decides a run of training, beside the codecs, what they learn from and the weights of the modalities."""

    steps: int
    batch: int
    learning_rate: float
    warm_up: int = 0
    "steps over which the rate rises from 0, linearly"
    decay: float = 1.0
    "share of the steps, the last ones, over which the rate falls to 0 as a cosine does; 0: never"
    weight_decay: float = 0.0
    "AdamW's (with 0 it is Adam), of matrices and kernels alone"
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    "most that the norm of the gradient may be"
    ema: float = 0.0
    "decay a step of the averaged weights, which are the codec's in the end; 0: the last weights themselves"
    precision: Literal["fp32", "bf16"] = "fp32"
    "of matrix products; weights, losses and averages are fp32"
    check_every: int = 1000
    "steps between looks at the held-out sky, each with a checkpoint"
    seed: int = 0
    window: int = 0
    """Pixels that a step is shown of each, at a random place: the side of a square of an image, turned and mirrored;
    or a piece of the latent line of a spectrum. 0: all."""
    most_seconds: float = 0.0
    "stop after these, wherever it is: no part of what a run is, and 0 is no limit"

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.check_every) < 1 or min(self.warm_up, self.seed, self.window) < 0:
            raise ValueError(
                f"{self}: wanted steps, batch and check_every of 1 or more, warm_up, seed and window of 0 or more"
            )
        positive = (self.learning_rate, self.clip)
        if not all(v > 0 and math.isfinite(v) for v in positive) or self.weight_decay < 0 or self.most_seconds < 0:
            raise ValueError(f"{self}: wanted learning_rate, clip above 0, weight_decay, most_seconds of 0 or more")
        if not (0 <= self.decay <= 1 and 0 <= self.ema < 1 and all(0 <= b < 1 for b in self.betas)):
            raise ValueError(f"{self}: wanted decay of 0 to 1, ema and betas of 0 to below 1")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"schedule: precision is {self.precision!r}; choose fp32 or bf16")

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        falling = self.steps * self.decay
        way = min(1.0, max(0.0, (step + 1 - (self.steps - falling)) / falling)) if falling else 0.0
        up = min(1.0, (step + 1) / self.warm_up) if self.warm_up else 1.0
        return self.learning_rate * up * 0.5 * (1 + math.cos(math.pi * way))

    def averaged(self, step: int) -> float:
        """Decay of the averaged weights after a step, counted from 0: short at first, so that they forget the start."""
        return min(self.ema, (1 + step) / (10 + step)) if self.ema else 0.0

    def of_steps(self, steps: int) -> Schedule:
        """The same course in another number of steps, with the warm-up in proportion."""
        return replace(self, steps=steps, warm_up=round(self.warm_up * steps / self.steps))

    def as_json(self) -> dict[str, Any]:
        """All but the limit of time, as plain values."""
        return {k: v for k, v in asdict(self).items() if k != "most_seconds"}


PAPER = {
    "image": Schedule(400_000, 256, 5e-4, warm_up=1_000),
    "spectrum": Schedule(215_000, 128, 1e-4, decay=0.0, weight_decay=0.1),
    "segmap": Schedule(114_000, 256, 1e-4, decay=72 / 114, weight_decay=0.01, ema=0.9999),
}
"""AION-1's, by kind of codec (its appendix on tokenizers): Adam and a cosine for images, AdamW at a constant rate for
spectra, AdamW with averaged weights for segmentation maps. Clipping and Adam's betas are not told there. Its image
codec saw 20 images of the Legacy Survey for one of HSC, which here is by the number that there is of each."""
QUICK = {
    "image": Schedule(8_000, 16, 3e-3, warm_up=400, betas=(0.9, 0.99), ema=0.99, check_every=1_000, window=48),
    "spectrum": Schedule(
        12_000, 8, 3e-3, warm_up=120, betas=(0.9, 0.99), weight_decay=0.01, ema=0.99, check_every=1_000, window=2_176
    ),
    "segmap": Schedule(400, 32, 2e-3, warm_up=20, ema=0.99, check_every=100),
}
"""For the `tiny` sizes on a CPU: a quarter of an hour each of images and spectra, a minute of maps."""
