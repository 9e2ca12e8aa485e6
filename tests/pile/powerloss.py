"""A disk that may lose power: a log of all calls that change it, and what may lie on it after any part of the log.

What is promised of a disk is taken to be no more than this. The bytes of a file are there when it was flushed; before
that none, half or all of them. An entry of a folder, made or taken away, is there when the folder was flushed; before
that each may be there or not, whatever came before or after it. Another name in another folder is two such entries;
another name in the same folder is one change of it.
"""

import hashlib
import itertools
import os
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skycairn.pile import disk

FEW = 6
"""Up to so many entries that are not flushed all subsets are tried, else none, all, each alone and all but each."""
FLUSHES = ("fsync", "sync_folder")
UNSEEN = ("write", "fchmod", "close", "touch", "truncate")
"""Calls that change only what is not flushed, in a file of which none, half or all is tried anyway."""

State = dict[str, bytes | None]
"""What lies on a disk: bytes by path; None for a folder."""


@dataclass(frozen=True)
class Event:
    call: str
    "of disk.py, or `ack`"
    path: str
    target: str = ""
    data: bytes = b""
    site: str = ""
    "the functions that made the call, innermost first"
    told: tuple[Any, ...] = ()
    "what the writer was promised"


class Recorder:
    """Notes the calls below `base`."""

    def __init__(self, base: Path) -> None:
        self.base, self.log = base, list[Event]()

    def __call__(self, op: disk.Op) -> None:
        if not op.path.is_relative_to(self.base):
            return
        target = "" if op.target is None else op.target.relative_to(self.base).as_posix()
        data = b"" if op.data is None else bytes(op.data)
        self.log.append(Event(op.call, op.path.relative_to(self.base).as_posix(), target, data, _site()))

    def ack(self, *told: Any) -> None:
        self.log.append(Event("ack", "", told=told))


def _site() -> str:
    names, frame = [], sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.parent.name == "pile" and path.stem != "disk" and path.parents[1].name != "tests":
            names.append(f"{path.stem}.{frame.f_code.co_name}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(names[:3])


@dataclass
class File:
    data: bytes = b""
    flushed: bytes = b""
    dirty: bool = False


@dataclass
class Folder:
    entries: dict[str, int] = field(default_factory=dict)
    "those that are flushed"
    changes: list[dict[str, int | None]] = field(default_factory=list)
    "those that are not, in their order; None for one that is taken away"

    def now(self, kept: Any = None) -> dict[str, int]:
        made = dict(self.entries)
        for i, change in enumerate(self.changes):
            if kept is None or i in kept:
                made.update({name: node for name, node in change.items() if node is not None})
                made = {name: node for name, node in made.items() if change.get(name, node) is not None}
        return made


class Disk:
    """What was flushed, and what was not."""

    def __init__(self, start: State) -> None:
        self.nodes: list[File | Folder] = [Folder()]
        for path in sorted(start):
            data = start[path]
            node: File | Folder = Folder() if data is None else File(data, data)
            self.nodes.append(node)
            folder, _, name = path.rpartition("/")
            self._folder(folder).entries[name] = len(self.nodes) - 1

    def copy(self) -> "Disk":
        return deepcopy(self)

    def _node(self, path: str) -> int:
        node = 0
        for name in path.split("/") if path not in ("", ".") else ():
            folder = self.nodes[node]
            assert isinstance(folder, Folder)
            node = folder.now()[name]
        return node

    def _folder(self, path: str) -> Folder:
        folder = self.nodes[self._node(path)]
        assert isinstance(folder, Folder)
        return folder

    def _change(self, path: str, node: int | None) -> None:
        folder, _, name = path.rpartition("/")
        self._folder(folder).changes.append({name: node})

    def has(self, path: str) -> bool:
        try:
            self._node(path)
        except KeyError:
            return False
        return True

    def apply(self, event: Event) -> None:
        call, path = event.call, event.path
        if call in ("ack", "fchmod", "close", "touch"):
            return
        if call in ("create", "mkdir", "open"):
            # mkdir and create of what is there failed, and changed nothing
            if not self.has(path):
                self.nodes.append(Folder() if call == "mkdir" else File(dirty=True))
                self._change(path, len(self.nodes) - 1)
        elif call == "unlink":
            if self.has(path):
                self._change(path, None)
        elif call == "replace":
            self._change(event.target, self._node(path))
            self._change(path, None)
            if Path(path).parent == Path(event.target).parent:
                folder = self._folder(path.rpartition("/")[0])
                gone, made = folder.changes.pop(), folder.changes.pop()
                folder.changes.append(made | gone)
        elif call == "link":
            if not self.has(event.target):
                self._change(event.target, self._node(path))
        elif call == "sync_folder":
            folder = self._folder(path)
            folder.entries, folder.changes = folder.now(), []
        else:
            file = self.nodes[self._node(path)]
            assert isinstance(file, File)
            if call == "fsync":
                file.flushed, file.dirty = file.data, False
            elif call == "truncate":
                file.data, file.dirty = b"", True
            else:
                assert call == "write", call
                file.data, file.dirty = file.data + event.data, True

    def least(self) -> State:
        """What lies on the disk at least: all that is not flushed is lost."""
        return self._state({n: () for n in range(len(self.nodes))}, 0)

    def whole(self) -> State:
        """What processes see as long as the power is on."""
        return self._state({n: None for n in range(len(self.nodes))}, 2)

    def states(self) -> Iterator[State]:
        """All that may lie on the disk if the power goes now."""
        for kept in _subsets(list(self._pending())):
            by_folder: dict[int, Any] = {n: set() for n in range(len(self.nodes))}
            for n, changes in kept:
                by_folder[n].update(changes)
            for how_much in range(3):
                yield self._state(by_folder, how_much)

    def _pending(self) -> Iterator[tuple[int, range]]:
        """Changes that are not flushed, by folder. All of `tmp`, where nobody reads, go together."""
        tmp = {node.now().get("tmp") for node in self.nodes if isinstance(node, Folder)}
        for n, node in enumerate(self.nodes):
            if isinstance(node, Folder) and node.changes and n in tmp:
                yield n, range(len(node.changes))
            elif isinstance(node, Folder):
                yield from ((n, range(i, i + 1)) for i in range(len(node.changes)))

    def _state(self, kept: dict[int, Any], how_much: int) -> State:
        state: State = {}

        def walk(prefix: str, n: int) -> None:
            node = self.nodes[n]
            assert isinstance(node, Folder)
            for name, inner in node.now(kept[n]).items():
                path, found = prefix + name, self.nodes[inner]
                if isinstance(found, Folder):
                    state[path] = None
                    walk(path + "/", inner)
                elif found.dirty:
                    state[path] = (found.flushed, found.data[: (len(found.data) + 1) // 2], found.data)[how_much]
                else:
                    state[path] = found.data

        walk("", 0)
        return state


def _subsets(items: list[Any]) -> Iterator[tuple[Any, ...]]:
    if len(items) <= FEW:
        for n in range(len(items) + 1):
            yield from itertools.combinations(items, n)
        return
    yield ()
    yield tuple(items)
    for i, item in enumerate(items):
        yield (item,)
        yield (*items[:i], *items[i + 1 :])


def key_of(state: State, told: tuple[Any, ...]) -> str:
    """The same for two states of the same files and promises."""
    digest = hashlib.sha256(repr(told).encode())
    for path in sorted(state):
        data = state[path]
        digest.update(repr((path, data if data is None else hashlib.sha256(data).digest())).encode())
    return digest.hexdigest()


def promises(log: list[Event]) -> tuple[Any, ...]:
    """What was promised by the end of the log; `("end", kind)` ends those of a kind."""
    held: list[tuple[Any, ...]] = []
    for event in log:
        if event.call == "ack" and event.told[0] == "end":
            held = [told for told in held if told[: len(event.told) - 1] != event.told[1:]]
        elif event.call == "ack":
            held.append(event.told)
    return tuple(held)


Loss = tuple[int, State, tuple[Any, ...]]
"""After which call of the log, what lies on the disk, and what was promised by then."""


def losses(start: Disk, log: list[Event], without: int = -1) -> Iterator[Loss]:
    """What may lie on the disk when the power goes after each call. Each state once.

    `without` leaves out the effect of one call, a flush, as if it had not been made.
    """
    model, seen = start.copy(), set[str]()
    for n, event in enumerate(log):
        if n != without:
            model.apply(event)
        if n < without or event.call in UNSEEN:
            continue
        told = promises(log[: n + 1])
        for state in model.states():
            key = key_of(state, told)
            if key not in seen:
                seen.add(key)
                yield n, state, told


def least_losses(start: Disk, log: list[Event], without: int = -1) -> Iterator[Loss]:
    """What at least lies on the disk at each promise and in the end."""
    model, seen = start.copy(), set[str]()
    for n, event in enumerate(log):
        if n != without:
            model.apply(event)
        if n < without or (event.call != "ack" and n + 1 < len(log)):
            continue
        told, state = promises(log[: n + 1]), model.least()
        key = key_of(state, told)
        if key not in seen:
            seen.add(key)
            yield n, state, told


def lay_out(state: State, root: Path, mtime: float) -> None:
    """Make the files; parts get the time of change, so that they are no young ones."""
    root.mkdir()
    for path in sorted(state):
        data = state[path]
        if data is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(data)
            os.utime(root / path, (mtime, mtime))


def read_in(root: Path) -> State:
    """The files below the folder."""
    return {p.relative_to(root).as_posix(): None if p.is_dir() else p.read_bytes() for p in sorted(root.rglob("*"))}
