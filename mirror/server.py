"""The archives on loopback: a sky's files under the archives' own addresses, and services beside them."""

from __future__ import annotations

import base64
import hmac
import re
import socket
import socketserver
import sys
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import BinaryIO, Protocol, Self
from urllib.parse import parse_qs, unquote, urlsplit

from skycairn.mirror.tree import as_asked, reply_of
from skycairn.mirror.wire import Malformed, Reply, Request, Wire, read_head, send

__all__ = ["Asked", "Mirror", "Reply", "Request", "Requests", "Service", "Spoiler"]

Service = Callable[[Request], Reply | None]
"""A service of one host; None where the path is not its own. Several threads may ask it at once."""

HIDDEN = {"authorization", "proxy-authorization", "cookie"}
REMEMBERED = 10_000
"""Requests in the log."""
PATIENCE_S = 5.0
"""How long a mirror that ends waits for its connections to do so."""


class Spoiler(Protocol):
    """What may come between a request and its true answer; see `skycairn.mirror.faults`."""

    def spoil(self, request: Request, truth: Callable[[], Reply], trap: str) -> Wire:
        """How the answer goes out. `trap` is an address that no client should follow a redirect to."""


@dataclass(frozen=True)
class Asked:
    """One request in the log."""

    method: str
    host: str
    path: str
    headers: Mapping[str, str]
    "names in lower case; the values of those that hold secrets are left out"
    status: int
    "0: nothing was said at all"
    fault: str = ""


class Requests:
    """How often the mirror was asked."""

    def __init__(self) -> None:
        self.total = 0
        self.by_host: Counter[str] = Counter()
        self.by_status: Counter[int] = Counter()
        self.by_fault: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, asked: Asked) -> None:
        """Count one more."""
        with self._lock:
            self.total += 1
            self.by_host[asked.host] += 1
            self.by_status[asked.status] += 1
            if asked.fault:
                self.by_fault[asked.fault] += 1


class _Listener(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, port: int, serve: Callable[[socket.socket], None]) -> None:
        self.serve = serve
        super().__init__(("127.0.0.1", port), _Connection)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join()
        self.server_close()


class _Connection(socketserver.BaseRequestHandler):
    server: _Listener

    def handle(self) -> None:
        self.server.serve(self.request)


class Mirror:
    """Serves folders and services by host; http://127.0.0.1:port/<host>/<path as of the archive>.

    A service answers before a file does, and asks for accounts itself where it wants one.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        services: Mapping[str, Sequence[Service]] | None = None,
        faults: Spoiler | None = None,
        accounts: Mapping[str, tuple[str, str]] | None = None,
        port: int = 0,
    ) -> None:
        """`folders`: by `host/path` of a tree's root, where its files lie; `services`: by host.

        `accounts`: user and password by host whose files want them. `port`: 0 for any that is free.
        """
        self.folders = {k.strip("/"): v for k, v in folders.items()}
        self.services = dict(services or {})
        self.faults = faults
        "may be exchanged while the mirror runs"
        self.accounts = dict(accounts or {})
        self.requests = Requests()
        self.log: deque[Asked] = deque(maxlen=REMEMBERED)
        self.trapped: list[Asked] = []
        "requests of clients that followed a redirect to where they should not"
        self._open: set[socket.socket] = set()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._server = _Listener(port, lambda s: self._serve(s, self._answer))
        self._trap = _Listener(0, lambda s: self._serve(s, self._into_trap))

    @property
    def url(self) -> str:
        """Address of the mirror, without a slash at its end."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def of(self, url: str) -> str:
        """Where this mirror serves what the archive serves at `url`."""
        parts = urlsplit(url)
        return f"{self.url}/{parts.netloc}{parts.path}"

    def start(self) -> None:
        """Serve, till `stop`."""
        self._server.start()
        self._trap.start()

    def stop(self) -> None:
        """Serve no more; connections that are still open are cut."""
        self._stopping.set()
        self._server.stop()
        self._trap.stop()
        with self._changed:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:  # the client went first
                    pass
            self._changed.wait_for(lambda: not self._open, PATIENCE_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def reply(self, request: Request) -> Reply:
        """The true answer."""
        for service in self.services.get(request.host, ()):
            if (found := service(request)) is not None:
                return as_asked(request, found)
        return self._file(request)

    def _file(self, request: Request) -> Reply:
        full = PurePosixPath(request.host + request.path)
        if ".." in full.parts or "\0" in request.path:
            return _words(400, f"{request.path!r} leads out of the archive")
        if not self._may_read(request):
            wanted = {"WWW-Authenticate": f'Basic realm="{request.host}", charset="UTF-8"'}
            return _words(401, f"{request.host} wants an account", wanted)
        for root in sorted(self.folders, key=len, reverse=True):
            if full.is_relative_to(root):
                found = reply_of(self.folders[root], full.relative_to(root), request)
                if found is not None and request.method not in ("GET", "HEAD"):
                    return _words(405, f"a file takes no {request.method}", {"Allow": "GET, HEAD"})
                if found is not None:
                    return as_asked(request, found)
        return _words(404, "not found")

    def _may_read(self, request: Request) -> bool:
        if (account := self.accounts.get(request.host)) is None:
            return True
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        wanted = base64.b64encode(":".join(account).encode()).decode()
        return kind.lower() == "basic" and hmac.compare_digest(given.strip().encode(), wanted.encode())

    def _serve(self, connection: socket.socket, answer: Callable[[Request], Wire]) -> None:
        """All requests of one connection."""
        with self._changed:
            self._open.add(connection)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection.makefile("rb") as stream:
                while not self._stopping.is_set() and self._one(connection, stream, answer):
                    pass
            # by hand: closing a socket that still has a reader closes nothing, and the reset would not go out
            connection.close()
        except OSError:  # the client is gone
            pass
        finally:
            with self._changed:
                self._open.discard(connection)
                self._changed.notify_all()

    def _one(self, connection: socket.socket, stream: BinaryIO, answer: Callable[[Request], Wire]) -> bool:
        """Answer the next request; whether there may be another."""
        try:
            head = read_head(stream)
        except Malformed as error:
            status, what = error.args
            return send(connection, Wire(_words(status, what)), head_only=False, keep=False, wait=self._stopping.wait)
        if head is None:
            return False
        if head.headers.get("expect", "").lower() == "100-continue":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = stream.read(head.n_body) if head.n_body else b""
        if len(body) < head.n_body:
            return False
        # a server takes whole addresses too (RFC 9112, 3.2.2); whose they name is not asked
        path, _, query = re.sub(r"^https?://[^/?]*", "", head.target, flags=re.IGNORECASE).partition("?")
        host, _, path = path.lstrip("/").partition("/")
        # names on disk need not be UTF-8
        host, path = (unquote(text, errors="surrogateescape") for text in (host, "/" + path))
        request = Request(head.method, host, path, parse_qs(query), head.headers, body, f"{self.url}/{host}")
        wire = answer(request)
        try:
            return send(connection, wire, head_only=head.method == "HEAD", keep=head.keep, wait=self._stopping.wait)
        except (ValueError, FileNotFoundError, PermissionError):
            traceback.print_exc(file=sys.stderr)
            return False

    def _answer(self, request: Request) -> Wire:
        try:
            faults = self.faults
            if faults is None:
                wire = Wire(self.reply(request))
            else:
                wire = faults.spoil(request, lambda: self.reply(request), self._trap_url)
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            wire = Wire(_words(500, f"the mirror's service failed: {type(error).__name__}: {error}"))
        asked = _logged(request, wire)
        self.requests.add(asked)
        self.log.append(asked)
        return wire

    @property
    def _trap_url(self) -> str:
        return f"http://127.0.0.1:{self._trap.server_address[1]}"

    def _into_trap(self, request: Request) -> Wire:
        wire = Wire(_words(200, "no client should have come here"))
        self.trapped.append(_logged(request, wire))
        return wire


def _logged(request: Request, wire: Wire) -> Asked:
    headers = {name: "(left out)" if name in HIDDEN else value for name, value in request.headers.items()}
    return Asked(request.method, request.host, request.path, headers, wire.reply.status, wire.fault)


def _words(status: int, text: str, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, f"{text}\n".encode(errors="replace"), {"Content-Type": "text/plain", **(headers or {})})
