"""What archives and the net do wrong, each with what becomes of it; numbered as the catalogue of faults is."""

import base64
import gzip
import hashlib
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from skycairn.archives.client import Client, retry_after
from skycairn.archives.errors import Busy, ChecksumMismatch, FetchError, NotPublished, Refused, Unreachable, Unsafe
from skycairn.archives.files import parse_checksums
from skycairn.archives.hosts import MIRROR, HostLimits
from skycairn.archives.structure import check_structure

_spec = spec_from_file_location("badserver", Path(__file__).with_name("badserver.py"))
assert _spec is not None and _spec.loader is not None
badserver = sys.modules.setdefault("badserver", module_from_spec(_spec))
_spec.loader.exec_module(badserver)
from badserver import Answer, BadServer, Clock, Seen, drip, honest, reply, reset  # noqa: E402

DATA = bytes(np.random.default_rng(3).integers(0, 256, 50_000, dtype=np.uint8))
SHA256 = hashlib.sha256(DATA).hexdigest()
PAGE = b"<!DOCTYPE html>\n<html><head><title>Down for\n maintenance</title></head><body>Come later</body></html>"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(clock: Clock) -> Iterator[Client]:
    with patient(clock) as client:
        yield client


def patient(clock: Clock, limits: HostLimits = MIRROR, **more: object) -> Client:
    return Client(
        {"127.0.0.1": limits, "archive.test": limits},
        loopback=True,
        clock=clock,
        wall_clock=clock,
        sleep=clock.sleep,
        chance=lambda: 1.0,
        resolve=lambda host, port: ["127.0.0.1"],
        **more,  # type: ignore[arg-type]
    )


def nothing_is_at(into: Path) -> bool:
    return not into.exists() and [p.name for p in into.parent.iterdir()] in ([], [f"{into.name}.part"])


def fits_file(path: Path, n_hdus: int = 3, checksum: bool = True) -> bytes:
    images = [fits.ImageHDU(np.arange(5000, dtype="f4") + i, name=f"E{i}") for i in range(n_hdus - 1)]
    fits.HDUList([fits.PrimaryHDU(), *images]).writeto(path, checksum=checksum)
    return path.read_bytes()


# 19 to 21: what is damaged on its way.


def test_fault_19_a_fits_file_cut_short_is_fetched_again(tmp_path: Path, client: Client) -> None:
    whole = fits_file(tmp_path / "made")
    into = tmp_path / "x" / "a.fits"
    into.parent.mkdir()
    check = partial(check_structure, name="a.fits")
    with BadServer(reply(whole[:-3000]), reply(whole)) as server:
        got = client.download(f"{server.url}/a.fits", into, check=check)
    assert into.read_bytes() == whole and got.requests == 2
    into.unlink()
    with BadServer(reply(whole[:-3000])) as server, pytest.raises(ChecksumMismatch, match="headers promise"):
        client.download(f"{server.url}/a.fits", into, check=check)
    assert len(server.seen) == 2 and nothing_is_at(into)


def test_fault_20_a_fits_file_cut_between_hdus_is_found_by_size_and_by_number(tmp_path: Path, client: Client) -> None:
    whole = fits_file(tmp_path / "made")
    cut = whole[: -(2880 + -(-20_000 // 2880) * 2880)]
    into = tmp_path / "x" / "a.fits"
    into.parent.mkdir()
    (tmp_path / "cut").write_bytes(cut)
    check_structure(tmp_path / "cut", "a.fits")
    with BadServer(reply(cut)) as server:
        with pytest.raises(ChecksumMismatch, match=f"{len(cut):,} bytes, the archive publishes {len(whole):,}"):
            client.download(f"{server.url}/a.fits", into, size=len(whole))
        with pytest.raises(ChecksumMismatch, match="it has 2 HDUs, wanted 3"):
            client.download(f"{server.url}/a.fits", into, check=partial(check_structure, name="a.fits", least_hdus=3))
    assert nothing_is_at(into)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


@pytest.mark.parametrize("name", ["a.fits", "a.csv.gz"])
def test_fault_21_a_flipped_bit_is_fetched_again_once(tmp_path: Path, client: Client, name: str) -> None:
    data = fits_file(tmp_path / "made") if name == "a.fits" else gzip.compress(DATA)
    bad = flipped(data, 9000)
    into = tmp_path / "x" / name
    into.parent.mkdir()
    check = partial(check_structure, name=name)
    for how in ({"check": check}, {"digest": hashlib.md5(data).hexdigest()}):
        with BadServer(reply(bad), reply(data)) as server:
            got = client.download(f"{server.url}/{name}", into, **how)
        assert into.read_bytes() == data and got.requests == 2 and got.verified == ("digest" in how)
        into.unlink()
        with BadServer(reply(bad)) as server, pytest.raises(ChecksumMismatch, match="fetched twice"):
            client.download(f"{server.url}/{name}", into, **how)
        assert len(server.seen) == 2 and nothing_is_at(into)


# 23 and 24: what the archive says of its own files.


@pytest.mark.parametrize("digest", [SHA256.upper(), hashlib.sha1(DATA).hexdigest(), hashlib.md5(DATA).hexdigest()])
def test_fault_23_a_file_is_held_against_whatever_digest_there_is(tmp_path: Path, client: Client, digest: str) -> None:
    listed = parse_checksums(f"{digest} *a b.fits\r\n", "list")
    with BadServer(honest(DATA)) as server:
        got = client.download(f"{server.url}/a%20b.fits", tmp_path / "f", digest=listed["a b.fits"])
        unknown = client.download(f"{server.url}/a%20b.fits", tmp_path / "g")
    assert got.verified and not unknown.verified and got.sha256 == unknown.sha256 == SHA256


def test_fault_23_a_wrong_list_never_overwrites_a_good_file(tmp_path: Path, client: Client) -> None:
    into = tmp_path / "f"
    into.write_bytes(b"good")
    with BadServer(honest(DATA)) as server, pytest.raises(ChecksumMismatch, match=f"sha256 is {SHA256[:12]}"):
        client.download(f"{server.url}/f", into, digest="0" * 64)
    assert into.read_bytes() == b"good" and len(server.seen) == 2


@pytest.mark.parametrize("status", [404, 410])
def test_fault_24_a_file_that_is_not_there_is_asked_for_once(tmp_path: Path, client: Client, status: int) -> None:
    into = tmp_path / "f"
    with BadServer(reply(b"no", status)) as server:
        with pytest.raises(NotPublished, match=f"no such file .status {status}"):
            client.download(f"{server.url}/f", into)
        assert client.head(f"{server.url}/f") is None
        with pytest.raises(NotPublished):
            client.read(f"{server.url}/f")
    assert len(server.seen) == 3 and nothing_is_at(into)


@pytest.mark.parametrize("status", [400, 401, 403, 405, 451, 501])
def test_fault_24_no_other_refusal_is_asked_for_again(tmp_path: Path, client: Client, status: int) -> None:
    with BadServer(reply(b"no", status)) as server:
        with pytest.raises(FetchError, match=str(status)) as told:
            client.download(f"{server.url}/f", tmp_path / "f")
    assert isinstance(told.value, Refused) == (status in (401, 403))
    assert len(server.seen) == 1 and nothing_is_at(tmp_path / "f")


# 25 to 27: a host that is busy, or slow.


@pytest.mark.parametrize(
    ("said", "wait_s"),
    [("7", 7), ("-5", 0), ("99999999", 3600), ("9" * 400, 3600), ("soon", None), ("", None), ("1e3", None)],
)
def test_fault_25_what_a_host_may_ask_to_wait(said: str, wait_s: float | None) -> None:
    assert retry_after({"retry-after": said}, 0.0, 3600.0) == wait_s


def test_fault_25_a_date_is_held_against_the_hosts_own_clock() -> None:
    now = 1_700_000_000.0
    said = {"retry-after": formatdate(now + 90, usegmt=True)}
    assert retry_after(said, now, 3600.0) == 90
    assert retry_after(said, now + 500, 3600.0) == 0
    assert retry_after(said, now - 86400, 3600.0) == 3600
    assert retry_after({**said, "date": formatdate(now, usegmt=True)}, now - 86400, 3600.0) == 90


@pytest.mark.parametrize("status", [429, 503])
def test_fault_25_all_threads_wait_where_a_host_asks_one_to(tmp_path: Path, clock: Clock, status: int) -> None:
    asked: list[float] = []

    def first(seen: Seen, to: object) -> None:
        asked.append(clock.now)
        answer = reply(b"", status, Retry_After="500") if len(asked) == 1 else honest(DATA)
        answer(seen, to)  # type: ignore[arg-type]

    with BadServer(first) as server, patient(clock) as client:
        began = clock.now
        client.download(f"{server.url}/f", tmp_path / "f")
        client.read(f"{server.url}/g", most_bytes=len(DATA))
    assert len(asked) == 3 and all(when >= began + 500 for when in asked[1:])
    with BadServer(reply(b"", status, Retry_After="500")) as server, patient(clock) as client:
        with pytest.raises(Busy):
            client.send("POST", f"{server.url}/job", json={})
        began = clock.now
        with pytest.raises(Busy, match="6 tries"):
            client.download(f"{server.url}/f", tmp_path / "h")
        # the POST's wait, and one before each further try
        assert clock.now - began == pytest.approx(6 * 500)


def test_fault_26_a_storm_of_5xx_is_waited_out(tmp_path: Path, client: Client, clock: Clock) -> None:
    with BadServer(*[reply(b"", s) for s in (500, 502, 503, 504)], honest(DATA)) as server:
        assert client.download(f"{server.url}/f", tmp_path / "f").requests == 5
    assert clock.slept == [1, 3, 9, 27] and (tmp_path / "f").read_bytes() == DATA
    with BadServer(reply(b"", 503)) as server, pytest.raises(Busy, match=r"6 tries \(status 503\)"):
        client.download(f"{server.url}/g", tmp_path / "g")
    assert len(server.seen) == 6 and not (tmp_path / "g").exists()


def test_fault_26_a_host_that_is_down_is_left_alone_for_a_while(tmp_path: Path, client: Client, clock: Clock) -> None:
    with BadServer(*[reply(b"", 500)] * 11, honest(DATA)) as server:
        for _ in range(2):
            with pytest.raises(Busy):
                client.download(f"{server.url}/f", tmp_path / "f")
        assert len(server.seen) == 10
        with pytest.raises(Busy, match=r"not asked since 1970-.*, after 10 failures in a row .*500.*build again"):
            client.read(f"{server.url}/g")
        assert len(server.seen) == 10
        clock.now += 120
        # one probe fails, and closes the gate again
        with pytest.raises(Busy, match=r"not asked since 1970-.*, after 11"):
            client.download(f"{server.url}/f", tmp_path / "f")
        assert len(server.seen) == 11
        clock.now += 120
        assert client.download(f"{server.url}/f", tmp_path / "f").requests == 1
        assert client.download(f"{server.url}/f", tmp_path / "f").requests == 1


def test_fault_26_failures_that_are_not_in_a_row_close_no_gate(tmp_path: Path, client: Client) -> None:
    with BadServer(*[*[reply(b"", 500)] * 5, honest(DATA)] * 4) as server:
        for _ in range(4):
            client.download(f"{server.url}/f", tmp_path / "f")
    assert len(server.seen) == 24


def test_fault_26_another_host_is_asked_meanwhile(tmp_path: Path, client: Client) -> None:
    with BadServer(reply(b"", 500)) as down, BadServer(honest(DATA)) as up:
        for _ in range(2):
            with pytest.raises(Busy):
                client.read(f"{down.url}/f")
        assert client.download(f"{up.url}/f", tmp_path / "f").size == len(DATA)


def quick(**more: float) -> HostLimits:
    return HostLimits(requests_per_second=1e4, tries=2, backoff_s=(0.0, 0.0), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("limits", "answer", "why"),
    [
        (quick(read_s=0.05), drip(DATA, 0.5), "ReadTimeout"),
        (quick(deadline_s=0.2, deadline_bytes_per_second=1e9), drip(DATA, 0.02), "deadline"),
        (quick(rate_window_s=0.1), drip(DATA, 0.02), "too slow"),
    ],
    ids=["silence", "deadline", "rate"],
)
def test_fault_27_a_drip_comes_to_its_end(tmp_path: Path, limits: HostLimits, answer: Answer, why: str) -> None:
    with BadServer(answer) as server, Client({"127.0.0.1": limits}, loopback=True) as client:
        with pytest.raises(Busy, match=f"2 tries.*{why}"):
            client.download(f"{server.url}/f", tmp_path / "f")
    assert len(server.seen) == 2 and not (tmp_path / "f").exists()


def test_fault_27_headers_that_drip_come_to_their_end(tmp_path: Path) -> None:
    def answer(seen: Seen, to: object) -> None:
        send: Callable[[bytes], None] = to.sendall  # type: ignore[attr-defined]
        send(b"HTTP/1.1 200 OK\r\n")
        for i in range(1000):
            threading.Event().wait(0.02)
            send(b"X-%d: 1\r\n" % i)

    with BadServer(answer) as server, Client({"127.0.0.1": quick(deadline_s=0.2)}, loopback=True) as client:
        with pytest.raises(Busy, match=r"2 tries.*deadline"):
            client.download(f"{server.url}/f", tmp_path / "f")
    assert nothing_is_at(tmp_path / "f")


def test_fault_27_what_came_of_a_drip_is_gone_on_with(tmp_path: Path) -> None:
    limits = quick(deadline_s=0.2, deadline_bytes_per_second=1e9)
    with BadServer(drip(DATA, 0.02, 3000, ETag='"1"'), honest(DATA)) as server:
        with Client({"127.0.0.1": limits}, loopback=True) as client:
            got = client.download(f"{server.url}/f", tmp_path / "f", digest=SHA256)
    assert got.requests == 2 and "range" in server.seen[1].headers


def test_fault_27_nobody_there(tmp_path: Path, client: Client) -> None:
    with BadServer(honest(DATA)) as server:
        url = f"{server.url}/f"
    with pytest.raises(Unreachable, match=r"cannot be reached .ConnectError.*build again"):
        client.download(url, tmp_path / "f")
    assert nothing_is_at(tmp_path / "f") and client.counts()["requests"] == 2
    with pytest.raises(Unreachable):
        client.read(url)
    assert client.counts()["requests"] == 2


def test_fault_27_a_name_that_does_not_resolve_is_tried_twice(tmp_path: Path, clock: Clock) -> None:
    asked = []

    def nowhere(host: str, port: int) -> list[str]:
        asked.append(host)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    with Client(resolve=nowhere, clock=clock, wall_clock=clock, sleep=clock.sleep, chance=lambda: 1.0) as client:
        for name in ("a", "b", "c"):
            with pytest.raises(Unreachable, match=r"data\.sdss\.org: cannot be reached .*name resolution"):
                client.download(f"https://data.sdss.org/{name}", tmp_path / name)
    assert asked == ["data.sdss.org"] * 2 and sum(clock.slept) < 5


def test_fault_27_a_host_that_answered_before_is_waited_for(tmp_path: Path, client: Client) -> None:
    with BadServer(honest(DATA)) as server:
        client.download(f"{server.url}/f", tmp_path / "f")
    with pytest.raises(Busy, match=r"6 tries .ConnectError"):
        client.download(f"{server.url}/g", tmp_path / "g")


# 28 to 31: bodies that break off, and ranges.


@pytest.mark.parametrize(
    "broken",
    [reply(DATA, sent=20_000, ETag='"1"'), reset(DATA, 20_000, ETag='"1"')],
    ids=["end", "reset"],
)
def test_fault_28_a_body_that_breaks_off_is_gone_on_with(tmp_path: Path, client: Client, broken: Answer) -> None:
    into = tmp_path / "f"
    with BadServer(broken, honest(DATA)) as server:
        got = client.download(f"{server.url}/f", into)
    assert into.read_bytes() == DATA and got.sha256 == SHA256 and got.requests == 2
    assert server.seen[1].headers["if-range"] == '"1"'
    assert server.seen[1].headers["range"] == "bytes=20000-"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("how", [{"size": len(DATA)}, {"digest": SHA256}])
def test_fault_28_a_short_body_without_a_length_is_noticed(
    tmp_path: Path, client: Client, how: dict[str, object]
) -> None:
    into = tmp_path / "f"
    short = reply(DATA, sent=20_000, length=False)
    with BadServer(short, reply(DATA, length=False)) as server:
        got = client.download(f"{server.url}/f", into, **how)  # type: ignore[arg-type]
    assert into.read_bytes() == DATA and got.requests == 2
    into.unlink()
    with BadServer(short) as server, pytest.raises(FetchError, match=r"broke off after 20,000|its sha256 is"):
        client.download(f"{server.url}/f", into, **how)  # type: ignore[arg-type]
    assert not into.exists()


def test_fault_28_a_body_that_nothing_can_be_told_of_is_refused(tmp_path: Path, client: Client) -> None:
    with BadServer(reply(DATA, length=False)) as server, pytest.raises(ChecksumMismatch, match="give its size"):
        client.download(f"{server.url}/f", tmp_path / "f")
    assert nothing_is_at(tmp_path / "f") and len(server.seen) == 1


def test_fault_28_chunks_that_break_off_are_noticed(tmp_path: Path, client: Client) -> None:
    def chunks(*sizes: bytes) -> Answer:
        body = b"".join(b"%x\r\n%s\r\n" % (len(s), s) for s in sizes)
        return reply(body, length=False, Transfer_Encoding="chunked")

    with BadServer(chunks(DATA[:5000]), chunks(DATA[:5000], DATA[5000:], b"")) as server:
        got = client.download(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA and got.requests == 2
    # the range tells the length that the chunks did not: the second reply is short too
    (tmp_path / "f").unlink()
    first = reply(b"1388\r\n" + DATA[:5000] + b"\r\n", length=False, Transfer_Encoding="chunked", ETag='"1"')
    short = reply(DATA[5000:], 206, sent=9000, length=False, Content_Range="bytes 5000-49999/50000", ETag='"1"')
    with BadServer(first, short, honest(DATA)) as server:
        client.download(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA and server.seen[2].headers["range"] == "bytes=14000-"


def test_fault_28_without_a_validator_it_begins_anew(tmp_path: Path, client: Client) -> None:
    for etag in (None, 'W/"1"'):
        told = {"ETag": etag} if etag else {}
        with BadServer(reply(DATA, sent=20_000, **told), honest(DATA, etag)) as server:
            client.download(f"{server.url}/f", tmp_path / "f")
        assert (tmp_path / "f").read_bytes() == DATA and "range" not in server.seen[1].headers


def test_fault_28_the_time_of_change_does_for_a_validator(tmp_path: Path, client: Client) -> None:
    then = formatdate(1e9, usegmt=True)
    file = {"ETag": 'W/"1"', "Last_Modified": then}
    with BadServer(reply(DATA, sent=20_000, **file), honest(DATA, 'W/"1"', Last_Modified=then)) as server:
        got = client.download(f"{server.url}/f", tmp_path / "f")
    assert server.seen[1].headers["if-range"] == then and got.last_modified == then
    assert (tmp_path / "f").read_bytes() == DATA


def test_fault_28_another_process_goes_on(tmp_path: Path) -> None:
    into = tmp_path / "f"
    with BadServer(reply(DATA, sent=20_000, ETag='"1"')) as server:
        with pytest.raises(Busy, match="6 tries"), patient(Clock()) as client:
            client.download(f"{server.url}/f", into)
        assert (into.with_name("f.part")).stat().st_size == 20_000 and not into.exists()
        server.script = [honest(DATA)]
        with patient(Clock()) as client:
            assert client.download(f"{server.url}/f", into, digest=SHA256).requests == 1
    assert server.seen[-1].headers["range"] == "bytes=20000-"


def test_fault_28_a_part_of_another_address_is_not_gone_on_with(tmp_path: Path) -> None:
    with BadServer(reply(DATA[::-1], sent=20_000, ETag='"1"')) as server:
        with pytest.raises(Busy), patient(Clock()) as client:
            client.download(f"{server.url}/old", tmp_path / "f")
        server.script = [honest(DATA)]
        with patient(Clock()) as client:
            client.download(f"{server.url}/new", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA


@pytest.mark.parametrize("told", [b"", b"{", b"[]", b'{"url": 1, "path": "/etc"}'])
def test_fault_28_a_note_that_cannot_be_read_begins_anew(tmp_path: Path, client: Client, told: bytes) -> None:
    (tmp_path / "f.part").write_bytes(b"junk")
    (tmp_path / "f.part.json").write_bytes(told)
    with BadServer(honest(DATA)) as server:
        client.download(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA


def test_fault_29_a_page_in_place_of_a_file_is_never_taken(tmp_path: Path, client: Client) -> None:
    into = tmp_path / "f.csv"
    with BadServer(reply(PAGE), reply(PAGE, length=False), honest(DATA)) as server:
        assert client.download(f"{server.url}/f", into).requests == 3
    assert into.read_bytes() == DATA
    into.unlink()
    with BadServer(reply(b"\xef\xbb\xbf \n<HTML><body>Log in")) as server:
        with pytest.raises(Busy, match=r"6 tries \(an HTML page\)"):
            client.download(f"{server.url}/f", into)
    assert len(server.seen) == 6 and nothing_is_at(into)
    with BadServer(reply(PAGE)) as server, patient(Clock()) as other:
        with pytest.raises(Busy, match="an HTML page: 'Down for maintenance'"):
            other.read(f"{server.url}/a.sha256sum")
        assert other.read(f"{server.url}/listing/", pages=True) == PAGE


def test_fault_29_a_page_takes_nothing_away_from_a_part(tmp_path: Path, client: Client) -> None:
    with BadServer(reply(DATA, sent=20_000, ETag='"1"'), reply(PAGE, ETag='"9"'), honest(DATA)) as server:
        client.download(f"{server.url}/f", tmp_path / "f")
    assert server.seen[2].headers["range"] == "bytes=20000-" and (tmp_path / "f").read_bytes() == DATA
    (tmp_path / "f").unlink()
    page = reply(gzip.compress(PAGE), Content_Encoding="gzip", Content_Type="text/html; charset=utf-8")
    with BadServer(reply(DATA, sent=20_000, ETag='"1"'), page, honest(DATA)) as server:
        client.download(f"{server.url}/f", tmp_path / "f")
    assert server.seen[2].headers["range"] == "bytes=20000-" and (tmp_path / "f").read_bytes() == DATA


OTHER = DATA[::-1]


@pytest.mark.parametrize(
    ("second", "n"),
    [
        (reply(DATA, ETag='"1"'), 2),
        (reply(DATA[20_000:], 206, Content_Range="bytes 19999-49999/50000"), 3),
        (reply(DATA[20_000:], 206, Content_Range="bytes 20000-49998/50000"), 3),
        (reply(DATA[20_000:], 206, Content_Range="bytes 20000-49999/50001"), 3),
        (reply(DATA[20_000:], 206, Content_Range="bytes 20000-49999/*"), 3),
        (reply(DATA[20_000:], 206), 3),
        (reply(OTHER[20_000:], 206, Content_Range="bytes 20000-49999/50000", ETag='"2"'), 3),
        (reply(b"", 416), 3),
    ],
    ids=["ignored", "start", "end", "total", "no total", "no range", "other version", "416"],
)
def test_fault_30_a_range_that_is_not_what_was_asked(tmp_path: Path, client: Client, second: Answer, n: int) -> None:
    with BadServer(reply(DATA, sent=20_000, ETag='"1"'), second, honest(DATA)) as server:
        got = client.download(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA and got.sha256 == SHA256
    assert len(server.seen) == got.requests == n
    assert n == 2 or "range" not in server.seen[2].headers


def test_fault_30_a_part_where_the_whole_was_asked_for(tmp_path: Path, client: Client) -> None:
    with BadServer(reply(DATA[:100], 206, Content_Range="bytes 0-99/50000")) as server:
        with pytest.raises(Busy, match="where the whole was asked for"):
            client.download(f"{server.url}/f", tmp_path / "f")
    assert nothing_is_at(tmp_path / "f")


def test_fault_30_a_part_that_is_longer_than_the_file(tmp_path: Path, client: Client) -> None:
    with BadServer(reply(DATA, sent=20_000, ETag='"1"'), honest(DATA[:10_000], '"1"')) as server:
        got = client.download(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA[:10_000] and got.requests == 3


def test_fault_31_a_file_that_is_replaced_meanwhile_is_never_half_one_half_the_other(
    tmp_path: Path, client: Client
) -> None:
    with BadServer(reply(OTHER, sent=20_000, ETag='"1"'), honest(DATA, '"2"')) as server:
        got = client.download(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA and got.etag == '"2"' and got.requests == 2
    assert server.seen[1].headers["if-range"] == '"1"'


# 32 and 33: packing, and leading elsewhere.


@pytest.mark.parametrize("packing", ["gzip", "x-gzip", "br"])
def test_fault_32_what_is_packed_on_its_way_is_refused(tmp_path: Path, client: Client, packing: str) -> None:
    file = gzip.compress(DATA)
    check = partial(check_structure, name="f.csv.gz")
    for body in (file, gzip.compress(file)):
        with BadServer(reply(body, Content_Encoding=packing)) as server:
            with pytest.raises(ChecksumMismatch, match=f"Content-Encoding '{packing}'"):
                client.download(f"{server.url}/f.csv.gz", tmp_path / "f.csv.gz", check=check)
        assert len(server.seen) == 2 and nothing_is_at(tmp_path / "f.csv.gz")
        assert {s.headers["accept-encoding"] for s in server.seen} == {"identity"}


def test_fault_32_a_published_digest_tells_whether_the_bytes_are_the_file(tmp_path: Path, client: Client) -> None:
    file = gzip.compress(DATA)
    digest = hashlib.md5(file).hexdigest()
    with BadServer(reply(file, Content_Encoding="x-gzip")) as server:
        client.download(f"{server.url}/f.csv.gz", tmp_path / "f.csv.gz", digest=digest)
    assert (tmp_path / "f.csv.gz").read_bytes() == file
    with BadServer(reply(gzip.compress(file), Content_Encoding="gzip")) as server, pytest.raises(ChecksumMismatch):
        client.download(f"{server.url}/f.csv.gz", tmp_path / "g.csv.gz", digest=digest)
    assert not (tmp_path / "g.csv.gz").exists()


def test_fault_32_a_file_packed_twice_is_refused(tmp_path: Path, client: Client) -> None:
    with BadServer(reply(gzip.compress(gzip.compress(DATA)))) as server:
        with pytest.raises(ChecksumMismatch, match="packed once too often"):
            client.download(f"{server.url}/f", tmp_path / "f", check=partial(check_structure, name="f.csv.gz"))
    assert nothing_is_at(tmp_path / "f")


@pytest.mark.parametrize(
    "where",
    [
        "https://example.org/f",
        "file:///etc/passwd",
        "ftp://127.0.0.1/f",
        "http://169.254.169.254/latest/meta-data",
        "http://127.0.0.1:{other}/f",
        "http://localhost:{port}/f",
        "http://[::1]:{port}/f",
        "http://2130706433:{port}/f",
        "//example.org/f",
        "http://user:hunter2@127.0.0.1:{port}/f",
        "http://[/f",
    ],
)
def test_fault_33_led_elsewhere(tmp_path: Path, client: Client, where: str) -> None:
    into = tmp_path / "f"
    with BadServer(honest(DATA)) as other, BadServer() as server:
        location = where.format(other=other.port, port=server.port)
        server.script = [reply(b"", 302, Location=location)]
        for ask in (partial(client.download, into=into), client.head, client.read):
            with pytest.raises(Unsafe) as told:
                ask(f"{server.url}/f")
            assert "hunter2" not in str(told.value)
    assert len(server.seen) == 3 and not other.seen and nothing_is_at(into)


def test_fault_33_led_on_where_it_may(tmp_path: Path, client: Client) -> None:
    with BadServer(honest(DATA)) as other, BadServer() as server:
        server.script = [reply(b"", 302, Location="/g"), reply(b"", 307, Location=f"{other.url}/h?token=1")]
        places = [f"127.0.0.1:{s.port}" for s in (server, other)]
        got = client.download(f"{server.url}/f", tmp_path / "f", auth={"X-Key": "k"}, allowed_hosts=places)
    assert got.requests == 3 and (tmp_path / "f").read_bytes() == DATA
    assert [s.path for s in (*server.seen, *other.seen)] == ["/f", "/g", "/h?token=1"]
    assert [s.headers.get("x-key") for s in (*server.seen, *other.seen)] == ["k", "k", None]


def test_fault_33_led_round_in_circles(tmp_path: Path, client: Client) -> None:
    with BadServer(reply(b"", 302, Location="/f")) as server, pytest.raises(Unsafe, match="more than 5 times"):
        client.download(f"{server.url}/f", tmp_path / "f")
    assert len(server.seen) == 6 and nothing_is_at(tmp_path / "f")


@pytest.mark.parametrize(
    "number",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "0.0.0.0", "::1", "fe80::1%eth0",
     "fd00::1", "::ffff:127.0.0.1", "100.64.0.1", "224.0.0.1"],
)  # fmt: skip
def test_fault_33_a_name_that_is_inside_is_not_connected_to(tmp_path: Path, number: str) -> None:
    with BadServer(honest(DATA)) as server:
        client = Client({f"archive.test:{server.port}": MIRROR}, resolve=lambda host, port: ["93.184.215.14", number])
        with client, pytest.raises(Unsafe, match="not of the public internet"):
            client.download(f"http://archive.test:{server.port}/f", tmp_path / "f")
    assert not server.seen and nothing_is_at(tmp_path / "f")


def test_fault_33_a_name_that_changes_is_looked_at_again_for_each_connection(tmp_path: Path) -> None:
    numbers = iter([["127.0.0.1"], ["10.0.0.1"]])
    with BadServer(honest(DATA)) as server:
        place = f"archive.test:{server.port}"
        with Client({place: MIRROR}, loopback=True, resolve=lambda host, port: next(numbers)) as client:
            # no resolver knows this name: it was the number that was checked that was connected to
            assert client.download(f"http://{place}/f", tmp_path / "f").size == len(DATA)
            with pytest.raises(Unsafe, match=r"10\.0\.0\.1"):
                client.download(f"http://{place}/f", tmp_path / "g")
    assert server.seen[0].headers["host"] == place and len(server.seen) == 1


@pytest.mark.parametrize("url", ["file:///etc/passwd", "https://example.org/f", "127.0.0.1/f", "", "http://[::1]/f"])
def test_fault_33_addresses_that_are_none_of_the_archives(tmp_path: Path, client: Client, url: str) -> None:
    with pytest.raises(Unsafe):
        client.download(url, tmp_path / "f")
    assert nothing_is_at(tmp_path / "f")


def test_no_error_holds_a_secret(tmp_path: Path, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key = base64.b64encode(b"me:hunter2").decode()
    auth = {"Authorization": f"Basic {key}"}
    said = f"you sent Basic {key}, hunter2".encode()
    with BadServer(reply(said, 401), reply(said, 400), reply(said, 500)) as server:
        for kind in (Refused, FetchError, Busy):
            with pytest.raises(kind) as told:
                client.download(f"{server.url}/f?key=hunter2", tmp_path / "f", auth=auth)
            assert "hunter2" not in repr(told.value) and key not in repr(told.value)
            assert told.value.__cause__ is None
        with pytest.raises(Busy) as told:
            client.post_json(f"{server.url}/job", {"credential": {"password": "hunter2"}})
        assert "hunter2" not in repr(told.value)
        for bad in ("http://me:hunter2@127.0.0.1/f", "http://me:hunter2@127.0.0.1:port/f", "http://me:hun/ter2@x/"):
            with pytest.raises(Unsafe) as refused:
                client.head(bad)
            assert "hun" not in repr(refused.value)
        with pytest.raises(ValueError, match="authorization") as header:
            client.head(f"{server.url}/f", headers={"authorization": "Basic hunter2\n"})
        assert "hunter2" not in repr(header.value)
    assert "hunter2" not in caplog.text and key not in caplog.text
    for path in tmp_path.iterdir():
        assert key.encode() not in path.read_bytes()


def test_a_password_is_not_sent_unencrypted(tmp_path: Path) -> None:
    with Client({"data.sdss.org": HostLimits()}, resolve=lambda host, port: ["93.184.215.14"]) as client:
        with pytest.raises(Unsafe, match="unencrypted"):
            client.download("http://data.sdss.org/f", tmp_path / "f", auth={"Authorization": "Basic x"})
