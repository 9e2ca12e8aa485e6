"""One patch of a sky that is known, to the tables of a pile: sources, tokens, objects, and the truth of each object.

Readers, cuts, cut-outs, codecs and objects are those of a build; only the files are not there, and nothing is matched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
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
from skycairn.catalogs.survey import Modality, Survey
from skycairn.pile.store import Part, Pile
from skycairn.pipeline import assemble, truematch
from skycairn.pipeline.encode import encoded_payload, encoded_values, measured_values, token_table
from skycairn.pipeline.partition import gathered, in_order, valid_rows
from skycairn.pipeline.recipe import Recipe
from skycairn.pipeline.task import Context, Task, close, concat, float64, int64
from skycairn.tokenizers.codec import Codec

NOT_ASKED = "not asked"
"""Status of an image that could have been made and was not."""

I64 = NDArray[np.int64]


class View(Protocol):
    """One patch of a sky as the surveys saw it; see mocksky/unwritten.py."""

    def columns(self, survey: str) -> Mapping[str, NDArray[Any]]:
        """The survey's catalogue, by the archive's own columns (`catalogs.held`)."""

    def shown(self, survey: str) -> Any:
        """Pairs of a row of `columns` and the uid of a true thing in it."""

    def truth(self) -> pa.Table:
        """True things: `uid`, `flux_r`, `blend_group` (0: none) and whatever else is true of them."""

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


class Patch(NamedTuple):
    """One task."""

    number: int
    "among all patches of all skies"
    sky: int
    "from 1"
    patch: int
    centres: tuple[tuple[float, float], ...]
    "of all patches of the sky"
    cell: int
    images: bool


@dataclass(frozen=True)
class Held(Context):
    """A context whose footprint is known, and no archive."""

    footprint: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4)))

    def boxes(self, survey: Survey, reference: Mapping[str, str], known: Mapping[str, Any]) -> NDArray[np.float64]:
        """The boxes it was given."""
        return self.footprint


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
            made = _encoded(view, s, m, wanted, raw, codecs.get(m.name), patch.images)
            tokens[m.name] = pile.put_table(made)
            counts[f"tokens:{m.name}"] = made.num_rows - made.column("tokens").null_count
        out |= {f"tokens.{m}": part for m, part in tokens.items()}
        near[name] = {str(cell): {**parts, "tokens": tokens}}
    truth = view.truth()
    things, flux, blend = (truth.column(n).to_pylist() for n in ("uid", "flux_r", "blend_group"))
    matched = truematch.members(
        slim, shown, dict(zip(things, flux, strict=True)), dict(zip(things, blend, strict=True))
    )
    counts.update({f"match:{k}": v for k, v in matched.counts.items()})
    out["members"] = members = pile.put_table(matched.table)
    args = {"cell": cell, "members": members, "near": near}
    args |= {"reference": {n: {} for n in surveys}, "known": {n: {} for n in surveys}}
    split = {"reach_arcsec": settings.reach_arcsec()}
    objects = assemble.objects(ctx, Task("objects", f"cell {cell}", {"split": split}, {}, args))
    out["objects"] = objects.outputs["objects"]
    counts.update(objects.counts)
    out["truth"] = truth_of(pile.read_table(out["objects"]), patch.sky, matched.uid, truth, surveys, wide)
    return out, {k: int(v) for k, v in counts.items()}


def _encoded(
    view: View, s: Survey, m: Modality, wanted: pa.Table, raw: pa.Table, codec: Codec | None, images: bool
) -> pa.Table:
    """Tokens of one modality of the wanted sources."""
    if not m.payload:
        return encoded_values(wanted, m, codec)
    if m.image and not images:
        return token_table(wanted, np.full(wanted.num_rows, NOT_ASKED, object), np.zeros(wanted.num_rows, bool))
    done = []
    for chunk in payload(view, s, m, wanted, raw):
        if chunk.num_rows:
            owner = pa.array([s.name] * chunk.num_rows, pa.string())
            done.append(encoded_payload(chunk.add_column(0, "owner", owner), m, codec))
    return concat(done) if done else token_table(wanted.slice(0, 0), np.empty(0, object), np.zeros(0, bool))


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
