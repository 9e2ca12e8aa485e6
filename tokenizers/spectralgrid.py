"""Wavelength grids of spectra, linear interpolation between them, and the checks of what lies on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skycairn.tokenizers.codec import Measurement, refuse_other_wavelengths

SCALES = ("linear", "log10")
F64 = NDArray[np.float64]
BLOCK = 64
"pixels whose mean is one vote on the brightness of a spectrum"


@dataclass(frozen=True)
class SpectralGrid:
    """The wavelengths that all spectra of a survey share: `start` + `step` * pixel, in Angstrom or in its log10."""

    scale: str
    start: float
    step: float
    n_pixels: int

    def __post_init__(self) -> None:
        if self.scale not in SCALES or self.n_pixels < 2 or not (np.isfinite(self.start) and 0 < self.step < np.inf):
            raise ValueError(
                f"spectrum codec: wavelength grid {self}, wanted scale {' or '.join(SCALES)}, 2 or more pixels and a "
                "positive step"
            )

    @classmethod
    def restore(cls, settings: Mapping[str, Any] | None) -> SpectralGrid | None:
        """The grid of these settings, None of None."""
        return None if settings is None else cls(**settings)

    def wavelength(self) -> F64:
        """Angstrom of each pixel, shape (n_pixels,)."""
        places = self.start + self.step * np.arange(self.n_pixels, dtype=np.float64)
        return 10.0**places if self.scale == "log10" else places

    def ended(
        self, flux: NDArray[Any], ivar: NDArray[Any], there: NDArray[np.bool_], pad: float | None = None
    ) -> dict[str, NDArray[Any]]:
        """`flux` (n, pixel), bridged between pixels that are `there`, and `ends` (n, 2), the wavelengths of the first
        and the last of them; the last before the first where none is.

        `pad`: with `ivar` too, and both go on behind the last pixel, flux and inverse error on a line to 0 at `pad`.
        """
        wavelength = self.wavelength()
        first, last = there.argmax(axis=1), there.shape[1] - 1 - there[:, ::-1].argmax(axis=1)
        some = there.any(axis=1)
        ends = np.stack([np.where(some, wavelength[first], np.inf), np.where(some, wavelength[last], 0.0)], axis=1)
        with np.errstate(invalid="ignore"):  # a line may begin at infinity
            found = {"flux": bridged(flux.astype(np.float64), there), "ends": ends}
        if pad is not None:
            found["ivar"] = np.array(ivar, np.float64)
            for row in np.flatnonzero(some):
                at = last[row]
                left = (pad - wavelength[at + 1 :]) / (pad - wavelength[at])
                found["flux"][row, at + 1 :] = np.nan_to_num(found["flux"][row, at]) * left
                found["ivar"][row, at + 1 :] = np.nan_to_num(found["ivar"][row, at]) * left**2
            ends[some, 1] = pad
        return found


@dataclass(frozen=True)
class Places:
    """Where new wavelengths lie between old ones: between pixels `index` and `index` + 1, `share` of the way."""

    index: Tensor
    "int64 (pixel,), or (n, pixel)"
    share: Tensor
    "float32, shape of index"
    inside: Tensor
    "bool, shape of index: not beyond the ends of the old ones"

    @classmethod
    def of(cls, old: Tensor, new: Tensor) -> Places:
        """Of `new` among strictly increasing `old`, each (pixel,) or (n, pixel), Angstrom."""
        index = torch.clamp(torch.searchsorted(old.contiguous(), new) - 1, 0, old.shape[-1] - 2)
        left, right = torch.gather(old, -1, index), torch.gather(old, -1, index + 1)
        share = ((new - left) / (right - left)).float()
        if old.dtype == torch.float64:
            # pixels that coincide on paper are a rounding apart; 1e-9 of a step is none
            share = torch.where((share - share.round()).abs() < 1e-6, share.round(), share)
        return cls(index, share, (new >= old[..., :1]) & (new <= old[..., -1:]))

    def to(self, device: torch.device) -> Places:
        """The same on a device."""
        return Places(self.index.to(device), self.share.to(device), self.inside.to(device))

    def take(self, y: Tensor) -> Tensor:
        """Values (n, old pixel) at the new places (n, pixel); 0 beyond the ends."""
        if self.index.ndim == 1:
            left, right = y.index_select(1, self.index), y.index_select(1, self.index + 1)
        else:
            left, right = torch.gather(y, 1, self.index), torch.gather(y, 1, self.index + 1)
        return torch.where(self.inside, left + self.share * (right - left), 0.0)


def checked(measurement: Measurement, grid: SpectralGrid | None, first_row: int) -> dict[str, NDArray[Any]]:
    """`flux`, `ivar`, `mask` (n, pixel), and `wavelength` where there is no grid, of one shape; else ValueError."""
    names = ["flux", "ivar", "mask", *(["wavelength"] if grid is None else [])]
    missing = [name for name in names if name not in measurement]
    if missing:
        raise ValueError(
            f"spectrum codec: the measurement lacks {', '.join(missing)}; wanted {', '.join(names)} "
            "(ivar 0 = no information, mask True = bad, wavelength in Angstrom where the codec has no grid)"
        )
    found = {name: np.asarray(measurement[name]) for name in names}
    shape = found["flux"].shape
    if len(shape) != 2 or any(a.shape != shape for a in found.values()):
        told = ", ".join(f"{k} {a.shape}" for k, a in found.items())
        raise ValueError(f"spectrum codec: shapes {told}; wanted one shape of 2 axes, (n, pixel)")
    if found["mask"].dtype != np.bool_:
        raise ValueError(f"spectrum codec: the mask is {found['mask'].dtype}, wanted bool (True = bad)")
    if grid is not None:
        refuse_other_wavelengths(measurement, grid.wavelength())
    wrong = [k for k, a in found.items() if k != "mask" and a.dtype.kind not in "fiu"]
    if wrong:
        raise ValueError(f"spectrum codec: {wrong[0]} is {found[wrong[0]].dtype}, wanted numbers")
    if grid is not None and shape[1] != grid.n_pixels:
        raise ValueError(
            f"spectrum codec: spectra have {shape[1]} pixels, wanted {grid.n_pixels} ({grid.scale} in wavelength, "
            f"from {grid.start} in steps of {grid.step}); take a codec of their own grid, or of none"
        )
    if grid is None:
        wavelength = found["wavelength"].astype(np.float32)
        if shape[1] < 2:
            raise ValueError(f"spectrum codec: spectra have {shape[1]} pixels, wanted 2 or more")
        fine = np.isfinite(wavelength).all(axis=1) & (wavelength[:, 0] > 0) & (np.diff(wavelength) > 0).all(axis=1)
        if not fine.all():
            row = int(np.argmin(fine))
            steps = np.diff(wavelength[row])
            at = int(np.argmin(steps > 0)) + 1 if not (steps > 0).all() else 0
            raise ValueError(
                f"spectrum codec: row {first_row + row}, pixel {at}: wavelength {wavelength[row, at]}, wanted positive "
                "and strictly increasing ones in float32, Angstrom; cut off what pads the spectrum"
            )
        found["wavelength"] = wavelength
    return found


def good_pixels(flux: NDArray[Any], ivar: NDArray[Any], mask: NDArray[np.bool_], first_row: int) -> tuple[F64, F64]:
    """Flux and ivar in float64, both 0 where bad; ValueError where a pixel that is not masked holds no number."""
    _refuse("ivar", ivar, ~mask & ~((ivar >= 0) & (ivar < np.inf)), "0 or a positive number", first_row)
    good = ~mask & (ivar > 0)
    _refuse("flux", flux, good & ~np.isfinite(flux), "a finite number", first_row)
    return np.where(good, flux, 0.0).astype(np.float64), np.where(good, ivar, 0.0).astype(np.float64)


def _refuse(name: str, values: NDArray[Any], wrong: NDArray[np.bool_], wanted: str, first_row: int) -> None:
    if wrong.any():
        row, pixel = (int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"spectrum codec: row {first_row + row}, pixel {pixel}: {name} is {values[row, pixel]}, wanted {wanted}; "
            "mask the pixel if it is bad"
        )


def recorded(flux: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels that hold something, be it bad: a pile that kept nothing of one has mask True and flux 0."""
    return ~(mask & (flux == 0))


def amplitude(flux: F64, ivar: F64) -> F64:
    """Brightness of spectra, shape (n,), in the unit of the flux: sqrt(level ** 2 + noise ** 2); 0 without good pixels.

    The level is the median over blocks of pixels of their mean, weighted by ivar, so that neither a line nor a cosmic
    ray sets it; the noise is that of one typical pixel, from ivar alone. It is near the level of a bright spectrum and
    the noise of a faint or negative one, never under it.
    """
    n, n_pixels = flux.shape
    starts = np.arange(0, n_pixels, BLOCK)
    weight = np.add.reduceat(ivar, starts, axis=1)
    mean = np.add.reduceat(ivar * flux, starts, axis=1) / np.where(weight > 0, weight, 1.0)
    level = np.array([np.median(m[w > 0]) if (w > 0).any() else 0.0 for m, w in zip(mean, weight, strict=True)])
    total = weight.sum(axis=1)
    noise2 = (ivar > 0).sum(axis=1) / np.where(total > 0, total, 1.0)
    return np.asarray(np.sqrt(level.reshape(n) ** 2 + noise2), np.float64)


def bridged(flux: F64, good: NDArray[np.bool_]) -> F64:
    """A copy whose bad pixels lie on the line between their good neighbours; 0 before the first and after the last."""
    found = np.where(good, flux, 0.0)
    for row, seen in zip(found, good, strict=True):
        at = np.flatnonzero(seen)
        if 0 < len(at) < len(row):
            holes = np.flatnonzero(~seen[at[0] : at[-1] + 1]) + at[0]
            row[holes] = np.interp(holes, at, row[at])
    return found
