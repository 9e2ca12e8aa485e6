"""Lists of files: every name survives every format, and what they list is what a build needs."""

import csv
import hashlib
import io
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from skycairn.archives.sources import Download, open_client
from skycairn.mirror.sky import HSC_ACCOUNT, SkyMirror, mirror_of, services_of
from skycairn.pile.store import Pile
from skycairn.pipeline import listing
from skycairn.pipeline.engine import Engine
from skycairn.pipeline.listing import Listed, written
from skycairn.pipeline.recipe import Recipe
from skycairn.pipeline.run import build

STRANGE = (
    "archive/HSC-G/9000/4,5/calexp-HSC-G-9000-4,5.fits",
    "with a space/and 'quotes' and \"others\".fits",
    "ünïcode/星.fits",
    "a#b/$HOME/`x`/100%.fits",
    "back\\slash;semi&co.fits",
)


def one(path: str, survey: str = "hsc", checksum: str = "", algorithm: str = "") -> Listed:
    return Listed(survey, path, "https://example.org/x", 5, True, algorithm, checksum, False)


def test_csv_keeps_every_name() -> None:
    [names, *rows] = csv.reader(io.StringIO(written(map(one, STRANGE), "csv")))
    assert names == ["survey", "path", "bytes", "bytes_known", "algorithm", "checksum", "url"]
    assert [r[1] for r in rows] == list(STRANGE) and {len(r) for r in rows} == {7}


def of_aria2(text: str) -> list[dict[str, str]]:
    """An input file as aria2's manual tells it: an address, then its options, each on a line that begins with space."""
    out: list[dict[str, str]] = []
    for line in text.splitlines():
        if line.startswith((" ", "\t")):
            name, _, value = line.strip().partition("=")
            out[-1][name] = value
        elif line and not line.startswith("#"):
            out.append({"url": line})
    return out


def test_aria2_keeps_every_name_and_names_digests_as_it_does() -> None:
    files = [*map(one, STRANGE), one("x", checksum="ab", algorithm="sha256"), one("y", checksum="cd", algorithm="md5")]
    found = of_aria2(written(files, "aria2"))
    assert [f["out"] for f in found] == [f"hsc/{f.path}" for f in files]
    assert [f.get("checksum") for f in found[-3:]] == [None, "sha-256=ab", "md5=cd"]
    with pytest.raises(ValueError, match="ends in a space"):
        written([one("x ")], "aria2")


def test_globus_lines_are_read_as_a_shell_reads_them() -> None:
    lines = written(map(one, STRANGE), "globus").splitlines()
    assert [shlex.split(line, comments=True) for line in lines] == [[p, f"hsc/{p}"] for p in STRANGE]


def test_rsync_wants_names_as_they_are() -> None:
    assert written(map(one, STRANGE), "rsync").splitlines() == list(STRANGE)
    with pytest.raises(ValueError, match="comment"):
        written([one("#x")], "rsync")


@pytest.mark.parametrize("form", ["rsync", "globus"])
def test_a_list_below_one_root_is_of_one_survey(form: str) -> None:
    with pytest.raises(ValueError, match="desi, hsc; choose one by --survey"):
        written([one("x"), one("y", "desi")], form)


@pytest.mark.parametrize("form", listing.FORMATS)
@pytest.mark.parametrize("bad", ["new\nline", "re\rturn", "nu\0ll", "t\tab"])
def test_no_list_tells_a_control_character(form: str, bad: str) -> None:
    with pytest.raises(ValueError, match="control character"):
        written([one(bad)], form)


def test_there_are_four_formats() -> None:
    with pytest.raises(ValueError, match="no format 'tsv'; choose csv, aria2, rsync, globus"):
        written([], "tsv")


# --- of a sky ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mirror(tiny_sky: Path) -> Iterator[SkyMirror]:
    with pytest.MonkeyPatch.context() as patch, mirror_of(tiny_sky, services=services_of(tiny_sky)) as made:
        patch.setenv("SSP_PDR_USR", HSC_ACCOUNT[0])
        patch.setenv("SSP_PDR_PWD", HSC_ACCOUNT[1])
        yield made


def far(recipe: Recipe, mirror: SkyMirror, cache: Path, limit_bytes: int = 10**9, *names: str) -> Recipe:
    chosen = [replace(c, root="", source="archive") for c in recipe.surveys if not names or c.name in names]
    return replace(recipe, surveys=tuple(chosen), download=Download(str(cache), limit_bytes, mirror=mirror.url))


Lists = Callable[..., tuple[list[Listed], list[str]]]


@pytest.fixture
def lists() -> Lists:
    """What is listed of a recipe, and what the archive turned out not to have; with payload where a pile is named."""

    def made(recipe: Recipe, pile: Path | None = None, ask: bool = False) -> tuple[list[Listed], list[str]]:
        files: list[Listed] = []
        missing: list[str] = []
        with open_client(recipe.download) as client:
            stage = listing.read_catalogues(recipe, pile, Engine()) if pile else None
            for name, inventory in listing.inventories(recipe, client).items():
                needed = listing.catalogue_files(recipe, inventory).files
                needed += listing.payload_files(stage, name) if stage else []
                some, absent, unasked = listing.listed(inventory, needed, ask)
                assert unasked == 0
                files += some
                missing += absent
        return files, missing

    return made


def test_a_root_of_all_that_is_listed_gives_the_same_pile(
    tmp_path: Path, tiny_sky: Path, tiny_recipe: Recipe, tiny_pile: Path, mirror: SkyMirror, lists: Lists
) -> None:
    """The way of a team: list through the archives, copy by other means, build from the copy."""
    pile, root = tmp_path / "pile", tmp_path / "root"
    shutil.copytree(tiny_pile, pile)
    files, _ = lists(far(tiny_recipe, mirror, tmp_path / "cache"), pile)
    assert {f.survey for f in files} == {"legacysurvey", "hsc", "gaia", "desi", "sdss"}
    assert len({(f.survey, f.path) for f in files}) == len(files)
    rows = list(csv.DictReader(io.StringIO(written(files, "csv"))))
    of_hand = {f["out"]: f for f in of_aria2(written(files, "aria2"))}
    lost = set()
    with httpx.Client(auth=HSC_ACCOUNT) as client:
        for row in rows:
            where = f"{row['survey']}/{row['path']}"
            assert of_hand[where]["url"] == row["url"]
            reply = client.get(row["url"])
            if reply.status_code == 404:
                lost.add(where)
                continue
            (root / where).parent.mkdir(parents=True, exist_ok=True)
            (root / where).write_bytes(reply.content)
            assert reply.content == (tiny_sky / where).read_bytes()
            if row["checksum"]:
                found = hashlib.new(row["algorithm"], reply.content).hexdigest()
                assert found == row["checksum"] and of_hand[where]["checksum"].endswith(f"={found}")
            if row["bytes_known"] == "1":
                assert int(row["bytes"]) == len(reply.content)
    # lost on purpose, though their lists name them; HSC has no lists
    listed_lost = {path for path in lost if not path.startswith("hsc/")}
    assert len(listed_lost) == 3 and all(of_hand[path].get("checksum") for path in listed_lost)
    # what HSC's database gave is no file of its archive
    shutil.copytree(tiny_sky / "hsc" / "sql", root / "hsc" / "sql")
    moved = tuple(replace(c, root=str(root / c.name)) for c in tiny_recipe.surveys)
    built = build(replace(tiny_recipe, surveys=moved), tmp_path / "again")
    assert built.snapshot.content_id == Pile.open(tiny_pile).head().content_id  # type: ignore[union-attr]


def test_sizes_are_asked_for_and_what_is_not_there_is_left_out(
    tmp_path: Path, tiny_sky: Path, tiny_recipe: Recipe, tiny_pile: Path, mirror: SkyMirror, lists: Lists
) -> None:
    pile = tmp_path / "pile"
    shutil.copytree(tiny_pile, pile)
    files, missing = lists(far(tiny_recipe, mirror, tmp_path / "cache", 10**9, "legacysurvey"), pile, ask=True)
    assert all(f.known and f.bytes == (tiny_sky / f.survey / f.path).stat().st_size for f in files)
    assert missing == ["south/coadd/000/0000m011/legacysurvey-0000m011-image-z.fits.fz"]
    # a band without exposures is in no list of its brick, and never was a file
    assert not [f for f in files if f.path.endswith("3599m011-image-i.fits.fz")]


def test_what_lies_below_the_root_is_there(
    tmp_path: Path, tiny_sky: Path, tiny_recipe: Recipe, mirror: SkyMirror, lists: Lists
) -> None:
    root = tmp_path / "root"
    (root / "gaia" / "gaia_source").mkdir(parents=True)
    [copied, *others] = sorted(tiny_sky.glob("gaia/gaia_source/*.csv.gz"))
    shutil.copy(copied, root / "gaia" / "gaia_source")
    chosen = [replace(c, root=str(root / "gaia")) for c in tiny_recipe.surveys if c.name == "gaia"]
    download = Download(str(tmp_path / "cache"), mirror=mirror.url)
    files, _ = lists(replace(tiny_recipe, surveys=tuple(chosen), download=download))
    assert {f.path.rsplit("/", 1)[1]: f.there for f in files if "gaia_source/" in f.path} == {
        "_MD5SUM.txt": False,
        copied.name: True,
        **{p.name: False for p in others},
    }
    assert [f.known for f in files if f.there] == [True]


def test_a_whole_root_needs_no_network(tmp_path: Path, tiny_sky: Path, tiny_recipe: Recipe, lists: Lists) -> None:
    chosen = [c for c in tiny_recipe.surveys if c.name in ("gaia", "desi", "legacysurvey")]
    nobody = Download(str(tmp_path / "cache"), mirror="http://127.0.0.1:9")
    files, _ = lists(replace(tiny_recipe, surveys=tuple(chosen), download=nobody))
    assert [f.path for f in files if not f.there] == [
        "Spectroscopy/xp_continuous_mean_spectrum/XpContinuousMeanSpectrum_278505-278708.csv.gz"
    ]


def test_brought_ahead_a_build_asks_for_nothing_but_what_was_lost(
    tmp_path: Path, tiny_recipe: Recipe, mirror: SkyMirror
) -> None:
    recipe, pile = far(tiny_recipe, mirror, tmp_path / "cache", 10**9, "desi"), tmp_path / "pile"
    stage = listing.read_catalogues(recipe, pile, Engine())
    with open_client(recipe.download) as client:
        [inventory] = listing.inventories(recipe, client).values()
        files = [*listing.catalogue_files(recipe, inventory).files, *listing.payload_files(stage, "desi")]
        [told], untold = listing.amounts(recipe, pile, client)
    assert told.what == "pixels and spectra"
    came, _ = listing.bring(recipe, pile, {"desi": files})
    assert came["desi"].absent == 1 and not came["desi"].failed and not came["desi"].left
    assert came["desi"].files == told.amount.files - 1 == 13 and not untold
    again, _ = listing.bring(recipe, pile, {"desi": files})
    assert again["desi"].files == 0 and again["desi"].bytes == came["desi"].bytes > 3_000_000
    mirror.log.clear()
    assert not build(recipe, pile).partial
    assert {a.path.rsplit("/", 1)[1] for a in mirror.log} == {"coadd-main-backup-17404.fits"}


def test_no_more_is_brought_ahead_than_the_cache_may_hold(
    tmp_path: Path, tiny_recipe: Recipe, mirror: SkyMirror
) -> None:
    recipe, pile = far(tiny_recipe, mirror, tmp_path / "cache", 2_000_000, "desi"), tmp_path / "pile"
    stage = listing.read_catalogues(recipe, pile, Engine())
    came, _ = listing.bring(recipe, pile, {"desi": listing.payload_files(stage, "desi")})
    held = sum(p.stat().st_size for p in (tmp_path / "cache").glob("objects/*/*/*"))
    assert came["desi"].left > 0 and not came["desi"].failed and held <= 2_000_000


def test_amounts_are_of_the_lists_then_of_the_wanted_sources(
    tmp_path: Path, tiny_recipe: Recipe, mirror: SkyMirror
) -> None:
    recipe, pile = far(tiny_recipe, mirror, tmp_path / "cache", 10**9, "gaia", "sdss"), tmp_path / "pile"
    with open_client(recipe.download) as client:
        told, untold = listing.amounts(recipe, pile, client)
        # two files of Gaia's, their XP files and two lists, which came by then; one table of SDSS's
        assert not untold and {t.survey: t.amount.files for t in told} == {"gaia": 4, "sdss": 1}
        assert all(t.what == "catalogue files" for t in told) and {t.largest for t in told} == {10**9, 67 * 10**8}
        listing.read_catalogues(recipe, pile, Engine())
        told, _ = listing.amounts(recipe, pile, client)
        assert [(t.survey, t.what, t.amount.files) for t in told] == [("sdss", "pixels and spectra", 3)]


def test_what_cannot_be_told_is_said_and_is_no_reason_to_end(
    tmp_path: Path, tiny_recipe: Recipe, mirror: SkyMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, pile = far(tiny_recipe, mirror, tmp_path / "cache", 10**9, "gaia"), tmp_path / "pile"
    monkeypatch.setattr(listing, "LISTS_LOOKED_AT", 1)
    with open_client(recipe.download) as client:
        told, [untold] = listing.amounts(recipe, pile, client)
        assert not told and "its files are told by more lists than are fetched for a look ahead" in untold
        nowhere = replace(recipe, download=Download(str(tmp_path / "other"), mirror=f"{mirror.url}/nowhere"))
        _, [untold] = listing.amounts(nowhere, pile, client)
    assert "gaia dr3: there is no gaia_source/_MD5SUM.txt" in untold
