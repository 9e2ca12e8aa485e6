"""Work that may be cut off: a hidden folder beside the result, taken up again by the same call, then renamed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

Progress = Callable[[str, int, int], None]
"""Told (step, done, total)."""
T = TypeVar("T")


@contextmanager
def work_folder(out: Path, identity: Mapping[str, Any]) -> Iterator[Path]:
    """The hidden folder of work for `out` that has this identity, as it was left; those of another are removed.

    One process at a time: BlockingIOError otherwise. Its sub-folder `result` becomes `out` by `publish`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    said = json.dumps({**identity, "boot": _boot()}, sort_keys=True).encode()
    folder = out.with_name(f".{out.name}.work-{hashlib.sha256(said).hexdigest()[:16]}")
    with out.with_name(f".{out.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, f"another process writes {out}; wait for it", str(out)) from error
        for other in out.parent.glob(f".{out.name}.work-*"):
            if other != folder:
                shutil.rmtree(other)
        (folder / "result").mkdir(parents=True, exist_ok=True)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
        os.unlink(lock.name)


def _boot() -> str:
    """Names this start of the machine: what was written before a power cut may be torn, and is made again."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def publish(result: Path, out: Path) -> None:
    """Flush all files of the result, and give its folder its name; hidden ones, of a killed run, are removed."""
    for path in [p for p in result.rglob(".*") if p.is_file()]:
        path.unlink()
    for path in [*result.rglob("*"), result]:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    result.rename(out)
    fd = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def aside(final: Path) -> Iterator[Path]:
    """A name to write a file under; it becomes `final` when all went well."""
    final.parent.mkdir(parents=True, exist_ok=True)
    path = final.with_name(f".{final.name}.{os.getpid()}")
    try:
        yield path
        os.replace(path, final)
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def pool(workers: int) -> Iterator[Executor | None]:
    """Processes of one thread each; None, which is this process, for one worker."""
    if workers <= 1:
        yield None
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _one_thread) as executor:
        try:
            yield executor
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a worker process was ended from outside, most often for want of memory; allow less memory, or fewer "
                "workers, and run it again: it goes on where it was"
            ) from error
        except BaseException:
            executor.shutdown(wait=True, cancel_futures=True)
            raise


def _one_thread() -> None:
    pa.set_cpu_count(1)


def each(
    executor: Executor | None, function: Callable[..., T], calls: Sequence[tuple[Any, ...]], told: Callable[[int], None]
) -> list[T]:
    """What the function gives for each call, in order; `told` how many are done."""
    if executor is None:
        out = []
        for i, call in enumerate(calls):
            out.append(function(*call))
            told(i + 1)
        return out
    futures = [executor.submit(function, *call) for call in calls]
    for i, future in enumerate(as_completed(futures)):
        future.result()
        told(i + 1)
    return [f.result() for f in futures]
