"""The network of the spectrum codec, the numbers that decide it, and its sizes; names are those of AION-1's files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from skycairn.tokenizers.convnext import STRIDES, Decoder, Encoder
from skycairn.tokenizers.lfq import LookupFreeQuantizer


@dataclass(frozen=True)
class SpectrumSettings:
    """All that decides the network and how its input is scaled, by the names of AION-1's `config.json`."""

    encoder_depths: tuple[int, ...]
    encoder_dims: tuple[int, ...]
    decoder_depths: tuple[int, ...]
    decoder_dims: tuple[int, ...]
    "the last is 2 (flux, mask) or 1 (flux)"
    latent_channels: int
    embedding_dim: int = 10
    dim: int = 10
    codebook_size: int = 1024
    lambda_min: float = 3500.0
    "Angstrom"
    resolution: float = 0.8
    "Angstrom a latent pixel"
    num_pixels: int = 8704
    clip_ivar: float | None = 100.0
    "`aion` alone"
    clip_flux: float | None = None
    "`aion` alone"
    input_scaling: float = 0.2
    normalization_range: tuple[float, float] = (-1.0, 5.0)
    "of log10(amplitude + 1) in `aion`, of log10(amplitude) in `skycairn`"

    def __post_init__(self) -> None:
        for name in ("encoder_depths", "encoder_dims", "decoder_depths", "decoder_dims"):
            object.__setattr__(self, name, tuple(int(v) for v in getattr(self, name)))
        for name in ("lambda_min", "resolution", "input_scaling", "clip_ivar", "clip_flux"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else float(value))
        low, high = (float(v) for v in self.normalization_range)
        object.__setattr__(self, "normalization_range", (low, high))
        stride = int(np.prod(STRIDES))
        wrong = [
            said
            for found, said in (
                (self.encoder_dims[-1:] == (self.latent_channels,), "encoder_dims that end in latent_channels"),
                (self.decoder_dims[-1:] in ((1,), (2,)), "decoder_dims that end in 1 or 2"),
                (self.embedding_dim == self.dim and self.codebook_size == 1 << self.dim, "codebook_size 2 ** dim"),
                (self.num_pixels > 0 and self.num_pixels % stride == 0, f"num_pixels a multiple of {stride}"),
                (self.resolution > 0 and low < high, "a positive resolution and a normalization_range"),
            )
            if not found
        ]
        if wrong:
            raise ValueError(f"spectrum codec: wanted {'; '.join(wrong)}; found {self}")


SIZES: dict[str, SpectrumSettings] = {
    "tiny": SpectrumSettings((0, 0, 0, 3), (32, 48, 64, 64), (3, 0, 0, 0), (64, 64, 48, 2), 64),
    "small": SpectrumSettings((1, 2, 4, 4), (32, 64, 128, 192), (4, 4, 2, 0), (192, 96, 48, 2), 192),
    "aion": SpectrumSettings((3, 3, 27, 3), (64, 128, 256, 512), (3, 9, 3, 3), (256, 128, 64, 2), 512),
}
"""Networks by name. `tiny` has its blocks where the line is short, and wide steps between, which are cheap and without
which a layer norm leaves no room for the light; `aion` is that of the published weights (24,751,734 parameters)."""


class _LatentGrid(nn.Module):
    """The latent wavelengths, kept as AION-1 keeps them."""

    lambda_min: Tensor
    resolution: Tensor
    length: Tensor
    _wavelength: Tensor

    def __init__(self, s: SpectrumSettings) -> None:
        super().__init__()
        self.register_buffer("lambda_min", torch.tensor(float(s.lambda_min)))
        self.register_buffer("resolution", torch.tensor(float(s.resolution)))
        self.register_buffer("length", torch.tensor(s.num_pixels))
        self.register_buffer("_wavelength", (torch.arange(s.num_pixels) * s.resolution + s.lambda_min)[None])


class _Buckets(nn.Module):
    """Edges of the amplitude's bins, kept as AION-1 keeps them."""

    buckets: Tensor

    def __init__(self, s: SpectrumSettings) -> None:
        super().__init__()
        self.register_buffer("buckets", torch.linspace(*s.normalization_range, s.codebook_size))


class SpectrumNetwork(nn.Module):
    """Two channels on the latent grid to signs, and signs to flux (and mask) on it."""

    def __init__(self, settings: SpectrumSettings) -> None:
        super().__init__()
        s = self.settings = settings
        self.made = False
        "whether spectrumstart.py makes its encoder, whose weights cancel each other to more digits than bf16 holds"
        self._quantizer = nn.ModuleDict({"_quantizer": LookupFreeQuantizer(s.embedding_dim)})
        self.encoder = Encoder(2, s.encoder_depths, s.encoder_dims)
        self.decoder = Decoder(s.latent_channels, s.decoder_depths, s.decoder_dims)
        self.normalization_quantizer = _Buckets(s)
        self.latent_grid = _LatentGrid(s)
        self.pre_quant_norm = nn.LayerNorm(s.latent_channels)
        self.quant_conv = nn.Conv1d(s.latent_channels, s.embedding_dim, 1)
        self.post_quant_conv = nn.Conv1d(s.embedding_dim, s.latent_channels, 1)

    @property
    def quantizer(self) -> LookupFreeQuantizer:
        """Of the places; it has no weights."""
        return cast(LookupFreeQuantizer, self._quantizer["_quantizer"])

    def channels(self, x: Tensor) -> Tensor:
        """Before their signs are taken, (n, place, bits), of (n, latent pixel, 2); fp32 where the encoder is made."""
        with torch.autocast(x.device.type, enabled=torch.is_autocast_enabled(x.device.type) and not self.made):
            h = self.pre_quant_norm(self.encoder(x))
            return functional.linear(h, self.quant_conv.weight[:, :, 0], self.quant_conv.bias)

    def light(self, signs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Flux, and logit of the mask where there is one, float32 (n, latent pixel), of (n, place, bits)."""
        h = functional.linear(signs, self.post_quant_conv.weight[:, :, 0], self.post_quant_conv.bias)
        found = self.decoder(h).float()
        return found[..., 0], found[..., 1] if found.shape[-1] == 2 else None
