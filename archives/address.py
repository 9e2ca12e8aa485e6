"""Which addresses may be asked: checked as they are written, and again as the numbers that are connected to."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from functools import cache
from typing import Any
from weakref import WeakSet

import httpcore
import httpx

from skycairn.archives.errors import Unsafe

PORTS = {"http": 80, "https": 443}
LOOPBACK = "127.0.0.1"

Resolve = Callable[[str, int], list[str]]
"""Addresses of a host, as numbers; OSError where it has none."""


def address(url: str, base: httpx.URL | None = None) -> httpx.URL:
    """The address, relative to `base` where that is given; Unsafe unless it is of http or https and bears no secret."""
    try:
        found = httpx.URL(url) if base is None else base.join(url)
        if "#" in str(found):
            found = found.copy_with(fragment=None)
    except (httpx.InvalidURL, ValueError):
        # the parser's own words may hold a password
        raise Unsafe("an address cannot be read; wanted https://host/path") from None
    if found.scheme not in PORTS or not found.host:
        raise Unsafe(f"an address of {found.scheme or 'no scheme'}:// is no archive's; wanted https://host/path")
    if found.userinfo:
        raise Unsafe(
            f"{shown(found)}: the address has a user name or password in it, which logs and errors would keep; take "
            "it out, and set up the account's credentials instead"
        )
    return found


def place(url: httpx.URL) -> str:
    """`host`, or `host:port` where the port is not the scheme's own."""
    host = url.raw_host.decode("ascii")
    return host if url.port in (None, PORTS.get(url.scheme)) else f"{host}:{url.port}"


def shown(url: httpx.URL) -> str:
    """The address as an error or a log may show it: without user, password, query."""
    path = url.raw_path.decode("ascii", "replace")
    path, asked, _ = path.partition("?")
    return f"{url.scheme}://{place(url)}{path}{'?...' if asked else ''}"


def check_allowed(url: httpx.URL, allowed: Collection[str]) -> None:
    """Unsafe unless the address is of one of these places."""
    if place(url) not in allowed:
        raise Unsafe(f"{shown(url)}: may not be asked; wanted one of {', '.join(sorted(allowed)) or 'no host at all'}")


def check_number(number: str, loopback: bool, host: str) -> None:
    """Unsafe unless this is an address of the public internet, or with `loopback` this very machine's 127.0.0.1."""
    ip = ipaddress.ip_address(number.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if loopback:
        if str(ip) != LOOPBACK:
            raise Unsafe(f"{host}: is at {number}; on loopback only {LOOPBACK} may be asked")
    elif not ip.is_global or ip.is_multicast:
        raise Unsafe(f"{host}: is at {number}, an address that is not of the public internet; no archive is there")


def resolve(host: str, port: int) -> list[str]:
    """Addresses of a host, as the machine's resolver tells them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(where[0]) for *_, where in found))


@cache
def _tls() -> ssl.SSLContext:
    """Reading all certificates takes some 20 ms; SSL_CERT_FILE names others than those that come with httpx."""
    return httpx.create_ssl_context()


class Until(threading.local):
    """When the request that this thread has under way must have ended."""

    moment: float = float("inf")


class GuardedTransport(httpx.HTTPTransport):
    """Connects only where `check_number` allows, to the number that it checked: a name that changes between the look
    and the connection leads nowhere else. No proxy is used, since it would look the name up itself.

    `until` ends every request, however slowly its bytes come: a limit for each read alone lets a drip go on for ever.
    """

    def __init__(self, loopback: bool, resolve: Resolve, until: Until, clock: Callable[[], float]) -> None:
        context = _tls()
        super().__init__(verify=context, trust_env=False)
        self._backend = _Backend(loopback, resolve, until, clock)
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            max_connections=None,
            max_keepalive_connections=16,
            keepalive_expiry=15.0,
            network_backend=self._backend,
        )

    def close(self) -> None:
        """End all connections, also those that another thread waits at."""
        self._backend.hang_up()
        super().close()


class _Backend(httpcore.NetworkBackend):
    def __init__(self, loopback: bool, resolve: Resolve, until: Until, clock: Callable[[], float]) -> None:
        self._loopback, self._resolve, self._until, self._clock = loopback, resolve, until, clock
        self._sockets = httpcore.SyncBackend()
        self._open: WeakSet[_Stream] = WeakSet()
        self._lock = threading.Lock()

    def note(self, stream: _Stream) -> None:
        """One more that is open."""
        with self._lock:
            self._open.add(stream)

    def hang_up(self) -> None:
        """Whoever waits for bytes is told that there are no more: to close a socket wakes nobody."""
        with self._lock:
            streams = list(self._open)
        for stream in streams:
            found = stream.get_extra_info("socket")
            with suppress(OSError):
                # of the plain socket: TLS would be torn from under the thread that reads
                socket.socket.shutdown(found, socket.SHUT_RDWR)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            numbers = self._resolve(host, port)
        except OSError as error:
            raise httpcore.ConnectError(f"{host} has no address: {error}") from None
        for number in numbers:
            check_number(number, self._loopback, host)
        why: Exception = httpcore.ConnectError(f"{host} has no address")
        for number in numbers:
            try:
                stream = self._sockets.connect_tcp(number, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                why = error
            else:
                return _Stream(stream, self._until, self._clock, self.note)
        raise why


class _Stream(httpcore.NetworkStream):
    def __init__(
        self,
        stream: httpcore.NetworkStream,
        until: Until,
        clock: Callable[[], float],
        note: Callable[[_Stream], None],
    ) -> None:
        self._stream, self._until, self._clock, self._note = stream, until, clock, note
        note(self)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        left = self._until.moment - self._clock()
        if timeout is not None and timeout < left:
            return self._stream.read(max_bytes, timeout)
        with suppress(httpcore.ReadTimeout):
            if left > 0:
                return self._stream.read(max_bytes, left)
        raise httpcore.ReadTimeout("it took longer than its deadline")

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, timeout)
        return _Stream(stream, self._until, self._clock, self._note)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
