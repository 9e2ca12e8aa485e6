"""How far a network's word counts in each modality, beside what its slots start from: 0 (not at all) to 1.2.

A few hundred objects leave some modalities overlearned; this is the one number a modality that mends most of it. It is
found on the validation sky, which is therefore not scored.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from skycairn.model.packed import Packed
from skycairn.model.transformer import Network

TRUSTS = tuple(i / 10 for i in range(13))


def calibrate(network: Network, microbatches: Iterable[Packed]) -> None:
    """Set the trust of each modality by what these microbatches hold; 0 where they never ask for it.

    ValueError where the network starts from no counts, and so has nothing to fall back on.
    """
    if network.starts is None:
        raise ValueError("calibrate: this network's logits start from no counts; train with `counted` above 0")
    network.eval()
    names = network.vocabulary.names
    losses: list[list[NDArray[np.float64]]] = [[] for _ in names]
    for packed in microbatches:
        batch = network.prepared(packed)
        kind = network.vocabulary.modality_of_slot[packed.target_slot]
        of = np.repeat(np.arange(packed.n_objects), np.diff(packed.target_start))
        answers = torch.split(batch.answer, batch.layout.counts.tolist())
        own = batch.layout.asked[batch.layout.by_modality]
        with torch.no_grad():
            for m, said, position in network.said(batch):
                start = network.starts.at(m, position)
                each = [F.cross_entropy(t * said + start, answers[m], reduction="none") for t in TRUSTS]
                losses[m].append(_means(torch.stack(each).double().cpu().numpy(), of[own[kind[own] == m]]))
    for m, found in enumerate(losses):
        network.starts.get_buffer("trust")[m] = TRUSTS[careful(np.concatenate(found, axis=1))] if found else 0.0


def _means(loss: NDArray[np.float64], of: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean over the tokens of each object, (trust, object)."""
    _, which, count = np.unique(of, return_inverse=True, return_counts=True)
    out = np.zeros((len(loss), len(count)))
    for row, values in zip(out, loss, strict=True):
        row[:] = np.bincount(which, values, len(count))
    return out / count


def careful(loss: NDArray[np.float64]) -> int:
    """The smallest trust that is as good as the best to half a standard error; `loss` (trust, object)."""
    if loss.shape[1] < 2:
        return 0
    best = loss[loss.mean(axis=1).argmin()]
    worse = loss - best
    error = worse.std(axis=1, ddof=1) / np.sqrt(loss.shape[1])
    return int(np.argmax(worse.mean(axis=1) <= 0.5 * error + 1e-12))
