"""Builds whose survey files come through a mirror on this machine: honest, erring, and one that knows us not."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from skycairn.archives.client import Client
from skycairn.archives.hosts import HOSTS
from skycairn.archives.sources import Download
from skycairn.mirror.faults import Faults
from skycairn.mirror.server import Reply, Request
from skycairn.mirror.sky import HSC_ACCOUNT, SkyMirror, mirror_of, services_of
from skycairn.pile.store import Pile
from skycairn.pipeline import downloads
from skycairn.pipeline import recipe as recipes
from skycairn.pipeline.recipe import Recipe
from skycairn.pipeline.run import BuildError, build
from tests.conftest import LEAN, TINY, once

HSC = "hsc-release.mtk.nao.ac.jp"


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSP_PDR_USR", HSC_ACCOUNT[0])
    monkeypatch.setenv("SSP_PDR_PWD", HSC_ACCOUNT[1])


@contextmanager
def mirror(sky: Path, faults: Faults | None = None) -> Iterator[SkyMirror]:
    with mirror_of(sky, faults, services_of(sky)) as served:
        yield served


def recipe_of(
    served: SkyMirror,
    cache: Path,
    source: str = "archive",
    names: Iterable[str] = tuple(TINY["surveys"]),
    **settings: Any,
) -> Recipe:
    told: dict[str, Any] = deepcopy(TINY)
    told["surveys"] = {name: told["surveys"][name] for name in names}
    for chosen in told["surveys"].values():
        chosen["source"] = source
    told["download"] = {"cache": str(cache), "mirror": served.url, **settings}
    return recipes.parse(told, "test")


def objects_in(cache: Path) -> list[Path]:
    return [p for p in cache.glob("objects/*/*/*") if p.is_file()]


def digests_below(folder: Path) -> set[str]:
    return {hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def honest(tiny_sky: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache and the pile of a build from an honest mirror, a pile built from that cache, what was asked for."""

    def make(out: Path) -> None:
        with mirror(tiny_sky) as served:
            recipe = recipe_of(served, out / "cache")
            built = build(recipe, out / "pile")
            first = served.requests.total
            again = build(recipe, out / "pile")
            second = served.requests.total
            other = build(recipe, out / "other")
            told = {
                "ids": [b.snapshot.content_id for b in (built, other)],
                "partial": built.partial,
                "lost": [len(b.lost) for b in (built, again)],
                "asked": built.asked["requests"],
                "again": [again.n_tasks, again.snapshot == built.snapshot],
                "total": [first, second, served.requests.total],
                "hosts": sorted(host for host, n in served.requests.by_host.items() if n),
                "archives": sorted(set(map(host_of, served.archives.values()))),
            }
            (out / "told.json").write_text(json.dumps(told))

    return once(tmp_path_factory, "honest", make)


def test_a_build_over_http_is_the_same(tiny_pile: Path, honest: Path) -> None:
    told = json.loads((honest / "told.json").read_text())
    whole = Pile.open(tiny_pile).snapshot().content_id
    # with the cache another pile asks for nothing more
    assert told["ids"] == [whole, whole]
    assert not told["partial"]
    first, second, third = told["total"]
    assert 0 < told["asked"] == first
    # what the archive lists and has not is asked for in each build; the rest was had
    assert told["again"] == [0, True] and told["lost"] == [3, 3]
    assert second - first == third - second == 3
    assert told["hosts"] == told["archives"]


def host_of(url: str) -> str:
    return url.split("/")[2]


def test_a_mirror_that_errs_on_a_fifth_of_its_requests(
    tiny_sky: Path, tiny_pile: Path, honest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Pile.open(tiny_pile).snapshot()
    needed = json.loads((honest / "told.json").read_text())["total"][0]
    with mirror(tiny_sky, Faults(0.2, seed=7, slow_s=0.2)) as served:
        built = build(recipe_of(served, tmp_path / "cache"), tmp_path / "pile")
        assert built.snapshot.content_id == whole.content_id and not built.partial
        assert served.trapped == []
        bad = sum(served.requests.by_fault.values())
        with capsys.disabled():
            print(f"\n{needed} requests of an honest mirror, {served.requests.total} of one that erred {bad} times")
        assert bad > 0.1 * served.requests.total
        assert served.requests.total < 2 * needed
    good = digests_below(tiny_sky)
    held = objects_in(tmp_path / "cache")
    for path in held:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        assert content == path.parent.name
        assert content in good or path.name.startswith("forced-")
    assert len(held) == len(objects_in(honest / "cache"))


def test_one_field_by_query(tiny_sky: Path, tiny_pile: Path, tmp_path: Path) -> None:
    """Services give the same valid sources; what they do not hold (DESI's PHOTSYS) is null."""
    whole = Pile.open(tiny_pile).snapshot()
    with mirror(tiny_sky) as served:
        built = build(recipe_of(served, tmp_path / "cache", "query"), tmp_path / "pile")
    found, wanted = built.report, whole.stats["report"]
    for name, counts in wanted["surveys"].items():
        for key in ("valid", "selected", "members"):
            assert found.surveys[name][key] == counts[key], (name, key)
    assert found.strata == wanted["strata"] and found.pairs == wanted["pairs"]
    a, b = (s.tables["gaia.slim"] for s in (built.snapshot, whole))
    assert [e.part.content_id for e in a] == [e.part.content_id for e in b]


SECRET = "geheim-7f3a9c"


def test_fault_34_a_wrong_password_stops_its_survey_and_no_other(
    tiny_sky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SSP_PDR_PWD", SECRET)
    caplog.set_level(logging.DEBUG)
    with mirror(tiny_sky) as served:
        recipe = recipe_of(served, tmp_path / "cache")
        with pytest.raises(BuildError, match="SSP_PDR_USR and SSP_PDR_PWD of the environment; get an account") as told:
            build(recipe, tmp_path / "pile")
        # its account was tried once, by as many threads as may ask at once
        assert served.requests.by_host[HSC] <= 4
        for other in set(map(host_of, served.archives.values())) - {HSC}:
            assert served.requests.by_host[other] > 0
    receipts = [json.loads(p.read_text()) for p in tmp_path.glob("pile/receipts/*/*.json")]
    # its tracts may lie anywhere, so that no cell is whole without them: the others are read, and wait
    read = {r["settings"]["survey"] for r in receipts if r["step"] == "read"}
    assert read == {"legacysurvey", "gaia", "desi", "sdss"}
    assert SECRET not in repr(told.value) + str(told.value.__cause__) + caplog.text
    assert SECRET not in recipes.canonical(recipe.settings())
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert SECRET.encode() not in path.read_bytes(), path


def test_fault_34_no_secret_leaves_the_process(tiny_sky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A right password, a worker, every log turned on: nothing that a task is told or that is written holds it."""
    monkeypatch.setenv("SSP_PDR_PWD", SECRET)
    services = services_of(tiny_sky)
    services[HSC][0].password = SECRET
    script = (
        "import json, logging, pathlib, sys\n"
        "logging.basicConfig(level=logging.DEBUG)\n"
        "from skycairn.pipeline import recipe, run\n"
        "if __name__ == '__main__':\n"
        "    run.build(recipe.parse(json.loads(sys.argv[1]), 'test'), pathlib.Path(sys.argv[2]), workers=1)\n"
    )
    (tmp_path / "run.py").write_text(script)
    with mirror_of(tiny_sky, services=services, accounts={HSC: (HSC_ACCOUNT[0], SECRET)}) as served:
        told = recipes.canonical(recipe_of(served, tmp_path / "cache", names=["hsc", "gaia"]).settings())
        done = subprocess.run(
            [sys.executable, str(tmp_path / "run.py"), told, str(tmp_path / "pile")],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "DEBUG" in done.stderr and SECRET not in done.stdout + done.stderr
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert SECRET.encode() not in path.read_bytes(), path


def test_a_service_is_not_asked_for_all_the_sky(tiny_sky: Path, tmp_path: Path) -> None:
    with mirror(tiny_sky) as served:
        made = recipe_of(served, tmp_path / "cache", "query")
        settings = {**made.settings(), "region": recipes.ALL_SKY}
        with pytest.raises(ValueError, match="questions would be put to its catalogue service"):
            build(recipes.parse(settings, "test"), tmp_path / "pile")
        assert not served.requests.by_host["datalab.noirlab.edu"]


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between tries."""

    def opened(download: Download) -> Client:
        return Client(HOSTS, loopback=True, sleep=lambda s: None)

    monkeypatch.setattr(downloads, "open_client", opened)


@contextmanager
def busy(sky: Path, *ends: str) -> Iterator[SkyMirror]:
    """A mirror that has no time for files whose paths end so."""

    def service(request: Request) -> Reply | None:
        return Reply(503, b"later\n") if request.path.endswith(ends) else None

    services = services_of(sky)
    for host in {"portal.nersc.gov", "data.desi.lbl.gov"}:
        services[host] = [service, *services.get(host, [])]
    with mirror_of(sky, services=services) as served:
        yield served


@pytest.mark.parametrize("ends", ["0000m011-image-r.fits.fz", "zall-pix-iron.fits", "redux_iron_zcatalog_v1.sha256sum"])
def test_what_is_busy_is_never_a_null(
    tiny_sky: Path, lean_pile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """Pixels, a catalogue, a list: their cells, here all of the sky, are held back, and the next build has them."""
    impatient(monkeypatch)
    with busy(tiny_sky, ends) as served, pytest.raises(BuildError, match=r"held back.*HTTP 503|503"):
        build(recipe_of(served, tmp_path / "cache", names=LEAN), tmp_path / "pile")
    assert Pile.open(tmp_path / "pile").head() is None
    with mirror(tiny_sky) as served:
        built = build(recipe_of(served, tmp_path / "cache", names=LEAN), tmp_path / "pile")
    assert built.snapshot.content_id == Pile.open(lean_pile).snapshot().content_id and not built.partial


def test_a_damaged_file_of_the_cache_is_brought_again(
    tiny_sky: Path, tiny_pile: Path, honest: Path, tmp_path: Path
) -> None:
    shutil.copytree(honest / "cache", tmp_path / "cache")
    with mirror(tiny_sky) as served:
        recipe = recipe_of(served, tmp_path / "cache")
        for path in objects_in(tmp_path / "cache"):
            if path.name.startswith(("zall-", "forced-")):
                data = bytearray(path.read_bytes())
                data[len(data) // 2] ^= 4
                path.chmod(0o644)
                path.write_bytes(data)
        with pytest.raises(BuildError, match="was damaged in the cache"):
            build(recipe, tmp_path / "pile")
        built = build(recipe, tmp_path / "pile")
    assert built.snapshot.content_id == Pile.open(tiny_pile).snapshot().content_id and not built.partial
