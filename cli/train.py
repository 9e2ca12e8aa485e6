"""`skycairn-train`: a model of the tokens of piles, and what it knows of the test sky."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from skycairn.cli.exporting import export
from skycairn.cli.failing import errors
from skycairn.cli.translating import translate

if TYPE_CHECKING:
    from skycairn.cli.runfile import RunFile
    from skycairn.model.settings import Settings
    from skycairn.model.strata import Source


class Verbs(TyperGroup):
    """Verbs, of which one may be left out: a first word that is none is what it runs."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """With the verb put in."""
        if args and args[0] not in {*self.commands, "--help"}:
            args = [run.__name__, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=Verbs,
    help="Trains a masked any-to-any model on piles. `skycairn-train PILE` and `skycairn-train CONFIG.toml` train.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
Config = Annotated[Path, typer.Argument(help="folder of a small pile, or a file as `skycairn-train config` prints")]


def run(
    config: Config,
    out: Annotated[Path | None, typer.Option(help="folder for checkpoints, metrics and the evaluation")] = None,
    size: Annotated[str | None, typer.Option(help="nano | micro | tiny | small | base | large | xlarge")] = None,
    steps: Annotated[int | None, typer.Option(help="steps of training")] = None,
    seed: Annotated[int | None, typer.Option(help="same seed, same run")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one")] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; 0 leaves it to torch; 1 where cores are shared")
    ] = None,
    snapshot: Annotated[
        str | None, typer.Option(help="number, tag or head; a run that goes on keeps to its own, a new one takes head")
    ] = None,
    score: Annotated[bool | None, typer.Option(help="score the model on the test sky when it is trained")] = None,
    start: Annotated[
        str | None, typer.Option(help="exported model, or AION-1's (folder or name on the Hub), to begin from")
    ] = None,
) -> None:
    """Train, or go on where a run in OUT was stopped; then score the model on the test sky.

    What is given here stands in for what CONFIG says. The validation sky chooses among checkpoints, and how far each
    modality is trusted; the test sky is seen by the score alone.
    """
    with errors():
        from skycairn.cli.runfile import read_run

        wanted = read_run(config)
        settings = {"size": size, "steps": steps, "seed": seed}
        rest = {"out": out, "device": device, "threads": threads, "score": score, "start": start}
        wanted = replace(
            wanted,
            settings=replace(wanted.settings, **_given(settings)),
            **_given(rest),
        )
        if snapshot is not None:
            if len(wanted.piles) > 1:
                raise ValueError(f"--snapshot {snapshot}: {config} names several piles; say it there, of each")
            wanted = replace(wanted, piles={k: v._replace(snapshot=snapshot) for k, v in wanted.piles.items()})
        _run(wanted)


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if v is not None}


def _run(wanted: RunFile) -> None:
    import torch

    from skycairn.model.evaluate import as_markdown, evaluate, write
    from skycairn.model.processes import processes, rank_and_world
    from skycairn.model.sharded import there
    from skycairn.model.trained import finished
    from skycairn.model.trainer import train
    from skycairn.model.warmstart import read_start

    if wanted.threads:
        torch.set_num_threads(wanted.threads)
    settings, out = wanted.settings, wanted.out
    with ExitStack() as held:
        began = time.monotonic()
        with processes(wanted.device) as device:
            first = rank_and_world()[0] == 0
            sources = pinned(wanted, held)
            splits = set.intersection(*(set(_splits(s)) for s in sources))
            if wanted.score:
                _refuse_to_score(sources, splits)
            validation = "validation" if "validation" in splits else ""
            if not validation and first:
                lacking = [s.name for s in sources if "validation" not in _splits(s)]
                _told(f"{', '.join(lacking)}: no validation split, so the last weights are taken for the best")
            begin = read_start(wanted.start) if wanted.start else None
            # a checkpoint says what its network is
            levels = {} if there(out / "last") else _levels(sources, settings)
            train(sources, settings, out, device, validation, _told, begin, levels)
        if not first:
            return
        network = finished(sources, out, device, validation)
        seconds = time.monotonic() - began
        _told(f"trained to step {settings.steps}, {seconds:.0f} s by now on {device}; weights in {out / 'model'}")
        if not wanted.score:
            return
        about = {"snapshots": [s.content_id for s in sources], "settings": settings.as_json()}
        found = evaluate(network, sources)
        write(found, out, {**about, "split": "test", "device": device})
        typer.echo(as_markdown(found))


def _levels(sources: Sequence[Source], settings: Settings) -> dict[str, tuple[int, ...]]:
    """What the tokens of each codec are made of, where the run wants to know it and the pile holds its codecs."""
    from skycairn.pile.store import Pile
    from skycairn.pipeline.loaded import codecs_of

    if not settings.smooth:
        return {}
    found: dict[str, tuple[int, ...]] = {}
    for source in sources:
        if isinstance(source.pile, Pile) and "codecs" in {*source.snapshot.tables, *source.snapshot.aside}:
            found |= {name: codec.levels for name, codec in codecs_of(source.pile, source.snapshot)}
        else:
            _told(f"{source.name}: holds no codecs; unless another pile tells of them, only numbers start smooth")
    return found


def _splits(source: Source) -> list[str]:
    return sorted({str(e.labels["split"]) for e in source.snapshot.entries("shards")})


def _refuse_to_score(sources: Sequence[Source], splits: Collection[str]) -> None:
    """ValueError where there is no test sky, or one pile's lies on what another is learned from."""
    if "test" not in splits:
        told = "; ".join(f"{s.name} has {', '.join(_splits(s))}" for s in sources)
        raise ValueError(
            f"no test split to score on ({told}); build a pile of more sky, or give --no-score (score = false)"
        )
    ways = {json.dumps([(s.split or {}).get(k) for k in ("salt", "fractions")]): s.name for s in sources}
    if len(ways) > 1:
        raise ValueError(
            f"{', '.join(ways.values())}: their skies are split unlike each other ({'; '.join(ways)}), so that one's "
            "test sky is learned from in another; build them with one [split], or give --no-score (score = false)"
        )


def _told(text: str) -> None:
    typer.echo(text, err=True)


def pinned(wanted: RunFile, held: ExitStack) -> list[Source]:
    """The piles at their snapshots, which no cleaning takes away until `held` ends.

    A run that goes on keeps to its own ones, wherever none is named. ValueError where a pile has it no longer.
    """
    from skycairn.model import sharded
    from skycairn.model.strata import Source
    from skycairn.pile.export import MANIFEST, Export
    from skycairn.pile.store import Pile

    own: list[str] = []
    if sharded.there(wanted.out / "last"):
        own = sharded.read_about(wanted.out / "last")["snapshots"]
    sources = []
    for i, (name, (path, text)) in enumerate(wanted.piles.items()):
        if (path / MANIFEST).exists():
            export = Export.open(path)
            sources.append(Source(export, export.snapshot(), name))
            continue
        pile = Pile.open(path)
        number = pile.resolve(text or "head")
        if not text and i < len(own) and pile.snapshot(number).content_id != own[i]:
            found = [n for n in reversed(pile.snapshots()) if pile.snapshot(n).content_id == own[i]]
            if not found:
                raise ValueError(
                    f"{wanted.out}: its run learns from snapshot {own[i][:12]} of {name}, which {path} has no longer; "
                    "give another folder for a new run"
                )
            number = found[0]
        sources.append(Source(pile, held.enter_context(pile.pin(number)).snapshot, name))
    return sources


def plan(config: Config) -> None:
    """Print how often a run will see the objects of each stratum, exactly, and stop."""
    with errors(), ExitStack() as held:
        from skycairn.cli.runfile import read_run
        from skycairn.model.order import Order
        from skycairn.model.strata import as_text, find

        wanted = read_run(config)
        settings = wanted.settings
        strata, vocabulary = find(pinned(wanted, held), "train")
        order = Order(strata, settings.weights, settings.objects, settings.microbatches, settings.pool, settings.seed)
        typer.echo(
            f"{settings.steps:,} steps of {settings.microbatches} x {settings.objects} objects, "
            f"{len(vocabulary.columns)} modalities\n"
        )
        typer.echo(as_text(order.table(settings.steps)))


def show(out: Annotated[Path, typer.Argument(help="folder of a run")]) -> None:
    """Tell of a run: how far it is, what it learned so far, and its scores where it has them."""
    with errors():
        from skycairn.model import sharded

        about = sharded.read_about(out / "last")
        settings = about["settings"]
        typer.echo(f"step {about['step']:,} of {settings['steps']:,}, size {settings['size']}")
        typer.echo(
            f"snapshots {', '.join(s[:12] for s in about['snapshots'])}; {len(about['modalities'])} modalities\n"
        )
        metrics = out / "metrics.jsonl"
        lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
        typer.echo("| step | loss | validation | objects a second | waiting for data |\n|--:|--:|--:|--:|--:|")
        for line in lines:
            validation = _shown(line["validation"]["loss"]) if "validation" in line else ""
            typer.echo(
                f"| {line['step']} | {_shown(line['loss'])} | {validation} | {line['objects_s']:.0f} "
                f"| {line['waiting']:.0%} |"
            )
        if lines and "validation" in lines[-1]:
            typer.echo("\n| modality | validation, nats a token |\n|---|--:|")
            for name, loss in lines[-1]["validation"]["modalities"].items():
                typer.echo(f"| {name} | {_shown(loss)} |")
        if (scores := out / "evaluation.md").exists():
            typer.echo(f"\n{scores.read_text()}")


def _shown(loss: float | None) -> str:
    """Where all steps were skipped there is none."""
    return "-" if loss is None else f"{loss:.4f}"


def config(pile: Annotated[Path, typer.Argument(help="folder of the pile to learn from")] = Path("work/pile")) -> None:
    """Print a file to begin with: all settings of `skycairn-train PILE`, each with what it means."""
    with errors():
        from skycairn.cli.runfile import as_text, small
        from skycairn.pile.export import MANIFEST

        if not any((pile / name).exists() for name in ("pile.json", MANIFEST)):
            raise ValueError(f"{pile}: there is no pile, and no export of one; give the folder of one")
        typer.echo(as_text(small(pile)), nl=False)


VERBS: tuple[Callable[..., None], ...] = (run, plan, show, config, export, translate)
for verb in VERBS:
    app.command()(verb)


if __name__ == "__main__":
    app()
