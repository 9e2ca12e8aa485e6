"""Which spectrum of a target stays, and which of two rows of one key."""

import numpy as np
import pyarrow as pa

from skycairn.catalogs.survey import Cut, Survey
from skycairn.pile.content import content_id
from skycairn.pipeline.partition import _primaries, _superfluous


class Repeating(Survey):
    """Rows of one `target` repeat each other; the one with the largest `quality` is the primary."""

    name = "repeating"
    releases = ("r",)
    columns = ()
    select = {  # noqa: RUF012
        "main": (Cut("main", ("survey",), lambda v: v["survey"] == "main", "only main"),),
        "all": (),
    }

    @property
    def url(self) -> str:
        return ""

    def catalog_files(self, archive, cells):  # type: ignore[no-untyped-def]
        return []

    def read(self, path, rows=None, companions=None, needed=()):  # type: ignore[no-untyped-def]
        raise NotImplementedError

    def repeats(self, table: pa.Table) -> np.ndarray:
        target, quality = np.asarray(table.column("target")), np.asarray(table.column("quality"))
        out = np.empty(table.num_rows, np.int64)
        for t in np.unique(target):
            rows = np.flatnonzero(target == t)
            out[rows] = rows[np.argmax(quality[rows])]
        return out


TABLE = pa.table(
    {
        "target": [7, 7, 7, 8, 8, 9],
        "survey": ["sv3", "main", "main", "sv3", "sv3", "main"],
        "quality": [9, 3, 5, 1, 2, 1],
    }
)


def test_the_primary_is_one_that_the_profile_wants_where_there_is_any() -> None:
    primary = _primaries(Repeating("r"), "main", TABLE)
    # target 7: the best of main, not sv3's; target 8: nothing of main, so the best there is
    assert primary.tolist() == [2, 2, 2, 4, 4, 5]


def test_without_cuts_the_primary_is_the_surveys_own() -> None:
    assert _primaries(Repeating("r"), "all", TABLE).tolist() == [0, 0, 0, 4, 4, 5]


def test_of_two_rows_of_one_key_the_same_stays_whatever_the_order() -> None:
    table = pa.table(
        {
            "key": [5, 6, 5, 2**63 - 1, 2**63 - 1],
            "flux": [1.0, 2.0, 3.0, 4.0, 4.0],
            "file": list("abcde"),
            "file_sha256": list("abcde"),
            "row": [0, 1, 2, 3, 4],
        }
    )
    kept = []
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 1, 4, 3]):
        some = table.take(pa.array(order))
        rest = some.filter(pa.array(~_superfluous(some))).select(["key", "flux"]).sort_by("key")
        assert rest.column("key").to_pylist() == [5, 6, 2**63 - 1]
        kept.append(content_id(rest))
    assert len(set(kept)) == 1
