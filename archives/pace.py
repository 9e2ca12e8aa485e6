"""Calls to one host are kept apart, whichever threads of this process make them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit


class Pace:
    """Hands out moments to call at, of each host one after the other."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._free: dict[str, float] = {}
        "by host, from when on the next call may be made"
        self._lock = threading.Lock()

    def wait(self, url: str, pause_s: float) -> None:
        """Return when the host may be called: `pause_s` after the call before it, and at once on this machine."""
        host = urlsplit(url).hostname or ""
        if url.startswith("http://127.0.0.1"):
            return
        with self._lock:
            now = self._clock()
            at = max(now, self._free.get(host, now))
            self._free[host] = at + pause_s
        if at > now:
            self._sleep(at - now)


PACE = Pace()
"""Of this process."""
