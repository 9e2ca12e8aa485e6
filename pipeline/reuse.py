"""Rows of an earlier output whose sources have not changed since: taken over, not made again.

What is made of a source hangs on its own row and its own files alone, so that the outcome is the same either way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skycairn.pile.store import Pile
from skycairn.pipeline.task import int64


def row_of(owner: NDArray[Any], key: NDArray[np.int64], owners: NDArray[Any], keys: NDArray[np.int64]) -> Any:
    """Where each (owner, key) stands among (owners, keys); -1 where it does not. The latter have no pair twice."""
    names, code = np.unique(np.concatenate([owner, owners]).astype(str), return_inverse=True)
    out = np.full(len(key), -1, np.int64)
    for number in range(len(names)):
        mine = np.flatnonzero(code[: len(key)] == number)
        theirs = np.flatnonzero(code[len(key) :] == number)
        if not len(mine) or not len(theirs):
            continue
        order = theirs[np.argsort(keys[theirs], kind="stable")]
        at = np.minimum(np.searchsorted(keys[order], key[mine]), len(order) - 1)
        out[mine] = np.where(keys[order[at]] == key[mine], order[at], -1)
    return out


def same_rows(table: pa.Table, earlier: pa.Table, at: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each row of `table` equals row `at` of `earlier` in all columns, bit for bit; False where `at` is -1.

    A null equals a null, a NaN a NaN; 0.0 and -0.0 differ. All False where the tables differ in columns or types.
    """
    if table.schema.remove_metadata() != earlier.schema.remove_metadata():
        return np.zeros(table.num_rows, bool)
    found = np.flatnonzero(at >= 0)
    a, b = table.take(pa.array(found)), earlier.take(pa.array(at[found]))
    same = np.ones(len(found), bool)
    for x, y in zip(a.columns, b.columns, strict=True):
        same &= _same(x.combine_chunks(), y.combine_chunks())
    out = np.zeros(table.num_rows, bool)
    out[found] = same
    return out


def _same(x: pa.Array, y: pa.Array) -> NDArray[np.bool_]:
    if isinstance(x, pa.ChunkedArray):
        x, y = pa.concat_arrays(x.chunks), pa.concat_arrays(y.chunks)
    if not len(x):
        return np.zeros(0, bool)
    null = np.asarray(x.is_null()), np.asarray(y.is_null())
    kind = x.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        pairs = zip(_items(x), _items(y), strict=True)
        equal = np.array([u is not None and v is not None and u.equals(v) for u, v in pairs])
    elif pa.types.is_floating(kind):
        bits = {16: np.uint16, 32: np.uint32, 64: np.uint64}[kind.bit_width]
        u, v = (np.asarray(pc.fill_null(c, 0.0)) for c in (x, y))
        equal = (u.view(bits) == v.view(bits)) | (np.isnan(u) & np.isnan(v))
    else:
        equal = np.asarray(pc.fill_null(pc.equal(x, y), False))
    return np.where(null[0] | null[1], null[0] & null[1], equal)


def _items(column: pa.Array) -> list[pa.Array | None]:
    return [None if not item.is_valid else item.values for item in column]


class Earlier:
    """The rows of an earlier output part that may be taken over."""

    def __init__(self, pile: Pile, part: str, chosen: NDArray[np.int64]) -> None:
        """`chosen`: for each wanted row the row of the part to take, -1 where it has to be made."""
        self._file = pile.open_parquet(part)
        sizes = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.chosen = chosen

    @property
    def schema(self) -> pa.Schema:
        """Of its rows."""
        return self._file.schema_arrow

    def take(self, rows: NDArray[np.int64]) -> pa.Table:
        """These rows of the part, in this order; only the row groups that hold them are read."""
        group = np.searchsorted(self._first, rows, side="right") - 1
        groups = np.unique(group)
        table = self._file.read_row_groups(groups.tolist())
        sizes = np.diff(self._first)[groups]
        before = np.cumsum(sizes) - sizes
        at = before[np.searchsorted(groups, group)] + rows - self._first[group]
        return table.take(pa.array(at)).combine_chunks()


def unchanged(
    pile: Pile,
    wanted: pa.Table,
    earlier: Mapping[str, Any] | None,
    output: str,
    groups: tuple[str, Sequence[Any]] | None = None,
    compared: dict[str, NDArray[np.bool_]] | None = None,
) -> Earlier | None:
    """The rows of `earlier[output]` that are of sources of `wanted` which are what they were; None without any.

    `earlier` has the parts `wanted` and `output`, and, where sources have files, `files` as `file_states` gives them;
    `groups` is then the column of `wanted` with the number of the source's group of files, and the groups themselves.
    `compared` spares the next call for the same sources to compare them again.
    """
    if not earlier or not earlier.get(output) or not wanted.num_rows:
        return None
    before = pile.read_table(earlier["wanted"])
    made = pile.read_table(earlier[output], columns=["owner", "key"])
    owner, key = _names(wanted)
    at = row_of(owner, key, *_names(before))
    compared = {} if compared is None else compared
    if earlier["wanted"] not in compared:
        compared[earlier["wanted"]] = same_rows(_plain(wanted), _plain(before), at)
    same = compared[earlier["wanted"]].copy()
    if groups is not None:
        column, states = groups
        told = np.array([repr(sorted(s.items())) for s in states] + [""])
        told_before = np.array([repr(sorted(s.items())) for s in earlier["files"]] + [""])
        mine, theirs = int64(wanted, column), int64(before, column) if column in before.column_names else None
        if theirs is None:
            return None
        same &= told[mine] == told_before[theirs[at]]
    rows = np.where(same, row_of(owner, key, *_names(made)), -1)
    return Earlier(pile, earlier[output], rows) if (rows >= 0).any() else None


def _names(table: pa.Table) -> tuple[NDArray[Any], NDArray[np.int64]]:
    return np.asarray(table.column("owner")), int64(table, "key")


def _plain(wanted: pa.Table) -> pa.Table:
    return wanted.select([n for n in wanted.column_names if not n.startswith("group.")])
