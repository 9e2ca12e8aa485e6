"""The card of a model that is handed on: what it knows, of what it was made, how it is used, how well it did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skycairn.tokenizers.codec import Codec


def card(config: Mapping[str, Any], codecs: Mapping[str, Codec], scores: str = "") -> str:
    """As Markdown, from the configuration of an export and the scores (Markdown too) that the run was given, if any."""
    columns, quantities = config["vocabulary"], config["modalities"]
    names = [c["modality"] for c in columns]
    surveys = sorted({n.split(".")[0] for n in names})
    made, form = config["provenance"], config["network"]["form"]
    rows = [_row(c, quantities[c["modality"]], codecs[c["modality"]]) for c in columns]
    scalar = next((c["modality"] for c in columns if c["n_tokens"] == 1), names[0])
    shown = next((n for n in names if n != scalar), scalar)
    return "\n".join(
        [
            f"# A skycairn model of {', '.join(surveys)}",
            "",
            f"A masked any-to-any transformer over tokens of sky surveys, size `{made['size']}` "
            f"({form['encoder_depth']} + {form['decoder_depth']} layers, width {form['width']}, "
            f"{made['parameters']:,} weights). Any of its modalities may be shown, missing or asked for.",
            "",
            "## Modalities",
            "",
            "| modality | what | unit | codec | tokens | arrays |",
            "|---|---|---|---|--:|---|",
            *rows,
            "",
            "Codecs lie in `codecs/`; `codecs.lock` says which is whose.",
            "",
            "## Use",
            "",
            "```python",
            "from skycairn.model.model import Model",
            "",
            'model = Model.load("path/to/this/folder")  # no pile and no network needed',
            f'inputs = {{"{shown}": ...}}  # arrays, first axis the object; see the table; NaN or None: missing',
            f'samples = model.generate(inputs, ["{scalar}"], n_samples=100, seed=0)["{scalar}"]',
            "samples.arrays, samples.unit  # (object, sample, ...)",
            "embeddings = model.encode(inputs)  # values (object, token, width), and which of them are there",
            "```",
            "",
            "## Training",
            "",
            f"{made['step']:,} steps; snapshots of piles by content: {', '.join(f'`{s}`' for s in made['snapshots'])}. "
            "All settings are in `config.json`.",
            "",
            *_metrics(made["validation"]),
            *(["## Scores", "", scores.strip(), ""] if scores.strip() else []),
            "## Limits",
            "",
            "Answers are of the sky and the cuts that it was trained on. Samples lie at what tokens decode to (middles "
            "of bins), and tokens that are drawn at once are drawn each by itself. Whether its distributions are "
            "calibrated is to be tested on objects that are not in its training.",
            "",
            "Licence: see `LICENSE`. SHA-256 of every file: `config.json`.",
            "",
        ]
    )


def _row(column: Mapping[str, Any], quantity: Mapping[str, Any], codec: Codec) -> str:
    tokens = f"{column['n_tokens']} of {column['vocabulary']:,}"
    cells = [f"`{column['modality']}`", quantity["what"], quantity["unit"], codec.kind, tokens, _arrays(quantity)]
    return f"| {' | '.join(cell.replace('|', '/') or '-' for cell in cells)} |"


def _arrays(quantity: Mapping[str, Any]) -> str:
    """Bands, pixels and shape in words."""
    told = []
    if quantity["shape"]:
        told.append(" x ".join(str(n) for n in quantity["shape"]))
    if quantity["bands"]:
        told.append(f"bands {', '.join(quantity['bands'])}")
    if quantity["pixel_arcsec"]:
        told.append(f"{quantity['pixel_arcsec']} arcsec a pixel")
    return "; ".join(told)


def _metrics(validation: Mapping[str, Any] | None) -> list[str]:
    if validation is None:
        return []
    return [
        f"Validation sky after {validation['step']:,} steps, cross-entropy in nats a token under the masks of training "
        f"(mean {_shown(validation['loss'])}):",
        "",
        "| modality | nats a token |",
        "|---|--:|",
        *(f"| `{name}` | {_shown(loss)} |" for name, loss in validation["modalities"].items()),
        "",
    ]


def _shown(loss: float | None) -> str:
    """A mean that was not finite is null in the metrics."""
    return "-" if loss is None else f"{loss:.3f}"
