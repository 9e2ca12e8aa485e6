import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from skycairn.tokenizers.lock import read_lock, write_lock
from skycairn.tokenizers.registry import fit_codec

X = {"value": np.random.default_rng(0).normal(size=500)}


def codecs(offset: float = 0.0):
    return {
        "gaia.parallax": fit_codec("log", {"value": X["value"] + offset}),
        "desi.z": fit_codec("grid", {}),
        "sdss.z": fit_codec("grid", {}),
    }


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_is_locked_is_read_again(tmp_path):
    lock = tmp_path / "pile" / "codecs.lock"
    write_lock(lock, codecs())
    again = read_lock(lock)
    assert list(again) == ["desi.z", "gaia.parallax", "sdss.z"]
    for modality, codec in codecs().items():
        assert again[modality].content_id == codec.content_id
        np.testing.assert_array_equal(again[modality].encode(X), codec.encode(X))
    assert len(list((lock.parent / "codecs").iterdir())) == 2
    assert list(read_lock(str(lock))) == list(read_lock(lock.parent)) == list(again)
    with pytest.raises(ValueError, match=r"other.codecs.lock: there is no such file, wanted the codecs.lock of a pile"):
        read_lock(tmp_path / "other" / "codecs.lock")


def test_the_same_codecs_give_the_same_bytes(tmp_path):
    write_lock(tmp_path / "a" / "codecs.lock", codecs())
    write_lock(tmp_path / "b" / "codecs.lock", dict(reversed(codecs().items())))
    write_lock(tmp_path / "b" / "codecs.lock", codecs())
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert len(files(tmp_path / "a")) == 5


def test_a_codec_that_was_changed_swapped_or_lost_is_refused(tmp_path):
    lock = tmp_path / "codecs.lock"
    write_lock(lock, codecs())
    parallax = tmp_path / json.loads(lock.read_text())["gaia.parallax"]["folder"]
    data = bytearray((parallax / "codec.safetensors").read_bytes())
    data[-3] ^= 1
    (parallax / "codec.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="damaged or mixed"):
        read_lock(lock)
    shutil.rmtree(parallax)
    codecs(offset=1.0)["gaia.parallax"].save(parallax)
    with pytest.raises(ValueError, match=r"gaia.parallax names the quantile codec .* holds the"):
        read_lock(lock)
    shutil.rmtree(parallax)
    with pytest.raises(ValueError, match="holds no codec"):
        read_lock(lock)
