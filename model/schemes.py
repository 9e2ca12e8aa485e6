"""In which order tokens are generated, and how many at once: plain values, and the schedule of steps that they make.

    [Target("legacysurvey.image", MaskGit(steps=8)), Target("desi.z", temperature=0.7)]

After MaskGIT (https://arxiv.org/abs/2202.04200), and 4M's chains of targets (https://arxiv.org/abs/2312.06647).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from skycairn.model.vocabulary import Vocabulary


@dataclass(frozen=True)
class MaskGit:
    """All tokens that are left are asked for at each step, and the surest of them are kept: pictures, no samples.

    What is unlikely is drawn again and again until it is likely, which moves the mean: of 64 tokens that are 1 with a
    chance of 0.3 each, together, 0.009 were. For samples of what the network believes take `Roar`.
    """

    steps: int = 8
    curve: Literal["cosine", "linear"] = "cosine"
    "of the share that is left after each step; cosine keeps few at first"
    noise: float = 0.0
    "Gumbel noise on how sure a token is, times this and the share that is left; 0: by the network's word alone"

    def __post_init__(self) -> None:
        _whole("MaskGit", "steps", self.steps)
        if self.curve not in ("cosine", "linear"):
            raise ValueError(f"MaskGit: curve is {self.curve!r}; choose cosine or linear")
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise ValueError(f"MaskGit: noise is {self.noise}; wanted a finite number of 0 or more")

    def n_steps(self, n: int) -> int:
        """Of n tokens."""
        return self.steps

    def share(self, step: int) -> float:
        """That is left after a step."""
        way = (step + 1) / self.steps
        return 0.0 if way == 1 else math.cos(math.pi / 2 * way) if self.curve == "cosine" else 1 - way

    def left(self, step: int, n: int) -> int:
        """Tokens of n that are left after a step; a step that keeps none of an object's costs it nothing."""
        return math.floor(n * self.share(step) + 1e-9)


@dataclass(frozen=True)
class Roar:
    """So many tokens at each step, in an order drawn anew for each sample; nothing but these is asked for.

    One at a time it draws from the product of the network's own conditionals; the fewer at once, the nearer to that.
    """

    at_once: int = 1
    steps: int | None = None
    "so many steps, however many tokens there are, in place of `at_once`"

    def __post_init__(self) -> None:
        _whole("Roar", "at_once", self.at_once)
        if self.steps is not None:
            _whole("Roar", "steps", self.steps)

    def n_steps(self, n: int) -> int:
        """Of n tokens."""
        return -(-n // self.at_once) if self.steps is None else min(n, self.steps)

    def left(self, step: int, n: int) -> int:
        """Tokens of n that are left after a step."""
        if self.steps is None:
            return max(n - self.at_once * (step + 1), 0)
        return max(n - -(-n * (step + 1) // min(n, self.steps)), 0) if n else 0


@dataclass(frozen=True)
class Autoregressive:
    """One token at each step, in the order of slots."""

    def n_steps(self, n: int) -> int:
        """Of n tokens."""
        return n

    def left(self, step: int, n: int) -> int:
        """Tokens of n that are left after a step."""
        return max(n - step - 1, 0)


@dataclass(frozen=True)
class Target:
    """A modality to generate, and how."""

    modality: str
    scheme: MaskGit | Roar | Autoregressive = field(default_factory=lambda: Roar(steps=32))
    temperature: float = 1.0
    "0: the most probable token"
    top_k: int | None = None
    "draw among so many of the most probable tokens; None: among all"
    top_p: float = 1.0
    "draw among the most probable tokens that hold this share; 1: among all"
    guidance: float = 1.0
    "w of logits u + w (c - u): c is shown all, u what was generated alone; 1: c"

    def __post_init__(self) -> None:
        if not isinstance(self.scheme, MaskGit | Roar | Autoregressive):
            raise ValueError(
                f"{self.modality}: scheme is {self.scheme!r}; wanted MaskGit(), Roar() or Autoregressive()"
            )
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"{self.modality}: temperature is {self.temperature}; wanted a finite number of 0 or more")
        if self.top_k is not None:
            _whole(self.modality, "top_k", self.top_k)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"{self.modality}: top_p is {self.top_p}; wanted a share above 0 and up to 1")
        if not math.isfinite(self.guidance):
            raise ValueError(f"{self.modality}: guidance is {self.guidance}; wanted a finite number")


class Step(NamedTuple):
    """One pass through the network."""

    target: Target
    number: int
    "from 0, of this target's"

    def left(self, n: int) -> int:
        """Of n tokens that an object lacked of the modality, how many are left after the step."""
        return self.target.scheme.left(self.number, n)


def schedule(vocabulary: Vocabulary, targets: Sequence[str | Target]) -> list[Step]:
    """The steps of a chain of targets, each of which is shown what those before it gave; a name means `Target(name)`.

    ValueError for a modality that is not there, comes twice, or is of a length that no token tells.
    """
    whole = [t if isinstance(t, Target) else Target(t) for t in targets]
    names = [t.modality for t in whole]
    if not names:
        raise ValueError(f"generate: no target; choose some of {', '.join(vocabulary.names)}")
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"generate: {', '.join(twice)} twice among the targets; wanted each once")
    steps = []
    for target in whole:
        column = vocabulary.columns[number_of(vocabulary, target.modality)]
        if column.layout == "sequence":
            raise ValueError(
                f"generate: {target.modality} is a sequence, whose length no token tells: nothing says where to stop; "
                "show it if you like, and ask for other modalities"
            )
        steps += [Step(target, i) for i in range(target.scheme.n_steps(column.n_tokens))]
    return steps


def number_of(vocabulary: Vocabulary, modality: str) -> int:
    """Of a modality; ValueError lists what is known."""
    if modality not in vocabulary.names:
        raise ValueError(
            f"generate: there is no modality {modality!r}; the network knows {', '.join(vocabulary.names)}"
        )
    return vocabulary.names.index(modality)


def _whole(what: str, name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{what}: {name} is {value!r}; wanted a whole number of 1 or more")
