"""The one door: `skycairn mock`, `build`, `status`, `verify`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from skycairn.pipeline.recipe import Recipe

app = typer.Typer(
    help="Builds piles of cross-matched, tokenized sky survey data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

PARTIAL = 3
"""Exit code of a build that is good as far as it goes, and holds something back."""


@app.callback()
def _one_door() -> None:
    """Builds piles of cross-matched, tokenized sky survey data."""


@app.command()
def mock(
    tier: Annotated[str, typer.Argument(help="tiny | default | catalogue")] = "default",
    out: Annotated[Path, typer.Option(help="folder to write the surveys' files and the truth into")] = Path(
        "work/mocksky"
    ),
    seed: Annotated[int, typer.Option(help="same seed, same bytes")] = 0,
    workers: Annotated[int, typer.Option(help="processes")] = 2,
    release: Annotated[int, typer.Option(help="2: rows moved, split, gone and added since release 1")] = 1,
    first: Annotated[
        Path | None, typer.Option(help="release 1 of the same tier and seed, to make release 2 from a copy of it")
    ] = None,
) -> None:
    """Write a sky whose truth is known, in the surveys' own files."""
    with _errors():
        try:
            from skycairn.mocksky.build import build as make
        except ModuleNotFoundError as error:
            raise ValueError(
                f"the mock sky needs {error.name}, which is not installed; install skycairn[mock]"
            ) from error
        summary = make(
            tier,
            out,
            seed=seed,
            workers=workers,
            progress=lambda text: typer.echo(text, err=True),
            release=release,
            first=first,
        )
        typer.echo(str(summary))


@app.command()
def build(
    recipe: Annotated[str, typer.Argument(help="mock, aion, or a TOML file")],
    pile: Annotated[Path, typer.Option(help="folder of the pile, made or brought up to date")],
    root: Annotated[Path | None, typer.Option(help="folder with a copy of each survey's archive, by name")] = None,
    workers: Annotated[int, typer.Option(help="worker processes; 0 does all in this one")] = 2,
    scheduler: Annotated[str, typer.Option(help="address of a Dask scheduler, instead of --workers")] = "",
    cone: Annotated[tuple[float, float, float] | None, typer.Option(help="RA DEC RADIUS in degrees")] = None,
    targets: Annotated[Path | None, typer.Option(help="table of your own targets (id, ra, dec)")] = None,
    codecs_from: Annotated[Path | None, typer.Option(help="a pile or codecs.lock whose codecs to use")] = None,
    allow_small_splits: Annotated[
        bool, typer.Option("--allow-small-splits", help="let validation or test be smaller than split.least")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be done next, and why")] = False,
) -> None:
    """Build a pile, or bring it up to date. Exit code 3: something is held back."""
    with _errors():
        from skycairn.cli.show import Bars, print_plan, print_report
        from skycairn.pipeline import run

        chosen = _recipe(recipe, root, cone, targets, codecs_from)
        if allow_small_splits:
            chosen = replace(chosen, split=replace(chosen.split, least=0.0))
        if dry_run:
            print_plan(run.dry_run(chosen, pile))
            return
        with Bars() as bars:
            built = run.build(chosen, pile, workers=workers, scheduler=scheduler, progress=bars)
        print_report(built)
        if built.partial:
            raise typer.Exit(PARTIAL)


@app.command()
def status(pile: Annotated[Path, typer.Argument(help="folder of the pile")]) -> None:
    """Say what a pile holds."""
    with _errors():
        from skycairn.cli.show import print_status
        from skycairn.pile.store import Pile

        print_status(Pile.open(pile))


@app.command()
def verify(pile: Annotated[Path, typer.Argument(help="folder of the pile")]) -> None:
    """Read every byte of a pile's newest snapshot and hold it against its name. Exit code 1: damage."""
    with _errors():
        from skycairn.cli.show import print_verification
        from skycairn.pile.store import Pile

        if not print_verification(Pile.open(pile).verify(deep=True)):
            raise typer.Exit(1)


def _recipe(
    name: str,
    root: Path | None,
    cone: tuple[float, float, float] | None,
    targets: Path | None,
    codecs_from: Path | None,
) -> Recipe:
    from skycairn.pipeline import recipe as recipes

    settings, where, folder = recipes.settings_of(name)
    if cone is not None:
        settings["region"] = {"kind": "cone", "ra": cone[0], "dec": cone[1], "radius_deg": cone[2]}
    if targets is not None:
        settings["region"] = {"kind": "targets", "table": str(targets.resolve()), "radius_arcsec": 60.0}
    if codecs_from is not None:
        settings["codecs"] = {**settings.get("codecs", {}), "lock": str(codecs_from.resolve())}
    made = recipes.parse(settings, where, folder)
    return made.at(root.resolve()) if root is not None else made


@contextmanager
def _errors() -> Iterator[None]:
    """What a caller can mend is said in one line; anything else is a fault of ours and shows where it arose."""
    from skycairn.pile.files import PileError
    from skycairn.pipeline.fetch import FetchError
    from skycairn.pipeline.run import BuildError

    try:
        yield
    except (ValueError, OSError, BuildError, FetchError, PileError) as error:
        typer.echo(f"skycairn: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        typer.echo("skycairn: stopped; run the same command again and it goes on where it was", err=True)
        sys.exit(130)
