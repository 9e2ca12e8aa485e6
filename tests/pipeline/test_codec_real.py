"""Real spectra and cut-outs through codecs: read by the surveys' own readers, encoded, decoded, counted."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from skycairn.tokenizers.registry import fit_codec


@pytest.fixture(scope="module")
def real():
    """benchmarks/codec_real.py."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "codec_real.py"
    spec = importlib.util.spec_from_file_location("codec_real", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["codec_real"] = module
    spec.loader.exec_module(module)
    return module


def test_a_folder_without_files_has_nothing_to_say(real, tmp_path):
    assert list(real.read(tmp_path)) == []


def test_real_files_encode_and_decode(real, real_data):
    """Fitted to what it then encodes."""
    found = {r.modality: r for r in real.read(real_data)}
    assert set(found) == {"desi.spectrum", "sdss.spectrum", "legacysurvey.image", "hsc.image"}
    bands = {"legacysurvey.image": ("g", "r", "i", "z"), "hsc.image": ("g", "r", "i", "z", "y")}
    for name, r in found.items():
        before = {k: v.copy() for k, v in r.arrays.items()}
        more = {"bands": bands[name]} if name in bands else {}
        if name == "sdss.spectrum":
            more = {"scale": "log10", "start": 3.545, "step": 1e-4}
        codec = fit_codec("image" if name in bands else "spectrum", r.arrays, **more)
        tokens = codec.encode(r.arrays)
        assert np.isfinite(codec.decode(tokens)["flux"]).all() and tokens.max() < codec.vocabulary
        table = real.residuals(r, {"own": codec})
        assert len(table.rows) >= 4
        for row in table.rows:
            if row[0] in ("3 to 10", "10 to 30"):
                # levels are fitted to patches more than half good, which DR6 with two bands of four has none of
                assert float(row[4]) <= float(row[2]) * (1.01 if name in bands else 0.75)
        for k, v in before.items():
            np.testing.assert_array_equal(v, r.arrays[k])
