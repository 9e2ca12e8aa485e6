import numpy as np
import pytest
import torch
from aion.codecs.quantizers import LucidrainsLFQ

from skycairn.tokenizers.lfq import LookupFreeQuantizer


def channels(bits: int = 10, scale: float = 0.02, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(3, 17, bits, generator=torch.Generator().manual_seed(seed))


def test_codes_are_the_peers() -> None:
    z = channels()
    peer = LucidrainsLFQ(dim=10, codebook_size=1024).eval()
    ours = LookupFreeQuantizer(10)
    codes = ours.indices(z)
    assert len(codes.unique()) > 40
    assert torch.equal(codes, peer.encode(z.movedim(-1, 1)).long())
    assert torch.equal(ours.channels(codes).movedim(-1, 1), peer.decode(codes))
    assert {f"_quantizer.{k}" for k in ours.state_dict()} == set(peer.state_dict())
    assert torch.equal(ours.mask, peer.state_dict()["_quantizer.mask"])


@pytest.mark.parametrize("inverse_temperature", [1.0, 10.0, 100.0])
def test_losses_and_their_gradients_are_those_over_all_codes(inverse_temperature: float) -> None:
    z = channels().requires_grad_()
    found = LookupFreeQuantizer(10).loss(z, inverse_temperature)
    (ours,) = torch.autograd.grad(found.total(), z)
    peer = LucidrainsLFQ(dim=10, codebook_size=1024, inv_temperature=inverse_temperature).train()
    _, wanted, _ = peer(z.movedim(-1, 1))
    (theirs,) = torch.autograd.grad(wanted, z)
    # the peer cuts each of 1024 probabilities at 1e-5 in the entropy of a position
    assert abs(found.total() - wanted) < 2e-4
    assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_gradient_goes_through_the_signs() -> None:
    z = channels().requires_grad_()
    quantised = LookupFreeQuantizer(10)(z)
    assert set(quantised.detach().unique().tolist()) == {-1.0, 1.0}
    given = torch.randn_like(z)
    quantised.backward(given)
    assert z.grad is not None and torch.equal(z.grad, given)


def test_zero_is_the_lower_sign_and_the_first_channel_counts_most() -> None:
    quantizer = LookupFreeQuantizer(3)
    z = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 1e-9]])
    assert quantizer.indices(z).tolist() == [0, 4, 3]
    assert torch.equal(quantizer.indices(quantizer.channels(torch.arange(8))), torch.arange(8))


def test_entropies_at_their_ends() -> None:
    quantizer = LookupFreeQuantizer(4)
    every = quantizer.loss(quantizer.channels(torch.arange(16)))
    assert abs(every.sure) < 1e-6 and abs(every.spread - 4 * np.log(2)) < 1e-5 and every.commitment == 0
    one = quantizer.loss(quantizer.channels(torch.zeros(16, dtype=torch.int64)))
    assert abs(one.spread) < 1e-5
    unsure = quantizer.loss(torch.zeros(16, 4))
    assert abs(unsure.sure - 4 * np.log(2)) < 1e-5


def test_float32_under_autocast() -> None:
    z = channels().requires_grad_()
    quantizer = LookupFreeQuantizer(10)
    plain = quantizer.loss(z)
    with torch.autocast("cpu", torch.bfloat16):
        lower = quantizer.loss(z)
        assert quantizer(z.bfloat16()).dtype == torch.float32
    assert all(torch.equal(a, b) and b.dtype == torch.float32 for a, b in zip(plain, lower, strict=True))


@pytest.mark.parametrize("bits", [0, 17])
def test_refuses_other_numbers_of_bits(bits: int) -> None:
    with pytest.raises(ValueError, match=f"{bits} bits, wanted 1 to 16"):
        LookupFreeQuantizer(bits)
