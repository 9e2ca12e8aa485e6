"""The pile: immutable parts, receipts of what made them, and snapshots that say which of them belong together.

pile.json                                   what this folder is
parts/ab/<sha256>.parquet                   named by their own bytes, read-only
receipts/ab/<task key>.json
snapshots/00000000000000000042.json         created only if absent; the head is the highest number
refs/tags/<name>.json                       names of snapshots that are to stay
leases/<machine>-<pid>-<uuid>.json          who reads which snapshot
quarantine/                                 damaged files, moved away and never removed
locks/builder.lock                          one builder at a time
tmp/                                        files being written

What `put_*`, `put_receipt`, `commit`, `tag`, `untag` and `pin` have returned from outlives a power cut. All folders but
`tmp` are made when they are first written to.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq

from skycairn.pile import disk, leases, parquet, tags
from skycairn.pile.content import canonical_json
from skycairn.pile.disk import sync_folder
from skycairn.pile.files import (
    MOST_BYTES,
    Conflict,
    Damaged,
    Missing,
    NotAPile,
    PendingFile,
    check_sha256_once,
    copy_out,
    file_sha256,
    make_folder,
    make_root,
    make_scratch,
    parse,
    plain_size,
    read_small,
    remove,
    sealed,
    sweep,
    unseal,
)
from skycairn.pile.leases import Lease, Pinned
from skycairn.pile.receipt import Part, Receipt, check_sha256
from skycairn.pile.snapshot import Draft, Entry, Snapshot
from skycairn.pile.tags import Version
from skycairn.pile.verify import Verification, verify

FORMAT = 1
Check = Literal["first", "pages"]
"""How much of a table's part is verified on reading, beside the checksums of the pages read: all of it when a process
first opens it (2 GB/s), or no more. `pages` is for reading a few rows of a large part over a network."""
_OURS = {
    *("parts", "receipts", "snapshots", "refs", "leases", "quarantine", "locks", "tmp"),
    # what builders lay beside them
    *("codecs", "codecs.lock", "journal", "hats"),
}
_SNAPSHOT = re.compile(r"([0-9]{20})\.json")
_PARQUET = ".parquet"

__all__ = ["FORMAT", "Draft", "Entry", "Lease", "Part", "Pile", "Pinned", "Receipt", "Snapshot", "TableFile", "Version"]


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
            pile = cls.open(root)
            # who made it may have died before it flushed the folder
            sync_folder(root)
            return pile
        strange = sorted(p.name for p in root.iterdir() if p.name not in _OURS) if root.is_dir() else []
        if strange:
            raise NotAPile(
                f"{root} holds {', '.join(strange[:5])} and is not a pile; name an empty folder, or one to be made"
            )
        if root.exists() and not root.is_dir():
            raise NotAPile(f"{root} is a file; name an empty folder, or one to be made")
        make_root(root)
        pile = cls(root)
        with pile.pending() as file:
            file.write(canonical_json({"what": "skycairn pile", "format": FORMAT}) + b"\n")
            file.publish(root / "pile.json")
        pile.sweep()
        return pile

    @classmethod
    def open(cls, root: str | Path, check: Check = "first") -> Self:
        """Open a pile. `NotAPile` where the folder is none, or was written by a newer version."""
        root = Path(root)
        try:
            head = parse(read_small(root / "pile.json"))
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
            if not (self.root / "tmp").is_symlink():
                return sweep(self.root / "tmp")
        return 0

    def pending(self) -> PendingFile:
        """A file to be written aside, then put into place."""
        make_scratch(self.root / "tmp")
        return PendingFile(self.root / "tmp")

    def publish_sealed(self, body: dict[str, Any], path: Path) -> None:
        """Put a sealed JSON file into place, over one that may be there."""
        with self.pending() as file:
            file.write(sealed(body))
            file.publish(path)

    def unseal(self, path: Path, what_to_do: str) -> dict[str, Any]:
        """The body of a sealed JSON file of the pile. FileNotFoundError if absent; `Damaged` says `what_to_do`."""
        plain_size(path)
        return unseal(path, what_to_do)

    # -- parts

    def path(self, part: Part) -> Path:
        """Where the part lies."""
        return self.root / "parts" / part.sha256[:2] / (part.sha256 + part.suffix)

    def has(self, part: Part) -> bool:
        """Whether the part is there, by its size; `verify` reads it."""
        try:
            return plain_size(self.path(part)) == part.n_bytes
        except (FileNotFoundError, Damaged):
            return False

    def _publish(self, file: PendingFile, part: Part) -> Part:
        final = self.path(part)
        make_folder(final.parents[1])
        make_folder(final.parent)
        if self.has(part) and file_sha256(final) == part.sha256:
            # as it was made by an earlier run, which may have died before it flushed the folder
            sync_folder(final.parent)
        else:
            file.publish(final)
        return part

    @contextmanager
    def table_writer(self, schema: pa.Schema, row_group_rows: int = parquet.ROW_GROUP_ROWS) -> Iterator[TableFile]:
        """Write a table in pieces: `write(table)` inside the `with`, `part` after it. Nothing is kept if it raises."""
        with self.pending() as pending:
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
            _there(path)
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
        if (n_bytes := _there(path)) != part.n_bytes:
            raise Damaged(f"{path} has {n_bytes} bytes, not {part.n_bytes}; remove it and build it again")

    def put_bytes(self, data: bytes, suffix: str) -> Part:
        """Write a small file as one part."""
        with self.pending() as pending:
            pending.write(data)
            return self._publish(pending, Part(pending.sha256, suffix, len(data), 0, pending.sha256))

    def put_file(self, source: Path, n_rows: int = 0, content_id: str | None = None) -> Part:
        """Copy a finished file in as one part. A table in another format (HDF5) brings its rows and content id."""
        Part("0" * 64, source.suffix, 0, n_rows, content_id or "0" * 64)  # refuses before it copies
        with self.pending() as pending:
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
        """The files of a flat folder (a saved codec) as parts, by name. ValueError for names that are not plain."""
        if nested := [p.name for p in folder.iterdir() if not p.is_file()]:
            raise ValueError(f"{folder} holds {', '.join(sorted(nested))}, not a plain file; wanted a flat folder")
        paths = {_plain(path.name): path for path in sorted(folder.iterdir())}
        return {name: self.put_file(path) for name, path in paths.items()}

    def restore_folder(self, parts: Mapping[str, Part], folder: Path) -> None:
        """Write the parts of `put_folder` out again, each verified."""
        names = [_plain(name) for name in parts]
        for absent in reversed([f for f in (folder, *folder.parents) if not f.exists()]):
            disk.mkdir(absent)
        for name in names:
            copy_out(self.read_bytes(parts[name]), folder / name)

    # -- receipts

    def receipt_path(self, key: str) -> Path:
        """Where the receipt of the task lies."""
        check_sha256(key, "key of a receipt")
        return self.root / "receipts" / key[:2] / f"{key}.json"

    def put_receipt(self, receipt: Receipt) -> None:
        """Store the receipt under its key, over one that may be there. `Missing` if one of its parts is not there."""
        for name, part in receipt.outputs.items():
            if not self.has(part):
                raise Missing(
                    f"receipt {receipt.step} {receipt.label}: output {name!r}, {self.path(part)}, is not there"
                )
        path = self.receipt_path(receipt.key)
        make_folder(path.parents[1])
        make_folder(path.parent)
        self.publish_sealed(receipt.to_json(), path)

    def receipt(self, key: str) -> Receipt | None:
        """The receipt of the task, or None where the task is still to do: none is there, or one of its parts is not.

        A damaged receipt is an error, not a task to do: damage that heals unseen is damage that nobody looks into.
        """
        path = self.receipt_path(key)
        try:
            receipt = self.read_receipt(path)
        except FileNotFoundError:
            return None
        return receipt if all(self.has(part) for part in receipt.outputs.values()) else None

    def drop_receipt(self, key: str) -> None:
        """Forget the receipt of the task, where there is one: the task is to do again."""
        remove(self.receipt_path(key))

    def read_receipt(self, path: Path) -> Receipt:
        """The receipt in a file of the pile, whether or not its parts are there."""
        what_to_do = "remove it, and its task runs again"
        body = self.unseal(path, what_to_do)
        try:
            receipt = Receipt.from_json(body)
        except (ValueError, TypeError) as error:
            raise Damaged(f"{path}: {error}; {what_to_do}") from error
        if receipt.key != path.stem:
            raise Damaged(f"{path} is the receipt of {receipt.key}; {what_to_do}")
        return receipt

    def receipts(self) -> Iterator[Receipt]:
        """All receipts, those whose parts are gone too."""
        for path in self.receipt_files():
            yield self.read_receipt(path)

    def receipt_files(self) -> list[Path]:
        """The files of all receipts, in the order of their keys."""
        return sorted((self.root / "receipts").glob("??/*.json"))

    # -- snapshots

    def snapshots(self) -> list[int]:
        """Numbers of the snapshots, ascending."""
        # a folder that is not there yet has none
        found = (_SNAPSHOT.fullmatch(p.name) for p in (self.root / "snapshots").glob("*.json"))
        return sorted(int(f[1]) for f in found if f)

    def snapshot(self, number: int | None = None) -> Snapshot:
        """The snapshot of this number, or the newest. `Missing` where there is none, `Damaged` where it is broken."""
        if number is None:
            numbers = self.snapshots()
            if not numbers:
                raise Missing(f"{self.root} holds no snapshot yet; build it first")
            number = numbers[-1]
        try:
            return self.read_snapshot(self.snapshot_path(number), number)
        except FileNotFoundError as error:
            numbers = self.snapshots()
            known = f"there are {numbers[0]} to {numbers[-1]}" if numbers else "there is none"
            raise Missing(f"{self.root} has no snapshot {number}; {known}") from error

    def read_snapshot(self, path: Path, number: int) -> Snapshot:
        """The snapshot of this number in a file. FileNotFoundError if absent, `Damaged` where it is broken."""
        what_to_do = "restore it from a copy of the pile, or remove it to fall back to the one before"
        body = self.unseal(path, what_to_do)
        try:
            snapshot = Snapshot.from_json(body)
            for name, kind in _SNAPSHOT_FIELDS.items():
                if not isinstance(body[name], kind) or isinstance(body[name], bool):
                    raise ValueError(f"its {name} is {body[name]!r}")
        except (ValueError, TypeError, RecursionError) as error:
            raise Damaged(f"{path}: {error}; {what_to_do}") from error
        if snapshot.number != number:
            raise Damaged(f"{path} is snapshot {snapshot.number}; {what_to_do}")
        return snapshot

    def snapshot_path(self, number: int) -> Path:
        """Where the snapshot lies."""
        return self.root / "snapshots" / f"{number:020d}.json"

    def head(self) -> Snapshot | None:
        """The newest snapshot, or None before the first."""
        numbers = self.snapshots()  # looked at once: another process may make the first one at any moment
        return self.snapshot(numbers[-1]) if numbers else None

    def commit(
        self, change: Draft | Callable[[Snapshot | None], Draft], parent: int | Literal["any"] | None = "any"
    ) -> Snapshot:
        """Make the draft the newest snapshot; the head itself, where it already says the same and is whole.

        A function is given the head and makes the draft of it; it is called again when another process committed
        meanwhile, so that neither's work is lost. A plain draft replaces the tables of whatever is the head.
        `Conflict` where the head is another than `parent`, if one is named; None is that of a pile with no snapshot.
        """
        while True:
            head = self.head()
            number = None if head is None else head.number
            if parent not in ("any", number):
                raise Conflict(
                    f"{self.root}: the change was made for snapshot {parent}, the head is {number}; make it again"
                )
            draft = change(head) if callable(change) else change
            snapshot = Snapshot.of(draft, 1 if number is None else number + 1, number)
            for part in snapshot.parts():
                if not self.has(part):
                    raise Missing(f"{self.path(part)} is not there, or is cut short; a snapshot cannot name it")
            if head is not None and snapshot.says_the_same(head) and all(self.has(part) for part in head.parts()):
                # who made it may have died before it flushed the folder
                sync_folder(self.root / "snapshots")
                return head
            data = sealed(snapshot.to_json())
            if len(data) > MOST_BYTES:
                raise ValueError(f"the snapshot has {len(data)} bytes, more than {MOST_BYTES}; put tables into parts")
            make_folder(self.root / "snapshots")
            with self.pending() as file:
                file.write(data)
                try:
                    file.publish_new(self.snapshot_path(snapshot.number))
                except FileExistsError:
                    if not self.snapshot_path(snapshot.number).exists():
                        raise
                    continue
            return snapshot

    # -- readers, names and history

    def pin(self, number: int | None = None) -> Pinned:
        """The snapshot of this number, or the newest, held until `close`: `collect` leaves it, and all its parts.

        `Missing` where it is not there. Where this process may only read the pile no lease can be written: `.lease` is
        None, and who may write there can collect the snapshot.
        """
        return leases.pin(self, number)

    def leases(self) -> list[Lease]:
        """Who reads which snapshot, and whether each is alive."""
        return leases.leases(self)

    def tag(self, name: str, number: int) -> None:
        """Name a snapshot, which then stays; a name that there is moves. `Missing` where the snapshot is not there."""
        tags.tag(self, name, number)

    def untag(self, name: str) -> None:
        """Take a name away. `Missing` where there is none."""
        tags.untag(self, name)

    def tags(self) -> dict[str, int]:
        """Numbers of the snapshots that have names, by name. `Damaged` where a tag's file is."""
        return tags.tags(self)

    def resolve(self, text: str) -> int:
        """The number that a text means: a tag, a number, `head`, or `head~2`, the second before it of those there.

        `Missing` where there is no such snapshot, `Damaged` where it is no longer the one that was tagged.
        """
        return tags.resolve(self, text)

    def history(self) -> list[Version]:
        """All snapshots, newest first; a damaged one is listed as such."""
        return tags.history(self)

    def verify(self, deep: bool = True) -> Verification:
        """Look whether all that the snapshots name is there; `deep` reads every byte of it. See `verify.verify`."""
        return verify(self, deep)


_SNAPSHOT_FIELDS: dict[str, Any] = {"number": int, "parent": int | None, "recipe": dict, "stats": dict}


def _there(path: Path) -> int:
    """Bytes of the part's file; `Missing` where there is none."""
    try:
        return plain_size(path)
    except FileNotFoundError as error:
        raise Missing(f"{path}: the part is not there; build it again, or restore it from a copy") from error


def _plain(name: str) -> str:
    if Path(name).name != name or name in ("", ".", "..") or "\0" in name or "\\" in name or len(name.encode()) > 255:
        raise ValueError(f"{name!r} is not a plain file name")
    return name


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
