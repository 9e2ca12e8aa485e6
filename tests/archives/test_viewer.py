"""Cut-outs as files of an archive: asked for once a source, looked at, never taken for another's."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from skycairn.archives import viewer
from skycairn.archives.cache import Cache
from skycairn.archives.client import Client
from skycairn.archives.errors import Busy, Changed, FetchError, NotPublished
from skycairn.archives.hosts import HOSTS
from skycairn.archives.remote import RemoteArchive
from skycairn.archives.sources import Download, open_archive
from skycairn.archives.viewer import Viewer
from skycairn.catalogs.legacysurvey import LegacySurvey
from skycairn.catalogs.survey import RemoteFile
from skycairn.catalogs.viewerimage import Asked
from skycairn.mirror.server import Mirror, Reply, Request
from tests.catalogs.test_viewerimage import DEC, RA, write

HOST, SIZE = "www.legacysurvey.org", 16
PATH = Asked.about("ls-dr10-south", "griz", SIZE, RA, DEC).path
SURVEY = LegacySurvey("dr10", pixels="cutout", cutout_pixels=SIZE)


class Served:
    """A mirror whose viewer says what it is told."""

    def __init__(self, cache: Path) -> None:
        self.says: Callable[[], Reply] = lambda: Reply(404, b"nothing\n")
        self.asked: list[Request] = []
        self.mirror = Mirror({}, {HOST: [self]})
        self.cache = Cache(cache, 10**9)
        self.client = Client(HOSTS, loopback=True, sleep=lambda s: None)

    def __call__(self, request: Request) -> Reply:
        self.asked.append(request)
        return self.says()

    def archive(self) -> RemoteArchive:
        def services(archive: RemoteArchive) -> list[Viewer]:
            return [Viewer(archive.mirrored(viewer.URL), archive.client)]

        made = RemoteArchive(SURVEY, SURVEY.url, self.cache, self.mirror.url, services)
        made.connect(self.client)
        return made


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path / "cache")
    with made.mirror, made.client:
        yield made


def reply(path: Path) -> Callable[[], Reply]:
    return lambda: Reply(200, path.read_bytes(), {"Content-Type": "application/fits"})


def test_the_question_is_the_whole_address() -> None:
    asked = "ra=33.3000000&dec=-5.5000000&layer=ls-dr10-south&pixscale=0.262&bands=griz&size=16"
    assert Viewer().question(PATH) == f"https://www.legacysurvey.org/viewer/fits-cutout?{asked}"
    assert Viewer().catalog_files([1]) is None
    with pytest.raises(NotPublished, match="is no path of a cut-out"):
        Viewer().question("viewer/all.fits")


def test_two_replies_agree_and_are_kept(served: Served, tmp_path: Path) -> None:
    served.says = reply(write(tmp_path / "a.fits"))
    archive = served.archive()
    archive.bring(RemoteFile(PATH))
    assert archive.failed(PATH) is None and archive.local(PATH).read_bytes() == (tmp_path / "a.fits").read_bytes()
    # not over TLS, and nobody vouches for it
    assert len(served.asked) == 2 and served.asked[0].query["dec"] == ["-5.5000000"]
    assert archive.origin(PATH)["vouched for by"] == "nobody: first seen here"
    assert archive.of_service(PATH) and archive.host(PATH) == served.mirror.url.removeprefix("http://")
    assert archive.host("survey-bricks.fits.gz") == "portal.nersc.gov"
    again = served.archive()
    again.bring(RemoteFile(PATH))
    assert again.state(PATH) == archive.state(PATH) and len(served.asked) == 2


def test_replies_that_differ_are_not_believed(served: Served, tmp_path: Path) -> None:
    number = iter(range(1, 100))

    def other() -> Reply:
        return reply(write(tmp_path / "a.fits", np.full((4, SIZE, SIZE), next(number), np.float32)))()

    served.says = other
    archive = served.archive()
    archive.bring(RemoteFile(PATH))
    assert isinstance(archive.failed(PATH), Busy) and "no two of them the same" in str(archive.failed(PATH))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"CRVAL2": DEC + 1 / 3600}, "off the middle"),
        ({"scale": 0.5}, "wanted 0.262"),
        ({"BANDS": "grzy"}, "bands 'grzy'"),
    ],
)
def test_another_cutout_is_refused_by_name_and_asked_for_once(
    served: Served, tmp_path: Path, changed: dict[str, float], message: str
) -> None:
    served.says = reply(write(tmp_path / "a.fits", **changed))
    archive = served.archive()
    archive.bring(RemoteFile(PATH))
    error = archive.failed(PATH)
    assert isinstance(error, FetchError) and message in str(error) and PATH in str(error)
    assert len(served.asked) == 1 and str(tmp_path) not in str(error)
    assert archive.cache.look(f"mirror of legacysurvey {PATH}: {Viewer().question(PATH)}") is None


@pytest.mark.parametrize("status", [404, 503, 200])
def test_a_viewer_that_is_not_there_says_nothing_about_the_sky(served: Served, status: int) -> None:
    served.says = lambda: Reply(status, b"<html><title>Being mended</title></html>", {"Content-Type": "text/html"})
    archive = served.archive()
    archive.bring(RemoteFile(PATH))
    assert isinstance(archive.failed(PATH), Busy) and PATH in str(archive.failed(PATH))


def test_a_worker_asks_nobody(tmp_path: Path) -> None:
    with pytest.raises(Changed, match="not in the cache of this worker"):
        Viewer().fetch(PATH, tmp_path / "a.fits", lambda path: tmp_path)


def test_no_root_holds_cutouts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'set surveys\.legacysurvey\.source to "archive" or "query"'):
        open_archive(SURVEY, "root", str(tmp_path), "", Download(cache=str(tmp_path)))
    for source, prefixes in (("archive", ["viewer/"]), ("query", ["query/", "viewer/"])):
        made = open_archive(SURVEY, source, "", "", Download(cache=str(tmp_path)))
        assert isinstance(made, RemoteArchive)
        assert [s.prefix.split("/")[0] + "/" for s in made.services] == prefixes
    plain = open_archive(LegacySurvey("dr10"), "archive", "", "", Download(cache=str(tmp_path)))
    assert isinstance(plain, RemoteArchive) and not plain.services
