"""`skycairn-tokenize quality`: what codecs make of a pile's held-out sky, against the truth and against the data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from skycairn.catalogs.survey import Modality, Survey
from skycairn.cli.failing import errors
from skycairn.cli.qualitytables import DARK, Reconstruction, Table, tables_of, use_of_codes
from skycairn.pile.store import Pile
from skycairn.pipeline import heldout
from skycairn.pipeline.loaded import is_network
from skycairn.tokenizers import quality as numbers
from skycairn.tokenizers import spectralquality
from skycairn.tokenizers.codec import Codec
from skycairn.tokenizers.lock import read_lock
from skycairn.tokenizers.quality import Errors, errors_by_brightness, good_pixels

APERTURE_PIXELS = 12.0
ONE_CLASS: tuple[float, ...] = (-np.inf,)
"""All pixels in the upper class."""
Arrays = dict[str, NDArray[Any]]
Say = Callable[[str], None]


@dataclass
class Judged:
    """One modality of the held-out sky: its sources, the truth, and what each codec decodes."""

    modality: Modality
    key: NDArray[np.int64]
    measured: Arrays
    "flux, ivar, mask, cut to what the codecs give"
    truth: NDArray[np.float64]
    wavelength: NDArray[np.float64] | None
    z: NDArray[np.float64]
    "catalogue redshift, NaN where there is none"
    kind: NDArray[Any]
    "galaxy, star or quasar, as the survey's own columns have it; empty where they do not say"
    decoded: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    found: dict[str, Reconstruction] = field(default_factory=dict)
    flips: float = 0.0
    "share of the pile's tokens that its codec gives otherwise here"

    @property
    def good(self) -> NDArray[np.bool_]:
        """Pixels with information."""
        return good_pixels(self.measured["ivar"], self.measured["mask"])

    def sn(self) -> NDArray[np.float64]:
        """True S/N a pixel: of a spectrum the median over its good pixels, of an image the sum's within the aperture
        in the band that shows the source best."""
        ivar = np.where(self.good, self.measured["ivar"], 0.0)
        if self.modality.image:
            light = numbers.aperture(self.truth, self.truth, ivar, self.good, APERTURE_PIXELS)
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.where(light.whole & (light.sigma > 0), light.truth / light.sigma, -np.inf)
            return np.asarray(ratio.max(axis=1))
        sn = self.truth * np.sqrt(ivar)
        return np.array([np.median(s[g]) if g.any() else -np.inf for s, g in zip(sn, self.good, strict=True)])


def contestants(pile: Pile, root: Path, locks: Mapping[str, Path]) -> dict[str, dict[str, Codec]]:
    """Codecs by modality and name: the pile's own, called `pile`, then those of each lock that are others."""
    own = read_lock(root / "codecs.lock")
    out: dict[str, dict[str, Codec]] = {}
    others = {name: read_lock(path) for name, path in locks.items()}
    for s in heldout.surveys(pile):
        for m in s.modalities:
            if m.payload and m.name in own:
                out[m.name] = {"pile": own[m.name]}
                for name, lock in others.items():
                    if m.name in lock and lock[m.name].content_id != own[m.name].content_id:
                        out[m.name][name] = lock[m.name]
    return out


def central(a: NDArray[Any], side: int) -> NDArray[Any]:
    """The middle of images (..., y, x): pixel N // 2 becomes pixel side // 2."""
    y, x = (n // 2 - side // 2 for n in a.shape[-2:])
    return a[..., y : y + side, x : x + side]


def judge(pile: Pile, s: Survey, m: Modality, codecs: Mapping[str, Codec], truth_root: Path, most: int = 0) -> Judged:
    """Encode and decode the held-out sources of a modality by each codec, and measure what came out.

    `most`: at most so many sources, spread over the keys; 0 for all. Only sources that all codecs see are judged.
    """
    held = heldout.held_out(pile, m, codecs["pile"])
    if most and len(held.key) > most:
        held = heldout.HeldOut(*(a[np.linspace(0, len(held.key) - 1, most).astype(int)] for a in held))
    measured = heldout.payload(pile, m, held)
    flips = heldout.check_tokens(m, codecs["pile"].encode(measured), held, codecs["pile"])
    truth = heldout.true_flux(pile, s, m, truth_root, held.key, measured)
    seen = np.all([c.sees(measured) for c in codecs.values()], axis=0)
    key, tokens = held.key[seen], {"pile": held.tokens[seen]}
    measured, truth = {k: v[seen] for k, v in measured.items()}, truth[seen]
    tokens |= {name: c.encode(measured) for name, c in codecs.items() if name != "pile"}
    decoded = {name: np.asarray(c.decode(tokens[name])["flux"], np.float64) for name, c in codecs.items()}
    if m.image:
        side = min(d.shape[-1] for d in decoded.values())
        measured = {k: central(v, side) for k, v in measured.items()}
        truth, decoded = central(truth, side), {k: central(v, side) for k, v in decoded.items()}
    table = heldout.catalogue(pile, m, key)
    z = table["z_good"].to_numpy() if "z_good" in table.column_names else np.full(len(key), np.nan)
    out = Judged(m, key, measured, truth.astype(np.float64), _wavelength(m), z.astype(float), kinds(table), flips=flips)
    out.decoded = {DARK: np.zeros(truth.shape), **decoded}
    for name, light in out.decoded.items():
        codes = numbers.codes(tokens[name], codecs[name].vocabulary) if name != DARK else None
        out.found[name] = _measured(out, light)._replace(codes=codes, kind=codecs[name].kind if codes else "")
    return out


def _wavelength(m: Modality) -> NDArray[np.float64] | None:
    if m.image:
        return None
    from skycairn.pipeline.learned import grid

    return grid(m).wavelength()


def kinds(table: Any) -> NDArray[Any]:
    """What the survey's own columns call each source; a point of the Legacy Survey's is a star here."""
    words = {"PSF": "star", "STAR": "star", "GALAXY": "galaxy", "QSO": "quasar"}
    for column, otherwise in (("type", "galaxy"), ("spectype", ""), ("class", "")):
        if column in table.column_names:
            return np.array([words.get(str(v).strip(), otherwise) for v in table[column].to_pylist()], dtype=object)
    return np.full(table.num_rows, "", dtype=object)


def _measured(j: Judged, decoded: NDArray[np.float64]) -> Reconstruction:
    """All numbers of one reconstruction."""
    ivar, flux, good = j.measured["ivar"].astype(np.float64), j.measured["flux"].astype(np.float64), j.good
    with np.errstate(invalid="ignore"):
        bright = np.where(good, j.truth * np.sqrt(np.where(good, ivar, 0)), 0.0)
    whole = errors_by_brightness(decoded, j.truth, ivar, good, bright, ONE_CLASS).of(np.s_[:], np.s_[1:])
    parts: dict[str, Any] = {b: np.s_[:, i] for i, b in enumerate(j.modality.bands)} if j.modality.image else {}
    parts = ({"all": np.s_[:]} | parts) if len(parts) != 1 else parts
    against: list[dict[str, Errors]] = [
        {name: errors_by_brightness(decoded[p], reference[p], ivar[p], good[p], bright[p]) for name, p in parts.items()}
        for reference in (j.truth, flux)
    ]
    out = Reconstruction(against[0], against[1], whole)
    if j.modality.image:
        return out._replace(light=numbers.aperture(j.truth, decoded, ivar, good, APERTURE_PIXELS))
    return _spectral(j, decoded, np.where(good, ivar, 0.0), out)


def _spectral(j: Judged, decoded: NDArray[Any], weight: NDArray[Any], out: Reconstruction) -> Reconstruction:
    """Mean flux, redshift and lines of every spectrum."""
    if j.wavelength is None or not decoded.any():
        return out
    true = (weight * np.where(j.good, j.truth, 0)).sum(axis=1)
    flux = (weight * decoded).sum(axis=1) / np.where(true != 0, true, np.nan)
    shift = np.empty(len(decoded))
    lines = []
    for i in range(len(decoded)):
        one = (j.wavelength, j.truth[i], decoded[i], weight[i], j.good[i])
        shift[i] = spectralquality.redshift_shift(*one)
        if j.kind[i] == "galaxy":  # the broad lines of quasars are no narrow ones
            lines += spectralquality.lines(*one, float(j.z[i]))
    return out._replace(flux=flux, shift=shift, lines=tuple(lines))


def report(
    root: Path, truth: Path, locks: Mapping[str, Path], say: Say, most: int = 0, only: str = ""
) -> tuple[list[Table], list[Judged]]:
    """Tables, and what they were made of. ValueError where the truth is noisy, or of another sky."""
    check_noise_free(truth)
    pile = Pile.open(root)
    codecs = contestants(pile, root, locks)
    for name, lock in {"pile": root / "codecs.lock", **locks}.items():
        networks = {m: c for m, c in read_lock(lock).items() if m in codecs and is_network(c)}
        if untold := heldout.untold(lock, networks):
            say(
                f"{', '.join(untold)}: which sky {name} was trained on is not recorded beside {lock}; where it was not "
                "this pile's training sky, its errors are too small"
            )
        for modality in heldout.other_sky(lock, pile.snapshot(), networks):
            say(
                f"{modality}: {name} was trained on a sky that was split otherwise (salt or fractions): what is held "
                "out here may be what it has learned, and its errors too small"
            )
    tables, judged = [], []
    for s in heldout.surveys(pile):
        for m in s.modalities:
            if m.name in codecs and (not only or m.name == only):
                if not heldout.weighted(pile, m):
                    say(f"{m.name}: is left out, since its pixels have no inverse variance to measure errors by")
                    continue
                say(f"{m.name}: {', '.join(codecs[m.name])}")
                j = judge(pile, s, m, codecs[m.name], truth, most)
                if j.flips:
                    say(f"{m.name}: {j.flips:.1e} of the tokens are others than the pile's, which it was judged by")
                about = {"bands": m.bands, "radius": APERTURE_PIXELS} if m.image else {"sn": j.sn()}
                tables += tables_of(m.name, j.found, about)
                judged.append(j)
    if not judged:
        named = f" of the name {only!r}; it has {', '.join(codecs)}" if only else ""
        raise ValueError(f"{root}: no modality to judge{named}")
    return [use_of_codes({j.modality.name: j.found for j in judged}), *tables], judged


def check_noise_free(truth: Path) -> None:
    """ValueError unless the folder is a whole mock sky without noise."""
    path = truth / "mock.json"
    told = json.loads(path.read_text()) if path.is_file() else {}
    if told.get("noise", True) or not told.get("complete"):
        found = "is not complete" if told.get("noise") is False else "is noisy" if told else "holds no mock.json"
        raise ValueError(f"{truth}: {found}; wanted what `skycairn mock TIER --noise-free` writes")


def quality(
    pile: Annotated[Path, typer.Argument(help="folder of the pile")],
    truth: Annotated[Path, typer.Option(help="the pile's mock sky without noise (skycairn mock --noise-free)")],
    codecs: Annotated[
        list[str] | None, typer.Option(help="NAME=LOCK: a codecs.lock whose codecs are judged too; may be repeated")
    ] = None,
    out: Annotated[Path, typer.Option(help="the page: .html")] = Path("quality.html"),
    only: Annotated[str, typer.Option(help="one modality, legacysurvey.image say; all unless given")] = "",
    most: Annotated[int, typer.Option(help="at most so many sources of a modality, 400 unless given; 0: all")] = 400,
) -> None:
    """Judge codecs on the held-out sky, against the truth: prints Markdown tables, writes a page with pictures."""
    with errors():
        if out.suffix != ".html":
            raise ValueError(f"{out}: the page's ending is {out.suffix!r}, wanted .html")
        locks = {}
        for given in codecs or []:
            name, _, lock = given.partition("=")
            if not name or not lock or name in ("pile", DARK):
                raise ValueError(f"--codecs {given!r}: wanted NAME=LOCK, a name other than pile and a codecs.lock")
            locks[name] = Path(lock)
        try:
            from skycairn.cli.qualitypage import page
        except ModuleNotFoundError as error:
            missing = str(error.name).split(".")[0]
            raise ValueError(f"the page needs {missing}, which is not installed; install skycairn[plot]") from error
        tables, judged = report(pile, truth, locks, lambda text: typer.echo(text, err=True), most, only)
        for t in tables:
            typer.echo(t.markdown())
        out.write_text(page(f"Quality of codecs: {pile}", tables, judged))
        typer.echo(f"{out}: the same with pictures", err=True)
