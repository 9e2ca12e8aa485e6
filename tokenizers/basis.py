"""Patches of pixels to one code each: principal components of the signal, each quantised to fitted levels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from skycairn.tokenizers.fsq import fit_levels, from_index, rounded, to_index
from skycairn.tokenizers.scalar import Bins, Floats

Patches = tuple[Floats, Floats]
"""Pixel values and their weights (inverse variance; 0 = bad, and there the value is 0), both (source, patch, pixel)."""

MOST_COMPONENTS = 12


@dataclass(frozen=True)
class PatchBasis:
    """Components of the signal (rows, orthonormal), their variances, and the levels of their coefficients."""

    components: Floats
    "(k, pixel)"
    variances: Floats
    "(k,), of the signal's coefficients, noise taken off"
    rest: float
    "variance of a pixel's signal that the components leave out"
    levels: list[Bins]
    "of the k coefficients"

    @property
    def counts(self) -> list[int]:
        """How many levels each coefficient has."""
        return [len(b.centres) for b in self.levels]

    @property
    def codes(self) -> int:
        """How many codes there are."""
        return int(np.prod(self.counts))

    def coefficients(self, patches: Patches) -> Floats:
        """Coefficients, shape (source, patch, k), by weighted least squares.

        A pixel's variance is its noise and what the components leave out. In a patch with bad pixels, where the
        good ones may not determine every component, the fitted variances are the prior; elsewhere there is none, so
        that faint flux is not drawn to zero. A patch of bad pixels alone gives zeros.
        """
        y, w = patches
        bad = w <= 0
        with np.errstate(divide="ignore"):
            w = np.where(bad, 0.0, 1 / (1 / w + self.rest))
        scale = w.max(axis=2, keepdims=True, initial=0.0)
        scale[scale == 0] = 1.0
        w = w / scale
        c = self.components
        k = len(c)
        # one product of a fixed shape per source, so that a source's tokens do not hang on its neighbours in a batch
        normal = np.matmul(w, (c[:, None, :] * c[None, :, :]).reshape(k * k, -1).T).reshape(*w.shape[:2], k, k)
        prior = 1 / np.maximum(self.variances, max(1e-12 * self.variances.max(), 1e-100))
        diagonal = np.where(bad.any(axis=2, keepdims=True), prior / scale, 1e-12)
        normal[..., np.arange(k), np.arange(k)] += diagonal
        return np.linalg.solve(normal, np.matmul(w * y, c.T)[..., None])[..., 0]

    def encode(self, patches: Patches) -> NDArray[np.int64]:
        """Codes, shape (source, patch): each coefficient to its bin."""
        a = self.coefficients(patches)
        return to_index(np.stack([b.index(a[..., i]) for i, b in enumerate(self.levels)], axis=-1), self.counts)

    def decode(self, codes: NDArray[np.int64]) -> Floats:
        """Pixel values, shape (source, patch, pixel). A number past the last code gives the last code's patch."""
        digits = from_index(np.minimum(codes, self.codes - 1), self.counts)
        a = np.stack([b.centres[digits[..., i]] for i, b in enumerate(self.levels)], axis=-1)
        return np.matmul(a, self.components)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The fitted numbers; the bins of all coefficients end to end, `counts` of each."""
        return {
            "components": self.components,
            "variances": self.variances,
            "rest": np.array([self.rest]),
            "edges": np.concatenate([b.edges for b in self.levels]),
            "centres": np.concatenate([b.centres for b in self.levels]),
            "counts": np.array(self.counts),
        }

    @classmethod
    def restore(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        """The basis of these arrays."""
        counts = arrays["counts"]
        edges = np.split(arrays["edges"], np.cumsum(counts - 1)[:-1])
        centres = np.split(arrays["centres"], np.cumsum(counts)[:-1])
        levels = [Bins(e, c) for e, c in zip(edges, centres, strict=True)]
        return cls(arrays["components"], arrays["variances"], float(arrays["rest"][0]), levels)


def fit_basis(chunks: Callable[[], Iterator[Patches]], n_pixels: int, codes: int) -> PatchBasis:
    """Fit to patches that come in chunks, twice, in an order that must not hang on the caller's; float64 throughout.

    The covariance is a mean over the pairs of good pixels, less the noise that the weights state, so that neither a
    bad pixel nor a deep blank sky shapes the components. It is not centred: no light is no coefficient. Results are
    rounded to float32, whose steps are far wider than what the number of threads moves.
    """
    products = np.zeros((n_pixels, n_pixels))
    pairs = np.zeros((n_pixels, n_pixels))
    noise = np.zeros(n_pixels)
    for y, w in chunks():
        y, w = y.reshape(-1, n_pixels), w.reshape(-1, n_pixels)
        # a pixel counts fully until its noise drowns what is typical; capped so that no single deep source rules
        trust = w / (w + 1.0)
        weighted = trust * y
        products += weighted.T @ weighted
        pairs += trust.T @ trust
        noise += np.sum(np.where(w > 0, trust**2 / np.where(w > 0, w, 1.0), 0.0), axis=0)
    products[np.arange(n_pixels), np.arange(n_pixels)] -= noise
    covariance = np.divide(products, pairs, out=np.zeros_like(products), where=pairs > 0)
    values, vectors = np.linalg.eigh(covariance)
    k = min(MOST_COMPONENTS, n_pixels)
    variances = np.maximum(values[::-1][:k], 0.0)
    components = vectors[:, ::-1][:, :k].T
    # the sign that makes the largest element positive, first of equals
    largest = np.argmax(np.round(np.abs(components), 6), axis=1)
    components = components * np.where(components[np.arange(k), largest] < 0, -1.0, 1.0)[:, None]

    def basis(n: int, levels: list[Bins]) -> PatchBasis:
        rest = float(np.maximum(values[: n_pixels - n], 0.0).sum()) / n_pixels
        return PatchBasis(rounded(components[:n]), rounded(variances[:n]), float(np.float32(rest)), levels)

    whole = basis(k, [])
    samples, weights = [np.zeros((0, k))], [np.zeros(0)]
    for y, w in chunks():
        a = whole.coefficients((y, w))
        enough = (w > 0).mean(axis=2) > 0.5
        # levels go where there is signal, more of them where there is more: by count alone blank sky takes them,
        # and the cores of galaxies, a thousandth of all patches, lose half of their light
        excess = np.maximum(np.sum(a**2, axis=2) * w.mean(axis=2) / k - 1, 0.0)[enough]
        samples.append(a[enough])
        weights.append(np.sqrt(np.maximum(excess, 0.01)))
    sample, weight = np.concatenate(samples), np.concatenate(weights)
    if not len(sample):
        sample, weight = np.zeros((1, k)), np.ones(1)
    levels = fit_levels(sample, weight, codes)
    kept = max([i + 1 for i, b in enumerate(levels) if len(b.centres) > 1], default=1)
    return basis(kept, levels[:kept])
