"""HDF5 shards are the twins of Parquet shards."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skycairn.pile.files import Damaged, Missing, PendingFile
from skycairn.pile.hdf5shards import Hdf5ShardReader, open_shard, write_shard
from skycairn.pile.parquet import TableWriter
from skycairn.pile.shards import ShardReader, TokenArray, TokenColumn, shard_schema, shard_table

ID = "5" * 64
COLUMNS = [
    TokenColumn("hsc.image", ID, 4375, 6, "grid", (2, 3), False, "tok_image"),
    TokenColumn("gaia.parallax", ID, 1024, 1, "scalar", (), True, "tok_parallax"),
    TokenColumn("desi.spectrum", ID, 1 << 16, 5, "line", (5,), False, "tok_spectrum_desi"),
    TokenColumn("wide", ID, 1 << 32, 1, "scalar", (), True, "tok_wide"),
    TokenColumn("wide.line", ID, 1 << 20, 3, "line", (3,), True, "tok_wide_line"),
    TokenColumn("catalog", ID, 1 << 16, 4, "sequence", (4,), False, "catalog"),
]
OBJECTS = pa.schema(
    [
        pa.field("object_id", pa.string(), nullable=False),
        pa.field("ra", pa.float64()),
        pa.field("magnitude", pa.float32()),
        pa.field("key.gaia", pa.int64()),
        pa.field("uid", pa.uint64()),
        pa.field("cell", pa.int32()),
        pa.field("flag", pa.bool_()),
        pa.field("stratum", pa.dictionary(pa.int32(), pa.string())),
        pa.field("cells", pa.list_(pa.field("element", pa.int64()))),
        pa.field("names", pa.list_(pa.field("element", pa.string()))),
    ]
)
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=6)
I64 = st.integers(-(2**63), 2**63 - 1)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "object_id": TEXT,
    "ra": st.none() | st.floats(),
    "magnitude": st.none() | st.floats(width=32),
    "key.gaia": st.none() | I64 | st.sampled_from([2**63 - 1, 2**63 - 2, -(2**63), 2**53 + 1]),
    "uid": st.none() | st.integers(0, 2**64 - 1),
    "cell": st.none() | st.integers(0, 2**31 - 1),
    "flag": st.none() | st.booleans(),
    "stratum": st.none() | st.sampled_from(["gaia", "gaia+hsc", "", "é"]),
    "cells": st.none() | st.lists(st.none() | I64, max_size=3),
    "names": st.none() | st.lists(st.none() | TEXT, max_size=3),
}


@st.composite
def shards(draw: st.DrawFn) -> tuple[pa.Table, int]:
    n = draw(st.integers(0, 12))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    objects = pa.table(
        [pa.array(draw(st.lists(VALUES[f.name], min_size=n, max_size=n)), f.type) for f in OBJECTS], schema=OBJECTS
    )
    shares = {c.modality: draw(st.sampled_from([0.0, 0.5, 1.0])) for c in COLUMNS}
    return made(objects, shares, rng), draw(st.integers(1, 13))


def made(objects: pa.Table, shares: dict[str, float], rng: np.random.Generator) -> pa.Table:
    n, tokens, status = objects.num_rows, {}, {}
    for c in COLUMNS:
        present = rng.random(n) < shares[c.modality]
        length = np.where(present, rng.integers(0, 5, n) if c.layout == "sequence" else c.n_tokens, 0)
        values = rng.integers(0, c.vocabulary, (n, c.n_tokens)).astype(c.dtype)
        values[rng.random(values.shape) < 0.2] = c.vocabulary - 1
        tokens[c.modality] = TokenArray(values, present, length)
        status[c.modality] = np.where(present, "present", rng.choice(["not observed", "masked"], n)).tolist()
    return shard_table(objects, tokens, status, shard_schema(OBJECTS, COLUMNS, "train", "gaia+hsc"))


def plain(n: int) -> pa.Table:
    values = {
        "object_id": [f"gaia:{i}" for i in range(n)],
        "ra": np.linspace(0, 360, n),
        "magnitude": [None] * n,
        "key.gaia": np.arange(n) + 2**62,
        "uid": [2**64 - 1] * n,
        "cell": [7] * n,
        "flag": [True] * n,
        "stratum": ["gaia+hsc"] * n,
        "cells": [[1, 2]] * n,
        "names": [["a"]] * n,
    }
    objects = pa.table([pa.array(values[f.name], f.type) for f in OBJECTS], schema=OBJECTS)
    return made(objects, {c.modality: 0.5 for c in COLUMNS}, np.random.default_rng(3))


def twins(folder: Path, table: pa.Table, rows: int, compression: str | None = None) -> tuple[Path, Path]:
    with (folder / "a.parquet").open("wb") as sink:
        writer = TableWriter(sink, table.schema, rows)
        writer.write(table)
        writer.close()
    with ShardReader(folder / "a.parquet") as shard, PendingFile(folder) as file:
        write_shard(shard, file, compression)
        file.publish(folder / "a.h5")
    return folder / "a.parquet", folder / "a.h5"


def check_equal(parquet: Path, hdf5: Path) -> None:
    with ShardReader(parquet) as a, Hdf5ShardReader(hdf5) as b:
        assert b.columns == a.columns and list(b.columns) == list(a.columns)
        assert (b.split, b.stratum, b.n_rows, b.row_groups) == (a.split, a.stratum, a.n_rows, a.row_groups)
        assert b.schema.equals(a.schema, check_metadata=True)
        assert len(list(b)) == len(a.row_groups)
        for group, (want, got) in enumerate(zip(a, b, strict=True)):
            assert list(got) == list(want)
            for name in want:
                for x, y in zip(want[name], got[name], strict=True):
                    assert x.dtype == y.dtype and x.shape == y.shape and np.array_equal(x, y), name
            left, right = a.objects(group), b.objects(group)
            assert right.schema.equals(left.schema, check_metadata=True)
            for name in left.column_names:
                x, y = left.column(name), right.column(name)
                # repr tells NaN from null and -0 from 0, and NaN from nothing else
                assert repr(y.to_pylist()) == repr(x.to_pylist()), name


@given(shards(), st.sampled_from([None, "lzf"]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_twin_holds_the_same(tmp_path: Path, shard: tuple[pa.Table, int], compression: str | None) -> None:
    check_equal(*twins(tmp_path, *shard, compression))


@pytest.mark.parametrize("n", [0, 1, 300])
def test_every_dataset_has_chunks_and_checksums(tmp_path: Path, n: int) -> None:
    _, path = twins(tmp_path, plain(n), 40)
    found = []

    def look(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            found.append(name)
            assert item.chunks is not None and item.fletcher32, name
            assert h5py.check_vlen_dtype(item.dtype) is None, name
            string = h5py.check_string_dtype(item.dtype)
            assert string is None or string.length is not None, name

    with h5py.File(path) as file:
        file.visititems(look)
        assert file["hsc.image/tokens"].shape == (int(file["hsc.image/present"][:].sum()), 6)
        assert file["objects/object_id/values"].asstr()[:].tolist() == [f"gaia:{i}" for i in range(n)]
        assert file["objects/key.gaia/values"][:].tolist() == [i + 2**62 for i in range(n)]
        assert file.attrs["skycairn.split"] == b"train" and file.attrs["row_groups"].sum() == n
    assert len(found) == 2 * len(COLUMNS) + 1 + 2 * len(COLUMNS) + len(OBJECTS) + 3 + (n > 0)


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    _, path = twins(tmp_path, plain(50), 40)
    with Hdf5ShardReader(path) as reader:
        assert list(reader.tokens(1, ["wide", "hsc.image"])) == ["wide", "hsc.image"]
        assert reader.objects(0, ["status.wide", "ra"]).column_names == ["status.wide", "ra"]
        with pytest.raises(ValueError, match=r"no modality sdss\.z; it has hsc\.image, gaia"):
            reader.tokens(0, ["sdss.z"])
        with pytest.raises(ValueError, match="no column wide; it has object_id, ra"):
            reader.objects(0, ["wide"])


@pytest.mark.parametrize("group", [-1, 2])
def test_a_row_group_that_is_not_there(tmp_path: Path, group: int) -> None:
    parquet, hdf5 = twins(tmp_path, plain(50), 40)
    for reader in (ShardReader(parquet), Hdf5ShardReader(hdf5)):
        for read in (reader.tokens, reader.objects):
            with reader, pytest.raises(IndexError, match=f"row group {group} was asked for; it has 2"):
                read(group)


def test_the_reader_is_picked_by_the_first_bytes(tmp_path: Path) -> None:
    parquet, hdf5 = twins(tmp_path, plain(5), 40)
    for path, kind in ((parquet, ShardReader), (hdf5, Hdf5ShardReader)):
        with open_shard(path.rename(tmp_path / "shard")) as reader:
            assert type(reader) is kind and reader.n_rows == 5
        with pytest.raises(Damaged, match="has the SHA-256"):
            open_shard(tmp_path / "shard", ID)
    (tmp_path / "other").write_bytes(b"SIMPLE")
    with pytest.raises(Damaged, match="neither Parquet's nor HDF5's"):
        open_shard(tmp_path / "other")
    with pytest.raises(Missing, match="gone"):
        open_shard(tmp_path / "gone")


def read_all(path: Path) -> int:
    with open_shard(path) as reader:
        return len(list(reader)) + sum(reader.objects(g).num_rows for g in range(len(reader.row_groups)))


def test_a_flipped_byte_of_any_dataset_is_noticed(tmp_path: Path) -> None:
    _, path = twins(tmp_path, plain(60), 25)
    path.chmod(0o644)
    raw = path.read_bytes()
    places: list[int] = []
    with h5py.File(path) as file:
        file.visititems(
            lambda _, d: places.append(d.id.get_chunk_info(0).byte_offset) if isinstance(d, h5py.Dataset) else None
        )
    assert len(places) > 30
    for place in places:
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
        with pytest.raises(Damaged, match=r"a\.h5: the file cannot be read"):
            read_all(path)
    for size in (0, 4, 100, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:size])
        with pytest.raises(Damaged, match=r"a\.h5"):
            read_all(path)
    path.write_bytes(raw)
    assert read_all(path) == 3 + 60


@pytest.mark.parametrize("name", ["desi.spectrum", "gaia.parallax", "catalog"])
def test_a_token_beyond_the_vocabulary_is_refused(tmp_path: Path, name: str) -> None:
    _, path = twins(tmp_path, plain(60), 25)
    path.chmod(0o644)
    with h5py.File(path, "a") as file:
        told = file.attrs["skycairn.modalities"].decode()
        vocabulary = next(c.vocabulary for c in COLUMNS if c.modality == name)
        start = told.index(f'"{name}":')
        told = told[:start] + told[start:].replace(f'"vocabulary":{vocabulary}', '"vocabulary":10', 1)
        file.attrs["skycairn.modalities"] = np.bytes_(told)
    with pytest.raises(Damaged, match=rf"a\.h5: {name}, row group 0 has the token \d+, its vocabulary ends at 9"):
        read_all(path)


def test_presence_and_tokens_must_agree(tmp_path: Path) -> None:
    _, path = twins(tmp_path, plain(60), 25)
    path.chmod(0o644)
    with h5py.File(path, "a") as file:
        present = file["hsc.image/present"]
        present[30] = not present[30]
    with open_shard(path) as reader:
        reader.tokens(0)
        with pytest.raises(Damaged, match=r"hsc\.image, row group 1 has uint16 tokens of shape"):
            reader.tokens(1)


def test_other_hdf5_files_are_no_shards(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"] = np.arange(3)
    with pytest.raises(Damaged, match=r"x\.h5: the file cannot be read"):
        open_shard(tmp_path / "x.h5")


def test_what_the_layout_cannot_hold_is_refused(tmp_path: Path) -> None:
    table = plain(2)
    ids = table.set_column(0, OBJECTS.field(0), pa.array(["a\0", "b"]))
    with pytest.raises(ValueError, match="column object_id: a string ends in a NUL"):
        twins(tmp_path, ids, 40)
    times = table.append_column("when", pa.array([0, 1], pa.timestamp("s")))
    with pytest.raises(ValueError, match="column when: an HDF5 shard has no place for timestamp"):
        twins(tmp_path, times, 40)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet"]
