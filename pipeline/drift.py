"""Whether locked codecs still suit what they encode: the tokens that a build made, held against those before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from skycairn.pile.receipt import Part
from skycairn.pile.store import Pile
from skycairn.pipeline.run import Built
from skycairn.tokenizers.lock import read_lock

MOST_PARTS = 64
"""Parts of tokens that are looked at on either side, those of the lowest content ids."""


@dataclass(frozen=True)
class Drift:
    """How the new tokens of a modality are spread over its codes, beside the earlier ones."""

    modality: str
    n_new: int
    "tokens that this build made"
    ends_before: float | None
    "share of tokens in the first and last code, where values out of range go; None where codes have no order"
    ends_now: float | None
    used_before: float
    "share of the codes that occur"
    used_now: float
    moved: float
    "share of tokens that would have to change their code for the two to be alike (total variation)"
    by_chance: float
    "what that share would be on average were there no drift, for this many tokens"

    @property
    def notable(self) -> bool:
        """Whether it is more than chance, and enough to think of a refit."""
        ends = (
            self.ends_now is not None and self.ends_before is not None and self.ends_now > 2 * self.ends_before + 0.02
        )
        return ends or self.moved > 2 * self.by_chance + 0.05


def of_build(pile_root: Path, built: Built) -> list[Drift]:
    """Drift of every modality that a build encoded with a codec which the pile had before."""
    if built.parent is None or not (built.done.get("encode") or built.done.get("encode payload")):
        return []
    pile = Pile.open(pile_root)
    before, now = pile.snapshot(built.parent), built.snapshot
    lock = pile_root / "codecs.lock"
    codecs = read_lock(lock) if lock.is_file() else {}
    out = []
    for name in sorted(n for n in {*before.tables} & {*now.tables} if n.startswith("tokens.")):
        modality = name.removeprefix("tokens.")
        ids = [s.stats.get("codecs", {}).get(modality) for s in (before, now)]
        if modality not in codecs or ids[0] != ids[1]:
            continue
        old = {e.part.content_id: e.part for e in before.entries(name)}
        new = {e.part.content_id: e.part for e in now.entries(name) if e.part.content_id not in old}
        codec = codecs[modality]
        a, b = (_histogram(pile, [p for _, p in sorted(x.items())], codec.vocabulary) for x in (old, new))
        if a.sum() and b.sum():
            out.append(_drift(modality, a, b, codec.ordered and codec.n_tokens == 1))
    return out


def _histogram(pile: Pile, parts: Sequence[Part], vocabulary: int) -> NDArray[np.int64]:
    out = np.zeros(vocabulary, np.int64)
    for part in parts[:MOST_PARTS]:
        tokens = pile.read_table(part, columns=["tokens"]).column("tokens")
        out += np.bincount(np.asarray(pc.list_flatten(tokens)), minlength=vocabulary)
    return out


def _drift(modality: str, before: NDArray[np.int64], now: NDArray[np.int64], ordered: bool) -> Drift:
    if ordered:
        # neighbouring codes stand for neighbouring values: judged in sixteenths of the earlier tokens
        share = np.cumsum(before) / before.sum()
        group = np.minimum((share * 16 - 1e-9).astype(int), 15)
        p, q = (np.bincount(group, weights=x, minlength=16) / x.sum() for x in (before, now))
    else:
        p, q = before / before.sum(), now / now.sum()
    spread = np.sqrt(2 / np.pi * p * (1 - p) * (1 / before.sum() + 1 / now.sum()))
    ends = [float((x[0] + x[-1]) / x.sum()) if ordered else None for x in (before, now)]
    used = [float((x > 0).mean()) for x in (before, now)]
    moved = float(np.abs(p - q).sum() / 2)
    return Drift(modality, int(now.sum()), ends[0], ends[1], used[0], used[1], moved, float(spread.sum() / 2))
