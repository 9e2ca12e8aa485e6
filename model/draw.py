"""Tokens drawn from logits by counted random numbers: a sample's are the same wherever, beside whatever it is drawn.

No generator has a state. A sample has a key, hashed from seed, object and number; what a number is for (a slot at a
step, say) is folded into it; the n numbers of a key are those of SplitMix64 started there, integers alone until the
last line, so that a CPU and a GPU have the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skycairn.model.attention import to_device

U64 = NDArray[np.uint64]
GOLDEN = 0x9E3779B97F4A7C15
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
AT_ONCE = 1 << 21
"""Logits worked on at once, which bounds the memory: each takes some 40 bytes while it is drawn from."""


def keys(seed: int, objects: Sequence[int | str], samples: range) -> U64:
    """(object x sample,): a key of each sample of each object, which hangs on these three alone."""
    digests = (hashlib.sha256(f"{seed}/{o}/{s}".encode()).digest()[:8] for o in objects for s in samples)
    return np.array([int.from_bytes(d, "little") for d in digests], np.uint64)


def fold(key: U64, number: int | NDArray[np.integer]) -> U64:
    """Another key for each number; both broadcast."""
    with np.errstate(over="ignore"):  # of single numbers numpy warns
        z = key + np.uint64(GOLDEN) * (np.asarray(number).astype(np.uint64) + np.uint64(1))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(FIRST)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(SECOND)
    found: U64 = z ^ (z >> np.uint64(31))
    return found


def uniforms(key: Tensor, n: int) -> Tensor:
    """(k, n), float64 in the open interval 0 to 1, of int64 keys (k,)."""
    count = torch.arange(1, n + 1, device=key.device) * _signed(GOLDEN)
    z = key[:, None] + count
    z = (z ^ _shifted(z, 30)) * _signed(FIRST)
    z = (z ^ _shifted(z, 27)) * _signed(SECOND)
    # 52 bits and a half: of one bit more the last number would round to 1
    return (_shifted(z ^ _shifted(z, 31), 12).double() + 0.5) * 2.0**-52


def uniforms_of(key: U64) -> NDArray[np.float64]:
    """One number of each key, whatever the shape: the first of `uniforms`."""
    return ((fold(key, 0) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def truncated(logits: Tensor, top_k: int | None, top_p: float) -> Tensor:
    """Logits (m, vocabulary), -inf where not among the `top_k` greatest (and those that equal the last of these), then
    where not in the smallest set of the most probable that holds `top_p` of what is left."""
    if top_k is not None and top_k < logits.shape[1]:
        least = logits.topk(top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if top_p < 1:
        ordered, place = logits.sort(dim=1, descending=True, stable=True)
        share = ordered.softmax(dim=1)
        gone = share.cumsum(dim=1) - share >= top_p
        gone[:, 0] = False
        logits = logits.masked_fill(torch.zeros_like(gone).scatter(1, place, gone), -math.inf)
    return logits


def drawn(
    logits: Tensor, key: U64, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """A token of each row of logits (m, vocabulary), and its log-probability by these logits as they are, both (m,).

    The greatest of logits / temperature + Gumbel noise, which is a draw from their softmax; `top_k` and `top_p` choose
    among the logits before the temperature does. Temperature 0 takes the greatest logit, the first of equal ones.
    ValueError where a row holds no number, an infinite one, or none above -inf.
    """
    tokens, told = np.empty(len(logits), np.int64), np.empty(len(logits), np.float64)
    seeds = to_device(key.view(np.int64), logits.device)
    each = max(1, AT_ONCE // max(1, logits.shape[1]))
    for i in range(0, len(logits), each):
        some = checked(logits[i : i + each]).double()
        if temperature == 0:
            found = some.argmax(dim=1)
        else:
            noise = -(-uniforms(seeds[i : i + each], some.shape[1]).log()).log()
            found = (truncated(some, top_k, top_p) / temperature + noise).argmax(dim=1)
        tokens[i : i + each] = found.cpu().numpy()
        told[i : i + each] = some.log_softmax(dim=1).gather(1, found[:, None])[:, 0].cpu().numpy()
    return tokens, told


def checked(logits: Tensor) -> Tensor:
    """The same; ValueError where a row has no softmax."""
    # the greatest of a row is NaN where any is
    if logits.numel() and not (greatest := logits.amax(dim=1)).isfinite().all():
        row = int((~greatest.isfinite()).nonzero()[0])
        raise ValueError(
            f"generate: logits are no distribution (the greatest of row {row} is {float(greatest[row])}); "
            "are its weights finite? In bf16, try fp32"
        )
    return logits


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


def _shifted(z: Tensor, by: int) -> Tensor:
    """To the right, zeros coming in."""
    return (z >> by) & ((1 << (64 - by)) - 1)
