"""What a person types and sees: one line for what went wrong, exit codes, reasons."""

import gzip
import hashlib
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from skycairn.cli.main import app
from skycairn.pile.store import Pile
from skycairn.pipeline.recipe import BY_NAME, load

RECIPE = """
region = {{ kind = "cone", ra = {ra}, dec = -1.2, radius_deg = 0.5 }}
[surveys.gaia]
profile = "{profile}"
[split]
least = 0.0
[codecs]
fit_on = "any"
"""


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], env={"COLUMNS": "200", "TERM": "dumb"})


def refusal(result: Result) -> str:
    """The one line of a refusal."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if not line.endswith(" done")]
    assert len(lines) == 1, result.output
    assert lines[0].startswith("skycairn: ")
    assert "Traceback" not in result.output
    return lines[0]


def write(folder: Path, name: str = "mine.toml", ra: float = 0.0, profile: str = "all") -> Path:
    (folder / name).write_text(RECIPE.format(ra=ra, profile=profile))
    return folder / name


@pytest.fixture(scope="module")
def sky(tiny_sky: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gaia alone, whose archive names a file of the far side of the sky that is not there."""
    sky = tmp_path_factory.mktemp("cli") / "sky"
    shutil.copytree(tiny_sky / "gaia", sky / "gaia")
    return sky


@pytest.fixture(scope="module")
def built(sky: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    folder = tmp_path_factory.mktemp("built")
    return run("build", write(folder), "--root", sky, "--pile", folder / "pile", "--workers", 0), folder / "pile"


def test_the_closing_table(built: tuple[Result, Path]) -> None:
    result, pile = built
    assert result.exit_code == 0, result.output
    head = Pile.open(pile).head()
    assert head is not None
    assert head.content_id in result.output
    assert "tasks done" in result.output
    assert "gather: " in result.stderr
    assert sum(head.stats["splits"].values()) == 41


def test_a_second_build_says_that_nothing_had_changed(built: tuple[Result, Path], sky: Path, tmp_path: Path) -> None:
    pile = shutil.copytree(built[1], tmp_path / "pile")
    again = run("build", write(tmp_path), "--root", sky, "--pile", pile, "--workers", 0)
    assert again.exit_code == 0
    assert "0 tasks: nothing had changed" in again.output


def test_a_snapshot_of_outputs_that_were_there_is_told_as_new(sky: Path, tmp_path: Path) -> None:
    """The first build makes everything, and is refused for its splits: their cells lie where no source is."""
    recipe = write(tmp_path)
    text = recipe.read_text().replace("least = 0.0", "least = 0.1")
    region = 'region = { kind = "cells", order = 5, cells = [3, 6, 4351] }'
    recipe.write_text("\n".join([region, *text.splitlines()[2:]]))
    build = ("build", recipe, "--root", sky, "--pile", tmp_path / "pile", "--workers", 0)
    assert "wanted at least 10%" in refusal(run(*build))
    said = run(*build, "--allow-small-splits").output
    assert "0 tasks: all was made before, and is put together now; snapshot 1" in said
    assert "0 tasks: nothing had changed; snapshot 1" in run(*build, "--allow-small-splits").output


def test_a_region_without_a_cell_of_a_split_is_refused_before_any_work(sky: Path, tmp_path: Path) -> None:
    recipe = write(tmp_path)
    recipe.write_text(recipe.read_text().replace("least = 0.0", "least = 0.1"))
    said = run("build", recipe, "--root", sky, "--pile", tmp_path / "pile", "--workers", 0)
    assert "split validation can hold none of the objects, wanted at least 10%" in refusal(said)
    assert "--allow-small-splits" in said.stderr and "done" not in said.stderr
    assert not list((tmp_path / "pile").glob("receipts/*/*"))


def test_a_mock_sky_is_told_in_sentences(tiny_sky: Path) -> None:
    said = run("mock", "tiny", "--out", tiny_sky)
    assert said.exit_code == 0, said.output
    assert f"{tiny_sky}: the tiny mock sky, release 1, seed 0: 121 stars and galaxies" in said.stdout
    assert "desi 38, gaia 41, hsc 96" in said.stdout
    assert str(tiny_sky / "truth") in said.stdout
    assert "Summary" not in said.output


def test_dry_run_says_steps_and_reasons_and_does_nothing(built: tuple[Result, Path], sky: Path, tmp_path: Path) -> None:
    pile = shutil.copytree(built[1], tmp_path / "pile")

    def files() -> set[Path]:
        return {p for p in pile.rglob("*") if p.is_file()}

    before = files()
    same = run("build", write(tmp_path), "--root", sky, "--pile", pile, "--dry-run")
    assert same.exit_code == 0
    assert "Nothing to do" in same.output
    other = run("build", write(tmp_path, profile="strict"), "--root", sky, "--pile", pile, "--dry-run")
    assert other.exit_code == 0
    assert any("the cuts need" in x for x in other.output.splitlines()), other.output
    wider = run("build", write(tmp_path, ra=0.1), "--root", sky, "--pile", pile, "--dry-run")
    assert "setting region changed" in wider.output
    assert files() == before
    fresh = run("build", write(tmp_path), "--root", sky, "--pile", tmp_path / "new", "--dry-run")
    assert "never done" in fresh.output
    assert "fetch" in fresh.output
    assert not list((tmp_path / "new" / "receipts").rglob("*.json"))


@pytest.mark.parametrize("name", BY_NAME)
def test_a_built_in_recipe_is_printed_to_begin_with(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a recipe's own files lie beside it, a built-in one's where the command is run
    printed = run("recipe", name)
    assert printed.exit_code == 0, printed.output
    (tmp_path / "mine.toml").write_text(printed.stdout)
    assert load(str(tmp_path / "mine.toml")) == load(name)


def test_a_recipe_that_is_not_built_in_is_not_printed() -> None:
    assert "no recipe 'aoin' is built in; there are tiny, mock, mock-learned, aion" in refusal(run("recipe", "aoin"))


def test_status(built: tuple[Result, Path], tmp_path: Path) -> None:
    shown = run("status", built[1])
    assert shown.exit_code == 0
    assert "snapshot 1, content" in shown.output and "; 1 kept in all" in shown.output
    assert "gaia.slim" in shown.output
    assert "objects by split: train 41" in shown.output
    assert "is not a pile" in refusal(run("status", tmp_path))
    Pile.create(tmp_path / "empty")
    assert "No snapshot yet" in run("status", tmp_path / "empty").output


def test_verify(built: tuple[Result, Path], tmp_path: Path) -> None:
    assert run("verify", built[1]).exit_code == 0
    pile = Path(shutil.copytree(built[1], tmp_path / "pile"))
    opened = Pile.open(pile)
    head = opened.head()
    assert head is not None
    path = opened.path(head.entries("shards")[0].part)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-9])
    damaged = run("verify", pile)
    assert damaged.exit_code == 1
    assert path.name in damaged.output
    assert "1 problems" in damaged.output


def test_a_lost_catalogue_file_is_partial(built: tuple[Result, Path], sky: Path, tmp_path: Path) -> None:
    """A cone at each of two places of the sky; of one of them a file is listed and not there."""
    root = shutil.copytree(sky, tmp_path / "sky")
    sums = root / "gaia/gaia_source/_MD5SUM.txt"
    sums.write_text(sums.read_text() + f"{'0' * 32}  GaiaSource_000000-000031.csv.gz\n")
    recipe = write(tmp_path)
    cells = 'region = { kind = "cells", order = 6, cells = [0, 1, 17404, 17405, 17406, 17407] }'
    recipe.write_text("\n".join([cells, *recipe.read_text().splitlines()[2:]]))
    pile = tmp_path / "pile"
    result = run("build", recipe, "--root", root, "--pile", pile, "--workers", 0)
    assert result.exit_code == 3, result.output
    assert "held back: gaia/gaia_source/GaiaSource_000000-000031.csv.gz: listed by the archive" in result.output
    head, whole = Pile.open(pile).head(), Pile.open(built[1]).head()
    assert head is not None
    assert whole is not None
    assert {0, 1} <= set(head.held_back)
    assert not {17404, 17405, 17406, 17407} & set(head.held_back)
    assert sum(head.stats["splits"].values()) == sum(whole.stats["splits"].values())
    assert head.content_id != whole.content_id
    assert "held back" in run("status", pile).output
    # the file comes, without a source in the region, and nothing is held back any more
    header = [
        x
        for x in gzip.decompress(next((root / "gaia/gaia_source").glob("*.gz")).read_bytes()).decode().splitlines()
        if x.startswith("#") or "source_id" in x
    ]
    file = root / "gaia/gaia_source/GaiaSource_000000-000031.csv.gz"
    file.write_bytes(gzip.compress("\n".join(header).encode() + b"\n"))
    sums.write_text(sums.read_text().replace("0" * 32, hashlib.md5(file.read_bytes()).hexdigest()))
    assert run("build", recipe, "--root", root, "--pile", pile, "--workers", 0).exit_code == 0
    last = Pile.open(pile).head()
    assert last is not None
    assert last.content_id == whole.content_id


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("gaia", "gaya"), "unknown survey 'gaya'"),
        (("profile", "profil"), "there is no option 'profil'"),
        (('"all"', '"best"'), "unknown profile 'best'"),
        (("least", "lest"), "unknown key 'lest'"),
        (("radius_deg = 0.5", "radius_deg = 0.0"), "wanted above 0"),
        (("ra = 0.0", "ra = 100.0"), "no survey has a valid source in the region"),
        (("region =", "region"), "not TOML"),
    ],
)
def test_a_fault_in_the_recipe_is_one_line(sky: Path, tmp_path: Path, change: tuple[str, str], says: str) -> None:
    recipe = write(tmp_path)
    recipe.write_text(recipe.read_text().replace(*change))
    assert says in refusal(run("build", recipe, "--root", sky, "--pile", tmp_path / "pile", "--workers", 0))
    assert not list(tmp_path.glob("pile/snapshots/*"))


def test_other_refusals(sky: Path, tmp_path: Path) -> None:
    recipe = write(tmp_path)
    assert "no recipe 'none.toml'" in refusal(run("build", "none.toml", "--pile", tmp_path / "pile"))
    assert "where the files of gaia come from is not said" in refusal(
        run("build", recipe, "--pile", tmp_path / "pile", "--workers", 0)
    )
    args = ("--root", tmp_path / "no", "--pile", tmp_path / "pile", "--workers", 0)
    assert f"--root {tmp_path / 'no'}: no such folder; it is the folder that" in refusal(run("build", recipe, *args))
    (tmp_path / "empty").mkdir()
    args = ("--root", tmp_path / "empty", "--pile", tmp_path / "pile", "--workers", 0)
    assert "empty/gaia: no such folder; set surveys.gaia.root" in refusal(run("build", recipe, *args))
    args = ("--root", sky, "--pile", tmp_path, "--workers", 0)
    assert "is not a pile" in refusal(run("build", recipe, *args))
    args = ("--root", sky, "--pile", tmp_path / "pile", "--workers", -1)
    assert "workers" in refusal(run("build", recipe, *args))
    assert "there is no tier 'huge'" in refusal(run("mock", "huge", "--out", tmp_path / "mock"))
    assert not (tmp_path / "mock").exists()


def test_targets_and_codecs_by_option(built: tuple[Result, Path], sky: Path, tmp_path: Path) -> None:
    opened = Pile.open(built[1])
    head = opened.head()
    assert head is not None
    slim = opened.read_table(head.entries("gaia.slim")[0].part)
    (tmp_path / "mine.csv").write_text(f"id,ra,dec\nA,{slim['ra'][0].as_py()},{slim['dec'][0].as_py()}\n")
    args = ("--root", sky, "--pile", tmp_path / "pile", "--workers", 0)
    done = run("build", write(tmp_path), *args, "--targets", tmp_path / "mine.csv", "--codecs-from", built[1])
    assert done.exit_code == 0, done.output
    opened = Pile.open(tmp_path / "pile")
    head = opened.head()
    assert head is not None
    rows = [r for e in head.entries("objects") for r in opened.read_table(e.part).to_pylist()]
    assert [r["targets.id"] for r in rows if r["targets.id"]] == ["A"]
    assert (tmp_path / "pile/codecs.lock").read_bytes() == (built[1] / "codecs.lock").read_bytes()


def test_export_writes_hdf5_and_a_manifest(tiny_pile: Path, tmp_path: Path) -> None:
    from skycairn.pile.export import Export

    first = run("export", "hdf5", tiny_pile, "--out", tmp_path / "h5")
    assert first.exit_code == 0, first.output
    export = Export.open(tmp_path / "h5")
    assert f"{len(export.entries)} files, {export.n_rows} objects; {len(export.entries)} files written" in first.output
    assert "; 0 files written now" in run("export", "hdf5", tiny_pile, "--out", tmp_path / "h5").output
    assert "has no split 'dusk'" in refusal(
        run("export", "hdf5", tiny_pile, "--out", tmp_path / "x", "--split", "dusk")
    )
