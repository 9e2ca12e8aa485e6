"""Damage in a standing pile: found, made anew from its inputs, or said to be past repair and why."""

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from skycairn.cli.main import app
from skycairn.pile.files import PileError
from skycairn.pile.store import Part, Pile
from skycairn.pipeline.engine import Engine
from skycairn.pipeline.recipe import Recipe
from skycairn.pipeline.repair import repair
from skycairn.pipeline.run import build


@pytest.fixture
def copy(tiny_pile: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pile, tmp_path / "pile"))


def parts_of(pile: Pile) -> list[Part]:
    """Every part that a snapshot or a receipt names, once."""
    named = [*pile.snapshot().parts(), *(p for r in pile.receipts() for p in r.outputs.values())]
    return sorted({p.sha256: p for p in named if p.n_bytes}.values(), key=lambda p: p.sha256)


def damage(pile: Pile, part: Part, bit: int | None, n_bytes: int = 0) -> None:
    path = pile.path(part)
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    if bit is None:
        data = data[:n_bytes]
    else:
        data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def is_read(pile: Pile, part: Part) -> bool:
    """Whether a reader takes the part for what it is."""
    try:
        if part.suffix == ".parquet":
            pile.read_table(part)
        else:
            pile.read_bytes(part)
    except PileError:
        return False
    return True


def test_fault_22_bits_flip_and_files_are_cut_short(tiny_recipe: Recipe, copy: Path) -> None:
    """200 flipped bits and 50 truncations: each found by `verify` and by a reader, all made anew, byte for byte."""
    chance = random.Random(22)
    pile = Pile.open(copy)
    before = pile.snapshot()
    everything = parts_of(pile)
    chance.shuffle(everything)
    flipped, cut = everything[:200], everything[200:250]
    assert len(flipped) == 200 and len(cut) == 50
    whole = {p.sha256: pile.path(p).read_bytes() for p in (*flipped, *cut)}
    for part in flipped:
        damage(pile, part, chance.randrange(8 * part.n_bytes))
    for part in cut:
        damage(pile, part, None, chance.randrange(part.n_bytes))
    opened = Pile.open(copy)
    found = opened.verify(deep=True)
    assert {p.part.sha256 for p in found.problems if p.part} == set(whole)
    assert not any(is_read(opened, part) for part in (*flipped, *cut))
    mended = repair(opened, found, Engine())
    assert not mended.unrepairable
    assert set(mended.mended) == set(whole)
    assert {sha256: opened.path(p).read_bytes() for p in (*flipped, *cut) if (sha256 := p.sha256)} == whole
    again = Pile.open(copy)
    assert again.verify(deep=True).sound
    assert again.snapshots() == [before.number], "a repair makes no snapshot"
    assert build(tiny_recipe, copy).n_tasks == 0


def test_what_upstream_changed_is_past_repair(tiny_sky: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    sky, pile = Path(shutil.copytree(tiny_sky, tmp_path / "sky")), tmp_path / "pile"
    recipe = replace(tiny_recipe, surveys=(replace(tiny_recipe.choice("desi"), root=str(sky / "desi")),))
    build(recipe, pile)
    opened = Pile.open(pile)
    entry = max(opened.snapshot().entries("payload.desi.spectrum"), key=lambda e: e.part.n_rows)
    damage(opened, entry.part, 12345)
    for path in (sky / "desi").rglob("coadd-*.fits"):
        path.unlink()
    found = opened.verify()
    mended = repair(Pile.open(pile), found, Engine())
    assert mended.mended == ()
    (reason,) = mended.unrepairable.values()
    assert reason == f"extract desi.spectrum cell {entry.labels['cell']}: the files changed since it was made"
    assert not Pile.open(pile).verify().sound
    # a new snapshot says what is there now, and is whole
    built = build(recipe, pile)
    assert built.snapshot.number == 2 and built.lost
    assert not [p for p in Pile.open(pile).verify().problems if p.part and p.part in set(built.snapshot.parts())]


def test_receipts_and_snapshots_are_mended_too(tiny_recipe: Recipe, copy: Path) -> None:
    opened = Pile.open(copy)
    content = opened.snapshot().content_id
    receipt = opened.receipt_files()[3]
    for path in (receipt, copy / "snapshots" / f"{1:020d}.json"):
        path.chmod(0o644)
        path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    found = opened.verify()
    assert {p.kind for p in found.problems} == {"receipt", "snapshot"}
    repair(Pile.open(copy), found, Engine())
    assert receipt.is_file()
    assert build(tiny_recipe, copy).snapshot.content_id == content
    assert Pile.open(copy).verify().sound


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], env={"COLUMNS": "200", "TERM": "dumb"})


def test_verify_and_repair_by_the_command(copy: Path) -> None:
    opened = Pile.open(copy)
    part = opened.snapshot().entries("objects")[0].part
    damage(opened, part, 77)
    assert run("verify", copy).exit_code == 1
    mended = run("verify", copy, "--repair", "--workers", 0)
    assert mended.exit_code == 0, mended.output
    assert "1 parts made anew" in mended.output and "set aside in quarantine" in mended.output
    assert run("verify", copy).exit_code == 0
