"""A page of one object: its images, spectra, coefficients and values, each beside what its tokens decode to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units
from astropy.coordinates import SkyCoord
from matplotlib import rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from skycairn.cli import skyimage
from skycairn.cli.imagerows import image_blocks
from skycairn.cli.objectview import Measurement, ObjectView, Value
from skycairn.cli.paper import DECODED, DIM, LINE, MARGIN, MASKED, MEASURED, TEXT_LINE, WIDTH, Block, Paper

LINES = {
    "Ly α": 1215.67,
    "C IV": 1549.5,
    "C III]": 1908.7,
    "Mg II": 2799.1,
    "[O II]": 3728.5,
    "Ca K": 3934.8,
    "Ca H": 3969.6,
    "H β": 4862.7,
    "[O III]": 5008.2,
    "Mg b": 5176.6,
    "Na D": 5894.6,
    "H α": 6564.6,
    "Ca II": 8544.4,
}
"""Vacuum wavelengths in Angstrom."""


def draw(view: ObjectView, path: Path, tables: bool = True, dots_per_inch: int = 110) -> None:
    """Write the page as a picture; the ending of `path` says of which kind. Without `tables`: no catalogue values."""
    with rc_context(rcParamsDefault):  # whatever else in the process has set: text through LaTeX, say
        page(view, tables).savefig(path, dpi=dots_per_inch, facecolor="white")


def page(view: ObjectView, tables: bool = True) -> Figure:
    """The page as a figure, whose axes are labelled `image:MODALITY`, `decoded:MODALITY`, `band:MODALITY:BAND`,
    `spectrum:MODALITY`, `coefficients:MODALITY` and `values`."""
    blocks = [*_header(view), *image_blocks(view), *_spectra(view), *_coefficients(view)]
    blocks += _values(view) if tables else []
    paper = Paper(sum(height for height, _ in blocks) + 2 * MARGIN)
    top = MARGIN
    for height, paint in blocks:
        paint(paper, top)
        top += height
    paper.text(MARGIN, paper.height - 0.3, f"{view.snapshot}; red: decoded from tokens", 8, color=DIM)
    return paper.figure


# -- words


def _header(view: ObjectView) -> list[Block]:
    place = SkyCoord(view.ra * units.deg, view.dec * units.deg)
    sexagesimal = place.to_string("hmsdms", precision=2)
    lines = [f"RA {view.ra:.6f}  Dec {view.dec:+.6f} deg   {sexagesimal}   ICRS   split {view.split}"]
    lines += [f"{k} {v}" for k, v in view.labels.items()]
    for m in view.members:
        where = "anchor" if m.anchor else f"{m.separation_arcsec * 1000:.2f} mas from the anchor"
        said = "" if m.status == "present" else f", {m.status}"
        lines.append(f"{m.uid:<34}{where}{said}")
    held = {m.survey for m in view.members}
    lines += [f"{name:<34}{status}" for name, status in view.status.items() if name not in held]
    rivals = {name: n for name, n in view.blend_n.items() if n > 1}
    if rivals:
        said = ", ".join(f"{n} sources of {name}" for name, n in rivals.items())
        lines.append(f"blended: {said} in the blend group {view.blend_group}")
    if view.delta_mag is not None:
        lines.append(f"largest difference of the members in a common band: {view.delta_mag:.3f} mag")
    for found in view.measurements:
        if why := _why_less(found):
            lines.append(f"{found.modality.name:<34}{why}")

    def paint(paper: Paper, top: float) -> None:
        paper.text(MARGIN, top, view.object_id, 16, weight="bold")
        paper.text(MARGIN, top + 0.34, "\n".join(lines), 9, family="monospace", linespacing=1.25)

    return [(0.5 + 0.172 * len(lines), paint)]


def _why_less(m: Measurement) -> str:
    """Why a measurement, or a part of it, is not on the page."""
    if m.note:
        return m.note + ("; decoded tokens alone" if m.decoded is not None else "")
    # a survey without the object says so once
    if m.measured is None and m.status not in ("not detected", "outside footprint", "no selected source"):
        return m.status
    if m.measured is not None and m.status != "present":
        return f"measured, and without tokens: {m.status}"
    if m.modality.image and m.measured is not None:
        lost = [b for b in m.bands if b not in skyimage.seen_bands(m.bands, m.measured["mask"])]
        return f"no good pixel in {', '.join(lost)}" if lost else ""
    return ""


# -- spectra and coefficients


def _spectra(view: ObjectView) -> list[Block]:
    spectra = [m for m in view.measurements if m.modality.codec == "spectrum" and (m.measured or m.decoded)]
    waves = [m.wavelength for m in spectra if m.wavelength is not None]
    limits = {
        m.modality.unit: _flux_limits([s for s in spectra if s.modality.unit == m.modality.unit]) for m in spectra
    }

    def painter(m: Measurement) -> Callable[[Paper, float], None]:
        def paint(paper: Paper, top: float) -> None:
            ax = paper.axes(f"spectrum:{m.modality.name}", 1.0, top + 0.35, WIDTH - 1.0 - MARGIN, 2.5)
            survey = m.modality.name.split(".")[0]
            z = view.redshift.get(survey, next(iter(view.redshift.values()), None))
            _spectrum(ax, m, z)
            if m.wavelength is not None:
                ax.set_xlim(min(w[0] for w in waves), max(w[-1] for w in waves))
            ax.set_ylim(limits[m.modality.unit])

        return paint

    return [(3.4, painter(m)) for m in spectra]


def _flux_limits(spectra: list[Measurement]) -> tuple[float, float]:
    """Limits that hold all spectra of one unit, the noisiest pixels left out."""
    low, high = [0.0], [0.0]
    for m in spectra:
        if m.measured is not None:
            good = m.measured["flux"][~m.measured["mask"]]
        else:
            good = (m.decoded or {})["flux"]
        if len(good):
            low.append(float(np.percentile(good, 0.7)))
            high.append(float(np.percentile(good, 99.7)))
    span = max(high) - min(low) or 1.0
    return min(low) - 0.05 * span, max(high) + 0.18 * span


def _spectrum(ax: Axes, m: Measurement, z: float | None) -> None:
    arrays = m.measured or m.decoded or {}
    x = np.arange(len(arrays["flux"])) if m.wavelength is None else m.wavelength
    if m.measured is not None:
        flux, ivar, mask = (m.measured[n] for n in ("flux", "ivar", "mask"))
        good = ~mask & (ivar > 0)
        sigma = np.where(good, 1 / np.sqrt(np.where(good, ivar, 1)), np.nan)
        seen = np.where(good, flux, np.nan)
        ax.fill_between(x, seen - sigma, seen + sigma, color="#f3c96b", lw=0, label="one sigma")
        ax.plot(x, seen, lw=0.3, color="0.4", label=m.modality.name)
        runs = np.flatnonzero(np.diff(np.concatenate([[False], ~good, [False]]).astype(int))).reshape(-1, 2)
        edges = np.concatenate([x[:1] - (x[1] - x[0]) / 2, (x[1:] + x[:-1]) / 2, x[-1:] + (x[-1] - x[-2]) / 2])
        spans = [(edges[a], edges[b] - edges[a]) for a, b in runs]
        if spans:
            where = ax.get_xaxis_transform()
            ax.broken_barh(spans, (0, 1), transform=where, color=MASKED, alpha=0.35, lw=0, label="masked")
    if m.decoded is not None:
        ax.plot(x, m.decoded["flux"], lw=0.9, color=DECODED, label=f"decoded from {m.n_tokens} tokens")
    ax.axhline(0, color="0.8", lw=0.6, zorder=0)
    ax.set_ylabel(m.modality.unit, size=8)
    if m.wavelength is None:
        ax.set_xlabel("pixel (this pile does not say at what wavelength)", size=8)
    else:
        ax.set_xlabel("wavelength in vacuum, Angstrom", size=8)
        if z is not None:
            _lines(ax, x, z)
    title = m.modality.name + ("" if z is None else f"     z = {z:.5f}")
    ax.set_title(title, size=9, loc="left", pad=16)
    ax.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1.0), ncols=4, frameon=False, borderaxespad=1.1)
    ax.margins(x=0)


def _lines(ax: Axes, x: NDArray[Any], z: float) -> None:
    """Where lines of this redshift lie; a name that would stand on its neighbour's is left out."""
    last = -np.inf
    for name, rest in LINES.items():
        at = rest * (1 + z)
        if not x[0] < at < x[-1]:
            continue
        ax.axvline(at, color=LINE, lw=0.6, ls=":", zorder=0)
        if at - last > 0.028 * (x[-1] - x[0]):
            where = ax.get_xaxis_transform()
            ax.text(at, 1.01, name, transform=where, size=7, color=LINE, ha="center", va="bottom")
            last = at


def _coefficients(view: ObjectView) -> list[Block]:
    vectors = [m for m in view.measurements if m.modality.codec == "xp" and (m.measured or m.decoded)]

    def painter(pair: list[Measurement]) -> Callable[[Paper, float], None]:
        def paint(paper: Paper, top: float) -> None:
            width = (WIDTH - 1.0 - MARGIN - 0.6) / 2
            for i, m in enumerate(pair):
                _vector(
                    paper.axes(f"coefficients:{m.modality.name}", 1.0 + i * (width + 0.6), top + 0.3, width, 2.0), m
                )

        return paint

    return [(2.9, painter(vectors[i : i + 2])) for i in range(0, len(vectors), 2)]


def _vector(ax: Axes, m: Measurement) -> None:
    """Coefficients, one sigma, and decoded, on an axis that is linear to the noise and logarithmic beyond."""
    unit = ""
    if m.measured is not None:
        value, error = m.measured["value"], m.measured.get("error")
        ax.errorbar(np.arange(len(value)), value, error, fmt="o", ms=3, lw=0.8, color=MEASURED, label=m.modality.name)
        unit = f" ({m.modality.unit})" if m.modality.unit else ""
    if m.decoded is not None:
        back = m.decoded["value"]
        label = f"decoded from {m.n_tokens} tokens"
        ax.step(np.arange(len(back)), back, where="mid", lw=0.9, color=DECODED, label=label)
    ax.set_yscale("symlog", linthresh=1.0, linscale=0.5)
    ax.axhline(0, color="0.8", lw=0.6, zorder=0)
    ax.set_title(f"{m.modality.name}: coefficients of its basis functions{unit}", size=9, loc="left")
    ax.set_xlabel("coefficient", size=8)
    ax.legend(fontsize=8, loc="upper right", frameon=False)
    ax.margins(x=0.01)


# -- values


def _values(view: ObjectView) -> list[Block]:
    """The catalogues' values: first those that have tokens, a survey beside the other, then the other columns."""
    with_tokens = [_value_lines(n, view.status[n], v) for n, v in view.values.items() if any(x.status for x in v)]
    columns = [with_tokens[i::3] for i in range(3)]
    blocks = [_text_block("values", [[line for t in column for line in [*t, []]] for column in columns])]
    for name, found in view.values.items():
        told = [v for v in found if not v.status and v.value not in (None, "")]
        names = shortened([v.name for v in told], 23)
        lines: list[Line] = [
            [(f"{name:<24}{shortened([number(v.value)], 20)[0]:>20} {v.unit}", DIM)]
            for name, v in zip(names, told, strict=True)
        ]
        if lines:
            rows = -(-len(lines) // 4)
            spread = [lines[i * rows : (i + 1) * rows] for i in range(4)]
            head: list[Line] = [[(f"other columns of {name}", "black")]]
            spread = [(head if i == 0 else [[]]) + part for i, part in enumerate(spread)]
            blocks.append(_text_block(f"columns:{name}", spread, size=6.8))
    return [b for b in blocks if b[0] > 0.4]


Line = list[tuple[str, str]]
"""Texts of one colour each, laid over each other."""


def _text_block(label: str, columns: list[list[Line]], size: float = 7.5) -> Block:
    height = TEXT_LINE * max(len(c) for c in columns) + 0.25

    def paint(paper: Paper, top: float) -> None:
        width = WIDTH - 2 * MARGIN
        ax = paper.axes(label, MARGIN, top, width, height)
        ax.set_axis_off()
        ax.set_xlim(0, width)
        ax.set_ylim(height, 0)
        for i, column in enumerate(columns):
            for j, line in enumerate(column):
                for text, colour in line:
                    x, y = i * width / len(columns), (j + 1) * TEXT_LINE
                    ax.text(x, y, text, size=size, family="monospace", color=colour)

    return height, paint


def _value_lines(survey: str, status: str, found: list[Value]) -> list[Line]:
    """A survey's values that have tokens, with their errors, units, and what the tokens decode to, or why not."""
    head = survey if status == "present" else f"{survey}: {status}"
    lines: list[Line] = [
        [(head, "black")],
        [(f"{'':<20}{'value':>13}{'one sigma':>11} {'unit':<11}{'decoded':>12}", DIM)],
    ]
    told = [v for v in found if v.status]
    for name, v in zip(shortened([v.name for v in told], 19), told, strict=True):
        value = "-" if v.value is None else number(v.value, v.error)
        error = "" if v.error is None else number(v.error, v.error)
        text = f"{name:<20}{value:>13}{error:>11} {v.unit[:10]:<11}"
        # a cut that the whole source failed is told once, above
        why = "" if v.status in ("present", status) else v.status
        back = why if v.decoded is None else f"{v.decoded:.5g}"
        lines.append([(text, "black"), (" " * len(text) + f"{back:>12}", DECODED if not why else MASKED)])
    return lines


def shortened(names: Sequence[str], width: int) -> list[str]:
    """The names in `width` letters at most, an ellipsis for what is left out, placed so that they stay apart."""
    for head in sorted(range(width), key=lambda n: abs(n - width // 2)):
        tail = width - 1 - head
        out = [n if len(n) <= width else f"{n[:head]}…{n[len(n) - tail :]}" for n in names]
        if len(set(out)) == len(set(names)):
            return out
    return [n if len(n) <= width else f"{n[: width - 1]}…" for n in names]


def number(value: Any, error: float | None = None) -> str:
    """A value as it is read best: to two digits of its error, or to seven digits; whole numbers whole."""
    if not isinstance(value, float):
        return str(value)
    if error and np.isfinite(error):
        decimals = 1 - int(np.floor(np.log10(error)))
        if decimals <= 9:
            return f"{round(value, decimals):.{max(decimals, 0)}f}"
    return f"{value:.7g}"
