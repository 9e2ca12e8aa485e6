"""What a pile no longer needs: which snapshots, receipts and parts may go, and their removal.

snapshots/00000000000000000042.dropped      a snapshot that is going; who finds one finishes what was begun

A snapshot is set aside first. Then leases and tags are looked at again: a reader writes its lease before it looks
whether the snapshot is there, so that either it finds none or we find its lease, and put the snapshot back. Only when
that is on disk its receipts go, then its parts, then what was set aside: no snapshot ever misses a part.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from skycairn.pile import disk, leases
from skycairn.pile.disk import sync_folder
from skycairn.pile.files import Damaged, Missing, PileError, left_behind, now_on_disk, plain_size, writer_of
from skycairn.pile.lock import builder_lock
from skycairn.pile.processes import machine
from skycairn.pile.receipt import Part
from skycairn.pile.snapshot import Snapshot
from skycairn.pile.verify import is_part_file

if TYPE_CHECKING:
    from skycairn.pile.store import Pile

YOUNG_S = 24 * 3600.0
"""A part that nothing names stays while it is younger: work that goes on may be about to name it."""
TASKS = "tasks"
"""The table beside a snapshot's own whose column `key` names the receipts behind it."""
_DROPPED = re.compile(r"([0-9]{20})\.dropped")


@dataclass(frozen=True)
class Collection:
    """What went, or would go; and what stays, and why."""

    deleted: bool
    "whether it was removed; else it only would be"
    snapshots: tuple[int, ...]
    receipts: tuple[str, ...]
    "keys"
    parts: tuple[str, ...]
    "names of the files"
    pending: tuple[str, ...]
    "names of the half-written files of dead writers"
    leases: tuple[str, ...]
    "names of the files of dead readers"
    n_bytes: Mapping[str, int]
    "of each of these five"
    snapshots_kept: Mapping[int, tuple[str, ...]]
    "with the reasons"
    receipts_kept: Mapping[str, int]
    "how many, by the reason"
    parts_kept: Mapping[str, int]
    "how many, by the reason"


def collect(pile: Pile, keep: int = 3, delete: bool = False, uncommitted: bool = False) -> Collection:
    """Find, and with `delete` remove, what neither the newest `keep` snapshots nor a tag nor a living reader needs.

    A receipt goes when a dropped snapshot names it in its table `tasks` and no kept one does; one that no snapshot
    names, of work that was cut off, only with `uncommitted`; none where a kept snapshot has no such table. Parts go
    that no kept snapshot and no kept receipt names; orphans, which nothing ever named, when they are a day old by the
    disk's clock. `Locked` while a builder is at work; `Damaged` where what is needed to know all this cannot be read.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; wanted at least 1, or there is no head")
    with builder_lock(pile.root, "collect"):
        # all of it, before anything is touched: what cannot be read is told while all is as it was
        found = _find(pile, uncommitted, {n: why for n, why in _reasons(pile, keep).items() if why})
        if not delete:
            return _told(found, deleted=False)
        if found.snapshots:
            _set_aside(pile, [s.number for s in found.going if pile.snapshot_path(s.number).exists()])
            came = ("it was among the newest, or claimed, as this began",)
            found = _find(pile, uncommitted, {n: why or came for n, why in _reasons(pile, keep).items()})
        told = _told(found, deleted=True)
        _remove(found.receipts)
        for folder in sorted({path.parent for path in found.receipts}):
            sync_folder(folder)
        _remove(found.parts)
        _remove(_all_set_aside(pile).values())
        _remove([*found.pending, *found.leases])
        return told


@dataclass(frozen=True)
class _Found:
    """Files that may go, and why others stay."""

    going: list[Snapshot]
    snapshots: list[Path]
    receipts: list[Path]
    parts: list[Path]
    pending: list[Path]
    leases: list[Path]
    snapshots_kept: dict[int, tuple[str, ...]]
    receipts_kept: Mapping[str, int]
    parts_kept: Mapping[str, int]


def _find(pile: Pile, uncommitted: bool, kept: dict[int, tuple[str, ...]]) -> _Found:
    """What may go when these snapshots are kept."""
    staying = [pile.snapshot(n) for n in kept]
    going = [pile.snapshot(n) for n in pile.snapshots() if n not in kept] + _read_set_aside(pile)
    receipts, receipts_kept = _receipts(pile, staying, going, uncommitted)
    parts, parts_kept = _parts(pile, staying, going, receipts)
    files = {p for s in going for p in (pile.snapshot_path(s.number), _dropped(pile, s.number))}
    return _Found(
        going=going,
        snapshots=sorted(p for p in files | set(_all_set_aside(pile).values()) if p.exists()),
        receipts=receipts,
        parts=parts,
        pending=_pending(pile),
        leases=[lease.path for lease in pile.leases() if not lease.alive],
        snapshots_kept=kept,
        receipts_kept=receipts_kept,
        parts_kept=parts_kept,
    )


def _told(found: _Found, deleted: bool) -> Collection:
    kinds = ("snapshots", "receipts", "parts", "pending", "leases")
    return Collection(
        deleted=deleted,
        snapshots=tuple(sorted({int(p.stem) for p in found.snapshots})),
        receipts=tuple(p.stem for p in found.receipts),
        parts=tuple(p.name for p in found.parts),
        pending=tuple(p.name for p in found.pending),
        leases=tuple(p.name for p in found.leases),
        n_bytes={kind: sum(map(_size, getattr(found, kind))) for kind in kinds},
        snapshots_kept=found.snapshots_kept,
        receipts_kept=found.receipts_kept,
        parts_kept=found.parts_kept,
    )


# -- snapshots


def _reasons(pile: Pile, keep: int) -> dict[int, tuple[str, ...]]:
    """Of each snapshot, why it stays; nothing where it may go."""
    numbers = pile.snapshots()
    claims = _claims(pile, numbers)
    newest = {n: "one of the newest" for n in numbers[-keep:]}
    return {n: (*([newest[n]] if n in newest else []), *claims.get(n, ())) for n in numbers}


def _claims(pile: Pile, numbers: Iterable[int]) -> dict[int, list[str]]:
    """Tags and living leases on snapshots; a living lease that cannot be read is taken to be on each of the numbers."""
    claims: dict[int, list[str]] = {}
    for name, number in pile.tags().items():
        claims.setdefault(number, []).append(f"tag {name}")
    for lease in pile.leases():
        if lease.alive:
            for number in numbers if lease.snapshot is None else [lease.snapshot]:
                claims.setdefault(number, []).append(f"process {lease.pid} on {lease.host} reads it")
    return claims


def _dropped(pile: Pile, number: int) -> Path:
    return pile.snapshot_path(number).with_suffix(".dropped")


def _all_set_aside(pile: Pile) -> dict[int, Path]:
    found = ((_DROPPED.fullmatch(p.name), p) for p in (pile.root / "snapshots").glob("*.dropped"))
    return {int(number[1]): path for number, path in found if number}


def _set_aside(pile: Pile, numbers: Iterable[int]) -> None:
    """Set the snapshots aside, and put back those that were claimed meanwhile, of an earlier run that was cut off, too.

    One whose parts have begun to go stays aside: it has been without a claim since it was set there.
    """
    for number in numbers:
        disk.replace(pile.snapshot_path(number), _dropped(pile, number))
    aside = _all_set_aside(pile)
    claims = _claims(pile, aside)
    for snapshot in _read_set_aside(pile):
        number = snapshot.number
        there = pile.snapshot_path(number).exists()
        if number in claims and not there and all(pile.has(part) for part in snapshot.parts()):
            disk.replace(_dropped(pile, number), pile.snapshot_path(number))
    if aside:
        sync_folder(pile.root / "snapshots")


def _read_set_aside(pile: Pile) -> list[Snapshot]:
    found = []
    for number, path in _all_set_aside(pile).items():
        # what cannot be read any more names nothing
        with suppress(PileError):
            found.append(pile.read_snapshot(path, number))
    return found


# -- receipts and parts


def _receipts(
    pile: Pile, staying: list[Snapshot], going: list[Snapshot], uncommitted: bool
) -> tuple[list[Path], Counter[str]]:
    """Files of the receipts that go, and how many stay by the reason."""
    paths = pile.receipt_files()
    without = [s.number for s in staying if TASKS not in s.aside]
    if without:
        return [], Counter({f"snapshot {without[0]} does not say which are behind it": len(paths)})
    needed = {key for snapshot in staying for key in _keys(pile, snapshot)}
    unneeded: set[str] = set()
    for snapshot in going:
        # its table may be gone, if an earlier run was cut off after it had removed these receipts
        with suppress(Missing, Damaged):
            unneeded |= _keys(pile, snapshot)
    gone, stay = [], Counter[str]()
    for path in paths:
        if path.stem in needed:
            stay["behind a kept snapshot"] += 1
        elif path.stem in unneeded or uncommitted:
            gone.append(path)
        else:
            stay["of work that no snapshot holds yet"] += 1
    return gone, stay


def _keys(pile: Pile, snapshot: Snapshot) -> set[str]:
    """Keys of the receipts behind the snapshot."""
    tables = [pile.read_table(entry.part, ["key"]) for entry in snapshot.aside.get(TASKS, ())]
    return {key for table in tables for key in table.column("key").to_pylist()}


def _parts(
    pile: Pile, staying: list[Snapshot], going: list[Snapshot], receipts: list[Path]
) -> tuple[list[Path], Counter[str]]:
    """Files of the parts that go, and how many stay by the reason. `receipts` are those that go."""
    lost = set(receipts)
    needed = _names(pile, (part for snapshot in staying for part in snapshot.parts()))
    for path in pile.receipt_files():
        if path not in lost:
            needed |= _names(pile, pile.read_receipt(path).outputs.values())
    unneeded = _names(pile, (part for snapshot in going for part in snapshot.parts()))
    for path in receipts:
        with suppress(PileError):
            unneeded |= _names(pile, pile.read_receipt(path).outputs.values())
    now = now_on_disk(pile.root / "tmp")
    gone, stay = [], Counter[str]()
    for path in sorted((pile.root / "parts").glob("??/*")):
        if path.is_symlink() or not path.is_file() or not is_part_file(path):
            continue
        if path.name in needed:
            stay["named by what is kept"] += 1
        elif path.name in unneeded or now - path.stat().st_mtime >= YOUNG_S:
            gone.append(path)
        else:
            stay["named by nothing, and young"] += 1
    return gone, stay


def _names(pile: Pile, parts: Iterable[Part]) -> set[str]:
    return {pile.path(part).name for part in parts}


def _pending(pile: Pile) -> list[Path]:
    """Half-written files of dead writers: of this machine, or untouched for a day."""
    folder = pile.root / "tmp"
    dead = set(left_behind(folder))
    old = now_on_disk(folder) - leases.STALE_S
    return [p for p in sorted(folder.iterdir()) if p in dead or (_is_foreign(p) and p.stat().st_mtime <= old)]


def _is_foreign(path: Path) -> bool:
    writer = writer_of(path.name)
    return writer is not None and writer[0] != machine()


def _size(path: Path) -> int:
    with suppress(FileNotFoundError, Damaged):
        return plain_size(path)
    return 0


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(FileNotFoundError):
            disk.unlink(path)
