"""A run that begins from weights of another model: what is taken over, what is new, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from skycairn.model.aion import aion_vocabulary, as_aion
from skycairn.model.forms import Form
from skycairn.model.packed import Packed
from skycairn.model.rules import Masker, Masking, Uniform
from skycairn.model.settings import Settings
from skycairn.model.transformer import Network
from skycairn.model.vocabulary import Vocabulary
from skycairn.model.warmstart import Start, check, take_over
from skycairn.pile.shards import TokenColumn

FORM = Form(1, 1, 32, 2, 64)
KEYS = ("tok_flux_g", "tok_z", "tok_spectrum_desi", "tok_ebv")
NEW = TokenColumn("radio.flux", "r" * 64, 7, 3, "line", (3,), True, "tok_radio")


def columns() -> tuple[TokenColumn, ...]:
    """A pile's, encoded by AION-1's codecs, and one of a survey of its own."""
    names = {"tok_flux_g": "legacysurvey.flux_g", "tok_z": "desi.z", "tok_spectrum_desi": "desi.spectrum"}
    known = {c.token_key: c for c in aion_vocabulary(list(KEYS)).columns}
    own = [replace(known[key], modality=name, codec_id=name * 4) for key, name in names.items()]
    return tuple(sorted((*own, NEW), key=lambda c: c.modality))


def network(vocabulary: Vocabulary, seed: int, learned_slots: bool = True, form: Form = FORM) -> Network:
    torch.manual_seed(seed)
    made = Network(vocabulary, form, learned_slots=learned_slots).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return made


def microbatch(vocabulary: Vocabulary, without: str = "") -> Packed:
    rng = np.random.default_rng(0)
    tokens = np.concatenate([rng.integers(0, c.vocabulary, (9, c.n_tokens)) for c in vocabulary.columns], axis=1)
    length = np.array([0 if c.modality == without else c.n_tokens for c in vocabulary.columns])
    length = length * (rng.random((9, len(length))) < 0.8)
    return Masker(vocabulary, Masking(60, 30, components=(Uniform(),))).draw(tokens, length, rng)


def test_what_aion_knows_it_says_before_the_first_step() -> None:
    theirs, own = aion_vocabulary(list(KEYS)), Vocabulary(columns())
    start = Start(network(theirs, 1, learned_slots=False), "published", aion=True)
    begun = Network(own, FORM).eval()
    before = begun.head.weight.detach().clone()
    taken = take_over(begun, start)
    assert taken.known == ("desi.spectrum", "desi.z", "legacysurvey.flux_g")
    assert taken.new == ("radio.flux",) and taken.left == ("tok_ebv",)
    packed = microbatch(own, without="radio.flux")
    with torch.no_grad():
        found, wanted = begun.logits(packed), start.network.logits(as_aion(packed, own, theirs))
    for column in own.columns:
        if column.modality in found:
            torch.testing.assert_close(found[column.modality], wanted[column.token_key])
    assert torch.equal(begun.head.weight[-7:], before[-7:]), "what is new begins at random"
    with torch.no_grad():
        assert torch.isfinite(begun(microbatch(own)).sums).all()


def test_a_model_of_ones_own_is_matched_by_name_and_codec() -> None:
    own = Vocabulary(columns())
    one = network(Vocabulary(tuple(c for c in own.columns if c.modality != "radio.flux")), 2)
    begun = Network(own, FORM).eval()
    assert take_over(begun, Start(one, "mine")).new == ("radio.flux",)
    packed = microbatch(own, without="radio.flux")
    with torch.no_grad():
        for name, logits in one.logits(packed).items():  # the new one comes last, so that all slots are alike
            torch.testing.assert_close(begun.logits(packed)[name], logits)
    other = Vocabulary(tuple(replace(c, codec_id="x" * 64) if c.modality == "desi.z" else c for c in own.columns))
    taken = take_over(Network(other, FORM), Start(one, "mine"))
    assert taken.new == ("desi.z", "radio.flux") and taken.left == ("desi.z",), "another codec's numbers mean others"


def test_what_is_fitted_to_a_pile_is_refused_on_either_side() -> None:
    own = Vocabulary(columns())
    plain, paired = Network(own, FORM), Network(own, FORM, pairs=True)
    check(Start(plain, "mine"), Settings())
    with pytest.raises(ValueError, match="mine: was trained with counted, pairs or smooth"):
        check(Start(paired, "mine"), Settings())
    for settings in (Settings(counted=9), Settings(pairs=True), Settings(smooth=True)):
        with pytest.raises(ValueError, match="with a start give counted = 0"):
            check(Start(plain, "mine"), settings)
