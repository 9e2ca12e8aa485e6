"""`kill -9` at random moments, of the builder, of a worker, of a scheduler: the end is the same each time.

`make crash-test` runs all of them: 25 of the tiny sky, 3 of it without HSC, and 5 of the sky and pile that
`make build-pile` left, which SKYCAIRN_SKY and SKYCAIRN_PILE name.
"""

import json
import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from skycairn.pile.store import Pile
from skycairn.pipeline import recipe as recipes
from skycairn.pipeline.recipe import Recipe, canonical
from skycairn.pipeline.run import build

RUN = """
import json, pathlib, sys
from skycairn.pipeline import engine, recipe, run
if __name__ == "__main__":
    made = recipe.parse(json.loads(sys.argv[1]), "test")
    print(run.build(made, pathlib.Path(sys.argv[2]), engine=engine.Engine(int(sys.argv[3]), sys.argv[4])).n_tasks)
"""
QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


class Cluster:
    """A scheduler and two workers of their own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        address = folder / "scheduler.json"
        here = [sys.executable, "-m"]
        told = ["--scheduler-file", str(address)]
        scheduler = [*here, "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard", "--host", "127.0.0.1"]
        worker = [*here, "distributed.cli.dask_worker", "--nthreads", "1", "--no-dashboard"]
        self.scheduler = subprocess.Popen([*scheduler, *told], **QUIET)
        while not address.exists():
            time.sleep(0.05)
        options = ["--nworkers", "2", "--local-directory", str(folder / "dask")]
        self.workers = subprocess.Popen([*worker, *told, *options], **QUIET)
        while True:
            with suppress(ValueError):
                self.address = str(json.loads(address.read_text())["address"])
                break

    def close(self) -> None:
        for process in (self.scheduler, self.workers):
            process.kill()
            process.wait()


def children(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(x) for x in path.read_text().split()]
    return found


def killed_once(recipe: Recipe, pile: Path, folder: Path, victim: str, after: int) -> bool:
    """A build one of whose processes is killed when so many receipts are there; whether it ended well all the same."""
    cluster = Cluster(folder / "cluster") if victim == "scheduler" else None
    script = folder / "run.py"
    script.write_text(RUN)
    command = [sys.executable, str(script), canonical(recipe.settings()), str(pile), "2"]
    running = subprocess.Popen([*command, cluster.address if cluster else ""], **QUIET)
    try:
        while running.poll() is None and sum(1 for _ in pile.glob("receipts/*/*.json")) < after:
            time.sleep(0.01)
        if running.poll() is None:
            if victim == "builder":
                running.kill()
            elif cluster:
                cluster.scheduler.kill()
            elif workers_now := [c for c in children(running.pid) if "spawn_main" in _command(c)]:
                os.kill(random.choice(workers_now), 9)
        return running.wait() == 0
    finally:
        if cluster:
            cluster.close()


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def check(recipe: Recipe, pile: Path, folder: Path, victim: str, after: int, content: str, workers: int = 0) -> None:
    well = killed_once(recipe, pile, folder, victim, after)
    assert well or victim != "worker", "a build outlives its worker"
    if not well:
        if (pile / "pile.json").exists():
            opened = Pile.open(pile)
            assert opened.head() is None, "no half of a build is ever a snapshot"
            assert not [p for p in opened.verify(deep=True).problems]
        build(recipe, pile, workers=workers)
    opened = Pile.open(pile)
    assert opened.snapshot().content_id == content
    assert opened.verify(deep=True).sound
    assert not list((pile / "tmp").iterdir())


VICTIMS = ("builder", "worker", "scheduler")
MOMENTS = [(VICTIMS[i % 3], random.Random(i).randrange(1, 165)) for i in range(25)]


@pytest.mark.parametrize(("victim", "after"), MOMENTS[:3])
def test_killed_at_a_random_moment_of_a_lean_build(
    lean_recipe: Recipe, lean_pile: Path, tmp_path: Path, victim: str, after: int
) -> None:
    check(lean_recipe, tmp_path / "pile", tmp_path, victim, after, Pile.open(lean_pile).snapshot().content_id)


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "after"), MOMENTS)
def test_killed_at_a_random_moment(
    tiny_recipe: Recipe, tiny_pile: Path, tmp_path: Path, victim: str, after: int
) -> None:
    check(
        tiny_recipe, tmp_path / "pile", tmp_path, victim, after, Pile.open(tiny_pile).snapshot().content_id, workers=2
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("victim", "share"), [("builder", 0.2), ("worker", 0.4), ("builder", 0.6), ("scheduler", 0.5), ("worker", 0.8)]
)
def test_the_default_build_killed(tmp_path: Path, victim: str, share: float) -> None:
    if not {"SKYCAIRN_SKY", "SKYCAIRN_PILE"} <= set(os.environ):
        pytest.skip("SKYCAIRN_SKY and SKYCAIRN_PILE name no sky and pile; `make crash-test` makes them")
    whole = Pile.open(os.environ["SKYCAIRN_PILE"])
    n = sum(1 for _ in whole.receipts())
    recipe = recipes.load("mock").at(Path(os.environ["SKYCAIRN_SKY"]).resolve())
    after = int(n * (share + random.uniform(-0.1, 0.1)))
    check(recipe, tmp_path / "pile", tmp_path, victim, after, whole.snapshot().content_id, workers=2)
