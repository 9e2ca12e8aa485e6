"""The commands on tables that are no pile's."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from typer.testing import CliRunner

from skycairn.cli.main import app


def test_a_catalogue_is_written_and_matched(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(350, 370, 300) % 360, rng.uniform(-5, 5, 300)
    for name, shift in (("a", 0.0), ("b", 0.0001)):
        columns = {"source_id": np.arange(300), "raj": ra, "dec": dec + shift, "e": np.full(300, 0.1)}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    run = CliRunner()
    words = ["catalogue", str(tmp_path / "a.parquet"), "--out", str(tmp_path / "sky"), "--leaf-rows", "50"]
    result = run.invoke(app, words)
    assert result.exit_code == 1 and "say which column is ra" in result.output
    result = run.invoke(app, [*words, "--columns", "ra=raj"])
    assert result.exit_code == 0, result.output
    assert "300 rows in" in result.output
    names = "ra=raj,ra_error=e,dec_error=0.1"
    words = ["crossmatch", str(tmp_path / "sky"), str(tmp_path / "b.parquet"), "--out", str(tmp_path / "pairs")]
    result = run.invoke(app, [*words, "--left-columns", names, "--right-columns", names])
    assert result.exit_code == 0, result.output
    assert "300 pairs within 1 arcsec (300 mutual)" in result.output
    pairs = pq.read_table(next((tmp_path / "pairs").glob("*.parquet")))
    assert pairs["left_id"].equals(pairs["right_id"])
    assert np.isclose(pairs["separation_uas"].to_numpy(), 360_000, atol=2).all() and not pairs["sigmas"].null_count


def test_commands_refuse_in_words(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "ra": [400.0], "dec": [0.0]}), tmp_path / "a.parquet")
    run = CliRunner()
    words = ["crossmatch", str(tmp_path / "a.parquet"), str(tmp_path / "a.parquet"), "--out", str(tmp_path / "out")]
    for extra, said in (
        ([], "a.parquet at row 0: ra 400.0"),
        (["--radius", "0"], "the radius is 0.0 arcsec"),
        (["--left-columns", "id"], "wanted MEANING=NAME"),
        (["--left-columns", "id=name"], "no column 'name' for id"),
        (["--workers", "0"], "0 workers"),
    ):
        result = run.invoke(app, [*words, *extra])
        assert result.exit_code == 1 and said in result.output, result.output
    assert not (tmp_path / "out").exists()
