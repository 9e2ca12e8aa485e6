"""Measurements to tokens and back, by the codecs of a model: as the pile encoded them, with missing ones minded."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skycairn.model.vocabulary import Vocabulary
from skycairn.pile.shards import TokenArray, TokenColumn
from skycairn.tokenizers.codec import Codec, Tokens
from skycairn.tokenizers.modalities import AION

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Quantity:
    """What a modality measures."""

    unit: str = ""
    "of `value` or `flux`, as astropy reads it; empty: a pure number"
    what: str = ""
    shape: tuple[int, ...] = ()
    "of one source's arrays; () for a number, or where it is not known"
    bands: tuple[str, ...] = ()
    pixel_arcsec: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Plain values, as `from_json` takes them."""
        return {**asdict(self), "shape": list(self.shape), "bands": list(self.bands)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Quantity:
        """The reverse of `as_json`."""
        return cls(**{**value, "shape": tuple(value["shape"]), "bands": tuple(value["bands"])})


def quantity_of(column: TokenColumn, codec: Codec) -> Quantity:
    """By AION-1's table of modalities; nothing where it has none of this key.

    Images of a pile are in nanomaggies, HSC's too, unless the codec takes them in AION-1's way.
    """
    known = AION.get(column.token_key)
    if known is None:
        return Quantity()
    unit = "nanomaggy" if known.codec == "image" and codec.compat is None else known.unit
    bands = tuple(getattr(codec, "bands", ()))
    return Quantity(unit.split(";")[0], known.what, bands=bands)


def encoded(
    vocabulary: Vocabulary,
    codecs: Mapping[str, Codec],
    quantities: Mapping[str, Quantity],
    inputs: Mapping[str, Any],
) -> tuple[dict[str, TokenArray], int]:
    """Tokens of measurements by modality, and the number of objects (1 that shows nothing, where there are no inputs).

    A measurement is an array, its first axis the object, or arrays by name as the codec takes them (`flux`, `ivar`,
    `mask`). Missing are: numbers that are NaN or None, vectors with any such, images and spectra without a good pixel
    (all masked, or ivar 0) where the codec looks. What carries a unit (astropy's) is brought to the modality's own.
    ValueError names the modality that is not known, of another length than the first, in a unit that is not
    convertible, or of which the codec cannot take a value.
    """
    out: dict[str, TokenArray] = {}
    n, first = 1, ""
    for name, given in inputs.items():
        if name not in vocabulary.names:
            raise ValueError(f"there is no modality {name!r}; the model knows {', '.join(vocabulary.names)}")
        arrays = {
            k: _array(name, k, v, quantities[name].unit)
            for k, v in (given if isinstance(given, Mapping) else {"value": given}).items()
        }
        lengths = {len(v) if v.ndim else -1 for v in arrays.values()}
        if len(lengths) != 1 or -1 in lengths:
            told = ", ".join(f"{k} {v.shape}" for k, v in arrays.items()) or "no array"
            raise ValueError(f"{name}: {told}; wanted arrays whose first axis is the object, of one length")
        rows = lengths.pop()
        if first and rows != n:
            raise ValueError(f"{name}: {rows} objects, {first} has {n}; wanted as many, NaN or masks for missing ones")
        n, first = rows, first or name
        try:
            out[name] = _tokens(codecs[name], arrays)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return out, n


def decoded(codec: Codec, tokens: NDArray[np.int64]) -> Arrays:
    """Measurements of tokens (object, sample, n_tokens), each array (object, sample, ...)."""
    n, samples, width = tokens.shape
    found = codec.decode(whole(codec, tokens.reshape(n * samples, width)))
    return {k: v.reshape(n, samples, *v.shape[1:]) for k, v in found.items()}


def wavelengths(codec: Codec) -> NDArray[np.float64] | None:
    """Angstrom of each pixel of what a codec of spectra decodes to; None where a codec is of none."""
    tells = next((c for c in (codec, getattr(codec, "grid", None)) if hasattr(c, "wavelength")), None)
    if tells is not None:
        return np.asarray(tells.wavelength(), np.float64)
    latent: Any = getattr(getattr(codec, "network", None), "settings", None)
    if not hasattr(latent, "lambda_min"):
        return None
    return np.asarray(latent.lambda_min + latent.resolution * np.arange(latent.num_pixels), np.float64)


def whole(codec: Codec, tokens: NDArray[np.integer]) -> Tokens:
    """Tokens in the codec's own type."""
    return tokens.astype(np.uint16) if codec.dtype is np.uint16 else tokens.astype(np.uint32)


def _tokens(codec: Codec, arrays: Arrays) -> TokenArray:
    n = len(next(iter(arrays.values())))
    tokens: NDArray[Any] = np.zeros((n, codec.n_tokens), codec.dtype)
    there = np.zeros(n, bool)
    if not n:
        return TokenArray(tokens, there, np.zeros(0, np.int64))
    if set(arrays) == {"value"}:
        value = arrays["value"]
        if value.dtype.kind not in "fiu":
            raise ValueError(f"values are {value.dtype}, wanted numbers")
        value = value if value.dtype.kind == "f" else value.astype(np.float64)
        if np.isinf(value).any():
            raise ValueError(f"row {np.argwhere(np.isinf(value))[0][0]} is infinite; wanted numbers, NaN if missing")
        there = np.asarray(~np.isnan(value).reshape(n, -1).any(axis=1))
        tokens[there] = codec.encode({"value": value[there]})
        return TokenArray(tokens, there, np.where(there, codec.n_tokens, 0))
    # all rows are encoded, so that an error names a row by its place; those of which nothing is seen are left out
    there, made = codec.sees(arrays) & _good(arrays), codec.encode(arrays)
    length = np.where(there, codec.lengths(made), 0)
    tokens[:] = np.where(np.arange(codec.n_tokens) < length[:, None], made, 0)
    return TokenArray(tokens, there, length)


def _good(arrays: Arrays) -> NDArray[np.bool_]:
    """Which sources have a pixel that is neither masked nor of no weight; all, where nothing tells."""
    told = [~arrays["mask"]] if "mask" in arrays else []
    told += [arrays["ivar"] > 0] if "ivar" in arrays else []
    good = np.logical_and.reduce(told) if told else np.ones(1, bool)
    return np.asarray(good.reshape(len(good), -1).any(axis=1), bool)


def _array(modality: str, name: str, given: Any, unit: str) -> NDArray[Any]:
    """Plain numbers, in the modality's unit; what is masked, by numpy or astropy, is NaN."""
    own, masked = getattr(given, "unit", None), None
    if isinstance(given, np.ma.MaskedArray):
        given, masked = np.ma.getdata(given), np.ma.getmaskarray(given)
    elif hasattr(given, "unmasked"):
        given, masked = given.unmasked, np.asarray(given.mask)
    if own is not None:
        given = _in_unit(modality, name, given, own, unit)
    try:
        array = np.asarray(given)
        # None becomes NaN
        array = array.astype(np.float64) if array.dtype == object else array
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{modality}: {name} holds what is no number ({error}); wanted numbers, None if missing"
        ) from error
    if masked is None or not masked.any():
        return array
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{modality}: {name} is {array.dtype} of which some are masked; wanted all of them")
    return np.where(masked, np.nan, array)


def _in_unit(modality: str, name: str, given: Any, own: Any, unit: str) -> NDArray[Any]:
    """Numbers in the unit `own` brought to the modality's."""
    from astropy import units

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", units.UnitsWarning)  # of several slashes
            known = units.Unit(unit)
    except ValueError as error:
        raise ValueError(
            f"{modality}: its unit is {unit!r}, which astropy does not know; give plain numbers"
        ) from error
    wanted = {"value": known, "flux": known, "ivar": known**-2, "wavelength": units.AA}.get(name, units.Unit(""))
    try:
        found: NDArray[Any] = units.Quantity(given, own).to_value(wanted)
    except units.UnitConversionError as error:
        told = str(wanted) or "a pure number"
        raise ValueError(f"{modality}: {name} is in {own or 'pure numbers'}, wanted {told}") from error
    return found
