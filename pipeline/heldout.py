"""What a pile has of its held-out sky: tokens, measurements, and the same sources read again from another root.

Nothing here gives a source of the training sky: codecs are judged by what none of them was fitted to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skycairn.archives.files import RootArchive
from skycairn.catalogs.registry import survey
from skycairn.catalogs.survey import Modality, Survey
from skycairn.match.sky import cells, split_of_cell
from skycairn.pile.store import Pile, Snapshot
from skycairn.pipeline.encode import payload_arrays
from skycairn.pipeline.loaded import is_network
from skycairn.tokenizers.codec import Codec

HELD_OUT = ("validation", "test")
SPLIT_ORDER = 5
AT_ONCE = 256
MOST_FLIPS = 1e-3
"""Share of a network's tokens that may be others than the shards', which a GPU may have encoded."""
TRAINED = "trained.json"
"""Beside a codecs.lock: which sky its codecs were trained on, by modality."""
I64 = NDArray[np.int64]


class HeldOut(NamedTuple):
    """Tokens of one modality's held-out sources, by key in order."""

    key: I64
    tokens: NDArray[Any]
    "(n, n_tokens)"


def surveys(pile: Pile) -> Iterator[Survey]:
    """Those of the newest snapshot's recipe."""
    for name, chosen in pile.snapshot().recipe["surveys"].items():
        options = {k: v for k, v in chosen.items() if k not in ("release", "profile", "root", "source", "url")}
        yield survey(name, chosen["release"], **options)


def held_out(pile: Pile, m: Modality, codec: Codec) -> HeldOut:
    """Tokens of the sources whose object is in a held-out split; of a user's targets none.

    ValueError where those splits are empty, or one of their objects lies on the training sky after all.
    """
    name = m.name.split(".")[0]
    snapshot = pile.snapshot()
    keys, tokens, healpix = [], [], []
    for entry in snapshot.entries("shards"):
        if entry.labels["split"] not in HELD_OUT:
            continue
        table = pile.read_table(entry.part, columns=["healpix29", f"key.{name}", m.name])
        table = table.filter(pc.and_(table[f"key.{name}"].is_valid(), table[m.name].is_valid()))
        column = table[m.name].combine_chunks()
        flat = column if codec.layout.kind == "scalar" else pc.list_flatten(column)
        keys.append(table[f"key.{name}"].to_numpy())
        tokens.append(flat.to_numpy(zero_copy_only=False).reshape(table.num_rows, codec.n_tokens))
        healpix.append(table["healpix29"].to_numpy())
    if not keys:
        raise ValueError(f"the pile's splits {' and '.join(HELD_OUT)} are empty; build one that fills them")
    split = snapshot.recipe["split"]
    fractions = dict(zip(("train", "validation", "test"), split["fractions"], strict=True))
    where = split_of_cell(cells(np.concatenate(healpix), SPLIT_ORDER), split["salt"], fractions)
    if (where == "train").any():
        raise ValueError(f"{m.name}: {(where == 'train').sum()} held-out objects lie on the training sky")
    order = np.argsort(np.concatenate(keys), kind="stable")
    return HeldOut(np.concatenate(keys)[order], np.concatenate(tokens)[order])


def rows_of(table: pa.Table, key: I64) -> pa.Table:
    """The rows of these keys, in their order."""
    at = pc.index_in(pa.array(key), table["key"].combine_chunks())
    if at.null_count:
        raise ValueError(f"{at.null_count} held-out sources are not in the pile's tables; is its payload all kept?")
    return table.take(at).combine_chunks()


def check_tokens(m: Modality, tokens: NDArray[Any], held: HeldOut, codec: Codec | None = None) -> float:
    """The share of the shards' tokens that are not those of what they are held against.

    ValueError where there are any, or more than `MOST_FLIPS` if `codec` is a network.
    """
    same = tokens.shape == held.tokens.shape
    flips = float(np.mean(tokens != held.tokens)) if same and tokens.size else float(not same)
    if flips > (MOST_FLIPS if codec is not None and is_network(codec) else 0.0):
        raise ValueError(
            f"{m.name}: the shards' tokens are not those of the pile's measurements ({flips:.2%} are others); build "
            "the pile anew"
        )
    return flips


def catalogue(pile: Pile, m: Modality, key: I64, columns: list[str] | None = None) -> pa.Table:
    """The survey's own columns of these sources, in their order."""
    entries = pile.snapshot().entries(f"{m.name.split('.')[0]}.wide")
    return rows_of(pa.concat_tables([pile.read_table(e.part, columns) for e in entries]), key)


def weighted(pile: Pile, m: Modality) -> bool:
    """Whether the pile's payload of it has inverse variances; what a viewer has resampled has none."""
    for entry in pile.snapshot().entries(f"payload.{m.name}"):
        with pile.open_parquet(entry.part) as file:
            if "ivar" not in file.schema_arrow.names:
                return False
    return True


def record_sky(lock: Path, snapshot: Snapshot, codecs: Mapping[str, Codec]) -> None:
    """Write beside a lock that these of its codecs were trained on the training sky of a snapshot."""
    path, told = lock.with_name(TRAINED), _told(lock)
    sky = {"split": snapshot.recipe.get("split"), "snapshot": snapshot.content_id}
    told |= {m: {"codec": c.content_id, **sky} for m, c in codecs.items()}
    path.write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")


def _told(lock: Path) -> dict[str, Any]:
    path = lock.with_name(TRAINED)
    told: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return told


def untold(lock: Path, codecs: Mapping[str, Codec]) -> list[str]:
    """Modalities of a lock's codecs of which nothing beside it says what sky they were trained on."""
    told = _told(lock)
    return sorted(m for m, c in codecs.items() if told.get(m, {}).get("codec") != c.content_id)


def other_sky(lock: Path, snapshot: Snapshot, codecs: Mapping[str, Codec]) -> list[str]:
    """Modalities of a lock's codecs that were trained on sky which another salt or other fractions have chosen."""
    told = _told(lock)
    names = ("salt", "fractions")

    def chosen(split: Mapping[str, Any] | None) -> list[Any]:
        return [(split or {}).get(n) for n in names]

    own = json.loads(json.dumps(chosen(snapshot.recipe.get("split"))))
    return sorted(
        m for m, c in codecs.items() if told.get(m, {}).get("codec") == c.content_id and chosen(told[m]["split"]) != own
    )


def payload(pile: Pile, m: Modality, held: HeldOut) -> dict[str, NDArray[Any]]:
    """Arrays of the held-out sources."""
    name = m.name.split(".")[0]
    found = []
    for entry in pile.snapshot().entries(f"payload.{m.name}"):
        table = pile.read_table(entry.part)
        mine = pc.and_(pc.equal(table["owner"], name), pc.is_in(table["key"], pa.array(held.key)))
        found.append(table.filter(pc.and_(mine, table["status"].is_null())))
    if not found:
        raise ValueError(f"the pile has kept no payload of {m.name}; build it with payload `all`")
    return payload_arrays(rows_of(pa.concat_tables(found), held.key), m)


class Again(NamedTuple):
    """Sources whose measurement was read from a root, row numbers in the table that was asked about."""

    rows: I64
    arrays: dict[str, NDArray[Any]]


def read_again(s: Survey, root: Path, m: Modality, sources: pa.Table) -> Iterator[Again]:
    """Measurements of these sources (key, ra, dec, own columns) from another root of the survey, a file at a time.

    By the survey's own reader, as a build reads them; what is not measured there, or whose files are lost, is left out.
    """
    archive = RootArchive(root)
    reference = {role: archive.local(file.path) for role, file in s.reference_files().items()}
    for group in s.payload_groups(sources, m.name, reference):
        there = {role: archive.local(f.path) for role, f in group.files.items() if archive.exists(f.path)}
        lost = frozenset(r for r, f in group.files.items() if r not in there and archive.listed(f) is not None)
        if lost or not there:
            continue
        for a in range(0, len(group.rows), AT_ONCE):
            rows = group.rows[a : a + AT_ONCE]
            made = s.extract(m.name, sources.take(pa.array(rows)).combine_chunks(), there, lost)
            present = made["status"].is_null()
            rows = rows[present.to_numpy()]
            if len(rows):
                yield Again(rows, payload_arrays(made.filter(present).combine_chunks(), m))


def true_flux(
    pile: Pile, s: Survey, m: Modality, root: Path, key: I64, measured: dict[str, NDArray[Any]]
) -> NDArray[np.float32]:
    """Flux of these sources in a root without noise, shape as of `measured`, which is what the pile holds of them.

    `root` holds a folder a survey. ValueError where it is of another sky: inverse variances and masks must be the
    pile's own, and no source may be missing.
    """
    flux = np.full(measured["flux"].shape, np.nan, dtype=np.float32)
    seen = np.zeros(len(key), bool)
    for found in read_again(s, root / s.name, m, catalogue(pile, m, key)):
        for name in ("ivar", "mask"):
            differ = found.arrays[name] != measured[name][found.rows]
            if differ.any():
                row = found.rows[np.argwhere(differ)[0][0]]
                raise ValueError(
                    f"{root / s.name}: {m.name} of {s.name}:{key[row]} has another {name} than the pile; wanted the "
                    "sky that the pile was built from, without its noise: the same tier and seed"
                )
        flux[found.rows] = found.arrays["flux"]
        seen[found.rows] = True
    if not seen.all():
        raise ValueError(
            f"{root / s.name}: holds no {m.name} of {(~seen).sum()} of the pile's {len(key)} held-out sources, the "
            f"first {s.name}:{key[~seen][0]}; wanted the sky that the pile was built from, without its noise"
        )
    return flux
