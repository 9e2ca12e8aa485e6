import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from skycairn.pile.files import Damaged, Missing
from skycairn.pile.receipt import Receipt, task_key
from skycairn.pile.store import Pile


@pytest.fixture
def pile(tmp_path: Path) -> Pile:
    return Pile.create(tmp_path)


def receipt(pile: Pile, **change: object) -> Receipt:
    made = {
        "key": task_key("partition", 1, {"order": 6}, {"a.fits": "0" * 64}),
        "step": "partition",
        "label": "gaia cell 21041",
        "settings": {"order": 6, "radius_arcsec": 1.0},
        "inputs": {"a.fits": "0" * 64},
        "outputs": {"slim": pile.put_table(pa.table({"a": [1]}))},
        "counts": {"rows in": 2**63, "kept": 1},
        "notes": {"unverified": ["b.fits"]},
    }
    return Receipt(**{**made, **change})  # type: ignore[arg-type]


def test_a_receipt_comes_back(pile: Pile) -> None:
    r = receipt(pile)
    assert pile.receipt(r.key) is None
    pile.put_receipt(r)
    pile.put_receipt(r)
    assert pile.receipt(r.key) == r
    assert list(pile.receipts()) == [r]
    assert (pile.root / "receipts" / r.key[:2] / f"{r.key}.json").exists()


def test_a_lost_or_short_output_means_not_done(pile: Pile) -> None:
    r = receipt(pile)
    pile.put_receipt(r)
    path = pile.path(r.outputs["slim"])
    raw = path.read_bytes()
    path.unlink()
    assert pile.receipt(r.key) is None
    with pytest.raises(Missing, match="output 'slim'"):
        pile.put_receipt(r)
    path.write_bytes(raw[:-1])
    assert pile.receipt(r.key) is None
    path.write_bytes(raw)
    assert pile.receipt(r.key) == r


def test_a_receipt_without_outputs_is_done(pile: Pile) -> None:
    r = receipt(pile, outputs={}, counts={"rows in": 0})
    pile.put_receipt(r)
    assert pile.receipt(r.key) == r


def test_every_flipped_byte_of_a_receipt_is_an_error_that_says_what_to_do(pile: Pile) -> None:
    r = receipt(pile)
    pile.put_receipt(r)
    path = pile.root / "receipts" / r.key[:2] / f"{r.key}.json"
    path.chmod(0o644)
    raw = path.read_bytes()
    for place in range(len(raw) - 1):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with pytest.raises(Damaged, match="remove it, and its task runs again"):
            pile.receipt(r.key)
    for cut in (b"", raw[:20], b"[1]", b"[" * 100_000):
        path.write_bytes(cut)
        with pytest.raises(Damaged, match="remove it, and its task runs again"):
            pile.receipt(r.key)


def test_a_receipt_under_another_key_is_refused(pile: Pile) -> None:
    r = receipt(pile)
    pile.put_receipt(r)
    other = "ab" + "0" * 62
    (pile.root / "receipts" / "ab").mkdir(exist_ok=True)
    there = pile.root / "receipts" / r.key[:2] / f"{r.key}.json"
    (pile.root / "receipts" / "ab" / f"{other}.json").write_bytes(there.read_bytes())
    with pytest.raises(Damaged, match=f"is the receipt of {r.key}"):
        pile.receipt(other)
    with pytest.raises(ValueError, match="64 lower-case"):
        pile.receipt("../../pile")


def test_only_plain_values_go_in(pile: Pile) -> None:
    with pytest.raises(ValueError, match="count 'kept' is"):
        receipt(pile, counts={"kept": np.int64(1)})
    with pytest.raises(ValueError, match="is nan"):
        receipt(pile, notes={"seeing": float("nan")})
    with pytest.raises(ValueError, match="wanted exactly"):
        Receipt.from_json({**receipt(pile).to_json(), "extra": 1})


def test_a_key_hangs_on_all_that_decides_and_nothing_else() -> None:
    key = task_key("match", 1, {"radius": 1.0, "order": 6}, {"a": "1", "b": "2"})
    assert key == task_key("match", 1, {"order": 6, "radius": 1.0}, {"b": "2", "a": "1"})
    others = [
        task_key("matc", 1, {"radius": 1.0, "order": 6}, {"a": "1", "b": "2"}),
        task_key("match", 2, {"radius": 1.0, "order": 6}, {"a": "1", "b": "2"}),
        task_key("match", 1, {"radius": 1.0000000000000002, "order": 6}, {"a": "1", "b": "2"}),
        task_key("match", 1, {"radius": 1, "order": 6}, {"a": "1", "b": "2"}),
        task_key("match", 1, {"radius": 1.0, "order": 6}, {"a": "2", "b": "1"}),
    ]
    assert len({key, *others}) == 6
    assert key == json.loads(json.dumps(key)) and len(key) == 64
    assert key == "1078bc6787c5c9fe5981a00430200419a6d524c30c6d8ba4b8543cf4e136a909"
    with pytest.raises(ValueError, match="is nan"):
        task_key("match", 1, {"radius": float("nan")}, {})
