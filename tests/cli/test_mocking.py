from pathlib import Path

import pytest
from typer.testing import CliRunner

from skycairn.cli.main import app


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--like", "huge"], "there is no tier 'huge' with pixels"),
        (["--like", "catalogue"], "there is no tier 'catalogue' with pixels"),
        (["--images", "2"], "0 to 1"),
        ([], "codecs.lock: "),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(given: list[str], said: str, tmp_path: Path) -> None:
    asked = ["mock-pile", "--codecs-from", str(tmp_path / "none"), "--pile", str(tmp_path / "pile"), *given]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 1 and said in result.output and len(result.output.splitlines()) == 1
