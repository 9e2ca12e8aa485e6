"""Query tables of work cells: their paths, where a cell lies, how it is divided when a service cuts replies short.

A row belongs to the cell that HEALPix puts its position into; services are asked for a patch that holds the cell and
somewhat more, and what lies outside is dropped here. So rows at a border, at RA 0 and at a pole are in one file each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import healpy
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skycairn.archives.errors import FetchError
from skycairn.catalogs.survey import WORK_ORDER, RemoteFile

MOST_ORDER = 13
"""A cell is divided down to this order (0.4 arcmin); a service that still cuts replies short there is of no use."""

Ask = Callable[[int, int], pa.Table | None]
"""Rows of a patch that holds the HEALPix cell (order, NESTED index); None where they are more than a reply holds."""


def cell_files(folder: str, cells: Iterable[int]) -> list[RemoteFile]:
    """The query table of each work cell: `query/<folder>/6-<cell>.parquet`."""
    return [RemoteFile(f"query/{folder}/{WORK_ORDER}-{cell}.parquet") for cell in sorted(set(cells))]


def cell_of(path: str, folder: str) -> int:
    """The work cell of a query table's path; ValueError where it is no such path."""
    found = re.fullmatch(rf"query/{folder}/{WORK_ORDER}-(0|[1-9]\d*)\.parquet", path)
    if found is None or int(found[1]) >= 12 << 2 * WORK_ORDER:
        raise ValueError(f"{path!r} is no query table; wanted query/{folder}/{WORK_ORDER}-<work cell>.parquet")
    return int(found[1])


def circle_of(order: int, cell: int) -> tuple[float, float, float]:
    """Centre and radius, in degrees, of a circle that holds the cell."""
    centre = np.asarray(healpy.pix2vec(1 << order, cell, nest=True))
    corners = healpy.boundaries(1 << order, cell, step=8, nest=True)
    radius = np.degrees(np.arccos(np.clip(centre @ corners, -1, 1).min()))
    ra, dec = healpy.pix2ang(1 << order, cell, nest=True, lonlat=True)
    # the edge bulges between the points at which it is followed
    return float(ra), float(dec), float(1.02 * radius + 1e-4)


def box_of(order: int, cell: int) -> tuple[float, float, float, float]:
    """(ra_min, ra_max, dec_min, dec_max) of a box that holds the cell, degrees; ra_min is larger if it crosses RA 0."""
    ra, dec, radius = circle_of(order, cell)
    south, north = max(dec - radius, -90.0), min(dec + radius, 90.0)
    if south == -90 or north == 90:
        return 0.0, 360.0, south, north
    # the meridian that touches the circle does so nearer to the pole than its centre
    half = float(np.degrees(np.arcsin(min(1.0, np.sin(np.radians(radius)) / np.cos(np.radians(dec))))))
    return (ra - half) % 360, (ra + half) % 360, south, north


def rows_of_cell(cell: int, ask: Ask, ra: str, dec: str, order: int = WORK_ORDER) -> pa.Table:
    """All rows of the cell, in any order; `ra`, `dec` name the position's columns, in degrees.

    A cell of which a reply does not hold all rows is asked for in four parts, and so on.
    """
    found = ask(order, cell)
    if found is not None:
        return inside(found, order, cell, ra, dec)
    if order >= MOST_ORDER:
        raise FetchError(
            f"the service cuts its reply short even for HEALPix cell {cell} of order {order}: raise `max_rows`, or "
            "read the survey's own files"
        )
    return pa.concat_tables([rows_of_cell(4 * cell + k, ask, ra, dec, order + 1) for k in range(4)])


def cells_at(table: pa.Table, order: int, ra: str, dec: str) -> NDArray[np.int64]:
    """The cell that HEALPix puts each row's position into, NESTED; -1 for a row without one."""
    lon, lat = (table.column(c).cast(pa.float64()).fill_null(np.nan).to_numpy() for c in (ra, dec))
    on_sky = np.isfinite(lon) & (np.abs(np.where(np.isfinite(lat), lat, np.inf)) <= 90)
    out = np.full(len(lon), -1, dtype=np.int64)
    out[on_sky] = healpy.ang2pix(1 << order, lon[on_sky], lat[on_sky], nest=True, lonlat=True)
    return out


def inside(table: pa.Table, order: int, cell: int, ra: str, dec: str) -> pa.Table:
    """The rows whose position HEALPix puts into the cell; one without a position is in none."""
    return table.filter(pa.array(cells_at(table, order, ra, dec) == cell))


def write_sorted(table: pa.Table, keys: tuple[str, ...], into: Path) -> None:
    """Write the rows in the order of `keys`, then of all that can be ordered: the same bytes for the same rows."""
    rest = [f.name for f in table.schema if f.name not in keys and not pa.types.is_nested(f.type)]
    order = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in (*keys, *rest)])
    rows = table.take(order).combine_chunks()
    pq.write_table(rows, into, compression="zstd", write_page_checksum=True, store_schema=True)
