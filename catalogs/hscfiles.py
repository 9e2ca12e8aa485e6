"""Where HSC-SSP keeps its files, and the list of tracts and patches.

The tree is that of hsc-release.mtk.nao.ac.jp, with a folder `sql` beside it for the tables that its database gave.
A tract is a tangent plane of about 1.7 degrees; its patches are named by two numbers, `4,5`, which the database packs
as 405. The form of the list's lines is not verified against the archive: what cannot be read is refused by line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from skycairn.catalogs.skybox import cell_boxes, touching
from skycairn.catalogs.survey import WORK_ORDER

ROOT = "https://hsc-release.mtk.nao.ac.jp"
BANDS = ("g", "r", "i", "z", "y")
"""Order of the bands in every cut-out. HSC-R and HSC-I hold the exposures through r2 and i2 too."""
TRACT_PATCHES = "rsrc/pdr3/tract_patches/info/tracts_patches_W.txt"
SQL_FOLDER = "sql/pdr3_wide"
SQL_LIST = f"{SQL_FOLDER}/sha256sum.txt"
NEIGHBOURS = tuple((dx, dy) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dx, dy) != (0, 0))

_NUMBER = r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?"
_TRACT = re.compile(r"\btract\D{0,4}(\d+)", re.IGNORECASE)
_PATCH = re.compile(r"\bpatch\D{0,4}(\d+)\s*,\s*(\d+)", re.IGNORECASE)
_POINT = re.compile(
    rf"\b(center|centre|corner\s*\d)\b[^()]*(?:\([^()\d]*\))?\s*:?\s*\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)",
    re.IGNORECASE,
)


def forced_path(tract: int) -> str:
    """Path of the database's table of a tract."""
    return f"{SQL_FOLDER}/forced-{tract}.fits"


def tract_of(name: str) -> int | None:
    """Tract of a table's file name, None where it is not such a name."""
    found = re.fullmatch(r"forced-(\d+)\.fits", name)
    return int(found[1]) if found else None


def calexp_path(band: str, tract: int, patch: int) -> str:
    """Path of a patch's coadd in a band; `patch` as the database packs it, p1 * 100 + p2."""
    name, numbers = f"HSC-{band.upper()}", f"{patch // 100},{patch % 100}"
    return f"archive/filetree/pdr3_wide/deepCoadd-results/{name}/{tract}/{numbers}/calexp-{name}-{tract}-{numbers}.fits"


def neighbour(patch: int, dx: int, dy: int) -> int | None:
    """The patch `dx` to the right (p1) and `dy` above (p2) in the same tract; None beyond the first ones."""
    p1, p2 = patch // 100 + dx, patch % 100 + dy
    return p1 * 100 + p2 if 0 <= p1 < 100 and 0 <= p2 < 100 else None


Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Patches:
    """The list of tracts and patches."""

    boxes: dict[int, Box]
    "ra_min, ra_max, dec_min, dec_max of each tract in degrees; `ra_min` may exceed `ra_max`"
    tract: NDArray[np.int64]
    "of each patch"
    patch: NDArray[np.int64]
    "p1 * 100 + p2"
    centre: NDArray[np.float64]
    "unit vectors, shape (n, 3)"
    reach: NDArray[np.float64]
    "chord from the centre to the farthest corner"

    def holding(self, ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.int64]:
        """Index of the patch whose centre is nearest, -1 where that is farther than its own corners."""
        out = np.full(len(ra), -1, dtype=np.int64)
        points = _vectors(ra, dec)
        seen = np.flatnonzero(np.isfinite(points).all(axis=1))
        if len(seen):
            apart, nearest = cKDTree(self.centre).query(points[seen])
            out[seen] = np.where(apart <= self.reach[nearest], nearest, -1)
        return out


def tracts_touching(boxes: Mapping[int, Box], cells: Iterable[int]) -> list[int]:
    """Tracts whose boxes touch these work cells, in order; the boxes by tract, as of `Patches`."""
    tracts = sorted(boxes)
    limits = np.array([boxes[t] for t in tracts], dtype=np.float64).reshape(-1, 4)
    touched = touching(limits, cell_boxes(cells, WORK_ORDER))
    return [t for t, touches in zip(tracts, touched, strict=True) if touches]


def read_patches(path: Path) -> Patches:
    """Read the list, lines like `Tract: 9812  Patch: 4,4  Corner0 (RA, Dec): (150.1 , 2.2)`, degrees.

    ValueError names the line that is none, or the patch with a single point. Lines of a tract without a patch widen
    its box.
    """
    points: dict[tuple[int, int], dict[str, tuple[float, float]]] = {}
    with path.open(encoding="utf-8") as lines:
        for number, text in enumerate(lines, start=1):
            if not re.search(r"\w", text) or text.lstrip().startswith("#"):
                continue
            tract, patch, point = _TRACT.search(text), _PATCH.search(text), list(_POINT.finditer(text))
            bad = tract is None or ("patch" in text.lower() and patch is None) or not point
            for found in point:
                bad |= not (0 <= float(found[2]) <= 360 and abs(float(found[3])) <= 90)
            if bad or tract is None:
                raise ValueError(
                    f"{path}: line {number} is {text.strip()[:80]!r}; wanted `Tract: T  Patch: X,Y  Corner0 (RA, Dec): "
                    "(ra , dec)` in degrees"
                )
            at = int(tract[1]), int(patch[1]) * 100 + int(patch[2]) if patch else -1
            for found in point:
                points.setdefault(at, {})[found[1].lower()[:2] + found[1][-1]] = float(found[2]), float(found[3])
    return _patches(path, points)


def _patches(path: Path, points: dict[tuple[int, int], dict[str, tuple[float, float]]]) -> Patches:
    if not any(patch >= 0 for _, patch in points):
        raise ValueError(f"{path}: lists no patch; is it the release's list of tracts and patches?")
    of_tract: dict[int, list[tuple[float, float]]] = {}
    names, centres, reaches = [], [], []
    for (tract, patch), known in sorted(points.items()):
        of_tract.setdefault(tract, []).extend(known.values())
        if patch < 0:
            continue
        corners = _vectors(*np.array([p for n, p in sorted(known.items()) if n.startswith("co")]).reshape(-1, 2).T)
        if len(corners) < 2:
            raise ValueError(f"{path}: patch {patch // 100},{patch % 100} of tract {tract} has no corners; wanted four")
        centre = corners.sum(axis=0)
        given = [p for n, p in known.items() if n.startswith("ce")]
        centre = _vectors(*np.array(given).T)[0] if given else centre / np.linalg.norm(centre)
        names.append((tract, patch))
        centres.append(centre)
        reaches.append(np.linalg.norm(corners - centre, axis=1).max() * (1 + 1e-6))
    numbers = np.array(names, dtype=np.int64)
    boxes = {tract: _box(found) for tract, found in of_tract.items()}
    return Patches(boxes, numbers[:, 0], numbers[:, 1], np.array(centres), np.array(reaches))


def _box(points: Iterable[tuple[float, float]]) -> Box:
    """Box about points that lie within 180 degrees of RA."""
    ra, dec = np.array(list(points)).T
    off = (ra - ra[0] + 180) % 360 - 180
    return (ra[0] + off.min()) % 360, (ra[0] + off.max()) % 360, dec.min(), dec.max()


def _vectors(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.float64]:
    ra, dec = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
