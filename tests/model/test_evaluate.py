"""A run to its end on a pile whose answer is known: what it leaves, how it is calibrated, and what it scores."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from skycairn.model import evaluate as ev
from skycairn.model.asked import objects_with
from skycairn.model.calibrate import TRUSTS, calibrate, careful
from skycairn.model.forms import FORMS, Form
from skycairn.model.kept import network_of
from skycairn.model.loader import Loader, slot_counts
from skycairn.model.rules import Dirichlet, Masking
from skycairn.model.settings import Settings
from skycairn.model.strata import Source
from skycairn.model.trained import finished
from skycairn.model.trainer import train
from skycairn.pile.shards import TokenColumn, shard_schema, shard_table
from skycairn.pile.store import Draft, Entry, Pile

BINS = 12
COLUMNS = (
    TokenColumn("desi.spectrum", "d" * 64, 9, 5, "line", (5,), False, "tok_spectrum_desi"),
    TokenColumn("desi.z", "e" * 64, BINS, 1, "scalar", (), True, "tok_z"),
    TokenColumn("hsc.mag_g", "b" * 64, BINS, 1, "scalar", (), True, "tok_mag_g"),
    TokenColumn("legacysurvey.flux_g", "a" * 64, BINS, 1, "scalar", (), True, "tok_flux_g"),
    TokenColumn("legacysurvey.shape_r", "c" * 64, BINS, 1, "scalar", (), True, "tok_shape_r"),
    TokenColumn("sdss.z", "e" * 64, BINS, 1, "scalar", (), True, "tok_z"),
)
MASKING = Masking(8, 6, across_surveys=0.5, components=(Dirichlet(),))


pytestmark = pytest.mark.usefixtures("one_thread")


def write_pile(root: Path, n: int = 320, codec: str = "b") -> Pile:
    """HSC's magnitude is Legacy's flux turned round; the radius is of its own; half have a spectrum of one code.

    Both redshifts are one number, of which nothing else tells.
    """
    columns = [replace(c, codec_id=codec * 64) if c.modality == "hsc.mag_g" else c for c in COLUMNS]
    pile, entries = Pile.create(root), []
    for number, split in enumerate(("train", "validation", "test")):
        rng = np.random.default_rng(number)
        for stratum, size in (("legacysurvey+hsc", n), ("legacysurvey", n // 4)):
            names = [f"legacysurvey:{number}{len(stratum)}{i}" for i in range(size)]
            flux, z = rng.integers(0, BINS, size), rng.integers(0, BINS, size)
            there = np.ones(size, bool)
            matched = there & (stratum != "legacysurvey")
            spectrum = matched & (rng.random(size) < 0.5)
            values = {
                "desi.spectrum": (np.repeat((flux // 4)[:, None], 5, axis=1) * spectrum[:, None], spectrum),
                "desi.z": (z, there),
                "hsc.mag_g": ((BINS - 1 - flux) * matched, matched),
                "legacysurvey.flux_g": (flux, there),
                "legacysurvey.shape_r": ((BINS * rng.random(size) ** 3).astype(int), there),
                "sdss.z": (z, there),
            }
            ids = pa.table({"object_id": names})
            schema = shard_schema(ids.schema, columns, split, stratum)
            said = {k: np.where(p, "present", "not detected").tolist() for k, (_, p) in values.items()}
            with pile.table_writer(schema, row_group_rows=100) as writer:
                writer.write(shard_table(ids, values, said, schema))
            entries.append(Entry({"cell": number, "split": split, "stratum": stratum}, writer.part))
    pile.commit(Draft(recipe={}, tables={"shards": entries}))
    return pile


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The pile, its source, the network that is put to use, and the folder of the run."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    sources = [Source(write_pile(folder / "pile"), Pile.open(folder / "pile").snapshot(), "known")]
    FORMS["test"] = Form(1, 1, 32, 2, 128)
    settings = Settings(
        size="test", steps=120, objects=48, microbatches=1, learning_rate=5e-3, warm_up=10, check_every=120, checked=4,
        smooth=True, pairs=True, counted=10_000, dropout=0.1, masking=MASKING,
    )  # fmt: skip
    train(sources, settings, folder / "out")
    yield sources, finished(sources, folder / "out"), folder / "out"
    del FORMS["test"]


def test_a_modality_that_another_tells_is_learned_and_one_of_its_own_is_not(trained):
    sources, network, out = trained
    found = ev.evaluate(network, sources)
    by_name = {g.what: g for g in found["marginal"]}
    flux = by_name["legacysurvey.flux_g"].against
    assert flux["marginal"].gain > 0.3 and flux["marginal"].sure and flux["start"].sure
    radius, z = by_name["legacysurvey.shape_r"], by_name["desi.z"]
    assert abs(radius.against["marginal"].gain) < 0.1 and radius.objects == 400
    assert z.against["marginal"].gain < 0.1, "the other redshift, which tells it, is withheld"
    partner = {g.what: g for g in found["partner"]}
    for question, least in (("Legacy flux given HSC magnitude", 0.5), ("flux given spectrum", 0.2)):
        assert all(a.low > least for a in partner[question].against.values()), question
    assert partner["HSC magnitude given Legacy flux"].against["another"].low > 0.5
    ev.write(found, out, {"split": "test"})
    told = json.loads((out / "evaluation.json").read_text())
    assert len(told["marginal"]) == len(by_name) and told["split"] == "test"
    assert "| legacysurvey.shape_r | 400 |" in (out / "evaluation.md").read_text()


def test_what_is_left_is_the_network_calibrated(trained):
    sources, network, out = trained
    again, last = network_of(out / "model"), network_of(out / "last")
    packed = Loader(sources, "test", MASKING, network.vocabulary).microbatch(0)
    with torch.no_grad():
        told, same, before = (n.logits(packed) for n in (network, again, last))
    trust = network.starts.get_buffer("trust")
    kind = network.vocabulary.modality_of_slot[packed.target_slot]
    for m, name in enumerate(network.vocabulary.names):
        assert torch.equal(told[name], same[name])
        own = packed.target_slot[kind == m] - network.vocabulary.first_slot[m]
        start = network.starts.at(m, torch.from_numpy(own).long())
        torch.testing.assert_close(told[name], trust[m] * (before[name] - start) + start, rtol=1e-4, atol=1e-4)
    assert trust[network.vocabulary.names.index("legacysurvey.flux_g")] > 0.7
    assert trust[network.vocabulary.names.index("legacysurvey.shape_r")] < 0.5


def test_trust_is_what_a_search_by_hand_finds(trained):
    sources, _, out = trained
    network = network_of(out / "last")
    held = Loader(sources, "validation", MASKING, network.vocabulary)
    microbatches = [held.microbatch(i) for i in range(3)]
    m = network.vocabulary.names.index("desi.spectrum")
    losses = [[] for _ in TRUSTS]
    for packed in microbatches:
        own = np.flatnonzero(network.vocabulary.modality_of_slot[packed.target_slot] == m)
        of = np.repeat(np.arange(packed.n_objects), np.diff(packed.target_start))[own]
        for t, found in zip(TRUSTS, losses, strict=True):
            network.starts.get_buffer("trust")[m] = t
            with torch.no_grad():
                logits = network.logits(packed)["desi.spectrum"]
            loss = F.cross_entropy(logits, torch.from_numpy(packed.target_token[own]).long(), reduction="none").numpy()
            found += [loss[of == i].mean() for i in np.unique(of)]
    calibrate(network, microbatches)
    assert float(network.starts.get_buffer("trust")[m]) == pytest.approx(TRUSTS[careful(np.array(losses))])


def test_the_careful_trust_is_the_smallest_that_is_as_good():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, 200)
    falling = np.stack([noise + (1 - t) ** 2 for t in TRUSTS])
    assert TRUSTS[careful(falling)] == 1.0
    idle = rng.normal(0, 0.3, 200)
    nothing = np.stack([noise + t * (idle - idle.mean()) for t in TRUSTS])
    assert careful(nothing) == 0
    assert careful(np.zeros((len(TRUSTS), 0))) == 0


def test_a_score_is_the_same_one_object_at_a_time(trained, monkeypatch):
    """Whatever else is in a microbatch, where all tokens are shown and asked for."""
    sources, network, _ = trained
    rows = Loader(sources, "test", MASKING, network.vocabulary).whole(30)
    asker = ev.Asker(network, Loader(sources, "test", Masking(64, 32)).masker)
    tables = [ev.marginals(slot_counts(rows, network.vocabulary))]
    at_once = ev.scores(asker, rows, [1, 3], [2, 4], tables)
    monkeypatch.setattr(ev, "OBJECTS", 1)
    np.testing.assert_allclose(ev.scores(asker, rows, [1, 3], [2, 4], tables), at_once, rtol=1e-5)


def test_marginals_are_add_one_half_of_each_object_once(trained):
    sources, network, _ = trained
    rows = Loader(sources, "train", MASKING).whole(10_000)
    m = network.vocabulary.names.index("legacysurvey.flux_g")
    counts = slot_counts(rows, network.vocabulary)
    assert counts[m].sum() == len(rows.length) == 400
    np.testing.assert_allclose(ev.marginals(counts)[m], (counts[m] + 0.5) / (400 + BINS / 2))
    assert len(Loader(sources, "train", MASKING).whole(150).length) == 150


def test_what_hangs_on_nothing_gains_nothing():
    rng = np.random.default_rng(0)
    found = ev.paired("x", rng.normal(2, 1, 500), {"y": rng.normal(2, 1, 500)}).against["y"]
    assert found.low < 0 < found.high and not found.sure
    assert ev.paired("x", np.zeros(0), {"y": np.zeros(0)}).objects == 0


def test_a_partner_is_another_object_with_the_same_slots():
    length = np.array([[1, 0], [1, 0], [1, 5], [1, 5], [1, 5], [0, 5]])
    found = ev._others(length, np.random.default_rng(0))
    assert found[5] == -1
    assert sorted(found[:5].tolist()) == [0, 1, 2, 3, 4]
    assert all(found[i] != i and (length[found[i]] == length[i]).all() for i in range(5))


def test_the_training_split_is_not_scored(trained):
    sources, network, _ = trained
    with pytest.raises(ValueError, match="training split"):
        ev.evaluate(network, sources, split="train")


def test_fault_53_a_model_is_not_asked_about_tokens_of_other_codecs(trained, tmp_path):
    """Whose numbers mean other values, however like they look."""
    _, network, _ = trained
    other = write_pile(tmp_path / "pile", n=20, codec="f")
    with pytest.raises(ValueError, match=rf"hsc\.mag_g is there by the codec {'f' * 64} .*, wanted {'b' * 64}"):
        ev.evaluate(network, [Source(other, other.snapshot())])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 4  # of the last weight; the header stays whole
    path.write_bytes(data)


def edited(path: Path) -> None:
    path.write_text(path.read_text().replace('"learning_rate": 0.005', '"learning_rate": 1.0'))


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("rank-00000-of-00001.safetensors", flip, "is not what was written, or is gone"),
        ("rank-00000-of-00001.safetensors", Path.unlink, "is not what was written, or is gone"),
        ("about.json", edited, "about.json: is not what was written"),
        ("about.json", Path.unlink, "holds no about.json"),
    ],
)
def test_fault_53_a_damaged_checkpoint_is_refused(trained, tmp_path, file, damage, says):
    copy = Path(shutil.copytree(trained[2] / "model", tmp_path / "model"))
    damage(copy / file)
    with pytest.raises(ValueError, match=says):
        network_of(copy)


def test_objects_of_a_question_are_whole_rows_in_an_order_of_their_own(trained):
    pile, snapshot, _ = trained[0][0]
    found = objects_with(pile, snapshot, "test", ("hsc.mag_g", "desi.spectrum"), ("legacysurvey.flux_g",))
    assert len(found.about) == 320, "those of HSC, with a spectrum or without"
    flux, mag, spectrum = (found.tokens[m] for m in ("legacysurvey.flux_g", "hsc.mag_g", "desi.spectrum"))
    assert (flux.values + mag.values == BINS - 1).all()
    assert 100 < spectrum.present.sum() < 220 and (spectrum.length == 5 * spectrum.present).all()
    assert (spectrum.values[spectrum.present] == flux.values[spectrum.present] // 4).all()
    ids = found.about["object_id"].to_pylist()
    assert len(set(ids)) == 320 and ids != sorted(ids)
    few = objects_with(pile, snapshot, "test", ("hsc.mag_g",), ("legacysurvey.flux_g",), most=7)
    assert few.about["object_id"].to_pylist() == ids[:7]
    turned = found.take(np.arange(319, -1, -1))
    assert turned.about["object_id"].to_pylist() == ids[::-1]
    assert (turned.tokens["hsc.mag_g"].values == mag.values[::-1]).all()
    with pytest.raises(ValueError, match=r"no tokens of gaia\.flux_g; it has desi\.spectrum"):
        objects_with(pile, snapshot, "test", ("gaia.flux_g",), ())
    with pytest.raises(ValueError, match=r"no object of the split 'elsewhere' has one of hsc\.mag_g"):
        objects_with(pile, snapshot, "elsewhere", ("hsc.mag_g",), ())
