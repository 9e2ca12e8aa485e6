"""What a trained model knows of the validation sky: more than each slot's marginal, and of one survey from another.

Every comparison is paired by object, and its interval is a bootstrap over objects. The marginal of a slot is
(count + 1/2) / (objects + vocabulary / 2), from the training split. An object's score is the mean over its tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skycairn.model.masking import allocate, chosen
from skycairn.model.network import Model
from skycairn.model.objects import Objects, read_split, slot_counts
from skycairn.pile.store import Pile, Snapshot

F64 = NDArray[np.float64]

RESAMPLES = 2000
LEAST = 200
"""Modalities of fewer validation objects are pooled over their survey's scalars."""
BY_SKY = ("gaia.ra", "gaia.dec", "legacysurvey.ebv", *(f"hsc.a_{b}" for b in "grizy"))
"""Where on the sky a thing is, and the dust there: the split by sky makes them unpredictable, so nothing is claimed."""

LEGACY_FLUX = tuple(f"legacysurvey.flux_{b}" for b in ("g", "r", "i", "z"))
HSC_MAGNITUDE = tuple(f"hsc.mag_{b}" for b in "grizy")
REDSHIFT, SPECTRUM = ("desi.z", "sdss.z"), ("desi.spectrum", "sdss.spectrum")
PHOTOMETRY = (*LEGACY_FLUX, "legacysurvey.flux_w1", "legacysurvey.flux_w2", *HSC_MAGNITUDE)
QUESTIONS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Legacy flux given HSC magnitude": (LEGACY_FLUX, HSC_MAGNITUDE),
    "HSC magnitude given Legacy flux": (HSC_MAGNITUDE, LEGACY_FLUX),
    "redshift given photometry": (REDSHIFT, PHOTOMETRY),
    "flux given spectrum": (LEGACY_FLUX, SPECTRUM),
}
"""What is asked for, and what is shown; of each what the object has."""


@dataclass(frozen=True)
class Gain:
    """How much lower the model's cross-entropy is than what it is held against, nats a token, with its interval."""

    what: str
    objects: int
    model: float
    other: float
    gain: float
    low: float
    high: float
    start: float = float("nan")
    "cross-entropy of what the model starts from, before a step of training: its slot's own smoothed counts"

    @property
    def sure(self) -> bool:
        """Whether the 95 % interval lies above 0."""
        return self.low > 0


def paired(what: str, model: F64, other: F64, seed: int = 0) -> Gain:
    """Gain of the model over the other, objects paired, with a 95 % bootstrap interval over objects."""
    n = len(model)
    if not n:
        nothing = float("nan")
        return Gain(what, 0, nothing, nothing, nothing, nothing, nothing)
    gain = other - model
    rng = np.random.default_rng(seed)
    means = [gain[rng.integers(0, n, n)].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Gain(what, n, float(model.mean()), float(other.mean()), float(gain.mean()), float(low), float(high))


def scores(
    model: Model,
    objects: Objects,
    shown: Sequence[int],
    asked: Sequence[int],
    marginal: Sequence[F64],
    inputs: int,
    targets: int,
    seed: int,
    shown_of: Objects | None = None,
) -> tuple[F64, F64]:
    """Mean cross-entropy by the model and by the marginals, an object each; which tokens hangs on the seed alone.

    Random tokens of the `shown` modalities and of the `asked` ones, as many as the budgets allow. The shown tokens are
    taken from `shown_of`, row for row, where it is given; it must hold the same slots.
    """
    vocabulary, rng = model.vocabulary, np.random.default_rng(seed)
    front, back = (np.zeros(objects.length.shape, np.int64) for _ in range(2))
    front[:, shown], back[:, asked] = objects.length[:, shown], objects.length[:, asked]
    # no large modality may take the whole budget from the small ones
    front = allocate(np.minimum(front, max(1, inputs // 2)), inputs, rng)
    batch_all = chosen(objects, vocabulary, front, allocate(back, targets, rng), rng)
    other = shown_of.tokens if shown_of is not None else objects.tokens
    token = np.take_along_axis(other, batch_all.input_slot, axis=1).astype(np.int64)
    batch_all = batch_all._replace(input_token=np.where(batch_all.input_valid, token, 0))
    n = len(objects.ids)
    by_model, by_marginal, count = np.zeros(n), np.zeros(n), batch_all.target_valid.sum(axis=1)
    for start in range(0, n, 128):
        batch = batch_all.rows(slice(start, start + 128))
        with torch.no_grad():
            loss, who, _ = model.losses(batch)
        np.add.at(by_model, start + who.cpu().numpy(), loss.cpu().numpy().astype(np.float64))
    for m in asked:
        kind = vocabulary.modality_of_slot[batch_all.target_slot] == m
        row, place = np.nonzero(batch_all.target_valid & kind)
        slot = batch_all.target_slot[row, place] - vocabulary.first_slot[m]
        np.add.at(by_marginal, row, -np.log(marginal[m][slot, batch_all.target_token[row, place]]))
    return by_model / np.maximum(count, 1), by_marginal / np.maximum(count, 1)


def marginals(model: Model, training: Objects) -> list[F64]:
    """Add-one-half smoothed share of each token in each slot, (slot, vocabulary) a modality."""
    counts = slot_counts(training, model.vocabulary)
    return [(c + 0.5) / (c.sum(axis=1, keepdims=True) + c.shape[1] / 2) for c in counts]


def against_marginals(
    model: Model, objects: Objects, training: Objects, inputs: int, targets: int, seed: int
) -> Iterator[Gain]:
    """For every modality of enough objects, and every survey's rarer scalars together: given all other modalities."""
    vocabulary, marginal = model.vocabulary, marginals(model, training)
    every = list(range(len(vocabulary.names)))
    rare: dict[str, list[int]] = {}
    for m, name in enumerate(vocabulary.names):
        if name in BY_SKY:
            continue
        n = int(_askable(objects, [m], every).sum())
        if n < LEAST and vocabulary.columns[m].layout == "scalar":
            rare.setdefault(name.split(".")[0], []).append(m)
        else:
            yield _one(model, objects, [m], marginal, name, (inputs, targets, seed))
    for survey, several in rare.items():
        what = f"{survey}: {', '.join(vocabulary.names[m].split('.')[1] for m in several)}"
        yield _pooled(model, objects, several, marginal, what, (inputs, targets, seed))


def _askable(objects: Objects, asked: Sequence[int], every: Sequence[int]) -> NDArray[np.bool_]:
    rest = [m for m in every if m not in asked]
    return np.asarray((objects.length[:, asked] > 0).any(axis=1) & (objects.length[:, rest] > 0).any(axis=1))


def _one(
    model: Model,
    objects: Objects,
    asked: Sequence[int],
    marginal: Sequence[F64],
    what: str,
    budget: tuple[int, int, int],
) -> Gain:
    every = range(len(model.vocabulary.names))
    some = objects.take(np.flatnonzero(_askable(objects, asked, every)))
    rest = [m for m in every if m not in asked]
    found = scores(model, some, rest, asked, marginal, *budget)
    with _untrained(model):
        start, _ = scores(model, some, rest, asked, marginal, *budget)
    return replace(paired(what, *found), start=float(start.mean()) if len(start) else float("nan"))


def _pooled(
    model: Model,
    objects: Objects,
    several: Sequence[int],
    marginal: Sequence[F64],
    what: str,
    budget: tuple[int, int, int],
) -> Gain:
    """Each modality asked for by itself; an object's score is the mean over those that it has."""
    total, count = np.zeros((3, len(objects.ids))), np.zeros(len(objects.ids))
    every = range(len(model.vocabulary.names))
    for m in several:
        rows = np.flatnonzero(_askable(objects, [m], every))
        if len(rows):
            rest = [k for k in every if k != m]
            some = objects.take(rows)
            total[:2, rows] += scores(model, some, rest, [m], marginal, *budget)
            with _untrained(model):
                total[2, rows] += scores(model, some, rest, [m], marginal, *budget)[0]
            count[rows] += 1
    asked_of = count > 0
    mean = total[:, asked_of] / count[asked_of]
    return replace(paired(what, mean[0], mean[1]), start=float(mean[2].mean()) if mean.size else float("nan"))


@contextmanager
def _untrained(model: Model) -> Iterator[None]:
    """The model with no word of the network: each slot's own smoothed counts."""
    trust = [model.get_buffer(f"trust{m}") for m in range(len(model.vocabulary.columns))]
    before = [float(t) for t in trust]
    try:
        for t in trust:
            t.fill_(0.0)
        yield
    finally:
        for t, value in zip(trust, before, strict=True):
            t.fill_(value)


def given_partner(
    model: Model, objects: Objects, question: str, marginal: Sequence[F64], inputs: int, targets: int, seed: int
) -> Gain:
    """The true partner's tokens shown, against those of another object with tokens in the same slots."""
    asked, shown = (model.vocabulary.indices(names) for names in QUESTIONS[question])
    some = objects.take(
        np.flatnonzero((objects.length[:, asked] > 0).any(axis=1) & (objects.length[:, shown] > 0).any(axis=1))
    )
    partner = _others(some.length[:, shown], np.random.default_rng(seed))
    some, partner = some.take(np.flatnonzero(partner >= 0)), partner[partner >= 0]
    if not len(partner):
        return paired(question, np.zeros(0), np.zeros(0))
    # rows that are dropped are never partners: a partner has the same slots, and so a partner of its own
    number = np.full(int(partner.max()) + 1, -1)
    kept = np.unique(partner)
    number[kept] = np.arange(len(kept))
    true, _ = scores(model, some, shown, asked, marginal, inputs, targets, seed)
    other = some.take(number[partner])
    wrong, _ = scores(model, some, shown, asked, marginal, inputs, targets, seed, shown_of=other)
    return paired(question, true, wrong)


def _others(length: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int64]:
    """Another row with the same lengths, no row twice, -1 where there is none: a random cycle of each kind of rows."""
    out = np.full(len(length), -1, dtype=np.int64)
    if len(length):
        for kind in np.unique(length, axis=0):
            rows = rng.permutation(np.flatnonzero((length == kind).all(axis=1)))
            if len(rows) > 1:
                out[rows] = np.roll(rows, 1)
    return out


def evaluate(
    model: Model,
    pile: Pile,
    snapshot: Snapshot,
    split: str = "validation",
    inputs: int = 64,
    targets: int = 32,
    seed: int = 1,
) -> dict[str, list[Gain]]:
    """Both tables. ValueError for the training split: a score on it would say nothing."""
    if split == "train":
        raise ValueError("evaluate: the training split was asked for; choose validation or test")
    model.eval()
    objects = read_split(pile, snapshot, split, model.vocabulary)
    training = read_split(pile, snapshot, "train", model.vocabulary)
    marginal = marginals(model, training)
    questions = []
    for question, sides in QUESTIONS.items():
        if all(model.vocabulary.indices(names) for names in sides):
            questions.append(given_partner(model, objects, question, marginal, inputs, targets, seed))
    return {
        "marginal": list(against_marginals(model, objects, training, inputs, targets, seed)),
        "partner": questions,
    }


def as_markdown(found: Mapping[str, Sequence[Gain]]) -> str:
    """The two tables."""
    heads = {
        "marginal": "| modality, given the others | objects | model | its start | marginal of its slot | gain, 95 % |",
        "partner": "| question | objects | true partner | another object's | gain, 95 % interval |",
    }
    out = []
    for name, gains in found.items():
        out += [heads[name], "|---|" + "---|" * (heads[name].count("|") - 2)]
        for g in gains:
            sure = "" if g.sure else " (not above 0)"
            interval = f"{g.gain:.3f} ({g.low:.3f} to {g.high:.3f}){sure}"
            start = f" {g.start:.3f} |" if name == "marginal" else ""
            out.append(f"| {g.what} | {g.objects} | {g.model:.3f} |{start} {g.other:.3f} | {interval} |")
        out.append("")
    return "\n".join(out)


def write(found: Mapping[str, Sequence[Gain]], folder: Path, about: Mapping[str, Any]) -> None:
    """`evaluation.json` and `evaluation.md`."""
    plain = {**about, **{name: [asdict(g) for g in gains] for name, gains in found.items()}}
    (folder / "evaluation.json").write_text(json.dumps(plain, indent=1) + "\n")
    (folder / "evaluation.md").write_text(as_markdown(found))
