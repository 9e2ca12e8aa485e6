"""An archive far away: what is brought, what is remembered, and what is done where list and file do not agree."""

import hashlib
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from skycairn.archives import remote
from skycairn.archives.cache import Cache
from skycairn.archives.client import Client
from skycairn.archives.errors import (
    Busy,
    Changed,
    ChecksumMismatch,
    FetchError,
    NotPublished,
    Refused,
    TimedOut,
    Unreachable,
    Unsafe,
)
from skycairn.archives.remote import RemoteArchive
from skycairn.archives.service import Have
from skycairn.catalogs.gaia import Gaia
from skycairn.catalogs.survey import RemoteFile
from skycairn.mirror.faults import Faults
from skycairn.mirror.server import Mirror, Reply, Request

URL = "https://archive.test/data"
LIST = "d/files.sha256sum"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Place:
    """A mirror's folder, and an archive over it."""

    def __init__(self, tmp_path: Path, served: Mirror, services: Any = lambda archive: []) -> None:
        self.folder, self.served, self.cache = tmp_path / "tree", served, Cache(tmp_path / "cache", 1 << 30)
        self.services = services
        self.clients: list[Client] = []

    def archive(self, anew: bool = False, client: bool = True) -> RemoteArchive:
        made = RemoteArchive(Gaia("dr3"), URL, self.cache, self.served.url, self.services)
        if client:
            self.clients.append(Client(loopback=True, sleep=lambda s: None))
            made.connect(self.clients[-1], anew)
        return made

    def put(self, path: str, data: bytes, listed: bytes | None = None) -> RemoteFile:
        """A file, and the list of its folder; `listed`: other bytes whose digest the list has."""
        at = self.folder / path
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_bytes(data)
        line = f"{sha256(data if listed is None else listed)}  {at.name}\n"
        (self.folder / LIST).write_text(line)
        return RemoteFile(path, LIST, "sha256")

    def close(self) -> None:
        for client in self.clients:
            client.close()

    def n(self) -> int:
        return self.served.requests.total


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "tree").mkdir()
    with Mirror({"archive.test/data": tmp_path / "tree"}) as served:
        with closing(Place(tmp_path, served)) as place:
            yield place


def test_a_file_is_brought_once_and_then_known(place: Place) -> None:
    file = place.put("d/a.bin", b"stars")
    archive = place.archive()
    assert not archive.decided(file)
    archive.bring(file)
    assert archive.state(file.path) == [sha256(b"stars"), 5] and archive.local(file.path).read_bytes() == b"stars"
    # the list came twice, since nothing vouches for it and the line is not encrypted; the file once
    assert place.n() == 3
    later = place.archive()
    assert later.decided(file) and later.verify(file.path, sha256(b"stars")) == sha256(b"stars") and place.n() == 3


def test_a_worker_reads_the_cache_and_asks_nobody(place: Place) -> None:
    file = place.put("d/a.bin", b"stars")
    worker = place.archive(client=False)
    with pytest.raises(Changed, match="not in the cache of this worker"):
        worker.local(file.path)
    place.archive().bring(file)
    n = place.n()
    worker = place.archive(client=False)
    assert worker.local(file.path).read_bytes() == b"stars" and place.n() == n


def test_listed_and_not_there_is_asked_for_in_each_build_unlisted_once(place: Place) -> None:
    file = place.put("d/a.bin", b"stars")
    (place.folder / "d/a.bin").unlink()
    fact = RemoteFile("d/b.bin", LIST, "sha256")
    for expected in (4, 5):
        archive = place.archive()
        for f in (file, fact):
            archive.bring(f)
            assert archive.state(f.path) is None and archive.failed(f.path) is None
            with pytest.raises(NotPublished):
                archive.local(f.path)
        assert place.n() == expected
        assert not archive.as_noted({file.path: None}) and archive.as_noted({fact.path: None})
    place.put("d/a.bin", b"stars")
    archive = place.archive()
    archive.bring(file)
    assert archive.local(file.path).read_bytes() == b"stars"


def test_fault_23_a_list_older_than_its_file_is_read_again(place: Place) -> None:
    file = place.put("d/a.bin", b"new", listed=b"old")
    archive = place.archive()
    assert archive.names(LIST) == {"a.bin": sha256(b"old")}
    place.put("d/a.bin", b"new")
    archive.bring(file)
    assert archive.failed(file.path) is None and archive.local(file.path).read_bytes() == b"new"
    assert archive.listed(file) == sha256(b"new")


def test_fault_23_a_wrong_list_holds_the_file_back_and_takes_nothing_away(place: Place) -> None:
    file = place.put("d/a.bin", b"good")
    place.archive().bring(file)
    # the archive's list is damaged, and what it now serves as well
    place.put("d/a.bin", b"bad", listed=b"other")
    archive = place.archive(anew=True)
    archive.bring(file)
    assert isinstance(archive.failed(file.path), ChecksumMismatch)
    held = [p for p in place.cache.folder.glob("objects/*/*/a.bin")]
    assert [p.read_bytes() for p in held] == [b"good"]
    place.put("d/a.bin", b"good")
    archive = place.archive()
    archive.bring(file)
    assert archive.failed(file.path) is None and archive.local(file.path).read_bytes() == b"good"


def test_fault_31_a_file_replaced_under_its_name_is_seen_when_looked_at_anew(place: Place) -> None:
    file, alone = place.put("d/a.bin", b"first"), RemoteFile("e.txt")
    (place.folder / "e.txt").write_bytes(b"first")
    archive = place.archive()
    for f in (file, alone):
        archive.bring(f)
    noted = dict(archive.looked)
    place.put("d/a.bin", b"second")
    (place.folder / "e.txt").write_bytes(b"second")
    usual = place.archive()
    assert usual.decided(file) and usual.local(file.path).read_bytes() == b"first" and usual.as_noted(noted)
    anew = place.archive(anew=True)
    for f in (file, alone):
        assert not anew.decided(f)
        anew.bring(f)
        assert anew.local(f.path).read_bytes() == b"second"
    assert not place.archive().as_noted(noted)
    # a worker that was told of the first bytes does not read the second
    with pytest.raises(Changed, match="fetched it anew"):
        place.archive(client=False).check_unchanged("e.txt", [sha256(b"first"), *(noted["e.txt"] or [])])


def test_what_is_the_same_anew_is_not_fetched_again(place: Place) -> None:
    file, alone = place.put("d/a.bin", b"first"), RemoteFile("e.txt")
    (place.folder / "e.txt").write_bytes(b"first")
    archive = place.archive()
    archive.bring(file)
    archive.bring(alone)
    before = {p for p in place.cache.folder.glob("objects/*/*/*")}
    n = place.n()
    anew = place.archive(anew=True)
    assert anew.decided(file) and anew.decided(alone)
    assert place.n() - n == 2 and {p for p in place.cache.folder.glob("objects/*/*/*")} == before


def test_what_was_evicted_is_brought_again(place: Place) -> None:
    file = place.put("d/a.bin", b"stars")
    archive = place.archive()
    archive.bring(file)
    archive.local(file.path).unlink()
    assert archive.decided(file) and not archive.there(file.path)
    archive.bring_whole(file)
    assert archive.there(file.path) and archive.failed(file.path) is None
    archive.local(file.path).unlink()
    place.put("d/a.bin", b"other", listed=b"stars")
    archive.bring_whole(file)
    assert archive.failed(file.path) is not None


def test_nothing_garbled_is_believed_where_no_digest_vouches(place: Place) -> None:
    data = bytes(range(256)) * 40
    (place.folder / "a.bin").write_bytes(data)
    for seed in range(8):
        place.served.faults = Faults(0.25, seed=seed, kinds=("flip", "zeros"), anywhere=True)
        archive = place.archive(anew=True)
        archive.bring(RemoteFile("a.bin"))
        assert archive.local("a.bin").read_bytes() == data
        archive.local("a.bin").unlink()


def test_an_archive_that_never_says_the_same_twice_is_given_up(tmp_path: Path) -> None:
    def lies(request: Request) -> Reply:
        lies.n += 1  # type: ignore[attr-defined]
        return Reply(200, b"%09d" % lies.n)  # type: ignore[attr-defined]

    lies.n = 0  # type: ignore[attr-defined]
    with Mirror({}, {"archive.test": [lies]}) as served:
        place = Place(tmp_path, served)
        archive = place.archive()
        archive.bring(RemoteFile("a.bin"))
        error = archive.failed("a.bin")
        place.close()
    assert isinstance(error, Busy) and "no two of them the same" in str(error) and lies.n == 6  # type: ignore[attr-defined]
    assert not list((tmp_path / "cache").glob("objects/*/*/*"))


class Asked:
    """A service that answers with what it was asked, at the second time."""

    prefix = "query/"

    def __init__(self, trouble: type[Busy] = Busy) -> None:
        self.n = 0
        self.trouble = trouble

    def catalog_files(self, cells: Iterable[int]) -> list[RemoteFile] | None:
        return [RemoteFile(f"query/{c}.csv") for c in cells]

    def question(self, path: str) -> str:
        return f"https://service.test/ {path}"

    def fetch(self, path: str, into: Path, have: Have) -> None:
        self.n += 1
        if self.n == 1:
            raise self.trouble("come later")
        into.write_text(f"{path}\n")


def test_a_service_is_asked_again_where_it_was_busy_and_its_reply_is_kept(tmp_path: Path) -> None:
    service = Asked()
    with Mirror({}) as served:
        place = Place(tmp_path, served, lambda archive: [service])
        archive = place.archive()
        assert [f.path for f in archive.catalog_files(Gaia("dr3"), [3, 4])] == ["query/3.csv", "query/4.csv"]
        archive.bring(RemoteFile("query/3.csv"))
        assert archive.local("query/3.csv").read_text() == "query/3.csv\n"
        asked = service.n
        later = place.archive()
        assert later.decided(RemoteFile("query/3.csv")) and service.n == asked
        place.close()


def test_a_service_that_kept_its_own_deadline_is_not_asked_again(tmp_path: Path) -> None:
    service = Asked(TimedOut)
    with Mirror({}) as served:
        place = Place(tmp_path, served, lambda archive: [service])
        archive = place.archive()
        archive.bring(RemoteFile("query/3.csv"))
        assert isinstance(archive.failed("query/3.csv"), TimedOut) and service.n == 1
        place.close()


def test_a_refused_account_is_asked_for_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSP_PDR_USR", "me")
    monkeypatch.setenv("SSP_PDR_PWD", "geheim")
    (tmp_path / "tree").mkdir()
    host = "hsc-release.mtk.nao.ac.jp"
    with Mirror({host: tmp_path / "tree"}, accounts={host: ("me", "other")}) as served:
        archive = RemoteArchive(Gaia("dr3"), f"https://{host}", Cache(tmp_path / "cache", 1 << 20), served.url)
        with Client(loopback=True) as client:
            archive.connect(client)
            for name in "abc":
                archive.bring(RemoteFile(name))
                error = archive.failed(name)
                assert isinstance(error, Refused) and "SSP_PDR_PWD" in str(error) and "geheim" not in str(error)
        assert served.requests.total == 1


class Short(BaseHTTPRequestHandler):
    """Says no length, and ends in the middle."""

    def do_GET(self) -> None:
        self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + self.server.lines[:3000])  # type: ignore[attr-defined]

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_fault_28_a_list_cut_short_without_a_length_is_not_believed(tmp_path: Path) -> None:
    lines = "".join(f"{sha256(str(i).encode())}  {i}.fits\n" for i in range(100)).encode()
    with HTTPServer(("127.0.0.1", 0), Short) as server:
        server.lines = lines  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/data"
        archive = RemoteArchive(Gaia("dr3"), url, Cache(tmp_path / "cache", 1 << 20))
        with Client(loopback=True, sleep=lambda s: None) as client:
            archive.connect(client)
            with pytest.raises(FetchError):
                archive.names("d/files.sha256sum")
            # nor is a file taken for one that no list has
            archive.bring(RemoteFile("d/1.fits", "d/files.sha256sum", "sha256"))
            assert archive.failed("d/1.fits") is not None
        server.shutdown()


def test_what_no_list_can_tell_of_is_asked_for_again_after_a_day(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.put("d/a.bin", b"stars")
    alone, fact = RemoteFile("x.fits"), RemoteFile("d/b.bin", LIST, "sha256")
    archive = place.archive()
    for f in (alone, fact):
        archive.bring(f)
        assert archive.state(f.path) is None
    assert all(place.archive().decided(f) for f in (alone, fact))
    monkeypatch.setattr(remote, "MISSING_DAYS", 0.0)
    later = place.archive()
    assert not later.decided(alone) and later.decided(fact)
    assert not later.as_noted({"x.fits": None})


def test_a_service_that_is_gone_says_nothing_about_the_sky(tmp_path: Path) -> None:
    class Gone(Asked):
        def fetch(self, path: str, into: Path, have: Have) -> None:
            self.n += 1
            raise NotPublished("404")

    service = Gone()
    with Mirror({}) as served:
        place = Place(tmp_path, served, lambda archive: [service])
        archive = place.archive()
        archive.bring(RemoteFile("query/3.csv"))
        assert isinstance(archive.failed("query/3.csv"), Busy)
        assert not place.archive().decided(RemoteFile("query/3.csv"))
        place.close()


def test_another_address_that_the_recipe_names_is_asked(tmp_path: Path) -> None:
    """And no other, though one leads there."""

    def serve(request: Request) -> Reply | None:
        if request.path == "/away":
            return Reply(302, b"", {"Location": "http://other.test/a.bin"})
        return Reply(200, b"stars") if request.path == "/a.bin" else None

    with Mirror({}, {"data": [serve]}) as served:
        port = served.url.rsplit(":", 1)[1]
        cache = Cache(tmp_path / "cache", 1 << 20)
        archive = RemoteArchive(Gaia("dr3"), f"http://institute.test:{port}/data", cache)
        with Client(loopback=True, sleep=lambda s: None, resolve=lambda host, port: ["127.0.0.1"]) as client:
            archive.connect(client)
            for name in ("a.bin", "away"):
                archive.bring(RemoteFile(name))
        assert archive.local("a.bin").read_bytes() == b"stars"
        assert isinstance(archive.failed("away"), Unsafe)


def test_what_is_no_list_is_not_kept_for_one(place: Place) -> None:
    file = place.put("d/a.bin", b"stars")
    good = (place.folder / LIST).read_text()
    (place.folder / LIST).write_text('{"error": "quota exceeded"}\n')
    archive = place.archive()
    archive.bring(file)
    assert isinstance(archive.failed(LIST), ChecksumMismatch) and "wanted `<digest>" in str(archive.failed(LIST))
    # that says nothing about the file, which waits for another time
    assert isinstance(archive.failed(file.path), Busy)
    (place.folder / LIST).write_text(good)
    archive = place.archive()
    archive.bring(file)
    assert archive.local(file.path).read_bytes() == b"stars"


def test_damage_in_the_cache_is_told_from_a_list_that_changed(place: Place) -> None:
    file = place.put("d/a.bin", b"stars")
    archive = place.archive()
    archive.bring(file)
    md5 = hashlib.md5(b"stars", usedforsecurity=False).hexdigest()
    assert archive.verify(file.path, md5) == archive.verify(file.path, None) == sha256(b"stars")
    with pytest.raises(ChecksumMismatch):
        archive.verify(file.path, sha256(b"other"))
    assert archive.there(file.path)
    held = archive.local(file.path)
    held.chmod(0o644)
    held.write_bytes(b"stirs")
    with pytest.raises(Changed, match="damaged in the cache"):
        archive.verify(file.path, sha256(b"stars"))
    assert not held.exists()


def test_a_service_that_cannot_be_reached_is_tried_twice(tmp_path: Path) -> None:
    class Nowhere(Asked):
        def fetch(self, path: str, into: Path, have: Have) -> None:
            self.n += 1
            try:
                raise socket.gaierror(-2, "Name or service not known")
            except OSError as error:
                raise Busy("the service cannot be reached") from error

    service = Nowhere()
    with Mirror({}) as served:
        place = Place(tmp_path, served, lambda archive: [service])
        archive = place.archive()
        for cell in (3, 4):
            archive.bring(RemoteFile(f"query/{cell}.csv"))
            error = archive.failed(f"query/{cell}.csv")
            assert isinstance(error, Unreachable)
            assert "catalogue service cannot be reached ([Errno -2] Name or service not known); build" in str(error)
        place.close()
    assert service.n == 2
