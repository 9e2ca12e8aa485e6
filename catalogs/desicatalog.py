"""DESI's catalogue files: columns of redshift catalogues and of redrock files, and which survey a file is of."""

from __future__ import annotations

import csv
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from skycairn.catalogs.columns import Fetch
from skycairn.catalogs.desicoadd import hdu_named, match_targetids
from skycairn.catalogs.desikey import PROGRAM_CODES, SURVEY_CODES
from skycairn.catalogs.fitsfile import without_null


def table_columns(hdu: Any, rows: tuple[int, int] | None, where: str) -> tuple[dict[str, Fetch], int, int]:
    """Columns of a mapped binary table, each read when it is called for; their number of rows; the first row."""
    total = int(hdu.header["NAXIS2"])
    start, stop = rows if rows is not None else (0, total)
    if not 0 <= start <= stop <= total:
        raise ValueError(f"{where}: rows {start}..{stop} were asked of a table of {total}")
    data = hdu.data[start:stop]
    columns = {name: _fetch(data, name) for name in data.names}
    for column in hdu.columns:
        if column.null not in (None, ""):
            raw = data.view(np.ndarray)
            columns[column.name] = partial(without_null, columns[column.name], raw, column.name, column.null)
    return columns, stop - start, start


def _fetch(data: fits.FITS_rec, name: str) -> Fetch:
    column, stored = data.columns[name], data.view(np.ndarray)[name]
    if column.format.endswith("L"):
        return lambda: np.asarray(stored == ord("T"))
    if stored.dtype.kind == "S":
        return lambda: _text(stored)
    return lambda: np.asarray(data[name])


def _text(stored: NDArray[Any]) -> NDArray[Any]:
    try:
        return stored.astype(np.str_)  # far faster than decoding each, and all that FITS allows
    except UnicodeDecodeError:
        return stored


def redrock_columns(hdus: fits.HDUList, path: Path) -> tuple[dict[str, Fetch], int]:
    """Columns of FIBERMAP and TSNR2 brought to the rows of REDSHIFTS by TARGETID."""
    advice = "wanted a redshift catalogue (ZCATALOG) or a redrock file (REDSHIFTS and FIBERMAP)"
    redshifts, n, _ = table_columns(hdu_named(hdus, "REDSHIFTS", path, advice), None, str(path))
    targetid = redshifts["TARGETID"]().astype(np.int64)
    out: dict[str, Fetch] = {}
    for extname in ("FIBERMAP", "TSNR2"):
        if extname == "TSNR2" and extname not in hdus:
            continue
        other, m, _ = table_columns(hdu_named(hdus, extname, path, advice), None, str(path))
        held = other["TARGETID"]().astype(np.int64)
        same = m == n and bool((held == targetid).all())  # stuck fibres share their TARGETIDs: no join could part them
        order = np.arange(n) if same else match_targetids(targetid, held, f"{path} {extname}")
        if (lost := np.flatnonzero(order < 0)).size:
            i = lost[0]
            raise ValueError(f"{path}: {extname} lacks TARGETID {targetid[i]}, which stands in REDSHIFTS row {i}")
        for name, fetch in other.items():
            out[name] = _in_order(fetch, order)
    return {**out, **redshifts}, n


def _in_order(fetch: Fetch, order: NDArray[np.int64]) -> Fetch:
    return lambda: fetch()[order]


def survey_and_program(hdus: fits.HDUList, path: Path, specprod: str) -> tuple[str, str]:
    """What the file's headers say, else its name, else the table of tiles beside it."""
    for hdu in hdus:
        if "SURVEY" in hdu.header and "PROGRAM" in hdu.header:
            return str(hdu.header["SURVEY"]).strip(), str(hdu.header["PROGRAM"]).strip()
    named = re.match(rf"(?:redrock|zpix)-({'|'.join(SURVEY_CODES)})-({'|'.join(PROGRAM_CODES)})\b", path.name)
    if named:
        return named[1], named[2]
    tiles = path.with_name(f"tiles-{specprod}.csv")
    tile = next((int(h.header["TILEID"]) for h in hdus if "TILEID" in h.header), None)
    if tile is not None and tiles.is_file():
        with tiles.open(newline="") as file:
            for line in csv.DictReader(file):
                if int(line["TILEID"]) == tile:
                    return line["SURVEY"].strip(), line["PROGRAM"].strip()
    raise ValueError(
        f"{path}: its survey and program are unknown (no SURVEY and PROGRAM in its headers, none in its name, "
        f"tile {tile} not in {tiles.name} beside it); put that table beside it, or read the healpix file"
    )


def healpix_of_file(hdus: fits.HDUList, path: Path) -> int | None:
    """HEALPix pixel (nside 64, NESTED) that the file was coadded in: by its headers, else its name; None of a tile."""
    for hdu in hdus:
        if "HPXPIXEL" in hdu.header:
            nside, nested = hdu.header.get("HPXNSIDE", 64), hdu.header.get("HPXNEST", True)
            if nside != 64 or not nested:
                raise ValueError(f"{path}: HPXNSIDE {nside}, HPXNEST {nested}; wanted 64, NESTED, as DESI's files are")
            return int(hdu.header["HPXPIXEL"])
    named = re.fullmatch(r"redrock-[a-z0-9]+-[a-z]+-(\d+)\.fits(?:\.gz)?", path.name)
    return int(named[1]) if named else None
