"""Masking, network, training and evaluation on piles whose answer is known."""

import json
import signal
from pathlib import Path

import healpy
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from skycairn.model import evaluate as ev
from skycairn.model import train as tr
from skycairn.model.masking import Rule, allocate, chosen, draw
from skycairn.model.network import SIZES, Model, Size, cosines, smoothed, starting_logits
from skycairn.model.objects import Objects, read_split, slot_counts
from skycairn.model.train import Config, load, train
from skycairn.model.vocabulary import Vocabulary
from skycairn.pile.shards import TokenColumn, shard_schema, shard_table
from skycairn.pile.store import Draft, Entry, Pile

BINS = 12
COLUMNS = (
    TokenColumn("desi.spectrum", "d" * 64, 9, 5, "line", (5,), False, "tok_spectrum_desi"),
    TokenColumn("hsc.mag_g", "b" * 64, BINS, 1, "scalar", (), True, "tok_mag_g"),
    TokenColumn("legacysurvey.flux_g", "a" * 64, BINS, 1, "scalar", (), True, "tok_flux_g"),
    TokenColumn("legacysurvey.shape_r", "c" * 64, BINS, 1, "scalar", (), True, "tok_shape_r"),
)
VOCABULARY = Vocabulary(COLUMNS)


pytestmark = pytest.mark.usefixtures("one_thread")


def objects(lengths, seed=0) -> Objects:
    rng = np.random.default_rng(seed)
    length = np.asarray(lengths, np.int32).reshape(-1, len(COLUMNS))
    tokens = np.zeros((len(length), VOCABULARY.n_slots), np.uint32)
    for m, column in enumerate(COLUMNS):
        there = np.arange(column.n_tokens) < length[:, m, None]
        part = slice(VOCABULARY.first_slot[m], VOCABULARY.first_slot[m + 1])
        tokens[:, part] = np.where(there, rng.integers(0, column.vocabulary, there.shape), 0)
    n = len(length)
    return Objects(np.array([f"o{i}" for i in range(n)]), tokens, length, np.arange(n))


SOME = st.lists(
    st.tuples(st.sampled_from([0, 5]), *(st.sampled_from([0, 1]) for _ in range(3))).filter(lambda v: sum(v) >= 2),
    min_size=1,
    max_size=12,
)
RULES = st.builds(
    Rule,
    inputs=st.integers(1, 8),
    targets=st.integers(1, 6),
    across_surveys=st.sampled_from([0.0, 0.5, 1.0]),
    across_modalities=st.just(0.0),
)


@given(SOME, RULES, st.integers(0, 99))
def test_masking_is_within_its_budgets_disjoint_and_of_what_is_there(lengths, rule, seed):
    some = objects(lengths)
    batch = draw(some, VOCABULARY, rule, np.random.default_rng(seed))
    there = np.zeros((len(lengths), VOCABULARY.n_slots), bool)
    for m, column in enumerate(COLUMNS):
        part = slice(VOCABULARY.first_slot[m], VOCABULARY.first_slot[m + 1])
        there[:, part] = np.arange(column.n_tokens) < some.length[:, m, None]
    for i in range(len(lengths)):
        shown = batch.input_slot[i][batch.input_valid[i]].tolist()
        asked = batch.target_slot[i][batch.target_valid[i]].tolist()
        assert len(shown) <= rule.inputs and 1 <= len(asked) <= rule.targets
        assert not set(shown) & set(asked) and len(set(shown)) == len(shown) and len(set(asked)) == len(asked)
        assert there[i, shown + asked].all()
        assert batch.input_token[i][batch.input_valid[i]].tolist() == some.tokens[i, shown].tolist()
        assert batch.target_token[i][batch.target_valid[i]].tolist() == some.tokens[i, asked].tolist()


def test_across_surveys_asks_one_survey_of_another():
    some = objects([[5, 1, 1, 1]] * 200)
    batch = draw(some, VOCABULARY, Rule(8, 6, across_surveys=1.0, across_modalities=0.0), np.random.default_rng(0))
    survey = VOCABULARY.survey[VOCABULARY.modality_of_slot]
    for i in range(200):
        shown = set(survey[batch.input_slot[i][batch.input_valid[i]]].tolist())
        asked = set(survey[batch.target_slot[i][batch.target_valid[i]]].tolist())
        assert asked and not shown & asked


@given(st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=1, max_size=9), st.integers(1, 20))
def test_a_budget_is_spent_to_the_last_token(wanted, budget):
    wanted = np.array(wanted, np.int64)
    given_ = allocate(wanted, budget, np.random.default_rng(0))
    assert (given_ <= wanted).all() and (given_ >= 0).all()
    assert given_.sum(axis=1).tolist() == np.minimum(wanted.sum(axis=1), budget).tolist()
    for want, got in zip(wanted, given_, strict=True):
        if (got < want).any():
            assert got.max() <= got[got < want].min() + 1, "no one has more while another goes without"


@pytest.mark.parametrize("bad", [{"inputs": 0}, {"alpha": 0.0}, {"across_surveys": 0.9, "across_modalities": 0.2}])
def test_rules_are_checked(bad):
    with pytest.raises(ValueError, match="masking"):
        Rule(**bad)


def model_of(counts=None, seed=0) -> Model:
    torch.manual_seed(seed)
    return Model(VOCABULARY, Size(2, 32, 2), 0.0, counts).eval()


def test_ordered_tables_start_smooth_in_value_and_unordered_ones_do_not():
    model = model_of()
    for table in (model.token, model.head):
        rows = table.rows(VOCABULARY.names.index("hsc.mag_g")).detach()
        step = (rows[1:] - rows[:-1]).norm(dim=1)
        far = torch.stack([(rows[i] - rows[(i + BINS // 2) % BINS]).norm() for i in range(BINS)])
        assert step.mean() < 0.7 * far.mean()
        rough = table.rows(VOCABULARY.names.index("desi.spectrum")).detach()
        near = (rough[1:] - rough[:-1]).norm(dim=1)
        assert near.std() / near.mean() < 0.5 and near.min() > 0.5 * rough.norm(dim=1).mean()
    waves = cosines(1024)
    assert np.abs(np.diff(waves, axis=0)).max() < 0.02 and np.linalg.matrix_rank(waves) == 16


def test_padding_changes_no_loss():
    some = objects([[5, 1, 1, 1], [0, 1, 1, 0], [5, 0, 0, 0]])
    rng = np.random.default_rng(3)
    batch = draw(some, VOCABULARY, Rule(6, 4), rng)
    wide = batch._replace(
        **{n: np.pad(getattr(batch, n), ((0, 0), (0, 5))) for n in batch._fields}  # False and 0 beyond
    )
    model = model_of()
    with torch.no_grad():
        one, two = model.losses(batch), model.losses(wide)
        alone = [model.losses(batch.rows(slice(i, i + 1)))[0] for i in range(3)]
    torch.testing.assert_close(one[0], two[0])
    for i in range(3):
        torch.testing.assert_close(alone[i].sort().values, one[0][one[1] == i].sort().values)


def test_asked_tokens_are_not_seen():
    some = objects([[5, 1, 1, 1]] * 4)
    batch = draw(some, VOCABULARY, Rule(4, 4), np.random.default_rng(0))
    other = batch._replace(target_token=np.zeros_like(batch.target_token))
    model = model_of()
    features = []
    for b in (batch, other):
        given_ = [torch.from_numpy(a) for a in b]
        with torch.no_grad():
            features.append(model.decode(model.encode(*given_[:3]), given_[2], given_[3], given_[5]))
    assert torch.equal(*features)


def test_a_slot_starts_from_its_own_counts_as_far_as_they_say_more_than_the_modalitys():
    unlike = np.array([[900, 100, 0], [0, 100, 900]])
    alike = np.array([[5, 4, 1], [4, 5, 1]])
    start = np.exp(starting_logits(unlike, False, unlike.sum(axis=0)))
    np.testing.assert_allclose(start.sum(axis=1), 1, rtol=1e-5)
    assert start[0, 0] > 0.85 and start[0, 2] < 0.02
    near = np.exp(starting_logits(alike, False, alike.sum(axis=0)))
    assert np.abs(near[0] - near[1]).max() < 0.01


def test_neighbours_lend_to_each_other_where_there_are_few_objects():
    rng = np.random.default_rng(0)
    counts = np.bincount(np.clip(rng.normal(500, 60, 100), 0, 1023).astype(int), minlength=1024)
    other = np.clip(rng.normal(500, 60, 4000), 0, 1023).astype(int)
    share = smoothed(counts)
    assert share.sum() == pytest.approx(1)
    marginal = (counts + 0.5) / (100 + 512)
    assert -np.log(share[other]).mean() < -np.log(marginal[other]).mean() - 0.5
    even = smoothed(np.full(16, 20) + rng.integers(-3, 4, 16))
    assert np.abs(even * 16 - 1).max() < 0.1
    assert smoothed(np.zeros(8, int)).tolist() == [1 / 8] * 8
    below = smoothed(np.array([0, *(20 + rng.integers(-3, 4, 15))]))
    assert below[0] < 0.002, "a bin that no one is in lends from no neighbour where the others are full"


def test_halves_of_a_batch_are_the_batch_without_its_padding():
    few, many = [1] * len(COLUMNS), [c.n_tokens for c in COLUMNS]
    some = objects([few, many] * 5)
    batch = draw(some, VOCABULARY, Rule(inputs=20, targets=10), np.random.default_rng(0))
    halves = batch.halves()
    assert [len(h.input_slot) for h in halves] == [5, 5]
    assert halves[0].input_slot.shape[1] < halves[1].input_slot.shape[1] == batch.input_slot.shape[1]
    for valid, token in ((2, 1), (5, 4)):
        assert sum(int(h[token][h[valid]].sum()) for h in halves) == int(batch[token][batch[valid]].sum())
        assert sum(int(h[valid].sum()) for h in halves) == int(batch[valid].sum())


def test_the_careful_trust_is_the_smallest_that_is_as_good():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, 200)
    falling = np.stack([noise + (1 - t) ** 2 for t in tr.TRUSTS])
    assert tr.TRUSTS[tr._careful(falling)] == 1.0
    idle = rng.normal(0, 0.3, 200)
    nothing = np.stack([noise + t * (idle - idle.mean()) for t in tr.TRUSTS])
    assert tr._careful(nothing) == 0
    assert tr._careful(np.zeros((len(tr.TRUSTS), 0))) == 0


# --- piles whose answer is known


def write_pile(root: Path, n=320) -> Pile:
    """HSC's magnitude is Legacy's flux turned round; the radius is of its own; half have a spectrum of one code."""
    pile, entries = Pile.create(root), []
    for number, split in enumerate(("train", "validation")):
        rng = np.random.default_rng(number)
        for stratum, size in (("legacysurvey+hsc", n), ("legacysurvey", n // 4)):
            names = [f"legacysurvey:{number}{len(stratum)}{i}" for i in range(size)]
            ids = pa.table({"object_id": names, "ra": rng.random(size) * 2, "dec": rng.random(size) * 2})
            flux = rng.integers(0, BINS, size)
            there = np.ones(size, bool)
            matched = there & (stratum != "legacysurvey")
            spectrum = matched & (rng.random(size) < 0.5)
            values = {
                "desi.spectrum": (np.repeat((flux // 4)[:, None], 5, axis=1) * spectrum[:, None], spectrum),
                "hsc.mag_g": ((BINS - 1 - flux) * matched, matched),
                "legacysurvey.flux_g": (flux, there),
                "legacysurvey.shape_r": ((BINS * rng.random(size) ** 3).astype(int), there),
            }
            schema = shard_schema(ids.schema, COLUMNS, split, stratum)
            said = {k: np.where(p, "present", "not detected").tolist() for k, (_, p) in values.items()}
            with pile.table_writer(schema, row_group_rows=100) as writer:
                writer.write(shard_table(ids, values, said, schema))
            entries.append(Entry({"cell": number, "split": split, "stratum": stratum}, writer.part))
    pile.commit(Draft(recipe={}, tables={"shards": entries}))
    return pile


CONFIG = Config(steps=60, batch=48, warm_up=10, check_every=20, learning_rate=5e-3, dropout=0.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    pile = write_pile(folder / "pile")
    SIZES["test"] = Size(1, 32, 2)
    config = Config(**{**vars(CONFIG), "size": "test", "steps": 160})
    torch.set_num_threads(1)
    model = train(pile, pile.snapshot(), folder / "out", config, "cpu", lambda _: None)
    return pile, model, folder / "out", config


def test_a_modality_that_another_tells_is_learned_and_one_of_its_own_is_not(trained):
    pile, model, _, _ = trained
    found = ev.evaluate(model, pile, pile.snapshot())
    by_name = {g.what: g for g in found["marginal"]}
    flux = by_name["legacysurvey.flux_g"].against
    assert flux["marginal"].gain > 0.3 and flux["marginal"].sure and flux["start"].sure
    radius = by_name["legacysurvey.shape_r"]
    assert abs(radius.against["marginal"].gain) < 0.1 and radius.objects == 400
    partner = {g.what: g for g in found["partner"]}
    for question, least in (("Legacy flux given HSC magnitude", 0.5), ("flux given spectrum", 0.2)):
        assert all(a.low > least for a in partner[question].against.values()), question
    assert partner["HSC magnitude given Legacy flux"].against["another"].low > 0.5
    assert "redshift given photometry" not in partner, "there is no redshift here"


def test_loss_falls_and_is_written_down(trained):
    _, _, out, _ = trained
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["held_out"] < lines[0]["held_out"] and lines[-1]["step"] == 160


def test_a_saved_model_is_the_model(trained):
    pile, model, out, _ = trained
    again = load(out / "model")
    some = read_split(pile, pile.snapshot(), "validation", model.vocabulary)
    batch = draw(some, model.vocabulary, Rule(), np.random.default_rng(0))
    with torch.no_grad():
        assert torch.equal(model.losses(batch)[0], again.losses(batch)[0])


def test_what_was_kept_scores_as_it_did(trained):
    pile, model, out, config = trained
    objects = read_split(pile, pile.snapshot(), "train", model.vocabulary)
    held = tr.hold_out(objects.cell)[1]
    about = json.loads((out / "best" / "about.json").read_text())
    again = tr.held_out_loss(load(out / "best"), objects.take(held), config)
    assert again == pytest.approx(about["held_out"], abs=1e-6)
    assert 0.04 * len(objects.ids) < len(held) < 0.2 * len(objects.ids)


def test_a_tenth_of_the_sky_is_held_out_and_its_border_is_in_neither():
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(359, 361, 4000) % 360, rng.uniform(-1, 1, 4000)
    cell = healpy.ang2pix(1 << 13, ra, dec, nest=True, lonlat=True)
    learned, held = tr.hold_out(cell)
    assert 300 < len(held) < 500 and len(learned) + len(held) < 4000
    xyz = healpy.ang2vec(ra, dec, lonlat=True)
    nearest, _ = cKDTree(xyz[learned]).query(xyz[held])
    assert np.degrees(nearest.min()) * 3600 > 10
    assert tr.hold_out(cell)[1].tolist() == held.tolist()
    with pytest.raises(ValueError, match="5 training objects in 1 cells are too few"):
        tr.hold_out(np.full(5, 77))


def test_the_training_split_is_not_scored(trained):
    pile, model, _, _ = trained
    with pytest.raises(ValueError, match="training split"):
        ev.evaluate(model, pile, pile.snapshot(), split="train")


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


def test_marginals_are_add_one_half(trained):
    pile, model, _, _ = trained
    training = read_split(pile, pile.snapshot(), "train", model.vocabulary)
    m = model.vocabulary.names.index("legacysurvey.flux_g")
    counts = slot_counts(training, model.vocabulary)[m]
    assert counts.sum() == len(training.ids)
    expected = (counts + 0.5) / (counts.sum() + BINS / 2)
    np.testing.assert_allclose(ev.marginals(model, training)[m], expected)


@pytest.mark.parametrize("stop", [0, 20, 33])
def test_a_run_that_is_stopped_goes_on_exactly(tmp_path, monkeypatch, stop):
    SIZES["test"] = Size(1, 32, 2)
    config = Config(**{**vars(CONFIG), "size": "test", "dropout": 0.1})
    pile = write_pile(tmp_path / "pile", n=60)
    whole = train(pile, pile.snapshot(), tmp_path / "one", config, "cpu", lambda _: None)
    calls = 0

    def stopping(*args):
        nonlocal calls
        calls += 1
        if calls > stop:
            raise KeyboardInterrupt
        return draw(*args)

    with monkeypatch.context() as patched:
        patched.setattr(
            tr, "draw", lambda *a: stopping(*a) if a[2] is config.rule and len(a[0].ids) == 48 else draw(*a)
        )
        with pytest.raises(KeyboardInterrupt):
            train(pile, pile.snapshot(), tmp_path / "two", config, "cpu", lambda _: None)
    said: list[str] = []
    again = train(pile, pile.snapshot(), tmp_path / "two", config, "cpu", said.append)
    assert said[0].startswith("going on from step" if stop >= 20 else "67 objects")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_ctrl_c_is_heeded_between_steps_and_nothing_is_lost(tmp_path, monkeypatch):
    SIZES["test"] = Size(1, 32, 2)
    config = Config(**{**vars(CONFIG), "size": "test", "steps": 30, "dropout": 0.1})
    pile = write_pile(tmp_path / "pile", n=60)
    whole = train(pile, pile.snapshot(), tmp_path / "one", config, "cpu", lambda _: None)
    calls, before = 0, signal.getsignal(signal.SIGINT)

    def interrupted(*args):
        nonlocal calls
        calls += args[2] is config.rule and len(args[0].ids) == 48
        if calls == 7:
            signal.raise_signal(signal.SIGINT)
        return draw(*args)

    with monkeypatch.context() as patched:
        patched.setattr(tr, "draw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(pile, pile.snapshot(), tmp_path / "two", config, "cpu", lambda _: None)
    assert signal.getsignal(signal.SIGINT) is before
    said: list[str] = []
    again = train(pile, pile.snapshot(), tmp_path / "two", config, "cpu", said.append)
    assert said[0].startswith("going on from step 7 ")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_another_run_in_the_same_folder_is_refused(trained):
    pile, _, out, config = trained
    with pytest.raises(ValueError, match=r"unlike in config \(seed 0 there, 5 here\)"):
        train(pile, pile.snapshot(), out, Config(**{**vars(config), "seed": 5}), "cpu", lambda _: None)


@pytest.mark.parametrize("bad", [{"size": "huge"}, {"steps": 0}, {"learning_rate": 0.0}])
def test_configurations_are_checked(bad):
    with pytest.raises(ValueError, match="train"):
        Config(**bad)


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"holds no about\.json"):
        load(tmp_path)


@settings(max_examples=20)
@given(SOME, st.integers(0, 9))
def test_as_many_tokens_are_chosen_as_the_counts_say(lengths, seed):
    some = objects(lengths)
    half = some.length // 2
    batch = chosen(
        some, VOCABULARY, half.astype(np.int64), (some.length - half).astype(np.int64), np.random.default_rng(seed)
    )
    assert batch.input_valid.sum() == half.sum() and batch.target_valid.sum() == (some.length - half).sum()
