"""Tokens in and out: the right type and shape, every one within the vocabulary; and values that are numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skycairn.tokenizers.codec import Codec, Measurement, Tokens


def to_tokens(codec: Codec, indices: NDArray[np.int64]) -> Tokens:
    """The indices, shape (n, n_tokens), as the codec's unsigned type; ValueError where one would overflow."""
    if codec.vocabulary > 1 << 32:
        raise ValueError(f"{codec.kind} codec: its vocabulary of {codec.vocabulary} does not fit in 32 bits")
    _within(codec, indices)
    return indices.astype(np.uint16) if codec.dtype is np.uint16 else indices.astype(np.uint32)


def from_tokens(codec: Codec, tokens: NDArray[Any]) -> NDArray[np.int64]:
    """Tokens, shape (n, n_tokens), as indices; ValueError names the first row whose token is out of the vocabulary."""
    tokens = np.asarray(tokens)
    if tokens.dtype.kind not in "iu":
        raise ValueError(f"{codec.kind} codec: tokens are {tokens.dtype}, wanted integers")
    if tokens.ndim != 2 or tokens.shape[1] != codec.n_tokens:
        raise ValueError(
            f"{codec.kind} codec: tokens have shape {tokens.shape}, wanted (n, {codec.n_tokens}); "
            "are they another codec's?"
        )
    _within(codec, tokens)
    return tokens.astype(np.int64)


def _within(codec: Codec, tokens: NDArray[Any]) -> None:
    out = (tokens < 0) | (tokens >= codec.vocabulary)
    if out.any():
        row, position = np.argwhere(out)[0]
        raise ValueError(
            f"{codec.kind} codec: row {row} holds token {tokens[row, position]} at position {position}, "
            f"wanted 0 to {codec.vocabulary - 1}; are they another codec's?"
        )


def finite_values(what: str, measurement: Measurement, width: int | None = None) -> NDArray[np.float64]:
    """`value` as float64, shape (n,), or (n, width); ValueError names the first row that is NaN or infinite.

    A float32 array is widened exactly, so it gives the tokens of the same numbers in float64.
    """
    if "value" not in measurement:
        raise ValueError(f"{what}: the measurement holds {', '.join(measurement) or 'nothing'}, wanted 'value'")
    given = np.asarray(measurement["value"])
    if given.dtype.kind not in "fiu" or given.dtype == np.float16:
        raise ValueError(f"{what}: values are {given.dtype}, wanted float32, float64 or integers")
    if given.ndim != (1 if width is None else 2) or (width is not None and given.shape[1] != width):
        raise ValueError(
            f"{what}: values have shape {given.shape}, wanted {'(n,)' if width is None else f'(n, {width})'}"
        )
    value = given.astype(np.float64) + 0.0  # -0.0 becomes 0.0, whose bytes are what content ids see
    bad = ~np.isfinite(value)
    if bad.any():
        where = np.argwhere(bad)[0]
        place = f"row {where[0]}" if width is None else f"row {where[0]}, number {where[1]},"
        raise ValueError(
            f"{what}: {place} is {value[tuple(where)]}, wanted a finite number; a missing value is a null with a "
            "status and is not encoded: leave its row out"
        )
    return value
