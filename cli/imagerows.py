"""Rows of images on a page: every survey's at one scale on the sky, north up, east left, beside the decoded one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from skycairn.cli import skyimage
from skycairn.cli.objectview import Measurement, ObjectView
from skycairn.cli.paper import DECODED, GAP, MARGIN, WIDTH, Block, Paper

MOST_PANEL = 5.0
"""Side of the largest image, where the width allows; all in inches."""


def image_blocks(view: ObjectView) -> list[Block]:
    """A row for each survey's image: the image, what its tokens decode to, and the single bands."""
    images = [m for m in view.measurements if m.modality.image and (m.measured or m.decoded)]
    if not images:
        return []

    def side(arrays: Any, m: Measurement) -> float:
        return float(min(arrays["flux"].shape[-2:]) * m.modality.pixel_arcsec) if arrays else np.inf

    full = [side(m.measured, m) for m in images if m.measured] or [side(m.decoded, m) for m in images]
    field = min(full)
    panel = min([MOST_PANEL, *(_panel(m, min(1.0, side(m.decoded, m) / field)) for m in images)])

    def painter(m: Measurement) -> Callable[[Paper, float], None]:
        def paint(paper: Paper, top: float) -> None:
            _image_row(paper, top + 0.3, m, field, min(field, side(m.decoded, m)), panel)

        return paint

    return [(panel + 0.75, painter(m)) for m in images]


def _panel(m: Measurement, decoded: float) -> float:
    """The side of an image whose row fills the width; `decoded`: the side of its neighbour in units of it."""
    columns = -(-len(m.bands) // 2)
    return (WIDTH - 2 * MARGIN - 2 * GAP + 0.05 * columns) / (1 + decoded + columns / 2)


def _image_row(paper: Paper, top: float, m: Measurement, field: float, decoded: float, panel: float) -> None:
    """Original and decoded at one scale, `field` and `decoded` arcsec wide; then the single bands, smaller."""
    left, name, pixel = MARGIN, m.modality.name, m.modality.pixel_arcsec
    title = f"{name} ({m.modality.flag})" if m.modality.flag else name
    seen = skyimage.seen_bands(m.bands, m.measured["mask"]) if m.measured else m.decoded_bands
    chosen = skyimage.colour_bands(seen)
    if m.measured:
        ax = paper.axes(f"image:{name}", left, top, panel, panel)
        shown = skyimage.colours(m.measured["flux"], m.bands, chosen, m.modality.unit, pixel)
        some = [m.bands.index(b) for b in chosen] or list(range(len(m.bands)))
        _sky(ax, shown, m, field, np.asarray(m.measured["mask"][some].any(axis=0)))
        ax.set_title(f"{title}: {_as_colours(chosen)}", size=9)
        _ruler(ax, field)
        _seeing(ax, m, chosen, field)
        left += panel + GAP
    if m.decoded:
        inches = decoded * panel / field
        ax = paper.axes(f"decoded:{name}", left, top + (panel - inches) / 2, inches, inches)
        wanted = [b for b in chosen if b in m.decoded_bands]
        shown = skyimage.colours(m.decoded["flux"], m.decoded_bands, wanted, m.modality.unit, pixel)
        _sky(ax, shown, m, decoded, None)
        ax.set_title(f"decoded from {m.n_tokens} tokens", size=9, color=DECODED)
        if not m.measured:
            ax.set_title(f"{title}: {_as_colours(wanted)}; decoded from {m.n_tokens} tokens", size=9, color=DECODED)
            _ruler(ax, decoded)
        left += inches + GAP
    if m.measured:
        _single_bands(paper, left, top, m, field, panel)


def _as_colours(chosen: Sequence[str]) -> str:
    names = {3: "red, green, blue", 2: "red, blue", 1: "grey"}
    return f"{', '.join(chosen)} as {names[len(chosen)]}" if chosen else "no good pixel in any band"


def _seeing(ax: Axes, m: Measurement, chosen: Sequence[str], field: float) -> None:
    """Full width at half maximum of the point spread function: of every band in words, their median as a circle."""
    known = {b: s for b, s in zip(m.bands, m.psf_fwhm, strict=False) if np.isfinite(s)}
    if not known:
        return
    ax.set_xlabel("PSF FWHM " + ", ".join(f"{b} {s:.2f}" for b, s in known.items()) + " arcsec", size=8)
    if some := [s for b, s in known.items() if b in chosen]:
        at = (0.42 * field, 0.44 * field)
        ax.add_patch(Circle(at, float(np.median(some)) / 2, fill=False, color="white", lw=0.8))
        ax.text(at[0] - 0.05 * field, at[1], "PSF", color="white", size=8, va="center", ha="left")


def _single_bands(paper: Paper, left: float, top: float, m: Measurement, field: float, panel: float) -> None:
    """Every band on its own, two rows of them, at whatever scale the width allows."""
    columns = -(-len(m.bands) // 2)
    inches = min((panel - 0.3) / 2, (WIDTH - MARGIN - left) / columns - 0.1)
    arrays = m.measured or {}
    for i, band in enumerate(m.bands):
        x, y = left + i % columns * (inches + 0.1), top + i // columns * (inches + 0.3)
        ax = paper.axes(f"band:{m.modality.name}:{band}", x, y, inches, inches)
        flux, bad = arrays["flux"][i], arrays["mask"][i]
        shown = skyimage.grey(flux, band, m.modality.unit, m.modality.pixel_arcsec)
        _sky(ax, np.repeat(1 - shown[..., None], 3, axis=2), m, field, bad)
        ax.set_facecolor("0.9")
        ax.set_title(f"{band}{': no good pixel' if bad.all() else ''}", size=8, pad=3)


def _sky(ax: Axes, shown: NDArray[Any], m: Measurement, field: float, bad: NDArray[np.bool_] | None) -> None:
    """A picture on the sky, `field` arcsec wide about the source; what is masked in blue-grey."""
    place = skyimage.extent(shown.shape[:2], m.modality.pixel_arcsec, m.offset)
    ax.imshow(shown, origin="lower", extent=place, interpolation="nearest")
    if bad is not None and bad.any():
        veil = np.zeros((*bad.shape, 4))
        veil[bad] = (0.45, 0.5, 0.68, 1.0)
        ax.imshow(veil, origin="lower", extent=place, interpolation="nearest")
    ax.set_facecolor("black")
    ax.set_xlim(field / 2, -field / 2)
    ax.set_ylim(-field / 2, field / 2)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])


def _ruler(ax: Axes, field: float) -> None:
    """A bar of round length, and which way north and east are."""
    length = max(n for n in (1, 2, 5, 10, 20, 60) if n <= max(field / 3, 1))
    edge = -0.45 * field
    dark = [withStroke(linewidth=3, foreground="black")]
    ax.plot([-edge, -edge - length], [edge, edge], color="white", lw=2, solid_capstyle="butt", path_effects=dark)
    ax.text(
        -edge - length / 2,
        edge + 0.015 * field,
        f"{length} arcsec",
        color="white",
        size=8,
        ha="center",
        path_effects=dark,
    )
    arm = 0.09 * field
    for east, north, name in ((0, arm, "N"), (arm, 0, "E")):
        tip = (edge + east, edge + north)
        ax.annotate("", tip, (edge, edge), arrowprops={"arrowstyle": "->", "color": "white"})
        ax.text(tip[0] + 0.25 * east, tip[1] + 0.25 * north, name, color="white", size=8, ha="center", va="center")
