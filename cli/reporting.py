"""The command `skycairn report`: a page about a pile's match."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from skycairn.cli.failing import errors


def report(
    pile: Annotated[Path, typer.Argument(help="folder of the pile")],
    out: Annotated[Path, typer.Option(help="the page, one HTML file")] = Path("report.html"),
    truth: Annotated[Path | None, typer.Option(help="folder of the mock sky that the pile was built of")] = None,
    snapshot: Annotated[str, typer.Option(help="number, tag, head, head~1")] = "head",
) -> None:
    """Write a page about the match: separations, chance rates, offsets, maps, cut-flow, what is held back, blends."""
    with errors():
        from skycairn.cli.show import Bars
        from skycairn.pile.store import Pile
        from skycairn.report.gather import gather
        from skycairn.report.page import page

        if out.suffix not in (".html", ".htm"):
            raise ValueError(f"{out}: the page's ending is {out.suffix!r}, wanted .html")
        if not out.parent.is_dir():
            raise ValueError(f"{out}: there is no folder {out.parent} to write the page into; make it first")
        opened = Pile.open(pile, check="pages")
        with Bars() as bars, opened.pin(opened.resolve(snapshot)) as pinned:
            numbers = gather(opened, pinned.snapshot, truth, partial(bars))
        text = page(numbers)
        out.write_text(text, encoding="utf-8")
        typer.echo(
            f"{out}: {numbers.n_objects:,} objects, {len(numbers.pairs)} pairs of surveys, {len(text) / 1e6:.1f} MB"
        )
