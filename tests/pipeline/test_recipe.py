"""Recipes: strict keys, one-line errors."""

from pathlib import Path
from typing import Any

import pytest

from skycairn.pipeline.recipe import BY_NAME, canonical, load, parse

GOOD: dict[str, Any] = {
    "region": {"kind": "cone", "ra": 10.0, "dec": -5.0, "radius_deg": 0.5},
    "surveys": {"gaia": {"release": "dr3", "profile": "all"}, "legacysurvey": {"release": "dr10", "profile": "aion"}},
}


@pytest.mark.parametrize("name", BY_NAME)
def test_named_recipes_parse_and_come_back(name: str) -> None:
    recipe = load(name)
    assert canonical(parse(recipe.settings(), "again").settings()) == canonical(recipe.settings())


def test_the_recipe_of_the_tiny_sky_needs_no_training_sky() -> None:
    tiny, mock = load("tiny"), load("mock")
    assert tiny.surveys == mock.surveys and tiny.region == mock.region
    assert (tiny.split.least, tiny.codecs.fit_on) == (0.0, "any")


def test_surveys_lie_in_the_order_of_anchors_whatever_the_recipe_says() -> None:
    assert [c.name for c in parse(GOOD, "x").surveys] == ["legacysurvey", "gaia"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surveys": {"gaja": {}}}, "unknown survey 'gaja'; known are"),
        ({"surveys": {"gaia": {"release": "dr9"}}}, "there is no release 'dr9'"),
        ({"surveys": {"gaia": {"profile": "best"}}}, "unknown profile 'best'; gaia has"),
        ({"surveys": {"gaia": {"profil": "all"}}}, "profil"),
        ({"colour": 1}, "unknown key 'colour'; the keys are"),
        ({"match": {"radius": 1.0}}, "match: unknown key 'radius'; the keys are radius_arcsec"),
        ({"match": {"radius_arcsec": 0.0}}, "match.radius_arcsec is 0.0"),
        ({"match": {"pairs": {"gaia-hsc": 1.0}}}, "'gaia-hsc' names no pair here"),
        ({"match": {"ids": 1}}, "match.ids is 1; wanted true or false"),
        ({"split": {"fractions": [0.5, 0.5]}}, "wanted three that add up to 1"),
        ({"split": {"fractions": [0.5, 0.5, 0.5]}}, "wanted three that add up to 1"),
        ({"payload": {"keep": "some"}}, "payload.keep is 'some'"),
        ({"region": {"kind": "cone", "ra": 10.0, "dec": -5.0, "radius_deg": 0.0}}, "radius_deg is 0.0"),
        ({"region": {"kind": "cells", "order": 5, "cells": []}}, "empty"),
        ({"region": {}}, "says nothing of 'region'"),
    ],
)
def test_a_fault_is_named_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse({**GOOD, **change}, "my.toml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_recipe(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("region = {")
    with pytest.raises(ValueError, match="not TOML"):
        load(str(bad))
    with pytest.raises(ValueError, match="neither a file nor one of tiny, mock, mock-learned, aion"):
        load("nothing")


def test_the_root_is_no_part_of_what_decides_a_pile(tmp_path: Path) -> None:
    recipe = parse(GOOD, "x")
    assert recipe.at(tmp_path).choice("gaia").root == str(tmp_path / "gaia")
    assert recipe.at(tmp_path).region == recipe.region
