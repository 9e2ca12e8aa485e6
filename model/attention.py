"""Attention of tokens packed on one axis: each segment's tokens ask their own segment, and no padding is seen.

On a GPU in half precision, `torch.nn.attention.varlen` does it by where segments start. It has no kernel for a CPU nor
for fp32: there, segments of one length lie side by side and go through `scaled_dot_product_attention` as they are, and
segments of almost one length are padded to the longest of a bucket. What is asked of nothing is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from skycairn.model.layout import Ints, Segments

WASTE = 2048
"""Pairs of tokens that one length more may add to a bucket as padding, before another bucket is begun."""


class Span(NamedTuple):
    """Segments side by side that are worked on together; lengths are those of the longest."""

    first: int
    last: int
    "the one after the last"
    query: int
    key: int
    causal: bool
    even: bool
    "whether all are as long"


def spans(segments: Segments, waste: int = WASTE) -> list[Span]:
    """Buckets of segments that are sorted by length; `waste` 0 pads nothing."""
    n = len(segments.query)
    if not n:
        return []
    change = np.ones(n, bool)
    for part in segments:
        change[1:] &= part[1:] == part[:-1]
    change = ~change
    change[0] = True
    run = np.append(np.flatnonzero(change), n)
    out: list[Span] = []
    useful = 0
    for a, b in zip(run[:-1].tolist(), run[1:].tolist(), strict=True):
        query, key, causal = int(segments.query[a]), int(segments.key[a]), bool(segments.causal[a])
        here = query * key * (b - a)
        if out and key > 1 and out[-1].key > 1 and query and out[-1].query and out[-1].causal == causal:
            last = out[-1]
            longest = max(last.query, query), max(last.key, key)
            before = last.query * last.key * (last.last - last.first) - useful
            after = longest[0] * longest[1] * (b - last.first) - useful - here
            if after - before <= waste:
                out[-1] = Span(last.first, b, *longest, causal, False)
                useful += here
                continue
        out.append(Span(a, b, query, key, causal, True))
        useful = here
    return out


def padding(length: Ints, longest: int) -> tuple[Ints, Ints]:
    """Runs padded to the longest: the element at each place, (n * longest,), 0 where there is none; and its reverse.

    The reverse is the place of each element, (elements,).
    """
    place = np.flatnonzero((np.arange(longest) < length[:, None]).ravel())
    element = np.zeros(len(length) * longest, np.int64)
    element[place] = np.arange(len(place))
    return element, place


class Padding(NamedTuple):
    """How one bucket's tokens are padded, on the device."""

    query: Tensor
    query_place: Tensor
    key: Tensor
    key_place: Tensor
    seen: Tensor
    "(n, 1, 1 or query, key): which keys are there"


class Bucket(NamedTuple):
    """A span, on the device."""

    n: int
    query: int
    key: int
    causal: bool
    padding: Padding | None


class Buckets(NamedTuple):
    """Segments for `scaled_dot_product_attention`, and the tokens of each bucket."""

    buckets: tuple[Bucket, ...]
    queries: list[int]
    keys: list[int]


class Varlen(NamedTuple):
    """Segments for `varlen_attn`."""

    blind: int
    "tokens in front that have nothing to ask"
    query_start: Tensor
    "int32, (segment + 1,)"
    key_start: Tensor
    query: int
    "most tokens of a segment"
    key: int


Plan: TypeAlias = Buckets | Varlen


def takes_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `varlen_attn` has a kernel for this: half precision, on an NVIDIA GPU from Ampere on."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    try:
        from torch.nn.attention import varlen  # noqa: F401
    except ImportError:  # torch before 2.10
        return False
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device)[0] >= 8


def cumulative(segments: Segments) -> tuple[int, NDArray[np.int32], NDArray[np.int32]]:
    """Tokens that ask nothing, and where the segments that ask something start, with the end of the last.

    Segments that have no key must be the first ones: they are left out. ValueError where they are not, or where one is
    causal.
    """
    blind = segments.key == 0
    n_blind = int(blind.sum())
    if segments.causal.any() or blind[n_blind:].any():
        raise ValueError("attention: segments with no key must come first here, and none may be causal")
    starts = [np.append(0, np.cumsum(part[n_blind:])).astype(np.int32) for part in segments[:2]]
    return int(segments.query[:n_blind].sum()), starts[0], starts[1]


def planned(segments: Segments, device: torch.device, varlen: bool, waste: int = WASTE) -> Plan:
    """What `attend` takes, on the device; nothing is waited for."""
    if varlen and not segments.causal.any():
        blind, query, key = cumulative(segments)
        most = [int(np.diff(start).max(initial=0)) for start in (query, key)]
        return Varlen(blind, to_device(query, device), to_device(key, device), most[0], most[1])
    buckets, queries, keys = [], [], []
    for span in spans(segments, waste):
        length = [part[span.first : span.last] for part in segments[:2]]
        pad = None
        if not span.even:
            padded = (*padding(length[0], span.query), *padding(length[1], span.key))
            seen = (np.arange(span.key) < length[1][:, None])[:, None, None, :]
            if span.causal:
                seen = seen & np.tri(span.query, span.key, dtype=bool)
            pad = Padding(*(to_device(a, device) for a in (*padded, seen)))
        buckets.append(Bucket(span.last - span.first, span.query, span.key, span.causal, pad))
        queries.append(int(length[0].sum()))
        keys.append(int(length[1].sum()))
    return Buckets(tuple(buckets), queries, keys)


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """A copy of a numpy array on the device."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def attend(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
    """(asking, heads, width) of what each token asks, from (asked, heads, width) keys and values."""
    if isinstance(plan, Varlen):
        return _varlen(query, key, value, plan)
    if not plan.buckets:
        return query.new_zeros(query.shape)
    parts: Sequence[tuple[Tensor, ...]] = (
        _split(query, plan.queries),
        _split(key, plan.keys),
        _split(value, plan.keys),
    )
    out = [_bucket(q, k, v, bucket) for q, k, v, bucket in zip(*parts, plan.buckets, strict=True)]
    return out[0] if len(out) == 1 else torch.cat(out)


def take(x: Tensor, index: Tensor, place: Tensor) -> Tensor:
    """x[index], where x[i] comes to `place[i]`; its gradient is a gather too, and what is there twice counts once."""
    out: Tensor = _Take.apply(x, index, place)  # type: ignore[no-untyped-call]
    return out


def scatter(x: Tensor, place: Tensor, n: int) -> Tensor:
    """n rows, of which those at `place` are the rows of x and others are 0."""
    return x.new_zeros((n, *x.shape[1:])).index_copy(0, place, x)


def _split(x: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    return (x,) if len(sizes) == 1 else torch.split(x, sizes)


def _bucket(query: Tensor, key: Tensor, value: Tensor, bucket: Bucket) -> Tensor:
    if not bucket.key or not bucket.query:
        return torch.zeros_like(query)
    if bucket.query == bucket.key == 1:
        return value  # one token that asks itself alone
    pad, seen = bucket.padding, None
    if pad is not None:
        query = take(query, pad.query, pad.query_place)
        key, value = (take(x, pad.key, pad.key_place) for x in (key, value))
        seen = pad.seen
    heads, width = query.shape[1:]
    q = query.view(bucket.n, bucket.query, heads, width).transpose(1, 2)
    k, v = (x.view(bucket.n, bucket.key, heads, width).transpose(1, 2) for x in (key, value))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=bucket.causal and seen is None)
    out = out.transpose(1, 2).reshape(-1, heads, width)
    if pad is None:
        return out
    picked: Tensor = _Pick.apply(out, pad.query_place)  # type: ignore[no-untyped-call]
    return picked


def _varlen(query: Tensor, key: Tensor, value: Tensor, plan: Varlen) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if not len(key) or plan.blind == len(query):
        return torch.zeros_like(query)
    starts = (plan.query_start, plan.key_start, plan.query, plan.key)
    out = varlen_attn(query[plan.blind :], key, value, *starts)
    assert isinstance(out, Tensor)
    return torch.cat([torch.zeros_like(query[: plan.blind]), out]) if plan.blind else out


class _Take(torch.autograd.Function):
    """A gather whose gradient is a gather: autograd's own adds row by row, which is slow on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, place: Tensor) -> Tensor:
        """x[index]."""
        ctx.save_for_backward(place)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient at each row's own place."""
        (place,) = ctx.saved_tensors
        return gradients[0].index_select(0, place), None, None


class _Pick(torch.autograd.Function):
    """A gather of rows, none of them twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        """x[index]."""
        ctx.save_for_backward(index)
        ctx.rows = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """0 for rows that were not picked."""
        (index,) = ctx.saved_tensors
        return scatter(gradients[0], index, ctx.rows), None
