import pytest

from skycairn.catalogs.registry import SURVEYS
from skycairn.tokenizers.modalities import AION, BAND_MOST, aion_modality

modalities = pytest.importorskip("aion.modalities")
config = pytest.importorskip("aion.codecs.config")
info = pytest.importorskip("aion.fourm.modality_info").MODALITY_INFO
PEER = {c.token_key: c for name in modalities.__all__ for c in [getattr(modalities, name)]}
CODECS = {
    "ImageCodec": "image",
    "SpectrumCodec": "spectrum",
    "CatalogCodec": "catalog",
    "ScalarFieldCodec": "scalar_field",
    "ScalarCodec": "scalar",
    "LogScalarCodec": "log",
    "MultiScalarCodec": "multi",
    "GridScalarCodec": "grid",
}


def test_there_are_forty_and_each_is_the_peers():
    assert list(AION) == [m.token_key for m in AION.values()]
    assert set(AION) == set(PEER) == set(info)
    assert len(AION) == 40


@pytest.mark.parametrize("key", AION)
def test_a_row_says_what_the_peer_says(key):
    own, theirs = AION[key], PEER[key]
    assert own.name == theirs.name
    assert own.codec == CODECS[config.MODALITY_CODEC_MAPPING[theirs].__name__]
    assert own.outputs == info[key]["vocab_size"]
    assert own.number == info[key]["id"]
    given = {n for c in theirs.__mro__ for n in getattr(c, "__annotations__", {}) if n not in ("name", "token_key")}
    assert set(own.arrays) == given - {"num_tokens", "bands"}
    if hasattr(theirs, "num_tokens"):
        assert own.tokens == theirs.num_tokens
    else:  # the peer forgot both; its embeddings tell
        size = info[key].get("input_size", 0) // info[key].get("patch_size", 1)
        assert own.tokens == (size**2 if own.codec == "scalar_field" else 50)


def test_no_two_have_one_number():
    assert len({m.number for m in AION.values()}) == 40
    assert (AION["tok_image"].number, AION["tok_z"].number, AION["catalog"].number) == (18665, 9755, 12119)


def test_bands_are_the_peers_in_the_order_of_its_channels():
    bands = pytest.importorskip("aion.codecs.preprocessing.band_to_index")
    assert list(BAND_MOST) == sorted(bands.BAND_TO_INDEX, key=bands.BAND_TO_INDEX.__getitem__)
    assert BAND_MOST == bands.BAND_CENTER_MAX
    assert AION["tok_image"].bands == ("DES-G", "DES-R", "DES-I", "DES-Z")


def test_the_catalogues_call_their_tokens_so():
    keys = {m.name: m.token_key for s in SURVEYS.values() for m in s.modalities}
    said = {name: m.token_key for m in AION.values() for name in m.ours}
    assert said == {name: key for name, key in keys.items() if key in AION}
    assert {name for name in keys if name not in said} <= {"legacysurvey.viewer_image"}
    assert AION["tok_z"].ours == ("desi.z", "sdss.z")
    assert [m.token_key for m in AION.values() if not m.ours] == ["catalog", "tok_segmap"]
    for s in SURVEYS.values():
        for m in s.modalities:
            if m.token_key in AION and AION[m.token_key].codec not in ("image", "spectrum"):
                assert AION[m.token_key].shape == m.shape
                assert AION[m.token_key].unit == m.unit, m.name


def test_another_key_is_refused():
    with pytest.raises(ValueError, match=r"no modality 'tok_w5'.*tok_flux_g"):
        aion_modality("tok_w5")
