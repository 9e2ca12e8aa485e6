"""What a small spectrum network begins from: an encoder that is made, not learned, and a decoder that understands it.

A code of 10 signs holds the mean of a token's pixels in 5 of them, its slope in 3 and its arc in 2, each as a Gray
code of levels. The encoder stays as it is made here. In trials it lost within 600 steps of training what it could tell,
be it begun so or at random: the gradient that is passed on through signs knows nothing of what another code would mean.
The decoder learns, and it looks at a token's neighbours too, which say more of a spectrum than its own levels do.
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
BEND, CORNER = 200.0, 6.0
"what enters a GELU is multiplied by these, in the encoder and the decoder, so that it bends as a ramp does"
FREE = 0.3
"of the random weights of channels that hold neither light nor a constant"
LEVELS: tuple[tuple[float, ...], ...] = (
    # of the mean, amplitudes: close around 1, where most bright spectra lie; negative ones for noise
    (
        *(-0.25, -0.05, 0.1, 0.22, 0.33, 0.42, 0.5, 0.57, 0.63, 0.69, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0),
        *(1.05, 1.1, 1.15, 1.2, 1.26, 1.33, 1.41, 1.5, 1.62, 1.77, 1.97, 2.25, 2.7, 3.5, 5.0, 8.0),
    ),
    # of the first cosine, a slope, and of the second, an arc
    (-0.9, -0.22, -0.06, 0.0, 0.05, 0.14, 0.4, 1.2),
    (-0.5, 0.0, 0.18, 0.7),
)
"""What the bits of a token tell apart, of each of its lowest cosines: powers of two, ascending. Those that
fitted patch codecs of DESI and SDSS have, put between them. The mean is of flux, the others of its asinh."""
COUNTS = tuple(len(levels).bit_length() - 1 for levels in LEVELS)
BITS = sum(COUNTS)
KEPT = (4, 8, 12, 16)
"cosines that each stage of the encoder keeps"


def can_begin(network: SpectrumNetwork) -> bool:
    """Whether the network has its blocks where `begin` needs them, width enough, and flux in amplitudes."""
    s = network.settings
    wide = min(*s.encoder_dims[2:], *s.decoder_dims[:2]) >= 48 and s.encoder_dims[0] >= 16 and s.encoder_dims[1] >= 24
    blocks = s.encoder_depths[:3] == s.decoder_depths[1:] == (0, 0, 0) and s.encoder_depths[3] and s.decoder_depths[0]
    return bool(blocks) and wide and s.decoder_dims[2] >= 16 and s.embedding_dim == BITS and s.input_scaling == 1.0


def begin(network: SpectrumNetwork) -> None:
    """Set the weights of a network that was just initialised; those up to the signs learn no more, as long as the
    network lives: one that is read from a file learns all."""
    with torch.no_grad():
        for block in network.modules():
            if isinstance(block, Block):
                block.pwconv2.weight.zero_()
                block.pwconv2.bias.zero_()
        _encoder(network)
        _decoder(network)
    for part in (network.encoder, network.pre_quant_norm, network.quant_conv):
        part.requires_grad_(False)


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
    edges = _edges()
    flat = torch.zeros(len(edges[0]), 32 * 8, 2)
    flat[..., 0] = edges[0][:, None]
    h = block.norm(network.encoder.shortened(flat))[:, 4]
    # how high a mean is where the bits are made hangs on what the norms leave of it
    edges[0] = h[:, 0] - h[:, -_n_constants(h.shape[1], used + BITS) :].mean(dim=1)
    units, into = _bends([e.tolist() for e in edges])
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


def _edges() -> list[Tensor]:
    """Between the levels of each cosine, asinh of amplitudes."""
    levels = [torch.tensor(v) for v in LEVELS]
    levels[0] = torch.asinh(levels[0])
    return [(v[1:] + v[:-1]) / 2 for v in levels]


def _bends(edges: list[list[float]]) -> tuple[list[tuple[int, float, float]], Tensor]:
    """Ramps max(0, sign * (cosine - at)), and each bit by them and a constant, (bit, ramp + 1).

    A bit of a Gray code is a wave of straight sides that is 0 at every second, fourth, ... edge, and 1 or -1 between.
    """
    ramps: dict[tuple[int, float, float], int] = {}
    table, constant = torch.zeros(BITS, 1000), torch.zeros(BITS)

    def add(bit: int, wave: int, sign: float, at: float, weight: float) -> None:
        table[bit, ramps.setdefault((wave, sign, at), len(ramps))] += weight

    bit = 0
    for wave, (count, own) in enumerate(zip(COUNTS, edges, strict=True)):
        middle = own[len(own) // 2]
        for k in range(count):
            far = 1 << (count - 1 - k)
            zeros = own[far - 1 :: 2 * far]
            corners = [(a + b) / 2 for a, b in pairwise(zeros)]
            rise = 2 * (len(corners) + 1) / (own[-1] - own[0])
            # a line through the first zero, turned back at each corner
            add(bit, wave, 1.0, middle, rise)
            add(bit, wave, -1.0, middle, -rise)
            constant[bit] = rise * (middle - zeros[0])
            for i, at in enumerate(corners):
                add(bit, wave, 1.0, at, 2 * rise * (-1) ** (i + 1))
            bit += 1
    return list(ramps), torch.cat([table[:, : len(ramps)], constant[:, None]], dim=1)


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
    halves = [p.T for p in _halves(16)]  # of the whole's cosines, those of either half
    middle = [len(v) // 2 for v in LEVELS]
    for wave, levels in enumerate(LEVELS):
        for level, value in enumerate(levels):
            for half in (0, 1) if wave else (0,):
                bits = [0.0] * used
                at = sum(COUNTS[:wave])
                bits[at : at + COUNTS[wave]] = _gray(level, COUNTS[wave])
                bits[BITS] = 2.0 * half - 1.0 if wave else 0.0  # a mean is the same of both halves
                # the slope of asinh at the amplitude, near which bright spectra are
                out = value * (math.sqrt(2.0) * halves[half][:cosines, wave] if wave else torch.eye(cosines)[0])
                units.append((bits, sum(map(abs, bits)) - 1, out.tolist()))
    typical = [*(b for level, count in zip(middle, COUNTS, strict=True) for b in _gray(level, count)), 0.0]
    n = len(units)
    block.pwconv1.weight[:n] = 0
    for i, (own, least, _) in enumerate(units):
        _read(block.pwconv1.weight[i : i + 1], CORNER * torch.tensor(own)[None], held)
        block.pwconv1.bias[i] = -CORNER * least
    for i, (own, _, light) in enumerate(units):
        # how high it is where its bits are met hangs on what the norms leave of them
        code = torch.tensor([b or rest for b, rest in zip(own, typical, strict=True)])
        h = norm(conv(first(code[None, :BITS, None]))[0].T)[int(own[BITS] > 0)]
        height = functional.gelu(block.pwconv1(block.norm(h)))[i]
        block.pwconv2.weight[used:held, i] = torch.tensor(light) / height
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


def _gray(level: int, count: int) -> list[float]:
    """Bits of a level, -1 or 1, as the waves of `_bends` have them."""
    code = level ^ (level >> 1)
    return [1.0 if code >> (count - 1 - k) & 1 else -1.0 for k in range(count)]


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
