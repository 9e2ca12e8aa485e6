"""Objects of sources whose true things are known: members as `match` gives them, by truth and not by position."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skycairn.match.pairs import separation_uas
from skycairn.pipeline.task import close, concat, int64

I64 = NDArray[np.int64]
LEADERS = ("legacysurvey", "hsc")
"""Surveys whose blends decide what is one object, the coarser first."""


class Members(NamedTuple):
    """Objects, and the true thing that each is of."""

    table: pa.Table
    "a row a member, as of `match.match`"
    uid: dict[str, int]
    "by object_id: the brightest true thing of its anchor"
    counts: dict[str, int]
    "`sources`, `members`, and `dropped:` with a reason"


def members(
    slim: Mapping[str, pa.Table],
    shown: Mapping[str, tuple[I64, I64]],
    light: Mapping[int, float],
    blend: Mapping[int, int],
) -> Members:
    """Objects of the sources in `slim`, by survey in the order of anchors.

    `shown`: pairs of a source's key and a true thing in it; of each true thing its `light`, and the number of its
    `blend`, 0 for none. A source is of the brightest thing in it. A blend's fainter things are of the object of its
    brightest, unless a survey tells them apart; of two sources of one survey and thing the one of the smaller key is
    kept. Objects of one true blend are a blend group, in which all their sources count, those not kept too.
    """
    counts: Counter[str] = Counter()
    home = {name: _homes(int64(table, "key"), *shown[name], light) for name, table in slim.items()}
    lead: dict[int, int] = {}
    for name in reversed(LEADERS):
        if name in slim:
            keys = set(int64(slim[name], "key").tolist())
            lead |= {u: home[name][k] for k, u in zip(*(a.tolist() for a in shown[name]), strict=True) if k in keys}
    seen = {name: set(of.values()) for name, of in home.items()}
    apart = {u for u, of in lead.items() if u != of and any(u in s and of in s for s in seen.values())}
    rank = {name: i for i, name in enumerate(slim)}
    objects: dict[int, dict[str, int]] = defaultdict(dict)
    blended: dict[int, Counter[str]] = defaultdict(Counter)
    for name, table in slim.items():
        for key in sorted(int64(table, "key").tolist()):
            counts["sources"] += 1
            if key not in home[name]:
                counts["dropped:no true thing"] += 1
                continue
            u = home[name][key]
            thing = u if u in apart else lead.get(u, u)
            of = objects[thing]
            blended[blend[thing] or thing][name] += 1
            if name in of:
                counts["dropped:another source of the same thing"] += 1
                continue
            of[name] = key
    anchor = {u: min(held, key=lambda name: rank[name]) for u, held in objects.items()}
    groups = _groups(objects, anchor, rank, blend, blended)
    table = concat([_piece(name, slim, objects, anchor, groups) for name in slim])
    table = table.sort_by([("object_id", "ascending"), ("survey", "ascending"), ("key", "ascending")])
    uid = {f"{anchor[u]}:{held[anchor[u]]}": home[anchor[u]][held[anchor[u]]] for u, held in objects.items()}
    counts["members"] = table.num_rows
    close(counts, "sources", "members", "dropped:", where="objects by truth")
    return Members(table, uid, dict(counts))


def _groups(
    objects: Mapping[int, Mapping[str, int]],
    anchor: Mapping[int, str],
    rank: Mapping[str, int],
    blend: Mapping[int, int],
    blended: Mapping[int, Counter[str]],
) -> dict[int, tuple[str, Counter[str]]]:
    """The blend group of each object: the id of its first object, and how many sources of each survey it has."""
    first: dict[int, int] = {}
    for u in sorted(objects, key=lambda u: (rank[anchor[u]], objects[u][anchor[u]])):
        first.setdefault(blend[u] or u, u)
    ids = {g: f"{anchor[u]}:{objects[u][anchor[u]]}" for g, u in first.items()}
    return {u: (ids[g], blended[g]) for u in objects for g in (blend[u] or u,)}


def _piece(
    name: str,
    slim: Mapping[str, pa.Table],
    objects: Mapping[int, Mapping[str, int]],
    anchor: Mapping[int, str],
    groups: Mapping[int, tuple[str, Counter[str]]],
) -> pa.Table:
    """The members of one survey."""
    mine = [u for u, held in objects.items() if name in held]
    ids = pa.array([f"{anchor[u]}:{objects[u][anchor[u]]}" for u in mine], pa.string())
    keys = np.array([objects[u][name] for u in mine], np.int64)
    own = _rows(slim[name], keys)
    apart = np.zeros(len(mine), np.int64)
    for first in slim:
        of = np.flatnonzero([anchor[u] == first != name for u in mine])
        there = _rows(slim[first], np.array([objects[mine[i]][first] for i in of], np.int64))
        here = own.take(pa.array(of))
        apart[of] = separation_uas(here, there)
    return pa.table(
        {
            "object_id": ids,
            "survey": pa.array([name] * len(mine), pa.string()),
            "key": pa.array(keys),
            "anchor": pa.array([anchor[u] == name for u in mine], pa.bool_()),
            **{c: own.column(c) for c in ("ra", "dec", "healpix29")},
            "separation_uas": pa.array(apart),
            "blend_group": pa.array([groups[u][0] for u in mine], pa.string()),
            **{f"blend_n.{s}": pa.array([groups[u][1][s] for u in mine], pa.int32()) for s in slim},
        }
    )


def _rows(table: pa.Table, keys: I64) -> pa.Table:
    """The sources of these keys."""
    at = pc.index_in(pa.array(keys, pa.int64()), table.column("key").combine_chunks())
    return table.take(at)


def _homes(keys: I64, key: I64, uid: I64, light: Mapping[int, float]) -> dict[int, int]:
    """The brightest true thing of each source that shows any."""
    known, out = set(keys.tolist()), dict[int, int]()
    for k, u in zip(key.tolist(), uid.tolist(), strict=True):
        if k in known and (k not in out or light[u] > light[out[k]]):
            out[k] = u
    return out
