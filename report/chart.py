"""Charts as SVG, drawn by small functions: axes, steps, points with error bars, curves; colours come from the page"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, isfinite, log10

import numpy as np
from numpy.typing import ArrayLike, NDArray

WIDTH, HEIGHT = 360.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 54.0, 18.0, 8.0, 40.0


@dataclass(frozen=True)
class Axis:
    """One axis: what it shows, with the unit; from where to where."""

    label: str
    low: float
    high: float
    log: bool = False

    def share(self, values: ArrayLike) -> NDArray[np.float64]:
        """Where values lie between `low` (0) and `high` (1); what lies beyond is put on the border."""
        v = np.asarray(values, np.float64)
        low, high = self.low, self.high
        if self.log:
            v, low, high = np.log10(np.maximum(v, 1e-300)), log10(self.low), log10(self.high)
        return np.clip((v - low) / (high - low), 0.0, 1.0)

    def ticks(self) -> list[float]:
        """Round values to mark."""
        if self.log:
            first, last = ceil(log10(self.low) - 1e-9), floor(log10(self.high) + 1e-9)
            within = (1.0, 2.0, 5.0) if self.high / self.low < 50 else (1.0,)
            marks = [f * 10.0**e for e in range(first - 1, last + 1, max(1, ceil((last - first) / 6))) for f in within]
            return [v for v in marks if self.low * (1 - 1e-9) <= v <= self.high * (1 + 1e-9)]
        span = self.high - self.low
        step = 10.0 ** floor(log10(span / 4))
        step *= next(f for f in (1.0, 2.0, 2.5, 5.0, 10.0) if span / (step * f) <= 5.5)
        return [step * i for i in range(ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9) + 1)]


def number(value: float, digits: int = 3) -> str:
    """A value for people: to so many digits, thousands set apart."""
    if not isfinite(value):
        return "not known" if value != value else "beyond"
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    decimals = max(0, digits - 1 - floor(log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def tick_text(value: float) -> str:
    """The label of a tick."""
    return number(round(value, 12), 4)


@dataclass(frozen=True)
class Plot:
    """The frame of a chart. Its methods give pieces of SVG; `svg` puts them together."""

    x: Axis
    y: Axis
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT

    def px(self, values: ArrayLike) -> NDArray[np.float64]:
        """Of values on x, where they are drawn."""
        return self.left + self.x.share(values) * (self.width - self.left - RIGHT)

    def py(self, values: ArrayLike) -> NDArray[np.float64]:
        """Of values on y."""
        return self.height - BOTTOM - self.y.share(values) * (self.height - BOTTOM - TOP)

    def axes(self) -> str:
        """Grid, ticks and labels."""
        out, bottom, right = [], self.height - BOTTOM, self.width - RIGHT
        for v in self.x.ticks():
            at = f"{float(self.px(v)):.1f}"
            out.append(f'<path class="grid" d="M{at} {TOP}V{bottom}"/>')
            out.append(f'<text class="tick" x="{at}" y="{bottom + 14}" text-anchor="middle">{tick_text(v)}</text>')
        for v in self.y.ticks():
            y = float(self.py(v))
            out.append(f'<path class="grid" d="M{self.left} {y:.1f}H{right}"/>')
            out.append(
                f'<text class="tick" x="{self.left - 5}" y="{y + 3.5:.1f}" text-anchor="end">{tick_text(v)}</text>'
            )
        out.append(f'<path class="axis" d="M{self.left} {TOP}V{bottom}H{right}"/>')
        middle_x, middle_y = (self.left + right) / 2, (TOP + bottom) / 2
        out.append(
            f'<text class="label" x="{middle_x:.1f}" y="{self.height - 7}" text-anchor="middle">'
            f"{escape(self.x.label)}</text>"
        )
        out.append(
            f'<text class="label" transform="translate(12 {middle_y:.1f}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y.label)}</text>"
        )
        return "".join(out)

    def steps(self, edges: ArrayLike, counts: ArrayLike, style: str, filled: bool = False) -> str:
        """A histogram's outline, down to the axis at both ends."""
        x, y = self.px(edges), self.py(counts)
        base = self.height - BOTTOM
        path = f"M{x[0]:.1f} {base:.1f}" + "".join(f"V{v:.1f}H{u:.1f}" for u, v in zip(x[1:], y, strict=True))
        return f'<path class="{"fill" if filled else "line"} {style}" d="{path}V{base:.1f}"/>'

    def curve(self, x: ArrayLike, y: ArrayLike, style: str) -> str:
        """A line through points; where it runs along the axis it is left out."""
        y = np.asarray(y, np.float64)
        seen = np.isfinite(y) & (y >= self.y.low)
        path, pen = [], "M"
        for u, v, ok in zip(self.px(x), self.py(np.where(seen, y, self.y.low)), seen, strict=True):
            if ok:
                path.append(f"{pen}{u:.1f} {v:.1f}")
            pen = "L" if ok else "M"
        return f'<path class="line {style}" d="{"".join(path)}"/>' if path else ""

    def bars(
        self,
        x: ArrayLike,
        y: ArrayLike,
        bounds: NDArray[np.float64],
        style: str,
        titles: Sequence[str] = (),
    ) -> str:
        """Points with error bars on y, `bounds` (n, 2); a title each, shown on hovering."""
        out = []
        values = np.asarray(y, np.float64)
        rows = zip(self.px(x), self.py(values), *self.py(bounds).T, strict=True)
        for i, (u, v, a, b) in enumerate(rows):
            if not isfinite(values[i]):
                continue
            title = f"<title>{escape(titles[i])}</title>" if titles else ""
            out.append(
                f'<g class="mark {style}">{title}<path d="M{u:.1f} {a:.1f}V{b:.1f}"/>'
                f'<circle cx="{u:.1f}" cy="{v:.1f}" r="2.6"/></g>'
            )
        return "".join(out)

    def crosses(self, rows: Iterable[tuple[float, float, float, float, str]], style: str) -> str:
        """Points with error bars on both axes: x, y, their errors, title."""
        out = []
        for x, y, dx, dy, title in rows:
            u, v = float(self.px(x)), float(self.py(y))
            a, b, c, d = *self.px([x - dx, x + dx]), *self.py([y - dy, y + dy])
            out.append(
                f'<g class="mark {style}"><title>{escape(title)}</title>'
                f'<path d="M{a:.1f} {v:.1f}H{b:.1f}M{u:.1f} {c:.1f}V{d:.1f}"/>'
                f'<circle cx="{u:.1f}" cy="{v:.1f}" r="2.2"/></g>'
            )
        return "".join(out)

    def svg(self, title: str, about: str, *pieces: str) -> str:
        """The whole, with a title and a description for those who do not see it."""
        return picture(title, about, self.width, self.height, self.axes() + "".join(pieces))


def picture(title: str, about: str, width: float, height: float, body: str) -> str:
    """An SVG element that a screen reader announces by its title and description."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}. {escape(about)}">{body}</svg>'
    )


def intervals(
    title: str, about: str, axis: Axis, rows: Sequence[tuple[str, float, float, float, str]], width: float = WIDTH
) -> str:
    """One row a name: its value, lower and upper bound on a common axis, and a title. NaN leaves the row empty."""
    step, left = 19.0, 148.0
    height = TOP + BOTTOM + step * len(rows)
    plot = Plot(axis, Axis("", 0, 1), width, height, left)
    out, bottom = [], height - BOTTOM
    for v in axis.ticks():
        at = f"{float(plot.px(v)):.1f}"
        out.append(f'<path class="grid" d="M{at} {TOP}V{bottom}"/>')
        out.append(f'<text class="tick" x="{at}" y="{bottom + 14}" text-anchor="middle">{tick_text(v)}</text>')
    out.append(f'<path class="axis" d="M{left} {TOP}V{bottom}H{width - RIGHT}"/>')
    middle = (left + width - RIGHT) / 2
    out.append(
        f'<text class="label" x="{middle:.1f}" y="{height - 7}" text-anchor="middle">{escape(axis.label)}</text>'
    )
    for i, (name, value, low, high, told) in enumerate(rows):
        y = TOP + step * (i + 0.5)
        out.append(f'<text class="tick" x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{escape(name)}</text>')
        if not isfinite(value):
            out.append(f'<text class="tick" x="{left + 6}" y="{y + 3.5:.1f}">not measured</text>')
            continue
        a, b = plot.px([low, high])
        dot = f'<circle cx="{float(plot.px(value)):.1f}" cy="{y:.1f}" r="3"/>' if value > 0 or not axis.log else ""
        out.append(f'<g class="mark c1"><title>{escape(told)}</title><path d="M{a:.1f} {y:.1f}H{b:.1f}"/>{dot}</g>')
    return picture(title, about, width, height, "".join(out))
