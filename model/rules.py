"""Which tokens of an object are shown and which are asked for, a whole microbatch at once; missing data are no tokens.

Whatever the rule: what is shown and what is asked for are apart and are there; at most `inputs` and `targets` of an
object; at most `most_shown` of its tokens are shown, so that small objects have something left to ask for, but for
objects masked across surveys; an object with a token is asked for one or more. One that has a single token is asked for
it and shown nothing; one that has none is left out.

Rules are mixed by the object, with weights:

beta       AION-1's, as its open port has it: of each modality round(Beta(a, a) x tokens) are shown, modalities in
           random order until the budget is full, the first one token or more; of what is left ceil(Beta(a, b) x tokens)
           are asked for, in random order until that budget is full. So a budget may not be used up. Where `fair`,
           modalities share a full budget alike instead.
dirichlet  4M's: the budget is shared out by a Dirichlet draw over the modalities that the object has. What one has too
           few tokens for goes to the others in the same proportions; odd tokens fall at random so that each mean is
           the share. The budget is met exactly.
uniform    all tokens of an object alike. The budget is met exactly.

A share of the objects is masked *across surveys*: one survey that the object has is shown and another asked for, of
those that its rule shows and asks for at all; a coin is thrown over each of the rest, and none is both. As much is
then shown as the budget allows. Another share shows nothing. Modalities of one codec (`Vocabulary.twin`) are like any
others here: a redshift may be shown where another is asked for; evaluation withholds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from skycairn.model.packed import Packed
from skycairn.model.vocabulary import Vocabulary

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
Flags = NDArray[np.bool_]
Alphas = Mapping[str, float]
"""By modality (`gaia.parallax`) or by survey (`gaia`), the modality's own first; 0 never takes it."""

LEAST_SHARE = 1e-290
"""A Gamma draw of a small alpha may be 0, and what has room must have a share."""


@dataclass(frozen=True)
class Beta:
    """AION-1's rule."""

    rule: ClassVar[str] = "beta"
    input_alpha: float = 1.0
    "of Beta(alpha, alpha), the share of a modality that is shown"
    target_alpha: float = 1.0
    "of Beta(alpha, target_beta), the share of what is left that is asked for"
    target_beta: float = 10.0
    "the larger, the fewer tokens of a modality are asked for"
    fair: bool = False
    "whether modalities share a full budget alike, so that images starve no numbers, instead of in random order"
    input_alphas: Alphas = field(default_factory=dict)
    "of single modalities or surveys, instead of input_alpha; 0 never shows it"
    target_alphas: Alphas = field(default_factory=dict)
    "likewise of target_alpha; 0 never asks for it"
    weight: float = 1.0
    "how often it comes beside the other rules"

    def __post_init__(self) -> None:
        _check_component(self)
        if not _positive(self.target_beta):
            raise ValueError(f"masking: target_beta is {self.target_beta!r}; wanted a number above 0")
        if not isinstance(self.fair, bool):
            raise ValueError(f"masking: fair is {self.fair!r}; wanted true or false")


@dataclass(frozen=True)
class Dirichlet:
    """4M's rule, one component of its mixture."""

    rule: ClassVar[str] = "dirichlet"
    input_alpha: float = 1.0
    "of the shares in what is shown: the smaller, the fewer modalities have it all"
    target_alpha: float = 1.0
    "likewise of what is asked for"
    input_alphas: Alphas = field(default_factory=dict)
    "of single modalities or surveys, instead of input_alpha; 0 never shows it"
    target_alphas: Alphas = field(default_factory=dict)
    "likewise of target_alpha; 0 never asks for it"
    weight: float = 1.0
    "how often it comes beside the other rules"

    def __post_init__(self) -> None:
        _check_component(self)


@dataclass(frozen=True)
class Uniform:
    """All tokens alike."""

    rule: ClassVar[str] = "uniform"
    weight: float = 1.0
    "how often it comes beside the other rules"

    def __post_init__(self) -> None:
        _check_component(self)


Component = Beta | Dirichlet | Uniform
COMPONENTS: Mapping[str, type[Component]] = {c.rule: c for c in (Beta, Dirichlet, Uniform)}


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _check_component(component: Component) -> None:
    if not _positive(component.weight):
        raise ValueError(f"masking: a {component.rule} weighs {component.weight!r}; wanted a number above 0")
    if isinstance(component, Uniform):
        return
    for side in ("input", "target"):
        alpha, alphas = getattr(component, f"{side}_alpha"), getattr(component, f"{side}_alphas")
        for name, value in ((f"{side}_alpha", alpha), *alphas.items()):
            if not (_positive(value) or (value == 0 and not isinstance(value, bool))):
                raise ValueError(
                    f"masking: alpha of a {component.rule}, {name}, is {value!r}; wanted 0 (never) or a number above 0"
                )


@dataclass(frozen=True)
class Masking:
    """How the tokens of all objects are masked."""

    inputs: int = 256
    "most tokens shown"
    targets: int = 128
    "most tokens asked for"
    most_shown: float = 2 / 3
    "of an object's tokens; but of two or more one may be shown"
    across_surveys: float = 0.0
    "share of the objects, among those of two surveys or more, of which surveys are shown and only others asked for"
    components: Sequence[Component] = (Beta(),)
    nothing_shown: float = 0.0
    "share of the objects that show nothing: what guidance and draws of which nothing is known are learned from"

    def __post_init__(self) -> None:
        object.__setattr__(self, "components", tuple(self.components))
        for name in ("inputs", "targets"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"masking: {name} is {value!r}; wanted a whole number of 1 or more")
        if not (_positive(self.most_shown) and self.most_shown < 1):
            raise ValueError(f"masking: most_shown is {self.most_shown!r}; wanted a share above 0 and below 1")
        for name in ("across_surveys", "nothing_shown"):
            value = getattr(self, name)
            if not (value == 0 or _positive(value)) or value > 1:
                raise ValueError(f"masking: {name} is {value!r}; wanted a share of 0 to 1")
        if not self.components or not all(isinstance(c, Component) for c in self.components):
            raise ValueError(f"masking: components are {self.components!r}; wanted one or more of {_rules()}")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Masking:
        """From plain values, as of JSON or TOML: each component has its `rule`. ValueError names what is unknown."""
        given = dict(value)
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(given) - known):
            raise ValueError(f"masking: {', '.join(unknown)}: wanted {', '.join(sorted(known))}")
        if "components" in given:
            given["components"] = tuple(_component(c) for c in given["components"])
        return cls(**given)

    def as_json(self) -> dict[str, Any]:
        """Plain values, as `from_json` takes them."""
        return {**asdict(self), "components": [{"rule": c.rule, **asdict(c)} for c in self.components]}


def _rules() -> str:
    return ", ".join(COMPONENTS)


def _component(value: Mapping[str, Any]) -> Component:
    given = dict(value)
    rule = given.pop("rule", None)
    if rule not in COMPONENTS:
        raise ValueError(f"masking: a component's rule is {rule!r}; wanted one of {_rules()}")
    kind = COMPONENTS[rule]
    known = [f.name for f in fields(kind)]
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"masking: a {rule} has no {', '.join(unknown)}; it has {', '.join(known)}")
    return kind(**given)


class Masker:
    """Masks objects of one vocabulary. Nothing is remembered from one microbatch to the next."""

    def __init__(self, vocabulary: Vocabulary, masking: Masking) -> None:
        if wide := [c.modality for c in vocabulary.columns if c.vocabulary > 1 << 31]:
            raise ValueError(f"masking: {', '.join(wide)} have vocabularies above 2^31, which microbatches cannot hold")
        self.vocabulary, self.masking = vocabulary, masking
        weight = np.array([c.weight for c in masking.components], np.float64)
        self._upto = np.cumsum(weight / weight.sum())[:-1]
        self._alphas = [_alphas_of(c, vocabulary) for c in masking.components]
        self._survey = np.eye(int(vocabulary.survey.max()) + 1, dtype=np.int64)[vocabulary.survey]
        sizes = np.array([c.n_tokens for c in vocabulary.columns])
        self._single = np.flatnonzero(sizes == 1)
        self._several = [(int(m), int(vocabulary.first_slot[m]), int(sizes[m])) for m in np.flatnonzero(sizes > 1)]

    def draw(self, tokens: NDArray[Any], length: NDArray[Any], rng: np.random.Generator) -> Packed:
        """The objects masked, those without a token left out.

        `tokens` (n, slot), within each modality's vocabulary; `length` (n, modality), how many of each are there, which
        are its first.
        """
        some = length.any(axis=1)
        if not some.all():
            tokens, length = tokens[some], length[some]
        length = length.astype(np.int64)
        return self.packed(tokens, length, *self.counts(length, rng), rng)

    def packed(self, tokens: NDArray[Any], length: I64, shown: I64, asked: I64, rng: np.random.Generator) -> Packed:
        """Objects of whose modalities so many random tokens are shown and asked for, each (n, modality)."""
        state = self._chosen(length, shown, asked, rng)
        values = tokens.reshape(-1)
        out: list[NDArray[Any]] = []
        for which, count in ((1, shown), (2, asked)):
            start = np.zeros(len(length) + 1, np.int64)
            np.cumsum(count.sum(axis=1), out=start[1:])
            at = np.flatnonzero(state == which)
            slot = at - np.repeat(np.arange(len(length)) * self.vocabulary.n_slots, np.diff(start))
            out += [slot.astype(np.int32), values[at].astype(np.int32), start]
        return Packed(*out)

    def counts(self, length: I64, rng: np.random.Generator) -> tuple[I64, I64]:
        """How many tokens of each modality are shown and asked for, each (n, modality); each object has a token."""
        n = len(length)
        which = np.searchsorted(self._upto, rng.random(n), side="right") if len(self._upto) else np.zeros(n, np.int64)
        takes = [np.stack([a > 0 for a in pair]) for pair in zip(*self._alphas, strict=True)]
        can_show, can_ask, across = self._across(length, takes[0][which], takes[1][which], rng)
        total = length.sum(axis=1)
        most = np.floor(self.masking.most_shown * total + 1e-9).astype(np.int64)
        budget = np.where(across, total, np.where(total > 1, np.maximum(most, 1), 0))
        budget = np.minimum(budget, self.masking.inputs)
        if self.masking.nothing_shown:
            bare = rng.random(n) < self.masking.nothing_shown
            budget[bare], across[bare], can_ask[bare] = 0, False, length[bare]
        shown, asked = np.zeros_like(length), np.zeros_like(length)
        for number, component in enumerate(self.masking.components):
            rows = np.flatnonzero(which == number) if len(self._upto) else np.arange(n)
            if not len(rows):
                continue
            take_in, take_out = self._alphas[number]
            room = np.where(take_in > 0, can_show[rows], 0)
            left = budget[rows]
            if isinstance(component, Beta):
                alpha = np.where(take_in > 0, take_in, 1.0)
                wanted = np.rint(rng.beta(alpha, alpha, room.shape) * room)
                wanted = np.where(across[rows, None], room, wanted).astype(np.int64)
                shown[rows] = (fairly if component.fair else in_random_order)(wanted, room, left, rng)
            else:
                shown[rows] = _exact(component, take_in, room, left, rng)
            room = np.where(take_out > 0, np.minimum(can_ask[rows], length[rows] - shown[rows]), 0)
            left = np.full(len(rows), self.masking.targets)
            if isinstance(component, Beta):
                alpha = np.where(take_out > 0, take_out, 1.0)
                wanted = np.ceil(rng.beta(alpha, component.target_beta, room.shape) * room)
                asked[rows] = (fairly if component.fair else in_random_order)(wanted.astype(np.int64), room, left, rng)
            else:
                asked[rows] = _exact(component, take_out, room, left, rng)
            for i in rows[np.flatnonzero(asked[rows].sum(axis=1) == 0)]:
                # all that may be asked for is shown, or it has nothing that may be: one token is asked for all the same
                fits = (np.flatnonzero((left[i] > 0) & (take_out > 0)) for left in (can_ask, length))
                m = rng.choice(next((fit for fit in fits if len(fit)), np.flatnonzero(length[i])))
                shown[i, m], asked[i, m] = min(shown[i, m], length[i, m] - 1), 1
        return shown, asked

    def _across(self, length: I64, take_in: Flags, take_out: Flags, rng: np.random.Generator) -> tuple[I64, I64, Flags]:
        """Tokens that may be shown, and asked for, of each modality; and which objects are masked across surveys.

        Of an object so masked one survey that may be shown is, and another that may be asked for is asked for.
        """
        across = np.zeros(len(length), bool)
        if not self.masking.across_surveys:
            return length, length, across
        to_show, to_ask = (np.asarray((length * take) @ self._survey > 0) for take in (take_in, take_out))
        to_show &= to_ask.sum(axis=1, keepdims=True) - to_ask > 0  # another one is left to be asked for
        across = (rng.random(len(length)) < self.masking.across_surveys) & to_show.any(axis=1)
        rows = np.flatnonzero(across)
        keys = rng.random((2, len(rows), to_show.shape[1]))
        first = np.argmin(np.where(to_show[rows], keys[0], 2.0), axis=1)
        keys[1, np.arange(len(rows)), first] = 2.0
        second = np.argmin(np.where(to_ask[rows], keys[1], 3.0), axis=1)
        # a coin for the rest
        show = rng.random((len(rows), to_show.shape[1])) < rng.random((len(rows), 1))
        show[np.arange(len(rows)), first], show[np.arange(len(rows)), second] = True, False
        can_show, can_ask = length.copy(), length.copy()
        show = show[:, self.vocabulary.survey]
        can_show[rows], can_ask[rows] = length[rows] * show, length[rows] * ~show
        return can_show, can_ask, across

    def _chosen(self, length: I64, shown: I64, asked: I64, rng: np.random.Generator) -> NDArray[np.uint8]:
        """1 where a token is shown, 2 where it is asked for, else 0, (n, slot): random ones, as many as the counts."""
        state = np.zeros((len(length), self.vocabulary.n_slots), np.uint8)
        single = self._single
        state[:, self.vocabulary.first_slot[single]] = shown[:, single] + 2 * asked[:, single]
        taken = shown + asked
        for m, first, size in self._several:
            rows = np.flatnonzero(taken[:, m])
            if not len(rows):
                continue
            # a random key that carries its place, so that no two are alike: the smallest ones are taken
            bits = (size - 1).bit_length()
            kind = np.uint32 if bits <= 12 else np.uint64
            raw = rng.bit_generator.random_raw(-(-len(rows) * size * kind().itemsize // 8))
            key: NDArray[Any] = raw.view(kind)[: len(rows) * size].reshape(len(rows), size)
            absent = kind(np.iinfo(kind).max)
            key &= kind((absent >> kind(1)) - kind((1 << bits) - 1))
            key |= np.arange(size).astype(kind)
            if int(length[rows, m].min()) < size:
                key[np.arange(size) >= length[rows, m, None]] = absent
            ranked = np.concatenate([np.sort(key, axis=1), np.full((len(rows), 1), absent)], axis=1)
            first_end, last_end = (ranked[np.arange(len(rows)), n[rows, m], None] for n in (shown, taken))
            state[rows, first : first + size] = 2 * (key < last_end).view(np.uint8) - (key < first_end).view(np.uint8)
        return state


def _alphas_of(component: Component, vocabulary: Vocabulary) -> tuple[F64, F64]:
    """Alpha of each modality, shown and asked for, (modality,)."""
    if isinstance(component, Uniform):
        return np.ones(len(vocabulary.names)), np.ones(len(vocabulary.names))
    surveys = [name.split(".")[0] for name in vocabulary.names]
    for side, given in (("input", component.input_alphas), ("target", component.target_alphas)):
        if unknown := sorted(set(given) - set(vocabulary.names) - set(surveys)):
            raise ValueError(
                f"masking: {side}_alphas of a {component.rule} name {', '.join(unknown)}; there are "
                f"{', '.join(sorted({*surveys, *vocabulary.names}))}"
            )

    def each(default: float, given: Alphas) -> F64:
        both = zip(vocabulary.names, surveys, strict=True)
        return np.array([given.get(name, given.get(survey, default)) for name, survey in both], np.float64)

    return each(component.input_alpha, component.input_alphas), each(component.target_alpha, component.target_alphas)


def _exact(component: Component, alpha: F64, room: I64, budget: I64, rng: np.random.Generator) -> I64:
    budget = np.minimum(budget, room.sum(axis=1))
    if isinstance(component, Uniform):
        return of_all_alike(room, budget, rng)
    share, there = np.zeros(room.shape), room > 0
    share[there] = rng.standard_gamma(np.broadcast_to(alpha, room.shape)[there])
    return in_proportion(share, room, budget, rng)


def in_random_order(wanted: I64, room: I64, budget: I64, rng: np.random.Generator) -> I64:
    """What is wanted of each modality, (n, modality), in random order until the budget, (n,), is full.

    The first of those that have room gets one or more, where the budget is not 0.
    """
    order = np.argsort(np.where(room > 0, rng.random(room.shape), 2.0), axis=1)
    want = np.take_along_axis(wanted, order, axis=1)
    want[:, 0] = np.maximum(want[:, 0], np.take_along_axis(room, order[:, :1], axis=1)[:, 0] > 0)
    before = np.cumsum(want, axis=1) - want
    out = np.empty_like(want)
    np.put_along_axis(out, order, np.clip(budget[:, None] - before, 0, want), axis=1)
    return out


def fairly(wanted: I64, room: I64, budget: I64, rng: np.random.Generator) -> I64:
    """What is wanted of each modality, (n, modality), all cut to one height where the budget, (n,), is too small.

    Where nothing is wanted, a random one of those that have room gets one token, as the budget allows.
    """
    wanted = np.minimum(wanted, room)
    lacking = np.flatnonzero((wanted.sum(axis=1) == 0) & (room > 0).any(axis=1))
    if len(lacking):
        first = np.argmin(np.where(room[lacking] > 0, rng.random((len(lacking), room.shape[1])), 2.0), axis=1)
        wanted[lacking, first] = 1
    return in_proportion(np.ones(wanted.shape), wanted, np.minimum(budget, wanted.sum(axis=1)), rng)


def in_proportion(share: F64, room: I64, budget: I64, rng: np.random.Generator) -> I64:
    """Whole numbers that add up to the budget, (n,), in proportion to the shares, (n, modality), none above its room.

    The budget is no more than all rooms; where there is room shares are above 0. Before rounding a
    modality gets min(room, level x share), the level such that they add up; it is rounded up or down at random so that
    its mean is that.
    """
    share = np.maximum(share, LEAST_SHARE)
    order = np.argsort(room / share, axis=1) + np.arange(len(room))[:, None] * room.shape[1]
    rooms, some = room.reshape(-1)[order], share.reshape(-1)[order]
    left = budget[:, None] - (rooms.cumsum(axis=1) - rooms)
    rest = some[:, ::-1].cumsum(axis=1)[:, ::-1]
    # were the first k full, the level would be left/rest; to take too few or too many for full makes it too low
    level = (left / rest).max(axis=1, keepdims=True)
    upto = np.minimum(room, level * share).cumsum(axis=1)
    upto += rng.random((len(room), 1))
    ends = np.minimum(upto.astype(np.int64), budget[:, None])
    ends[:, -1] = budget
    ends[:, 1:] -= ends[:, :-1].copy()
    out = np.minimum(ends, room)
    for i in np.flatnonzero(out.sum(axis=1) != budget):  # the last bits of floats, once in 10^11 objects
        while (missing := int(budget[i] - out[i].sum())) > 0:
            m = int(np.argmax(room[i] - out[i]))
            out[i, m] += min(missing, int(room[i, m] - out[i, m]))
    return np.asarray(out)


def of_all_alike(room: I64, budget: I64, rng: np.random.Generator) -> I64:
    """How many fall to each modality, (n, modality), when so many of all their tokens are drawn without return."""
    out = np.zeros_like(room)
    left, rest = budget.copy(), room.sum(axis=1)
    most = room.max(axis=0)
    for m in np.flatnonzero(most > 1):
        rest -= room[:, m]
        out[:, m] = rng.hypergeometric(room[:, m], rest, left)
        left -= out[:, m]
    # of single tokens those with the smallest random keys: what is left
    single = np.flatnonzero(most == 1)
    rank = np.argsort(
        np.argsort(np.where(room[:, single] > 0, rng.random((len(room), len(single))), 2.0), axis=1), axis=1
    )
    out[:, single] = rank < left[:, None]
    return out
