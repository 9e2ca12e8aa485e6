"""What a codec is: it turns the measurements of one modality into tokens and back.

Pure arrays to arrays. A codec is known by its content id, which covers everything that decides its tokens: weights,
preprocessing, band order, bins. Saved as `codec.json` and `codec.safetensors`; nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

Measurement = Mapping[str, NDArray[Any]]
"""Arrays of one modality by name, first axis the source: `value` for numbers and coefficient vectors;
`flux`, `ivar`, `mask` (True = bad) for images (n, band, y, x) and spectra (n, pixel)."""

MOST_JSON = 1 << 26
"""Bytes of a codec's settings, of a lock, or of what a checkpoint says about itself."""
Tokens = NDArray[np.uint16] | NDArray[np.uint32]


@dataclass(frozen=True)
class Layout:
    """How the tokens of one source lie."""

    kind: Literal["scalar", "grid", "line", "sequence"]
    shape: tuple[int, ...] = ()
    "grid: (rows, columns); line: (n,); sequence: (most,); scalar: ()"


class Codec(ABC):
    """Measurements of one modality to tokens and back."""

    kind: ClassVar[str]
    "name of the class in the file; see `registry`"
    layout: Layout
    vocabulary: int
    "tokens are 0 .. vocabulary - 1"
    ordered: bool
    "whether neighbouring tokens mean neighbouring values"
    compat: str | None = None
    "name of the published behaviour that it copies, faults included"

    @property
    def n_tokens(self) -> int:
        """Most tokens of one source."""
        return int(np.prod(self.layout.shape, dtype=int))

    @property
    def levels(self) -> tuple[int, ...]:
        """How many values each of the numbers has that a token is made of, mixed radix, the first one fastest."""
        return (self.vocabulary,)

    @property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        """Smallest unsigned type that holds the vocabulary."""
        return np.uint16 if self.vocabulary <= 1 << 16 else np.uint32

    @abstractmethod
    def encode(self, measurement: Measurement) -> Tokens:
        """Tokens, shape (n, n_tokens). ValueError names the first row that holds a value it cannot take."""

    @abstractmethod
    def decode(self, tokens: Tokens) -> dict[str, NDArray[Any]]:
        """Measurements of the tokens, shape (n, ...). ValueError where a token is out of the vocabulary."""

    def sees(self, measurement: Measurement) -> NDArray[np.bool_]:
        """Which sources, shape (n,), hold anything where this codec looks; the others have no tokens."""
        return np.ones(len(next(iter(measurement.values()))), bool)

    def lengths(self, tokens: Tokens) -> NDArray[np.int64]:
        """How many tokens of each row of `encode` are there, the first of it, shape (n,); all but of a sequence."""
        return np.full(len(tokens), self.n_tokens, np.int64)

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that decides the tokens beside the arrays; JSON values only."""

    @abstractmethod
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The fitted numbers."""

    @classmethod
    @abstractmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        """The codec of these settings and arrays."""

    @property
    def content_id(self) -> str:
        """SHA-256 over kind, settings and arrays, in a form that no library version changes."""
        digest = hashlib.sha256(json.dumps([self.kind, self.settings()], sort_keys=True).encode())
        for name, array in sorted(self.arrays().items()):
            little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            digest.update(f"{name}:{little.dtype.str}:{little.shape}".encode())
            digest.update(little.tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write `codec.json` and `codec.safetensors` into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: np.asarray(v, order="C") for k, v in self.arrays().items()}, folder / "codec.safetensors")
        head = {"kind": self.kind, "settings": self.settings(), "content_id": self.content_id}
        (folder / "codec.json").write_text(json.dumps(head, indent=1, sort_keys=True) + "\n")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """A JSON object that has these keys; ValueError names the file that is none, or larger than `MOST_JSON`."""
    if path.stat().st_size > MOST_JSON:
        raise ValueError(f"{path}: is {path.stat().st_size:,} bytes long, wanted at most {MOST_JSON:,}; fetch it again")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no JSON ({error}), and nothing else is read; fetch it again") from error
    lacks = [k for k in keys if not isinstance(found, dict) or k not in found]
    if lacks or not isinstance(found, dict):
        raise ValueError(f"{path}: wanted a JSON object with {', '.join(lacks) or 'names'}; is it the right file?")
    return found


def load(folder: Path) -> Codec:
    """The codec saved in the folder; ValueError where its content id is not the one that it was saved with."""
    from skycairn.tokenizers.registry import CODECS, NETWORKS, codec_class

    head = read_json(folder / "codec.json", "kind", "settings", "content_id")
    if head["kind"] not in CODECS and head["kind"] not in NETWORKS:
        known = ", ".join([*CODECS, *NETWORKS])
        raise ValueError(f"{folder}: unknown codec kind {head['kind']!r}; this version knows {known}")
    try:
        codec = codec_class(head["kind"]).restore(head["settings"], load_file(folder / "codec.safetensors"))
    except SafetensorError as error:
        raise ValueError(
            f"{folder / 'codec.safetensors'}: is no whole safetensors file ({error}), and nothing else is read; fetch "
            "or fit it again"
        ) from error
    except (TypeError, LookupError, AttributeError) as error:
        raise ValueError(
            f"{folder}: the codec's settings do not fit its kind ({error}); fetch or fit it again"
        ) from error
    if codec.content_id != head["content_id"]:
        raise ValueError(
            f"{folder}: the codec's content id is {codec.content_id[:12]}.., its file says "
            f"{head['content_id'][:12]}..; the files are damaged or mixed: fetch or fit them again"
        )
    return codec


def refuse_other_wavelengths(measurement: Measurement, own: NDArray[np.float64]) -> None:
    """ValueError where a measurement comes with wavelengths (pixel,) or (n, pixel) that are not the codec's own."""
    if "wavelength" not in measurement:
        return
    given = np.asarray(measurement["wavelength"])
    if given.dtype.kind not in "fiu" or given.shape[-1:] != own.shape or not np.allclose(given, own, rtol=1e-6, atol=0):
        told = f"run from {given.ravel()[0]} to {given.ravel()[-1]}" if given.size else "are none"
        raise ValueError(
            f"spectrum codec: the wavelengths, of shape {given.shape}, {told}; wanted the codec's own {len(own)}, "
            f"{own[0]:.2f} to {own[-1]:.2f} Angstrom: resample the spectrum onto them of the survey, or leave "
            "them out if it is on them"
        )
