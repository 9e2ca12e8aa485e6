"""Pairs and objects by brute force, for `match_truth.py` and the tests: slow, plain, and sharing no code with ours.

Candidates come from one k-d tree per pair of surveys and, for stars faster than the tree allows, from all other
sources; separations from a search over time; groups from dictionaries and lists (docs/contracts.md, 3 and 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial import cKDTree

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

UAS = np.degrees(1) * 3.6e9
SLOW_ARCSEC_PER_YEAR = 0.3
"""Faster sources are held against every other source."""
STEPS = 60
"""Of the search over time, each of which leaves two thirds of the interval."""


@dataclass(frozen=True)
class Sources:
    """All sources of all surveys, in the order of (rank, key)."""

    names: list[str]
    survey: I64
    key: I64
    unit: F64
    "(n, 3) at the reference epoch, or at any time"
    velocity: F64
    "(n, 3) radians a year; 0 where not known"
    epoch: F64
    low: F64
    high: F64
    moving: NDArray[np.bool_]
    named: frozenset[tuple[int, int]]
    "sources that name one another by an id, the lower number first"


@dataclass(frozen=True)
class Found:
    """What brute force finds; sources are numbers, pairs are sorted."""

    a: I64
    b: I64
    separation_uas: I64
    mutual: NDArray[np.bool_]
    anchor: I64
    "of each source"
    blend: I64
    "first source of the blend group of each source"


def sources(tables: Mapping[str, pa.Table], ranks: Mapping[str, int]) -> Sources:
    """Of slim tables."""
    names = sorted(tables, key=lambda name: ranks[name])
    columns: dict[str, list[NDArray[Any]]] = {}
    for i, name in enumerate(names):
        table = tables[name].sort_by("key")
        columns.setdefault("key", []).append(table["key"].to_numpy())
        columns.setdefault("survey", []).append(np.full(table.num_rows, i))
        for column in ("ra", "dec", "pmra", "pmdec", "epoch", "epoch_min", "epoch_max"):
            columns.setdefault(column, []).append(table[column].cast(pa.float64()).to_numpy())
    c = {name: np.concatenate(parts) for name, parts in columns.items()}
    a, d = np.radians(c["ra"]), np.radians(c["dec"])
    unit = np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=1)
    east = np.stack([-np.sin(a), np.cos(a), np.zeros_like(a)], axis=1)
    north = np.cross(unit, east)
    moving = ~np.isnan(c["pmra"])
    pmra, pmdec = (np.radians(np.where(moving, c[n], 0) / 3.6e6)[:, None] for n in ("pmra", "pmdec"))
    low, high = (np.where(moving, c["epoch"], c[n]) for n in ("epoch_min", "epoch_max"))
    if np.isnan(low).any() or np.isnan(high).any():
        raise ValueError("brute force wants epochs of every source")
    start = dict(zip(names, np.searchsorted(c["survey"], range(len(names))).tolist(), strict=True))
    number = {
        (name, key): start[name] + i for name in names for i, key in enumerate(sorted(tables[name]["key"].to_pylist()))
    }
    named = set()
    for name in names:
        for column in (n for n in tables[name].column_names if n.startswith("link.")):
            for key, other in zip(tables[name]["key"].to_pylist(), tables[name][column].to_pylist(), strict=True):
                if other is not None and (there := number.get((column[5:], other))) is not None:
                    named.add((min(number[name, key], there), max(number[name, key], there)))
    return Sources(
        names, c["survey"], c["key"], unit, pmra * east + pmdec * north, c["epoch"], low, high, moving, frozenset(named)
    )


def separations(s: Sources, a: I64, b: I64) -> I64:
    """Closest approach of each two sources, micro-arcseconds."""
    out = np.zeros(a.size, np.int64)
    for begin in range(0, a.size, 200_000):
        out[begin : begin + 200_000] = _closest(s, a[begin : begin + 200_000], b[begin : begin + 200_000])
    return out


def _closest(s: Sources, a: I64, b: I64) -> I64:
    both = s.moving[a] & s.moving[b]
    other = np.where(s.moving[a], b, a)
    low = np.where(both, np.minimum(s.low[a], s.low[b]), s.low[other])
    high = np.where(both, np.maximum(s.high[a], s.high[b]), s.high[other])
    best = _at(s, a, b, low)
    search = np.flatnonzero((s.moving[a] | s.moving[b]) & (high > low))
    a, b, low, high = a[search], b[search], low[search], high[search]
    for _ in range(STEPS if search.size else 0):
        third = (high - low) / 3
        nearer = _at(s, a, b, low + third) < _at(s, a, b, high - third)
        low, high = np.where(nearer, low, low + third), np.where(nearer, high - third, high)
    best[search] = _at(s, a, b, (low + high) / 2)
    return np.asarray(np.rint(best * UAS), np.int64)


def _at(s: Sources, a: I64, b: I64, time: F64) -> F64:
    p, q = _position(s, a, time), _position(s, b, time)
    return np.asarray(np.arctan2(np.linalg.norm(np.cross(p, q), axis=1), (p * q).sum(axis=1)))


def _position(s: Sources, i: I64, time: F64) -> F64:
    speed = np.linalg.norm(s.velocity[i], axis=1)
    angle = np.where(s.moving[i], speed * (time - np.where(s.moving[i], s.epoch[i], 0)), 0)[:, None]
    along = s.velocity[i] / np.where(speed > 0, speed, 1)[:, None]
    return s.unit[i] * np.cos(angle) + along * np.sin(angle)


def candidates(s: Sources, x: int, y: int, radius_arcsec: float) -> tuple[I64, I64, I64]:
    """All pairs of two surveys within the radius, and their separations."""
    ours, theirs = np.flatnonzero(s.survey == x), np.flatnonzero(s.survey == y)
    if not ours.size or not theirs.size:
        return (np.zeros(0, np.int64),) * 3
    years = max(s.high.max() - s.low.min(), 1e-9)
    reach = np.linalg.norm(s.velocity, axis=1) * years
    slow = reach <= np.radians(SLOW_ARCSEC_PER_YEAR * years / 3600)
    radius = np.radians(radius_arcsec / 3600)
    p, q = ours[slow[ours]], theirs[slow[theirs]]
    widest = radius + reach[p].max(initial=0) + reach[q].max(initial=0)
    close = cKDTree(s.unit[p]).sparse_distance_matrix(cKDTree(s.unit[q]), widest * 1.001, output_type="ndarray")
    pairs = [(p[close["i"]], q[close["j"]])]
    for own, other, flip in ((ours, theirs, False), (theirs, ours, True)):
        for k in own[~slow[own]]:
            chord = np.linalg.norm(s.unit[other] - s.unit[k], axis=1)
            near = other[chord <= (radius + reach[k] + reach[other]) * 1.001]
            me = np.full(near.size, k)
            pairs.append((near, me) if flip else (me, near))
    a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
    once = np.unique(a * s.key.size + b)
    a, b = once // s.key.size, once % s.key.size
    near = np.linalg.norm(s.unit[a] - s.unit[b], axis=1) <= (radius + reach[a] + reach[b]) * 1.001
    a, b = a[near], b[near]
    separation = separations(s, a, b)
    kept = separation <= round(radius_arcsec * 1e6)
    return a[kept], b[kept], separation[kept]


def brute_force(s: Sources, radius_arcsec: Mapping[tuple[str, str], float]) -> Found:
    """All candidates, edges, objects and blend groups; `radius_arcsec` by pair, the lower rank first."""
    parts, limits = [], []
    for x, y in combinations(range(len(s.names)), 2):
        radius = radius_arcsec[s.names[x], s.names[y]]
        parts.append(candidates(s, x, y, radius))
        limits.append(np.full(parts[-1][0].size, round(radius * 1e6)))
    a, b, separation = (np.concatenate(side) for side in zip(*parts, strict=True))
    limit = np.concatenate(limits)
    order = np.lexsort((b, a))
    a, b, separation, limit = a[order], b[order], separation[order], limit[order]

    rows = list(zip(a.tolist(), b.tolist(), separation.tolist(), strict=True))
    survey = s.survey.tolist()
    promised = {(p, survey[q]) for x, y, _ in rows if (x, y) in s.named for p, q in ((x, y), (y, x))}
    nearest: dict[tuple[int, int], tuple[int, int, int]] = {}
    for x, y, sep in rows:
        turn = 0 if (x, y) in s.named else 2 if promised & {(x, survey[y]), (y, survey[x])} else 1
        for own, other in ((x, y), (y, x)):
            at = own, survey[other]
            nearest[at] = min(nearest.get(at, (turn, sep, other)), (turn, sep, other))
    mutual = [nearest[x, survey[y]][2] == y and nearest[y, survey[x]][2] == x for x, y, _ in rows]

    near = {(x, y): sep for x, y, sep in rows}
    common = prod({*limit.tolist()})
    edges = [
        ((x, y) not in s.named, sep * (common // r), x, y)
        for (x, y, sep), r, yes in zip(rows, limit.tolist(), mutual, strict=True)
        if yes
    ]
    group = {x: [x] for row in rows for x in row[:2]}
    for *_, x, y in sorted(edges):
        one, two = group[x], group[y]
        if one is not two and _agree(s, one, two, near, radius_arcsec):
            one += two
            group |= dict.fromkeys(two, one)
    anchor = np.arange(s.key.size)
    for x, members in group.items():
        anchor[x] = min(members)

    blend = {x: [x] for x in group}
    for x, y, _ in rows:
        one, two = blend[x], blend[y]
        if one is not two:
            one, two = (one, two) if len(one) >= len(two) else (two, one)
            one += two
            blend |= dict.fromkeys(two, one)
    first = np.arange(s.key.size)
    for x, members in blend.items():
        first[x] = min(members)
    return Found(a, b, separation, np.array(mutual, bool), anchor, first)


def _agree(
    s: Sources,
    one: list[int],
    two: list[int],
    near: Mapping[tuple[int, int], int],
    radius_arcsec: Mapping[tuple[str, str], float],
) -> bool:
    """Every two of different groups are candidates, or lie within their radius when carried along by a known motion."""
    for p in one:
        for q in two:
            if (min(p, q), max(p, q)) in near:
                continue
            if s.moving[p] or s.moving[q] or s.survey[p] == s.survey[q]:
                return False
            low, high = (s.names[s.survey[x]] for x in (min(p, q), max(p, q)))
            limit = round(radius_arcsec[low, high] * 1e6)
            movers = [m for m in one + two if s.moving[m]]
            sums = [sum(near.get((min(m, x), max(m, x)), limit + 1) for x in (p, q)) for m in movers]
            if min(sums, default=limit + 1) > limit:
                return False
    return True


def numbers(s: Sources, names: pa.ChunkedArray, keys: pa.ChunkedArray) -> I64:
    """The number of each source that a table names by survey and key."""
    out = np.full(len(keys), -1)
    of = np.asarray(names.cast(pa.string()))
    wanted = np.asarray(keys.to_numpy())
    for i, name in enumerate(s.names):
        start, stop = np.searchsorted(s.survey, [i, i + 1])
        mine = of == name
        at = np.searchsorted(s.key[start:stop], wanted[mine])
        at = np.minimum(at, stop - start - 1)
        out[mine] = np.where(s.key[start:stop][at] == wanted[mine], start + at, -1)
    return out


def differences(s: Sources, truth: Found, members: pa.Table, pairs: pa.Table) -> dict[str, int]:
    """How many pairs, separations (by more than 1 uas), edges, objects and blend groups are not brute force's.

    `members` and `pairs` are tables of `pipeline.grouping.Groups`, in any order, whole.
    """
    a, b = (numbers(s, pairs[f"survey_{x}"], pairs[f"key_{x}"]) for x in "ab")
    order = np.lexsort((b, a))
    here, there = a[order] * s.key.size + b[order], truth.a * s.key.size + truth.b
    _, i, j = np.intersect1d(here, there, assume_unique=True, return_indices=True)
    pairs = pairs.take(pa.array(order[i]))
    separation = np.abs(pairs["separation_uas"].to_numpy() - truth.separation_uas[j])
    together = truth.anchor[truth.a] == truth.anchor[truth.b]
    me = numbers(s, members["survey"], members["key"])
    out = {
        "pairs missing": there.size - j.size,
        "pairs too many": here.size - i.size,
        "separations off": int((separation > 1).sum()),
        "edges off": int((pairs["mutual"].to_numpy() != truth.mutual[j]).sum()),
        "ids off": sum(
            yes != ((x, y) in s.named)
            for x, y, yes in zip(truth.a[j].tolist(), truth.b[j].tolist(), pairs["link"].to_pylist(), strict=True)
        ),
        "accepted off": int((pairs["accepted"].to_numpy() != together[j]).sum()),
        "conflicts off": int((pairs["conflict"].to_numpy() != (truth.mutual & ~together)[j]).sum()),
        "sources missing or twice": s.key.size - np.unique(me).size + me.size - np.unique(me).size,
    }
    for what, own in (("anchor", truth.anchor), ("blend", truth.blend)):
        found = numbers(s, members[f"{what}_survey"], members[f"{what}_key"])
        out[f"{what}s off"] = int((found != own[me]).sum())
    for i, name in enumerate(s.names):
        count = np.bincount(truth.blend[s.survey == i], minlength=s.key.size)
        out[f"n_{name} off"] = int((members[f"n_{name}"].to_numpy() != count[truth.blend[me]]).sum())
    return out
