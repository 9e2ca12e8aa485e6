import numpy as np
import pytest
import torch
from aion.codecs.quantizers import FiniteScalarQuantizer as Peer
from hypothesis import given, settings
from hypothesis import strategies as st

from skycairn.tokenizers.fsq import from_index, to_index
from skycairn.tokenizers.quantizers import FiniteScalarQuantizer

LEVELS = [(7, 5, 5, 5, 5), (8, 5, 5, 5), (2,), (3, 4, 9)]


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_and_values_are_the_peers(levels):
    ours, peer = FiniteScalarQuantizer(levels), Peer(list(levels))
    z = torch.randn(5, len(levels), 11, 3, generator=torch.Generator().manual_seed(0)) * 3
    z[0] = torch.linspace(-100, 100, 33).reshape(11, 3)
    values, codes = ours(z)
    assert torch.equal(codes, peer.encode(z).long())
    assert torch.equal(codes, ours.indices(z))
    assert torch.equal(values, peer.quantize(z))
    assert torch.equal(ours.values(codes), peer.decode(codes.int()))
    torch.testing.assert_close(values, ours.values(codes))
    assert len(codes.unique()) > min(50, ours.codes // 2)


@pytest.mark.parametrize("levels", LEVELS)
def test_every_code_has_a_place_that_gives_it(levels):
    quantizer = FiniteScalarQuantizer(levels)
    codes = torch.arange(quantizer.codes)
    values = quantizer.values(codes[None])
    assert values.shape == (1, len(levels), quantizer.codes)
    assert values.abs().max() == 1
    digits = from_index(codes.numpy(), levels)
    np.testing.assert_array_equal(to_index(digits, levels), codes.numpy())
    width = np.array(levels) // 2
    np.testing.assert_allclose(values[0].T.numpy(), (digits - width) / width, rtol=1e-6)
    # back through tanh
    half = (np.array(levels) - 1) * 1.001 / 2
    offset = np.where(np.array(levels) % 2 == 1, 0, 0.5)
    z = np.arctanh((digits - width + offset) / half) - np.arctanh(offset / half)
    assert torch.equal(quantizer.indices(torch.from_numpy(z).T[None]), codes[None])


def test_the_gradient_passes_through_the_rounding():
    quantizer = FiniteScalarQuantizer((7, 5))
    z = torch.zeros(1, 2, 4, requires_grad=True)
    quantizer(z)[0].sum().backward()
    # tanh's slope at 0, times half the levels, over the width
    torch.testing.assert_close(z.grad[0, :, 0], torch.tensor([3.003 / 3, 2.002 / 2]))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_codes_are_the_same_under_autocast(seed):
    quantizer = FiniteScalarQuantizer((7, 5, 5, 5, 5))
    z = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(seed)) * 2
    with torch.autocast("cpu", torch.bfloat16):
        values, codes = quantizer(z)
        again = quantizer.values(codes)
    assert torch.equal(codes, quantizer(z)[1])
    assert values.dtype == again.dtype == torch.float32
    assert torch.equal(values, quantizer(z)[0])


def test_levels_that_are_none():
    with pytest.raises(ValueError, match=r"levels \(\), wanted one or more"):
        FiniteScalarQuantizer(())
    with pytest.raises(ValueError, match=r"levels \(7, 1\)"):
        FiniteScalarQuantizer((7, 1))
