"""Checkpoints that several processes write together: each its own part of every tensor, as safetensors and JSON.

    FOLDER/about.json                    what the run says of itself, which file holds which rows, their SHA-256
    FOLDER/rank-00002-of-00004.safetensors

Tensors are split along their first axis as FSDP2 splits them, or whole. Any number of processes reads what any other
number wrote: each reads the rows that it needs. A folder is there whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from skycairn.model.processes import most, rank_and_world, together
from skycairn.tokenizers import checkpoint
from skycairn.tokenizers.checkpoint import into_place, on_disk, own_sha256, sha256_of
from skycairn.tokenizers.codec import read_json

FORMAT = 1


class Rows(NamedTuple):
    """What one process holds of a tensor."""

    values: Tensor
    first: int
    "row of the whole tensor that `values` begins with"
    shape: tuple[int, ...]
    "of the whole tensor"


def rows_of(tensor: Tensor) -> Rows:
    """What this process holds of a tensor, sharded along its first axis or whole; shares its memory.

    ValueError for a tensor that is dealt out in another way.
    """
    shape = tuple(tensor.shape)
    if not isinstance(tensor, DTensor):
        return Rows(tensor.detach(), 0, shape)
    local = tensor.to_local().detach()
    placements, mesh = tensor.placements, tensor.device_mesh
    if all(isinstance(p, Replicate) for p in placements):
        return Rows(local, 0, shape)
    if len(placements) != 1 or placements[0] != Shard(0):
        raise ValueError(
            f"checkpoint: a tensor of shape {shape} is dealt out as {placements}; wanted whole ones or one axis of "
            "processes that split the first axis"
        )
    # FSDP2 deals rows out as torch.chunk does: equal pieces, the last ones short or empty
    each = -(-shape[0] // mesh.size())
    return Rows(local, min(mesh.get_local_rank() * each, shape[0]), shape)


def write(folder: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a checkpoint, all processes of the default group together; `about` is the first one's.

    What was in `folder` goes only when all of the new one is on disk. Where one process fails, all raise.
    """
    rank, world = rank_and_world()
    aside = folder.with_name(folder.name + ".new")
    with together():
        if rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
    with together():
        name = f"rank-{rank:05}-of-{world:05}.safetensors"
        held, chunks = {}, {}
        for key, tensor in tensors.items():
            own = rows_of(tensor)
            # what all hold alike is written once
            if own.values.numel() and (rank == 0 or tuple(own.values.shape) != own.shape):
                held[key] = own.values.cpu().contiguous().clone()
                chunks[key] = [own.first, own.first + own.values.shape[0]] if own.shape else []
        save_file(held, aside / name)
        told = {"sha256": sha256_of(aside / name), "rows": chunks}
        (aside / f"{name}.json").write_text(json.dumps(told))
        on_disk(aside / name)
    with together():
        if rank == 0:
            shapes = {k: [list(t.shape), str(t.dtype)] for k, t in tensors.items()}
            _finish(aside, world, {**about, "format": FORMAT, "tensors": shapes})
            into_place(aside, folder)


def _finish(aside: Path, world: int, about: Mapping[str, Any]) -> None:
    parts = sorted(aside.glob("*.safetensors"))
    if len(parts) != world:
        raise ValueError(f"{aside}: {len(parts)} of {world} processes wrote; is the folder on a disk that all share?")
    files = {p.name: json.loads((aside / f"{p.name}.json").read_text()) for p in parts}
    whole = json.loads(json.dumps({**about, "files": files}))
    text = json.dumps({**whole, "sha256": own_sha256(whole)}, indent=1, sort_keys=True) + "\n"
    for p in parts:
        (aside / f"{p.name}.json").unlink()
    (aside / "about.json").write_text(text)
    on_disk(aside / "about.json")


def read_about(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; ValueError where it is none, of another format, or not what was written."""
    if not there(folder):
        raise ValueError(f"{folder}: holds no about.json; wanted a folder that a run wrote its checkpoint to")
    path = folder / "about.json"
    about: dict[str, Any] = read_json(path)
    if about.get("format") != FORMAT:
        raise ValueError(f"{path}: format {about.get('format')!r}; this version reads {FORMAT}: train again")
    if about.get("sha256") != own_sha256(about):
        raise ValueError(f"{path}: is not what was written (its own sha256 is another); copy the checkpoint again")
    return about


def there(folder: Path) -> bool:
    """Whether there is a checkpoint; the first process puts one back into place whose writer was stopped meanwhile."""
    with together():
        if rank_and_world()[0] == 0:
            checkpoint.found(folder)
        found = (folder / "about.json").exists()
    return bool(most(int(found)))


def read(folder: Path, into: Mapping[str, Tensor], part: str = "") -> dict[str, Any]:
    """Fill tensors, all of the checkpoint's and no others, with what was written; gives what it says of itself.

    `part`: of those alone whose names begin so. All processes read together, each the rows that it holds. ValueError
    names what is missing, left over, of another shape, damaged; where it does for one process, all raise.
    """
    with together():
        return _read(folder, into, part)


def _read(folder: Path, into: Mapping[str, Tensor], part: str) -> dict[str, Any]:
    about = read_about(folder)
    shapes = {key: value for key, value in about["tensors"].items() if key.startswith(part)}
    for key in sorted(shapes.keys() | into.keys()):
        if key not in shapes or key not in into:
            where = "in the checkpoint, and nowhere here" if key in shapes else "not in the checkpoint"
            raise ValueError(f"{folder}: {key} is {where}; is it of another model, or another version?")
        found, wanted = shapes[key], [list(into[key].shape), str(into[key].dtype)]
        if found != wanted:
            raise ValueError(
                f"{folder}: {key} is {found[1]} {found[0]}, wanted {wanted[1]} {wanted[0]}; is it of another "
                "vocabulary or another size?"
            )
    left = {key: rows_of(tensor) for key, tensor in into.items()}
    filled = dict.fromkeys(left, 0)
    for name, told in sorted(about["files"].items()):
        held = {k: chunk for k, chunk in told["rows"].items() if k in left}
        wants = {k: rows for k, chunk in held.items() if (rows := _common(left[k], chunk))}
        if not wants:
            continue
        if not (folder / name).is_file() or sha256_of(folder / name) != told["sha256"]:
            raise ValueError(f"{folder / name}: is not what was written, or is gone; copy the checkpoint again")
        with safe_open(folder / name, framework="pt") as file:
            for key, (first, last) in wants.items():
                own, start = left[key], (told["rows"][key] or [0])[0]
                with torch.no_grad():
                    if own.shape:
                        values = file.get_slice(key)[first - start : last - start]
                        own.values[first - own.first : last - own.first].copy_(values)
                        filled[key] += last - first
                    else:
                        own.values.copy_(file.get_tensor(key))
                        filled[key] += 1
    for key, own in left.items():
        if filled[key] != (own.values.shape[0] if own.shape else 1):
            raise ValueError(f"{folder}: rows of {key} are in none of its files; copy the checkpoint again")
    return about


def _common(own: Rows, chunk: Sequence[int]) -> tuple[int, int] | None:
    """First row and end of what both hold."""
    if not own.shape:
        return 0, 1
    first, last = max(own.first, chunk[0]), min(own.first + own.values.shape[0], chunk[1])
    return (first, last) if first < last else None
