"""What the readers cut out of the mock sky's files is what its catalogues say: fluxes, places, seeing, masks, lines.

The default mock's figures, to a thousandth, are in docs/photometry.md; the tiny one bounds them here.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest

from skycairn.catalogs.legacyfiles import BANDS
from skycairn.pile.store import Pile


@pytest.fixture(scope="module")
def photometry() -> ModuleType:
    """benchmarks/photometry.py, which measures the same on any mock."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "photometry.py"
    spec = importlib.util.spec_from_file_location("photometry", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["photometry"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cut_outs(photometry, tiny_sky):
    return photometry.cut_outs(tiny_sky)


@pytest.fixture(scope="module")
def spectra(photometry, tiny_sky):
    return photometry.spectra(tiny_sky)


@pytest.mark.parametrize("band", BANDS)
def test_aperture_flux_of_stars_that_are_alone_is_the_catalogues(photometry, cut_outs, band):
    found = photometry.legacy_ratios(cut_outs, "star")[band]
    assert len(found.ratio) >= 4 and found.mean_error < 0.002
    assert np.median(found.ratio) == pytest.approx(1, abs=0.01)
    assert found.mean == pytest.approx(1, abs=0.005)
    assert np.abs((found.ratio - 1) / np.hypot(found.error, 0.003)).max() < 4


def test_light_is_where_dx_and_dy_put_the_source(photometry, cut_outs):
    offset, error = photometry.centroids(cut_outs)
    assert (error < 0.005).sum() >= 5
    assert np.abs(np.median(offset[error < 0.005], axis=0)).max() < 0.01
    # a neighbour's light, of 0.2 % at most, moves a centroid by some hundredths of a pixel
    assert np.abs(offset / np.hypot(error, 0.02)[:, None]).max() < 4


def test_north_is_up_and_east_is_left(photometry, cut_outs, tiny_sky):
    found = photometry.neighbours(cut_outs, pq.read_table(tiny_sky / "truth" / "sources.parquet"))
    _, _, east, north = found.T
    # every quarter of the sky about a source has a neighbour, so that no flip and no turn would pass
    assert len({(e > 0, n > 0) for e, n in zip(east, north, strict=True)}) >= 3
    assert np.abs(np.median(found[:, :2], axis=0)).max() < 0.1
    assert np.abs(found[:, :2]).max() < 1


def test_psf_fwhm_is_the_width_of_stars(photometry, cut_outs):
    found = photometry.seeing(cut_outs)
    measured = np.concatenate([found[b] for b in BANDS])
    assert len(measured) >= 10
    assert np.median(measured) == pytest.approx(1, abs=0.01)
    assert np.abs(measured - 1).max() < 0.05


def test_masked_pixels_hold_nothing_and_all_others_are_as_noisy_as_ivar_says(cut_outs):
    c = cut_outs
    assert 0 < c.mask.mean() < 0.5
    assert not c.flux[c.mask].any() and not c.ivar[c.mask].any()
    assert (c.ivar[~c.mask] > 0).all() and np.isfinite(c.flux).all()
    faint = np.argsort(c.sources["flux_r"].to_numpy())[:5]
    for b in range(len(BANDS)):
        pull = (c.flux[faint, b] * np.sqrt(c.ivar[faint, b]))[~c.mask[faint, b]]
        if len(pull):
            assert 1.4826 * np.median(np.abs(pull - np.median(pull))) == pytest.approx(1, abs=0.1)


def test_saturated_cores_and_dead_centres_are_masked_and_others_are_not(cut_outs):
    c = cut_outs
    centre = c.mask[:, :, 80, 80]
    flux = c.sources["flux_r"].to_numpy()
    dead = np.array(["no_data" in label for label in c.labels])
    assert (flux > 4000).any() and centre[flux > 4000].all()
    clean = (flux < 1000) & np.array([label == "" for label in c.labels])
    assert clean.sum() >= 5 and not centre[clean].any()
    assert not dead.any() or centre[dead].any(axis=1).all()


def test_the_piles_payload_is_what_the_reader_cut_out(cut_outs, tiny_pile):
    pile = Pile.open(tiny_pile)
    keys = cut_outs.sources["key"].to_pylist()
    seen = 0
    for entry in pile.snapshot().entries("payload.legacysurvey.image"):
        for row in pile.read_table(entry.part).to_pylist():
            if row["status"] is None and row["key"] in keys:
                i = keys.index(row["key"])
                assert np.array_equal(row["flux"], cut_outs.flux[i].ravel())
                assert np.array_equal(row["mask"], cut_outs.mask[i].ravel())
                assert 80 + row["dx"] == pytest.approx(cut_outs.x[i]) and 80 + row["dy"] == pytest.approx(cut_outs.y[i])
                seen += 1
    assert seen >= 3


def test_spectra_integrate_to_the_catalogues_flux(photometry, spectra):
    found = photometry.desi_ratios(spectra)
    for band in "gr":
        assert len(found[band].ratio) >= 3
        assert np.median(found[band].ratio) == pytest.approx(1, abs=0.02)
        assert np.abs((found[band].ratio - 1) / np.hypot(found[band].error, 0.01)).max() < 4


def test_lines_lie_where_the_redshift_puts_them(photometry, spectra):
    found = photometry.line_offsets(spectra)
    speed = np.concatenate([r.ratio for r in found.values()])
    error = np.concatenate([r.error for r in found.values()])
    assert len(speed) >= 2
    # a pixel is 30 to 65 km/s wide
    assert np.abs(speed / np.hypot(error, 10)).max() < 4


def test_xp_coefficients_calibrate_to_the_catalogues_flux(photometry, tiny_sky):
    for band, found in photometry.xp_ratios(tiny_sky).items():
        assert len(found.ratio) >= 10, band
        assert np.median(found.ratio) == pytest.approx(1, abs=0.02)
        assert np.abs(found.ratio - 1).max() < 0.04
