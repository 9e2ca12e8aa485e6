"""A masked any-to-any transformer: some tokens of an object go in, the logits of others come out.

Encoder over the shown tokens, decoder over the asked slots: self-attention within each modality, then cross-attention
to the encoder's context (4M, AION-1). Pre-norm, per-head norms of queries and keys, SwiGLU, no biases. Objects of fewer
tokens than their batch are padded; padding is never attended to and changes no logit.

Ordered codecs (bins, grids, coefficients) start *smooth in value*: embeddings and heads are low cosines of the token's
place in its vocabulary times a learned matrix, plus a table that starts at 0; thousands of independent rows cannot be
learned from a few hundred objects. What one number says of another has a short way of its own (`Pairs`). Each slot's
logits start from how often its tokens stand there in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from skycairn.model.masking import Batch
from skycairn.model.vocabulary import Vocabulary

COSINES = 16
PAIR_COSINES = 6
"""The first ones that are not constant."""
PAIR_SCALE = 0.5
"""Of what `Pairs` adds; it holds its steps down, as there are many pairs."""
STRENGTHS = tuple(4.0**k for k in range(7))
"""A slot's own counts outweigh those of its whole modality from this many objects on; the best is taken."""


@dataclass(frozen=True)
class Size:
    """Depth of encoder and of decoder, width, heads."""

    depth: int
    width: int
    heads: int


SIZES = {"nano": Size(3, 128, 4), "micro": Size(4, 192, 6), "tiny": Size(6, 384, 6), "small": Size(8, 512, 8)}


class Attention(nn.Module):
    """Multi-head attention with norms of queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.q_norm, self.k_norm = (nn.LayerNorm(width // heads, bias=False) for _ in range(2))

    def forward(self, x: Tensor, context: Tensor, allowed: Tensor) -> Tensor:
        """x (n, q, width) asks context (n, k, width) where `allowed` (n, 1, q or 1, k) is True."""
        n, _, width = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(n, -1, self.heads, width // self.heads).transpose(1, 2)

        q, k = self.q_norm(split(self.q(x))), self.k_norm(split(self.k(context)))
        out = F.scaled_dot_product_attention(q, k, split(self.v(context)), attn_mask=allowed)
        return self.out(out.transpose(1, 2).reshape(n, -1, width))


class SwiGLU(nn.Module):
    """Feed-forward layer; 8/3 of the width within."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 8 * width // 3
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, token, width) to the same."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """A layer of the encoder, or of the decoder where there is a context."""

    def __init__(self, width: int, heads: int, dropout: float, cross: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.attention, self.feed = Attention(width, heads), SwiGLU(width)
        self.drop = nn.Dropout(dropout)
        self.cross = Attention(width, heads) if cross else None
        self.query_norm, self.context_norm = (nn.LayerNorm(width, bias=False) for _ in range(2))

    def forward(self, x: Tensor, allowed: Tensor, context: Tensor | None, seen: Tensor | None) -> Tensor:
        """Self-attention where `allowed`, then the context where `seen`, then the feed-forward layer."""
        y = self.norm1(x)
        x = x + self.drop(self.attention(y, y, allowed))
        if self.cross is not None and context is not None and seen is not None:
            x = x + self.drop(self.cross(self.query_norm(x), self.context_norm(context), seen))
        return x + self.drop(self.feed(self.norm2(x)))


class SmoothTable(nn.Module):
    """Rows of all vocabularies, (token, width): free ones, and for ordered codecs low cosines times a matrix."""

    def __init__(
        self, vocabulary: Vocabulary, width: int, scale: float, counts: Sequence[NDArray[np.int64]] | None
    ) -> None:
        super().__init__()
        self.free, self.smooth, self.twin = nn.ParameterDict(), nn.ParameterDict(), vocabulary.twin
        for m, column in enumerate(vocabulary.columns):
            if self.twin[m] != m:
                continue  # modalities of one codec share its rows: redshifts of two surveys
            self.free[str(m)] = nn.Parameter(torch.zeros(column.vocabulary, width))
            if column.ordered:
                waves = cosines(column.vocabulary, together(counts, self.twin, m) if counts is not None else None)
                self.register_buffer(f"waves{m}", torch.from_numpy(waves))
                self.smooth[str(m)] = nn.Parameter(scale * torch.randn(waves.shape[1], width))
            else:
                self.free[str(m)].data.normal_(std=scale)

    def waves(self, m: int) -> Tensor | None:
        """Cosines of one modality's tokens, (vocabulary, cosine); None where its codec has no order."""
        m = self.twin[m]
        return self.get_buffer(f"waves{m}") if str(m) in self.smooth else None

    def rows(self, m: int) -> Tensor:
        """The table of one modality, (vocabulary, width)."""
        free: Tensor = self.free[str(self.twin[m])]
        waves = self.waves(m)
        return free if waves is None else free + waves @ self.smooth[str(self.twin[m])]

    def forward(self) -> Tensor:
        """The table of all, (token, width)."""
        return torch.cat([self.rows(m) for m in range(len(self.twin))])


def cosines(vocabulary: int, counts: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
    """cos(pi k x), k = 0 .. 15, at the places x of the tokens in [0, 1], falling as 1 / (1 + k / 2).

    Half of the way from 0 to 1 is shared out evenly, half by how often tokens are seen, so that a grid (of redshifts,
    say) is told apart finely where the objects are.
    """
    k = np.arange(min(COSINES, vocabulary))
    x = (np.arange(vocabulary) + 0.5) / vocabulary
    if counts is not None and counts.sum():
        share = smoothed(counts)
        x = 0.5 * x + 0.5 * (np.cumsum(share) - share / 2)
    return (np.cos(np.pi * k * x[:, None]) * 2 / (1 + k / 2)).astype(np.float32)


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


class Pairs(nn.Module):
    """What each shown number says of each asked one, by itself: a bilinear form of the cosines of both, 0 at first.

    A few hundred objects teach attention the strong relations alone; that an ellipticity follows one moment of another
    survey is learned here. A number is one token of an ordered codec.
    """

    def __init__(self, vocabulary: Vocabulary, waves: Sequence[Tensor | None], dropout: float) -> None:
        super().__init__()
        self.numbers = [m for m, c in enumerate(vocabulary.columns) if c.ordered and c.layout == "scalar"]
        n, terms = len(self.numbers), PAIR_COSINES
        self.weight = nn.Parameter(torch.zeros(n, n, terms, terms))
        self.dropout = dropout
        table = torch.zeros(int(vocabulary.first_token[-1]), terms)
        row = torch.full((len(vocabulary.columns),), n)
        for i, m in enumerate(self.numbers):
            wave = waves[m]
            assert wave is not None
            at = int(vocabulary.first_token[m])
            table[at : at + len(wave), : wave.shape[1] - 1] = wave[:, 1 : 1 + terms]
            row[m] = i
        self.register_buffer("table", table)
        self.register_buffer("row", row, persistent=False)

    def forward(self, kind: Tensor, token: Tensor, valid: Tensor) -> Tensor:
        """Cosines of the numbers that each object shows, (n, number, cosine); 0 where it shows none."""
        n = len(self.numbers)
        row = torch.where(valid, self.get_buffer("row")[kind], n)
        out = torch.zeros(len(row), n + 1, PAIR_COSINES, device=row.device)
        out = out.scatter(1, row[:, :, None].expand(-1, -1, PAIR_COSINES), self.get_buffer("table")[token])[:, :n]
        return F.dropout1d(out, self.dropout, self.training) if n else out

    def logits(self, m: int, shown: Tensor, vocabulary_slice: slice) -> Tensor:
        """Logits (asked, vocabulary) of a number from `shown` (asked, number, cosine)."""
        said = PAIR_SCALE * torch.einsum("ank,nkj->aj", shown, self.weight[self.numbers.index(m)])
        return said @ self.get_buffer("table")[vocabulary_slice].T


class Model(nn.Module):
    """Logits of the asked tokens, from the shown ones."""

    def __init__(
        self, vocabulary: Vocabulary, size: Size, dropout: float, counts: Sequence[NDArray[np.int64]] | None
    ) -> None:
        """`counts` are `slot_counts` of the training split; None where a checkpoint fills them in."""
        super().__init__()
        if size.width % size.heads or (size.width // size.heads) % 2:
            raise ValueError(f"network: {size}: wanted a width that is an even multiple of the heads")
        width = size.width
        self.vocabulary, self.size = vocabulary, size
        self.token = SmoothTable(vocabulary, width, 1 / np.sqrt(width), counts)
        self.head = SmoothTable(vocabulary, width, 0.02, counts)
        self.pairs = Pairs(vocabulary, [self.token.waves(m) for m in range(len(vocabulary.columns))], dropout)
        self.modality = nn.Parameter(torch.randn(len(vocabulary.columns), width) * 0.1)
        self.slot = nn.Parameter(torch.zeros(vocabulary.n_slots, width))
        self.asked = nn.Parameter(torch.randn(width) * 0.02)
        self.register_buffer("place", 0.1 * torch.from_numpy(places(vocabulary, width)), persistent=False)
        self.encoder = nn.ModuleList(Block(width, size.heads, dropout, False) for _ in range(size.depth))
        self.decoder = nn.ModuleList(Block(width, size.heads, dropout, True) for _ in range(size.depth))
        self.context = nn.Linear(width, width, bias=False)
        self.encoder_norm, self.decoder_norm = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.drop = nn.Dropout(dropout)
        self.register_buffer("modality_of", torch.from_numpy(vocabulary.modality_of_slot), persistent=False)
        self.register_buffer("first_token", torch.from_numpy(vocabulary.first_token), persistent=False)
        for m, column in enumerate(vocabulary.columns):
            self.register_buffer(f"trust{m}", torch.ones(()))
            self.register_buffer(f"start{m}", torch.zeros(column.n_tokens, column.vocabulary))
        if counts is not None:
            self.start_from(counts)

    def start_from(self, counts: Sequence[NDArray[np.int64]]) -> None:
        """Let each slot's logits start from these `slot_counts`."""
        for m, column in enumerate(self.vocabulary.columns):
            pooled = together(counts, self.vocabulary.twin, m)
            self.get_buffer(f"start{m}").copy_(torch.from_numpy(starting_logits(counts[m], column.ordered, pooled)))

    def kind(self, slot: Tensor) -> Tensor:
        """Number of the modality of each slot."""
        return self.get_buffer("modality_of")[slot]

    def ids(self, slot: Tensor, token: Tensor) -> Tensor:
        """Rows of the one table that holds all vocabularies."""
        return token + self.get_buffer("first_token")[self.kind(slot)]

    def at(self, slot: Tensor) -> Tensor:
        """What tells the place of slots (n, token) to the network, (n, token, width)."""
        return self.get_buffer("place")[slot] + self.slot[slot] + self.modality[self.kind(slot)]

    def encode(self, slot: Tensor, token: Tensor, valid: Tensor) -> Tensor:
        """Context of all shown tokens, (n, token, width); none is dropped; where `valid` is False it means nothing."""
        here = self.at(slot)
        x = self.drop(F.embedding(self.ids(slot, token), self.token()) + here)
        allowed = valid[:, None, None, :] | torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
        for block in self.encoder:
            x = block(x, allowed, None, None)
        return self.context(self.encoder_norm(x)) + here

    def decode(self, context: Tensor, seen: Tensor, slot: Tensor, valid: Tensor) -> Tensor:
        """Features of the asked slots, (n, token, width), from the context where `seen` (n, token) is True."""
        x = self.asked + self.at(slot)
        kind = self.kind(slot)
        same = (kind[:, :, None] == kind[:, None, :]) & valid[:, None, :]
        same = (same | torch.eye(slot.shape[1], dtype=torch.bool, device=slot.device))[:, None]
        # an object that shows nothing sees its padding, which is the same for all such objects
        seen = (seen | ~seen.any(dim=1, keepdim=True))[:, None, None, :]
        for block in self.decoder:
            x = block(x, same, context, seen)
        return self.decoder_norm(x)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Cross-entropy, number of the object and number of the modality of each asked token, (asked,)."""
        device = self.asked.device
        given = [torch.from_numpy(a).to(device) for a in batch]
        context = self.encode(given[0], given[1], given[2])
        features = self.decode(context, given[2], given[3], given[5])
        shown = self.pairs(self.kind(given[0]), self.ids(given[0], given[1]), given[2])
        out, who, kinds = [], [], []
        kind = torch.where(given[5], self.kind(given[3]), -1)
        for m in np.unique(self.vocabulary.modality_of_slot[batch.target_slot[batch.target_valid]]).tolist():
            row, column = torch.nonzero(kind == m, as_tuple=True)
            logits = self.logits(m, features[row, column], given[3][row, column], shown[row])
            out.append(F.cross_entropy(logits, given[4][row, column], reduction="none"))
            who.append(row)
            kinds.append(torch.full_like(row, m))
        return torch.cat(out), torch.cat(who), torch.cat(kinds)

    def logits(self, m: int, features: Tensor, slot: Tensor, shown: Tensor) -> Tensor:
        """Logits (asked, vocabulary) of slots of one modality, for objects that show the numbers `shown`.

        What is added to the slot's start is scaled by `trust`, 1 until `train.calibrate` has set it.
        """
        start = self.get_buffer(f"start{m}")[slot - int(self.vocabulary.first_slot[m])]
        said = features @ self.head.rows(m).T
        if m in self.pairs.numbers:
            first = self.vocabulary.first_token
            said = said + self.pairs.logits(m, shown, slice(int(first[m]), int(first[m + 1])))
        return self.get_buffer(f"trust{m}") * said + start


def together(counts: Sequence[NDArray[np.int64]], twin: Sequence[int], m: int) -> NDArray[np.int64]:
    """How often each token is seen in all modalities of one codec, (vocabulary,)."""
    return np.sum([counts[k].sum(axis=0) for k in range(len(twin)) if twin[k] == twin[m]], axis=0)


def starting_logits(counts: NDArray[np.int64], ordered: bool, every: NDArray[np.int64]) -> NDArray[np.float32]:
    """Log of how often each token stands in each slot, (slot, vocabulary), from the training split's counts.

    Each slot leans on `every`, the counts of its whole codec, and an ordered codec's tokens on their neighbours; how
    far, is what foretells every training token best from all others (leave one out).
    """
    pooled = smoothed(every) if ordered else (every + 0.5) / (every.sum() + len(every) / 2)
    n = counts.sum(axis=1, keepdims=True)

    def left_out(strength: float) -> float:
        chance = (counts - 1 + strength * pooled) / np.maximum(n - 1 + strength, 1e-9)
        return float(np.sum(counts * np.log(np.where(counts > 0, chance, 1.0))))

    best = max(STRENGTHS, key=left_out)
    return np.log((counts + best * pooled) / (n + best)).astype(np.float32)


def smoothed(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of each token of an ordered codec, (vocabulary,): a Gaussian over neighbours, and a little everywhere.

    How wide, how little, and whether tokens that were never seen have a part in the former, is what foretells every
    one best from all others: a bin below all fluxes stays empty, a redshift between two that were seen does not.
    """
    size, total = len(counts), counts.sum()
    if total < 2:
        return np.full(size, 1 / size)
    best, chosen = -np.inf, np.full(size, 1 / size)
    for width in (0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0):
        near = np.exp(-0.5 * ((np.arange(size)[:, None] - np.arange(size)) / width) ** 2)
        near /= near.sum(axis=0)
        density, own = near @ counts, np.diag(near)
        for least in (0, 1):
            share = np.where(counts >= least, density, 0.0)
            left = np.where(counts > least, density - own, 0.0) / max(share.sum() - 1, 1e-9)
            for floor in (0.01, 0.03, 0.1, 0.3, 1.0):
                chance = (1 - floor) * left + floor / size
                score = float(np.sum(counts * np.log(np.maximum(chance, 1e-12))))
                if score > best:
                    best, chosen = score, (1 - floor) * share / share.sum() + floor / size
    return np.asarray(chosen / chosen.sum())
