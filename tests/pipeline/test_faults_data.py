"""Faults 37 to 48: what archives do to their tables, and what users do to theirs, ends as it should, end to end."""

import gzip
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import healpy
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from skycairn.catalogs.registry import SURVEYS, survey
from skycairn.catalogs.survey import first_failed
from skycairn.pile.store import Pile
from skycairn.pipeline import recipe as recipes
from skycairn.pipeline.recipe import Recipe
from skycairn.pipeline.run import BuildError, Built, build

Columns = dict[str, np.ndarray]

FILES = {
    "legacysurvey": "south/sweep/10.1/sweep-000m005-005p000.fits",
    "hsc": "sql/pdr3_wide/forced-9000.fits",
    "gaia": "gaia_source/GaiaSource_278348-278504.csv.gz",
    "desi": "zcatalog/v1/zall-pix-iron.fits",
    "sdss": "sdss/spectro/redux/specObj-dr17.fits",
}
"""A catalogue file of each survey of the tiny sky."""
PLACE = {
    "legacysurvey": ("RA", "DEC"),
    "hsc": ("ra", "dec"),
    "gaia": ("ra", "dec"),
    "desi": ("TARGET_RA", "TARGET_DEC"),
    "sdss": ("PLUG_RA", "PLUG_DEC"),
}
EACH = pytest.mark.parametrize("name", list(FILES))


# --- survey files, changed as their archive publishes them ------------------------------------------------------------


@pytest.fixture
def sky(tiny_sky: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_sky, tmp_path / "sky", ignore=shutil.ignore_patterns("truth")))


def only(recipe: Recipe, sky: Path, *names: str, profile: str = "", keep: str = "auto") -> Recipe:
    chosen = [replace(c, root=str(sky / c.name)) for c in recipe.surveys if c.name in names]
    chosen = [replace(c, profile=profile or c.profile) for c in chosen]
    return replace(recipe, surveys=tuple(chosen), payload=replace(recipe.payload, keep=keep))


def renew(path: Path) -> None:
    """Make the archive publish the file as it is now, if it publishes it at all."""
    for found in path.parent.iterdir():
        if found.name.endswith(("sha256sum", "sha256sum.txt", "MD5SUM.txt")):
            kind = "md5" if "MD5" in found.name else "sha256"
            digest = hashlib.new(kind, path.read_bytes()).hexdigest()
            lines = [f"{digest}  {path.name}" if x.endswith(path.name) else x for x in found.read_text().splitlines()]
            found.write_text("\n".join(lines) + "\n")


@contextmanager
def hdus_of(path: Path) -> Iterator[list[Any]]:
    """The HDUs of a file, for a change; written again when it is done."""
    with fits.open(path) as opened:
        made = [hdu.copy() for hdu in opened]
    yield made
    fits.HDUList(made).writeto(path, overwrite=True)
    renew(path)


def table_hdu(columns: Columns, units: dict[str, str], nulls: dict[str, int], name: str = "") -> fits.BinTableHDU:
    code = {"b": "L", "u1": "B", "i2": "I", "i4": "J", "i8": "K", "f4": "E", "f8": "D"}
    made = []
    for n, values in columns.items():
        if values.dtype.kind in "SU":
            form = f"{max(values.dtype.itemsize // (4 if values.dtype.kind == 'U' else 1), 1)}A"
        else:
            kind = "b" if values.dtype.kind == "b" else values.dtype.str[1:]
            form = f"{values.shape[1] if values.ndim == 2 else ''}{code[kind]}"
        made.append(fits.Column(n, form, units.get(n), array=values, null=nulls.get(n)))
    return fits.BinTableHDU.from_columns(made, name=name)


def change(
    path: Path,
    how: Callable[[Columns], Columns | None] = lambda columns: columns,
    units: dict[str, str] | None = None,
    nulls: dict[str, int] | None = None,
) -> None:
    """Change a catalogue's columns, their units and what stands for a null; Gaia's are texts."""
    if path.name.endswith(".csv.gz"):
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        at = next(i for i, x in enumerate(lines) if not x.startswith("#"))
        names, rows = lines[at].split(","), [x.split(",") for x in lines[at + 1 :]]
        columns = {n: np.array([r[i] for r in rows], dtype=object) for i, n in enumerate(names)}
        columns = how(columns) or columns
        for n, unit in (units or {}).items():
            i = next(i for i, x in enumerate(lines[:at]) if f"name: {n}," in x)
            lines[i] = lines[i].partition("unit:")[0] + f"unit: {unit}}}"
        body = [",".join(map(str, r)) for r in zip(*columns.values(), strict=True)]
        text = "\n".join([*lines[:at], ",".join(columns), *body]) + "\n"
        path.write_bytes(gzip.compress(text.encode()))
        renew(path)
        return
    with hdus_of(path) as hdus:
        at = next(i for i, h in enumerate(hdus) if isinstance(h, fits.BinTableHDU))
        old = hdus[at]
        columns = {n: np.array(old.data[n]) for n in old.columns.names}
        columns = how(columns) or columns
        told = {c.name: c.unit for c in old.columns if c.unit} | (units or {})
        hdus[at] = table_hdu(columns, told, nulls or {}, old.name)


def renamed(columns: Columns, old: str, new: str) -> Columns:
    return {new if n == old else n: v for n, v in columns.items()}


def cast(name: str, kind: str, add: float = 0.0) -> Callable[[Columns], None]:
    def how(columns: Columns) -> None:
        columns[name] = columns[name].astype(kind) + np.dtype(kind).type(add)

    return how


def keys_of(name: str, path: Path) -> dict[int, int]:
    """Keys of the rows of a catalogue file that no cut drops, by row."""
    made = survey(name, "dr1" if name == "desi" else SURVEYS[name].releases[0])
    read = made.read(path)
    valid = read.filter(first_failed(made.valid, read).is_null())
    return dict(zip(valid["row"].to_pylist(), valid["key"].to_pylist(), strict=True))


def valid_rows(name: str, path: Path) -> list[int]:
    """Those rows."""
    return list(keys_of(name, path))


def table(pile: Path, name: str) -> pa.Table:
    opened = Pile.open(pile)
    found = [opened.read_table(e.part) for e in opened.head().entries(name)]
    return pa.concat_tables(found, promote_options="permissive").combine_chunks()


def content(built: Built) -> str:
    return built.snapshot.content_id


# --- 37: schema drift -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "drifted"),
    [
        ("legacysurvey", ("sersic", "fitbits")),
        ("hsc", ("a_r", "a_g")),
        ("gaia", ("bp_rp", "ruwe")),
        ("desi", ("chi2", "maskbits")),
        ("sdss", ("sn_median_all", "z")),
    ],
)
def test_fault_37_schema_drift_that_loses_nothing_changes_no_value(
    tiny_sky: Path, tiny_second: Path, name: str, drifted: tuple[str, ...]
) -> None:
    """A column more, another case, a wider type: the second release of the mock has all three in each survey."""
    made = survey(name, "dr1" if name == "desi" else SURVEYS[name].releases[0])
    lineage = pq.read_table(tiny_second / f"truth/lineage-{name}.parquet").to_pylist()
    same = {r["key_1"] for r in lineage if r["what"] == "same"}
    wanted = ["key", "ra", "dec", *drifted]
    values = []
    for root in (tiny_sky, tiny_second):
        read = made.read(root / name / FILES[name])
        assert read.schema.names[12:] == [c.name for c in made.columns]
        values.append({r["key"]: r for r in read.select(wanted).to_pylist() if r["key"] in same})
    assert values[0] == values[1]
    assert len(values[0]) >= 5


@pytest.mark.parametrize(
    ("name", "how", "units", "says"),
    [
        ("legacysurvey", None, {"FLUX_R": "nJy"}, "column 'FLUX_R' is in 'nJy', wanted 'nanomaggy'"),
        ("legacysurvey", None, {"RA": "rad"}, "column 'RA' is in 'rad', wanted 'deg'"),
        ("hsc", None, {"g_cmodel_flux": "nanomaggy"}, "column 'G_CMODEL_FLUX' is in 'nanomaggy', wanted 'nJy'"),
        ("gaia", None, {"pmra": "arcsec.yr**-1"}, "column 'PMRA' is in 'arcsec.yr**-1', wanted 'mas/yr'"),
        ("desi", None, {"FLUX_IVAR_Z": "nanomaggy^-1"}, "column 'FLUX_IVAR_Z' is in 'nanomaggy^-1', wanted 'nano"),
        ("sdss", None, {"PLUG_DEC": "rad"}, "column 'PLUG_DEC' is in 'rad', wanted 'deg'"),
        ("legacysurvey", lambda c: renamed(c, "OBJID", "OBJ"), {}, "has no column 'OBJID'"),
        ("hsc", lambda c: renamed(c, "tract", "tractid"), {}, "has no column 'TRACT'"),
        ("gaia", lambda c: renamed(c, "pmdec", "mu_delta"), {}, "has no column 'pmdec'"),
        ("desi", lambda c: renamed(c, "TARGET_DEC", "DEC"), {}, "has no column 'TARGET_DEC'"),
        ("sdss", lambda c: renamed(c, "FIBERID", "FIBER"), {}, "has no column 'FIBERID'"),
        ("legacysurvey", cast("MASKBITS", "f8", 0.5), {}, "column 'MASKBITS' holds >f8 of shape (33,), wanted int32"),
        (
            "desi",
            cast("TARGETID", "f8"),
            {},
            "'TARGETID' holds >f8 of shape (38,), wanted int64: a whole number of 63 bits never passes through",
        ),
        (
            "desi",
            cast("FLUX_R", "f8", 1e300),
            {},
            "column 'FLUX_R' holds >f8 of shape (38,), wanted float: 1e+300 is beyond",
        ),
        ("hsc", cast("object_id", "f8"), {}, "object_id is >f8, wanted integers"),
        ("sdss", cast("PLATE", "f8", 0.5), {}, "column 'PLATE' holds >f8 of shape (33,), wanted int32"),
    ],
)
def test_fault_37_schema_drift_that_would_change_values_is_refused(
    sky: Path,
    tiny_recipe: Recipe,
    tmp_path: Path,
    name: str,
    how: Callable[[Columns], Columns] | None,
    units: dict[str, str],
    says: str,
) -> None:
    path = sky / name / FILES[name]
    change(path, how or (lambda columns: columns), units)
    if name == "legacysurvey":  # its other sweep is as it was
        (path.parent / "sweep-355m005-360p000.fits").unlink()
        found = next(path.parent.glob("*.sha256sum"))
        found.write_text("".join(x for x in found.read_text().splitlines(True) if "355m005" not in x))
    if name == "gaia":
        other = path.with_name("GaiaSource_278505-278708.csv.gz")
        change(other, how or (lambda columns: columns), units)
    with pytest.raises(BuildError, match=re.escape(says)) as caught:
        build(only(tiny_recipe, sky, name), tmp_path / "pile")
    assert path.name.partition("_")[0] in str(caught.value)  # of Gaia's two files either may come first
    assert "\n" not in str(caught.value)
    assert Pile.open(tmp_path / "pile").head() is None


# --- 38: HDUs ---------------------------------------------------------------------------------------------------------


def shuffle(path: Path) -> None:
    """HDUs in reverse, in lower case, between two that nobody asked for."""
    with hdus_of(path) as hdus:
        extra = table_hdu({"NOTE": np.array(["not what you want"])}, {}, {}, "extra")
        for hdu in hdus[1:]:
            hdu.name = hdu.name.lower()
        hdus[1:] = [extra, *hdus[:0:-1], fits.ImageHDU(np.zeros((3, 2)), name="another")]


def unpack(path: Path) -> None:
    """Images without compression, which would draw other noise when they are written again."""
    with hdus_of(path) as hdus:
        for i, hdu in enumerate(hdus):
            if isinstance(hdu, fits.CompImageHDU):
                hdus[i] = fits.ImageHDU(hdu.data, hdu.header, hdu.name)


@pytest.mark.parametrize(("name", "pattern"), [("desi", "*.fits"), ("legacysurvey", "sweep*.fits")])
def test_fault_38_hdu_order_extra_hdus_and_case_change_nothing(
    sky: Path, tiny_recipe: Recipe, tmp_path: Path, name: str, pattern: str
) -> None:
    recipe = only(tiny_recipe, sky, name)
    before = content(build(recipe, tmp_path / "before"))
    for path in sorted((sky / name).rglob(pattern)):
        shuffle(path)
    assert content(build(recipe, tmp_path / "after")) == before


def test_fault_38_hdu_order_of_a_calexp_and_of_its_catalogue(sky: Path) -> None:
    made, path = survey("hsc", "pdr3-wide"), sky / "hsc" / FILES["hsc"]
    calexps = sorted((sky / "hsc").rglob("calexp-*.fits*"))
    found = []
    for change_it in (unpack, shuffle):
        for file in [path, *calexps]:
            change_it(file)
        sources = made.read(path)
        group = made.payload_groups(sources, "hsc.image", {})[0]
        files = {role: sky / "hsc" / f.path for role, f in group.files.items() if (sky / "hsc" / f.path).is_file()}
        assert len(files) >= 5
        found.append((sources, made.extract("hsc.image", sources.take(pa.array(group.rows)), files, frozenset())))
    assert found[0][0].equals(found[1][0])
    assert found[0][1].equals(found[1][1])


# --- 39: positions ----------------------------------------------------------------------------------------------------


@EACH
def test_fault_39_positions_off_the_sky_are_counted_and_360_is_0(
    sky: Path, tiny_recipe: Recipe, tmp_path: Path, name: str
) -> None:
    path = sky / name / FILES[name]
    rows = valid_rows(name, path)
    off = [(np.nan, -1.2), (np.inf, -1.2), (-0.1, -1.2), (360.1, -1.2), (0.0, np.nan), (0.0, -np.inf), (0.0, 90.0001)]
    off = off[: len(rows) - 2]
    before = len(rows)

    def spoil(columns: Columns) -> None:
        for i, (ra, dec) in zip(rows, [*off, (360.0, -1.21)], strict=False):
            columns[PLACE[name][0]][i], columns[PLACE[name][1]][i] = ra, dec

    change(path, spoil)
    after = build(only(tiny_recipe, sky, name), tmp_path / "after").report.surveys[name]
    assert before - len(valid_rows(name, path)) == len(off) >= 3
    assert after["dropped:position"] >= len(off) and after["dropped:outside region"] == 0
    assert after["rows"] == after["kept"] + sum(n for k, n in after.items() if k.startswith("dropped:"))
    slim = table(tmp_path / "after", f"{name}.slim")
    wrapped = [r for r in slim.to_pylist() if r["dec"] == -1.21]
    assert [r["ra"] for r in wrapped] == [0.0]
    want = healpy.ang2pix(1 << 29, np.array(slim["ra"]), np.array(slim["dec"]), nest=True, lonlat=True)
    assert slim["healpix29"].to_pylist() == want.tolist()


def test_fault_39_float32_coordinates_are_widened_exactly(sky: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    """359.99999 is 360 in float32, and lies at 0."""
    path = sky / "sdss" / FILES["sdss"]
    first = valid_rows("sdss", path)[0]

    def narrow(columns: Columns) -> None:
        columns["PLUG_RA"][first] = 359.99999
        columns["PLUG_RA"], columns["PLUG_DEC"] = columns["PLUG_RA"].astype("f4"), columns["PLUG_DEC"].astype("f4")

    change(path, narrow)
    stored = fits.getdata(path, 1)
    build(only(tiny_recipe, sky, "sdss"), tmp_path / "pile")
    slim = table(tmp_path / "pile", "sdss.slim").to_pylist()
    row = {r["key"]: i for i, r in enumerate(table(tmp_path / "pile", "sdss.provenance").to_pylist())}
    source = [table(tmp_path / "pile", "sdss.provenance").to_pylist()[row[r["key"]]]["row"] for r in slim]
    assert [r["ra"] for r in slim] == [float(stored["PLUG_RA"][i]) % 360 for i in source]
    assert [r["dec"] for r in slim] == [float(stored["PLUG_DEC"][i]) for i in source]


# --- 40, 45: a sky made by hand ---------------------------------------------------------------------------------------

CORNER_OF_THREE = (90.0, float(np.degrees(np.arcsin(2 / 3))))


def write_stars(root: Path, rows: list[dict[str, Any]]) -> None:
    folder = root / "gaia_source"
    folder.mkdir(parents=True)
    names = ["source_id", "ra", "dec", "pmra", "pmdec", "ref_epoch"]
    body = [",".join("" if r.get(n) is None else str(r[n]) for n in names) for r in rows]
    path = folder / "GaiaSource_000000-786431.csv.gz"
    path.write_bytes(gzip.compress("\n".join([",".join(names), *body, ""]).encode()))
    (folder / "_MD5SUM.txt").write_text(f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.name}\n")


def by_hand(
    tmp_path: Path, stars: list[dict[str, Any]], targets: list[dict[str, Any]], spectra: list[dict[str, Any]] = ()
) -> Path:
    """The pile of these sources, over the whole sky."""
    write_stars(tmp_path / "gaia", stars)
    names = ["id", "ra", "dec", "epoch"]
    body = [",".join("" if r.get(n) is None else str(r[n]) for n in names) for r in targets]
    (tmp_path / "mine.csv").write_text("\n".join([",".join(names), *body, ""]))
    settings: dict[str, Any] = {
        "region": recipes.ALL_SKY,
        "surveys": {
            "gaia": {"root": str(tmp_path / "gaia"), "profile": "all"},
            "targets": {"root": str(tmp_path), "files": ["mine.csv"], "profile": "all"},
        },
        "split": {"least": 0.0},
        "codecs": {"fit_on": "any"},
    }
    if spectra:
        path = tmp_path / "sdss" / FILES["sdss"]
        path.parent.mkdir(parents=True)
        columns = {n: np.array([r[n] for r in spectra]) for n in spectra[0]}
        fits.HDUList([fits.PrimaryHDU(), table_hdu(columns, {}, {})]).writeto(path)
        settings["surveys"]["sdss"] = {"root": str(tmp_path / "sdss"), "profile": "all"}
    build(recipes.parse(settings, "by hand"), tmp_path / "pile")
    return tmp_path / "pile"


def unit(ra: Any, dec: Any) -> np.ndarray:
    ra, dec = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def beside(ra: float, dec: float, arcsec: float, angle: float) -> tuple[float, float]:
    """The position this far from (ra, dec), straight from vectors, so that poles need no care."""
    centre = unit(ra, dec)
    east = np.cross([0.0, 0.0, 1.0] if abs(dec) < 89 else [1.0, 0.0, 0.0], centre)
    east /= np.linalg.norm(east)
    way = np.cos(angle) * east + np.sin(angle) * np.cross(centre, east)
    step = np.radians(arcsec / 3600)
    x, y, z = np.cos(step) * centre + np.sin(step) * way
    return float(np.degrees(np.arctan2(y, x)) % 360), float(np.degrees(np.arctan2(z, np.hypot(x, y))))


def test_fault_40_wrap_poles_and_cell_edges_match_as_brute_force(tmp_path: Path) -> None:
    rng = np.random.default_rng(40)
    places = [(0.0, 0.0), (0.0, -1.2), (0.0, 90.0), (0.0, -90.0), CORNER_OF_THREE]
    for order in (6, 12):
        for cell in (5000, 12345):  # a corner of a cell, and the middle of an edge
            corners = healpy.boundaries(1 << order, cell, step=2, nest=True).T
            places += [healpy.vec2ang(v, lonlat=True) for v in corners[:2]]
    places = [(float(np.ravel(a)[0]), float(np.ravel(b)[0])) for a, b in places]
    stars, targets = [], []
    for p, (ra, dec) in enumerate(places):
        for k in range(5):
            at = beside(ra, dec, rng.uniform(0, 3), rng.uniform(0, 7))
            stars.append({"source_id": 1000 * p + k + 1, "ra": repr(at[0]), "dec": repr(at[1])})
            near = beside(*at, [0.0, 0.4, 0.9, 0.999, 1.001][k], rng.uniform(0, 7))
            targets.append({"id": 1000 * p + k + 1, "ra": repr(near[0]), "dec": repr(near[1])})
    pile = by_hand(tmp_path, stars, targets)
    a, b = (unit([float(r["ra"]) for r in t], [float(r["dec"]) for r in t]) for t in (stars, targets))
    apart = 2 * np.degrees(np.arcsin(np.linalg.norm(a[:, None] - b[None], axis=2) / 2)) * 3600e6
    wanted = {(stars[i]["source_id"], targets[j]["id"]): apart[i, j] for i, j in np.argwhere(apart <= 1e6).tolist()}
    found = {(r["key_a"], r["key_b"]): r["separation_uas"] for r in table(pile, "pairs").to_pylist()}
    assert found.keys() == wanted.keys()
    assert len(wanted) >= 4 * len(places)
    assert max(abs(found[k] - wanted[k]) for k in wanted) < 3
    # an edge is the nearest on both sides, and no survey is in an object twice
    best_a, best_b = apart.argmin(axis=1), apart.argmin(axis=0)
    edges = {
        (stars[i]["source_id"], targets[j]["id"])
        for i, j in enumerate(best_a.tolist())
        if best_b[j] == i and apart[i, j] <= 1e6
    }
    objects = table(pile, "objects").to_pylist()
    pairs = {(r["key.gaia"], r["key.targets"]) for r in objects if r["key.gaia"] and r["key.targets"]}
    assert pairs == edges
    assert len(objects) == len(stars) + len(targets) - len(edges)


def test_fault_45_ambiguous_fast_and_blended_sources_are_flagged(tmp_path: Path) -> None:
    def east(arcsec: float, dec: float) -> str:
        return repr(float(10 + arcsec / 3600 / np.cos(np.radians(dec))))

    stars = [
        {"source_id": 11, "ra": east(0.3, 0), "dec": 0},  # two stars about target 1
        {"source_id": 12, "ra": east(-0.6, 0), "dec": 0},
        {"source_id": 21, "ra": east(0, 5), "dec": 5, "pmra": 5000.0, "pmdec": 0.0},  # 80 arcsec in 16 years
        {"source_id": 31, "ra": east(0.6, 9), "dec": 9},  # the middle of a chain longer than the radius
    ]
    targets = [
        {"id": 1, "ra": east(0, 0), "dec": 0},
        {"id": 2, "ra": east(-80, 5), "dec": 5, "epoch": 2000.0},
        {"id": 3, "ra": east(0.2, 5), "dec": 5, "epoch": 2000.0},  # the star was not there yet
        {"id": 4, "ra": east(0, 9), "dec": 9},
    ]
    spectra = [
        {"RUN2D": "26", "PLATE": 266, "MJD": 51630, "FIBERID": 1, "PLUG_RA": float(east(1.3, 9)), "PLUG_DEC": 9.0}
        | {"Z": 0.1, "ZWARNING": 0}
    ]
    pile = by_hand(tmp_path, stars, targets, spectra)
    objects = {r["key.targets"]: r for r in table(pile, "objects").to_pylist() if r["key.targets"]}
    pairs = {(r["key_a"], r["key_b"]): r for r in table(pile, "pairs").to_pylist()}
    assert objects[1]["key.gaia"] == 11
    assert objects[1]["blend_n.gaia"] == 2
    assert [pairs[s, 1]["rivals_b"] for s in (11, 12)] == [1, 1]
    assert [(pairs[s, 1]["rank_b"], pairs[s, 1]["accepted"]) for s in (11, 12)] == [(1, True), (2, False)]
    assert objects[2]["key.gaia"] == 21
    assert objects[3]["key.gaia"] is None
    # target 4 and the spectrum are 1.3 arcsec apart: both want the star, and one is refused
    assert objects[4]["key.gaia"] == 31
    assert objects[4]["key.sdss"] is None
    refused = [r for r in pairs.values() if r["conflict"]]
    assert [(r["survey_a"], r["key_a"], r["survey_b"]) for r in refused] == [("gaia", 31, "sdss")]
    assert objects[4]["blend_n.sdss"] == 1


# --- 41, 42: rows and their identifiers -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["desi", "sdss", "gaia"])
def test_fault_41_duplicate_rows_are_counted_and_order_says_nothing(
    sky: Path, tiny_recipe: Recipe, tmp_path: Path, name: str
) -> None:
    path = sky / name / FILES[name]
    recipe, rows = only(tiny_recipe, sky, name), valid_rows(name, path)[:3]
    plain = build(recipe, tmp_path / "plain")
    change(path, lambda c: {n: np.concatenate([v[rows], v])[::-1] for n, v in c.items()})
    doubled = build(recipe, tmp_path / "doubled")
    assert content(doubled) == content(plain)
    assert doubled.report.surveys[name]["dropped:duplicate"] == len(rows)
    # the same identifier with other values: which one stays does not hang on the order
    where = PLACE[name][1]

    def shift(columns: Columns) -> None:
        columns[where][:1] = columns[where][:1].astype(float) + 0.1 / 3600

    change(path, shift)
    one = build(recipe, tmp_path / "one")
    change(path, lambda c: {n: v[::-1] for n, v in c.items()})
    other = build(recipe, tmp_path / "other")
    assert content(one) == content(other)
    assert one.report.surveys[name]["dropped:duplicate"] == len(rows)


def test_fault_41_a_star_that_two_bricks_list_is_one_object_and_a_lone_source(
    tiny_sky: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    """Near duplicates at brick edges have keys of their own: one is the star's, the other stands beside it."""
    truth = pq.read_table(tiny_sky / "truth/legacysurvey.parquet").to_pylist()
    twice = {r["key"] for r in truth if "duplicate" in (r["dirt"] or "").split(",")}
    assert twice
    build(only(tiny_recipe, tiny_sky, "legacysurvey", "gaia"), tmp_path / "pile")
    objects = {r["key.legacysurvey"]: r for r in table(tmp_path / "pile", "objects").to_pylist()}
    wide = {r["key"]: r["ref_id"] for r in table(tmp_path / "pile", "legacysurvey.wide").to_pylist()}
    for key in twice & objects.keys():
        both = [k for k, ref in wide.items() if ref == wide[key]]
        assert len(both) == 2
        assert sorted(objects[k]["key.gaia"] is not None for k in both) == [False, True]
        assert len({objects[k]["blend_group"] for k in both}) == 1


@pytest.mark.parametrize(
    ("name", "column", "blank", "why"),
    [
        ("hsc", "object_id", (1 << 63) - 3, "key"),
        ("desi", "TARGETID", 39627641213879001, "targetid"),
        ("legacysurvey", "OBJID", 2147483647, "key"),
        ("sdss", "FIBERID", 4095, "key"),
    ],
)
def test_fault_42_a_blank_identifier_drops_its_row_and_harms_no_other(
    sky: Path, tiny_recipe: Recipe, tmp_path: Path, name: str, column: str, blank: int, why: str
) -> None:
    path = sky / name / FILES[name]
    keys = keys_of(name, path)
    row = list(keys)[1]

    def erase(columns: Columns) -> None:
        columns[column][row] = blank

    change(path, erase, nulls={column: blank})
    after = build(only(tiny_recipe, sky, name), tmp_path / "pile")
    assert after.report.surveys[name][f"dropped:{why}"] >= 1
    assert keys_of(name, path) == {r: k for r, k in keys.items() if r != row}
    provenance = [
        r for r in table(tmp_path / "pile", f"{name}.provenance").to_pylist() if r["file"].endswith(path.name)
    ]
    repeats = table(tmp_path / "pile", f"{name}.repeats")["key"].to_pylist()
    assert {r["row"]: r["key"] for r in provenance} == {r: k for r, k in keys.items() if r != row and k not in repeats}


def test_fault_42_identifiers_near_the_largest_are_exact(sky: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    path = sky / "gaia" / FILES["gaia"]
    big = [(1 << 63) - 1, (1 << 63) - 2, (1 << 53) + 1]

    def number(columns: Columns) -> None:
        columns["source_id"][:3] = [str(b) for b in big]

    change(path, number)
    build(only(tiny_recipe, sky, "gaia"), tmp_path / "pile")
    keys = table(tmp_path / "pile", "gaia.slim")["key"].to_pylist()
    assert {*big} <= {*keys}
    objects = table(tmp_path / "pile", "objects")["object_id"].to_pylist()
    assert {f"gaia:{b}" for b in big} <= {*objects}


@pytest.mark.parametrize("text", ["", str(1 << 63), "4.3e18", "4295806720.0"])
def test_fault_42_a_gaia_file_with_an_identifier_that_is_none_is_held_back(
    sky: Path, tiny_recipe: Recipe, tmp_path: Path, text: str
) -> None:
    path = sky / "gaia" / FILES["gaia"]

    def erase(columns: Columns) -> None:
        columns["source_id"][2] = text

    change(path, erase)
    with pytest.raises(BuildError, match=rf"held back.*{path.name}.*(has no source_id|cannot be read)"):
        build(only(tiny_recipe, sky, "gaia"), tmp_path / "pile")


# --- 43, 44: pixels ---------------------------------------------------------------------------------------------------


def coadds(sky: Path, brick: str, product: str) -> list[Path]:
    folder = sky / "legacysurvey/south/coadd" / brick[:3] / brick
    return sorted(folder.glob(f"legacysurvey-{brick}-{product}-*.fits.fz"))


def repaint(path: Path, how: Callable[[np.ndarray], None]) -> None:
    """Change the pixels of a coadd; it is written without compression, which is as good."""
    with hdus_of(path) as hdus:
        at = next(i for i, h in enumerate(hdus) if h.data is not None)
        data, header = np.array(hdus[at].data, dtype="f4"), hdus[at].header.copy()
        how(data)
        hdus[:] = [fits.PrimaryHDU(), fits.ImageHDU(data, header)]


def test_fault_43_bad_pixels_are_masked_zeros_and_never_nan(sky: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    recipe = only(tiny_recipe, sky, "legacysurvey", "desi", keep="all")
    first = build(recipe, tmp_path / "first")
    before = table(tmp_path / "first", "payload.legacysurvey.image").to_pylist()
    bricks = {r["key"]: r["brickname"] for r in table(tmp_path / "first", "legacysurvey.wide").to_pylist()}
    brick = "0000m012"
    inside = [r["key"] for r in before if bricks[r["key"]] == brick and r["status"] is None]
    assert inside and first.report.objects
    codes = [np.nan, np.inf, -np.inf]
    for path in coadds(sky, brick, "image"):
        repaint(path, lambda data: data[::7].__setitem__(slice(None), np.resize(codes, data[::7].shape)))
    for path in coadds(sky, brick, "invvar"):
        bad = [np.nan, np.inf, -1.0, 0.0]
        repaint(path, lambda data, bad=bad: data[3::7].__setitem__(slice(None), np.resize(bad, data[3::7].shape)))
    # and of the other bricks one that has no good pixel at all
    dark = next(b for r in before if (b := bricks[r["key"]]) != brick and r["status"] is None)
    for path in coadds(sky, dark, "invvar"):
        repaint(path, lambda data: data.__setitem__(slice(None), -1.0))
    spoilt = next((sky / "desi/healpix").rglob("coadd-*.fits"))
    with hdus_of(spoilt) as hdus:
        for hdu in hdus:
            if hdu.name.endswith("_FLUX"):
                hdu.data[:, ::5] = np.nan
            if hdu.name.endswith("_IVAR"):
                hdu.data[:, 1::5], hdu.data[:, 2::5], hdu.data[:, 3::5] = -1.0, np.inf, np.nan

    def spoil(columns: Columns) -> None:
        columns["FLUX_R"][::2], columns["FLUX_G"][::2], columns["FLUX_IVAR_Z"][::2] = np.nan, np.inf, -1.0

    change(sky / "legacysurvey" / FILES["legacysurvey"], spoil)
    assert build(recipe, tmp_path / "pile").report.objects == first.report.objects
    seen = set()
    for row in table(tmp_path / "pile", "payload.legacysurvey.image").to_pylist():
        if row["status"] is not None:
            assert row["flux"] is None
            seen.add((bricks[row["key"]] == dark, row["status"]))
            continue
        flux, ivar, mask = (np.array(row[c]) for c in ("flux", "ivar", "mask"))
        assert np.isfinite(flux).all() and np.isfinite(ivar).all() and (ivar >= 0).all()
        assert (flux[mask] == 0).all() and (ivar[mask] == 0).all() and (ivar[~mask] > 0).all()
        if row["key"] in inside:
            seen.add("masked")
            assert mask.reshape(4, 160, 160).all(axis=(0, 2)).sum() >= 2 * 160 // 7, "whole rows are bad"
    assert {"masked", (True, "not_measured")} <= seen
    for row in table(tmp_path / "pile", "payload.desi.spectrum").to_pylist():
        if row["status"] is None:
            flux, ivar, mask = (np.array(row[c]) for c in ("flux", "ivar", "mask"))
            assert np.isfinite(flux).all() and np.isfinite(ivar).all()
            assert (flux[mask] == 0).all() and (ivar[mask] == 0).all() and (ivar[~mask] > 0).all()
    said = {r["object_id"]: r for r in table(tmp_path / "pile", "objects").to_pylist()}
    assert {r["status.legacysurvey.image"] for r in said.values() if bricks.get(r["key.legacysurvey"]) == dark} <= {
        "not measured",
        *{s for s in {r["status.legacysurvey"] for r in said.values()} if s.startswith("not selected")},
        "file absent",
    }
    for shard in table(tmp_path / "pile", "shards").to_pylist():
        for name in ("flux_r", "flux_g", "flux_z", "image"):
            there = said[shard["object_id"]][f"status.legacysurvey.{name}"] == "present"
            assert (shard[f"legacysurvey.{name}"] is not None) == there


def test_fault_44_a_cut_out_over_the_edge_is_padded_and_never_shifted(
    tiny_sky: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    """Targets near each edge of a brick, in cut-outs that reach beyond its image; and one off all bricks."""
    path = next(p for p in coadds(tiny_sky, "0000m012", "image") if "-r." in p.name)
    with fits.open(path) as hdus:
        hdu = next(h for h in hdus if h.data is not None)
        image, wcs = np.array(hdu.data), WCS(hdu.header)
    ny, nx = image.shape
    size, half = 240, 120
    spots = {1: (90, ny // 2), 2: (nx - 91, ny // 2), 3: (nx // 2, 90), 4: (nx // 2, ny - 91), 5: (90, 90)}
    at = {i: wcs.all_pix2world([(x + 0.2, y - 0.3)], 0)[0] for i, (x, y) in spots.items()} | {6: (0.4, -1.2)}
    body = [f"{i},{float(ra)!r},{float(dec)!r}" for i, (ra, dec) in at.items()]
    (tmp_path / "mine.csv").write_text("\n".join(["id,ra,dec", *body, ""]))
    settings = only(tiny_recipe, tiny_sky, "legacysurvey", keep="all").settings()
    settings["region"] = {"kind": "targets", "table": str(tmp_path / "mine.csv"), "radius_arcsec": 5.0}
    settings["surveys"]["legacysurvey"]["cutout_pixels"] = size
    build(recipes.parse(settings, "test"), tmp_path / "pile")
    said = {r["key.targets"]: r for r in table(tmp_path / "pile", "objects").to_pylist() if r["key.targets"]}
    assert said[6]["status.legacysurvey"] == said[6]["status.legacysurvey.image"] == "outside footprint"
    whole = np.full((ny + 2 * half, nx + 2 * half), np.nan, np.float32)
    whole[half:-half, half:-half] = image
    found = {r["key"]: r for r in table(tmp_path / "pile", "payload.legacysurvey.image").to_pylist()}
    for i, (x, y) in spots.items():
        row = found[i]
        flux, mask = (np.array(row[c]).reshape(4, size, size)[1] for c in ("flux", "mask"))
        want = whole[y : y + size, x : x + size]
        assert np.array_equal(flux[~mask], want[~mask])
        assert (~mask).mean() > 0.5
        assert np.isnan(want).any() and mask[np.isnan(want)].all() and (flux[mask] == 0).all()
        assert (row["dx"], row["dy"]) == (pytest.approx(0.2, abs=1e-3), pytest.approx(-0.3, abs=1e-3))


# --- 46: repeats ------------------------------------------------------------------------------------------------------


def test_fault_46_a_plate_of_two_nights_is_read_by_its_exact_key(
    sky: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = only(tiny_recipe, sky, "sdss", keep="all")
    build(recipe, tmp_path / "one")
    catalog = sky / "sdss" / FILES["sdss"]
    plate = sorted((sky / "sdss").rglob("spPlate-*.fits"))[0]
    number, mjd = (int(n) for n in plate.stem.split("-")[1:])
    night = plate.with_name(f"spPlate-{number:04d}-{mjd + 1}.fits")
    shutil.copy(plate, night)
    with hdus_of(night) as hdus:
        hdus[0].data *= 2
        hdus[0].header["MJD"] = mjd + 1
    rows = [i for i in valid_rows("sdss", catalog) if fits.getdata(catalog, 1)["MJD"][i] == mjd]

    def again(columns: Columns, primary: int) -> Columns:
        out = {n: np.concatenate([v, v[rows]]) for n, v in columns.items()}
        out["MJD"][-len(rows) :] += 1
        out["SPECPRIMARY"][-len(rows) :] = primary
        if primary:
            out["SPECPRIMARY"][rows] = 0
        return out

    def spectra(pile: Path) -> dict[int, np.ndarray]:
        found = table(pile, "payload.sdss.spectrum").to_pylist()
        return {r["key"]: np.array(r["flux"]) for r in found if r["status"] is None}

    good = catalog.read_bytes()
    change(catalog, lambda c: again(c, 0))
    second = build(recipe, tmp_path / "two")
    one, two = spectra(tmp_path / "one"), spectra(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[k], two[k]) for k in one), "the first night is the primary still"
    repeats = table(tmp_path / "two", "sdss.repeats").num_rows
    assert repeats == second.report.surveys["sdss"]["repeats"]
    assert repeats == table(tmp_path / "one", "sdss.repeats").num_rows + len(rows)
    catalog.write_bytes(good)
    change(catalog, lambda c: again(c, 1))
    build(recipe, tmp_path / "three")
    three, step = spectra(tmp_path / "three"), 1 << 12
    moved = {k for k in one if k + step in three}
    assert moved
    assert all(np.array_equal(three[k + step], 2 * one[k]) for k in moved), "the second night's own spectrum"


def test_fault_46_a_file_that_the_list_names_and_that_is_not_there_is_counted(
    tiny_sky: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    built = build(only(tiny_recipe, tiny_sky, "desi"), tmp_path / "pile")
    (lost,) = built.lost
    said = [r["status.desi.spectrum"] for r in table(tmp_path / "pile", "objects").to_pylist()]
    assert lost.startswith("desi/healpix/")
    assert said.count("file absent") == built.report.surveys["desi"]["payload sources"] - said.count("present") > 0


# --- 47: next to nothing ----------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("what", ["no byte", "header alone", "no row", "one row"])
def test_fault_47_a_file_with_next_to_nothing_in_it(
    sky: Path, tiny_recipe: Recipe, tmp_path: Path, name: str, what: str
) -> None:
    path = sky / name / FILES[name]
    first = valid_rows(name, path)[0]
    if what == "no byte":
        path.write_bytes(b"")
        renew(path)
    elif what == "header alone" and name == "gaia":
        path.write_bytes(gzip.compress(b"# %ECSV 1.0\n# ---\n"))
        renew(path)
    elif what == "header alone":
        fits.PrimaryHDU().writeto(path, overwrite=True)
        renew(path)
    else:
        keep = [first] if what == "one row" else []
        change(path, lambda c: {n: v[keep] for n, v in c.items()})
    recipe = only(tiny_recipe, sky, name)
    if what in ("no byte", "header alone"):
        with pytest.raises(BuildError, match="everything is held back") as caught:
            build(recipe, tmp_path / "pile")
        assert path.name in str(caught.value) and "\n" not in str(caught.value)
    elif what == "no row" and name not in ("legacysurvey", "gaia"):  # those have another file
        with pytest.raises(BuildError, match="no survey has a valid source in the region"):
            build(recipe, tmp_path / "pile")
    else:
        built = build(recipe, tmp_path / "pile")
        assert not built.partial
        files = table(tmp_path / "pile", f"{name}.provenance")["file"].to_pylist()
        assert sum(f.endswith(path.name) for f in files) == (what == "one row")
        assert built.report.objects == len(files)


# --- 48: names --------------------------------------------------------------------------------------------------------

ODD = ("a b", "ünï", "%2e%2e", "new\nline", "[1]", "(x)", "x.fits(y)", "~root", "-rf", "x=1", "a#b?c", ".hidden", "_x")


@pytest.mark.parametrize("ending", [".csv", ".fits", ".ecsv", ".parquet"])
def test_fault_48_a_table_of_targets_may_have_any_name(tmp_path: Path, ending: str) -> None:
    from astropy.table import Table

    stems = [*ODD, "c" * (255 - len(ending)), "Case", "case"]
    settings: dict[str, Any] = {"surveys": {"gaia": {}}}
    for i, stem in enumerate(stems):
        folder = tmp_path / "x=1 [2]"
        folder.mkdir(exist_ok=True)
        path = folder / f"{stem}{ending}"
        rows = Table({"id": [i + 1], "ra": [10.0 + i], "dec": [5.0]})
        kind = {".csv": "ascii.csv", ".fits": "fits", ".ecsv": "ascii.ecsv", ".parquet": "parquet"}[ending]
        plain = tmp_path / f"plain{ending}"
        if ending == ".parquet":
            pq.write_table(pa.table({n: np.array(rows[n]) for n in rows.colnames}), plain)
        else:
            rows.write(plain, format=kind, overwrite=True)
        plain.rename(path)
        settings["region"] = {"kind": "targets", "table": path.name, "radius_arcsec": 9.0}
        made = recipes.parse(settings, "test", folder)
        assert made.region.settings()["ra"] == [10.0 + i]
        assert [c.options for c in made.surveys if c.name == "targets"] == [{"files": [path.name]}]
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"{s}{ending}" for s in stems)


def test_fault_48_roots_and_piles_may_have_any_name(tiny_sky: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    plain = build(only(tiny_recipe, tiny_sky, "gaia", "sdss"), tmp_path / "pile")
    odd = tmp_path / "a b [1] (x).fits(y) %2e%2e ünï\nx=1"
    names = ("gaia", "sdss")
    for name in names:
        shutil.copytree(tiny_sky / name, odd / name)
    built = build(only(tiny_recipe, odd, *names), odd / "pile [2]\n")
    assert content(built) == content(plain)
    assert {p.name for p in tmp_path.iterdir()} == {"pile", odd.name}
