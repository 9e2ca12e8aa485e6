"""Is the posterior of a match what it says? Held against the mock sky's truth, on the whole `catalogue` tier.

    python benchmarks/match_reliability.py [--sky DIR] [--pile DIR] [--write docs/match_reliability.md]

Builds the mock and the pile (where they are not there yet) and matches the pile's sources once more, with errors for
the surveys whose catalogues tell none. Prints what docs/match_reliability.md holds: for each two surveys, of the
candidates whose posterior lies in a bin, how many are true; and what the policies `nearest` and `posterior` find.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from match_truth import (
    RADIUS_ARCSEC,
    Matched,
    Score,
    Truth,
    build,
    edges_of,
    is_in,
    join,
    links_of,
    read_truth,
    score,
    table,
    whole_objects,
)
from numpy.typing import NDArray
from scipy.stats import beta

from skycairn.match import posterior
from skycairn.match.pairs import Positions, candidate_pairs
from skycairn.match.posterior import FOUND, OUTLIERS, Prior, densities
from skycairn.mocksky import build as mock
from skycairn.pipeline.grouping import Policy, group
from skycairn.pipeline.match import with_error

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]

Shares = dict[tuple[str, str], tuple[float, float]]
"""`found` and `outliers` by pair of surveys."""

ERRORS = {"hsc": 0.03, "desi": 0.03, "sdss": 0.06}
"""Settings `match.errors`, arcsec an axis."""
EDGES = (0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1.0)


@dataclass(frozen=True)
class Candidates:
    """All pairs of two surveys within the radius."""

    said: tuple[F64, F64]
    "posterior among the left source's candidates, and among the right one's"
    sigmas: F64
    separation: F64
    "arcsec"
    true: Bools
    blended: Bools
    "a row shows a thing of a blend"
    twice: Bools
    "a row shows a thing that has another row of the same survey"


def candidates(truth: Truth, slim: Mapping[str, pa.Table], a: str, b: str, prior: Prior) -> Candidates:
    """Of two surveys' slim tables, errors added; those whose errors are known."""
    pairs = candidate_pairs(slim[a], slim[b], RADIUS_ARCSEC, prior)
    pairs = pairs.filter(pc.is_valid(pairs["left_posterior"]))
    rows = {a: pairs["left_row"].to_numpy(), b: pairs["right_row"].to_numpy()}
    keys = {name: slim[name]["key"].to_numpy()[row] for name, row in rows.items()}
    _, *both = join(truth.shown[a], truth.shown[b])
    blended, twice = np.zeros(pairs.num_rows, bool), np.zeros(pairs.num_rows, bool)
    for name, key in keys.items():
        uid, shown = truth.shown[name]
        blended |= np.isin(key, shown[truth.blend[uid] > 0])
        twice |= np.isin(key, shown[(np.bincount(uid) > 1)[uid]])
    said = pairs["left_posterior"].to_numpy(), pairs["right_posterior"].to_numpy()
    true = is_in((keys[a], keys[b]), (both[0], both[1]))
    return Candidates(said, pairs["sigmas"].to_numpy(), pairs["separation_uas"].to_numpy() / 1e6, true, blended, twice)


@dataclass(frozen=True)
class Bin:
    """Pairs whose posterior is alike."""

    said: float
    "mean"
    true: int
    n: int

    @property
    def interval(self) -> tuple[float, float]:
        """Two-sided 95 % interval of the share that is true (Clopper and Pearson 1934)."""
        low = float(beta.ppf(0.025, self.true, self.n - self.true + 1)) if self.true else 0.0
        high = float(beta.ppf(0.975, self.true + 1, self.n - self.true)) if self.true < self.n else 1.0
        return low, high

    def __str__(self) -> str:
        if not self.n:
            return "0 | | |"
        low, high = self.interval
        return f"{self.n:,} | {self.said:.4f} | {self.true / self.n:.4f} | {low:.4f} to {high:.4f}"


def bins(said: F64, true: Bools) -> list[Bin]:
    """By `EDGES`; a posterior on an edge is of the bin above it, 1 of the last."""
    which = np.digitize(said, EDGES[1:-1])
    n = np.bincount(which, minlength=len(EDGES) - 1)
    sums = [np.bincount(which, weights=values, minlength=n.size) for values in (said, true)]
    return [Bin(float(s / max(k, 1)), int(t), int(k)) for s, t, k in zip(*sums, n, strict=True)]


def calibration_error(found: list[Bin]) -> float:
    """Mean over pairs of |said - true| of their bins."""
    n = sum(b.n for b in found)
    return sum(abs(b.said * b.n - b.true) for b in found) / n if n else float("nan")


SIDES = ("left", "right", "least")
SUBSETS = ("all", "single")
WIDE_SIGMAS = 4.0


def sides(c: Candidates) -> dict[str, F64]:
    """What is said of each pair: among the candidates of either side, and the less of the two."""
    return {"left": c.said[0], "right": c.said[1], "least": np.minimum(*c.said)}


def subsets(c: Candidates) -> dict[str, Bools]:
    return {"all": np.ones(c.true.size, bool), "single": ~c.blended & ~c.twice}


def shares(slim: Mapping[str, pa.Table], a: str, b: str, prior: Prior) -> tuple[float, float]:
    """`found` and `outliers`, as estimated."""
    pairs = candidate_pairs(slim[a], slim[b], RADIUS_ARCSEC, prior)
    pairs = pairs.filter(pc.is_valid(pairs["sigmas"]))
    rows = pairs["left_row"].to_numpy(), pairs["right_row"].to_numpy()
    one, other = (Positions.of(slim[name]).take(row) for name, row in zip((a, b), rows, strict=True))
    errors = np.hypot(one.ra_error, other.ra_error), np.hypot(one.dec_error, other.dec_error)
    by_errors = posterior.likelihoods(pairs["sigmas"].to_numpy(), *errors, RADIUS_ARCSEC, 0.0)
    cells = (slim[name]["healpix29"].to_numpy() for name in (a, b))
    return posterior.estimate_shares(
        *rows, by_errors, RADIUS_ARCSEC, Prior(prior.left, prior.right, None, None), *cells
    )


def reliability(truth: Truth, slim: Mapping[str, pa.Table]) -> tuple[list[str], Shares]:
    """The tables; and the estimated shares by pair of surveys."""
    of = {name: densities(t["healpix29"].to_numpy()) for name, t in slim.items()}
    settings: dict[str, tuple[float | None, float | None]] = {
        "0.9 and 0.02": (FOUND, OUTLIERS),
        "estimated and 0.02": (None, OUTLIERS),
        "both estimated": (None, None),
    }
    estimated: Shares = {}
    about, errors, by_pair = [], [], []
    pooled: dict[tuple[str, str, str], list[tuple[F64, Bools]]] = {}
    for a, b in combinations(slim, 2):
        pair = f"{a} and {b}"
        estimated[a, b] = shares(slim, a, b, Prior(of[a], of[b]))
        for label, (found, outliers) in settings.items():
            c = candidates(truth, slim, a, b, Prior(of[a], of[b], found, outliers))
            found_bins = {
                (subset, side): bins(said[rows], c.true[rows])
                for subset, rows in subsets(c).items()
                for side, said in sides(c).items()
            }
            errors.append([pair, label, *(f"{calibration_error(b):.5f}" for b in found_bins.values())])
            for subset, rows in subsets(c).items():
                for side, said in sides(c).items():
                    pooled.setdefault((label, subset, side), []).append((said[rows], c.true[rows]))
        single = subsets(c)["single"]
        wide = [(c.sigmas[c.true & rows] > WIDE_SIGMAS).mean() for rows in (single | True, single)]
        numbers = (c.true.size, int(c.true.sum()), int(c.blended.sum()), int(c.twice.sum()))
        about.append([pair, *(f"{n:,}" for n in numbers), *(f"{w:.5f}" for w in wide)])
        about[-1] += [f"{v:.5f}" for v in estimated[a, b]]
        by_pair += [f"### {pair}", *bin_table(found_bins)]
    head = [
        "pair",
        "candidates",
        "true",
        "of blends",
        "of things twice there",
        "true, beyond 4 sigma",
        "single of these",
    ]
    lines = ["## The candidates", *table([*head, "`found`, estimated", "`outliers`, estimated"], about)]
    head = [f"{subset}, {side}" for subset in SUBSETS for side in SIDES]
    lines += ["## Expected calibration error", *table(["pair", "`found` and `outliers`", *head], errors)]
    lines += ["## Bins of the posterior, all pairs of surveys together"]
    for label in settings:
        together = {
            (subset, side): bins(*(np.concatenate(x) for x in zip(*pooled[label, subset, side], strict=True)))
            for subset in SUBSETS
            for side in SIDES
        }
        lines += [f"### `found` and `outliers`: {label}", *bin_table(together)]
    lines += ["## Bins of the posterior by pair of surveys, both shares estimated", *by_pair]
    return lines, estimated


def bin_table(found: Mapping[tuple[str, str], list[Bin]]) -> list[str]:
    """One row a side and bin that holds any pair; columns of all pairs, and of single ones."""
    rows = []
    for side in SIDES:
        for k, (low, high) in enumerate(pairwise(EDGES)):
            both = [found[subset, side][k] for subset in SUBSETS]
            if both[0].n:
                rows.append([side, f"{low:g} to {high:g}", *(str(b) for b in both)])
    head = [f"{subset}: {what}" for subset in SUBSETS for what in ("pairs", "said", "true", "95 %")]
    return table(["side", "posterior", *head], rows)


CLASSES = ("all", "isolated", "another within 3 arcsec, no blend", "blends")


def policies(truth: Truth, m: Matched, slim: Mapping[str, pa.Table], estimated: Shares) -> list[str]:
    """Wrong links and things missed, by policy."""
    kinds = {
        "nearest": Policy("nearest"),
        "posterior, 0.9 and 0.02": Policy("posterior"),
        "posterior, both estimated": Policy(
            "posterior", {p: s[0] for p, s in estimated.items()}, {p: s[1] for p, s in estimated.items()}
        ),
    }
    scores: dict[tuple[str, str], dict[str, list[tuple[Score, Score]]]] = {}
    for kind, policy in kinds.items():
        print(kind, file=sys.stderr, flush=True)
        found = group(slim, m.ranks, RADIUS_ARCSEC, policy)
        id_of = pc.binary_join_element_wise(
            found.members["anchor_survey"].cast(pa.string()), found.members["anchor_key"].cast(pa.string()), ":"
        )
        members = found.members.append_column("object_id", id_of)
        for a, b in combinations(slim, 2):
            for what, links in (("edges", edges_of(found.pairs, a, b)), ("objects", links_of(members, a, b))):
                for name, s in score(truth, a, b, links).items():
                    scores.setdefault((what, f"{a} and {b}"), {}).setdefault(name, []).append(s)
        for name, s in whole_objects(truth, members).items():
            scores.setdefault(("whole", "whole objects"), {}).setdefault(name, []).append(s)
    lines = ["## The policies"]
    columns = [f"{kind}: {what}" for kind in kinds for what in ("wrong", "of links", "missed")]
    for what, title in (("edges", "Edges"), ("objects", "Members of one object"), ("whole", "Whole objects")):
        rows = []
        for (kind, pair), by_class in scores.items():
            for name in CLASSES if kind == what else ():
                of = by_class[name]
                cells = [f"{v:,}" for pure, whole in of for v in (pure.n - pure.k, pure.n, whole.n - whole.k)]
                rows.append([pair, name, f"{of[0][1].n:,}", *cells])
        lines += [f"### {title}", *table(["pair", "class", "true things", *columns], rows)]
    return lines


PAGE = """# Is the posterior what it says?

Made by `python benchmarks/match_reliability.py --write docs/match_reliability.md`, on the mock sky's `catalogue` tier:
@SOURCES@ sources of five surveys whose truth is known (docs/truth.md). **It is the mock's errors that are tested
here**, known and Gaussian but where the mock makes blends and dirt; a real catalogue's may be neither.

* *Errors*: the Legacy Survey's and Gaia's are their catalogues'. The others tell none and get `match.errors` of
  `{ hsc = 0.03, desi = 0.03, sdss = 0.06 }` arcsec an axis. The mock scatters SDSS by 0.06; DESI by 0.03, but its stars
  not at all; HSC by 0.02 and more for what is faint or large. So DESI's stars and bright sources of HSC are nearer than
  their errors say, and the faint and large galaxies of HSC farther.
* *Candidates* are all pairs within 1 arcsec. *True*: both rows show a common true thing. *Left* is the posterior among
  the candidates of the first survey's source, *right* of the second's, *least* the less of the two, which the policy
  `posterior` holds against one half.
* *Single*: neither row shows a thing of a blend, nor a thing that has two rows in a survey (a star at the border of two
  bricks). The posterior takes it that one candidate at most is the same thing. Of the others two may well be: two rows
  of one star share its posterior, and each is told one half, and both are true.
* *Expected calibration error*: the mean over pairs of what their bin says less what is true, without sign; bins as
  below. *95 %*: two-sided interval of the share (Clopper and Pearson 1934).
* *Beyond 4 sigma*: share of true pairs farther apart than 4 of their errors: what `outliers` is about.
"""


FINDINGS = """## What it shows

**Sure pairs are sure.** Of 1.15 million single pairs of which both sides say 0.98 or more, a share of 1.0000 is true,
with the usual shares (`found` 0.9, `outliers` 0.02) as with estimated ones. With estimated ones the expected
calibration error of single pairs (*least*) is below 0.001, but 0.003 for Gaia and SDSS and 0.010 for HSC and SDSS.

**A candidate far away and alone** is what the two shares decide of. With 0.9 and 0.02 single pairs whose left side says
0.77 are true in 5 of 100, and to estimate `found` alone changes nothing of it. The cause is `outliers`: of single true
pairs 0.0000 to 0.0006 lie beyond 4 sigma (Gaia and SDSS: 0.003, HSC and SDSS: 0.04), of all, blends counted, 0.0000 to
0.035: it is another share for each pair of surveys. Estimated too (`outliers=None`), it is right within a factor of 2.1
for the six pairs that have more than 0.001 of them; for the other four, of 0.00001 to 0.0008, it says 0.0001 to 0.0022.
With it the error of all pairs on the left side falls from 0.004 to 0.0003 (Legacy Survey and Gaia), 0.004 to 0.0002
(HSC and Gaia), 0.005 to 0.0006 (Gaia and DESI), 0.026 to 0.004 (Gaia and SDSS). A pile takes both shares as settings:
give it measured ones.

**Where it is not calibrated**:

* *Left* alone, single pairs, Legacy Survey and DESI: told 0.74, true in 1 of 100. Outliers there are blends, and single
  pairs are those that are none: no posterior by positions knows which is which. Of all pairs it is 0.75 and 0.65. The
  right side knows: the candidate has a far better partner, so that *least* is right.
* *HSC and SDSS*: outliers are stars that moved for up to 17 years, unknown to both. The pairs that both sides tell 0.8
  are true in 99 of 100.
* *Legacy Survey and Gaia*: the estimate ends at its floor of 0.0001, with 0.0008 of the true pairs beyond 4 sigma. Of
  single pairs told less than 0.02, 0.3 in 100 are true. Not looked into further.
* *All* pairs told about one half: nearly all are true. They are the two rows of a star that two bricks list, or of
  blends that one survey tells apart and the other does not: two of two candidates, by this truth.
* *All* pairs told less than 0.1: 5 in 100 are true, of single ones 0.3 in 100. The others are of blends, where one row
  has several true partners, and where positions are off by many sigma: a catalogue's error knows nothing of neighbours.
* Borders of the sky's patches, where densities are too low, were not looked at alone.

**The policies** find as much on this sky: of 511,144 things in two surveys or more, 4,003 are not whole by `nearest`,
4,005 by `posterior` with 0.9 and 0.02; 12 objects are impure by both. Positions are good to far less than the distance
of neighbours, and nearly all that is missed are blends. Estimated shares take apart what is no pair (edges of Gaia and
DESI: 149 wrong, then 6) and, where they are put too low, lose true pairs too (edges of the Legacy Survey and Gaia: 130
things; 17 isolated things are not whole). As long as `posterior` asked one half of every single pair, 5,727 things were
not whole: the two rows of a star that two bricks list share it, and neither was an edge.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("sky", "pile"):
        parser.add_argument(f"--{name}", type=Path, help="folder; a temporary one where not given")
    parser.add_argument("--write", type=Path, help="write the page here too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sky_root, pile_root = args.sky or Path(folder) / "sky", args.pile or Path(folder) / "pile"
        mock.build("catalogue", sky_root)
        m = build(sky_root, pile_root)
        truth = read_truth(sky_root, m.slim)
    slim = {name: with_error(t, ERRORS.get(name, 0.0)) for name, t in m.slim.items()}
    lines, estimated = reliability(truth, slim)
    lines += policies(truth, m, slim, estimated)
    n = sum(t.num_rows for t in slim.values())
    text = "\n".join([PAGE.replace("@SOURCES@", f"{n:,}"), FINDINGS, *lines])
    print(text)
    if args.write:
        args.write.write_text(text)


if __name__ == "__main__":
    main()
