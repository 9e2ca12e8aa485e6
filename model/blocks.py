"""What is done to each block of a network before it is trained: in this order, each around what came before.

Blocks stay what they are and where they are: only their `forward` is another, so that no name of a weight changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils.checkpoint import checkpoint

from skycairn.model.transformer import FeedForward, Network

Forward = Callable[..., Any]


def readied(network: Network, checkpointed: bool, compiled: bool, dealt_out: bool) -> Network:
    """The network, its blocks as wished."""
    for block in _blocks(network):
        if compiled:
            feed = next(m for m in block.children() if isinstance(m, FeedForward))
            feed.forward = _feeding(feed)  # type: ignore[method-assign]
        if checkpointed:
            block.forward = _checkpointed(block.forward)
        if compiled:
            # how many tokens there are is another number in each microbatch
            block.forward = torch.compile(block.forward, dynamic=True)
    if dealt_out:
        _deal_out(network)
    return network


def _blocks(network: Network) -> Iterator[nn.Module]:
    yield from network.encoder
    yield from network.decoder


def _checkpointed(forward: Forward) -> Forward:
    """What is kept for the gradient is what comes in; the rest is worked out again, with the same dropout."""

    def again(*arguments: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments)
        return checkpoint(forward, *arguments, use_reentrant=False)

    return again


def _feeding(feed: FeedForward) -> Forward:
    """The same in words that the compiler follows: our own gradient of the gate writes into slices, where it ends."""

    def forward(x_TD: Tensor) -> Tensor:
        gate, up = feed.gate_up(x_TD).chunk(2, dim=-1)
        return feed.down(F.silu(gate) * up)

    return forward


def _deal_out(network: Network) -> None:
    """FSDP2: each layer's weights among all processes; gradients are added up, not averaged."""
    for block in _blocks(network):
        fully_shard(block, reshard_after_forward=False)
    fully_shard(network, reshard_after_forward=False)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
