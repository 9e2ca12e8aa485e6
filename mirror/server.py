"""The archives on loopback: a sky's files under the archives' own addresses, and services beside them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True)
class Request:
    """What a client asks."""

    method: str
    host: str
    "the archive that is meant: the first part of the path"
    path: str
    "decoded, with a leading slash, below the host"
    query: Mapping[str, Sequence[str]]
    headers: Mapping[str, str]
    "names in lower case"
    body: bytes = b""
    base: str = ""
    "address of this host on the mirror, for links in replies: http://127.0.0.1:port/host"


@dataclass(frozen=True)
class Reply:
    """What it is told."""

    status: int = 200
    body: bytes | Path = b""
    headers: Mapping[str, str] = field(default_factory=dict)


Service = Callable[[Request], Reply | None]
"""A service of one host; None where the path is not its own."""


class Mirror:
    """Serves folders and services by host; http://127.0.0.1:port/<host>/<path as of the archive>."""

    def __init__(self, folders: Mapping[str, Path], services: Mapping[str, Sequence[Service]] | None = None) -> None:
        """`folders`: by `host/path` of a tree's root, where its files lie; `services`: by host."""
        self.folders = {k.strip("/"): v for k, v in folders.items()}
        self.services = dict(services or {})
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                mirror._answer(self)

            do_GET = do_HEAD = do_POST = do_DELETE = _any

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """Address of the mirror, without a slash at its end."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def of(self, url: str) -> str:
        """Where this mirror serves what the archive serves at `url`."""
        parts = urlsplit(url)
        return f"{self.url}/{parts.netloc}{parts.path}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reply(self, request: Request) -> Reply:
        """The true answer."""
        for service in self.services.get(request.host, ()):
            if (found := service(request)) is not None:
                return found
        return self._file(request)

    def _file(self, request: Request) -> Reply:
        full = PurePosixPath(request.host + request.path)
        if ".." in full.parts:
            return Reply(400, b"")
        for root, folder in self.folders.items():
            if full.is_relative_to(root):
                path = folder / full.relative_to(root)
                if path.is_file():
                    return _whole(path)
        return Reply(404, b"not found\n")

    def _answer(self, to: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(to.path)
        host, _, rest = unquote(parts.path).lstrip("/").partition("/")
        body = to.rfile.read(int(to.headers.get("Content-Length") or 0))
        headers = {k.lower(): v for k, v in to.headers.items()}
        base = f"{self.url}/{host}"
        request = Request(to.command, host, "/" + rest, parse_qs(parts.query), headers, body, base)
        reply = self.reply(request)
        content = reply.body.read_bytes() if isinstance(reply.body, Path) else reply.body
        to.send_response(reply.status)
        for name, value in reply.headers.items():
            to.send_header(name, value)
        to.send_header("Content-Length", str(len(content)))
        to.end_headers()
        if to.command != "HEAD":
            to.wfile.write(content)


def _whole(path: Path) -> Reply:
    stat = path.stat()
    etag = hashlib.sha256(f"{path} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    headers = {
        "Content-Type": "application/octet-stream",
        "ETag": f'"{etag}"',
        "Last-Modified": formatdate(stat.st_mtime, usegmt=True),
        "Accept-Ranges": "bytes",
    }
    return Reply(200, path, headers)
