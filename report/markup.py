"""Pieces of HTML: tables, figures with their legends, tiles; and the one style sheet of the page, light and dark"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from skycairn.report.skychart import CLASSES

COLOURS = ("#440154", "#443983", "#31688e", "#21918c", "#35b779", "#90d743", "#fde725")
"""Of maps, low to high; viridis, which grows in lightness and is told apart by the colour-blind."""

STYLE = (
    """
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--dim:#5a6370;--line:#d5dae0;--soft:#f3f5f7;--warn:#9a3b00;
--warnbg:#fff1e6;--good:#1d6b3a;--c0:#b9c1cc;--c1:#0b62a8;--c2:#c9480a;--c3:#00795a;--c4:#7a3e9d}
@media (prefers-color-scheme:dark){:root{--bg:#12161b;--fg:#e4e8ed;--dim:#9ca7b4;--line:#39424d;--soft:#1b2128;
--warn:#ffb27a;--warnbg:#33210f;--good:#7fd39b;--c0:#4b5563;--c1:#6fb7ee;--c2:#ff9a5c;--c3:#46cfa3;--c4:#c9a0f2}}
*{box-sizing:border-box}
html{scroll-behavior:smooth}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1180px;margin:0 auto;padding:16px}
h1{font-size:1.6rem;line-height:1.2;margin:.4rem 0}h2{font-size:1.25rem;margin:2.6rem 0 .4rem;padding-top:.6rem;
border-top:1px solid var(--line)}h3{font-size:1rem;margin:1.4rem 0 .3rem}
p{max-width:75ch;margin:.4rem 0}.dim,figcaption small{color:var(--dim)}a{color:var(--c1)}
code{font-size:.9em;overflow-wrap:anywhere}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1rem;margin:.8rem 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:1rem 0}
.tile-of{background:var(--soft);border:1px solid var(--line);border-radius:6px;padding:.6rem .8rem;min-width:0}
.tile-of b{display:block;font-size:1.35rem;line-height:1.3;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.warnings{background:var(--warnbg);border-left:4px solid var(--warn);padding:.5rem .9rem;margin:1rem 0}
.warnings h3,.bad{color:var(--warn)}.warnings h3{margin:.1rem 0}.warnings ul{margin:.3rem 0;padding-left:1.2rem}
.sound{border-left:4px solid var(--good);padding:.5rem .9rem;background:var(--soft)}
.scroll{overflow-x:auto;margin:.6rem 0;max-width:100%}
table{border-collapse:collapse;font-size:.87rem;font-variant-numeric:tabular-nums}
th,td{padding:.22rem .6rem;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;color:var(--dim);vertical-align:bottom}.n{text-align:right}td.n{white-space:nowrap}
.grid-of{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:20px;margin:1rem 0}
figure{margin:0;min-width:0;break-inside:avoid}figcaption{font-weight:600;font-size:.9rem;margin-bottom:.2rem}
figcaption small{display:block;font-weight:400}
figure svg{display:block;width:100%;max-width:460px;height:auto}svg.defs{position:absolute}
svg text{font:10.5px system-ui,sans-serif;fill:var(--dim)}svg .label{fill:var(--fg);font-size:11px}
svg .grid{stroke:var(--line);stroke-width:.6;fill:none}svg .axis{stroke:var(--dim);fill:none}
svg .tile{fill:none;stroke:var(--line)}svg .line{fill:none;stroke-width:1.6;stroke-linejoin:round}
svg .fill{stroke:none;opacity:.65}svg .dash{stroke-dasharray:5 3}svg .dot{stroke-dasharray:1.5 3;stroke-linecap:round}
svg .mark path{stroke-width:1.4;fill:none}svg .mark circle{stroke:var(--bg);stroke-width:.5}
svg .mark:hover circle,svg .cell:hover{stroke:var(--fg);stroke-width:1.5}
svg .cell{stroke:var(--bg);stroke-width:.4}svg .open{fill:var(--soft);stroke:var(--line)}
.legend{display:flex;flex-wrap:wrap;gap:.1rem .9rem;font-size:.8rem;color:var(--dim);margin:.2rem 0}
.legend i{display:inline-block;width:16px;height:10px;margin-right:.35em;border:1px solid transparent}
.legend .ln{height:0;border:0;border-top:2px solid;vertical-align:middle}

.legend .pt{width:7px;height:7px;border-radius:50%}
.legend .ln.dash{border-top-style:dashed}.legend .ln.dot{border-top-style:dotted}
.legend .open{border-color:var(--line)}
.one{white-space:nowrap}.bar{display:inline-block;width:60px;height:.6em;background:var(--line);margin-right:.5em}
.bar i{display:block;height:100%;background:var(--c1)}
details{margin:.4rem 0;font-size:.9rem}summary{cursor:pointer;color:var(--c1)}
details .scroll{max-height:24rem;
overflow:auto}
@media print{:root{--bg:#fff;--fg:#000;--dim:#444;--line:#bbb;--soft:#f5f5f5;--c1:#0b62a8;--c2:#c9480a;--c3:#00795a;
--c4:#7a3e9d;--c0:#b9c1cc;--warn:#9a3b00;--warnbg:#fff}
nav{display:none}main{max-width:none;padding:0}.grid-of{grid-template-columns:1fr 1fr}h2{break-after:avoid}
body{font-size:10.5pt;print-color-adjust:exact;-webkit-print-color-adjust:exact}details .scroll{max-height:none}
.scroll{overflow:visible}table{font-size:7.5pt}
th,td{padding:.12rem .3rem;overflow-wrap:anywhere}td.n,.one{white-space:normal}}
"""
    + "".join(
        f"svg .c{i}{{stroke:var(--c{i})}}svg .fill.c{i},svg .c{i} circle{{fill:var(--c{i})}}"
        f".legend .c{i}{{background:var(--c{i})}}.legend .ln.c{i}{{background:none;border-color:var(--c{i})}}"
        for i in range(5)
    )
    + "".join(f"svg .q{i}{{fill:{c}}}.legend .q{i}{{background:{c}}}" for i, c in enumerate(COLOURS))
)


def table(head: Sequence[str], rows: Iterable[Iterable[Any]], empty: str = "Nothing to show.") -> str:
    """A table in a box that scrolls by itself. Cells are text, HTML in `Safe`, or whole numbers, which get commas."""
    body = []
    numeric = [True] * len(head)
    rows = [list(r) for r in rows]
    for row in rows:
        for i, cell in enumerate(row):
            if isinstance(cell, Safe) or (not isinstance(cell, int) and cell and not _is_number(cell)):
                numeric[i] = False
    for row in rows:
        cells = (_cell(c, n) for c, n in zip(row, numeric, strict=True))
        body.append("<tr>" + "".join(cells) + "</tr>")
    if not body:
        return f'<p class="dim">{escape(empty)}</p>'
    top = "".join(
        f'<th scope="col"{" class=n" if n else ""}>{escape(h)}</th>' for h, n in zip(head, numeric, strict=True)
    )
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="table"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


class Safe(str):
    """HTML that was made by us, and is put in as it is."""


def bar(share: float) -> Safe:
    """A share as a bar with its percentage."""
    width = 60 * min(max(share, 0.0), 1.0)
    return Safe(
        f'<span class="one"><span class="bar"><i style="width:{width:.1f}px"></i></span>{100 * share:.1f}</span>'
    )


def _cell(value: str | int, numeric: bool) -> str:
    text = f"{value:,}" if isinstance(value, int) else value if isinstance(value, Safe) else escape(value)
    return f"<td{' class=n' if numeric else ''}>{text}</td>"


def _is_number(text: str) -> bool:
    return text[0] in "+-0123456789.<" or text in ("not known", "beyond")


def figure(title: str, about: str, drawn: str, legend: str = "", more: str = "", anchor: str = "") -> str:
    """A chart with its title, a line below it, a legend, and the same in words or numbers."""
    small = f"<small>{escape(about)}</small>" if about else ""
    folded = f"<details><summary>Numbers</summary>{more}</details>" if more else ""
    named = f' id="{anchor}"' if anchor else ""
    return f"<figure{named}><figcaption>{escape(title)}{small}</figcaption>{drawn}{legend}{folded}</figure>"


def legend(*items: tuple[str, str]) -> str:
    """(style, words) of each thing drawn; `c1` is a colour, `ln c1 dash` a line of it."""
    told = "".join(f'<span><i class="{style}"></i>{escape(words)}</span>' for style, words in items)
    return f'<div class="legend">{told}</div>'


def scale_legend(low: str, high: str, open_means: str) -> str:
    """The colours of a map from its lowest to its highest value."""
    swatches = "".join(f'<i class="q{i}" style="margin:0"></i>' for i in range(CLASSES))
    told = f'<span>{escape(low)} {swatches} {escape(high)}</span><span><i class="open"></i>{escape(open_means)}</span>'
    return f'<div class="legend">{told}</div>'


def tiles(items: Iterable[tuple[str, str, str]]) -> str:
    """(value, what it is, a line more) of each tile."""
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile-of"><b>{escape(value)}</b>{escape(what)}'
            + (f'<div class="dim">{escape(more)}</div>' if more else "")
            + "</div>"
            for value, what, more in items
        )
        + "</div>"
    )


def section(anchor: str, title: str, *body: str) -> str:
    """One part of the page."""
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>{"".join(body)}</section>'


def paragraph(text: str, style: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p{f' class={style}' if style else ''}>{escape(text)}</p>"
