from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import curve_fit

from skycairn.catalogs.desi import Desi
from skycairn.catalogs.desicoadd import (
    ARMS,
    N_PIXELS,
    join_arms,
    join_lsf,
    lsf_sigma,
    match_targetids,
    read_spectra,
    wavelength,
)

Arms = dict[str, np.ndarray]


def constant(n: int, **by_arm: float) -> Arms:
    return {arm: np.full((n, ARMS[arm][1]), float(value)) for arm, value in by_arm.items()}


def coadd(path: Path, ids: list[int], flux: Arms, ivar: Arms, mask: Arms | None = None, leave_out: str = "") -> Path:
    """A coadd file with its HDUs in an odd order and MASK as unsigned integers, as the data model has it."""
    fibermap = fits.BinTableHDU.from_columns([fits.Column("TARGETID", "K", array=np.array(ids))], name="FIBERMAP")
    hdus: list[fits.ImageHDU] = []
    for arm, (first, width) in ARMS.items():
        bits = np.zeros((len(ids), width)) if mask is None else mask[arm]
        hdus.append(fits.ImageHDU(bits.astype(np.uint32), name=f"{arm}_MASK"))
        hdus.append(fits.ImageHDU(ivar[arm].astype(np.float32), name=f"{arm}_IVAR"))
        hdus.append(fits.ImageHDU(flux[arm].astype(np.float32), name=f"{arm}_FLUX"))
        hdus.append(fits.ImageHDU(wavelength()[first : first + width], name=f"{arm}_WAVELENGTH"))
    kept = [h for h in [*reversed(hdus), fibermap] if h.name != leave_out]
    fits.HDUList([fits.PrimaryHDU(), *kept]).writeto(path, overwrite=True)
    return path


class TestJoin:
    def test_overlap_is_weighted_by_ivar(self) -> None:
        flux, ivar, mask = join_arms(
            constant(1, B=1, R=4, Z=10), constant(1, B=3, R=1, Z=2), constant(1, B=0, R=0, Z=0)
        )
        w = wavelength()
        for low, high, f, iv in [
            (3600, 5759.6, 1, 3),
            (5760, 5800, (3 * 1 + 1 * 4) / 4, 4),
            (5800.4, 7519.6, 4, 1),
            (7520, 7620, (1 * 4 + 2 * 10) / 3, 3),
            (7620.4, 9824, 10, 2),
        ]:
            there = (w > low - 0.1) & (w < high + 0.1)
            assert there.any()
            np.testing.assert_allclose(flux[0, there], f, rtol=1e-6)
            np.testing.assert_allclose(ivar[0, there], iv, rtol=1e-6)
        assert not mask.any() and flux.dtype == ivar.dtype == np.float32

    def test_grid_ends(self) -> None:
        w = wavelength()
        assert w.shape == (N_PIXELS,) and w[0] == 3600 and w[-1] == pytest.approx(9824, abs=1e-9)
        assert all(first + width <= N_PIXELS for first, width in ARMS.values())

    @pytest.mark.parametrize("how", ["ivar 0", "ivar negative", "mask", "flux nan", "ivar nan", "ivar inf"])
    def test_one_arm_is_bad_in_the_overlap(self, how: str) -> None:
        flux, ivar, mask = constant(1, B=1, R=4, Z=10), constant(1, B=3, R=1, Z=2), constant(1, B=0, R=0, Z=0)
        pixel = 2710
        at = (0, pixel - ARMS["R"][0])
        if how == "mask":
            mask["R"][at] = 1 << 10
        elif how == "flux nan":
            flux["R"][at] = np.nan
        else:
            ivar["R"][at] = {"ivar 0": 0, "ivar negative": -5, "ivar nan": np.nan, "ivar inf": np.inf}[how]
        f, iv, bad = join_arms(flux, ivar, mask)
        assert (f[0, pixel], iv[0, pixel], bad[0, pixel]) == (1, 3, False)
        assert f[0, pixel + 1] == pytest.approx(7 / 4)

    def test_both_arms_are_bad(self) -> None:
        flux, ivar, mask = constant(1, B=1, R=4, Z=10), constant(1, B=3, R=1, Z=2), constant(1, B=0, R=0, Z=0)
        ivar["B"][0, 2710] = 0
        mask["R"][0, 10] = 1
        f, iv, bad = join_arms(flux, ivar, mask)
        assert (f[0, 2710], iv[0, 2710], bad[0, 2710]) == (0, 0, True)
        assert bad.sum() == 1

    @given(arrays(np.float64, (2, 7), elements=st.sampled_from([0.0, 1.0, 2.5, -3.0, np.nan, np.inf])))
    @settings(deadline=None, max_examples=30)
    def test_bad_pixels_are_zero_and_never_nan(self, some: np.ndarray) -> None:
        flux, ivar, mask = constant(1, B=1, R=4, Z=10), constant(1, B=3, R=1, Z=2), constant(1, B=0, R=0, Z=0)
        flux["Z"][0, :7], ivar["Z"][0, :7] = some
        f, iv, bad = join_arms(flux, ivar, mask)
        assert np.isfinite(f).all() and np.isfinite(iv).all() and (iv >= 0).all()
        assert ((iv == 0) == bad).all() and (f[bad] == 0).all()


class TestLsf:
    def test_width_and_place_of_a_gaussian(self) -> None:
        step = np.arange(11) - 5
        profile = np.exp(-0.5 * ((step - 0.3) / 1.1) ** 2)
        data = np.repeat(profile[None, :, None], 4, axis=2)
        np.testing.assert_allclose(lsf_sigma(data), 1.1 * 0.8, rtol=2e-3)

    def test_a_column_that_says_nothing(self) -> None:
        data = np.zeros((1, 11, 3))
        data[0, 4:7, 0] = 1
        sigma = lsf_sigma(data)
        assert sigma[0, 0] == pytest.approx(0.8 * np.sqrt(2 / 3)) and np.isnan(sigma[0, 1:]).all()

    def test_second_moments_are_joined_by_ivar_and_gaps_bridged(self) -> None:
        sigma = constant(1, B=1.0, R=2.0, Z=2.0)
        sigma["R"][0, 1000] = np.nan
        joined = join_lsf(sigma, constant(1, B=3, R=1, Z=0))
        assert joined[0, 2710] == pytest.approx(np.sqrt((3 * 1 + 1 * 4) / 4))
        assert joined[0, 0] == 1 and joined[0, -1] == 2 and joined[0, 2700 + 1000] == pytest.approx(2)
        assert np.isnan(join_lsf(constant(1, B=np.nan, R=np.nan, Z=np.nan), constant(1, B=1, R=1, Z=1))).all()


class TestRows:
    def test_by_targetid(self) -> None:
        held = np.array([9, 3, 2**62 + 1, 7])
        assert match_targetids(np.array([7, 3, 8, 2**62, 2**62 + 1]), held, "f").tolist() == [3, 1, -1, -1, 2]
        assert match_targetids(np.array([7]), np.zeros(0, np.int64), "f").tolist() == [-1]

    def test_twice_is_refused_only_if_wanted(self) -> None:
        held = np.array([9, -1, -1, 7])
        assert match_targetids(np.array([7]), held, "f").tolist() == [3]
        with pytest.raises(ValueError, match=r"f: TARGETID -1 stands in rows 1, 2"):
            match_targetids(np.array([-1]), held, "f")


@pytest.fixture
def three(tmp_path: Path) -> Path:
    rows = np.array([[1.0], [2.0], [3.0]])
    flux = {a: rows * np.ones((1, w)) for a, (_, w) in ARMS.items()}
    ivar = constant(3, B=3, R=1, Z=2)
    mask = constant(3, B=0, R=0, Z=0)
    mask["B"][1, 5] = 4
    for arm in ARMS:
        ivar[arm][2] = 0
    return coadd(tmp_path / "coadd-main-dark-1.fits", [30, 10, 20], flux, ivar, mask)


class TestFile:
    def test_rows_come_in_the_order_asked(self, three: Path) -> None:
        got = read_spectra(three, np.array([10, 99, 30]))
        assert got["found"].tolist() == [True, False, True]
        assert got["flux"][:, 100].tolist() == [2, 0, 1]
        assert got["mask"].sum(axis=1).tolist() == [1, N_PIXELS, 0] and got["mask"][0, 5]
        assert np.isnan(got["lsf_sigma"]).all()

    def test_extract(self, three: Path) -> None:
        desi = Desi("dr1")
        sources = pa.table({"key": [1, 2, 3, 4], "targetid": [10, 20, 99, 30]})
        got = desi.extract("desi.spectrum", sources, {"coadd": three}, frozenset())
        assert got.column_names == ["key", "status", "flux", "ivar", "mask", "lsf_sigma"]
        assert got["key"].to_pylist() == [1, 2, 3, 4]
        # 20 lies in the file without one good pixel, 99 does not lie in it
        assert got["status"].to_pylist() == [None, "not_measured", "not_measured", None]
        assert [f is None for f in got["flux"].to_pylist()] == [False, True, True, False]
        assert got["lsf_sigma"].null_count == 4
        assert [len(got[c][3].as_py()) for c in ("flux", "ivar", "mask")] == [N_PIXELS] * 3
        assert got["flux"][3].as_py()[0] == 1 and got["flux"][0].as_py()[0] == 2
        assert got["mask"][0].as_py()[5] is True and got["ivar"][0].as_py()[5] == 0
        assert got.schema.field("flux").type == pa.list_(pa.float32())
        assert got.schema.metadata == {b"wavelength_start": b"3600.0", b"wavelength_step": b"0.8"}

    @pytest.mark.parametrize(("lost", "status"), [(frozenset({"coadd"}), "file_absent"), (frozenset(), "not_measured")])
    def test_extract_without_the_file(self, lost: frozenset[str], status: str) -> None:
        sources = pa.table({"key": [1, 2], "targetid": [10, 20]})
        got = Desi("dr1").extract("desi.spectrum", sources, {}, lost)
        assert got["status"].to_pylist() == [status] * 2
        assert all(got[c].null_count == 2 for c in ("flux", "ivar", "mask", "lsf_sigma"))
        assert got.schema.field("mask").type == pa.list_(pa.bool_())

    def test_extract_of_nothing(self, three: Path) -> None:
        sources = pa.table({"key": pa.array([], pa.int64()), "targetid": pa.array([], pa.int64())})
        assert Desi("dr1").extract("desi.spectrum", sources, {"coadd": three}, frozenset()).num_rows == 0

    def test_another_grid_is_refused(self, three: Path) -> None:
        with fits.open(three, mode="update") as hdus:
            hdus["R_WAVELENGTH"].data += 0.002
        with pytest.raises(ValueError, match=r"R_WAVELENGTH holds 2326 pixels, 5760\.0020"):
            read_spectra(three, np.array([10]))

    @pytest.mark.parametrize("name", ["FIBERMAP", "Z_MASK", "B_WAVELENGTH"])
    def test_a_missing_part_is_named(self, tmp_path: Path, name: str) -> None:
        path = coadd(tmp_path / "c.fits", [1], constant(1, B=1, R=1, Z=1), constant(1, B=1, R=1, Z=1), leave_out=name)
        with pytest.raises(ValueError, match=f"c.fits: holds no HDU '{name}'"):
            read_spectra(path, np.array([1]))

    @pytest.mark.parametrize("keep", [0.999, 0.6, 0.1])
    def test_a_file_cut_short_is_refused(self, three: Path, keep: float) -> None:
        whole = three.read_bytes()
        three.write_bytes(whole[: int(len(whole) * keep)])
        with pytest.raises(ValueError, match=r"coadd-main-dark-1.fits"):
            read_spectra(three, np.array([10]))


class TestRealFiles:
    Z = 0.36874355163716493

    def test_the_lines_lie_where_the_redshift_puts_them(self, real_data: Path) -> None:
        path = real_data / "desi/coadd-redrock-iron/coadd-4-80613-thru20210324.fits"
        got = read_spectra(path, np.array([39633345008634465]))
        flux, ivar, w = got["flux"][0], got["ivar"][0], wavelength()
        assert got["found"].all() and not got["mask"].any()

        def line(x: np.ndarray, height: float, centre: float, sigma: float) -> np.ndarray:
            return height * np.exp(-0.5 * ((x - centre) / sigma) ** 2)

        # vacuum wavelengths of H gamma, H beta, [OIII], H alpha, [NII]; both arms' overlaps and all arms are passed
        for vacuum in (4341.684, 4862.683, 4960.295, 5008.240, 6564.613, 6585.27):
            expected = vacuum * (1 + self.Z)
            near, around = abs(w - expected) < 8, (abs(w - expected) < 40) & (abs(w - expected) > 15)
            signal = flux[near] - np.median(flux[around])
            fit, cov = curve_fit(line, w[near], signal, p0=[signal.max(), expected, 2], sigma=ivar[near] ** -0.5)
            assert fit[0] / np.sqrt(cov[0, 0]) > 20
            # 0.15 Angstrom: a shift by half a pixel (0.4), or air wavelengths (1.4 and more), would fail
            assert fit[1] == pytest.approx(expected, abs=0.15)

    def test_values_are_the_files_own(self, real_data: Path) -> None:
        path = real_data / "desi/coadd-redrock-iron/coadd-4-80613-thru20210324.fits"
        got = read_spectra(path, np.array([39633345008634465]))
        with fits.open(path) as hdus:
            b, r, z = (hdus[f"{arm}_FLUX"].data[0] for arm in "BRZ")
            bi, ri = (hdus[f"{arm}_IVAR"].data[0].astype(float) for arm in "BR")
        np.testing.assert_array_equal(got["flux"][0, :2700], b[:2700])
        np.testing.assert_array_equal(got["flux"][0, 2751:4900], r[51:2200])
        np.testing.assert_array_equal(got["flux"][0, 5026:], z[126:])
        both = (b[2700:] * bi[2700:] + r[:51] * ri[:51]) / (bi[2700:] + ri[:51])
        np.testing.assert_allclose(got["flux"][0, 2700:2751], both, rtol=1e-5)
        # DESI's arms resolve R = 2000 to 5500, near enough (arXiv:2205.10939): sigma = wavelength / (2.355 R)
        resolving = wavelength() / (2.355 * got["lsf_sigma"][0])
        assert (resolving > 1800).all() and (resolving < 6100).all()

    def test_a_coadd_without_fibermap_is_refused(self, real_data: Path) -> None:
        with pytest.raises(ValueError, match=r"test_coadd.fits: holds no HDU 'FIBERMAP' .*no row can be told"):
            read_spectra(real_data / "desi/coadd-nofibermap/test_coadd.fits", np.array([1]))
