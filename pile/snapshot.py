"""One consistent, immutable state of a pile: which parts make up which table, out of which recipe."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

from skycairn.pile.content import canonical_json, merkle
from skycairn.pile.receipt import Part

FORMAT = 1
RECORDS = ("lineage", "tasks")
"""Tables beside the others that tell how a snapshot came about, not what it says."""


@dataclass(frozen=True)
class Entry:
    """One part of a table, and which piece of the table it is."""

    labels: dict[str, str | int]
    "such as {'cell': 21041, 'survey': 'gaia'}; no two entries of a table have the same"
    part: Part

    @cached_property
    def name(self) -> str:
        """The labels as one text, by which entries are sorted and told apart."""
        return canonical_json(self.labels).decode()


Tables = Mapping[str, Sequence[Entry]]


@dataclass(frozen=True)
class Draft:
    """What is to become a snapshot."""

    recipe: dict[str, Any]
    tables: Tables
    aside: Tables = field(default_factory=dict)
    "tables outside the content id: provenance, lineage"
    held_back: Sequence[Any] = ()
    "JSON values, in any order: what is absent on purpose, and why"
    stats: dict[str, Any] = field(default_factory=dict)
    "outside the content id"


@dataclass(frozen=True)
class Snapshot:
    """One state of a pile. Holds no path and no URL, so that a pile can be moved."""

    format: int
    number: int
    parent: int | None
    recipe: dict[str, Any]
    tables: Tables
    aside: Tables
    held_back: tuple[Any, ...]
    stats: dict[str, Any]
    content_id: str

    @classmethod
    def of(cls, draft: Draft, number: int, parent: int | None) -> Self:
        """The draft as a snapshot; ValueError where it holds a path, a URL or the same labels twice."""
        for name, value in (("recipe", draft.recipe), ("held_back", list(draft.held_back)), ("stats", draft.stats)):
            canonical_json(value)
            _refuse_places(value, name)
        tables, aside = _in_order(draft.tables), _in_order(draft.aside)
        if both := sorted(set(tables) & set(aside)):
            raise ValueError(f"{', '.join(both)}: named among the tables and beside them; name each once")
        held_back = tuple(sorted(draft.held_back, key=canonical_json))
        return cls(
            format=FORMAT,
            number=number,
            parent=parent,
            recipe=draft.recipe,
            tables=tables,
            aside=aside,
            held_back=held_back,
            stats=draft.stats,
            content_id=_content(tables, held_back),
        )

    def entries(self, table: str) -> tuple[Entry, ...]:
        """The parts of a table, in the order of their labels. ValueError names the tables that there are."""
        for tables in (self.tables, self.aside):
            if table in tables:
                return tuple(tables[table])
        raise ValueError(
            f"snapshot {self.number} has no table {table!r}; it has {', '.join([*self.tables, *self.aside]) or 'none'}"
        )

    def part(self, table: str, **labels: str | int) -> Part:
        """The one part of a table with exactly these labels."""
        for entry in self.entries(table):
            if entry.labels == labels:
                return entry.part
        raise ValueError(f"snapshot {self.number}: table {table!r} has no part {labels}")

    def parts(self) -> Iterable[Part]:
        """All parts, of all tables."""
        for tables in (self.tables, self.aside):
            for entries in tables.values():
                for entry in entries:
                    yield entry.part

    def says_the_same(self, other: Snapshot) -> bool:
        """Whether the other has the same recipe and content, beside the tables too, however its files are laid out.

        Its `RECORDS` may differ.
        """
        mine, theirs = ({n: e for n, e in s.aside.items() if n not in RECORDS} for s in (self, other))
        return (
            self.content_id == other.content_id
            and canonical_json(self.recipe) == canonical_json(other.recipe)
            and _content(mine, ()) == _content(theirs, ())
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""

        def listed(tables: Tables) -> dict[str, Any]:
            return {
                name: [{"labels": e.labels, "part": e.part.to_json()} for e in entries]
                for name, entries in tables.items()
            }

        return {
            "format": self.format,
            "number": self.number,
            "parent": self.parent,
            "recipe": self.recipe,
            "tables": listed(self.tables),
            "aside": listed(self.aside),
            "held_back": list(self.held_back),
            "stats": self.stats,
            "content_id": self.content_id,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """From `to_json`; ValueError where the snapshot does not hold together."""
        if value.get("format") != FORMAT:
            raise ValueError(f"its format is {value.get('format')!r}, this version reads {FORMAT}")

        def entries(tables: dict[str, Any]) -> dict[str, list[Entry]]:
            return {n: [Entry(e["labels"], Part.from_json(e["part"])) for e in listed] for n, listed in tables.items()}

        try:
            draft = Draft(
                recipe=value["recipe"],
                tables=entries(value["tables"]),
                aside=entries(value["aside"]),
                held_back=value["held_back"],
                stats=value["stats"],
            )
            snapshot = cls.of(draft, value["number"], value["parent"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it lacks a field or has a strange one ({error!r})") from error
        if snapshot.content_id != value.get("content_id"):
            raise ValueError(f"its tables have content id {snapshot.content_id}, it says {value.get('content_id')}")
        return snapshot


def _in_order(tables: Tables) -> dict[str, tuple[Entry, ...]]:
    ordered = {}
    for name in sorted(tables):
        _refuse_places(name, "name of a table")
        entries = tuple(sorted(tables[name], key=lambda e: e.name))
        for entry, after in itertools.pairwise(entries):
            if entry.name == after.name:
                raise ValueError(f"table {name!r} has two parts with the labels {entry.labels}; give each its own")
        for entry in entries:
            _refuse_places(entry.labels, f"labels of table {name!r}")
            if wrong := [v for v in entry.labels.values() if type(v) not in (str, int)]:
                raise ValueError(f"table {name!r} has the label {wrong[0]!r}; wanted a plain str or int")
        ordered[name] = entries
    return ordered


def _content(tables: Tables, held_back: Sequence[Any]) -> str:
    by_table = {f"table {n}": merkle({e.name: e.part.content_id for e in entries}) for n, entries in tables.items()}
    return merkle(
        {**by_table, "held back": merkle({json.dumps(i): canonical_json(x).decode() for i, x in enumerate(held_back)})}
    )


def _refuse_places(value: Any, where: str) -> None:
    if isinstance(value, str):
        if value.startswith("/") or "://" in value:
            raise ValueError(
                f"{where} holds the place {value!r}; a pile can be moved, so a snapshot names no path and no URL: "
                f"leave it out, or name the thing by its content"
            )
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_places(key, where)
            _refuse_places(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _refuse_places(item, f"{where}[{i}]")
