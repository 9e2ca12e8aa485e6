"""The drawn population keeps its limits, its counts and its distributions."""

import numpy as np
import pytest

from skycairn.mocksky import population, sed


def test_limits_are_kept() -> None:
    rng = np.random.default_rng(1)
    galaxies = population.draw(rng, "galaxy", 2000, z_mag_max=20.0)
    stars = population.draw(rng, "star", 2000, gaia_g_max=19.0)
    quasars = population.draw(rng, "quasar", 500, r_mag_max=21.0)
    assert sed.photometry(galaxies, 0.0)["flux_z"].min() > 10 ** (0.4 * 2.5)
    assert sed.photometry(stars, 0.0)["gaia_g"].max() < 19.0 + 1e-6
    assert sed.photometry(quasars, 0.0)["flux_r"].min() >= 10 ** (0.4 * 1.5) * (1 - 1e-6)
    assert [len(r["z"]) for r in (galaxies, stars, quasars)] == [2000, 2000, 500]


def test_colours_redden_with_redshift() -> None:
    rows = population.draw(np.random.default_rng(2), "galaxy", 8000, z_mag_max=21.0)
    seen = sed.photometry(rows, 0.0)
    colour = 2.5 * np.log10(seen["flux_r"] / seen["flux_g"])
    medians = [
        np.median(colour[(rows["z"] > a) & (rows["z"] < b)]) for a, b in ((0, 0.1), (0.1, 0.2), (0.2, 0.4), (0.4, 0.6))
    ]
    # what a prototype with the same luminosity functions gave: 0.47, 0.58, 0.89, 1.17
    np.testing.assert_allclose(medians, [0.47, 0.58, 0.89, 1.17], atol=0.08)


def test_stars_are_a_main_sequence_with_giants_far_away() -> None:
    rows = population.draw(np.random.default_rng(3), "star", 5000, bright_fraction=0.5, bright_gaia_g_max=15.0)
    bright = sed.photometry(rows, 0.0)["gaia_g"] < 15.0
    assert bright.mean() > 0.5
    giants = rows["logg"] < 3.5
    assert 0.005 < giants.mean() < 0.5
    assert np.median(rows["parallax"][giants]) < np.median(rows["parallax"][~giants])
    assert (rows["parallax"] > 0).all()
    assert 2.0 < np.median(np.hypot(rows["pmra"], rows["pmdec"])) < 60.0
    assert np.abs(rows["z"]).max() < 0.003


def test_same_seed_same_sky() -> None:
    a, b = (population.draw(np.random.default_rng(4), "galaxy", 300) for _ in range(2))
    assert all(np.array_equal(a[k], b[k], equal_nan=a[k].dtype.kind == "f") for k in a)


def test_morphology_is_whole() -> None:
    rows = population.draw(np.random.default_rng(5), "galaxy", 2000)
    assert set(population.MORPHOLOGY) <= set(rows)
    disk = rows["bulge_fraction"] < 1
    assert (rows["disk_radius"][disk] > 0).all() and (rows["bulge_radius"] > 0).all()
    assert (rows["bulge_fraction"] + rows["bar_fraction"] <= 1 + 1e-6).all()
    assert ((rows["axis_ratio"] > 0) & (rows["axis_ratio"] <= 1)).all()


@pytest.mark.parametrize("kind", ["galaxy", "star", "quasar"])
def test_none_asked_none_given(kind: str) -> None:
    rows = population.draw(np.random.default_rng(6), kind, 0)
    assert all(len(v) == 0 for v in rows.values())
    assert rows["coefficients"].shape == (0, 5)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="choose one of galaxy, star, quasar"):
        population.draw(np.random.default_rng(7), "planet", 1)
