"""One number to one token: quantile bins fitted to a sample, and fixed grids (redshift)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from skycairn.tokenizers.codec import Codec, Layout, Measurement, Tokens
from skycairn.tokenizers.sketch import QuantileSketch
from skycairn.tokenizers.vocabulary import finite_values, from_tokens, to_tokens

Floats = NDArray[np.float64]
Transform = Literal["identity", "log", "asinh"]

MOST_BINS = 1024
ROWS_PER_BIN = 20


def default_bins(n_fit: int) -> int:
    """Bins for a sample of this size: no more than a twentieth of its rows, at least 2, at most 1024."""
    return int(np.clip(n_fit // ROWS_PER_BIN, 2, MOST_BINS))


@dataclass(frozen=True)
class Bins:
    """Bin k holds edges[k-1] <= x < edges[k]; the end bins are open. Each decodes to its own centre."""

    edges: Floats
    "(bins - 1,), strictly increasing, in the unit of the value"
    centres: Floats
    "(bins,), strictly increasing, each inside its bin"

    def index(self, x: Floats) -> NDArray[np.int64]:
        """The bin of each number."""
        return np.searchsorted(self.edges, x, side="right").astype(np.int64)


def quantile_bins(
    x: Floats,
    bins: int,
    forward: Callable[[Floats], Floats] = lambda x: x,
    inverse: Callable[[Floats], Floats] = lambda y: y,
    uniform: float = 0.0,
) -> Bins:
    """At most `bins` bins, each with at least one number of the sample in it.

    A share 1 - `uniform` of them is spaced by count, the rest evenly in forward(x), which keeps a long tail from
    falling into one bin. Edges lie midway, in forward(x), between a fitted number and the next smaller one, so a
    repeated value is never split and never lies on an edge. The centre is the bin's median fitted number (the lower
    of two), which no outlier in an end bin moves.
    """
    x = np.sort(x)
    y = forward(x)
    span = y[-1] - y[0]
    rank = np.arange(len(x)) / len(x)
    progress = (1 - uniform) * rank + uniform * ((y - y[0]) / span if span > 0 else 0.0)
    first = np.searchsorted(progress, np.arange(1, bins) / bins)
    value = np.unique(x[np.minimum(first, len(x) - 1)])
    value = value[value > x[0]]
    below = x[np.searchsorted(x, value) - 1]
    # neighbouring doubles have no middle, and a transform may round past either of them
    with np.errstate(over="ignore"):
        edges = inverse((forward(below) + forward(value)) / 2)
    edges = np.where((edges > below) & (edges <= value), edges, value)
    borders = np.concatenate([[0], np.searchsorted(x, edges), [len(x)]])
    return Bins(edges, x[(borders[:-1] + borders[1:] - 1) // 2])


class QuantileCodec(Codec):
    """A number to the quantile bin that it falls in; AION-1's scalar codecs, with centres for its upper edges.

    `transform`:
    * `identity`, bins by count;
    * `log`, token 0 holds every value at or below `floor` (zero and negative flux among them; AION-1's floor is
      e^-3 in the unit of the value) and decodes to the median of those fitted, or to `floor` where none was; the
      others are bins by count of the values above it;
    * `asinh`, for signed fluxes: no floor, and half of the bins (`uniform`) spaced evenly in asinh(x / scale), so
      that the bright tail and the noise both keep resolution. `scale`: 10th percentile of |x| unless set.

    Values beyond the fitted range take the end bins. NaN and infinity are refused. encode(decode(t)) == t.
    A sample with few distinct values gives fewer bins than asked for; a constant gives one.
    """

    kind: ClassVar[str] = "quantile"
    layout = Layout("scalar")
    ordered = True

    def __init__(
        self, bins: Bins, transform: Transform, n_fit: int, uniform: float, floor: float | None, scale: float | None
    ) -> None:
        self.bins = bins
        self.transform = transform
        self.n_fit = n_fit
        self.uniform = uniform
        self.floor = floor
        self.scale = scale
        self.vocabulary = len(bins.centres)

    @classmethod
    def fit(
        cls,
        value: NDArray[Any],
        transform: Transform = "identity",
        bins: int | None = None,
        uniform: float | None = None,
        floor: float = float(np.exp(-3.0)),
        scale: float | None = None,
    ) -> Self:
        """Fit to values of shape (n,), in any order. `bins`: at most so many, clip(n // 20, 2, 1024) by default."""
        x = np.sort(finite_values("quantile codec", {"value": value}))
        if not len(x):
            raise ValueError("quantile codec: no value to fit to, wanted 1 or more")
        most = default_bins(len(x)) if bins is None else bins
        if not 1 <= most <= 1 << 32:
            raise ValueError(f"quantile codec: {most} bins asked for, wanted 1 or more")
        uniform = (0.5 if transform == "asinh" else 0.0) if uniform is None else uniform
        if not 0 <= uniform <= 1:
            raise ValueError(f"quantile codec: `uniform` is {uniform}, wanted a share from 0 to 1")
        if transform == "identity":
            return cls(quantile_bins(x, most, uniform=uniform), transform, len(x), uniform, None, None)
        if transform == "log":
            if not 0 < floor < np.inf:
                raise ValueError(f"quantile codec: the floor is {floor}, wanted a number above 0")
            return cls(_with_floor(x, floor, most, uniform), transform, len(x), uniform, floor, None)
        if transform == "asinh":
            size = np.sort(np.abs(x[x != 0]))
            if scale is None:
                scale = float(max(size[len(size) // 10], 1e-12 * size[-1])) if len(size) else 1.0
            if not 0 < scale < np.inf:
                raise ValueError(f"quantile codec: the scale is {scale}, wanted a number above 0")
            fitted = quantile_bins(x, most, lambda v: np.arcsinh(v / scale), lambda v: np.sinh(v) * scale, uniform)
            return cls(fitted, transform, len(x), uniform, None, scale)
        raise ValueError(f"quantile codec: there is no transform {transform!r}; choose identity, log or asinh")

    @classmethod
    def from_sketch(
        cls, sketch: QuantileSketch, transform: Transform = "identity", bins: int | None = None, **settings: Any
    ) -> Self:
        """Fit to what a sketch has seen; `settings` as of `fit`. Where the sketch is exact, that of its numbers."""
        made = cls.fit(sketch.sample(), transform, default_bins(sketch.n) if bins is None else bins, **settings)
        made.n_fit = sketch.n
        return made

    def encode(self, measurement: Measurement) -> Tokens:
        """Tokens (n, 1) of `value` (n,)."""
        return to_tokens(self, self.bins.index(finite_values("quantile codec", measurement))[:, None])

    def decode(self, tokens: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """`value` (n,), float64: the centres of the bins."""
        return {"value": self.bins.centres[from_tokens(self, tokens)[:, 0]]}

    def settings(self) -> dict[str, Any]:
        """Transform and its numbers; `n_fit`, the rows that it was fitted to."""
        return {
            "transform": self.transform,
            "n_fit": self.n_fit,
            "uniform": self.uniform,
            "floor": self.floor,
            "scale": self.scale,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Edges and centres of the bins."""
        return {"edges": self.bins.edges, "centres": self.bins.centres}

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        """The codec of these settings and arrays."""
        return cls(Bins(arrays["edges"], arrays["centres"]), **settings)


def _with_floor(x: Floats, floor: float, most: int, uniform: float) -> Bins:
    """Bins of sorted x, the first of which is everything at or below the floor."""
    low, high = x[x <= floor], x[x > floor]
    edge = np.nextafter(floor, np.inf)
    # nothing fitted above the floor (an all-star sample's radii): one bin there, which starts at the floor
    above = (
        quantile_bins(high, max(most - 1, 1), np.log, np.exp, uniform) if len(high) else Bins(x[:0], np.array([edge]))
    )
    centre = low[(len(low) - 1) // 2] if len(low) else floor
    return Bins(np.concatenate([[edge], above.edges]), np.concatenate([[centre], above.centres]))


class GridCodec(Codec):
    """A number to the bin of a fixed grid; by default redshift from -0.01 to 6 in equal steps of ln(1 + z).

    Token 0 is the underflow (below `low`) and the last token the overflow (`high` and above); they decode to the
    number just below `low` and to `high`. The tokens between are bins of equal width in ln(1 + z) (`log1p`) or in the
    value (`linear`), and decode to their middle. With the default 1024 tokens a redshift is off by at most half a
    bin, 0.00096 (1 + z) or 287 km/s, at every redshift. NaN and infinity are refused.
    """

    kind: ClassVar[str] = "grid"
    layout = Layout("scalar")
    ordered = True

    def __init__(self, edges: Floats, centres: Floats, low: float, high: float, spacing: str) -> None:
        self.bins = Bins(edges, centres)
        self.low, self.high, self.spacing = low, high, spacing
        self.vocabulary = len(centres)

    @classmethod
    def fit(
        cls, low: float = -0.01, high: float = 6.0, tokens: int = 1024, spacing: Literal["log1p", "linear"] = "log1p"
    ) -> Self:
        """The grid of these settings; no sample is needed."""
        if spacing not in ("log1p", "linear"):
            raise ValueError(f"grid codec: there is no spacing {spacing!r}; choose log1p or linear")
        if not (np.isfinite(low) and np.isfinite(high) and low < high and (spacing == "linear" or low > -1)):
            raise ValueError(
                f"grid codec: the grid runs from {low} to {high}, wanted low < high, and low > -1 for log1p"
            )
        if tokens < 3:
            raise ValueError(f"grid codec: {tokens} tokens asked for, wanted 3 or more: two are the ends")
        step = np.arange(2 * (tokens - 2) + 1) / (2 * (tokens - 2))
        if spacing == "log1p":
            knots = np.expm1(np.log1p(low) + (np.log1p(high) - np.log1p(low)) * step)
        else:
            knots = low + (high - low) * step
        # decimals that every library's logarithm agrees on
        knots = np.round(knots, 12 - int(np.ceil(np.log10(max(abs(low), abs(high))))))
        knots[0], knots[-1] = low, high
        edges = knots[::2]
        if not (np.diff(edges) > 0).all():
            raise ValueError(f"grid codec: {tokens} tokens from {low} to {high} are narrower than a double resolves")
        centres = np.concatenate([[np.nextafter(low, -np.inf)], knots[1::2], [high]])
        return cls(edges, centres, float(low), float(high), spacing)

    def encode(self, measurement: Measurement) -> Tokens:
        """Tokens (n, 1) of `value` (n,)."""
        return to_tokens(self, self.bins.index(finite_values("grid codec", measurement))[:, None])

    def decode(self, tokens: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """`value` (n,), float64: the middles of the bins."""
        return {"value": self.bins.centres[from_tokens(self, tokens)[:, 0]]}

    def settings(self) -> dict[str, Any]:
        """Ends and spacing."""
        return {"low": self.low, "high": self.high, "spacing": self.spacing}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Edges and centres of the bins."""
        return {"edges": self.bins.edges, "centres": self.bins.centres}

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        """The codec of these settings and arrays."""
        return cls(arrays["edges"], arrays["centres"], **settings)
