"""Training of the transformer on one process or many: a step is a function of settings, snapshots and its number.

Each process works on its own microbatches of a step. Losses are divided by how often each modality is asked for in the
whole step, so that gradients add up to the same however many processes there are. What is drawn at random within a
microbatch hangs on its number alone. On a CPU a run goes on bit for bit on as many processes of as many threads; on
another number of processes, which see the same microbatches, to rounding.
"""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from skycairn.model import sharded
from skycairn.model.forms import flops, form_named
from skycairn.model.loader import Loader, slot_counts
from skycairn.model.packed import Packed
from skycairn.model.settings import Settings
from skycairn.model.strata import Source
from skycairn.model.transformer import Network, equal_weights, objective, token_weights
from skycairn.model.vocabulary import BY_SKY, Vocabulary
from skycairn.tokenizers.checkpoint import unlike
from skycairn.tokenizers.training import Signals, Stopped, forget_after

FORMAT = 1
QUIET_SECONDS = 15.0
"""A line at least this often."""
Progress = Callable[[str], None]
I64 = NDArray[np.int64]


def train(
    sources: Sequence[Source],
    settings: Settings,
    out: Path,
    device: str = "cpu",
    validation: str = "validation",
    progress: Progress = lambda _: None,
) -> Network:
    """Train, or go on from the checkpoint in `out/last`; gives the network.

    Where a process group is there, all its processes call this, and weights are dealt out among them (FSDP2, ZeRO-2).
    `out/metrics.jsonl` gets a line at each look at the split `validation`; an empty name looks at nothing.

    ValueError where `out` holds a run of other settings, snapshots or codecs, saying what differs, or where the
    processes cannot share the microbatches; FloatingPointError names the step whose loss is not finite, on all
    processes alike, the checkpoint before it stays; `Stopped` on SIGINT and SIGTERM, after a checkpoint.
    """
    run = Run(sources, settings, out, device, validation, progress)
    with Signals() as told:
        run.go(told)
    return run.network


class Run:
    """A run that `go` takes to its end."""

    def __init__(
        self,
        sources: Sequence[Source],
        settings: Settings,
        out: Path,
        device: str,
        validation: str,
        progress: Progress,
    ) -> None:
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if settings.microbatches % self.world:
            raise ValueError(
                f"train: {self.world} processes cannot share {settings.microbatches} microbatches a step; wanted a "
                "number of microbatches that they divide"
            )
        self.settings, self.out = settings, out
        self.progress: Progress = progress if self.rank == 0 else lambda _: None
        self.loader = Loader(
            sources,
            "train",
            settings.masking,
            weights=settings.weights,
            seed=settings.seed,
            objects=settings.objects,
            lanes=settings.microbatches,
            pool=settings.pool,
        )
        self.vocabulary = self.loader.vocabulary
        self.held = (
            Loader(sources, validation, settings.masking, self.vocabulary, None, settings.seed, settings.objects, 1)
            if validation
            else None
        )
        torch.manual_seed(settings.seed)
        counts = slot_counts(self.loader.whole(settings.counted), self.vocabulary) if settings.counted else None
        self.form = form_named(settings.size, settings.dropout)
        self.network = Network(self.vocabulary, self.form, settings.smooth, counts, pairs=settings.pairs).to(device)
        self.network.compute_in(torch.bfloat16 if settings.precision == "bf16" else torch.float32)
        if self.world > 1:
            _dealt_out(self.network)
        self.optimizer = _optimizer(self.network, settings)
        self.step = 0
        self.about = {
            "run": FORMAT,
            "settings": settings.as_json(),
            "loader": self.loader.identity,
            "snapshots": [s.snapshot.content_id for s in sources],
            "modalities": self.vocabulary.as_json(),
        }

    def go(self, told: Signals) -> None:
        """To the end."""
        self._resume()
        shown = sum(p.numel() for p in self.network.parameters())
        self.progress(f"{shown:,} weights, {self.world} processes; step {self.step} of {self.settings.steps}")
        tally, spoke = _Tally(), time.monotonic()
        each = self.settings.microbatches // self.world
        with self.loader.ahead(self.step, self.rank, self.world) as stream:
            while self.step < self.settings.steps:
                if number := self._agreed(told.number):
                    self._save()
                    raise Stopped(number)
                self._learn([next(stream) for _ in range(each)], tally)
                tally.waiting = stream.waiting
                if self.step % self.settings.check_every == 0 or self.step == self.settings.steps:
                    self._check(tally)
                    tally, spoke = _Tally(), time.monotonic()
                elif time.monotonic() - spoke > QUIET_SECONDS:
                    spoke = time.monotonic()
                    self.progress(f"step {self.step} of {self.settings.steps}: {tally.told()}")
        self.network.eval()

    def _learn(self, microbatches: Sequence[Packed], tally: _Tally) -> None:
        settings, n = self.settings, len(self.vocabulary.columns)
        self.network.train()
        batches = [self.network.prepared(p) for p in microbatches]
        counts = self._summed(np.stack([b.layout.counts for b in batches]).sum(axis=0))
        weights = (equal_weights if settings.weighing == "modality" else token_weights)(counts)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(n, dtype=torch.float64)
        for k, batch in enumerate(batches):
            number = self.step * settings.microbatches + self.rank + k * self.world
            torch.manual_seed(zlib.crc32(f"{settings.seed}/{number}".encode()))
            losses = self.network(batch)
            objective(losses, counts, weights).backward()  # type: ignore[no-untyped-call]
            sums += losses.sums.detach().double().cpu()
        means = self._summed(sums.numpy()) / np.maximum(counts, 1)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        height = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        loss = float(means @ weights)
        # both are the same on all processes, which end together
        if not (math.isfinite(loss) and math.isfinite(height)):
            raise FloatingPointError(
                f"step {self.step}: the loss is {loss}, its gradient {height}; the last checkpoint is in "
                f"{self.out / 'last'}: try a lower learning rate, or fp32 where it was bf16"
            )
        self.optimizer.step()
        self.step += 1
        work = sum(flops(self.form, self.vocabulary, b.layout).training for b in batches)
        tokens = sum(len(p.input_slot) + len(p.target_slot) for p in microbatches)
        tally.add(loss, height, sum(p.n_objects for p in microbatches) * self.world, tokens * self.world, work)

    def _check(self, tally: _Tally) -> None:
        line: dict[str, Any] = {"step": self.step, "rate": self.settings.rate(self.step - 1), **tally.metrics()}
        if self.held is not None:
            line["validation"] = self.looked_at()
        if self.rank == 0:
            self.out.mkdir(parents=True, exist_ok=True)
            with (self.out / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        told = f"; validation {line['validation']['loss']:.4f}" if self.held is not None else ""
        self.progress(f"step {self.step} of {self.settings.steps}: {tally.told()}{told}")
        self._save()

    def looked_at(self) -> dict[str, Any]:
        """Cross-entropy of the validation sky, nats a token: of each modality, and the mean of what can be foretold."""
        assert self.held is not None
        self.network.eval()
        n = len(self.vocabulary.columns)
        sums, counts = np.zeros(n), np.zeros(n, np.int64)
        # every process looks at as many, at some perhaps twice: weights that are dealt out are gathered by all
        numbers = range(self.settings.checked)
        for first in numbers[:: self.world]:
            mine = first + self.rank
            packed = self.held.microbatch(mine % self.settings.checked)
            with torch.no_grad():
                losses = self.network(packed)
            if mine in numbers:
                sums += losses.sums.double().cpu().numpy()
                counts += losses.counts
        sums, counts = self._summed(sums), self._summed(counts)
        each = {name: float(s / c) for name, s, c in zip(self.vocabulary.names, sums, counts, strict=True) if c}
        # what the sky alone tells is learned by heart, and would choose the weights
        told = [loss for name, loss in each.items() if name not in BY_SKY] or list(each.values())
        return {"loss": float(np.mean(told)), "modalities": each, "tokens": int(counts.sum())}

    def _summed(self, values: NDArray[Any]) -> NDArray[Any]:
        """Of all processes."""
        if self.world == 1:
            return values
        found = torch.from_numpy(np.ascontiguousarray(values)).to(self.network.device)
        dist.all_reduce(found)
        return np.asarray(found.cpu().numpy())

    def _agreed(self, number: int) -> int:
        """A signal that any process was sent."""
        if self.world == 1:
            return number
        found = torch.tensor(number, device=self.network.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def _save(self) -> None:
        sharded.write(self.out / "last", state(self.network, self.optimizer), {**self.about, "step": self.step})

    def _resume(self) -> None:
        if not sharded.there(self.out / "last"):
            if self.rank == 0:
                (self.out / "metrics.jsonl").unlink(missing_ok=True)
            return
        about = sharded.read_about(self.out / "last")
        there = Vocabulary.from_json(about["modalities"])
        there.refuse_other_codecs(self.vocabulary.columns, str(self.out / "last"))
        if which := unlike({k: about.get(k) for k in self.about}, self.about, "settings", "loader"):
            raise ValueError(
                f"{self.out / 'last'} is of another run, unlike in {which}; give another folder, or remove this one"
            )
        sharded.read(self.out / "last", state(self.network, self.optimizer))
        self.step = int(about["step"])
        if self.rank == 0:
            forget_after(self.out / "metrics.jsonl", self.step)
        self.progress(f"going on from step {self.step} in {self.out / 'last'}")


def state(network: Network, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All that a run is, by name: weights, and what the optimizer keeps of each."""
    found: dict[str, Tensor] = {f"network.{k}": v for k, v in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        found |= {f"optimizer.{name}.{k}": v for k, v in optimizer.state[parameter].items()}
    return found


def _dealt_out(network: Network) -> None:
    """FSDP2: each layer's weights among all processes; gradients are added up, not averaged."""
    for block in (*network.encoder, *network.decoder):
        fully_shard(block, reshard_after_forward=False)
    fully_shard(network, reshard_after_forward=False)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)


def _optimizer(network: Network, settings: Settings) -> torch.optim.AdamW:
    """AdamW whose state is there from the start, so that a checkpoint can be read into it."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    fused = network.device.type == "cuda"
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=fused)
    for p in network.parameters():
        step = torch.zeros((), dtype=torch.float32, device=p.device if fused else None)
        optimizer.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return optimizer


class _Tally:
    """What was learned since the last look, or since the run went on."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.objects = self.tokens = self.work = 0
        self.waiting = 0.0
        self.began = time.monotonic()

    def add(self, loss: float, norm: float, objects: int, tokens: int, work: int) -> None:
        self.losses.append(loss)
        self.norms.append(norm)
        self.objects, self.tokens, self.work = self.objects + objects, self.tokens + tokens, self.work + work

    def metrics(self) -> Mapping[str, float]:
        seconds = max(time.monotonic() - self.began, 1e-9)
        return {
            "loss": float(np.mean(self.losses)),
            "gradient": float(np.mean(self.norms)),
            "objects_s": self.objects / seconds,
            "tokens_s": self.tokens / seconds,
            "useful_gflops_s": self.work / seconds / 1e9,
            "waiting": self.waiting,
        }

    def told(self) -> str:
        found = self.metrics()
        return f"loss {found['loss']:.4f}, {found['objects_s']:.0f} objects/s, {found['waiting']:.0%} of it waiting"
