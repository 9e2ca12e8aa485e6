"""Maps of HEALPix cells as SVG: patches of sky side by side, seen from within, or all of it as Mollweide drew it"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from math import ceil, sqrt

import healpy
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from skycairn.match import sky
from skycairn.report.chart import WIDTH, number, picture

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CLASSES = 7
"""Colours of a map."""
MOST_PATCHES = 36
WIDEST_DEG = 50.0
"""Patches that are wider, or more of them, are drawn on the whole sky."""
TOUCHING = 2
"""Cells are of one patch if cells so many orders wider touch."""
LABEL = 11.0
ARROW = 14.0
"""Length of the arrow that an arrow map's bar shows; none is drawn longer than three of it."""


@dataclass(frozen=True)
class Geometry:
    """Where the cells of a map are drawn; the same for all maps of a page, so that outlines are written once."""

    order: int
    outlines: Mapping[int, str]
    "path of each cell"
    middles: Mapping[int, tuple[float, float]]
    height: float
    frame: str
    "drawn below the cells: tiles with their places, or the sky's outline"
    told: str
    "what is drawn, in words"
    patches: tuple[tuple[float, float], ...]
    "centre of each patch, degrees"

    def defs(self) -> str:
        """The outlines, to be put once into the page."""
        shapes = "".join(f'<path id="cell{c}" d="{d}"/>' for c, d in self.outlines.items())
        return f'<svg class="defs" width="0" height="0" aria-hidden="true"><defs>{shapes}</defs></svg>'


def lay_out(order: int, cells: Ints) -> Geometry:
    """Choose how to draw these cells and lay them out."""
    if not cells.size:
        return Geometry(order, {}, {}, 60.0, "", "There is no cell to draw.", ())
    patch = _patches(order, cells)
    n = int(patch.max()) + 1
    corners = healpy.boundaries(1 << order, cells, step=4, nest=True)
    groups = [np.flatnonzero(patch == i) for i in range(n)]
    centres = [_middle(corners[rows]) for rows in groups]
    widths = [
        2 * np.degrees(np.arccos(np.clip(np.einsum("nij,i->nj", corners[rows], c), -1, 1))).max()
        for rows, c in zip(groups, centres, strict=True)
    ]
    if n > MOST_PATCHES or max(widths) > WIDEST_DEG:
        return _whole_sky(order, cells, corners, centres)
    return _tiles(order, cells, corners, groups, centres, float(max(widths)))


def _patches(order: int, cells: Ints) -> Ints:
    """Number of each cell's patch, in the order of right ascension of the patches' first cells."""
    wider = max(order - TOUCHING, 0)
    coarse, of = np.unique(cells >> 2 * (order - wider), return_inverse=True)
    around = healpy.get_all_neighbours(1 << wider, coarse, nest=True)
    at = np.minimum(np.searchsorted(coarse, around), coarse.size - 1)
    row, here = np.nonzero(coarse[at] == around)
    graph = coo_array((np.ones(here.size), (here, at[row, here])), shape=(coarse.size, coarse.size))
    n, label = connected_components(graph, directed=False)
    ra, _ = sky.centres(wider, coarse)
    first = np.full(n, 999.0)
    np.minimum.at(first, label, ra)
    place = np.empty(n, np.int64)
    place[np.argsort(first, kind="stable")] = np.arange(n)
    return np.asarray(place[label][of])


def _middle(corners: Floats) -> Floats:
    mean = corners.mean(axis=(0, 2))
    norm = np.linalg.norm(mean)
    return np.asarray(mean / norm if norm > 1e-9 else corners[0, :, 0])


def _place(v: Floats) -> tuple[float, float]:
    ra = round(float(np.degrees(np.arctan2(v[1], v[0]))), 6) % 360
    return (0.0 if ra > 359.995 else ra), float(np.degrees(np.arcsin(np.clip(v[2], -1, 1))))


def _tangent(points: Floats, centre: Floats) -> Floats:
    """East and north of the centre, radians, of unit vectors (n, 3, k): (n, 2, k); an azimuthal equidistant map."""
    ra, dec = np.radians(_place(centre))
    east = np.array([-np.sin(ra), np.cos(ra), 0.0])
    north = np.array([-np.sin(dec) * np.cos(ra), -np.sin(dec) * np.sin(ra), np.cos(dec)])
    x, y = np.einsum("nik,i->nk", points, east), np.einsum("nik,i->nk", points, north)
    sine = np.hypot(x, y)
    angle = np.arctan2(sine, np.einsum("nik,i->nk", points, centre))
    stretch = np.where(sine > 1e-12, angle / np.maximum(sine, 1e-12), 1.0)
    return np.stack([x * stretch, y * stretch], axis=1)


def _tiles(
    order: int, cells: Ints, corners: Floats, groups: list[Ints], centres: list[Floats], width_deg: float
) -> Geometry:
    n = len(groups)
    columns = 1 if n == 1 else 2 if n <= 4 else 3 if n <= 9 else 4 if n <= 16 else 6
    size = (WIDTH - 4.0) / columns
    label = LABEL + 2 if n > 1 else 0.0
    # one patch alone may be as high as it is wide, and no higher than the page bears
    scale = (size - 6) / np.radians(width_deg)
    outlines, middles, frame, places = {}, {}, [], []
    for i, (rows, centre) in enumerate(zip(groups, centres, strict=True)):
        left, top = 2 + size * (i % columns), (size + label) * (i // columns)
        xy = _tangent(corners[rows], centre) * scale
        # the sky seen from within: east is to the left
        x, y = left + size / 2 - xy[:, 0], top + label + size / 2 - xy[:, 1]
        for cell, u, v in zip(cells[rows].tolist(), x, y, strict=True):
            outlines[cell], middles[cell] = _path(u, v), (float(u.mean()), float(v.mean()))
        places.append(_place(centre))
        if n > 1:
            ra, dec = places[-1]
            frame.append(
                f"<g><title>patch {i + 1}: RA {ra:.2f}, Dec {dec:+.2f}</title>"
                f'<rect class="tile" x="{left + 1:.1f}" y="{top + label:.1f}" width="{size - 2:.1f}" '
                f'height="{size - 1:.1f}"/><text class="tick" x="{left + 2:.1f}" y="{top + LABEL - 1:.1f}">'
                f"{_short(ra, dec, columns)}</text></g>"
            )
    ra, dec = places[0]
    where = f"about RA {ra:.2f}, Dec {dec:+.2f}" if n == 1 else f"{n} patches, by RA of their centres"
    told = f"{where}; a frame is {_angle(width_deg * size / (size - 6))} wide, north is up, east to the left"
    height = (size + label) * ceil(n / columns) + 2
    return Geometry(order, outlines, middles, height, "".join(frame), told, tuple(places))


def _short(ra: float, dec: float, columns: int) -> str:
    return (
        f"{ra:.0f} {dec:+.0f}" if columns > 4 else f"{ra:.1f} {dec:+.1f}" if columns > 2 else f"RA {ra:.2f} {dec:+.2f}"
    )


def _angle(degrees: float) -> str:
    return f"{degrees:.3g} deg" if degrees >= 1 else f"{degrees * 60:.3g} arcmin"


def _path(x: Floats, y: Floats) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True)) + "Z"


def mollweide(ra: Floats, dec: Floats) -> tuple[Floats, Floats]:
    """Positions in degrees on Mollweide's ellipse: x from -2 to 2, RA 180 in its middle and growing to the left."""
    phi = np.radians(np.clip(dec, -90, 90))
    theta = phi.copy()
    for _ in range(60):
        slope = np.maximum(2 + 2 * np.cos(2 * theta), 1e-9)
        theta = np.clip(theta - (2 * theta + np.sin(2 * theta) - np.pi * np.sin(phi)) / slope, -np.pi / 2, np.pi / 2)
    lon = np.radians((ra % 360) - 180)
    return -2 / np.pi * lon * np.cos(theta), np.sin(theta)


def _whole_sky(order: int, cells: Ints, corners: Floats, centres: list[Floats]) -> Geometry:
    scale, height = (WIDTH - 8) / 4, (WIDTH - 8) / 2 + 8
    outlines, middles = {}, {}
    for cell, own in zip(cells.tolist(), corners, strict=True):
        ra = np.degrees(np.arctan2(own[1], own[0])) % 360
        # a cell that RA 0 cuts is drawn on the side where more of it lies
        if np.ptp(ra) > 180:
            ra = np.where(ra > 180, ra, 360.0) if (ra > 180).mean() >= 0.5 else np.where(ra > 180, 0.0, ra)
        ra = np.minimum(ra, 359.999)
        x, y = mollweide(ra, np.degrees(np.arcsin(np.clip(own[2], -1, 1))))
        u, v = WIDTH / 2 + x * scale, height / 2 - y * scale
        outlines[cell], middles[cell] = _path(u, v), (float(u.mean()), float(v.mean()))
    told = "all sky, Mollweide's projection: RA 180 in the middle and growing to the left, north is up"
    places = tuple(_place(c) for c in centres)
    return Geometry(order, outlines, middles, height, sky_frame(scale, height), told, places)


def sky_frame(scale: float, height: float) -> str:
    """The outline of the sky and a grid of 30 degrees."""
    out = [f'<ellipse class="tile" cx="{WIDTH / 2}" cy="{height / 2}" rx="{2 * scale:.1f}" ry="{scale:.1f}"/>']
    for ra in range(60, 360, 60):
        x, y = mollweide(np.full(37, float(ra)), np.linspace(-90, 90, 37))
        out.append(f'<path class="grid" d="{_line(x, y, scale, height)}"/>')
    for dec in range(-60, 90, 30):
        x, y = mollweide(np.array([0.0, 359.999]), np.full(2, float(dec)))
        out.append(f'<path class="grid" d="{_line(x, y, scale, height)}"/>')
    return "".join(out)


def _line(x: Floats, y: Floats, scale: float, height: float) -> str:
    return "M" + "L".join(
        f"{WIDTH / 2 + a * scale:.1f} {height / 2 - b * scale:.1f}" for a, b in zip(x, y, strict=True)
    )


def locator(title: str, places: tuple[tuple[float, float], ...]) -> str:
    """Where on the sky the patches lie."""
    scale, height = (WIDTH - 8) / 4, (WIDTH - 8) / 2 + 8
    x, y = mollweide(np.array([p[0] for p in places]), np.array([p[1] for p in places]))
    dots = "".join(
        f'<g class="mark c2"><title>patch {i + 1}: RA {ra:.2f}, Dec {dec:+.2f}</title>'
        f'<circle cx="{WIDTH / 2 + a * scale:.1f}" cy="{height / 2 - b * scale:.1f}" r="4"/></g>'
        for i, ((ra, dec), a, b) in enumerate(zip(places, x, y, strict=True))
    )
    about = f"{len(places)} patches on the whole sky, RA 180 in the middle and growing to the left"
    return picture(title, about, WIDTH, height, sky_frame(scale, height) + dots)


def shade(value: float, low: float, high: float) -> int:
    """The colour class of a value, 0 to CLASSES - 1."""
    if not high > low:
        return 0
    return min(CLASSES - 1, max(0, int((value - low) / (high - low) * CLASSES)))


def cell_map(
    title: str,
    about: str,
    geometry: Geometry,
    values: Mapping[int, float],
    low: float,
    high: float,
    say: Callable[[int], str],
) -> str:
    """Cells coloured by value; those without one are left open. `say` gives the words of a cell for hovering."""
    body = [geometry.frame]
    for cell in geometry.outlines:
        value = values.get(cell)
        style = "open" if value is None else f"q{shade(value, low, high)}"
        body.append(f'<use href="#cell{cell}" class="cell {style}"><title>{escape(say(cell))}</title></use>')
    return picture(title, about, WIDTH, geometry.height, "".join(body))


def arrow_map(
    title: str, about: str, geometry: Geometry, arrows: Mapping[int, tuple[float, float, str, str]], mas: float
) -> str:
    """Arrows from the middles of cells: east and north in mas, a title, a style. A bar shows how long `mas` are."""
    body = [geometry.frame]
    body += [f'<use href="#cell{c}" class="cell open"/>' for c in geometry.outlines]
    for cell, (east, north, told, style) in arrows.items():
        if cell not in geometry.middles:
            continue
        x, y = geometry.middles[cell]
        dx, dy = -east / mas * ARROW, -north / mas * ARROW
        long = sqrt(dx * dx + dy * dy)
        if long > 3 * ARROW:
            dx, dy = dx * 3 * ARROW / long, dy * 3 * ARROW / long
        body.append(
            f'<g class="mark {style}"><title>{escape(told)}</title><path d="M{x:.1f} {y:.1f}l{dx:.1f} {dy:.1f}"/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.6"/></g>'
        )
    y = geometry.height + 12
    body.append(f'<g class="mark c2"><path d="M4 {y:.1f}h{ARROW:g}"/></g>')
    body.append(f'<text class="label" x="{ARROW + 9:g}" y="{y + 3.5:.1f}">{number(mas)} mas</text>')
    return picture(title, about, WIDTH, geometry.height + 20, "".join(body))
