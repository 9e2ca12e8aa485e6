from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skycairn.pile import verify as verification
from skycairn.pile.receipt import Part, Receipt, task_key
from skycairn.pile.store import Draft, Entry, Pile
from skycairn.pile.verify import quarantine


@pytest.fixture
def pile(tmp_path: Path) -> Pile:
    pile = Pile.create(tmp_path)
    parts = [pile.put_table(pa.table({"a": range(i, i + 50)}), 20) for i in range(3)]
    tables = {"t": [Entry({"cell": i}, part) for i, part in enumerate(parts)]}
    pile.commit(Draft({}, tables, aside={"codec": [Entry({}, pile.put_bytes(b"bins", ".safetensors"))]}))
    return pile


def path_of(pile: Pile, cell: int) -> Path:
    path = pile.path(pile.snapshot().part("t", cell=cell))
    path.chmod(0o644)
    return path


def test_a_sound_pile(pile: Pile) -> None:
    found = pile.verify()
    assert found.sound and found.n_parts == 4 and (found.n_orphans, found.n_strange) == (0, 0)
    assert found.n_bytes == sum(part.n_bytes for part in pile.snapshot().parts())


def test_each_kind_of_damage_is_named_with_its_file(pile: Pile) -> None:
    path_of(pile, 0).unlink()
    short, flipped = path_of(pile, 1), path_of(pile, 2)
    short.write_bytes(short.read_bytes()[:-1])
    raw = flipped.read_bytes()
    flipped.write_bytes(raw[:100] + bytes([raw[100] ^ 8]) + raw[101:])
    codec = pile.path(pile.snapshot().part("codec"))
    codec.chmod(0o644)
    codec.write_bytes(b"bons")
    said = {p.where: p.what for p in pile.verify().problems}
    assert len(said) == 4
    assert "is not there" in next(w for f, w in said.items() if f.endswith(path_of_name(pile, 0)))
    assert "bytes, not" in next(w for f, w in said.items() if f.endswith(short.name))
    assert "SHA-256" in next(w for f, w in said.items() if f.endswith(flipped.name))
    assert "SHA-256" in next(w for f, w in said.items() if f.endswith(codec.name))
    assert len(pile.verify(deep=False).problems) == 2


def path_of_name(pile: Pile, cell: int) -> str:
    return pile.path(pile.snapshot().part("t", cell=cell)).name


def test_left_over_parts_are_counted_and_no_damage(pile: Pile) -> None:
    pile.put_table(pa.table({"b": [1]}))
    kept = pile.put_table(pa.table({"c": [1]}))
    key = task_key("s", 1, {}, {})
    pile.put_receipt(Receipt(key, "s", "", {}, {}, {"x": kept}, {}))
    (pile.root / "parts" / "notes.txt").write_text("mine")
    found = pile.verify()
    assert found.sound and (found.n_orphans, found.n_strange) == (1, 1)


def test_parts_of_older_snapshots_are_no_orphans(pile: Pile) -> None:
    pile.commit(Draft({}, {"t": [Entry({}, pile.put_table(pa.table({"z": [1]})))]}))
    found = pile.verify()
    assert found.sound and found.n_parts == 1 and found.n_orphans == 0


def test_damaged_snapshots_and_receipts_are_problems(pile: Pile) -> None:
    key = task_key("s", 1, {}, {})
    pile.put_receipt(Receipt(key, "s", "", {}, {}, {}, {}))
    for path in (pile.root / "receipts" / key[:2] / f"{key}.json", pile.root / "snapshots" / f"{1:020d}.json"):
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-9])
    assert [p.where.split("/")[0] for p in pile.verify().problems] == ["snapshots", "receipts"]


def test_a_snapshot_that_tells_wrong_rows_of_a_right_file_is_found(pile: Pile) -> None:
    part = pile.snapshot().part("t", cell=0)
    for change in ({"n_rows": 7}, {"content_id": "0" * 64}):
        liar = Part(**{**part.to_json(), **change})
        pile.commit(Draft({"x": str(change)}, {"t": [Entry({}, liar)]}))
        assert pile.verify(deep=False).sound
        problems = pile.verify().problems
        # the file is right; what is wrong is the snapshot
        assert [(p.where, p.kind) for p in problems] == [(f"snapshots/{2:020d}.json", "snapshot")]
        assert quarantine(pile, problems) == [Path(problems[0].where)]
        assert pile.verify().sound and pile.snapshots() == [1]


def test_all_snapshots_and_receipts_are_looked_at_and_each_part_once(
    pile: Pile, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = pile.put_table(pa.table({"c": [1]}))
    pile.put_receipt(Receipt(task_key("s", 1, {}, {}), "s", "", {}, {}, {"x": kept}, {}))
    tables = {"t": [*pile.snapshot(1).entries("t"), Entry({"cell": 9}, pile.put_table(pa.table({"z": [1]})))]}
    pile.commit(Draft({}, tables))
    read: list[str] = []
    true = verification.file_sha256
    monkeypatch.setattr(verification, "file_sha256", lambda p: read.append(p.name) or true(p))
    found = pile.verify()
    assert found.sound and found.n_parts == 4 and found.n_checked == len(read) == len(set(read)) == 6
    codec = pile.path(pile.snapshot(1).part("codec"))
    for path in (codec, pile.path(kept)):
        path.chmod(0o644)
        path.write_bytes(b"x" * path.stat().st_size)
    told = {p.where.rpartition("/")[2]: p for p in pile.verify().problems}
    assert set(told) == {codec.name, pile.path(kept).name}
    assert told[codec.name].named_by == (f"snapshots/{1:020d}.json",) and told[codec.name].part is not None
    # a receipt without its part is a task to do, a snapshot without one is not whole
    codec.unlink()
    pile.path(kept).unlink()
    assert [(p.where.rpartition("/")[2], p.missing) for p in pile.verify().problems] == [(codec.name, True)]


def test_damaged_files_are_moved_away_and_made_anew(pile: Pile) -> None:
    table = pa.table({"c": range(40)})
    receipt = Receipt(task_key("s", 1, {}, {}), "s", "", {}, {}, {"x": pile.put_table(table)}, {})
    pile.put_receipt(receipt)
    pile.commit(Draft({}, {"t": [Entry({}, receipt.outputs["x"])]}))
    part = receipt.outputs["x"]
    files = [pile.path(part), pile.snapshot_path(1), pile.receipt_path(receipt.key)]
    broken = []
    for path in files:
        path.chmod(0o644)
        raw = bytearray(path.read_bytes())
        raw[20] ^= 1
        path.write_bytes(raw)
        broken.append(bytes(raw))
    moved = quarantine(pile, pile.verify().problems)
    assert moved == [Path(f"snapshots/{1:020d}.json"), files[2].relative_to(pile.root), part]
    kept = [p.read_bytes() for p in (pile.root / "quarantine").iterdir()]
    assert sorted(kept) == sorted(broken)
    assert quarantine(pile, pile.verify().problems) == []
    assert pile.receipt(receipt.key) is None and [p.missing for p in pile.verify().problems] == [True]
    assert pile.put_table(table) == part
    pile.put_receipt(receipt)
    assert pile.verify().sound and pile.receipt(receipt.key) == receipt
    # damaged again, it does not take the place of what was moved before
    files[0].chmod(0o644)
    files[0].write_bytes(broken[0])
    assert quarantine(pile, pile.verify().problems) == [part]
    assert len(list((pile.root / "quarantine").iterdir())) == 4


def test_tags_are_verified_too(pile: Pile) -> None:
    for name in ("a", "b", "c"):
        pile.tag(name, 1)
    path = pile.root / "refs" / "tags" / "a.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-9])
    (pile.root / "refs" / "tags" / "d.json").write_bytes((pile.root / "refs" / "tags" / "b.json").read_bytes())
    problems = pile.verify().problems
    assert [(p.where, p.kind) for p in problems] == [("refs/tags/a.json", "tag"), ("refs/tags/d.json", "tag")]
    pile.snapshot_path(1).chmod(0o644)
    pile.snapshot_path(1).write_bytes(b"{}")
    problems = pile.verify().problems
    # a tag is right whose snapshot is not
    assert [p.kind for p in problems] == ["snapshot", "tag", "tag"]
    quarantine(pile, problems)
    assert [(p.where, p.missing) for p in pile.verify().problems] == [
        ("refs/tags/b.json", True),
        ("refs/tags/c.json", True),
    ]


def test_a_foreign_parquet_file_in_a_parts_place_is_found(pile: Pile) -> None:
    path = path_of(pile, 0)
    size = path.stat().st_size
    pq.write_table(pa.table({"a": range(50)}), path, write_page_checksum=False, compression="none")
    assert not pile.verify(deep=path.stat().st_size == size).sound
