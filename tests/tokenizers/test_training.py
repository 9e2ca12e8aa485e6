"""Training of codecs: it learns, goes on bit for bit where it was, and says what is wrong."""

import json
import math
import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from skycairn.tokenizers.checkpoint import tensors_of
from skycairn.tokenizers.lock import read_lock
from skycairn.tokenizers.schedule import PAPER, QUICK, Schedule
from skycairn.tokenizers.training import Stopped, _groups, train

sys.path.insert(0, str(Path(__file__).parent))
from linearcodec import LEVELS, LinearCodec

SHORT = Schedule(steps=12, batch=8, learning_rate=0.02, warm_up=2, ema=0.8, check_every=4, seed=3)
TWO = ("hsc.image", "legacysurvey.image")


pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Told:
    floor: float = 0.5


class Vectors:
    """Examples of rank 2, noisy, some pixels bad."""

    identity = "vectors"

    def __init__(self, counts=(300, 100), bad=None):
        self.counts, self.bad, self.steps = dict(zip(TWO, counts, strict=True)), bad, 0
        self.basis = np.random.default_rng(0).normal(size=(2, 12))

    def count(self, modality):
        return self.counts[modality]

    def some(self, n, rng):
        flux = rng.normal(size=(n, 2)) @ self.basis
        mask = rng.random((n, 12)) < 0.1
        return {"flux": np.where(mask, np.nan, flux).astype(np.float32), "mask": mask}

    def draw(self, modality, n, rng):
        self.steps += 1
        found = self.some(n, rng)
        if self.steps == self.bad:
            found["flux"][:] = np.where(found["mask"], 0, 1e30)
        return found

    def held(self, modality):
        rng = np.random.default_rng(1)
        yield self.some(16, rng)
        yield self.some(5, rng)


def two(seed=0):
    first = LinearCodec(seed=seed)
    return {TWO[0]: first, TWO[1]: LinearCodec(network=first.network)}


def weights_of(codecs):
    return {k: v.copy() for k, v in next(iter(codecs.values())).arrays().items()}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return weights_of(train(two(), Vectors(), SHORT, out)), out


def test_the_loss_goes_down_and_is_told(tmp_path):
    told = []
    schedule = replace(SHORT, steps=120, check_every=40)
    codecs = train(two(), Vectors(), schedule, tmp_path, progress=told.append)
    lines = [json.loads(t) for t in (tmp_path / "training" / "linear test" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [40, 80, 120]
    for modality in TWO:
        held = [line["held_out"][modality] for line in lines]
        assert held[-1]["loss"] < 0.9 * held[0]["loss"] < 0.1 * 2.0 and all(h["n"] == 21 for h in held)
        last = held[-1]
        assert 0 < last["used"] <= 1 and last["dead"] == round(LEVELS * (1 - last["used"]))
        assert 1 <= last["perplexity"] <= LEVELS * last["used"] + 1e-9
        assert last["parts"]["chi2"] == pytest.approx(last["loss"])
        assert set(lines[-1]["learned"][modality]) == {"loss", "parts"}
    assert lines[-1]["examples_s"] > 0 and lines[-1]["grad_norm"] > 0
    assert any("350" not in t and "300 of hsc.image" in t for t in told)
    saved = read_lock(tmp_path / "codecs.lock")
    assert {m: c.content_id for m, c in saved.items()} == {m: c.content_id for m, c in codecs.items()}
    flux = Vectors().some(50, np.random.default_rng(5))
    assert np.array_equal(saved[TWO[0]].encode(flux), codecs[TWO[0]].encode(flux))


@pytest.mark.parametrize("at", [1, 5, 8])
def test_it_goes_on_bit_for_bit(at, whole, tmp_path):
    class Stops(Vectors):
        def draw(self, modality, n, rng):
            found = super().draw(modality, n, rng)
            if self.steps == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return found

    with pytest.raises(Stopped) as stopped:
        train(two(), Stops(), SHORT, tmp_path)
    assert stopped.value.signal == signal.SIGTERM and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    about = json.loads((tmp_path / "training" / "linear test" / "last" / "about.json").read_text())
    assert 0 <= about["step"] < SHORT.steps and not (tmp_path / "codecs.lock").exists()
    codecs = train(two(seed=7), Vectors(), SHORT, tmp_path)  # the weights come from the checkpoint
    assert same(weights_of(codecs), whole[0])
    lines = [json.loads(t) for t in (tmp_path / "training" / "linear test" / "metrics.jsonl").read_text().splitlines()]
    before = max([line["step"] for line in lines if line["step"] <= about["step"]], default=0)
    first = next(line for line in lines if line["step"] > about["step"])
    assert first["steps"] == first["step"] - about["step"] and before <= about["step"]
    assert sum(line["steps"] for line in lines) == SHORT.steps - (about["step"] - before)
    mine, theirs = (
        [json.loads(t)["held_out"] for t in (p / "training" / "linear test" / "metrics.jsonl").read_text().splitlines()]
        for p in (tmp_path, whole[1])
    )
    assert mine == theirs
    again = train(two(seed=8), Vectors(), SHORT, tmp_path)
    assert same(weights_of(again), whole[0]), "a run that is done is done"


def test_a_limit_of_time_stops_early_says_so_and_goes_on(whole, tmp_path):
    told = []
    codecs = train(two(), Vectors(), replace(SHORT, most_seconds=1e-9), tmp_path, progress=told.append)
    assert any("at step 1 of 12" in t for t in told)
    assert read_lock(tmp_path / "codecs.lock")[TWO[0]].content_id == codecs[TWO[0]].content_id
    assert same(weights_of(train(two(), Vectors(), SHORT, tmp_path)), whole[0])


def test_what_is_kept_are_the_averaged_weights(tmp_path):
    class Seen(LinearCodec):
        def loss(self, tensors):
            if self.network.training:
                history.append(self.network.down.weight.detach().clone())
            return super().loss(tensors)

    history = []
    codec = Seen()
    schedule = replace(SHORT, ema=0.8, check_every=100)
    train({TWO[0]: codec}, Vectors(), schedule, tmp_path)
    network = torch.from_numpy(np.array(codec.arrays()["down.weight"]))
    last = tmp_path / "training" / "linear test" / "last"
    live = tensors_of(last / "network.safetensors")
    kept = history[0].clone()
    for step, now in enumerate([*history[1:], live["down.weight"]]):
        kept = kept.lerp(now, 1 - schedule.averaged(step))
    torch.testing.assert_close(network, kept)
    assert not torch.equal(network, live["down.weight"]) and int(codec.arrays()["seen"]) == 12
    train({TWO[0]: LinearCodec()}, Vectors(), replace(schedule, ema=0.0), tmp_path / "plain")
    live = tensors_of(tmp_path / "plain" / "training" / "linear test" / "last" / "network.safetensors")
    assert torch.equal(
        live["down.weight"],
        torch.from_numpy(read_lock(tmp_path / "plain" / "codecs.lock")[TWO[0]].arrays()["down.weight"]),
    )


def test_a_loss_that_is_not_finite_names_the_step_and_leaves_the_checkpoint(tmp_path):
    with pytest.raises(FloatingPointError, match=r"step 6: the loss of .* is inf; the last checkpoint"):
        train(two(), Vectors(bad=7), SHORT, tmp_path)
    about = json.loads((tmp_path / "training" / "linear test" / "last" / "about.json").read_text())
    assert about["step"] == 4


def test_another_run_is_refused_with_what_differs(whole, tmp_path):
    def fails(match, codecs=None, examples=None, schedule=SHORT, **more):
        with pytest.raises(ValueError, match=match):
            train(codecs or two(), examples or Vectors(), schedule, whole[1], **more)

    fails(r"unlike in schedule \(learning_rate 0.02 there, 0.01 here\)", schedule=replace(SHORT, learning_rate=0.01))
    wider = LinearCodec(codes=5)
    fails(
        r"codes 4 there, 5 here",
        codecs={TWO[0]: wider, TWO[1]: LinearCodec(codes=5, network=wider.network)},
    )
    others = Vectors()
    others.identity = "others"
    fails("unlike in examples", examples=others)
    told = two()
    told[TWO[1]].objective = Told()
    fails(rf"unlike in objective \({TWO[1]} floor None there, 0.5 here\)", codecs=told)
    fails("unlike in chances", weights={TWO[0]: 1.0, TWO[1]: 2.0})


def test_codecs_trained_before_stay_in_the_lock(tmp_path):
    train({TWO[0]: LinearCodec()}, Vectors(), replace(SHORT, steps=2), tmp_path)
    first = read_lock(tmp_path / "codecs.lock")
    (tmp_path / "training").rename(tmp_path / "elsewhere")
    train({TWO[1]: LinearCodec(seed=5)}, Vectors(), replace(SHORT, steps=2), tmp_path)
    both = read_lock(tmp_path / "codecs.lock")
    assert set(both) == set(TWO) and both[TWO[0]].content_id == first[TWO[0]].content_id


def test_wrong_calls_are_refused(tmp_path):
    with pytest.raises(ValueError, match="2 networks"):
        train({TWO[0]: LinearCodec(), TWO[1]: LinearCodec()}, Vectors(), SHORT, tmp_path)
    with pytest.raises(ValueError, match="no modality"):
        train({}, Vectors(), SHORT, tmp_path)
    with pytest.raises(ValueError, match=r"no hsc\.image on the training sky"):
        train(two(), Vectors(counts=(0, 1)), SHORT, tmp_path)
    with pytest.raises(ValueError, match="weights are"):
        train(two(), Vectors(), SHORT, tmp_path, weights={TWO[0]: 1.0})
    assert not list(tmp_path.iterdir())


def test_modalities_are_drawn_by_their_examples_with_a_floor(tmp_path):
    class Counted(Vectors):
        drawn: dict[str, int] = {}  # noqa: RUF012

        def draw(self, modality, n, rng):
            self.drawn[modality] = self.drawn.get(modality, 0) + 1
            return super().draw(modality, n, rng)

    examples = Counted(counts=(1_000_000, 1))
    train(two(), examples, replace(SHORT, steps=300, batch=1, check_every=300), tmp_path)
    assert sum(examples.drawn.values()) == 300 and 3 <= examples.drawn[TWO[1]] <= 35


def test_low_precision_keeps_the_weights_whole(tmp_path):
    codecs = train(two(), Vectors(), replace(SHORT, precision="bf16"), tmp_path)
    assert all(v.dtype in (np.float32, np.int64) for v in weights_of(codecs).values())


def test_only_matrices_decay():
    network = torch.nn.Sequential(torch.nn.Conv1d(6, 6, 7, groups=6), torch.nn.LayerNorm(6))
    network.gamma = torch.nn.Parameter(torch.zeros(1, 1, 24))
    decayed, kept = (g["params"] for g in _groups(network, 0.1))
    assert [tuple(p.shape) for p in decayed] == [(6, 1, 7)] and len(kept) == 4


def test_rates_are_those_of_the_paper():
    image, spectrum, segmap = (PAPER[k] for k in ("image", "spectrum", "segmap"))
    assert image.rate(0) == pytest.approx(5e-7) and image.rate(999) == pytest.approx(5e-4, rel=1e-4)
    assert image.rate(200_000) == pytest.approx(2.5e-4, rel=1e-3) and image.rate(399_999) == pytest.approx(0, abs=1e-12)
    assert {spectrum.rate(s) for s in (0, 1000, 214_999)} == {1e-4}
    assert segmap.rate(0) == segmap.rate(41_998) == 1e-4 and segmap.rate(78_000) == pytest.approx(5e-5, rel=1e-3)
    for schedule in (*PAPER.values(), *QUICK.values()):
        shorter = schedule.of_steps(schedule.steps // 4)
        assert shorter.warm_up == pytest.approx(schedule.warm_up / 4, abs=1)
        assert shorter.rate(shorter.steps - 1) == pytest.approx(schedule.rate(schedule.steps - 1), abs=1e-8)


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"batch": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"clip": 0.0},
        {"decay": 1.5},
        {"ema": 1.0},
        {"precision": "fp16"},
        {"most_seconds": -1.0},
    ],
)
def test_schedules_are_checked(bad):
    with pytest.raises(ValueError, match=r"wanted|choose"):
        replace(SHORT, **bad)
