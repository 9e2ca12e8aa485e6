import importlib.util

import pytest

if any(importlib.util.find_spec(f"skycairn.catalogs.{name}") is None for name in ("legacysurvey", "targets")):
    pytest.skip("the other surveys are not here", allow_module_level=True)

from skycairn.catalogs.desi import Desi
from skycairn.catalogs.registry import SURVEYS, survey


def test_by_name() -> None:
    assert isinstance(survey("desi", "dr1", catalog="redrock"), Desi)
    assert all(cls.name == name for name, cls in SURVEYS.items())


def test_ranks_differ_and_are_in_order() -> None:
    ranks = [cls.rank for cls in SURVEYS.values()]
    assert ranks == sorted(set(ranks))


def test_unknown() -> None:
    with pytest.raises(ValueError, match=r"there is no survey 'dessi'; there are legacysurvey, hsc, gaia, desi, sdss"):
        survey("dessi", "dr1")


def test_links_name_surveys_and_releases_that_there_are() -> None:
    links = {name: {link.to: link.releases for link in cls.links} for name, cls in SURVEYS.items() if cls.links}
    assert links == {"legacysurvey": {"gaia": ("dr3", "mmu-dr3")}, "desi": {"legacysurvey": ()}}
    assert all(set(releases) <= set(SURVEYS[to].releases) for of in links.values() for to, releases in of.items())
    assert all(len(cls.links) == len({link.to for link in cls.links}) for cls in SURVEYS.values())
