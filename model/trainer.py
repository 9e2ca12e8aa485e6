"""Training of the transformer on one process or many: a step is a function of settings, snapshots and its number.

Each process works on its own microbatches of a step. Losses are divided by how often each modality is asked for in the
whole step, so that gradients add up to the same however many processes there are. What is drawn at random within a
microbatch hangs on its number alone. On a CPU a run goes on bit for bit on as many processes of as many threads; on
another number of processes, which see the same microbatches, to rounding.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.tensor import DTensor

from skycairn.model import kept, lossplot, metrics, sharded, warmstart
from skycairn.model.blocks import readied
from skycairn.model.directions import Directions, passes
from skycairn.model.forms import Form, flops
from skycairn.model.loader import Loader, slot_counts
from skycairn.model.metrics import Board, Learned, Tally
from skycairn.model.packed import Packed
from skycairn.model.peaks import peak_of
from skycairn.model.processes import most, rank_and_world, summed, together
from skycairn.model.settings import FREE, Settings
from skycairn.model.strata import Source
from skycairn.model.tables import Levels
from skycairn.model.transformer import Network, equal_weights, objective, token_weights
from skycairn.model.vocabulary import BY_SKY, Vocabulary
from skycairn.model.warmstart import Start
from skycairn.tokenizers.checkpoint import unlike
from skycairn.tokenizers.training import Signals, Stopped, forget_after

FORMAT = 3
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
    start: Start | None = None,
    levels: Levels = MappingProxyType({}),
) -> Network:
    """Train, or go on from the checkpoint in `out/last`; gives the network.

    Where a process group is there, all its processes call this, and weights are dealt out among them (FSDP2, ZeRO-2).
    `levels`, by modality, are those of the codecs (`Codec.levels`), for settings that say `smooth`.
    `out/metrics.jsonl` gets a line at each look at the split `validation`; an empty name looks at nothing. See
    `model/kept.py` for the checkpoints beside `last`, `model/metrics.py` for what a line says.

    ValueError where `out` holds a run of other settings, snapshots or codecs, saying what differs, or where the
    processes cannot share the microbatches; FloatingPointError names the step whose loss is not finite, on all
    processes alike, the checkpoint before it stays; `Stopped` on SIGINT and SIGTERM, after a checkpoint.
    """
    run = Run(sources, settings, out, device, validation, progress, start, levels)
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
        start: Start | None = None,
        levels: Levels = MappingProxyType({}),
    ) -> None:
        self.rank, self.world = rank_and_world()
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
        self.goes_on = sharded.there(out / "last")
        counts = None
        if settings.counted:
            # a checkpoint holds what they come to
            whole = None if self.goes_on else self.loader.whole(settings.counted)
            counts = kept.no_counts(self.vocabulary) if whole is None else slot_counts(whole, self.vocabulary)
        form = replace(start.network.form, dropout=settings.dropout) if start else None
        shape = kept.shape_of(settings, levels, form)
        begun_from = start.where if start is not None else None
        if self.goes_on:
            if start is not None:
                self.progress(f"{start.where} is not looked at: the run in {out} goes on")
            # what it began from is in the checkpoint
            before, start = sharded.read_about(out / "last"), None
            if "network" not in before:
                raise ValueError(f"{out / 'last'}: an earlier version wrote it; give another folder or remove this one")
            shape, begun_from = before["network"], before["start"]
        self.form = Form(**shape["form"])
        torch.manual_seed(settings.seed)
        self.network = Network(
            self.vocabulary,
            self.form,
            settings.smooth,
            counts,
            pairs=settings.pairs,
            levels=shape.get("levels", {}),
        ).to(device)
        if start is not None:
            warmstart.check(start, settings)
            self._told_of(start, warmstart.take_over(self.network, start))
        self.network.compute_in(torch.bfloat16 if settings.precision == "bf16" else torch.float32)
        readied(self.network, settings.checkpoint_activations, settings.compile, dealt_out=self.world > 1)
        self.optimizer = _optimizer(self.network, settings)
        self.peak = peak_of(self.network.device, settings.precision)
        self.step = 0
        self.skipped = 0
        "steps skipped since one that was not"
        self.best: dict[str, float] | None = None
        "step and loss of the best look so far"
        self.about = {
            "run": FORMAT,
            "settings": settings.as_json(),
            "loader": self.loader.identity,
            "snapshots": [s.content_id for s in sources],
            "splits": [s.split for s in sources],
            "modalities": self.vocabulary.as_json(),
            "network": shape,
            "start": begun_from,
        }

    def _told_of(self, start: Start, taken: warmstart.Taken) -> None:
        for what, names in (("takes over", taken.known), ("begins at random", taken.new), ("leaves", taken.left)):
            self.progress(f"{start.where}: {what} {', '.join(names) or 'nothing'}")

    def go(self, told: Signals) -> None:
        """To the end."""
        self._begin()
        shown = sum(p.numel() for p in self.network.parameters())
        self.progress(f"{shown:,} weights, {self.world} processes; step {self.step} of {self.settings.steps}")
        each = self.settings.microbatches // self.world
        with ExitStack() as stack:
            board = self._board(stack)
            stream = stack.enter_context(self.loader.ahead(self.step, self.rank, self.world))
            tally, spoke = Tally(), time.monotonic()
            while self.step < self.settings.steps:
                if number := most(told.number):
                    self._save()
                    self._draw()
                    raise Stopped(number)
                with together():
                    microbatches = [next(stream) for _ in range(each)]
                tally.steps.append(self.learn(microbatches))
                if self.step % self.settings.check_every == 0 or self.step == self.settings.steps:
                    self._look(tally, stream.waited, board)
                    self._save()
                    tally, spoke = Tally(stream.waited), time.monotonic()
                elif self._stays():
                    began = time.monotonic()
                    self._save()
                    tally.began += time.monotonic() - began
                elif time.monotonic() - spoke > QUIET_SECONDS:
                    spoke = time.monotonic()
                    self.progress(f"step {self.step} of {self.settings.steps}: {tally.told()}")
        self._draw()
        self.network.eval()

    def learn(self, microbatches: Sequence[Packed]) -> Learned:
        """Take one step on its microbatches, this process's; all take it together, and skip it or fail together."""
        settings, n = self.settings, len(self.vocabulary.columns)
        self.network.train()
        kind = self.vocabulary.modality_of_slot[np.concatenate([p.target_slot for p in microbatches])]
        counts = summed(np.bincount(kind, minlength=n))
        weights = (equal_weights if settings.weighing == "modality" else token_weights)(counts)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        sums, work = torch.zeros(n, dtype=torch.float64, device=self.network.device), 0
        for k, packed in enumerate(microbatches):
            # laid out while a GPU is busy with the one before
            batch = self.network.prepared(packed)
            work += flops(self.form, self.vocabulary, batch.layout).training
            number = self.step * settings.microbatches + self.rank + k * self.world
            torch.manual_seed(zlib.crc32(f"{settings.seed}/{number}".encode()))
            losses = self.network(batch)
            objective(losses, counts, weights).backward()  # type: ignore[no-untyped-call]
            sums += losses.sums.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        gradient = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        loss = float(summed(sums.cpu().numpy()) / np.maximum(counts, 1) @ weights)
        # both are the same on all processes
        finite = math.isfinite(loss) and math.isfinite(gradient)
        if finite:
            self.optimizer.step()
        self._heed(finite, loss, gradient)
        self.step += 1
        tokens = sum(len(p.input_slot) + len(p.target_slot) for p in microbatches)
        return Learned(loss, gradient, not finite, sum(p.n_objects for p in microbatches), tokens, work)

    def _heed(self, finite: bool, loss: float, gradient: float) -> None:
        self.skipped = 0 if finite else self.skipped + 1
        if finite or (self.settings.non_finite == "skip" and self.skipped <= self.settings.most_skipped):
            return
        row = f"; {self.skipped - 1} before it were skipped" if self.skipped > 1 else ""
        raise FloatingPointError(
            f"step {self.step}: the loss is {loss}, its gradient {gradient}{row}; the last checkpoint is in "
            f"{self.out / 'last'}: try a lower learning rate, or fp32 where it was bf16"
        )

    def _look(self, tally: Tally, waited: float, board: Board | None) -> None:
        """Tell of the steps since the last look, and look at the validation sky."""
        line: dict[str, Any] = {"step": self.step, "rate": self.settings.rate(self.step - 1)}
        line |= tally.metrics(waited, self.peak)
        pace, told = f"{tally.told()}, {line['waiting']:.0%} of the time waiting", ""
        if self.held is not None:
            line["validation"] = self.looked_at()
            told = f"; validation {line['validation']['loss']:.4f}"
            every, look = self.settings.directions_every, -(-self.step // self.settings.check_every)
            if every and (look % every == 0 or self.step == self.settings.steps):
                line["directions"] = self.directions()
        with together():
            if self.rank == 0:
                metrics.append(self.out, line)
                if board is not None:
                    board.add(line)
        pace += f", MFU {line['mfu']:.0%}" if line["mfu"] is not None else ""
        self.progress(f"step {self.step} of {self.settings.steps}: {pace}{told}")
        if self.held is not None:
            self._keep_best(line["validation"]["loss"])

    def _keep_best(self, loss: float) -> None:
        if math.isfinite(loss) and (self.best is None or loss < self.best["loss"]):
            self.best = {"step": self.step, "loss": loss}
            sharded.write(self.out / "best", kept.weights_of(self.network), {**self.about, **self.best})

    def looked_at(self) -> dict[str, Any]:
        """Cross-entropy of the validation sky, nats a token: of each modality, and the mean of what can be foretold."""
        assert self.held is not None
        n = len(self.vocabulary.columns)
        sums, counts = np.zeros(n), np.zeros(n, np.int64)
        for i, own in self._shared():
            found, asked = self._losses(self.held.microbatch(i))
            if own:
                sums += found
                counts += asked
        sums, counts = summed(sums), summed(counts)
        each = {name: float(s / c) for name, s, c in zip(self.vocabulary.names, sums, counts, strict=True) if c}
        # what the sky alone tells is learned by heart, and would choose the weights
        told = [loss for name, loss in each.items() if name not in BY_SKY] or list(each.values())
        return {"loss": float(np.mean(told)), "modalities": each, "tokens": int(counts.sum())}

    def directions(self) -> dict[str, Any]:
        """Cross-entropy of each survey of the validation sky given each other one (`model/directions.py`)."""
        assert self.held is not None
        found = Directions(self.vocabulary)
        for i, own in self._shared():
            rows = self.held.rows(i)
            for k, (packed, objects) in enumerate(passes(self.held.masker, rows, self.settings.seed, i), start=1):
                # weights that are dealt out are gathered by all, though some have no object to ask for
                if self.world > 1 or packed.n_objects:
                    losses, counts = self._losses(packed)
                    if own:
                        found.add(k, losses, counts, objects)
        found.sums = summed(found.sums)
        return dict(found.told())

    def _shared(self) -> list[tuple[int, bool]]:
        """Microbatches of the validation sky for this process, as many as for any other; not its own are done twice."""
        checked = self.settings.checked
        mine = [first + self.rank for first in range(0, checked, self.world)]
        return [(i % checked, i < checked) for i in mine]

    @torch.no_grad()
    def _losses(self, packed: Packed) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        self.network.eval()
        losses = self.network(packed)
        return losses.sums.double().cpu().numpy(), losses.counts

    def _stays(self) -> bool:
        every = self.settings.keep_every
        return every > 0 and self.step > 0 and self.step % every == 0

    def _save(self) -> None:
        more = {"step": self.step, "best": self.best, "skipped": self.skipped}
        sharded.write(self.out / "last", state(self.network, self.optimizer), {**self.about, **more})
        if self._stays():
            with together():
                if self.rank == 0:
                    kept.keep(self.out, self.step, self.settings.keep - 1)

    def _draw(self) -> None:
        if self.rank == 0:
            self.progress(lossplot.write(self.out))

    def _board(self, stack: ExitStack) -> Board | None:
        """All processes ask for it, since it may not be there."""
        if not self.settings.tensorboard:
            return None
        with together():
            board = Board(self.out / "tensorboard", self.step) if self.rank == 0 else None
        if board is not None:
            stack.callback(board.close)
        return board

    def _begin(self) -> None:
        last = self.out / "last"
        if not self.goes_on:
            if stayed := kept.steps_kept(self.out):
                raise ValueError(
                    f"{self.out}: there is no checkpoint `last` to go on from, and {stayed[-1].name} of a run before; "
                    "copy that to `last` to go on from it, or give another folder"
                )
            if self.rank == 0:
                kept.forget(self.out)
                (self.out / metrics.FILE).unlink(missing_ok=True)
            return
        about = sharded.read_about(last)
        there = Vocabulary.from_json(about["modalities"])
        there.refuse_other_codecs(self.vocabulary.columns, str(last))
        if which := unlike(_decisive(about), _decisive(self.about), "settings", "loader"):
            raise ValueError(f"{last} is of another run, unlike in {which}; give another folder, or remove this one")
        sharded.read(last, state(self.network, self.optimizer))
        self.step, self.best, self.skipped = int(about["step"]), about["best"], int(about["skipped"])
        if self.rank == 0:
            forget_after(self.out / metrics.FILE, self.step)
        self.progress(f"going on from step {self.step} in {last}")


def state(network: Network, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All that a run is, by name: weights, and what the optimizer keeps of each."""
    found = kept.weights_of(network)
    for name, parameter in network.named_parameters():
        found |= {f"optimizer.{name}.{k}": v for k, v in optimizer.state[parameter].items()}
    return found


def _decisive(about: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run must not change when it goes on."""
    settings = {k: v for k, v in about.get("settings", {}).items() if k not in FREE}
    return {**{k: about.get(k) for k in ("run", "loader", "snapshots", "modalities")}, "settings": settings}


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
