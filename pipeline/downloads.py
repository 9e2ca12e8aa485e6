"""Survey files brought from far away while the work goes on, as many as the cache has room for."""

from __future__ import annotations

import queue
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Self

from skycairn.archives.client import Client
from skycairn.archives.remote import RemoteArchive
from skycairn.archives.sources import open_client
from skycairn.catalogs.survey import RemoteFile
from skycairn.pipeline.plan import Plan
from skycairn.pipeline.task import Context, Task, files_of

AT_ONCE = 4
"""Files of one survey that are asked for at the same time; the client keeps to what each host allows."""
Name = tuple[str, str]
"""Survey and path."""


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
        self.under_way: dict[Name, Future[None]] = {}
        self.ended: queue.SimpleQueue[Name] = queue.SimpleQueue()
        self.n_begun = self.n_ended = 0
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._pinned = ExitStack()
        self._pinned_bytes = 0

    def __enter__(self) -> Self:
        for name, archive in self.archives.items():
            archive.connect(self.client, self.anew)
            self._pools[name] = ThreadPoolExecutor(AT_ONCE, thread_name_prefix=f"fetch {name}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.client is not None:
            self.client.close()
        for pool in self._pools.values():
            pool.shutdown(wait=True, cancel_futures=True)
        for archive in self.archives.values():
            archive.connect(None)
        self._pinned.close()

    def ready(self, p: Plan) -> list[Task]:
        """The tasks whose files are here; files of the others, and those that the plan asks for, are sent for."""
        if not self.archives:
            return p.todo
        needed: dict[Name, RemoteFile] = {}
        lacking: set[int] = set()
        for i, task in enumerate(p.todo):
            for survey, paths in files_of(task).items():
                if archive := self.archives.get(survey):
                    needed |= {(survey, path): RemoteFile(path) for path in paths}
                    if not all(archive.there(path) for path in paths):
                        lacking.add(i)
        for survey, files in p.downloads.items():
            needed |= {(survey, path): file for path, file in files.items()}
        self._keep(needed)
        self._send_for(needed)
        return [task for i, task in enumerate(p.todo) if i not in lacking]

    def wait(self) -> None:
        """Until a download has ended, a second at most."""
        try:
            self._land(self.ended.get(timeout=1.0))
            while True:
                self._land(self.ended.get_nowait())
        except queue.Empty:
            pass

    def counts(self) -> Counter[str]:
        """What was asked of the archives."""
        return Counter() if self.client is None else Counter(self.client.counts())

    def _keep(self, needed: dict[Name, RemoteFile]) -> None:
        """Nothing that is needed leaves the cache; the rest may."""
        kept = ExitStack()
        self._pinned_bytes = 0
        for survey, archive in self.archives.items():
            paths = [path for name, path in needed if name == survey]
            self._pinned_bytes += kept.enter_context(archive.keep(paths))
        self._pinned.close()
        self._pinned = kept

    def _send_for(self, needed: dict[Name, RemoteFile]) -> None:
        room = self.limit - self._pinned_bytes
        for (survey, path), file in needed.items():
            if (survey, path) in self.under_way:
                continue
            archive = self.archives[survey]
            if archive.decided(file) and (archive.failed(path) or archive.state(path) is None or archive.there(path)):
                continue
            if room <= 0 and self.under_way:
                return
            self.n_begun += 1
            future = self._pools[survey].submit(archive.bring_whole, file)
            self.under_way[survey, path] = future
            future.add_done_callback(partial(self._put, (survey, path)))

    def _put(self, name: Name, _: Future[None]) -> None:
        self.ended.put(name)

    def _land(self, name: Name) -> None:
        self.n_ended += 1
        future = self.under_way.pop(name)
        if not future.cancelled() and (error := future.exception()) is not None:
            raise error
        if self.progress:
            self.progress("download", self.n_ended, self.n_begun)
