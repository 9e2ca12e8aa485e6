"""Which objects a run reads, by stratum (the surveys they have), and how often it will see each, before it starts.

The share of the samples that a stratum of a pile gets is closed:

    share = piles[pile] x strata[stratum] x matched (of two surveys or more) x rows ** power, over the sum of all
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skycairn.model.vocabulary import Vocabulary
from skycairn.pile.export import Export
from skycairn.pile.hdf5shards import Hdf5ShardReader, open_shard
from skycairn.pile.localcopy import LocalCopy
from skycairn.pile.receipt import Part
from skycairn.pile.shards import PRESENT, ShardReader, TokenColumn
from skycairn.pile.store import Pile, Snapshot

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

CYCLE = 1 << 16
"""Samples after which the strata of a lane come again; a share is a whole number of these."""


class Source(NamedTuple):
    """A pile, or an export of one, or a local copy of either, at one snapshot."""

    pile: Pile | Export | LocalCopy
    snapshot: Snapshot
    name: str = ""
    "by which weights and errors speak of it; the first 12 digits of its content id unless given"

    @property
    def content_id(self) -> str:
        """Of the pile's snapshot, whether it is read there or from an export of it."""
        whole = self.pile.pile if isinstance(self.pile, LocalCopy) else self.pile
        return whole.content_id if isinstance(whole, Export) else self.snapshot.content_id

    @property
    def split(self) -> dict[str, Any] | None:
        """How the sky of its recipe is split; None where that is not known."""
        found: dict[str, Any] | None = self.snapshot.recipe.get("split")
        return found


@dataclass(frozen=True, eq=False)
class Stratum:
    """Objects of one pile that have the same surveys, as row groups in a fixed order."""

    pile: str
    "name of its source"
    name: str
    "such as `gaia+hsc`"
    key: str
    "of what its random numbers hang on: the content of the pile's split, and its name"
    parts: tuple[Part, ...]
    source: Pile | Export | LocalCopy
    part: I64
    "(row group,): which of the parts"
    group: I64
    "(row group,): which row group of the part"
    size: I64
    "(row group,): objects with a token; the others, of which a pile of all valid sources has many, are no rows here"

    @cached_property
    def rows(self) -> int:
        """Objects."""
        return int(self.size.sum())


@dataclass(frozen=True)
class Weights:
    """What decides how often strata are drawn; what is not named weighs 1, and 0 leaves a stratum or a pile out."""

    strata: Mapping[str, float] = field(default_factory=dict)
    "by name, in all piles"
    piles: Mapping[str, float] = field(default_factory=dict)
    "by name of the source"
    matched: float = 1.0
    "of strata of two surveys or more"
    power: float = 1.0
    "of the number of rows: 1 draws all objects equally often, 0 all strata"

    def __post_init__(self) -> None:
        for what, given in (("strata", self.strata), ("piles", self.piles)):
            for name, weight in given.items():
                if not (_number(weight) and weight >= 0):
                    raise ValueError(f"weights: {what} {name!r} weighs {weight!r}; wanted a number of 0 or more")
        if not (_number(self.matched) and self.matched > 0 and _number(self.power) and 0 <= self.power <= 1):
            raise ValueError(
                f"weights: matched is {self.matched!r} and power {self.power!r}; wanted a number above 0, and one of "
                f"0 to 1"
            )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Weights:
        """From plain values, as of JSON or TOML; ValueError names a key that it does not know."""
        if unknown := sorted(set(value) - {"strata", "piles", "matched", "power"}):
            raise ValueError(f"weights: {', '.join(unknown)}: wanted strata, piles, matched or power")
        return cls(**value)

    def as_json(self) -> dict[str, Any]:
        """Plain values, as `from_json` takes them."""
        return {**asdict(self), "strata": dict(self.strata), "piles": dict(self.piles)}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def find(
    sources: Sequence[Source], split: str, vocabulary: Vocabulary | None = None
) -> tuple[tuple[Stratum, ...], Vocabulary]:
    """The strata of a split, and the vocabulary of its tokens; the statuses of all objects are read.

    Where a vocabulary is given (that of a checkpoint), it is held to, and modalities that it lacks are not read.
    ValueError where a source has no shard of the split, two have the same name, or two shards, of one pile or of two,
    hold a modality by unlike codecs: the same number would mean another value.
    """
    if not sources:
        raise ValueError("loader: no pile was given; give one or more, each with its snapshot")
    found: list[Stratum] = []
    columns: dict[str, TokenColumn] = {}
    named: set[str] = set()
    for pile, snapshot, given in sources:
        name = given or snapshot.content_id[:12]
        if name in named:
            raise ValueError(f"loader: two piles are named {name!r}; give each its own name (Source.name)")
        named.add(name)
        entries = [e for e in snapshot.entries("shards") if e.labels["split"] == split]
        if not entries:
            known = sorted({str(e.labels["split"]) for e in snapshot.entries("shards")})
            raise ValueError(f"pile {name}: it has no split {split!r}; it has {', '.join(known)}")
        content = hashlib.sha256("".join(f"{e.name} {e.part.content_id}\n" for e in entries).encode()).hexdigest()
        groups: dict[str, list[tuple[int, int, int]]] = {}
        for i, entry in enumerate(entries):
            with open_shard(pile.path(entry.part), entry.part.sha256) as shard:
                label = str(entry.labels.get("stratum", shard.stratum))
                held = vocabulary or Vocabulary(tuple(columns.values()))
                held.refuse_other_codecs(shard.columns.values(), f"pile {name}, {shard.path}")
                columns = {**shard.columns, **columns}
                names = [m for m in shard.columns if vocabulary is None or m in vocabulary.names]
                sizes = [int(with_token(shard, g, names).sum()) for g in range(len(shard.row_groups))]
                groups.setdefault(label, []).extend((i, g, n) for g, n in enumerate(sizes) if n)
        parts = tuple(e.part for e in entries)
        if vocabulary is not None and not any(groups.values()):
            raise ValueError(
                f"pile {name}: none of its objects in split {split!r} has a token of the vocabulary, which is that of "
                f"{', '.join(vocabulary.names)}; leave the pile out, or train with another vocabulary"
            )
        for label in sorted(groups):
            if groups[label]:
                part, group, size = np.array(groups[label], np.int64).T
                found.append(Stratum(name, label, f"{content}/{label}", parts, pile, part, group, size))
    if not found:
        raise ValueError(f"loader: split {split!r} has no object with a token; build a pile of more sky")
    return tuple(found), vocabulary or Vocabulary(tuple(columns[n] for n in sorted(columns)))


def with_token(shard: ShardReader | Hdf5ShardReader, group: int, modalities: Sequence[str]) -> NDArray[np.bool_]:
    """Which objects of a row group have one of these modalities, (objects,), by their statuses: 2 million a second."""
    out = np.zeros(shard.row_groups[group], bool)
    for column in shard.objects(group, [shard.columns[m].status for m in modalities]).columns:
        start = 0
        for chunk in column.chunks:
            words = chunk.dictionary.to_pylist()
            if PRESENT in words:
                out[start : start + len(chunk)] |= chunk.indices.to_numpy() == words.index(PRESENT)
            start += len(chunk)
    return out


def shares(strata: Sequence[Stratum], weights: Weights) -> F64:
    """Share of the samples that each stratum is to get, (stratum,), adding up to 1. ValueError for a name of none."""
    for what, given, known in (
        ("strata", weights.strata, {s.name for s in strata}),
        ("piles", weights.piles, {s.pile for s in strata}),
    ):
        if unknown := sorted(set(given) - known):
            raise ValueError(
                f"weights: {what} {', '.join(unknown)} are not there; there are {', '.join(sorted(known))}"
            )
    weight = np.array(
        [
            weights.piles.get(s.pile, 1.0)
            * weights.strata.get(s.name, 1.0)
            * (weights.matched if "+" in s.name else 1.0)
            * float(s.rows) ** weights.power
            for s in strata
        ]
    )
    if not (total := weight.sum()) > 0 or not math.isfinite(total):
        raise ValueError(f"weights: the weights of all strata add up to {total}; wanted a finite number above 0")
    return np.asarray(weight / total)


def whole_shares(share: F64) -> I64:
    """The shares as whole numbers that add up to `CYCLE`: largest remainder, 1 at least where the share is above 0."""
    there = share > 0
    if int(there.sum()) > CYCLE:
        raise ValueError(f"loader: {int(there.sum())} strata have a weight; wanted {CYCLE} or fewer: leave some out")
    ideal = share * (CYCLE / share.sum())
    count = np.where(there, np.maximum(1, np.floor(ideal)), 0).astype(np.int64)
    while (left := CYCLE - int(count.sum())) != 0:
        # too many only where some were lifted to 1: who has most beyond its due gives
        want = np.where(there, ideal - count, -np.inf) if left > 0 else np.where(count > 1, count - ideal, -np.inf)
        order = np.argsort(-want, kind="stable")[: min(abs(left), int(np.isfinite(want).sum()))]
        count[order] += 1 if left > 0 else -1
    return count


@dataclass(frozen=True)
class Line:
    """What a run will have made of one stratum."""

    pile: str
    stratum: str
    rows: int
    weight: float
    "share of the samples that was asked for"
    share: float
    "share that it gets: a whole number of 65,536ths"
    presentations: int
    "samples of it in the run, exactly"
    per_object: float
    "presentations of each object, in the mean: its epochs"
    epochs: int
    "whole passes over it"

    @classmethod
    def of(cls, stratum: Stratum, weight: float, share: float, presentations: int) -> Line:
        """With the rest worked out."""
        rows = stratum.rows
        each = presentations / rows
        return cls(stratum.pile, stratum.name, rows, weight, share, presentations, each, presentations // rows)


def as_text(lines: Sequence[Line]) -> str:
    """A Markdown table of the lines, and of their sum."""
    out = [
        "| pile | stratum | rows | weight | share of samples | presentations | per object | whole epochs |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for x in lines:
        out.append(
            f"| {x.pile} | {x.stratum} | {x.rows:,} | {x.weight:.4%} | {x.share:.4%} | {x.presentations:,} "
            f"| {x.per_object:.3g} | {x.epochs:,} |"
        )
    rows, presentations = sum(x.rows for x in lines), sum(x.presentations for x in lines)
    out.append(f"| all | | {rows:,} | 100% | 100% | {presentations:,} | {presentations / max(1, rows):.3g} | |")
    return "\n".join(out)
