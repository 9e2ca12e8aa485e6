"""What a model could read from tokens: the redshift, by one probe that is the same for every codec.

    python benchmarks/codec_probe.py [NAME=]PILE ...

Kernel ridge regression of log(1 + z) on tokens. The kernel of two sources is the share of their tokens that are equal,
which is linear regression on all tokens as indicators: it does not ask what a codec's codes mean, and so favours codecs
of few codes in use, since near codes are as far from each other as distant ones. Learned from objects
of the training sky with a good DESI or SDSS redshift; the ridge is chosen on every fifth of them; scored on the
validation and test sky. Piles of one sky are compared by the same sources. Mock-sky scores where the sky is a mock.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from skycairn.cli.qualitytables import Table, number
from skycairn.pile.store import Pile
from skycairn.pipeline.heldout import HELD_OUT
from skycairn.tokenizers.lock import read_lock

MODALITIES = ("legacysurvey.image", "hsc.image", "desi.spectrum", "sdss.spectrum")
REDSHIFTS = ("desi", "sdss")
RIDGES = 10.0 ** np.arange(-4, 2)
FAR = 0.15
"""|dz| / (1 + z) from which on a redshift is an outlier."""


class Tokens(NamedTuple):
    """One modality's tokens of objects with a redshift."""

    key: np.ndarray
    tokens: np.ndarray
    z: np.ndarray
    held: np.ndarray
    "bool: on the validation or test sky"


class Score(NamedTuple):
    """Of redshifts on the held-out sky."""

    n: int
    nmad: float
    outliers: float


def read(pile: Pile, root: Path, modality: str) -> Tokens:
    """All objects that have the modality and a good redshift, by the survey's key."""
    survey = modality.split(".")[0]
    codec = read_lock(root / "codecs.lock")[modality]
    snapshot = pile.snapshot()
    known = {s: _redshifts(pile, s) for s in REDSHIFTS if f"{s}.wide" in snapshot.tables}
    key, tokens, z, held = [], [], [], []
    for entry in snapshot.entries("shards"):
        if entry.labels["split"] not in ("train", *HELD_OUT):
            continue
        names = [f"key.{survey}", *(f"key.{s}" for s in known), modality]
        table = pile.read_table(entry.part, columns=list(dict.fromkeys(names)))
        table = table.filter(pc.and_(table[f"key.{survey}"].is_valid(), table[modality].is_valid()))
        found = np.full(table.num_rows, np.nan)
        for s, (keys, values) in known.items():
            at = pc.index_in(table[f"key.{s}"].combine_chunks(), pa.array(keys)).fill_null(-1).to_numpy()
            found = np.where(np.isnan(found) & (at >= 0), values[at], found)
        good = np.isfinite(found)
        flat = pc.list_flatten(table[modality].combine_chunks()).to_numpy(zero_copy_only=False)
        key.append(table[f"key.{survey}"].to_numpy()[good])
        tokens.append(flat.reshape(table.num_rows, codec.n_tokens)[good])
        z.append(found[good])
        held.append(np.full(good.sum(), entry.labels["split"] in HELD_OUT))
    order = np.argsort(np.concatenate(key), kind="stable")
    return Tokens(*(np.concatenate(a)[order] for a in (key, tokens, z, held)))


def _redshifts(pile: Pile, survey: str) -> tuple[np.ndarray, np.ndarray]:
    tables = [pile.read_table(e.part, ["key", "z_good"]) for e in pile.snapshot().entries(f"{survey}.wide")]
    table = pa.concat_tables(tables)
    return table["key"].to_numpy(), table["z_good"].to_numpy(zero_copy_only=False).astype(float)


def equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Share of equal tokens of every pair of sources, (n, m)."""
    return np.stack([(b == row).mean(axis=1) for row in a])


def fitted(kernel: np.ndarray, y: np.ndarray, ridge: float, asked: np.ndarray) -> np.ndarray:
    """Kernel ridge regression of y about its mean, at the sources whose kernel with the learned ones is `asked`."""
    return y.mean() + asked @ np.linalg.solve(kernel + ridge * np.eye(len(y)), y - y.mean())


def score(z: np.ndarray, found: np.ndarray) -> Score:
    """Of redshifts found, against the true ones."""
    off = (found - z) / (1 + z)
    nmad = 1.4826 * float(np.median(np.abs(off - np.median(off))))
    return Score(len(z), nmad, float((np.abs(off) > FAR).mean()))


def probe(t: Tokens) -> tuple[Score, Score]:
    """Scores of the probe, and of the mean redshift of the training sky, on the held-out sky."""
    y = np.log1p(t.z[~t.held])
    tokens = t.tokens[~t.held]
    kernel = equal(tokens, tokens)
    choosing = np.arange(len(y)) % 5 == 0
    inner = kernel[np.ix_(~choosing, ~choosing)]
    wrong = [
        np.abs(fitted(inner, y[~choosing], r, kernel[np.ix_(choosing, ~choosing)]) - y[choosing]).mean() for r in RIDGES
    ]
    found = np.expm1(fitted(kernel, y, float(RIDGES[int(np.argmin(wrong))]), equal(t.tokens[t.held], tokens)))
    z = t.z[t.held]
    return score(z, found), score(z, np.full(len(z), np.expm1(y.mean())))


def check_alike(modality: str, found: dict[str, Tokens]) -> None:
    """ValueError where piles hold out other sources, or give them other redshifts: their scores compare nothing."""
    (first, one), *others = found.items()
    for name, other in others:
        if not (np.array_equal(one.held, other.held) and np.array_equal(one.z, other.z)):
            raise ValueError(
                f"{modality}: {first} and {name} hold out other sources, or have other redshifts of them; wanted piles "
                "of one sky and one split"
            )


def main(given: list[str]) -> None:
    """Print the table."""
    named = [(g.split("=", 1) if "=" in g else [Path(g).name, g]) for g in given]
    piles = {name: (Pile.open(Path(path)), Path(path)) for name, path in named}
    names = [n for name in [*piles, "mean redshift"] for n in (f"{name}: NMAD", "outliers")]
    rows: list[tuple[str, ...]] = []
    for modality in MODALITIES:
        found = {name: read(pile, root, modality) for name, (pile, root) in piles.items()}
        shared = None
        for t in found.values():
            shared = t.key if shared is None else np.intersect1d(shared, t.key)
        found = {name: Tokens(*(a[np.isin(t.key, shared)] for a in t)) for name, t in found.items()}
        one = next(iter(found.values()))
        check_alike(modality, found)
        scores = {name: probe(t) for name, t in found.items()}
        told = [*(s for s, _ in scores.values()), next(iter(scores.values()))[1]]
        numbers = [n for s in told for n in (number(s.nmad, ".3f"), f"{s.outliers:.1%}")]
        rows.append((modality, str((~one.held).sum()), str(one.held.sum()), *numbers))
    print(Table("Redshift from tokens", "", ("tokens of", "learned from", "scored on", *names), rows).markdown())


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
