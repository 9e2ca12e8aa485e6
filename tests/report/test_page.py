"""The page: whole for a pile, in words where something is not there, and sound in a real browser."""

import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from skycairn.cli.main import app
from skycairn.pile.store import Draft, Pile, Snapshot
from skycairn.report.chart import Axis, Plot, number
from skycairn.report.gather import gather
from skycairn.report.markup import table
from skycairn.report.page import page
from skycairn.report.skychart import MOST_PATCHES, lay_out, mollweide

sys.path.insert(0, str(Path(__file__).parent))
import browser

SECTIONS = ("pairs", "separations", "chance", "truth", "offsets", "sky", "cutflow", "held", "blends", "about")


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], env={"COLUMNS": "200", "TERM": "dumb"})


class Checked(HTMLParser):
    """Tags that are not closed, ids, and what the page would fetch."""

    VOID = ("meta", "link", "br", "path", "circle", "rect", "ellipse")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if "id" in found:
            self.ids.append(str(found["id"]))
        self.links += [str(v) for k, v in attrs if k == "href" and str(v).startswith("#")]
        self.fetched += [str(v) for k, v in attrs if k in ("src", "href") and not str(v).startswith(("#", "data:"))]
        assert tag != "script"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(text: str) -> Checked:
    found = Checked(text)
    assert not found.open and not found.fetched and "url(" not in text and "@import" not in text
    assert len(set(found.ids)) == len(found.ids)
    assert {x.removeprefix("#") for x in found.links} <= set(found.ids)
    assert "nan" not in re.sub(r"<style>.*?</style>", "", text).lower().replace("finance", "")
    return found


@pytest.fixture(scope="module")
def made(tiny_pile: Path, tiny_sky: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    result = run("report", tiny_pile, "--truth", tiny_sky, "--out", out)
    assert result.exit_code == 0, result.output
    return out


def test_the_page_is_whole_and_needs_nothing_else(made: Path) -> None:
    text = made.read_text()
    found = check(text)
    assert set(SECTIONS) <= set(found.ids)
    for title in (
        "legacysurvey and gaia",
        "Chance rates",
        "mock-sky scores",
        "Cut-flow",
        "Held-back",
        "Blends",
        "Ids between surveys",
    ):
        assert title in text
    # every picture has words for those who do not see it
    assert text.count("<svg viewBox") == text.count('role="img" aria-label=')


def test_the_same_pile_gives_the_same_page(made: Path, tiny_pile: Path, tiny_sky: Path) -> None:
    pile = Pile.open(tiny_pile)
    assert page(gather(pile, pile.snapshot(), tiny_sky)) == made.read_text()


def test_without_truth_the_page_says_so(tiny_pile: Path) -> None:
    pile = Pile.open(tiny_pile)
    text = page(gather(pile, pile.snapshot()))
    check(text)
    assert "The truth of this sky is not known" in text and 'id="calibration"' not in text


def drafted(root: Path, out: Path, **changes: object) -> Snapshot:
    """A copy of the pile whose head differs: other `tables`, `recipe`, ..."""
    shutil.copytree(root, out)
    pile = Pile.open(out)
    head = pile.snapshot()
    fields = {n: getattr(head, n) for n in ("recipe", "tables", "aside", "held_back", "stats")}
    return pile.commit(Draft(**{**fields, **changes}))  # type: ignore[arg-type]


@pytest.mark.parametrize("gone", ["pairs", "objects", "coverage", "gaia.slim"])
def test_a_table_that_is_not_there_is_told(tiny_pile: Path, tmp_path: Path, gone: str) -> None:
    head = Pile.open(tiny_pile).snapshot()
    tables = {n: e for n, e in head.tables.items() if n != gone}
    if gone == "gaia.slim":
        tables.pop("pairs")
    snapshot = drafted(tiny_pile, tmp_path / "pile", tables=tables)
    text = page(gather(Pile.open(tmp_path / "pile"), snapshot))
    check(text)
    assert gone == "gaia.slim" or f"has no table &#x27;{gone}&#x27;" in text


def test_one_survey_alone_an_empty_pile_and_held_back_cells_are_told(tiny_pile: Path, tmp_path: Path) -> None:
    head = Pile.open(tiny_pile).snapshot()
    alone = {**head.recipe, "surveys": {"gaia": head.recipe["surveys"]["gaia"]}}
    text = page(gather(Pile.open(tiny_pile), drafted(tiny_pile, tmp_path / "one", recipe=alone)))
    check(text)
    assert "It holds one survey alone" in text and "fewer than two surveys" in text
    empty = drafted(tiny_pile, tmp_path / "none", tables={"codecs": ()}, stats={}, held_back=[1234, 5678])
    text = page(gather(Pile.open(tmp_path / "none"), empty))
    check(text)
    assert "holds no object" in text and "2 work cells are held back" in text and "1234, 5678" in text
    assert "keeps no counts of its build" in text


def test_a_cut_flow_that_does_not_close_is_an_error_on_the_page(tiny_pile: Path, tmp_path: Path) -> None:
    head = Pile.open(tiny_pile).snapshot()
    report = {**head.stats["report"], "surveys": {k: dict(v) for k, v in head.stats["report"]["surveys"].items()}}
    report["surveys"]["gaia"]["rows"] += 3
    recipe = {**head.recipe, "name": "open"}  # stats alone make no other snapshot
    snapshot = drafted(tiny_pile, tmp_path / "pile", recipe=recipe, stats={**head.stats, "report": report})
    text = page(gather(Pile.open(tmp_path / "pile"), snapshot))
    assert "DOES NOT CLOSE, by 3" in text and "3 unaccounted for" in text


def test_mistakes_are_told_in_one_line(tiny_pile: Path, tmp_path: Path) -> None:
    for args, told in (
        ((tmp_path, "--out", tmp_path / "a.html"), "is not a pile"),
        ((tiny_pile, "--out", tmp_path / "a.pdf"), "wanted .html"),
        ((tiny_pile, "--out", tmp_path / "a.html", "--truth", tmp_path), "--truth wants the folder"),
        ((tiny_pile, "--out", tmp_path / "a.html", "--snapshot", "77"), "77"),
    ):
        result = run("report", *args)
        assert result.exit_code == 1 and told in result.output and len(result.output.splitlines()) == 1
        assert not (tmp_path / "a.html").exists()


def test_words_of_a_pile_cannot_break_the_page(tiny_pile: Path, tmp_path: Path) -> None:
    head = Pile.open(tiny_pile).snapshot()
    snapshot = drafted(tiny_pile, tmp_path / "pile", recipe={**head.recipe, "name": "<script>alert(1)</script>"})
    check(page(gather(Pile.open(tmp_path / "pile"), snapshot)))


# --- charts and maps


def test_axes_have_round_ticks() -> None:
    assert Axis("", 0.0, 1.0).ticks() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert Axis("", 0.1, 1000.0, log=True).ticks() == pytest.approx([0.1, 1, 10, 100, 1000])
    assert Axis("", 0.5, 12.0, log=True).ticks() == pytest.approx([0.5, 1, 2, 5, 10])
    assert Axis("", -7.0, 7.0).ticks() == pytest.approx([-5, 0, 5], abs=1e-9) or len(Axis("", -7.0, 7.0).ticks()) > 2
    for low, high in ((0.0, 1e-5), (-3e4, 8e4), (1.0, 1.001)):
        assert 3 <= len(Axis("", low, high).ticks()) <= 7


def test_numbers_are_written_for_people() -> None:
    assert [number(x) for x in (0.0, 1234.5, 0.01234, 12.0, float("nan"), float("inf"))] == [
        *("0", "1,234", "0.0123", "12", "not known", "beyond"),
    ]
    plot = Plot(Axis("x", 1, 100, log=True), Axis("y", 0, 1))
    assert plot.px([1, 10, 100])[1] == pytest.approx((plot.px(1) + plot.px(100)) / 2)
    assert "M" in plot.curve([1, 10], [0.5, 0.7], "c1") and plot.curve([1.0], [np.nan], "c1") == ""


def test_tables_show_what_they_are_given() -> None:
    text = table(["name", "n"], [["a<b", 12345]])
    assert "a&lt;b" in text and "12,345" in text
    assert "Nothing to show" in table(["name"], [])


def test_mollweide_keeps_areas_and_puts_ra_180_in_the_middle() -> None:
    x, y = mollweide(np.array([180.0, 90.0, 359.999, 180.0]), np.array([0.0, 0.0, 0.0, 90.0]))
    assert x == pytest.approx([0, 1, -2, 0], abs=1e-4) and y == pytest.approx([0, 0, 0, 1], abs=1e-3)
    ra, dec = np.array([200.0, 201.0, 201.0, 200.0]), np.array([60.0, 60.0, 61.0, 61.0])
    for turn in (0.0, 100.0):
        x, y = mollweide(ra + turn, dec)
        area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
        true = np.radians(1) * (np.sin(np.radians(61)) - np.sin(np.radians(60)))
        assert area * 4 * np.pi / (2 * np.pi) == pytest.approx(true, rel=0.01)


@pytest.mark.parametrize(
    ("order", "cells", "patches"),
    [(3, range(768), 1), (9, [0, 1, 2, 3], 1), (9, [0, 1, 5_000_00, 2_000_000], 3), (6, range(0, 49152, 97), None)],
    ids=["all sky", "one patch", "three patches", "too many patches"],
)
def test_cells_are_drawn_inside_the_picture(order: int, cells: range, patches: int | None) -> None:
    found = lay_out(order, np.array(list(cells), np.int64))
    assert len(found.outlines) == len(list(cells))
    for x, y in found.middles.values():
        assert 0 <= x <= 360 and 0 <= y <= found.height
    assert patches is None or len(found.patches) == patches
    assert ("Mollweide" in found.told) == (len(found.patches) > MOST_PATCHES or order == 3)
    assert "no cell" in lay_out(order, np.zeros(0, np.int64)).told


# --- a real browser


@pytest.mark.skipif(browser.path() is None, reason="no Chromium here; set SKYCAIRN_BROWSER, or install chromium")
def test_a_real_browser_shows_the_page(made: Path, tmp_path: Path) -> None:
    with browser.Browser(tmp_path) as tab:
        for width, dark, media in (
            (1280, False, "screen"),
            (1280, True, "screen"),
            (390, False, "screen"),
            (720, False, "print"),
        ):
            tab.show(made, width, dark=dark, media=media)
            root = "document.documentElement"
            # nothing reaches beyond the window, and nothing is laid over the text
            assert tab.value(f"{root}.scrollWidth") <= tab.value(f"{root}.clientWidth") == width
            drawn = "[...document.querySelectorAll('figure svg')].map(s => [s.clientWidth, s.clientHeight])"
            sizes = [s for s in tab.value(drawn) if s[0]]
            assert len(sizes) > 20 and all(min(s) > 50 for s in sizes)
            grounds = tab.value("getComputedStyle(document.body).backgroundColor")
            assert (grounds == "rgb(255, 255, 255)") != dark
            # words of charts lie within their pictures
            beyond = """[...document.querySelectorAll('figure svg text')].filter(t => {
                const a = t.getBoundingClientRect(), b = t.ownerSVGElement.getBoundingClientRect();
                return b.width && (a.left < b.left - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 1);
            }).map(t => t.textContent)"""
            assert tab.value(beyond) == []
            if media == "print":
                # paper does not scroll: tables are no wider than it
                wide = """[...document.querySelectorAll('table')].filter(t => !t.closest('details:not([open])')
                    && t.getBoundingClientRect().right > innerWidth + 1).map(t => t.innerText.slice(0, 80))"""
                assert tab.value(wide) == []
            # cells are drawn: their outlines are found
            cells = "[...document.querySelectorAll('use.cell')].filter(c => c.getBoundingClientRect().width > 1).length"
            assert tab.value(cells) > 10
        assert tab.complaints == []
        assert all(url.startswith(("file:", "data:")) for url in tab.requests)
