"""How good a reconstruction is, measured against the truth, the data, or both: arrays in, numbers out.

Errors are in sigma, the survey's own: (decoded - truth) sqrt(ivar). Against the truth a reconstruction that is perfect
has 0, the measured data have 1, an image of no light has the brightness of the source; below 1 is nearer to the truth
than the data are. Against the data the truth itself has 1.

Pixels go by their surface brightness, the true flux of a pixel over its sigma, since most of an image is empty sky and
a mean over all pixels is owned by a few bright cores. Of each class of pixels two numbers are told: the median over the
objects of an object's own root mean square, and that of all pixels together, which the brightest objects own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

EDGES = (0.3, 1.0, 3.0, 10.0, 30.0)
"""Between the classes of surface brightness, in sigma a pixel."""
FEWEST_PIXELS = 10
"""Of a class, for an object to have a say in its median."""


def class_names(edges: Sequence[float] = EDGES) -> tuple[str, ...]:
    """What the classes between the edges are called, the open ones at both ends among them."""
    inner = [f"{a:g} to {b:g}" for a, b in pairwise(edges)]
    return f"below {edges[0]:g}", *inner, f"{edges[-1]:g} and above"


def good_pixels(ivar: NDArray[Any], mask: Bools) -> Bools:
    """Where there is information: not masked, ivar positive and finite."""
    return np.asarray(~mask & (ivar > 0) & np.isfinite(ivar))


class Errors(NamedTuple):
    """Sums over the good pixels of every object, by class; (n, class) each."""

    pixels: I64
    squares: F64
    "of errors in sigma"
    errors: F64
    "of errors in sigma, signed"

    def of_objects(self) -> F64:
        """Root mean square of each object, (n, class); NaN below `FEWEST_PIXELS`."""
        enough = self.pixels >= FEWEST_PIXELS
        return np.sqrt(np.where(enough, self.squares, np.nan) / np.maximum(self.pixels, 1))

    def of(self, objects: Any, classes: Any = np.s_[:]) -> Errors:
        """Those of some objects, and of some classes."""
        return Errors(*(a[objects][:, classes] for a in self))

    def medians(self) -> F64:
        """Median over the objects of their root mean squares, (class,); NaN where no object has enough pixels."""
        return _medians(self.of_objects())

    def pooled(self) -> F64:
        """Root mean square of all pixels together, (class,); NaN of a class without any."""
        n = self.pixels.sum(axis=0)
        return np.sqrt(np.where(n > 0, self.squares.sum(axis=0), np.nan) / np.maximum(n, 1))

    def objects(self) -> I64:
        """How many objects have a say in the median, (class,)."""
        return np.asarray((self.pixels >= FEWEST_PIXELS).sum(axis=0), dtype=np.int64)

    def bias(self) -> F64:
        """Median over the objects of their mean signed error in sigma, (class,)."""
        enough = self.pixels >= FEWEST_PIXELS
        return _medians(np.where(enough, self.errors, np.nan) / np.maximum(self.pixels, 1))


def joined(pieces: Sequence[Errors]) -> Errors:
    """Errors of some objects after those of others."""
    return Errors(*(np.concatenate(p) for p in zip(*pieces, strict=True)))


def _medians(values: F64) -> F64:
    """Over the first axis, NaN left out; NaN where nothing else is there."""
    return np.array([np.median(v[np.isfinite(v)]) if np.isfinite(v).any() else np.nan for v in values.T])


def errors_by_brightness(
    decoded: NDArray[Any],
    reference: NDArray[Any],
    ivar: NDArray[Any],
    good: Bools,
    brightness: NDArray[Any],
    edges: Sequence[float] = EDGES,
) -> Errors:
    """Errors of `decoded` against `reference` by class of `brightness`, all arrays (n, ...) of one shape.

    `brightness` in sigma a pixel decides the class alone: truth times sqrt(ivar), or what is known of it. ValueError
    where shapes differ, or where a good pixel of the reconstruction is not finite.
    """
    shapes = {np.shape(a) for a in (decoded, reference, ivar, good, brightness)}
    if len(shapes) != 1:
        raise ValueError(f"quality: arrays have shapes {sorted(shapes)}, wanted one: is the reconstruction cut alike?")
    n = len(good)
    wrong = good & ~np.isfinite(decoded)
    if wrong.any():
        row = int(np.argwhere(wrong)[0][0])
        raise ValueError(f"quality: row {row}: {wrong[row].sum()} good pixels decode to no finite number")
    weight = np.sqrt(np.where(good, ivar, 0).astype(np.float64))
    light = (np.where(good, np.asarray(a, np.float64), 0.0) for a in (decoded, reference))
    error = np.subtract(*light) * weight
    kind = np.searchsorted(edges, np.where(good, brightness, 0), side="right")[good]
    place = (len(edges) + 1) * np.nonzero(good)[0] + kind
    error = error[good]

    def summed(values: F64) -> F64:
        return np.bincount(place, values, n * (len(edges) + 1)).reshape(n, len(edges) + 1).astype(np.float64)

    return Errors(summed(np.ones_like(error)).astype(np.int64), summed(error**2), summed(error))


# ---------------------------------------------------------------------------------------------------- flux and colour


class Aperture(NamedTuple):
    """Light within a radius of the middle, (n, band) each, in the unit of the images."""

    truth: F64
    decoded: F64
    sigma: F64
    "of the data's sum"
    whole: Bools
    "whether all pixels within are good"


def aperture(truth: NDArray[Any], decoded: NDArray[Any], ivar: NDArray[Any], good: Bools, radius: float) -> Aperture:
    """Sums within `radius` pixels of pixel N // 2 of images (n, band, y, x), over the good pixels alone."""
    ny, nx = truth.shape[-2:]
    y, x = np.ogrid[:ny, :nx]
    near = np.hypot(x - nx // 2, y - ny // 2) <= radius
    inner = good[..., near]
    variance = np.where(inner, 1 / np.where(inner, ivar[..., near], 1).astype(np.float64), 0.0)
    true, other = (np.where(inner, a[..., near], 0).astype(np.float64).sum(axis=-1) for a in (truth, decoded))
    return Aperture(true, other, np.sqrt(variance.sum(axis=-1)), np.asarray(inner.all(axis=-1)))


class Bias(NamedTuple):
    """A relative difference over objects."""

    n: int
    median: float
    scatter: float
    "1.4826 times the median absolute deviation"
    of_sum: float
    "of the summed flux, which the brightest own; NaN of a colour"


NOTHING = Bias(0, np.nan, np.nan, np.nan)


def flux_bias(seen: Aperture, band: int, least_sn: float, most_sn: float = np.inf) -> Bias:
    """(decoded - true) / true of one band's aperture flux, of objects whose true S/N lies in a range."""
    some = seen.whole[:, band] & _between(seen, band, least_sn, most_sn)
    if not some.any():
        return NOTHING
    true, other = seen.truth[some, band], seen.decoded[some, band]
    return Bias(int(some.sum()), *_robust(other / true - 1), float(other.sum() / true.sum() - 1))


def colour_bias(seen: Aperture, band: int, against: int, least_sn: float, most_sn: float = np.inf) -> Bias:
    """(band - against) decoded less true, magnitudes, of objects of this true S/N in both bands.

    An object one of whose decoded fluxes is not positive has no colour and is left out of `n`.
    """
    some = np.ones(len(seen.truth), bool)
    for b in (band, against):
        some &= seen.whole[:, b] & _between(seen, b, least_sn, most_sn) & (seen.decoded[:, b] > 0)
    if not some.any():
        return NOTHING
    ratio = seen.decoded[some] / seen.truth[some]
    shift = -2.5 * np.log10(ratio[:, band] / ratio[:, against])
    return Bias(int(some.sum()), *_robust(shift), np.nan)


def _between(seen: Aperture, band: int, least: float, most: float) -> Bools:
    sn = seen.truth[:, band] / np.where(seen.sigma[:, band] > 0, seen.sigma[:, band], np.inf)
    return np.asarray((sn >= least) & (sn < most) & (sn > 0))


def _robust(x: F64) -> tuple[float, float]:
    middle = float(np.median(x))
    return middle, 1.4826 * float(np.median(np.abs(x - middle)))


# ---------------------------------------------------------------------------------------------------- codes


class Codes(NamedTuple):
    """How a codec's vocabulary is used by some tokens."""

    n_tokens: int
    "of one object"
    vocabulary: int
    used: int
    "codes that occur"
    perplexity: float
    "2 to the entropy of the codes, all positions together; between 1 and `used`"
    bits: float
    "an object, n_tokens log2 vocabulary"
    entropy_bits: float
    "an object, after an ideal entropy coder that knows how often each code occurs and no more"

    @property
    def dead(self) -> int:
        """Codes that do not occur."""
        return self.vocabulary - self.used

    @property
    def share(self) -> float:
        """Of the vocabulary, that occurs."""
        return self.used / self.vocabulary


def codes(tokens: NDArray[Any], vocabulary: int) -> Codes:
    """Use of the vocabulary by tokens (n, n_tokens). ValueError where a token is out of it.

    With few objects the entropy is too small: no more than n n_tokens codes can occur.
    """
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
        raise ValueError(f"quality: tokens run from {tokens.min()} to {tokens.max()}, wanted 0 to {vocabulary - 1}")
    counts = np.bincount(tokens.reshape(-1).astype(np.int64), minlength=vocabulary)
    share = counts[counts > 0] / max(counts.sum(), 1)
    entropy = float(-(share * np.log2(share)).sum()) if len(share) else 0.0
    width = tokens.shape[1]
    return Codes(
        width, vocabulary, len(share), float(2**entropy), float(width * np.log2(max(vocabulary, 1))), width * entropy
    )
