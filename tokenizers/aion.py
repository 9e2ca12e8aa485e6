"""AION-1's published codecs as files: `config.json` and `model.safetensors` of one, from a folder or from the Hub.

A folder is laid out as the Hub's repository is (`codecs/<name>/`), or is the codec's own. Nothing is unpickled.
https://huggingface.co/polymathic-ai/aion-base holds the published ones (MIT licence).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from skycairn.tokenizers.codec import read_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def read_published(source: str | Path, name: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The configuration and the arrays of AION-1's codec `name` ("image", "spectrum", "FLUX_R", ...).

    `source` is a folder that holds `codecs/<name>/` or is that folder itself, or a repository of the Hugging Face Hub
    ("polymathic-ai/aion-base"), which needs `skycairn[hub]` and, the first time, the internet. ValueError where a
    file is missing or is not what its name says.
    """
    folder = folder_of(source, f"codecs/{name}", f"codec {name!r}")
    config = read_json(folder / CONFIG)
    try:
        arrays = load_file(folder / WEIGHTS)
    except (SafetensorError, TypeError, KeyError) as error:
        raise ValueError(
            f"{folder / WEIGHTS}: is no whole safetensors file of numbers that numpy knows ({error}), and nothing "
            "else is read; fetch it again"
        ) from error
    return config, arrays


def write_published(folder: Path, name: str, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Path:
    """Write a codec as the Hub holds it, at `folder/codecs/<name>/`; gives that place."""
    place = Path(folder) / "codecs" / name
    place.mkdir(parents=True, exist_ok=True)
    whole = {k: np.asarray(v, order="C") for k, v in arrays.items()}
    save_file(whole, place / WEIGHTS, metadata={"format": "pt"})
    (place / CONFIG).write_text(json.dumps(dict(config), indent=2, sort_keys=True) + "\n")
    return place


def matched(name: str, config: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the peer's own defaults where it says nothing; ValueError for a key that it lacks.

    `known`: every argument of the peer's class with its default, `...` where it has none.
    """
    strange = sorted(config.keys() - known.keys())
    missing = sorted(k for k, v in known.items() if v is ... and k not in config)
    if strange or missing:
        raise ValueError(
            f"AION-1's codec {name!r}: its configuration has {', '.join(strange) or 'nothing'} that is not known here "
            f"and lacks {', '.join(missing) or 'nothing'}; is it of another codec, or a later release?"
        )
    return {**known, **config}


def folder_of(source: str | Path, inside: str, what: str) -> Path:
    """The folder with `config.json` and `model.safetensors` of what is at `inside` of a source, "" for its root.

    The source is as of `read_published`. ValueError where either file is missing or cannot be had.
    """
    here = Path(source)
    place_named = f"{inside}/" if inside else ""
    if here.is_dir():
        for place in (here / inside, here):
            found = [(place / f).is_file() for f in (CONFIG, WEIGHTS)]
            if all(found):
                return place
            if any(found) and place != here:
                break
        where = f"in {place_named} or in the folder itself" if inside else "in it"
        raise ValueError(f"{here}: holds no whole {what}, wanted {CONFIG} and {WEIGHTS} {where}; fetch it again")
    if not isinstance(source, str) or source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ValueError(
            f"{source}: is no folder, wanted one with {place_named or f'{CONFIG} and {WEIGHTS}'} in it, or a "
            "repository of the Hub such as polymathic-ai/aion-base"
        )
    if here.is_file():
        raise ValueError(f"{source}: is a file, wanted a folder with {place_named or f'{CONFIG} and {WEIGHTS}'} in it")
    if here.parent.is_dir():
        raise ValueError(
            f"{source}: {here.parent} is a folder here and holds no {here.name}; is the name right? A repository of "
            "the Hub is asked for only where no folder here is called like its owner"
        )
    return _fetched(source, inside)


def _fetched(repository: str, inside: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ValueError(
            f"{repository}: is no folder here, and reading from the Hugging Face Hub needs huggingface_hub; "
            "pip install 'skycairn[hub]', or name a folder that holds the files"
        ) from error
    names = [f"{inside}/{f}" if inside else f for f in (CONFIG, WEIGHTS)]
    try:
        files = [Path(hf_hub_download(repository, name)) for name in names]
    except (OSError, ValueError) as error:  # its own errors derive from these
        raise ValueError(
            f"{repository}: {inside or WEIGHTS} could not be fetched from the Hugging Face Hub ({error}); is the name "
            "right, and is the Hub reachable?"
        ) from error
    return files[0].parent
