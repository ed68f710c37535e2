"""The place in a host model where a seed can be grafted, and how its output gets in."""

from enum import Enum, auto
from typing import Literal, get_args

import torch
from torch import Tensor, nn

SlotKind = Literal["conv2d", "linear", "sequence"]
KINDS: tuple[str, ...] = get_args(SlotKind)


class Mode(Enum):
    """What a graft makes of the host's features x and the seed's output s."""

    SIDE = auto()
    """s of the detached x: the seed learns, and no gradient passes to what made x."""
    BLEND = auto()
    """(1 - alpha)·x + alpha·s."""
    WHOLE = auto()
    """s."""
    BYPASS = auto()
    """x: the host as it would be without the seed."""


class Graft:
    """The way from a slot's input to its output while its seed has a say in it.

    Args:
        seed: The module; its first parameter says where alpha lives.
        mode: To begin with.

    Attributes:
        tap: Where not None, every pass adds its (features, seed's output) to it.
    """

    def __init__(self, seed: nn.Module, mode: Mode) -> None:
        self.mode = mode
        self.tap: list[tuple[Tensor, Tensor]] | None = None
        self._seed = seed
        # A tensor: a compiled model would be compiled anew for every other number.
        self._alpha = next(seed.parameters()).detach().new_zeros(())

    def set_alpha(self, alpha: float) -> None:
        """Set the seed's share of the output, 0 to 1, from the next pass on."""
        self._alpha.fill_(alpha)

    @property
    def alpha(self) -> Tensor | float:
        """The seed's share of the output in a pass: a scalar on the device, or 0 or 1."""
        if self.mode is Mode.BLEND:
            return self._alpha
        return 1.0 if self.mode is Mode.WHOLE else 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Return the slot's output for its input, of the same shape and dtype."""
        if self.mode is Mode.BYPASS:
            return x
        if x.is_nested:
            return self._nested(x)
        out = self._grown(x)
        if self.tap is not None:
            self.tap.append((x, out))
        return self._mixed(x, out)

    def _grown(self, x: Tensor) -> Tensor:
        given = x.detach() if self.mode is Mode.SIDE else x
        if not given.requires_grad:
            # Where a channels-last input needs no gradient, torch's backward pass of a group norm
            # crashes on the CPU, process and all.
            given = given.contiguous()
        out: Tensor = self._seed(given)
        return out if out.dtype == x.dtype else out.to(x.dtype)  # Another one under autocast.

    def _mixed(self, x: Tensor, out: Tensor) -> Tensor:
        return torch.lerp(x, out, self._alpha.to(x.dtype)) if self.mode is Mode.BLEND else out

    def _nested(self, x: Tensor) -> Tensor:
        """Sample by sample: few of torch's functions take tensors of several lengths.

        ``nn.TransformerEncoder`` makes such ones of a padded batch in eval mode.
        """
        samples = [sample.unsqueeze(0) for sample in x.unbind()]
        outs = [self._grown(sample) for sample in samples]
        if self.tap is not None:
            # Zeros for what isn't there add nothing to a sample's norm.
            self.tap.append((_padded(x), _padded(_nested_like(x, outs))))
        mixed = [self._mixed(sample, out) for sample, out in zip(samples, outs, strict=True)]
        return _nested_like(x, mixed)


def _nested_like(x: Tensor, samples: list[Tensor]) -> Tensor:
    """Samples of shape (1, …) as one nested tensor, so that it can be added to ``x``."""
    if x.layout == torch.jagged:
        offsets: Tensor = x.offsets()  # type: ignore[attr-defined]
        return torch.nested.nested_tensor_from_jagged(torch.cat(samples, 1)[0], offsets)
    return torch.nested.as_nested_tensor([sample.squeeze(0) for sample in samples])


def _padded(x: Tensor) -> Tensor:
    padded: Tensor = torch.nested.to_padded_tensor(x.detach(), 0.0)
    return padded


class SeedSlot(nn.Module):
    """Put one wherever a model may grow: ``self.slot = SeedSlot(64)``, then ``x = self.slot(x)``.

    While it is empty, and while its seed is GERMINATED or TRAINING, it returns its input itself:
    the host's output and gradients are to the bit those of a model without the slot. A seed is a
    submodule (``seed``), so it moves between devices, and goes into state dicts, with its host.

    Args:
        features: ``conv2d``: the channels of (N, C, H, W); ``linear``: the size of the last
            dimension of (…, F); ``sequence``: that of (N, T, F).
        kind: What passes through.

    Raises:
        ValueError: ``features`` is below 1, or ``kind`` is another word.
    """

    seed: nn.Module | None
    graft: Graft | None

    def __init__(self, features: int, kind: SlotKind = "conv2d") -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"features is {features}; allowed: a whole number above 0")
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; allowed: {', '.join(KINDS)}")
        self.features = features
        self.kind: SlotKind = kind
        self.graft = None
        self.register_module("seed", None)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` itself, or what the graft makes of it."""
        graft = self.graft
        return x if graft is None else graft(x)

    def extra_repr(self) -> str:
        """Show the slot's shape where the model is printed."""
        return f"{self.features}, kind={self.kind!r}"
