"""Where a build's survey files come from, as commands are told; and commands about archives."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skycairn.cli.failing import errors

if TYPE_CHECKING:
    from skycairn.archives.doctor import Finding
    from skycairn.pipeline.recipe import Recipe

Settings = tuple[dict[str, Any], str, Path]
"""As `recipe.parse` takes them: values, what to call them, the folder they lie in."""
MOCK_SAMPLES = {
    **{"brick": "3599m012", "tractor_brick": "", "n_sweeps": "0", "legacysurvey_cell": "17404", "patch": "9000/3,4"},
    **{"desi": "main/dark/17404", "n_gaia": "0", "gaia_range": "278348-278504", "hats": "", "plates": ""},
    **{"spectra": "26/266/51602/1 104/2957/54807/1 v5_13_2/10200/57500/1", "sdss_cell": "17404"},
}
"""What every mock sky holds of what `skycairn doctor` looks at."""
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


def doctor(
    survey: Annotated[list[str] | None, typer.Option(help="a survey; may be repeated; all unless given")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="fetch large files too, to hold them against their digests")] = (
        False
    ),
    mirror: Annotated[str, typer.Option(help="ask this mirror of a mock sky: http://127.0.0.1:8000")] = "",
    contact: Annotated[str, typer.Option(help="an e-mail address that archives may write to")] = "",
    sample: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE: look at this instead; may be repeated; brick=1126p222")
    ] = None,
) -> None:
    """Ask the archives whether they are as this code takes them to be. Exit code 1: one of them is not."""
    with errors():
        from tempfile import TemporaryDirectory

        from skycairn.archives.client import Client
        from skycairn.archives.doctor import LIMITS, Doctor, Samples, examine, well

        told = {}
        for text in sample or []:
            name, equals, value = text.partition("=")
            if not equals:
                raise ValueError(f"--sample {text}: wanted NAME=VALUE, as brick=1126p222")
            told[name] = value
        if mirror:
            from skycairn.mirror.sky import HSC_ACCOUNT

            if not mirror.startswith("http://127.0.0.1:"):
                raise ValueError(f"--mirror {mirror}: a mirror is on this machine, at http://127.0.0.1:PORT")
            # nobody's own password goes to a mirror
            os.environ["SSP_PDR_USR"], os.environ["SSP_PDR_PWD"] = HSC_ACCOUNT
            told = {**MOCK_SAMPLES, **told}
        samples = Samples().changed(told)
        with (
            TemporaryDirectory(prefix="skycairn-doctor-") as folder,
            Client(LIMITS, contact=contact, loopback=bool(mirror)) as client,
        ):
            seen = []
            for finding in examine(Doctor(client, Path(folder), samples, mirror, deep), survey or []):
                seen.append(finding)
                typer.echo(f"{finding.survey}: {finding.check.name}: {finding.status}", err=True)
        print_findings(seen)
        if not well(seen):
            raise typer.Exit(1)


def print_findings(findings: Sequence[Finding]) -> None:
    """What came of each check, in a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "differs": "yellow", "failed": "red", "skipped": "dim"}
    table = Table("survey", "check", "outcome", "found", title="Archives", title_justify="left")
    for f in findings:
        found = f"{f.said}\nassumed: {f.check.about}" if f.status in ("differs", "failed") else f.said
        # archives' words are no markup
        table.add_row(f.survey, Text(f.check.name), Text(f.status, style=colours[f.status]), Text(found))
    console = Console()
    console.print(table)
    count = Counter(f.status for f in findings)
    console.print(", ".join(f"{n} {status}" for status, n in count.items()), highlight=False)
