"""Whether a pile still holds what it was written with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from skycairn.pile import parquet
from skycairn.pile.content import ContentHasher
from skycairn.pile.files import Damaged, Missing, PileError, file_sha256
from skycairn.pile.receipt import Part

if TYPE_CHECKING:
    from skycairn.pile.store import Pile


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    where: str
    "file, relative to the pile"
    what: str


@dataclass(frozen=True)
class Verification:
    """What was found."""

    problems: tuple[Problem, ...]
    n_parts: int
    "that the head names"
    n_bytes: int
    n_orphans: int
    "parts that no snapshot and no receipt names: harmless, left by work that was cut off"
    n_strange: int
    "other files among the parts"

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(pile: Pile, deep: bool = True) -> Verification:
    """Look at the head's parts: there, of their size; `deep` also hashes every byte and reads every table.

    Snapshots and receipts are all read, since they carry their own digests.
    """
    problems: list[Problem] = []
    named: set[str] = set()
    head: dict[str, Part] = {}

    def note(error: PileError, where: str) -> None:
        problems.append(Problem(where, str(error)))

    for number in pile.snapshots():
        try:
            snapshot = pile.snapshot(number)
        except PileError as error:
            note(error, f"snapshots/{number:020d}.json")
            continue
        head = {pile.path(part).name: part for part in snapshot.parts()}
        named.update(head)
    for path in sorted((pile.root / "receipts").glob("??/*.json")):
        try:
            named.update(pile.path(part).name for part in pile.read_receipt(path).outputs.values())
        except PileError as error:
            note(error, str(path.relative_to(pile.root)))
    for part in head.values():
        try:
            _verify_part(pile, part, deep)
        except PileError as error:
            note(error, str(pile.path(part).relative_to(pile.root)))
    orphans, strange = _others(pile, named)
    return Verification(
        problems=tuple(problems),
        n_parts=len(head),
        n_bytes=sum(part.n_bytes for part in head.values()),
        n_orphans=orphans,
        n_strange=strange,
    )


def _verify_part(pile: Pile, part: Part, deep: bool) -> None:
    path = pile.path(part)
    if not path.exists():
        raise Missing("the part is not there; build it again, or restore it from a copy")
    if (n_bytes := path.stat().st_size) != part.n_bytes:
        raise Damaged(f"it has {n_bytes} bytes, not {part.n_bytes}; remove it and build it again")
    if not deep:
        return
    if (digest := file_sha256(path)) != part.sha256:
        raise Damaged(f"it has the SHA-256 {digest}, not its name; remove it and build it again")
    if part.suffix == ".parquet":
        with parquet.open_file(path) as file:
            hasher = ContentHasher(file.schema_arrow)
            with parquet.damage(path):
                for i in range(file.metadata.num_row_groups):
                    hasher.update(file.read_row_group(i))
        if hasher.n_rows != part.n_rows:
            raise Damaged(f"it has {hasher.n_rows} rows, the snapshot says {part.n_rows}; build the snapshot again")
        if hasher.content_id != part.content_id:
            raise Damaged(
                f"its rows have the content id {hasher.content_id}, the snapshot says {part.content_id}; build the "
                f"snapshot again"
            )


def _others(pile: Pile, named: Iterable[str]) -> tuple[int, int]:
    """How many parts nothing names, and how many files are no parts."""
    known, n_orphans, n_strange = set(named), 0, 0
    for path in (pile.root / "parts").rglob("*"):
        if path.is_dir() or path.name in known:
            continue
        stem = path.name.partition(".")[0]
        if len(stem) == 64 and path.parent.name == stem[:2]:
            n_orphans += 1
        else:
            n_strange += 1
    return n_orphans, n_strange
