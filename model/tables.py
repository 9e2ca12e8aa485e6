"""Tables of a transformer, each a small module that another may take the place of: tokens, slots, heads, starts.

A *row* is a token's place in the one table of all vocabularies; modalities of one codec share their rows, as the same
token means the same value in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from skycairn.model.layout import Ints
from skycairn.model.smooth import cosines, parts, starting_logits, together
from skycairn.model.vocabulary import Vocabulary

Counts = Sequence[NDArray[np.int64]]
Levels = Mapping[str, Sequence[int]]


def first_rows(vocabulary: Vocabulary) -> Ints:
    """Row of each modality's token 0, (modality + 1,), the last the number of rows.

    `Vocabulary.first_token`, where no two modalities are of one codec.
    """
    out, n = np.zeros(len(vocabulary.columns) + 1, np.int64), 0
    for m, twin in enumerate(vocabulary.twin):
        out[m] = n if twin == m else out[twin]
        n += vocabulary.columns[m].vocabulary if twin == m else 0
    out[-1] = n
    return out


class TokenTable(nn.Module):
    """A vector for each token of each codec: embeddings, or the rows of heads.

    Where `smooth`, ordered codecs start smooth in value (`model/smooth.py`): low cosines of a token's place in
    its vocabulary times a matrix, plus free rows that start at 0. So do codecs whose tokens are made of several
    numbers, in each of these, where `levels` (of modalities by name, as of `Codec.levels`) says what they are.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        width: int,
        scale: float,
        smooth: bool = False,
        counts: Counts | None = None,
        levels: Levels = MappingProxyType({}),
    ) -> None:
        """`scale` is the standard deviation at the start; `counts`, as of `slot_counts`, place the cosines finer."""
        super().__init__()
        first, own = first_rows(vocabulary), [m for m, twin in enumerate(vocabulary.twin) if twin == m]
        sizes = [vocabulary.columns[m].vocabulary for m in own]
        self.pieces = [own.index(twin) for twin in vocabulary.twin]
        "of each modality, which of the sizes it has"
        self.sizes = sizes
        self.weight = nn.Parameter(scale * torch.randn(int(first[-1]), width))
        ordered = [m for m in own if vocabulary.columns[m].ordered] if smooth else []
        self.waves = None
        if ordered:
            found = [
                torch.from_numpy(
                    cosines(vocabulary.columns[m].vocabulary, together(counts, vocabulary.twin, m) if counts else None)
                )
                for m in ordered
            ]
            terms = max(w.shape[1] for w in found)
            waves, block = torch.zeros(int(first[-1]), terms), torch.zeros(int(first[-1]), dtype=torch.long)
            for i, (m, wave) in enumerate(zip(ordered, found, strict=True)):
                rows = slice(int(first[m]), int(first[m]) + len(wave))
                waves[rows, : wave.shape[1]], block[rows] = wave, i
                self.weight.data[rows] = 0
            self.waves = nn.Parameter(scale * torch.randn(len(ordered), terms, width))
            self.register_buffer("cosines", waves)
            self.register_buffer("block", block, persistent=False)
        self.ordered = {m: i for i, m in enumerate(ordered)}
        made = [m for m in own if len(levels.get(vocabulary.names[m], ())) > 1] if smooth else []
        self.made = {m: slice(int(first[m]), int(first[m]) + vocabulary.columns[m].vocabulary) for m in made}
        self.parts = nn.ParameterList()
        for m, rows in self.made.items():
            wave = torch.from_numpy(parts(levels[vocabulary.names[m]], vocabulary.columns[m].vocabulary))
            self.weight.data[rows] = 0
            self.parts.append(nn.Parameter(scale * torch.randn(wave.shape[1], width)))
            self.register_buffer(f"parts{m}", wave, persistent=False)

    def forward(self, row: Tensor) -> Tensor:
        """The vectors of rows (token,), (token, width)."""
        free = F.embedding(row, self.weight)
        for (m, rows), matrix in zip(self.made.items(), self.parts, strict=True):
            here = torch.nonzero((row >= rows.start) & (row < rows.stop))[:, 0]
            free = free.index_add(0, here, self.get_buffer(f"parts{m}")[row[here] - rows.start] @ matrix)
        if self.waves is None:
            return free
        n, terms, width = self.waves.shape
        wave = self.get_buffer("cosines")[row]
        at = self.get_buffer("block")[row, None] * terms + torch.arange(terms, device=row.device)
        spread = wave.new_zeros(len(row), n * terms).scatter(1, at, wave)
        return free + spread @ self.waves.view(-1, width)

    def tables(self) -> list[Tensor]:
        """The vectors of each modality, (vocabulary, width)."""
        # split once: each slice's gradient would be a whole table
        pieces = list(torch.split(self.weight, self.sizes))
        if self.waves is not None:
            of = torch.split(self.get_buffer("cosines"), self.sizes)
            for m, i in self.ordered.items():
                piece = self.pieces[m]
                pieces[piece] = pieces[piece] + of[piece] @ self.waves[i]
        for m, matrix in zip(self.made, self.parts, strict=True):
            pieces[self.pieces[m]] = pieces[self.pieces[m]] + self.get_buffer(f"parts{m}") @ matrix
        return [pieces[piece] for piece in self.pieces]


def places(vocabulary: Vocabulary, width: int) -> NDArray[np.float32]:
    """Sines and cosines of each slot's place, (slot, width): rows and columns of a grid, else along a line."""
    out = np.zeros((vocabulary.n_slots, width), np.float32)
    frequency = 10_000.0 ** -(np.arange(width // 4) / (width // 4))
    for m, column in enumerate(vocabulary.columns):
        number = np.arange(column.n_tokens)
        y, x = np.divmod(number, column.shape[1]) if column.layout == "grid" else (np.zeros_like(number), number)
        waves = [f(a[:, None] * frequency) for a in (x, y) for f in (np.sin, np.cos)]
        if column.layout != "scalar":
            out[vocabulary.first_slot[m] : vocabulary.first_slot[m + 1], : 4 * (width // 4)] = np.concatenate(waves, 1)
    return out


class SlotTable(nn.Module):
    """A vector for each slot: sines and cosines of its place, its modality's vector, and, if wanted, one of its own."""

    def __init__(self, vocabulary: Vocabulary, width: int, learned: bool = True) -> None:
        super().__init__()
        self.modality = nn.Parameter(0.1 * torch.randn(len(vocabulary.columns), width))
        self.slot = nn.Parameter(torch.zeros(vocabulary.n_slots, width)) if learned else None
        self.register_buffer("place", 0.1 * torch.from_numpy(places(vocabulary, width)))

    def forward(self, slot: Tensor, kind: Tensor) -> Tensor:
        """(token, width) of slots and their modalities, both (token,)."""
        out = self.get_buffer("place").index_select(0, slot) + F.embedding(kind, self.modality)
        return out if self.slot is None else out + F.embedding(slot, self.slot)


class Starts(nn.Module):
    """Logits that each slot starts from: how often its tokens stand there in training.

    What a network adds to them counts as far as `trust` says, 1 until it is calibrated (`model/calibrate.py`).
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.register_buffer("trust", torch.ones(len(vocabulary.columns)))
        for m, column in enumerate(vocabulary.columns):
            self.register_buffer(f"start{m}", torch.zeros(column.n_tokens, column.vocabulary))

    def start_from(self, counts: Counts) -> None:
        """Let them be those of these `slot_counts`."""
        for m, column in enumerate(self.vocabulary.columns):
            pooled = together(counts, self.vocabulary.twin, m)
            found = starting_logits(counts[m], column.ordered, pooled)
            self.get_buffer(f"start{m}").copy_(torch.from_numpy(found))

    def at(self, m: int, position: Tensor) -> Tensor:
        """(asked, vocabulary) of positions in modality m."""
        return self.get_buffer(f"start{m}").index_select(0, position)

    def forward(self, m: int, position: Tensor, said: Tensor) -> Tensor:
        """Logits (asked, vocabulary) of positions in modality m, of which a network says this."""
        return self.get_buffer("trust")[m] * said + self.at(m, position)
