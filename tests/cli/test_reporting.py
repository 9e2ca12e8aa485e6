"""The command `skycairn report`, where it needs no pile; its page is in tests/report."""

from pathlib import Path

from typer.testing import CliRunner

from skycairn.cli.main import app


def test_a_folder_that_is_not_there_is_told_before_the_work(tmp_path: Path) -> None:
    words = ["report", str(tmp_path / "pile"), "--out", str(tmp_path / "none/page.html")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1 and "there is no folder" in result.output and "make it first" in result.output
