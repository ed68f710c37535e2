"""Measuring the model on held-out data: on all of it at an epoch's end, on a little for a gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
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
    """

    job: Job
    model: nn.Module
    held_out: ValidationBatches
    device: torch.device
    passes: Passes
    signals: Signals
    stopping: Callable[[], bool]

    def whole(self) -> Validation | None:
        """Loss and accuracy on all held-out data; ``None``: the run is being stopped."""

        def stop() -> bool:
            # A long validation isn't a training that hangs.
            self.signals.progress()
            return self.stopping()

        with self.signals.phase(Phase.VALIDATING):
            return validate(
                self.model, self.job, self.held_out, self.device, stop=stop, passes=self.passes
            )

    def first(self) -> float:
        """What gates measure by: the loss on the first held-out batches, the same each time."""
        few = self.held_out.first(GATE_BATCHES)
        measured = validate(self.model, self.job, few, self.device, passes=self.passes)
        assert measured is not None
        return measured.loss
