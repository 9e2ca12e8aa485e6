"""Codecs of columns fitted to sketches of all cells; and sequences of tokens on their way to a shard."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from skycairn.pile.shards import TokenColumn
from skycairn.pile.store import Pile
from skycairn.pipeline.assemble import _tokens
from skycairn.pipeline.encode import fit, sketch, token_table
from skycairn.pipeline.recipe import Recipe
from skycairn.pipeline.run import build
from skycairn.pipeline.task import Context, Task
from skycairn.tokenizers.cutout_catalog import CutoutCatalogCodec
from skycairn.tokenizers.lock import lock_ids


@pytest.fixture(scope="module")
def sketched(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    recipe = replace(
        tiny_recipe,
        surveys=tuple(c for c in tiny_recipe.surveys if c.name in ("gaia", "legacysurvey")),
        codecs=replace(tiny_recipe.codecs, scalars="sketch"),
        payload=replace(tiny_recipe.payload, keep="none"),
    )
    path = tmp_path_factory.mktemp("sketched") / "pile"
    build(recipe, path)
    return path, recipe


def test_codecs_of_sketches_are_those_of_a_sample_that_holds_all(
    sketched: tuple[Path, Recipe], tiny_pile: Path
) -> None:
    path, recipe = sketched
    own, sampled = lock_ids(path / "codecs.lock"), lock_ids(tiny_pile / "codecs.lock")
    columns = [m.name for c in recipe.surveys for m in c.survey().modalities if not m.payload]
    assert len(columns) == 20 and own.keys() >= set(columns)
    assert {m: own[m] for m in columns} == {m: sampled[m] for m in columns}
    receipts = list(Pile.open(path).receipts())
    done = Counter(r.step for r in receipts)
    assert done["sketch"] > 2
    for r in receipts:
        if r.step == "fit" and r.settings["modality"] in columns:
            assert r.settings["scalars"] == "sketch" and r.counts["exact"] == 1


def test_the_order_of_the_cells_is_no_matter(sketched: tuple[Path, Recipe]) -> None:
    path, recipe = sketched
    ctx = Context(Pile.open(path), recipe)
    receipts = list(ctx.pile.receipts())
    parts = {r.label.split()[-1]: r.outputs["sketch"] for r in receipts if r.label.startswith("sketch gaia")}
    fitted = next(r for r in receipts if r.label == "fit gaia.parallax")
    for turn in (1, -1):
        cells = {cell: part.sha256 for cell, part in list(parts.items())[::turn]}
        task = Task("fit", "fit", fitted.settings, {}, {"survey": "gaia", "sketches": cells})
        assert fit(ctx, task).notes["content_id"] == fitted.notes["content_id"]


def test_a_cell_without_sources_of_the_training_sky_is_no_fault(sketched: tuple[Path, Recipe]) -> None:
    path, recipe = sketched
    ctx = Context(Pile.open(path), recipe)
    made = next(r for r in ctx.pile.receipts() if r.label.startswith("sketch gaia"))
    assert made.counts["training"] == made.counts["selected"] > 0
    empty = pa.table({"key": pa.array([], pa.int64()), "healpix29": pa.array([], pa.int64())})
    wide = pa.table({"key": pa.array([], pa.int64()), "parallax": pa.array([], pa.float64())})
    args = {
        "survey": "gaia",
        "slim": ctx.pile.put_table(empty).sha256,
        "selection": ctx.pile.put_table(pa.table({"failed_cut": pa.array([], pa.string())})).sha256,
        "wide": ctx.pile.put_table(wide).sha256,
    }
    settings = {**made.settings, "modalities": ["gaia.parallax"]}
    none = sketch(ctx, Task("sketch", "sketch", settings, {}, args)).outputs["sketch"]
    task = Task("fit", "fit", {"modality": "gaia.parallax"}, {}, {"survey": "gaia", "sketches": {"1": none.sha256}})
    outcome = fit(ctx, task)
    assert outcome.notes == {"unfit": "no source of the sample has a gaia.parallax"} and not outcome.outputs


def test_a_sequence_goes_to_the_shard_as_long_as_it_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    places, shapes = rng.integers(0, 96, (2, 6, 4)), rng.normal(size=(3, 6, 4))
    present = np.arange(4) < np.array([[4], [0], [1], [2], [3], [4]])
    arrays = dict(zip(("x", "y", "e1", "e2", "r"), [*places, *shapes], strict=True)) | {"present": present}
    codec = CutoutCatalogCodec.fit(arrays, most=3, n_knots=8, reservoir=9)
    seen = codec.sees(arrays)
    tokens = codec.encode({k: v[seen] for k, v in arrays.items()})
    sources = pa.table({"owner": ["gaia"] * 6, "key": np.arange(6)})
    table = token_table(sources, np.array([None] * 6, object), seen, tokens, codec.lengths(tokens))
    assert [None if t is None else len(t) for t in table.column("tokens").to_pylist()] == [15, None, 5, 10, 15, 15]
    pile = Pile.create(tmp_path / "pile")
    column = TokenColumn(
        "gaia.near", "0" * 64, codec.vocabulary, codec.n_tokens, "sequence", codec.layout.shape, False, "catalog"
    )
    args = {"tokens": {"gaia.near": {"survey": "gaia", "cells": {"7": pile.put_table(table).sha256}}}}
    objects = pa.table({"key.gaia": [5, 2, None, 1], "cell.gaia": [7, 7, None, 7]})
    found = _tokens(SimpleNamespace(pile=pile), SimpleNamespace(args=args), objects, column)  # type: ignore[arg-type]
    assert found.length.tolist() == [15, 5, 0, 0] and found.present.tolist() == [True, True, False, False]
    expected = codec.encode({k: v[[5, 2]] for k, v in arrays.items()})
    np.testing.assert_array_equal(found.values[0], expected[0])
    np.testing.assert_array_equal(found.values[1, :5], expected[1, :5])
    assert not found.values[1, 5:].any()


def test_another_word_is_refused(tiny_recipe: Recipe) -> None:
    from skycairn.pipeline.recipe import parse

    settings = json.loads(json.dumps(tiny_recipe.settings()))
    settings["codecs"]["scalars"] = "all"
    with pytest.raises(ValueError, match=r"codecs\.scalars is 'all'; choose sample or sketch"):
        parse(settings, "test")
