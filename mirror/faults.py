"""What goes wrong between an archive and its client, by seed.

A fault is of the way, never of the archive: what the archive has is never said to be absent (404 is a fact, which a
client may believe), and what it has not is never said to be there.

  every request    busy_429, busy_503 (with Retry-After), error_500, reset (the connection is reset amid the body; of
                   a request that is no GET, once it was obeyed), stall (nothing for `slow_s` seconds, then the rest)
  that succeeds    html (a page for people, with status 200)
  with a body      cut (less than its Content-Length), drip (a byte at a time for `slow_s` seconds, then the rest)
  of a file        redirect_host, redirect_port, redirect_metadata, redirect_file (to where no client should go),
                   redirect_good (to the same file), gzip (packed, with Content-Encoding), mislabelled (said to be
                   packed, but is not)
  of a file with   flip (one bit), zeros (4 kB), cut_silent (less, with no Content-Length to tell it by): none but a
  a digest         digest can tell, so only files that a checksum list beside them names are spoilt so
  of a range       range_ignored (200 and the whole file), range_wrong (206 and another range), range_refused (416),
                   etag (the file is said to be another than it was)
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from skycairn.mirror.tree import quoted
from skycairn.mirror.wire import Reply, Request, Stream, Wire

BUSY = ("busy_429", "busy_503", "error_500")
REDIRECTS = ("redirect_host", "redirect_port", "redirect_metadata", "redirect_file", "redirect_good")
RANGES = ("range_ignored", "range_wrong", "range_refused", "etag")
NEED_DIGEST = ("flip", "zeros", "cut_silent")
ALWAYS = (*BUSY, "reset", "stall")
ALL = (*ALWAYS, "html", "cut", "drip", *REDIRECTS, "gzip", "mislabelled", *NEED_DIGEST, *RANGES)

PAGE = b"<!DOCTYPE html>\n<html><head><title>Log in</title></head><body>The archive is being mended.</body></html>\n"
ZEROED = 4096
DRIPS = 20
"""Single bytes of a drip, and the waits between them."""


@dataclass
class Faults:
    """Faults on a share of the requests, the same ones whenever the same is asked in the same order.

    A request is known by its method, path, query and body; what befalls it follows from `seed` and from how often it
    was made before. After `most_in_a_row` faults, the same request is answered truly once.
    """

    share: float = 0.2
    seed: int = 0
    kinds: Collection[str] = ALL
    most_in_a_row: int = 3
    slow_s: float = 5.0
    retry_after: Sequence[str] = ("0",)
    "one of these is told by busy_429 and busy_503"
    paths: str = "*"
    "of host and path, as in a shell; others are left alone"
    anywhere: bool = False
    "spoil files that no digest is published of, too"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}; wanted a part of the requests, 0 to 1")
        if self.most_in_a_row < 0:
            raise ValueError(f"most_in_a_row is {self.most_in_a_row}; wanted 0 or more")
        if strange := set(self.kinds) - set(ALL):
            raise ValueError(f"there is no fault {sorted(strange)[0]!r}; there are {', '.join(ALL)}")
        if not self.retry_after:
            raise ValueError("retry_after is empty; wanted at least one value to tell")
        self.counts: Counter[str] = Counter()
        "faults by kind"
        self._asked: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def spoil(self, request: Request, truth: Callable[[], Reply], trap: str) -> Wire:
        """How the answer goes out, with at most one fault.

        A request that is no GET and is turned away never reaches its service; one whose reply is lost did.
        """
        if not fnmatchcase(request.host + request.path, self.paths):
            return Wire(truth())
        if request.method not in ("GET", "HEAD"):
            kind, dice = self._choose(request, (*ALWAYS, "html"))
            turned_away = kind in BUSY or kind == "html"
            return self._spoilt(kind, request, Reply() if turned_away else truth(), dice, trap)
        reply = truth()
        kind, dice = self._choose(request, self._possible(request, reply))
        return self._spoilt(kind, request, reply, dice, trap)

    def _choose(self, request: Request, possible: Sequence[str]) -> tuple[str, list[int]]:
        """A fault, or the empty string, and numbers to draw its details from."""
        key = _key(request)
        kinds = [kind for kind in possible if kind in self.kinds]
        with self._lock:
            times, row = self._asked.get(key, (0, 0))
            digest = hashlib.sha256(f"{self.seed} {times} {key}".encode(errors="surrogateescape")).digest()
            dice = [int.from_bytes(digest[k : k + 8]) for k in range(0, 32, 8)]
            wanted = kinds and row < self.most_in_a_row and dice[0] < self.share * 2**64
            kind = kinds[dice[1] % len(kinds)] if wanted else ""
            self._asked[key] = (times + 1, row + 1 if kind else 0)
            if kind:
                self.counts[kind] += 1
        return kind, dice[2:]

    def _possible(self, request: Request, reply: Reply) -> list[str]:
        """Faults that may befall a GET or HEAD with this true answer."""
        possible = list(ALWAYS)
        if reply.status not in (200, 206):
            return possible
        possible.append("html")
        is_file = isinstance(reply.body, Path) and reply.headers.get("Accept-Ranges") == "bytes"
        if is_file:
            possible += REDIRECTS
        if request.method == "HEAD" or not reply.span()[1]:
            return possible
        possible += ("cut", "drip")
        if is_file:
            possible += ("gzip", "mislabelled")
        if isinstance(reply.body, Path) and is_file and (self.anywhere or has_digest(reply.body)):
            possible += NEED_DIGEST
        if is_file and reply.status == 206:
            possible += RANGES
        return possible

    def _spoilt(self, kind: str, request: Request, reply: Reply, dice: Sequence[int], trap: str) -> Wire:
        if not kind:
            return Wire(reply)
        if kind in ("busy_429", "busy_503"):
            later = {"Retry-After": self.retry_after[dice[0] % len(self.retry_after)]}
            return Wire(_words(int(kind[-3:]), "come again later", later), kind)
        if kind == "error_500":
            return Wire(_words(500, "something broke"), kind)
        if kind == "html":
            return Wire(Reply(200, PAGE, {"Content-Type": "text/html; charset=utf-8"}), kind)
        if kind in REDIRECTS:
            return Wire(Reply(302, b"", {"Location": _leads_to(kind, request, trap)}), kind)
        if kind in RANGES:
            return Wire(_other_range(kind, request, reply), kind)
        if kind in ("gzip", "mislabelled"):
            labelled = replace(reply, headers={**reply.headers, "Content-Encoding": "gzip"})
            return Wire(labelled, kind, stream=_packed, length=False) if kind == "gzip" else Wire(labelled, kind)
        n = reply.span()[1]
        if kind in ("reset", "stall") and (request.method == "HEAD" or not n):
            return Wire(Reply(0), kind, end="reset") if kind == "reset" else Wire(reply, kind, before_s=self.slow_s)
        at = dice[0] % n
        streams: dict[str, Stream] = {
            "cut": lambda blocks, _: _first(blocks, at),
            "cut_silent": lambda blocks, _: _first(blocks, at),
            "reset": lambda blocks, _: _first(blocks, at),
            "stall": lambda blocks, _: _slowly(blocks, min(at, 100), 1, self.slow_s),
            "drip": lambda blocks, _: _slowly(blocks, 1, DRIPS, self.slow_s / DRIPS),
            "flip": lambda blocks, _: _changed(blocks, at, 1, lambda old: bytes([old[0] ^ 1 << dice[1] % 8])),
            "zeros": lambda blocks, _: _changed(blocks, at, ZEROED, _zeroed),
        }
        whole = kind in ("stall", "drip", "flip", "zeros")
        end = "keep" if whole else "reset" if kind == "reset" else "close"
        return Wire(reply, kind, stream=streams[kind], length=kind != "cut_silent", end=end)  # type: ignore[arg-type]


def has_digest(path: Path) -> bool:
    """Whether a checksum list beside the file names it."""
    lists = [p for p in path.parent.iterdir() if p.name.lower().endswith(("sum", "sum.txt")) and p != path]
    return any(line.split(maxsplit=1)[-1].lstrip("*./") == path.name for p in lists for line in _lines(p))


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]


def _key(request: Request) -> str:
    # not the headers: a client that takes up where it was cut off asks the same again
    query = sorted((k, list(v)) for k, v in request.query.items() if k != "moved")
    return f"{request.method} {request.host}{request.path} {query} {hashlib.sha256(request.body).hexdigest()}"


def _leads_to(kind: str, request: Request, trap: str) -> str:
    path = f"/{request.host}{quoted(request.path)}"
    return {
        "redirect_host": trap.replace("127.0.0.1", "localhost") + path,
        "redirect_port": trap + path,
        "redirect_metadata": "http://169.254.169.254/latest/meta-data/",
        "redirect_file": "file:///etc/hostname",
        "redirect_good": f"{request.base}{quoted(request.path)}?moved=1",
    }[kind]


def _other_range(kind: str, request: Request, reply: Reply) -> Reply:
    first, n = reply.span()
    size = int(reply.headers["Content-Range"].rpartition("/")[2])
    headers = {name: value for name, value in reply.headers.items() if name != "Content-Range"}
    whole = Reply(200, reply.body, headers, (0, size))
    if kind == "range_ignored":
        return whole
    if kind == "range_refused":
        return Reply(416, b"no such range\n", {"Content-Range": f"bytes */{size}"})
    if kind == "range_wrong":
        # from the beginning, or from the second byte where the beginning is what was asked for
        start, n = (0, n) if first else (1, size - 1)
        headers["Content-Range"] = f"bytes {start}-{start + n - 1}/{size}"
        return Reply(206, reply.body, headers, (start, n))
    other = {"ETag": f'"other-{headers["ETag"].strip(chr(34))}"'}
    if "if-range" in request.headers:
        return replace(whole, headers={**headers, **other})
    return replace(reply, headers={**reply.headers, **other})


def _first(blocks: Iterator[bytes], n: int) -> Iterator[bytes]:
    for block in blocks:
        if not n:
            return
        yield block[:n]
        n -= len(block[:n])


def _slowly(blocks: Iterator[bytes], n: int, times: int, wait_s: float) -> Iterator[bytes | float]:
    """`times` pieces of `n` bytes with a wait after each, then the rest at once."""
    for block in blocks:
        while times and block:
            yield block[:n]
            yield float(wait_s)
            block, times = block[n:], times - 1
        yield block


def _changed(blocks: Iterator[bytes], at: int, n: int, change: Callable[[bytes], bytes]) -> Iterator[bytes]:
    """The bytes from `at`, `n` of them at most, changed."""
    for block in blocks:
        a, b = max(at, 0), min(at + n, len(block))
        yield block[:a] + change(block[a:b]) + block[b:] if a < b else block
        at -= len(block)
        if at < 0:
            at, n = 0, max(0, at + n)


def _zeroed(old: bytes) -> bytes:
    return bytes(len(old)) if any(old) else b"\xff" * len(old)


def _packed(blocks: Iterator[bytes], _: int) -> Iterator[bytes]:
    packer = zlib.compressobj(1, wbits=31)
    for block in blocks:
        if packed := packer.compress(block):
            yield packed
    yield packer.flush()


def _words(status: int, text: str, headers: dict[str, str] | None = None) -> Reply:
    return Reply(status, f"{text}\n".encode(), {"Content-Type": "text/plain", **(headers or {})})
