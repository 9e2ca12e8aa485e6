"""Asks the archives over HTTP, politely and with suspicion: what it puts into place was seen to be whole.

A server may break off, drip, lie about ranges, answer with a page for people, or lead elsewhere; each of these is
noticed, tried again where that may help, and else an error of `skycairn.archives.errors`. Errors hold no query, no
password and no header that was sent.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from json import dumps, loads
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlencode

import httpx

from skycairn.archives.address import (
    LOOPBACK,
    GuardedTransport,
    Resolve,
    Until,
    address,
    check_allowed,
    place,
    resolve,
    shown,
)
from skycairn.archives.errors import Busy, ChecksumMismatch, FetchError, NotPublished, Refused, Unreachable, Unsafe
from skycairn.archives.files import DIGEST_LENGTH
from skycairn.archives.gate import Gate
from skycairn.archives.hosts import HOSTS, MIRROR, HostLimits
from skycairn.archives.partial import Partial, Version
from skycairn.archives.structure import SNIFF, html_page

MOST_REDIRECTS = 5
MOST_BYTES = 16 << 20
"""Of a reply that is held in memory, unless it is said otherwise."""
LEADS_ELSEWHERE = (301, 302, 303, 307, 308)
CONNECT_TRIES = 2
"""Of a host that never answered and to which no connection is made: no name service, no network, nobody there."""
CONNECT_PAUSE_S = 2.0
SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie"})

T = TypeVar("T")


@dataclass(frozen=True)
class Got:
    """A file that was downloaded."""

    url: str
    sha256: str
    size: int
    etag: str | None
    last_modified: str | None
    verified: bool
    "held against a digest that the archive publishes"
    requests: int
    "that it took, redirects and further tries counted"


@dataclass(frozen=True)
class Head:
    """What an archive says of a file without sending it."""

    size: int | None
    etag: str | None
    last_modified: str | None


@dataclass(frozen=True)
class Answer:
    """What a service says."""

    url: str
    "where it was said: after redirects, with the query"
    status: int
    headers: Mapping[str, str]
    "names in lower case"
    content: bytes

    def json(self) -> Any:
        """The content, read as JSON; FetchError where it is none."""
        try:
            return loads(self.content)
        except (ValueError, RecursionError):
            found = html_page(self.content[:SNIFF]) or f"{self.content[:40]!r}"
            raise FetchError(f"{shown(httpx.URL(self.url))}: answered with {found}, wanted JSON") from None


class _Failed(Exception):
    """A try that came to nothing; another may do better."""

    def __init__(
        self, why: str, *, ill: bool = True, slow_down: bool = False, sent: bool = True, host: str = ""
    ) -> None:
        super().__init__(why)
        self.why = why
        self.ill = ill
        "whether it says that the host is not well"
        self.slow_down = slow_down
        "whether the host wants less to be asked, by whomever"
        self.sent = sent
        "whether the host may have got the request"
        self.host = host
        "to which no connection was made, if that is what failed"


class _Wrong(Exception):
    """The bytes came whole, and are not the file."""


@dataclass
class _Call:
    """One thing that is asked, over all tries."""

    method: str
    url: httpx.URL
    allowed: Collection[str]
    headers: dict[str, str]
    auth: dict[str, str]
    content: bytes | None
    n_requests: int = 0

    @property
    def shown(self) -> str:
        return shown(self.url)


class Client:
    """Shared by the threads of one process; each host's limits hold for all of them together."""

    def __init__(
        self,
        limits: Mapping[str, HostLimits] = HOSTS,
        *,
        contact: str = "",
        loopback: bool = False,
        transport: httpx.BaseTransport | None = None,
        resolve: Resolve = resolve,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], object] | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Only hosts of `limits` (by `host`, or `host:port`) are asked, unless a call names others.

        With `loopback` 127.0.0.1 alone is connected to, at any port, whatever a host's name resolves to; without it
        only the public internet is. `contact`, a mail address or a page, goes into the User-Agent. `transport` stands
        for the network, and its checks of addresses; `chance` gives numbers of [0, 1).
        """
        if not contact.isprintable() or not contact.isascii():
            raise ValueError(f"contact {contact!r}: wanted printable ASCII, as a mail address or a page's address is")
        self._limits, self._loopback = dict(limits), loopback
        self._clock, self._wall_clock, self._chance = clock, wall_clock, chance
        self._closed = threading.Event()
        self._sleep = sleep or self._closed.wait
        self._until = Until()
        self._transport = transport or GuardedTransport(loopback, resolve, self._until, clock)
        self._agent = f"skycairn/{_version()}{f' ({contact})' if contact else ''}"
        self._gates: dict[str, Gate] = {}
        self._lock = threading.Lock()
        self._counted: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End what other threads have under way, too: each gets Busy at its next byte, or from its sleep."""
        self._closed.set()
        self._transport.close()

    def counts(self) -> Counter[str]:
        """How many `requests` were made, redirects and further tries among them."""
        with self._lock:
            return Counter(self._counted)

    def _count(self, what: str) -> None:
        with self._lock:
            self._counted[what] += 1

    def download(
        self,
        url: str,
        into: Path,
        *,
        size: int | None = None,
        digest: str | None = None,
        check: Callable[[Path], None] | None = None,
        proves_whole: bool = True,
        reserve: Callable[[int], object] | None = None,
        json: Any = None,
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        auth: Mapping[str, str] | None = None,
        allowed_hosts: Collection[str] | None = None,
    ) -> Got:
        """Fetch a file, whole, to `into`, which is written last of all and only then.

        `size` in bytes and `digest` (hex of MD5, SHA-1 or SHA-256, told by its length) are what the archive publishes;
        `check` raises ChecksumMismatch or ValueError where the file is not what it should be; unless it `proves_whole`,
        a reply that tells no length is not believed. `reserve` is told, before
        they come, how many bytes will, and may raise a FetchError. What came of it stays in `<into>.part` and is gone
        on with by the next call, if the archive's file is still the same.

        `auth` are headers that are sent to the host of `url` alone, and never unencrypted. With `json` or `form` the
        file is the reply to a POST, which must be one that may be repeated.

        NotPublished (404, 410), Refused (401, 403), Unsafe, and Busy out of tries; ChecksumMismatch where the bytes
        were wrong twice. A page for people in place of the file is Busy: a server that is being seen to sends these,
        and says nothing about the file.
        """
        algorithm = _algorithm(digest)
        call = self._call("GET", url, headers, auth, allowed_hosts, json, form)
        limits = self._limits_of(call.url)
        checked = size is not None or digest is not None or (check is not None and proves_whole)
        with Partial(into, str(call.url), frozenset({algorithm})) as part:
            if call.content is not None:
                part.restart(None)

            def once() -> None:
                try:
                    self._transfer(call, part, size, checked, digest is not None, reserve)
                    found = part.digest(algorithm)
                    if digest is not None and found != digest.lower():
                        raise _Wrong(
                            f"its {algorithm} is {found[:12]}.., the archive publishes {digest.lower()[:12]}.."
                        )
                    if check is not None:
                        _check(check, part.path)
                except (_Wrong, NotPublished, ChecksumMismatch):
                    part.restart(None)
                    raise

            self._persist(call, limits, once)
            seen = part.version or Version(url)
            sha256, n_bytes = part.digest("sha256"), part.n_bytes
            part.publish()
        return Got(url, sha256, n_bytes, seen.etag, seen.last_modified, digest is not None, call.n_requests)

    def head(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        auth: Mapping[str, str] | None = None,
        allowed_hosts: Collection[str] | None = None,
    ) -> Head | None:
        """What the archive says of a file; None where it has none. A server that knows no HEAD is sent a GET."""
        call = self._call("HEAD", url, headers, auth, allowed_hosts)

        def once() -> Head | None:
            with self._ask(call, {}) as reply:
                if reply.status_code in (405, 501) and call.method == "HEAD":
                    call.method = "GET"
                elif reply.status_code in (404, 410):
                    return None
                elif reply.status_code != 200:
                    raise self._refusal(call, reply)
                else:
                    size = _length(reply) if _packing(reply) == "identity" else None
                    return Head(size, reply.headers.get("etag"), reply.headers.get("last-modified"))
            return once()

        return self._persist(call, self._limits_of(call.url), once)

    def read(
        self,
        url: str,
        *,
        most_bytes: int = MOST_BYTES,
        pages: bool = False,
        headers: Mapping[str, str] | None = None,
        auth: Mapping[str, str] | None = None,
        allowed_hosts: Collection[str] | None = None,
    ) -> bytes:
        """A small file, such as a checksum list. Errors as of `download`; a page for people is Busy unless `pages`.

        FetchError where it has more than `most_bytes`, or comes without a length: a short list looks like a whole one.
        """
        call = self._call("GET", url, headers, auth, allowed_hosts)

        def once() -> bytes:
            with self._ask(call, {}) as reply:
                if reply.status_code != 200:
                    raise self._refusal(call, reply)
                _refuse_packed(reply)
                if _length(reply) is None and "transfer-encoding" not in reply.headers:
                    raise FetchError(f"{call.shown}: comes without its length; nothing tells whether it is whole")
                content = self._content(call, reply, most_bytes)
                if not pages and (page := html_page(content[:SNIFF])):
                    raise _Failed(page)
                return content

        return self._persist(call, self._limits_of(call.url), once)

    def send(
        self,
        method: str,
        url: str,
        *,
        json: Any = None,
        form: Mapping[str, str] | None = None,
        again: bool | None = None,
        most_bytes: int = MOST_BYTES,
        headers: Mapping[str, str] | None = None,
        auth: Mapping[str, str] | None = None,
        allowed_hosts: Collection[str] | None = None,
    ) -> Answer:
        """Ask a service. What it says is the caller's to judge, a refusal of what was asked (400, 406, ..) too, and
        whether it is whole where it comes without a length.

        `again`: whether the request may be sent twice; by itself only GET and HEAD are, and what never was sent.
        NotPublished for 404 and 410, Refused for 401 and 403, Busy for 408, 425, 429 and 5xx.
        """
        call = self._call(method, url, headers, auth, allowed_hosts, json, form)

        def once() -> Answer:
            with self._ask(call, {}) as reply:
                if reply.status_code in (401, 403, 404, 407, 410):
                    raise self._refusal(call, reply)
                _refuse_packed(reply)
                content = self._content(call, reply, most_bytes)
                told = {k.lower(): v for k, v in reply.headers.items()}
                return Answer(str(reply.extensions["skycairn_url"]), reply.status_code, told, content)

        may = method in ("GET", "HEAD") if again is None else again
        return self._persist(call, self._limits_of(call.url), once, may)

    def post_json(self, url: str, body: Any, **more: Any) -> Any:
        """Send JSON, and read JSON: `send` with POST. FetchError where the service refuses, or answers otherwise."""
        answer = self.send("POST", url, json=body, **more)
        if answer.status != 200:
            raise FetchError(f"{shown(httpx.URL(answer.url))}: answered {answer.status}, wanted 200")
        return answer.json()

    # What follows is one try, from the inside out.

    def _call(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        auth: Mapping[str, str] | None,
        allowed_hosts: Collection[str] | None,
        json: Any = None,
        form: Mapping[str, str] | None = None,
    ) -> _Call:
        where = address(url)
        plain = _printable(headers)
        secret = _printable(auth) | {k: v for k, v in plain.items() if k in SECRET_HEADERS}
        plain = {k: v for k, v in plain.items() if k not in secret}
        content = None
        if json is not None or form is not None:
            if json is not None and form is not None:
                raise ValueError(f"{shown(where)}: both json and form were given; wanted one of them")
            method = "POST" if method == "GET" else method
            content = dumps(json).encode() if json is not None else urlencode(form or {}).encode()
            kind = "application/json" if json is not None else "application/x-www-form-urlencoded"
            plain["content-type"] = kind
        allowed = frozenset(self._allowed_from(where) if allowed_hosts is None else allowed_hosts)
        return _Call(method, where, allowed, plain, secret, content)

    def _allowed_from(self, where: httpx.URL) -> set[str]:
        home = place(where)
        if home in self._limits or (self._loopback and where.host == LOOPBACK):
            return {home, *self._limits_of(where).redirects}
        return set(self._limits)

    def _limits_of(self, url: httpx.URL) -> HostLimits:
        usual = MIRROR if url.host == LOOPBACK else HostLimits()
        return self._limits.get(place(url)) or self._limits.get(url.host) or usual

    def _gate(self, url: httpx.URL) -> Gate:
        with self._lock:
            if (found := self._gates.get(place(url))) is None:
                found = Gate(place(url), self._limits_of(url), self._clock, self._wall_clock, self.nap)
                self._gates[place(url)] = found
        return found

    def nap(self, seconds: float) -> None:
        """Wait; Busy where the client is closed meanwhile."""
        self._sleep(seconds)
        self._stop_if_closed()

    def _stop_if_closed(self) -> None:
        if self._closed.is_set():
            raise Busy("the client was closed while it was asking; build again")

    @contextmanager
    def _ask(self, call: _Call, more: Mapping[str, str]) -> Iterator[httpx.Response]:
        """The reply, after redirects, its body not yet read; what goes wrong while it is read is seen here too."""
        url, method, content, plain, auth = call.url, call.method, call.content, call.headers, call.auth
        for _ in range(MOST_REDIRECTS + 1):
            check_allowed(url, call.allowed)
            if auth and url.scheme != "https" and not (self._loopback and url.host == LOOPBACK):
                raise Unsafe(f"{shown(url)}: a password would be sent there unencrypted; ask it by https")
            gate, limits = self._gate(url), self._limits_of(url)
            with gate.turn():
                self._stop_if_closed()
                call.n_requests += 1
                self._count("requests")
                try:
                    with self._exchange(method, url, {**plain, **auth, **more}, content, limits) as reply:
                        found = _another(url, reply)
                        if found is None:
                            self._check_status(gate, limits, reply, call)
                            yield reply
                            gate.good()
                            return
                except _Failed as failed:
                    if failed.ill:
                        gate.bad(failed.why, connected=not failed.host)
                    raise
                except (Busy, Unsafe):
                    raise
                except (FetchError, _Wrong):
                    gate.good()
                    raise
                gate.good()
            if place(found) != place(url):
                # what is secret is the first host's alone
                auth = {}
                if content is not None and reply.status_code != 303:
                    raise Unsafe(f"{shown(url)}: leads what was posted to {shown(found)}; that is not followed")
            if reply.status_code == 303 or (reply.status_code in (301, 302) and method == "POST"):
                method, content = ("HEAD" if method == "HEAD" else "GET"), None
                plain = {k: v for k, v in plain.items() if k != "content-type"}
            url = found
        raise Unsafe(f"{call.shown}: led elsewhere more than {MOST_REDIRECTS} times, at last to {shown(url)}")

    @contextmanager
    def _exchange(
        self, method: str, url: httpx.URL, headers: Mapping[str, str], content: bytes | None, limits: HostLimits
    ) -> Iterator[httpx.Response]:
        timeout = {"connect": limits.connect_s, "read": limits.read_s, "write": limits.read_s, "pool": limits.read_s}
        always = {"user-agent": self._agent, "accept": "*/*", "accept-encoding": "identity"}
        request = httpx.Request(method, url, headers={**always, **headers}, content=content)
        request.extensions = {"timeout": timeout}
        self._until.moment = self._clock() + limits.deadline_s
        try:
            reply = self._transport.handle_request(request)
            reply.extensions["skycairn_url"] = url
            try:
                yield reply
            finally:
                with suppress(httpx.HTTPError):
                    reply.close()
        except httpx.HTTPError as error:
            # not `from error`: it holds the request, and that the headers
            sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            nobody = place(url) if isinstance(error, httpx.ConnectError) else ""
            raise _Failed(f"{type(error).__name__}: {str(error)[:200]}", sent=sent, host=nobody) from None

    def _check_status(self, gate: Gate, limits: HostLimits, reply: httpx.Response, call: _Call) -> None:
        status = reply.status_code
        if status not in (408, 425, 429) and (status < 500 or status == 501):
            return
        wait_s = retry_after(reply.headers, self._wall_clock(), limits.retry_after_s)
        if wait_s is not None:
            gate.pause(wait_s)
        why = f"status {status}{self._excerpt(call, reply)}"
        raise _Failed(why, ill=status not in (425, 429), slow_down=status == 429)

    def _refusal(self, call: _Call, reply: httpx.Response) -> FetchError:
        status = reply.status_code
        where = shown(reply.extensions["skycairn_url"])
        if status in (404, 410):
            return NotPublished(f"{where}: the archive has no such file (status {status})")
        if status in (401, 403, 407):
            had = "does not take the credentials that it was sent" if call.auth else "wants an account's credentials"
            return Refused(f"{where}: the archive {had} (status {status})")
        return FetchError(f"{where}: answered {status}{self._excerpt(call, reply)}; wanted 200")

    def _excerpt(self, call: _Call, reply: httpx.Response) -> str:
        """What the host says in words, unless it might say again what was secret."""
        if call.auth or call.headers.get("content-type") == "application/json" or reply.status_code in (401, 403):
            return ""
        said = b""
        with suppress(_Failed, httpx.HTTPError):
            for block in self._blocks(reply, self._limits_of(call.url)):
                said += block
                if len(said) >= 4096:
                    break
        if page := html_page(said[:SNIFF]):
            return f" with {page}"
        words = " ".join(re.sub(r"<[^>]*>", " ", said.decode("utf-8", "replace")).split())
        return f" ({words[:200]})" if words and words.isprintable() else ""

    def _blocks(self, reply: httpx.Response, limits: HostLimits, to_come: int | None = None) -> Iterator[bytes]:
        """The body as it comes, while it comes fast enough."""
        allowance = max(limits.deadline_s, (to_come or _length(reply) or 0) / limits.deadline_bytes_per_second)
        began = window = self._clock()
        deadline = self._until.moment = began + allowance
        n_bytes = 0
        for block in reply.iter_raw():
            self._stop_if_closed()
            n_bytes += len(block)
            now = self._clock()
            if now > deadline:
                raise _Failed(f"it took longer than its deadline of {allowance:.0f} s")
            if (past := now - window) >= limits.rate_window_s:
                if n_bytes < limits.least_bytes_per_second * past:
                    raise _Failed(f"too slow: {n_bytes:,} bytes in {past:.0f} s")
                window, n_bytes = now, 0
            yield block

    def _content(self, call: _Call, reply: httpx.Response, most_bytes: int) -> bytes:
        content = bytearray()
        for block in self._blocks(reply, self._limits_of(call.url)):
            content += block
            if len(content) > most_bytes:
                raise FetchError(
                    f"{call.shown}: answers with more than {most_bytes:,} bytes, too many for such a reply"
                )
        return bytes(content)

    def _transfer(
        self,
        call: _Call,
        part: Partial,
        size: int | None,
        checked: bool,
        published: bool,
        reserve: Callable[[int], object] | None,
    ) -> None:
        """Bring the part to its full length."""
        known = part.version
        length = size if size is not None else known.length if known else None
        if part.n_bytes and known and length == part.n_bytes and known.length in (None, length):
            return
        asked: dict[str, str] = {}
        if part.n_bytes and known and known.validator and call.content is None:
            asked = {"range": f"bytes={part.n_bytes}-", "if-range": known.validator}
        with self._ask(call, asked) as reply:
            blocks = self._blocks(reply, self._limits_of(call.url), (length or 0) - part.n_bytes if length else None)
            if reply.status_code in (206, 416):
                length = self._check_range(part, reply, length, bool(asked))
            elif reply.status_code != 200:
                raise self._refusal(call, reply)
            if not published:
                # else the digest tells
                _refuse_packed(reply)
            if reply.status_code == 200:
                start = _start(blocks)
                if page := html_page(start):
                    # the part is kept: the page says nothing about the file
                    raise _Failed(page)
                length = self._restart(call, part, reply, size, checked)
            if reserve is not None and length is not None:
                reserve(length - part.n_bytes)
            if reply.status_code == 200:
                part.append(start)
            for block in blocks:
                part.append(block)
                if length is not None and part.n_bytes > length:
                    raise _Wrong(f"it is longer than the {length:,} bytes that it should have")
            if length is not None and part.n_bytes != length:
                if part.n_bytes > length:
                    raise _Wrong(f"it has {part.n_bytes:,} bytes, wanted {length:,}")
                raise _Failed(f"it broke off after {part.n_bytes:,} of {length:,} bytes")

    def _check_range(self, part: Partial, reply: httpx.Response, length: int | None, asked: bool) -> int:
        """Length of the whole, where the reply is the rest of it; else what is there is forgotten, the try failed."""
        said = reply.headers.get("content-range", "")
        etag = reply.headers.get("etag")
        found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", said.strip())
        why, total = "", 0
        if reply.status_code == 416:
            why = "status 416: the file is shorter than what is there of it"
        elif not asked:
            why = "a part (206) where the whole was asked for"
        elif found is None:
            why = f"a part (206) of Content-Range {said[:60]!r}"
        else:
            first, last, total = map(int, found.groups())
            if first != part.n_bytes or last != total - 1 or (length is not None and total != length):
                why = f"the bytes {said[:60]!r}; wanted those from {part.n_bytes:,} to the end of {length or 'all'}"
            elif part.version and etag and part.version.etag and etag != part.version.etag:
                why = "a part (206) of another version of the file"
        if why:
            part.restart(None)
            raise _Failed(why, ill=False)
        return total

    def _restart(
        self, call: _Call, part: Partial, reply: httpx.Response, size: int | None, checked: bool
    ) -> int | None:
        """Begin the part anew with what this reply sends; its length, where that is known."""
        told = _length(reply)
        if size is not None and told is not None and told != size:
            raise _Wrong(f"it has {told:,} bytes, the archive publishes {size:,}")
        if told is None and "transfer-encoding" not in reply.headers and not checked:
            raise ChecksumMismatch(
                f"{call.shown}: comes without its length, and nothing is known by which to tell that it is whole; give "
                "its size, its digest or a check"
            )
        length = size if size is not None else told
        etag, changed = reply.headers.get("etag"), reply.headers.get("last-modified")
        part.restart(Version(str(call.url), etag, changed, length))
        return length

    def _persist(self, call: _Call, limits: HostLimits, once: Callable[[], T], again: bool = True) -> T:
        """Try, and try again while that may help."""
        least, most = limits.backoff_s
        failed_s: list[str] = []
        wrong: list[str] = []
        while True:
            try:
                return once()
            except _Wrong as error:
                # wrong in the same way twice, it is the archive's file; in another way each time, it is the line
                same = str(error) in wrong
                wrong.append(str(error))
                if same or len(wrong) >= limits.tries or not again:
                    first = "" if wrong[0] == wrong[-1] else f", and the first time {wrong[0]}"
                    often = {1: "once", 2: "twice"}.get(len(wrong), f"{len(wrong)} times")
                    raise ChecksumMismatch(f"{call.shown}: {wrong[-1]}{first}; it was fetched {often}") from None
            except _Failed as failed:
                failed_s.append(failed.why)
                nobody = self._gates.get(failed.host)
                if nobody is not None and not nobody.answered:
                    if len(failed_s) >= CONNECT_TRIES:
                        why = f"{failed.host}: cannot be reached ({failed.why}); build again"
                        nobody.unreachable(why)
                        raise Unreachable(why) from None
                    self.nap(self._chance() * min(least, CONNECT_PAUSE_S))
                    continue
                if len(failed_s) >= limits.tries or (failed.sent and not again):
                    raise Busy(f"{call.shown}: given up after {_tries(failed_s)}; try again later") from None
                pause_s = self._chance() * min(most, least * 3 ** (len(failed_s) - 1))
                if failed.slow_down:
                    self._gate(call.url).pause(pause_s)
                self.nap(pause_s)


def retry_after(headers: Mapping[str, str], now: float, most_s: float) -> float | None:
    """Seconds that a reply asks to wait, 0 to `most_s`; None where it asks for nothing that can be read.

    A date is held against the server's own clock where it tells that, since ours may be wrong.
    """
    said = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[+-]?\d+(\.\d+)?", said):
        return min(max(float(said[:20]), 0.0), most_s)
    try:
        then = parsedate_to_datetime(said).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    with suppress(ValueError, TypeError, IndexError, OverflowError):
        now = parsedate_to_datetime(headers.get("date", "")).timestamp()
    return min(max(then - now, 0.0), most_s)


def _another(url: httpx.URL, reply: httpx.Response) -> httpx.URL | None:
    """Where the reply leads to; None where it is an end."""
    if reply.status_code not in LEADS_ELSEWHERE or "location" not in reply.headers:
        return None
    try:
        found = address(reply.headers["location"], base=url)
    except Unsafe as error:
        raise Unsafe(f"{shown(url)}: leads elsewhere, and may not: {error}") from None
    if url.scheme == "https" and found.scheme != "https":
        raise Unsafe(f"{shown(url)}: leads to {shown(found)}, which is not encrypted; that is not followed")
    return found


def _refuse_packed(reply: httpx.Response) -> None:
    if (packing := _packing(reply)) != "identity":
        if reply.headers.get("content-type", "").lower().startswith("text/html"):
            raise _Failed("an HTML page, packed")
        # a .gz file that is sent so may be packed twice, or be meant to be unpacked: its bytes do not tell
        raise _Wrong(f"comes with Content-Encoding {packing[:40]!r} though the bytes as they are were asked for")


def _packing(reply: httpx.Response) -> str:
    packing: str = reply.headers.get("content-encoding", "identity")
    return packing.strip().lower()


def _check(check: Callable[[Path], None], path: Path) -> None:
    try:
        check(path)
    except (ChecksumMismatch, ValueError) as error:
        raise _Wrong(str(error)) from None


def _start(blocks: Iterator[bytes]) -> bytes:
    start = b""
    for block in blocks:
        start += block
        if len(start) >= SNIFF:
            break
    return start


def _length(reply: httpx.Response) -> int | None:
    said = reply.headers.get("content-length", "")
    return int(said) if said.isdigit() and "transfer-encoding" not in reply.headers else None


def _algorithm(digest: str | None) -> str:
    if digest is None:
        return "sha256"
    for name, length in DIGEST_LENGTH.items():
        if len(digest) == length and re.fullmatch("[0-9a-fA-F]+", digest):
            return name
    raise ValueError(f"digest {digest[:80]!r}: wanted the hex of {', '.join(DIGEST_LENGTH)}")


def _printable(headers: Mapping[str, str] | None) -> dict[str, str]:
    found = {}
    for name, value in (headers or {}).items():
        if not re.fullmatch(r"[A-Za-z0-9-]+", name):
            raise ValueError(f"{name[:40]!r} is no name of a header")
        if not value.isascii() or not value.isprintable():
            raise ValueError(f"header {name}: its value holds what no header can; wanted printable ASCII")
        found[name.lower()] = value
    return found


def _tries(failed_s: list[str]) -> str:
    count = "one try" if len(failed_s) == 1 else f"{len(failed_s)} tries"
    return f"{count} ({'; '.join(dict.fromkeys(failed_s))})"


def _version() -> str:
    try:
        return version("skycairn")
    except PackageNotFoundError:
        return "unknown"
