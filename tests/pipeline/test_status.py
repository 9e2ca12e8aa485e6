"""Every object has a status per survey and modality, it is the true one, and all sums close."""

import dataclasses
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skycairn.match.sky import coverage_from_text, within_coverage
from skycairn.pile.receipt import Receipt
from skycairn.pile.store import Pile
from skycairn.pipeline.plan import Plan, plan
from skycairn.pipeline.recipe import Recipe
from skycairn.pipeline.report import report
from skycairn.pipeline.run import build
from skycairn.pipeline.task import Context, Unclosed

WORDS = ("present", "outside footprint", "not detected", "not selected", "file absent", "not measured")


def table(pile: Path, name: str) -> pa.Table:
    opened = Pile.open(pile)
    return pa.concat_tables([opened.read_table(e.part) for e in opened.head().entries(name)]).combine_chunks()


@pytest.fixture(scope="module")
def objects(tiny_pile: Path) -> list[dict[str, Any]]:
    return list(table(tiny_pile, "objects").to_pylist())


def dirt(sky: Path, survey: str) -> dict[int, set[str]]:
    """What was done to each row that the survey lists, by key."""
    rows = pq.read_table(sky / "truth" / f"{survey}.parquet").to_pylist()
    return {r["key"]: set(re.split(",(?! )", r["dirt"] or "")) - {""} for r in rows if r["key"] is not None}


def test_every_object_has_a_status_of_everything(tiny_recipe: Recipe, objects: list[dict[str, Any]]) -> None:
    names = [c.name for c in tiny_recipe.surveys]
    names += [m.name for c in tiny_recipe.surveys for m in c.survey().modalities]
    assert len(names) > 20
    for row in objects:
        for name in names:
            status = row[f"status.{name}"]
            assert status is not None
            assert status.partition(":")[0] in WORDS
            survey = name.partition(".")[0]
            # only what the survey lists can be present, unselected or unmeasured
            listed = row[f"key.{survey}"] is not None
            assert listed == (status not in ("outside footprint", "not detected")), (row["object_id"], name, status)


def test_without_a_codec_what_is_there_is_not_called_unmeasured(
    tiny_recipe: Recipe, tiny_pile: Path, tmp_path: Path
) -> None:
    """By this salt all of the tiny sky is validation sky, and nothing is fitted; with codecs the same is `present`.

    What is sampled keeps some of that sky all the same: learned codecs are judged by it.
    """
    two = tuple(c for c in tiny_recipe.surveys if c.name in ("gaia", "desi"))
    split, codecs = replace(tiny_recipe.split, salt="mock-17"), replace(tiny_recipe.codecs, fit_on="train")
    payload = replace(tiny_recipe.payload, keep="sample", sample=21)
    built = build(replace(tiny_recipe, surveys=two, split=split, codecs=codecs, payload=payload), tmp_path)
    assert table(tmp_path, "payload.desi.spectrum").num_rows == 3
    assert set(built.snapshot.stats["codecs"].values()) == {None}
    seen: Counter[str | None] = Counter()
    for modality in (m.name for c in two for m in c.survey().modalities):
        fitted, unfitted = (
            {(r["owner"], r["key"]): r["status"] for r in table(pile, f"tokens.{modality}").to_pylist()}
            for pile in (tiny_pile, tmp_path)
        )
        assert {k: None if v == "no codec" else v for k, v in unfitted.items()} == fitted
        assert None not in unfitted.values()
        seen.update(unfitted.values())
    assert seen["no codec"] > 100 and seen["file absent"]
    said = {row["status.gaia.parallax"] for row in table(tmp_path, "objects").to_pylist()}
    assert "no codec" in said and "present" not in said


def test_tokens_are_there_exactly_where_the_status_says_present(tiny_pile: Path, tiny_recipe: Recipe) -> None:
    shards = table(tiny_pile, "shards").to_pylist()
    for choice in tiny_recipe.surveys:
        for m in choice.survey().modalities:
            if m.name in shards[0]:
                for row in shards:
                    assert (row[m.name] is not None) == (row[f"status.{m.name}"] == "present"), (m.name, row)
            else:
                assert m.name == "never fitted"


def test_statuses_of_the_legacy_survey_are_true(tiny_sky: Path, objects: list[dict[str, Any]]) -> None:
    true = dirt(tiny_sky, "legacysurvey")
    seen: Counter[str] = Counter()
    for row in objects:
        status, image = row["status.legacysurvey"], row["status.legacysurvey.image"]
        if row["key.legacysurvey"] is None:
            continue
        labels = true[row["key.legacysurvey"]]
        if status != "present":
            assert image == status
        elif "file_absent" in labels:
            assert image == "file absent"
            assert row["status.legacysurvey.flux_z"] == "present"
            seen["file absent"] += 1
        else:
            assert image == "present"
            seen["present"] += 1
        if "missing_i" in labels:
            assert status.startswith("not selected")
            seen["missing i"] += 1
    assert min(seen["file absent"], seen["present"], seen["missing i"]) > 0


def test_a_missing_band_is_not_measured_under_cuts_that_let_it_pass(
    tiny_sky: Path, tiny_recipe: Recipe, tiny_pile: Path, tmp_path: Path
) -> None:
    (legacy,) = (c for c in tiny_recipe.surveys if c.name == "legacysurvey")
    recipe = replace(tiny_recipe, surveys=(replace(legacy, profile="all"),))
    build(replace(recipe, codecs=replace(recipe.codecs, lock=str(tiny_pile))), tmp_path / "pile")
    true = dirt(tiny_sky, "legacysurvey")
    found: Counter[tuple[bool, str]] = Counter()
    for row in table(tmp_path / "pile", "objects").to_pylist():
        labels = true[row["key.legacysurvey"]]
        found["missing_i" in labels, row["status.legacysurvey.flux_i"]] += 1
        # three bands of four are an image still
        if "missing_i" in labels and "file_absent" not in labels:
            assert row["status.legacysurvey.image"] == "present"
    assert found[True, "not measured"] > 0
    assert found[True, "present"] == 0
    assert found[False, "present"] > 10


def test_statuses_of_desi_are_true(tiny_sky: Path, tiny_recipe: Recipe, tmp_path: Path, tiny_pile: Path) -> None:
    (desi,) = (c for c in tiny_recipe.surveys if c.name == "desi")
    recipe = replace(tiny_recipe, surveys=(replace(desi, profile="all"),))
    build(replace(recipe, codecs=replace(recipe.codecs, lock=str(tiny_pile))), tmp_path / "pile")
    true = dirt(tiny_sky, "desi")
    seen: Counter[str] = Counter()
    for row in table(tmp_path / "pile", "objects").to_pylist():
        labels = true[row["key.desi"]]
        spectrum, z = row["status.desi.spectrum"], row["status.desi.z"]
        assert (spectrum == "file absent") == ("file absent" in labels)
        assert (z == "not measured") == ("zwarn" in labels)
        seen.update(labels)
    assert seen["file absent"]
    assert seen["zwarn"]


def test_statuses_of_gaia_are_true(tiny_sky: Path, tiny_recipe: Recipe, tmp_path: Path, tiny_pile: Path) -> None:
    (gaia,) = (c for c in tiny_recipe.surveys if c.name == "gaia")
    recipe = replace(tiny_recipe, surveys=(replace(gaia, profile="all"),))
    build(replace(recipe, codecs=replace(recipe.codecs, lock=str(tiny_pile))), tmp_path / "pile")
    true = dirt(tiny_sky, "gaia")
    folder = tiny_sky / "gaia/Spectroscopy/xp_continuous_mean_spectrum"
    listed = [x.split()[-1] for x in (folder / "_MD5SUM.txt").read_text().splitlines()]
    gone = [tuple(map(int, re.findall(r"\d{6}", n))) for n in listed if not (folder / n).exists()]
    assert gone
    has_xp = {r["key"]: r["has_xp"] for r in pq.read_table(tiny_sky / "truth/gaia.parquet").to_pylist() if r["key"]}
    seen: Counter[str] = Counter()
    for row in table(tmp_path / "pile", "objects").to_pylist():
        key = row["key.gaia"]
        bp, rp = row["status.gaia.xp_bp"], row["status.gaia.xp_rp"]
        if has_xp[key] and any(a <= key >> 43 <= b for a, b in gone):
            assert (bp, rp) == ("file absent", "file absent")
        elif "xp without bp" in true[key]:
            assert (bp, rp) == ("not measured", "present")
        else:
            assert bp == rp == ("present" if has_xp[key] else "not measured")
        if "no bp, rp" in true[key]:
            assert row["status.gaia.flux_bp"] == "not measured"
            assert row["status.gaia.flux_g"] == "present"
        if "2-parameter" in true[key]:
            assert row["status.gaia.parallax"] == "not measured"
        assert row["status.gaia"] == "present"
        seen.update([*true[key], bp])
    for label in ("file absent", "xp without bp", "no bp, rp", "2-parameter", "present", "not measured"):
        assert seen[label], label


def test_what_a_survey_does_not_list_is_told_by_its_footprint(
    tiny_sky: Path, tiny_pile: Path, objects: list[dict[str, Any]]
) -> None:
    """Truth says who lies beside the bricks; Gaia saw all of the sky."""
    sources = pq.read_table(tiny_sky / "truth/sources.parquet")
    ra, dec = np.array(sources["ra"]), np.array(sources["dec"])
    why = {
        r["uid"]: r["why_not"] for r in pq.read_table(tiny_sky / "truth/legacysurvey.parquet").to_pylist() if r["uid"]
    }
    checked: Counter[str] = Counter()
    for row in objects:
        assert row["status.gaia"] != "outside footprint"
        if row["key.legacysurvey"] is not None:
            continue
        x = (ra - row["ra"] + 180) % 360 - 180
        near = np.hypot(x, dec - row["dec"]) * 3600 < 0.3
        if near.sum() == 1:
            reason = why[sources["uid"][int(np.argmax(near))].as_py()]
            if reason == "outside footprint":
                assert row["status.legacysurvey"] == "outside footprint"
            elif reason == "too faint":
                assert row["status.legacysurvey"] == "not detected"
            checked[reason] += 1
    assert checked["outside footprint"] > 5


def test_the_coverage_of_a_survey_is_a_moc_that_holds_its_sources(tiny_pile: Path, tiny_recipe: Recipe) -> None:
    rows = table(tiny_pile, "coverage").to_pylist()
    assert {r["survey"] for r in rows} == {c.name for c in tiny_recipe.surveys}
    opened = Pile.open(tiny_pile)
    for row in rows:
        moc = coverage_from_text(row["moc"])
        for e in opened.head().entries(f"{row['survey']}.slim"):
            slim = opened.read_table(e.part)
            assert within_coverage(moc, np.array(slim["ra"]), np.array(slim["dec"])).all()
    legacy = next(coverage_from_text(r["moc"]) for r in rows if r["survey"] == "legacysurvey")
    assert not within_coverage(legacy, np.array([0.5]), np.array([-1.2]))[0]


# --- sums -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tiny_pile: Path, tiny_recipe: Recipe) -> tuple[Context, Plan]:
    ctx = Context(Pile.open(tiny_pile), tiny_recipe)
    made = plan(ctx)
    assert made.done
    return ctx, made


def test_sums_close(whole: tuple[Context, Plan], objects: list[dict[str, Any]]) -> None:
    found = report(*whole)
    assert found.objects == len(objects) == sum(found.splits.values()) == sum(found.strata.values())
    for by_status in found.statuses.values():
        assert sum(by_status.values()) == len(objects)
    for counts in found.surveys.values():
        assert counts["rows"] == counts["valid"] + counts.get("repeats", 0) + sum(
            n for k, n in counts.items() if k.startswith("dropped:")
        )
        assert counts["valid"] == counts["selected"] + sum(
            n for k, n in counts.items() if k.startswith("not selected:")
        )
    present = Counter(s for row in objects for k, s in row.items() if k == "status.gaia.parallax")["present"]
    assert found.surveys["gaia"]["present:gaia.parallax"] == present


@pytest.mark.parametrize(
    ("step", "count", "says"),
    [
        ("read", "rows", "rows read"),
        ("read", "kept", "rows read"),
        ("read", "dropped:position", "rows read"),
        ("gather", "valid", "sources gathered"),
        ("gather", "repeats", "sources gathered"),
        ("gather", "selected", "selection"),
        ("match", "members:{survey}", "members of objects"),
        ("match", "objects", "splits"),
        ("objects", "status:{survey}:present", "status of {survey}"),
        ("objects", "split:train", "splits"),
        ("objects", "stratum:{survey}", "strata"),
        ("shard", "objects", "shards"),
        ("shard", "present:{survey}", "tokens of {survey}"),
    ],
)
@pytest.mark.parametrize("survey", ["legacysurvey", "desi", "gaia"])
def test_a_row_lost_on_the_way_is_an_error(
    whole: tuple[Context, Plan], step: str, count: str, says: str, survey: str
) -> None:
    ctx, made = whole
    count = count.format(survey=survey)
    own = step in ("match", "objects", "shard")
    changed: dict[str, Receipt] = dict(made.receipts)
    for label, r in made.receipts.items():
        if r.step == step and (own or label.split(" ")[1].startswith(survey)):
            name = next((k for k, n in r.counts.items() if n and (k == count or k.startswith(count + "."))), None)
            if name is not None:
                changed[label] = dataclasses.replace(r, counts={**r.counts, name: r.counts[name] - 1})
                break
    else:
        assert count in ("dropped:position", "repeats") or count.startswith("stratum"), count
        return
    with pytest.raises(Unclosed, match=says.format(survey=survey)):
        report(ctx, dataclasses.replace(made, receipts=changed))
