from pathlib import Path

import pyarrow as pa
import pytest

from skycairn.pile import tags
from skycairn.pile.files import Damaged, Missing
from skycairn.pile.store import Draft, Entry, Pile


@pytest.fixture
def pile(tmp_path: Path) -> Pile:
    pile = Pile.create(tmp_path / "pile")
    for i in range(4):
        pile.commit(Draft({}, {"t": [Entry({}, pile.put_table(pa.table({"a": [i]})))]}))
    return pile


def test_names_are_given_moved_and_taken_away(pile: Pile) -> None:
    assert pile.tags() == {}
    pile.tag("dr1", 2)
    pile.tag("paper-1.0_b", 3)
    assert pile.tags() == {"dr1": 2, "paper-1.0_b": 3}
    pile.tag("dr1", 4)
    assert pile.tags()["dr1"] == pile.resolve("dr1") == 4
    pile.untag("dr1")
    assert pile.tags() == {"paper-1.0_b": 3}
    with pytest.raises(Missing, match=r"no tag dr1; it has paper-1\.0_b"):
        pile.untag("dr1")
    with pytest.raises(Missing, match="has no snapshot 9"):
        pile.tag("paper-1.0_b", 9)
    assert pile.tags() == {"paper-1.0_b": 3}


@pytest.mark.parametrize("name", ["", "head", "12", "../x", "a/b", ".a", "-a", "a b", "é", "a\n", "a\0", "x" * 65])
def test_odd_names_are_refused(pile: Pile, name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a snapshot"):
        pile.tag(name, 1)
    with pytest.raises(ValueError, match="cannot name a snapshot"):
        pile.untag(name)
    assert not (pile.root / "refs").exists()


def test_what_a_text_means(pile: Pile) -> None:
    assert [pile.resolve(t) for t in ("head", "head~0", "head~1", "head~3", "2", "04")] == [4, 4, 3, 1, 2, 4]
    pile.snapshot_path(3).unlink()
    assert pile.resolve("head~1") == 2
    for text in ("head~3", "3", "99", "9" * 20, "nope", "1e3"):
        with pytest.raises(Missing):
            pile.resolve(text)
    for text in ("head~", "head~-1", "HEAD~1", "", "²"):
        with pytest.raises(ValueError, match="cannot name a snapshot"):
            pile.resolve(text)


def test_a_tag_is_of_what_was_tagged(pile: Pile) -> None:
    pile.tag("mine", 4)
    pile.snapshot_path(4).unlink()
    with pytest.raises(Missing, match="has no snapshot 4"):
        pile.resolve("mine")
    pile.commit(Draft({}, {"t": [Entry({}, pile.put_table(pa.table({"a": [99]})))]}))
    with pytest.raises(Damaged, match="tag the snapshot again"):
        pile.resolve("mine")


def test_a_damaged_tag_is_told(pile: Pile) -> None:
    pile.tag("mine", 4)
    path = pile.root / "refs" / "tags" / "mine.json"
    raw = path.read_bytes()
    path.chmod(0o644)
    for place in range(len(raw) - 1):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with pytest.raises(Damaged, match="tag the snapshot again"):
            pile.tags()
    path.write_bytes(raw)
    path.rename(path.with_name("yours.json"))
    with pytest.raises(Damaged, match="it is the tag 'mine'"):
        pile.tags()


def test_a_snapshot_that_goes_while_it_is_tagged(pile: Pile, monkeypatch: pytest.MonkeyPatch) -> None:
    true = Pile.publish_sealed

    def late(self: Pile, body: dict[str, object], path: Path) -> None:
        true(self, body, path)
        pile.snapshot_path(1).unlink()

    monkeypatch.setattr(Pile, "publish_sealed", late)
    with pytest.raises(Missing):
        pile.tag("mine", 1)
    assert tags.tag_files(pile) == []


def test_history_is_newest_first_and_lists_damage(pile: Pile) -> None:
    pile.tag("a", 2)
    pile.tag("b", 2)
    path = pile.snapshot_path(3)
    path.chmod(0o644)
    path.write_bytes(b"{}")
    with pile.pin(1):
        found = pile.history()
    assert [(v.number, v.parent, v.tags, v.leased, bool(v.damage)) for v in found] == [
        (4, 3, (), False, False),
        (3, None, (), False, True),
        (2, 1, ("a", "b"), False, False),
        (1, None, (), True, False),
    ]
    assert found[0].content_id == pile.snapshot(4).content_id and found[1].content_id == ""
