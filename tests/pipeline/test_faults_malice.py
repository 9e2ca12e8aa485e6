"""Faults 50 to 52: archives, bombs and pickles where a catalogue, a codec, a lock or a table of targets is wanted."""

import ast
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from astropy.io import fits

from skycairn.catalogs.ecsv import read_table
from skycairn.pile.files import PileError
from skycairn.pile.store import Pile
from skycairn.pipeline import recipe as recipes
from skycairn.pipeline.recipe import Recipe
from skycairn.pipeline.run import BuildError, build
from skycairn.tokenizers.codec import load
from skycairn.tokenizers.lock import read_lock, write_lock
from skycairn.tokenizers.scalar import QuantileCodec

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("catalogs", "tokenizers", "pile", "pipeline", "model", "cli")
SWEEP = "legacysurvey/south/sweep/10.1/sweep-000m005-005p000.fits"
PATTERN = {"legacysurvey": "sweep-*.fits", "gaia": "GaiaSource*.gz", "desi": "zall-pix-*.fits"}
ENDINGS = (".csv", ".fits", ".fits.gz", ".ecsv", ".parquet")


# --- what no code of ours does ----------------------------------------------------------------------------------------


def product_code() -> list[tuple[Path, ast.AST]]:
    return [(p, ast.parse(p.read_text())) for f in FOLDERS for p in sorted((ROOT / f).glob("*.py"))]


def test_fault_50_no_product_code_unpacks_archives() -> None:
    found = []
    for path, tree in product_code():
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [(path.name, n) for n in names if n.split(".")[0] in ("tarfile", "zipfile", "patoolib", "py7zr")]
            if isinstance(node, ast.Attribute) and node.attr in ("unpack_archive", "extractall"):
                found.append((path.name, node.attr))
    assert len(product_code()) > 50
    assert not found


def test_fault_52_no_product_code_unpickles() -> None:
    """torch.load, np.load with pickles and pandas' are the ways in, beside pickle itself."""
    banned = ("pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "pandas")
    found = []
    for path, tree in product_code():
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [(path.name, n) for n in names if n.split(".")[0] in banned]
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                of = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                if (of, node.func.attr) == ("torch", "load") or node.func.attr == "read_pickle":
                    found.append((path.name, node.func.attr))
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path
    assert not found


# --- evil files -------------------------------------------------------------------------------------------------------


class Evil:
    """A pickle of it makes a file, if it is ever read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def tar(marker: Path, mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name in (f"../../{marker.name}", str(marker), "codec.json", "mine.csv"):
            about = tarfile.TarInfo(name)
            about.size = 14
            archive.addfile(about, io.BytesIO(b"id,ra,dec\n1,2,"))
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, str(marker.parent)
        archive.addfile(link)
    return out.getvalue()


def zipped(marker: Path) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in (f"../../{marker.name}", str(marker), "codec.json"):
            archive.writestr(name, "id,ra,dec\n1,2,3\n")
    return out.getvalue()


def pickled(marker: Path) -> bytes:
    return pickle.dumps(Evil(marker))


def saved_by_torch(marker: Path) -> bytes:
    out = io.BytesIO()
    torch.save({"model": Evil(marker)}, out)
    return out.getvalue()


def numpy_object(marker: Path) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([Evil(marker)], dtype=object), allow_pickle=True)
    return out.getvalue()


def hdf5(marker: Path) -> bytes:
    """A dataset whose bytes lie in another file of this machine, and a link to another."""
    path = marker.with_name("linked.h5")
    secret = marker.with_name("secret.txt")
    secret.write_text("id,ra,dec\n1,2,3\n" * 4)
    with h5py.File(path, "w") as file:
        file.create_dataset("codec", (64,), "u1", external=[(str(secret), 0, 64)])
        file["link"] = h5py.ExternalLink(str(secret), "/")
    made = path.read_bytes()
    path.unlink()
    return made


ARCHIVES = {"tar": tar, "zip": zipped, "tar.gz": lambda marker: tar(marker, "w:gz")}
PICKLES = {"pickle": pickled, "torch": saved_by_torch, "npy": numpy_object, "hdf5": hdf5}
EVERY = pytest.mark.parametrize(("fault", "kind"), [(50, k) for k in ARCHIVES] + [(52, k) for k in PICKLES])


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What an evil file would make; it lies outside of what a build is given."""
    (tmp_path / "work").mkdir()
    return tmp_path / "marker"


def evil(kind: str, marker: Path) -> bytes:
    return {**ARCHIVES, **PICKLES}[kind](marker)


def untouched(marker: Path) -> bool:
    return not marker.exists() and {p.name for p in marker.parent.iterdir()} <= {"work", "secret.txt"}


def refused(call: Callable[[], object], *, says: str) -> str:
    with pytest.raises((ValueError, BuildError, PileError, OSError)) as caught:
        call()
    assert says in str(caught.value), caught.value
    assert "\n" not in str(caught.value), "one line"
    return str(caught.value)


@EVERY
@pytest.mark.parametrize("ending", [*ENDINGS, ""])
def test_fault_50_and_52_given_as_a_table_of_targets(marker: Path, fault: int, kind: str, ending: str) -> None:
    path = marker.parent / "work" / f"mine{ending or '.' + kind}"
    path.write_bytes(evil(kind, marker))
    settings = {"region": {"kind": "targets", "table": str(path), "radius_arcsec": 9.0}, "surveys": {"gaia": {}}}
    refused(lambda: recipes.parse(settings, "test"), says=path.name)
    assert untouched(marker)


def test_fault_52_an_ecsv_header_runs_nothing_and_a_line_is_no_file_name(marker: Path) -> None:
    work = marker.parent / "work"
    head = f"# %ECSV 1.0\n# ---\n# meta: !!python/object/apply:pathlib.Path.touch [{marker}]\n# datatype:\n"
    head += "".join(f"# - {{name: {n}, datatype: int64}}\n" for n in ("id", "ra", "dec"))
    (work / "other.csv").write_text("id,ra,dec\n1,2,3\n")
    for text in (f"{head}id,ra,dec\n1,2,3\n", str(work / "other.csv")):
        path = work / "mine.ecsv"
        path.write_text(text)
        settings = {"region": {"kind": "targets", "table": str(path), "radius_arcsec": 9.0}, "surveys": {"gaia": {}}}
        refused(lambda settings=settings: recipes.parse(settings, "test"), says="mine.ecsv")
    assert untouched(marker)


@EVERY
@pytest.mark.parametrize("which", ["legacysurvey", "gaia", "desi"])
def test_fault_50_and_52_given_as_a_catalogue(
    marker: Path, tiny_sky: Path, tiny_recipe: Recipe, fault: int, kind: str, which: str
) -> None:
    """Every file of the survey, and no list to hold it against."""
    sky = Path(shutil.copytree(tiny_sky / which, marker.parent / "work" / which)).parent
    files = sorted((sky / which).rglob(PATTERN[which]))
    for path in files:
        path.write_bytes(evil(kind, marker))
        for found in path.parent.iterdir():
            if found.name.endswith(("sha256sum", "MD5SUM.txt")):
                name = "md5" if "MD5" in found.name else "sha256"
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, name).hexdigest()
                lines = found.read_text().splitlines()
                found.write_text(
                    "".join(f"{digest if x.endswith(path.name) else x.split()[0]}  {x.split()[1]}\n" for x in lines)
                )
    surveys = tuple(replace(c, root=str(sky / which)) for c in tiny_recipe.surveys if c.name == which)
    recipe = replace(tiny_recipe, surveys=surveys)
    refused(
        lambda: build(recipe, marker.parent / "work" / "pile"), says=files[0].name.partition("_")[0].partition("-")[0]
    )
    assert Pile.open(marker.parent / "work" / "pile").head() is None
    assert untouched(marker)


@EVERY
@pytest.mark.parametrize("place", ["codec.safetensors", "codec.json", "codecs.lock"])
def test_fault_50_and_52_given_as_a_codec_or_a_lock(
    marker: Path, tiny_sky: Path, tiny_recipe: Recipe, fault: int, kind: str, place: str
) -> None:
    codec = QuantileCodec.fit(np.linspace(1.0, 9.0, 50), "log")
    lock = marker.parent / "work" / "codecs.lock"
    write_lock(lock, {"gaia.flux_g": codec})
    path = lock if place == "codecs.lock" else lock.parent / "codecs" / codec.content_id / place
    path.write_bytes(evil(kind, marker))
    refused(lambda: read_lock(lock), says=place)
    if place != "codecs.lock":
        refused(lambda: load(path.parent), says=place)
    surveys = tuple(replace(c, root=str(tiny_sky / c.name)) for c in tiny_recipe.surveys if c.name == "gaia")
    recipe = replace(tiny_recipe, surveys=surveys, codecs=replace(tiny_recipe.codecs, lock=str(lock)))
    refused(lambda: build(recipe, marker.parent / "work" / "pile"), says=place)
    assert Pile.open(marker.parent / "work" / "pile").head() is None
    assert untouched(marker)


@pytest.mark.parametrize("folder", ["../elsewhere", "/tmp", "codecs/../../x", "a\0b"])
def test_fault_50_a_lock_names_no_folder_beyond_its_own(tmp_path: Path, folder: str) -> None:
    entry = {"kind": "quantile", "content_id": "0" * 64, "folder": folder}
    (tmp_path / "codecs.lock").write_text(json.dumps({"gaia.flux_g": entry}))
    refused(lambda: read_lock(tmp_path / "codecs.lock"), says="leads out of the lock's own folder")


@pytest.mark.parametrize("kind", list(ARCHIVES))
def test_fault_50_an_archive_is_no_pile(marker: Path, kind: str) -> None:
    path = marker.parent / "work" / f"pile.{kind}"
    path.write_bytes(evil(kind, marker))
    refused(lambda: Pile.open(path), says=path.name)
    assert untouched(marker)


def test_fault_52_a_votable_whose_rows_lie_elsewhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\0" * 64)
    field = '<FIELD name="source_id" datatype="long"/>'
    stream = f'<DATA><BINARY><STREAM href="file://{tmp_path}/secret"/></BINARY></DATA>'
    space = 'xmlns="http://www.ivoa.net/xml/VOTable/v1.3" version="1.3"'
    path = tmp_path / "t.vot"
    path.write_text(f"<VOTABLE {space}><RESOURCE><TABLE>{field}{stream}</TABLE></RESOURCE></VOTABLE>")
    refused(lambda: read_table(path, {"source_id": pa.int64()}), says="which is not followed")


# --- bombs ------------------------------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
from pathlib import Path
import pyarrow as pa
from skycairn.catalogs.gaia import Gaia
from skycairn.catalogs.legacysurvey import LegacySurvey
from skycairn.catalogs.targets import Targets
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
made = {"gaia": Gaia("dr3"), "legacysurvey": LegacySurvey("dr10"), "targets": Targets()}[sys.argv[1]]
for path in map(Path, sys.argv[2:]):
    try:
        made.read(path)
    except ValueError as error:
        print("refused:", " ".join(str(error).split()))
"""


def limited(what: str, *paths: Path) -> str:
    """What a reader says of files in a process that may take 6 GiB of addresses, libraries included; a line each."""
    environ = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, what, *map(str, paths)],
        capture_output=True,
        text=True,
        env=environ,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def gzip_of(head: bytes, block: bytes, times: int, tail: bytes = b"") -> bytes:
    """Members of one gzip file, of which the middle one is repeated: large, and made at once."""
    return gzip.compress(head) + gzip.compress(block) * times + (gzip.compress(tail) if tail else b"")


def test_fault_51_a_gzip_bomb_of_a_gaia_table(tmp_path: Path) -> None:
    names = b"source_id,ra,dec,pmra,pmdec,parallax\n"
    rows, path = b"1,2,3,,,\n" * (1 << 17), tmp_path / "GaiaSource_0-1.csv.gz"
    path.write_bytes(gzip_of(names, rows, 2000))
    assert path.stat().st_size < 20_000_000, "2.4 GB unpacked"
    assert "refused:" in (said := limited("gaia", path)) and "unpacks to more than 100 times" in said
    # one line without an end, where names are looked for
    path.write_bytes(gzip_of(b"", b"a" * (1 << 20), 4000))
    assert "its header has no end" in limited("gaia", path)


def test_fault_51_a_gzip_bomb_of_fits(tmp_path: Path) -> None:
    rows = np.zeros(1, [("id", ">i8"), ("ra", ">f8"), ("dec", ">f8")])
    out = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(rows)]).writeto(out)
    head = bytearray(out.getvalue()[:-2880])
    at = head.index(b"NAXIS2  =")
    n = 24 * 2880 * 4096
    head[at : at + 80] = f"NAXIS2  = {n // 24:>20}".encode().ljust(80)
    (tmp_path / "mine.fits.gz").write_bytes(gzip_of(bytes(head), b"\0" * (24 * 2880 * 16), 256))
    assert "unpacks to more than 100 times" in limited("targets", tmp_path / "mine.fits.gz")


def test_fault_51_a_parquet_bomb_of_targets(tmp_path: Path) -> None:
    """Runs of one value: a hundred million rows in a small file; and a long text that a dictionary repeats."""
    path = tmp_path / "mine.parquet"
    one = pa.table({"id": np.zeros(1 << 20, "i8"), "ra": np.zeros(1 << 20), "dec": np.zeros(1 << 20)})
    with pq.ParquetWriter(path, one.schema) as writer:
        for _ in range(100):
            writer.write_table(one)
    assert path.stat().st_size < 2_000_000
    assert "has 104,857,600 rows, wanted at most 5,000,000" in limited("targets", path)
    n = 200_000
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, "i4")), ["x" * 200_000])
    pq.write_table(pa.table({"id": np.arange(n), "ra": np.zeros(n), "dec": np.zeros(n), "note": text}), path)
    assert path.stat().st_size < 4_000_000
    assert "refused:" in (said := limited("targets", path)) and "mine.parquet" in said


ABSURD: tuple[dict[str, int], ...] = (
    {"NAXIS2": 10**15},
    {"NAXIS1": 1 << 32, "NAXIS2": 1 << 32},  # whose product is 0 in 64 bits
    {"NAXIS2": -1},
    {"PCOUNT": -(10**9)},
    {"NAXIS": 999},
    {"BITPIX": 7},
    {"TFIELDS": 10**9},
)


@pytest.mark.parametrize("what", ["legacysurvey", "targets"])
def test_fault_51_absurd_fits_headers(tmp_path: Path, tiny_sky: Path, what: str) -> None:
    whole = tmp_path / "whole.fits"
    if what == "targets":
        rows = np.zeros(40, [("id", ">i8"), ("ra", ">f8"), ("dec", ">f8")])
        fits.BinTableHDU(rows).writeto(whole)
    else:
        shutil.copy(tiny_sky / SWEEP, whole)
    paths = []
    for i, cards in enumerate(ABSURD):
        data = bytearray(whole.read_bytes())
        for key, value in cards.items():
            at = data.index(key.encode().ljust(8) + b"=", 2880)
            data[at : at + 80] = f"{key:8}= {value:>20}".encode().ljust(80)
        paths.append(tmp_path / f"absurd{i}.fits")
        paths[-1].write_bytes(data)
    said = limited(what, *paths).splitlines()
    assert [p.name in line for p, line in zip(paths, said, strict=True)] == [True] * len(paths)


def test_fault_51_a_packed_image_that_says_it_is_huge(tmp_path: Path) -> None:
    from skycairn.catalogs.fitsfile import first_image, opened

    path = tmp_path / "coadd.fits.fz"
    fits.CompImageHDU(np.zeros((64, 64), "i4")).writeto(path)
    data = bytearray(path.read_bytes())
    for key, value in {"ZNAXIS1": 10**6, "ZTILE1": 10**6, "ZNAXIS2": 10**6}.items():
        at = data.index(key.encode().ljust(8) + b"=")
        data[at : at + 80] = f"{key:8}= {value:>20}".encode().ljust(80)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="says that it is an image"), opened(path) as hdus:
        first_image(path, hdus)
