"""Weights that a small spectrum network begins from: the cosines of each token's pixels, and bits that tell them apart.

A network of random weights has to find out, through the signs of its channels, that a number can be told by bits; most
of a short training goes into that. Here the mean of a token's pixels begins with 4 bits, as a Gray code, and each of
the three next cosines with 2, which say whether it is high and whether it is low.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from skycairn.tokenizers.convnext import STRIDES, Block
from skycairn.tokenizers.spectrumnetwork import SpectrumNetwork

CONSTANT = 4.0
"of the channels that hold no light: beside them a layer norm leaves room for how bright the others are"
BEND, CORNER = 40.0, 6.0
"what enters a GELU is multiplied by these, in the encoder and the decoder, so that it bends as a ramp does"
FREE = 0.3
"of the random weights of channels that hold neither light nor a constant"
MIDDLE, REACH, MEAN_BITS = 0.7, 1.1, 4
"of the mean, asinh of amplitudes: levels share out MIDDLE - REACH to MIDDLE + REACH"
EDGE, STEP, WAVES = 0.1, 0.25, 3
"a cosine beyond EDGE decodes to STEP; of so many cosines"
BITS = MEAN_BITS + 2 * WAVES
KEPT = (4, 8, 12, 16)
"cosines that each stage of the encoder keeps"


def can_begin(network: SpectrumNetwork) -> bool:
    """Whether the network has its blocks where `begin` needs them, and width enough."""
    s = network.settings
    wide = min(*s.encoder_dims[2:], *s.decoder_dims[:2]) >= 48 and s.encoder_dims[0] >= 16 and s.encoder_dims[1] >= 24
    blocks = s.encoder_depths[:3] == s.decoder_depths[1:] == (0, 0, 0) and s.encoder_depths[3] and s.decoder_depths[0]
    return bool(blocks) and wide and s.decoder_dims[2] >= 16 and s.embedding_dim == BITS


def begin(network: SpectrumNetwork) -> None:
    """Set the weights of a network that was just initialised; what holds no light keeps its own."""
    with torch.no_grad():
        for block in network.modules():
            if isinstance(block, Block):
                block.pwconv2.weight.zero_()
                block.pwconv2.bias.zero_()
        _encoder(network)
        _decoder(network)


def _encoder(network: SpectrumNetwork) -> None:
    """Channels of a stage: its cosines, the inverse error, then (in the last) the bits; constants to the end."""
    steps = list(network.encoder.downsample_layers)
    first, last = steps[0], network.encoder
    conv, norm = first[0], first[1]  # type: ignore[index]
    length = STRIDES[0]
    _clear(conv, KEPT[0] + 1)
    conv.weight[: KEPT[0], 0] = _waves(length)[: KEPT[0]] / length
    conv.weight[KEPT[0], 1] = 1 / length
    _constants(conv, KEPT[0] + 1)
    _pass(norm, KEPT[0] + 1)
    for stage in range(1, len(STRIDES)):
        norm, conv = steps[stage][0], steps[stage][1]  # type: ignore[index]
        before, now = KEPT[stage - 1], KEPT[stage]
        _pass(norm, before + 1)
        spare = BITS if stage == len(STRIDES) - 1 else 0
        _clear(conv, now + 1 + spare)
        for half, part in enumerate(_halves(length)):
            # cosines of the whole by those of a half; a mean over both halves
            _read(conv.weight[:now, :, half], part[:now, :before] / 2, before + 1)
            _read(conv.weight[now : now + 1, before : before + 1, half], torch.full((1, 1), 0.5), None)
        _constants(conv, now + 1 + spare)
        length *= 2
    block = last.stages[-1][0]  # type: ignore[index]
    used = KEPT[-1] + 1
    _still(block, used + BITS)
    flat = torch.zeros(len(_corners(MEAN_BITS)), 32 * 8, 2)
    flat[..., 0] = _corners(MEAN_BITS)[:, None]
    h = block.norm(network.encoder.shortened(flat))[:, 4]
    heard = h[:, 0] - h[:, -_n_constants(h.shape[1], used + BITS) :].mean(dim=1)
    units, into = _bends(heard)
    n = len(units)
    block.pwconv1.weight[:n] = 0
    for i, (wave, sign, at) in enumerate(units):
        _read(block.pwconv1.weight[i : i + 1], BEND * sign * _one(wave, used), used + BITS)
        block.pwconv1.bias[i] = -BEND * sign * at
    block.pwconv2.weight[used : used + BITS, :n] = into[:, :n] / BEND
    block.pwconv2.bias[used : used + BITS] = into[:, n]
    for norm in (last.norm, network.pre_quant_norm):
        _pass(norm, used + BITS)
    network.quant_conv.weight.zero_()
    network.quant_conv.bias.zero_()  # type: ignore[union-attr]
    _read(network.quant_conv.weight[:, :, 0], torch.eye(used + BITS)[used:], used + BITS)


def _corners(bits: int) -> Tensor:
    """Where the triangle wave of the last of so many bits of the mean bends, and its ends."""
    return MIDDLE + REACH * torch.linspace(-1, 1, (1 << (bits - 1)) + 1)


def _bends(heard: Tensor) -> tuple[list[tuple[int, float, float]], Tensor]:
    """Ramps max(0, sign * (cosine - at)), and each bit by them and a constant, (bit, ramp + 1).

    `heard`: the corners of the last bit's wave, as they reach the block.
    """
    middle = float(heard[len(heard) // 2])
    ramps: dict[tuple[int, float, float], int] = {}
    table = torch.zeros(BITS, 64)
    at_end = torch.zeros(BITS)

    def add(bit: int, wave: int, sign: float, at: float, weight: float) -> None:
        table[bit, ramps.setdefault((wave, sign, at), len(ramps))] += weight

    for bit in range(MEAN_BITS):
        # a wave of 2 ** bit sides between -1 and 1, rising first, falling then
        corners = heard[:: 1 << (MEAN_BITS - 1 - bit)].tolist()
        rises = [2 / (b - a) * (-1) ** i for i, (a, b) in enumerate(pairwise(corners))]
        add(bit, 0, 1.0, middle, rises[0])
        add(bit, 0, -1.0, middle, -rises[0])
        at_end[bit] = rises[0] * (middle - corners[0]) - 1
        for at, before, after in zip(corners[1:-1], rises[:-1], rises[1:], strict=True):
            add(bit, 0, 1.0, at, after - before)
    for i in range(2 * WAVES):
        for sign in (1.0, -1.0):
            add(MEAN_BITS + i, 1 + i // 2, sign, 0.0, sign * (-1) ** i / EDGE)
        at_end[MEAN_BITS + i] = -1.0
    return list(ramps), torch.cat([table[:, : len(ramps)], at_end[:, None]], dim=1)


def _decoder(network: SpectrumNetwork) -> None:
    """Channels: bits, which half of a token it is, cosines of 16 pixels; then cosines alone; constants to the end."""
    steps, used = list(network.decoder.upsample_layers), BITS + 1
    first = network.post_quant_conv
    _clear(first, used)
    first.weight[:BITS, :, 0] = torch.eye(BITS)
    _constants(first, used)
    conv, norm = steps[0][0], steps[0][1]  # type: ignore[index]
    cosines = 8
    held = used + cosines
    _clear(conv, held)
    for half in range(2):
        conv.weight[:BITS, :BITS, half] = torch.eye(BITS)
        side = 1.0 if half else -1.0
        # a constant channel of post_quant_conv is +CONSTANT: half of it stands for the second half, less for the first
        conv.weight[first.out_channels - 2, BITS, half] = side / CONSTANT
    _constants(conv, held)
    _pass(norm, held, used)
    block = network.decoder.stages[0][0]  # type: ignore[index]
    _still(block, held, used)
    units: list[tuple[list[float], float, list[float]]] = []
    levels = MIDDLE + REACH * ((2 * np.arange(1 << MEAN_BITS) + 1) / (1 << MEAN_BITS) - 1)
    for level, value in enumerate(levels.tolist()):
        bits = [*_gray(level), *[0.0] * (BITS - MEAN_BITS), 0.0]
        units.append((bits, MEAN_BITS - 1.0, [math.sinh(value), *[0.0] * (cosines - 1)]))
    length = 32
    halves = [p.T for p in _halves(length // 2)]  # of (whole, half) cosines; transposed: half by whole
    for wave in range(1, WAVES + 1):
        for side in (0, 1):
            for half in (0, 1):
                bits = [0.0] * (BITS + 1)
                bits[MEAN_BITS + 2 * (wave - 1) + side] = 1.0
                bits[BITS] = 1.0 if half else -1.0
                value = (STEP if side == 0 else -STEP) * math.cosh(MIDDLE)
                units.append((bits, 1.0, (value * halves[half][:cosines, wave]).tolist()))
    typical = [*_gray(1 << (MEAN_BITS - 1)), *[-1.0] * (2 * WAVES), 0.0]
    n = len(units)
    block.pwconv1.weight[:n] = 0
    for i, (bits, least, _) in enumerate(units):
        _read(block.pwconv1.weight[i : i + 1], CORNER * torch.tensor(bits)[None], held)
        block.pwconv1.bias[i] = -CORNER * least
    for i, (bits, _, out) in enumerate(units):
        # how high it is where its bits are met hangs on what the norms leave of them
        code = torch.tensor([b or rest for b, rest in zip(bits, typical, strict=True)])
        h = first.weight[:, :, 0] @ code[:BITS] + first.bias
        h = norm(torch.einsum("i,iok->ko", h, conv.weight) + conv.bias)[int(bits[BITS] > 0)]
        height = functional.gelu(block.pwconv1(block.norm(h)))[i]
        block.pwconv2.weight[used:held, i] = torch.tensor(out) / height
    keeps, at = cosines, used
    for stage in range(1, len(STRIDES)):
        norm, conv = steps[stage][0], steps[stage][1]  # type: ignore[index]
        _pass(norm, at + keeps, at)
        length = 32 >> stage if stage < 3 else 4
        last = stage == len(STRIDES) - 1
        now = conv.out_channels if last else min(8, length // 2)
        _clear(conv, now)
        if last:
            parts = [_waves(4)[:keeps, x : x + 1].T for x in range(4)]
        else:
            parts = [p.T[:now, :keeps] for p in _halves(length // 2)]
        for half, part in enumerate(parts):
            into = conv.weight[:, : len(part), half].T
            wide = torch.zeros(len(part), at + keeps)
            wide[:, at:] = part
            found = torch.zeros_like(into)
            _read(found, wide, at + keeps)
            conv.weight[:, : len(part), half] = found.T
        if not last:
            _constants(conv, now)
        keeps, at = now, 0


def _gray(level: int) -> list[float]:
    """Bits of a level of the mean, as the waves of `_bends` have them."""
    code = level ^ (level >> 1)
    return [1.0 if code >> (MEAN_BITS - 1 - k) & 1 else -1.0 for k in range(MEAN_BITS)]


def _waves(length: int) -> Tensor:
    """Cosines of `length` pixels, the longest first, of mean square 1: (length, length)."""
    k = np.arange(length)
    waves = np.cos(np.pi * (k + 0.5) * k[:, None] / length) * np.where(k == 0, 1.0, math.sqrt(2.0))[:, None]
    return torch.from_numpy(waves).float()


def _halves(length: int) -> list[Tensor]:
    """Cosines of 2 `length` pixels by those of either half, each (2 length, length)."""
    whole, part = _waves(2 * length), _waves(length)
    return [whole[:, half * length : (half + 1) * length] @ part.T / length for half in (0, 1)]


def _one(wave: int, n: int) -> Tensor:
    return torch.eye(n)[wave : wave + 1]


def _out(conv: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight with the output channel first, and bias."""
    assert isinstance(conv, nn.Conv1d | nn.ConvTranspose1d) and conv.bias is not None
    return (conv.weight.transpose(0, 1) if isinstance(conv, nn.ConvTranspose1d) else conv.weight), conv.bias


def _clear(conv: nn.Module, n: int) -> None:
    """The first n output channels hear nothing."""
    weight, bias = _out(conv)
    weight.mul_(FREE)
    bias.mul_(FREE)
    weight[:n] = 0
    bias[:n] = 0


def _constants(conv: nn.Module, used: int) -> None:
    """The last channels, an even number, half of those unused, are CONSTANT and -CONSTANT by turns."""
    weight, bias = _out(conv)
    n = _n_constants(len(bias), used)
    weight[len(bias) - n :] = 0
    bias[len(bias) - n :] = CONSTANT * torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0)


def _n_constants(width: int, used: int) -> int:
    return (width - used) // 4 * 2


def _pass(norm: nn.Module, used: int, signs: int = 0) -> None:
    """A layer norm that changes little as long as constants, and `signs` channels of -1 or 1, outweigh the light."""
    assert isinstance(norm, nn.LayerNorm)
    width = norm.normalized_shape[0]
    nn.init.constant_(norm.weight, math.sqrt((CONSTANT**2 * _n_constants(width, used) + signs) / width))
    nn.init.zeros_(norm.bias)


def _still(block: nn.Module, used: int, signs: int = 0) -> None:
    """A block whose convolution looks at its own place alone."""
    assert isinstance(block, Block)
    block.dwconv.weight.zero_()
    block.dwconv.weight[:, 0, 3] = 1
    block.dwconv.bias.zero_()  # type: ignore[union-attr]
    _pass(block.norm, used, signs)


def _read(into: Tensor, weight: Tensor, used: int | None) -> None:
    """Rows that read channels, with what a layer norm took off all of them, found in the constants, given back."""
    into[:, : weight.shape[1]] = weight
    if used is not None:
        n = _n_constants(into.shape[1], used)
        into[:, into.shape[1] - n :] = -weight.sum(dim=1, keepdim=True) / n
