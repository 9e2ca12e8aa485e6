"""`skycairn-train translate`: what it asks for, what it tells of answers that are known, and its pictures."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from matplotlib.image import imread
from typer.testing import CliRunner

from skycairn.cli import translating
from skycairn.cli.translating import Translated, markdown, modalities, numbers, pictured
from skycairn.cli.translationpicture import drawn
from skycairn.model.translation import Measured

NAMES = ("desi.spectrum", "desi.z", "gaia.xp_bp", "hsc.image", "hsc.mag_g", "legacysurvey.flux_g", "legacysurvey.image")
MODEL = SimpleNamespace(vocabulary=SimpleNamespace(names=NAMES))


def translated(images: bool) -> Translated:
    """Ten objects whose draws are what was measured, give or take a tenth or two; neighbours are twice as bright."""
    rng = np.random.default_rng(0)
    if images:
        y, x = np.indices((40, 40)) - 20
        true = np.exp(-(x**2 + y**2) / 20)[None, None] * rng.uniform(1, 5, (10, 5, 1, 1))
    else:
        wavelength = np.arange(3600.0, 9800.0, 0.8)
        line = np.exp(-0.5 * ((wavelength - 5008.24 * 1.1) / 2.5) ** 2)
        true = rng.uniform(5, 20, (10, 1)) * (1 + line)
    flat = [1] * (true.ndim - 1)
    level = 1 + 0.1 * rng.normal(size=(10, 6, *flat)) + 0.1 * rng.normal(size=(10, 1, *flat))
    draws = (true[:, None] * level).astype(np.float32)
    data = Measured(true + 0.01 * rng.normal(size=true.shape), np.full(true.shape, 1e4), np.ones(true.shape, bool))
    answers = {
        "model, median of draws": np.median(draws, axis=1),
        "nearest neighbour": 2 * true.astype(np.float32),
        "no light": np.zeros(true.shape, np.float32),
        "its own tokens": true.astype(np.float32),
    }
    return Translated(
        "hsc.image" if images else "desi.spectrum",
        ("legacysurvey.image",) if images else ("gaia.xp_bp",),
        [f"gaia:{i}" for i in range(10)],
        data,
        draws,
        answers,
        None if images else wavelength,
        np.full(10, 0.1),
        tuple("grizy") if images else (),
        "nanomaggy",
        true[:, :4].astype(np.float32) if images else None,
        ("g", "r", "i", "z") if images else (),
    )


@pytest.mark.parametrize("images", [True, False])
def test_numbers_and_a_picture_of_answers_that_are_known(images: bool, tmp_path: Path) -> None:
    found = translated(images)
    told = numbers(found)
    ours, other, dark, _ = (told[who] for who in found.answers)
    assert ours["residual"]["chi"] < other["residual"]["chi"] and ours["residual"]["objects"] == 10
    assert dark.keys() == {"residual"}
    assert 0.2 < ours["coverage"]["share"] < 0.95
    if images:
        assert abs(ours["light"]["flux"]) < 0.2 and other["light"]["flux"] == pytest.approx(1.0, abs=0.01)
        assert abs(other["light"]["colour"]) < 0.01
    else:
        assert ours["lines"]["lines"] == 10 and ours["lines"]["lost"] == 0
        assert ours["lines"]["shift_pixels"] < 0.1 and ours["lines"]["velocity"] < 5
    text = markdown(found, told)
    assert text.startswith(f"{found.target} of 10 objects of the test sky from {found.shown[0]}.")
    assert f"| nearest neighbour | 10 | {other['residual']['chi']:.2f} |" in text
    assert "lie within the middle 68 % of 6 draws" in text
    rows = pictured(found)
    assert len(rows) == 6
    drawn(found, rows, tmp_path / "picture.png")
    picture = imread(tmp_path / "picture.png")
    assert picture.shape[1] == 1350 and 0.05 < (picture[..., :3] < 0.9).any(axis=2).mean()


def test_from_names_surveys_or_modalities_and_to_names_pixels() -> None:
    assert modalities(MODEL, "legacysurvey", "hsc.image") == ("legacysurvey.flux_g", "legacysurvey.image")
    assert modalities(MODEL, "gaia.xp_bp,legacysurvey.image", "desi.spectrum") == ("gaia.xp_bp", "legacysurvey.image")
    for source, target, said in (
        ("legacysurvey", "hsc.mag_g", "wanted one of desi.spectrum, hsc.image, legacysurvey.image"),
        ("sdss", "hsc.image", "FROM is 'sdss'; wanted one of desi, gaia, hsc, legacysurvey, or of desi.spectrum"),
        ("legacysurvey,sdss", "hsc.image", "FROM is 'sdss'"),
        ("hsc.mag_g", "hsc.image", "are of one survey, which would show what is asked for"),
    ):
        with pytest.raises(ValueError, match=said):
            modalities(MODEL, source, target)


@dataclass
class Opened:
    root: Path

    def snapshot(self) -> Any:
        return SimpleNamespace(content_id="abc")


def test_the_command_writes_numbers_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from skycairn.model.model import Model
    from skycairn.pile.store import Pile

    monkeypatch.setattr(Model, "load", lambda folder, device: MODEL)
    monkeypatch.setattr(Pile, "open", lambda folder: Opened(folder))
    monkeypatch.setattr(translating, "translated", lambda *_: translated(True))
    app = typer.Typer()
    app.command()(translating.translate)
    given = ["model", "pile", "legacysurvey", "hsc.image", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert {p.name for p in (tmp_path / "out").iterdir()} == {f"translation.{e}" for e in ("md", "json", "png")}
    assert "| nearest neighbour | 10 |" in result.output
    assert CliRunner().invoke(app, [*given, "--samples", "0"]).exit_code == 1
