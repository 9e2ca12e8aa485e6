import pytest
import torch
from aion.codecs.image import ImageCodec as Peer
from aion.codecs.modules.magvit import ResidualUnit as PeerUnit
from aion.codecs.modules.magvit import SpatialUpsample2x
from aion.codecs.modules.subsampler import SubsampledLinear as PeerLinear

from skycairn.tokenizers.magvit import (
    AION_SLOTS,
    Architecture,
    Doubled,
    ImageNetwork,
    ResidualUnit,
    SubsampledLinear,
    n_parameters,
    positions,
)


def randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """All weights drawn anew, those that start at 0 or 1 too."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * (0.5 / max(p[0].numel(), 4) ** 0.5))
    return module


def same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    a.load_state_dict(randomised(b).state_dict())


def test_names_and_shapes_are_the_peers():
    peer = Peer([7, 5, 5, 5, 5], hidden_dims=32, multisurvey_projection_dims=6, num_consecutive=3)
    ours = ImageNetwork(Architecture(hidden=32, projection=6, consecutive=3))
    assert {k: (v.shape, v.dtype) for k, v in ours.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in peer.state_dict().items()
    }


def test_the_published_size():
    with torch.device("meta"):
        assert n_parameters(ImageNetwork(Architecture())) == 70_058_592


def test_residual_unit_is_the_peers():
    ours, peer = ResidualUnit(20, -10.0), PeerUnit(20, 3)
    torch.testing.assert_close(ours.net[4].net[2].bias, peer.net[4].net[2].bias)
    assert not ours.net[4].net[2].weight.any()
    same(ours, peer)
    x = torch.randn(3, 20, 8, 12)
    torch.testing.assert_close(ours(x), peer(x), rtol=1e-5, atol=1e-6)
    channels_last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(ours(channels_last), peer(x), rtol=1e-5, atol=1e-6)


def test_doubling_is_the_peers():
    ours, peer = Doubled(6, 4), SpatialUpsample2x(6, 4)
    same(ours, peer)
    x = torch.randn(2, 6, 5, 5)
    torch.testing.assert_close(ours(x), peer(x))


@pytest.mark.parametrize("places", [[5, 6, 7, 8], [0, 1, 2, 3, 4], [8], list(range(9))])
def test_subsampled_projections_are_the_peers(places):
    ours, peer = SubsampledLinear(9, 6), PeerLinear(9, 6)
    same(ours, peer)
    x = torch.randn(3, len(places), 4, 4)
    present = torch.ones(3, len(places), dtype=torch.bool)
    present[1, 0] = len(places) == 1
    x = x * present[:, :, None, None]
    padded, labels = torch.zeros(3, 9, 4, 4), torch.zeros(3, 9, dtype=torch.bool)
    padded[:, places], labels[:, places] = x, present
    torch.testing.assert_close(ours.into(x, places, present), peer(padded, labels))
    out, back = SubsampledLinear(6, 9), PeerLinear(6, 9, subsample_in=False)
    same(out, back)
    y = torch.randn(3, 6, 4, 4)
    torch.testing.assert_close(out.out_of(y, places), back(y, torch.ones(3, 9, dtype=torch.bool))[:, places])


def test_no_band_at_all_is_no_division_by_zero():
    found = SubsampledLinear(9, 6).into(torch.zeros(1, 2, 4, 4), [0, 1], torch.zeros(1, 2, dtype=torch.bool))
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(("stem", "compressions"), [(1, 2), (2, 1), (4, 0)])
def test_stems_keep_pixels_at_their_place(stem, compressions):
    form = Architecture(hidden=16, projection=3, stem=stem, compressions=compressions, consecutive=1, kernel=1)
    network = ImageNetwork(form, gate_bias=0.0).eval()
    x = torch.zeros(1, 1, 32, 48)
    here = [0]
    with torch.no_grad():
        blank = network.latent(x, here, torch.ones(1, 1, dtype=torch.bool))
        assert blank.shape == (1, 5, 8, 12)
        assert network.pixels(blank, here).shape == (1, 1, 32, 48)
        x[0, 0, 9, 34] = 5.0
        moved = (network.latent(x, here, torch.ones(1, 1, dtype=torch.bool)) - blank).abs().sum(1)[0]
        y, column = divmod(int(moved.argmax()), 12)
        assert abs(y - 2) <= 1 and abs(column - 8) <= 1  # untrained, so a neighbour may feel it more
        blank[0, :, 3, 7] += 5
        flat = network.pixels(torch.zeros_like(blank), here)
        code = torch.zeros_like(blank)
        code[0, :, 3, 7] = 1.0
        lit = (network.pixels(code, here) - flat)[0, 0].abs()
        y, column = divmod(int(torch.nn.functional.avg_pool2d(lit[None, None], 4).argmax()), 12)
        assert abs(y - 3) <= 1 and abs(column - 7) <= 1


def test_architectures_round_trip_and_are_checked():
    form = Architecture(hidden=16, slots=("a", "b"))
    assert Architecture.restore(form.settings()) == form
    with pytest.raises(ValueError, match="odd kernels"):
        Architecture(kernel=4)
    with pytest.raises(ValueError, match="6 channels cannot be halved 2 times"):
        Architecture(hidden=6)
    with pytest.raises(ValueError, match="wanted names, each once"):
        Architecture(slots=("a", "a"))
    with pytest.raises(ValueError, match="more than 0"):
        Architecture(mult=0)
    assert positions(("DES-Z", "HSC-G"), AION_SLOTS) == [8, 0]
    for wrong in ((), ("U",), ("HSC-G", "HSC-G")):
        with pytest.raises(ValueError, match="each once and one of"):
            positions(wrong, AION_SLOTS)
