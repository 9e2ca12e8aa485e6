"""Examples from a pile: of the right sky, the right pixels, and the same ones again."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from skycairn.catalogs.survey import Modality
from skycairn.pile.store import Draft, Entry, Pile
from skycairn.pipeline import examples as ex
from skycairn.pipeline.encode import source_hash
from skycairn.pipeline.examples import PayloadExamples, payload_modalities

SIDE = 8
IMAGE = Modality(
    "legacysurvey.image",
    "tok_image",
    "image",
    unit="nanomaggy",
    shape=(2, SIDE, SIDE),
    bands=("g", "r"),
    pixel_arcsec=1,
)
SPECTRUM = Modality("desi.spectrum", "tok_spectrum_desi", "spectrum", shape=(5,))
SPLITS = ["train", "validation", "test", "guard"]
N = 40


def fixed(values, n):
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), n)


def images(keys, owner="legacysurvey"):
    """Every pixel of the image of a source holds its key, but for the tenth part of it in a corner."""
    n, size = len(keys), int(np.prod(IMAGE.shape))
    flux = np.repeat(np.asarray(keys, np.float32), size).reshape(n, *IMAGE.shape)
    flux[:, :, 0, 0] /= 10
    mask = np.zeros(flux.shape, bool)
    mask[np.asarray(keys) == 5] = True
    status = [None if k != 9 else "file_absent" for k in keys]
    return pa.table(
        {
            "owner": [owner] * n,
            "key": pa.array(keys, pa.int64()),
            "status": pa.array(status, pa.string()),
            "flux": fixed(flux, size),
            "ivar": fixed(np.ones_like(flux), size),
            "mask": fixed(mask, size),
        }
    )


def pile_with(root: Path, keep="all", payload=True) -> Pile:
    """Sources 0 to 39, the splits in turns; 5 is all bad, 9 has no file, 36 on are in no object; a target's cut-out."""
    pile = Pile.create(root)
    keys = np.arange(N)
    split = [SPLITS[k % 4] for k in keys[:36]]
    objects = pa.table({"split": split, "key.legacysurvey": pa.array(keys[:36], pa.int64())})
    lonely = pa.table({"split": ["train"], "key.legacysurvey": pa.array([None], pa.int64())})
    tables = {"objects": [Entry({"cell": 1}, pile.put_table(pa.concat_tables([objects, lonely])))]}
    halves = [pa.concat_tables([images(keys[:20]), images([8], "targets")]), images(keys[20:])]
    aside = {"payload.legacysurvey.image": [Entry({"cell": i}, pile.put_table(t, 4)) for i, t in enumerate(halves)]}
    recipe = {"payload": {"keep": keep}, "surveys": {"legacysurvey": {"release": "dr10", "profile": "aion"}}}
    draft = Draft(recipe=recipe, tables=tables, aside=aside if payload else {}, held_back=[], stats={})
    pile.commit(draft)
    return pile


@pytest.fixture
def pile(tmp_path):
    return pile_with(tmp_path / "pile")


def keys_of(measurement):
    return sorted(np.unique(measurement["flux"][:, 0, -1, -1]).astype(int).tolist())


def test_each_split_is_what_it_is_for(pile, tmp_path):
    found = PayloadExamples(pile, pile.snapshot(), {IMAGE.name: IMAGE}, tmp_path / "cache")
    learned = [k for k in range(36) if k % 4 == 0]
    held = [k for k in range(36) if k % 4 == 1 and k not in (5, 9)]
    assert found.count(IMAGE.name) == len(learned) and found.count_held(IMAGE.name) == len(held)
    drawn = found.draw(IMAGE.name, 500, np.random.default_rng(0))
    assert keys_of(drawn) == learned
    assert drawn["flux"].shape == (500, *IMAGE.shape) and drawn["flux"].dtype == drawn["ivar"].dtype == np.float32
    assert drawn["mask"].dtype == bool and not drawn["mask"].any()
    pieces = list(found.held(IMAGE.name))
    assert sorted(k for p in pieces for k in keys_of(p)) == held
    drawn["flux"][:] = 0  # a caller's own
    assert keys_of(found.draw(IMAGE.name, 500, np.random.default_rng(0))) == learned


def test_the_same_again_and_from_the_cache(pile, tmp_path, monkeypatch):
    first = PayloadExamples(pile, pile.snapshot(), {IMAGE.name: IMAGE}, tmp_path / "cache")
    monkeypatch.setattr(ex, "_write", lambda *_: pytest.fail("decoded again"))
    again = PayloadExamples(pile, pile.snapshot(), {IMAGE.name: IMAGE}, tmp_path / "cache")
    assert first.identity == again.identity
    one, two = (e.draw(IMAGE.name, 7, np.random.default_rng([3, 4])) for e in (first, again))
    assert all(np.array_equal(one[k], two[k]) for k in one) and one.keys() == {"flux", "ivar", "mask"}
    for a, b in zip(first.held(IMAGE.name), again.held(IMAGE.name), strict=True):
        assert np.array_equal(a["flux"], b["flux"])


@pytest.mark.parametrize("crop", [4, 5])
def test_images_are_cropped_as_codecs_crop_them(crop, pile, tmp_path):
    found = PayloadExamples(pile, pile.snapshot(), {IMAGE.name: IMAGE}, tmp_path / "cache", crop=crop)
    whole = PayloadExamples(pile, pile.snapshot(), {IMAGE.name: IMAGE}, tmp_path / "cache")
    assert found.identity != whole.identity
    a, b = (next(e.held(IMAGE.name))["flux"] for e in (found, whole))
    first = SIDE // 2 - crop // 2
    assert np.array_equal(a, b[:, :, first : first + crop, first : first + crop])


def test_no_more_than_are_asked_for(pile, tmp_path):
    few = PayloadExamples(pile, pile.snapshot(), {IMAGE.name: IMAGE}, tmp_path / "cache", most=3, most_held=2)
    assert few.count(IMAGE.name) == 3 and few.count_held(IMAGE.name) == 2
    more = PayloadExamples(pile, pile.snapshot(), {IMAGE.name: IMAGE}, tmp_path / "cache", most=6)
    three, six = (keys_of(e.draw(IMAGE.name, 300, np.random.default_rng(0))) for e in (few, more))
    assert set(three) < set(six)
    assert PayloadExamples(pile, pile.snapshot(), {IMAGE.name: IMAGE}, tmp_path / "cache", most=None).count(
        IMAGE.name
    ) == sum(k % 4 == 0 for k in range(36))


def test_the_lowest_are_the_same_however_the_keys_are_parted():
    keys = np.random.default_rng(0).integers(0, 10**6, 300)
    wanted = np.unique(keys)[np.argsort(source_hash("", np.unique(keys)))]
    for most in (None, 7, 0, 1000):
        for cuts in ([], [0, 5, 200], list(range(0, 300, 20))):
            assert np.array_equal(ex.lowest(iter(np.split(keys, cuts)), most), wanted[:most])


def test_a_pile_that_kept_only_training_sky_is_refused(pile, tmp_path, monkeypatch):
    monkeypatch.setattr(ex, "keys_of_objects", lambda *a: iter([np.arange(4)] if a[-1] == "train" else []))
    with pytest.raises(ValueError, match=r"no legacysurvey\.image on the validation sky .* payload\.keep = \"all\""):
        PayloadExamples(pile, pile.snapshot(), {IMAGE.name: IMAGE}, tmp_path / "cache")
    assert PayloadExamples(pile, pile.snapshot(), {IMAGE.name: IMAGE}, tmp_path / "cache", most_held=0)


def test_what_is_lacking_is_told(tmp_path):
    none = pile_with(tmp_path / "none", keep="none", payload=False)
    with pytest.raises(ValueError, match=r"keeps no legacysurvey\.image to learn from \(payload\.keep is 'none'\)"):
        PayloadExamples(none, none.snapshot(), {IMAGE.name: IMAGE}, tmp_path / "cache")
    pile = pile_with(tmp_path / "pile")
    with pytest.raises(ValueError, match=r"keeps no desi\.spectrum"):
        PayloadExamples(pile, pile.snapshot(), {SPECTRUM.name: SPECTRUM}, tmp_path / "cache")
    with pytest.raises(ValueError, match=r"no legacysurvey\.image on the training sky"):
        PayloadExamples(pile, pile.snapshot(), {IMAGE.name: IMAGE}, tmp_path / "cache", most=0)


def test_an_interrupted_cache_is_made_anew(pile, tmp_path, monkeypatch):
    def dies(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ex, "payload_arrays", dies)
        with pytest.raises(KeyboardInterrupt):
            PayloadExamples(pile, pile.snapshot(), {IMAGE.name: IMAGE}, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
    monkeypatch.setattr(ex, "alive", lambda pid: pid == 7)
    for name in (".legacysurvey.image-0.6", ".legacysurvey.image-0.7", ".own", ".own.d"):  # killed; at it; others'
        (tmp_path / "cache" / name).mkdir()
    found = PayloadExamples(pile, pile.snapshot(), {IMAGE.name: IMAGE}, tmp_path / "cache")
    assert found.count(IMAGE.name) == 9
    hidden = {p.name for p in (tmp_path / "cache").glob(".*")}
    assert hidden == {".legacysurvey.image-0.7", ".own", ".own.d"}


def test_the_modalities_of_a_snapshot(pile):
    found = payload_modalities(pile.snapshot())
    assert found.keys() == {"legacysurvey.image"} and found["legacysurvey.image"].bands == ("g", "r", "i", "z")
