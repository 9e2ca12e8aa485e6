"""How the posterior is held against truth; docs/match_reliability.md has the figures of a million sources."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Any:
    """The benchmark as a module."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("match_reliability")
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_bins_and_their_error_by_hand(bench: Any) -> None:
    said = np.array([0.0, 0.01, 0.02, 0.6, 0.6, 0.98, 1.0])
    true = np.array([0, 0, 1, 1, 0, 1, 1], bool)
    found = bench.bins(said, true)
    assert [(b.n, b.true) for b in found] == [(2, 0), (1, 1), (0, 0), (0, 0), (2, 1), (0, 0), (0, 0), (2, 2)]
    assert found[0].said == pytest.approx(0.005) and found[4].said == pytest.approx(0.6)
    assert bench.calibration_error(found) == pytest.approx((2 * 0.005 + 0.98 + 2 * 0.1 + 2 * 0.01) / 7)
    low, high = found[0].interval
    assert low == 0 and (1 - high) ** 2 == pytest.approx(0.025)
    low, high = found[7].interval
    assert high == 1 and low**2 == pytest.approx(0.025)
    assert str(found[2]) == "0 | | |"


def test_a_sure_posterior_is_calibrated(bench: Any) -> None:
    rng = np.random.default_rng(2)
    said = rng.uniform(size=20000)
    found = bench.bins(said, rng.uniform(size=said.size) < said)
    assert sum(b.interval[0] <= b.said <= b.interval[1] for b in found) >= len(found) - 1
    assert bench.calibration_error(found) < 0.02 < bench.calibration_error(bench.bins(said, said < 0.5))


def test_tables_of_a_small_sky(bench: Any, tiny_pile: Path, tiny_sky: Path) -> None:
    m = importlib.import_module("match_truth").read_matched(tiny_pile)
    truth = bench.read_truth(tiny_sky, m.slim)
    slim = {name: bench.with_error(t, bench.ERRORS.get(name, 0.0)) for name, t in m.slim.items()}
    lines, estimated = bench.reliability(truth, slim)
    assert len(estimated) == 10 and all(0 < found < 1 and 0 < out <= 0.5 for found, out in estimated.values())
    assert lines[0] == "## The candidates" and any("both estimated" in line for line in lines)
    prior = bench.Prior(*(bench.densities(slim[s]["healpix29"].to_numpy()) for s in ("legacysurvey", "gaia")))
    c = bench.candidates(truth, slim, "legacysurvey", "gaia", prior)
    single = bench.subsets(c)["single"]
    assert c.true.sum() > 10 and (c.true & single & (bench.sides(c)["least"] > 0.5)).sum() > 0.95 * single.sum()
    lines = bench.policies(truth, m, slim, estimated)
    assert sum(line.startswith("| whole objects | ") for line in lines) == len(bench.CLASSES)
