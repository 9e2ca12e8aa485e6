"""The form that each survey fills in: its files, its columns, its cuts, its measurements.

Nothing here opens the network. A survey is told where its files lie (`Archive`), says which of them a patch of sky
needs, reads one into an Arrow table, and cuts one source's pixels or spectrum out of another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

KEYS = ("release", "profile", "root", "source", "url")
"""Of any survey in a recipe, beside its own options."""
WORK_ORDER = 6
"""HEALPix order (NESTED) of the work cells; nside 64, the order of DESI's own healpix files."""

STANDARD_SCHEMA = pa.schema(
    [
        pa.field("key", pa.int64()),
        pa.field("ra", pa.float64(), metadata={"unit": "deg", "about": "ICRS, at `epoch` where motion is known"}),
        pa.field("dec", pa.float64(), metadata={"unit": "deg"}),
        pa.field("ra_error", pa.float32(), metadata={"unit": "arcsec", "about": "one sigma of RA times cos(dec)"}),
        pa.field("dec_error", pa.float32(), metadata={"unit": "arcsec"}),
        pa.field("pmra", pa.float64(), metadata={"unit": "mas/yr", "about": "times cos(dec); null = not known"}),
        pa.field("pmdec", pa.float64(), metadata={"unit": "mas/yr"}),
        pa.field(
            "epoch", pa.float64(), metadata={"unit": "yr", "about": "Julian year of ra, dec; null without motion"}
        ),
        pa.field("epoch_min", pa.float64(), metadata={"unit": "yr", "about": "from here ra, dec hold"}),
        pa.field("epoch_max", pa.float64(), metadata={"unit": "yr"}),
        pa.field("epoch_kind", pa.string()),
        pa.field("row", pa.int64(), metadata={"about": "0-based row of the source in its file"}),
    ]
)
"""What `Survey.read` gives of every source, beside the survey's own columns.

`key` is null where the row cannot be a source (a stuck fibre, say); a `valid` cut must then drop it.
`pmra`, `pmdec` and `epoch` are null together or not at all.
"""

EpochKind = Literal["gaia", "reference", "exposures", "interval", "user"]
"""Where a source's epoch comes from: Gaia's solution, the file's reference epoch, the exposures' own dates, the
release's whole observing interval, or the user's table."""


class Archive(Protocol):
    """A survey's files as its archive lays them out, wherever they really lie."""

    def exists(self, path: str) -> bool:
        """Whether the file is there; `path` is relative to the survey's root."""

    def names(self, checksum_list: str) -> Mapping[str, str] | None:
        """Digest by file name (relative to the list's folder), or None where the list itself is absent."""

    def local(self, path: str) -> Path:
        """The file on this machine; FileNotFoundError where the archive does not have it."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of an archive."""

    path: str
    "relative to the survey's root, with forward slashes"
    checksum_list: str | None = None
    "path of the list that holds its digest; None where the archive publishes none"
    algorithm: Literal["sha256", "md5"] | None = None
    companions: tuple[tuple[str, RemoteFile], ...] = ()
    "files read row by row beside this one, by role (Gaia's XP spectra)"


@dataclass(frozen=True)
class Column:
    """One of the survey's own columns, as it is kept in the pile."""

    name: str
    "lower case"
    type: pa.DataType
    unit: str = ""
    required: bool = False
    "False: null-filled where the release does not have it, unless a cut in force asks for it"
    aliases: tuple[str, ...] = ()
    "other spellings by other releases; case is ignored everywhere"
    zero_is_null: bool = False
    "the file writes 0 for `not known`"

    def field(self) -> pa.Field:
        """The Arrow field, with the unit in its metadata."""
        return pa.field(self.name, self.type, metadata={"unit": self.unit} if self.unit else None)


@dataclass(frozen=True)
class Cut:
    """One condition that a row must meet."""

    name: str
    columns: tuple[str, ...]
    keep: Callable[[Mapping[str, NDArray[Any]]], NDArray[np.bool_]]
    "from the named columns (nulls filled with 0 or the empty string) to True where the row stays"
    reason: str
    null: Literal["fails", "passes"] = "fails"
    "what a null in any of the columns means; NaN is a null"


CodecKind = Literal["quantile", "log", "asinh", "grid", "xp", "image", "image_uniform", "spectrum"]
"""`image_uniform`: of images without inverse variance."""


@dataclass(frozen=True)
class Modality:
    """One kind of measurement of one survey."""

    name: str
    "`survey.quantity`, as in `gaia.parallax`"
    token_key: str
    "AION-1's name for the same tokens"
    codec: CodecKind
    column: str | None = None
    "the survey's own column that holds it; None where it is cut out of a payload file"
    unit: str = ""
    shape: tuple[int, ...] = ()
    "of one source's measurement; () for a number"
    error: str | None = None
    "column of its standard deviation, in the same unit"
    ivar: str | None = None
    "column of its inverse variance"
    bands: tuple[str, ...] = ()
    pixel_arcsec: float = 0.0
    "of an image"
    wavelengths: tuple[Literal["linear", "log10"], float, float] | None = None
    "of a spectrum: first pixel and step, in Angstrom or in log10 of Angstrom, vacuum; None: the codec's own default"
    absent_flag: str | None = None
    "boolean column that is True where the measurement's file was lost (status `file absent`)"
    about: str = ""
    flag: str = ""
    "what sets it apart from measurements that it must not be mixed with; told wherever a person sees it"

    @property
    def payload(self) -> bool:
        """Whether it is cut out of a payload file."""
        return self.column is None

    @property
    def image(self) -> bool:
        """Whether it is an image."""
        return self.pixel_arcsec > 0


@dataclass(frozen=True)
class Link:
    """An id by which rows of a survey name rows of another."""

    to: str
    "the other survey"
    releases: tuple[str, ...]
    "of the other survey, whose keys these ids are; empty: the key itself tells (`Survey.issued`)"
    keys: Callable[[pa.Table], pa.Array]
    "from the survey's own columns to the key of the other survey's row, int64; null where a row names none"
    reason: str


@dataclass(frozen=True)
class PayloadGroup:
    """Sources whose measurement lies in the same files."""

    rows: NDArray[np.int64]
    "row numbers in the table that was asked about"
    files: Mapping[str, RemoteFile]
    "by role, as `Survey.extract` wants them"


class MissingColumn(ValueError):
    """A file lacks a column that the reader or a cut in force needs."""


class WrongUnit(MissingColumn):
    """A file has the column in another unit: the one that is wanted is not there."""


def meant(found: str, known: Sequence[str]) -> str:
    """The known word that was likely meant, as the end of a message; empty where none is near."""
    near = get_close_matches(found, known, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def unknown_option(found: str, options: Iterable[str]) -> str:
    """What is said of a survey's key in a recipe that is none, beside its own options."""
    known = [*KEYS, *options]
    return f"there is no option {found!r}; there are {', '.join(known)}{meant(found, known)}"


class Survey(ABC):
    """A public data release: which files, which rows to trust, what was measured."""

    name: ClassVar[str]
    rank: ClassVar[int]
    "place in the order of anchors; part of the format, never changed"
    releases: ClassVar[tuple[str, ...]]
    columns: ClassVar[tuple[Column, ...]]
    valid: ClassVar[tuple[Cut, ...]]
    select: ClassVar[Mapping[str, tuple[Cut, ...]]]
    "by profile: aion, strict, all"
    modalities: ClassVar[tuple[Modality, ...]]
    footprint: ClassVar[Literal["all-sky", "occupied", "exact"]]
    "`exact`: `coverage` knows; `occupied`: estimated from where the sources are"
    links: ClassVar[tuple[Link, ...]] = ()
    "at most one to each other survey"
    cutouts: bool = False
    """Whether the archive's cut-out service is asked for the pixels, one question a source: then only sources of the
    region's objects are wanted, and a folder of the archive's files does not do."""
    bands: ClassVar[Mapping[str, str]] = {}
    "common photometric bands (g, r, i, z, ...) to the column of flux in nanomaggies"

    def __init__(self, release: str, **options: Any) -> None:
        if release not in self.releases:
            raise ValueError(
                f"{self.name}: there is no release {release!r} here; choose one of {', '.join(self.releases)}"
            )
        self.release = release
        self.options = options

    @property
    @abstractmethod
    def url(self) -> str:
        """Root of the release on the public archive; paths are relative to it."""

    def reference_files(self) -> Mapping[str, RemoteFile]:
        """Files about the whole survey that the other methods want, by role (a table of bricks, say)."""
        return {}

    @abstractmethod
    def catalog_files(self, archive: Archive, cells: Iterable[int]) -> list[RemoteFile]:
        """The catalogue files that may hold sources of these work cells, in a fixed order.

        A file that the archive lists but lacks is still named: what is lost must be known, not skipped.
        """

    def n_rows(self, path: Path) -> int | None:
        """Rows of a catalogue file that can be read in slices; None where it has to be read whole."""
        return None

    @abstractmethod
    def read(
        self,
        path: Path,
        rows: tuple[int, int] | None = None,
        companions: Mapping[str, Path | None] | None = None,
        needed: Iterable[str] = (),
    ) -> pa.Table:
        """Read a catalogue file, or the half-open range `rows` of it.

        Gives the columns of `STANDARD_SCHEMA`, then the survey's own `columns`, all of them, in order, NaN as null
        in the survey's own floating-point columns. `needed` names own columns without which `MissingColumn` is
        raised, beside the required ones. A companion that is None is one that the archive lists but lacks.
        """

    def repeats(self, table: pa.Table) -> NDArray[np.int64] | None:
        """For rows of valid sources: the row number of the primary of the same target, or None without repeats.

        A row that is its own primary points at itself.
        """
        return None

    def issued(self, keys: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether these can be keys of this release's rows: True where a key does not tell its release."""
        return np.ones(len(keys), dtype=bool)

    def payload_groups(self, sources: pa.Table, modality: str, reference: Mapping[str, Path]) -> list[PayloadGroup]:
        """Which files hold this modality of these sources. `sources` has key, ra, dec and the own columns.

        For a forced position (a user's target that this survey did not detect) the own columns are null.
        Sources in no group are outside the survey's payload.
        """
        raise ValueError(f"{self.name} has no payload modality {modality!r}")

    def extract(self, modality: str, sources: pa.Table, files: Mapping[str, Path], lost: frozenset[str]) -> pa.Table:
        """The measurements of one `PayloadGroup`, row for row with `sources`: key, status, then arrays.

        `files` holds what is there by role; `lost` the roles that the archive lists but lacks. A role in neither is
        not published, which is a fact (a band without exposures). `status` is null where the measurement is
        present, else `file_absent` or `not_measured`.
        """
        raise ValueError(f"{self.name} has no payload modality {modality!r}")

    def coverage(self, reference: Mapping[str, Path]) -> NDArray[np.float64]:
        """Footprint of an `exact` survey as boxes, shape (n, 4): ra_min, ra_max, dec_min, dec_max in degrees.

        `ra_min` may exceed `ra_max`: the box then crosses RA 0.
        """
        raise NotImplementedError(self.name)

    def modality(self, name: str) -> Modality:
        """The modality of this name."""
        for m in self.modalities:
            if m.name == name:
                return m
        raise ValueError(f"{self.name} has no modality {name!r}; it has {', '.join(m.name for m in self.modalities)}")


def link_columns(survey: Survey, table: pa.Table) -> dict[str, pa.Array]:
    """`link.OTHER` by name: the key of the row of that survey which each row of this one names, null where none."""
    return {f"link.{link.to}": link.keys(table) for link in survey.links}


def first_failed(cuts: Sequence[Cut], table: pa.Table) -> pa.Array:
    """Name of the first cut that each row fails, null where it passes all of them."""
    failed = np.full(table.num_rows, "", dtype=object)
    open_rows = np.ones(table.num_rows, dtype=bool)
    for cut in cuts:
        values: dict[str, NDArray[Any]] = {}
        null = np.zeros(table.num_rows, dtype=bool)
        for name in cut.columns:
            column = table.column(name).combine_chunks()
            if pa.types.is_floating(column.type):
                value = column.to_numpy(zero_copy_only=False)
                missing = np.isnan(value)
            else:
                missing = column.is_null().to_numpy(zero_copy_only=False)
                blank: Any = "" if pa.types.is_string(column.type) else False if pa.types.is_boolean(column.type) else 0
                value = column.fill_null(blank).to_numpy(zero_copy_only=False)
            null |= missing
            values[name] = value
        with np.errstate(invalid="ignore"):
            keep = np.asarray(cut.keep(values), dtype=bool)
        keep = keep & ~null if cut.null == "fails" else keep | null
        failed[open_rows & ~keep] = cut.name
        open_rows &= keep
    return pa.array([f or None for f in failed], type=pa.string())
