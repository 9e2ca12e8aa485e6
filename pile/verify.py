"""Whether a pile still holds what it was written with, and where its damaged files go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from skycairn.pile import disk, parquet, tags
from skycairn.pile.content import ContentHasher
from skycairn.pile.disk import sync_folder
from skycairn.pile.files import Damaged, Missing, PileError, file_sha256, make_folder, plain_size
from skycairn.pile.receipt import Part

if TYPE_CHECKING:
    from skycairn.pile.store import Pile

Kind = Literal["part", "receipt", "snapshot", "tag"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    where: str
    "file, relative to the pile"
    what: str
    kind: Kind
    missing: bool = False
    "the file is not there; else it is, and is damaged"
    part: Part | None = None
    "of a part"
    named_by: tuple[str, ...] = ()
    "of a part: the files of the snapshots and receipts that name it, relative to the pile"


@dataclass(frozen=True)
class Verification:
    """What was found."""

    problems: tuple[Problem, ...]
    n_parts: int
    "that the head names"
    n_bytes: int
    "of them"
    n_orphans: int
    "parts that no snapshot and no receipt names: harmless, left by work that was cut off"
    n_strange: int
    "other files among the parts"
    n_checked: int
    "parts that were looked at: those of all snapshots, and of receipts where they are there"
    n_checked_bytes: int
    "of them"

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


_Named = dict[str, dict[Part, list[str]]]
"""By the name of a part's file: what is told of it, and which snapshots and receipts tell it."""


def verify(pile: Pile, deep: bool = True) -> Verification:
    """Look at the parts of all snapshots: there, of their size; `deep` also hashes every byte and reads every table.

    Snapshots, receipts and tags are all read, since they carry their own digests. The parts of receipts are looked at,
    too, since the next build would take them as they are; one that is not there only means a task to do.
    """
    problems: list[Problem] = []
    named: _Named = {}
    needed: set[str] = set()
    head: dict[str, Part] = {}

    @contextmanager
    def noting(kind: Kind, path: Path) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            # `collect` has removed it since it was listed
            pass
        except PileError as error:
            problems.append(Problem(_where(pile, path), str(error), kind, isinstance(error, Missing)))

    def tell(parts: Iterable[Part], path: Path) -> dict[str, Part]:
        found = {pile.path(part).name: part for part in parts}
        for name, part in found.items():
            named.setdefault(name, {}).setdefault(part, []).append(_where(pile, path))
        return found

    damaged: set[int] = set()
    for number in pile.snapshots():
        path = pile.snapshot_path(number)
        damaged.add(number)
        with noting("snapshot", path):
            head = tell(pile.read_snapshot(path, number).parts(), path)
            damaged.remove(number)
            needed.update(head)
    for path in pile.receipt_files():
        with noting("receipt", path):
            tell(pile.read_receipt(path).outputs.values(), path)
    for path in tags.tag_files(pile):
        with noting("tag", path):
            if tags.read_tag(pile, path)[0] not in damaged:
                tags.check_tag(pile, path)
    checked = [named[n] for n in sorted(named) if n in needed or pile.path(next(iter(named[n]))).exists()]
    for tellings in checked:
        problems += _part_problems(pile, tellings, deep)
    orphans, strange = _others(pile, named)
    return Verification(
        problems=tuple(problems),
        n_parts=len(head),
        n_bytes=sum(part.n_bytes for part in head.values()),
        n_orphans=orphans,
        n_strange=strange,
        n_checked=len(checked),
        n_checked_bytes=sum(next(iter(tellings)).n_bytes for tellings in checked),
    )


def _part_problems(pile: Pile, tellings: dict[Part, list[str]], deep: bool) -> Iterator[Problem]:
    """What is wrong with a part; where the file is right, what a snapshot or receipt tells of it may be wrong."""
    part = next(iter(tellings))
    where = _where(pile, pile.path(part))
    namers = tuple(w for by in tellings.values() for w in by)
    try:
        found = _look(pile, part, deep)
    except PileError as error:
        yield Problem(where, str(error), "part", isinstance(error, Missing), part, namers)
        return
    for told, by in tellings.items():
        if wrong := _lies(told, found):
            for namer in by:
                kind: Kind = "snapshot" if namer.startswith("snapshots/") else "receipt"
                yield Problem(namer, f"it says of {where} {wrong}; build it again", kind)


@dataclass(frozen=True)
class _Found:
    n_bytes: int
    n_rows: int | None = None
    "of a table that was read"
    content_id: str = ""


def _look(pile: Pile, part: Part, deep: bool) -> _Found:
    """What the part's file holds; `Missing`, or `Damaged` where it is not what its name says."""
    path = pile.path(part)
    try:
        n_bytes = plain_size(path)
    except FileNotFoundError as error:
        raise Missing("the part is not there; build it again, or restore it from a copy") from error
    if not deep:
        if n_bytes != part.n_bytes:
            raise Damaged(f"it has {n_bytes} bytes, not {part.n_bytes}; remove it and build it again")
        return _Found(n_bytes)
    if (digest := file_sha256(path)) != part.sha256:
        size = f"{n_bytes} bytes, not {part.n_bytes}, and " if n_bytes != part.n_bytes else ""
        raise Damaged(f"it has {size}the SHA-256 {digest}, not its name; remove it and build it again")
    if part.suffix != ".parquet":
        return _Found(n_bytes)
    with parquet.open_file(path) as file:
        hasher = ContentHasher(file.schema_arrow)
        with parquet.damage(path):
            for i in range(file.metadata.num_row_groups):
                hasher.update(file.read_row_group(i))
    return _Found(n_bytes, hasher.n_rows, hasher.content_id)


def _lies(told: Part, found: _Found) -> str:
    """In what the telling differs from the file; empty where in nothing."""
    if told.n_bytes != found.n_bytes:
        return f"{told.n_bytes} bytes, it has {found.n_bytes}"
    if found.n_rows is not None and told.n_rows != found.n_rows:
        return f"{told.n_rows} rows, it has {found.n_rows}"
    if found.n_rows is not None and told.content_id != found.content_id:
        return f"the content id {told.content_id}, its rows have {found.content_id}"
    return ""


def quarantine(pile: Pile, problems: Iterable[Problem]) -> list[Part | Path]:
    """Move the damaged files of the problems to `quarantine/`, so that the next build makes them anew.

    Gives the parts, and the paths in the pile of the other files, that were moved. What is missing is not there to be
    moved: the next build makes it anew as it is. Nothing is removed; a name that is taken there gets a number.
    """
    moved: list[Part | Path] = []
    folder = pile.root / "quarantine"
    touched: set[Path] = set()
    for problem in problems:
        path = pile.root / problem.where
        if problem.missing or not (path.exists() or path.is_symlink()):
            continue
        make_folder(folder)
        disk.replace(path, _free(folder, problem.where.replace("/", "-")))
        touched.add(path.parent)
        moved.append(problem.part or Path(problem.where))
    for changed in (folder, *sorted(touched)) if touched else ():
        sync_folder(changed)
    return moved


def _free(folder: Path, name: str) -> Path:
    path, n = folder / name, 1
    while path.exists() or path.is_symlink():
        n += 1
        path = folder / f"{name}.{n}"
    return path


def _where(pile: Pile, path: Path) -> str:
    return path.relative_to(pile.root).as_posix()


def _others(pile: Pile, known: Iterable[str]) -> tuple[int, int]:
    """How many parts nothing names, and how many files are no parts."""
    known, n_orphans, n_strange = set(known), 0, 0
    for path in (pile.root / "parts").rglob("*"):
        if (path.is_dir() and not path.is_symlink()) or path.name in known:
            continue
        if is_part_file(path):
            n_orphans += 1
        else:
            n_strange += 1
    return n_orphans, n_strange


def is_part_file(path: Path) -> bool:
    """Whether the file has a part's name, in the folder of that name."""
    stem = path.name.partition(".")[0]
    return len(stem) == 64 and path.parent.name == stem[:2]
