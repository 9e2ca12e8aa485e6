"""Maps of numbers in [0, 1], such as painted segmentations, to tokens by a network of AION-1's architecture.

Convolutions after VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937) around a finite scalar quantizer. `painted`
makes the map of AION-1's paper from a catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from skycairn.tokenizers.aion import matched, read_published, write_published
from skycairn.tokenizers.codec import Layout, Measurement
from skycairn.tokenizers.network import Loss, NetworkCodec, Tensors
from skycairn.tokenizers.quantizers import FiniteScalarQuantizer

AION_NAME = "segmentation_map"
AVERAGE = "ema.module."
"what the names of the averaged weights begin with in AION-1's file"
EMPTY = -5.5
"logit of the mean of maps of half-light ellipses, about 0.004"

AION_CONFIG: dict[str, Any] = {
    "encoder_output_dim": ...,
    "decoder_input_dim": None,
    "embedding_dim": None,
    "res_hidden_dims": 64,
    "num_res_layers": 2,
    "num_downsamples": 3,
    "variational": False,
    "output_activation_extension": None,
    "levels": (8, 5, 5, 5),
    # how it was trained, which no token depends on
    "quantisation_loss_weight": 1.0,
    "lr": 1e-3,
    "lr_warmup": None,
    "begin_cosine_annealing": None,
    "lr_cosine_period": None,
    "ema_model_weights": False,
    "ema_decay": 0.9999,
    "ema_update_freq": 1,
}
"""What AION-1's `config.json` of this codec may hold, with the defaults of its class."""

BRIGHTNESS: dict[str, float] = {"PSF": 0.2, "REX": 0.4, "EXP": 0.6, "DEV": 0.8, "SER": 1.0}
"""What a source of each Tractor type is painted with: the numbers are the paper's, which is which type's is guessed
from the order in which Tractor tries them."""


@dataclass(frozen=True)
class Architecture:
    """All that decides the shape of the network. Defaults are those that AION-1's published file is thought to have."""

    levels: tuple[int, ...] = (8, 5, 5, 5)
    "of the quantizer"
    hidden: int = 512
    "channels where the tokens are"
    decoder: int = 512
    "channels that the decoder starts from"
    residual: int = 512
    "channels inside a residual layer"
    layers: int = 2
    "residual layers one after the other"
    compressions: int = 3
    "how often the side is halved"
    extension: float | None = None
    "d: the output reaches from -d to 1 + d before it is cut to 0 .. 1"

    def __post_init__(self) -> None:
        if min(self.hidden, self.decoder) < 2 ** (self.compressions - 1) or self.compressions < 1 or self.residual < 1:
            raise ValueError(
                f"segmentation network: {asdict(self)}: wanted one halving or more, and channels for every one"
            )

    def settings(self) -> dict[str, Any]:
        """As JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def restore(cls, settings: dict[str, Any]) -> Self:
        """The inverse of `settings`."""
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        return cls(**given)


SIZES: dict[str, Architecture] = {
    "tiny": Architecture(hidden=48, decoder=48, residual=24),
    "small": Architecture(hidden=256, decoder=256, residual=128),
    "aion": Architecture(),
}
"""Networks that `fresh` makes."""


class ResidualLayer(nn.Module):
    """x plus what two convolutions make of it."""

    def __init__(self, n: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.ReLU(), nn.Conv2d(n, hidden, 3, padding=1), nn.BatchNorm2d(hidden), nn.ReLU(), nn.Conv2d(hidden, n, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, channel, y, x), of the same shape."""
        return x + self.net(x)


class Layers(nn.Module):
    """Layers in a row, under the name `net`."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """One after the other."""
        found: Tensor = self.net(x)
        return found


class FieldNetwork(nn.Module):
    """Maps to quantized vectors and back. Weights are named as in AION-1's file."""

    def __init__(self, form: Architecture) -> None:
        super().__init__()
        self.form = form
        self._quantizer = FiniteScalarQuantizer(form.levels)
        self.encode_proj = nn.Conv2d(form.hidden, len(form.levels), 1)
        self.decode_proj = nn.Conv2d(len(form.levels), form.decoder, 1)

        def residual(n: int) -> Layers:
            return Layers([ResidualLayer(n, form.residual) for _ in range(form.layers)])

        down: list[nn.Module] = []
        halves = range(form.compressions - 1, 0, -1)
        wide = [1, *(form.hidden // 2**i for i in halves), form.hidden]
        for n_in, n_out in pairwise(wide):
            down += [nn.Conv2d(n_in, n_out, 4, stride=2, padding=1), nn.ReLU()]
        up: list[nn.Module] = []
        # narrow first and wide last: so AION-1's are built
        wide = [form.decoder, *(form.decoder // 2**i for i in halves), 1]
        for n_in, n_out in pairwise(wide):
            up += [nn.ReLU(), nn.ConvTranspose2d(n_in, n_out, 4, stride=2, padding=1)]
        self.encoder = Layers([*down, nn.Conv2d(form.hidden, form.hidden, 3, padding=1), residual(form.hidden)])
        first = nn.ConvTranspose2d(form.decoder, form.decoder, 3, padding=1)
        self.decoder = Layers([first, residual(form.decoder), *up])
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def quantizer(self) -> FiniteScalarQuantizer:
        """Of the vectors."""
        return self._quantizer

    def latent(self, x: Tensor) -> Tensor:
        """Maps (n, y, x) to vectors (n, number, rows, columns), float32."""
        x = self.encoder(x[:, None])
        with torch.autocast(x.device.type, enabled=False):
            found: Tensor = self.encode_proj(x.float())
        return found

    def field(self, quantized: Tensor) -> Tensor:
        """Quantized vectors to maps (n, y, x), float32, before they are cut to 0 .. 1."""
        x = torch.sigmoid(self.decoder(self.decode_proj(quantized))[:, 0].float())
        d = self.form.extension
        return x if d is None else (1 + 2 * d) * x - d


class SegmentationCodec(NetworkCodec):
    """The centre of a map of numbers in [0, 1] as a grid of tokens.

    `value` (n, y, x) is cropped to `crop` pixels from N // 2 - crop // 2, so that pixel N // 2 is pixel crop // 2 of
    the crop. decode gives `value` (n, crop, crop), float32.

    `average`: weights of a published file that are a running mean over its training. AION-1 does not use them, so
    they decide no token; they are kept, saved and written with the others, until the weights change.
    """

    kind: ClassVar[str] = "segmap_network"
    ordered = False
    network: FieldNetwork

    def __init__(self, network: FieldNetwork, *, crop: int = 96) -> None:
        super().__init__(network)
        side = 2**network.form.compressions
        if crop < 1 or crop % side:
            raise ValueError(f"segmentation codec: a crop of {crop} pixels is no whole number of tokens of {side}")
        self.crop = crop
        self.average: dict[str, NDArray[Any]] = {}
        self.layout = Layout("grid", (crop // side, crop // side))
        self.vocabulary = network.quantizer.codes

    @classmethod
    def fresh(cls, size: str | Architecture, *, seed: int = 0, crop: int = 96) -> Self:
        """A new codec of a size in `SIZES`, or of any architecture; weights from `seed` alone."""
        if isinstance(size, str) and size not in SIZES:
            raise ValueError(f"segmentation codec: size {size!r}, wanted one of {', '.join(SIZES)}")
        network = _seeded(SIZES[size] if isinstance(size, str) else size, seed)
        if network.form.extension is None:
            # most of a map is empty: from a sigmoid's middle all codes would be one before the bias had come down
            torch.nn.init.constant_(network.decoder.net[-1].bias, EMPTY)  # type: ignore[arg-type]
        return cls(network, crop=crop)

    @property
    def levels(self) -> tuple[int, ...]:
        """Of the quantizer."""
        return tuple(self.network.quantizer.levels.tolist())

    def tensors(self, measurement: Measurement, first_row: int = 0) -> Tensors:
        """`value` (n, crop, crop), float32."""
        if "value" not in measurement:
            found = ", ".join(measurement) or "nothing"
            raise ValueError(f"segmentation codec: the measurement holds {found}, wanted 'value'")
        value = np.asarray(measurement["value"])
        if value.ndim != 3 or min(value.shape[1:]) < self.crop or value.dtype.kind not in "fiub":
            raise ValueError(
                f"segmentation codec: value is {value.dtype} of shape {value.shape}, wanted numbers (n, y, x) with "
                f"{self.crop} pixels or more a side"
            )
        y, x = (n // 2 - self.crop // 2 for n in value.shape[1:])
        value = value[:, y : y + self.crop, x : x + self.crop].astype(np.float32)
        wrong = ~((value >= 0) & (value <= 1))
        if wrong.any():
            row, y, x = (int(i) for i in np.argwhere(wrong)[0])
            raise ValueError(
                f"segmentation codec: row {first_row + row}, pixel ({y}, {x}) of the crop is {value[row, y, x]}, "
                "wanted 0 to 1"
            )
        return {"value": torch.from_numpy(value)}

    def latent(self, tensors: Tensors) -> Tensor:
        """What is quantized, float32 (n, number, rows, columns)."""
        return self.network.latent(tensors["value"])

    def codes(self, tensors: Tensors) -> Tensor:
        """Indices, int64 (n, n_tokens), row by row."""
        return self.network.quantizer.indices(self.latent(tensors)).flatten(1)

    def measured(self, indices: Tensor) -> Tensors:
        """`value` (n, crop, crop), float32, in 0 .. 1."""
        quantized = self.network.quantizer.values(indices.reshape(-1, *self.layout.shape))
        return {"value": self.network.field(quantized).clamp(0, 1)}

    def loss(self, tensors: Tensors) -> Loss:
        """The mean squared error. parts: `mse`; `bias`, the mean error."""
        quantized, codes = self.network.quantizer(self.latent(tensors))
        found = self.network.field(quantized)
        total = F.mse_loss(found, tensors["value"].float())
        parts = {"mse": total.detach(), "bias": (found.detach() - tensors["value"]).mean()}
        return Loss(total, parts, codes.flatten(1))

    def settings(self) -> dict[str, Any]:
        """The network's architecture, and the crop."""
        return {"architecture": self.network.form.settings(), "crop": self.crop}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Weights and buffers by name, `average` among them."""
        return {**super().arrays(), **{AVERAGE + k: v for k, v in self.average.items()}}

    def load_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Take over weights by name, all of them and no others; the averaged ones may be there, all of them."""
        average = {k.removeprefix(AVERAGE): v for k, v in arrays.items() if k.startswith(AVERAGE)}
        if average:
            super().load_arrays(average)  # checks that they fit
        super().load_arrays({k: v for k, v in arrays.items() if not k.startswith(AVERAGE)})
        self.average = average
        return self

    def changed(self) -> None:
        """The weights are others now; `average` was of the old ones and goes."""
        super().changed()
        self.average = {}

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        """The codec of these settings and arrays."""
        return cls(_seeded(Architecture.restore(settings["architecture"])), crop=settings["crop"]).load_arrays(arrays)

    @classmethod
    def from_aion(cls, source: str | Path, weights: Literal["last", "average"] = "last") -> Self:
        """AION-1's codec of segmentation maps from a folder or the Hub (`aion.read_published`).

        `weights`: the last of its training, which polymathic-aion uses, or their running mean, where the file has it.
        """
        config, arrays = read_published(source, AION_NAME)
        config = matched(AION_NAME, config, AION_CONFIG)
        if config["variational"]:
            raise ValueError(
                f"{source}: is a variational codec, of which polymathic-aion itself makes no tokens; "
                "wanted variational false"
            )
        hidden = config["encoder_output_dim"]
        form = Architecture(
            tuple(config["levels"]),
            hidden,
            config["decoder_input_dim"] or hidden,
            config["res_hidden_dims"],
            config["num_res_layers"],
            config["num_downsamples"],
            config["output_activation_extension"],
        )
        if (config["embedding_dim"] or hidden) != len(form.levels):
            raise ValueError(
                f"{source}: AION-1's codec has {config['embedding_dim'] or hidden} numbers a token and levels "
                f"{list(form.levels)}, wanted as many; is the configuration another codec's?"
            )
        codec = cls(_seeded(form)).load_arrays(arrays)
        if bool(codec.average) != bool(config["ema_model_weights"]):
            raise ValueError(
                f"{source}: the configuration says ema_model_weights {config['ema_model_weights']}, and the file holds "
                f"{len(codec.average)} of them; fetch both files again"
            )
        if weights == "average":
            if not codec.average:
                raise ValueError(f"{source}: holds no averaged weights ({AVERAGE}*); ask for weights='last'")
            codec.load_arrays(codec.average)
        return codec

    def to_aion(self, folder: Path) -> Path:
        """Write the network as `codecs/segmentation_map/` in the folder, for polymathic-aion; gives that place."""
        form = self.network.form
        if self.crop != 96:
            raise ValueError(
                f"segmentation codec: crop {self.crop}, AION-1's is 96; only such a one can be written for it"
            )
        config = {
            "encoder_output_dim": form.hidden,
            "decoder_input_dim": form.decoder,
            "embedding_dim": len(form.levels),
            "res_hidden_dims": form.residual,
            "num_res_layers": form.layers,
            "num_downsamples": form.compressions,
            "output_activation_extension": form.extension,
            "ema_model_weights": bool(self.average),
            "levels": list(form.levels),
        }
        return write_published(folder, AION_NAME, config, self.arrays())


def painted(
    x: NDArray[Any],
    y: NDArray[Any],
    e1: NDArray[Any],
    e2: NDArray[Any],
    radius: NDArray[Any],
    types: Sequence[str] | NDArray[Any],
    side: int = 96,
    *,
    pixel_arcsec: float = 0.262,
    psf_arcsec: float = 0.65,
) -> NDArray[np.float32]:
    """The map (side, side) of a cut-out's sources: half-light ellipses with a number by Tractor type (`BRIGHTNESS`).

    `x`, `y`: pixels of the cut-out, 0 the centre of the first one; y is declination, x runs against right ascension.
    `e1`, `e2`: Tractor's ellipticity, |e| = (1 - b/a) / (1 + b/a) at half the position angle from north through east;
    `radius`: half-light, arcsec; points, and sources smaller, get circles of `psf_arcsec`. Where ellipses overlap the
    largest number stands, so the order of the sources does not matter. A pixel is painted where its centre is within.
    Duplicates (type DUP) are left out. ValueError names the source that has an unknown type or a number that is none.
    """
    names = [t.decode() if isinstance(t, bytes) else str(t) for t in types]
    numbers = np.stack([np.asarray(a, float) for a in (x, y, e1, e2, radius)])
    if numbers.ndim != 2 or numbers.shape[1] != len(names):
        raise ValueError(
            f"painted: arrays of shape {numbers.shape[1:]} and {len(names)} types, wanted one of each a source"
        )
    found = np.zeros((side, side), np.float32)
    rows, columns = np.mgrid[:side, :side]
    for i, (name, (x0, y0, a1, a2, r)) in enumerate(zip(names, numbers.T, strict=True)):
        name = name.strip()
        if name == "DUP":
            continue
        point = name == "PSF"
        wrong = not np.isfinite([x0, y0]).all() or not (point or (r >= 0 and r < np.inf and np.hypot(a1, a2) < 1))
        if name not in BRIGHTNESS or wrong:
            raise ValueError(
                f"painted: source {i} has type {name!r}, place ({x0}, {y0}), ellipticity ({a1}, {a2}), radius {r}; "
                f"wanted one of {', '.join(BRIGHTNESS)} and numbers, |e| below 1; leave it out if it is none"
            )
        e = 0.0 if point else float(np.hypot(a1, a2))
        major = psf_arcsec if point else max(float(r), psf_arcsec)
        minor = max(major * (1 - e) / (1 + e), pixel_arcsec / 2)
        angle = 0.0 if point else 0.5 * np.arctan2(a2, a1)
        east, north = (x0 - columns) * pixel_arcsec, (rows - y0) * pixel_arcsec
        along = north * np.cos(angle) + east * np.sin(angle)
        across = east * np.cos(angle) - north * np.sin(angle)
        inside = (along / major) ** 2 + (across / minor) ** 2 <= 1
        found[inside] = np.maximum(found[inside], np.float32(BRIGHTNESS[name]))
    return found


def _seeded(form: Architecture, seed: int = 0) -> FieldNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FieldNetwork(form)
