"""The processes of a run: as torchrun starts them, and how they fail together.

with processes("auto") as device:
    train(sources, settings, out, device)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

TIMEOUT = timedelta(minutes=30)
"""The first step compiles, reads the first row groups and counts tokens, and processes are not equally quick at it."""
MOST_TOLD = 2000
"""Bytes of what a process that failed says to the others."""


class Place(NamedTuple):
    """A process among those of its run."""

    rank: int
    world: int
    local: int
    "among those of its machine: the number of its GPU"


def place_in(environment: Mapping[str, str]) -> Place | None:
    """As torchrun says it in RANK, WORLD_SIZE and LOCAL_RANK; None where it started nothing.

    ValueError where one of them is missing or is no number that can be.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    found = {name: environment[name] for name in names if name in environment}
    if not found:
        return None
    if len(found) < len(names) or not all(value.isdecimal() for value in found.values()):
        raise ValueError(f"processes: the environment says {found}; wanted whole {', '.join(names)}: start by torchrun")
    place = Place(*(int(found[name]) for name in names))
    if not place.rank < place.world:
        raise ValueError(f"processes: rank {place.rank} of {place.world}; ranks count from 0: start by torchrun")
    return place


@contextmanager
def processes(device: str = "auto", timeout: timedelta = TIMEOUT) -> Iterator[str]:
    """The group of all processes, and this one's device, while what is within runs; one alone is in no group.

    `auto` takes a GPU where there is one; `cuda` is the process's own. Tensors go by NCCL on GPUs, by gloo on CPUs.
    """
    place = place_in(os.environ)
    device = own_device(device, place)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    if place is None or place.world == 1:
        yield device
        return
    # what processes tell each other goes by gloo, which waits for no GPU; NCCL carries weights and gradients
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", timeout=timeout)
    failed = False
    try:
        yield device
    except Exception:
        # to take leave of the others may mean to wait for them; torchrun ends them when this one is gone
        failed = True
        raise
    finally:
        if not failed:
            dist.destroy_process_group()


def own_device(device: str, place: Place | None) -> str:
    """Which device a process works on; ValueError where that one is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not device.startswith("cuda"):
        return device
    if not torch.cuda.is_available():
        raise ValueError(f"device {device}: torch sees no GPU here; give cpu, or install with make TORCH=cuda")
    if device == "cuda":
        device = f"cuda:{place.local if place is not None else 0}"
    there = torch.cuda.device_count()
    if (torch.device(device).index or 0) >= there:
        raise ValueError(f"device {device}: there are {there} GPUs here, counted from 0; start as many processes")
    return device


def rank_and_world() -> tuple[int, int]:
    """Of the default group; 0 and 1 where there is none."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def summed(values: NDArray[Any]) -> NDArray[Any]:
    """The sum over all processes."""
    if rank_and_world()[1] == 1:
        return values
    found = torch.from_numpy(np.ascontiguousarray(values)).to(_talking())
    dist.all_reduce(found)
    return np.asarray(found.cpu().numpy())


def most(number: int) -> int:
    """The greatest of all processes'."""
    if rank_and_world()[1] == 1:
        return number
    found = torch.tensor(number, device=_talking())
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


@contextmanager
def together() -> Iterator[None]:
    """All processes get through what is within, or all raise: none waits for one that failed.

    Who failed raises its own error, the others RuntimeError with its message. All come here alike, and what is within
    must not itself wait for others.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    told = _failure_told(failure)
    if failure is not None:
        raise failure
    if told:
        raise RuntimeError(told)


def _failure_told(failure: Exception | None) -> str:
    """What the first process that failed says; empty where none did."""
    if not most(int(failure is not None)):
        return ""
    rank, world = rank_and_world()
    if world == 1:
        return str(failure)
    said = f"process {rank} failed: {type(failure).__name__}: {failure}" if failure is not None else ""
    text = np.zeros(MOST_TOLD, np.uint8)
    data = said.encode()[:MOST_TOLD]
    text[: len(data)] = np.frombuffer(data, np.uint8)
    # bytes, since objects would go as pickles
    own = torch.from_numpy(text).to(_talking())
    every = [torch.zeros_like(own) for _ in range(world)]
    dist.all_gather(every, own)
    words = [bytes(t.cpu().numpy()).rstrip(b"\0").decode(errors="ignore") for t in every]
    return next(w for w in words if w)


def _talking() -> torch.device:
    """Where tensors lie that processes talk by."""
    if "cpu:" in dist.get_backend_config():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
