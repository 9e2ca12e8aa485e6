"""AION-1's image autoencoder: residual convolutions with global-context gates around a finite scalar quantizer.

After MAGVIT-v2's tokenizer (Yu et al. 2024, arXiv:2310.05737) with the gates of Cao et al. 2020 (arXiv:2012.13375).
Modules are nested so that the names of the weights are those of AION-1's published file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skycairn.tokenizers.quantizers import FiniteScalarQuantizer

AION_SLOTS = ("HSC-G", "HSC-R", "HSC-I", "HSC-Z", "HSC-Y", "DES-G", "DES-R", "DES-I", "DES-Z")


@dataclass(frozen=True)
class Architecture:
    """All that decides the shape of an image network, and the scale of what it is given. Defaults are AION-1's."""

    levels: tuple[int, ...] = (7, 5, 5, 5, 5)
    "of the quantizer"
    hidden: int = 512
    "channels where the tokens are; each halving of the side before has half as many as the next"
    projection: int = 54
    "channels that all bands of all surveys are mixed into"
    compressions: int = 2
    "how often the side is halved"
    consecutive: int = 4
    "residual units one after the other"
    range_compression: float = 0.01
    "nanomaggies where asinh turns from linear to logarithmic"
    mult: float = 10.0
    "the network is given mult * range_compression * asinh(flux / range_compression)"
    slots: tuple[str, ...] = AION_SLOTS
    "the bands of all surveys that it may be given"
    stem: int = 1
    "side of the blocks of pixels that become channels before the first convolution; 1: none, as AION-1"
    kernel: int = 7
    "side of the first convolution and of the last one before the tokens"
    kernel_out: int = 3
    "side of the last convolution of all"

    def __post_init__(self) -> None:
        whole = {k: getattr(self, k) for k in ("hidden", "projection", "consecutive", "stem", "kernel", "kernel_out")}
        if min(whole.values()) < 1 or self.compressions < 0 or self.kernel % 2 == 0 or self.kernel_out % 2 == 0:
            raise ValueError(f"image network: {asdict(self)}: wanted counts of 1 or more and odd kernels")
        if self.hidden % 2**self.compressions:
            raise ValueError(f"image network: {self.hidden} channels cannot be halved {self.compressions} times")
        if not (self.range_compression > 0 and self.mult > 0):
            raise ValueError(
                f"image network: range_compression {self.range_compression}, mult {self.mult}: wanted more than 0"
            )
        if not self.slots or len(set(self.slots)) < len(self.slots):
            raise ValueError(f"image network: slots {self.slots}, wanted names, each once")

    @property
    def reduction(self) -> int:
        """Pixels a token, along a side."""
        return int(self.stem * 2**self.compressions)

    def settings(self) -> dict[str, Any]:
        """As JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def restore(cls, settings: dict[str, Any]) -> Self:
        """The inverse of `settings`."""
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        return cls(**given)


class SameConv(nn.Module):
    """A convolution that keeps the side."""

    def __init__(self, n_in: int, n_out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_in, y, x) to (n, n_out, y, x)."""
        found: Tensor = self.conv(x)
        return found


class GlobalContext(nn.Module):
    """Channels gated by a mean over all pixels, each weighted by a softmax that is learned."""

    def __init__(self, n: int, gate_bias: float) -> None:
        super().__init__()
        hidden = max(16, n // 2)
        self.to_k = nn.Conv2d(n, 1, 1)
        last = nn.Conv2d(hidden, n, 1)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, gate_bias)  # type: ignore[arg-type]
        self.net = nn.Sequential(nn.Conv2d(n, hidden, 1), nn.LeakyReLU(0.1), last, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """(n, channel, y, x), gated."""
        weight = self.to_k(x).flatten(2).softmax(-1).to(x.dtype)
        context = torch.bmm(weight, x.movedim(1, -1).flatten(1, 2))
        return self.net(context.movedim(-1, 1)[..., None]) * x


class ResidualUnit(nn.Module):
    """x plus what two convolutions and a gate make of it."""

    def __init__(self, n: int, gate_bias: float) -> None:
        super().__init__()
        self.net = nn.Sequential(SameConv(n, n, 3), nn.ELU(), nn.Conv2d(n, n, 1), nn.ELU(), GlobalContext(n, gate_bias))

    def forward(self, x: Tensor) -> Tensor:
        """(n, channel, y, x), of the same shape."""
        return self.net(x) + x


class Halved(nn.Module):
    """The side halved by a strided convolution."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_in, y, x) to (n, n_out, y / 2, x / 2)."""
        found: Tensor = self.conv(x)
        return found


class Doubled(nn.Module):
    """The side doubled: four channels become a block of pixels, row by row."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        conv = nn.Conv2d(n_in, 4 * n_out, 1)
        first = torch.empty(n_out, n_in, 1, 1)
        nn.init.kaiming_uniform_(first)
        # the four pixels of a block begin alike
        conv.weight.data.copy_(first.repeat_interleave(4, dim=0))
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.net = nn.Sequential(conv, nn.SiLU(), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_in, y, x) to (n, n_out, 2 y, 2 x)."""
        found: Tensor = self.net(x)
        return found


class ChannelNorm(nn.Sequential):
    """Layer normalisation over the channels of each pixel."""

    def __init__(self, n: int) -> None:
        super().__init__(nn.Identity(), nn.LayerNorm(n))

    def forward(self, x: Tensor) -> Tensor:
        """(n, channel, y, x), of the same shape."""
        return self[1](x.movedim(1, -1)).movedim(-1, 1)


class SubsampledLinear(nn.Module):
    """A linear map to or from all bands of all surveys, of which a codec has some, in float32."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        start = nn.Linear(n_in, n_out)
        self.weight, self.bias = nn.Parameter(start.weight), nn.Parameter(start.bias)

    def into(self, x: Tensor, places: list[int], present: Tensor) -> Tensor:
        """(n, band, y, x), 0 in bands that are not `present`, bool (n, band), to (n, n_out, y, x).

        `places`: which of the inputs the bands are. All, the bias too, grows by sqrt(n_in / n_present) of each source.
        """
        with torch.autocast(x.device.type, enabled=False):
            found = F.conv2d(x.float(), self.weight[:, places, None, None], self.bias)
            return found * (self.weight.shape[1] / present.sum(1).clamp(min=1)).sqrt()[:, None, None, None]

    def out_of(self, x: Tensor, places: list[int]) -> Tensor:
        """(n, n_in, y, x) to (n, band, y, x), the outputs at `places`."""
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x.float(), self.weight[places, :, None, None], self.bias[places])


class Autoencoder(nn.Module):
    """The two halves without quantizer and projections."""

    def __init__(self, n_bands: int, form: Architecture, gate_bias: float) -> None:
        super().__init__()

        def units(n: int) -> nn.Sequential:
            return nn.Sequential(*(ResidualUnit(n, gate_bias) for _ in range(form.consecutive)))

        n = form.hidden // 2**form.compressions
        self.conv_in = SameConv(n_bands, n, form.kernel)
        self.conv_out = SameConv(n, n_bands, form.kernel_out)
        down: list[nn.Module] = [ResidualUnit(n, gate_bias)]
        up: list[nn.Module] = [ResidualUnit(n, gate_bias)]
        for _ in range(form.compressions):
            down += [Halved(n, 2 * n), units(2 * n)]
            up += [Doubled(2 * n, n), units(2 * n)]
            n *= 2
        down += [SameConv(n, n, form.kernel), units(n), ChannelNorm(n)]
        up += [SameConv(n, n, 3), units(n)]
        self.encoder_layers = nn.ModuleList(down)
        self.decoder_layers = nn.ModuleList(up[::-1])

    def encode(self, x: Tensor) -> Tensor:
        """(n, n_bands, y, x) to (n, hidden, rows, columns)."""
        x = self.conv_in(x)
        for layer in self.encoder_layers:
            x = layer(x)
        return x

    def decode(self, x: Tensor) -> Tensor:
        """The way back."""
        for layer in self.decoder_layers:
            x = layer(x)
        found: Tensor = self.conv_out(x)
        return found


class ImageNetwork(nn.Module):
    """Range-compressed images of any of the slots to quantized vectors and back.

    `gate_bias` is where the residual units start: at AION-1's -10 they pass x on and learn slowly.
    """

    def __init__(self, form: Architecture, gate_bias: float = -10.0) -> None:
        super().__init__()
        self.form = form
        self._quantizer = FiniteScalarQuantizer(form.levels)
        self.subsample_in = SubsampledLinear(len(form.slots), form.projection)
        self.subsample_out = SubsampledLinear(form.projection, len(form.slots))
        self.pre_quant_proj = nn.Conv2d(form.hidden, len(form.levels), 1)
        self.post_quant_proj = nn.Conv2d(len(form.levels), form.hidden, 1)
        self.model = Autoencoder(form.projection * form.stem**2, form, gate_bias)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def quantizer(self) -> FiniteScalarQuantizer:
        """Of the vectors."""
        return self._quantizer

    def latent(self, x: Tensor, places: list[int], present: Tensor) -> Tensor:
        """Images to vectors (n, number, rows, columns), float32; arguments as of `SubsampledLinear.into`."""
        x = self.subsample_in.into(x, places, present)
        if self.form.stem > 1:
            x = F.pixel_unshuffle(x, self.form.stem)
        x = self.model.encode(x)
        with torch.autocast(x.device.type, enabled=False):
            found: Tensor = self.pre_quant_proj(x.float())
        return found

    def pixels(self, quantized: Tensor, places: list[int]) -> Tensor:
        """Quantized vectors (n, number, rows, columns) to images (n, band, y, x) of the bands at `places`, float32."""
        x = self.model.decode(self.post_quant_proj(quantized))
        if self.form.stem > 1:
            x = F.pixel_shuffle(x, self.form.stem)
        return self.subsample_out.out_of(x, places)


def n_parameters(network: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(math.prod(p.shape) for p in network.parameters())


def positions(bands: Sequence[str], slots: Sequence[str]) -> list[int]:
    """The place of each band among the slots; ValueError where one has none or is named twice."""
    strange = [b for b in bands if b not in slots]
    if strange or len(set(bands)) < len(bands) or not bands:
        raise ValueError(
            f"image codec: bands go into slots {', '.join(bands) or 'none'}, wanted each once and one of "
            f"{', '.join(slots)}"
        )
    return [list(slots).index(b) for b in bands]
