"""Builds whose pixels are cut-outs of the Legacy Surveys' viewer: a modality of their own; nothing lost on the way."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from skycairn.archives.client import Client
from skycairn.archives.hosts import HOSTS
from skycairn.archives.sources import Download
from skycairn.cli.objectview import ObjectReader
from skycairn.cli.show import print_report, print_status
from skycairn.mirror.server import Reply, Request
from skycairn.mirror.sky import SkyMirror, mirror_of, services_of
from skycairn.pile.store import Pile
from skycairn.pipeline import downloads, listing, plan
from skycairn.pipeline import recipe as recipes
from skycairn.pipeline.recipe import Recipe
from skycairn.pipeline.run import BuildError, build
from skycairn.tokenizers.lock import read_lock
from tests.conftest import TINY

VIEWER = "www.legacysurvey.org"
NAME = "legacysurvey.viewer_image"


def recipe_of(served: SkyMirror, cache: Path, pixels: str = "cutout", radius: float = 0.08, **more: Any) -> Recipe:
    """A field of the tiny sky in two surveys."""
    told: dict[str, Any] = deepcopy(TINY)
    told["surveys"] = {name: {**told["surveys"][name], "source": "archive"} for name in ("legacysurvey", "gaia")}
    if pixels:
        told["surveys"]["legacysurvey"]["pixels"] = pixels
    told["region"]["radius_deg"] = radius
    told["download"] = {"cache": str(cache), "mirror": served.url}
    return recipes.parse({**told, **more}, "test")


@contextmanager
def mirror(sky: Path, busy: bool = False) -> Iterator[SkyMirror]:
    services = services_of(sky)
    asked: set[str] = set()

    def turned_away(request: Request) -> Reply | None:
        # all but the first source that is asked for
        asked.add(request.query["ra"][0])
        return Reply(503, b"later\n") if len(asked) > 1 else None

    if busy:
        services[VIEWER] = [turned_away, *services[VIEWER]]
    with mirror_of(sky, services=services) as served:
        yield served


def rows(pile: Path, table: str) -> pa.Table:
    opened = Pile.open(pile)
    return pa.concat_tables([opened.read_table(e.part) for e in opened.snapshot().entries(table)])


def test_a_field_of_cutouts(tiny_sky: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mirror(tiny_sky) as served:
        recipe = recipe_of(served, tmp_path / "cache", radius=0.015)
        built = build(recipe, tmp_path / "pile")
        asked = served.requests.by_host[VIEWER]
        again = build(recipe, tmp_path / "pile")
        assert again.n_tasks == 0 and served.requests.by_host[VIEWER] == asked
    assert not built.partial and not [path for path in built.lost if path.startswith("legacysurvey")]
    # of the flagged modality there are tokens and pixels, of the coadds' none, nor was any brick asked for
    tables = {name for name in {**built.snapshot.tables, **built.snapshot.aside} if "image" in name}
    assert tables == {f"tokens.{NAME}", f"payload.{NAME}"}
    codecs = read_lock(tmp_path / "pile" / "codecs.lock")
    assert codecs[NAME].kind == "patch_image_uniform_weights" and "legacysurvey.image" not in codecs
    assert not [a.path for a in served.log if "/coadd/" in a.path]
    # one question a source of an object, twice since not over TLS; none for the margin
    tokens, payload = rows(tmp_path / "pile", f"tokens.{NAME}"), rows(tmp_path / "pile", f"payload.{NAME}")
    members = rows(tmp_path / "pile", "members")
    keys = members.filter(pa.compute.equal(members["survey"], "legacysurvey"))["key"].to_pylist()
    assert 0 < tokens.num_rows == payload.num_rows == asked // 2 and asked % 2 == 0
    assert set(tokens["key"].to_pylist()) <= set(keys)
    counts = built.report.surveys["legacysurvey"]
    assert tokens.num_rows < counts["selected"]
    objects = rows(tmp_path / "pile", "objects")
    status = objects[f"status.{NAME}"].to_pylist()
    assert set(status) <= {"present", "not measured", "outside footprint", "not detected"} | {
        s for s in status if s.startswith("not selected: ")
    }
    assert status.count("present") == len(tokens) - tokens["tokens"].null_count == asked // 2
    assert "ivar" not in payload.column_names
    assert dict(payload.schema.field("flux").metadata)[b"about"] == b"resampled, no ivar"
    offset = np.array([payload[n].to_pylist() for n in ("dx", "dy")])
    np.testing.assert_allclose(offset, -0.5, atol=1e-3)
    print_report(built)
    print_status(Pile.open(tmp_path / "pile"))
    assert capsys.readouterr().out.count(f"flagged: {NAME}: resampled, no ivar") == 2
    pile = Pile.open(tmp_path / "pile")
    seen = ObjectReader(pile, pile.snapshot()).view(objects["object_id"][status.index("present")].as_py())
    (image,) = (m for m in seen.measurements if m.modality.name == NAME)
    assert image.measured is not None and set(image.measured) == {"flux", "mask"} and image.decoded is not None


def test_cutouts_show_what_coadds_show(tiny_sky: Path, tmp_path: Path) -> None:
    """The same sources, with light in the same place: within a pixel, and to a few percent."""
    with mirror(tiny_sky) as served:
        for pixels in ("cutout", ""):
            build(recipe_of(served, tmp_path / "cache", pixels), tmp_path / f"pile{pixels}")
    got = {}
    for pile, name in (("pilecutout", NAME), ("pile", "legacysurvey.image")):
        table = rows(tmp_path / pile, f"payload.{name}")
        table = table.filter(pa.compute.is_null(table["status"])).sort_by("key")
        flux, mask = (np.array(table[n].to_pylist()).reshape(-1, 4, 160, 160) for n in ("flux", "mask"))
        got[name] = {k: (f, m) for k, f, m in zip(table["key"].to_pylist(), flux, mask, strict=True)}
    both = sorted(set(got[NAME]) & set(got["legacysurvey.image"]))
    assert len(both) >= 3
    compared = 0
    for key in both:
        (a, bad_a), (b, bad_b) = got[NAME][key], got["legacysurvey.image"][key]
        middle = slice(70, 91)
        if bad_a[1, middle, middle].any() or bad_b[1, middle, middle].any():
            continue
        a, b = (v[1, middle, middle].sum() for v in (a, b))
        assert a == pytest.approx(b, rel=0.1, abs=0.5)
        compared += 1
    assert compared >= 2


def test_a_default_recipe_knows_nothing_of_cutouts(tiny_sky: Path, tmp_path: Path) -> None:
    with mirror(tiny_sky) as served:
        plain = recipe_of(served, tmp_path / "cache", pixels="")
        chosen = recipe_of(served, tmp_path / "cache", pixels="coadd")
    assert "pixels" not in recipes.canonical(plain.settings())
    assert plain.choice("legacysurvey").survey().options == chosen.choice("legacysurvey").survey().options


def test_a_busy_viewer_holds_back_and_is_never_a_null(
    tiny_sky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(download: Download) -> Client:
        return Client(HOSTS, loopback=True, sleep=lambda s: None)

    monkeypatch.setattr(downloads, "open_client", opened)
    with mirror(tiny_sky, busy=True) as served, pytest.raises(BuildError, match=r"held back.*cutout-.*503") as told:
        build(recipe_of(served, tmp_path / "cache"), tmp_path / "pile")
    assert "viewer/ls-dr10-south/griz-160/cutout-" in str(told.value)
    assert Pile.open(tmp_path / "pile").head() is None
    with mirror(tiny_sky) as served:
        built = build(recipe_of(served, tmp_path / "cache"), tmp_path / "pile")
        whole = build(recipe_of(served, tmp_path / "other"), tmp_path / "whole")
    assert not built.partial and built.snapshot.content_id == whole.snapshot.content_id


def test_more_sources_than_a_service_is_asked_for(
    tiny_sky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "MOST_QUESTIONS", 1)
    with mirror(tiny_sky) as served:
        with pytest.raises(ValueError, match=r'more than 1; take the coadds.*surveys\.legacysurvey\.pixels = "coadd"'):
            build(recipe_of(served, tmp_path / "cache"), tmp_path / "pile")
        assert not served.requests.by_host[VIEWER]


def test_no_folder_holds_them(tiny_sky: Path, tmp_path: Path) -> None:
    settings = deepcopy(TINY)
    settings["surveys"]["legacysurvey"]["pixels"] = "cutout"
    with pytest.raises(ValueError, match="no root holds them; set"):
        build(recipes.parse(settings, "test").at(tiny_sky), tmp_path / "pile")


def test_a_list_of_files_holds_no_cutouts_and_a_fetch_brings_them(tiny_sky: Path, tmp_path: Path) -> None:
    from skycairn.pipeline.engine import Engine

    with mirror(tiny_sky) as served:
        recipe = recipe_of(served, tmp_path / "cache")
        with downloads.open_client(recipe.download) as client:
            untold = listing.amounts(recipe, tmp_path / "pile", client)[1]
        assert any("how many cut-outs it will be asked for is known when its catalogue is read" in t for t in untold)
        made = listing.read_catalogues(recipe, tmp_path / "pile", Engine(0))
        assert not served.requests.by_host[VIEWER]
        files = listing.payload_files(made, "legacysurvey")
        inventory = listing.inventories(recipe, None)["legacysurvey"]
        needed = listing.with_payload(listing.Needed(), inventory, files)
        assert files and needed.tables == [f.path for f in files] and not needed.files
        with downloads.open_client(recipe.download) as client:
            told = listing.amounts(recipe, tmp_path / "pile", client)[0]
        (one,) = (t for t in told if t.what == "cut-outs")
        assert one.amount.files == len(files) and one.largest == 410_000
        came, _ = listing.bring(recipe, tmp_path / "pile", {"legacysurvey": files})
        assert came["legacysurvey"].files == len(files) == served.requests.by_host[VIEWER] // 2
        built = build(recipe, tmp_path / "pile")
        assert served.requests.by_host[VIEWER] == 2 * len(files) and not built.partial


def test_targets_of_ones_own(tiny_sky: Path, tmp_path: Path) -> None:
    """A cut-out for each target, seen by the survey or not, and for nothing else."""
    with mirror(tiny_sky) as served:
        build(recipe_of(served, tmp_path / "cache", ""), tmp_path / "first")
        table = rows(tmp_path / "first", "tokens.legacysurvey.image")
        wide = rows(tmp_path / "first", "legacysurvey.wide")
        seen = wide.filter(pa.compute.is_in(wide["key"], table["key"])).slice(0, 2).select(["ra", "dec"]).to_pylist()
        # no source within an arcminute knows this place
        blank = {"ra": seen[0]["ra"] + 20 / 3600, "dec": seen[0]["dec"] + 7 / 3600}
        told = "".join(f"{i},{p['ra']!r},{p['dec']!r}\n" for i, p in enumerate([*seen, blank]))
        (tmp_path / "my.csv").write_text("id,ra,dec\n" + told)
        region = {"kind": "targets", "table": str(tmp_path / "my.csv"), "radius_arcsec": 1.5}
        recipe = recipe_of(served, tmp_path / "cache", region=region)
        before = served.requests.by_host[VIEWER]
        build(recipe, tmp_path / "pile")
        asked = served.requests.by_host[VIEWER] - before
    tokens = rows(tmp_path / "pile", f"tokens.{NAME}")
    assert sorted(tokens["owner"].to_pylist()) == ["legacysurvey", "legacysurvey", "targets"]
    assert tokens["tokens"].null_count == 0 and asked == 6
    objects = rows(tmp_path / "pile", "objects")
    assert objects.num_rows == 3 and set(objects[f"status.{NAME}"].to_pylist()) == {"present"}
