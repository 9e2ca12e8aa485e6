"""Tags: names for snapshots, which `collect` leaves as long as a tag names them.

refs/tags/<name>.json                       sealed: number and content id of the snapshot
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skycairn.pile import disk
from skycairn.pile.disk import sync_folder
from skycairn.pile.files import Damaged, Missing, PileError, make_folder
from skycairn.pile.receipt import check_sha256

if TYPE_CHECKING:
    from skycairn.pile.store import Pile

FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_BACK = re.compile(r"head(?:~([0-9]{1,9}))?")
_MEND = "remove it, and tag the snapshot again"


@dataclass(frozen=True)
class Version:
    """One line of a pile's history."""

    number: int
    parent: int | None
    content_id: str
    "empty where the snapshot is damaged"
    tags: tuple[str, ...]
    leased: bool
    "whether a living reader has pinned it"
    damage: str = ""
    "what is wrong with the snapshot's file; empty where it is whole"


def tag(pile: Pile, name: str, number: int) -> None:
    """See `Pile.tag`."""
    _check(name)
    body = {"format": FORMAT, "name": name, "snapshot": number, "content_id": pile.snapshot(number).content_id}
    make_folder(pile.root / "refs")
    make_folder(pile.root / "refs" / "tags")
    path = _path(pile, name)
    pile.publish_sealed(body, path)
    try:
        pile.snapshot(number)
    except Missing:
        # collected between our look and our tag
        with suppress(FileNotFoundError):
            disk.unlink(path)
        raise


def untag(pile: Pile, name: str) -> None:
    """See `Pile.untag`."""
    _check(name)
    path = _path(pile, name)
    try:
        disk.unlink(path)
    except FileNotFoundError as error:
        raise Missing(f"{pile.root} has no tag {name}; it has {', '.join(tags(pile)) or 'none'}") from error
    sync_folder(path.parent)


def tags(pile: Pile) -> dict[str, int]:
    """See `Pile.tags`."""
    return {path.stem: read_tag(pile, path)[0] for path in tag_files(pile)}


def tag_files(pile: Pile) -> list[Path]:
    """The files of all tags, in the order of their names."""
    return sorted((pile.root / "refs" / "tags").glob("*.json"))


def read_tag(pile: Pile, path: Path) -> tuple[int, str]:
    """Number and content id that a tag's file holds."""
    body: dict[str, Any] = pile.unseal(path, _MEND)
    number, content_id = body.get("snapshot"), body.get("content_id")
    try:
        check_sha256(content_id, "its content_id")
        if body.get("format") != FORMAT or type(number) is not int or body.get("name") != path.stem:
            raise ValueError(f"it is the tag {body.get('name')!r} of {number!r}, format {body.get('format')!r}")
    except ValueError as error:
        raise Damaged(f"{path}: {error}; {_MEND}") from error
    return number, str(content_id)


def check_tag(pile: Pile, path: Path) -> None:
    """`Damaged` where the tag's file does not hold what it was written with, `Missing` where its snapshot is gone."""
    number, content_id = read_tag(pile, path)
    found = pile.snapshot(number).content_id
    if found != content_id:
        raise Damaged(f"{path} is of a snapshot {number} of content {content_id}, which now has {found}; {_MEND}")


def resolve(pile: Pile, text: str) -> int:
    """See `Pile.resolve`."""
    if text.isascii() and text.isdigit() and len(text) <= 20:
        return pile.snapshot(int(text)).number
    if back := _BACK.fullmatch(text):
        numbers, n_back = pile.snapshots(), int(back[1] or 0)
        if n_back >= len(numbers):
            raise Missing(f"{pile.root} has no {text}; it has {len(numbers)} snapshots")
        return numbers[-1 - n_back]
    _check(text)
    path = _path(pile, text)
    if not path.exists():
        raise Missing(f"{pile.root} has no tag {text}; it has {', '.join(tags(pile)) or 'none'}")
    check_tag(pile, path)
    return read_tag(pile, path)[0]


def history(pile: Pile) -> list[Version]:
    """See `Pile.history`."""
    named: dict[int, list[str]] = {}
    for path in tag_files(pile):
        # a damaged tag is for `verify` to tell
        with suppress(PileError, FileNotFoundError):
            named.setdefault(read_tag(pile, path)[0], []).append(path.stem)
    leased = {lease.snapshot for lease in pile.leases() if lease.alive}
    return [_version(pile, n, tuple(named.get(n, ())), n in leased) for n in reversed(pile.snapshots())]


def _version(pile: Pile, number: int, names: tuple[str, ...], leased: bool) -> Version:
    try:
        snapshot = pile.snapshot(number)
    except PileError as error:
        return Version(number, None, "", names, leased, str(error))
    return Version(number, snapshot.parent, snapshot.content_id, names, leased)


def _check(name: str) -> None:
    if not _NAME.fullmatch(name) or name.isdigit() or name == "head":
        raise ValueError(
            f"{name[:80]!r} cannot name a snapshot; wanted up to 64 letters, digits, '.', '_' and '-', a letter or "
            f"digit first, and neither 'head' nor digits alone"
        )


def _path(pile: Pile, name: str) -> Path:
    return pile.root / "refs" / "tags" / f"{name}.json"
