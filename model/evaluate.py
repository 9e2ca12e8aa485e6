"""What a trained model knows of the test sky: more than each slot's marginal, and of one survey from another.

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
import torch.nn.functional as F
from numpy.typing import NDArray

from skycairn.model.loader import Loader, Rows, slot_counts
from skycairn.model.rules import Masker, Masking, fairly
from skycairn.model.strata import F64, I64, Source
from skycairn.model.tables import Counts, Starts
from skycairn.model.transformer import Network
from skycairn.model.vocabulary import BY_SKY, Vocabulary

OBJECTS = 128
"""Of a microbatch."""

RESAMPLES = 2000
LEAST = 200
"""Modalities of fewer objects are pooled over their survey's scalars."""
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


class Asker(NamedTuple):
    """A network, and how it is asked."""

    network: Network
    masker: Masker
    "whose budgets hold"
    seed: int = 1
    "which tokens are shown and asked for hangs on it alone"


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
    asker: Asker,
    objects: Rows,
    shown: Sequence[int],
    asked: Sequence[int],
    tables: Sequence[Sequence[F64]],
    shown_of: Rows | None = None,
) -> F64:
    """Mean cross-entropy by the network and by each of the tables of shares, (1 + tables, object).

    Random tokens of the `shown` modalities and of the `asked` ones, as many as the budgets allow, shared out fairly.
    The shown tokens are taken from `shown_of`, row for row, where it is given; it must hold the same slots.
    """
    network, masker, vocabulary = asker.network, asker.masker, asker.network.vocabulary
    rng, n = np.random.default_rng(asker.seed), len(objects.length)
    out = np.zeros((1 + len(tables), n))
    for start in range(0, n, OBJECTS):
        rows = np.arange(start, min(start + OBJECTS, n))
        some = objects.take(rows)
        length = some.length.astype(np.int64)
        front, back = np.zeros_like(length), np.zeros_like(length)
        front[:, shown], back[:, asked] = length[:, shown], length[:, asked]
        front, back = (
            fairly(room, room, np.full(len(rows), budget), rng)
            for room, budget in ((front, masker.masking.inputs), (back, masker.masking.targets))
        )
        packed = masker.packed(some.tokens, length, front, back, rng)
        if shown_of is not None:
            of = start + np.repeat(np.arange(len(rows)), np.diff(packed.input_start))
            packed = packed._replace(input_token=shown_of.tokens[of, packed.input_slot].astype(np.int32))
        of = start + np.repeat(np.arange(len(rows)), np.diff(packed.target_start))
        kind = vocabulary.modality_of_slot[packed.target_slot]
        position = packed.target_slot - vocabulary.first_slot[kind]
        with torch.no_grad():
            found = network.logits(packed)
        for m in np.unique(kind).tolist():
            own = np.flatnonzero(kind == m)
            token = packed.target_token[own]
            logits = found[vocabulary.names[m]].float()
            loss = F.cross_entropy(logits, torch.from_numpy(token).long().to(logits.device), reduction="none")
            np.add.at(out[0], of[own], loss.double().cpu().numpy())
            for i, table in enumerate(tables):
                np.add.at(out[1 + i], of[own], -np.log(table[m][position[own], token]))
        out[:, rows] /= np.maximum(np.diff(packed.target_start), 1)
    return out


def marginals(counts: Counts) -> list[F64]:
    """Add-one-half smoothed share of each token in each slot, (slot, vocabulary) a modality."""
    return [(c + 0.5) / (c.sum(axis=1, keepdims=True) + c.shape[1] / 2) for c in counts]


def starts(network: Network, counts: Counts) -> list[F64]:
    """What a network that starts from counts begins with, in the form of `marginals`; from these where it did not."""
    told = network.starts
    if told is None:
        told = Starts(network.vocabulary)
        told.start_from(counts)
    logits = [told.get_buffer(f"start{m}") for m in range(len(network.vocabulary.columns))]
    return [torch.softmax(x.double(), dim=1).cpu().numpy() for x in logits]


def against_marginals(asker: Asker, objects: Rows, tables: Sequence[Sequence[F64]]) -> Iterator[Gain]:
    """For every modality of enough objects, and every survey's rarer scalars together: given all other modalities.

    A redshift is not shown to one that asks for a redshift: modalities of one codec are withheld together.
    """
    vocabulary = asker.network.vocabulary
    rare: dict[str, list[int]] = {}
    for m, name in enumerate(vocabulary.names):
        if name in BY_SKY:
            continue
        if len(_askable(vocabulary, objects, m)) < LEAST and vocabulary.columns[m].layout == "scalar":
            rare.setdefault(name.split(".")[0], []).append(m)
        else:
            yield _gain(asker, objects, [m], tables, name)
    for survey, several in rare.items():
        what = f"{survey}: {', '.join(vocabulary.names[m].split('.')[1] for m in several)}"
        yield _gain(asker, objects, several, tables, what)


def _rest(vocabulary: Vocabulary, m: int) -> list[int]:
    return [k for k, twin in enumerate(vocabulary.twin) if twin != vocabulary.twin[m]]


def _askable(vocabulary: Vocabulary, objects: Rows, m: int) -> I64:
    """Objects that have the modality, and another one to be shown."""
    return np.flatnonzero((objects.length[:, m] > 0) & (objects.length[:, _rest(vocabulary, m)] > 0).any(axis=1))


def _gain(asker: Asker, objects: Rows, several: Sequence[int], tables: Sequence[Sequence[F64]], what: str) -> Gain:
    """Each modality asked for by itself; an object's score is the mean over those that it has."""
    vocabulary, n = asker.network.vocabulary, len(objects.length)
    total, count = np.zeros((1 + len(tables), n)), np.zeros(n)
    for m in several:
        if len(rows := _askable(vocabulary, objects, m)):
            total[:, rows] += scores(asker, objects.take(rows), _rest(vocabulary, m), [m], tables)
            count[rows] += 1
    mean = total[:, count > 0] / count[count > 0]
    return paired(what, mean[0], {"marginal": mean[1], "start": mean[2]})


def given_partner(asker: Asker, objects: Rows, question: str, marginal: Sequence[F64]) -> Gain:
    """The true partner's tokens shown, against those of another object with tokens in the same slots."""
    asked, shown = (asker.network.vocabulary.indices(names) for names in QUESTIONS[question])
    some = objects.take(
        np.flatnonzero((objects.length[:, asked] > 0).any(axis=1) & (objects.length[:, shown] > 0).any(axis=1))
    )
    partner = _others(some.length[:, shown], np.random.default_rng(asker.seed))
    # a partner has the same slots, and so a partner of its own
    wrong_of, some = some.take(partner[partner >= 0]), some.take(np.flatnonzero(partner >= 0))
    true = scores(asker, some, shown, asked, (marginal,))
    wrong = scores(asker, some, shown, asked, (), shown_of=wrong_of)
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
    network: Network,
    sources: Sequence[Source],
    split: str = "test",
    inputs: int = 64,
    targets: int = 32,
    most: int = 20_000,
    seed: int = 1,
) -> dict[str, list[Gain]]:
    """Both tables, of `most` objects of the split or all, marginals of `most` training objects or all.

    ValueError for the training split: a score on it would say nothing. The validation split chose the weights.
    """
    if split == "train":
        raise ValueError("evaluate: the training split was asked for; choose test")
    network.eval()
    masking, vocabulary = Masking(inputs, targets), network.vocabulary
    objects, training = (Loader(sources, name, masking, vocabulary).whole(most) for name in (split, "train"))
    counts = slot_counts(training, vocabulary)
    asker, marginal = Asker(network, Masker(vocabulary, masking), seed), marginals(counts)
    return {
        "marginal": list(against_marginals(asker, objects, (marginal, starts(network, counts)))),
        "partner": [
            given_partner(asker, objects, question, marginal)
            for question, sides in QUESTIONS.items()
            if all(vocabulary.indices(names) for names in sides)
        ],
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
