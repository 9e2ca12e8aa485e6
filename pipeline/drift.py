"""Whether locked codecs still suit what they encode: the tokens that a build made, held against those before it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skycairn.pile.receipt import Part
from skycairn.pile.store import Pile
from skycairn.pipeline.reuse import row_of, same_rows
from skycairn.pipeline.run import Built
from skycairn.pipeline.task import int64
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
        old = {e.name: e.part for e in before.entries(name)}
        new = {e.name: e.part for e in now.entries(name)}
        new = {n: p for n, p in new.items() if n not in old or old[n].content_id != p.content_id}
        codec = codecs[modality]
        a = _histogram([pile.read_table(p) for p in _some(old.values())], codec.vocabulary)
        parts = {p.content_id: n for n, p in new.items()}
        fresh = [_fresh(pile, p, old.get(parts[p.content_id])) for p in _some(new.values())]
        b = _histogram(fresh, codec.vocabulary)
        if a.sum() and b.sum():
            out.append(_drift(modality, a, b, codec.ordered and codec.n_tokens == 1))
    return out


def _some(parts: Iterable[Part]) -> list[Part]:
    return sorted(parts, key=lambda p: p.content_id)[:MOST_PARTS]


def _fresh(pile: Pile, part: Part, earlier: Part | None) -> pa.Table:
    """The rows of a part that stand not just so in the one before it."""
    now = pile.read_table(part)
    if earlier is None:
        return now
    before = pile.read_table(earlier)
    names = [(np.asarray(t.column("owner")).astype(object), int64(t, "key")) for t in (now, before)]
    return now.filter(pa.array(~same_rows(now, before, row_of(*names[0], *names[1]))))


def _histogram(tables: Iterable[pa.Table], vocabulary: int) -> NDArray[np.int64]:
    out = np.zeros(vocabulary, np.int64)
    for table in tables:
        out += np.bincount(np.asarray(pc.list_flatten(table.column("tokens"))), minlength=vocabulary)
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
