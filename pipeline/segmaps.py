"""Segmentation maps to train on, painted from the Legacy Surveys' catalogue of a pile about each of its objects."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skycairn.match.sky import unit_vectors
from skycairn.pile.store import Pile, Snapshot
from skycairn.pipeline.examples import HELD, MOST, MOST_HELD, PIECE, TRAIN, keys_of_objects, lowest
from skycairn.pipeline.task import concat, float64, int64
from skycairn.tokenizers.codec import Measurement
from skycairn.tokenizers.segmap import BRIGHTNESS, painted

SURVEY = "legacysurvey"
PIXEL_ARCSEC = 0.262
RADIUS_ARCSEC = 30.0
"""How far beyond the cut-out's corner a source may lie and still reach into it."""


class _Sources(NamedTuple):
    vector: NDArray[np.float64]
    "(n, 3)"
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    shape: NDArray[np.float64]
    "(n, 3): e1, e2, half-light radius in arcsec"
    type: NDArray[np.str_]


class SegmapExamples:
    """Examples (tokenizers/training.py) of maps: in the middle of each is a source of the Legacy Surveys in an object.

    Those of the split `train` are learned from, those of `validation` held out, as with images (examples.py). Painted
    are all valid sources, so that a map shows what the catalogue's cuts have left.
    """

    def __init__(
        self, pile: Pile, snapshot: Snapshot, side: int = 96, most: int | None = MOST, most_held: int = MOST_HELD
    ) -> None:
        """`most`: None for all. ValueError where the pile has no such source on the training sky."""
        from scipy.spatial import cKDTree

        self.side = side
        if f"{SURVEY}.wide" not in snapshot.tables:
            raise ValueError(f"{pile.root} holds no {SURVEY}, whose catalogue segmentation maps are painted from")
        names = ["key", "ra", "dec", "type", "shape_e1", "shape_e2", "shape_r"]
        entries = snapshot.entries(f"{SURVEY}.wide")
        wide = concat([pile.read_table(e.part, columns=names) for e in entries])
        key = int64(wide, "key")
        self._sources = _sources(wide)
        self._tree = cKDTree(self._sources.vector)
        order = np.argsort(key)
        self._rows = {}
        for split, n in ((TRAIN, most), (HELD, most_held)):
            chosen = lowest(keys_of_objects(pile, snapshot, SURVEY, split), n)
            self._rows[split] = order[np.searchsorted(key, chosen, sorter=order)]
        if not len(self._rows[TRAIN]):
            raise ValueError(f"{pile.root}: there is no {SURVEY} source on the training sky; build more of the sky")
        digest = hashlib.sha256(f"{side}".encode())
        for content in sorted(e.part.content_id for e in (*entries, *snapshot.entries("objects"))):
            digest.update(content.encode())
        digest.update(b"".join(key[rows].astype("<i8").tobytes() for rows in self._rows.values()))
        self.identity = digest.hexdigest()

    def count(self, modality: str) -> int:
        """How many there are to learn from."""
        return len(self._rows[TRAIN])

    def count_held(self, modality: str) -> int:
        """How many are held out."""
        return len(self._rows[HELD])

    def draw(self, modality: str, n: int, rng: np.random.Generator) -> Measurement:
        """Maps about sources of the training sky, with replacement."""
        return self._maps(rng.choice(self._rows[TRAIN], n))

    def held(self, modality: str) -> Iterator[Measurement]:
        """Maps about the held-out sources in the order of their hashes."""
        rows = self._rows[HELD]
        for first in range(0, len(rows), PIECE):
            yield self._maps(rows[first : first + PIECE])

    def _maps(self, rows: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        return {"value": np.stack([self._map(int(row)) for row in rows])}

    def _map(self, row: int) -> NDArray[np.float32]:
        s = self._sources
        reach = np.radians((self.side / np.sqrt(2) * PIXEL_ARCSEC + RADIUS_ARCSEC) / 3600)
        near = np.array(self._tree.query_ball_point(s.vector[row], 2 * np.sin(reach / 2)), np.int64)
        east, north = _offsets(s.ra[row], s.dec[row], s.vector[near])
        middle = self.side // 2
        x, y = middle - east / PIXEL_ARCSEC, middle + north / PIXEL_ARCSEC
        e1, e2, radius = s.shape[near].T
        return painted(x, y, e1, e2, radius, s.type[near], self.side, pixel_arcsec=PIXEL_ARCSEC)


def _offsets(ra: float, dec: float, vector: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Arcsec east and north of a place, on the plane that touches the sphere there (gnomonic)."""
    a, d = np.radians(ra), np.radians(dec)
    east = np.array([-np.sin(a), np.cos(a), 0.0])
    north = np.array([-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a), np.cos(d)])
    along = vector @ np.array([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])
    arcsec = np.degrees(1) * 3600
    return vector @ east / along * arcsec, vector @ north / along * arcsec


def _sources(wide: pa.Table) -> _Sources:
    """Of each row; what has no shape that is one is a circle of radius 0, painted as points are."""
    ra, dec = float64(wide, "ra"), float64(wide, "dec")
    type_ = np.char.strip(
        np.asarray(wide["type"].combine_chunks().fill_null("PSF").to_numpy(zero_copy_only=False), str)
    )
    shape = np.stack([float64(wide, n) for n in ("shape_e1", "shape_e2", "shape_r")], axis=1)
    shape[~(np.isfinite(shape).all(axis=1) & (shape[:, 2] >= 0) & (np.hypot(shape[:, 0], shape[:, 1]) < 1))] = 0.0
    type_[~np.isin(type_, [*BRIGHTNESS, "DUP"])] = "PSF"
    return _Sources(unit_vectors(ra, dec).T, ra, dec, shape, type_)
