"""Codecs whose tokens come from a network: how its weights are kept, how it is run, and how it learns.

A network runs in chunks of one fixed size, the last one filled up, so that the tokens of a source do not hang on how
many others came with it. Weights, tokens and the index arithmetic are float32 everywhere; `precision` lowers the
matrix products alone, and is no part of what a codec is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal, NamedTuple, Self
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skycairn.tokenizers.codec import Codec, Measurement, Tokens
from skycairn.tokenizers.vocabulary import from_tokens, to_tokens

Precision = Literal["fp32", "bf16"]
Tensors = dict[str, Tensor]
_changes: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""How often the weights of a network were exchanged, whichever of its codecs did it."""


class Loss(NamedTuple):
    """What a step of training wants, and tells."""

    total: Tensor
    "scalar, to go down"
    parts: Mapping[str, Tensor]
    "its terms and other means over the batch by name, detached scalars"
    codes: Tensor
    "int64 (n, positions): the codes in use, for the share of the codebook that is"


class NetworkCodec(Codec):
    """A codec with a torch network inside.

    Codecs of several surveys may share one network (`network is` the same object); each is saved by itself.
    """

    CHUNK: ClassVar[int] = 16
    "sources run at once"

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval()
        self.precision: Precision = "fp32"
        self._id: tuple[int, str] | None = None

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.network.parameters()).device

    def to(self, device: str | torch.device, precision: Precision = "fp32") -> Self:
        """Move the network, which then does its products in this precision; gives the codec itself.

        ValueError for another precision, or a GPU where torch sees none.
        """
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"codec: precision is {precision!r}; wanted fp32 or bf16")
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"codec: {device}: torch sees no GPU here; give cpu, or install with make TORCH=cuda")
        self.network.to(device)
        self.precision = precision
        return self

    @abstractmethod
    def tensors(self, measurement: Measurement, first_row: int = 0) -> Tensors:
        """The checked measurement as float32 tensors, first axis the source, as `loss` and `codes` take them.

        Never changes what it is given. ValueError names `first_row` plus the row that holds what it cannot take.
        """

    def shown(self, measurement: Measurement, window: int, rng: np.random.Generator) -> Tensors:
        """`tensors` of what a step of training is shown of a measurement: a window, where the codec knows any."""
        return self.tensors(measurement)

    @abstractmethod
    def codes(self, tensors: Tensors) -> Tensor:
        """Indices, int64 (n, n_tokens), of a chunk on the network's device."""

    @abstractmethod
    def measured(self, indices: Tensor) -> Tensors:
        """Measurements, float32, of a chunk of indices (n, n_tokens) on the network's device."""

    @abstractmethod
    def loss(self, tensors: Tensors) -> Loss:
        """The loss of a batch on the network's device; the network is in training mode, or not."""

    def encode(self, measurement: Measurement) -> Tokens:
        """Tokens, shape (n, n_tokens). ValueError names the first row that holds a value it cannot take."""
        n = len(next(iter(measurement.values())))
        found = np.empty((n, self.n_tokens), np.int64)
        self.network.eval()
        for rows in _chunks(n, self.CHUNK):
            chunk = self.tensors({k: v[rows] for k, v in measurement.items()}, rows.start)
            chunk = {k: _filled(v, self.CHUNK).to(self.device) for k, v in chunk.items()}
            with torch.inference_mode(), self._autocast():
                found[rows] = self.codes(chunk)[: rows.stop - rows.start].cpu().numpy()
        return to_tokens(self, found)

    def decode(self, tokens: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Measurements of the tokens, shape (n, ...). ValueError where a token is out of the vocabulary."""
        indices = torch.from_numpy(from_tokens(self, tokens))
        self.network.eval()
        pieces: list[dict[str, NDArray[Any]]] = []
        for rows in _chunks(max(len(indices), 1), self.CHUNK):  # a chunk of filling tells the shapes of no tokens
            chunk = _filled(indices[rows], self.CHUNK).to(self.device)
            with torch.inference_mode(), self._autocast():
                found = self.measured(chunk)
            pieces.append({k: v[: len(indices[rows])].cpu().numpy() for k, v in found.items()})
        return {k: np.concatenate([p[k] for p in pieces]) for k in pieces[0]}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The network's weights and buffers by name."""
        return {k: v.detach().cpu().numpy() for k, v in self.network.state_dict().items()}

    def load_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Take over weights by name, all of them and no others; ValueError says which do not fit."""
        own = self.network.state_dict()
        wrong = sorted(
            k for k in own.keys() | arrays.keys() if k not in own or k not in arrays or own[k].shape != arrays[k].shape
        )
        if wrong:
            told = [f"{k} {tuple(own[k].shape) if k in own else 'not here'}" for k in wrong[:5]]
            raise ValueError(
                f"{self.kind} codec: {len(wrong)} weights of the file do not fit its settings, among them "
                f"{', '.join(told)}; are the two of one codec?"
            )
        self.network.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in arrays.items()})
        NetworkCodec.changed(self)
        return self

    @property
    def content_id(self) -> str:
        """As of every codec; kept after the first time, until `load_arrays` or `changed` of any on the network."""
        now = _changes.get(self.network, 0)
        if self._id is None or self._id[0] != now:
            self._id = now, super().content_id
        return self._id[1]

    def changed(self) -> None:
        """The weights are others now (a step of training), for all codecs on the network."""
        _changes[self.network] = _changes.get(self.network, 0) + 1

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()


def _chunks(n: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


def _filled(rows: Tensor, n: int) -> Tensor:
    """As many rows as n, zeros after the last."""
    return torch.cat([rows, rows.new_zeros(n - len(rows), *rows.shape[1:])]) if len(rows) < n else rows
