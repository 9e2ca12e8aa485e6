"""How fast shards are read, Parquet and HDF5 (none, lzf): the same tokens, in one run, one thread, files in memory.

    python benchmarks/read_shards.py [PILE | number of synthetic objects, 100000 unless given]

Synthetic objects are AION's: image 576 tokens (vocabulary 4375), spectrum 273, XP 55 and 55, 30 scalars; each missing
at random with p = 0.6; Zipf tokens. Reading means dense tokens, presence and lengths of all modalities, row group by
row group, checksums verified. Prints a Markdown table; objects/s/core are objects per CPU-second, best of 5. Every
format must give the same tokens, or it says so and ends.
"""

from __future__ import annotations

import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skycairn.pile.files import PendingFile
from skycairn.pile.hdf5shards import open_shard, write_shard
from skycairn.pile.shards import ROW_GROUP_ROWS, ShardReader, TokenArray, TokenColumn, shard_schema, shard_table
from skycairn.pile.store import Draft, Entry, Pile

ID = "0" * 64
COLUMNS = [
    TokenColumn("image", ID, 4375, 576, "grid", (24, 24), False, "image"),
    TokenColumn("spectrum", ID, 1024, 273, "line", (273,), False, "spectrum"),
    TokenColumn("xp_bp", ID, 1024, 55, "line", (55,), False, "xp_bp"),
    TokenColumn("xp_rp", ID, 1024, 55, "line", (55,), False, "xp_rp"),
    *(TokenColumn(f"scalar{i}", ID, 1024, 1, "scalar", (), True, f"scalar{i}") for i in range(30)),
]


def zipf(rng: np.random.Generator, vocabulary: int, shape: tuple[int, int]) -> NDArray[Any]:
    chance = 1 / np.arange(1, vocabulary + 1)
    return np.searchsorted(np.cumsum(chance / chance.sum()), rng.random(shape)).clip(max=vocabulary - 1)


def synthetic(folder: Path, n_objects: int) -> Pile:
    pile = Pile.create(folder)
    rng = np.random.default_rng(7)
    names = pa.schema([("object_id", pa.string()), ("ra", pa.float64()), ("dec", pa.float64())])
    schema = shard_schema(names, COLUMNS, "train", "all")
    with pile.table_writer(schema, ROW_GROUP_ROWS) as file:
        for start in range(0, n_objects, ROW_GROUP_ROWS):
            n = min(ROW_GROUP_ROWS, n_objects - start)
            ids = [f"object:{start + i}" for i in range(n)]
            objects = pa.table([ids, rng.uniform(0, 360, n), rng.uniform(-90, 90, n)], schema=names)
            tokens, status = {}, {}
            for c in COLUMNS:
                present = rng.random(n) > 0.6
                values = zipf(rng, c.vocabulary, (n, c.n_tokens)).astype(c.dtype)
                tokens[c.modality] = TokenArray(values, present, np.where(present, c.n_tokens, 0))
                status[c.modality] = np.where(present, "present", "not observed").tolist()
            file.write(shard_table(objects, tokens, status, schema))
    pile.commit(Draft(recipe={}, tables={"shards": [Entry({"split": "train"}, file.part)]}))
    return pile


def read(paths: list[Path]) -> tuple[int, float, float]:
    """Objects, CPU-seconds, seconds."""
    n, cpu, wall = 0, time.process_time(), time.perf_counter()
    for path in paths:
        with open_shard(path) as shard:
            for group in range(len(shard.row_groups)):
                shard.tokens(group)
            n += shard.n_rows
    return n, time.process_time() - cpu, time.perf_counter() - wall


def checksum(paths: list[Path]) -> int:
    digest = 0
    for path in paths:
        with open_shard(path) as shard:
            for tokens in shard:
                for array in tokens.values():
                    for values in array:
                        digest = zlib.crc32(np.ascontiguousarray(values), digest)
    return digest


def main() -> None:
    given = sys.argv[1] if len(sys.argv) > 1 else "100000"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pile = synthetic(folder / "pile", int(given)) if given.isdigit() else Pile.open(given, check="pages")
        parquet = [pile.path(e.part) for e in pile.snapshot().entries("shards")]
        formats = {"Parquet": parquet}
        for name, compression in (("HDF5", None), ("HDF5, shuffle + lzf", "lzf")):
            formats[name] = []
            for i, path in enumerate(parquet):
                out = folder / f"{compression}-{i}.h5"
                with ShardReader(path) as shard, PendingFile(folder) as file:
                    write_shard(shard, file, compression)
                    file.publish(out)
                formats[name].append(out)
        if len(digests := {name: checksum(paths) for name, paths in formats.items()}) and len({*digests.values()}) > 1:
            sys.exit(f"the formats do not hold the same tokens: {digests}")
        best = {name: (0, np.inf, np.inf) for name in formats}
        for _ in range(5):
            for name, paths in formats.items():
                best[name] = min(best[name], read(paths), key=lambda found: found[1])
        n = best["Parquet"][0]
        print(f"{n} objects, {len(parquet)} shards\n")
        print("| format | bytes | B/object | size / Parquet | objects/s/core | objects/s | speed / Parquet |")
        print("|---|--:|--:|--:|--:|--:|--:|")
        n_parquet = sum(p.stat().st_size for p in parquet)
        for name, paths in formats.items():
            n_bytes = sum(p.stat().st_size for p in paths)
            _, cpu, wall = best[name]
            print(
                f"| {name} | {n_bytes:,} | {n_bytes / n:.0f} | {n_bytes / n_parquet:.2f} | {n / cpu:,.0f} "
                f"| {n / wall:,.0f} | {best['Parquet'][1] / cpu:.2f} |"
            )


if __name__ == "__main__":
    main()
