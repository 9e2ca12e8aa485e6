"""`skycairn-train export`: writes a trained model as a folder that others can use without a pile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skycairn.cli.failing import errors

if TYPE_CHECKING:
    from skycairn.model.measurements import Quantity
    from skycairn.pile.store import Pile, Snapshot
    from skycairn.tokenizers.codec import Codec


def export(
    run: Annotated[Path, typer.Argument(help="folder of a training run")],
    pile: Annotated[
        list[Path], typer.Option(help="pile that it learned from; once for each, where there were several")
    ],
    out: Annotated[Path, typer.Option(help="folder to write; one that holds an earlier export is replaced")],
    licence: Annotated[Path | None, typer.Option(help="licence of the weights; MIT unless given")] = None,
) -> None:
    """Write the best model of a run for others: weights, codecs, card, licence, SHA-256 of each."""
    with errors():
        from skycairn.model import exported
        from skycairn.model.sharded import read_about, there
        from skycairn.pile.store import Pile
        from skycairn.pipeline.loaded import codecs_of

        checkpoint = next((run / name for name in exported.CHECKPOINTS if there(run / name)), run / "last")
        learned = read_about(checkpoint)["snapshots"]
        codecs: dict[str, Codec] = {}
        quantities: dict[str, Quantity] = {}
        for opened in map(Pile.open, pile):
            for snapshot in _learned(opened, learned):
                codecs |= codecs_of(opened, snapshot)
                quantities |= _quantities(snapshot)
        text = exported.MIT if licence is None else licence.read_text()
        found = exported.export(run, codecs, out, quantities, text)
        typer.echo(f"{out}: the model of {found}")


def _learned(pile: Pile, learned: Iterable[str]) -> list[Snapshot]:
    """Snapshots of a pile that a run learned from."""
    every = [pile.snapshot(n) for n in pile.snapshots()]
    if not (found := [s for s in every if s.content_id in set(learned)]):
        raise ValueError(
            f"{pile.root}: has none of the snapshots that the run learned from "
            f"({', '.join(s[:12] for s in learned)}); wanted the pile that it was trained on"
        )
    return found


def _quantities(snapshot: Snapshot) -> Iterator[tuple[str, Quantity]]:
    """What the surveys of the snapshot's recipe say of their modalities."""
    from skycairn.catalogs.registry import survey
    from skycairn.catalogs.survey import KEYS
    from skycairn.model.measurements import Quantity

    for name, chosen in snapshot.recipe.get("surveys", {}).items():
        options = {k: v for k, v in chosen.items() if k not in KEYS}
        for m in survey(name, chosen["release"], **options).modalities:
            yield m.name, Quantity(m.unit, m.about or m.column or m.codec, m.shape, m.bands, m.pixel_arcsec)
