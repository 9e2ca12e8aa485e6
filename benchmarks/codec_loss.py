"""What a model learns from tokens, by the codecs that made them: the trainer's loss on the validation sky.

    python benchmarks/codec_loss.py [--steps 600] [--threads 1] [NAME=]PILE ...

The same model, settings, masks and sky on each pile; piles differ by their codecs of images and spectra. *Numbers*:
mean cross-entropy, nats a token, of numbers that all piles hold by one codec, the objects' image or spectrum alone
being shown (`INPUTS` of its tokens): comparable, as it is the same question. *Own tokens*: of the image or spectrum
itself, random tokens of it shown: each codec has its own, of which it is the price in nats a token; not comparable.
*Start*: before a step of training, when each slot's own counts are all that is known. The error is that of the mean
over batches. Mock-sky scores where the sky is a mock.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from skycairn.cli.qualitytables import Table
from skycairn.model.loader import Loader
from skycairn.model.rules import Dirichlet, Masker, Masking
from skycairn.model.settings import Settings
from skycairn.model.strata import Source, Weights
from skycairn.model.trainer import Run
from skycairn.model.transformer import Network
from skycairn.pile.store import Pile
from skycairn.tokenizers.training import Signals

INPUTS, TARGETS, OBJECTS = 128, 32, 64
MAGNITUDES = tuple(f"hsc.mag_{b}" for b in "grizy")
FLUXES = tuple(f"legacysurvey.flux_{b}" for b in "griz")
QUESTIONS = {
    "legacysurvey.image": FLUXES,
    "hsc.image": MAGNITUDES,
    "desi.spectrum": ("desi.z",),
    "sdss.spectrum": ("sdss.z",),
}


def settings(steps: int) -> Settings:
    """Of all runs."""
    masking = Masking(INPUTS, TARGETS, across_surveys=0.35, components=(Dirichlet(), Dirichlet(0.3, 0.3)))
    return Settings(
        steps=steps,
        objects=OBJECTS // 2,
        microbatches=2,
        smooth=True,
        counted=2000,
        check_every=steps,
        masking=masking,
        weights=Weights(matched=3.0),
    )


def score(network: Network, source: Source, shown: str, asked: tuple[str, ...]) -> tuple[float, float, int]:
    """Mean cross-entropy of the asked modalities, the error of the mean, and of how many objects."""
    own = shown in asked
    alphas = dict.fromkeys(asked, 1.0)
    rule = Dirichlet(0.0, 0.0, {shown: 1.0}, alphas)
    vocabulary = network.vocabulary
    loader = Loader([source], "validation", Masking(INPUTS, TARGETS, components=(rule,)), vocabulary, objects=OBJECTS)
    masker = Masker(vocabulary, replace(loader.masker.masking, most_shown=0.9 if own else 0.999))
    at, there = vocabulary.indices([shown])[0], vocabulary.indices(asked)
    rng, losses, n, seen = np.random.default_rng(0), [], 0, set()
    for i in range(-(-sum(s.rows for s in loader.order.strata) // OBJECTS)):
        rows = loader.rows(i)
        which = list(map(tuple, loader.order.samples(i).tolist()))
        new = np.array([k not in seen for k in which])
        seen.update(which)
        some = (rows.length[:, at] > 0) & (rows.length[:, there] > 0).any(axis=1) & new
        if not some.any():
            continue
        length = np.zeros_like(rows.length[some])
        length[:, [at, *there]] = rows.length[some][:, [at, *there]]
        with torch.no_grad():
            found = network(masker.draw(rows.tokens[some], length, rng))
        losses.append((float(found.sums[there].sum()), int(found.counts[there].sum())))
        n += int(some.sum())
    sums, counts = np.array(losses).T
    mean = sums.sum() / counts.sum()
    error = np.sqrt(((sums - mean * counts) ** 2).sum()) / counts.sum()
    return float(mean), float(error), n


def _add(network: Network, source: Source, cells: dict[tuple[str, str], list[str]]) -> None:
    network.eval()
    for shown, asked in QUESTIONS.items():
        for what, of in (("numbers", asked), ("own tokens", (shown,))):
            mean, error, n = score(network, source, shown, of)
            cells.setdefault((shown, what), [str(n)]).append(f"{mean:.3f} +- {error:.3f}")


def main() -> None:
    """Train on each pile, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("piles", nargs="+")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    named = [(g.split("=", 1) if "=" in g else [Path(g).name, g]) for g in given.piles]
    cells: dict[tuple[str, str], list[str]] = {}
    validation = []
    for name, path in named:
        pile = Pile.open(Path(path))
        source = Source(pile, pile.snapshot(), name)
        validation += [f"{name}: start", "trained"]
        with tempfile.TemporaryDirectory() as out, Signals() as told:
            run = Run([source], settings(given.steps), Path(out), "cpu", "validation", lambda t: print(t, flush=True))
            _add(run.network, source, cells)
            run.go(told)
            _add(run.network, source, cells)
    rows = [(shown, what, *found) for (shown, what), found in cells.items()]
    print(Table("Loss on the validation sky", "", ("shown", "asked", "objects", *validation), rows).markdown())


if __name__ == "__main__":
    main()
