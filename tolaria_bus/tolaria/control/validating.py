"""Measuring the model on held-out data: on all of it at an epoch's end, on a little for a gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import nn

from tolaria_bus.safety import Phase, Signals
from tolaria_bus.tolaria.engine.data import ValidationBatches
from tolaria_bus.tolaria.engine.job import Job
from tolaria_bus.tolaria.engine.passes import Passes
from tolaria_bus.tolaria.engine.validation import Validation, validate

GATE_BATCHES: Final = 8
"""Held-out batches on which a seed's gates are measured, at a fence."""


@dataclass
class Validating:
    """Measures one model. Training thread only, at a fence.

    Attributes:
        job: Has the loss and the accuracy.
        model: In whatever mode it is.
        held_out: The data.
        device: Of the model.
        passes: Does the forward passes.
        signals: Told that it goes on.
        stopping: Is the run being stopped? Asked at every batch.
        on_fallback: Told why it is measured without autocast, the first time.
    """

    job: Job
    model: nn.Module
    held_out: ValidationBatches
    device: torch.device
    passes: Passes
    signals: Signals
    stopping: Callable[[], bool]
    on_fallback: Callable[[str], object] = lambda why: None
    _told: bool = field(default=False, init=False)

    def whole(self) -> Validation | None:
        """Loss and accuracy on all held-out data; ``None``: the run is being stopped."""

        def stop() -> bool:
            # A long validation isn't a training that hangs.
            self.signals.progress()
            return self.stopping()

        with self.signals.phase(Phase.VALIDATING):
            return self._measure(self.held_out, stop)

    def first(self) -> float:
        """What gates measure by: the loss on the first held-out batches, the same each time."""
        measured = self._measure(self.held_out.first(GATE_BATCHES), lambda: False)
        assert measured is not None
        return measured.loss

    def _measure(self, batches: ValidationBatches, stop: Callable[[], bool]) -> Validation | None:
        return validate(
            self.model,
            self.job,
            batches,
            self.device,
            stop=stop,
            passes=self.passes,
            on_fallback=self._tell,
        )

    def _tell(self, why: str) -> None:
        if not self._told:
            self._told = True
            self.on_fallback(why)
