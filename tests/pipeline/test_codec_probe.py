"""The redshift probe on tokens: what tokens tell is found, and what they do not tell is not."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def probe():
    """benchmarks/codec_probe.py."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "codec_probe.py"
    spec = importlib.util.spec_from_file_location("codec_probe", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["codec_probe"] = module
    spec.loader.exec_module(module)
    return module


def sources(probe, rng, told: bool):
    """Tokens that count a source's redshift, permuted so that their order means nothing; or that are noise."""
    z = rng.uniform(0, 1, 400)
    names = rng.permutation(1000)
    counted = (z[:, None] * 20 + rng.uniform(0, 1, 30)).astype(int)
    tokens = names[counted] if told else rng.integers(0, 1000, (400, 30))
    return probe.Tokens(np.arange(400), tokens, z, np.arange(400) % 4 == 0)


def test_equal_tokens_are_counted(probe):
    a, b = np.array([[1, 2, 3], [1, 1, 1]]), np.array([[1, 2, 0], [3, 3, 3], [1, 1, 1]])
    np.testing.assert_allclose(probe.equal(a, b), np.array([[2, 1, 1], [1, 0, 3]]) / 3)


def test_redshifts_are_read_where_tokens_tell_them(probe):
    rng = np.random.default_rng(0)
    found, mean = probe.probe(sources(probe, rng, True))
    assert found.n == mean.n == 100
    assert found.nmad < 0.02 and found.outliers == 0 and mean.nmad > 0.1
    found, mean = probe.probe(sources(probe, rng, False))
    assert found.nmad > 0.7 * mean.nmad and found.outliers > 0.2


def test_piles_of_another_split_are_not_compared(probe):
    t = sources(probe, np.random.default_rng(2), True)
    probe.check_alike("desi.spectrum", {"one": t, "two": t._replace(tokens=t.tokens + 1)})
    for other in (t._replace(held=~t.held), t._replace(z=t.z + 0.1)):
        with pytest.raises(ValueError, match="one and two hold out other sources"):
            probe.check_alike("desi.spectrum", {"one": t, "two": other})


def test_held_out_redshifts_are_not_looked_at(probe):
    t = sources(probe, np.random.default_rng(1), True)
    found, _ = probe.probe(t)
    other, _ = probe.probe(t._replace(z=np.where(t.held, t.z[::-1], t.z)))
    assert other.nmad > 5 * found.nmad
