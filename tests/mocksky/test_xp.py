"""BP and RP coefficients, calibrated by GaiaXPy, give back the flux of the catalogue."""

import contextlib
import gzip
import hashlib
import io
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import speclite.filters
from astropy import units as u

from skycairn.mocksky import gaia, gaia_columns, population, sed, xp


def sky(stars: int) -> pa.Table:
    """Bright stars in two small patches, three in four across RA 0."""
    rng = np.random.default_rng(1)
    rows = population.draw(rng, "star", stars, gaia_g_max=17.0)
    rows["ebv"] = np.full(stars, 0.03, dtype=np.float32)
    away = np.arange(stars) % 4 == 0
    rows["ra"] = np.where(away, 120.0, rng.uniform(-0.1, 0.1, stars) % 360)
    rows["dec"] = np.where(away, 60.0, 0.0) + rng.uniform(-0.1, 0.1, stars)
    rows |= {"uid": np.arange(1, stars + 1)} | sed.photometry(rows, rows["ebv"])
    columns = {k: pa.array(v) for k, v in rows.items() if v.ndim == 1 and k != "kind"}
    columns["coefficients"] = pa.FixedSizeListArray.from_arrays(pa.array(rows["coefficients"].ravel()), 5)
    columns["kind"] = pa.array(rows["kind"].tolist())
    return pa.table(columns)


def calibrated(frame: pd.DataFrame, nm: np.ndarray) -> np.ndarray:
    """Fluxes by GaiaXPy, erg/s/cm2/A."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        # GaiaXPy parses arrays and splits frames in ways that newer numpy and pandas will not have
        warnings.simplefilter("ignore")
        import gaiaxpy

        spectra, _ = gaiaxpy.calibrate(frame, sampling=nm, save_file=False)
    return np.stack(spectra["flux"].to_list()) * 100.0


def frame_of(coefficients: dict[str, np.ndarray]) -> pd.DataFrame:
    n = len(coefficients["bp"])
    frame = pd.DataFrame({"source_id": np.arange(n)})
    for band, values in coefficients.items():
        frame[f"{band}_coefficients"] = list(values)
        frame[f"{band}_coefficient_errors"] = list(np.abs(values) * 1e-3 + 1e-9)
        frame[f"{band}_coefficient_correlations"] = list(np.zeros((n, 1485)))
        frame[f"{band}_standard_deviation"] = 1.0
        frame[f"{band}_n_parameters"] = frame[f"{band}_n_relevant_bases"] = 55
    return frame


@pytest.mark.parametrize(
    ("kind", "limit"),
    [("star", {"gaia_g_max": 17.0}), ("quasar", {"r_mag_max": 18.5}), ("galaxy", {"z_mag_max": 18.0})],
)
def test_gaiaxpy_gives_back_the_catalogue(kind: str, limit: dict[str, float]) -> None:
    rows = population.draw(np.random.default_rng(3), kind, 12, **limit)
    seen = sed.photometry(rows, 0.02)
    nm = np.arange(336.0, 1021.0, 4.0)
    flux = calibrated(frame_of(xp.coefficients(rows, 0.02)), nm) * u.Unit("erg / (s cm2 Angstrom)")
    for band in "gri":
        curve = speclite.filters.load_filter(sed.FILTERS[band])
        magnitude = curve.get_ab_magnitude(*curve.pad_spectrum(flux, 10 * nm * u.AA))
        np.testing.assert_allclose(10 ** (-0.4 * (np.asarray(magnitude) - 22.5)), seen[f"flux_{band}"], rtol=0.02)


def test_the_file_holds_26_columns_and_one_is_lost(tmp_path: Path) -> None:
    truth = sky(60)
    written = gaia.write(tmp_path, truth, seed=4, workers=2)
    folder = tmp_path / gaia.SPECTRA
    listed = dict(reversed(line.split("  ")) for line in (folder / "_MD5SUM.txt").read_text().splitlines())
    there = {p.name for p in folder.glob("*.csv.gz")}
    assert len(set(listed) - there) == 1 and there < set(listed)
    frames = []
    for name in there:
        packed = (folder / name).read_bytes()
        assert hashlib.md5(packed).hexdigest() == listed[name]
        frames.append(pd.read_csv(io.BytesIO(gzip.decompress(packed)), comment="#", dtype={"source_id": "int64"}))
    frame = pd.concat(frames)
    assert list(frame.columns) == [c.split(":")[0] for c in gaia_columns.XP_CONTINUOUS.split()] and frame.shape[1] == 26
    # as lists: a data frame would pass a column of ids with nulls through float
    of = {r["key"]: r for r in written.filter(written["has_xp"]).to_pylist()}
    held = set(frame.source_id.tolist())
    assert held < set(of) and any(r["dirt"] == "file absent" for r in of.values())
    assert all(of[k]["dirt"] != "file absent" for k in held)
    no_bp = frame.source_id[frame.bp_coefficients.isna()].tolist()
    assert no_bp == [k for k in frame.source_id.tolist() if of[k]["dirt"] == "xp without bp"]
    row = frame[frame.bp_coefficients.notna()].iloc[0]
    assert row.bp_coefficients[0] == "[" and len(row.bp_coefficients[1:-1].split(",")) == 55
    assert len(row.rp_coefficient_correlations[1:-1].split(",")) == 1485

    true = {r["uid"]: r for r in truth.to_pylist()}
    good = frame[frame.bp_coefficients.notna()].reset_index(drop=True)
    for column in [c for c in good if "coefficient" in c]:
        good[column] = [np.array(v[1:-1].split(","), dtype=float) for v in good[column]]
    nm = np.arange(336.0, 1021.0, 4.0)
    flux = calibrated(good, nm) * u.Unit("erg / (s cm2 Angstrom)")
    curve = speclite.filters.load_filter("decam2014-r")
    r = 10 ** (-0.4 * (np.asarray(curve.get_ab_magnitude(*curve.pad_spectrum(flux, 10 * nm * u.AA))) - 22.5))
    expected_r = np.array([true[of[k]["uid"]]["flux_r"] for k in good.source_id])
    bright = np.array([true[of[k]["uid"]]["gaia_g"] < 16 for k in good.source_id])
    assert bright.sum() > 5
    np.testing.assert_allclose(r[bright], expected_r[bright], rtol=0.02)
