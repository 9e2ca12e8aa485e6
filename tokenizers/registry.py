"""Codecs by the name in their files, and by the kind that a survey's modality asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from skycairn.tokenizers.codec import Codec, Measurement
from skycairn.tokenizers.coefficients import CoefficientCodec
from skycairn.tokenizers.cutout_catalog import CutoutCatalogCodec
from skycairn.tokenizers.knots import GridKnotsCodec, KnotsCodec, MultiKnotsCodec
from skycairn.tokenizers.patches import PatchImageCodec, PatchSpectrumCodec, UniformImageCodec
from skycairn.tokenizers.scalar import GridCodec, QuantileCodec, Transform
from skycairn.tokenizers.sketch import QuantileSketch

CODECS: dict[str, type[Codec]] = {
    c.kind: c
    for c in (
        *(QuantileCodec, GridCodec, CoefficientCodec, PatchImageCodec, UniformImageCodec, PatchSpectrumCodec),
        *(KnotsCodec, MultiKnotsCodec, GridKnotsCodec, CutoutCatalogCodec),
    )
}
"""Class of each `Codec.kind` that is fitted, as `codec.json` names it."""

NETWORKS: dict[str, tuple[str, str]] = {
    "image_network": ("image", "ImageCodec"),
    "segmap_network": ("segmap", "SegmentationCodec"),
    "spectrum_network": ("spectrum", "SpectrumCodec"),
}
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


SKETCHED: dict[str, Transform] = {"quantile": "identity", "log": "log", "asinh": "asinh"}
"""Kinds of one number that are fitted to a sketch, and the transforms that they mean."""


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


def fit_to_sketches(kind: str, sketches: Sequence[QuantileSketch]) -> Codec:
    """The codec of a kind of column modality, fitted to a sketch of each number of a source (one, but for `xp`).

    Where the sketches are exact it is `fit_codec`'s of their numbers. `grid` needs none.
    """
    transform = SKETCHED.get(kind)
    if kind == "grid":
        return GridCodec.fit()
    if kind == "xp":
        return CoefficientCodec.from_sketches(sketches)
    if transform is None or len(sketches) != 1:
        raise ValueError(
            f"codec {kind!r}: {len(sketches)} sketches; wanted one for {', '.join(SKETCHED)}, one a coefficient for "
            "xp; other kinds are fitted to samples"
        )
    return QuantileCodec.from_sketch(sketches[0], transform)
