"""p(number | what another survey saw): trained models against a marginal, nearest neighbours and boosting.

    python benchmarks/posteriors.py PILE NAME=MODEL [NAME=MODEL ...] [--objects 1000] [--learn 20000] [--only WORDS]

PILE is a pile of `skycairn mock-pile`, whose table `truth` holds what each survey measured; a MODEL is a folder that
`skycairn-train export` wrote. Each question is asked of objects of the test sky, by all that answer it, about the same
objects; the score is CRPS in the unit that is named, of the number as it was measured, noise and all. Gains are paired
by object, their 95 % intervals a bootstrap over objects.

*Marginal*: the numbers of the training sky. *Neighbours*: those of the nearest training objects in features, each
scaled by its spread; how many is chosen on the validation sky. *Boosting*: scikit-learn's histogram gradient boosting,
one regression for each of 19 quantiles. Both learn from decoded tokens, so that they know what the model is shown:
numbers as they are, images as light within four apertures of each band, spectra as 128 means, XP as coefficients.
*Ranks*: unevenness of where outcomes lie in the model's distributions, in 20 parts, 1 where spreads are right. Fluxes
of the Legacy Survey are scored as asinh magnitudes, softened at 0.05 nanomaggies. Mock-sky scores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor

from skycairn.cli.qualitytables import Table
from skycairn.model.asked import objects_with
from skycairn.model.evaluate import paired
from skycairn.model.features import evened, features, nearest
from skycairn.model.generate import distribution, shown_of
from skycairn.model.model import Model
from skycairn.model.scores import crps_of_samples, crps_of_weights, unevenness
from skycairn.pile.shards import TokenArray
from skycairn.pile.store import Pile

F64 = NDArray[np.float64]
SAMPLES = 19
NEIGHBOURS = (8, 16, 32, 64, 128)
SOFTENING = 0.05
"""Nanomaggies."""


def asinh_magnitude(nanomaggies: F64) -> F64:
    """Magnitudes that go through zero flux (Lupton et al. 1999)."""
    return 22.5 - 2.5 / np.log(10) * (np.arcsinh(nanomaggies / (2 * SOFTENING)) + np.log(SOFTENING))


def as_it_is(value: F64) -> F64:
    return value


def magnitude(flux: F64) -> F64:
    return -2.5 * np.log10(np.where(flux > 0, flux, np.nan))


class Question(NamedTuple):
    """What is asked for, what is shown (of these what the object has, one of them at least), in which unit."""

    name: str
    asked: tuple[str, ...]
    shown: tuple[str, ...]
    unit: str
    scale: Callable[[F64], F64]


LEGACY = tuple(f"legacysurvey.flux_{b}" for b in ("g", "r", "i", "z"))
HSC = tuple(f"hsc.mag_{b}" for b in "grizy")
XP = ("gaia.xp_bp", "gaia.xp_rp")
QUESTIONS = (
    Question("redshift from photometry", ("desi.z",), (*LEGACY, *HSC), "z", as_it_is),
    Question("redshift from spectrum", ("desi.z",), ("desi.spectrum",), "z", as_it_is),
    Question("Gaia flux from XP", ("gaia.flux_g",), XP, "mag", magnitude),
    Question("Gaia BP and RP from XP", ("gaia.flux_bp", "gaia.flux_rp"), XP, "mag", magnitude),
    Question("Legacy Survey photometry from its image", LEGACY, ("legacysurvey.image",), "mag", asinh_magnitude),
    Question("HSC photometry from its image", HSC, ("hsc.image",), "mag", as_it_is),
)


class Objects(NamedTuple):
    """Objects of one split that a question can be asked of."""

    tokens: dict[str, TokenArray]
    "what is shown, by modality"
    outcome: F64
    "(object, asked), scaled; NaN where it was not measured"
    measured: F64
    "the same as the survey has it"

    def take(self, some: NDArray[np.int64]) -> Objects:
        tokens = {k: TokenArray(*(a[some] for a in v)) for k, v in self.tokens.items()}
        return Objects(tokens, self.outcome[some], self.measured[some])


def read(pile: Pile, split: str, question: Question, most: int) -> Objects:
    """At most so many, of those that have tokens of what is asked: a model knows of no others, which no cut chose."""
    snapshot = pile.snapshot()
    found = objects_with(pile, snapshot, split, question.shown, question.asked, most=most)
    truth = pa.concat_tables(pile.read_table(e.part, ["object_id", *question.asked]) for e in snapshot.entries("truth"))
    at = pc.index_in(found.about["object_id"], truth["object_id"].combine_chunks())
    rows = truth.take(at.combine_chunks() if isinstance(at, pa.ChunkedArray) else at)
    measured = np.stack([rows[m].to_numpy(zero_copy_only=False).astype(float) for m in question.asked], axis=1)
    outcome = question.scale(measured)
    shown = {m: found.tokens[m] for m in question.shown}
    return Objects(shown, outcome, measured).take(np.flatnonzero(np.isfinite(outcome).any(axis=1)))


class Answers(NamedTuple):
    """CRPS by who answers, (object,), and how even the models' ranks are."""

    crps: dict[str, F64]
    uneven: dict[str, float]


def answers(question: Question, pile: Pile, models: Mapping[str, Model], objects: int, learn: int) -> Answers:
    """The mean over what is asked for of each test object's CRPS."""
    training, held, test = (
        read(pile, split, question, most)
        for split, most in (("train", learn), ("validation", objects), ("test", objects))
    )
    codecs = next(iter(models.values())).codecs
    x, x_held, x_test = (features(o.tokens, codecs) for o in (training, held, test))
    sums: dict[str, F64] = {}
    count = np.zeros(len(test.outcome))
    rank: dict[str, list[float]] = {}
    for k, name in enumerate(question.asked):
        own = np.flatnonzero(np.isfinite(test.outcome[:, k]))
        known, chosen = (np.isfinite(o.outcome[:, k]) for o in (training, held))
        y, y_test = training.outcome[known, k], test.outcome[own, k]
        count[own] += 1
        levels = (np.arange(200) + 0.5) / 200
        marginal = np.quantile(y, levels)
        found = {"marginal": crps_of_samples(np.tile(marginal, (len(own), 1)), y_test)}
        found["neighbours"] = neighbours(x[known], y, (x_held[chosen], held.outcome[chosen, k]), x_test[own], y_test)
        found["boosting"] = boosting(x[known], y, x_test[own], y_test)
        some = test.take(own)
        for who, model in models.items():
            shown = shown_of(model.vocabulary, some.tokens, len(own))
            codec = model.codecs[name]
            bins = codec.decode(np.arange(codec.vocabulary)[:, None].astype(codec.dtype))["value"]
            points = question.scale(np.asarray(bins, float).ravel())
            found_weights = distribution(model.network, shown, name)
            fits = np.isfinite(points)
            weights = found_weights[:, fits] / found_weights[:, fits].sum(axis=1, keepdims=True)
            found[who] = crps_of_weights(points[fits], weights, y_test)
            # by bins, with a random part of an outcome's own below it: a model knows nothing finer than a bin
            true = codec.encode({"value": test.measured[own, k]}).reshape(-1).astype(np.int64)
            rank.setdefault(who, []).append(unevenness(ranks_in(found_weights, true), SAMPLES))
        for who, crps in found.items():
            sums.setdefault(who, np.zeros(len(count)))[own] += crps
    crps = {who: total[count > 0] / count[count > 0] for who, total in sums.items()}
    return Answers(crps, {who: float(np.mean(r)) for who, r in rank.items()})


def ranks_in(weights: F64, true: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ranks of true bins among `SAMPLES` equal parts and one of a distribution over bins, 0 to SAMPLES."""
    row = np.arange(len(true))
    below = np.cumsum(weights, axis=1)[row, true] - weights[row, true]
    at = below + np.random.default_rng(0).random(len(true)) * weights[row, true]
    return np.minimum((at * (SAMPLES + 1)).astype(np.int64), SAMPLES)


def neighbours(x: F64, y: F64, held: tuple[F64, F64], x_test: F64, y_test: F64) -> F64:
    """CRPS of the outcomes of the nearest training objects, as many as do best on the held ones."""
    even, even_held, even_test = evened(x, held[0], x_test)
    near, near_test = (nearest(even, a, max(NEIGHBOURS)) for a in (even_held, even_test))
    scored = [crps_of_samples(y[near[:, :k]], held[1]).mean() for k in NEIGHBOURS]
    return crps_of_samples(y[near_test[:, : NEIGHBOURS[int(np.argmin(scored))]]], y_test)


def boosting(x: F64, y: F64, x_test: F64, y_test: F64) -> F64:
    """CRPS of 19 quantiles."""
    found = []
    for i in range(SAMPLES):
        model = HistGradientBoostingRegressor(loss="quantile", quantile=(i + 0.5) / SAMPLES, max_iter=150)
        found.append(model.fit(x, y).predict(x_test))
    return crps_of_samples(np.stack(found, axis=1), y_test)


def rows_of(question: Question, found: Answers, models: Mapping[str, Model]) -> list[tuple[str, ...]]:
    """Of the table."""
    out = []
    for who in models:
        others = {name: crps for name, crps in found.crps.items() if name not in models}
        gain = paired(question.name, found.crps[who], others)
        cells = [question.name, str(gain.objects), question.unit, who, f"{gain.model:.4f}"]
        for against in gain.against.values():
            cells += [f"{against.mean:.4f}", f"{against.gain:+.4f} ({against.low:+.4f} to {against.high:+.4f})"]
        out.append((*cells, f"{found.uneven[who]:.1f}"))
    return out


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pile", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--objects", type=int, default=1000)
    parser.add_argument("--learn", type=int, default=20_000)
    parser.add_argument("--only", default="", help="questions that hold this")
    given = parser.parse_args()
    models = {name: Model.load(folder) for name, folder in (m.split("=", 1) for m in given.models)}
    pile, rows = Pile.open(given.pile), []
    for question in (q for q in QUESTIONS if given.only in q.name):
        rows += rows_of(question, answers(question, pile, models, given.objects, given.learn), models)
        print("\n".join("| " + " | ".join(r) + " |" for r in rows[-len(models) :]), flush=True)
    heads = ("question", "objects", "unit", "who", "CRPS", "marginal", "gain, 95 %", "neighbours", "gain, 95 %")
    print(Table("Posteriors", "", (*heads, "boosting", "gain, 95 %", "ranks"), rows).markdown())


if __name__ == "__main__":
    main()
