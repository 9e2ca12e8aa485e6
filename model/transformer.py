"""A masked any-to-any transformer over packed microbatches: an encoder of what is shown, a decoder of what is asked.

After 4M (https://arxiv.org/abs/2312.06647) and AION-1 (https://arxiv.org/abs/2510.17960): self-attention within an
object in the encoder and within each of an object's modalities in the decoder, cross-attention to the object's context,
norms of queries and keys, SwiGLU, norms before each branch, no biases but the context's. Tokens of all objects lie on
one axis; only attention knows where an object ends (`model/layout.py`, `model/attention.py`). An object that shows
nothing is foretold from its slots alone: what it sees in cross-attention is 0.

Axes: T shown tokens, M asked ones, D width, H heads, E = D / H.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from skycairn.model.attention import Plan, attend, planned, scatter, take, takes_varlen, to_device
from skycairn.model.forms import Form
from skycairn.model.layout import Ints, Layout, checked, lay_out
from skycairn.model.packed import Packed
from skycairn.model.pairs import Pairing, Pairs
from skycairn.model.sequence import sequenced
from skycairn.model.tables import Counts, Levels, SlotTable, Starts, TokenTable, first_rows
from skycairn.model.vocabulary import Vocabulary

EPSILON = 1e-6
Compat: TypeAlias = Literal["aion"]
"""AION-1's own ways, where they differ from ours: each function says which."""


class Linear(nn.Linear):
    """A matrix product in the type of what comes in, whatever the type of the weights."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Norm(nn.Module):
    """Layer norm without a bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Over the last axis."""
        return F.layer_norm(x, self.weight.shape, self.weight.to(x.dtype), None, EPSILON)


class SelfAttention(nn.Module):
    """Tokens of one axis ask those of their own segment."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = Linear(width, 3 * width, bias=False), Linear(width, width, bias=False)
        self.q_norm, self.k_norm = Norm(width // heads), Norm(width // heads)

    def forward(self, x_TD: Tensor, plan: Plan, uniform: bool = False) -> Tensor:
        """(T, D); where `uniform`, each token asks all of its segment alike."""
        q, k, v = (y.unflatten(1, (self.heads, -1)) for y in self.qkv(x_TD).chunk(3, dim=1))
        q_THE, k_THE = self.q_norm(q), self.k_norm(k)
        if uniform:
            q_THE = torch.zeros_like(q_THE)
        return self.proj(attend(q_THE, k_THE, v, plan).flatten(1))


class CrossAttention(nn.Module):
    """Asked tokens ask the context of their object."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv = Linear(width, width, bias=False), Linear(width, 2 * width, bias=False)
        self.proj = Linear(width, width, bias=False)
        self.q_norm, self.k_norm = Norm(width // heads), Norm(width // heads)

    def forward(self, x_MD: Tensor, context_TD: Tensor, plan: Plan) -> Tensor:
        """(M, D)."""
        q = self.q(x_MD).unflatten(1, (self.heads, -1))
        k, v = (y.unflatten(1, (self.heads, -1)) for y in self.kv(context_TD).chunk(2, dim=1))
        return self.proj(attend(self.q_norm(q), self.k_norm(k), v, plan).flatten(1))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up, self.down = Linear(width, 2 * hidden, bias=False), Linear(hidden, width, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        """(T, D)."""
        gated: Tensor = _Gated.apply(self.gate_up(x_TD))  # type: ignore[no-untyped-call]
        return self.down(gated)


class _Gated(torch.autograd.Function):
    """silu(a) b of a and b side by side; a third less is kept for the gradient, which is written where it belongs."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        """(T, 2 hidden) to (T, hidden)."""
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """As of the two, side by side."""
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, dim=-1)
        out = torch.empty_like(both)
        to_gate, to_up = out.chunk(2, dim=-1)
        torch.mul(gradients[0], F.silu(gate), out=to_up)
        torch.ops.aten.silu_backward.grad_input(gradients[0] * up, gate, grad_input=to_gate)
        return out


class EncoderBlock(nn.Module):
    """A layer of the encoder."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(form.width), Norm(form.width)
        self.attention, self.feed = SelfAttention(form.width, form.heads), FeedForward(form.width, form.hidden)
        self.drop = nn.Dropout(form.dropout)

    def forward(self, x_TD: Tensor, plan: Plan) -> Tensor:
        """(T, D)."""
        x_TD = x_TD + self.drop(self.attention(self.norm1(x_TD), plan))
        return x_TD + self.drop(self.feed(self.norm2(x_TD)))


class DecoderBlock(nn.Module):
    """A layer of the decoder."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.norm1, self.norm2, self.query_norm, self.context_norm = (Norm(form.width) for _ in range(4))
        self.attention, self.cross = (make(form.width, form.heads) for make in (SelfAttention, CrossAttention))
        self.feed, self.drop = FeedForward(form.width, form.hidden), nn.Dropout(form.dropout)

    def forward(self, x_MD: Tensor, context_TD: Tensor, batch: Prepared, uniform: bool) -> Tensor:
        """(M, D)."""
        x_MD = x_MD + self.drop(self.attention(self.norm1(x_MD), batch.decoder, uniform))
        asking = self.query_norm(x_MD)
        if batch.crossing is not None and batch.crossing_place is not None:
            asking = take(asking, batch.crossing, batch.crossing_place)
        seen = self.cross(asking, self.context_norm(context_TD), batch.cross)
        if batch.crossing is not None and batch.crossing_place is not None:
            seen = take(seen, batch.crossing_place, batch.crossing)
        x_MD = x_MD + self.drop(seen)
        return x_MD + self.drop(self.feed(self.norm2(x_MD)))


class Prepared(NamedTuple):
    """A microbatch on the device, in the order in which it is worked on; what is counted stays on the host."""

    layout: Layout
    row: Tensor
    "(T,): rows of the table of tokens"
    slot: Tensor
    kind: Tensor
    "(T,): modality"
    place: Tensor
    "(T,): where each token of the microbatch's own order is on the encoder's axis"
    asked_slot: Tensor
    "(M,)"
    asked_kind: Tensor
    told: Tensor | None
    "places of tokens whose forerunner is told, on the decoder's axis; None where there are none"
    told_row: Tensor | None
    crossing: Tensor | None
    crossing_place: Tensor | None
    by_modality: Tensor
    by_modality_place: Tensor
    answer: Tensor
    "(M,): tokens, modality after modality"
    position: Tensor
    "(M,): of each within its modality, modality after modality"
    encoder: Plan
    decoder: Plan
    cross: Plan
    pairing: Pairing | None


class Losses(NamedTuple):
    """Cross-entropy, nats, of what was asked for."""

    sums: Tensor
    "(modality,), fp32: of all tokens of each"
    counts: Ints
    "(modality,): of how many"


class Embedded(NamedTuple):
    """The context of every shown token, in the order of the microbatch."""

    values: Tensor
    "(T, D)"
    start: Ints
    "(object + 1,): object i has start[i] to start[i + 1]"

    def padded(self) -> tuple[Tensor, Tensor]:
        """(object, most, D), 0 where there is no token, and where there is one, (object, most)."""
        length = np.diff(self.start)
        there = np.arange(int(length.max(initial=0))) < length[:, None]
        place = to_device(np.flatnonzero(there.ravel()), self.values.device)
        out = scatter(self.values, place, there.size).view(*there.shape, self.values.shape[1])
        return out, to_device(there, self.values.device)


class Network(nn.Module):
    """Losses, logits and embeddings of packed microbatches."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        form: Form,
        smooth: bool = False,
        counts: Counts | None = None,
        learned_slots: bool = True,
        sequences: Collection[str] = (),
        pairs: bool = False,
        levels: Levels = MappingProxyType({}),
    ) -> None:
        """A network of random weights.

        `smooth`: tables of ordered codecs start smooth in value, and those of modalities whose tokens are made of
        several numbers, as `levels` says (`Codec.levels`), in each of these. `counts` (`slot_counts` of the training
        split): logits start from how often tokens stand in their slots. `learned_slots`: each slot has a vector of its
        own, which starts at 0. `sequences`: modalities that are read from left to right, AION-1's way with its
        catalogue. `pairs`: what one number says of another has a short way of its own.
        """
        super().__init__()
        if unknown := set(sequences) - set(vocabulary.names):
            raise ValueError(f"network: sequences {sorted(unknown)} are none of {', '.join(vocabulary.names)}")
        if sequences and counts is not None:
            raise ValueError("network: tokens of a sequence have no slot to start from; give counts, or sequences")
        self.vocabulary, self.form, self.dtype = vocabulary, form, torch.float32
        self.sequences = vocabulary.indices(sorted(sequences))
        width = form.width
        self.token = TokenTable(vocabulary, width, 1 / math.sqrt(width), smooth, counts, levels)
        self.slot = SlotTable(vocabulary, width, learned_slots)
        self.encoder = nn.ModuleList(EncoderBlock(form) for _ in range(form.encoder_depth))
        self.encoder_norm = Norm(width)
        self.context = Linear(width, width)
        self.asked = nn.Parameter(0.02 * torch.randn(width))
        told = sum(vocabulary.columns[m].vocabulary for m in self.sequences)
        self.told = nn.Parameter(torch.randn(told, width) / math.sqrt(width)) if told else None
        self.decoder = nn.ModuleList(DecoderBlock(form) for _ in range(form.decoder_depth))
        self.decoder_norm = Norm(width)
        self.head = TokenTable(vocabulary, width, 0.02, smooth, counts, levels)
        self.starts = Starts(vocabulary) if counts is not None else None
        if self.starts is not None and counts is not None:
            self.starts.start_from(counts)
        self.pairs = Pairs(vocabulary, form.dropout, counts) if pairs else None
        self.drop = nn.Dropout(form.dropout)
        self._first_row = first_rows(vocabulary)
        for name, module in self.named_modules():
            if isinstance(module, Linear):
                parts = {"qkv": 3, "kv": 2, "gate_up": 2}.get(name.rpartition(".")[2], 1)
                bound = math.sqrt(6 / (module.in_features + module.out_features // parts))
                nn.init.uniform_(module.weight, -bound, bound)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.asked.device

    def compute_in(self, dtype: torch.dtype) -> Network:
        """Let products, norms and what lies between them be of this type; weights, tables and losses stay fp32."""
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"network: {dtype} was asked for; wanted torch.float32 or torch.bfloat16")
        self.dtype = dtype
        return self

    def prepared(self, packed: Packed, compat: Compat | None = None) -> Prepared:
        """The microbatch on the network's device: what a loader may do ahead. `compat` as of `logits`.

        ValueError where the microbatch is of another vocabulary.
        """
        device, vocabulary = self.device, self.vocabulary
        varlen = takes_varlen(device, self.dtype)
        before: NDArray[np.int32] | None = None
        if self.sequences:
            checked(packed, vocabulary)
            packed, before = sequenced(packed, vocabulary, self.sequences)
        layout = lay_out(packed, vocabulary, not varlen, self.sequences, across=compat == "aion")
        slot, asked_slot = packed.input_slot[layout.shown], packed.target_slot[layout.asked]
        kind, asked_kind = vocabulary.modality_of_slot[slot], vocabulary.modality_of_slot[asked_slot]
        told = told_row = None
        if before is not None and self.sequences:
            ahead = before[layout.asked]
            told = np.flatnonzero(ahead >= 0)
            first = np.zeros(len(vocabulary.columns), np.int64)
            sizes = [vocabulary.columns[m].vocabulary for m in self.sequences]
            first[self.sequences] = np.cumsum(sizes) - sizes
            told_row = first[asked_kind[told]] + ahead[told]

        def sent(array: NDArray[np.int64] | NDArray[np.int32]) -> Tensor:
            return to_device(array.astype(np.int64, copy=False), device)

        def inverse(order: Ints) -> Ints:
            out = np.empty_like(order)
            out[order] = np.arange(len(order))
            return out

        ordered = layout.by_modality
        position = asked_slot[ordered] - vocabulary.first_slot[asked_kind[ordered]]
        return Prepared(
            layout,
            sent(self._first_row[kind] + packed.input_token[layout.shown]),
            sent(slot),
            sent(kind),
            sent(inverse(layout.shown)),
            sent(asked_slot),
            sent(asked_kind),
            sent(told) if told is not None and len(told) else None,
            sent(told_row) if told_row is not None and len(told_row) else None,
            sent(layout.crossing) if layout.crossing is not None else None,
            sent(inverse(layout.crossing)) if layout.crossing is not None else None,
            sent(ordered),
            sent(inverse(ordered)),
            sent(packed.target_token[layout.asked][ordered]),
            sent(position),
            planned(layout.encoder_segments, device, varlen),
            planned(layout.decoder_segments, device, varlen),
            planned(layout.cross_segments, device, varlen),
            self.pairs.pairing(packed, layout.asked[ordered], device) if self.pairs is not None else None,
        )

    def encode(self, packed: Packed) -> Embedded:
        """The context of all tokens shown, as the decoder sees it: none is left out, however many there are."""
        batch = self.prepared(packed)
        return Embedded(self._context(batch).index_select(0, batch.place), packed.input_start)

    def features(self, batch: Prepared, compat: Compat | None = None) -> Tensor:
        """(M, D) features of the asked tokens, modality after modality; `compat` as of `logits`."""
        context = self._context(batch)
        x = self.asked.expand(len(batch.asked_slot), -1)
        if batch.told is not None and batch.told_row is not None and self.told is not None:
            masked = x.index_fill(0, batch.told, 0.0)
            x = masked + scatter(F.embedding(batch.told_row, self.told), batch.told, len(x))
        x = (x + self.slot(batch.asked_slot, batch.asked_kind)).to(self.dtype)
        for block in self.decoder:
            x = block(x, context, batch, compat == "aion")
        return take(self.decoder_norm(x), batch.by_modality, batch.by_modality_place)

    def forward(self, packed: Packed | Prepared) -> Losses:
        """Cross-entropy of a microbatch, by modality."""
        batch = packed if isinstance(packed, Prepared) else self.prepared(packed)
        counts = batch.layout.counts
        sums = [torch.zeros((), device=self.device)] * len(counts)
        answers = torch.split(batch.answer, counts.tolist())
        for m, logits in self._logits(batch, None):
            sums[m] = F.cross_entropy(logits.float(), answers[m], reduction="sum")
        found = torch.stack(sums)
        return Losses(found + self._unasked(batch.layout) if torch.is_grad_enabled() else found, counts)

    def _unasked(self, layout: Layout) -> Tensor:
        """0, on which all weights hang that this microbatch may leave alone, so that each has a gradient.

        Adam counts steps, and processes that share weights wait for each other's gradients. Where one token is alone
        nothing is compared; where no object both shows and asks, whole layers are left out. Some weights are of
        numbers alone, or of ordered codecs, or of codecs of several numbers.
        """
        some_asked = ("head.waves", "pairs.weight")
        compared = ("q_norm.weight", "k_norm.weight", "query_norm.weight", "cross.q.weight", "told", *some_asked)
        crossing = bool(((layout.cross_segments.query > 0) & (layout.cross_segments.key > 0)).any())
        some = [p for n, p in self.named_parameters() if not crossing or n.endswith(compared) or "head.parts." in n]
        return 0.0 * torch.stack([p.sum() for p in some]).sum()

    def logits(self, packed: Packed, compat: Compat | None = None) -> dict[str, Tensor]:
        """Logits of what is asked for, (asked, vocabulary) a modality, in the order of the microbatch.

        `compat="aion"`: tokens of the decoder ask all others of their object alike, as AION-1's own `forward` has it.
        """
        batch = self.prepared(packed, compat)
        names, layout, out = self.vocabulary.names, batch.layout, {}
        ends = np.cumsum(layout.counts)
        for m, logits in self._logits(batch, compat):
            # places in the microbatch of this modality's tokens; their order gives them back in its own
            own = layout.asked[layout.by_modality[ends[m] - layout.counts[m] : ends[m]]]
            out[names[m]] = logits.index_select(0, to_device(np.argsort(own), logits.device))
        return out

    def _context(self, batch: Prepared) -> Tensor:
        here = self.slot(batch.slot, batch.kind)
        x = self.drop(self.token(batch.row) + here).to(self.dtype)
        for block in self.encoder:
            x = block(x, batch.encoder)
        return self.context(self.encoder_norm(x)) + here.to(self.dtype)

    def said(self, batch: Prepared, compat: Compat | None = None) -> list[tuple[int, Tensor, Tensor]]:
        """Of each modality asked for its number, what is said of it, (asked, vocabulary), and positions, (asked,).

        What is said is all of the logits, but for what slots start from.
        """
        counts = batch.layout.counts.tolist()
        tables = self.head.tables()
        features, positions = (torch.split(x, counts) for x in (self.features(batch, compat), batch.position))
        beside = self.pairs(batch.pairing) if self.pairs is not None else {}
        out = []
        for m, count in enumerate(counts):
            if count:
                said = F.linear(features[m], tables[m].to(features[m].dtype))
                out.append((m, said + beside[m] if m in beside else said, positions[m]))
        return out

    def _logits(self, batch: Prepared, compat: Compat | None) -> list[tuple[int, Tensor]]:
        found = self.said(batch, compat)
        return [(m, said if self.starts is None else self.starts(m, at, said)) for m, said, at in found]


def equal_weights(counts: Ints) -> NDArray[np.float64]:
    """A weight for each modality: alike for those of which something is asked, 1 in all."""
    there = counts > 0
    return there / max(1, int(there.sum()))


def token_weights(counts: Ints) -> NDArray[np.float64]:
    """A weight for each modality: as many tokens as are asked of it, 1 in all."""
    return counts / max(1, int(counts.sum()))


def objective(losses: Losses, counts: Ints, weights: NDArray[np.float64]) -> Tensor:
    """This microbatch's part of the loss: the sum over modalities of weight x sum of cross-entropy / count.

    `counts` are those of the whole step, of all its microbatches on all devices: then the parts add up to the same
    loss, and their gradients to the same gradient, however the step is dealt out.
    """
    scale = np.divide(weights, counts, out=np.zeros(len(counts)), where=counts > 0)
    return (losses.sums * to_device(scale.astype(np.float32), losses.sums.device)).sum()
