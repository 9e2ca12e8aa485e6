"""From rows to members of objects: what was dropped at each step and why, and whether the sums close"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """One step of a survey's cut-flow: so many in, so many kept, the rest lost by reason."""

    name: str
    into: int
    kept: int
    lost: Mapping[str, int]
    needs_all: bool = False
    "the sum cannot close where something is held back"

    @property
    def missing(self) -> int:
        """Rows unaccounted for; 0 where the sum closes."""
        return self.into - self.kept - sum(self.lost.values())


def cut_flow(counts: Mapping[str, int], match_on: str = "valid") -> list[Step]:
    """The steps of one survey, from the counts that a snapshot keeps of the build that made it."""

    def of(prefix: str) -> dict[str, int]:
        found = {k.removeprefix(prefix): n for k, n in counts.items() if k.startswith(prefix) and n}
        return dict(sorted(found.items(), key=lambda x: (-x[1], x[0])))

    dropped = {k: n for k, n in of("dropped:").items() if k != "duplicate"}
    again = {"repeats": counts.get("repeats", 0), "duplicate": counts.get("dropped:duplicate", 0)}
    outside = counts.get("anchored outside region", 0)
    matched = "valid" if match_on == "valid" else "selected"
    return [
        Step("rows read", counts.get("rows", 0), counts.get("kept", 0), dropped),
        Step("one row a thing", counts.get("kept", 0), counts.get("valid", 0), {k: n for k, n in again.items() if n}),
        Step("selected by the cuts", counts.get("valid", 0), counts.get("selected", 0), of("not selected:"), True),
        Step(
            f"{matched} sources in objects",
            counts.get(matched, 0),
            counts.get("members", 0),
            {"object's anchor outside the region": outside} if outside else {},
            True,
        ),
    ]


def cut_flows(report: Mapping[str, Any], match_on: str = "valid") -> dict[str, list[Step]]:
    """By survey; empty where the snapshot was committed without the build's counts."""
    return {name: cut_flow(counts, match_on) for name, counts in report.get("surveys", {}).items()}
