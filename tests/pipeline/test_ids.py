"""Joins by id through a whole build: from the files' own columns to what is told of them."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from typer.testing import CliRunner

from skycairn.cli.main import app
from skycairn.pile.store import Pile
from skycairn.pipeline.recipe import Recipe
from skycairn.pipeline.run import Built, build

DROPPED = {"sky", "stuck", "bad fiberstatus", "nan position", "repeat"}


def table(pile: Path, name: str) -> pa.Table:
    opened = Pile.open(pile)
    return pa.concat_tables([opened.read_table(e.part) for e in opened.snapshot().entries(name)])


def claims(slim: pa.Table, other: str) -> dict[int, int]:
    rows = zip(slim["key"].to_pylist(), slim[f"link.{other}"].to_pylist(), strict=True)
    return {key: names for key, names in rows if names is not None}


def test_the_ids_of_the_files_are_in_the_slim_tables(tiny_pile: Path) -> None:
    wide = table(tiny_pile, "legacysurvey.wide")
    rows = zip(wide["key"].to_pylist(), wide["ref_cat"].to_pylist(), wide["ref_id"].to_pylist(), strict=True)
    of = {key: (cat, ref) for key, cat, ref in rows}
    found = claims(table(tiny_pile, "legacysurvey.slim"), "gaia")
    assert found == {key: ref for key, (cat, ref) in of.items() if cat == "GE"}
    assert len(found) > 10
    wide = table(tiny_pile, "desi.wide")
    targets = dict(zip(wide["key"].to_pylist(), wide["targetid"].to_pylist(), strict=True))
    found = claims(table(tiny_pile, "desi.slim"), "legacysurvey")
    assert found == {key: t for key, t in targets.items() if t >> 42 == 9010} and len(found) > 10
    assert not any(
        c.startswith("link.") for s in ("hsc", "gaia", "sdss") for c in table(tiny_pile, f"{s}.slim").schema.names
    )


def test_what_became_of_each_id_adds_up(tiny_pile: Path) -> None:
    links = claims(table(tiny_pile, "legacysurvey.slim"), "gaia")
    pairs = table(tiny_pile, "pairs")
    by_id = pairs.filter(pairs["link"])
    accepted = sum(by_id["accepted"].to_pylist())
    why = Counter(table(tiny_pile, "disagreements")["why"].to_pylist())
    assert accepted + sum(why.values()) == len(links) and accepted > 10
    told = Pile.open(tiny_pile).snapshot().stats["report"]["links"]
    another = len(claims(table(tiny_pile, "desi.slim"), "legacysurvey"))
    assert told == {"accepted": accepted, **why, "another release": another}, "DR9's numbers say nothing of DR10"
    for r in by_id.to_pylist():
        assert links[r["key_a"]] == r["key_b"] and r["survey_b"] == "gaia"


def explained(object_id: str, pile: Path, *more: str) -> str:
    found = CliRunner().invoke(
        app, ["explain", object_id, "--pile", str(pile), *more], env={"COLUMNS": "200", "TERM": "dumb"}
    )
    assert found.exit_code == 0, found.output
    return str(found.output)


@pytest.fixture
def cut_from(tiny_sky: Path, tiny_recipe: Recipe, tmp_path: Path) -> tuple[Recipe, dict[int, int]]:
    """A sky whose DESI targets bear the numbers of the Legacy Survey that the pile has; by TARGETID the true source.

    The first two name each other's source.
    """
    sky = tmp_path / "sky"
    shutil.copytree(tiny_sky / "desi" / "zcatalog", sky / "desi" / "zcatalog")
    path = next(sky.glob("desi/zcatalog/*/*.fits"))
    shown = {}
    for name, dropped in (("legacysurvey", {"nan_ra", "dup_type", "duplicate"}), ("desi", DROPPED)):
        truth = pq.read_table(tiny_sky / "truth" / f"{name}.parquet").to_pylist()
        shown[name] = {r["uid"]: r for r in truth if r["observed"] and not set(r["dirt"].split(",")) & dropped}
    both = sorted(shown["legacysurvey"].keys() & shown["desi"].keys())
    source = {shown["desi"][u]["targetid"]: shown["legacysurvey"][u]["key"] for u in both}
    one, other, *right = sorted(source)
    named = {one: source[other], other: source[one], **{t: source[t] for t in right}}
    with fits.open(path) as hdus:
        rows = hdus["ZCATALOG"].data
        rows["TARGETID"] = [named.get(t, t) for t in rows["TARGETID"].tolist()]
        hdus.writeto(sky / "new.fits", checksum=False)
    (sky / "new.fits").replace(path)
    for lists in path.parent.glob("*.sha256sum"):
        lists.unlink()
    surveys = tuple(
        replace(c, root=str(sky / "desi")) if c.name == "desi" else c
        for c in tiny_recipe.surveys
        if c.name in ("legacysurvey", "desi", "gaia")
    )
    payload = replace(tiny_recipe.payload, keep="none")
    return replace(tiny_recipe, surveys=surveys, payload=payload), {named[t]: source[t] for t in source}


def test_a_target_is_joined_to_the_source_it_was_cut_from(
    cut_from: tuple[Recipe, dict[int, int]], tmp_path: Path
) -> None:
    recipe, true = cut_from
    pile = tmp_path / "pile"
    built: Built = build(recipe, pile)
    pairs = table(pile, "pairs")
    pairs = pairs.filter(np.asarray(pairs["survey_b"].cast(pa.string())) == "desi").to_pylist()
    by_id = [r for r in pairs if r["link"]]
    assert len(by_id) == len(true) - 2 > 1 and all(r["accepted"] and true[r["key_a"]] == r["key_a"] for r in by_id)
    wrong = {named for named, source in true.items() if named != source}
    told = [r for r in table(pile, "disagreements").to_pylist() if r["survey"] == "desi"]
    assert {r["other_key"] for r in told} == wrong and {r["why"] for r in told} <= {"far", "absent"}
    assert all((r["separation_uas"] is None) == (r["why"] == "absent") for r in told)
    assert built.report.links["accepted"] >= len(by_id)
    # position found them all the same
    members = table(pile, "members").to_pylist()
    object_of = {(r["survey"], r["key"]): r["object_id"] for r in members}
    for r in told:
        beside = {k for s, k in object_of if s == "legacysurvey" and object_of[s, k] == object_of["desi", r["key"]]}
        assert beside == {true[r["other_key"]]}

    first = told[0]
    assert "Ids without a match" in explained(object_of["desi", first["key"]], pile)
    assert first["why"] in explained(object_of["desi", first["key"]], pile)
    assert "yes, by id" in explained(object_of["legacysurvey", by_id[0]["key_a"]], pile)
    plain = json.loads(explained(object_of["desi", first["key"]], pile, "--json"))
    assert plain["disagreements"][0]["other_key"] == first["other_key"]

    before = {r.key for r in Pile.open(pile).receipts()}
    again = build(replace(recipe, match=replace(recipe.match, ids=False)), pile)
    assert not again.report.links and not table(pile, "disagreements").num_rows
    assert not any(table(pile, "pairs")["link"].to_pylist())
    new = {r.step for r in Pile.open(pile).receipts() if r.key not in before}
    assert "match" in new and not new & {"read", "gather", "fit"}, "ids are the matching's affair alone"
