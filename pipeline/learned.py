"""Untrained codecs for a pile's images and spectra: one network for all surveys of a kind."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from skycairn.catalogs.survey import Modality
from skycairn.tokenizers.image import SURVEYS, ImageCodec
from skycairn.tokenizers.network import NetworkCodec
from skycairn.tokenizers.segmap import SegmentationCodec
from skycairn.tokenizers.spectralgrid import SpectralGrid
from skycairn.tokenizers.spectrum import SpectrumCodec

KINDS = ("image", "spectrum", "segmap")
SEGMAP = "legacysurvey.segmap"
"""Name of the maps that are painted from the Legacy Surveys' catalogue (segmaps.py)."""
CROP = 96
"""Pixels a side of an image that become tokens, AION-1's."""
SOFTENING = 4.0
"""Sigmas at which images turn from linear to logarithmic, as with the fitted codecs."""
DEFAULT_GRID = ("linear", 3600.0, 0.8)
"""Of a survey whose modality names none: DESI's."""


def of_kind(kind: str, modalities: Mapping[str, Modality]) -> dict[str, Modality]:
    """The modalities that a kind of codec is for."""
    return {
        name: m
        for name, m in modalities.items()
        if (kind == "image" and m.image) or (kind == "spectrum" and m.codec == "spectrum")
    }


def fresh(
    kind: str,
    modalities: Mapping[str, Modality],
    size: str,
    seed: int,
    crop: int = CROP,
    noise: Mapping[str, NDArray[np.float64]] | None = None,
) -> dict[str, NetworkCodec]:
    """Codecs of a kind and size for these modalities, on one network with weights from `seed`.

    `noise`: typical sigma of a pixel by modality, nanomaggies a band; images are then compressed by asinh in units of
    `SOFTENING` times it.

    ValueError for a survey whose bands no image network knows, or whose images are in another unit than nanomaggies.
    """
    if kind == "segmap":
        return {SEGMAP: SegmentationCodec.fresh(size, seed=seed, crop=crop)}
    if kind == "image":
        return dict(_images(modalities, size, seed, crop, noise or {}))
    return dict(_spectra(modalities, size, seed))


def _images(
    modalities: Mapping[str, Modality], size: str, seed: int, crop: int, noise: Mapping[str, NDArray[np.float64]]
) -> dict[str, ImageCodec]:
    made: dict[str, ImageCodec] = {}
    for name, m in modalities.items():
        survey = SURVEYS.get(name.split(".")[0])
        slots = dict(zip(survey.bands, survey.slots, strict=True)) if survey else {}
        if unknown := [b for b in m.bands if b not in slots]:
            raise ValueError(
                f"{name}: an image network has no place for band {unknown[0]!r}; it has those of {', '.join(SURVEYS)}"
            )
        if m.unit != "nanomaggy":
            raise ValueError(f"{name}: images are in {m.unit or 'no unit'}, wanted nanomaggy")
        places = [slots[b] for b in m.bands]
        soft = [float(f"{SOFTENING * sigma:.4g}") for sigma in noise[name]] if name in noise else None
        if made:
            made[name] = next(iter(made.values())).beside(m.bands, places, zero_point=22.5, softening=soft)
        else:
            made[name] = ImageCodec.fresh(size, m.bands, places, seed=seed, crop=crop, softening=soft)
    return made


def _spectra(modalities: Mapping[str, Modality], size: str, seed: int) -> dict[str, SpectrumCodec]:
    made: dict[str, SpectrumCodec] = {}
    for name, m in modalities.items():
        own = grid(m)
        made[name] = next(iter(made.values())).on(own) if made else SpectrumCodec.fresh(size, seed, own)
    return made


def grid(modality: Modality) -> SpectralGrid:
    """The wavelengths of a survey's spectra."""
    scale, start, step = modality.wavelengths or DEFAULT_GRID
    return SpectralGrid(scale, start, step, modality.shape[0])
