"""The objects of a cut-out as tokens: place and shape of each, as AION-1 codes its catalogues.

An object is five tokens: x, y, e1, e2, r. A source has as many as there are objects, nearest the middle first;
`lengths` tells how many.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from skycairn.tokenizers.aion import matched, read_published, write_published
from skycairn.tokenizers.codec import Codec, Layout, Measurement, Tokens
from skycairn.tokenizers.distribution import RESERVOIR, Knots, Single, narrowed
from skycairn.tokenizers.knots import N_KNOTS, Compat, taken
from skycairn.tokenizers.sketch import QuantileSketch

SIZE = 96
"""Pixels on a side of AION-1's cut-outs."""
CENTRE = SIZE // 2
"""0-based pixel of the source on both axes: pixel 80 of a 160-pixel cut-out, of which the middle 96 begin at 32."""
MOST = 10
"""Objects that AION-1's transformer takes."""
PIXEL_ARCSEC = 0.262
SHAPES = ("e1", "e2", "r")
PLACES = ("x", "y")
NAMES = (*PLACES, *SHAPES)
MISSING = 9999
"""AION-1's token of an object that is not there."""


class CutoutCatalogCodec(Codec):
    """Objects of a cut-out, five tokens each, by AION-1's offsets: x 0, y 96, e1 192, e2 1216, r 2240; 3264 in all.

    A measurement holds `x`, `y` (pixels, 0-based, the middle of a pixel being a whole number), `e1`, `e2`
    (ellipticity) and `r` (arcsec), each (n, any number), and `present`, bool, which of them are there. Positions are
    rounded to pixels of 96 x 96; one outside, and a NaN, is refused. Shapes go to knots as in `KnotsCodec`.

    `encode` puts the objects nearest the middle first and keeps the first `most`; places that are left hold
    `vocabulary`, which is no token: `lengths` says how many there are. With compat objects stay in their order, their
    number must be `most`, places that are left hold 9999 wherever they are, and shapes decode to upper ends.
    encode(decode(t)) == t for every t that `encode` gives, without compat.
    """

    kind: ClassVar[str] = "cutout_catalog"
    ordered = False

    def __init__(self, shapes: Iterable[Knots], most: int = MOST, compat: Compat | None = None) -> None:
        self.shapes = tuple(shapes)
        if len(self.shapes) != 3 or any(t.compression != "identity" for t in self.shapes):
            raise ValueError(
                f"cutout_catalog codec: {len(self.shapes)} tables of shapes, compressed by "
                f"{', '.join(t.compression for t in self.shapes)}; wanted three, of numbers as they are"
            )
        if compat not in (None, "aion"):
            raise ValueError(f"cutout_catalog codec: there is no compat {compat!r}; choose 'aion' or none")
        if most < 1:
            raise ValueError(f"cutout_catalog codec: {most} objects at most were asked for, wanted 1 or more")
        self.most = most
        self.compat = compat
        self.layout = Layout("sequence", (5 * most,))
        sizes = [SIZE, SIZE, *(len(t.knots) for t in self.shapes)]
        self.offsets = np.concatenate([[0], np.cumsum(sizes)])[:-1]
        self.sizes = np.array(sizes)
        self.vocabulary = int(self.sizes.sum())
        self.missing = MISSING if compat else self.vocabulary
        "what stands where there is no object"

    @classmethod
    def fit(
        cls,
        measurement: Measurement,
        most: int = MOST,
        n_knots: int = N_KNOTS,
        reservoir: int = RESERVOIR,
        compat: Compat | None = None,
    ) -> Self:
        """Fit the knots of the shapes to the objects of a measurement that are there."""
        found, present = _objects(measurement)
        sketches = [QuantileSketch.of(found[name][present], max(present.sum(), 1)) for name in SHAPES]
        return cls((Knots.of(s, "identity", None, n_knots, reservoir) for s in sketches), most, compat)

    def encode(self, measurement: Measurement) -> Tokens:
        """Tokens (n, 5 most)."""
        found, present = _objects(measurement)
        if self.compat and present.shape[1] != self.most:
            raise ValueError(
                f"cutout_catalog codec: room for {present.shape[1]} objects a source; AION-1's keeps places as they "
                f"are, so wanted {self.most}, as the codec's `most` says"
            )
        index = np.zeros((*present.shape, 5), np.int64)
        for k, name in enumerate(PLACES):
            index[present, k] = _pixels(name, found[name], present)
        for k, (name, table) in enumerate(zip(SHAPES, self.shapes, strict=True), 2):
            x = _shapes(name, found[name], present)
            index[present, k] = table.index_by_torch(x) if self.compat else table.index(x)
        tokens = np.where(present[..., None], index + self.offsets, self.missing)
        if not self.compat:
            distance = ((index[..., :2] - CENTRE) ** 2).sum(axis=2)
            order = np.argsort(np.where(present, distance, SIZE**3), axis=1, kind="stable")[:, : self.most]
            tokens = np.take_along_axis(tokens, order[..., None], axis=1)
        out = np.full((len(present), self.most, 5), self.missing, np.int64)
        out[:, : tokens.shape[1]] = tokens
        flat = out.reshape(len(out), self.n_tokens)
        return flat.astype(np.uint16) if self.dtype is np.uint16 else flat.astype(np.uint32)

    def lengths(self, tokens: NDArray[Any]) -> NDArray[np.int64]:
        """How many tokens of each source are there, the first of its row, shape (n,). ValueError with compat."""
        if self.compat:
            raise ValueError(
                "cutout_catalog codec: with compat objects stand anywhere in their row, so no length tells which are "
                "there; use the codec without compat for a pile"
            )
        return np.asarray(tokens != self.missing).sum(axis=1).astype(np.int64)

    def decode(self, tokens: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The measurement, each array (n, most), NaN where `present` is False. With compat its -1 stands there."""
        given = np.asarray(tokens)
        if given.dtype.kind not in "iu" or given.ndim != 2 or given.shape[1] != self.n_tokens:
            raise ValueError(
                f"cutout_catalog codec: tokens are {given.dtype} of shape {given.shape}, wanted integers of shape "
                f"(n, {self.n_tokens}); are they another codec's?"
            )
        index = given.astype(np.int64).reshape(len(given), self.most, 5)
        gone = index == self.missing
        own = index - self.offsets
        wrong = ~gone & ((own < 0) | (own >= self.sizes)) | (gone != gone[..., :1])
        if not self.compat:
            wrong |= np.maximum.accumulate(gone, axis=1) & ~gone
        if wrong.any():
            row, place, which = np.argwhere(wrong)[0]
            first = self.offsets[which]
            raise ValueError(
                f"cutout_catalog codec: row {row} holds token {index[row, place, which]} at position "
                f"{5 * place + which}, wanted the {NAMES[which]} of an object, {first} to "
                f"{first + self.sizes[which] - 1}, or {self.missing} there and in all that follow; are they another "
                "codec's?"
            )
        present = ~gone[..., 0]
        out: dict[str, NDArray[Any]] = {}
        for k, name in enumerate(NAMES):
            scale = np.arange(SIZE) if k < 2 else self._values(self.shapes[k - 2])
            out[name] = np.full(present.shape, -1.0 if self.compat else np.nan)
            out[name][present] = scale[own[present][:, k]]
        return {**out, "present": present}

    def _values(self, table: Knots) -> Single:
        return table.knots if self.compat else table.centres

    def sees(self, measurement: Measurement) -> NDArray[np.bool_]:
        """Which sources, shape (n,), have an object in their cut-out."""
        return np.logical_or.reduce(_objects(measurement)[1], axis=1)

    def settings(self) -> dict[str, Any]:
        """Most objects, and compat."""
        return {"most": self.most, "compat": self.compat}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Knots of the three shapes, and the reservoirs behind them where there are any."""
        out = {f"{name}.knots": t.knots for name, t in zip(SHAPES, self.shapes, strict=True)}
        kept = {f"{name}.reservoir": t.reservoir for name, t in zip(SHAPES, self.shapes, strict=True)}
        return out | {k: v for k, v in kept.items() if v is not None}

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        """The codec of these settings and arrays."""
        return cls((Knots(arrays[f"{n}.knots"], reservoir=arrays.get(f"{n}.reservoir")) for n in SHAPES), **settings)

    @classmethod
    def from_aion(cls, source: str | Path, most: int = MOST, compat: Compat | None = None) -> Self:
        """AION-1's codec of a folder or a repository; see `read_published`."""
        config, arrays = read_published(source, "catalog")
        missing = matched("catalog", config, {"mask_value": MISSING})["mask_value"]
        if missing != MISSING:
            raise ValueError(
                f"{source}: an object that is not there is {missing}, wanted {MISSING}; is it of a later release?"
            )
        arrays = {f"_{k}" if k.startswith("quantizer") else k: v for k, v in arrays.items()}
        shapes: dict[str, tuple[int, ...]] = {_place(p): () for p in PLACES}
        for name in SHAPES:
            shapes |= {_shape(name, "_index_to_val"): (N_KNOTS,), _shape(name, "_reservoir"): (RESERVOIR,)}
        taken(source, arrays, shapes)
        if any(int(arrays[_place(p)]) != SIZE for p in PLACES):
            raise ValueError(f"{source}: its cut-outs are not of {SIZE} pixels; is it of a later release?")
        pairs = ((arrays[_shape(n, "_index_to_val")], arrays[_shape(n, "_reservoir")]) for n in SHAPES)
        return cls((Knots(knots, reservoir=reservoir) for knots, reservoir in pairs), most, compat)

    def to_aion(self, folder: Path) -> Path:
        """Write it as the peer loads it; gives the codec's own folder. `most` is no part of it."""
        arrays: dict[str, NDArray[Any]] = {_place(p): np.array(SIZE, np.int64) for p in PLACES}
        for name, table in zip(SHAPES, self.shapes, strict=True):
            sample = table.sample()
            if len(table.knots) != N_KNOTS or len(sample) != RESERVOIR:
                raise ValueError(
                    f"cutout_catalog codec: {name} has {len(table.knots)} knots of {len(sample)} values; AION-1's have "
                    f"{N_KNOTS} of {RESERVOIR}: fit it so"
                )
            arrays |= {_shape(name, "_index_to_val"): table.knots, _shape(name, "_reservoir"): sample}
        return write_published(folder, "catalog", {"mask_value": MISSING}, arrays)


def _place(name: str) -> str:
    return f"_quantizer.quantizers.{name.upper()}._codebook_size"


def _shape(name: str, what: str) -> str:
    return f"_quantizer.quantizers.SHAPE_{name.upper()}.{what}"


def _objects(measurement: Measurement) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
    """The arrays, all (n, any), and which objects are there."""
    lacks = [k for k in (*NAMES, "present") if k not in measurement]
    if lacks:
        raise ValueError(f"cutout_catalog codec: the measurement lacks {', '.join(lacks)}")
    found = {k: np.asarray(measurement[k]) for k in (*NAMES, "present")}
    present = found.pop("present")
    if present.dtype != np.bool_ or present.ndim != 2 or any(v.shape != present.shape for v in found.values()):
        shapes = ", ".join(f"{k} {v.shape}" for k, v in found.items())
        raise ValueError(
            f"cutout_catalog codec: present is {present.dtype} of shape {present.shape}, with {shapes}; wanted bool of "
            "shape (n, objects), and the others alike"
        )
    if wrong := [k for k, v in found.items() if v.dtype.kind not in "fiu"]:
        raise ValueError(f"cutout_catalog codec: {wrong[0]} is {found[wrong[0]].dtype}, wanted numbers")
    return found, present


def _finite(name: str, given: NDArray[Any], present: NDArray[np.bool_]) -> NDArray[np.float64]:
    bad = present & ~np.isfinite(given)
    if bad.any():
        row, k = np.argwhere(bad)[0]
        raise ValueError(
            f"cutout_catalog codec: row {row}, object {k}: {name} is {given[row, k]}, wanted a finite number; leave "
            "the object out (present False)"
        )
    return given[present].astype(np.float64)


def _pixels(name: str, given: NDArray[Any], present: NDArray[np.bool_]) -> NDArray[np.int64]:
    at = np.floor(_finite(name, given, present) + 0.5)
    if (out := (at < 0) | (at >= SIZE)).any():
        row, k = np.argwhere(present)[int(np.argmax(out))]
        raise ValueError(
            f"cutout_catalog codec: row {row}, object {k}: {name} is {given[row, k]}, wanted a pixel from 0 to "
            f"{SIZE - 1} of the middle {SIZE}; leave the object out (present False)"
        )
    return at.astype(np.int64)


def _shapes(name: str, given: NDArray[Any], present: NDArray[np.bool_]) -> Single:
    return narrowed(f"cutout_catalog codec: {name}", _finite(name, given, present) + 0.0)


def cutout_objects(
    centres: tuple[NDArray[Any], NDArray[Any]],
    positions: tuple[NDArray[Any], NDArray[Any]],
    shapes: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
    most: int = MOST,
    pixel_arcsec: float = PIXEL_ARCSEC,
) -> dict[str, NDArray[Any]]:
    """The measurement of a catalogue around sources: what `CutoutCatalogCodec.encode` takes.

    `centres`: ra, dec (n,) of the cut-outs; `positions`: ra, dec (m,) of the catalogue's objects, the sources' own
    among them; `shapes`: e1, e2 (m,), and r (m,) in arcsec. Degrees, ICRS. A cut-out is 96 pixels on a side, north up,
    east left, on the plane that touches the sky at its source, which lies in pixel 48 of both axes. A brick's or a
    patch's own plane is turned against it, by a tenth of a pixel or so at the corner: where that tells, project by
    its WCS, and hand the pixels to the codec, which sorts them itself.
    Each array of the result is (n, most), objects by their distance from the source, the nearest `most`; NaN and
    `present` False where there are fewer. ValueError names the row of a position or a shape that is no number.
    """
    if most < 1 or not pixel_arcsec > 0:
        raise ValueError(f"cut-outs: {most} objects of {pixel_arcsec} arcsec a pixel, wanted 1 or more, and above 0")
    (ra0, dec0), (ra, dec), (e1, e2, r) = (
        tuple(_column(what, k, v) for k, v in enumerate(group))
        for what, group in (("centres", centres), ("positions", positions), ("shapes", shapes))
    )
    if len(ra0) != len(dec0) or len({len(v) for v in (ra, dec, e1, e2, r)}) != 1:
        raise ValueError(
            f"cut-outs: {len(ra0)} and {len(dec0)} centres, {[len(v) for v in (ra, dec, e1, e2, r)]} positions and "
            "shapes; wanted as many of each"
        )
    out: dict[str, NDArray[Any]] = {k: np.full((len(ra0), most), np.nan) for k in NAMES}
    out["present"] = np.zeros((len(ra0), most), bool)
    if not len(ra0) or not len(ra):
        return out
    # the corner's angle on the sky is below its length on the plane; a chord is below its angle
    reach = np.radians(np.hypot(CENTRE + 1, CENTRE + 1) * pixel_arcsec / 3600)
    near = cKDTree(_unit(ra, dec)).query_ball_point(_unit(ra0, dec0), reach)
    for i, found in enumerate(near):
        at = np.array(sorted(found), np.int64)
        if not len(at):
            continue
        east, north = _tangent(ra0[i], dec0[i], ra[at], dec[at])
        x, y = CENTRE - east / pixel_arcsec, CENTRE + north / pixel_arcsec
        inside = (np.floor(x + 0.5) >= 0) & (np.floor(x + 0.5) < SIZE) & (np.floor(y + 0.5) >= 0)
        inside &= np.floor(y + 0.5) < SIZE
        order = np.flatnonzero(inside)
        order = order[np.argsort(np.hypot(x - CENTRE, y - CENTRE)[order], kind="stable")][:most]
        for name, values in zip(NAMES, (x, y, e1[at], e2[at], r[at]), strict=True):
            out[name][i, : len(order)] = values[order]
        out["present"][i, : len(order)] = True
    return out


def _column(what: str, k: int, given: NDArray[Any]) -> NDArray[np.float64]:
    found = np.asarray(given)
    if found.ndim != 1 or found.dtype.kind not in "fiu":
        raise ValueError(f"cut-outs: {what}[{k}] is {found.dtype} of shape {found.shape}, wanted numbers (n,)")
    if not np.isfinite(found).all():
        row = int(np.argmin(np.isfinite(found)))
        raise ValueError(f"cut-outs: {what}[{k}]: row {row} is {found[row]}, wanted a finite number; leave its row out")
    return found.astype(np.float64)


def _unit(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.float64]:
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=1)


def _tangent(
    ra0: float, dec0: float, ra: NDArray[np.float64], dec: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gnomonic offsets to the east and to the north, arcsec."""
    a, d, d0 = np.radians(ra - ra0), np.radians(dec), np.radians(dec0)
    down = np.sin(d0) * np.sin(d) + np.cos(d0) * np.cos(d) * np.cos(a)
    east = np.cos(d) * np.sin(a) / down
    north = (np.cos(d0) * np.sin(d) - np.sin(d0) * np.cos(d) * np.cos(a)) / down
    return np.degrees(east) * 3600, np.degrees(north) * 3600
