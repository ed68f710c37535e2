"""The place in a host model where a seed can be grafted."""

from typing import Literal, get_args

from torch import Tensor, nn

SlotKind = Literal["conv2d", "linear"]
KINDS: tuple[str, ...] = get_args(SlotKind)


class SeedSlot(nn.Module):
    """Put one wherever a model may grow: ``self.slot = SeedSlot(64)``, then ``x = self.slot(x)``.

    While it is empty, and while its seed is GERMINATED, it returns its input itself: the host's
    output and gradients are to the bit those of a model without the slot. A seed is a submodule
    (``seed``), so it moves between devices, and goes into state dicts, with its host.

    Args:
        features: ``conv2d``: the channels of (N, C, H, W); ``linear``: the last dimension's size.
        kind: What passes through.

    Raises:
        ValueError: ``features`` is below 1, or ``kind`` is another word.
    """

    seed: nn.Module | None

    def __init__(self, features: int, kind: SlotKind = "conv2d") -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"features is {features}; allowed: a whole number above 0")
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; allowed: {', '.join(KINDS)}")
        self.features = features
        self.kind: SlotKind = kind
        self.register_module("seed", None)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` itself."""
        return x

    def extra_repr(self) -> str:
        """Show the slot's shape where the model is printed."""
        return f"{self.features}, kind={self.kind!r}"
