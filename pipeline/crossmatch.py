"""Pairs of sources of two tables that lie within a radius of each other, motion and epochs minded.

Usable as a library on any two Arrow tables with `key` (int64), `ra`, `dec` (ICRS degrees); `pmra`, `pmdec` (mas/yr,
pmra times cos(dec)), `epoch`, `epoch_min`, `epoch_max` (Julian years) and `healpix29` may be absent or null:

    pairs = candidate_pairs(left, right, radius_arcsec=1.0)
    nearest = pairs.filter(pairs["mutual"])

A source with motion (pmra, pmdec and epoch known) moves along the great circle of its motion; one without holds its
position from epoch_min to epoch_max. The separation of two is their closest approach (docs/contracts.md, 3).

How it works: both tables are sorted by HEALPix cell and joined, each source with the four cells that a circle of the
search radius round it can touch. A moving source is looked up at beads along its track, spaced by the radius.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import healpy
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skycairn.pipeline import sky

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

UAS = 180 / np.pi * 3600e6
"""Micro-arcseconds in a radian."""
DENSITY_ORDER = 10
"""Chance is reckoned from the sources in the left source's cell of this order (206 arcsec)."""
CLOSEST_BEADS_ARCSEC = 1.0
"""Beads on tracks are no closer than this, however small the radius."""
BLOCK = 1 << 18
MOST_AT_ONCE = 1 << 20

PAIR_SCHEMA = pa.schema(
    [
        pa.field("left_row", pa.int64()),
        pa.field("right_row", pa.int64()),
        pa.field("separation_uas", pa.int64(), metadata={"unit": "uas"}),
        pa.field("left_rank", pa.int32(), metadata={"about": "of the pair among the left source's candidates, from 1"}),
        pa.field("right_rank", pa.int32()),
        pa.field("mutual", pa.bool_(), metadata={"about": "both ranks are 1"}),
        pa.field("left_rivals", pa.int32(), metadata={"about": "other candidates of the left source"}),
        pa.field("right_rivals", pa.int32()),
        pa.field("chance", pa.float64(), metadata={"about": "probability of an unrelated source this near"}),
    ]
)


@dataclass(frozen=True)
class Positions:
    """The columns of a table that say where its sources are and when; NaN where not known."""

    ra: Floats
    dec: Floats
    pmra: Floats
    pmdec: Floats
    epoch: Floats
    epoch_min: Floats
    epoch_max: Floats

    @classmethod
    def of(cls, table: pa.Table, what: str = "table") -> Positions:
        """From a table; columns of motion and epoch may be absent. Bad positions are refused by row."""
        values = []
        for field in fields(cls):
            if field.name in table.column_names:
                column = table.column(field.name).cast(pa.float64())
                values.append(column.to_numpy())
            elif field.name in ("ra", "dec"):
                raise ValueError(f"{what} has no column {field.name!r}; it has {', '.join(table.column_names)}")
            else:
                values.append(np.broadcast_to(np.nan, table.num_rows))
        sky.check_positions(values[0], values[1], what)
        out = cls(*values)
        low, high = out.interval()
        bad = low > high
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(
                f"{what} at row {row} holds from epoch {low[row]} to {high[row]}; wanted epoch_min <= epoch_max"
            )
        return out

    def take(self, rows: Ints) -> Positions:
        """Of these rows."""
        return Positions(*(getattr(self, f.name)[rows] for f in fields(self)))

    @property
    def moving(self) -> Bools:
        """Whether the motion is known, be it zero."""
        return np.asarray(np.isfinite(self.pmra) & np.isfinite(self.pmdec) & np.isfinite(self.epoch))

    def interval(self) -> tuple[Floats, Floats]:
        """From when to when each position holds: the reference epoch of a moving source; one null end is the other."""
        moving = self.moving
        low = np.where(np.isnan(self.epoch_min), self.epoch_max, self.epoch_min)
        high = np.where(np.isnan(self.epoch_max), self.epoch_min, self.epoch_max)
        return np.where(moving, self.epoch, low), np.where(moving, self.epoch, high)


def separation_uas(left: pa.Table, right: pa.Table) -> Ints:
    """Closest approach of each left source to the right source of the same row, in integer micro-arcseconds.

    A fixed source whose interval is not known at all is met by a moving one at the latter's own epoch.
    """
    if left.num_rows != right.num_rows:
        raise ValueError(f"{left.num_rows} left rows and {right.num_rows} right rows; wanted as many")
    return _separation(Positions.of(left, "left"), Positions.of(right, "right"))


def _separation(a: Positions, b: Positions) -> Ints:
    out = sky.angle(sky.unit_vectors(a.ra, a.dec), sky.unit_vectors(b.ra, b.dec))
    rows = np.flatnonzero(a.moving | b.moving)
    if rows.size:
        out[rows] = _closest_approach(a.take(rows), b.take(rows))
    return np.rint(out * UAS).astype(np.int64)


def _closest_approach(a: Positions, b: Positions) -> Floats:
    """Radians; at least one of each two moves."""
    return sky.angle(*approach(a, b))


def approach(a: Positions, b: Positions) -> tuple[Floats, Floats]:
    """Where the two of each row stand at their closest approach: unit vectors, shape (3, n)."""
    both = a.moving & b.moving
    (a_low, a_high), (b_low, b_high) = a.interval(), b.interval()
    low = np.where(both, np.minimum(a_low, b_low), np.where(a.moving, b_low, a_low))
    high = np.where(both, np.maximum(a_high, b_high), np.where(a.moving, b_high, a_high))
    own = np.where(a.moving, a.epoch, b.epoch)
    low, high = np.where(np.isnan(low), own, low), np.where(np.isnan(high), own, high)
    middle, half = (low + high) / 2, (high - low) / 2
    (pa_, va), (pb, vb) = _at(a, middle), _at(b, middle)
    d, v = pa_ - pb, va - vb
    vv = v[0] ** 2 + v[1] ** 2 + v[2] ** 2
    dv = d[0] * v[0] + d[1] * v[1] + d[2] * v[2]
    with np.errstate(over="ignore"):
        tau = np.clip(np.where(vv > 0, -dv / np.where(vv > 0, vv, 1.0), 0.0), -half, half)
    return _at(a, middle + tau)[0], _at(b, middle + tau)[0]


def _at(s: Positions, time: Floats) -> tuple[Floats, Floats]:
    moving = s.moving
    return sky.moved(
        s.ra,
        s.dec,
        np.where(moving, s.pmra, 0.0),
        np.where(moving, s.pmdec, 0.0),
        np.where(moving, time - s.epoch, 0.0),
    )


def epoch_span(s: Positions) -> tuple[float, float]:
    """Earliest and latest time at which any of these positions is known to hold; NaN where none is."""
    low, high = s.interval()
    if not np.isfinite(low).any():
        return np.nan, np.nan
    return float(np.nanmin(low)), float(np.nanmax(high))


@dataclass(frozen=True)
class Beads:
    """Points that stand for the sources' tracks."""

    row: Ints
    healpix29: Ints
    cover_arcsec: float
    "every point of a track is at most this far from one of its beads"


def beads(s: Positions, healpix29: Ints, span: tuple[float, float], spacing_arcsec: float) -> Beads:
    """Beads on the tracks from the earlier of `span` and the own epoch to the later, at most `spacing_arcsec` apart.

    A source without motion, or whose track is short, has one: its catalogued position.
    """
    moving = np.flatnonzero(s.moving)
    m = s.take(moving)
    low, high = np.fmin(m.epoch, span[0]), np.fmax(m.epoch, span[1])
    length = np.hypot(m.pmra, m.pmdec) / 1000 * (high - low)
    long = length > spacing_arcsec / 2
    cover = float(length[~long].max(initial=0.0))
    if not long.any():
        return Beads(np.arange(s.ra.size), healpix29, cover)
    m, low, high, length = m.take(np.flatnonzero(long)), low[long], high[long], length[long]
    count = np.ceil(length / spacing_arcsec).astype(np.int64)
    cover = max(cover, float((length / count).max()) / 2)
    source, step = _expand(np.zeros(count.size, np.int64), count)
    time = low[source] + (step + 0.5) / count[source] * (high - low)[source]
    on = m.take(source)
    ra, dec = sky.propagate(on.ra, on.dec, on.pmra, on.pmdec, time - on.epoch)
    still = np.ones(s.ra.size, bool)
    still[moving[long]] = False
    row = np.concatenate([np.flatnonzero(still), moving[long][source]])
    return Beads(row, np.concatenate([healpix29[still], sky.healpix29(ra, dec)]), cover)


def _expand(start: Ints, count: Ints) -> tuple[Ints, Ints]:
    """For each i, the numbers start[i] .. start[i] + count[i] - 1: the i and the numbers, flat."""
    which = np.repeat(np.arange(count.size), count)
    first = np.cumsum(count) - count
    return which, np.arange(which.size) - first[which] + start[which]


def reachable(child: Ints, order: int) -> Iterator[tuple[Ints | slice, Ints]]:
    """The cells of `order` that the own cell and 8 neighbours of each `child`, a cell of `order` + 1, lie in.

    Gives (indices of the children, one cell each), several times; no (child, cell) twice. There are at most four: the
    parent, two across its edges, one across its corner. Within a base cell x and y are counted up or down in the
    interleaved bits themselves; healpy knows the way over the borders of base cells.
    """
    parent = child >> 2
    yield slice(None), parent
    bits = (1 << 2 * order) - 1
    x_bits, y_bits = 0x5555555555555555 & bits, 0x2AAAAAAAAAAAAAAA & bits
    face, x, y = parent & ~bits, parent & x_bits, parent & y_bits
    x_up, y_up = (child & 1).astype(bool), (child & 2).astype(bool)
    border = np.where(x_up, x == x_bits, x == 0) | np.where(y_up, y == y_bits, y == 0)
    x_next = np.where(x_up, (x | y_bits) + 1, x - 1) & x_bits
    y_next = np.where(y_up, (y | x_bits) + 1, y - 2) & y_bits
    inside = np.flatnonzero(~border)
    face, x, y, x_next, y_next = (v[inside] for v in (face, x, y, x_next, y_next))
    yield inside, face | x_next | y
    yield inside, face | x | y_next
    yield inside, face | x_next | y_next
    outer = np.flatnonzero(border)
    if outer.size:
        around = healpy.get_all_neighbours(1 << (order + 1), child[outer], nest=True)
        around = np.sort(np.where(around >= 0, around >> 2, parent[outer]), axis=0)
        fresh = around != parent[outer]
        fresh[1:] &= around[1:] != around[:-1]
        for cells, new in zip(around, fresh, strict=True):
            yield outer[new], cells[new]


def _nearby(few: Beads, many: Beads, search_arcsec: float) -> Iterator[tuple[Ints, Ints]]:
    """Rows of `few` and `many` that share a reachable cell: all pairs within `search_arcsec`, and more."""
    order = max(sky.order_for(search_arcsec), 1) - 1
    cell = sky.cells(many.healpix29, order)
    many_row = many.row
    if not (cell[1:] >= cell[:-1]).all():
        by_cell = np.argsort(cell)
        cell, many_row = cell[by_cell], many_row[by_cell]
    child = sky.cells(few.healpix29, order + 1)
    few_row = few.row
    if not (child[1:] >= child[:-1]).all():
        by_cell = np.argsort(child)
        child, few_row = child[by_cell], few_row[by_cell]
    for begin in range(0, child.size, BLOCK):
        block = child[begin : begin + BLOCK]
        rows = few_row[begin : begin + BLOCK]
        for index, wanted in reachable(block, order):
            start = np.searchsorted(cell, wanted)
            hit = np.flatnonzero(cell[np.minimum(start, cell.size - 1)] == wanted)
            start = start[hit]
            count = np.searchsorted(cell, wanted[hit], side="right") - start
            own = rows[index][hit]
            if not own.size:
                continue
            so_far = np.cumsum(count)
            cuts = np.searchsorted(so_far, np.arange(0, so_far[-1], MOST_AT_ONCE))
            for i, j in zip(cuts, [*cuts[1:], own.size], strict=True):
                which, partner = _expand(start[i:j], count[i:j])
                yield own[i:j][which], many_row[partner]


@dataclass(frozen=True)
class _Rough:
    """A cheap test that no pair within the radius fails: catalogued positions, and how far each source can move."""

    vectors: tuple[Floats, Floats]
    reach: tuple[Floats, Floats]
    "radians"
    radius: float

    @classmethod
    def of(cls, a: Positions, b: Positions, radius_arcsec: float) -> _Rough:
        reach = []
        for s, span in ((a, epoch_span(b)), (b, epoch_span(a))):
            years = np.fmax(np.fmax(s.epoch - span[0], span[1] - s.epoch), 0.0)
            reach.append(np.where(s.moving, np.hypot(s.pmra, s.pmdec) * years * 1000, 0.0) / UAS)
        vectors = sky.unit_vectors(a.ra, a.dec), sky.unit_vectors(b.ra, b.dec)
        return cls(vectors, (reach[0], reach[1]), (radius_arcsec + 1e-5) * 1e6 / UAS)

    def near(self, i: Ints, j: Ints) -> Bools:
        square = np.zeros(i.size)
        for one, other in zip(*self.vectors, strict=True):
            square += (one[i] - other[j]) ** 2
        return np.asarray(square <= (self.radius + self.reach[0][i] + self.reach[1][j]) ** 2)


def candidate_pairs(left: pa.Table, right: pa.Table, radius_arcsec: float) -> pa.Table:
    """All pairs within `radius_arcsec`, as `PAIR_SCHEMA`, sorted by left_row and left_rank.

    Ranks order the candidates of a source by (separation_uas, key of the other). `chance` is 1 - exp(-pi s^2 n): the
    probability that an unrelated source lies within the separation s, where n is the surface density of the denser
    table, counted in the left source's order-10 cell (3.4 arcmin; at least one source). Where the cell is cut by the
    edge of a footprint it is too low.

    Raises ValueError for a radius not above 0, a missing column, or a row whose position is not on the sky.
    """
    if not 0 < radius_arcsec <= 3600:
        raise ValueError(f"the radius is {radius_arcsec} arcsec; wanted above 0, at most 3600")
    a, b = Positions.of(left, "left"), Positions.of(right, "right")
    if not left.num_rows or not right.num_rows:
        return PAIR_SCHEMA.empty_table()
    a_key, b_key = keys_of(left, "left"), keys_of(right, "right")
    a_cell, b_cell = healpix29_of(left), healpix29_of(right)
    spacing = max(radius_arcsec, CLOSEST_BEADS_ARCSEC)
    a_beads = beads(a, a_cell, epoch_span(b), spacing)
    b_beads = beads(b, b_cell, epoch_span(a), spacing)
    search = radius_arcsec + a_beads.cover_arcsec + b_beads.cover_arcsec
    limit = round(radius_arcsec * 1e6)
    swap = a_beads.row.size > b_beads.row.size
    few, many = (b_beads, a_beads) if swap else (a_beads, b_beads)
    found: list[tuple[Ints, Ints, Ints]] = []
    rough: _Rough | None = None
    for few_row, many_row in _nearby(few, many, search):
        i, j = (many_row, few_row) if swap else (few_row, many_row)
        # worth its cost only where the radius is wide beside the distance of sources
        if i.size > (left.num_rows + right.num_rows) // 4:
            rough = rough or _Rough.of(a, b, radius_arcsec)
            near = rough.near(i, j)
            i, j = i[near], j[near]
        separation = _separation(a.take(i), b.take(j))
        near = separation <= limit
        found.append((i[near], j[near], separation[near]))
    i, j, separation = (np.concatenate(part) for part in zip(*found, strict=True)) if found else (np.zeros(0, int),) * 3
    if a_beads.row.size > left.num_rows or b_beads.row.size > right.num_rows:
        _, once = np.unique(i * right.num_rows + j, return_index=True)
        i, j, separation = i[once], j[once], separation[once]
    left_rank, left_rivals = _ranks(i, j, b_key, separation)
    right_rank, right_rivals = _ranks(j, i, a_key, separation)
    # rounded, since the last bits of an exponential hang on the processor
    chance = np.round(_chance(a_cell, b_cell, i, separation), 12)
    columns = [i, j, separation, left_rank, right_rank, (left_rank == 1) & (right_rank == 1)]
    columns += [left_rivals, right_rivals, chance]
    order = np.lexsort((left_rank, i))
    return pa.table([pa.array(c[order]) for c in columns], schema=PAIR_SCHEMA)


def healpix29_of(table: pa.Table) -> Ints:
    """The table's own column, or reckoned from ra and dec."""
    if "healpix29" in table.column_names and not table.column("healpix29").null_count:
        return np.asarray(table.column("healpix29").to_numpy(), np.int64)
    return sky.healpix29(table.column("ra").to_numpy(), table.column("dec").to_numpy())


def keys_of(table: pa.Table, what: str) -> Ints:
    """The keys, never through float."""
    column = table.column("key") if "key" in table.column_names else pa.chunked_array([], pa.null())
    if not pa.types.is_integer(column.type) or column.null_count:
        raise ValueError(f"{what}: key is {column.type} with {column.null_count} nulls; wanted integers without null")
    return np.asarray(column.cast(pa.int64()).to_numpy())


def _ranks(own: Ints, other: Ints, other_key: Ints, separation: Ints) -> tuple[NDArray[np.int32], ...]:
    count = np.bincount(own)[own] if own.size else own
    rank = np.ones(own.size, np.int32)
    rivalled = np.flatnonzero(count > 1)
    if rivalled.size:
        own, other = own[rivalled], other[rivalled]
        order = np.lexsort((other, other_key[other], separation[rivalled], own))
        sorted_own = own[order]
        first = np.flatnonzero(np.append(True, sorted_own[1:] != sorted_own[:-1]))
        run = np.diff(np.append(first, order.size))
        rank[rivalled[order]] = np.arange(order.size) - np.repeat(first, run) + 1
    return rank, (count - 1).astype(np.int32)


def _chance(a_cell: Ints, b_cell: Ints, i: Ints, separation: Ints) -> Floats:
    if not i.size:
        return np.zeros(0)
    here = sky.cells(a_cell[i], DENSITY_ORDER)
    first, last = here.min(), here.max()
    most = np.ones(i.size)
    for table in (a_cell, b_cell):
        cell = sky.cells(table, DENSITY_ORDER)
        cell = cell[(cell >= first) & (cell <= last)] - first
        most = np.maximum(most, np.bincount(cell, minlength=last - first + 1)[here - first])
    density = most / sky.cell_size_arcsec(DENSITY_ORDER) ** 2
    return np.asarray(-np.expm1(-np.pi * (separation / 1e6) ** 2 * density), np.float64)
