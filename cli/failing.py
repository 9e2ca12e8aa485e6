"""How commands fail: in one line that says what was found, wanted and to be done, with an exit code of its own."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

PARTIAL = 3
"""Exit code of a build that is good as far as it goes, and holds something back."""
LOCKED = 4
"""Exit code of a command that another builder keeps from its work."""


@contextmanager
def errors() -> Iterator[None]:
    """What a caller can mend is said in one line; anything else is a fault of ours and shows where it arose."""
    try:
        yield
    except KeyboardInterrupt:
        _stopped(signal.SIGINT)
    except Exception as error:
        from skycairn.pile.files import Locked

        if not isinstance(error, _mendable()):
            raise
        typer.echo(f"skycairn: {error}", err=True)
        raise typer.Exit(LOCKED if isinstance(error, Locked) else 1) from error
    except BaseException as error:
        # `Stopped` is known only to those that have begun to build
        if (number := getattr(error, "signal", None)) is None:
            raise
        _stopped(number)


def _mendable() -> tuple[type[Exception], ...]:
    kinds: list[type[Exception]] = [ValueError, OSError]
    for module, name in (
        ("pipeline.run", "BuildError"),
        ("pipeline.engine", "EngineError"),
        ("archives.errors", "FetchError"),
    ):
        if found := sys.modules.get(f"skycairn.{module}"):
            kinds.append(getattr(found, name))
    return tuple(kinds)


def _stopped(number: int) -> None:
    typer.echo("skycairn: stopped; run the same command again and it goes on where it was", err=True)
    sys.exit(128 + number)
