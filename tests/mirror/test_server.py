"""What the mirror says to any client: files, ranges, conditions, folders, accounts, services."""

import base64
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
import requests

from skycairn.mirror.server import Mirror, Reply, Request
from skycairn.mirror.sky import HSC_ACCOUNT, RELEASES, host, mirror_of, serve
from skycairn.mirror.wire import SMALL

HOST = "archive.example"
DATA = bytes(range(256)) * 40


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with files of many kinds, and a secret beside it."""
    folder = tmp_path / "tree"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "data.fits").write_bytes(DATA)
    (folder / "empty.txt").write_bytes(b"")
    (folder / "deep" / "er" / "x.csv.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "secret").write_text("secret")
    return folder


@pytest.fixture
def mirror(tree: Path) -> Iterator[Mirror]:
    with Mirror({f"{HOST}/pub/dr1": tree}) as running:
        yield running


def ask(method: str, url: object, **how: Any) -> httpx.Response:
    with httpx.Client(verify=False) as client:  # loopback has no certificates, and to load them takes long
        return client.request(method, str(url), **how)


def raw(mirror: Mirror, text: bytes) -> bytes:
    """All that comes back for these very bytes, till the connection ends."""
    parts = urlsplit(mirror.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20) as connection:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def at(mirror: Mirror, path: str) -> str:
    return f"{mirror.url}/{HOST}/pub/dr1/{path}"


def test_every_file_of_a_sky_comes_back_byte_for_byte(tiny_sky: Path) -> None:
    n = 0
    with mirror_of(tiny_sky) as mirror, httpx.Client(verify=False) as client:
        for name in RELEASES:
            files = [p for p in sorted((tiny_sky / name).rglob("*")) if p.is_file()]
            assert files
            for path in files:
                below = path.relative_to(tiny_sky / name).as_posix()
                account = HSC_ACCOUNT if name == "hsc" else None
                reply = client.get(f"{mirror.root(name)}/{quote(below)}", auth=account)
                if below.startswith("sql/"):
                    assert name == "hsc" and reply.status_code == 404, "no archive has its database's replies as files"
                else:
                    assert (reply.status_code, reply.content) == (200, path.read_bytes()), below
                n += 1
        assert mirror.requests.total == n == sum(mirror.requests.by_host.values())
        assert set(mirror.requests.by_status) == {200, 404}


def test_roots_are_those_of_the_archives(tiny_sky: Path) -> None:
    mirror = mirror_of(tiny_sky)
    try:
        assert mirror.root("gaia") == f"{mirror.url}/cdn.gea.esac.esa.int/Gaia/gdr3"
        assert mirror.root("legacysurvey").endswith("/portal.nersc.gov/cfs/cosmo/data/legacysurvey/dr10")
        assert mirror.root("hsc") == f"{mirror.url}/hsc-release.mtk.nao.ac.jp"
        with pytest.raises(ValueError, match="no survey 'dessi'; it has legacysurvey, hsc"):
            mirror.root("dessi")
    finally:
        mirror.stop()


def test_a_folder_that_is_no_sky_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no survey's folder"):
        mirror_of(tmp_path)


def test_hsc_wants_its_account_for_files_and_folders(tiny_sky: Path) -> None:
    with mirror_of(tiny_sky) as mirror:
        url = f"{mirror.root('hsc')}/archive/"
        refused = ask("GET", url)
        assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Basic realm=")
        assert ask("GET", url, auth=("mock", "wrong")).status_code == 401
        assert ask("GET", url, headers={"Authorization": "Basic !!"}).status_code == 401
        assert requests.get(url, auth=HSC_ACCOUNT, timeout=20).status_code == 200
        assert ask("GET", f"{mirror.root('gaia')}/gaia_source/").status_code == 200
        said = base64.b64encode(b"mock:wrong").decode()
        assert said not in repr(list(mirror.log))
        assert {a.headers.get("authorization") for a in mirror.log} == {None, "(left out)"}
    with mirror_of(tiny_sky, accounts={}) as mirror:
        assert ask("GET", f"{mirror.root('hsc')}/archive/").status_code == 200


def test_an_account_beyond_ascii(tree: Path) -> None:
    with Mirror({HOST: tree}, accounts={HOST: ("astrónoma", "pässwörd:ü")}) as mirror:
        url = f"{mirror.url}/{HOST}/data.fits"
        assert ask("GET", url, auth=("astrónoma", "pässwörd:ü")).content == DATA


def test_head_says_what_get_says_and_sends_nothing(mirror: Mirror) -> None:
    with httpx.Client(verify=False) as client:
        head, get = client.head(at(mirror, "data.fits")), client.get(at(mirror, "data.fits"))
    same = ("content-length", "content-type", "etag", "last-modified", "accept-ranges")
    assert [head.headers[name] for name in same] == [get.headers[name] for name in same]
    assert head.headers["content-length"] == str(len(DATA)) and head.content == b""
    assert get.headers["content-type"] == "application/fits"
    assert not get.headers["etag"].startswith("W/")


def test_a_packed_file_is_no_encoding(mirror: Mirror) -> None:
    reply = ask("GET", at(mirror, "deep/er/x.csv.gz"))
    assert reply.content == b"\x1f\x8b" and "content-encoding" not in reply.headers


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("0-0", 0, 0),
        ("0-", 0, 10239),
        ("100-199", 100, 199),
        ("10239-", 10239, 10239),
        ("10239-10239", 10239, 10239),
        ("10000-99999999999999999999", 10000, 10239),
        ("-1", 10239, 10239),
        ("-99999", 0, 10239),
    ],
)
def test_ranges(mirror: Mirror, asked: str, first: int, last: int) -> None:
    reply = ask("GET", at(mirror, "data.fits"), headers={"Range": f"bytes={asked}"})
    assert reply.status_code == 206 and reply.content == DATA[first : last + 1]
    assert reply.headers["content-range"] == f"bytes {first}-{last}/{len(DATA)}"


@pytest.mark.parametrize(("path", "asked"), [("data.fits", "10240-"), ("data.fits", "-0"), ("empty.txt", "0-")])
def test_a_range_beyond_the_file(mirror: Mirror, path: str, asked: str) -> None:
    reply = ask("GET", at(mirror, path), headers={"Range": f"bytes={asked}"})
    size = len(DATA) if path == "data.fits" else 0
    assert (reply.status_code, reply.headers["content-range"]) == (416, f"bytes */{size}")


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=-", "bytes=0-1,5-6", "bytes=a-b", "stars=0-1", "bytes=٣-"])
def test_a_range_that_is_none_gets_the_whole(mirror: Mirror, asked: str) -> None:
    reply = ask("GET", at(mirror, "data.fits"), headers={"Range": asked.encode()})
    assert (reply.status_code, reply.content) == (200, DATA)


def test_a_range_of_a_file_that_changed_gets_the_whole(mirror: Mirror, tree: Path) -> None:
    before = ask("HEAD", at(mirror, "data.fits")).headers
    for name in ("etag", "last-modified"):
        reply = ask("GET", at(mirror, "data.fits"), headers={"Range": "bytes=9-", "If-Range": before[name]})
        assert (reply.status_code, reply.content) == (206, DATA[9:])
    (tree / "data.fits").write_bytes(DATA[::-1])
    os.utime(tree / "data.fits", (2e9, 2e9))
    for name in ("etag", "last-modified"):
        reply = ask("GET", at(mirror, "data.fits"), headers={"Range": "bytes=9-", "If-Range": before[name]})
        assert (reply.status_code, reply.content) == (200, DATA[::-1])


def test_what_the_client_has_is_not_sent_again(mirror: Mirror, tree: Path) -> None:
    url = at(mirror, "data.fits")
    told = ask("GET", url).headers

    def status(**headers: str) -> int:
        return ask("GET", url, headers={k.replace("_", "-"): v for k, v in headers.items()}).status_code

    assert status(if_none_match=told["etag"]) == status(if_none_match=f'"x", W/{told["etag"]}') == 304
    assert status(if_none_match="*") == status(if_modified_since=told["last-modified"]) == 304
    assert status(if_none_match='"x"', if_modified_since=told["last-modified"]) == 200, "the ETag goes first"
    assert status(if_modified_since="Thu, 01 Jan 1970 00:00:00 GMT") == status(if_modified_since="yesterday") == 200
    later = ask("GET", url, headers={"If-None-Match": told["etag"]})
    assert later.headers["etag"] == told["etag"] and later.content == b""
    os.utime(tree / "data.fits", ns=(1, 1))
    assert status(if_none_match=told["etag"]) == 200


def test_odd_names_come_back(mirror: Mirror, tree: Path) -> None:
    names = ["a b", "ünï", "%2e%2e", "[1](x)", "a+b&c=d", "q?x", "h#y", "a:b", "'\"<i>", "x" * 255, "..x"]
    for name in names:
        (tree / "deep" / name).write_text(name)
    (tree / "deep" / os.fsdecode(b"not\xffutf8")).write_text("bytes")
    for name in names:
        assert ask("GET", at(mirror, "deep/" + quote(name))).text == name
    assert ask("GET", at(mirror, "deep/not%FFutf8")).text == "bytes"
    page = ask("GET", at(mirror, "deep/"))
    links = [part.split('"')[0] for part in page.text.split('<a href="')[1:]]
    read = {ask("GET", page.url.join(link.replace("&amp;", "&").replace("&#x27;", "'"))).text for link in links[1:]}
    assert {*names, "bytes"} <= read, "each link of a folder's page leads to its file"
    assert "<i>" not in page.text


def test_a_folder_is_a_page_of_links(mirror: Mirror) -> None:
    top = ask("GET", at(mirror, ""))
    assert top.headers["content-type"].startswith("text/html") and "../" not in top.text
    assert '<a href="./data.fits">data.fits</a>' in top.text and "10240" in top.text
    assert '<a href="./deep/">deep/</a>' in top.text
    moved = ask("GET", at(mirror, "deep"))
    assert moved.status_code == 301 and moved.headers["location"] == at(mirror, "deep/")
    assert ask("GET", at(mirror, "data.fits/")).status_code == 404


TRAVERSALS = [
    "../secret",
    "%2e%2e/secret",
    "deep/..%2f..%2fsecret",
    "deep/%2e%2e/%2e%2e/secret",
    "..%2fsecret",
    "%2fetc/passwd",
    "%252e%252e/secret",
    "data.fits%00",
    "..\\secret",
]


@pytest.mark.parametrize("path", TRAVERSALS)
def test_nothing_outside_the_folder(mirror: Mirror, path: str) -> None:
    text = raw(mirror, f"GET /{HOST}/pub/dr1/{path} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
    assert text.split()[1] in (b"400", b"404") and b"root:" not in text and not text.endswith(b"secret")


def test_links_are_followed_inside_alone(mirror: Mirror, tree: Path) -> None:
    (tree / "out").symlink_to(tree.parent / "secret")
    (tree / "up").symlink_to(tree.parent)
    (tree / "in").symlink_to(tree / "data.fits")
    (tree / "loop").symlink_to(tree / "loop")
    os.mkfifo(tree / "pipe")
    assert ask("GET", at(mirror, "in")).content == DATA
    for name in ("out", "up/secret", "up/", "loop", "pipe"):
        assert ask("GET", at(mirror, name)).status_code == 404, name
    page = ask("GET", at(mirror, "")).text
    assert "./in" in page and not any(f'"./{name}' in page for name in ("out", "up", "loop", "pipe"))


def test_other_methods_are_refused_where_there_is_a_file(mirror: Mirror) -> None:
    for method in ("POST", "DELETE", "PUT", "PATCH"):
        reply = ask(method, at(mirror, "data.fits"))
        assert (reply.status_code, reply.headers["allow"]) == (405, "GET, HEAD")
        assert ask(method, at(mirror, "nothing")).status_code == 404
    assert ask("GET", f"{mirror.url}/other.example/data.fits").status_code == 404


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /x HTTP/2.0\r\n\r\n", b"400"),
        (b"GET /x HTTP/1.1\r\nno colon\r\n\r\n", b"400"),
        (b"GET /x HTTP/1.1\r\nA : b\r\n\r\n", b"400"),
        (b"GET /x HTTP/1.1\r\nA: b", b"400"),
        (b"POST /x HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /x HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", b"413"),
        (b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
        (b"GET /x HTTP/1.1\r\n" + b"A: b\r\n" * 300 + b"\r\n", b"431"),
        (b"GET //[ HTTP/1.1\r\n\r\n", b"404"),
    ],
)
def test_what_is_no_request_is_told_so(mirror: Mirror, text: bytes, status: bytes) -> None:
    assert raw(mirror, text).split()[1] == status
    assert ask("GET", at(mirror, "data.fits")).content == DATA, "the mirror goes on"


def test_one_connection_carries_many_requests(mirror: Mirror) -> None:
    one = f"GET /{HOST}/pub/dr1/data.fits HTTP/1.1\r\nRange: bytes=0-3\r\n\r\n".encode()
    last = one.replace(b"Range", b"Connection: close\r\nRange")
    assert raw(mirror, one + one + last + one).count(b"206 Partial Content") == 3
    assert raw(mirror, one.replace(b"1.1", b"1.0") + one).count(b"206 Partial Content") == 1
    parts = urlsplit(mirror.url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    for _ in range(3):
        connection.request("GET", f"/{HOST}/pub/dr1/empty.txt")
        reply = connection.getresponse()
        assert reply.read() == b"" and not reply.will_close
    connection.close()


@pytest.mark.parametrize("whose", ["http://127.0.0.1:1", "HTTPS://other.example", "http://[::1]:8000"])
def test_a_whole_address_may_be_asked_for(mirror: Mirror, whose: str) -> None:
    asked = f"GET {whose}/{HOST}/pub/dr1/data.fits?x=http://y/z HTTP/1.1\r\nConnection: close\r\n\r\n"
    text = raw(mirror, asked.encode())
    assert text.split()[1] == b"200" and text.endswith(DATA)


def test_a_body_is_waited_for(tree: Path) -> None:
    asked: list[Request] = []

    def service(request: Request) -> Reply | None:
        asked.append(request)
        return Reply(201, b"done", {"Location": f"{request.base}/jobs/1"}) if request.path == "/jobs" else None

    with Mirror({HOST: tree}, {HOST: [service]}) as mirror:
        url = f"{mirror.url}/{HOST}/jobs?lang=ADQL&lang=x"
        reply = ask("POST", url, content=b"\0" * 1_000_000, headers={"Expect": "100-continue"})
        assert (reply.status_code, reply.headers["location"]) == (201, f"{mirror.url}/{HOST}/jobs/1")
        assert asked[0].body == b"\0" * 1_000_000 and asked[0].query == {"lang": ["ADQL", "x"]}
        assert ask("GET", f"{mirror.url}/{HOST}/data.fits").content == DATA, (
            "a service goes before files, not over them"
        )


def test_a_service_may_have_ranges_too(tree: Path) -> None:
    reply = Reply(200, DATA, {"Accept-Ranges": "bytes", "ETag": '"1"'})
    with Mirror({}, {HOST: [lambda request: reply]}) as mirror:
        url = f"{mirror.url}/{HOST}/job/1/result"
        assert ask("GET", url, headers={"Range": "bytes=-4"}).content == DATA[-4:]
        assert ask("GET", url, headers={"If-None-Match": '"1"'}).status_code == 304


def test_a_service_that_fails_is_a_500_that_says_why(tree: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def service(request: Request) -> Reply | None:
        raise KeyError("tract")

    with Mirror({HOST: tree}, {HOST: [service]}) as mirror:
        reply = ask("GET", f"{mirror.url}/{HOST}/data.fits")
    assert reply.status_code == 500 and "KeyError: 'tract'" in reply.text
    assert "Traceback" in capfd.readouterr().err


def test_sixteen_threads(mirror: Mirror, tree: Path) -> None:
    big = os.urandom(SMALL) * 5
    (tree / "big").write_bytes(big)

    def work(k: int) -> bool:
        with httpx.Client(verify=False, timeout=60) as client:
            whole = all(client.get(at(mirror, "data.fits")).content == DATA for _ in range(5))
            part = client.get(at(mirror, "big"), headers={"Range": f"bytes={k * 1000}-"}).content
            return whole and part == big[k * 1000 :] and client.get(at(mirror, f"none-{k}")).status_code == 404

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(16)))
    assert mirror.requests.total == len(mirror.log) == 16 * 7
    assert mirror.requests.by_status == {200: 80, 206: 16, 404: 16}


def test_a_client_that_goes_away_harms_nobody(mirror: Mirror, tree: Path) -> None:
    (tree / "big").write_bytes(b"x" * 20_000_000)
    parts = urlsplit(mirror.url)
    for _ in range(5):
        with socket.create_connection((parts.hostname or "", parts.port or 0)) as connection:
            connection.sendall(f"GET /{HOST}/pub/dr1/big HTTP/1.1\r\n\r\n".encode())
            connection.recv(100)
    assert ask("GET", at(mirror, "data.fits")).content == DATA


def test_an_ended_mirror_lets_go(tree: Path) -> None:
    before = threading.active_count()
    with Mirror({HOST: tree}) as mirror:
        client = httpx.Client(verify=False)
        client.get(f"{mirror.url}/{HOST}/data.fits")
    with pytest.raises(httpx.TransportError):
        client.get(f"{mirror.url}/{HOST}/data.fits")
    client.close()
    for _ in range(200):  # a thread that was told to end takes a moment
        if threading.active_count() <= before:
            break
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_serve_says_the_roots_and_ends_when_told(tiny_sky: Path) -> None:
    said: list[str] = []
    until = threading.Event()
    thread = threading.Thread(target=serve, args=(tiny_sky,), kwargs={"say": said.append, "until": until})
    thread.start()
    try:
        for _ in range(500):
            if len(said) == len(RELEASES) + 3:
                break
            time.sleep(0.01)
        assert [line.split()[:2] for line in said[:-3]] == [list(pair) for pair in RELEASES.items()]
        assert said[-1].endswith("SSP_PDR_USR=mock SSP_PDR_PWD=mock")
        gaia = next(line.split()[2] for line in said if line.startswith("gaia"))
        assert ask("GET", f"{gaia}/gaia_source/_MD5SUM.txt").status_code == 200
        assert "(account of mock)" in next(line for line in said if line.startswith("hsc"))
    finally:
        until.set()
        thread.join()


@pytest.mark.slow
def test_control_c_ends_it_quietly(tiny_sky: Path) -> None:
    code = "import sys; from pathlib import Path; from skycairn.mirror.sky import serve; serve(Path(sys.argv[1]))"
    command = [sys.executable, "-u", "-c", code, str(tiny_sky)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("legacysurvey")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0 and process.stderr.read() == ""


def test_hosts_of_addresses() -> None:
    assert host("https://hsc-release.mtk.nao.ac.jp/archive") == "hsc-release.mtk.nao.ac.jp"
