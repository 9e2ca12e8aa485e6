"""The page: one HTML file that needs nothing else, about a pile's match and what went into it"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from skycairn.report import pairsections
from skycairn.report.blends import MAG_EDGES, MOST_SIZE
from skycairn.report.chart import Axis, Plot, number
from skycairn.report.findings import warnings, worst_chance
from skycairn.report.gather import Numbers, n_pairs
from skycairn.report.markup import STYLE, bar, figure, legend, paragraph, scale_legend, section, table, tiles
from skycairn.report.pairsections import percent
from skycairn.report.skychart import Geometry, cell_map, lay_out, locator

MOST_REASONS = 200
"""Held-back and lost files that are listed."""
MAGS_PER_BIN = 2
DRAWN_MAG = 2.0


def page(n: Numbers) -> str:
    """The whole page; a pure function of the numbers."""
    geometry = lay_out(n.sky.order, np.array(sorted(n.sky.objects), np.int64))
    parts = [
        _summary(n),
        pairsections.overview(n),
        pairsections.separations(n),
        pairsections.chance(n),
        pairsections.ids(n),
        pairsections.scores(n),
        pairsections.calibration(n),
        pairsections.offsets(n, geometry),
        _sky(n, geometry),
        _cut_flow(n),
        _held_back(n),
        _blends(n),
        _about(n),
    ]
    title = f"Match report: {n.snapshot.recipe.get('name', 'a pile')}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{geometry.defs()}<main>"
        f"<h1>{escape(title)}</h1>{''.join(p for p in parts if p)}</main></body></html>\n"
    )


def _nav(n: Numbers) -> str:
    links = [
        *(("pairs", "pairs"), ("separations", "separations"), ("chance", "chance rates"), ("truth", "completeness")),
        *([("calibration", "calibration")] if any(s.n_posterior.sum() for s in n.scores.values()) else []),
        *([("ids", "ids")] if n.id_faults or any(x[0] for x in n.linked.values()) else []),
        *(("offsets", "offsets"), ("sky", "sky"), ("cutflow", "cut-flow"), ("held", "held back"), ("blends", "blends")),
        ("about", "how it was made"),
    ]
    return "<nav>" + "".join(f'<a href="#{a}">{escape(words)}</a>' for a, words in links) + "</nav>"


def _summary(n: Numbers) -> str:
    worst, whose = worst_chance(n)
    held = len(n.held_cells)
    s = n.snapshot
    told = tiles(
        [
            (f"{n.n_objects:,}", "objects", f"in {n.n_cells:,} work cells matched"),
            (f"{n_pairs(n):,}", "pairs accepted", f"of {len(n.pairs)} pairs of surveys"),
            (percent(worst), "worst chance rate", whose),
            (f"{held:,}", "work cells held back", "all were matched" if not held else "see below"),
            *((f"{k:,}", f"sources of {name} in objects", n.releases[name]) for name, k in n.members.items()),
        ]
    )
    found = warnings(n)
    if found:
        items = "".join(f"<li>{escape(w)}</li>" for w in found)
        said = f'<div class="warnings"><h3>{len(found)} to look at</h3><ul>{items}</ul></div>'
    else:
        said = "No warning: sums close, nothing is held back, offsets and errors are as they should be."
        said = f'<p class="sound">{said}</p>'
    if not n.n_objects:
        said = '<div class="warnings"><h3>This pile holds no object.</h3></div>' + said
    elif not n.pairs:
        said += paragraph("It holds one survey alone: there is nothing to match it with.")
    notes = "".join(paragraph(x, "dim") for x in n.notes)
    head = f"Snapshot {s.number}, content {s.content_id[:16]}. Surveys: "
    head += (", ".join(f"{a} {r}" for a, r in n.releases.items()) or "none") + "."
    return paragraph(head, "dim") + told + said + notes + _nav(n)


# -- sky


def _sky(n: Numbers, geometry: Geometry) -> str:
    parts = [
        paragraph(
            f"Cells are HEALPix (NESTED) of order {n.sky.order}, {_cell_size(n.sky.order)} wide, those that hold "
            f"objects: {geometry.told}. Hover over a cell for its numbers. Cells at the edge of the region hold "
            "fewer sources."
        )
    ]
    if not geometry.outlines:
        return section("sky", "Sky", paragraph("This pile holds no object: there is no map to draw.", "dim"))
    if len(geometry.patches) > 1:
        rows = [[i + 1, f"{ra:.3f}", f"{dec:+.3f}"] for i, (ra, dec) in enumerate(geometry.patches)]
        more = table(["patch", "RA, deg", "Dec, deg"], rows[:MOST_REASONS])
        title = "Where the patches lie"
        drawn = locator(title, geometry.patches)
        about = "all sky, RA 180 in the middle and growing to the left, north is up"
        parts.append(f'<div class="grid-of">{figure(title, about, drawn, "", more)}</div>')
    parts.append("<h3>Coverage: sources in objects, per square arcminute that the survey looked at</h3>")
    parts.append('<div class="grid-of">' + "".join(_coverage(n, geometry, s) for s in n.surveys) + "</div>")
    if n.pairs:
        parts.append("<h3>Unmatched: sources of one survey, where another looked, whose object has none of it</h3>")
        parts.append(_unmatched_table(n))
        legend_of = scale_legend("0 %", "100 %", "none, or not looked at")
        for name in n.surveys:
            maps = "".join(_unmatched(n, geometry, name, o) for o in n.surveys if o != name)
            is_open = " open" if name == n.surveys[0] else ""
            parts.append(
                f"<details{is_open}><summary>Maps of {escape(name)}</summary>{legend_of}"
                f'<div class="grid-of">{maps}</div></details>'
            )
    return section("sky", "Sky", *parts)


def _cell_size(order: int) -> str:
    arcmin = 3517.9 / 2**order
    return f"{arcmin:.3g} arcmin" if arcmin < 60 else f"{arcmin / 60:.3g} deg"


def _coverage(n: Numbers, geometry: Geometry, survey: str) -> str:
    area = (3517.9 / 2**n.sky.order) ** 2
    share, count = n.sky.coverage.get(survey, {}), n.sky.sources[survey]
    density = {c: count[c] / (area * f) for c, f in share.items() if f > 0}
    top = max(density.values(), default=0.0)
    title = f"{survey}: {n.kinds.get(survey, 'footprint not known')}"
    seen = sum(f > 0 for f in share.values())
    about = f"looked at {seen:,} of {len(share):,} cells; at most {number(top)} per square arcminute"

    def say(cell: int) -> str:
        return f"cell {cell}: {count[cell]:,} sources; {share.get(cell, 0):.0%} of the cell looked at"

    drawn = cell_map(title, about, geometry, density, 0.0, top, say)
    return figure(
        title, about, drawn, scale_legend("0", number(top), "not looked at"), _extremes(density, "per sq. arcmin")
    )


def _unmatched_table(n: Numbers) -> str:
    rows = []
    for a in n.surveys:
        row = [a]
        for b in n.surveys:
            if a == b:
                row.append("")
                continue
            looked, lone = (sum(x[a, b].values()) for x in (n.sky.looked, n.sky.unmatched))
            row.append(f"{lone / looked:.1%} of {looked:,}" if looked else "none there")
        rows.append(row)
    return table(["of, without", *n.surveys], rows)


def _unmatched(n: Numbers, geometry: Geometry, of: str, other: str) -> str:
    looked, lone = n.sky.looked[of, other], n.sky.unmatched[of, other]
    share = {c: lone[c] / k for c, k in looked.items() if k}
    title = f"{of} without {other}"
    total = sum(looked.values())
    about = f"{sum(lone.values()):,} of {total:,} unmatched" if total else f"no source of {of} where {other} looked"

    def say(cell: int) -> str:
        return f"cell {cell}: {lone[cell]:,} of {looked[cell]:,} sources of {of} have no {other}"

    return figure(title, about, cell_map(title, about, geometry, share, 0.0, 1.0, say), "", _extremes(share, "share"))


def _extremes(values: dict[int, float], what: str) -> str:
    """A map in numbers: its lowest, middle and highest cells."""
    if not values:
        return paragraph("No cell has a value.", "dim")
    order = sorted(values, key=lambda c: (values[c], c))
    some = order if len(order) <= 12 else [*order[:5], order[len(order) // 2], *order[-5:]]
    words = "" if len(order) <= 12 else "The five lowest cells, the median one, the five highest."
    return paragraph(words) + table(["cell", what], [[str(c), number(values[c])] for c in some])


# -- what went in


def _cut_flow(n: Numbers) -> str:
    if not n.cut_flows:
        return section("cutflow", "Cut-flow", paragraph("This snapshot keeps no counts of its build.", "dim"))
    parts = [
        paragraph(
            "What came in at each step is what stayed plus what was lost by reason; every sum was checked again for "
            "this page. Counts are those of the build that made the snapshot."
        )
    ]
    rows = []
    for name in sorted(n.cut_flows, key=lambda s: (n.surveys.index(s) if s in n.surveys else 99, s)):
        for step in n.cut_flows[name]:
            open_end = step.needs_all and bool(n.held_cells)
            sound = "closes" if not step.missing else "open: something is held back" if open_end else "DOES NOT CLOSE"
            if step.missing and not open_end:
                sound += f", by {step.missing:,}"
            why = "; ".join(f"{reason} {k:,}" for reason, k in step.lost.items()) or "none"
            share = step.kept / step.into if step.into else 0.0
            rows.append([name, step.name, step.into, step.kept, bar(share), sum(step.lost.values()), why, sound])
    parts.append(table(["survey", "step", "in", "kept", "kept, %", "lost", "lost by reason", "sum"], rows))
    return section("cutflow", "Cut-flow", *parts)


def _held_back(n: Numbers) -> str:
    parts = []
    if n.held_cells:
        cells = ", ".join(map(str, n.held_cells[:MOST_REASONS]))
        more = f", and {len(n.held_cells) - MOST_REASONS:,} more" if len(n.held_cells) > MOST_REASONS else ""
        parts.append(paragraph(f"{len(n.held_cells):,} work cells (order 6) are held back: {cells}{more}."))
    else:
        parts.append(paragraph("No work cell is held back."))
    if n.held_why:
        parts.append("<h3>Why, by input</h3>" + _reasons(n.held_why))
    elif n.held_cells:
        parts.append(
            paragraph("The reasons are told by the last build on the machine that made it, which is not this one.")
        )
    parts.append("<h3>Payload files that are lost</h3>")
    parts.append(
        paragraph("Listed by their archive and not there: their values are null, with the status `file absent`.")
        + _reasons(n.lost)
        if n.lost
        else paragraph("None is known of.")
    )
    return section("held", "Held-back inputs", *parts)


def _reasons(found: Mapping[str, str]) -> str:
    rows = sorted(found.items())
    told = table(["input", "why"], rows[:MOST_REASONS])
    return told + (paragraph(f"and {len(rows) - MOST_REASONS:,} more") if len(rows) > MOST_REASONS else "")


def _blends(n: Numbers) -> str:
    b = n.blends
    if not b.n_groups:
        return section("blends", "Blends", paragraph("This snapshot tells of no blend group.", "dim"))
    conflicts = sum(s.n_conflicts for s in n.separations.values())
    parts = [
        paragraph(
            f"A blend group is a set of sources that are candidates of each other by chains. Of {b.n_groups:,} "
            f"groups {b.n_blended:,} ({b.n_blended / b.n_groups:.2%}) hold more than one source of some survey, so "
            f"that which belongs to which is a choice; {conflicts:,} mutual pairs were refused (conflicts). Groups "
            "count whose first source is the anchor of an object of the region."
        )
    ]
    head = ["survey", *(f"{k}{' or more' if k == MOST_SIZE else ''}" for k in range(1, MOST_SIZE + 1))]
    parts.append("<h3>Groups by how many sources of a survey they hold</h3>")
    parts.append(table(head, [[s, *(b.sizes[s][k] for k in range(1, MOST_SIZE + 1))] for s in n.surveys]))
    rows = [[f"{a} and {c}", s.n_conflicts] for (a, c), s in n.separations.items() if s.n_conflicts]
    parts.append("<h3>Conflicts by pair</h3>" + table(["pair", "conflicts"], rows, "No mutual pair was refused."))
    parts.append("<h3>Flux consistency</h3>")
    if not b.n_mags(False) + b.n_mags(True):
        parts.append(paragraph("No object has fluxes of two surveys in one band.", "dim"))
    else:
        parts.append(_magnitudes(n))
    return section("blends", "Blends", *parts)


def _magnitudes(n: Numbers) -> str:
    b = n.blends
    edges = MAG_EDGES[::MAGS_PER_BIN]
    shown = int(np.searchsorted(edges, DRAWN_MAG))
    title = "Largest magnitude difference of two surveys in one band"
    pieces, keys, rows, most = [], [], [], 0.0
    shares = {}
    for blended, words in ((False, "not blended"), (True, "in a blend")):
        total = b.n_mags(blended)
        quantiles = [number(b.mag_quantile(blended, q)) for q in (0.5, 0.9, 0.99)]
        rows.append([words, total, *quantiles])
        if total:
            counts = b.mags[blended].reshape(-1, MAGS_PER_BIN).sum(axis=1)[:shown]
            shares[blended] = counts / total
            most = max(most, float(shares[blended].max()))
    plot = Plot(Axis("difference, mag", 0.0, DRAWN_MAG), Axis("share of objects per bin", 0.0, 1.1 * most or 1.0))
    for blended, share in shares.items():
        pieces.append(plot.steps(edges[: shown + 1], share, "c2" if blended else "c0", filled=not blended))
        keys.append(("ln c2" if blended else "c0", "in a blend" if blended else "not blended"))
    about = "Apertures and models differ between surveys, so that even isolated objects differ"
    more = table(["objects", "number", "median, mag", "90 %", "99 %"], rows)
    return f'<div class="grid-of">{figure(title, about, plot.svg(title, about, *pieces), legend(*keys))}</div>{more}'


def _settings(match: Mapping[str, Any]) -> str:
    pairs = ", ".join(f"{k} {v:g}" for k, v in match.get("pairs", {}).items())
    told = f"radius {match.get('radius_arcsec', 1):g} arcsec" + (f" ({pairs})" if pairs else "")
    told += f"; of {match.get('on', 'valid')} sources; edges by {match.get('policy', 'nearest')}"
    errors = ", ".join(f"{k} {v:g}" for k, v in match.get("errors", {}).items())
    return told + (f"; errors added, arcsec: {errors}" if errors else "")


def _about(n: Numbers) -> str:
    from skycairn.report.chance import DIRECTIONS, MOST_CELLS, MOST_TRIALS
    from skycairn.report.skycounts import MOST_CELLS as MOST_DRAWN

    s = n.snapshot
    sampled = sorted({c.n_cells for c in n.chance.values()})
    rows = [
        ["snapshot", f"{s.number}, content {s.content_id}"],
        ["match", _settings(s.recipe.get("match", {}))],
        ["objects by split", ", ".join(f"{k} {v:,}" for k, v in sorted(n.splits.items())) or "not kept"],
        ["objects by surveys", "; ".join(f"{k} {v:,}" for k, v in sorted(n.strata.items())) or "not kept"],
        ["footprints", ", ".join(f"{k} {v}" for k, v in n.kinds.items()) or "not known"],
        ["cells of maps", f"order {n.sky.order}, at most {MOST_DRAWN}"],
        [
            "sample of chance rates",
            f"{DIRECTIONS} directions; at most {MOST_CELLS} work cells in an order that hangs on their numbers "
            f"alone, or {MOST_TRIALS:,} trials of a pair; used here: {', '.join(map(str, sampled)) or 0} of "
            f"{n.n_cells} cells",
        ],
        ["all else", "every row of every matched work cell, a cell at a time"],
    ]
    text = (
        "The page is a pure function of the snapshot (and of the mock sky's truth); the reasons of what is held back "
    )
    text += "and lost come from the pile's journal. It holds no script and asks for nothing else. Definitions: "
    text += "docs/report.md and docs/contracts.md of skycairn."
    return section("about", "How it was made", paragraph(text), table(["what", "how"], rows))
