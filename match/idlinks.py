"""Joins by id: rows that name a row of another survey by its key, with the position as the check.

A table's column `link.OTHER` (int64, null where a row names none) holds the key of a row of the survey OTHER. Where
the two rows lie within the radius of their surveys they are taken before anything that is merely near; where they do
not, the id is not believed, and the rows are matched by position as if it were not there. What became of every id
that led to no match is told by `disagreements` (docs/contracts.md, 4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skycairn.match import sky
from skycairn.match.pairs import healpix29_of, keys_of, separation_uas

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

PREFIX = "link."
WORK_ORDER = 6
FARTHEST_ARCSEC = 600.0
"""A named row farther away than this is not looked for: it counts as absent. Within it, it lies in the neighbouring
work cells at the most, so that what is said of an id does not depend on which cell looks."""

DISAGREEMENTS = pa.schema(
    [
        pa.field("survey", pa.string(), metadata={"about": "of the row that holds the id"}),
        pa.field("key", pa.int64()),
        pa.field("other_survey", pa.string()),
        pa.field("other_key", pa.int64(), metadata={"about": "that the id names"}),
        pa.field("why", pa.string(), metadata={"about": "far, absent, shared or refused"}),
        pa.field("separation_uas", pa.int64(), metadata={"unit": "uas", "about": "null where absent"}),
    ]
)


def named(table: pa.Table, other: str) -> tuple[Ints, Bools]:
    """The key of the row of `other` that each row names, and whether it names one.

    ValueError where the column holds anything but integers: an id that was a float is another id.
    """
    if PREFIX + other not in table.column_names:
        return np.zeros(table.num_rows, np.int64), np.zeros(table.num_rows, bool)
    column = table.column(PREFIX + other).combine_chunks()
    if not (pa.types.is_integer(column.type) or pa.types.is_null(column.type)):
        raise ValueError(f"{PREFIX}{other} is {column.type}; wanted int64 keys of {other}, null where a row names none")
    names = column.is_valid().to_numpy(zero_copy_only=False)
    return column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False), np.asarray(names, bool)


def ranked(pairs: pa.Table, left: pa.Table, right: pa.Table, names: tuple[str, str]) -> pa.Table:
    """Candidates (`PAIR_SCHEMA`) with a column `link`, whether one names the other, and ranks that go by it first.

    Of a source's candidates in the other survey those that are linked to it come first, then those of which neither
    is linked to another candidate, then the rest; each by (separation_uas, key). So a linked pair is mutual, unless
    several rows name one: then the nearest of them is. And what it passes over leaves the way free for others.
    """
    i, j = (pairs.column(c).to_numpy() for c in ("left_row", "right_row"))
    left_key, right_key = keys_of(left, names[0]), keys_of(right, names[1])
    key, has = named(left, names[1])
    link = has[i] & (key[i] == right_key[j])
    key, has = named(right, names[0])
    link |= has[j] & (key[j] == left_key[i])
    if link.any():
        bound_left, bound_right = np.zeros(left_key.size, bool), np.zeros(right_key.size, bool)
        bound_left[i[link]] = bound_right[j[link]] = True
        turn = np.where(link, 0, np.where(bound_left[i] | bound_right[j], 2, 1))
        separation = pairs.column("separation_uas").to_numpy()
        ranks = [_rank(i, turn, separation, right_key[j]), _rank(j, turn, separation, left_key[i])]
        for name, values in (
            ("left_rank", ranks[0]),
            ("right_rank", ranks[1]),
            ("mutual", (ranks[0] == 1) & (ranks[1] == 1)),
        ):
            at = pairs.column_names.index(name)
            pairs = pairs.set_column(at, pairs.schema.field(name), pa.array(values))
    return pairs.append_column(pa.field("link", pa.bool_()), pa.array(link))


def _rank(own: Ints, turn: Ints, separation: Ints, other_key: Ints) -> NDArray[np.int32]:
    """From 1, among the pairs of the same `own`, by (turn, separation, key of the other)."""
    order = np.lexsort((other_key, separation, turn, own))
    first = np.flatnonzero(np.append(True, own[order][1:] != own[order][:-1]))
    run = np.diff(np.append(first, order.size))
    rank = np.empty(order.size, np.int32)
    rank[order] = np.arange(order.size) - np.repeat(first, run) + 1
    return rank


def disagreements(
    sources: Mapping[str, pa.Table],
    pairs: pa.Table,
    ranks: Mapping[str, int],
    radius_arcsec: Callable[[str, str], float],
    cell: int | None = None,
    carried: pa.Table | None = None,
) -> pa.Table:
    """The ids that led to no match, as `DISAGREEMENTS`, sorted by survey, key, other_survey.

    `why`: `far`, the named row lies beyond the radius; `absent`, it lies beyond `FARTHEST_ARCSEC`, or was cut, or
    nowhere; `shared`, another row that names it too is nearer; `refused`, the two would not stand in one object.
    `pairs` are those of `Groups`, and so are `carried`, whose far links led to one object and are not told. Of a work
    cell, which has to be given all sources of its neighbours too: what has its lower-ranked source there, or, of
    absent rows, the one that names them; over all cells that is the whole.
    """
    found = []
    for name, table in sources.items():
        for other in sorted(c.removeprefix(PREFIX) for c in table.column_names if c.startswith(PREFIX)):
            found.append(_of_survey(sources, pairs, ranks, radius_arcsec, cell, carried, (name, other)))
    made = pa.concat_tables([DISAGREEMENTS.empty_table(), *found])
    return made.sort_by([(c, "ascending") for c in ("survey", "key", "other_survey")]).combine_chunks()


def _of_survey(
    sources: Mapping[str, pa.Table],
    pairs: pa.Table,
    ranks: Mapping[str, int],
    radius_arcsec: Callable[[str, str], float],
    cell: int | None,
    carried: pa.Table | None,
    names: tuple[str, str],
) -> pa.Table:
    name, other = names
    key, has = named(sources[name], other)
    mine = sources[name].filter(pa.array(has))
    own, key = keys_of(mine, name), key[has]
    theirs = sources.get(other, mine.slice(0, 0))
    at = _place(keys_of(theirs, other), key)
    there = np.flatnonzero(at >= 0)
    met = mine.take(pa.array(there)), theirs.take(pa.array(at[there]))
    first = 0 if ranks[name] < ranks[other] else 1
    separation = np.full(own.size, -1)
    separation[there] = separation_uas(met[first], met[1 - first])
    present = (separation >= 0) & (separation <= round(FARTHEST_ARCSEC * 1e6))
    far = present & (separation > round(radius_arcsec(name, other) * 1e6))

    home = np.ones(own.size, bool)
    if cell is not None:
        home = np.asarray(sky.cells(healpix29_of(mine), WORK_ORDER) == cell)
        if first == 1:
            of_other = home.copy()
            of_other[there] = sky.cells(healpix29_of(met[1]), WORK_ORDER) == cell
            home = np.where(present, of_other, home)
    why = np.where(far, "far", "absent").astype(object)
    told = home & (far | ~present)
    by_key = _passed_over(pairs, (names[first], names[1 - first]))
    row = _place(own, np.array([pair[first] for pair in by_key], np.int64))
    for i, (pair, edge) in zip(row.tolist(), by_key.items(), strict=True):
        if i >= 0 and key[i] == pair[1 - first]:
            told[i], why[i] = True, "refused" if edge else "shared"
    if carried is not None and carried.num_rows:
        together = set(_key_pairs(carried, (names[first], names[1 - first])))
        for i in np.flatnonzero(told & far).tolist():
            ends = (int(own[i]), int(key[i]))
            told[i] = (ends[first], ends[1 - first]) not in together
    n = int(told.sum())
    columns = [
        pa.array([name] * n, pa.string()),
        pa.array(own[told]),
        pa.array([other] * n, pa.string()),
        pa.array(key[told]),
        pa.array(why[told], pa.string()),
        pa.array(separation[told], mask=~present[told]),
    ]
    return pa.Table.from_arrays(columns, schema=DISAGREEMENTS)


def _place(keys: Ints, wanted: Ints) -> Ints:
    """Where each wanted key is among `keys`, which are unique; -1 where it is not."""
    if not keys.size:
        return np.full(wanted.size, -1)
    order = np.argsort(keys)
    at = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), keys.size - 1)]
    return np.where(keys[at] == wanted, at, -1)


def _passed_over(pairs: pa.Table, names: tuple[str, str]) -> dict[tuple[int, int], bool]:
    """Linked candidates of two surveys, the lower rank first, that are not of one object: whether they are an edge."""
    rows = pairs.filter(pc.and_(pairs.column("link"), pc.invert(pairs.column("accepted"))))
    rows = _between(rows, names)
    return dict(zip(_key_pairs(rows, names), rows.column("mutual").to_pylist(), strict=True))


def _key_pairs(pairs: pa.Table, names: tuple[str, str]) -> list[tuple[int, int]]:
    rows = _between(pairs, names)
    return list(zip(rows.column("key_a").to_pylist(), rows.column("key_b").to_pylist(), strict=True))


def _between(pairs: pa.Table, names: tuple[str, str]) -> pa.Table:
    """The pairs of two surveys, the lower rank first."""
    for side, name in zip("ab", names, strict=True):
        pairs = pairs.filter(pc.equal(pairs.column(f"survey_{side}").cast(pa.string()), name))
    return pairs
