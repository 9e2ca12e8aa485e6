"""One object on a page: found by any of its names, gathered as the pile says it, drawn the right way up."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from typer.testing import CliRunner

from skycairn.catalogs.registry import SURVEYS
from skycairn.catalogs.survey import Modality
from skycairn.cli import skyimage
from skycairn.cli.imagerows import MOST_PANEL
from skycairn.cli.main import app
from skycairn.cli.objectview import Measurement, NoSuchObject, ObjectReader, ObjectView
from skycairn.cli.page import number, page, shortened
from skycairn.pile.store import Draft, Entry, Pile

IMAGE = "legacysurvey.image"
SPECTRUM = "desi.spectrum"


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.fixture(scope="module")
def reader(tiny_pile: Path) -> ObjectReader:
    pile = Pile.open(tiny_pile)
    return ObjectReader(pile, pile.snapshot())


def table(reader: ObjectReader, name: str) -> pa.Table:
    parts = [reader.pile.read_table(e.part) for e in reader.snapshot.entries(name)]
    return pa.concat_tables(parts, promote_options="permissive")


@pytest.fixture(scope="module")
def objects(reader: ObjectReader) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table(reader, "objects").to_pylist()
    return rows


def first(objects: list[dict[str, Any]], **status: str) -> str:
    """The first object with these statuses; `image` and `spectrum` stand for the modality."""
    names = {"image": IMAGE, "spectrum": SPECTRUM, "xp": "gaia.xp_bp"}
    return next(o["object_id"] for o in objects if all(o[f"status.{names.get(k, k)}"] == v for k, v in status.items()))


def measurement(view: ObjectView, modality: str) -> Measurement:
    return next(m for m in view.measurements if m.modality.name == modality)


def axes(figure: Figure) -> dict[str, Axes]:
    return {str(ax.get_label()): ax for ax in figure.axes}


# --- finding


def test_every_member_leads_to_its_object(reader: ObjectReader) -> None:
    members = table(reader, "members").to_pylist()
    several = [m for m in members if not m["anchor"]][:5]
    assert {m["survey"] for m in several} > {"desi"} or several
    for m in several + members[:5]:
        assert reader.find(f"{m['survey']}:{m['key']}") == m["object_id"]


def test_a_repeat_leads_to_its_primary(tiny_pile: Path, tmp_path: Path) -> None:
    pile = Pile.open(shutil.copytree(tiny_pile, tmp_path / "pile"))
    key = pile.read_table(pile.snapshot().entries("desi.wide")[0].part, columns=["key"]).column(0)[0].as_py()
    repeats = pa.table({"key": pa.array([12345]), "primary": pa.array([key])})
    reader = edited(pile, {"desi.repeats": repeats})
    assert reader.find("desi:12345") == reader.find(f"desi:{key}")


def test_an_unknown_id_is_told_what_there_is(reader: ObjectReader, objects: list[dict[str, Any]]) -> None:
    key = next(o["key.gaia"] for o in objects if o["key.gaia"])
    with pytest.raises(NoSuchObject, match=rf"none of {len(objects)} objects.*the nearest is gaia:{key};.*lists some"):
        reader.find(f"gaia:{key + 1}")
    with pytest.raises(NoSuchObject, match=rf"did you mean gaia:{key}\?"):
        reader.find(str(key))
    with pytest.raises(NoSuchObject, match="a survey of legacysurvey, hsc, gaia, desi, sdss"):
        reader.find("2mass:1")
    with pytest.raises(NoSuchObject, match="63 bits"):
        reader.find(f"gaia:{2**63}")


def test_the_nearest_object_across_ra_0(reader: ObjectReader, objects: list[dict[str, Any]]) -> None:
    east = min((o for o in objects if o["ra"] < 180), key=lambda o: o["ra"])
    west = max((o for o in objects if o["ra"] > 180), key=lambda o: o["ra"])
    for o in (east, west):
        assert reader.nearest(o["ra"], o["dec"], 0.01) == o["object_id"]
    apart = east["ra"] * 3600  # arcsec to the meridian, which lies between
    found = reader.nearest(359.999999, east["dec"], 900.0)
    row = next(o for o in objects if o["object_id"] == found)
    to = np.hypot((row["ra"] + 180) % 360 - 180, row["dec"] - east["dec"]) * 3600
    assert to <= apart + 0.01


def test_a_position_without_an_object(reader: ObjectReader, objects: list[dict[str, Any]]) -> None:
    o = objects[0]
    with pytest.raises(NoSuchObject, match=r"arcsec off$"):
        reader.nearest(o["ra"], o["dec"] + 0.001 / 3600, 0.0001)
    with pytest.raises(NoSuchObject, match="none lies in the cells around"):
        reader.nearest(0.0, 90.0, 5.0)
    for ra, dec, radius in ((360.0, 0.0, 1.0), (float("nan"), 0.0, 1.0), (0.0, 91.0, 1.0), (0.0, 0.0, 0.0)):
        with pytest.raises(ValueError, match="wanted"):
            reader.nearest(ra, dec, radius)


# --- gathering


def test_values_are_the_piles(reader: ObjectReader, objects: list[dict[str, Any]]) -> None:
    o = next(o for o in objects if all(o[f"key.{s}"] for s in ("legacysurvey", "gaia", "desi")))
    view = reader.view(o["object_id"])
    assert [m.survey for m in view.members] == o["stratum"].split("+")
    assert view.members[0].anchor
    of_gaia = next(m for m in view.members if m.survey == "gaia")
    assert of_gaia.separation_arcsec == pytest.approx(o["separation_arcsec.gaia"], abs=1e-9)
    for survey, values in view.values.items():
        if o[f"key.{survey}"] is None:
            assert not values
            continue
        wide = table(reader, f"{survey}.wide")
        row = wide.filter(pc.equal(wide.column("key"), o[f"key.{survey}"])).to_pylist()[0]
        assert values
        ivar = {m.column: m.ivar for m in SURVEYS[survey].modalities if m.ivar}
        for v in values:
            zero_ivar = v.status and v.name in ivar and row[ivar[v.name]] == 0
            assert v.value == (None if zero_ivar else row[v.name])
            assert v.unit == (wide.schema.field(v.name).metadata or {}).get(b"unit", b"").decode()
    flux = next(v for v in view.values["legacysurvey"] if v.name == "flux_r")
    wide = table(reader, "legacysurvey.wide")
    row = wide.filter(pc.equal(wide.column("key"), o["key.legacysurvey"])).to_pylist()[0]
    assert flux.unit == "nanomaggy"
    assert flux.error == pytest.approx(row["flux_ivar_r"] ** -0.5)
    parallax = next(v for v in view.values["gaia"] if v.name == "parallax")
    assert (parallax.unit, parallax.status) == ("mas", o["status.gaia.parallax"])


def test_pixels_spectra_and_decoded_tokens(reader: ObjectReader, objects: list[dict[str, Any]]) -> None:
    view = reader.view(first(objects, image="present"))
    image = measurement(view, IMAGE)
    assert image.measured is not None and image.decoded is not None
    assert image.measured["flux"].shape == (4, 160, 160)
    payload = table(reader, f"payload.{IMAGE}")
    key = next(m.key for m in view.members if m.survey == "legacysurvey")
    row = payload.filter(pc.equal(payload.column("key"), key)).to_pylist()[0]
    assert image.measured["flux"].ravel().tolist() == row["flux"]
    assert image.measured["mask"].ravel().tolist() == row["mask"]
    assert image.offset == (row["dx"], row["dy"])
    assert image.decoded["flux"].shape == (4, 96, 96)
    # what was decoded is this source: as bright in its core
    core, back = (
        float(a[1, c - 4 : c + 4, c - 4 : c + 4].sum())
        for a, c in ((image.measured["flux"], 80), (image.decoded["flux"], 48))
    )
    assert back == pytest.approx(core, rel=0.6, abs=2)
    spectrum = measurement(reader.view(first(objects, spectrum="present")), SPECTRUM)
    assert spectrum.wavelength is not None and spectrum.decoded is not None and spectrum.measured is not None
    assert spectrum.wavelength[[0, -1]] == pytest.approx([3600.0, 9824.0])
    assert spectrum.decoded["flux"].shape == spectrum.measured["flux"].shape == (7781,)
    xp = measurement(reader.view(first(objects, xp="present")), "gaia.xp_bp")
    assert xp.measured is not None and xp.decoded is not None
    assert xp.measured["value"].shape == xp.measured["error"].shape == xp.decoded["value"].shape == (55,)


def test_what_is_missing_has_its_status(reader: ObjectReader, objects: list[dict[str, Any]]) -> None:
    o = next(o for o in objects if o["status.legacysurvey"].startswith("not selected"))
    view = reader.view(o["object_id"])
    image = measurement(view, IMAGE)
    assert (image.measured, image.decoded, image.status) == (None, None, o["status.legacysurvey"])
    assert view.values["legacysurvey"][0].value is not None
    assert view.values["legacysurvey"][0].decoded is None
    alone = next(o for o in objects if o["stratum"] == "gaia")
    view = reader.view(alone["object_id"])
    assert [m.survey for m in view.members] == ["gaia"]
    assert view.values["desi"] == []
    assert view.status["desi"] in ("not detected", "outside footprint")


def test_no_value_is_written_into_the_next_column(reader: ObjectReader, objects: list[dict[str, Any]]) -> None:
    """The cut that a whole source failed stands above its values; it is too long to stand beside one."""
    lacking = [o["object_id"] for o in objects if o["status.legacysurvey"].startswith("not selected")]
    views = (reader.view(o) for o in lacking)
    view = next(v for v in views if any(x.status and x.value is None for x in v.values["legacysurvey"]))
    ax = next(a for a in page(view).axes if a.get_label() == "values")
    texts = [(t.get_position(), t.get_text()) for t in ax.texts]
    assert any(t.startswith("legacysurvey: not selected: ") for _, t in texts)
    assert all(len(t) <= 68 for _, t in texts)


def test_long_names_are_cut_with_a_sign_and_stay_apart() -> None:
    names = [
        "i_pixelflags_interpolatedcenter",
        "i_pixelflags_interpolated_other",
        "ra",
        "j_pixelflags_interpolatedcenter",
    ]
    short = shortened(names, 23)
    assert len(set(short)) == 4 and max(map(len, short)) == 23 and short[2] == "ra"
    assert all(("…" in s) == (len(n) > 23) for s, n in zip(short, names, strict=True))
    ends = ["a" * 30 + "x" + "b" * 3, "a" * 30 + "y" + "b" * 3]
    assert len(set(shortened(ends, 10))) == 2
    assert shortened(["c" * 40 + "x" + "c" * 40, "c" * 81], 10) == ["c" * 9 + "…"] * 2


def edited(pile: Pile, tables: dict[str, pa.Table | None], **recipe: Any) -> ObjectReader:
    """The pile with other tables, or without them, as a new snapshot."""
    head = pile.snapshot()
    new: list[dict[str, list[Entry]]] = []
    for held in (head.tables, head.aside):
        kept = {name: list(entries) for name, entries in held.items() if tables.get(name, ...) is not None}
        for name in set(kept) & set(tables):
            kept[name] = [replace(kept[name][0], part=pile.put_table(tables[name])), *kept[name][1:]]
        new.append(kept)
    pile.commit(Draft({**head.recipe, "name": "edited", **recipe}, new[0], new[1], head.held_back, head.stats))
    return ObjectReader(pile, pile.snapshot())


def test_without_kept_payload_the_tokens_are_shown_alone(
    tiny_pile: Path, objects: list[dict[str, Any]], tmp_path: Path
) -> None:
    pile = Pile.open(shutil.copytree(tiny_pile, tmp_path / "pile"))
    policy = {**pile.snapshot().recipe["payload"], "keep": "none"}
    reader = edited(pile, {f"payload.{IMAGE}": None, f"payload.{SPECTRUM}": None}, payload=policy)
    view = reader.view(first(objects, image="present", spectrum="present"))
    for name in (IMAGE, SPECTRUM):
        m = measurement(view, name)
        assert m.measured is None and m.decoded is not None
        assert "not kept in this pile (payload.keep = 'none')" in m.note
    figure = page(view)
    assert f"decoded:{IMAGE}" in axes(figure)
    assert f"image:{IMAGE}" not in axes(figure)
    assert "pixel" in axes(figure)[f"spectrum:{SPECTRUM}"].get_xlabel()
    assert "not kept" in " ".join(t.get_text() for t in figure.texts)


def test_a_grid_of_equal_steps_of_the_logarithm(tiny_pile: Path, objects: list[dict[str, Any]], tmp_path: Path) -> None:
    pile = Pile.open(shutil.copytree(tiny_pile, tmp_path / "pile"))
    name = f"payload.{SPECTRUM}"
    told = pile.read_table(pile.snapshot().entries(name)[0].part)
    told = told.replace_schema_metadata({"loglam_start": "3.5", "loglam_step": "0.0001"})
    reader = edited(pile, {name: told})
    wavelength = measurement(reader.view(first(objects, spectrum="present")), SPECTRUM).wavelength
    assert wavelength is not None
    assert wavelength[0] == pytest.approx(10**3.5)
    assert wavelength[-1] == pytest.approx(10 ** (3.5 + 0.7780))


# --- drawing


def synthetic(
    east_arcsec: float, north_arcsec: float, size: int = 64, crop: int = 32, pixel: float = 0.25
) -> ObjectView:
    """A source, and a bright neighbour so far from it."""
    bands = ("g", "r", "z")
    flux = np.zeros((3, size, size), np.float32)
    x, y = size // 2 - round(east_arcsec / pixel), size // 2 + round(north_arcsec / pixel)
    flux[:, y - 1 : y + 2, x - 1 : x + 2] = 50.0
    a = (size - crop) // 2
    m = Measurement(
        Modality(
            "legacysurvey.image", "", "image", unit="nanomaggy", shape=flux.shape, bands=bands, pixel_arcsec=pixel
        ),
        "present",
        {"flux": flux, "ivar": np.ones_like(flux), "mask": np.zeros(flux.shape, bool)},
        {"flux": flux[:, a : a + crop, a : a + crop]},
        64,
        bands,
        bands,
    )
    return ObjectView(
        "x:1", 10.0, 20.0, "train", "x", "x:1", {}, None, {}, [], {}, [m], {}, "snapshot 1"
    )  # fmt: skip


def brightest(figure: Figure, label: str) -> tuple[float, float]:
    """Where the light of a panel lies: shares of its width from the left, and of its height from the top."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(float).max(axis=2)
    box = axes(figure)[label].get_window_extent()
    height = pixels.shape[0]
    part = pixels[height - int(box.y1) + 2 : height - int(box.y0) - 2, int(box.x0) + 2 : int(box.x1) - 2]
    # the ruler and the compass lie in the lowest quarter, the PSF in no panel without one
    y, x = np.nonzero(part[: part.shape[0] * 3 // 4] > 200)
    return float(np.median(x) / part.shape[1]), float(np.median(y) / part.shape[0])


@pytest.mark.parametrize(("east", "north"), [(3.0, 2.0), (-3.0, 2.0), (3.0, -1.0), (-2.0, -1.0)])
def test_north_is_up_and_east_is_left(east: float, north: float) -> None:
    figure = page(synthetic(east, north))
    for label, field in ((f"image:{IMAGE}", 16.0), (f"decoded:{IMAGE}", 8.0)):
        x, y = brightest(figure, label)
        assert x == pytest.approx(0.5 - east / field, abs=0.03), label
        assert y == pytest.approx(0.5 - north / field, abs=0.03), label


def test_all_images_have_one_scale_on_the_sky() -> None:
    view = synthetic(1.0, 1.0)
    fine = synthetic(1.0, 1.0, size=40, crop=20, pixel=0.17).measurements[0]
    fine = replace(fine, modality=replace(fine.modality, name="hsc.image"))
    figure = page(replace(view, measurements=[*view.measurements, fine]))
    found = axes(figure)
    scales = {}
    for name in ("image:legacysurvey.image", "decoded:legacysurvey.image", "image:hsc.image", "decoded:hsc.image"):
        (left, right), (bottom, top) = found[name].get_xlim(), found[name].get_ylim()
        assert left > right and top > bottom
        assert left - right == pytest.approx(top - bottom)
        width = found[name].get_position().width * figure.get_figwidth()
        assert width <= MOST_PANEL + 1e-9
        scales[name] = (left - right) / width
    assert max(scales.values()) == pytest.approx(min(scales.values()))
    # the smaller field of the two, and the codec's own of each
    assert abs(np.subtract(*found["image:legacysurvey.image"].get_xlim())) == pytest.approx(40 * 0.17)
    assert abs(np.subtract(*found["decoded:hsc.image"].get_xlim())) == pytest.approx(20 * 0.17)


@given(st.integers(2, 50), st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(0.1, 1.0))
def test_extents_put_the_source_at_zero(n: int, dx: float, dy: float, pixel: float) -> None:
    left, right, bottom, top = skyimage.extent((3, n, n + 1), pixel, (dx, dy))
    assert left - right == pytest.approx((n + 1) * pixel)
    assert top - bottom == pytest.approx(n * pixel)
    # the middle of pixel (n // 2, (n + 1) // 2), and from there to the source
    x = left - ((n + 1) // 2 + 0.5) * pixel
    y = bottom + (n // 2 + 0.5) * pixel
    assert (x, y) == pytest.approx((dx * pixel, -dy * pixel), abs=1e-9)


def test_a_crop_lies_where_it_was_cut() -> None:
    whole = skyimage.extent((160, 160), 0.262, (0.3, -0.2))
    crop = skyimage.extent((96, 96), 0.262, (0.3, -0.2))
    assert np.subtract(whole, crop) == pytest.approx(np.array([1, -1, -1, 1]) * 32 * 0.262)


def test_masked_pixels_and_missing_bands_are_shown_as_such() -> None:
    view = synthetic(2.0, 2.0)
    m = view.measurements[0]
    assert m.measured is not None
    mask: NDArray[np.bool_] = m.measured["mask"].copy()
    mask[2] = True
    mask[0, :, :8] = True
    figure = page(replace(view, measurements=[replace(m, measured={**m.measured, "mask": mask})]))
    assert "no good pixel in z" in " ".join(t.get_text() for t in figure.texts)
    found = axes(figure)
    assert "r, g as red, blue" in found[f"image:{IMAGE}"].get_title()
    assert "no good pixel" in found[f"band:{IMAGE}:z"].get_title()
    veil = np.asarray(found[f"image:{IMAGE}"].images[1].get_array())[..., 3]
    assert (veil > 0).sum() == 64 * 8
    none = page(replace(view, measurements=[replace(m, measured={**m.measured, "mask": np.ones_like(mask)})]))
    assert "no good pixel in any band" in axes(none)[f"image:{IMAGE}"].get_title()


def test_colours() -> None:
    assert skyimage.colour_bands(("g", "r", "i", "z", "y")) == ("z", "r", "g")
    assert skyimage.colour_bands(("g", "r", "i")) == ("i", "r", "g")
    assert skyimage.colour_bands(("u", "g", "z")) == ("z", "g", "u")
    assert skyimage.colour_bands(("r",)) == ("r",)
    assert skyimage.seen_bands(("z", "g", "r"), np.array([[[False]], [[False]], [[True]]])) == ("g", "z")
    # one surface brightness is one colour, whatever the pixels
    light = np.full((3, 2, 2), 0.5)
    coarse = skyimage.colours(light * 0.262**2, ("g", "r", "z"), ("z", "r", "g"), "nanomaggy", 0.262)
    fine = skyimage.colours(light * 0.168**2 * 3631, ("g", "r", "z"), ("z", "r", "g"), "nJy", 0.168)
    assert np.abs(coarse.astype(int) - fine.astype(int)).max() <= 1
    red = skyimage.colours(np.array([[[1.0]], [[0.0]]]), ("z", "g"), ("z", "g"), "nanomaggy", 1.0)[0, 0]
    assert red[0] > red[1] > red[2]
    with pytest.raises(ValueError, match="an image in 'furlong'"):
        skyimage.colours(light, ("g", "r", "z"), ("g",), "furlong", 1.0)


def test_spectra_of_one_unit_share_their_axes(reader: ObjectReader, objects: list[dict[str, Any]]) -> None:
    view = reader.view(first(objects, spectrum="present"))
    m = measurement(view, SPECTRUM)
    assert m.measured is not None and m.wavelength is not None
    mask = m.measured["mask"].copy()
    mask[100:200] = True
    other = replace(
        m,
        modality=replace(m.modality, name="sdss.spectrum"),
        measured={**m.measured, "flux": m.measured["flux"] * 5, "mask": mask},
        wavelength=m.wavelength + 300,
    )
    found = axes(page(replace(view, measurements=[m, other])))
    one, two = found["spectrum:desi.spectrum"], found["spectrum:sdss.spectrum"]
    assert one.get_ylim() == two.get_ylim()
    assert one.get_xlim() == two.get_xlim() == pytest.approx((3600, 10124))
    line = next(x for x in two.lines if len(np.asarray(x.get_ydata())) == 7781)
    assert np.isnan(np.asarray(line.get_ydata(), float)[100:200]).all()
    spans = next(p.get_paths() for p in two.collections if p.get_label() == "masked")
    edges = [(p.vertices[:, 0].min(), p.vertices[:, 0].max()) for p in spans]
    assert any(a <= 3980.1 and b >= 4058.9 for a, b in edges)


def test_numbers_read_well() -> None:
    assert number(5.30812, 0.0612) == "5.308"
    assert number(-9.2, 50.0) == "-9"
    assert number(181.0, 320.0) == "180"
    assert number(2**62 + 1) == str(2**62 + 1)
    assert number(0.0) == "0"
    assert number(1.5, 0.0) == "1.5"
    assert number(float("nan"), 1.0) == "nan"


# --- the verb


def test_show_writes_a_picture(tiny_pile: Path, objects: list[dict[str, Any]], tmp_path: Path) -> None:
    galaxy, star = first(objects, image="present", spectrum="present"), first(objects, xp="present")
    for object_id in (galaxy, star):
        result = run("show", object_id, "--pile", tiny_pile, "--out", tmp_path / "page.png")
        assert result.exit_code == 0, result.output
        pixels = matplotlib.image.imread(tmp_path / "page.png")
        assert pixels.shape[1] == 1650 and pixels.shape[0] > 800
        assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 100
    tall = pixels.shape[0]
    assert run("show", star, "--pile", tiny_pile, "--out", tmp_path / "page.png", "--no-tables").exit_code == 0
    assert matplotlib.image.imread(tmp_path / "page.png").shape[0] < tall
    o = objects[0]
    near = run("show", "--ra", o["ra"], "--dec", o["dec"], "--pile", tiny_pile, "--out", tmp_path / "near.png")
    assert near.output.startswith(o["object_id"])


def test_show_without_an_object_lists_some(tiny_pile: Path, objects: list[dict[str, Any]]) -> None:
    listed = run("show", "--pile", tiny_pile)
    assert listed.exit_code == 0
    assert objects[0]["stratum"] in listed.output
    assert first([o for o in objects if o["stratum"] == "gaia"]) in listed.output


def test_show_refuses_in_one_line(tiny_pile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(*args: object) -> str:
        result = run("show", *args)
        assert result.exit_code == 1, result.output
        assert result.stderr.startswith("skycairn: ") and result.stderr.count("\n") == 1
        return result.stderr

    assert "objects, nor a source in one" in refusal("gaia:5", "--pile", tiny_pile)
    assert "both --ra and --dec" in refusal("--ra", 1.0, "--pile", tiny_pile)
    assert "wanted .png" in refusal("gaia:5", "--pile", tiny_pile, "--out", tmp_path / "page.gif")
    assert "is not a pile" in refusal("gaia:5", "--pile", tmp_path)
    key = "gaia:" + str(
        Pile.open(tiny_pile).read_table(Pile.open(tiny_pile).snapshot().entries("gaia.slim")[0].part)["key"][0]
    )
    for name in [n for n in sys.modules if n == "skycairn.cli.page" or n.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "needs matplotlib, which is not installed; install skycairn[plot]" in refusal(key, "--pile", tiny_pile)
