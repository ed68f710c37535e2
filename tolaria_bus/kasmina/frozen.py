"""Parameters without a gradient, which a host's own forward may change: a momentum encoder, say.

A pass on the side runs that forward once more, and must leave them as they were. To copy a large
frozen backbone in every step would cost more than the pass, so that it is found out which of them a
pass changes: those that nobody knows are all kept in one pass, and compared behind it; from then on
those alone that it has changed. One that others have changed since (the host's own pass, a
checkpoint that was loaded) is not known any more.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class FrozenParameters:
    """Keeps the parameters of one model that need no gradient as they are.

    Args:
        model: The host.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._marks: dict[nn.Parameter, tuple[int, int]] = {}
        self._moving: set[nn.Parameter] = set()

    @contextmanager
    def kept(self, seed: nn.Module) -> Iterator[None]:
        """Whatever the block makes of them is undone behind it; but not of those of ``seed``.

        The parameters that aren't known yet are copied into the host's memory, and compared, which
        waits for the device.

        Raises:
            RuntimeError: a parameter has changed that hadn't changed in a pass before.
        """
        frozen = {
            parameter: name
            for name, parameter in self._model.named_parameters()
            if not parameter.requires_grad
        }
        self._moving &= frozen.keys()
        marks = {p: mark for p, mark in self._marks.items() if p in frozen}
        self._marks = marks
        if not frozen:
            yield
            return
        own = set(seed.parameters())
        others = [parameter for parameter in frozen if parameter not in own]
        moving = [(p, p.detach().clone()) for p in others if p in self._moving]
        unknown = [
            (p, p.detach().to("cpu", copy=True))
            for p in others
            if p not in self._moving and marks.get(p) != _mark(p)
        ]
        try:
            yield
        finally:
            self._moving.update(p for p, was in unknown if not torch.equal(p.detach().cpu(), was))
            with torch.no_grad():
                for parameter, was in [*moving, *unknown]:
                    if parameter in self._moving:
                        parameter.copy_(was)
            kept = {p for p, _ in [*moving, *unknown]}
            late = [p for p in others if p not in kept and marks.get(p) != _mark(p)]
            self._moving.update(late)
            marks.update((p, _mark(p)) for p in others)
        if late:
            names = ", ".join(frozen[parameter] for parameter in late)
            raise RuntimeError(
                f"the model's forward changes {names}, which need no gradient, and "
                "hadn't in the passes before: it changed them once too often"
            )


def _mark(parameter: Tensor) -> tuple[int, int]:
    """What is another number once a parameter was changed in place, or got another tensor."""
    version = 0 if parameter.is_inference() else parameter._version
    return version, parameter.data_ptr()
