"""Faults of machines and processes, by their numbers: the end is the same as without, or said and made up for later."""

import errno
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import pytest

from skycairn.pile import disk
from skycairn.pile.lock import builder_lock
from skycairn.pile.store import Pile
from skycairn.pipeline.engine import Engine, EngineError, _Cluster, _Stop
from skycairn.pipeline.recipe import Recipe, canonical
from skycairn.pipeline.run import BuildError, build
from skycairn.pipeline.task import Task

RUN = """
import json, pathlib, sys
from skycairn.pipeline import engine, recipe, run
if __name__ == "__main__":
    made = recipe.parse(json.loads(sys.argv[1]), "test")
    chosen = engine.Engine(int(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else "")
    print(run.build(made, pathlib.Path(sys.argv[2]), engine=chosen).snapshot.content_id)
"""
PROGRAM = """
import sys, json, pathlib
from skycairn.cli import builds, failing
from skycairn.pipeline import recipe
if __name__ == '__main__':
    made = recipe.parse(json.loads(pathlib.Path(sys.argv[1]).read_text()), 'test')
    with failing.errors():
        builds._run(made, pathlib.Path(sys.argv[2]), 1, '', False, 1800.0, 0.0, False, False)
"""
SABOTAGE = """
import os, pathlib, signal, sys, time
from skycairn.pipeline import steps
mark = pathlib.Path({mark!r})
true = steps.STEPS[{step!r}]
def sabotaged(ctx, task):
    if {cell!r} in task.label and not mark.exists():
        if {once!r}:
            mark.touch()
        {fault}
    return true(ctx, task)
steps.STEPS[{step!r}] = sabotaged
"""


@pytest.fixture
def gaia(tiny_recipe: Recipe) -> Recipe:
    return replace(tiny_recipe, surveys=(tiny_recipe.choice("gaia"),))


@pytest.fixture(scope="module")
def whole(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gaia alone, built without a fault."""
    pile = tmp_path_factory.mktemp("whole") / "pile"
    build(replace(tiny_recipe, surveys=(tiny_recipe.choice("gaia"),)), pile)
    return pile


def content(pile: Path) -> str:
    return Pile.open(pile).snapshot().content_id


def a_cell(pile: Path) -> str:
    """The work cell of a part of the objects, as it stands in a task's label."""
    entries = Pile.open(pile).snapshot().entries("objects")
    return f"cell {max(entries, key=lambda e: e.part.n_rows).labels['cell']}"


Sabotage = Callable[..., dict[str, str]]


@pytest.fixture
def sabotage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sabotage:
    """Makes every Python process that is started from now on fail at a step; gives its environment."""

    def do(step: str, cell: str, fault: str, once: bool) -> dict[str, str]:
        folder = tmp_path / "site"
        folder.mkdir(exist_ok=True)
        mark = str(tmp_path / "mark")
        code = SABOTAGE.format(step=step, cell=cell, fault=fault, once=once, mark=mark)
        (folder / "sitecustomize.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        return dict(os.environ)

    return do


@pytest.fixture
def mended(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.delenv("PYTHONPATH", raising=False)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "run.py"
    path.write_text(RUN)
    return path


def command(script: Path, recipe: Recipe, pile: Path, workers: int, scheduler: str = "") -> list[str]:
    return [sys.executable, str(script), canonical(recipe.settings()), str(pile), str(workers), scheduler]


def receipts(pile: Path) -> int:
    return len(list(pile.glob("receipts/*/*.json")))


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


# --- processes that die -----------------------------------------------------------------------------------------------


def test_fault_01_killed_while_it_fetches(
    gaia: Recipe, whole: Path, tmp_path: Path, script: Path, sabotage: Sabotage
) -> None:
    pile = tmp_path / "pile"
    env = sabotage("fetch", "Xp", "os.kill(os.getpid(), signal.SIGKILL)", once=True)
    done = subprocess.run(command(script, gaia, pile, 0), env=env, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    n = receipts(pile)
    assert n >= 1 and Pile.open(pile).head() is None
    built = build(gaia, pile)
    assert built.n_tasks == receipts(pile) - n, "what was fetched is not fetched again"
    assert content(pile) == content(whole)


def test_control_c_while_workers_start_prints_one_line(gaia: Recipe, tmp_path: Path) -> None:
    """A terminal sends it to the builder and to its workers, who may be at their imports."""
    (tmp_path / "recipe.json").write_text(canonical(gaia.settings()))
    (tmp_path / "cli.py").write_text(PROGRAM)
    arguments = [sys.executable, str(tmp_path / "cli.py"), str(tmp_path / "recipe.json"), str(tmp_path / "pile")]
    running = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )

    def a_worker() -> bool:
        began = [p for of in Path(f"/proc/{running.pid}/task").glob("*/children") for p in of.read_text().split()]
        return any(b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes() for p in began)

    wait_for(a_worker)
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert said.splitlines() == ["skycairn: stopped; run the same command again and it goes on where it was"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_fault_06_told_to_stop_it_drains_and_goes_on_later(
    lean_recipe: Recipe, lean_pile: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    pile = tmp_path / "pile"
    recipe = tmp_path / "recipe.json"
    recipe.write_text(canonical(lean_recipe.settings()))
    (tmp_path / "cli.py").write_text(PROGRAM)
    arguments = [sys.executable, str(tmp_path / "cli.py"), str(recipe), str(pile)]
    running = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: receipts(pile) >= 20)
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert running.returncode == code, said
    assert "run the same command again and it goes on where it was" in said and "Traceback" not in said
    assert Pile.open(pile).head() is None and not list((pile / "tmp").iterdir())
    n = receipts(pile)
    built = build(lean_recipe, pile)
    assert built.n_tasks == receipts(pile) - n > 0
    assert content(pile) == content(lean_pile)


def test_fault_07_a_worker_killed_once(gaia: Recipe, whole: Path, tmp_path: Path, sabotage: Sabotage) -> None:
    sabotage("gather", a_cell(whole), "os.kill(os.getpid(), signal.SIGKILL)", once=True)
    built = build(gaia, tmp_path / "pile", workers=1)
    assert (tmp_path / "mark").exists()
    assert not built.partial and built.snapshot.content_id == content(whole)


def test_fault_08_a_task_that_always_kills_its_worker(
    gaia: Recipe, whole: Path, tmp_path: Path, sabotage: Sabotage, mended: Callable[[], None]
) -> None:
    """Its cell is held back, all others are done; the next build, on a sound machine, makes up for it."""
    cell = a_cell(whole)
    sabotage("match", cell, "os.kill(os.getpid(), signal.SIGKILL)", once=False)
    importlib.import_module("distributed")  # its defaults are there before one of them is set
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}):  # long before the next one is there
        built = build(gaia, tmp_path / "pile", workers=1)
    assert built.partial and set(built.held_back) == {f"match {cell}"}
    assert "its worker died" in built.held_back[f"match {cell}"]
    number = int(cell.split(" ")[1])
    assert built.snapshot.held_back == (number,)
    there, all_cells = (
        {e.labels["cell"] for e in p.entries("objects")} for p in (built.snapshot, Pile.open(whole).snapshot())
    )
    assert there == all_cells - {number}
    mended()
    again = build(gaia, tmp_path / "pile")
    assert not again.partial and again.snapshot.content_id == content(whole)
    assert not {"fetch", "read", "gather"} & set(again.done), "what was done is not done again"


def test_fault_09_out_of_memory(
    gaia: Recipe, whole: Path, tmp_path: Path, sabotage: Sabotage, mended: Callable[[], None]
) -> None:
    cell = a_cell(whole)
    hog = "import numpy, resource; resource.setrlimit(resource.RLIMIT_AS, (8 << 30,) * 2); numpy.ones(4 << 30)"
    sabotage("objects", cell, hog, once=False)
    built = build(gaia, tmp_path / "pile", workers=1)
    assert built.partial
    said = built.held_back[f"objects {cell}"]
    assert "out of memory" in said and "fewer --workers, or a larger --memory" in said
    mended()
    assert build(gaia, tmp_path / "pile").snapshot.content_id == content(whole)


@pytest.mark.slow
def test_fault_09_a_worker_that_outgrows_its_share_is_ended(
    gaia: Recipe, whole: Path, tmp_path: Path, sabotage: Sabotage
) -> None:
    cell = a_cell(whole)
    hog = "import numpy; kept = [numpy.ones(1 << 24) for _ in range(40) if not time.sleep(0.1)]"
    sabotage("objects", cell, hog, once=False)
    built = build(gaia, tmp_path / "pile", engine=Engine(1, memory_bytes=2_000_000_000))
    assert built.partial and "each has 2000 MB" in built.held_back[f"objects {cell}"]


@pytest.mark.parametrize(
    "fault", ["os.kill(os.getpid(), signal.SIGSTOP)", pytest.param("time.sleep(600)", marks=pytest.mark.slow)]
)
def test_fault_10_a_worker_that_hangs_is_replaced(
    gaia: Recipe, whole: Path, tmp_path: Path, sabotage: Sabotage, fault: str
) -> None:
    sabotage("gather", a_cell(whole), fault, once=True)
    built = build(gaia, tmp_path / "pile", engine=Engine(1, deadline_s=12))
    assert (tmp_path / "mark").exists()
    assert not built.partial and built.snapshot.content_id == content(whole)


@pytest.mark.slow
def test_fault_10_a_task_that_always_hangs_is_held_back(
    gaia: Recipe, whole: Path, tmp_path: Path, sabotage: Sabotage
) -> None:
    cell = a_cell(whole)
    sabotage("objects", cell, "time.sleep(600)", once=False)
    built = build(gaia, tmp_path / "pile", engine=Engine(1, deadline_s=12))
    assert built.held_back == {f"objects {cell}": "it took over 12 s, 2 times; give a longer --deadline"}


def test_fault_11_workers_end_with_their_builder(gaia: Recipe, whole: Path, tmp_path: Path, script: Path) -> None:
    pile = tmp_path / "pile"
    running = subprocess.Popen(command(script, gaia, pile, 1), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: receipts(pile) >= 5)
    children = [x for p in Path(f"/proc/{running.pid}/task").glob("*/children") for x in p.read_text().split()]
    assert children
    running.kill()
    running.communicate()
    wait_for(lambda: not any(_runs(int(pid)) for pid in children), 30)
    assert build(gaia, pile).snapshot.content_id == content(whole)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and a worker of their own; its address, and the two."""
    address = tmp_path / "scheduler.json"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard"]
    scheduler = subprocess.Popen([*dask, "--host", "127.0.0.1", "--scheduler-file", str(address)], **quiet)
    wait_for(address.exists)
    worker = subprocess.Popen(
        [
            *(sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(address)),
            *("--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path / "dask")),
        ],
        **quiet,
    )
    yield json.loads(address.read_text())["address"], [scheduler, worker]
    for process in (scheduler, worker):
        process.kill()
        process.wait()


def test_fault_11_a_scheduler_that_dies(
    gaia: Recipe, whole: Path, tmp_path: Path, cluster: tuple[str, list[subprocess.Popen[bytes]]], script: Path
) -> None:
    address, (scheduler, _) = cluster
    pile = tmp_path / "pile"
    running = subprocess.Popen(
        command(script, gaia, pile, 0, address), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: receipts(pile) >= 5)
    scheduler.kill()
    _, said = running.communicate(timeout=120)
    assert running.returncode == 1
    assert "scheduler is gone; start it and build again" in said
    assert Pile.open(pile).head() is None
    assert build(gaia, pile).snapshot.content_id == content(whole)


def test_a_client_that_is_losing_its_scheduler_says_that_it_is_gone() -> None:
    """Between losing it and giving up, Dask's client still calls itself connecting, and knows of no workers."""

    class Losing:
        status = "connecting"

        def scheduler_info(self, n_workers: int) -> dict[str, Any]:
            return {}

        def cancel(self, futures: Sequence[Any], force: bool) -> None: ...

    cluster = object.__new__(_Cluster)
    cluster.client, cluster.asked, cluster.threads = Losing(), float("-inf"), 1
    with _Stop() as cluster.stop, pytest.raises(EngineError, match="scheduler is gone"):
        list(cluster.run([Task("step", "label", {}, {})]))


def test_fault_12_the_same_build_twice_at_once(gaia: Recipe, whole: Path, tmp_path: Path, script: Path) -> None:
    """Four builders, whose lock was taken away, do every task up to four times: one snapshot, the same."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import contextlib\nfrom skycairn.pipeline import run\n"
        "run.builder_lock = lambda *args: contextlib.nullcontext()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    pile = tmp_path / "pile"
    Pile.create(pile)
    running = [
        subprocess.Popen(command(script, gaia, pile, 0), env=env, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    said = {process.communicate(timeout=200)[0].strip() for process in running}
    assert said == {content(whole)}
    assert Pile.open(pile).snapshots() == [1]
    assert Pile.open(pile).verify(deep=True).sound


def test_fault_13_a_second_builder_is_told_of_the_first(tiny_recipe: Recipe, tiny_pile: Path, tmp_path: Path) -> None:
    from click.testing import Result
    from typer.testing import CliRunner

    from skycairn.cli.main import app

    pile = Path(shutil.copytree(tiny_pile, tmp_path / "pile"))
    with builder_lock(pile):
        found: Result = CliRunner().invoke(app, ["ingest", "gaia", "--pile", str(pile)])
    assert found.exit_code == 4
    assert f"process {os.getpid()} on " in found.stderr and "wait until it has ended, or end it" in found.stderr


# --- disks that fail --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind", "n"),
    [(errno.ENOSPC, "write", 40), (errno.ENOSPC, "write", 333), (errno.EIO, "fsync", 25), (errno.EIO, "fsync", 80)],
)
def test_faults_15_and_16_the_disk_is_full_or_broken(
    gaia: Recipe, whole: Path, tmp_path: Path, code: int, kind: str, n: int
) -> None:
    """The build ends at once, without a snapshot and without litter; on a mended disk it goes on."""
    pile, calls = tmp_path / "pile", [0]

    def observe(op: disk.Op) -> None:
        if op.call == kind:
            calls[0] += 1
            if calls[0] == n:
                raise OSError(code, os.strerror(code))

    with disk.watch(observe), pytest.raises((BuildError, OSError), match=os.strerror(code)):
        build(gaia, pile)
    assert Pile.open(pile).head() is None and not list((pile / "tmp").iterdir())
    done = receipts(pile)
    built = build(gaia, pile)
    assert built.n_tasks == receipts(pile) - done
    assert content(pile) == content(whole)


def test_fault_15_too_little_room_is_said_before_the_work(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(tiny_recipe, surveys=(tiny_recipe.choice("desi"),))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(BuildError, match=r"pixels and spectra will take at least 0\.0 GB, 0\.0 GB are free; free some"):
        build(recipe, tmp_path / "pile")
    assert not any(r.step == "extract" for r in Pile.open(tmp_path / "pile").receipts())
    keep = replace(recipe, payload=replace(recipe.payload, keep="none"))
    assert build(keep, tmp_path / "pile").report.objects > 0


def test_fault_17_a_file_larger_than_allowed(gaia: Recipe, whole: Path, tmp_path: Path, script: Path) -> None:
    pile = tmp_path / "pile"
    done = subprocess.run(
        command(script, gaia, pile, 0),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr and "free or mend it, and build again" in done.stderr
    assert Pile.open(pile).head() is None
    assert build(gaia, pile).snapshot.content_id == content(whole)


def test_fault_18_few_open_files(gaia: Recipe, whole: Path, tmp_path: Path, script: Path) -> None:
    done = subprocess.run(
        command(script, gaia, tmp_path / "pile", 1),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == content(whole)


# --- what changes between runs ----------------------------------------------------------------------------------------


def test_fault_55_gone_on_with_another_recipe(
    gaia: Recipe, whole: Path, tmp_path: Path, script: Path, sabotage: Sabotage
) -> None:
    pile = tmp_path / "pile"
    env = sabotage("encode", a_cell(whole), "os.kill(os.getpid(), signal.SIGKILL)", once=True)
    subprocess.run(command(script, gaia, pile, 0), env=env, capture_output=True, check=False)
    assert Pile.open(pile).head() is None and receipts(pile) > 5
    other = replace(gaia, surveys=(replace(gaia.choice("gaia"), profile="all"),))
    built = build(other, pile)
    assert built.snapshot.content_id == build(other, tmp_path / "anew").snapshot.content_id != content(whole)
    assert "fetch" not in built.done, "what the recipe does not change is not done again"


@pytest.mark.parametrize("workers", [2])
def test_fault_56_workers_locale_time_zone_and_hash_seed(
    gaia: Recipe, whole: Path, tmp_path: Path, script: Path, workers: int
) -> None:
    odd = {"LC_ALL": "tr_TR.UTF-8", "LANG": "de_DE.UTF-8", "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        command(script, gaia, tmp_path / "pile", workers),
        env={**os.environ, **odd},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == content(whole)


def test_no_scheduler_and_no_sense(gaia: Recipe, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1"):
        build(gaia, tmp_path / "pile", scheduler="tcp://127.0.0.1:1")
    for wrong in ({"workers": -1}, {"deadline_s": 0.0}, {"memory_bytes": -1}):
        with pytest.raises(ValueError, match="wanted"):
            Engine(**wrong)  # type: ignore[arg-type]
