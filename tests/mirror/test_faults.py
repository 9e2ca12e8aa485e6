"""Each fault does on the wire what its name says, by seed, and never more often in a row than it may."""

import gzip
import hashlib
import http.client
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from skycairn.mirror.faults import ALL, NEED_DIGEST, RANGES, REDIRECTS, Faults, has_digest
from skycairn.mirror.server import Mirror, Reply, Request
from skycairn.mirror.sky import mirror_of
from skycairn.mirror.wire import Wire

HOST = "archive.example"
DATA = hashlib.shake_256(b"stars").digest(600_000)
PART = {"Range": "bytes=1000-1999"}


class Got:
    """What came over the wire, without any client's kindness."""

    def __init__(self, url: str, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes = b""):
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=30)
        self.status, self.headers, self.body, self.broke = 0, http.client.HTTPMessage(), b"", ""
        try:
            connection.request(method, f"{parts.path}?{parts.query}", body, {"Accept": "*/*", **(headers or {})})
            reply = connection.getresponse()
            self.status, self.headers = reply.status, reply.msg
            while piece := reply.read(50_000):
                self.body += piece
            if reply.length:  # http.client says nothing when a body read in pieces ends too soon
                self.broke = "short"
        except ConnectionResetError:
            self.broke = "reset"
        finally:
            connection.close()


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    """A file with a published digest, one with none, and a service that counts what it obeys."""
    folder = tmp_path / "tree"
    folder.mkdir()
    for name in ("listed.fits", "unlisted.fits"):
        (folder / name).write_bytes(DATA)
    (folder / "empty.txt").write_bytes(b"")
    (folder / "all.sha256sum").write_text(f"{hashlib.sha256(DATA).hexdigest()} *listed.fits\n")
    obeyed: list[Request] = []

    def service(request: Request) -> Reply | None:
        if request.path != "/jobs":
            return None
        obeyed.append(request)
        return Reply(200, b"job %d" % len(obeyed), {"Content-Type": "text/plain"})

    with Mirror({f"{HOST}/pub": folder}, {HOST: [service]}) as running:
        yield running


def only(mirror: Mirror, *kinds: str, **how: object) -> Faults:
    """Nothing but these, always."""
    mirror.faults = faults = Faults(share=1.0, kinds=kinds, most_in_a_row=10**6, **how)  # type: ignore[arg-type]
    return faults


def at(mirror: Mirror, name: str = "listed.fits") -> str:
    return f"{mirror.url}/{HOST}/pub/{name}"


def test_no_fault_is_the_truth(mirror: Mirror) -> None:
    got = Got(at(mirror))
    assert (got.status, got.body, got.broke) == (200, DATA, "")
    mirror.faults = Faults(share=0.0)
    assert Got(at(mirror)).body == DATA and not mirror.requests.by_fault


def test_cut(mirror: Mirror) -> None:
    faults = only(mirror, "cut")
    got = Got(at(mirror))
    assert got.status == 200 and got.headers["Content-Length"] == str(len(DATA))
    assert got.broke == "short" and len(got.body) < len(DATA) and DATA.startswith(got.body)
    part = Got(at(mirror), headers=PART)
    assert part.status == 206 and part.broke == "short" and DATA[1000:].startswith(part.body)
    assert faults.counts == mirror.requests.by_fault == {"cut": 2}
    with pytest.raises(httpx.RemoteProtocolError), httpx.Client(verify=False) as client:
        client.get(at(mirror))


def test_cut_silent(mirror: Mirror) -> None:
    only(mirror, "cut_silent")
    got = Got(at(mirror))
    assert got.status == 200 and "Content-Length" not in got.headers and got.headers["Connection"] == "close"
    assert got.broke == "" and len(got.body) < len(DATA) and DATA.startswith(got.body)


def test_flip_is_one_bit(mirror: Mirror) -> None:
    only(mirror, "flip")
    got = Got(at(mirror))
    assert len(got.body) == len(DATA) == int(got.headers["Content-Length"])
    wrong = [(a, b) for a, b in zip(got.body, DATA, strict=True) if a != b]
    assert len(wrong) == 1 and (wrong[0][0] ^ wrong[0][1]).bit_count() == 1
    part = Got(at(mirror), headers=PART)
    assert sum(a != b for a, b in zip(part.body, DATA[1000:2000], strict=True)) == 1


@pytest.mark.parametrize("block", [1000, 1 << 18])
def test_zeros_are_a_block(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr("skycairn.mirror.wire.BLOCK", block)
    only(mirror, "zeros")
    for _ in range(8):
        got = np.frombuffer(Got(at(mirror)).body, np.uint8)
        wrong = np.flatnonzero(got != np.frombuffer(DATA, np.uint8))
        first, last = wrong[0], wrong[-1]
        assert not got[first : last + 1].any()
        assert 4000 < last - first < 4096 or last > len(DATA) - 100, "some bytes of the block were zero before"
    (tmp_path / "tree" / "listed.fits").write_bytes(bytes(100))
    assert Got(at(mirror)).body != bytes(100), "zeros of zeros would be no fault"


def test_only_what_a_digest_can_tell_is_garbled(mirror: Mirror, tiny_sky: Path) -> None:
    faults = only(mirror, *NEED_DIGEST)
    for name in ("unlisted.fits", "all.sha256sum"):
        assert Got(at(mirror, name)).broke == "" and not faults.counts
    assert Got(at(mirror, "unlisted.fits")).body == DATA
    only(mirror, "flip", anywhere=True)
    assert Got(at(mirror, "unlisted.fits")).body != DATA
    assert has_digest(next((tiny_sky / "gaia" / "gaia_source").glob("*.csv.gz")))
    assert has_digest(next((tiny_sky / "desi").rglob("zall-pix-iron.fits")))
    assert not has_digest(next((tiny_sky / "sdss").rglob("specObj*.fits")))


def test_reset(mirror: Mirror) -> None:
    only(mirror, "reset")
    got = Got(at(mirror))
    assert got.broke == "reset" and got.status == 200 and len(got.body) < len(DATA) and DATA.startswith(got.body)
    for nothing in (Got(at(mirror), "HEAD"), Got(at(mirror, "empty.txt"))):
        assert (nothing.status, nothing.broke) == (0, "reset")
    assert Got(at(mirror, "none")).broke == "reset", "a fact may be lost on the way as well"


def test_stall_and_drip_give_all_in_the_end(mirror: Mirror) -> None:
    for kind in ("stall", "drip"):
        only(mirror, kind, slow_s=0.2)
        for method, name, wanted in (("GET", "listed.fits", DATA), ("HEAD", "listed.fits", b"")):
            began = time.monotonic()
            got = Got(at(mirror, name), method)
            assert (got.status, got.body, got.broke) == (200, wanted, "")
            if method == "GET" or kind == "stall":
                assert time.monotonic() - began >= 0.2
    only(mirror, "stall", slow_s=60)
    with pytest.raises(httpx.ReadTimeout), httpx.Client(verify=False, timeout=0.2) as client:
        client.get(at(mirror))


def test_a_drip_outlasts_a_timeout_of_each_read(mirror: Mirror) -> None:
    only(mirror, "drip", slow_s=2.0)
    with httpx.Client(verify=False, timeout=1.5) as client, client.stream("GET", at(mirror)) as reply:
        first = next(reply.iter_raw())
        assert len(first) < 10, "a byte at a time, and the client's own timeout never fires"


def test_a_mirror_ends_amid_a_stall(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(DATA)
    began = time.monotonic()
    with Mirror({HOST: tmp_path}) as mirror:
        only(mirror, "stall", slow_s=600)
        thread = threading.Thread(target=Got, args=(f"{mirror.url}/{HOST}/f",))
        thread.start()
        while not mirror.log:
            time.sleep(0.01)
    thread.join()
    assert time.monotonic() - began < 300


@pytest.mark.parametrize(("kind", "status"), [("busy_429", 429), ("busy_503", 503)])
def test_busy(mirror: Mirror, kind: str, status: int) -> None:
    only(mirror, kind, retry_after=("0", "2"))
    told = {(got.status, got.headers["Retry-After"]) for got in (Got(at(mirror)) for _ in range(20))}
    assert told == {(status, "0"), (status, "2")}
    assert Got(at(mirror), "HEAD").status == status


def test_error_500_and_html(mirror: Mirror) -> None:
    only(mirror, "error_500")
    assert Got(at(mirror)).status == 500
    only(mirror, "html")
    got = Got(at(mirror), headers=PART)
    assert got.status == 200 and got.headers["Content-Type"].startswith("text/html") and b"<html>" in got.body
    assert got.headers["Content-Length"] == str(len(got.body)) and "ETag" not in got.headers
    assert Got(at(mirror), "HEAD").headers["Content-Length"] == str(len(got.body))


def test_redirects(mirror: Mirror) -> None:
    to = {}
    for kind in REDIRECTS:
        only(mirror, kind)
        got = Got(at(mirror), "HEAD")
        assert got.status == 302 and got.body == b""
        to[kind] = urlsplit(got.headers["Location"])
    ours = urlsplit(mirror.url)
    assert to["redirect_file"].scheme == "file" and to["redirect_metadata"].netloc == "169.254.169.254"
    assert to["redirect_host"].hostname == "localhost"
    assert to["redirect_port"].hostname == ours.hostname and to["redirect_port"].port != ours.port
    assert to["redirect_good"].netloc == ours.netloc and to["redirect_good"].path == f"/{HOST}/pub/listed.fits"
    mirror.faults = None
    assert Got(to["redirect_good"].geturl()).body == DATA


def test_who_follows_a_bad_redirect_is_noticed(mirror: Mirror) -> None:
    only(mirror, "redirect_port")
    with httpx.Client(verify=False, follow_redirects=True, auth=("me", "mine")) as client:
        client.get(at(mirror))
    (asked,) = mirror.trapped
    assert (asked.host, asked.path) == (HOST, "/pub/listed.fits")
    assert mirror.requests.total == 1, "the trap counts apart"


def test_a_good_redirect_goes_on_counting_the_same_request(mirror: Mirror) -> None:
    mirror.faults = Faults(share=1.0, kinds=["redirect_good"], most_in_a_row=2)
    with httpx.Client(verify=False, follow_redirects=True) as client:
        reply = client.get(at(mirror))
    assert reply.content == DATA and [r.status_code for r in reply.history] == [302, 302]


def test_encodings(mirror: Mirror) -> None:
    only(mirror, "gzip")
    got = Got(at(mirror))
    assert got.headers["Content-Encoding"] == "gzip" and "Content-Length" not in got.headers
    assert got.body != DATA and gzip.decompress(got.body) == DATA
    only(mirror, "mislabelled")
    got = Got(at(mirror))
    assert got.headers["Content-Encoding"] == "gzip" and got.body == DATA
    with pytest.raises(httpx.DecodingError), httpx.Client(verify=False) as client:
        client.get(at(mirror))


def test_ranges(mirror: Mirror) -> None:
    only(mirror, "range_ignored")
    got = Got(at(mirror), headers=PART)
    assert (got.status, got.body) == (200, DATA) and "Content-Range" not in got.headers
    only(mirror, "range_wrong")
    got = Got(at(mirror), headers=PART)
    assert (got.status, got.body) == (206, DATA[:1000])
    assert got.headers["Content-Range"] == f"bytes 0-999/{len(DATA)}"
    first = Got(at(mirror), headers={"Range": "bytes=0-"})
    assert first.status == 206 and first.headers["Content-Range"].startswith("bytes 1-") and first.body == DATA[1:]
    only(mirror, "range_refused")
    got = Got(at(mirror), headers=PART)
    assert (got.status, got.headers["Content-Range"]) == (416, f"bytes */{len(DATA)}")
    faults = only(mirror, *RANGES)
    assert Got(at(mirror)).body == DATA and not faults.counts, "who asks for no range has none that is wrong"


def test_etag_changes_midway(mirror: Mirror) -> None:
    faults = only(mirror, "etag")
    true = Got(at(mirror))
    assert not faults.counts
    got = Got(at(mirror), headers=PART)
    assert got.status == 206 and got.headers["ETag"] not in ("", true.headers["ETag"])
    got = Got(at(mirror), headers={**PART, "If-Range": true.headers["ETag"]})
    assert (got.status, got.body) == (200, DATA) and got.headers["ETag"] != true.headers["ETag"]
    mirror.faults = None
    again = Got(at(mirror), headers={**PART, "If-Range": got.headers["ETag"]})
    assert (again.status, again.body) == (200, DATA)


def test_faults_of_services(mirror: Mirror) -> None:
    url = f"{mirror.url}/{HOST}/jobs"
    for kind, status in (("busy_503", 503), ("busy_429", 429), ("error_500", 500), ("html", 200)):
        only(mirror, kind)
        assert Got(url, "POST", body=b"q").status == status
    mirror.faults = None
    assert Got(url, "POST", body=b"q").body == b"job 1", "none of them reached the service"
    only(mirror, "reset")
    assert Got(url, "POST", body=b"q").broke == "reset"
    only(mirror, "stall", slow_s=0.05)
    assert Got(url, "POST", body=b"q").body == b"job 3", "the service did as it was asked; its reply was lost"
    faults = only(mirror, *NEED_DIGEST, *REDIRECTS, "gzip", "mislabelled", "drip", slow_s=0.05)
    for method in ("POST", "GET"):
        assert Got(url, method).body.startswith(b"job") and set(faults.counts) <= {"drip"}


def test_facts_stay_facts(mirror: Mirror) -> None:
    mirror.accounts[HOST] = ("a", "b")
    for fact, url in ((401, at(mirror)), (404, f"{mirror.url}/other.example/x"), (400, at(mirror, "%2e%2e/x"))):
        mirror.faults = Faults(share=0.8, slow_s=0.0, kinds=[k for k in ALL if k != "reset"])
        statuses = {Got(url).status for _ in range(60)}
        assert statuses == {fact, 429, 503, 500}, "no page, no redirect, no file where there is none"
    mirror.accounts.clear()
    mirror.faults = Faults(share=0.8, slow_s=0.0)
    statuses = {Got(at(mirror)).status for _ in range(150)}
    assert not statuses & {401, 404, 410}, "what is there is never said to be absent"


def test_the_same_seed_is_the_same_faults(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(DATA[:100])

    def story(seed: int) -> list[tuple[int, bytes, str]]:
        with Mirror({HOST: tmp_path}, faults=Faults(0.5, seed, slow_s=0.0)) as mirror:
            urls = [f"{mirror.url}/{HOST}/{name}" for name in ("f", "none")] * 15
            return [(got.status, got.body, got.broke) for got in map(Got, urls)]

    assert story(1) == story(1) != story(2)


def test_the_share_is_about_what_was_asked_for() -> None:
    faults = Faults(share=0.2, kinds=["error_500"])
    for k in range(5000):
        faults.spoil(Request("GET", HOST, f"/{k}", {}, {}), Reply, "")
    assert 900 < faults.counts["error_500"] < 1100


def test_no_more_in_a_row_than_may_be(mirror: Mirror) -> None:
    faults = mirror.faults = Faults(share=1.0, most_in_a_row=3, slow_s=0.0, paths="*.fits")
    for headers in ({}, PART):  # one request, whole or in part
        Got(at(mirror), headers=headers)
    for _ in range(30):
        Got(at(mirror), headers=PART)
        Got(at(mirror), "HEAD")
        Got(at(mirror, "all.sha256sum"))
    for method in ("GET", "HEAD"):
        log = [bool(a.fault) for a in mirror.log if a.method == method and a.path.endswith(".fits")]
        rows = [len(list(group)) for spoilt, group in itertools.groupby(log) if spoilt]
        assert len(log) >= 30 and set(rows[:-1]) == {3}
        assert [len(list(group)) for spoilt, group in itertools.groupby(log) if not spoilt] == [1] * (len(log) // 4)
    assert not any(a.fault for a in mirror.log if a.path.endswith("sum")), "other paths are left alone"
    assert sum(faults.counts.values()) == sum(mirror.requests.by_fault.values())


def test_two_questions_to_one_address_are_two(mirror: Mirror) -> None:
    mirror.faults = Faults(share=1.0, kinds=["busy_503"], most_in_a_row=1)
    url = f"{mirror.url}/{HOST}/jobs"
    assert [Got(url, "POST", body=body).status for body in (b"a", b"b", b"a", b"b")] == [503, 503, 200, 200]


def test_a_whole_sky_gets_through(tiny_sky: Path) -> None:
    """A client that believes no more than it may, and tries again, ends with every byte."""
    faults = Faults(share=0.5, slow_s=0.01)
    root = tiny_sky / "desi"
    files = [p for p in sorted(root.rglob("*")) if p.is_file() and (p.suffix == ".sha256sum" or has_digest(p))][:40]
    with mirror_of(tiny_sky, faults) as mirror:

        def fetch(path: Path) -> int:
            for tries in range(1, 5):
                got = Got(f"{mirror.root('desi')}/{path.relative_to(root).as_posix()}")
                if got.status == 200 and not got.broke and got.body == path.read_bytes():
                    return tries
            return 0

        with ThreadPoolExecutor(16) as pool:
            tries = Counter(pool.map(fetch, files))
        assert 0 not in tries and max(tries) > 1
        assert mirror.trapped == []


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"share": 1.5}, "share is 1.5"),
        ({"share": float("nan")}, "share is nan"),
        ({"most_in_a_row": -1}, "most_in_a_row is -1"),
        ({"kinds": ["cut", "earthquake"]}, "no fault 'earthquake'; there are busy_429"),
        ({"retry_after": ()}, "retry_after is empty"),
    ],
)
def test_settings_that_mean_nothing(how: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Faults(**how)  # type: ignore[arg-type]


def test_a_file_that_shrinks_while_it_is_sent_comes_short(mirror: Mirror, tmp_path: Path) -> None:
    """The connection ends with it: the client must not wait for what does not come."""

    class Shrinks:
        def spoil(self, request: Request, truth: Callable[[], Reply], trap: str) -> Wire:
            return Wire(truth(), stream=self.stream)

        def stream(self, blocks: Iterator[bytes], n: int) -> Iterator[bytes | float]:
            os.truncate(tmp_path / "tree" / "listed.fits", 300_000)
            yield from blocks

    mirror.faults = Shrinks()
    got = Got(at(mirror))
    assert got.headers["Content-Length"] == str(len(DATA)) and (got.broke, got.body) == ("short", DATA[:300_000])
