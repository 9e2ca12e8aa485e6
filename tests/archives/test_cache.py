"""The cache: what is kept, what is evicted, and what outlives whom."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skycairn.archives import cache as module
from skycairn.archives.cache import Cache, Entry, NoRoom, file_name
from skycairn.pile import disk


def put(cache: Cache, name: str, data: bytes, **more: object) -> Path:
    with cache.claim(name) as into:
        into.write_bytes(data)
        entry = Entry(hashlib.sha256(data).hexdigest(), len(data), **more)  # type: ignore[arg-type]
        path = cache.path(cache.publish(into, name, entry))
    assert path is not None
    return path


def held(cache: Cache, name: str) -> bytes | None:
    entry = cache.look(name)
    path = cache.path(entry) if entry is not None else None
    return path.read_bytes() if path is not None else None


def sha(cache: Cache, name: str) -> str:
    entry = cache.look(name)
    assert entry is not None and entry.sha256 is not None
    return entry.sha256


URL = "https://data.sdss.org/sas/dr17/specObj-dr17.fits"


def test_a_file_is_known_by_name_and_kept_by_content(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "new" / "cache", 100)
    assert cache.look(URL) is None
    path = put(cache, URL, b"stars", etag='"1"', verified=True)
    entry = Cache(tmp_path / "new" / "cache", 100).look(URL)
    assert entry is not None and (entry.etag, entry.verified, entry.state, entry.size) == ('"1"', True, "there", 5)
    assert entry.first_seen and entry.when
    assert cache.path(entry) == path and path.name == "specObj-dr17.fits"
    assert path.parent.name == hashlib.sha256(b"stars").hexdigest() and cache.n_bytes() == 5
    assert path.stat().st_mode & 0o222 == 0
    assert not list((cache.folder / "partial").iterdir()) and (tmp_path / "new/cache/locks/claims").stat().st_size == 0


def test_what_was_not_used_for_longest_goes_first_and_is_still_known(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10)
    put(cache, "a", b"aaaa")
    put(cache, "b", b"bbbb")
    assert held(cache, "a") == b"aaaa"
    put(cache, "c", b"cccc")
    assert [held(cache, n) for n in "abc"] == [b"aaaa", None, b"cccc"]
    entry = cache.look("b")
    assert entry is not None and entry.state == "there" and entry.sha256 == hashlib.sha256(b"bbbb").hexdigest()
    # the same bytes come again: they were first seen when they first came
    put(cache, "b", b"bbbb")
    again = cache.look("b")
    assert again is not None and again.first_seen == entry.first_seen and held(cache, "a") is None
    assert cache.n_bytes() == 8


def test_one_content_of_two_names_lies_there_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10)
    assert put(cache, "http://x/one/a.fits", b"same") == put(cache, "http://x/two/a.fits", b"same")
    assert cache.n_bytes() == 4
    # under another name, since its ending may be another
    put(cache, "http://x/two/a.csv", b"same")
    assert cache.n_bytes() == 8 and held(cache, "http://x/one/a.fits") == held(cache, "http://x/two/a.csv") == b"same"


def test_another_content_of_one_name_is_first_seen_now(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    put(cache, "a", b"old", first_seen="2001-01-01T00:00:00+00:00")
    put(cache, "a", b"new")
    entry = cache.look("a")
    assert held(cache, "a") == b"new" and entry is not None and not entry.first_seen.startswith("2001")


def test_what_is_missing_or_damaged_is_known_too(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    cache.note("a", Entry(state="missing"))
    cache.note("b", Entry(state="damaged", sha256="0" * 64, size=3))
    found = [cache.look(n) for n in "ab"]
    assert [e.state for e in found if e] == ["missing", "damaged"] and all(e and cache.path(e) is None for e in found)
    put(cache, "a", b"now there is one")
    assert held(cache, "a") == b"now there is one"


def test_what_is_pinned_stays_while_it_is_pinned(tmp_path: Path) -> None:
    cache, other = Cache(tmp_path, 10), Cache(tmp_path, 10)
    put(cache, "a", b"aaaa")
    with cache.pin([sha(cache, "a")]), cache.pin([]):
        assert other.pinned() == {sha(cache, "a")}
        put(other, "b", b"bbbb")
        put(other, "c", b"cccc")
        assert held(cache, "a") == b"aaaa" and held(cache, "b") is None
        # above its limit, rather than take it away
        put(other, "d", b"d" * 10)
        assert held(cache, "a") == b"aaaa" and cache.n_bytes() == 14 and other.reserve(8) == 2 + 0
    assert other.reserve(8) == 0 and cache.n_bytes() == 0 and other.pinned() == set()


def test_a_pin_dies_with_its_process(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10)
    put(cache, "a", b"aaaa")
    code = (
        "import sys, time; from pathlib import Path; from skycairn.archives.cache import Cache\n"
        "with Cache(Path(sys.argv[1]), 10).pin([sys.argv[2]]): print('pinned', flush=True); time.sleep(100)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), sha(cache, "a")], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"pinned\n"
    put(cache, "b", b"b" * 10)
    assert held(cache, "a") == b"aaaa"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    cache.reserve(10)
    assert held(cache, "a") is None and not list((tmp_path / "pins").iterdir())


def test_a_pin_grows(tmp_path: Path) -> None:
    cache, other = Cache(tmp_path, 10), Cache(tmp_path, 10)
    with cache.pin() as pin:
        for name in "ab":
            put(cache, name, name.encode() * 4)
            pin.add([sha(cache, name)])
        assert other.pinned() == {sha(cache, "a"), sha(cache, "b")}
        put(other, "c", b"cccc")
        assert [held(cache, n) for n in "ab"] == [b"aaaa", b"bbbb"]
    assert not other.pinned() and other.reserve(10) == 0


def flushes(cache: Cache, name: str, data: bytes) -> set[str]:
    """Files and folders that are flushed to disk while a file is put into the cache, without its name's hash."""
    found: list[Path] = []

    def note(op: disk.Op) -> None:
        if op.call in ("fsync", "sync_folder"):
            found.append(op.path.relative_to(cache.folder))

    with disk.watch(note):
        put(cache, name, data)
    return {path.parts[0] for path in found}


def test_what_is_large_or_known_already_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path, 1 << 30)
    assert flushes(cache, "a", b"small") == set()
    assert flushes(cache, "a", b"other") >= {"objects", "index", "partial"}, "what is known must not be lost"
    # the same content under another name, which may have been said to be on the disk
    assert flushes(cache, "b", b"other") >= {"partial"}
    assert flushes(cache, "c", bytes(module.SMALL + 1)) >= {"objects", "index", "partial"}
    told = [cache.look(n) for n in "abc"]
    assert [e and e.boot for e in told] == ["", module.boot(), ""]
    monkeypatch.setattr(module, "boot", lambda: "")
    assert flushes(cache, "d", b"where starts cannot be told") >= {"objects", "index", "partial"}


@pytest.mark.parametrize("left", [b"abcd", b"ab\0\0", b"", None])
def test_what_was_not_flushed_is_read_again_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: bytes | None
) -> None:
    path = put(Cache(tmp_path, 100), "a", b"abcd")
    path.chmod(0o644)
    path.unlink() if left is None else path.write_bytes(left)
    monkeypatch.setattr(module, "boot", lambda: "another start")
    cache = Cache(tmp_path, 100)
    assert held(cache, "a") == (left if left == b"abcd" else None)
    entry = cache.look("a")
    assert entry is not None and entry.boot == "" and entry.sha256 == hashlib.sha256(b"abcd").hexdigest()
    put(cache, "a", b"abcd")
    assert held(cache, "a") == b"abcd"


def test_a_file_greater_than_the_cache_is_refused(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10)
    put(cache, "a", b"aaaa")
    with pytest.raises(NoRoom, match="11 bytes, more than the 10"):
        cache.reserve(11)
    with pytest.raises(NoRoom, match=r"b: has 11 bytes, more than the 10 .* higher limit"):
        put(cache, "b", b"b" * 11)
    assert held(cache, "a") == b"aaaa" and cache.look("b") is None
    with pytest.raises(ValueError, match="more than 0"):
        Cache(tmp_path, 0)


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path, 1000)
    put(cache, "a", b"aaaa")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=100))
    # what may go goes, since the disk has less than its spare
    assert cache.reserve(90) == 0 and held(cache, "a") is None
    with pytest.raises(NoRoom, match="disk has 100 bytes free, 101 are to come"):
        cache.reserve(101)


def test_bytes_that_are_not_those_of_the_entry_are_refused(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    (tmp_path / "f").write_bytes(b"abc")
    for entry in (Entry("0" * 64, 4), Entry("0" * 63, 3), Entry(None, 3), Entry("0" * 64, 3, state="damaged")):
        with pytest.raises(ValueError, match=r"wanted|bytes|SHA-256"):
            cache.publish(tmp_path / "f", "a", entry)
    assert cache.look("a") is None and cache.n_bytes() == 0


def test_an_object_that_rots_is_noticed(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    path = put(cache, "a", b"abcd")
    entry = cache.look("a")
    assert entry is not None and cache.whole(entry)
    path.chmod(0o644)
    path.write_bytes(b"abxd")
    assert not cache.whole(entry) and not path.exists() and cache.n_bytes() == 0
    path = put(cache, "a", b"abcd")
    path.chmod(0o644)
    path.write_bytes(b"ab")
    assert cache.path(entry) is None


@pytest.mark.parametrize("told", [b"", b"{}", b'{"format":1,"name":"a"}', b"\xff"])
def test_an_index_that_cannot_be_read_is_as_none(tmp_path: Path, told: bytes) -> None:
    cache = Cache(tmp_path, 100)
    put(cache, "a", b"abcd")
    (index,) = (tmp_path / "index").glob("*/*.json")
    index.chmod(0o644)
    index.write_bytes(told)
    assert cache.look("a") is None
    put(cache, "a", b"abcd")
    assert held(cache, "a") == b"abcd" and cache.n_bytes() == 4


def test_an_index_may_not_lead_out_of_the_cache(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 100)
    (tmp_path / "secret").write_bytes(b"abc")
    for file in ("../../../../secret", str(tmp_path / "secret"), "..", "a\0b"):
        assert cache.path(Entry("0" * 64, 3, file=file)) is None
    with pytest.raises(ValueError, match="SHA-256"):
        cache.path(Entry("../../../x", 3, file="secret"))


def test_after_a_crash_the_bytes_are_counted_anew(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10)
    put(cache, "a", b"aaaa")
    for left in (b"", b"99", b"junk\n"):
        (tmp_path / "locks" / "cache").write_bytes(left)
        assert cache.n_bytes() == 4


def test_a_publish_that_fails_leaves_the_cache_as_it_is_counted(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10)
    put(cache, "a", b"aaaa")
    put(cache, "b", b"bbbb")

    def fail(op: disk.Op) -> None:
        if op.call == "replace" and op.target is not None and "objects" in op.target.parts:
            raise OSError(5, "Input/output error")

    with disk.watch(fail), pytest.raises(OSError, match="output error"):
        put(cache, "c", b"cccc")
    # what it had evicted is gone, and not counted
    assert cache.look("c") is None and held(cache, "a") is None and cache.n_bytes() == 4
    put(cache, "c", b"cccc")
    assert held(cache, "b") == b"bbbb" and held(cache, "c") == b"cccc"


def test_odd_names_go_by_their_hash(tmp_path: Path) -> None:
    odd = ["http://x/a b.fits", "http://x/ünï.csv.gz", "http://x/%2e%2e", "http://x/a\nb.fits", "http://x/a[1](x).fits",
           "http://x/" + "n" * 255 + ".fits", "http://x/..", "http://x/", "SELECT * FROM gaia WHERE a < 1.5",
           "http://x/a%00b.fits", "http://x/A.fits", "http://x/a.fits", "CON"]  # fmt: skip
    cache = Cache(tmp_path, 10_000)
    for i, name in enumerate(odd):
        put(cache, name, b"%d" % i)
    for i, name in enumerate(odd):
        path = cache.path(cache.look(name) or Entry())
        assert path is not None and path.read_bytes() == b"%d" % i
        assert path.resolve().is_relative_to(tmp_path.resolve() / "objects") and len(path.name) <= 200
    assert file_name(odd[0]).endswith(".fits") and file_name(odd[1]).endswith(".csv.gz")
    assert file_name("https://x/y/sweep-000m005.fits?token=1") == "sweep-000m005.fits"


@pytest.mark.parametrize("bytes_can_be_locked", [True, False])
def test_of_two_who_claim_a_name_one_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_can_be_locked: bool
) -> None:
    if not bytes_can_be_locked:
        monkeypatch.delattr(module.fcntl, "F_OFD_SETLKW")
    fetched: list[int] = []

    def fetch(i: int) -> None:
        cache = Cache(tmp_path, 100)
        with cache.claim("other"), cache.claim("a") as into:
            if held(cache, "a") is None:
                fetched.append(i)
                into.write_bytes(b"abcd")
                cache.publish(into, "a", Entry(hashlib.sha256(b"abcd").hexdigest(), 4))

    threads = [threading.Thread(target=fetch, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1 and "cache" in {p.name for p in (tmp_path / "locks").iterdir()}


def test_downloads_that_nobody_goes_on_with_are_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    for name, age in (("old", 15), ("new", 13)):
        with cache.claim(name) as into:
            part = into.with_name(into.name + ".part")
            part.write_bytes(b"x")
            then = part.stat().st_mtime - age * 24 * 3600
            os.utime(part, (then, then))
    Cache(tmp_path, 100)
    assert len(list((tmp_path / "partial").iterdir())) == 1


def test_no_index_holds_more_than_it_is_told(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    put(cache, URL, b"stars")
    (index,) = (tmp_path / "index").glob("*/*.json")
    told = json.loads(index.read_bytes())
    assert index.stem == hashlib.sha256(URL.encode()).hexdigest() and told["name"] == URL


ACT = st.one_of(
    st.tuples(st.just("publish"), st.integers(0, 7), st.integers(0, 30)),
    st.tuples(st.just("look"), st.integers(0, 7), st.just(0)),
    st.tuples(st.just("pin"), st.integers(0, 7), st.just(0)),
    st.tuples(st.just("unpin"), st.integers(0, 7), st.just(0)),
    st.tuples(st.just("reserve"), st.integers(0, 60), st.just(0)),
    st.tuples(st.just("reopen"), st.integers(0, 1), st.just(0)),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=st.lists(ACT, max_size=25))
def test_whatever_is_done_the_cache_keeps_its_promises(
    acts: list[tuple[str, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    limit = 50
    cache = Cache(folder, limit)
    pins: dict[str, object] = {}
    put_last: dict[str, bytes] = {}
    before = 0
    for act, n, size in acts:
        name = f"n{n}"
        entry = cache.look(name)
        if act == "publish":
            data = put_last[name] = bytes([n]) * size
            put(cache, name, data)
            assert held(cache, name) == data
        elif act == "look":
            assert (entry is None) == (name not in put_last)
            assert held(cache, name) in (None, put_last.get(name))
        elif act == "pin" and entry is not None and cache.path(entry) is not None and entry.sha256 not in pins:
            pins[entry.sha256] = pin = cache.pin([entry.sha256])
            pin.__enter__()
        elif act == "unpin" and entry is not None and entry.sha256 in pins:
            pins.pop(entry.sha256).__exit__(None, None, None)  # type: ignore[attr-defined]
        elif act == "reserve" and n <= limit:
            over = cache.reserve(n)
            assert over == 0 or over == cache.n_bytes() + n - limit
        elif act == "reserve":
            with pytest.raises(NoRoom):
                cache.reserve(n)
        elif act == "reopen":
            cache = Cache(folder, limit)
            if n:
                (folder / "locks" / "cache").write_bytes(b"")
        objects = list((folder / "objects").glob("*/*/*"))
        by_sha = {p.parent.name: p for p in objects}
        assert all(hashlib.sha256(p.read_bytes()).hexdigest() == p.parent.name for p in objects)
        assert set(pins) <= set(by_sha)
        total = sum(p.stat().st_size for p in objects)
        assert cache.n_bytes() == total
        # room is made when something is put; what is pinned then, and the new one, may be more than the limit
        pinned = sum(by_sha[s].stat().st_size for s in pins)
        assert total <= (max(limit, size + pinned) if act == "publish" else before)
        before = total
    for pin in pins.values():
        pin.__exit__(None, None, None)  # type: ignore[attr-defined]
    assert cache.reserve(limit) == 0
