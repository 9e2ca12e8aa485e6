"""Survey files to sources by work cell: read, keep the valid, sort by HEALPix, gather."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skycairn.archives.errors import ChecksumMismatch
from skycairn.catalogs.survey import STANDARD_SCHEMA, WORK_ORDER, Survey, first_failed, link_columns
from skycairn.match.sky import cells, healpix29
from skycairn.pile.content import content_id
from skycairn.pipeline.task import Context, Outcome, Task, close, concat, file_from_json, int64

MARGIN_ARCSEC = 900.0
"""How far outside the region sources are still read, so that its objects are whole and its footprints known."""

SLIM = [name for name in STANDARD_SCHEMA.names if name != "row"]
WIDE = ["key", "ra", "dec", "healpix29"]
"""Before the survey's own columns, so that the wide table is a catalogue by itself."""


def fetch(ctx: Context, task: Task) -> Outcome:
    """Hold one file against its published digest, know it by its SHA-256, and a catalogue file by its rows too."""
    archive, survey = ctx.archive(task.args["survey"]), ctx.survey(task.args["survey"])
    path, state = task.settings["path"], task.settings["state"]
    sha256 = archive.verify(path, task.settings["listed"])
    archive.check_unchanged(path, [sha256, *state])
    local = archive.local(path)
    rows = survey.n_rows(local) if task.args["catalogue"] else None
    notes = {"sha256": sha256, "rows": rows, "origin": archive.origin(path)}
    counts = {"files": 1, "bytes": local.stat().st_size, "verified": int(task.settings["listed"] is not None)}
    return Outcome(counts=counts, notes=notes)


def fetch_payload(ctx: Context, task: Task) -> Outcome:
    """Hold the payload files of one cell against their digests; those that differ are noted as damaged, not lost."""
    archive = ctx.archive(task.args["survey"])
    known, damaged, origin = {}, {}, {}
    counts: Counter[str] = Counter({"files": len(task.settings["files"])})
    for path, listed, state in task.settings["files"]:
        try:
            known[path] = archive.verify(path, listed)
            archive.check_unchanged(path, [known[path], *state])
            counts["bytes"] += archive.local(path).stat().st_size
            origin[path] = archive.origin(path)
        except ChecksumMismatch as error:
            damaged[path] = str(error)
        counts["verified"] += listed is not None and path not in damaged
    counts["damaged"] = len(damaged)
    return Outcome(counts=counts, notes={"sha256": known, "damaged": damaged, "origin": origin})


def read(ctx: Context, task: Task) -> Outcome:
    """Read a slice of a catalogue file; keep the valid rows in the region, sorted by (healpix29, key)."""
    archive, survey = ctx.archive(task.args["survey"]), ctx.survey(task.args["survey"])
    file = file_from_json(task.args["file"])
    companions = {r: archive.local(p) if p else None for r, p in task.args["companions"].items()}
    rows = tuple(task.settings["rows"]) if task.settings["rows"] else None
    with archive.unchanged(task.args["known"]):
        table = survey.read(archive.local(file.path), rows, companions, task.settings["columns that the cuts need"])
    table, counts = valid_rows(survey, table)
    ra, dec = table.column("ra").to_numpy(), table.column("dec").to_numpy()
    inside = ctx.recipe.region.contains(ra, dec, margin_arcsec=MARGIN_ARCSEC)
    counts["dropped:outside region"] = int((~inside).sum())
    table = in_order(table.filter(pa.array(inside)).combine_chunks())
    counts["kept"] = table.num_rows
    close(counts, "rows", "kept", "dropped:", where=f"{survey.name} {file.path}")
    cell = cells(int64(table, "healpix29"), WORK_ORDER)
    found, start = np.unique(cell, return_index=True)
    stop = np.append(start, len(cell))[1:]
    pieces = {
        str(c): [int(a), int(b), content_id(table.slice(int(a), int(b - a)))]
        for c, a, b in zip(found, start, stop, strict=True)
    }
    return Outcome({"rows": ctx.pile.put_table(table)}, counts, {"cells": pieces})


def valid_rows(survey: Survey, table: pa.Table) -> tuple[pa.Table, Counter[str]]:
    """The rows that can be trusted; `rows`, and `dropped:` by the cut that the others failed."""
    counts = Counter({"rows": table.num_rows})
    failed = first_failed(survey.valid, table)
    counts.update({f"dropped:{c['values']}": c["counts"] for c in failed.value_counts().to_pylist() if c["values"]})
    return table.filter(pc.is_null(failed)), counts


def in_order(table: pa.Table) -> pa.Table:
    """The rows with their `healpix29`, sorted by (healpix29, key, row)."""
    h = healpix29(table.column("ra").to_numpy(), table.column("dec").to_numpy())
    order = np.lexsort((int64(table, "row"), int64(table, "key"), h))
    return table.append_column("healpix29", pa.array(h)).take(pa.array(order)).combine_chunks()


def gather(ctx: Context, task: Task) -> Outcome:
    """All sources of one survey in one work cell, each once: slim, wide, selection, repeats, provenance."""
    survey = ctx.survey(task.args["survey"])
    pieces = []
    for piece in task.args["pieces"]:
        table = ctx.pile.read_table(piece["sha256"], rows=(piece["start"], piece["stop"]))
        file = pa.array([piece["path"]] * table.num_rows, pa.string())
        digest = pa.array([piece["file_sha256"]] * table.num_rows, pa.string())
        pieces.append(table.append_column("file", file).append_column("file_sha256", digest))
    tables, counts = gathered(survey, task.settings["profile"], concat(pieces), task.label)
    return Outcome({name: ctx.pile.put_table(made) for name, made in tables.items()}, counts)


def gathered(survey: Survey, profile: str, table: pa.Table, where: str) -> tuple[dict[str, pa.Table], Counter[str]]:
    """The tables of `gather`, of valid rows of one survey and cell with their `file` and `file_sha256`."""
    counts = Counter({"sources": table.num_rows})
    table = table.filter(pa.array(~_superfluous(table)))
    counts["dropped:duplicate"] = counts["sources"] - table.num_rows

    repeats = pa.table({"key": pa.array([], pa.int64()), "primary": pa.array([], pa.int64())})
    primary = _primaries(survey, profile, table)
    if primary is not None:
        own = primary == np.arange(table.num_rows)
        key = int64(table, "key")
        repeats = pa.table({"key": key[~own], "primary": key[primary[~own]]}).sort_by("key")
        table = table.filter(pa.array(own))
    counts["repeats"] = repeats.num_rows

    order = np.lexsort((int64(table, "key"), int64(table, "healpix29")))
    table = table.take(pa.array(order)).combine_chunks()
    counts["valid"] = table.num_rows
    close(counts, "sources", "valid", "repeats", "dropped:", where=where)

    failed = _failed_cut(survey, profile, table)
    counts["selected"] = failed.null_count
    for c in failed.value_counts().to_pylist():
        if c["values"]:
            counts[f"not selected:{c['values']}"] = c["counts"]
    close(counts, "valid", "selected", "not selected:", where=where)
    slim = table.select([*SLIM, "healpix29"])
    for name, keys in link_columns(survey, table).items():
        slim = slim.append_column(name, keys)
    tables = {
        "slim": slim,
        "wide": table.select([*WIDE, *(c.name for c in survey.columns if c.name not in WIDE)]),
        "selection": pa.table({"key": table.column("key"), "failed_cut": failed}),
        "repeats": repeats,
        "provenance": table.select(["key", "file", "file_sha256", "row"]),
    }
    return tables, counts


def _primaries(survey: Survey, profile: str, table: pa.Table) -> NDArray[np.int64] | None:
    """Row of each row's primary, one that the profile selects where its target has any; None without repeats.

    So a target whose best spectrum the profile does not want (of another survey of DESI, say) keeps the one it wants.
    """
    primary = survey.repeats(table)
    if primary is None:
        return None
    wanted = np.flatnonzero(_failed_cut(survey, profile, table).is_null().to_numpy(zero_copy_only=False))
    among = survey.repeats(table.take(pa.array(wanted)))
    if among is None:
        return primary
    best = primary.copy()
    best[primary[wanted]] = wanted[among]
    return np.asarray(best[primary])


def _superfluous(table: pa.Table) -> NDArray[np.bool_]:
    """Rows whose key another row has too: all but the one whose values have the smallest SHA-256.

    So which one stays hangs on what the rows say, not on the order that they come in.
    """
    out = np.zeros(table.num_rows, bool)
    key = int64(table, "key")
    several, count = np.unique(key, return_counts=True)
    rows = np.flatnonzero(np.isin(key, several[count > 1]))
    values = table.drop_columns(["file", "file_sha256", "row"])
    digest = {i: content_id(values.slice(i, 1)) for i in rows.tolist()}
    order = sorted(rows.tolist(), key=lambda i: (key[i], digest[i], i))
    for before, after in pairwise(order):
        out[after] = key[before] == key[after]
    return out


def _failed_cut(survey: Survey, profile: str, table: pa.Table) -> pa.Array:
    return first_failed(survey.select[profile], table)


def needed_columns(survey: Survey, profile: str) -> list[str]:
    """The survey's own columns without which its cuts cannot be made: those of cuts that a null does not pass."""
    own = {c.name for c in survey.columns}
    cuts = [cut for cut in (*survey.valid, *survey.select[profile]) if cut.null == "fails"]
    return sorted({n for cut in cuts for n in cut.columns if n in own})
