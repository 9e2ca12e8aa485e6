"""Training on shards by one process and by two, on a pile whose answer is known."""

import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from skycairn.model import sharded
from skycairn.model.rules import Masking
from skycairn.model.settings import Settings
from skycairn.model.strata import Source, Weights
from skycairn.model.trainer import Run, train
from skycairn.pile.shards import TokenArray, TokenColumn, shard_schema, shard_table
from skycairn.pile.store import Draft, Entry, Pile
from skycairn.tokenizers.training import Signals, Stopped

BINS = 8
COLUMNS = (
    TokenColumn("desi.spectrum", "d" * 64, 9, 5, "line", (5,), False, "tok_spectrum_desi"),
    TokenColumn("hsc.mag_g", "b" * 64, BINS, 1, "scalar", (), True, "tok_mag_g"),
    TokenColumn("legacysurvey.flux_g", "a" * 64, BINS, 1, "scalar", (), True, "tok_flux_g"),
)
SETTINGS = Settings(
    steps=6,
    objects=8,
    microbatches=4,
    learning_rate=3e-3,
    warm_up=2,
    check_every=3,
    checked=3,
    pool=32,
    seed=5,
    masking=Masking(inputs=6, targets=4, across_surveys=0.5),
)


pytestmark = pytest.mark.usefixtures("one_thread")


def write_pile(root: Path, split_rows: dict[str, int], codec: str = "b") -> Pile:
    """hsc.mag_g is the flux's bin from the other end; the spectrum is noise, and half of the objects lack it."""
    pile, entries, rng = Pile.create(root), [], np.random.default_rng(3)
    columns = [replace(c, codec_id=codec * 64) if c.modality == "hsc.mag_g" else c for c in COLUMNS]
    for split, n in split_rows.items():
        flux = rng.integers(0, BINS, n)
        values = {
            "desi.spectrum": rng.integers(0, 9, (n, 5)),
            "hsc.mag_g": BINS - 1 - flux,
            "legacysurvey.flux_g": flux,
        }
        tokens, status = {}, {}
        for c in columns:
            there = rng.random(n) < 0.5 if c.modality == "desi.spectrum" else np.ones(n, bool)
            array = np.where(there[:, None], values[c.modality].reshape(n, -1), 0).astype(c.dtype)
            tokens[c.modality] = TokenArray(array, there, np.where(there, c.n_tokens, 0))
            status[c.modality] = np.where(there, "present", "not detected").tolist()
        ids = pa.table({"object_id": [f"{split}:{k}" for k in range(n)]})
        schema = shard_schema(ids.schema, columns, split, "all")
        with pile.table_writer(schema, row_group_rows=16) as writer:
            writer.write(shard_table(ids, tokens, status, schema))
        entries.append(Entry({"cell": 0, "split": split, "stratum": "all"}, writer.part))
    pile.commit(Draft(recipe={}, tables={"shards": entries}))
    return pile


@pytest.fixture(scope="module")
def pile(tmp_path_factory: pytest.TempPathFactory) -> Pile:
    return write_pile(tmp_path_factory.mktemp("trainer") / "pile", {"train": 200, "validation": 50})


def sources(pile: Pile) -> list[Source]:
    return [Source(pile, pile.snapshot())]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    about = sharded.read_about(folder)
    types = {"torch.float32": torch.float32, "torch.int64": torch.int64}
    into = {k: torch.zeros(shape, dtype=types[kind]) for k, (shape, kind) in about["tensors"].items()}
    sharded.read(folder, into)
    return into


class StopAt(Signals):
    """Told to stop when it is asked for the n-th time."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    @property
    def number(self) -> int:
        self.left -= 1
        return signal.SIGTERM if self.left < 0 else 0

    @number.setter
    def number(self, value: int) -> None:
        pass


def test_what_one_survey_says_of_another_is_learned(pile: Pile, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=150, check_every=75, learning_rate=5e-3, warm_up=10, checked=6)
    train(sources(pile), settings, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [75, 150]
    end = lines[-1]["validation"]["modalities"]
    # where the other of the two is shown the answer is sure, where not it is one of eight
    assert end["hsc.mag_g"] < 0.6 * math.log(BINS) and end["legacysurvey.flux_g"] < 0.6 * math.log(BINS)
    assert end["desi.spectrum"] > 0.9 * math.log(9), "noise cannot be foretold"
    assert 0 <= lines[-1]["waiting"] <= 1 and lines[-1]["objects_s"] > 0 and lines[-1]["useful_gflops_s"] > 0


def test_a_run_that_was_stopped_ends_as_one_that_was_not(pile: Pile, tmp_path: Path) -> None:
    train(sources(pile), SETTINGS, tmp_path / "whole")
    stopped = Run(sources(pile), SETTINGS, tmp_path / "parts", "cpu", "validation", lambda _: None)
    with pytest.raises(Stopped, match="SIGTERM"):
        stopped.go(StopAt(4))
    assert sharded.read_about(tmp_path / "parts" / "last")["step"] == 4
    train(sources(pile), SETTINGS, tmp_path / "parts")
    whole, parts = weights(tmp_path / "whole" / "last"), weights(tmp_path / "parts" / "last")
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    told = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    assert [json.loads(line)["validation"] for line in told[0]] == [json.loads(line)["validation"] for line in told[1]]


RANK = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
sys.path.insert(0, sys.argv[4])
torch.set_num_threads(1)
from test_trainer import SETTINGS, StopAt, sources
from skycairn.model.trainer import Run, Stopped
from skycairn.pile.store import Pile
rank, root, out = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{out / 'store'}", rank=rank, world_size=2)
for name, stop in (("two", 999), ("again", 2), ("again", 999), ("parts", 4)):
    run = Run(sources(Pile.open(root)), SETTINGS, out / name, "cpu", "validation", lambda _: None)
    try:
        # one process alone is told to stop, and both do
        run.go(StopAt(stop if rank == 1 else 999))
    except Stopped:
        pass
dist.destroy_process_group()
"""


def told(out: Path) -> list[float]:
    """Losses of the validation sky, look by look, modality by modality."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [v for line in lines for v in line["validation"]["modalities"].values()]


def test_two_processes_learn_what_one_does_and_go_on_from_each_other(pile: Pile, tmp_path: Path) -> None:
    train(sources(pile), SETTINGS, tmp_path / "one")
    rest = [str(pile.root), str(tmp_path), str(Path(__file__).parent)]
    running = [subprocess.Popen([sys.executable, "-c", RANK, str(rank), *rest]) for rank in range(2)]
    assert [r.wait(150) for r in running] == [0, 0]
    # of weights whose gradient is rounding alone Adam makes steps of any direction: they are the same by what they tell
    one = told(tmp_path / "one")
    assert told(tmp_path / "two") == pytest.approx(one, rel=2e-4)
    again, whole = weights(tmp_path / "again" / "last"), weights(tmp_path / "two" / "last")
    assert all(torch.equal(again[k], whole[k]) for k in whole), "on two processes bit for bit"
    assert sharded.read_about(tmp_path / "parts" / "last")["step"] == 4
    train(sources(pile), SETTINGS, tmp_path / "parts")
    assert told(tmp_path / "parts") == pytest.approx(one, rel=2e-4)


def test_nothing_that_is_written_is_a_pickle(pile: Pile, tmp_path: Path) -> None:
    train(sources(pile), replace(SETTINGS, steps=1, check_every=1), tmp_path)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".json", ".jsonl", ".safetensors"}
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            n = int.from_bytes(content[:8], "little")
            header = json.loads(content[8 : 8 + n])
            assert len(content) == 8 + n + max(v["data_offsets"][1] for v in header.values())
        else:
            for text in content.splitlines() if path.suffix == ".jsonl" else [content]:
                json.loads(text)


def test_another_run_in_the_same_folder_is_refused(pile: Pile, tmp_path: Path) -> None:
    train(sources(pile), replace(SETTINGS, steps=1, check_every=1), tmp_path / "out")
    with pytest.raises(ValueError, match=r"unlike in settings .*learning_rate 0.003 there, 0.001 here"):
        train(sources(pile), replace(SETTINGS, steps=1, check_every=1, learning_rate=1e-3), tmp_path / "out")
    other = write_pile(tmp_path / "other", {"train": 60, "validation": 20}, codec="e")
    with pytest.raises(ValueError, match=r"hsc.mag_g is there by the codec e.*, wanted b"):
        train(sources(other), replace(SETTINGS, steps=1, check_every=1), tmp_path / "out")


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_checkpoint(pile: Pile, tmp_path: Path) -> None:
    wild = replace(SETTINGS, learning_rate=1e30, warm_up=0, check_every=1, clip=1e30)
    with pytest.raises(FloatingPointError, match=r"step \d: the loss is .*; the last checkpoint is in .*try a lower"):
        train(sources(pile), wild, tmp_path, validation="")
    assert sharded.read_about(tmp_path / "last")["step"] >= 1


def test_processes_must_divide_the_microbatches(pile: Pile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="3 processes cannot share 4 microbatches a step"):
        Run(sources(pile), SETTINGS, tmp_path, "cpu", "validation", lambda _: None)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"size": "huge"}, "size is 'huge'; choose one of nano"),
        ({"steps": 0}, "steps is 0; wanted a whole number of 1 or more"),
        ({"steps": True}, "steps is True"),
        ({"precision": "fp16"}, "precision is 'fp16'; choose one of fp32, bf16"),
        ({"learning_rate": math.nan}, "learning_rate is nan; wanted a number above 0"),
        ({"betas": [0.9, 1.0]}, r"betas \(0.9, 1.0\); wanted"),
        ({"stepz": 3}, "stepz: wanted some of size, steps"),
    ],
)
def test_settings_say_what_is_wrong(value: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Settings.from_json(value)


def test_settings_are_plain_values_and_back() -> None:
    settings = replace(SETTINGS, weights=Weights(matched=3.0, power=0.5))
    assert Settings.from_json(json.loads(json.dumps(settings.as_json()))) == settings
    rates = [settings.rate(step) for step in range(settings.steps)]
    assert rates[0] == pytest.approx(settings.learning_rate / 2) and max(rates) == pytest.approx(settings.learning_rate)
    assert rates[-1] < 0.3 * settings.learning_rate and min(rates) >= settings.least_rate * settings.learning_rate
