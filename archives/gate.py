"""The gate before one host: so many at once, so many a second, none while it asked us to wait or is down."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from skycairn.archives.errors import Busy, Unreachable
from skycairn.archives.hosts import HostLimits


class Gate:
    """Shared by all threads that ask one host."""

    def __init__(
        self,
        host: str,
        limits: HostLimits,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._host, self._limits = host, limits
        self._clock, self._wall_clock, self._sleep = clock, wall_clock, sleep
        self._slots = threading.BoundedSemaphore(limits.concurrency)
        self._lock = threading.Lock()
        self._next = float("-inf")
        self._paused = float("-inf")
        self._failures: list[str] = []
        self._down_until: float | None = None
        "when a host that is left alone is tried again; None where it is not left alone"
        self._since = ""
        self._trying = False
        self._answered = False
        self._unreachable = ""

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the turn of one request, over at the end of the `with`. Busy, or Unreachable, while it is down."""
        with self._slots:
            tries = self._wait()
            try:
                yield
            finally:
                if tries:
                    self._trying = False

    def _wait(self) -> bool:
        """Until it is this request's turn; whether it is the one that tries a host that was down."""
        period = 1 / self._limits.requests_per_second
        while True:
            with self._lock:
                now = self._clock()
                self._refuse_while_down(now)
                self._next = max(self._next, now - (self._limits.concurrency - 1) * period)
                if (wait := max(self._next, self._paused) - now) <= 0:
                    self._next += period
                    self._trying = self._down_until is not None
                    return self._trying
            self._sleep(wait)

    def _refuse_while_down(self, now: float) -> None:
        if self._unreachable:
            raise Unreachable(self._unreachable)
        if self._down_until is None or (now >= self._down_until and not self._trying):
            return
        raise Busy(
            f"{self._host}: not asked since {self._since}, after {len(self._failures)} failures in a row (the last: "
            f"{self._failures[-1]}); build again later"
        )

    def pause(self, seconds: float) -> None:
        """Let nobody ask the host for so long."""
        with self._lock:
            self._paused = max(self._paused, self._clock() + seconds)

    def good(self) -> None:
        """The host answered as a host does."""
        with self._lock:
            self._failures.clear()
            self._down_until = None
            self._answered = True

    @property
    def answered(self) -> bool:
        """Whether the host ever did."""
        return self._answered

    def unreachable(self, why: str) -> None:
        """Ask the host no more: there is no connection to it."""
        with self._lock:
            self._unreachable = why

    def bad(self, why: str, connected: bool = True) -> None:
        """The host did not answer, or broke off."""
        with self._lock:
            self._answered |= connected
            self._failures.append(why)
            if len(self._failures) >= self._limits.breaker_failures:
                if self._down_until is None:
                    self._since = datetime.fromtimestamp(self._wall_clock(), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
                self._down_until = self._clock() + self._limits.breaker_s
