"""`skycairn-train translate`: one survey's images or spectra from another's, with pictures and numbers.

Drawn by a model for objects of the test sky that both surveys saw, and held against what the second one measured.
Beside it: the mean and the nearest neighbour of the training sky, and the measurement itself through its codec, which
is the best that any answer in tokens could be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray

from skycairn.cli.failing import errors

F64 = NDArray[np.float64]
LEARNED_FROM = 4000
"""Objects of the training sky that the mean and the neighbours are of, at most."""
PICTURED = 6


def translate(
    model: Annotated[Path, typer.Argument(help="folder that `skycairn-train export` wrote")],
    pile: Annotated[Path, typer.Argument(help="a pile by the same codecs that keeps its pixels and spectra")],
    source: Annotated[str, typer.Argument(metavar="FROM", help="a survey, or modalities: legacysurvey, gaia.xp_bp")],
    target: Annotated[str, typer.Argument(metavar="TO", help="a modality of pixels: hsc.image, desi.spectrum")],
    out: Annotated[Path, typer.Option(help="folder for translation.md, .json and .png")],
    objects: Annotated[int, typer.Option(help="objects of the test sky, at most")] = 100,
    samples: Annotated[int, typer.Option(help="draws of each")] = 8,
    steps: Annotated[int, typer.Option(help="passes for each draw; the more, the truer")] = 32,
    temperature: Annotated[float, typer.Option(help="of the draws; 0 takes what is likeliest")] = 1.0,
    seed: Annotated[int, typer.Option(help="same seed, same draws")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves it to torch")] = 0,
) -> None:
    """Draw TO from FROM for objects of the test sky; write numbers against what was measured, and pictures."""
    with errors():
        import torch

        from skycairn.model.metrics import plain
        from skycairn.model.model import Model
        from skycairn.pile.store import Pile

        if min(objects, samples, steps) < 1:
            raise ValueError(
                f"translate: {objects} objects, {samples} samples, {steps} steps; wanted 1 or more of each"
            )
        if threads:
            torch.set_num_threads(threads)
        loaded, opened = Model.load(model, device), Pile.open(pile)
        how = How(samples, steps, temperature, seed)
        found = translated(loaded, opened, modalities(loaded, source, target), target, objects, how, _say)
        out.mkdir(parents=True, exist_ok=True)
        told = numbers(found)
        about = {"from": found.shown, "to": target, "snapshot": opened.snapshot().content_id, **how._asdict()}
        (out / "translation.json").write_text(json.dumps(plain({**about, "answers": told}), indent=1) + "\n")
        text = markdown(found, told)
        (out / "translation.md").write_text(text)
        typer.echo(text)
        _picture(found, out / "translation.png")


def _say(text: str) -> None:
    typer.echo(text, err=True)


class How(NamedTuple):
    """How draws are made."""

    samples: int
    steps: int
    temperature: float
    seed: int


class Translated(NamedTuple):
    """Objects of the test sky: what was measured, what was drawn, and what others say."""

    target: str
    shown: tuple[str, ...]
    ids: list[str]
    data: Any
    "translation.Measured"
    draws: NDArray[np.float32]
    "(object, sample, ...)"
    answers: dict[str, NDArray[np.float32]]
    """by who answers, (object, ...), the median of the draws first: one draw that runs away owns their mean; but what
    is elsewhere in each draw, a line say, is lost in the median"""
    wavelength: F64 | None
    "Angstrom; None of images"
    z: F64
    "NaN where the survey gives none, and of quasars"
    bands: tuple[str, ...]
    unit: str
    source: NDArray[np.float32] | None
    "the image that was shown, by its codec, for the picture"
    source_bands: tuple[str, ...]


def modalities(model: Any, source: str, target: str) -> tuple[str, ...]:
    """What FROM names, of the model's; ValueError where it, or TO, names nothing that would do."""
    names = model.vocabulary.names
    if target not in names or not {"image", "spectrum"} & set(target.split(".")):
        wanted = [n for n in names if n.endswith((".image", ".spectrum"))]
        raise ValueError(f"translate: TO is {target!r}; wanted one of {', '.join(wanted)}")
    given = source.split(",")
    for word in given:
        if not any(word in (n, n.split(".")[0]) for n in names):
            surveys = ", ".join(sorted({n.split(".")[0] for n in names}))
            raise ValueError(f"translate: FROM is {word!r}; wanted one of {surveys}, or of {', '.join(names)}")
    chosen = tuple(n for n in names if n in given or n.split(".")[0] in given)
    if any(n.split(".")[0] == target.split(".")[0] for n in chosen):
        raise ValueError(f"translate: {source} and {target} are of one survey, which would show what is asked for")
    return chosen


def translated(model: Any, pile: Any, shown: tuple[str, ...], target: str, most: int, how: How, say: Any) -> Translated:
    """Draw, and gather what it is held against. ValueError where codecs differ, or the pile keeps no payload of it."""
    from skycairn.cli.quality import central, kinds
    from skycairn.model.asked import objects_with
    from skycairn.model.features import evened, features, nearest
    from skycairn.model.generate import generate, shown_of
    from skycairn.model.schemes import Roar, Target
    from skycairn.model.translation import Measured
    from skycairn.model.vocabulary import Vocabulary
    from skycairn.pipeline import heldout
    from skycairn.tokenizers.quality import good_pixels

    snapshot, survey = pile.snapshot(), target.split(".")[0]
    model.vocabulary.refuse_other_codecs(Vocabulary.of(pile, snapshot).columns, str(pile.root))
    m = next((m for s in heldout.surveys(pile) for m in s.modalities if m.name == target), None)
    if m is None:
        raise ValueError(f"{pile.root}: has no {target}; build it with {survey}, or ask for another TO")
    if not heldout.weighted(pile, m):
        raise ValueError(f"{pile.root}: its {target} has no inverse variances, without which nothing can be judged")
    if snapshot.recipe.get("split") not in model.config["provenance"]["splits"]:
        say(
            "warning: the model learned from a sky that was split otherwise; of one and the same sky it may have seen "
            "what it is judged by here"
        )
    columns = ("object_id", f"key.{survey}")
    test = objects_with(pile, snapshot, "test", shown, (target,), columns, most)
    order = np.argsort(test.about[f"key.{survey}"].to_numpy())
    test = test.take(order)
    key = test.about[f"key.{survey}"].to_numpy()
    measured = heldout.payload(pile, m, heldout.HeldOut(key, test.tokens[target].values))
    codec, ids = model.codecs[target], test.about["object_id"].to_pylist()
    say(f"{len(ids)} objects of the test sky, {how.samples} draws of {target} each")
    given = {name: test.tokens[name] for name in shown}
    scheme = Target(target, Roar(steps=how.steps), temperature=how.temperature)
    tokens = generate(model.network, shown_of(model.vocabulary, given, len(ids)), [scheme], how.samples, how.seed, ids)[
        target
    ]
    draws = np.stack([_flux(codec, tokens[:, s]) for s in range(how.samples)], axis=1)
    training = objects_with(pile, snapshot, "train", shown, (target,), ("object_id",), LEARNED_FROM)
    known, asked = evened(features({n: training.tokens[n] for n in shown}, model.codecs), features(given, model.codecs))
    near = nearest(known, asked, 1)[:, 0]
    side = draws.shape[-1] if m.image else 0
    cut = {k: central(v, side) if m.image else v for k, v in measured.items()}
    data = Measured(
        cut["flux"].astype(np.float64), cut["ivar"].astype(np.float64), good_pixels(cut["ivar"], cut["mask"])
    )
    answers: dict[str, NDArray[np.float32]] = {
        "model, median of draws": np.median(draws, axis=1).astype(np.float32),
        "model, mean of draws": draws.mean(axis=1),
        "model, one draw": draws[:, 0],
        "mean of the training sky": np.broadcast_to(_mean(codec, training.tokens[target].values), data.flux.shape),
        "nearest neighbour": _flux(codec, training.tokens[target].values[near]),
        "no light": np.zeros(data.flux.shape, np.float32),
        "its own tokens": _flux(codec, test.tokens[target].values),
    }
    table = heldout.catalogue(pile, m, key)
    z = table["z_good"].to_numpy(zero_copy_only=False) if "z_good" in table.column_names else np.full(len(key), np.nan)
    z = np.where(kinds(table) == "quasar", np.nan, z.astype(np.float64))  # whose broad lines are no narrow ones
    image = next((n for n in shown if n.endswith(".image")), None)
    seen = _flux(model.codecs[image], given[image].values) if image else None
    return Translated(
        target,
        shown,
        ids,
        data,
        draws,
        answers,
        None if m.image else _wavelength(m),
        z,
        tuple(m.bands) if m.image else (),
        model.quantities[target].unit,
        seen,
        tuple(model.quantities[image].bands) if image else (),
    )


def _wavelength(m: Any) -> F64:
    from skycairn.pipeline.learned import grid

    return np.asarray(grid(m).wavelength(), np.float64)


def _flux(codec: Any, tokens: NDArray[Any], at_once: int = 64) -> NDArray[np.float32]:
    parts = [codec.decode(tokens[i : i + at_once].astype(codec.dtype))["flux"] for i in range(0, len(tokens), at_once)]
    return np.concatenate(parts).astype(np.float32)


def _mean(codec: Any, tokens: NDArray[Any], at_once: int = 64) -> F64:
    total: F64 | float = 0.0
    for i in range(0, len(tokens), at_once):
        total = total + _flux(codec, tokens[i : i + at_once]).astype(np.float64).sum(axis=0)
    return np.asarray(total / len(tokens))


def numbers(found: Translated) -> dict[str, dict[str, Any]]:
    """All numbers of each answer, by name."""
    from skycairn.model.translation import coverage, light, line_errors, residual

    out: dict[str, dict[str, Any]] = {}
    for who, answer in found.answers.items():
        out[who] = {"residual": residual(answer, found.data)._asdict()}
        if who == "no light":
            continue
        if found.wavelength is None:
            out[who]["light"] = light(answer, found.data)._asdict()
        else:
            out[who]["lines"] = line_errors(answer, found.data, found.wavelength, found.z)._asdict()
    if found.draws.shape[1] > 1:
        own = found.answers["its own tokens"]
        out["model, median of draws"]["coverage"] = coverage(found.draws, own, found.data.good)._asdict()
    return out


def markdown(found: Translated, told: Mapping[str, Mapping[str, Any]]) -> str:
    """A table."""
    images = found.wavelength is None
    heads = ["answer", "objects", "residual, sigma a pixel", "bias, sigma"]
    heads += (
        ["flux error", "scatter", "colour error, mag", "scatter, mag"]
        if images
        else ["lines", "lost", "line centre, pixels", "velocity, km/s", "without"]
    )
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for who, of in told.items():
        r = of["residual"]
        cells = [who, str(r["objects"]), f"{r['chi']:.2f}", f"{r['bias']:+.2f}"]
        if s := of.get("light"):
            cells += [
                f"{s['flux']:+.1%}",
                f"{s['flux_scatter']:.1%}",
                f"{s['colour']:+.3f}",
                f"{s['colour_scatter']:.3f}",
            ]
        elif s := of.get("lines"):
            cells += [str(s["lines"]), str(s["lost"]), f"{s['shift_pixels']:.2f}"]
            cells += [f"{s['velocity']:.0f}", str(s["unknown"])]
        rows.append("| " + " | ".join([*cells, *[""] * (len(heads) - len(cells))]) + " |")
    head = f"{found.target} of {len(found.ids)} objects of the test sky from {', '.join(found.shown)}.\n\n"
    covered = told["model, median of draws"].get("coverage")
    tail = ""
    if covered:
        what = "apertures" if images else "pieces"
        tail += f"\nOf {covered['n']} {what} of their own tokens, {covered['share']:.0%} lie within the middle 68 % of "
        tail += f"{found.draws.shape[1]} draws.\n"
    if not images:
        tail += "\nLines and velocities are against the data, whose noise is in their own tokens too.\n"
    return head + "\n".join(rows) + "\n" + tail


def _picture(found: Translated, path: Path) -> None:
    try:
        from skycairn.cli.translationpicture import drawn
    except ModuleNotFoundError as error:
        _say(f"no picture: {error}; pip install 'skycairn[plot]'")
        return
    drawn(found, pictured(found), path)


def pictured(found: Translated) -> Sequence[int]:
    """Objects over the whole range of brightness, those with most good pixels."""
    axes = tuple(range(1, found.data.flux.ndim))
    good = found.data.good.mean(axis=axes)
    sn = np.where(found.data.good, found.data.flux * np.sqrt(np.where(found.data.good, found.data.ivar, 0)), 0)
    whole = np.flatnonzero(good >= np.quantile(good, 0.3))
    order = whole[np.argsort(sn.mean(axis=axes)[whole])]
    return [int(i) for i in order[np.unique(np.linspace(0, len(order) - 1, PICTURED).astype(int))]]
