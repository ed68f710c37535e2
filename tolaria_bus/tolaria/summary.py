"""What is known of a run from outside: while it goes on, and at its end."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is. Losses in the job's unit, accuracy from 0 to 1, ``None`` where unknown."""

    step: int
    total_steps: int
    epoch: int
    epochs: int
    loss: float
    accuracy: float | None
    lr: float
    mode: str
    timeline: int
    steps_per_second: float
    emergency: dict[str, Any] | None = None
    """Level, cause, reason, by whom, since which step, and at which step the level falls."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """How a run ended.

    Attributes:
        loss: Held-out loss of the newest validation, ``None`` before the first.
        accuracy: Held-out accuracy, 0 to 1, likewise.
        training_loss: Of the last step.
        weights_sha256: See :func:`tolaria_bus.tolaria.recovery.weights.weights_sha256`.
        stopped_by: ``finished``, ``command``, ``signal``, ``lease``.
        commands_applied: By this process.
        resumed_from: Name of the checkpoint, or empty.
        exact: False if the run was resumed under another torch, device or thread count.
        seconds: Wall time of this process's training.
    """

    run: str
    job: str
    steps: int
    epochs: int
    loss: float | None
    accuracy: float | None
    training_loss: float | None
    weights_sha256: str
    stopped_by: str
    commands_applied: int
    resumed_from: str
    timeline: int
    mode: str
    exact: bool
    checkpoint: str
    folder: str
    seconds: float
    steps_per_second: float

    def to_json(self) -> dict[str, Any]:
        """All fields; what is not a finite number is ``None``, as JSON has no NaN."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }
