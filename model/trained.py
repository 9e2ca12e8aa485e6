"""What a run leaves: its network, read back from any of its checkpoints, and the one that is put to use.

OUT/last, OUT/best    checkpoints of the trainer: the newest one, and that of the lowest validation loss
OUT/model             the best one, calibrated where it starts from counts
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from skycairn.model import sharded
from skycairn.model.calibrate import calibrate
from skycairn.model.forms import form_named
from skycairn.model.loader import Loader
from skycairn.model.settings import Settings
from skycairn.model.strata import Source
from skycairn.model.transformer import Network
from skycairn.model.vocabulary import Vocabulary

MOST_CALIBRATED = 20_000
"""Objects of the validation sky that trust is found on, or all that there are."""


def load(folder: Path, device: str = "cpu") -> Network:
    """The network of a checkpoint, ready to be asked; ValueError where the folder holds none, or a damaged one."""
    about = sharded.read_about(folder)
    settings, vocabulary = Settings.from_json(about["settings"]), Vocabulary.from_json(about["modalities"])
    # what hangs on counts is in the checkpoint
    counts = [np.zeros((c.n_tokens, c.vocabulary), np.int64) for c in vocabulary.columns] if settings.counted else None
    form = form_named(settings.size, settings.dropout)
    network = Network(vocabulary, form, settings.smooth, counts, pairs=settings.pairs)
    sharded.read(folder, {f"network.{k}": v for k, v in network.state_dict().items()}, "network.")
    network.compute_in(torch.bfloat16 if settings.precision == "bf16" else torch.float32)
    return network.to(device).eval()


def finished(sources: Sequence[Source], out: Path, device: str = "cpu", validation: str = "validation") -> Network:
    """The network of the run in `out` that is put to use, which then lies in `out/model`.

    It is calibrated on the split `validation`, unless that is an empty name or the network starts from no counts.
    """
    chosen = next((out / name for name in ("best", "last") if sharded.there(out / name)), out / "last")
    network, about = load(chosen, device), sharded.read_about(chosen)
    settings = Settings.from_json(about["settings"])
    if network.starts is not None and validation:
        held = Loader(
            sources, validation, settings.masking, network.vocabulary, None, settings.seed, settings.objects, 1
        )
        n = min(MOST_CALIBRATED, sum(s.rows for s in held.order.strata))
        calibrate(network, (held.microbatch(i) for i in range(-(-n // settings.objects))))
    sharded.write(out / "model", {f"network.{k}": v for k, v in network.state_dict().items()}, about)
    return network
