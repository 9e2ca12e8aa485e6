"""The transformer against itself without packing, and what must hold of it whatever its weights."""

import sys
import types

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from skycairn.model import transformer
from skycairn.model.forms import FORMS, Form, flops, form_named
from skycairn.model.layout import Segments, lay_out
from skycairn.model.packed import Packed
from skycairn.model.sequence import sequenced
from skycairn.model.smooth import starting_logits, together
from skycairn.model.transformer import Network, equal_weights, objective, token_weights
from skycairn.model.vocabulary import Vocabulary
from skycairn.pile.shards import TokenColumn

FORM = Form(2, 2, 32, 4, 64)
VOCABULARY = Vocabulary(
    (
        TokenColumn("desi.z", "z" * 64, 12, 1, "scalar", (), True, "tok_z"),
        TokenColumn("hsc.image", "i" * 64, 30, 9, "grid", (3, 3), False, "tok_image_hsc"),
        TokenColumn("sdss.spectrum", "s" * 64, 20, 7, "line", (7,), True, "tok_spectrum_sdss"),
        TokenColumn("sdss.z", "z" * 64, 12, 1, "scalar", (), True, "tok_z"),
    )
)


def pack(objects) -> Packed:
    """From (slot, token) of what is shown, and of what is asked for, object by object."""
    out = []
    for side in (0, 1):
        pairs = [pair for each in objects for pair in each[side]]
        slot, token = (np.array([p[k] for p in pairs], np.int32) for k in (0, 1))
        out += [slot, token, np.append(0, np.cumsum([len(each[side]) for each in objects])).astype(np.int64)]
    return Packed(*out)


def objects(seed: int, counts) -> list:
    """Random tokens of objects of which so many are shown and asked for."""
    rng = np.random.default_rng(seed)
    out = []
    for shown, asked in counts:
        slots = rng.permutation(VOCABULARY.n_slots)
        sides = np.sort(slots[:shown]), np.sort(slots[shown:][:asked])
        kinds = [VOCABULARY.modality_of_slot[s] for s in sides]
        out.append(
            tuple(
                [(int(s), int(rng.integers(VOCABULARY.columns[m].vocabulary))) for s, m in zip(side, kind, strict=True)]
                for side, kind in zip(sides, kinds, strict=True)
            )
        )
    return out


RAGGED = [(5, 4), (0, 6), (9, 9), (7, 0), (0, 0), (5, 4), (1, 1), (12, 6)]
PACKED = pack(objects(0, RAGGED))


def network(seed=0, form=FORM, **options) -> Network:
    torch.manual_seed(seed)
    net = Network(VOCABULARY, form, **options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # nothing at 0 or 1, so that it counts
    return net.eval()


def ask(module, q, k, v, allowed):
    """Attention of padded objects, written out; a token that may ask nothing has 0."""

    def split(x):
        return x.unflatten(2, (FORM.heads, -1)).transpose(1, 2)

    q, k, v = module.q_norm(split(q)), module.k_norm(split(k)), split(v)
    scores = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).masked_fill(~allowed[:, None], -1e30)
    weight = scores.softmax(3) * allowed[:, None]
    return module.proj((weight @ v).transpose(1, 2).flatten(2))


def padded_logits(net: Network, packed: Packed) -> dict[str, torch.Tensor]:
    """The same network on objects padded to the longest."""
    n = packed.n_objects
    sides = []
    for slot, token, start in (packed[:3], packed[3:]):
        length = np.diff(start)
        there = np.arange(max(1, length.max(initial=0))) < length[:, None]
        both = [np.zeros(there.shape, np.int64) for _ in range(2)]
        both[0][there], both[1][there] = slot, token
        sides.append([torch.from_numpy(x) for x in (*both, there)])
    (slot, token, there), (asked, _, wanted) = sides
    kinds = torch.from_numpy(VOCABULARY.modality_of_slot)
    rows = token + torch.from_numpy(net._first_row)[kinds[slot]]
    here = net.slot(slot.flatten(), kinds[slot].flatten()).view(n, -1, FORM.width)
    x = net.token(rows.flatten()).view_as(here) + here
    see = there[:, None, :].expand(-1, there.shape[1], -1)
    for block in net.encoder:
        x = x + ask(block.attention, *block.attention.qkv(block.norm1(x)).chunk(3, 2), see)
        x = x + block.feed(block.norm2(x))
    context = net.context(net.encoder_norm(x)) + here
    y = net.asked + net.slot(asked.flatten(), kinds[asked].flatten()).view(n, -1, FORM.width)
    same = (kinds[asked][:, :, None] == kinds[asked][:, None, :]) & wanted[:, None, :]
    for block in net.decoder:
        y = y + ask(block.attention, *block.attention.qkv(block.norm1(y)).chunk(3, 2), same)
        q, kv = block.cross.q(block.query_norm(y)), block.cross.kv(block.context_norm(context)).chunk(2, 2)
        y = y + ask(block.cross, q, *kv, there[:, None, :].expand(-1, y.shape[1], -1))
        y = y + block.feed(block.norm2(y))
    y, kind = net.decoder_norm(y)[wanted], kinds[asked][wanted]
    tables = net.head.tables()
    return {name: F.linear(y[kind == m], tables[m]) for m, name in enumerate(VOCABULARY.names) if (kind == m).any()}


count = st.integers(0, 9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(count, count), min_size=1, max_size=7), st.integers(0, 5), st.booleans(), st.booleans())
def test_packed_is_padded(counts, seed, smooth, varlen):
    net, packed = network(smooth=smooth), pack(objects(seed, counts))
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        theirs = padded_logits(net, packed)
        if varlen:
            imitate_varlen(patch)
        ours = net.logits(packed)
        losses = net(packed)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=1e-5)
    kind = VOCABULARY.modality_of_slot[packed.target_slot]
    for m, name in enumerate(VOCABULARY.names):
        answer = torch.from_numpy(packed.target_token[kind == m]).long()
        assert losses.counts[m] == len(answer)
        wanted = F.cross_entropy(theirs[name], answer, reduction="sum") if len(answer) else torch.zeros(())
        torch.testing.assert_close(losses.sums[m], wanted, atol=1e-4, rtol=1e-5)


def imitate_varlen(patch) -> None:
    """The arithmetic of the GPU's way, with a stand-in for its kernel."""

    def varlen_attn(q, k, v, start_q, start_k, most_q, most_k):
        out = []
        for a, b, c, d in zip(start_q, start_q[1:], start_k, start_k[1:], strict=False):
            parts = (q[a:b], k[c:d], v[c:d])
            out.append(F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in parts)).transpose(0, 1))
        return torch.cat(out) if out else torch.zeros_like(q)

    module = types.ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = varlen_attn
    patch.setitem(sys.modules, "torch.nn.attention.varlen", module)
    patch.setattr(transformer, "takes_varlen", lambda device, dtype: True)


@pytest.mark.parametrize("varlen", [False, True])
def test_the_order_of_objects_does_not_matter(varlen, monkeypatch):
    if varlen:
        imitate_varlen(monkeypatch)
    net, own = network(), objects(1, RAGGED)
    order = np.random.default_rng(0).permutation(len(own))
    with torch.no_grad():
        one, other = net(pack(own)), net(pack([own[i] for i in order]))
        torch.testing.assert_close(one.sums, other.sums)
        parts = [net(pack([each])).sums for each in own]
        torch.testing.assert_close(one.sums, torch.stack(parts).sum(dim=0))
        whole = net.encode(pack(own))
        for i, each in enumerate(own):
            alone = net.encode(pack([each])).values
            torch.testing.assert_close(whole.values[whole.start[i] : whole.start[i + 1]], alone)


def test_no_token_is_left_out_of_an_embedding():
    net = network()
    every = pack(objects(2, [(VOCABULARY.n_slots, 0), (3, 2), (0, 1)]))
    found = net.encode(every)
    assert found.values.shape == (VOCABULARY.n_slots + 3, FORM.width)
    padded, there = found.padded()
    assert padded.shape == (3, VOCABULARY.n_slots, FORM.width) and there.sum(dim=1).tolist() == [18, 3, 0]
    assert torch.equal(padded[there], found.values) and not padded[~there].any()


@pytest.mark.parametrize(
    "options", [{}, {"smooth": True, "pairs": True}, {"sequences": ["sdss.spectrum"]}, {"learned_slots": False}]
)
def test_the_gradient_reaches_every_parameter(options):
    net = network(**options)
    losses = net(pack(objects(3, [(9, 9)] * 40)))
    objective(losses, losses.counts, equal_weights(losses.counts)).backward()
    unreached = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unreached
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_microbatches_add_up_to_the_step():
    net, own = network(), objects(4, RAGGED)
    whole = net(pack(own))
    for weigh in (equal_weights, token_weights):
        weights = weigh(whole.counts)
        assert np.isclose(weights.sum(), 1)
        at_once = objective(whole, whole.counts, weights)
        parts = [net(pack(own[:3])), net(pack(own[3:]))]
        assert (parts[0].counts + parts[1].counts == whole.counts).all()
        torch.testing.assert_close(sum(objective(p, whole.counts, weights) for p in parts), at_once)
    torch.testing.assert_close(at_once, whole.sums.sum() / len(PACKED.target_slot), msg="of tokens, their mean")


def test_what_is_empty_is_no_trouble():
    net = network().train()
    for counts in ([(0, 0)], [(4, 0)], [(0, 4)], [(1, 1)], [(1, 1), (4, 0)], [(0, 0), (0, 3), (2, 0)]):
        losses = net(pack(objects(0, counts)))
        loss = objective(losses, losses.counts, equal_weights(losses.counts))
        assert torch.isfinite(loss)
        net.zero_grad(set_to_none=True)
        loss.backward()
        # processes that share weights wait for each other's gradients, and Adam counts steps
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
    assert net.logits(pack(objects(0, [(4, 0)]))) == {}


def test_what_shows_nothing_is_foretold_from_its_slots_alone():
    net = network()
    one, other = objects(5, [(0, 6)])[0], objects(6, [(9, 3)])[0]
    with torch.no_grad():
        alone, beside = net.logits(pack([one])), net.logits(pack([other, one]))
    for name, logits in alone.items():
        torch.testing.assert_close(beside[name][-len(logits) :], logits)


def test_bf16_is_near_and_its_losses_and_gradients_are_fp32():
    net = network()
    exact = net(PACKED)
    half = net.compute_in(torch.bfloat16)(PACKED)
    assert half.sums.dtype == torch.float32
    torch.testing.assert_close(half.sums, exact.sums, atol=0.5, rtol=0.02)
    half.sums.sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in net.parameters())
    with pytest.raises(ValueError, match=r"torch.float64 was asked for; wanted"):
        net.compute_in(torch.float64)


def test_dropout_is_for_training():
    net = network(form=form_of_dropout())
    with torch.no_grad():
        assert torch.equal(net(PACKED).sums, net(PACKED).sums)
        net.train()
        assert not torch.equal(net(PACKED).sums, net(PACKED).sums)


def form_of_dropout() -> Form:
    return Form(2, 2, 32, 4, 64, dropout=0.2)


def test_modalities_of_one_codec_share_their_rows():
    net = network()
    assert net.token.weight.shape == (12 + 30 + 20, FORM.width)
    tables = net.head.tables()
    assert torch.equal(tables[0], tables[3]) and [len(t) for t in tables] == [12, 30, 20, 12]
    z = int(VOCABULARY.first_slot[3])
    assert net.prepared(pack([([(0, 5), (z, 5)], [])])).row.tolist() == [5, 5]


@pytest.mark.parametrize("smooth", [False, True])
def test_tables_and_gathers_are_of_the_same_rows(smooth):
    table = network(smooth=smooth).token
    rows = torch.arange(62)
    together_ = torch.cat(table.tables()[:3])
    torch.testing.assert_close(table(rows), together_)
    if smooth:
        start = Network(VOCABULARY, FORM, smooth=True).token
        assert not start.weight[:12].any() and start.weight[12:42].any(), (
            "ordered codecs start with no rows of their own"
        )


def test_tokens_of_several_numbers_start_smooth_in_each_of_them():
    image = VOCABULARY.columns[1]
    table = Network(VOCABULARY, FORM, smooth=True, levels={image.modality: (5, 6)}).token
    rows = torch.arange(62)
    torch.testing.assert_close(table(rows), torch.cat(table.tables()[:3]))
    assert not table.weight[12:42].any()
    # how far apart tokens are that differ by one in the first number (which goes round fastest), and by three
    vectors = table.tables()[1].detach().view(6, 5, -1)
    apart = [(vectors[:, k:] - vectors[:, : 5 - k]).norm(dim=-1).mean() for k in (1, 3)]
    assert apart[0] < 0.8 * apart[1]
    table(torch.tensor([13, 0, 13])).sum().backward()
    assert table.parts[0].grad is not None and table.parts[0].grad.any()
    assert not Network(VOCABULARY, FORM, smooth=False, levels={image.modality: (5, 6)}).token.parts


def test_logits_start_from_the_counts_of_their_slots():
    rng = np.random.default_rng(0)
    counts = [rng.integers(0, 9, (c.n_tokens, c.vocabulary)) for c in VOCABULARY.columns]
    torch.manual_seed(0)
    net, bare = Network(VOCABULARY, FORM, counts=counts), Network(VOCABULARY, FORM)
    bare.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("starts")})
    slot = PACKED.target_slot
    with torch.no_grad():
        for name, logits in net.logits(PACKED).items():
            m = VOCABULARY.names.index(name)
            own = slot[VOCABULARY.modality_of_slot[slot] == m] - VOCABULARY.first_slot[m]
            ordered, every = VOCABULARY.columns[m].ordered, together(counts, VOCABULARY.twin, m)
            start = torch.from_numpy(starting_logits(counts[m], ordered, every))[own]
            torch.testing.assert_close(logits, bare.logits(PACKED)[name] + start)


def test_what_breaks_the_contract_is_refused():
    net = network()
    for change, message in (
        ({"input_slot": PACKED.input_slot + 18}, r"slots 0 to 17: was it masked with another vocabulary"),
        ({"target_token": PACKED.target_token + 30}, r"was it encoded with another codec"),
        ({"input_start": PACKED.input_start[1:]}, r"wanted one more than there are objects"),
        ({"input_start": PACKED.input_start + 1}, r"wanted as many of each, and starts that rise"),
        (
            {"input_slot": PACKED.input_slot[::-1].copy(), "input_token": 0 * PACKED.input_token},
            r"wanted slots that asc",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            net(PACKED._replace(**change))
    with pytest.raises(ValueError, match=r"sequences \['a.b'\] are none of desi.z"):
        Network(VOCABULARY, FORM, sequences=["a.b"])


def test_sequences_foretell_their_next_token():
    first = int(VOCABULARY.first_slot[2])
    packed = pack([([(1, 0), (first + 2, 4), (first + 5, 6)], [(2, 7), *((first + i, 10 + i) for i in (3, 4, 6))])])
    out, before = sequenced(packed, VOCABULARY, [2])
    assert out.input_slot.tolist() == [1, first, first + 1] and out.input_token.tolist() == [0, 4, 6]
    assert out.target_slot.tolist() == [2, first, first + 1]
    assert out.target_token.tolist() == [7, 14, 16] and before.tolist() == [-1, 13, 14]
    assert out.target_start.tolist() == [0, 3]
    net = network(sequences=["sdss.spectrum"])
    with torch.no_grad():
        plain = net.logits(packed)["sdss.spectrum"]
        packed.target_token[3] += 1
        assert torch.equal(net.logits(packed)["sdss.spectrum"], plain), "the last one is only an answer"
        packed.target_token[2] += 1
        later = net.logits(packed)["sdss.spectrum"]
    torch.testing.assert_close(later[0], plain[0])
    assert not torch.allclose(later[1], plain[1])


def test_layouts_keep_what_belongs_together():
    for by_length in (False, True):
        layout = lay_out(PACKED, VOCABULARY, by_length)
        assert sorted(layout.shown) == list(range(len(PACKED.input_slot)))
        assert sorted(layout.asked) == list(range(len(PACKED.target_slot)))
        assert layout.encoder_segments.query.sum() == len(layout.shown) == layout.cross_segments.key.sum()
        assert layout.decoder_segments.query.sum() == len(layout.asked) == layout.cross_segments.query.sum()
        of = np.repeat(np.arange(len(RAGGED)), np.diff(PACKED.target_start))
        kind = VOCABULARY.modality_of_slot[PACKED.target_slot]
        ends = np.cumsum(layout.decoder_segments.query)
        for a, b in zip(np.append(0, ends[:-1]), ends, strict=True):
            assert len({(of[i], kind[i]) for i in layout.asked[a:b]}) == 1
        assert (np.diff(kind[layout.asked][layout.by_modality]) >= 0).all()
        if by_length:
            assert (np.diff(layout.encoder_segments.query) >= 0).all() and (
                np.diff(layout.decoder_segments.query) >= 0
            ).all()


def test_flops_are_those_that_torch_counts():
    """Attention of single tokens is left out by the network and counted by the formula: here are none."""
    spectrum = np.arange(7) + int(VOCABULARY.first_slot[2])
    shown = [(int(s), 1) for s in range(1, 10)]
    packed = pack([(shown, [(int(s), 2) for s in spectrum])] * 4)
    net = network(form=Form(2, 3, 32, 4, 80))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        losses = net(packed)
    said = flops(net.form, VOCABULARY, net.prepared(packed).layout)
    assert counter.get_total_flops() == said.forward
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        losses.sums.sum().backward()
    # no gradient is wanted of what nothing learned is behind: here there is no such product
    assert counter.get_total_flops() + said.forward == said.training


def test_flops_of_base_are_those_of_the_formula():
    d, n, m, layers = 768, 256, 128, 12
    columns = (TokenColumn("a.image", "a", 4375, 576, "grid", (24, 24), False, "tok_image"),)
    packed = Packed(
        np.arange(n, dtype=np.int32), np.zeros(n, np.int32), np.array([0, n]),
        np.arange(n, n + m, dtype=np.int32), np.zeros(m, np.int32), np.array([0, m]),
    )  # fmt: skip
    vocabulary = Vocabulary(columns)
    said = flops(FORMS["base"], vocabulary, lay_out(packed, vocabulary, True))
    assert said.blocks == 28 * layers * d * d * (n + m)
    assert said.attention == 4 * d * layers * (n * n + m * m + m * n)
    assert said.context == 2 * n * d * d and said.heads == 2 * m * d * 4375


def test_forms():
    assert FORMS["base"] == Form(12, 12, 768, 12, 2048)
    own = [FORMS[name] for name in ("nano", "micro", "tiny", "small", "base", "large", "xlarge")]
    assert all(f.hidden % 64 == 0 and f.hidden >= 8 * f.width / 3 for f in own)
    assert form_named("tiny", 0.1) == Form(6, 6, 384, 6, 1024, 0.1)
    with pytest.raises(ValueError, match="no size 'giant'; choose one of nano"):
        form_named("giant")
    for wrong in ((2, 2, 30, 4, 64), (0, 2, 32, 4, 64), (2, 2, 32, 4, 64, 1.0)):
        with pytest.raises(ValueError, match="wanted"):
            Form(*wrong)


def test_segments_of_a_layout_are_numpy():
    assert isinstance(lay_out(PACKED, VOCABULARY, True).cross_segments, Segments)
