import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from skycairn.mocksky import dirt
from skycairn.mocksky.build import build
from skycairn.mocksky.patches import TIERS


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture
def tiny(tiny_fifth):
    return tiny_fifth


def test_tiny_holds_all_surveys_and_says_so(tiny):
    out, summary, said = tiny
    assert json.loads((out / "mock.json").read_text())["counts"] == summary.counts
    assert summary.complete and said and min(summary.counts.values()) > 0
    assert {p.name for p in out.iterdir()} == {"mock.json", "truth", "legacysurvey", "hsc", "desi", "gaia", "sdss"}
    for survey in ("legacysurvey", "hsc", "desi", "gaia", "sdss"):
        assert pq.read_table(out / "truth" / f"{survey}.parquet").num_rows > 0
    assert sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) < 24e6


def test_legacy_files_are_as_their_lists_say_but_for_the_lost_one(tiny):
    out, _, _ = tiny
    lost, wrong, listed = [], [], 0
    for path in (out / "legacysurvey").rglob("*.sha256sum"):
        for line in path.read_text().splitlines():
            digest, name = line.split("  ")
            listed += 1
            if not (path.parent / name).exists():
                lost.append(name)
            elif hashlib.sha256((path.parent / name).read_bytes()).hexdigest() != digest:
                wrong.append(name)
    spoiled = dirt.files(TIERS["tiny"])
    assert lost == [f"legacysurvey-{spoiled.absent_z}-image-z.fits.fz"] and not wrong
    # four bricks of 13 files less three of the missing band, and two sweeps across RA 0
    assert listed == 4 * 13 - 3 + 2
    folder = out / "legacysurvey" / "south" / "coadd" / spoiled.missing_i[:3] / spoiled.missing_i
    assert not list(folder.glob("*-i.fits.fz"))


def test_keys_of_the_truth_are_rows_of_the_sweeps(tiny):
    out, summary, _ = tiny
    keys = []
    for path in (out / "legacysurvey" / "south" / "sweep" / "10.1").glob("*.fits"):
        with fits.open(path) as hdus:
            t = hdus[1].data
            keys += [
                (int(r) << 42) | (int(b) << 22) | int(o)
                for r, b, o in zip(t["RELEASE"], t["BRICKID"], t["OBJID"], strict=True)
            ]
    truth = pq.read_table(out / "truth" / "legacysurvey.parquet").column("key").drop_null().to_pylist()
    assert len(keys) == len(set(keys)) == summary.counts["legacysurvey"] and set(keys) == set(truth)


def test_legacy_and_gaia_name_a_star_alike(tiny):
    out, _, _ = tiny
    ids = set(pq.read_table(out / "truth" / "gaia.parquet").column("key").drop_null().to_pylist())
    found = 0
    for path in (out / "legacysurvey" / "south" / "sweep" / "10.1").glob("*.fits"):
        with fits.open(path) as hdus:
            mine = hdus[1].data["REF_ID"][hdus[1].data["REF_CAT"] == "GE"]
        found += len(mine)
        assert set(mine.tolist()) <= ids
    assert found > 5


def test_bricks_table_describes_the_bricks(tiny):
    out, _, _ = tiny
    with fits.open(out / "legacysurvey" / "survey-bricks.fits.gz") as hdus:
        whole = hdus[1].data
        assert list(whole["BRICKNAME"]) == [b.name for b in TIERS["tiny"].bricks]
    with fits.open(out / "legacysurvey" / "south" / "survey-bricks-dr10-south.fits.gz") as hdus:
        south = hdus[1].data
        dark = south["brickname"] == dirt.files(TIERS["tiny"]).missing_i
        assert not south["nexp_i"][dark].any() and (south["nexp_i"][~dark] > 0).all()
        assert np.array_equal(south["brickid"], whole["BRICKID"]) and south["survey_primary"].all()


def test_a_complete_mock_is_left_alone_and_a_broken_one_made_again(tiny, tmp_path, monkeypatch):
    out, summary, _ = tiny
    before = (out / "mock.json").stat().st_mtime_ns
    assert build("tiny", out, seed=5) == summary and (out / "mock.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"holds the mock of tier tiny, seed 5.*wanted tier tiny, seed 6"):
        build("tiny", out, seed=6)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty and holds no mock"):
        build("tiny", tmp_path)
    (tmp_path / "mock.json").write_text('{"tier": "tiny"}')
    with pytest.raises(ValueError, match="cannot be read"):
        build("tiny", tmp_path)
    with pytest.raises(ValueError, match="there is no tier 'huge'"):
        build("huge", tmp_path / "new")
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.slow
def test_same_seed_same_bytes_whatever_the_workers(tiny, tmp_path):
    out, _, _ = tiny
    again = tmp_path / "again"
    again.mkdir()
    # what an interrupted build left behind is made anew
    left = json.loads((out / "mock.json").read_text()) | {"complete": False, "counts": {}}
    (again / "mock.json").write_text(json.dumps(left))
    (again / "truth").mkdir()
    (again / "truth" / "half.parquet").write_text("half")
    build("tiny", again, seed=5, workers=2)
    assert digests(again) == digests(out)
    build("tiny", tmp_path / "other", seed=6, workers=1)
    other = digests(tmp_path / "other")
    assert other["truth/sources.parquet"] != digests(out)["truth/sources.parquet"]
