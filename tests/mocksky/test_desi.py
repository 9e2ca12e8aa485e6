"""DESI's mock files: layout, ids, checksums, and spectra that integrate to the catalogue's fluxes."""

import hashlib
from pathlib import Path

import healpy
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import speclite.filters
from astropy import units as u
from astropy.io import fits

from skycairn.mocksky import desi, desi_spectra, population, sed


def sky(galaxies: int, stars: int, quasars: int, seed: int = 1, ra: float = 0.0, dec: float = -1.2) -> pa.Table:
    """A small patch, 0.3 degrees wide, across RA 0."""
    rng = np.random.default_rng(seed)
    drawn = [
        population.draw(rng, "galaxy", galaxies, z_mag_max=19.5),
        population.draw(rng, "star", stars, bright_fraction=0.5),
        population.draw(rng, "quasar", quasars),
    ]
    rows = {k: np.concatenate([d[k] for d in drawn]) for k in drawn[0]}
    n = len(rows["z"])
    rows["ebv"] = np.full(n, 0.03, dtype=np.float32)
    rows |= {"uid": np.arange(1, n + 1), "ra": (ra + rng.uniform(-0.15, 0.15, n)) % 360}
    rows |= {"dec": dec + rng.uniform(-0.15, 0.15, n)} | sed.photometry(rows, rows["ebv"])
    columns = {k: pa.array(v) for k, v in rows.items() if v.ndim == 1 and k != "kind"}
    columns["coefficients"] = pa.FixedSizeListArray.from_arrays(pa.array(rows["coefficients"].ravel()), 5)
    columns["kind"] = pa.array(rows["kind"].tolist())
    return pa.table(columns)


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table, pa.Table]:
    root = tmp_path_factory.mktemp("desi") / "iron"
    truth = sky(90, 40, 6)
    return root, truth, desi.write(root, truth, seed=3, workers=2)


def zcatalog(root: Path) -> fits.FITS_rec:
    with fits.open(root / "zcatalog" / "v1" / "zall-pix-iron.fits", memmap=False) as hdus:
        return hdus["ZCATALOG"].data.copy()


def test_targetid_packs_as_desi_packs_it() -> None:
    assert desi.targetid(np.array([9010]), np.array([298864]), np.array([3485])).tolist() == [39627652591521181]
    key = desi.pack_key(np.array([39627652591521181, -3]), np.array(["main", "main"]), np.array(["dark", "dark"]))
    assert key.to_pylist() == [(18 << 58) | 39627652591521181, None]


def test_every_source_is_accounted_for(mock: tuple[Path, pa.Table, pa.Table]) -> None:
    root, sources, truth = mock
    rows = zcatalog(root)
    seen = truth.filter(truth["observed"])
    assert len(rows) == seen.num_rows
    assert set(pc.drop_null(truth["uid"]).to_pylist()) - {0} == set(sources["uid"].to_pylist())
    assert all(w for w in truth.filter(pc.invert(truth["observed"]))["why_not"].to_pylist())
    # ids, never through float
    assert sorted(rows["TARGETID"].tolist()) == sorted(seen["targetid"].to_pylist())
    keys = pc.drop_null(seen["key"]).to_pylist()
    assert len(set(keys)) == len(keys)


def test_each_dirt_is_as_it_is_labelled(mock: tuple[Path, pa.Table, pa.Table]) -> None:
    root, _, truth = mock
    rows = zcatalog(root)
    found = {
        (int(i), s.strip(), p.strip()): r
        for i, s, p, r in zip(rows["TARGETID"], rows["SURVEY"], rows["PROGRAM"], rows, strict=True)
    }
    labels = {}
    for row in truth.filter(truth["observed"]).to_pylist():
        if row["dirt"] != "stuck":
            labels.setdefault(row["dirt"], []).append(found[row["targetid"], row["survey"], row["program"]])
    assert {"", "repeat", "zwarn", "bad fiberstatus", "masked pixels", "nan position", "sky", "file absent"} <= set(
        labels
    )
    assert all(r["ZWARN"] == 4 for r in labels["zwarn"])
    assert all(r["COADD_FIBERSTATUS"] & ~8 for r in labels["bad fiberstatus"])
    assert all(np.isnan(r["TARGET_RA"]) for r in labels["nan position"])
    assert all(r["OBJTYPE"].strip() == "SKY" and int(r["TARGETID"]) >> 59 & 1 for r in labels["sky"])
    assert all(r["ZCAT_NSPEC"] == 2 for r in labels["repeat"])
    assert all(r["ZWARN"] == 0 and r["COADD_FIBERSTATUS"] in (0, 8) and r["OBJTYPE"] == "TGT" for r in labels[""])
    stuck = rows[rows["TARGETID"] < 0]
    assert len(stuck) > len(set(stuck["TARGETID"]))
    primary = rows[rows["ZCAT_PRIMARY"]]["TARGETID"]
    assert len(primary) == len(set(primary.tolist())) == len(set(rows["TARGETID"].tolist()))


def test_clean_redshifts_are_the_truth(mock: tuple[Path, pa.Table, pa.Table]) -> None:
    root, sources, truth = mock
    z = dict(zip(sources["uid"].to_pylist(), sources["z"].to_pylist(), strict=True))
    rows = zcatalog(root)
    measured = {
        (int(i), s.strip(), p.strip()): float(v)
        for i, s, p, v in zip(rows["TARGETID"], rows["SURVEY"], rows["PROGRAM"], rows["Z"], strict=True)
    }
    for row in truth.filter(pc.and_(truth["observed"], pc.equal(truth["dirt"], ""))).to_pylist():
        true = z[row["uid"]]
        assert measured[row["targetid"], row["survey"], row["program"]] == pytest.approx(true, abs=4e-3 * (1 + true))


def test_stars_stand_where_they_stood_in_2015(mock: tuple[Path, pa.Table, pa.Table]) -> None:
    root, sources, truth = mock
    rows = zcatalog(root)
    at = {int(i): k for k, i in enumerate(rows["TARGETID"])}
    stars = sources.filter(pc.equal(sources["kind"], "star"))
    motion = {s["uid"]: s for s in stars.to_pylist()}
    checked = 0
    for row in truth.filter(pc.and_(truth["observed"], pc.equal(truth["dirt"], ""))).to_pylist():
        if row["uid"] in motion:
            s, r = motion[row["uid"]], rows[at[row["targetid"]]]
            assert r["REF_EPOCH"] == 2015.5 and r["PMDEC"] == np.float32(s["pmdec"])
            assert (r["TARGET_DEC"] - s["dec"]) * 3.6e6 == pytest.approx(-0.5 * s["pmdec"], abs=1e-3)
            checked += 1
        else:
            assert rows[at[row["targetid"]]]["REF_EPOCH"] == 0
    assert checked > 5


def test_files_are_listed_under_their_digests(mock: tuple[Path, pa.Table, pa.Table]) -> None:
    root, _, truth = mock
    absent = []
    for sums in root.rglob("*.sha256sum"):
        assert sums.name == "redux_iron_" + "_".join(sums.parent.relative_to(root).parts) + ".sha256sum"
        for line in sums.read_text().splitlines():
            digest, name = line.split("  ")
            path = sums.parent / name
            if path.exists():
                assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
            else:
                absent.append(name)
    assert len(absent) == 1 and absent[0].startswith("coadd-")
    lost = {(r["survey"], r["program"], r["healpix"]) for r in truth.to_pylist() if r["dirt"] == "file absent"}
    assert [absent[0]] == ["coadd-{}-{}-{}.fits".format(*name) for name in lost]


def test_spectra_integrate_to_the_catalogue(mock: tuple[Path, pa.Table, pa.Table]) -> None:
    root, _, _ = mock
    checked = 0
    for path in sorted(root.rglob("coadd-main-bright-*.fits")):
        with fits.open(path) as hdus:
            fibers = hdus["FIBERMAP"].data
            assert hdus["B_MASK"].data.dtype == np.uint32
            assert hdus["B_RESOLUTION"].data.shape == (len(fibers), 11, 2751)
            with fits.open(path.parent / path.name.replace("coadd", "redrock")) as redrock:
                assert redrock["REDSHIFTS"].data["TARGETID"].tolist() == fibers["TARGETID"].tolist()
            wave = np.concatenate([hdus[f"{a}_WAVELENGTH"].data for a in "BRZ"])
            order = np.argsort(wave, kind="stable")
            flux, ivar, mask = (
                np.concatenate([hdus[f"{a}_{x}"].data for a in "BRZ"], 1) for x in ("FLUX", "IVAR", "MASK")
            )
            assert ((ivar == 0) == (mask != 0)).all()
            hp = int(path.stem.rsplit("-", 1)[1])
            ok = np.isfinite(fibers["TARGET_RA"]) & (fibers["OBJTYPE"] == "TGT")
            assert (
                healpy.ang2pix(64, fibers["TARGET_RA"][ok], fibers["TARGET_DEC"][ok], nest=True, lonlat=True) == hp
            ).all()
            curve = speclite.filters.load_filter("decam2014-r")
            for k in np.flatnonzero(ok & (fibers["FLUX_R"] > 40)):
                good = mask[k][order] == 0
                if (~good).sum() > 100:
                    continue
                f = np.interp(wave[order], wave[order][good], flux[k][order][good]) * 1e-17
                once = np.append(True, np.diff(wave[order]) > 0)
                padded = curve.pad_spectrum(f[once] * u.Unit("erg / (s cm2 Angstrom)"), wave[order][once] * u.AA)
                mag = curve.get_ab_magnitude(*padded)
                assert 10 ** (-0.4 * (float(mag) - 22.5)) == pytest.approx(float(fibers["FLUX_R"][k]), rel=0.02)
                checked += 1
    assert checked >= 5


def test_files_are_formed_as_real_ones(mock: tuple[Path, pa.Table, pa.Table], real_data: Path) -> None:
    root, _, _ = mock
    real_folder = real_data / "desi" / "coadd-redrock-iron"
    for kind in ("coadd", "redrock"):
        path = min(root.rglob(f"{kind}-main-*.fits"))
        with fits.open(path) as ours, fits.open(next(real_folder.glob(f"{kind}-4-*.fits"))) as real:
            ours.verify("exception")
            assert [h.name for h in ours] == [h.name for h in real]
            for mine, theirs in zip(ours[1:], real[1:], strict=True):
                if isinstance(theirs, fits.ImageHDU):
                    assert mine.header.get("BUNIT") == theirs.header.get("BUNIT")
                    assert mine.shape[1:] == theirs.shape[1:]
                else:
                    common = [c for c in mine.columns if c.name in theirs.columns.names]
                    assert len(common) > 0.7 * len(mine.columns)
                    assert [c.format for c in common] == [theirs.columns[c.name].format for c in common]
            if kind == "coadd":
                for arm in "BRZ":
                    np.testing.assert_allclose(
                        ours[f"{arm}_WAVELENGTH"].data, real[f"{arm}_WAVELENGTH"].data, atol=1e-8
                    )
                    offsets = (5 - np.arange(11))[:, None] * 0.8
                    spread = [
                        np.median(np.sqrt((r * offsets**2).sum(axis=0) / r.sum(axis=0)))
                        for r in (ours[f"{arm}_RESOLUTION"].data[0], real[f"{arm}_RESOLUTION"].data[0])
                    ]
                    assert spread[0] == pytest.approx(spread[1], rel=0.2)


def test_the_resolution_matrix_is_the_line_spread() -> None:
    a = desi_spectra.arm("R")
    offsets = (5 - np.arange(11)) * 0.8
    sigma = np.sqrt((a.resolution * offsets[:, None] ** 2).sum(axis=0))
    np.testing.assert_allclose(sigma, a.lsf, rtol=0.02)
    np.testing.assert_allclose(a.resolution.sum(axis=0), 1.0, rtol=1e-6)
    assert a.wavelength[-1] == 7620.0 and desi_spectra.arm("Z").wavelength[-1] == 9824.0


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    truth = sky(25, 15, 2, seed=2)
    tables = [desi.write(tmp_path / str(w), truth, seed=9, workers=w) for w in (1, 3)]
    assert tables[0].equals(tables[1])
    first, second = (
        {p.relative_to(tmp_path / w): p.read_bytes() for p in (tmp_path / w).rglob("*") if p.is_file()}
        for w in ("1", "3")
    )
    assert first == second


def test_a_sky_without_targets_is_an_empty_catalogue(tmp_path: Path) -> None:
    truth = sky(5, 5, 1)
    written = desi.write(tmp_path, truth, footprint=np.zeros(11, dtype=bool))
    assert len(zcatalog(tmp_path)) == 0
    assert written["why_not"].to_pylist() == ["outside footprint"] * 11


def test_motion_is_sound_at_the_pole() -> None:
    ra, dec = desi.move(np.array([10.0]), np.array([89.9999]), np.array([0.0]), np.array([1000.0]), 1000.0)
    assert ra[0] == pytest.approx(190.0) and dec[0] == pytest.approx(90.0 - (1000 / 3600 - 0.0001), abs=1e-6)
