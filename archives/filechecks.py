"""Checks of the archives' files: their lists, their names, the first bytes of some, the whole of a few small ones."""

from __future__ import annotations

import csv
import io
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
from astropy.io import fits

from skycairn.archives.check import Check, Differs, Doctor, Skip, plural, sample
from skycairn.archives.credentials import credential
from skycairn.archives.errors import NotPublished, Refused
from skycairn.archives.files import parse_checksums, verify
from skycairn.archives.structure import SNIFF, kind
from skycairn.catalogs import desicolumns, legacycolumns, sdsscolumns
from skycairn.catalogs.desi import PRODUCTIONS, healpix_file
from skycairn.catalogs.ecsv import FALSE, NULLS, TRUE
from skycairn.catalogs.fitsfile import data_bytes
from skycairn.catalogs.gaia import (
    CHECKSUMS,
    FILE_ORDER,
    SOURCE_COLUMNS,
    SOURCE_FILE,
    SOURCE_FOLDER,
    XP_FILE,
    XP_FOLDER,
    Gaia,
    read_xp,
)
from skycairn.catalogs.hscfiles import TRACT_PATCHES, calexp_path, read_patches
from skycairn.catalogs.hscimage import PLANES, ZERO_POINT
from skycairn.catalogs.legacyfiles import LAYOUTS, sweep_box
from skycairn.catalogs.sdss import CATALOG, PRODUCTS, spectrum_file
from skycairn.catalogs.survey import Column, RemoteFile

HEADER_BYTES = 1 << 18
"""In which a table's headers are looked for."""
LOOKED_AT = 6
"""Files of a folder whose sizes are asked for."""
SMALL = ("ccds", "nexp", "psfsize", "maskbits", "depth", "image")
"""Products of a brick, the smaller ones first."""
FORMS = {"L": "flag", "A": "text", **dict.fromkeys("BIJK", "whole"), **dict.fromkeys("ED", "float")}


def answers(name: str, path: str, host: str) -> Check:
    """Whether the host of a survey's files answers at all."""

    def run(doctor: Doctor) -> str:
        try:
            found = doctor.client.head(doctor.archives[name].address(path))
        except Refused:
            return "it does, and wants an account"
        return "it does" if found else f"it does, and has no {path}"

    return Check("answers", f"{host} gives an answer, whatever it is", run, host, first=True)


def headers(doctor: Doctor, name: str, path: str, n: int) -> list[fits.Header]:
    """The first headers of a FITS file, of which its data are not fetched."""
    out: list[fits.Header] = []
    at = 0
    for _ in range(n):
        start = io.BytesIO(doctor.start(name, path, HEADER_BYTES, at))
        where = f"{path}, at byte {at:,}"
        if (found := kind(start.getvalue()[:SNIFF])) != "a FITS file" and at == 0:
            raise Differs(f"{where}: is {found}; assumed a FITS file")
        try:
            out.append(fits.Header.fromfile(start))
            at += start.tell() + data_bytes(out[-1])
        except (OSError, EOFError, KeyError, TypeError, fits.VerifyError) as error:
            raise Differs(f"{where}: no header of FITS could be read in {HEADER_BYTES:,} bytes ({error})") from None
    return out


def columns_of(header: fits.Header) -> dict[str, str]:
    """TFORM of each column by its name in lower case; empty where the header is of no table."""
    return {str(v).strip().lower(): str(header[f"TFORM{k[5:]}"]).strip() for k, v in header["TTYPE*"].items()}


def held(forms: Mapping[str, str], wanted: Iterable[Column], absent: Sequence[str], where: str) -> str:
    """What was found of the columns that a reader wants; Differs where one is not there, or of another kind.

    `absent` are known not to be there.
    """
    lacking, other, n = [], [], 0
    for column in wanted:
        name = next((x for x in (column.name, *column.aliases) if x in forms), None)
        if name is None:
            if column.name not in absent:
                lacking.append(column.name.upper())
            continue
        n += 1
        if not _fits(forms[name], column.type):
            other.append(f"{name.upper()} is {forms[name]}, assumed {column.type}")
    found = [f"lacks {', '.join(lacking)}"] if lacking else []
    if found + other:
        raise Differs(f"{where}: {'; '.join(found + other)}")
    return f"{n} columns that are read are there, of {len(forms)}, and of the kinds assumed"


def _fits(form: str, wanted: pa.DataType) -> bool:
    found = re.fullmatch(r"(\d*)([LABIJKED]).*", form)
    if found is None:
        return False
    count, letter = int(found[1] or 1), FORMS[found[2]]
    if pa.types.is_fixed_size_list(wanted):
        return count == wanted.list_size and letter == "float"
    if pa.types.is_string(wanted):
        return letter == "text"
    if pa.types.is_boolean(wanted):
        return count == 1 and letter in ("flag", "whole")
    return count == 1 and letter == ("float" if pa.types.is_floating(wanted) else "whole")


# --- Legacy Surveys

DR10 = LAYOUTS["dr10"]
NOT_IN_SWEEPS = ("brick_primary",)


def sweep_list(doctor: Doctor) -> str:
    """The list of sweeps."""
    names = doctor.listed("legacysurvey", DR10.sweep_list)
    strange = [n for n in names if sweep_box(n) is None]
    if strange:
        raise Differs(f"it names {plural(len(strange), 'file')} that are no sweeps, as {strange[0]!r}")
    wanted = doctor.samples.n_sweeps
    if wanted and len(names) != wanted:
        raise Differs(f"found {plural(len(names), 'sweep')}, assumed {wanted:,}")
    return plural(len(names), "sweep")


def sweep_columns(doctor: Doctor) -> str:
    """The columns of one sweep."""
    names = doctor.listed("legacysurvey", DR10.sweep_list)
    if not names:
        raise Skip("the list names no sweep")
    path = f"{DR10.sweep_folder}/{min(names)}"
    table = headers(doctor, "legacysurvey", path, 2)[1]
    return held(columns_of(table), legacycolumns.COLUMNS, NOT_IN_SWEEPS, path)


def brick(doctor: Doctor) -> str:
    """A file of a brick, and its digest."""
    name = sample(doctor.samples.brick, "brick")
    path = DR10.coadd_list(name)
    names = doctor.listed("legacysurvey", path)
    kept = [n for stem in SMALL for n in sorted(names) if f"-{stem}" in n and n.endswith((".fits", ".fits.fz"))]
    return f"{plural(len(names), 'file')} listed; {_smallest(doctor, 'legacysurvey', path, kept)}"


def _smallest(doctor: Doctor, survey: str, checksum_list: str, names: list[str]) -> str:
    folder = checksum_list.rpartition("/")[0]
    path, size = doctor.smallest(survey, folder, names[:LOOKED_AT])
    doctor.whole(survey, RemoteFile(path, checksum_list, "sha256"))
    return f"{path.rpartition('/')[2]} ({size:,} bytes) has the digest that is published"


def tractor_list(doctor: Doctor) -> str:
    """The list of a folder of tractor files."""
    name = sample(doctor.samples.tractor_brick, "tractor_brick")
    path = DR10.tractor_list(name)
    names = doctor.listed("legacysurvey", path)
    if (wanted := f"tractor-{name}.fits") not in names:
        raise Differs(f"{path} lists {plural(len(names), 'file')}, and no {wanted}")
    return f"{path.rpartition('/')[2]}: {plural(len(names), 'file')}"


# --- DESI

DR1 = PRODUCTIONS["dr1"]
DERIVED = ("good_z", "z_good")


def zcatalog_list(doctor: Doctor) -> str:
    """The list of the redshift catalogues."""
    names = doctor.listed("desi", DR1.zcatalog_sums)
    if (wanted := DR1.zcatalog.rpartition("/")[2]) not in names:
        raise Differs(f"{DR1.zcatalog_sums} lists {plural(len(names), 'file')}, and no {wanted}")
    return f"{plural(len(names), 'file')}, {wanted} among them"


def zcatalog_columns(doctor: Doctor) -> str:
    """The columns of the redshift catalogue."""
    table = headers(doctor, "desi", DR1.zcatalog, 2)[1]
    if (name := str(table.get("EXTNAME", "")).strip()) != "ZCATALOG":
        raise Differs(f"{DR1.zcatalog}: the first table is {name!r}, assumed ZCATALOG")
    more = [Column(n, pa.float64(), required=True) for n in ("target_ra", "target_dec", "pmra", "pmdec")]
    return held(columns_of(table), [*desicolumns.COLUMNS, *more], DERIVED, DR1.zcatalog)


def healpix_folder(doctor: Doctor) -> str:
    """A file of a healpix, and its digest."""
    survey, program, number = sample(doctor.samples.desi, "desi").split("/")
    file = healpix_file("dr1", "coadd", survey, program, int(number))
    path = str(file.checksum_list)
    names = doctor.listed("desi", path)
    if (wanted := file.path.rpartition("/")[2]) not in names:
        raise Differs(f"{path} lists {', '.join(sorted(names)) or 'nothing'}; assumed {wanted} among them")
    # coadd and spectra are the large ones
    kept = sorted(names, key=lambda n: (n.startswith(("coadd", "spectra")), n))
    return f"{plural(len(names), 'file')} listed; {_smallest(doctor, 'desi', path, kept)}"


# --- SDSS


def plates(doctor: Doctor) -> str:
    """A small file, whole."""
    path = sample(doctor.samples.plates, "plates")
    found = doctor.whole("sdss", RemoteFile(path))
    return f"{path.rpartition('/')[2]} ({found.stat().st_size:,} bytes) is a whole FITS file; no digest vouches for it"


def checksum_lists(doctor: Doctor) -> str:
    """Whether there are checksum lists after all."""
    folder = CATALOG.rpartition("/")[0]
    try:
        page = doctor.client.read(f"{doctor.archives['sdss'].address(folder)}/", pages=True, most_bytes=4 << 20)
    except NotPublished:
        raise Skip(f"{folder}/ shows no index of its files; look for checksum lists by hand") from None
    names = {unquote(n) for n in re.findall(r'href="(?:\./)?([^"/?#]+)"', page.decode("utf-8", "replace"))}
    lists = sorted(n for n in names if re.search(r"(sha1|sha256|md5)sums?(\.txt)?$", n, re.IGNORECASE))
    if not names:
        raise Skip(f"{folder}/ shows no index of its files; look for checksum lists by hand")
    if not lists:
        return f"none, of {plural(len(names), 'name')} in {folder}/"
    said = f"found {', '.join(lists)} in {folder}/, assumed none"
    if doctor.samples.plates.rpartition("/")[0] == folder:
        at = f"{folder}/{lists[0]}"
        digests = parse_checksums(doctor.client.read(doctor.archives["sdss"].address(at)).decode(), at)
        name = doctor.samples.plates.rpartition("/")[2]
        if digest := next((d for n, d in digests.items() if n.rpartition("/")[2] == name), None):
            verify(doctor.whole("sdss", RemoteFile(doctor.samples.plates)), digest)
            said += f"; {name} has the digest that {lists[0]} says"
    raise Differs(said)


def specobj_columns(doctor: Doctor) -> str:
    """The columns of specObj."""
    table = headers(doctor, "sdss", CATALOG, 2)[1]
    more = [Column(n, pa.float64(), required=True) for n in ("plug_ra", "plug_dec")]
    return held(columns_of(table), [*sdsscolumns.COLUMNS, *more], sdsscolumns.DERIVED, CATALOG)


def spectra(product: str) -> Callable[[Doctor], str]:
    """Paths of spectra of each RUN2D, of a product."""

    def run(doctor: Doctor) -> str:
        paths = []
        for text in sample(doctor.samples.spectra, "spectra").split():
            run2d, *numbers = text.split("/")
            paths.append(spectrum_file(product, run2d, *map(int, numbers)))
        lacking = [path for path in paths if doctor.head("sdss", path) is None]
        if lacking:
            raise Differs(f"{len(lacking)} of {len(paths)} are not there: {', '.join(lacking)}")
        return f"{plural(len(paths), 'file')} where assumed, as {paths[0]}"

    return run


# --- Gaia

LAST_PIXEL = (12 << 2 * FILE_ORDER) - 1


def ranges(folder: str, form: str) -> Callable[[Doctor], str]:
    """A list of Gaia's, whose names tell pieces of the sky."""

    def run(doctor: Doctor) -> str:
        names = doctor.listed("gaia", f"{folder}/{CHECKSUMS}")
        pattern = re.escape(form).replace(re.escape("{range}"), r"(\d{6})-(\d{6})")
        found = sorted((int(m[1]), int(m[2])) for n in names if (m := re.fullmatch(pattern, n)))
        if not found:
            raise Differs(f"it lists {plural(len(names), 'file')}, none of them as {form}")
        if wanted := doctor.samples.n_gaia:
            if len(found) != wanted:
                raise Differs(f"found {plural(len(found), 'file')}, assumed {wanted:,}")
            ends = [-1, *(last for _, last in found)]
            gaps = [a for (a, _), end in zip(found, ends, strict=False) if a != end + 1]
            if gaps or ends[-1] != LAST_PIXEL:
                raise Differs(f"the ranges leave a gap or overlap at {[*gaps, ends[-1]][0]:06d}; assumed none")
        if (span := doctor.samples.gaia_range) and form.format(range=span) not in names:
            raise Differs(f"it does not list {form.format(range=span)}, which was assumed")
        return plural(len(found), "file")

    return run


def unpacked(doctor: Doctor, path: str, n_bytes: int) -> Path:
    """The first rows of a file of Gaia's, those that come whole in its first bytes, as a CSV file of their own."""
    start = doctor.start("gaia", path, n_bytes)
    if (found := kind(start[:SNIFF])) != "a gzip":
        raise Differs(f"{path}: is {found}, assumed a gzip")
    try:
        text = zlib.decompressobj(31).decompress(start, 1 << 26)
    except zlib.error as error:
        raise Differs(f"{path}: cannot be unpacked from its start ({error})") from None
    if not text.startswith(b"# %ECSV"):
        raise Differs(f"{path}: begins with {text[:20]!r}, assumed an ECSV header")
    into = doctor.folder / path.rpartition("/")[2].removesuffix(".gz")
    into.write_bytes(text[: text.rfind(b"\n") + 1])
    return into


def source_rows(doctor: Doctor) -> str:
    """The first rows of a file of sources: columns, nulls, flags."""
    span = sample(doctor.samples.gaia_range, "gaia_range")
    path = unpacked(doctor, f"{SOURCE_FOLDER}/{SOURCE_FILE.format(range=span)}", 1 << 16)
    nulls, flags, strange = spellings(path.read_text())
    if strange:
        raise Differs(f"column {strange[0]!r} holds {strange[1]!r}; assumed a value, or null")
    table = Gaia("dr3").read(path, needed=[n for n in SOURCE_COLUMNS if n not in ("ra", "dec")])
    if unlike := nulls - {"null", ""}:
        raise Differs(f"missing values are spelt {', '.join(sorted(map(repr, unlike)))}; assumed null, or nothing")
    told = f"missing values are spelt {', '.join(sorted(map(repr, nulls)))}" if nulls else "none lacks a value"
    return f"{plural(table.num_rows, 'row')}: {told}; flags {', '.join(sorted(flags)) or 'are all missing'}"


def spellings(text: str) -> tuple[set[str], set[str], tuple[str, str] | None]:
    """How missing values and flags are spelt in a CSV with comments; column and text of what is neither those nor a
    number."""
    lines = csv.reader(line for line in io.StringIO(text) if not line.startswith("#"))
    names = next(lines, [])
    nulls: set[str] = set()
    flags: set[str] = set()
    for row in lines:
        for name, value in zip(names, row, strict=False):
            wanted = SOURCE_COLUMNS.get(name)
            if wanted is None:
                continue
            if value in NULLS:
                nulls.add(value)
            elif pa.types.is_boolean(wanted.type):
                if value not in TRUE + FALSE:
                    return nulls, flags, (name, value)
                flags.add(value)
            elif not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", value):
                return nulls, flags, (name, value)
    return nulls, flags, None


def xp_rows(doctor: Doctor) -> pa.Table:
    """The first rows of a file of XP spectra."""
    span = sample(doctor.samples.gaia_range, "gaia_range")
    return read_xp(unpacked(doctor, f"{XP_FOLDER}/{XP_FILE.format(range=span)}", HEADER_BYTES))


def xp(doctor: Doctor) -> str:
    """That such rows are read."""
    table = xp_rows(doctor)
    if not len(table):
        raise Differs(f"no row comes whole in the first {HEADER_BYTES:,} bytes; assumed some")
    both = sum(a is not None and b is not None for a, b in zip(*_coefficients(table), strict=True))
    return f"{plural(len(table), 'row')}, {both} with 55 coefficients in both bands"


def _coefficients(table: pa.Table) -> tuple[list[object], list[object]]:
    return table["bp_coefficients"].to_pylist(), table["rp_coefficients"].to_pylist()


def gaia_file(doctor: Doctor) -> str:
    """A file of sources, whole, with its digest."""
    name = SOURCE_FILE.format(range=sample(doctor.samples.gaia_range, "gaia_range"))
    found = doctor.whole("gaia", RemoteFile(f"{SOURCE_FOLDER}/{name}", f"{SOURCE_FOLDER}/{CHECKSUMS}", "md5"))
    return f"{name} ({found.stat().st_size:,} bytes) has the digest that is published"


# --- HSC


def account(doctor: Doctor) -> str:
    """Whether there is an account, in a place that others cannot read."""
    credential("hsc")
    return "there is one, and nobody else can read it"


def tract_and_patch(doctor: Doctor) -> tuple[int, int]:
    """The sample's tract, and its patch as the database packs it."""
    tract, _, patch = sample(doctor.samples.patch, "patch").partition("/")
    first, _, second = patch.partition(",")
    return int(tract), int(first) * 100 + int(second)


def patch_list(doctor: Doctor) -> str:
    """The list of tracts and patches."""
    found = read_patches(doctor.whole("hsc", RemoteFile(TRACT_PATCHES)))
    said = f"{plural(len(found.boxes), 'tract')}, {len(found.patch):,} patches"
    if doctor.samples.patch:
        tract, patch = tract_and_patch(doctor)
        if not ((found.tract == tract) & (found.patch == patch)).any():
            raise Differs(f"{said}, and none of them is {doctor.samples.patch}")
    return said


def calexp(doctor: Doctor) -> str:
    """The headers of a coadd: its zero point and the planes of its mask."""
    tract, patch = tract_and_patch(doctor)
    path = calexp_path("i", tract, patch)
    primary, image, mask = headers(doctor, "hsc", path, 3)
    planes = {k.upper()[3:] for k in mask if k.upper().startswith("MP_")}
    if lacking := [p for p in PLANES if p not in planes]:
        raise Differs(
            f"{path}: its mask has no plane {', '.join(lacking)}; it has {', '.join(sorted(planes)) or 'none'}"
        )
    said = next((float(h["FLUXMAG0"]) for h in (primary, image) if "FLUXMAG0" in h), None)
    if said is None:
        if any(str(h.get("BUNIT", "")).strip().lower() == "njy" for h in (primary, image)):
            raise Differs(f"{path}: is in nJy, assumed counts of zero point {ZERO_POINT:g}; it is read as it says")
        return f"{len(planes)} planes in its mask; no FLUXMAG0, so that the zero point {ZERO_POINT:g} is taken on trust"
    if not said > 0 or abs((found := 2.5 * np.log10(said)) - ZERO_POINT) > 1e-3:
        raise Differs(f"{path}: FLUXMAG0 is {said:g}, assumed {10 ** (0.4 * ZERO_POINT):g} (zero point {ZERO_POINT:g})")
    return f"zero point {found:.4f}, {len(planes)} planes in its mask"


def _of(host: str, *checks: tuple[str, str, Callable[[Doctor], str]]) -> tuple[Check, ...]:
    return tuple(Check(name, about, run, host) for name, about, run in checks)


def _host(url: str) -> str:
    return urlsplit(url).netloc


HSC_HOST = "hsc-release.mtk.nao.ac.jp"
GAIA_HOST = _host(Gaia("dr3").url)
CHECKS: Mapping[str, tuple[Check, ...]] = {
    "legacysurvey": (
        answers("legacysurvey", DR10.bricks, _host(DR10.url)),
        *_of(
            _host(DR10.url),
            ("list of sweeps", f"{DR10.sweep_list} names all sweeps", sweep_list),
            ("columns of sweeps", "a sweep has the columns that are read", sweep_columns),
            ("a brick's files", "a brick's folder has a list, and its files the digests of it", brick),
            ("list of tractor files", "a tractor folder's list is named as those of DR9", tractor_list),
        ),
    ),
    "hsc": (
        answers("hsc", TRACT_PATCHES, HSC_HOST),
        *_of(
            HSC_HOST,
            ("account", "an account is set, in the environment, netrc or keyring", account),
            ("list of patches", f"{TRACT_PATCHES} can be read", patch_list),
            ("a coadd's headers", "counts of zero point 27, and a mask whose planes have the known names", calexp),
        ),
    ),
    "gaia": (
        answers("gaia", f"{SOURCE_FOLDER}/{CHECKSUMS}", GAIA_HOST),
        *_of(
            GAIA_HOST,
            ("list of sources", "files whose names are ranges of HEALPix", ranges(SOURCE_FOLDER, SOURCE_FILE)),
            ("list of XP spectra", "files of the same ranges", ranges(XP_FOLDER, XP_FILE)),
            ("rows of sources", "gzip with an ECSV header; a missing value is null", source_rows),
            ("rows of XP spectra", "arrays of 55 coefficients", xp),
            ("a file's digest", "is what the list says", gaia_file),
        ),
    ),
    "desi": (
        answers("desi", DR1.zcatalog_sums, _host(DR1.url)),
        *_of(
            _host(DR1.url),
            ("list of redshifts", f"{DR1.zcatalog_sums} names the catalogue", zcatalog_list),
            ("columns of redshifts", "the catalogue has the columns that are read", zcatalog_columns),
            ("a healpix's files", "each folder has a list, and its files the digests of it", healpix_folder),
        ),
    ),
    "sdss": (
        answers("sdss", CATALOG, "data.sdss.org"),
        *_of(
            "data.sdss.org",
            ("table of plates", "a small file comes whole", plates),
            ("checksum lists", "there are none", checksum_lists),
            ("columns of specObj", "specObj has the columns that are read", specobj_columns),
            *((f"paths of {p} files", "by RUN2D, PLATE, MJD, FIBERID", spectra(p)) for p in PRODUCTS),
        ),
    ),
}
"""By survey, in the order in which they are made."""
