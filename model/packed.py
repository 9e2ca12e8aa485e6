"""Tokens shown and asked for of a microbatch, on one axis, object after object: what masking makes and a network takes.

No object is padded to the length of another. What belongs to one is found by where it starts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Packed(NamedTuple):
    """A microbatch of n objects. Slots ascend within each object, so that its modalities lie side by side."""

    input_slot: NDArray[np.int32]
    "(shown,)"
    input_token: NDArray[np.int32]
    "(shown,), within the modality's own vocabulary"
    input_start: NDArray[np.int64]
    "(n + 1,): object i shows input_start[i] to input_start[i + 1]"
    target_slot: NDArray[np.int32]
    "(asked,)"
    target_token: NDArray[np.int32]
    "(asked,)"
    target_start: NDArray[np.int64]
    "(n + 1,)"

    @property
    def n_objects(self) -> int:
        """How many objects."""
        return len(self.input_start) - 1
