"""Astro Data Lab's tables on loopback, made of bulk files: the Legacy Survey's tractor, DESI's zpix and photometry.

Names and what is in which table as Data Lab has it (github.com/desihub/specprod-db): zpix has no positions of targets
and no photometry, photometry one row a target, and neither has rows of sky or of stuck fibres.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from skycairn.catalogs.desikey import SKY
from skycairn.catalogs.fitsfile import column_units, read_columns
from skycairn.mirror.adql import QueryError
from skycairn.mirror.sqlselect import Column, SqlError, Table, select
from skycairn.mirror.tap import Tap

REDSHIFTS = re.compile(
    r"targetid|survey|program|healpix|spgrpval|z|zerr|zwarn|chi2|npixels|spectype|subtype|ncoeff|deltachi2|coadd_.*"
    r"|\w*_target|mean_.*|rms_.*|std_.*|tsnr2_.*|\w*_nspec|\w*_primary|\w+_mjd|desiname"
)
PHOTOMETRY = re.compile(
    r"targetid|release|brickid|brickname|brick_objid|morphtype|target_ra|target_dec|ebv|(?:fiber|fibertot)?flux_.*|maskbits"
    r"|sersic|shape_.*|ref_.*|gaia_.*|parallax|pmra|pmdec"
)
RENAMED = {"target_ra": "ra", "target_dec": "dec"}


class Database:
    """Tables by schema and name, and their description in tap_schema.columns."""

    def __init__(self, tables: Mapping[str, Table], units: Mapping[str, str] | None = None) -> None:
        """`units` by column name, whatever its table."""
        self.tables = dict(tables)
        self.units = dict(units or {})
        self.asked: list[str] = []
        listed = [(t, c) for t, columns in tables.items() for c in columns]
        self.tables["tap_schema.columns"] = {
            "table_name": np.array([t for t, _ in listed], dtype=np.str_),
            "column_name": np.array([c for _, c in listed], dtype=np.str_),
        }

    def answer(self, adql: str) -> pa.Table:
        """The rows of a query; QueryError where it cannot be run."""
        self.asked.append(adql)
        try:
            found = select(adql, self._table)
        except SqlError as error:
            raise QueryError(str(error)) from error
        fields = []
        for name, values in found.items():
            kind = pa.string() if values.dtype.kind == "U" else pa.from_numpy_dtype(values.dtype)
            unit = self.units.get(name, "")
            fields.append(pa.field(name, kind, metadata={"unit": unit} if unit else None))
        arrays = [pa.array(np.ma.getdata(v), mask=np.ma.getmaskarray(v)) for v in found.values()]
        return pa.Table.from_arrays(
            [a.cast(f.type) for a, f in zip(arrays, fields, strict=True)], schema=pa.schema(fields)
        )

    def _table(self, name: str, argument: str | None) -> Table:
        if argument is not None or name.lower() not in self.tables:
            raise SqlError(f'relation "{name}" does not exist')
        return self.tables[name.lower()]


def service(databases: Sequence[Database], polls: int = 1) -> Tap:
    """The TAP service of datalab.noirlab.edu with the tables of all these databases."""
    tables = {n: t for d in databases for n, t in d.tables.items() if not n.startswith("tap_schema.")}
    every = Database(tables, {n: u for d in databases for n, u in d.units.items()})
    return Tap({}, prefix="/tap", polls=polls, ask=every.answer)


def tractor(root: Path, release: str = "ls_dr10") -> Database:
    """The tractor table of the sweeps below a release's root."""
    paths = sorted(root.glob("*/sweep/*/sweep-*.fits"))
    parts = [_columns(path, "brickid") for path in paths]
    columns: dict[str, Column] = {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}
    columns["brick_primary"] = np.ones(len(columns["ra"]), dtype=np.int16)
    packed = [columns[n].astype(np.int64) for n in ("release", "brickid", "objid")]
    columns["ls_id"] = (packed[0] << 40) | (packed[1] << 16) | packed[2]
    units = {n.lower(): u for n, u in column_units(paths[0], "brickid").items()}
    return Database({f"{release}.tractor": columns}, units)


def zpix(path: Path, release: str = "desi_dr1") -> Database:
    """The tables zpix and photometry of a redshift catalogue."""
    raw = _columns(path, "targetid")
    kept = (raw["targetid"] > 0) & (raw["targetid"] & SKY == 0)
    raw = {n: v[kept] for n, v in raw.items()}
    first = np.unique(raw["targetid"], return_index=True)[1]
    photometry = {RENAMED.get(n, n): v[first] for n, v in raw.items() if PHOTOMETRY.fullmatch(n)}
    redshifts = {n: v for n, v in raw.items() if REDSHIFTS.fullmatch(n)}
    units = {n.lower(): u for n, u in column_units(path, "targetid").items()}
    return Database({f"{release}.zpix": redshifts, f"{release}.photometry": photometry}, units)


def _columns(path: Path, holding: str) -> dict[str, Column]:
    """Columns of numbers and text by lower-case name; arrays are not in the database."""
    out: dict[str, Column] = {}
    for name, fetch in read_columns(path, None, holding)[0].items():
        values = fetch()
        if values.ndim == 1:
            if values.dtype.kind == "S":
                values = np.char.strip(np.char.decode(values, "utf-8", "replace"))
            out[name.lower()] = values.astype(values.dtype.newbyteorder("="))
    return out
