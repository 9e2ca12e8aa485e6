"""How much of a measurement its tokens keep: decode(tokens) - measured, in sigma, on the held-out sky of a pile.

    python benchmarks/codec_errors.py PILE
    python benchmarks/codec_errors.py --catalogues ROOT      numbers alone: codecs fitted anew to a mock's catalogues

Reads of the newest snapshot: shards of the splits validation and test (tokens), the surveys' wide tables and the kept
payload (measurements and their errors), codecs.lock. Prints Markdown tables; docs/codec_errors.md holds those of the
mock sky. Nothing is measured on the training split, and none of the codecs was fitted to what is measured.

`--catalogues` is for a sky with so many sources that the codecs have all their bins, which no pile of pixels has.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from skycairn.archives.files import RootArchive
from skycairn.catalogs.survey import WORK_ORDER, Modality, first_failed
from skycairn.match.sky import healpix29, splits
from skycairn.pile.store import Pile
from skycairn.pipeline import recipe as recipes
from skycairn.pipeline.encode import measured_values
from skycairn.pipeline.heldout import HELD_OUT, HeldOut, catalogue, check_tokens, held_out, payload, surveys
from skycairn.tokenizers.codec import Codec
from skycairn.tokenizers.lock import read_lock
from skycairn.tokenizers.registry import fit_codec

APERTURE_PIXELS = 12.0
HEAD = (
    "| modality | codec | tokens | vocabulary | n fitted (train) | n held out | unit | error: median | 84 % | 99 % "
    "| within 1 sigma | median / spread | end bins |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def sigma_of(table: pa.Table, m: Modality) -> np.ndarray | None:
    """One sigma of each measurement, as the survey gives it, shape (n, *shape); None where it gives none."""
    if m.error:
        column = table[m.error].combine_chunks()
        flat = pc.list_flatten(column) if m.shape else column
        return flat.cast(pa.float64()).to_numpy(zero_copy_only=False).reshape(table.num_rows, *m.shape)
    if m.ivar:
        ivar = table[m.ivar].combine_chunks().cast(pa.float64()).to_numpy(zero_copy_only=False)
        return np.where(ivar > 0, ivar, np.nan) ** -0.5
    return None


def spread(x: np.ndarray) -> float:
    """Robust standard deviation: the interquartile range over 1.349."""
    return float(np.subtract(*np.percentile(x, [75, 25])) / 1.349)


def quantiles(x: np.ndarray) -> str:
    return " | ".join(f"{v:.3g}" for v in np.percentile(x, [50, 84, 99])) if len(x) else "- | - | -"


def measured(pile: Pile, m: Modality, held: HeldOut) -> tuple[np.ndarray, np.ndarray | None]:
    """Values and one sigma of the held-out sources of a column modality."""
    table = catalogue(pile, m, held.key, ["key", *{c for c in (m.column, m.error, m.ivar) if c}])
    x, present = measured_values(table, m)
    if not present.all():
        raise SystemExit(f"{m.name}: {(~present).sum()} sources with tokens have no value")
    return x, sigma_of(table, m)


def column_rows(pile: Pile, m: Modality, codec: Codec) -> Iterator[str]:
    """One row of the table of numbers, and of the coefficients."""
    held = held_out(pile, m, codec)
    x, sigma = measured(pile, m, held)
    check_tokens(m, codec.encode({"value": x}), held)
    yield error_row(m, codec, held.tokens, x, sigma)


def error_row(m: Modality, codec: Codec, tokens: np.ndarray, x: np.ndarray, sigma: np.ndarray | None) -> str:
    """What the tokens decode to against what was measured."""
    error = np.abs(codec.decode(tokens)["value"] - x)
    n_fit = getattr(codec, "n_fit", None)
    if sigma is None:
        in_sigma, unit, below = quantiles(error / spread(x)), "spread", "-"
    else:
        known = np.isfinite(sigma) & (sigma > 0)
        in_sigma, unit = quantiles((error / sigma)[known]), "sigma"
        below = f"{np.mean((error <= sigma)[known]):.0%}"
    relative = np.median(error, axis=0) / (np.apply_along_axis(spread, 0, x) if x.ndim > 1 else spread(x))
    ends = np.mean((tokens == 0) | (tokens == codec.vocabulary - 1))
    return (
        f"| {m.name} | {codec.kind} | {codec.n_tokens} | {codec.vocabulary} | {n_fit or 'a fixed grid'} | {len(x)} "
        f"| {unit} | {in_sigma} | {below} | {np.median(relative):.4f} | {ends:.1%} |"
    )


def catalogue_rows(root: Path) -> Iterator[str]:
    """Rows for the column modalities of a mock's catalogues, by the recipe `mock`: cuts, split, most rows to fit."""
    recipe = recipes.load("mock")
    split, rng = recipe.split, np.random.default_rng(0)
    for choice in recipe.surveys:
        s, archive = choice.survey(), RootArchive(root / choice.name)
        tables = [s.read(archive.local(f.path)) for f in s.catalog_files(archive, range(12 * 4**WORK_ORDER))]
        table = pa.concat_tables(tables).combine_chunks()
        for cuts in (s.valid, s.select[choice.profile]):
            # no XP in catalogues without pixels
            table = table.filter(first_failed([c for c in cuts if c.name != "xp"], table).is_null())
        table = table.combine_chunks()
        healpix = healpix29(table["ra"].to_numpy(), table["dec"].to_numpy())
        where = splits(healpix, np.arange(len(healpix)), len(healpix), split.salt, split.by_name())
        train = np.flatnonzero(where == "train")
        train = rng.permutation(train)[: recipe.codecs.fit_rows]
        rest = np.flatnonzero(np.isin(where, HELD_OUT))
        for m in s.modalities:
            if m.payload or m.codec == "xp":
                continue
            fitted = fit_codec(m.codec, {"value": measured_values(table.take(pa.array(train)), m)[0]})
            some = table.take(pa.array(rest)).combine_chunks()
            x, present = measured_values(some, m)
            yield error_row(m, fitted, fitted.encode({"value": x}), x, sigma_of(some.filter(pa.array(present)), m))


def classes(sn: np.ndarray, edges: tuple[float, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """All, then those between the edges of signal to noise."""
    yield "all", np.ones(len(sn), bool)
    for low, high in zip((-np.inf, *edges), (*edges, np.inf), strict=True):
        chosen = (sn >= low) & (sn < high)
        label = (
            f"below {high:g}" if low == -np.inf else f"{low:g} and above" if high == np.inf else f"{low:g} to {high:g}"
        )
        yield label, chosen


def image_rows(pile: Pile, m: Modality, codec: Codec) -> Iterator[str]:
    """By band and signal to noise: chi squared a good pixel, and the flux in an aperture.

    Medians over the sources of chi squared of the reconstruction and of no light, in the whole crop and in the
    aperture; `kept`: the share of the summed chi squared of no light that the reconstruction removes.
    """
    held = held_out(pile, m, codec)
    whole = payload(pile, m, held)
    check_tokens(m, codec.encode(whole), held, codec)
    decoded = codec.decode(held.tokens)["flux"].astype(np.float64)
    crop, size = decoded.shape[-1], m.shape[-1]
    first = size // 2 - crop // 2
    inner = (slice(None), slice(None), slice(first, first + crop), slice(first, first + crop))
    flux, ivar = whole["flux"][inner].astype(np.float64), whole["ivar"][inner].astype(np.float64)
    good = (ivar > 0) & ~whole["mask"][inner]
    ivar = np.where(good, ivar, 0.0)
    y, x = np.mgrid[:crop, :crop] - crop // 2
    near = np.hypot(x, y) <= APERTURE_PIXELS
    for b, band in enumerate(m.bands):
        chi2, dark = (ivar[:, b] * (flux[:, b] - guess) ** 2 for guess in (decoded[:, b], 0.0))
        everywhere = np.maximum(good[:, b].sum(axis=(1, 2)), 1)
        within = np.maximum(good[:, b][:, near].sum(axis=1), 1)
        per_pixel = [a.sum(axis=(1, 2)) / everywhere for a in (chi2, dark)]
        per_pixel += [a[:, near].sum(axis=1) / within for a in (chi2, dark)]
        # the aperture's flux, of sources all of whose pixels there are good
        light, other = flux[:, b][:, near].sum(axis=1), decoded[:, b][:, near].sum(axis=1)
        whole_aperture = good[:, b][:, near].all(axis=1)
        noise = np.sqrt(np.sum(1 / np.where(good[:, b][:, near], ivar[:, b][:, near], np.inf), axis=1))
        sn = np.where(whole_aperture, light / np.where(noise > 0, noise, 1), -np.inf)
        for label, chosen in classes(sn, (20.0, 100.0)):
            chosen = chosen & whole_aperture
            if not chosen.any():
                continue
            medians = " | ".join(f"{np.median(v[chosen]):.2f}" for v in per_pixel)
            kept = 1 - chi2[chosen].sum() / dark[chosen].sum()
            bias = (other - light)[chosen]
            whole_flux = bias.sum() / light[chosen].sum()
            yield (
                f"| {band} | {label} | {chosen.sum()} | {medians} | {kept:.1%} | {whole_flux:+.1%} "
                f"| {np.median(bias / light[chosen]):+.1%} | {np.median(np.abs(bias) / noise[chosen]):.2f} |"
            )


def spectrum_rows(pile: Pile, m: Modality, codec: Codec) -> Iterator[str]:
    """By signal to noise: chi squared a good pixel, and the mean flux; columns as of `image_rows`."""
    held = held_out(pile, m, codec)
    whole = payload(pile, m, held)
    check_tokens(m, codec.encode(whole), held, codec)
    decoded = codec.decode(held.tokens)["flux"].astype(np.float64)
    flux = whole["flux"].astype(np.float64)
    ivar = np.where(whole["mask"], 0.0, whole["ivar"].astype(np.float64))
    good = ivar > 0
    sn = np.array([np.median((f * np.sqrt(i))[i > 0]) for f, i in zip(flux, ivar, strict=True)])
    mean = (ivar * flux).sum(axis=1) / ivar.sum(axis=1)
    chi2, zero, constant = (
        (ivar * (flux - guess) ** 2).sum(axis=1) for guess in (decoded, np.zeros_like(flux), mean[:, None])
    )
    bias = (ivar * decoded).sum(axis=1) / ivar.sum(axis=1) - mean
    error = ivar.sum(axis=1) ** -0.5
    per_pixel = [a / np.maximum(good.sum(axis=1), 1) for a in (chi2, zero, constant)]
    for label, chosen in classes(sn, (0.5, 2.0, 10.0)):
        if chosen.any():
            medians = " | ".join(f"{np.median(v[chosen]):.2f}" for v in per_pixel)
            yield (
                f"| {label} | {chosen.sum()} | {medians} | {1 - chi2[chosen].sum() / zero[chosen].sum():.2%} | "
                f"{bias[chosen].sum() / mean[chosen].sum():+.2%} | {np.median(bias[chosen] / mean[chosen]):+.2%} | "
                f"{np.median(np.abs(bias[chosen]) / error[chosen]):.2f} |"
            )


def main() -> None:
    if sys.argv[1] == "--catalogues":
        print(HEAD)
        for row in catalogue_rows(Path(sys.argv[2])):
            print(row, flush=True)
        return
    root = Path(sys.argv[1])
    pile, codecs = Pile.open(root), read_lock(root / "codecs.lock")
    found = {m.name: m for s in surveys(pile) for m in s.modalities if m.name in codecs}
    print(f"Pile {pile.snapshot().content_id[:12]}, splits {' and '.join(HELD_OUT)}.\n")
    print(HEAD)
    for name, m in found.items():
        if not m.payload:
            print(*column_rows(pile, m, codecs[name]), sep="\n", flush=True)
    for name, m in found.items():
        if not m.payload:
            continue
        codec = codecs[name]
        n_fit = getattr(codec, "n_fit", "-")
        print(f"\n`{name}`: {codec.kind}, {codec.n_tokens} tokens of {codec.vocabulary}, fitted to {n_fit} sources.\n")
        if m.codec == "image":
            print(
                f"| band | S/N in {APERTURE_PIXELS:g} pixels | n | chi2 / pixel | of no light | in the aperture "
                "| of no light | kept of all | flux: of all | median | in sigma: median |\n"
                "|---|---|---|---|---|---|---|---|---|---|---|"
            )
            print(*image_rows(pile, m, codec), sep="\n", flush=True)
        else:
            print(
                "| S/N a pixel | n | chi2 / pixel | of no light | of a constant | kept of all | flux: of all "
                "| median | in sigma: median |\n|---|---|---|---|---|---|---|---|---|"
            )
            print(*spectrum_rows(pile, m, codec), sep="\n", flush=True)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(str(error)) from error
