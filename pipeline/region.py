"""The part of the sky that a recipe asks for: a cone, a box, a polygon, cells, a MOC, or circles round targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import healpy
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from skycairn.catalogs.survey import WORK_ORDER
from skycairn.match import sky

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Region(ABC):
    """A non-empty part of the sky."""

    kind: ClassVar[str]

    def contains(self, ra: ArrayLike, dec: ArrayLike, margin_arcsec: float = 0.0) -> Bools:
        """Whether each position lies in the region or at most `margin_arcsec` outside."""
        if not margin_arcsec >= 0:
            raise ValueError(f"the margin is {margin_arcsec} arcsec; wanted 0 or more")
        lon, lat = np.atleast_1d(np.asarray(ra, np.float64)), np.atleast_1d(np.asarray(dec, np.float64))
        sky.check_positions(lon, lat)
        return self._contains(lon, lat, margin_arcsec / 3600)

    @abstractmethod
    def _contains(self, ra: Floats, dec: Floats, margin_deg: float) -> Bools: ...

    def work_cells(self, margin_arcsec: float = 0.0) -> NDArray[np.int64]:
        """Sorted order-6 cells: every cell that holds a position in the region or its margin, perhaps a few more."""
        listed = np.arange(healpy.nside2npix(1 << WORK_ORDER))
        listed = self._touched(WORK_ORDER, listed, margin_arcsec)
        # finer cells hug the region closer; a wide region gains little and would cost much
        deeper = next((n for n in (4, 3, 2, 1) if listed.size * 4**n <= 1 << 18), 0)
        if not deeper:
            return listed
        children = (listed[:, None] << 2 * deeper | np.arange(4**deeper)).ravel()
        return np.unique(self._touched(WORK_ORDER + deeper, children, margin_arcsec) >> 2 * deeper)

    def _touched(self, order: int, cells: NDArray[np.int64], margin_arcsec: float) -> NDArray[np.int64]:
        # a hair more than the widest cell's radius, since centres and points are rounded
        reach = float(np.degrees(healpy.max_pixrad(1 << order))) * 3600 * (1 + 1e-9) + 1e-6
        return cells[self.contains(*sky.centres(order, cells), margin_arcsec + reach)]

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What `from_settings` needs, as JSON values."""


@dataclass(frozen=True)
class Cone(Region):
    """All within `radius_deg` of a position."""

    kind: ClassVar[str] = "cone"
    ra: float
    dec: float
    radius_deg: float

    def __post_init__(self) -> None:
        _check_point(self.kind, self.ra, self.dec)
        if not 0 < self.radius_deg <= 180:
            raise ValueError(f"cone: radius_deg is {self.radius_deg}; wanted above 0, at most 180")

    def _contains(self, ra: Floats, dec: Floats, margin_deg: float) -> Bools:
        centre = sky.unit_vectors(np.array([self.ra]), np.array([self.dec]))
        return np.asarray(np.degrees(sky.angle(sky.unit_vectors(ra, dec), centre)) <= self.radius_deg + margin_deg)

    def settings(self) -> dict[str, Any]:
        """See `Region`."""
        return {"kind": self.kind, "ra": self.ra, "dec": self.dec, "radius_deg": self.radius_deg}


@dataclass(frozen=True)
class Box(Region):
    """Between two meridians and two parallels, borders included; ra_min > ra_max crosses RA 0."""

    kind: ClassVar[str] = "box"
    ra_min: float
    ra_max: float
    dec_min: float
    dec_max: float

    def __post_init__(self) -> None:
        _check_point(self.kind, self.ra_min, self.dec_min)
        _check_point(self.kind, self.ra_max, self.dec_max)
        if self.ra_min == self.ra_max or self.dec_min >= self.dec_max or (self.ra_min, self.ra_max) == (360, 0):
            raise ValueError(
                f"box: ra {self.ra_min} to {self.ra_max}, dec {self.dec_min} to {self.dec_max} is empty; "
                "wanted ra_min other than ra_max, dec_min below dec_max"
            )

    def _contains(self, ra: Floats, dec: Floats, margin_deg: float) -> Bools:
        lon = ra % 360
        low, high = self.ra_min % 360, self.ra_max if self.ra_max == 360 else self.ra_max % 360
        between = (lon >= low) & (lon <= high) if low < high else (lon >= low) | (lon <= high)
        if high == 360:
            between |= lon == 0
        inside = between & (dec >= self.dec_min - margin_deg) & (dec <= self.dec_max + margin_deg)
        if margin_deg == 0:
            return np.asarray(inside)
        # beyond its meridians the nearest point of the box lies on one of them
        rest = np.flatnonzero(~inside)
        p = sky.unit_vectors(ra[rest], dec[rest])
        near = np.zeros(rest.size, bool)
        for meridian in (self.ra_min, self.ra_max):
            across = np.cos(np.radians(ra[rest] - meridian)) * np.cos(np.radians(dec[rest]))
            foot = np.degrees(np.arctan2(np.sin(np.radians(dec[rest])), across))
            for at in (np.clip(foot, self.dec_min, self.dec_max), self.dec_min, self.dec_max):
                q = sky.unit_vectors(np.full(rest.size, meridian), np.broadcast_to(at, rest.shape).astype(float))
                near |= np.degrees(sky.angle(p, q)) <= margin_deg
        inside[rest] = near
        return np.asarray(inside)

    def settings(self) -> dict[str, Any]:
        """See `Region`."""
        names = ("ra_min", "ra_max", "dec_min", "dec_max")
        return {"kind": self.kind, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class CellList(Region):
    """HEALPix cells of one order. Its margin is at least as wide as asked for, in places several times as wide."""

    kind: ClassVar[str] = "cells"
    order: int
    cells: tuple[int, ...]

    def __post_init__(self) -> None:
        if not all(isinstance(number, int) for number in (self.order, *self.cells)):
            raise ValueError("cells: the order or a cell is not an integer; wanted integers")
        if not 0 <= self.order <= sky.MAX_ORDER:
            raise ValueError(f"cells: order is {self.order}; wanted 0 to {sky.MAX_ORDER}")
        if not self.cells:
            raise ValueError("cells: the list is empty; wanted at least one cell")
        if min(self.cells) < 0 or max(self.cells) >= 12 * 4**self.order:
            raise ValueError(
                f"cells: {min(self.cells)} to {max(self.cells)} at order {self.order}; "
                f"wanted 0 to {12 * 4**self.order - 1}"
            )

    def _contains(self, ra: Floats, dec: Floats, margin_deg: float) -> Bools:
        wanted = np.array(self.cells, np.int64)
        at = sky.healpix29(ra, dec)
        inside = np.isin(sky.cells(at, self.order), wanted)
        if margin_deg == 0:
            return inside
        rest = np.flatnonzero(~inside)
        try:
            order = sky.order_for(margin_deg * 3600)
        except ValueError:
            return np.ones(inside.size, bool)
        around = healpy.get_all_neighbours(1 << order, sky.cells(at[rest], order), nest=True)
        near = np.zeros(rest.size, bool)
        for row in np.concatenate([around, sky.cells(at[rest], order)[None]]):
            if order >= self.order:
                near |= (row >= 0) & np.isin(row >> 2 * (order - self.order), wanted)
            else:
                near |= np.isin(row, wanted >> 2 * (self.order - order))
        inside[rest] = near
        return inside

    def work_cells(self, margin_arcsec: float = 0.0) -> NDArray[np.int64]:
        """See `Region`; exact without a margin."""
        if margin_arcsec > 0:
            return super().work_cells(margin_arcsec)
        wanted = np.unique(np.array(self.cells, np.int64))
        if self.order >= WORK_ORDER:
            return np.unique(wanted >> 2 * (self.order - WORK_ORDER))
        n = 2 * (WORK_ORDER - self.order)
        return (wanted[:, None] << n | np.arange(1 << n)).ravel()

    def settings(self) -> dict[str, Any]:
        """See `Region`."""
        return {"kind": self.kind, "order": self.order, "cells": list(self.cells)}


@dataclass(frozen=True)
class Targets(Region):
    """Circles of `radius_arcsec` round each of many positions."""

    kind: ClassVar[str] = "targets"
    ra: tuple[float, ...]
    dec: tuple[float, ...]
    radius_arcsec: float
    _tree: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.ra:
            raise ValueError("targets: the table is empty; wanted at least one position")
        if not 0 < self.radius_arcsec <= 180 * 3600:
            raise ValueError(f"targets: radius_arcsec is {self.radius_arcsec}; wanted above 0, at most 648000")
        ra, dec = np.array(self.ra, np.float64), np.array(self.dec, np.float64)
        sky.check_positions(ra, dec, "targets")
        object.__setattr__(self, "_tree", cKDTree(sky.unit_vectors(ra, dec).T))

    def _contains(self, ra: Floats, dec: Floats, margin_deg: float) -> Bools:
        p = sky.unit_vectors(ra, dec)
        _, nearest = self._tree.query(p.T)
        reach = self.radius_arcsec / 3600 + margin_deg
        return np.asarray(np.degrees(sky.angle(p, self._tree.data[nearest].T)) <= reach)

    def settings(self) -> dict[str, Any]:
        """See `Region`."""
        return {"kind": self.kind, "ra": list(self.ra), "dec": list(self.dec), "radius_arcsec": self.radius_arcsec}


@dataclass(frozen=True)
class Polygon(Region):
    """Inside a closed line of great circles through corners (ra, dec) in degrees, its border included.

    Either sense, and it need not be convex; all corners lie within 80 degrees of their middle.
    """

    kind: ClassVar[str] = "polygon"
    corners: tuple[tuple[float, float], ...]
    _middle: Any = field(init=False, repr=False, compare=False)
    _plane: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not all(isinstance(c, list | tuple) and len(c) == 2 for c in self.corners) or len(self.corners) < 3:
            raise ValueError("polygon: corners are not three or more pairs of [ra, dec] in degrees")
        object.__setattr__(self, "corners", tuple((float(ra), float(dec)) for ra, dec in self.corners))
        for corner in self.corners:
            _check_point(self.kind, *corner)
        points = sky.unit_vectors(*np.array(self.corners).T)
        mean = points.mean(axis=1)
        norm = float(np.linalg.norm(mean))
        middle = mean / norm if norm > 1e-9 else points[:, 0]
        if np.degrees(np.arccos(np.clip(middle @ points, -1, 1))).max() > 80:
            raise ValueError("polygon: a corner is more than 80 degrees from the middle; divide it into smaller ones")
        object.__setattr__(self, "_middle", middle)
        x, y = self._projected(points)
        object.__setattr__(self, "_plane", (x, y))
        if _crosses_itself(x, y):
            raise ValueError("polygon: two of its sides cross; give the corners in order round the outline")

    def _projected(self, points: Floats) -> tuple[Floats, Floats]:
        """Gnomonic projection about the middle, in which great circles are straight lines."""
        pole = np.array([0.0, 0.0, 1.0]) if abs(self._middle[2]) < 0.9 else np.array([1.0, 0.0, 0.0])
        east = np.cross(pole, self._middle)
        east /= np.linalg.norm(east)
        north = np.cross(self._middle, east)
        return (east @ points) / (self._middle @ points), (north @ points) / (self._middle @ points)

    def _contains(self, ra: Floats, dec: Floats, margin_deg: float) -> Bools:
        points = sky.unit_vectors(ra, dec)
        front = self._middle @ points > np.cos(np.radians(89))
        inside = np.zeros(ra.size, bool)
        x, y = self._projected(points[:, front])
        inside[front] = _even_odd(x, y, *self._plane)
        near = max(margin_deg, 1e-12)
        corners = sky.unit_vectors(*np.array(self.corners).T)
        for a, b in zip(corners.T, np.roll(corners, -1, axis=1).T, strict=True):
            rest = np.flatnonzero(~inside)
            inside[rest] = _from_arc(points[:, rest], a, b) <= near
        return inside

    def settings(self) -> dict[str, Any]:
        """See `Region`."""
        return {"kind": self.kind, "corners": [list(c) for c in self.corners]}


def _even_odd(x: Floats, y: Floats, xs: Floats, ys: Floats) -> Bools:
    """Whether points lie inside a closed line in the plane: a ray to the right crosses it an odd number of times."""
    odd = np.zeros(x.size, bool)
    for x1, y1, x2, y2 in zip(xs, ys, np.roll(xs, -1), np.roll(ys, -1), strict=True):
        spans = (y1 > y) != (y2 > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            odd ^= spans & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
    return odd


def _crosses_itself(x: Floats, y: Floats) -> bool:
    """Whether two sides that do not meet in a corner cross."""
    n = len(x)

    def side(i: int, j: int) -> float:
        """Of corner j, seen along the side that begins at corner i."""
        k = (i + 1) % n
        return float((x[k] - x[i]) * (y[j] - y[i]) - (y[k] - y[i]) * (x[j] - x[i]))

    pairs = ((i, j) for i in range(n) for j in range(i + 2, n) if (j + 1) % n != i)
    return any(side(i, j) * side(i, (j + 1) % n) < 0 and side(j, i) * side(j, (i + 1) % n) < 0 for i, j in pairs)


def _from_arc(points: Floats, a: Floats, b: Floats) -> Floats:
    """Degrees from points to the shorter great-circle arc between unit vectors a and b."""
    ends = np.minimum(sky.angle(points, a[:, None]), sky.angle(points, b[:, None]))
    normal = np.cross(a, b)
    if np.linalg.norm(normal) < 1e-15:
        return np.degrees(ends)
    normal /= np.linalg.norm(normal)
    beside = (np.cross(normal, a) @ points >= 0) & (np.cross(b, normal) @ points >= 0)
    across = np.abs(np.arcsin(np.clip(normal @ points, -1, 1)))
    return np.degrees(np.where(beside, across, ends))


@dataclass(frozen=True)
class Moc(Region):
    """The cells of an IVOA multi-order coverage map, in its ASCII form. A margin is as that of `CellList`."""

    kind: ClassVar[str] = "moc"
    moc: str
    _parts: tuple[CellList, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.moc, str):
            raise ValueError(f"moc: {self.moc!r}; wanted text as 5/8-10 6/44, or `file` with a MOC's file")
        try:
            parts = sky.moc_cells(self.moc)
        except ValueError as error:
            raise ValueError(f"moc: {self.moc[:60]!r} is no MOC in its ASCII form ({error})") from error
        if not parts:
            raise ValueError("moc: it is empty; wanted at least one cell")
        object.__setattr__(self, "_parts", tuple(CellList(order, cells) for order, cells in parts))

    def _contains(self, ra: Floats, dec: Floats, margin_deg: float) -> Bools:
        return np.asarray(np.any([part._contains(ra, dec, margin_deg) for part in self._parts], axis=0))

    def work_cells(self, margin_arcsec: float = 0.0) -> NDArray[np.int64]:
        """See `Region`; exact without a margin."""
        return np.unique(np.concatenate([part.work_cells(margin_arcsec) for part in self._parts]))

    def settings(self) -> dict[str, Any]:
        """See `Region`."""
        return {"kind": self.kind, "moc": self.moc}


KINDS: Mapping[str, type[Region]] = {c.kind: c for c in (Cone, Box, Polygon, CellList, Moc, Targets)}


def from_settings(settings: Mapping[str, Any]) -> Region:
    """The region of a recipe's settings: `kind`, and that kind's fields. Nonsense is a one-line ValueError."""
    rest = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items() if name != "kind"}
    kind = KINDS.get(str(settings.get("kind")))
    if kind is None:
        raise ValueError(f"region kind is {settings.get('kind')!r}; wanted one of {', '.join(KINDS)}")
    wanted = [f.name for f in fields(kind) if f.init]  # type: ignore[arg-type]
    if sorted(rest) != sorted(wanted):
        raise ValueError(f"region {kind.kind!r} has settings {', '.join(sorted(rest))}; wanted {', '.join(wanted)}")
    try:
        return kind(**rest)
    except TypeError as error:
        raise ValueError(
            f"region {kind.kind!r}: a setting is not what it should be ({error}); wanted numbers"
        ) from error


def _check_point(kind: str, ra: float, dec: float) -> None:
    if not (0 <= ra <= 360 and -90 <= dec <= 90):
        raise ValueError(f"{kind}: ra {ra}, dec {dec} is not on the sky; wanted 0 <= ra <= 360, -90 <= dec <= 90")
