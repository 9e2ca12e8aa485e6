"""The folder in which a trained model is handed on: weights, codecs, card and licence, each file with its SHA-256.

    DIR/config.json          what the network is, what its modalities are, whence it comes, SHA-256 of all the rest
    DIR/model.safetensors    its weights
    DIR/codecs.lock          which codec each modality's tokens are of
    DIR/codecs/ID/           the codecs themselves
    DIR/README.md, LICENSE   for people

It is there whole or not at all, nothing in it is pickled, and it is read without a pile and without a network.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from skycairn.model import sharded
from skycairn.model.card import card
from skycairn.model.kept import built
from skycairn.model.measurements import Quantity, quantity_of
from skycairn.model.settings import Settings
from skycairn.model.transformer import Network
from skycairn.model.vocabulary import Vocabulary
from skycairn.tokenizers.checkpoint import into_place, on_disk, own_sha256, sha256_of
from skycairn.tokenizers.codec import Codec, read_json
from skycairn.tokenizers.lock import write_lock

FORMAT = 1
CONFIG, WEIGHTS, LOCK, CARD, LICENCE = "config.json", "model.safetensors", "codecs.lock", "README.md", "LICENSE"
CHECKPOINTS = ("model", "best", "last")
"""Of a run, the first that is there: the one that is put to use, that of the lowest validation loss, the newest."""
MIT = """MIT License

Copyright (c) 2026 The skycairn authors

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""
"""The project's own, which an installed package does not hold as a file; a test holds the two together."""


def export(
    run: Path,
    codecs: Mapping[str, Codec],
    out: Path,
    quantities: Mapping[str, Quantity] | None = None,
    licence: str = MIT,
) -> Path:
    """Write the best network of a training run into the folder `out`; gives the checkpoint that it was read from.

    `quantities` say what each modality measures in which unit; those that are not there are taken from AION-1's table.
    ValueError where the run has no checkpoint, a modality no codec or another one than it was trained with, or `out`
    holds anything but an earlier export, whose place the new one takes.
    """
    checkpoint = next((run / name for name in CHECKPOINTS if sharded.there(run / name)), None)
    if checkpoint is None:
        raise ValueError(f"{run}: holds no checkpoint ({', '.join(CHECKPOINTS)}); wanted the folder of a training run")
    about = sharded.read_about(checkpoint)
    vocabulary, settings = Vocabulary.from_json(about["modalities"]), Settings.from_json(about["settings"])
    own = _own_codecs(vocabulary, codecs)
    _refuse_others(out)
    given = quantities or {}
    held = {name: given.get(name) or quantity_of(c, own[name]) for name, c in _columns(vocabulary).items()}
    network, weights = about["network"], _weights(checkpoint, about)
    whole = built(network, vocabulary)
    whole.load_state_dict(weights)
    config: dict[str, Any] = {
        "format": FORMAT,
        "network": network,
        "vocabulary": vocabulary.as_json(),
        "modalities": {name: quantity.as_json() for name, quantity in held.items()},
        "provenance": {
            "size": settings.size,
            "step": about["step"],
            "snapshots": about["snapshots"],
            "splits": about.get("splits", []),
            "settings": about["settings"],
            "parameters": sum(p.numel() for p in whole.parameters()),
            "validation": _validation(run / "metrics.jsonl", about["step"]),
            "versions": {n: importlib.metadata.version(n) for n in ("skycairn", "torch", "numpy", "safetensors")},
        },
    }
    aside = out.with_name(out.name + ".new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(weights, aside / WEIGHTS, metadata={"format": "pt"})
    write_lock(aside / LOCK, own)
    scores = run / "evaluation.md"
    (aside / CARD).write_text(card(config, own, scores.read_text() if scores.is_file() else ""))
    (aside / LICENCE).write_text(licence)
    files = sorted(p for p in aside.rglob("*") if p.is_file())
    config["files"] = {p.relative_to(aside).as_posix(): sha256_of(p) for p in files}
    config = json.loads(json.dumps(config))
    text = json.dumps({**config, "sha256": own_sha256(config)}, indent=1, sort_keys=True) + "\n"
    (aside / CONFIG).write_text(text)
    for path in (*files, aside / CONFIG):
        on_disk(path)
    into_place(aside, out)
    return checkpoint


def read_config(folder: Path) -> dict[str, Any]:
    """What an export says of itself; ValueError names a file of it that is missing, or not what was written."""
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder}: holds no {CONFIG}; wanted a folder that `skycairn-train export` wrote")
    config = read_json(path)
    if config.get("format") != FORMAT:
        raise ValueError(f"{path}: format {config.get('format')!r}; this version reads {FORMAT}: export again")
    if config.get("sha256") != own_sha256(config):
        raise ValueError(f"{path}: is not what was written (its own sha256 is another); copy the model again")
    for name, sha256 in config["files"].items():
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts:
            raise ValueError(f"{path}: names {name!r}, which leads out of its own folder")
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name}: is not there; copy the model again")
        if (is_now := sha256_of(folder / name)) != sha256:
            raise ValueError(
                f"{folder / name}: its sha256 is {is_now[:12]}.., {CONFIG} says {sha256[:12]}..; it is damaged or "
                "changed: copy the model again"
            )
    return config


def read_network(folder: Path, config: Mapping[str, Any]) -> Network:
    """The network of an export whose configuration was read; ValueError where its weights do not fit that."""
    network = built(config["network"], Vocabulary.from_json(config["vocabulary"]))
    try:
        weights: dict[str, Tensor] = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS}: is no whole safetensors file ({error}); copy the model again") from error
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{folder / WEIGHTS}: its weights are not of {CONFIG}'s network ({error})") from error
    return network.eval()


def _columns(vocabulary: Vocabulary) -> dict[str, Any]:
    return {c.modality: c for c in vocabulary.columns}


def _own_codecs(vocabulary: Vocabulary, codecs: Mapping[str, Codec]) -> dict[str, Codec]:
    """Of these codecs those of the vocabulary."""
    if missing := [name for name in vocabulary.names if name not in codecs]:
        raise ValueError(
            f"export: no codec of {', '.join(missing)}; a model is worth nothing without its codecs: give those of the "
            "pile that it was trained on"
        )
    for column in vocabulary.columns:
        found = codecs[column.modality]
        if found.content_id != column.codec_id:
            raise ValueError(
                f"export: the codec of {column.modality} is {found.content_id[:12]}.., the model was trained with "
                f"{column.codec_id[:12]}..; give the codecs of the snapshot that it was trained on"
            )
    return {name: codecs[name] for name in vocabulary.names}


def _weights(checkpoint: Path, about: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's tensors of a checkpoint, however many processes wrote it."""
    into = {
        key: torch.zeros(shape, dtype=getattr(torch, kind.removeprefix("torch.")))
        for key, (shape, kind) in about["tensors"].items()
    }
    sharded.read(checkpoint, into)
    prefix = "network."
    return {key.removeprefix(prefix): value for key, value in into.items() if key.startswith(prefix)}


def _refuse_others(out: Path) -> None:
    """ValueError where an export's place is taken by what is none."""
    if out.is_dir() and any(out.iterdir()):
        try:
            ours = "vocabulary" in read_json(out / CONFIG, "format", "files")
        except (ValueError, OSError):
            ours = False
        if not ours:
            raise ValueError(f"{out}: holds what is no exported model; give an empty folder, or one to be made")
    elif out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file; give an empty folder, or one to be made")


def _validation(metrics: Path, step: int) -> dict[str, Any] | None:
    """The run's last look at the validation sky that is not after this step."""
    if not metrics.is_file():
        return None
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    looks = [line for line in lines if "validation" in line and line["step"] <= step]
    return {"step": looks[-1]["step"], **looks[-1]["validation"]} if looks else None
