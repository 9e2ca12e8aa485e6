"""Training of learned codecs: a step is a function of (seed, step), so that a run goes on where it was. On a CPU
with as many threads as before it does so bit for bit; on a GPU that is not promised.

Codecs of several surveys that share one network learn in turns, each step of one of them. What is kept as the codec are
the averaged weights. See schedule.py for the settings and checkpoint.py for what lies in `OUT/training/KIND/last`.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skycairn.tokenizers import checkpoint
from skycairn.tokenizers.codec import Measurement
from skycairn.tokenizers.lock import read_lock, write_lock
from skycairn.tokenizers.network import NetworkCodec, Tensors
from skycairn.tokenizers.schedule import Schedule

FORMAT = 1
NETWORK, AVERAGED, OPTIMIZER = "network.safetensors", "averaged.safetensors", "optimizer.safetensors"
FLOOR = 0.1
"""Least chance of a modality in a step, as a share of an equal one."""
QUIET_SECONDS = 15.0
"""A line at least this often."""
Progress = Callable[[str], None]


class Examples(Protocol):
    """What codecs learn from, and what they are judged by."""

    @property
    def identity(self) -> str:
        """What they are, in few words; a run does not go on with others."""

    def count(self, modality: str) -> int:
        """How many there are to learn from."""

    def draw(self, modality: str, n: int, rng: np.random.Generator) -> Measurement:
        """Some of the training sky, first axis n, chosen by `rng` alone; asked from a thread of its own."""

    def held(self, modality: str) -> Iterator[Measurement]:
        """All of the held-out sky, or a fixed part of it, in pieces; the same ones in the same order every time."""


class Stopped(BaseException):
    """The training was told to stop, and did, with a checkpoint; `signal` is the number of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


def train(
    codecs: Mapping[str, NetworkCodec],
    examples: Examples,
    schedule: Schedule,
    out: Path,
    device: str = "cpu",
    progress: Progress = lambda _: None,
    weights: Mapping[str, float] | None = None,
) -> dict[str, NetworkCodec]:
    """Train the codecs' one network, or go on from the checkpoint in `out`; gives the codecs with averaged weights.

    `codecs` are by modality, all on one network, which is changed in place. `weights` say how often each modality is
    drawn; by the number of its examples unless given. In `out` are then `codecs.lock` and `codecs/`, beside those of
    codecs trained there before, and `training/KIND` with `metrics.jsonl` and the checkpoint `last`.

    ValueError where `out` holds a run of another schedule, other codecs or other examples, saying what differs;
    FloatingPointError names the step whose loss is not finite, the checkpoint before it stays; `Stopped` on SIGINT and
    SIGTERM, after a checkpoint.
    """
    run = _Run(codecs, examples, schedule, out, device, progress, weights)
    with Signals() as stop:
        run.go(stop)
    return run.codecs


def begun(out: Path, codecs: Mapping[str, NetworkCodec]) -> dict[str, Any] | None:
    """The settings of the schedule of the run that `train` would go on with; None where there is none."""
    last = out / "training" / _kind(codecs) / "last"
    settings: dict[str, Any] | None = None
    if checkpoint.found(last):
        settings = checkpoint.read_about(last, FORMAT)["schedule"]
    return settings


class _Batch(NamedTuple):
    modality: str
    tensors: Tensors


class _Run:
    def __init__(
        self,
        codecs: Mapping[str, NetworkCodec],
        examples: Examples,
        schedule: Schedule,
        out: Path,
        device: str,
        progress: Progress,
        weights: Mapping[str, float] | None,
    ) -> None:
        self.codecs, self.examples, self.schedule, self.progress = dict(codecs), examples, schedule, progress
        self.out, self.folder = out, out / "training" / _kind(codecs)
        first = next(iter(self.codecs.values()))
        self.network = first.to(device).network
        self.device = first.device
        self.chance = _chances(self.codecs, examples, weights)
        self.optimizer = torch.optim.AdamW(_groups(self.network, schedule.weight_decay), betas=schedule.betas)
        self.averaged = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.about = {
            "format": FORMAT,
            "schedule": schedule.as_json(),
            "codecs": {
                f"{m} {k}": v for m, c in self.codecs.items() for k, v in {**c.settings(), "kind": c.kind}.items()
            },
            "objective": {
                f"{m} {k}": v
                for m, c in self.codecs.items()
                if (o := getattr(c, "objective", None))
                for k, v in asdict(o).items()
            },
            "examples": examples.identity,
            "chances": dict(zip(self.codecs, self.chance.tolist(), strict=True)),
        }
        self.step = 0

    def go(self, stop: Signals) -> None:
        """To the end, or as long as it may."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._resume()
        n = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        told = ", ".join(f"{self.examples.count(m):,} of {m}" for m in self.codecs)
        self.progress(f"{n:,} weights learn from {told} on {self.device}")
        began = spoke = time.monotonic()
        tally, late = _Tally(), False
        with ThreadPoolExecutor(1) as ahead:
            batch = _next(ahead, self._batch, self.step, self.schedule.steps)
            while self.step < self.schedule.steps and not late:
                if stop.number:
                    self._save()
                    raise Stopped(stop.number)
                found, batch = batch, _next(ahead, self._batch, self.step + 1, self.schedule.steps)
                self._learn(found.result(), tally)
                now = time.monotonic()
                late = 0 < self.schedule.most_seconds <= now - began
                if late and self.step < self.schedule.steps:
                    self.progress(
                        f"stopped after {now - began:.0f} s at step {self.step} of {self.schedule.steps}, as it was "
                        "told; the same command goes on from there"
                    )
                if self.step % self.schedule.check_every == 0 or self.step == self.schedule.steps or late:
                    self._check(tally)
                    tally, spoke = _Tally(), time.monotonic()
                elif now - spoke > QUIET_SECONDS:
                    spoke = now
                    self.progress(f"step {self.step} of {self.schedule.steps}: {tally.told()}")
        self._finish()

    def _batch(self, step: int) -> _Batch:
        """What a step learns from."""
        rng = np.random.default_rng([self.schedule.seed, step])
        modality = str(rng.choice(list(self.codecs), p=self.chance))
        drawn = self.examples.draw(modality, self.schedule.batch, rng)
        return _Batch(modality, self.codecs[modality].shown(drawn, self.schedule.window, rng))

    def _learn(self, batch: _Batch, tally: _Tally) -> None:
        schedule = self.schedule
        self.network.train()
        torch.manual_seed(zlib.crc32(f"{schedule.seed}/{self.step}".encode()))
        for group in self.optimizer.param_groups:
            group["lr"] = schedule.rate(self.step)
        with self._autocast():
            loss = self.codecs[batch.modality].loss(self._here(batch.tensors))
        value = float(loss.total.detach())
        self.optimizer.zero_grad(set_to_none=True)
        if math.isfinite(value):
            loss.total.backward()  # type: ignore[no-untyped-call]
            norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), schedule.clip))
        if not (math.isfinite(value) and math.isfinite(norm)):
            what = f"the loss of {batch.modality} is {value}"
            what = what if not math.isfinite(value) else f"{what}, its gradient is {norm}"
            raise FloatingPointError(
                f"step {self.step}: {what}; the last checkpoint is in {self.folder / 'last'}: try a lower learning "
                "rate, or fp32 where it was bf16"
            )
        self.optimizer.step()
        self._average()
        self.step += 1
        for codec in self.codecs.values():
            codec.changed()
        tally.add(batch.modality, value, {k: float(v) for k, v in loss.parts.items()}, norm, schedule.batch)

    def _average(self) -> None:
        decay = self.schedule.averaged(self.step)
        with torch.no_grad():
            for name, now in self.network.state_dict().items():
                kept = self.averaged[name]
                # numbers of batches and the like have no average; the means that a BatchNorm keeps are averaged again
                if decay and isinstance(now, Tensor) and now.is_floating_point():
                    kept.lerp_(now, 1 - decay)
                else:
                    kept.copy_(now)

    def _check(self, tally: _Tally) -> None:
        """A line of metrics, and a checkpoint."""
        line = {"step": self.step, "steps": tally.steps, **tally.metrics(), "rate": self.schedule.rate(self.step - 1)}
        with self._with_averaged():
            line["held_out"] = {m: self._held(m) for m in self.codecs}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        held = "; ".join(
            f"{m} held-out {h['loss']:.4g}, {h['used']:.0%} of the codes in use"
            for m, h in line["held_out"].items()
            if h["n"]
        )
        self.progress(f"step {self.step} of {self.schedule.steps}: {tally.told()}; {held or 'nothing is held out'}")
        self._save()

    def _held(self, modality: str) -> dict[str, Any]:
        """Mean loss and its parts on the held-out sky, and how the codebook is used there."""
        codec = self.codecs[modality]
        self.network.eval()
        total, parts, n = 0.0, dict[str, float](), 0
        uses = np.zeros(codec.vocabulary, np.int64)
        for measurement in self.examples.held(modality):
            tensors = self._here(codec.tensors(measurement))
            rows = len(next(iter(tensors.values())))
            with torch.no_grad(), self._autocast():
                loss = codec.loss(tensors)
            total, n = total + rows * float(loss.total), n + rows
            for name, value in loss.parts.items():
                parts[name] = parts.get(name, 0.0) + rows * float(value)
            uses += np.bincount(loss.codes.cpu().numpy().ravel(), minlength=codec.vocabulary)
        if not n:
            return {"n": 0}
        share = uses[uses > 0] / uses.sum()
        return {
            "n": n,
            "loss": total / n,
            "parts": {k: v / n for k, v in parts.items()},
            "used": float((uses > 0).mean()),
            "perplexity": float(np.exp(-(share * np.log(share)).sum())),
            "dead": int((uses == 0).sum()),
        }

    @contextmanager
    def _with_averaged(self) -> Iterator[None]:
        """Within, the network has the averaged weights."""
        own = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.network.load_state_dict(self.averaged)
        try:
            yield
        finally:
            self.network.load_state_dict(own)

    def _save(self) -> None:
        files = {NETWORK: self.network.state_dict(), AVERAGED: self.averaged}
        files[OPTIMIZER] = checkpoint.optimizer_tensors(self.optimizer)
        checkpoint.write(self.folder / "last", files, {**self.about, "step": self.step})

    def _resume(self) -> None:
        last = self.folder / "last"
        if not checkpoint.found(last):
            (self.folder / "metrics.jsonl").unlink(missing_ok=True)
            return
        about = checkpoint.read_about(last, FORMAT, NETWORK, AVERAGED, OPTIMIZER)
        if which := checkpoint.unlike(about, self.about, "schedule", "codecs", "objective"):
            raise ValueError(
                f"{last} is of another run, unlike in {which}; give another --out, or remove {last.parent}"
            )
        self.network.load_state_dict(checkpoint.tensors_of(last / NETWORK))
        for name, value in checkpoint.tensors_of(last / AVERAGED).items():
            self.averaged[name].copy_(value)
        checkpoint.load_optimizer(self.optimizer, checkpoint.tensors_of(last / OPTIMIZER))
        self.step = int(about["step"])
        forget_after(self.folder / "metrics.jsonl", self.step)
        ended = ", where it ended; for more steps give another --out" if self.step >= self.schedule.steps else ""
        self.progress(f"going on from step {self.step} in {last}{ended}")

    def _finish(self) -> None:
        """The averaged weights are the codecs'."""
        self.network.load_state_dict(self.averaged)
        self.network.eval()
        for codec in self.codecs.values():
            codec.changed()
        lock = self.out / "codecs.lock"
        before = read_lock(lock) if lock.is_file() else {}
        write_lock(lock, {**before, **self.codecs})
        for modality, codec in self.codecs.items():
            self.progress(f"{modality}: codec {codec.content_id[:12]}.. in {self.out / 'codecs' / codec.content_id}")

    def _here(self, tensors: Tensors) -> Tensors:
        return {k: v.to(self.device) for k, v in tensors.items()}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.schedule.precision == "bf16")


class _Tally:
    """What was learned since the last look, or since the run went on, by modality."""

    def __init__(self) -> None:
        self.loss: dict[str, list[float]] = {}
        self.parts: dict[str, list[dict[str, float]]] = {}
        self.norm = 0.0
        self.n, self.steps, self.began = 0, 0, time.monotonic()

    def add(self, modality: str, loss: float, parts: dict[str, float], norm: float, n: int) -> None:
        self.loss.setdefault(modality, []).append(loss)
        self.parts.setdefault(modality, []).append(parts)
        self.norm, self.n, self.steps = norm, self.n + n, self.steps + 1

    def told(self) -> str:
        losses = ", ".join(f"{m} {np.mean(v):.4g}" for m, v in sorted(self.loss.items()))
        return f"loss {losses}; {self.pace():.1f} examples/s"

    def pace(self) -> float:
        return self.n / max(time.monotonic() - self.began, 1e-9)

    def metrics(self) -> dict[str, Any]:
        learned = {
            m: {"loss": float(np.mean(v)), "parts": {k: float(np.mean([p[k] for p in self.parts[m]])) for k in first}}
            for m, v in sorted(self.loss.items())
            for first in [self.parts[m][0]]
        }
        return {"learned": learned, "grad_norm": self.norm, "examples_s": self.pace()}


class Signals:
    """SIGINT and SIGTERM are heeded between two steps, so that what is saved is whole; a second one ends at once."""

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._heed) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _heed(self, number: int, _: object) -> None:
        self.number = number
        self.__exit__()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _kind(codecs: Mapping[str, NetworkCodec]) -> str:
    kinds = {c.kind for c in codecs.values()}
    networks = {id(c.network) for c in codecs.values()}
    if len(kinds) != 1 or len(networks) != 1:
        raise ValueError(
            f"train: codecs of {', '.join(codecs) or 'no modality'} are of {len(kinds)} kinds and {len(networks)} "
            "networks; wanted one kind, and one network that they share"
        )
    return kinds.pop()


def _chances(
    codecs: Mapping[str, NetworkCodec], examples: Examples, weights: Mapping[str, float] | None
) -> NDArray[np.float64]:
    """Chance of each modality in a step."""
    if lacking := [m for m in codecs if not examples.count(m)]:
        raise ValueError(f"train: there is no {lacking[0]} on the training sky to learn from; leave it out")
    if weights is None:
        found = np.array([examples.count(m) for m in codecs], float)
        found = np.maximum(found / found.sum(), FLOOR / len(found))
    else:
        if weights.keys() != codecs.keys() or not all(math.isfinite(w) and w > 0 for w in weights.values()):
            raise ValueError(f"train: weights are {dict(weights)}; wanted one above 0 for each of {', '.join(codecs)}")
        found = np.array([weights[m] for m in codecs], float)
    chances: NDArray[np.float64] = found / found.sum()
    return chances


def _groups(network: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Parameters whose weights decay, and those (norms, biases, gains: vectors, however shaped) that keep them."""
    named = [p for p in network.parameters() if p.requires_grad]
    matrices = [p for p in named if p.numel() > max(p.shape, default=1)]
    vectors = [p for p in named if p.numel() == max(p.shape, default=1)]
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]


def _next(ahead: ThreadPoolExecutor, batch: Callable[[int], _Batch], step: int, steps: int) -> Future[_Batch]:
    """The batch of a step, while the one before it is learned from; of the last step's none."""
    done: Future[_Batch] = Future()
    return ahead.submit(batch, step) if step < steps else done


def forget_after(path: Path, step: int) -> None:
    """Drop lines of metrics of steps that will be taken again."""
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if _step_of(line) <= step]
    path.write_text("".join(f"{line}\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        # cut short as it was written
        return math.inf
