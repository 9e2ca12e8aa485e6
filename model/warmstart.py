"""Weights to begin from: AION-1's, or a model's that was exported, on piles of other or of more modalities.

    start = read_start("polymathic-ai/aion-base")          # or a folder with its two files, or an exported model
    train(sources, Settings(size="base", ...), out, start=start)

Layers are taken over whole, tables modality by modality: AION-1's by token key, one's own by name and codec. What the
start does not know begins at random, and what the piles do not hold is left behind. AION-1's tokens mean the same only
where the pile was built with its codecs (`skycairn-tokenize from-aion`), which is the caller's to see to; an exported
model names its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from skycairn.model.aion import read_aion
from skycairn.model.exported import CONFIG, read_config, read_network
from skycairn.model.settings import Settings
from skycairn.model.tables import first_rows
from skycairn.model.transformer import Network
from skycairn.pile.shards import TokenColumn

TABLES = ("token.", "head.", "slot.", "told")
"""What the names of tensors begin with that hang on modalities."""


class Start(NamedTuple):
    """A network to begin from."""

    network: Network
    where: str
    aion: bool = False
    "whether its modalities are AION-1's token keys"


class Taken(NamedTuple):
    """Modalities, by what became of their tables."""

    known: tuple[str, ...]
    new: tuple[str, ...]
    "begin at random: the start has none of that name and codec, or another number of tokens"
    left: tuple[str, ...]
    "of the start, which the piles do not hold"


def read_start(source: str | Path) -> Start:
    """From an exported model's folder, a folder of AION-1's model, or its name on the Hub.

    ValueError where it is none of these, or a file is damaged.
    """
    folder = Path(source)
    if (folder / CONFIG).is_file() and "vocabulary" in (folder / CONFIG).read_text():
        return Start(read_network(folder, read_config(folder)), str(source))
    return Start(read_aion(source).network, str(source), aion=True)


def check(start: Start, settings: Settings) -> None:
    """ValueError where a network of these settings cannot hold the start's weights."""
    network = start.network
    smooth = network.token.waves is not None or len(network.token.parts)
    if network.starts is not None or network.pairs is not None or smooth:
        raise ValueError(
            f"{start.where}: was trained with counted, pairs or smooth, which are fitted to its own pile; wanted a "
            "network without them: train one with counted = 0, pairs = false, smooth = false"
        )
    if settings.counted or settings.pairs or settings.smooth:
        raise ValueError(
            "settings: counted, pairs and smooth are for networks that begin at random; with a start give counted = 0, "
            "pairs = false, smooth = false"
        )


def take_over(network: Network, start: Start) -> Taken:
    """Fill a network, of the start's form and of any modalities, with what the start has."""
    state, theirs = network.state_dict(), start.network.state_dict()
    own, other = network.vocabulary, start.network.vocabulary
    known: dict[int, int] = {}
    for m, column in enumerate(own.columns):
        if (k := _counterpart(column, start)) is not None:
            known[m] = k
    with torch.no_grad():
        for name, tensor in state.items():
            if not name.startswith(TABLES):
                tensor.copy_(theirs[name])
        rows, their_rows = first_rows(own), first_rows(other)
        for m, k in known.items():
            n = own.columns[m].vocabulary
            for name in ("token.weight", "head.weight"):
                _copy(state, theirs, name, int(rows[m]), int(their_rows[k]), n)
            _copy(state, theirs, "slot.modality", m, k, 1)
            for name in ("slot.place", "slot.slot"):
                if name in theirs and name in state:
                    first, their_first = int(own.first_slot[m]), int(other.first_slot[k])
                    _copy(state, theirs, name, first, their_first, own.columns[m].n_tokens)
    left = [name for k, name in enumerate(other.names) if k not in known.values()]
    new = [name for m, name in enumerate(own.names) if m not in known]
    return Taken(tuple(own.names[m] for m in known), tuple(new), tuple(left))


def _counterpart(column: TokenColumn, start: Start) -> int | None:
    for k, other in enumerate(start.network.vocabulary.columns):
        same = (
            column.token_key == other.modality
            if start.aion
            else (column.modality, column.codec_id) == (other.modality, other.codec_id)
        )
        if same and (column.vocabulary, column.n_tokens) == (other.vocabulary, other.n_tokens):
            return k
    return None


def _copy(state: Mapping[str, Tensor], theirs: Mapping[str, Tensor], name: str, at: int, other: int, n: int) -> None:
    state[name][at : at + n].copy_(theirs[name][other : other + n])
