"""Commands that look after a pile: `skycairn status`, `history`, `tag`, `diff`, `explain`, `verify`, `gc`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from skycairn.cli.failing import errors

PileArgument = Annotated[Path, typer.Argument(help="folder of the pile")]


def status(pile: PileArgument) -> None:
    """Say what a pile holds, and what is held back and why. Exit code 3: something is."""
    with errors():
        from skycairn.cli.failing import PARTIAL
        from skycairn.cli.show import print_status
        from skycairn.pile.store import Pile

        if not print_status(Pile.open(pile)):
            raise typer.Exit(PARTIAL)


def history(pile: PileArgument) -> None:
    """List the snapshots, newest first: when they were made, what differs from the one before, who holds them."""
    with errors():
        from skycairn.cli.show import print_history
        from skycairn.pile.store import Pile

        print_history(Pile.open(pile))


def tag(
    pile: PileArgument,
    name: Annotated[str, typer.Argument(help="letters, digits, dot, dash")],
    snapshot: Annotated[str, typer.Option(help="number, tag, head, head~1")] = "head",
    move: Annotated[bool, typer.Option("--move", help="let a tag that is there name another snapshot")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="take the tag away")] = False,
) -> None:
    """Name a snapshot, so that it is kept: `gc` never takes a tagged one."""
    with errors():
        from skycairn.pile.store import Pile

        opened = Pile.open(pile)
        if remove:
            opened.untag(name)
            typer.echo(f"{name}: removed")
            return
        number, before = opened.resolve(snapshot), opened.tags().get(name)
        if before not in (None, number) and not move:
            raise ValueError(
                f"{name} names snapshot {before}, which `gc` could take once it names {number}; --move does it"
            )
        opened.tag(name, number)
        typer.echo(f"{name}: snapshot {number}")


def diff(
    pile: PileArgument,
    old: Annotated[str, typer.Argument(help="number, tag, head, head~1")] = "head~1",
    new: Annotated[str, typer.Argument(help="number, tag, head, head~1")] = "head",
    out: Annotated[Path | None, typer.Option(help="write every object that differs, as Parquet")] = None,
) -> None:
    """Say how two snapshots differ: recipe, tables, and what became of the objects."""
    with errors():
        from skycairn.cli.show import print_diff
        from skycairn.pile.store import Pile

        opened = Pile.open(pile)
        with opened.pin(opened.resolve(old)) as before, opened.pin(opened.resolve(new)) as now:
            print_diff(opened, before.snapshot, now.snapshot, out)


def explain(
    object_id: Annotated[str, typer.Argument(help="an object's id, old or new, or the uid of a source in it")],
    pile: Annotated[Path, typer.Option(help="folder of the pile")] = Path("work/pile"),
    snapshot: Annotated[str, typer.Option(help="number, tag, head, head~1")] = "head",
    every_file: Annotated[
        bool, typer.Option("--all", help="name each file of neighbouring patches too, not their number alone")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="all of it, for programs")] = False,
) -> None:
    """Say where an object comes from: survey files, checksums, rows, cuts, matches, codecs."""
    with errors():
        from skycairn.cli.objectview import ObjectReader
        from skycairn.cli.show import print_explanation
        from skycairn.pile.store import Pile
        from skycairn.pipeline.explain import explain as told

        opened = Pile.open(pile, check="pages")
        with opened.pin(opened.resolve(snapshot)) as pinned:
            at = pinned.snapshot
            found = told(opened, at, ObjectReader(opened, at).find(object_id))
        if as_json:
            typer.echo(json.dumps(found, indent=1))
        else:
            print_explanation(object_id, found, every_file)


def verify(
    pile: PileArgument,
    repair: Annotated[bool, typer.Option("--repair", help="make damaged parts anew from their inputs")] = False,
    workers: Annotated[int, typer.Option(help="worker processes for the repair; 0 does all in this one")] = 2,
) -> None:
    """Read every byte of every snapshot and hold it against its name. Exit code 1: damage that was not mended."""
    with errors():
        from skycairn.cli.show import Bars, print_repair, print_verification
        from skycairn.pile.store import Pile

        opened = Pile.open(pile)
        found = opened.verify(deep=True)
        sound = print_verification(found)
        if not sound and repair:
            from skycairn.pipeline.engine import Engine
            from skycairn.pipeline.repair import repair as mend

            with Bars() as bars:
                mended = mend(opened, found, Engine(workers), bars)
            sound = print_repair(mended)
        if not sound:
            raise typer.Exit(1)


def gc(
    pile: PileArgument,
    keep: Annotated[int, typer.Option(help="newest snapshots to keep, beside tagged ones and those being read")] = 3,
    delete: Annotated[bool, typer.Option("--delete", help="really remove; else it is only said what would go")] = False,
    uncommitted: Annotated[
        bool, typer.Option("--uncommitted", help="also what builds have made that never came to a snapshot")
    ] = False,
) -> None:
    """Remove snapshots that nobody needs, and the files that only they name. A dry run unless --delete."""
    with errors():
        from skycairn.cli.show import print_collection
        from skycairn.pile.collect import collect
        from skycairn.pile.store import Pile

        print_collection(collect(Pile.open(pile), keep, delete, uncommitted))
