"""The network, as httpx wants it, over `http.client`: addresses are checked, connections kept, all has a deadline.

httpx's own way there, httpcore and h11, is in Python to the last byte; docs/downloads.md has what that costs.
"""

from __future__ import annotations

import io
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from http.client import HTTPException, HTTPResponse
from select import POLLIN, poll
from typing import Any
from weakref import WeakSet

import httpx

from skycairn.archives.address import PORTS, Resolve, check_number

BLOCK = 1 << 18
"""Bytes that are read at once, at most."""
KEPT, KEPT_S = 16, 15.0
"""Connections to one place that are kept while nothing is asked, and how long."""

Place = tuple[str, str, int]
"""Scheme, host, port."""


@cache
def _tls() -> ssl.SSLContext:
    """Reading all certificates takes some 20 ms; SSL_CERT_FILE names others than those that come with httpx."""
    context = httpx.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class Until(threading.local):
    """When the request that this thread has under way must have ended."""

    moment: float = float("inf")


class GuardedTransport(httpx.BaseTransport):
    """Connects only where `check_number` allows, to the number that it checked: a name that changes between the look
    and the connection leads nowhere else. No proxy is used, since it would look the name up itself.

    `until` ends every request, however slowly its bytes come: a limit for each read alone lets a drip go on for ever.
    """

    def __init__(self, loopback: bool, resolve: Resolve, until: Until, clock: Callable[[], float]) -> None:
        self._loopback, self._resolve, self._until, self._clock = loopback, resolve, until, clock
        self._idle: dict[Place, list[tuple[float, _Line]]] = {}
        "with the moment since which nobody uses it, the newest last"
        self._open: WeakSet[_Line] = WeakSet()
        self._closed = False
        self._lock = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """The reply, its body not yet read; the request's `timeout` has seconds to `connect`, to `read` and `write`."""
        url, timeout = request.url, request.extensions["timeout"]
        place = url.scheme, url.host, url.port or PORTS[url.scheme]
        line = self._kept(place) or self._connected(place, timeout["connect"])
        try:
            line.send(request, timeout)
            reply = HTTPResponse(line, method=request.method)  # type: ignore[arg-type]  # it wants `makefile` alone
            reply.begin()
            lengths, coding = reply.headers.get_all("content-length", []), reply.headers.get("transfer-encoding")
            if len(set(lengths)) > 1 or (coding and not reply.chunked) or reply.headers.defects:
                raise httpx.RemoteProtocolError("its headers cannot be read, or contradict one another")
        except BaseException as error:
            line.close()
            raise _told(error) from None
        body = _Body(reply, line, lambda: self._keep(place, line))
        return httpx.Response(reply.status, headers=reply.getheaders(), stream=body)

    def close(self) -> None:
        """End all connections, also those that another thread waits at: to close a socket wakes nobody."""
        with self._lock:
            self._closed = True
            idle = [line for lines in self._idle.values() for _, line in lines]
            self._idle.clear()
            lines = list(self._open)
        for line in idle:
            line.close()
        for line in lines:
            with suppress(OSError):
                # of the plain socket: TLS would be torn from under the thread that reads
                socket.socket.shutdown(line.socket, socket.SHUT_RDWR)

    def _kept(self, place: Place) -> _Line | None:
        """A connection that is there already, and that the host has not closed meanwhile."""
        while True:
            with self._lock:
                if not (lines := self._idle.get(place)):
                    return None
                since, line = lines.pop()
            if self._clock() - since < KEPT_S and not line.readable_now():
                return line
            line.close()

    def _keep(self, place: Place, line: _Line) -> None:
        with self._lock:
            lines = self._idle.setdefault(place, [])
            if not self._closed and len(lines) < KEPT:
                lines.append((self._clock(), line))
                return
        line.close()

    def _connected(self, place: Place, timeout_s: float) -> _Line:
        scheme, host, port = place
        try:
            numbers = self._resolve(host, port)
        except OSError as error:
            raise httpx.ConnectError(f"{host} has no address: {error}") from None
        for number in numbers:
            check_number(number, self._loopback, host)
        why: httpx.TransportError = httpx.ConnectError(f"{host} has no address")
        for number in numbers:
            try:
                found = socket.create_connection((number, port), timeout_s)
                found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if scheme == "https":
                    found = _tls().wrap_socket(found, server_hostname=host)
            except TimeoutError:
                why = httpx.ConnectTimeout(f"no connection within {timeout_s:.0f} s")
            except OSError as error:
                why = httpx.ConnectError(str(error))
            else:
                line = _Line(found, self._until, self._clock)
                with self._lock:
                    self._open.add(line)
                return line
        raise why


class _Line:
    """One connection."""

    def __init__(self, found: socket.socket, until: Until, clock: Callable[[], float]) -> None:
        self.socket, self._until, self._clock = found, until, clock
        self._read_s = self._set_s = 0.0

    def send(self, request: httpx.Request, timeout: dict[str, float]) -> None:
        self._read_s = timeout["read"]
        self._wait_at_most(timeout["write"])
        start = b"%s %s HTTP/1.1\r\n" % (request.method.encode(), request.url.raw_path)
        lines = [b"%s: %s\r\n" % (name, value) for name, value in request.headers.raw]
        try:
            self.socket.sendall(b"".join([start, *lines, b"\r\n", request.content]))
        except TimeoutError:
            raise httpx.WriteTimeout("the request was not taken") from None
        except OSError as error:
            raise httpx.WriteError(str(error)) from None

    def receive_into(self, buffer: Any) -> int:
        """What comes next; 0 at the end."""
        left = self._until.moment - self._clock()
        if left <= 0:
            raise httpx.ReadTimeout("it took longer than its deadline")
        self._wait_at_most(min(self._read_s, left))
        try:
            return self.socket.recv_into(buffer)
        except TimeoutError:
            late = left <= self._read_s
            raise httpx.ReadTimeout("it took longer than its deadline" if late else "nothing came any more") from None

    def _wait_at_most(self, seconds: float) -> None:
        # each setting is a system call
        if seconds != self._set_s:
            self.socket.settimeout(seconds)
            self._set_s = seconds

    def readable_now(self) -> bool:
        """Whether something came that nobody asked for: the end, as a rule."""
        look = poll()
        look.register(self.socket, POLLIN)
        return bool(look.poll(0))

    def makefile(self, mode: str) -> io.BufferedReader:
        """What one reply is read from."""
        return io.BufferedReader(_Bytes(self), 1 << 16)

    def close(self) -> None:
        self.socket.close()


class _Bytes(io.RawIOBase):
    """The connection's bytes; what closes this leaves the connection open."""

    def __init__(self, line: _Line) -> None:
        self._line = line

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._line.receive_into(buffer)


class _Body(httpx.SyncByteStream):
    def __init__(self, reply: HTTPResponse, line: _Line, keep: Callable[[], None]) -> None:
        self._reply, self._line, self._keep = reply, line, keep
        self._whole = False
        "what tells its length otherwise was read to its end"

    def __iter__(self) -> Iterator[bytes]:
        try:
            while block := self._reply.read1(BLOCK):
                yield block
        except (OSError, HTTPException) as error:
            raise _told(error) from None
        if left := self._reply.length:
            raise httpx.RemoteProtocolError(f"the connection ended {left:,} bytes before the reply did")
        self._whole = True

    def close(self) -> None:
        if (self._whole or self._reply.length == 0) and not self._reply.will_close:
            self._keep()
        else:
            self._line.close()


def _told(error: BaseException) -> BaseException:
    """The error in httpx's words; those of a reply that cannot be read are not repeated, since it may hold secrets."""
    if isinstance(error, HTTPException):
        return httpx.RemoteProtocolError(f"{type(error).__name__}: the reply broke off, or is not HTTP/1.1")
    return httpx.ReadError(str(error)) if isinstance(error, OSError) else error
