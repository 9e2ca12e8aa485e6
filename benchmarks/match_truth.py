"""Score the matching against the mock sky's truth, and hold it against brute force, on the whole `catalogue` tier.

    python benchmarks/match_truth.py [--sky DIR] [--pile DIR] [--fast-sky DIR] [--write docs/match_truth.md]

Builds the mock and the pile (where they are not there yet), then prints what docs/match_truth.md holds: purity and
completeness of pairs and objects by class of true thing, blends against their many-to-one truth, differences from
brute force. The fast sky is a second, smaller mock with some thousand stars faster than 0.5 arcsec/yr, since a sky
like ours has too few of them to say anything within 0.1 percent. Exits with an error where isolated sources miss the
mark or anything differs from brute force.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import match_oracle
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.stats import beta

from skycairn.catalogs.registry import SURVEYS
from skycairn.catalogs.survey import WORK_ORDER
from skycairn.match import sky
from skycairn.match.posterior import densities
from skycairn.mocksky import build as mock
from skycairn.mocksky.patches import TIERS, Tier
from skycairn.pile.store import Pile
from skycairn.pipeline import recipe as recipes
from skycairn.pipeline import run
from skycairn.pipeline.grouping import Groups, Policy, group, is_fast, match_cell

I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

WANTED = 0.999
FEWEST = int(np.ceil(np.log(0.05) / np.log(WANTED)))
"""Of fewer things the lower bound lies below the mark though none is missed."""
LONELY_ARCSEC = 3.0
"""An isolated thing has no other true thing within this, of any kind or brightness."""
TRACK_EPOCHS = (2010.0, 2023.0)
"""The survey's epochs, and some years more: in them a mover must keep its distance."""
MOVER_ARCSEC = 0.05
FAST_ARCSEC = 0.5
MAGNITUDES = (0.0, 16.0, 18.0, 20.0, 21.0, 22.0, 23.0, 99.0)
RADIUS_ARCSEC = 1.0
AROUND_ARCSEC = 30.0
"""The density at a thing is how many others lie within this."""
FAST = f"isolated, from {FAST_ARCSEC} arcsec/yr"
KNOWN = f"{FAST}, motion known"
"""To all surveys that hold the star, but one at most."""

RECIPE: dict[str, Any] = {
    "name": "match_truth",
    "region": recipes.ALL_SKY,
    "surveys": {
        "legacysurvey": {"release": "dr10", "profile": "aion"},
        "hsc": {"release": "pdr3-wide", "profile": "aion"},
        "gaia": {"release": "dr3", "profile": "aion"},
        "desi": {"release": "dr1", "profile": "strict"},
        "sdss": {"release": "dr17", "profile": "strict"},
    },
    "match": {"radius_arcsec": RADIUS_ARCSEC},
    "split": {"least": 0.0},
    "codecs": {"fit_on": "any"},
    "payload": {"keep": "none"},
}


# --- the truth --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """The true things, and which of them each survey's rows show."""

    classes: dict[str, Bools]
    "by name; index is the uid, 0 being no thing"
    flux_r: NDArray[np.float64]
    blend: I64
    speed: NDArray[np.float64]
    "arcsec a year"
    shown: dict[str, tuple[I64, I64]]
    "by survey: (uid, key) of the rows that the matching was given; a row shows many things, or a thing has many rows"
    unshown: dict[str, dict[str, int]]
    "by survey: rows of a true thing that the matching was not given, by their label in the truth"
    trueless: dict[str, int]
    "by survey: rows given that show nothing true"


def read_truth(sky_root: Path, given: Mapping[str, pa.Table]) -> Truth:
    """`given` are the slim tables of the valid sources, by survey."""
    t = pq.read_table(sky_root / "truth" / "sources.parquet").sort_by("uid")
    n = t.num_rows
    if not np.array_equal(t["uid"].to_numpy(), np.arange(1, n + 1)):
        raise ValueError("uids of the truth are not 1, 2, 3, ...")
    c = {name: t[name].to_numpy() for name in ("ra", "dec", "pmra", "pmdec", "flux_r", "blend_group")}
    speed = np.hypot(c["pmra"], c["pmdec"]) / 1000
    near = _near_others(c, speed)
    isolated = ~near & (c["blend_group"] == 0)
    with np.errstate(divide="ignore"):
        magnitude = 22.5 - 2.5 * np.log10(np.maximum(c["flux_r"], 1e-9))
    classes = {
        "all": np.ones(n, bool),
        "isolated": isolated,
        "isolated, galaxies": isolated & pc.equal(t["kind"], "galaxy").to_numpy(),
        "isolated, stars": isolated & pc.equal(t["kind"], "star").to_numpy(),
        "isolated, quasars": isolated & pc.equal(t["kind"], "quasar").to_numpy(),
        f"isolated, {MOVER_ARCSEC} to {FAST_ARCSEC} arcsec/yr": isolated
        & (speed >= MOVER_ARCSEC)
        & (speed < FAST_ARCSEC),
        FAST: isolated & (speed >= FAST_ARCSEC),
        f"from {FAST_ARCSEC} arcsec/yr": speed >= FAST_ARCSEC,
    }
    for low, high in pairwise(MAGNITUDES):
        name = f"isolated, r {low:g} to {high:g}" if high < 90 else f"isolated, r from {low:g}"
        classes[name.replace("r 0 to", "r below")] = isolated & (magnitude >= low) & (magnitude < high)
    classes |= by_density(c["ra"], c["dec"], isolated)
    classes["another within 3 arcsec, no blend"] = near & (c["blend_group"] == 0)
    classes["blends"] = c["blend_group"] > 0
    shown, unshown, trueless = {}, {}, {}
    n_still = np.zeros(n + 1, np.int64)
    for name, table in given.items():
        keys = table["key"].to_numpy()
        rows = pq.read_table(sky_root / "truth" / f"{name}.parquet")
        rows = rows.filter(pc.and_(pc.greater(rows["uid"], 0), pc.and_(rows["observed"], pc.is_valid(rows["key"]))))
        uid, key = rows["uid"].to_numpy(), rows["key"].to_numpy()
        there = np.isin(key, keys)
        dirt = np.asarray(rows["dirt"].to_pylist(), dtype=object)[~there]
        unshown[name] = {str(d) or "clean": int((dirt == d).sum()) for d in sorted(set(dirt))}
        once = np.unique(np.stack([uid[there], key[there]]), axis=1)
        shown[name] = once[0], once[1]
        trueless[name] = int((~np.isin(keys, key)).sum())
        still = keys[table["pmra"].is_null().to_numpy()]
        n_still[np.unique(once[0][np.isin(once[1], still)])] += 1
    classes[KNOWN] = classes[FAST] & (n_still[1:] <= 1)
    order = [name for k in classes if k != KNOWN for name in ([k, KNOWN] if k == FAST else [k])]
    return Truth(
        {name: np.append(False, classes[name]) for name in order},
        np.append(0.0, c["flux_r"]),
        np.append(0, c["blend_group"]),
        np.append(0.0, speed),
        shown,
        unshown,
        trueless,
    )


def by_density(ra: NDArray[np.float64], dec: NDArray[np.float64], isolated: Bools) -> dict[str, Bools]:
    """The isolated things, in thirds by how many other things there are within 30 arcsec."""
    tree = cKDTree(sky.unit_vectors(ra, dec).T)
    limit = np.radians(AROUND_ARCSEC / 3600)
    count = tree.query_ball_point(tree.data, limit, return_length=True) - 1
    ends = np.unique(np.quantile(count[isolated], [1 / 3, 2 / 3]).astype(np.int64)).tolist() if isolated.any() else []
    out, low = {}, 0
    for high in ends:
        out[f"isolated, neighbours {low} to {high}"] = isolated & (count >= low) & (count <= high)
        low = high + 1
    return {**out, f"isolated, neighbours from {low}": isolated & (count >= low)}


def _near_others(c: Mapping[str, NDArray[np.float64]], speed: NDArray[np.float64]) -> Bools:
    """Which things have another within 3 arcsec in 2016, or at any time on a mover's track."""
    xyz = sky.unit_vectors(c["ra"], c["dec"]).T
    tree = cKDTree(xyz)
    limit = np.radians(LONELY_ARCSEC / 3600)
    near = np.zeros(len(speed), bool)
    near[tree.query_pairs(limit, output_type="ndarray").ravel()] = True
    for i in np.flatnonzero(speed >= MOVER_ARCSEC):
        years = np.arange(TRACK_EPOCHS[0], TRACK_EPOCHS[1], min(1.0, 0.5 / speed[i])) - 2016.0
        track = sky.unit_vectors(*sky.propagate(c["ra"][i], c["dec"][i], c["pmra"][i], c["pmdec"][i], years)).T
        others = np.unique(np.concatenate(tree.query_ball_point(track, limit)).astype(np.int64))
        others = others[others != i]
        near[others] = True
        near[i] |= others.size > 0
    return near


# --- scores -----------------------------------------------------------------------------------------------------------


def lower_bound(k: int, n: int) -> float:
    """One-sided 95 % lower bound of a share of k in n (Clopper and Pearson 1934)."""
    return float(beta.ppf(0.05, k, n - k + 1)) if k else 0.0


@dataclass(frozen=True)
class Score:
    """k of n."""

    k: int
    n: int

    @property
    def bound(self) -> float:
        return lower_bound(self.k, self.n)

    def __str__(self) -> str:
        return f"{self.k:,} / {self.n:,} | {self.k / self.n:.5f} | {self.bound:.5f}" if self.n else "0 / 0 | |"


def join(a: tuple[I64, I64], b: tuple[I64, I64]) -> tuple[I64, I64, I64]:
    """All (common, of a, of b) of two relations (common, own)."""
    left = pa.table({"x": a[0], "a": a[1]})
    both = left.join(pa.table({"x": b[0], "b": b[1]}), "x", join_type="inner").combine_chunks()
    return both["x"].to_numpy(), both["a"].to_numpy(), both["b"].to_numpy()


def is_in(pairs: tuple[I64, I64], among: tuple[I64, I64]) -> Bools:
    """Whether each pair of keys is among others."""
    both = pa.table({"a": among[0], "b": among[1]}).group_by(["a", "b"]).aggregate([])
    both = both.append_column("there", pa.array(np.ones(both.num_rows, bool)))
    asked = pa.table({"a": pairs[0], "b": pairs[1], "at": np.arange(len(pairs[0]))})
    out = asked.join(both, ["a", "b"], join_type="left outer").sort_by("at")
    return np.asarray(out["there"].fill_null(False))


def score(truth: Truth, a: str, b: str, links: tuple[I64, I64]) -> dict[str, tuple[Score, Score]]:
    """Purity and completeness of links (key of a, key of b), by class of true thing.

    Pure: both rows show a common true thing. Complete: of a thing that both surveys were given, some row of one is
    linked with some row of the other. An impure link counts in each class that either of its rows shows.
    """
    uid, ka, kb = join(truth.shown[a], truth.shown[b])
    pure = is_in(links, (ka, kb))
    found = np.zeros(len(truth.blend), bool)
    found[uid[is_in((ka, kb), links)]] = True
    both = np.unique(uid)
    out = {}
    for name, flags in truth.classes.items():
        rows = [np.unique(key[flags[u]]) for u, key in (truth.shown[a], truth.shown[b])]
        of_class = np.isin(links[0], rows[0]) | np.isin(links[1], rows[1])
        if name == "all":
            of_class[:] = True
        mine = both[flags[both]]
        out[name] = (
            Score(int(pure[of_class].sum()), int(of_class.sum())),
            Score(int(found[mine].sum()), len(mine)),
        )
    return out


def blends(truth: Truth, a: str, b: str, members: pa.Table) -> list[list[str]]:
    """What became of the rows of `a` that show several true things, by how many of those `b` was given."""
    uid, key = truth.shown[a]
    of_b_uid, of_b_key = truth.shown[b]
    which, size = np.unique(key, return_counts=True)
    blended = np.isin(key, which[size > 1])
    u, ka, kb = join((uid[blended], key[blended]), (of_b_uid, of_b_key))
    held = {
        name: {
            k: (o, g) for k, o, g in zip(*(t[c].to_pylist() for c in ("key", "object_id", "blend_group")), strict=True)
        }
        for name in (a, b)
        for t in [members.filter(pc.equal(members["survey"], name))]
    }
    linked = dict(zip(*(x.tolist() for x in links_of(members, a, b)), strict=True))
    partners: dict[int, dict[int, float]] = {int(k): {} for k in which[size > 1]}
    for x, k, other in zip(u.tolist(), ka.tolist(), kb.tolist(), strict=True):
        partners[k][other] = max(float(truth.flux_r[x]), partners[k].get(other, 0.0))
    rows = []
    for n in (0, 1, 2, 3):
        some = {k: p for k, p in partners.items() if (len(p) == n if n < 3 else len(p) >= 3)}
        right = [k for k, p in some.items() if linked.get(k) in p]
        wrong = sum(k in linked and linked[k] not in p for k, p in some.items())
        brightest = sum(linked[k] == max(some[k], key=lambda x: some[k][x]) for k in right)
        rest = [(k, x) for k, p in some.items() for x in p if x != linked.get(k)]
        known = sum(held[a][k][1] == held[b][x][1] for k, x in rest)
        row = [
            f"{n}{' or more' if n == 3 else ''}",
            len(some),
            len(right),
            brightest,
            wrong,
            len(some) - len(right) - wrong,
        ]
        rows.append([*(f"{v:,}" if isinstance(v, int) else v for v in row), f"{len(rest):,}", f"{known:,}"])
    return rows


def links_of(members: pa.Table, a: str, b: str) -> tuple[I64, I64]:
    """Keys of the sources of two surveys that share an object."""
    of = [members.filter(pc.equal(members["survey"], s)).select(["object_id", "key"]) for s in (a, b)]
    both = of[0].join(of[1], "object_id", join_type="inner", right_suffix="_b").combine_chunks()
    return both["key"].to_numpy(), both["key_b"].to_numpy()


def edges_of(pairs: pa.Table, a: str, b: str) -> tuple[I64, I64]:
    """Keys of the mutual nearest pairs of two surveys."""
    of = pc.and_(pairs["mutual"], pc.and_(pc.equal(pairs["survey_a"], a), pc.equal(pairs["survey_b"], b)))
    mine = pairs.filter(of).combine_chunks()
    return mine["key_a"].to_numpy(), mine["key_b"].to_numpy()


def whole_objects(truth: Truth, members: pa.Table) -> dict[str, tuple[Score, Score]]:
    """Objects: purity, all members show a common thing; completeness, one object holds a row of the thing from every
    survey that was given one. Objects of at least two members, things given to at least two surveys."""
    ids = members["object_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    survey, key = np.asarray(members["survey"].cast(pa.string())), members["key"].to_numpy()
    n_rows = np.bincount(ids)
    n_surveys = np.zeros(len(truth.blend), np.int64)
    uids, objects = [], []
    for name, (uid, k) in truth.shown.items():
        mine = np.flatnonzero(survey == name)
        order = np.argsort(key[mine])
        at = np.searchsorted(key[mine], k, sorter=order)
        uids.append(uid)
        objects.append(ids[mine[order[at]]])
        n_surveys[np.unique(uid)] += 1
    pairs = pa.table({"u": np.concatenate(uids), "o": np.concatenate(objects)})
    together = pairs.group_by(["u", "o"]).aggregate([([], "count_all")])
    u, o, n = (together[c].to_numpy() for c in ("u", "o", "count_all"))
    pure = np.zeros(n_rows.size, bool)
    pure[o[n == n_rows[o]]] = True
    whole = np.zeros(len(truth.blend), bool)
    whole[u[n == n_surveys[u]]] = True
    out = {}
    for name, flags in truth.classes.items():
        mine = np.unique(o[flags[u]])
        mine = mine[n_rows[mine] > 1]
        things = np.flatnonzero(flags & (n_surveys > 1))
        out[name] = (Score(int(pure[mine].sum()), mine.size), Score(int(whole[things].sum()), things.size))
    return out


# --- the pile ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matched:
    """What a pile holds of the matching, and what its building took."""

    slim: dict[str, pa.Table]
    members: pa.Table
    pairs: pa.Table
    ranks: dict[str, int]
    seconds: dict[str, float]
    "by step; empty where the pile was there"


def build(sky_root: Path, pile_root: Path) -> Matched:
    """Build the pile of a mock in this process, and read what the matching left."""
    recipe = recipes.parse(RECIPE, "match_truth").at(sky_root)
    seconds: dict[str, float] = {}
    last = time.perf_counter()

    def progress(step: str, done: int, total: int) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[step] = seconds.get(step, 0.0) + now - last
        last = now

    run.build(recipe, pile_root, progress=progress)
    return read_matched(pile_root, seconds)


def read_matched(pile_root: Path, seconds: Mapping[str, float] | None = None) -> Matched:
    """What the matching left in a pile of the mock sky."""
    pile = Pile.open(pile_root)
    tables = pile.snapshot().tables

    def read(name: str) -> pa.Table:
        return pa.concat_tables([pile.read_table(e.part) for e in tables[name]]).combine_chunks()

    ranks = {name: SURVEYS[name].rank for name in RECIPE["surveys"]}
    names = sorted(ranks, key=lambda name: ranks[name])
    slim = {name: read(f"{name}.slim") for name in names}
    return Matched(slim, read("members"), read("pairs"), ranks, dict(seconds or {}))


def as_groups(m: Matched) -> Groups:
    """Members and pairs of all cells, as `group` gives them."""
    text = m.members["object_id"].combine_chunks(), m.members["blend_group"].combine_chunks()
    columns: dict[str, pa.Array] = {n: m.members[n] for n in ("survey", "key", "separation_uas")}
    for what, ids in zip(("anchor", "blend"), text, strict=True):
        parts = pc.split_pattern(ids, ":")
        columns[f"{what}_survey"] = pc.list_element(parts, 0)
        columns[f"{what}_key"] = pc.list_element(parts, 1).cast(pa.int64())
    columns |= {f"n_{s}": m.members[f"blend_n.{s}"] for s in m.ranks}
    return Groups(pa.table(columns), m.pairs)


def permuted(tables: Mapping[str, pa.Table], seed: int) -> dict[str, pa.Table]:
    """The same rows and surveys in another order."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(sorted(tables)).tolist()
    return {n: tables[n].take(pa.array(rng.permutation(tables[n].num_rows))) for n in names}


def unlike(a: Groups, b: Groups) -> dict[str, int]:
    """Rows of members and of pairs that are not the same in both, whatever the order."""
    out = {}
    for what, x, y, keys in (
        ("members", a.members, b.members, ("survey", "key")),
        ("pairs", a.pairs, b.pairs, ("survey_a", "key_a", "survey_b", "key_b")),
    ):
        same = [_plain(t, sorted(x.column_names)).sort_by([(k, "ascending") for k in keys]) for t in (x, y)]
        if x.num_rows != y.num_rows:
            out[what] = abs(x.num_rows - y.num_rows)
            continue
        bad = np.zeros(x.num_rows, bool)
        for name in same[0].column_names:
            one, other = same[0][name], same[1][name]
            bad |= np.asarray(pc.fill_null(pc.not_equal(one, other), False))
            bad |= np.asarray(pc.not_equal(pc.is_null(one), pc.is_null(other)))
        out[what] = int(bad.sum())
    return out


def _plain(table: pa.Table, names: list[str]) -> pa.Table:
    columns = {}
    for name in names:
        column = table[name]
        columns[name] = column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
    return pa.table(columns)


def turned(tables: Mapping[str, pa.Table], axis: NDArray[np.float64], angle: float) -> dict[str, pa.Table]:
    """The same sky, turned rigidly about an axis: positions and motions."""
    c, s = np.cos(angle), np.sin(angle)
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    matrix = np.eye(3) + s * cross + (1 - c) * cross @ cross
    out = {}
    for name, table in tables.items():
        ra, dec = (np.radians(table[n].to_numpy()) for n in ("ra", "dec"))
        pm = [table[n].to_numpy() for n in ("pmra", "pmdec")]
        p = matrix @ sky.unit_vectors(np.degrees(ra), np.degrees(dec))
        east = np.stack([-np.sin(ra), np.cos(ra), np.zeros_like(ra)])
        north = np.stack([-np.sin(dec) * np.cos(ra), -np.sin(dec) * np.sin(ra), np.cos(dec)])
        v = matrix @ (pm[0] * east + pm[1] * north)
        a, d = np.arctan2(p[1], p[0]), np.arctan2(p[2], np.hypot(p[0], p[1]))
        pmra = -np.sin(a) * v[0] + np.cos(a) * v[1]
        pmdec = -np.sin(d) * (np.cos(a) * v[0] + np.sin(a) * v[1]) + np.cos(d) * v[2]
        new = {"ra": np.degrees(a) % 360, "dec": np.degrees(d)}
        table = table.drop_columns("healpix29")
        for column, values in (*new.items(), ("pmra", pmra), ("pmdec", pmdec)):
            at = table.column_names.index(column)
            table = table.set_column(at, column, pa.array(values, from_pandas=True))
        hp = sky.healpix29(new["ra"], new["dec"])
        out[name] = table.append_column("healpix29", pa.array(hp)).take(pa.array(np.argsort(hp, kind="stable")))
    return out


PLACES = {
    "north pole": (0.0, 90.0),
    "south pole": (0.0, -90.0),
    "corner of seven cells (90, 41.81)": (90.0, float(np.degrees(np.arcsin(2 / 3)))),
    "corner of seven cells (0, -41.81)": (0.0, -float(np.degrees(np.arcsin(2 / 3)))),
    "RA 0 on the equator": (0.0, 0.0),
    "corner of four base cells (45, 0)": (45.0, 0.0),
}
"""Where a patch of the sky is put by `turned`."""


def put(tables: Mapping[str, pa.Table], ra: float, dec: float) -> dict[str, pa.Table]:
    """The same sky, turned so that its middle lies at ra, dec."""
    xyz = [sky.unit_vectors(t["ra"].to_numpy(), t["dec"].to_numpy()).sum(axis=1) for t in tables.values()]
    centre = np.sum(xyz, axis=0)
    centre = centre / np.linalg.norm(centre)
    there = sky.unit_vectors(np.array([ra]), np.array([dec]))[:, 0]
    return turned(tables, np.cross(centre, there), float(sky.angle(centre, there)))


def by_cells(tables: Mapping[str, pa.Table], ranks: Mapping[str, int], seed: int) -> Groups:
    """What `match_cell` gives over all cells, taken in a random order."""
    fast = {n: t.filter(pa.array(is_fast(t))) for n, t in tables.items()}
    slow = {n: t.filter(pa.array(~is_fast(t))).sort_by("healpix29") for n, t in tables.items()}
    fine = {n: sky.cells(t["healpix29"].to_numpy(), sky.FINE_ORDER) for n, t in slow.items()}
    rng = np.random.default_rng(seed)

    def load(wanted: I64) -> dict[str, pa.Table]:
        out = {}
        for n, table in slow.items():
            low, high = (np.searchsorted(fine[n], wanted, side) for side in ("left", "right"))
            rows = [np.arange(i, j) for i, j in zip(low, high, strict=True) if j > i]
            out[n] = table.take(pa.array(rng.permutation(np.concatenate([*rows, np.zeros(0, np.int64)]))))
        return out

    of = np.unique(np.concatenate([sky.cells(t["healpix29"].to_numpy(), WORK_ORDER) for t in tables.values()]))
    policy = Policy(densities={n: densities(t["healpix29"].to_numpy()) for n, t in tables.items()})
    parts = [match_cell(int(cell), load, fast, ranks, RADIUS_ARCSEC, policy=policy) for cell in rng.permutation(of)]
    return Groups(*(pa.concat_tables([getattr(p, n) for p in parts]) for n in ("members", "pairs")))


def all_radii(ranks: Mapping[str, int]) -> dict[tuple[str, str], float]:
    """The one radius for all pairs of surveys, the lower rank first."""
    return {(a, b): RADIUS_ARCSEC for a in ranks for b in ranks if ranks[a] < ranks[b]}


def compare(m: Matched) -> Iterator[tuple[str, dict[str, int]]]:
    """How the whole sky's pairs and groups differ from brute force, and from themselves in another order."""
    sources = match_oracle.sources(m.slim, m.ranks)
    truth = match_oracle.brute_force(sources, all_radii(m.ranks))
    cells = as_groups(m)
    yield "all cells of the pile, and brute force", match_oracle.differences(sources, truth, cells.members, cells.pairs)
    whole = group(m.slim, m.ranks, RADIUS_ARCSEC)
    yield "the whole sky at once, and brute force", match_oracle.differences(sources, truth, whole.members, whole.pairs)
    yield "the whole sky at once, and all cells of the pile", unlike(whole, cells)
    for seed in (1, 2):
        shuffled = permuted(m.slim, seed)
        yield f"rows and surveys in another order ({seed})", unlike(whole, group(shuffled, m.ranks, RADIUS_ARCSEC))
    yield "rows, surveys and cells in another order", unlike(whole, by_cells(permuted(m.slim, 3), m.ranks, 3))
    for place, (ra, dec) in PLACES.items():
        moved = put(one_patch(m.slim), ra, dec)
        sources = match_oracle.sources(moved, m.ranks)
        truth = match_oracle.brute_force(sources, all_radii(m.ranks))
        cells = by_cells(moved, m.ranks, 4)
        found = match_oracle.differences(sources, truth, cells.members, cells.pairs)
        yield f"a patch turned to: {place}; all cells, and brute force", found
        yield f"a patch turned to: {place}; at once, and all cells", unlike(group(moved, m.ranks, RADIUS_ARCSEC), cells)


def one_patch(tables: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """The sources within 1.5 degrees of the first source that all surveys of the sky have near them."""
    first = next(iter(tables.values()))
    ra, dec = first["ra"][0].as_py(), first["dec"][0].as_py()
    for k in range(0, first.num_rows, max(first.num_rows // 50, 1)):
        ra, dec = first["ra"][k].as_py(), first["dec"][k].as_py()
        out = {n: t.filter(pa.array(_within(t, ra, dec, 1.5))) for n, t in tables.items()}
        if all(t.num_rows for t in out.values()):
            return out
    raise ValueError("no patch of this sky is seen by all surveys")


def _within(table: pa.Table, ra: float, dec: float, degrees: float) -> Bools:
    here = sky.unit_vectors(table["ra"].to_numpy(), table["dec"].to_numpy())
    there = sky.unit_vectors(np.array([ra]), np.array([dec]))
    return np.asarray(sky.angle(here, there) < np.radians(degrees))


# --- the page ---------------------------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["", f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(r)} |" for r in rows), ""]


SCORE_HEAD = ["true things", "pure", "share", "at least", "complete", "share", "at least"]


def score_table(scores: Mapping[str, tuple[Score, Score]], brief: bool) -> list[str]:
    """Brief: without kinds, magnitudes and densities."""
    parts = ("galaxies", "stars", "quasars", "r", "neighbours")
    kept = {k: v for k, v in scores.items() if v[1].n and not (brief and k.partition(", ")[2].split(" ")[0] in parts)}
    return table(SCORE_HEAD, [[name, str(pure), str(whole)] for name, (pure, whole) in kept.items()])


@dataclass
class Page:
    """Lines of the page on one sky, its summary, and what misses the mark."""

    lines: list[str]
    summary: list[list[str]]
    missed: list[str]
    noted: list[str]
    "what of the other classes that are shown lies below the mark"
    small: list[str]
    "what cannot reach the mark, whatever the matching does, and is not faultless"
    n_small: int = 0
    "what cannot reach it, and is faultless"


def report_sky(
    sky_root: Path, m: Matched, marks: tuple[str, ...], others: tuple[str, ...] = (), brief: bool = False
) -> Page:
    """The scores of a sky; the lower bounds of the classes `marks` are to reach the mark, `others` are shown too."""
    truth = read_truth(sky_root, m.slim)
    page = Page([], [], [], [], [])

    def show(title: str, scores: Mapping[str, tuple[Score, Score]], brief: bool, beyond: int = 0) -> None:
        """`beyond`: isolated things that no two positions alone can join."""
        page.lines.extend([f"### {title}", *score_table(scores, brief)])
        for mark in (*marks, *others):
            page.summary.append([title, mark, *(str(s) for s in scores[mark])])
            for what, s in zip(("purity", "completeness"), scores[mark], strict=True):
                page.n_small += 0 < s.k == s.n < FEWEST
                if s.bound < WANTED and s.k < s.n:
                    line = f"{title}: {what} of {mark}: {s.k:,} of {s.n:,}, at least {s.bound:.5f}"
                    told = what == "completeness" and 0 < beyond == s.n - s.k
                    line += f"; all {beyond:,} of them lie beyond the radius, and neither survey knows a motion" * told
                    wanted = mark in marks and not told
                    (page.small if s.n < FEWEST else page.missed if wanted else page.noted).append(line)

    rows = []
    for name, given in m.slim.items():
        lost = ", ".join(f"{label} {n:,}" for label, n in truth.unshown[name].items())
        rows.append([name, f"{given.num_rows:,}", f"{truth.trueless[name]:,}", lost])
    head = ["survey", "sources matched", "of no true thing", "rows of true things that are not matched"]
    page.lines += table(head, rows)
    for a, b in combinations(m.slim, 2):
        beyond = lost_edges(truth, m, a, b).beyond
        show(f"{a} and {b}: mutual nearest pairs", score(truth, a, b, edges_of(m.pairs, a, b)), brief, beyond)
        show(f"{a} and {b}: members of one object", score(truth, a, b, links_of(m.members, a, b)), brief)
    show("Whole objects", whole_objects(truth, m.members), brief)
    page.lines += ["### Isolated things whose sources are no mutual nearest pair", *unfound(truth, m)]
    page.lines += ["### Mutual nearest pairs of an isolated thing and another", *impure(truth, m)]
    page.lines += ["### Separations of candidates of one isolated thing (arcsec)", *separations(truth, m.pairs)]
    head = ["partners", "blended rows", "right", "the brightest", "wrong", "none"]
    head += ["partners left", "of them in the same blend group"]
    first = next(iter(m.slim))
    for other in list(m.slim)[1:]:
        page.lines += [f"### Blends of {first}: their {other} sources"]
        page.lines += table(head, blends(truth, first, other, m.members))
    return page


class Lost(NamedTuple):
    """Isolated things that two surveys hold and that are no edge of theirs, by why."""

    things: I64
    "uid"
    nearer: int
    "their two sources are candidates, and another is nearer"
    beyond: int
    "they lie beyond the radius, and neither survey knows the motion"
    known: int
    "they lie beyond the radius, and one survey knows the motion"


def lost_edges(truth: Truth, m: Matched, a: str, b: str) -> Lost:
    """Why isolated things that both surveys hold are no edge."""
    uid, ka, kb = join(truth.shown[a], truth.shown[b])
    mine = truth.classes["isolated"][uid]
    uid, ka, kb = uid[mine], ka[mine], kb[mine]
    lost = ~np.isin(uid, uid[is_in((ka, kb), edges_of(m.pairs, a, b))])
    ours = m.pairs.filter(pc.and_(pc.equal(m.pairs["survey_a"], a), pc.equal(m.pairs["survey_b"], b)))
    within = is_in((ka, kb), (ours["key_a"].to_numpy(), ours["key_b"].to_numpy()))[lost]
    knows = np.isin(ka, _movers(m.slim[a]))[lost] | np.isin(kb, _movers(m.slim[b]))[lost]
    here = uid[lost]
    counts = [np.unique(here[which]).size for which in (within, ~within & ~knows, ~within & knows)]
    return Lost(np.unique(here), *counts)


def unfound(truth: Truth, m: Matched) -> list[str]:
    """Table of `lost_edges`."""
    rows = []
    for a, b in combinations(m.slim, 2):
        lost = lost_edges(truth, m, a, b)
        speeds = truth.speed[lost.things]
        span = f"{speeds.min():.2f} to {speeds.max():.2f}" if speeds.size else ""
        counts = (lost.things.size, lost.nearer, lost.beyond, lost.known)
        rows.append([f"{a} and {b}", *(f"{n:,}" for n in counts), span])
    head = ["pair", "things", "candidates, another is nearer", "beyond the radius, neither knows the motion"]
    return table([*head, "beyond the radius, one knows the motion", "arcsec a year"], rows)


def _movers(slim: pa.Table) -> I64:
    """Keys of the sources whose motion is known."""
    return np.asarray(slim["key"].to_numpy()[slim["pmra"].is_valid().to_numpy()])


def impure(truth: Truth, m: Matched) -> list[str]:
    """Edges of two things, of which one is isolated: how far apart, and how fast each thing is."""
    rows = []
    for a, b in combinations(m.slim, 2):
        ka, kb = edges_of(m.pairs, a, b)
        _, true_a, true_b = join(truth.shown[a], truth.shown[b])
        things = [dict(zip(key.tolist(), uid.tolist(), strict=True)) for uid, key in (truth.shown[a], truth.shown[b])]
        wrong = np.flatnonzero(~is_in((ka, kb), (true_a, true_b)))
        for x, y in zip(ka[wrong].tolist(), kb[wrong].tolist(), strict=True):
            uids = things[0].get(x, 0), things[1].get(y, 0)
            if not any(truth.classes["isolated"][u] for u in uids):
                continue
            of = pc.and_(pc.equal(m.pairs["key_a"], x), pc.equal(m.pairs["key_b"], y))
            separation = m.pairs.filter(pc.and_(of, pc.equal(m.pairs["survey_a"], a)))["separation_uas"][0].as_py()
            about = [f"{kind_of(truth, u)}, {truth.speed[u]:.2f} arcsec a year" if u else "nothing true" for u in uids]
            rows.append([f"{a} and {b}", f"{x} and {y}", f"{separation / 1e6:.3f}", *about])
    return table(["pair", "keys", "arcsec apart", "the one", "the other"], rows) if rows else ["", "None.", ""]


def kind_of(truth: Truth, uid: int) -> str:
    """A word on the thing."""
    for kind in ("galaxies", "stars", "quasars"):
        if truth.classes[f"isolated, {kind}"][uid]:
            return f"isolated, of the {kind}"
    return "not isolated"


def separations(truth: Truth, pairs: pa.Table) -> list[str]:
    """How far apart the candidates are that show a common isolated thing."""
    rows = []
    for a, b in combinations(truth.shown, 2):
        uid, ka, kb = join(truth.shown[a], truth.shown[b])
        mine = truth.classes["isolated"][uid]
        ours = pairs.filter(pc.and_(pc.equal(pairs["survey_a"], a), pc.equal(pairs["survey_b"], b)))
        true = is_in((ours["key_a"].to_numpy(), ours["key_b"].to_numpy()), (ka[mine], kb[mine]))
        s = ours["separation_uas"].to_numpy()[true] / 1e6
        values = [*np.quantile(s, [0.5, 0.9, 0.99, 0.999]), s.max()] if s.size else []
        rows.append([f"{a} and {b}", f"{s.size:,}", *(f"{v:.4f}" for v in values)])
    return table(["pair", "candidates", "median", "90 %", "99 %", "99.9 %", "largest"], rows)


def fast_tier() -> Tier:
    """The catalogue's patches with fewer bricks and many fast stars, from 0.5 to 10.3 arcsec/yr as in the solar
    neighbourhood: numbers fall with the cube of the motion."""
    tier = TIERS["catalogue"]
    n = 6000
    motions = np.random.default_rng(5).permutation(np.minimum(0.5 * (1 - np.arange(n) / n) ** (-1 / 3), 10.3))
    patches = tuple(replace(p, nx=2, ny=2, stars=1.0, desi="all") for p in tier.patches)
    return replace(tier, name="fast", patches=patches, fast_stars=tuple(motions.tolist()))


PAGE = """# The matching, scored against truth

Made by `python benchmarks/match_truth.py --write docs/match_truth.md`. **These are scores on the mock sky**: they show
that the matching does what its contract says on a sky with the surveys' own epochs, errors, motions, blends and dirt as
far as the mock has them; they are no measurement of the real surveys.

* *Truth of a pair*: two surveys' sources that show a common true thing (`docs/truth.md`). Only sources that the
  matching was given count: valid rows, without those that cuts drop (positions of NaN, rows of type DUP, sky and stuck
  fibres, bad fibres) and the lesser spectra of a target that was observed twice (in DESI's line of the first table:
  clean, masked pixels, zwarn). A star that two bricks list (`duplicate`) is found where either of its rows is linked.
* *Isolated*: `blend_group` is 0, and no other true thing of any brightness, seen or not, lies within 3 arcsec in 2016,
  or at any time from 2010 to 2023 for what moves by 0.05 arcsec a year or more. Fast stars are among them.
* *Pure*: links whose two rows show a common true thing. A wrong link counts in every class that either row shows.
  *Complete*: things given to both surveys of which some rows are linked.
* *At least*: one-sided 95 % lower bound (Clopper and Pearson 1934). Of n without a miss it is 0.05^(1/n), so that a
  class of fewer than 2,995 cannot reach 0.999, whatever the matching does.
* *Neighbours*: other true things of any brightness within 30 arcsec, in thirds of the isolated things of the whole sky.
* *Mutual nearest pairs* are the edges of contract 4; *members of one object* are what is left of them after grouping,
  and what came together through a third survey.
* In *whole objects* an object is pure where all its members show a common thing; a thing is complete where one object
  holds a row of it from every survey that was given one. Objects of one member and things given to one survey are
  left out.
* *Blends*: rows of the Legacy Survey that show several galaxies, by how many other sources show one of these. An object
  has one source a survey at most, so all others are left; they stay objects of their own, with the same `blend_group`
  where they are candidates. `None` is linked where the partners lie beyond the radius from the blend's centre, or
  another source is nearer.
* *Differences from brute force*: pairs, separations, edges, conflicts, objects, blend groups and their counts against
  `benchmarks/match_oracle.py`, which shares no code with the pipeline, and against the same sources in other orders of
  rows, surveys and cells, and turned rigidly onto poles, RA 0 and corners of HEALPix cells.

What is missed outside the isolated class is ambiguous: two things lie nearer to each other than positions are good for
(stars 0.01 to 0.05 arcsec apart in the dense patch), or a blend has several partners of one survey. The impure mutual
nearest pairs of Gaia and DESI are of two things within 1 arcsec, of which Gaia holds one and DESI the other; where the
Legacy Survey holds both, grouping takes nearly all of them apart.

**Stars that move, where neither survey knows it.** HSC and SDSS give no motion, and looked up to 17 years apart: a
star of 0.06 arcsec a year or more has left the radius, and the two are no edge (56 of 10,971 isolated things of the
`catalogue` tier, all of 0.05 to 0.5 arcsec a year; of isolated galaxies and quasars none is missed). Where the object
has a member that knows its motion, that one carries them (contract 4), and they are members of one object: on that
tier no isolated thing is missed then.

**What misses the mark, and why.** Of the edges of whole classes two: HSC and SDSS, and on the sky of fast stars the
Legacy Survey and HSC. Every isolated thing that is no edge, on both skies, in these pairs and in others, is of this
kind: its two sources lie beyond the radius, and neither knows the motion (tables *Isolated things whose sources are no
mutual nearest pair*). Two positions alone cannot tell such a star from two; as members of one object both pairs reach
the mark. The impure edges of isolated things are each listed (*Mutual nearest pairs of an isolated thing and
another*). All are with SDSS, and of a star of 0.5 arcsec a year or more. From the truth's motions: in six (four of
Gaia, one of DESI, one of HSC) the star was within 0.9 arcsec of the other thing between 1998 and 2009, when SDSS looked
(isolation is judged from 2010 on); in the other two HSC's star stands where SDSS saw another one 12 and 13.5 years
before.

The mock's positions are good to 0.01 to 0.1 arcsec, far below the radius of 1 arcsec (the tables of separations): the
scores are about epochs, motions, neighbours and cell borders, not about the choice of the radius. Whether posteriors
are what they say: [match_reliability.md](match_reliability.md). Times are of a machine that did other work besides.

**Ids** (measured once on the `catalogue` tier, by grouping its slim tables with and without their columns
`link.OTHER`). 312,992 rows of the Legacy Survey name a Gaia source; all lie within the radius of it, and 311,359 are
of its object. The other 1,633 are one of two rows of a star at the border of bricks, of which the nearer has it
(`shared`). Without ids three stars fewer, of those with another thing within 3 arcsec, are in one object in both
surveys (368,042 of 368,045 things; with ids all), and three objects fewer are whole; no score of any class or pair of
surveys is worse with ids than without. Two objects join rows of the two surveys wrongly, with ids and without. DESI's
targets bear numbers of DR9 here and the images are DR10's, as in the archives, so that all 88,499 of their ids say
nothing: joins by TARGETID are tested, and not scored.

**Marks**: purity and completeness of isolated things, fast stars among them, of at least 0.999 by their lower bounds,
where there are enough of them to tell (2,995). On the second sky of fast stars alone too where their motion is known;
without that condition they are shown beside. Edges that are missed for one reason alone, that their sources lie beyond
the radius and neither survey knows the motion, are no fault of the matching and are shown beside too; as members of one
object the same things have to reach the mark.
"""

FAST_SKY = """## A sky of fast stars

The catalogue's patches with fewer bricks and 6,000 stars from 0.5 to 10.3 arcsec/yr, in numbers that fall with the cube
of the motion. *Motion known*: to all surveys that hold the star but one at most. Where two surveys hold a star at
different epochs and neither knows its motion (Gaia with two parameters, the Legacy Survey without a reference) nothing
says that they are one: these are the misses among `isolated, from 0.5 arcsec/yr`. Of so few (1,941 at most) none
could reach 0.999 by its lower bound. Where DESI knows the motion, both pairs with DESI are found, and DESI's source
carries the two into one object.
"""


def peak_gigabytes(since_now: bool = False) -> float:
    """The most memory that this process has held at once, as Linux counts it."""
    if since_now:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1e6


def report_tier(
    tier: str, sky_root: Path, pile_root: Path, marks: tuple[str, ...], others: tuple[str, ...] = ()
) -> Page:
    """Build a tier's mock and pile, score it, and hold it against brute force."""
    mock.build(tier, sky_root)
    peak_gigabytes(since_now=True)
    start = time.perf_counter()
    m = build(sky_root, pile_root)
    seconds, peak = time.perf_counter() - start, peak_gigabytes()
    n = sum(t.num_rows for t in m.slim.values())
    n_objects = len(np.unique(m.members["object_id"]))
    head = [f"\n{n:,} sources, {m.pairs.num_rows:,} candidate pairs, {n_objects:,} objects."]
    if m.seconds:
        head[0] += (
            f" The whole of `skycairn build` (`payload.keep` none), one process on one core: {seconds:.0f} s, "
            f"{n / seconds:,.0f} sources/s, {peak:.1f} GB at most."
        )
        steps = [[step, f"{s:.1f}", f"{n / s:,.0f}"] for step, s in m.seconds.items() if s >= 0.05]
        head += table(["step", "seconds", "sources a second"], steps)
    page = report_sky(sky_root, m, marks, others, brief=tier != "catalogue")
    rows = []
    for what, found in compare(m):
        rows.append([what, ", ".join(f"{k} {v}" for k, v in found.items() if v) or "none"])
        print(*rows[-1], sep=": ", file=sys.stderr, flush=True)
        if any(found.values()):
            page.missed.append(f"{what}: {rows[-1][1]}")
    page.lines[:0] = head
    page.lines += ["### Differences from brute force", *table(["compared", "differences"], rows)]
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("sky", "pile", "fast-sky"):
        parser.add_argument(f"--{name}", type=Path, help="folder; a temporary one where not given")
    parser.add_argument("--write", type=Path, help="write the page here too")
    args = parser.parse_args()
    TIERS["fast"] = fast_tier()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        wide = report_tier("catalogue", args.sky or root / "sky", args.pile or root / "pile", ("isolated",))
        fast = report_tier("fast", args.fast_sky or root / "fast", root / "fast-pile", ("isolated", KNOWN), (FAST,))
    missed = wide.missed + fast.missed
    verdict = "".join(f"* {line}\n" for line in missed) or "Nothing misses its mark, nothing differs.\n"
    if noted := wide.noted + fast.noted:
        why = "*What misses the mark* and *A sky of fast stars*"
        verdict += f"\nNo mark, and below {WANTED} by the lower bound (why: {why}):\n\n"
        verdict += "".join(f"* {line}\n" for line in noted)
    verdict += (
        f"\nToo few to reach {WANTED} (fewer than {FEWEST:,}): {wide.n_small + fast.n_small} without a fault, and\n\n"
    )
    verdict += "".join(f"* {line}\n" for line in wide.small + fast.small)
    summary = table(
        ["sky", "what", *SCORE_HEAD],
        [[sky, *row] for sky, page in (("catalogue", wide), ("fast stars", fast)) for row in page.summary],
    )
    text = "\n".join([PAGE, verdict, *summary, "## The `catalogue` tier", *wide.lines, FAST_SKY, *fast.lines])
    print(text)
    if args.write:
        args.write.write_text(text)
    if missed:
        raise SystemExit("\n".join(["missed:", *missed]))


if __name__ == "__main__":
    main()
