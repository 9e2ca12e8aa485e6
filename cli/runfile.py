"""What a training run is asked for: a file of TOML, or a pile and what does well on a small one."""

from __future__ import annotations

import ast
import inspect
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from skycairn.model import rules, settings, strata
from skycairn.model.settings import Settings
from skycairn.pipeline.toml import key_of, toml_of

SMALL: Mapping[str, Any] = {
    "objects": 64,
    "microbatches": 1,
    "smooth": True,
    "pairs": True,
    "counted": 100_000,
    "dropout": 0.15,
    "checked": 16,
    "weights": {"matched": 3.0},
    "masking": {
        "inputs": 48,
        "targets": 24,
        "across_surveys": 0.35,
        # most numbers of an object are now shown, now asked for; images starve none
        "components": [
            {"rule": "beta", "fair": True, "weight": 2.0},
            {"rule": "dirichlet", "input_alpha": 0.2, "target_alpha": 1.0, "weight": 1.0},
        ],
    },
}
"""Settings for a pile of a few thousand objects, of which few can be learned from each other; the rest as they are."""


class PileOf(NamedTuple):
    """A pile, or an export of one."""

    path: Path
    snapshot: str = ""
    "number, tag or head; empty: that of the run in `out`, or the newest where there is none"


@dataclass(frozen=True)
class RunFile:
    """All that a run hangs on, and where it goes."""

    piles: Mapping[str, PileOf]
    out: Path = Path("work/model")
    device: str = "auto"
    threads: int = 0
    score: bool = True
    start: str = ""
    "exported model, or AION-1's, whose weights a new run begins from; empty: at random"
    settings: Settings = field(default_factory=Settings)


def read_run(path: Path) -> RunFile:
    """The run of a file; that of a folder is of the pile there, and small. ValueError says which key is wrong."""
    if path.is_dir():
        return small(path)
    try:
        given = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: there is no such file or folder; wanted a pile, or a file as `skycairn-train config` prints"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: is no TOML ({error}); `skycairn-train config` prints a file to begin with"
        ) from error
    try:
        return parsed(given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def small(pile: Path) -> RunFile:
    """A run on one small pile."""
    return RunFile({pile.name or "pile": PileOf(pile)}, settings=Settings.from_json(SMALL))


def parsed(given: Mapping[str, Any]) -> RunFile:
    """From the plain values of a file."""
    rest = dict(given)
    kinds = {"piles": dict, "out": str, "device": str, "threads": int, "score": bool, "start": str, "settings": dict}
    _known("the file", rest, kinds)
    piles = {}
    for name, about in rest.pop("piles", {}).items():
        if not isinstance(about, dict):
            raise ValueError(f"piles.{name} is {about!r}; wanted a table: [piles.{name}] and under it path = ...")
        # a number is as good as its text
        about = {k: str(v) if k == "snapshot" and type(v) is int else v for k, v in about.items()}
        _known(f"[piles.{name}]", about, {"path": str, "snapshot": str})
        if "path" not in about:
            raise ValueError(f"[piles.{name}] has no path; wanted the folder of a pile or of an export")
        piles[name] = PileOf(Path(about["path"]), about.get("snapshot", ""))
    if not piles:
        raise ValueError("it names no pile; wanted [piles.NAME] and under it path = ...")
    if "out" in rest:
        rest["out"] = Path(rest["out"])
    return RunFile(piles, **{**rest, "settings": Settings.from_json(rest.get("settings", {}))})


def _known(where: str, given: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    if unknown := sorted(set(given) - set(kinds)):
        raise ValueError(f"{where} has {', '.join(unknown)}; wanted some of {', '.join(kinds)}")
    for key, value in given.items():
        if type(value) is not kinds[key]:
            raise ValueError(f"{where}: {key} is {value!r}; wanted {kinds[key].__name__}")


HEAD = """# What `skycairn-train FILE` reads. Paths are seen from where the command is run.

# folder for checkpoints, metrics and the evaluation
out = {out}
# cpu, cuda, cuda:1, ...; auto takes a GPU where there is one
device = "auto"
# CPU threads; 0 leaves it to torch; 1 where cores are shared
threads = 0
# whether the model is scored on the test sky when it is trained
score = true
# an exported model, a folder of AION-1's or its name on the Hub, whose weights a new run begins from; empty: at random
start = ""

# a pile or an export of one, by any name; there may be several, whose codecs must be the same
[piles.{name}]
path = {path}
# number, tag or head; empty: a run that goes on keeps to its own, a new one takes head
snapshot = ""
"""


def as_text(run: RunFile) -> str:
    """A run of one pile as a file, each key under what it means."""
    ((name, pile),) = run.piles.items()
    quoted = {"name": key_of(name), "path": quote(str(pile.path)), "out": quote(str(run.out))}
    plain = run.settings.as_json()
    parts = [HEAD.format(**quoted), _table("settings", plain, described(settings, "Settings"))]
    masking = plain["masking"]
    parts.append(_table("settings.masking", masking, described(rules, "Masking")))
    parts.append(f"# rules are {', '.join(rules.COMPONENTS)}; several are mixed by their weights\n")
    for component in masking.pop("components"):
        kind = rules.COMPONENTS[component["rule"]].__name__
        parts.append(_table("[settings.masking.components]", component, described(rules, kind)))
    parts.append(_table("settings.weights", plain["weights"], described(strata, "Weights")))
    return "\n".join(parts)


def quote(text: str) -> str:
    """As TOML quotes it."""
    return toml_of({"x": text}).removeprefix("x = ").rstrip("\n")


def _table(name: str, values: Mapping[str, Any], told: Mapping[str, str]) -> str:
    lines = [f"[{name}]"]
    for key, value in values.items():
        if key == "components" or (isinstance(value, Mapping) and value):
            continue
        lines += [f"# {told[key]}"] if key in told else []
        lines.append(f"{key} = {{}}" if value == {} else toml_of({key: value}).rstrip("\n"))
    return "\n".join(lines) + "\n"


def described(module: Any, name: str) -> dict[str, str]:
    """What a class of a module says of its fields: the strings under them."""
    body = next(
        node.body
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.ClassDef) and node.name == name
    )
    out = {}
    for line, after in pairwise(body):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(after, ast.Expr):
            if isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
                out[line.target.id] = " ".join(after.value.value.split())
    return out
