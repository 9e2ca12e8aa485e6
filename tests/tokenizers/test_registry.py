import numpy as np
import pytest

from skycairn.tokenizers.patches import PatchImageCodec, PatchSpectrumCodec
from skycairn.tokenizers.registry import CODECS, FITS, fit_codec


def sample(kind: str, n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"image": (n, 2, 100, 100), "image_uniform": (n, 2, 100, 100), "spectrum": (n, 800), "xp": (n, 55)}
    x = rng.normal(size=shapes.get(kind, (n,)))
    if kind == "image_uniform":
        return {"flux": x, "mask": np.zeros(x.shape, bool)}
    if kind in ("image", "spectrum"):
        return {"flux": x, "ivar": np.ones(x.shape), "mask": np.zeros(x.shape, bool)}
    return {"value": x}


SETTINGS = {"image": {"bands": ["g", "r"]}, "image_uniform": {"bands": ["g", "r"]}, "spectrum": {"n_patches": 40}}


@pytest.mark.parametrize("kind", ["quantile", "log", "asinh", "grid", "xp", "image", "image_uniform", "spectrum"])
@pytest.mark.parametrize("n", [1, 20])
def test_every_kind_of_the_catalogs_is_fitted_even_to_one_source(kind, n):
    m = sample(kind, n)
    codec = fit_codec(kind, m, **SETTINGS.get(kind, {}))
    assert CODECS[codec.kind] is type(codec)
    tokens = codec.encode(m)
    assert tokens.shape == (n, codec.n_tokens)
    assert tokens.dtype == codec.dtype
    assert all(len(v) == n for v in codec.decode(tokens).values())
    if kind in ("quantile", "log", "asinh") and n == 20:
        assert codec.vocabulary == 2
    restored = type(codec).restore(codec.settings(), codec.arrays())
    assert restored.content_id == codec.content_id


@pytest.mark.parametrize("kind", [k for k in FITS if k != "grid"])
def test_no_source_is_refused(kind):
    with pytest.raises(ValueError, match="0"):
        fit_codec(kind, sample(kind, 0), **SETTINGS.get(kind, {}))


def test_what_is_not_known_is_refused():
    with pytest.raises(ValueError, match="choose one of quantile, log"):
        fit_codec("vq", sample("quantile", 5))
    with pytest.raises(ValueError, match="holds flux"):
        fit_codec("quantile", {"flux": np.zeros(3)})


def test_settings_reach_the_codec():
    image = fit_codec("image", sample("image", 2), bands=["g", "r"], crop=64)
    assert isinstance(image, PatchImageCodec)
    assert image.n_tokens == 256
    spectrum = fit_codec("spectrum", sample("spectrum", 2), n_patches=40, start=3800.0)
    assert isinstance(spectrum, PatchSpectrumCodec)
    assert spectrum.settings()["start"] == 3800.0
