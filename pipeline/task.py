"""A unit of work: what it is made of, and what it leaves behind."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skycairn.archives.files import SurveyArchive
from skycairn.archives.sources import SOURCES, open_archive
from skycairn.catalogs.survey import RemoteFile, Survey
from skycairn.pile.store import Part, Pile
from skycairn.pipeline import recipe as recipes


class Unclosed(Exception):
    """Rows in are not rows kept plus rows dropped."""


@dataclass(frozen=True)
class Task:
    """One unit of work. `settings` and `inputs` decide its outcome and its key; `args` say where the inputs lie."""

    step: str
    label: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    "content of each input, by name"
    args: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    why: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a step leaves behind."""

    outputs: Mapping[str, Part] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What every step may use: the pile and the recipe."""

    pile: Pile
    recipe: recipes.Recipe

    @functools.cached_property
    def _surveys(self) -> dict[str, Survey]:
        return {c.name: c.survey() for c in self.recipe.surveys}

    @functools.cached_property
    def _archives(self) -> dict[str, SurveyArchive]:
        return {}

    def survey(self, name: str) -> Survey:
        """The survey of this name, of the recipe's release."""
        return self._surveys[name]

    def archive(self, name: str) -> SurveyArchive:
        """Where the survey's files come from."""
        if name not in self._archives:
            choice = self.recipe.choice(name)
            if not choice.source:
                raise ValueError(
                    f"recipe {self.recipe.name}: where the files of {name} come from is not said; give --root, the "
                    f"folder that holds a copy of each survey's archive, or set surveys.{name}.source to one of "
                    f"{', '.join(SOURCES)}"
                )
            self._archives[name] = open_archive(
                self.survey(name), choice.source, choice.root, choice.url, self.recipe.download
            )
        return self._archives[name]

    def boxes(self, survey: Survey, reference: Mapping[str, str], known: Mapping[str, Any]) -> NDArray[np.float64]:
        """Footprint of an `exact` survey (`Survey.coverage`), from its reference files by role."""
        archive = self.archive(survey.name)
        with archive.unchanged(known):
            return survey.coverage({role: archive.local(path) for role, path in reference.items()})

    def look_again(self) -> None:
        """Forget how survey files were found: a process may outlive a build."""
        for archive in self._archives.values():
            archive.look_again()


@functools.lru_cache(maxsize=4)
def context(pile: str, recipe: str) -> Context:
    """The context of this pile and this recipe (JSON), made once a process."""
    import json

    return Context(Pile.open(Path(pile)), recipes.parse(json.loads(recipe), "recipe"))


def files_of(task: Task) -> dict[str, list[str]]:
    """Paths of the survey files that a task reads, by survey."""
    known, survey = task.args.get("known", {}), task.args.get("survey")
    if task.step == "fetch":
        return {task.args["survey"]: [task.settings["path"]]}
    if task.step == "fetch payload":
        return {task.args["survey"]: [path for path, _, _ in task.settings["files"]]}
    return {survey: list(known)} if survey else {name: list(paths) for name, paths in known.items()}


def file_as_json(file: RemoteFile) -> list[Any]:
    """A file without its companions, as plain values."""
    return [file.path, file.checksum_list, file.algorithm]


def file_from_json(values: list[Any]) -> RemoteFile:
    """The reverse of `file_as_json`."""
    return RemoteFile(values[0], values[1], values[2])


def concat(tables: list[pa.Table]) -> pa.Table:
    """Tables of one schema below each other, in one chunk."""
    return pa.concat_tables(tables).combine_chunks()


def pieces_of(pile: Pile, part: str) -> Iterator[pa.Table]:
    """A table in pieces that fit into memory: its row groups."""
    with pile.open_parquet(part) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)


def int64(table: pa.Table, name: str) -> NDArray[np.int64]:
    """A column of integers without nulls."""
    return np.asarray(table.column(name).combine_chunks().to_numpy(zero_copy_only=False), dtype=np.int64)


def float64(table: pa.Table, name: str) -> NDArray[np.float64]:
    """A column of numbers, null as NaN."""
    column = table.column(name).combine_chunks().cast(pa.float64())
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)


def close(counts: Mapping[str, int], into: str, *parts: str, where: str) -> None:
    """Unclosed unless the count `into` is the sum of `parts`; a part that ends in `:` stands for all that begin so."""
    total = 0
    for part in parts:
        total += sum(v for k, v in counts.items() if (k.startswith(part) if part.endswith(":") else k == part))
    if counts[into] != total:
        raise Unclosed(f"{where}: {counts[into]} {into}, {total} accounted for by {', '.join(parts)}: {dict(counts)}")
