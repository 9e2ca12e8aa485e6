"""All that decides a pile: surveys, releases, roots, region, cuts, radii, split, payload, codecs.

A recipe is a TOML file with strict keys, or one of `BY_NAME`. What decides the content goes into task keys; where the
files lie (`root`) does not.
"""

from __future__ import annotations

import inspect
import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from skycairn.archives.sources import SOURCES, Download, default_cache
from skycairn.catalogs.registry import SURVEYS, survey
from skycairn.catalogs.survey import Survey, first_failed, meant, unknown_option
from skycairn.match.posterior import FOUND, OUTLIERS
from skycairn.match.sky import moc_text
from skycairn.pipeline.region import Region, from_settings

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class SurveyChoice:
    """One survey as the recipe wants it."""

    name: str
    release: str
    profile: str
    root: str
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    "where its files come from, one of `SOURCES`; `root` where a root is named"
    url: str = ""
    "another address than the archive's own: of a mirror with the same layout, or of a HATS collection"

    def survey(self) -> Survey:
        """The survey itself."""
        return survey(self.name, self.release, **self.options)


@dataclass(frozen=True)
class Match:
    """How sources become objects."""

    radius_arcsec: float = 1.0
    pairs: Mapping[str, float] = field(default_factory=dict)
    "radius in arcsec for a pair of surveys, named `a-b`"
    on: str = "valid"
    "`valid`: all sources that can be trusted; `selected`: only those that the science cuts want, as AION-1 did"
    ids: bool = True
    "rows that name a row of another survey by its id are taken first, where the positions bear them out"

    policy: str = "nearest"
    "`nearest`: pairs that are nearest on both sides; `posterior`: those that are the likeliest on both sides"
    found: Mapping[str, float] = field(default_factory=dict)
    "for a pair of surveys, named `a-b`: the share of the sparser one's sources that have a counterpart in the other"

    outliers: float = OUTLIERS
    "share of true pairs that lie farther apart than their errors say"
    errors: Mapping[str, float] = field(default_factory=dict)
    "for a survey: arcsec an axis, added in quadrature to its rows' own errors, or alone where they have none"

    def share(self, a: str, b: str) -> float:
        """That share for this pair of surveys."""
        return float(self.found.get(f"{a}-{b}", self.found.get(f"{b}-{a}", FOUND)))

    def radius(self, a: str, b: str) -> float:
        """Radius of this pair of surveys, arcsec."""
        return float(self.pairs.get(f"{a}-{b}", self.pairs.get(f"{b}-{a}", self.radius_arcsec)))


@dataclass(frozen=True)
class Split:
    """How the sky is divided between training, validation and test."""

    salt: str = "skycairn"
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    least: float = 0.1
    "a validation or test split with a smaller share of the objects fails the build; 0 lets it pass"

    def by_name(self) -> dict[str, float]:
        """Fraction of each split, in order."""
        return dict(zip(SPLITS, self.fractions, strict=True))


@dataclass(frozen=True)
class Payload:
    """Which pixels and spectra stay in the pile once they are tokens."""

    keep: str = "auto"
    "all | none | sample | auto: all below `limit_bytes` a modality, else sample"
    sample: int = 10_000
    "sources a modality that `sample` keeps; where they are of the training sky, a tenth as many of the validation sky"
    limit_bytes: int = 20_000_000_000

    def n_held(self) -> int:
        """Sources of the validation sky that `sample` keeps beside those of the training sky."""
        return -(-self.sample // 10)


@dataclass(frozen=True)
class Codecs:
    """How codecs are fitted where no lock names them."""

    lock: str = ""
    "a codecs.lock, or a pile that holds one, whose codecs to use"
    fit_on: str = "train"
    "train | any: `any` also takes sources of the other splits, for piles too small to spare them"
    fit_rows: int = 200_000
    fit_payload_rows: int = 1_000
    scalars: str = "sample"
    "sample | sketch: what codecs of columns are fitted to, `fit_rows` sources or the distribution of all"


@dataclass(frozen=True)
class Shards:
    """How shards lie on disk; no part of the content."""

    row_group_rows: int = 8_192
    order: int = 3
    "HEALPix order of the cells whose objects share a shard"


@dataclass(frozen=True)
class Recipe:
    """All that decides a pile."""

    name: str
    surveys: tuple[SurveyChoice, ...]
    region: Region
    match: Match = Match()
    split: Split = Split()
    payload: Payload = Payload()
    codecs: Codecs = Codecs()
    shards: Shards = Shards()
    download: Download = field(default_factory=Download)

    def choice(self, name: str) -> SurveyChoice:
        """The choice of the survey of this name."""
        return next(c for c in self.surveys if c.name == name)

    def reach_arcsec(self) -> float:
        """How far from a source its pixels and its counterparts may lie: half a cut-out's diagonal and a radius."""
        cutouts = [
            float(np.hypot(m.shape[-1], m.shape[-2])) / 2 * m.pixel_arcsec
            for c in self.surveys
            for m in c.survey().modalities
            if m.pixel_arcsec
        ]
        return max(cutouts, default=0.0) + max([self.match.radius_arcsec, *self.match.pairs.values()])

    def at(self, root: Path) -> Recipe:
        """The same recipe with each survey's root in a folder of its name below `root`."""
        moved = tuple(
            c if c.root or c.source not in ("", "root") else replace(c, root=str(root / c.name), source="root")
            for c in self.surveys
        )
        return replace(self, surveys=moved)

    def rootless(self) -> dict[str, Any]:
        """The settings less where files lie, as a snapshot holds them: it names no place."""
        settings = self.settings()
        for chosen in settings["surveys"].values():
            for place in PLACE:
                chosen.pop(place)
        settings["codecs"].pop("lock")
        settings.pop("download")
        plain: dict[str, Any] = json.loads(canonical(settings))
        return plain

    def settings(self) -> dict[str, Any]:
        """As `parse` takes it."""
        surveys = {
            c.name: {
                **{"release": c.release, "profile": c.profile, **c.options},
                **{place: getattr(c, place) for place in PLACE},
            }
            for c in self.surveys
        }
        return {
            "name": self.name,
            "region": self.region.settings(),
            "surveys": surveys,
            "match": {
                **vars(self.match),
                "pairs": dict(self.match.pairs),
                "found": dict(self.match.found),
                "errors": dict(self.match.errors),
            },
            "split": {**vars(self.split), "fractions": list(self.split.fractions)},
            "payload": dict(vars(self.payload)),
            "codecs": dict(vars(self.codecs)),
            "shards": dict(vars(self.shards)),
            "download": dict(vars(self.download)),
        }


SECTIONS = ("match", "split", "payload", "codecs", "shards", "download")
PLACE = ("root", "source", "url")
"""Keys of a survey that say where its files lie, and nothing of what is in them."""
ALL_SKY = {"kind": "cells", "order": 0, "cells": list(range(12))}
MOCK: dict[str, Any] = {
    "name": "mock",
    "region": ALL_SKY,
    "surveys": {
        "legacysurvey": {"release": "dr10", "profile": "aion"},
        "hsc": {"release": "pdr3-wide", "profile": "aion"},
        "gaia": {"release": "dr3", "profile": "aion"},
        "desi": {"release": "dr1", "profile": "strict"},
        "sdss": {"release": "dr17", "profile": "strict"},
    },
    "split": {"salt": "mock-17", "fractions": [0.6, 0.2, 0.2]},
}
AION: dict[str, Any] = {
    "name": "aion",
    "region": ALL_SKY,
    "surveys": {
        "legacysurvey": {"release": "dr10", "profile": "aion"},
        "hsc": {"release": "pdr3-wide", "profile": "aion"},
        "gaia": {"release": "dr3", "profile": "aion"},
        "desi": {"release": "edr", "profile": "aion"},
        "sdss": {"release": "dr17", "profile": "aion"},
    },
    "match": {"radius_arcsec": 1.0},
}
TINY: dict[str, Any] = {
    **MOCK,
    "name": "tiny",
    "split": {"least": 0.0},
    "codecs": {"fit_on": "any"},
}
"""Of the tiny mock sky, which lies in too few cells of the split to spare any for a test."""
MOCK_LEARNED: dict[str, Any] = {
    **MOCK,
    "name": "mock-learned",
    "codecs": {"lock": "work/codecs/codecs.lock"},
}
"""`mock` with the codecs that `make codecs` trains; those that the lock does not name are fitted."""
BY_NAME: dict[str, dict[str, Any]] = {"tiny": TINY, "mock": MOCK, "mock-learned": MOCK_LEARNED, "aion": AION}


def settings_of(name_or_path: str) -> tuple[dict[str, Any], str, Path]:
    """Settings of the recipe of this name or file, what to call it in errors, and the folder it lies in."""
    if name_or_path in BY_NAME:
        return dict(BY_NAME[name_or_path]), f"recipe {name_or_path}", Path()
    path = Path(name_or_path)
    if not path.is_file():
        raise ValueError(f"no recipe {name_or_path!r}: it is neither a file nor one of {', '.join(BY_NAME)}")
    try:
        settings = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not TOML: {error}") from error
    return {"name": path.stem, **settings}, str(path), path.resolve().parent


def load(name_or_path: str) -> Recipe:
    """The recipe of this name, or of this TOML file."""
    return parse(*settings_of(name_or_path))


def parse(settings: Mapping[str, Any], where: str, folder: Path = Path()) -> Recipe:
    """A recipe from plain values; ValueError names the key at fault and the keys that exist."""
    _known(settings, ("name", "region", "surveys", *SECTIONS), where)
    for key in ("region", "surveys"):
        if not settings.get(key):
            raise ValueError(f"{where}: the recipe says nothing of {key!r}; add it")
    region = dict(_table(settings["region"], f"{where}: region"))
    for key in ("surveys", *SECTIONS):
        _table(settings.get(key, {}), f"{where}: {key}")
    surveys = [
        _choice(name, chosen, f"{where}: surveys.{name}", folder) for name, chosen in settings["surveys"].items()
    ]
    if region.get("kind") == "targets" and "table" in region:
        surveys = [c for c in surveys if c.name != "targets"]
        surveys.append(_targets(folder / str(region.pop("table"))))
        region |= _positions(surveys[-1])
    if region.get("kind") == "moc" and "file" in region:
        region["moc"] = moc_text(folder / str(region.pop("file")))
    surveys.sort(key=lambda c: SURVEYS[c.name].rank)
    recipe = Recipe(
        name=str(settings.get("name", "recipe")),
        surveys=tuple(surveys),
        region=_region(region, where),
        match=_section(Match, settings.get("match", {}), f"{where}: match"),
        split=_section(Split, settings.get("split", {}), f"{where}: split"),
        payload=_section(Payload, settings.get("payload", {}), f"{where}: payload"),
        codecs=_section(Codecs, settings.get("codecs", {}), f"{where}: codecs"),
        shards=_section(Shards, settings.get("shards", {}), f"{where}: shards"),
        download=_section(Download, settings.get("download", {}), f"{where}: download"),
    )
    if recipe.codecs.lock:
        lock = str((folder / recipe.codecs.lock).resolve())
        recipe = replace(recipe, codecs=replace(recipe.codecs, lock=lock))
    if any(c.source != "root" for c in recipe.surveys):
        # workers have homes and environments of their own
        cache = (
            Path(recipe.download.cache).expanduser() if recipe.download.cache else default_cache(recipe.download.mirror)
        )
        recipe = replace(recipe, download=replace(recipe.download, cache=str((folder / cache).resolve())))
    _check(recipe, where)
    return recipe


def with_survey(recipe: Recipe, name: str, release: str, profile: str, root: Path | None, source: str = "") -> Recipe:
    """The recipe with a survey more, or with another release, profile or source of one that it has; empty: as it is.

    `root` holds a copy of each survey's archive, by name; other surveys than this one keep the source that they have.
    """
    settings = recipe.settings()
    old = settings["surveys"].get(name, {})
    place = str(root / name) if root else ""
    given = {k: v for k, v in (("release", release), ("profile", profile), ("root", place)) if v}
    if place or source:
        given |= {"source": source or "root", "root": place, "url": ""}
    if old and release and release != old["release"]:
        # options belong to a release
        old = {k: v for k, v in old.items() if k in ("release", "profile", *PLACE)}
    settings["surveys"] = {**settings["surveys"], name: {**old, **given}}
    made = parse(settings, "the pile's recipe")
    made = made.at(root) if root else made
    if lacking := [c.name for c in made.surveys if not c.source]:
        raise ValueError(
            f"where the files of {', '.join(lacking)} lie is not known here; give --root, the folder with a copy of "
            "each survey's archive, or --source"
        )
    return made


def _region(settings: Mapping[str, Any], where: str) -> Region:
    try:
        return from_settings(settings)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _targets(table: Path) -> SurveyChoice:
    """The user's own table of targets, as one more survey."""
    if not table.is_file():
        raise ValueError(f"region: {table}: no such table of targets")
    return SurveyChoice("targets", "user", "all", str(table.resolve().parent), {"files": [table.name]}, "root")


def _positions(targets: SurveyChoice) -> dict[str, Any]:
    """Where the targets are, as far as their rows can be trusted; the reading of them counts the rest."""
    made = targets.survey()
    table = made.read(Path(targets.root) / targets.options["files"][0])
    n = table.num_rows
    table = table.filter(pc.is_null(first_failed(made.valid, table)))
    if not table.num_rows:
        says = f"none of its {n} rows has an id and a position on the sky" if n else "the table is empty"
        raise ValueError(f"{targets.options['files'][0]}: {says}")
    return {"ra": table.column("ra").to_pylist(), "dec": table.column("dec").to_pylist()}


def _choice(name: str, chosen: Mapping[str, Any], where: str, folder: Path) -> SurveyChoice:
    if name not in SURVEYS:
        raise ValueError(f"{where}: unknown survey {name!r}; known are {', '.join(SURVEYS)}")
    rest = dict(_table(chosen, where))
    release = str(rest.pop("release", SURVEYS[name].releases[0]))
    profile = str(rest.pop("profile", "aion"))
    root, source, url = (str(rest.pop(place, "")) for place in PLACE)
    # a worker may run in another folder
    root = str((folder / root).resolve()) if root else ""
    source = source or ("root" if root else "")
    if source and source not in SOURCES:
        raise ValueError(f"{where}: source is {source!r}; choose {', '.join(SOURCES)}")
    if source != "root" and root:
        raise ValueError(f"{where}: a root is named, and the source is {source!r}; give one of the two")
    made = SurveyChoice(name, release, profile, root, rest, source, url)
    taken = inspect.signature(SURVEYS[name].__init__).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in taken.values()) and (unknown := sorted(set(rest) - set(taken))):
        options = [o for o in taken if o not in ("self", "release")]
        raise ValueError(f"{where}: {unknown_option(unknown[0], options)}")
    try:
        profiles = made.survey().select
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {str(error).removeprefix(f'{name}: ')}") from error
    if profile not in profiles:
        raise ValueError(f"{where}: unknown profile {profile!r}; {name} has {', '.join(profiles)}")
    return made


def _section(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    _known(_table(values, where), tuple(kind.__dataclass_fields__), where)
    made = dict(values)
    for key, value in made.items():
        default = kind.__dataclass_fields__[key].default
        wanted = type(default) if default is not MISSING else dict
        # TOML tells 1 from 1.0 and lists from tuples; here neither matters
        if wanted is float and type(value) is int:
            made[key] = float(value)
        elif wanted is tuple and isinstance(value, list | tuple):
            if not all(type(v) in (int, float) for v in value):
                raise ValueError(f"{where}.{key} is {value!r}; wanted numbers")
            made[key] = tuple(float(v) for v in value)
        elif type(value) is not wanted:
            named = {dict: "a table", tuple: "a list of numbers", float: "a number", int: "a whole number"}
            named[bool] = "true or false"
            raise ValueError(f"{where}.{key} is {value!r}; wanted {named.get(wanted, 'a text')}")
    return kind(**made)


def _table(values: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {values!r}; wanted a table")
    return values


def _known(values: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(values) - set(keys))
    if unknown:
        near = meant(unknown[0], keys)
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; the keys are {', '.join(keys)}{near}")


def _check(recipe: Recipe, where: str) -> None:
    def want(ok: bool, message: str) -> None:
        if not ok:
            raise ValueError(f"{where}: {message}")

    m, s, p, c = recipe.match, recipe.split, recipe.payload, recipe.codecs
    names = {choice.name for choice in recipe.surveys}
    want(m.on in ("valid", "selected"), f"match.on is {m.on!r}; choose valid or selected")
    want(0 < m.radius_arcsec <= 60, f"match.radius_arcsec is {m.radius_arcsec}; wanted above 0 and at most 60")
    for pair, radius in m.pairs.items():
        want(type(radius) in (int, float), f"match.pairs.{pair} is {radius!r}; wanted a number")
        want(len(pair.split("-")) == 2 and set(pair.split("-")) <= names, f"match.pairs: {pair!r} names no pair here")
        want(0 < radius <= 60, f"match.pairs.{pair} is {radius}; wanted above 0 and at most 60")
    want(m.policy in ("nearest", "posterior"), f"match.policy is {m.policy!r}; choose nearest or posterior")
    want(0 <= m.outliers < 1, f"match.outliers is {m.outliers}; wanted 0 or more, and below 1")
    for pair, share in m.found.items():
        want(type(share) in (int, float), f"match.found.{pair} is {share!r}; wanted a number")
        want(len(pair.split("-")) == 2 and set(pair.split("-")) <= names, f"match.found: {pair!r} names no pair here")
        want(0 < share < 1, f"match.found.{pair} is {share}; wanted above 0 and below 1")
    for name, error in m.errors.items():
        want(type(error) in (int, float) and 0 < error < 60, f"match.errors.{name} is {error!r}; wanted arcsec above 0")
        want(name in names, f"match.errors: {name!r} is no survey here; the surveys are {', '.join(sorted(names))}")
    total = sum(s.fractions)
    want(
        len(s.fractions) == 3 and min(s.fractions) >= 0 and abs(total - 1) < 1e-9,
        f"split.fractions are {list(s.fractions)}; wanted three that add up to 1",
    )
    want(p.keep in ("auto", "all", "none", "sample"), f"payload.keep is {p.keep!r}; choose auto, all, none or sample")
    want(c.fit_on in ("train", "any"), f"codecs.fit_on is {c.fit_on!r}; choose train or any")
    want(c.scalars in ("sample", "sketch"), f"codecs.scalars is {c.scalars!r}; choose sample or sketch")
    want(0 <= s.least <= 1, f"split.least is {s.least}; wanted 0 to 1")
    least = {"payload.sample": p.sample, "payload.limit_bytes": p.limit_bytes}
    least["download.limit_bytes"] = recipe.download.limit_bytes
    for name, n in least.items():
        want(n >= 0, f"{name} is {n}; wanted 0 or more")
    most = {"codecs.fit_rows": c.fit_rows, "codecs.fit_payload_rows": c.fit_payload_rows}
    for name, n in {**most, "shards.row_group_rows": recipe.shards.row_group_rows}.items():
        want(n > 0, f"{name} is {n}; wanted 1 or more")
    want(0 <= recipe.shards.order <= 5, f"shards.order is {recipe.shards.order}; wanted 0 to 5")


def canonical(settings: Any) -> str:
    """JSON of plain values, one form for one content."""
    return json.dumps(settings, sort_keys=True, allow_nan=False)
