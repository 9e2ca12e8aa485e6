"""What a HATS catalogue consists of beside its rows: paths, properties, list of leaves, map of the sky, schema."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits

from skycairn.pile.files import PendingFile

SKYMAP_ORDER = 8

Cell = tuple[int, int]
"""Order and number of a leaf."""


def leaf_path(catalogue: Path, cell: Cell) -> Path:
    """Where a leaf's rows lie."""
    order, number = cell
    return catalogue / "dataset" / f"Norder={order}/Dir={number // 10_000 * 10_000}/Npix={number}.parquet"


def write_words(folder: Path, schema: pa.Schema, n_rows: Mapping[Cell, int], properties: Mapping[str, Any]) -> None:
    """What says what the leaves are: properties, their twin, partition_info.csv, _common_metadata."""
    told = {
        "obs_collection": folder.name,
        **properties,
        "hats_nrows": sum(n_rows.values()),
        "hats_estsize": sum(p.stat().st_size for p in folder.rglob("Npix=*")) // 1024,
        "hats_max_rows": max(n_rows.values(), default=0),
        "hats_order": properties.get("hats_order", max((order for order, _ in n_rows), default=0)),
        "hats_npix_suffix": ".parquet",
        "moc_sky_fraction": f"{sum(1 / (12 << 2 * order) for order, _ in n_rows):.6g}",
        "hats_builder": "skycairn",
        "hats_version": "v1.0",
        "hats_release_date": "2025-08-22",
    }
    for name in ("hats.properties", "properties"):
        put(folder / name, properties_text(told))
    lines = [f"{order},{cell}\n" for order, cell in sorted(n_rows)]
    put(folder / "partition_info.csv", ("Norder,Npix\n" + "".join(lines)).encode())
    sink = io.BytesIO()
    pq.write_metadata(schema, sink)
    put(folder / "dataset" / "_common_metadata", sink.getvalue())


def properties_text(values: Mapping[str, Any]) -> bytes:
    """As a properties file has them."""
    return "".join(f"{name}={value}\n" for name, value in values.items()).encode()


def skymap(counts: Mapping[int, int]) -> bytes:
    """Rows by cell of `SKYMAP_ORDER`, as the HEALPix convention for FITS lays down a map of few cells."""
    cell = np.array(sorted(counts), dtype=">i8")
    columns = [
        fits.Column("PIXEL", "K", array=cell),
        fits.Column("VALUE", "K", array=np.array([counts[int(c)] for c in cell], dtype=">i8")),
    ]
    table = fits.BinTableHDU.from_columns(columns)
    side = 1 << SKYMAP_ORDER
    for key, value in {
        "PIXTYPE": "HEALPIX",
        "ORDERING": "NESTED",
        "INDXSCHM": "EXPLICIT",
        "OBJECT": "PARTIAL",
        "ORDER": SKYMAP_ORDER,
        "NSIDE": side,
        "FIRSTPIX": 0,
        "LASTPIX": 12 * side * side - 1,
        "OBS_NPIX": len(cell),
        "COORDSYS": "C",
    }.items():
        table.header[key] = value
    sink = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(sink)
    return sink.getvalue()


def put(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with PendingFile(path.parent) as file:
        file.write(data)
        file.publish(path)
