"""The picture of a translation: what was shown, what was measured, what was drawn, and residuals in sigma."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from skycairn.cli import skyimage
from skycairn.cli.paper import DECODED, DIM, MARGIN, MASKED, MEASURED, WIDTH, Paper
from skycairn.cli.translating import Translated

LIMIT = 5.0
"""Of residuals in sigma."""
DRAWS = 3
"""Shown of each object."""
SPECTRUM = 1.8
"""Inches."""
SMOOTH_PIXELS = 8
PIXEL_ARCSEC = {"legacysurvey": 0.262, "hsc": 0.168}


def drawn(found: Translated, rows: Sequence[int], path: Path) -> None:
    """Write the picture of these objects as PNG."""
    figure = _images(found, rows) if found.wavelength is None else _spectra(found, rows)
    with rc_context(rcParamsDefault):
        figure.savefig(path, format="png", dpi=90, facecolor="white", metadata={"Software": None})


def _images(found: Translated, rows: Sequence[int]) -> Figure:
    middle, nearest = found.answers["model, median of draws"], found.answers["nearest neighbour"]
    survey, n_draws = found.target.split(".")[0], min(DRAWS, found.draws.shape[1])
    columns = 5 + n_draws
    panel = (WIDTH - 2 * MARGIN) / columns - 0.08
    paper = Paper(0.7 + len(rows) * (panel + 0.3) + 0.3)
    for k, i in enumerate(rows):
        top = 0.7 + k * (panel + 0.3)
        paper.text(MARGIN, top - 0.18, found.ids[i], 8, color=DIM)
        bands = skyimage.seen_bands(found.bands, ~found.data.good[i])
        chosen = skyimage.colour_bands(bands)
        shown: list[tuple[str, NDArray[np.uint8]]] = []
        if found.source is not None:
            other = next(n for n in found.shown if n.endswith(".image"))
            own = skyimage.colour_bands(skyimage.seen_bands(found.source_bands, np.zeros(found.source[i].shape, bool)))
            arcsec = PIXEL_ARCSEC[other.split(".")[0]]
            image = skyimage.colours(found.source[i], found.source_bands, own, "nanomaggy", arcsec)
            shown.append((f"shown: {other}", image))
        answers = [("measured", found.data.flux[i]), ("median of draws", middle[i])]
        answers += [(f"draw {s + 1}", found.draws[i, s]) for s in range(n_draws)]
        answers += [("nearest neighbour", nearest[i])]
        for name, flux in answers:
            clean = np.nan_to_num(flux)
            shown.append((name, skyimage.colours(clean, found.bands, chosen, "nanomaggy", PIXEL_ARCSEC[survey])))
        for n, (name, image) in enumerate(shown):
            ax = paper.axes(f"{name}:{k}", MARGIN + n * (panel + 0.08), top, panel, panel)
            ax.imshow(image, origin="lower")
            _bare(ax, name if k == 0 else "")
        band = list(found.bands).index("r" if "r" in bands else bands[len(bands) // 2])
        ax = paper.axes(f"residual:{k}", MARGIN + len(shown) * (panel + 0.08), top, panel, panel)
        good = found.data.good[i, band]
        sigma = np.sqrt(np.where(good, found.data.ivar[i, band], 0))
        off = np.where(good, (middle[i, band] - found.data.flux[i, band]) * sigma, np.nan)
        ax.imshow(off, origin="lower", cmap="RdBu_r", vmin=-LIMIT, vmax=LIMIT, interpolation="nearest")
        ax.set_facecolor(MASKED)
        _bare(ax, "median - measured, sigma" if k == 0 else "")
    paper.text(MARGIN, paper.height - 0.25, f"residuals from -{LIMIT:g} (blue) to {LIMIT:g} sigma (red)", 8, color=DIM)
    return paper.figure


def _bare(ax: Axes, title: str) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    if title:
        ax.set_title(title, size=8, pad=18)


def _spectra(found: Translated, rows: Sequence[int]) -> Figure:
    x = found.wavelength
    assert x is not None
    height = 1.5 * SPECTRUM + 0.55
    paper = Paper(0.3 + len(rows) * height + 0.2)
    middle, nearest = found.answers["model, median of draws"], found.answers["nearest neighbour"]
    for k, i in enumerate(rows):
        top, good = 0.3 + k * height, found.data.good[i]
        known = f"   z {found.z[i]:.4f}" if np.isfinite(found.z[i]) else ""
        paper.text(MARGIN, top, f"{found.ids[i]}{known}", 8, color=DIM)
        ax = paper.axes(f"spectrum:{k}", MARGIN + 0.3, top + 0.2, WIDTH - 2 * MARGIN - 0.4, SPECTRUM)
        weight = np.where(good, found.data.ivar[i], 0.0)
        data = _smooth(np.where(good, found.data.flux[i], 0.0), weight)
        ax.plot(x, data, lw=0.6, color=MEASURED, label=f"measured, mean of {SMOOTH_PIXELS} pixels")
        low, high = np.quantile(found.draws[i], (0.16, 0.84), axis=0)
        ax.fill_between(x, low, high, color=DECODED, alpha=0.25, lw=0, label="draws, middle 68 %")
        ax.plot(x, middle[i], lw=0.8, color=DECODED, label="median of draws")
        ax.plot(x, nearest[i], lw=0.5, color="#2e7d64", label="nearest neighbour")
        ends = np.nanpercentile(data, [0.5, 99.5]) if np.isfinite(data).any() else np.array([0.0, 1.0])
        room = float(ends[1] - ends[0]) or 1.0
        ax.set_ylim(ends[0] - 0.1 * room, ends[1] + 0.35 * room)
        ax.set_xlim(x[0], x[-1])
        if k == 0:
            ax.legend(loc="upper right", fontsize=7, ncols=4, frameon=False)
        below = paper.axes(f"residual:{k}", MARGIN + 0.3, top + 0.2 + SPECTRUM, WIDTH - 2 * MARGIN - 0.4, SPECTRUM / 2)
        below.plot(x, np.where(good, (middle[i] - found.data.flux[i]) * np.sqrt(weight), np.nan), lw=0.3, color=DECODED)
        below.axhline(0, lw=0.5, color="black")
        below.set_ylim(-LIMIT, LIMIT)
        below.set_xlim(x[0], x[-1])
        below.text(0.005, 0.06, "median of draws - measured, sigma", transform=below.transAxes, size=7)
    return paper.figure


def _smooth(flux: NDArray[np.floating], weight: NDArray[np.floating]) -> NDArray[np.float64]:
    """Weighted running mean; NaN where nothing is good."""
    box = np.ones(SMOOTH_PIXELS)
    total = np.convolve(weight, box, "same")
    return np.where(total > 0, np.convolve(flux * weight, box, "same") / np.where(total > 0, total, 1), np.nan)
