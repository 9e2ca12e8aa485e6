"""A shard: a Parquet part of tokenized objects, one row an object, that a trainer reads without asking anyone else.

    object_id, ra, dec, ...     as the caller gives them
    <modality>                  null = missing; uint16 or uint32 for one token an object, else list<uint16 not null>
    status.<modality>           why it is missing, or `present`

The schema's metadata holds under `skycairn.modalities` what each column's tokens are, under `skycairn.split` and
`skycairn.stratum` which objects these are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skycairn.pile import parquet
from skycairn.pile.content import canonical_json
from skycairn.pile.files import Damaged, check_sha256_once

ROW_GROUP_ROWS = 8_192
"""Objects of a row group, unless told otherwise; 8 to 16 thousand is one good read, local or remote."""

FORMAT = 1
PRESENT = "present"


@dataclass(frozen=True)
class TokenColumn:
    """One modality's tokens in a shard."""

    modality: str
    codec_id: str
    vocabulary: int
    "tokens are 0 .. vocabulary - 1"
    n_tokens: int
    "of every present object; for a sequence, the most"
    layout: Literal["scalar", "grid", "line", "sequence"]
    shape: tuple[int, ...]
    ordered: bool
    "whether neighbouring tokens mean neighbouring values"
    token_key: str
    "the name of these tokens in AION-1"

    def __post_init__(self) -> None:
        if self.layout not in ("scalar", "grid", "line", "sequence"):
            raise ValueError(f"{self.modality}: layout is {self.layout!r}; wanted scalar, grid, line or sequence")
        if not 1 <= self.vocabulary <= 1 << 32:
            raise ValueError(f"{self.modality}: the vocabulary is {self.vocabulary}; wanted 1 to 2^32")
        n_tokens = int(np.prod(self.shape, dtype=int))
        if (self.layout == "scalar") != (self.shape == ()) or self.n_tokens != n_tokens or n_tokens < 1:
            raise ValueError(
                f"{self.modality}: {self.n_tokens} tokens of layout {self.layout} and shape {self.shape}; wanted "
                f"shape () and 1 token for a scalar, else as many tokens as the shape holds"
            )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Smallest unsigned type that holds the vocabulary."""
        return np.dtype(np.uint16 if self.vocabulary <= 1 << 16 else np.uint32)

    @property
    def type(self) -> pa.DataType:
        """Arrow type of the column."""
        token = pa.from_numpy_dtype(self.dtype)
        return token if self.layout == "scalar" else pa.list_(pa.field("element", token, nullable=False))

    @property
    def status(self) -> str:
        """Name of the column that says why tokens are missing."""
        return f"status.{self.modality}"

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """From a shard's metadata."""
        return cls(**{**value, "shape": tuple(value["shape"])})


class TokenArray(NamedTuple):
    """One modality of some objects."""

    values: NDArray[Any]
    "uint16 or uint32, shape (n, n_tokens); 0 where there is no token"
    present: NDArray[np.bool_]
    "shape (n,)"
    length: NDArray[np.int64]
    "shape (n,): how many of the tokens are there; 0 or n_tokens but for sequences"


def shard_schema(objects: pa.Schema, columns: Sequence[TokenColumn], split: str, stratum: str) -> pa.Schema:
    """Schema of a shard whose objects have the given columns beside their tokens."""
    fields = list(objects)
    for column in columns:
        fields.append(pa.field(column.modality, column.type))
        fields.append(pa.field(column.status, pa.dictionary(pa.int32(), pa.string()), nullable=False))
    names = [f.name for f in fields]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"a shard cannot have two columns {', '.join(twice)}")
    metadata = {
        "skycairn.shard": str(FORMAT),
        "skycairn.modalities": canonical_json({c.modality: {**asdict(c), "shape": list(c.shape)} for c in columns}),
        "skycairn.split": split,
        "skycairn.stratum": stratum,
    }
    return pa.schema(fields, metadata)


def shard_table(
    objects: pa.Table,
    tokens: Mapping[str, tuple[NDArray[Any], NDArray[np.bool_]] | TokenArray],
    status: Mapping[str, pa.Array | Sequence[str]],
    schema: pa.Schema,
) -> pa.Table:
    """Rows for `Pile.table_writer(schema, ROW_GROUP_ROWS)`.

    `tokens` holds for each modality the tokens, shape (n, n_tokens) or (n,) for a scalar, and where they are present,
    shape (n,); a sequence's `TokenArray` also says how many there are. `status` says of each object why not, or
    `present`. ValueError names modality and row of a token outside the vocabulary, or of a status that belies it.
    """
    columns = token_columns(schema)
    if set(tokens) != set(columns) or set(status) != set(columns):
        raise ValueError(
            f"tokens of {sorted(tokens)} and statuses of {sorted(status)}; the shard has {sorted(columns)}"
        )
    arrays: dict[str, Any] = {name: objects.column(name) for name in objects.column_names}
    n = objects.num_rows
    for name, column in columns.items():
        given = tokens[name]
        values, present = given[:2]
        values = np.asarray(values).reshape(n, -1) if n else np.asarray(values).reshape(0, column.n_tokens)
        if values.dtype.kind not in "iu" or values.shape != (n, column.n_tokens) or present.shape != (n,):
            raise ValueError(
                f"{name}: {values.dtype} tokens of shape {values.shape}, present of shape {present.shape}; wanted "
                f"integers of shape ({n}, {column.n_tokens}) and ({n},)"
            )
        length = np.where(present, column.n_tokens, 0)
        if isinstance(given, TokenArray) and column.layout == "sequence":
            length = np.asarray(given.length, dtype=np.int64)
            if ((length < 0) | (length > column.n_tokens) | (~present & (length > 0))).any():
                raise ValueError(f"{name}: a sequence is longer than {column.n_tokens}, or has a length and is missing")
        there = np.arange(column.n_tokens) < length[:, None]
        if (wrong := there & ((values < 0) | (values >= column.vocabulary))).any():
            row, place = (int(i[0]) for i in np.nonzero(wrong))
            raise ValueError(
                f"{name}: row {row} has the token {values[row, place]}; its vocabulary ends at {column.vocabulary - 1}"
            )
        said = status[name]
        said = said.cast(pa.string()) if isinstance(said, pa.Array) else pa.array(said, pa.string())
        if not np.array_equal(np.asarray(said.to_numpy(zero_copy_only=False)) == PRESENT, present):
            raise ValueError(f"{name}: the status is {PRESENT!r} for other rows than those that have tokens")
        flat = values.astype(column.dtype, copy=False)
        if column.layout == "scalar":
            arrays[name] = pa.array(flat[:, 0], mask=~present)
        else:
            offsets = np.concatenate([[0], np.cumsum(length)])
            if offsets[-1] > np.iinfo(np.int32).max:
                raise ValueError(f"{name}: {offsets[-1]} tokens at once; hand in fewer rows than {n}")
            ends, inner = pa.array(offsets, pa.int32()), pa.array(flat[there])
            arrays[name] = pa.ListArray.from_arrays(ends, inner, type=column.type, mask=pa.array(~present))
        arrays[column.status] = said.dictionary_encode()
    if set(arrays) != set(schema.names):
        raise ValueError(f"objects have the columns {objects.column_names}; the shard's are {schema.names}")
    return pa.Table.from_arrays([arrays[name] for name in schema.names], schema=schema)


def token_columns(schema: pa.Schema, where: str = "the schema") -> dict[str, TokenColumn]:
    """The modalities of a shard, by name, as its metadata tells; `Damaged` where it is no shard."""
    metadata = schema.metadata or {}
    if (found := metadata.get(b"skycairn.shard")) != str(FORMAT).encode():
        raise Damaged(f"{where} is no shard of format {FORMAT}: its metadata has skycairn.shard = {found!r}")
    try:
        modalities = json.loads(metadata[b"skycairn.modalities"])
        columns = {name: TokenColumn.from_json(value) for name, value in modalities.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{where}: its skycairn.modalities cannot be read ({error!r})") from error
    for name, column in columns.items():
        i = schema.get_field_index(name)
        if i < 0 or schema.field(i).type != column.type:
            found = "absent" if i < 0 else schema.field(i).type
            raise Damaged(f"{where}: column {name} is {found}, its metadata says {column.type}")
    return {name: columns[name] for name in schema.names if name in columns}


def check_group(path: Path, group: int, n_groups: int) -> None:
    """IndexError where a shard has no such row group; -1 is none, too."""
    if not 0 <= group < n_groups:
        raise IndexError(f"{path}: row group {group} was asked for; it has {n_groups}, counted from 0")


class ShardReader:
    """Reads a shard, a row group at a time, its pages verified; the whole file first, where its SHA-256 is given."""

    def __init__(self, path: str | Path, sha256: str | None = None) -> None:
        self.path = Path(path)
        if sha256 is not None:
            check_sha256_once(self.path, sha256)
        self._file = parquet.open_file(self.path)
        schema = self._file.schema_arrow
        self.schema = schema
        self.columns = token_columns(schema, str(self.path))
        self.split = schema.metadata.get(b"skycairn.split", b"").decode()
        self.stratum = schema.metadata.get(b"skycairn.stratum", b"").decode()
        metadata = self._file.metadata
        self.n_rows = int(metadata.num_rows)
        self.row_groups = [int(metadata.row_group(i).num_rows) for i in range(metadata.num_row_groups)]
        "number of objects of each"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def objects(self, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The columns that are not tokens, of one row group; all of them, or those named."""
        tokens = set(self.columns)
        names = [n for n in self._file.schema_arrow.names if n not in tokens]
        return self._read(group, names if columns is None else list(columns))

    def tokens(
        self, group: int, modalities: Sequence[str] | None = None, into: Mapping[str, NDArray[Any]] | None = None
    ) -> dict[str, TokenArray]:
        """The tokens of one row group, by modality. `Damaged` where one is outside its vocabulary.

        The values are written into the arrays of `into`, (objects, n_tokens) and full of 0, where it is given.
        """
        names = list(self.columns) if modalities is None else list(modalities)
        if unknown := [n for n in names if n not in self.columns]:
            raise ValueError(f"{self.path} has no modality {', '.join(unknown)}; it has {', '.join(self.columns)}")
        table = self._read(group, names)
        arrays = {name: table.column(name).combine_chunks() for name in names}
        return {n: self._dense(self.columns[n], arrays[n], group, into[n] if into else None) for n in names}

    def __iter__(self) -> Iterator[dict[str, TokenArray]]:
        """All modalities, row group by row group."""
        for group in range(len(self.row_groups)):
            yield self.tokens(group)

    def _read(self, group: int, names: list[str]) -> pa.Table:
        check_group(self.path, group, len(self.row_groups))
        with parquet.damage(self.path):
            return self._file.read_row_group(group, columns=names, use_threads=False).select(names)

    def _dense(self, column: TokenColumn, array: pa.Array, group: int, into: NDArray[Any] | None) -> TokenArray:
        n = len(array)
        present = np.ones(n, bool)
        if array.null_count:
            present = array.is_valid().to_numpy(zero_copy_only=False)
        if column.layout == "scalar":
            flat = array.drop_null().to_numpy()
            length = present.astype(np.int64)
        else:
            flat = array.flatten().to_numpy()
            offsets = array.offsets.to_numpy().astype(np.int64)
            length = np.where(present, np.diff(offsets), 0)
        if flat.size and int(flat.max()) >= column.vocabulary:
            raise Damaged(
                f"{self.path}: {column.modality} has the token {int(flat.max())} in row group {group}, its vocabulary "
                f"ends at {column.vocabulary - 1}; the shard was written with another codec, or is damaged"
            )
        values = np.zeros((n, column.n_tokens), column.dtype) if into is None else into
        if column.layout == "sequence":
            if n and int(length.max()) > column.n_tokens:
                raise self._wrong_length(column, int(length.max()), group)
            values[np.arange(column.n_tokens) < length[:, None]] = flat
        else:
            if flat.size != column.n_tokens * int(present.sum()) or (length[present] != column.n_tokens).any():
                raise self._wrong_length(column, int(length[present][length[present] != column.n_tokens][0]), group)
            values[present] = flat.reshape(-1, column.n_tokens)
        return TokenArray(values, present, length)

    def _wrong_length(self, column: TokenColumn, length: int, group: int) -> Damaged:
        return Damaged(
            f"{self.path}: {column.modality} has {length} tokens for an object of row group {group}, its metadata says "
            f"{column.n_tokens}"
        )
