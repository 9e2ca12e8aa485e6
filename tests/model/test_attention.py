"""Attention by segments: buckets, paddings and starts against every segment by itself."""

import sys
import types

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from skycairn.model import attention
from skycairn.model.attention import Buckets, Varlen, attend, cumulative, padding, planned, spans, take, takes_varlen
from skycairn.model.layout import Segments

CPU = torch.device("cpu")


def segments(*lengths, causal=False):
    query, key = (
        (np.array(x, np.int64) for x in zip(*lengths, strict=True)) if lengths else (np.zeros(0, np.int64),) * 2
    )
    return Segments(query, key, np.full(len(query), causal))


def by_hand(q, k, v, s):
    out, a, b = [], 0, 0
    for n, m, causal in zip(*(x.tolist() for x in s), strict=True):
        scores = torch.einsum("qhe,khe->hqk", q[a : a + n], k[b : b + m]) / q.shape[2] ** 0.5
        if causal:
            scores = scores.masked_fill(~torch.ones(n, m, dtype=torch.bool).tril(), -torch.inf)
        out.append(torch.einsum("hqk,khe->qhe", scores.softmax(2), v[b : b + m]) if m else torch.zeros(n, *q.shape[1:]))
        a, b = a + n, b + m
    return torch.cat(out) if out else torch.zeros_like(q)


def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k):
    """What the kernel does, by its documentation; it takes no empty segment here, and its tokens must be all."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    n, m = np.diff(cu_seq_q.numpy()), np.diff(cu_seq_k.numpy())
    assert (m > 0).all() and n.max(initial=0) == max_q and m.max() == max_k
    assert n.sum() == len(query) and m.sum() == len(key) == len(value)
    return by_hand(query, key, value, Segments(n.astype(np.int64), m.astype(np.int64), np.zeros(len(n), bool)))


length = st.integers(0, 9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(length, length), max_size=12), st.sampled_from([0, 5, 40, 10_000]), st.booleans())
def test_buckets_are_each_segment_by_itself(lengths, waste, itself):
    if itself:
        lengths = [(n, n) for n, _ in lengths if n]
    s = segments(*sorted(lengths, key=lambda x: (x[1], x[0])))
    generator = torch.Generator().manual_seed(len(lengths))
    q, k, v = (
        torch.randn(int(n.sum()), 2, 4, generator=generator, requires_grad=True) for n in (s.query, s.key, s.key)
    )
    ours, theirs = attend(q, k, v, planned(s, CPU, False, waste)), by_hand(q, k, v, s)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn(ours.shape, generator=generator)
    if not (ours.requires_grad and theirs.requires_grad):
        return
    kept = [x for x in (q, k, v) if x.numel()]
    for x, y in zip(
        *(torch.autograd.grad((out * weight).sum(), kept, allow_unused=True) for out in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(x if x is not None else torch.zeros(()), y if x is not None else torch.zeros(()))
        assert x is not None or y is None or float(y.abs().max()) < 1e-6


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.sampled_from([0, 10_000]))
def test_causal_segments_see_what_was_before(lengths, waste):
    s = segments(*((n, n) for n in sorted(lengths)), causal=True)
    q, k, v = (torch.randn(sum(lengths), 2, 4) for _ in range(3))
    torch.testing.assert_close(attend(q, k, v, planned(s, CPU, True, waste)), by_hand(q, k, v, s))


def test_spans_join_what_costs_little():
    s = segments(*((n, n) for n in (1, 1, 7, 8, 8, 30)))
    assert [x[:4] for x in spans(s, waste=20)] == [(0, 2, 1, 1), (2, 5, 8, 8), (5, 6, 30, 30)]
    assert [x.even for x in spans(s, waste=20)] == [True, False, True]
    assert all(x.even for x in spans(s, waste=0))
    assert [x[:2] for x in spans(s, waste=10_000)] == [(0, 2), (2, 6)], "single tokens need no attention: never joined"
    both = Segments(np.array([4, 4]), np.array([4, 4]), np.array([False, True]))
    assert len(spans(both, 10_000)) == 2, "causal ones are apart"
    assert spans(segments()) == []


def test_padding_and_its_reverse():
    element, place = padding(np.array([2, 0, 3]), 3)
    assert element.tolist() == [0, 1, 0, 0, 0, 0, 2, 3, 4]
    assert place.tolist() == [0, 1, 6, 7, 8]
    x = torch.arange(5.0, requires_grad=True)
    there = take(x, torch.from_numpy(element), torch.from_numpy(place))
    (there * torch.arange(9.0)).sum().backward()
    assert x.grad.tolist() == [0, 1, 6, 7, 8]


def test_starts_of_segments():
    blind, query, key = cumulative(segments((3, 0), (2, 0), (4, 2), (0, 5), (1, 1)))
    assert blind == 5
    assert query.tolist() == [0, 4, 4, 5] and key.tolist() == [0, 2, 7, 8]
    assert query.dtype == key.dtype == np.int32
    plan = planned(segments((3, 0), (4, 2), (1, 6)), CPU, varlen=True)
    assert isinstance(plan, Varlen) and (plan.blind, plan.query, plan.key) == (3, 4, 6)
    with pytest.raises(ValueError, match="must come first"):
        cumulative(segments((4, 2), (3, 0)))
    assert isinstance(planned(segments((2, 2), causal=True), CPU, varlen=True), Buckets), "in order, by the other way"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(length, length), max_size=8))
def test_varlen_is_called_with_what_it_wants(lengths):
    module = types.ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = varlen_attn
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch.nn.attention.varlen", module)
        s = segments(*sorted(lengths, key=lambda x: x[1] > 0))
        q, k, v = (torch.randn(int(n.sum()), 2, 4) for n in (s.query, s.key, s.key))
        torch.testing.assert_close(attend(q, k, v, planned(s, CPU, True)), by_hand(q, k, v, s))


def test_the_choice_of_kernel(monkeypatch):
    assert not takes_varlen(CPU, torch.bfloat16)
    gpu = torch.device("cuda")
    assert not takes_varlen(gpu, torch.float32)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not takes_varlen(gpu, torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert takes_varlen(gpu, torch.bfloat16)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    monkeypatch.delattr(torch.nn.attention, "varlen", raising=False)
    assert not takes_varlen(gpu, torch.bfloat16), "an older torch"


def test_the_kernel_that_this_imitates_has_these_arguments():
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    import inspect

    names = list(inspect.signature(varlen.varlen_attn).parameters)
    assert names[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]


@pytest.mark.gpu
def test_varlen_is_the_buckets_on_a_gpu():
    gpu = torch.device("cuda")
    s = segments((3, 0), (70, 5), (0, 4), (1, 1), (200, 130))
    q, k, v = (torch.randn(int(n.sum()), 2, 64, device=gpu, dtype=torch.bfloat16) for n in (s.query, s.key, s.key))
    found = []
    for varlen in (True, False):
        own = [x.detach().clone().requires_grad_() for x in (q, k, v)]
        out = attend(*own, planned(s, gpu, varlen))
        (out.float() ** 2).sum().backward()
        found.append([out, *(x.grad for x in own)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.float(), other.float(), atol=2e-2, rtol=2e-2)


def test_sdpa_is_what_the_buckets_use(monkeypatch):
    shapes = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(
        attention.F,
        "scaled_dot_product_attention",
        lambda q, *a, **k: shapes.append(tuple(q.shape)) or real(q, *a, **k),
    )
    q = torch.randn(24, 2, 4)
    attend(q, q, q, planned(segments(*((n, n) for n in (1, 1, 4, 4, 6, 8))), CPU, False, waste=0))
    assert shapes == [(2, 2, 4, 4), (1, 2, 6, 4), (1, 2, 8, 4)], "no padding, and none for single tokens"
