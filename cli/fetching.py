"""Where a build's survey files come from, as commands are told; and commands about archives."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from skycairn.pipeline.recipe import Recipe

Settings = tuple[dict[str, Any], str, Path]
"""As `recipe.parse` takes them: values, what to call them, the folder they lie in."""
CELL_SQUARE_DEGREES = 41252.96 / (12 * 4**6)


def choose(
    settings: Settings, source: Sequence[str] | None, cache: Path | None, limit_gb: float, contact: str, field: bool
) -> None:
    """Put into the settings what the command says; for one field, services are asked unless something else is said."""
    values = settings[0]
    values["surveys"] = {name: dict(chosen) for name, chosen in values["surveys"].items()}
    for told in source or []:
        name, _, kind = told.rpartition("=")
        if name and name not in values["surveys"]:
            raise ValueError(
                f"--source {told}: the recipe has no survey {name!r}; it has {', '.join(values['surveys'])}"
            )
        for chosen in [values["surveys"][name]] if name else values["surveys"].values():
            chosen |= {"source": kind, "root": ""}
    silent = [n for n, chosen in values["surveys"].items() if not chosen.get("source") and not chosen.get("root")]
    if field and silent:
        for name in silent:
            values["surveys"][name]["source"] = "query"
        typer.echo(
            f"{', '.join(silent)}: no root and no source named; for one field their catalogue services are asked "
            "(--source archive takes the archives' own files instead)",
            err=True,
        )
    download = dict(values.get("download", {}))
    download |= {"cache": str(cache.resolve())} if cache else {}
    download |= {"limit_bytes": round(limit_gb * 1e9)} if limit_gb else {}
    download |= {"contact": contact} if contact else {}
    values["download"] = download


@contextmanager
def mirrored(settings: Settings, root: Path | None, pile: Path, faults: float) -> Iterator[None]:
    """Serve what lies below `root` on this machine, and let the recipe fetch all of it from there."""
    from skycairn.mirror.faults import Faults
    from skycairn.mirror.sky import HSC_ACCOUNT, mirror_of, services_of

    if root is None:
        raise ValueError("--via-http serves what lies below --root; name it")
    os.environ["SSP_PDR_USR"], os.environ["SSP_PDR_PWD"] = HSC_ACCOUNT
    with mirror_of(root, Faults(faults, slow_s=0.5) if faults else None, services_of(root)) as mirror:
        for chosen in settings[0]["surveys"].values():
            chosen |= {"source": chosen.get("source") or "archive", "root": ""}
        cache = {"cache": str(pile.resolve().parent / f"{pile.name}-cache")}
        settings[0]["download"] = {**cache, **settings[0].get("download", {}), "mirror": mirror.url}
        yield
        bad = ", ".join(f"{kind} {n:,}" for kind, n in sorted(mirror.requests.by_fault.items()))
        typer.echo(
            f"the mirror was asked {mirror.requests.total:,} times{f'; answered badly: {bad}' if bad else ''}", err=True
        )


def print_amounts(recipe: Recipe) -> None:
    """Say how much there is to fetch, roughly, and how long it may take, before anything is fetched."""
    from urllib.parse import urlsplit

    from skycairn.archives.sizes import payload_amount

    area = len(recipe.region.work_cells(0.0)) * CELL_SQUARE_DEGREES
    for choice in recipe.surveys:
        if choice.source in ("", "root") or recipe.download.mirror:
            continue
        host = urlsplit(choice.url or choice.survey().url).netloc
        told = payload_amount(choice.name, host, area)
        if told.files:
            typer.echo(f"{choice.name}: pixels and spectra of {area:,.1f} square degrees: {told} at most", err=True)
