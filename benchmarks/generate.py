"""How fast a model answers: redshift posteriors, and images by MaskGIT in 8 steps, one thread, random weights.

    OMP_NUM_THREADS=1 python benchmarks/generate.py [--sizes nano small] [--objects 16] [--device cpu]

Objects show an image of another survey (576 tokens), a spectrum (273) and 20 numbers, as AION-1's vocabulary has them:
what weights a network has does not change how long it takes. Figures are objects per CPU-second, the best of 3 passes
(on a GPU per second); on a machine that others use too they are low, as caches and memory are shared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from skycairn.model.forms import form_named
from skycairn.model.generate import distribution, generate, shown_of
from skycairn.model.schemes import MaskGit, Target
from skycairn.model.transformer import Network
from skycairn.model.vocabulary import Vocabulary
from skycairn.pile.shards import TokenArray, TokenColumn

VOCABULARY = Vocabulary(
    (
        TokenColumn("desi.spectrum", "s" * 64, 1024, 273, "line", (273,), False, "tok_spectrum_desi"),
        TokenColumn("desi.z", "z" * 64, 1024, 1, "scalar", (), True, "tok_z"),
        TokenColumn("hsc.image", "i" * 64, 4375, 576, "grid", (24, 24), False, "tok_image_hsc"),
        TokenColumn("legacysurvey.image", "j" * 64, 4375, 576, "grid", (24, 24), False, "tok_image"),
        *(TokenColumn(f"z.{i:02}", f"{i:064}", 1024, 1, "scalar", (), True, f"tok_{i}") for i in range(20)),
    )
)


def best(work: Callable[[], object], device: str, passes: int = 3) -> float:
    """Seconds of the fastest pass."""
    took, clock = [], time.process_time if device == "cpu" else time.perf_counter
    for _ in range(passes):
        began = clock()
        work()  # answers are on the host when it ends
        took.append(clock() - began)
    return min(took)


def measured(size: str, n: int, device: str) -> list[str]:
    """A line for each question, of n objects."""
    torch.manual_seed(0)
    network = Network(VOCABULARY, form_named(size)).to(device).eval()
    rng = np.random.default_rng(0)
    tokens = {
        c.modality: TokenArray(rng.integers(0, c.vocabulary, (n, c.n_tokens)), np.ones(n, bool), np.full(n, c.n_tokens))
        for c in VOCABULARY.columns
        if c.modality not in ("desi.z", "hsc.image")
    }
    shown = shown_of(VOCABULARY, tokens, n)
    few = shown_of(VOCABULARY, {k: v for k, v in tokens.items() if k.startswith("z.")}, n)
    photometry = best(lambda: distribution(network, few, "desi.z"), device)
    whole = best(lambda: distribution(network, shown, "desi.z"), device)
    image = best(lambda: generate(network, shown, [Target("hsc.image", MaskGit(8))]), device, 1)
    return [
        f"{size:6} redshift posterior, 20 tokens shown      {n / photometry:9.1f} objects/s",
        f"{size:6} redshift posterior, 869 tokens shown     {n / whole:9.1f} objects/s",
        f"{size:6} image of 576 tokens, MaskGIT of 8 steps  {n / image:9.2f} objects/s",
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["nano", "small"])
    parser.add_argument("--objects", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    for name in given.sizes:
        print("\n".join(measured(name, given.objects, given.device)), flush=True)
