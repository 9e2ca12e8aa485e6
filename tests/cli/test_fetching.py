"""`skycairn fetch`, `skycairn mirror`, and what builds say before they fetch."""

import csv
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from skycairn.cli import fetching
from skycairn.cli.main import app
from skycairn.pipeline import recipe as recipes

RECIPE = """
[region]
kind = "cone"
ra = 0.0
dec = -1.2
radius_deg = 0.5
[surveys.gaia]
release = "dr3"
[surveys.sdss]
release = "dr17"
profile = "strict"
[split]
least = 0.0
[codecs]
fit_on = "any"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "few.toml").write_text(RECIPE)
    return tmp_path / "few.toml"


def run(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(w) for w in words])
    assert done.exit_code == code, done.output
    return done.output


def test_a_list_of_catalogue_files_then_of_pixels_and_spectra_too(tmp_path: Path, tiny_sky: Path, recipe: Path) -> None:
    into, pile = tmp_path / "list.csv", tmp_path / "pile"
    said = run("fetch", recipe, "--via-http", "--root", tiny_sky, "--list", into, "--pile", pile)
    assert "7 files, about" in said and "catalogue files alone, no pixels or spectra" in said
    assert re.search(r"3 catalogue files are not here yet, gaia/gaia_source/\S+ for one: copy them, and run", said)
    # where the catalogues are copied, a root holds them, and the pile is told
    said = run("fetch", recipe, "--root", tiny_sky, "--list", into, "--pile", pile, "--all")
    assert "catalogue files, pixels and spectra" in said and "9 files lie below the root already" in said
    rows = list(csv.DictReader(into.read_text().splitlines()))
    assert {r["path"].rsplit("/", 1)[1][:7] for r in rows if r["survey"] == "sdss"} == {"specObj", "spPlate"}
    # lost on purpose: its list names it, and the root has it not
    run("fetch", recipe, "--root", tiny_sky, "--list", into, "--pile", pile)
    assert [Path(r["path"]).name for r in csv.DictReader(into.read_text().splitlines())] == [
        "XpContinuousMeanSpectrum_278505-278708.csv.gz"
    ]
    run("fetch", recipe, "--root", tiny_sky, "--list", into, "--pile", pile, "--survey", "sdss", "--format", "rsync")
    assert into.read_text() == ""


def test_fetch_brings_all_into_the_cache_and_says_what_came(tmp_path: Path, tiny_sky: Path, recipe: Path) -> None:
    said = run("fetch", recipe, "--via-http", "--root", tiny_sky, "--pile", tmp_path / "pile", "--survey", "sdss")
    assert "sdss: catalogue files: 1 file, about 6.70 GB, about 0.1 hours" in said
    assert re.search(r"sdss: 4 files, 2.\d+ MB, are in the cache, 3 of them since the catalogues were read", said)
    assert len(list((tmp_path / "pile-cache").glob("objects/*/*/spPlate*"))) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--list", "x.csv", "--format", "tsv"), "no format 'tsv'; choose csv, aria2, rsync, globus"),
        (("--list", "nowhere/x.csv"), "nowhere: no such folder to write the list into"),
        (("--list", "x.csv", "--survey", "hsc"), "--survey hsc: the recipe has gaia, sdss"),
        (("--list", "x.csv", "--root", "nowhere"), "nowhere: no such folder; --root holds"),
        ((), "name a --pile"),
    ],
)
def test_what_cannot_be_fetched_or_listed_is_said(recipe: Path, words: tuple[str, ...], said: str) -> None:
    assert said in " ".join(run("fetch", recipe, *words, code=1).split())


def test_a_dry_run_says_how_much_will_come(tmp_path: Path, tiny_sky: Path, recipe: Path) -> None:
    said = run("build", recipe, "--via-http", "--root", tiny_sky, "--pile", tmp_path / "pile", "--dry-run")
    assert "gaia: catalogue files: 4 files, about 2.44 GB, minutes" in said
    assert "in all: 5 files, about 9.14 GB\n" in said
    assert "gaia: 2 files to fetch first" in said


def test_too_little_room_is_said_before(
    tmp_path: Path, tiny_sky: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("build", recipe, "--via-http", "--root", tiny_sky, "--pile", tmp_path / "pile", "--dry-run")
    monkeypatch.setattr(fetching, "_free", lambda folder: 10**9)
    said = run(*words, "--cache-limit", 5)
    assert "the cache may hold 5.00 GB, and its disk has 1.00 GB free" in said
    assert "sdss: its largest file has about 6.70 GB, more than the cache may hold (5.00 GB)" in said


def test_what_is_hopeless_is_said_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the Legacy Surveys, whose lists nobody answers for here."""
    from skycairn.pipeline import listing

    settings = {
        "region": {"kind": "cells", "order": 0, "cells": list(range(12))},
        "surveys": {"legacysurvey": {"release": "dr10", "source": "archive"}},
        "download": {"cache": str(tmp_path / "cache")},
    }
    monkeypatch.setattr(listing, "LISTS_LOOKED_AT", 0)
    fetching.print_amounts(recipes.parse(settings, "all"), tmp_path / "pile")
    said = capsys.readouterr().err
    assert "legacysurvey: how much of its catalogue is to be fetched is not known" in said
    assert "at most 5,136,572 files, at most 27.3 TB, about 389 days" in said
    assert "over HTTPS this is hopeless" in said and "9d6d994a-6d04-11e5-ba46-22000b92c6ec" in said
    assert "its disk has" in said


def test_of_a_cone_it_is_said_that_whole_cells_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from skycairn.pipeline import listing

    settings = {
        "region": {"kind": "cone", "ra": 150.1, "dec": 2.2, "radius_deg": 0.5},
        "surveys": {name: {"source": "archive"} for name in ("legacysurvey", "desi")},
        "download": {"cache": str(tmp_path / "cache")},
    }
    made = recipes.parse(settings, "cone")
    n = len(made.region.work_cells(0.0))
    monkeypatch.setattr(listing, "LISTS_LOOKED_AT", 0)
    fetching.print_amounts(made, tmp_path / "pile")
    said = capsys.readouterr().err
    area = f"{n * listing.CELL_SQUARE_DEGREES:.1f} square degrees, if it saw all"
    for survey in settings["surveys"]:
        assert f"{survey}: pixels and spectra of all {n} whole work cells that the region touches, {area}: " in said
    assert re.search(r"^in all: at most [0-9,]+ files, at most [0-9.]+ GB$", said, re.M), said


def test_the_mirror_serves_until_control_c(tiny_sky: Path) -> None:
    command = [sys.executable, "-c", "from skycairn.cli.main import app; app()", "mirror", str(tiny_sky)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(5)]
    roots = {line.split()[0]: line.split()[2] for line in lines}
    assert list(roots) == ["legacysurvey", "hsc", "gaia", "desi", "sdss"] and "account of mock" in lines[1]
    reply = httpx.get(f"{roots['gaia']}/gaia_source/_MD5SUM.txt")
    assert reply.content == (tiny_sky / "gaia" / "gaia_source" / "_MD5SUM.txt").read_bytes()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0 and said == ""


def test_a_mirror_of_nothing(tmp_path: Path) -> None:
    assert "holds no survey's folder" in run("mirror", tmp_path, code=1)
    assert "wanted 0 to 65535" in run("mirror", tmp_path, "--port", 99999, code=1)
