"""SDSS's mock files: layout, ids, plates of two MJDs, positions, wavelengths, noise and synthetic fluxes."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import speclite.filters
from astropy import units as u
from astropy.io import fits

from skycairn.catalogs.sdsskey import pack_key
from skycairn.mocksky import lines, sdss, sed, truth
from skycairn.mocksky.patches import TIERS, in_sdss
from skycairn.mocksky.replica import MOST_PATCHES, SEEDS


@pytest.fixture(scope="module")
def sky() -> tuple[pa.Table, np.ndarray]:
    tier = TIERS["default"]
    rows = truth.assemble(tier, 3)
    return truth.table(rows), in_sdss(tier, rows["ra"], rows["dec"], rows["patch"])


@pytest.fixture(scope="module")
def mock(sky, tmp_path_factory):
    root = tmp_path_factory.mktemp("dr17")
    table = sdss.write(root, sky[0], sdss.Options(stars=0.15), seed=3, workers=2, footprint=sky[1])
    with fits.open(root / "sdss/spectro/redux/specObj-dr17.fits", memmap=False) as hdus:
        spec = hdus[1].data.copy()
    return root, sed.rows_of(sky[0]), table, spec


def run2d(spec) -> list[str]:
    return [r.strip() for r in spec["RUN2D"]]


def plate_of(root, spec, i):
    path = sdss.plate_path(root, run2d(spec)[i], int(spec["PLATE"][i]), int(spec["MJD"][i]))
    return fits.open(io.BytesIO(path.read_bytes())) if path.exists() else None


def test_specobjid_is_packed_as_in_dr17():
    assert sdss.specobjid("26", 2580, 54092, 470) == 2904951020922628096
    assert sdss.specobjid("v5_13_2", 10200, 57500, 1) > 2**63
    assert 0 < sdss.pack_key("v15_31_31", 131071, 82767, 4095) < 2**59


def test_specobj_is_the_truth_row_by_row(mock):
    _, rows, table, spec = mock
    seen = table.filter(table["observed"])
    assert 200 < len(spec) == seen.num_rows
    columns = (spec[c].tolist() for c in ("PLATE", "MJD", "FIBERID"))
    names = list(zip(run2d(spec), *columns, strict=True))
    keys = [sdss.pack_key(*n) for n in names]
    assert keys == pack_key(*(np.array(v) for v in zip(*names, strict=True)))[0].tolist(), "as the reader packs it"
    assert keys == seen["key"].to_pylist() and len(set(keys)) == len(keys)
    ids = [s.strip() for s in spec["SPECOBJID"]]
    assert all(int(a) == sdss.specobjid(*n) for a, n in zip(ids, names, strict=True) if a.isdigit())
    assert sum(not a.isdigit() for a in ids) == 1
    assert set(table["uid"].to_pylist()) - {0} == set(rows["uid"].tolist())
    labels = {"sky", "standard", "bad plate", "file absent", "nan z", "bad string", "masked pixels", "unplugged"}
    assert labels | {"", "repeat"} <= set(seen["dirt"].to_pylist())
    assert np.isnan(spec["Z"]).sum() == 1
    assert {"sdss", "segue1", "segue2", "boss", "eboss"} == {s.strip() for s in spec["SURVEY"]}
    assert (spec["PLATE"] >= 10000).any() and ((spec["PLATE"] > 8191) & (spec["PLATE"] < 10000)).any()
    uid = np.array(seen["uid"].to_pylist())
    held = uid[uid > 0]
    assert np.array_equal(np.unique(held), np.sort(uid[spec["SPECPRIMARY"] == 1]))
    assert len(np.unique(held)) < len(held)


def test_positions_are_the_truth_at_the_imagings_epoch(mock):
    _, rows, table, spec = mock
    seen = table.filter(table["observed"])
    uid, epoch = (np.array(seen[k].to_pylist(), dtype=float) for k in ("uid", "epoch"))
    assert np.array_equal(np.isnan(epoch), uid == 0)
    real = uid > 0
    at = uid[real].astype(int) - 1
    ra, dec = truth.moved(*(rows[k][at] for k in ("ra", "dec", "pmra", "pmdec")), epoch[real] - 2016.0)
    apart = np.linalg.norm(truth.unit(ra, dec) - truth.unit(spec["PLUG_RA"][real], spec["PLUG_DEC"][real]), axis=1)
    apart = np.degrees(apart) * 3600
    where = np.stack([uid[real], spec["PLUG_RA"][real], spec["PLUG_DEC"][real]], axis=1)
    assert len(np.unique(where, axis=0)) == len(np.unique(uid[real]))  # one target list, however many plates
    assert 0.03 < np.median(apart) < 0.12 and apart.max() < 0.4
    assert epoch[real].min() > 1999 and epoch[real].max() < 2009
    assert (spec["PLUG_RA"] > 359).any() and (spec["PLUG_RA"] < 1).any() and (spec["PLUG_RA"] < 360).all()


def test_two_mjds_of_a_plate_hold_other_things_in_the_same_fibre(mock):
    root, _, table, spec = mock
    uid = np.array(table.filter(table["observed"])["uid"].to_pylist())
    days = np.unique(spec["MJD"][spec["PLATE"] == 266])
    first, second = (uid[(spec["PLATE"] == 266) & (spec["MJD"] == d)] for d in days)
    assert len(first) == len(second) and (first != second).any() and sorted(first) == sorted(second)
    for day in days:
        i = np.flatnonzero((spec["PLATE"] == 266) & (spec["MJD"] == day))
        with plate_of(root, spec, i[0]) as hdus:
            assert np.array_equal(hdus[5].data["FIBERID"], np.arange(1, len(i) + 1))
            assert np.array_equal(hdus[5].data["RA"], spec["PLUG_RA"][i]) and hdus[0].header["MJD"] == day


def test_spectra_lie_on_the_vacuum_log_grid_and_integrate_to_spectroflux(mock):
    root, rows, table, spec = mock
    seen = table.filter(table["observed"])
    uid, dirt = np.array(seen["uid"].to_pylist()), np.array(seen["dirt"].to_pylist())
    ratio, pulls, offsets, absent = [], [], [], 0
    r_band = speclite.filters.load_filter("sdss2010-r")
    for i in np.flatnonzero(uid > 0):
        hdus = plate_of(root, spec, i)
        if hdus is None:
            absent += 1
            assert dirt[i] == "file absent"
            continue
        h, row = hdus[0].header, spec["FIBERID"][i] - 1
        n = round((h["COEFF0"] - 3.5) / 1e-4)
        assert abs(h["COEFF0"] - 3.5 - n * 1e-4) < 1e-9 and h["COEFF1"] == 1e-4
        wave = 10.0 ** (h["COEFF0"] + 1e-4 * np.arange(h["NAXIS1"]))
        flux, ivar, mask = (hdus[k].data[row].astype(float) for k in range(3))
        assert np.isfinite(flux).all() and ((mask.astype(int) & (1 << 24) == 0) | (ivar == 0)).all()
        if dirt[i] == "unplugged":
            assert not ivar.any()
        if dirt[i] in ("unplugged", "masked pixels"):
            continue
        good = ivar > 0
        clean = np.interp(wave, wave[good], flux[good])
        synthetic = r_band.get_ab_maggies(clean * 1e-17 * u.erg / u.s / u.cm**2 / u.AA, wave * u.AA) * 1e9
        if spec["SPECTROFLUX"][i, 2] > 5:
            ratio.append(synthetic / spec["SPECTROFLUX"][i, 2])
        pulls.append(
            np.std(
                np.diff(flux[1000:1400])[good[1000:1399] & good[1001:1400]]
                * np.sqrt(ivar[1000:1399])[good[1000:1399] & good[1001:1400]]
            )
            / np.sqrt(2)
        )
        t = uid[i] - 1
        centre = lines.LINES["Halpha"] * (1 + rows["z"][t])
        near = np.abs(wave - centre) < 12
        if rows["kind"][t] == "galaxy" and centre < wave[-200] and good[near].all():
            light = flux[near] - np.median(flux[np.abs(wave - centre) < 80])
            if light.max() * np.sqrt(ivar[near]).mean() > 8:
                offsets.append(wave[near][np.argmax(light)] / centre - 1)
    assert absent > 0
    assert abs(np.median(ratio) - 1) < 0.01 and np.std(ratio) < 0.08
    assert abs(np.median(pulls) - 1) < 0.1
    assert len(offsets) > 3 and abs(np.median(offsets)) < 1.5e-4


def test_a_spec_file_is_its_row_of_the_plate(mock):
    root = mock[0]
    files = sorted(root.rglob("spec-*.fits"))
    assert files
    for path in files:
        plate, mjd, fiber = (int(k) for k in path.stem.split("-")[1:])
        top = path.parents[3]
        with fits.open(path) as one, fits.open(top / f"{plate:04d}" / f"spPlate-{plate:04d}-{mjd}.fits") as whole:
            assert np.array_equal(one["COADD"].data["flux"], whole[0].data[fiber - 1])
            assert np.array_equal(one["COADD"].data["wdisp"], whole["WAVEDISP"].data[fiber - 1])
            assert one["SPECOBJ"].data["FIBERID"][0] == fiber and one["SPECOBJ"].data["MJD"][0] == mjd


def test_same_bytes_whatever_the_workers_and_specobj_alone_without_pixels(sky, mock, tmp_path):
    def digests(folder: Path) -> dict[str, str]:
        found = (p for p in folder.rglob("*") if p.is_file())
        return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}

    again = sdss.write(tmp_path / "a", sky[0], sdss.Options(stars=0.15), seed=3, workers=1, footprint=sky[1])
    assert digests(tmp_path / "a") == digests(mock[0]) and again.equals(mock[2])
    sdss.write(tmp_path / "b", sky[0], sdss.Options(spectra=False), seed=3, footprint=sky[1])
    assert list(digests(tmp_path / "b")) == ["sdss/spectro/redux/specObj-dr17.fits"]
    none = sdss.write(tmp_path / "c", sky[0], footprint=np.zeros(sky[0].num_rows, dtype=bool))
    assert not any(none["observed"].to_pylist()) and none.num_rows == sky[0].num_rows


def test_plates_of_far_patches_have_names_of_their_own_that_fit_a_key() -> None:
    """To the last of the last seed of a train tier; plates of two kinds share a number, 330 patches apart, say."""
    rows, wanted = {"patch": np.zeros(40, np.int32)}, np.array(["boss", "segue", "legacy", "legacy"] * 10)
    names = []
    for patch in (0, 27, 28, 50, 280, 330, 5999, 6000, 6050, 6280, 12330, MOST_PATCHES * SEEDS + 28):
        for k in (0, 1, 2):
            plates = sdss._plates(rows, wanted, 0, k, 0, patch)
            keys = [pack_key(np.array([p.run2d]), *(np.array([v]) for v in (p.plate, p.mjd, 1))) for p in plates]
            assert all(packed.all() for _, packed in keys)
            names.append({int(key[0]) for key, _ in keys})
    of_patch = [a | b | c for a, b, c in zip(names[::3], names[1::3], names[2::3], strict=True)]
    assert sum(map(len, of_patch)) == len(set().union(*of_patch))
