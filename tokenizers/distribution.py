"""Knots of a fitted distribution, and the token of each number between them, by the arithmetic of AION-1."""

from __future__ import annotations

from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from skycairn.tokenizers.sketch import QuantileSketch

Single = NDArray[np.float32]
Indices = NDArray[np.int64]
Compression = Literal["identity", "log", "asinh_asinh"]
RESERVOIR = 100_000
"""Numbers in the sample that a published codec carries with it."""
_GREATEST = np.finfo(np.float32).max


class Knots:
    """Sorted knots v_0 .. v_last of the compressed value: token k is v_(k-1) < y <= v_k, the end tokens open.

    Kept as `most`, the greatest float32 of each token but the last in the value's own unit, so that encoding is one
    search, and a centre always lies where its token is. Compression is the peer's, in float32, each step rounded to
    the nearest; libraries differ in that last bit, which changes a token only where a value falls on a knot.
    `reservoir`: the sample behind the knots, compressed; it decides no token, but published codecs have one.
    """

    def __init__(
        self,
        knots: NDArray[Any],
        compression: Compression = "identity",
        min_log: float | None = None,
        reservoir: NDArray[Any] | None = None,
    ) -> None:
        self.knots = _falling("knots", knots, 2)
        if compression not in get_args(Compression):
            known = ", ".join(get_args(Compression))
            raise ValueError(f"knots: there is no compression {compression!r}; choose one of {known}")
        if (compression == "log") != (min_log is not None) or not -87 < (min_log or 0.0) < 88:
            raise ValueError(
                f"knots: compression {compression!r} with min_log {min_log}; log needs one from -87 to 88, no other "
                "has one"
            )
        self.compression: Compression = compression
        self.min_log = None if min_log is None else float(min_log)
        self.reservoir = None if reservoir is None else _single("reservoir", reservoir, 1)
        self.most = self._greatest()
        self.centres = self._centres()

    @classmethod
    def of(
        cls,
        found: NDArray[Any] | QuantileSketch,
        compression: Compression,
        min_log: float | None,
        n_knots: int,
        size: int,
    ) -> Self:
        """The knots of values, shape (n,), or of a sketch of them, by way of a reservoir of `size` of even rank."""
        sketch = found if isinstance(found, QuantileSketch) else QuantileSketch.of(found, max(np.size(found), 1))
        if not sketch.n:
            raise ValueError("knots: no value to fit to, wanted 1 or more")
        if n_knots < 2 or size < 2:
            raise ValueError(f"knots: {n_knots} knots of {size} values were asked for, wanted 2 or more of each")
        scale = cls(np.zeros(2, np.float32), compression, min_log)
        reservoir = scale.compress(narrowed("knots", sketch.quantiles(np.linspace(0, 1, size))))
        steps = np.interp(np.linspace(0, 1, n_knots), np.linspace(0, 1, size), reservoir)
        return cls(np.maximum.accumulate(steps.astype(np.float32)), compression, min_log, reservoir)

    def compress(self, x: Single) -> Single:
        """Values on the scale of the knots."""
        if self.compression == "identity":
            return x
        if self.min_log is not None:
            floored = np.maximum(x, np.float32(np.exp(self.min_log)))
            return np.log(floored, dtype=np.float64).astype(np.float32)
        once = np.arcsinh(x, dtype=np.float64).astype(np.float32)
        return np.arcsinh(once, dtype=np.float64).astype(np.float32)

    def expand(self, y: NDArray[Any]) -> Single:
        """The reverse of `compress`, but for the floor."""
        wide = np.asarray(y, np.float64)
        with np.errstate(over="ignore"):
            if self.compression == "log":
                wide = np.exp(wide)
            elif self.compression == "asinh_asinh":
                wide = np.sinh(np.sinh(wide))
        return np.clip(wide, -_GREATEST, _GREATEST).astype(np.float32)

    def index(self, x: Single) -> Indices:
        """The token of each number."""
        return np.searchsorted(self.most, x, side="left").astype(np.int64)

    def index_by_torch(self, x: Single) -> Indices:
        """The same by torch's own logarithm and asinh, as the peer calls them; NaN takes the last token."""
        if self.compression != "identity":
            import torch

            y = torch.from_numpy(x.copy())
            if self.min_log is not None:
                floor = float(np.exp(self.min_log))
                y[y <= floor] = floor
                y = torch.log(y)
            else:
                y = torch.arcsinh(torch.arcsinh(y))
            x = y.numpy()
        return np.searchsorted(self.knots[:-1], x, side="left").astype(np.int64)

    def sample(self) -> Single:
        """The reservoir behind the knots, or one that the same knots come of."""
        if self.reservoir is not None:
            return self.reservoir
        own, wanted = (np.linspace(0, 1, n) for n in (len(self.knots), RESERVOIR))
        return np.interp(wanted, own, self.knots).astype(np.float32)

    def _greatest(self) -> Single:
        if self.compression == "identity":
            return self.knots[:-1].copy()
        # bisection over all float32 in their order; what is below all of them stands for none
        most = int(_GREATEST.view(np.int32))
        low = np.full(len(self.knots) - 1, -most - 1, np.int64)
        high = np.full(len(low), most, np.int64)
        while (low < high).any():
            middle = (low + high + 1) // 2
            fits = self.compress(_ranked(middle)) <= self.knots[:-1]
            low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
        return _ranked(low)

    def _centres(self) -> Single:
        """The middle of each interval as compressed, where its values are spread evenly; of the first its upper end.

        An empty interval (repeated knots) has its upper end: no value is given its token.
        """
        below = np.concatenate([self.knots[:1], self.knots[:-1]]).astype(np.float64)
        centres = self.expand((below + self.knots) / 2)
        low = np.concatenate([[np.float32(-np.inf)], np.nextafter(self.most, np.float32(np.inf))])
        high = np.concatenate([self.most, [np.float32(_GREATEST)]])
        return np.where(low <= high, np.clip(centres, low, high), self.expand(self.knots)).astype(np.float32)


def _ranked(rank: Indices) -> Single:
    """The float32 of each rank, 0 being zero: neighbours in rank are neighbours in value."""
    return np.copysign(np.abs(rank).astype(np.int32).view(np.float32), rank).astype(np.float32)


def _single(what: str, given: NDArray[Any], least: int) -> Single:
    found = np.asarray(given)
    if found.ndim != 1 or len(found) < least or found.dtype != np.float32 or not np.isfinite(found).all():
        raise ValueError(
            f"knots: {what} are {found.dtype} of shape {found.shape}, wanted {least} or more finite float32 in a row; "
            "is the file whole?"
        )
    return found.copy()


def _falling(what: str, given: NDArray[Any], least: int) -> Single:
    found = _single(what, given, least)
    if (falls := np.diff(found) < 0).any():
        at = int(np.argmax(falls)) + 1
        raise ValueError(f"knots: {what} fall from {found[at - 1]} to {found[at]} at {at}; wanted none below its last")
    return found


def narrowed(what: str, wide: NDArray[np.float64]) -> Single:
    """Numbers in float32; ValueError names the first row that is beyond it."""
    with np.errstate(over="ignore"):
        x = wide.astype(np.float32)
    if (beyond := np.isinf(x)).any():
        row = int(np.argwhere(beyond)[0][0])
        raise ValueError(f"{what}: row {row} is {wide[row]}, beyond float32, in which AION-1 codes; is its unit right?")
    return x
