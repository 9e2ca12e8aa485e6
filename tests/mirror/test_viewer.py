"""The viewer on loopback: where a point source lands, and what is told of what is not there."""

import io
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from skycairn.catalogs.legacyfiles import LAYOUTS
from skycairn.catalogs.viewerimage import Asked, cut_reply
from skycairn.mirror.server import Request
from skycairn.mirror.viewer import Viewer, bilinear
from tests.catalogs.test_viewerimage import arrays, sources

DR10 = LAYOUTS["dr10"]
BRICK, RA, DEC, WIDTH, SCALE = "0334m055", 33.375, -5.5, 400, 0.262 / 3600
SIGMA = 2.0
"""Of the point source, in pixels."""


def grid() -> fits.Header:
    h = fits.Header()
    h.update({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": RA, "CRVAL2": DEC})
    h.update({"CRPIX1": (WIDTH + 1) / 2, "CRPIX2": (WIDTH + 1) / 2, "CD1_1": -SCALE, "CD2_2": SCALE})
    return h


def write(root: Path, x: float, y: float) -> tuple[float, float]:
    """A sky of one brick with a Gaussian at this pixel in g, r, i; no z. Its position."""
    limits = {"BRICKNAME": [BRICK], "RA1": [RA - 0.02], "RA2": [RA + 0.02], "DEC1": [DEC - 0.02], "DEC2": [DEC + 0.02]}
    Table(limits).write(root / DR10.bricks, overwrite=True)
    rows, columns = np.indices((WIDTH, WIDTH))
    image = 1e-9 + np.exp(-0.5 * ((columns - x) ** 2 + (rows - y) ** 2) / SIGMA**2) / (2 * np.pi * SIGMA**2)
    image[:, :60] = 0  # no exposure there
    for band in "gri":
        path = root / DR10.coadd(BRICK, "image", band)
        path.parent.mkdir(parents=True, exist_ok=True)
        hdu = fits.CompImageHDU(image.astype(np.float32), grid(), quantize_level=0, compression_type="GZIP_1")
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path, overwrite=True)
    ra, dec = WCS(grid()).all_pix2world(x, y, 0)
    return float(ra), float(dec)


def ask(root: Path, asked: Asked, **changed: str) -> tuple[int, bytes]:
    query = {"ra": asked.ra, "dec": asked.dec, "layer": asked.layer, "pixscale": "0.262", "bands": asked.bands}
    query = {**query, "size": str(asked.size), **changed}
    request = Request("GET", "www.legacysurvey.org", "/viewer/fits-cutout", {k: [v] for k, v in query.items()}, {})
    reply = Viewer(root)(request)
    assert reply is not None and isinstance(reply.body, bytes)
    return reply.status, reply.body


@pytest.mark.parametrize("size", [31, 32, 160, 161])
@pytest.mark.parametrize("place", [(200.0, 200.0), (170.5, 230.5), (241.3, 149.8)])
def test_a_point_source_is_in_the_middle_for_every_parity(
    tmp_path: Path, size: int, place: tuple[float, float]
) -> None:
    ra, dec = write(tmp_path, *place)
    asked = Asked.about("ls-dr10-south", "griz", size, ra, dec)
    status, content = ask(tmp_path, asked)
    path = tmp_path / "reply.fits"
    path.write_bytes(content)
    table = cut_reply(sources((ra, dec)), {"cutout": path}, "ls-dr10-south", tuple("griz"), size)
    flux, mask = arrays(table, size)
    assert status == 200 and not mask[0, :3].any() and mask[0, 3].all()
    rows, columns = np.indices((size, size))
    for band in flux[0, :3]:
        at = [float((band * k).sum() / band.sum()) for k in (columns, rows)]
        assert at == pytest.approx([(size - 1) / 2] * 2, abs=0.01)
        told = [size // 2 + table.column(n)[0].as_py() for n in ("dx", "dy")]
        assert at == pytest.approx(told, abs=0.01) and max(abs(np.array(at) - size // 2)) <= 0.51
        assert band.sum() == pytest.approx(1.0, abs=0.01)


def test_no_data_is_zero_and_the_same_question_has_the_same_reply(tmp_path: Path) -> None:
    ra, dec = write(tmp_path, 70.0, 200.0)
    asked = Asked.about("ls-dr10-south", "griz", 64, ra, dec)
    content = ask(tmp_path, asked)[1]
    assert content == ask(tmp_path, asked)[1]
    with fits.open(io.BytesIO(content)) as hdus:
        flux = hdus[0].data
        assert hdus[0].header["BANDS"] == "griz" and hdus[0].header["BAND3"] == "z"
    assert flux.shape == (4, 64, 64) and (flux[3] == 0).all()
    assert (flux[:3, :, :21] == 0).all() and (flux[:3, :, 23:] != 0).all()
    far = Asked.about("ls-dr10-south", "gr", 8, ra + 10, dec)
    with fits.open(io.BytesIO(ask(tmp_path, far)[1])) as hdus:
        assert hdus[0].data.shape == (2, 8, 8) and (hdus[0].data == 0).all()
    with fits.open(io.BytesIO(ask(tmp_path, asked, size="600")[1])) as hdus:
        assert hdus[0].data.shape == (4, 512, 512)


def test_what_it_does_not_know_it_refuses(tmp_path: Path) -> None:
    asked = Asked.about("ls-dr10-south", "griz", 64, RA, DEC)
    for changed in ({"layer": "ls-dr9-north"}, {"bands": "grizy"}, {"size": "x"}, {"ra": "here"}):
        assert ask(tmp_path, asked, **changed)[0] == 400
    assert Viewer(tmp_path)(Request("GET", "h", "/viewer/jpeg-cutout", {}, {})) is None


def test_between_pixels() -> None:
    image = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    x, y = np.array([0.0, 1.5, 2.25, -0.1, 3.0]), np.array([0.0, 0.5, 1.0, 0.0, 0.0])
    np.testing.assert_allclose(bilinear(image, x, y), [1, 4.5, 7.25, 0, 0])
    image[0, 1] = 0
    np.testing.assert_allclose(bilinear(image, x, y), [0, 0, 7.25, 0, 0])
