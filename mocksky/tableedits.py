"""Edit a survey's tables as a second release does: rows moved, split, changed, gone, added; and say what was done.

One function for every survey. A `Form` says what the survey's columns mean; which rows are edited is told by a seeded
hash of their keys, so the same seed edits the same rows whatever the order of the files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from skycairn.mocksky.streams import stream
from skycairn.mocksky.truth import offset, unit

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Rows = dict[str, NDArray[Any]]
Entry = dict[str, Any]
"""A row of a table of truth."""

SHARES = {"split": 0.01, "gone": 0.01, "moved": 0.03, "changed": 0.03}
"""Of the rows that can be edited so; one row at least, where there are any."""
ADDED = 0.01
"""New rows, of as many as the first release has: things that it did not hold."""
SHIFT_ARCSEC = (0.05, 0.3)
RESCALED = (0.02, 0.06)
"""By how much a changed flux grows or shrinks, relative."""
APART_ARCSEC = (0.5, 0.9)
"""Of the two rows of a split that was no blend."""
GONE = "gone in release 2"

LINEAGE = pa.schema(
    [
        pa.field("key_1", pa.int64(), metadata={"about": "in release 1; null = a new row"}),
        pa.field("key_2", pa.int64(), metadata={"about": "in release 2; null = the row is gone"}),
        pa.field("what", pa.string()),
        pa.field("uid", pa.int64(), metadata={"about": "a true thing in the row, the smallest; 0 = none"}),
        pa.field("parent", pa.int64(), metadata={"about": "new rows of a split: key in release 1 of what was split"}),
    ]
)


class Added(NamedTuple):
    """New rows for true things."""

    rows: Rows
    "by column; the key's columns are set afterwards"
    uid: I64
    "0: no true thing"
    dirt: list[str]


NEW = 1 << 32
"""Added to the seed for the streams of random numbers of release 2."""


def _nothing(rows: Rows) -> NDArray[np.bool_]:
    return np.zeros(len(next(iter(rows.values()))), dtype=bool)


@dataclass(frozen=True)
class Form:
    """What the columns of a survey's table mean. Fluxes of any unit, positions in degrees."""

    survey: str
    key: Callable[[Rows], I64]
    "-1 where a row has none"
    ra: str
    dec: str
    number: Callable[[Rows, Rows], None]
    "gives new rows (second argument) keys of their own, that no row of the first has"
    flux: tuple[str, ...] = ()
    "columns that grow with the light of the source"
    error: tuple[str, ...] = ()
    ivar: tuple[str, ...] = ()
    mag: tuple[str, ...] = ()
    band: str = ""
    "the truth's flux that shares a blend's light"
    kinds: tuple[str, ...] = tuple(SHARES)
    first: Callable[[Rows, F64], NDArray[Any]] | None = None
    "edits of the survey's own, made first: gives what was done to each row, '' where it is left to the rest"
    steady: Callable[[Rows], NDArray[np.bool_]] = _nothing
    "rows that neither move nor split"
    change: Callable[[Rows, I64, np.random.Generator], None] | None = None
    "instead of rescaling the flux"
    shift: Callable[[Rows, I64], F64] | None = None
    "largest displacement in arcsec of each row, instead of SHIFT_ARCSEC"
    settle: Callable[[Rows, I64], None] | None = None
    "what else hangs on the position of these rows, which moved"
    parts: Callable[[Rows], None] | None = None
    "what else is to be done to the new rows of a split"
    stays: bool = True
    "a split may leave the old key to one of its parts"
    add: Callable[[Rows, int], Added] | None = None
    "as many new rows, or fewer, from the table"
    extras: Mapping[str, str] = field(default_factory=dict)
    "further columns of the survey's truth table, and the survey's columns that hold them"


def chance(seed: int, survey: str, keys: I64) -> F64:
    """A number in [0, 1) of each key, the same wherever its row stands."""
    words = [hashlib.blake2b(f"{seed}/{survey}/{k}".encode(), digest_size=8).digest() for k in keys.tolist()]
    return np.frombuffer(b"".join(words), dtype=">u8").astype(np.float64) / 2**64


def few(n: int, share: float) -> int:
    """This share of n, one at least where there are any."""
    return min(n, max(1, round(n * share)))


def scale(rows: Rows, form: Form, at: I64, factor: F64, recalibrate: bool = False) -> None:
    """Multiply the light of these rows; its errors with it where all is calibrated anew."""
    for name in form.flux:
        rows[name][at] = rows[name][at] * factor
    for name in form.mag:
        rows[name][at] = rows[name][at] - 2.5 * np.log10(factor)
    for name in form.error if recalibrate else ():
        rows[name][at] = rows[name][at] * factor
    for name in form.ivar if recalibrate else ():
        rows[name][at] = rows[name][at] / factor**2


def nearest(rows: Rows, form: Form, at: I64, ra: F64, dec: F64) -> I64:
    """Of the rows `at`, the one nearest to each position."""
    tree = cKDTree(unit(rows[form.ra][at], rows[form.dec][at]))
    return np.asarray(at[tree.query(unit(ra, dec))[1]], dtype=np.int64)


def take(rows: Rows, at: I64 | NDArray[np.bool_]) -> Rows:
    """These rows, copied."""
    return {name: column[at].copy() for name, column in rows.items()}


def join(*parts: Rows) -> Rows:
    """Tables one below the other."""
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def missed(truth: pa.Table, sources: Rows, why: str) -> I64:
    """Rows of `sources` that the survey does not hold for this reason."""
    uid = truth.filter(pa.array(np.array(truth.column("why_not").to_pylist()) == why)).column("uid").to_numpy()
    return np.flatnonzero(np.isin(sources["uid"], uid))


def choose(rows: Rows, form: Form, keys: I64, blended: NDArray[np.bool_], seed: int) -> tuple[NDArray[Any], F64]:
    """What is to be done to each row (edits of the survey's own are made), and the chance of its key.

    Rows without a key of their own or without a position are left alone.
    """
    odds = chance(seed, form.survey, keys)
    what = np.full(len(keys), "", dtype="U10")
    if form.first is not None:
        what[:] = form.first(rows, odds)
    free = (what == "") & (keys >= 0) & np.isfinite(rows[form.ra]) & np.isfinite(rows[form.dec])
    _, number_of, count = np.unique(keys, return_inverse=True, return_counts=True)
    free &= count[number_of] == 1
    with_light = np.any([np.isfinite(rows[f]) & (rows[f] != 0) for f in form.flux], axis=0) if form.flux else free
    steady = form.steady(rows)
    order = np.lexsort((keys, odds))
    number = {kind: few(int(free.sum()), share) for kind, share in SHARES.items()}
    for kind in form.kinds:
        able = free & (what == "")
        if kind in ("moved", "split"):
            able &= ~steady
        if kind == "split" or (kind == "changed" and form.change is None):
            able &= with_light
        # a blend is what a better release resolves
        ranked = np.concatenate([order[blended[order]], order[~blended[order]]]) if kind == "split" else order
        what[ranked[able[ranked]][: number[kind]]] = kind
    what[what == ""] = "same"
    return what, odds


def edit(rows: Rows, form: Form, seed: int, truth: pa.Table, sources: Rows) -> tuple[Rows, pa.Table, pa.Table]:
    """The table of release 2, its lineage (`LINEAGE`), and its truth; `rows` is edited in place.

    `truth` is the survey's table of truth of release 1, `sources` has uid, ra, dec and the fluxes of true things.
    """
    old = form.key(rows)
    members: dict[int, list[Entry]] = {}
    listed = truth.to_pylist()
    for entry in listed:
        if entry["key"] is not None:
            members.setdefault(entry["key"], []).append(entry)
    blended = np.array([len(members.get(k, ())) > 1 for k in old.tolist()], dtype=bool)
    what, odds = choose(rows, form, old, blended, seed)
    rng = stream(seed, form.survey, 0, "second release")

    _move(rows, form, np.flatnonzero(what == "moved"), rng)
    at = np.flatnonzero(what == "changed")
    if form.change is not None:
        form.change(rows, at, rng)
    else:
        scale(rows, form, at, 1 + rng.choice([-1, 1], len(at)) * rng.uniform(*RESCALED, len(at)), recalibrate=True)

    at = np.flatnonzero(what == "split")
    one, two, owners_one, owners_two = _split(rows, form, at, [members.get(int(k), []) for k in old[at]], sources, rng)
    stay = np.floor(odds[at] * 2**40).astype(np.int64) % 2 == 0 if form.stays else np.zeros(len(at), dtype=bool)
    for name in rows:
        rows[name][at] = one[name]
    parts = join(take(one, ~stay), two)
    if form.parts is not None:
        form.parts(parts)
    parent = old[np.concatenate([at[~stay], at])]
    owners = [m for m, s in zip(owners_one, stay, strict=True) if not s] + owners_two
    added = _no_rows(rows) if form.add is None else form.add(rows, few(len(old), ADDED))
    fresh = join(parts, {name: added.rows[name] for name in rows})
    form.number(rows, fresh)
    owners += [[_entry(u, d)] if u else [] for u, d in zip(added.uid.tolist(), added.dirt, strict=True)]
    leaves = what == "gone"
    leaves[at[~stay]] = True
    after, new = form.key(rows), form.key(fresh)

    kept = [e for e in listed if e["key"] is None and e["observed"]]
    shown = members | {int(old[i]): m for i, m in zip(at.tolist(), owners_one, strict=True)}
    for i in np.flatnonzero((old >= 0) & ~leaves).tolist():
        kept += [e | {"key": int(after[i])} | _extras(rows, form, i) for e in shown.get(int(old[i]), [])]
    for j, mine in enumerate(owners):
        kept += [e | {"key": int(new[j])} | _extras(fresh, form, j) for e in mine]
    spurious = [j for j in range(len(parent), len(new)) if not owners[j]]
    kept += [_entry(0, "spurious") | {"key": int(new[j])} | _extras(fresh, form, j) for j in spurious]
    lineage = _lineage(old, np.where(leaves, -1, after), what, members, new, parent, owners)
    return join(take(rows, ~leaves), fresh), lineage, _truth(truth.schema, listed, kept)


def _move(rows: Rows, form: Form, at: I64, rng: np.random.Generator) -> None:
    angle, far = rng.uniform(0, 2 * np.pi, len(at)), rng.uniform(*SHIFT_ARCSEC, len(at))
    if form.shift is not None:
        far = far / SHIFT_ARCSEC[1] * form.shift(rows, at)
    east, north = far * np.sin(angle), far * np.cos(angle)
    rows[form.ra][at], rows[form.dec][at] = offset(rows[form.ra][at], rows[form.dec][at], east, north)
    if form.settle is not None:
        form.settle(rows, at)


def _lineage(
    old: I64,
    after: I64,
    what: NDArray[Any],
    members: dict[int, list[Entry]],
    new: I64,
    parent: I64,
    owners: list[list[Entry]],
) -> pa.Table:
    """Rows of release 1 with a key, in their order, then the new ones: the parts of splits, what was added."""
    lines: list[Entry] = []
    for i in np.flatnonzero(old >= 0).tolist():
        ends = int(after[i]) if after[i] >= 0 else None
        mine = members.get(int(old[i]), [])
        lines.append({"key_1": int(old[i]), "key_2": ends, "what": str(what[i]), "uid": _smallest(mine)})
    for j, mine in enumerate(owners):
        born: Entry = {"what": "split", "parent": int(parent[j])} if j < len(parent) else {"what": "added"}
        lines.append({"key_2": int(new[j]), "uid": _smallest(mine), **born})
    return pa.Table.from_pylist(lines, schema=LINEAGE)


def _split(
    rows: Rows, form: Form, at: I64, members: list[list[Entry]], sources: Rows, rng: np.random.Generator
) -> tuple[Rows, Rows, list[list[Entry]], list[list[Entry]]]:
    """The two parts of each row `at`, and the true things in either: a blend falls apart at its brightest member."""
    place = {int(u): i for i, u in enumerate(sources["uid"])}
    part, angle = rng.uniform(0.6, 0.8, len(at)), rng.uniform(0, 2 * np.pi, len(at))
    far = rng.uniform(*APART_ARCSEC, len(at))
    ra = np.stack([rows[form.ra][at]] * 2)
    dec = np.stack([rows[form.dec][at]] * 2)
    ra[1], dec[1] = offset(ra[1], dec[1], far * np.sin(angle), far * np.cos(angle))
    firsts, seconds = [], []
    for k, mine in enumerate(members):
        if len(mine) < 2 or not form.band:
            firsts.append(mine)
            seconds.append(mine)
            continue
        light = np.array([sources[form.band][place[e["uid"]]] for e in mine])
        order = np.argsort(-light, kind="stable")
        part[k] = light[order[0]] / light.sum()
        for half, i in enumerate(order[:2]):
            ra[half, k], dec[half, k] = (sources[c][place[mine[i]["uid"]]] for c in ("ra", "dec"))
        firsts.append(_resolved([mine[order[0]]]))
        seconds.append(_resolved([mine[i] for i in order[1:]]))
    out = []
    for half, factor in enumerate((part, 1 - part)):
        new = take(rows, at)
        scale(new, form, np.arange(len(at)), factor)
        new[form.ra], new[form.dec] = ra[half], dec[half]
        out.append(new)
    return out[0], out[1], firsts, seconds


def _resolved(entries: list[Entry]) -> list[Entry]:
    if len(entries) > 1:
        return entries
    return [e | {"dirt": ",".join(d for d in e["dirt"].split(",") if d != "blend")} for e in entries]


def _no_rows(rows: Rows) -> Added:
    return Added(take(rows, np.zeros(0, dtype=np.int64)), np.zeros(0, dtype=np.int64), [])


def _entry(uid: int, dirt: str) -> Entry:
    return {"uid": uid, "dirt": dirt, "observed": True, "why_not": ""}


def _smallest(entries: list[Entry]) -> int:
    return min((e["uid"] for e in entries), default=0)


def _extras(rows: Rows, form: Form, i: int) -> Entry:
    out: Entry = {}
    for name, column in form.extras.items():
        value = rows[column][i]
        value = (
            value.decode().strip() if isinstance(value, bytes) else value.item() if hasattr(value, "item") else value
        )
        out[name] = {"True": True, "False": False}.get(value, value) if isinstance(value, str) else value
    return out


def _truth(schema: pa.Schema, before: list[Entry], kept: list[Entry]) -> pa.Table:
    """The entries of rows that are, then of true things that have none; those that had one are gone."""
    held = {e["uid"] for e in kept}
    blank: Entry = {f.name: False if pa.types.is_boolean(f.type) else None for f in schema}
    for e in before:
        if e["uid"] not in held:
            held.add(e["uid"])
            kept.append(blank | {"uid": e["uid"], "dirt": "", "why_not": GONE} if e["observed"] else e)
    kept.sort(key=lambda e: (not e["observed"], e["uid"], e["key"] is None, e["key"] or 0))
    return pa.Table.from_pylist(kept, schema=schema)
