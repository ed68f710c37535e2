"""Making a fossilized seed one with the layer that it stands behind, where both are linear.

With a layer y = W·x + b and a seed s(y) = y + M·y + c, the two are one layer with the weight
W + M·W and the bias b + M·b + c. A convolution is the same over its output channels.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

_LINEAR_LAYERS = (nn.Linear, nn.Conv2d)


@runtime_checkable
class Linear(Protocol):
    """A seed of the form x + M·x + shift; ``shift`` may be missing."""

    def linear_part(self) -> Tensor:
        """M, of shape (F, F)."""


def can_fold(host: nn.Module | None, seed: nn.Module) -> bool:
    """Whether a seed can become a part of the weights of the layer that it stands behind."""
    if not isinstance(seed, Linear) or type(host) not in _LINEAR_LAYERS:
        return False
    shift = getattr(seed, "shift", None)
    return shift is None or host.bias is not None  # type: ignore[union-attr]


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
