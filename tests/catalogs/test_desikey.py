import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skycairn.catalogs.desikey import (
    MOCK,
    PROGRAM_CODES,
    RESERVED,
    SKY,
    SURVEY_CODES,
    legacy_keys,
    pack_key,
    unpack_key,
)


def targetid(gaiadr: int = 0, release: int = 0, brickid: int = 0, objid: int = 0) -> int:
    return gaiadr << 60 | release << 42 | brickid << 22 | objid


TARGETS = st.tuples(
    st.builds(
        targetid, st.integers(0, 3), st.integers(0, 2**14 - 1), st.integers(0, 2**20 - 1), st.integers(0, 2**22 - 1)
    ),
    st.sampled_from(SURVEY_CODES),
    st.sampled_from(PROGRAM_CODES),
)


def columns(rows: list[tuple[int, str, str]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.array([r[0] for r in rows], dtype=np.int64),
        np.array([r[1] for r in rows], dtype=object),
        np.array([r[2] for r in rows], dtype=object),
    )


@given(st.lists(TARGETS, min_size=1, max_size=40, unique=True))
@settings(deadline=None, max_examples=60)
def test_keys_come_apart_into_what_they_were_made_of_and_differ(rows: list[tuple[int, str, str]]) -> None:
    ids, survey, program = columns(rows)
    key, packed, overflow = pack_key(ids, survey, program)
    assert packed.all() and not overflow.any()
    assert (key >= 0).all() and len(set(key.tolist())) == len(rows)
    back = unpack_key(key)
    assert back[0].tolist() == ids.tolist()
    assert back[1].tolist() == survey.tolist() and back[2].tolist() == program.tolist()


def test_published_vector() -> None:
    key, packed, _ = pack_key(*columns([(39627652591521181, "cmx", "backup")]))
    assert packed[0] and key[0] == 9010 << 42 | 298864 << 22 | 3485 == 39627652591521181


def test_the_codes_are_part_of_the_format() -> None:
    code = {"cmx": 0, "sv1": 4, "sv2": 8, "sv3": 12, "main": 16, "special": 20}
    program = {"backup": 0, "bright": 1, "dark": 2, "other": 3}
    for s, high in code.items():
        for p, low in program.items():
            assert pack_key(*columns([(7, s, p)]))[0][0] == ((high + low) << 58) + 7


def test_the_largest_key_fits_63_bits_and_gaiadr_is_kept() -> None:
    largest = targetid(3, 2**14 - 1, 2**20 - 1, 2**22 - 1)
    key, packed, _ = pack_key(*columns([(largest, "special", "other")]))
    assert packed[0] and key[0] == (23 << 58) + 2**58 - 1
    assert unpack_key(key)[0][0] == largest


@pytest.mark.parametrize("bad", [-1, -(2**63), SKY | 5, MOCK | 5, RESERVED | 5, SKY | MOCK])
def test_no_target_has_no_key_and_is_no_overflow(bad: int) -> None:
    _, packed, overflow = pack_key(*columns([(bad, "main", "dark")]))
    assert not packed[0] and not overflow[0]


@pytest.mark.parametrize(
    "row", [(targetid(release=2**14), "main", "dark"), (5, "sv9", "dark"), (5, "main", ""), (5, "MAIN", "dark")]
)
def test_what_does_not_fit_is_said(row: tuple[int, str, str]) -> None:
    _, packed, overflow = pack_key(*columns([row]))
    assert not packed[0] and overflow[0]


@pytest.mark.parametrize("key", [-1, 24 << 58, 31 << 58])
def test_unpacking_what_is_no_key(key: int) -> None:
    with pytest.raises(ValueError, match="no key of DESI"):
        unpack_key(np.array([key]))


def test_a_target_of_the_imaging_names_its_source() -> None:
    south, north = targetid(release=9010, brickid=298864, objid=3485), targetid(release=9011, objid=4194303)
    fixed = targetid(release=9012, brickid=1048575)
    key, cut = legacy_keys(np.array([south, north, fixed]))
    assert cut.all() and key.tolist() == [south, north, fixed]
    assert south == 39627652591521181


@pytest.mark.parametrize(
    "what",
    [
        -1,
        -(2**63),
        0,
        2**63 - 1,
        targetid(release=512, brickid=7),  # a secondary target that no imaging has
        targetid(release=8888, brickid=7),  # tertiary
        targetid(release=9999, brickid=7),  # of opportunity
        targetid(release=9009, brickid=7),  # never released
        targetid(2, release=9010),  # Gaia's
        targetid(release=9010) | SKY,
        targetid(release=9010) | MOCK,
        targetid(release=9010) | RESERVED,
    ],
)
def test_what_was_not_cut_from_the_imaging_names_nothing(what: int) -> None:
    key, cut = legacy_keys(np.array([what]))
    assert not cut[0] and key[0] == 0
