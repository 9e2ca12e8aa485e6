"""`skycairn-train` on a pile of two numbers: what it is told, what it leaves, and what it refuses."""

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import Result
from typer.testing import CliRunner

from skycairn.cli.runfile import read_run, small
from skycairn.cli.train import app
from skycairn.model.kept import network_of
from skycairn.pile.shards import TokenColumn, shard_schema, shard_table
from skycairn.pile.store import Draft, Entry, Pile

COLUMNS = (
    TokenColumn("hsc.mag_g", "b" * 64, 8, 1, "scalar", (), True, "tok_mag_g"),
    TokenColumn("legacysurvey.flux_g", "a" * 64, 8, 1, "scalar", (), True, "tok_flux_g"),
)

pytestmark = pytest.mark.usefixtures("one_thread")


def commit(pile: Pile, seed: int, splits: tuple[str, ...] = ("train", "validation", "test")) -> None:
    rng, entries = np.random.default_rng(seed), []
    for split in splits:
        ids = pa.table({"object_id": [f"{split}:{k}" for k in range(30)]})
        tokens = {c.modality: (rng.integers(0, 8, 30), np.ones(30, bool)) for c in COLUMNS}
        schema = shard_schema(ids.schema, COLUMNS, split, "legacysurvey+hsc")
        with pile.table_writer(schema) as writer:
            writer.write(shard_table(ids, tokens, {c.modality: ["present"] * 30 for c in COLUMNS}, schema))
        entries.append(Entry({"cell": 0, "split": split, "stratum": "legacysurvey+hsc"}, writer.part))
    pile.commit(Draft(recipe={}, tables={"shards": entries}))


@pytest.fixture
def pile(tmp_path: Path) -> Pile:
    pile = Pile.create(tmp_path / "pile")
    commit(pile, 0)
    return pile


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], env={"COLUMNS": "200", "TERM": "dumb"})


def test_a_pile_is_trained_on_scored_and_told_of(pile: Pile, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(pile.root, "--out", out, "--steps", 2, "--threads", 1)
    assert done.exit_code == 0, done.output
    assert "| Legacy flux given HSC magnitude | 30 |" in done.stdout
    assert network_of(out / "model").vocabulary.columns == COLUMNS and (out / "evaluation.json").exists()
    told = run("show", out)
    assert "step 2 of 2, size nano" in told.output and "Legacy flux given HSC magnitude" in told.output
    assert not pile.leases()
    # the pile grows, and the run keeps to its own snapshot unless told
    commit(pile, 1)
    again = run(pile.root, "--out", out, "--steps", 2, "--no-score")
    assert again.exit_code == 0 and "going on from step 2" in again.stderr
    other = run(pile.root, "--out", out, "--steps", 2, "--no-score", "--snapshot", "head")
    assert other.exit_code == 1 and "is of another run" in other.stderr
    shutil.rmtree(out)
    assert run(pile.root, "--out", out, "--steps", 1, "--no-score", "--snapshot", 1).exit_code == 0


def test_the_printed_file_is_what_a_pile_alone_gives(
    pile: Pile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a run in work/model would be gone on with
    path = tmp_path / "run.toml"
    path.write_text(run("config", pile.root).stdout)
    assert read_run(path) == small(pile.root)
    lines = path.read_text().splitlines()
    bare = [line for before, line in pairwise(lines) if " = " in line and not before.startswith("#")]
    assert {line.split(" = ")[0] for line in bare} == {"path", "rule"}, "each other key is told of"
    plan = run("plan", path)
    assert "1,000 steps of 1 x 64 objects, 2 modalities" in plan.stdout
    assert "| pile | legacysurvey+hsc | 30 | 100.0000% | 100.0000% | 64,000 |" in plan.stdout


def test_what_is_missing_is_told_before_the_first_step(pile: Pile, tmp_path: Path) -> None:
    lone = Pile.create(tmp_path / "lone")
    commit(lone, 0, ("train",))
    told = run(lone.root, "--out", tmp_path / "out", "--steps", 1)
    assert (
        told.exit_code == 1
        and "no test split to score on (lone has train)" in told.stderr
        and "--no-score" in told.stderr
    )
    told = run(lone.root, "--out", tmp_path / "out", "--steps", 1, "--no-score")
    assert told.exit_code == 0 and "lone: no validation split, so the last weights are taken" in told.stderr
    assert "wanted a pile, or a file" in run(tmp_path / "nothing").stderr
    assert "size is 'huge'; choose one of nano" in run(pile.root, "--size", "huge").stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("out = ", "is no TOML"),
        ("", "it names no pile"),
        ("stepz = 3\n[piles.a]\npath = 'x'", "the file has stepz; wanted some of piles, out"),
        ("[piles.a]\nfolder = 'x'", r"\[piles.a\] has folder; wanted some of path, snapshot"),
        ("[piles.a]\nsnapshot = 3", r"\[piles.a\] has no path"),
        ("score = 'yes'\n[piles.a]\npath = 'x'", "score is 'yes'; wanted bool"),
        ("[piles.a]\npath = 'x'\n[settings]\nstepz = 3", "settings: stepz: wanted some of size, steps"),
        ("[piles.a]\npath = 'x'\n[settings]\ndropout = 1.0", "dropout is 1.0; wanted 0 or more, below 1"),
        ("[piles.a]\npath = 'x'\n[settings]\npairs = 1", "pairs is 1; wanted true or false"),
        ("[piles.a]\npath = 'x'\n[settings.masking]\nrules = 3", "masking: rules: wanted"),
    ],
)
def test_a_file_says_what_is_wrong_with_it(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ValueError, match=rf"run\.toml.*{told}"):
        read_run(tmp_path / "run.toml")
