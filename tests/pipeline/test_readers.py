"""Who reads a pile is not disturbed by who builds and cleans it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from skycairn.cli.main import app
from skycairn.model.loader import Loader
from skycairn.model.rules import Masking
from skycairn.model.strata import Source
from skycairn.pile.collect import collect
from skycairn.pile.files import Missing
from skycairn.pile.store import Pile
from skycairn.pipeline.recipe import Recipe
from skycairn.pipeline.run import build

READER = """
import hashlib, pathlib, sys
from skycairn.model.loader import Loader
from skycairn.model.rules import Masking
from skycairn.model.strata import Source
from skycairn.pile.store import Pile
pile = Pile.open(sys.argv[1])
with pile.pin() as pinned:
    print(pinned.snapshot.number, flush=True)
    for seed in range(4):
        digest = hashlib.sha256()
        loader = Loader([Source(pile, pinned.snapshot)], "train", Masking(), objects=16, lanes=1, seed=seed)
        for i in range(20):
            digest.update(loader.rows(i).tokens.tobytes() + loader.rows(i).length.tobytes())
        print(digest.hexdigest(), flush=True)
        sys.stdin.readline()
"""


def digests(pile: Pile, number: int) -> list[str]:
    out = []
    for seed in range(4):
        digest = hashlib.sha256()
        loader = Loader([Source(pile, pile.snapshot(number))], "train", Masking(), objects=16, lanes=1, seed=seed)
        for i in range(20):
            digest.update(loader.rows(i).tokens.tobytes() + loader.rows(i).length.tobytes())
        out.append(digest.hexdigest())
    return out


def test_fault_54_a_reader_while_builds_commit_and_the_pile_is_cleaned(
    tiny_recipe: Recipe, tiny_pile: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_pile, tmp_path / "pile"))
    alone = digests(Pile.open(copy), 1)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(copy)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdin and reader.stdout
    assert reader.stdout.readline() == "1\n"
    seen = [reader.stdout.readline().strip()]
    for i in range(3):
        names = ("gaia", "desi", "hsc")[: i + 1]
        build(replace(tiny_recipe, surveys=tuple(c for c in tiny_recipe.surveys if c.name in names)), copy)
        found = collect(Pile.open(copy), keep=1, delete=True, uncommitted=True)
        assert found.snapshots_kept[1] == (f"process {reader.pid} on {os.uname().nodename} reads it",)
        reader.stdin.write("\n")
        reader.stdin.flush()
        seen.append(reader.stdout.readline().strip())
    reader.communicate("\n")
    assert seen == alone
    assert Pile.open(copy).snapshots() == [1, 4]
    # and once nobody reads it, it goes
    collect(Pile.open(copy), keep=1, delete=True)
    opened = Pile.open(copy)
    assert opened.snapshots() == [4]
    assert opened.verify(deep=True).sound
    with pytest.raises(Missing, match="no snapshot 1"):
        opened.pin(1)


def test_what_is_left_after_a_cleaning_is_built_on(tiny_recipe: Recipe, tiny_pile: Path, tmp_path: Path) -> None:
    """Cleaned of an older state, the pile still grows to the same end, and that state can be built again."""
    copy = Path(shutil.copytree(tiny_pile, tmp_path / "pile"))
    before = Pile.open(copy).snapshot().content_id
    without = replace(tiny_recipe, surveys=tuple(c for c in tiny_recipe.surveys if c.name != "hsc"))
    small = build(without, copy).snapshot.content_id
    gone = collect(Pile.open(copy), keep=1, delete=True)
    assert gone.snapshots == (1,) and gone.parts and gone.receipts
    assert build(without, copy).n_tasks == 0
    again = build(tiny_recipe, copy)
    assert again.snapshot.content_id == before and again.done["extract"]
    assert build(without, copy).snapshot.content_id == small


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], env={"COLUMNS": "200", "TERM": "dumb"})


def test_history_tags_and_cleaning_by_command(tiny_recipe: Recipe, tiny_pile: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_pile, tmp_path / "pile"))
    assert "paper-1: snapshot 1" in run("tag", copy, "paper-1").output
    build(replace(tiny_recipe, surveys=tuple(c for c in tiny_recipe.surveys if c.name != "hsc")), copy)
    refused = run("tag", copy, "paper-1")
    assert refused.exit_code == 1 and "paper-1 names snapshot 1" in refused.stderr and "--move" in refused.stderr
    told = run("history", copy).output
    assert told.index(" 2 ") < told.index(" 1 ") and "paper-1" in told
    dry = run("gc", copy, "--keep", 1)
    assert "snapshot 1 stays: tag paper-1" in dry.output and "Nothing was removed" in dry.output
    said = run("diff", copy, "paper-1", "head").output
    assert "recipe: surveys.hsc" in said and "changed" in said
    assert run("tag", copy, "paper-1", "--remove").exit_code == 0
    assert "1 snapshots (1)" in run("gc", copy, "--keep", 1, "--delete").output
    assert Pile.open(copy).snapshots() == [2]
    absent = run("diff", copy, "paper-1", "head")
    assert absent.exit_code == 1 and "paper-1" in absent.stderr


def test_where_an_object_comes_from(tiny_recipe: Recipe, tiny_pile: Path) -> None:
    """What `explain` says is what the survey files hold: checksum, row, position."""
    from astropy.io import fits

    opened = Pile.open(tiny_pile)
    head = opened.snapshot()
    rows = [r for e in head.entries("objects") for r in opened.read_table(e.part).to_pylist()]
    chosen = next(r for r in rows if r["status.legacysurvey"] == "present" and r["status.desi"] == "present")
    found = json.loads(run("explain", chosen["object_id"], "--pile", tiny_pile, "--json").output)
    assert {s["uid"].split(":")[0] for s in found["sources"]} >= {"legacysurvey", "desi"}
    for source in found["sources"]:
        survey = source["uid"].split(":")[0]
        path = Path(tiny_recipe.choice(survey).root) / source["file"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == source["sha256"]
        if survey == "legacysurvey":
            row = fits.getdata(path, 1)[source["row"]]
            assert (row["RA"], row["DEC"]) == (source["ra"], source["dec"])
            assert (int(row["RELEASE"]) << 42 | int(row["BRICKID"]) << 22 | int(row["OBJID"])) == int(
                source["uid"].split(":")[1]
            )
    image = next(m for m in found["measurements"] if m["modality"] == "legacysurvey.image")
    assert image["n_tokens"] > 1 and image["codec"] == head.stats["codecs"]["legacysurvey.image"]
    for path, state, sha256 in image["files"].values():
        if state == "there":
            data = (Path(tiny_recipe.choice("legacysurvey").root) / path).read_bytes()
            assert hashlib.sha256(data).hexdigest() == sha256
    assert all(opened.receipt(key) is not None for key in found["tasks"].values())
    table = run("explain", chosen["object_id"], "--pile", tiny_pile).output
    assert "Candidate pairs" in table and found["sources"][0]["sha256"][:20] in table
    assert run("explain", "gaia:1", "--pile", tiny_pile).exit_code == 1


def test_of_neighbouring_patches_only_the_number_is_printed(tiny_pile: Path) -> None:
    opened = Pile.open(tiny_pile)
    rows = [r for e in opened.snapshot().entries("objects") for r in opened.read_table(e.part).to_pylist()]
    chosen = next(r["object_id"] for r in rows if r["status.hsc.image"] == "present")
    found = json.loads(run("explain", chosen, "--pile", tiny_pile, "--json").output)
    files = next(m for m in found["measurements"] if m["modality"] == "hsc.image")["files"]
    beside = [state for role, (_, state, _) in files.items() if ":" in role]
    assert beside.count("unpublished") > 1
    short = run("explain", chosen, "--pile", tiny_pile).output
    assert f"{beside.count('unpublished')} files of neighbouring patches: unpublished" in short
    assert f"{beside.count('there')} files of neighbouring patches: there" in short
    assert "HSC-G:" in short and "HSC-G:0,1" not in short
    every = run("explain", chosen, "--pile", tiny_pile, "--all").output
    assert "HSC-G:0,1" in every and "neighbouring" not in every
    assert len(short.splitlines()) < len(every.splitlines()) - len(beside)
