"""Photometry and spectrum of one source agree; lines lie where redshift puts them."""

import astropy.units as u
import numpy as np
import pytest
import speclite.filters

from skycairn.mocksky import lines, population, sed

WAVE = np.arange(3000.0, 11_000.0, 1.0)


@pytest.mark.parametrize("kind", ["galaxy", "star", "quasar"])
@pytest.mark.parametrize(("ebv", "decam", "gaia"), [(0.0, 0.005, 0.005), (0.08, 0.02, 0.005)])
def test_a_spectrum_integrates_to_its_photometry(kind: str, ebv: float, decam: float, gaia: float) -> None:
    rows = population.draw(np.random.default_rng(5), kind, 60)
    seen = sed.photometry(rows, ebv)
    flux = sed.spectrum(rows, WAVE, ebv) * u.Unit("erg / (s cm2 Angstrom)")
    for band in "griz":
        curve = speclite.filters.load_filter(sed.FILTERS[band])
        padded = curve.pad_spectrum(flux, WAVE * u.AA)
        synthetic = 10 ** (-0.4 * (np.asarray(curve.get_ab_magnitude(*padded)) - 22.5))
        np.testing.assert_allclose(synthetic, seen[f"flux_{band}"], rtol=decam)
    for band, zero in sed.GAIA_ZERO_POINT.items():
        curve = speclite.filters.load_filter(sed.FILTERS[band])
        vega = np.asarray(curve.get_ab_magnitude(flux, WAVE * u.AA)) + zero - sed.GAIA_ZERO_POINT_AB[band]
        np.testing.assert_allclose(vega, seen[band], atol=gaia)


@pytest.mark.parametrize("kind", ["galaxy", "star", "quasar"])
def test_the_infrared_agrees_too(kind: str) -> None:
    rows = population.draw(np.random.default_rng(15), kind, 30)
    wave = np.arange(25_000.0, 57_000.0, 15.0)
    flux = sed.spectrum(rows, wave, 0.0) * u.Unit("erg / (s cm2 Angstrom)")
    for band in ("w1", "w2"):
        curve = speclite.filters.load_filter(sed.FILTERS[band])
        synthetic = 10 ** (-0.4 * (np.asarray(curve.get_ab_magnitude(flux, wave * u.AA)) - 22.5))
        np.testing.assert_allclose(synthetic, sed.photometry(rows, 0.0)[f"flux_{band}"], rtol=0.005)


def test_warm_dust_lies_on_the_loci_of_wright_2010() -> None:
    vega = {"w2": 3.339, "w3": 5.174, "w4": 6.620}
    for kind, red in (("star", (0.0, 0.0)), ("quasar", (3.0, 2.5)), ("galaxy", (None, 2.0))):
        rows = population.draw(np.random.default_rng(4), kind, 400)
        seen = sed.photometry(rows, 0.0)
        w2, w3, w4 = (22.5 - 2.5 * np.log10(seen[f"flux_{b}"]) - ab for b, ab in vega.items())
        assert np.median(w3 - w4) == pytest.approx(red[1], abs=0.05)
        if red[0] is not None:
            assert np.median(w2 - w3) == pytest.approx(red[0], abs=0.05)
        assert np.std(w2 - w3) < 1e-9 if kind == "star" else np.std(w2 - w3) > 0.2
    blue = seen["flux_g"] / seen["flux_z"] > np.median(seen["flux_g"] / seen["flux_z"])
    assert np.median((w2 - w3)[blue]) > np.median((w2 - w3)[~blue]) + 0.5, "star formation is red there"


def test_the_law_meets_the_coefficients_and_rises_to_the_blue() -> None:
    for band, a in list(sed.EXTINCTION.items())[:4]:
        centre = speclite.filters.load_filter(sed.FILTERS[band]).effective_wavelength.value
        assert sed.extinction(np.array([centre]))[0] == pytest.approx(a, rel=1e-6)
    law = sed.extinction(np.arange(3000.0, 10_500.0, 10.0))
    assert (np.diff(law) < 0).all()


def test_a_star_twice_as_far_is_four_times_fainter() -> None:
    rows = population.draw(np.random.default_rng(16), "star", 5)
    far = rows | {"parallax": rows["parallax"] / 2}
    np.testing.assert_allclose(sed.photometry(far, 0.0)["flux_r"] * 4, sed.photometry(rows, 0.0)["flux_r"])


def test_the_sun_is_the_sun() -> None:
    rows = population.draw(np.random.default_rng(17), "star", 1)
    rows |= {
        "teff": np.array([5772.0]),
        "logg": np.array([4.438]),
        "feh": np.array([0.0]),
        "parallax": np.array([100.0]),
    }
    seen = sed.photometry(rows, 0.0)
    # M_G = 4.67 and BP - RP = 0.82 (Creevey et al. 2023)
    assert seen["gaia_g"][0] == pytest.approx(4.67, abs=0.1)
    assert seen["gaia_bp"][0] - seen["gaia_rp"][0] == pytest.approx(0.82, abs=0.1)


def test_the_catalogue_coefficients_undo_the_reddening() -> None:
    rows = population.draw(np.random.default_rng(6), "galaxy", 20)
    dusty, clear = sed.photometry(rows, np.full(20, 0.1)), sed.photometry(rows, 0.0)
    for band, coefficient in sed.EXTINCTION.items():
        transmission = 10 ** (-0.4 * coefficient * 0.1)
        np.testing.assert_allclose(dusty[f"flux_{band}"] / transmission, clear[f"flux_{band}"], rtol=1e-12)


@pytest.mark.parametrize("name", ["Halpha", "OIII_5008", "Hbeta"])
def test_a_line_lies_at_its_redshift(name: str) -> None:
    rows = population.draw(np.random.default_rng(7), "galaxy", 600)
    strong = (rows["z"] > 0.05) & (rows["z"] < 0.45) & (sed._galaxy_lines(rows)[:, 11] > 0)
    blue = rows["coefficients"][:, 1] > 1e-4
    rows = {k: v[strong & blue][:25] for k, v in rows.items()}
    wave = np.arange(3600.0, 9824.0, 0.8)
    flux = sed.spectrum(rows, wave, 0.0, lsf_sigma=0.7)
    for k, z in enumerate(rows["z"]):
        near = np.abs(wave - lines.LINES[name] * (1 + z)) < 9.0
        peak = wave[near][np.argmax(flux[k, near])]
        assert peak == pytest.approx(lines.LINES[name] * (1 + z), abs=1.2)


def test_a_line_keeps_its_flux_whatever_the_resolution() -> None:
    wave = np.arange(6000.0, 7000.0, 0.8)
    for sigma in (1.0, 4.0):
        flux = np.zeros((1, len(wave)))
        lines.paint(flux, wave, np.array([[6500.3]]), np.array([[3.0]]), np.array([[sigma]]))
        assert np.trapezoid(flux[0], wave) == pytest.approx(3.0, rel=1e-6)


def test_rows_depend_on_themselves_alone() -> None:
    rows = population.draw(np.random.default_rng(8), "galaxy", 50)
    part = {k: v[[3, 17]] for k, v in rows.items()}
    np.testing.assert_array_equal(sed.photometry(part, 0.03)["flux_r"], sed.photometry(rows, 0.03)["flux_r"][[3, 17]])


def test_a_redshift_beyond_the_table_is_refused() -> None:
    rows = population.draw(np.random.default_rng(9), "galaxy", 3)
    rows["z"][1] = 7.0
    with pytest.raises(ValueError, match="wanted 0 to"):
        sed.photometry(rows, 0.0)
