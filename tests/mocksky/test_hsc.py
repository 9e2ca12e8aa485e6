"""HSC of the mock sky: as its own reader finds it, and as the truth says that it is."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from skycairn.archives.files import RootArchive
from skycairn.catalogs.hsc import Hsc
from skycairn.catalogs.hscfiles import SQL_LIST, calexp_path
from skycairn.catalogs.survey import first_failed
from skycairn.mocksky import hsc, hscimage
from skycairn.mocksky.build import build
from skycairn.mocksky.hscskymap import CUT_IN_TWO, OVERLAP_PIXELS, tracts
from skycairn.mocksky.patches import TIERS
from skycairn.mocksky.truth import moved

SIZE = 160


@pytest.fixture(scope="module")
def survey():
    return Hsc("pdr3-wide")


@pytest.fixture(scope="module")
def table(survey, tiny_sky):
    archive = RootArchive(tiny_sky / "hsc")
    files = survey.catalog_files(archive, range(12 * 4**6))
    return pa.concat_tables([survey.read(archive.local(f.path)) for f in files]).combine_chunks()


@pytest.fixture(scope="module")
def cut_outs(survey, table, tiny_sky):
    """Valid sources, and their cut-outs row for row."""
    archive = RootArchive(tiny_sky / "hsc")
    valid = table.filter(first_failed(survey.valid, table).is_null()).combine_chunks()
    reference = {r: archive.local(f.path) for r, f in survey.reference_files().items()}
    sources, found = [], []
    for group in survey.payload_groups(valid, "hsc.image", reference):
        there = {r: archive.local(f.path) for r, f in group.files.items() if archive.exists(f.path)}
        rows = valid.take(pa.array(group.rows)).combine_chunks()
        sources.append(rows)
        found.append(survey.extract("hsc.image", rows, there, frozenset()))
    return pa.concat_tables(sources).combine_chunks(), pa.concat_tables(found).combine_chunks()


def truth_of(tiny_sky, keys):
    """Rows of the truth of sources that show one true thing, by key; and the key's labels."""
    who = pq.read_table(tiny_sky / "truth" / "hsc.parquet").filter(pc.field("observed"))
    rows = {r["uid"]: r for r in pq.read_table(tiny_sky / "truth" / "sources.parquet").to_pylist()}
    of: dict[int, list[dict]] = {}
    for r in who.to_pylist():
        of.setdefault(r["key"], []).append({**rows[r["uid"]], "dirt": r["dirt"]})
    return [of[k][0] if len(of.get(k, ())) == 1 else None for k in keys]


def test_the_reader_finds_every_row_that_the_truth_knows(table, tiny_sky):
    who = pq.read_table(tiny_sky / "truth" / "hsc.parquet")
    seen = who.filter(pc.field("observed"))
    assert set(table["key"].to_pylist()) == set(seen["key"].to_pylist())
    assert len(set(table["key"].to_pylist())) == table.num_rows
    assert (1 << 63) - 2 in table["key"].to_pylist()
    every = set(pq.read_table(tiny_sky / "truth" / "sources.parquet")["uid"].to_pylist())
    assert set(who["uid"].to_pylist()) == every
    unseen = who.filter(pc.invert(pc.field("observed")))
    assert set(unseen["why_not"].to_pylist()) <= {"outside footprint", "too faint"}


def test_a_thing_is_primary_once(survey, table, tiny_sky):
    primary = table.filter(table["isprimary"])["key"].to_pylist()
    uids = [t["uid"] for t in truth_of(tiny_sky, primary) if t]
    assert len(uids) == len(set(uids)) > 40
    assert 0 < table.num_rows - len(primary) < table.num_rows / 2


def test_positions_are_where_motion_has_taken_them(table, tiny_sky):
    off = []
    for row, t in zip(table.to_pylist(), truth_of(tiny_sky, table["key"].to_pylist()), strict=True):
        if t is None or t["flux_i"] < 5:
            continue
        ra, dec = moved(*(np.array([t[c]]) for c in ("ra", "dec", "pmra", "pmdec")), hsc.EPOCH - 2016.0)
        east = ((row["ra"] - ra[0] + 180) % 360 - 180) * np.cos(np.radians(row["dec"])) * 3600
        off.append((east, (row["dec"] - dec[0]) * 3600))
    assert len(off) > 30 and np.abs(np.mean(off, axis=0)).max() < 0.02 and np.std(off) < 0.06


def pixels(payload, name, kind):
    flat = pc.list_flatten(payload[name]).to_numpy(zero_copy_only=False)
    return np.asarray(flat, dtype=kind).reshape(-1, 5, SIZE, SIZE)


def test_light_in_the_cut_outs_is_the_catalogues_and_where_it_says(cut_outs, tiny_sky):
    sources, payload = cut_outs
    here = np.flatnonzero(payload["status"].is_null().to_numpy())
    sources, payload = (t.take(pa.array(here)).combine_chunks() for t in cut_outs)
    flux, mask = pixels(payload, "flux", np.float64), pixels(payload, "mask", bool)
    ys, xs = np.mgrid[:SIZE, :SIZE]
    ratios, centres = [], []
    for i, t in enumerate(truth_of(tiny_sky, sources["key"].to_pylist())):
        if t is None or t["kind"] == "galaxy" or t["dirt"]:
            continue
        x, y = (SIZE // 2 + payload[c][i].as_py() for c in ("dx", "dy"))
        near = np.hypot(xs - x, ys - y) < 3.0 / 0.168
        for b, band in enumerate("griz"):
            wanted = sources[f"flux_{band}"][i].as_py()
            if not wanted or wanted < 8 or mask[i, b][near].any():
                continue
            alpha = hsc.SEEING_ARCSEC[band] / (2 * np.sqrt(2 ** (1 / 3) - 1))
            ratios.append(flux[i, b][near].sum() / (1 - (1 + (3.0 / alpha) ** 2) ** -2) / wanted)
            light = np.where(np.hypot(xs - x, ys - y) < 6, flux[i, b], 0)
            centres.append(((light * (xs - x)).sum() / light.sum(), (light * (ys - y)).sum() / light.sum()))
    assert len(ratios) > 10
    assert np.median(ratios) == pytest.approx(1, abs=0.01)
    # a position is off by 0.02 arcsec, 0.12 pixels
    assert np.abs(np.median(centres, axis=0)).max() < 0.12


def test_noise_is_as_ivar_says_and_masked_pixels_hold_nothing(cut_outs):
    payload = cut_outs[1].filter(cut_outs[1]["status"].is_null()).combine_chunks()
    flux, ivar, mask = (pixels(payload, n, np.float64) for n in ("flux", "ivar", "mask"))
    bad = mask > 0
    assert not flux[bad].any() and not ivar[bad].any() and (ivar[~bad] > 0).all() and np.isfinite(flux).all()
    for b, band in enumerate(hsc.BANDS):
        good = ~bad[:, b]
        assert np.median(ivar[:, b][good]) == pytest.approx(hsc.pixel_sigma(band) ** -2, rel=1e-3)
        pull = flux[:, b][good] * np.sqrt(ivar[:, b][good])
        low = np.percentile(pull, [16, 50])
        assert low[1] - low[0] == pytest.approx(1, abs=0.15)


def test_what_is_lost_is_said_and_what_was_never_taken_is_a_fact(cut_outs, tiny_sky):
    sources, payload = cut_outs
    labels = [t["dirt"] if t else "" for t in truth_of(tiny_sky, sources["key"].to_pylist())]
    status = payload["status"].to_pylist()
    lost = [s for s, d in zip(status, labels, strict=True) if "file absent" in d]
    assert lost and set(lost) == {"file_absent"}
    one_less = [i for i, d in enumerate(labels) if d == "no y"]
    assert one_less and all(status[i] is None for i in one_less)
    mask = np.asarray(pc.list_flatten(payload["mask"].take(pa.array(one_less))).to_numpy(zero_copy_only=False))
    middle = mask.reshape(-1, 5, SIZE, SIZE)[:, :, SIZE // 2, SIZE // 2]
    # the neighbours have y, and fill in what lies beyond the patch
    assert middle[:, 4].all() and not middle[:, 0].any()


def test_planes_and_zero_points_differ_between_files(tiny_sky):
    numbers, zero = set(), set()
    for path in (tiny_sky / "hsc/archive").rglob("calexp-*.fits"):
        with fits.open(path) as hdus:
            assert [h.name for h in hdus[1:]] == ["IMAGE", "MASK", "VARIANCE"]
            numbers.add(hdus["MASK"].header["MP_SAT"])
            zero.add("FLUXMAG0" in hdus[0].header)
    assert len(numbers) == 2 and zero == {True, False}


def test_the_list_of_tables_holds(tiny_sky):
    lines = (tiny_sky / "hsc" / SQL_LIST).read_text().splitlines()
    for line in lines:
        digest, name = line.split("  ")
        path = (tiny_sky / "hsc" / SQL_LIST).parent / name
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert lines


def test_patches_of_a_tract_share_pixels_and_two_tracts_share_sky():
    tier = TIERS["default"]
    every = tracts(tier)
    two = [p.number for p in tier.patches if CUT_IN_TWO in p.about]
    assert len(two) == 1 and sum(t.sky_patch == two[0] for t in every) == 2
    for t in every:
        for c in range(t.columns - 1):
            (x1, _), (x2, _) = t.first_pixel(c, 0), t.first_pixel(c + 1, 0)
            assert x1 + t.width - x2 == 2 * OVERLAP_PIXELS
        one, other = hscimage.local_wcs(t, 0, 0), hscimage.local_wcs(t, t.columns - 1, t.rows - 1)
        assert np.allclose(one.wcs.crval, other.wcs.crval)
        step = np.subtract(one.wcs.crpix, other.wcs.crpix)
        assert np.array_equal(step, np.round(step))
    a, b = (t for t in every if t.sky_patch == two[0])
    patch = tier.patches[two[0]]
    assert all(t.place(np.array([patch.ra]), np.array([patch.dec]))[0][0] >= 0 for t in (a, b))


def test_the_same_seed_gives_the_same_bytes(tiny_sky, tmp_path):
    again = tmp_path / "again"
    build("tiny", again, workers=1)
    for path in sorted((tiny_sky / "hsc").rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (again / "hsc" / path.relative_to(tiny_sky / "hsc")).read_bytes(), path
    assert calexp_path("g", 9000, 304).endswith("calexp-HSC-G-9000-3,4.fits")
