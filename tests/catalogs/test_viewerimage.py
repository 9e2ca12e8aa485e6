"""Cut-outs of the viewer: what is asked, what is checked of a reply, and that nothing is made up that it lacks."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits

from skycairn.catalogs.legacysurvey import LegacySurvey
from skycairn.catalogs.registry import survey
from skycairn.catalogs.viewerimage import Asked, cut_reply, read_reply, schema

RA, DEC, SIZE = 33.3, -5.5, 16
LAYER = "ls-dr10-south"
ASKED = Asked.about(LAYER, "griz", SIZE, RA, DEC)


def header(**changed: Any) -> fits.Header:
    """As the viewer writes it."""
    size, scale = changed.pop("size", SIZE), changed.pop("scale", 0.262) / 3600
    h = fits.Header()
    h.update({"SURVEY": "LegacySurvey", "VERSION": "DR10", "IMAGETYP": "IMAGE", "BANDS": "griz"})
    h.update({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": RA, "CRVAL2": DEC})
    h.update({"CRPIX1": (size + 1) / 2, "CRPIX2": (size + 1) / 2})
    h.update({"CD1_1": -scale, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": scale, "IMAGEW": size, "IMAGEH": size})
    h.update(changed)
    return h


def write(path: Path, flux: np.ndarray | None = None, **changed: Any) -> Path:
    size = changed.get("size", SIZE)
    flux = np.ones((4, size, size), np.float32) if flux is None else flux
    fits.PrimaryHDU(flux, header(**changed)).writeto(path, overwrite=True)
    return path


def sources(*positions: tuple[float, float]) -> pa.Table:
    ra, dec = zip(*positions, strict=True)
    return pa.table({"key": pa.array(range(7, 7 + len(positions)), pa.int64()), "ra": ra, "dec": dec})


def arrays(table: pa.Table, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    flux, mask = (np.array(table.column(n).to_pylist()).reshape(-1, 4, size, size) for n in ("flux", "mask"))
    return flux, mask


def cut(path: Path, *positions: tuple[float, float], size: int = SIZE) -> pa.Table:
    return cut_reply(sources(*(positions or ((RA, DEC),))), {"cutout": path}, LAYER, tuple("griz"), size)


def test_a_path_tells_the_whole_question() -> None:
    assert ASKED.path == "viewer/ls-dr10-south/griz-16/cutout-33.3000000-5.5000000.fits"
    assert Asked.of(ASKED.path) == ASKED
    for ra, text in ((0.0, "0.0000000"), (359.99999999, "0.0000000"), (-0.25, "359.7500000")):
        assert Asked.about(LAYER, "grz", 8, ra, 0.0).ra == text
    for path in ("viewer/x.fits", ASKED.path.replace("-5.5", "5.5"), ASKED.path + ".gz", "../" + ASKED.path):
        with pytest.raises(ValueError, match="is no path of a cut-out"):
            Asked.of(path)


@pytest.mark.parametrize("size", [15, 16, 160, 161])
def test_the_source_is_in_the_middle_for_every_parity(tmp_path: Path, size: int) -> None:
    table = cut(write(tmp_path / "a.fits", size=size), size=size)
    assert table.schema.equals(schema(size), check_metadata=True)
    for name in ("dx", "dy"):
        # between two pixels where the size is even
        assert table.column(name).to_pylist() == pytest.approx([0.0 if size % 2 else -0.5], abs=1e-3)
        assert abs(size // 2 + table.column(name)[0].as_py() - (size - 1) / 2) <= 0.5


def test_no_ivar_is_made_up() -> None:
    assert schema(SIZE).names == ["key", "status", "flux", "mask", "dx", "dy"]
    told = schema(SIZE).field("flux").metadata
    assert told[b"about"] == b"resampled, no ivar" and told[b"shape"] == b"4,16,16" and told[b"bands"] == b"g,r,i,z"


def test_bands_go_to_their_places_and_what_is_not_data_is_masked(tmp_path: Path) -> None:
    flux = np.stack([np.full((SIZE, SIZE), v, np.float32) for v in (3, 1, 2)])  # z, g, r
    flux[0, 0, 0], flux[1, 2, 3], flux[2, :] = np.nan, np.inf, 0
    path = write(tmp_path / "a.fits", flux, BANDS="zgr")
    table = cut_reply(sources((RA, DEC)), {"cutout": path}, LAYER, tuple("grz"), SIZE)
    got, mask = arrays(table)
    assert mask[0, 2].all() and mask[0, 1].all()  # no i band; r is all zeros
    assert mask[0, 3].sum() == 1 and mask[0, 3, 0, 0] and mask[0, 0].sum() == 1 and mask[0, 0, 2, 3]
    assert (got[mask] == 0).all() and (got[0, 0][~mask[0, 0]] == 1).all() and (got[0, 3][~mask[0, 3]] == 3).all()
    assert table.column("status").null_count == 1


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_reply_without_data_is_not_measured(tmp_path: Path, value: float) -> None:
    table = cut(write(tmp_path / "a.fits", np.full((4, SIZE, SIZE), value, np.float32)))
    assert table.column("status").to_pylist() == ["not_measured"]
    assert table.column("flux").null_count == table.column("mask").null_count == table.column("dx").null_count == 1


def test_a_reply_that_is_not_there_is_no_measurement() -> None:
    table = cut_reply(sources((RA, DEC), (RA, DEC)), {}, LAYER, tuple("griz"), SIZE)
    assert table.column("status").to_pylist() == ["file_absent"] * 2
    assert table.schema.equals(schema(SIZE), check_metadata=True)


DEG = 1 / 3600


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scale": 0.27}, "a pixel is .* wanted 0.262, north up, east left"),
        ({"CD1_1": 0.262 * DEG}, "north up, east left"),
        ({"CD1_2": 0.01 * DEG}, "north up, east left"),
        ({"CRVAL2": DEC + 0.6 * 0.262 * DEG}, r"-0.60 pixels off the middle.*another source"),
        ({"CRVAL1": RA + 1.0}, "off the middle"),
        ({"CRVAL1": RA + 180.0}, "nan"),
        ({"CRPIX1": SIZE / 2 - 1}, "off the middle"),
        ({"CTYPE1": "RA---SIN", "CTYPE2": "DEC--SIN"}, "wanted RA---TAN"),
        ({"BANDS": "grzi"}, None),
        ({"BANDS": "griy"}, "bands 'griy', wanted .*'griz'"),
        ({"BANDS": "grz"}, "bands 'grz'"),
    ],
)
def test_another_reply_than_was_asked_for_is_refused(tmp_path: Path, changed: dict[str, Any], message: Any) -> None:
    path = write(tmp_path / "reply.fits", **changed)
    if message is None:
        assert cut(path).column("status").null_count == 1
        return
    with pytest.raises(ValueError, match=message) as told:
        cut(path)
    assert str(path) in str(told.value)


@pytest.mark.parametrize("shape", [(3, 16, 16), (4, 16, 15), (16, 16), (1, 4, 16, 16), (4, 160, 160)])
def test_another_size_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = write(tmp_path / "reply.fits", np.ones(shape, np.float32))
    with pytest.raises(ValueError, match=r"is of shape|holds no image") as told:
        cut(path)
    assert str(path) in str(told.value)


def test_real_replies(real_data: Path) -> None:
    """A cube of 2021 is as is assumed here; one of 0.13 arcsec a pixel is refused; zeros are where it had no data."""
    folder = real_data / "legacysurvey/viewer-cutouts"
    path = folder / "astroclip_test_image_357.9087_-54.8817.fits"
    made = LegacySurvey("dr9-south", pixels="cutout", cutout_pixels=256)
    table = made.extract("legacysurvey.viewer_image", sources((357.9087, -54.8817)), {"cutout": path}, frozenset())
    flux, mask = arrays(table, 256)
    with fits.open(path) as hdus:
        np.testing.assert_array_equal(flux[0, [0, 1, 3]], hdus[0].data)
    assert mask[0, 2].all() and not mask[0, [0, 1, 3]].any()
    assert table.column("dx").to_pylist() == pytest.approx([-0.5], abs=1e-3)
    with pytest.raises(ValueError, match="off the middle"):
        made.extract("legacysurvey.viewer_image", sources((357.9088, -54.8817)), {"cutout": path}, frozenset())
    name = "gz-decals/example_bad_pix_DR3_147.4567_1.0926.fits"
    with pytest.raises(ValueError, match=r"bad_pix.*a pixel is \[-0.1302"):
        read_reply(folder / name, Asked.about("ls-dr9-south", "grz", 424, 147.456742041, 1.09255093644))


# the survey


def test_pixels_are_of_coadds_unless_it_is_asked_for_cutouts() -> None:
    plain, asked = LegacySurvey("dr10"), survey("legacysurvey", "dr10", pixels="cutout", cutout_pixels=96)
    assert "pixels" not in plain.options and plain.options == LegacySurvey("dr10", pixels="coadd").options
    assert asked.options["pixels"] == "cutout"
    payload = {s.cutouts: [m for m in s.modalities if m.payload] for s in (plain, asked)}
    assert [m.name for m in payload[False]] == ["legacysurvey.image"]
    (m,) = payload[True]
    assert m.name == "legacysurvey.viewer_image" and m.flag == "resampled, no ivar"
    assert m.token_key == "tok_legacysurvey_viewer_image" and m.codec == "image_uniform" and m.shape == (4, 96, 96)
    assert plain.modalities[1:] == asked.modalities[1:] and not any(m.flag for m in plain.modalities)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pixels": "cutouts"}, "choose 'coadd' or 'cutout'"),
        ({"pixels": "cutout", "cutout_pixels": 513}, "makes 512 at most"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LegacySurvey("dr10", **options)
    with pytest.raises(ValueError, match="pixels"):
        survey("legacysurvey", "mmu-dr10-south-21", pixels="cutout")


def test_one_file_a_position() -> None:
    made = LegacySurvey("dr9-north", pixels="cutout")
    table = sources((10.0, 40.0), (9.0, 40.0), (10.0, 40.0)).append_column("brickname", pa.array(["0100p400"] * 3))
    groups = made.payload_groups(table, "legacysurvey.viewer_image", {})
    assert [g.rows.tolist() for g in groups] == [[0, 2], [1]]
    (file,) = groups[0].files.values()
    assert file.path == "viewer/ls-dr9-north/grz-160/cutout-10.0000000+40.0000000.fits" and file.checksum_list is None
    with pytest.raises(ValueError, match=r"has no modality 'legacysurvey\.image'"):
        made.payload_groups(table, "legacysurvey.image", {})
