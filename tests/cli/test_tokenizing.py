"""`skycairn-tokenize`: trains on a pile, shows what there is, exchanges with AION-1, and fails in one line."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from skycairn.cli.tokenizing import app
from skycairn.pile.store import Draft, Entry, Pile
from skycairn.tokenizers.lock import lock_ids, read_lock

pytest.importorskip("skycairn.tokenizers.image")
pytest.importorskip("skycairn.tokenizers.spectrum")
pytest.importorskip("skycairn.tokenizers.segmap")

N, SIDE, PIXELS = 12, 160, 4800
IMAGES = ("legacysurvey.image", "hsc.image")


def fixed(values):
    n = values[0].size
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), n)


@pytest.fixture(scope="module")
def pile(tmp_path_factory) -> Path:
    """A pile with as much in it as is asked for: a few images and spectra, and the catalogue about them."""
    root = tmp_path_factory.mktemp("cli") / "pile"
    made, rng, keys = Pile.create(root), np.random.default_rng(0), np.arange(N)
    split = ["validation" if k % 6 == 0 else "train" for k in keys]
    surveys = {"legacysurvey": "dr10", "hsc": "pdr3-wide", "sdss": "dr17"}
    objects = pa.table({"split": split, **{f"key.{s}": pa.array(keys, pa.int64()) for s in surveys}})
    wide = pa.table(
        {
            "key": keys,
            "ra": 10 + rng.normal(size=N) * 5e-3,
            "dec": rng.normal(size=N) * 5e-3,
            "type": ["PSF", "REX", "EXP", "DEV", "SER", "DUP"] * 2,
            "shape_e1": np.full(N, 0.2, np.float32),
            "shape_e2": np.full(N, -0.1, np.float32),
            "shape_r": np.full(N, 3.0, np.float32),
        }
    )
    aside = {}
    for survey, bands in (("legacysurvey", 4), ("hsc", 5), ("sdss", 0)):
        shape = (N, bands, SIDE, SIDE) if bands else (N, PIXELS)
        flux = rng.normal(1 if not bands else 0, 0.1, shape).astype(np.float32)
        head = {"owner": [survey] * N, "key": keys, "status": pa.nulls(N, pa.string())}
        arrays = {"flux": flux, "ivar": np.full(shape, 100, np.float32), "mask": rng.random(shape) < 0.01}
        part = made.put_table(pa.table({**head, **{k: fixed(v) for k, v in arrays.items()}}), 16)
        aside[f"payload.{survey}.{'image' if bands else 'spectrum'}"] = [Entry({"cell": 0}, part)]
    tables = {
        name: [Entry({"cell": 0}, made.put_table(t))] for name, t in (("objects", objects), ("legacysurvey.wide", wide))
    }
    recipe = {"payload": {"keep": "all"}, "surveys": {s: {"release": r, "profile": "aion"} for s, r in surveys.items()}}
    recipe["surveys"]["sdss"]["profile"] = "strict"
    made.commit(Draft(recipe=recipe, tables=tables, aside=aside, held_back=[], stats={}))
    return root


def run(*args, code=0):
    found = CliRunner().invoke(app, [str(a) for a in args])
    assert found.exit_code == code, found.output
    return found.output


SHORT = ("--steps", 2, "--batch", 2, "--threads", 1)


@pytest.fixture(scope="module")
def trained(pile, tmp_path_factory):
    out = tmp_path_factory.mktemp("codecs")
    said = {k: run("train", k, "--pile", pile, "--out", out, *SHORT) for k in ("image", "spectrum", "segmap")}
    return out, said


def test_each_kind_is_trained_into_one_lock(trained, pile):
    out, said = trained
    assert set(lock_ids(out / "codecs.lock")) == {*IMAGES, "sdss.spectrum", "legacysurvey.segmap"}
    codecs = read_lock(out / "codecs.lock")
    assert codecs["hsc.image"].bands == ("g", "r", "i", "z", "y") and codecs["hsc.image"].zero_point == 22.5
    a, b = (codecs[m].arrays() for m in IMAGES)
    assert all(np.array_equal(a[k], b[k]) for k in a), "surveys share a network"
    assert codecs["sdss.spectrum"].grid.n_pixels == PIXELS and codecs["sdss.spectrum"].grid.scale == "log10"
    assert "10 of hsc.image" in said["image"] and "--reuse" in said["image"]
    for kind in ("image", "spectrum", "segmap"):
        (metrics,) = out.glob(f"training/{kind}_network/metrics.jsonl")
        last = json.loads(metrics.read_text().splitlines()[-1])
        assert last["step"] == 2 and all(h["n"] == 2 for h in last["held_out"].values())


def test_the_lock_tells_on_which_sky_its_codecs_were_trained(trained, pile):
    from skycairn.pipeline.heldout import other_sky

    out, _ = trained
    lock, snapshot = out / "codecs.lock", Pile.open(pile).snapshot()
    codecs = read_lock(lock)
    told = json.loads((out / "trained.json").read_text())
    assert {m: t["codec"] for m, t in told.items()} == lock_ids(lock)
    assert {t["snapshot"] for t in told.values()} == {snapshot.content_id}
    assert not other_sky(lock, snapshot, codecs)
    snapshot.recipe["split"] = {"salt": "other", "fractions": [0.8, 0.1, 0.1], "least": 0.1}
    assert other_sky(lock, snapshot, codecs) == sorted(codecs)
    assert other_sky(lock, snapshot, {"hsc.image": codecs["sdss.spectrum"]}) == []
    assert other_sky(pile / "codecs.lock", snapshot, codecs) == []


def test_what_is_done_is_done_and_another_run_is_refused(trained, pile):
    out, _ = trained
    before = lock_ids(out / "codecs.lock")
    assert "going on from step 2" in run("train", "segmap", "--pile", pile, "--out", out, *SHORT)
    assert lock_ids(out / "codecs.lock") == before
    said = run("train", "segmap", "--pile", pile, "--out", out, *SHORT, "--seed", 5, code=1)
    assert "unlike in schedule (seed 0 there, 5 here)" in said and said.count("\n") <= 3


def test_it_learns_from_no_more_than_it_is_told_to(pile, tmp_path):
    said = run("train", "segmap", "--pile", pile, "--out", tmp_path, "--steps", 1, "--batch", 1, "--most", 3)
    assert "3 of legacysurvey.segmap" in said


def test_a_limit_of_time_takes_as_many_steps_as_fit(pile, tmp_path):
    said = run("train", "segmap", "--pile", pile, "--out", tmp_path, "--minutes", 0.0002, "--batch", 2, "--threads", 1)
    assert "1 of 400 steps fit into the time; of so few comes a codec that is worth nothing" in said
    assert "legacysurvey.segmap: codec" in said
    again = run("train", "segmap", "--pile", pile, "--out", tmp_path, "--minutes", 1, "--batch", 2, "--threads", 1)
    assert "going on from step 1" in again and "where it ended; for more steps give another --out" in again


def test_codecs_are_shown(trained):
    out, _ = trained
    said = run("show", out)
    ids = lock_ids(out / "codecs.lock")
    assert all(f"{m}: " in said and i in said for m, i in ids.items()) and "spectrum_network" in said
    one = ids["sdss.spectrum"]
    assert run("show", out / "codecs" / one).startswith(f"{one[:12]}: spectrum_network")
    assert run("show", out / "codecs.lock") == said


def test_weights_go_to_aion_and_back(tmp_path):
    from skycairn.pipeline.published import from_aion, to_aion
    from skycairn.tokenizers.image import ImageCodec
    from skycairn.tokenizers.segmap import SegmentationCodec

    own = SegmentationCodec.fresh("tiny", seed=3)
    places = to_aion({"legacysurvey.segmap": own}, tmp_path)
    assert places == [tmp_path / "codecs" / "segmentation_map"]
    (back,) = from_aion("segmap", str(tmp_path)).values()
    assert back.content_id == own.content_id
    said = run("from-aion", tmp_path, "--codec", "segmap", "--out", tmp_path / "taken")
    assert own.content_id in said and lock_ids(tmp_path / "taken" / "codecs.lock")
    run("to-aion", tmp_path / "taken", "--out", tmp_path / "again")
    first, second = (p / "codecs" / "segmentation_map" / "model.safetensors" for p in (tmp_path, tmp_path / "again"))
    assert first.read_bytes() == second.read_bytes()
    with pytest.raises(ValueError, match="none has a network"):
        to_aion({}, tmp_path)
    tiny = ImageCodec.fresh("tiny")
    with pytest.raises(
        ValueError, match=r"hsc\.image: image codec: .*--codec names those to write instead; .*map is written"
    ):
        to_aion({"legacysurvey.segmap": own, "hsc.image": tiny}, tmp_path)


def test_hsc_codecs_of_aion_take_nanomaggies(tmp_path):
    from skycairn.pipeline.published import from_aion, to_aion
    from skycairn.tokenizers.image import ImageCodec
    from skycairn.tokenizers.magvit import Architecture

    form = Architecture(hidden=16, projection=4, compressions=1, consecutive=1)
    to_aion({"legacysurvey.image": ImageCodec.fresh(form, seed=1)}, tmp_path)
    found = from_aion("image", str(tmp_path))
    assert set(found) == set(IMAGES)
    peer, ours = ImageCodec.from_aion(tmp_path, "hsc"), found["hsc.image"]
    flux = np.random.default_rng(0).normal(0, 100, (2, 5, 96, 96)).astype(np.float32)
    assert np.mean(peer.encode({"flux": flux}) == ours.encode({"flux": flux / 10 ** (4.5 / 2.5)})) > 0.99


def test_spectra_of_aion_are_padded_where_asked_for(tmp_path):
    from skycairn.tokenizers.spectrum import SpectrumCodec

    SpectrumCodec.fresh("tiny", preprocessing="aion").to_aion(tmp_path)
    run("from-aion", tmp_path, "--codec", "spectrum", "--padding", "upstream", "--out", tmp_path / "taken")
    taken = read_lock(tmp_path / "taken" / "codecs.lock")
    assert {c.padding for c in taken.values()} == {"upstream"} and set(taken) == {"desi.spectrum", "sdss.spectrum"}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ("train", "pictures", "--pile", "x", "--out", "y"),
            "there is no learned codec 'pictures'; choose one of image",
        ),
        (("train", "image", "--pile", "nowhere", "--out", "y"), "nowhere is not a pile"),
        (("train", "image", "--pile", "x", "--out", "y", "--schedule", "long"), "choose quick or paper"),
        (("train", "image", "--pile", "x", "--out", "y", "--steps", "0"), "wanted steps"),
        (("train", "image", "--pile", "x", "--out", "y", "--precision", "fp8"), "choose fp32 or bf16"),
        (("train", "image", "--pile", "x", "--out", "y", "--minutes", "-1"), "wanted 0 (no limit) or more"),
        (("train", "image", "--pile", "x", "--out", "y", "--most", "-1"), "wanted 0 (all) or more"),
        (("show", "nowhere"), "holds neither codec.json nor codecs.lock"),
        (("to-aion", "nowhere", "--out", "y"), "holds neither codec.json nor codecs.lock"),
        (("from-aion", "nowhere", "--out", "y"), "nowhere"),
        (("from-aion", "nowhere", "--out", "y", "--codec", "z"), "there is no learned codec 'z'"),
        (("from-aion", "nowhere", "--out", "y", "--padding", "z"), "choose none or upstream"),
    ],
)
def test_wrong_calls_fail_in_one_line(args, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = run(*args, code=1)
    assert said in output and output.startswith("skycairn: ") and output.count("\n") == 1


def test_sizes_are_told(pile, tmp_path):
    said = run("train", "spectrum", "--pile", pile, "--out", tmp_path, "--size", "huge", code=1)
    assert "size 'huge'" in said and "tiny" in said


def test_maps_are_painted_north_up_and_east_left():
    from skycairn.match.sky import unit_vectors
    from skycairn.pipeline.segmaps import _offsets

    ra, dec = np.array([10.0, 10.001, 10.0]), np.array([60.0, 60.0, 60.001])
    east, north = _offsets(10.0, 60.0, unit_vectors(ra, dec).T)
    np.testing.assert_allclose(east, [0, 1.8, 0], atol=1e-4)
    np.testing.assert_allclose(north, [0, 0, 3.6], atol=1e-4)
