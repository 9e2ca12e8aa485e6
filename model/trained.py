"""The network of a run that is put to use.

OUT/last, OUT/best    checkpoints of the trainer: the newest one, and that of the lowest validation loss
OUT/model             the best one, calibrated where it starts from counts
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from skycairn.model import sharded
from skycairn.model.calibrate import calibrate
from skycairn.model.kept import network_of, weights_of
from skycairn.model.loader import Loader
from skycairn.model.settings import Settings
from skycairn.model.strata import Source
from skycairn.model.transformer import Network

AT_ONCE = 64
"""Objects of a pass."""
MOST_CALIBRATED = 20_000
"""Objects of the validation sky that trust is found on, or all that there are."""


def finished(sources: Sequence[Source], out: Path, device: str = "cpu", validation: str = "validation") -> Network:
    """The network of the run in `out` that is put to use, which then lies in `out/model`.

    It is calibrated on the split `validation`, unless that is an empty name or the network starts from no counts.
    """
    chosen = next((out / name for name in ("best", "last") if sharded.there(out / name)), out / "last")
    network, about = network_of(chosen, device), sharded.read_about(chosen)
    settings = Settings.from_json(about["settings"])
    if network.starts is not None and validation:
        held = Loader(
            sources, validation, settings.masking, network.vocabulary, None, settings.seed, settings.objects, 1
        )
        rows, rng = held.whole(MOST_CALIBRATED), np.random.default_rng(settings.seed)
        pieces = (np.arange(i, min(i + AT_ONCE, len(rows.length))) for i in range(0, len(rows.length), AT_ONCE))
        calibrate(network, (held.masker.draw(*rows.take(piece), rng) for piece in pieces))
    sharded.write(out / "model", weights_of(network), about)
    return network
