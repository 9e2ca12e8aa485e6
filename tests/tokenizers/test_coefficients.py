import csv
from pathlib import Path

import numpy as np
import pytest

from skycairn.tokenizers.codec import load
from skycairn.tokenizers.coefficients import CoefficientCodec


def coefficients(n: int, seed: int = 0) -> np.ndarray:
    """Like Gaia's: one large positive, the rest falling off, all in proportion to brightness."""
    rng = np.random.default_rng(seed)
    bright = 10 ** rng.normal(2, 0.7, n)
    shape = rng.normal(0, 1, (n, 55)) * np.exp(-np.arange(55) / 8)
    shape[:, 0] = 3 + 0.3 * shape[:, 0]
    return bright[:, None] * shape


@pytest.mark.parametrize("normalise", [False, True])
def test_round_trip_is_close_and_beats_the_mean(normalise):
    codec = CoefficientCodec.fit(coefficients(6000), normalise=normalise)
    x = coefficients(500, seed=1)
    tokens = codec.encode({"value": x})
    assert tokens.shape == (500, 55)
    assert tokens.dtype == np.uint16
    assert codec.vocabulary == 300
    back = codec.decode(tokens)["value"]
    spread = np.median(np.abs(x), axis=0)
    assert (np.median(np.abs(back - x), axis=0) < 0.02 * spread).all()
    assert np.abs(np.median(back - x, axis=0) / spread).max() < 0.01


def test_normalising_keeps_the_colours_of_a_star_brighter_than_any_fitted():
    train = coefficients(3000)
    x = 30 * train[train[:, 0] > np.quantile(train[:, 0], 0.9)]
    error = {}
    for normalise in (False, True):
        codec = CoefficientCodec.fit(train, normalise=normalise)
        back = codec.decode(codec.encode({"value": x}))["value"]
        error[normalise] = np.median(np.abs(back[:, 1] / back[:, 0] - x[:, 1] / x[:, 0]))
    assert error[True] < 0.05 * error[False]


def test_tokens_come_back_and_the_id_is_kept(tmp_path):
    x = coefficients(2000)
    codec = CoefficientCodec.fit(x)
    tokens = codec.encode({"value": x})
    np.testing.assert_array_equal(codec.encode(codec.decode(tokens)), tokens)
    assert CoefficientCodec.fit(x[::-1]).content_id == codec.content_id
    assert CoefficientCodec.fit(x, normalise=True).content_id != codec.content_id
    assert CoefficientCodec.fit(x, bins=7).content_id != codec.content_id
    codec.save(tmp_path)
    np.testing.assert_array_equal(load(tmp_path).encode({"value": x}), tokens)


def test_tables_of_different_length_share_the_ids():
    x = np.stack([np.arange(1000.0), np.zeros(1000)], axis=1)
    codec = CoefficientCodec.fit(x)
    assert codec.vocabulary == 50
    assert codec.encode({"value": x})[:, 1].max() == 0
    assert codec.decode(np.array([[49, 49]]))["value"][0, 1] == 0
    again = CoefficientCodec.restore(codec.settings(), codec.arrays())
    assert again.content_id == codec.content_id


def test_bad_rows_are_named():
    codec = CoefficientCodec.fit(coefficients(50))
    x = coefficients(5)
    x[2, 7] = np.nan
    with pytest.raises(ValueError, match="row 2, number 7, is nan"):
        codec.encode({"value": x})
    with pytest.raises(ValueError, match=r"wanted \(n, 55\)"):
        codec.encode({"value": np.zeros((5, 54))})
    with pytest.raises(ValueError, match=r"shape \(0, 55\)"):
        CoefficientCodec.fit(np.zeros((0, 55)))
    assert codec.encode({"value": np.zeros((0, 55))}).shape == (0, 55)


def test_real_gaia_coefficients(real_data: Path):
    with (real_data / "gaia/xp-continuous/XP_CONTINUOUS_RAW.csv").open(newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    x = np.array([[float(v) for v in r["bp_coefficients"].strip("()[]").split(",")] for r in rows])
    codec = CoefficientCodec.fit(x)
    assert codec.n_fit == len(x)
    back = codec.decode(codec.encode({"value": x}))["value"]
    assert np.isin(back, x).all()
