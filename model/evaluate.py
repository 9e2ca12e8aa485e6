"""What a trained model knows of the validation sky: more than each slot's marginal, and of one survey from another.

Every comparison is paired by object, and its interval is a bootstrap over objects. The marginal of a slot is
(count + 1/2) / (objects + vocabulary / 2), from the training split. An object's score is the mean over its tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from skycairn.model.masking import allocate, chosen
from skycairn.model.network import Model
from skycairn.model.objects import Objects, read_split, slot_counts
from skycairn.model.vocabulary import BY_SKY
from skycairn.pile.store import Pile, Snapshot

F64 = NDArray[np.float64]

RESAMPLES = 2000
LEAST = 200
"""Modalities of fewer validation objects are pooled over their survey's scalars."""
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
class Against:
    """What the model is held against: its cross-entropy, and how much lower the model's is, nats a token."""

    mean: float
    gain: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        """Whether the 95 % interval lies above 0."""
        return self.low > 0


@dataclass(frozen=True)
class Gain:
    """The model's cross-entropy, nats a token, and what it is held against, by name.

    `marginal`: the slot's own counts, add-one-half smoothed. `start`: the slot's counts as the model starts from them,
    before a step of training, which are smoothed better. `another`: the model, shown another object's tokens.
    """

    what: str
    objects: int
    model: float
    against: Mapping[str, Against]


class Budget(NamedTuple):
    """Tokens shown and asked for of an object at most, and the seed that chooses them."""

    inputs: int
    targets: int
    seed: int


def paired(what: str, model: F64, others: Mapping[str, F64], seed: int = 0) -> Gain:
    """Gain of the model over each of the others, objects paired, with a 95 % bootstrap interval over objects."""
    n = len(model)
    if not n:
        nothing = float("nan")
        return Gain(what, 0, nothing, {name: Against(nothing, nothing, nothing, nothing) for name in others})
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(0, n, n) for _ in range(RESAMPLES)]
    against = {}
    for name, other in others.items():
        gain = other - model
        low, high = np.quantile([gain[rows].mean() for rows in drawn], [0.025, 0.975])
        against[name] = Against(float(other.mean()), float(gain.mean()), float(low), float(high))
    return Gain(what, n, float(model.mean()), against)


def scores(
    model: Model,
    objects: Objects,
    shown: Sequence[int],
    asked: Sequence[int],
    tables: Sequence[Sequence[F64]],
    budget: Budget,
    shown_of: Objects | None = None,
) -> F64:
    """Mean cross-entropy by the model and by each of the tables of shares, (1 + tables, object).

    Random tokens of the `shown` modalities and of the `asked` ones, as many as the budgets allow; which tokens hangs on
    the seed alone. The shown tokens are taken from `shown_of`, row for row, where it is given; it must hold the same
    slots.
    """
    vocabulary, rng = model.vocabulary, np.random.default_rng(budget.seed)
    front, back = (np.zeros(objects.length.shape, np.int64) for _ in range(2))
    front[:, shown], back[:, asked] = objects.length[:, shown], objects.length[:, asked]
    front, back = allocate(front, budget.inputs, rng), allocate(back, budget.targets, rng)
    batch_all = chosen(objects, vocabulary, front, back, rng)
    other = shown_of.tokens if shown_of is not None else objects.tokens
    token = np.take_along_axis(other, batch_all.input_slot, axis=1).astype(np.int64)
    batch_all = batch_all._replace(input_token=np.where(batch_all.input_valid, token, 0))
    n = len(objects.ids)
    out, count = np.zeros((1 + len(tables), n)), batch_all.target_valid.sum(axis=1)
    for start in range(0, n, 128):
        batch = batch_all.rows(slice(start, start + 128))
        with torch.no_grad():
            loss, who, _ = model.losses(batch)
        np.add.at(out[0], start + who.cpu().numpy(), loss.cpu().numpy().astype(np.float64))
    for m in asked:
        kind = vocabulary.modality_of_slot[batch_all.target_slot] == m
        row, place = np.nonzero(batch_all.target_valid & kind)
        slot = batch_all.target_slot[row, place] - vocabulary.first_slot[m]
        for i, table in enumerate(tables):
            np.add.at(out[1 + i], row, -np.log(table[m][slot, batch_all.target_token[row, place]]))
    return np.asarray(out / np.maximum(count, 1))


def marginals(model: Model, training: Objects) -> list[F64]:
    """Add-one-half smoothed share of each token in each slot, (slot, vocabulary) a modality."""
    counts = slot_counts(training, model.vocabulary)
    return [(c + 0.5) / (c.sum(axis=1, keepdims=True) + c.shape[1] / 2) for c in counts]


def starts(model: Model) -> list[F64]:
    """What the model starts from, in the form of `marginals`: each slot's own smoothed counts."""
    logits = [model.get_buffer(f"start{m}") for m in range(len(model.vocabulary.columns))]
    return [torch.softmax(x.double(), dim=1).cpu().numpy() for x in logits]


def against_marginals(model: Model, objects: Objects, training: Objects, budget: Budget) -> Iterator[Gain]:
    """For every modality of enough objects, and every survey's rarer scalars together: given all other modalities.

    A redshift is not shown to one that asks for a redshift: modalities of one codec are withheld together.
    """
    vocabulary, tables = model.vocabulary, (marginals(model, training), starts(model))
    rare: dict[str, list[int]] = {}
    for m, name in enumerate(vocabulary.names):
        if name in BY_SKY:
            continue
        if _askable(model, objects, m).sum() < LEAST and vocabulary.columns[m].layout == "scalar":
            rare.setdefault(name.split(".")[0], []).append(m)
        else:
            yield _gain(model, objects, [m], tables, name, budget)
    for survey, several in rare.items():
        what = f"{survey}: {', '.join(vocabulary.names[m].split('.')[1] for m in several)}"
        yield _gain(model, objects, several, tables, what, budget)


def _askable(model: Model, objects: Objects, m: int) -> NDArray[np.bool_]:
    """Whether an object has the modality, and another one to be shown."""
    rest = [k for k, twin in enumerate(model.vocabulary.twin) if twin != model.vocabulary.twin[m]]
    return np.asarray((objects.length[:, m] > 0) & (objects.length[:, rest] > 0).any(axis=1))


def _gain(
    model: Model, objects: Objects, several: Sequence[int], tables: Sequence[Sequence[F64]], what: str, budget: Budget
) -> Gain:
    """Each modality asked for by itself; an object's score is the mean over those that it has."""
    total, count = np.zeros((1 + len(tables), len(objects.ids))), np.zeros(len(objects.ids))
    for m in several:
        rows = np.flatnonzero(_askable(model, objects, m))
        if len(rows):
            rest = [k for k, twin in enumerate(model.vocabulary.twin) if twin != model.vocabulary.twin[m]]
            total[:, rows] += scores(model, objects.take(rows), rest, [m], tables, budget)
            count[rows] += 1
    mean = total[:, count > 0] / count[count > 0]
    return paired(what, mean[0], {"marginal": mean[1], "start": mean[2]})


def given_partner(model: Model, objects: Objects, question: str, marginal: Sequence[F64], budget: Budget) -> Gain:
    """The true partner's tokens shown, against those of another object with tokens in the same slots."""
    asked, shown = (model.vocabulary.indices(names) for names in QUESTIONS[question])
    some = objects.take(
        np.flatnonzero((objects.length[:, asked] > 0).any(axis=1) & (objects.length[:, shown] > 0).any(axis=1))
    )
    partner = _others(some.length[:, shown], np.random.default_rng(budget.seed))
    some, partner = some.take(np.flatnonzero(partner >= 0)), partner[partner >= 0]
    if not len(partner):
        return paired(question, np.zeros(0), {"another": np.zeros(0), "marginal": np.zeros(0)})
    # rows that are dropped are never partners: a partner has the same slots, and so a partner of its own
    number = np.full(int(partner.max()) + 1, -1)
    kept = np.unique(partner)
    number[kept] = np.arange(len(kept))
    true = scores(model, some, shown, asked, (marginal,), budget)
    wrong = scores(model, some, shown, asked, (), budget, shown_of=some.take(number[partner]))
    return paired(question, true[0], {"another": wrong[0], "marginal": true[1]})


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
    budget, marginal, questions = Budget(inputs, targets, seed), marginals(model, training), []
    for question, sides in QUESTIONS.items():
        if all(model.vocabulary.indices(names) for names in sides):
            questions.append(given_partner(model, objects, question, marginal, budget))
    return {
        "marginal": list(against_marginals(model, objects, training, budget)),
        "partner": questions,
    }


def as_markdown(found: Mapping[str, Sequence[Gain]]) -> str:
    """The two tables."""
    names = {"marginal": "marginal of its slot", "start": "model's start", "another": "another object's partner"}
    out = []
    for table, gains in found.items():
        what, model = {
            "marginal": ("modality, given the others", "model"),
            "partner": ("question", "true partner"),
        }[table]
        heads = [what, "objects", model]
        for name in gains[0].against if gains else ():
            heads += [names[name], "gain, 95 %"]
        out += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for g in gains:
            cells = [g.what, str(g.objects), f"{g.model:.3f}"]
            for a in g.against.values():
                sure = "" if a.sure else " (not above 0)"
                cells += [f"{a.mean:.3f}", f"{a.gain:.3f} ({a.low:.3f} to {a.high:.3f}){sure}"]
            out.append(f"| {' | '.join(cells)} |")
        out.append("")
    return "\n".join(out)


def write(found: Mapping[str, Sequence[Gain]], folder: Path, about: Mapping[str, Any]) -> None:
    """`evaluation.json` and `evaluation.md`."""
    plain = {**about, **{name: [asdict(g) for g in gains] for name, gains in found.items()}}
    (folder / "evaluation.json").write_text(json.dumps(plain, indent=1) + "\n")
    (folder / "evaluation.md").write_text(as_markdown(found))
