"""Work that another pile has done, taken over: its parts as hard links, and the receipts that tell what they are of.

A build then does what its recipe asks for beyond that: with other codecs of two modalities, their tokens, objects and
shards. Parts are immutable, so that two piles may well share them; either may be removed.
"""

from __future__ import annotations

from pathlib import Path

from skycairn.pile import disk
from skycairn.pile.files import PileError, make_folder
from skycairn.pile.receipt import Part, Receipt
from skycairn.pile.store import Pile
from skycairn.pipeline.parent import Parent


def take_over(pile: Pile, source: Path) -> int:
    """Take over what stands behind the head of the pile at `source`; how many tasks that are not done here yet.

    ValueError where there is no pile with a snapshot. Nothing is read: parts are verified when they are, as ever.
    """
    try:
        other = Pile.open(source)
        pinned = other.pin()
    except PileError as error:
        raise ValueError(f"{source}: no finished work can be taken over from there: {error}") from error
    with pinned:
        keys = sorted(Parent(other, pinned.snapshot).keys.values())
        found = [r for key in keys if pile.receipt(key) is None and (r := other.receipt(key)) is not None]
        folders = {_taken(pile, other, part) for receipt in found for part in receipt.outputs.values()}
        for folder in sorted(folders):
            disk.sync_folder(folder)
        for receipt in found:
            _put(pile, receipt)
    return len(found)


def _put(pile: Pile, receipt: Receipt) -> None:
    if pile.receipt(receipt.key) is None:
        pile.put_receipt(receipt)


def _taken(pile: Pile, other: Pile, part: Part) -> Path:
    """Link a part, or copy it where the file system has no links or another disk is the pile's; the folder it is in."""
    final = pile.path(part)
    make_folder(final.parents[1])
    make_folder(final.parent)
    if pile.has(part):
        return final.parent
    try:
        disk.link(other.path(part), final)
    except OSError:
        pile.put_file(other.path(part), part.n_rows, part.content_id)
    return final.parent
