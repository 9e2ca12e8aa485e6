"""Lookup-free quantization: a code is the signs of its channels, and learns through them.

Source: Yu et al., "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation", arXiv 2310.05737.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

MOST_BITS = 16
"Codes of more bits would ask for 2 ** bits probabilities in the entropy of a batch."


class LFQLoss(NamedTuple):
    """What keeps the channels near their signs and the codes in use; scalars, natural units."""

    commitment: Tensor
    "mean of (z - sign z) ** 2"
    sure: Tensor
    "entropy (nats) of the code of one position, mean over the positions: low where the network has decided"
    spread: Tensor
    "entropy (nats) of the mean distribution over the codes: high where all are in use; at most bits * ln 2"

    def total(self, commitment: float = 0.25, entropy: float = 0.1, diversity: float = 1.0) -> Tensor:
        """The weighted sum, to go down; the defaults are those of the paper's code and AION-1's."""
        return commitment * self.commitment + entropy * (self.sure - diversity * self.spread)


class LookupFreeQuantizer(nn.Module):
    """Signs of `bits` channels as one code; the first channel is the most significant bit, and 0 counts as -1.

    All in float32, also under autocast. The only thing kept is the place value of each channel, `mask`.
    """

    mask: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        if not 1 <= bits <= MOST_BITS:
            raise ValueError(f"lookup-free quantizer: {bits} bits, wanted 1 to {MOST_BITS}")
        self.bits = bits
        self.register_buffer("mask", 2 ** torch.arange(bits - 1, -1, -1))

    def forward(self, z: Tensor) -> Tensor:
        """Signs, -1 or 1, float32, shape (..., bits) as z; their gradient is passed on to z as it is."""
        wide = z.float()
        return wide + (signs(wide) - wide).detach()

    def indices(self, z: Tensor) -> Tensor:
        """Codes, int64 (...), of channels (..., bits)."""
        return ((z > 0) * self.mask).sum(dim=-1)

    def channels(self, indices: Tensor) -> Tensor:
        """Signs, float32 (..., bits), of codes (...)."""
        return ((indices[..., None] & self.mask) != 0).float() * 2 - 1

    def loss(self, z: Tensor, inverse_temperature: float = 100.0) -> LFQLoss:
        """Commitment and entropies of channels (..., bits).

        Code c has the probability softmax_c(2 * inverse_temperature * z . c), which is a product over the bits of
        sigmoid(4 * inverse_temperature * z). Hence the entropy of a position is the sum of its bits' entropies,
        and the mean distribution over all 2 ** bits codes is one product of two matrices, each over half of the bits.
        """
        with torch.autocast(z.device.type, enabled=False):
            wide = z.float().reshape(-1, self.bits)
            commitment = functional.mse_loss(wide, signs(wide).detach())
            logit = 4 * inverse_temperature * wide
            up, down = torch.sigmoid(logit), torch.sigmoid(-logit)
            sure = -(up * functional.logsigmoid(logit) + down * functional.logsigmoid(-logit)).sum(dim=1).mean()
            half = self.bits // 2
            mean = _joint(up[:, :half], down[:, :half]).T @ _joint(up[:, half:], down[:, half:]) / len(wide)
            return LFQLoss(commitment, sure, -torch.xlogy(mean, mean.clamp(min=1e-5)).sum())


def signs(z: Tensor) -> Tensor:
    """1 where z > 0, else -1."""
    return torch.where(z > 0, 1.0, -1.0)


def _joint(up: Tensor, down: Tensor) -> Tensor:
    """Probabilities (position, 2 ** bits) of all codes of these bits (position, bits)."""
    found = up.new_ones(len(up), 1)
    for bit in range(up.shape[1]):
        pair = torch.stack([down[:, bit], up[:, bit]], dim=1)
        found = (found[:, :, None] * pair[:, None, :]).flatten(1)
    return found
