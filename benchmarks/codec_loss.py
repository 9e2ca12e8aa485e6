"""What a model learns from tokens, by the codecs that made them: scores of runs on piles of one sky, in one table.

    skycairn-train work/pile --out work/model
    skycairn-train work/learned --out work/model-learned
    python benchmarks/codec_loss.py fitted=work/model learned=work/model-learned

The piles differ by their codecs of images and spectra, the runs by nothing else. Cross-entropy on the test sky, nats a
token, each modality given the object's others. *Numbers*, held by one codec in all piles, are comparable: the same
question is asked of the same objects. Of images and spectra each codec has tokens of its own: there *bits* (what an
object's tokens cost by the model) tell how much of a codec's bits is news, not which codec is better. *Validation*: the
trainer's own loss, mean over modalities, of the weights that were taken. Mock-sky scores where the sky is a mock.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from skycairn.cli.qualitytables import Table
from skycairn.model.metrics import lines_of
from skycairn.model.sharded import read_about

OWN = ("image", "spectrum", "segmap")


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The scores of a run, and its checkpoint's own words; ValueError where it was not scored."""
    path = folder / "evaluation.json"
    if not path.exists():
        raise ValueError(f"{folder}: holds no evaluation.json; train there by `skycairn-train`, without --no-score")
    return json.loads(path.read_text()), read_about(folder / "model")


def validation(folder: Path, step: int) -> float:
    """Loss at the look of this step."""
    return float(next(line["validation"]["loss"] for line in lines_of(folder) if line["step"] == step))


def main(given: list[str]) -> None:
    """Print the table."""
    folders = {name: Path(folder) for name, folder in (g.split("=", 1) for g in given)}
    runs = {name: read(folder) for name, folder in folders.items()}
    settings = {json.dumps(about["settings"], sort_keys=True) for _, about in runs.values()}
    if len(settings) > 1:
        raise ValueError(f"{', '.join(given)}: runs of unlike settings, which compare nothing")
    tokens = {name: {m["modality"]: m["n_tokens"] for m in about["modalities"]} for name, (_, about) in runs.items()}
    rows = []
    told = {
        name: {g["what"]: g for table in ("marginal", "partner") for g in found[table]}
        for name, (found, _) in runs.items()
    }
    for what in next(iter(told.values())):
        cells = [what, str(next(iter(told.values()))[what]["objects"])]
        for name, gains in told.items():
            g = gains[what]
            start = g["against"].get("start") or g["against"]["marginal"]
            cells += [f"{g['model']:.3f}", f"{start['gain']:.3f} ({start['low']:.3f} to {start['high']:.3f})"]
            own = what.split(".")[-1] in OWN
            cells.append(f"{g['model'] * tokens[name][what] / math.log(2):.0f}" if own else "")
        rows.append(tuple(cells))
    last = ["validation", ""]
    for name, folder in folders.items():
        step = int(runs[name][1]["step"])
        last += [f"{validation(folder, step):.3f}", f"after {step} steps", ""]
    heads = [h for name in runs for h in (f"{name}: loss", "gain over the start", "bits")]
    print(Table("What is learned", "", ("of", "objects", *heads), [*rows, tuple(last)]).markdown())


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
