"""Where an object comes from: survey files, checksums, rows, cuts, matches, files of pixels, codecs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from skycairn.catalogs.registry import survey
from skycairn.match.sky import rings
from skycairn.pile.receipt import Receipt
from skycairn.pile.store import Pile, Snapshot
from skycairn.pipeline.parent import Parent


def explain(pile: Pile, snapshot: Snapshot, object_id: str) -> dict[str, Any]:
    """All that the snapshot knows of the making of an object, as plain values.

    `sources`: each member with its release, profile, file, SHA-256, row, the cut it failed; `repeats` of them; `pairs`
    among them and with what lies near, `link` where one names the other by its id; `disagreements`: ids that they hold,
    or that name them, and that led to no match, and why; `measurements`: per modality status, codec, files with
    SHA-256; `tasks`: the receipts behind it. ValueError where the snapshot has no such object.
    """
    cell, row = _row(pile, snapshot, object_id)
    if "mock" in snapshot.stats:
        raise ValueError(
            f"snapshot {snapshot.number} is of a mock sky that was never written to files, so none can be named; its "
            "table truth says what is true of each object"
        )
    members = _rows(pile, snapshot, "members", pc.field("object_id") == object_id, [cell])
    sources, tasks = [], [f"match cell {cell}", f"objects cell {cell}"]
    for m in members:
        name, key = m["survey"], m["key"]
        home = row[f"cell.{name}"]
        chosen = snapshot.recipe["surveys"][name]
        is_key = pc.field("key") == key
        told = _rows(pile, snapshot, f"{name}.provenance", is_key, [home])[0]
        failed = _rows(pile, snapshot, f"{name}.selection", is_key, [home])[0]["failed_cut"]
        repeats = _rows(pile, snapshot, f"{name}.repeats", pc.field("primary") == key, [home])
        sources.append(
            {
                "uid": f"{name}:{key}",
                "anchor": m["anchor"],
                "release": chosen["release"],
                "profile": chosen["profile"],
                "file": told["file"],
                "sha256": told["file_sha256"],
                "row": told["row"],
                "selected": failed is None,
                "failed_cut": failed,
                "ra": m["ra"],
                "dec": m["dec"],
                "separation_arcsec": m["separation_uas"] * 1e-6,
                "repeats": [r["key"] for r in repeats],
            }
        )
        tasks += [f"fetch {name} {told['file']}", f"gather {name} cell {home}", f"want {name} cell {home}"]
    parent = Parent(pile, snapshot)
    measurements = [x for name in snapshot.recipe["surveys"] for x in _measurements(pile, snapshot, parent, row, name)]
    tasks += [x for m in measurements for x in m.pop("tasks")]
    return {
        "object_id": object_id,
        "snapshot": snapshot.number,
        "content_id": snapshot.content_id,
        "ra": row["ra"],
        "dec": row["dec"],
        "split": row["split"],
        "cell": cell,
        "blend_group": row["blend_group"],
        "match": snapshot.recipe["match"],
        "sources": sorted(sources, key=lambda s: (not s["anchor"], s["uid"])),
        "pairs": _pairs(pile, snapshot, cell, "pairs", ("survey_a", "key_a", "survey_b", "key_b"), members),
        "disagreements": _pairs(
            pile, snapshot, cell, "disagreements", ("survey", "key", "other_survey", "other_key"), members
        ),
        "measurements": measurements,
        "tasks": {label: parent.keys[label] for label in dict.fromkeys(tasks) if label in parent.keys},
    }


def _row(pile: Pile, snapshot: Snapshot, object_id: str) -> tuple[int, dict[str, Any]]:
    for entry in snapshot.entries("objects"):
        table = pile.read_table(entry.part, filters=pc.field("object_id") == object_id)
        if table.num_rows:
            return int(entry.labels["cell"]), dict(table.to_pylist()[0])
    raise ValueError(f"snapshot {snapshot.number} has no object {object_id}")


def _rows(pile: Pile, snapshot: Snapshot, table: str, where: Any, cells: Iterable[int]) -> list[dict[str, Any]]:
    wanted = set(cells)
    found = [
        pile.read_table(e.part, filters=where)
        for e in (*snapshot.tables.get(table, ()), *snapshot.aside.get(table, ()))
        if e.labels["cell"] in wanted
    ]
    return [dict(r) for t in found for r in t.to_pylist()]


def _pairs(
    pile: Pile,
    snapshot: Snapshot,
    cell: int,
    table: str,
    columns: tuple[str, str, str, str],
    members: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Rows of a table of pairs, named by these columns, that any of the members is in."""
    near = rings(6, pa.array([cell], pa.int64()).to_numpy(), 1).tolist()
    out = []
    for m in members:
        for name, key in (columns[:2], columns[2:]):
            is_it = (pc.field(name) == m["survey"]) & (pc.field(key) == m["key"])
            out += _rows(pile, snapshot, table, is_it, near)
    unique = {tuple(r[c] for c in columns): r for r in out}
    return [r for _, r in sorted(unique.items())]


def _measurements(
    pile: Pile, snapshot: Snapshot, parent: Parent, row: dict[str, Any], name: str
) -> Iterable[dict[str, Any]]:
    chosen = snapshot.recipe["surveys"][name]
    made = survey(name, chosen["release"], **{k: v for k, v in chosen.items() if k not in ("release", "profile")})
    owners = [(name, row[f"key.{name}"], row[f"cell.{name}"])]
    if "key.targets" in row:
        owners.append(("targets", row["key.targets"], row["cell.targets"]))
    for m in made.modalities:
        out: dict[str, Any] = {"modality": m.name, "status": row[f"status.{m.name}"], "tasks": []}
        out["codec"] = snapshot.stats.get("codecs", {}).get(m.name)
        for owner, key, cell in owners:
            if key is None:
                continue
            where = (pc.field("owner") == owner) & (pc.field("key") == key)
            tokens = _rows(pile, snapshot, f"tokens.{m.name}", where, [cell])
            if tokens and tokens[0]["tokens"] is not None:
                out["n_tokens"] = len(tokens[0]["tokens"])
                label = f"encode payload {m.name} cell {cell}" if m.payload else f"encode {name} columns cell {cell}"
                out["tasks"] = [label, *([f"extract {m.name} cell {cell}"] if m.payload else [])]
            if tokens and m.payload:
                out["files"] = _files(pile, parent, name, m.name, cell, where)
                break
        yield out


def _files(pile: Pile, parent: Parent, name: str, modality: str, cell: int, where: Any) -> dict[str, Any]:
    """The files that hold a source's pixels or spectrum: path, state and SHA-256 by role."""
    wanted = parent.receipt(f"want {name} cell {cell}")
    made: Receipt | None = parent.receipt(f"extract {modality} cell {cell}")
    made = made or parent.receipt(f"encode payload {modality} cell {cell}")
    if wanted is None or made is None:
        return {}
    rows = pile.read_table(wanted.outputs["wanted"], filters=where).to_pylist()
    number = rows[0][f"group.{modality}"] if rows else -1
    return dict(made.notes["files"][number]) if number >= 0 else {}
