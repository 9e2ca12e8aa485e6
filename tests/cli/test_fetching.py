"""`skycairn fetch`, `skycairn mirror`, and what builds say before they fetch."""

import csv
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from skycairn.cli import fetching
from skycairn.cli.main import app
from skycairn.mirror.sky import mirror_of
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
    lines = [process.stdout.readline() for _ in range(8)]
    roots = {line.split()[0]: line.split()[2] for line in lines[:5]}
    url = roots["gaia"].rpartition("/cdn.gea")[0]
    assert f'`mirror = "{url}"` in [download]' in lines[5] and lines[6].endswith(f"skycairn doctor --mirror {url}\n")
    assert lines[7].endswith("SSP_PDR_USR=mock SSP_PDR_PWD=mock\n")
    assert list(roots) == ["legacysurvey", "hsc", "gaia", "desi", "sdss"] and "account of mock" in lines[1]
    reply = httpx.get(f"{roots['gaia']}/gaia_source/_MD5SUM.txt")
    assert reply.content == (tiny_sky / "gaia" / "gaia_source" / "_MD5SUM.txt").read_bytes()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0 and said == ""


def test_a_mirror_of_nothing(tmp_path: Path) -> None:
    assert "holds no survey's folder" in run("mirror", tmp_path, code=1)
    assert "wanted 0 to 65535" in run("mirror", tmp_path, "--port", 99999, code=1)


def test_archives_that_nobody_reaches_end_the_build_at_once(tmp_path: Path, recipe: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # never listens: connections are refused
        mirror = f"http://127.0.0.1:{taken.getsockname()[1]}"
        recipe.write_text(f'{recipe.read_text()}[download]\nmirror = "{mirror}"\ncache = "cache"\n')
        said = run("build", recipe, "--pile", tmp_path / "pile", "--source", "archive", "--workers", 0, code=1)
    assert re.search(r"^download failed: \d+ held back$", said, re.M) and "download: " not in said
    assert "nobody answers there: is this machine on a network?" in said and "Connection refused" in said


@pytest.fixture
def with_hsc(tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe with HSC, from the archives, for somebody without an account."""
    for name in ("SSP_PDR_USR", "SSP_PDR_PWD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setitem(sys.modules, "keyring", None)
    recipe.write_text(f'{recipe.read_text()}[surveys.hsc]\n[match]\npairs = {{ "gaia-hsc" = 2.0 }}\n')
    return recipe


def test_a_missing_account_is_said_in_the_plan_and_at_the_end(tmp_path: Path, tiny_sky: Path, with_hsc: Path) -> None:
    words = ("build", with_hsc, "--pile", tmp_path / "pile", "--source", "archive", "--workers", 0)
    with mirror_of(tiny_sky) as served:
        with_hsc.write_text(f'{with_hsc.read_text()}[download]\nmirror = "{served.url}"\ncache = "cache"\n')
        said = run(*words, "--dry-run")
        assert re.search(
            r"^hsc: no account \(get an account .* SSP_PDR_USR .*; until then no objects can be", said, re.M
        )
        assert "leave hsc out with --without hsc" in said
        assert "account" not in run(*words, "--dry-run", "--without", "hsc")
        said = run(*words, code=1)
        assert "everything is held back: hsc" in said and "or leave out hsc (--without hsc)" in said
        run(*words, "--without", "hsc")


def test_surveys_that_cannot_be_left_out(tmp_path: Path, recipe: Path) -> None:
    words = ("build", recipe, "--pile", tmp_path / "pile")
    assert "--without hsc: the recipe has no such survey; it has gaia, sdss" in run(*words, "--without", "hsc", code=1)
    assert "no survey is left" in run(*words, "--without", "gaia", "--without", "sdss", code=1)


def test_a_wrong_release_is_named_with_its_root(tmp_path: Path, tiny_sky: Path, recipe: Path) -> None:
    recipe.write_text(recipe.read_text().partition("[surveys")[0] + "[surveys.desi]\n")
    words = ("build", recipe, "--root", tiny_sky, "--pile", tmp_path / "pile", "--workers", 0, "--allow-small-splits")
    said = run(*words, code=1)
    assert "everything is held back: desi/" in said
    assert f"(release edr, root {tiny_sky / 'desi'}; releases that can be read are edr, dr1," in said
    said = run("status", tmp_path / "pile", code=3)
    assert "No snapshot yet" in said and re.search(r"^held back: desi/\S+: not there$", said, re.M)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--mirror-faults", 20), "--mirror-faults 20: wanted a share of the requests, 0 to 1, as 0.2"),
        (("--mirror-faults", 0.2), "--mirror-faults spoils what a mirror answers: give --via-http too"),
    ],
)
def test_faults_are_a_mirrors_and_a_share(tmp_path: Path, recipe: Path, words: tuple[object, ...], said: str) -> None:
    assert said in run("build", recipe, "--pile", tmp_path / "pile", *words, code=1)


def test_a_mirrors_files_stay_out_of_the_archives_cache(
    tmp_path: Path, tiny_sky: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKYCAIRN_CACHE", str(tmp_path / "real"))
    words = ("build", recipe, "--via-http", "--root", tiny_sky, "--pile", tmp_path / "pile", "--dry-run")
    run(*words)
    assert (tmp_path / "pile-cache").is_dir() and not (tmp_path / "real").exists()
    run(*words, "--cache", tmp_path / "named")
    assert (tmp_path / "named").is_dir()
    assert "PILE-cache beside the pile" in " ".join(re.sub("[^ -~]", "", run("build", "--help")).split())


def test_lists_of_paths_say_where_the_archives_root_is(tmp_path: Path, tiny_sky: Path, recipe: Path) -> None:
    words = ("fetch", recipe, "--via-http", "--root", tiny_sky, "--list", tmp_path / "list", "--survey", "sdss")
    assert re.search(r"SOURCE: a copy of https://data\.sdss\.org/\S+, by rsync", run(*words, "--format", "rsync"))
    said = run(*words, "--format", "globus")
    assert re.search(r"f8362eaf-\S+:FOLDER .*FOLDER: there, what https://data\.sdss\.org/\S+ is", said)
    assert "checksum" not in (tmp_path / "list").read_text()
    assert "paths of one --survey" in " ".join(re.sub("[^ -~]", "", run("fetch", "--help")).split())
