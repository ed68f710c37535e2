"""How a TRAINING seed learns: beside the host, from which it takes nothing.

The job's loss is computed once more, with the seed's output in place of the host's features at its
slot and those features detached. Its gradient goes to the seed's parameters alone. Around it

* every buffer of the host is a copy, so that batch statistics and counters don't move,
* what the host's forward makes of parameters without a gradient is undone (:mod:`.frozen`),
* the graft is there for this one pass, so that the host's own pass is that of an empty slot,
* the random generators are the caller's to fork; seeded as the host's pass was, the features that
  come to the slot are the very same.

fp16 gradients are scaled by the scale of the host's, and unscaled before anybody sees them. If they
overflow, the host's step isn't skipped, nor its scale lowered, for a seed: it has a limit of its
own to that scale, which is halved.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tolaria_bus.kasmina.frozen import FrozenParameters
from tolaria_bus.kasmina.places import Place
from tolaria_bus.kasmina.slot import Graft, Mode

# Of the exponential means of gradient norm and loss.
_DECAY = 0.9
_NEW = (0.0,) * 5


class Health:
    """What is known of a seed's learning on the side; updated without waiting for the device.

    Args:
        numbers: As ``numbers`` gave them.
        device: Where the seed is.
    """

    def __init__(self, numbers: Sequence[float] = (), device: torch.device | None = None) -> None:
        # Steps, steps that were not finite, mean gradient norm, mean loss, limit of the scale.
        start = [*numbers, *_NEW[len(numbers) :]]
        self._values = torch.tensor(start, dtype=torch.float64, device=device)

    def scale(self, scale: Tensor) -> Tensor:
        """Return what the seed's loss is multiplied by where the host's is by ``scale``."""
        limit = self._values[4]
        return torch.where(limit > 0, torch.minimum(limit, scale), scale).float()

    def note(self, loss: Tensor, norm: Tensor, finite: Tensor, scale: Tensor | None = None) -> None:
        """Take a step into account; one that overflowed for its scale lowers that instead.

        Args:
            loss: Scalar.
            norm: Of the seed's whole gradient; scalar.
            finite: Whether both are; a scalar of bool.
            scale: What the loss was multiplied by.
        """
        values = self._values
        counts: Tensor | int = 1
        if scale is not None:
            overflowed = ~finite & torch.isfinite(loss.detach()) & (scale > 1)
            values[4] = torch.where(overflowed, (scale / 2).clamp_min(1.0).double(), values[4])
            counts = ~overflowed
        newest = torch.stack([norm.detach(), loss.detach()]).to(values.dtype)
        first = values[0] == values[1]
        mean = torch.where(first, newest, torch.lerp(newest, values[2:4], _DECAY))
        values[2:4] = torch.where(finite, mean, values[2:4])
        values[0] += counts
        values[1] += ~finite & counts if scale is not None else ~finite

    def numbers(self) -> list[float]:
        """Return steps, not finite ones, gradient norm, loss, the scale's limit (0: none).

        Waits for the device.
        """
        return [float(value) for value in self._values.tolist()]


def learn(
    model: nn.Module,
    place: Place,
    loss: Callable[[], Tensor],
    health: Health,
    frozen: FrozenParameters,
    scale: Tensor | None = None,
) -> None:
    """Give a seed's parameters their gradient (``.grad``) of one pass on the side.

    A gradient that isn't finite becomes zero, and is counted.

    Args:
        model: The host.
        place: Where the seed stands.
        loss: Runs the host on the step's batch; the scalar loss.
        health: Of the seed.
        frozen: Of the host.
        scale: Of the host's fp16 gradients, a scalar on the device; the seed's aren't scaled when
            this returns.
    """
    seed = place.seed
    assert seed is not None
    parameters = [parameter for parameter in seed.parameters() if parameter.requires_grad]
    by = None if scale is None else health.scale(scale)
    graft = Graft(seed, Mode.SIDE)
    with _frozen_buffers(model, seed), frozen.kept(seed), _grafted(place, graft):
        value = loss()
        scaled = value if by is None else value * by
        found = torch.autograd.grad(scaled, parameters, allow_unused=True)
    if by is not None:
        inverse = by.reciprocal()
        found = tuple(None if gradient is None else gradient * inverse for gradient in found)
    gradients = [
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(parameters, found, strict=True)
    ]
    norm = torch.nn.utils.get_total_norm(gradients)
    finite = torch.isfinite(norm) & torch.isfinite(value.detach())
    for parameter, gradient in zip(parameters, gradients, strict=True):
        # In place, with the verdict still on the device: no waiting.
        parameter.grad = gradient.masked_fill_(~finite, 0.0)
    health.note(value, norm, finite, by)


@contextmanager
def _grafted(place: Place, graft: Graft) -> Iterator[None]:
    place.graft = graft
    try:
        yield
    finally:
        place.graft = None


@contextmanager
def _frozen_buffers(model: nn.Module, seed: nn.Module) -> Iterator[None]:
    """Let the host work on copies of its buffers; the tensors themselves aren't touched."""
    seeds_own = set(seed.modules())
    kept: list[tuple[nn.Module, dict[str, Tensor | None]]] = []
    for module in model.modules():
        buffers = module._buffers
        if buffers and module not in seeds_own:
            kept.append((module, dict(buffers)))
            for name, buffer in buffers.items():
                if buffer is not None:
                    buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for module, buffers in kept:
            module._buffers.clear()
            module._buffers.update(buffers)
