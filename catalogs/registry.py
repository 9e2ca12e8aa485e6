"""The surveys, by name."""

from __future__ import annotations

from typing import Any

from skycairn.catalogs.desi import Desi
from skycairn.catalogs.gaia import Gaia
from skycairn.catalogs.hsc import Hsc
from skycairn.catalogs.legacysurvey import LegacySurvey
from skycairn.catalogs.sdss import Sdss
from skycairn.catalogs.survey import Survey
from skycairn.catalogs.targets import Targets

SURVEYS: dict[str, type[Survey]] = {s.name: s for s in (LegacySurvey, Hsc, Gaia, Desi, Sdss, Targets)}
"""In the order of their ranks."""


def survey(name: str, release: str, **options: Any) -> Survey:
    """The survey of this name and release; ValueError names those that there are."""
    if name not in SURVEYS:
        raise ValueError(f"there is no survey {name!r}; there are {', '.join(SURVEYS)}")
    return SURVEYS[name](release, **options)
