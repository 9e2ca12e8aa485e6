"""Commands that build: `skycairn build`, `ingest`, `refit`, and `recipe`, which prints what one may begin with."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skycairn.cli.failing import PARTIAL, errors

if TYPE_CHECKING:
    from skycairn.pipeline.recipe import Recipe

PileFolder = Annotated[Path, typer.Option(help="folder of the pile, made or brought up to date")]
Root = Annotated[Path | None, typer.Option(help="folder with a copy of each survey's archive, by name")]
Workers = Annotated[int, typer.Option(help="worker processes; 0 does all in this one")]
Scheduler = Annotated[str, typer.Option(help="address of a Dask scheduler, instead of --workers")]
Deadline = Annotated[float, typer.Option(help="seconds that one task may take before its worker is replaced")]
Memory = Annotated[float, typer.Option(help="GB that each local worker may take; 0: an equal share of the machine")]
SmallSplits = Annotated[
    bool, typer.Option("--allow-small-splits", help="let validation or test be smaller than split.least")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would be done, and why; do nothing")]
Rehash = Annotated[
    bool, typer.Option("--rehash", help="read every survey file again, whatever its date, and ask archives anew")
]
Source = Annotated[
    list[str] | None,
    typer.Option(help="where surveys come from: archive, query or hats for all of them, or gaia=query for one"),
]
VIA_HTTP = (
    "fetch what lies below --root through a mirror on this machine, into PILE-cache beside the pile, or --cache; never "
    "into $SKYCAIRN_CACHE, which is the archives'"
)
Without = Annotated[
    list[str] | None, typer.Option(help="leave this survey of the recipe out, as one without an account; repeatable")
]
Cache = Annotated[Path | None, typer.Option(help="folder for what is downloaded, which all workers see")]
CacheLimit = Annotated[float, typer.Option(help="GB that the cache may hold; 0: what the recipe says")]
Contact = Annotated[str, typer.Option(help="your e-mail address, sent along so that archives can write to you")]


def build(
    recipe: Annotated[str, typer.Argument(help="tiny, mock, mock-learned, aion, or a TOML file")],
    pile: PileFolder,
    root: Root = None,
    source: Source = None,
    without: Without = None,
    via_http: Annotated[bool, typer.Option("--via-http", help=VIA_HTTP)] = False,
    mirror_faults: Annotated[
        float, typer.Option(help="with --via-http: share of the requests that the mirror answers badly, 0 to 1")
    ] = 0.0,
    cache: Cache = None,
    cache_limit: CacheLimit = 0.0,
    contact: Contact = "",
    workers: Workers = 2,
    scheduler: Scheduler = "",
    cone: Annotated[tuple[float, float, float] | None, typer.Option(help="RA DEC RADIUS in degrees")] = None,
    targets: Annotated[Path | None, typer.Option(help="table of your own targets (id, ra, dec)")] = None,
    codecs_from: Annotated[Path | None, typer.Option(help="a pile or codecs.lock whose codecs to use")] = None,
    reuse: Annotated[
        Path | None, typer.Option(help="another pile, whose finished work this one starts from (hard links)")
    ] = None,
    allow_small_splits: SmallSplits = False,
    new_split: Annotated[
        bool, typer.Option("--new-split", help="let the sky be divided otherwise than in the pile so far")
    ] = False,
    deadline: Deadline = 1800.0,
    memory: Memory = 0.0,
    rehash: Rehash = False,
    dry_run: DryRun = False,
) -> None:
    """Build a pile, or bring it up to date. Exit code 3: something is held back."""
    with errors():
        _check_root(root)
        from skycairn.cli import fetching
        from skycairn.pipeline import recipe as recipes

        fetching.check_share("--mirror-faults", mirror_faults)
        if mirror_faults and not via_http:
            raise ValueError("--mirror-faults spoils what a mirror answers: give --via-http too, or leave it out")
        if reuse is not None and dry_run:
            raise ValueError("--dry-run looks at what this pile has; leave out --reuse")
        settings = _settings(recipe, cone, targets, codecs_from)
        fetching.leave_out(settings, without)
        fetching.choose(settings, source, cache, cache_limit, contact, cone is not None and root is None)
        with ExitStack() as stack:
            if via_http:
                root = stack.enter_context(fetching.mirrored(settings, root, pile, mirror_faults))
            chosen = recipes.parse(*settings)
            chosen = chosen.at(root.resolve()) if root is not None else chosen
            _run(
                chosen,
                pile,
                workers,
                scheduler,
                allow_small_splits,
                deadline,
                memory,
                rehash,
                dry_run,
                new_split,
                reuse=reuse,
            )


def recipe(
    name: Annotated[str, typer.Argument(help="tiny, mock, mock-learned, aion")],
) -> None:
    """Print a built-in recipe as TOML, to begin one's own with: skycairn recipe aion > mine.toml."""
    with errors():
        from skycairn.pipeline.recipe import BY_NAME
        from skycairn.pipeline.toml import toml_of

        if name not in BY_NAME:
            raise ValueError(f"no recipe {name!r} is built in; there are {', '.join(BY_NAME)}")
        typer.echo("# What a recipe does not say has its default; docs/recipe.md tells all keys.")
        typer.echo(toml_of(BY_NAME[name]), nl=False)


def ingest(
    survey: Annotated[str, typer.Argument(help="legacysurvey, hsc, gaia, desi, sdss")],
    pile: PileFolder,
    release: Annotated[str, typer.Option(help="of the survey; the one that the pile has, unless given")] = "",
    profile: Annotated[str, typer.Option(help="cuts: aion, strict, all; the pile's own, unless given")] = "",
    root: Root = None,
    source: Annotated[str, typer.Option(help="instead of --root: archive, query, hats")] = "",
    workers: Workers = 2,
    scheduler: Scheduler = "",
    allow_small_splits: SmallSplits = False,
    deadline: Deadline = 1800.0,
    memory: Memory = 0.0,
    rehash: Rehash = False,
    dry_run: DryRun = False,
) -> None:
    """Add a survey to a pile, or replace a release of it: only what that touches is done. Exit codes as of build."""
    with errors():
        _check_root(root)
        from skycairn.pile.store import Pile
        from skycairn.pipeline.journal import Journal
        from skycairn.pipeline.recipe import with_survey

        opened = Pile.open(pile)
        last = Journal(opened).recipe(opened.head())
        if last is None:
            raise ValueError(f"{pile} holds no snapshot yet; build it first")
        if root is not None and not (root / survey).is_dir():
            raise ValueError(
                f"{root / survey}: no such folder; --root is the folder that holds one of each survey's name, "
                f"{root.parent if root.name == survey else 'with ' + survey + ' in it'}"
            )
        # the codecs that it was first built with are the pile's own by now
        last = replace(last, codecs=replace(last.codecs, lock=""))
        chosen = with_survey(last, survey, release, profile, root.resolve() if root else None, source)
        _run(chosen, pile, workers, scheduler, allow_small_splits, deadline, memory, rehash, dry_run)


def refit(
    pile: PileFolder,
    modality: Annotated[list[str] | None, typer.Argument(help="whose codecs; all of them unless given")] = None,
    codecs_from: Annotated[
        Path | None, typer.Option(help="take the codecs of this pile or codecs.lock instead of fitting")
    ] = None,
    workers: Workers = 2,
    scheduler: Scheduler = "",
    deadline: Deadline = 1800.0,
    memory: Memory = 0.0,
    dry_run: DryRun = False,
) -> None:
    """Fit codecs anew on what the pile holds now, or exchange them for another pile's, and encode again.

    Older snapshots keep the codecs and tokens that they have. A model trained on the old tokens does not know the new.
    """
    with errors():
        from skycairn.pile.store import Pile
        from skycairn.pipeline.journal import Journal
        from skycairn.tokenizers.lock import lock_ids

        opened = Pile.open(pile)
        last = Journal(opened).recipe(opened.head())
        lock = pile / "codecs.lock"
        if last is None or not lock.is_file():
            raise ValueError(f"{pile} has no codecs yet; build it first")
        last = replace(last, codecs=replace(last.codecs, lock=""))
        known = lock_ids(lock)
        if unknown := sorted(set(modality or []) - set(known)):
            raise ValueError(f"{pile} has no codec of {unknown[0]}; it has {', '.join(sorted(known))}")
        if codecs_from is not None and (modality or dry_run):
            raise ValueError("--codecs-from exchanges all codecs that differ; leave out modalities and --dry-run")
        anew = list(modality or known) if codecs_from is None else []
        _run(
            last, pile, workers, scheduler, True, deadline, memory, False, dry_run, refit=anew, codecs_from=codecs_from
        )


def _run(
    recipe: Recipe,
    pile: Path,
    workers: int,
    scheduler: str,
    allow_small_splits: bool,
    deadline: float,
    memory: float,
    rehash: bool,
    dry_run: bool,
    new_split: bool = False,
    refit: Iterable[str] = (),
    codecs_from: Path | None = None,
    reuse: Path | None = None,
) -> None:
    from skycairn.cli.fetching import print_amounts
    from skycairn.cli.show import Bars, print_plan, print_report
    from skycairn.pipeline import drift, run
    from skycairn.pipeline.engine import Engine

    _check_survey_roots(recipe)
    if dry_run:
        print_amounts(recipe, pile)
        print_plan(*run.dry_run(recipe, pile, rehash, refit))
        return
    engine = Engine(workers, scheduler, deadline, round(memory * 1e9))
    print_amounts(recipe, pile)
    with Bars() as bars:
        built = run.build(
            recipe,
            pile,
            progress=bars,
            engine=engine,
            rehash=rehash,
            refit=tuple(refit),
            codecs_from=codecs_from,
            new_split=new_split,
            small_splits=allow_small_splits,
            reuse=reuse,
        )
    print_report(built, drift.of_build(pile, built))
    if built.partial:
        raise typer.Exit(PARTIAL)


def _check_root(root: Path | None) -> None:
    """Before modules that take seconds to import."""
    if root is not None and not root.is_dir():
        raise ValueError(
            f"--root {root}: no such folder; it is the folder that holds a copy of each survey's archive, by name"
        )


def _check_survey_roots(recipe: Recipe) -> None:
    """Before workers, which take seconds to start."""
    for choice in recipe.surveys:
        if choice.source == "root" and not Path(choice.root).is_dir():
            raise ValueError(
                f"{choice.root}: no such folder; set surveys.{choice.name}.root to where its archive's tree lies, or "
                f"build without it (--without {choice.name})"
            )


def _settings(
    name: str, cone: tuple[float, float, float] | None, targets: Path | None, codecs_from: Path | None
) -> tuple[dict[str, Any], str, Path]:
    """As `recipe.parse` takes them."""
    from skycairn.cli.fetching import region_from
    from skycairn.pipeline.recipe import settings_of

    settings, where, folder = settings_of(name)
    region_from((settings, where, folder), cone, targets)
    if codecs_from is not None:
        settings["codecs"] = {**settings.get("codecs", {}), "lock": str(codecs_from.resolve())}
    return settings, where, folder
