"""The table of codecs' errors: what it counts, in which unit, and that it takes nothing from the training sky."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest

from skycairn.catalogs.survey import Modality
from skycairn.pile.store import Pile
from skycairn.pipeline import heldout
from skycairn.tokenizers.lock import read_lock
from skycairn.tokenizers.scalar import GridCodec


@pytest.fixture(scope="module")
def errors() -> ModuleType:
    """benchmarks/codec_errors.py."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "codec_errors.py"
    spec = importlib.util.spec_from_file_location("codec_errors", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["codec_errors"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pile(errors, tiny_pile, monkeypatch):
    """The tiny pile, whose sky is all of one split, taken for held-out sky; modalities and codecs by name."""
    monkeypatch.setattr(heldout, "HELD_OUT", ("train",))
    monkeypatch.setattr(heldout, "split_of_cell", lambda c, *_: np.full(len(c), "test"))
    opened = Pile.open(tiny_pile)
    modalities = {m.name: m for s in errors.surveys(opened) for m in s.modalities}
    return opened, modalities, read_lock(tiny_pile / "codecs.lock")


def cells_of(row: str) -> list[str]:
    return [c.strip() for c in row.strip("|").split("|")]


def test_the_training_sky_is_refused(errors, pile, monkeypatch):
    opened, modalities, codecs = pile
    monkeypatch.undo()
    with pytest.raises(ValueError, match="are empty"):
        errors.held_out(opened, modalities["desi.z"], codecs["desi.z"])
    monkeypatch.setattr(heldout, "HELD_OUT", ("train",))
    with pytest.raises(ValueError, match="lie on the training sky"):
        errors.held_out(opened, modalities["desi.z"], codecs["desi.z"])


def test_sigma_is_the_surveys_own(errors):
    table = pa.table(
        {"e": [0.5, None], "w": [4.0, 0.0], "v": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2))}
    )
    assert errors.sigma_of(table, Modality("a.x", "t", "log", "x", ivar="w"))[0] == 0.5
    assert np.isnan(errors.sigma_of(table, Modality("a.x", "t", "log", "x", ivar="w"))[1])
    assert errors.sigma_of(table, Modality("a.x", "t", "log", "x", error="e"))[0] == 0.5
    assert errors.sigma_of(table, Modality("a.x", "t", "xp", "x", shape=(2,), error="v")).tolist() == [[1, 2], [3, 4]]
    assert errors.sigma_of(table, Modality("a.x", "t", "quantile", "x")) is None


def test_spread_of_a_normal_sample_is_its_sigma(errors):
    x = np.random.default_rng(0).normal(3, 2, 40_000)
    assert errors.spread(x) == pytest.approx(2, rel=0.03)


def test_a_row_counts_errors_in_sigma_and_end_bins(errors):
    codec = GridCodec.fit(0.0, 10.0, 12, "linear")
    x = np.array([-1.0, 0.5, 1.6, 2.9])  # below the grid, then 0, 0.1 and 0.4 off the middle of its bin
    tokens = codec.encode({"value": x})
    m = Modality("a.x", "t", "grid", "x", error="e")
    row = cells_of(errors.error_row(m, codec, tokens, x, np.array([np.nan, 1.0, 0.2, 0.1])))
    assert row[:7] == ["a.x", "grid", "1", "12", "a fixed grid", "4", "sigma"]
    # 0, 0.5 and 4 sigma; the source without an error is in none of them
    assert [float(v) for v in row[7:10]] == pytest.approx([0.5, 0.5 + 3.5 * 0.68, 0.5 + 3.5 * 0.98], rel=0.01)
    assert row[10] == "67%" and row[12] == "25.0%"


def test_the_errors_of_a_pile_are_those_of_its_tokens(errors, pile):
    opened, modalities, codecs = pile
    (row,) = errors.column_rows(opened, modalities["desi.z"], codecs["desi.z"])
    wide = pa.concat_tables([opened.read_table(e.part) for e in opened.snapshot().entries("desi.wide")])
    good = wide.filter(wide["z_good"].is_valid())
    z, error = good["z_good"].to_numpy(), good["zerr"].to_numpy()
    decoded = codecs["desi.z"].decode(codecs["desi.z"].encode({"value": z}))["value"]
    assert int(cells_of(row)[5]) == len(z)
    assert float(cells_of(row)[7]) == pytest.approx(np.median(np.abs(decoded - z) / error), rel=0.01)


def test_tokens_of_other_measurements_are_refused(errors, pile):
    opened, modalities, codecs = pile
    held = errors.held_out(opened, modalities["desi.z"], codecs["desi.z"])
    with pytest.raises(ValueError, match="not those of the pile"):
        errors.check_tokens(modalities["desi.z"], held.tokens + 1, held)


class Told:
    """A codec whose reconstruction is given."""

    def __init__(self, codec, flux):
        self.codec, self.flux, self.n_tokens, self.layout = codec, flux, codec.n_tokens, codec.layout

    def encode(self, measurement):
        return self.codec.encode(measurement)

    def decode(self, tokens):
        return {"flux": self.flux}


@pytest.mark.parametrize("name", ["legacysurvey.image", "desi.spectrum"])
def test_all_of_a_perfect_reconstruction_is_kept_and_nothing_of_none(errors, pile, name):
    opened, modalities, codecs = pile
    m, codec = modalities[name], codecs[name]
    flux = errors.payload(opened, m, errors.held_out(opened, m, codec))["flux"]
    if m.codec == "image":
        crop = 80 - codec.crop // 2
        flux = flux[:, :, crop : crop + codec.crop, crop : crop + codec.crop]
        tell, kept, bias = errors.image_rows, 7, 9
    else:
        tell, kept, bias = errors.spectrum_rows, 5, 7
    perfect = [cells_of(r) for r in tell(opened, m, Told(codec, flux))]
    assert len(perfect) >= 2
    for row in perfect:
        assert row[kept].startswith("100.0") and float(row[bias].strip("%")) == pytest.approx(0, abs=0.01)
        assert float(row[-1]) == pytest.approx(0, abs=0.01)
    for row in (cells_of(r) for r in tell(opened, m, Told(codec, np.zeros_like(flux)))):
        assert float(row[kept].strip("%")) == 0 and float(row[bias].strip("%")) == -100
    # the codec itself lies between
    for row in (cells_of(r) for r in tell(opened, m, codec)):
        if row[0] == "all" or row[1] == "all":
            assert 50 < float(row[kept].strip("%")) < 100
