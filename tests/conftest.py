"""What many tests stand on: real survey files where there are any, and one small mock sky with its pile."""

import fcntl
import importlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

# before torch is imported: test processes share the cores, and threads that wait for each other spin
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from skycairn.mocksky.build import Summary
from skycairn.mocksky.build import build as build_mock
from skycairn.pipeline import recipe as recipes
from skycairn.pipeline.recipe import Recipe
from skycairn.pipeline.run import build

HERE = Path(__file__).resolve()

# how long an example takes hangs on who else uses the machine
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

TINY: dict[str, Any] = {
    "name": "tiny",
    "region": {"kind": "cone", "ra": 0.0, "dec": -1.2, "radius_deg": 0.5},
    "surveys": {
        "legacysurvey": {"release": "dr10", "profile": "aion"},
        "hsc": {"release": "pdr3-wide", "profile": "aion"},
        "desi": {"release": "dr1", "profile": "strict"},
        "gaia": {"release": "dr3", "profile": "aion"},
        "sdss": {"release": "dr17", "profile": "strict"},
    },
    "split": {"least": 0.0},
    "codecs": {"fit_on": "any"},
}
"""All of the tiny sky, which lies in too few cells of the split to spare any for a test."""
LEAN = ("legacysurvey", "desi", "gaia", "sdss")
"""All of its surveys but HSC, whose pixels take nearly half the time of a build."""


@pytest.fixture(scope="session")
def lsdb() -> ModuleType:
    """lsdb, of whose own code nothing is compiled: that takes 12 seconds, and its small tables none."""
    numba = pytest.importorskip("numba")
    numba.config.DISABLE_JIT = True
    try:
        with warnings.catch_warnings():
            # lsdb 0.11 and nested-pandas 0.7 call pandas as pandas 4 will not have it
            warnings.simplefilter("ignore")
            return importlib.import_module("lsdb")
    finally:
        numba.config.DISABLE_JIT = False


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one thread, whose sums are the same every time."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of small real survey files: SKYCAIRN_REAL_DATA, or `shared/real-data` beside the checkout."""
    places = [Path(os.environ["SKYCAIRN_REAL_DATA"])] if "SKYCAIRN_REAL_DATA" in os.environ else []
    places.append(HERE.parents[2] / "shared" / "real-data")
    for place in places:
        if place.is_dir():
            return place
    pytest.skip("no real survey files here; set SKYCAIRN_REAL_DATA to a folder that holds them")


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that all processes of this test run share; the first that asks makes it."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / f"{name}.done").exists():
            make(shared / name)
            (shared / f"{name}.done").touch()
    return shared / name


@pytest.fixture(scope="session")
def tiny_sky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny mock sky: a folder per survey, and `truth`. Not to be changed; copy what a test would damage."""
    return once(tmp_path_factory, "sky", lambda out: build_mock("tiny", out, workers=1))


class Mock(NamedTuple):
    """A mock sky that was made once, what its making returned, and what it said meanwhile."""

    root: Path
    summary: Summary
    said: list[str]


def mock_once(factory: pytest.TempPathFactory, name: str, **settings: Any) -> Mock:
    """The tiny mock sky of these settings, shared as by `once`."""

    def make(out: Path) -> None:
        said: list[str] = []
        summary = build_mock("tiny", out / "tiny", workers=1, progress=said.append, **settings)
        (out / "told.json").write_text(json.dumps([asdict(summary), said]))

    out = once(factory, name, make)
    summary, said = json.loads((out / "told.json").read_text())
    return Mock(out / "tiny", Summary(**summary), said)


@pytest.fixture(scope="session")
def tiny_fifth(tmp_path_factory: pytest.TempPathFactory) -> Mock:
    """The tiny mock sky of seed 5. Not to be changed."""
    return mock_once(tmp_path_factory, "fifth", seed=5)


@pytest.fixture(scope="session")
def tiny_second(tmp_path_factory: pytest.TempPathFactory, tiny_sky: Path) -> Path:
    """The second release of the tiny mock sky. Not to be changed."""
    return once(tmp_path_factory, "second", lambda out: build_mock("tiny", out, workers=1, release=2, first=tiny_sky))


@pytest.fixture(scope="session")
def tiny_free(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny mock sky without noise: the truth of `tiny_sky`, pixel for pixel. Not to be changed."""
    return once(tmp_path_factory, "free", lambda out: build_mock("tiny", out, workers=1, noise=False))


@pytest.fixture(scope="session")
def tiny_recipe(tiny_sky: Path) -> Recipe:
    """All of the tiny sky."""
    return recipes.parse(TINY, "tiny").at(tiny_sky)


@pytest.fixture(scope="session")
def tiny_pile(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Recipe) -> Path:
    """The pile of `tiny_recipe`, built in one process. Not to be changed; copy it to build on."""
    return once(tmp_path_factory, "pile", lambda out: build(tiny_recipe, out))


@pytest.fixture(scope="session")
def lean_recipe(tiny_recipe: Recipe) -> Recipe:
    """All of the tiny sky in the surveys `LEAN`."""
    return replace(tiny_recipe, surveys=tuple(c for c in tiny_recipe.surveys if c.name in LEAN))


@pytest.fixture(scope="session")
def lean_pile(tmp_path_factory: pytest.TempPathFactory, lean_recipe: Recipe) -> Path:
    """The pile of `lean_recipe`, built in one process. Not to be changed; copy it to build on."""
    return once(tmp_path_factory, "lean", lambda out: build(lean_recipe, out))
