"""What the Legacy Survey makes of the mock sky: its catalogue of sources, by column of DR10's sweeps.

Sources that Gaia holds carry Gaia's position at REF_EPOCH; all others were measured at the mean epoch of their brick's
exposures. RA_IVAR is that of the coordinate, without a factor cos(Dec). Fluxes are the true ones plus noise of the
variance that FLUX_IVAR says. Files: `legacywriter`; images: `coadd`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skycairn.mocksky import dirt, morphology, sed
from skycairn.mocksky.exposures import Exposures, expose, star_blemishes
from skycairn.mocksky.morphology import BANDS
from skycairn.mocksky.patches import Brick, Tier
from skycairn.mocksky.streams import stream
from skycairn.mocksky.truth import moved, offset, unit

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Rows = Mapping[str, NDArray[Any]]

WISE_DEPTH_MAG = {"w1": 21.0, "w2": 20.3, "w3": 16.5, "w4": 14.5}
RELEASE, FIXED_RELEASE = 10000, 10002
REFERENCE_G_LIMIT = 20.3
"""Fainter Gaia sources are not taken over."""
GAIA_DR2_FRACTION = 0.05
DETECTION = 6.0
"""Signal to noise that a source needs in one band at least."""
FAST_MAS = 499.9
EDGE_ARCSEC = 1.5
"""Gaia stars as near as this to another brick are listed by both."""

TRUTH = pa.schema(
    [
        ("uid", pa.int64()),
        ("key", pa.int64()),
        ("dirt", pa.string()),
        ("observed", pa.bool_()),
        ("why_not", pa.string()),
    ]
)


class Catalogue(NamedTuple):
    """The survey's rows, and which true things are in each of them."""

    values: dict[str, NDArray[Any]]
    "by column of legacytables.SWEEP"
    dirt: list[set[str]]
    box: list[str]
    "which sweep file each row lies in"
    row: I64
    uid: I64
    "row[k] shows the true thing uid[k]"
    missed: dict[int, str]
    "uid to why not"


def key(release: NDArray[Any], brickid: NDArray[Any], objid: NDArray[Any]) -> I64:
    """RELEASE, BRICKID, OBJID in one int64, as in docs/contracts.md."""
    return (release.astype(np.int64) << 42) | (brickid.astype(np.int64) << 22) | objid.astype(np.int64)


def sweep_box(ra: float, dec: float) -> str:
    """Name of the 5 by 5 degree box of a position: `355m005-360p000`."""
    a, d = int(ra // 5) * 5, int(np.floor(dec / 5)) * 5
    sign = ["m" if v < 0 else "p" for v in (d, d + 5)]
    return f"{a:03d}{sign[0]}{abs(d):03d}-{a + 5:03d}{sign[1]}{abs(d + 5):03d}"


def exposures(tier: Tier, rows: Rows, seed: int) -> list[Exposures]:
    """How each brick was observed, with the blemishes that its bright stars and the dirt leave."""
    spoiled = dirt.files(tier)
    out = []
    stars = np.flatnonzero(rows["kind"] != "galaxy")
    for brick in tier.bricks:
        bare = expose(brick, seed, ("i",) if brick.name == spoiled.missing_i else ())
        mine = stars[(rows["patch"][stars] == brick.patch) & (rows["gaia_g"][stars] < 16)]
        ra, dec = (rows[k][mine] for k in ("ra", "dec"))
        ra, dec = moved(ra, dec, rows["pmra"][mine], rows["pmdec"][mine], bare.epoch - 2016.0)
        x, y = brick.wcs.wcs_world2pix(ra, dec, 0)
        near = (np.abs(x - brick.width / 2) < brick.width * 0.7) & (np.abs(y - brick.width / 2) < brick.width * 0.7)
        flux = {b: rows[f"flux_{b}"][mine][near] for b in BANDS}
        marks = star_blemishes(x[near], y[near], rows["gaia_g"][mine][near], flux, bare.fwhm)
        if tier.pixels:
            marks += dirt.pixels(brick, seed)
        else:
            marks = [m for m in marks if not m.dead]
        out.append(Exposures(brick, bare.epoch, bare.fwhm, bare.number, bare.gap, tuple(marks)))
    return out


# ---------------------------------------------------------------------------------------------------- detection


def observe(tier: Tier, rows: Rows, looks: list[Exposures], seed: int) -> Catalogue:
    """The catalogue of the whole tier. `rows` hold, beside the truth table, `gaia_source_id`: 0 where Gaia has none."""
    missed: dict[int, str] = {}
    parts: list[tuple[dict[str, NDArray[Any]], list[set[str]], list[I64]]] = []
    owner = tier.brick_index(rows["ra"], rows["dec"], rows["patch"])
    _follow_blends(owner, rows["blend_group"])
    for u in rows["uid"][owner < 0]:
        missed[int(u)] = "outside footprint"
    order = np.argsort(owner, kind="stable")
    for k, look in enumerate(looks):
        mine = order[np.searchsorted(owner[order], k) : np.searchsorted(owner[order], k, "right")]
        parts.append(_brick(tier, rows, np.sort(mine), look, seed, missed))
    names = list(parts[0][0])
    values = {name: np.concatenate([p[0][name] for p in parts]) for name in names}
    labels = [d for p in parts for d in p[1]]
    members = [m for p in parts for m in p[2]]
    values, labels, members = _spoil(tier, rows, looks, values, labels, members, seed)
    box = [sweep_box(a, d) for a, d in zip(values["_ra"], values["_dec"], strict=True)]
    row = np.repeat(np.arange(len(members)), [len(m) for m in members])
    return Catalogue(values, labels, box, row, np.concatenate(members), missed)


def _follow_blends(owner: I64, group: I64) -> None:
    """Give all members of a blend the brick of its first."""
    blended = np.flatnonzero(group)
    first: dict[int, int] = {}
    for i in blended:
        owner[i] = first.setdefault(int(group[i]), int(owner[i]))


def _brick(
    tier: Tier, rows: Rows, mine: I64, look: Exposures, seed: int, missed: dict[int, str]
) -> tuple[dict[str, NDArray[Any]], list[set[str]], list[I64]]:
    """Rows, labels and members of one brick's detections, before the dirt of rows."""
    brick = look.brick
    rng = stream(seed, "legacysurvey", brick.brickid, "catalogue")
    blend = np.where(rows["blend_group"][mine] > 0, rows["blend_group"][mine], rows["uid"][mine])
    _, thing = np.unique(blend, return_inverse=True)
    n = int(thing.max()) + 1 if len(mine) else 0
    # the brightest of a blend gives it kind and shape
    by_light = np.lexsort((-rows["flux_r"][mine], thing))
    lead = mine[by_light[np.searchsorted(thing[by_light], np.arange(n))]]
    size = np.bincount(thing, minlength=n)
    flux = {b: np.bincount(thing, rows[f"flux_{b}"][mine], n) for b in sed.EXTINCTION}
    t: dict[str, NDArray[Any]] = {k: rows[k][lead] for k in rows}
    radius = np.where(t["kind"] == "galaxy", morphology.half_light_radius(t), 0.0)

    # who has Gaia's position
    draw = rng.random(n)
    reference = (t["gaia_source_id"] > 0) & (t["kind"] != "galaxy") & (t["gaia_g"] < REFERENCE_G_LIMIT)
    fast = np.hypot(t["pmra"], t["pmdec"]) >= FAST_MAS
    reference &= ~(fast & (t["uid"] % 2 == 0))
    dr2 = reference & ~fast & (draw < GAIA_DR2_FRACTION)
    epoch = np.where(reference, np.where(dr2, 2015.5, 2016.0), look.epoch)
    ra, dec = moved(t["ra"], t["dec"], t["pmra"], t["pmdec"], epoch - 2016.0)
    blended = size > 1
    if blended.any():
        weight = rows["flux_r"][mine]
        centre = np.stack(
            [np.bincount(thing, weight * v, n) for v in unit(rows["ra"][mine], rows["dec"][mine]).T], axis=1
        )
        centre = centre / np.linalg.norm(centre, axis=1, keepdims=True)
        ra = np.where(blended, np.degrees(np.arctan2(centre[:, 1], centre[:, 0])) % 360, ra)
        dec = np.where(blended, np.degrees(np.arcsin(centre[:, 2])), dec)
        spread = 3600 * np.degrees(np.linalg.norm(unit(rows["ra"][mine], rows["dec"][mine]) - centre[thing], axis=1))
        radius = np.hypot(radius, np.sqrt(np.bincount(thing, weight * spread**2, n) / np.bincount(thing, weight, n)))

    # noise of position and flux
    x, y = brick.wcs.wcs_world2pix(ra, dec, 0)
    # a star's own saturated core does not keep it from being measured
    at = np.rint(x), np.rint(y)
    count = {b: np.where(reference, look.exposed(b, *at), look.count(b, *at)) for b in BANDS}
    invvar = {b: look.depth(b, count[b], radius) for b in BANDS}
    signal = np.sqrt(sum(flux[b] ** 2 * invvar[b] for b in BANDS))
    best = np.max([flux[b] * np.sqrt(invvar[b]) for b in BANDS], axis=0)
    seen = (best > DETECTION) | reference
    centroid = np.hypot(1.2 / 2.355, radius) / np.maximum(signal, DETECTION) + 0.005
    sigma = np.where(reference, gaia_error_mas(t["gaia_g"]) / 1000, centroid)
    east, north = sigma * rng.standard_normal((2, n))
    ra, dec = offset(ra, dec, east, north)
    v: dict[str, NDArray[Any]] = {"_ra": ra, "_dec": dec, "RA": ra, "DEC": dec}
    v["RA_IVAR"] = (np.cos(np.radians(dec)) * 3600 / sigma) ** 2
    v["DEC_IVAR"] = (3600 / sigma) ** 2
    wise = {b: 25 / 10 ** (0.8 * (22.5 - m)) for b, m in WISE_DEPTH_MAG.items()}
    for b in (*BANDS, *wise):
        iv = invvar[b] if b in invvar else np.full(n, wise[b])
        noise = rng.standard_normal(n) / np.sqrt(np.where(iv > 0, iv, np.inf))
        v[f"FLUX_{b.upper()}"] = np.where(iv > 0, flux[b] + noise, 0.0)
        v[f"FLUX_IVAR_{b.upper()}"] = iv
        v[f"MW_TRANSMISSION_{b.upper()}"] = 10 ** (-0.4 * sed.EXTINCTION[b] * t["ebv"].astype(np.float64))
        v[f"RCHISQ_{b.upper()}"] = np.where(iv > 0, np.maximum(0.2, 1 + 0.05 * rng.standard_normal(n)), 0.0)
        v[f"FRACFLUX_{b.upper()}"] = np.where(blended, 0.1, 0.01) * rng.random(n)
        v[f"NOBS_{b.upper()}"] = count[b] if b in count else np.full(n, 120)
    bits = look.maskbits(*at)
    for b in BANDS:
        up = b.upper()
        dead = (count[b] == 0) & (look.number[b] > 0)
        v[f"FRACMASKED_{up}"] = np.where(count[b] == 0, 1.0, 0.0)
        v[f"FRACIN_{up}"] = np.where(count[b] == 0, 0.0, 1.0)
        v[f"ANYMASK_{up}"] = v[f"ALLMASK_{up}"] = np.where(dead, 1, 0)
        v[f"PSFSIZE_{up}"] = np.where(count[b] > 0, look.fwhm[b], 0.0)
        v[f"PSFDEPTH_{up}"] = look.depth(b, count[b])
        v[f"GALDEPTH_{up}"] = look.depth(b, count[b], 0.45)
        near = 1 - 0.5 ** (0.75**2 / (0.25 + radius**2))  # 1.5 arcsec fibre, 1 arcsec seeing, to ten percent
        v[f"FIBERFLUX_{up}"] = v[f"FIBERTOTFLUX_{up}"] = v[f"FLUX_{up}"] * near
    for b in ("w1", "w2"):
        v[f"PSFDEPTH_{b.upper()}"] = np.full(n, wise[b])

    # type and shape
    types = morphology.catalogue_type(t, signal)
    types = np.where(blended & (types == "PSF"), "REX", types)
    extended = types != "PSF"
    v["TYPE"] = types.astype("S3")
    wobble = 0.5 / np.maximum(signal, 1)
    v["SHAPE_R"] = np.where(extended, np.maximum(radius * (1 + wobble * rng.standard_normal(n)), 0.05), 0.0)
    v["SHAPE_R_IVAR"] = np.where(extended, 1 / (wobble * np.maximum(radius, 0.05)) ** 2, 0.0)
    pointed = extended & (types != "REX")
    for name, e in zip(
        ("E1", "E2"), morphology.ellipticity(morphology.axis_ratio(t), t["position_angle"]), strict=True
    ):
        v[f"SHAPE_{name}"] = np.where(pointed, np.clip(e + wobble * rng.standard_normal(n), -0.95, 0.95), 0.0)
        v[f"SHAPE_{name}_IVAR"] = np.where(pointed, wobble**-2.0, 0.0)
    v["SERSIC"] = morphology.sersic_index(t, types)
    v["SERSIC_IVAR"] = np.where(types == "SER", wobble**-2.0, 0.0)
    gain = np.where(extended, 1 + np.minimum(radius, 2), 1.0)
    v["DCHISQ"] = (signal**2)[:, None] * np.array([0.8, 0.9, 0.95, 0.95, 0.97]) * np.minimum(gain, 1.05)[:, None]
    v["EBV"] = t["ebv"]
    v["MASKBITS"] = bits
    v |= _gaia(t, reference, dr2, rng)
    v["FITBITS"] = np.where(reference, (1 << 7) | (1 << 12), 0)
    v["RELEASE"] = np.full(n, FIXED_RELEASE if brick.patch % 5 == 3 else RELEASE)
    v["BRICKID"], v["BRICKNAME"] = np.full(n, brick.brickid), np.full(n, brick.name, dtype="S8")
    v["OBJID"] = np.arange(n)

    labels: list[set[str]] = [set() for _ in range(n)]
    spoiled = dirt.files(tier)
    dead_any = np.any([(count[b] == 0) & (look.number[b] > 0) for b in BANDS], axis=0)
    held = (t["gaia_source_id"] > 0) & (t["kind"] != "galaxy")
    flags = {
        "masked": bits != 0,
        "no_data": dead_any,
        "missing_i": np.full(n, brick.name == spoiled.missing_i),
        "file_absent": np.full(n, brick.name == spoiled.absent_z),
        "fast_star": fast,
        "no_reference": held & ~reference,
        "blend": blended,
    }
    for name, rows_of_flag in flags.items():
        for k in np.flatnonzero(rows_of_flag):
            labels[k].add(name)
    by_thing = np.argsort(thing, kind="stable")
    ends = np.searchsorted(thing[by_thing], np.arange(n + 1))
    members = [rows["uid"][mine[by_thing[ends[k] : ends[k + 1]]]] for k in range(n)]
    for k in np.flatnonzero(~seen):
        missed.update((int(u), "too faint") for u in members[k])
    keep = np.flatnonzero(seen)
    return {name: a[keep] for name, a in v.items()}, [labels[k] for k in keep], [members[k] for k in keep]


def gaia_error_mas(gaia_g: F64) -> F64:
    """Gaia DR3's typical error of a position, mas (Lindegren et al. 2021); parallax and motion are 1.3 times it."""
    return np.interp(gaia_g, [14, 15, 17, 18, 20, 21], [0.015, 0.02, 0.06, 0.1, 0.4, 1.2])


def _gaia(
    t: Rows, reference: NDArray[np.bool_], dr2: NDArray[np.bool_], rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """What is taken over from Gaia; zeros and blanks where nothing is."""
    n = len(reference)
    sigma = 1.3 * gaia_error_mas(t["gaia_g"])
    v: dict[str, NDArray[Any]] = {
        "REF_CAT": np.where(reference, np.where(dr2, "G2", "GE"), "  ").astype("S2"),
        # DR2's numbers are others than DR3's
        "REF_ID": np.where(reference, t["gaia_source_id"] + np.where(dr2, 1 << 31, 0), 0),
        "REF_EPOCH": np.where(reference, np.where(dr2, 2015.5, 2016.0), 0.0),
        "GAIA_ASTROMETRIC_PARAMS_SOLVED": np.where(reference, 31, 0),
        "GAIA_PHOT_BP_RP_EXCESS_FACTOR": np.where(reference, 1.2, 0.0),
        "GAIA_ASTROMETRIC_SIGMA5D_MAX": np.where(reference, 1.5 * sigma, 0.0),
    }
    for b in ("g", "bp", "rp"):
        v[f"GAIA_PHOT_{b.upper()}_MEAN_MAG"] = np.where(reference, t[f"gaia_{b}"], 0.0)
        v[f"GAIA_PHOT_{b.upper()}_MEAN_FLUX_OVER_ERROR"] = np.where(reference, 10 ** (0.2 * (25 - t[f"gaia_{b}"])), 0.0)
    for name in ("parallax", "pmra", "pmdec"):
        measured = t[name] + sigma * rng.standard_normal(n)
        v[name.upper()] = np.where(reference, measured, 0.0)
        v[f"{name.upper()}_IVAR"] = np.where(reference, sigma**-2.0, 0.0)
    return v


# ---------------------------------------------------------------------------------------------------- dirt of rows


def _spoil(
    tier: Tier,
    rows: Rows,
    looks: list[Exposures],
    v: dict[str, NDArray[Any]],
    labels: list[set[str]],
    members: list[I64],
    seed: int,
) -> tuple[dict[str, NDArray[Any]], list[set[str]], list[I64]]:
    """Put NaNs into rows, and add the rows that should not be there."""
    rng = stream(seed, "legacysurvey", 0, "rows")
    kind = np.array(["galaxy" if t != b"PSF" else "star" for t in v["TYPE"]])
    clean = np.array([not s for s in labels])
    spare = rng.permutation(np.flatnonzero(clean & (kind == "galaxy")))
    few = dirt.few(len(labels), 3000)
    for k in spare[:few]:
        v["FLUX_R"][k] = np.nan
        labels[k].add("nan_flux")
    v["RA"] = v["RA"].copy()
    for k in spare[few : 2 * few]:
        v["RA"][k] = np.nan
        labels[k].add("nan_ra")

    dr3 = np.flatnonzero(v["REF_CAT"] == b"GE")
    calm = dr3[[not labels[k] & {"fast_star"} for k in dr3]]
    dups = calm[rng.permutation(len(calm))[: dirt.few(len(calm), 400)]]
    edge, other = _at_edges(tier, v, calm)
    extra = np.concatenate([dups, edge])
    added = {name: a[extra].copy() for name, a in v.items()}
    first = slice(0, len(dups))
    added["_ra"][first], added["_dec"][first] = offset(
        added["_ra"][first], added["_dec"][first], rng.uniform(0.2, 0.6, len(dups)), rng.uniform(0.2, 0.6, len(dups))
    )
    added["TYPE"][first] = b"DUP"
    for name in added:
        if name.startswith(("FLUX_", "FIBERFLUX", "FIBERTOTFLUX")) and "_W" not in name:
            added[name][first] = 0.0
    for name, own in (("BRICKID", [b.brickid for b in other]), ("BRICKNAME", [b.name.encode() for b in other])):
        added[name][len(dups) :] = np.array(own, dtype=added[name].dtype)
    added["RA"], added["DEC"] = added["_ra"].copy(), added["_dec"].copy()
    top: dict[int, int] = {}
    for b, o in zip(v["BRICKID"], v["OBJID"], strict=True):
        top[int(b)] = max(top.get(int(b), -1), int(o))
    for k, b in enumerate(added["BRICKID"]):
        top[int(b)] = added["OBJID"][k] = top.get(int(b), -1) + 1
    new = [labels[k] | {"dup_type"} for k in dups] + [labels[k] | {"duplicate"} for k in edge]
    values = {name: np.concatenate([v[name], added[name]]) for name in v}
    return values, [*labels, *new], [*members, *[members[k] for k in extra]]


def _at_edges(tier: Tier, v: dict[str, NDArray[Any]], stars: I64) -> tuple[I64, list[Brick]]:
    """Gaia stars within `EDGE_ARCSEC` of a border with another brick, and that brick."""
    ra, dec, owner = v["_ra"][stars], v["_dec"][stars], v["BRICKID"][stars]
    other = np.full(len(stars), -1)
    wide = EDGE_ARCSEC / 3600 / np.cos(np.radians(dec))
    for k, brick in enumerate(tier.bricks):
        east = np.abs((ra - brick.ra + 180) % 360 - 180) < (brick.ra2 - brick.ra1) / 2 + wide
        north = np.abs(dec - brick.dec) < (brick.dec2 - brick.dec1) / 2 + EDGE_ARCSEC / 3600
        other[east & north & (owner != brick.brickid)] = k
    found = np.flatnonzero(other >= 0)
    return stars[found], [tier.bricks[k] for k in other[found]]


def truth_table(catalogue: Catalogue) -> pa.Table:
    """Which row shows which true thing, and what was done to it; then what the survey does not hold."""
    v = catalogue.values
    keys = key(v["RELEASE"], v["BRICKID"], v["OBJID"])
    labels = [",".join(sorted(d)) for d in catalogue.dirt]
    order = np.lexsort((keys[catalogue.row], catalogue.uid))
    row, uid = catalogue.row[order], catalogue.uid[order]
    missed = sorted(set(catalogue.missed) - set(uid.tolist()))
    return pa.table(
        {
            "uid": np.concatenate([uid, np.array(missed, dtype=np.int64)]),
            "key": pa.array([*keys[row].tolist(), *[None] * len(missed)], pa.int64()),
            "dirt": [*[labels[k] for k in row], *[""] * len(missed)],
            "observed": [True] * len(row) + [False] * len(missed),
            "why_not": [*[""] * len(row), *[catalogue.missed[u] for u in missed]],
        },
        schema=TRUTH,
    )
