"""AION-1's published transformer in ours, and back: every tensor bit for bit, and what its file ties together.

https://huggingface.co/polymathic-ai/aion-base (MIT licence) holds `config.json` and `model.safetensors`; nothing is
unpickled. Tensors that no result hangs on (tables that its decoder looks up and overwrites, biases that are always 0,
places that never change) are kept aside and written back as they were, after training too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from skycairn.model.forms import Form
from skycairn.model.layout import Ints
from skycairn.model.packed import Packed
from skycairn.model.transformer import Compat, Losses, Network, objective
from skycairn.model.vocabulary import Vocabulary
from skycairn.pile.shards import TokenColumn
from skycairn.tokenizers.aion import CONFIG, WEIGHTS, folder_of, matched
from skycairn.tokenizers.codec import read_json
from skycairn.tokenizers.modalities import AION, aion_modality

SPECIAL = 204
"""Rows of the catalogue's table before its codec's tokens: padding, unknown, start, end, and 200 sentinels."""
KNOWN: dict[str, Any] = {
    **dict.fromkeys(("dim", "encoder_depth", "decoder_depth", "num_heads", "domains_in", "domains_out"), ...),
    **{"mlp_ratio": 4.0, "act_layer": ..., "norm_bias": ..., "qkv_bias": True, "proj_bias": True, "mlp_bias": True},
    **{"gated_mlp": False, "qk_norm": False, "decoder_causal_mask": False, "decoder_sep_mask": True},
    **{"drop_path_rate_encoder": 0.0, "drop_path_rate_decoder": 0.0, "shared_drop_path": False},
    **{"num_register_tokens": 0, "use_act_checkpoint": False, "share_modality_embeddings": True},
}
"""Of its configuration, with the defaults of its class."""
WANTED = {
    **{"act_layer": "SiLU", "gated_mlp": True, "qk_norm": True, "norm_bias": False, "qkv_bias": False},
    **{"proj_bias": False, "mlp_bias": False, "decoder_causal_mask": False, "decoder_sep_mask": True},
    **{"drop_path_rate_encoder": 0.0, "drop_path_rate_decoder": 0.0, "num_register_tokens": 0},
    **{"share_modality_embeddings": True},
}
"""What the three published models have in common, and this network can do."""


@dataclass(frozen=True)
class Imported:
    """A model of AION-1: its network, which may be trained, and what its file needs besides to be written again."""

    network: Network
    config: Mapping[str, Any]
    kept: Mapping[str, Tensor]
    "tensors with no part in the network, by their names in the file"
    types: Mapping[str, torch.dtype]
    "of every tensor of the file"
    metadata: Mapping[str, str]
    "of the file: its own, and which name stands for another that it leaves out"


def aion_vocabulary(keys: Sequence[str]) -> Vocabulary:
    """AION-1's modalities by their token keys, in the order of these; no two share a table."""
    columns = []
    for key in sorted(keys):
        m = aion_modality(key)
        layout: Literal["scalar", "grid", "line", "sequence"]
        shape: tuple[int, ...]
        if m.codec in ("image", "scalar_field"):
            layout, shape = "grid", (round(m.tokens**0.5),) * 2
        elif m.codec == "catalog":
            layout, shape = "sequence", (m.tokens,)
        else:
            layout, shape = ("scalar", ()) if m.tokens == 1 else ("line", (m.tokens,))
        ordered = m.codec in ("scalar", "log", "multi", "grid")
        columns.append(TokenColumn(key, f"aion-1 {key}", m.outputs, m.tokens, layout, shape, ordered, key))
    return Vocabulary(tuple(columns))


def read_aion(source: str | Path, compat: Compat | None = None) -> Imported:
    """A model of AION-1 from a folder or from the Hub ("polymathic-ai/aion-base").

    `compat="aion"` reads its catalogue of objects as it does, a sequence that foretells its next token; else it is
    masked like the rest. ValueError where the configuration is of a network that this is not, or the file lacks a
    tensor, or has one too many or of another shape, or of numbers that this network holds to be 0 or alike.
    """
    folder = folder_of(source, "", "model of AION-1")
    config = read_json(folder / CONFIG)
    full = matched("transformer", config, KNOWN)
    told = [f"{k} {full[k]!r}, wanted {v!r}" for k, v in WANTED.items() if full[k] != v]
    if set(full["domains_in"]) != set(full["domains_out"]):
        told.append("domains_in that are not its domains_out")
    if unknown := sorted(set(full["domains_in"]) - set(AION)):
        told.append(f"modalities {', '.join(unknown)}, which AION-1 has not")
    if told:
        raise ValueError(f"{folder / CONFIG}: has {'; '.join(told)}; only models built as AION-1's are read")
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{folder / WEIGHTS}: is no whole safetensors file ({error}), and nothing else is read; fetch it again"
        ) from error
    vocabulary = aion_vocabulary(full["domains_in"])
    form = Form(
        full["encoder_depth"],
        full["decoder_depth"],
        full["dim"],
        full["num_heads"],
        int(2 * int(full["dim"] * full["mlp_ratio"]) / 3),
    )
    sequences = [c.modality for c in vocabulary.columns if c.layout == "sequence"] if compat == "aion" else []
    network = Network(vocabulary, form, learned_slots=False, sequences=sequences)
    _fill(network, tensors, metadata, str(folder / WEIGHTS))
    used = {k for keys in _sources(network).values() for k in keys}
    kept = {k: t for k, t in tensors.items() if k not in used and _tied(k) not in used}
    return Imported(network, config, kept, {k: t.dtype for k, t in tensors.items()}, metadata)


def aion_tensors(imported: Imported) -> dict[str, Tensor]:
    """The tensors as AION-1's file has them, from the network as it is now."""
    network = imported.network
    shapes = _shapes(network)
    state = {name: t.detach().cpu() for name, t in network.state_dict().items()}
    out = dict(imported.kept)
    for name, keys in _sources(network).items():
        rows = [int(np.prod(shapes[k])) // int(np.prod(state[name].shape[1:])) for k in keys]
        for key, part in zip(keys, torch.split(state[name], rows), strict=True):
            for twin in (key, _tied(key)):
                if twin in imported.types:
                    out[twin] = part.reshape(shapes[key]).to(imported.types[twin]).contiguous().clone()
    return {k: out[k] for k in imported.types}


def write_aion(imported: Imported, folder: Path) -> None:
    """Write `config.json` and `model.safetensors`, as `read_aion` and polymathic-aion read them."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(aion_tensors(imported), folder / WEIGHTS, metadata=dict(imported.metadata) or None)
    (folder / CONFIG).write_text(json.dumps(dict(imported.config), indent=2, sort_keys=True))


def as_aion(packed: Packed, own: Vocabulary, vocabulary: Vocabulary) -> Packed:
    """A microbatch of a pile in the vocabulary of AION-1, `aion_vocabulary`; modalities are matched by token key.

    Where two become one (redshifts of two surveys), an object keeps the first, and what it shows is not asked for.
    The catalogue's tokens stand behind AION-1's special ones, and those that its 50 slots do not hold are left out; the
    special tokens themselves are not put in. ValueError where a modality has no counterpart, or tokens that it lacks.
    """
    moved = np.full(own.n_slots, -1, np.int64)
    offset = np.zeros(len(own.columns), np.int64)
    for m, column in enumerate(own.columns):
        here = vocabulary.indices([column.token_key])
        if not here:
            continue
        known = vocabulary.columns[here[0]]
        offset[m] = SPECIAL if known.layout == "sequence" else 0
        if column.vocabulary + offset[m] > known.vocabulary or (
            known.layout != "sequence" and column.n_tokens != known.n_tokens
        ):
            raise ValueError(
                f"{column.modality}: {column.n_tokens} tokens of a vocabulary of {column.vocabulary}; AION-1's "
                f"{column.token_key} has {known.n_tokens} of {known.vocabulary - int(offset[m])}: encode the pile with "
                "AION-1's codecs"
            )
        n = min(column.n_tokens, known.n_tokens)
        first = int(own.first_slot[m])
        moved[first : first + n] = vocabulary.first_slot[here[0]] + np.arange(n)
        moved[first + n : first + column.n_tokens] = -2
    shown = _moved(packed.input_slot, packed.input_token, packed.input_start, own, moved, offset)
    asked = _moved(packed.target_slot, packed.target_token, packed.target_start, own, moved, offset)
    there = shown[2] * vocabulary.n_slots + shown[0]
    free = ~np.isin(asked[2] * vocabulary.n_slots + asked[0], there)
    n = packed.n_objects
    out: list[Any] = []
    for slot, token, of in (shown, (asked[0][free], asked[1][free], asked[2][free])):
        start = np.append(0, np.cumsum(np.bincount(of, minlength=n))).astype(np.int64)
        out += [slot.astype(np.int32), token.astype(np.int32), start]
    return Packed(*out)


def _moved(
    slot: NDArray[np.int32],
    token: NDArray[np.int32],
    start: Ints,
    own: Vocabulary,
    moved: Ints,
    offset: Ints,
) -> tuple[Ints, Ints, Ints]:
    """Slots and tokens in the other vocabulary, and the object of each, in order; of several at one slot the first."""
    of = np.repeat(np.arange(len(start) - 1), np.diff(start))
    kind, place = own.modality_of_slot[slot], moved[slot]
    if (place == -1).any():
        column = own.columns[kind[np.flatnonzero(place == -1)[0]]]
        raise ValueError(
            f"{column.modality}: AION-1 has no modality {column.token_key!r} in this model; leave it out of the loader"
        )
    keep = np.flatnonzero(place >= 0)
    order = keep[np.lexsort((keep, place[keep], of[keep]))]
    of, place, token_ = of[order], place[order], (token + offset[kind])[order]
    first = np.ones(len(of), bool)
    first[1:] = (of[1:] != of[:-1]) | (place[1:] != place[:-1])
    return place[first], token_[first], of[first]


def aion_objective(
    losses: Losses, vocabulary: Vocabulary, reduction: Literal["mod", "token"], n_modalities: int
) -> Tensor:
    """The loss as 4M's code and AION-1's reduce it, for comparison alone.

    "mod" divides by all `n_modalities` that were offered, also those of which nothing was asked. "token" weighs a
    modality by tokens x vocabulary, for which large vocabularies count more.
    """
    if reduction == "mod":
        weights = (losses.counts > 0) / max(1, n_modalities)
    else:
        share = losses.counts * np.array([c.vocabulary for c in vocabulary.columns])
        weights = share / max(1, int(share.sum()))
    return objective(losses, losses.counts, weights)


def _tied(key: str) -> str:
    """The other name of a modality's vector, which encoder and decoder share; any other name itself."""
    if not key.endswith(".mod_emb"):
        return key
    one, other = "encoder_embeddings.", "decoder_embeddings."
    return key.replace(one, other) if key.startswith(one) else key.replace(other, one)


def _sources(network: Network) -> dict[str, list[str]]:
    """Of each tensor of the network, the file's tensors that it is made of, one below another."""
    names = network.vocabulary.names
    out = {
        "asked": ["mask_token"],
        "token.weight": [f"encoder_embeddings.{k}.token_emb.weight" for k in names],
        "head.weight": [f"decoder_embeddings.{k}.to_logits.weight" for k in names],
        "slot.modality": [f"decoder_embeddings.{k}.mod_emb" for k in names],
        "context.weight": ["decoder_proj_context.weight"],
        "context.bias": ["decoder_proj_context.bias"],
        **{f"{side}_norm.weight": [f"{side}_norm.weight"] for side in ("encoder", "decoder")},
    }
    if network.told is not None:
        out["told"] = [f"decoder_embeddings.{names[m]}.token_emb.weight" for m in network.sequences]
    for side, theirs, depth in (
        ("encoder", {"attention": "attn"}, network.form.encoder_depth),
        ("decoder", {"attention": "self_attn", "cross": "cross_attn"}, network.form.decoder_depth),
    ):
        for i in range(depth):
            own, block = f"{side}.{i}", f"{side}.{i}"
            for ours, name in theirs.items():
                products = ("qkv", "proj") if ours == "attention" else ("q", "kv", "proj")
                for part in (*products, "q_norm", "k_norm"):
                    out[f"{own}.{ours}.{part}.weight"] = [f"{block}.{name}.{part}.weight"]
            for norm in ("norm1", "norm2", *(("query_norm", "context_norm") if side == "decoder" else ())):
                out[f"{own}.{norm}.weight"] = [f"{block}.{norm}.weight"]
            out[f"{own}.feed.gate_up.weight"] = [f"{block}.mlp.fc1.weight", f"{block}.mlp.fc3.weight"]
            out[f"{own}.feed.down.weight"] = [f"{block}.mlp.fc2.weight"]
    return out


def _shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the file, those that it leaves out too."""
    width, hidden = network.form.width, network.form.hidden
    out: dict[str, tuple[int, ...]] = {}
    state = network.state_dict()
    for name, keys in _sources(network).items():
        for key in keys:
            out[key] = (hidden, width) if key.endswith((".fc1.weight", ".fc3.weight")) else tuple(state[name].shape)
            if key.endswith("norm.weight") or ".norm" in key:
                out[key.replace(".weight", ".bias")] = out[key]
    out["mask_token"] = (1, 1, width)
    for column in network.vocabulary.columns:
        # a slip of the peer keeps all 512 places of a sequence, whatever its length
        places = 512 if column.layout == "sequence" else column.n_tokens
        for side in ("encoder", "decoder"):
            at = f"{side}_embeddings.{column.modality}"
            out |= {f"{at}.mod_emb": (1, 1, width), f"{at}.pos_emb": (1, places, width)}
            out[f"{at}.token_emb.weight"] = (column.vocabulary, width)
        out[f"decoder_embeddings.{column.modality}.to_logits.weight"] = (column.vocabulary, width)
    return out


def _fill(network: Network, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], where: str) -> None:
    """Take over a file's tensors; ValueError as `read_aion` says."""
    shapes = _shapes(network)
    found = dict(tensors)
    for key in shapes:
        if key not in found and _tied(key) in tensors:
            found[key] = tensors[_tied(key)]
    missing, strange = sorted(shapes.keys() - found.keys()), sorted(found.keys() - shapes.keys())
    if missing or strange:
        raise ValueError(
            f"{where}: lacks {_some(missing)} and has {_some(strange)} that its configuration does not name; fetch the "
            "two files again, of one model"
        )
    for key, shape in shapes.items():
        if tuple(found[key].shape) != shape:
            raise ValueError(
                f"{where}: {key} is of shape {tuple(found[key].shape)}, wanted {shape} by its configuration; fetch the "
                "two files again, of one model"
            )
    for key, why in _disagreements(network.vocabulary, found):
        raise ValueError(f"{where}: {key} {why}, which AION-1's models never have; this network cannot hold it")
    state = network.state_dict()
    with torch.no_grad():
        for name, keys in _sources(network).items():
            parts = [found[k].reshape(-1, *state[name].shape[1:]) for k in keys]
            state[name].copy_(torch.cat(parts) if len(parts) > 1 else parts[0])
        place = [found[f"encoder_embeddings.{c.modality}.pos_emb"][0, : c.n_tokens] for c in network.vocabulary.columns]
        state["slot.place"].copy_(torch.cat(place))


def _disagreements(vocabulary: Vocabulary, found: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    for key, tensor in found.items():
        if key.endswith(".bias") and "norm" in key and tensor.any():
            yield key, "is not 0"
    for name in vocabulary.names:
        for part in ("mod_emb", "pos_emb"):
            key = f"encoder_embeddings.{name}.{part}"
            if not torch.equal(found[key], found[f"decoder_embeddings.{name}.{part}"]):
                yield key, "is not that of the decoder"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") if names else "nothing"
