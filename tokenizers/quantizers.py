"""Quantizers inside a network: finite scalar quantization of AION-1's arithmetic, with a straight-through gradient.

Mentzer et al. 2023 (arXiv:2309.15505). `fsq` holds the same index for codecs that are fitted without a network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

EPSILON = 1e-3
"the outermost levels are reached by this much, so that they are rounded to and not only approached"


class FiniteScalarQuantizer(nn.Module):
    """A vector of k numbers to one of prod(levels) codes: each number bounded by tanh and rounded to its own levels.

    Vectors lie along axis 1 of their tensors. A level of L values has them at (0 .. L - 1 - L // 2) / (L // 2), which
    reaches 1 for odd L only. Mixed radix, first number fastest. Everything is float32, under autocast too: bfloat16
    counts whole numbers to 256 only.
    """

    levels: Tensor
    steps: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(
                f"finite scalar quantizer: levels {tuple(levels)}, wanted one or more numbers, each 2 or more"
            )
        self.codes = math.prod(levels)
        self.register_buffer("levels", torch.tensor(list(levels), dtype=torch.int32))
        basis = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("steps", torch.tensor(basis, dtype=torch.int64), persistent=False)

    def bounded(self, z: Tensor) -> Tensor:
        """Each number within its levels, before rounding, float32; axis 1 last."""
        with torch.autocast(z.device.type, enabled=False):
            half = (self.levels - 1) * (1 + EPSILON) / 2
            offset = torch.where(self.levels % 2 == 1, 0.0, 0.5)
            shift = torch.atanh(offset / half)
            return torch.tanh(z.float().movedim(1, -1) + shift) * half - offset

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder is given, of z's shape, and the codes, int64, without axis 1.

        The gradient passes through the rounding as if there were none.
        """
        bounded = self.bounded(z)
        with torch.autocast(z.device.type, enabled=False):
            rounded = bounded.round()
            width = self.levels // 2
            straight = (bounded + (rounded - bounded).detach()) / width
        return straight.movedim(-1, 1), self._joined(rounded)

    def indices(self, z: Tensor) -> Tensor:
        """The codes, int64, without axis 1."""
        return self._joined(self.bounded(z).round())

    def values(self, indices: Tensor) -> Tensor:
        """What the decoder is given for these codes, float32; the vectors along axis 1."""
        width = self.levels // 2
        digits = indices[..., None] // self.steps % self.levels
        with torch.autocast(indices.device.type, enabled=False):
            return ((digits - width) / width).movedim(-1, 1)

    def _joined(self, rounded: Tensor) -> Tensor:
        return ((rounded.long() + self.levels // 2) * self.steps).sum(-1)
