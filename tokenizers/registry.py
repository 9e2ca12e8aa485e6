"""Codecs by the name in their files, and by the kind that a survey's modality asks for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from skycairn.tokenizers.codec import Codec, Measurement
from skycairn.tokenizers.coefficients import CoefficientCodec
from skycairn.tokenizers.patches import PatchImageCodec, PatchSpectrumCodec, UniformImageCodec
from skycairn.tokenizers.scalar import GridCodec, QuantileCodec

CODECS: dict[str, type[Codec]] = {
    c.kind: c
    for c in (QuantileCodec, GridCodec, CoefficientCodec, PatchImageCodec, UniformImageCodec, PatchSpectrumCodec)
}
"""Class of each `Codec.kind` that is fitted, as `codec.json` names it."""

NETWORKS: dict[str, tuple[str, str]] = {"spectrum_network": ("spectrum", "SpectrumCodec")}
"""Module and class of each `Codec.kind` that is trained; torch is imported when one is asked for."""


def codec_class(kind: str) -> type[Codec]:
    """The class of a `Codec.kind`; LookupError where there is none."""
    if kind in NETWORKS:
        module, name = NETWORKS[kind]
        found: type[Codec] = getattr(import_module(f"skycairn.tokenizers.{module}"), name)
        return found
    return CODECS[kind]


def _value(measurement: Measurement, kind: str) -> Any:
    if "value" not in measurement:
        raise ValueError(f"codec {kind!r}: the sample holds {', '.join(measurement) or 'nothing'}, wanted 'value'")
    return measurement["value"]


FITS: dict[str, Callable[..., Codec]] = {
    "quantile": lambda m, **s: QuantileCodec.fit(_value(m, "quantile"), "identity", **s),
    "log": lambda m, **s: QuantileCodec.fit(_value(m, "log"), "log", **s),
    "asinh": lambda m, **s: QuantileCodec.fit(_value(m, "asinh"), "asinh", **s),
    "grid": lambda m, **s: GridCodec.fit(**s),
    "xp": lambda m, **s: CoefficientCodec.fit(_value(m, "xp"), **s),
    "image": PatchImageCodec.fit,
    "image_uniform": UniformImageCodec.fit,
    "spectrum": PatchSpectrumCodec.fit,
}
"""How a modality's codec kind is fitted."""


def fit_codec(kind: str, measurement: Measurement, **settings: Any) -> Codec:
    """The codec of a modality's kind, fitted to a sample in any order; `settings` go to the class's `fit`.

    One source is enough, though such a codec is poor (its `n_fit` tells); none is a ValueError. `grid` needs no
    sample. `image` and `image_uniform` need `bands`.
    """
    if kind not in FITS:
        raise ValueError(f"there is no codec kind {kind!r}; choose one of {', '.join(FITS)}")
    rows = {len(v) for v in measurement.values()}
    if kind != "grid" and not (len(rows) == 1 and min(rows) >= 1):
        raise ValueError(f"codec {kind!r}: the sample has {sorted(rows)} rows, wanted one number of rows, 1 or more")
    return FITS[kind](measurement, **settings)
