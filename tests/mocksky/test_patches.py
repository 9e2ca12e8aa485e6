import healpy as hp
import numpy as np
import pytest

from skycairn.mocksky.patches import PIXEL_ARCSEC, TIERS, Patch, Tier, brick_name, extent, in_desi


@pytest.mark.parametrize("name", TIERS)
def test_bricks_have_names_and_numbers_of_their_own_and_do_not_overlap(name):
    bricks = TIERS[name].bricks
    assert len({b.name for b in bricks}) == len({b.brickid for b in bricks}) == len(bricks)
    for a in bricks:
        assert brick_name(a.ra, a.dec) == a.name and 0 <= a.ra1 < a.ra2 <= 360
        for b in bricks:
            apart = a.ra2 <= b.ra1 or b.ra2 <= a.ra1 or a.dec2 <= b.dec1 or b.dec2 <= a.dec1
            assert a is b or apart


def test_names_are_the_surveys_own():
    assert brick_name(112.64, 22.25) == "1126p222"
    assert brick_name(95.9504132231405, 80.5) == "0959p805"
    assert brick_name(0.025, -0.03) == "0000m000"


def test_default_tier_fills_many_cells_and_the_hard_places():
    tier = TIERS["default"]
    ra, dec = np.array([(p.ra, p.dec) for p in tier.patches]).T
    assert len(tier.patches) >= 14
    assert len(set(hp.ang2pix(32, ra, dec, nest=True, lonlat=True))) >= 12
    assert dec.min() <= -89.5 and dec.max() <= 32
    corner = tier.patches[2]
    corners = [(b.ra1, b.dec1) for b in tier.bricks_of(corner)] + [(b.ra2, b.dec2) for b in tier.bricks_of(corner)]
    assert len({int(hp.ang2pix(32, *c, nest=True, lonlat=True)) for c in corners}) >= 2
    lon, lat = np.meshgrid(*[np.linspace(a, b, 41) for a, b in np.reshape(extent(tier, corner), (2, 2))])
    assert len(set(hp.ang2pix(32, lon.ravel(), lat.ravel(), nest=True, lonlat=True))) == 4
    west, east = tier.bricks_of(tier.patches[0])
    assert west.ra2 == 360 and east.ra1 == 0
    seen = [p.desi != "none" for p in tier.patches]
    assert 0.6 < np.mean(seen) < 0.9


@pytest.mark.parametrize("name", TIERS)
def test_a_160_pixel_cutout_of_any_source_of_a_brick_lies_within_its_images(name):
    for brick in TIERS[name].bricks:
        side = np.linspace(0, 1, 21)
        lon, lat = np.meshgrid(
            brick.ra1 + side * (brick.ra2 - brick.ra1), brick.dec1 + side * (brick.dec2 - brick.dec1)
        )
        x, y = brick.wcs.wcs_world2pix(lon.ravel(), lat.ravel(), 0)
        assert min(x.min(), y.min()) >= 81.4 and max(x.max(), y.max()) <= brick.width - 1 - 81.4


def test_scale_and_parity_of_the_images():
    brick = TIERS["default"].bricks[0]
    middle = (brick.width - 1) / 2
    x, y = brick.wcs.wcs_world2pix([brick.ra, brick.ra + 10 * PIXEL_ARCSEC / 3600], [brick.dec] * 2, 0)
    assert np.allclose(x, [middle, middle - 10], atol=0.01)  # East is left
    x, y = brick.wcs.wcs_world2pix([brick.ra], [brick.dec + 10 * PIXEL_ARCSEC / 3600], 0)
    assert np.allclose((x, y), [[middle], [middle + 10]], atol=1e-6)
    assert abs(brick.width - (180 / 0.262 + 164)) < 3


def test_owner_of_a_position_across_ra_0_and_at_edges():
    tier = TIERS["default"]
    patch = np.zeros(5, dtype=np.int32)
    ra, dec = np.array([359.99, 0.0, 360.0, 0.01, 0.2]), np.full(5, -1.2)
    names = [tier.bricks[i].name if i >= 0 else "" for i in tier.brick_index(ra, dec, patch)]
    assert names == ["3599m012", "0000m012", "0000m012", "0000m012", ""]


def test_half_a_patch_is_half_seen():
    tier = TIERS["default"]
    ra = np.array([200.29, 200.31, 65.0, 359.99, 0.01])
    patch = np.array([5, 5, 1, 0, 0], dtype=np.int32)
    assert list(in_desi(tier, ra, np.zeros(5), patch)) == [True, False, False, True, True]


def test_two_bricks_of_one_name_are_refused():
    tier = Tier("bad", (Patch(0, "", 10.05, 3.05),), 0.04, 1, 1, 1, 0.0, (), 1.0)
    with pytest.raises(ValueError, match="share a name"):
        _ = tier.bricks
