"""How many tokens each scheme keeps at each step."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skycairn.model.schemes import Autoregressive, MaskGit, Roar, Target, schedule
from skycairn.model.vocabulary import Vocabulary
from skycairn.pile.shards import TokenColumn

VOCABULARY = Vocabulary(
    (
        TokenColumn("desi.z", "z" * 64, 12, 1, "scalar", (), True, "tok_z"),
        TokenColumn("hsc.image", "i" * 64, 30, 9, "grid", (3, 3), False, "tok_image_hsc"),
        TokenColumn("legacysurvey.objects", "o" * 64, 30, 10, "sequence", (10,), False, "catalog"),
    )
)
SCHEMES = st.one_of(
    st.builds(MaskGit, st.integers(1, 12), st.sampled_from(["cosine", "linear"])),
    st.builds(Roar, st.integers(1, 12)),
    st.just(Autoregressive()),
)


@given(SCHEMES, st.integers(1, 600), st.integers(0, 600))
def test_every_scheme_keeps_all_tokens_and_never_takes_one_back(scheme, most, n):
    n = min(n, most)
    left = [n, *(scheme.left(i, n) for i in range(scheme.n_steps(most)))]
    assert left[-1] == 0 and all(a >= b >= 0 for a, b in itertools.pairwise(left))
    if isinstance(scheme, Roar):
        assert all(a - b == min(a, scheme.at_once) for a, b in itertools.pairwise(left))
    if isinstance(scheme, Autoregressive):
        assert max(a - b for a, b in itertools.pairwise(left)) <= 1


def test_curves_are_those_of_maskgit():
    assert [MaskGit(4).left(i, 576) for i in range(4)] == [
        math.floor(576 * math.cos(math.pi * k / 8)) for k in (1, 2, 3)
    ] + [0]
    assert [MaskGit(4, "linear").left(i, 576) for i in range(4)] == [432, 288, 144, 0]
    # a sum that ought to be whole is not rounded below
    assert [MaskGit(10, "linear").left(i, 10) for i in range(10)] == list(range(9, -1, -1))
    assert MaskGit(3).left(1, 8) == 4, "cos 60 degrees is a half"


@pytest.mark.parametrize(("n", "steps"), [(576, 32), (9, 4), (3, 32), (1, 32), (7, 7)])
def test_roar_in_so_many_steps_fixes_all_and_some_at_each(n, steps):
    scheme = Roar(steps=steps)
    left = [scheme.left(i, n) for i in range(scheme.n_steps(n))]
    assert len(left) == min(n, steps) and left[-1] == 0
    fixed = -np.diff([n, *left])
    assert fixed.min() >= 1 and fixed.max() - fixed.min() <= 1
    # an object that shows some of the modality lacks fewer
    assert all(scheme.left(i, n - 1) >= 0 for i in range(scheme.n_steps(n))) and scheme.left(len(left) - 1, n - 1) == 0


def test_a_chain_is_the_steps_of_each_target_in_turn():
    steps = schedule(VOCABULARY, [Target("hsc.image", Roar(4)), "desi.z"])
    assert [(s.target.modality, s.number) for s in steps] == [*(("hsc.image", i) for i in range(3)), ("desi.z", 0)]
    assert len(schedule(VOCABULARY, [Target("hsc.image", Autoregressive())])) == 9


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        ([], "no target; choose some of desi.z, hsc.image"),
        (["desi.zz"], "no modality 'desi.zz'; the network knows desi.z, hsc.image, legacysurvey.objects"),
        (["desi.z", Target("desi.z")], "desi.z twice"),
        (["legacysurvey.objects"], "legacysurvey.objects is a sequence"),
    ],
)
def test_chains_that_cannot_be_are_refused(targets, told):
    with pytest.raises(ValueError, match=told):
        schedule(VOCABULARY, targets)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: MaskGit(0), "steps is 0"),
        (lambda: MaskGit(True), "steps is True"),
        (lambda: MaskGit(curve="square"), "curve is 'square'; choose cosine or linear"),
        (lambda: MaskGit(noise=-1.0), "noise is -1.0"),
        (lambda: Roar(0), "at_once is 0"),
        (lambda: Target("a.b", "maskgit"), "a.b: scheme is 'maskgit'; wanted MaskGit"),
        (lambda: Target("a.b", temperature=-0.1), "a.b: temperature is -0.1"),
        (lambda: Target("a.b", temperature=math.nan), "a.b: temperature is nan"),
        (lambda: Target("a.b", top_k=0), "a.b: top_k is 0"),
        (lambda: Target("a.b", top_p=0.0), "a.b: top_p is 0.0"),
        (lambda: Target("a.b", guidance=math.inf), "a.b: guidance is inf"),
    ],
)
def test_settings_say_what_is_wrong(make, told):
    with pytest.raises(ValueError, match=told):
        make()
