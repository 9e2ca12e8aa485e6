"""What numbers say of each other, beside the network."""

import numpy as np
import torch

from skycairn.model.forms import Form
from skycairn.model.packed import Packed
from skycairn.model.pairs import SCALE, TERMS, Pairs
from skycairn.model.rules import Dirichlet, Masker, Masking
from skycairn.model.smooth import cosines, together
from skycairn.model.transformer import Network
from skycairn.model.vocabulary import Vocabulary
from skycairn.pile.shards import TokenColumn

VOCABULARY = Vocabulary(
    (
        TokenColumn("desi.z", "z" * 64, 12, 1, "scalar", (), True, "tok_z"),
        TokenColumn("gaia.type", "t" * 64, 3, 1, "scalar", (), False, "tok_type"),
        TokenColumn("hsc.image", "i" * 64, 30, 9, "grid", (3, 3), False, "tok_image_hsc"),
        TokenColumn("hsc.mag_g", "g" * 64, 5, 1, "scalar", (), True, "tok_mag_g"),
        TokenColumn("sdss.z", "z" * 64, 12, 1, "scalar", (), True, "tok_z"),
    )
)
NUMBERS = [0, 3, 4]


def microbatch(seed: int, n: int = 40) -> Packed:
    rng = np.random.default_rng(seed)
    tokens = np.concatenate([rng.integers(0, c.vocabulary, (n, c.n_tokens)) for c in VOCABULARY.columns], axis=1)
    length = np.array([c.n_tokens for c in VOCABULARY.columns]) * (rng.random((n, len(VOCABULARY.columns))) < 0.7)
    return Masker(VOCABULARY, Masking(9, 5, components=(Dirichlet(),))).draw(tokens, length, rng)


def network(pairs: bool, counts=None) -> Network:
    torch.manual_seed(0)
    return Network(VOCABULARY, Form(1, 1, 16, 2, 32), counts=counts, pairs=pairs).eval()


def test_packed_pairs_are_the_sum_over_the_numbers_an_object_shows():
    rng = np.random.default_rng(0)
    counts = [rng.integers(0, 9, (c.n_tokens, c.vocabulary)) for c in VOCABULARY.columns]
    bare, net, packed = network(False, counts), network(True, counts), microbatch(1)
    net.load_state_dict(bare.state_dict(), strict=False)
    with torch.no_grad():
        for name, logits in net.logits(packed).items():
            assert torch.equal(logits, bare.logits(packed)[name]), "they start from nothing"
        net.pairs.weight.normal_()
        found, before = net.logits(packed), bare.logits(packed)
    weight = net.pairs.weight.detach().view(len(NUMBERS), TERMS, len(NUMBERS), TERMS)
    waves = {m: torch.zeros(VOCABULARY.columns[m].vocabulary, TERMS) for m in NUMBERS}
    for m in NUMBERS:
        own = cosines(VOCABULARY.columns[m].vocabulary, together(counts, VOCABULARY.twin, m))[:, 1 : 1 + TERMS]
        waves[m][:, : own.shape[1]] = torch.from_numpy(own)
    kinds = [VOCABULARY.modality_of_slot[slot] for slot in (packed.input_slot, packed.target_slot)]
    seen: dict[int, list[torch.Tensor]] = {m: [] for m in range(len(VOCABULARY.columns))}
    for i in range(packed.n_objects):
        for a in range(packed.target_start[i], packed.target_start[i + 1]):
            asked = int(kinds[1][a])
            said = torch.zeros(VOCABULARY.columns[asked].vocabulary)
            for s in range(packed.input_start[i], packed.input_start[i + 1]):
                shown = int(kinds[0][s])
                if shown in NUMBERS and asked in NUMBERS:
                    form = weight[NUMBERS.index(shown), :, NUMBERS.index(asked)]
                    said += SCALE * waves[asked] @ (waves[shown][packed.input_token[s]] @ form)
            seen[asked].append(said)
    assert sum(bool(rows) for rows in seen.values()) == len(VOCABULARY.columns)
    for m, rows in seen.items():
        name = VOCABULARY.names[m]
        torch.testing.assert_close(found[name], before[name] + torch.stack(rows), rtol=1e-4, atol=1e-5)


def test_a_number_that_is_dropped_is_not_heard_in_training_alone():
    pairs, packed = Pairs(VOCABULARY, dropout=0.5), microbatch(2)
    asked = np.argsort(VOCABULARY.modality_of_slot[packed.target_slot], kind="stable")
    pairing = pairs.pairing(packed, asked, torch.device("cpu"))
    with torch.no_grad():
        pairs.weight.normal_()
        exact = pairs.eval()(pairing)
        drawn = [pairs.train()(pairing) for _ in range(300)]
        assert not torch.equal(drawn[0][0], drawn[1][0])
        torch.testing.assert_close(torch.stack([d[0] for d in drawn]).mean(dim=0), exact[0], rtol=0.3, atol=0.7)


def test_each_weight_has_a_gradient_whatever_a_microbatch_holds():
    """Of one survey alone, say: of numbers none is asked for."""
    levels = {c.modality: (2, c.vocabulary // 2) for c in VOCABULARY.columns}
    for smooth, told in ((False, {}), (True, {}), (True, levels)):
        torch.manual_seed(0)
        net = Network(VOCABULARY, Form(1, 1, 16, 2, 32), smooth=smooth, pairs=True, levels=told)
        assert bool(len(net.head.parts)) == bool(told)
        slots = np.arange(2, 8, dtype=np.int32)
        start = np.array([0, 3], np.int64)
        net(Packed(slots[:3], 0 * slots[:3], start, slots[3:], 0 * slots[3:], start)).sums.sum().backward()
        assert all(p.grad is not None for p in net.parameters())


def test_a_microbatch_without_objects_says_nothing_of_numbers():
    nothing, start = np.zeros(0, np.int32), np.zeros(1, np.int64)
    found = network(True, [np.ones((c.n_tokens, c.vocabulary), np.int64) for c in VOCABULARY.columns])(
        Packed(nothing, nothing, start, nothing, nothing, start)
    )
    assert not found.counts.any() and not found.sums.any()
