"""What is brought from archives while a build goes on: within the cache's limit, interrupted, by several processes."""

import hashlib
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from skycairn.archives.cache import Cache
from skycairn.catalogs.survey import RemoteFile
from skycairn.mirror.server import Mirror
from skycairn.mirror.sky import SkyMirror, mirror_of
from skycairn.mirror.wire import Reply, Request, Wire
from skycairn.pile.store import Pile
from skycairn.pipeline import recipe as recipes
from skycairn.pipeline.downloads import Downloads
from skycairn.pipeline.engine import Engine
from skycairn.pipeline.recipe import Recipe
from skycairn.pipeline.run import BuildError, Built, build
from skycairn.pipeline.task import Context

RELEASES = {"desi": "dr1", "sdss": "dr17"}


def settings(*surveys: str, **more: Any) -> dict[str, Any]:
    chosen = {name: {"release": RELEASES[name], "profile": "strict"} for name in surveys}
    region = {"kind": "cone", "ra": 0.0, "dec": -1.2, "radius_deg": 0.5}
    made = {"name": "far", "region": region, "surveys": chosen, "split": {"least": 0.0}, "codecs": {"fit_on": "any"}}
    return {**made, **more}


def far(mirror: Mirror, cache: Path, limit_bytes: int, *surveys: str, **more: Any) -> Recipe:
    """The recipe, all of whose files come from the mirror."""
    made = settings(*surveys, **more)
    for chosen in made["surveys"].values():
        chosen["source"] = "archive"
    made["download"] = {"cache": str(cache), "limit_bytes": limit_bytes, "mirror": mirror.url}
    return recipes.parse(made, "far")


def gets(mirror: Mirror) -> Counter[str]:
    """How often each file was asked for."""
    return Counter(a.path for a in mirror.log if a.method == "GET")


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory, tiny_sky: Path) -> Callable[..., str]:
    """Content of the pile that the files themselves give."""
    known: dict[tuple[str, ...], str] = {}

    def content(*surveys: str) -> str:
        if surveys not in known:
            made = recipes.parse(settings(*surveys), "near").at(tiny_sky)
            known[surveys] = build(made, tmp_path_factory.mktemp("near") / "pile").snapshot.content_id
        return known[surveys]

    return content


@pytest.fixture
def mirror(tiny_sky: Path) -> Iterator[SkyMirror]:
    with mirror_of(tiny_sky) as made:
        yield made


def test_a_cache_smaller_than_what_is_needed(tmp_path: Path, mirror: SkyMirror, near: Callable[..., str]) -> None:
    """8 MB of files, of which no cell wants more than 2.6: the cache never holds more than its limit and what is
    pinned, and the pile is the same."""
    limit, folder, above = 3_000_000, tmp_path / "cache", []

    def watch(step: str, done: int, total: int) -> None:
        cache = Cache(folder, limit)
        pinned = cache.pinned()
        held = {p.parent.name: p.stat().st_size for p in folder.glob("objects/*/*/*")}
        above.append(sum(held.values()) - limit - sum(n for name, n in held.items() if name in pinned))

    built = build(far(mirror, folder, limit, "desi", "sdss"), tmp_path / "pile", progress=watch)
    assert built.snapshot.content_id == near("desi", "sdss") and not built.partial
    assert len(above) > 50 and max(above) <= 0
    assert sum(p.stat().st_size for p in folder.glob("objects/*/*/*")) <= limit
    asked = gets(mirror)
    # SDSS publishes no digests here, so that each of its files is fetched till two replies agree
    assert max(asked.values()) > 2, "nothing was ever dropped: the limit is not put to the test"
    assert max(asked.values()) <= 8 and sum(asked.values()) < 5 * len(asked)


def test_a_file_larger_than_the_cache_is_said_before_it_comes(tmp_path: Path, mirror: SkyMirror) -> None:
    sizes: list[int] = []

    class Count:
        def spoil(self, request: Request, truth: Callable[[], Reply], trap: str) -> Wire:
            def counted(blocks: Iterator[bytes], n: int) -> Iterator[bytes | float]:
                for block in blocks:
                    yield block[: 1 << 16]
                    sizes.append(1 << 16)
                    yield 0.05
                    yield block[1 << 16 :]

            return Wire(truth(), stream=counted if "spPlate" in request.path else None)

    mirror.faults = Count()
    with pytest.raises(BuildError, match=r"spPlate-\S+: .* bytes, more than the 300,000 .* give it a higher limit"):
        build(far(mirror, tmp_path / "cache", 300_000, "sdss"), tmp_path / "pile")
    assert not list((tmp_path / "cache").glob("objects/*/*/spPlate*"))
    assert sum(p.stat().st_size for p in (tmp_path / "cache" / "partial").iterdir()) < 300_000


def test_many_files_are_planned_for_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To look at all that is wanted after each file that came would take as many looks as there are pairs of files."""
    tree, lines = tmp_path / "tree" / "d", []
    tree.mkdir(parents=True)
    for i in range(60):
        (tree / f"{i}.dat").write_bytes(b"%d" % i)
        lines.append(f"{hashlib.sha256(b'%d' % i).hexdigest()}  {i}.dat\n")
    (tree / "sums.sha256sum").write_text("".join(lines))
    files = [RemoteFile(f"d/{i}.dat", "d/sums.sha256sum", "sha256") for i in range(60)]
    plannings, kept = [], []
    send_for = Downloads._send_for

    def counted(self: Downloads, *args: Any, **more: Any) -> Any:
        plannings.append(1)
        return send_for(self, *args, **more)

    monkeypatch.setattr(Downloads, "_send_for", counted)
    with Mirror({}) as mirror:
        made = far(mirror, tmp_path / "cache", 10**9, "desi")
        parts = urlsplit(made.choice("desi").survey().url)
        mirror.folders[f"{parts.netloc}{parts.path}".strip("/")] = tmp_path / "tree"
        with Downloads(Context(Pile.create(tmp_path / "pile"), made)) as downloads:
            assert downloads.bring({"desi": files}) == []
            kept = Cache(tmp_path / "cache", 10**9).pinned()
    assert {hashlib.sha256(b"%d" % i).hexdigest() for i in range(60)} <= kept
    assert len(plannings) < 10 and not Cache(tmp_path / "cache", 10**9).pinned()


class Hang:
    """Sends half of what is asked, then nothing for an hour, till `go`."""

    def __init__(self, part: str) -> None:
        self.part, self.reached, self.go = part, threading.Event(), False

    def spoil(self, request: Request, truth: Callable[[], Reply], trap: str) -> Wire:
        def half(blocks: Iterator[bytes], n: int) -> Iterator[bytes | float]:
            whole = b"".join(blocks)
            yield whole[: n // 2]
            self.reached.set()
            yield 3600.0
            yield whole[n // 2 :]

        return Wire(truth(), stream=half if self.part in request.path and not self.go else None)


def begun(made: Recipe, pile: Path) -> subprocess.Popen[str]:
    """A build in a process of its own, as the command does it."""
    run = """
import json, pathlib, sys
from skycairn.cli.failing import errors
from skycairn.pipeline import recipe
from skycairn.pipeline.run import build
with errors():
    print(build(recipe.parse(json.loads(sys.argv[1]), "far"), pathlib.Path(sys.argv[2])).snapshot.content_id)
"""
    command = [sys.executable, "-c", run, recipes.canonical(made.settings()), str(pile)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def interrupted(process: subprocess.Popen[str], hang: Hang) -> None:
    assert hang.reached.wait(60)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "run the same command again" in said, said


def test_control_c_while_a_file_comes(tmp_path: Path, mirror: SkyMirror, near: Callable[..., str]) -> None:
    mirror.faults = hang = Hang("spPlate-10200")
    made = far(mirror, tmp_path / "cache", 10**9, "sdss")
    interrupted(begun(made, tmp_path / "pile"), hang)
    hang.go = True
    mirror.log.clear()
    again = begun(made, tmp_path / "pile")
    content, said = again.communicate(timeout=120)
    assert content.strip() == near("sdss"), said
    [first, *more] = [a for a in mirror.log if hang.part in a.path]
    assert first.status == 206 and len(more) == 1, "the half that came is not asked for again"
    assert not [path for path in gets(mirror) if "specObj" in path], "what was whole is not asked for again"


def test_control_c_while_a_list_is_waited_for(tmp_path: Path, mirror: SkyMirror) -> None:
    """Lists are had while the work is planned, in the builder's own thread."""
    mirror.faults = hang = Hang("zcatalog_v1.sha256sum")
    interrupted(begun(far(mirror, tmp_path / "cache", 10**9, "desi"), tmp_path / "pile"), hang)


def test_worker_processes_read_what_the_builder_brings(
    tmp_path: Path, mirror: SkyMirror, near: Callable[..., str]
) -> None:
    made = far(mirror, tmp_path / "cache", 10**9, "sdss")
    built = build(made, tmp_path / "pile", engine=Engine(workers=2))
    assert built.snapshot.content_id == near("sdss") and not built.partial
    # each file twice, by the builder alone, since nothing vouches for it
    assert max(gets(mirror).values()) == 2


def test_a_file_that_was_dropped_and_is_gone_from_the_archive(tmp_path: Path, tiny_sky: Path) -> None:
    """It was had once and is wanted again: its cell is held back, with the reason, and the build ends."""
    sky = tmp_path / "sky"
    shutil.copytree(tiny_sky / "sdss", sky / "sdss")

    def built(pile: str, mirror: Mirror) -> Built:
        return build(far(mirror, tmp_path / "cache", 10**9, "sdss"), tmp_path / pile)

    with mirror_of(sky) as mirror:
        assert not built("first", mirror).partial
        [gone] = sky.glob("sdss/**/spPlate-10200-57500.fits")
        gone.unlink()
        for copy in (tmp_path / "cache").glob("objects/*/*/spPlate-10200-57500.fits"):
            copy.unlink()
        with pytest.raises(
            BuildError, match=r"held back: .* cell 17404: .*spPlate-10200-57500.fits: the archive has no"
        ):
            built("second", mirror)
