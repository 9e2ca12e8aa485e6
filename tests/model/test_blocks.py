"""Blocks whose activations are worked out again, or that are compiled, are the same network."""

from typing import Any

import numpy as np
import pytest
import torch

from skycairn.model.blocks import readied
from skycairn.model.forms import Form
from skycairn.model.packed import Packed
from skycairn.model.rules import Masker, Masking
from skycairn.model.transformer import Network
from skycairn.model.vocabulary import Vocabulary
from skycairn.pile.shards import TokenColumn

VOCABULARY = Vocabulary(
    (
        TokenColumn("desi.spectrum", "d" * 64, 9, 5, "line", (5,), False, "tok_spectrum_desi"),
        TokenColumn("gaia.parallax", "b" * 64, 8, 1, "scalar", (), True, "tok_parallax"),
    )
)

pytestmark = pytest.mark.usefixtures("one_thread")


def packed(n: int) -> Packed:
    rng = np.random.default_rng(n)
    tokens = rng.integers(0, 8, (n, 6))
    length = np.stack([np.full(n, 5), rng.integers(0, 2, n)], axis=1)
    return Masker(VOCABULARY, Masking(4, 3)).draw(tokens, length, rng)


def gradients(network: Network, n: int) -> list[torch.Tensor]:
    network.zero_grad()
    torch.manual_seed(n)  # of what is dropped
    network(packed(n)).sums.sum().backward()
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def two(**how: bool) -> tuple[Network, Network]:
    plain, other = (Network(VOCABULARY, Form(2, 2, 16, 2, 32, dropout=0.2)) for _ in range(2))
    other.load_state_dict(plain.state_dict())
    readied(other, **{"checkpointed": False, "compiled": False, "dealt_out": False, **how})
    assert list(other.state_dict()) == list(plain.state_dict()), "names of weights change in no way"
    return plain.train(), other.train()


def test_gradients_of_what_is_worked_out_again_are_equal() -> None:
    plain, other = two(checkpointed=True)
    for n in (5, 9):
        for own, found in zip(gradients(plain, n), gradients(other, n), strict=True):
            assert torch.equal(own, found)
    with torch.no_grad():
        assert torch.equal(plain.eval()(packed(4)).sums, other.eval()(packed(4)).sums)


# dynamo itself does what these warn of, and hides warnings in a way that does not hide errors
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_blocks_are_traced_whole_and_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    compile, graphs = torch.compile, []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    # all that dynamo does, without a compiler; `fullgraph` fails where a block is not one graph
    monkeypatch.setattr(torch, "compile", lambda f, **given: compile(f, backend=backend, fullgraph=True, **given))
    plain, other = two(checkpointed=True, compiled=True)
    for network in (plain, other):
        for block in (*network.encoder, *network.decoder):
            block.drop.p = 0.0
    for n in (5, 9):
        for own, found in zip(gradients(plain, n), gradients(other, n), strict=True):
            torch.testing.assert_close(own, found)
    assert 2 <= len(graphs) <= 4, "one of all encoder blocks and one of all decoder blocks, and of shapes of 1"
