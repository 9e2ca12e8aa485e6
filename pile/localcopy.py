"""Parts of a pile on a shared disk, copied to a disk of this machine when they are first asked for, and verified.

<folder>/ab/<sha256>.parquet, .h5       as in the pile; named by their own bytes, whichever pile they come from
<folder>/ab/<sha256>.lock               held by the process that copies it, while the others wait
<folder>/tmp/                           files being written

Nothing is ever removed; delete the folder, or files in it, whenever no process reads them. A pile is a folder here: one
in an object store is mounted first, or copied with the store's own tool.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from skycairn.pile.export import Export
from skycairn.pile.files import Damaged, Missing, PendingFile, check_sha256_once, make_root, make_scratch, sweep
from skycairn.pile.receipt import Part
from skycairn.pile.store import Pile

BLOCK = 1 << 22


class LocalCopy:
    """Stands for a pile or an export where only `path` is asked for. Any number of processes may use one folder."""

    def __init__(self, pile: Pile | Export, folder: str | Path) -> None:
        self.pile = pile
        self.folder = Path(folder)
        make_root(self.folder)
        make_scratch(self.folder / "tmp")
        sweep(self.folder / "tmp")

    def path(self, part: Part) -> Path:
        """Where the part's copy lies; it is made, or made again where it is damaged. `Damaged` if the original is."""
        path = self.folder / part.sha256[:2] / (part.sha256 + part.suffix)
        if not _whole(path, part):
            make_scratch(path.parent)
            with path.with_suffix(".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _whole(path, part):
                    self._copy(part, path)
        return path

    def fetch(self, parts: Iterable[Part]) -> int:
        """Copy those of the parts that are not here yet; how many. OSError where the disk has too little room."""
        absent = [p for p in parts if not _there(self.folder / p.sha256[:2] / (p.sha256 + p.suffix), p)]
        wanted, free = sum(p.n_bytes for p in absent), shutil.disk_usage(self.folder).free
        if wanted > free:
            raise OSError(
                f"{self.folder}: {wanted:,} bytes are to be copied and {free:,} are free; make room, or read the pile "
                f"where it lies"
            )
        for part in absent:
            self.path(part)
        return len(absent)

    def _copy(self, part: Part, path: Path) -> None:
        origin = self.pile.path(part)
        try:
            file = origin.open("rb")
        except FileNotFoundError as error:
            raise Missing(f"{origin}: the file is not there; build it again, or restore it from a copy") from error
        with file, PendingFile(self.folder / "tmp") as pending:
            while data := file.read(BLOCK):
                pending.write(data)
            if pending.sha256 != part.sha256:
                raise Damaged(
                    f"{origin} has the SHA-256 {pending.sha256}, wanted {part.sha256}; remove it and build it again"
                )
            pending.publish(path)


def _there(path: Path, part: Part) -> bool:
    try:
        return path.stat().st_size == part.n_bytes
    except FileNotFoundError:
        return False


def _whole(path: Path, part: Part) -> bool:
    """Whether the copy is there and has its SHA-256, read once by each process."""
    with suppress(Damaged, Missing):
        if _there(path, part):
            check_sha256_once(path, part.sha256)
            return True
    return False
