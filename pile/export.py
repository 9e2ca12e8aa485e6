"""An export: a folder of a snapshot's shards in HDF5, and a manifest of them, written last.

<split>/<stratum>-000.h5, -001.h5, ...      one for each Parquet shard, in the order of the snapshot
manifest.json                               files with their bytes, SHA-256, rows and labels; content id; codec ids
unfinished.json                             instead of it, until all files are there: whose export this is
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from skycairn.pile import disk
from skycairn.pile.content import ContentHasher
from skycairn.pile.files import (
    Damaged,
    NotAPile,
    PendingFile,
    file_sha256,
    make_folder,
    make_root,
    sealed,
    sweep,
    unseal,
)
from skycairn.pile.hdf5shards import Hdf5ShardReader, write_shard
from skycairn.pile.receipt import Part
from skycairn.pile.shards import ShardReader
from skycairn.pile.snapshot import Draft, Entry, Snapshot
from skycairn.pile.store import Pile

FORMAT = 1
MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
_RESTORE = "remove the folder and export again, or restore it from a copy"


@dataclass(frozen=True)
class Export:
    """A finished export. A loader (`model/loader.py`) gives the same from it as from the pile."""

    root: Path
    content_id: str
    "of the snapshot that was exported, all its tables"
    number: int
    "of that snapshot"
    split: str
    "empty where all were exported"
    parts: str
    "SHA-256 of the SHA-256 of the Parquet shards that were exported, in order"
    codec_ids: dict[str, str]
    "by modality"
    entries: tuple[Entry, ...]
    files: dict[str, str]
    "path in the folder by SHA-256"

    @classmethod
    def open(cls, root: str | Path) -> Self:
        """Open an export. `NotAPile` where the folder is none or is not finished, `Damaged` where it is broken."""
        root = Path(root)
        path = root / MANIFEST
        try:
            body = unseal(path, _RESTORE)
        except FileNotFoundError as error:
            state = "is not finished; export again and it goes on" if (root / UNFINISHED).exists() else "is no export"
            raise NotAPile(f"{root} {state}: it has no {MANIFEST}") from error
        if body.get("what") != "skycairn export" or body.get("format") != FORMAT:
            raise NotAPile(f"{path} is of {body.get('what')!r}, format {body.get('format')!r}; wanted {FORMAT}")
        try:
            listed = body["files"]
            entries = tuple(Entry(f["labels"], _part(f)) for f in listed)
            files = {f["sha256"]: str(f["path"]) for f in listed}
            return cls(
                root,
                body["content_id"],
                body["snapshot"],
                body["split"],
                body["parts"],
                body["codec_ids"],
                entries,
                files,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(f"{path} lacks a field or has a strange one ({error!r}); {_RESTORE}") from error

    @property
    def n_rows(self) -> int:
        """Objects of all files."""
        return sum(e.part.n_rows for e in self.entries)

    def path(self, part: Part) -> Path:
        """Where the file lies."""
        return self.root / self.files[part.sha256]

    def snapshot(self) -> Snapshot:
        """The exported snapshot less all but its shards, which are the HDF5 files."""
        return Snapshot.of(Draft(recipe={}, tables={"shards": self.entries}), self.number, None)


def _part(file: dict[str, Any]) -> Part:
    return Part(file["sha256"], ".h5", file["bytes"], file["rows"], file["content_id"])


def export_hdf5(
    pile: Pile, snapshot: Snapshot, root: str | Path, split: str = "", done: Callable[[int, int], None] | None = None
) -> tuple[Export, int]:
    """Write the snapshot's shards, or one split's, into the folder; the export, and how many files were written now.

    `done` is told after each file how many are there, and how many there will be. A finished export of the same content
    is left as it is, an interrupted one goes on. ValueError where the folder holds anything else.
    """
    root = Path(root)
    entries = [e for e in snapshot.entries("shards") if split in ("", e.labels["split"])]
    if not entries:
        known = sorted({str(e.labels["split"]) for e in snapshot.entries("shards")})
        raise ValueError(f"snapshot {snapshot.number} has no split {split!r}; it has {', '.join(known)}")
    # the same content in other row groups makes other files, and other batches
    parts = hashlib.sha256("".join(e.part.sha256 for e in entries).encode()).hexdigest()
    whose = {
        "what": "skycairn export",
        "format": FORMAT,
        "content_id": snapshot.content_id,
        "split": split,
        "parts": parts,
    }
    if (root / MANIFEST).exists():
        export = Export.open(root)
        _check_whose(root, {"content_id": export.content_id, "split": export.split, "parts": export.parts}, whose)
        return export, 0
    _start(root, whose)
    counts: Counter[tuple[str, str]] = Counter()
    codec_ids: dict[str, str] = {}
    listed: list[dict[str, Any]] = []
    n_written = 0
    for entry in entries:
        with ShardReader(pile.path(entry.part), entry.part.sha256) as shard:
            place = (shard.split, shard.stratum)
            if any(not p or p.startswith(".") or "/" in p for p in place):
                raise ValueError(f"{shard.path}: its split and stratum {place} cannot be names of files")
            for name, column in shard.columns.items():
                if codec_ids.setdefault(name, column.codec_id) != column.codec_id:
                    raise ValueError(f"{shard.path}: {name} has the codec {column.codec_id}, others {codec_ids[name]}")
            path = f"{shard.split}/{shard.stratum}-{counts[place]:03d}.h5"
            counts[place] += 1
            if not _same(root / path, shard):
                with PendingFile(root) as file:
                    write_shard(shard, file, snapshot=snapshot.number, content_id=snapshot.content_id)
                    file.publish(root / path)
                n_written += 1
        if done is not None:
            done(len(listed) + 1, len(entries))
        told = {"rows": entry.part.n_rows, "labels": entry.labels, "content_id": entry.part.content_id}
        n_bytes, digest = (root / path).stat().st_size, file_sha256(root / path)
        listed.append({"path": path, "bytes": n_bytes, "sha256": digest, **told})
    body = {**whose, "snapshot": snapshot.number, "codec_ids": codec_ids, "files": listed}
    _publish(root, MANIFEST, body)
    with suppress(FileNotFoundError):
        disk.unlink(root / UNFINISHED)
    return Export.open(root), n_written


def _start(root: Path, whose: dict[str, Any]) -> None:
    """Make the folder ours, or find that it is."""
    if root.exists() and not root.is_dir():
        raise NotAPile(f"{root} is a file; name an empty folder, or one to be made")
    make_root(root)
    sweep(root)
    try:
        _check_whose(root, unseal(root / UNFINISHED, _RESTORE), whose)
    except FileNotFoundError:
        if found := sorted(p.name for p in root.iterdir()):
            raise NotAPile(
                f"{root} holds {', '.join(found[:5])} and is no export; name an empty folder, or one to be made"
            ) from None
        _publish(root, UNFINISHED, whose)


def _check_whose(root: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in ("content_id", "split", "parts"):
        if found.get(key) != wanted[key]:
            raise NotAPile(
                f"{root} holds another export: its {key} is {found.get(key)!r}, wanted "
                f"{wanted[key]!r}; name an empty folder, or one to be made"
            )


def _publish(root: Path, name: str, body: dict[str, Any]) -> None:
    with PendingFile(root) as file:
        file.write(sealed(body))
        file.publish(root / name)


def _same(path: Path, shard: ShardReader) -> bool:
    """Whether an earlier run wrote the file whole: it is read, all of it, and held against the shard."""
    make_folder(path.parent)
    if not path.exists():
        return False
    try:
        with Hdf5ShardReader(path) as made:
            if not made.schema.equals(shard.schema, check_metadata=True) or made.row_groups != shard.row_groups:
                return False
            for group in range(len(shard.row_groups)):
                want, got = shard.tokens(group), made.tokens(group)
                if any((a != b).any() for name in want for a, b in zip(want[name], got[name], strict=True)):
                    return False
                if _content(made.objects(group)) != _content(shard.objects(group)):
                    return False
            return True
    except Damaged:
        return False


def _content(table: pa.Table) -> str:
    hasher = ContentHasher(table.schema)
    hasher.update(table)
    return hasher.content_id
