"""What one task made, out of what, and what it counted; stored under the task's key."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from skycairn.pile.content import canonical_json

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SUFFIX = re.compile(r"\.[a-z0-9]{1,16}")


@dataclass(frozen=True)
class Part:
    """One immutable file of a pile, named by its own bytes."""

    sha256: str
    suffix: str
    "with its dot: .parquet, .h5, .json, .safetensors"
    n_bytes: int
    n_rows: int
    "0 for a file that is not a table"
    content_id: str
    "of the rows; of the bytes for a file that is not a table"

    def __post_init__(self) -> None:
        for name in ("sha256", "content_id"):
            check_sha256(getattr(self, name), f"{name} of a part")
        if type(self.suffix) is not str or not _SUFFIX.fullmatch(self.suffix):
            raise ValueError(f"suffix of a part is {self.suffix!r}; wanted a dot, then lower-case letters and digits")
        for name in ("n_bytes", "n_rows"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} of a part is {value!r}; wanted an integer, 0 or more")

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: getattr(self, name) for name in _PART_FIELDS}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """From `to_json`; ValueError where a field is absent, strange or of another form."""
        return cls(**_exactly(value, _PART_FIELDS, "a part"))


_PART_FIELDS = ("sha256", "suffix", "n_bytes", "n_rows", "content_id")
_RECEIPT_FIELDS = ("key", "step", "label", "settings", "inputs", "outputs", "counts", "notes")


@dataclass(frozen=True)
class Receipt:
    """What one task made."""

    key: str
    "see `task_key`"
    step: str
    label: str
    "for people: which survey, which cell"
    settings: dict[str, Any]
    inputs: dict[str, str]
    "content ids (or SHA-256 of archive files) by name"
    outputs: dict[str, Part]
    counts: dict[str, int]
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_sha256(self.key, "key of a receipt")
        for name, count in self.counts.items():
            if type(count) is not int:
                raise ValueError(f"receipt {self.step} {self.label}: count {name!r} is {count!r}; wanted a plain int")
        canonical_json(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        value = {name: getattr(self, name) for name in _RECEIPT_FIELDS}
        return {**value, "outputs": {name: part.to_json() for name, part in self.outputs.items()}}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """From `to_json`; ValueError where a field is absent, strange or of another form."""
        fields = _exactly(value, _RECEIPT_FIELDS, "a receipt")
        for name in ("settings", "inputs", "outputs", "counts", "notes"):
            if not isinstance(fields[name], dict):
                raise ValueError(f"{name} of a receipt is {fields[name]!r}; wanted an object")
        outputs = {name: Part.from_json(part) for name, part in fields["outputs"].items()}
        return cls(**{**fields, "outputs": outputs})


def task_key(step: str, version: int | str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """SHA-256 of what decides a task's outputs: the step, its version, the settings it uses, the content of its inputs.

    Settings are plain JSON values; 1 and 1.0 are two settings; NaN is refused.
    """
    text = canonical_json([step, version, dict(settings), dict(inputs)])
    return hashlib.sha256(b"skycairn task 1 " + text).hexdigest()


def check_sha256(value: Any, what: str) -> None:
    """ValueError unless the value is a SHA-256 as 64 lower-case hexadecimal digits."""
    if type(value) is not str or not _SHA256.fullmatch(value):
        raise ValueError(f"{what} is {value!r}; wanted 64 lower-case hexadecimal digits")


def _exactly(value: Any, fields: tuple[str, ...], what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(fields):
        found = sorted(value) if isinstance(value, dict) else value
        raise ValueError(f"{what} has {found}; wanted exactly {', '.join(sorted(fields))}")
    return value
