"""One training step, forward, backward and AdamW: objects/s of ours and of the 4M code in polymathic-aion.

    python benchmarks/train_step.py [--size base] [--objects 8] [--steps 5] [--threads 2] [--dtype fp32]

The same weights, tokens, threads and type, in turns, in one run; the losses of the first step are printed. AION-1's 40
modalities, 256 tokens shown and 128 asked for of an object at most. *Full*: objects that have all of them. *Mix*: a
third are stars that Gaia alone has seen, the rest lack each modality with a chance of 60 %; of an object with fewer
than 384 tokens two thirds are shown. The peer pads to its budgets, and its inputs are made before the clock runs; ours
are laid out while it runs. *Products*: square matrix products, as in `benchmarks/codec_throughput.py`. GFLOP/s are of
what the tokens need, without padding (`model/forms.py`).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skycairn.model.aion import aion_objective, read_aion
from skycairn.model.forms import FORMS, Form, flops
from skycairn.model.packed import Packed
from skycairn.model.vocabulary import Vocabulary
from skycairn.tokenizers.modalities import AION

INPUTS, TARGETS = 256, 128
HEAD = (
    "| objects | who | objects/s | GFLOP an object | GFLOP/s | of the products | of the peer | loss |\n"
    + "|---" * 8
    + "|"
)


def peer_model(form: Form, seed: int = 0) -> Any:
    """The peer's model; what it starts as 0 or 1 is a little off, so that it counts."""
    from aion.model import AION as Peer

    torch.manual_seed(seed)
    model = Peer(
        {
            **{"act_layer": "SiLU", "gated_mlp": True, "qk_norm": True, "norm_bias": False, "qkv_bias": False},
            **{"proj_bias": False, "mlp_bias": False, "mlp_ratio": 4, "dim": form.width, "num_heads": form.heads},
            **{"encoder_depth": form.encoder_depth, "decoder_depth": form.decoder_depth},
            **{"domains_in": list(AION), "domains_out": list(AION)},
        }
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name == "decoder_proj_context.bias":
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def peer_batch(packed: Packed, vocabulary: Vocabulary) -> dict[str, dict[str, torch.Tensor]]:
    """A microbatch as the peer takes it: all slots of all modalities, and what of them is shown and asked for."""
    n, slots = packed.n_objects, vocabulary.n_slots
    token, shown, asked = np.zeros((n, slots), np.int64), np.zeros((n, slots), bool), np.zeros((n, slots), bool)
    for is_there, slot, value, start in ((shown, *packed[:3]), (asked, *packed[3:])):
        of = np.repeat(np.arange(n), np.diff(start))
        token[of, slot], is_there[of, slot] = value, True
    out = {}
    for m, column in enumerate(vocabulary.columns):
        part = slice(int(vocabulary.first_slot[m]), int(vocabulary.first_slot[m + 1]))
        attention = np.zeros((n, column.n_tokens), np.int64)
        if column.layout == "sequence":
            attention[asked[:, part]] = 1
        else:
            rows = np.flatnonzero(asked[:, part].any(axis=1))
            attention[rows, asked[rows, part].argmax(axis=1)] = asked[rows, part].sum(axis=1)
        out[column.modality] = {
            "tensor": torch.from_numpy(token[:, part]),
            "input_mask": torch.from_numpy(~shown[:, part]),
            "target_mask": torch.from_numpy(~asked[:, part]),
            "decoder_attention_mask": torch.from_numpy(attention),
        }
    return out


def peer_loss(model: Any, batch: dict[str, dict[str, torch.Tensor]], kind: str = "mod", most: int = 0) -> torch.Tensor:
    """The loss of 4M's own forward pass, which AION's class hides; `most` tokens on either side, if not the budgets."""
    from aion.fourm.fm import FourM

    given = {k: dict(v) for k, v in batch.items()}  # it writes into what it is given
    loss, _ = FourM.forward(model, given, most or INPUTS, most or TARGETS, kind)
    return loss


def draw(vocabulary: Vocabulary, there: np.ndarray, rng: np.random.Generator) -> Packed:
    """Random tokens of objects that have the modalities `there`, (object, modality), in shares that are random too."""
    shown, asked = [], []
    size = np.array([c.vocabulary for c in vocabulary.columns])
    kind = vocabulary.modality_of_slot
    n_tokens = np.array([c.n_tokens for c in vocabulary.columns])
    for has in there:
        slots = np.flatnonzero(has[kind])
        n = min(INPUTS, 2 * len(slots) // 3)
        share = rng.gamma(0.5, size=len(size)) + 1e-3
        pace = (share / n_tokens)[kind[slots]]
        order = slots[np.argsort(rng.exponential(size=len(slots)) / pace)]
        shown.append(np.sort(order[:n]))
        asked.append(np.sort(rng.permutation(order[n:])[:TARGETS]))
    out: list[np.ndarray] = []
    for part in (shown, asked):
        slot = np.concatenate(part).astype(np.int32)
        token = rng.integers(0, size[kind[slot]]).astype(np.int32)
        out += [slot, token, np.append(0, np.cumsum([len(p) for p in part])).astype(np.int64)]
    return Packed(*out)


def objects(vocabulary: Vocabulary, n: int, rng: np.random.Generator) -> dict[str, Packed]:
    """The two kinds of microbatches. The catalogue is left out: the peer reads it in a way of its own."""
    gaia = [AION[name].survey == "gaia" for name in vocabulary.names]
    able = np.array([c.layout != "sequence" for c in vocabulary.columns])
    full = np.tile(able, (n, 1))
    mix = (rng.random(full.shape) < 0.4) & able
    mix[: n // 3] = gaia
    return {"full": draw(vocabulary, full, rng), "mix": draw(vocabulary, mix, rng)}


def times(steps: Sequence[Callable[[], None]], n: int, device: str, clock: Callable[[], float]) -> list[float]:
    """Seconds of each, in turns: the median of n, after one for warming up."""
    took: list[list[float]] = [[] for _ in steps]
    for i in range(n + 1):
        for step, own in zip(steps, took, strict=True):
            start = clock()
            step()
            if device != "cpu":
                torch.cuda.synchronize()
            if i:
                own.append(clock() - start)
    return [statistics.median(own) for own in took]


def main() -> None:
    from codec_throughput import products

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", default="base", choices=list(FORMS))
    parser.add_argument("--objects", type=int, default=12, help="of a step")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"], help="bf16: the peer by autocast")
    parser.add_argument("--kinds", default="full,mix")
    parser.add_argument("--ours-only", action="store_true", help="for a profile")
    parser.add_argument(
        "--clock", default="wall", choices=["wall", "cpu"], help="cpu: of one thread, if others work here"
    )
    args = parser.parse_args()
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    torch.set_num_threads(args.threads)
    peer = peer_model(FORMS[args.size])
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        network = read_aion(Path(folder)).network
    half = args.dtype == "bf16"
    network.to(args.device).compute_in(torch.bfloat16 if half else torch.float32)
    peer.to(args.device)
    vocabulary = network.vocabulary
    limit = products(args.dtype, args.device, 2.0)
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads, {args.dtype}, {args.size}")
    print(f"{args.objects} objects a step; products {limit:,.0f} GFLOP/s\n\n{HEAD}")
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-5, fused=True) for m in (network, peer)]
    for kind, packed in objects(vocabulary, args.objects, np.random.default_rng(0)).items():
        if kind not in args.kinds.split(","):
            continue
        theirs = {k: {a: t.to(args.device) for a, t in d.items()} for k, d in peer_batch(packed, vocabulary).items()}
        losses: list[list[float]] = [[], []]

        def ours(packed: Packed = packed, losses: list[list[float]] = losses) -> None:
            loss = aion_objective(network(packed), vocabulary, "mod", len(vocabulary.columns))
            loss.backward()
            optimizers[0].step()
            optimizers[0].zero_grad()
            losses[0].append(loss.detach())

        def peers(batch: Any = theirs, losses: list[list[float]] = losses) -> None:
            with torch.autocast(args.device, torch.bfloat16, enabled=half):
                loss = peer_loss(peer, batch)
            loss.backward()
            optimizers[1].step()
            optimizers[1].zero_grad()
            losses[1].append(loss.detach())

        took = times([ours] if args.ours_only else [peers, ours], args.steps, args.device, clock)
        useful = flops(network.form, vocabulary, network.prepared(packed).layout).training / 1e9
        for who, seconds, loss in zip(["peer", "ours"][-len(took) :], took, losses[::-1][-len(took) :], strict=True):
            share, ratio = useful / seconds / limit, f"{took[0] / seconds:.2f}" if who == "ours" else ""
            cells = [kind, who, f"{args.objects / seconds:,.2f}", f"{useful / args.objects:,.1f}"]
            cells += [f"{useful / seconds:,.0f}", f"{share:.0%}", ratio, f"{float(loss[0]):.5f}"]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
