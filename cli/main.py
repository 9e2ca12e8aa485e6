"""The one door: `skycairn` and its commands."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from skycairn.cli import builds, doctor, fetching, matching, mocking, reporting, upkeep
from skycairn.cli.failing import errors

app = typer.Typer(
    help="Builds piles of cross-matched, tokenized sky survey data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

export_app = typer.Typer(help="Write a pile's shards in another format.", no_args_is_help=True)
app.add_typer(export_app, name="export")

COMMANDS: tuple[Callable[..., None], ...] = (
    *(builds.build, builds.recipe, builds.ingest, builds.refit, mocking.mock_pile),
    *(fetching.fetch, fetching.mirror, doctor.doctor),
    *(matching.crossmatch, matching.catalogue),
    *(upkeep.status, upkeep.history, upkeep.tag, upkeep.diff, upkeep.explain, upkeep.verify, upkeep.gc),
    reporting.report,
)
for command in COMMANDS:
    app.command()(command)


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
    noise_free: Annotated[
        bool, typer.Option("--noise-free", help="images and spectra of the expected flux: the truth of a noisy mock")
    ] = False,
) -> None:
    """Write a sky whose truth is known, in the surveys' own files."""
    with errors():
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
            noise=not noise_free,
        )
        counts = dict(summary.counts)
        true, bricks = counts.pop("true", 0), counts.pop("bricks", 0)
        rows = ", ".join(f"{survey} {n:,}" for survey, n in sorted(counts.items()))
        typer.echo(
            f"{out}: the {tier} mock sky, release {summary.release}, seed {summary.seed}: {true:,} stars and galaxies"
            + (f"; pixels of {bricks:,} bricks of the Legacy Surveys" if bricks else "")
        )
        typer.echo(f"Rows in the surveys' catalogues: {rows}. What is true of them lies in {out / 'truth'}.")


@app.command()
def show(
    object_id: Annotated[
        str, typer.Argument(help="an object's id, or the uid of a source in it; gaia:4295806720")
    ] = "",
    pile: Annotated[Path, typer.Option(help="folder of the pile")] = Path("work/pile"),
    out: Annotated[Path, typer.Option(help="the picture: .png, .pdf or .svg")] = Path("page.png"),
    ra: Annotated[float | None, typer.Option(help="with --dec: the nearest object, ICRS degrees")] = None,
    dec: Annotated[float | None, typer.Option(help="ICRS degrees")] = None,
    radius: Annotated[float, typer.Option(help="how far the nearest may be, arcsec")] = 5.0,
    tables: Annotated[bool, typer.Option(help="write the catalogues' values below the pictures")] = True,
) -> None:
    """Draw one object as every survey saw it, beside what its tokens hold. Without an object: some ids."""
    with errors():
        from skycairn.cli.objectview import ObjectReader
        from skycairn.pile.store import Pile

        if (ra is None) != (dec is None) or (object_id and ra is not None):
            raise ValueError("name an object, or give both --ra and --dec")
        if out.suffix not in (".png", ".pdf", ".svg"):
            raise ValueError(f"{out}: the picture's ending is {out.suffix!r}, wanted .png, .pdf or .svg")
        opened = Pile.open(pile, check="pages")
        reader = ObjectReader(opened, opened.snapshot())
        if not object_id and (ra is None or dec is None):
            from skycairn.cli.show import print_ids

            print_ids(reader.ids_by_stratum(5))
            return
        found = reader.find(object_id) if ra is None or dec is None else reader.nearest(ra, dec, radius)
        try:
            from skycairn.cli.page import draw
        except ModuleNotFoundError as error:
            missing = str(error.name).split(".")[0]
            raise ValueError(f"a page needs {missing}, which is not installed; install skycairn[plot]") from error
        view = reader.view(found)
        draw(view, out, tables)
        typer.echo(f"{found} ({view.stratum}): {out}")


@app.command()
def hats(
    pile: Annotated[Path, typer.Argument(help="folder of the pile")],
    margin: Annotated[float, typer.Option(help="width of the margins, arcsec")] = 10.0,
    out: Annotated[
        Path | None, typer.Option(help="folder of the view; `hats` in the pile's folder unless given")
    ] = None,
) -> None:
    """Write the newest snapshot's objects and sources as HATS catalogues, for lsdb: links to the pile's own files."""
    with errors():
        from skycairn.cli.show import print_view
        from skycairn.pile.store import Pile
        from skycairn.pipeline.hats import write_view

        opened = Pile.open(pile)
        with opened.pin() as pinned:
            print_view(write_view(opened, pinned.snapshot, out, margin))


@export_app.command()
def hdf5(
    pile: Annotated[Path, typer.Argument(help="folder of the pile")],
    out: Annotated[Path, typer.Option(help="folder to write into; an interrupted export goes on")],
    split: Annotated[str, typer.Option(help="train, validation, ...; all of them unless given")] = "",
) -> None:
    """Write the newest snapshot's shards as HDF5 files, and a manifest of them."""
    with errors():
        from skycairn.cli.show import Bars
        from skycairn.pile.export import export_hdf5
        from skycairn.pile.store import Pile

        opened = Pile.open(pile)
        with Bars() as bars, opened.pin() as pinned:
            export, n_written = export_hdf5(opened, pinned.snapshot, out, split, partial(bars, "export"))
        typer.echo(f"{out}: {len(export.entries)} files, {export.n_rows} objects; {n_written} files written now")
