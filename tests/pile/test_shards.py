from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from skycairn.pile.files import Damaged
from skycairn.pile.parquet import TableWriter
from skycairn.pile.shards import ShardReader, TokenArray, TokenColumn, shard_schema, shard_table, token_columns
from skycairn.pile.store import Part, Pile

ID = "5" * 64
COLUMNS = [
    TokenColumn("hsc.image", ID, 4375, 6, "grid", (2, 3), False, "tok_image"),
    TokenColumn("gaia.parallax", ID, 1024, 1, "scalar", (), True, "tok_parallax"),
    TokenColumn("desi.spectrum", ID, 1024, 5, "line", (5,), False, "tok_spectrum_desi"),
    TokenColumn("wide", ID, 1 << 20, 1, "scalar", (), True, "tok_wide"),
    TokenColumn("catalog", ID, 1 << 16, 4, "sequence", (4,), False, "catalog"),
]


def objects(n: int) -> pa.Table:
    return pa.table({"object_id": [f"gaia:{i}" for i in range(n)], "ra": np.linspace(0, 359.9, n), "dec": np.zeros(n)})


def tokens(n: int) -> dict[str, TokenArray]:
    rng = np.random.default_rng(3)
    made = {}
    for c in COLUMNS:
        present = rng.random(n) < 0.5
        length = np.where(present, rng.integers(0, 5, n) if c.layout == "sequence" else c.n_tokens, 0)
        values = rng.integers(0, c.vocabulary, (n, c.n_tokens)).astype(c.dtype)
        made[c.modality] = TokenArray(np.where(np.arange(c.n_tokens) < length[:, None], values, 0), present, length)
    return made


def statuses(tokens: dict[str, TokenArray]) -> dict[str, list[str]]:
    return {name: np.where(t.present, "present", "not detected").tolist() for name, t in tokens.items()}


def shard(pile: Pile, n: int, rows: int = 40) -> tuple[Part, dict[str, TokenArray]]:
    schema = shard_schema(objects(1).schema, COLUMNS, "train", "gaia+hsc")
    made = tokens(n)
    with pile.table_writer(schema, rows) as file:
        for start in range(0, n, 33):
            piece = {k: TokenArray(*(a[start : start + 33] for a in t)) for k, t in made.items()}
            file.write(shard_table(objects(n).slice(start, 33), piece, statuses(piece), schema))
    return file.part, made


@pytest.fixture
def pile(tmp_path: Path) -> Pile:
    return Pile.create(tmp_path / "pile")


@pytest.mark.parametrize("n", [0, 1, 100])
def test_tokens_come_back(pile: Pile, n: int) -> None:
    part, made = shard(pile, n)
    with ShardReader(pile.path(part), part.sha256) as reader:
        assert list(reader.columns.values()) == COLUMNS
        assert (reader.split, reader.stratum, reader.n_rows) == ("train", "gaia+hsc", n)
        assert reader.row_groups == {0: [], 1: [1], 100: [40, 40, 20]}[n]
        groups = list(reader)
        for name, want in made.items():
            if groups:
                for i, field in enumerate(want._fields):
                    got: NDArray[np.generic] = np.concatenate([g[name][i] for g in groups])
                    assert np.array_equal(got, want[i]), (name, field)
        assert all(g[c.modality].values.dtype == c.dtype for g in groups for c in COLUMNS)
        ids = [i for g in range(len(groups)) for i in reader.objects(g).column("object_id").to_pylist()]
        assert ids == [f"gaia:{i}" for i in range(n)]


def test_columns_of_objects_may_come_in_any_order() -> None:
    schema = shard_schema(objects(1).schema, COLUMNS, "train", "all")
    made = tokens(10)
    table = shard_table(objects(10), made, statuses(made), schema)
    shuffled = shard_table(objects(10).select(["dec", "object_id", "ra"]), made, statuses(made), schema)
    assert shuffled.equals(table) and table.schema.equals(schema, check_metadata=True)
    assert table.column("ra")[9].as_py() == 359.9


def test_only_what_is_asked_for_is_read(pile: Pile) -> None:
    part, _ = shard(pile, 50)
    with ShardReader(pile.path(part)) as reader:
        assert list(reader.tokens(1, ["wide", "hsc.image"])) == ["wide", "hsc.image"]
        status = reader.objects(0, ["status.wide", "ra"])
        assert status.column_names == ["status.wide", "ra"]
        assert set(reader.objects(1).column("status.wide").to_pylist()) == {"present", "not detected"}
        with pytest.raises(ValueError, match=r"no modality sdss\.z; it has hsc\.image, gaia"):
            reader.tokens(0, ["sdss.z"])


def test_the_file_is_plain_parquet_with_nulls(pile: Pile) -> None:
    part, made = shard(pile, 50)
    table = pile.read_table(part)
    assert table.schema.field("hsc.image").type == pa.list_(pa.field("element", pa.uint16(), nullable=False))
    assert table.schema.field("gaia.parallax").type == pa.uint16() and table.schema.field("wide").type == pa.uint32()
    for name, want in made.items():
        assert np.array_equal(table.column(name).is_valid().to_numpy(), want.present)
    with pile.open_parquet(part) as file:
        leaf = file.metadata.row_group(0).column(3)
        assert leaf.path_in_schema == "hsc.image.list.element" and "RLE_DICTIONARY" in leaf.encodings


def test_tokens_beyond_the_vocabulary_are_not_written() -> None:
    schema = shard_schema(objects(1).schema, COLUMNS, "train", "all")
    made = tokens(50)
    row = int(np.flatnonzero(made["desi.spectrum"].present)[0])
    for bad in (1024, 70_000, -1):
        values = made["desi.spectrum"].values.astype(np.int64)
        values[row, 3] = bad
        wrong = {**made, "desi.spectrum": made["desi.spectrum"]._replace(values=values)}
        with pytest.raises(
            ValueError, match=rf"desi\.spectrum: row {row} has the token {bad}; its vocabulary ends at 1023"
        ):
            shard_table(objects(50), wrong, statuses(made), schema)


def test_what_else_is_not_written() -> None:
    schema = shard_schema(objects(1).schema, COLUMNS, "train", "all")
    made = tokens(10)
    status = statuses(made)
    with pytest.raises(ValueError, match="the shard has"):
        shard_table(objects(10), {k: v for k, v in made.items() if k != "wide"}, status, schema)
    with pytest.raises(ValueError, match="for other rows than those that have tokens"):
        shard_table(objects(10), made, {**status, "wide": ["present"] * 9 + ["not detected"]}, schema)
    with pytest.raises(ValueError, match="wanted integers of shape"):
        shard_table(objects(10), {**made, "wide": (np.zeros((10, 2), int), np.ones(10, bool))}, status, schema)
    with pytest.raises(ValueError, match="wanted integers of shape"):
        shard_table(objects(10), {**made, "wide": (np.zeros(10), np.ones(10, bool))}, status, schema)
    with pytest.raises(ValueError, match="longer than 4"):
        long = made["catalog"]._replace(length=np.full(10, 5))
        shard_table(objects(10), {**made, "catalog": long}, status, schema)
    with pytest.raises(ValueError, match="objects have the columns"):
        shard_table(objects(10).drop_columns(["ra"]), made, status, schema)
    with pytest.raises(ValueError, match=r"two columns status\.wide, wide"):
        shard_schema(objects(1).schema, [COLUMNS[3], COLUMNS[3]], "train", "all")
    with pytest.raises(ValueError, match="as many tokens as the shape holds"):
        TokenColumn("x", ID, 10, 5, "grid", (2, 3), False, "x")


def rewritten(path: Path, column: str, vocabulary: bool, tmp_path: Path) -> Path:
    """A shard of the same rows whose metadata tells less of a column than is there."""
    import json

    import pyarrow.parquet as pq

    table = pq.read_table(path)
    metadata = dict(table.schema.metadata)
    told = json.loads(metadata[b"skycairn.modalities"])
    told[column].update({"vocabulary": 10} if vocabulary else {"n_tokens": 2, "shape": [2]})
    table = table.replace_schema_metadata({**metadata, b"skycairn.modalities": json.dumps(told).encode()})
    out = tmp_path / "liar.parquet"
    with out.open("wb") as sink:
        writer = TableWriter(sink, table.schema, 40)
        writer.write(table)
        writer.close()
    return out


@pytest.mark.parametrize("column", ["desi.spectrum", "gaia.parallax", "catalog"])
def test_tokens_beyond_the_vocabulary_are_refused_on_reading(pile: Pile, tmp_path: Path, column: str) -> None:
    part, _ = shard(pile, 100)
    with ShardReader(rewritten(pile.path(part), column, True, tmp_path)) as reader:
        with pytest.raises(Damaged, match=rf"{column} has the token \d+ in row group 1, its vocabulary ends at 9"):
            reader.tokens(1)


@pytest.mark.parametrize("column", ["desi.spectrum", "catalog"])
def test_a_wrong_number_of_tokens_is_refused(pile: Pile, tmp_path: Path, column: str) -> None:
    part, _ = shard(pile, 100)
    with ShardReader(rewritten(pile.path(part), column, False, tmp_path)) as reader:
        with pytest.raises(Damaged, match=rf"{column} has \d tokens for an object of row group 0, its metadata says 2"):
            reader.tokens(0)


def test_flipped_bytes_are_noticed(pile: Pile) -> None:
    part, _ = shard(pile, 100)
    path = pile.path(part)
    path.chmod(0o644)
    raw = path.read_bytes()
    for place in range(0, len(raw), 97):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
        with pytest.raises(Damaged):
            ShardReader(path, part.sha256)
    with ShardReader(path) as reader:
        broken = reader._file.metadata.row_group(1).column(3)
    place = (
        broken.data_page_offset
        + broken.total_compressed_size
        - (broken.data_page_offset - broken.dictionary_page_offset)
        - 5
    )
    path.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
    with ShardReader(path) as reader:
        assert len(reader.tokens(0)["hsc.image"].present) == 40
        with pytest.raises(Damaged, match="cannot be read"):
            reader.tokens(1)


def test_other_files_are_no_shards(pile: Pile) -> None:
    part = pile.put_table(pa.table({"a": [1]}))
    with pytest.raises(Damaged, match=r"is no shard of format 1: its metadata has skycairn\.shard = None"):
        ShardReader(pile.path(part))
    schema = shard_schema(objects(1).schema, COLUMNS, "train", "all")
    with pytest.raises(Damaged, match="column wide is absent"):
        token_columns(schema.remove(schema.get_field_index("wide")))
    with pytest.raises(Damaged, match="cannot be read"):
        token_columns(schema.with_metadata({**schema.metadata, b"skycairn.modalities": b'{"a": 1}'}))
