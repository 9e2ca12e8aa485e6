"""The pile: immutable parts, receipts of what made them, and snapshots that say which of them belong together.

pile.json                                   what this folder is
parts/ab/<sha256>.parquet                   named by their own bytes, read-only
receipts/ab/<task key>.json
snapshots/00000000000000000042.json         created only if absent; the head is the highest number
tmp/                                        files being written
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq

from skycairn.pile import parquet
from skycairn.pile.content import canonical_json
from skycairn.pile.files import (
    Damaged,
    Missing,
    NotAPile,
    PendingFile,
    check_sha256_once,
    file_sha256,
    make_folder,
    remove,
    sealed,
    sweep,
    sync_folder,
    unseal,
)
from skycairn.pile.receipt import Part, Receipt, check_sha256
from skycairn.pile.snapshot import Draft, Entry, Snapshot
from skycairn.pile.verify import Verification, verify

FORMAT = 1
Check = Literal["first", "pages"]
"""How much of a table's part is verified on reading, beside the checksums of the pages read: all of it when a process
first opens it (2 GB/s), or no more. `pages` is for reading a few rows of a large part over a network."""
_FOLDERS = ("parts", "receipts", "snapshots", "tmp")
_SNAPSHOT = re.compile(r"([0-9]{20})\.json")
_PARQUET = ".parquet"

__all__ = ["FORMAT", "Draft", "Entry", "Part", "Pile", "Receipt", "Snapshot", "TableFile"]


class Pile:
    """A folder of immutable parts, receipts and snapshots. Any number of processes may read and write it at once."""

    def __init__(self, root: Path, check: Check = "first") -> None:
        """Use `create` or `open`, which look at what is there."""
        self.root = root
        self.check = check

    @classmethod
    def create(cls, root: str | Path) -> Self:
        """Make the folder a pile, or open the pile that it is. ValueError where it holds anything else."""
        root = Path(root)
        if (root / "pile.json").exists():
            return cls.open(root)
        strange = sorted(p.name for p in root.iterdir() if p.name not in _FOLDERS) if root.is_dir() else []
        if strange:
            raise NotAPile(
                f"{root} holds {', '.join(strange[:5])} and is not a pile; name an empty folder, or one to be made"
            )
        if root.exists() and not root.is_dir():
            raise NotAPile(f"{root} is a file; name an empty folder, or one to be made")
        root.mkdir(parents=True, exist_ok=True)
        for name in _FOLDERS:
            make_folder(root / name)
        pile = cls(root)
        # last, so that a pile with its file is a whole one
        with PendingFile(root / "tmp") as file:
            file.write(canonical_json({"what": "skycairn pile", "format": FORMAT}) + b"\n")
            file.publish(root / "pile.json")
        pile.sweep()
        return pile

    @classmethod
    def open(cls, root: str | Path, check: Check = "first") -> Self:
        """Open a pile. `NotAPile` where the folder is none, or was written by a newer version."""
        root = Path(root)
        try:
            head = json.loads((root / "pile.json").read_bytes())
        except FileNotFoundError as error:
            raise NotAPile(f"{root} is not a pile: it has no pile.json; is this the right folder?") from error
        except (ValueError, NotADirectoryError) as error:
            raise NotAPile(f"{root} is not a pile: its pile.json cannot be read ({error})") from error
        if not isinstance(head, dict) or head.get("what") != "skycairn pile" or type(head.get("format")) is not int:
            raise NotAPile(f"{root} is not a pile: its pile.json says {str(head)[:200]}")
        if head["format"] > FORMAT:
            raise NotAPile(
                f"{root} is a pile of format {head['format']}, this version reads formats up to {FORMAT}; "
                f"use a newer skycairn"
            )
        pile = cls(root, check)
        pile.sweep()
        return pile

    def sweep(self) -> int:
        """Remove files that dead processes of this machine left half-written; how many they were."""
        with suppress(OSError):
            return sweep(self.root / "tmp")
        return 0

    # -- parts

    def path(self, part: Part) -> Path:
        """Where the part lies."""
        return self.root / "parts" / part.sha256[:2] / (part.sha256 + part.suffix)

    def has(self, part: Part) -> bool:
        """Whether the part is there, by its size; `verify` reads it."""
        try:
            return self.path(part).stat().st_size == part.n_bytes
        except FileNotFoundError:
            return False

    def _publish(self, file: PendingFile, part: Part) -> Part:
        final = self.path(part)
        if self.has(part) and file_sha256(final) == part.sha256:
            # as it was made by an earlier run, which may have died before it flushed the folder
            sync_folder(final.parent)
        else:
            file.publish(final)
        return part

    @contextmanager
    def table_writer(self, schema: pa.Schema, row_group_rows: int = parquet.ROW_GROUP_ROWS) -> Iterator[TableFile]:
        """Write a table in pieces: `write(table)` inside the `with`, `part` after it. Nothing is kept if it raises."""
        with PendingFile(self.root / "tmp") as pending:
            writer = parquet.TableWriter(pending, schema, row_group_rows)
            table = TableFile(writer)
            try:
                yield table
                writer.close()
            except BaseException:
                pending.discard()
                writer.abandon()
                raise
            part = Part(pending.sha256, _PARQUET, pending.n_bytes, writer.n_rows, writer.content_id)
            table.written = self._publish(pending, part)

    def put_table(self, table: pa.Table, row_group_rows: int = parquet.ROW_GROUP_ROWS) -> Part:
        """Write a table as one part."""
        with self.table_writer(table.schema, row_group_rows) as file:
            file.write(table)
        return file.part

    def read_table(
        self,
        part: Part | str,
        columns: Sequence[str] | None = None,
        rows: tuple[int, int] | None = None,
        filters: Any = None,
    ) -> pa.Table:
        """Read a part, known by itself or by its SHA-256; see `parquet.read`. Page checksums are always verified."""
        path, n_rows = self._checked(part)
        return parquet.read(path, columns, rows, filters, n_rows)

    def open_parquet(self, part: Part | str) -> pq.ParquetFile:
        """The part as a `pyarrow.parquet.ParquetFile` that verifies page checksums; close it after use."""
        return parquet.open_file(*self._checked(part))

    def _checked(self, part: Part | str) -> tuple[Path, int | None]:
        """Path of a table's part, verified as `check` says, and its rows where they are known."""
        if isinstance(part, str):
            check_sha256(part, "the part asked for")
            sha256, n_rows = part, None
            path = self.root / "parts" / part[:2] / (part + _PARQUET)
        else:
            if part.suffix != _PARQUET:
                raise ValueError(
                    f"part {part.sha256[:12]}.. is a {part.suffix} file, not a table; use read_bytes or path"
                )
            sha256, n_rows, path = part.sha256, part.n_rows, self.path(part)
            self._check_size(part)
        if self.check == "first":
            check_sha256_once(path, sha256)
        return path, n_rows

    def _check_size(self, part: Part) -> None:
        path = self.path(part)
        try:
            n_bytes = path.stat().st_size
        except FileNotFoundError as error:
            raise Missing(f"{path}: the part is not there; build it again, or restore it from a copy") from error
        if n_bytes != part.n_bytes:
            raise Damaged(f"{path} has {n_bytes} bytes, not {part.n_bytes}; remove it and build it again")

    def put_bytes(self, data: bytes, suffix: str) -> Part:
        """Write a small file as one part."""
        with PendingFile(self.root / "tmp") as pending:
            pending.write(data)
            return self._publish(pending, Part(pending.sha256, suffix, len(data), 0, pending.sha256))

    def put_file(self, source: Path, n_rows: int = 0, content_id: str | None = None) -> Part:
        """Copy a finished file in as one part. A table in another format (HDF5) brings its rows and content id."""
        with PendingFile(self.root / "tmp") as pending:
            with source.open("rb") as file:
                while data := file.read(1 << 22):
                    pending.write(data)
            part = Part(pending.sha256, source.suffix, pending.n_bytes, n_rows, content_id or pending.sha256)
            return self._publish(pending, part)

    def read_bytes(self, part: Part) -> bytes:
        """The part's bytes, verified against its SHA-256."""
        self._check_size(part)
        data = self.path(part).read_bytes()
        if (digest := hashlib.sha256(data).hexdigest()) != part.sha256:
            raise Damaged(f"{self.path(part)} has the SHA-256 {digest}, not its name; remove it and build it again")
        return data

    def put_folder(self, folder: Path) -> dict[str, Part]:
        """The files of a flat folder (a saved codec) as parts, by name."""
        if nested := [p.name for p in folder.iterdir() if not p.is_file()]:
            raise ValueError(f"{folder} holds {', '.join(sorted(nested))}, not a plain file; wanted a flat folder")
        return {path.name: self.put_file(path) for path in sorted(folder.iterdir())}

    def restore_folder(self, parts: Mapping[str, Part], folder: Path) -> None:
        """Write the parts of `put_folder` out again, each verified."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in parts.items():
            if Path(name).name != name or name in (".", ".."):
                raise ValueError(f"{name!r} is not a plain file name")
            (folder / name).write_bytes(self.read_bytes(part))

    # -- receipts

    def _receipt_path(self, key: str) -> Path:
        check_sha256(key, "key of a receipt")
        return self.root / "receipts" / key[:2] / f"{key}.json"

    def put_receipt(self, receipt: Receipt) -> None:
        """Store the receipt under its key, over one that may be there. `Missing` if one of its parts is not there."""
        for name, part in receipt.outputs.items():
            if not self.has(part):
                raise Missing(
                    f"receipt {receipt.step} {receipt.label}: output {name!r}, {self.path(part)}, is not there"
                )
        with PendingFile(self.root / "tmp") as file:
            file.write(sealed(receipt.to_json()))
            file.publish(self._receipt_path(receipt.key))

    def receipt(self, key: str) -> Receipt | None:
        """The receipt of the task, or None where the task is still to do: none is there, or one of its parts is not.

        A damaged receipt is an error, not a task to do: damage that heals unseen is damage that nobody looks into.
        """
        path = self._receipt_path(key)
        try:
            receipt = self.read_receipt(path)
        except FileNotFoundError:
            return None
        return receipt if all(self.has(part) for part in receipt.outputs.values()) else None

    def drop_receipt(self, key: str) -> None:
        """Forget the receipt of the task, where there is one: the task is to do again."""
        remove(self._receipt_path(key))

    def read_receipt(self, path: Path) -> Receipt:
        """The receipt in a file of the pile, whether or not its parts are there."""
        what_to_do = "remove it, and its task runs again"
        body = unseal(path, what_to_do)
        try:
            receipt = Receipt.from_json(body)
        except ValueError as error:
            raise Damaged(f"{path}: {error}; {what_to_do}") from error
        if receipt.key != path.stem:
            raise Damaged(f"{path} is the receipt of {receipt.key}; {what_to_do}")
        return receipt

    def receipts(self) -> Iterator[Receipt]:
        """All receipts, those whose parts are gone too."""
        for path in sorted((self.root / "receipts").glob("??/*.json")):
            yield self.read_receipt(path)

    # -- snapshots

    def snapshots(self) -> list[int]:
        """Numbers of the snapshots, ascending."""
        found = (_SNAPSHOT.fullmatch(p.name) for p in (self.root / "snapshots").iterdir())
        return sorted(int(f[1]) for f in found if f)

    def snapshot(self, number: int | None = None) -> Snapshot:
        """The snapshot of this number, or the newest. `Missing` where there is none, `Damaged` where it is broken."""
        if number is None:
            numbers = self.snapshots()
            if not numbers:
                raise Missing(f"{self.root} holds no snapshot yet; build it first")
            number = numbers[-1]
        path = self._snapshot_path(number)
        what_to_do = "restore it from a copy of the pile, or remove it to fall back to the one before"
        try:
            body = unseal(path, what_to_do)
        except FileNotFoundError as error:
            numbers = self.snapshots()
            known = f"there are {numbers[0]} to {numbers[-1]}" if numbers else "there is none"
            raise Missing(f"{self.root} has no snapshot {number}; {known}") from error
        try:
            snapshot = Snapshot.from_json(body)
        except ValueError as error:
            raise Damaged(f"{path}: {error}; {what_to_do}") from error
        if snapshot.number != number:
            raise Damaged(f"{path} is snapshot {snapshot.number}; {what_to_do}")
        return snapshot

    def _snapshot_path(self, number: int) -> Path:
        return self.root / "snapshots" / f"{number:020d}.json"

    def head(self) -> Snapshot | None:
        """The newest snapshot, or None before the first."""
        try:
            return self.snapshot()
        except Missing:
            if self.snapshots():
                raise
            return None

    def commit(self, change: Draft | Callable[[Snapshot | None], Draft]) -> Snapshot:
        """Make the draft the newest snapshot; the head itself, where it already says the same and is whole.

        A function is given the head and makes the draft of it; it is called again when another process committed
        meanwhile, so that neither's work is lost. A plain draft replaces the tables of whatever is the head.
        """
        while True:
            head = self.head()
            draft = change(head) if callable(change) else change
            parent = None if head is None else head.number
            snapshot = Snapshot.of(draft, 1 if parent is None else parent + 1, parent)
            for part in snapshot.parts():
                if not self.has(part):
                    raise Missing(f"{self.path(part)} is not there, or is cut short; a snapshot cannot name it")
            if head is not None and snapshot.says_the_same(head) and all(self.has(part) for part in head.parts()):
                return head
            with PendingFile(self.root / "tmp") as file:
                file.write(sealed(snapshot.to_json()))
                try:
                    file.publish_new(self._snapshot_path(snapshot.number))
                except FileExistsError:
                    if not self._snapshot_path(snapshot.number).exists():
                        raise
                    continue
            return snapshot

    def verify(self, deep: bool = True) -> Verification:
        """Look whether all that the head names is there; `deep` reads every byte of it. See `verify.verify`."""
        return verify(self, deep)


class TableFile:
    """A table being written to a pile."""

    def __init__(self, writer: parquet.TableWriter) -> None:
        self._writer = writer
        self.written: Part | None = None

    def write(self, table: pa.Table | pa.RecordBatch) -> None:
        """Add rows; columns and types as in the schema, in its order."""
        self._writer.write(table)

    @property
    def part(self) -> Part:
        """What was written. ValueError inside the `with`, before the file is whole."""
        if self.written is None:
            raise ValueError("the part is known once the `with` has ended")
        return self.written
