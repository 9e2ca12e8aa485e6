"""Where the tests find real survey files; without them those tests skip."""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).resolve()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of small real survey files: SKYCAIRN_REAL_DATA, or `shared/real-data` beside the checkout."""
    places = [Path(os.environ["SKYCAIRN_REAL_DATA"])] if "SKYCAIRN_REAL_DATA" in os.environ else []
    places.append(HERE.parents[2] / "shared" / "real-data")
    for place in places:
        if place.is_dir():
            return place
    pytest.skip("no real survey files here; set SKYCAIRN_REAL_DATA to a folder that holds them")
