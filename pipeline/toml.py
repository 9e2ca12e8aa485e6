"""Settings as TOML, which the standard library reads and does not write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def toml_of(settings: Mapping[str, Any], table: str = "") -> str:
    """Plain values (texts, numbers, booleans, lists of them, tables of all) as TOML; TypeError for any other."""
    lines = [f"{key_of(k)} = {_value(v)}" for k, v in settings.items() if not isinstance(v, Mapping)]
    if table and lines:
        lines.insert(0, f"[{table}]")
    text = "\n".join(lines) + "\n" if lines else ""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            text += ("\n" if text else "") + toml_of(value, f"{table}.{key_of(key)}" if table else key_of(key))
    return text


def key_of(name: str) -> str:
    """A key as TOML writes it."""
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else json.dumps(name)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_value(v) for v in value)}]"
    if not isinstance(value, str | bool | int | float):
        raise TypeError(f"{value!r}: TOML has no such value")
    return json.dumps(value, allow_nan=False)
