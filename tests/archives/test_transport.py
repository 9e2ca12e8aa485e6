"""Connections: kept where they may be, given up where a reply cannot be read."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from skycairn.archives.client import Client
from skycairn.archives.errors import Busy
from skycairn.archives.hosts import HostLimits

BODY = b"0123456789"
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n" + BODY
ONCE = HostLimits(tries=1, requests_per_second=1e4, read_s=5.0)


@contextmanager
def server(answer: Callable[[int, int, socket.socket], bool]) -> Iterator[str]:
    """`answer` is told the number of the connection, that of the request on it, and where to; True keeps it open."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def serve(number: int, to: socket.socket) -> None:
        with to, suppress(OSError):
            for asked in range(100):
                head = b""
                while b"\r\n\r\n" not in head:
                    if not (block := to.recv(4096)):
                        return
                    head += block
                if not answer(number, asked, to):
                    return

    def accept() -> None:
        with suppress(OSError):
            while True:
                to, _ = listener.accept()
                threads.append(threading.Thread(target=serve, args=(len(threads), to)))
                threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/f"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for thread in threads:
            thread.join()


def asked(reply: bytes, again: bytes = WHOLE, keep: bool = True) -> list[tuple[int, int]]:
    """Connection and request by which each of two files was asked for, where the first gets this reply."""
    seen: list[tuple[int, int]] = []

    def answer(number: int, request: int, to: socket.socket) -> bool:
        seen.append((number, request))
        to.sendall(reply if len(seen) == 1 else again)
        return keep

    with server(answer) as url, Client({"127.0.0.1": ONCE}, loopback=True) as client:
        for _ in range(2):
            assert client.read(url) == BODY
    return seen


@pytest.mark.parametrize(
    "reply",
    [WHOLE, b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE,
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n0123\r\n6;x=1\r\n456789\r\n0\r\nX: y\r\n\r\n"],
    ids=["length", "continue", "chunks"],
)  # fmt: skip
def test_a_connection_is_used_again(reply: bytes) -> None:
    assert asked(reply) == [(0, 0), (0, 1)]


@pytest.mark.parametrize(
    "reply",
    [WHOLE.replace(b"Content", b"Connection: close\r\nContent"), WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0")],
    ids=["close", "1.0"],
)
def test_a_connection_that_is_to_end_is_not(reply: bytes) -> None:
    assert asked(reply) == [(0, 0), (1, 0)]


def test_a_connection_that_the_host_closed_meanwhile_is_not() -> None:
    assert asked(WHOLE, keep=False) == [(0, 0), (1, 0)]


def test_a_connection_is_not_kept_for_ever() -> None:
    seen: list[int] = []
    now = [1000.0]

    def answer(number: int, request: int, to: socket.socket) -> bool:
        seen.append(number)
        to.sendall(WHOLE)
        return True

    with server(answer) as url, Client({"127.0.0.1": ONCE}, loopback=True, clock=lambda: now[0]) as client:
        for _ in range(3):
            assert client.read(url) == BODY
            now[0] += 10.0 * len(seen)
    assert seen == [0, 0, 1]


@pytest.mark.parametrize(
    "reply",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Le", b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00", WHOLE[:-1],
     b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nContent-Length: 9\r\n\r\n" + BODY,
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n4\r\n0123\r\n0\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 10\r\n\r\n" + BODY,
     b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
     b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n0123\r\n0\r\n\r\n"],
    ids=["nothing", "half", "other", "tls", "short", "lengths", "coding", "line", "many", "long", "chunk"],
)  # fmt: skip
def test_a_reply_that_cannot_be_read_says_nothing_of_the_file(reply: bytes) -> None:
    def answer(number: int, request: int, to: socket.socket) -> bool:
        to.sendall(reply)
        return False

    with server(answer) as url, Client({"127.0.0.1": ONCE}, loopback=True) as client:
        with pytest.raises(Busy, match=r"one try \(R(emoteProtocol|ead)Error"):
            client.read(url)


def test_what_waits_for_a_host_is_told_when_the_client_is_closed() -> None:
    waiting, told = threading.Event(), list[str]()

    def answer(number: int, request: int, to: socket.socket) -> bool:
        to.sendall(WHOLE[:-1])
        waiting.set()
        return True

    def ask() -> None:
        with pytest.raises(Busy) as error:
            client.read(url)
        told.append(str(error.value))

    with server(answer) as url, Client({"127.0.0.1": ONCE}, loopback=True) as client:
        thread = threading.Thread(target=ask)
        thread.start()
        waiting.wait(10)
        client.close()
        thread.join(10)
    assert len(told) == 1
