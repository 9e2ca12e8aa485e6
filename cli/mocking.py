"""Command that makes a pile of a mock sky without its files: `skycairn mock-pile`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from skycairn.cli.failing import errors


def mock_pile(
    codecs_from: Annotated[Path, typer.Option(help="a pile, or a codecs.lock, whose codecs encode it")],
    pile: Annotated[Path, typer.Option(help="folder of the pile; an interrupted one goes on")] = Path(
        "work/train-tier"
    ),
    objects: Annotated[int, typer.Option(help="whole patches of sky, until they hold as many or more")] = 60_000,
    seed: Annotated[int, typer.Option(help="same seed, objects and codecs: same content")] = 0,
    workers: Annotated[int, typer.Option(help="processes")] = 1,
    images: Annotated[float, typer.Option(help="share of the patches whose images are made")] = 1.0,
    like: Annotated[str, typer.Option(help="tier of the mock sky that it holds copies of: default | tiny")] = "default",
) -> None:
    """Write a pile of a mock sky for training experiments, straight to shards, and the truth of each object."""
    with errors():
        try:
            from skycairn.mocksky.build import VERSION
            from skycairn.mocksky.patches import TIERS
            from skycairn.mocksky.unwritten import look
        except ModuleNotFoundError as error:
            raise ValueError(
                f"the mock sky needs {error.name}, which is not installed; install skycairn[mock]"
            ) from error
        from skycairn.pipeline.mockpile import Source, build

        if like not in TIERS or not TIERS[like].pixels:
            raise ValueError(f"there is no tier {like!r} with pixels; choose default or tiny")
        source = Source(partial(look, like, seed), len(TIERS[like].patches), {"like": like, "mock": VERSION})
        made = build(pile, codecs_from, source, objects, seed, workers, images, lambda text: typer.echo(text, err=True))
        strata, splits = made.stats["strata"], made.stats["splits"]
        typer.echo(f"{pile}: {sum(splits.values()):,} objects, content {made.content_id[:12]}")
        typer.echo("by split: " + ", ".join(f"{name} {n:,}" for name, n in splits.items()))
        typer.echo("by stratum: " + ", ".join(f"{name} {n:,}" for name, n in strata.items()))
