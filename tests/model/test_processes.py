"""How a process finds its place; what several do together is tested with the trainer."""

import pytest
import torch

from skycairn.model.processes import Place, most, own_device, place_in, processes, rank_and_world, together


def test_the_place_is_as_torchrun_says() -> None:
    assert place_in({"HOME": "/"}) is None
    assert place_in({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Place(5, 8, 1)


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"RANK": "0"}, "wanted whole RANK, WORLD_SIZE, LOCAL_RANK: start by torchrun"),
        ({"RANK": "-1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "the environment says .*'-1'"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "rank 2 of 2"),
    ],
)
def test_a_place_that_cannot_be_is_told(environment: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        place_in(environment)


def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device("auto", Place(3, 4, 1)) == "cuda:1" and own_device("cuda:0", None) == "cuda:0"
    assert own_device("auto", None) == "cuda:0" and own_device("cpu", Place(3, 4, 1)) == "cpu"
    with pytest.raises(ValueError, match="device cuda:2: there are 2 GPUs here"):
        own_device("cuda", Place(2, 4, 2))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_device("auto", Place(0, 2, 0)) == "cpu"
    with pytest.raises(ValueError, match="torch sees no GPU here"):
        own_device("cuda", None)


def test_one_process_alone_is_in_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with processes("cpu") as device:
        assert device == "cpu" and rank_and_world() == (0, 1) and most(3) == 3
        with pytest.raises(OSError, match="no space left"), together():
            raise OSError("no space left")
