"""What each shown number of an object says of each asked one by itself: a short way beside the network, 0 at first.

A few hundred objects teach attention the strong relations alone; that an ellipticity follows one moment of another
survey is learned here. A number is one token of an ordered codec; what is said is a bilinear form of low cosines of the
places of both in their vocabularies, added up over the numbers that the object shows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skycairn.model.attention import to_device
from skycairn.model.layout import Ints
from skycairn.model.packed import Packed
from skycairn.model.smooth import cosines, together
from skycairn.model.tables import Counts, first_rows
from skycairn.model.vocabulary import Vocabulary

TERMS = 6
"""The first cosines that are not constant."""
SCALE = 0.5
"""Of what is said; it holds the steps down, as there are many pairs."""


class Pairing(NamedTuple):
    """The numbers of a microbatch, on the device. A *cell* is a number of an object: object x numbers + its own."""

    row: Tensor
    "(numbers shown,): of the table of cosines"
    cell: Tensor
    "(numbers shown,)"
    asked: Tensor
    "(numbers asked,): their cells, modality after modality"
    counts: list[int]
    "of each number, how often it is asked"
    n_objects: int


class Pairs(nn.Module):
    """The bilinear forms of all pairs of numbers."""

    def __init__(self, vocabulary: Vocabulary, dropout: float = 0.0, counts: Counts | None = None) -> None:
        """`dropout` is the share of numbers that are not heard in training; `counts` place the cosines finer."""
        super().__init__()
        self.vocabulary, self.dropout = vocabulary, dropout
        self.numbers = [m for m, c in enumerate(vocabulary.columns) if c.ordered and c.layout == "scalar"]
        self.rows, n = first_rows(vocabulary), len(self.numbers) * TERMS
        self.weight = nn.Parameter(torch.zeros(n, n))
        "(number shown x cosine, number asked x cosine)"
        table = torch.zeros(int(self.rows[-1]), TERMS)
        for m in self.numbers:
            size, first = vocabulary.columns[m].vocabulary, int(self.rows[m])
            if vocabulary.twin[m] == m:
                wave = cosines(size, together(counts, vocabulary.twin, m) if counts else None)[:, 1 : 1 + TERMS]
                table[first : first + size, : wave.shape[1]] = torch.from_numpy(wave)
        self.register_buffer("table", table)

    def pairing(self, packed: Packed, asked: Ints, device: torch.device) -> Pairing:
        """The numbers of a microbatch; `asked` are its asked tokens, (asked,), modality after modality."""
        n, kind_of = len(self.numbers), self.vocabulary.modality_of_slot
        number = np.full(len(self.vocabulary.columns), -1)
        number[self.numbers] = np.arange(n)
        kind = kind_of[packed.input_slot]
        shown = np.flatnonzero(number[kind] >= 0)
        of, asked_of = (
            np.repeat(np.arange(packed.n_objects), np.diff(start))
            for start in (packed.input_start, packed.target_start)
        )
        asked = asked[number[kind_of[packed.target_slot[asked]]] >= 0]
        asked_number = number[kind_of[packed.target_slot[asked]]]
        return Pairing(
            to_device(self.rows[kind[shown]] + packed.input_token[shown], device),
            to_device(of[shown] * n + number[kind[shown]], device),
            to_device(asked_of[asked] * n + asked_number, device),
            np.bincount(asked_number, minlength=n).tolist(),
            packed.n_objects,
        )

    def forward(self, pairing: Pairing) -> dict[int, Tensor]:
        """Logits (asked, vocabulary) of each number that is asked for, by modality."""
        table, n = self.get_buffer("table"), len(self.numbers)
        wave = table.index_select(0, pairing.row)
        if self.training and self.dropout:
            wave = wave * F.dropout(wave.new_ones(len(wave), 1), self.dropout)
        shown = wave.new_zeros(pairing.n_objects * n, TERMS).index_copy(0, pairing.cell, wave)
        said = SCALE * (shown.view(pairing.n_objects, n * TERMS) @ self.weight)
        each = torch.split(said.view(-1, TERMS).index_select(0, pairing.asked), pairing.counts)
        out = {}
        for m, piece in zip(self.numbers, each, strict=True):
            if len(piece):
                first = int(self.rows[m])
                out[m] = piece @ table[first : first + self.vocabulary.columns[m].vocabulary].T
        return out
