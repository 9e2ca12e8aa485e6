"""HTTP/1.1 on a socket: what is asked, what is told, and how it goes out."""

from __future__ import annotations

import io
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO, Literal

LONGEST_LINE = 1 << 16
MOST_HEADERS = 200
LARGEST_QUESTION = 1 << 28
"""Bytes of a request's body; a table that is sent along with a query is far below."""
BLOCK = 1 << 18
SMALL = 1 << 17
"""Bodies up to this many bytes go out in one piece with their headers."""
MORE = getattr(socket, "MSG_MORE", 0)


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
    "0: nothing is said at all"
    body: bytes | Path = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    part: tuple[int, int] | None = None
    "first byte and number of bytes of the body that are sent; None: all of it"

    def span(self) -> tuple[int, int]:
        """First byte and number of bytes of the body that are sent."""
        return self.part or (0, self.body.stat().st_size if isinstance(self.body, Path) else len(self.body))


Stream = Callable[[Iterator[bytes], int], Iterator[bytes | float]]
"""From the blocks of a body and their bytes in all to what is sent instead; a float is a wait in seconds."""


@dataclass(frozen=True)
class Wire:
    """How a reply goes out; the defaults are the honest way."""

    reply: Reply
    fault: str = ""
    "name of what is wrong with it"
    before_s: float = 0.0
    "a wait before the status line"
    stream: Stream | None = None
    length: bool = True
    "whether the length of the body is told; without it, the body ends where the connection does"
    end: Literal["keep", "close", "reset"] = "keep"


@dataclass(frozen=True)
class Head:
    """All of a request but its body."""

    method: str
    target: str
    headers: Mapping[str, str]
    keep: bool
    "whether the client wants to ask again on the same connection"
    n_body: int


class Malformed(Exception):
    """A request that is none; its arguments are the status and what is wrong."""


def read_head(stream: BinaryIO) -> Head | None:
    """The next request on a connection, None where it has ended; Malformed with what was wrong."""
    line = stream.readline(LONGEST_LINE)
    if line in (b"\r\n", b"\n"):  # some clients end a body with an empty line too many
        line = stream.readline(LONGEST_LINE)
    if not line:
        return None
    words = line.decode("latin-1").split()
    if len(words) != 3 or not line.endswith(b"\n") or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise Malformed(400, f"the request begins {line[:60]!r}; wanted `METHOD /path HTTP/1.1`")
    headers: dict[str, str] = {}
    for _ in range(MOST_HEADERS):
        line = stream.readline(LONGEST_LINE)
        if line in (b"\r\n", b"\n"):
            break
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon or not name or name != name.strip() or not line.endswith(b"\n"):
            raise Malformed(400, f"a header is {line[:60]!r}; wanted `Name: value`")
        name, value = name.lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    else:
        raise Malformed(431, f"more than {MOST_HEADERS} headers")
    if "transfer-encoding" in headers:
        raise Malformed(411, "the body comes in chunks; wanted a Content-Length")
    told = headers.get("content-length", "0")
    if not (told.isascii() and told.isdigit()):
        raise Malformed(400, f"Content-Length is {told!r}; wanted a number of bytes")
    if int(told) > LARGEST_QUESTION:
        raise Malformed(413, f"the body has {told} bytes; at most {LARGEST_QUESTION} are read")
    asked = headers.get("connection", "").lower()
    keep = asked != "close" if words[2] == "HTTP/1.1" else asked == "keep-alive"
    return Head(words[0], words[1], headers, keep, int(told))


def send(
    connection: socket.socket, wire: Wire, *, head_only: bool, keep: bool, wait: Callable[[float], object]
) -> bool:
    """Send the reply; whether the connection may carry another request. OSError where the client is gone."""
    reply = wire.reply
    if wire.before_s:
        wait(wire.before_s)
    if reply.status:
        keep = _send(connection, wire, head_only, keep and wire.length, wait) and keep and wire.length
    if wire.end == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return keep and wire.end == "keep" and bool(reply.status)


def _send(connection: socket.socket, wire: Wire, head_only: bool, keep: bool, wait: Callable[[float], object]) -> bool:
    """Whether all of the body went out that was told."""
    reply = wire.reply
    with _opened(reply) as (source, first, n):
        bodiless = reply.status in (204, 304)
        lines = [f"HTTP/1.1 {reply.status} {_phrase(reply.status)}", f"Date: {formatdate(usegmt=True)}"]
        lines += [f"{name}: {_one_line(value)}" for name, value in reply.headers.items()]
        if wire.length and not bodiless:
            lines.append(f"Content-Length: {n}")
        if not keep:
            lines.append("Connection: close")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        if head_only or bodiless or not n:
            connection.sendall(head)
            return True
        if wire.stream is not None:
            connection.sendall(head)
            sent = 0
            for item in wire.stream(_blocks(source, first, n), n):
                if isinstance(item, float):
                    wait(item)
                else:
                    connection.sendall(item)
                    sent += len(item)
            return sent == n
        if n <= SMALL or isinstance(source, io.BytesIO):
            source.seek(first)
            body = source.read(n)
            connection.sendall(head + body)
            return len(body) == n
        connection.sendall(head, MORE)
        return connection.sendfile(source, first, n) == n


@contextmanager
def _opened(reply: Reply) -> Iterator[tuple[BinaryIO, int, int]]:
    first, n = reply.span()
    if isinstance(reply.body, Path):
        with reply.body.open("rb", buffering=0) as file:
            # a file that grew or shrank since it was looked at must not have a length that it does not have
            yield file, first, max(0, min(n, os.fstat(file.fileno()).st_size - first))
    else:
        yield io.BytesIO(reply.body), first, n


def _blocks(source: BinaryIO, first: int, n: int) -> Iterator[bytes]:
    source.seek(first)
    while n and (block := source.read(min(n, BLOCK))):
        n -= len(block)
        yield block


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def _one_line(value: str) -> str:
    if "\r" in value or "\n" in value:
        raise ValueError(f"a header's value is {value[:60]!r}; wanted one line")
    return value
