"""Train the model on a pinned snapshot: a step is a function of (seed, step), so that a run goes on where it was.

A tenth of the training sky, in whole cells, is held out to choose the weights that are kept; the validation split is
not looked at. Checkpoints are those of tokenizers/checkpoint.py.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import healpy
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skycairn.model.masking import Batch, Rule, draw
from skycairn.model.network import SIZES, Model
from skycairn.model.objects import CELL_ORDER, Objects, read_split, slot_counts
from skycairn.model.vocabulary import BY_SKY, Vocabulary
from skycairn.pile.store import Pile, Snapshot
from skycairn.tokenizers import checkpoint

FORMAT = 2
WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
Progress = Callable[[str], None]
QUIET_SECONDS = 15.0
"""A line at least this often."""


@dataclass(frozen=True)
class Config:
    """All that decides a run, beside the snapshot."""

    size: str = "nano"
    steps: int = 1000
    batch: int = 64
    learning_rate: float = 2e-3
    warm_up: int = 60
    weight_decay: float = 0.05
    dropout: float = 0.15
    clip: float = 1.0
    seed: int = 0
    check_every: int = 100
    "steps between looks at the held-out objects, each with a checkpoint"
    matched_weight: float = 3.0
    "how much more often an object of two surveys or more is drawn than one of a single survey"
    rule: Rule = field(default_factory=Rule)

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"train: there is no size {self.size!r}; choose one of {', '.join(SIZES)}")
        if min(self.steps, self.batch, self.check_every) < 1 or self.matched_weight <= 0 or self.learning_rate <= 0:
            raise ValueError(f"train: {self}: wanted steps, batch, check_every, weight and learning rate above 0")

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Config:
        """From a checkpoint."""
        return cls(**{**value, "rule": Rule(**value["rule"])})


def train(pile: Pile, snapshot: Snapshot, out: Path, config: Config, device: str, progress: Progress) -> Model:
    """Train, or go on from the newest checkpoint in `out`; gives the model that did best on the held-out objects.

    It is calibrated on them too, and lies in `out/model`.

    ValueError where `out` holds a run of another configuration or another snapshot.
    """
    vocabulary = Vocabulary.of(pile, snapshot)
    objects = read_split(pile, snapshot, "train", vocabulary)
    learned, held = (objects.take(rows) for rows in hold_out(objects.cell))
    torch.manual_seed(config.seed)
    model = Model(vocabulary, SIZES[config.size], config.dropout, slot_counts(learned, vocabulary)).to(device)
    optimizer = _optimizer(model, config)
    run = {"format": FORMAT, "config": asdict(config), "snapshot": snapshot.content_id}
    run["snapshot_number"] = snapshot.number
    run["modalities"] = vocabulary.as_json()
    out.mkdir(parents=True, exist_ok=True)
    step, best = _resume(out, run, model, optimizer, progress)
    chance = weights(learned, vocabulary, config.matched_weight)
    progress(f"{len(learned.ids):,} objects to learn from, {len(held.ids):,} held out, {_parameters(model):,} weights")
    began, since, spoke = time.monotonic(), step, time.monotonic()
    with _Interrupt() as stop:
        while step < config.steps:
            if stop.asked:
                _save(out / "last", model, optimizer, {**run, "step": step, "best": best})
                raise KeyboardInterrupt
            model.train()
            rng = np.random.default_rng([config.seed, step])
            torch.manual_seed(zlib.crc32(f"{config.seed}/{step}".encode()))
            rows = rng.choice(len(learned.ids), config.batch, p=chance)
            batch = draw(learned.take(rows), vocabulary, config.rule, rng)
            found = [model.losses(half)[::2] for half in batch.halves()]
            loss = mean_of_modalities(*(torch.cat(f) for f in zip(*found, strict=True)))
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FloatingPointError(f"step {step}: the loss is {value}; the last checkpoint is in {out}")
            for group in optimizer.param_groups:
                group["lr"] = rate(config, step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            step += 1
            if time.monotonic() - spoke > QUIET_SECONDS:
                spoke = time.monotonic()
                progress(
                    f"step {step} of {config.steps}: loss {value:.3f}, {(step - since) / (spoke - began):.1f} steps/s"
                )
            if step % config.check_every == 0 or step == config.steps:
                held_out = held_out_loss(model, held, config)
                pace = (step - since) / (time.monotonic() - began)
                line = {"step": step, "loss": value, "held_out": held_out, "grad_norm": float(norm), "steps_s": pace}
                with (out / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")
                progress(
                    f"step {step} of {config.steps}: loss {value:.3f}, held-out {held_out:.3f}, {pace:.1f} steps/s"
                )
                if held_out < best:
                    best = held_out
                    _save(out / "best", model, None, {**run, "step": step, "held_out": held_out})
                _save(out / "last", model, optimizer, {**run, "step": step, "best": best})
    best_model = load(out / "best", device)
    calibrate(best_model, held, config)
    best_model.start_from(slot_counts(objects, vocabulary))  # the held-out tenth counts too
    _save(out / "model", best_model, None, {**run, "step": step, "held_out": best})
    return best_model


def snapshot_of(out: Path) -> int | None:
    """Number of the snapshot that the run in `out` learns from; None where there is no run."""
    for name in ("last", "last.old"):
        if (about := out / name / "about.json").exists():
            return int(json.loads(about.read_text())["snapshot_number"])
    return None


class _Interrupt:
    """Ctrl-C is heeded between two steps, so that what is saved is whole; a second one ends the run at once."""

    def __init__(self) -> None:
        self.asked, self._before = False, None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._heed)

    def _heed(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)
        self.asked = True

    def __enter__(self) -> _Interrupt:
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


def _parameters(model: Model) -> int:
    return sum(p.numel() for p in model.parameters())


def hold_out(cell: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to learn from, and a tenth of all to judge by: whole cells of the sky, chosen by a hash.

    The cells are of order 8, or of the first finer order (to 11) that has fifty. An object of a chosen cell whose cell
    of order 13 (26 arcsec) has a neighbour beyond the chosen cells is in neither: cut-outs near by show the same
    pixels. ValueError where nothing is left for one of the two.
    """
    for order in range(8, 12):
        shift = 2 * (CELL_ORDER - order)
        coarse, where, number = np.unique(cell >> shift, return_inverse=True, return_counts=True)
        if len(coarse) >= 50:
            break
    rank = np.argsort([zlib.crc32(f"{order}/{c}".encode()) for c in coarse.tolist()], kind="stable")
    before = np.cumsum(number[rank]) - number[rank]
    chosen = np.zeros(len(coarse), bool)
    chosen[rank[before < 0.1 * len(cell)]] = True
    around = np.asarray(healpy.get_all_neighbours(1 << CELL_ORDER, cell, nest=True))
    inner = np.isin(np.where(around >= 0, around, cell) >> shift, coarse[chosen]).all(axis=0)
    learned, held = np.flatnonzero(~chosen[where]), np.flatnonzero(chosen[where] & inner)
    if not len(learned) or not len(held):
        raise ValueError(f"train: {len(cell)} training objects in {len(coarse)} cells are too few to hold a tenth out")
    return learned, held


TRUSTS = tuple(i / 10 for i in range(13))


def calibrate(model: Model, held: Objects, config: Config) -> None:
    """Set how far the network's word counts in each modality, 0 (its slot's marginal) to 1.2, by the held-out objects.

    A few hundred objects leave some modalities overlearned; this is the one number a modality that mends most of it.
    """
    model.eval()
    rng = np.random.default_rng([config.seed, 1 << 41])
    batches = [b for _ in range(3) for b in _batches(held, model.vocabulary, config, rng)]
    starts = range(0, len(held.ids), config.batch)
    n_modalities, n = len(model.vocabulary.columns), len(held.ids)
    total, count = np.zeros((len(TRUSTS), n_modalities, n)), np.zeros((n_modalities, n))
    with torch.no_grad():
        for i, trust in enumerate(TRUSTS):
            for m in range(n_modalities):
                model.get_buffer(f"trust{m}").fill_(trust)
            for k, batch in enumerate(batches):
                loss, who, kind = (t.cpu().numpy() for t in model.losses(batch))
                np.add.at(total[i], (kind, starts[k % len(starts)] + who), loss)
                if i == 0:
                    np.add.at(count, (kind, starts[k % len(starts)] + who), 1)
    for m in range(n_modalities):
        there = count[m] > 0
        model.get_buffer(f"trust{m}").fill_(TRUSTS[_careful(total[:, m, there] / count[m, there])])


def _careful(loss: NDArray[np.float64]) -> int:
    """The smallest trust that is as good as the best to half a standard error; `loss` (trust, object)."""
    if loss.shape[1] < 2:
        return 0
    best = loss[loss.mean(axis=1).argmin()]
    worse = loss - best
    error = worse.std(axis=1, ddof=1) / np.sqrt(loss.shape[1])
    return int(np.argmax(worse.mean(axis=1) <= 0.5 * error + 1e-12))


def held_out_loss(model: Model, held: Objects, config: Config) -> float:
    """Loss on the held-out objects, masked the same way every time; what the sky alone tells is left out."""
    model.eval()
    rng = np.random.default_rng([config.seed, 1 << 40])
    with torch.no_grad():
        found = [model.losses(batch)[::2] for batch in _batches(held, model.vocabulary, config, rng)]
    loss, kind = (torch.cat(f) for f in zip(*found, strict=True))
    told = ~torch.isin(kind, torch.tensor(model.vocabulary.indices(BY_SKY), device=kind.device))
    return float(mean_of_modalities(loss[told], kind[told])) if told.any() else float(mean_of_modalities(loss, kind))


def _batches(held: Objects, vocabulary: Vocabulary, config: Config, rng: np.random.Generator) -> list[Batch]:
    starts = range(0, len(held.ids), config.batch)
    rows = [np.arange(s, min(s + config.batch, len(held.ids))) for _ in range(2) for s in starts]
    return [draw(held.take(r), vocabulary, config.rule, rng) for r in rows]


def mean_of_modalities(loss: Tensor, kind: Tensor) -> Tensor:
    """Mean over the modalities that are asked for of each one's mean cross-entropy, in nats."""
    total = torch.zeros(int(kind.max()) + 1, device=loss.device).index_add(0, kind, loss)
    count = torch.bincount(kind, minlength=len(total))
    there = count > 0
    return (total[there] / count[there]).mean()


def weights(objects: Objects, vocabulary: Vocabulary, matched: float) -> NDArray[np.float64]:
    """Chance of each object to be drawn: `matched` times higher where two surveys or more have tokens of it."""
    there = np.zeros((len(objects.ids), int(vocabulary.survey.max()) + 1), bool)
    for m, survey in enumerate(vocabulary.survey.tolist()):
        there[:, survey] |= objects.length[:, m] > 0
    weight = np.where(there.sum(axis=1) > 1, matched, 1.0)
    return weight / weight.sum()


def rate(config: Config, step: int) -> float:
    """Learning rate: linear warm-up, then a cosine down to a twentieth."""
    up = min(1.0, (step + 1) / max(1, config.warm_up))
    way = min(1.0, max(0.0, (step - config.warm_up) / max(1, config.steps - config.warm_up)))
    return config.learning_rate * up * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * way)))


def _optimizer(model: Model, config: Config) -> torch.optim.AdamW:
    decayed = [p for n, p in model.named_parameters() if p.ndim > 1]
    rest = [p for n, p in model.named_parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))


def _save(folder: Path, model: Model, optimizer: torch.optim.AdamW | None, about: dict[str, Any]) -> None:
    files = {WEIGHTS: model.state_dict()}
    if optimizer is not None:
        files[OPTIMIZER] = checkpoint.optimizer_tensors(optimizer)
    checkpoint.write(folder, files, about)


def _resume(
    out: Path, run: dict[str, Any], model: Model, optimizer: torch.optim.AdamW, progress: Progress
) -> tuple[int, float]:
    """Step and best held-out loss of the checkpoint that was loaded, or of none."""
    last = out / "last"
    if not checkpoint.found(last):
        return 0, math.inf
    about = checkpoint.read_about(last, FORMAT, WEIGHTS, OPTIMIZER)
    model.vocabulary.refuse_other_codecs(Vocabulary.from_json(about["modalities"]).columns, str(last))
    if which := checkpoint.unlike(about, run, "config"):
        raise ValueError(f"{last} is of another run, unlike in {which}; give another --out, or remove the folder")
    model.load_state_dict(checkpoint.tensors_of(last / WEIGHTS))
    checkpoint.load_optimizer(optimizer, checkpoint.tensors_of(last / OPTIMIZER))
    progress(f"going on from step {about['step']} in {last}")
    return int(about["step"]), float(about["best"])


def load(folder: Path, device: str = "cpu") -> Model:
    """The model of a checkpoint, ready to be asked; ValueError where a file of it is not what was written."""
    path = folder / "about.json"
    if not path.exists():
        raise ValueError(f"{folder} holds no about.json; `skycairn-train` writes checkpoints `best` and `last`")
    about = checkpoint.read_about(folder, FORMAT, WEIGHTS)
    config = Config.from_json(about["config"])
    model = Model(Vocabulary.from_json(about["modalities"]), SIZES[config.size], config.dropout, None)
    model.load_state_dict(checkpoint.tensors_of(folder / WEIGHTS))
    return model.to(device).eval()
