"""Features of decoded tokens, and neighbours in them, against brute force."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skycairn.model.features import APERTURES, evened, features, nearest
from skycairn.pile.shards import TokenArray


class Decodes:
    """A codec whose decoded arrays hang on the first token alone."""

    dtype = np.uint16

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape

    def decode(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        return {
            self.name: np.broadcast_to(tokens[:, :1].reshape(-1, *[1] * len(self.shape)), (len(tokens), *self.shape))
        }


def held(tokens: list[int], present: list[bool]) -> TokenArray:
    return TokenArray(np.array(tokens, np.uint16)[:, None], np.array(present), np.array(present).astype(np.int64))


def test_features_are_what_is_decoded_and_nan_where_nothing_is_there() -> None:
    codecs: dict[str, Any] = {
        "n": Decodes("value", ()),
        "i": Decodes("flux", (2, 65, 65)),
        "s": Decodes("flux", (256,)),
    }
    tokens = {"n": held([3, 4], [True, True]), "i": held([1, 9], [True, False]), "s": held([5, 6], [False, True])}
    found = features(tokens, codecs)
    assert found.shape == (2, 1 + 2 * len(APERTURES) + 128)
    assert found[:, 0].tolist() == [3, 4]
    assert found[0, 1:9:2] == pytest.approx(np.pi * np.square(APERTURES), rel=0.05)  # light of 1 a pixel
    assert np.isnan(found[1, 1:9]).all() and np.isnan(found[0, 9:]).all()
    assert (found[1, 9:] == 6).all()
    none = features({"n": held([3], [False]), "s": held([3], [False])}, codecs)
    assert none.shape == (1, 129) and np.isnan(none).all(), "as many columns, whoever is there"


@given(st.integers(0, 2**31), st.integers(1, 12))
def test_the_nearest_are_those_of_brute_force(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    known, asked = rng.normal(size=(9, 3)), rng.normal(size=(4, 3))
    away = np.linalg.norm(asked[:, None] - known, axis=2)
    assert nearest(known, asked, k).tolist() == np.argsort(away, axis=1)[:, :k].tolist()
    assert nearest(known, asked[:0], k).shape == (0, min(k, 9))


def test_features_are_brought_to_one_scale_by_the_known_alone() -> None:
    known = np.array([[1e6, np.nan, 1.0], [2e6, np.nan, 2.0], [4e6, np.nan, np.nan], [9e6, np.nan, -3.0]])
    even, other = evened(known, np.array([[4e6, 5.0, np.nan]]))
    assert even.shape == (4, 2) and np.isfinite(even).all()
    assert even[:, 0].std() == pytest.approx(1)
    assert other.tolist() == [[even[2, 0], 0.0]]
