import builtins
import json

import numpy as np
import pytest

from skycairn.tokenizers.aion import matched, read_published, write_published

ARRAYS = {
    "w": np.arange(6, dtype="f4").reshape(2, 3)[:, ::2],
    "count": np.asarray(np.int64(7)),
    "levels": np.array([7, 5], "i4"),
    "none": np.zeros((0, 3), "f4"),
}


def test_a_codec_comes_back_from_either_folder(tmp_path):
    place = write_published(tmp_path, "image", {"b": [1, 2], "a": None}, ARRAYS)
    assert place == tmp_path / "codecs" / "image"
    for source in (tmp_path, str(tmp_path), place):
        config, arrays = read_published(source, "image")
        assert config == {"a": None, "b": [1, 2]}
        assert arrays.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            assert arrays[name].dtype == array.dtype and arrays[name].shape == array.shape
            np.testing.assert_array_equal(arrays[name], array)


def test_what_is_no_codec_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no whole codec 'image'"):
        read_published(tmp_path, "image")
    place = write_published(tmp_path, "image", {}, ARRAYS)
    with pytest.raises(ValueError, match="holds no whole codec 'spectrum'"):
        read_published(tmp_path, "spectrum")
    weights = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(weights[:-4])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        read_published(tmp_path, "image")
    (place / "model.safetensors").write_bytes(weights)
    (place / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="wanted a JSON object"):
        read_published(tmp_path, "image")
    (place / "config.json").unlink()
    with pytest.raises(ValueError, match="holds no whole codec"):
        read_published(tmp_path, "image")
    for source in (tmp_path / "not-there", "./aion", "/aion/base", "a/b/c", "aion-base"):
        with pytest.raises(ValueError, match=r"is no folder, wanted one with codecs/image/"):
            read_published(source, "image")


def test_a_folder_that_is_misspelt_is_not_asked_for_at_the_hub(tmp_path, monkeypatch):
    write_published(tmp_path / "work" / "aion", "image", {}, {})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="work is a folder here and holds no aoin; is the name right"):
        read_published("work/aoin", "image")


def test_a_bfloat16_file_is_refused_by_name(tmp_path):
    place = write_published(tmp_path, "image", {}, {})
    head = json.dumps({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (place / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + b"\0" * 4)
    with pytest.raises(ValueError, match="numbers that numpy knows"):
        read_published(tmp_path, "image")


def test_the_hub_asks_for_its_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "huggingface_hub":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'skycairn\[hub\]'"):
        read_published("polymathic-ai/aion-base", "image")


def test_the_hub_gives_both_files(monkeypatch, tmp_path):
    import huggingface_hub

    write_published(tmp_path, "image", {"a": 1}, ARRAYS)
    asked = []

    def fetched(repository, name):
        asked.append((repository, name))
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetched)
    assert read_published("polymathic-ai/aion-base", "image")[0] == {"a": 1}
    assert asked == [
        ("polymathic-ai/aion-base", "codecs/image/config.json"),
        ("polymathic-ai/aion-base", "codecs/image/model.safetensors"),
    ]

    def failing(repository, name):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", failing)
    with pytest.raises(ValueError, match=r"could not be fetched .*no route to host"):
        read_published("polymathic-ai/aion-base", "image")


def test_configurations_are_strict():
    known = {"a": ..., "b": 2}
    assert matched("x", {"a": 1}, known) == {"a": 1, "b": 2}
    assert matched("x", {"a": 1, "b": 3}, known) == {"a": 1, "b": 3}
    with pytest.raises(ValueError, match="has c that is not known here and lacks a;"):
        matched("x", {"c": 1}, known)
