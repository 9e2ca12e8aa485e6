"""A second release of the mock sky: the first one's tables edited as DR10.1 edits DR10, and what became of each row.

Images and spectra stay as they were. Legacy Survey: whole bricks get another RELEASE, and with it other keys. DESI:
redshifts change and another spectrum becomes the primary; new targets come with files of their own (survey `special`).
SDSS: redshifts and primaries change likewise, nothing is added. Gaia: a source that splits loses its source_id, its two
parts get new ones and have no spectrum. See docs/truth.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skycairn.mocksky import legacytables, secondimaging, secondspectra, sed, tableedits
from skycairn.mocksky.fitsfile import TableColumn, write_table
from skycairn.mocksky.legacywriter import TYPES
from skycairn.mocksky.patches import Tier
from skycairn.mocksky.releasetables import FILE, Edition, mend_lists, read_fits, revise
from skycairn.mocksky.tableedits import take

I64 = NDArray[np.int64]
Rows = dict[str, NDArray[Any]]

EDITIONS = {
    "legacysurvey": secondimaging.legacy,
    "gaia": secondimaging.gaia_sources,
    "hsc": secondimaging.hsc,
    "desi": secondspectra.desi_targets,
    "sdss": secondspectra.sdss_fibres,
}
"""By survey: what is done to its tables. Those that the mock does not have are passed over."""


def write(
    tier: Tier, out: Path, seed: int, counts: Mapping[str, int], bricks: tuple[I64, NDArray[Any]]
) -> dict[str, int]:
    """Turn the first release under `out` into the second, in place; gives the counts of its mock.json.

    `bricks` is number and name of the brick of each true thing.
    """
    sources = sed.rows_of(pq.read_table(out / "truth" / "sources.parquet"))
    new = dict(counts)
    for survey, make in EDITIONS.items():
        if not (out / survey).is_dir():
            continue
        truth = pq.read_table(out / "truth" / f"{survey}.parquet")
        edition = make(tier, out / survey, seed, truth, sources, bricks)
        grown, lineage, truth = rewrite(edition, out / survey, seed, truth, sources)
        pq.write_table(truth, out / "truth" / f"{survey}.parquet", compression="zstd")
        pq.write_table(lineage, out / "truth" / f"lineage-{survey}.parquet", compression="zstd")
        new[survey] = counts[survey] + grown
    _count_bricks(out / "legacysurvey")
    return new


def rewrite(edition: Edition, root: Path, seed: int, truth: pa.Table, sources: Rows) -> tuple[int, pa.Table, pa.Table]:
    """Rewrite one survey's tables; gives how many rows there are more, the lineage, and the truth of release 2."""
    paths = sorted(root.glob(edition.files))
    if not paths:
        raise ValueError(
            f"{root} has no {edition.files}: wanted the tables of a first release of {edition.form.survey}"
        )
    tables = edition.read(paths)
    form = edition.form
    before = form.key(tables.rows)
    rows, lineage, truth = tableedits.edit(tables.rows, form, seed, truth, sources)
    keys = form.key(rows)
    if edition.file_of is not None:
        at = np.isin(keys, lineage.filter(_touched(lineage)).column("key_2").drop_null().to_numpy())
        rows[FILE][at] = edition.file_of(take(rows, at), paths)
    rows[edition.new] = np.where((keys < 0) | np.isin(keys, before), 1, 2)
    if edition.order:
        order = np.lexsort([rows[name] for name in reversed(edition.order)])
        rows = take(rows, order)
    tables.rows = rows
    revise(tables, edition.renamed, edition.widened, TableColumn(edition.new, "i2"))
    edition.write(tables)
    mend_lists(root, paths)
    return len(keys) - len(before), lineage, truth


def _touched(lineage: pa.Table) -> pa.Array:
    what = np.array(lineage.column("what").to_pylist())
    return pa.array(np.isin(what, ("moved", "split", "added")))


def _count_bricks(root: Path) -> None:
    """Count the rows of each brick anew in the table of the region's bricks."""
    sweeps = read_fits(sorted(root.glob("south/sweep/*/sweep-*.fits"))).rows
    path = root / "south" / "survey-bricks-dr10-south.fits.gz"
    table = read_fits([path]).rows
    for name, mine in (
        ("nobjs", sweeps["BRICKID"] >= 0),
        *((f"n{t}", sweeps["TYPE"] == t.upper().encode()) for t in TYPES),
    ):
        number, count = np.unique(sweeps["BRICKID"][mine], return_counts=True)
        of = dict(zip(number.tolist(), count.tolist(), strict=True))
        table[name] = np.array([of.get(b, 0) for b in table["brickid"].tolist()])
    write_table(path, legacytables.SOUTH_BRICKS, table, len(table["brickid"]))
