"""Commands on tables that are no pile's: `skycairn crossmatch`, `skycairn catalogue`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skycairn.cli.failing import errors

Workers = Annotated[int, typer.Option(help="processes")]
Memory = Annotated[float, typer.Option(help="GB that they may take together, beside their code")]
Names = Annotated[
    str, typer.Option(help="columns by what they say, where their names are others: id=source_id,ra=RA,epoch=2016.0")
]


def crossmatch(
    left: Annotated[Path, typer.Argument(help="Parquet file, folder of them, or HATS catalogue")],
    right: Annotated[Path, typer.Argument(help="as the left one")],
    out: Annotated[Path, typer.Option(help="folder to write the pairs into; an interrupted match goes on")],
    radius: Annotated[float, typer.Option(help="arcsec")] = 1.0,
    left_columns: Names = "",
    right_columns: Names = "",
    found: Annotated[float, typer.Option(help="prior share of sources that have a counterpart, for posteriors")] = 0.9,
    workers: Workers = 1,
    memory: Memory = 2.0,
) -> None:
    """Find all pairs of two tables within a radius; the tables may be larger than memory, their rows in any order.

    Columns that are looked for by themselves: id, ra, dec. Named ones are used: ra_error, dec_error (arcsec), pmra,
    pmdec (mas/yr), epoch, epoch_min, epoch_max (years).
    """
    with errors():
        from skycairn.cli.show import Bars
        from skycairn.match.outofcore import crossmatch_files

        with Bars() as bars:
            summary = crossmatch_files(
                left,
                right,
                radius,
                out,
                left_columns=_named(left_columns),
                right_columns=_named(right_columns),
                found=found,
                memory_bytes=round(memory * (1 << 30)),
                workers=workers,
                progress=bars,
            )
        typer.echo(
            f"{out}: {summary.pairs} pairs within {radius:g} arcsec ({summary.mutual} mutual) of {summary.left_rows} "
            f"and {summary.right_rows} rows, in {summary.parts} files"
        )


def catalogue(
    files: Annotated[list[Path], typer.Argument(help="Parquet files of the same columns, or folders of them")],
    out: Annotated[Path, typer.Option(help="folder to write the catalogue into; an interrupted one goes on")],
    columns: Names = "",
    leaf_rows: Annotated[int, typer.Option(help="most rows of a leaf")] = 1_000_000,
    margin: Annotated[float, typer.Option(help="width of the leaves' margins, arcsec; 0: none")] = 10.0,
    workers: Workers = 1,
    memory: Memory = 2.0,
) -> None:
    """Sort the rows of Parquet files on the sky, into a HATS catalogue; they may be more than memory holds."""
    with errors():
        from skycairn.cli.show import Bars
        from skycairn.match.catalogue import write_catalogue

        named = {meaning: str(name) for meaning, name in _named(columns).items()}
        with Bars() as bars:
            written = write_catalogue(
                files[0] if len(files) == 1 else files,
                out,
                named,
                leaf_rows,
                margin,
                round(memory * (1 << 30)),
                workers,
                bars,
            )
        typer.echo(
            f"{out}: {written.rows} rows in {written.leaves} leaves of at most {written.largest}, down to order "
            f"{written.deepest}; {written.margin_rows} rows of margin; {written.n_bytes / 1e6:.0f} MB"
        )


def _named(text: str) -> dict[str, str | float]:
    """`id=source_id,epoch=2016.0` by meaning; what reads as a number is one."""
    found: dict[str, str | float] = {}
    for part in filter(None, text.split(",")):
        meaning, equals, name = (x.strip() for x in part.partition("="))
        if not (equals and meaning and name) or meaning in found:
            raise ValueError(f"columns are {text!r}; wanted MEANING=NAME,MEANING=NAME with each meaning once")
        try:
            found[meaning] = float(name)
        except ValueError:
            found[meaning] = name
    return found
