"""A page on which places are inches: what is drawn on it comes in blocks, one below the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH, MARGIN, GAP = 15.0, 0.45, 0.35
"""Inches."""

TEXT_LINE = 0.155
MEASURED, DECODED, MASKED, DIM, LINE = "0.3", "#d1495b", "#7380ad", "0.45", "#2e7d64"

Block = tuple[float, Callable[["Paper", float], None]]
"""Height in inches, and what draws it from a given distance below the top of the page."""


class Paper:
    """A figure on which places are inches from the left and from the top."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.figure = Figure(figsize=(WIDTH, height))

    def axes(self, label: str, left: float, top: float, width: float, height: float, **more: Any) -> Axes:
        """Axes in this rectangle, known by `label`."""
        place = (left / WIDTH, 1 - (top + height) / self.height, width / WIDTH, height / self.height)
        ax = self.figure.add_axes(place, label=label, **more)
        ax.tick_params(labelsize=8)
        return ax

    def text(self, left: float, top: float, text: str, size: float = 9, **more: Any) -> None:
        """Text whose upper left corner lies here."""
        self.figure.text(left / WIDTH, 1 - top / self.height, text, size=size, va="top", **more)
