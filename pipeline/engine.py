"""Runs tasks: in this process, on a local Dask cluster, or on any scheduler. Alone in knowing Dask.

A task that takes longer than its deadline, or whose worker dies or hangs, is tried again on a fresh worker, and given
up after `TRIES`; the others go on. Told to stop, no task is begun, those under way are waited for.
"""

from __future__ import annotations

import errno
import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import resource_tracker
from typing import Any, Literal

from threadpoolctl import ThreadpoolController

from skycairn.archives.errors import Changed, FetchError
from skycairn.catalogs.survey import MissingColumn
from skycairn.pile.files import PileError
from skycairn.pile.receipt import task_key
from skycairn.pipeline import task as tasks
from skycairn.pipeline.recipe import canonical
from skycairn.pipeline.steps import work
from skycairn.pipeline.task import Context, Task
from skycairn.pipeline.versions import VERSIONS

TRIES = 2
"""How often a task is begun that outlives its deadline."""
SCHEDULER_GONE = "the Dask scheduler is gone; start it and build again: it goes on where it was"
DRAIN_SECONDS = 30.0
"""How long tasks under way are waited for once the build is told to stop."""
_AGAIN = (errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.EAGAIN, errno.EINTR)
_SICK = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)

Kind = Literal["file", "defer", "fatal"]
"""Whose fault: the survey file's, which is held back; nobody's, so that its cell waits for the next build (memory,
time, a lost worker); or one that no other task can mend, which ends the build."""
Run = Callable[[Sequence[Task]], Iterator[tuple[Task, dict[str, Any]]]]
"""Does tasks, in any order: each with its `receipt`, or its `error` in words and the `kind` of it."""


class EngineError(Exception):
    """There is nothing to run tasks on."""


class Stopped(BaseException):
    """The build was told to stop, and did; `signal` is the number of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


@dataclass(frozen=True)
class Engine:
    """What tasks run on."""

    workers: int = 0
    "processes on this machine; 0: this one"
    scheduler: str = ""
    "address of a running Dask scheduler instead"
    deadline_s: float = 1800.0
    "seconds that one task may take"
    memory_bytes: int = 0
    "of each local worker; 0: an equal share of the machine's"

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"{self.workers} workers were asked for; wanted 1 or more, or 0 to work in this process")
        if not self.deadline_s > 0 or self.memory_bytes < 0:
            raise ValueError(f"deadline {self.deadline_s} s, memory {self.memory_bytes} B: wanted more than 0")

    @contextmanager
    def start(self, ctx: Context) -> Iterator[Run]:
        """Workers for the tasks of this pile and recipe, gone at the end."""
        where = str(ctx.pile.root.resolve()), canonical(ctx.recipe.settings())
        with ExitStack() as stack:
            stop = stack.enter_context(_Stop())
            if self.workers == 0 and not self.scheduler:
                yield lambda todo: _here(where, todo, stop)
                return
            yield _Cluster(self, where, stop, stack).run


class _Stop:
    """SIGINT and SIGTERM are heeded between two tasks; a second one ends the process as it would have."""

    def __init__(self) -> None:
        self.number = 0
        self.at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._heed) for n in (signal.SIGINT, signal.SIGTERM)}
            _STOPS.append(self)
        return self

    def _heed(self, number: int, _: object) -> None:
        self.number = number
        for n, handler in self._before.items():
            signal.signal(n, handler)
        if self.at_once:
            raise Stopped(number)

    def __exit__(self, *_: object) -> None:
        if _STOPS and _STOPS[-1] is self:
            _STOPS.pop()
        for n, handler in self._before.items():
            signal.signal(n, handler)

    def check(self) -> None:
        """Stopped where the signal came."""
        if self.number:
            raise Stopped(self.number)


_STOPS: list[_Stop] = []
"""Of the build that the main thread is at, if any, the last."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Within, a signal ends the build at once, for nothing is under way that must be ended in order.

    Else who plans would have to wait until an archive answers that does not.
    """
    if not _STOPS or threading.current_thread() is not threading.main_thread():
        yield
        return
    stop = _STOPS[-1]
    stop.at_once = True
    try:
        stop.check()
        yield
    finally:
        stop.at_once = False


@lru_cache(maxsize=1)
def _threadpools(n_modules: int) -> ThreadpoolController:
    """The libraries that have threads of their own: looked for, which takes long, where there are other modules."""
    return ThreadpoolController()


def run_one(pile: str, recipe: str, task: Task) -> dict[str, Any]:
    """Do one task; its receipt, or its error in words, so that no exception has to travel."""
    with _threadpools(len(sys.modules)).limit(limits=1):
        try:
            if task_key(task.step, VERSIONS[task.step], task.settings, task.inputs) != task.key:
                raise EngineError(
                    f"this worker does step {task.step} by another version than the builder; install the same skycairn"
                )
            ctx = tasks.context(pile, recipe)
            ctx.look_again()
            if "survey" in task.args:
                ctx.archive(task.args["survey"])
        except Exception as error:
            # a worker without the pile or without a survey's root is no fault of the survey's files
            return {"error": f"{type(error).__name__}: {error}", "kind": "fatal"}
        for attempt in range(3):
            try:
                return {"receipt": work(ctx, task).to_json()}
            except OSError as error:
                if error.errno in _AGAIN and attempt < 2:
                    time.sleep(0.2 * 4**attempt)
                    continue
                return {"error": _told(error), "kind": kind_of(error)}
            except Exception as error:
                return {"error": _told(error), "kind": kind_of(error)}
    raise AssertionError("not reached")


def kind_of(error: Exception) -> Kind:
    """Whose fault an error is, as `Kind` says."""
    if isinstance(error, MissingColumn | PileError):
        return "fatal"
    if isinstance(error, MemoryError | Changed):
        return "defer"
    if isinstance(error, FetchError | ValueError):
        return "file"
    if isinstance(error, OSError) and error.errno in (*_AGAIN, errno.ENOMEM):
        return "defer"
    return "fatal"


def _told(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"out of memory ({error}); give each worker more: fewer --workers, or a larger --memory"
    if isinstance(error, OSError) and error.errno in _SICK:
        return f"the disk fails: {error}; free or mend it, and build again"
    return str(error) if isinstance(error, ValueError | FetchError) else f"{type(error).__name__}: {error}"


def _here(where: tuple[str, str], todo: Sequence[Task], stop: _Stop) -> Iterator[tuple[Task, dict[str, Any]]]:
    for task in todo:
        stop.check()
        yield task, run_one(*where, task)
    stop.check()


def _begin(pile: str, recipe: str, task: Task, topic: str) -> dict[str, Any]:
    """`run_one` on a worker, which first says that it has begun."""
    from distributed import get_worker

    worker = get_worker()
    worker.log_event(topic, {"task": task.key, "worker": worker.address})
    return run_one(pile, recipe, task)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Within, Control-C waits; processes that are begun by what begins within never hear it, not even as they start."""
    # beginning the tracker would let it through again
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore_interrupts() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@dataclass
class _Flight:
    """A task on its way."""

    task: Task
    future: Any
    sent: float
    begun: float = 0.0
    worker: str = ""
    tries: int = 1


class _Cluster:
    """Tasks on Dask workers, never many more at once than there are threads, so that each one's time is known."""

    def __init__(self, engine: Engine, where: tuple[str, str], stop: _Stop, stack: ExitStack) -> None:
        import dask
        from distributed import Client, LocalCluster

        self.engine, self.where, self.stop = engine, where, stop
        if engine.scheduler:
            try:
                self.client = stack.enter_context(Client(engine.scheduler, timeout="15s"))
            except OSError as error:
                raise EngineError(f"no Dask scheduler answers at {engine.scheduler} ({error})") from error
            if not self.client.scheduler_info()["workers"]:
                raise ValueError(
                    f"the scheduler at {engine.scheduler} has no worker; start one, dask worker {engine.scheduler}, say"
                )
        else:
            os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "65536")
            memory = engine.memory_bytes or "auto"
            # Dask gives a worker up for good that is not there 15 s after it was first lost, be it that it died again
            # and is just starting; its nanny starts it anew as often as it dies, and without it the build would wait
            # for ever
            stack.enter_context(dask.config.set({"distributed.deploy.lost-worker-timeout": "365 days"}))
            with _interrupts_later():
                cluster = LocalCluster(
                    n_workers=engine.workers,
                    threads_per_worker=1,
                    memory_limit=memory,
                    dashboard_address="127.0.0.1:0",
                    silence_logs=50,
                )
            self.client = stack.enter_context(Client(stack.enter_context(cluster)))
            stop.check()
            # signals are for this process, which then stops the workers in order
            self.client.register_worker_callbacks(_ignore_interrupts)
        self.topic = f"skycairn {os.getpid()} {id(self)}"
        self.threads, self.asked = 1, float("-inf")
        self.told: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.client.subscribe_topic(self.topic, lambda event: self.told.put(("begun", event[1])))

    def run(self, todo: Sequence[Task]) -> Iterator[tuple[Task, dict[str, Any]]]:
        """See `Run`."""
        self.stop.check()
        waiting = deque((task, 1) for task in todo)
        flying: dict[str, _Flight] = {}
        try:
            while waiting or flying:
                self.stop.check()
                if self.client.status not in ("running", "connecting"):
                    raise EngineError(SCHEDULER_GONE)
                # none waits on a worker: one that kills it would take the next with it, again and again
                while waiting and len(flying) < self._threads():
                    task, tries = waiting.popleft()
                    flying[task.key] = self._send(task, tries)
                for flight in self._landed(flying):
                    yield flight.task, self._result(flight)
                for flight in self._overdue(flying):
                    del flying[flight.task.key]
                    if flight.tries < TRIES:
                        waiting.append((flight.task, flight.tries + 1))
                    else:
                        yield flight.task, self._late(flight)
        except OSError as error:
            raise EngineError(SCHEDULER_GONE) from error
        except Stopped:
            ends = time.monotonic() + DRAIN_SECONDS
            while flying and time.monotonic() < ends:
                for flight in self._landed(flying):
                    yield flight.task, self._result(flight)
            raise
        finally:
            self.client.cancel([f.future for f in flying.values()], force=True)

    def _threads(self) -> int:
        """Threads of all workers, asked for anew every few seconds: workers come and go."""
        if time.monotonic() - self.asked > 5:
            # a client that is just losing its scheduler knows nothing of it
            workers = self.client.scheduler_info(n_workers=-1).get("workers")
            if workers is None:
                raise OSError("the client knows no scheduler")
            self.threads, self.asked = max(1, sum(w["nthreads"] for w in workers.values())), time.monotonic()
        return self.threads

    def _send(self, task: Task, tries: int) -> _Flight:
        key = f"{task.label} {task.key} {tries} {self.topic}"
        future = self.client.submit(_begin, *self.where, task, self.topic, key=key, pure=False)
        future.add_done_callback(lambda _, key=task.key: self.told.put(("done", key)))
        return _Flight(task, future, time.monotonic(), tries=tries)

    def _landed(self, flying: dict[str, _Flight]) -> list[_Flight]:
        """Those that have ended, no longer among `flying`; waits for one, but not for long."""
        out = []
        with suppress(queue.Empty):
            kind, what = self.told.get(timeout=0.5)
            while True:
                if kind == "begun" and what["task"] in flying:
                    flight = flying[what["task"]]
                    flight.begun, flight.worker = time.monotonic(), what["worker"]
                elif kind == "done" and what in flying and flying[what].future.done():
                    out.append(flying.pop(what))
                kind, what = self.told.get_nowait()
        # a result that was lost with its worker is made again, and its word may have come too early
        for key in [k for k, flight in flying.items() if flight.future.done()]:
            out.append(flying.pop(key))
        return out

    def _result(self, flight: _Flight) -> dict[str, Any]:
        from distributed import CancelledError, KilledWorker

        gone = {"error": SCHEDULER_GONE, "kind": "fatal"}
        if flight.future.status in ("cancelled", "lost"):
            return gone
        try:
            return dict(flight.future.result(timeout=60))
        except KilledWorker as error:
            memory = f" (each has {self.engine.memory_bytes / 1e6:.0f} MB)" if self.engine.memory_bytes else ""
            why = f"its worker died, again and again: {str(error).splitlines()[0]}; if it ran out of memory{memory}"
            return {"error": f"{why}, give each worker more: fewer --workers, or a larger --memory", "kind": "defer"}
        except (CancelledError, OSError, TimeoutError):
            return gone
        except Exception as error:
            why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            return {
                "error": f"its worker could not run it: {why}; has it the same skycairn installed?",
                "kind": "fatal",
            }

    def _late(self, flight: _Flight) -> dict[str, Any]:
        if not flight.begun:
            return {"error": "no worker began it; are they all busy with others' work?", "kind": "defer"}
        return {
            "error": f"it took over {self.engine.deadline_s:g} s, {flight.tries} times; give a longer --deadline",
            "kind": "defer",
        }

    def _overdue(self, flying: dict[str, _Flight]) -> list[_Flight]:
        """Those past their deadline, whose workers are replaced. One that has not begun may wait behind another."""
        now, most = time.monotonic(), self.engine.deadline_s
        late = [f for f in flying.values() if now - (f.begun or f.sent + most) > most]
        if late:
            holders = {k: w for w, keys in self.client.processing().items() for k in keys}
            self.client.cancel([f.future for f in late], force=True)
            hung = {f.worker or holders.get(f.future.key, "") for f in late} - {""}
            with suppress(Exception):
                # workers without a nanny cannot be replaced; their tasks are given up all the same
                self.client.restart_workers(sorted(hung), timeout=30, raise_for_error=False)
        return late
