"""Whether host and seeds can be told apart in the gradient: asked when a seed becomes a task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tolaria_bus.kasmina import SeedRefused
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.engine.aggregation import NONE, TaskGradients
from tolaria_bus.tolaria.engine.precision import ATTRIBUTION
from tolaria_bus.tolaria.recovery.state import TrainingState

_REMEDY = "give sample_losses(model, batch), of shape (samples, ...), whose mean is the loss"


class Attributing:
    """Looks before START_GRAFTING. Training thread only, at a fence.

    What it finds follows from the state of the run, and what it decides is a part of it, so that a
    run that is recovered or repeated comes to the same.

    Args:
        state: Of the run.
        tasks: What makes the gradients; ``None``: the job gives no losses of samples, and was told.
        aggregation: The setting.
        disagreement: Says how losses and samples' losses don't go together; empty: they do.
        telemetry: Where it is told.
    """

    def __init__(
        self,
        state: TrainingState,
        tasks: TaskGradients | None,
        aggregation: str,
        disagreement: Callable[[], str],
        telemetry: Telemetry,
    ) -> None:
        self._engine = state.engine
        self._tasks = tasks
        self._aggregation = aggregation
        self._disagreement = disagreement
        self._telemetry = telemetry

    def judge(self) -> str:
        """Return why attribution has to go off with the seed that comes; empty: as it is.

        Raises:
            SeedRefused: ``gate_failed``: a handler is set, and needs it.
        """
        known = self._engine.fallen.get(ATTRIBUTION)
        if self._tasks is None or (known is not None and self._aggregation == NONE):
            return ""
        why = known or self._tasks.objection() or self._disagreement()
        if why and self._aggregation != NONE:
            raise SeedRefused(
                "gate_failed",
                f"aggregation = {self._aggregation!r} tells host and seeds apart by the losses of "
                f"single samples, but {why}; {_REMEDY}, or set aggregation=none",
            )
        return why

    def turn_off(self, why: str) -> dict[str, Any]:
        """Train seeds by the job's own loss from now on; details for the outcome."""
        self._engine.fall_back(ATTRIBUTION, why)
        self._telemetry.event(
            "attribution_off",
            "seeds are trained by the job's loss, as a part of the host, from now on: "
            f"{why}; to have them told apart, {_REMEDY}",
        )
        self._telemetry.metrics({"tolaria.engine.attribution": (0.0, "")})
        return {"attribution": f"off: {why}"}
