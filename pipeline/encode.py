"""Measurements of sources to tokens: the sample that codecs are fitted on, the fit, the encoding."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skycairn.catalogs.survey import Modality
from skycairn.match.sky import splits
from skycairn.pile.store import Part
from skycairn.pipeline.extract import NO_CODEC, STATUS, in_objects, payload_chunks
from skycairn.pipeline.loaded import codec_of_parts, is_network, ready
from skycairn.pipeline.reuse import row_of, unchanged
from skycairn.pipeline.task import Context, Outcome, Task, concat, int64, pieces_of
from skycairn.tokenizers.codec import Codec
from skycairn.tokenizers.registry import fit_codec, fit_to_sketches
from skycairn.tokenizers.sketch import QuantileSketch

NETWORK_ROWS = 64
"""Least sources that a network is given at once; their images take 60 MB."""


def source_hash(survey: str, keys: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A number by which sources are sampled; of the uid alone, so that a sample depends on no order and no machine."""
    return np.array(
        [int.from_bytes(hashlib.sha256(f"{survey}:{k}".encode()).digest()[:8], "big") for k in keys.tolist()],
        dtype=np.uint64,
    )


def sample(ctx: Context, task: Task) -> Outcome:
    """The selected sources of one survey with the lowest hashes, of the training or validation sky where `fit_on`
    says so.

    Where members are named, of the region's objects alone.
    """
    survey, most = task.args["survey"], task.settings["rows"]
    counts: Counter[str] = Counter()
    best = pa.table(
        {"key": pa.array([], pa.int64()), "cell": pa.array([], pa.int64()), "hash": pa.array([], pa.uint64())}
    )
    for cell, parts in sorted(task.args["cells"].items(), key=lambda item: int(item[0])):
        slim = _training(ctx, task, parts, counts)
        keys = int64(slim, "key")
        rows = pa.table({"key": keys, "cell": np.full(len(keys), int(cell)), "hash": source_hash(survey, keys)})
        best = concat([best, rows])
        best = best.take(pc.sort_indices(best, [("hash", "ascending"), ("key", "ascending")])[:most])
    counts["sampled"] = best.num_rows
    return Outcome({"sample": ctx.pile.put_table(best)}, counts)


def _training(ctx: Context, task: Task, parts: Mapping[str, Any], counts: Counter[str]) -> pa.Table:
    """Key and place of the sources of one cell that codecs are fitted on: see `sample`."""
    split = ctx.recipe.split
    failed = ctx.pile.read_table(parts["selection"]).column("failed_cut")
    slim = ctx.pile.read_table(parts["slim"], columns=["key", "healpix29"]).filter(pc.is_null(failed))
    if "members" in parts:
        slim = slim.filter(pa.array(in_objects(ctx, task.args["survey"], slim, parts["members"])))
    counts["selected"] += slim.num_rows
    if task.settings["fit_on"] != "any" and slim.num_rows:
        where = splits(
            int64(slim, "healpix29"),
            np.arange(slim.num_rows),
            slim.num_rows,
            split.salt,
            split.by_name(),
            reach_arcsec=task.settings["split"]["reach_arcsec"],
        )
        slim = slim.filter(pa.array(where == task.settings["fit_on"]))
    counts["training"] += slim.num_rows
    return slim


def sketch(ctx: Context, task: Task) -> Outcome:
    """Sketches of the column modalities of one survey and cell, of the sources that `sample` chooses among.

    A row a modality and number of it, in the order of both.
    """
    survey = ctx.survey(task.args["survey"])
    counts: Counter[str] = Counter()
    keys = _training(ctx, task, task.args, counts).column("key").combine_chunks()
    rows: dict[str, list[Any]] = {"modality": [], "number": [], "sketch": []}
    for modality in sorted((survey.modality(name) for name in task.settings["modalities"]), key=lambda m: m.name):
        names = ["key", *(n for n in (modality.column, modality.ivar) if n)]
        wide = ctx.pile.read_table(task.args["wide"], columns=names)
        value = measured_values(wide.filter(pc.is_in(wide.column("key"), keys)), modality)[0]
        counts[f"values:{modality.name}"] = len(value)
        for number, column in enumerate(value.reshape(len(value), int(np.prod(modality.shape, dtype=int))).T):
            rows["modality"].append(modality.name)
            rows["number"].append(number)
            rows["sketch"].append(QuantileSketch.of(column).to_bytes())
    types = (("modality", pa.string()), ("number", pa.int64()), ("sketch", pa.binary()))
    return Outcome({"sketch": ctx.pile.put_table(pa.table(rows, schema=pa.schema(types)))}, counts)


def _sketched(ctx: Context, task: Task, modality: Modality) -> list[QuantileSketch]:
    """What the cells' sketches have seen of each number of a modality, merged in the order of the cells."""
    cells = []
    for _, part in sorted(task.args["sketches"].items(), key=lambda item: int(item[0])):
        table = ctx.pile.read_table(part)
        found = table.filter(pc.equal(table.column("modality"), modality.name)).sort_by("number")
        cells.append([QuantileSketch.from_bytes(b) for b in found.column("sketch").to_pylist()])
    return [QuantileSketch.merged(numbers) for numbers in zip(*cells, strict=True)]


def fit(ctx: Context, task: Task) -> Outcome:
    """The codec of one modality, fitted on the sample or on the cells' sketches."""
    modality = ctx.survey(task.args["survey"]).modality(task.settings["modality"])
    sketched = "sketches" in task.args
    codec, counts = (_fitted_to_sketches if sketched else _fitted)(ctx, task, modality)
    if codec is None:
        return Outcome(counts=counts, notes={"unfit": f"no source of the sample has a {modality.name}"})
    with tempfile.TemporaryDirectory() as folder:
        codec.save(Path(folder))
        parts = ctx.pile.put_folder(Path(folder))
    return Outcome(parts, counts, {"content_id": codec.content_id, "kind": codec.kind})


def _fitted(ctx: Context, task: Task, modality: Modality) -> tuple[Codec | None, dict[str, int]]:
    rows = ctx.pile.read_table(task.args["sample"]).slice(0, task.settings["rows"])
    if modality.payload:
        measurement = _sampled_payload(ctx, task, modality, rows)
    else:
        measurement = {"value": _sampled_values(ctx, task, modality, rows)}
    n = len(next(iter(measurement.values()))) if measurement else 0
    counts = {"sampled": rows.num_rows, "fitted": n}
    if n == 0:
        return None, counts
    settings: dict[str, Any] = {"bands": modality.bands} if modality.image else {}
    if modality.wavelengths:
        settings = dict(zip(("scale", "start", "step"), modality.wavelengths, strict=True))
    return fit_codec(modality.codec, measurement, **settings), counts


def _fitted_to_sketches(ctx: Context, task: Task, modality: Modality) -> tuple[Codec | None, dict[str, int]]:
    sketches = _sketched(ctx, task, modality)
    counts = {"fitted": sketches[0].n, "exact": int(sketches[0].is_exact)}
    return fit_to_sketches(modality.codec, sketches) if sketches[0].n else None, counts


def _sampled_values(ctx: Context, task: Task, modality: Modality, rows: pa.Table) -> NDArray[np.float64]:
    values = []
    for cell in np.unique(int64(rows, "cell")):
        names = ["key", *(n for n in (modality.column, modality.ivar) if n)]
        wide = ctx.pile.read_table(task.args["cells"][str(cell)]["wide"], columns=names)
        wide = wide.filter(pc.is_in(wide.column("key"), rows.column("key").combine_chunks()))
        values.append(measured_values(wide, modality)[0])
    return np.concatenate(values) if values else np.empty((0, *modality.shape))


def _sampled_payload(ctx: Context, task: Task, modality: Modality, rows: pa.Table) -> dict[str, NDArray[Any]]:
    pieces = []
    survey = task.args["survey"]
    for cell in np.unique(int64(rows, "cell")):
        part = task.args["payload"].get(str(cell))
        if part is None:
            continue
        for chunk in pieces_of(ctx.pile, part):
            of_sample = pc.and_(
                pc.is_in(chunk.column("key"), rows.column("key").combine_chunks()),
                pc.and_(pc.equal(chunk.column("owner"), survey), pc.is_null(chunk.column("status"))),
            )
            chunk = chunk.filter(of_sample)
            if chunk.num_rows:
                pieces.append(payload_arrays(chunk, modality))
    return {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]} if pieces else {}


def measured_values(table: pa.Table, modality: Modality) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The measured values of a column modality, and which rows they are of.

    A value with inverse variance 0 was not measured, whatever stands there (the fluxes that the Legacy Surveys predict
    for retained Gaia stars, say).
    """
    column = table.column(modality.column).combine_chunks()
    if modality.ivar:
        ivar = pc.fill_null(table.column(modality.ivar).combine_chunks(), 0.0)
        column = pc.if_else(pc.greater(ivar, 0.0), column, pa.scalar(None, column.type))
    return column_values(column, modality)


def column_values(column: pa.Array, modality: Modality) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The finite values of a column modality, shape (n present, ...), and which rows they are of."""
    present = ~column.is_null().to_numpy(zero_copy_only=False)
    some = column.filter(pa.array(present))
    if modality.shape:
        lengths = np.asarray(pc.list_value_length(some))
        whole = lengths == modality.shape[0]
        flat = np.asarray(pc.list_flatten(some.filter(pa.array(whole))).cast(pa.float64()))
        value = flat.reshape(-1, *modality.shape)
        finite = np.isfinite(value).all(axis=1)
        index = np.flatnonzero(present)[whole][finite]
    else:
        value = np.asarray(some.cast(pa.float64()))
        finite = np.isfinite(value)
        index = np.flatnonzero(present)[finite]
    mask = np.zeros(len(column), bool)
    mask[index] = True
    return value[finite], mask


def payload_arrays(table: pa.Table, modality: Modality) -> dict[str, NDArray[Any]]:
    """Arrays of a payload table, each (n, *shape); the rows must all be present. Some images come without `ivar`."""
    out: dict[str, NDArray[Any]] = {}
    for name in [n for n in ("flux", "ivar", "mask") if n in table.column_names]:
        flat = pc.list_flatten(table.column(name).combine_chunks())
        out[name] = np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(table.num_rows, *modality.shape)
    return out


def codec_of(ctx: Context, files: dict[str, Part]) -> Codec:
    """A codec from the parts that hold its files."""
    return codec_of_parts(ctx.pile, files)


def encode_columns(ctx: Context, task: Task) -> Outcome:
    """Tokens of all column modalities of one survey and cell, a part each."""
    survey = ctx.survey(task.args["survey"])
    wanted = ctx.pile.read_table(task.args["wanted"])
    # a forced position is no source, and has no columns of this survey's
    wanted = wanted.filter(pc.equal(wanted.column("owner"), survey.name)).combine_chunks()
    outputs, counts = {}, Counter({"sources": wanted.num_rows})
    fresh_anywhere = np.zeros(wanted.num_rows, bool)
    compared: dict[str, NDArray[np.bool_]] = {}
    for name, files in sorted(task.args["codecs"].items()):
        modality = survey.modality(name)
        codec = codec_of(ctx, files) if files else None
        earlier = unchanged(ctx.pile, wanted, task.args["earlier"].get(name), "tokens", compared=compared)
        kept = earlier.chosen if earlier else np.full(wanted.num_rows, -1)
        fresh = np.flatnonzero(kept < 0)
        table = encoded_values(wanted.take(pa.array(fresh)).combine_chunks(), modality, codec)
        if earlier:
            table = _merged(fresh, table, np.flatnonzero(kept >= 0), earlier.take(kept[kept >= 0]))
        fresh_anywhere[fresh] = True
        outputs[name] = ctx.pile.put_table(table)
        counts[f"tokens:{name}"], counts[f"present:{name}"] = _n_tokens(table)
    counts["encoded"] = int(fresh_anywhere.sum())
    return Outcome(outputs, counts)


def encoded_values(wanted: pa.Table, modality: Modality, codec: Codec | None) -> pa.Table:
    """Tokens of a column modality of these sources, `token_table`; without a codec their status says so."""
    value, mask = measured_values(wanted, modality)
    status = np.full(len(mask), "not measured", dtype=object)
    status[mask] = None if codec is not None else NO_CODEC
    if modality.absent_flag:
        lost = np.asarray(pc.fill_null(wanted.column(modality.absent_flag), False))
        status[lost & ~mask] = "file absent"
    if codec is None:
        mask = np.zeros(len(mask), bool)
    if codec is None or not mask.any():
        return token_table(wanted, status, mask)
    tokens = codec.encode({"value": value})
    return token_table(wanted, status, mask, tokens, codec.lengths(tokens))


def _merged(rows: NDArray[np.int64], a: pa.Table, others: NDArray[np.int64], b: pa.Table) -> pa.Table:
    """Two tables whose rows stand at these places, as one."""
    order = np.argsort(np.concatenate([rows, others]), kind="stable")
    return concat([a, b.cast(a.schema)]).take(pa.array(order)).combine_chunks()


def _n_tokens(table: pa.Table) -> tuple[int, int]:
    tokens = table.column("tokens")
    return int(pc.sum(pc.list_value_length(tokens)).as_py() or 0), len(tokens) - tokens.null_count


def encode_payload(ctx: Context, task: Task) -> Outcome:
    """Tokens of one payload modality of one survey and cell, from the kept payload or straight from the files."""
    survey = ctx.survey(task.args["survey"])
    modality = survey.modality(task.settings["modality"])
    codec = codec_of(ctx, task.args["codec"]) if task.args["codec"] else None
    counts: Counter[str] = Counter()
    wanted = ctx.pile.read_table(task.args["wanted"])
    column = f"group.{modality.name}"
    earlier = unchanged(ctx.pile, wanted, task.args.get("earlier tokens"), "tokens", (column, task.args["files"]))
    number = int64(wanted, column)
    order = np.argsort(number, kind="stable")
    order = order[number[order] >= 0]
    kept = earlier.chosen[order] if earlier else np.full(len(order), -1)
    fresh = wanted.take(pa.array(order[kept < 0])).combine_chunks()
    chunks: Iterator[pa.Table]
    if task.args["payload"]:
        names = np.asarray(fresh.column("owner")), int64(fresh, "key")
        chunks = (_among(chunk, *names) for chunk in pieces_of(ctx.pile, task.args["payload"]))
    else:
        chunks = payload_chunks(ctx, task, counts, fresh)
    if codec is not None and is_network(codec):
        chunks = _gathered(chunks)
    with ready(codec):
        done = [encoded_payload(chunk, modality, codec) for chunk in chunks if chunk.num_rows] if fresh.num_rows else []
    if earlier:
        taken = earlier.take(kept[kept >= 0])
        done = [
            _merged(np.flatnonzero(kept < 0), concat(done) if done else taken[:0], np.flatnonzero(kept >= 0), taken)
        ]
    counts["encoded"] = fresh.num_rows
    notes = {"files": task.args["files"]}
    if not done:
        return Outcome({}, counts, notes)
    table = concat(done)
    counts["sources"] = table.num_rows
    counts[f"tokens:{modality.name}"], counts[f"present:{modality.name}"] = _n_tokens(table)
    return Outcome({modality.name: ctx.pile.put_table(table)}, counts, notes)


def _among(chunk: pa.Table, owner: NDArray[Any], key: NDArray[np.int64]) -> pa.Table:
    at = row_of(np.asarray(chunk.column("owner")), int64(chunk, "key"), owner, key)
    return chunk if (at >= 0).all() else chunk.filter(pa.array(at >= 0)).combine_chunks()


def _gathered(chunks: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in larger pieces: a network runs in chunks, and half a one costs as much as a whole one."""
    waiting: list[pa.Table] = []
    for chunk in chunks:
        waiting.append(chunk)
        if sum(w.num_rows for w in waiting) >= NETWORK_ROWS:
            yield concat(waiting)
            waiting = []
    if waiting:
        yield concat(waiting)


def encoded_payload(chunk: pa.Table, modality: Modality, codec: Codec | None) -> pa.Table:
    """Tokens of a chunk of payload with its `owner`, `token_table`; without a codec their status says so."""
    status = np.array([STATUS.get(s, s) for s in chunk.column("status").to_pylist()], dtype=object)
    mask = np.array([s is None for s in status], dtype=bool)
    if codec is None:
        status[mask], mask[:] = NO_CODEC, False
    if codec is None or not mask.any():
        return token_table(chunk, status, mask)
    # copies of pixels cost as much as a small network
    arrays = payload_arrays(chunk if mask.all() else chunk.filter(pa.array(mask)), modality)
    seen = codec.sees(arrays)
    status[np.flatnonzero(mask)[~seen]] = "not measured"
    mask[mask] = seen
    tokens = codec.encode(arrays if seen.all() else {name: values[seen] for name, values in arrays.items()})
    return token_table(chunk, status, mask, tokens, codec.lengths(tokens))


NO_TOKENS, NO_LENGTHS = np.empty((0, 1), np.uint16), np.empty(0, np.int64)


def token_table(
    sources: pa.Table,
    status: NDArray[Any],
    mask: NDArray[np.bool_],
    tokens: NDArray[Any] = NO_TOKENS,
    n_tokens: NDArray[np.int64] = NO_LENGTHS,
) -> pa.Table:
    """owner, key, status (null = present), tokens as a list, null where there are none.

    `tokens`: a row each source where `mask` is True, of which the first `n_tokens` are there.
    """
    lengths = np.zeros(len(mask), np.int32)
    lengths[mask] = n_tokens
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int32)
    values = pa.array(tokens[np.arange(tokens.shape[1]) < n_tokens[:, None]].astype(np.uint32))
    lists = pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(~mask))
    return pa.table(
        {
            "owner": sources.column("owner").combine_chunks(),
            "key": sources.column("key").combine_chunks(),
            "status": pa.array(status, pa.string()),
            "tokens": lists,
        }
    )
