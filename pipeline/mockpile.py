"""A pile straight from a sky that is known: objects by truth, their tokens by given codecs, and the truth beside them.

No survey file is written and none is read; readers, cuts, codecs, objects and shards are those of a build. A task is a
patch of sky, alone in its work cell and in its cell of the split: it leaves a receipt, so that an interrupted run goes
on where it was. Beside the tables of a build (docs/pile.md) there is

    truth    a row an object: object_id, split, stratum; sky, and uid within it; `true.*` of that thing, the brightest
             of a blend; and every number that has tokens as the survey measured it: <modality>, and its error as
             <modality>.error or <modality>.ivar
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from skycairn.catalogs.survey import WORK_ORDER
from skycairn.match.sky import centres, split_of_cell
from skycairn.pile.lock import builder_lock
from skycairn.pile.receipt import Receipt, task_key
from skycairn.pile.store import Draft, Entry, Part, Pile, Snapshot
from skycairn.pipeline import assemble, recipe
from skycairn.pipeline.mockpatch import Patch, View, tables_of
from skycairn.pipeline.recipe import Recipe
from skycairn.pipeline.run import adopt_lock
from skycairn.pipeline.task import Context, Task, close
from skycairn.pipeline.versions import VERSIONS
from skycairn.tokenizers.codec import Codec
from skycairn.tokenizers.lock import lock_ids, read_lock

VERSION = 2
"""Raised whenever a patch would come out otherwise."""
SPLIT_ORDER = 5
GROUP = 10
"""Patches among which splits are dealt out in their exact shares."""
FARTHEST_DEC = 58.0
SETTINGS: dict[str, Any] = {
    **recipe.MOCK,
    "name": "mock-pile",
    "split": {"salt": "mock-pile", "fractions": [0.8, 0.1, 0.1]},
    "payload": {"keep": "none"},
}
"""The recipe `mock` but for its split."""

STEPS = ("read", "gather", "extract", "encode", "encode payload", "objects", "shard")
"""Steps of a build whose work a patch or the pile does too."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """Skies to look at: copies of one, as many as are wanted, each of the same number of patches."""

    look: Callable[[int, tuple[tuple[float, float], ...], int], View]
    "number of the sky, centres of its patches (RA, Dec), number of the patch; to be sent to other processes"
    patches: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    "what the skies hang on, as JSON values"


def build(
    root: Path,
    codecs_from: Path,
    source: Source,
    n_objects: int,
    seed: int = 0,
    workers: int = 1,
    images: float = 1.0,
    progress: Progress | None = None,
) -> Snapshot:
    """Write the pile, or go on with it: whole patches, until they hold `n_objects` or more.

    The same content for the same source, objects, seed and codecs, whatever the number of workers. `images`: the share
    of the patches whose images are made. ValueError where the folder holds another pile.
    """
    if n_objects < 1 or not 0 <= images <= 1 or workers < 1:
        raise ValueError(
            f"{n_objects} objects, images of {images} of the patches, {workers} workers; wanted 1 or more, 0 to 1, and "
            "1 or more"
        )
    say = progress or (lambda _: None)
    settings = recipe.parse({**SETTINGS, "codecs": {"lock": str(codecs_from.resolve())}}, "mock-pile")
    pile = Pile.create(root)
    with builder_lock(pile.root, "mock-pile"):
        asked = {**source.settings, "objects": n_objects, "seed": seed, "images": images, **_versions()}
        head = pile.head()
        if head is not None and head.stats.get("mock") != asked:
            raise ValueError(
                f"{root} holds a pile of {head.stats.get('mock', 'real files')}; wanted {asked}: name another"
            )
        adopt_lock(pile, settings)
        if head is not None and head.stats["codecs"] == lock_ids(pile.root / "codecs.lock"):
            say("the pile is there and whole")
            return head
        return _build(pile, settings, source, asked, workers, say)


def _build(
    pile: Pile, settings: Recipe, source: Source, asked: dict[str, Any], workers: int, say: Progress
) -> Snapshot:
    codecs = read_lock(pile.root / "codecs.lock")
    files = {name: _stored(pile, codec) for name, codec in codecs.items()}
    done: list[tuple[Patch, Receipt]] = []
    n = 0
    for patch, receipt in _receipts(pile, settings, source, asked, workers):
        done.append((patch, receipt))
        n += receipt.counts["objects"]
        say(f"patch {patch.number + 1}: {receipt.counts['objects']} objects, {n:,} of {asked['objects']:,}")
        if n >= asked["objects"]:
            break
    else:
        raise ValueError(
            f"the sky is full: {len(done):,} patches hold {n:,} objects; wanted {asked['objects']:,}: ask for fewer, "
            "and name another pile"
        )
    say("writing the shards")
    shards, counts = _shards(pile, settings, done, files)
    close({"patches": n, **counts}, "patches", "objects", where="shards")
    return pile.commit(_draft(settings, done, shards, files, codecs, asked, counts), parent=None)


def patches(source: Source, seed: int, images: float) -> Iterator[Patch]:
    """All patches in their order, each in a work cell that has its cell of the split for itself, until the sky is full.

    Of every `GROUP` patches each split gets its share, so that a small pile has all of them too.
    """
    split = recipe.parse(SETTINGS, "mock-pile").split
    rng = np.random.default_rng(np.random.SeedSequence([seed, 5]))
    coarse = rng.permutation(12 * 4**SPLIT_ORDER)
    child = 4 * coarse + rng.integers(0, 4, len(coarse))
    ra, dec = centres(WORK_ORDER, child)
    free: dict[str, list[int]] = {name: [] for name in split.by_name()}
    of = split_of_cell(coarse, split.salt, split.by_name(), SPLIT_ORDER)
    for i in np.flatnonzero(np.abs(dec) < FARTHEST_DEC)[::-1].tolist():
        free[str(of[i])].append(i)
    deal = [name for name, share in split.by_name().items() for _ in range(round(share * GROUP))]
    shown = {name: _shares(images, [seed, 6, place]) for place, name in enumerate(free)}
    wanted: list[str] = []
    for sky in range(1, len(coarse)):
        while len(wanted) < sky * source.patches:
            wanted += [deal[i] for i in rng.permutation(GROUP)]
        names = wanted[(sky - 1) * source.patches : sky * source.patches]
        if any(len(free[name]) < names.count(name) for name in names):
            return
        at = [free[name].pop() for name in names]
        places = tuple((float(ra[i]), float(dec[i])) for i in at)
        for k, i in enumerate(at):
            number = (sky - 1) * source.patches + k
            yield Patch(number, sky, k, places, int(child[i]), next(shown[names[k]]))


def _shares(share: float, seed: Sequence[int]) -> Iterator[bool]:
    """True for this share of all, drawn anew among each `GROUP` so that it keeps no step with anything."""
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    so_far = 0
    while True:
        # rounded, since 0.29 x 100 is not quite 29
        before, after = (int(round(share * n, 9)) for n in (so_far, so_far + GROUP))
        so_far += GROUP
        yield from (rng.permutation(GROUP) < after - before).tolist()


def _receipts(
    pile: Pile, settings: Recipe, source: Source, asked: Mapping[str, Any], workers: int
) -> Iterator[tuple[Patch, Receipt]]:
    """The patches in their order, each done, or found done."""
    ids = lock_ids(pile.root / "codecs.lock")
    about = {**source.settings, "seed": asked["seed"], "recipe": settings.rootless(), **_versions()}
    do = partial(_do, pile.root, settings.settings(), source)

    def key(patch: Patch) -> str:
        return task_key("mock patch", VERSION, {**about, "patch": patch._asdict()}, ids)

    every = iter(patches(source, asked["seed"], asked["images"]))
    if workers == 1:
        for patch in every:
            yield patch, pile.receipt(key(patch)) or do(patch, key(patch))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting: list[tuple[Patch, Any]] = []
        try:
            for patch in every:
                found = pile.receipt(key(patch))
                waiting.append((patch, found or pool.submit(do, patch, key(patch))))
                # one more than there are workers, so that none waits for the first to be done
                while len(waiting) > workers:
                    first, made = waiting.pop(0)
                    yield first, made if isinstance(made, Receipt) else made.result()
            for first, made in waiting:
                yield first, made if isinstance(made, Receipt) else made.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _versions() -> dict[str, Any]:
    return {"version": VERSION, "steps": {name: VERSIONS[name] for name in STEPS}}


def _do(root: Path, settings: dict[str, Any], source: Source, patch: Patch, key: str) -> Receipt:
    pile, asked = Pile(root), recipe.parse(settings, "mock-pile")
    codecs = read_lock(root / "codecs.lock")
    view = source.look(patch.sky, patch.centres, patch.patch)
    tables, counts = tables_of(pile, asked, view, codecs, patch)
    parts = {name: made if isinstance(made, Part) else pile.put_table(made) for name, made in tables.items()}
    receipt = Receipt(key, "mock patch", f"cell {patch.cell}", patch._asdict(), {}, parts, counts)
    pile.put_receipt(receipt)
    return receipt


# ---------------------------------------------------------------------------------------------------- all of it


def _stored(pile: Pile, codec: Codec) -> dict[str, Part]:
    with TemporaryDirectory() as folder:
        codec.save(Path(folder))
        return pile.put_folder(Path(folder))


def _shards(
    pile: Pile, settings: Recipe, done: Sequence[tuple[Patch, Receipt]], files: Mapping[str, Mapping[str, Part]]
) -> tuple[list[Entry], Mapping[str, int]]:
    """Shards of all patches, one a split and stratum."""
    ctx = Context(pile, settings)
    tokens = {
        m.name: {"survey": c.name, "cells": {str(p.cell): r.outputs[f"tokens.{m.name}"] for p, r in done}}
        for c in settings.surveys
        for m in ctx.survey(c.name).modalities
    }
    args = {"objects": [r.outputs["objects"] for _, r in done], "tokens": tokens, "codecs": files}
    how = {"row_group_rows": settings.shards.row_group_rows}
    made = assemble.shard(ctx, Task("shard", "all patches", how, {}, args))
    labels = {name: dict(zip(("split", "stratum"), name.split("/"), strict=True)) for name in made.outputs}
    return [Entry({"cell": 0, **labels[name]}, part) for name, part in sorted(made.outputs.items())], made.counts


def _draft(
    settings: Recipe,
    done: Sequence[tuple[Patch, Receipt]],
    shards: list[Entry],
    files: Mapping[str, Mapping[str, Part]],
    codecs: Mapping[str, Codec],
    asked: dict[str, Any],
    counts: Mapping[str, int],
) -> Draft:
    tables = {name: [Entry({"cell": p.cell}, r.outputs[name]) for p, r in done] for name in done[0][1].outputs}
    truth = tables.pop("truth")
    total: Counter[str] = Counter()
    for _, receipt in done:
        total.update(receipt.counts)
    tables["codecs"] = [Entry({"modality": m, "file": n}, p) for m, f in sorted(files.items()) for n, p in f.items()]
    return Draft(
        recipe=settings.rootless(),
        tables=tables,
        aside={"shards": shards, "truth": truth},
        stats={
            "mock": asked,
            "splits": {k.removeprefix("split:"): v for k, v in sorted(total.items()) if k.startswith("split:")},
            "strata": {k.removeprefix("stratum:"): v for k, v in sorted(total.items()) if k.startswith("stratum:")},
            "codecs": {m: c.content_id for m, c in sorted(codecs.items())},
            "counts": dict(sorted(total.items())),
            "locked": True,
        },
    )
