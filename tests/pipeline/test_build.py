"""The same content from the same sky, however it is built; nothing is done twice; what broke off goes on."""

import gzip
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from skycairn.pile.store import Pile
from skycairn.pipeline.recipe import Recipe, canonical
from skycairn.pipeline.region import Cone
from skycairn.pipeline.run import build

RUN = (
    "import sys, json, pathlib; from skycairn.pipeline import recipe, run\n"
    "if __name__ == '__main__':\n"
    "    made = recipe.parse(json.loads(sys.argv[1]), 'test')\n"
    "    print(run.build(made, pathlib.Path(sys.argv[2]), workers=int(sys.argv[3])).snapshot.content_id)\n"
)


def content(pile: Path) -> str:
    head = Pile.open(pile).head()
    assert head is not None
    return head.content_id


def contents(pile: Path) -> dict[str, list[str]]:
    """Content ids of all parts by table, to tell which table differs."""
    head = Pile.open(pile).head()
    assert head is not None
    return {name: sorted(e.part.content_id for e in head.entries(name)) for name in head.tables}


def fresh(pile: Path, build_it: Callable[[], object]) -> dict[str, list[str]]:
    """Labels by step of the tasks that `build_it` does."""
    opened = Pile.open(pile)
    before = {r.key for r in opened.receipts()}
    build_it()
    out: dict[str, list[str]] = {}
    for r in opened.receipts():
        if r.key not in before:
            out.setdefault(r.step, []).append(r.label.removeprefix(r.step + " "))
    return out


@pytest.fixture
def copy(tiny_pile: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pile, tmp_path / "pile"))


def only(recipe: Recipe, *names: str) -> Recipe:
    return replace(recipe, surveys=tuple(c for c in recipe.surveys if c.name in names))


def test_a_dask_worker_gives_what_this_process_gives(tiny_recipe: Recipe, tmp_path: Path) -> None:
    recipe = only(tiny_recipe, "gaia")
    here = build(recipe, tmp_path / "here")
    there = build(recipe, tmp_path / "there", workers=1)
    assert there.n_tasks == here.n_tasks > 0
    assert there.snapshot.content_id == here.snapshot.content_id


@pytest.mark.slow
def test_two_workers_in_another_locale_time_zone_and_hash_seed(
    tiny_recipe: Recipe, tiny_pile: Path, tmp_path: Path
) -> None:
    env = {**os.environ, "LC_ALL": "tr_TR.UTF-8", "LANG": "de_DE.UTF-8", "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "7"}
    script = tmp_path / "run.py"
    script.write_text(RUN)
    command = [sys.executable, str(script), canonical(tiny_recipe.settings()), str(tmp_path / "pile"), "2"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "pile") == contents(tiny_pile)
    assert done.stdout.strip() == content(tiny_pile)


def _renew(path: Path, checksum_list: Path, algorithm: str) -> None:
    lines = checksum_list.read_text().splitlines()
    digest = hashlib.new(algorithm, path.read_bytes()).hexdigest()
    named = [i for i, line in enumerate(lines) if line.split()[-1].lstrip("*./") == path.name]
    assert len(named) == 1
    lines[named[0]] = f"{digest}  {path.name}"
    checksum_list.write_text("\n".join(lines) + "\n")


def shuffle(sky: Path) -> int:
    """Put the rows of all catalogue files into another order; how many files."""
    random = np.random.default_rng(3)
    files = 0
    for path in sorted([*sky.glob("legacysurvey/south/sweep/*/*.fits"), *sky.glob("desi/zcatalog/*/*.fits")]):
        with fits.open(path) as hdus:
            made = fits.HDUList([hdu.copy() for hdu in hdus])
            table = next(h for h in made if isinstance(h, fits.BinTableHDU))
            table.data = table.data[random.permutation(len(table.data))]
            made.writeto(path, overwrite=True)
        _renew(path, next(path.parent.glob("*.sha256sum")), "sha256")
        files += 1
    for path in sorted(sky.glob("gaia/**/*.csv.gz")):
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        head = next(i for i, line in enumerate(lines) if not line.startswith("#")) + 1
        rows = np.array(lines[head:], dtype=object)[random.permutation(len(lines) - head)]
        path.write_bytes(gzip.compress("\n".join([*lines[:head], *rows]).encode() + b"\n"))
        _renew(path, path.parent / "_MD5SUM.txt", "md5")
        files += 1
    return files


def test_the_order_of_rows_is_no_content(tiny_sky: Path, tiny_recipe: Recipe, copy: Path, tmp_path: Path) -> None:
    sky = shutil.copytree(tiny_sky, tmp_path / "sky")
    assert shuffle(sky) == 6
    moved = replace(tiny_recipe, surveys=tuple(replace(c, root=str(sky / c.name)) for c in tiny_recipe.surveys))
    before = contents(copy), content(copy)
    provenance = Pile.open(copy).head().entries("gaia.provenance")
    steps = fresh(copy, lambda: build(moved, copy))
    # what has the same rows as before ends the redoing
    assert set(steps) == {"fetch", "fetch payload", "read", "gather"}
    assert (contents(copy), content(copy)) == before
    assert Pile.open(copy).head().entries("gaia.provenance") != provenance
    build(moved, tmp_path / "anew")
    assert contents(tmp_path / "anew") == before[0]
    assert content(tmp_path / "anew") == before[1]


def test_nothing_is_done_twice(tiny_recipe: Recipe, copy: Path) -> None:
    before = Pile.open(copy).head()
    again = build(tiny_recipe, copy)
    assert again.n_tasks == 0
    assert again.snapshot == before
    assert again.report.objects == again.snapshot.stats["splits"]["train"]


def test_touched_files_are_hashed_and_no_more(tiny_sky: Path, tiny_recipe: Recipe, copy: Path, tmp_path: Path) -> None:
    sky = shutil.copytree(tiny_sky, tmp_path / "sky")
    for path in sky.rglob("*"):
        os.utime(path, (1, 1))
    moved = replace(tiny_recipe, surveys=tuple(replace(c, root=str(sky / c.name)) for c in tiny_recipe.surveys))
    # files are known by size, time and inode; others are hashed again, and what turns out the same ends it
    assert set(fresh(copy, lambda: build(moved, copy))) == {"fetch", "fetch payload"}
    assert build(moved, copy).n_tasks == 0


def test_another_profile_redoes_its_own_survey_alone(tiny_recipe: Recipe, copy: Path) -> None:
    before = contents(copy)
    surveys = tuple(replace(c, profile="all") if c.name == "gaia" else c for c in tiny_recipe.surveys)
    steps = fresh(copy, lambda: build(replace(tiny_recipe, surveys=surveys), copy))
    assert set(steps) <= {"read", "gather", "want", "sample", "encode", "objects", "shard", "lineage"}
    for step in ("read", "gather", "want", "encode"):
        assert all(label.startswith("gaia") for label in steps[step]), step
    assert steps["objects"] and steps["shard"]
    changed = {name for name, ids in contents(copy).items() if ids != before[name]}
    assert "gaia.selection" in changed
    assert not changed & {"members", "pairs", "gaia.slim", "gaia.wide", "desi.selection", "tokens.desi.z"}


def test_the_layout_of_shards_is_no_content(tiny_recipe: Recipe, copy: Path) -> None:
    before = content(copy)
    shards = replace(tiny_recipe.shards, row_group_rows=3)
    steps = fresh(copy, lambda: build(replace(tiny_recipe, shards=shards), copy))
    assert set(steps) == {"shard"}
    assert content(copy) == before
    opened = Pile.open(copy)
    rows = [opened.open_parquet(e.part).metadata.row_group(0).num_rows for e in opened.head().entries("shards")]
    assert max(rows) == 3


@pytest.mark.parametrize("after", [pytest.param(8, marks=pytest.mark.slow), 45])
def test_a_killed_build_goes_on(lean_recipe: Recipe, lean_pile: Path, tmp_path: Path, after: int) -> None:
    pile = tmp_path / "pile"
    command = [sys.executable, "-c", RUN, canonical(lean_recipe.settings()), str(pile), "0"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + 120
    while len(list(pile.glob("receipts/*/*.json"))) < after:
        assert running.poll() is None, running.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    running.stdout.close()
    running.stderr.close()
    assert Pile.open(pile).head() is None
    done = len(list(pile.glob("receipts/*/*.json")))
    built = build(lean_recipe, pile)
    assert built.snapshot.content_id == content(lean_pile)
    # what was done before the kill was not done again
    assert built.n_tasks == len(list(pile.glob("receipts/*/*.json"))) - done
    assert Pile.open(pile).verify(deep=True).sound
    assert not list((pile / "tmp").iterdir())


@pytest.mark.parametrize("table", ["shards", "tokens.gaia.parallax", "legacysurvey.wide", "payload.desi.spectrum"])
def test_a_lost_part_is_seen_and_healed(tiny_recipe: Recipe, copy: Path, table: str) -> None:
    opened = Pile.open(copy)
    before = opened.head()
    part = before.entries(table)[0].part
    opened.path(part).chmod(0o644)
    opened.path(part).unlink()
    found = Pile.open(copy).verify(deep=True)
    assert not found.sound
    assert any(part.sha256 in problem.what or part.sha256 in problem.where for problem in found.problems)
    built = build(tiny_recipe, copy)
    assert built.n_tasks >= 1
    assert built.snapshot.content_id == before.content_id
    assert Pile.open(copy).verify(deep=True).sound


def test_a_flipped_bit_is_seen(tiny_recipe: Recipe, copy: Path) -> None:
    opened = Pile.open(copy)
    part = opened.head().entries("objects")[0].part
    path = opened.path(part)
    path.chmod(0o644)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    found = Pile.open(copy).verify(deep=True)
    assert [p for p in found.problems if part.sha256 in p.where + p.what]
    path.unlink()
    assert build(tiny_recipe, copy).n_tasks == 1
    assert Pile.open(copy).verify(deep=True).sound


def test_one_survey_alone(tiny_recipe: Recipe, tmp_path: Path) -> None:
    built = build(only(tiny_recipe, "desi"), tmp_path / "pile")
    assert set(built.report.strata) == {"desi"}
    assert built.report.objects == built.report.surveys["desi"]["valid"]
    assert built.report.pairs == 0


def test_a_second_survey_leaves_the_tokens_of_the_first(tiny_recipe: Recipe, tmp_path: Path) -> None:
    pile = tmp_path / "pile"
    build(only(tiny_recipe, "gaia"), pile)
    before = contents(pile)
    steps = fresh(pile, lambda: build(only(tiny_recipe, "gaia", "desi"), pile))
    after = contents(pile)
    assert all(after[name] == ids for name, ids in before.items() if name.startswith("tokens.gaia"))
    assert not [label for labels in (steps["fit"], steps["encode"]) for label in labels if label.startswith("gaia")]
    assert Counter(e.labels["stratum"] for e in Pile.open(pile).head().entries("shards"))["gaia+desi"]


# --- payload and codecs -----------------------------------------------------------------------------------------------


def tokens(pile: Path) -> dict[str, list[str]]:
    return {name: ids for name, ids in contents(pile).items() if name.startswith("tokens.")}


def payload_rows(pile: Path, name: str) -> int:
    head = Pile.open(pile).head()
    return sum(e.part.n_rows for e in head.entries(name)) if name in head.aside else 0


@pytest.mark.parametrize(("keep", "n"), [pytest.param("none", 0, marks=pytest.mark.slow), ("sample", 3)])
def test_payload_kept_or_not_the_codecs_and_tokens_are_the_same(
    lean_recipe: Recipe, lean_pile: Path, tmp_path: Path, keep: str, n: int
) -> None:
    recipe = replace(lean_recipe, payload=replace(lean_recipe.payload, keep=keep, sample=n))
    built = build(recipe, tmp_path / "pile")
    assert built.snapshot.stats["codecs"] == Pile.open(lean_pile).head().stats["codecs"]
    assert tokens(tmp_path / "pile") == tokens(lean_pile)
    assert built.snapshot.content_id == content(lean_pile)
    for name in ("payload.legacysurvey.image", "payload.desi.spectrum"):
        assert payload_rows(tmp_path / "pile", name) == n
        assert payload_rows(lean_pile, name) > 3
    assert build(recipe, tmp_path / "pile").n_tasks == 0


def test_payload_dropped_later_can_be_had_again(tiny_recipe: Recipe, copy: Path) -> None:
    before = content(copy)
    none = replace(tiny_recipe, payload=replace(tiny_recipe.payload, keep="none"))
    build(none, copy)
    assert content(copy) == before
    assert payload_rows(copy, "payload.desi.spectrum") == 0
    assert build(tiny_recipe, copy).n_tasks == 0
    assert payload_rows(copy, "payload.desi.spectrum") > 0


@pytest.mark.parametrize("named", ["", pytest.param("codecs.lock", marks=pytest.mark.slow)])
def test_codecs_of_another_pile(lean_recipe: Recipe, lean_pile: Path, tmp_path: Path, named: str) -> None:
    recipe = replace(lean_recipe, codecs=replace(lean_recipe.codecs, lock=str(lean_pile / named)))
    steps = fresh_pile(recipe, tmp_path / "pile")
    assert "fit" not in steps
    assert contents(tmp_path / "pile") == contents(lean_pile)
    assert (tmp_path / "pile" / "codecs.lock").read_bytes() == (lean_pile / "codecs.lock").read_bytes()


def fresh_pile(recipe: Recipe, pile: Path) -> set[str]:
    build(recipe, pile)
    return {r.step for r in Pile.open(pile).receipts()}


def test_a_pile_keeps_to_its_lock(tiny_recipe: Recipe, tiny_pile: Path, copy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    build(replace(only(tiny_recipe, "gaia"), codecs=replace(tiny_recipe.codecs, fit_rows=5)), other)
    recipe = replace(tiny_recipe, codecs=replace(tiny_recipe.codecs, lock=str(other)))
    with pytest.raises(ValueError, match="is locked to another codec of gaia"):
        build(recipe, copy)
    with pytest.raises(ValueError, match=r"codecs\.lock: .* is not there"):
        build(replace(recipe, codecs=replace(recipe.codecs, lock=str(tmp_path / "no"))), tmp_path / "new")


def test_a_damaged_codec_of_another_pile_is_refused(tiny_recipe: Recipe, copy: Path, tmp_path: Path) -> None:
    folder = next((copy / "codecs").iterdir())
    (folder / "codec.json").write_text(
        (folder / "codec.json").read_text().replace('"settings": {', '"settings": {"x": 1,')
    )
    recipe = replace(tiny_recipe, codecs=replace(tiny_recipe.codecs, lock=str(copy)))
    with pytest.raises(ValueError, match=re.escape(str(folder))):
        build(recipe, tmp_path / "new")
    assert not (tmp_path / "new" / "codecs.lock").exists()


# --- nearly nothing ---------------------------------------------------------------------------------------------------


def test_a_survey_without_a_source_in_the_region(tiny_sky: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    sky = shutil.copytree(tiny_sky, tmp_path / "sky")
    path = next(sky.glob("desi/zcatalog/*/*.fits"))
    with fits.open(path) as hdus:
        made = fits.HDUList([hdu.copy() for hdu in hdus])
        next(h for h in made if isinstance(h, fits.BinTableHDU)).data["TARGET_RA"] = 100.0
        made.writeto(path, overwrite=True)
    _renew(path, next(path.parent.glob("*.sha256sum")), "sha256")
    recipe = only(tiny_recipe, "gaia", "desi")
    recipe = replace(recipe, surveys=tuple(replace(c, root=str(sky / c.name)) for c in recipe.surveys))
    built = build(recipe, tmp_path / "pile")
    assert set(built.report.strata) == {"gaia"}
    assert built.report.statuses["desi"] == {"outside footprint": built.report.objects}
    assert built.report.statuses["desi.spectrum"] == {"outside footprint": built.report.objects}
    assert not built.partial


def test_one_source_alone(tiny_recipe: Recipe, tiny_pile: Path, tmp_path: Path) -> None:
    opened = Pile.open(tiny_pile)
    slim = opened.read_table(opened.head().entries("gaia.slim")[0].part)
    region = Cone(slim["ra"][0].as_py(), slim["dec"][0].as_py(), 0.01 / 3600)
    built = build(replace(only(tiny_recipe, "gaia"), region=region), tmp_path / "pile")
    assert built.report.objects == 1
    assert Pile.open(tmp_path / "pile").verify(deep=True).sound


def test_where_shards_are_cut_is_no_content(tiny_recipe: Recipe, copy: Path) -> None:
    before = content(copy)
    build(replace(tiny_recipe, shards=replace(tiny_recipe.shards, order=5)), copy)
    assert content(copy) == before


def test_codecs_from_another_pile_and_a_survey_more_is_done_once(lean_recipe: Recipe, tmp_path: Path) -> None:
    build(only(lean_recipe, "gaia"), tmp_path / "gaia")
    recipe = replace(lean_recipe, codecs=replace(lean_recipe.codecs, lock=str(tmp_path / "gaia")))
    first = build(recipe, tmp_path / "pile")
    second = build(recipe, tmp_path / "pile")
    assert second.n_tasks == 0
    assert second.snapshot.content_id == first.snapshot.content_id


def test_a_flipped_bit_in_a_codec_is_found(copy: Path) -> None:
    pile = Pile.open(copy)
    assert pile.verify(deep=True).sound
    path = pile.path(pile.snapshot().entries("codecs")[0].part)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(data))
    assert not Pile.open(copy).verify(deep=True).sound
