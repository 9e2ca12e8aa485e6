"""Part of the sky, and the user's own targets, give what the whole sky gives there."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from skycairn.pile.store import Pile
from skycairn.pipeline import recipe as recipes
from skycairn.pipeline.recipe import Codecs, Recipe
from skycairn.pipeline.run import Built, build


def table(pile: Path, name: str) -> pa.Table:
    opened = Pile.open(pile)
    return pa.concat_tables(
        [opened.read_table(e.part) for e in opened.head().entries(name)], promote_options="permissive"
    ).combine_chunks()


def plain(objects: pa.Table) -> dict[str, dict[str, Any]]:
    return {row["object_id"]: row for row in objects.to_pylist()}


def separation_arcsec(ra: Any, dec: Any, ra0: float, dec0: float) -> np.ndarray:
    x = (np.asarray(ra) - ra0 + 180) % 360 - 180
    return 3600 * np.hypot(x * np.cos(np.radians(dec0)), np.asarray(dec) - dec0)


def within(tiny_recipe: Recipe, tiny_pile: Path, region: dict[str, Any]) -> Recipe:
    """The recipe, on a part of its sky, with the codecs of its whole."""
    made = recipes.parse({"region": region, "surveys": {"gaia": {}}}, "test").region
    return replace(tiny_recipe, region=made, codecs=Codecs(lock=str(tiny_pile)))


@pytest.mark.parametrize("kind", ["cone", "box", "cells"])
def test_a_part_of_the_sky_is_the_same_as_in_the_whole(
    tiny_recipe: Recipe, tiny_pile: Path, tmp_path: Path, kind: str
) -> None:
    whole = table(tiny_pile, "objects")
    # an object of several members, by whose anchor the border passes
    both = pa.compute.and_(pa.compute.is_valid(whole["key.legacysurvey"]), pa.compute.is_valid(whole["key.gaia"]))
    pairs = whole.filter(both)
    ra, dec = pairs["ra"][0].as_py(), pairs["dec"][0].as_py()
    hair = 1e-3 / 3600
    region = {
        "cone": {"kind": "cone", "ra": (ra + 20 / 3600) % 360, "dec": dec, "radius_deg": 20 / 3600 + hair},
        "box": {"kind": "box", "ra_min": 359.9, "ra_max": 0.1, "dec_min": -1.3, "dec_max": dec + hair},
        "cells": {"kind": "cells", "order": 6, "cells": [whole["healpix29"][0].as_py() >> 46]},
    }[kind]
    recipe = within(tiny_recipe, tiny_pile, region)
    built = build(recipe, tmp_path / "pile")
    inside = recipe.region.contains(np.array(whole["ra"]), np.array(whole["dec"]))
    assert 0 < inside.sum() < whole.num_rows
    part = table(tmp_path / "pile", "objects")
    assert plain(part) == plain(whole.filter(pa.array(inside)))
    if kind != "cells":
        assert pairs["object_id"][0].as_py() in part["object_id"].to_pylist()
    for counts in built.report.surveys.values():
        assert counts["valid"] == counts.get("members", 0) + counts.get("anchored outside region", 0)
    # tokens too
    tokens = {r["object_id"]: r for r in table(tiny_pile, "shards").to_pylist()}
    for row in table(tmp_path / "pile", "shards").to_pylist():
        assert row == tokens[row["object_id"]]


# --- targets ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(tiny_recipe: Recipe, tiny_pile: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Path, Path]:
    """A build round the user's targets; its pile; the table, by name of what each target is there for."""
    folder = tmp_path_factory.mktemp("targets")
    legacy = table(tiny_pile, "objects").filter(pa.compute.is_valid(table(tiny_pile, "objects")["key.legacysurvey"]))
    good = pa.compute.equal(legacy["status.legacysurvey.image"].cast(pa.string()), "present")
    selected = legacy.filter(good).slice(0, 1)
    # stars of the sky's south-eastern brick, which lacks nothing
    names = table(tiny_pile, "legacysurvey.wide").select(["key", "brickname", "type"])
    stars = names.filter(
        pa.compute.and_(pa.compute.equal(names["brickname"], "0000m012"), pa.compute.equal(names["type"], "PSF"))
    )
    unselected = legacy.filter(pa.compute.is_in(legacy["key.legacysurvey"], stars["key"].combine_chunks()))
    star = unselected.filter(
        pa.compute.equal(unselected["status.legacysurvey"].cast(pa.string()), "not selected: extended")
    ).slice(0, 1)
    desi = table(tiny_pile, "objects")
    no_spectrum = pa.compute.starts_with(desi["status.desi"].cast(pa.string()), "not selected")
    failed = desi.filter(no_spectrum).slice(0, 1)
    every = table(tiny_pile, "members")
    grid = [(0.003 + i * 0.002, -1.215 + j * 0.002) for i in range(8) for j in range(6)]
    far = max(grid, key=lambda p: separation_arcsec(every["ra"], every["dec"], *p).min())
    assert separation_arcsec(every["ra"], every["dec"], *far).min() > 5
    rows = [("unobserved", 0.3, -1.2), ("empty", *far), ("nowhere", "", ""), ("off the sky", 0.0, -95.0)]
    for name, found in (("selected", selected), ("star", star), ("failed z", failed)):
        assert found.num_rows == 1, name
        rows.append((name, found["ra"][0].as_py(), found["dec"][0].as_py()))
    path = folder / "mine.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "RA", "Dec", "why", "weight"])
        writer.writerows([n, ra, dec, n.upper(), i] for i, (n, ra, dec) in enumerate(rows))
    settings = tiny_recipe.settings()
    settings["region"] = {"kind": "targets", "table": str(path), "radius_arcsec": 5.0}
    settings["codecs"]["lock"] = str(tiny_pile)
    built = build(recipes.parse(settings, "test"), folder / "pile")
    return built, folder / "pile", path


def by_target(pile: Path, name: str = "objects") -> dict[str, dict[str, Any]]:
    return {row["targets.id"]: row for row in table(pile, name).to_pylist() if row["targets.id"]}


def test_every_target_is_an_object_with_its_labels(asked: tuple[Built, Path, Path]) -> None:
    built, pile, _ = asked
    found = by_target(pile)
    assert set(found) == {"unobserved", "empty", "selected", "star", "failed z"}
    assert built.report.surveys["targets"]["rows"] == 7
    assert built.report.surveys["targets"]["dropped:position"] == 2
    for name, row in found.items():
        assert json.loads(row["targets.labels"])["why"] == name.upper()
    assert found["empty"]["object_id"].startswith("targets:")
    assert found["star"]["object_id"].startswith("legacysurvey:")


def test_targets_get_what_there_is_though_cuts_fail(asked: tuple[Built, Path, Path]) -> None:
    _, pile, _ = asked
    found, shards = by_target(pile), by_target(pile, "shards")
    image = "legacysurvey.image"
    said = {name: (row["status.legacysurvey"], row[f"status.{image}"]) for name, row in found.items()}
    assert said["selected"] == ("present", "present")
    assert said["star"] == ("not selected: extended", "present")
    assert said["empty"] == ("not detected", "present")
    assert said["unobserved"] == ("outside footprint", "outside footprint")
    assert found["star"]["status.legacysurvey.flux_r"] == "present"
    assert found["empty"]["status.legacysurvey.flux_r"] == "not detected"
    for name, row in shards.items():
        assert (row[image] is None) == (said[name][1] != "present"), name
    assert shards["star"]["legacysurvey.flux_r"] is not None
    assert found["failed z"]["status.desi"].startswith("not selected")
    assert found["failed z"]["status.desi.spectrum"] == "present"
    assert shards["failed z"]["desi.spectrum"] is not None


def test_a_selected_target_has_the_tokens_that_it_has_anyway(asked: tuple[Built, Path, Path], tiny_pile: Path) -> None:
    _, pile, _ = asked
    row = by_target(pile, "shards")["selected"]
    other = next(r for r in table(tiny_pile, "shards").to_pylist() if r["object_id"] == row["object_id"])
    names = [n for n in other if n.startswith(("legacysurvey.", "gaia.", "desi."))]
    assert {n: row[n] for n in names} == {n: other[n] for n in names}


def test_a_forced_cutout_is_centred_on_the_target(asked: tuple[Built, Path, Path], tiny_sky: Path) -> None:
    _, pile, path = asked
    with path.open() as file:
        at = {row["name"]: (float(row["RA"] or "nan"), float(row["Dec"] or "nan")) for row in csv.DictReader(file)}
    key = by_target(pile)["empty"]["key.targets"]
    payload = [r for r in table(pile, "payload.legacysurvey.image").to_pylist() if r["owner"] == "targets"]
    assert [r["key"] for r in payload] == [key]
    flux = np.array(payload[0]["flux"]).reshape(4, 160, 160)
    name = tiny_sky / "legacysurvey/south/coadd/000/0000m012/legacysurvey-0000m012-image-r.fits.fz"
    with fits.open(name) as hdus:
        image = next(h for h in hdus if h.data is not None)
        x, y = WCS(image.header).all_world2pix([at["empty"]], 0)[0]
        pixel = image.data[round(float(y)), round(float(x))]
    assert flux[1, 80, 80] == np.float32(pixel)
    assert abs(payload[0]["dx"]) <= 0.5


def test_targets_out_of_the_cuts_leave_all_others_as_they_were(
    asked: tuple[Built, Path, Path], tiny_pile: Path
) -> None:
    _, pile, _ = asked
    before = plain(table(tiny_pile, "objects"))
    for row in table(pile, "objects").to_pylist():
        if row["targets.id"] is None:
            assert {k: row[k] for k in before[row["object_id"]] if k.startswith("status")} == {
                k: v for k, v in before[row["object_id"]].items() if k.startswith("status")
            }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("id,ra\n1,2\n", "mine.csv has no column 'dec'"),
        ("id,ra,dec\n1,2,3\n1,4,5\n", "rows 0 and 1: id 1 is there twice"),
        ("id,ra,dec\n1,two,3\n", "row 0: ra is 'two', wanted a number"),
        ("id,ra,dec\n", "the table is empty"),
        ("id,ra,dec\n1,,\n", "none of its 1 rows has an id and a position"),
    ],
)
def test_a_table_of_targets_with_a_fault(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "mine.csv").write_text(text)
    settings = {"region": {"kind": "targets", "table": "mine.csv", "radius_arcsec": 9.0}, "surveys": {"gaia": {}}}
    with pytest.raises(ValueError, match=says):
        recipes.parse(settings, "test", tmp_path)


def test_no_such_table_of_targets(tmp_path: Path) -> None:
    settings = {"region": {"kind": "targets", "table": "none.csv", "radius_arcsec": 9.0}, "surveys": {"gaia": {}}}
    with pytest.raises(ValueError, match="no such table of targets"):
        recipes.parse(settings, "test", tmp_path)
