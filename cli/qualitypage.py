"""The page of the quality report: tables, and pictures of some sources as measured, as they are, and as decoded."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib import rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from skycairn.cli import skyimage
from skycairn.cli.paper import DECODED, DIM, MARGIN, MASKED, MEASURED, WIDTH, Paper
from skycairn.cli.quality import Judged
from skycairn.cli.qualitytables import DARK, Table
from skycairn.report.markup import STYLE, section
from skycairn.tokenizers.spectralquality import EMISSION

LIMIT = 5.0
"""Of residuals in sigma."""
PANEL = 1.9
SPECTRUM = 1.7
"""Inches."""


def page(title: str, tables: Sequence[Table], judged: Sequence[Judged]) -> str:
    """One HTML file that needs nothing else."""
    parts = [section("tables", "Numbers", *(t.html() for t in tables))]
    for j in judged:
        drawn = picture(images(j) if j.modality.image else spectra(j))
        name = escape(j.modality.name)
        parts.append(section(name, f"Pictures: {j.modality.name}", f'<img alt="{name}" src="{drawn}" width="100%">'))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main><h1>{escape(title)}</h1>"
        f"{''.join(parts)}</main></body></html>\n"
    )


def picture(figure: Figure, dots_per_inch: int = 90) -> str:
    """The figure as a data URL."""
    with rc_context(rcParamsDefault):
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=dots_per_inch, facecolor="white", metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def chosen(j: Judged, galaxies: int = 5, stars: int = 2) -> list[int]:
    """Sources over the whole range of brightness, faint to bright, galaxies before stars; whole ones alone."""
    sn = j.sn()
    whole = np.isfinite(sn) & (j.good.reshape(len(sn), -1).mean(axis=1) > (0.7 if j.modality.image else 0.5))
    out: list[int] = []
    for some, n in ((whole & (j.kind != "star"), galaxies), (whole & (j.kind == "star"), stars)):
        at = np.flatnonzero(some)[np.argsort(sn[some], kind="stable")]
        if len(at):
            out += at[np.unique(np.linspace(0.04, 0.96, n) * (len(at) - 1)).astype(int)].tolist()
    return out


def _codecs(j: Judged) -> list[str]:
    return [c for c in j.decoded if c != DARK]


# -- images


def images(j: Judged) -> Figure:
    """A row a source: measured, true, decoded in colours; then residuals in sigma of one band, decoded less true."""
    rows, codecs = chosen(j), _codecs(j)
    bands = j.modality.bands
    columns = 2 + 2 * len(codecs)
    panel = min(PANEL, (WIDTH - 2 * MARGIN) / columns - 0.08)
    paper = Paper(0.7 + len(rows) * (panel + 0.32) + 0.3)
    sn = j.sn()
    for k, i in enumerate(rows):
        top = 0.7 + k * (panel + 0.32)
        seen = skyimage.seen_bands(bands, ~j.good[i])
        colours = skyimage.colour_bands(seen)
        band = "r" if "r" in seen else seen[len(seen) // 2]
        b = list(bands).index(band)
        told = f"{j.modality.name.split('.')[0]}:{j.key[i]}  {j.kind[i]}  S/N {sn[i]:.0f}"
        paper.text(MARGIN, top - 0.2, told, 8, color=DIM)
        shown = [("measured", j.measured["flux"][i]), ("true", j.truth[i])]
        shown += [(f"decoded, {c}", j.decoded[c][i]) for c in codecs]
        for n, (name, flux) in enumerate(shown):
            ax = paper.axes(f"{name}:{k}", MARGIN + n * (panel + 0.08), top, panel, panel)
            ax.imshow(skyimage.colours(flux, bands, colours, j.modality.unit, j.modality.pixel_arcsec), origin="lower")
            _bare(ax, name if k == 0 else "")
        weight = np.sqrt(np.where(j.good[i, b], j.measured["ivar"][i, b], 0))
        for n, c in enumerate(codecs, start=len(shown)):
            ax = paper.axes(f"residual, {c}:{k}", MARGIN + n * (panel + 0.08), top, panel, panel)
            off = np.where(j.good[i, b], (j.decoded[c][i, b] - j.truth[i, b]) * weight, np.nan)
            ax.imshow(off, origin="lower", cmap="RdBu_r", vmin=-LIMIT, vmax=LIMIT, interpolation="nearest")
            ax.set_facecolor(MASKED)
            _bare(ax, f"{c}: decoded - true, sigma" if k == 0 else "")
            rms = float(np.sqrt(np.nanmean(off**2))) if np.isfinite(off).any() else np.nan
            ax.text(0.03, 0.03, f"{band}  rms {rms:.2f}", transform=ax.transAxes, size=7)
    paper.text(MARGIN, paper.height - 0.25, f"residuals from -{LIMIT:g} (blue) to {LIMIT:g} sigma (red)", 8, color=DIM)
    return paper.figure


def _bare(ax: Axes, title: str) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    if title:
        ax.set_title(title, size=8, pad=20)


# -- spectra


def spectra(j: Judged) -> Figure:
    """A row a source: measured, true and decoded; residuals in sigma below; the strongest line beside it."""
    rows, codecs = chosen(j), _codecs(j)
    height = SPECTRUM + 0.35 * SPECTRUM * len(codecs) + 0.65
    paper = Paper(0.3 + len(rows) * height + 0.3)
    sn, wide = j.sn(), WIDTH - 2 * MARGIN - 3.6
    x = j.wavelength if j.wavelength is not None else np.arange(j.truth.shape[1], dtype=float)
    for k, i in enumerate(rows):
        top = 0.3 + k * height
        told = f"{j.modality.name.split('.')[0]}:{j.key[i]}  {j.kind[i]}  S/N a pixel {sn[i]:.1f}  z {j.z[i]:.4f}"
        paper.text(MARGIN, top, told, 8, color=DIM)
        ax = paper.axes(f"spectrum:{k}", MARGIN + 0.3, top + 0.2, wide, SPECTRUM)
        _curves(ax, j, i, x, np.ones(len(x), bool), codecs)
        ax.legend(loc="upper right", fontsize=7, ncols=2 + len(codecs), frameon=False)
        near = _line_window(j, i, x)
        if near is not None:
            beside = paper.axes(f"line:{k}", MARGIN + wide + 0.8, top + 0.2, 2.9, SPECTRUM)
            _curves(beside, j, i, x, near[1], codecs, marks=True)
            beside.set_title(near[0], size=8, pad=3)
        weight = np.sqrt(np.where(j.good[i], j.measured["ivar"][i], 0))
        for n, c in enumerate(codecs):
            low = top + 0.2 + SPECTRUM + n * 0.35 * SPECTRUM
            ax = paper.axes(f"residual, {c}:{k}", MARGIN + 0.3, low, wide, 0.33 * SPECTRUM)
            off = np.where(j.good[i], (j.decoded[c][i] - j.truth[i]) * weight, np.nan)
            ax.plot(x, off, lw=0.4, color=_colour(n))
            ax.axhline(0, lw=0.5, color="black")
            ax.set_ylim(-LIMIT, LIMIT)
            ax.set_xlim(x[0], x[-1])
            ax.text(0.005, 0.06, f"{c}: decoded - true, sigma", transform=ax.transAxes, size=7)
    return paper.figure


def _colour(n: int) -> str:
    return (DECODED, "#2e7d64", "#8a4fbf", "#c98a00")[n % 4]


def _curves(
    ax: Axes,
    j: Judged,
    i: int,
    x: NDArray[np.float64],
    some: NDArray[np.bool_],
    codecs: list[str],
    marks: bool = False,
) -> None:
    good = j.good[i] & some
    ax.plot(x[some], np.where(good, j.measured["flux"][i], np.nan)[some], lw=0.3, color="0.7", label="measured")
    ax.plot(x[some], np.where(good, j.truth[i], np.nan)[some], lw=0.9, color=MEASURED, label="true")
    for n, c in enumerate(codecs):
        ax.plot(x[some], j.decoded[c][i][some], lw=0.7, color=_colour(n), label=c, marker="." if marks else "", ms=3)
    if good.any():
        shown = np.concatenate([np.percentile(j.measured["flux"][i][good], [0.5, 99.5]), j.truth[i][good]])
        low, high = float(shown.min()), float(shown.max())
        ax.set_ylim(low - 0.05 * (high - low), high + 0.2 * (high - low))
    ax.set_xlim(x[some][0], x[some][-1])


def _line_window(j: Judged, i: int, x: NDArray[np.float64]) -> tuple[str, NDArray[np.bool_]] | None:
    """The emission line with the most light above what is beside it, and the pixels around; None without a redshift."""
    if not np.isfinite(j.z[i]) or j.kind[i] == "star":
        return None
    best: tuple[float, str, Any] | None = None
    for name, rest in EMISSION.items():
        centre = rest * (1 + j.z[i])
        near = np.abs(x / centre - 1) < 0.006
        core = np.abs(x / centre - 1) < 0.001
        if (near & j.good[i]).sum() < 20 or not (core & j.good[i]).any() or near[[0, -1]].any():
            continue
        height = float(j.truth[i][core & j.good[i]].max() - np.median(j.truth[i][near & j.good[i]]))
        if best is None or height > best[0]:
            best = height, name, near
    return None if best is None else (best[1], best[2])
