"""SkyServer on loopback: SDSS's SQL search and cross-identification, and the spec files that its clients then fetch.

`SkyServer` answers on skyserver.sdss.org, `SpecFiles` on data.sdss.org. Tables: SpecObjAll, SpecObj, PlateX and
PhotoObjAll, with the names and types of the database (github.com/sdss, SpectroTables.sql) as far as clients here ask
for them, made of a specObj file. Objects of PhotoObjAll are those that some spectrum names. The database has no nulls
and no NaN: -9999 stands for both, 0 for an identifier that there is none of.
"""

from __future__ import annotations

import email
import email.policy
import io
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from skycairn.catalogs.fitsfile import read_columns
from skycairn.catalogs.sdss import CATALOG, HOLDING
from skycairn.mirror.server import Reply, Request
from skycairn.mirror.sqlselect import Column, SqlError, Table, select, separation

SEARCH = re.compile(r"/dr\d+/(?:en/tools/(?:search|crossid)/x_\w+\.aspx?|skyserverws/searchtools/\w+)", re.I)
SPEC = re.compile(
    r"/sas/dr\d+/(?:sdss|eboss)/spectro/redux/(\w+)/spectra(?:/full|/lite)?/(\d{4,5})/spec-(\d{4,5})-(\d{5})-(\d{4})\.fits"
)
MISSING = -9999.0
MOST_ROWS = 500_000
MOST_ARCMIN = 3.0
"""Radius of a cross-identification."""
BANDS = "ugriz"
SPECOBJ: Mapping[str, str] = {
    **{"survey": "SURVEY", "instrument": "INSTRUMENT", "programname": "PROGRAMNAME", "chunk": "CHUNK"},
    **{"mjd": "MJD", "plate": "PLATE", "fiberID": "FIBERID", "run1d": "RUN1D", "run2d": "RUN2D", "ra": "PLUG_RA"},
    **{"dec": "PLUG_DEC", "sciencePrimary": "SPECPRIMARY", "legacyPrimary": "SPECLEGACY", "z": "Z", "zErr": "Z_ERR"},
    **{"seguePrimary": "SPECSEGUE", "bossPrimary": "SPECBOSS", "sourceType": "SOURCETYPE", "targetType": "TARGETTYPE"},
    **{"zWarning": "ZWARNING", "class": "CLASS", "subClass": "SUBCLASS", "rChi2": "RCHI2", "z_noqso": "Z_NOQSO"},
    **{
        "zErr_noqso": "Z_ERR_NOQSO",
        "zWarning_noqso": "ZWARNING_NOQSO",
        "velDisp": "VDISP",
        "snMedian": "SN_MEDIAN_ALL",
    },
    **{"velDispErr": "VDISP_ERR", "waveMin": "WAVEMIN", "waveMax": "WAVEMAX", "anyAndMask": "ANYANDMASK"},
    **{"anyOrMask": "ANYORMASK", "thing_id": "THING_ID"},
}
"""SpecObjAll's columns by what specObj calls them."""
ARRAYS = {"snMedian": "SN_MEDIAN", "spectroFlux": "SPECTROFLUX", "spectroFluxIvar": "SPECTROFLUX_IVAR"}
"""Families of columns, one a band: `spectroFlux_u`."""


class SkyServer:
    """The service of skyserver.sdss.org; `max_rows`: how many rows a reply has at most, the rest being cut off."""

    def __init__(self, root: Path, max_rows: int = MOST_ROWS) -> None:
        """`root`: the tree of `sas/dr17`."""
        self.tables = database(root)
        self.max_rows = max_rows
        self.asked: list[str] = []
        "every query that was answered"

    def __call__(self, request: Request) -> Reply | None:
        """The reply to a search; None where the path is none."""
        if SEARCH.fullmatch(request.path) is None:
            return None
        fields = {k: v[-1] for k, v in request.query.items()} | _form(request)
        kind = fields.get("format", "html").lower()
        try:
            found = self._answer(fields)
        except SqlError as error:
            found = {"error_message": np.array([str(error)])}
        if kind == "csv":
            return Reply(200, as_csv(found).encode(), {"Content-Type": "text/csv; charset=utf-8"})
        if kind == "json":
            rows = [
                dict(zip(found, row, strict=True)) for row in zip(*(v.tolist() for v in found.values()), strict=True)
            ]
            body = json.dumps([{"TableName": "Table1", "Rows": rows}])
            return Reply(200, body.encode(), {"Content-Type": "application/json; charset=utf-8"})
        page = f"<html><head></head><body>format {kind!r}: only csv and json are served here</body></html>"
        return Reply(200, page.encode(), {"Content-Type": "text/html"})

    def _answer(self, fields: Mapping[str, str]) -> dict[str, Column]:
        sql = fields.get("uquery") or fields.get("cmd") or ""
        self.asked.append(sql)
        uploaded = self._uploaded(fields) if "uquery" in fields else {}

        def source(name: str, argument: str | None) -> Table:
            name = name.rpartition(".")[2]  # dbo, or the database's name
            if argument is not None:
                if name.lower() != "fdoccolumns":
                    raise SqlError(f"Invalid object name '{name}'.")
                return self._described(argument)
            named = {k.lower(): t for k, t in {**self.tables, **uploaded}.items()}
            if name.lower() not in named:
                raise SqlError(f"Invalid object name '{name}'.")
            return named[name.lower()]

        return {name: values[: self.max_rows] for name, values in select(sql, source).items()}

    def _described(self, table: str) -> Table:
        known = {k.lower(): t for k, t in self.tables.items()}.get(table.lower(), {})
        names = list(known)
        text = {k: np.full(len(names), "") for k in ("enum", "unit", "ucd", "description")}
        kinds = np.array([str(np.asarray(known[n]).dtype) for n in names], dtype=np.str_)
        return {"enum": text["enum"], "name": np.array(names, dtype=np.str_), "type": kinds, **text}

    def _uploaded(self, fields: Mapping[str, str]) -> dict[str, Table]:
        """The tables of a cross-identification: what was uploaded, and the objects near it."""
        lines = [line.split() for line in fields.get("upload", "").splitlines() if line.strip()][1:]
        radius = float(fields.get("radius", "1"))
        if radius > MOST_ARCMIN:
            raise SqlError(f"The radius is {radius} arcmin; at most {MOST_ARCMIN} are searched.")
        first = int(fields.get("firstcol", "0"))
        try:
            ra, dec = (np.array([float(line[first + k]) for line in lines]) for k in (0, 1))
        except (IndexError, ValueError) as error:
            raise SqlError(f"The uploaded list cannot be read: {error}") from error
        names = np.array([line[0] if first else "" for line in lines], dtype=np.str_)
        photo = self.tables["PhotoObjAll"]
        ids: list[int] = []
        objects: list[int] = []
        for i in range(len(lines)):
            distance = separation(ra[i], dec[i], photo["ra"], photo["dec"])
            near = np.flatnonzero(distance <= radius / 60)
            near = near[np.argsort(distance[near], kind="stable")]
            if fields.get("photoScope", "nearPrim").lower().startswith("near"):
                near = near[:1]
            ids += [i + 1] * len(near)
            objects += photo["objID"][near].tolist()
        number = np.arange(1, len(lines) + 1)
        return {
            "#upload": {"up_id": number, "up_name": names, "up_ra": ra, "up_dec": dec},
            "#x": {"up_id": np.array(ids, dtype=np.int64), "objID": np.array(objects, dtype=np.int64)},
        }


class SpecFiles:
    """The service of data.sdss.org's spec files: made of spPlate and specObj where the tree has no such file.

    An spPlate has no model, so the made file's `model` is 0. None where the tree has neither, or the file itself.
    """

    def __init__(self, root: Path) -> None:
        """`root`: the tree of `sas/dr17`."""
        self.root = root

    def __call__(self, request: Request) -> Reply | None:
        """The file, or None."""
        found = SPEC.fullmatch(request.path)
        if found is None or (self.root / request.path.split("/", 3)[3]).is_file():
            return None
        run2d, _, plate, mjd, fiber = found.groups()
        top = "sdss" if not run2d.startswith("v") else "eboss"
        folder = self.root / top / "spectro" / "redux" / run2d
        lite = folder / "spectra" / "lite" / plate / request.path.rsplit("/", 1)[1]
        if lite.is_file():
            return Reply(200, lite, {"Content-Type": "application/octet-stream"})
        path = folder / plate / f"spPlate-{plate}-{mjd}.fits"
        if not path.is_file():
            return None
        made = _spec_file(path, self.root / CATALOG, run2d, int(plate), int(mjd), int(fiber))
        return Reply(200, made, {"Content-Type": "application/octet-stream"}) if made is not None else None


def database(root: Path) -> dict[str, Table]:
    """SpecObjAll, SpecObj, PlateX and PhotoObjAll of the specObj file below `root`."""
    raw = {name.upper(): _native(fetch()) for name, fetch in read_columns(root / CATALOG, None, HOLDING)[0].items()}
    spec: dict[str, Column] = {}
    for name in ("specObjID", "bestObjID", "fluxObjID", "targetObjID"):
        column = name.upper()
        kind = np.uint64 if name == "specObjID" else np.int64
        spec[name] = np.array([int(t) if t.isdigit() else 0 for t in raw[column].tolist()], dtype=kind)
    plate, mjd = (raw[c].astype(np.int64) for c in ("PLATE", "MJD"))
    run = np.unique(raw["RUN2D"], return_inverse=True)[1]
    # the database packs plate, MJD and rerun into plateID; any number that tells them apart will do
    spec["plateID"] = (plate << 24) | ((mjd - 50000) << 8) | run
    spec |= {name: _filled(raw[column]) for name, column in SPECOBJ.items() if column in raw}
    spec["sciencePrimary"] = spec["sciencePrimary"].astype(np.int16)
    for stem, column in ARRAYS.items():
        spec |= {f"{stem}_{band}": _filled(raw[column][:, i]) for i, band in enumerate(BANDS)}
    first = np.unique(spec["plateID"], return_index=True)[1]
    plates = {name: spec[name][first] for name in ("plateID", "plate", "mjd", "survey", "run2d", "run1d")}
    plates |= {"programName": spec["programname"][first], "plateQuality": raw["PLATEQUALITY"][first]}
    plates["plateSN2"] = _filled(raw["PLATESN2"])[first] if "PLATESN2" in raw else np.zeros(len(first), np.float32)
    best = spec["sciencePrimary"] == 1
    return {
        "SpecObjAll": spec,
        "SpecObj": {name: values[best] for name, values in spec.items()},
        "PlateX": plates,
        "PhotoObjAll": _photo(spec),
    }


def _photo(spec: Table) -> Table:
    """The imaging's objects: identifier and what its bits hold, position and magnitudes in the fibre."""
    number, first = np.unique(spec["bestObjID"], return_index=True)
    number, first = number[number > 0], first[number > 0]
    out: dict[str, Column] = {"objID": number, "ra": spec["ra"][first], "dec": spec["dec"][first]}
    for name, shift, bits in (("rerun", 48, 11), ("run", 32, 16), ("camcol", 29, 3), ("field", 16, 12), ("obj", 0, 16)):
        out[name] = ((number >> shift) & ((1 << bits) - 1)).astype(np.int32)
    out["mode"] = np.ones(len(number), dtype=np.int16)
    out["type"] = np.where(spec["class"][first] == "GALAXY", "GALAXY", "STAR")
    for band in BANDS:
        flux = np.maximum(spec[f"spectroFlux_{band}"][first].astype(np.float64), 1e-3)
        out[f"psfMag_{band}"] = (22.5 - 2.5 * np.log10(flux)).astype(np.float32)
        out[f"psfMagErr_{band}"] = np.full(len(number), 0.02, dtype=np.float32)
    return out


def as_csv(columns: Mapping[str, Column]) -> str:
    """A reply as SkyServer writes it: `#Table1`, the names, the rows."""
    texts = [[_text(v) for v in _scalars(values)] for values in columns.values()]
    lines = ["#Table1", ",".join(columns), *(",".join(row) for row in zip(*texts, strict=True))]
    return "\n".join(lines) + "\n"


def _scalars(values: Column) -> list[Any]:
    if values.dtype == np.float32:
        # the shortest text that is the same float again
        return [None if m else str(v) for v, m in zip(np.ma.getdata(values), np.ma.getmaskarray(values), strict=True)]
    return list(values.tolist())


def _text(value: Any) -> str:
    if value is None:
        return "null"
    text = repr(value) if isinstance(value, float) else str(value)
    return '"' + text.replace('"', '""') + '"' if "," in text or '"' in text or "\n" in text else text


def _native(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind == "S":
        return np.char.strip(np.char.decode(values, "utf-8", "replace"))
    return np.asarray(values.astype(values.dtype.newbyteorder("=")))


def _filled(values: NDArray[Any]) -> NDArray[Any]:
    return np.where(np.isfinite(values), values, values.dtype.type(MISSING)) if values.dtype.kind == "f" else values


def _form(request: Request) -> dict[str, str]:
    """Fields of a POST, of either encoding."""
    kind = request.headers.get("content-type", "")
    if request.method != "POST":
        return {}
    if not kind.startswith("multipart/form-data"):
        return {k: v[-1] for k, v in parse_qs(request.body.decode("utf-8", "replace")).items()}
    message = email.message_from_bytes(
        f"Content-Type: {kind}\r\n\r\n".encode() + request.body, policy=email.policy.default
    )
    out = {}
    for part in message.iter_parts():
        content = part.get_payload(decode=True)
        name = str(part.get_param("name", header="content-disposition"))
        out[name] = content.decode("utf-8", "replace") if isinstance(content, bytes) else ""
    return out


@lru_cache(maxsize=4)
def _specobj(path: Path) -> Any:
    with fits.open(path, memmap=False) as hdus:
        return hdus[1].data


def _spec_file(path: Path, catalog: Path, run2d: str, plate: int, mjd: int, fiber: int) -> bytes | None:
    table = _specobj(catalog)
    mine = (table["PLATE"] == plate) & (table["MJD"] == mjd) & (table["FIBERID"] == fiber)
    mine &= np.char.strip(table["RUN2D"].astype(str)) == run2d
    if not mine.any():
        return None
    with fits.open(path, memmap=False) as hdus:
        header, row = hdus[0].header, fiber - 1
        if row >= len(hdus[0].data):
            return None
        n = hdus[0].data.shape[1]
        coadd = {
            "flux": hdus[0].data[row],
            "loglam": header["COEFF0"] + header["COEFF1"] * np.arange(n),
            **{name: hdus[i].data[row] for i, name in enumerate(("ivar", "and_mask", "or_mask", "wdisp"), start=1)},
            "sky": hdus["SKY"].data[row] if "SKY" in hdus else np.zeros(n),
            "model": np.zeros(n),
        }
        primary = fits.PrimaryHDU()
        for card in ("PLATEID", "MJD", "RUN2D", "COEFF0", "COEFF1", "VACUUM", "BUNIT"):
            if card in header:
                primary.header[card] = header[card]
    primary.header["FIBERID"] = fiber
    forms = {name: "J" if name.endswith("_mask") else "E" for name in coadd}
    columns = [fits.Column(name=name, format=forms[name], array=values) for name, values in coadd.items()]
    spectrum = fits.BinTableHDU.from_columns(columns, name="COADD")
    about = fits.BinTableHDU(table[mine][:1], name="SPECOBJ")
    buffer = io.BytesIO()
    fits.HDUList([primary, spectrum, about]).writeto(buffer)
    return buffer.getvalue()
