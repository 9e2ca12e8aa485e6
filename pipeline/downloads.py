"""Survey files brought from far away while the work goes on, as many as the cache has room for."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from skycairn.archives.cache import Cache, Pin
from skycairn.archives.client import Client
from skycairn.archives.credentials import NoAccount
from skycairn.archives.errors import Unreachable
from skycairn.archives.remote import RemoteArchive
from skycairn.archives.sizes import typical
from skycairn.archives.sources import open_client
from skycairn.catalogs.survey import RemoteFile
from skycairn.pipeline.plan import Plan
from skycairn.pipeline.task import Context, Task, files_of

AT_ONCE = 4
"""Files of one survey that are asked for at the same time; the client keeps to what each host allows."""
LEAVE_S = 3.0
"""How long what is under way is waited for at the end: some services cannot be told to stop."""
Name = tuple[str, str]
"""Survey and path."""
NOT_HAD = "download failed"
"""Step of which progress is told for files that could not be had; those that came, or are not there, are `download`."""


@dataclass
class _Shared:
    """What the threads that bring files and the builder know of one another; under the lock."""

    wanted: dict[str, dict[str, tuple[int, RemoteFile]]] = field(default_factory=dict)
    "by survey and path, with its place in the order of all; less those that are under way or have come since"
    coming: dict[Name, int] = field(default_factory=dict)
    "bytes that each file under way may have"
    pin: Pin | None = None
    "what keeps files in the cache, those that come too"
    arrived: dict[Name, int] = field(default_factory=dict)
    "bytes of the files that have come since the last planning began"
    kept_bytes: int = 0
    "in the cache, and not to leave it"
    spare: int = 0
    "files that may be begun though there is no room"
    ended: bool = False


class Downloads:
    """What the builder brings; nothing where all surveys lie below roots."""

    def __init__(
        self, ctx: Context, progress: Callable[[str, int, int], None] | None = None, anew: bool = False
    ) -> None:
        self.anew = anew
        self.archives = {c.name: a for c in ctx.recipe.surveys if isinstance(a := ctx.archive(c.name), RemoteArchive)}
        self.limit = ctx.recipe.download.limit_bytes
        self.progress = progress
        self.client: Client | None = open_client(ctx.recipe.download) if self.archives else None
        self._n_ended = {"download": 0, NOT_HAD: 0}
        self._told = dict(self._n_ended)
        self._ended: queue.SimpleQueue[BaseException | str] = queue.SimpleQueue()
        "an error of ours, or the step that a file ended as"
        self._shared = _Shared()
        self._turn = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._kept = ExitStack()
        self._sizes: dict[Name, int] = {}
        "that are expected of files"

    def __enter__(self) -> Self:
        for name, archive in self.archives.items():
            archive.connect(self.client, self.anew)
            for i in range(AT_ONCE):
                # daemons: a service that does not answer must not keep the process from ending
                thread = threading.Thread(target=self._work, args=(name,), name=f"fetch {name} {i}", daemon=True)
                self._threads.append(thread)
                thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with self._turn:
            self._shared.ended = True
            self._turn.notify_all()
        if self.client is not None:
            self.client.close()
        until = time.monotonic() + LEAVE_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        for archive in self.archives.values():
            archive.connect(None)
        with self._turn:
            self._shared.pin = None
        self._kept.close()
        self._trim()

    def ready(self, p: Plan) -> tuple[list[Task], dict[str, str]]:
        """The tasks whose files are here, and those, by label, one of whose files cannot be had any more, with the
        reason. Files of the others, and those that the plan asks for, are sent for.
        """
        if not self.archives:
            return p.todo, {}
        needed: dict[Name, RemoteFile] = {}
        todo, given_up = [], {}
        for task in p.todo:
            files = [(s, path) for s, paths in files_of(task).items() if s in self.archives for path in paths]
            lacking = [name for name in files if not self.archives[name[0]].there(name[1])]
            if failed := next((error for s, path in lacking if (error := self.archives[s].failed(path))), None):
                given_up[task.label] = str(failed)
                continue
            needed |= {name: RemoteFile(name[1]) for name in files}
            if not lacking:
                todo.append(task)
        for survey, files_to_come in p.downloads.items():
            needed |= {(survey, path): file for path, file in files_to_come.items()}
        self._send_for(needed, spare=1)
        return todo, given_up

    def bring(self, files: Mapping[str, Iterable[RemoteFile]]) -> list[Name]:
        """Bring all of these files, and keep them while others come; those for which the cache has no room.

        How each of the others was found is known by its archive then.
        """
        needed = {(survey, f.path): f for survey, some in files.items() for f in some}
        while lacking := self._send_for(needed, spare=0):
            with self._turn:
                stuck = not self._shared.coming and self._shared.kept_bytes >= self.limit
            if stuck:
                return [n for n in lacking if not self._settled(n, needed[n], self.archives[n[0]].there(n[1]))]
            self.wait()
            while self._under_way():
                self.wait()
        return []

    def wait(self) -> None:
        """Until a download has ended, a second at most; NoRoom where one is too large for the cache."""
        try:
            self._land(self._ended.get(timeout=1.0))
            while True:
                self._land(self._ended.get_nowait())
        except queue.Empty:
            pass

    def counts(self) -> Counter[str]:
        """What was asked of the archives."""
        return Counter() if self.client is None else Counter(self.client.counts())

    def _send_for(self, needed: Mapping[Name, RemoteFile], spare: int) -> list[Name]:
        """Keep in the cache what is there of it, let the rest come, as far as there is room; what is still to come.

        `spare`: files that may be begun without room, lest nothing goes on where all that is there is needed.
        """
        kept = ExitStack()
        pin = kept.enter_context(self._cache().pin())
        with self._turn:
            before, self._kept = self._kept, kept
            self._shared.pin, self._shared.arrived = pin, {}
        # what was kept stays so until the new pin holds all that is still needed of it
        with before:
            held: dict[Name, int] = {}
            for survey, archive in self.archives.items():
                sizes = archive.keep(pin, [path for s, path in needed if s == survey])
                held |= {(survey, path): n_bytes for path, n_bytes in sizes.items()}
            lacking = {name: file for name, file in needed.items() if not self._settled(name, file, name in held)}
        with self._turn:
            shared = self._shared
            shared.wanted = {survey: {} for survey in self.archives}
            for place, (name, file) in enumerate(lacking.items()):
                if name not in shared.coming:
                    shared.wanted[name[0]][name[1]] = place, file
            shared.kept_bytes, shared.spare = sum((shared.arrived | held).values()), spare
            self._turn.notify_all()
        self._trim()
        return list(lacking)

    def _cache(self) -> Cache:
        """All archives have one."""
        return next(iter(self.archives.values())).cache

    def _under_way(self) -> bool:
        with self._turn:
            return bool(self._shared.coming)

    def _trim(self) -> None:
        """Keep to the limit, where what was needed had to go beyond it."""
        if self.archives:
            self._cache().reserve(0)

    def _settled(self, name: Name, file: RemoteFile, here: bool) -> bool:
        """Whether the file is here, or it is known that it will not come."""
        archive = self.archives[name[0]]
        if not archive.decided(file):
            return False
        return here or bool(archive.failed(name[1])) or archive.state(name[1]) is None

    def _land(self, ended: BaseException | str) -> None:
        if isinstance(ended, BaseException):
            raise ended
        self._n_ended[ended] += 1
        if self.progress:
            with self._turn:
                left = sum(map(len, self._shared.wanted.values())) + len(self._shared.coming)
            for step, n in self._n_ended.items():
                if step == ended or (not left and n != self._told[step]):
                    self.progress(step, n, n + left)
                    self._told[step] = n if not left else -1

    def cut_off(self) -> bool:
        """Whether nothing came, and nothing but the way to the archives was wrong."""
        failed = [error for archive in self.archives.values() for error in archive.failures()]
        return (
            not self._n_ended["download"]
            and any(isinstance(error, Unreachable) for error in failed)
            and all(isinstance(error, Unreachable | NoAccount) for error in failed)
        )

    # --- what threads do ----------------------------------------------------------------------------------------------

    def _work(self, survey: str) -> None:
        archive = self.archives[survey]
        file = self._next(survey)
        while file is not None:
            error: BaseException | None = None
            try:
                archive.bring_whole(file)
            except BaseException as found:
                error = found
            with self._turn:
                name = survey, file.path
                del self._shared.coming[name]
                try:
                    self._keep(name)
                except BaseException as found:
                    error = error or found
                self._ended.put(error or (NOT_HAD if archive.failed(file.path) else "download"))
                self._turn.notify_all()
                # the next at once, lest nothing seems to be under way
                file = self._next(survey)

    def _keep(self, name: Name) -> None:
        """Have a file that came stay in the cache until the next planning; nothing at the end."""
        shared = self._shared
        if shared.pin is None or name in shared.arrived:
            return
        for n_bytes in self.archives[name[0]].keep(shared.pin, [name[1]]).values():
            shared.arrived[name] = n_bytes
            shared.kept_bytes += n_bytes

    def _next(self, survey: str) -> RemoteFile | None:
        """The survey's file that is to be brought next, once there is room for it; None at the end."""
        with self._turn:
            while not self._shared.ended:
                if self._may_begin(survey):
                    path, (_, file) = next(iter(self._shared.wanted[survey].items()))
                    del self._shared.wanted[survey][path]
                    self._shared.coming[survey, path] = self._expected(survey, path)
                    return file
                self._turn.wait()
        return None

    def _may_begin(self, survey: str) -> bool:
        """Whether there is room for the survey's next file."""
        shared = self._shared
        if not shared.wanted.get(survey):
            return False
        path, (place, _) = next(iter(shared.wanted[survey].items()))
        room = self.limit - shared.kept_bytes - sum(shared.coming.values())
        if room >= self._expected(survey, path):
            return True
        # where there may be none, one after another, the first of all surveys' first
        first = min(next(iter(some.values()))[0] for some in shared.wanted.values() if some)
        if shared.coming or place != first:
            return False
        if room <= 0:
            shared.spare -= 1
        return room > 0 or shared.spare >= 0

    def _expected(self, survey: str, path: str) -> int:
        """Bytes that the file may have; what it had where it came before."""
        if (survey, path) not in self._sizes:
            known = self.archives[survey].size(path)
            self._sizes[survey, path] = round(typical(path)) if known is None else known
        return self._sizes[survey, path]
