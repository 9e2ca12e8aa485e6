import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from skycairn.pile.content import content_id
from skycairn.pile.files import Damaged, Missing, NotAPile, PendingFile
from skycairn.pile.store import Draft, Entry, Part, Pile, Snapshot


@pytest.fixture
def pile(tmp_path: Path) -> Pile:
    return Pile.create(tmp_path / "pile")


def mixed(n: int = 300) -> pa.Table:
    rng = np.random.default_rng(1)
    tokens = [[int(x) for x in rng.integers(0, 99, 8)] if i % 3 else None for i in range(n)]
    return pa.table(
        {
            "key": pa.array(2**63 - 1 - np.arange(n), pa.int64()),
            "unsigned": pa.array(2**64 - 1 - np.arange(n, dtype=np.uint64)),
            "gaia.parallax": pa.array(rng.random(n), mask=rng.random(n) < 0.2),
            "gaia.parallax.error": rng.random(n).astype(np.float32),
            "half": rng.random(n).astype(np.float16),
            "name": [None if i % 7 == 0 else f"gaia:{i}" for i in range(n)],
            "status": pa.array(["present", "file absent"] * (n // 2)).dictionary_encode(),
            "bad": rng.random(n) < 0.5,
            "tokens": pa.array(tokens, pa.list_(pa.field("element", pa.uint16(), nullable=False))),
            "flux": pa.FixedSizeListArray.from_arrays(pa.array(rng.random(2 * n).astype(np.float32)), 2),
            "mask": pa.FixedSizeListArray.from_arrays(pa.array(rng.random(2 * n) < 0.5), 2),
            "place": pa.array([{"ra": 1.5, "cell": i, "tags": [str(i)]} if i % 5 else None for i in range(n)]),
            "nested": pa.array([[[i, None], []] for i in range(n)], pa.large_list(pa.list_(pa.int64()))),
            "codes": pa.ListArray.from_arrays(np.arange(n + 1), pa.array(["a", "b"] * (n // 2)).dictionary_encode()),
            "when": pa.array(np.arange(n), pa.timestamp("us")),
            "day": pa.array(np.arange(n, dtype=np.int32), pa.date32()),
            "price": pa.array([1] * n, pa.decimal128(20, 2)),
            "nothing": pa.nulls(n),
            "three": pa.array([b"xyz"] * n, pa.binary(3)),
        }
    )


def writable(path: Path) -> Path:
    path.chmod(0o644)
    return path


def test_a_table_comes_back_whole(pile: Pile) -> None:
    table = mixed()
    part = pile.put_table(table, 100)
    back = pile.read_table(part)
    assert content_id(back) == part.content_id == content_id(table)
    assert back.drop_columns(["codes"]).equals(table.drop_columns(["codes"]))
    assert back.column("codes").to_pylist() == table.column("codes").to_pylist()
    assert back.schema.field("key").type == pa.int64() and back.column("key")[0].as_py() == 2**63 - 1
    assert back.column("unsigned")[0].as_py() == 2**64 - 1
    assert pile.read_table(part.sha256).equals(back)


def test_a_part_is_named_by_its_bytes_and_read_only(pile: Pile) -> None:
    part = pile.put_table(mixed())
    path = pile.path(part)
    assert path.relative_to(pile.root).as_posix() == f"parts/{part.sha256[:2]}/{part.sha256}.parquet"
    raw = path.read_bytes()
    assert hashlib.sha256(raw).hexdigest() == part.sha256 and len(raw) == part.n_bytes
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert list((pile.root / "tmp").iterdir()) == []


def test_bytes_hang_on_rows_not_on_how_they_came(pile: Pile) -> None:
    table = mixed()
    whole = pile.put_table(table, 64)
    again = pile.put_table(pa.concat_tables([table[:7], table[7:7], table[7:200], table[200:]]), 64)
    status = pa.DictionaryArray.from_arrays(
        pc.index_in(table.column("status").cast(pa.string()), pa.array(["unused", "file absent", "present"])),
        pa.array(["unused", "file absent", "present"]),
    )
    other_dictionary = table.set_column(table.schema.get_field_index("status"), "status", status)
    with pile.table_writer(table.schema, 64) as file:
        for start in range(0, table.num_rows, 11):
            file.write(other_dictionary.slice(start, 11))
    assert whole == again == file.part
    assert len(list((pile.root / "parts").rglob("*.parquet"))) == 1


def test_pandas_leaves_no_trace_and_units_stay(pile: Pile) -> None:
    field = pa.field("ra", pa.float64(), metadata={"unit": "deg"})
    plain = pile.put_table(pa.table({"ra": [1.0]}, schema=pa.schema([field], {"a": "b"})))
    marked = pile.put_table(pa.table({"ra": [1.0]}, schema=pa.schema([field], {"a": "b", "pandas": "{}"})))
    assert plain == marked
    schema = pile.read_table(plain).schema
    assert schema.metadata == {b"a": b"b"} and schema.field("ra").metadata == {b"unit": b"deg"}


def test_encodings_are_those_promised(pile: Pile) -> None:
    with pile.open_parquet(pile.put_table(mixed())) as file:
        group = file.metadata.row_group(0)
        leaves = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    split = {n for n, c in leaves.items() if "BYTE_STREAM_SPLIT" in c.encodings}
    delta = {n for n, c in leaves.items() if "DELTA_BINARY_PACKED" in c.encodings}
    by_dictionary = {n for n, c in leaves.items() if "RLE_DICTIONARY" in c.encodings}
    assert split == {"gaia.parallax", "gaia.parallax.error", "half", "flux.list.element", "place.ra"}
    assert delta == {"key", "unsigned", "when", "place.cell", "nested.list.element.list.element"}
    assert by_dictionary >= {"name", "status", "tokens.list.element", "place.tags.list.element"}
    assert {c.compression for c in leaves.values()} == {"ZSTD"}
    assert all(c.is_stats_set for n, c in leaves.items() if n in ("key", "name", "gaia.parallax.error"))


@pytest.mark.parametrize(
    "table", [pa.table({}), mixed().slice(0, 0), pa.table({"a": pa.nulls(3, pa.list_(pa.int8()))})]
)
def test_tables_of_nothing(pile: Pile, table: pa.Table) -> None:
    part = pile.put_table(table)
    assert part.n_rows == table.num_rows
    assert content_id(pile.read_table(part)) == part.content_id == content_id(table)


def test_columns_with_dots_are_not_mixed_up(pile: Pile) -> None:
    part = pile.put_table(mixed())
    assert pile.read_table(part, columns=["gaia.parallax"]).column_names == ["gaia.parallax"]
    assert pile.read_table(part, columns=["name", "key"]).column_names == ["name", "key"]
    with pytest.raises(ValueError, match="there is no column gaia, xyz; the file has key, unsigned"):
        pile.read_table(part, columns=["gaia", "xyz"])


@pytest.mark.parametrize("rows", [(0, 0), (0, 300), (99, 101), (100, 200), (250, 300), (300, 300)])
def test_row_ranges(pile: Pile, rows: tuple[int, int]) -> None:
    table = mixed()
    part = pile.put_table(table, 100)
    got = pile.read_table(part, columns=["key", "tokens"], rows=rows)
    assert got.equals(table.select(["key", "tokens"]).slice(rows[0], rows[1] - rows[0]))


def test_rows_out_of_range_and_rows_with_filters_are_refused(pile: Pile) -> None:
    part = pile.put_table(mixed())
    for rows in ((-1, 2), (5, 4), (0, 301)):
        with pytest.raises(ValueError, match="the file has 300"):
            pile.read_table(part, rows=rows)
    with pytest.raises(ValueError, match="give one of them"):
        pile.read_table(part, rows=(0, 1), filters=[("bad", "==", True)])


def test_filters(pile: Pile) -> None:
    table = mixed()
    part = pile.put_table(table, 50)
    want = table.filter(pc.field("place", "cell") < 20).select(["key"])
    assert pile.read_table(part, columns=["key"], filters=pc.field("place", "cell") < 20).equals(want)
    top = pile.read_table(part, columns=["name"], filters=[("key", ">=", 2**63 - 3)])
    assert top.column("name").to_pylist() == table.column("name").to_pylist()[:3]


def test_a_row_range_reads_only_its_row_groups(pile: Pile) -> None:
    part = pile.put_table(mixed(), 100)
    with pile.open_parquet(part) as file:
        column = file.metadata.row_group(2).column(2)
    # the end of the page; a flip in its header is not always noticed
    place = column.data_page_offset + column.total_compressed_size - 10
    path = writable(pile.path(part))
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    paged = Pile.open(pile.root, check="pages")
    assert paged.read_table(part, rows=(0, 200)).num_rows == 200
    with pytest.raises(Damaged, match=r"CRC|cannot be read"):
        paged.read_table(part, rows=(0, 201))


def test_every_flipped_byte_is_noticed(pile: Pile) -> None:
    # footers and page headers have no checksum of their own in Parquet
    part = pile.put_table(mixed(60).select(["key", "gaia.parallax", "name", "tokens"]), 30)
    path = writable(pile.path(part))
    raw = path.read_bytes()
    for place in range(0, len(raw), 13):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << place % 8]) + raw[place + 1 :])
        with pytest.raises(Damaged):
            pile.read_table(part)
    path.write_bytes(raw)
    assert pile.read_table(part).num_rows == 60


@pytest.mark.parametrize("check", ["first", "pages"])
def test_truncated_absent_and_foreign_parts(pile: Pile, check: str) -> None:
    pile.check = check  # type: ignore[assignment]
    part = pile.put_table(mixed())
    path = writable(pile.path(part))
    raw = path.read_bytes()
    path.write_bytes(raw[:-100])
    with pytest.raises(Damaged, match=f"has {len(raw) - 100} bytes, not {len(raw)}"):
        pile.read_table(part)
    with pytest.raises(Damaged):
        pile.read_table(part.sha256)
    path.write_bytes(b"<html>" + b" " * (len(raw) - 6))
    with pytest.raises(Damaged):
        pile.read_table(part)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(Damaged):
        pile.read_table(part)
    path.unlink()
    for read in (lambda: pile.read_table(part), lambda: pile.read_table(part.sha256), lambda: pile.open_parquet(part)):
        with pytest.raises(Missing, match="is not there; build it again"):
            read()


def test_writing_again_heals_a_damaged_part(pile: Pile) -> None:
    part = pile.put_table(mixed())
    path = writable(pile.path(part))
    raw = path.read_bytes()
    path.write_bytes(raw[:50] + b"\0" + raw[51:])
    assert pile.put_table(mixed()) == part
    assert path.read_bytes() == raw and stat.S_IMODE(path.stat().st_mode) == 0o444


def test_nothing_is_kept_of_a_table_that_failed(pile: Pile) -> None:
    table = mixed()
    with pytest.raises(RuntimeError, match="enough"), pile.table_writer(table.schema, 50) as file:
        file.write(table)
        raise RuntimeError("enough")
    with pytest.raises(ValueError, match="once the `with` has ended"):
        _ = file.part
    assert not [p for p in pile.root.rglob("*") if p.is_file() and p.name != "pile.json"]


def test_rows_of_another_shape_are_refused(pile: Pile) -> None:
    schema = pa.schema([("a", pa.int64()), ("b", pa.string())])
    for table, said in (
        (pa.table({"b": ["x"], "a": [1]}), r"columns \['b', 'a'\], the file has \['a', 'b'\]"),
        (pa.table({"a": pa.array([1], pa.int32()), "b": ["x"]}), "a is int32, wanted int64"),
    ):
        with pytest.raises(ValueError, match=said), pile.table_writer(schema) as file:
            file.write(table)
    with pile.table_writer(schema) as file:
        file.write(pa.table({"a": [1], "b": pa.array(["x"]).dictionary_encode()}))
        file.write(pa.record_batch({"a": [2], "b": pa.array(["y"], pa.large_string())}))
    assert pile.read_table(file.part).to_pylist() == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    strict = pa.schema([pa.field("a", pa.int64(), nullable=False)])
    with pytest.raises(ValueError, match="null"), pile.table_writer(strict) as file:
        file.write(pa.table({"a": pa.array([None], pa.int64())}))
    with pytest.raises(ValueError, match="at least 1"):
        pile.put_table(pa.table({"a": [1]}), 0)


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32())), "no content id for the Arrow type map"),
        (pa.array([[]], pa.list_(pa.int8(), 0)), "back with another length"),
        (pa.array([{}], pa.struct([])), "no child field"),
    ],
)
def test_what_parquet_cannot_hold_is_refused(pile: Pile, column: pa.Array, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        pile.put_table(pa.table({"a": column}))
    assert list((pile.root / "tmp").iterdir()) == []


def test_nulls_where_a_list_allows_none_are_refused(pile: Pile) -> None:
    lists = pa.array([[1, None]], pa.list_(pa.uint16()))
    strict = pa.list_(pa.field("element", pa.uint16(), nullable=False))
    bad = pa.ListArray.from_arrays(lists.offsets, lists.values, type=strict)
    with pytest.raises(ValueError, match="null"):
        pile.put_table(pa.table({"tokens": bad}))


def test_bytes_and_folders(pile: Pile, tmp_path: Path) -> None:
    part = pile.put_bytes(b'{"kind": "grid"}', ".json")
    assert pile.read_bytes(part) == b'{"kind": "grid"}' and part.content_id == part.sha256
    folder = tmp_path / "codec"
    folder.mkdir()
    (folder / "codec.json").write_bytes(b"{}")
    (folder / "codec.safetensors").write_bytes(bytes(range(256)) * 50)
    parts = pile.put_folder(folder)
    pile.restore_folder(parts, tmp_path / "again")
    assert {p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()} == {
        p.name: p.read_bytes() for p in folder.iterdir()
    }
    path = writable(pile.path(parts["codec.safetensors"]))
    for place in (0, 4000, 12799):
        raw = bytearray(bytes(range(256)) * 50)
        raw[place] ^= 16
        path.write_bytes(raw)
        with pytest.raises(Damaged, match="has the SHA-256"):
            pile.read_bytes(parts["codec.safetensors"])
    with pytest.raises(ValueError, match=r"is a \.json file, not a table"):
        pile.read_table(part)
    with pytest.raises(ValueError, match="not a plain file name"):
        pile.restore_folder({"../evil": part}, tmp_path / "again")
    (folder / "deep").mkdir()
    with pytest.raises(ValueError, match="wanted a flat folder"):
        pile.put_folder(folder)


def test_a_pile_is_told_from_other_folders(tmp_path: Path) -> None:
    with pytest.raises(NotAPile, match=r"no pile\.json"):
        Pile.open(tmp_path)
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(NotAPile, match=r"holds thesis\.tex"):
        Pile.create(tmp_path)
    (tmp_path / "pile.json").write_text("[]")
    with pytest.raises(NotAPile, match=r"pile\.json says"):
        Pile.open(tmp_path)
    (tmp_path / "pile.json").write_text("{")
    with pytest.raises(NotAPile, match="cannot be read"):
        Pile.create(tmp_path)
    (tmp_path / "pile.json").write_text(json.dumps({"what": "skycairn pile", "format": 2}))
    with pytest.raises(NotAPile, match=r"format 2, this version reads formats up to 1; use a newer"):
        Pile.open(tmp_path)


def test_create_twice_and_after_a_crash(tmp_path: Path) -> None:
    ours = ["parts", "receipts", "snapshots", "refs", "leases", "quarantine", "locks", "tmp"]
    for name in [*ours, "codecs", "journal", "hats"]:
        (tmp_path / name).mkdir()
    (tmp_path / "codecs.lock").touch()
    pile = Pile.create(tmp_path)
    part = pile.put_bytes(b"x", ".txt")
    assert Pile.create(tmp_path).read_bytes(part) == b"x"


def test_a_moved_pile_is_the_same_pile(pile: Pile, tmp_path: Path) -> None:
    part = pile.put_table(mixed())
    pile.commit(Draft({}, {"t": [Entry({}, part)]}))
    shutil.move(pile.root, tmp_path / "elsewhere ünï [1]")
    moved = Pile.open(tmp_path / "elsewhere ünï [1]")
    assert moved.verify().sound
    assert moved.read_table(moved.snapshot().part("t")).num_rows == 300
    assert str(tmp_path) not in next((moved.root / "snapshots").iterdir()).read_text()


def test_only_files_of_dead_writers_are_swept(pile: Pile) -> None:
    living = PendingFile(pile.root / "tmp")
    code = "import sys, os; from pathlib import Path; from skycairn.pile.files import PendingFile\n"
    code += "PendingFile(Path(sys.argv[1])).write(b'half'); os._exit(1)"
    subprocess.run([sys.executable, "-c", code, str(pile.root / "tmp")], check=False)
    foreign = pile.root / "tmp" / f"{'0' * 12}-1-{'0' * 32}"
    foreign.write_bytes(b"of another machine")
    assert len(list((pile.root / "tmp").iterdir())) == 3
    Pile.open(pile.root)
    assert {p.name for p in (pile.root / "tmp").iterdir()} == {living.path.name, foreign.name}
    living.discard()


def test_a_pile_without_the_newer_folders_is_used(pile: Pile) -> None:
    pile.commit(Draft({}, {"t": [one(pile, 1)]}))
    for name in ("leases", "refs", "quarantine", "locks"):
        assert not (pile.root / name).exists()
    old = Pile.open(pile.root)
    assert old.leases() == [] and old.tags() == {} and old.history()[0].number == old.resolve("head") == 1
    assert old.verify().sound
    with old.pin():
        old.tag("x", 1)
    assert old.resolve("x") == 1


def test_a_read_only_pile_can_be_read(pile: Pile) -> None:
    part = pile.put_table(mixed())
    pile.commit(Draft({}, {"t": [Entry({}, part)]}))
    shutil.rmtree(pile.root / "tmp")
    reader = Pile.open(pile.root)
    assert reader.read_table(reader.snapshot().part("t")).num_rows == 300


ADD = """
import sys, pyarrow as pa
from skycairn.pile.store import Draft, Entry, Pile
pile = Pile.open(sys.argv[1])
for i in range(8):
    part = pile.put_table(pa.table({"who": [int(sys.argv[2])], "i": [i]}))
    def add(head):
        before = [] if head is None else list(head.entries("t"))
        return Draft({}, {"t": [*before, Entry({"who": int(sys.argv[2]), "i": i}, part)]})
    pile.commit(add)
"""


def test_four_processes_commit_and_nothing_is_lost(pile: Pile) -> None:
    workers = [subprocess.Popen([sys.executable, "-c", ADD, str(pile.root), str(w)]) for w in range(4)]
    assert [w.wait(60) for w in workers] == [0] * 4
    assert pile.snapshots() == list(range(1, 33))
    got = {(e.labels["who"], e.labels["i"]) for e in pile.snapshot().entries("t")}
    assert got == {(w, i) for w in range(4) for i in range(8)}
    for number in range(2, 33):
        before, after = pile.snapshot(number - 1), pile.snapshot(number)
        assert after.parent == number - 1
        assert set(e.name for e in before.entries("t")) < set(e.name for e in after.entries("t"))
    assert pile.verify().sound


def one(pile: Pile, value: int, **labels: int) -> Entry:
    return Entry(dict(labels), pile.put_table(pa.table({"a": [value]})))


def test_committing_the_same_again_is_no_new_snapshot(pile: Pile) -> None:
    first = pile.commit(Draft({"radius": 1.0}, {"t": [one(pile, 1, cell=1), one(pile, 2, cell=2)]}))
    again = pile.commit(Draft({"radius": 1.0}, {"t": [one(pile, 2, cell=2), one(pile, 1, cell=1)]}, stats={"s": 9}))
    assert again == first and pile.snapshots() == [1]
    assert pile.commit(Draft({"radius": 2.0}, first.tables)).number == 2
    aside = pile.commit(Draft({"radius": 2.0}, first.tables, aside={"provenance": [one(pile, 5)]}))
    assert aside.number == 3 and aside.content_id == first.content_id
    held = pile.commit(Draft({"radius": 2.0}, first.tables, held_back=[{"cell": 3}]))
    assert held.number == 4 and held.content_id != first.content_id


def test_a_head_with_a_lost_part_is_committed_anew(pile: Pile) -> None:
    table = pa.table({"a": range(100)})
    old = pile.put_table(table, 10)
    pile.commit(Draft({}, {"t": [Entry({}, old)]}))
    pile.path(old).unlink()
    new = pile.put_table(table, 50)
    healed = pile.commit(Draft({}, {"t": [Entry({}, new)]}))
    assert healed.number == 2 and healed.content_id == pile.snapshot(1).content_id
    (problem,) = pile.verify().problems
    assert problem.missing and problem.part == old and problem.named_by == (f"snapshots/{1:020d}.json",)


def test_a_snapshot_names_no_absent_part(pile: Pile) -> None:
    entry = one(pile, 1)
    pile.path(entry.part).unlink()
    with pytest.raises(Missing, match="a snapshot cannot name it"):
        pile.commit(Draft({}, {"t": [entry]}))
    assert pile.head() is None


def test_asking_for_snapshots_that_are_not_there(pile: Pile) -> None:
    assert pile.head() is None and pile.snapshots() == []
    with pytest.raises(Missing, match="no snapshot yet"):
        pile.snapshot()
    pile.commit(Draft({}, {"t": [one(pile, 1)]}))
    with pytest.raises(Missing, match="has no snapshot 7; there are 1 to 1"):
        pile.snapshot(7)
    with pytest.raises(ValueError, match="has no table 'x'; it has t"):
        pile.snapshot().entries("x")


def test_the_first_snapshot_may_come_while_the_head_is_asked_for(pile: Pile, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_yet(self: Pile) -> list[int]:
        monkeypatch.undo()
        self.commit(Draft({}, {"t": [one(pile, 1)]}))
        return []

    monkeypatch.setattr(Pile, "snapshots", none_yet)
    assert pile.head() is None
    assert pile.head() is not None


def test_damaged_and_exchanged_snapshots_are_refused(pile: Pile) -> None:
    pile.commit(Draft({}, {"t": [one(pile, 1)]}))
    pile.commit(Draft({}, {"t": [one(pile, 2)]}))
    path = writable(pile.root / "snapshots" / f"{2:020d}.json")
    raw = path.read_bytes()
    for place in range(len(raw) - 1):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with pytest.raises(Damaged, match="remove it to fall back"):
            pile.snapshot()
    path.write_bytes(raw[:-40])
    with pytest.raises(Damaged):
        pile.head()
    path.write_bytes((pile.root / "snapshots" / f"{1:020d}.json").read_bytes())
    with pytest.raises(Damaged, match="is snapshot 1"):
        pile.snapshot()
    path.write_bytes(raw)
    assert pile.snapshot().number == 2


def test_snapshots_without_hard_links(pile: Pile, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    seen: list[Snapshot | None] = []

    def change(head: Snapshot | None) -> Draft:
        # another process commits between our look at the head and our commit
        if not seen:
            seen.append(head)
            pile.commit(Draft({}, {"t": [one(pile, 1, by=1)]}))
        return Draft({}, {"t": [*(head.entries("t") if head else ()), one(pile, 2, by=2)]})

    pile.commit(change)
    assert pile.snapshots() == [1, 2] and len(pile.snapshot().entries("t")) == 2
    assert sorted(p.name for p in (pile.root / "snapshots").iterdir()) == [f"{n:020d}.json" for n in (1, 2)]
    (pile.root / "snapshots" / f".{3:020d}.json.claim").touch()
    with pytest.raises(FileExistsError, match="remove the claim"):
        pile.commit(Draft({}, {"t": [one(pile, 3)]}))


def test_part_json_is_read_strictly(pile: Pile) -> None:
    part = pile.put_table(mixed())
    assert Part.from_json(json.loads(json.dumps(part.to_json()))) == part
    for change in ({"sha256": "../../etc"}, {"suffix": "/../x"}, {"n_rows": -1}, {"n_bytes": 1.0}, {"n_rows": True}):
        with pytest.raises(ValueError, match="wanted"):
            Part.from_json({**part.to_json(), **change})
    with pytest.raises(ValueError, match="wanted exactly"):
        Part.from_json({**part.to_json(), "url": "x"})
    with pytest.raises(ValueError, match="64 lower-case"):
        pile.read_table("../../../etc/passwd")
