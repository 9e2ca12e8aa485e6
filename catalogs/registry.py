"""The surveys, by name."""

from __future__ import annotations

from typing import Any

from skycairn.catalogs.desi import Desi
from skycairn.catalogs.gaia import Gaia
from skycairn.catalogs.hsc import Hsc
from skycairn.catalogs.legacysurvey import LegacySurvey
from skycairn.catalogs.multimodalgaia import MultimodalGaia
from skycairn.catalogs.multimodalimages import MultimodalHsc, MultimodalLegacySurvey
from skycairn.catalogs.multimodalspectra import MultimodalDesi, MultimodalSdss
from skycairn.catalogs.sdss import Sdss
from skycairn.catalogs.survey import Survey
from skycairn.catalogs.targets import Targets


def _with_imports(own: type[Survey], *others: type[Survey]) -> type[Survey]:
    """A survey class whose further releases are made by the classes that read them."""
    by_release = {release: other for other in others for release in other.releases}

    class Whole(own):  # type: ignore[misc, valid-type]
        releases = (*own.releases, *by_release)

        def __new__(cls, release: str, **options: Any) -> Survey:  # type: ignore[misc]
            """Of the class that reads this release."""
            if release in by_release:
                return by_release[release](release, **options)
            made: Survey = super().__new__(cls)
            return made

    Whole.__name__, Whole.__qualname__, Whole.__doc__ = own.__name__, own.__qualname__, own.__doc__
    return Whole


SURVEYS: dict[str, type[Survey]] = {
    "legacysurvey": _with_imports(LegacySurvey, MultimodalLegacySurvey),
    "hsc": _with_imports(Hsc, MultimodalHsc),
    "gaia": _with_imports(Gaia, MultimodalGaia),
    "desi": _with_imports(Desi, MultimodalDesi),
    "sdss": _with_imports(Sdss, MultimodalSdss),
    "targets": Targets,
}
"""In the order of their ranks, each with all its releases."""


def survey(name: str, release: str, **options: Any) -> Survey:
    """The survey of this name and release; ValueError names those that there are."""
    if name not in SURVEYS:
        raise ValueError(f"there is no survey {name!r}; there are {', '.join(SURVEYS)}")
    return SURVEYS[name](release, **options)
