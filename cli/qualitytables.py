"""The tables of the quality report: pure functions from what was measured to rows of text, as Markdown or HTML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skycairn.report import markup
from skycairn.tokenizers.quality import Aperture, Bias, Codes, Errors, class_names, colour_bias, flux_bias
from skycairn.tokenizers.spectralquality import FAILED_KM_S, Line

FLUX_CLASSES = ((10.0, np.inf), (10.0, 30.0), (30.0, 100.0), (100.0, np.inf))
"""True S/N in the aperture, from and to."""
LINE_CLASSES = ((5.0, 10.0), (10.0, 30.0), (30.0, np.inf))
SPECTRUM_CLASSES = ((-np.inf, 1.0), (1.0, 3.0), (3.0, 10.0), (10.0, 30.0), (30.0, np.inf))
"""True S/N a pixel, median over the spectrum."""
DARK = "no light"
"""The name of the baseline that decodes to nothing."""


class Table(NamedTuple):
    """One table of the report."""

    title: str
    about: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def markdown(self) -> str:
        """The table with its title and a line about it."""
        lines = [f"### {self.title}", "", *([self.about, ""] if self.about else [])]
        lines += [f"| {' | '.join(self.head)} |", f"|{'---|' * len(self.head)}"]
        return "\n".join([*lines, *(f"| {' | '.join(r)} |" for r in self.rows)]) + "\n"

    def html(self) -> str:
        """The same for a page."""
        said = markup.paragraph(self.about, "dim") if self.about else ""
        return f"<h3>{self.title}</h3>{said}{markup.table(self.head, self.rows)}"


class Reconstruction(NamedTuple):
    """What one codec, or none, makes of one modality's sources."""

    truth: Mapping[str, Errors]
    "against the truth, by band; a spectrum has one"
    data: Mapping[str, Errors]
    whole_truth: Errors
    "against the truth, all pixels of an object in one class"
    codes: Codes | None = None
    kind: str = ""
    light: Aperture | None = None
    "of images"
    flux: NDArray[np.float64] | None = None
    "of spectra: weighted mean flux over the true one, (n,)"
    shift: NDArray[np.float64] | None = None
    "of spectra: km/s, (n,)"
    lines: tuple[Line, ...] = ()


def number(x: float, form: str = ".2f") -> str:
    """A number of a table, or a dash where there is none."""
    return format(x, form) if np.isfinite(x) else "-"


def _range(low: float, high: float) -> str:
    if not np.isfinite(low):
        return f"below {high:g}"
    return f"{low:g} and above" if not np.isfinite(high) else f"{low:g} to {high:g}"


def brightness(name: str, found: Mapping[str, Reconstruction]) -> Table:
    """Errors in sigma by band and class of surface brightness, each codec beside the others."""
    codecs = list(found)
    head = ["band", "truth, sigma a pixel", "objects"]
    for c in codecs:
        head += [f"{c}: median", "all pixels"] + (["to the data"] if c != DARK else [])
    rows = []
    for band, first in found[codecs[0]].truth.items():
        of = {c: (r.truth[band], r.data[band]) for c, r in found.items()}
        told = {c: (t.medians(), t.pooled(), d.medians()) for c, (t, d) in of.items()}
        for k, label in enumerate(class_names()):
            if not first.objects()[k]:
                continue
            row = [band, label, str(first.objects()[k])]
            for c in codecs:
                row += [number(v[k]) for v in told[c][: 2 if c == DARK else 3]]
            rows.append(tuple(row))
    about = (
        "Decoded less true flux of a pixel in sigma, root mean square, by the true brightness of the pixel: the median "
        "over objects, and of all pixels together. The noisy data themselves have 1. To the data: the median over "
        "objects of decoded less measured; the truth has 1."
    )
    return Table(f"{name}: error by surface brightness", about, tuple(head), rows)


def flux(name: str, found: Mapping[str, Reconstruction], bands: Sequence[str], radius: float) -> Table:
    """Flux and colour bias of images by S/N."""
    red = bands.index("r") if "r" in bands else 0
    codecs = [c for c, r in found.items() if r.light is not None and c != DARK]
    head = ["band", "true S/N", "objects"]
    for c in codecs:
        head += [f"{c}: flux, median", "scatter", "of the sum", f"colour against {bands[red]}, mag", "scatter"]
    rows = []
    for b, band in enumerate(bands):
        for low, high in FLUX_CLASSES:
            row: list[str] = []
            n = 0
            for c in codecs:
                light = found[c].light
                if light is None:
                    continue
                bias: Bias = flux_bias(light, b, low, high)
                n = bias.n
                row += [number(v, "+.1%") for v in (bias.median, bias.scatter, bias.of_sum)]
                colour = colour_bias(light, b, red, low, high)
                row += [number(v, "+.3f") if b != red else "" for v in (colour.median, colour.scatter)]
            if n:
                rows.append((band, _range(low, high), str(n), *row))
    about = f"Within {radius:g} pixels of the source, decoded less true over true; scatter: 1.4826 times the MAD."
    return Table(f"{name}: flux and colour", about, tuple(head), rows)


def spectra(name: str, found: Mapping[str, Reconstruction], sn: NDArray[np.float64]) -> Table:
    """Errors, mean flux and redshift by S/N a pixel."""
    codecs = list(found)
    head = ["S/N a pixel", "spectra"]
    for c in codecs:
        head += [f"{c}: error, median", "all pixels"]
        if c != DARK:
            head += ["mean flux", "scatter", "shift, km/s: median", "68 %", "lost"]
    rows = []
    for low, high in SPECTRUM_CLASSES:
        some = (sn >= low) & (sn < high)
        if not some.any():
            continue
        row = [_range(low, high), str(int(some.sum()))]
        for r in found.values():
            part = r.whole_truth.of(some)
            row += [number(part.medians()[0]), number(part.pooled()[0])]
            if r.flux is not None and r.shift is not None:
                off = r.flux[some] - 1
                middle = np.median(off)
                row += [number(middle, "+.2%"), number(1.4826 * np.median(np.abs(off - middle)), ".2%")]
                row += list(_shifts(r.shift[some]))
        rows.append(tuple(row))
    about = (
        "Error: decoded less true flux in sigma, root mean square over a spectrum. Shift: of a template fit on the "
        f"reconstruction, the true spectrum being the template; lost: beyond {FAILED_KM_S:g} km/s, or no fit at all."
    )
    return Table(f"{name}: by signal to noise", about, tuple(head), rows)


def _shifts(shift: NDArray[np.float64]) -> Iterator[str]:
    """Median, 68 % of absolute values, share lost."""
    lost = ~(np.abs(shift) <= FAILED_KM_S)
    kept = shift[~lost]
    yield number(float(np.median(kept)), "+.1f") if len(kept) else "-"
    yield number(float(np.percentile(np.abs(kept), 68)), ".1f") if len(kept) else "-"
    yield f"{lost.mean():.1%}"


def lines(name: str, found: Mapping[str, Reconstruction]) -> Table:
    """Centroids and equivalent widths of emission lines by their S/N."""
    codecs = [c for c in found if c != DARK]
    head = ["line S/N", "lines"]
    for c in codecs:
        head += [f"{c}: shift, pixels: median", "68 %", "95 %", "beyond 0.5", "no line", "width: median", "scatter"]
    rows = []
    for low, high in LINE_CLASSES:
        row: list[str] = []
        n = 0
        for c in codecs:
            some = [x for x in found[c].lines if low <= x.sn < high]
            n = len(some)
            if not n:
                continue
            shift = np.array([x.shift_pixels for x in some])
            gone = ~np.isfinite(shift)
            off = np.abs(shift[~gone]) if (~gone).any() else np.array([np.nan])
            row += [number(float(np.median(shift[~gone])) if (~gone).any() else np.nan, "+.3f")]
            row += [number(float(np.percentile(off, q)), ".3f") for q in (68, 95)]
            row += [f"{(~(np.abs(shift) <= 0.5)).mean():.1%}", f"{gone.mean():.1%}"]
            width = np.array([x.width_decoded / x.width_true - 1 for x in some])
            width = width[np.isfinite(width)]
            middle = float(np.median(width)) if len(width) else np.nan
            scatter = 1.4826 * float(np.median(np.abs(width - middle))) if len(width) else np.nan
            row += [number(middle, "+.1%"), number(scatter, ".1%")]
        if n:
            rows.append((_range(low, high), str(n), *row))
    about = (
        "Emission lines of sources with a good redshift, above 5 sigma in the truth. Shift: where the true profile "
        "fits the reconstruction best; beyond 0.5 pixels counts lines that are gone too. Width: equivalent width, "
        "decoded over true, less one."
    )
    return Table(f"{name}: emission lines", about, tuple(head), rows)


def use_of_codes(found: Mapping[str, Mapping[str, Reconstruction]]) -> Table:
    """What each codec spends, and how much of its vocabulary it uses."""
    rows: list[tuple[str, ...]] = []
    for name, of in found.items():
        for c, r in of.items():
            u = r.codes
            if u is None:
                continue
            rows.append(
                (
                    *(name, c, r.kind, str(u.n_tokens), str(u.vocabulary), f"{u.share:.1%}", str(u.dead)),
                    *(number(u.perplexity, ".0f"), number(u.bits, ".0f"), number(u.entropy_bits, ".0f")),
                )
            )
    head = ("modality", "codec", "kind", "tokens", "vocabulary", "codes used", "dead", "perplexity", "bits")
    about = "On the same sources. Bits an object; entropy-coded: after a coder that knows how often each code occurs."
    return Table("Codes", about, (*head, "entropy-coded"), rows)


def tables_of(name: str, found: Mapping[str, Reconstruction], about: Mapping[str, Any]) -> list[Table]:
    """All tables of one modality; `about` has `bands` and `radius` of images, `sn` of spectra."""
    if "bands" in about:
        return [brightness(name, found), flux(name, found, about["bands"], about["radius"])]
    return [brightness(name, found), spectra(name, found, about["sn"]), lines(name, found)]
