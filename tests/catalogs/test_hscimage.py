"""Cut-outs of coadds written for the purpose, in the archive's form: what is masked, joined, padded and missing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import given
from hypothesis import strategies as st

from skycairn.catalogs import cutout
from skycairn.catalogs.fitsfile import opened
from skycairn.catalogs.hscimage import Calexp, calexp, cut_patch, nanomaggies, role, schema, seeing, shift

SCALE, RA0, DEC0 = 0.168 / 3600, 150.2479338843, 2.2314049586777
SHAPE, OVERLAP, SIZE = (100, 110), 6, 16
STEP = SHAPE[1] - 2 * OVERLAP, SHAPE[0] - 2 * OVERLAP
BITS = {"BAD": 0, "SAT": 1, "INTRP": 2, "CR": 3, "EDGE": 4, "NO_DATA": 8, "BRIGHT_OBJECT": 9}
FACTOR = 10 ** (0.4 * (22.5 - 27.0))


def header(p1: int = 0, p2: int = 0) -> fits.Header:
    """Of patch (p1, p2): the tract's pixel (0, 0) is the first pixel of patch 0,0."""
    h = fits.Header()
    h.update({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": RA0, "CRVAL2": DEC0, "CUNIT1": "deg"})
    h.update({"CRPIX1": 141.0 - p1 * STEP[0], "CRPIX2": 133.0 - p2 * STEP[1], "CUNIT2": "deg"})
    h.update({"CD1_1": -SCALE, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": SCALE})
    return h


def at(x: float, y: float) -> tuple[float, float]:
    """Position of a 0-based pixel of the tract, by the formula of the tangent plane."""
    xi, eta = np.radians(-(x + 1 - 141.0) * SCALE), np.radians((y + 1 - 133.0) * SCALE)
    down = np.cos(np.radians(DEC0)) - eta * np.sin(np.radians(DEC0))
    up = np.sin(np.radians(DEC0)) + eta * np.cos(np.radians(DEC0))
    return RA0 + np.degrees(np.arctan2(xi, down)), float(np.degrees(np.arctan2(up, np.hypot(xi, down))))


def sources(*pixels: tuple[float, float], **columns: Any) -> pa.Table:
    ra, dec = zip(*(at(*p) for p in pixels), strict=True)
    keys = pa.array(range(7, 7 + len(pixels)), pa.int64())
    # no visit counted, so that a band without a file is a fact
    visits = {f"{b}_inputcount_value": pa.array([0] * len(pixels), pa.int32()) for b in "grizy"}
    return pa.table({"key": keys, "ra": ra, "dec": dec, **visits, **columns})


def sky(p1: int, p2: int) -> np.ndarray:
    """Counts that name their own pixel of the tract."""
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return (columns + p1 * STEP[0] + 1000 * (rows + p2 * STEP[1])).astype(np.float32)


def write(
    path: Path,
    p1: int = 0,
    p2: int = 0,
    image: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    variance: np.ndarray | None = None,
    bits: Mapping[str, Any] = BITS,
    fluxmag0: float | None = 10 ** (27 / 2.5),
    named: bool = True,
    compressed: bool = False,
    **changed: Any,
) -> Path:
    image = sky(p1, p2) if image is None else image
    mask = np.zeros(image.shape, np.int32) if mask is None else mask
    variance = np.full(image.shape, 4.0, np.float32) if variance is None else variance
    primary = fits.PrimaryHDU()
    if fluxmag0 is not None:
        primary.header["FLUXMAG0"] = fluxmag0
    hdus: list[Any] = [primary]
    for name, data in (("IMAGE", image), ("MASK", mask), ("VARIANCE", variance)):
        h = header(p1, p2)
        h.update(changed)
        if name == "MASK":
            for plane, bit in bits.items():
                h[f"HIERARCH MP_{plane}"] = bit
        if compressed:
            how = (
                {"compression_type": "GZIP_2", "quantize_level": 0}
                if name != "MASK"
                else {"compression_type": "RICE_1"}
            )
            hdus.append(fits.CompImageHDU(data, h, name=name if named else "", **how))
        else:
            hdus.append(fits.ImageHDU(data, h, name=name if named else ""))
    hdus.append(fits.BinTableHDU.from_columns([fits.Column("id", "J", array=np.arange(3))]))
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return path


def patch(folder: Path, bands: str = "grizy", p1: int = 0, p2: int = 0, **changed: Any) -> dict[str, Path]:
    return {role(b): write(folder / f"calexp-{b}-{p1},{p2}.fits", p1, p2, **changed) for b in bands}


def arrays(table: pa.Table, size: int = SIZE) -> dict[str, np.ndarray]:
    return {
        n: np.array(table.column(n).to_pylist(), dtype=bool if n == "mask" else float).reshape(-1, 5, size, size)
        for n in ("flux", "ivar", "mask")
    }


NONE: frozenset[str] = frozenset()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_counts_become_nanomaggies_about_the_source(tmp_path: Path, compressed: bool, named: bool) -> None:
    files = patch(tmp_path, compressed=compressed, named=named)
    out = cut_patch(sources((60.3, 50.0), (70.0, 33.4)), files, NONE, SIZE)
    assert out.schema.equals(schema(SIZE), check_metadata=True)
    assert out.column("status").null_count == 2
    got = arrays(out)
    for row, (x, y) in enumerate([(60, 50), (70, 33)]):
        want = sky(0, 0)[y - 8 : y + 8, x - 8 : x + 8] / 63.095734
        np.testing.assert_allclose(got["flux"][row], np.broadcast_to(want, (5, 16, 16)), rtol=1e-6)
    np.testing.assert_allclose(got["ivar"], 63.095734**2 / 4, rtol=1e-6)
    assert not got["mask"].any()
    np.testing.assert_allclose(out.column("dx").to_pylist(), [0.3, 0.0], atol=1e-4)
    np.testing.assert_allclose(out.column("dy").to_pylist(), [0.0, 0.4], atol=1e-4)


@pytest.mark.parametrize("size", [15, 16])
@pytest.mark.parametrize(("x", "y"), [(40, 40), (41, 40), (40, 41), (41, 41), (0, 0), (109, 99)])
def test_a_source_of_one_pixel_is_in_the_middle_pixel(tmp_path: Path, size: int, x: int, y: int) -> None:
    image = np.zeros(SHAPE, np.float32)
    image[y, x] = 1000
    got = arrays(cut_patch(sources((x, y)), patch(tmp_path, image=image), NONE, size), size)
    for band in range(5):
        assert np.unravel_index(np.argmax(got["flux"][0, band]), (size, size)) == (size // 2, size // 2)
        assert got["flux"][0, band].sum() == pytest.approx(1000 * FACTOR, rel=1e-6)


@given(
    st.floats(-1e6, 1e6),
    st.floats(1e-6, 1e6),
    st.sampled_from([27.0, 22.5, 31.4, 25.3]),
)
def test_inverse_variance_scales_with_the_inverse_square(counts: float, variance: float, zero_point: float) -> None:
    flux, ivar, mask = nanomaggies(np.array([counts]), np.array([variance]), np.array([False]), zero_point)
    scale = 10 ** ((22.5 - zero_point) / 2.5)
    assert not mask[0]
    assert flux[0] == pytest.approx(counts * scale, rel=1e-6, abs=1e-30)
    assert ivar[0] == pytest.approx(1 / (variance * scale * scale), rel=1e-6)
    np.testing.assert_allclose(flux[0] ** 2 * ivar[0], counts**2 / variance, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("variance", [0.0, -0.0, -4.0, np.nan, np.inf, -np.inf, 1e-45])
def test_no_variance_is_masked_with_zeros(variance: float) -> None:
    flux, ivar, mask = nanomaggies(
        np.array([5, 5], "f4"), np.array([variance, 4], "f4"), np.array([False, False]), 27.0
    )
    assert mask.tolist() == [True, False] and flux[0] == 0 and ivar[0] == 0 and ivar[1] > 0


@pytest.mark.parametrize("counts", [np.nan, np.inf, -np.inf])
def test_no_flux_is_masked_and_negative_flux_is_kept(counts: float) -> None:
    flux, ivar, mask = nanomaggies(np.array([counts, -3.0]), np.array([1.0, 1.0]), np.array([False, False]), 22.5)
    assert mask.tolist() == [True, False] and flux.tolist() == [0, -3] and ivar.tolist() == [0, 1]


@pytest.mark.parametrize("bits", [BITS, {"NO_DATA": 0, "CR": 1, "SAT": 31, "BRIGHT_OBJECT": 2, "EDGE": 3, "BAD": 17}])
@pytest.mark.parametrize("compressed", [False, True])
def test_planes_are_those_of_the_files_own_keys(tmp_path: Path, bits: dict[str, int], compressed: bool) -> None:
    mask = np.zeros(SHAPE, np.int64)
    for i, bit in enumerate(bits.values()):
        mask[50, 55 + i] = 1 << bit
    mask = mask.astype(np.uint32).view(np.int32)
    files = patch(tmp_path, bits=bits, mask=mask, compressed=compressed)
    got = arrays(cut_patch(sources((60, 50)), files, NONE, SIZE))["mask"][0]
    for i, plane in enumerate(bits):
        assert (got[:, 8, 3 + i] == (plane in ("BAD", "SAT", "NO_DATA"))).all(), plane
    assert got.sum() == 15
    got = arrays(cut_patch(sources((60, 50)), files, NONE, SIZE, planes=("CR",)))["mask"][0]
    assert got.sum() == 5 and got[:, 8, 3 + list(bits).index("CR")].all()


def test_planes_of_each_band_are_its_own(tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, np.int32)
    mask[50, 60] = 1
    files = patch(tmp_path, mask=mask)
    files["HSC-I"] = write(tmp_path / "i.fits", mask=mask, bits={"CR": 0, "BAD": 5})
    got = arrays(cut_patch(sources((60, 50)), files, NONE, SIZE))["mask"][0]
    assert got[:, 8, 8].tolist() == [True, True, False, True, True]


@pytest.mark.parametrize(
    ("bits", "message"),
    [({}, r"names no plane \(MP_"), ({"BAD": 32}, "MP_BAD is 32, wanted"), ({"SAT": 1.5}, "MP_SAT is 1.5, wanted")],
)
def test_planes_that_cannot_be_read_are_refused(tmp_path: Path, bits: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"calexp-g-0,0.fits: .*{message}"):
        cut_patch(sources((60, 50)), patch(tmp_path, bits=bits), NONE, SIZE)


def test_the_zero_point_is_the_files_own_then_the_units_then_the_setting(tmp_path: Path) -> None:
    want = {
        "g": ({"fluxmag0": 10 ** (25.5 / 2.5)}, 25.5),
        "r": ({"fluxmag0": None}, 26.0),
        "i": ({"fluxmag0": None, "BUNIT": "nJy"}, 31.4),
        "z": ({"fluxmag0": None, "FLUXMAG0": 10 ** (24 / 2.5)}, 24.0),
        "y": ({"fluxmag0": 10 ** (27 / 2.5), "BUNIT": "nJy"}, 27.0),
    }
    files = {role(b): write(tmp_path / f"{b}.fits", **how) for b, (how, _) in want.items()}  # type: ignore[arg-type]
    got = arrays(cut_patch(sources((60, 50)), files, NONE, SIZE, zero_point=26.0))
    for i, (_, zero_point) in enumerate(want.values()):
        scale = 10 ** (0.4 * (22.5 - zero_point))
        assert got["flux"][0, i, 8, 8] == pytest.approx(50060 * scale, rel=1e-6)
        assert got["ivar"][0, i, 8, 8] == pytest.approx(1 / (4 * scale**2), rel=1e-6)
    with pytest.raises(ValueError, match=r"g.fits: FLUXMAG0 is 0.0, wanted"):
        cut_patch(sources((60, 50)), {"HSC-G": write(tmp_path / "g.fits", fluxmag0=0.0)}, NONE, SIZE)


def around(folder: Path, p1: int, p2: int, only: set[tuple[int, int]] | None = None, **changed: Any) -> dict[str, Path]:
    """All bands of a patch and of its neighbours within a tract of 3 x 3 patches."""
    files = {}
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            if 0 <= p1 + dx < 3 and 0 <= p2 + dy < 3 and (only is None or (dx, dy) in only):
                for b in "grizy":
                    path = folder / f"calexp-{b}-{p1 + dx},{p2 + dy}.fits"
                    files[role(b, dx, dy)] = write(path, p1 + dx, p2 + dy, **changed)
    return files


@pytest.mark.parametrize("x", [STEP[0], STEP[0] + 5, STEP[0] + 50, 2 * STEP[0] + 5])
@pytest.mark.parametrize("y", [STEP[1] + 3, STEP[1] + 50, 2 * STEP[1] + 7])
def test_neighbours_of_the_tract_are_joined(tmp_path: Path, x: int, y: int) -> None:
    """A source within patch 1,1 has all its pixels, whichever patches hold them; each in its place."""
    got = arrays(cut_patch(sources((x, y)), around(tmp_path, 1, 1), NONE, SIZE))
    rows, columns = np.mgrid[y - 8 : y + 8, x - 8 : x + 8]
    assert not got["mask"].any()
    want = np.broadcast_to((columns + 1000 * rows) * FACTOR, (5, 16, 16))
    np.testing.assert_allclose(got["flux"][0], want, rtol=1e-6)


def test_a_source_of_one_pixel_across_the_border(tmp_path: Path) -> None:
    image, beside = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    image[50, 108] = beside[50, 108 - STEP[0]] = 500  # both have it; it is the same light
    files = {role(b): write(tmp_path / f"{b}.fits", 0, 0, image=image) for b in "grizy"}
    files |= {role(b, 1, 0): write(tmp_path / f"{b}1.fits", 1, 0, image=beside) for b in "grizy"}
    got = arrays(cut_patch(sources((108, 50)), files, NONE, SIZE))
    assert (got["flux"][0, :, 8, 8] > 0).all() and not got["mask"].any()
    np.testing.assert_allclose(got["flux"].sum(axis=(2, 3)), 500 * FACTOR, rtol=1e-6)


def test_the_owner_wins_and_neighbours_fill_only_beyond_its_edge(tmp_path: Path) -> None:
    own = np.ones(SHAPE, np.float32)
    bad = np.zeros(SHAPE, np.int32)
    bad[50, 107] = 1
    files = {role(b): write(tmp_path / f"{b}.fits", 0, 0, image=own, mask=bad) for b in "grizy"}
    files |= {role(b, 1, 0): write(tmp_path / f"{b}1.fits", 1, 0, image=2 * own) for b in "grizy"}
    got = arrays(cut_patch(sources((105, 50)), files, NONE, SIZE))
    edge = SHAPE[1] - (105 - 8)
    assert got["mask"].sum() == 5 and got["mask"][0, :, 8, 10].all(), "a bad pixel of the owner's stays bad"
    good = ~got["mask"][0, 0]
    np.testing.assert_allclose(got["flux"][0, 0][:, :edge][good[:, :edge]], FACTOR, rtol=1e-6)
    np.testing.assert_allclose(got["flux"][0, 0][:, edge:], 2 * FACTOR, rtol=1e-6)


def test_the_tracts_rim_is_padded_and_masked(tmp_path: Path) -> None:
    got = arrays(cut_patch(sources((2, 50), (50, 0)), around(tmp_path, 0, 0), NONE, SIZE))
    assert got["mask"][0, :, :, :6].all() and not got["mask"][0, :, :, 6:].any()
    assert got["mask"][1, :, :8].all() and not got["mask"][1, :, 8:].any()
    assert not got["flux"][got["mask"]].any() and not got["ivar"][got["mask"]].any()


def test_a_neighbour_that_is_not_published_is_padding_in_its_band(tmp_path: Path) -> None:
    files = around(tmp_path, 1, 1)
    del files[role("r", 1, 0)]
    x, y = 2 * STEP[0] + 8, STEP[1] + 50
    got = arrays(cut_patch(sources((x, y)), files, NONE, SIZE))
    edge = STEP[0] + SHAPE[1] - (x - 8)
    assert got["mask"][0, 1, :, edge:].all() and not got["mask"][0, 1, :, :edge].any()
    assert not got["mask"][0, [0, 2, 3, 4]].any()


def test_a_lost_neighbour_fails_those_that_need_it_alone(tmp_path: Path) -> None:
    x, y = 2 * STEP[0] + 8, STEP[1] + 50
    files = around(tmp_path, 1, 1)
    del files[role("r", 1, 0)]
    out = cut_patch(sources((x, y), (x - 40, y), (x - 90, y)), files, frozenset({role("r", 1, 0)}), SIZE)
    assert out.column("status").to_pylist() == ["file_absent", None, None]
    assert out.column("flux").null_count == 1


@pytest.mark.parametrize(
    "changed",
    [{"CRPIX1": 141.0 - STEP[0] + 0.01}, {"CRVAL1": RA0 + SCALE / 50}, {"CD1_1": -SCALE * (1 + 1e-5)}, {"CD1_2": 1e-9}],
)
def test_a_neighbour_of_another_grid_is_refused_by_name(tmp_path: Path, changed: dict[str, float]) -> None:
    files = patch(tmp_path)
    files[role("z", 1, 0)] = write(tmp_path / "beside.fits", 1, 0, **changed)
    with pytest.raises(ValueError, match=r"beside.fits: it is not on the grid of .*calexp-g-0,0.fits"):
        cut_patch(sources((105, 50)), files, NONE, SIZE)
    out = cut_patch(sources((50, 50)), files, NONE, SIZE)
    assert out.column("status").to_pylist() == [None], "it is not opened where no source needs it"


def test_a_neighbour_on_the_wrong_side_is_refused(tmp_path: Path) -> None:
    files = patch(tmp_path)
    files[role("z", 1, 0)] = write(tmp_path / "beside.fits", -1, 0)
    with pytest.raises(ValueError, match=r"beside.fits: its pixels lie \[-98, 0\] .* wanted in direction \(1, 0\)"):
        cut_patch(sources((105, 50)), files, NONE, SIZE)


def test_bands_on_two_grids_are_refused(tmp_path: Path) -> None:
    files = patch(tmp_path)
    files["HSC-R"] = write(tmp_path / "moved.fits", CRPIX1=142.0)
    with pytest.raises(ValueError, match=r"moved.fits: its pixel grid .* is not that of .*calexp-g-0,0.fits"):
        cut_patch(sources((60, 50)), files, NONE, SIZE)


def test_a_band_without_visits_is_a_fact_and_one_with_visits_must_exist(tmp_path: Path) -> None:
    files = patch(tmp_path, "grzy")
    out = cut_patch(
        sources((60, 50), (61, 50), (62, 50), i_inputcount_value=pa.array([0, 3, None], pa.int32())), files, NONE, SIZE
    )
    assert out.column("status").to_pylist() == [None, "file_absent", "file_absent"], "nobody counted a target's visits"
    mask = arrays(out.take([0]))["mask"]
    assert mask[:, 2].all() and not mask[:, [0, 1, 3, 4]].any()
    visits = pa.array([0, None], pa.int32())
    out = cut_patch(sources((60, 50), (62, 50), i_inputcount_value=visits), files, NONE, SIZE)
    assert out.column("status").to_pylist() == [None, "file_absent"], "what others have does not decide for a target"
    target = sources((62, 50)).select(["key", "ra", "dec"])
    assert cut_patch(target, {}, NONE, SIZE).column("status").to_pylist() == ["file_absent"], "no one can tell"
    assert cut_patch(target, patch(tmp_path, "grizy"), NONE, SIZE).column("status").to_pylist() == [None]


def test_a_lost_file_is_not_a_missing_band(tmp_path: Path) -> None:
    out = cut_patch(sources((60, 50), (1, 1)), patch(tmp_path, "grzy"), frozenset({"HSC-I"}), SIZE)
    assert out.column("status").to_pylist() == ["file_absent"] * 2
    assert all(out.column(n).null_count == 2 for n in ("flux", "ivar", "mask", "psf_fwhm", "dx", "dy"))


def test_nothing_at_all(tmp_path: Path) -> None:
    visits = pa.array([0, 5], pa.int32())
    out = cut_patch(sources((60, 50), (60, 50), g_inputcount_value=visits), {}, NONE, SIZE)
    assert out.column("status").to_pylist() == ["not_measured", "file_absent"]
    none = cut_patch(sources((60, 50)).slice(0, 0), patch(tmp_path), NONE, SIZE)
    assert none.num_rows == 0 and none.schema == schema(SIZE)
    far = pa.table({"key": pa.array([1, 2], pa.int64()), "ra": [RA0 + 180, RA0 + 3], "dec": [-DEC0, DEC0]})
    out = cut_patch(far, around(tmp_path, 1, 1), NONE, SIZE)
    assert out.column("status").to_pylist() == ["not_measured"] * 2, "far from the patch no neighbour is asked"


def test_many_sources_are_as_one_by_one(tmp_path: Path) -> None:
    """Beyond some number whole images are read instead of sections."""
    rng = np.random.default_rng(1)
    many = sources(*rng.uniform(0, SHAPE[1] + 60, (60, 2)).tolist())
    files = around(tmp_path, 0, 0, compressed=True)
    whole = cut_patch(many, files, NONE, SIZE)
    single = pa.concat_tables([cut_patch(many.slice(i, 1), files, NONE, SIZE) for i in range(60)])
    assert whole.equals(single.combine_chunks())


def test_seeing_is_the_gaussian_of_the_psfs_moments() -> None:
    sigma = 0.3
    moments = {f"g_sdssshape_psf_shape{m}": [v] * 1 for m, v in (("11", sigma**2), ("22", sigma**2), ("12", 0.0))}
    got = seeing(pa.table({"key": [1], **moments}))
    assert got[0, 0] == pytest.approx(2.355 * sigma, rel=1e-12) and np.isnan(got[0, 1:]).all()
    bad = [(0.1, 0.1, 0.2), (-0.1, -0.1, 0.0), (None, 0.1, 0.0), (0.0, 0.0, 0.0), (np.nan, 0.1, 0.0)]
    table = {f"r_sdssshape_psf_shape{m}": pa.array([b[i] for b in bad]) for i, m in enumerate(("11", "22", "12"))}
    assert np.isnan(seeing(pa.table(table))).all()


def test_what_is_no_calexp_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.zeros((3, 3)), name="IMAGE")]).writeto(path)
    with pytest.raises(ValueError, match=r"x.fits: wanted IMAGE, MASK and VARIANCE of one shape, found .*IMAGE of sh"):
        cut_patch(sources((1, 1)), {"HSC-G": path}, NONE, SIZE)
    write(path, variance=np.ones((5, 5), np.float32))
    with pytest.raises(ValueError, match=r"x.fits: wanted IMAGE, MASK and VARIANCE of one shape"):
        cut_patch(sources((1, 1)), {"HSC-G": path}, NONE, SIZE)
    write(path, mask=np.zeros(SHAPE, np.float32))
    with pytest.raises(ValueError, match=r"x.fits: its mask holds floats"):
        cut_patch(sources((1, 1)), {"HSC-G": path}, NONE, SIZE)
    path.write_bytes(write(path).read_bytes()[:-2880])
    with pytest.raises(ValueError, match=r"x.fits: .*bytes long where its headers promise"):
        cut_patch(sources((1, 1)), {"HSC-G": path}, NONE, SIZE)


CUBES = ("Cut_HSC.fits", "hsc_ra=150.24071_dec=2.06514.fits")


def cube(real_data: Path, name: str) -> tuple[np.ndarray, fits.Header]:
    with fits.open(real_data / "hsc/scarlet" / name) as hdus:
        return np.asarray(hdus[0].data, dtype=np.float32), hdus[0].header.copy()


def plane(h: fits.Header) -> dict[str, float]:
    """The real header's plane in the keys of a calexp."""
    keys = {k: h[k] for k in ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2")}
    return {**keys, "CD1_1": h["PC1_1"], "CD2_2": h["PC2_2"]}


@pytest.mark.parametrize("name", CUBES)
def test_a_real_source_is_where_its_wcs_says(real_data: Path, tmp_path: Path, name: str) -> None:
    """Its own brightest pixel, as astropy places it, is pixel 8 of 16 in the cut-out, in every band."""
    data, h = cube(real_data, name)
    files = {role(b): write(tmp_path / f"{b}.fits", image=data[i], **plane(h)) for i, b in enumerate("grizy")}
    for i in range(5):
        y, x = np.unravel_index(np.argmax(data[i, 8:-8, 8:-8]), (data.shape[1] - 16, data.shape[2] - 16))
        y, x = y + 8, x + 8
        ra, dec = WCS(h, naxis=2).all_pix2world(x, y, 0)
        one = pa.table({"key": pa.array([1], pa.int64()), "ra": [float(ra)], "dec": [float(dec)]})
        got = arrays(cut_patch(one, files, NONE, SIZE))
        np.testing.assert_allclose(got["flux"][0], data[:, y - 8 : y + 8, x - 8 : x + 8] * FACTOR, rtol=1e-6)
        assert got["flux"][0, i].argmax() == 8 * 16 + 8 and not got["mask"].any()


def test_the_real_cut_outs_name_says_where_its_galaxy_is(real_data: Path) -> None:
    """The name's position, the middle of the cut-out, lies within 2 pixels (0.34 arcsec) of the brightest pixel."""
    data, h = cube(real_data, CUBES[1])
    x, y = cutout.pixels(h, np.array([150.24071]), np.array([2.06514]))
    assert (x[0], y[0]) == (pytest.approx(26.7, abs=0.01), pytest.approx(26.17, abs=0.01))
    for band in data:
        peak_y, peak_x = np.unravel_index(np.argmax(band), band.shape)
        assert np.hypot(peak_x - x[0], peak_y - y[0]) < 2


def test_two_real_cut_outs_of_one_tract_differ_by_whole_pixels(real_data: Path) -> None:
    """What joining stands on: one tract has one plane, in the release's own headers."""
    one, two = (
        Calexp(Path(n), fits.ImageHDU(c[0], c[1]), None, None, 27.0, 0) for n in CUBES for c in [cube(real_data, n)]
    )
    assert shift(one, two, 1, 1) == (-127 - 1551, 3590 - 4140)


def test_a_real_scenes_noise_is_that_of_its_inverse_variance(real_data: Path, tmp_path: Path) -> None:
    """Counts over sigma scatter by 0.95 to 1.05 on pixels without DETECTED (bit 5); the unit cancels."""
    scene = np.load(real_data / "hsc/scarlet/hsc_cosmos_35.npz", allow_pickle=True)
    shape = scene["images"].shape[1:]
    assert scene["filters"].tolist() == list("grizy")
    for i in range(5):
        path = write(tmp_path / "s.fits", 0, 0, scene["images"][i], scene["mask"][i], scene["variance"][i])
        with opened(path) as hdus:
            flux, ivar, mask = calexp(path, hdus).cut(np.array([0]), np.array([0]), max(shape))
        flux, ivar, mask = (v[0, : shape[0], : shape[1]] for v in (flux, ivar, mask))
        assert not mask.any(), "none of its pixels is BAD, SAT or NO_DATA"
        np.testing.assert_allclose(flux, scene["images"][i] / 63.095734, rtol=1e-6)
        np.testing.assert_allclose(ivar, 63.095734**2 / scene["variance"][i], rtol=1e-6)
        blank = (scene["mask"][i] & 32) == 0
        assert blank.sum() > 100 and 0.9 < (flux * np.sqrt(ivar))[blank].std() < 1.1


@pytest.mark.parametrize("name", CUBES)
def test_cubes_are_no_calexps(real_data: Path, name: str) -> None:
    path = real_data / "hsc/scarlet" / name
    with pytest.raises(
        ValueError, match=r"wanted IMAGE, MASK and VARIANCE of one shape, found PRIMARY of shape \(5, 5"
    ):
        cut_patch(sources((1, 1)), {"HSC-G": path}, NONE, SIZE)
