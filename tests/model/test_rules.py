"""Masks: what they promise of every object, and how each rule's choices are distributed."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from skycairn.model.rules import Beta, Dirichlet, Masker, Masking, Uniform, in_proportion
from skycairn.model.vocabulary import Vocabulary
from skycairn.pile.shards import TokenColumn

COLUMNS = (
    TokenColumn("desi.spectrum", "d" * 64, 900, 9, "line", (9,), False, "tok_spectrum_desi"),
    TokenColumn("desi.z", "e" * 64, 50, 1, "scalar", (), True, "tok_z"),
    TokenColumn("gaia.flux", "b" * 64, 50, 1, "scalar", (), True, "tok_flux"),
    TokenColumn("gaia.parallax", "c" * 64, 50, 1, "scalar", (), True, "tok_parallax"),
    TokenColumn("legacysurvey.catalog", "f" * 64, 30, 7, "sequence", (7,), False, "catalog"),
    TokenColumn("legacysurvey.image", "a" * 64, 4000, 16, "grid", (4, 4), False, "tok_image"),
)
VOCABULARY = Vocabulary(COLUMNS)
SIZES = np.array([c.n_tokens for c in COLUMNS])
SURVEY = VOCABULARY.survey[VOCABULARY.modality_of_slot]
RULES = (Beta(), Beta(0.1, 1.0, 1.0), Beta(fair=True), Dirichlet(), Dirichlet(0.02, 0.02), Uniform())


def generator(seed):
    return np.random.Generator(np.random.Philox(key=seed))


def filled(length, seed=0):
    """Tokens of objects with so many of each modality; 0 elsewhere."""
    length = np.asarray(length, np.int32).reshape(-1, len(COLUMNS))
    rng = np.random.default_rng(seed)
    tokens = np.zeros((len(length), VOCABULARY.n_slots), np.uint16)
    for m, c in enumerate(COLUMNS):
        there = np.arange(c.n_tokens) < length[:, m, None]
        part = slice(VOCABULARY.first_slot[m], VOCABULARY.first_slot[m + 1])
        tokens[:, part] = np.where(there, rng.integers(1, c.vocabulary, there.shape), 0)
    return tokens, length


def split(packed):
    """Slots and tokens, shown and asked for, of each object."""
    for i in range(packed.n_objects):
        a, b = packed.input_start[i : i + 2]
        c, d = packed.target_start[i : i + 2]
        yield packed.input_slot[a:b], packed.input_token[a:b], packed.target_slot[c:d], packed.target_token[c:d]


LENGTHS = st.lists(
    st.tuples(
        *(
            st.integers(0, n) if c.layout == "sequence" else st.sampled_from([0, n])
            for c, n in zip(COLUMNS, SIZES.tolist(), strict=True)
        )
    ),
    min_size=1,
    max_size=20,
)
MASKINGS = st.builds(
    Masking,
    inputs=st.integers(1, 40),
    targets=st.integers(1, 20),
    most_shown=st.sampled_from([0.3, 2 / 3, 0.99]),
    across_surveys=st.sampled_from([0.0, 0.5, 1.0]),
    components=st.lists(st.sampled_from(RULES), min_size=1, max_size=3),
)


@given(LENGTHS, MASKINGS, st.integers(0, 1 << 70))
@settings(max_examples=300, deadline=None)
def test_masks_keep_their_promises(lengths, masking, seed):
    tokens, length = filled(lengths)
    packed = Masker(VOCABULARY, masking).draw(tokens, length, generator(seed))
    some = np.flatnonzero(length.any(axis=1))
    assert packed.n_objects == len(some), "an object without a token is left out, and no other"
    assert [a.dtype for a in packed] == [np.int32, np.int32, np.int64] * 2
    exact = not any(isinstance(c, Beta) for c in masking.components)
    for i, (shown, shown_token, asked, asked_token) in zip(some, split(packed), strict=True):
        there = np.flatnonzero(tokens[i])
        total = len(there)
        assert total == length[i].sum()
        assert not set(shown) & set(asked), "nothing is both"
        assert set(shown) | set(asked) <= set(there), "only what is there"
        assert (np.diff(shown) > 0).all() and (np.diff(asked) > 0).all(), "slots ascend, none twice"
        assert (tokens[i, shown] == shown_token).all() and (tokens[i, asked] == asked_token).all()
        assert len(shown) <= masking.inputs and 1 <= len(asked) <= masking.targets
        if total == 1:
            assert not len(shown)
        elif masking.across_surveys == 0:
            most = max(1, int(masking.most_shown * total + 1e-9))
            assert len(shown) <= min(masking.inputs, most)
            if exact:
                assert len(shown) == min(masking.inputs, most), "the budget is met to the token"
                assert len(asked) == min(masking.targets, total - len(shown))
            else:
                assert len(shown) >= 1
        if masking.across_surveys == 1 and len(set(SURVEY[there])) > 1:
            assert not set(SURVEY[shown]) & set(SURVEY[asked]), "no survey is both"
            assert len(shown)


def test_a_mask_hangs_on_its_generator_alone():
    tokens, length = filled([[9, 1, 1, 1, 4, 16]] * 50)
    masker = Masker(VOCABULARY, Masking(20, 10, across_surveys=0.3, components=RULES))
    one, two, other = (masker.draw(tokens, length, generator(k)) for k in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(one, two, strict=True))
    assert one.input_slot.tolist() != other.input_slot.tolist()


def test_no_objects_and_no_tokens():
    tokens, length = filled(np.zeros((3, 6)))
    for rows in (slice(0, 0), slice(0, 3)):
        packed = Masker(VOCABULARY, Masking()).draw(tokens[rows], length[rows], generator(0))
        assert packed.n_objects == 0 and not len(packed.input_slot) and packed.target_start.tolist() == [0]


def shown_and_asked(lengths, masking, n=20_000, seed=5):
    length = np.tile(np.asarray(lengths, np.int64), (n, 1))
    return Masker(VOCABULARY, masking).counts(length, generator(seed))


def test_uniform_is_a_draw_without_return():
    full = SIZES
    shown, asked = shown_and_asked(full, Masking(10, 8, components=(Uniform(),)))
    total = int(full.sum())
    for m, size in enumerate(full.tolist()):
        for count, drawn in ((shown, 10), (asked, 8)):
            law = stats.hypergeom(total, size, drawn)
            seen = np.bincount(count[:, m], minlength=size + 1)
            expected = law.pmf(np.arange(len(seen))) * len(count)
            some = expected > 5
            assert stats.chisquare(seen[some], expected[some] * seen[some].sum() / expected[some].sum()).pvalue > 1e-4


def test_every_token_of_a_modality_is_taken_alike():
    tokens, length = filled([[9, 1, 1, 1, 5, 16]] * 20_000)
    for rule in (Uniform(), Dirichlet(), Beta()):
        packed = Masker(VOCABULARY, Masking(12, 6, components=(rule,))).draw(tokens, length, generator(9))
        for slots in (packed.input_slot, packed.target_slot):
            seen = np.bincount(slots, minlength=VOCABULARY.n_slots)
            for m in (0, 4, 5):
                part = seen[VOCABULARY.first_slot[m] :][: length[0, m]]
                assert stats.chisquare(part).pvalue > 1e-4, (rule, m)


def test_pairs_of_places_are_taken_alike():
    tokens, length = filled([[0, 0, 0, 0, 0, 16]] * 40_000)
    packed = Masker(VOCABULARY, Masking(2, 1, components=(Uniform(),))).draw(tokens, length, generator(3))
    a, b = (packed.input_slot - VOCABULARY.first_slot[5]).reshape(-1, 2).T
    pairs = np.bincount(16 * a + b, minlength=256).reshape(16, 16)[np.triu_indices(16, 1)]
    assert stats.chisquare(pairs).pvalue > 1e-4


def test_dirichlet_shares_have_the_means_of_its_alphas():
    alphas = {"desi.spectrum": 2.0, "legacysurvey.image": 1.0, "legacysurvey.catalog": 1.0, "gaia": 0, "desi.z": 0}
    rule = Dirichlet(input_alphas=alphas, target_alpha=1.0)
    masking = Masking(5, 8, components=(rule,))  # 5 fit into each of the three
    shown, _ = shown_and_asked(SIZES, masking, n=40_000)
    assert (shown.sum(axis=1) == 5).all() and not shown[:, 1:4].any()
    mean = shown.mean(axis=0)
    assert np.abs(mean[[0, 4, 5]] - 5 * np.array([2, 1, 1]) / 4).max() < 0.03
    # variance of a Dirichlet share, and of the rounding, at most a quarter
    variance = 25 * np.array([2 * 2, 1 * 3, 1 * 3]) / (4 * 4 * 5)
    assert (np.abs(shown.var(axis=0)[[0, 4, 5]] - variance) < 0.25).all()


def test_dirichlet_components_come_as_often_as_they_weigh():
    first = Dirichlet(input_alphas={"desi": 0, "gaia": 0}, weight=3.0)
    second = Dirichlet(input_alphas={"legacysurvey": 0}, weight=1.0)
    shown, asked = shown_and_asked(SIZES, Masking(6, 6, components=(first, second)), n=20_000)
    assert abs((shown[:, 4:].sum(axis=1) > 0).mean() - 0.75) < 0.015
    assert ((shown[:, :4].sum(axis=1) > 0) != (shown[:, 4:].sum(axis=1) > 0)).all()
    assert (asked.sum(axis=1) == 6).all()


def test_what_one_modality_lacks_goes_to_the_others_in_proportion():
    rng = generator(4)
    share = np.tile([[8.0, 1.0, 3.0, 0.0]], (20_000, 1))
    room = np.tile([[4, 30, 30, 0]], (20_000, 1))
    out = in_proportion(share, room, np.full(20_000, 15), rng)
    assert (out.sum(axis=1) == 15).all() and (out <= room).all()
    assert np.abs(out.mean(axis=0) - [4, 11 / 4, 33 / 4, 0]).max() < 0.02
    full = in_proportion(share, room, np.full(20_000, 64), rng)
    assert (full == room).all()
    tiny = np.array([[1e-290, 1.0, 1e-290, 0.0]])
    assert in_proportion(tiny, np.array([[5, 2, 5, 0]]), np.array([6]), rng).sum() == 6


@given(
    st.lists(st.tuples(st.integers(0, 9), st.floats(1e-300, 1e3)), min_size=1, max_size=9),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_proportions_are_exact_whatever_the_shares(given_, part, seed):
    room = np.array([[r for r, _ in given_]])
    share = np.where(room > 0, [[s for _, s in given_]], 0.0)
    budget = np.array([int(part * room.sum())])
    out = in_proportion(share, room, budget, generator(seed))
    assert out.sum() == budget and (0 <= out).all() and (out <= room).all()


def test_beta_is_the_open_ports_rule():
    masking = Masking(1000, 1000, most_shown=0.999, components=(Beta(2.0, 1.0, 10.0),))
    shown, asked = shown_and_asked(SIZES, masking, n=30_000)
    # the budget does not bind but for the first token of a modality chosen at random: look at the 16 of the image
    image = shown[:, 5]
    ends = (np.arange(17) + 0.5) / 16
    law = np.diff(np.concatenate([[0], stats.beta(2, 2).cdf(ends)]))
    law[0], law[1] = law[0] * (1 - 1 / 6), law[1] + law[0] / 6  # the first of six has one or more
    assert stats.chisquare(np.bincount(image, minlength=17), law * len(image)).pvalue > 1e-4
    left = 16 - image
    mean = np.ceil(stats.beta(1, 10).rvs(len(left), random_state=1) * left).mean()
    assert abs(asked[:, 5].mean() - mean) < 0.03


def test_beta_stops_where_the_budget_is_full():
    shown, asked = shown_and_asked(SIZES, Masking(4, 3, components=(Beta(),)))
    assert shown.sum(axis=1).max() == 4 and shown.sum(axis=1).min() >= 1
    assert asked.sum(axis=1).max() == 3 and asked.sum(axis=1).min() >= 1
    first = (shown > 0).mean(axis=0)
    assert first.min() > 0.1, "modalities come in random order, so none is starved by those before it"


def test_a_fair_budget_starves_no_number():
    """Of an object that wants more than the budget each number is shown, or asked for, as often as without an image."""
    numbers = [m for m, c in enumerate(COLUMNS) if c.n_tokens == 1]
    shown, asked = shown_and_asked(SIZES, Masking(8, 6, most_shown=0.9, components=(Beta(fair=True),)))
    assert shown.sum(axis=1).max() == 8 and asked.sum(axis=1).max() == 6
    assert (abs((shown[:, numbers] > 0).mean(axis=0) - 0.5) < 0.1).all()
    assert (abs((asked[:, numbers] > 0).mean(axis=0) - 0.5) < 0.1).all()


def test_across_surveys_is_the_share_that_was_asked_for():
    tokens, length = filled([[9, 1, 1, 1, 7, 16]] * 6000)
    one_survey = filled([[9, 1, 0, 0, 0, 0]] * 10)[1]
    for share in (0.0, 0.3):
        masking = Masking(12, 6, across_surveys=share, components=(Uniform(),))
        apart = [
            not set(SURVEY[s]) & set(SURVEY[a])
            for s, _, a, _ in split(Masker(VOCABULARY, masking).draw(tokens, length, generator(1)))
        ]
        by_chance = 0.01
        assert share - 0.02 < np.mean(apart) < share + by_chance + 0.02
    _, asked = Masker(VOCABULARY, Masking(4, 3, across_surveys=1.0)).counts(one_survey.astype(np.int64), generator(0))
    assert (asked.sum(axis=1) >= 1).all(), "an object of one survey is masked as ever"


@pytest.mark.parametrize("component", [Beta(), Dirichlet(), Uniform()])
def test_some_objects_show_nothing_and_are_asked_of_all_surveys(component):
    masking = Masking(12, 6, across_surveys=0.5, nothing_shown=0.2, components=(component,))
    shown, asked = shown_and_asked(SIZES, masking, n=4000)
    bare = shown.sum(axis=1) == 0
    assert 0.17 < bare.mean() < 0.26, "Beta shows nothing now and then by itself"
    assert (asked.sum(axis=1) >= 1).all()
    assert (asked[bare].sum(axis=0) > 0).all()


def test_a_modality_of_alpha_0_is_never_taken_but_where_nothing_else_is():
    rule = Dirichlet(input_alphas={"desi.z": 0}, target_alphas={"legacysurvey": 0})
    masking = Masking(40, 10, most_shown=0.9, components=(rule,))
    shown, asked = shown_and_asked(SIZES, masking, n=2000)
    assert not shown[:, 1].any() and not asked[:, 4:].any() and (asked.sum(axis=1) >= 1).all()
    shown, asked = shown_and_asked([0, 0, 0, 0, 7, 0], masking, n=100)
    assert (asked.sum(axis=1) == 1).all(), "it has nothing else, and is asked for one token all the same"


@pytest.mark.parametrize("component", [Beta, Dirichlet])
def test_across_surveys_keeps_to_what_is_taken_at_all(component):
    surveys = [SURVEY[s] for s in range(VOCABULARY.n_slots)]
    tokens, length = filled([SIZES] * 2000)

    def drawn(**alphas):
        masking = Masking(12, 6, across_surveys=1.0, components=(component(**alphas),))
        return split(Masker(VOCABULARY, masking).draw(tokens, length, generator(2)))

    for s, _, a, _ in drawn(target_alphas={"gaia": 0}):
        shown, asked = {surveys[i] for i in s}, {surveys[i] for i in a}
        assert len(asked) >= 1 and not shown & asked
        assert "gaia" not in {VOCABULARY.names[VOCABULARY.modality_of_slot[i]].split(".")[0] for i in a}
    for s, _, a, _ in drawn(input_alphas={"gaia": 0}):
        assert len(s) and len(a), "another survey is there to be shown"
        assert "gaia" not in {VOCABULARY.names[VOCABULARY.modality_of_slot[i]].split(".")[0] for i in s}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"inputs": 0}, "inputs is 0; wanted a whole number of 1 or more"),
        ({"targets": 1.5}, "targets is 1.5"),
        ({"most_shown": 1.0}, "most_shown is 1.0"),
        ({"across_surveys": 1.2}, "across_surveys is 1.2"),
        ({"nothing_shown": -0.1}, "nothing_shown is -0.1; wanted a share of 0 to 1"),
        ({"input": 3}, "input: wanted across_surveys, components, inputs"),
        ({"components": []}, "wanted one or more of beta, dirichlet, uniform"),
        ({"components": [{"rule": "gamma"}]}, "rule is 'gamma'; wanted one of beta, dirichlet, uniform"),
        ({"components": [{"rule": "uniform", "input_alpha": 1}]}, "a uniform has no input_alpha; it has weight"),
        ({"components": [{"rule": "dirichlet", "input_alphas": {"gaia": -1}}]}, "gaia, is -1; wanted 0 .never. or"),
        ({"components": [{"rule": "beta", "target_beta": 0}]}, "target_beta is 0"),
        ({"components": [{"rule": "beta", "weight": 0}]}, "weighs 0"),
        ({"components": [{"rule": "beta", "fair": 1}]}, "fair is 1; wanted true or false"),
    ],
)
def test_a_wrong_setting_is_named(value, said):
    with pytest.raises(ValueError, match=said):
        Masking.from_json(value)


def test_a_masking_is_plain_values():
    masking = Masking(64, 32, 0.5, 0.25, (Dirichlet(0.5, 2.0, {"gaia": 0.1}, {}, 3.0), Beta(), Uniform(2.0)))
    assert Masking.from_json(json.loads(json.dumps(masking.as_json()))) == masking


def test_an_alpha_of_a_modality_that_is_not_is_named():
    with pytest.raises(ValueError, match=r"input_alphas of a dirichlet name gaia.flx; there are desi, desi.spectrum"):
        Masker(VOCABULARY, Masking(components=(Dirichlet(input_alphas={"gaia.flx": 1.0}),)))
