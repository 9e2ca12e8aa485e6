"""Parts of the page about pairs of surveys: overview, separations, chance rates, offsets, scores"""

from __future__ import annotations

from math import isfinite

import numpy as np

from skycairn.report.chart import Axis, Plot, intervals, number
from skycairn.report.findings import worst_chance
from skycairn.report.gather import Numbers, Pair
from skycairn.report.intervals import garwood, wilson
from skycairn.report.markup import Safe, figure, legend, paragraph, section, table
from skycairn.report.offsets import FEWEST, LEAST, WORTH_MAS, CellOffset, mean_of, notable
from skycairn.report.rayleigh import MEDIAN, background_counts
from skycairn.report.scores import MAGNITUDES, POSTERIOR_EDGES, Scores, class_names
from skycairn.report.separations import LEAST_MAS, SIGMA_EDGES, Separations
from skycairn.report.skychart import Geometry, arrow_map

WIDE_SIGMA = 0.25
"""Width of a drawn bin of the normalised separation."""
MOST_SIGMA = 6.0
MOST_CROSSES = 250
"""Cells of one pair whose offsets are drawn; those of most pairs."""


def percent(share: float) -> str:
    """A share in percent, to three digits."""
    return "not known" if not isfinite(share) else f"{number(100 * share)} %"


def between(k: int, n: int) -> str:
    """A share with its 95 percent interval, in percent."""
    if not n:
        return "none"
    low, high = wilson(k, n)
    return f"{100 * k / n:.2f} % ({100 * low:.2f} to {100 * high:.2f})"


def overview(n: Numbers) -> str:
    """A row a pair: how many pairs, how near, how trustworthy."""
    rows = []
    for (a, b), s in n.separations.items():
        c = n.chance.get((a, b))
        chance = [percent(c.rate(of_a)[0]) if c else "not known" for of_a in (True, False)]
        rows.append(
            [
                Safe(f'<a href="#{a}-{b}">{a} and {b}</a>'),
                f"{n.radii[a, b]:g}",
                *(s.n_candidates, s.n_mutual, s.n_accepted, s.n_conflicts),
                _median(s),
                _scale(s),
                *chance,
            ]
        )
    head = ["pair", "radius, arcsec", "candidates", "mutual", "accepted", "conflicts", "median separation, mas"]
    head += ["separation / errors", "chance, first", "chance, second"]
    return section(
        "pairs",
        "Pairs of surveys",
        paragraph(
            "Candidates are all pairs within the radius; mutual ones are edges: nearest on both sides, or what the "
            "recipe puts in place of that (ids, posteriors); accepted ones are of one object; a conflict is a "
            "mutual pair that grouping refused. Separations are those of closest approach, motion minded. Chance: "
            "the share of the first (second) survey's sources that would find an unrelated source of the other "
            "within the radius."
        ),
        table(head, rows, "This pile holds fewer than two surveys: there is nothing to match."),
    )


def _scale(s: Separations) -> str:
    if not s.n_measured:
        return f"none to tell ({s.n_free:,} on tracks)" if s.n_free else "no errors"
    scale, error = s.error_scale()
    return f"{number(scale)} +- {number(error, 1)}" if s.n_measured >= FEWEST else f"too few ({s.n_measured})"


def _median(s: Separations) -> str:
    if not s.n_accepted:
        return "none"
    median = s.median_mas()
    return number(median) if isfinite(median) else f"< {LEAST_MAS}"


# -- separations


def separations(n: Numbers) -> str:
    """Histograms of every pair, with what errors and chance expect."""
    drawn = [_histogram(n, p) + _normalised(n, p) for p in n.pairs]
    return section(
        "separations",
        "Separations",
        paragraph(
            "Rayleigh form: of pairs whose two positions have errors, what these errors alone make of the "
            "separations, mixed over the pairs and cut at the radius. A pair's sigma is the root of the mean of "
            "both axes' summed variances; where errors are elliptic the true form is Hoyt's, and the normalised "
            "separation, in which each axis is divided by its own error, is the fairer test. Rows of the Legacy "
            "Survey that carry Gaia's own position are no test of it and are left out of the form, and so are stars "
            "that move by more than a fifth of a sigma in the years of which the other survey does not say when it "
            "looked. Where errors are not known the dashed form has the measured median: a fit for the eye, no "
            "expectation. Chance: evenly spread pairs at the density found in shifted catalogues; it is that of "
            "candidates, of which mutual and accepted pairs hold fewer. Bars are 68 percent Poisson intervals "
            "(Garwood)."
        ),
        f'<div class="grid-of">{"".join(drawn)}</div>' if drawn else paragraph("There is no pair of surveys.", "dim"),
    )


def _histogram(n: Numbers, pair: Pair) -> str:
    s, (a, b) = n.separations[pair], pair
    title = f"{a} and {b}: separations"
    if not s.n_candidates:
        return figure(title, "No source of one lies within the radius of one of the other.", "", anchor=f"{a}-{b}")
    d = s.drawn()
    edges = d["edges"]
    first = max(int(np.argmax(d["candidates"] > 0)) - 1, 0)
    edges, counts = edges[first:], {k: v[first:] for k, v in d.items() if k != "edges"}
    middle = np.sqrt(edges[:-1] * edges[1:])
    top = max(float(counts["candidates"].max()), 1.0)
    expected = counts["expected"] if s.n_measured else _fitted(s, edges)
    top = max(top, 0.0 if expected is None else float(expected.max()))
    plot = Plot(
        Axis("separation at closest approach, mas", float(edges[0]), float(edges[-1]), log=True),
        Axis("pairs per bin", 0.5, max(2.2 * top, 12.0), log=True),
    )
    accepted = counts["accepted"].astype(int).tolist()
    bounds = np.array([garwood(k) for k in accepted])
    words = [f"{number(x)} mas: {k:,} accepted" for x, k in zip(middle, accepted, strict=True)]
    pieces = [
        plot.steps(edges, counts["candidates"], "c0", filled=True),
        plot.steps(edges, counts["mutual"], "c1"),
        plot.bars(middle, np.where(np.array(accepted) > 0, accepted, np.nan), bounds, "c2", words),
    ]
    keys = [("c0", "candidates"), ("ln c1", "mutual"), ("c2 pt", "accepted")]
    under = s.n_candidates - int(s.candidates.sum())
    about = [f"{s.n_accepted:,} accepted"]
    if s.n_tied:
        about.append(f"{s.n_tied:,} of them carry one position, not two")
    if s.n_free:
        about.append(f"{s.n_free:,} have no definite place on their tracks")
    if s.n_measured:
        if s.n_measured < s.n_accepted:
            pieces.append(plot.steps(edges, counts["measured"], "c3"))
            keys.append(("ln c3", f"accepted, two measured positions ({s.n_measured:,})"))
        keys.append(("ln c3 dot", "Rayleigh form of their errors"))
    elif expected is not None:
        keys.append(("ln c3 dash", "Rayleigh form of the measured median (a fit)"))
        about.append("position errors are not known")
    if expected is not None:
        pieces.append(plot.curve(middle, expected, "c3 dot" if s.n_measured else "c3 dash"))
    chance = _chance_counts(n, pair, edges)
    if chance is not None:
        pieces.append(plot.curve(middle, chance, "c4 dash"))
        seen = float(chance.max()) >= plot.y.low
        keys.append(("ln c4 dash", f"chance candidates{'' if seen else ', too few to be seen'}"))
        if s.n_measured >= 0.9 * s.n_accepted > 0:
            pieces.append(plot.curve(middle, counts["expected"] + chance, "c4"))
            keys.append(("ln c4", "form and chance together"))
    if under:
        about.append(f"{under:,} candidates are nearer than {LEAST_MAS} mas")
    head = ["from, mas", "to, mas", "candidates", "mutual", "accepted", "Rayleigh form", "chance"]
    rows = [
        [
            *(number(edges[i], 4), number(edges[i + 1], 4)),
            *(int(counts[k][i]) for k in ("candidates", "mutual", "accepted")),
            "not known" if expected is None else number(float(expected[i])),
            "not known" if chance is None else number(float(chance[i])),
        ]
        for i in range(len(middle))
    ]
    svg = plot.svg(title, f"Histogram on logarithmic axes. {'; '.join(about)}.", *pieces)
    return figure(title, "; ".join(about), svg, legend(*keys), table(head, rows), f"{a}-{b}")


def _fitted(s: Separations, edges: np.ndarray) -> np.ndarray | None:
    """A Rayleigh distribution of the measured median, in bins."""
    median = s.median_mas()
    if not isfinite(median):
        return None
    survival = np.exp(-((edges / (median / MEDIAN)) ** 2) / 2)
    return np.asarray(s.n_accepted * -np.diff(survival))


def _chance_counts(n: Numbers, pair: Pair, edges: np.ndarray) -> np.ndarray | None:
    c = n.chance.get(pair)
    if c is None or not isfinite(c.pairs_per_source):
        return None
    trials = sum(n.sky.looked.get(pair, {}).values())
    return np.asarray(background_counts(trials, edges, 1000 * n.radii[pair], c.pairs_per_source))


def _normalised(n: Numbers, pair: Pair) -> str:
    s, (a, b) = n.separations[pair], pair
    total = int(s.normalised.sum()) + s.beyond
    if total < FEWEST:
        return ""
    step = round(WIDE_SIGMA / (SIGMA_EDGES[1] - SIGMA_EDGES[0]))
    last = round(MOST_SIGMA / WIDE_SIGMA)
    counts = s.normalised.reshape(-1, step).sum(axis=1)[:last]
    edges = WIDE_SIGMA * np.arange(last + 1)
    expected = total * -np.diff(np.exp(-(edges**2) / 2))
    middle = (edges[1:] + edges[:-1]) / 2
    bounds = np.array([garwood(int(k)) for k in counts])
    scale, error = s.error_scale()
    title = f"{a} and {b}: separation over its error"
    beyond = total - int(counts.sum())
    about = (
        f"median {number(scale)} +- {number(error, 1)} times Rayleigh's; {beyond:,} of {total:,} beyond {MOST_SIGMA:g}"
    )
    plot = Plot(
        Axis("normalised separation, sigmas", 0.0, MOST_SIGMA),
        Axis("pairs per bin", 0.0, 1.1 * max(float(bounds.max()), float(expected.max()))),
    )
    words = [
        f"{x:.2f} sigmas: {int(k):,} pairs, {e:.1f} expected" for x, k, e in zip(middle, counts, expected, strict=True)
    ]
    svg = plot.svg(
        title,
        about,
        plot.steps(edges, expected, "c0", filled=True),
        plot.bars(middle, counts, bounds, "c2", words),
    )
    rows = [[f"{x:.3f}", int(k), number(float(e))] for x, k, e in zip(middle, counts, expected, strict=True)]
    return figure(
        title,
        about,
        svg,
        legend(("c0", "Rayleigh, sigma 1"), ("c2 pt", "accepted, two measured positions")),
        table(["middle, sigmas", "pairs", "Rayleigh"], rows),
    )


# -- chance


def chance(n: Numbers) -> str:
    """Chance rates of ordered pairs, from shifted catalogues."""
    rows, lines = [], []
    for (a, b), c in n.chance.items():
        looked = sum(n.sky.looked.get((a, b), {}).values())
        at_most = looked * c.mutual / c.n_a if c.n_a else float("nan")
        for of_a, one, other in ((True, a, b), (False, b, a)):
            k, trials = (c.hits_a, c.n_a) if of_a else (c.hits_b, c.n_b)
            value, low, high = c.rate(of_a)
            told = f"{k:,} of {trials:,}"
            lines.append((f"{one} in {other}", 100 * value, 100 * low, 100 * high, f"{one} in {other}: {told}"))
            interval = f"{number(100 * low)} to {number(100 * high)}" if trials else "not measured"
            spurious = number(at_most) if of_a and isfinite(at_most) else "not known" if of_a else ""
            rows.append([f"{one} in {other}", k, trials, percent(value), interval, spurious, c.n_cells])
    known = [x for x in lines if isfinite(x[1])]
    parts = [
        paragraph(
            f"One survey is moved by {_shifts(n)} in eight directions and matched again with the same code. What it "
            "then finds within the radius is unrelated. Only sources count whose moved place both surveys looked at "
            "and surround with sources, and round which the pile read everything. Intervals are Wilson's, of 95 "
            "percent, as if trials were independent. The chance pairs among the mutual ones are an upper limit: "
            "most sources have their true counterpart nearer than a chance one."
        )
    ]
    if known:
        worst, whose = worst_chance(n)
        low = max(1e-4, min((x[2] if x[2] > 0 else x[3] / 10) for x in known) / 1.5)
        axis = Axis("chance within the radius, %", low, 1.5 * max(x[3] for x in known), log=True)
        title = "Chance rates: sources of one in another"
        about = f"highest {percent(worst)}, {whose}"
        head = ["of, in", "found", "trials", "rate", "95 %, in %", "chance pairs among the mutual, at most", "cells"]
        drawn = intervals(title, about, axis, lines)
        parts.append(figure(title, about, drawn, legend(("c1 pt", "rate; bars: 95 percent")), table(head, rows)))
    else:
        parts.append(
            paragraph("No chance rate could be measured: no shifted source lay where two surveys looked.", "dim")
        )
    parts += [paragraph(f"{a} and {b}: {why}", "bad") for (a, b), why in n.no_chance.items()]
    return section("chance", "Chance rates", *parts)


def _shifts(n: Numbers) -> str:
    shifts = sorted({c.shift_arcsec for c in n.chance.values()})
    return " or ".join(f"{s:g} arcsec" for s in shifts) or "more than the radius"


def ids(n: Numbers) -> str:
    """Rows that name a row of another survey by its id; empty where no row does."""
    named = {p: counts for p, counts in n.linked.items() if counts[0]}
    if not named and not n.id_faults:
        return ""
    pairs = [[f"{a} and {b}", *counts, counts[0] - counts[1]] for (a, b), counts in named.items()]
    faults = [[f"{a} names {b}", why, count] for (a, b, why), count in sorted(n.id_faults.items())]
    return section(
        "ids",
        "Ids between surveys",
        paragraph(
            "Rows that name a row of another survey are taken first, where the positions bear them out. Far: the "
            "named row lies beyond the radius; absent: it was dropped, lies beyond 600 arcsec, or is nowhere; "
            "shared: another row that names it is nearer; refused: grouping would not have it."
        ),
        table(["pair", "candidates named", "accepted", "not accepted"], pairs, "No candidate is named by an id."),
        "<h3>Ids that led to no match</h3>",
        table(["of", "why", "rows"], faults, "Every id led to a match."),
    )


# -- offsets


def offsets(n: Numbers, geometry: Geometry) -> str:
    """Astrometric offsets by cell."""
    parts = [
        paragraph(
            f"Per cell of order {n.offset_order} the median of (second survey less first) over accepted pairs of two "
            "measured positions, at closest approach: east is RA times cos(Dec). Errors of medians are 1.25 times "
            "the scatter (from the median absolute deviation) over the root of the number, and no less than 0.1 "
            f"mas. Cells of fewer than {LEAST} pairs are left out; those of fewer than {FEWEST} are faint and not "
            "judged. Pairs are left out that move against each other by more than a fifth of a sigma, or by "
            f"{WORTH_MAS:g} mas, in the years of which a survey does not say when it looked: their closest approach "
            "would hide an offset along their motion."
        )
    ]
    if free := [f"{a} and {b} {k:,}" for (a, b), k in n.offsets_free.items() if k]:
        parts.append(paragraph(f"Accepted pairs so left out: {', '.join(free)}."))
    rows, drawn = [], []
    for (a, b), found in n.offsets.items():
        if not found:
            continue
        drawn += [_crosses(n, (a, b), found), _arrows((a, b), found, geometry)]
        judged = [x for x in found if x.n >= FEWEST]
        sure = {x.cell for x, _ in notable(found)}
        for x in sorted(judged, key=lambda x: -x.chi_square)[:3]:
            rows.append(
                [
                    *(f"{a} and {b}", str(x.cell), x.n, f"{x.east:+.2f} +- {x.east_error:.2f}"),
                    *(f"{x.north:+.2f} +- {x.north_error:.2f}", f"{x.sigmas(len(judged)):.1f}"),
                    "yes" if x.cell in sure else "no",
                ]
            )
    parts.append(f'<div class="grid-of">{"".join(drawn)}</div>' if drawn else "")
    if rows:
        parts.append("<h3>The three most significant cells of each pair</h3>")
        head = ["pair", "cell", "pairs", "east, mas", "north, mas", "sigmas among all cells", "warned of"]
        parts.append(table(head, rows))
    if not drawn:
        words = f"No cell has {LEAST} accepted pairs of two measured positions at known times: no offset can be told."
        parts.append(paragraph(words, "dim"))
    return section("offsets", "Astrometric offsets", *parts)


def _crosses(n: Numbers, pair: Pair, found: list[CellOffset]) -> str:
    shown = sorted(sorted(found, key=lambda x: -x.n)[:MOST_CROSSES], key=lambda x: x.cell)
    judged = [x for x in shown if x.n >= FEWEST] or shown
    reach = 1.15 * max(max(abs(x.east) + x.east_error, abs(x.north) + x.north_error) for x in judged)
    reach = max(reach, 0.5)
    plot = Plot(Axis("east, mas", -reach, reach), Axis("north, mas", -reach, reach), height=300.0)
    title = f"{pair[1]} less {pair[0]}: a cross a cell"
    beyond = sum(abs(x.east) > reach or abs(x.north) > reach for x in shown)
    mean = mean_of(judged)
    about = f"{len(shown)} of {len(found)} cells; mean east {mean.east:+.2f} +- {mean.east_error:.2f}, "
    about += f"north {mean.north:+.2f} +- {mean.north_error:.2f} mas"
    about += f"; {beyond} small cells lie beyond the frame, on its border" if beyond else ""
    groups = []
    for few in (True, False):
        some = [x for x in shown if (x.n < FEWEST) == few]
        words = [(x.east, x.north, x.east_error, x.north_error, _told(x)) for x in some]
        groups.append(plot.crosses(words, "c0" if few else "c1"))
    rows = [
        [str(x.cell), x.n, f"{x.east:+.2f}", f"{x.east_error:.2f}", f"{x.north:+.2f}", f"{x.north_error:.2f}"]
        for x in shown
    ]
    more = table(["cell", "pairs", "east, mas", "error", "north, mas", "error"], rows)
    keys = legend(("c1 pt", "cell, one-sigma errors"), ("c0 pt", f"fewer than {FEWEST} pairs"))
    return figure(title, about, plot.svg(title, about, *groups), keys, more, f"offset-{pair[0]}-{pair[1]}")


def _told(x: CellOffset) -> str:
    east, north = f"{x.east:+.2f} +- {x.east_error:.2f}", f"{x.north:+.2f} +- {x.north_error:.2f}"
    return f"cell {x.cell}: {x.n:,} pairs, east {east}, north {north} mas"


def _arrows(pair: Pair, found: list[CellOffset], geometry: Geometry) -> str:
    judged = [x for x in found if x.n >= FEWEST]
    sizes = [x.size for x in judged or found]
    blur = [np.hypot(x.east_error, x.north_error) for x in judged or found]
    unit = max(float(np.percentile(sizes, 75)), float(np.median(blur)))
    unit = float(f"{unit:.1g}")
    title = f"{pair[1]} less {pair[0]}: where"
    about = "from the dot along the line; the bar gives the length"
    arrows = {x.cell: (x.east, x.north, _told(x), "c0" if x.n < FEWEST else "c2") for x in found}
    return figure(title, about, arrow_map(title, about, geometry, arrows, unit))


# -- truth


def scores(n: Numbers) -> str:
    """Completeness and purity where the truth is known."""
    if not n.scores:
        why = "The truth of this sky is not known: completeness and purity cannot be told. "
        why += "For a pile of the mock sky name its folder: --truth SKY."
        return section("truth", "Completeness and purity", paragraph(why, "dim"))
    names = class_names()
    first_mag = next(i for i, name in enumerate(names) if name.startswith("r "))
    parts = [
        paragraph(
            "Mock-sky scores: they prove the matching on a sky made by us, and say nothing of the real sky's "
            "difficulty. Pure: both sources of an accepted pair show a common true thing. Complete: of a thing that "
            "both surveys were given (a valid source in a cell that was matched), some source of one is accepted "
            "with some source of the other. By true magnitude in r; intervals are Wilson's, of 95 percent."
        )
    ]
    rows, kinds = [], []
    for (a, b), s in n.scores.items():
        pure, complete = s.purity(), s.completeness()
        rows.append([f"{a} and {b}", between(*pure[0]), pure[0][1], between(*complete[0]), complete[0][1]])
        for i in range(1, first_mag):
            told = [f"{between(*x[i])} of {x[i][1]:,}" if x[i][1] else "none" for x in (pure, complete)]
            kinds.append([f"{a} and {b}", names[i], *told])
    parts.append(table(["pair", "purity", "pairs", "completeness", "things"], rows))
    by_kind = table(["pair", "of", "purity", "completeness"], kinds)
    parts.append(f"<details><summary>By kind</summary>{by_kind}</details>")
    drawn = [_score(s, names, first_mag) for s in n.scores.values()]
    parts.append(f'<div class="grid-of">{"".join(drawn)}</div>')
    return section("truth", "Completeness and purity: mock-sky scores", *parts)


def _score(s: Scores, names: list[str], first: int) -> str:
    title = f"{s.a} and {s.b}: by true magnitude"
    pure, complete = s.purity()[first:], s.completeness()[first:]
    both = [x for x in (*pure, *complete) if x[1]]
    if not both:
        return figure(title, "No thing that both surveys were given.", "")
    least = min(wilson(*x)[0] for x in [x for x in both if x[1] >= FEWEST] or both)
    low = max(0.0, np.floor(20 * least) / 20)
    edges = np.array([MAGNITUDES[1] - 1, *MAGNITUDES[1:-1], MAGNITUDES[-2] + 1])
    label = "true magnitude in r; the first and last bin are open"
    plot = Plot(Axis(label, float(edges[0]), float(edges[-1])), Axis("share", low, 1.0))
    pieces = []
    for found, style, shift, what in ((pure, "c1", 0.4, "pure"), (complete, "c2", 0.6, "complete")):
        value = np.array([k / m if m else np.nan for k, m in found])
        bounds = np.array([wilson(*x) for x in found])
        words = [f"{names[first + i]}: {what} {between(*x)}, {x[0]:,} of {x[1]:,}" for i, x in enumerate(found)]
        pieces.append(plot.bars(edges[:-1] + shift * np.diff(edges), value, bounds, style, words))
    rows = [
        [name, *(f"{between(*x[i])}, {x[i][0]:,} of {x[i][1]:,}" for x in (pure, complete))]
        for i, name in enumerate(names[first:])
    ]
    svg = plot.svg(title, "Share of accepted pairs that are pure, and of things that are complete.", *pieces)
    return figure(
        title,
        "",
        svg,
        legend(("c1 pt", "purity"), ("c2 pt", "completeness")),
        table(["bin", "purity", "completeness"], rows),
    )


def calibration(n: Numbers) -> str:
    """Whether posteriors are what they say; empty where there is no truth or no posterior."""
    drawn = []
    for (a, b), s in n.scores.items():
        if not s.n_posterior.sum():
            continue
        title = f"{a} and {b}: reliability of posteriors"
        k, m = s.n_true.tolist(), s.n_posterior.tolist()
        mean = np.where(s.n_posterior > 0, s.sum_posterior / np.maximum(s.n_posterior, 1), np.nan)
        value = np.array([x / y if y else np.nan for x, y in zip(k, m, strict=True)])
        bounds = np.array([wilson(x, y) for x, y in zip(k, m, strict=True)])
        plot = Plot(Axis("mean posterior of the bin", 0.0, 1.0), Axis("share that is true", 0.0, 1.0), height=300.0)
        words = [f"posterior {p:.3f}: {between(x, y)}, {x:,} of {y:,}" for p, x, y in zip(mean, k, m, strict=True)]
        at = np.where(np.isnan(mean), 0.0, mean)
        about = f"{int(s.n_posterior.sum()):,} candidates"
        svg = plot.svg(title, about, plot.curve([0, 1], [0, 1], "c0 dash"), plot.bars(at, value, bounds, "c1", words))
        rows = [
            [f"{lo:.1f} to {hi:.1f}", y, x, f"{p:.4f}" if y else "none", between(x, y)]
            for lo, hi, p, x, y in zip(POSTERIOR_EDGES[:-1], POSTERIOR_EDGES[1:], mean, k, m, strict=True)
        ]
        more = table(["posterior", "candidates", "true", "mean posterior", "share true"], rows)
        drawn.append(
            figure(
                title, about, svg, legend(("c1 pt", "measured; bars: 95 percent"), ("ln c0 dash", "calibrated")), more
            )
        )
    if not drawn:
        return ""
    return section(
        "calibration",
        "Calibration of posteriors: mock-sky scores",
        paragraph("Of candidate pairs with a posterior, the share that shows a common true thing, by posterior."),
        f'<div class="grid-of">{"".join(drawn)}</div>',
    )
