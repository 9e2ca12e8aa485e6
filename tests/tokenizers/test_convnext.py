import pytest
import torch
from aion.codecs.modules.convnext import ConvNextBlock1d, ConvNextDecoder1d, ConvNextEncoder1d

from skycairn.tokenizers.convnext import Block, Decoder, Encoder, GlobalResponse, initialise


def perturbed(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights none of which is 0 or 1, so that each of them matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    return module


@pytest.mark.parametrize("length", [5, 200])
def test_block_is_the_peers_on_short_and_long_lines(length: int) -> None:
    peer = perturbed(ConvNextBlock1d(12))
    ours = Block(12)
    ours.load_state_dict(peer.state_dict())
    x = torch.randn(3, 12, length, generator=torch.Generator().manual_seed(1))
    wanted = peer(x)
    assert (ours(x.movedim(1, -1)).movedim(-1, 1) - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_encoder_and_decoder_are_the_peers() -> None:
    depths, dims = (1, 0, 2, 1), (4, 6, 8, 12)
    peer, ours = perturbed(ConvNextEncoder1d(2, depths, dims)), Encoder(2, depths, dims)
    ours.load_state_dict(peer.state_dict())
    x = torch.randn(2, 2, 32 * 9, generator=torch.Generator().manual_seed(1))
    wanted = peer(x)
    found = ours(x.movedim(1, -1))
    assert found.shape == (2, 9, 12)
    assert (found.movedim(-1, 1) - wanted).abs().max() < 1e-5 * wanted.abs().max()

    peer, back = perturbed(ConvNextDecoder1d(12, (1, 1, 0, 1), (8, 6, 4, 2))), Decoder(12, (1, 1, 0, 1), (8, 6, 4, 2))
    back.load_state_dict(peer.state_dict())
    h = torch.randn(2, 12, 9, generator=torch.Generator().manual_seed(2))
    wanted = peer(h)
    found = back(h.movedim(1, -1))
    assert found.shape == (2, 288, 2)
    assert (found.movedim(-1, 1) - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_global_response_starts_as_the_identity_and_bears_zeros() -> None:
    x = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(1))
    x[0] = 0
    x[1, :, 2] = 0
    x.requires_grad_()
    response = GlobalResponse(5)
    assert torch.equal(response(x), x)
    perturbed(response)(x).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_gradient_is_bounded_where_nothing_was_observed() -> None:
    encoder = Encoder(2, (0, 0, 0, 1), (4, 8, 8, 16))
    initialise(encoder, torch.Generator().manual_seed(0))
    x = torch.randn(2, 320, 2, generator=torch.Generator().manual_seed(1))
    x[:, :160] = 0
    encoder(x).square().sum().backward()
    assert max(p.grad.norm() for p in encoder.parameters() if p.grad is not None) < 1e4


def test_initial_weights_hang_on_the_seed_alone() -> None:
    weights = []
    for seed in (0, 0, 1):
        block = Block(8)
        initialise(block, torch.Generator().manual_seed(seed))
        weights.append(block.pwconv1.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(("depths", "dims"), [((1, 1, 1), (2, 2, 2)), ((1, 1, 1, -1), (2, 2, 2, 2))])
def test_refuses_other_numbers_of_stages(depths: tuple[int, ...], dims: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="wanted 4 numbers each"):
        Encoder(2, depths, dims)
