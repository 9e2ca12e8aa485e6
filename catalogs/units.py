"""Whether columns are in the units that are wanted; a file that says another unit is refused, never taken as it is."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from astropy import units as u

from skycairn.catalogs.survey import Column, WrongUnit

SPELLINGS = {"'": "", '"': "", "nanomaggies": "nanomaggy", "degrees": "deg", "seconds": "s", "days": "d", "years": "yr"}


def refuse_wrong_units(found: Mapping[str, str], wanted: Mapping[str, str], where: str, reason: str) -> None:
    """WrongUnit at the first column whose unit in the file is another one; names in any case.

    A file that says nothing of a column's unit is believed: some archives write none.
    """
    lower = {name.lower(): unit for name, unit in found.items()}
    for name, unit in wanted.items():
        own = (lower.get(name) or "").strip()
        if own and unit and not _same(own, unit):
            raise WrongUnit(f"{where}: column {name.upper()!r} is in {own!r}, wanted {unit!r}: {reason}")


def units_of(columns: Iterable[Column]) -> dict[str, str]:
    """The unit of each column that has one, by every name that it may have."""
    return {name: c.unit for c in columns if c.unit for name in (c.name, *c.aliases)}


def _same(one: str, other: str) -> bool:
    return one == other or bool(_unit(one) == _unit(other))


def is_unit(text: str) -> bool:
    """Whether the text is a unit that can be compared with others."""
    return not isinstance(_unit(text), str)


@functools.cache
def _unit(text: str) -> Any:
    """The unit, or the text where it is none."""
    for spelt, plain in SPELLINGS.items():
        text = text.replace(spelt, plain)
    try:
        # a power of brackets is what the Legacy Surveys write and no standard has: 1/(mas/yr)^2
        return u.Unit(text.removeprefix("1/(").removesuffix(")^2")) ** -2 if text.startswith("1/(") else u.Unit(text)
    except (ValueError, TypeError):
        return text
