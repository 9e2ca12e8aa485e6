"""`skycairn-tokenize`: trains codecs of images, spectra and segmentation maps, judges and exchanges them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skycairn.cli.failing import errors
from skycairn.cli.quality import quality

if TYPE_CHECKING:
    from skycairn.pile.store import Pile, Snapshot
    from skycairn.tokenizers.codec import Codec
    from skycairn.tokenizers.network import NetworkCodec
    from skycairn.tokenizers.schedule import Schedule
    from skycairn.tokenizers.training import Examples

app = typer.Typer(
    help="Learned codecs: trained on a pile, published, and taken from AION-1.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
app.command()(quality)
MOST_HELD_TINY = 128
OF_AION = ("image", "spectrum", "segmap")
Out = Annotated[Path, typer.Option(help="folder for codecs.lock and codecs/, beside those that it has")]


@app.command()
def train(
    kind: Annotated[str, typer.Argument(help="image | spectrum | segmap")],
    pile: Annotated[Path, typer.Option(help="pile whose kept pixels and spectra to learn from")],
    out: Out,
    size: Annotated[str, typer.Option(help="tiny (CPU, minutes) | small | aion (AION-1's)")] = "tiny",
    schedule: Annotated[str, typer.Option(help="quick | paper (AION-1's); quick for tiny, else paper")] = "",
    steps: Annotated[int | None, typer.Option(help="steps, instead of the schedule's")] = None,
    batch: Annotated[int | None, typer.Option(help="sources a step, instead of the schedule's")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="instead of the schedule's")] = None,
    minutes: Annotated[
        float, typer.Option(help="take no more steps than fit, and stop then wherever it is; 0: no limit")
    ] = 0.0,
    precision: Annotated[str, typer.Option(help="of matrix products: fp32 | bf16")] = "fp32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU where there is one")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves it to torch; 1 where cores are shared")] = 0,
    seed: Annotated[int, typer.Option(help="same seed, same run")] = 0,
    most: Annotated[int, typer.Option(help="learn from at most so many sources of a survey; 0: all")] = 20_000,
    snapshot: Annotated[str, typer.Option(help="number, tag or head")] = "head",
    cache: Annotated[
        Path | None, typer.Option(help="folder for the decoded pixels, which can be removed; OUT/examples unless given")
    ] = None,
) -> None:
    """Train codecs on the training sky of PILE, or go on where a run in OUT was stopped.

    All surveys of a kind share one network. What was learned is judged on the validation sky as it goes.
    """
    with errors():
        began = time.monotonic()
        chosen = _schedule(kind, size, schedule, steps, batch, learning_rate, precision, seed)
        if minutes < 0:
            raise ValueError(f"--minutes {minutes}: wanted 0 (no limit) or more")
        if most < 0:
            raise ValueError(f"--most {most}: wanted 0 (all) or more")
        from skycairn.pile.store import Pile

        opened = Pile.open(pile)
        import torch

        if threads:
            torch.set_num_threads(threads)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"--device {device}: torch sees no GPU here; give cpu, or install with make TORCH=cuda")
        from skycairn.tokenizers.training import train as run

        # held until the end, so that no cleaning of the pile takes it away
        with opened.pin(opened.resolve(snapshot)) as pinned:
            kept = cache or out / "examples"
            codecs, examples = _prepared(kind, opened, pinned.snapshot, size, seed, kept, most or None)
            if minutes:
                left = max(1e-3, 60 * minutes - (time.monotonic() - began))
                if steps is None:
                    chosen = _fitting(chosen, codecs, examples, left, device, out)
                chosen = replace(chosen, most_seconds=left)
            try:
                run(codecs, examples, chosen, out, device, _say)
            except FloatingPointError as error:
                raise ValueError(str(error)) from error
            from skycairn.pipeline.heldout import record_sky

            record_sky(out / "codecs.lock", pinned.snapshot, codecs)
        typer.echo(f"{', '.join(codecs)}: in {out / 'codecs.lock'} after {time.monotonic() - began:.0f} s", err=True)
        typer.echo(f"encode with them: skycairn build RECIPE --pile NEW --codecs-from {out} --reuse {pile}", err=True)


@app.command()
def show(folder: Annotated[Path, typer.Argument(help="folder of a codec, of a lock, or of a pile")]) -> None:
    """Say what codecs are: kind, id, tokens, weights."""
    with errors():
        for name, codec in _codecs(folder).items():
            typer.echo("\n".join(_described(name, codec)))


@app.command()
def from_aion(
    source: Annotated[str, typer.Argument(help="folder with AION-1's codecs/, or polymathic-ai/aion-base on the Hub")],
    out: Out,
    codec: Annotated[list[str] | None, typer.Option(help="image, spectrum, segmap; all unless given")] = None,
    compat: Annotated[
        bool, typer.Option("--compat", help="its faults too: masks ignored (its spectra are always read its way)")
    ] = False,
    padding: Annotated[
        str, typer.Option(help="of spectra beyond their red end: none | upstream (as AION-1's later batches have it)")
    ] = "none",
) -> None:
    """Take AION-1's published codecs over, for the surveys that they were trained on, as a pile measures them."""
    with errors():
        wanted = _known_kinds(codec)
        if padding not in ("none", "upstream"):
            raise ValueError(f"--padding {padding}: choose none or upstream")
        from skycairn.pipeline.published import from_aion as read
        from skycairn.tokenizers.lock import read_lock, write_lock

        how: Any = ("aion" if compat else None, padding)
        found = {name: c for kind in wanted for name, c in read(kind, source, *how).items()}
        lock = out / "codecs.lock"
        write_lock(lock, {**(read_lock(lock) if lock.is_file() else {}), **found})
        for name, made in found.items():
            typer.echo(f"{name}: codec {made.content_id[:12]}.. in {out / 'codecs' / made.content_id}")


@app.command()
def to_aion(
    folder: Annotated[Path, typer.Argument(help="folder of a codec, of a lock, or of a pile")],
    out: Annotated[Path, typer.Option(help="folder for codecs/NAME, which polymathic-aion loads")],
    codec: Annotated[list[str] | None, typer.Option(help="modalities; all with a network unless given")] = None,
) -> None:
    """Write learned codecs as polymathic-aion loads them."""
    with errors():
        from skycairn.pipeline.published import to_aion as write

        codecs = _codecs(folder)
        if unknown := sorted(set(codec or []) - set(codecs)):
            raise ValueError(f"{folder} has no codec of {unknown[0]}; it has {', '.join(sorted(codecs))}")
        for place in write({m: c for m, c in codecs.items() if not codec or m in codec}, out):
            typer.echo(str(place))


def _schedule(
    kind: str,
    size: str,
    name: str,
    steps: int | None,
    batch: int | None,
    learning_rate: float | None,
    precision: str,
    seed: int,
) -> Schedule:
    _known_kinds([kind])
    name = name or ("quick" if size == "tiny" else "paper")
    if name not in ("quick", "paper"):
        raise ValueError(f"--schedule {name}: choose quick or paper")
    from skycairn.tokenizers.schedule import PAPER, QUICK

    chosen = (QUICK if name == "quick" else PAPER)[kind]
    if steps is not None:
        chosen = chosen.of_steps(steps)
    given: dict[str, Any] = {"batch": batch, "learning_rate": learning_rate, "precision": precision, "seed": seed}
    return replace(chosen, **{k: v for k, v in given.items() if v is not None})


def _fitting(
    schedule: Schedule,
    codecs: dict[str, NetworkCodec],
    examples: Examples,
    seconds: float,
    device: str,
    out: Path,
) -> Schedule:
    """The schedule in as many steps as fit; in those of the run that goes on, where there is one."""
    from skycairn.tokenizers.pace import within
    from skycairn.tokenizers.training import begun

    if before := begun(out, codecs):
        return replace(schedule.of_steps(before["steps"]), check_every=before["check_every"])
    chosen = within(schedule, codecs, examples, seconds, device)
    if chosen.steps < schedule.steps:
        few = "; of so few comes a codec that is worth nothing" if chosen.steps < 100 else ""
        _say(f"{chosen.steps:,} of {schedule.steps:,} steps fit into the time{few}")
    return chosen


def _known_kinds(kinds: list[str] | None) -> list[str]:
    if unknown := [k for k in kinds or [] if k not in OF_AION]:
        raise ValueError(f"there is no learned codec {unknown[0]!r}; choose one of {', '.join(OF_AION)}")
    return list(kinds or OF_AION)


def _prepared(
    kind: str, pile: Pile, snapshot: Snapshot, size: str, seed: int, cache: Path, most: int | None
) -> tuple[dict[str, NetworkCodec], Examples]:
    """The codecs as they begin, and what they learn from."""
    from skycairn.pipeline import learned
    from skycairn.pipeline.examples import MOST_HELD, PayloadExamples, payload_modalities

    modalities = learned.of_kind(kind, payload_modalities(snapshot))
    if kind != "segmap" and not modalities:
        raise ValueError(f"{pile.root} has no survey with {kind} payload; build one that has")
    # a look at the held-out sky takes a tiny network as long as many steps
    held = MOST_HELD_TINY if size == "tiny" else MOST_HELD
    if kind == "segmap":
        from skycairn.pipeline.segmaps import SegmapExamples

        return learned.fresh(kind, modalities, size, seed), SegmapExamples(pile, snapshot, most=most, most_held=held)
    _say(f"decoding what {pile.root} keeps of {', '.join(modalities)}, once")
    crop = learned.CROP if kind == "image" else None
    examples = PayloadExamples(pile, snapshot, modalities, cache, crop, most, held)
    noise = {m: examples.noise(m) for m in modalities} if kind == "image" else {}
    return learned.fresh(kind, modalities, size, seed, noise=noise), examples


def _codecs(folder: Path) -> dict[str, Codec]:
    """The codecs of a lock, or one by the name of its folder."""
    from skycairn.tokenizers.codec import load
    from skycairn.tokenizers.lock import read_lock

    if (folder / "codec.json").is_file():
        return {folder.name[:12]: load(folder)}
    if not folder.is_file() and not (folder / "codecs.lock").is_file():
        raise ValueError(f"{folder} holds neither codec.json nor codecs.lock; name the folder of a codec or of a lock")
    return read_lock(folder)


def _described(name: str, codec: Codec) -> list[str]:
    import math

    shape = " x ".join(str(n) for n in codec.layout.shape) or "1"
    bits = codec.n_tokens * math.log2(codec.vocabulary)
    arrays = codec.arrays()
    return [
        f"{name}: {codec.kind}{f', as {codec.compat}' if codec.compat else ''}",
        f"  id        {codec.content_id}",
        f"  tokens    {codec.n_tokens} ({codec.layout.kind}, {shape}) of {codec.vocabulary:,}: {bits:,.0f} bits",
        f"  numbers   {sum(a.size for a in arrays.values()):,} in {len(arrays)} arrays",
        *(f"  {k:<9} {_short(v)}" for k, v in sorted(codec.settings().items())),
    ]


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return ", ".join(str(v) for v in value) if isinstance(value, list) else str(value)


def _say(text: str) -> None:
    typer.echo(text, err=True)


if __name__ == "__main__":
    app()
