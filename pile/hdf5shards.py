"""HDF5 shards: the twin of a Parquet shard, the same objects in the same order and row groups.

    <modality>/tokens       uint16 or uint32, (n_present, n_tokens): present objects alone, in order
    <modality>/present      bool, (n,)
    <modality>/length       uint32, (n,): tokens that are there; sequences alone
    objects/<column>/...    what is not tokens: `values` and, where there are nulls, `valid`; a dictionary has `codes`
                            and `categories`, a list `offsets` and `values`, a string is UTF-8 of fixed length

Attributes of the file: the Parquet footer's `skycairn.*`, `row_groups` (objects of each), `arrow_schema`, `snapshot`
and `content_id` of the pile's snapshot; of a modality: `starts`, the row of `tokens` at which each row group starts.
Every dataset has chunks and Fletcher-32 checksums; the file is of HDF5 1.10's form, whose headers have checksums, too.
Nothing is of variable length, which HDF5 would keep outside the checksums. Fletcher-32 takes a word of 0 for one of
0xffff: what vouches for a file is the SHA-256 in the manifest of its export.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skycairn.pile.files import Damaged, Missing, PendingFile, check_sha256_once
from skycairn.pile.shards import ShardReader, TokenArray, TokenColumn, check_group, token_columns

CHUNK_BYTES = 1 << 17
SIGNATURE = b"\x89HDF\r\n\x1a\n"
_OURS = ("arrow_schema", "row_groups", "snapshot", "content_id")


def write_shard(
    shard: ShardReader, file: PendingFile, compression: str | None = None, snapshot: int = 0, content_id: str = ""
) -> None:
    """Write a shard's twin into a pending file; held in memory until whole.

    `snapshot` and `content_id` are those of the pile's snapshot that lists the shard.
    `compression` of the tokens is None or "lzf", which makes the file 0.74 as large and 2.5 times as slow to read; the
    objects' columns, which no training reads, have lzf always (`benchmarks/read_shards.py`).
    ValueError names a column of a type, or a string, that the layout cannot hold.
    """
    groups = range(len(shard.row_groups))
    schema = shard.schema
    with h5py.File(
        file.path.name, "w", driver="core", backing_store=False, libver=("v110", "v110"), track_order=False
    ) as h5:
        for key, value in (schema.metadata or {}).items():
            h5.attrs.create(key.decode(), _text([value])[0])
        h5.attrs.create("snapshot", np.int64(snapshot))
        if content_id:
            h5.attrs.create("content_id", _text([content_id.encode()])[0])
        h5.attrs.create("row_groups", np.array(shard.row_groups, np.int64))
        h5.attrs.create("arrow_schema", np.frombuffer(schema.remove_metadata().serialize(), np.uint8))
        for name, column in shard.columns.items():
            pieces = [shard.tokens(g, [name])[name] for g in groups]
            there = [p.values[p.present] for p in pieces]
            group = h5.create_group(_checked(name))
            group.attrs.create("starts", np.cumsum([0, *map(len, there)], dtype=np.int64))
            _put(group, "tokens", np.concatenate([np.zeros((0, column.n_tokens), column.dtype), *there]), compression)
            _put(group, "present", np.concatenate([np.zeros(0, bool), *(p.present for p in pieces)]), compression)
            if column.layout == "sequence":
                length = np.concatenate([np.zeros(0, np.int64), *(p.length for p in pieces)])
                _put(group, "length", length.astype(np.uint32), compression)
        objects = h5.create_group("objects")
        for field in schema:
            if field.name not in shard.columns:
                read = [shard.objects(g, [field.name]).column(0) for g in groups]
                chunks = [c for r in read for c in r.chunks]
                try:
                    _write_column(objects.create_group(_checked(field.name)), field.type, chunks)
                except ValueError as error:
                    raise ValueError(f"{shard.path}: column {field.name}: {error}") from error
        h5.flush()
        image = h5.id.get_file_image()
    file.write(image)


def _checked(name: str) -> str:
    if "/" in name or name in (".", "objects", ""):
        raise ValueError(f"a column {name!r} cannot be a group of an HDF5 file; give it another name")
    return name


def _put(group: Any, name: str, values: NDArray[Any], compression: str | None = "lzf") -> None:
    row_bytes = max(1, values.dtype.itemsize * int(np.prod(values.shape[1:], dtype=int)))
    rows = max(1, min(len(values), CHUNK_BYTES // row_bytes))
    group.create_dataset(
        name,
        data=values,
        chunks=(rows, *values.shape[1:]),
        # HDF5 wants chunks no larger than the data, unless these may grow
        maxshape=values.shape if len(values) else (None, *values.shape[1:]),
        fletcher32=True,
        compression=compression,
        shuffle=compression is not None and values.dtype.itemsize > 1,
    )


def _text(values: Sequence[bytes]) -> NDArray[Any]:
    if any(v.endswith(b"\0") for v in values):
        raise ValueError("a string ends in a NUL, which HDF5 takes for its padding; remove it")
    return np.array(values, h5py.string_dtype("utf-8", max(1, *map(len, values), 1)))


def _write_column(group: Any, kind: pa.DataType, chunks: list[pa.Array]) -> None:
    array = pa.chunked_array(chunks, kind).combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks == 1 else pa.concat_arrays(array.unify_dictionaries().chunks)
    t = pa.types
    if array.null_count:
        _put(group, "valid", array.is_valid().to_numpy(zero_copy_only=False))
    if t.is_dictionary(kind):
        array = array.dictionary_decode().dictionary_encode()
        _put(group, "codes", array.indices.fill_null(0).to_numpy())
        _write_column(group.create_group("categories"), kind.value_type, [array.dictionary])
    elif t.is_list(kind) or t.is_large_list(kind):
        length = pc.list_value_length(array).fill_null(0).to_numpy()
        _put(group, "offsets", np.concatenate([[0], np.cumsum(length)]).astype(np.int64))
        _write_column(group.create_group("values"), kind.value_type, [array.flatten()])
    elif t.is_string(kind) or t.is_large_string(kind):
        _put(group, "values", _text(array.fill_null("").cast(pa.large_binary()).to_pylist()))
    elif t.is_boolean(kind) or t.is_integer(kind) or t.is_floating(kind):
        array = array.fill_null(pa.scalar(0, pa.int8()).cast(kind))
        _put(group, "values", array.to_numpy(zero_copy_only=False))
    else:
        raise ValueError(f"an HDF5 shard has no place for {kind}; wanted numbers, booleans, strings, lists of these")


def _read_column(group: Any, kind: pa.DataType, start: int, stop: int) -> pa.Array:
    t = pa.types
    valid = _rows(group["valid"], start, stop) if "valid" in group else np.ones(stop - start, bool)
    nulls = None if valid.all() else ~valid
    if t.is_dictionary(kind):
        categories = group["categories"]
        words = _read_column(categories, kind.value_type, 0, len(categories["values"]))
        codes = pa.array(_rows(group["codes"], start, stop), pa.int32(), mask=nulls)
        # entries in the order of the rows, none unused: as Parquet has it for a row group
        array = pa.DictionaryArray.from_arrays(codes, words).dictionary_decode().dictionary_encode()
        return pa.DictionaryArray.from_arrays(
            array.indices.cast(kind.index_type), array.dictionary, ordered=kind.ordered
        )
    if t.is_list(kind) or t.is_large_list(kind):
        offsets = _rows(group["offsets"], start, stop + 1)
        values = _read_column(group["values"], kind.value_type, int(offsets[0]), int(offsets[-1]))
        ends = pa.array(offsets - offsets[0], pa.int64() if t.is_large_list(kind) else pa.int32())
        made = pa.LargeListArray if t.is_large_list(kind) else pa.ListArray
        array = made.from_arrays(ends, values, type=kind, mask=None if nulls is None else pa.array(nulls))
        array.validate(full=True)
        return array
    values = _rows(group["values"], start, stop)
    if values.dtype.kind == "S":
        text = pa.array(values.tolist(), pa.binary(), mask=nulls)
        return text.cast(kind)
    return pa.array(values, kind, mask=nulls, from_pandas=False)


def _refuse_links(file: Any) -> None:
    """ValueError where a group or dataset is a link by name, which may lead to any file there is."""

    def hard(name: bytes, link: Any) -> bytes | None:
        return None if link.type == h5py.h5l.TYPE_HARD else name

    if found := file.id.links.visit(hard, info=True):
        raise ValueError(f"{found.decode(errors='replace')} is a link, which no shard has")


def _rows(dataset: Any, start: int, stop: int) -> NDArray[Any]:
    if dataset.chunks is None:
        # neither what lies in other files nor what is put together of them has chunks
        raise ValueError(f"{dataset.name} has no chunks; a shard's datasets have, and refer to no other file")
    if not 0 <= start <= stop <= dataset.shape[0]:
        raise ValueError(f"{dataset.name} has {dataset.shape[0]} rows, wanted {start} to {stop}")
    rows: NDArray[Any] = dataset[start:stop]
    return rows


class Hdf5ShardReader:
    """Reads an HDF5 shard as `ShardReader` reads its Parquet twin; the checksums of what is read are verified."""

    def __init__(self, path: str | Path, sha256: str | None = None) -> None:
        self.path = Path(path)
        if sha256 is not None:
            check_sha256_once(self.path, sha256)
        with _damage(self.path):
            self._file = h5py.File(self.path, "r")
        try:
            with _damage(self.path):
                _refuse_links(self._file)
                attributes = self._file.attrs
                schema = pa.ipc.read_schema(pa.py_buffer(attributes["arrow_schema"].tobytes()))
                schema = schema.with_metadata({k: _bytes(v) for k, v in attributes.items() if k not in _OURS})
                self.row_groups = [int(n) for n in attributes["row_groups"]]
            self.schema = schema
            self.columns = token_columns(schema, str(self.path))
        except BaseException:
            self._file.close()
            raise
        self.split = schema.metadata.get(b"skycairn.split", b"").decode()
        self.stratum = schema.metadata.get(b"skycairn.stratum", b"").decode()
        self.n_rows = sum(self.row_groups)
        self._first = np.cumsum([0, *self.row_groups]).tolist()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def objects(self, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The columns that are not tokens, of one row group; all of them, or those named."""
        known = [n for n in self.schema.names if n not in self.columns]
        names = known if columns is None else list(columns)
        if unknown := [n for n in names if n not in known]:
            raise ValueError(f"{self.path} has no column {', '.join(unknown)}; it has {', '.join(known)}")
        check_group(self.path, group, len(self.row_groups))
        start, stop = self._first[group], self._first[group] + self.row_groups[group]
        fields = [self.schema.field(n) for n in names]
        with _damage(self.path):
            arrays = [_read_column(self._file["objects"][f.name], f.type, start, stop) for f in fields]
            return pa.Table.from_arrays(arrays, schema=pa.schema(fields, self.schema.metadata))

    def tokens(
        self, group: int, modalities: Sequence[str] | None = None, into: Mapping[str, NDArray[Any]] | None = None
    ) -> dict[str, TokenArray]:
        """The tokens of one row group, by modality. `Damaged` where one is outside its vocabulary.

        The values are written into the arrays of `into`, (objects, n_tokens) and full of 0, where it is given.
        """
        names = list(self.columns) if modalities is None else list(modalities)
        if unknown := [n for n in names if n not in self.columns]:
            raise ValueError(f"{self.path} has no modality {', '.join(unknown)}; it has {', '.join(self.columns)}")
        check_group(self.path, group, len(self.row_groups))
        with _damage(self.path):
            return {n: self._dense(self.columns[n], group, into[n] if into else None) for n in names}

    def __iter__(self) -> Iterator[dict[str, TokenArray]]:
        """All modalities, row group by row group."""
        for group in range(len(self.row_groups)):
            yield self.tokens(group)

    def _dense(self, column: TokenColumn, group: int, into: NDArray[Any] | None) -> TokenArray:
        where = f"{self.path}: {column.modality}, row group {group}"
        stored = self._file[column.modality]
        first, n = self._first[group], self.row_groups[group]
        start, stop = (int(i) for i in stored.attrs["starts"][group : group + 2])
        present = _rows(stored["present"], first, first + n)
        there = _rows(stored["tokens"], start, stop)
        if there.shape[1:] != (column.n_tokens,) or there.dtype != column.dtype or int(present.sum()) != len(there):
            raise Damaged(
                f"{where} has {there.dtype} tokens of shape {there.shape} for {int(present.sum())} present objects, "
                f"its metadata says {column.n_tokens} {column.dtype} for each"
            )
        if there.size and (most := int(there.max())) >= column.vocabulary:
            raise Damaged(
                f"{where} has the token {most}, its vocabulary ends at {column.vocabulary - 1}; the shard was "
                f"written with another codec, or is damaged"
            )
        values = np.zeros((n, column.n_tokens), column.dtype) if into is None else into
        values[present] = there
        if column.layout != "sequence":
            return TokenArray(values, present, np.where(present, column.n_tokens, 0))
        length = _rows(stored["length"], first, first + n).astype(np.int64)
        if (length > np.where(present, column.n_tokens, 0)).any():
            raise Damaged(f"{where} has a sequence of {int(length.max())} tokens, its metadata says {column.n_tokens}")
        return TokenArray(values, present, length)


def open_shard(path: str | Path, sha256: str | None = None) -> ShardReader | Hdf5ShardReader:
    """The reader of a shard, by the file's first bytes. `Damaged` where it is neither Parquet nor HDF5."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(len(SIGNATURE))
    except FileNotFoundError as error:
        raise Missing(f"{path}: the file is not there; build it again, or restore it from a copy") from error
    if start == SIGNATURE:
        return Hdf5ShardReader(path, sha256)
    if start[:4] == b"PAR1":
        return ShardReader(path, sha256)
    raise Damaged(f"{path} starts with {start!r}, neither Parquet's nor HDF5's; remove it and make it again")


def _bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn what h5py and pyarrow say of a damaged file into `Damaged`, and leave errors of the disk as they are."""
    try:
        yield
    except FileNotFoundError as error:
        raise Missing(f"{path}: the file is not there; build it again, or restore it from a copy") from error
    except Damaged:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Damaged(
            f"{path}: the file cannot be read ({error}); it is damaged or no HDF5 shard: remove it and make it again"
        ) from error
