"""Gaia's DataLink: products of single sources, asked for by their ids, in a zip.

`INDIVIDUAL` gives a file a source, `RAW` one file with a row a source. Sources without the product are simply not there.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from io import BytesIO
from urllib.parse import parse_qs

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from skycairn.mirror.server import Reply, Request
from skycairn.mirror.votable import text_of, unit_of, votable

MOST_IDS = 5000
SUFFIXES = {"csv": "csv", "ecsv": "ecsv", "votable": "xml", "votable_plain": "xml"}
RELEASE = "Gaia DR3"
NAMES = {pa.int16(): "int16", pa.int64(): "int64", pa.float32(): "float32", pa.float64(): "float64"}
"""What ECSV calls a type."""


@dataclass
class DataLink:
    """The service at `path` of its host: `XP_CONTINUOUS`, from a table of spectra."""

    spectra: Callable[[], pa.Table]
    path: str = "/data-server/data"
    most_ids: int = MOST_IDS
    batches: list[int] = field(default_factory=list)
    "number of ids of each request, in order"

    def __call__(self, request: Request) -> Reply | None:
        """The reply; None where the path is not this service's."""
        if request.path != self.path:
            return None
        reply = self._reply(request)
        # astroquery leaves its connections open
        return replace(reply, headers={**reply.headers, "Connection": "close"})

    def _reply(self, request: Request) -> Reply:
        form = parse_qs(request.body.decode("utf-8", "replace")) or request.query
        given = {k.upper(): v[0] for k, v in form.items()}
        kind = given.get("RETRIEVAL_TYPE", "ALL").upper()
        if kind not in ("ALL", "XP_CONTINUOUS"):
            return _refusal(f"RETRIEVAL_TYPE {kind} is not served here")
        if given.get("RELEASE", RELEASE) != RELEASE:
            return _refusal(f"Unknown RELEASE: {given['RELEASE']}")
        suffix = SUFFIXES.get(given.get("FORMAT", "votable").lower())
        structure = given.get("DATA_STRUCTURE", "INDIVIDUAL").upper()
        if suffix is None or structure not in ("INDIVIDUAL", "RAW"):
            return _refusal("Unsupported FORMAT or DATA_STRUCTURE")
        words = [word.strip().removeprefix(RELEASE).strip() for word in given.get("ID", "").split(",")]
        if wrong := [word for word in words if not re.fullmatch(r"\d{1,19}", word)]:
            return _refusal(f"Invalid ID: {wrong[0]!r}")
        self.batches.append(len(words))
        if len(words) > self.most_ids:
            return _refusal(f"The number of identifiers, {len(words)}, is above the limit of {self.most_ids}")
        table = self.spectra()
        ids = pa.array([int(word) for word in dict.fromkeys(words)], pa.int64())
        found = table.filter(pc.is_in(table["source_id"], value_set=ids))
        found = found.take(pa.array(np.random.default_rng(len(self.batches)).permutation(found.num_rows)))
        return Reply(200, _zipped(found, structure, suffix), {"Content-Type": "application/zip"})


def _refusal(message: str) -> Reply:
    text = f"<html><body><h2>Error</h2><ul><li><b>Message: </b>{message}</li></ul></body></html>"
    return Reply(400, text.encode(), {"Content-Type": "text/html"})


def _zipped(table: pa.Table, structure: str, suffix: str) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        if structure == "RAW" and table.num_rows:
            file.writestr(f"XP_CONTINUOUS_RAW.{suffix}", product(table, suffix))
        elif structure == "INDIVIDUAL":
            for i, source_id in enumerate(table["source_id"].to_pylist()):
                name = f"XP_CONTINUOUS-{RELEASE} {source_id}.{suffix}"
                file.writestr(name, product(table.slice(i, 1), suffix))
    return out.getvalue()


def product(table: pa.Table, suffix: str) -> bytes:
    """A table of spectra as DataLink writes it: arrays as `"(a, b)"` in CSV, as `"[a, b]"` in ECSV, nulls as nothing."""
    if suffix == "xml":
        return votable(table)
    opened, closed = "()" if suffix == "csv" else "[]"
    columns = []
    for column in table.columns:
        column = column.combine_chunks()
        if pa.types.is_list(column.type):
            text = text_of(column, ", ")
            columns.append(pc.binary_join_element_wise(opened, text, closed, ""))
        else:
            columns.append(column)
    out = BytesIO()
    if suffix == "ecsv":
        out.write(_ecsv_header(table.schema).encode())
    flat = pa.table(columns, names=table.column_names)
    out.write((",".join(table.column_names) + "\n").encode())
    pacsv.write_csv(flat, out, pacsv.WriteOptions(quoting_style="needed", include_header=False))
    return out.getvalue()


def _ecsv_header(schema: pa.Schema) -> str:
    lines = ["%ECSV 1.0", "---", "delimiter: ','", "datatype:"]
    for column in schema:
        lines += ["-", f"  name: {column.name}"]
        if pa.types.is_list(column.type):
            lines += ["  datatype: string", f"  subtype: '{NAMES[column.type.value_type]}[null]'"]
        else:
            lines.append(f"  datatype: {NAMES[column.type]}")
        lines += [f"  unit: {unit_of(column)}"] if unit_of(column) else []
    return "".join(f"# {line}\n" for line in lines)
