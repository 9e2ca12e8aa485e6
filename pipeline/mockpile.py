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
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skycairn.catalogs import held
from skycairn.catalogs.desicoadd import join_arms
from skycairn.catalogs.hscimage import Calexp, cut_plane, role
from skycairn.catalogs.legacyimage import cut_brick, cut_images
from skycairn.catalogs.sdssspectra import on_grid
from skycairn.catalogs.survey import WORK_ORDER, Modality, Survey
from skycairn.match.sky import centres, split_of_cell
from skycairn.pile.lock import builder_lock
from skycairn.pile.receipt import Receipt, task_key
from skycairn.pile.store import Draft, Entry, Part, Pile, Snapshot
from skycairn.pipeline import assemble, recipe, truematch
from skycairn.pipeline.encode import encoded_payload, encoded_values, measured_values, token_table
from skycairn.pipeline.partition import gathered, in_order, valid_rows
from skycairn.pipeline.recipe import Recipe
from skycairn.pipeline.run import adopt_lock
from skycairn.pipeline.task import Context, Task, close, concat, float64, int64
from skycairn.tokenizers.codec import Codec
from skycairn.tokenizers.lock import lock_ids, read_lock

VERSION = 1
"""Raised whenever a patch would come out otherwise."""
SPLIT_ORDER = 5
NOT_ASKED = "not asked"
"""Status of an image that could have been made and was not."""
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

I64 = NDArray[np.int64]
Progress = Callable[[str], None]


class View(Protocol):
    """One patch of a sky as the surveys saw it; see mocksky/unwritten.py."""

    def columns(self, survey: str) -> Mapping[str, NDArray[Any]]:
        """The survey's catalogue, by the archive's own columns (`catalogs.held`)."""

    def shown(self, survey: str) -> Any:
        """Pairs of a row of `columns` and the uid of a true thing in it."""

    def truth(self) -> pa.Table:
        """True things: `uid`, `flux_r` and whatever else is true of them."""

    def boxes(self) -> NDArray[np.float64]:
        """The Legacy Survey's footprint: `Survey.coverage`."""

    def bricks(self) -> Iterator[Any]:
        """The Legacy Survey's images: name, header, layers by role, lost roles."""

    def planes(self) -> Iterator[Any]:
        """HSC's images: tract, header, `image-`, `variance-` and `mask-` by band, patches that lost a file."""

    def coadds(self) -> Iterator[Any]:
        """DESI's spectra: rows of all its columns, flux, ivar and mask by arm, whether the file is lost."""

    def plates(self) -> Iterator[Any]:
        """SDSS's spectra: rows, flux, ivar, and_mask and loglam, whether the file is lost."""

    def rows_of(self, survey: str) -> I64:
        """Which rows of all the survey's columns `columns` holds."""


@dataclass(frozen=True)
class Source:
    """Skies to look at: copies of one, as many as are wanted, each of the same number of patches."""

    look: Callable[[int, tuple[tuple[float, float], ...], int], View]
    "number of the sky, centres of its patches (RA, Dec), number of the patch; to be sent to other processes"
    patches: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    "what the skies hang on, as JSON values"


class Patch(NamedTuple):
    """One task."""

    number: int
    "among all patches of all skies"
    sky: int
    patch: int
    centres: tuple[tuple[float, float], ...]
    "of all patches of the sky"
    cell: int
    images: bool


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
        asked = {**source.settings, "objects": n_objects, "seed": seed, "images": images, "version": VERSION}
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
    wanted: list[str] = []
    for sky in range(len(coarse)):
        while len(wanted) < (sky + 1) * source.patches:
            wanted += [deal[i] for i in rng.permutation(GROUP)]
        names = wanted[sky * source.patches : (sky + 1) * source.patches]
        if any(len(free[name]) < names.count(name) for name in names):
            return
        at = [free[name].pop() for name in names]
        places = tuple((float(ra[i]), float(dec[i])) for i in at)
        for k, i in enumerate(at):
            number = sky * source.patches + k
            yield Patch(number, sky, k, places, int(child[i]), int((number + 1) * images) > int(number * images))


def _receipts(
    pile: Pile, settings: Recipe, source: Source, asked: Mapping[str, Any], workers: int
) -> Iterator[tuple[Patch, Receipt]]:
    """The patches in their order, each done, or found done."""
    ids = lock_ids(pile.root / "codecs.lock")
    about = {**source.settings, "seed": asked["seed"], "recipe": settings.rootless()}
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
        finally:
            pool.shutdown(cancel_futures=True)


# ---------------------------------------------------------------------------------------------------- a patch


@dataclass(frozen=True)
class Held(Context):
    """A context whose footprint is known, and no archive."""

    footprint: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4)))

    def boxes(self, survey: Survey, reference: Mapping[str, str], known: Mapping[str, Any]) -> NDArray[np.float64]:
        """The boxes it was given."""
        return self.footprint


def _do(root: Path, settings: dict[str, Any], source: Source, patch: Patch, key: str) -> Receipt:
    pile, asked = Pile(root), recipe.parse(settings, "mock-pile")
    codecs = read_lock(root / "codecs.lock")
    view = source.look(patch.sky, patch.centres, patch.patch)
    tables, counts = tables_of(pile, asked, view, codecs, patch)
    parts = {name: made if isinstance(made, Part) else pile.put_table(made) for name, made in tables.items()}
    receipt = Receipt(key, "mock patch", f"cell {patch.cell}", patch._asdict(), {}, parts, counts)
    pile.put_receipt(receipt)
    return receipt


def tables_of(
    pile: Pile, settings: Recipe, view: View, codecs: Mapping[str, Codec], patch: Patch
) -> tuple[dict[str, pa.Table | Part], dict[str, int]]:
    """All tables of one patch by their name in a pile, and what was counted."""
    ctx, cell = Held(pile, settings, view.boxes()), patch.cell
    surveys = {c.name: ctx.survey(c.name) for c in settings.surveys}
    out: dict[str, pa.Table | Part] = {}
    counts: Counter[str] = Counter()
    near: dict[str, Any] = {}
    slim: dict[str, pa.Table] = {}
    wide: dict[str, pa.Table] = {}
    shown: dict[str, tuple[I64, I64]] = {}
    for name, s in surveys.items():
        raw = held.read(s, view.columns(name))
        row, uid = view.shown(name)
        keyed = raw.column("key").take(pa.array(row)).combine_chunks()
        there = keyed.is_valid().to_numpy(zero_copy_only=False)
        shown[name] = np.asarray(keyed.drop_null(), np.int64), np.asarray(uid)[there]
        kept, found = valid_rows(s, raw)
        origin = [pa.array([text] * kept.num_rows, pa.string()) for text in ("the mock sky", "")]
        kept = kept.append_column("file", origin[0]).append_column("file_sha256", origin[1])
        tables, gathered_counts = gathered(s, settings.choice(name).profile, in_order(kept), f"{name} cell {cell}")
        found["kept"] = kept.num_rows
        close(found, "rows", "kept", "dropped:", where=f"{name} cell {cell}")
        counts.update({f"{name}:{k}": v for k, v in {**found, **gathered_counts}.items()})
        slim[name], wide[name] = tables["slim"], tables["wide"]
        parts = {t: pile.put_table(tables[t]) for t in ("slim", "wide", "selection", "repeats")}
        out |= {f"{name}.{t}": part for t, part in parts.items()}
        wanted = tables["wide"].drop_columns("healpix29")
        wanted = wanted.filter(pc.is_null(tables["selection"].column("failed_cut"))).combine_chunks()
        wanted = wanted.add_column(0, "owner", pa.array([name] * wanted.num_rows, pa.string()))
        tokens: dict[str, Part] = {}
        for m in s.modalities:
            codec = codecs.get(m.name)
            if not m.payload:
                made = encoded_values(wanted, m, codec)
            elif m.image and not patch.images:
                made = token_table(wanted, np.full(wanted.num_rows, NOT_ASKED, object), np.zeros(wanted.num_rows, bool))
            else:
                chunks = (x.add_column(0, "owner", _texts(name, x)) for x in payload(view, s, m, wanted, raw) if len(x))
                done = [encoded_payload(chunk, m, codec) for chunk in chunks]
                made = concat(done) if done else encoded_payload_of_none(wanted)
            tokens[m.name] = pile.put_table(made)
            counts[f"tokens:{m.name}"] = made.num_rows - made.column("tokens").null_count
        out |= {f"tokens.{m}": part for m, part in tokens.items()}
        near[name] = {str(cell): {**parts, "tokens": tokens}}
    truth = view.truth()
    light = dict(zip(truth.column("uid").to_pylist(), truth.column("flux_r").to_pylist(), strict=True))
    matched = truematch.members(slim, shown, light)
    counts.update({f"match:{k}": v for k, v in matched.counts.items()})
    out["members"] = members = pile.put_table(matched.table)
    args = {"cell": cell, "members": members, "near": near}
    args |= {"reference": {n: {} for n in surveys}, "known": {n: {} for n in surveys}}
    split = {"reach_arcsec": settings.reach_arcsec()}
    made = assemble.objects(ctx, Task("objects", f"cell {cell}", {"split": split}, {}, args))
    out["objects"] = made.outputs["objects"]
    counts.update(made.counts)
    out["truth"] = truth_of(pile.read_table(out["objects"]), patch.sky, matched.uid, truth, surveys, wide)
    return out, {k: int(v) for k, v in counts.items()}


def _texts(text: str, table: pa.Table) -> pa.Array:
    return pa.array([text] * table.num_rows, pa.string())


def encoded_payload_of_none(wanted: pa.Table) -> pa.Table:
    """The tokens of no source."""
    return token_table(wanted.slice(0, 0), np.empty(0, object), np.zeros(0, bool))


def payload(view: View, s: Survey, m: Modality, wanted: pa.Table, raw: pa.Table) -> Iterator[pa.Table]:
    """Payload of the wanted sources as `Survey.extract` gives it, a file's worth at a time.

    `raw` is the survey's catalogue here, row for row with `View.columns`.
    """
    if m.name == "legacysurvey.image":
        brick = np.asarray(wanted.column("brickname").to_pylist())
        for images in view.bricks():
            some = wanted.filter(pa.array(brick == images.name)).combine_chunks()
            files = {r: Path(r) for r in images.layers}
            if images.lost or not some.num_rows:
                yield cut_brick(some, {}, images.lost, m.shape[-1])
            else:
                layers = {r: held.Image(values, images.header) for r, values in images.layers.items()}
                yield cut_images(some, layers, files, m.shape[-1])
    elif m.name == "hsc.image":
        tract, patch = int64(wanted, "tract"), int64(wanted, "patch")
        for images in view.planes():
            mine = tract == int(images.name)
            some = wanted.filter(pa.array(mine)).combine_chunks()
            yield cut_plane(some, _calexps(m, images), np.isin(patch[mine], list(images.lost)), m.shape[-1])
    elif s.name in ("desi", "sdss"):
        keys = raw.column("key").combine_chunks()
        every = view.rows_of(s.name)
        for spectra in view.coadds() if s.name == "desi" else view.plates():
            of_file = keys.take(pa.array(np.searchsorted(every, spectra.row)))
            chosen = pc.index_in(of_file, wanted.column("key").combine_chunks())
            rows = np.flatnonzero(chosen.is_valid().to_numpy(zero_copy_only=False))
            yield _spectra(of_file.take(pa.array(rows)), spectra, rows, s.name)
    else:
        raise ValueError(f"{m.name}: a mock sky has no such pixels")


def _calexps(m: Modality, images: Any) -> dict[str, Calexp]:
    """HSC's planes by role; bits of the mask are those that make a pixel bad."""
    out = {}
    for band in m.bands:
        if f"image-{band}" in images.layers:
            image, mask, variance = (
                held.Image(images.layers[f"{what}-{band}"], images.header) for what in ("image", "mask", "variance")
            )
            out[role(band)] = Calexp(held.NOWHERE, image, mask, variance, 27.0, -1)
    return out


def _spectra(keys: pa.Array, spectra: Any, rows: I64, survey: str) -> pa.Table:
    a = spectra.arrays
    if survey == "desi":
        flux, ivar, mask = join_arms(
            *({arm: v[rows] for arm, v in a[what].items()} for what in ("flux", "ivar", "mask"))
        )
    else:
        flux, ivar, mask, _ = on_grid(
            a["flux"][rows], a["ivar"][rows], a["and_mask"][rows], None, a["loglam"], "a mock plate"
        )
    gone = mask.all(axis=1) | spectra.lost
    status = pa.array(np.where(gone, "file_absent" if spectra.lost else "not_measured", ""), mask=~gone)
    lists = {n: _lists(v, gone) for n, v in (("flux", flux), ("ivar", ivar), ("mask", mask))}
    return pa.table({"key": keys, "status": status, **lists})


def _lists(values: NDArray[Any], null: NDArray[np.bool_]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1], mask=pa.array(null)).cast(
        pa.list_(pa.from_numpy_dtype(values.dtype))
    )


def truth_of(
    objects: pa.Table,
    sky: int,
    uid: Mapping[str, int],
    truth: pa.Table,
    surveys: Mapping[str, Survey],
    wide: Mapping[str, pa.Table],
) -> pa.Table:
    """The side table: what is true of each object, and the numbers that the surveys measured of it, selected or not."""
    ids = objects.column("object_id").to_pylist()
    uids = pa.array([uid[i] for i in ids], pa.int64())
    columns: dict[str, Any] = {n: objects.column(n) for n in ("object_id", "split", "stratum")}
    columns |= {"sky": pa.array([sky] * len(ids), pa.int32()), "uid": uids}
    true = truth.take(pc.index_in(uids, truth.column("uid").combine_chunks()))
    columns |= {f"true.{n}": true.column(n) for n in true.column_names if n != "uid"}
    for name, s in surveys.items():
        key = objects.column(f"key.{name}").combine_chunks()
        own = wide[name].take(pc.index_in(key, wide[name].column("key").combine_chunks()))
        for m in (m for m in s.modalities if not m.payload and not m.shape):
            value, there = measured_values(own, m)
            columns[m.name] = _scattered(value, there)
            for end, column in (("error", m.error), ("ivar", m.ivar)):
                if column:
                    columns[f"{m.name}.{end}"] = pa.array(float64(own, column), mask=~there, from_pandas=True)
    return pa.table(columns)


def _scattered(values: NDArray[np.float64], there: NDArray[np.bool_]) -> pa.Array:
    out = np.zeros(len(there))
    out[there] = values
    return pa.array(out, mask=~there)


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
