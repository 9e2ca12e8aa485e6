"""Pairs of sources of two tables that lie within a radius of each other, motion and epochs minded.

Works on any two Arrow tables with `key` (int64), `ra`, `dec` (ICRS degrees); `pmra`, `pmdec` (mas/yr, pmra times
cos(dec)), `epoch`, `epoch_min`, `epoch_max` (Julian years), `ra_error`, `dec_error` (arcsec, one sigma of RA times
cos(dec) and of Dec) and `healpix29` may be absent or null. `crossmatch.py` takes tables of other names and kinds.

A source with motion (pmra, pmdec and epoch known) moves along the great circle of its motion; one without holds its
position from epoch_min to epoch_max. The separation of two is their closest approach (docs/contracts.md, 3).

Both tables are sorted by HEALPix cell and joined (`kernel.py`). A moving source is looked up at beads along its track,
spaced by the radius.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skycairn.match import kernel, posterior, sky
from skycairn.match.posterior import Prior

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

UAS = 180 / np.pi * 3600e6
"""Micro-arcseconds in a radian."""
DENSITY_ORDER = 10
"""Chance is reckoned from the sources in the left source's cell of this order (206 arcsec)."""
CLOSEST_BEADS_ARCSEC = 1.0
"""Beads on tracks are no closer than this, however small the radius."""
EPOCHS = (1800.0, 2200.0)
"""Times outside of these years are no dates of positions."""
MOST_AT_ONCE = 1 << 20
"""Pairs whose closest approach is reckoned together, so that memory is bounded."""
DIGITS = 9
"""Decimals of what is no separation: the last bits of an exponential hang on the processor."""

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
        pa.field("sigmas", pa.float64(), metadata={"about": "separation over its error; null without both errors"}),
        pa.field("left_posterior", pa.float64(), metadata={"about": "that of the left source's candidates it is this"}),
        pa.field("right_posterior", pa.float64()),
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
    ra_error: Floats
    dec_error: Floats

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
        for name in ("epoch", "epoch_min", "epoch_max"):
            time = getattr(out, name)
            bad = (time < EPOCHS[0]) | (time > EPOCHS[1])
            if bad.any():
                row = int(np.argmax(bad))
                raise ValueError(
                    f"{what} at row {row}: {name} is {time[row]}; wanted a Julian year from {EPOCHS[0]:.0f} to "
                    f"{EPOCHS[1]:.0f}, null where it is not known (is it a modified Julian date?)"
                )
        low, high = out.interval()
        bad = low > high
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(
                f"{what} at row {row} holds from epoch {low[row]} to {high[row]}; wanted epoch_min <= epoch_max"
            )
        for name in ("ra_error", "dec_error"):
            bad = getattr(out, name) <= 0
            if bad.any():
                row = int(np.argmax(bad))
                raise ValueError(
                    f"{what} at row {row}: {name} is {getattr(out, name)[row]} arcsec; wanted above 0, or null where "
                    "it is not known"
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
    out = kernel.separations(a.ra, a.dec, b.ra, b.dec)
    rows = np.flatnonzero(a.moving | b.moving)
    for begin in range(0, rows.size, MOST_AT_ONCE):
        some = rows[begin : begin + MOST_AT_ONCE]
        one, other = closest_approach(a.take(some), b.take(some))
        out[some] = np.rint(sky.angle(one, other) * UAS).astype(np.int64)
    return out


def closest_approach(a: Positions, b: Positions) -> tuple[Floats, Floats]:
    """Unit vectors, shape (3, n), of each two sources where they are nearest to each other."""
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
    ra: Floats
    dec: Floats
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
        return Beads(np.arange(s.ra.size), s.ra, s.dec, healpix29, cover)
    m, low, high, length = m.take(np.flatnonzero(long)), low[long], high[long], length[long]
    count = np.ceil(length / spacing_arcsec).astype(np.int64)
    cover = max(cover, float((length / count).max()) / 2)
    source, step = _expand(np.zeros(count.size, np.int64), count)
    time = low[source] + (step + 0.5) / count[source] * (high - low)[source]
    on = m.take(source)
    ra, dec = sky.propagate(on.ra, on.dec, on.pmra, on.pmdec, time - on.epoch)
    still = np.ones(s.ra.size, bool)
    still[moving[long]] = False
    return Beads(
        np.concatenate([np.flatnonzero(still), moving[long][source]]),
        np.concatenate([s.ra[still], ra]),
        np.concatenate([s.dec[still], dec]),
        np.concatenate([healpix29[still], sky.healpix29(ra, dec)]),
        cover,
    )


def _expand(start: Ints, count: Ints) -> tuple[Ints, Ints]:
    """For each i, the numbers start[i] .. start[i] + count[i] - 1: the i and the numbers, flat."""
    which = np.repeat(np.arange(count.size), count)
    first = np.cumsum(count) - count
    return which, np.arange(which.size) - first[which] + start[which]


def _in_order(beads: Beads) -> Beads:
    if (beads.healpix29[1:] >= beads.healpix29[:-1]).all():
        return beads
    order = np.argsort(beads.healpix29, kind="stable")
    return Beads(
        beads.row[order], beads.ra[order], beads.dec[order], beads.healpix29[order], cover_arcsec=beads.cover_arcsec
    )


def _within(a: Positions, b: Positions, a_cell: Ints, b_cell: Ints, radius_arcsec: float) -> tuple[Ints, Ints, Ints]:
    """Rows of a, rows of b, separations, sorted by the rows."""
    spacing = max(radius_arcsec, CLOSEST_BEADS_ARCSEC)
    left = _in_order(beads(a, a_cell, epoch_span(b), spacing))
    right = _in_order(beads(b, b_cell, epoch_span(a), spacing))
    search = radius_arcsec
    if left.cover_arcsec or right.cover_arcsec:
        search += left.cover_arcsec + right.cover_arcsec + 1e-6
    i, j, apart = kernel.near(left.healpix29, left.ra, left.dec, right.healpix29, right.ra, right.dec, search)
    i, j = left.row[i], right.row[j]
    if a.moving.any() or b.moving.any():
        moves = a.moving[i] | b.moving[j]
        # several beads of a track may be near one source
        _, once = np.unique(i[moves] * b.ra.size + j[moves], return_index=True)
        kept = np.sort(np.concatenate([np.flatnonzero(~moves), np.flatnonzero(moves)[once]]))
        i, j, apart, moves = i[kept], j[kept], apart[kept], moves[kept]
        apart[moves] = _separation(a.take(i[moves]), b.take(j[moves]))
        near = apart <= round(radius_arcsec * 1e6)
        i, j, apart = i[near], j[near], apart[near]
    order = np.lexsort((j, i))
    return i[order], j[order], apart[order]


def candidate_pairs(
    left: pa.Table,
    right: pa.Table,
    radius_arcsec: float,
    prior: Prior | None = None,
    right_ratio: Floats | None = None,
) -> pa.Table:
    """All pairs within `radius_arcsec`, as `PAIR_SCHEMA`, sorted by left_row and left_rank.

    Ranks order the candidates of a source by (separation_uas, key of the other). `chance` is 1 - exp(-pi s^2 n): the
    probability that an unrelated source lies within the separation s, where n is the surface density of the denser
    table, counted in the left source's order-10 cell (3.4 arcmin; at least one source). Where the cell is cut by the
    edge of a footprint it is too low. `sigmas` is the separation in units of both errors, at its own position angle;
    the errors of a moving source are those at its own epoch. The posteriors are as in `posterior.py`, with this prior
    (null without one) and, for each right row, the ratio of a magnitude prior.

    Raises ValueError for a radius not above 0, a missing column, or a row whose position is not on the sky.
    """
    if not 0 < radius_arcsec <= 3600:
        raise ValueError(f"the radius is {radius_arcsec} arcsec; wanted above 0, at most 3600")
    a, b = Positions.of(left, "left"), Positions.of(right, "right")
    if not left.num_rows or not right.num_rows:
        return PAIR_SCHEMA.empty_table()
    a_key, b_key = keys_of(left, "left"), keys_of(right, "right")
    a_cell, b_cell = healpix29_of(left), healpix29_of(right)
    i, j, separation = _within(a, b, a_cell, b_cell, radius_arcsec)
    left_rank, left_rivals = _ranks(i, j, b_key, separation)
    right_rank, right_rivals = _ranks(j, i, a_key, separation)
    chance = np.round(_chance(a_cell, b_cell, i, separation), 12)
    columns = [i, j, separation, left_rank, right_rank, (left_rank == 1) & (right_rank == 1)]
    columns += [left_rivals, right_rivals, chance]
    columns += _by_errors(a, b, a_cell, b_cell, i, j, separation, radius_arcsec, prior, right_ratio)
    order = np.lexsort((left_rank, i))
    return pa.table([pa.array(c[order], from_pandas=True) for c in columns], schema=PAIR_SCHEMA)


def _by_errors(
    a: Positions,
    b: Positions,
    a_cell: Ints,
    b_cell: Ints,
    i: Ints,
    j: Ints,
    separation: Ints,
    radius_arcsec: float,
    prior: Prior | None,
    right_ratio: Floats | None,
) -> list[Floats]:
    """`sigmas`, `left_posterior`, `right_posterior`; NaN where an error is not known."""
    sigmas, likelihood = np.full(i.size, np.nan), np.full(i.size, np.nan)
    known = np.isfinite(a.ra_error * a.dec_error), np.isfinite(b.ra_error * b.dec_error)
    rows = np.flatnonzero(known[0][i] & known[1][j])
    if not rows.size:
        return [sigmas, sigmas, sigmas]
    one, other = a.take(i[rows]), b.take(j[rows])
    east, north = _directions(one, other)
    ra_error, dec_error = np.hypot(one.ra_error, other.ra_error), np.hypot(one.dec_error, other.dec_error)
    sigmas[rows] = separation[rows] / 1e6 * np.hypot(east / ra_error, north / dec_error)
    if prior is None:
        return [np.round(sigmas, DIGITS), *(np.full(i.size, np.nan) for _ in range(2))]
    by_errors = posterior.likelihoods(sigmas[rows], ra_error, dec_error, radius_arcsec, 0.0)
    found, outliers = prior.found, prior.outliers
    if found is None or outliers is None:
        found, outliers = posterior.estimate_shares(
            i[rows], j[rows], by_errors, radius_arcsec, prior, a_cell, b_cell, known
        )
    likelihood[rows] = posterior.likelihoods(sigmas[rows], ra_error, dec_error, radius_arcsec, outliers)
    left, right, lower = prior.of_pairs(a_cell[i])
    ratio = 1.0 if right_ratio is None else right_ratio[j]
    of_left, of_right = posterior.posteriors(i, j, likelihood, left, right, found * lower, ratio)
    return [np.round(values, DIGITS) for values in (sigmas, of_left, of_right)]


def _directions(a: Positions, b: Positions) -> tuple[Floats, Floats]:
    """East and north components of the unit vector from each a to its b, where they are nearest; 0 where they meet."""
    one, other = sky.unit_vectors(a.ra, a.dec), sky.unit_vectors(b.ra, b.dec)
    moves = np.flatnonzero(a.moving | b.moving)
    if moves.size:
        one[:, moves], other[:, moves] = closest_approach(a.take(moves), b.take(moves))
    lon, lat = np.radians(a.ra), np.radians(a.dec)
    d = other - one
    east = -np.sin(lon) * d[0] + np.cos(lon) * d[1]
    north = -np.sin(lat) * (np.cos(lon) * d[0] + np.sin(lon) * d[1]) + np.cos(lat) * d[2]
    length = np.hypot(east, north)
    return tuple(np.divide(x, length, out=np.zeros_like(x), where=length > 0) for x in (east, north))


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
