"""Generation from a distribution that is known, and from a real network whatever its weights."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from skycairn.model.forms import Form
from skycairn.model.generate import Shown, distribution, generate, log_probability, shown_of
from skycairn.model.schemes import Autoregressive, MaskGit, Roar, Target
from skycairn.model.transformer import Network
from skycairn.model.vocabulary import Vocabulary
from skycairn.pile.shards import TokenArray, TokenColumn

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = Vocabulary(
    (
        TokenColumn("a.z", "z" * 64, 4, 1, "scalar", (), True, "tok_z"),
        TokenColumn("b.line", "l" * 64, 3, 3, "line", (3,), False, "tok_line"),
        TokenColumn("c.objects", "o" * 64, 5, 4, "sequence", (4,), False, "catalog"),
        TokenColumn("d.z", "z" * 64, 4, 1, "scalar", (), True, "tok_z"),
    )
)
WIDE = Vocabulary(
    (
        TokenColumn("desi.z", "z" * 64, 12, 1, "scalar", (), True, "tok_z"),
        TokenColumn("hsc.image", "i" * 64, 30, 9, "grid", (3, 3), False, "tok_image_hsc"),
        TokenColumn("sdss.spectrum", "s" * 64, 20, 7, "line", (7,), True, "tok_spectrum_sdss"),
        TokenColumn("sdss.z", "z" * 64, 12, 1, "scalar", (), True, "tok_z"),
    )
)


class Known:
    """Foretells each asked slot of a.z and b.line by its exact conditional given what of them is shown."""

    vocabulary = SMALL

    def __init__(self, seed: int = 0) -> None:
        p = np.random.default_rng(seed).gamma(0.7, size=(4, 3, 3, 3))
        self.p = p / p.sum()
        "of a.z and the three tokens of b.line"
        self.seen: list = []

    def logits(self, packed):
        rows = {name: [] for name in SMALL.names}
        for i in range(packed.n_objects):
            own = slice(*packed.input_start[i : i + 2])
            shown = dict(zip(packed.input_slot[own].tolist(), packed.input_token[own].tolist(), strict=True))
            asked = packed.target_slot[slice(*packed.target_start[i : i + 2])].tolist()
            self.seen.append((shown, asked))
            for slot in asked:
                assert slot not in shown
                rest = self.p[tuple(slice(None) if s not in shown else slice(shown[s], shown[s] + 1) for s in range(4))]
                told = rest.sum(axis=tuple(s for s in range(4) if s != slot))
                rows[SMALL.names[SMALL.modality_of_slot[slot]]].append(np.log(told / told.sum()))
        return {name: torch.from_numpy(np.array(r)).float() for name, r in rows.items() if r}


def nothing(n: int = 1) -> Shown:
    return Shown(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(n + 1, np.int64))


def z_is(*tokens: int) -> Shown:
    n = len(tokens)
    return Shown(np.zeros(n, np.int32), np.array(tokens, np.int32), np.arange(n + 1))


def fits(tokens: np.ndarray, p: np.ndarray) -> bool:
    """Whether draws (n, k) are of the joint distribution p."""
    counts = np.zeros(p.shape)
    np.add.at(counts, tuple(tokens.T), 1)
    assert counts[p == 0].sum() == 0
    return chisquare(counts[p > 0], p[p > 0] * len(tokens)).pvalue > 1e-3


@pytest.mark.parametrize("scheme", [Roar(1), Autoregressive()])
def test_one_token_at_a_time_draws_the_joint_distribution(scheme):
    net = Known()
    joint = net.p[2] / net.p[2].sum()
    tokens = generate(net, z_is(2), [Target("b.line", scheme)], n_samples=8_000, batch=8_000)["b.line"]
    assert tokens.shape == (1, 8_000, 3)
    assert fits(tokens[0], joint)


def test_a_chain_draws_the_joint_distribution_of_its_targets():
    net = Known(1)
    found = generate(net, nothing(), [Target("b.line", Roar()), "a.z"], n_samples=8_000, batch=8_000, seed=2)
    assert fits(np.concatenate([found["a.z"][0], found["b.line"][0]], axis=1), net.p)
    # the other way round is the same distribution, of other draws
    found = generate(net, nothing(), ["a.z", Target("b.line", Roar())], n_samples=8_000, batch=8_000, seed=2)
    assert fits(np.concatenate([found["a.z"][0], found["b.line"][0]], axis=1), net.p)


def test_all_at_once_draws_each_token_by_itself():
    net = Known()
    tokens = generate(net, z_is(1), [Target("b.line", MaskGit(1))], n_samples=8_000, batch=8_000)["b.line"][0]
    for k in range(3):
        p = net.p[1].sum(axis=tuple({0, 1, 2} - {k}))
        assert fits(tokens[:, [k]], p / p.sum())


def test_samples_of_a_scalar_are_of_its_distribution():
    net = Known()
    p = distribution(net, nothing(), "a.z")
    np.testing.assert_allclose(p, net.p.sum(axis=(1, 2, 3))[None], rtol=1e-5)
    tokens = generate(net, nothing(), ["a.z"], n_samples=8_000)["a.z"][0]
    assert fits(tokens, p[0])
    assert len(net.seen) < 100, "samples that show and ask the same are one pass of one object"


@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 3.0, -1.0])
def test_guidance_is_its_formula(w):
    net = Known()
    conditional, alone = net.p[3].sum(axis=(1, 2)), net.p.sum(axis=(0, 2, 3))
    conditional, alone = conditional / conditional.sum(), alone / alone.sum()
    p = np.exp(np.log(alone) + w * (np.log(conditional) - np.log(alone)))
    first = Target("b.line", Autoregressive(), guidance=w)
    tokens = generate(net, z_is(3), [first], n_samples=8_000, batch=8_000)["b.line"][0]
    assert fits(tokens[:, [0]], p / p.sum())


def test_guidance_1_is_plain_and_asks_for_nothing_more():
    plain, guided = Known(), Known()
    found = [
        generate(net, z_is(0, 3), [Target("b.line", Roar(), **extra)], n_samples=20)["b.line"]
        for net, extra in ((plain, {}), (guided, {"guidance": 1.0}))
    ]
    np.testing.assert_array_equal(*found)
    assert plain.seen == guided.seen


def test_the_unconditional_shows_what_was_generated_alone():
    net = Known()
    generate(net, z_is(2), [Target("b.line", Autoregressive(), guidance=2.0)], seed=1)
    shown = [set(s) for s, _ in net.seen]
    assert len(shown) == 6
    assert [s for s in shown if 0 not in s] == [set(), {1}, {1, 2}]
    assert [s for s in shown if 0 in s] == [{0}, {0, 1}, {0, 1, 2}]


def test_what_is_shown_of_a_target_stays_and_the_rest_is_filled():
    net = Known()
    shown = Shown(np.array([2, 1, 2, 3], np.int32), np.array([2, 0, 1, 2], np.int32), np.array([0, 1, 4, 4]))
    found = generate(net, shown, [Target("b.line", Roar())], n_samples=3)["b.line"]
    assert (found[0, :, 1] == 2).all() and (found[1] == [0, 1, 2]).all()
    assert ((found >= 0) & (found < 3)).all()
    assert {len(a) for _, a in net.seen} == {1}


SCHEMES = [
    MaskGit(1),
    MaskGit(4),
    MaskGit(8, "linear"),
    MaskGit(5, noise=3.0),
    Roar(1),
    Roar(4),
    Roar(99),
    Autoregressive(),
]


class Counting:
    """Foretells token k of slot k surely, and keeps who asked."""

    vocabulary = WIDE

    def __init__(self) -> None:
        self.filled: dict = {}
        self.steps = 0

    def logits(self, packed):
        self.steps += 1
        first = WIDE.first_slot[WIDE.modality_of_slot[packed.target_slot]]
        names = {WIDE.names[m] for m in WIDE.modality_of_slot[packed.target_slot]}
        assert len(names) == 1
        name = names.pop()
        out = torch.full((len(packed.target_slot), WIDE.columns[WIDE.names.index(name)].vocabulary), -50.0)
        out[np.arange(len(out)), packed.target_slot - first] = 50.0
        shown = set(packed.input_slot.tolist())
        assert not shown & set(packed.target_slot.tolist())
        self.filled[self.steps] = shown
        return {name: out}


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_every_slot_is_filled_exactly_once(scheme):
    net = Counting()
    found = generate(net, nothing(), [Target("hsc.image", scheme), Target("sdss.spectrum", scheme)])
    np.testing.assert_array_equal(found["hsc.image"][0, 0], np.arange(9))
    np.testing.assert_array_equal(found["sdss.spectrum"][0, 0], np.arange(7))
    # what was shown once is shown ever after, and all of the first is before the second begins
    order = [net.filled[i] for i in sorted(net.filled)]
    assert all(a < b for a, b in itertools.pairwise(order))
    counts = {MaskGit: lambda n: min(scheme.steps, n), Roar: lambda n: scheme.n_steps(n)}
    most = [counts.get(type(scheme), lambda n: n)(n) for n in (9, 7)]
    assert net.steps <= sum(most)
    if not isinstance(scheme, MaskGit):
        assert net.steps == sum(most)


def test_orders_of_roar_differ_by_sample_and_are_even():
    net = Known()
    first = []
    net.logits = lambda packed, plain=net.logits: (
        first.append(packed.target_slot[np.diff(packed.input_start) == 0]),
        plain(packed),
    )[1]
    generate(net, nothing(150), [Target("b.line", Roar())], batch=1)
    counts = np.bincount(np.concatenate(first), minlength=4)[1:4]
    assert counts.sum() == 150 and chisquare(counts).pvalue > 1e-3


def test_maskgit_keeps_the_surest_and_noise_changes_that():
    class Sure(Counting):
        def logits(self, packed):
            out = super().logits(packed)
            # of later slots it is surer
            return {k: v * torch.from_numpy(packed.target_slot[:, None] / 100).float() for k, v in out.items()}

    plain, noisy = Sure(), Sure()
    generate(plain, nothing(), [Target("hsc.image", MaskGit(9, "linear"), temperature=0)])
    kept = [plain.filled[i + 1] - plain.filled[i] for i in range(1, 9)]
    assert kept == [{s} for s in range(9, 1, -1)]
    generate(noisy, nothing(), [Target("hsc.image", MaskGit(9, "linear", noise=1e6), temperature=0)])
    assert [noisy.filled[i + 1] - noisy.filled[i] for i in range(1, 9)] != kept


FORM = Form(2, 2, 32, 4, 64)


@pytest.fixture(scope="module")
def net() -> Network:
    torch.manual_seed(0)
    found = Network(WIDE, FORM)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return found.eval()


def shows(n: int, seed: int = 0) -> Shown:
    """Random tokens of n objects, of which some show nothing and some all but one modality."""
    rng = np.random.default_rng(seed)
    slots, tokens, lengths = [], [], []
    for i in range(n):
        own = np.flatnonzero(rng.random(WIDE.n_slots) < [0.0, 0.3, 0.8][i % 3])
        slots.append(own)
        tokens.append([rng.integers(WIDE.columns[m].vocabulary) for m in WIDE.modality_of_slot[own]])
        lengths.append(len(own))
    return Shown(
        np.concatenate(slots).astype(np.int32),
        np.concatenate(tokens).astype(np.int32),
        np.append(0, np.cumsum(lengths)),
    )


def picked(shown: Shown, order) -> Shown:
    parts = [slice(*shown.start[i : i + 2]) for i in order]
    return Shown(
        np.concatenate([shown.slot[p] for p in parts]),
        np.concatenate([shown.token[p] for p in parts]),
        np.append(0, np.cumsum([p.stop - p.start for p in parts])),
    )


CHAIN = [
    Target("sdss.spectrum", Roar(3), temperature=0.9, top_p=0.95),
    Target("hsc.image", MaskGit(3, noise=1.0), top_k=9, guidance=1.5),
    "sdss.z",
]


@settings(max_examples=15)
@given(st.permutations(range(6)), st.integers(1, 6), st.integers(1, 20), st.integers(1, 3))
def test_a_sample_hangs_on_seed_object_and_number_alone(net, order, n, batch, n_samples):
    shown = shows(6)
    whole = generate(net, shown, CHAIN, n_samples=3, seed=4)
    some = list(order)[:n]
    found = generate(net, picked(shown, some), CHAIN, n_samples=n_samples, seed=4, ids=some, batch=batch)
    for name, tokens in found.items():
        np.testing.assert_array_equal(tokens, whole[name][some, :n_samples])


def test_seeds_samples_and_objects_differ(net):
    shown = picked(shows(2), [1, 1])
    found = generate(net, shown, ["hsc.image"], n_samples=2, seed=1)["hsc.image"]
    other = generate(net, shown, ["hsc.image"], n_samples=2, seed=2)["hsc.image"]
    several = [found[0, 0], found[0, 1], found[1, 0], found[1, 1], other[0, 0]]
    free = generate(net, nothing(), ["hsc.image"], n_samples=2, seed=1)["hsc.image"]
    assert not (free[0, 0] == free[0, 1]).all()
    assert len({tuple(s) for s in several}) > 1


def test_torch_and_numpys_own_generators_are_left_alone(net):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    net.train()
    first = generate(net, shows(3), CHAIN, seed=1)
    assert torch.equal(torch.get_rng_state(), state) and net.training
    torch.manual_seed(99)
    net.eval()
    again = generate(net, shows(3), CHAIN, seed=1)
    assert all((first[k] == again[k]).all() for k in first)


def test_half_precision_is_drawn_from_too(net):
    exact = distribution(net, nothing(), "sdss.z")
    try:
        net.compute_in(torch.bfloat16)
        np.testing.assert_allclose(distribution(net, nothing(), "sdss.z"), exact, atol=0.05)
        found = generate(net, shows(3), CHAIN, n_samples=2)
        assert all((tokens >= 0).all() for tokens in found.values())
    finally:
        net.compute_in(torch.float32)


def test_temperature_0_is_one_answer(net):
    found = generate(
        net, shows(3), [Target("sdss.z", temperature=0), Target("hsc.image", MaskGit(), temperature=0)], n_samples=4
    )
    for tokens in found.values():
        assert (tokens == tokens[:, :1]).all()
    p = distribution(net, nothing(2), "sdss.z")
    greedy = generate(net, nothing(2), [Target("sdss.z", temperature=0)])["sdss.z"]
    np.testing.assert_array_equal(greedy[:, 0, 0], p.argmax(axis=1))


def test_probabilities_of_all_answers_add_up_to_one():
    net = Known()
    every = np.array(list(itertools.product(range(3), repeat=3)))
    said = log_probability(net, z_is(*[2] * 27), "b.line", every, batch=7)
    np.testing.assert_allclose(said, np.log((net.p[2] / net.p[2].sum()).ravel()), rtol=1e-4)
    assert math.isclose(np.exp(said).sum(), 1.0, rel_tol=1e-5)


def test_distributions_hang_on_nothing_but_what_is_shown(net):
    shown = picked(shows(30), [i for i in range(30) if 17 not in shows(30).slot[slice(*shows(30).start[i : i + 2])]])
    p = distribution(net, shown, "sdss.z")
    assert p.shape == (shown.n_objects, 12) and p.dtype == np.float64
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_allclose(distribution(net, shown, "sdss.z", batch=2), p, rtol=1e-4)


def test_no_objects_are_no_tokens(net):
    assert generate(net, nothing(0), ["hsc.image"], n_samples=2)["hsc.image"].shape == (0, 2, 9)
    assert distribution(net, nothing(0), "sdss.z").shape == (0, 12)


def test_logits_that_are_no_numbers_are_refused(net):
    class Bad(Counting):
        def logits(self, packed):
            return {k: v * math.nan for k, v in super().logits(packed).items()}

    for guidance in (1.0, 2.0):
        with pytest.raises(ValueError, match="logits are no distribution"):
            generate(Bad(), nothing(), [Target("hsc.image", guidance=guidance)])
    with pytest.raises(ValueError, match="logits are no distribution"):
        distribution(Bad(), nothing(), "sdss.z")


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: generate(Known(), nothing(), ["a.z"], n_samples=0), "n_samples is 0; wanted"),
        (lambda: generate(Known(), nothing(), ["a.z"], n_samples=-3), "n_samples is -3; wanted"),
        (
            lambda: generate(Known(), nothing(), ["e.z"]),
            "no modality 'e.z'; the network knows a.z, b.line, c.objects, d.z",
        ),
        (lambda: generate(Known(), nothing(), ["c.objects"]), "c.objects is a sequence"),
        (lambda: generate(Known(), nothing(2), ["a.z"], ids=[1]), "1 unlike ids of 2 objects"),
        (lambda: generate(Known(), nothing(2), ["a.z"], ids=[1, "1"]), "1 unlike ids of 2 objects"),
        (lambda: generate(Known(), nothing(), ["a.z"], batch=0), "batch is 0"),
        (lambda: generate(Known(), z_is(4), ["b.line"]), "input token 4 of a.z, whose vocabulary is 0 to 3"),
        (lambda: distribution(Known(), nothing(), "b.line"), "b.line is 3 tokens"),
        (lambda: distribution(Known(), z_is(0, 1), "a.z"), "object 0 shows a.z, of which it is asked"),
        (
            lambda: log_probability(Known(), nothing(), "b.line", np.zeros((1, 2), int)),
            r"shape \(1, 2\); wanted \(1, 3\)",
        ),
        (lambda: log_probability(Known(), nothing(), "c.objects", np.zeros((1, 4), int)), "c.objects is a sequence"),
    ],
)
def test_requests_that_cannot_be_met_say_why(call, told):
    with pytest.raises(ValueError, match=told):
        call()


def test_what_a_network_reads_from_left_to_right_is_not_asked_for():
    torch.manual_seed(0)
    reading = Network(WIDE, FORM, sequences=["sdss.spectrum"]).eval()
    with pytest.raises(ValueError, match=r"reads sdss.spectrum from left to right"):
        generate(reading, nothing(), ["sdss.z", "sdss.spectrum"])
    assert generate(reading, shows(3), ["hsc.image"])["hsc.image"].shape == (3, 1, 9)


def test_tokens_become_what_is_shown():
    values = np.array([[1, 2, 3, 0], [4, 0, 0, 0]], np.uint16)
    tokens = {
        "c.objects": TokenArray(values, np.array([True, True]), np.array([3, 0])),
        "a.z": TokenArray(np.array([[3], [2]]), np.array([False, True]), np.array([0, 1])),
    }
    shown = shown_of(SMALL, tokens, 2)
    assert shown.slot.tolist() == [4, 5, 6, 0] and shown.token.tolist() == [1, 2, 3, 2]
    assert shown.start.tolist() == [0, 3, 4]
    with pytest.raises(ValueError, match=r"a.z: tokens of shape \(2, 1\).* wanted \(3, 1\)"):
        shown_of(SMALL, {"a.z": tokens["a.z"]}, 3)
