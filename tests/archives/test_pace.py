"""Calls to one host are kept apart, and so are the services' queries."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from skycairn.archives import datalab, gaiaquery, sdssquery
from skycairn.archives.errors import FetchError
from skycairn.archives.pace import Pace
from skycairn.archives.service import Service
from skycairn.mirror.server import Mirror, Reply


def test_each_host_has_its_own_pace_and_this_machine_none() -> None:
    now, slept = [100.0], []
    pace = Pace(lambda: now[0], slept.append)
    for url in ("https://a.test/x", "https://b.test/x", "https://a.test/y", "https://a.test/x"):
        pace.wait(url, 1.0)
    assert slept == [1.0, 2.0], "three at once to one host are a second apart"
    now[0] = 102.5
    pace.wait("https://a.test/x", 1.0)
    pace.wait("https://b.test/x", 1.0)
    for _ in range(3):
        pace.wait("http://127.0.0.1:8000/a.test/x", 1.0)
    assert slept == [1.0, 2.0, 0.5]


@pytest.mark.parametrize("module", [sdssquery, datalab, gaiaquery])
def test_queries_of_a_service_are_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: object) -> None:
    slept: list[float] = []
    monkeypatch.setattr(module, "PACE", Pace(lambda: 0.0, slept.append))
    with Mirror({}, {"x": [lambda request: Reply(400, b"no")]}) as mirror:
        # by its name, since the address of this machine is not waited for
        url = f"http://localhost:{urlsplit(mirror.url).port}/x"
        services: dict[object, Service] = {
            sdssquery: sdssquery.SdssQuery(url),
            datalab: datalab.legacysurvey(url=url),
            gaiaquery: gaiaquery.GaiaQuery(settings=gaiaquery.Settings(tap_url=url, data_url=url)),
        }
        service = services[module]
        file = (service.catalog_files([7]) or [])[0]
        for k in range(3):
            with pytest.raises(FetchError):
                service.fetch(file.path, tmp_path / str(k), lambda path: tmp_path)
    pause = 1.0 if module is sdssquery else 0.5
    assert slept == [pause, 2 * pause]
