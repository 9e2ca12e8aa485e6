"""Checkpoints that stay when `last` goes on, and the network of any of them.

OUT/last           where the run goes on from
OUT/step-000500    what `last` was then: the same files, by hard links where the disk has them
OUT/best           weights alone, of the look at which the loss of the validation sky was least
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skycairn.model import sharded
from skycairn.model.forms import Form, form_named
from skycairn.model.settings import Settings
from skycairn.model.tables import Counts, Levels
from skycairn.model.transformer import Network
from skycairn.model.vocabulary import Vocabulary
from skycairn.tokenizers.checkpoint import into_place, on_disk

OF_A_RUN = ("best", "best.old", "model", "model.old")
WEIGHTS = "network."
"""What the names of weights begin with, beside those of what the optimizer keeps."""


def steps_kept(out: Path) -> list[Path]:
    """Folders of checkpoints that stayed, the oldest first."""
    found = [p for p in out.glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name)]
    return sorted(found, key=lambda p: int(p.name.partition("-")[2]))


def keep(out: Path, step: int, most: int) -> None:
    """Let `out/last`, which is of this step, stay; of those that stayed the newest `most` are left."""
    folder = out / f"step-{step:06}"
    aside = folder.with_name(folder.name + ".new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for path in (out / "last").iterdir():
        try:
            os.link(path, aside / path.name)
        except OSError:  # a disk without hard links
            shutil.copyfile(path, aside / path.name)
            on_disk(aside / path.name)
    into_place(aside, folder)
    for old in steps_kept(out)[:-most]:
        # half a folder must not be taken for a checkpoint
        (old / "about.json").unlink(missing_ok=True)
        shutil.rmtree(old)


def forget(out: Path) -> None:
    """Remove what another run left in `out` that would be taken for this one's: its best weights, and its scores."""
    for name in OF_A_RUN:
        if (out / name / "about.json").exists():  # no folder but a checkpoint's is touched
            shutil.rmtree(out / name)
    for name in ("evaluation.json", "evaluation.md", "loss.svg"):
        (out / name).unlink(missing_ok=True)


def weights_of(network: Network) -> dict[str, Tensor]:
    """By the names that they have in checkpoints."""
    return {f"{WEIGHTS}{name}": value for name, value in network.state_dict().items()}


def no_counts(vocabulary: Vocabulary) -> Counts:
    """As of tokens never seen: for a network whose tables a checkpoint will fill."""
    return [np.zeros((c.n_tokens, c.vocabulary), np.int64) for c in vocabulary.columns]


def shape_of(settings: Settings, levels: Levels, form: Form | None = None) -> dict[str, Any]:
    """Of a run's settings, what shapes the network, as plain values; of a form of its own where one is given."""
    return {
        "form": asdict(form or form_named(settings.size, settings.dropout)),
        "smooth": settings.smooth,
        "counted": settings.counted > 0,
        "pairs": settings.pairs,
        "levels": {name: list(n) for name, n in sorted(levels.items()) if settings.smooth and len(n) > 1},
    }


def built(shape: Mapping[str, Any], vocabulary: Vocabulary) -> Network:
    """A network of this shape whose weights are still to come; torch's own generators are left as they were."""
    counts = no_counts(vocabulary) if shape["counted"] else None
    with torch.random.fork_rng(devices=[]):
        form, levels = Form(**shape["form"]), shape.get("levels", {})
        return Network(vocabulary, form, shape["smooth"], counts, pairs=shape["pairs"], levels=levels)


def network_of(folder: Path, device: str = "cpu") -> Network:
    """The network of a checkpoint: `last`, `best` or one that stayed; ValueError where there is none, or it is damaged.

    Its `vocabulary` is that of the piles that it was trained on.
    """
    about: Mapping[str, Any] = sharded.read_about(folder)
    settings = Settings.from_json(about["settings"])
    if "network" not in about:
        raise ValueError(f"{folder}: an earlier version wrote it, and did not say what its network is; train anew")
    network = built(about["network"], Vocabulary.from_json(about["modalities"])).to(device)
    network.compute_in(torch.bfloat16 if settings.precision == "bf16" else torch.float32)
    sharded.read(folder, weights_of(network), WEIGHTS)
    return network.eval()
