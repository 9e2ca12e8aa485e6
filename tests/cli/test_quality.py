"""The quality report: a perfect codec is told to be perfect, the truth is that of the pile, the page holds it all."""

import base64
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import typer
from typer.testing import CliRunner

from skycairn.cli import quality
from skycairn.cli.qualitytables import DARK
from skycairn.pile.store import Draft, Entry, Pile
from skycairn.pipeline import heldout
from skycairn.tokenizers.lock import read_lock, write_lock
from skycairn.tokenizers.patches import PatchSpectrumCodec


@pytest.fixture
def pile(tiny_pile, monkeypatch):
    """The tiny pile, whose sky is all of one split, taken for held-out sky."""
    monkeypatch.setattr(heldout, "HELD_OUT", ("train",))
    monkeypatch.setattr(heldout, "split_of_cell", lambda c, *_: np.full(len(c), "test"))
    return Pile.open(tiny_pile)


class Told:
    """A codec whose reconstruction is given by the tokens: the row number is the first of them."""

    kind, vocabulary, wavelength = "told", 1 << 16, None

    def __init__(self, flux):
        self.flux = flux

    def sees(self, measurement):
        return np.ones(len(measurement["flux"]), bool)

    def encode(self, measurement):
        return np.arange(len(measurement["flux"]), dtype=np.uint16)[:, None]

    def decode(self, tokens):
        return {"flux": self.flux[tokens[:, 0]]}


def judged(pile, root, truth, name, most, other=None):
    (s, m) = next((s, m) for s in heldout.surveys(pile) for m in s.modalities if m.name == name)
    codecs = quality.contestants(pile, root, {})[name]
    first = quality.judge(pile, s, m, codecs, truth, most)
    if other is None:
        return first
    whole = other(first, pile, s, m)
    return quality.judge(pile, s, m, codecs | {"told": Told(whole)}, truth, most)


def test_the_truth_itself_is_perfect_and_the_data_are_one_sigma_off(pile, tiny_pile, tiny_free):
    def truth(first, pile, s, m):
        return heldout.true_flux(pile, s, m, tiny_free, first.key, first.measured).astype(np.float32)

    j = judged(pile, tiny_pile, tiny_free, "desi.spectrum", 12, truth)
    told, own, dark = (j.found[c] for c in ("told", "pile", DARK))
    assert 6 <= len(j.key) <= 12 and told.whole_truth.pooled()[0] == 0 and told.truth["all"].pooled()[-1] == 0
    assert told.data["all"].pooled() == pytest.approx(1, abs=0.1)
    assert 0 < own.whole_truth.medians()[0] < dark.whole_truth.medians()[0]
    np.testing.assert_allclose(told.flux, 1, atol=1e-6)
    assert np.abs(told.shift).max() < 0.1 and dark.shift is None and own.codes.n_tokens == 273
    assert all(abs(x.shift_pixels) < 1e-3 and x.width_decoded == pytest.approx(x.width_true) for x in told.lines)


def test_a_pile_of_a_learned_codec_is_judged_though_a_gpu_has_encoded_it(pile, tiny_pile, tiny_free, monkeypatch):
    from skycairn.pipeline.learned import grid
    from skycairn.tokenizers.spectrum import SpectrumCodec

    (s, m) = next((s, m) for s in heldout.surveys(pile) for m in s.modalities if m.name == "desi.spectrum")
    own, codec = read_lock(tiny_pile / "codecs.lock")[m.name], SpectrumCodec.fresh("tiny", grid=grid(m))
    assert np.array_equal(quality._wavelength(m), own.wavelength())
    held = heldout.HeldOut(*(a[:4] for a in heldout.held_out(pile, m, own)))
    tokens = codec.encode(heldout.payload(pile, m, held))
    tokens[0, 5] ^= 1
    monkeypatch.setattr(heldout, "held_out", lambda *_: heldout.HeldOut(held.key, tokens))
    j = quality.judge(pile, s, m, {"pile": codec}, tiny_free)
    assert j.flips == 1 / tokens.size and j.found["pile"].shift is not None
    tokens[0, 6] ^= 1
    with pytest.raises(ValueError, match=r"not those of the pile's measurements \(0\.18% are others\)"):
        quality.judge(pile, s, m, {"pile": codec}, tiny_free)


def test_what_has_no_inverse_variance_is_left_out_and_named(pile, tiny_pile, tiny_free, tmp_path, monkeypatch):
    made, said = Pile.create(tmp_path / "pile"), []
    entry = Entry({"cell": 0}, made.put_table(pa.table({"flux": [1.0]})))
    made.commit(Draft(recipe={}, tables={}, aside={"payload.legacysurvey.image": [entry]}, held_back=[], stats={}))
    found = {m.name: m for s in heldout.surveys(pile) for m in s.modalities}
    assert not heldout.weighted(made, found["legacysurvey.image"]) and heldout.weighted(pile, found["hsc.image"])
    monkeypatch.setattr(heldout, "weighted", lambda *_: False)
    with pytest.raises(ValueError, match="no modality to judge"):
        quality.report(tiny_pile, tiny_free, {}, said.append, only="sdss.spectrum")
    assert said == ["sdss.spectrum: is left out, since its pixels have no inverse variance to measure errors by"]


def test_images_are_cut_alike(pile, tiny_pile, tiny_free):
    j = judged(pile, tiny_pile, tiny_free, "legacysurvey.image", 8)
    assert j.truth.shape == j.measured["flux"].shape == j.decoded["pile"].shape == (8, 4, 96, 96)
    off = (j.measured["flux"] - j.truth) * np.sqrt(j.measured["ivar"])
    assert off[j.good].std() == pytest.approx(1, abs=0.02)
    assert set(j.found["pile"].truth) == {"all", "g", "r", "i", "z"}
    assert quality.central(np.arange(160)[None, :] + np.zeros((160, 1)), 96)[0, 48] == 80


def test_the_truth_of_another_sky_is_refused(pile, tiny_pile, tiny_free, tiny_sky, tmp_path):
    (s, m) = next((s, m) for s in heldout.surveys(pile) for m in s.modalities if m.name == "sdss.spectrum")
    held = heldout.held_out(pile, m, read_lock(tiny_pile / "codecs.lock")[m.name])
    measured = heldout.payload(pile, m, held)
    other = measured | {"ivar": measured["ivar"] * 2}
    with pytest.raises(ValueError, match=r"sdss.spectrum of sdss:\d+ has another ivar than the pile"):
        heldout.true_flux(pile, s, m, tiny_free, held.key, other)
    with pytest.raises(ValueError, match="is noisy; wanted what `skycairn mock"):
        quality.report(tiny_pile, tiny_sky, {}, print)
    with pytest.raises(ValueError, match=r"holds no mock.json"):
        quality.report(tiny_pile, tmp_path, {}, print)
    with pytest.raises(ValueError, match=r"no modality to judge of the name 'x'; it has .*sdss.spectrum"):
        quality.report(tiny_pile, tiny_free, {}, print, only="x")


def test_the_command_prints_tables_and_writes_a_page(pile, tiny_pile, tiny_free, tmp_path):
    own = read_lock(tiny_pile / "codecs.lock")["sdss.spectrum"]
    rng = np.random.default_rng(0)
    flux = rng.normal(3, 1, (20, own.n_pixels)).astype("f4")
    sample = {"flux": flux, "ivar": np.ones_like(flux), "mask": np.zeros(flux.shape, bool)}
    write_lock(
        tmp_path / "codecs.lock",
        {"sdss.spectrum": PatchSpectrumCodec.fit(sample, own.start, own.step, own.scale, n_patches=40)},
    )
    app = typer.Typer()
    app.command()(quality.quality)
    page = tmp_path / "page.html"
    asked = [str(tiny_pile), "--truth", str(tiny_free), "--only", "sdss.spectrum", "--most", "5", "--out", str(page)]
    done = CliRunner().invoke(app, [*asked, "--codecs", f"coarse={tmp_path / 'codecs.lock'}"])
    assert done.exit_code == 0, done.output
    assert "### sdss.spectrum: error by surface brightness" in done.output
    assert re.search(r"\| sdss.spectrum \| coarse \| patch_spectrum \| 41 ", done.output)
    text = page.read_text()
    (drawn,) = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert base64.b64decode(drawn)[:8] == b"\x89PNG\r\n\x1a\n" and "coarse: error, median" in text
    assert "http" not in re.sub(r'src="data[^"]+"', "", text)
    for wrong, said in ((["--codecs", "coarse"], "wanted NAME=LOCK"), (["--out", "x.png"], "wanted .html")):
        done = CliRunner().invoke(app, [*asked, *wrong])
        assert done.exit_code == 1 and said in done.output


def test_pictures_of_images(pile, tiny_pile, tiny_free):
    from skycairn.cli.qualitypage import chosen, images

    j = judged(pile, tiny_pile, tiny_free, "legacysurvey.image", 10)
    rows = chosen(j)
    assert rows and (np.diff(j.sn()[rows]) >= 0).all()
    labels = {ax.get_label() for ax in images(j).axes}
    assert {"measured:0", "true:0", "decoded, pile:0", "residual, pile:0"} <= labels
    j.measured = j.measured | {"mask": np.ones_like(j.measured["mask"])}
    assert not chosen(j) and not images(j).axes
    assert replace(j, kind=np.full(10, "star")).kind[0] == "star"
