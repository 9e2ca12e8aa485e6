"""Checkpoints: whole or not at all, and told when they are not what was written."""

import json

import pytest
import torch

from skycairn.tokenizers import checkpoint
from skycairn.tokenizers.checkpoint import (
    found,
    read_about,
    tensors_of,
    unlike,
    write,
)

ABOUT = {"format": 1, "config": {"steps": 3, "size": "tiny"}, "step": 2}
TENSORS = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(3)}


def test_what_is_written_is_read(tmp_path):
    write(tmp_path / "last", {"x.safetensors": TENSORS}, ABOUT)
    about = read_about(tmp_path / "last", 1, "x.safetensors")
    assert {k: about[k] for k in ABOUT} == ABOUT
    for name, value in tensors_of(tmp_path / "last" / "x.safetensors").items():
        assert torch.equal(value, TENSORS[name])
    write(tmp_path / "last", {"y.safetensors": TENSORS}, {**ABOUT, "step": 3})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last"], "nothing is left beside it"
    assert read_about(tmp_path / "last", 1)["step"] == 3 and not (tmp_path / "last" / "x.safetensors").exists()


def test_a_writer_that_dies_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    write(tmp_path / "last", {"x.safetensors": TENSORS}, ABOUT)

    def dies(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "sha256_of", dies)
        with pytest.raises(OSError, match="disk full"):
            write(tmp_path / "last", {"x.safetensors": TENSORS}, {**ABOUT, "step": 3})
    assert found(tmp_path / "last") and read_about(tmp_path / "last", 1, "x.safetensors")["step"] == 2
    (tmp_path / "last").rename(tmp_path / "last.old")  # between the two renames
    assert found(tmp_path / "last") and read_about(tmp_path / "last", 1, "x.safetensors")["step"] == 2
    assert not found(tmp_path / "none")


def test_damage_is_told(tmp_path):
    folder = tmp_path / "last"
    write(folder, {"x.safetensors": TENSORS}, ABOUT)
    with pytest.raises(ValueError, match="format 1; this version reads 2"):
        read_about(folder, 2)
    with pytest.raises(ValueError, match=r"y\.safetensors is not there"):
        read_about(folder, 1, "y.safetensors")
    data = bytearray((folder / "x.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "x.safetensors").write_bytes(data)
    read_about(folder, 1)
    with pytest.raises(ValueError, match="damaged"):
        read_about(folder, 1, "x.safetensors")
    about = json.loads((folder / "about.json").read_text())
    (folder / "about.json").write_text(json.dumps({**about, "step": 7}))
    with pytest.raises(ValueError, match="its own sha256 is another"):
        read_about(folder, 1)


def test_what_differs_is_told():
    assert unlike(ABOUT, {"format": 1, "config": {"steps": 3, "size": "tiny"}}, "config") == ""
    assert unlike(ABOUT, {"config": {"steps": 4, "size": "tiny"}}, "config") == "config (steps 3 there, 4 here)"
    assert unlike(ABOUT, {"format": 2, "config": ABOUT["config"]}, "config") == "format"


def test_an_optimizer_goes_on_bit_for_bit():
    def one(seed):
        torch.manual_seed(seed)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)

    def step(layer, optimizer):
        optimizer.zero_grad()
        layer(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()

    layer, optimizer = one(0)
    step(layer, optimizer)
    other, again = one(1)
    other.load_state_dict(layer.state_dict())
    checkpoint.load_optimizer(again, {k: v.clone() for k, v in checkpoint.optimizer_tensors(optimizer).items()})
    step(layer, optimizer)
    step(other, again)
    assert torch.equal(layer.weight, other.weight) and torch.equal(layer.bias, other.bias)
