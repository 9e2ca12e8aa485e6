"""A trained model as it is used: from measurements of some surveys to measurements of others, and to embeddings.

model = Model.load("work/galaxies")
samples = model.generate({"desi.spectrum": {"flux": f, "ivar": i, "mask": m}}, ["legacysurvey.image"], n_samples=8)
samples["legacysurvey.image"].arrays["flux"], samples["legacysurvey.image"].unit
posterior = model.distribution({"legacysurvey.flux_g": g, "legacysurvey.flux_r": r}, "desi.z")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skycairn.model.exported import LOCK, read_config, read_network
from skycairn.model.generate import distribution, generate, shown_of
from skycairn.model.measurements import Arrays, Quantity, decoded, encoded, wavelengths, whole
from skycairn.model.packed import Packed
from skycairn.model.schemes import Target, number_of, schedule
from skycairn.model.transformer import Embedded, Network
from skycairn.model.vocabulary import Vocabulary
from skycairn.pile.shards import TokenArray
from skycairn.tokenizers.codec import Codec
from skycairn.tokenizers.lock import read_lock

ENCODED = 64
"""Objects of a pass, unless told otherwise."""


class Samples(NamedTuple):
    """Draws of one modality."""

    arrays: Arrays
    "as the codec decodes them (`value`, or `flux` and so on), each (object, sample, ...)"
    unit: str
    "of `value` or `flux`; empty: a pure number"
    tokens: NDArray[np.int64]
    "(object, sample, n_tokens)"


class Distribution(NamedTuple):
    """Of one number, over the bins of its codec."""

    value: NDArray[np.float64]
    "(bin,): what each decodes to"
    probability: NDArray[np.float64]
    "(object, bin)"
    unit: str


class Embeddings(NamedTuple):
    """What the network makes of each token that is there; none is left out."""

    values: Tensor
    "(object, most, width), 0 where there is none"
    there: Tensor
    "(object, most)"
    modality: NDArray[np.int64]
    "(object, most): number of the modality of each token, -1 where there is none"


@dataclass(frozen=True)
class Model:
    """A network with the codecs of its tokens. Inputs are as `measurements.encoded` takes them."""

    network: Network
    codecs: Mapping[str, Codec]
    quantities: Mapping[str, Quantity]
    config: Mapping[str, Any]
    "what `skycairn-train export` wrote of it: provenance, settings, versions"

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", bf16: bool = False) -> Model:
        """From a folder that `skycairn-train export` wrote; ValueError names a file that is damaged.

        `bf16`: products in half precision, which is fast on a GPU, and with which samples may hang on the batch.
        """
        folder = Path(folder)
        config = read_config(folder)
        network, codecs = read_network(folder, config).to(device), read_lock(folder / LOCK)
        network.compute_in(torch.bfloat16 if bf16 else torch.float32)
        for column in network.vocabulary.columns:
            found = codecs.get(column.modality)
            if found is None or found.content_id != column.codec_id:
                raise ValueError(f"{folder / LOCK}: holds no codec {column.codec_id[:12]}.. of {column.modality}")
        quantities = {name: Quantity.from_json(v) for name, v in config["modalities"].items()}
        return cls(network, codecs, quantities, config)

    @property
    def vocabulary(self) -> Vocabulary:
        """Its modalities."""
        return self.network.vocabulary

    def wavelength(self, modality: str) -> NDArray[np.float64]:
        """Angstrom of each pixel of a spectrum that is generated; ValueError for what is no spectrum."""
        number_of(self.vocabulary, modality)
        if (found := wavelengths(self.codecs[modality])) is None:
            raise ValueError(f"{modality} is no spectrum: its codec ({self.codecs[modality].kind}) has no wavelengths")
        return found

    def tokens(self, inputs: Mapping[str, Any]) -> dict[str, TokenArray]:
        """Tokens of measurements, by modality."""
        return encoded(self.vocabulary, self.codecs, self.quantities, inputs)[0]

    def encode(self, inputs: Mapping[str, Any], batch: int = ENCODED) -> Embeddings:
        """Embeddings of all tokens of the measurements; modalities of an object stand in the vocabulary's order."""
        if batch < 1:
            raise ValueError(f"encode: batch is {batch}; wanted 1 or more")
        shown = shown_of(self.vocabulary, *encoded(self.vocabulary, self.codecs, self.quantities, inputs))
        values = []
        with torch.no_grad():
            for i in range(0, shown.n_objects, batch):
                start = shown.start[i : i + batch + 1]
                some = slice(start[0], start[-1])
                nothing = np.zeros(0, np.int32)
                packed = Packed(
                    shown.slot[some], shown.token[some], start - start[0], nothing, nothing, np.zeros_like(start)
                )
                values.append(self.network.encode(packed).values)
        width = self.network.form.width
        every = torch.cat(values) if values else torch.zeros(0, width, device=self.network.device)
        padded, there = Embedded(every, shown.start).padded()
        modality = np.full(tuple(there.shape), -1, np.int64)
        modality[there.cpu().numpy()] = self.vocabulary.modality_of_slot[shown.slot]
        return Embeddings(padded, there, modality)

    def generate(
        self,
        inputs: Mapping[str, Any],
        targets: Sequence[str | Target],
        n_samples: int = 1,
        seed: int = 0,
        ids: Sequence[int | str] | None = None,
        batch: int | None = None,
    ) -> dict[str, Samples]:
        """Draws of each target given the inputs, in physical units; an object's own measurement of a target stays.

        With no inputs, draws of one object of which nothing is known. The rest as of `generate.generate`.
        """
        schedule(self.vocabulary, targets)  # before anything is encoded
        shown = shown_of(self.vocabulary, *encoded(self.vocabulary, self.codecs, self.quantities, inputs))
        found = generate(self.network, shown, targets, n_samples, seed, ids, batch)
        return {
            name: Samples(decoded(self.codecs[name], tokens), self.quantities[name].unit, tokens)
            for name, tokens in found.items()
        }

    def distribution(self, inputs: Mapping[str, Any], modality: str, batch: int | None = None) -> Distribution:
        """The distribution of one number given the inputs, over the bins of its codec: exact, nothing is drawn.

        ValueError for a modality of several tokens, or one that is among the inputs of an object.
        """
        number_of(self.vocabulary, modality)
        shown = shown_of(self.vocabulary, *encoded(self.vocabulary, self.codecs, self.quantities, inputs))
        found = distribution(self.network, shown, modality, batch)
        codec = self.codecs[modality]
        value = codec.decode(whole(codec, np.arange(found.shape[1])[:, None]))["value"]
        return Distribution(value, found, self.quantities[modality].unit)
