"""Cross-match of two tables of any kind: Arrow, pandas or astropy; nothing of a pile is needed.

    from skycairn.match.crossmatch import crossmatch

    matched = crossmatch(gaia, legacy, radius_arcsec=1.0, right_names={"ra": "RA", "dec": "DEC"})

docs/matching.md tells what the columns mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import astropy.units as u
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skycairn.match import posterior, sky
from skycairn.match.pairs import candidate_pairs, healpix29_of
from skycairn.match.posterior import FOUND, OUTLIERS, Prior

Keep = Literal["mutual", "nearest", "all", "posterior"]

UNITS = {
    "ra": "deg",
    "dec": "deg",
    "ra_error": "arcsec",
    "dec_error": "arcsec",
    "pmra": "mas / yr",
    "pmdec": "mas / yr",
    "epoch": "yr",
    "epoch_min": "yr",
    "epoch_max": "yr",
}
"""Of what matching reads, beside `key`: what a table without units is taken to hold."""
SAFE = 0.9
"""Pairs of at least this posterior teach a magnitude prior."""


def crossmatch(
    left: Any,
    right: Any,
    radius_arcsec: float | u.Quantity,
    *,
    keep: Keep = "mutual",
    left_names: Mapping[str, str | None] | None = None,
    right_names: Mapping[str, str | None] | None = None,
    found: float | None = FOUND,
    outliers: float | None = OUTLIERS,
    right_magnitude: str | None = None,
    suffixes: tuple[str, str] = ("_left", "_right"),
    columns: Literal["both", "pairs"] = "both",
) -> Any:
    """Pairs of rows of two tables within a radius, as a table of the kind that `left` is.

    Args:
        left, right: `pyarrow.Table`, `pandas.DataFrame` or `astropy.table.Table`. Wanted are `ra`, `dec` (ICRS
            degrees); used where there are `ra_error`, `dec_error` (arcsec, one sigma of RA times cos(dec), of Dec),
            `pmra`, `pmdec` (mas/yr, RA times cos(dec)), `epoch` (Julian years; of a row without a
            motion too, where there are no `epoch_min`, `epoch_max`, between which such rows hold). Columns that bear a
            unit are converted. Errors that bear none are used only where they are named, since Gaia's are in mas. `key`
            (integers, where it is named) settles ties, else the row does.
        radius_arcsec: above 0, at most 3600; or an angle with its unit.
        keep: `mutual`: nearest on both sides; `nearest`: of each left row; `all`; `posterior`: the likeliest on both
            sides, of rows that have a counterpart rather than not (`posterior.believed`), nearest where an error is not
            known.
        left_names, right_names: the table's own names of these columns, where they differ (in more than case; `epoch`
            may be `ref_epoch`); None for one that is not to be used.
        found: prior share of the sparser table's sources that have a counterpart in the other; None estimates it.
        outliers: share of true pairs that lie farther apart than their errors say; None estimates it.
        right_magnitude: a column of the right table, in magnitudes, whose distribution among safe counterparts is
            learnt and weighs the posteriors (NWAY's automatic prior).
        suffixes: for columns of the same name.
        columns: `both` tables' and the pairs' columns, or those of the `pairs` alone.

    Returns:
        One row a pair, sorted by left row and rank: `left_row`, `right_row` (0-based), `separation_uas` (integer
        micro-arcseconds), `left_rank`, `right_rank`, `mutual`, `left_rivals`, `right_rivals`, `chance`, `sigmas`,
        `left_posterior`, `right_posterior`, after the tables' own columns.

    Raises:
        ValueError: a column is missing or of a wrong unit; a position is NaN, null or not on the sky (by row); `keep`
            is `posterior` and errors are not known; too few safe pairs to learn a magnitude prior.
        TypeError: a table of another kind.
    """
    if keep not in ("mutual", "nearest", "all", "posterior"):
        raise ValueError(f"keep is {keep!r}; wanted 'mutual', 'nearest', 'all' or 'posterior'")
    if columns not in ("both", "pairs"):
        raise ValueError(f"columns is {columns!r}; wanted 'both' or 'pairs'")
    if isinstance(radius_arcsec, u.Quantity):
        radius_arcsec = float(radius_arcsec.to_value(u.arcsec))
    a, b = (
        positions(table, names or {}, what)
        for table, names, what in ((left, left_names, "left"), (right, right_names, "right"))
    )
    prior = Prior.of(healpix29_of(a), healpix29_of(b), found, outliers)
    pairs = candidate_pairs(a, b, radius_arcsec, prior)
    if right_magnitude is not None:
        magnitude = values_of(right, _named(right, right_magnitude, "right"), None, "right")
        of_both = _least_posterior(pairs)
        safe = np.zeros(b.num_rows, bool)
        safe[pairs.column("right_row").to_numpy()[of_both >= SAFE]] = True
        pairs = candidate_pairs(a, b, radius_arcsec, prior, posterior.magnitude_ratio(magnitude, safe))
    if keep == "posterior":
        if pairs.num_rows and not np.isfinite(_least_posterior(pairs)).any():
            raise ValueError(
                "no pair has a posterior, since errors are not known on both sides; wanted ra_error and dec_error in "
                "both tables, or another `keep`"
            )
        unknown = pa.array(np.isnan(_least_posterior(pairs)))
        names = [f"{side}_{what}" for what in ("row", "posterior", "rank") for side in ("left", "right")]
        likely = pa.array(posterior.believed(*(pairs.column(name).to_numpy() for name in names)))
        pairs = pairs.filter(pc.if_else(unknown, pairs["mutual"].combine_chunks(), likely))
    elif keep != "all":
        pairs = pairs.filter(pairs["mutual"] if keep == "mutual" else pa.array(pairs["left_rank"].to_numpy() == 1))
    if columns == "pairs":
        return _as(left, pairs)
    return _joined(left, right, pairs, suffixes)


def positions(table: Any, names: Mapping[str, str | None], what: str) -> pa.Table:
    """What matching reads of a table, under its standard names and units.

    With `healpix29` beside it. ValueError where `names` has others than these, or names a column that is not there, or
    motions have no epoch, or no other half, which would make them nothing. The epoch of a row without a motion is when
    its position holds.
    """
    unknown = sorted(set(names) - {"key", *UNITS})
    if unknown:
        raise ValueError(f"{what}: names of {', '.join(unknown)}; wanted some of key, {', '.join(UNITS)}")
    out: dict[str, Any] = {}
    for name, unit in UNITS.items():
        own = _own(table, names, name, what)
        if own is not None and name.endswith("_error") and name not in names and _unit(table, own) is None:
            own = None
        if own is not None:
            out[name] = values_of(table, own, unit, what)
        elif name in ("ra", "dec"):
            raise ValueError(
                f"{what} has no column {name!r}; it has {', '.join(_columns(table))}. Name it: {what}_names="
                f"{{{name!r}: ...}}"
            )
    if {"pmra", "pmdec"} <= set(out) and "epoch" not in out:
        raise ValueError(
            f"{what} has motions and no column 'epoch' or 'ref_epoch' that tells when its positions hold: name it, "
            f"{what}_names={{'epoch': ...}}, or leave the motions out, {what}_names={{'pmra': None, 'pmdec': None}}"
        )
    if len(half := {"pmra", "pmdec"} & set(out)) == 1:
        raise ValueError(
            f"{what} has {half.pop()} and not the other half of the motion: name it, {what}_names={{'pmra': ..., "
            f"'pmdec': ...}}, or leave both out, {what}_names={{'pmra': None, 'pmdec': None}}"
        )
    if "epoch" in out and not {"epoch_min", "epoch_max"} & set(out):
        out["epoch_min"] = out["epoch_max"] = out["epoch"]  # of rows that are known not to move, or not known to
    named = names.get("key")
    own = None if named is None else _named(table, named, what)
    key = np.arange(len(out["ra"])) if own is None else _keys(table, own, what)
    healpix29 = sky.healpix29(out["ra"], out["dec"], what)
    columns = {name: pa.array(values, from_pandas=True) for name, values in out.items()}
    return pa.table({"key": pa.array(key, pa.int64()), **columns, "healpix29": healpix29})


def _kind(table: Any) -> str:
    """`arrow`, `pandas` or `astropy`, without importing what the caller has not."""
    if isinstance(table, pa.Table):
        return "arrow"
    for module in (f"{cls.__module__}.{cls.__name__}" for cls in type(table).__mro__):
        if module.startswith("pandas.") and module.endswith("DataFrame"):
            return "pandas"
        if module.startswith("astropy.table.") and module.endswith(".Table"):
            return "astropy"
    raise TypeError(f"a table is a {type(table).__name__}; wanted a pyarrow.Table, pandas.DataFrame or astropy Table")


def _columns(table: Any) -> list[str]:
    kind = _kind(table)
    if kind == "arrow":
        return list(table.column_names)
    return [str(name) for name in (table.columns if kind == "pandas" else table.colnames)]


def _named(table: Any, own: str, what: str) -> str:
    if own not in _columns(table):
        raise ValueError(f"{what} has no column {own!r}; it has {', '.join(_columns(table))}")
    return own


def _own(table: Any, names: Mapping[str, str | None], name: str, what: str) -> str | None:
    """The table's own name of what matching calls `name`; None where it has none, or is not to use it."""
    if name in names:
        named = names[name]
        return None if named is None else _named(table, named, what)
    found = _found(table, name, what)
    return _found(table, "ref_epoch", what) if found is None and name == "epoch" else found


def _unit(table: Any, own: str) -> str | None:
    """Of a column; None where it bears none."""
    kind = _kind(table)
    if kind == "arrow":
        return (table.schema.field(own).metadata or {}).get(b"unit", b"").decode() or None
    unit = None if kind == "pandas" else getattr(table[own], "unit", None)
    return None if unit is None else str(unit)


def _found(table: Any, name: str, what: str) -> str | None:
    """The column of this name, in any case."""
    same = [own for own in _columns(table) if own.lower() == name]
    if name in same:
        return name
    if len(same) > 1:
        raise ValueError(f"{what} has columns {', '.join(same)}; say which is {name!r}: {what}_names={{{name!r}: ...}}")
    return same[0] if same else None


def values_of(table: Any, own: str, unit: str | None, what: str) -> NDArray[np.float64]:
    """As float64 in this unit, NaN where null or masked."""
    column = table[own]
    kind, has = _kind(table), _unit(table, own)
    stored = str(column.type if kind == "arrow" else getattr(column, "dtype", ""))
    if unit == "deg" and stored.lower() in ("float", "float32", ">f4", "<f4", "halffloat", "float16"):
        raise ValueError(
            f"{what}: {own} is {stored}, which knows no place on the sky better than 0.1 arcsec; wanted float64 "
            "(cast it yourself where it was never better)"
        )
    if unit == "yr" and has not in (None, "yr", "a", "year"):
        raise ValueError(f"{what}: {own} is in {has!r}; wanted Julian years (a modified Julian date is none)")
    if kind == "arrow":
        try:
            values = column.cast(pa.float64()).to_numpy()
        except pa.ArrowInvalid as error:
            raise ValueError(f"{what}: {own} is {column.type}; wanted numbers") from error
    elif hasattr(column, "jyear"):
        return np.asarray(np.ma.filled(np.ma.asarray(column.jyear), np.nan), np.float64)
    else:
        try:
            if kind == "pandas":
                values = np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
            else:
                values = np.ma.filled(np.ma.asarray(getattr(column, "value", column), np.float64), np.nan)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{what}: {own} is {stored}; wanted numbers ({error})") from error
    values = np.asarray(values, np.float64)
    if unit is None or has is None or has == unit:
        return values
    try:
        return np.asarray(values * u.Unit(has).to(u.Unit(unit)), np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{what}: {own} is in {has!r}; wanted what converts to {unit!r} ({error})") from error


def _keys(table: Any, own: str, what: str) -> Any:
    """Integers, never through float."""
    column = table[own]
    if _kind(table) == "arrow":
        if not pa.types.is_integer(column.type) or column.null_count:
            raise ValueError(f"{what}: {own} is {column.type} with {column.null_count} nulls; wanted integers, no null")
        return column.cast(pa.int64())
    values = np.asarray(column)
    if values.dtype.kind not in "iu" or np.ma.is_masked(column):
        raise ValueError(f"{what}: {own} is {values.dtype}; wanted integers without null")
    if values.dtype.kind == "u" and values.size and values.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{what}: {own} at row {int(values.argmax())} is {values.max()}; wanted below 2^63")
    return values.astype(np.int64)


def _least_posterior(pairs: pa.Table) -> NDArray[np.float64]:
    left, right = (pairs.column(f"{side}_posterior").to_numpy() for side in ("left", "right"))
    return np.minimum(left, right)


def _as(like: Any, pairs: pa.Table) -> Any:
    kind = _kind(like)
    if kind == "pandas":
        return pairs.to_pandas()
    if kind == "astropy":
        from astropy.table import Table

        return Table({name: pairs.column(name).to_numpy() for name in pairs.column_names})
    return pairs


def _joined(left: Any, right: Any, pairs: pa.Table, suffixes: tuple[str, str]) -> Any:
    """Both tables' columns, then the pairs'."""
    if _kind(left) != _kind(right):
        raise TypeError(
            f"left is of {_kind(left)} ({type(left).__name__}), right of {_kind(right)} ({type(right).__name__}); "
            "wanted two of one kind, or columns='pairs'"
        )
    both = set(_columns(left)) & set(_columns(right))
    tables = (left, right)
    names = [
        [name + suffix if name in both else name for name in _columns(table)]
        for table, suffix in zip(tables, suffixes, strict=True)
    ]
    every = [*names[0], *names[1], *pairs.column_names]
    twice = sorted({name for name in every if every.count(name) > 1})
    if twice:
        raise ValueError(
            f"the result would have {', '.join(twice)} twice; choose other suffixes, rename these columns, or take "
            "columns='pairs'"
        )
    rows = [pairs.column(name).to_numpy() for name in ("left_row", "right_row")]
    kind = _kind(left)
    if kind == "arrow":
        parts = [t.take(pa.array(r)).rename_columns(n) for t, r, n in zip(tables, rows, names, strict=True)]
        fields = [field for part in (*parts, pairs) for field in part.schema]
        return pa.table([column for part in (*parts, pairs) for column in part.columns], schema=pa.schema(fields))
    parts = [t.iloc[r] if kind == "pandas" else t[r] for t, r in zip(tables, rows, strict=True)]
    if kind == "pandas":
        import pandas as pd

        parts = [part.set_axis(own, axis=1).reset_index(drop=True) for part, own in zip(parts, names, strict=True)]
        return pd.concat([*parts, pairs.to_pandas()], axis=1)
    from astropy.table import hstack

    for part, own in zip(parts, names, strict=True):
        part.rename_columns(part.colnames, own)
    return hstack([*parts, _as(left, pairs)], metadata_conflicts="silent")
