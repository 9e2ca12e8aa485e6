"""What a reader should know first: warnings in words, from the numbers of the page"""

from __future__ import annotations

from math import isfinite

from skycairn.report.chart import number
from skycairn.report.gather import Numbers
from skycairn.report.offsets import FEWEST, notable

MOST_CHANCE = 0.05
"""Share of sources with an unrelated one within the radius, above which a warning is given."""
MOST_ERROR_SCALE = 0.1
SURE_SIGMAS = 5.0
MOST_TOLD = 3
"""Cells of one pair that are told one by one."""


def warnings(n: Numbers) -> list[str]:
    """One sentence or two each; most important first."""
    return [*_counts(n), *_held(n), *_offsets(n), *_errors(n), *_chance(n)]


def _counts(n: Numbers) -> list[str]:
    out = []
    for name, steps in n.cut_flows.items():
        for step in steps:
            if step.missing and not (step.needs_all and n.held_cells):
                out.append(
                    f"{name}: {step.name}: {step.into:,} in, {step.kept:,} kept, {sum(step.lost.values()):,} lost by "
                    f"reason: {abs(step.missing):,} {'unaccounted for' if step.missing > 0 else 'too many'}. "
                    "The counts of the build do not close."
                )
    return out


def _held(n: Numbers) -> list[str]:
    if not n.held_cells:
        return []
    why = next(iter(n.held_why.items()), None)
    told = f" First reason: {why[0]}: {why[1]}." if why else ""
    return [f"{len(n.held_cells):,} work cells are held back: no object is made there.{told}"]


def _offsets(n: Numbers) -> list[str]:
    out = []
    for (a, b), cells in n.offsets.items():
        found = notable(cells)
        for x, sigmas in found[:MOST_TOLD]:
            out.append(
                f"{a} and {b}: an offset of {number(x.size)} mas (east {x.east:+.1f}, north {x.north:+.1f}) in cell "
                f"{x.cell} of order {n.offset_order}, from {x.n:,} pairs, at {sigmas:.1f} sigma among all cells."
            )
        if len(found) > MOST_TOLD:
            out.append(f"{a} and {b}: {len(found) - MOST_TOLD} more cells have such offsets; see the table.")
    return out


def _errors(n: Numbers) -> list[str]:
    out = []
    for (a, b), s in n.separations.items():
        scale, error = s.error_scale()
        if (
            s.n_measured >= FEWEST
            and isfinite(scale)
            and abs(scale - 1) > MOST_ERROR_SCALE
            and abs(scale - 1) > SURE_SIGMAS * error
        ):
            small = "small" if scale > 1 else "large"
            out.append(
                f"{a} and {b}: separations are {number(scale)} +- {number(error, 1)} times what the position errors "
                f"say ({s.n_measured:,} pairs): the errors are too {small}, or something else moves the positions."
            )
    return out


def _chance(n: Numbers) -> list[str]:
    out = []
    for (a, b), c in n.chance.items():
        for of_a, one, other in ((True, a, b), (False, b, a)):
            rate = c.rate(of_a)[0]
            if isfinite(rate) and rate > MOST_CHANCE:
                out.append(
                    f"{rate:.1%} of sources of {one} would find an unrelated one of {other} within "
                    f"{n.radii[a, b]:g} arcsec; a smaller radius would do better."
                )
    return out


def worst_chance(n: Numbers) -> tuple[float, str]:
    """The highest chance rate and whose it is; NaN where none was measured."""
    found = [(c.rate(True)[0], f"{a} in {b}") for (a, b), c in n.chance.items()]
    found += [(c.rate(False)[0], f"{b} in {a}") for (a, b), c in n.chance.items()]
    return max((x for x in found if isfinite(x[0])), default=(float("nan"), "no two surveys to measure it of"))
