"""Which tokens are shown and asked for of each ordered pair of surveys."""

import numpy as np
import pytest

from skycairn.model.directions import Directions, may_show, passes, surveys
from skycairn.model.loader import Rows
from skycairn.model.rules import Masker, Masking
from skycairn.model.vocabulary import Vocabulary
from skycairn.pile.shards import TokenColumn

VOCABULARY = Vocabulary(
    (
        TokenColumn("desi.spectrum", "d" * 64, 9, 5, "line", (5,), False, "tok_spectrum_desi"),
        TokenColumn("desi.z", "e" * 64, 8, 1, "scalar", (), True, "tok_z"),
        TokenColumn("gaia.parallax", "b" * 64, 8, 1, "scalar", (), True, "tok_parallax"),
        TokenColumn("sdss.mag_z", "c" * 64, 8, 1, "scalar", (), True, "tok_mag_z"),
        TokenColumn("sdss.z", "e" * 64, 8, 1, "scalar", (), True, "tok_z"),
    )
)
DESI, GAIA, SDSS = range(3)
MASKER = Masker(VOCABULARY, Masking(inputs=4, targets=3))
HAS = np.array([[5, 1, 1, 0, 0], [0, 1, 0, 1, 1], [5, 0, 0, 0, 0], [5, 1, 1, 1, 1], [0, 0, 1, 0, 1]])
"""Objects of desi and gaia; of desi and sdss, whose desi has a redshift alone; of desi; of all; of gaia and sdss."""


def rows(length: np.ndarray = HAS) -> Rows:
    tokens = np.random.default_rng(0).integers(0, 8, (len(length), VOCABULARY.n_slots)).astype(np.uint16)
    return Rows(tokens, length.astype(np.int32))


def test_each_direction_has_the_objects_of_both_and_tokens_of_one_on_either_side() -> None:
    assert surveys(VOCABULARY) == ["desi", "gaia", "sdss"]
    objects = {}
    survey = VOCABULARY.survey[VOCABULARY.modality_of_slot]
    for k, (packed, of) in enumerate(passes(MASKER, rows(), 7, 0), start=1):
        assert packed.n_objects == of.sum()
        for i, asked in enumerate(np.repeat(np.arange(3), of)):
            shown_slot = packed.input_slot[packed.input_start[i] : packed.input_start[i + 1]]
            asked_slot = packed.target_slot[packed.target_start[i] : packed.target_start[i + 1]]
            assert set(survey[shown_slot]) == {(asked + k) % 3} and set(survey[asked_slot]) == {asked}
            assert len(shown_slot) <= 4 and len(asked_slot) <= 3
        objects |= {((b + k) % 3, b): int(of[b]) for b in range(3)}
    # desi's redshift is not shown to sdss, so that of the second object nothing is left to show
    assert objects == {
        **{(DESI, GAIA): 2, (GAIA, DESI): 2, (DESI, SDSS): 1},
        **{(SDSS, DESI): 2, (GAIA, SDSS): 2, (SDSS, GAIA): 2},
    }


def test_a_redshift_is_shown_only_where_none_is_asked_for() -> None:
    assert may_show(VOCABULARY, DESI, SDSS).tolist() == [True, False, False, False, False]
    assert may_show(VOCABULARY, SDSS, DESI).tolist() == [False, False, False, True, False]
    assert may_show(VOCABULARY, SDSS, GAIA).tolist() == [False, False, False, True, True]


def test_masks_hang_on_the_seed_and_the_number_alone() -> None:
    first, again, other, third = (passes(MASKER, rows(), seed, i) for seed, i in ((7, 0), (7, 0), (8, 0), (7, 1)))
    for a, b in zip(first, again, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a.packed, b.packed, strict=True))
    for changed in (other, third):
        pairs = zip(first, changed, strict=True)
        assert any(not np.array_equal(a.packed.input_slot, b.packed.input_slot) for a, b in pairs)


def test_budgets_are_met_exactly_and_all_tokens_alike() -> None:
    many = rows(np.tile(HAS[3], (4000, 1)))
    packed, objects = passes(MASKER, many, 7, 0)[0]
    assert objects.tolist() == [4000, 4000, 4000]
    n = np.diff(packed.input_start).reshape(3, -1)
    # pass 1 shows gaia to desi, sdss to gaia, desi (all but its redshift) to sdss
    assert (n[DESI] == 1).all() and (n[GAIA] == 2).all() and (n[SDSS] == 4).all()
    asked = np.bincount(packed.target_slot, minlength=VOCABULARY.n_slots)
    assert asked[:6] == pytest.approx(np.full(6, 4000 * 3 / 6), rel=0.06)


def test_sums_become_nats_a_token_and_what_no_object_has_is_left_out() -> None:
    found = Directions(VOCABULARY)
    found.add(1, np.array([6.0, 2.0, 0.0, 0.0, 5.0]), np.array([3, 1, 0, 0, 2]), np.array([3, 0, 2]))
    found.add(1, np.array([2.0, 0.0, 0.0, 0.0, 0.0]), np.array([1, 0, 0, 0, 0]), np.array([1, 0, 0]))
    assert found.told() == {
        "desi>sdss": {"loss": 2.5, "objects": 2},
        "gaia>desi": {"loss": 2.0, "objects": 4},
    }


def test_no_object_of_two_surveys_is_a_pass_of_none() -> None:
    for packed, objects in passes(MASKER, rows(HAS[2:3]), 7, 0):
        assert packed.n_objects == 0 and not objects.any()
