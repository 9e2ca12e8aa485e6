"""The rules of the house: direction of imports, flat folders, safe names, an honest README."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (
    *("catalogs", "archives", "mocksky", "mirror", "tokenizers", "pile"),
    *("match", "pipeline", "model", "report", "cli"),
)
MAY_IMPORT = {
    "catalogs": set(),
    "tokenizers": set(),
    "pile": set(),
    "archives": {"catalogs", "pile"},
    "mocksky": {"catalogs"},
    "mirror": {"catalogs"},
    "match": {"pile"},
    "pipeline": {"catalogs", "archives", "tokenizers", "pile", "match"},
    "model": {"tokenizers", "pile"},
    "report": {"catalogs", "pile", "match", "pipeline"},
    "cli": set(FOLDERS),
}
FILES = sorted(p for f in FOLDERS for p in (ROOT / f).glob("*.py"))


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
        elif isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_imports_follow_the_arrows(path: Path) -> None:
    folder = path.parent.name
    ours = {n.split(".")[1] for n in imports(path) if n.startswith("skycairn.")}
    assert ours <= MAY_IMPORT[folder] | {folder}
    assert not {n.split(".")[0] for n in imports(path)} & set(FOLDERS), "import skycairn.<folder>, not the bare name"


def test_only_the_engine_knows_dask() -> None:
    knowing = [p for p in FILES if {n.split(".")[0] for n in imports(p)} & {"dask", "distributed"}]
    assert [p.relative_to(ROOT).as_posix() for p in knowing] == ["pipeline/engine.py"]


def test_no_pickle() -> None:
    for path in FILES:
        found = {n.split(".")[0] for n in imports(path)} & {"pickle", "dill", "joblib", "cloudpickle", "shelve"}
        assert not found, f"{path}: {found}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_are_flat_and_safe_to_name(folder: str) -> None:
    for path in (ROOT / folder).iterdir():
        assert path.name == "__pycache__" or path.is_file(), f"{path}: a sub-folder would be missing from the wheel"
        assert path.name != "__init__.py", "a bare `import tokenizers` must find the other package of that name"
        assert path.stem not in sys.stdlib_module_names, f"{path} would hide a module of the standard library"
        assert path.stem not in {"utils", "helpers", "base", "common"}


def test_tests_mirror_the_folders() -> None:
    for path in (ROOT / "tests").glob("*/test_*.py"):
        assert path.parent.name in FOLDERS


def test_a_worker_imports_no_torch_to_plan_and_match() -> None:
    code = "import skycairn.pipeline.match, skycairn.pipeline.partition, sys; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_fault_has_a_test_of_its_number() -> None:
    """Of disks, processes, clocks, downloads, files, rows and malice."""
    named: set[int] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for numbers in re.findall(r"^def test_faults?_((?:\d\d_(?:and_)?)+)", path.read_text(), flags=re.M):
            named |= {int(n) for n in re.findall(r"\d\d", numbers)}
    assert set(range(1, 57)) <= named, sorted(set(range(1, 57)) - named)


README = (ROOT / "README.md").read_text()


def test_readme_names_every_verb_of_the_makefile() -> None:
    verbs = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.M))
    missing = {v for v in verbs if f"make {v}" not in README} - {"help"}
    assert not missing


def test_readme_tree_is_the_tree() -> None:
    tree = README.split("<!-- tree -->")[1]
    said: set[str] = set()
    folder = ""
    for line in tree.splitlines():
        if found := re.match(r"^(\w+)/", line):
            folder = found[1]
        said |= {f"{folder}/{name}" for name in re.findall(r"\b(\w+\.py)\b", line)}
    real = {p.relative_to(ROOT).as_posix() for p in FILES}
    assert said == real


def test_readme_commands_exist() -> None:
    from typer.main import get_command

    from skycairn.cli.main import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    used = set(re.findall(r"^(?:\$ )?(?:\.venv/bin/)?skycairn ([a-z-]+)", README, flags=re.M))
    assert used and used <= known
    assert known <= set(re.findall(r"skycairn ([a-z-]+)", README)), "a command that the README does not name"
