"""Making a fossilized seed one with the layer that it stands behind, where both are linear.

With a layer y = W·x + b and a seed s(y) = y + M·y + c, the two are one layer with the weight
W + M·W and the bias b + M·b + c. A convolution is the same over its output channels. That holds for
a layer whose weight and bias are its own alone, and which nothing else has a hand in.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from tolaria_bus.kasmina.plain import oddity, shared

_LINEAR_LAYERS = (nn.Linear, nn.Conv2d)


@runtime_checkable
class Linear(Protocol):
    """A seed of the form x + M·x + shift; ``shift`` may be missing."""

    def linear_part(self) -> Tensor:
        """M, of shape (F, F)."""


def can_fold(model: nn.Module, host: nn.Module | None, seed: nn.Module) -> bool:
    """Whether a seed can become a part of the weights of the layer that it stands behind.

    Args:
        model: Both are in there.
        host: The layer. Not one with weights that are tied, or made of others in each pass, nor
            with a hook but the seed's.
        seed: That stands behind it.
    """
    if not isinstance(seed, Linear) or not isinstance(host, _LINEAR_LAYERS):
        return False
    if type(host) not in _LINEAR_LAYERS or oddity(host):
        return False
    if host._backward_hooks or host._backward_pre_hooks or shared(model, host):
        return False
    return getattr(seed, "shift", None) is None or host.bias is not None


@torch.no_grad()
def fold(host: nn.Module, seed: nn.Module) -> None:
    """Fold a seed into its host's weights, in place, computed in float64."""
    assert isinstance(seed, Linear)
    weight, bias = host.weight, host.bias
    assert isinstance(weight, Tensor)
    part = seed.linear_part().double()
    flat = weight.double().flatten(1)
    weight.copy_((flat + part @ flat).view_as(weight))
    if isinstance(bias, Tensor):
        moved = bias.double() + part @ bias.double()
        shift = getattr(seed, "shift", None)
        bias.copy_(moved if shift is None else moved + shift.double())
