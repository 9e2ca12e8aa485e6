"""The snapshot that a build starts from, and the tasks behind it: what is compared with, and what is taken over."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa

from skycairn.pile.content import canonical_json
from skycairn.pile.files import Missing
from skycairn.pile.receipt import Receipt
from skycairn.pile.store import Pile, Snapshot
from skycairn.pipeline.versions import VERSIONS


class Parent:
    """The head of a pile before a build; all of it is empty where there is none."""

    def __init__(self, pile: Pile, snapshot: Snapshot | None) -> None:
        self.pile = pile
        self.snapshot = snapshot

    @cached_property
    def keys(self) -> dict[str, str]:
        """Key of each task behind the snapshot, by label."""
        if self.snapshot is None or "tasks" not in self.snapshot.aside:
            return {}
        try:
            tables = [self.pile.read_table(e.part) for e in self.snapshot.entries("tasks")]
        except Missing:
            # then nothing is known of them: everything is compared with nothing, and nothing is taken over
            return {}
        return {label: key for t in tables for label, key in zip(*(t[n].to_pylist() for n in ("label", "key")))}  # noqa: B905

    def receipt(self, label: str) -> Receipt | None:
        """The receipt of the task of this label; None where there was none, or its outputs are gone."""
        key = self.keys.get(label)
        return None if key is None else self.pile.receipt(key)

    def differing(self, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
        """Tables of a plan that is done whose content is not the snapshot's."""
        if self.snapshot is None:
            return sorted(tables)
        known = {**self.snapshot.tables, **self.snapshot.aside}
        return sorted(
            name
            for name in {*tables, *known} - {"lineage", "tasks", "codecs"}
            if sorted(e["part"].content_id for e in tables.get(name, ()))
            != sorted(e.part.content_id for e in known.get(name, ()))
        )

    def followers(self, labels: Iterable[str]) -> dict[str, int]:
        """How many tasks behind the snapshot, by step, read what these left, or what such tasks left in turn."""
        receipts = {label: r for label in self.keys if (r := self.receipt(label))}
        readers: dict[str, set[str]] = defaultdict(set)
        for label, receipt in receipts.items():
            for content in receipt.inputs.values():
                readers[content.split(" ")[0]].add(label)
        seen, ahead = set(labels), [label for label in labels if label in receipts]
        found: dict[str, int] = defaultdict(int)
        while ahead:
            receipt = receipts[ahead.pop()]
            left = {part.content_id for part in receipt.outputs.values()}
            left |= {c[2] for c in receipt.notes.get("cells", {}).values()} | {str(receipt.notes.get("sha256"))}
            for label in {reader for content in left for reader in readers[content]} - seen:
                seen.add(label)
                ahead.append(label)
                found[receipts[label].step] += 1
        return dict(found)


def tasks_table(receipts: Mapping[str, Receipt]) -> pa.Table:
    """The tasks behind a snapshot: label, step, key."""
    rows = sorted(receipts.items())
    return pa.table(
        {
            "label": pa.array([label for label, _ in rows], pa.string()),
            "step": pa.array([r.step for _, r in rows], pa.string()),
            "key": pa.array([r.key for _, r in rows], pa.string()),
        }
    )


def why(step: str, settings: Mapping[str, Any], inputs: Mapping[str, str], old: Receipt | None) -> str:
    """Why a task is to be done, by what differs from the receipt that its label had."""
    if old is None:
        return "never done"
    settings = json.loads(canonical_json(dict(settings)))
    before = dict(old.settings)
    version = before.pop("step version", None)
    if version != VERSIONS[step]:
        return f"step {step} is of version {VERSIONS[step]}, was {version}"
    if changed := [k for k in sorted({*settings, *before}) if settings.get(k) != before.get(k)]:
        return _setting(changed[0], settings.get(changed[0]), before.get(changed[0]))
    names = sorted(n for n in {*inputs, *old.inputs} if inputs.get(n) != old.inputs.get(n))
    if not names:
        return "its output is gone"
    if step == "gather":
        return f"file {', '.join(_paths(inputs, old.inputs))} changed"
    things = sorted({_thing(step, n) for n in names})
    return f"{', '.join(things[:3])}{' and others' if len(things) > 3 else ''} changed"


def _setting(name: str, new: Any, old: Any) -> str:
    if name == "cuts":
        was = {cut[0]: cut for cut in old or []}
        now = {cut[0]: cut for cut in new or []}
        return (
            f"cut {', '.join(n for n in [*now, *(o for o in was if o not in now)] if now.get(n) != was.get(n))} changed"
        )
    if name in ("state", "files"):
        return "a file was touched or replaced"
    if name == "listed":
        return "the digest that the archive publishes changed"
    if name == "columns that the cuts need":
        return f"the cuts need {', '.join(sorted(set(new or ()) ^ set(old or ())))}: other columns than before"
    told = f" from {old!r} to {new!r}" if len(repr(old)) + len(repr(new)) < 80 else ""
    return f"setting {name} changed{told}"


def _paths(new: Mapping[str, str], old: Mapping[str, str]) -> Sequence[str]:
    differing = set(new.values()) ^ set(old.values())
    paths = sorted({value.split(" ", 2)[2] for value in differing})
    return [*paths[:3], *(["others"] if len(paths) > 3 else [])]


def _thing(step: str, name: str) -> str:
    if name in ("wanted", "wide", "selection", "slim", "members", "payload", "sample", "file", "files"):
        return {"wanted": "the wanted sources", "file": "the file", "sample": "the sample"}.get(name, f"the {name}")
    if name == "codec" or (step == "encode" and "." in name):
        return "the codec" if name == "codec" else f"the codec of {name}"
    first = name.split(" ")[0]
    if first.isdigit():
        return "the sources"
    return (
        f"tokens of {first}" if "." in first else first if first in ("objects", "reference") else f"sources of {first}"
    )
