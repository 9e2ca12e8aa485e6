"""A server on loopback that breaks off, drips, lies and leads elsewhere, as a script says; and a clock to wait by."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@dataclass(frozen=True)
class Seen:
    """A request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


Answer = Callable[[Seen, socket.socket], None]


def head_of(status: int, headers: Mapping[str, object]) -> bytes:
    lines = [f"HTTP/1.1 {status} as it is", *(f"{k}: {v}" for k, v in headers.items()), "Connection: close", "", ""]
    return "\r\n".join(lines).encode("latin-1")


def reply(body: bytes = b"", status: int = 200, sent: int | None = None, length: bool = True, **more: object) -> Answer:
    """The body, or its first `sent` bytes and then the end; headers by name, `_` for `-`."""

    def answer(seen: Seen, to: socket.socket) -> None:
        told = {"Content-Length": len(body)} if length else {}
        to.sendall(head_of(status, {**told, **{k.replace("_", "-"): v for k, v in more.items()}}))
        if seen.method != "HEAD":
            to.sendall(body[:sent])

    return answer


def reset(body: bytes, sent: int, **more: object) -> Answer:
    """The first `sent` bytes, then a reset."""

    def answer(seen: Seen, to: socket.socket) -> None:
        reply(body, sent=sent, **more)(seen, to)
        # what was sent is read before the reset, which would else take it away
        time.sleep(0.05)
        to.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return answer


def drip(body: bytes, every_s: float, at_once: int = 0, **more: object) -> Answer:
    """A byte at a time, after so many at once."""

    def answer(seen: Seen, to: socket.socket) -> None:
        reply(body, sent=at_once, **more)(seen, to)
        for i in range(at_once, len(body)):
            time.sleep(every_s)
            to.sendall(body[i : i + 1])

    return answer


def honest(body: bytes, etag: str | None = '"1"', **more: object) -> Answer:
    """The file as a good server gives it, ranges and all."""

    def answer(seen: Seen, to: socket.socket) -> None:
        headers = {**({"ETag": etag} if etag else {}), **more}
        asked = re.fullmatch(r"bytes=(\d+)-", seen.headers.get("range", ""))
        known = (etag, more.get("Last_Modified"))
        if asked is None or seen.headers.get("if-range", etag) not in known:
            reply(body, **headers)(seen, to)
        elif (first := int(asked[1])) >= len(body):
            reply(b"", 416, Content_Range=f"bytes */{len(body)}")(seen, to)
        else:
            said = f"bytes {first}-{len(body) - 1}/{len(body)}"
            reply(body[first:], 206, Content_Range=said, **headers)(seen, to)

    return answer


class BadServer:
    """Gives the answers of its script in order, the last for ever."""

    def __init__(self, *script: Answer) -> None:
        self.script: Sequence[Answer] = script
        self.seen: list[Seen] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                to, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(to,), daemon=True).start()

    def _answer(self, to: socket.socket) -> None:
        with to, suppress(OSError), to.makefile("rb") as stream:
            first = stream.readline().decode().split()
            if len(first) != 3:
                return
            headers = {}
            while line := stream.readline().decode().strip():
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            body = stream.read(int(headers.get("content-length", 0)))
            seen = Seen(first[0], first[1], headers, body)
            self.seen.append(seen)
            self.script[min(len(self.seen), len(self.script)) - 1](seen, to)
            with suppress(OSError):
                to.shutdown(socket.SHUT_WR)
