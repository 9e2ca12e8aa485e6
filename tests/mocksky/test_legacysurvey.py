import hashlib
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from skycairn.mocksky import coadd, dirt, legacysurvey, legacytables, legacywriter, truth
from skycairn.mocksky.exposures import SATUR
from skycairn.mocksky.patches import TIERS

TIER = replace(TIERS["default"], patches=TIERS["default"].patches[:3])
BANDS = ("G", "R", "I", "Z")


def with_gaia(rows):
    held = (rows["kind"] != "galaxy") & (rows["gaia_g"] < 20.7)
    return rows | {"gaia_source_id": np.where(held, rows["uid"] << 40, 0)}


@pytest.fixture(scope="module")
def sky():
    rows = with_gaia(truth.assemble(TIER, 1))
    looks = legacysurvey.exposures(TIER, rows, 1)
    return rows, looks, legacysurvey.observe(TIER, rows, looks, 1)


def matched(sky, wanted):
    """Catalogue rows that show one true thing and are clean, with the row of that thing."""
    rows, _, catalogue = sky
    shown = np.bincount(catalogue.row, minlength=len(catalogue.dirt)) == 1
    row = catalogue.row[shown[catalogue.row]]
    thing = catalogue.uid[shown[catalogue.row]] - 1
    good = [not catalogue.dirt[k] & {"nan_flux", "nan_ra", "dup_type", "duplicate", "no_data"} for k in row]
    good &= wanted(rows, thing)
    return row[good], thing[good]


def test_sweep_columns_are_those_of_the_data_model():
    names = [c.name for c in legacytables.SWEEP]
    assert len(names) == len(set(names)) == 130
    assert names[:8] == ["RELEASE", "BRICKID", "BRICKNAME", "OBJID", "TYPE", "RA", "DEC", "RA_IVAR"]
    assert names[-4:] == ["MASKBITS", "FITBITS", "SERSIC", "SERSIC_IVAR"]
    assert {c.name: c.type for c in legacytables.SWEEP}["MASKBITS"] == "i4"


def test_sweep_columns_have_the_types_of_a_real_sweep(real_data, sky, tmp_path):
    (path,) = legacywriter.write_sweeps(tmp_path, sky[2])[:1]
    with fits.open(path) as ours, fits.open(real_data / "legacysurvey/sweeps-dr8/sweep-310m005-320p000.fits") as theirs:
        mine = {c.name: c.format for c in ours[1].columns}
        real = {c.name: c.format for c in theirs[1].columns}
    changed_since = {"TYPE", "MASKBITS"}
    both = (set(mine) & set(real)) - changed_since
    assert len(both) > 70
    assert {n: mine[n] for n in both} == {n: real[n] for n in both}


def test_sweep_boxes():
    assert legacysurvey.sweep_box(359.97, -1.2) == "355m005-360p000"
    assert legacysurvey.sweep_box(0.01, 1.2) == "000p000-005p005"
    assert legacysurvey.sweep_box(65.0, -89.5) == "065m090-070m085"


def test_fluxes_scatter_as_their_inverse_variance_says(sky):
    rows, _, catalogue = sky
    row, thing = matched(sky, lambda r, i: np.ones(len(i), dtype=bool))
    for band in BANDS:
        flux, invvar = (catalogue.values[f"{k}_{band}"][row] for k in ("FLUX", "FLUX_IVAR"))
        seen = invvar > 0
        pull = (flux - rows[f"flux_{band.lower()}"][thing])[seen] * np.sqrt(invvar[seen])
        assert np.std(pull) == pytest.approx(1, abs=0.12) and abs(np.mean(pull)) < 0.2


def test_positions_scatter_as_their_inverse_variance_says_near_the_pole_too(sky):
    rows, _, catalogue = sky
    for patch in (0, 1):
        row, thing = matched(sky, lambda r, i, p=patch: (r["kind"][i] == "galaxy") & (r["patch"][i] == p))
        v = catalogue.values
        east = (v["RA"][row] - rows["ra"][thing] + 180) % 360 - 180
        pulls = [east * np.sqrt(v["RA_IVAR"][row]), (v["DEC"][row] - rows["dec"][thing]) * np.sqrt(v["DEC_IVAR"][row])]
        for pull in pulls:
            assert len(pull) > 40 and np.std(pull) == pytest.approx(1, abs=0.25)


def test_gaia_stars_are_at_gaias_epoch_and_others_at_their_exposures(sky):
    rows, looks, catalogue = sky
    v = catalogue.values
    row, thing = matched(sky, lambda r, i: np.hypot(r["pmra"], r["pmdec"])[i] > 400)
    assert len(row) >= 5
    epochs = {look.brick.brickid: look.epoch for look in looks}
    kinds = set()
    for k, i in zip(row, thing, strict=True):
        kinds.add(v["REF_CAT"][k])
        epoch = {b"GE": 2016.0, b"G2": 2015.5}.get(v["REF_CAT"][k]) or epochs[v["BRICKID"][k]]
        assert v["REF_EPOCH"][k] == (epoch if v["REF_CAT"][k] != b"  " else 0)
        ra, dec = truth.moved(*(rows[c][i : i + 1] for c in ("ra", "dec", "pmra", "pmdec")), epoch - 2016)
        away = np.hypot((v["RA"][k] - ra) * np.cos(np.radians(dec)), v["DEC"][k] - dec) * 3600
        assert away < 0.05
    assert {b"GE", b"  "} <= kinds


def test_rows_without_reference_hold_zeros_and_blanks(sky):
    v = sky[2].values
    none = v["REF_CAT"] == b"  "
    assert none.any()
    for name in ("REF_ID", "REF_EPOCH", "PMRA", "PMDEC", "PARALLAX", "PMRA_IVAR"):
        assert not v[name][none].any()
    assert (v["REF_ID"][~none] > 0).all() and (v["TYPE"][none & (v["SHAPE_R"] > 0)] != b"PSF").all()


def test_a_blend_is_one_row_with_all_the_light(sky):
    rows, _, catalogue = sky
    n = np.bincount(catalogue.row)
    many = np.flatnonzero(n > 1)
    part = (
        np.isin(rows["uid"], catalogue.uid[n[catalogue.row] > 1]).sum()
        / ((rows["kind"] == "galaxy") & (TIER.brick_index(rows["ra"], rows["dec"], rows["patch"]) >= 0)).sum()
    )
    assert 0.04 < part < 0.12
    for k in many:
        members = catalogue.uid[catalogue.row == k] - 1
        assert "blend" in catalogue.dirt[k] and len(set(rows["blend_group"][members])) == 1
        sigma = catalogue.values["FLUX_IVAR_Z"][k] ** -0.5 if catalogue.values["FLUX_IVAR_Z"][k] else np.inf
        total = rows["flux_z"][members].sum()
        assert not np.isfinite(sigma) or abs(catalogue.values["FLUX_Z"][k] - total) < 5 * sigma


def test_the_dirt_is_there_and_labelled(sky):
    _, _, catalogue = sky
    v = catalogue.values
    labels = {name for d in catalogue.dirt for name in d}
    assert labels >= {"masked", "missing_i", "duplicate", "dup_type", "nan_flux", "nan_ra", "fast_star", "blend"}

    def of(name):
        return np.array([name in d for d in catalogue.dirt])

    assert (np.isnan(v["FLUX_R"]) == of("nan_flux")).all() and (np.isnan(v["RA"]) == of("nan_ra")).all()
    assert ((v["MASKBITS"] != 0) == of("masked")).all()
    assert ((v["TYPE"] == b"DUP") == of("dup_type")).all() and not v["FLUX_G"][of("dup_type")].any()
    dark = of("missing_i")
    assert not v["NOBS_I"][dark].any() and not v["FLUX_IVAR_I"][dark].any() and v["NOBS_G"][dark].any()
    assert (v["BRICKNAME"][dark] == dirt.files(TIER).missing_i.encode()).all()
    keys = legacysurvey.key(v["RELEASE"], v["BRICKID"], v["OBJID"])
    assert len(set(keys)) == len(keys)
    for k in np.flatnonzero(of("duplicate")):
        twins = np.flatnonzero((v["REF_ID"] == v["REF_ID"][k]) & (v["TYPE"] == v["TYPE"][k]))
        assert len(twins) == 2 and len(set(v["BRICKID"][twins])) == 2


def test_truth_table_closes(sky):
    rows, _, catalogue = sky
    table = legacysurvey.truth_table(catalogue).to_pydict()
    assert set(table["uid"]) == set(rows["uid"].tolist())
    assert all(
        (k is None) == (not seen) == bool(why)
        for k, seen, why in zip(table["key"], table["observed"], table["why_not"], strict=True)
    )
    assert set(table["why_not"]) <= {"", "outside footprint", "too faint"}
    v = catalogue.values
    assert {k for k in table["key"] if k is not None} == set(
        legacysurvey.key(v["RELEASE"], v["BRICKID"], v["OBJID"]).tolist()
    )


@pytest.fixture(scope="module")
def brick(tmp_path_factory):
    """One painted brick of the tiny tier: its truth, its look, its folder."""
    tier = TIERS["tiny"]
    rows = with_gaia(truth.assemble(tier, 3))
    look = legacysurvey.exposures(tier, rows, 3)[0]
    root = tmp_path_factory.mktemp("legacysurvey")
    task = coadd.Task(root, root / "masks", look, coadd.around(rows, look), 3, False)
    coadd.write_brick(task)
    return task, root / "south" / "coadd" / look.brick.name[:3] / look.brick.name


def opened(folder, product, band):
    with fits.open(folder / f"legacysurvey-{folder.name}-{product}-{band}.fits.fz") as hdus:
        return hdus[1].data.astype(np.float64), WCS(hdus[1].header), hdus[1].header


def test_images_hold_the_sources_where_and_as_bright_as_they_are(brick):
    task, folder = brick
    rows, look = task.rows, task.look
    star = np.flatnonzero(
        (rows["kind"] == "star")
        & (rows["gaia_g"] > 15.8)
        & (rows["gaia_g"] < 18.5)
        & (np.hypot(rows["pmra"], rows["pmdec"]) < 60)
    )
    image, wcs, head = opened(folder, "image", "r")
    invvar = opened(folder, "invvar", "r")[0]
    assert head["BUNIT"] == "nanomaggy" and head["CTYPE1"] == "RA---TAN" and image.shape == (look.brick.width,) * 2
    ra, dec = truth.moved(*(rows[c] for c in ("ra", "dec", "pmra", "pmdec")), look.epoch - 2016)
    x, y = wcs.all_world2pix(ra, dec, 0)
    ys, xs = np.mgrid[: image.shape[0], : image.shape[1]]
    tried = 0
    for i in star:
        near = np.hypot(xs - x[i], ys - y[i]) < 10
        others = np.hypot(x - x[i], y - y[i])
        alone = (rows["flux_r"][(others < 60) & (others > 0)].sum()) < 0.005 * rows["flux_r"][i]
        if not alone or near.sum() < 300 or (invvar[near] == 0).any():
            continue
        tried += 1
        # a Moffat profile of beta 3 holds this part of its light within 10 pixels
        alpha = look.fwhm["r"] / 0.262 / (2 * np.sqrt(2 ** (1 / 3) - 1))
        inside = 1 - (1 + (10 / alpha) ** 2) ** -2
        flux = image[near].sum()
        assert flux == pytest.approx(inside * rows["flux_r"][i], rel=0.01, abs=4 * np.sqrt((1 / invvar[near]).sum()))
        assert (image[near] * xs[near]).sum() / flux == pytest.approx(x[i], abs=0.05)
        assert (image[near] * ys[near]).sum() / flux == pytest.approx(y[i], abs=0.05)
    assert tried >= 1


def test_noise_is_that_of_the_invvar_and_bad_pixels_hold_nothing(brick):
    _, folder = brick
    image, invvar = (opened(folder, p, "z")[0] for p in ("image", "invvar"))
    assert (invvar == 0).any() and not image[invvar == 0].any()
    pull = (image * np.sqrt(invvar))[invvar > 0]
    assert 1.4826 * np.median(np.abs(pull - np.median(pull))) == pytest.approx(1, abs=0.08)


def test_mask_image_agrees_with_the_brick_and_its_stars(brick):
    _, folder = brick
    with fits.open(folder / f"legacysurvey-{folder.name}-maskbits.fits.fz") as hdus:
        bits, head = hdus[1].data, hdus[1].header
        assert [h.shape for h in hdus[2:]] == [bits.shape] * 2
    assert bits.dtype.kind == "i"
    primary = (bits & 1) == 0
    side = 0.02 * 3600 / 0.262
    assert primary.sum() == pytest.approx(side**2, rel=0.02)
    assert primary[len(bits) // 2, len(bits) // 2] and not primary[70, 70]
    assert (bits & SATUR["r"]).any() and head["BRICKNAM"] == folder.name


def test_checksum_list_of_a_brick(brick):
    _, folder = brick
    path = folder / f"legacysurvey_dr10_south_coadd_{folder.name[:3]}_{folder.name}.sha256sum"
    lines = dict(reversed(line.split("  ")) for line in path.read_text().splitlines())
    assert set(lines) == {p.name for p in folder.glob("*.fz")} and len(lines) == 13
    for name, digest in lines.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_truth_masks_lie_on_the_images_grid(brick):
    task, folder = brick
    with np.load(task.masks / f"{folder.name}.npz", allow_pickle=False) as masks:
        label, owner = masks["label"], masks["owner"]
    assert label.shape == owner.shape == (task.look.brick.width,) * 2
    galaxies = task.rows["uid"][task.rows["kind"] == "galaxy"]
    assert set(np.unique(owner)) - {0} <= set(galaxies.tolist()) and (label > 0).any()
