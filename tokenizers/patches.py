"""Images and spectra to tokens without a network: patches, principal components, finite scalar quantization."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from skycairn.tokenizers.basis import PatchBasis, Patches, fit_basis
from skycairn.tokenizers.codec import Codec, Layout, Measurement, Tokens, refuse_other_wavelengths
from skycairn.tokenizers.scalar import Bins, Floats
from skycairn.tokenizers.vocabulary import from_tokens, to_tokens

Arrays = tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]
"flux, ivar, mask"
Good = tuple[Floats, Floats]
"flux and ivar, both 0 where bad"

SCALES = ("linear", "log10")

CHUNK = 64
"sources worked on at once; bounds the memory"


class PatchImageCodec(Codec):
    """The centre of a multi-band image as a grid of patches; one token a patch, all bands together.

    `flux` (n, band, y, x) in nanomaggies is cropped to `crop` pixels from N // 2 - crop // 2, so that pixel N // 2
    of the input is pixel crop // 2 of the crop; compressed by asinh(flux / softening) with a softening a band, 4 times
    the typical noise of the fitted images; cut into patches; projected and quantised as `PatchBasis` says. Pixels
    with mask True or ivar 0 have no influence, whatever they hold. A band that is wholly bad is filled by what the
    other bands tell of it. An image of bad pixels alone gives the tokens of (nearly) blank sky.

    decode gives `flux` (n, band, crop, crop), float32, nanomaggies. encode(decode(t)) == t for every t, under equal
    ivar and no mask. Fitted to few images it is valid, but poor; `n_fit` tells.
    """

    kind: ClassVar[str] = "patch_image"
    ordered = False

    def __init__(
        self, bands: Sequence[str], crop: int, patch: int, n_fit: int, softening: Floats, basis: PatchBasis
    ) -> None:
        self.bands = tuple(bands)
        self.crop, self.patch, self.n_fit = crop, patch, n_fit
        self.softening = softening
        self.basis = basis
        self.layout = Layout("grid", (crop // patch, crop // patch))
        self.vocabulary = basis.codes

    @classmethod
    def fit(
        cls,
        measurement: Measurement,
        bands: Sequence[str],
        crop: int = 96,
        patch: int = 4,
        codes: int = 4375,
        softening: float = 4.0,
    ) -> Self:
        """Fit to images in any order. `codes`: at most so many; `softening` in units of the typical noise."""
        if crop < 1 or patch < 1 or crop % patch:
            raise ValueError(f"image codec: a crop of {crop} pixels is not a whole number of patches of {patch}")
        if codes < 1 or not softening > 0 or not bands:
            raise ValueError(
                f"image codec: codes {codes}, softening {softening}, bands {bands}: wanted more than nothing"
            )
        arrays = _cropped(measurement, tuple(bands), crop)
        order = _own_order("image codec", arrays)
        soft = (softening * typical_noise(arrays)).astype(np.float32).astype(np.float64)

        def chunks() -> Iterator[Patches]:
            for _, (flux, ivar) in _chunks("image codec", arrays, order):
                yield _image_patches(flux, ivar, soft, patch)

        basis = fit_basis(chunks, len(bands) * patch * patch, codes)
        return cls(bands, crop, patch, len(order), soft, basis)

    @property
    def levels(self) -> tuple[int, ...]:
        """Of the coefficients of a patch."""
        return tuple(self.basis.counts)

    def sees(self, measurement: Measurement) -> NDArray[np.bool_]:
        """Images with a good pixel in the crop, in any band."""
        _, ivar, mask = _cropped(measurement, self.bands, self.crop)
        return np.asarray(((ivar > 0) & ~mask).any(axis=(1, 2, 3)))

    def encode(self, measurement: Measurement) -> Tokens:
        """Tokens (n, rows * columns), row by row, of `flux`, `ivar` and `mask`, each (n, band, y, x)."""
        arrays = _cropped(measurement, self.bands, self.crop)
        codes = np.empty((len(arrays[0]), self.n_tokens), dtype=np.int64)
        for part, (flux, ivar) in _chunks("image codec", arrays):
            codes[part] = self.basis.encode(_image_patches(flux, ivar, self.softening, self.patch))
        return to_tokens(self, codes)

    def decode(self, tokens: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """`flux` (n, band, crop, crop), float32, nanomaggies."""
        codes = from_tokens(self, tokens)
        p, side = self.patch, self.crop // self.patch
        flux = np.empty((len(codes), len(self.bands), self.crop, self.crop), dtype=np.float32)
        for i in range(0, len(codes), CHUNK):
            y = self.basis.decode(codes[i : i + CHUNK]).reshape(-1, side, side, len(self.bands), p, p)
            y = y.transpose(0, 3, 1, 4, 2, 5).reshape(-1, len(self.bands), self.crop, self.crop)
            flux[i : i + CHUNK] = np.sinh(y) * self.softening[:, None, None]
        return {"flux": flux}

    def settings(self) -> dict[str, Any]:
        """Bands in order, sizes; `n_fit`, the images that it was fitted to."""
        return {"bands": list(self.bands), "crop": self.crop, "patch": self.patch, "n_fit": self.n_fit}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Softening (nanomaggies, a band each) and the basis."""
        return {"softening": self.softening, **self.basis.arrays()}

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        """The codec of these settings and arrays."""
        return cls(**settings, softening=arrays["softening"], basis=PatchBasis.restore(arrays))


class UniformImageCodec(PatchImageCodec):
    """`PatchImageCodec` of images without inverse variance: every pixel that is not masked counts the same.

    `flux` (n, band, y, x) and `mask`; `ivar` is refused, since images that have one are another measurement and have
    another codec. Nothing is estimated of a source: the weight of each good pixel is `SOFTENING`^2 after compression,
    in every band of every image. The softening of a band is `SOFTENING` times the scatter of its good pixels in all
    fitted images together, 1.4826 times the median absolute difference from the median, which light makes larger than
    noise.
    """

    kind: ClassVar[str] = "patch_image_uniform_weights"
    SOFTENING: ClassVar[float] = 4.0

    @classmethod
    def fit(  # type: ignore[override]
        cls, measurement: Measurement, bands: Sequence[str], crop: int = 96, patch: int = 4, codes: int = 4375
    ) -> Self:
        """Fit to images in any order. `codes`: at most so many. ValueError where no band has pixels that differ."""
        flux, mask = cls._without_ivar(measurement)
        flat = _cropped({"flux": flux, "ivar": mask, "mask": mask}, tuple(bands), crop)
        scatter = np.array([band_scatter(flat[0][:, b][~flat[2][:, b]]) for b in range(len(bands))])
        if not np.isfinite(scatter).any():
            raise ValueError(f"image codec: {len(flux)} images whose good pixels, if any, are all alike; wanted others")
        scatter = np.where(np.isfinite(scatter), scatter, np.nanmedian(scatter))
        given = {"flux": flux, "ivar": _everywhere(1 / scatter**2, flux), "mask": mask}
        return super().fit(given, bands, crop, patch, codes, cls.SOFTENING)

    @staticmethod
    def _without_ivar(measurement: Measurement) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        if "ivar" in measurement:
            raise ValueError("image codec: images with ivar came to a codec of those without; wanted flux and mask")
        arrays = _arrays("image codec", {**measurement, "ivar": measurement.get("mask", np.empty(0))}, 4)
        return arrays[0], arrays[2]

    def _given(self, measurement: Measurement) -> Measurement:
        flux, mask = self._without_ivar(measurement)
        return {"flux": flux, "ivar": _everywhere((self.SOFTENING / self.softening) ** 2, flux), "mask": mask}

    def sees(self, measurement: Measurement) -> NDArray[np.bool_]:
        """Images with a good pixel in the crop, in any band."""
        return super().sees(self._given(measurement))

    def encode(self, measurement: Measurement) -> Tokens:
        """Tokens (n, rows * columns), row by row, of `flux` and `mask`, each (n, band, y, x)."""
        return super().encode(self._given(measurement))

    def settings(self) -> dict[str, Any]:
        """As of `PatchImageCodec`, and how pixels are weighted."""
        return {**super().settings(), "weights": "uniform"}

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        """The codec of these settings and arrays; ValueError where they want other weights."""
        rest = {k: v for k, v in settings.items() if k != "weights"}
        if settings.get("weights") != "uniform":
            raise ValueError(f"image codec: weights {settings.get('weights')!r}, wanted 'uniform'")
        return super().restore(rest, arrays)


def band_scatter(values: NDArray[Any]) -> float:
    """1.4826 times the median absolute difference from the median; NaN where there are no values, or all are alike."""
    if not len(values):
        return np.nan
    wide = values.astype(np.float64)
    found = 1.4826 * float(np.median(np.abs(wide - np.median(wide))))
    return found if found > 0 else np.nan


def _everywhere(of_band: Floats, flux: NDArray[Any]) -> NDArray[Any]:
    """A number a band as images of this shape, without their memory."""
    return np.broadcast_to(of_band[:, None, None], flux.shape)


class PatchSpectrumCodec(Codec):
    """A spectrum on a shared wavelength grid as one token of its amplitude and then one token a patch.

    `flux` (n, pixel) is divided by its amplitude, sqrt(mean^2 + noise^2) of the good pixels, weighted by ivar, with
    the sign of the mean: the brightness of a bright spectrum, the noise of a faint one. The first token is the
    amplitude on a grid of equal steps of its logarithm, clipped to `amplitude_range`, first the positive and then
    the negative; 0 means that no pixel is good, which decodes to no flux. What is divided by is what that token
    decodes to, so its steps cost no precision. The other tokens are patches of equal length, evenly spread
    (neighbours may share a pixel), projected and quantised as `PatchBasis` says. Pixels with mask True or ivar 0 have
    no influence, whatever they hold.

    decode gives `flux` (n, pixel), float32, in the unit of the input. Fitted to few spectra it is valid, but poor;
    `n_fit` tells.
    """

    kind: ClassVar[str] = "patch_spectrum"
    ordered = False

    def __init__(
        self,
        start: float,
        step: float,
        n_pixels: int,
        n_patches: int,
        amplitude_range: Sequence[float],
        amplitude_bins: int,
        n_fit: int,
        basis: PatchBasis,
        scale: str = "linear",
    ) -> None:
        if scale not in SCALES:
            raise ValueError(f"spectrum codec: scale {scale!r} of the wavelengths, wanted {' or '.join(SCALES)}")
        self.start, self.step, self.scale = start, step, scale
        self.n_pixels, self.n_patches, self.n_fit = n_pixels, n_patches, n_fit
        self.amplitude_range = (float(amplitude_range[0]), float(amplitude_range[1]))
        self.amplitude_bins = amplitude_bins
        self.basis = basis
        self.layout = Layout("line", (1 + n_patches,))
        self.vocabulary = max(amplitude_bins, basis.codes)
        self.pixels = _spread(n_pixels, n_patches)

    @classmethod
    def fit(
        cls,
        measurement: Measurement,
        start: float = 3600.0,
        step: float = 0.8,
        scale: str = "linear",
        n_patches: int = 272,
        codes: int = 1024,
        amplitude_range: tuple[float, float] = (1e-4, 1e6),
    ) -> Self:
        """Fit to spectra in any order. `codes`: at most so many.

        `start`, `step`: the wavelength grid, in Angstrom, or in log10 of Angstrom where `scale` is `log10`.
        """
        arrays = _arrays("spectrum codec", measurement, 2)
        order = _own_order("spectrum codec", arrays)
        n_pixels = arrays[0].shape[1]
        if not 1 <= n_patches <= n_pixels:
            raise ValueError(
                f"spectrum codec: {n_patches} patches of {n_pixels} pixels asked for, wanted 1 to {n_pixels}"
            )
        if codes < 3 or not 0 < amplitude_range[0] < amplitude_range[1] < np.inf:
            raise ValueError(
                f"spectrum codec: codes {codes}, amplitude_range {amplitude_range}: wanted 3 or more, a range"
            )
        blank = PatchBasis(np.zeros((1, 1)), np.zeros(1), 0.0, [Bins(np.zeros(0), np.zeros(1))])
        head = cls(start, step, n_pixels, n_patches, amplitude_range, codes, len(order), blank, scale)

        def chunks() -> Iterator[Patches]:
            for _, (flux, ivar) in _chunks("spectrum codec", arrays, order):
                yield head._patches(flux, ivar)[1]

        head.basis = fit_basis(chunks, head.pixels.shape[1], codes)
        return cls.restore(head.settings(), head.arrays())

    def wavelength(self) -> Floats:
        """Angstrom of each pixel, shape (n_pixels,)."""
        grid = np.asarray(self.start + self.step * np.arange(self.n_pixels), dtype=np.float64)
        return np.asarray(10.0**grid if self.scale == "log10" else grid, dtype=np.float64)

    def _patches(self, flux: Floats, ivar: Floats) -> tuple[NDArray[np.int64], Patches]:
        """Amplitude tokens (n,), and the normalised patches."""
        weight = ivar.sum(axis=1)
        seen = weight > 0
        weight = np.where(seen, weight, 1.0)
        mean = np.sum(ivar * flux, axis=1) / weight
        noise2 = (ivar > 0).sum(axis=1) / weight
        low, high = np.log(self.amplitude_range)
        half = (self.amplitude_bins - 1) // 2
        place = (np.log(np.maximum(np.sqrt(mean**2 + noise2), 1e-300)) - low) / (high - low) * half
        token = 1 + np.clip(place, 0, half - 1).astype(np.int64)
        token = np.where(seen, np.where(mean < 0, token + half, token), 0)
        amplitude = self._amplitude(token)
        amplitude[~seen] = 1.0
        y = (flux / amplitude[:, None])[:, self.pixels]
        return token, (y, (ivar * (amplitude**2)[:, None])[:, self.pixels])

    def _amplitude(self, token: NDArray[np.int64]) -> Floats:
        low, high = np.log(self.amplitude_range)
        half = (self.amplitude_bins - 1) // 2
        step = np.minimum(token, 2 * half) - 1
        value = np.exp(low + (high - low) * (step % half + 0.5) / half)
        return np.where(token == 0, 0.0, np.where(step < half, value, -value))

    @property
    def levels(self) -> tuple[int, ...]:
        """Of the coefficients of a patch; the first token, of the amplitude, is one number of its own."""
        return tuple(self.basis.counts)

    def encode(self, measurement: Measurement) -> Tokens:
        """Tokens (n, 1 + patches) of `flux`, `ivar` and `mask`, each (n, pixel)."""
        arrays = _arrays("spectrum codec", measurement, 2)
        if arrays[0].shape[1] != self.n_pixels:
            raise ValueError(
                f"spectrum codec: spectra have {arrays[0].shape[1]} pixels, wanted {self.n_pixels} "
                f"({self.scale} in wavelength, from {self.start} in steps of {self.step})"
            )
        refuse_other_wavelengths(measurement, self.wavelength())
        codes = np.empty((len(arrays[0]), self.n_tokens), dtype=np.int64)
        for part, (flux, ivar) in _chunks("spectrum codec", arrays):
            codes[part, 0], patches = self._patches(flux, ivar)
            codes[part, 1:] = self.basis.encode(patches)
        return to_tokens(self, codes)

    def decode(self, tokens: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """`flux` (n, pixel), float32. Numbers past the last amplitude or patch code stand for the last."""
        codes = from_tokens(self, tokens)
        flux = np.empty((len(codes), self.n_pixels), dtype=np.float32)
        held = np.bincount(self.pixels.ravel(), minlength=self.n_pixels)
        for i in range(0, len(codes), CHUNK):
            y = self.basis.decode(codes[i : i + CHUNK, 1:])
            total = np.zeros((len(y), self.n_pixels))
            for odd in (0, 1):  # patches two apart never share a pixel
                total[:, self.pixels[odd::2].ravel()] += y[:, odd::2].reshape(len(y), -1)
            flux[i : i + CHUNK] = total / held * self._amplitude(codes[i : i + CHUNK, 0])[:, None]
        return {"flux": flux}

    def settings(self) -> dict[str, Any]:
        """Wavelength grid, sizes, amplitudes; `n_fit`, the spectra that it was fitted to."""
        return {
            "start": self.start,
            "step": self.step,
            "scale": self.scale,
            "n_pixels": self.n_pixels,
            "n_patches": self.n_patches,
            "amplitude_range": list(self.amplitude_range),
            "amplitude_bins": self.amplitude_bins,
            "n_fit": self.n_fit,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The basis."""
        return self.basis.arrays()

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        """The codec of these settings and arrays."""
        return cls(**settings, basis=PatchBasis.restore(arrays))


def _spread(n_pixels: int, n_patches: int) -> NDArray[np.int64]:
    """Pixel numbers (patch, pixel) of patches of equal length that cover all pixels, sharing as few as they can."""
    length = -(-n_pixels // n_patches)
    starts = np.arange(n_patches) * (n_pixels - length) // max(n_patches - 1, 1)
    return starts[:, None] + np.arange(length)


def _arrays(what: str, measurement: Measurement, ndim: int) -> Arrays:
    """Flux, ivar and mask as they are given, of one shape."""
    missing = [name for name in ("flux", "ivar", "mask") if name not in measurement]
    if missing:
        raise ValueError(
            f"{what}: the measurement lacks {', '.join(missing)}; wanted flux, ivar (0 = no information) "
            "and mask (True = bad)"
        )
    flux, ivar, mask = (np.asarray(measurement[name]) for name in ("flux", "ivar", "mask"))
    if flux.ndim != ndim or flux.shape != ivar.shape or flux.shape != mask.shape:
        raise ValueError(
            f"{what}: flux, ivar, mask have shapes {flux.shape}, {ivar.shape}, {mask.shape}; "
            f"wanted one shape of {ndim} axes"
        )
    if mask.dtype != np.bool_:
        raise ValueError(f"{what}: the mask is {mask.dtype}, wanted bool (True = bad)")
    return flux, ivar, mask


def _cropped(measurement: Measurement, bands: tuple[str, ...], crop: int) -> Arrays:
    """As `_arrays`, of the images' centres."""
    arrays = _arrays("image codec", measurement, 4)
    shape = arrays[0].shape
    if shape[1] != len(bands) or min(shape[2:]) < crop:
        raise ValueError(
            f"image codec: flux has shape {shape}, wanted (n, {len(bands)}, y, x) with bands {', '.join(bands)} and "
            f"{crop} pixels or more a side"
        )
    y, x = shape[2] // 2 - crop // 2, shape[3] // 2 - crop // 2
    flux, ivar, mask = (a[..., y : y + crop, x : x + crop] for a in arrays)
    return flux, ivar, mask


def _chunks(what: str, arrays: Arrays, order: NDArray[np.int64] | None = None) -> Iterator[tuple[slice, Good]]:
    """A few sources at a time: flux and ivar in float64, both 0 where bad. The caller's arrays stay as they are."""
    n = len(arrays[0])
    for i in range(0, n, CHUNK):
        part = slice(i, min(i + CHUNK, n))
        rows = np.arange(n)[part] if order is None else order[part]
        flux, ivar, mask = (a[part] if order is None else a[rows] for a in arrays)
        _refuse(what, "ivar", ivar, ~mask & ~((ivar >= 0) & (ivar < np.inf)), "0 or a positive number", rows)
        good = ~mask & (ivar > 0)
        _refuse(what, "flux", flux, good & ~np.isfinite(flux), "a finite number", rows)
        zero = np.float64(0.0)
        yield part, (np.where(good, flux, zero) + 0.0, np.where(good, ivar, zero))


def _refuse(
    what: str, name: str, values: NDArray[Any], wrong: NDArray[np.bool_], wanted: str, rows: NDArray[np.int64]
) -> None:
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"{what}: row {rows[where[0]]}, pixel {where[1:]}: {name} is {values[where]}, wanted {wanted}; "
            "mask the pixel if it is bad"
        )


def _own_order(what: str, arrays: Arrays) -> NDArray[np.int64]:
    """An order of the sources by what they hold, so that the caller's does not matter to the last bit of a sum."""
    digests = []
    seen = False
    for _, (flux, ivar) in _chunks(what, arrays):
        seen = seen or bool(ivar.any())
        digests += [hashlib.sha256(f.tobytes() + i.tobytes()).digest() for f, i in zip(flux, ivar, strict=True)]
    if not seen:
        raise ValueError(f"{what}: {len(digests)} sources with no good pixel among them, wanted 1 or more")
    return np.array(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.int64)


def typical_noise(arrays: Arrays) -> Floats:
    """Median standard deviation of each band's good pixels; a band without any takes the others' median."""
    _, ivar, mask = arrays
    noise = np.full(ivar.shape[1], np.nan)
    for b in range(ivar.shape[1]):
        good = ivar[:, b][~mask[:, b] & (ivar[:, b] > 0)].astype(np.float64)
        if len(good):
            noise[b] = 1 / np.sqrt(np.median(good))
    return np.where(np.isnan(noise), np.nanmedian(noise), noise)


def _image_patches(flux: Floats, ivar: Floats, softening: Floats, patch: int) -> Patches:
    """Compressed flux and its weights, cut into patches, row by row; pixels in order (band, y, x)."""
    n, bands, side, _ = flux.shape
    soft = softening[:, None, None]

    def cut(a: Floats) -> Floats:
        a = a.reshape(n, bands, side // patch, patch, side // patch, patch).transpose(0, 2, 4, 1, 3, 5)
        return a.reshape(n, -1, bands * patch * patch)

    # the slope of asinh at zero flux for all pixels: at the measured flux it would favour upward noise
    return cut(np.arcsinh(flux / soft)), cut(ivar * soft**2)
