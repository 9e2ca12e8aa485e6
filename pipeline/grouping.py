"""Sources of many surveys to objects: at most one source a survey, every two members within their radius.

Of a star that moves two surveys without motions may see two places farther apart than that. Where a member that knows
its motion has been at both, they are of one object all the same (docs/contracts.md, 4).

Where a table has a column `link.OTHER` (see idlinks.py), the rows that it names go before what is merely near.

`group` does a whole set of sources at once. `match_cell` does one work cell, reading as much round it as the answer
needs; over all cells it gives what `group` gives. Both follow docs/contracts.md, 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from skycairn.catalogs.survey import WORK_ORDER
from skycairn.match import idlinks, sky
from skycairn.match.pairs import (
    DENSITY_ORDER,
    PAIR_SCHEMA,
    Positions,
    beads,
    candidate_pairs,
    epoch_span,
    healpix29_of,
    keys_of,
)
from skycairn.match.posterior import FOUND, OUTLIERS, Prior, believed, densities

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Radii = float | Mapping[tuple[str, str], float] | Callable[[str, str], float]
"""Arcseconds: one for all pairs of surveys, or by pair (in either order; 1 where the pair is not named)."""

DEFAULT_RADIUS_ARCSEC = 1.0
FAST_ARCSEC_PER_YEAR = 0.5
EPOCHS = (1990.0, 2035.0)
"""Julian years between which all epochs of the surveys lie."""
BEAD_ARCSEC = 8.0
FEWEST_RINGS = 2
COLUMNS = ("key", "healpix29", *Positions.__dataclass_fields__)
"""Columns that matching reads, beside those that begin with `idlinks.PREFIX`."""
PAIRS = PAIR_SCHEMA.append(pa.field("link", pa.bool_()))


@dataclass(frozen=True)
class Policy:
    """Which candidates are edges, and what is known before positions are compared."""

    by: Literal["nearest", "posterior"] = "nearest"
    "`nearest`: on both sides; `posterior`: the likeliest on both sides (`believed`), nearest where an error is unknown"
    found: Mapping[tuple[str, str], float] | float = FOUND
    "share of the sparser survey's sources that have a counterpart in the other: one, or by pair (0.9 if not named)"
    outliers: Mapping[tuple[str, str], float] | float = OUTLIERS
    "share of true pairs that lie farther apart than their errors say: one, or by pair (0.02 if not named)"
    densities: Mapping[str, Mapping[int, float]] | None = None
    "sources a square arcsecond by survey and order-6 cell (`posterior.densities`); without them no posterior is told"

    def prior(self, left: str, right: str) -> Prior | None:
        """Of two surveys."""
        if self.densities is None:
            return None

        def of_pair(share: Mapping[tuple[str, str], float] | float, usual: float) -> float:
            return share.get((left, right), share.get((right, left), usual)) if isinstance(share, Mapping) else share

        found, outliers = of_pair(self.found, FOUND), of_pair(self.outliers, OUTLIERS)
        return Prior(self.densities.get(left, {}), self.densities.get(right, {}), found, outliers)


DEFAULT_POLICY = Policy()


def radius_of(radii: Radii, a: str, b: str) -> float:
    """The match radius of two surveys, in arcsec."""
    if isinstance(radii, Mapping):
        return float(radii.get((a, b), radii.get((b, a), DEFAULT_RADIUS_ARCSEC)))
    return float(radii(a, b)) if callable(radii) else float(radii)


def is_fast(table: pa.Table) -> Bools:
    """Whether each source is known to move faster than 0.5 arcsec/yr, so that every cell near its track must see it."""
    s = Positions.of(table)
    return np.asarray(s.moving & (np.hypot(s.pmra, s.pmdec) > FAST_ARCSEC_PER_YEAR * 1000))


CARRIED = pa.schema([(f"{c}_{side}", t) for side in "ab" for c, t in (("survey", pa.string()), ("key", pa.int64()))])


@dataclass(frozen=True)
class Groups:
    """Objects and the pairs they were made of."""

    members: pa.Table
    """One row a source, sorted by (anchor rank, anchor key, rank): `survey`, `key`; `anchor_survey`, `anchor_key`,
    whose uid is the object's id; `separation_uas` to the anchor (0 for itself), or to the nearest member that moves
    where only such a one ties it to the anchor; `blend_survey`, `blend_key`, whose uid
    is that of the blend group; `n_SURVEY`, how many sources of each survey that group has."""
    pairs: pa.Table
    """One row a candidate, sorted by (rank, key) of a, of b; a is of the survey of lower rank: `survey_a`, `key_a`,
    `survey_b`, `key_b`, `separation_uas`, `rank_a`, `rank_b`, `rivals_a`, `rivals_b`, `chance`, `sigmas`,
    `posterior_a`, `posterior_b`, `link` (one names the other by its id), `mutual` (an edge), `accepted` (both are of
    one object), `conflict` (a refused edge), `blend_survey`, `blend_key`. Ranks go by id
    first (`idlinks.ranked`)."""
    carried: pa.Table = field(default_factory=CARRIED.empty_table, kw_only=True)
    """Pairs of one object that are no candidates, since only a member that moves brings them together: `survey_a`,
    `key_a`, `survey_b`, `key_b`; chosen and sorted as `pairs`."""


@dataclass(frozen=True)
class _Candidates:
    """All sources under one number each, counting up with (rank of survey, key), and all candidate pairs, a < b."""

    names: tuple[str, ...]
    start: Ints
    "number of each survey's first source, and the number of all"
    survey: NDArray[np.int8]
    key: Ints
    row: Ints
    "in the survey's table"
    a: Ints
    b: Ints
    columns: Mapping[str, NDArray[np.generic]]
    "of the pairs"
    radius_uas: Ints
    component: Ints
    "of each source: the number of its blend group's first source"
    moving: Bools
    "of each source: whether it knows its motion"
    limit_uas: Mapping[tuple[int, int], int]
    "radius of each pair of surveys, numbered as in `names`, the lower first"


def group(
    sources: Mapping[str, pa.Table],
    ranks: Mapping[str, int],
    radii: Radii = DEFAULT_RADIUS_ARCSEC,
    policy: Policy = DEFAULT_POLICY,
) -> Groups:
    """Group a whole set of sources; the answer depends on the set alone, not on the order of anything.

    `sources` are tables as for `candidate_pairs`, by survey; `ranks` names at least these surveys, each with its own
    rank. A policy without densities counts them in these sources. Raises ValueError for a null or doubled key, a
    shared rank, a radius not above 0.
    """
    if policy.densities is None:
        policy = replace(policy, densities={n: densities(healpix29_of(t)) for n, t in sources.items()})
    c = _candidates(sources, ranks, radii, policy)
    anchor = _anchors(c)
    everything = np.ones(c.key.size, bool)
    groups = _tables(c, anchor, ranks, everything, np.ones(c.a.size, bool))
    return replace(groups, carried=_carried(c, anchor, everything))


def _candidates(sources: Mapping[str, pa.Table], ranks: Mapping[str, int], radii: Radii, policy: Policy) -> _Candidates:
    unranked = sorted(set(sources) - set(ranks))
    if unranked or len(set(ranks.values())) < len(ranks):
        raise ValueError(
            f"ranks are {dict(ranks)}; wanted a different one for each survey, {unranked or 'all'} included"
        )
    names = tuple(sorted(sources, key=lambda name: ranks[name]))
    start = np.zeros(len(names) + 1, np.int64)
    rows, keys, number, moving = [], [], [], []
    for i, name in enumerate(names):
        key = keys_of(sources[name], name)
        row = np.argsort(key, kind="stable")
        key = key[row]
        twice = np.flatnonzero(key[1:] == key[:-1])
        if twice.size:
            raise ValueError(f"{name}: key {key[twice[0]]} is there more than once; drop duplicates before matching")
        start[i + 1] = start[i] + row.size
        place = np.empty(row.size, np.int64)
        place[row] = np.arange(start[i], start[i + 1])
        rows.append(row)
        keys.append(key)
        moving.append(Positions.of(sources[name], name).moving[row])
        number.append(place)
    limits: dict[tuple[int, int], int] = {}
    found: list[pa.Table] = []
    ends: list[tuple[Ints, Ints, Ints]] = []
    for i, left in enumerate(names):
        for j, right in enumerate(names[i + 1 :], i + 1):
            radius = radius_of(radii, left, right)
            pairs = candidate_pairs(sources[left], sources[right], radius, policy.prior(left, right))
            pairs = idlinks.ranked(pairs, sources[left], sources[right], (left, right))
            if policy.by == "posterior":
                pairs = _likely(pairs)
            a = number[i][pairs.column("left_row").to_numpy()]
            b = number[j][pairs.column("right_row").to_numpy()]
            limits[i, j] = round(radius * 1e6)
            ends.append((a, b, np.full(a.size, limits[i, j])))
            found.append(pairs)
    pairs = pa.concat_tables(found) if found else PAIRS.empty_table()
    a, b, radius_uas = (np.concatenate(part) for part in zip(*ends, strict=True)) if ends else (np.zeros(0, int),) * 3
    order = np.lexsort((b, a))
    n = int(start[-1])
    _, label = connected_components(coo_array((np.ones(a.size, bool), (a, b)), shape=(n, n)), directed=False)
    first = np.empty(n, np.int64)
    first[label[::-1]] = np.arange(n)[::-1]
    none = [np.zeros(0, np.int64)]
    return _Candidates(
        names,
        start,
        np.repeat(np.arange(len(names), dtype=np.int8), np.diff(start)),
        np.concatenate(keys or none),
        np.concatenate(rows or none),
        a[order],
        b[order],
        {name: pairs.column(name).to_numpy()[order] for name in pairs.column_names[2:]},
        radius_uas[order],
        first[label],
        np.concatenate(moving or [np.zeros(0, bool)]),
        limits,
    )


def _likely(pairs: pa.Table) -> pa.Table:
    """With `mutual` of those that are `believed`; ids, and errors not known, as by distance."""
    column = {name: pairs.column(name).to_numpy() for name in pairs.column_names}
    bound = np.zeros(pairs.num_rows, bool)
    for row in (column["left_row"], column["right_row"]):
        bound |= np.isin(row, row[column["link"].astype(bool)])
    names = [f"{side}_{what}" for what in ("row", "posterior", "rank") for side in ("left", "right")]
    by_distance = bound | np.isnan(column["left_posterior"]) | np.isnan(column["right_posterior"])
    edge = np.where(by_distance, column["mutual"].astype(bool), believed(*(column[name] for name in names)))
    at = pairs.column_names.index("mutual")
    return pairs.set_column(at, pairs.schema.field("mutual"), pa.array(edge))


def _anchors(c: _Candidates) -> Ints:
    """The number of each source's anchor."""
    sources = np.bincount(c.component, minlength=c.key.size)
    pairs = np.bincount(c.component[c.a], minlength=c.key.size)
    edges_in = np.bincount(c.component[c.a[c.columns["mutual"].astype(bool)]], minlength=c.key.size)
    # Where all sources are candidates of each other, there is one of each survey at most, and one object if all are
    # edges too. Elsewhere the edges are taken one by one.
    clear = (pairs == sources * (sources - 1) // 2) & (edges_in == pairs)
    anchor = np.where(clear[c.component], c.component, np.arange(c.key.size))
    rest = np.flatnonzero(~clear[c.component[c.a]])
    a, b = c.a[rest], c.b[rest]
    near = dict(zip(zip(a.tolist(), b.tolist(), strict=True), c.columns["separation_uas"][rest].tolist(), strict=True))
    common = math.lcm(*map(int, np.unique(c.radius_uas))) if rest.size else 1
    edge = c.columns["mutual"][rest].astype(bool)
    scale = (common // r for r in c.radius_uas[rest[edge]].tolist())
    separation = c.columns["separation_uas"][rest[edge]].tolist()
    by_position = (~c.columns["link"][rest[edge]].astype(bool)).tolist()
    share = (s * k for s, k in zip(separation, scale, strict=True))
    edges = zip(by_position, share, a[edge].tolist(), b[edge].tolist(), strict=True)
    holder: dict[int, list[int]] = {}
    for *_, x, y in sorted(edges):
        one, two = holder.setdefault(x, [x]), holder.setdefault(y, [y])
        if one is two:
            continue
        if _fit(c, one, two, near):
            one.extend(two)
            for member in two:
                holder[member] = one
    for x, members in holder.items():
        anchor[x] = min(members)
    return anchor


def _fit(c: _Candidates, one: list[int], two: list[int], near: Mapping[tuple[int, int], int]) -> bool:
    """Whether every member of one may stand beside every member of the other.

    They are candidates of each other; or neither moves, they are of two surveys, and a member that moves is so near to
    both that, carried along with it, they lie within their radius (the sum of the two separations does). A pair of one
    survey is never a candidate, so this holds the rule of one source a survey too. `near` has separations in uas.
    """

    def apart(p: int, q: int) -> int | None:
        return near.get((p, q) if p < q else (q, p))

    def carried(p: int, q: int) -> bool:
        if c.moving[p] or c.moving[q] or c.survey[p] == c.survey[q]:
            return False
        x, y = sorted((int(c.survey[p]), int(c.survey[q])))
        ways = ((apart(m, p), apart(m, q)) for m in movers)
        return any(s is not None and t is not None and s + t <= c.limit_uas[x, y] for s, t in ways)

    movers = [m for m in (*one, *two) if c.moving[m]]
    return all(apart(p, q) is not None or carried(p, q) for p in one for q in two)


def _tables(c: _Candidates, anchor: Ints, ranks: Mapping[str, int], sources: Bools, pairs: Bools) -> Groups:
    """Tables of the chosen sources and pairs."""
    every = sorted(ranks, key=lambda name: ranks[name])
    code = np.array([every.index(name) for name in c.names], np.int8)
    dictionary = pa.array(every, pa.string())

    def survey(numbers: Ints) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(code[c.survey[numbers]]), dictionary)

    separation = np.zeros(c.key.size, np.int64)
    to_anchor = anchor[c.b] == c.a
    separation[c.b[to_anchor]] = c.columns["separation_uas"][to_anchor]
    lent = np.ones(c.key.size, bool)
    lent[c.b[to_anchor]] = lent[anchor] = False
    if lent.any():
        _lend(c, anchor, lent, separation)
    chosen = np.flatnonzero(sources)
    chosen = chosen[np.argsort(anchor[chosen], kind="stable")]
    held, blend = anchor[chosen], c.component[chosen]
    members = {
        "survey": survey(chosen),
        "key": pa.array(c.key[chosen]),
        "anchor_survey": survey(held),
        "anchor_key": pa.array(c.key[held]),
        "separation_uas": pa.array(separation[chosen]),
        "blend_survey": survey(blend),
        "blend_key": pa.array(c.key[blend]),
    }
    for name in every:
        count = np.zeros(c.key.size, np.int32)
        if name in c.names:
            i = c.names.index(name)
            count = np.bincount(c.component[c.start[i] : c.start[i + 1]], minlength=c.key.size).astype(np.int32)
        members[f"n_{name}"] = pa.array(count[blend])
    a, b = c.a[pairs], c.b[pairs]
    column = {name: values[pairs] for name, values in c.columns.items()}
    one = anchor[a] == anchor[b]
    blend = c.component[a]
    return Groups(
        pa.table(members),
        pa.table(
            {
                "survey_a": survey(a),
                "key_a": pa.array(c.key[a]),
                "survey_b": survey(b),
                "key_b": pa.array(c.key[b]),
                "separation_uas": pa.array(column["separation_uas"]),
                "rank_a": pa.array(column["left_rank"]),
                "rank_b": pa.array(column["right_rank"]),
                "rivals_a": pa.array(column["left_rivals"]),
                "rivals_b": pa.array(column["right_rivals"]),
                "chance": pa.array(column["chance"]),
                "sigmas": pa.array(column["sigmas"], from_pandas=True),
                "posterior_a": pa.array(column["left_posterior"], from_pandas=True),
                "posterior_b": pa.array(column["right_posterior"], from_pandas=True),
                "link": pa.array(column["link"].astype(bool)),
                "mutual": pa.array(column["mutual"]),
                "accepted": pa.array(one),
                "conflict": pa.array(column["mutual"].astype(bool) & ~one),
                "blend_survey": survey(blend),
                "blend_key": pa.array(c.key[blend]),
            }
        ),
    )


def _carried(c: _Candidates, anchor: Ints, home: Bools) -> pa.Table:
    """`Groups.carried`, of the pairs whose first is at home."""
    one = np.flatnonzero(anchor[c.a] == anchor[c.b])
    sources = np.bincount(anchor, minlength=c.key.size)
    lacks = sources * (sources - 1) // 2 > np.bincount(anchor[c.a[one]], minlength=c.key.size)
    one = one[lacks[anchor[c.a[one]]]]
    near = set(zip(c.a[one].tolist(), c.b[one].tolist(), strict=True))
    members: dict[int, list[int]] = {}
    for i in np.flatnonzero(lacks[anchor]).tolist():
        members.setdefault(int(anchor[i]), []).append(i)
    found = sorted(p for some in members.values() for p in combinations(some, 2) if home[p[0]] and p not in near)
    ends = np.array(found, np.int64).reshape(-1, 2).T
    columns = [pa.array(v) for x in ends for v in ([c.names[i] for i in c.survey[x]], c.key[x])]
    return pa.Table.from_arrays([v.cast(f.type) for v, f in zip(columns, CARRIED, strict=True)], schema=CARRIED)


def _lend(c: _Candidates, anchor: Ints, lent: Bools, separation: Ints) -> None:
    """Fill in the separation to the nearest moving member of the object, of members that are far from their anchor."""
    nearest = np.full(separation.size, np.iinfo(np.int64).max)
    for own, other in ((c.a, c.b), (c.b, c.a)):
        rows = np.flatnonzero(lent[own] & c.moving[other] & (anchor[own] == anchor[other]))
        np.minimum.at(nearest, own[rows], c.columns["separation_uas"][rows].astype(np.int64))
    known = lent & (nearest < np.iinfo(np.int64).max)
    separation[known] = nearest[known]


def parts_of(cell: int, healpix29: Iterable[Ints], most_rows: int) -> list[tuple[int, int]]:
    """Parts of a work cell, as `match_cell` takes them: cells that hold at most so many sources of all surveys.

    They are the cell, its children, and so on, so that memory is bounded wherever the sky is crowded. A cell of the
    order in which chance counts densities (3.4 arcmin) is not divided.
    """
    fine = np.sort(np.concatenate([*(sky.cells(h, sky.FINE_ORDER) for h in healpix29), np.zeros(0, np.int64)]))
    out, todo = [], [(WORK_ORDER, cell)]
    while todo:
        order, index = todo.pop()
        shift = 2 * (sky.FINE_ORDER - order)
        first, last = np.searchsorted(fine, [index << shift, (index + 1) << shift])
        if last - first <= most_rows or order == DENSITY_ORDER:
            out.append((order, index))
        else:
            todo += [(order + 1, 4 * index + k) for k in (3, 2, 1, 0)]
    return out


@dataclass(frozen=True)
class CellMatch(Groups):
    """What one work cell gives: the objects whose anchor lies in it, and the pairs whose `a` does."""

    fine_cells_read: int
    "fine cells of the work cell are 4096"
    times_read: int


def match_cell(
    cell: int,
    load: Callable[[Ints], Mapping[str, pa.Table]],
    fast: Mapping[str, pa.Table],
    ranks: Mapping[str, int],
    radii: Radii = DEFAULT_RADIUS_ARCSEC,
    epochs: tuple[float, float] = EPOCHS,
    policy: Policy = DEFAULT_POLICY,
    part: tuple[int, int] | None = None,
) -> CellMatch:
    """Match the sources of one order-6 cell, or of a part of it: a cell (order, index) of order 6 to 10 within.

    `load` gives, by survey, all sources that are not `is_fast` and lie in the order-12 cells it is asked for (sorted;
    never the same twice; in the work cell and its 8 neighbours). `fast` holds all `is_fast` sources that
    come near the work cell between `epochs`; it does no harm to give all there are. Every epoch of every source must
    lie within `epochs`, which bounds how far an unread source can have moved. The policy's densities are wanted of the
    cell and its neighbours; without any no posterior is told.

    Raises ValueError for what `group` refuses, a slow source among the fast or the reverse, an epoch outside `epochs`,
    and a blend group that reaches beyond the neighbours.
    """
    shift = 2 * (sky.FINE_ORDER - WORK_ORDER)
    names = sorted(ranks, key=lambda name: ranks[name])
    widest = max((radius_of(radii, x, y) for x in names for y in names if x < y), default=0.0)
    reach = widest + BEAD_ARCSEC / 2 + max(FAST_ARCSEC_PER_YEAR * (epochs[1] - epochs[0]), BEAD_ARCSEC / 2)
    n_rings = math.ceil(reach * sky.SAFE_RATIO / sky.cell_size_arcsec(sky.FINE_ORDER))
    reachable = sky.rings(WORK_ORDER, [cell], 1)
    order, index = part or (WORK_ORDER, cell)
    if not WORK_ORDER <= order <= DENSITY_ORDER or index >> 2 * (order - WORK_ORDER) != cell:
        raise ValueError(f"part {part} is no cell of order {WORK_ORDER} to {DENSITY_ORDER} within cell {cell}")
    in_part = 2 * (sky.FINE_ORDER - order)
    own_fine = (np.int64(index) << in_part) + np.arange(1 << in_part)
    wanted = sky.rings(sky.FINE_ORDER, own_fine, max(FEWEST_RINGS, n_rings + 1))
    fast = {name: table for name, table in fast.items() if table.num_rows}
    _check_speed(fast, True, epochs)
    fast_tracks = {name: _track(table, epochs) for name, table in fast.items()}
    read = np.zeros(0, np.int64)
    slow: dict[str, list[pa.Table]] = {}
    times = 0
    while True:
        more = {name: table for name, table in load(wanted).items() if table.num_rows}
        _check_speed(more, False, epochs)
        for name, table in more.items():
            slow.setdefault(name, []).append(table)
        read = np.union1d(read, wanted)
        times += 1
        sources = _joined(slow, fast, fast_tracks, read)
        c = _candidates(sources, ranks, radii, policy)
        home = np.zeros(c.key.size, bool)
        lonely = []
        related = np.zeros(c.key.size, bool)
        for i, name in enumerate(c.names):
            own = slice(c.start[i], c.start[i + 1])
            home[own] = sky.cells(healpix29_of(sources[name]), order)[c.row[own]] == index
        related[np.unique(c.component[home])] = True
        related = related[c.component]
        known = _interior(read, n_rings)
        for i, name in enumerate(c.names):
            own = slice(c.start[i], c.start[i + 1])
            _, at = _track(sources[name].take(c.row[own][related[own]]), epochs)
            lonely.append(at[~np.isin(at, known)])
        unseen = np.unique(np.concatenate([*lonely, np.zeros(0, np.int64)]))
        if not unseen.size:
            break
        wanted = np.setdiff1d(sky.rings(sky.FINE_ORDER, unseen, n_rings), read, assume_unique=True)
        if not np.isin(wanted >> shift, reachable).all():
            raise ValueError(
                f"cell {cell}: a blend group or a track reaches beyond the 8 neighbouring cells; "
                f"wanted radii that are small beside the distance of sources, here up to {widest} arcsec"
            )
    anchor = _anchors(c)
    groups = _tables(c, anchor, ranks, home[anchor], home[c.a])
    return CellMatch(groups.members, groups.pairs, int(read.size), times, carried=_carried(c, anchor, home))


def _track(table: pa.Table, epochs: tuple[float, float]) -> tuple[Ints, Ints]:
    """Rows, and the fine cells of the beads on each row's track."""
    on = beads(Positions.of(table), healpix29_of(table), epochs, BEAD_ARCSEC)
    return on.row, sky.cells(on.healpix29, sky.FINE_ORDER)


def _interior(read: Ints, n_rings: int) -> Ints:
    """The cells that have all cells within `n_rings` among `read`."""
    beyond = sky.neighbours(sky.FINE_ORDER, read)
    return np.setdiff1d(read, sky.rings(sky.FINE_ORDER, beyond, n_rings), assume_unique=True)


def _joined(
    slow: Mapping[str, list[pa.Table]],
    fast: Mapping[str, pa.Table],
    tracks: Mapping[str, tuple[Ints, Ints]],
    read: Ints,
) -> dict[str, pa.Table]:
    """The slow sources, and the fast ones whose track touches what was read."""
    out = {}
    for name in sorted({*slow, *fast}):
        parts = list(slow.get(name, []))
        if name in fast:
            row, at = tracks[name]
            parts.append(fast[name].take(np.unique(row[np.isin(at, read)])))
        known = [[c for c in part.column_names if c in COLUMNS or c.startswith(idlinks.PREFIX)] for part in parts]
        parts = [part.select(columns) for part, columns in zip(parts, known, strict=True)]
        out[name] = pa.concat_tables(parts, promote_options="permissive").combine_chunks()
    return out


def _check_speed(tables: Mapping[str, pa.Table], fast: bool, epochs: tuple[float, float]) -> None:
    for name, table in tables.items():
        if (is_fast(table) != fast).any():
            found, wanted = ("slow", "fast") if fast else ("fast", "slow")
            raise ValueError(f"{name}: a {found} source is among the {wanted} ones; part them by `is_fast`")
        low, high = epoch_span(Positions.of(table))
        if low < epochs[0] or high > epochs[1]:
            raise ValueError(f"{name}: sources hold from {low} to {high}; give `match_cell` the epochs of all surveys")
