"""Spectra to tokens by a network: AION-1's architecture, trainable here, and its published weights.

The measurement goes onto one latent grid (3500 A and on, 0.8 A a pixel) that surveys share, so that one network serves
them all; a one-dimensional ConvNeXt V2 shortens it 32-fold; the signs of 10 channels are the code of each place.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from skycairn.tokenizers.aion import matched, read_published, write_published
from skycairn.tokenizers.codec import Layout, Measurement
from skycairn.tokenizers.convnext import STRIDES, initialise
from skycairn.tokenizers.network import Loss, NetworkCodec, Tensors
from skycairn.tokenizers.spectralgrid import Places, SpectralGrid, amplitude, bridged, checked, good_pixels, recorded
from skycairn.tokenizers.spectrumnetwork import SIZES, SpectrumNetwork, SpectrumSettings
from skycairn.tokenizers.spectrumstart import begin, can_begin

PREPROCESSINGS = ("skycairn", "aion")
PADDINGS = ("none", "upstream")
PAD_WAVELENGTH = 99999.0
"Angstrom of the pixels that pad a spectrum in AION-1's own batches."
FARTHEST = 1e6
"Flux and inverse error of a pixel, in amplitudes, are cut here; no spectrum has them."
BEYOND = 20.0
"Logit of the mask where the latent grid has ended."
ERROR_SCALE = 0.1
"Of the second channel in `skycairn`, so that it does not drown the first."


OWN: dict[str, Any] = {"clip_ivar": None, "input_scaling": 1.0, "normalization_range": (-4.0, 6.0)}
"""What `skycairn` has otherwise than `aion` among the network's settings."""


@dataclass(frozen=True)
class Objective:
    """Weights of the loss; no part of what a codec is. Defaults: those of AION-1's paper where it gives them."""

    floor: float = 0.01
    """The variance of a pixel is sigma ** 2 + (floor * amplitude) ** 2, so that beyond a signal to noise of 1 / floor a
    spectrum counts no more for being brighter; else a few stars own the gradient. 0: the likelihood as it is."""
    share: float = 0.1
    """And (share * flux) ** 2, the flux by both neighbours of the pixel, or the brightest lines own it. 0: not so."""
    recorrupt: float = 0.5
    """Where not 0, training adds noise to what it shows, and noise that is independent of that to what it asks for:
    x + r * sigma * e and x - sigma * e / r, so that a copy of the noise is never rewarded and the best answer is the
    light alone (Pang et al. 2021, "Recorrupted-to-Recorrupted"), as far as ivar is right and the noise of pixels is
    their own: where it is 1.2 sigma, a copy of a quarter of it is rewarded again."""
    mask: float = 1.0
    commitment: float = 0.25
    entropy: float = 0.1
    diversity: float = 1.0
    inverse_temperature: float = 2.0
    """AION-1's is 100, at which the entropies have a gradient only where a channel is within 0.01 of 0. At 2 the tiny
    network used 524 codes in a batch after 400 steps, at 100 it used 378 and erred more on spectra of S/N under 12."""


class SpectrumCodec(NetworkCodec):
    """A spectrum as a token of its amplitude and one token for each 25.6 Angstrom of the latent grid.

    `flux`, `ivar`, `mask` (n, pixel), on the codec's `grid`; where it has none the measurement brings `wavelength`
    (n, pixel), Angstrom, strictly increasing. Codecs of several surveys may share one network: see `on`.

    Preprocessing `skycairn`: pixels with mask True or ivar 0 have no influence, whatever they hold. Flux is divided by
    `spectralgrid.amplitude`, which is quantised on equal steps of its logarithm over `normalization_range`, in the unit
    of the flux, clipped to its ends (made for 1e-17 erg/s/cm2/A), and decodes to the middle of a step. What is divided
    by is what the token decodes to, so the steps cost no precision. A spectrum without good pixels gives the tokens of
    nothing; `sees` tells. Preprocessing `aion`: AION-1's own, step by step (polymathic-aion 0.0.2): bad pixels count in
    part, NaN is 0, the amplitude is a mean clipped at 0.1 that decodes to a step's upper edge. `padding` `upstream`
    continues the last pixel to the red end, as the padding of their later batches does. Those who measure on a `grid`
    put flux 0 where the mask is True, which would be absorption of all light: such pixels lie on the line between
    their recorded neighbours, and beyond the first and last recorded one the spectrum has ended.

    decode gives `flux` float32 and, where the network predicts it, `mask` (True = bad), each (n, pixel): on the codec's
    grid, or on the latent one where it has none; in the unit of the input. Beyond the latent grid `skycairn` gives no
    flux and mask True.
    """

    kind: ClassVar[str] = "spectrum_network"
    ordered = False
    network: SpectrumNetwork

    def __init__(
        self,
        network: SpectrumNetwork,
        grid: SpectralGrid | None = None,
        preprocessing: str = "skycairn",
        padding: str = "none",
    ) -> None:
        super().__init__(network)
        if preprocessing not in PREPROCESSINGS or padding not in PADDINGS:
            raise ValueError(
                f"spectrum codec: preprocessing {preprocessing!r} and padding {padding!r}, wanted one of "
                f"{', '.join(PREPROCESSINGS)} and one of {', '.join(PADDINGS)}"
            )
        if padding != "none" and preprocessing != "aion":
            raise ValueError(f"spectrum codec: padding {padding!r} is AION-1's, wanted preprocessing 'aion' with it")
        self.grid, self.preprocessing, self.padding = grid, preprocessing, padding
        network.made = preprocessing == "skycairn" and can_begin(network)
        self.compat = "aion" if preprocessing == "aion" else None
        self.objective = Objective()
        s = network.settings
        self.layout = Layout("line", (1 + s.num_pixels // int(np.prod(STRIDES)),))
        self.vocabulary = s.codebook_size
        self._kept: dict[tuple[str, torch.device], Places] = {}

    # ------------------------------------------------------------------------------------------- making and keeping

    @classmethod
    def fresh(
        cls,
        size: str = "tiny",
        seed: int = 0,
        grid: SpectralGrid | None = None,
        preprocessing: str = "skycairn",
        **settings: Any,
    ) -> Self:
        """An untrained codec of one of `SIZES`, or of `settings` that differ from it (see `SpectrumSettings`).

        Where the network allows it, its weights begin as spectrumstart.py says; else they are random.
        """
        if size not in SIZES:
            raise ValueError(f"spectrum codec: there is no size {size!r}; choose one of {', '.join(SIZES)}")
        own = OWN if preprocessing == "skycairn" else {}
        network = SpectrumNetwork(replace(SIZES[size], **(own | settings)))
        initialise(network, torch.Generator().manual_seed(seed))
        if preprocessing == "skycairn" and can_begin(network):
            begin(network)
        return cls(network, grid, preprocessing)

    def on(self, grid: SpectralGrid | None) -> Self:
        """The codec of another survey's grid with the same network, weights and preprocessing."""
        found = type(self)(self.network, grid, self.preprocessing, self.padding)
        found.objective, found.precision = self.objective, self.precision
        return found

    @property
    def levels(self) -> tuple[int, ...]:
        """Bits; the first token, of the amplitude, is one number of its own."""
        return (2,) * self.network.quantizer.bits

    def settings(self) -> dict[str, Any]:
        """The network's settings, the grid, and how the measurement is prepared."""
        return {
            "network": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.network.settings).items()},
            "grid": None if self.grid is None else asdict(self.grid),
            "preprocessing": self.preprocessing,
            "padding": self.padding,
        }

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        """The codec of these settings and arrays."""
        rest = {k: v for k, v in settings.items() if k not in ("network", "grid")}
        network = SpectrumNetwork(SpectrumSettings(**settings["network"]))
        return cls(network, SpectralGrid.restore(settings["grid"]), **rest).load_arrays(arrays)

    @classmethod
    def from_aion(
        cls,
        source: str | Path,
        grid: SpectralGrid | None = None,
        padding: Literal["none", "upstream"] = "none",
    ) -> Self:
        """AION-1's published codec, from a folder or the Hub (see `aion.read_published`), preprocessing `aion`.

        ValueError where a weight is missing, left over, or of another shape than its configuration says.
        """
        config, arrays = read_published(source, "spectrum")
        known = {f.name: ... if f.default is MISSING else f.default for f in fields(SpectrumSettings)}
        network = SpectrumNetwork(SpectrumSettings(**matched("spectrum", config, known)))
        return cls(network, grid, "aion", padding).load_arrays(arrays)

    def to_aion(self, folder: Path) -> Path:
        """Write network and configuration as `polymathic-aion` loads them; gives the place in the folder.

        The peer prepares measurements in its own way, so only a codec of preprocessing `aion` means the same there.
        """
        if self.preprocessing != "aion":
            raise ValueError(
                f"spectrum codec: its preprocessing is {self.preprocessing!r}, which polymathic-aion does not know; "
                "its tokens would be others there; train a codec of preprocessing 'aion' to publish one"
            )
        config = self.settings()["network"]
        return write_published(Path(folder), "spectrum", config, self.arrays())

    # --------------------------------------------------------------------------------------------- the measurement

    def sees(self, measurement: Measurement) -> NDArray[np.bool_]:
        """Spectra with a good pixel on the latent grid."""
        found = checked(measurement, self.grid, 0)
        s = self.network.settings
        last = s.lambda_min + s.resolution * (s.num_pixels - 1)
        wavelength = found["wavelength"] if self.grid is None else self.grid.wavelength()
        within = (wavelength >= s.lambda_min) & (wavelength <= last)
        return np.asarray(((found["ivar"] > 0) & ~found["mask"] & within).any(axis=1))

    def tensors(self, measurement: Measurement, first_row: int = 0) -> Tensors:
        """The checked measurement. ValueError names `first_row` plus the row that holds what it cannot take.

        `skycairn`: `flux` and `error` (inverse) in amplitudes, `bad`, all (n, pixel), and its `token` (n,).
        `aion`: `flux`, `ivar`, `bad` as given, but on a grid the flux of what was not recorded; and then `ends` (n, 2),
        Angstrom, of what was. Either with `wavelength` where the codec has no grid.
        """
        given = checked(measurement, self.grid, first_row)
        found: dict[str, NDArray[Any]]
        if self.preprocessing == "aion":
            found = {"flux": given["flux"], "ivar": given["ivar"], "bad": given["mask"]}
            if self.grid is not None:
                clip = self.network.settings.clip_ivar
                ivar = given["ivar"] if clip is None else np.minimum(given["ivar"], clip)
                pad = PAD_WAVELENGTH if self.padding == "upstream" else None
                found |= self.grid.ended(given["flux"], ivar, recorded(given["flux"], given["mask"]), pad)
        else:
            flux, ivar = good_pixels(given["flux"], given["ivar"], given["mask"], first_row)
            token = self._binned(amplitude(flux, ivar))
            n = self._amplitude(token)[:, None]
            found = {
                "flux": np.clip(bridged(flux, ivar > 0) / n, -FARTHEST, FARTHEST),
                "error": np.minimum(np.sqrt(ivar) * n, FARTHEST),
                "bad": ivar == 0,
                "token": token,
            }
        if self.grid is None:
            found["wavelength"] = given["wavelength"]
        return {k: torch.from_numpy(v.astype(np.float32)) for k, v in found.items()}

    def shown(self, measurement: Measurement, window: int, rng: np.random.Generator) -> Tensors:
        """As `tensors`; the loss is of `window` latent pixels alone, whole tokens at a random place; 0: of all."""
        found = self.tensors(measurement)
        if window:
            token, n = int(np.prod(STRIDES)), self.network.settings.num_pixels
            if window % token or window > n:
                raise ValueError(
                    f"spectrum codec: a window of {window} latent pixels, wanted whole tokens of {token} and no more "
                    f"than {n}"
                )
            # drawn beyond the ends too and moved back from there, else the ends would hardly ever be seen
            start = int(np.clip(token * int(rng.integers(1 - window // token, n // token)), 0, n - window))
            found["window"] = torch.tensor([start, start + window])
        return found

    def _binned(self, n: NDArray[np.float64]) -> NDArray[np.int64]:
        low, high = self.network.settings.normalization_range
        place = (np.log10(np.maximum(n, 1e-300)) - low) / (high - low) * self.vocabulary
        return np.clip(place, 0, self.vocabulary - 1).astype(np.int64)

    def _amplitude(self, token: NDArray[np.int64]) -> NDArray[np.float64]:
        low, high = self.network.settings.normalization_range
        return np.asarray(10.0 ** (low + (high - low) * (token + 0.5) / self.vocabulary), np.float64)

    def _scale(self, token: Tensor) -> Tensor:
        """What flux is divided by, float32 (n, 1), of amplitude tokens (n,)."""
        if self.preprocessing == "aion":
            return torch.clamp(10 ** self.network.normalization_quantizer.buckets[token] - 1.0, 0.1)[:, None]
        n = torch.from_numpy(self._amplitude(np.arange(self.vocabulary))).float().to(token.device)
        return n[token][:, None]

    def _relative(self, tensors: Tensors) -> tuple[Tensor, Tensor, Tensor]:
        """Flux and inverse error in amplitudes (n, pixel), and the amplitude's token (n,), int64."""
        if self.preprocessing == "skycairn":
            return tensors["flux"], tensors["error"], tensors["token"].long()
        s = self.network.settings
        flux, ivar = torch.nan_to_num(tensors["flux"]), torch.nan_to_num(tensors["ivar"])
        if s.clip_flux is not None:
            flux = torch.clamp(flux, -s.clip_flux, s.clip_flux)
        if s.clip_ivar is not None:
            ivar = torch.clamp(ivar, 0, s.clip_ivar)
        seen = 1.0 - tensors["bad"]
        mean = torch.clamp((flux * seen).sum(dim=-1) / (torch.count_nonzero(seen, dim=-1) + 1.0), 0.1)
        buckets = self.network.normalization_quantizer.buckets
        token = torch.clamp(torch.bucketize(torch.log10(mean + 1.0), buckets), 0, len(buckets) - 1)
        n = self._scale(token)
        return flux / n, torch.sqrt(ivar) / n, token  # the inverse error would grow with n; AION-1 divides

    def _latent(self, tensors: Tensors, flux: Tensor, error: Tensor) -> Tensor:
        """The network's input, float32 (n, latent pixel, 2)."""
        scaling = self.network.settings.input_scaling
        if self.preprocessing == "aion":
            if self.padding == "upstream":
                # one pixel does what AION-1's 27 to 900 do: all lie at one wavelength, and none is counted
                flux, error = functional.pad(flux, (0, 1)), functional.pad(error, (0, 1))
            channels = [(flux - 1.0) * scaling, error * scaling]
            latent = torch.stack([self._to_latent(tensors).take(c) for c in channels], dim=-1)
            if "ends" in tensors:
                at, ends = self.network.latent_grid._wavelength[0], tensors["ends"]
                latent = torch.where(((at >= ends[:, :1]) & (at <= ends[:, 1:]))[..., None], latent, 0.0)
            return torch.asinh(latent)
        onto = self._to_latent(tensors)
        return torch.stack(
            [torch.asinh(onto.take(flux) * scaling), torch.asinh(onto.take(error) * scaling) * ERROR_SCALE], dim=-1
        )

    # ------------------------------------------------------------------------------------------------- wavelengths

    def _to_latent(self, tensors: Tensors) -> Places:
        """Of the latent pixels among the spectrum's own."""
        return self._between("to", tensors)

    def _to_observed(self, tensors: Tensors) -> Places:
        """Of the spectrum's own pixels among the latent ones."""
        return self._between("from", tensors)

    def _between(self, way: Literal["to", "from"], tensors: Tensors) -> Places:
        if self.grid is None:
            return self._places(way, tensors["wavelength"], self.network.latent_grid._wavelength[0])
        key = (way, self.device)
        if key not in self._kept:
            own, latent = torch.from_numpy(self.grid.wavelength()), self.network.latent_grid._wavelength[0].cpu()
            if self.preprocessing == "skycairn":  # in float64, so that pixels that coincide do so to the last bit
                s = self.network.settings
                latent = s.lambda_min + s.resolution * torch.arange(s.num_pixels, dtype=torch.float64)
            with torch.inference_mode(False):  # what is kept may meet a gradient later
                self._kept[key] = self._places(way, own.to(latent), latent).to(self.device)
        return self._kept[key]

    def _places(self, way: Literal["to", "from"], own: Tensor, latent: Tensor) -> Places:
        if way == "to" and self.padding == "upstream":
            own = functional.pad(own, (0, 1), value=PAD_WAVELENGTH)
        latent = latent.expand(*own.shape[:-1], -1).contiguous()
        return Places.of(own, latent) if way == "to" else Places.of(latent, own)

    # ----------------------------------------------------------------------------------------------- the network

    def codes(self, tensors: Tensors) -> Tensor:
        """Indices, int64 (n, n_tokens), of a chunk on the network's device."""
        flux, error, token = self._relative(tensors)
        z = self.network.channels(self._latent(tensors, flux, error))
        return torch.cat([token[:, None], self.network.quantizer.indices(z)], dim=1)

    def measured(self, indices: Tensor) -> Tensors:
        """`flux` float32 and `mask` bool (n, pixel) of a chunk of indices (n, n_tokens)."""
        flux, logit = self._light(self.network.quantizer.channels(indices[:, 1:]), {})
        found = {"flux": flux * self._scale(indices[:, 0])}
        return found if logit is None else found | {"mask": logit > 0}

    def _asked(self, tensors: Tensors, first: int, last: int) -> Tensor:
        """Which pixels of the loss hang on latent pixels `first` to `last` alone, bool, (pixel,) or (n, pixel)."""
        n = self.network.settings.num_pixels
        if self.grid is not None or "wavelength" in tensors:
            onto = self._to_observed(tensors)
            if (first, last) == (0, n):
                return torch.ones_like(onto.inside)
            return onto.inside & (onto.index >= first) & (onto.index + 1 < last)
        place = torch.arange(n, device=self.device)
        return (place >= first) & (place < last)

    def _light(self, signs: Tensor, tensors: Tensors, first: int = 0) -> tuple[Tensor, Tensor | None]:
        """Flux in amplitudes and the mask's logit (n, pixel), on the spectrum's own wavelengths if there are any.

        The first place is that of latent pixel `first`; there is no light where there are no places.
        """
        flux, logit = self.network.light(signs)
        around = (first, self.network.settings.num_pixels - first - flux.shape[1])
        if any(around):
            flux = functional.pad(flux, around)
            logit = None if logit is None else functional.pad(logit, around)
        if self.grid is not None or "wavelength" in tensors:
            onto = self._to_observed(tensors)
            flux = onto.take(flux)
            logit = None if logit is None else onto.take(logit)
            if self.preprocessing == "skycairn":
                logit = None if logit is None else torch.where(onto.inside, logit, BEYOND)
        if self.preprocessing == "aion":
            flux = flux + 1.0
        return flux, logit

    def loss(self, tensors: Tensors) -> Loss:
        """The paper's loss on the spectrum's own wavelengths, weighted as `objective` says.

        Gaussian likelihood of the good pixels' flux, mean over a spectrum and then over the batch; binary cross-entropy
        of the mask; commitment and entropies of the codes. Spectra without good pixels count in the latter alone.
        """
        weights = self.objective
        flux, error, token = self._relative(tensors)
        bad = tensors["bad"]
        if self.preprocessing == "aion":
            ivar = torch.nan_to_num(tensors["ivar"]) * self._scale(token) ** 2 * (1.0 - bad)
        else:
            ivar = error.square()
        good = ivar > 0
        shown, asked = flux, flux
        if weights.recorrupt and self.network.training:
            noise = torch.where(good, torch.randn_like(flux) * ivar.clamp(min=1e-30).rsqrt(), 0.0)
            shown, asked = flux + weights.recorrupt * noise, flux - noise / weights.recorrupt
        first, last = (int(v) for v in tensors.get("window", torch.tensor([0, self.network.settings.num_pixels])))
        z = self.network.channels(self._latent(tensors, shown, error)[:, first:last])
        quantizer = self.network.quantizer
        light, logit = self._light(quantizer(z), tensors, first)
        asking = self._asked(tensors, first, last)
        good = good & asking
        if asked is not flux:
            # what lies across bad pixels is a line between their neighbours as they were given, and would tell these
            beside = functional.pad((ivar > 0).float(), (1, 1), value=1.0)
            good = good & (beside[:, :-2] * beside[:, 2:] > 0)
        counts = good.sum(dim=1).clamp(min=1)
        square = torch.where(good, light - asked, 0.0).square()
        row = good.any(dim=1)
        share = row.float() / row.sum().clamp(min=1)
        with torch.no_grad():
            # by its neighbours: a pixel's own noise would have a say in its own weight, and make light too faint
            bright = functional.pad(flux[:, :-2] * flux[:, 2:], (1, 1), mode="replicate").clamp(min=0)
            slack = 1 + (weights.floor**2 + weights.share**2 * bright) * ivar
        nll = 0.5 * ((square * ivar / slack).sum(dim=1) / counts * share).sum()
        lfq = quantizer.loss(z, weights.inverse_temperature)
        total = nll + lfq.total(weights.commitment, weights.entropy, weights.diversity)
        parts = {"nll": nll, "commitment": lfq.commitment, "entropy": lfq.sure, "spread": lfq.spread}
        with torch.no_grad():
            given = torch.where(good, light - flux, 0.0).square() * ivar
            parts["chi2"] = (given.sum(dim=1) / counts)[row].median() if row.any() else nll * 0
        if logit is not None:
            miss = functional.binary_cross_entropy_with_logits(logit, (bad > 0).float(), reduction="none")
            parts["mask"] = (miss * asking).sum() / (asking.expand_as(miss).sum().clamp(min=1))
            total = total + weights.mask * parts["mask"]
        return Loss(total, {k: v.detach() for k, v in parts.items()}, quantizer.indices(z.detach()))
