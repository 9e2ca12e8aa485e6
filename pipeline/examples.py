"""What learned codecs are trained on: the kept pixels and spectra of a pile, its training sky apart from the rest.

They are decoded once, into arrays on disk that are mapped into memory: any draw is then cheap. Of a pile's sources no
more than their keys are held, 8 bytes each.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skycairn.catalogs.survey import Modality
from skycairn.pile.processes import alive
from skycairn.pile.store import Entry, Pile, Snapshot
from skycairn.pipeline.encode import payload_arrays, source_hash
from skycairn.pipeline.recipe import SurveyChoice
from skycairn.pipeline.task import int64
from skycairn.tokenizers.codec import Measurement
from skycairn.tokenizers.patches import band_scatter, typical_noise

TRAIN, HELD = "train", "validation"
MOST, MOST_HELD = 20_000, 512
"""Most sources of a modality that are learned from, and that are held out to judge by: those with the lowest hashes."""
NOISE_FROM = 256
"""Images whose noise is taken for all."""
PIECE = 32
"""Held-out sources that are given at once."""
TYPES = {"flux": np.float32, "ivar": np.float32, "mask": np.bool_}


def payload_modalities(snapshot: Snapshot) -> dict[str, Modality]:
    """Images and spectra of the surveys in a snapshot, by name."""
    found: dict[str, Modality] = {}
    for name, chosen in snapshot.recipe["surveys"].items():
        options = {k: v for k, v in chosen.items() if k not in ("release", "profile", "root", "source", "url")}
        survey = SurveyChoice(name, chosen["release"], chosen["profile"], "", options).survey()
        found |= {m.name: m for m in survey.modalities if m.payload}
    return found


class PayloadExamples:
    """Examples (tokenizers/training.py) of a pile's payload.

    A source is learned from where its object is in the split `train`, and held out where it is in `validation`: whole
    cells of the sky, with nothing of what lies so near their borders that pixels are shared (split `guard`). Sources
    without a good pixel are left out.
    """

    def __init__(
        self,
        pile: Pile,
        snapshot: Snapshot,
        modalities: Mapping[str, Modality],
        cache: Path,
        crop: int | None = None,
        most: int | None = MOST,
        most_held: int = MOST_HELD,
    ) -> None:
        """`crop`: the middle pixels of images that are kept, as codecs crop them; `cache`: a folder for the arrays.

        `most`: None for all. ValueError where the pile kept nothing of a modality, or has none of it on the training
        sky, or none on the validation sky where `most_held` asks for some.
        """
        self._learned = {}
        self._held = {}
        for name, modality in modalities.items():
            rows = _rows(pile, snapshot, modality, {TRAIN: most, HELD: most_held})
            size = crop if modality.image else None
            self._learned[name] = _Stored.of(pile, snapshot, modality, rows[TRAIN], size, cache)
            self._held[name] = _Stored.of(pile, snapshot, modality, rows[HELD], size, cache)
            if not len(self._learned[name].rows):
                raise ValueError(
                    f"{pile.root}: there is no {name} on the training sky to learn from (of {len(rows[HELD])} on the "
                    "validation sky); build more of the sky"
                )
            if most_held and not len(self._held[name].rows):
                raise ValueError(
                    f"{pile.root}: there is no {name} on the validation sky to judge by (of {len(rows[TRAIN])} on the "
                    f"training sky; payload.keep is {snapshot.recipe['payload']['keep']!r}); build more of the sky, or "
                    'with payload.keep = "all"'
                )
        digests = [s.digest for found in (self._learned, self._held) for _, s in sorted(found.items())]
        self.identity = hashlib.sha256(" ".join(digests).encode()).hexdigest()

    def count(self, modality: str) -> int:
        """How many there are to learn from."""
        return len(self._learned[modality].rows)

    def count_held(self, modality: str) -> int:
        """How many are held out."""
        return len(self._held[modality].rows)

    def noise(self, modality: str) -> NDArray[np.float64]:
        """Typical sigma of a pixel in each band of images that are learned from, in their unit."""
        stored = self._learned[modality]
        found = stored.at(stored.rows[:NOISE_FROM])
        mask = found.get("mask", np.zeros(found["flux"].shape, bool))
        if "ivar" not in found:
            each = zip(*map(_by_band, (found["flux"], mask)), strict=True)
            sigma = np.array([band_scatter(band[~bad]) for band, bad in each])
            return np.where(np.isnan(sigma), np.nanmedian(sigma), sigma)
        return typical_noise((found["flux"], found["ivar"], mask))

    def draw(self, modality: str, n: int, rng: np.random.Generator) -> Measurement:
        """Some of the training sky, with replacement."""
        stored = self._learned[modality]
        return stored.at(np.sort(rng.choice(stored.rows, n)))

    def held(self, modality: str) -> Iterator[Measurement]:
        """The held-out sources in the order of their hashes."""
        stored = self._held[modality]
        for first in range(0, len(stored.rows), PIECE):
            yield stored.at(stored.rows[first : first + PIECE])


class _Stored:
    """Measurements of some sources as arrays on disk."""

    def __init__(self, folder: Path, digest: str) -> None:
        self.digest = digest
        self._arrays = {p.stem: np.load(p, mmap_mode="r") for p in sorted(folder.glob("*.npy")) if p.stem in TYPES}
        self.rows: NDArray[np.int64] = np.load(folder / "rows.npy")

    def at(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Those of these rows, in this order."""
        return {name: np.array(array[rows]) for name, array in self._arrays.items()}

    @classmethod
    def of(
        cls, pile: Pile, snapshot: Snapshot, modality: Modality, keys: NDArray[np.int64], crop: int | None, cache: Path
    ) -> _Stored:
        """The sources of these keys, from the cache where they are there."""
        entries = snapshot.entries(f"payload.{modality.name}")
        digest = hashlib.sha256(f"{modality.name} {crop}".encode())
        for content in sorted(e.part.content_id for e in entries):
            digest.update(content.encode())
        digest.update(keys.astype("<i8").tobytes())
        name = digest.hexdigest()
        folder = cache / f"{modality.name}-{name[:16]}"
        if not (folder / "rows.npy").is_file():
            _write(pile, entries, modality, keys, crop, folder)
        return cls(folder, name)


def _rows(
    pile: Pile, snapshot: Snapshot, modality: Modality, most: Mapping[str, int | None]
) -> dict[str, NDArray[np.int64]]:
    """Keys of the sources whose payload is kept, by split of their object: the `lowest` of each, at most so many."""
    survey = modality.name.split(".")[0]
    entries = snapshot.entries(f"payload.{modality.name}") if f"payload.{modality.name}" in snapshot.aside else []
    if not entries:
        keep = snapshot.recipe["payload"]["keep"]
        raise ValueError(
            f"{pile.root} keeps no {modality.name} to learn from (payload.keep is {keep!r}); build it with "
            'payload.keep = "all", which costs only room'
        )
    names, there = ["owner", "key", "status"], []
    for entry in entries:
        kept = pile.read_table(entry.part, columns=names)
        there.append(int64(kept.filter(pc.and_(pc.equal(kept["owner"], survey), pc.is_null(kept["status"]))), "key"))
    known = np.unique(np.concatenate(there))
    del there
    return {
        split: lowest((np.intersect1d(k, known) for k in keys_of_objects(pile, snapshot, survey, split)), n)
        for split, n in most.items()
    }


def keys_of_objects(pile: Pile, snapshot: Snapshot, survey: str, split: str) -> Iterator[NDArray[np.int64]]:
    """Keys of a survey's sources in the objects of a split, a part at a time."""
    column = f"key.{survey}"
    for entry in snapshot.entries("objects"):
        objects = pile.read_table(entry.part, columns=["split", column])
        yield int64(objects.filter(pc.and_(objects[column].is_valid(), pc.equal(objects["split"], split))), column)


def lowest(parts: Iterable[NDArray[np.int64]], most: int | None) -> NDArray[np.int64]:
    """The keys with the lowest hashes, in their order: the same ones however the sky grows elsewhere, or is parted."""
    best, hashes = np.empty(0, np.int64), np.empty(0, np.uint64)
    for part in parts:
        new = np.setdiff1d(part, best)
        best, hashes = np.concatenate([best, new]), np.concatenate([hashes, source_hash("", new)])
        order = np.lexsort((best, hashes))[:most]
        best, hashes = best[order], hashes[order]
    return best


def _write(
    pile: Pile,
    entries: list[Entry] | tuple[Entry, ...],
    modality: Modality,
    keys: NDArray[np.int64],
    crop: int | None,
    folder: Path,
) -> None:
    """Decode the payload of these keys into the folder, which appears whole; a row a key, in their order."""
    survey = modality.name.split(".")[0]
    shape = (*modality.shape[:-2], crop, crop) if crop else modality.shape
    names = _columns(pile, entries)
    n_bytes = len(keys) * int(np.prod(shape)) * sum(np.dtype(TYPES[n]).itemsize for n in names)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    free = shutil.disk_usage(folder.parent).free
    if n_bytes > free:
        raise ValueError(
            f"{folder.parent}: {len(keys):,} of {modality.name} take {n_bytes / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are "
            "free; free some, or name another folder"
        )
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        arrays = {n: _array(aside / f"{n}.npy", TYPES[n], (len(keys), *shape)) for n in names}
        seen = np.zeros(len(keys), bool)
        order = np.argsort(keys, kind="stable")
        for entry in entries:
            for chunk in _pieces(pile, entry, survey, keys[order]):
                at = order[np.searchsorted(keys[order], int64(chunk, "key"))]
                found = payload_arrays(chunk, modality)
                if crop:
                    first = modality.shape[-1] // 2 - crop // 2
                    found = {k: v[..., first : first + crop, first : first + crop] for k, v in found.items()}
                good = ~found["mask"] if "mask" in found else np.ones(found["flux"].shape, bool)
                good = good & (found["ivar"] > 0) if "ivar" in found else good
                seen[at] = good.reshape(len(at), -1).any(axis=1)
                for name in names:
                    arrays[name][at] = found[name]
        for array in arrays.values():
            if isinstance(array, np.memmap):
                array.flush()
        del arrays
        np.save(aside / "rows.npy", np.flatnonzero(seen))
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _by_band(images: NDArray[Any]) -> NDArray[Any]:
    """(n, band, y, x) with the band first."""
    return np.moveaxis(images, 1, 0)


def _sweep(cache: Path) -> None:
    """Remove what processes that were killed have left half written."""
    for path in cache.glob(".*.*"):
        pid = path.name.rpartition(".")[2]
        if pid.isdecimal() and path.is_dir() and not alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _array(path: Path, kind: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    if shape[0]:
        mapped: NDArray[Any] = np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)
        return mapped
    empty = np.empty(shape, kind)  # an empty file cannot be mapped
    np.save(path, empty)
    return empty


def _columns(pile: Pile, entries: list[Entry] | tuple[Entry, ...]) -> list[str]:
    with pile.open_parquet(entries[0].part) as file:
        return [n for n in TYPES if n in file.schema_arrow.names]


def _pieces(pile: Pile, entry: Entry, survey: str, keys: NDArray[np.int64]) -> Iterator[pa.Table]:
    """The rows of these keys (sorted) in a part, a row group at a time; groups without any are not read."""
    with pile.open_parquet(entry.part) as file:
        for group in range(file.num_row_groups):
            head = file.read_row_group(group, columns=["owner", "key", "status"])
            mine = pc.and_(pc.equal(head["owner"], survey), pc.is_null(head["status"]))
            mine = pc.and_(mine, pc.is_in(head["key"], pa.array(keys)))
            if pc.any(mine).as_py():
                names = ["owner", "key", *(n for n in TYPES if n in file.schema_arrow.names)]
                yield file.read_row_group(group, columns=names).filter(mine)
