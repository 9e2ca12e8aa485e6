"""`skycairn-train`: a model of the tokens of a pile, and what it knows of the validation sky."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Trains a masked any-to-any model on a pile.", add_completion=False, pretty_exceptions_enable=False
)


@app.command()
def train(
    pile: Annotated[Path, typer.Argument(help="folder of the pile")],
    out: Annotated[Path, typer.Option(help="folder for checkpoints, metrics and the evaluation")] = Path("work/model"),
    size: Annotated[str, typer.Option(help="nano | micro | tiny | small")] = "nano",
    steps: Annotated[int | None, typer.Option(help="steps of training")] = None,
    batch: Annotated[int | None, typer.Option(help="objects a step")] = None,
    seed: Annotated[int, typer.Option(help="same seed, same run")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU where there is one")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves it to torch; 1 where cores are shared")] = 0,
    score: Annotated[bool, typer.Option(help="score the model on the validation sky when it is trained")] = True,
    snapshot: Annotated[
        str, typer.Option(help="number, tag or head; a run that goes on keeps to its own, a new one takes head")
    ] = "",
) -> None:
    """Train, or go on where a run in OUT was stopped; then score the model on the validation sky."""
    from skycairn.cli.failing import errors

    with errors():
        import torch

        from skycairn.model.evaluate import as_markdown, evaluate, write
        from skycairn.model.train import Config, snapshot_of
        from skycairn.model.train import train as run
        from skycairn.pile.store import Pile

        if threads:
            torch.set_num_threads(threads)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"--device {device}: torch sees no GPU here; give cpu, or install with make TORCH=cuda")
        opened = Pile.open(pile)
        number = opened.resolve(snapshot) if snapshot else snapshot_of(out) or opened.resolve("head")
        # held until the end, so that no cleaning of the pile takes it away
        holder = opened.pin(number)
        pinned = holder.snapshot
        splits = {str(e.labels["split"]) for e in pinned.entries("shards")}
        if score and "validation" not in splits:
            raise ValueError(
                f"{pile}: there is no validation split to score on (it has {', '.join(sorted(splits))}); build a pile "
                "of more sky, or give --no-score"
            )
        config = Config(size=size, seed=seed)
        given = {"steps": steps, "batch": batch}
        config = replace(config, **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]
        began = time.monotonic()
        model = run(opened, pinned, out, config, device, lambda text: typer.echo(text, err=True))
        seconds = time.monotonic() - began
        typer.echo(f"{config.steps} steps in {seconds:.0f} s on {device}; weights in {out / 'model'}", err=True)
        if not score:
            return
        found = evaluate(model, opened, pinned)
        about = {"snapshot": pinned.content_id, "size": size, "steps": config.steps, "seed": seed, "device": device}
        write(found, out, {**about, "training_seconds": round(seconds, 1)})
        typer.echo(as_markdown(found))


if __name__ == "__main__":
    app()
