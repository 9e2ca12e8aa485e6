"""Coefficient vectors (Gaia XP) to one token a coefficient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from skycairn.tokenizers.codec import Codec, Layout, Measurement, Tokens
from skycairn.tokenizers.scalar import Bins, Floats, default_bins, quantile_bins
from skycairn.tokenizers.sketch import QuantileSketch
from skycairn.tokenizers.vocabulary import finite_values, from_tokens, to_tokens


class CoefficientCodec(Codec):
    """Each coefficient to a bin of its own table, fitted in asinh(asinh(x)) as AION-1's; all tables share the ids.

    `normalise`: the first coefficient is coded as it is, the others divided by its absolute value (1 where it is 0),
    so that colour is coded apart from brightness. Off by default, as in AION-1.
    A table with fewer bins than the longest (a coefficient with few distinct values) decodes the ids that it does
    not use to its last centre. Without `normalise`, encode(decode(t)) == t for every t that `encode` gives.
    """

    kind: ClassVar[str] = "coefficients"
    ordered = True

    def __init__(self, tables: list[Bins], n_fit: int, normalise: bool) -> None:
        self.tables = tables
        self.n_fit = n_fit
        self.normalise = normalise
        self.layout = Layout("line", (len(tables),))
        self.vocabulary = max(len(t.centres) for t in tables)

    @classmethod
    def fit(cls, value: NDArray[Any], bins: int | None = None, normalise: bool = False, uniform: float = 0.0) -> Self:
        """Fit to coefficients of shape (n, m), rows in any order; `bins` and `uniform` as in `QuantileCodec`."""
        shape = np.shape(value)
        if len(shape) != 2 or not shape[0] or not shape[1]:
            raise ValueError(f"coefficient codec: values have shape {shape}, wanted (n, m) with n and m 1 or more")
        x = finite_values("coefficient codec", {"value": value}, shape[1])
        most = default_bins(len(x)) if bins is None else bins
        if most < 1:
            raise ValueError(f"coefficient codec: {most} bins asked for, wanted 1 or more")
        x = _by_the_first(x) if normalise else x
        return cls([quantile_bins(c, most, _compress, _expand, uniform) for c in x.T], len(x), normalise)

    @classmethod
    def from_sketches(cls, sketches: Sequence[QuantileSketch], bins: int | None = None, uniform: float = 0.0) -> Self:
        """Fit to a sketch of each coefficient, without `normalise`. Where they are exact, that of their numbers."""
        counts = {s.n for s in sketches}
        if len(counts) != 1 or 0 in counts:
            raise ValueError(
                f"coefficient codec: sketches of {sorted(counts)} rows, wanted one number of rows, 1 or more"
            )
        n = counts.pop()
        most = default_bins(n) if bins is None else bins
        if most < 1:
            raise ValueError(f"coefficient codec: {most} bins asked for, wanted 1 or more")
        return cls([quantile_bins(s.sample(), most, _compress, _expand, uniform) for s in sketches], n, False)

    def encode(self, measurement: Measurement) -> Tokens:
        """Tokens (n, m) of `value` (n, m)."""
        x = finite_values("coefficient codec", measurement, len(self.tables))
        x = _by_the_first(x) if self.normalise else x
        index = np.empty(x.shape, dtype=np.int64)
        for k, table in enumerate(self.tables):
            index[:, k] = table.index(x[:, k])
        return to_tokens(self, index)

    def decode(self, tokens: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """`value` (n, m), float64."""
        index = from_tokens(self, tokens)
        columns = [t.centres[np.minimum(index[:, k], len(t.centres) - 1)] for k, t in enumerate(self.tables)]
        value = np.stack(columns, axis=1)
        if self.normalise:
            value[:, 1:] *= _size(value[:, :1])
        return {"value": value}

    def settings(self) -> dict[str, Any]:
        """Whether it normalises; `n_fit`, the rows that it was fitted to."""
        return {"n_fit": self.n_fit, "normalise": self.normalise}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Edges (padded with infinity) and centres (with their last) of all tables, and the tables' lengths."""
        edges = np.full((len(self.tables), self.vocabulary - 1), np.inf)
        centres = np.empty((len(self.tables), self.vocabulary))
        for k, t in enumerate(self.tables):
            edges[k, : len(t.edges)] = t.edges
            centres[k] = t.centres[np.minimum(np.arange(self.vocabulary), len(t.centres) - 1)]
        return {"edges": edges, "centres": centres, "bins": np.array([len(t.centres) for t in self.tables])}

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        """The codec of these settings and arrays."""
        sizes = arrays["bins"]
        tables = [
            Bins(e[: n - 1].copy(), c[:n].copy())
            for e, c, n in zip(arrays["edges"], arrays["centres"], sizes, strict=True)
        ]
        return cls(tables, **settings)


def _compress(x: Floats) -> Floats:
    return np.arcsinh(np.arcsinh(x))


def _expand(y: Floats) -> Floats:
    return np.sinh(np.sinh(y))


def _size(first: Floats) -> Floats:
    return np.where(first == 0, 1.0, np.abs(first))


def _by_the_first(x: Floats) -> Floats:
    return np.concatenate([x[:, :1], x[:, 1:] / _size(x[:, :1])], axis=1)
