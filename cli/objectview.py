"""One object as a pile holds it: its members, and every measurement beside what its tokens decode to."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skycairn.catalogs.registry import SURVEYS, survey
from skycairn.catalogs.survey import WORK_ORDER, Modality, Survey
from skycairn.match.sky import angle, rings, unit_vectors
from skycairn.match.sky import cells as cells_of
from skycairn.match.sky import healpix29 as healpix29_of
from skycairn.pile.store import Entry, Pile, Snapshot
from skycairn.pipeline.lineage import Gone, successors
from skycairn.tokenizers.codec import Codec, load

Arrays = Mapping[str, NDArray[Any]]
_UID = re.compile(r"([a-z][a-z0-9]*):(-?[0-9]+)")
_MOST_RADIUS_ARCSEC = 1000.0


@dataclass(frozen=True)
class Member:
    """A source of the object."""

    survey: str
    key: int
    ra: float
    dec: float
    separation_arcsec: float
    "from the anchor"
    anchor: bool
    status: str
    "present, or the cut that it failed"

    @property
    def uid(self) -> str:
        """The source's name, as in `gaia:4295806720`."""
        return f"{self.survey}:{self.key}"


@dataclass(frozen=True)
class Value:
    """One value of a survey's catalogue."""

    name: str
    value: Any
    "None where there is none; `status` says why"
    unit: str
    error: float | None = None
    "one sigma, in the same unit"
    status: str = ""
    "of a modality: present, or why not; empty for the survey's other columns"
    decoded: float | None = None
    "what the token stands for, in the same unit"


@dataclass(frozen=True)
class Measurement:
    """An image, a spectrum or a vector of coefficients, and what its tokens decode to."""

    modality: Modality
    status: str
    "present, or why there is none"
    measured: Arrays | None = None
    "`flux`, `ivar` (some images have none), `mask` (band, y, x) or (pixel,); `value`, `error` (n,). None: not kept"
    decoded: Arrays | None = None
    "as `Codec.decode` gives it, of this one source"
    n_tokens: int = 0
    bands: tuple[str, ...] = ()
    decoded_bands: tuple[str, ...] = ()
    wavelength: NDArray[np.float64] | None = None
    "of each pixel, Angstrom in vacuum; None where the pile does not say"
    psf_fwhm: tuple[float, ...] = ()
    "of each band, arcsec; NaN where not known"
    offset: tuple[float, float] = (0.0, 0.0)
    "(dx, dy): the source less the middle of pixel N // 2, pixels"
    note: str = ""
    "why there is less than there might be"


@dataclass(frozen=True)
class ObjectView:
    """All that a pile says of one object."""

    object_id: str
    ra: float
    dec: float
    split: str
    stratum: str
    blend_group: str
    blend_n: dict[str, int]
    "sources of each survey that may be the same thing"
    delta_mag: float | None
    status: dict[str, str]
    "of every survey"
    members: list[Member]
    values: dict[str, list[Value]]
    measurements: list[Measurement]
    redshift: dict[str, float]
    "good ones only, by survey"
    snapshot: str
    labels: dict[str, str] = field(default_factory=dict)
    "of a user's target"


class NoSuchObject(ValueError):
    """No object of the pile goes by this name, or lies here."""


class ObjectReader:
    """Finds objects in one snapshot and gathers what it says of them."""

    def __init__(self, pile: Pile, snapshot: Snapshot) -> None:
        """`Pile.open(root, check="pages")` spares reading large parts whole for a few rows."""
        self.pile, self.snapshot = pile, snapshot
        self.surveys: dict[str, Survey] = {}
        for name, chosen in snapshot.recipe["surveys"].items():
            options = {k: v for k, v in chosen.items() if k not in ("release", "profile", "root")}
            self.surveys[name] = survey(name, chosen["release"], **options)
        self.surveys = {name: self.surveys[name] for name in SURVEYS if name in self.surveys}

    @property
    def n_objects(self) -> int:
        """Objects in the snapshot."""
        return sum(e.part.n_rows for e in self._entries("objects"))

    # -- finding

    def find(self, uid: str) -> str:
        """The id of the object of this id, or that holds the source of this uid. `NoSuchObject` says what is near."""
        found = _UID.fullmatch(uid.strip())
        if uid.startswith("targets:") and (of_target := self._of_target(uid.removeprefix("targets:"))):
            return of_target
        if found is None or found[1] not in self.surveys:
            raise NoSuchObject(self._unknown(uid, self._likely(uid)))
        name, key = found[1], int(found[2])
        if not -(2**63) <= key < 2**63:
            raise NoSuchObject(self._unknown(uid, "its number does not fit into 63 bits"))
        primary = self._some(f"{name}.repeats", pc.field("key") == key, ["primary"])
        for wanted in (key, *primary):
            member = (pc.field("survey") == name) & (pc.field("key") == wanted)
            if ids := self._some("members", member, ["object_id"]):
                return str(ids[0])
        try:
            now = successors(self.pile, self.snapshot, uid.strip())
        except Gone as gone:
            if "since the snapshot" in str(gone):
                raise NoSuchObject(str(gone)) from gone
        else:
            if len(now) > 1:
                raise NoSuchObject(f"{uid} of an earlier snapshot is several objects now: {', '.join(now)}; name one")
            return now[0]
        keys = [self.pile.read_table(e.part, columns=["survey", "key"]) for e in self._entries("members")]
        of_survey = [k for t in keys for s, k in zip(*(c.to_pylist() for c in t.columns), strict=True) if s == name]
        near = min(of_survey, key=lambda k: abs(k - key), default=None)
        raise NoSuchObject(
            self._unknown(uid, f"no object has a source of {name}" if near is None else f"the nearest is {name}:{near}")
        )

    def nearest(self, ra: float, dec: float, radius_arcsec: float) -> str:
        """The id of the object nearest to an ICRS position in degrees. `NoSuchObject` where none is so near."""
        if not (0 <= ra < 360 and -90 <= dec <= 90):
            raise ValueError(f"RA {ra}, Dec {dec}: wanted 0 <= RA < 360 and -90 <= Dec <= 90, in degrees")
        if not 0 < radius_arcsec <= _MOST_RADIUS_ARCSEC:
            raise ValueError(f"a radius of {radius_arcsec} arcsec: wanted more than 0, at most {_MOST_RADIUS_ARCSEC:g}")
        home = cells_of(healpix29_of(np.array([ra]), np.array([dec])), WORK_ORDER)
        around = set(rings(WORK_ORDER, home, 1).tolist())  # a work cell is 3300 arcsec wide
        here = unit_vectors(np.array([ra]), np.array([dec]))
        best, best_id = np.inf, ""
        for entry in self._entries("objects"):
            if int(entry.labels["cell"]) not in around:
                continue
            table = self.pile.read_table(entry.part, columns=["object_id", "ra", "dec"])
            if not table.num_rows:
                continue
            there = unit_vectors(np.asarray(table.column("ra")), np.asarray(table.column("dec")))
            apart = np.degrees(angle(here, there)) * 3600
            if apart.min() < best:
                best, best_id = float(apart.min()), table.column("object_id")[int(apart.argmin())].as_py()
        if best > radius_arcsec:
            what = f"the nearest is {best_id}, {best:.1f} arcsec off" if best_id else "none lies in the cells around"
            raise NoSuchObject(
                f"none of {self.n_objects:,} objects lies within {radius_arcsec:g} arcsec of "
                f"RA {ra:g}, Dec {dec:g}; {what}"
            )
        return str(best_id)

    def ids_by_stratum(self, most: int) -> dict[str, tuple[int, list[str]]]:
        """For each set of surveys: the number of objects, and the ids of the first few."""
        out: dict[str, tuple[int, list[str]]] = {}
        for entry in self._entries("objects"):
            table = self.pile.read_table(entry.part, columns=["object_id", "stratum"])
            for object_id, stratum in zip(*(c.to_pylist() for c in table.columns), strict=True):
                n, ids = out.get(stratum, (0, []))
                out[stratum] = (n + 1, [*ids, object_id] if n < most else ids)
        return out

    def _unknown(self, uid: str, why: str) -> str:
        return (
            f"{uid!r} is none of {self.n_objects:,} objects, nor a source in one; {why}; "
            f"`skycairn show --pile {self.pile.root}` lists some ids"
        )

    def _likely(self, uid: str) -> str:
        """What was meant by a name that is no uid of the pile's surveys."""
        number = re.search(r"[0-9]+", uid)
        if number and int(number[0]) < 2**63:
            same = self._rows("members", pc.field("key") == int(number[0]), ["survey", "key"])
            if same:
                return "did you mean " + " or ".join(f"{r['survey']}:{r['key']}" for r in same) + "?"
        return f"wanted SURVEY:NUMBER with a survey of {', '.join(self.surveys)}"

    def _of_target(self, user_id: str) -> str | None:
        ids: list[str] = []
        if "targets" in self.surveys:
            ids = self._some("objects", pc.field("targets.id") == user_id, ["object_id"])
        return str(ids[0]) if ids else None

    # -- gathering

    def view(self, object_id: str) -> ObjectView:
        """What the snapshot says of an object, by its id (see `find`)."""
        for entry in self._entries("objects"):
            table = self.pile.read_table(entry.part, filters=pc.field("object_id") == object_id)
            if table.num_rows:
                break
        else:
            raise NoSuchObject(self._unknown(object_id, "it is the id of no object"))
        row = table.slice(0, 1).to_pylist()[0]
        cell = int(entry.labels["cell"])
        statuses = {name: str(row[f"status.{name}"]) for name in self.surveys}
        members = [
            Member(
                m["survey"], m["key"], m["ra"], m["dec"], m["separation_uas"] * 1e-6, m["anchor"], statuses[m["survey"]]
            )
            for m in self._rows("members", pc.field("object_id") == object_id, cell=cell)
        ]
        order = list(self.surveys)
        members.sort(key=lambda m: (not m.anchor, order.index(m.survey)))
        values: dict[str, list[Value]] = {}
        measurements: list[Measurement] = []
        redshift: dict[str, float] = {}
        for name, s in self.surveys.items():
            key = row[f"key.{name}"]
            wide = None
            if key is not None:
                wide = self._table(f"{name}.wide", pc.field("key") == key, row[f"cell.{name}"])
            values[name] = [] if wide is None else self._values(s, row, wide)
            for m in s.modalities:
                if m.payload or m.shape:
                    measurements.append(self._measurement(s, m, row, wide))
            for m, value in zip([m for m in s.modalities if not m.payload and not m.shape], values[name], strict=False):
                # `grid` is the codec of redshifts
                if m.codec == "grid" and value.value is not None:
                    redshift[name] = float(value.value)
        return ObjectView(
            object_id=object_id,
            ra=row["ra"],
            dec=row["dec"],
            split=row["split"],
            stratum=row["stratum"],
            blend_group=row["blend_group"],
            blend_n={name: row[f"blend_n.{name}"] for name in self.surveys},
            delta_mag=row["delta_mag"],
            status=statuses,
            members=members,
            values=values,
            measurements=measurements,
            redshift=redshift,
            snapshot=f"snapshot {self.snapshot.number}, content {self.snapshot.content_id[:16]}",
            labels={k: str(row[f"targets.{k}"]) for k in ("id", "labels") if row.get(f"targets.{k}")},
        )

    def _values(self, s: Survey, row: Mapping[str, Any], wide: pa.Table) -> list[Value]:
        """The numbers that have tokens, in the survey's order, then its other columns as they stand."""
        found = wide.to_pylist()[0] if wide.num_rows else {}
        units = {f.name: (f.metadata or {}).get(b"unit", b"").decode() for f in wide.schema}
        out, used = [], {"key"}
        for m in s.modalities:
            used |= {n for n in (m.column, m.error, m.ivar, m.absent_flag) if n}
            if m.payload or m.shape:
                continue
            value = found.get(str(m.column))
            error = found.get(m.error) if m.error else None
            if m.ivar:
                ivar = found.get(m.ivar) or 0.0
                # with inverse variance 0 it was not measured, whatever stands there
                value, error = (value, float(ivar) ** -0.5) if ivar > 0 else (None, None)
            decoded, _, _ = self._decoded(s, m, row)
            back = None if decoded is None else float(decoded["value"][0])
            status = str(row[f"status.{m.name}"])
            if value is None:
                error = None
            out.append(Value(str(m.column), value, units.get(str(m.column), m.unit), error, status, back))
        for name, value in found.items():
            if name not in used and not isinstance(value, list):
                out.append(Value(name, value, units[name]))
        return out

    def _measurement(self, s: Survey, m: Modality, row: Mapping[str, Any], wide: pa.Table | None) -> Measurement:
        decoded, codec, n_tokens = self._decoded(s, m, row)
        view = Measurement(
            modality=m,
            status=str(row[f"status.{m.name}"]),
            decoded=decoded,
            n_tokens=n_tokens,
            bands=m.bands,
            decoded_bands=tuple(getattr(codec, "bands", m.bands)),
        )
        if m.payload:
            return self._with_payload(view, s, row)
        if wide is None or not wide.num_rows or not wide.column(str(m.column))[0].is_valid:
            return view
        measured = {"value": _array(wide.column(str(m.column)))}
        if m.error and wide.column(m.error)[0].is_valid:
            measured["error"] = _array(wide.column(m.error))
        return replace(view, measured=measured)

    def _with_payload(self, view: Measurement, s: Survey, row: Mapping[str, Any]) -> Measurement:
        m, table = view.modality, f"payload.{view.modality.name}"
        wavelength = self._wavelength(table, m) if m.codec == "spectrum" else None
        view = replace(view, wavelength=wavelength)
        found = self._of_object(table, s, row)
        if found is None:
            if view.status != "present":
                return view
            policy = self.snapshot.recipe["payload"]["keep"]
            what = "pixels" if m.image else "the spectrum"
            return replace(view, note=f"{what} not kept in this pile (payload.keep = {policy!r})")
        if not found.column("flux")[0].is_valid:
            return view
        told = found.schema.field("flux").metadata or {}
        shape = tuple(int(n) for n in told[b"shape"].decode().split(",")) if b"shape" in told else (-1,)
        names = [n for n in ("flux", "ivar", "mask") if n in found.column_names]
        measured = {name: _array(found.column(name)).reshape(shape) for name in names}
        bands = tuple(told[b"bands"].decode().split(",")) if b"bands" in told else m.bands
        seeing: tuple[float, ...] = ()
        offset = (0.0, 0.0)
        if "psf_fwhm" in found.column_names:
            seeing = tuple(np.nan if v is None else float(v) for v in found.column("psf_fwhm")[0].as_py())
        if "dx" in found.column_names:
            offset = (found.column("dx")[0].as_py() or 0.0, found.column("dy")[0].as_py() or 0.0)
        return replace(view, measured=measured, bands=bands, psf_fwhm=seeing, offset=offset)

    def _wavelength(self, table: str, m: Modality) -> NDArray[np.float64] | None:
        """Wavelength of every pixel in Angstrom, from the metadata of the kept payload."""
        for entry in self._entries(table)[:1]:
            with self.pile.open_parquet(entry.part) as file:
                told = file.schema_arrow.metadata or {}
            for grid in ("wavelength", "loglam"):
                if f"{grid}_start".encode() in told:
                    start, step = (float(told[f"{grid}_{end}".encode()]) for end in ("start", "step"))
                    x = start + step * np.arange(m.shape[0], dtype=np.float64)
                    return 10.0**x if grid == "loglam" else x
        return None

    def _decoded(
        self, s: Survey, m: Modality, row: Mapping[str, Any]
    ) -> tuple[dict[str, NDArray[Any]] | None, Codec | None, int]:
        found = self._of_object(f"tokens.{m.name}", s, row)
        if found is None or not found.column("tokens")[0].is_valid:
            return None, None, 0
        codec = self._codec(m.name)
        tokens: Any = np.array([found.column("tokens")[0].as_py()], codec.dtype)
        return {k: v[0] if m.shape else v for k, v in codec.decode(tokens).items()}, codec, tokens.shape[1]

    def _codec(self, modality: str) -> Codec:
        parts = {str(e.labels["file"]): e.part for e in self._entries("codecs") if e.labels["modality"] == modality}
        if not parts:
            raise ValueError(
                f"snapshot {self.snapshot.number} has tokens of {modality} and no codec of it; build again"
            )
        with tempfile.TemporaryDirectory() as folder:
            self.pile.restore_folder(parts, Path(folder))
            return load(Path(folder))

    # -- reading

    def _of_object(self, table: str, s: Survey, row: Mapping[str, Any]) -> pa.Table | None:
        """The object's row in a table of tokens or payload: its own source's, else that of its target's position."""
        for owner in (s.name, "targets"):
            key = row.get(f"key.{owner}")
            if key is None:
                continue
            mine = (pc.field("owner") == owner) & (pc.field("key") == key)
            found = self._table(table, mine, row[f"cell.{owner}"])
            if found is not None and found.num_rows:
                return found.combine_chunks()
        return None

    def _entries(self, table: str) -> Sequence[Entry]:
        """Parts of a table; none where the snapshot has no such table."""
        return self.snapshot.tables.get(table) or self.snapshot.aside.get(table) or ()

    def _table(self, table: str, rows: Any, cell: int) -> pa.Table | None:
        """The wanted rows of the part of one cell; None where there is no such part."""
        for entry in self._entries(table):
            if entry.labels.get("cell") == cell:
                return self.pile.read_table(entry.part, filters=rows)
        return None

    def _rows(
        self, table: str, rows: Any, columns: Sequence[str] | None = None, cell: int | None = None
    ) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        for entry in self._entries(table):
            if cell is None or entry.labels.get("cell") == cell:
                out += self.pile.read_table(entry.part, columns=columns, filters=rows).to_pylist()
        return out

    def _some(self, table: str, rows: Any, columns: Sequence[str]) -> list[Any]:
        """The first column of the wanted rows of the first part that holds any."""
        for entry in self._entries(table):
            if found := self.pile.read_table(entry.part, columns=columns, filters=rows).column(0).to_pylist():
                return found
        return []


def _array(column: pa.ChunkedArray) -> NDArray[Any]:
    """The list in the first row."""
    return np.asarray(column[0].values.to_numpy(zero_copy_only=False))
