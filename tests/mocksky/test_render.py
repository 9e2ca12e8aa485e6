import galsim
import numpy as np
import pytest

from skycairn.mocksky import morphology, render
from skycairn.mocksky.patches import PIXEL_ARCSEC, tangent

FWHM = np.array([1.3, 1.2, 1.15, 1.1])
UPRIGHT = render.Place(63.3, 64.6, (0.0, 1.0), (-1.0, 0.0))


def galaxy(**changes):
    row = {name: 0.0 for name in ("bulge_fraction", "bulge_n", "bulge_radius", "disk_radius", "bar_fraction")}
    row |= {name: 0.0 for name in ("bar_radius", "bar_angle", "arm_amplitude", "n_arms", "arm_pitch", "arm_phase")}
    return row | {"kind": "galaxy", "uid": 7, "axis_ratio": 1.0, "bar_axis_ratio": 1.0, "position_angle": 0.0} | changes


SPIRAL = galaxy(
    bulge_fraction=0.2,
    bulge_n=2.0,
    bulge_radius=0.7,
    disk_radius=3.0,
    axis_ratio=0.7,
    position_angle=30.0,
    bar_fraction=0.15,
    bar_radius=1.4,
    bar_axis_ratio=0.3,
    bar_angle=40.0,
    arm_amplitude=0.8,
    n_arms=2,
    arm_pitch=20.0,
    arm_phase=1.0,
)


def table(*rows):
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def drawn(row, place=UPRIGHT, flux=(10.0, 10.0, 10.0, 10.0), size=128):
    """The stamp's four bands on a grid of 128 x 128."""
    stamp, x0, y0 = render.stamp(row, place, morphology.shares(table(row))[0], np.array(flux), FWHM, size)
    return np.roll(stamp, (y0, x0), axis=(1, 2))


def peer(profile, row):
    """GalSim's picture of the same."""
    profile = (
        profile.transform(1, 0, 0, row["axis_ratio"]).withFlux(10).rotate((90 + row["position_angle"]) * galsim.degrees)
    )
    seen = galsim.Convolve(profile, galsim.Moffat(beta=3, fwhm=FWHM[1]))
    middle = 63.5
    return seen.drawImage(nx=128, ny=128, scale=PIXEL_ARCSEC, offset=(UPRIGHT.x - middle, UPRIGHT.y - middle)).array


@pytest.mark.parametrize(
    "n, radius, q, angle", [(4, 0.8, 0.6, 120), (4, 0.3, 0.9, 10), (1, 0.6, 0.7, 60), (2, 1.2, 0.5, 45)]
)
def test_bulge_is_galsims(n, radius, q, angle):
    row = galaxy(bulge_fraction=1.0, bulge_n=n, bulge_radius=radius, axis_ratio=q, position_angle=angle)
    theirs = peer(galsim.Sersic(n, half_light_radius=radius, trunc=8 * radius, flux_untruncated=True), row)
    assert np.abs(drawn(row)[1] - theirs).sum() < 0.01 * 10
    assert drawn(row)[1].max() == pytest.approx(theirs.max(), rel=0.005)


def test_disk_is_galsims():
    row = galaxy(disk_radius=1.5, axis_ratio=0.4, position_angle=30)
    theirs = peer(galsim.Exponential(half_light_radius=1.5), row)
    assert np.abs(drawn(row)[1] - theirs).sum() < 0.005 * 10
    wrong = drawn(galaxy(disk_radius=1.5, axis_ratio=0.4, position_angle=-30))[1]
    assert np.abs(wrong - theirs).sum() > 0.1 * 10


def test_flux_is_kept_in_every_band_whatever_the_components():
    flux = np.array([3.0, 5.0, 8.0, 9.0])
    assert np.allclose(drawn(SPIRAL, flux=flux, size=128).sum(axis=(1, 2)), flux, rtol=1e-4)
    assert np.allclose(morphology.shares(table(SPIRAL)).sum(axis=1), 1)


def test_bulge_is_redder_and_arms_are_bluer_than_the_disk():
    share = morphology.shares(table(SPIRAL))[0]
    to_disk = share / share[1]
    assert to_disk[0, 3] > to_disk[0, 0] and to_disk[2, 3] > to_disk[2, 0] and to_disk[3, 3] < to_disk[3, 0]


@pytest.mark.parametrize("x, y", [(63.0, 64.0), (63.3, 64.6), (62.5, 64.5), (63.999, 64.001)])
def test_centre_is_where_it_was_put(x, y):
    image = drawn(galaxy(disk_radius=1.0), render.Place(x, y, (0.0, 1.0), (-1.0, 0.0)))[1]
    ys, xs = np.mgrid[:128, :128]
    assert (image * xs).sum() / image.sum() == pytest.approx(x, abs=0.01)
    assert (image * ys).sum() / image.sum() == pytest.approx(y, abs=0.01)


def test_position_angle_is_east_of_north_on_the_image():
    # East is left: an angle of 45 degrees leans to the upper left
    image = drawn(galaxy(disk_radius=2.0, axis_ratio=0.3, position_angle=45.0))[1]
    ys, xs = np.mgrid[:128, :128]
    assert (image * (xs - 63.3) * (ys - 64.6)).sum() < 0


def test_field_turns_near_the_pole():
    wcs = tangent(65.0, -89.5, 851)
    (place,) = render.places(wcs, np.array([67.5]), np.array([-89.5]))
    # 2.5 degrees of RA beside the pole turn North by as much; East is at right angles
    assert np.degrees(np.arctan2(*place.north)) == pytest.approx(-2.5, abs=0.05) or np.degrees(
        np.arctan2(*place.north)
    ) == pytest.approx(2.5, abs=0.05)
    x, y = wcs.wcs_world2pix([67.6], [-89.5], 0)
    step = np.array([x[0] - place.x, y[0] - place.y])
    assert step @ np.array(place.east) == pytest.approx(np.hypot(*step), rel=1e-3)


def scene(*rows, ra, dec, flux, mask_above=0.01):
    wcs, many = tangent(10.0, 0.0, 300), table(*rows)
    many |= {f"flux_{b}": np.full(len(rows), flux) for b in "griz"}
    return render.paint(many, np.array(ra), np.array(dec), wcs, 300, FWHM, mask_above)


def test_aperture_holds_the_flux_of_an_isolated_source():
    out = scene(SPIRAL, ra=[10.001], dec=[-0.001], flux=20.0)
    ys, xs = np.mgrid[:300, :300]
    x, y = tangent(10.0, 0.0, 300).wcs_world2pix([10.001], [-0.001], 0)
    aperture = np.hypot(xs - x, ys - y) < (5 * 3.0 + 7) / PIXEL_ARCSEC
    assert np.allclose(out.image[:, aperture].sum(axis=1), 20.0, rtol=0.01)


def test_source_beyond_the_edge_still_shines_in():
    star = galaxy() | {"kind": "star"}
    edge = 150.5 * PIXEL_ARCSEC / 3600
    out = scene(star, ra=[10.0 - edge], dec=[0.0], flux=100.0)
    assert out.image[1, :, -1].max() > 1 and out.image[1, :, 0].max() < 1e-3
    assert not out.label.any()


def test_truth_masks_show_bulge_bar_arms_and_disk_where_they_are():
    out = scene(SPIRAL, ra=[10.0], dec=[0.0], flux=60.0)
    assert out.label[149, 149] in (1, 3) and set(np.unique(out.label)) == {0, 1, 2, 3, 4}
    assert set(np.unique(out.owner)) == {0, 7} and np.array_equal(out.owner > 0, out.label > 0)
    # two arms, opposite each other
    ys, xs = np.nonzero(out.label == 4)
    assert out.label[299 - ys, 299 - xs].tolist().count(4) > 0.9 * len(xs)
    ys, xs = np.nonzero(out.label)
    assert np.hypot(xs - 149.5, ys - 149.5).max() < 10 / PIXEL_ARCSEC


def test_types_follow_truth():
    elliptical = galaxy(bulge_fraction=1.0, bulge_n=4.0, bulge_radius=2.0)
    disk = galaxy(disk_radius=2.0)
    mixed = galaxy(bulge_fraction=0.5, bulge_n=4.0, bulge_radius=1.0, disk_radius=2.0)
    rows = table(elliptical, disk, mixed, disk, galaxy() | {"kind": "star"}, galaxy(disk_radius=0.05))
    signal = np.array([100.0, 100, 100, 10, 100, 100])
    assert list(morphology.catalogue_type(rows, signal)) == ["DEV", "EXP", "SER", "REX", "PSF", "PSF"]


def test_ellipticity_goes_back_to_axis_ratio_and_angle():
    e1, e2 = morphology.ellipticity(np.array([0.5]), np.array([30.0]))
    e = np.hypot(e1, e2)
    assert (1 - e) / (1 + e) == pytest.approx(0.5) and np.degrees(np.arctan2(e2, e1) / 2) == pytest.approx(30)
