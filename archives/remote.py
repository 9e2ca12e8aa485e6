"""A survey's archive far away: its files come through the cache, each brought once and verified before it is there.

The builder brings files, workers only read them: an archive without a client knows what the cache holds and no more. A
file that was had once is not asked for again, unless all is to be looked at `anew`; what the archive lists and did not
give is asked for in each build.

Where no published digest vouches for a file and it did not come over TLS, it is fetched until two replies agree.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from skycairn.archives.cache import Cache, Entry, NoRoom, Pin
from skycairn.archives.client import Client, Head
from skycairn.archives.credentials import basic_auth, credential, how_to_set
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
    never_connected,
)
from skycairn.archives.files import State, SurveyArchive, digests, inside, parse_checksums, verify
from skycairn.archives.hosts import HOSTS
from skycairn.archives.service import Service
from skycairn.archives.structure import check_structure, tells_its_end
from skycairn.catalogs.survey import MissingColumn, RemoteFile, Survey

Services = Callable[["RemoteArchive"], Sequence[Service]]
"""The services of an archive, which may ask by its client and want its files."""
MOST_QUESTIONS = 3000
"""Put to a service for one build; who wants more of the sky takes the archive's files."""
MISSING_DAYS = 1.0
"""How long it is believed that a file is not there which no list could tell of."""
LIST = re.compile(r"(sha256sum|sha1sum|md5sum)(\.txt)?$", re.IGNORECASE)
"""Names of lists of checksums."""
TRIES = 6
AGREE = 6
"""How often an unvouched file is fetched at most, till two replies are the same."""
ACCOUNTS = {"hsc-release.mtk.nao.ac.jp": "hsc"}
"""Hosts whose files want an account, and its name."""


class RemoteArchive(SurveyArchive):
    """An archive's files over HTTP, and its services' replies."""

    def __init__(
        self,
        survey: Survey,
        url: str,
        cache: Cache,
        mirror: str = "",
        services: Services = lambda archive: [],
    ) -> None:
        super().__init__()
        self.survey, self.url, self.cache, self.mirror = survey, url.rstrip("/"), cache, mirror.rstrip("/")
        self.client: Client | None = None
        self.anew = False
        self._services_of, self.services = services, services(self)
        self._entries: dict[str, Entry] = {}
        self._failed: dict[str, FetchError] = {}
        self._refused: Refused | None = None
        self._unreachable: dict[str, Unreachable] = {}
        "by the prefix of a service that never answered"
        self._answered: set[str] = set()
        "prefixes of services that did"
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}

    def where(self, path: str) -> str:
        """The file's address, or the question that a service is asked."""
        service = self._service(path)
        return f"{self.url}/{inside(path)}" if service is None else f"{self.survey.name} {path}"

    def address(self, path: str) -> str:
        """Where the file is fetched from: its address, on the mirror if there is one."""
        return self.mirrored(f"{self.url}/{quote(str(inside(path)), safe='/,+:@!$&()*;=~')}")

    def mirrored(self, url: str) -> str:
        """Where the mirror, if there is one, serves what the archive serves at `url`: below the host's name."""
        if not self.mirror:
            return url
        parts = urlsplit(url)
        return f"{self.mirror}/{parts.netloc}{parts.path}"

    def connect(self, client: Client | None, anew: bool = False) -> None:
        """Ask by this client from now on; without one, know what the cache holds and no more.

        With `anew` the archive is asked whether what the cache holds is still what it publishes.
        """
        self.client, self.anew = client, anew
        self.services = self._services_of(self)

    # --- what is known ------------------------------------------------------------------------------------------------

    def decided(self, file: RemoteFile) -> bool:
        """See `SurveyArchive.decided`; what the cache holds decides, if the archive still publishes the same digest.

        A file whose list cannot be had has `failed`.
        """
        if file.path in self.looked or self.failed(file.path):
            return True
        entry = self.cache.look(self._name(file.path))
        if entry is None or entry.state == "damaged":
            return False
        try:
            listed = self._listed(file)
        except FetchError as error:
            self._failed[file.path] = error
            return True
        if self.anew and (listed is None or entry.state == "missing") and not self._as_before(file.path, entry):
            return False
        if entry.state == "missing":
            in_no_list = file.checksum_list is not None and self.names(file.checksum_list) is not None
            if listed is not None or not (in_no_list or _young(entry)):
                return False
            self.looked[file.path] = None
            return True
        if listed is not None and listed != entry.digest:
            return False
        self.looked[file.path] = _state(entry)
        return True

    def _as_before(self, path: str, entry: Entry) -> bool:
        """Whether the archive says of a file what it said when it was fetched; False where it says too little."""
        if self.client is None or self._service(path) is not None or entry.state != "there":
            return False
        try:
            head = self.head(path)
        except FetchError:
            return False
        said = head and (head.etag, head.last_modified)
        return bool(head and any(said or ()) and said == (entry.etag, entry.last_modified) and head.size == entry.size)

    def failed(self, path: str) -> FetchError | None:
        """See `SurveyArchive.failed`; where the account was refused, nothing more is asked."""
        return self._failed.get(path) or (self._refused if path not in self.looked else None)

    def failures(self) -> list[FetchError]:
        """What went wrong with this build's files so far."""
        return [*self._failed.values(), *([self._refused] if self._refused else [])]

    def state(self, path: str) -> State | None:
        """SHA-256 and size of the file, which is brought first where need be; FetchError where that fails."""
        if path not in self.looked:
            self.bring(RemoteFile(path))
            if error := self.failed(path):
                raise error
        return self.looked[path]

    def local(self, path: str) -> Path:
        """The file in the cache; brought again by the builder where it was dropped."""
        if self.state(path) is None:
            raise NotPublished(f"{self.where(path)}: the archive has no such file")
        found = self._cached(path)
        if found is None and self.client is not None:
            self._bring_again(path)
            found = self._cached(path)
        if found is None:
            raise Changed(f"{self.where(path)}: was dropped from the cache meanwhile; build again")
        return found

    def there(self, path: str) -> bool:
        """Whether the file's bytes are in the cache now."""
        return self._cached(path) is not None

    def origin(self, path: str) -> dict[str, str]:
        """See `SurveyArchive.origin`."""
        entry = self.cache.look(self._name(path))
        if entry is None:
            return {}
        by = "its archive's list" if entry.verified else "nobody: first seen here"
        return {"from": self._name(path), "first seen": entry.first_seen, "vouched for by": by}

    def verify(self, path: str, listed: str | None) -> str:
        """See `SurveyArchive.verify`; what was damaged in the cache is dropped, and brought again by the next build."""
        local, entry = self.local(path), self._entry(path)
        try:
            sha256 = verify(local, listed)
        except ChecksumMismatch:
            if entry is not None and self.cache.whole(entry):
                # as it came: the list is another than it was then
                raise
        else:
            if entry is not None and sha256 == entry.sha256:
                return sha256
            if entry is not None:
                self.cache.whole(entry)
        raise Changed(f"{self.where(path)}: was damaged in the cache, and is dropped from it; build again")

    def check_unchanged(self, path: str, known: Sequence[Any]) -> None:
        """Changed unless the cache holds the bytes that are known; its files never change, they only go."""
        entry = self.cache.look(self._name(path))
        if entry is None or entry.sha256 != known[0]:
            raise Changed(f"{self.where(path)}: another build fetched it anew; build again")
        self.local(path)

    def as_noted(self, looked: Mapping[str, State | None]) -> bool:
        """See `SurveyArchive.as_noted`; False where a listed file was not had: the archive is asked for it again."""
        for path, state in looked.items():
            entry = self.cache.look(self._name(path))
            if entry is None or _state(entry) != state or (state is None and (entry.digest or not _young(entry))):
                return False
        return True

    def look_again(self) -> None:
        """See `SurveyArchive.look_again`."""
        super().look_again()
        self._entries.clear()
        self._failed.clear()
        self._refused = None
        self._unreachable.clear()

    def catalog_files(self, survey: Survey, cells: Iterable[int]) -> list[RemoteFile]:
        """Of the services where they name any, else of the survey's own layout."""
        wanted = list(cells)
        for service in self.services:
            if (found := service.catalog_files(wanted)) is not None:
                if len(found) > MOST_QUESTIONS:
                    raise ValueError(
                        f"{survey.name}: {len(found):,} questions would be put to its catalogue service, more than "
                        f'{MOST_QUESTIONS:,}; take its files instead (surveys.{survey.name}.source = "archive", '
                        f"--source {survey.name}=archive), or less of the sky"
                    )
                return found
        return survey.catalog_files(self, wanted)

    # --- what is brought ----------------------------------------------------------------------------------------------

    def expect(self, checksum_lists: Iterable[str]) -> None:
        """See `SurveyArchive.expect`."""
        unknown = [path for path in checksum_lists if path not in self.looked]
        if unknown and self.client is not None:
            with ThreadPoolExecutor(4, thread_name_prefix="lists") as pool:
                try:
                    list(pool.map(lambda path: self.bring(RemoteFile(path)), unknown))
                except BaseException:
                    # else the pool would wait for what is under way, which may be minutes
                    self.client.close()
                    raise

    def bring(self, file: RemoteFile) -> bool:
        """Have the file in the cache, or know why not: `state`, `failed` and `local` tell then. Whether it came now.

        Raises none of the errors that `failed` tells, but NoRoom. Safe to call from several threads.
        """
        with self._lock:
            lock = self._locks.setdefault(file.path, threading.Lock())
        with lock:
            if file.path in self.looked or self.failed(file.path):
                return False
            try:
                if not self.decided(file):
                    self.looked[file.path] = self._bring(file, self._listed(file))
                    return True
            except NoRoom:
                raise
            except Refused as error:
                self._refused = error
            except FetchError as error:
                self._failed[file.path] = error
            except ValueError as error:
                # a reply that is no table of this survey; a column that is not there is for the caller to mend
                if isinstance(error, MissingColumn) or not self.of_service(file.path):
                    raise
                self._failed[file.path] = ChecksumMismatch(f"{self.where(file.path)}: {error}")
        return False

    def bring_whole(self, file: RemoteFile) -> None:
        """`bring`, and bring again what was dropped from the cache since."""
        if self.bring(file) or self.failed(file.path):
            return
        if self.looked[file.path] is None or self.there(file.path):
            return
        try:
            self._bring_again(file.path)
        except NoRoom:
            raise
        except Refused as error:
            self._refused = error
        except FetchError as error:
            self._failed[file.path] = error

    def _bring_again(self, path: str) -> None:
        entry = self.cache.look(self._name(path))
        before = self.looked[path]
        if entry is not None and self._publish(path, entry.digest) != before:
            self._failed[path] = Changed(f"{self.where(path)}: is another than it was when this build began")

    def size(self, path: str) -> int | None:
        """Bytes of the file, dropped from the cache or not; None where it never came."""
        entry = self._entry(path)
        return None if entry is None else entry.size

    def known_absent(self, path: str) -> bool:
        """Whether the archive was asked for the file, and had none."""
        entry = self.cache.look(self._name(path))
        return entry is not None and entry.state == "missing"

    def head(self, path: str) -> Head | None:
        """What the archive says of a file without sending it; None where it has none. Not for files of services."""
        if self.client is None:
            raise Changed(f"{self.where(path)}: there is no client to ask by")
        with self._account() as auth:
            url = self.address(path)
            return self.client.head(url, auth=auth, allowed_hosts=_named(url))

    def of_service(self, path: str) -> bool:
        """Whether it is a service's reply, no file of the archive's."""
        return self._service(path) is not None

    def host(self, path: str) -> str:
        """Who is asked for the file."""
        service = self._service(path)
        return urlsplit(self.url if service is None else service.question(path)).netloc

    @contextmanager
    def _account(self) -> Iterator[Mapping[str, str]]:
        """The header that the archive's host wants; who is refused is told how to set an account."""
        account = ACCOUNTS.get(urlsplit(self.url).netloc)
        if account is None:
            yield {}
            return
        who = credential(account)
        try:
            yield {"Authorization": basic_auth(who)}
        except Refused as error:
            raise Refused(f"{error}; sent was the account of {who.place}; {how_to_set(account)}") from None

    def _reserve(self, path: str, n_bytes: int) -> None:
        try:
            self.cache.expect(n_bytes)
        except NoRoom as error:
            raise NoRoom(f"{self.where(path)}: {error}") from None

    def keep(self, pin: Pin, paths: Iterable[str]) -> dict[str, int]:
        """Have those of the files that the cache holds stay in it as long as the pin does; bytes of each."""
        known = {path: entry for path in paths if (entry := self._entry(path)) is not None}
        pin.add(str(entry.sha256) for entry in known.values())
        return {path: entry.size or 0 for path, entry in known.items() if self.cache.path(entry) is not None}

    def _bring(self, file: RemoteFile, listed: str | None) -> State | None:
        if self.client is None:
            raise Changed(f"{self.where(file.path)}: is not in the cache of this worker; do all see the same folder?")
        try:
            return self._publish(file.path, listed)
        except NotPublished:
            self.cache.note(self._name(file.path), Entry(digest=listed, state="missing"))
            return None
        except ChecksumMismatch:
            if file.checksum_list is not None and listed is not None:
                # the list may be older than the file
                newer = self._list_anew(file)
                if newer is not None and newer != listed:
                    return self._publish(file.path, newer)
            self.cache.note(self._name(file.path), Entry(digest=listed, state="damaged"))
            raise

    def _listed(self, file: RemoteFile) -> str | None:
        """`listed`; what is wrong with the list says nothing about the file."""
        try:
            return self.listed(file)
        except ChecksumMismatch as error:
            raise Busy(f"{self.where(file.path)}: the list that tells of it cannot be had: {error}") from None

    def _list_anew(self, file: RemoteFile) -> str | None:
        path = str(file.checksum_list)
        self.looked[path] = self._publish(path, None)
        self._lists.pop(path, None)
        return self.listed(file)

    def _publish(self, path: str, listed: str | None) -> State:
        """Fetch the file and put it into the cache; it and what is not the same twice never come there."""
        name, url = self._name(path), self.address(path)
        vouched = listed is not None or urlsplit(url).scheme == "https"
        with self.cache.claim(name) as into:
            entry = self._download(path, into, listed)
            seen = {entry.sha256}
            while not vouched:
                entry = self._download(path, into, listed)
                if vouched := entry.sha256 in seen:
                    break
                seen.add(entry.sha256)
                if len(seen) == AGREE:
                    into.unlink(missing_ok=True)
                    raise Busy(f"{self.where(path)}: {AGREE} replies, and no two of them the same; build again")
            self._entries[path] = self.cache.publish(into, name, entry)
        return [entry.sha256, entry.size]

    def _download(self, path: str, into: Path, listed: str | None) -> Entry:
        """Fetch the file to `into`, and try again where what went wrong says nothing about the file.

        The client tries again by itself, but for two things: it follows no redirect that it may not, and a server that
        sends one is asked again as one that is not well; and a service's conversation has to begin anew.
        """
        again = (Unsafe,) if self._service(path) is None else (Unsafe, Busy, ChecksumMismatch)
        for k in range(TRIES):
            try:
                return self._fetch(path, into, listed)
            except (TimedOut, Unreachable):
                # as long again, six times over, would be a day; who cannot be reached was tried twice
                raise
            except again as error:
                if k == TRIES - 1 or self.client is None:
                    raise
                if k:
                    self._give_up_unreachable(path, error)
                self.client.nap(min(60.0, 0.5 * 3**k) * random.random())
        raise AssertionError("not reached")

    def _give_up_unreachable(self, path: str, error: FetchError) -> None:
        """Unreachable, now and from now on, where no connection to a service was made that never answered."""
        service = self._service(path)
        why = never_connected(error)
        if service is None or service.prefix in self._answered or why is None:
            return
        told = Unreachable(f"{self.survey.name}: its catalogue service cannot be reached ({why}); build again")
        self._unreachable[service.prefix] = told
        raise told from None

    def _fetch(self, path: str, into: Path, listed: str | None) -> Entry:
        into.unlink(missing_ok=True)
        file = path.rsplit("/", 1)[-1]
        if (service := self._service(path)) is not None:
            if known := self._unreachable.get(service.prefix):
                raise Unreachable(str(known))
            try:
                service.fetch(path, into, self.local)
                self._answered.add(service.prefix)
            except NotPublished as error:
                # a service that is not there says nothing about the sky
                raise Busy(str(error)) from None
            return Entry(sha256=digests(into, "sha256")["sha256"], size=into.stat().st_size, file=file)
        if self.client is None:
            raise Changed(f"{self.where(path)}: is not in the cache of this worker")
        check, reserve = partial(_check, name=file), partial(self._reserve, path)
        with self._account() as auth:
            url = self.address(path)
            whole = tells_its_end(file)
            got = self.client.download(
                url,
                into,
                digest=listed,
                check=check,
                proves_whole=whole,
                reserve=reserve,
                auth=auth,
                allowed_hosts=_named(url),
            )
        return Entry(got.sha256, got.size, got.etag, got.last_modified, listed, listed is not None, file=file)

    def _cached(self, path: str) -> Path | None:
        entry = self._entry(path)
        return None if entry is None else self.cache.path(entry)

    def _entry(self, path: str) -> Entry | None:
        """What the cache knows of a file that it was seen to have; looked up once a build."""
        if path not in self._entries:
            entry = self.cache.look(self._name(path))
            if entry is None or entry.state != "there":
                return None
            self._entries[path] = entry
        return self._entries[path]

    def _name(self, path: str) -> str:
        """What the file is called in the cache; what a mirror serves must never pass for what the archive does."""
        service = self._service(path)
        if service is None:
            name = self.where(path)
        else:
            # the same question, whatever port a mirror has today
            asked = service.question(path).replace(f"{self.mirror}/", "https://") if self.mirror else ""
            name = f"{self.where(path)}: {asked or service.question(path)}"
        return f"mirror of {name}" if self.mirror else name

    def _service(self, path: str) -> Service | None:
        return next((s for s in self.services if path.startswith(s.prefix)), None)


def _named(url: str) -> tuple[str, ...] | None:
    """The host alone, where it is none of the archives' own: whoever wrote the recipe named it there."""
    parts = urlsplit(url)
    return None if parts.hostname in (*HOSTS, "127.0.0.1") else (parts.netloc,)


def _check(path: Path, name: str) -> None:
    """`check_structure`; and a list of checksums must be one, lest what is none is kept for one."""
    check_structure(path, name)
    if LIST.search(name):
        try:
            parse_checksums(path.read_text(), name)
        except ValueError as error:
            raise ChecksumMismatch(str(error)) from None


def _young(entry: Entry) -> bool:
    """Whether it was found so short a time ago that it may be believed."""
    try:
        found = datetime.fromisoformat(entry.when)
    except ValueError:
        return False
    return datetime.now(UTC) - found < timedelta(days=MISSING_DAYS)


def _state(entry: Entry) -> State | None:
    return [entry.sha256, entry.size] if entry.state == "there" else None
