"""Which tokens a pile has: its modalities, the slot of each of their tokens, and where each vocabulary begins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from skycairn.pile.shards import ShardReader, TokenColumn
from skycairn.pile.store import Pile, Snapshot

BY_SKY = ("gaia.ra", "gaia.dec", "legacysurvey.ebv", *(f"hsc.a_{b}" for b in "grizy"))
"""Where on the sky a thing is, and the dust there: the split by sky makes them unpredictable, so nothing is claimed."""


@dataclass(frozen=True)
class Vocabulary:
    """Modalities in a fixed order. A *slot* is one token's place: modality and position, numbered through all."""

    columns: tuple[TokenColumn, ...]

    @classmethod
    def of(cls, pile: Pile, snapshot: Snapshot) -> Self:
        """That of a snapshot's shards; ValueError where two of them speak of unlike codecs, or there are none."""
        held: dict[str, TokenColumn] = {}
        for entry in snapshot.entries("shards"):
            with ShardReader(pile.path(entry.part)) as shard:
                for name, column in shard.columns.items():
                    if held.setdefault(name, column) != column:
                        raise ValueError(
                            f"snapshot {snapshot.number}: shards hold {name} by the codecs {held[name].codec_id} and "
                            f"{column.codec_id}; wanted one; build the pile again with one codecs.lock"
                        )
        if not held:
            raise ValueError(f"snapshot {snapshot.number} has no shards with tokens; build a pile first")
        return cls(tuple(held[name] for name in sorted(held)))

    def refuse_other_codecs(self, columns: Iterable[TokenColumn], where: str) -> None:
        """ValueError where one of these columns holds tokens of another codec than the modality has here."""
        own = {c.modality: c for c in self.columns}
        for column in columns:
            known = own.get(column.modality, column)
            if known != column:
                raise ValueError(
                    f"{where}: {column.modality} is there by the codec {column.codec_id} ({column.vocabulary} tokens), "
                    f"wanted {known.codec_id} ({known.vocabulary}); the same number means another value: build the "
                    "pile with the codecs of the other (--codecs-from), or train again"
                )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Modalities."""
        return tuple(c.modality for c in self.columns)

    @cached_property
    def first_slot(self) -> NDArray[np.int64]:
        """Where the slots of each modality begin, shape (modality + 1,)."""
        return np.concatenate([[0], np.cumsum([c.n_tokens for c in self.columns])])

    @cached_property
    def first_token(self) -> NDArray[np.int64]:
        """Where the numbers of each modality's tokens begin in the table of all, shape (modality + 1,)."""
        return np.concatenate([[0], np.cumsum([c.vocabulary for c in self.columns])])

    @cached_property
    def modality_of_slot(self) -> NDArray[np.int64]:
        """Number of the modality of each slot."""
        return np.repeat(np.arange(len(self.columns)), [c.n_tokens for c in self.columns])

    @property
    def n_slots(self) -> int:
        """Tokens of an object that has all modalities."""
        return int(self.first_slot[-1])

    @cached_property
    def survey(self) -> NDArray[np.int64]:
        """Number of the survey of each modality, by the first word of its name."""
        return np.unique([n.split(".")[0] for n in self.names], return_inverse=True)[1]

    @cached_property
    def twin(self) -> tuple[int, ...]:
        """Of each modality the first one of the same codec: the same token means the same value in both."""
        return tuple(next(k for k, c in enumerate(self.columns) if c.codec_id == own.codec_id) for own in self.columns)

    def indices(self, names: Sequence[str]) -> list[int]:
        """Numbers of these modalities, of those that are here."""
        return [self.names.index(n) for n in names if n in self.names]

    def as_json(self) -> list[dict[str, Any]]:
        """Plain values, as `from_json` takes them."""
        return [{**asdict(c), "shape": list(c.shape)} for c in self.columns]

    @classmethod
    def from_json(cls, value: Sequence[dict[str, Any]]) -> Self:
        """The reverse of `as_json`."""
        return cls(tuple(TokenColumn.from_json(v) for v in value))
