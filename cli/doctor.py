"""The command that asks the archives whether they are as they are taken to be: `skycairn doctor`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skycairn.cli.failing import errors

if TYPE_CHECKING:
    from skycairn.archives.doctor import Finding

MOCK_SAMPLES = {
    **{"brick": "3599m012", "tractor_brick": "", "n_sweeps": "0", "legacysurvey_cell": "17404", "patch": "9000/3,4"},
    **{"desi": "main/dark/17404", "n_gaia": "0", "gaia_range": "278348-278504", "hats": "", "plates": ""},
    **{"spectra": "26/266/51602/1 104/2957/54807/1 v5_13_2/10200/57500/1", "sdss_cell": "17404"},
}
"""What every mock sky holds of what `skycairn doctor` looks at."""


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
