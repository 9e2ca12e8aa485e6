"""Checkpoints of a training run: a folder of safetensors and JSON, written aside and put into place whole.

`about.json` has the SHA-256 of each file and its own, which are checked when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from skycairn.tokenizers.codec import read_json


def write(folder: Path, files: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Any]) -> None:
    """A checkpoint, whole or not at all; the one before it goes only when it is there.

    `files` are tensors by name, by the name of their safetensors file. No two of a file may share memory.
    """
    aside = folder.with_name(folder.name + ".new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for name, tensors in files.items():
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, aside / name)
    # safetensors notices no flipped bit by itself
    whole = {**about, "files": {path.name: sha256_of(path) for path in sorted(aside.iterdir())}}
    whole = json.loads(json.dumps(whole))
    whole["sha256"] = own_sha256(whole)
    (aside / "about.json").write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")
    for path in aside.iterdir():
        on_disk(path)
    into_place(aside, folder)


def on_disk(path: Path) -> None:
    """Wait until a file is."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def into_place(aside: Path, folder: Path) -> None:
    """Let the folder `aside` take the place of `folder`, whose old content goes only then."""
    gone = folder.with_name(folder.name + ".old")
    shutil.rmtree(gone, ignore_errors=True)
    if folder.exists():
        folder.rename(gone)
    aside.rename(folder)
    shutil.rmtree(gone, ignore_errors=True)


def found(folder: Path) -> bool:
    """Whether there is a checkpoint; one whose writer was stopped between two renames is put back into place."""
    old = folder.with_name(folder.name + ".old")
    if not (folder / "about.json").exists() and (old / "about.json").exists():
        old.rename(folder)
    return (folder / "about.json").exists()


def read_about(folder: Path, form: int, *files: str) -> dict[str, Any]:
    """What a checkpoint says of itself.

    ValueError where it is of another format than `form`, or where it, or one of `files`, is not what was written.
    """
    path = folder / "about.json"
    about = read_json(path)
    if about.get("format") != form:
        raise ValueError(f"{path}: format {about.get('format')!r}; this version reads {form}: train again")
    if about.get("sha256") != own_sha256(about):
        raise ValueError(f"{path}: is not what was written (its own sha256 is another); copy the checkpoint again")
    for name in files:
        listed = about["files"].get(name)
        if listed is None or not (folder / name).is_file():
            raise ValueError(f"{folder}: {name} is not there; copy the checkpoint again")
        if (is_now := sha256_of(folder / name)) != listed:
            raise ValueError(
                f"{folder / name}: its sha256 is {is_now[:12]}.., about.json says {listed[:12]}..; it is damaged: copy "
                "the checkpoint again"
            )
    return about


def unlike(about: Mapping[str, Any], run: Mapping[str, Any], *settings: str) -> str:
    """What of a run differs from what its checkpoint says, in words; empty where nothing does.

    `settings` names the entries whose own entries are told one by one.
    """
    plain = json.loads(json.dumps(run))
    names = [k for k in plain if about.get(k) != plain[k]]
    told = []
    for name in settings:
        own, mine = about.get(name) or {}, plain[name]
        told += [f"{k} {own.get(k)} there, {mine.get(k)} here" for k in {**mine, **own} if own.get(k) != mine.get(k)]
    return f"{', '.join(names)} ({'; '.join(told)})" if names and told else ", ".join(names)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer as tensors by name, its settings apart."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{k}": torch.as_tensor(v) for i, s in state.items() for k, v in s.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The reverse of `optimizer_tensors`; the settings stay."""
    state = optimizer.state_dict()
    for name, value in tensors.items():
        number, key = name.split(".", 1)
        state["state"].setdefault(int(number), {})[key] = value
    optimizer.load_state_dict(state)


def tensors_of(path: Path) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint."""
    loaded: dict[str, Tensor] = load_file(path)
    return loaded


def sha256_of(path: Path) -> str:
    """Of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def own_sha256(about: Mapping[str, Any]) -> str:
    """Of what a checkpoint says of itself, the digest itself apart."""
    plain = {k: v for k, v in about.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
