"""How fast shards become masked microbatches, beside other formats and rules: one run, one thread, files in memory.

    OMP_NUM_THREADS=1 python benchmarks/loader.py [number of objects, 200000 unless given] [--per-microbatch 128]

Objects are those of read_shards.py: image 576 tokens, spectrum 273, XP 55 and 55, 30 scalars, each missing with
p = 0.6. Reading means batches of 256 objects, tokens as dense uint16 (256, 989) and lengths (256, 34); every reader
must give the same tokens (a sum over objects, slots and tokens, in any order), or it says so and ends. Figures are
objects per CPU-second, the best of several passes; slow readers read the first objects only. litdata,
mosaicml-streaming and webdataset take part where they can be imported (`pip install litdata mosaicml-streaming
webdataset`); what has no package is written here with tarfile and numpy, and called so. For figures to tell of, the
machine must have nothing else to do.
"""

from __future__ import annotations

import argparse
import importlib
import io
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from read_shards import COLUMNS, synthetic

from skycairn.model.loader import Loader, Rows
from skycairn.model.order import philox
from skycairn.model.rules import Beta, Dirichlet, Masker, Masking, Uniform
from skycairn.model.strata import Source
from skycairn.model.vocabulary import Vocabulary
from skycairn.pile.shards import ShardReader
from skycairn.pile.store import Pile

VOCABULARY = Vocabulary(tuple(sorted(COLUMNS, key=lambda c: c.modality)))
SIZES = np.array([c.n_tokens for c in VOCABULARY.columns])
FIRST = VOCABULARY.first_slot
BATCH = 256
Batches = Iterable[tuple[NDArray[Any], NDArray[Any]]]
WEIGHT = np.random.default_rng(5).integers(1, 1 << 63, VOCABULARY.n_slots, dtype=np.uint64) | np.uint64(1)


def checksum(batches: Batches) -> tuple[int, int]:
    """Objects, and the sum over their tokens of (token + 1) x a weight of the slot, modulo 2^64."""
    n, total = 0, np.uint64(0)
    with np.errstate(over="ignore"):
        for tokens, length in batches:
            there = np.repeat(length > 0, SIZES, axis=1)
            total += ((tokens.astype(np.uint64) + np.uint64(1)) * WEIGHT * there).sum(dtype=np.uint64)
            n += len(length)
    return n, int(total)


def speed(work: Callable[[], int], passes: int) -> tuple[float, float]:
    """Objects per CPU-second and per second, the best of some passes."""
    best = (0.0, 0.0)
    for _ in range(passes):
        cpu, wall = time.process_time(), time.perf_counter()
        n = work()
        best = max(best, (n / (time.process_time() - cpu), n / (time.perf_counter() - wall)))
    return best


def counted(batches: Batches) -> int:
    return sum(len(length) for _, length in batches)


# -- ours


def read_only(pile: Pile) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    for entry in pile.snapshot().entries("shards"):
        with ShardReader(pile.path(entry.part), entry.part.sha256) as shard:
            for group, n in enumerate(shard.row_groups):
                tokens, length = np.zeros((n, VOCABULARY.n_slots), np.uint16), np.zeros((n, len(SIZES)), np.int32)
                into = {name: tokens[:, FIRST[m] : FIRST[m + 1]] for m, name in enumerate(VOCABULARY.names)}
                found = shard.tokens(group, list(into), into)
                for m, name in enumerate(VOCABULARY.names):
                    length[:, m] = found[name].length
                for start in range(0, n, BATCH):
                    yield tokens[start : start + BATCH], length[start : start + BATCH]


def loader_of(pile: Pile, masking: Masking, objects: int) -> tuple[Loader, int]:
    """A fresh loader, and the microbatches of one pass."""
    loader = Loader([Source(pile, pile.snapshot())], "train", masking, objects=objects)
    return loader, -(-sum(s.rows for s in loader.order.strata) // objects)


def whole(pile: Pile, masking: Masking, objects: int) -> int:
    loader, n = loader_of(pile, masking, objects)
    for i in range(n):
        loader.microbatch(i)
    return loader.drawn


def shuffled(pile: Pile, objects: int) -> int:
    loader, n = loader_of(pile, Masking(), objects)
    return sum(len(loader.rows(i).length) for i in range(n))


def masks(rows: list[Rows], masking: Masking) -> int:
    masker = Masker(VOCABULARY, masking)
    for i, r in enumerate(rows):
        masker.draw(r.tokens, r.length, np.random.Generator(philox(0, "mask", i)))
    return sum(len(r.length) for r in rows)


# -- the per-sample rule, in the manner of 4M: one object at a time, a few torch operations for each modality


def one_sample(tokens: dict[str, torch.Tensor | None], inputs: int, targets: int) -> dict[str, torch.Tensor]:
    """Shares by a Dirichlet draw, budgets cut off at what a modality has, a random order of each one's tokens."""
    names = [n for n, t in tokens.items() if t is not None]
    most = torch.tensor([len(t) for t in tokens.values() if t is not None])
    budgets = []
    for total in (inputs, targets):
        concentration = torch.distributions.Dirichlet(torch.full((len(names),), 0.5))
        given = torch.floor(concentration.sample() * total).int()
        for _ in range(total - int(given.sum())):
            given[torch.argmax(concentration.sample())] += 1
        budgets.append(torch.clamp(given, max=most))
    out = {}
    for name, size in zip(VOCABULARY.names, SIZES.tolist(), strict=True):
        held = tokens[name]
        if held is None:
            held, n_in, n_out = torch.zeros(size, dtype=torch.long), 0, 0
        else:
            at = names.index(name)
            n_in, n_out = int(budgets[0][at]), int(budgets[1][at])
        order = torch.argsort(torch.rand(size))
        shown, asked = torch.ones(size, dtype=torch.bool), torch.ones(size, dtype=torch.bool)
        shown[order[:n_in]] = False
        asked[order[n_in : n_in + n_out]] = False
        out |= {f"{name}.tensor": held, f"{name}.input_mask": shown, f"{name}.target_mask": asked}
    return out


def per_sample(rows: list[Rows]) -> int:
    n = 0
    for r in rows:
        batch = []
        for tokens, length in zip(r.tokens.astype(np.int64), r.length, strict=True):
            if not length.any():
                continue
            held = {
                name: torch.from_numpy(tokens[FIRST[m] : FIRST[m + 1]]) if length[m] else None
                for m, name in enumerate(VOCABULARY.names)
            }
            batch.append(one_sample(held, 256, 128))
        torch.utils.data.default_collate(batch)
        n += len(r.length)
    return n


# -- other formats


def dense_file(folder: Path, pile: Pile) -> tuple[NDArray[Any], NDArray[Any]]:
    """All objects as dense arrays in plain files, as a memmap reads them."""
    tokens, length = (np.concatenate(a) for a in zip(*read_only(pile), strict=True))
    np.save(folder / "tokens.npy", tokens)
    np.save(folder / "length.npy", length)
    return np.load(folder / "tokens.npy", mmap_mode="r"), np.load(folder / "length.npy", mmap_mode="r")


def memmap(tokens: NDArray[Any], length: NDArray[Any], order: NDArray[np.int64] | None) -> Batches:
    for start in range(0, len(tokens), BATCH):
        rows = slice(start, start + BATCH) if order is None else order[start : start + BATCH]
        yield np.array(tokens[rows]), np.array(length[rows])


def packed_bytes(tokens: NDArray[Any], length: NDArray[Any]) -> bytes:
    """Which modalities an object has, a byte each, and its tokens one after another."""
    return (length > 0).tobytes() + tokens[np.repeat(length > 0, SIZES)].tobytes()


def unpacked(items: Iterable[bytes]) -> Batches:
    waiting: list[bytes] = []
    for item in items:
        waiting.append(item)
        if len(waiting) == BATCH:
            yield _dense(waiting)
            waiting = []
    if waiting:
        yield _dense(waiting)


def _dense(items: list[bytes]) -> tuple[NDArray[Any], NDArray[Any]]:
    m = len(SIZES)
    there = np.frombuffer(b"".join(i[:m] for i in items), bool).reshape(-1, m)
    tokens = np.zeros((len(items), VOCABULARY.n_slots), np.uint16)
    tokens[np.repeat(there, SIZES, axis=1)] = np.frombuffer(b"".join(i[m:] for i in items), np.uint16)
    return tokens, there * SIZES.astype(np.int32)


def write_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))


def tar_items(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        for about in tar:
            file = tar.extractfile(about)
            assert file is not None
            yield about.name, file.read()


def arrays(folder: Path, n: int) -> Batches:
    """One .npy an object and modality, a tar a modality; a missing one has no file."""
    tars = {name: tar_items(folder / f"{name}.tar") for name in VOCABULARY.names}
    ahead = {name: next(items, ("", b"")) for name, items in tars.items()}
    for start in range(0, n, BATCH):
        stop = min(start + BATCH, n)
        tokens = np.zeros((stop - start, VOCABULARY.n_slots), np.uint16)
        length = np.zeros((stop - start, len(SIZES)), np.int32)
        for k in range(start, stop):
            for m, (name, items) in enumerate(tars.items()):
                if ahead[name][0] == f"{k:09}.npy":
                    tokens[k - start, FIRST[m] : FIRST[m + 1]] = np.load(io.BytesIO(ahead[name][1]))
                    length[k - start, m] = SIZES[m]
                    ahead[name] = next(items, ("", b""))
        yield tokens, length


def npy_bytes(values: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def package(name: str) -> bool:
    """Whether it can be imported here."""
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


Reader = tuple[str, int, Callable[[], Batches]]


def peers(folder: Path, tokens: NDArray[Any], length: NDArray[Any]) -> Iterator[Reader]:
    """Name, objects and reader of each; slow ones hold the first objects only."""
    some, few = min(len(tokens), 40_000), min(len(tokens), 10_000)
    items = [packed_bytes(t, n) for t, n in zip(tokens[:some], length[:some], strict=True)]
    if package("litdata"):
        from litdata import StreamingDataset
        from litdata.streaming.cache import Cache

        out = folder / "litdata"
        out.mkdir()
        cache = Cache(str(out), chunk_bytes="64MB")
        for i, item in enumerate(items):
            cache[i] = item
        cache.done()
        cache.merge()
        yield "litdata", some, lambda: unpacked(StreamingDataset(str(out), shuffle=True))
    if package("streaming"):
        from streaming import MDSWriter
        from streaming import StreamingDataset as Mds

        with MDSWriter(out=str(folder / "mds"), columns={"packed": "bytes"}) as writer:
            for item in items:
                writer.write({"packed": item})
        data = Mds(local=str(folder / "mds"), shuffle=True, batch_size=BATCH)
        yield "MosaicML streaming", some, lambda: unpacked(x["packed"] for x in data)
    write_tar(folder / "packed.tar", ((f"{k:09}.bin", item) for k, item in enumerate(items)))
    if package("webdataset"):
        import webdataset

        def read() -> Batches:
            found = webdataset.WebDataset(str(folder / "packed.tar"), shardshuffle=False, empty_check=False)
            return unpacked(x["bin"] for x in found)

        yield "WebDataset, packed", some, read
    yield "tar, packed (tarfile)", some, lambda: unpacked(data for _, data in tar_items(folder / "packed.tar"))
    (folder / "npy").mkdir()
    for m, name in enumerate(VOCABULARY.names):
        rows = np.flatnonzero(length[:few, m])
        part = slice(int(FIRST[m]), int(FIRST[m + 1]))
        write_tar(folder / "npy" / f"{name}.tar", ((f"{k:09}.npy", npy_bytes(tokens[k, part])) for k in rows))
    yield "tar, a .npy a modality (tarfile)", few, lambda: arrays(folder / "npy", few)


GOALS = {
    "litdata": 2,
    "MosaicML streaming": 10,
    "WebDataset, packed": 7,
    "tar, packed (tarfile)": 7,
    "tar, a .npy a modality (tarfile)": 25,
}


def row(name: str, found: tuple[float, float], ratio: str = "") -> None:
    print(f"| {name} | {found[0]:,.0f} | {found[1]:,.0f} | {ratio} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Objects a second from shards to masked microbatches.")
    parser.add_argument("objects", type=int, nargs="?", default=200_000)
    parser.add_argument("--per-microbatch", type=int, default=128)
    parser.add_argument("--passes", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    absent = [m for m in ("litdata", "streaming", "webdataset") if not package(m)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pile = synthetic(folder / "pile", given.objects)
        tokens, length = dense_file(folder, pile)
        n = len(tokens)
        truth = checksum(memmap(tokens, length, None))
        if checksum(read_only(pile)) != truth:
            sys.exit("the shards do not hold the tokens that were written")
        # one lane whose first pool is all: an epoch in one microbatch
        every = Loader([Source(pile, pile.snapshot())], "train", Masking(), objects=n, lanes=1, pool=n).rows(0)
        if checksum(memmap(every.tokens, every.length, None)) != truth:
            sys.exit("the loader does not give each object once an epoch")
        del every
        print(f"{n:,} objects; {given.per_microbatch} a microbatch; absent: {', '.join(absent) or 'no package'}\n")
        print("| | objects/s/core | objects/s | |")
        print("|---|--:|--:|---|")
        ours = speed(lambda: counted(read_only(pile)), given.passes)
        row("**ours, read only**", ours)
        rng = np.random.default_rng(0)
        for what, order in (("memmap, in order", None), ("memmap, random rows", rng.permutation(n))):
            found = speed(lambda order=order: counted(memmap(tokens, length, order)), given.passes)  # type: ignore[misc]
            row(f"numpy {what}", found, f"ours is {ours[0] / found[0]:.2f} of this limit")
        for name, count, reader in peers(folder, tokens, length):
            wanted = checksum(memmap(tokens[:count], length[:count], None))
            if (seen := checksum(reader())) != wanted:
                sys.exit(f"{name} gives {seen[0]} objects with the sum {seen[1]}; wanted {wanted}")
            found = speed(lambda reader=reader: counted(reader()), given.passes)  # type: ignore[misc]
            row(name, found, f"ours is {ours[0] / found[0]:.1f} x (goal {GOALS[name]})")
        row("**ours, read, shuffled**", speed(lambda: shuffled(pile, given.per_microbatch), given.passes))
        rules = {c.rule: Masking(components=(c,)) for c in (Dirichlet(0.5, 0.5), Beta(), Uniform())}
        for rule, masking in rules.items():
            found = speed(lambda masking=masking: whole(pile, masking, given.per_microbatch), given.passes)  # type: ignore[misc]
            row(f"**ours, read, shuffled, masked** ({rule})", found, "goal 25,000")
        loader, n_pass = loader_of(pile, Masking(), given.per_microbatch)
        rows = [loader.rows(i) for i in range(min(n_pass, 400))]
        slow = speed(lambda: per_sample(rows[: max(1, 600 // given.per_microbatch)]), given.passes)
        row("masks, one object at a time, as 4M's are", slow)
        for rule, masking in rules.items():
            found = speed(lambda masking=masking: masks(rows, masking), given.passes)  # type: ignore[misc]
            row(f"**our masks** ({rule})", found, f"{found[0] / slow[0]:.0f} x (goal 50)")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of the packages
    main()
