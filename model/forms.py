"""Sizes of the transformer, and what one pass over a microbatch costs.

`base` is AION-1's base to the letter. Elsewhere the feed-forward layer is rounded up to a multiple of 64, which matrix
products on a GPU want; AION-1's own large and xlarge (2730 and 5461) come with their files (`model/aion.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from skycairn.model.layout import Layout
from skycairn.model.vocabulary import Vocabulary


@dataclass(frozen=True)
class Form:
    """Shape of an encoder-decoder."""

    encoder_depth: int
    decoder_depth: int
    width: int
    heads: int
    hidden: int
    "of the feed-forward layers: twice as many come out of the first product, a gate and what it lets through"
    dropout: float = 0.0
    "share of what each branch adds that is dropped in training"

    def __post_init__(self) -> None:
        if min(self.encoder_depth, self.decoder_depth, self.width, self.heads, self.hidden) < 1:
            raise ValueError(f"{self}: wanted depths, width, heads and hidden of 1 or more")
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"{self}: wanted a width that is a multiple of the heads and of 4")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"{self}: wanted a dropout of 0 or more and below 1")


def _form(depth: int, width: int, heads: int) -> Form:
    return Form(depth, depth, width, heads, hidden=-(-8 * width // 192) * 64)


FORMS = {
    "nano": _form(3, 128, 4),
    "micro": _form(4, 192, 6),
    "tiny": _form(6, 384, 6),
    "small": _form(8, 512, 8),
    "base": _form(12, 768, 12),
    "large": _form(24, 1024, 16),
    "xlarge": _form(24, 2048, 32),
}
"""`nano` and `micro` are for a CPU."""


def form_named(name: str, dropout: float = 0.0) -> Form:
    """One of `FORMS`; ValueError where there is none of that name."""
    if name not in FORMS:
        raise ValueError(f"there is no size {name!r}; choose one of {', '.join(FORMS)}")
    return replace(FORMS[name], dropout=dropout)


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a forward pass; a multiplication and an addition are two. No padding is counted."""

    blocks: int
    "matrix products of the encoder's and the decoder's layers"
    context: int
    heads: int
    attention: int

    @property
    def forward(self) -> int:
        """All of it."""
        return self.blocks + self.context + self.heads + self.attention

    @property
    def training(self) -> int:
        """Forward and backward: each product is done thrice."""
        return 3 * self.forward


def flops(form: Form, vocabulary: Vocabulary, layout: Layout) -> Flops:
    """What a microbatch costs: for d wide layers whose hidden layer is 8 d / 3, 28 d^2 a layer and token.

    Attention is 4 d a layer for each pair of a token that asks and one that is asked. Norms, tables and what is smooth
    in them are not counted.
    """
    d, hidden = form.width, form.hidden
    n, m = len(layout.shown), len(layout.asked)
    encoder = form.encoder_depth * n * (8 * d * d + 6 * d * hidden)
    own = form.decoder_depth * m * (12 * d * d + 6 * d * hidden)
    context_of_layers = form.decoder_depth * n * 4 * d * d
    pairs = [
        int((s.query * s.key).sum()) for s in (layout.encoder_segments, layout.decoder_segments, layout.cross_segments)
    ]
    attention = 4 * d * (form.encoder_depth * pairs[0] + form.decoder_depth * (pairs[1] + pairs[2]))
    outputs = np.array([c.vocabulary for c in vocabulary.columns], np.int64)
    return Flops(
        encoder + own + context_of_layers, 2 * n * d * d, int(2 * d * (layout.counts * outputs).sum()), attention
    )
