"""Checkpoints written by one number of processes and read by another."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from skycairn.model import sharded

RANK = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from skycairn.model import sharded
rank, world, store, folder, what = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), sys.argv[5]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
mesh = init_device_mesh("cpu", (world,))
full = {"a": torch.arange(35.0).view(7, 5), "one": torch.full((1, 3), 4.0), "b": torch.arange(4, dtype=torch.int64)}
dealt = {k: distribute_tensor(v if what == "write" else torch.zeros_like(v), mesh, [Shard(0)]) for k, v in full.items()}
alike = torch.full((2, 2), 7.0) if what == "write" else torch.zeros(2, 2)
dealt["alike"] = distribute_tensor(alike, mesh, [Replicate()])
dealt["step"] = torch.tensor(9.0 if what == "write" else 0.0)
if what == "write":
    sharded.write(folder, dealt, {"step": 3})
else:
    about = sharded.read(folder, dealt)
    assert about["step"] == 3
    for name, value in {**full, "alike": torch.full((2, 2), 7.0)}.items():
        assert torch.equal(dealt[name].full_tensor(), value), name
    assert float(dealt["step"]) == 9.0
dist.destroy_process_group()
"""


def tensors() -> dict[str, torch.Tensor]:
    return {
        "a": torch.zeros(7, 5),
        "one": torch.zeros(1, 3),
        "b": torch.zeros(4, dtype=torch.int64),
        "alike": torch.zeros(2, 2),
        "step": torch.tensor(0.0),
    }


def together(tmp_path: Path, world: int, folder: Path, what: str) -> None:
    store = tmp_path / f"store-{what}-{world}"
    running = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(world), str(store), str(folder), what])
        for rank in range(world)
    ]
    assert [r.wait(100) for r in running] == [0] * world


def test_what_three_processes_wrote_one_and_two_read(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    together(tmp_path, 3, folder, "write")
    assert sorted(p.name for p in folder.iterdir()) == [
        "about.json",
        *(f"rank-{k:05}-of-00003.safetensors" for k in range(3)),
    ]
    into = tensors()
    assert sharded.read(folder, into)["step"] == 3
    assert into["a"].equal(torch.arange(35.0).view(7, 5)) and into["one"].eq(4).all()
    assert into["b"].tolist() == [0, 1, 2, 3] and into["alike"].eq(7).all() and float(into["step"]) == 9
    together(tmp_path, 2, folder, "read")


def test_one_process_alone_and_the_checkpoint_before_it(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    for step in (1, 2):
        sharded.write(folder, {"a": torch.full((3, 2), float(step)), "s": torch.tensor(step)}, {"step": step})
    into = {"a": torch.zeros(3, 2), "s": torch.tensor(0)}
    assert sharded.read(folder, into)["step"] == 2
    assert into["a"].eq(2).all() and int(into["s"]) == 2
    # a writer that was stopped between its two renames
    folder.rename(tmp_path / "last.old")
    assert sharded.there(folder)
    assert sharded.read_about(folder)["step"] == 2


def test_weights_that_share_memory_and_views_are_written_whole(tmp_path: Path) -> None:
    a = torch.arange(6.0).view(2, 3)
    sharded.write(tmp_path / "c", {"a": a, "same": a, "turned": a.T}, {})
    into = {"a": torch.zeros(2, 3), "same": torch.zeros(2, 3), "turned": torch.zeros(3, 2)}
    sharded.read(tmp_path / "c", into)
    assert into["a"].equal(a) and into["same"].equal(a) and into["turned"].equal(a.T)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"a": torch.zeros(3, 3)}, "a is torch.float32 .3, 2., wanted torch.float32 .3, 3."),
        ({"a": torch.zeros(3, 2, dtype=torch.int64)}, "a is torch.float32 .3, 2., wanted torch.int64"),
        ({"more": torch.zeros(1)}, "more is not in the checkpoint"),
    ],
)
def test_another_model_is_refused(tmp_path: Path, change: dict[str, torch.Tensor], told: str) -> None:
    sharded.write(tmp_path / "c", {"a": torch.ones(3, 2)}, {})
    with pytest.raises(ValueError, match=told):
        sharded.read(tmp_path / "c", {"a": torch.zeros(3, 2)} | change)
    with pytest.raises(ValueError, match="a is in the checkpoint, and nowhere here"):
        sharded.read(tmp_path / "c", {})


def test_damage_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    sharded.write(folder, {"a": torch.ones(3, 2)}, {"step": 1})
    file = folder / "rank-00000-of-00001.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"rank-00000-of-00001.safetensors: is not what was written"):
        sharded.read(folder, {"a": torch.zeros(3, 2)})
    file.unlink()
    with pytest.raises(ValueError, match="or is gone"):
        sharded.read(folder, {"a": torch.zeros(3, 2)})
    file.write_bytes(whole)
    about = json.loads((folder / "about.json").read_text())
    (folder / "about.json").write_text(json.dumps({**about, "step": 2}))
    with pytest.raises(ValueError, match="its own sha256 is another"):
        sharded.read(folder, {"a": torch.zeros(3, 2)})
    with pytest.raises(ValueError, match=r"holds no about.json"):
        sharded.read(tmp_path / "nothing", {})
