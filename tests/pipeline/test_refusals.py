"""Bad input is refused in one line, counted, or held back; never passed over, and nothing is left half-written."""

import gzip
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import healpy
import numpy as np
import pytest
from astropy.io import fits
from numpy.lib import recfunctions

from skycairn.match.sky import rings
from skycairn.pile.files import NotAPile
from skycairn.pile.store import Pile
from skycairn.pipeline import recipe as recipes
from skycairn.pipeline.recipe import Recipe
from skycairn.pipeline.run import BuildError, build

SWEEP = "legacysurvey/south/sweep/10.1/sweep-000m005-005p000.fits"
CONE = {"kind": "cone", "ra": 0.0, "dec": -1.2, "radius_deg": 0.5}
GAIA = {"region": CONE, "surveys": {"gaia": {}}}


@pytest.fixture
def sky(tiny_sky: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_sky, tmp_path / "sky"))


def of(recipe: Recipe, sky: Path, *names: str) -> Recipe:
    """The recipe on another sky, of these surveys only where any are named."""
    moved = [replace(c, root=str(sky / c.name)) for c in recipe.surveys if not names or c.name in names]
    return replace(recipe, surveys=tuple(moved))


def renew(path: Path) -> None:
    """Make the archive publish the file as it is now."""
    found = next(p for p in [*path.parent.glob("*.sha256sum"), *path.parent.glob("_MD5SUM.txt")])
    kind = "sha256" if found.suffix == ".sha256sum" else "md5"
    digest = hashlib.new(kind, path.read_bytes()).hexdigest()
    lines = [f"{digest}  {path.name}" if x.endswith(path.name) else x for x in found.read_text().splitlines()]
    found.write_text("\n".join(lines) + "\n")


def change_table(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the table of a FITS file, as its archive publishes it."""
    with fits.open(path) as hdus:
        made = fits.HDUList([hdu.copy() for hdu in hdus])
        at = next(i for i, h in enumerate(made) if isinstance(h, fits.BinTableHDU))
        made[at] = fits.BinTableHDU(change(np.array(made[at].data)), name=made[at].name)
        made.writeto(path, overwrite=True)
    renew(path)


def status_of(pile: Path, column: str) -> list[str]:
    opened = Pile.open(pile)
    return [x for e in opened.head().entries("objects") for x in opened.read_table(e.part)[column].to_pylist()]


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({**GAIA, "surveys": {"gaya": {}}}, "unknown survey 'gaya'; known are legacysurvey, hsc, gaia, desi, sdss"),
        ({**GAIA, "matching": {}}, "unknown key 'matching'; the keys are name, region"),
        ({**GAIA, "split": {"leats": 0}}, "split: unknown key 'leats'; the keys are salt, fractions, least"),
        ({**GAIA, "split": {"leats": 0}}, "least; did you mean 'least'?"),
        (
            {**GAIA, "surveys": {"gaia": {"profil": "all"}}},
            "surveys.gaia: there is no option 'profil'; there are release",
        ),
        (
            {**GAIA, "surveys": {"desi": {"sorce": "query"}}},
            "surveys.desi: there is no option 'sorce'; there are release",
        ),
        (
            {**GAIA, "surveys": {"desi": {"sorce": "query"}}},
            "root, source, url, catalog, epoch_range; did you mean 'sou",
        ),
        ({**GAIA, "surveys": {"gaia": {"profile": "best"}}}, "unknown profile 'best'; gaia has aion, strict, all"),
        ({**GAIA, "surveys": {"gaia": {"release": "dr4"}}}, "there is no release 'dr4' here; choose one of dr3"),
        ({"surveys": {"gaia": {}}}, "says nothing of 'region'"),
        ({**GAIA, "surveys": {}}, "says nothing of 'surveys'"),
        ({**GAIA, "region": {**CONE, "radius_deg": 0.0}}, "radius_deg is 0.0; wanted above 0"),
        ({**GAIA, "region": {**CONE, "ra": float("nan")}}, "ra nan"),
        ({**GAIA, "region": {**CONE, "radius": 1.0}}, "settings dec, ra, radius, radius_deg"),
        ({**GAIA, "region": {"kind": "cells", "order": 6, "cells": []}}, "the list is empty"),
        ({**GAIA, "split": {"fractions": [0.5, 0.1, 0.1]}}, "wanted three that add up to 1"),
        ({**GAIA, "match": {"pairs": {"gaia-desi": 1.0}}}, "'gaia-desi' names no pair"),
        ({**GAIA, "match": {"radius_arcsec": "1"}}, "match.radius_arcsec is '1'"),
        ({**GAIA, "match": 3}, "match is 3; wanted a table"),
        ({**GAIA, "surveys": {"gaia": "dr3"}}, "surveys.gaia is 'dr3'; wanted a table"),
        ({**GAIA, "payload": {"keep": "some"}}, "payload.keep is 'some'"),
        ({**GAIA, "payload": {"sample": -1}}, "payload.sample is -1"),
        ({**GAIA, "codecs": {"fit_rows": 0}}, "codecs.fit_rows is 0"),
        ({**GAIA, "shards": {"row_group_rows": 0}}, "shards.row_group_rows is 0"),
        ({**GAIA, "shards": {"order": 6}}, "shards.order is 6"),
    ],
)
def test_a_recipe_with_a_fault_says_which(settings: Mapping[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        recipes.parse(settings, "my.toml")
    assert "\n" not in str(caught.value)


def test_an_empty_region(tiny_recipe: Recipe, tmp_path: Path) -> None:
    far = recipes.parse({**GAIA, "region": {"kind": "cone", "ra": 200.0, "dec": 60.0, "radius_deg": 0.1}}, "far")
    far = replace(tiny_recipe, region=far.region)
    with pytest.raises(BuildError, match="no survey has a valid source in the region"):
        build(far, tmp_path / "pile")
    assert Pile.open(tmp_path / "pile").head() is None


def test_a_root_that_is_not_there(tiny_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder; set the survey's root"):
        build(of(tiny_recipe, tmp_path / "nowhere"), tmp_path / "pile")
    with pytest.raises(ValueError, match=r"files of gaia come from is not said; give --root"):
        build(recipes.parse(GAIA, "x"), tmp_path / "pile")


def test_a_root_that_is_another_surveys(tiny_sky: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    surveys = tuple(replace(c, root=str(tiny_sky / "desi")) for c in tiny_recipe.surveys if c.name == "gaia")
    with pytest.raises(ValueError, match=r"there is no gaia_source/_MD5SUM\.txt"):
        build(replace(tiny_recipe, surveys=surveys), tmp_path / "pile")


def test_a_folder_that_holds_something_else(tiny_recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(NotAPile, match=r"holds thesis\.tex and is not a pile"):
        build(tiny_recipe, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_pile_of_a_newer_format(tiny_recipe: Recipe, tiny_pile: Path, tmp_path: Path) -> None:
    pile = shutil.copytree(tiny_pile, tmp_path / "pile")
    head = json.loads((pile / "pile.json").read_text())
    (pile / "pile.json").chmod(0o644)
    (pile / "pile.json").write_text(json.dumps({**head, "format": head["format"] + 1}))
    with pytest.raises(NotAPile, match="use a newer skycairn"):
        build(tiny_recipe, pile)


# --- catalogue files --------------------------------------------------------------------------------------------------


def test_a_column_that_a_cut_needs(sky: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    change_table(sky / SWEEP, lambda rows: recfunctions.drop_fields(rows, "NOBS_I"))
    with pytest.raises(BuildError, match=r"sweep-000m005-005p000\.fits has no column 'NOBS_I'"):
        build(of(tiny_recipe, sky), tmp_path / "pile")
    assert Pile.open(tmp_path / "pile").head() is None


def test_the_cuts_of_aion_on_dr9(sky: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    root = sky / "legacysurvey"
    old = root / "south/sweep/10.1"
    folder = root / "south/sweep/9.0"
    folder.mkdir()
    sweep = folder / "sweep-000m005-010p000.fits"
    shutil.copy(sky / SWEEP, sweep)
    (folder / "legacysurvey_dr9_south_sweep_9.0.sha256sum").write_text(f"{'0' * 64}  {sweep.name}\n")
    shutil.rmtree(old)
    shutil.copy(root / "south/survey-bricks-dr10-south.fits.gz", root / "south/survey-bricks-dr9-south.fits.gz")
    without_i = [n for n in fits.getdata(sweep).dtype.names if n.endswith("_I")]
    change_table(sweep, lambda rows: recfunctions.drop_fields(rows, without_i))
    legacy = of(tiny_recipe, sky, "legacysurvey")
    dr9 = replace(legacy, surveys=(replace(legacy.surveys[0], release="dr9-south"),))
    with pytest.raises(BuildError, match=r"no column 'NOBS_I': DR9 and DR8 have no i band \(use the profile `grz`"):
        build(dr9, tmp_path / "pile")
    grz = replace(dr9, surveys=(replace(dr9.surveys[0], profile="grz"),))
    assert build(grz, tmp_path / "pile").report.surveys["legacysurvey"]["selected"] > 0


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 // 2880 * 2880 - 1000])


def not_fits(path: Path) -> None:
    path.write_text("<html>404 Not Found</html>" * 400)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "published", "says"),
    [
        (flipped, False, "its sha256 is"),
        (cut_short, False, "its sha256 is"),
        (cut_short, True, "sweep-000m005-005p000.fits"),
        (not_fits, True, "sweep-000m005-005p000.fits"),
        (Path.unlink, False, "listed by the archive, and not there"),
    ],
)
def test_a_lost_catalogue_file_holds_its_cells_back(
    sky: Path,
    tiny_recipe: Recipe,
    tmp_path: Path,
    damage: Callable[[Path], None],
    published: bool,
    says: str,
) -> None:
    """The tiny sky lies in four cells round one corner, all of them neighbours of what the file covers."""
    pile, recipe = tmp_path / "pile", of(tiny_recipe, sky, "legacysurvey")
    kept = (sky / SWEEP).read_bytes()
    damage(sky / SWEEP)
    if published:
        renew(sky / SWEEP)
    with pytest.raises(BuildError, match="everything is held back") as caught:
        build(recipe, pile)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert Pile.open(pile).head() is None
    # once it is mended, the build goes on
    (sky / SWEEP).write_bytes(kept)
    renew(sky / SWEEP)
    built = build(recipe, pile)
    assert not built.partial
    assert built.report.surveys["legacysurvey"]["rows"] == 60


def test_positions_off_the_sky_are_counted(sky: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    def spoil(rows: np.ndarray) -> np.ndarray:
        for i, (ra, dec) in enumerate([(np.nan, 0.0), (400.0, -1.0), (-1.0, -1.0), (10.0, 95.0), (10.0, np.inf)]):
            rows["RA"][i], rows["DEC"][i] = ra, dec
        return rows

    before = build(of(tiny_recipe, sky, "legacysurvey"), tmp_path / "before").report.surveys["legacysurvey"]
    change_table(sky / SWEEP, spoil)
    after = build(of(tiny_recipe, sky, "legacysurvey"), tmp_path / "after").report.surveys["legacysurvey"]
    assert after["rows"] == before["rows"]
    dropped = {k: after.get(k, 0) - before.get(k, 0) for k in {*before, *after} if k.startswith("dropped:")}
    assert dropped["dropped:position"] >= 4
    assert before["valid"] - after["valid"] == sum(dropped.values())


# --- payload files ----------------------------------------------------------------------------------------------------


def a_coadd(sky: Path) -> Path:
    """An image of a brick that lacks nothing."""
    return sky / "legacysurvey/south/coadd/000/0000m012/legacysurvey-0000m012-image-r.fits.fz"


@pytest.mark.parametrize("keep", ["all", "none"])
def test_a_damaged_payload_file_is_told_and_heals(
    sky: Path, tiny_recipe: Recipe, tiny_pile: Path, tmp_path: Path, keep: str
) -> None:
    pile = Path(shutil.copytree(tiny_pile, tmp_path / "pile"))
    # the lock alone, so that all is extracted anew and encoded alike
    for folder in ("parts", "receipts", "snapshots"):
        shutil.rmtree(pile / folder)
        (pile / folder).mkdir()
    recipe = of(replace(tiny_recipe, payload=replace(tiny_recipe.payload, keep=keep)), sky)
    image = a_coadd(sky)
    kept = image.read_bytes()
    flipped(image)
    broken = build(recipe, pile)
    assert broken.partial
    path = f"legacysurvey/{image.relative_to(sky / 'legacysurvey')}"
    assert "its sha256 is" in broken.held_back[path]
    assert status_of(pile, "status.legacysurvey.image").count("file absent") > status_of(
        tiny_pile, "status.legacysurvey.image"
    ).count("file absent")
    # it is looked at again, found as it was, and nothing is made anew
    again = build(recipe, pile)
    assert again.partial
    assert again.snapshot == broken.snapshot
    image.write_bytes(kept)
    healed = build(recipe, pile)
    assert not healed.partial
    assert healed.snapshot.content_id == Pile.open(tiny_pile).head().content_id
    assert build(recipe, pile).n_tasks == 0


def test_a_lost_payload_file_is_a_status(sky: Path, tiny_recipe: Recipe, tiny_pile: Path, tmp_path: Path) -> None:
    pile = Path(shutil.copytree(tiny_pile, tmp_path / "pile"))
    a_coadd(sky).unlink()
    built = build(of(tiny_recipe, sky), pile)
    assert not built.partial
    assert f"legacysurvey/{a_coadd(sky).relative_to(sky / 'legacysurvey')}" in built.lost
    before, after = (status_of(p, "status.legacysurvey.image") for p in (tiny_pile, pile))
    assert after.count("file absent") > before.count("file absent")
    assert len(after) == len(before)


def test_the_table_of_bricks_must_be_there(sky: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    (sky / "legacysurvey/survey-bricks.fits.gz").unlink()
    with pytest.raises(ValueError, match=r"survey-bricks\.fits\.gz is not there, and tells where the survey looked"):
        build(of(tiny_recipe, sky), tmp_path / "pile")


def test_a_file_damaged_after_it_was_fetched(sky: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    recipe = of(tiny_recipe, sky, "legacysurvey")
    build(recipe, tmp_path / "pile")
    flipped(sky / SWEEP)
    wider = recipes.parse({**GAIA, "region": {**CONE, "radius_deg": 0.6}}, "wider").region
    with pytest.raises(BuildError, match="its sha256 is"):
        build(replace(recipe, region=wider), tmp_path / "pile")


def test_cells_beside_held_ones_see_their_margins(tiny_sky: Path, tiny_pile: Path, tmp_path: Path) -> None:
    """A star just inside a held cell, a target just outside: the target is the star, and no object of its own."""
    lost = 17000
    near = [rings(6, [lost], n) for n in range(4)]
    pairs = [
        (a, b)
        for a in np.setdiff1d(near[2], near[1])
        for b in np.setdiff1d(near[3], near[2])
        if b in healpy.get_all_neighbours(64, a, nest=True)[::2]
    ]
    held, free = pairs[0]
    ends = [healpix_centre(c) for c in (held, free)]
    for _ in range(60):
        middle = (ends[0] + ends[1]) / 2
        ends[int(healpy.ang2pix(64, *middle, nest=True, lonlat=True) != held)] = middle
    towards = healpix_centre(held) - healpix_centre(free)
    step = 0.2 / 3600 * towards / np.hypot(*towards)
    star, target, other = ends[0] + step, ends[1] - step, healpix_centre(free)

    source = tmp_path / "gaia/gaia_source"
    source.mkdir(parents=True)
    text = gzip.decompress(sorted((tiny_sky / "gaia/gaia_source").glob("*.gz"))[0].read_bytes()).decode().splitlines()
    head = next(i for i, x in enumerate(text) if not x.startswith("#"))
    names, values = text[head].split(","), text[head + 1].split(",")
    row = dict(zip(names, values, strict=True)) | {"ra": repr(float(star[0])), "dec": repr(float(star[1]))}
    row |= {"source_id": str(int(held) << 47), "pmra": "0.0", "pmdec": "0.0"}
    file = source / f"GaiaSource_{held * 16:06d}-{held * 16 + 15:06d}.csv.gz"
    file.write_bytes(gzip.compress("\n".join([*text[: head + 1], ",".join(row.values())]).encode() + b"\n"))
    digest = hashlib.md5(file.read_bytes()).hexdigest()
    gone = f"GaiaSource_{lost * 16:06d}-{lost * 16 + 15:06d}.csv.gz"
    (source / "_MD5SUM.txt").write_text(f"{digest}  {file.name}\n{'0' * 32}  {gone}\n")
    positions = [f"{i},{float(p[0])!r},{float(p[1])!r}" for i, p in ((1, target), (2, other))]
    (tmp_path / "mine.csv").write_text("\n".join(["id,ra,dec", *positions]) + "\n")
    settings = {
        "region": {"kind": "cells", "order": 6, "cells": [lost, int(held), int(free)]},
        "surveys": {
            "gaia": {"root": str(tmp_path / "gaia"), "profile": "all"},
            "targets": {"root": str(tmp_path), "files": ["mine.csv"], "profile": "all"},
        },
        "split": {"least": 0.0},
        "codecs": {"lock": str(tiny_pile)},
    }
    built = build(recipes.parse(settings, "test"), tmp_path / "pile")
    assert built.partial
    assert int(held) in built.snapshot.held_back
    assert int(free) not in built.snapshot.held_back
    opened = Pile.open(tmp_path / "pile")
    ids = [x for e in opened.head().entries("objects") for x in opened.read_table(e.part)["object_id"].to_pylist()]
    assert ids == ["targets:2"]


def healpix_centre(cell: int) -> np.ndarray:
    return np.array([*healpy.pix2ang(64, int(cell), nest=True, lonlat=True)])


def test_codecs_fitted_beside_damage_do_not_bind_the_mended_pile(
    sky: Path, tiny_recipe: Recipe, tiny_pile: Path, tmp_path: Path
) -> None:
    file = a_coadd(sky)
    good = file.read_bytes()
    file.write_bytes(good[:9000] + b"XXXX" + good[9004:])
    recipe, pile = of(tiny_recipe, sky), tmp_path / "pile"
    assert build(recipe, pile).partial
    assert not (pile / "codecs.lock").exists()
    file.write_bytes(good)
    mended = build(recipe, pile)
    assert not mended.partial
    assert mended.snapshot.content_id == Pile.open(tiny_pile).head().content_id
    assert (pile / "codecs.lock").read_bytes() == (tiny_pile / "codecs.lock").read_bytes()
