"""A pile of the mock sky without its files: what it holds, and that it is one thing however it is made."""

import os
from functools import partial
from itertools import islice
from pathlib import Path
from shutil import copytree

import numpy as np
import pyarrow as pa
import pytest

from skycairn.catalogs.survey import WORK_ORDER
from skycairn.match.sky import cells, healpix29, split_of_cell
from skycairn.mocksky.patches import TIERS
from skycairn.mocksky.unwritten import look
from skycairn.model.loader import Loader
from skycairn.model.rules import Masking
from skycairn.model.strata import Source as Read
from skycairn.model.strata import find
from skycairn.pile.shards import token_columns
from skycairn.pile.store import Pile
from skycairn.pipeline import mockpile, recipe
from skycairn.pipeline.explain import explain
from skycairn.pipeline.mockpatch import NOT_ASKED
from skycairn.pipeline.mockpile import GROUP, SETTINGS, SPLIT_ORDER, Source, build, patches
from skycairn.pipeline.task import float64
from skycairn.pipeline.versions import VERSIONS
from skycairn.tokenizers.lock import read_lock
from tests.conftest import once

ROOT = Path(__file__).resolve().parents[2]
TINY = Source(partial(look, "tiny", 0), 1, {"like": "tiny"})
OBJECTS = 200


@pytest.fixture(scope="module")
def tier(tmp_path_factory: pytest.TempPathFactory, tiny_pile: Path) -> Path:
    """Two patches of the tiny sky elsewhere, images of the second."""
    return once(tmp_path_factory, "tier", lambda out: build(out, tiny_pile, TINY, OBJECTS, images=0.5))


def side_table(pile: Pile) -> pa.Table:
    return pa.concat_tables([pile.read_table(e.part) for e in pile.snapshot().entries("truth")])


def shards(pile: Pile) -> list[pa.Table]:
    return [pile.read_table(e.part) for e in pile.snapshot().entries("shards")]


def test_a_trainer_reads_it(tier: Path) -> None:
    pile = Pile.open(tier)
    snapshot = pile.snapshot()
    split = max(snapshot.stats["splits"], key=snapshot.stats["splits"].get)
    sources = [Read(pile, snapshot)]
    strata, vocabulary = find(sources, split)
    assert {s.name for s in strata} <= set(snapshot.stats["strata"])
    assert set(vocabulary.names) == {c for t in shards(pile) for c in token_columns(t.schema)}
    packed = Loader(sources, split, Masking(), objects=8, lanes=2, pool=16).microbatch(1)
    assert packed.n_objects > 0
    assert pile.verify(deep=True).sound


def test_rows_in_are_rows_kept_and_dropped(tier: Path) -> None:
    counts = Pile.open(tier).snapshot().stats["counts"]
    for survey in ("legacysurvey", "hsc", "gaia", "desi", "sdss"):
        of = {k.removeprefix(f"{survey}:"): v for k, v in counts.items() if k.startswith(f"{survey}:")}
        dropped = sum(v for k, v in of.items() if k.startswith("dropped:") and k != "dropped:duplicate")
        assert of["rows"] == of["kept"] + dropped
        assert of["kept"] == of["valid"] + of["repeats"] + of["dropped:duplicate"]
        assert of["valid"] == of["selected"] + sum(v for k, v in of.items() if k.startswith("not selected:"))
    assert counts["match:sources"] == counts["members"] + sum(
        v for k, v in counts.items() if k.startswith("match:dropped:")
    )
    assert counts["objects"] == sum(v for k, v in counts.items() if k.startswith("stratum:"))


def test_explain_says_that_there_are_no_files(tier: Path) -> None:
    pile = Pile.open(tier)
    with pytest.raises(ValueError, match="never written to files"):
        explain(pile, pile.snapshot(), side_table(pile)["object_id"][0].as_py())


def test_images_are_made_where_they_were_asked_for(tier: Path) -> None:
    told = {s for t in shards(Pile.open(tier)) for s in t["status.legacysurvey.image"].to_pylist()}
    assert {NOT_ASKED, "present"} <= told


def test_tokens_are_of_what_the_side_table_holds(tier: Path) -> None:
    pile, codecs = Pile.open(tier), read_lock(tier / "codecs.lock")
    measured = side_table(pile)
    row = {k: i for i, k in enumerate(measured["object_id"].to_pylist())}
    checked = 0
    for shard in shards(pile):
        at = pa.array([row[k] for k in shard["object_id"].to_pylist()])
        for name, column in token_columns(shard.schema).items():
            there = shard[name].is_valid().to_numpy()
            if column.layout != "scalar" or not there.any():
                continue
            value = float64(measured.take(at), name)[there]
            assert np.array_equal(codecs[name].encode({"value": value})[:, 0], shard[name].drop_null().to_numpy()), name
            checked += len(value)
    assert checked > 500


def test_what_was_measured_is_what_is_true_plus_its_noise(tier: Path) -> None:
    t = side_table(Pile.open(tier))
    alone = float64(t, "true.blend_group") == 0
    pulls = [
        ((float64(t, f"legacysurvey.flux_{b}") - float64(t, f"true.flux_{b}")) * np.sqrt(ivar))[alone & (ivar > 0)]
        for b in "griz"
        for ivar in (np.nan_to_num(float64(t, f"legacysurvey.flux_{b}.ivar")),)
    ]
    for survey, name in (("desi", "z"), ("sdss", "z"), ("gaia", "parallax")):
        pull = (float64(t, f"{survey}.{name}") - float64(t, f"true.{name}")) / float64(t, f"{survey}.{name}.error")
        pulls.append(pull[np.isfinite(pull)])
    for pull in pulls:
        assert len(pull) > 10 and abs(np.median(pull)) < 5 / np.sqrt(len(pull))
    every = np.concatenate(pulls)
    assert 0.9 < np.subtract(*np.percentile(every, [84, 16])) / 2 < 1.1
    # Galactic dust of the surveys is that of the truth
    seen = np.isfinite(float64(t, "legacysurvey.ebv"))
    assert np.allclose(float64(t, "legacysurvey.ebv")[seen & alone], float64(t, "true.ebv")[seen & alone])


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, tiny_pile: Path) -> Path:
    """The same, interrupted after its first patch."""

    def stop(text: str) -> None:
        raise Stopped

    def make(out: Path) -> None:
        with pytest.raises(Stopped):
            build(out, tiny_pile, TINY, OBJECTS, images=0.5, progress=stop)

    return once(tmp_path_factory, "begun", make)


@pytest.mark.parametrize("ahead", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_interrupted_one_goes_on_and_is_the_same_by_two_workers(
    ahead: int, tmp_path: Path, tiny_pile: Path, tier: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker takes 10 s to start: the second, which makes a patch `ahead` that is not needed, only where slow is."""
    every = list(islice(patches(TINY, 0, 0.5), 2 + ahead))
    monkeypatch.setattr(mockpile, "patches", lambda *_: every)
    assert Pile.open(begun).head() is None
    tmp_path = copytree(begun, tmp_path / "pile")
    done = sorted((tmp_path / "receipts").rglob("*.json"))
    times = [p.stat().st_mtime_ns for p in done]
    again = build(tmp_path, tiny_pile, TINY, OBJECTS, workers=2, images=0.5)
    assert again.content_id == Pile.open(tier).snapshot().content_id
    assert [p.stat().st_mtime_ns for p in done] == times and len(done) == 1
    said: list[str] = []
    assert build(tmp_path, tiny_pile, TINY, OBJECTS, images=0.5, progress=said.append).number == again.number
    assert said == ["the pile is there and whole"]
    with pytest.raises(ValueError, match="name another"):
        build(tmp_path, tiny_pile, TINY, 300, images=0.5)


def test_a_raised_version_of_a_step_makes_patches_anew(
    tier: Path, begun: Path, tiny_pile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def do(*_: object) -> None:
        raise Stopped

    monkeypatch.setattr(mockpile, "_do", do)
    monkeypatch.setitem(VERSIONS, "encode", 99)
    with pytest.raises(ValueError, match="name another"):
        build(tier, tiny_pile, TINY, OBJECTS, images=0.5)
    with pytest.raises(Stopped):
        build(begun, tiny_pile, TINY, OBJECTS, images=0.5)


def test_a_sky_too_small_is_an_error_once_all_of_it_is_looked_at(
    begun: Path, tiny_pile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = list(islice(patches(TINY, 0, 0.5), 1))
    monkeypatch.setattr(mockpile, "patches", lambda *_: first)
    for workers in (1, 2):
        with pytest.raises(ValueError, match=r"full: 1 patches hold [1-9]"):
            build(begun, tiny_pile, TINY, OBJECTS, workers=workers, images=0.5)
    assert Pile.open(begun).head() is None


def test_every_patch_has_its_cells_for_itself_and_splits_have_their_shares() -> None:
    source = Source(partial(look, "default", 0), len(TIERS["default"].patches))
    found = [p for p, _ in zip(patches(source, 0, 0.2), range(280), strict=False)]
    assert len({p.cell >> 2 for p in found}) == len({p.cell for p in found}) == 280
    ra, dec = np.array([p.centres[p.patch] for p in found]).T
    near = np.round(ra, 1) % 360, np.round(dec, 1)
    for east, north in ((0.06, 0.06), (-0.06, 0.06), (0.06, -0.06), (-0.06, -0.06), (0, 0)):
        there = cells(healpix29((near[0] + east / np.cos(np.radians(near[1]))) % 360, near[1] + north), WORK_ORDER)
        assert there.tolist() == [p.cell for p in found]
    assert GROUP == 10


@pytest.mark.parametrize("share", [0.25, 1 / 7, 0.03])
def test_images_are_of_patches_of_every_place_and_split_alike(share: float) -> None:
    """A place is a patch of the mock with its own density and surveys, of 28."""
    source = Source(partial(look, "default", 0), len(TIERS["default"].patches))
    found = list(islice(patches(source, 0, share), 28 * 100))
    places = np.bincount([p.patch for p in found if p.images], minlength=28)
    assert np.abs(places - 100 * share).max() < 4.5 * np.sqrt(100 * share)
    split = recipe.parse(SETTINGS, "mock-pile").split
    of = split_of_cell(np.array([p.cell >> 2 for p in found]), split.salt, split.by_name(), SPLIT_ORDER)
    for name in split.by_name():
        mine = [p.images for p, s in zip(found, of, strict=True) if s == name]
        assert abs(sum(mine) - share * len(mine)) <= GROUP * share + 1


def distances(ours: Path, theirs: Path) -> dict[str, tuple[float, float]]:
    """Kolmogorov-Smirnov distance of the tokens by scalar modality, and what it stays below by chance (0.1 %)."""
    seen: dict[str, list[np.ndarray]] = {}
    for root in (ours, theirs):
        total: dict[str, np.ndarray] = {}
        for shard in shards(Pile.open(root)):
            for name, column in token_columns(shard.schema).items():
                if column.layout == "scalar":
                    tokens = shard[name].drop_null().to_numpy()
                    total[name] = total.get(name, 0) + np.bincount(tokens, minlength=column.vocabulary)
        for name, count in total.items():
            seen.setdefault(name, []).append(count)
    out = {}
    for name, (a, b) in seen.items():
        if min(a.sum(), b.sum()):
            apart = np.abs(np.cumsum(a) / a.sum() - np.cumsum(b) / b.sum()).max()
            out[name] = float(apart), 1.95 * np.sqrt(1 / a.sum() + 1 / b.sum())
    return out


OF_PLACE = ("gaia.ra", "gaia.dec", "legacysurvey.ebv", *(f"hsc.a_{b}" for b in "grizy"))
"""The same for all objects of a patch, so that a few patches tell nothing."""


def test_tokens_are_distributed_as_those_of_the_tiny_pile(tier: Path, tiny_pile: Path) -> None:
    found = distances(tier, tiny_pile)
    assert len(found) > 20
    for name in set(found) - set(OF_PLACE):
        apart, chance = found[name]
        assert apart < chance, name


@pytest.mark.slow
def test_tokens_are_distributed_as_those_of_the_default_pile(tmp_path: Path) -> None:
    """Of half a sky, without images; objects of a patch are not independent: 0.05 beyond chance is let pass."""
    theirs = Path(os.environ.get("SKYCAIRN_PILE", ROOT / "work" / "pile"))
    if not (theirs / "codecs.lock").is_file():
        pytest.skip("no pile of the default mock sky; set SKYCAIRN_PILE, or run `make build-pile`")
    source = Source(partial(look, "default", 0), len(TIERS["default"].patches))
    build(tmp_path, theirs, source, 4000, images=0)
    for name, (apart, chance) in distances(tmp_path, theirs).items():
        if name not in OF_PLACE:
            assert apart < chance + 0.05, name
