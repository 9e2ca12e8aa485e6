"""Numbers that describe decoded tokens, for baselines that are to know what a model is shown: neighbours, boosting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skycairn.model.measurements import whole
from skycairn.pile.shards import TokenArray
from skycairn.tokenizers.codec import Codec

F64 = NDArray[np.float64]
APERTURES = (4.0, 8.0, 16.0, 32.0)
"""Radii in pixels within which an image's light is summed, in each band."""
PIECES = 128
"""Of a spectrum, each told by its mean."""
AT_ONCE = 256


def features(tokens: Mapping[str, TokenArray], codecs: Mapping[str, Codec]) -> F64:
    """(object, feature): numbers and coefficients as they are, images as light within apertures, spectra as means.

    NaN where an object lacks a modality. Units are the codecs' own.
    """
    columns = []
    for name, (values, present, _) in tokens.items():
        columns.append(decoded(codecs[name], values, np.flatnonzero(present)))
    return np.concatenate(columns, axis=1)


def decoded(codec: Codec, tokens: NDArray[Any], there: NDArray[np.int64]) -> F64:
    """Features of one modality's tokens (n, n_tokens), NaN but in the rows `there`."""
    any_tokens = whole(codec, np.zeros((1, tokens.shape[1]), np.int64))
    out = np.full((len(tokens), _of_arrays(codec.decode(any_tokens)).shape[1]), np.nan)
    for first in range(0, len(there), AT_ONCE):
        rows = there[first : first + AT_ONCE]
        out[rows] = _of_arrays(codec.decode(whole(codec, tokens[rows])))
    return out


def _of_arrays(arrays: Mapping[str, NDArray[np.floating]]) -> F64:
    if "value" in arrays:
        value = np.asarray(arrays["value"], np.float64)
        return value.reshape(len(value), -1)
    flux = np.nan_to_num(np.asarray(arrays["flux"], np.float64))
    if flux.ndim == 2:
        return np.stack([p.mean(axis=1) for p in np.array_split(flux, min(PIECES, flux.shape[1]), axis=1)], axis=1)
    y, x = np.indices(flux.shape[-2:])
    away = np.hypot(y - flux.shape[-2] // 2, x - flux.shape[-1] // 2)
    return np.concatenate([(flux * (away <= radius)).sum(axis=(2, 3)) for radius in APERTURES], axis=1)


def evened(known: F64, *others: F64) -> list[F64]:
    """Features on one scale for distances: asinh in units of each one's spread, then standardised; 0 where missing.

    Middle and spread are those of `known`, in which a column without a finite number becomes 0.
    """
    some = np.isfinite(known).any(axis=0)
    kept = known[:, some]
    unit = np.nanmedian(np.abs(kept), axis=0) + 1e-12
    bent = np.arcsinh(kept / unit)
    middle, spread = np.nanmedian(bent, axis=0), np.nanstd(bent, axis=0) + 1e-9
    return [np.nan_to_num((np.arcsinh(a[:, some] / unit) - middle) / spread) for a in (known, *others)]


def nearest(known: F64, asked: F64, k: int) -> NDArray[np.int64]:
    """Rows of the k nearest of `known`, nearest first, for each of `asked`, (asked, k); at most all of them."""
    k, out = min(k, len(known)), [np.zeros((0, min(k, len(known))), np.int64)]
    for first in range(0, len(asked), AT_ONCE):
        away = (known**2).sum(axis=1) - 2 * asked[first : first + AT_ONCE] @ known.T
        near = np.argpartition(away, k - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(away, near, 1), axis=1, kind="stable")
        out.append(np.take_along_axis(near, order, 1))
    return np.concatenate(out)
