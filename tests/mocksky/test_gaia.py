"""Gaia's mock files: ranges, ids, nulls, errors, digests."""

import gzip
import hashlib
import io
import itertools
from pathlib import Path

import healpy
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from astropy.io import fits
from astropy.table import Table
from pyarrow import csv

from skycairn.mocksky import gaia, gaia_columns, population, sed


def sky(galaxies: int, stars: int, quasars: int, seed: int = 1) -> pa.Table:
    """Two small patches, one across RA 0, one at the south pole."""
    rng = np.random.default_rng(seed)
    counts = {"galaxy": galaxies, "star": stars, "quasar": quasars}
    drawn = [
        population.draw(rng, kind, n, **({"bright_fraction": 0.5} if kind == "star" else {}))
        for kind, n in counts.items()
    ]
    rows = {k: np.concatenate([d[k] for d in drawn]) for k in drawn[0]}
    n = len(rows["z"])
    pole = np.arange(n) % 5 == 0
    rows["ebv"] = np.full(n, 0.03, dtype=np.float32)
    rows["ra"] = np.where(pole, rng.uniform(0, 360, n), rng.uniform(-0.1, 0.1, n) % 360)
    rows["dec"] = np.where(pole, -90 + np.abs(rng.uniform(0, 0.1, n)), rng.uniform(-1.3, -1.1, n))
    rows |= {"uid": np.arange(1, n + 1)} | sed.photometry(rows, rows["ebv"])
    columns = {k: pa.array(v) for k, v in rows.items() if v.ndim == 1 and k != "kind"}
    columns["coefficients"] = pa.FixedSizeListArray.from_arrays(pa.array(rows["coefficients"].ravel()), 5)
    columns["kind"] = pa.array(rows["kind"].tolist())
    return pa.table(columns)


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table, pa.Table]:
    root, truth = tmp_path_factory.mktemp("gaia"), sky(60, 500, 20)
    return root, truth, gaia.write(root, truth, gaia.Options(spectra=False), seed=3, workers=2)


def sources(root: Path) -> pa.Table:
    tables = []
    for path in sorted((root / gaia.SOURCES).glob("*.csv.gz")):
        text = "".join(line for line in gzip.decompress(path.read_bytes()).decode().splitlines(True) if line[0] != "#")
        tables.append(csv.read_csv(io.BytesIO(text.encode()), convert_options=csv.ConvertOptions(null_values=["null"])))
    return pa.concat_tables(tables, promote_options="permissive")


def test_ranges_cover_the_sky_once() -> None:
    ranges = gaia.file_ranges()
    assert ranges[0] == (0, 3111) and ranges[1] == (3112, 5263) and ranges[-1] == (786097, 786431)
    assert all(b + 1 == c for (_, b), (c, _) in itertools.pairwise(ranges))
    assert gaia.range_name(0, 3111) == "000000-003111"


def test_source_id_holds_the_pixel_and_never_passes_through_float() -> None:
    rng = np.random.default_rng(0)
    ra, dec = (
        np.concatenate([np.full(50, 12.34), rng.uniform(0, 360, 50)]),
        np.concatenate([np.full(50, -89.99), np.full(50, 89.9)]),
    )
    ids = gaia.source_ids(ra, dec)
    assert len(set(ids.tolist())) == 100
    assert ((ids >> 35) == healpy.ang2pix(4096, ra, dec, nest=True, lonlat=True)).all()
    assert ((ids >> 43) == healpy.ang2pix(256, ra, dec, nest=True, lonlat=True)).all()


def test_every_file_is_listed_and_holds_its_own_pixels(mock: tuple[Path, pa.Table, pa.Table]) -> None:
    root, _, _ = mock
    folder = root / gaia.SOURCES
    listed = dict(reversed(line.split("  ")) for line in (folder / "_MD5SUM.txt").read_text().splitlines())
    assert set(listed) == {p.name for p in folder.glob("*.csv.gz")} and len(listed) >= 2
    for name, digest in listed.items():
        packed = (folder / name).read_bytes()
        assert hashlib.md5(packed).hexdigest() == digest
        first, last = (int(part) for part in name.removesuffix(".csv.gz").split("_")[1].split("-"))
        table = Table.read(
            gzip.decompress(packed).decode().splitlines(), format="ascii.ecsv", fill_values=[("null", "0")]
        )
        assert len(table.colnames) == 152 and table.colnames[2] == "source_id"
        assert table["source_id"].dtype == np.int64 and table["ra"].unit == "deg"
        level8 = np.asarray(table["source_id"]) >> 43
        assert ((level8 >= first) & (level8 <= last)).all()


def test_every_source_is_accounted_for(mock: tuple[Path, pa.Table, pa.Table]) -> None:
    root, truth_rows, truth = mock
    assert sorted(truth["uid"].to_pylist()) == truth_rows["uid"].to_pylist()
    seen = truth.filter(truth["observed"])
    assert sorted(sources(root)["source_id"].to_pylist()) == sorted(seen["key"].to_pylist())
    assert all(truth.filter(pc.invert(truth["observed"]))["why_not"].to_pylist())
    assert not any(truth["has_xp"].to_pylist())


def test_dirt_is_as_it_is_labelled(mock: tuple[Path, pa.Table, pa.Table]) -> None:
    root, _, truth = mock
    rows = {r["source_id"]: r for r in sources(root).to_pylist()}
    labels: dict[str, list[dict[str, object]]] = {}
    for r in truth.filter(truth["observed"]).to_pylist():
        labels.setdefault(r["dirt"], []).append(rows[r["key"]])
    assert {"", "high ruwe", "2-parameter", "duplicated_source", "no bp, rp"} <= set(labels)
    assert all(
        r["parallax"] is None and r["pmra"] is None and r["astrometric_params_solved"] == 3
        for r in labels["2-parameter"]
    )
    assert all(r["phot_bp_mean_flux"] is None and r["bp_rp"] is None for r in labels["no bp, rp"])
    assert all(str(r["duplicated_source"]).lower() == "true" for r in labels["duplicated_source"])
    for r in labels[""]:
        assert None not in (r["parallax"], r["pmra"], r["pmdec"], r["phot_rp_mean_flux"], r["ruwe"])


def test_measurements_are_the_truth_within_their_errors(mock: tuple[Path, pa.Table, pa.Table]) -> None:
    root, truth_rows, truth = mock
    true = {
        r["uid"]: r for r in truth_rows.select(["uid", "ra", "dec", "parallax", "pmra", "pmdec", "gaia_g"]).to_pylist()
    }
    by_key = {r["key"]: true[r["uid"]] for r in truth.to_pylist() if r["key"]}
    rows = [r for r in sources(root).to_pylist() if r["parallax"] is not None]
    for name in ("parallax", "pmra", "pmdec"):
        pull = np.array([(r[name] - by_key[r["source_id"]][name]) / r[f"{name}_error"] for r in rows])
        assert abs(pull.mean()) < 0.25 and 0.85 < pull.std() < 1.15
    pull = np.array([(r["dec"] - by_key[r["source_id"]]["dec"]) * 3.6e6 / r["dec_error"] for r in rows])
    assert 0.85 < pull.std() < 1.15
    bright = [r for r in rows if r["phot_g_mean_mag"] < 17]
    assert max(abs(r["phot_g_mean_mag"] - by_key[r["source_id"]]["gaia_g"]) for r in bright) < 0.01
    flux_mag = 25.6873668671 - 2.5 * np.log10([r["phot_g_mean_flux"] for r in rows])
    np.testing.assert_allclose(flux_mag, [r["phot_g_mean_mag"] for r in rows], atol=1e-5)


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    truth = sky(20, 80, 5, seed=2)
    tables = [gaia.write(tmp_path / str(w), truth, gaia.Options(spectra=False), seed=9, workers=w) for w in (1, 3)]
    assert tables[0].equals(tables[1])
    first, second = (
        {p.relative_to(tmp_path / w): p.read_bytes() for p in (tmp_path / w).rglob("*") if p.is_file()}
        for w in ("1", "3")
    )
    assert first == second and len(first) >= 3


def test_columns_and_zero_points_are_the_archive_s(real_data: Path) -> None:
    with fits.open(real_data / "gaia" / "archive-gaia_source" / "gdr3_sm.fits") as hdus:
        rows = hdus[1].data
        theirs = [name.lower() for name in rows.names]
        ours = [c.split(":")[0] for c in gaia_columns.GAIA_SOURCE.split()]
        assert [n for n in ours if n in theirs] == [n for n in theirs if n in ours]
        for band, zero in sed.GAIA_ZERO_POINT.items():
            name = band.removeprefix("gaia_")
            found = rows[f"phot_{name}_mean_mag"] + 2.5 * np.log10(rows[f"phot_{name}_mean_flux"])
            assert np.nanmedian(found) == pytest.approx(zero, abs=1e-3)
        for faint in (14.0, 16.0, 18.0):
            g = rows["phot_g_mean_mag"].astype(float)
            near = (np.abs(g - faint) < 1) & np.isfinite(rows["parallax_error"])
            if near.sum() > 20:
                ratio = np.median(rows["parallax_error"][near] / gaia.parallax_error(g[near]))
                assert 0.5 < ratio < 2.0


def test_xp_columns_are_the_archive_s(real_data: Path) -> None:
    real = (real_data / "gaia" / "xp-continuous" / "XP_CONTINUOUS_RAW.csv").read_text().splitlines()[0]
    assert real.split(",") == [c.split(":")[0] for c in gaia_columns.XP_CONTINUOUS.split()]
