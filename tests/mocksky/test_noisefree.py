"""The sky without noise: the same files, whose pixels are what the noisy ones scatter about by their own ivar."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from skycairn.archives.files import RootArchive
from skycairn.catalogs.registry import survey
from skycairn.catalogs.survey import WORK_ORDER
from skycairn.mocksky.build import build
from skycairn.pipeline.heldout import read_again

PAINTED = ("coadd-*", "spPlate*", "spec-*", "calexp*", "*-image-*")
"""Files that hold light; a folder's checksum list changes with them."""


def files(root: Path) -> dict[str, Path]:
    return {str(p.relative_to(root)): p for p in root.rglob("*") if p.is_file()}


def test_all_files_but_those_of_light_are_the_same_bytes(tiny_sky, tiny_free):
    noisy, clean = files(tiny_sky), files(tiny_free)
    assert noisy.keys() == clean.keys()
    differ = {n for n in noisy if noisy[n].read_bytes() != clean[n].read_bytes()}
    light = {n for n, p in noisy.items() if any(p.match(g) for g in PAINTED)}
    # a list names its folder's file of light even where that one is lost
    lists = {n for n in noisy if n.endswith(".sha256sum") and ("/healpix/" in n or "/coadd/" in n)}
    assert light and light <= differ <= light | lists | {"mock.json"}
    for name in ("legacysurvey", "desi", "gaia", "sdss", "hsc"):
        assert any(n.startswith(f"{name}/") and n not in differ for n in noisy)


def test_checksum_lists_are_of_the_files_beside_them(tiny_free):
    for path in (tiny_free / "desi").rglob("*.sha256sum"):
        for line in path.read_text().splitlines():
            digest, name = line.split("  ")
            if (path.parent / name).exists():
                assert hashlib.sha256((path.parent / name).read_bytes()).hexdigest() == digest


def test_mock_json_says_so_and_the_noisy_one_is_as_it_was(tiny_sky, tiny_free):
    told = json.loads((tiny_free / "mock.json").read_text())
    assert told.pop("noise") is False
    assert told == json.loads((tiny_sky / "mock.json").read_text())


def test_the_two_are_not_taken_for_each_other(tiny_free, tmp_path):
    with pytest.raises(ValueError, match="holds the mock noise-free; wanted it with noise"):
        build("tiny", tiny_free)
    with pytest.raises(ValueError, match="no noise-free second release"):
        build("tiny", tmp_path / "b", release=2, noise=False)
    before = (tiny_free / "mock.json").stat().st_mtime_ns
    assert not build("tiny", tiny_free, noise=False).noise and (tiny_free / "mock.json").stat().st_mtime_ns == before


def both(roots: tuple[Path, Path], name: str, release: str, modality: str) -> list[dict[str, np.ndarray]]:
    """Arrays of every source that has this modality, from each root."""
    s = survey(name, release)
    m = s.modality(modality)
    out = []
    for root in roots:
        archive = RootArchive(root / name)
        found = [s.read(archive.local(f.path)) for f in s.catalog_files(archive, range(12 * 4**WORK_ORDER))]
        table = pa.concat_tables(found).combine_chunks()
        table = table.filter(table["key"].is_valid()).combine_chunks()
        table = table.take(pa.array(np.arange(0, table.num_rows, 1 + table.num_rows // 120)))
        pieces = [again.arrays for again in read_again(s, root / name, m, table)]
        out.append({k: np.concatenate([p[k] for p in pieces]) for k in pieces[0]})
    return out


@pytest.mark.parametrize(
    ("name", "release", "modality"),
    [
        ("legacysurvey", "dr10", "legacysurvey.image"),
        ("hsc", "pdr3-wide", "hsc.image"),
        ("desi", "dr1", "desi.spectrum"),
        ("sdss", "dr17", "sdss.spectrum"),
    ],
)
def test_noise_is_a_unit_gaussian_of_the_ivar(tiny_sky, tiny_free, name, release, modality):
    noisy, clean = both((tiny_sky, tiny_free), name, release, modality)
    assert np.array_equal(noisy["ivar"], clean["ivar"]) and np.array_equal(noisy["mask"], clean["mask"])
    good = ~noisy["mask"] & (noisy["ivar"] > 0)
    pull = ((noisy["flux"].astype(float) - clean["flux"]) * np.sqrt(noisy["ivar"]))[good]
    # neighbouring sources share pixels: count a value once
    pull = np.unique(pull)
    n = len(pull)
    assert n > 20_000
    # images are kept in steps of a 16th of the noise
    assert abs(pull.mean()) < 5 / np.sqrt(n) + 2e-3
    assert pull.std() == pytest.approx(1, abs=5 / np.sqrt(2 * n) + 2e-3)
    assert np.mean(np.abs(pull) > 3) == pytest.approx(0.0027, abs=5 * np.sqrt(0.0027 / n))
    # and it does not know of the light
    bright = clean["flux"].astype(float) * np.sqrt(noisy["ivar"])
    assert np.abs(((noisy["flux"] - clean["flux"]) * np.sqrt(noisy["ivar"]))[good & (bright > 10)].std() - 1) < 0.05
