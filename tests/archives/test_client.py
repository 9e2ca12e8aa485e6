"""The download client where nothing goes wrong, and its manners."""

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import httpx
import pytest

from skycairn.archives.client import Client, Head
from skycairn.archives.errors import Busy, ChecksumMismatch, FetchError, NotPublished, Refused, Unsafe
from skycairn.archives.hosts import HOSTS, MIRROR, HostLimits
from skycairn.mirror.server import Mirror, Reply, Request

_spec = spec_from_file_location("badserver", Path(__file__).with_name("badserver.py"))
assert _spec is not None and _spec.loader is not None
badserver = sys.modules.setdefault("badserver", module_from_spec(_spec))
_spec.loader.exec_module(badserver)
from badserver import BadServer, Clock, Seen, drip, honest, reply  # noqa: E402

DATA = b"SIMPLE  =" + bytes(range(256)) * 100


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(clock: Clock) -> Iterator[Client]:
    with Client({}, loopback=True, clock=clock, wall_clock=clock, sleep=clock.sleep, chance=lambda: 1.0) as client:
        yield client


def test_a_file_from_the_mirror(tmp_path: Path, client: Client) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a b.fits").write_bytes(DATA)
    url = "https://data.sdss.org/sas/dr17/a%20b.fits"
    with Mirror({"data.sdss.org/sas/dr17": tmp_path / "tree"}) as mirror:
        got = client.download(mirror.of(url), tmp_path / "f", size=len(DATA), digest=hashlib.sha1(DATA).hexdigest())
        head = client.head(mirror.of(url))
        assert client.head(mirror.of("https://data.sdss.org/sas/dr17/none")) is None
    assert (got.size, got.verified, got.requests) == (len(DATA), True, 1)
    assert got.sha256 == hashlib.sha256(DATA).hexdigest() and (tmp_path / "f").read_bytes() == DATA
    assert head == Head(len(DATA), got.etag, got.last_modified) and got.etag and got.last_modified


@pytest.mark.parametrize("status", [405, 501])
def test_a_host_that_knows_no_head(client: Client, status: int) -> None:
    with BadServer(reply(b"", status), honest(DATA)) as server:
        assert client.head(f"{server.url}/f") == Head(len(DATA), '"1"', None)
    assert [s.method for s in server.seen] == ["HEAD", "GET"]


def test_an_empty_file_is_a_file(tmp_path: Path, client: Client) -> None:
    with BadServer(honest(b"")) as server:
        assert client.download(f"{server.url}/f", tmp_path / "f", size=0).size == 0
    assert (tmp_path / "f").read_bytes() == b""


def test_who_asks_is_told(client: Client) -> None:
    with Client({}, contact="me@example.org", loopback=True) as polite, BadServer(honest(DATA)) as server:
        polite.read(f"{server.url}/f")
        client.read(f"{server.url}/f")
    first, second = (s.headers["user-agent"] for s in server.seen)
    assert first.startswith("skycairn/") and first.endswith(" (me@example.org)") and "(" not in second
    with pytest.raises(ValueError, match="contact"):
        Client(contact="a\r\nX: 1")


def test_a_list_is_read_up_to_a_size(client: Client) -> None:
    with BadServer(honest(b"x" * 100)) as server:
        assert client.read(f"{server.url}/l", most_bytes=100) == b"x" * 100
        with pytest.raises(FetchError, match="more than 99 bytes"):
            client.read(f"{server.url}/l", most_bytes=99)
    with BadServer(reply(b"x" * 100, sent=50), reply(b"x" * 100)) as server:
        assert client.read(f"{server.url}/l") == b"x" * 100
    with BadServer(reply(b"x" * 100, sent=50, length=False)) as server, pytest.raises(FetchError, match="its length"):
        client.read(f"{server.url}/l")


def test_a_service_is_sent_json(client: Client) -> None:
    def echo(request: Request) -> Reply:
        assert request.headers["content-type"] == "application/json"
        return Reply(body=json.dumps({"said": json.loads(request.body), "method": request.method}).encode())

    with Mirror({}, {"hsc": [echo]}) as mirror:
        assert client.post_json(f"{mirror.url}/hsc/submit", {"a": [1]}) == {"said": {"a": [1]}, "method": "POST"}
    with BadServer(reply(b"<html><title>Oops</title>"), reply(b"why", 406), reply(b"why", 406)) as server:
        with pytest.raises(FetchError, match="an HTML page: 'Oops', wanted JSON"):
            client.post_json(f"{server.url}/j", {})
        with pytest.raises(FetchError, match="answered 406"):
            client.post_json(f"{server.url}/j", {})
        answer = client.send("POST", f"{server.url}/j", json={})
    assert (answer.status, answer.content, answer.url) == (406, b"why", f"{server.url}/j")


def test_what_may_have_been_done_is_not_done_twice(client: Client) -> None:
    with BadServer(reply(b"", 503), reply(b"", 503), reply(b"{}")) as server:
        with pytest.raises(Busy, match=r"one try \(status 503\)"):
            client.post_json(f"{server.url}/submit", {})
        assert len(server.seen) == 1
        assert client.post_json(f"{server.url}/status", {}, again=True) == {}
    assert len(server.seen) == 3
    with BadServer(reply(b"{}", Content_Encoding="gzip")) as server:
        with pytest.raises(ChecksumMismatch, match="fetched once"):
            client.post_json(f"{server.url}/submit", {})
    assert len(server.seen) == 1
    for status, kind in ((401, Refused), (403, Refused), (404, NotPublished), (410, NotPublished)):
        with BadServer(reply(b"", status)) as server, pytest.raises(kind):
            client.send("POST", f"{server.url}/submit", form={"a": "1"}, again=True)
        assert len(server.seen) == 1


def test_what_was_never_sent_may_be_sent_again(client: Client, clock: Clock) -> None:
    with BadServer(honest(b"")) as server:
        url = f"{server.url}/submit"
    with pytest.raises(Busy, match="cannot be reached"):
        client.post_json(url, {})
    assert client.counts()["requests"] == 2


def test_a_form_leads_to_its_job(client: Client) -> None:
    with BadServer(reply(b"", 303, Location="/async/7?x=1"), reply(b"<uws:job/>")) as server:
        answer = client.send("POST", f"{server.url}/async", form={"QUERY": "SELECT 1 < 2"})
    assert answer.url == f"{server.url}/async/7?x=1" and answer.content == b"<uws:job/>"
    assert server.seen[0].body == b"QUERY=SELECT+1+%3C+2"
    assert [s.method for s in server.seen] == ["POST", "GET"] and server.seen[1].body == b""
    assert "content-type" not in server.seen[1].headers


def test_what_was_posted_goes_to_no_other_host(client: Client) -> None:
    with BadServer(honest(b"")) as other, BadServer() as server:
        server.script = [reply(b"", 307, Location=f"{other.url}/x")]
        places = [f"127.0.0.1:{s.port}" for s in (server, other)]
        with pytest.raises(Unsafe, match="not followed"):
            client.post_json(f"{server.url}/submit", {"password": "x"}, allowed_hosts=places)
    assert not other.seen


def test_the_reply_to_a_post_is_a_file(tmp_path: Path, client: Client) -> None:
    with BadServer(reply(DATA, sent=99, ETag='"1"'), reply(DATA, ETag='"1"')) as server:
        got = client.download(f"{server.url}/download", tmp_path / "f", json={"id": 7})
    assert got.requests == 2 and (tmp_path / "f").read_bytes() == DATA
    assert all(json.loads(s.body) == {"id": 7} and "range" not in s.headers for s in server.seen)


def test_a_part_of_another_question_is_not_gone_on_with(tmp_path: Path, client: Client) -> None:
    with BadServer(reply(DATA[::-1], sent=99, ETag='"1"')) as server:
        with pytest.raises(Busy):
            client.download(f"{server.url}/download", tmp_path / "f", json={"id": 6})
        server.script = [honest(DATA)]
        client.download(f"{server.url}/download", tmp_path / "f", json={"id": 7})
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_part_that_is_all_there_is_only_checked(tmp_path: Path, client: Client) -> None:
    def fail(path: Path) -> None:
        raise OSError(28, "no space left on device")

    with BadServer(honest(DATA)) as server:
        # as if killed between the last byte and the check
        with pytest.raises(OSError, match="no space"):
            client.download(f"{server.url}/f", tmp_path / "f", check=fail)
        assert not (tmp_path / "f").exists()
        got = client.download(f"{server.url}/f", tmp_path / "f", digest=hashlib.md5(DATA).hexdigest())
    assert got.requests == 0 and got.etag == '"1"' and got.verified and len(server.seen) == 1


def test_of_two_at_once_the_second_is_told(tmp_path: Path, client: Client) -> None:
    begun = threading.Event()

    def slow(seen: Seen, to: object) -> None:
        begun.set()
        drip(DATA[:40], 0.01)(seen, to)  # type: ignore[arg-type]

    with BadServer(slow) as server:
        first = threading.Thread(target=client.download, args=(f"{server.url}/f", tmp_path / "f"))
        first.start()
        begun.wait(10)
        with pytest.raises(Busy, match="another process or thread fetches this file"):
            client.download(f"{server.url}/f", tmp_path / "f")
        first.join()
    assert (tmp_path / "f").read_bytes() == DATA[:40]


def test_never_more_at_once_than_a_host_allows(tmp_path: Path) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def count(seen: Seen, to: object) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        threading.Event().wait(0.02)
        with lock:
            now -= 1
        honest(DATA)(seen, to)  # type: ignore[arg-type]

    limits = HostLimits(concurrency=2, requests_per_second=1e4)
    with BadServer(count) as server, Client({"127.0.0.1": limits}, loopback=True) as client:
        threads = [
            threading.Thread(target=client.download, args=(f"{server.url}/f", tmp_path / str(i))) for i in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(list(tmp_path.iterdir())) == 8 and most == 2


def test_never_faster_than_a_host_allows(clock: Clock) -> None:
    limits = {"127.0.0.1": HostLimits(concurrency=3, requests_per_second=0.5)}
    with BadServer(honest(DATA)) as server:
        with Client(limits, loopback=True, clock=clock, sleep=clock.sleep) as client:
            began = clock.now
            for _ in range(3):
                client.read(f"{server.url}/f")
            assert clock.now == began
            for _ in range(4):
                client.read(f"{server.url}/f")
    assert clock.now - began == pytest.approx(8)


def test_a_client_that_is_closed_lets_its_threads_go(tmp_path: Path) -> None:
    told: list[str] = []
    begun = threading.Event()

    def busy(seen: Seen, to: object) -> None:
        reply(b"", 503, Retry_After="3000")(seen, to)  # type: ignore[arg-type]
        begun.set()

    def ask() -> None:
        with pytest.raises(Busy) as error:
            client.read(f"{server.url}/f")
        told.append(str(error.value))

    with BadServer(busy) as server, Client({}, loopback=True) as client:
        thread = threading.Thread(target=ask)
        thread.start()
        begun.wait(10)
        client.close()
        thread.join(10)
    assert len(told) == 1 and "closed" in told[0]


def test_a_transport_stands_for_the_net(tmp_path: Path) -> None:
    def say(request: httpx.Request) -> httpx.Response:
        said = str(request.url).encode()
        return httpx.Response(200, headers={"content-length": str(len(said))}, stream=httpx.ByteStream(said))

    net = httpx.MockTransport(say)
    with Client(transport=net) as client:
        assert client.read("https://data.sdss.org/sas/x") == b"https://data.sdss.org/sas/x"
        with pytest.raises(Unsafe, match=r"https://example\.org/x\?\.\.\.: may not be asked"):
            client.read("https://example.org/x?secret=1")
        with pytest.raises(Unsafe, match="may not"):
            client.read("https://data.sdss.org:8443/x")
        assert client.read("https://example.org/x", allowed_hosts=["example.org"])


def test_leading_from_https_to_http_is_not_followed() -> None:
    net = httpx.MockTransport(lambda request: httpx.Response(301, headers={"location": "http://data.sdss.org/x"}))
    with Client(transport=net) as client, pytest.raises(Unsafe, match="not encrypted"):
        client.read("https://data.sdss.org/x")


@pytest.mark.parametrize("digest", ["", "abc", "g" * 64, "0" * 128])
def test_a_digest_of_no_known_kind_is_refused(tmp_path: Path, client: Client, digest: str) -> None:
    with pytest.raises(ValueError, match="md5, sha1, sha256"):
        client.download("http://127.0.0.1/f", tmp_path / "f", digest=digest)
    assert not list(tmp_path.iterdir())


def test_a_length_that_is_not_the_published_one_is_wrong_before_it_is_read(tmp_path: Path, client: Client) -> None:
    with BadServer(reply(DATA)) as server, pytest.raises(ChecksumMismatch, match="the archive publishes 7"):
        client.download(f"{server.url}/f", tmp_path / "f", size=7)
    assert len(server.seen) == 2 and not (tmp_path / "f").exists()


def test_every_archive_has_its_limits() -> None:
    for host in ("portal.nersc.gov", "data.desi.lbl.gov", "data.sdss.org", "cdn.gea.esac.esa.int"):
        assert HOSTS[host].concurrency == 4
    assert HOSTS["hsc-release.mtk.nao.ac.jp"].concurrency == 2
    assert MIRROR.requests_per_second > 1000 and all(h == h.lower() for h in HOSTS)
    with pytest.raises(ValueError, match="tries is 0"):
        HostLimits(tries=0)
