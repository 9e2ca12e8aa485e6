"""ConvNeXt V2 in one dimension: an encoder that shortens a line 32-fold, and a decoder that lengthens it again.

Source: Woo et al., "ConvNeXt V2", arXiv 2301.00808. Names of the weights are those of AION-1's spectrum codec, so that
its files are read and written as they are. Channels come last from end to end, where each convolution whose stride is
its kernel is one product of matrices, which is several times faster on a CPU than the convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

EPS = 1e-6
STRIDES = (4, 2, 2, 2)
"Of the encoder's stages in order; the decoder's are the reverse, all in all 32."


class GlobalResponse(nn.Module):
    """Weighs each channel by its norm over the line, relative to the mean of all channels; starts as the identity."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, dim))

    def weights(self, x: Tensor) -> Tensor:
        """What each channel of (n, position, channel) is multiplied by, float32 (n, 1, channel)."""
        # the least is far under any norm, and keeps the gradient of a channel of zeros finite
        norm = x.float().square().sum(dim=1, keepdim=True).clamp_min(1e-30).sqrt()
        return 1 + self.gamma * (norm / (norm.mean(dim=-1, keepdim=True) + EPS))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, position, channel) as x."""
        return (x * self.weights(x) + self.beta).to(x.dtype)


class Block(nn.Module):
    """A depthwise convolution over 7 positions and an MLP of 4 times the width, added to the input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.grn = GlobalResponse(4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, position, channel) as x."""
        y = self.norm(self.dwconv(x.movedim(-1, 1)).movedim(1, -1))
        y = functional.gelu(self.pwconv1(y))
        if y.shape[1] > x.shape[2]:
            # on a long line it is cheaper to weigh the next matrix, one for each source, than all positions
            matrix = (self.pwconv2.weight * self.grn.weights(y)).movedim(1, -1)
            bias = functional.linear(self.grn.beta, self.pwconv2.weight, self.pwconv2.bias)
            y = torch.baddbmm(bias.to(y.dtype), y, matrix.to(y.dtype))
        else:
            y = self.pwconv2(self.grn(y))
        return x + y


class Encoder(nn.Module):
    """(n, 32 m, channels) to (n, m, dims[-1])."""

    def __init__(self, channels: int, depths: Sequence[int], dims: Sequence[int]) -> None:
        super().__init__()
        _check("encoder", depths, dims)
        widths = [channels, *dims]
        self.downsample_layers = nn.ModuleList(
            _step(nn.Conv1d(widths[i], widths[i + 1], stride, stride), i) for i, stride in enumerate(STRIDES)
        )
        self.stages = _stages(depths, dims)
        self.norm = nn.LayerNorm(dims[-1], eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised features."""
        normed: Tensor = self.norm(self.stages[-1](self.shortened(x)))
        return normed

    def shortened(self, x: Tensor) -> Tensor:
        """What enters the last stage."""
        for i, down in enumerate(self.downsample_layers):
            x = self.stages[i - 1](x) if i else x
            for layer in cast(nn.Sequential, down):
                x = _shortened(layer, x) if isinstance(layer, nn.Conv1d) else layer(x)
        return x


class Decoder(nn.Module):
    """(n, m, channels) to (n, 32 m, dims[-1])."""

    def __init__(self, channels: int, depths: Sequence[int], dims: Sequence[int]) -> None:
        super().__init__()
        _check("decoder", depths, dims)
        widths = [channels, *dims]
        self.upsample_layers = nn.ModuleList(
            _step(nn.ConvTranspose1d(widths[i], widths[i + 1], stride, stride), i)
            for i, stride in enumerate(reversed(STRIDES))
        )
        self.stages = _stages(depths, dims)

    def forward(self, x: Tensor) -> Tensor:
        """The channels asked for."""
        for up, stage in zip(self.upsample_layers, self.stages, strict=True):
            for layer in cast(nn.Sequential, up):
                x = _lengthened(layer, x) if isinstance(layer, nn.ConvTranspose1d) else layer(x)
            x = stage(x)
        return x


def _step(conv: nn.Conv1d | nn.ConvTranspose1d, i: int) -> nn.Sequential:
    """Between stages: a norm before the convolution, or after it where it is the first."""
    norm = nn.LayerNorm(conv.out_channels if i == 0 else conv.in_channels, eps=EPS)
    return nn.Sequential(conv, norm) if i == 0 else nn.Sequential(norm, conv)


def _shortened(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """`conv`, stride = kernel, of (n, position, channel)."""
    n, positions, channels = x.shape
    stride = conv.stride[0]
    matrix = conv.weight.movedim(1, -1).flatten(1)
    return functional.linear(x.reshape(n, positions // stride, stride * channels), matrix, conv.bias)


def _lengthened(conv: nn.ConvTranspose1d, x: Tensor) -> Tensor:
    """`conv`, stride = kernel, of (n, position, channel)."""
    stride = conv.stride[0]
    matrix = conv.weight.permute(2, 1, 0).flatten(0, 1)
    bias = None if conv.bias is None else conv.bias.repeat(stride)
    return functional.linear(x, matrix, bias).reshape(len(x), -1, conv.out_channels)


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Draw all convolutions and linear maps anew, so that variance is kept from layer to layer.

    Biases are drawn too: where a spectrum was not observed all channels are 0, and the layer norms of zeros, one after
    the other, would make a gradient without bound; a bias also tells them how bright the input is. The last map of a
    block starts small, so that a block starts near the identity.
    """
    last = {id(m.pwconv2) for m in network.modules() if isinstance(m, Block)}
    for module in network.modules():
        if not isinstance(module, nn.Conv1d | nn.ConvTranspose1d | nn.Linear):
            continue
        # each output of a transposed convolution whose stride is its kernel hangs on one position alone
        fan = module.weight.shape[0] if isinstance(module, nn.ConvTranspose1d) else module.weight[0].numel()
        std = 0.02 if id(module) in last else fan**-0.5
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std, generator=generator)
        if module.bias is not None:
            nn.init.trunc_normal_(module.bias, std=std, a=-2 * std, b=2 * std, generator=generator)


def _stages(depths: Sequence[int], dims: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(nn.Sequential(*(Block(dim) for _ in range(n))) for n, dim in zip(depths, dims, strict=True))


def _check(what: str, depths: Sequence[int], dims: Sequence[int]) -> None:
    if len(depths) != len(STRIDES) or len(dims) != len(STRIDES) or min(depths) < 0 or min(dims) < 1:
        raise ValueError(
            f"{what}: depths {list(depths)} and dims {list(dims)}, wanted {len(STRIDES)} numbers each, "
            "0 or more blocks and 1 or more channels a stage"
        )
