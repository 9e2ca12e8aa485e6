import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skycairn.catalogs.sdsskey import pack_key, run2d_code, unpack_key

RUNS = st.one_of(
    st.integers(0, (1 << 14) - 1).map(str),
    st.tuples(st.integers(0, 15), st.integers(0, 31), st.integers(0, 31)).map(lambda v: "v{}_{}_{}".format(*v)),
)
SPECTRA = st.tuples(RUNS, st.integers(0, (1 << 17) - 1), st.integers(50_000, 82_767), st.integers(0, 4095))


def arrays(rows):
    run2d, *numbers = zip(*rows, strict=True)
    return np.array(run2d, dtype=np.str_), *(np.array(n, dtype=np.int64) for n in numbers)


@given(st.lists(SPECTRA, min_size=1, max_size=30, unique=True))
def test_packs_and_unpacks(rows):
    key, packed = pack_key(*arrays(rows))
    assert packed.all() and (key >= 0).all() and len(set(key.tolist())) == len(rows)
    found = list(zip(*(v.tolist() for v in unpack_key(key)), strict=True))
    assert found == rows


def test_plates_beyond_8191_and_runs_do_not_collide():
    rows = [
        (r, p, 57_000, 1) for r in ("26", "103", "104", "v5_13_2", "v5_7_0") for p in (266, 8191, 8192, 16_384, 99_999)
    ]
    key, packed = pack_key(*arrays(rows))
    assert packed.all() and len(set(key.tolist())) == len(rows)


def test_strings_keep_their_blanks_out_of_the_key():
    one, _ = pack_key(*arrays([("26   ", 1, 53_000, 1)]))
    two, _ = pack_key(*arrays([("26", 1, 53_000, 1)]))
    assert one == two


@pytest.mark.parametrize(
    "row",
    [
        ("v6", 1, 53_000, 1),
        ("", 1, 53_000, 1),
        ("16384", 1, 53_000, 1),
        ("v16_0_0", 1, 53_000, 1),
        ("26", -1, 53_000, 1),
        ("26", 1 << 17, 53_000, 1),
        ("26", 1, 49_999, 1),
        ("26", 1, 53_000, 4096),
    ],
)
def test_what_does_not_fit_has_no_key(row):
    key, packed = pack_key(*arrays([row]))
    assert not packed[0] and key[0] == 0


def test_a_number_that_is_no_key_is_refused():
    with pytest.raises(ValueError, match="no key of SDSS"):
        unpack_key(np.array([-1]))
    assert run2d_code("v5_13_2") == (1 << 14) | (5 << 10) | (13 << 5) | 2
