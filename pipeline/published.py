"""AION-1's published image, spectrum and map codecs for what a pile measures, and ours as its package loads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from skycairn.catalogs.registry import SURVEYS as SURVEYS_BY_NAME
from skycairn.catalogs.registry import survey
from skycairn.pipeline.learned import SEGMAP, grid
from skycairn.tokenizers.codec import Codec
from skycairn.tokenizers.image import SURVEYS, ImageCodec
from skycairn.tokenizers.network import NetworkCodec
from skycairn.tokenizers.segmap import SegmentationCodec
from skycairn.tokenizers.spectrum import SpectrumCodec

SPECTRA = ("desi", "sdss")


def from_aion(
    kind: str, source: str, compat: str | None = None, padding: Literal["none", "upstream"] = "none"
) -> dict[str, NetworkCodec]:
    """Codecs by modality, from a folder or the Hub: as the classes' `from_aion`, for the units that a pile has.

    Its HSC images are in nanomaggies here, and in units of a zero point of 27 there. `padding` is of spectra.
    """
    if kind == "segmap":
        return {SEGMAP: SegmentationCodec.from_aion(source)}
    if kind == "spectrum":
        made = {}
        for name in SPECTRA:
            modality = survey(name, SURVEYS_BY_NAME[name].releases[0]).modality(f"{name}.spectrum")
            made[modality.name] = SpectrumCodec.from_aion(source, grid(modality), padding)
        return dict(made)
    found: dict[str, NetworkCodec] = {}
    for name in SURVEYS:
        own = ImageCodec.from_aion(source, name, compat=compat)
        clip = None if own.clip is None else [c / own.scale for c in own.clip]
        found[f"{name}.image"] = own.beside(own.bands, own.slots, zero_point=22.5, clip=clip)
    return found


def to_aion(codecs: Mapping[str, Codec], out: Path) -> list[Path]:
    """Write the networks among the codecs, each once; where each lies.

    ValueError where two of one kind have other weights, since AION-1 has one of a kind for all surveys.
    """
    networks = {m: c for m, c in codecs.items() if isinstance(c, ImageCodec | SpectrumCodec | SegmentationCodec)}
    if not networks:
        raise ValueError(f"of {', '.join(codecs) or 'nothing'} none has a network, which is what polymathic-aion loads")
    first: dict[str, tuple[str, ImageCodec | SpectrumCodec | SegmentationCodec]] = {}
    for modality, codec in networks.items():
        name, other = first.setdefault(codec.kind, (modality, codec))
        mine, theirs = codec.arrays(), other.arrays()
        if mine.keys() != theirs.keys() or not all(np.array_equal(mine[k], theirs[k]) for k in mine):
            raise ValueError(
                f"{modality} and {name} have other weights, and AION-1 has one network for both; choose one"
            )
    written = []
    for modality, codec in first.values():
        try:
            written.append(codec.to_aion(out))
        except ValueError as error:
            done = f"; {', '.join(str(p) for p in written)} is written" if written else ""
            raise ValueError(f"{modality}: {error}; --codec names those to write instead{done}") from error
    return written
